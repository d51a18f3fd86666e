//! What a fuzzer begins with: the entries that the cache writes, of every codec, compression and field, and what becomes
//! of them on the way to being none; the messages it publishes; and the answers of Redis.

use std::time::Duration;

use bytes::Bytes;
use flate2::{Compress, FlushCompress};
use mcp_perf::{
    Error,
    cache::{Cache, Codec, Compression, Key, Loaded, RemoteCacheBuilder},
};

use super::reader::{Hearer, MAX_VALUE, Shelf, Value, checksummed, key, node, runtime, settle};

/// Where the fields are that are not behind others of changing length: `src/cache/envelope.rs` has the layout.
const VERSION: usize = 2;
const COMPRESSION: usize = 4;
const FLAGS: usize = 5;
const RAW_LENGTH: std::ops::Range<usize> = 6..10;
const LEASE: u8 = 1 << 1;
/// Where a lease says when it and the value before it end, and who has it, in an entry without a schema.
const LEASE_ENDS: usize = 22;
const DEFLATE: u8 = 2;
/// The sizes at which another compression is chosen.
const SIZES: [usize; 3] = [10, 1_500, 5_000];

/// An entry, by a name that says what is special about it.
pub struct Named {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Named {
    fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

/// Entries that are read, by the codec that their names begin with and by no other.
pub fn sound() -> Vec<Named> {
    let bytes = |size| Bytes::from(text(size));
    let mut entries = written("bytes", &Codec::bytes(), bytes);
    entries.extend(written("json", &Codec::json(), value));
    entries.extend(written("message-pack", &Codec::message_pack(), value));
    entries
}

/// Entries that are no value to anybody.
pub fn broken() -> Vec<Named> {
    let plain = insert(|cache| cache.compression(Compression::Off), value(10), &["servers"]);
    let packed = insert(|cache| cache.compression(Compression::Heavy), value(5_000), &[]);
    let with = |entry: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut body = entry[..entry.len() - 8].to_vec();
        change(&mut body);
        checksummed(&body)
    };
    let mut garbled = plain.clone();
    garbled[40] ^= 1;
    let mut entries = vec![
        Named::new("empty", []),
        Named::new("foreign", *b"{\"text\":\"of another program\"}"),
        Named::new("garbled", garbled),
        Named::new("checksum-missing", &plain[..plain.len() - 8]),
        Named::new("version-later", with(&plain, &|body| body[VERSION] += 1)),
        Named::new("version-earlier", with(&plain, &|body| body[VERSION] -= 1)),
        Named::new("flag-unknown", with(&plain, &|body| body[FLAGS] |= 1 << 7)),
        Named::new("compression-unknown", with(&plain, &|body| body[COMPRESSION] = 99)),
        Named::new("declares-more", with(&packed, &|body| body[RAW_LENGTH][0] ^= 1)),
        Named::new("declares-too-much", with(&packed, &|body| body[RAW_LENGTH].fill(0xff))),
        Named::new(
            "declares-the-maximum",
            with(&packed, &|body| {
                let most = u32::try_from(MAX_VALUE).expect("a small number");
                body[RAW_LENGTH].copy_from_slice(&most.to_le_bytes());
            }),
        ),
        Named::new("longer", with(&plain, &|body| body.push(0))),
        Named::new("schema-of-another", insert(|cache| cache.schema(7), value(10), &[])),
        Named::new("negative", not_found()),
        Named::new("expired", expired()),
    ];
    for part in 1..8 {
        let cut = |entry: &[u8]| checksummed(&entry[..(entry.len() - 8) * part / 8]);
        entries.push(Named::new(format!("cut-{part}"), cut(&plain)));
        entries.push(Named::new(format!("cut-packed-{part}"), cut(&packed)));
    }
    entries
}

/// A message of every kind of invalidation, and broken ones.
pub fn messages() -> Vec<Named> {
    let hearer = Hearer::new();
    let mut messages = vec![
        Named::new("remove", hearer.message_of(async |cache| cache.remove(&key()).await.expect("removed"))),
        Named::new("expire", hearer.message_of(async |cache| cache.expire(&key()).await.expect("expired"))),
        Named::new(
            "tag",
            hearer.message_of(async |cache| cache.remove_by_tag("Straße").await.expect("removed")),
        ),
        Named::new(
            "expire-tag",
            hearer.message_of(async |cache| cache.expire_by_tag("").await.expect("expired")),
        ),
        Named::new("clear", hearer.message_of(async |cache| cache.clear().await.expect("cleared"))),
        Named::new(
            "too-long",
            hearer.message_of(async |cache| {
                let long = vec![b'k'; 20_000];
                cache.remove(&Key::public(&long)).await.expect("removed");
            }),
        ),
    ];
    let whole = messages[0].bytes.clone();
    messages.push(Named::new("empty", []));
    messages.push(Named::new("foreign", *b"{\"key\":\"of another program\"}"));
    for part in 1..8 {
        messages.push(Named::new(format!("cut-{part}"), checksummed(&whole[..(whole.len() - 8) * part / 8])));
    }
    messages
}

/// Answers of Redis of every kind, the last of them no answers.
pub fn answers() -> Vec<Named> {
    let answers: [(&str, &[u8]); 9] = [
        ("status", b"+OK\r\n"),
        ("numbers", b":-7\r\n:9223372036854775807\r\n"),
        ("values", b"*3\r\n$3\r\na\r\n\r\n$-1\r\n$0\r\n\r\n*-1\r\n"),
        ("nested", b"*2\r\n*1\r\n$1\r\nx\r\n:1\r\n"),
        ("refusals", b"-MOVED 1 host:2\r\n-NOSCRIPT No matching script.\r\n-it's nothing\r\n"),
        ("unfinished", b"*2\r\n$100\r\nabc"),
        ("too-long", b"$536870913\r\n"),
        ("no-number", b":99999999999999999999\r\n"),
        ("foreign", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ];
    answers.into_iter().map(|(name, bytes)| Named::new(name, bytes)).collect()
}

/// What a cache of this codec writes.
fn written<V>(codec_name: &str, codec: &Codec<V>, value: impl Fn(usize) -> V) -> Vec<Named>
where
    V: Clone + Send + Sync + 'static,
{
    let named = |what: &str, bytes| Named::new(format!("{codec_name}-{what}"), bytes);
    let build = |setting| {
        let codec = codec.clone();
        move |shelf: &Shelf| node(shelf, codec).compression(setting)
    };
    let mut entries = Vec::new();
    for size in SIZES {
        let plain = written_by(build(Compression::Off), value(size), &[]);
        entries.push(named(&format!("{size}"), plain.clone()));
        // Below a kibibyte nothing is compressed.
        if size < 1_024 {
            continue;
        }
        // With zstd in the build nothing writes deflate, but it is read.
        entries.push(named(&format!("{size}-deflate"), deflated(&plain)));
        for (name, setting) in [
            ("light", Compression::Light),
            ("balanced", Compression::Balanced),
            ("heavy", Compression::Heavy),
        ] {
            entries.push(named(&format!("{size}-{name}"), written_by(build(setting), value(size), &[])));
        }
    }
    let plain = build(Compression::Off);
    entries.push(named("tags", written_by(plain.clone(), value(10), &["", "servers", "Straße"])));
    let validated =
        Loaded::new(value(10)).validator("W/\"5d8c72a5\"").time_to_live(Duration::from_millis(1_500));
    let validated = written_by(plain, validated, &["servers"]);
    // Somebody loads it, and this is what there is until then.
    let mut body = validated[..validated.len() - 8].to_vec();
    body[FLAGS] |= LEASE;
    body.splice(LEASE_ENDS..LEASE_ENDS, [0; 16]);
    entries.push(named("validator", validated));
    entries.push(named("lease", checksummed(&body)));
    entries
}

fn insert(
    set: impl FnOnce(RemoteCacheBuilder<Value>) -> RemoteCacheBuilder<Value>,
    value: Value,
    tags: &[&str],
) -> Vec<u8> {
    written_by(|shelf| set(node(shelf, Codec::json())), value, tags)
}

/// What the cache writes to insert a value.
fn written_by<V: Clone + Send + Sync + 'static>(
    build: impl FnOnce(&Shelf) -> RemoteCacheBuilder<V>,
    value: impl Into<Loaded<V>>,
    tags: &[&str],
) -> Vec<u8> {
    let shelf = Shelf::default();
    runtime().block_on(async {
        let cache = build(&shelf).build().await.expect("a cache");
        cache.insert_tagged(&key(), tags, value).await.expect("a value that fits");
    });
    shelf.take_written().expect("an entry").into()
}

fn not_found() -> Vec<u8> {
    let shelf = Shelf::default();
    runtime().block_on(async {
        let cache: Cache<Value> = node(&shelf, Codec::json()).build().await.expect("a cache");
        let loaded = cache.get_or_load(&key(), || async { Ok::<_, Error>(Loaded::not_found()) }).await;
        assert!(loaded.is_err());
        settle().await;
    });
    shelf.take_written().expect("an entry").into()
}

fn expired() -> Vec<u8> {
    let entry = insert(|cache| cache, value(10), &[]);
    let shelf = Shelf::default();
    shelf.answer_with(Some(entry.into()));
    runtime().block_on(async {
        let cache: Cache<Value> = node(&shelf, Codec::json()).build().await.expect("a cache");
        cache.expire(&key()).await.expect("nothing refuses it");
    });
    shelf.take_written().expect("an entry").into()
}

/// The same entry with its payload deflated.
fn deflated(plain: &[u8]) -> Vec<u8> {
    let raw_length = u32::from_le_bytes(plain[RAW_LENGTH].try_into().expect("four bytes"));
    let (fields, payload) = plain[..plain.len() - 8].split_at(plain.len() - 8 - raw_length as usize);
    let mut packed = Vec::with_capacity(2 * payload.len() + 64);
    Compress::new(flate2::Compression::new(6), false)
        .compress_vec(payload, &mut packed, FlushCompress::Finish)
        .expect("room for it");
    let mut body = fields[..fields.len() - 4].to_vec();
    body[COMPRESSION] = DEFLATE;
    body.extend_from_slice(&u32::try_from(packed.len()).expect("a small number").to_le_bytes());
    body.extend_from_slice(&packed);
    checksummed(&body)
}

fn value(size: usize) -> Value {
    let any = serde_json::json!({ "price": 0.1, "none": null, "list": [true, -1, "x"] });
    Value { text: text(size), numbers: vec![0, i64::MIN, 255], inner: Some(Box::default()), any }
}

/// A text that can be made smaller, though not by much.
fn text(size: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let words = ["server ", "tool ", "Straße, ", "\"postgres\" ", "17 "];
    let mut text = String::new();
    while text.len() < size {
        text.push_str(random.choice(words).unwrap_or_default());
    }
    text
}
