//! Large values are asked about, and not read again: how many trips and bytes that takes, and that nothing old is
//! served for it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error,
    cache::{Cache, Found, Invalidation, Key, Put, Restamp, Stamp, Store, Written},
    clock::Clock,
    postgres::PostgresStore,
    redis::RedisStore,
    testing::{MemoryBus, MemoryStore},
};
use support::{
    postgres::PostgresServer,
    redis::RedisServer,
    stepped::{Step, Stepped},
};

/// The bound on staleness of the caches here.
const STALENESS: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

type Texts = Cache<String>;

/// A store that counts what it is asked, and the bytes that it answers with.
struct Counted<S> {
    inner: Arc<S>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    peeks: AtomicU64,
    names: AtomicU64,
    bytes: AtomicU64,
    refuses_peeks: AtomicBool,
}

/// Reads, peeks, the entries they were about, and the bytes of those.
#[derive(Debug, Default, PartialEq)]
struct Cost {
    reads: u64,
    peeks: u64,
    names: u64,
    bytes: u64,
}

impl<S> Counted<S> {
    fn new(inner: S) -> Self {
        Self { inner: Arc::new(inner), counts: Arc::default() }
    }

    /// Since this was last called.
    fn cost(&self) -> Cost {
        let take = |count: &AtomicU64| count.swap(0, Ordering::SeqCst);
        let Counts { reads, peeks, names, bytes, .. } = &*self.counts;
        Cost { reads: take(reads), peeks: take(peeks), names: take(names), bytes: take(bytes) }
    }

    fn count(&self, found: &Found) {
        let bytes: usize =
            found.entries.iter().filter_map(|slot| slot.entry.as_ref()).map(|entry| entry.bytes.len()).sum();
        self.counts.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
        self.counts.names.fetch_add(found.entries.len() as u64, Ordering::SeqCst);
    }
}

impl<S> Clone for Counted<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), counts: Arc::clone(&self.counts) }
    }
}

impl<S: Store> Store for Counted<S> {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.counts.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.get_many(entries, stamps).await.inspect(|found| self.count(found))
    }

    async fn peek_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.counts.peeks.fetch_add(1, Ordering::SeqCst);
        if self.counts.refuses_peeks.load(Ordering::SeqCst) {
            return Err(Error::refused("no peeks", io::Error::other("as told")));
        }
        self.inner.peek_many(entries, stamps).await.inspect(|found| self.count(found))
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        self.inner.put_if(put).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        self.inner.remove_many(entries, hold).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        self.inner.restamp(stamps).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.inner.ping().await
    }
}

/// Two nodes in front of one store in memory, of which the second is counted.
struct Two {
    clock: Clock,
    one: Texts,
    two: Texts,
    counted: Counted<MemoryStore>,
}

impl Two {
    async fn new() -> Self {
        let clock = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let counted = Counted::new(store.clone());
        let one = builder(&clock).remote(store).build().await.unwrap();
        let two = builder(&clock).remote(counted.clone()).build().await.unwrap();
        Self { clock, one, two, counted }
    }

    /// Time for the second node to ask again.
    fn pass(&self) {
        self.clock.advance(STALENESS);
        self.counted.cost();
    }

    fn unchanged(&self) -> u64 {
        self.two.stats().remote_unchanged
    }
}

fn builder(clock: &Clock) -> mcp_perf::cache::CacheBuilder<String> {
    Cache::builder("test").clock(clock.clone()).time_to_live(HOUR)
}

fn large(of: char) -> String {
    // Nothing to be gained by compressing it.
    let mut random = fastrand::Rng::with_seed(u64::from(u32::from(of)));
    (0..20_000).map(|_| random.alphanumeric()).chain([of]).collect()
}

async fn load(cache: &Texts, key: &Key<'_>, tags: &[&str], value: &str) -> String {
    let value = value.to_owned();
    cache.get_or_load_tagged(key, tags, || async { Ok::<_, io::Error>(value) }).await.unwrap()
}

#[tokio::test]
async fn large_value_is_asked_about_in_one_trip_without_its_bytes() {
    let nodes = Two::new().await;
    let (two, key, value) = (&nodes.two, Key::public("key"), large('a'));
    nodes.one.insert(&key, value.clone()).await.unwrap();
    assert_eq!(load(two, &key, &[], "other").await, value);
    assert!(nodes.counted.cost().bytes >= 10_000);
    for round in 1..=10 {
        nodes.pass();
        assert_eq!(load(two, &key, &[], "other").await, value);
        assert_eq!(nodes.counted.cost(), Cost { reads: 0, peeks: 1, names: 1, bytes: 0 });
        assert_eq!(two.get_local(&key).as_ref(), Some(&value), "for another while");
        assert_eq!((nodes.unchanged(), two.stats().loads), (round, 0));
    }
    nodes.pass();
    assert_eq!(two.get(&key).await, Some(value), "without a loader, too");
    assert_eq!(nodes.counted.cost(), Cost { reads: 0, peeks: 1, names: 1, bytes: 0 });
    assert!(two.get_local(&key).is_some());
}

type Rows = Vec<(Key<'static>, Result<String, io::Error>)>;

/// What is missing is loaded as `"loaded"`.
async fn load_many(cache: &Texts, keys: &[Key<'_>]) -> Vec<String> {
    let load = |missing: Vec<Key<'static>>| async move {
        Ok::<Rows, io::Error>(missing.into_iter().map(|key| (key, Ok("loaded".to_owned()))).collect())
    };
    cache.get_or_load_many(keys, &[], load).await.into_iter().map(Result::unwrap).collect()
}

/// A hundred keys, each stored under a tag of its own, one of all, and none for the last.
async fn store_tagged(cache: &Texts) -> Vec<Key<'static>> {
    let keys: Vec<_> = (0..100).map(|index| Key::public(&format!("key {index}")).into_owned()).collect();
    for (index, key) in keys.iter().enumerate() {
        let own = format!("tag {index}");
        let tags = [own.as_str(), "all"];
        cache.insert_tagged(key, if index < 99 { &tags } else { &[] }, "value".to_owned()).await.unwrap();
    }
    keys
}

#[tokio::test]
async fn many_keys_with_tags_that_the_caller_does_not_name_are_read_in_two_trips() {
    let nodes = Two::new().await;
    let keys = store_tagged(&nodes.one).await;
    nodes.counted.cost();
    assert!(load_many(&nodes.two, &keys).await.iter().all(|value| value == "value"));
    assert_eq!(nodes.counted.cost().reads, 2);
    // Each of them stands or falls with its own tags alone.
    nodes.two.remove_by_tag("tag 7").await.unwrap();
    let left = keys.iter().filter(|key| nodes.two.get_local(key).is_some()).count();
    assert_eq!((left, nodes.two.get_local(&keys[7])), (99, None));
    nodes.one.remove_by_tag("tag 8").await.unwrap();
    nodes.pass();
    let values = load_many(&nodes.two, &keys).await;
    let loaded: Vec<_> = (0..100).filter(|index| values[*index] == "loaded").collect();
    assert_eq!(loaded, [7, 8]);
    nodes.one.remove_by_tag("all").await.unwrap();
    nodes.pass();
    let loaded = load_many(&nodes.two, &keys).await.into_iter().filter(|value| value == "loaded").count();
    assert_eq!(loaded, 99);
}

/// Of a tag that is removed here while its stamp is on its way nobody can tell which stamp is the newer.
#[tokio::test]
async fn tag_that_is_removed_during_the_second_trip_costs_no_other_entry() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let stepped = Stepped::new(store.clone());
    let one = builder(&clock).remote(store).build().await.unwrap();
    let two = builder(&clock).remote(stepped.clone()).remote_timeout(MINUTE).build().await.unwrap();
    let keys = store_tagged(&one).await;
    let mut first = stepped.hold(Step::ReadAnswered);
    let reading = tokio::spawn({
        let (two, keys) = (two.clone(), keys.clone());
        async move { load_many(&two, &keys).await }
    });
    first.reached().await;
    let mut second = stepped.hold(Step::ReadAnswered);
    first.go_on();
    second.reached().await;
    assert_eq!(two.get_local(&keys[99]).as_deref(), Some("value"), "it needs no second trip");
    two.remove_by_tag("tag 7").await.unwrap();
    second.go_on();
    let values = reading.await.unwrap();
    let loaded: Vec<_> = (0..100).filter(|index| values[*index] == "loaded").collect();
    assert_eq!(loaded, [7]);
}

#[tokio::test]
async fn entries_whose_second_trip_fails_are_loaded_and_no_others() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let stepped = Stepped::new(store.clone());
    let one = builder(&clock).remote(store).build().await.unwrap();
    let two = builder(&clock).remote(stepped.clone()).build().await.unwrap();
    let keys = store_tagged(&one).await;
    let mut first = stepped.hold(Step::ReadAnswered);
    let reading = tokio::spawn(async move { load_many(&two, &keys).await });
    first.reached().await;
    stepped.fail_reads(1);
    first.go_on();
    let values = reading.await.unwrap();
    let kept: Vec<_> = (0..100).filter(|index| values[*index] == "value").collect();
    assert_eq!(kept, [99]);
}

#[tokio::test]
async fn small_value_is_read_again() {
    let nodes = Two::new().await;
    let key = Key::public("key");
    nodes.one.insert(&key, "small".to_owned()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(load(&nodes.two, &key, &[], "other").await, "small");
        nodes.pass();
    }
    load(&nodes.two, &key, &[], "other").await;
    let cost = nodes.counted.cost();
    assert_eq!((cost.reads, cost.peeks), (1, 0));
}

#[tokio::test]
async fn hundred_keys_are_asked_about_in_one_trip_and_what_changed_is_read_in_another() {
    let nodes = Two::new().await;
    let names: Vec<String> = (0..100).map(|name| name.to_string()).collect();
    let keys: Vec<Key<'_>> = names.iter().map(Key::public).collect();
    let load_all = async || {
        let loader =
            |_| async { Ok::<_, io::Error>(Vec::<(Key<'static>, Result<String, io::Error>)>::new()) };
        let values = nodes.two.get_or_load_many(&keys, &[], loader).await;
        values.into_iter().map(Result::ok).collect::<Vec<_>>()
    };
    for key in &keys[..99] {
        nodes.one.insert(key, large('a')).await.unwrap();
    }
    load_all().await;
    nodes.pass();
    let values = load_all().await;
    assert!(values[..99].iter().all(|value| value.as_ref() == Some(&large('a'))) && values[99].is_none());
    // The last one is not there, and remembered not to be for a while only.
    assert_eq!(nodes.counted.cost(), Cost { reads: 1, peeks: 1, names: 100, bytes: 0 });

    nodes.pass();
    nodes.one.insert(&keys[3], large('b')).await.unwrap();
    nodes.one.remove(&keys[4]).await.unwrap();
    let values = load_all().await;
    assert_eq!(values[3], Some(large('b')));
    assert_eq!((values[4].clone(), values[5].clone()), (None, Some(large('a'))));
    let cost = nodes.counted.cost();
    assert_eq!((cost.reads, cost.peeks, cost.names), (2, 1, 102));
    assert!(cost.bytes < 30_000, "of one entry: {}", cost.bytes);
}

/// What may happen to an entry elsewhere while it is remembered here.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Clear,
    Expire,
    ExpireTag,
    Insert,
    InsertTheSame,
    LoseTheStore,
    Remove,
    RemoveTag,
}

impl Change {
    const ALL: [Self; 8] = [
        Self::Clear,
        Self::Expire,
        Self::ExpireTag,
        Self::Insert,
        Self::InsertTheSame,
        Self::LoseTheStore,
        Self::Remove,
        Self::RemoveTag,
    ];

    async fn happen(self, cache: &Texts, key: &Key<'_>, store: &impl Store) {
        match self {
            Self::Clear => cache.clear().await.unwrap(),
            Self::Expire => cache.expire(key).await.unwrap(),
            Self::ExpireTag => cache.expire_by_tag("tag").await.unwrap(),
            Self::Insert => cache.insert(key, large('b')).await.unwrap(),
            Self::InsertTheSame => cache.insert(key, large('a')).await.unwrap(),
            // Everything is there still, and one stamp is not.
            Self::LoseTheStore => {
                let change = Restamp {
                    name: "test:2:epoch",
                    invalidation: Invalidation::Remove,
                    stamp: Stamp::random(),
                };
                store.restamp(&[change]).await.unwrap();
            }
            Self::Remove => cache.remove(key).await.unwrap(),
            Self::RemoveTag => cache.remove_by_tag("tag").await.unwrap(),
        }
    }

    /// What is to be served after it, if "new" is loaded where something is.
    fn leaves(self) -> String {
        match self {
            Self::Insert => large('b'),
            Self::InsertTheSame => large('a'),
            _ => "new".to_owned(),
        }
    }
}

#[tokio::test]
async fn whatever_changed_is_noticed() {
    for change in Change::ALL {
        let nodes = Two::new().await;
        let key = Key::public("key");
        load(&nodes.one, &key, &["tag"], &large('a')).await;
        until(async || nodes.two.get(&key).await.is_some()).await;
        load(&nodes.two, &key, &["tag"], "other").await;
        nodes.pass();
        load(&nodes.two, &key, &["tag"], "other").await;
        assert_eq!(nodes.unchanged(), 1, "{change:?}: it was asked about");
        change.happen(&nodes.one, &key, &*nodes.counted.inner).await;
        nodes.pass();
        assert_eq!(load(&nodes.two, &key, &["tag"], "new").await, change.leaves(), "{change:?}");
        assert_eq!(nodes.unchanged(), 1, "{change:?}");
    }
}

#[tokio::test]
async fn change_on_the_way_of_the_answer_is_not_outlived() {
    for change in Change::ALL {
        let clock = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let stepped = Stepped::new(store.clone());
        let one = builder(&clock).remote(store.clone()).build().await.unwrap();
        let two = builder(&clock).remote(stepped.clone()).build().await.unwrap();
        let key = Key::public("key");
        load(&one, &key, &["tag"], &large('a')).await;
        until(async || two.get(&key).await.is_some()).await;
        load(&two, &key, &["tag"], "other").await;
        clock.advance(STALENESS);

        let mut answered = stepped.hold(Step::ReadAnswered);
        let asking = tokio::spawn({
            let (two, key) = (two.clone(), key.clone().into_owned());
            async move { load(&two, &key, &["tag"], "new").await }
        });
        answered.reached().await;
        // What the answer says was so when it was asked for, and not when it came.
        clock.advance(STALENESS / 2);
        change.happen(&one, &key, &store).await;
        answered.go_on();
        assert_eq!(asking.await.unwrap(), large('a'), "{change:?}: as it was when it was asked for");
        assert_eq!(two.stats().remote_unchanged, 1);
        clock.advance(STALENESS / 2);
        assert_eq!(load(&two, &key, &["tag"], "new").await, change.leaves(), "{change:?}");
    }
}

#[tokio::test]
async fn removal_of_our_own_while_it_is_asked_about_is_not_undone() {
    for change in [Change::Clear, Change::Insert, Change::Remove, Change::RemoveTag] {
        let clock = Clock::manual();
        let stepped = Stepped::new(MemoryStore::new(clock.clone()));
        let one = builder(&clock).remote(stepped.clone()).build().await.unwrap();
        let two = builder(&clock).remote(stepped.clone()).build().await.unwrap();
        let key = Key::public("key");
        load(&one, &key, &["tag"], &large('a')).await;
        until(async || two.get(&key).await.is_some()).await;
        load(&two, &key, &["tag"], "other").await;
        clock.advance(STALENESS);
        let mut answered = stepped.hold(Step::ReadAnswered);
        let asking = tokio::spawn({
            let (two, key) = (two.clone(), key.clone().into_owned());
            async move { load(&two, &key, &["tag"], "new").await }
        });
        answered.reached().await;
        change.happen(&two, &key, &stepped).await;
        answered.go_on();
        asking.await.unwrap();
        assert_eq!(load(&two, &key, &["tag"], "new").await, change.leaves(), "{change:?}");
    }
}

#[tokio::test]
async fn value_with_a_tag_that_the_caller_does_not_name_is_read() {
    let nodes = Two::new().await;
    let key = Key::public("key");
    load(&nodes.one, &key, &["tag"], &large('a')).await;
    until(async || nodes.two.get(&key).await.is_some()).await;
    nodes.pass();
    assert_eq!(nodes.two.get(&key).await, Some(large('a')));
    assert_eq!(nodes.counted.cost().peeks, 0);
    nodes.one.remove_by_tag("tag").await.unwrap();
    nodes.pass();
    assert_eq!(nodes.two.get(&key).await, None);
}

#[tokio::test]
async fn life_is_not_prolonged_by_asking() {
    let nodes = Two::new().await;
    let key = Key::public("key");
    nodes.one.insert(&key, large('a')).await.unwrap();
    let rounds = HOUR.as_secs() / STALENESS.as_secs();
    for _ in 0..rounds {
        assert_eq!(load(&nodes.two, &key, &[], "new").await, large('a'));
        nodes.pass();
    }
    assert_eq!(load(&nodes.two, &key, &[], "new").await, "new");
    assert_eq!(nodes.unchanged(), rounds - 1);
}

#[tokio::test]
async fn store_that_would_not_be_peeked_at_is_read() {
    let nodes = Two::new().await;
    let key = Key::public("key");
    nodes.one.insert(&key, large('a')).await.unwrap();
    load(&nodes.two, &key, &[], "other").await;
    nodes.counted.counts.refuses_peeks.store(true, Ordering::SeqCst);
    nodes.pass();
    assert_eq!(load(&nodes.two, &key, &[], "other").await, large('a'));
    assert_eq!((nodes.counted.cost().reads, nodes.two.stats().loads), (1, 0));
    nodes.pass();
    assert_eq!(nodes.two.get(&key).await, Some(large('a')));
}

#[tokio::test]
async fn idle_value_that_is_asked_about_is_in_use_again() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let one = builder(&clock).remote(store.clone()).build().await.unwrap();
    let counted = Counted::new(store);
    let idle = builder(&clock).time_to_idle(2 * STALENESS).remote(counted.clone());
    let two = idle.build().await.unwrap();
    let key = Key::public("key");
    one.insert(&key, large('a')).await.unwrap();
    load(&two, &key, &[], "other").await;
    for _ in 0..3 {
        clock.advance(3 * STALENESS);
        counted.cost();
        assert_eq!(load(&two, &key, &[], "other").await, large('a'));
        assert_eq!(counted.cost().peeks, 1);
        clock.advance(STALENESS - Duration::from_millis(1));
        assert!(two.get_local(&key).is_some(), "not for long enough to be idle");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_on_the_bus_what_is_still_wanted_is_asked_about_once() {
    let clock = Clock::tokio();
    let store = MemoryStore::new(clock.clone());
    let bus = MemoryBus::new();
    let (counted, here) = (Counted::new(store.clone()), bus.end());
    let one = builder(&clock).remote(store).max_staleness(STALENESS).bus(bus.clone()).build().await.unwrap();
    let two = builder(&clock).remote(counted.clone()).max_staleness(STALENESS).bus(here.clone());
    let two = two.build().await.unwrap();
    until(async || one.stats().bus.connected && two.stats().bus.connected).await;
    let names: Vec<String> = (0..50).map(|name| name.to_string()).collect();
    let keys: Vec<Key<'_>> = names.iter().map(Key::public).collect();
    for key in &keys {
        one.insert(key, large('a')).await.unwrap();
    }
    tokio::time::sleep(10 * STALENESS).await;
    for key in &keys {
        load(&two, key, &[], "other").await;
    }
    // Well beyond the staleness everything is answered from memory, since the bus is there.
    tokio::time::sleep(10 * STALENESS).await;
    counted.cost();
    for key in &keys {
        assert!(two.get_local(key).is_some());
    }
    here.deafen(true);
    one.remove(&keys[7]).await.unwrap();
    until(async || two.stats().bus.gaps == 1).await;
    here.deafen(false);
    tokio::time::sleep(2 * STALENESS).await;
    counted.cost();
    for (place, key) in keys.iter().enumerate() {
        let value = load(&two, key, &[], "new").await;
        assert_eq!(value, if place == 7 { "new".to_owned() } else { large('a') });
    }
    assert_eq!(two.stats().remote_unchanged, 49);
    let cost = counted.cost();
    assert_eq!(cost.peeks, 50);
    assert!(cost.bytes < 100, "{cost:?}");
    // And is covered by the bus from then on.
    tokio::time::sleep(10 * STALENESS).await;
    assert!(keys.iter().all(|key| two.get_local(key).is_some()));
}

/// In the servers it is as in memory.
async fn is_asked_about(one: impl Store, two: impl Store) {
    let (staleness, counted) = (Duration::from_millis(20), Counted::new(two));
    let patience = Duration::from_secs(60);
    let one = Cache::<String>::builder("test").time_to_live(HOUR).remote(one).remote_timeout(patience);
    let one = one.build().await.unwrap();
    let two = Cache::<String>::builder("test").time_to_live(HOUR).remote(counted.clone());
    let two = two.remote_timeout(patience).max_staleness(staleness).build().await.unwrap();
    let key = Key::public("key");
    one.insert(&key, large('a')).await.unwrap();
    assert_eq!(load(&two, &key, &[], "other").await, large('a'));
    counted.cost();
    until(async || load(&two, &key, &[], "other").await == large('a') && two.stats().remote_unchanged >= 3)
        .await;
    let cost = counted.cost();
    assert_eq!((cost.reads, cost.bytes), (0, 0), "{cost:?}");
    one.insert(&key, large('b')).await.unwrap();
    until(async || load(&two, &key, &[], "other").await == large('b')).await;
    one.remove(&key).await.unwrap();
    until(async || load(&two, &key, &[], "new").await == "new").await;
    assert_eq!(two.stats().loads, 1);
}

#[tokio::test]
async fn value_in_redis_is_asked_about() {
    let server = RedisServer::start();
    let store = || RedisStore::new(&server.url()).unwrap();
    is_asked_about(store(), store()).await;
}

#[tokio::test]
async fn value_in_postgres_is_asked_about() {
    let server = PostgresServer::start();
    let store = || PostgresStore::new(&server.url()).unwrap();
    store().migrate().await.unwrap();
    is_asked_about(store(), store()).await;
}

/// Waits until a load has been shared.
async fn until(done: impl AsyncFn() -> bool) {
    let poll = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(1)).await; // polling, with a deadline
        }
    };
    tokio::time::timeout(Duration::from_secs(60), poll).await.expect("within a minute");
}
