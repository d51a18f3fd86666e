//! What a hostile writer can put under a name, tried at random.
//!
//! The checksum is no secret, so it is made right here, and the mutations get past it to what it protects. They
//! begin with an entry of every codec, compression and set of fields. An entry may come out as another value, which
//! whoever writes to the store can have anyway; what it may not do is bring down its reader, cost more memory than
//! its bytes can bear out, or come out longer than it declared.
//!
//! Ten thousand entries, the same ones, in every run. More of them, and others:
//! `MCP_PERF_FUZZ=100000000 MCP_PERF_FUZZ_SEED=1 cargo test --release --lib hostile`.

use std::{
    env,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::{any, prop_assert_eq, proptest};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    codec::Codec,
    compress::Compression,
    envelope::{Envelope, Lease, Payload},
    format::{Encoded, Format},
    key::Key,
    tags::Stamp,
};

/// Below what is done by another thread, so that what it costs can be measured here.
const MAX_VALUE: usize = 64 << 10;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Value {
    text: String,
    numbers: Vec<i64>,
    inner: Option<Box<Self>>,
    any: serde_json::Value,
}

/// Every codec that this build has for a type with `serde`.
const EVERY_CODEC: &[fn() -> Codec<Value>] = &[
    Codec::json,
    #[cfg(feature = "message-pack")]
    Codec::message_pack,
];
const EVERY_SETTING: [Compression; 4] =
    [Compression::Off, Compression::Light, Compression::Balanced, Compression::Heavy];

/// What the cache would serve.
fn read<V: Send + Sync + 'static>(format: &Format<V>, entry: &Bytes, key: &Key<'_>) -> Option<V> {
    let envelope = Envelope::open(entry, key)?;
    assert!(envelope.payload.bytes.len() < entry.len());
    now(format.decode(entry, &envelope.payload))
}

/// The outcome of a future that has nothing to wait for.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits for something"),
    }
}

fn format<V: Send + Sync + 'static>(codec: Codec<V>, compression: Compression) -> Format<V> {
    Format::new("test", codec, compression, None, MAX_VALUE)
}

fn seconds(random: &mut fastrand::Rng) -> Duration {
    Duration::from_secs(random.u64(..100))
}

fn sealed(key: &Key<'_>, encoded: &Encoded, random: &mut fastrand::Rng) -> Bytes {
    let tags = (0..random.usize(..4)).map(|_| ("tag", Stamp::random())).collect();
    let envelope = Envelope {
        epoch: Stamp::random(),
        tags,
        fresh: Duration::from_secs(random.u64(..100)),
        life: Duration::from_secs(100),
        load_cost: Duration::from_micros(random.u64(..)),
        validator: random.bool().then_some("\"etag\""),
        cost: random.bool().then(|| random.u32(..)),
        negative: random.bool(),
        lease: random.bool().then(|| Lease::over(seconds(random), seconds(random), random.u64(..)).0),
        payload: Payload { schema: (random.u8(..8) == 0).then_some(7), ..encoded.payload() },
    };
    envelope.seal(key).unwrap()
}

/// One entry of everything that there is.
fn corpus(key: &Key<'_>, random: &mut fastrand::Rng) -> Vec<Bytes> {
    let mut corpus = Vec::new();
    for compression in EVERY_SETTING {
        for length in [0, 10, 1_500, 6_000, 40_000] {
            let text: String =
                std::iter::repeat_with(|| random.choice(["one ", "two\u{e4}", "3, "]).unwrap())
                    .take(length / 4)
                    .collect();
            let bytes = Bytes::from(text.clone());
            corpus.push(sealed(
                key,
                &now(format(Codec::bytes(), compression).encode(&bytes)).unwrap(),
                random,
            ));
            let inner = Some(Box::new(Value::default()));
            let value = Value { text, numbers: vec![i64::MIN; length / 100], inner, ..Value::default() };
            for codec in EVERY_CODEC {
                corpus.push(sealed(key, &now(format(codec(), compression).encode(&value)).unwrap(), random));
            }
        }
    }
    corpus
}

/// Numbers that lengths go wrong at.
const EDGES: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, 0x7fff_ffff, u32::MAX];

/// Changes a few places of the body, and makes the checksum right again.
fn mutated(entry: &Bytes, other: &Bytes, random: &mut fastrand::Rng) -> Bytes {
    let mut body = entry[..entry.len() - 8].to_vec();
    for _ in 0..random.usize(1..5) {
        // The fields are at the beginning, so most changes are there; the version and what is before it stay.
        let reach = if random.u8(..4) > 0 { body.len().min(160) } else { body.len() };
        if reach <= 4 {
            break;
        }
        let at = random.usize(3..reach);
        match random.u8(..8) {
            0 => body[at] ^= 1 << random.u8(..8),
            1 => body[at] = random.u8(..),
            2 => body[at] = body[at].wrapping_add(1),
            3 | 4 => {
                let edge = random.choice(EDGES).unwrap().to_le_bytes();
                let width = random.usize(1..=4).min(body.len() - at);
                body[at..at + width].copy_from_slice(&edge[..width]);
            }
            5 => body.truncate(at),
            6 => {
                body.remove(at);
            }
            _ => {
                let from = random.usize(..other.len());
                let length = random.usize(..64).min(other.len() - from);
                body.splice(at..at, other[from..from + length].iter().copied());
            }
        }
    }
    checksummed(body)
}

fn checksummed(mut body: Vec<u8>) -> Bytes {
    let sum = xxh3_64(&body);
    body.extend_from_slice(&sum.to_le_bytes());
    body.into()
}

#[test]
fn no_entry_of_a_hostile_writer_brings_down_its_reader_or_costs_more_than_it_can_bear_out() {
    let number = |name, default| {
        env::var(name).map_or(default, |number| number.parse::<u64>().expect("a number in the environment"))
    };
    let (entries, seed) = (number("MCP_PERF_FUZZ", 10_000), number("MCP_PERF_FUZZ_SEED", 7));
    let mut random = fastrand::Rng::with_seed(seed);
    let key = Key::private("alice", "key");
    let corpus = corpus(&key, &mut random);
    let bytes = format(Codec::bytes(), Compression::Off);
    let typed: Vec<Format<Value>> =
        EVERY_CODEC.iter().map(|codec| format(codec(), Compression::Off)).collect();
    // Tables that a thread keeps are made by the first that needs them.
    for entry in &corpus {
        read(&bytes, entry, &key);
    }
    let mut opened = 0;
    for _ in 0..entries {
        let [entry, other] = [(); 2].map(|()| &corpus[random.usize(..corpus.len())]);
        let entry = mutated(entry, other, &mut random);
        let (declared, most) = Envelope::open(&entry, &key).map_or((0, 0), |envelope| {
            opened += 1;
            let declared = usize::try_from(envelope.payload.raw_length).unwrap();
            (declared, declared.min(MAX_VALUE).min(1_032 * envelope.payload.bytes.len()))
        });
        let mut value = None;
        let used = allocation_counter::measure(|| value = read(&bytes, &entry, &key));
        assert!(value.is_none_or(|value| value.len() == declared && declared <= MAX_VALUE));
        // The list of tags takes up to four times their bytes while it grows.
        let bound = most + 4 * entry.len() + 1_024;
        assert!(used.bytes_max <= bound as u64, "{} bytes, of {}", used.bytes_max, entry.len());
        for format in &typed {
            read(format, &entry, &key);
        }
    }
    assert!(opened * 20 > entries, "the mutations hardly get past the envelope");
}

/// A text that nests as deep as it is long.
#[test]
fn depth_is_bounded() {
    let key = Key::public("key");
    let deep = |codec: u8, bytes: Vec<u8>| {
        let payload = Payload {
            codec,
            compression: 0,
            schema: None,
            raw_length: u32::try_from(bytes.len()).unwrap(),
            bytes: &bytes,
        };
        let envelope = Envelope {
            epoch: Stamp::random(),
            tags: Vec::new(),
            fresh: Duration::ZERO,
            life: Duration::ZERO,
            load_cost: Duration::ZERO,
            validator: None,
            cost: None,
            negative: false,
            lease: None,
            payload,
        };
        envelope.seal(&key).unwrap()
    };
    fn value<V: Send + Sync + 'static>(codec: Codec<V>, entry: &Bytes, key: &Key<'_>) -> bool {
        let envelope = Envelope::open(entry, key).unwrap();
        now(format(codec, Compression::Off).decode(entry, &envelope.payload)).is_some()
    }
    let json = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat().into_bytes();
    type Any = serde_json::Value;
    assert!(value(Codec::<Any>::json(), &deep(1, json(100)), &key));
    assert!(!value(Codec::<Any>::json(), &deep(1, json(30_000)), &key));
    #[cfg(feature = "message-pack")]
    {
        let pack = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
        assert!(value(Codec::<Any>::message_pack(), &deep(2, pack(100)), &key));
        assert!(!value(Codec::<Any>::message_pack(), &deep(2, pack(60_000)), &key));
    }
}

fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

proptest! {
    /// Every field, whatever is in it.
    #[test]
    fn every_envelope_is_opened_as_it_was_sealed(
        (name, tags, validator) in (".{0,40}", proptest::collection::vec((".{0,20}", any::<[u8; 16]>()), 0..8), proptest::option::of(".{0,40}")),
        (fresh, life, load_cost) in (any::<u32>(), any::<u32>(), any::<u32>()),
        (negative, lease, schema, cost) in any::<(bool, Option<(u32, u32)>, Option<u64>, Option<u32>)>(),
        (codec, compression, raw_length, epoch) in any::<(u8, u8, u32, [u8; 16])>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        stranger in ".{0,40}",
    ) {
        let key = Key::public(&name);
        let envelope = Envelope {
            epoch: Stamp::from_bytes(epoch),
            tags: tags.iter().map(|(tag, stamp)| (tag.as_str(), Stamp::from_bytes(*stamp))).collect(),
            fresh: Duration::from_millis(fresh.into()),
            life: Duration::from_millis(life.into()),
            load_cost: Duration::from_micros(load_cost.into()),
            validator: validator.as_deref(),
            cost,
            negative,
            lease: lease.map(|(lease, value)| Lease::over(milliseconds(lease), milliseconds(value), 7).0),
            payload: Payload { codec, compression, schema, raw_length, bytes: &bytes },
        };
        let entry = envelope.seal(&key).unwrap();
        let same = stranger == name;
        prop_assert_eq!(Envelope::open(&entry, &Key::public(&stranger)).is_some(), same);
        prop_assert_eq!(Envelope::open(&entry, &key), Some(envelope));
    }

    /// Anything at all, and anything at all behind a right beginning and before a right checksum.
    #[test]
    fn no_bytes_bring_down_their_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let key = Key::public("key");
        let format = format(Codec::bytes(), Compression::Off);
        read(&format, &bytes.clone().into(), &key);
        read(&format, &checksummed([b"MP\x02", &*bytes].concat()), &key);
    }

    #[test]
    fn every_value_comes_back(text in "\\PC{0,1500}", times in 1_usize..10) {
        let value = Bytes::from(text.repeat(times));
        for compression in EVERY_SETTING {
            let format = format(Codec::bytes(), compression);
            let encoded = now(format.encode(&value)).unwrap();
            let key = Key::public("key");
            let entry = sealed(&key, &encoded, &mut fastrand::Rng::with_seed(1));
            let envelope = Envelope::open(&entry, &key).unwrap();
            let payload = Payload { schema: None, ..envelope.payload };
            prop_assert_eq!(now(format.decode(&entry, &payload)), Some(value.clone()));
        }
    }
}
