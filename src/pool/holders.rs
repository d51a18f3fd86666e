//! Who has a connection, since when, and where in the code it was asked for.

use std::{fmt, panic::Location, sync::Arc, time::Duration};

use super::classes::DEFAULT_NAME;
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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// For how long.
    pub held: Duration,
    /// Where [`Pool::get`](super::Pool::get) was called.
    pub place: &'static Location<'static>,
    /// The name of the [class](super::Class) that it was asked for; `default` if none was named.
    pub class: Arc<str>,
}

impl Holder {
    /// `classes` are their names.
    pub(super) fn held(&self, classes: &[Arc<str>], now: Instant) -> Held {
        let class = classes.get(self.class).map_or_else(|| Arc::from(""), Arc::clone);
        Held { held: now.since(self.since), place: self.place, class }
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
    pub(super) fn longest(&self, count: usize) -> Vec<Holder> {
        let mut all: Vec<Holder> = self.slots.iter().flatten().copied().collect();
        all.sort_unstable_by_key(|holder| holder.since);
        all.truncate(count);
        all
    }

    /// How many hold for `threshold` or longer.
    pub(super) fn long(&self, threshold: Duration, now: Instant) -> usize {
        self.slots.iter().flatten().filter(|holder| now.since(holder.since) >= threshold).count()
    }

    /// Those that hold for `threshold` or longer and were not yet told of.
    pub(super) fn overdue(&mut self, threshold: Duration, now: Instant) -> Vec<Holder> {
        let mut overdue = Vec::new();
        for holder in self.slots.iter_mut().flatten() {
            if now.since(holder.since) >= threshold && !holder.was_told {
                holder.was_told = true;
                overdue.push(*holder);
            }
        }
        overdue
    }
}

/// As `41.2s at src/report.rs:17`, or with the class if one was named: `41.2s at src/report.rs:17 (reports)`.
impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1?} at {}:{}", self.held, self.place.file(), self.place.line())?;
        match &*self.class {
            DEFAULT_NAME | "" => Ok(()),
            class => write!(f, " ({class})"),
        }
    }
}
