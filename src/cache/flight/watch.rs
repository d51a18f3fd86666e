//! What is watched of a key by who writes to its source, or to both tiers.

use std::sync::Arc;

use super::{Flights, lock};
use crate::cache::key::{Key, StoredKey};

#[derive(Default)]
pub(super) struct Watched {
    watches: usize,
    pub(super) changes: u64,
}

/// Notices what is removed or stored under one key. A [`glimpse`](Flights::glimpse) costs less, and takes a change of
/// any other key of the stripe for one of this.
pub(crate) struct Watch<V> {
    flights: Arc<Flights<V>>,
    key: StoredKey,
    pub(super) since: u64,
}

impl<V> Flights<V> {
    /// Watches whether a key is removed or stored, from now on.
    pub(crate) fn watch(self: &Arc<Self>, key: &Key<'_>) -> Watch<V> {
        let key = StoredKey::from(key);
        let mut stripe = lock(self.stripe(&key.as_key()));
        let watched = stripe.watched.entry(key.clone()).or_default();
        watched.watches += 1;
        let since = watched.changes;
        drop(stripe);
        Watch { flights: Arc::clone(self), key, since }
    }
}

impl<V> Watch<V> {
    /// As [`Flights::fence`], with a change that is told whether nothing was removed or stored since.
    pub(crate) fn fence<T>(&self, change: impl FnOnce(bool) -> T) -> T {
        let key = self.key.as_key();
        let mut stripe = lock(self.flights.stripe(&key));
        let is_unchanged = stripe.watched.get(&self.key).is_some_and(|watched| watched.changes == self.since);
        stripe.fence(&key);
        change(is_unchanged)
    }

    /// The same, but a forced flight goes on: whatever this one brought, that one will be newer.
    pub(crate) fn fence_unless_forced<T>(&self, change: impl FnOnce(bool) -> T) -> T {
        let key = self.key.as_key();
        let mut stripe = lock(self.flights.stripe(&key));
        let is_unchanged = stripe.watched.get(&self.key).is_some_and(|watched| watched.changes == self.since);
        if stripe.running.get(&self.key).is_some_and(|flight| flight.is_forced) {
            stripe.changed(&key);
        } else {
            stripe.fence(&key);
        }
        change(is_unchanged)
    }
}

impl<V> Drop for Watch<V> {
    fn drop(&mut self) {
        let mut stripe = lock(self.flights.stripe(&self.key.as_key()));
        if let Some(watched) = stripe.watched.get_mut(&self.key) {
            watched.watches -= 1;
            if watched.watches == 0 {
                stripe.watched.remove(&self.key);
            }
        }
    }
}
