//! How many loads of one cache run at once.
//!
//! A semaphore whose waiters are served in the order in which they came. What nobody waits for (a value that is loaded
//! ahead, or behind a stale answer) has to pass a second one first, which lets half as many through: however many
//! values are due, somebody who waits finds no more than that before him, and the other half of the places is his.
//!
//! Who waits for a load may change while it is in the queue ([`Waiters`]). If it is a loader of the same cache, the load
//! runs at once and takes no place: that of the loader may be the very one it would wait for.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
};

use metrics::Gauge;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::sync::{Mutex, lock};

/// The places for loads.
pub(super) struct LoadLimit {
    all: Semaphore,
    background: Semaphore,
    queued: AtomicUsize,
    exported: Gauge,
}

/// The right to load, until it is dropped.
pub(super) struct Place<'a> {
    _place: Option<SemaphorePermit<'a>>,
    _background: Option<SemaphorePermit<'a>>,
}

/// Who waits for a load, in the order of their claims to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiter {
    Nobody,
    Caller,
    /// A loader of the same cache, which has a place already.
    Loader,
}

/// The first of those who wait for a load; and the load, to be woken when one comes who is before him.
pub(super) struct Waiters(Mutex<(Waiter, Option<Waker>)>);

/// Who waits counts until he waits no longer, whatever ends it.
struct Queued<'a>(&'a LoadLimit);

impl LoadLimit {
    /// `exported` is told how many wait.
    pub(super) fn new(limit: usize, exported: Gauge) -> Self {
        let background = Semaphore::new((limit / 2).max(1));
        Self { all: Semaphore::new(limit), background, queued: AtomicUsize::new(0), exported }
    }

    /// Waits for a place for a load that somebody waits for from some time on, or never. Cancel safe: who goes away
    /// loses his turn and nothing else.
    pub(super) async fn place(&self, is_awaited: impl Future<Output = ()>) -> Place<'_> {
        let _queued = Queued::count(self);
        // Neither is ever closed.
        let background = tokio::select! {
            biased;
            () = is_awaited => None,
            background = self.background.acquire() => background.ok(),
        };
        Place { _place: self.all.acquire().await.ok(), _background: background }
    }

    /// How many wait.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

impl Waiters {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Waiter::Nobody, None)))
    }

    pub(super) fn add(&self, waiter: Waiter) {
        let mut state = lock(&self.0);
        let (first, load) = &mut *state;
        if *first >= waiter {
            return;
        }
        *first = waiter;
        let load = load.take();
        drop(state);
        load.inspect(Waker::wake_by_ref);
    }

    /// Those who waited have been answered.
    pub(super) fn clear(&self) {
        lock(&self.0).0 = Waiter::Nobody;
    }

    /// Whether somebody like that waits, or one before him. Tells the task that asked last when that changes.
    pub(super) fn poll(&self, waiter: Waiter, context: &Context<'_>) -> Poll<()> {
        let (first, load) = &mut *lock(&self.0);
        if *first >= waiter {
            return Poll::Ready(());
        }
        *load = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<'a> Queued<'a> {
    fn count(limit: &'a LoadLimit) -> Self {
        limit.queued.fetch_add(1, Ordering::Relaxed);
        limit.exported.increment(1.0);
        Self(limit)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
        self.0.exported.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn, ready},
        pin::pin,
    };

    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn places_are_given_in_turn_and_given_back_by_those_who_go_away() {
        let limit = LoadLimit::new(1, Gauge::noop());
        let mut first = pin!(limit.place(ready(())));
        let Poll::Ready(place) = poll(&mut first) else { unreachable!("there is room") };
        let mut gone = Box::pin(limit.place(ready(())));
        let (mut second, mut third) = (pin!(limit.place(ready(()))), pin!(limit.place(ready(()))));
        assert!(poll(&mut gone).is_pending() && poll(&mut second).is_pending());
        assert!(poll(&mut third).is_pending());
        assert_eq!(limit.queued(), 3);
        drop(gone);
        drop(place);
        assert!(poll(&mut third).is_pending(), "out of turn");
        let Poll::Ready(place) = poll(&mut second) else { unreachable!("it is its turn") };
        drop(place);
        assert!(poll(&mut third).is_ready());
        assert_eq!(limit.queued(), 0);
    }

    #[test]
    fn half_of_the_places_are_out_of_reach_of_what_nobody_waits_for() {
        for (limit, background) in [(1, 1), (2, 1), (5, 2), (8, 4)] {
            let limit = LoadLimit::new(limit, Gauge::noop());
            let mut places = Vec::new();
            let mut waiting = Vec::new();
            for _ in 0..20 {
                let mut place = Box::pin(limit.place(pending()));
                match poll(&mut place) {
                    Poll::Ready(place) => places.push(place),
                    Poll::Pending => waiting.push(place),
                }
            }
            assert_eq!(places.len(), background);
            if background > 1 {
                assert!(poll(&mut pin!(limit.place(ready(())))).is_ready());
            }
        }
    }

    #[test]
    fn refresh_that_somebody_comes_to_wait_for_leaves_the_half_of_the_refreshes() {
        let limit = LoadLimit::new(2, Gauge::noop());
        let mut refreshes = [0; 2].map(|_| Box::pin(limit.place(pending())));
        let Poll::Ready(_first) = poll(&mut refreshes[0]) else { unreachable!("there is room") };
        assert!(poll(&mut refreshes[1]).is_pending());
        let waiters = Waiters::new();
        let mut place = pin!(limit.place(poll_fn(|context| waiters.poll(Waiter::Caller, context))));
        assert!(poll(&mut place).is_pending());
        waiters.add(Waiter::Caller);
        let Poll::Ready(place) = poll(&mut place) else { unreachable!("there is room") };
        assert!(place._background.is_none());
    }
}

#[cfg(all(test, mcp_perf_loom))]
mod model {
    use std::{
        sync::{Arc, atomic::AtomicBool},
        task::Wake,
    };

    use super::*;

    /// Whether it was woken.
    struct Load(AtomicBool);

    impl Wake for Load {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// A load that finds nobody waiting is woken by who comes to wait, whatever came before.
    #[test]
    fn no_interleaving_leaves_a_load_in_the_queue_that_a_loader_waits_for() {
        loom::model(|| {
            let waiters = Arc::new(Waiters::new());
            let load = Arc::new(Load(AtomicBool::new(false)));
            let waiting = {
                let waiters = Arc::clone(&waiters);
                loom::thread::spawn(move || {
                    waiters.add(Waiter::Caller);
                    waiters.add(Waiter::Loader);
                })
            };
            let waker = Waker::from(Arc::clone(&load));
            let mut context = Context::from_waker(&waker);
            let mut is_ready = |waiter| waiters.poll(waiter, &mut context).is_ready();
            // As a place is waited for: for both, with one waker.
            let is_urgent = is_ready(Waiter::Loader) || {
                is_ready(Waiter::Caller);
                load.0.swap(false, Ordering::SeqCst) && is_ready(Waiter::Loader)
            };
            waiting.join().unwrap();
            assert!(is_urgent || load.0.load(Ordering::SeqCst));
            assert!(is_ready(Waiter::Loader));
        });
    }
}
