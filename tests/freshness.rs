//! Values past their time to live: who is served what, when it is loaded again, and that nothing removed comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{
        BatchLoader, Cache, CacheBuilder, Engine, Key, Loaded, LocalState, MAX_TIME_TO_LIVE, Previous,
        RemoteState,
    },
    clock::Clock,
    testing::{MemoryBus, MemoryStore},
};
use support::{
    stepped::{Step, Stepped},
    wait::settle,
};
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);
/// The default of `max_staleness`.
const STALENESS: Duration = Duration::from_secs(5);

type Texts = Cache<String>;

fn key() -> Key<'static> {
    Key::public("key")
}

/// Fresh for 100 s, served at once for 20 more, kept for 1,000 s after that.
fn settings(clock: &Clock) -> CacheBuilder<String> {
    Cache::builder("test")
        .clock(clock.clone())
        .time_to_live(100 * SECOND)
        .stale_while_revalidate(20 * SECOND)
        .stale_if_error(1_000 * SECOND)
}

fn local(clock: &Clock) -> Texts {
    settings(clock).build().unwrap()
}

async fn node(clock: &Clock, store: &MemoryStore) -> Texts {
    settings(clock).remote(store.clone()).build().await.unwrap()
}

async fn load(cache: &Texts, value: &'static str) -> Result<String, Error> {
    cache.get_or_load(&key(), move || async move { Ok::<_, io::Error>(value.to_owned()) }).await
}

async fn fail(cache: &Texts) -> Result<String, Error> {
    cache.get_or_load(&key(), || async { Err::<String, _>(io::Error::other("the source is down")) }).await
}

#[tokio::test]
async fn stale_value_is_served_at_once_while_one_load_runs_behind_it() {
    let clock = Clock::manual();
    let cache = local(&clock);
    load(&cache, "old").await.unwrap();
    clock.advance(110 * SECOND);
    let loads = Arc::new(AtomicUsize::new(0));
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let may_go_on = Arc::new(tokio::sync::Mutex::new(Some(may_go_on)));
    for _ in 0..100 {
        let (loads, may_go_on) = (Arc::clone(&loads), Arc::clone(&may_go_on));
        let value = cache
            .get_or_load(&key(), move || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                let waits = may_go_on.lock().await.take().unwrap();
                waits.await.unwrap();
                Ok::<_, io::Error>("new".to_owned())
            })
            .await;
        assert_eq!(value.unwrap(), "old");
        settle().await;
    }
    go_on.send(()).unwrap();
    settle().await;
    assert_eq!(cache.get_local(&key()).as_deref(), Some("new"));
    let stats = cache.stats();
    assert_eq!(
        (loads.load(Ordering::SeqCst), stats.stale_hits, stats.refreshes, stats.misses),
        (1, 100, 1, 1)
    );
}

#[tokio::test]
async fn value_beyond_the_window_of_revalidation_is_waited_for() {
    let clock = Clock::manual();
    let cache = local(&clock);
    load(&cache, "old").await.unwrap();
    clock.advance(120 * SECOND);
    assert_eq!(load(&cache, "new").await.unwrap(), "new");
}

#[tokio::test]
async fn stale_value_stands_in_for_a_failed_load_until_its_own_end() {
    let clock = Clock::manual();
    let cache = local(&clock);
    load(&cache, "old").await.unwrap();
    clock.advance(150 * SECOND);
    assert_eq!(fail(&cache).await.unwrap(), "old");
    // The source is left alone for a while: 30 s, half the time to live at most.
    let loads = cache.stats().loads;
    clock.advance(29 * SECOND);
    assert_eq!(load(&cache, "new").await.unwrap(), "old");
    assert_eq!(cache.stats().loads, loads);
    clock.advance(SECOND);
    assert_eq!(load(&cache, "new").await.unwrap(), "new");

    clock.advance(1_100 * SECOND);
    assert_eq!(fail(&cache).await.unwrap_err().kind(), ErrorKind::Load);
}

#[tokio::test]
async fn stale_value_does_not_stand_in_for_a_refusal() {
    let clock = Clock::manual();
    let is_down = |error: &Error| {
        error
            .downcast_source::<io::Error>()
            .is_some_and(|error| error.kind() != io::ErrorKind::PermissionDenied)
    };
    let cache = settings(&clock).serve_stale_if(is_down).build().unwrap();
    load(&cache, "old").await.unwrap();
    clock.advance(150 * SECOND);
    assert_eq!(fail(&cache).await.unwrap(), "old");
    clock.advance(30 * SECOND);
    let denied = || async { Err::<String, _>(io::Error::from(io::ErrorKind::PermissionDenied)) };
    assert_eq!(cache.get_or_load(&key(), denied).await.unwrap_err().kind(), ErrorKind::Load);
    // And not afterwards either.
    clock.advance(SECOND);
    assert_eq!(fail(&cache).await.unwrap_err().kind(), ErrorKind::Load);
}

#[tokio::test]
async fn removed_value_stands_in_for_nothing() {
    let clock = Clock::manual();
    for how in 0..3 {
        let cache = local(&clock);
        cache.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
        clock.advance(150 * SECOND);
        match how {
            0 => cache.remove(&key()).await.unwrap(),
            1 => cache.remove_by_tag("tag").await.unwrap(),
            _ => cache.clear().await.unwrap(),
        }
        assert_eq!(fail(&cache).await.unwrap_err().kind(), ErrorKind::Load, "removed by way {how}");
    }
}

#[tokio::test]
async fn value_removed_while_its_load_runs_does_not_stand_in_when_the_load_fails() {
    let clock = Clock::manual();
    let cache = local(&clock);
    cache.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
    clock.advance(150 * SECOND);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move {
            let load = || async {
                may_go_on.await.unwrap();
                Err::<String, _>(io::Error::other("down"))
            };
            cache.get_or_load_tagged(&key(), &["tag"], load).await
        }
    });
    settle().await;
    cache.remove_by_tag("tag").await.unwrap();
    go_on.send(()).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Load);
    clock.advance(SECOND);
    assert_eq!(fail(&cache).await.unwrap_err().kind(), ErrorKind::Load);
}

#[tokio::test]
async fn expired_value_is_loaded_anew_and_stands_in_when_that_fails() {
    let clock = Clock::manual();
    for how in 0..3 {
        let cache = local(&clock);
        cache.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
        match how {
            0 => cache.expire(&key()).await.unwrap(),
            1 => cache.expire_by_tag("tag").await.unwrap(),
            _ => cache.expire_all().await.unwrap(),
        }
        assert_eq!(cache.get(&key()).await, None, "expired by way {how}");
        assert_eq!(fail(&cache).await.unwrap(), "old", "expired by way {how}");
        clock.advance(30 * SECOND);
        assert_eq!(load(&cache, "new").await.unwrap(), "new", "expired by way {how}");
        assert_eq!(cache.get(&key()).await.as_deref(), Some("new"));
    }
}

#[tokio::test]
async fn load_that_ran_while_its_key_was_made_to_expire_is_not_stored() {
    let clock = Clock::manual();
    for how in 0..3 {
        let cache = local(&clock);
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let loading = tokio::spawn({
            let cache = cache.clone();
            async move {
                let load = || async {
                    may_go_on.await.unwrap();
                    Ok::<_, io::Error>("old".to_owned())
                };
                cache.get_or_load_tagged(&key(), &["tag"], load).await
            }
        });
        settle().await;
        match how {
            0 => cache.expire(&key()).await.unwrap(),
            1 => cache.expire_by_tag("tag").await.unwrap(),
            _ => cache.expire_all().await.unwrap(),
        }
        go_on.send(()).unwrap();
        assert_eq!(loading.await.unwrap().unwrap(), "old");
        assert_eq!(cache.get(&key()).await, None, "expired by way {how}");
        assert_eq!(load(&cache, "new").await.unwrap(), "new");
    }
}

/// Clocks of machines are not in whole milliseconds.
#[tokio::test]
async fn what_is_never_stale_stands_in_for_nothing_once_it_was_made_to_expire() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let node = async || Cache::builder("test").clock(clock.clone()).remote(store.clone()).build().await;
    let (one, two): (Texts, Texts) = (node().await.unwrap(), node().await.unwrap());
    let loading = clock.clone();
    let slow = move || async move {
        loading.advance(Duration::from_nanos(300_001));
        Ok::<_, io::Error>("old".to_owned())
    };
    one.get_or_load(&key(), slow).await.unwrap();
    settle().await;
    assert_eq!(two.get(&key()).await.as_deref(), Some("old"));
    two.expire(&key()).await.unwrap();
    assert_eq!(fail(&two).await.unwrap_err().kind(), ErrorKind::Load);
    clock.advance(STALENESS);
    assert_eq!(fail(&one).await.unwrap_err().kind(), ErrorKind::Load);
}

#[tokio::test]
async fn expiry_reaches_the_other_node_and_leaves_it_a_value_to_stand_in() {
    let clock = Clock::manual();
    for how in 0..3 {
        let store = MemoryStore::new(clock.clone());
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        one.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
        assert_eq!(two.get(&key()).await.as_deref(), Some("old"));
        match how {
            0 => one.expire(&key()).await.unwrap(),
            1 => one.expire_by_tag("tag").await.unwrap(),
            _ => one.expire_all().await.unwrap(),
        }
        clock.advance(STALENESS);
        assert_eq!(two.get(&key()).await, None, "expired by way {how}");
        assert_eq!(fail(&two).await.unwrap(), "old", "expired by way {how}");
        clock.advance(30 * SECOND);
        assert_eq!(load(&two, "new").await.unwrap(), "new", "expired by way {how}");
        assert_eq!(load(&one, "unused").await.unwrap(), "new", "expired by way {how}");
    }
}

#[tokio::test]
async fn value_removed_on_another_node_does_not_stand_in_here() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    one.insert(&key(), "old".to_owned()).await.unwrap();
    assert_eq!(two.get(&key()).await.as_deref(), Some("old"));
    one.remove(&key()).await.unwrap();
    clock.advance(STALENESS);
    assert_eq!(fail(&two).await.unwrap_err().kind(), ErrorKind::Load);
}

#[tokio::test]
async fn stale_value_of_the_remote_tier_stands_in_where_memory_has_none() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let one = node(&clock, &store).await;
    one.insert(&key(), "old".to_owned()).await.unwrap();
    clock.advance(150 * SECOND);
    let two = node(&clock, &store).await;
    assert_eq!(two.get(&key()).await, None);
    assert_eq!(fail(&two).await.unwrap(), "old");
    // Within the window of revalidation it is served at once.
    one.insert(&key(), "newer".to_owned()).await.unwrap();
    clock.advance(110 * SECOND);
    let three = node(&clock, &store).await;
    let slow = || async {
        tokio::task::yield_now().await;
        Ok::<_, io::Error>("newest".to_owned())
    };
    assert_eq!(three.get_or_load(&key(), slow).await.unwrap(), "newer");
    settle().await;
    assert_eq!(load(&three, "unused").await.unwrap(), "newest");
}

#[tokio::test]
async fn source_that_fails_is_left_alone_though_memory_is_to_be_confirmed_meanwhile() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let one = node(&clock, &store).await;
    one.insert(&key(), "old".to_owned()).await.unwrap();
    clock.advance(150 * SECOND);
    assert_eq!(fail(&one).await.unwrap(), "old");
    let loads = one.stats().loads;
    for _ in 0..4 {
        clock.advance(STALENESS);
        assert_eq!(fail(&one).await.unwrap(), "old");
    }
    assert_eq!(one.stats().loads, loads);
}

#[tokio::test]
async fn stale_value_stands_in_when_source_and_remote_tier_are_away() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = settings(&clock).remote(store.clone()).build().await.unwrap();
    load(&cache, "old").await.unwrap();
    settle().await;
    store.fail_reads(usize::MAX);
    clock.advance(50 * SECOND);
    assert_eq!(fail(&cache).await.unwrap(), "old", "still fresh, but nobody confirms it");
    clock.advance(100 * SECOND);
    assert_eq!(fail(&cache).await.unwrap(), "old");
}

#[tokio::test(start_paused = true)]
async fn callers_wait_for_the_soft_timeout_and_the_load_goes_on() {
    let clock = Clock::manual();
    let cache = settings(&clock).soft_timeout(Duration::from_millis(20)).build().unwrap();
    load(&cache, "old").await.unwrap();
    clock.advance(150 * SECOND);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let slow = || async {
        may_go_on.await.unwrap();
        Ok::<_, io::Error>("new".to_owned())
    };
    assert_eq!(cache.get_or_load(&key(), slow).await.unwrap(), "old");
    // Who comes while it goes on waits no longer than those before.
    assert_eq!(load(&cache, "unused").await.unwrap(), "old");
    go_on.send(()).unwrap();
    settle().await;
    assert_eq!(load(&cache, "unused").await.unwrap(), "new");
    // Without anything to serve instead there is nothing to do but wait.
    let slow = || async {
        tokio::time::sleep(SECOND).await;
        Ok::<_, io::Error>("other".to_owned())
    };
    assert_eq!(cache.get_or_load(&Key::public("other"), slow).await.unwrap(), "other");
}

#[tokio::test]
async fn value_is_loaded_ahead_of_its_end_behind_a_hit() {
    let clock = Clock::manual();
    let cache = settings(&clock).refresh_ahead().build().unwrap();
    load(&cache, "one").await.unwrap();
    clock.advance(89 * SECOND);
    assert_eq!(load(&cache, "too early").await.unwrap(), "one");
    settle().await;
    clock.advance(SECOND);
    assert_eq!(load(&cache, "two").await.unwrap(), "one");
    settle().await;
    assert_eq!(load(&cache, "unused").await.unwrap(), "two");
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.stale_hits, stats.misses, stats.loads, stats.refreshes), (3, 0, 1, 2, 1));
}

const MANY: usize = 200;

/// As many keys, loaded at one time in `takes`.
async fn load_many(cache: &Texts, takes: Duration) -> Vec<Key<'static>> {
    let keys: Vec<_> = (0..MANY).map(|key| Key::public(&key.to_string()).into_owned()).collect();
    let mut loads = tokio::task::JoinSet::new();
    for key in &keys {
        let (cache, key) = (cache.clone(), key.clone());
        loads.spawn(async move { cache.get_or_load(&key, slow(takes)).await });
    }
    assert!(loads.join_all().await.into_iter().all(|value| value.is_ok()));
    keys
}

fn slow(
    takes: Duration,
) -> impl FnOnce() -> std::pin::Pin<Box<dyn Future<Output = io::Result<String>> + Send>> {
    move || {
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            Ok(String::new())
        })
    }
}

/// By the rule of `XFetch`, of hits a second from each other 46 in 100 start a load of 5 s before the last tenth of a life
/// of 100 s.
#[tokio::test(start_paused = true)]
async fn what_takes_long_to_load_is_loaded_ahead_the_earlier_and_nobody_waits() {
    for (takes, earliest, range) in [(5 * SECOND, 50, 70..=120), (SECOND / 1_000, 90, 0..=0)] {
        fastrand::seed(7);
        let cache = settings(&Clock::tokio()).refresh_ahead().build().unwrap();
        let keys = load_many(&cache, takes).await;
        let mut refreshed = 0;
        for second in 1..=99 {
            tokio::time::sleep(SECOND).await;
            for key in &keys {
                cache.get_or_load(key, slow(takes)).await.unwrap();
            }
            let refreshes = cache.stats().refreshes;
            assert!(second >= earliest || refreshes == 0, "{refreshes} after {second} s");
            if second == 89 {
                refreshed = refreshes;
            }
        }
        let stats = cache.stats();
        assert!(range.contains(&refreshed), "{takes:?}: {refreshed} of {stats:?}");
        assert_eq!((stats.misses, stats.stale_hits), (MANY as u64, 0), "{takes:?}");
        assert!(stats.refreshes >= MANY as u64, "{takes:?}: {stats:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_together_goes_at_different_times_and_at_the_same_on_every_node() {
    let clock = Clock::tokio();
    let store = MemoryStore::new(clock.clone());
    let node = async || {
        let builder = Cache::builder("test").clock(clock.clone()).time_to_live(100 * SECOND).jitter(0.5);
        builder.remote(store.clone()).max_staleness(1_000 * SECOND).build().await.unwrap()
    };
    let (one, two): (Texts, Texts) = (node().await, node().await);
    let keys = load_many(&one, Duration::ZERO).await;
    settle().await;
    for key in &keys {
        two.get(key).await.unwrap();
    }
    for (seconds, range) in [(49, MANY..=MANY), (26, 60..=140), (25, 0..=0)] {
        tokio::time::sleep(seconds * SECOND).await;
        let left = |node: &Texts| keys.iter().map(|key| node.get_local(key).is_some()).collect::<Vec<_>>();
        let (here, there) = (left(&one), left(&two));
        // A write may arrive as late as its time-out, which is taken off what others are given.
        let unlike = here.iter().zip(&there).filter(|(here, there)| here != there).count();
        assert!(unlike <= MANY / 20, "{unlike}");
        let left = here.into_iter().filter(|is_left| *is_left).count();
        assert!(range.contains(&left), "{left} are left");
    }
}

#[tokio::test]
async fn one_of_two_nodes_loads_ahead_and_the_other_takes_what_that_stored() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let node = async || settings(&clock).refresh_ahead().remote(store.clone()).build().await.unwrap();
    let (one, two) = (node().await, node().await);
    load(&one, "one").await.unwrap();
    settle().await;
    load(&two, "unused").await.unwrap();
    clock.advance(91 * SECOND);
    // Both have to look there first, since neither was told of the other for so long.
    for cache in [&one, &two] {
        assert_eq!(load(cache, "unused").await.unwrap(), "one");
    }
    load(&one, "two").await.unwrap();
    settle().await;
    load(&two, "three").await.unwrap();
    settle().await;
    assert_eq!(load(&two, "unused").await.unwrap(), "two");
    assert_eq!((one.stats().loads, two.stats().loads), (2, 0));
}

#[tokio::test]
async fn answer_that_there_is_nothing_is_remembered_for_a_while_on_every_node() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let nothing = || async { Ok::<_, io::Error>(Loaded::<String>::not_found()) };
    let error = one.get_or_load(&key(), nothing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    settle().await;
    assert_eq!(load(&one, "unused").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(load(&two, "unused").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!((one.get(&key()).await, one.stats().negative_hits, two.stats().loads), (None, 2, 0));
    clock.advance(5 * SECOND);
    assert_eq!(load(&two, "there").await.unwrap(), "there");
}

#[tokio::test]
async fn answer_that_there_is_nothing_is_not_covered_up_by_a_stale_value() {
    let clock = Clock::manual();
    let cache = local(&clock);
    load(&cache, "old").await.unwrap();
    clock.advance(150 * SECOND);
    let nothing = || async { Ok::<_, io::Error>(Loaded::<String>::not_found()) };
    assert_eq!(cache.get_or_load(&key(), nothing).await.unwrap_err().kind(), ErrorKind::NotFound);
    clock.advance(6 * SECOND);
    assert_eq!(fail(&cache).await.unwrap_err().kind(), ErrorKind::Load);
}

#[tokio::test]
async fn loader_is_told_of_the_value_before_and_its_validator_by_either_tier() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let one = node(&clock, &store).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let loader = || {
        let told = Arc::clone(&told);
        move |previous: Option<Previous<String>>| async move {
            let answer = match &previous {
                None => Loaded::new("value".to_owned()).validator("v1"),
                Some(_) => Loaded::not_modified(),
            };
            told.lock().unwrap().push(previous.map(|previous| (previous.value, previous.validator)));
            Ok::<_, io::Error>(answer)
        }
    };
    let ask = async |cache: &Texts| cache.get_or_revalidate(&key(), &[], loader()).await.unwrap();
    assert_eq!(ask(&one).await, "value");
    settle().await;
    for _ in 0..3 {
        clock.advance(150 * SECOND);
        assert_eq!(ask(&one).await, "value");
        settle().await;
        assert_eq!(ask(&one).await, "value", "and it lives anew");
    }
    clock.advance(150 * SECOND);
    let two = node(&clock, &store).await;
    assert_eq!(ask(&two).await, "value");
    let known = Some(("value".to_owned(), Some(Arc::from("v1"))));
    assert_eq!(*told.lock().unwrap(), [None, known.clone(), known.clone(), known.clone(), known]);
}

#[tokio::test]
async fn not_modified_without_a_value_before_is_an_error() {
    let cache = local(&Clock::manual());
    let loader = |_| async { Ok::<_, io::Error>(Loaded::<String>::not_modified()) };
    let error = cache.get_or_revalidate(&key(), &[], loader).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    let error = cache.insert(&key(), Loaded::not_modified()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn refresh_loads_whatever_there_is_and_bars_a_load_from_before() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&one, "one").await.unwrap();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    one.remove(&key()).await.unwrap();
    let early = tokio::spawn({
        let one = one.clone();
        async move {
            let load = || async {
                may_go_on.await.unwrap();
                Ok::<_, io::Error>("early".to_owned())
            };
            one.get_or_load(&key(), load).await
        }
    });
    settle().await;
    let refreshed = one.refresh(&key(), &[], |_| async { Ok::<_, io::Error>("two".to_owned()) }).await;
    assert_eq!(refreshed.unwrap(), "two");
    go_on.send(()).unwrap();
    early.await.unwrap().unwrap();
    settle().await;
    assert_eq!(one.get(&key()).await.as_deref(), Some("two"));
    assert_eq!(two.get(&key()).await.as_deref(), Some("two"));
}

/// A load of `value`, and what lets it go on once its source was read.
fn held(value: &'static str) -> (oneshot::Sender<()>, impl Future<Output = io::Result<String>> + Send) {
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let load = async move {
        may_go_on.await.unwrap();
        Ok(value.to_owned())
    };
    (go_on, load)
}

#[tokio::test]
async fn refresh_is_not_undone_by_a_load_from_before_it_in_another_process() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let (store_early, early) = held("early");
    let early = tokio::spawn({
        let two = two.clone();
        async move { two.get_or_load(&key(), || early).await }
    });
    settle().await;
    // The source changes, and one asks for what it is now.
    let (store_new, new) = held("new");
    let refreshed = tokio::spawn({
        let one = one.clone();
        async move { one.refresh(&key(), &[], |_| new).await }
    });
    settle().await;
    store_early.send(()).unwrap();
    assert_eq!(early.await.unwrap().unwrap(), "early");
    settle().await;
    store_new.send(()).unwrap();
    assert_eq!(refreshed.await.unwrap().unwrap(), "new");
    settle().await;
    clock.advance(STALENESS);
    for cache in [&one, &two] {
        assert_ne!(cache.get(&key()).await.as_deref(), Some("early"), "it was read before");
    }
}

/// A tag that what there is does not carry was removed while it was loaded anew, and another load took the place of that.
#[tokio::test]
async fn refresh_in_whose_place_another_load_was_begun_leaves_nothing_older() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let cache = node(&clock, &store).await;
    cache.insert(&key(), "old".to_owned()).await.unwrap();
    let (store_new, new) = held("new");
    let refreshed = tokio::spawn({
        let cache = cache.clone();
        async move { cache.refresh(&key(), &["tag"], |_| new).await }
    });
    settle().await;
    cache.remove_by_tag("tag").await.unwrap();
    clock.advance(STALENESS);
    let unused = || async { Ok::<_, io::Error>("unused".to_owned()) };
    assert_eq!(cache.get_or_load_tagged(&key(), &["tag"], unused).await.unwrap(), "old");
    store_new.send(()).unwrap();
    assert_eq!(refreshed.await.unwrap().unwrap(), "new");
    settle().await;
    assert_ne!(cache.get(&key()).await.as_deref(), Some("old"));
}

/// Who inserts or removes meanwhile tells the store, and the refresh has nothing more to tell it.
#[tokio::test]
async fn refresh_that_comes_after_an_insertion_or_a_removal_leaves_the_store_alone() {
    for inserts in [true, false] {
        let clock = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        load(&one, "old").await.unwrap();
        let (end, refreshed) = refreshing(&one);
        settle().await;
        if inserts {
            one.insert(&key(), "newer".to_owned()).await.unwrap();
        } else {
            one.remove(&key()).await.unwrap();
            load(&one, "newer").await.unwrap();
        }
        settle().await;
        end.send(with("new")).unwrap();
        assert_eq!(refreshed.await.unwrap().unwrap(), "new");
        settle().await;
        assert_eq!(one.stats().owed, 0);
        one.get(&Key::public("other")).await;
        settle().await;
        clock.advance(STALENESS);
        for cache in [&one, &two] {
            assert_eq!(cache.get(&key()).await.as_deref(), Some("newer"), "inserts: {inserts}");
        }
    }
}

/// The store has nothing of it, as one that is full, and memory is as good as before.
#[tokio::test]
async fn refresh_that_fails_leaves_what_was_good_though_the_store_has_lost_it() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let cache: Texts = Cache::builder("test").clock(clock).remote(store.clone()).build().await.unwrap();
    load(&cache, "good").await.unwrap();
    settle().await;
    store.overwrite_all(b"");
    let failing = |_| async { Err::<String, _>(io::Error::other("the source is down")) };
    assert_eq!(cache.refresh(&key(), &[], failing).await.unwrap_err().kind(), ErrorKind::Load);
    assert_eq!(load(&cache, "not called").await.unwrap(), "good");
}

#[tokio::test]
async fn failure_is_throttled_however_long_it_took() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let builder = Cache::builder("test").clock(clock.clone()).error_throttle(SECOND);
    let cache: Texts = builder.remote(store).build().await.unwrap();
    let slow = {
        let clock = clock.clone();
        async move {
            clock.advance(2 * STALENESS);
            Err::<String, _>(io::Error::other("the source is down"))
        }
    };
    cache.get_or_load(&key(), || slow).await.unwrap_err();
    fail(&cache).await.unwrap_err();
    assert_eq!((cache.stats().loads, cache.stats().throttled), (1, 1));
    clock.advance(SECOND);
    assert_eq!(load(&cache, "again").await.unwrap(), "again");
}

#[tokio::test]
async fn what_is_stale_in_the_store_is_no_hit() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&one, "old").await.unwrap();
    settle().await;
    clock.advance(110 * SECOND);
    assert_eq!(load(&two, "new").await.unwrap(), "new");
    settle().await;
    let stats = two.stats();
    assert_eq!((stats.remote_hits, stats.loads), (0, 1));
    assert!(stats.hit_rate().unwrap() <= 1.0, "{stats:?}");
}

/// The source has the new value, so the old one is to go, whatever the new one weighs.
#[tokio::test]
async fn value_that_cannot_be_weighed_or_kept_leaves_nothing_old_and_all_others() {
    let weigher = |value: &String| {
        assert_ne!(value, "new", "a bug in the weigher");
        value.capacity() as u64
    };
    for engine in [Engine::Moka, Engine::QuickCache] {
        let builder = Cache::builder("test").engine(engine).capacity_bytes(1 << 20, weigher);
        let cache: Texts = builder.build().unwrap();
        let other = Key::public("other");
        for too_large in [false, true] {
            cache.insert(&key(), "old".to_owned()).await.unwrap();
            cache.insert(&other, "other".to_owned()).await.unwrap();
            assert_eq!(cache.stats().len, 2);
            let new = if too_large { "x".repeat(2 << 20) } else { "new".to_owned() };
            cache.write_through(&key(), &[], new, |_| async { Ok::<_, io::Error>(()) }).await.unwrap();
            assert_eq!((cache.get_local(&key()), cache.stats().len), (None, 1), "{engine:?}");
            assert_eq!(cache.get_local(&other).as_deref(), Some("other"), "it makes room for nothing");
        }
        assert_eq!(load(&cache, "new").await.unwrap(), "new");
    }
}

#[tokio::test]
async fn large_values_fit_into_memory_on_any_machine() {
    for (capacity, large) in [(1 << 20, 900 << 10), (64 << 20, 3 << 20)] {
        for engine in [Engine::Moka, Engine::QuickCache] {
            let builder = Cache::builder("test").engine(engine);
            let builder = builder.capacity_bytes(capacity, |value: &String| value.capacity() as u64);
            let cache: Texts = builder.build().unwrap();
            cache.insert(&key(), "x".repeat(large)).await.unwrap();
            assert!(cache.get_local(&key()).is_some(), "{engine:?}: {large} of {capacity}");
        }
    }
}

/// What a loader says that its value takes up counts wherever the value goes.
#[tokio::test]
async fn cost_of_a_value_goes_along_with_it() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let node = async || {
        let builder = settings(&clock).capacity_bytes(1 << 20, |_: &String| 0).remote(store.clone());
        builder.build().await.unwrap()
    };
    let (one, two) = (node().await, node().await);
    let load = async |cache: &Texts, loaded: Loaded<String>| {
        cache.get_or_load(&key(), || async { Ok::<_, io::Error>(loaded) }).await.unwrap();
        settle().await;
        cache.stats().weight
    };
    let weight = load(&one, Loaded::new("value".to_owned()).cost(10_000)).await;
    assert!((10_000..11_000).contains(&weight), "{weight}");
    assert_eq!(load(&two, Loaded::new("not called".to_owned())).await, weight);
    // Nor is it forgotten when the source says that nothing has changed.
    clock.advance(200 * SECOND);
    for cache in [&one, &two] {
        assert_eq!(load(cache, Loaded::not_modified()).await, weight);
    }
}

#[tokio::test]
async fn what_was_forgotten_stands_in_for_no_failure_and_is_explained_as_absent() {
    let clock = Clock::manual();
    let builder = Cache::builder("test").clock(clock.clone()).time_to_live(100 * SECOND);
    let cache: Texts = builder.stale_if_error(100 * SECOND).time_to_idle(10 * SECOND).build().unwrap();
    load(&cache, "one").await.unwrap();
    clock.advance(9 * SECOND);
    let local = async || cache.explain(&key()).await.local;
    assert_eq!(local().await, LocalState::Fresh(91 * SECOND));
    clock.advance(SECOND);
    assert_eq!(local().await, LocalState::Absent, "to explain is not to ask");
    for _ in 0..3 {
        fail(&cache).await.unwrap_err();
    }
    assert_eq!((cache.stats().loads, cache.stats().throttled), (2, 2));
}

#[tokio::test]
async fn whatever_is_answered_from_memory_saves_its_load() {
    for is_idle in [false, true] {
        let clock = Clock::manual();
        let builder = settings(&clock);
        let builder = if is_idle { builder.time_to_idle(1_000 * SECOND) } else { builder };
        let cache: Texts = builder.build().unwrap();
        let slow = {
            let clock = clock.clone();
            async move {
                clock.advance(SECOND);
                Ok::<_, io::Error>("one".to_owned())
            }
        };
        cache.get_or_load(&key(), || slow).await.unwrap();
        let saved = || cache.stats().saved_load_time;
        assert_eq!(saved(), Duration::ZERO);
        assert_eq!(cache.get_local(&key()).as_deref(), Some("one"));
        assert_eq!(saved(), SECOND);
        load(&cache, "not called").await.unwrap();
        assert_eq!(saved(), 2 * SECOND);
        // Stale: answered, and loaded behind the answer.
        clock.advance(101 * SECOND);
        assert_eq!(load(&cache, "two").await.unwrap(), "one");
        settle().await;
        assert_eq!((saved(), cache.stats().loads), (3 * SECOND, 2));
    }
}

#[tokio::test]
async fn entry_that_nobody_asks_for_is_forgotten_and_one_that_is_asked_for_still_dies() {
    let clock = Clock::manual();
    let cache: Texts = Cache::builder("test")
        .clock(clock.clone())
        .time_to_live(100 * SECOND)
        .time_to_idle(10 * SECOND)
        .build()
        .unwrap();
    load(&cache, "one").await.unwrap();
    for _ in 0..11 {
        clock.advance(9 * SECOND);
        assert_eq!(cache.get_local(&key()).as_deref(), Some("one"));
    }
    clock.advance(SECOND);
    assert_eq!(cache.get_local(&key()), None, "its time to live is over");
    load(&cache, "two").await.unwrap();
    clock.advance(10 * SECOND);
    assert_eq!(cache.get_local(&key()), None, "nobody asked for it");
    assert_eq!(load(&cache, "three").await.unwrap(), "three", "to have asked in vain is not to have asked");
}

#[tokio::test]
async fn loader_that_asks_for_its_own_key_gets_an_error_instead_of_waiting() {
    let cache = local(&Clock::manual());
    let (inner, outer) = (cache.clone(), Key::public("outer"));
    let load = move || async move {
        // Over another key, which is fine, and back.
        let again = inner.clone();
        let between = move || async move {
            let load = || async { Ok::<_, io::Error>(String::new()) };
            again.get_or_load(&Key::public("outer"), load).await
        };
        inner.get_or_load(&Key::public("between"), between).await
    };
    let error = cache.get_or_load(&outer, load).await.unwrap_err();
    let mut kinds = vec![error.kind()];
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        kinds.extend(error.downcast_ref::<Error>().map(Error::kind));
        source = error.source();
    }
    assert_eq!(kinds.last(), Some(&ErrorKind::Recursion), "{kinds:?}");
    assert_eq!(load_of(&cache, "outer", "fine").await, "fine");
}

#[tokio::test(start_paused = true)]
async fn batch_whose_loader_asks_for_its_own_key_gets_an_error_instead_of_waiting() {
    let again: Arc<OnceLock<BatchLoader<String>>> = Arc::default();
    let own = Arc::clone(&again);
    let texts = BatchLoader::new(local(&Clock::tokio()), move |keys: Vec<Key<'static>>| {
        let own = Arc::clone(&own);
        async move {
            let mut loaded = Vec::new();
            for key in keys {
                let value = own.get().unwrap().get(&key).await.map_err(io::Error::other)?;
                loaded.push((key, Ok(value)));
            }
            Ok::<_, io::Error>(loaded)
        }
    });
    let _ = again.set(texts.clone());
    let error = texts.get(&key()).await.unwrap_err();
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    let mut kinds = Vec::new();
    while let Some(error) = source {
        kinds.extend(error.downcast_ref::<Error>().map(Error::kind));
        source = error.source().or_else(|| {
            let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
            Some(inner as &dyn std::error::Error)
        });
    }
    assert_eq!(kinds, [ErrorKind::Load, ErrorKind::Recursion]);
}

async fn load_of(cache: &Texts, name: &str, value: &'static str) -> String {
    cache.insert(&Key::public(name), value.to_owned()).await.unwrap();
    cache.get(&Key::public(name)).await.unwrap()
}

#[tokio::test]
async fn many_are_answered_by_memory_the_remote_tier_others_and_one_load() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let name = |index: usize| index.to_string();
    one.insert(&Key::public("0"), "in memory".to_owned()).await.unwrap();
    two.insert(&Key::public("1"), "remote".to_owned()).await.unwrap();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let other = tokio::spawn({
        let one = one.clone();
        async move {
            let load = || async {
                may_go_on.await.unwrap();
                Ok::<_, io::Error>("by another".to_owned())
            };
            one.get_or_load(&Key::public("2"), load).await
        }
    });
    settle().await;
    let names: Vec<String> = (0..7).map(name).chain([name(3)]).collect();
    let keys: Vec<Key<'_>> = names.iter().map(Key::public).collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let many = one.get_or_load_many(&keys, &["tag"], {
        let asked = Arc::clone(&asked);
        move |missing| async move {
            *asked.lock().unwrap() = missing.clone();
            go_on.send(()).unwrap();
            // In any order; one that nobody asked for, one that fails, one that is not there.
            Ok::<_, io::Error>(vec![
                (Key::public("6"), Ok("loaded 6".to_owned())),
                (Key::public("9"), Ok("unasked".to_owned())),
                (Key::public("4"), Err(io::Error::other("no"))),
                (Key::public("3"), Ok("loaded 3".to_owned())),
            ])
        }
    });
    let values: Vec<_> = many.await.into_iter().map(|value| value.map_err(|error| error.kind())).collect();
    let text = |text: &str| Ok(text.to_owned());
    assert_eq!(
        values,
        [
            text("in memory"),
            text("remote"),
            text("by another"),
            text("loaded 3"),
            Err(ErrorKind::Load),
            Err(ErrorKind::NotFound),
            text("loaded 6"),
            text("loaded 3"),
        ]
    );
    let wanted: Vec<Key<'_>> = ["3", "4", "5", "6"].map(Key::public).into();
    assert_eq!(*asked.lock().unwrap(), wanted);
    other.await.unwrap().unwrap();
    assert_eq!(one.stats().loads, 2);
    settle().await;
    assert_eq!(two.get(&Key::public("6")).await.as_deref(), Some("loaded 6"));
    two.remove_by_tag("tag").await.unwrap();
    assert_eq!(two.get(&Key::public("6")).await, None);
}

#[tokio::test]
async fn stale_hits_are_answers_and_not_refreshes_that_failed() {
    let clock = Clock::manual();
    let cache = local(&clock);
    load(&cache, "old").await.unwrap();
    clock.advance(110 * SECOND);
    let fails = || async { Err::<String, _>(io::Error::other("down")) };
    // Served at once, and loaded behind the answer: nobody is there when that fails.
    assert_eq!(cache.get_or_load(&key(), fails).await.unwrap(), "old");
    settle().await;
    let stats = cache.stats();
    assert_eq!((stats.stale_hits, stats.loads, stats.load_failures), (1, 2, 1));
}

#[tokio::test]
async fn explanation_tells_what_is_known_not_to_exist_from_a_failure() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let cache: Texts = Cache::builder("test").clock(clock.clone()).remote(store).build().await.unwrap();
    let absent = || async { Ok::<Loaded<String>, io::Error>(Loaded::not_found()) };
    cache.get_or_load(&key(), absent).await.unwrap_err();
    settle().await;
    let why = cache.explain(&key()).await;
    assert!(matches!(why.local, LocalState::NotFound(_)) && matches!(why.remote, RemoteState::NotFound(_)));
    let why = why.to_string();
    assert!(why.starts_with("in memory: known not to exist for 5.0s;"), "{why}");
    let fails = || async { Err::<String, _>(io::Error::other("down")) };
    cache.get_or_load(&Key::public("failed"), fails).await.unwrap_err();
    let why = cache.explain(&Key::public("failed")).await;
    assert_eq!(why.local, LocalState::Failure(ErrorKind::Load));
}

#[tokio::test]
async fn stale_ones_among_many_are_served_at_once_and_loaded_behind_the_answer() {
    let clock = Clock::manual();
    let cache = local(&clock);
    load(&cache, "old").await.unwrap();
    clock.advance(110 * SECOND);
    let asked = Arc::new(Mutex::new(Vec::new()));
    for expected in ["old", "new"] {
        let asked = Arc::clone(&asked);
        let load = |missing: Vec<Key<'static>>| async move {
            asked.lock().unwrap().push(missing.len());
            Ok::<_, io::Error>(missing.into_iter().map(|key| (key, Ok::<_, io::Error>("new".to_owned()))))
        };
        let values = cache.get_or_load_many(&[key(), Key::public("other")], &[], load).await;
        let values: Vec<_> = values.into_iter().map(Result::unwrap).collect();
        assert_eq!(values, [expected, "new"]);
        settle().await;
    }
    assert_eq!(*asked.lock().unwrap(), [2], "both in one call");
    let stats = cache.stats();
    assert_eq!((stats.stale_hits, stats.refreshes, stats.loads), (1, 1, 2));
}

#[tokio::test]
async fn load_of_many_that_fails_or_panics_releases_every_caller() {
    let cache = settings(&Clock::manual()).error_throttle(Duration::ZERO).build().unwrap();
    let keys = ["a", "b"].map(Key::public);
    type Rows = Vec<(Key<'static>, Result<String, io::Error>)>;
    let failed =
        cache.get_or_load_many(&keys, &[], |_| async { Err::<Rows, _>(io::Error::other("no")) }).await;
    assert!(failed.iter().all(|value| value.as_ref().unwrap_err().kind() == ErrorKind::Load));
    let panics = |_| async { if true { panic!("in a loader") } else { Ok::<Rows, io::Error>(Vec::new()) } };
    let failed = cache.get_or_load_many(&keys, &[], panics).await;
    assert!(failed.iter().all(|value| value.as_ref().unwrap_err().kind() == ErrorKind::Panicked));
    assert_eq!(cache.stats().loading, 0);
    assert!(
        cache.get_or_load_many(&[], &[], |_| async { Ok::<Rows, io::Error>(Vec::new()) }).await.is_empty()
    );
}

#[tokio::test]
async fn many_that_were_removed_while_they_were_loaded_are_not_stored() {
    let cache = local(&Clock::manual());
    let keys = ["a", "b"].map(Key::public);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let loading = tokio::spawn({
        let cache = cache.clone();
        async move {
            let load = |missing: Vec<Key<'static>>| async {
                may_go_on.await.unwrap();
                Ok::<_, io::Error>(
                    missing.into_iter().map(|key| (key, Ok("old".to_owned()))).collect::<Vec<_>>(),
                )
            };
            cache.get_or_load_many(&["a", "b"].map(Key::public), &[], load).await
        }
    });
    settle().await;
    cache.remove(&keys[0]).await.unwrap();
    go_on.send(()).unwrap();
    loading.await.unwrap();
    assert_eq!(cache.get_local(&keys[0]), None);
    assert_eq!(cache.get_local(&keys[1]).as_deref(), Some("old"));
}

#[tokio::test]
async fn memory_is_bounded_in_bytes_by_either_engine() {
    for engine in [Engine::Moka, Engine::QuickCache] {
        let bytes = 1 << 20;
        let cache: Texts = Cache::builder("test")
            .engine(engine)
            .capacity_bytes(bytes, |value: &String| value.capacity() as u64)
            .build()
            .unwrap();
        for index in 0..2_000 {
            let value = "x".repeat(index % 4_096);
            cache.insert(&Key::public(&index.to_string()), value).await.unwrap();
        }
        let stats = cache.stats();
        assert!(stats.weight <= bytes && stats.weight > bytes / 2, "{engine:?}: {}", stats.weight);
        assert!(stats.len > 100, "{engine:?}: {}", stats.len);
        // And it is right in the other ways.
        cache.insert(&key(), "value".to_owned()).await.unwrap();
        cache.remove(&key()).await.unwrap();
        assert_eq!(cache.get_local(&key()), None);
        cache.insert(&key(), "value".to_owned()).await.unwrap();
        cache.clear().await.unwrap();
        assert_eq!((cache.get_local(&key()), cache.stats().weight), (None, 0), "{engine:?}");
    }
}

#[tokio::test]
async fn life_of_a_stale_value_does_not_grow_on_its_way_through_the_tiers() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let one = node(&clock, &store).await;
    load(&one, "old").await.unwrap();
    settle().await;
    // Over node after node, each of which reads what the last one has read.
    for _ in 0..10 {
        clock.advance(10 * SECOND);
        let next = node(&clock, &store).await;
        next.get(&key()).await;
    }
    let last = node(&clock, &store).await;
    assert_eq!(last.get(&key()).await, None, "fresh for 100 s");
    clock.advance(1_000 * SECOND);
    assert_eq!(fail(&last).await.unwrap_err().kind(), ErrorKind::Load, "kept for 1,000 s after that");
}

#[tokio::test]
async fn impossible_settings_are_errors_that_name_the_field() {
    let build = |change: fn(CacheBuilder<String>) -> CacheBuilder<String>| {
        change(Cache::builder("test")).build().unwrap_err().to_string()
    };
    for (field, change) in [
        ("jitter", (|b| b.jitter(0.6)) as fn(CacheBuilder<String>) -> CacheBuilder<String>),
        ("jitter", |b| b.jitter(f64::NAN)),
        ("stale_if_error", |b| b.stale_if_error(Duration::from_secs(8 * 24 * 3600))),
        ("stale_while_revalidate", |b| b.stale_while_revalidate(Duration::MAX)),
        ("time_to_idle", |b| b.time_to_idle(Duration::ZERO)),
        ("soft_timeout", |b| b.soft_timeout(Duration::from_secs(3_601))),
        ("stale_throttle", |b| b.stale_throttle(Duration::from_secs(3_601))),
        ("negative_time_to_live", |b| b.negative_time_to_live(Duration::MAX)),
        ("capacity_bytes", |b| b.capacity_bytes(1_000, |_| 1)),
    ] {
        assert!(build(change).starts_with(field), "{field}: {}", build(change));
    }
}

#[tokio::test]
async fn explanation_tells_every_state() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let why = async |cache: &Texts| cache.explain(&key()).await.to_string();
    assert_eq!(why(&one).await, "in memory: nothing; nothing in the remote tier; no load running");
    one.insert_tagged(&key(), &["tag"], "value".to_owned()).await.unwrap();
    let fresh = why(&one).await;
    assert!(fresh.starts_with("in memory: fresh for 100.0s; in the remote tier fresh for"), "{fresh}");
    clock.advance(STALENESS);
    assert!(why(&one).await.starts_with("in memory: to be confirmed by the remote tier"));
    two.remove_by_tag("tag").await.unwrap();
    assert!(why(&one).await.contains("invalidated in the remote tier"));
    one.remove_by_tag("tag").await.unwrap();
    assert!(why(&one).await.starts_with("in memory: removed since (by its tag `tag`)"));
    store.overwrite_all(b"garbage");
    assert!(why(&one).await.contains("bytes of somebody else in the remote tier"));
}

#[tokio::test]
async fn answer_that_there_is_nothing_lives_no_longer_than_anything_may() {
    for loads in [true, false] {
        let clock = Clock::manual();
        let cache: Texts = Cache::builder("test").clock(clock.clone()).build().unwrap();
        let nothing = || Loaded::<String>::not_found().time_to_live(Duration::MAX);
        match loads {
            true => {
                let load = move || async move { Ok::<_, io::Error>(nothing()) };
                let error = cache.get_or_load(&key(), load).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound);
            }
            false => cache.insert(&key(), nothing()).await.unwrap(),
        }
        clock.advance(MAX_TIME_TO_LIVE);
        assert_eq!(load(&cache, "there").await.unwrap(), "there");
    }
}

#[tokio::test]
async fn window_of_revalidation_does_not_grow_on_its_way_through_the_tiers() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    node(&clock, &store).await.insert(&key(), "old".to_owned()).await.unwrap();
    clock.advance(110 * SECOND);
    let one = node(&clock, &store).await;
    assert_eq!(fail(&one).await.unwrap(), "old");
    settle().await;
    clock.advance(11 * SECOND);
    let two = node(&clock, &store).await;
    let slow = || async {
        tokio::task::yield_now().await;
        Ok::<_, io::Error>("new".to_owned())
    };
    assert_eq!(two.get_or_load(&key(), slow).await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn stale_value_is_not_served_past_its_end_while_a_slow_load_goes_on() {
    let cache: Texts = Cache::builder("test")
        .clock(Clock::tokio())
        .time_to_live(10 * SECOND)
        .stale_if_error(SECOND)
        .soft_timeout(SECOND / 10)
        .build()
        .unwrap();
    cache.insert(&key(), "old".to_owned()).await.unwrap();
    tokio::time::sleep(21 * SECOND / 2).await;
    let slow = || async {
        tokio::time::sleep(20 * SECOND).await;
        Ok::<_, io::Error>("new".to_owned())
    };
    assert_eq!(cache.get_or_load(&key(), slow).await.unwrap(), "old");
    tokio::time::sleep(SECOND).await;
    assert_eq!(load(&cache, "unused").await.unwrap(), "new");
}

#[tokio::test]
async fn stale_value_is_served_at_once_within_its_window_only_though_a_load_goes_on() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let one = node(&clock, &store).await;
    one.insert(&key(), "old".to_owned()).await.unwrap();
    clock.advance(117 * SECOND);
    let two = node(&clock, &store).await;
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let slow = || async {
        may_go_on.await.unwrap();
        Ok::<_, io::Error>("new".to_owned())
    };
    assert_eq!(two.get_or_load(&key(), slow).await.unwrap(), "old");
    clock.advance(2 * SECOND);
    assert_eq!(load(&two, "unused").await.unwrap(), "old");
    clock.advance(2 * SECOND);
    let waiting = tokio::spawn(async move { load(&two, "unused").await });
    settle().await;
    go_on.send(()).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn stale_value_that_was_removed_is_not_served_while_a_slow_load_goes_on() {
    let clock = Clock::manual();
    let cache = settings(&clock).soft_timeout(Duration::from_millis(20)).build().unwrap();
    cache.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
    clock.advance(150 * SECOND);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    // It does not name the tag, and so knows nothing of its removal.
    let slow = || async {
        may_go_on.await.unwrap();
        Ok::<_, io::Error>("new".to_owned())
    };
    assert_eq!(cache.get_or_load(&key(), slow).await.unwrap(), "old");
    cache.remove_by_tag("tag").await.unwrap();
    let waiting = tokio::spawn(async move { load(&cache, "unused").await });
    settle().await;
    go_on.send(()).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "new");
}

#[tokio::test]
async fn expiry_ends_the_throttle_of_a_load_that_failed_before_it() {
    for how in 0..3 {
        let clock = Clock::manual();
        let cache = settings(&clock).refresh_ahead().build().unwrap();
        cache.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
        clock.advance(91 * SECOND);
        assert_eq!(fail(&cache).await.unwrap(), "old");
        settle().await;
        for time in ["fresh", "stale"] {
            match how {
                0 => cache.expire(&key()).await.unwrap(),
                1 => cache.expire_by_tag("tag").await.unwrap(),
                _ => cache.expire_all().await.unwrap(),
            }
            let loads = cache.stats().loads;
            assert_eq!(fail(&cache).await.unwrap(), "old", "expired by way {how} when {time}");
            assert_eq!(cache.stats().loads, loads + 1, "expired by way {how} when {time}");
            // And is left alone after that.
            assert_eq!(fail(&cache).await.unwrap(), "old", "expired by way {how} when {time}");
            assert_eq!(cache.stats().loads, loads + 1, "expired by way {how} when {time}");
        }
        clock.advance(30 * SECOND);
        assert_eq!(load(&cache, "new").await.unwrap(), "new", "expired by way {how}");
    }
}

#[tokio::test]
async fn expiry_on_another_node_ends_the_throttle_of_a_load_that_failed_before_it() {
    for (how, second) in [0, 1, 2].into_iter().flat_map(|how| [(how, 91), (how, 150)]) {
        let clock = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let build = || settings(&clock).refresh_ahead().remote(store.clone()).build();
        let (one, two) = (build().await.unwrap(), build().await.unwrap());
        one.insert_tagged(&key(), &["tag"], "old".to_owned()).await.unwrap();
        clock.advance(second * SECOND);
        for _ in 0..2 {
            // What is fresh the store confirms first, and the second loads ahead.
            assert_eq!(fail(&two).await.unwrap(), "old");
            settle().await;
        }
        assert_eq!(two.stats().load_failures, 1);
        match how {
            0 => one.expire(&key()).await.unwrap(),
            1 => one.expire_by_tag("tag").await.unwrap(),
            _ => one.expire_all().await.unwrap(),
        }
        for failures in [2, 2, 2] {
            clock.advance(STALENESS);
            assert_eq!(fail(&two).await.unwrap(), "old", "expired by way {how} at {second} s");
            assert_eq!(two.stats().load_failures, failures, "expired by way {how} at {second} s");
        }
        clock.advance(30 * SECOND);
        assert_eq!(load(&two, "new").await.unwrap(), "new", "expired by way {how} at {second} s");
    }
}

#[tokio::test]
async fn refresh_that_fails_is_an_error_and_leaves_the_value() {
    let fails = |_| async { Err::<String, _>(io::Error::other("the source is down")) };
    let nothing = |builder: CacheBuilder<String>| builder;
    let says_no = |builder: CacheBuilder<String>| builder.stale_if_error(SECOND).serve_stale_if(|_| false);
    for change in [nothing as fn(CacheBuilder<String>) -> CacheBuilder<String>, says_no] {
        let cache = change(Cache::builder("test").clock(Clock::manual())).build().unwrap();
        load(&cache, "old").await.unwrap();
        assert_eq!(cache.refresh(&key(), &[], fails).await.unwrap_err().kind(), ErrorKind::Load);
        assert_eq!(cache.get(&key()).await.as_deref(), Some("old"));
        assert_eq!(cache.stats().stale_hits, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn stale_value_stands_in_for_a_refresh_with_those_who_joined_it_and_not_with_who_wanted_it() {
    let clock = Clock::manual();
    let cache = settings(&clock).soft_timeout(SECOND).build().unwrap();
    load(&cache, "old").await.unwrap();
    clock.advance(150 * SECOND);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let refreshing = tokio::spawn({
        let cache = cache.clone();
        async move {
            let fails = |_| async {
                may_go_on.await.unwrap();
                Err::<String, _>(io::Error::other("the source is down"))
            };
            cache.refresh(&key(), &[], fails).await
        }
    });
    settle().await;
    assert_eq!(load(&cache, "unused").await.unwrap(), "old", "after the soft time-out");
    go_on.send(()).unwrap();
    assert_eq!(refreshing.await.unwrap().unwrap_err().kind(), ErrorKind::Load);
    // As after every load that failed.
    assert_eq!(load(&cache, "unused").await.unwrap(), "old");
    clock.advance(30 * SECOND);
    assert_eq!(load(&cache, "new").await.unwrap(), "new");
}

#[tokio::test]
async fn refresh_leaves_nothing_that_its_loader_did_not_find_or_that_could_not_be_replaced() {
    let none = || Loaded::<String>::not_found().time_to_live(Duration::ZERO);
    let unstored = || Loaded::do_not_store("new".to_owned());
    for answer in [none as fn() -> Loaded<String>, unstored] {
        let clock = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
        load(&one, "old").await.unwrap();
        settle().await;
        let _ = one.refresh(&key(), &[], move |_| async move { Ok::<_, io::Error>(answer()) }).await;
        settle().await;
        assert_eq!((one.get(&key()).await, two.get(&key()).await), (None, None));
    }
    // What cannot be written is not to be read again, as after an insertion.
    for fails_to_read in [false, true] {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let cache = settings(&clock).remote(store.clone()).build().await.unwrap();
        load(&cache, "old").await.unwrap();
        settle().await;
        if fails_to_read {
            store.fail_reads(1);
        }
        store.fail_writes(1);
        let new = |_| async { Ok::<_, io::Error>("new".to_owned()) };
        assert_eq!(cache.refresh(&key(), &[], new).await.unwrap(), "new");
        settle().await;
        assert_eq!(cache.get(&key()).await.as_deref(), Some("new"));
        clock.advance(STALENESS);
        assert_eq!(cache.get(&key()).await, None, "{fails_to_read}");
    }
}

// What was replaced, or is known to be over, does not come back.

async fn answer(cache: &Texts, loaded: Loaded<String>) -> Result<String, Error> {
    cache.get_or_load(&key(), move || async move { Ok::<_, io::Error>(loaded) }).await
}

async fn refresh(cache: &Texts, loaded: Loaded<String>) -> Result<String, Error> {
    cache.refresh(&key(), &[], move |_| async move { Ok::<_, io::Error>(loaded) }).await
}

/// A refresh under way, and how its load is to end.
fn refreshing(
    cache: &Texts,
) -> (oneshot::Sender<io::Result<String>>, tokio::task::JoinHandle<Result<String, Error>>) {
    let (end, ended) = oneshot::channel::<io::Result<String>>();
    let cache = cache.clone();
    let load = |_| async move { ended.await.map_err(io::Error::other)? };
    (end, tokio::spawn(async move { cache.refresh(&key(), &[], load).await }))
}

fn with(value: &str) -> io::Result<String> {
    Ok(value.to_owned())
}

/// Both ways to remember: in memory alone, and with a store behind it.
async fn alone_and_with_a_store(
    set: impl Fn(CacheBuilder<String>) -> CacheBuilder<String>,
) -> [(Clock, Texts); 2] {
    let clock = Clock::manual();
    let alone = set(settings(&clock)).build().unwrap();
    let other = Clock::manual();
    let store = MemoryStore::new(other.clone());
    let with_store = set(settings(&other)).remote(store).max_staleness(1_000 * SECOND);
    let with_store = with_store.build().await.unwrap();
    [(clock, alone), (other, with_store)]
}

#[tokio::test]
async fn who_was_told_of_a_refresh_does_not_read_what_it_replaced() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let builder = settings(&clock).remote(store.clone());
    let cache = builder.max_staleness(1_000 * SECOND).build().await.unwrap();
    load(&cache, "old").await.unwrap();
    settle().await;
    let mut held = store.hold(Step::BeforeInvalidation);
    let refreshing = tokio::spawn({
        let cache = cache.clone();
        async move { refresh(&cache, Loaded::do_not_store("new".to_owned())).await }
    });
    held.reached().await;
    assert_eq!(refreshing.await.unwrap().unwrap(), "new");
    // The store still has what was there before.
    let before = cache.stats().remote_failures;
    let reading = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&key()).await }
    });
    let inserting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.insert(&Key::public("other"), "other".to_owned()).await }
    });
    settle().await;
    assert!(!reading.is_finished() && inserting.is_finished(), "nobody else is held up");
    held.go_on();
    assert_eq!((reading.await.unwrap(), cache.stats().owed), (None, 0));
    assert_eq!(cache.stats().remote_failures, before);
    assert_eq!(cache.get(&key()).await, None);
}

#[tokio::test]
async fn refresh_that_takes_longer_than_max_staleness_replaces_what_was_read_meanwhile() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&two, "old").await.unwrap();
    settle().await;
    let (end, refreshed) = refreshing(&one);
    settle().await;
    clock.advance(2 * STALENESS);
    assert_eq!(load(&one, "unused").await.unwrap(), "old");
    end.send(with("new")).unwrap();
    assert_eq!(refreshed.await.unwrap().unwrap(), "new");
    settle().await;
    assert_eq!(load(&one, "unused").await.unwrap(), "new");
    assert_eq!(two.get(&key()).await.as_deref(), Some("new"));
}

/// However the second one ends: what the first has found out does not give way to what was there before it.
#[tokio::test]
async fn refresh_that_is_overtaken_by_one_that_fails_does_not_bring_back_what_was_there() {
    for is_first_to_end in [true, false] {
        for (_, cache) in alone_and_with_a_store(|builder| builder).await {
            load(&cache, "old").await.unwrap();
            settle().await;
            let (end, first) = refreshing(&cache);
            settle().await;
            let (end_second, second) = refreshing(&cache);
            settle().await;
            let succeeds = || end.send(with("new")).unwrap();
            let fails = || end_second.send(Err(io::Error::other("down"))).unwrap();
            if is_first_to_end {
                succeeds();
                settle().await;
                fails();
            } else {
                fails();
                settle().await;
                succeeds();
            }
            assert_eq!(first.await.unwrap().unwrap(), "new");
            assert_eq!(second.await.unwrap().unwrap_err().kind(), ErrorKind::Load);
            settle().await;
            assert_ne!(cache.get(&key()).await.as_deref(), Some("old"), "{is_first_to_end}");
            assert_eq!(load(&cache, "newer").await.unwrap(), "newer", "{is_first_to_end}");
        }
    }
}

#[tokio::test]
async fn refresh_that_is_overtaken_by_one_that_is_successful_leaves_that_ones_value() {
    for (_, cache) in alone_and_with_a_store(|builder| builder).await {
        load(&cache, "old").await.unwrap();
        settle().await;
        let (end, first) = refreshing(&cache);
        settle().await;
        let (end_second, second) = refreshing(&cache);
        settle().await;
        end.send(with("first")).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), "first");
        assert_eq!(cache.get_local(&key()), None, "what was refreshed is not served until the second ends");
        cache.get(&Key::public("other")).await;
        settle().await;
        end_second.send(with("second")).unwrap();
        assert_eq!(second.await.unwrap().unwrap(), "second");
        settle().await;
        assert_eq!(cache.get(&key()).await.as_deref(), Some("second"));
        assert_eq!(cache.stats().owed, 0);
    }
}

#[tokio::test]
async fn who_was_told_of_a_refresh_does_not_read_what_it_replaced_while_another_goes_on() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let cache = settings(&clock).remote(store.clone()).max_staleness(STALENESS).build().await.unwrap();
    for takes_too_long in [false, true] {
        load(&cache, "old").await.unwrap();
        settle().await;
        let (end, first) = refreshing(&cache);
        settle().await;
        let (end_second, second) = refreshing(&cache);
        settle().await;
        end.send(with("first")).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), "first");
        assert_eq!(cache.get(&key()).await, None, "the store still has it, and is not asked for it");
        if takes_too_long {
            clock.advance(2 * STALENESS);
            assert_eq!(load(&cache, "third").await.unwrap(), "third", "nor by a load in its place");
            settle().await;
            assert_eq!(cache.get(&key()).await.as_deref(), Some("third"));
        }
        end_second.send(with("second")).unwrap();
        assert_eq!(second.await.unwrap().unwrap(), "second");
        settle().await;
        let left = cache.get(&key()).await;
        assert_eq!(left.as_deref(), (!takes_too_long).then_some("second"), "{takes_too_long}");
        assert_eq!(cache.stats().owed, 0);
        cache.remove(&key()).await.unwrap();
    }
}

/// The value for those who do not wait, and the one that stands in for a failure, are from before as well.
#[tokio::test]
async fn load_that_is_to_replace_a_value_does_not_hand_it_out_meanwhile() {
    let clock = Clock::tokio();
    tokio::time::pause();
    let soft = |builder: CacheBuilder<String>| builder.clock(clock.clone()).soft_timeout(SECOND / 10);
    let cache: Texts = soft(settings(&clock)).build().unwrap();
    load(&cache, "old").await.unwrap();
    tokio::time::advance(101 * SECOND).await;
    let (end, first) = refreshing(&cache);
    settle().await;
    let (end_second, _second) = refreshing(&cache);
    settle().await;
    let joining = || {
        tokio::spawn({
            let cache = cache.clone();
            async move { load(&cache, "unused").await }
        })
    };
    tokio::time::sleep(SECOND).await;
    end.send(with("first")).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "first");
    let joined = joining();
    tokio::time::sleep(SECOND).await;
    assert!(!joined.is_finished());
    end_second.send(with("second")).unwrap();
    assert_eq!(joined.await.unwrap().unwrap(), "second");
}

/// A predicate of the caller's runs between the failure and the landing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn value_that_is_replaced_while_another_load_fails_does_not_stand_in_for_it() {
    let (asked, is_asked) = std::sync::mpsc::channel();
    let (answer, answers) = std::sync::mpsc::channel::<()>();
    let answers = std::sync::Mutex::new(answers);
    let may_stand_in = move |_: &Error| {
        asked.send(()).unwrap();
        answers.lock().unwrap().recv_timeout(10 * SECOND).is_ok()
    };
    let cache: Texts = settings(&Clock::manual()).serve_stale_if(may_stand_in).build().unwrap();
    load(&cache, "old").await.unwrap();
    let (end, first) = refreshing(&cache);
    while !cache.explain(&key()).await.is_loading {
        tokio::task::yield_now().await;
    }
    let (end_second, second) = refreshing(&cache);
    end_second.send(Err(io::Error::other("down"))).unwrap();
    is_asked.recv_timeout(10 * SECOND).unwrap();
    end.send(with("first")).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "first");
    answer.send(()).unwrap();
    assert_eq!(second.await.unwrap().unwrap_err().kind(), ErrorKind::Load);
    assert_eq!(cache.get(&key()).await, None);
}

#[tokio::test]
async fn load_that_was_relieved_and_fails_late_leaves_what_took_its_place() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let cache = settings(&clock).remote(store.clone()).max_staleness(STALENESS).build().await.unwrap();
    load(&cache, "old").await.unwrap();
    settle().await;
    let (end, first) = refreshing(&cache);
    settle().await;
    let (end_second, second) = refreshing(&cache);
    settle().await;
    end.send(with("first")).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "first");
    clock.advance(2 * STALENESS);
    assert_eq!(load(&cache, "third").await.unwrap(), "third");
    settle().await;
    end_second.send(Err(io::Error::other("down"))).unwrap();
    assert_eq!(second.await.unwrap().unwrap_err().kind(), ErrorKind::Load);
    settle().await;
    assert_eq!(cache.get_local(&key()).as_deref(), Some("third"));
    assert_eq!(node(&clock, &store).await.get(&key()).await.as_deref(), Some("third"));
}

#[tokio::test]
async fn what_is_inserted_while_a_refresh_goes_on_stays_however_that_ends() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    load(&one, "old").await.unwrap();
    settle().await;
    let (end, first) = refreshing(&one);
    settle().await;
    let (end_second, second) = refreshing(&one);
    settle().await;
    end.send(with("first")).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "first");
    one.insert(&key(), "inserted".to_owned()).await.unwrap();
    end_second.send(Err(io::Error::other("down"))).unwrap();
    assert_eq!(second.await.unwrap().unwrap_err().kind(), ErrorKind::Load);
    settle().await;
    assert_eq!(one.get(&key()).await.as_deref(), Some("inserted"));
    assert_eq!(two.get(&key()).await.as_deref(), Some("inserted"));
    assert_eq!(one.stats().owed, 0);
}

/// What was replaced is not what an expiry, here or elsewhere, leaves to stand in for a failure.
#[tokio::test]
async fn what_a_refresh_replaced_does_not_come_back_when_the_key_is_expired_or_removed() {
    for (is_expired, by_another) in [(true, false), (true, true), (false, true)] {
        let clock = Clock::manual();
        let (shared, bus) = (MemoryStore::new(clock.clone()), MemoryBus::new());
        let node = || async {
            let builder = settings(&clock).error_throttle(Duration::ZERO).remote(shared.clone());
            builder.bus(bus.clone()).build().await.unwrap()
        };
        let (one, two) = (node().await, node().await);
        load(&one, "old").await.unwrap();
        settle().await;
        let (end, first) = refreshing(&one);
        settle().await;
        let (end_second, second) = refreshing(&one);
        settle().await;
        end.send(with("first")).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), "first");
        let by = if by_another { &two } else { &one };
        match is_expired {
            true => by.expire(&key()).await.unwrap(),
            false => by.remove(&key()).await.unwrap(),
        }
        settle().await;
        assert_eq!(one.get(&key()).await, None, "{is_expired} {by_another}");
        assert_eq!(fail(&one).await.unwrap_err().kind(), ErrorKind::Load, "{is_expired} {by_another}");
        end_second.send(with("second")).unwrap();
        assert_eq!(second.await.unwrap().unwrap(), "second");
        settle().await;
        assert_eq!(fail(&one).await.unwrap_err().kind(), ErrorKind::Load, "{is_expired} {by_another}");
        assert_eq!(one.stats().owed, 0);
        assert_eq!(load(&one, "newer").await.unwrap(), "newer");
        assert_eq!(one.shutdown(SECOND).await, 0);
    }
}

#[tokio::test]
async fn what_a_refresh_replaced_is_not_read_while_the_store_is_told_of_a_removal() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache: Texts = settings(&clock).remote(store.clone()).build().await.unwrap();
    load(&cache, "old").await.unwrap();
    settle().await;
    let (end, first) = refreshing(&cache);
    settle().await;
    let (_end_second, _second) = refreshing(&cache);
    settle().await;
    end.send(with("first")).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "first");
    let mut held = store.hold(Step::BeforeInvalidation);
    let removing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.remove(&key()).await }
    });
    held.reached().await;
    let reading = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&key()).await }
    });
    settle().await;
    held.go_on();
    assert_eq!(reading.await.unwrap(), None);
    removing.await.unwrap().unwrap();
    assert_eq!(cache.stats().owed, 0);
}

#[tokio::test]
async fn reader_does_not_put_back_what_was_replaced_while_another_refresh_goes_on() {
    let clock = Clock::manual();
    let shared = MemoryStore::new(clock.clone());
    let store = Stepped::new(shared.clone());
    load(&node(&clock, &shared).await, "old").await.unwrap();
    settle().await;
    let builder = settings(&clock).remote(store.clone());
    let cache: Texts = builder.max_staleness(1_000 * SECOND).build().await.unwrap();
    let (end, first) = refreshing(&cache);
    settle().await;
    let (_end_second, _second) = refreshing(&cache);
    settle().await;
    let mut held = store.hold(Step::ReadAnswered);
    let reading = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&key()).await }
    });
    held.reached().await;
    end.send(with("first")).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "first");
    held.go_on();
    assert_eq!(reading.await.unwrap().as_deref(), Some("old"), "who asked before may be told of it");
    assert_eq!(cache.get(&key()).await, None);
}

#[tokio::test]
async fn refusal_that_is_meant_is_answered_again_and_again_whatever_the_store_has() {
    let denies = |builder: CacheBuilder<String>| builder.serve_stale_if(|_| false);
    let mut all = Vec::from(alone_and_with_a_store(denies).await);
    all.extend(alone_and_with_a_store(|builder| denies(builder).error_throttle(Duration::ZERO)).await);
    all.extend(alone_and_with_a_store(|builder| builder.serve_stale_if(|_| panic!("who knows"))).await);
    for (clock, cache) in all {
        load(&cache, "old").await.unwrap();
        settle().await;
        clock.advance(110 * SECOND);
        assert_eq!(fail(&cache).await.unwrap(), "old", "while a load runs behind it");
        settle().await;
        for _ in 0..5 {
            clock.advance(SECOND);
            let slowly = || async {
                settle().await;
                Err::<String, _>(io::Error::other("forbidden"))
            };
            let refused = cache.get_or_load(&key(), slowly).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Load);
            settle().await;
        }
    }
}

#[tokio::test]
async fn answer_that_is_not_to_be_stored_ends_what_is_stale() {
    let none = || Loaded::not_found();
    let other = || Loaded::do_not_store("new".to_owned());
    // Not at all, and too short for a store that may take longer to answer.
    for (answers, life) in [(none as fn() -> Loaded<String>, 0), (other, 0), (none, 200)] {
        let never =
            |builder: CacheBuilder<String>| builder.negative_time_to_live(Duration::from_millis(life));
        for (clock, cache) in alone_and_with_a_store(never).await {
            load(&cache, "old").await.unwrap();
            settle().await;
            clock.advance(110 * SECOND);
            assert_eq!(answer(&cache, answers()).await.unwrap(), "old", "while a load runs behind it");
            settle().await;
            clock.advance(SECOND);
            assert_ne!(answer(&cache, answers()).await.ok().as_deref(), Some("old"));
            clock.advance(SECOND);
            assert_eq!(fail(&cache).await.unwrap_err().kind(), ErrorKind::Load, "nothing stands in");
        }
    }
}

#[tokio::test]
async fn answer_that_there_is_none_is_remembered_by_those_who_do_not_load() {
    for (_, cache) in alone_and_with_a_store(|builder| builder).await {
        assert!(answer(&cache, Loaded::not_found()).await.is_err());
        settle().await;
        let before = cache.stats();
        assert_eq!(cache.get(&key()).await, None);
        let after = cache.stats();
        let asked = |stats: &mcp_perf::cache::Stats| (stats.misses, stats.remote_misses, stats.remote_hits);
        assert_eq!((after.negative_hits, asked(&after)), (before.negative_hits + 1, asked(&before)));
    }
}

#[tokio::test]
async fn load_ahead_that_fails_costs_nobody_the_value_and_rests_whatever_became_of_it_in_the_store() {
    let ahead = |builder: CacheBuilder<String>| builder.refresh_ahead();
    let mut all = Vec::from(alone_and_with_a_store(ahead).await);
    all.extend(alone_and_with_a_store(|builder| ahead(builder).serve_stale_if(|_| false)).await);
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let flushed = settings(&clock).refresh_ahead().remote(store.clone()).max_staleness(1_000 * SECOND);
    all.push((clock, flushed.build().await.unwrap()));
    for (clock, cache) in all {
        load(&cache, "one").await.unwrap();
        settle().await;
        store.overwrite_all(b"");
        clock.advance(91 * SECOND);
        for _ in 0..10 {
            assert_eq!(fail(&cache).await.unwrap(), "one");
            settle().await;
        }
        assert_eq!(cache.stats().loads, 2);
    }
}

#[tokio::test]
async fn value_that_the_store_lost_is_served_for_as_long_as_it_may_be_though_its_load_fails() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let builder = settings(&clock).remote(store.clone()).max_staleness(1_000 * SECOND);
    let cache = builder.build().await.unwrap();
    load(&cache, "old").await.unwrap();
    settle().await;
    store.overwrite_all(b"");
    clock.advance(105 * SECOND);
    for _ in 0..3 {
        clock.advance(SECOND);
        assert_eq!(fail(&cache).await.unwrap(), "old");
        settle().await;
    }
}

#[tokio::test]
async fn stale_answers_are_counted_for_each_and_are_no_lookups_of_their_own() {
    let clock = Clock::manual();
    let cache = settings(&clock).stale_while_revalidate(Duration::ZERO).build().unwrap();
    load(&cache, "old").await.unwrap();
    clock.advance(110 * SECOND);
    let (end, ended) = oneshot::channel::<()>();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let (cache, ended) = (cache.clone(), Arc::clone(&ended));
            tokio::spawn(async move {
                let fails = move || async move {
                    let ended = ended.lock().unwrap().take().unwrap();
                    ended.await.unwrap();
                    Err::<String, _>(io::Error::other("down"))
                };
                cache.get_or_load(&key(), fails).await
            })
        })
        .collect();
    settle().await;
    end.send(()).unwrap();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "old");
    }
    let stats = cache.stats();
    assert_eq!((stats.stale_hits, stats.misses, stats.joined), (10, 11, 9));
    assert!((stats.hit_rate().unwrap() - 10.0 / 11.0).abs() < 1e-9, "{stats:?}");
}

#[tokio::test]
async fn what_was_made_to_expire_is_said_to_be_expired() {
    let clock = Clock::manual();
    let cache = local(&clock);
    load(&cache, "old").await.unwrap();
    cache.expire(&key()).await.unwrap();
    assert!(matches!(cache.explain(&key()).await.local, LocalState::Expired(_)));
}

/// Two nodes with a bus: what one makes to expire is stale at the other, and nothing more.
#[tokio::test(start_paused = true)]
async fn what_another_node_made_to_expire_stands_in_where_store_and_source_are_away() {
    let clock = Clock::tokio();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let bus = mcp_perf::testing::MemoryBus::new();
    let node = async || {
        let builder = settings(&clock).remote(store.clone()).bus(bus.clone());
        builder.build().await.unwrap()
    };
    let (one, two) = (node().await, node().await);
    let get = async |cache: &Texts, name: &'static str, value: Option<&'static str>| {
        let load = move || async move { value.map(str::to_owned).ok_or_else(|| io::Error::other("down")) };
        cache.get_or_load_tagged(&Key::public(name), &["tag"], load).await
    };
    get(&two, "a", Some("old")).await.unwrap();
    get(&two, "b", Some("old")).await.unwrap();
    settle().await;
    one.expire_by_tag("tag").await.unwrap();
    tokio::time::sleep(SECOND).await;
    // It hears the stamp that goes with it.
    assert_eq!(get(&two, "b", Some("new")).await.unwrap(), "new");
    settle().await;
    store.fail_reads(1_000);
    assert_eq!(get(&two, "a", None).await.unwrap(), "old");
}

/// A load that came between has taken its place, so the removal has barred that one.
#[tokio::test]
async fn refresh_whose_place_was_taken_stores_nothing_over_a_later_removal() {
    let clock = Clock::manual();
    let cache = settings(&clock).loader_tags().build().unwrap();
    load(&cache, "old").await.unwrap();
    let (end, refreshed) = refreshing(&cache);
    settle().await;
    cache.remove(&Key::public("another")).await.unwrap();
    cache.remove_by_tag("some tag").await.unwrap();
    cache.remove(&key()).await.unwrap();
    // That one was fenced. Another begins, and is displaced by a load.
    end.send(with("from before")).unwrap();
    refreshed.await.unwrap().unwrap();
    let (end, refreshed) = refreshing(&cache);
    settle().await;
    cache.remove_by_tag("some tag").await.unwrap();
    assert_eq!(load(&cache, "loaded").await.unwrap(), "loaded");
    cache.remove(&key()).await.unwrap();
    end.send(with("from before")).unwrap();
    assert_eq!(refreshed.await.unwrap().unwrap(), "from before");
    assert_eq!(cache.get(&key()).await, None);
}

#[tokio::test]
async fn refresh_that_begins_while_another_is_told_to_the_store_is_the_one_that_stays() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache: Texts = settings(&clock).remote(store.clone()).build().await.unwrap();
    load(&cache, "old").await.unwrap();
    settle().await;
    let mut held = store.hold(Step::BeforeWrite);
    let (end, first) = refreshing(&cache);
    end.send(with("first")).unwrap();
    held.reached().await;
    assert_eq!(first.await.unwrap().unwrap(), "first");
    let (end, second) = refreshing(&cache);
    settle().await;
    held.go_on();
    settle().await;
    end.send(with("second")).unwrap();
    assert_eq!(second.await.unwrap().unwrap(), "second");
    settle().await;
    assert_ne!(cache.get(&key()).await.as_deref(), Some("first"));
    assert_ne!(cache.get(&key()).await.as_deref(), Some("old"));
}

#[tokio::test]
async fn refresh_that_nobody_waits_for_any_more_does_not_bring_back_what_another_replaced() {
    let abandons = |builder: CacheBuilder<String>| builder.drop_abandoned_loads(true);
    for (_, cache) in alone_and_with_a_store(abandons).await {
        load(&cache, "old").await.unwrap();
        settle().await;
        let (end, first) = refreshing(&cache);
        settle().await;
        let (end_second, second) = refreshing(&cache);
        settle().await;
        end.send(with("new")).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), "new");
        second.abort();
        settle().await;
        assert_ne!(cache.get(&key()).await.as_deref(), Some("old"));
        // It answers for what was replaced, and goes on.
        end_second.send(with("newer")).unwrap();
        settle().await;
        assert_eq!(cache.get(&key()).await.as_deref(), Some("newer"));
        assert_eq!(cache.stats().abandoned, 0);
    }
}
