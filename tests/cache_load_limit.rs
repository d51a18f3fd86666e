//! A cache that runs no more than so many loads at once: whose turn it is, and that nobody waits for ever.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, CacheBuilder, Key},
    clock::Clock,
    testing::MemoryStore,
};
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Numbers = Cache<usize>;

/// A cache of four loads at once, whose time is tokio's.
fn limited() -> CacheBuilder<usize> {
    Cache::builder("test").clock(Clock::tokio()).max_loads(4)
}

/// What runs, what ran at most at once, and which keys were loaded in which order.
#[derive(Clone, Default)]
struct Source {
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<usize>>>,
}

impl Source {
    /// A load of a second.
    async fn load(self, number: usize) -> io::Result<usize> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.order.lock().unwrap().push(number);
        sleep(SECOND).await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(number)
    }

    fn ask(&self, cache: &Numbers, number: usize) -> JoinHandle<Result<usize, Error>> {
        let (cache, source) = (cache.clone(), self.clone());
        tokio::spawn(async move { cache.get_or_load(&key(number), move || source.load(number)).await })
    }
}

fn key(number: usize) -> Key<'static> {
    Key::public("number").part(&number.to_string())
}

/// Lets every task that can run do so, until none can, at one time.
async fn settle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_loads_run_at_once_and_all_of_them_in_their_turn() {
    let (cache, source) = (limited().build().unwrap(), Source::default());
    let mut callers = Vec::new();
    for number in 0..20 {
        callers.push(source.ask(&cache, number));
        settle().await;
    }
    let stats = cache.stats();
    assert_eq!((stats.loading, stats.queued, stats.loads), (20, 16, 4));
    for (number, caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.await.unwrap().unwrap(), number);
    }
    assert_eq!(source.most.load(Ordering::SeqCst), 4);
    assert_eq!(*source.order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_eq!((cache.stats().queued, cache.stats().loads), (0, 20));
}

#[tokio::test(start_paused = true)]
async fn load_whose_turn_does_not_come_in_time_fails_and_its_loader_never_runs() {
    let cache = limited().load_timeout(5 * SECOND / 2).build().unwrap();
    let source = Source::default();
    let callers: Vec<_> = (0..20).map(|number| source.ask(&cache, number)).collect();
    let mut outcomes = Vec::new();
    for caller in callers {
        outcomes.push(caller.await.unwrap().map_err(|error| error.kind()));
    }
    // Two rounds of four come to their end, and the third is cut short.
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 8);
    assert!(outcomes[8..].iter().all(|outcome| *outcome == Err(ErrorKind::TimedOut)));
    assert_eq!((source.order.lock().unwrap().len(), cache.stats().loads), (12, 12));
    assert_eq!((cache.stats().load_failures, cache.stats().queued), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn refreshes_do_not_keep_those_waiting_who_ask_for_what_is_missing() {
    let cache = limited().time_to_live(10 * SECOND).stale_while_revalidate(60 * SECOND).build().unwrap();
    let source = Source::default();
    for number in 0..50 {
        cache.insert(&key(number), number).await.unwrap();
    }
    sleep(11 * SECOND).await;
    for number in 0..50 {
        assert_eq!(source.ask(&cache, number).await.unwrap().unwrap(), number, "stale, at once");
    }
    settle().await;
    assert_eq!((cache.stats().loads, cache.stats().queued), (2, 48));
    let clock = Clock::tokio();
    let missing: Vec<_> = (100..104).map(|number| source.ask(&cache, number)).collect();
    for caller in missing {
        caller.await.unwrap().unwrap();
    }
    // Two of them at once, and two more beside refreshes: as if there were no more than half of the places.
    assert!(clock.now().since(Default::default()) <= 2 * SECOND + MILLISECOND);
    sleep(60 * SECOND).await;
    assert_eq!(cache.stats().loads, 54, "refreshes are not starved either");
    assert_eq!(source.most.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn loader_that_asks_for_another_key_does_so_on_its_own_place() {
    let cache = limited().max_loads(1).build().unwrap();
    let inner = {
        let cache = cache.clone();
        move || async move {
            let keys = [key(2), key(3)];
            let two = cache.get_or_load(&keys[0], || async { Ok::<_, io::Error>(2) }).await?;
            let many = |missing: Vec<Key<'static>>| async move {
                Ok::<_, io::Error>(missing.into_iter().map(|key| (key, Ok::<_, io::Error>(3))))
            };
            let three = cache.get_or_load_many(&keys, &[], many).await.pop().unwrap()?;
            Ok::<_, Error>(two + three)
        }
    };
    assert_eq!(cache.get_or_load(&key(1), inner).await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn loader_that_asks_for_a_key_in_the_queue_does_not_wait_for_its_own_place() {
    let many = |missing: Vec<Key<'static>>| async move {
        Ok::<_, io::Error>(missing.into_iter().map(|key| (key, Ok::<_, io::Error>(2))))
    };
    for asks_for_many in [false, true] {
        let (cache, source) = (limited().max_loads(1).build().unwrap(), Source::default());
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let outer = tokio::spawn({
            let (cache, inner, source) = (cache.clone(), cache.clone(), source.clone());
            async move {
                let load = move || async move {
                    may_go_on.await.unwrap();
                    if asks_for_many {
                        return inner.get_or_load_many(&[key(3), key(2)], &[], many).await.pop().unwrap();
                    }
                    inner.get_or_load(&key(2), move || source.load(2)).await
                };
                cache.get_or_load(&key(1), load).await
            }
        });
        settle().await;
        let other = source.ask(&cache, 2);
        settle().await;
        assert_eq!(cache.stats().queued, 1);
        let clock = Clock::tokio();
        go_on.send(()).unwrap();
        assert_eq!(outer.await.unwrap().unwrap(), 2);
        assert_eq!(other.await.unwrap().unwrap(), 2);
        assert!(clock.now().since(Default::default()) <= SECOND + MILLISECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn refreshes_that_a_loader_sets_off_keep_to_the_limit() {
    let cache = limited().time_to_live(10 * SECOND).stale_while_revalidate(60 * SECOND).build().unwrap();
    let source = Source::default();
    for number in 0..50 {
        cache.insert(&key(number), number).await.unwrap();
    }
    sleep(11 * SECOND).await;
    let load = {
        let (cache, source) = (cache.clone(), source.clone());
        move || async move {
            for number in 0..50 {
                let source = source.clone();
                cache.get_or_load(&key(number), move || source.load(number)).await?;
            }
            Ok::<_, Error>(100)
        }
    };
    assert_eq!(cache.get_or_load(&key(100), load).await.unwrap(), 100);
    sleep(30 * SECOND).await;
    assert_eq!(source.most.load(Ordering::SeqCst), 2, "half of the places");
}

/// Only what is read from the remote tier tells that it is stale, and by then the load has begun to wait.
#[tokio::test(start_paused = true)]
async fn what_a_loader_is_answered_stale_keeps_to_the_limit_too() {
    let store = MemoryStore::new(Clock::tokio());
    let node =
        || limited().time_to_live(10 * SECOND).stale_while_revalidate(60 * SECOND).remote(store.clone());
    let (one, two) = (node().build().await.unwrap(), node().build().await.unwrap());
    let source = Source::default();
    for number in 0..50 {
        one.insert(&key(number), number).await.unwrap();
    }
    sleep(11 * SECOND).await;
    let load = {
        let (two, source) = (two.clone(), source.clone());
        move || async move {
            for number in 0..50 {
                let source = source.clone();
                two.get_or_load(&key(number), move || source.load(number)).await?;
            }
            Ok::<_, Error>(100)
        }
    };
    assert_eq!(two.get_or_load(&key(100), load).await.unwrap(), 100);
    sleep(30 * SECOND).await;
    assert_eq!((two.stats().loads, source.most.load(Ordering::SeqCst)), (51, 2));
}

#[tokio::test(start_paused = true)]
async fn refresh_that_somebody_comes_to_wait_for_does_so_among_those_who_are_waited_for() {
    let cache = limited().time_to_live(10 * SECOND).stale_while_revalidate(5 * SECOND).build().unwrap();
    let source = Source::default();
    for number in 0..50 {
        cache.insert(&key(number), number).await.unwrap();
    }
    sleep(11 * SECOND).await;
    for number in 0..50 {
        source.ask(&cache, number).await.unwrap().unwrap();
    }
    sleep(5 * SECOND).await;
    let clock = Clock::tokio();
    source.ask(&cache, 49).await.unwrap().unwrap();
    assert!(clock.now().since(Default::default()) <= SECOND + MILLISECOND, "behind all refreshes");
}

#[tokio::test(start_paused = true)]
async fn loader_waits_for_no_place_where_others_were_answered_with_what_is_over_since() {
    let cache = limited().max_loads(1).time_to_live(10 * SECOND).stale_if_error(SECOND);
    let cache = cache.soft_timeout(SECOND / 10).build().unwrap();
    let source = Source::default();
    cache.insert(&key(2), 0).await.unwrap();
    sleep(21 * SECOND / 2).await;
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let outer = tokio::spawn({
        let (cache, inner) = (cache.clone(), cache.clone());
        async move {
            let load = move || async move {
                may_go_on.await.unwrap();
                inner.get_or_load(&key(2), || async { Ok::<_, io::Error>(3) }).await
            };
            cache.get_or_load(&key(1), load).await
        }
    });
    settle().await;
    assert_eq!(source.ask(&cache, 2).await.unwrap().unwrap(), 0, "stale");
    assert_eq!(cache.stats().queued, 1);
    sleep(SECOND).await;
    let clock = Clock::tokio();
    go_on.send(()).unwrap();
    assert_eq!(outer.await.unwrap().unwrap(), 2);
    assert!(clock.now().since(Default::default()) <= SECOND + MILLISECOND);
}

#[tokio::test(start_paused = true)]
async fn loader_is_not_called_before_it_has_a_place() {
    let (cache, source) = (limited().max_loads(1).build().unwrap(), Source::default());
    let first = source.ask(&cache, 1);
    settle().await;
    let called = Arc::new(AtomicUsize::new(0));
    let count = || {
        let called = Arc::clone(&called);
        move || called.fetch_add(1, Ordering::SeqCst)
    };
    let one = tokio::spawn({
        let (cache, count) = (cache.clone(), count());
        async move {
            let load = move || {
                count();
                std::future::ready(Ok::<_, io::Error>(2))
            };
            cache.get_or_load(&key(2), load).await
        }
    });
    let many = tokio::spawn({
        let (cache, count) = (cache.clone(), count());
        async move {
            let load = move |missing: Vec<Key<'static>>| {
                count();
                let rows = missing.into_iter().map(|key| (key, Ok::<_, io::Error>(3)));
                std::future::ready(Ok::<_, io::Error>(rows.collect::<Vec<_>>()))
            };
            cache.get_or_load_many(&[key(3)], &[], load).await.pop().unwrap()
        }
    });
    settle().await;
    assert_eq!((called.load(Ordering::SeqCst), cache.stats().queued), (0, 2));
    assert_eq!(first.await.unwrap().unwrap(), 1);
    assert_eq!((one.await.unwrap().unwrap(), many.await.unwrap().unwrap()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn many_keys_take_one_place_and_a_panic_gives_it_back() {
    let (cache, source) = (limited().max_loads(1).build().unwrap(), Source::default());
    let keys: Vec<_> = (0..10).map(key).collect();
    let load = |missing: Vec<Key<'static>>| async move {
        sleep(SECOND).await;
        Ok::<_, io::Error>(missing.into_iter().map(|key| (key, Ok::<_, io::Error>(1))))
    };
    assert!(cache.get_or_load_many(&keys, &[], load).await.iter().all(Result::is_ok));
    let panics = || async { if true { panic!("in a loader") } else { Ok::<usize, io::Error>(1) } };
    let error = cache.get_or_load(&key(100), panics).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked);
    assert_eq!(source.ask(&cache, 101).await.unwrap().unwrap(), 101);
}

#[tokio::test]
async fn limit_has_to_let_one_load_run() {
    let error = limited().max_loads(0).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("max_loads"), "{error}");
    assert!(limited().max_loads(usize::MAX).build().is_err());
}

/// The place of the load that it came from is another's by then.
#[tokio::test(start_paused = true)]
async fn refresh_of_another_cache_that_nobody_waits_for_takes_places_of_its_own() {
    let limited: Numbers = limited().max_loads(1).build().unwrap();
    let other: Numbers = Cache::builder("other")
        .clock(Clock::tokio())
        .time_to_live(SECOND)
        .stale_while_revalidate(60 * SECOND)
        .build()
        .unwrap();
    let source = Source::default();
    for number in 0..4 {
        other.insert(&key(number), number).await.unwrap();
    }
    sleep(2 * SECOND).await;
    for number in 0..4 {
        let (within, behind, source) = (other.clone(), limited.clone(), source.clone());
        let refresh =
            move || async move { behind.get_or_load(&key(100 + number), move || source.load(number)).await };
        let load = move || async move { within.get_or_load(&key(number), refresh).await };
        assert_eq!(limited.get_or_load(&key(number), load).await.unwrap(), number);
    }
    sleep(10 * SECOND).await;
    assert_eq!((source.order.lock().unwrap().len(), source.most.load(Ordering::SeqCst)), (4, 1));
}
