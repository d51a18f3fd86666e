//! How many loads of one cache run at once.
//!
//! A semaphore whose waiters are served in the order in which they came. What nobody waits for (a value that is loaded
//! ahead, or behind a stale answer) has to pass a second one first, which lets half as many through: however many
//! values are due, somebody who waits finds no more than that before him, and the other half of the places is his.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// The places for loads.
pub(super) struct LoadLimit {
    all: Semaphore,
    background: Semaphore,
    queued: AtomicUsize,
}

/// The right to load, until it is dropped.
pub(super) struct Place<'a> {
    _place: Option<SemaphorePermit<'a>>,
    _background: Option<SemaphorePermit<'a>>,
}

/// Who waits counts until he waits no longer, whatever ends it.
struct Queued<'a>(&'a AtomicUsize);

impl LoadLimit {
    pub(super) fn new(limit: usize) -> Self {
        let background = Semaphore::new((limit / 2).max(1));
        Self { all: Semaphore::new(limit), background, queued: AtomicUsize::new(0) }
    }

    /// Waits for a place. Cancel safe: who goes away loses his turn and nothing else.
    pub(super) async fn place(&self, is_background: bool) -> Place<'_> {
        let _queued = Queued::count(&self.queued);
        // Neither is ever closed.
        let background = if is_background { self.background.acquire().await.ok() } else { None };
        Place { _place: self.all.acquire().await.ok(), _background: background }
    }

    /// How many wait.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

impl<'a> Queued<'a> {
    fn count(queued: &'a AtomicUsize) -> Self {
        queued.fetch_add(1, Ordering::Relaxed);
        Self(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn places_are_given_in_turn_and_given_back_by_those_who_go_away() {
        let limit = LoadLimit::new(1);
        let mut first = pin!(limit.place(false));
        let Poll::Ready(place) = poll(&mut first) else { unreachable!("there is room") };
        let mut gone = Box::pin(limit.place(false));
        let (mut second, mut third) = (pin!(limit.place(false)), pin!(limit.place(false)));
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
            let limit = LoadLimit::new(limit);
            let mut places = Vec::new();
            let mut waiting = Vec::new();
            for _ in 0..20 {
                let mut place = Box::pin(limit.place(true));
                match poll(&mut place) {
                    Poll::Ready(place) => places.push(place),
                    Poll::Pending => waiting.push(place),
                }
            }
            assert_eq!(places.len(), background);
            if background > 1 {
                assert!(poll(&mut pin!(limit.place(false))).is_ready());
            }
        }
    }
}
