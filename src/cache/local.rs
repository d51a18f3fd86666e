//! The in-process tier: typed values, synchronous, bounded.
//!
//! An engine decides only what to keep when there is no room. Whether an entry may be served is
//! written in the entry, so every engine is equally right.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    freshness::Times,
    key::{Key, StoredKey},
    tags::{Epoch, Seen},
};
use crate::{Error, clock::Instant};

/// What the in-process tier holds under a key.
#[derive(Clone)]
pub(crate) struct Entry<V> {
    /// The value, or the error that a load ended in and that is not to be asked for again yet.
    pub(crate) content: Result<V, Error>,
    /// Until then a hit has nothing to think about: the first of the times below that changes anything.
    pub(crate) calm_until: Instant,
    /// When other processes were last known not to have invalidated it.
    pub(crate) heard_at: Instant,
    lives: Lives,
    /// The state of the whole cache and of the entry's tags as they were before the value was read.
    pub(crate) seen: Seen,
    /// What few entries have.
    rare: Option<Arc<Rare>>,
    /// What it takes up, in the unit of the capacity.
    weight: u32,
}

/// An entry is moved out of the engine on every hit, so it is small where there is little to say.
#[derive(Clone)]
enum Lives {
    /// As long as it is fresh and no longer.
    Mortal {
        fresh_until: Instant,
        load_cost: u32,
    },
    Other(Arc<Times>),
}

struct Rare {
    /// What the source said to know this very value by.
    validator: Option<Arc<str>>,
    /// When it was last asked for, in nanoseconds, if anybody wants to know.
    touched: Option<AtomicU64>,
}

impl From<Times> for Lives {
    fn from(times: Times) -> Self {
        let Times { fresh_until, load_cost, .. } = times;
        let mortal = Times::mortal_until(fresh_until, load_cost);
        if times.is_as(&mortal) {
            Self::Mortal { fresh_until, load_cost }
        } else {
            Self::Other(Arc::new(times))
        }
    }
}

impl<V> Entry<V> {
    /// An entry that is calm for as long as its times are.
    pub(crate) fn new(content: Result<V, Error>, times: Times, heard_at: Instant, seen: Seen) -> Self {
        let (calm_until, lives) = (times.ahead_from, times.into());
        Self { content, calm_until, heard_at, lives, seen, rare: None, weight: 1 }
    }

    /// The same, with what few entries have. Who wants to know when it was last asked for has to look at every hit.
    pub(crate) fn with(mut self, validator: Option<Arc<str>>, touched: Option<Instant>, weight: u32) -> Self {
        if touched.is_some() {
            self.calm_until = Instant::default();
        }
        if validator.is_some() || touched.is_some() {
            let touched = touched.map(|at| AtomicU64::new(at.as_nanos()));
            self.rare = Some(Arc::new(Rare { validator, touched }));
        }
        self.weight = weight;
        self
    }

    pub(crate) fn times(&self) -> Times {
        match &self.lives {
            Lives::Mortal { fresh_until, load_cost } => Times::mortal_until(*fresh_until, *load_cost),
            Lives::Other(times) => **times,
        }
    }

    pub(crate) fn set_times(&mut self, times: Times) {
        self.lives = times.into();
    }

    #[inline]
    pub(crate) fn load_cost(&self) -> u32 {
        match &self.lives {
            Lives::Mortal { load_cost, .. } => *load_cost,
            Lives::Other(times) => times.load_cost,
        }
    }

    pub(crate) fn validator(&self) -> Option<&Arc<str>> {
        self.rare.as_ref()?.validator.as_ref()
    }

    /// Whether it is to be served without a second thought.
    #[inline]
    pub(crate) fn is_calm(&self, now: Instant, epoch: &Epoch) -> bool {
        now < self.calm_until && self.seen.still_holds(epoch)
    }

    /// Notes that it was asked for, unless nobody had for `idle`: then it stays so, whoever looks again.
    pub(crate) fn has_idled(&self, idle: Duration, now: Instant) -> bool {
        let Some(touched) = self.rare.as_ref().and_then(|rare| rare.touched.as_ref()) else { return false };
        if now.since(Instant::from_nanos(touched.load(Ordering::Relaxed))) >= idle {
            return true;
        }
        touched.store(now.as_nanos(), Ordering::Relaxed);
        false
    }
}

/// Which engine holds the in-process tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// [moka](https://docs.rs/moka): TinyLFU admission, which keeps a scan from flushing the entries in use.
    #[default]
    Moka,
    /// [quick_cache](https://docs.rs/quick_cache): S3-FIFO, several times faster to read, from several threads above
    /// all. It evicts in the order of arrival what was not asked for since.
    #[cfg(feature = "quick-cache")]
    QuickCache,
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
    /// What they take up, in the unit of the capacity.
    fn weight(&self) -> u64;
}

type Hasher = foldhash::fast::RandomState;

/// The engine that was chosen.
pub(crate) enum AnyLocal<V>
where
    V: Clone + Send + Sync + 'static,
{
    Moka(moka::sync::Cache<StoredKey, Entry<V>, Hasher>),
    #[cfg(feature = "quick-cache")]
    Quick(quick_cache::sync::Cache<StoredKey, Entry<V>, Weight, Hasher>),
}

impl<V: Clone + Send + Sync + 'static> AnyLocal<V> {
    /// Room for `capacity`, in the unit of the weights.
    pub(crate) fn new(engine: Engine, capacity: u64, is_weighed: bool) -> Self {
        // Seeded at random per cache, so that nobody outside can aim keys at one bucket.
        let hasher = Hasher::default();
        match engine {
            Engine::Moka => {
                let builder = moka::sync::Cache::builder().max_capacity(capacity);
                let builder = match is_weighed {
                    true => builder.weigher(|_, entry: &Entry<V>| entry.weight),
                    false => builder,
                };
                Self::Moka(builder.build_with_hasher(hasher))
            }
            #[cfg(feature = "quick-cache")]
            Engine::QuickCache => {
                // The engine sizes its tables by the number of entries it expects.
                let expected = if is_weighed { capacity / 1024 } else { capacity };
                let expected = usize::try_from(expected.clamp(64, 1 << 24)).unwrap_or(1 << 24);
                let weight = Weight { is_weighed };
                let life = quick_cache::sync::DefaultLifecycle::default();
                Self::Quick(quick_cache::sync::Cache::with(expected, capacity, weight, hasher, life))
            }
        }
    }
}

/// What an entry takes up, as `quick_cache` asks for it.
#[cfg(feature = "quick-cache")]
#[derive(Clone)]
pub(crate) struct Weight {
    is_weighed: bool,
}

#[cfg(feature = "quick-cache")]
impl<V> quick_cache::Weighter<StoredKey, Entry<V>> for Weight {
    fn weight(&self, _key: &StoredKey, entry: &Entry<V>) -> u64 {
        if self.is_weighed { u64::from(entry.weight).max(1) } else { 1 }
    }
}

impl<V: Clone + Send + Sync + 'static> Local<V> for AnyLocal<V> {
    #[inline]
    fn get(&self, key: &Key<'_>) -> Option<Entry<V>> {
        match self {
            Self::Moka(moka) => moka.get(key),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.get(key),
        }
    }

    fn insert(&self, key: StoredKey, entry: Entry<V>) {
        match self {
            Self::Moka(moka) => moka.insert(key, entry),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.insert(key, entry),
        }
    }

    fn remove(&self, key: &Key<'_>) {
        match self {
            Self::Moka(moka) => moka.invalidate(key),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => drop(quick.remove(key)),
        }
    }

    fn clear(&self) {
        match self {
            Self::Moka(moka) => moka.invalidate_all(),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.clear(),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Moka(moka) => {
                moka.run_pending_tasks();
                moka.entry_count()
            }
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.len() as u64,
        }
    }

    fn weight(&self) -> u64 {
        match self {
            Self::Moka(moka) => {
                moka.run_pending_tasks();
                moka.weighted_size()
            }
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.weight(),
        }
    }
}
