//! Values as bytes in the remote tier: every codec and compression, what is too large, foreign or broken.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{
    convert::Infallible,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};

use bytes::Bytes;
use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, Codec, Compression, Key, MAX_VALUE, RemoteCacheBuilder, Store},
    clock::Clock,
    redis::RedisStore,
    testing::MemoryStore,
};
use serde::{Deserialize, Serialize};
use support::{log::Log, redis::RedisServer, wait::settle};

const EVERY_SETTING: [Compression; 4] =
    [Compression::Off, Compression::Light, Compression::Balanced, Compression::Heavy];
/// Around every bound that something changes at.
const EVERY_SIZE: [usize; 9] = [0, 1, 1_023, 1_024, 4_097, 20_000, 65_536, 65_537, 200_000];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Answer {
    text: String,
    ratio: f64,
    items: Vec<Option<u64>>,
}

fn key() -> Key<'static> {
    Key::public("key")
}

fn memory() -> MemoryStore {
    MemoryStore::new(Clock::manual())
}

fn answer(size: usize) -> Answer {
    let items = (0..size as u64 / 16).map(|item| item.is_multiple_of(3).then_some(item * item)).collect();
    Answer { text: text(size), ratio: 0.1 + 0.2, items }
}

fn text(size: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let mut text: String = std::iter::repeat_with(|| random.alphanumeric()).take(size / 2).collect();
    text.extend(std::iter::repeat_n("ä ", size / 4).flat_map(str::chars));
    text
}

fn node<V, S>(store: &S, codec: Codec<V>) -> RemoteCacheBuilder<V>
where
    V: Clone + Send + Sync + 'static,
    S: Store + Clone,
{
    Cache::builder("test").remote_with(store.clone(), codec).max_value(16 << 20)
}

async fn load<V: Clone + Send + Sync + 'static>(cache: &Cache<V>, value: V) -> V {
    let value = cache.get_or_load(&key(), || async { Ok::<_, io::Error>(value) }).await.unwrap();
    settle().await;
    value
}

/// What one node stores with any setting, another reads with any setting.
async fn travels<V, S>(store: &S, codec: &Codec<V>, value: V)
where
    V: Clone + Send + Sync + PartialEq + fmt::Debug + 'static,
    S: Store + Clone,
{
    for written in EVERY_SETTING {
        let one = node(store, codec.clone()).compression(written).build().await.unwrap();
        one.insert(&key(), value.clone()).await.unwrap();
        for read in EVERY_SETTING {
            let other = node(store, codec.clone()).compression(read).build().await.unwrap();
            let found = other.get(&key()).await;
            assert!(found.as_ref() == Some(&value), "{codec:?}: written {written:?}, read {read:?}");
        }
    }
}

#[tokio::test]
async fn value_travels_by_every_codec_and_compression_at_every_size() {
    let store = memory();
    for size in EVERY_SIZE {
        travels(&store, &Codec::json(), answer(size)).await;
        travels(&store, &Codec::message_pack(), answer(size)).await;
        travels(&store, &Codec::bytes(), Bytes::from(text(size))).await;
    }
}

#[tokio::test]
async fn value_travels_through_a_real_redis() {
    let server = RedisServer::start();
    let store = RedisStore::new(&server.url()).unwrap();
    for size in [0, 3_000, 20_000, 300_000] {
        travels(&store, &Codec::json(), answer(size)).await;
        travels(&store, &Codec::message_pack(), answer(size)).await;
        travels(&store, &Codec::bytes(), Bytes::from(text(size))).await;
    }
}

/// No codec can take the bytes of another for its own: all of these read any text.
#[tokio::test]
async fn entry_of_another_codec_is_a_miss_and_is_overwritten() {
    let plain = |id| {
        Codec::custom(
            id,
            |text: &String| Ok::<_, Infallible>(text.clone().into()),
            |bytes| Ok::<_, Infallible>(String::from_utf8_lossy(&bytes).into_owned()),
        )
    };
    let store = memory();
    let codecs = [Codec::json(), Codec::message_pack(), plain(128), plain(255)];
    for (at, written) in codecs.iter().enumerate() {
        let writer = node(&store, written.clone()).build().await.unwrap();
        writer.insert(&key(), "\"theirs\"".to_owned()).await.unwrap();
        for (_, read) in codecs.iter().enumerate().filter(|(other, _)| *other != at) {
            let reader = node(&store, read.clone()).build().await.unwrap();
            assert_eq!(reader.get(&key()).await, None, "{written:?} read by {read:?}");
        }
    }
    let reader = node(&store, Codec::json()).build().await.unwrap();
    assert_eq!(load(&reader, "ours".to_owned()).await, "ours");
    let fresh = node(&store, Codec::<String>::json()).build().await.unwrap();
    assert_eq!(fresh.get(&key()).await.as_deref(), Some("ours"));
}

#[tokio::test]
async fn entry_of_another_schema_is_a_miss() {
    let store = memory();
    for written in [None, Some(0), Some(1), Some(u64::MAX)] {
        for read in [None, Some(0), Some(1), Some(u64::MAX)] {
            let node = |schema: Option<u64>| {
                let builder = node(&store, Codec::<u64>::json());
                match schema {
                    Some(schema) => builder.schema(schema),
                    None => builder,
                }
            };
            node(written).build().await.unwrap().insert(&key(), 7).await.unwrap();
            let found = node(read).build().await.unwrap().get(&key()).await;
            assert_eq!(found, (written == read).then_some(7), "written {written:?}, read {read:?}");
        }
    }
}

#[tokio::test]
async fn value_above_the_maximum_is_served_and_not_shared_and_said_so_once() {
    let log = Log::hear();
    let store = memory();
    let cache = node(&store, Codec::bytes()).max_value(1_000).build().await.unwrap();
    for name in ["a", "b", "c"] {
        let value = Bytes::from(vec![7; 1_001]);
        let loaded = cache.get_or_load(&Key::public(name), || async { Ok::<_, io::Error>(value) }).await;
        assert_eq!(loaded.unwrap().len(), 1_001);
        settle().await;
    }
    assert!(store.is_empty());
    assert_eq!(cache.get_local(&Key::public("a")).map(|value| value.len()), Some(1_001));
    assert_eq!(log.count("max_value"), 1);

    assert_eq!(load(&cache, vec![7; 1_000].into()).await.len(), 1_000);
    assert_eq!(store.len(), 1);
}

#[tokio::test]
async fn insert_of_a_value_above_the_maximum_is_an_error_and_leaves_nothing_older() {
    let store = memory();
    let cache = node(&store, Codec::bytes()).max_value(1_000).build().await.unwrap();
    cache.insert(&key(), Bytes::from_static(b"old")).await.unwrap();
    let error = cache.insert(&key(), Bytes::from(vec![7; 1_001])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec);
    assert!(error.to_string().contains("max_value"));
    assert_eq!(cache.get(&key()).await.map(|value| value.len()), Some(1_001));
    // The next look into the store has it told, behind its back.
    assert_eq!(cache.get(&Key::public("another")).await, None);
    settle().await;
    let other = node(&store, Codec::bytes()).build().await.unwrap();
    assert_eq!(other.get(&key()).await, None);
}

#[tokio::test]
async fn entry_that_is_larger_than_the_readers_maximum_is_a_miss_however_small_its_bytes() {
    let store = memory();
    for setting in EVERY_SETTING {
        let writer = node(&store, Codec::bytes()).compression(setting).build().await.unwrap();
        writer.insert(&key(), Bytes::from(vec![0; 100_000])).await.unwrap();
        let reader = |most| node(&store, Codec::bytes()).max_value(most).build();
        assert_eq!(reader(99_999).await.unwrap().get(&key()).await, None);
        assert!(reader(100_000).await.unwrap().get(&key()).await.is_some());
    }
}

#[tokio::test]
async fn codec_that_fails_or_panics_is_a_miss_on_read_and_an_error_on_write() {
    fn fail(bad: &str, text: &str) -> Result<(), io::Error> {
        assert!(!text.starts_with(&format!("panic {bad}")), "as it was told to");
        if text.starts_with(&format!("fail {bad}")) { Err(io::Error::other("secret")) } else { Ok(()) }
    }
    let codec = Codec::custom(
        200,
        |text: &String| fail("write", text).map(|()| Bytes::from(text.clone())),
        |bytes: Bytes| {
            let text = String::from_utf8(bytes.into()).map_err(io::Error::other)?;
            fail("read", &text).map(|()| text)
        },
    );
    let store = memory();
    let cache = node(&store, codec.clone()).build().await.unwrap();
    // On the runtime's thread and off it.
    for padding in [0, 100_000] {
        for bad in ["fail write", "panic write"] {
            let value = format!("{bad}{}", "x".repeat(padding));
            let error = cache.insert(&key(), value.clone()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Codec, "{bad}");
            assert!(!format!("{error} {error:?}").contains("secret"));
            cache.remove(&key()).await.unwrap();
            assert_eq!(load(&cache, value.clone()).await, value);
            cache.remove(&key()).await.unwrap();
        }
        for bad in ["fail read", "panic read"] {
            let value = format!("{bad}{}", "x".repeat(padding));
            cache.insert(&key(), value).await.unwrap();
            let other = node(&store, codec.clone()).build().await.unwrap();
            assert_eq!(other.get(&key()).await, None, "{bad}");
            assert_eq!(load(&other, "loaded".to_owned()).await, "loaded");
        }
    }
}

/// A program may keep all threads that block, for good.
#[test]
fn large_value_does_not_wait_for_a_thread_that_is_not_to_be_had() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let store = memory();
        let value = Bytes::from(vec![7; 100_000]);
        let encode = |value: &Bytes| Ok::<_, Infallible>(value.clone());
        let codec = || Codec::custom(200, encode, |bytes: Bytes| Ok::<_, Infallible>(bytes));
        tokio::task::spawn_blocking(move || released.recv());
        let node = || node(&store, codec()).compression(Compression::Balanced);
        let (one, two) = (node().build().await.unwrap(), node().build().await.unwrap());
        let both = async {
            one.insert(&key(), value.clone()).await.unwrap();
            two.get(&key()).await
        };
        let found = tokio::time::timeout(Duration::from_secs(30), both).await;
        assert_eq!(found.expect("it waits for ever"), Some(value));
    });
    drop(release);
}

#[tokio::test]
async fn large_value_is_read_by_a_thread_that_serves_nobody_else() {
    let threads: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let noted = Arc::clone(&threads);
    let codec = Codec::custom(
        200,
        |value: &Bytes| Ok::<_, Infallible>(value.clone()),
        move |bytes| {
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(thread::current().id());
            Ok::<_, Infallible>(bytes)
        },
    );
    let here = thread::current().id();
    let store = memory();
    // A few bytes that become many count as many.
    for (value, setting, is_here) in [
        (vec![0; 65_536], Compression::Off, true),
        (vec![0; 65_536], Compression::Balanced, true),
        (vec![0; 65_537], Compression::Off, false),
        (vec![0; 65_537], Compression::Balanced, false),
    ] {
        let node = || node(&store, codec.clone()).compression(setting);
        node().build().await.unwrap().insert(&key(), Bytes::from(value)).await.unwrap();
        assert!(node().build().await.unwrap().get(&key()).await.is_some());
        let thread = threads.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap();
        assert_eq!(thread == here, is_here);
    }
}

#[tokio::test]
async fn callers_that_go_away_from_large_values_hold_up_nobody() {
    let store = memory();
    let node = || node(&store, Codec::bytes()).build();
    let value = Bytes::from(text(200_000));
    node().await.unwrap().insert(&key(), value.clone()).await.unwrap();
    let cache = node().await.unwrap();
    let come_and_go = async {
        for polls in 0..200 {
            let read = tokio::time::timeout(Duration::ZERO, async {
                for _ in 0..polls % 5 {
                    tokio::task::yield_now().await;
                }
                cache.get(&key()).await
            });
            // Whether it was done in time or not.
            let _ = read.await.is_ok();
            cache.insert(&Key::public("other"), value.clone()).await.unwrap();
        }
        cache.get(&key()).await
    };
    let found = tokio::time::timeout(Duration::from_secs(60), come_and_go).await;
    assert!(found.expect("not for ever") == Some(value));
}

#[tokio::test]
async fn impossible_setting_is_an_error_that_names_the_field() {
    async fn built<V: Clone + Send + Sync + 'static>(builder: RemoteCacheBuilder<V>) -> Result<(), Error> {
        builder.build().await.map(drop)
    }
    let custom =
        |id| Codec::custom(id, |value: &Bytes| Ok::<_, Infallible>(value.clone()), Ok::<Bytes, Infallible>);
    for id in [0, 1, 127] {
        let error = built(node(&memory(), custom(id))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().starts_with("codec: "), "{error}");
    }
    built(node(&memory(), custom(128))).await.unwrap();
    for most in [0, MAX_VALUE + 1, usize::MAX] {
        let error = built(node(&memory(), custom(200)).max_value(most)).await.unwrap_err();
        assert!(error.to_string().starts_with("max_value: "), "{error}");
    }
    built(node(&memory(), custom(200)).max_value(MAX_VALUE)).await.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_into_the_store_is_told_once_in_a_minute() {
    let log = Log::hear();
    let clock = Clock::manual();
    let node = Cache::<String>::builder("test").clock(clock.clone()).remote(MemoryStore::new(clock.clone()));
    let cache = node.build().await.unwrap();
    let long = "x".repeat(usize::from(u16::MAX) + 1);
    for expected in [1, 1, 2] {
        cache.remove(&key()).await.unwrap();
        let value = || async { Ok::<_, io::Error>("value".to_owned()) };
        cache.get_or_load_tagged(&key(), &[&long], value).await.unwrap();
        settle().await;
        assert_eq!(log.count("too long"), expected);
        clock.advance(Duration::from_secs(30 + 1));
    }
}
