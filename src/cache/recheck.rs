//! Asking the remote tier whether what is remembered is still what is stored there, without reading it again.
//!
//! After [`max_staleness`](super::RemoteCacheBuilder::max_staleness), or a gap on the bus, memory may not answer before
//! the remote tier was asked. Nearly always nothing has changed there, and all that is wanted is to hear so. So an
//! entry that was read from the remote tier, and is large, keeps the fence it was read with, and is asked about by
//! [`peek_many`](super::Store::peek_many): one trip, a few dozen bytes, nothing to decode.
//!
//! # Why the answer is as good as reading
//!
//! No two writes have the same fence. If the fence that was peeked at is the one the entry was read with, the stored
//! bytes are those it was decoded from. They depend on the stamps of the whole cache and of the entry's tags, which
//! come with the answer: it is only asked about together with all of its tags, and only if none of their versions has
//! changed in this process, so the nonces it was read with are those that were last seen. If the answer has other
//! ones, the versions change by hearing it, and the entry does not hold any more. When it dies and until when it is
//! fresh was settled when it was read, and does not move.
//!
//! An entry that turns out to have changed is read in a second trip. That is the price, and why small ones, which cost
//! less to read than a trip, are not asked about.

use std::{sync::Arc, time::Duration};

use super::{
    captured::Captured,
    freshness::Standing,
    key::Key,
    load::Flying,
    local::{Entry, Local},
    look::Looked,
    remote::{Read, Remote},
    tiers::Tiers,
};
use crate::{Error, ErrorKind, clock::Instant};

/// From this size on in the remote tier. Below it, reading costs about what asking does.
const LARGE: usize = 4 * 1024;

/// Whether it pays to ask about an entry of so many bytes instead of reading it.
pub(super) fn pays(bytes: usize) -> bool {
    bytes >= LARGE
}

/// What became of flights whose entries were asked about.
pub(super) struct Again<V: Clone + Send + Sync + 'static> {
    /// Those whose entries have to be read.
    pub(super) changed: Vec<Flying<V>>,
    /// Those that were not ended by what was heard.
    pub(super) missing: Vec<Flying<V>>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// What memory has under the key, if it is worth asking about.
    pub(super) fn known(&self, key: &Key<'_>, captured: &Captured) -> Option<Entry<V>> {
        let shares_loads = self.remote.as_ref()?.lease.is_some();
        let entry = self.local.get(key)?;
        entry.read_from()?;
        let is_named = |cell| captured.tags.iter().any(|tag| Arc::ptr_eq(&tag.cell, cell));
        let stands = entry.still_holds(&self.epoch)
            && entry.seen().tags.cells().all(is_named)
            && match self.standing_of_heard(&entry, self.clock.now()) {
                Standing::Fresh => true,
                Standing::Gone => false,
                // It is to be loaded, and where loads are shared the bytes of what there was are wanted.
                _ => !shares_loads,
            };
        stands.then_some(entry)
    }

    /// Asks about an entry that is [known](Self::known). `None` if it is to be read.
    pub(super) async fn peek_at(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &mut Captured,
        known: Entry<V>,
    ) -> Result<Option<Looked<V>>, Error> {
        let asked_at = self.clock.now();
        let peeked = remote.peek_many(std::slice::from_ref(key), &captured.names()).await;
        match peeked.map(|mut peeked| peeked.pop()) {
            Ok(Some(peeked)) => Ok(self.confirmed(captured, known, &peeked, asked_at)),
            Ok(None) => Ok(None),
            Err(error) => not_peeked(error).map(|()| None),
        }
    }

    /// The same for flights, in one trip.
    pub(super) async fn peek_at_many(&self, remote: &Remote<V>, flights: Vec<Flying<V>>) -> Again<V> {
        let mut again = Again { changed: Vec::new(), missing: Vec::new() };
        let Some(first) = flights.first() else { return again };
        let asked_at = self.clock.now();
        let keys: Vec<Key<'_>> = flights.iter().map(|flying| flying.lead.key()).collect();
        let names = first.captured.names();
        let peeked = self.await_remote(remote, &flights, remote.peek_many(&keys, &names)).await;
        drop((keys, names));
        let peeked = match peeked {
            Ok(peeked) => peeked,
            Err(error) => {
                match not_peeked(error) {
                    Ok(()) => again.changed = flights,
                    Err(_) => {
                        again.missing.extend(flights.into_iter().filter_map(|flying| self.unheard(flying)))
                    }
                }
                return again;
            }
        };
        for (mut flying, peeked) in flights.into_iter().zip(peeked) {
            let known = flying.known.take();
            match known.and_then(|known| self.confirmed(&mut flying.captured, *known, &peeked, asked_at)) {
                Some(looked) => again.missing.extend(self.looked(flying, looked)),
                None => again.changed.push(flying),
            }
        }
        again
    }

    /// The known entry as of `asked_at`, if the answer says that it is still the one that is stored.
    fn confirmed(
        &self,
        captured: &mut Captured,
        known: Entry<V>,
        peeked: &Read,
        asked_at: Instant,
    ) -> Option<Looked<V>> {
        let agrees = self.observe(captured, &peeked.stamps);
        let fence = peeked.slot.fence;
        let is_there = peeked.slot.entry.as_ref().is_some_and(|entry| !entry.remaining.is_zero());
        let is_same =
            agrees && is_there && known.read_from() == Some(fence) && known.still_holds(&self.epoch);
        is_same.then(|| {
            let entry = known.heard_again(asked_at, self.max_local_life);
            match self.standing_of_heard(&entry, self.clock.now()) {
                Standing::Fresh | Standing::Due => self.events.remote_hits.add(),
                _ => self.events.remote_misses.add(),
            }
            self.events.remote_unchanged.add();
            let entry = Some(entry);
            Looked { entry, fence, lease: Duration::ZERO, before: None }
        })
    }
}

/// A tier that would not be asked so may still be read.
fn not_peeked(error: Error) -> Result<(), Error> {
    if error.kind() == ErrorKind::Refused { Ok(()) } else { Err(error) }
}
