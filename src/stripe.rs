//! Counters that threads add to without passing a cache line around.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crossbeam_utils::CachePadded;

/// How many stripes a [`Counter`] has. Threads beyond that share.
pub(crate) const STRIPES: usize = 8;

/// The stripe of the current thread, dealt out in turn as threads first ask.
#[inline]
pub(crate) fn of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        mine.get()
    })
    .unwrap_or(0) // a thread that is being torn down
}

/// A count that many threads add to and few read.
#[derive(Debug, Default)]
pub(crate) struct Counter([CachePadded<AtomicU64>; STRIPES]);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0[of_this_thread()].fetch_add(count, Ordering::Relaxed);
    }

    /// The sum at about this moment: additions of other threads may or may not be in it.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, stripe| sum.wrapping_add(stripe.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_addition_of_any_thread_is_lost() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| (0..1_000).for_each(|_| counter.add(2)));
            }
        });
        assert_eq!(counter.sum(), 2 * 2 * STRIPES as u64 * 1_000);
    }
}
