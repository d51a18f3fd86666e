//! Flights: one running load per key, shared by everybody who asks meanwhile.
//!
//! The table of running flights is split into stripes, each with a lock that is held for a few
//! instructions: to board (look once more, then join or lead), to land (store, then leave the table)
//! and to fence (remove, and bar the running flight from storing). Storing and removing a key happen
//! under the same lock, and that is the whole proof that a value read before an invalidation is never
//! stored after it: a load that began before is fenced or has already stored what the removal then
//! removes; a load that begins after has read nothing old.
//!
//! A fenced flight leaves the table at once: those who boarded before the invalidation get its value,
//! as they would have a moment earlier; those who ask later start a new load. A flight is precise where
//! a shared fence counter is not: it bars only the load of its own key. The removal of a tag, which may
//! concern any number of keys, fences nothing; instead every flight knows how often its tags had been removed
//! when it began ([`Began`]), and who finds that they have been since then fences it and starts anew. What other
//! processes removed meanwhile no flight knows, so nobody joins one that has been under way for longer than what is
//! read may be stale: a second one takes its place in the table, and the first may no longer store in memory. It is not
//! fenced, and may offer its value to the remote tier, or a value that takes so long would be shared by nobody. So it is
//! with one that may choose its tags when any tag was removed: whether that concerns it is known when it has chosen.
//!
//! A load runs in a task of its own, so no caller's cancellation can take it down. Its [`Lead`] lands
//! on drop: a panicking loader releases every waiter with an error. A flight that has a stale value and takes
//! long may release its waiters with that ([`Lead::release`]), and goes on. Who comes later gets it too, for as long as
//! it may be served.
//!
//! A flight knows how many callers are [aboard](Aboard). Where a load is not to outlive them, who finds that all have gone
//! asks for the end of the flight under the lock in which others board ([`Lead::abandon`]): nobody comes aboard a flight
//! that ends without having arrived.

#[cfg(all(test, mcp_perf_loom))]
mod model;
mod watch;

use std::{
    collections::HashMap,
    hash::BuildHasher,
    mem::take,
    ops::Deref,
    sync::{Arc, OnceLock},
    task::{Context, Waker},
    time::Duration,
};

use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

pub(crate) use self::watch::Watch;
use self::watch::Watched;
use super::{
    key::{AsKey, Key, StoredKey},
    load_limit::{Waiter, Waiters},
    local::Entry,
    tags::{Began, Epoch},
};
use crate::{
    Error, ErrorKind,
    clock::{Clock, Instant},
    sync::{AtomicBool, Mutex, Ordering, lock},
};

/// Enough that two of them seldom meet, few enough to cost little (one line of cache each).
const STRIPES: usize = if cfg!(mcp_perf_loom) { 1 } else { 64 };

/// All running loads of a cache.
pub(crate) struct Flights<V> {
    stripes: Box<[CachePadded<Mutex<Stripe<V>>>]>,
    hasher: foldhash::fast::RandomState,
}

struct Stripe<V> {
    running: HashMap<StoredKey, Arc<Flight<V>>, foldhash::fast::RandomState>,
    /// Counts what was removed or stored here, for those who read without a flight.
    changes: u64,
    /// The same by key, where that is watched.
    watched: HashMap<StoredKey, Watched, foldhash::fast::RandomState>,
}

/// One running load.
pub(crate) struct Flight<V> {
    began: Began,
    fenced: AtomicBool,
    /// What fenced it is a forced load, which will be newer, if it comes to anything.
    is_superseded: AtomicBool,
    /// What fenced it may be older than what it brings, or bring what is: what others did, or a load that was begun in its
    /// place.
    is_overtaken: AtomicBool,
    is_forced: bool,
    /// A forced load that this one superseded has succeeded since: what there was before it is not to come back.
    replaces: AtomicBool,
    /// What others leave to it until it ends.
    duties: Mutex<Vec<Box<dyn Duty>>>,
    callers: Mutex<Callers>,
    is_abandoned: AtomicBool,
    waiters: Waiters,
    meanwhile: Mutex<Option<Meanwhile<V>>>,
    outcome: OnceLock<Result<V, Error>>,
    /// The outcome is a stale value, for want of a new one.
    is_stale: AtomicBool,
    /// What the outcome stands in for.
    failure: OnceLock<Error>,
    landed: Notify,
}

/// What a flight sees to for one whose place it took: that the remote tier hears of what both replace.
pub(super) trait Duty: Send {
    /// It ended without, with its runtime or by a panic. In the lock: nobody finds neither the flight nor this.
    fn neglected(&mut self);

    /// It has seen to it, or somebody else does.
    fn done(self: Box<Self>);
}

/// What becomes of a value that lands over what there was.
pub(super) enum Place<'a, V> {
    /// It may be kept in memory.
    Kept,
    /// Another flight took its place there, which has ended: it may not.
    Lost,
    /// Nor where that goes on, which answers for what there was from now on.
    LeftTo(&'a Flight<V>),
}

/// How many are aboard, and the load, to be woken when the last of them goes.
#[derive(Default)]
struct Callers {
    count: usize,
    load: Option<Waker>,
}

/// A caller's part in a flight, until it is dropped.
pub(crate) struct Aboard<V>(Arc<Flight<V>>);

impl<V> Aboard<V> {
    fn new(flight: &Arc<Flight<V>>) -> Self {
        lock(&flight.callers).count += 1;
        Self(Arc::clone(flight))
    }
}

impl<V> Deref for Aboard<V> {
    type Target = Flight<V>;

    fn deref(&self) -> &Flight<V> {
        &self.0
    }
}

impl<V> Drop for Aboard<V> {
    fn drop(&mut self) {
        let load = {
            let mut callers = lock(&self.0.callers);
            callers.count -= 1;
            if callers.count == 0 { callers.load.take() } else { None }
        };
        if let Some(load) = load {
            load.wake();
        }
    }
}

/// A stale value for those who should not wait for longer.
pub(crate) struct Meanwhile<V> {
    pub(crate) entry: Entry<V>,
    pub(crate) until: Instant,
    /// Whether it may be served, as far as invalidations go.
    pub(crate) holds: fn(&Entry<V>, &Epoch) -> bool,
}

impl<V: Clone> Meanwhile<V> {
    fn value(&self, now: Instant, epoch: &Epoch) -> Option<V> {
        let is_good = now < self.until && (self.holds)(&self.entry, epoch);
        self.entry.content.as_ref().ok().filter(|_| is_good).cloned()
    }
}

/// What a waiter was released with.
pub(crate) enum Outcome<V> {
    Landed(Result<V, Error>),
    Meanwhile(V),
}

/// What [`Flights::board`] came to.
pub(crate) enum Boarding<T, V> {
    /// Somebody stored it in the meantime.
    Found(T),
    /// It is being loaded.
    Join(Aboard<V>),
    /// Nobody is loading it: the caller has to.
    Lead(Lead<V>),
}

impl<V> Flights<V> {
    pub(crate) fn new() -> Self {
        let stripe = || Stripe { running: HashMap::default(), changes: 0, watched: HashMap::default() };
        Self {
            stripes: (0..STRIPES).map(|_| CachePadded::new(Mutex::new(stripe()))).collect(),
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    /// Looks once more with `find`, and joins the running flight, unless it began `too_long` ago, or starts one.
    pub(crate) fn board<T>(
        self: &Arc<Self>,
        key: &Key<'_>,
        epoch: &Epoch,
        began: Began,
        too_long: Duration,
        find: impl FnOnce() -> Option<T>,
    ) -> Boarding<T, V> {
        let mut stripe = lock(self.stripe(key));
        if let Some(found) = find() {
            return Boarding::Found(found);
        }
        let running = stripe.running.get(key as &dyn AsKey);
        let replaces = running.is_some_and(|flight| flight.replaces());
        match running {
            Some(outdated) if !outdated.began.is_current(epoch) => {
                outdated.is_overtaken.store(true, Ordering::Release);
                outdated.fenced.store(true, Ordering::Release);
            }
            Some(flight) if flight.began.is_free_to_choose() && flight.began.is_before(&began) < too_long => {
                return Boarding::Join(Aboard::new(flight));
            }
            Some(_) | None => {}
        }
        // Where it takes the place of a load that was to replace what there was, it has to do that.
        let relieved = running.filter(|_| replaces).map(Arc::clone);
        let lead = self.lead(&mut stripe, key, began, replaces);
        relieved.inspect(|relieved| lead.relieves(relieved));
        Boarding::Lead(lead)
    }

    /// Starts a forced flight: whoever loads now may have read before it was asked for, and may not store that.
    pub(crate) fn force(self: &Arc<Self>, key: &Key<'_>, began: Began) -> Lead<V> {
        let mut stripe = lock(self.stripe(key));
        let before = stripe.running.get(key as &dyn AsKey).map(Arc::clone);
        stripe.fence(key);
        let lead = self.lead(&mut stripe, key, began, true);
        before.inspect(|before| lead.relieves(before));
        lead
    }

    fn lead(
        self: &Arc<Self>,
        stripe: &mut Stripe<V>,
        key: &Key<'_>,
        began: Began,
        is_forced: bool,
    ) -> Lead<V> {
        let flight = Arc::new(Flight {
            began,
            fenced: AtomicBool::new(false),
            is_superseded: AtomicBool::new(false),
            is_overtaken: AtomicBool::new(false),
            is_forced,
            replaces: AtomicBool::new(false),
            duties: Mutex::new(Vec::new()),
            callers: Mutex::new(Callers::default()),
            is_abandoned: AtomicBool::new(false),
            waiters: Waiters::new(),
            meanwhile: Mutex::new(None),
            outcome: OnceLock::new(),
            is_stale: AtomicBool::new(false),
            failure: OnceLock::new(),
            landed: Notify::new(),
        });
        let stored = StoredKey::from(key);
        stripe.running.insert(stored.clone(), Arc::clone(&flight));
        Lead { flights: Arc::clone(self), key: stored, flight, has_landed: false }
    }

    /// Runs `change` (a removal, or the insertion of a newer value) and bars the running load of the
    /// key from storing.
    pub(crate) fn fence<T>(&self, key: &Key<'_>, change: impl FnOnce() -> T) -> T {
        self.fence_telling(key, |_| change())
    }

    /// The same for a change that leaves what the remote tier has. It is told whether the load that it bars was to replace
    /// that: nobody does any more.
    pub(crate) fn fence_telling<T>(&self, key: &Key<'_>, change: impl FnOnce(bool) -> T) -> T {
        let mut stripe = lock(self.stripe(key));
        change(stripe.fence(key))
    }

    /// The same for a change that another process has made: a forced load that is running may bring what is newer than what
    /// there is now, and has to see to it that nothing older stays. Tells as [`fence_telling`](Self::fence_telling).
    pub(crate) fn fence_for_others<T>(&self, key: &Key<'_>, change: impl FnOnce(bool) -> T) -> T {
        let mut stripe = lock(self.stripe(key));
        if let Some(flight) = stripe.running.get(key as &dyn AsKey) {
            flight.is_overtaken.store(true, Ordering::Release);
        }
        change(stripe.fence(key))
    }

    /// The state to note before reading a key without a flight. `None` if there is nothing to be read: what there is has
    /// been replaced, and another load is under way.
    pub(crate) fn glimpse(&self, key: &Key<'_>) -> Option<u64> {
        let stripe = lock(self.stripe(key));
        let running = stripe.running.get(key as &dyn AsKey);
        let is_replaced = running.is_some_and(|flight| flight.replaces());
        (!is_replaced).then_some(stripe.changes)
    }

    /// Runs `store` if nothing was removed or stored in the key's stripe since the glimpse.
    pub(crate) fn store_unless_changed(&self, key: &Key<'_>, glimpse: u64, store: impl FnOnce()) {
        let stripe = lock(self.stripe(key));
        if stripe.changes == glimpse {
            store();
        }
    }

    /// Whether the key is being loaded.
    pub(crate) fn is_running(&self, key: &Key<'_>) -> bool {
        lock(self.stripe(key)).running.contains_key(key as &dyn AsKey)
    }

    /// How many loads are running.
    pub(crate) fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| lock(stripe).running.len()).sum()
    }

    fn stripe(&self, key: &Key<'_>) -> &Mutex<Stripe<V>> {
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
        let index = self.hasher.hash_one(key) as usize % STRIPES;
        &self.stripes[index]
    }
}

impl<V> Stripe<V> {
    /// Whether what it fenced was to replace what there was.
    fn fence(&mut self, key: &Key<'_>) -> bool {
        let fenced = self.running.remove(key as &dyn AsKey);
        if let Some(flight) = &fenced {
            flight.fenced.store(true, Ordering::Release);
        }
        self.changed(key);
        fenced.is_some_and(|flight| flight.replaces())
    }

    fn changed(&mut self, key: &Key<'_>) {
        self.changes = self.changes.wrapping_add(1);
        if let Some(watched) = self.watched.get_mut(key as &dyn AsKey) {
            watched.changes = watched.changes.wrapping_add(1);
        }
    }
}

/// How a forced flight landed.
pub(crate) enum Forced {
    /// It was stored.
    Stored,
    /// It was not, and what there was is gone: other processes may be offered it.
    Displaced,
    /// The key was removed or inserted since it began.
    Fenced,
    /// Another forced flight is under way, and answers for what there was before.
    Superseded,
    /// The same, and that one has ended already: how, nobody knows. Or others changed the key meanwhile.
    Outlived,
}

impl<V> Flight<V> {
    /// See [`Lead::replaces`].
    pub(super) fn replaces(&self) -> bool {
        self.replaces.load(Ordering::Acquire)
    }

    /// Leaves something to it. In the lock, and while it is under way.
    pub(super) fn take_on(&self, duty: Box<dyn Duty>) {
        lock(&self.duties).push(duty);
    }
}

impl<V: Clone + Send + Sync> Flight<V> {
    /// Notes who is going to wait, unless there is a value for him meanwhile.
    pub(super) fn expect(&self, waiter: Waiter) {
        if lock(&self.meanwhile).is_none() {
            self.waiters.add(waiter);
        }
    }

    /// Whether the outcome, if it is a value, is a stale one.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Acquire)
    }

    /// Waits for the outcome. Cancel safe: a waiter that leaves changes nothing for the others.
    pub(super) async fn outcome(&self, waiter: Waiter, clock: &Clock, epoch: &Epoch) -> Outcome<V> {
        loop {
            // Before the look: a landing between look and wait is then not missed.
            let landed = self.landed.notified();
            if let Some(outcome) = self.outcome.get() {
                return Outcome::Landed(outcome.clone());
            }
            let meanwhile = |meanwhile: &Meanwhile<V>| meanwhile.value(clock.now(), epoch);
            if let Some(value) = lock(&self.meanwhile).as_ref().and_then(meanwhile) {
                return Outcome::Meanwhile(value);
            }
            // Before every wait: a release answers those who waited, and forgets them.
            self.waiters.add(waiter);
            landed.await;
        }
    }

    /// Waits for what the load itself comes to, whatever the others are given instead.
    pub(super) async fn landing(&self, waiter: Waiter) -> Result<V, Error> {
        loop {
            let landed = self.landed.notified();
            if let Some(outcome) = self.outcome.get() {
                return self.failure.get().map_or_else(|| outcome.clone(), |error| Err(error.clone()));
            }
            self.waiters.add(waiter);
            landed.await;
        }
    }
}

/// The right and the duty to land a flight.
pub(crate) struct Lead<V> {
    flights: Arc<Flights<V>>,
    key: StoredKey,
    flight: Arc<Flight<V>>,
    has_landed: bool,
}

impl<V> Lead<V> {
    /// Takes over what the flight before it had to see to. In the lock.
    fn relieves(&self, before: &Flight<V>) {
        before.is_superseded.store(true, Ordering::Release);
        self.flight.replaces.store(before.replaces(), Ordering::Release);
        *lock(&self.flight.duties) = take(&mut *lock(&before.duties));
    }

    /// A part for the caller who leads.
    pub(crate) fn aboard(&self) -> Aboard<V> {
        Aboard::new(&self.flight)
    }

    /// Whether nobody is aboard; and whom to wake when that comes to be so.
    pub(super) fn is_left(&self, context: &Context<'_>) -> bool {
        let mut callers = lock(&self.flight.callers);
        let _before = callers.load.replace(context.waker().clone());
        let is_left = callers.count == 0;
        drop(callers);
        is_left
    }

    /// If nobody is aboard, nobody comes aboard any more, and what the load comes to is not stored. Unless it answers for
    /// what others replaced.
    pub(super) fn abandon(&self) -> bool {
        let mut stripe = lock(self.flights.stripe(&self.key.as_key()));
        if lock(&self.flight.callers).count > 0 || self.replaces() {
            return false;
        }
        let is_running =
            stripe.running.get(&self.key).is_some_and(|latest| Arc::ptr_eq(latest, &self.flight));
        if is_running {
            stripe.running.remove(&self.key);
        }
        self.flight.fenced.store(true, Ordering::Release);
        self.flight.is_abandoned.store(true, Ordering::Release);
        true
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.flight.is_abandoned.load(Ordering::Acquire)
    }

    pub(crate) fn key(&self) -> Key<'_> {
        self.key.as_key()
    }

    /// Who waits for the flight.
    pub(super) fn waiters(&self) -> &Waiters {
        &self.flight.waiters
    }

    /// Gives those who wait, and those who come until the landing, a stale value for as long as it may be served.
    pub(crate) fn release(&self, meanwhile: Meanwhile<V>) {
        let mut there = lock(&self.flight.meanwhile);
        if self.replaces() {
            return;
        }
        let _before = there.replace(meanwhile);
        drop(there);
        self.flight.waiters.clear();
        self.flight.landed.notify_waiters();
    }

    /// Notes the failure of a load that something else is about to stand in for.
    pub(crate) fn failed(&self, error: Error) {
        let _ = self.flight.failure.set(error);
    }

    /// Notes whether a stale value is about to stand in for a load.
    pub(crate) fn stands_in(&self, is_stale: bool) {
        self.flight.is_stale.store(is_stale, Ordering::Release);
    }

    /// Whether those who waited have been given a stale value.
    pub(crate) fn has_released(&self) -> bool {
        lock(&self.flight.meanwhile).is_some()
    }

    /// Ends the flight: `store` runs unless the flight was fenced or another took its place, then every waiter gets
    /// `outcome`. Returns whether it was not fenced.
    pub(crate) fn land(mut self, outcome: Result<V, Error>, store: impl FnOnce(StoredKey)) -> bool {
        self.end(|| true, outcome, store).unwrap_or_default()
    }

    /// Ends a forced flight that was successful: `store` runs unless it was fenced, and is what `watch` watches from then on.
    /// It is told whether the value may be stored. It may not where another flight has taken the place of this one, which was
    /// under way for too long: that was fenced in its place, if anything was removed since. What that one will bring, or has
    /// brought, may be from before all the same, and is not to stay.
    pub(crate) fn land_over(
        mut self,
        outcome: Result<V, Error>,
        watch: &mut Watch<V>,
        store: impl FnOnce(StoredKey, Place<'_, V>),
    ) -> Forced {
        // Dropped after the lock: it is a value.
        let mut _replaced = None;
        let stripe = lock(self.flights.stripe(&self.key.as_key()));
        self.has_landed = true;
        // Dropped after the lock, and on unwinding too: `store` runs code of the value's type.
        let (_tell, mut stripe) = (Tell { flight: &self.flight, outcome: Some(outcome) }, stripe);
        let is_fenced = self.flight.fenced.load(Ordering::Acquire);
        let running = stripe.running.get(&self.key);
        let is_running = running.is_some_and(|latest| Arc::ptr_eq(latest, &self.flight));
        let successor = running.filter(|flight| flight.is_forced && !is_running).map(Arc::clone);
        let may_be_older = self.is_overtaken() || self.flight.is_superseded.load(Ordering::Acquire);
        match successor {
            _ if is_fenced && !may_be_older => return Forced::Fenced,
            Some(successor) => {
                successor.replaces.store(true, Ordering::Release);
                // After that: what it has for those who do not wait is not to be had any more, nor comes anew.
                _replaced = lock(&successor.meanwhile).take();
                // Who is reading what there was, without a flight, is not to put it back.
                stripe.changed(&self.key.as_key());
                // Nor is what there was before: this one's caller is told of the new.
                store(self.key.clone(), Place::LeftTo(&successor));
                return Forced::Superseded;
            }
            None if is_fenced => return Forced::Outlived,
            None => {}
        }
        stripe.fence(&self.key.as_key());
        watch.since = stripe.watched.get(&self.key).map_or(watch.since, |watched| watched.changes);
        let (place, landed) = match is_running {
            true => (Place::Kept, Forced::Stored),
            false => (Place::Lost, Forced::Displaced),
        };
        store(self.key.clone(), place);
        landed
    }

    /// Whether it was fenced by what may be older than what it brings.
    pub(crate) fn is_overtaken(&self) -> bool {
        self.flight.is_overtaken.load(Ordering::Acquire)
    }

    /// Whether what there was before it is not to stand in for it.
    pub(crate) fn replaces(&self) -> bool {
        self.flight.replaces()
    }

    pub(crate) fn flight(&self) -> &Arc<Flight<V>> {
        &self.flight
    }

    /// As [`land`](Self::land), if `holds` under the lock; else the flight goes on. A fenced one as well: nobody came
    /// after the fence, but somebody may have come after what makes it not hold, and before the fence.
    pub(crate) fn land_if(
        mut self,
        holds: impl FnOnce() -> bool,
        outcome: Result<V, Error>,
        store: impl FnOnce(StoredKey),
    ) -> Result<bool, Self> {
        // Nor with what has been replaced meanwhile.
        let flight = Arc::clone(&self.flight);
        self.end(|| !flight.replaces() && holds(), outcome, store).ok_or(self)
    }

    fn end(
        &mut self,
        holds: impl FnOnce() -> bool,
        outcome: Result<V, Error>,
        store: impl FnOnce(StoredKey),
    ) -> Option<bool> {
        let stripe = lock(self.flights.stripe(&self.key.as_key()));
        let fenced = self.flight.fenced.load(Ordering::Acquire);
        if !holds() {
            return None;
        }
        self.has_landed = true;
        // Dropped after the lock, and on unwinding too: `store` runs code of the value's type.
        let (_tell, mut stripe) = (Tell { flight: &self.flight, outcome: Some(outcome) }, stripe);
        let is_running =
            stripe.running.get(&self.key).is_some_and(|latest| Arc::ptr_eq(latest, &self.flight));
        if !fenced && is_running {
            stripe.running.remove(&self.key);
            stripe.changed(&self.key.as_key());
            store(self.key.clone());
        }
        Some(!fenced)
    }
}

/// Tells the waiters when it is dropped.
struct Tell<'a, V> {
    flight: &'a Flight<V>,
    outcome: Option<Result<V, Error>>,
}

impl<V> Drop for Tell<'_, V> {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            let _ = self.flight.outcome.set(outcome);
            self.flight.landed.notify_waiters();
        }
    }
}

impl<V> Drop for Lead<V> {
    fn drop(&mut self) {
        let mut neglected = Vec::new();
        if !self.has_landed {
            let problem = "the loader panicked, or the runtime shut down under it";
            let flight = Arc::clone(&self.flight);
            let holds = || {
                let fenced_by_newer = flight.fenced.load(Ordering::Acquire)
                    && !flight.is_superseded.load(Ordering::Acquire)
                    && !flight.is_overtaken.load(Ordering::Acquire);
                if !fenced_by_newer {
                    neglected = take(&mut *lock(&flight.duties));
                    neglected.iter_mut().for_each(|duty| duty.neglected());
                }
                true
            };
            self.end(holds, Err(Error::new(ErrorKind::Panicked, problem)), |_| ());
        }
        // Out of the lock.
        take(&mut *lock(&self.flight.duties)).into_iter().chain(neglected).for_each(Duty::done);
    }
}
