//! The laws of the cache: nothing old after an invalidation, no life gained, one load.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, Engine, Key, Loaded, MAX_TIME_TO_LIVE},
    clock::Clock,
    testing::MemoryStore,
};
use support::{
    stepped::{Step, Stepped},
    wait::settle,
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
};

const SECOND: Duration = Duration::from_secs(1);
/// The default of `max_staleness`.
const STALENESS: Duration = Duration::from_secs(5);
const KEY: &str = "key";
const TAG: &str = "tag";

type Texts = Cache<&'static str>;
type Shared = Cache<String>;

fn key() -> Key<'static> {
    Key::public(KEY)
}

/// What expired is kept, so that to expire is not to remove.
const KEPT: Duration = Duration::from_secs(600);

fn local(clock: &Clock) -> Texts {
    Cache::builder("test").clock(clock.clone()).stale_if_error(KEPT).build().unwrap()
}

async fn node(clock: &Clock, store: &Stepped<MemoryStore>) -> Shared {
    Cache::builder("test")
        .clock(clock.clone())
        .stale_if_error(KEPT)
        .remote(store.clone())
        // Calls are held for as long as the test likes.
        .remote_timeout(60 * SECOND)
        .build()
        .await
        .unwrap()
}

fn memory(clock: &Clock) -> Stepped<MemoryStore> {
    Stepped::new(MemoryStore::new(clock.clone()))
}

/// Every way to invalidate the key.
#[derive(Clone, Copy, Debug)]
enum How {
    Clear,
    Expire,
    ExpireAll,
    ExpireTag,
    Remove,
    Tag,
}

const EVERY_WAY: [How; 6] = [How::Clear, How::Expire, How::ExpireAll, How::ExpireTag, How::Remove, How::Tag];

impl How {
    async fn invalidate<V: Clone + Send + Sync + 'static>(self, cache: &Cache<V>) -> Result<(), Error> {
        match self {
            Self::Clear => cache.clear().await,
            Self::Expire => cache.expire(&key()).await,
            Self::ExpireAll => cache.expire_all().await,
            Self::ExpireTag => cache.expire_by_tag(TAG).await,
            Self::Remove => cache.remove(&key()).await,
            Self::Tag => cache.remove_by_tag(TAG).await,
        }
    }

    /// Whether it is of the one key, and not by a stamp.
    fn is_of_the_key(self) -> bool {
        match self {
            Self::Expire | Self::Remove => true,
            Self::Clear | Self::ExpireAll | Self::ExpireTag | Self::Tag => false,
        }
    }

    /// The last step by which it reaches the remote tier, if the key is there.
    fn step(self) -> Step {
        match self {
            // The entry is written again, as one that has expired.
            Self::Expire => Step::BeforeWrite,
            Self::Clear | Self::ExpireAll | Self::ExpireTag | Self::Remove | Self::Tag => {
                Step::BeforeInvalidation
            }
        }
    }
}

/// A load that is under way until it is released.
struct Running<V> {
    release: oneshot::Sender<V>,
    caller: JoinHandle<Result<V, Error>>,
}

impl<V: Clone + Send + Sync + 'static> Running<V> {
    async fn start(cache: &Cache<V>) -> Self {
        let (release, released) = oneshot::channel();
        let (started, has_started) = oneshot::channel();
        let cache = cache.clone();
        let caller = tokio::spawn(async move {
            let load = move || async move {
                let _ = started.send(());
                released.await.map_err(io::Error::other)
            };
            cache.get_or_load_tagged(&key(), &[TAG], load).await
        });
        has_started.await.expect("the loader runs");
        Self { release, caller }
    }

    async fn finish(self, value: V) -> Result<V, Error> {
        let _ = self.release.send(value);
        self.caller.await.unwrap()
    }
}

async fn load<V: Clone + Send + Sync + 'static>(cache: &Cache<V>, value: V) -> V {
    cache.get_or_load_tagged(&key(), &[TAG], || async { Ok::<_, io::Error>(value) }).await.unwrap()
}

// ===== law 1: a value read before an invalidation is never stored after it =====

#[tokio::test]
async fn load_that_ran_while_its_key_was_invalidated_is_not_stored() {
    for how in EVERY_WAY {
        let cache = local(&Clock::manual());
        let running = Running::start(&cache).await;
        how.invalidate(&cache).await.unwrap();
        assert_eq!(running.finish("old").await.unwrap(), "old", "{how:?}: who came before may have it");
        assert_eq!(cache.get(&key()).await, None, "{how:?}");
    }
}

#[tokio::test]
async fn load_that_ran_while_a_value_was_inserted_does_not_overwrite_it() {
    let cache = local(&Clock::manual());
    let running = Running::start(&cache).await;
    cache.insert(&key(), "new").await.unwrap();
    assert_eq!(load(&cache, "unused").await, "new");
    running.finish("old").await.unwrap();
    assert_eq!(cache.get(&key()).await, Some("new"));
}

#[tokio::test]
async fn caller_after_an_invalidation_does_not_join_the_load_from_before_it() {
    for how in EVERY_WAY {
        let cache = local(&Clock::manual());
        let running = Running::start(&cache).await;
        how.invalidate(&cache).await.unwrap();
        if how.is_of_the_key() {
            assert_eq!(load(&cache, "new").await, "new");
            running.finish("old").await.unwrap();
            assert_eq!(cache.get(&key()).await, Some("new"));
        } else {
            let later = tokio::spawn({
                let cache = cache.clone();
                async move { load(&cache, "new").await }
            });
            settle().await;
            running.finish("old").await.unwrap();
            assert_eq!(later.await.unwrap(), "new", "{how:?}");
            assert_eq!(cache.get(&key()).await, Some("new"), "{how:?}");
        }
    }
}

#[tokio::test]
async fn load_with_a_remote_tier_that_was_invalidated_is_stored_in_neither() {
    for how in EVERY_WAY {
        let clock = Clock::manual();
        let store = memory(&clock);
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        let running = Running::start(&one).await;
        how.invalidate(&one).await.unwrap();
        running.finish("old".to_owned()).await.unwrap();
        settle().await;
        assert_eq!((one.get(&key()).await, two.get(&key()).await), (None, None), "{how:?}");
    }
}

#[tokio::test]
async fn load_that_another_node_invalidated_is_not_shared_and_not_served_beyond_the_staleness() {
    for how in EVERY_WAY {
        let clock = Clock::manual();
        let store = memory(&clock);
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        let running = Running::start(&one).await;
        how.invalidate(&two).await.unwrap();
        running.finish("old".to_owned()).await.unwrap();
        settle().await;
        assert_eq!(two.get(&key()).await, None, "{how:?}");
        if how.is_of_the_key() {
            // The refused write tells.
            assert_eq!(one.get(&key()).await, None);
        }
        clock.advance(STALENESS);
        assert_eq!(one.get(&key()).await, None, "{how:?}");
    }
}

#[tokio::test]
async fn answer_of_the_remote_tier_from_before_an_invalidation_is_not_kept() {
    for how in EVERY_WAY {
        for by_load in [true, false] {
            let clock = Clock::manual();
            let store = memory(&clock);
            let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
            load(&two, "old".to_owned()).await;
            settle().await;
            let mut read = store.hold(Step::ReadAnswered);
            let reader = tokio::spawn({
                let one = one.clone();
                async move {
                    if by_load { Some(load(&one, "new".to_owned()).await) } else { one.get(&key()).await }
                }
            });
            read.reached().await;
            how.invalidate(&one).await.unwrap();
            read.go_on();
            // It asked before the invalidation, so it may see either.
            let seen = reader.await.unwrap();
            settle().await;
            let kept = one.get(&key()).await;
            assert_ne!(kept.as_deref(), Some("old"), "{how:?}, by load: {by_load}, the reader saw {seen:?}");
            clock.advance(STALENESS);
            assert_ne!(one.get(&key()).await.as_deref(), Some("old"), "{how:?}");
        }
    }
}

#[tokio::test]
async fn reader_between_the_two_halves_of_an_invalidation_leaves_nothing_old() {
    for how in EVERY_WAY {
        let clock = Clock::manual();
        let store = memory(&clock);
        let one = node(&clock, &store).await;
        load(&one, "old".to_owned()).await;
        settle().await;
        // Gone from memory, and still in the remote tier.
        let mut invalidation = store.hold(how.step());
        let invalidating = tokio::spawn({
            let one = one.clone();
            async move { how.invalidate(&one).await }
        });
        invalidation.reached().await;
        assert_eq!(load(&one, "unused".to_owned()).await, "old", "{how:?}: read from the remote tier");
        invalidation.go_on();
        invalidating.await.unwrap().unwrap();
        assert_eq!(one.get(&key()).await, None, "{how:?}");
    }
}

#[tokio::test]
async fn write_that_is_overtaken_by_an_invalidation_is_refused() {
    for how in EVERY_WAY {
        let clock = Clock::manual();
        let store = memory(&clock);
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        let mut write = store.hold(Step::BeforeWrite);
        assert_eq!(load(&one, "old".to_owned()).await, "old");
        write.reached().await;
        how.invalidate(&one).await.unwrap();
        write.go_on();
        settle().await;
        assert_eq!((one.get(&key()).await, two.get(&key()).await), (None, None), "{how:?}");
    }
}

/// Where a load that nobody waits for is overtaken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// The remote tier has answered, and the loader has not begun.
    Look,
    /// The loader has read its source.
    Load,
    /// The value is in memory, and on its way to the remote tier.
    Write,
}

#[tokio::test]
async fn refresh_behind_an_answer_that_is_overtaken_by_an_invalidation_brings_nothing_old_back() {
    for how in EVERY_WAY {
        for at in [At::Look, At::Load, At::Write] {
            for by_another in [false, true] {
                overtaken_refresh(how, at, by_another).await;
            }
        }
    }
}

async fn overtaken_refresh(how: How, at: At, by_another: bool) {
    let clock = Clock::manual();
    let store = memory(&clock);
    // Longer than a write may take, or it would not be made.
    let (life, staleness) = (100 * SECOND, 200 * SECOND);
    let node = async || -> Shared {
        let builder = Cache::builder("test").clock(clock.clone()).time_to_live(life);
        let builder = builder.stale_while_revalidate(KEPT).remote(store.clone());
        builder.remote_timeout(60 * SECOND).max_staleness(staleness).build().await.unwrap()
    };
    let (one, two) = (node().await, node().await);
    load(&one, "old".to_owned()).await;
    settle().await;
    clock.advance(life);
    let mut held = match at {
        At::Look => Some(store.hold(Step::ReadAnswered)),
        At::Load => None,
        At::Write => Some(store.hold(Step::BeforeWrite)),
    };
    let (started, has_started) = oneshot::channel();
    let (release, released) = oneshot::channel();
    let refresh = move || async move {
        let _ = started.send(());
        released.await.map_err(io::Error::other)
    };
    let answer = one.get_or_load_tagged(&key(), &[TAG], refresh).await.unwrap();
    let case = format!("{how:?}, {at:?}, by another: {by_another}");
    assert_eq!((answer.as_str(), one.stats().refreshes), ("old", 1), "{case}: answered at once");
    // Only a loader that begins after the invalidation brings what is new.
    let value = if at == At::Look { "new" } else { "from before" };
    let mut release = Some(release);
    if at == At::Write {
        let _ = release.take().map(|release| release.send(value.to_owned()));
    }
    match &mut held {
        Some(held) => held.reached().await,
        None => has_started.await.unwrap(),
    }
    how.invalidate(if by_another { &two } else { &one }).await.unwrap();
    if let Some(held) = held {
        held.go_on();
    }
    let _ = release.map(|release| release.send(value.to_owned()));
    settle().await;
    if by_another {
        clock.advance(staleness);
    }
    for (name, cache) in [("one", &one), ("two", &two)] {
        let served = load(cache, "new".to_owned()).await;
        assert_eq!(served, "new", "{case}, {name}");
        settle().await;
    }
}

#[tokio::test]
async fn removal_is_carried_out_even_if_its_caller_goes_away() {
    for how in EVERY_WAY {
        let clock = Clock::manual();
        let store = memory(&clock);
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        load(&one, "old".to_owned()).await;
        settle().await;
        let mut invalidation = store.hold(how.step());
        let caller = tokio::spawn({
            let one = one.clone();
            async move { how.invalidate(&one).await }
        });
        invalidation.reached().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        invalidation.go_on();
        settle().await;
        assert_eq!((one.get(&key()).await, two.get(&key()).await), (None, None), "{how:?}");
    }
}

#[tokio::test]
async fn insert_and_a_removal_that_comes_while_it_writes_leave_the_tiers_agreed() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let one = node(&clock, &store).await;
    let mut write = store.hold(Step::BeforeWrite);
    let inserting = tokio::spawn({
        let one = one.clone();
        async move { one.insert(&key(), "late".to_owned()).await }
    });
    write.reached().await;
    one.remove(&key()).await.unwrap();
    write.go_on();
    inserting.await.unwrap().unwrap();
    // The removal reached the remote tier first, so the insertion is the later one there.
    let seen = one.get(&key()).await;
    clock.advance(STALENESS);
    assert_eq!(seen, one.get(&key()).await);
}

// ===== law 2: no life gained =====

#[tokio::test]
async fn life_on_any_path_through_the_tiers_never_exceeds_the_original() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..200 {
        let clock = Clock::manual();
        let store = memory(&clock);
        let nodes = [node(&clock, &store).await, node(&clock, &store).await, node(&clock, &store).await];
        let life = Duration::from_millis(random.u64(1..20_000));
        let dies_at = clock.now().after(life);
        let loaded = Loaded::new("value".to_owned()).time_to_live(life);
        let load = || async { Ok::<_, io::Error>(loaded) };
        nodes[0].get_or_load(&key(), load).await.unwrap();
        settle().await;
        loop {
            clock.advance(Duration::from_millis(random.u64(1..3_000)));
            let alive = clock.now() < dies_at;
            let seen = nodes[random.usize(..nodes.len())].get(&key()).await;
            assert!(alive || seen.is_none(), "{:?} after its life of {life:?}", clock.now().since(dies_at));
            if !alive {
                break;
            }
        }
    }
}

#[tokio::test]
async fn expired_entry_is_never_returned() {
    let clock = Clock::manual();
    let cache = local(&clock);
    cache.insert(&key(), Loaded::new("value").time_to_live(SECOND)).await.unwrap();
    clock.advance(SECOND - Duration::from_nanos(1));
    assert_eq!(cache.get(&key()).await, Some("value"));
    clock.advance(Duration::from_nanos(1));
    assert_eq!(cache.get(&key()).await, None);
}

#[tokio::test]
async fn value_that_is_not_to_be_stored_is_for_its_callers_only() {
    let cache = local(&Clock::manual());
    for loaded in [Loaded::do_not_store("once"), Loaded::new("once").time_to_live(Duration::ZERO)] {
        let value = cache.get_or_load(&key(), || async { Ok::<_, io::Error>(loaded) }).await.unwrap();
        assert_eq!(value, "once");
        assert_eq!(cache.get(&key()).await, None);
    }
}

#[tokio::test]
async fn other_node_sees_an_invalidation_within_the_staleness() {
    for how in EVERY_WAY {
        let clock = Clock::manual();
        let store = memory(&clock);
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        load(&one, "old".to_owned()).await;
        settle().await;
        assert_eq!(load(&two, "unused".to_owned()).await, "old");
        how.invalidate(&one).await.unwrap();
        clock.advance(STALENESS);
        assert_eq!(two.get(&key()).await, None, "{how:?}");
        assert_eq!(load(&two, "new".to_owned()).await, "new", "{how:?}");
    }
}

#[tokio::test]
async fn entry_is_invalidated_by_tags_its_reader_does_not_name() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&one, "old".to_owned()).await;
    settle().await;
    assert_eq!(two.get(&key()).await.as_deref(), Some("old"), "read without naming a tag");
    two.remove_by_tag(TAG).await.unwrap();
    assert_eq!(two.get(&key()).await, None);
}

// ===== law 3: one load =====

#[tokio::test]
async fn thousand_callers_of_one_key_run_one_load_and_a_cancelled_one_changes_nothing() {
    let cache: Texts = local(&Clock::manual());
    let loads = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Notify::new());
    let call = || {
        let (cache, loads, gate) = (cache.clone(), Arc::clone(&loads), Arc::clone(&gate));
        tokio::spawn(async move {
            let load = move || async move {
                loads.fetch_add(1, Ordering::Relaxed);
                gate.notified().await;
                Ok::<_, io::Error>("value")
            };
            cache.get_or_load(&key(), load).await
        })
    };
    let leader = call();
    settle().await;
    let waiters: Vec<_> = (0..1_000).map(|_| call()).collect();
    settle().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    settle().await;
    gate.notify_one();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap(), "value");
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.misses, stats.joined, stats.loading), (1, 1_001, 1_000, 0));
}

#[tokio::test]
async fn failed_load_is_told_to_all_who_waited_and_not_repeated_while_throttled() {
    let clock = Clock::manual();
    let cache: Texts = Cache::builder("test").clock(clock.clone()).error_throttle(SECOND).build().unwrap();
    let fail = || async { Err::<&str, _>(io::Error::new(io::ErrorKind::NotConnected, "no db")) };
    let key = key();
    let (one, two) = tokio::join!(cache.get_or_load(&key, fail), cache.get_or_load(&key, fail));
    for error in [one.unwrap_err(), two.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Load);
        assert_eq!(error.downcast_source::<io::Error>().unwrap().kind(), io::ErrorKind::NotConnected);
    }
    assert!(cache.get_or_load(&key, fail).await.is_err());
    assert_eq!((cache.stats().loads, cache.stats().throttled), (1, 1));
    clock.advance(SECOND);
    assert_eq!(load(&cache, "back").await, "back");
}

#[tokio::test]
async fn removal_ends_the_throttle_of_a_failed_load() {
    for how in EVERY_WAY {
        let cache = local(&Clock::manual());
        let fail = || async { Err::<&str, _>(io::Error::other("no db")) };
        cache.get_or_load_tagged(&key(), &[TAG], fail).await.unwrap_err();
        how.invalidate(&cache).await.unwrap();
        assert_eq!(load(&cache, "back").await, "back", "{how:?}");
    }
}

#[tokio::test]
async fn panicking_loader_releases_its_waiters_and_the_key() {
    let clock = Clock::manual();
    let cache: Texts = local(&clock);
    let panic = || async {
        tokio::task::yield_now().await;
        if KEY.len() == 3 {
            panic!("a bug in a loader");
        }
        Ok::<_, io::Error>("unreachable")
    };
    let key = key();
    let (one, two) = tokio::join!(cache.get_or_load(&key, panic), cache.get_or_load(&key, panic));
    assert_eq!(one.unwrap_err().kind(), ErrorKind::Panicked);
    assert_eq!(two.unwrap_err().kind(), ErrorKind::Panicked);
    assert_eq!((cache.stats().loads, cache.stats().load_failures), (1, 1));
    let again = cache.get_or_load(&key, panic).await.unwrap_err();
    assert_eq!((again.kind(), cache.stats().loads), (ErrorKind::Panicked, 1), "not tried again at once");
    clock.advance(60 * SECOND);
    assert_eq!(load(&cache, "value").await, "value");
}

#[tokio::test]
async fn stale_value_stands_in_for_a_loader_that_panics() {
    let clock = Clock::manual();
    let cache: Texts = Cache::builder("test")
        .clock(clock.clone())
        .time_to_live(SECOND)
        .stale_if_error(60 * SECOND)
        .build()
        .unwrap();
    assert_eq!(load(&cache, "old").await, "old");
    clock.advance(2 * SECOND);
    let panics =
        || async { if KEY.len() == 3 { panic!("a bug in a loader") } else { Ok::<_, io::Error>("") } };
    assert_eq!(cache.get_or_load(&key(), panics).await.unwrap(), "old");
}

#[tokio::test(start_paused = true)]
async fn loader_that_never_ends_is_dropped_at_its_deadline() {
    let cache: Texts = Cache::builder("test").load_timeout(SECOND).build().unwrap();
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let forever = || async move {
        let _dropped = dropped;
        std::future::pending::<Result<&str, io::Error>>().await
    };
    assert_eq!(cache.get_or_load(&key(), forever).await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(was_dropped.await.is_err());
    assert_eq!(cache.stats().loading, 0);
}

#[tokio::test]
async fn keys_do_not_wait_for_each_other() {
    let cache: Texts = local(&Clock::manual());
    let running = Running::start(&cache).await;
    for index in 0..1_000_u32 {
        let name = index.to_le_bytes();
        let load = || async { Ok::<_, io::Error>("other") };
        assert_eq!(cache.get_or_load(&Key::public(&name), load).await.unwrap(), "other");
    }
    running.finish("value").await.unwrap();
}

// ===== laws 5 and 7 =====

#[tokio::test]
async fn foreign_bytes_in_the_remote_tier_are_a_miss() {
    let clock = Clock::manual();
    let inner = MemoryStore::new(clock.clone());
    let store = Stepped::new(inner.clone());
    let one = node(&clock, &store).await;
    for garbage in [&b""[..], b"MP", b"\0\0\0\0\0\0\0\0\0\0\0\0", b"{\"a\":1}", &[0xff; 4096]] {
        one.insert(&key(), "value".to_owned()).await.unwrap();
        inner.overwrite_all(garbage);
        clock.advance(STALENESS);
        assert_eq!(one.get(&key()).await, None);
        assert_eq!(load(&one, "loaded".to_owned()).await, "loaded");
    }
}

#[tokio::test]
async fn value_of_another_type_in_the_remote_tier_is_a_miss() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let texts: Cache<String> =
        Cache::builder("test").clock(clock.clone()).remote(store.clone()).build().await.unwrap();
    let numbers: Cache<u64> =
        Cache::builder("test").clock(clock.clone()).remote(store).build().await.unwrap();
    texts.insert(&key(), "not a number".to_owned()).await.unwrap();
    assert_eq!(numbers.get(&key()).await, None);
    let load = || async { Ok::<_, io::Error>(7_u64) };
    assert_eq!(numbers.get_or_load(&key(), load).await.unwrap(), 7);
}

#[tokio::test]
async fn value_of_one_principal_is_never_that_of_another() {
    let cache: Texts = local(&Clock::manual());
    cache.insert(&Key::private("alice", "inbox"), "alice's").await.unwrap();
    for other in [Key::private("bob", "inbox"), Key::public("inbox"), Key::public("alice").part("inbox")] {
        assert_eq!(cache.get(&other).await, None);
    }
}

// ===== configuration, bounds, costs =====

#[tokio::test]
async fn impossible_configuration_is_an_error_that_names_the_field() {
    let builder = || Cache::<u32>::builder("test");
    let remote = || builder().remote(MemoryStore::new(Clock::manual()));
    let too_long = MAX_TIME_TO_LIVE + SECOND;
    let cases = [
        ("name", Cache::<u32>::builder("").build()),
        ("name", Cache::<u32>::builder("a b").build()),
        ("capacity", builder().capacity(0).build()),
        ("time_to_live", builder().time_to_live(Duration::ZERO).build()),
        ("time_to_live", builder().time_to_live(too_long).build()),
        ("load_timeout", builder().load_timeout(Duration::ZERO).build()),
        ("error_throttle", builder().error_throttle(too_long).build()),
        ("remote_timeout", remote().remote_timeout(Duration::ZERO).build().await),
        ("remote_soft_timeout", remote().remote_soft_timeout(Duration::ZERO).build().await),
        ("max_staleness", remote().max_staleness(Duration::ZERO).build().await),
    ];
    for (field, result) in cases {
        let error = result.expect_err(field);
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
    }
}

#[tokio::test]
async fn cache_holds_no_more_entries_than_its_capacity() {
    let cache: Cache<u64> = Cache::builder("test").capacity(100).build().unwrap();
    for number in 0..10_000_u64 {
        cache.insert(&Key::public(&number.to_le_bytes()), number).await.unwrap();
    }
    assert!(cache.stats().len <= 100, "{}", cache.stats().len);
}

/// Whatever kind of hit it is, and whichever engine it comes from.
#[tokio::test]
async fn hit_allocates_nothing() {
    for engine in [Engine::Moka, Engine::QuickCache] {
        let clock = Clock::manual();
        let cache: Cache<Arc<str>> = Cache::builder("test")
            .engine(engine)
            .clock(clock.clone())
            .stale_while_revalidate(60 * SECOND)
            .stale_throttle(60 * SECOND)
            .build()
            .unwrap();
        let tags: &[&str] = &[TAG, "another"];
        let [plain, tagged, validated, throttled, revalidated, negative] =
            ["plain", "tagged", "validated", "throttled", "revalidated", "negative"].map(Key::public);
        let value = || Loaded::new(Arc::<str>::from("value"));
        for key in [&throttled, &revalidated] {
            cache.insert_tagged(key, tags, value().time_to_live(SECOND)).await.unwrap();
        }
        clock.advance(2 * SECOND);
        let down = || async { Err::<Arc<str>, _>(io::Error::other("down")) };
        cache.get_or_load_tagged(&throttled, tags, down).await.unwrap();
        while cache.stats().load_failures == 0 {
            tokio::task::yield_now().await;
        }
        cache.insert(&plain, value()).await.unwrap();
        cache.insert_tagged(&tagged, tags, value()).await.unwrap();
        cache.insert(&validated, value().validator("etag")).await.unwrap();
        cache.insert_tagged(&negative, tags, Loaded::not_found()).await.unwrap();

        let before = cache.stats();
        for key in [&plain, &tagged, &validated, &throttled, &revalidated, &negative] {
            let why = cache.explain(key).await;
            let hit = || ready(cache.get_or_load_tagged(key, tags, never)).is_ok() != (key == &negative);
            assert_allocates_nothing(hit, format_args!("{engine:?}, {why}"));
        }
        assert_allocates_nothing(
            || cache.get_local(&tagged).is_some(),
            format_args!("{engine:?}, get_local"),
        );
        let after = cache.stats();
        assert_eq!((after.misses, after.refreshes), (before.misses, before.refreshes + 1));
        assert!(after.stale_hits > before.stale_hits && after.negative_hits > before.negative_hits);
    }
}

fn assert_allocates_nothing(hit: impl Fn() -> bool, what: impl std::fmt::Display) {
    // The engine's own bookkeeping runs now and then; it is not part of a hit.
    for _ in 0..1_000 {
        assert!(hit(), "{what}");
    }
    let least = (0..100).map(|_| allocation_counter::measure(|| assert!(hit())).count_total).min();
    assert_eq!(least, Some(0), "{what}");
}

/// The output of a future that has nothing to wait for.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let Poll::Ready(output) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) else {
        unreachable!("a hit does not wait")
    };
    output
}

async fn never() -> io::Result<Arc<str>> {
    std::future::pending().await
}

#[tokio::test]
async fn keys_of_any_bytes_and_size_are_kept_apart_in_both_tiers() {
    let clock = Clock::manual();
    let store = memory(&clock);
    let one = node(&clock, &store).await;
    let long = vec![b'k'; 1 << 20];
    let keys = [
        Key::public(""),
        Key::public("\0"),
        Key::public(":"),
        Key::public("a:b"),
        Key::public("a").part("b"),
        Key::public(&long),
        Key::public(&long[1..]),
        Key::private("a", "b"),
    ];
    for (index, key) in keys.iter().enumerate() {
        one.insert(key, index.to_string()).await.unwrap();
    }
    for passes in 0..2 {
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(one.get(key).await, Some(index.to_string()), "{key:?}, pass {passes}");
        }
        clock.advance(STALENESS);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn load_of_very_many_keys_takes_no_stack_for_each() {
    let cache: Cache<u32> = Cache::builder("many").capacity(1_000).build().unwrap();
    let names: Vec<String> = (0..100_000).map(|name: u32| name.to_string()).collect();
    let keys: Vec<Key<'_>> = names.iter().map(Key::public).collect();
    let load = |missing: Vec<Key<'static>>| async move {
        Ok::<_, std::io::Error>(missing.into_iter().map(|key| (key, Ok::<u32, std::io::Error>(1))))
    };
    let values = cache.get_or_load_many(&keys, &[], load).await;
    assert!(values.into_iter().all(|value| value.is_ok_and(|value| value == 1)));
}
