//! What processes send each other over the bus.
//!
//! ```text
//! message: "MB" | version u8 | sender 16 | batch* | xxh3 u64 of all before
//! batch:   linked u8 | (before 16 | after 16)? | item count u32 | item*
//! item:    kind u8 | remove u8 | length u32 | bytes
//! ```
//!
//! Numbers are little endian. A batch is what one announcement covers, and never in two messages: who has it, has
//! all of it. A message that is not wholly ours, or damaged, is no message; one of another version is on another
//! channel. One without a batch only shows that the way is open.

use std::borrow::Cow;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{chain::Link, key::Key, store::Fence, tags::Invalidation};

/// The layout of this file, and a part of the channel's name.
pub(super) const VERSION: u8 = 1;
const MAGIC: &[u8; 2] = b"MB";
const KEY: u8 = 1;
const TAG: u8 = 2;
const EVERYTHING: u8 = 3;
const DOUBT: u8 = 4;

/// Bytes of a message besides its batches.
pub(super) const FRAME: usize = 3 + 16 + 8;
/// Bytes of a batch besides its items.
pub(super) const BATCH: usize = 1 + 32 + 4;

/// Who sent a message.
pub(super) type Node = [u8; 16];

/// One thing that was invalidated.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item<'a> {
    Key(Key<'a>, Invalidation),
    Tag(Cow<'a, str>, Invalidation),
    Everything(Invalidation),
    /// Something that cannot be told: whatever is remembered is to be looked up again.
    Doubt,
}

impl Item<'_> {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let remove = |invalidation: &Invalidation| u8::from(*invalidation == Invalidation::Remove);
        let (kind, remove, parts) = match self {
            Self::Key(key, invalidation) => {
                (KEY, remove(invalidation), [&[key.kind() as u8][..], key.bytes()])
            }
            Self::Tag(tag, invalidation) => (TAG, remove(invalidation), [tag.as_bytes(), &[]]),
            Self::Everything(invalidation) => (EVERYTHING, remove(invalidation), [&[][..]; 2]),
            Self::Doubt => (DOUBT, 0, [&[][..]; 2]),
        };
        let length = parts[0].len() + parts[1].len();
        // Longer than any message, and so in none.
        let length_field = u32::try_from(length).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(6 + length);
        bytes.extend_from_slice(&[kind, remove]);
        bytes.extend_from_slice(&length_field.to_le_bytes());
        bytes.extend_from_slice(parts[0]);
        bytes.extend_from_slice(parts[1]);
        bytes
    }
}

/// The bytes of a batch; `items` are those of its items.
pub(super) fn batch(link: Option<Link>, count: u32, items: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(BATCH + items.len());
    bytes.push(u8::from(link.is_some()));
    if let Some(Link { before, after }) = link {
        bytes.extend_from_slice(&before.to_bytes());
        bytes.extend_from_slice(&after.to_bytes());
    }
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(items);
    bytes.into()
}

/// A message that is being put together.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(sender: Node) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&sender);
        Self(bytes)
    }

    pub(super) fn has_room(&self, batch: &[u8], max_message: usize) -> bool {
        self.0.len() + batch.len() + 8 <= max_message
    }

    pub(super) fn push(&mut self, batch: &[u8]) {
        self.0.extend_from_slice(batch);
    }

    pub(super) fn seal(mut self) -> Bytes {
        let sum = xxh3_64(&self.0);
        self.0.extend_from_slice(&sum.to_le_bytes());
        self.0.into()
    }
}

/// A message that was heard.
#[derive(Debug, PartialEq)]
pub(super) struct Message<'a> {
    pub(super) sender: Node,
    pub(super) batches: Vec<Batch<'a>>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Batch<'a> {
    pub(super) link: Option<Link>,
    pub(super) items: Vec<Item<'a>>,
}

impl<'a> Message<'a> {
    /// What is in the bytes, if they are a message, whole and of this version.
    pub(super) fn open(bytes: &'a [u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<8>()?;
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return None;
        }
        let mut rest = Reader(body);
        if rest.array()? != *MAGIC || rest.array()? != [VERSION] {
            return None;
        }
        let sender = rest.array()?;
        let mut batches = Vec::new();
        while !rest.0.is_empty() {
            batches.push(rest.batch()?);
        }
        Some(Self { sender, batches })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.array()?)).ok()
    }

    fn batch(&mut self) -> Option<Batch<'a>> {
        let link = match self.array()? {
            [0] => None,
            [1] => {
                let [before, after] = [self.array()?, self.array()?].map(Fence::from_bytes);
                Some(Link { before, after })
            }
            _ => return None,
        };
        // Not reserved by the count, which the bytes may not bear out.
        let mut items = Vec::new();
        for _ in 0..self.length()? {
            items.push(self.item()?);
        }
        Some(Batch { link, items })
    }

    fn item(&mut self) -> Option<Item<'a>> {
        let [kind, remove] = self.array()?;
        let invalidation = match remove {
            0 => Invalidation::Expire,
            _ => Invalidation::Remove,
        };
        let length = self.length()?;
        let bytes = self.take(length)?;
        match kind {
            KEY => {
                let (kind, bytes) = bytes.split_first()?;
                Some(Item::Key(Key::from_parts(*kind, bytes)?, invalidation))
            }
            TAG => Some(Item::Tag(std::str::from_utf8(bytes).ok()?.into(), invalidation)),
            EVERYTHING => Some(Item::Everything(invalidation)),
            // What a later sender of this version may say is something that cannot be told.
            _ => Some(Item::Doubt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: Node = [7; 16];

    fn items() -> Vec<Item<'static>> {
        vec![
            Item::Key(Key::public(""), Invalidation::Remove),
            Item::Key(Key::public("a\0b"), Invalidation::Expire),
            Item::Key(Key::private("alice", "inbox").part("x"), Invalidation::Remove),
            Item::Key(Key::public("a").part("b"), Invalidation::Remove),
            Item::Tag("".into(), Invalidation::Expire),
            Item::Tag("Straße".into(), Invalidation::Remove),
            Item::Everything(Invalidation::Remove),
            Item::Everything(Invalidation::Expire),
            Item::Doubt,
        ]
    }

    fn sealed(links: &[Option<Link>]) -> Bytes {
        let mut writer = Writer::new(SENDER);
        for link in links {
            let items = items();
            let bytes: Vec<u8> = items.iter().flat_map(Item::to_bytes).collect();
            let batch = batch(*link, u32::try_from(items.len()).unwrap(), &bytes);
            assert!(batch.len() <= BATCH + bytes.len());
            assert!(writer.has_room(&batch, 4096));
            writer.push(&batch);
        }
        writer.seal()
    }

    fn link() -> Link {
        Link { before: Fence::from_bytes([1; 16]), after: Fence::from_bytes([2; 16]) }
    }

    #[test]
    fn what_was_sent_is_what_is_heard() {
        assert_eq!(Message::open(&sealed(&[])), Some(Message { sender: SENDER, batches: vec![] }));
        assert!(sealed(&[]).len() <= FRAME);
        let bytes = sealed(&[Some(link()), None]);
        let message = Message::open(&bytes).unwrap();
        let links: Vec<_> = message.batches.iter().map(|batch| batch.link).collect();
        assert_eq!(links, [Some(link()), None]);
        assert!(message.batches.iter().all(|batch| batch.items == items()));
    }

    #[test]
    fn damaged_truncated_and_foreign_bytes_are_no_message() {
        let bytes = sealed(&[Some(link())]);
        for length in 0..bytes.len() {
            assert_eq!(Message::open(&bytes[..length]), None, "cut to {length}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert_eq!(Message::open(&damaged), None, "damaged at {at}");
        }
        assert_eq!(Message::open(b"{\"key\":1}"), None);
    }

    #[test]
    fn bytes_with_a_right_sum_and_anything_in_them_never_panic_or_allocate_what_they_claim() {
        let mut random = fastrand::Rng::with_seed(3);
        let sound = sealed(&[Some(link()), None]);
        for _ in 0..20_000 {
            let mut body = sound[..sound.len() - 8].to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(3..body.len());
                body[at] = random.u8(..);
            }
            body.truncate(random.usize(3..=body.len()));
            let sum = xxh3_64(&body).to_le_bytes();
            body.extend_from_slice(&sum);
            let _ = Message::open(&body);
        }
    }
}
