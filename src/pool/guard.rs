//! A connection while it is lent.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use bb8::ManageConnection;

use super::{
    closing::Going,
    holders::{Holder, Slot},
    shared::Shared,
    tracked::{Ending, Tracked, Tracking},
};
use crate::clock::Instant;

/// A connection of a [`Pool`](super::Pool), returned when dropped.
///
/// It goes back at once if it is fit to be lent again, and is closed otherwise: if the manager says that it is
/// broken, if it was [marked](Self::mark_broken), retired or outlived, or if the thread panics while it has it, because
/// then nobody knows what it was in the middle of.
#[must_use = "it is returned when dropped"]
pub struct Connection<M: ManageConnection> {
    // In this order: the connection is back before its permit is.
    stored: bb8::PooledConnection<'static, Tracking<M>>,
    lease: Lease<M>,
}

/// A place among the holders and, once the connection is the caller's, a permit. Both are returned when dropped, after
/// the connection.
pub(super) struct Lease<M: ManageConnection> {
    shared: Arc<Shared<M>>,
    /// `None` where nobody has it.
    slot: Option<Slot>,
    class: usize,
    since: Instant,
    until: Option<Instant>,
    has_permit: bool,
    /// Where the connection went: bb8 has it, or it is closed.
    pub(super) is_kept: bool,
    /// When what is closed is gone.
    going: Option<Going>,
}

impl<M: ManageConnection> Connection<M> {
    pub(super) fn new(stored: bb8::PooledConnection<'static, Tracking<M>>, lease: Lease<M>) -> Self {
        Self { stored, lease }
    }

    #[inline]
    pub(super) fn tracked(&mut self) -> &mut Tracked<M::Connection> {
        &mut self.stored
    }

    /// From here on it is the caller's, with its permit.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.stored.uses += 1;
        self.lease.has_permit = true;
    }

    /// It is nobody's while it is tested.
    pub(super) fn disown(&mut self) {
        if let Some(slot) = self.lease.slot.take() {
            self.lease.shared.supply.disown(slot);
        }
    }

    /// It is somebody's again.
    pub(super) fn own(&mut self, holder: Holder) {
        self.lease.since = holder.since;
        self.lease.slot = Some(self.lease.shared.supply.own(holder));
    }

    /// Has the connection closed instead of used again. For what the manager cannot see: a protocol that is out of
    /// step, an answer that was not read to its end.
    pub fn mark_broken(&mut self) {
        self.stored.ending = Some(Ending::Broken);
    }

    /// Has the manager's `is_valid` called before the connection is lent again, however recently it was used: the
    /// place for a manager to undo what a caller may have left behind.
    pub fn mark_dirty(&mut self) {
        self.stored.is_dirty = true;
    }

    /// The number of the connection: they are counted as they are opened, from zero.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.stored.id
    }

    /// How often the connection was lent, this time included.
    #[must_use]
    pub fn uses(&self) -> u64 {
        self.stored.uses
    }
}

impl<M: ManageConnection> Deref for Connection<M> {
    type Target = M::Connection;

    fn deref(&self) -> &M::Connection {
        &self.stored.connection
    }
}

impl<M: ManageConnection> DerefMut for Connection<M> {
    fn deref_mut(&mut self) -> &mut M::Connection {
        &mut self.stored.connection
    }
}

impl<M: ManageConnection> Drop for Connection<M> {
    fn drop(&mut self) {
        let Self { stored, lease } = self;
        let tracked: &mut Tracked<M::Connection> = stored;
        let now = lease.shared.clock.now();
        if std::thread::panicking() {
            tracked.ending.get_or_insert(Ending::Broken);
        }
        if lease.has_permit {
            tracked.last_used = now;
            if tracked.ending.is_none() {
                tracked.ending = lease.shared.tracking.examine(tracked, now);
            }
        }
        // Whatever it is closed for, it is one less.
        if (lease.has_permit || tracked.ending.is_some()) && lease.shared.watch.take_surplus() {
            tracked.ending.get_or_insert(Ending::Surplus);
        }
        match tracked.ending {
            None => lease.is_kept = true,
            Some(why) => {
                lease.going = lease.shared.tracking.going(tracked);
                lease.shared.count_closed(why);
            }
        }
        lease.until = Some(now);
    }
}

impl<M: ManageConnection> fmt::Debug for Connection<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What the connection itself would show, only its maker knows.
        f.debug_struct("Connection")
            .field("id", &self.id())
            .field("uses", &self.uses())
            .finish_non_exhaustive()
    }
}

impl<M: ManageConnection> Lease<M> {
    pub(super) fn new(shared: Arc<Shared<M>>, slot: Slot, class: usize, since: Instant) -> Self {
        Self {
            shared,
            slot: Some(slot),
            class,
            since,
            until: None,
            has_permit: false,
            is_kept: false,
            going: None,
        }
    }
}

impl<M: ManageConnection> Drop for Lease<M> {
    fn drop(&mut self) {
        let shared = &self.shared;
        let now = self.until.unwrap_or_else(|| shared.clock.now());
        let holder = match (self.slot, self.is_kept) {
            (Some(slot), true) => shared.supply.put_back(slot),
            (Some(slot), false) => shared.supply.lose(slot),
            (None, true) => {
                shared.supply.looked_at();
                None
            }
            (None, false) => {
                shared.supply.give_up();
                None
            }
        };
        if !self.is_kept {
            shared.see_off(self.going.take());
        }
        if !self.has_permit {
            return;
        }
        shared.gate.release(self.class, now);
        let held = now.since(self.since);
        shared.recorded.holds.record(held);
        if let Some(holder) = holder.filter(|holder| holder.was_told) {
            let place = tracing::field::display(holder.place);
            tracing::info!(pool = &*shared.name, ?held, place, "a connection was returned late");
        }
    }
}
