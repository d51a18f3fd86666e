//! What surrounds a value in the remote tier.
//!
//! ```text
//! "MP" | version u8 | codec u8 | compression u8 | flags u8 | raw length u32
//!      | fresh u32 ms | life u32 ms | load cost u32 µs
//!      | schema u64, if flagged | lease over at u32 ms, value dead at u32 ms, holder u64, if flagged
//!      | cost u32, if flagged
//!      | validator (length u16, text), if flagged
//!      | tags u16 | (length u16, tag, stamp u128)* | epoch u128
//!      | kind u8 | key length u32 | key | payload length u32 | payload | xxh3 u64 of all before
//! ```
//!
//! Numbers are little endian. The key is in it and must match: two keys whose 128-bit names collide
//! cost a miss, not a wrong value. Reading follows no length that the bytes at hand do not cover, so
//! garbage costs nothing but the look. Nothing here is done with a codec, a compression or a schema: they are
//! numbers, and whoever reads the payload says which of them it knows.
//!
//! Of the two durations that an age is worked out from, what is left is rounded down and what it is left of is
//! rounded up, so that no life is gained by being written.
//!
//! An entry can be a *lease*: somebody is loading the key. The value that was there before stays in it, so the two end
//! at times of their own, both told by what is then left of the whole.

use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    key::{Key, Kind},
    tags::{STAMP, Stamp},
};

/// The layout of this file. It is part of the names too, so that releases that differ in it do not
/// overwrite or delete each other's entries.
pub(crate) const VERSION: u8 = 2;
/// [`VERSION`], between two others.
const VERSION_IN_NAMES: &str = ":2:";
const MAGIC: &[u8; 2] = b"MP";

/// What is in the bytes, one bit each. Any other bit means something that this release cannot know.
mod flag {
    pub(super) const NEGATIVE: u8 = 1;
    pub(super) const LEASE: u8 = 1 << 1;
    pub(super) const SCHEMA: u8 = 1 << 2;
    pub(super) const VALIDATOR: u8 = 1 << 3;
    pub(super) const COST: u8 = 1 << 4;
    pub(super) const KNOWN: u8 = NEGATIVE | LEASE | SCHEMA | VALIDATOR | COST;
}

/// An entry as it lies in the remote tier.
#[derive(Debug, PartialEq)]
pub(crate) struct Envelope<'a> {
    pub(crate) epoch: Stamp,
    pub(crate) tags: Vec<(&'a str, Stamp)>,
    /// How long it was still to be fresh when it was written; at most 49 days, rounded down to milliseconds.
    pub(crate) fresh: Duration,
    /// The time to live it was written with, so that its age is this less what remains of it; at most 49 days,
    /// rounded up to milliseconds.
    pub(crate) life: Duration,
    /// How long it took to load; at most 71 minutes, rounded down to microseconds.
    pub(crate) load_cost: Duration,
    /// What its source tells this state of it by: an `ETag`.
    pub(crate) validator: Option<&'a str>,
    /// What it takes up in memory, if its loader said so, in bytes.
    pub(crate) cost: Option<u32>,
    /// The answer was that there is no such thing; the payload is empty.
    pub(crate) negative: bool,
    /// Somebody is loading it; the payload is the value from before, or empty.
    pub(crate) lease: Option<Lease>,
    pub(crate) payload: Payload<'a>,
}

/// When a lease ends, and when the value does that lies in it: each by what is left then of the time to live that the
/// whole was written with. One of them is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Rounded down to milliseconds.
    pub(crate) over_at: Duration,
    /// Rounded up to milliseconds, so that no value gains life.
    pub(crate) dead_at: Duration,
    /// Drawn by who took it.
    pub(crate) holder: u64,
}

/// The bytes of a value, and how they are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload<'a> {
    /// What made bytes of the value; zero for nothing.
    pub(crate) codec: u8,
    /// What was done to the bytes then; zero for nothing.
    pub(crate) compression: u8,
    /// What the value's owner calls the shape of its type.
    pub(crate) schema: Option<u64>,
    /// How many bytes the codec made. Only a claim, until they are there.
    pub(crate) raw_length: u32,
    pub(crate) bytes: &'a [u8],
}

impl Payload<'static> {
    /// No value.
    pub(crate) const EMPTY: Self = Self { codec: 0, compression: 0, schema: None, raw_length: 0, bytes: &[] };
}

impl<'a> Envelope<'a> {
    /// The bytes, or `None` if a tag, the validator, the key or the payload is too long for its length field.
    pub(crate) fn seal(&self, key: &Key<'_>) -> Option<Bytes> {
        let Payload { codec, compression, schema, raw_length, bytes: payload } = self.payload;
        let tags: usize = self.tags.iter().map(|(tag, _)| 2 + tag.len() + STAMP).sum();
        let validator = self.validator.map_or(0, str::len);
        let mut bytes = Vec::with_capacity(88 + validator + tags + key.bytes().len() + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, codec, compression, self.flags()]);
        bytes.extend_from_slice(&raw_length.to_le_bytes());
        let fresh = saturated(self.fresh.as_millis());
        let life = saturated(self.life.as_nanos().div_ceil(1_000_000));
        for number in [fresh, life, saturated(self.load_cost.as_micros())] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        if let Some(schema) = schema {
            bytes.extend_from_slice(&schema.to_le_bytes());
        }
        if let Some(Lease { over_at, dead_at, holder }) = self.lease {
            for number in [over_at.as_millis(), dead_at.as_nanos().div_ceil(1_000_000)] {
                bytes.extend_from_slice(&saturated(number).to_le_bytes());
            }
            bytes.extend_from_slice(&holder.to_le_bytes());
        }
        if let Some(cost) = self.cost {
            bytes.extend_from_slice(&cost.to_le_bytes());
        }
        if let Some(validator) = self.validator {
            append_short(&mut bytes, validator)?;
        }
        bytes.extend_from_slice(&u16::try_from(self.tags.len()).ok()?.to_le_bytes());
        for (tag, stamp) in &self.tags {
            append_short(&mut bytes, tag)?;
            bytes.extend_from_slice(&stamp.to_bytes());
        }
        bytes.extend_from_slice(&self.epoch.to_bytes());
        bytes.push(key.kind() as u8);
        for part in [key.bytes(), payload] {
            bytes.extend_from_slice(&u32::try_from(part.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(part);
        }
        let sum = xxh3_64(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        Some(bytes.into())
    }

    fn flags(&self) -> u8 {
        let bits = [
            (self.negative, flag::NEGATIVE),
            (self.lease.is_some(), flag::LEASE),
            (self.payload.schema.is_some(), flag::SCHEMA),
            (self.validator.is_some(), flag::VALIDATOR),
            (self.cost.is_some(), flag::COST),
        ];
        bits.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag)
    }

    /// What is in the bytes, if they are an entry of this key, whole and of this version.
    pub(crate) fn open(bytes: &'a [u8], key: &Key<'_>) -> Option<Self> {
        // The version first: what another one means by the rest, its checksum included, is not known here.
        let [magic_0, magic_1, VERSION, ..] = bytes else { return None };
        if [*magic_0, *magic_1] != *MAGIC {
            return None;
        }
        let (body, sum) = bytes.split_last_chunk::<8>()?;
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return None;
        }
        let mut rest = Reader(body);
        rest.take(MAGIC.len() + 1)?;
        let [codec, compression, flags] = rest.array()?;
        if flags & !flag::KNOWN != 0 {
            return None;
        }
        let raw_length = rest.u32()?;
        let [fresh, life, load_cost] = [rest.u32()?, rest.u32()?, rest.u32()?].map(u64::from);
        let schema = if flags & flag::SCHEMA != 0 { Some(rest.u64()?) } else { None };
        let lease = if flags & flag::LEASE != 0 { Some(rest.lease()?) } else { None };
        let cost = if flags & flag::COST != 0 { Some(rest.u32()?) } else { None };
        let validator = if flags & flag::VALIDATOR != 0 { Some(rest.short()?) } else { None };
        let count = rest.u16()?;
        // Not reserved by the count, which the bytes may not bear out.
        let mut tags = Vec::new();
        for _ in 0..count {
            tags.push((rest.short()?, rest.stamp()?));
        }
        let epoch = rest.stamp()?;
        let same_kind = rest.byte()? == key.kind() as u8;
        let same_key = rest.sized()? == key.bytes();
        let bytes = rest.sized()?;
        let envelope = Self {
            epoch,
            tags,
            fresh: Duration::from_millis(fresh),
            life: Duration::from_millis(life),
            load_cost: Duration::from_micros(load_cost),
            validator,
            cost,
            negative: flags & flag::NEGATIVE != 0,
            lease,
            payload: Payload { codec, compression, schema, raw_length, bytes },
        };
        (same_kind && same_key && rest.0.is_empty()).then_some(envelope)
    }

    /// How long the value may still be served, when so much is left of the entry.
    pub(crate) fn value_left(&self, remaining: Duration) -> Duration {
        remaining.saturating_sub(self.lease.map_or(Duration::ZERO, |lease| lease.dead_at)).min(self.life)
    }

    /// How long the lease still stands, when so much is left of the entry; zero without one.
    pub(crate) fn lease_left(&self, remaining: Duration) -> Duration {
        self.lease.map_or(Duration::ZERO, |lease| remaining.saturating_sub(lease.over_at))
    }
}

impl Lease {
    /// For `lease` in an entry of which the value lives for `value`, and the time to live of the whole.
    pub(crate) fn over(lease: Duration, value: Duration, holder: u64) -> (Self, Duration) {
        let whole = lease.max(value);
        (Self { over_at: whole - lease, dead_at: whole - value, holder }, whole)
    }
}

fn saturated(number: u128) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A text of at most 65,535 bytes, after its length.
fn append_short(bytes: &mut Vec<u8>, text: &str) -> Option<()> {
    bytes.extend_from_slice(&u16::try_from(text.len()).ok()?.to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    Some(())
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

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn lease(&mut self) -> Option<Lease> {
        let [over_at, dead_at] = [self.u32()?, self.u32()?].map(|left| Duration::from_millis(left.into()));
        Some(Lease { over_at, dead_at, holder: self.u64()? })
    }

    fn stamp(&mut self) -> Option<Stamp> {
        self.array().map(Stamp::from_bytes)
    }

    fn short(&mut self) -> Option<&'a str> {
        let length = self.u16()?;
        std::str::from_utf8(self.take(usize::from(length))?).ok()
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }
}

/// The name of an entry of the named cache, without the cache's own prefix.
pub(crate) fn entry_name(cache: &str, key: &Key<'_>) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128_with_seed(key.bytes(), seed(key.kind()));
    named(cache, "e", hash)
}

/// The name of the stamp of a tag of the named cache.
pub(crate) fn tag_name(cache: &str, tag: &str) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128(tag.as_bytes());
    named(cache, "t", hash)
}

/// By hand: a number of 128 bits is formatted as slowly as all the rest of a name is made.
fn named(cache: &str, kind: &str, hash: u128) -> String {
    let mut name = String::with_capacity(cache.len() + 40);
    name.push_str(cache);
    name.push_str(VERSION_IN_NAMES);
    name.push_str(kind);
    name.push(':');
    for byte in hash.to_be_bytes() {
        for digit in [byte >> 4, byte & 15] {
            name.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    name
}

/// The name of the stamp of the named cache as a whole.
pub(crate) fn epoch_name(cache: &str) -> String {
    format!("{cache}:{VERSION}:epoch")
}

/// The name of the stamp that every invalidation of a tag changes, where loaders choose tags.
pub(crate) fn any_tag_name(cache: &str) -> String {
    format!("{cache}:{VERSION}:anytag")
}

/// The name of the named cache's ledger, an entry that every announcement changes.
pub(crate) fn ledger_name(cache: &str) -> String {
    format!("{cache}:{VERSION}:ledger")
}

fn seed(kind: Kind) -> u64 {
    kind as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: Payload<'_> =
        Payload { codec: 1, compression: 0, schema: None, raw_length: 7, bytes: b"{\"a\":1}" };

    /// An entry of every field that an entry can have.
    fn full() -> Envelope<'static> {
        Envelope {
            epoch: Stamp::random(),
            tags: vec![("server:42", Stamp::random()), ("", Stamp::random())],
            fresh: Duration::from_secs(59),
            life: Duration::from_secs(60),
            load_cost: Duration::from_micros(1_234_567),
            validator: Some("W/\"5d8c72a5edda8d6a\""),
            cost: Some(u32::MAX - 1),
            negative: false,
            lease: Some(Lease { over_at: Duration::from_secs(55), dead_at: Duration::ZERO, holder: 7 }),
            payload: Payload { schema: Some(u64::MAX - 1), ..PAYLOAD },
        }
    }

    /// One of none that it can do without.
    fn bare() -> Envelope<'static> {
        Envelope {
            tags: Vec::new(),
            load_cost: Duration::ZERO,
            validator: None,
            cost: None,
            lease: None,
            payload: PAYLOAD,
            ..full()
        }
    }

    /// The bytes with one changed, and a checksum that does not tell.
    fn with_byte(bytes: &[u8], place: usize, byte: u8) -> Vec<u8> {
        let mut changed = bytes[..bytes.len() - 8].to_vec();
        changed[place] = byte;
        checksummed(changed)
    }

    fn checksummed(mut body: Vec<u8>) -> Vec<u8> {
        let sum = xxh3_64(&body);
        body.extend_from_slice(&sum.to_le_bytes());
        body
    }

    #[test]
    fn names_are_as_other_releases_make_them() {
        let key = Key::public("a");
        let hash = xxhash_rust::xxh3::xxh3_128_with_seed(b"a", seed(key.kind()));
        assert_eq!(entry_name("c", &key), format!("c:{VERSION}:e:{hash:032x}"));
        assert_eq!(named("c", "t", 0x0f), format!("c:{VERSION}:t:{:032x}", 0x0f));
    }

    #[test]
    fn what_was_sealed_is_opened() {
        for key in
            [Key::public(""), Key::public("a\0:b"), Key::private("p", "a"), Key::public(&[0xff; 70_000])]
        {
            for envelope in [
                full(),
                bare(),
                Envelope { negative: true, payload: Payload::EMPTY, ..bare() },
                Envelope { validator: Some(""), ..bare() },
                Envelope { cost: Some(0), ..bare() },
                Envelope { payload: Payload { schema: Some(0), ..PAYLOAD }, ..bare() },
            ] {
                let bytes = envelope.seal(&key).unwrap();
                assert_eq!(Envelope::open(&bytes, &key), Some(envelope));
            }
        }
    }

    #[test]
    fn no_life_is_gained_by_being_written_and_none_overflows() {
        let key = Key::public("a");
        let odd = Duration::from_nanos(1_500_001);
        let sealed = Envelope { fresh: odd, life: odd, load_cost: odd, ..bare() }.seal(&key).unwrap();
        let opened = Envelope::open(&sealed, &key).unwrap();
        assert_eq!(opened.fresh, Duration::from_millis(1));
        assert_eq!(opened.life, Duration::from_millis(2));
        assert_eq!(opened.load_cost, Duration::from_micros(1_500));
        let term = Lease { over_at: odd, dead_at: odd, holder: u64::MAX };
        let sealed = Envelope { lease: Some(term), ..bare() }.seal(&key).unwrap();
        let [over_at, dead_at] = [1, 2].map(Duration::from_millis);
        assert_eq!(
            Envelope::open(&sealed, &key).unwrap().lease,
            Some(Lease { over_at, dead_at, holder: u64::MAX })
        );

        let long = Duration::MAX;
        let sealed = Envelope { fresh: long, life: long, load_cost: long, ..bare() }.seal(&key).unwrap();
        let opened = Envelope::open(&sealed, &key).unwrap();
        assert_eq!(opened.fresh, Duration::from_millis(u32::MAX.into()));
        assert_eq!(opened.life, Duration::from_millis(u32::MAX.into()));
        assert_eq!(opened.load_cost, Duration::from_micros(u32::MAX.into()));
        assert!(opened.life > super::super::MAX_TIME_TO_LIVE);
    }

    #[test]
    fn lease_and_value_end_each_at_its_own_time() {
        let seconds = Duration::from_secs;
        for (lease, value) in [(5, 60), (60, 5), (5, 0), (7, 7)] {
            let (term, whole) = Lease::over(seconds(lease), seconds(value), 7);
            let envelope = Envelope { lease: Some(term), life: seconds(100), ..bare() };
            assert_eq!(whole, seconds(lease.max(value)));
            for passed in [0, 4, 5, 6, 59, 60] {
                let remaining = whole.saturating_sub(seconds(passed));
                assert_eq!(envelope.lease_left(remaining), seconds(lease.saturating_sub(passed)));
                assert_eq!(envelope.value_left(remaining), seconds(value.saturating_sub(passed)));
            }
        }
        let (term, _) = Lease::over(seconds(5), seconds(60), 7);
        let envelope = Envelope { lease: Some(term), life: seconds(30), ..bare() };
        assert_eq!(envelope.value_left(seconds(60)), seconds(30), "no longer than it was written with");
        assert_eq!(bare().lease_left(seconds(9)), Duration::ZERO);
        assert_eq!(bare().value_left(seconds(9)), seconds(9));
    }

    #[test]
    fn what_does_not_fit_its_length_field_is_not_sealed() {
        let key = Key::public("a");
        let long = "x".repeat(usize::from(u16::MAX) + 1);
        assert_eq!(Envelope { tags: vec![(&long, Stamp::random())], ..bare() }.seal(&key), None);
        assert_eq!(Envelope { validator: Some(&long), ..bare() }.seal(&key), None);
        let many = vec![("t", Stamp::random()); usize::from(u16::MAX) + 1];
        assert_eq!(Envelope { tags: many, ..bare() }.seal(&key), None);
    }

    #[test]
    fn entry_of_another_key_is_not_opened() {
        let bytes = full().seal(&Key::public("a")).unwrap();
        assert_eq!(Envelope::open(&bytes, &Key::public("b")), None);
        assert_eq!(Envelope::open(&bytes, &Key::private("a", "")), None);
    }

    #[test]
    fn cut_or_damaged_bytes_are_not_opened() {
        let key = Key::public("a");
        let bytes = full().seal(&key).unwrap();
        for length in 0..bytes.len() {
            assert_eq!(Envelope::open(&bytes[..length], &key), None, "cut to {length}");
            let cut = checksummed(bytes[..length].to_vec());
            if length != bytes.len() - 8 {
                assert_eq!(Envelope::open(&cut, &key), None, "cut to {length}, and a checksum of that");
            }
        }
        for place in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[place] ^= 0x40;
            assert_eq!(Envelope::open(&damaged, &key), None, "damaged at {place}");
        }
        let mut longer = bytes[..bytes.len() - 8].to_vec();
        longer.push(0);
        assert_eq!(Envelope::open(&checksummed(longer), &key), None);
    }

    #[test]
    fn no_version_but_this_one_is_opened_and_no_flag_that_is_not_known() {
        let key = Key::public("a");
        let bytes = bare().seal(&key).unwrap();
        for byte in 0..=u8::MAX {
            let opened = Envelope::open(&with_byte(&bytes, 2, byte), &key).is_some();
            assert_eq!(opened, byte == VERSION, "version {byte}");
            let opened = Envelope::open(&with_byte(&bytes, 5, byte), &key).is_some();
            assert!(!opened || byte & !flag::KNOWN == 0, "flags {byte:b}");
        }
    }

    #[test]
    fn every_codec_and_compression_is_told_as_it_is() {
        let key = Key::public("a");
        let bytes = bare().seal(&key).unwrap();
        for byte in 0..=u8::MAX {
            let (codec, compression) = (with_byte(&bytes, 3, byte), with_byte(&bytes, 4, byte));
            assert_eq!(Envelope::open(&codec, &key).unwrap().payload.codec, byte);
            assert_eq!(Envelope::open(&compression, &key).unwrap().payload.compression, byte);
        }
    }

    /// A release of another version neither reads, overwrites nor deletes what is under them.
    #[test]
    fn every_name_in_the_store_holds_the_version() {
        let key = Key::public("a");
        for name in [entry_name("c", &key), tag_name("c", "t"), epoch_name("c")] {
            assert!(name.starts_with(&format!("c:{VERSION}:")), "{name}");
            assert!(name.len() <= 160);
        }
        assert_ne!(entry_name("c", &key), entry_name("c", &Key::private("a", "")));
    }

    /// The checksum is no secret, so a hostile writer can make it right.
    #[test]
    fn hostile_lengths_with_a_right_checksum_are_not_followed() {
        let key = Key::public("a");
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..50_000 {
            let envelope = if random.bool() { full() } else { bare() };
            let bytes = envelope.seal(&key).unwrap();
            let mut body = bytes[..bytes.len() - 8].to_vec();
            for _ in 0..random.usize(1..6) {
                let place = random.usize(3..body.len());
                body[place] = random.u8(..);
            }
            body.truncate(random.usize(3..=body.len()));
            let length = body.len();
            if let Some(envelope) = Envelope::open(&checksummed(body), &key) {
                assert!(envelope.payload.bytes.len() < length);
            }
        }
    }
}
