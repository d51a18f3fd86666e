//! Interleavings that an attack on the cache found, each of which once broke a law.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod support;

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, Found, Key, Loaded, Put, Restamp, Store, Written},
    clock::Clock,
    testing::MemoryStore,
};
use serde::{Deserialize, Deserializer, Serialize};
use support::stepped::{Step, Stepped};
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);

type Texts = Cache<String>;

fn memory(clock: &Clock) -> Stepped<MemoryStore> {
    Stepped::new(MemoryStore::new(clock.clone()))
}

async fn node(clock: &Clock, store: &Stepped<MemoryStore>) -> Texts {
    let builder = Cache::builder("test").clock(clock.clone()).remote(store.clone());
    builder.remote_timeout(60 * SECOND).build().await.unwrap()
}

async fn load(cache: &Texts, name: &str, tags: &[&str], value: &'static str) -> String {
    let load = move || async move { Ok::<_, io::Error>(value.to_owned()) };
    cache.get_or_load_tagged(&Key::public(name), tags, load).await.unwrap()
}

/// Lets every task that can run do so, until none can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn answer_with_the_new_stamp_is_believed_though_an_older_answer_was_noted_first() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&two, "b", &["tag"], "old").await;
    settle().await;
    let mut first = store.hold(Step::ReadAnswered);
    let early = tokio::spawn({
        let one = one.clone();
        async move { load(&one, "a", &["tag"], "unused").await }
    });
    first.reached().await;
    two.remove_by_tag("tag").await.unwrap();
    let mut second = store.hold(Step::ReadAnswered);
    let late = tokio::spawn({
        let one = one.clone();
        async move { load(&one, "b", &["tag"], "new").await }
    });
    second.reached().await;
    first.go_on();
    early.await.unwrap();
    second.go_on();
    assert_eq!(late.await.unwrap(), "new");
    assert_eq!(one.get(&Key::public("b")).await.as_deref(), Some("new"));
}

#[tokio::test]
async fn look_up_that_begins_after_another_node_cleared_finds_nothing() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&two, "b", &[], "old").await;
    settle().await;
    let mut first = store.hold(Step::ReadAnswered);
    let look = |name: &'static str| {
        let one = one.clone();
        tokio::spawn(async move { one.get(&Key::public(name)).await })
    };
    let early = look("a");
    first.reached().await;
    two.clear().await.unwrap();
    let mut second = store.hold(Step::ReadAnswered);
    let late = look("b");
    second.reached().await;
    first.go_on();
    early.await.unwrap();
    second.go_on();
    assert_eq!(late.await.unwrap(), None);
}

#[tokio::test]
async fn staleness_counts_from_before_the_load_not_from_its_end() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let (started, has_started) = oneshot::channel();
    let (release, released) = oneshot::channel::<()>();
    let slow = tokio::spawn({
        let one = one.clone();
        async move {
            let load = move || async move {
                let _ = started.send(());
                let _ = released.await;
                Ok::<_, io::Error>("old".to_owned())
            };
            one.get_or_load_tagged(&Key::public("a"), &["tag"], load).await
        }
    });
    has_started.await.unwrap();
    two.remove_by_tag("tag").await.unwrap();
    clock.advance(20 * SECOND);
    release.send(()).unwrap();
    slow.await.unwrap().unwrap();
    settle().await;
    assert_eq!(one.get(&Key::public("a")).await, None);
}

#[tokio::test]
async fn who_asks_too_long_after_a_load_began_does_not_join_it_and_its_value_is_shared_all_the_same() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let slow = async |value: &'static str| {
        let (started, has_started) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        let one = one.clone();
        let loading = tokio::spawn(async move {
            let load = move || async move {
                let _ = started.send(());
                let _ = released.await;
                Ok::<_, io::Error>(value.to_owned())
            };
            one.get_or_load(&Key::public("a"), load).await.unwrap()
        });
        has_started.await.unwrap();
        (release, loading)
    };
    let (release, loading) = slow("old").await;
    two.remove(&Key::public("a")).await.unwrap();
    clock.advance(4 * SECOND);
    let joined = tokio::spawn({
        let one = one.clone();
        async move { load(&one, "a", &[], "unused").await }
    });
    settle().await;
    clock.advance(SECOND);
    assert_eq!(load(&one, "a", &[], "new").await, "new");
    release.send(()).unwrap();
    assert_eq!((loading.await.unwrap(), joined.await.unwrap()), ("old".to_owned(), "old".to_owned()));
    settle().await;
    assert_ne!(one.get(&Key::public("a")).await.as_deref(), Some("old"));
    assert_ne!(two.get(&Key::public("a")).await.as_deref(), Some("old"));

    // Where nothing was removed, what the first load brings is shared though another took its place.
    one.clear().await.unwrap();
    let (release, loading) = slow("first").await;
    clock.advance(5 * SECOND);
    let (_never, second) = slow("second").await;
    release.send(()).unwrap();
    loading.await.unwrap();
    settle().await;
    assert_eq!(two.get(&Key::public("a")).await.as_deref(), Some("first"));
    second.abort();
}

#[tokio::test]
async fn stamp_that_arrives_after_a_later_one_revives_nothing() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let mut asked = store.hold(Step::ReadAnswered);
    let loading = tokio::spawn({
        let one = one.clone();
        async move { load(&one, "a", &["tag"], "old").await }
    });
    asked.reached().await;
    let mut first = store.hold(Step::BeforeInvalidation);
    let removing = tokio::spawn({
        let one = one.clone();
        async move { one.remove_by_tag("tag").await }
    });
    first.reached().await;
    // Begun before its question was answered, so the value is from after that removal, and may be kept.
    asked.go_on();
    assert_eq!(loading.await.unwrap(), "old");
    settle().await;
    one.remove_by_tag("tag").await.unwrap();
    first.go_on();
    removing.await.unwrap().unwrap();
    assert_eq!(two.get(&Key::public("a")).await, None);
}

#[tokio::test]
async fn value_too_short_lived_to_be_shared_does_not_leave_the_older_one_there() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&one, "a", &[], "old").await;
    settle().await;
    let short = Loaded::new("new".to_owned()).time_to_live(SECOND);
    one.insert(&Key::public("a"), short).await.unwrap();
    assert_eq!(one.get(&Key::public("a")).await.as_deref(), Some("new"));
    clock.advance(SECOND);
    assert_eq!((one.get(&Key::public("a")).await, two.get(&Key::public("a")).await), (None, None));
}

#[tokio::test]
async fn life_does_not_grow_while_a_write_travels() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let builder = || Cache::<String>::builder("test").clock(clock.clone()).remote(store.clone());
    let (one, two) = (builder().build().await.unwrap(), builder().build().await.unwrap());
    let key = Key::public("a");
    let loaded = || Loaded::new("value".to_owned()).time_to_live(SECOND);
    let mut write = store.hold(Step::BeforeWrite);
    one.get_or_load(&key, move || async move { Ok::<_, io::Error>(loaded()) }).await.unwrap();
    write.reached().await;
    // As late as a write may arrive without being given up.
    clock.advance(Duration::from_millis(250));
    write.go_on();
    settle().await;
    clock.advance(Duration::from_millis(750));
    assert_eq!((one.get(&key).await, two.get(&key).await), (None, None));

    let key = Key::public("b");
    let mut write = store.hold(Step::BeforeWrite);
    let inserting = tokio::spawn({
        let (one, key) = (one.clone(), key.clone());
        async move { one.insert(&key, Loaded::new("value".to_owned()).time_to_live(SECOND)).await }
    });
    write.reached().await;
    clock.advance(SECOND);
    write.go_on();
    inserting.await.unwrap().unwrap();
    assert_eq!(one.get_local(&key), None);
}

#[tokio::test]
async fn refresh_is_not_undone_by_an_older_load_whose_write_is_refused() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let key = Key::public("a");
    let mut write = store.hold(Step::BeforeWrite);
    load(&one, "a", &[], "old").await;
    write.reached().await;
    load(&two, "a", &[], "old").await;
    settle().await;
    let (answer, answered) = oneshot::channel::<String>();
    let refreshing = tokio::spawn({
        let (one, key) = (one.clone(), key.clone());
        async move { one.refresh(&key, &[], |_| async { answered.await.map_err(io::Error::other) }).await }
    });
    settle().await;
    write.go_on();
    settle().await;
    answer.send("new".to_owned()).unwrap();
    assert_eq!(refreshing.await.unwrap().unwrap(), "new");
    settle().await;
    assert_eq!(one.get(&key).await.as_deref(), Some("new"));
}

#[tokio::test]
async fn loader_that_blocks_its_thread_past_every_time_out_is_not_shared() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let node = async || {
        let builder = Cache::<String>::builder("test").clock(clock.clone());
        let builder = builder.load_timeout(Duration::from_nanos(1)).remote(store.clone());
        builder.remote_timeout(60 * SECOND).build().await.unwrap()
    };
    let (one, two) = (node().await, node().await);
    let (clock, other) = (clock.clone(), two.clone());
    let load = move || async move {
        other.remove(&Key::public("a")).await.unwrap();
        // Nobody polls the time-out while this thread is blocked, and the removal is forgotten meanwhile.
        clock.advance(3_600 * SECOND);
        Ok::<_, io::Error>("old".to_owned())
    };
    let _ = one.get_or_load(&Key::public("a"), load).await;
    settle().await;
    assert_eq!(two.get(&Key::public("a")).await, None);
}

#[tokio::test]
async fn invalidation_that_did_not_reach_the_store_is_owed_and_paid_before_anything_is_read() {
    for by_tag in [true, false] {
        let clock = Clock::manual();
        let store = memory(&clock);
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        load(&one, "a", &["tag"], "old").await;
        settle().await;
        store.fail_writes(2);
        let key = Key::public("a");
        let failed = if by_tag { one.remove_by_tag("tag").await } else { one.remove(&key).await };
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable);
        // It cannot be paid yet, so nothing is read; the loader serves.
        assert_eq!(one.get(&key).await, None, "by tag: {by_tag}");
        assert_eq!(load(&one, "a", &["tag"], "new").await, "new");
        clock.advance(5 * SECOND);
        assert_ne!(one.get(&key).await.as_deref(), Some("old"));
        settle().await;
        // Paid with that read: now the others have heard of it, too.
        assert_ne!(two.get(&key).await.as_deref(), Some("old"), "by tag: {by_tag}");
    }
}

#[tokio::test]
async fn insertion_that_did_not_reach_the_store_does_not_leave_the_older_value_there_for_us() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let one = node(&clock, &store).await;
    load(&one, "a", &[], "old").await;
    settle().await;
    store.fail_writes(1);
    one.insert(&Key::public("a"), "new".to_owned()).await.unwrap_err();
    clock.advance(5 * SECOND);
    assert_ne!(one.get(&Key::public("a")).await.as_deref(), Some("old"));
}

/// A text whose decoding can be held.
#[derive(Clone, Serialize)]
struct Slow(String);

static HOLD: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>> = Mutex::new(None);

impl<'de> Deserialize<'de> for Slow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hold = HOLD.lock().unwrap().take();
        if let Some((reached, go_on)) = hold {
            let _ = reached.send(());
            let _ = go_on.recv();
        }
        Ok(Self(text))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asks_after_an_invalidation_by_tag_is_not_given_what_a_reader_without_that_tag_found() {
    for expires in [false, true] {
        for is_fenced in [false, true] {
            reader_without_the_tag(expires, is_fenced).await;
        }
    }
}

async fn reader_without_the_tag(expires: bool, is_fenced: bool) {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let node = || {
        let builder = Cache::<Slow>::builder("test").clock(clock.clone()).stale_if_error(SECOND);
        builder.remote(store.clone()).build()
    };
    let (one, two) = (node().await.unwrap(), node().await.unwrap());
    let load = |cache: &Cache<Slow>, value: &'static str, tags: &'static [&'static str]| {
        let cache = cache.clone();
        async move {
            let load = move || async move { Ok::<_, io::Error>(Slow(value.to_owned())) };
            cache.get_or_load_tagged(&Key::public("a"), tags, load).await.unwrap().0
        }
    };
    load(&two, "old", &["tag"]).await;
    while store.is_empty() {
        tokio::task::yield_now().await;
    }
    let ((reached, has_reached), (go_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
    *HOLD.lock().unwrap() = Some((reached, may_go_on));
    let leader = tokio::spawn(load(&one, "new", &[]));
    tokio::task::spawn_blocking(move || has_reached.recv().unwrap()).await.unwrap();
    match expires {
        true => one.expire_by_tag("tag").await.unwrap(),
        false => one.remove_by_tag("tag").await.unwrap(),
    }
    let after = tokio::spawn(load(&one, "new", &[]));
    while one.stats().joined == 0 {
        tokio::task::yield_now().await;
    }
    if is_fenced {
        one.remove(&Key::public("a")).await.unwrap();
    }
    go_on.send(()).unwrap();
    leader.await.unwrap();
    assert_eq!(after.await.unwrap(), "new", "expires: {expires}, fenced: {is_fenced}");
}

/// A value whose n-th clone panics.
struct Brittle;

static CLONES: AtomicUsize = AtomicUsize::new(0);
static PANICS_AT: AtomicUsize = AtomicUsize::new(usize::MAX);

impl Clone for Brittle {
    fn clone(&self) -> Self {
        assert_ne!(CLONES.fetch_add(1, Ordering::SeqCst), PANICS_AT.load(Ordering::SeqCst), "a bug in clone");
        Self
    }
}

#[tokio::test(start_paused = true)]
async fn value_whose_clone_panics_leaves_nobody_waiting() {
    for at in 0..6 {
        let cache: Cache<Brittle> = Cache::builder("test").build().unwrap();
        CLONES.store(0, Ordering::SeqCst);
        PANICS_AT.store(at, Ordering::SeqCst);
        let load = || async { Ok::<_, io::Error>(Brittle) };
        let caller = tokio::spawn(async move {
            let _ = cache.get_or_load(&Key::public("a"), load).await;
        });
        let waited = tokio::time::timeout(SECOND, caller).await;
        PANICS_AT.store(usize::MAX, Ordering::SeqCst);
        assert!(waited.is_ok(), "a panic of clone {at} leaves the caller waiting");
    }
}

/// A store that takes its time to refuse writes, and is read as ever.
#[derive(Clone)]
struct RefusesSlowly(MemoryStore);

impl RefusesSlowly {
    async fn refuse<T>() -> Result<T, Error> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Err(Error::refused("the test's store takes no writes", io::Error::other("as it was told")))
    }
}

impl Store for RefusesSlowly {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.0.get_many(entries, stamps).await
    }

    async fn put_if(&self, _: Put<'_>) -> Result<Written, Error> {
        Self::refuse().await
    }

    async fn remove_many(&self, _: &[&str], _: Duration) -> Result<(), Error> {
        Self::refuse().await
    }

    async fn restamp(&self, _: &[Restamp<'_>]) -> Result<(), Error> {
        Self::refuse().await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.0.ping().await
    }
}

#[tokio::test(start_paused = true)]
async fn callers_do_not_wait_in_turn_for_what_is_owed_to_a_store_that_refuses_it() {
    let clock = Clock::tokio();
    let store = RefusesSlowly(MemoryStore::new(clock.clone()));
    let cache: Texts = Cache::builder("test").clock(clock.clone()).remote(store).build().await.unwrap();
    cache.remove(&Key::public("a")).await.unwrap_err();
    let began = clock.now();
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..100 {
        let cache = cache.clone();
        callers.spawn(async move { load(&cache, &number.to_string(), &[], "loaded").await });
    }
    assert!(callers.join_all().await.iter().all(|value| value == "loaded"));
    let waited = clock.now().since(began);
    assert!(waited <= Duration::from_millis(250), "{waited:?}");
}
