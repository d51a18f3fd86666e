//! The reference store.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    Error,
    cache::{Fence, Found, Put, Restamp, Slot, Stamp, Store, Stored, Written},
    clock::{Clock, Instant},
};

/// A [`Store`] in memory: the simplest thing that keeps the contract. Cheap to clone; clones share.
///
/// It forgets nothing before its time, so it is for tests, not for serving.
#[derive(Clone)]
pub struct MemoryStore(Arc<Inner>);

struct Inner {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: HashMap<String, Row>,
    stamps: HashMap<String, Stamp>,
    writes: u128,
}

struct Row {
    /// `None` where an entry was removed.
    bytes: Option<Bytes>,
    dies_at: Instant,
    fence: Fence,
}

impl MemoryStore {
    /// An empty store, whose lives are measured by `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, state: Mutex::default() }))
    }

    /// Puts bytes under the name of every entry, as a stranger might.
    pub fn overwrite_all(&self, bytes: &[u8]) {
        for row in self.state().rows.values_mut() {
            row.bytes = Some(Bytes::copy_from_slice(bytes));
        }
    }

    /// How many entries are there, those counted that died or were removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().rows.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let now = self.0.clock.now();
        let mut state = self.state();
        let entries = entries.iter().map(|name| state.slot(name, now)).collect();
        let stamps = stamps.iter().map(|name| state.stamp(name)).collect();
        Ok(Found { entries, stamps })
    }

    async fn peek_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let mut found = self.get_many(entries, stamps).await?;
        found.entries.iter_mut().filter_map(|slot| slot.entry.as_mut()).for_each(|entry| entry.bytes.clear());
        Ok(found)
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        let now = self.0.clock.now();
        let mut state = self.state();
        if put.fence.is_some_and(|fence| fence != state.slot(put.name, now).fence) {
            return Ok(Written::Refused);
        }
        Ok(Written::Stored(state.write(put.name, Some(put.bytes), now.after(put.time_to_live))))
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        let dies_at = self.0.clock.now().after(hold);
        let mut state = self.state();
        for name in entries {
            state.write(name, None, dies_at);
        }
        Ok(())
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        let mut state = self.state();
        for Restamp { name, invalidation, stamp } in stamps {
            let known = state.stamps.entry((*name).to_owned()).or_insert(*stamp);
            *known = known.after(*invalidation, *stamp);
        }
        Ok(())
    }

    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl State {
    fn slot(&self, name: &str, now: Instant) -> Slot {
        // What died keeps its fence: a short life must not bring back the absence from before it.
        let Some(row) = self.rows.get(name) else { return Slot { entry: None, fence: Fence::default() } };
        let remaining = row.dies_at.since(now);
        let bytes = row.bytes.clone().filter(|_| now < row.dies_at);
        Slot { entry: bytes.map(|bytes| Stored { bytes, remaining }), fence: row.fence }
    }

    fn stamp(&mut self, name: &str) -> Stamp {
        *self.stamps.entry(name.to_owned()).or_insert_with(Stamp::random)
    }

    fn write(&mut self, name: &str, bytes: Option<Bytes>, dies_at: Instant) -> Fence {
        self.writes += 1;
        let fence = Fence::from_bytes(self.writes.to_be_bytes());
        self.rows.insert(name.to_owned(), Row { bytes, dies_at, fence });
        fence
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("len", &self.len()).finish_non_exhaustive()
    }
}
