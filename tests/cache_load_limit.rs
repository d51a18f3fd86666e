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
};
use tokio::{task::JoinHandle, time::sleep};

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
