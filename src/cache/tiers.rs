//! How the two tiers, the flights and the tags work together.
//!
//! The order of steps is what the promises rest on, and every one of them is under a test:
//!
//! 1. note the versions of epoch and tags;
//! 2. board the flight (under the stripe's lock: look once more, join or lead);
//! 3. ask the remote tier for the entry, its fence and the stamps, and bring the versions up to date;
//! 4. load;
//! 5. land (under the lock: store in memory unless fenced), releasing the waiters;
//! 6. write to the remote tier if the fence of step 3 still holds there; if not, another process
//!    invalidated meanwhile, and what step 5 stored is dropped.
//!
//! Where there is a limit to loads, a place is waited for between 3 and 4. Where processes share loads, a lease is taken
//! then, and its fence takes the place of that of step 3: see `lease`. Tags that a loader chose are noted between 4 and
//! 5: see `chosen`.
//!
//! This file has the state and what memory says; `captured` what step 1 notes, `look` what is read from the remote tier,
//! `storing` what is written there; `load` and `landing` string them together, `patience` has what callers are given who
//! cannot wait.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    builder::Settings,
    captured::Captured,
    coherence::{Coherence, Covered},
    flight::Flights,
    freshness::{Standing, Times},
    key::Key,
    load_limit::LoadLimit,
    local::{AnyLocal, Entry, Local},
    message::Item,
    remote::Remote,
    stats::{Events, queued_loads},
    store::Fence,
    tags::{Cell, Epoch, Invalidation, Seen, Stamp, Tags},
};
use crate::{
    Error, ErrorKind,
    clock::{Clock, Instant},
};

/// What an entry takes up in memory besides its key and its value, about: the entry itself, the engine's node and
/// its share of the engine's tables.
const OVERHEAD: usize = 160;
/// And what one takes up that has tags or a validator, besides these.
const RARE: usize = 192;

/// Everything that the clones of a cache share.
pub(super) struct Tiers<V: Clone + Send + Sync + 'static> {
    pub(super) local: AnyLocal<V>,
    pub(super) epoch: Epoch,
    pub(super) clock: Clock,
    pub(super) events: Arc<Events>,
    pub(super) flights: Arc<Flights<V>>,
    pub(super) load_limit: Option<LoadLimit>,
    pub(super) tags: Tags,
    /// What every invalidation of a tag changes, where loaders choose tags.
    pub(super) any_tag: Option<Arc<Cell>>,
    pub(super) remote: Option<Arc<Remote<V>>>,
    /// The longest that memory may answer without asking the remote tier.
    pub(super) max_local_life: Duration,
    /// With a bus, for how long beyond that.
    covered: Option<Arc<Covered>>,
    pub(super) settings: Settings<V>,
}

/// What memory says about a key.
pub(super) enum Remembered<V> {
    Failure(Error),
    Fresh(Valued<V>),
    /// Fresh, and worth a new load.
    Due(Valued<V>),
    /// Stale, to be served while a load runs.
    Revalidate(Valued<V>),
    /// Stale, to be served without a load.
    Throttled(Valued<V>),
}

/// A value, and what it saves to answer with it: the time of its load, in microseconds.
pub(super) struct Valued<V> {
    value: V,
    saves: u32,
}

/// What is to be stored, in memory and in the remote tier.
pub(super) struct Kept<V> {
    pub(super) content: Result<V, Error>,
    pub(super) fresh: Duration,
    pub(super) load_cost: Duration,
    pub(super) validator: Option<Arc<str>>,
    pub(super) cost: Option<u32>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    pub(super) fn new(
        settings: Settings<V>,
        events: Arc<Events>,
        remote: Option<(Arc<Remote<V>>, Duration)>,
    ) -> Self {
        let (remote, max_local_life) = remote.unzip();
        let coherence = remote.as_ref().and_then(|remote: &Arc<Remote<V>>| remote.coherence.as_ref());
        let covered = coherence.map(|coherence| Arc::clone(&coherence.covered));
        Self {
            local: AnyLocal::new(settings.engine, settings.capacity, settings.weigher.is_some()),
            epoch: Epoch::default(),
            clock: settings.clock.clone(),
            events,
            flights: Arc::new(Flights::new()),
            load_limit: settings.max_loads.map(|limit| LoadLimit::new(limit, queued_loads(&settings.name))),
            tags: Tags::default(),
            any_tag: settings.loader_tags.then(Arc::default),
            remote,
            // Nobody else writes what is in no remote tier.
            max_local_life: max_local_life.unwrap_or(Duration::MAX),
            covered,
            settings,
        }
    }

    /// What memory has to say without a second thought, or else with one.
    #[inline]
    pub(super) fn remembered(&self, key: &Key<'_>) -> Option<Remembered<V>> {
        match self.at_hand(key) {
            // It is counted.
            Ok(value) => Some(Remembered::Fresh(Valued { value, saves: 0 })),
            Err(remembered) => remembered,
        }
    }

    /// The value if there is nothing to think about, which is what nearly every hit comes to; or else what memory says.
    #[inline(always)]
    pub(super) fn at_hand(&self, key: &Key<'_>) -> Result<V, Option<Remembered<V>>> {
        let Some(entry) = self.local.get(key) else { return Err(None) };
        if !self.clock.is_surely_before(entry.calm_until) || !entry.still_holds(&self.epoch) {
            return Err(self.reconsider(entry));
        }
        let saves = entry.load_cost();
        match entry.content {
            Ok(value) => Ok(self.answer(Valued { value, saves })),
            Err(error) => Err(Some(Remembered::Failure(error))),
        }
    }

    /// The value, and takes note of what it saves to answer with it.
    #[inline]
    pub(super) fn answer(&self, Valued { value, saves }: Valued<V>) -> V {
        if saves != 0 {
            self.events.saved_micros.add_many(saves.into());
        }
        value
    }

    /// What memory says, to one who answers nobody with it, and for whom chance has decided that a load is due.
    pub(super) fn considered(&self, key: &Key<'_>) -> Option<Remembered<V>> {
        let entry = self.local.get(key)?;
        let may_be_due = self.clock.now() >= entry.times().ahead_from;
        Some(match self.reconsider(entry)? {
            Remembered::Fresh(value) if may_be_due => Remembered::Due(value),
            remembered => remembered,
        })
    }

    /// What to make of an entry that is not to be served without a second thought.
    #[inline(never)]
    fn reconsider(&self, entry: Entry<V>) -> Option<Remembered<V>> {
        let now = self.clock.now();
        if self.settings.time_to_idle.is_some_and(|idle| entry.has_idled(idle, now)) {
            return None;
        }
        let served: fn(Valued<V>) -> Remembered<V> = match self.standing(&entry, now) {
            Standing::Fresh => Remembered::Fresh,
            Standing::Due => Remembered::Due,
            Standing::Revalidate => Remembered::Revalidate,
            Standing::Throttled => Remembered::Throttled,
            Standing::Stale | Standing::Gone => return None,
        };
        let saves = entry.load_cost();
        Some(entry.content.map_or_else(Remembered::Failure, |value| served(Valued { value, saves })))
    }

    pub(super) fn standing(&self, entry: &Entry<V>, now: Instant) -> Standing {
        if !entry.is_left(&self.epoch) {
            Standing::Gone
        } else if !self.is_confirmed(entry, now) {
            // Another process may have removed it: nothing to serve, and all there is if nobody can tell.
            entry.times().standing_of_unconfirmed(now)
        } else {
            self.standing_of_heard(entry, now)
        }
    }

    /// How an entry stands that the remote tier has just told of.
    pub(super) fn standing_of_heard(&self, entry: &Entry<V>, now: Instant) -> Standing {
        if !entry.is_left(&self.epoch) {
            Standing::Gone
        } else if entry.still_holds(&self.epoch) {
            entry.times().standing(now, || 1.0 - fastrand::f64())
        } else {
            entry.times().standing_of_unconfirmed(now)
        }
    }

    /// Whether no other process can have invalidated it longer ago than it may be stale.
    pub(super) fn is_confirmed(&self, entry: &Entry<V>, now: Instant) -> bool {
        now < entry.heard_at.after(self.max_local_life)
            || self.covered.as_ref().is_some_and(|covered| now < covered.until(entry.heard_at))
    }

    /// Until when that is so, as far as can be told now.
    pub(super) fn confirmed_until(&self, entry: &Entry<V>) -> Instant {
        let alone = entry.heard_at.after(self.max_local_life);
        self.covered.as_ref().map_or(alone, |covered| alone.max(covered.until(entry.heard_at)))
    }

    /// What the cache has with a bus.
    pub(super) fn coherence(&self) -> Option<&Arc<Coherence>> {
        self.remote.as_ref()?.coherence.as_ref()
    }

    /// Forgets what another process invalidated, and bars the running loads of it from storing.
    pub(super) fn hear(&self, item: &Item<'_>) {
        match item {
            Item::Key(key, invalidation) => {
                let change = |was_to_go| self.change_in_memory(key, *invalidation, was_to_go);
                if self.flights.fence_for_others(key, change) {
                    self.disown(key);
                }
            }
            // Who reads from here on is told the new stamp by the remote tier.
            Item::Tag(tag, invalidation) => self.bump(Some(tag), *invalidation, None),
            Item::Everything(invalidation) => {
                self.bump(None, *invalidation, None);
                if *invalidation == Invalidation::Remove {
                    self.local.clear();
                }
            }
            Item::Doubt => {
                self.coherence().inspect(|coherence| coherence.doubt());
            }
        }
    }

    /// Removes what memory has under the key, or makes it expire, and bars the running load of it from storing.
    pub(super) fn change_local(&self, key: &Key<'_>, invalidation: Invalidation) {
        let change = |was_to_go| self.change_in_memory(key, invalidation, was_to_go);
        if self.flights.fence_telling(key, change) {
            self.disown(key);
        }
    }

    /// The same in the lock. What a load was to replace that is barred now goes from the remote tier as well: somebody was
    /// told of what is newer.
    fn change_in_memory(&self, key: &Key<'_>, invalidation: Invalidation, was_to_go: bool) -> bool {
        match invalidation {
            Invalidation::Expire if !was_to_go => self.expire_in_memory(key),
            Invalidation::Expire | Invalidation::Remove => self.local.remove(key),
        }
        if was_to_go {
            self.owe_removal(key);
        }
        was_to_go
    }

    fn expire_in_memory(&self, key: &Key<'_>) {
        let now = self.clock.now();
        let Some(entry) = self.local.get(key) else { return };
        if entry.content.is_err() || self.standing(&entry, now) == Standing::Gone {
            self.local.remove(key);
            return;
        }
        let times = entry.times().expired(now);
        let entry = self.again(entry, times);
        self.local.insert(key.into(), entry);
    }

    /// Counts what is answered from memory.
    #[inline]
    pub(super) fn recall(&self, remembered: Remembered<V>) -> Result<V, Error> {
        match remembered {
            Remembered::Fresh(value) | Remembered::Due(value) => {
                self.events.hits.add();
                Ok(self.answer(value))
            }
            Remembered::Revalidate(value) | Remembered::Throttled(value) => {
                self.events.stale_hits.add();
                Ok(self.answer(value))
            }
            Remembered::Failure(error) => {
                match error.kind() {
                    ErrorKind::NotFound => self.events.negative_hits.add(),
                    _ => self.events.throttled.add(),
                }
                Err(error)
            }
        }
    }

    /// Invalidates what carries a tag, or everything, in this process; `stamp` has the nonces that the remote tier is
    /// being told.
    pub(super) fn bump(&self, tag: Option<&str>, invalidation: Invalidation, stamp: Option<Stamp>) {
        let Some(tag) = tag else { return self.epoch.bump(invalidation, stamp) };
        // This one first: it is looked at last by a load that chose tags.
        self.any_tag.as_ref().inspect(|any| any.bump(Invalidation::Remove, None));
        self.tags.known(tag).inspect(|cell| cell.bump(invalidation, stamp));
    }

    /// The entry of a value that was made at `from`, and of which other processes were last heard at `heard_at`.
    pub(super) fn entry(
        &self,
        key: &Key<'_>,
        kept: &Kept<V>,
        from: Instant,
        heard_at: Instant,
        seen: Seen,
    ) -> Entry<V> {
        let times = match &kept.content {
            Ok(_) => self.settings.policy.times(from, kept.fresh, kept.load_cost),
            Err(_) => Times::mortal(from, kept.fresh),
        };
        self.entry_of(key, kept, times, heard_at, seen, None)
    }

    pub(super) fn entry_of(
        &self,
        key: &Key<'_>,
        kept: &Kept<V>,
        times: Times,
        heard_at: Instant,
        seen: Seen,
        read_from: Option<Fence>,
    ) -> Entry<V> {
        let touched = self.settings.time_to_idle.map(|_| self.clock.now());
        let weight = self.weight(key, kept, &seen);
        let mut entry = Entry::new(kept.content.clone(), times, heard_at, seen);
        entry.calm_until = entry.calm_until.min(heard_at.after(self.max_local_life));
        // Known to those who weigh alone.
        let cost = kept.cost.filter(|_| self.settings.weigher.is_some());
        entry.with(kept.validator.clone(), cost, touched, read_from, weight)
    }

    /// An entry with other times.
    pub(super) fn again(&self, mut entry: Entry<V>, times: Times) -> Entry<V> {
        entry.calm_until = entry.calm_until.min(times.ahead_from);
        entry.set_times(times);
        entry
    }

    fn weight(&self, key: &Key<'_>, kept: &Kept<V>, seen: &Seen) -> u32 {
        let Some(weigher) = &self.settings.weigher else { return 1 };
        let value = match (&kept.content, kept.cost) {
            (_, Some(cost)) => u64::from(cost),
            // Somebody else's code. What it has nothing to say of is too much for any memory.
            (Ok(value), None) => catch_unwind(AssertUnwindSafe(|| weigher(value))).unwrap_or(u64::MAX),
            (Err(_), None) => 64,
        };
        let rare = match (&kept.validator, seen.tags.is_empty()) {
            (None, true) => 0,
            (validator, _) => RARE + validator.as_ref().map_or(0, |known| known.len()) + seen.tags.weight(),
        };
        let own = (size_of::<Entry<V>>() + OVERHEAD + key.bytes().len() + rare) as u64;
        u32::try_from(value.saturating_add(own)).unwrap_or(u32::MAX)
    }

    /// Stores a value in memory, in the place of whatever a running load will bring.
    pub(super) fn keep(&self, key: &Key<'_>, kept: &Kept<V>, captured: &Captured) {
        // From when it was given, not from when the remote tier has it: no life is gained on the way there.
        let entry = self.entry(key, kept, captured.at, captured.at, captured.seen());
        self.flights.fence(key, || self.local.insert(key.into(), entry));
    }
}
