//! What surrounds a value in the remote tier.
//!
//! ```text
//! "MP" | version u8 | codec u8 | tags u16 | (length u16, tag, stamp u64)* | epoch u64
//!      | kind u8 | key length u32 | key | payload length u32 | payload | xxh3 u64 of all before
//! ```
//!
//! Numbers are little endian. The key is in it and must match: two keys whose 128-bit names collide
//! cost a miss, not a wrong value. Reading follows no length that the bytes at hand do not cover, so
//! garbage costs nothing but the look.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    key::{Key, Kind},
    tags::Stamp,
};

/// The layout of this file. It is part of the names too, so that releases that differ in it do not
/// overwrite each other.
pub(crate) const VERSION: u8 = 1;
const MAGIC: &[u8; 2] = b"MP";
const JSON: u8 = 1;

/// An entry as it lies in the remote tier.
#[derive(Debug, PartialEq)]
pub(crate) struct Envelope<'a> {
    pub(crate) epoch: Stamp,
    pub(crate) tags: Vec<(&'a str, Stamp)>,
    pub(crate) payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// The bytes, or `None` if a tag, the key or the payload is too long for its length field.
    pub(crate) fn seal(&self, key: &Key<'_>) -> Option<Bytes> {
        let mut bytes = Vec::with_capacity(64 + key.bytes().len() + self.payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, JSON]);
        bytes.extend_from_slice(&u16::try_from(self.tags.len()).ok()?.to_le_bytes());
        for (tag, stamp) in &self.tags {
            bytes.extend_from_slice(&u16::try_from(tag.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(tag.as_bytes());
            bytes.extend_from_slice(&stamp.to_bytes());
        }
        bytes.extend_from_slice(&self.epoch.to_bytes());
        bytes.push(key.kind() as u8);
        for part in [key.bytes(), self.payload] {
            bytes.extend_from_slice(&u32::try_from(part.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(part);
        }
        let sum = xxh3_64(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        Some(bytes.into())
    }

    /// What is in the bytes, if they are an entry of this key, whole and of this version.
    pub(crate) fn open(bytes: &'a [u8], key: &Key<'_>) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<8>()?;
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return None;
        }
        let mut rest = Reader(body);
        if rest.take(2)? != MAGIC || rest.byte()? != VERSION || rest.byte()? != JSON {
            return None;
        }
        let count = rest.u16()?;
        // Not reserved by the count, which the bytes may not bear out.
        let mut tags = Vec::new();
        for _ in 0..count {
            let length = rest.u16()?;
            let tag = std::str::from_utf8(rest.take(usize::from(length))?).ok()?;
            tags.push((tag, rest.stamp()?));
        }
        let epoch = rest.stamp()?;
        let same_kind = rest.byte()? == key.kind() as u8;
        let same_key = rest.sized()? == key.bytes();
        let payload = rest.sized()?;
        (same_kind && same_key && rest.0.is_empty()).then_some(Self { epoch, tags, payload })
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

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn stamp(&mut self) -> Option<Stamp> {
        self.array().map(Stamp::from_bytes)
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(length).ok()?)
    }
}

/// The name of an entry of the named cache, without the cache's own prefix.
pub(crate) fn entry_name(cache: &str, key: &Key<'_>) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128_with_seed(key.bytes(), seed(key.kind()));
    format!("{cache}:{VERSION}:e:{hash:032x}")
}

/// The name of the stamp of a tag of the named cache.
pub(crate) fn tag_name(cache: &str, tag: &str) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128(tag.as_bytes());
    format!("{cache}:{VERSION}:t:{hash:032x}")
}

/// The name of the stamp of the named cache as a whole.
pub(crate) fn epoch_name(cache: &str) -> String {
    format!("{cache}:{VERSION}:epoch")
}

fn seed(kind: Kind) -> u64 {
    kind as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed<'a>(key: &Key<'_>) -> (Envelope<'a>, Bytes) {
        let tags = vec![("server:42", Stamp::random()), ("", Stamp::random())];
        let envelope = Envelope { epoch: Stamp::random(), tags, payload: b"{\"a\":1}" };
        let bytes = envelope.seal(key).unwrap();
        (envelope, bytes)
    }

    #[test]
    fn what_was_sealed_is_opened() {
        for key in
            [Key::public(""), Key::public("a\0:b"), Key::private("p", "a"), Key::public(&[0xff; 70_000])]
        {
            let (envelope, bytes) = sealed(&key);
            assert_eq!(Envelope::open(&bytes, &key), Some(envelope));
        }
    }

    #[test]
    fn entry_of_another_key_is_not_opened() {
        let (_, bytes) = sealed(&Key::public("a"));
        assert_eq!(Envelope::open(&bytes, &Key::public("b")), None);
        assert_eq!(Envelope::open(&bytes, &Key::private("a", "")), None);
    }

    #[test]
    fn cut_or_damaged_bytes_are_not_opened() {
        let key = Key::public("a");
        let (_, bytes) = sealed(&key);
        for length in 0..bytes.len() {
            assert_eq!(Envelope::open(&bytes[..length], &key), None, "cut to {length}");
        }
        for place in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[place] ^= 0x40;
            assert_eq!(Envelope::open(&damaged, &key), None, "damaged at {place}");
        }
    }

    /// The checksum is no secret, so a hostile writer can make it right.
    #[test]
    fn hostile_lengths_with_a_right_checksum_are_not_followed() {
        let key = Key::public("a");
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..50_000 {
            let (_, bytes) = sealed(&key);
            let mut body = bytes[..bytes.len() - 8].to_vec();
            for _ in 0..random.usize(1..6) {
                let place = random.usize(4..body.len());
                body[place] = random.u8(..);
            }
            body.truncate(random.usize(4..=body.len()));
            let sum = xxh3_64(&body);
            body.extend_from_slice(&sum.to_le_bytes());
            if let Some(envelope) = Envelope::open(&body, &key) {
                assert!(envelope.payload.len() < body.len());
            }
        }
    }
}
