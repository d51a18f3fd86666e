//! Loads whose callers have all gone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

mod support;

use std::{
    future::pending,
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
    cache::{Cache, CacheBuilder, Key, Loaded},
    clock::Clock,
    testing::MemoryStore,
};
use support::stepped::{Step, Stepped};

const SECOND: Duration = Duration::from_secs(1);

/// How many loaders began, and how many are under way.
#[derive(Clone, Default)]
struct Loads(Arc<(AtomicUsize, AtomicUsize)>);

struct Load(Loads);

impl Loads {
    fn begin(&self) -> Load {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        self.0.1.fetch_add(1, Ordering::Relaxed);
        Load(self.clone())
    }

    fn now(&self) -> (usize, usize) {
        (self.0.0.load(Ordering::Relaxed), self.0.1.load(Ordering::Relaxed))
    }

    /// A loader that never ends by itself.
    async fn endless(self) -> io::Result<u32> {
        let _load = self.begin();
        pending().await
    }

    async fn quick(self) -> io::Result<u32> {
        let _load = self.begin();
        Ok(7)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.0.1.fetch_sub(1, Ordering::Relaxed);
    }
}

fn builder() -> CacheBuilder<u32> {
    Cache::builder("abandoned").drop_abandoned_loads(true)
}

fn key() -> Key<'static> {
    Key::public("key")
}

/// Lets every task do what it can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

#[tokio::test(start_paused = true)]
async fn load_is_dropped_with_its_last_caller_and_the_next_begins_another() {
    let (cache, loads) = (builder().build().unwrap(), Loads::default());
    let ask = || {
        let loads = loads.clone();
        let cache = cache.clone();
        Box::pin(async move { cache.get_or_load(&key(), || loads.endless()).await })
    };
    let (mut first, mut second) = (ask(), ask());
    assert!(is_pending(first.as_mut()) && is_pending(second.as_mut()));
    settle().await;
    drop(first);
    settle().await;
    assert_eq!((loads.now(), cache.stats().loading), ((1, 1), 1), "somebody waits still");
    drop(second);
    settle().await;
    let stats = cache.stats();
    assert_eq!((loads.now(), stats.loading), ((1, 0), 0));
    assert_eq!((stats.abandoned, stats.load_failures), (1, 0));
    let next = loads.clone();
    assert_eq!(cache.get_or_load(&key(), || next.quick()).await.unwrap(), 7, "it is no error to be shared");
    assert_eq!(cache.stats().throttled, 0);
}

#[tokio::test(start_paused = true)]
async fn load_goes_on_without_callers_unless_that_is_not_wanted() {
    let cache: Cache<u32> = Cache::builder("left").build().unwrap();
    let load = || async {
        tokio::time::sleep(SECOND).await;
        Ok::<_, io::Error>(7)
    };
    assert!(tokio::time::timeout(SECOND / 2, cache.get_or_load(&key(), load)).await.is_err());
    tokio::time::sleep(SECOND).await;
    assert_eq!((cache.get(&key()).await, cache.stats().abandoned), (Some(7), 0));
}

#[tokio::test(start_paused = true)]
async fn caller_who_comes_before_the_load_is_dropped_gets_a_value() {
    let (cache, loads) = (builder().build().unwrap(), Loads::default());
    {
        let (endless, key) = (loads.clone(), key());
        let mut first = pin!(cache.get_or_load(&key, || endless.endless()));
        assert!(is_pending(first.as_mut()));
        settle().await;
    }
    // Nobody has looked since the last of them went: this one is aboard the same flight, which goes on.
    let (joins, key) = (loads.clone(), key());
    let mut joined = Box::pin(cache.get_or_load(&key, || joins.quick()));
    assert!(is_pending(joined.as_mut()));
    settle().await;
    assert_eq!((loads.now(), cache.stats().abandoned), ((1, 1), 0));
    drop(joined);
    settle().await;
    assert_eq!((loads.now(), cache.stats().abandoned), ((1, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn load_of_many_is_dropped_when_nobody_waits_for_any_of_them() {
    let (cache, loads) = (builder().build().unwrap(), Loads::default());
    let keys = ["one", "two"].map(Key::public);
    let endless = loads.clone();
    let mut many = Box::pin(cache.get_or_load_many(&keys, &[], |_| async move {
        let _load = endless.begin();
        pending::<io::Result<Vec<(Key<'static>, io::Result<u32>)>>>().await
    }));
    assert!(is_pending(many.as_mut()));
    let other = loads.clone();
    let mut one = Box::pin(cache.get_or_load(&keys[1], || other.quick()));
    assert!(is_pending(one.as_mut()));
    settle().await;
    drop(many);
    settle().await;
    assert_eq!((loads.now(), cache.stats().abandoned), ((1, 1), 0), "of one of them somebody does");
    drop(one);
    settle().await;
    assert_eq!((loads.now(), cache.stats().loading), ((1, 0), 0));
    assert_eq!(cache.stats().abandoned, 1);
}

#[tokio::test(start_paused = true)]
async fn load_in_the_queue_is_not_begun_for_nobody() {
    let (cache, loads) = (builder().max_loads(1).build().unwrap(), Loads::default());
    let (first, second) = (loads.clone(), loads.clone());
    let (key, other) = (key(), Key::public("other"));
    let mut running = Box::pin(cache.get_or_load(&other, || first.endless()));
    assert!(is_pending(running.as_mut()));
    settle().await;
    let mut queued = Box::pin(cache.get_or_load(&key, || second.endless()));
    assert!(is_pending(queued.as_mut()));
    settle().await;
    assert_eq!((loads.now(), cache.stats().queued), ((1, 1), 1));
    drop(queued);
    settle().await;
    assert_eq!((cache.stats().queued, cache.stats().abandoned), (0, 1));
    drop(running);
    settle().await;
    assert_eq!((loads.now(), cache.stats().abandoned), ((1, 0), 2));
    let third = loads.clone();
    assert_eq!(cache.get_or_load(&key, || third.quick()).await.unwrap(), 7, "its place is free");
}

/// A caller gets an old value, and goes; the load that this caused ends a second later.
async fn old_value_is_followed_by_a_new_one(builder: CacheBuilder<u32>) {
    let cache = builder.time_to_live(SECOND).clock(Clock::tokio()).build().unwrap();
    cache.insert(&key(), Loaded::new(1)).await.unwrap();
    tokio::time::sleep(2 * SECOND).await;
    let load = || async {
        tokio::time::sleep(SECOND).await;
        Ok::<_, io::Error>(2)
    };
    assert_eq!(cache.get_or_load(&key(), load).await.unwrap(), 1);
    tokio::time::sleep(3 * SECOND / 2).await;
    assert_eq!((cache.get(&key()).await, cache.stats().abandoned), (Some(2), 0));
}

#[tokio::test(start_paused = true)]
async fn load_behind_a_stale_value_is_nobodys_and_goes_on() {
    old_value_is_followed_by_a_new_one(builder().stale_while_revalidate(60 * SECOND)).await;
}

#[tokio::test(start_paused = true)]
async fn load_whose_callers_were_given_a_stale_value_goes_on() {
    old_value_is_followed_by_a_new_one(builder().stale_if_error(60 * SECOND).soft_timeout(SECOND / 10)).await;
}

#[tokio::test(start_paused = true)]
async fn load_that_is_abandoned_before_its_loader_runs_is_none() {
    let clock = Clock::tokio();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = builder().clock(clock).remote(store.clone()).build().await.unwrap();
    let loads = Loads::default();
    let mut held = store.hold(Step::ReadAnswered);
    let asking = tokio::spawn({
        let (cache, loads) = (cache.clone(), loads.clone());
        async move { cache.get_or_load(&key(), || loads.quick()).await }
    });
    held.reached().await;
    asking.abort();
    settle().await;
    held.go_on();
    settle().await;
    assert_eq!((loads.now(), cache.stats().loads, cache.stats().abandoned), ((0, 0), 0, 1));
}
