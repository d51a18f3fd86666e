//! What becomes of a read, a write and an invalidation while the remote tier hangs, is full, was emptied, or holds what
//! cannot be read; and keys and tags of any bytes.
//!
//! The table of the guide's page on failures, as far as it is not the subject of `outage`, `redis_servers`, `bus`,
//! `bytes` or `hostile`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, CacheBuilder, Key, Store},
    clock::{Clock, Instant},
    redis::RedisStore,
    testing::MemoryStore,
};
use support::{
    log::Log,
    redis::RedisServer,
    stepped::{Step, Stepped},
    wait::{settle, until},
};
use tracing::Level;

const SECOND: Duration = Duration::from_secs(1);
/// The default of `max_staleness`.
const STALENESS: Duration = Duration::from_secs(5);

type Texts = Cache<String>;

fn key() -> Key<'static> {
    Key::public("key")
}

/// Fresh for 100 s, and kept for 1,000 s after that.
fn settings(clock: &Clock) -> CacheBuilder<String> {
    Cache::builder("test").clock(clock.clone()).time_to_live(100 * SECOND).stale_if_error(1_000 * SECOND)
}

async fn node(clock: &Clock, store: impl Store) -> Texts {
    settings(clock).remote(store).build().await.unwrap()
}

/// One that is more patient than a machine is busy.
async fn of_redis(clock: &Clock, server: &RedisServer) -> Texts {
    let store = RedisStore::new(&server.url()).unwrap();
    settings(clock).remote(store).remote_timeout(20 * SECOND).build().await.unwrap()
}

async fn load(cache: &Texts, key: &Key<'_>, tags: &[&str], value: &'static str) -> Result<String, Error> {
    cache.get_or_load_tagged(key, tags, move || async move { Ok::<_, io::Error>(value.to_owned()) }).await
}

async fn ask(server: &RedisServer, command: &[&str]) {
    let (name, arguments) = command.split_first().unwrap();
    let mut redis = server.connection().await;
    let _: ::redis::Value = ::redis::cmd(name).arg(arguments).query_async(&mut redis).await.unwrap();
}

/// What callers wait for, by the time that tokio moves.
struct Watch(Clock, Instant);

impl Watch {
    fn start() -> Self {
        let clock = Clock::tokio();
        let now = clock.now();
        Self(clock, now)
    }

    fn elapsed(&self) -> Duration {
        self.0.now().since(self.1)
    }
}

// ===== a store that hangs =====

/// Not at the soft time-out alone: that nobody removed the stale value only the store can tell, and what was removed
/// must not be served because the network is slower than somebody's patience.
#[tokio::test(start_paused = true)]
async fn caller_with_a_stale_value_waits_for_store_and_source_no_longer_than_their_time_outs() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let (soft, hard) = (Duration::from_millis(10), Duration::from_millis(50));
    let cache = settings(&clock).soft_timeout(soft).remote(store.clone()).remote_timeout(hard);
    let cache = cache.build().await.unwrap();
    load(&cache, &key(), &[], "old").await.unwrap();
    settle().await;
    clock.advance(150 * SECOND);
    let _hang = store.hold(Step::ReadAnswered);
    let (watch, never) = (Watch::start(), || std::future::pending::<io::Result<String>>());
    assert_eq!(cache.get_or_load(&key(), never).await.unwrap(), "old");
    assert_eq!(watch.elapsed(), hard + soft);
}

/// Loads the key alone, or as one of many.
async fn load_new(cache: &Texts, many: bool) -> Result<String, Error> {
    let new = |keys: Vec<Key<'static>>| async move {
        Ok::<_, io::Error>(keys.into_iter().map(|key| (key, Ok("new".to_owned()))))
    };
    match many {
        true => cache.get_or_load_many(&[key()], &[], new).await.pop().unwrap(),
        false => load(cache, &key(), &[], "new").await,
    }
}

/// A patient cache: what it has read is confirmed for 200 s, so that it is stale before that is over.
async fn with_soft_timeout(clock: &Clock, store: impl Store) -> Texts {
    let cache = settings(clock).remote(store).max_staleness(200 * SECOND).remote_timeout(60 * SECOND);
    cache.remote_soft_timeout(Duration::from_millis(10)).build().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn caller_with_a_confirmed_stale_value_waits_for_the_store_no_longer_than_the_soft_time_out() {
    for many in [false, true] {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let cache = with_soft_timeout(&clock, store.clone()).await;
        load(&cache, &key(), &[], "old").await.unwrap();
        settle().await;
        clock.advance(150 * SECOND);
        let hang = store.hold(Step::ReadAnswered);
        let watch = Watch::start();
        let found = load_new(&cache, many).await;
        assert_eq!(found.unwrap(), "old");
        assert_eq!(watch.elapsed(), Duration::from_millis(10));
        assert_eq!(cache.stats().stale_hits, 1);
        // Nor does who comes later wait.
        assert_eq!(load(&cache, &key(), &[], "newer").await.unwrap(), "old");
        assert_eq!(watch.elapsed(), Duration::from_millis(10));
        // The look goes on, and so does the load.
        drop(hang);
        let is_new = async || (cache.get_local(&key()).as_deref() == Some("new")).then_some(());
        until("the look and the load to go on", is_new).await;
        assert_eq!(cache.stats().loads, 2);
    }
}

/// Whether another process removed it by then nobody can tell.
#[tokio::test(start_paused = true)]
async fn stale_value_of_a_slow_store_is_served_for_no_longer_than_it_is_confirmed() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = with_soft_timeout(&clock, store.clone()).await;
    load(&cache, &key(), &[], "old").await.unwrap();
    settle().await;
    clock.advance(150 * SECOND);
    let hang = store.hold(Step::ReadAnswered);
    assert_eq!(load(&cache, &key(), &[], "new").await.unwrap(), "old");
    clock.advance(50 * SECOND);
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { load(&cache, &key(), &[], "newer").await }
    });
    tokio::time::sleep(SECOND).await;
    assert!(!late.is_finished(), "served what may have been removed");
    drop(hang);
    assert_eq!(late.await.unwrap().unwrap(), "new");
}

/// Which the entry carries and the caller does not name: they are asked for in a second question.
#[tokio::test(start_paused = true)]
async fn soft_time_out_of_the_store_holds_for_the_stamps_of_other_tags_as_well() {
    for many in [false, true] {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let cache = with_soft_timeout(&clock, store.clone()).await;
        load(&cache, &key(), &["tag"], "old").await.unwrap();
        settle().await;
        clock.advance(150 * SECOND);
        let mut first = store.hold(Step::ReadAnswered);
        let watch = Watch::start();
        let answer = tokio::spawn({
            let cache = cache.clone();
            async move { load_new(&cache, many).await }
        });
        first.reached().await;
        let mut second = store.hold(Step::ReadAnswered);
        first.go_on();
        second.reached().await;
        assert_eq!(answer.await.unwrap().unwrap(), "old", "many: {many}");
        assert_eq!(watch.elapsed(), Duration::from_millis(10));
    }
}

/// A large value is only asked about.
#[tokio::test(start_paused = true)]
async fn soft_time_out_of_the_store_holds_for_a_large_value_as_well() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let large: String = std::iter::repeat_with(fastrand::alphanumeric).take(16 * 1024).collect();
    let other = with_soft_timeout(&clock, store.clone()).await;
    other.insert(&key(), large.clone()).await.unwrap();
    let cache = with_soft_timeout(&clock, store.clone()).await;
    assert_eq!(cache.get(&key()).await, Some(large.clone()));
    clock.advance(150 * SECOND);
    let hang = store.hold(Step::ReadAnswered);
    let watch = Watch::start();
    assert_eq!(load(&cache, &key(), &[], "new").await.unwrap(), large);
    assert_eq!(watch.elapsed(), Duration::from_millis(10));
    drop(hang);
    let is_new = async || (cache.get_local(&key()).as_deref() == Some("new")).then_some(());
    until("the look and the load to go on", is_new).await;
    assert_eq!(cache.stats().remote_unchanged, 1);
}

/// The store is slow, and nobody knows of the load yet.
#[tokio::test(start_paused = true)]
async fn value_that_was_made_to_expire_is_not_served_because_the_store_is_slow() {
    for by_tag in [false, true] {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let cache = with_soft_timeout(&clock, store.clone()).await;
        load(&cache, &key(), &["tag"], "old").await.unwrap();
        settle().await;
        match by_tag {
            true => cache.expire_by_tag("tag").await.unwrap(),
            false => cache.expire(&key()).await.unwrap(),
        }
        let _hang = store.hold(Step::ReadAnswered);
        let watch = Watch::start();
        assert_eq!(load(&cache, &key(), &["tag"], "new").await.unwrap(), "new", "by tag: {by_tag}");
        assert_eq!(watch.elapsed(), 60 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn value_that_is_no_longer_confirmed_is_not_served_because_the_store_is_slow() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = with_soft_timeout(&clock, store.clone()).await;
    load(&cache, &key(), &[], "old").await.unwrap();
    settle().await;
    clock.advance(250 * SECOND);
    let _hang = store.hold(Step::ReadAnswered);
    let watch = Watch::start();
    assert_eq!(load(&cache, &key(), &[], "new").await.unwrap(), "new");
    assert_eq!(watch.elapsed(), 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn caller_with_nothing_waits_for_a_store_that_hangs_no_longer_than_the_time_out() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = node(&clock, store.clone()).await;
    let _hang = store.hold(Step::ReadAnswered);
    let watch = Watch::start();
    assert_eq!(load(&cache, &key(), &[], "loaded").await.unwrap(), "loaded");
    assert_eq!(watch.elapsed(), Duration::from_millis(250));
    assert_eq!(cache.get_local(&key()).as_deref(), Some("loaded"));
}

#[tokio::test(start_paused = true)]
async fn write_to_a_store_that_hangs_keeps_nobody_waiting() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = node(&clock, store.clone()).await;
    let mut hang = store.hold(Step::BeforeWrite);
    let watch = Watch::start();
    assert_eq!(load(&cache, &key(), &[], "loaded").await.unwrap(), "loaded");
    assert_eq!(watch.elapsed(), Duration::ZERO);
    hang.reached().await;
    assert_eq!(cache.get(&key()).await.as_deref(), Some("loaded"));
}

#[tokio::test(start_paused = true)]
async fn invalidation_that_hangs_is_an_error_at_the_time_out_and_made_up_for_before_the_next_read() {
    for by_tag in [true, false] {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.clone()).await);
        load(&one, &key(), &["tag"], "old").await.unwrap();
        settle().await;
        assert_eq!(two.get(&key()).await.as_deref(), Some("old"));
        let hang = store.hold(Step::BeforeInvalidation);
        let failed = if by_tag { one.remove_by_tag("tag").await } else { one.remove(&key()).await };
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::TimedOut);
        // Here at once, and there once the store has heard of it.
        assert_eq!(one.get(&key()).await, None, "by tag: {by_tag}");
        clock.advance(STALENESS);
        assert_eq!(two.get(&key()).await, None, "by tag: {by_tag}");
        drop(hang);
    }
}

// ===== a store that was emptied, or is full =====

#[tokio::test]
async fn store_that_was_emptied_costs_one_load_and_revives_nothing() {
    let server = RedisServer::start();
    let clock = Clock::manual();
    let node = async || of_redis(&clock, &server).await;
    let (one, two) = (node().await, node().await);
    load(&one, &key(), &["tag"], "old").await.unwrap();
    until("the value is in the store", async || two.get(&key()).await).await;
    ask(&server, &["FLUSHALL"]).await;
    clock.advance(STALENESS);
    // The stamps that its entry carried are gone for good, so it is not even for standing in.
    assert_eq!(two.get(&key()).await, None);

    let loads = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (one, loads) = (one.clone(), Arc::clone(&loads));
            tokio::spawn(async move {
                let load = || async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, io::Error>("new".to_owned())
                };
                one.get_or_load_tagged(&key(), &["tag"], load).await.unwrap()
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "new");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    two.remove_by_tag("tag").await.unwrap();
    clock.advance(STALENESS);
    assert_eq!(one.get(&key()).await, None, "the new stamps are everybody's");
}

#[tokio::test]
async fn removal_is_not_undone_by_a_redis_that_comes_back_as_it_was_before() {
    for way in ["key", "tag", "all"] {
        let mut server = RedisServer::start();
        let clock = Clock::manual();
        let (one, two) = (of_redis(&clock, &server).await, of_redis(&clock, &server).await);
        one.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
        assert_eq!(two.get(&key()).await.as_deref(), Some("old"));
        // As a save point does. It is read at the start though no other is ever made.
        ask(&server, &["SAVE"]).await;
        match way {
            "key" => one.remove(&key()).await.unwrap(),
            "tag" => one.remove_by_tag("tag").await.unwrap(),
            _ => one.clear().await.unwrap(),
        }
        assert_eq!(one.get(&key()).await, None);
        server.restart();
        let other = Key::public("other");
        let insert = async |cache: &Texts| cache.insert(&other, "new".to_owned()).await.ok();
        until("the Redis that came back is used", async || insert(&one).await).await;
        assert_eq!(one.get(&key()).await, None, "removed by this very process, by {way}");
        clock.advance(STALENESS);
        assert_eq!(two.get(&key()).await, None, "by {way}");
        assert_eq!(two.get(&other).await.as_deref(), Some("new"), "what is stored now is everybody's");
    }
}

#[tokio::test]
async fn store_that_is_full_is_read_and_said_to_be_full_once_and_told_later_what_it_refused() {
    let server = RedisServer::start();
    let clock = Clock::manual();
    let node = async || of_redis(&clock, &server).await;
    let (one, two) = (node().await, node().await);
    let other = Key::public("other");
    for key in [&key(), &other] {
        load(&one, key, &[], "old").await.unwrap();
        until("the value is in the store", async || two.get(key).await).await;
    }
    let log = Log::hear();
    ask(&server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    ask(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    for index in 0_u32..20 {
        let key = Key::public("new").part(&index.to_le_bytes());
        assert_eq!(load(&one, &key, &[], "loaded").await.unwrap(), "loaded");
    }
    until("it is said", async || (!log.at_least(Level::INFO).is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(100)).await; // what is done behind the answers has been
    let hits = one.stats().hits;
    for index in 0_u32..20 {
        let key = Key::public("new").part(&index.to_le_bytes());
        assert_eq!(one.get(&key).await.as_deref(), Some("loaded"), "from memory");
    }
    assert_eq!((one.stats().hits - hits, one.stats().fenced), (20, 0));
    assert_eq!(one.remove(&key()).await.unwrap_err().kind(), ErrorKind::Refused);
    let third = node().await;
    assert_eq!(third.get(&other).await.as_deref(), Some("old"), "what is there is read");
    assert_eq!(log.at_least(Level::INFO), ["remote tier refuses writes"]);

    ask(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(one.get(&other).await.as_deref(), Some("old"));
    clock.advance(STALENESS);
    one.get(&other).await;
    assert_eq!(two.get(&key()).await, None, "it was told before the next read");
    assert_eq!(log.at_least(Level::INFO), ["remote tier refuses writes", "remote tier takes writes again"]);
}

/// A server that lost its data, and was filled by others: without the stamp of the cache, which nobody can write.
#[tokio::test]
async fn store_that_is_full_of_what_is_not_ours_leaves_the_values_in_memory() {
    let server = RedisServer::start();
    let clock = Clock::manual();
    let one = of_redis(&clock, &server).await;
    ask(&server, &["FLUSHALL"]).await;
    ask(&server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    ask(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let key = |index: u32| Key::public("new").part(&index.to_le_bytes());
    for index in 0..20 {
        assert_eq!(load(&one, &key(index), &[], "loaded").await.unwrap(), "loaded");
    }
    for index in 0..20 {
        assert_eq!(one.get(&key(index)).await.as_deref(), Some("loaded"), "from memory");
    }
    assert_eq!(one.stats().loads, 20);
    ask(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    let two = of_redis(&clock, &server).await;
    load(&one, &key(20), &[], "shared").await.unwrap();
    until("it is shared again", async || two.get(&key(20)).await).await;
}

// ===== keys and tags =====

#[tokio::test]
async fn keys_and_tags_of_any_bytes_and_size_are_stored_found_and_invalidated_in_redis() {
    let server = RedisServer::start();
    let clock = Clock::manual();
    let node = async || of_redis(&clock, &server).await;
    let (one, two) = (node().await, node().await);
    let (long, longest_tag) = (vec![b'k'; 1 << 20], "t".repeat(65_535));
    let keys = [
        Key::public(""),
        Key::public("\0"),
        Key::public(":"),
        Key::public("a:b"),
        Key::public("a").part("b"),
        Key::public("\r\n$1\r\n*"),
        Key::public(&[0xff, 0xfe]),
        Key::public(&long),
        Key::private("", ""),
        Key::private("alice", &long),
    ];
    let tags = ["", "\0", ":", "a:b", "a", "b", "\r\n", "ä", "{tag}", &longest_tag];
    for (key, tag) in keys.iter().zip(tags) {
        one.insert_tagged(key, &[tag], tag.to_owned()).await.unwrap();
    }
    for (key, tag) in keys.iter().zip(tags) {
        assert_eq!(two.get(key).await.as_deref(), Some(tag), "{key:?}");
    }
    for index in 0..keys.len() {
        if index % 2 == 0 {
            one.remove(&keys[index]).await.unwrap();
        } else {
            one.remove_by_tag(tags[index]).await.unwrap();
        }
        clock.advance(STALENESS);
        for (later, key) in keys.iter().enumerate() {
            assert_eq!(two.get(key).await.is_some(), later > index, "{key:?} after {:?}", keys[index]);
        }
    }
}

#[tokio::test]
async fn tag_too_long_to_be_stored_is_an_error_to_a_writer_and_costs_a_reader_nothing() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (cache, tag) = (node(&clock, store.clone()).await, "t".repeat(65_536));
    let error = cache.insert_tagged(&key(), &[&tag], "value".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let other = Key::public("other");
    assert_eq!(load(&cache, &other, &[&tag], "loaded").await.unwrap(), "loaded");
    settle().await;
    assert_eq!(cache.get_local(&other).as_deref(), Some("loaded"));
    cache.remove_by_tag(&tag).await.unwrap();
    assert_eq!(cache.get_local(&other), None);
}
