//! Who has a connection, since when, and where in the code it was asked for.

use std::{fmt, panic::Location, time::Duration};

use crate::clock::Instant;

/// Somebody who has a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) since: Instant,
    pub(super) place: &'static Location<'static>,
    pub(super) class: usize,
    /// Whether the log was told that it is held for long.
    pub(super) was_told: bool,
}

/// Somebody's place in [`Holders`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot(usize);

/// All holders of a pool: as many places as were ever lent at once.
#[derive(Debug, Default)]
pub(super) struct Holders {
    slots: Vec<Option<Holder>>,
    free: Vec<usize>,
}

/// How long somebody has a connection, and where it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// For how long.
    pub held: Duration,
    /// Where [`Pool::get`](super::Pool::get) was called.
    pub place: &'static Location<'static>,
    pub(super) class: usize,
}

impl Holder {
    fn held(&self, now: Instant) -> Held {
        Held { held: now.since(self.since), place: self.place, class: self.class }
    }
}

impl Holders {
    #[inline]
    pub(super) fn add(&mut self, holder: Holder) -> Slot {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(holder);
                Slot(slot)
            }
            None => {
                self.slots.push(Some(holder));
                Slot(self.slots.len() - 1)
            }
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Holder> {
        let holder = self.slots[slot.0].take();
        self.free.push(slot.0);
        holder
    }

    /// The `count` that hold for longest, in that order.
    pub(super) fn longest(&self, count: usize, now: Instant) -> Vec<Held> {
        let mut all: Vec<Held> = self.slots.iter().flatten().map(|holder| holder.held(now)).collect();
        all.sort_unstable_by_key(|held| std::cmp::Reverse(held.held));
        all.truncate(count);
        all
    }

    /// Those that hold for `threshold` or longer and were not yet told of.
    pub(super) fn overdue(&mut self, threshold: Duration, now: Instant) -> Vec<Held> {
        let mut overdue = Vec::new();
        for holder in self.slots.iter_mut().flatten() {
            let held = holder.held(now);
            if held.held >= threshold && !holder.was_told {
                holder.was_told = true;
                overdue.push(held);
            }
        }
        overdue
    }
}

/// As `41.2s at src/report.rs:17`.
impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1?} at {}:{}", self.held, self.place.file(), self.place.line())
    }
}
