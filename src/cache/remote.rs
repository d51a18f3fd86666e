//! The shell around a [`Store`](super::Store): names, deadlines, and leaving it alone while it is away.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    availability::{Availability, Passage, Turn},
    codec::Codec,
    envelope,
    key::Key,
    stats::Events,
    store::{ErasedStore, Found, Put, Slot, Written},
    tags::Stamp,
};
use crate::{
    Error, ErrorKind,
    clock::Clock,
    sync::{Mutex, lock},
};

/// The remote tier of one cache.
pub(super) struct Remote<V> {
    pub(super) store: Arc<dyn ErasedStore>,
    pub(super) codec: Codec<V>,
    pub(super) cache: Box<str>,
    pub(super) timeout: Duration,
    /// How long the store has to remember a removal: longer than any load that may have begun before it.
    pub(super) hold: Duration,
    pub(super) clock: Clock,
    pub(super) events: Arc<Events>,
    pub(super) availability: Mutex<Availability>,
}

/// An entry and the stamps it stands or falls with.
pub(super) struct Read {
    pub(super) slot: Slot,
    pub(super) epoch: Stamp,
    /// In the order of the tags that were asked for.
    pub(super) tags: Vec<Stamp>,
}

impl<V> Remote<V> {
    /// Reads an entry with the stamps of `tags`, in one trip.
    pub(super) async fn read(&self, key: &Key<'_>, tags: &[&str]) -> Result<Read, Error> {
        let name = envelope::entry_name(&self.cache, key);
        let stamps = self.stamp_names(tags);
        let stamps: Vec<&str> = stamps.iter().map(String::as_str).collect();
        let found = self.call(self.store.get_many(&[&name], &stamps)).await?;
        let Found { mut entries, stamps } = found;
        let (Some(slot), Some((&epoch, tags))) = (entries.pop(), stamps.split_first()) else {
            return Err(short_answer());
        };
        Ok(Read { slot, epoch, tags: tags.to_vec() })
    }

    /// Reads the stamps of `tags`, and that of the whole cache first.
    pub(super) async fn stamps(&self, tags: &[&str]) -> Result<Vec<Stamp>, Error> {
        let names = self.stamp_names(tags);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = self.call(self.store.get_many(&[], &names)).await?;
        if found.stamps.len() == names.len() { Ok(found.stamps) } else { Err(short_answer()) }
    }

    /// Writes an entry; without a fence over whatever is there.
    pub(super) async fn put(
        &self,
        key: &Key<'_>,
        bytes: Bytes,
        time_to_live: Duration,
        fence: Option<super::Fence>,
    ) -> Result<Written, Error> {
        let name = envelope::entry_name(&self.cache, key);
        let put = Put { fence, ..Put::new(&name, bytes, time_to_live) };
        self.call(self.store.put_if(put)).await
    }

    pub(super) async fn remove(&self, key: &Key<'_>) -> Result<(), Error> {
        let name = envelope::entry_name(&self.cache, key);
        self.call(self.store.remove_many(&[&name], self.hold)).await
    }

    /// Writes the stamp of a tag, or of the whole cache.
    pub(super) async fn restamp(&self, tag: Option<&str>, stamp: Stamp) -> Result<(), Error> {
        let name = match tag {
            Some(tag) => envelope::tag_name(&self.cache, tag),
            None => envelope::epoch_name(&self.cache),
        };
        self.call(self.store.restamp(&[(&name, stamp)])).await
    }

    fn stamp_names(&self, tags: &[&str]) -> Vec<String> {
        let epoch = envelope::epoch_name(&self.cache);
        std::iter::once(epoch).chain(tags.iter().map(|tag| envelope::tag_name(&self.cache, tag))).collect()
    }

    /// One call, if the tier is not known to be away, with its deadline.
    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if lock(&self.availability).passage(self.clock.now()) == Passage::Skip {
            self.events.remote_failures.add();
            return Err(Error::new(ErrorKind::Unavailable, "the remote tier is away and left alone for now"));
        }
        let result = tokio::time::timeout(self.timeout, call).await.unwrap_or_else(|elapsed| {
            Err(Error::with_source(ErrorKind::TimedOut, "the remote tier did not answer in time", elapsed))
        });
        let turn = match &result {
            // It answered, if only to refuse: it is there.
            Ok(_) => lock(&self.availability).succeeded(),
            Err(error) if error.kind() == ErrorKind::Refused => lock(&self.availability).succeeded(),
            Err(_) => lock(&self.availability).failed(self.clock.now()),
        };
        if let Err(error) = &result {
            self.events.remote_failures.add();
            tracing::debug!(cache = %self.cache, kind = ?error.kind(), "call to the remote tier failed: {error}");
        }
        match turn {
            Some(Turn::WentAway) => {
                tracing::warn!(cache = %self.cache, "remote tier is away: going on from memory and loader");
            }
            Some(Turn::CameBack) => tracing::info!(cache = %self.cache, "remote tier is back"),
            None => {}
        }
        result
    }
}

/// A store that breaks its contract must not break the cache.
fn short_answer() -> Error {
    Error::new(ErrorKind::Refused, "the remote tier answered fewer entries or stamps than were asked for")
}
