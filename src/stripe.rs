//! Counters that threads add to without waiting for one another.
//!
//! A locked addition costs as much as a look-up in a small table, even when nobody else wants the line. So the
//! first [`OWN`] threads that run at once have a stripe each, which only they write: a load and a store, no
//! lock. Threads beyond that share the last stripe, and add to it in the dear way.

use std::{
    cell::Cell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam_utils::CachePadded;

/// How many threads have a stripe of their own.
const OWN: usize = 15;
/// How many stripes there are: the last one is shared.
pub(crate) const STRIPES: usize = OWN + 1;
const SHARED: usize = OWN;
const UNDECIDED: usize = usize::MAX;

/// Which stripes have an owner, one bit for each.
static OWNED: Mutex<u32> = Mutex::new(0);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(UNDECIDED) };
    /// Returns the stripe when the thread ends.
    static LEASE: Lease = const { Lease };
}

struct Lease;

/// The stripe of the current thread.
#[inline]
pub(crate) fn of_this_thread() -> usize {
    match MINE.get() {
        UNDECIDED => lease(),
        mine => mine,
    }
}

#[cold]
fn lease() -> usize {
    // Without somebody to return it, a thread that is being torn down gets none.
    let mine = if LEASE.try_with(|_| ()).is_ok() { take_free() } else { SHARED };
    MINE.set(mine);
    mine
}

fn take_free() -> usize {
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    let free = owned.trailing_ones() as usize;
    if free >= OWN {
        return SHARED;
    }
    *owned |= 1 << free;
    free
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mine = MINE.replace(SHARED);
        if mine < OWN {
            // The lock also hands on what the thread wrote to its stripes.
            *OWNED.lock().unwrap_or_else(PoisonError::into_inner) &= !(1 << mine);
        }
    }
}

/// Adds to the cell of a stripe; the stripe has to be [`of_this_thread`].
#[inline]
pub(crate) fn add(cell: &AtomicU64, stripe: usize, count: u64) {
    if stripe == SHARED {
        cell.fetch_add(count, Ordering::Relaxed);
    } else {
        // Nobody else writes here.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }
}

/// A count that many threads add to and few read.
#[derive(Debug, Default)]
pub(crate) struct Counter([CachePadded<AtomicU64>; STRIPES]);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        let stripe = of_this_thread();
        add(&self.0[stripe], stripe, count);
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
