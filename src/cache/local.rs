//! The in-process tier: typed values, synchronous, bounded.
//!
//! An engine decides only what to keep when there is no room. Whether an entry may be served is
//! written in the entry, so every engine is equally right.

#[cfg(feature = "quick-cache")]
use std::num::NonZeroUsize;
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
    store::Fence,
    tags::{Cell, Epoch, Seen, SeenTags, Version},
};
use crate::{Error, clock::Instant};

/// What the in-process tier holds under a key.
///
/// Every hit moves it out of the engine, so it is a cache line where there is little to say.
#[derive(Clone)]
pub(crate) struct Entry<V> {
    /// The value, or the error that a load ended in and that is not to be asked for again yet.
    pub(crate) content: Result<V, Error>,
    /// Until then a hit has nothing to think about: the first of the times below that changes anything.
    pub(crate) calm_until: Instant,
    /// When other processes were last known not to have invalidated it.
    pub(crate) heard_at: Instant,
    fresh_until: Instant,
    /// The state of the whole cache as it was before the value was read.
    epoch: Version,
    load_cost: u32,
    /// What it takes up, in the unit of the capacity.
    weight: u32,
    rare: Option<Arc<Rare>>,
}

/// What few entries have.
#[derive(Default)]
struct Rare {
    /// The states of the entry's tags, as the epoch's.
    tags: SeenTags,
    /// Its times, unless it is as long as it is fresh and no longer.
    times: Option<Times>,
    /// What the source said to know this very value by.
    validator: Option<Arc<str>>,
    /// What its loader said that the value takes up, where that is of interest.
    cost: Option<u32>,
    /// When it was last asked for, in nanoseconds, if anybody wants to know.
    touched: Option<AtomicU64>,
    /// The entry of the remote tier that it was read from, if asking for that one's fence is less than reading it
    /// again.
    read_from: Option<Fence>,
}

impl Rare {
    fn if_any(self) -> Option<Arc<Self>> {
        let Self { tags, times, validator, cost, touched, read_from } = &self;
        let is_bare = tags.is_empty() && times.is_none() && validator.is_none() && cost.is_none();
        let is_there = !is_bare || touched.is_some() || read_from.is_some();
        is_there.then(|| Arc::new(self))
    }
}

impl<V> Entry<V> {
    /// An entry that is calm for as long as its times are.
    pub(crate) fn new(content: Result<V, Error>, times: Times, heard_at: Instant, seen: Seen) -> Self {
        let Seen { epoch, tags } = seen;
        Self {
            content,
            calm_until: times.ahead_from,
            heard_at,
            fresh_until: times.fresh_until,
            epoch,
            load_cost: times.load_cost,
            weight: 1,
            rare: Rare { tags, times: rare_times(times), ..Rare::default() }.if_any(),
        }
    }

    /// The same, with what few entries have. Who wants to know when it was last asked for has to look at every hit.
    pub(crate) fn with(
        mut self,
        validator: Option<Arc<str>>,
        cost: Option<u32>,
        touched: Option<Instant>,
        read_from: Option<Fence>,
        weight: u32,
    ) -> Self {
        if touched.is_some() {
            self.calm_until = Instant::default();
        }
        self.weight = weight;
        let touched = touched.map(|at| AtomicU64::new(at.as_nanos()));
        self.rare = Rare { validator, cost, touched, read_from, ..self.copy_of_rare() }.if_any();
        self
    }

    /// The same entry, which the remote tier was asked about at `at`, as if it had been read again.
    pub(crate) fn heard_again(mut self, at: Instant, max_local_life: Duration) -> Self {
        self.heard_at = at;
        match self.touched() {
            Some(touched) => touched.store(at.as_nanos(), Ordering::Relaxed),
            None => self.calm_until = self.times().ahead_from.min(at.after(max_local_life)),
        }
        self
    }

    pub(crate) fn read_from(&self) -> Option<Fence> {
        self.rare.as_ref()?.read_from
    }

    pub(crate) fn set_times(&mut self, times: Times) {
        (self.fresh_until, self.load_cost) = (times.fresh_until, times.load_cost);
        self.rare = Rare { times: rare_times(times), ..self.copy_of_rare() }.if_any();
    }

    /// What is left of it as an entry of now: stale, if it was made to expire since it was read.
    pub(crate) fn renewed(mut self, epoch: &Epoch, now: Instant) -> Option<Self> {
        if self.still_holds(epoch) {
            return Some(self);
        }
        let Seen { epoch, tags } = self.seen().renewed(epoch)?;
        let times = self.times().expired(now);
        (self.epoch, self.calm_until) = (epoch, self.calm_until.min(times.ahead_from));
        self.set_times(times);
        // What lies in the remote tier is an entry of then.
        self.rare = Rare { tags, read_from: None, ..self.copy_of_rare() }.if_any();
        Some(self)
    }

    fn copy_of_rare(&self) -> Rare {
        let Some(rare) = &self.rare else { return Rare::default() };
        Rare {
            tags: rare.tags.clone(),
            times: rare.times,
            validator: rare.validator.clone(),
            cost: rare.cost,
            touched: rare.touched.as_ref().map(|touched| AtomicU64::new(touched.load(Ordering::Relaxed))),
            read_from: rare.read_from,
        }
    }

    pub(crate) fn times(&self) -> Times {
        let mortal = || Times::mortal_until(self.fresh_until, self.load_cost);
        self.rare.as_ref().and_then(|rare| rare.times).unwrap_or_else(mortal)
    }

    #[inline]
    pub(crate) fn load_cost(&self) -> u32 {
        self.load_cost
    }

    /// The state of the whole cache and of the entry's tags as they were before the value was read.
    pub(crate) fn seen(&self) -> Seen {
        let tags = self.rare.as_ref().map(|rare| rare.tags.clone()).unwrap_or_default();
        Seen { epoch: self.epoch, tags }
    }

    pub(crate) fn validator(&self) -> Option<&Arc<str>> {
        self.rare.as_ref()?.validator.as_ref()
    }

    pub(crate) fn cost(&self) -> Option<u32> {
        self.rare.as_ref()?.cost
    }

    /// Whether nothing was invalidated since it was read.
    #[inline]
    pub(crate) fn still_holds(&self, epoch: &Epoch) -> bool {
        self.epoch.still_holds(epoch) && self.rare.as_ref().is_none_or(|rare| rare.tags.still_hold())
    }

    /// Whether nothing was removed since it was read, though it may have been made to expire.
    pub(crate) fn is_left(&self, epoch: &Epoch) -> bool {
        self.epoch.is_left(epoch) && self.rare.as_ref().is_none_or(|rare| rare.tags.are_left())
    }

    /// The tag that was removed since it was read, if one was.
    pub(crate) fn removed_tag(&self) -> Option<&Arc<Cell>> {
        self.rare.as_ref()?.tags.removed()
    }

    /// Notes that it was asked for, unless nobody had for `idle`: then it stays so, whoever looks again.
    pub(crate) fn has_idled(&self, idle: Duration, now: Instant) -> bool {
        let has_idled = self.is_idle(idle, now);
        if let (false, Some(touched)) = (has_idled, self.touched()) {
            touched.store(now.as_nanos(), Ordering::Relaxed);
        }
        has_idled
    }

    /// Whether nobody has asked for it for `idle`.
    pub(crate) fn is_idle(&self, idle: Duration, now: Instant) -> bool {
        let since = |touched: &AtomicU64| now.since(Instant::from_nanos(touched.load(Ordering::Relaxed)));
        self.touched().is_some_and(|touched| since(touched) >= idle)
    }

    fn touched(&self) -> Option<&AtomicU64> {
        self.rare.as_ref()?.touched.as_ref()
    }
}

/// Times that say more than until when it is fresh.
fn rare_times(times: Times) -> Option<Times> {
    let mortal = Times::mortal_until(times.fresh_until, times.load_cost);
    (!times.is_as(&mortal)).then_some(times)
}

/// Which engine holds the in-process tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// [moka](https://docs.rs/moka): TinyLFU admission, which keeps a scan from flushing the entries in use.
    #[default]
    Moka,
    /// [quick_cache](https://docs.rs/quick_cache): S3-FIFO, several times faster to read, from several threads above
    /// all. It evicts in the order of arrival what was not asked for since. With a capacity in bytes it is made of shards, of
    /// 4 MiB at least, and keeps no entry that is larger than 0.97 of one: 4 MB always fit, or nearly the whole capacity if that
    /// is less.
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

/// No shard is made smaller than this, in bytes: it has to have room for any value that is worth keeping.
#[cfg(feature = "quick-cache")]
const LEAST_SHARD: u64 = 4 << 20;

/// The engine that was chosen.
pub(crate) enum AnyLocal<V>
where
    V: Clone + Send + Sync + 'static,
{
    /// And how much it has room for.
    Moka(moka::sync::Cache<StoredKey, Entry<V>, Hasher>, u64),
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
                Self::Moka(builder.build_with_hasher(hasher), capacity)
            }
            #[cfg(feature = "quick-cache")]
            Engine::QuickCache => {
                // The engine sizes its tables by the number of entries it expects.
                let expected = if is_weighed { capacity / 1024 } else { capacity };
                let expected = usize::try_from(expected.clamp(64, 1 << 24)).unwrap_or(1 << 24);
                let mut options = quick_cache::OptionsBuilder::new();
                options.estimated_items_capacity(expected).weight_capacity(capacity);
                if is_weighed {
                    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
                    options.shards(shards(capacity, cores));
                }
                let weight = Weight { is_weighed };
                let life = quick_cache::sync::DefaultLifecycle::default;
                Self::Quick(match options.build() {
                    Ok(options) => quick_cache::sync::Cache::with_options(options, weight, hasher, life()),
                    // It is told all that it asks for.
                    Err(_) => quick_cache::sync::Cache::with(expected, capacity, weight, hasher, life()),
                })
            }
        }
    }

    fn capacity(&self) -> u64 {
        match self {
            Self::Moka(_, capacity) => *capacity,
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.capacity(),
        }
    }
}

/// Of how many shards a capacity in bytes is made: of as many as the engine would make, but for those that would be too
/// small. It rounds up to powers of two.
#[cfg(feature = "quick-cache")]
fn shards(capacity: u64, cores: usize) -> usize {
    let enough = 1 << (capacity / LEAST_SHARD).max(1).ilog2().min(16);
    cores.saturating_mul(4).min(enough)
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
            Self::Moka(moka, _) => moka.get(key),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.get(key),
        }
    }

    fn insert(&self, key: StoredKey, entry: Entry<V>) {
        // What could not be weighed, or is more than there is room for. In the place of another entry an engine may have all
        // others evicted before that.
        if entry.weight == u32::MAX || u64::from(entry.weight) > self.capacity() {
            return self.remove(&key.as_key());
        }
        match self {
            Self::Moka(moka, _) => moka.insert(key, entry),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.insert(key, entry),
        }
    }

    fn remove(&self, key: &Key<'_>) {
        match self {
            Self::Moka(moka, _) => moka.invalidate(key),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => drop(quick.remove(key)),
        }
    }

    fn clear(&self) {
        match self {
            Self::Moka(moka, _) => moka.invalidate_all(),
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.clear(),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Moka(moka, _) => {
                moka.run_pending_tasks();
                moka.entry_count()
            }
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.len() as u64,
        }
    }

    fn weight(&self) -> u64 {
        match self {
            Self::Moka(moka, _) => {
                moka.run_pending_tasks();
                moka.weighted_size()
            }
            #[cfg(feature = "quick-cache")]
            Self::Quick(quick) => quick.weight(),
        }
    }
}

#[cfg(all(test, feature = "quick-cache"))]
mod tests {
    use super::*;

    #[test]
    fn no_shard_is_too_small_on_any_machine() {
        for cores in [1, 3, 8, 64, 256] {
            for capacity in [1, 1 << 20, 5 << 20, 64 << 20, 100 << 20, 1 << 30, 1 << 40] {
                let made = shards(capacity, cores).next_power_of_two();
                let room = usize::try_from(capacity / LEAST_SHARD).unwrap();
                assert!(made == 1 || made <= room, "{made} of {capacity}");
                assert!(made >= (4 * cores).min(room / 2), "{made} of {capacity}");
            }
        }
    }
}
