//! The in-process tier: typed values, synchronous, bounded.
//!
//! An engine decides only what to keep when there is no room. Whether an entry may be served is
//! written in the entry ([`Entry::is_valid`]), so every engine is equally right.

use super::{
    key::{Key, StoredKey},
    tags::{Epoch, Seen},
};
use crate::{Error, clock::Instant};

/// What the in-process tier holds under a key.
#[derive(Clone)]
pub(crate) struct Entry<V> {
    /// The value, or the error that a load ended in and that is not to be asked for again yet.
    pub(crate) content: Result<V, Error>,
    pub(crate) fresh_until: Instant,
    /// The state of the whole cache and of the entry's tags as they were before the value was read.
    pub(crate) seen: Seen,
}

impl<V> Entry<V> {
    #[inline]
    pub(crate) fn is_valid(&self, now: Instant, epoch: &Epoch) -> bool {
        now < self.fresh_until && self.seen.still_holds(epoch)
    }
}

/// The contract of an engine.
///
/// Every method is atomic for its key and may forget any entry at any time. Insertion and removal of
/// one key are never called at once: the flights' stripe lock is held around both.
pub(crate) trait Local<V>: Send + Sync + 'static {
    fn get(&self, key: &Key<'_>) -> Option<Entry<V>>;
    fn insert(&self, key: StoredKey, entry: Entry<V>);
    fn remove(&self, key: &Key<'_>);
    fn clear(&self);
    /// How many entries there are, counting those that are no longer valid and not yet gone.
    fn len(&self) -> u64;
}

/// `moka`: TinyLFU admission, which keeps a scan from flushing the entries in use.
pub(crate) struct MokaLocal<V>(moka::sync::Cache<StoredKey, Entry<V>, foldhash::fast::RandomState>)
where
    V: Clone + Send + Sync + 'static;

impl<V: Clone + Send + Sync + 'static> MokaLocal<V> {
    /// Room for `capacity` entries.
    pub(crate) fn new(capacity: u64) -> Self {
        // Seeded at random per cache, so that nobody outside can aim keys at one bucket.
        let hasher = foldhash::fast::RandomState::default();
        Self(moka::sync::Cache::builder().max_capacity(capacity).build_with_hasher(hasher))
    }
}

impl<V: Clone + Send + Sync + 'static> Local<V> for MokaLocal<V> {
    #[inline]
    fn get(&self, key: &Key<'_>) -> Option<Entry<V>> {
        self.0.get(key)
    }

    fn insert(&self, key: StoredKey, entry: Entry<V>) {
        self.0.insert(key, entry);
    }

    fn remove(&self, key: &Key<'_>) {
        self.0.invalidate(key);
    }

    fn clear(&self) {
        self.0.invalidate_all();
    }

    fn len(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.entry_count()
    }
}
