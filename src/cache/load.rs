//! How a missing value comes: a flight, from boarding to landing. Those of many keys at once are in `load_many`.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    slice,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::{sleep_until, timeout_at};
use tracing::Instrument;

use super::{
    captured::Captured,
    flight::{Aboard, Boarding, Flight, Lead, Outcome},
    freshness::Standing,
    key::Key,
    lease::Held,
    load_limit::{Place, Waiter},
    loaded::{Loaded, Previous},
    local::{Entry, Local},
    look::{Before, Looked},
    nesting::LOADING,
    patience::Patience,
    recheck::Again,
    remote::Read,
    store::Fence,
    tags::{Epoch, Seen},
    tiers::{Remembered, Tiers},
};
use crate::{Error, ErrorKind, clock::Instant, error::BoxError};

/// An entry of the remote tier that ends later by no more than this may be the one that memory has: how long it lives is
/// worked out anew when it is read, from when it was asked for.
const SAME_ENTRY: Duration = Duration::from_millis(50);

/// Why a value is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Somebody waits for it.
    Need,
    /// Somebody was answered, and it is time for the next.
    Refresh,
    /// Somebody wants a new one, whatever there is.
    Force,
}

/// A flight under way, and what is known by now.
pub(super) struct Flying<V: Clone + Send + Sync + 'static> {
    pub(super) lead: Lead<V>,
    pub(super) captured: Captured,
    /// What memory has, if that is worth asking about.
    pub(super) known: Option<Box<Entry<V>>>,
    pub(super) purpose: Purpose,
    /// When the remote tier was asked last, or before.
    pub(super) began_at: Instant,
    /// The remote tier was asked, and answered.
    pub(super) fence: Option<Fence>,
    /// How long somebody else's lease stood then; zero without one.
    pub(super) leased: Duration,
    /// What lay there then, to be left there under a lease of ours.
    pub(super) before: Option<Before>,
    /// Our lease.
    pub(super) lease: Option<Held<V>>,
    /// What there was in memory or, once that was asked, in the remote tier: told to the loader, and fallen back
    /// on if it fails.
    pub(super) previous: Option<Entry<V>>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// The value, by a flight that is running or by one of our own.
    pub(super) async fn need<F, R, L, E>(
        self: &Arc<Self>,
        key: &Key<'_>,
        tags: &[&str],
        purpose: Purpose,
        loader: F,
    ) -> Result<V, Error>
    where
        F: FnOnce(Option<Previous<V>>) -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        self.forbid_recursion(key)?;
        // Before boarding, and so before the load: whatever is removed from here on is newer than it.
        let captured = self.capture_for_load(tags);
        let flight = match self.board(key, purpose, captured) {
            Boarded::Found(remembered) => return self.recall(remembered),
            Boarded::Join(flight) => flight,
            Boarded::Lead(flying) => {
                let flight = flying.lead.aboard();
                self.take_off(*flying, loader);
                flight
            }
        };
        match purpose {
            Purpose::Force => flight.landing(self.waiter(purpose)).await,
            _ => self.await_outcome(&flight).await,
        }
    }

    /// Starts a flight that nobody waits for, unless there is one.
    pub(super) fn refresh_behind<F, R, L, E>(self: &Arc<Self>, key: &Key<'_>, tags: &[&str], loader: F)
    where
        F: FnOnce(Option<Previous<V>>) -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        if self.forbid_recursion(key).is_err() {
            return;
        }
        let captured = self.capture_for_load(tags);
        if let Boarded::Lead(flying) = self.board(key, Purpose::Refresh, captured) {
            self.events.refreshes.add();
            self.take_off(*flying, loader);
        }
    }

    pub(super) async fn await_outcome(self: &Arc<Self>, flight: &Flight<V>) -> Result<V, Error> {
        match flight.outcome(self.waiter(Purpose::Need), &self.clock, &self.epoch).await {
            Outcome::Landed(Ok(value)) if !flight.is_stale() => Ok(value),
            Outcome::Landed(Ok(value)) | Outcome::Meanwhile(value) => {
                self.events.stale_hits.add();
                self.events.stale_misses.add(1);
                Ok(value)
            }
            Outcome::Landed(Err(error)) => Err(error),
        }
    }

    pub(super) fn board(self: &Arc<Self>, key: &Key<'_>, purpose: Purpose, captured: Captured) -> Boarded<V> {
        let began = self.began(&captured);
        let counts = purpose != Purpose::Refresh;
        let is_wanted =
            |found: &Remembered<V>| !matches!(found, Remembered::Due(_) | Remembered::Revalidate(_));
        let found = || match purpose {
            Purpose::Need => self.remembered(key),
            Purpose::Refresh | Purpose::Force => self.considered(key).filter(is_wanted),
        };
        let waiter = self.waiter(purpose);
        let boarding = match purpose {
            Purpose::Force => Boarding::Lead(self.flights.force(key, began)),
            _ => self.flights.board(key, &self.epoch, began, self.max_local_life, found),
        };
        match boarding {
            Boarding::Found(remembered) => Boarded::Found(remembered),
            Boarding::Join(flight) => {
                if counts {
                    self.events.misses.add();
                    self.events.joined.add();
                }
                flight.expect(waiter);
                Boarded::Join(flight)
            }
            Boarding::Lead(lead) => {
                if counts {
                    self.events.misses.add();
                }
                lead.waiters().add(waiter);
                let purpose = if lead.replaces() { Purpose::Force } else { purpose };
                let began_at = self.clock.now();
                let left = |entry: &Entry<V>| self.standing(entry, began_at) != Standing::Gone;
                let renewed = |entry: Entry<V>| entry.renewed(&self.epoch, began_at);
                let idle = self.settings.time_to_idle;
                let is_forgotten = |entry: &Entry<V>| idle.is_some_and(|idle| entry.is_idle(idle, began_at));
                let remembered = self.local.get(key).filter(|entry| !is_forgotten(entry));
                let previous = remembered.and_then(renewed).filter(left);
                // Under a lease the bytes of what there was are wanted.
                let shares_loads = self.remote.as_ref().is_some_and(|remote| remote.lease.is_some());
                let known = match purpose {
                    Purpose::Refresh | Purpose::Force if shares_loads => None,
                    _ => self.known(key, &captured).map(Box::new),
                };
                let (fence, before, lease) = (None, None, None);
                Boarded::Lead(Box::new(Flying {
                    lead,
                    captured,
                    known,
                    purpose,
                    began_at,
                    fence,
                    leased: Duration::ZERO,
                    before,
                    lease,
                    previous,
                }))
            }
        }
    }

    fn take_off<F, R, L, E>(self: &Arc<Self>, flying: Flying<V>, loader: F)
    where
        F: FnOnce(Option<Previous<V>>) -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        let inside = self.nested(&flying);
        let load = Arc::clone(self).fly(flying, loader);
        tokio::spawn(LOADING.scope(inside, load).in_current_span());
    }

    /// The load: remote tier, then loader, then memory, then the waiters, then the remote tier.
    async fn fly<F, R, L, E>(self: Arc<Self>, flying: Flying<V>, loader: F)
    where
        F: FnOnce(Option<Previous<V>>) -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        let Some(flying) = self.look(flying).await else { return };
        self.release_at_once(&flying);
        let patience = self.patience();
        let Some((mut flying, place)) = self.agree(flying, patience).await else { return };
        let mut lease = flying.lease.take();
        let load = async {
            let load = async { loader(flying.previous()).await.map(Into::into).map_err(loader_failed) };
            let (loaded, cost) = self.run(load, slice::from_ref(&flying), patience, place).await;
            let loaded_at = self.clock.now();
            let mut landing = [(flying, loaded)];
            self.choose(&mut landing, patience).await;
            (landing, loaded_at, cost)
        };
        let ([(mut flying, loaded)], loaded_at, cost) = Held::keep(&mut lease, load).await;
        flying.lease = lease;
        if let Some(shared) = self.settle(flying, loaded, loaded_at, cost) {
            shared.with(&self).await;
        }
    }

    /// Asks the remote tier; `None` if that was the end of the flight.
    async fn look(&self, mut flying: Flying<V>) -> Option<Flying<V>> {
        let Some(remote) = &self.remote else { return self.spare(flying) };
        if flying.known.is_some() {
            let Again { mut changed, mut missing } = self.peek_at_many(remote, vec![flying]).await;
            match changed.pop() {
                Some(changed) => flying = changed,
                None => return missing.pop(),
            }
        }
        let asked_at = self.clock.now();
        let (key, names) = (flying.lead.key(), flying.captured.names());
        let read = remote.read(&key, &names);
        let read = self.await_remote(remote, slice::from_ref(&flying), read).await;
        drop((key, names));
        self.answered(flying, read, asked_at).await
    }

    /// What to make of a look into the remote tier, answered or not.
    pub(super) async fn answered(
        &self,
        flying: Flying<V>,
        read: Result<Read, Error>,
        asked_at: Instant,
    ) -> Option<Flying<V>> {
        match read {
            Ok(read) => self.heard(flying, read, asked_at).await,
            Err(_) => self.unheard(flying),
        }
    }

    /// What it means for a flight that the remote tier does not answer: nobody can tell whether what is in memory was
    /// removed elsewhere. It is what there is.
    pub(super) fn unheard(&self, flying: Flying<V>) -> Option<Flying<V>> {
        self.spare(Flying { fence: None, ..flying })
    }

    /// What the remote tier's answer means for a flight.
    pub(super) async fn heard(
        &self,
        mut flying: Flying<V>,
        read: Read,
        asked_at: Instant,
    ) -> Option<Flying<V>> {
        let Some(remote) = &self.remote else { return Some(flying) };
        let Flying { lead, captured, .. } = &mut flying;
        let found = self.found(remote, &lead.key(), captured, &read);
        let others = self.others(remote, found.as_ref(), &flying.captured);
        let others = self.await_remote(remote, slice::from_ref(&flying), others).await;
        let (key, captured, fence) = (flying.lead.key(), &flying.captured, read.slot.fence);
        let looked = self.judge(remote, &key, captured, fence, found.zip(others), asked_at).await;
        drop(key);
        self.looked(flying, looked)
    }

    /// The same, once it is known what it came to.
    pub(super) fn looked(&self, mut flying: Flying<V>, looked: Looked<V>) -> Option<Flying<V>> {
        flying.fence = Some(looked.fence);
        (flying.leased, flying.before) = (looked.lease, looked.before);
        let previous = std::mem::replace(&mut flying.previous, looked.entry);
        let Some(entry) = &flying.previous else { return Some(flying) };
        let serves = match (flying.purpose, self.standing_of_heard(entry, self.clock.now())) {
            (Purpose::Force, _) => false,
            (Purpose::Need, Standing::Fresh | Standing::Due) => true,
            // Another process was earlier, and there is nothing left to do.
            (Purpose::Refresh, Standing::Fresh | Standing::Due) => {
                let is_later = |previous: Entry<V>| {
                    previous.times().fresh_until.after(SAME_ENTRY) < entry.times().fresh_until
                };
                previous.is_none_or(is_later)
            }
            (_, _) => {
                // That the attempt before this one failed, a moment ago, is known in memory alone. If the entry was made
                // to expire since, that is no news of it.
                if let (Some(previous), Some(entry)) = (previous, &mut flying.previous) {
                    let (before, mut times) = (previous.times(), entry.times());
                    if previous.still_holds(&self.epoch) && (before.was_expired || !times.was_expired) {
                        times.throttled_until = before.throttled_until;
                        entry.set_times(times);
                    }
                }
                return self.spare(flying);
            }
        };
        if !serves {
            return Some(flying);
        }
        // It may carry tags that this flight does not name, so who came after the removal of one of them
        // may be waiting here: to them it must not be given.
        self.land_previous(flying, Seen::still_holds)
    }

    /// Ends a flight whose last attempt failed a moment ago, if there is something to serve instead.
    pub(super) fn spare(&self, flying: Flying<V>) -> Option<Flying<V>> {
        let now = self.clock.now();
        let is_throttled = |entry: &Entry<V>| {
            now < entry.times().throttled_until.min(entry.times().dies_at) && entry.content.is_ok()
        };
        match &flying.previous {
            Some(entry) if flying.purpose == Purpose::Need && is_throttled(entry) => {
                flying.lead.stands_in(true);
                let goes_on = self.land_previous(flying, Seen::is_left);
                goes_on.inspect(|flying| flying.lead.stands_in(false))
            }
            _ => Some(flying),
        }
    }

    /// Lands with what there was, if it may still be served as `holds` tells under the lock; else the flight goes on.
    pub(super) fn land_previous(
        &self,
        mut flying: Flying<V>,
        holds: impl FnOnce(&Seen, &Epoch) -> bool,
    ) -> Option<Flying<V>> {
        let entry = flying.previous.take()?;
        let (seen, content) = (entry.seen(), entry.content.clone());
        let mut entry = Some(entry);
        let store = |key| {
            if let Some(entry) = entry.take() {
                self.local.insert(key, entry);
            }
        };
        match flying.lead.land_if(|| holds(&seen, &self.epoch), content, store) {
            Ok(_) => None,
            // What was only made to expire may stand in for the load that comes now.
            Err(lead) => {
                let previous = entry.filter(|_| seen.is_left(&self.epoch));
                Some(Flying { lead, previous, ..flying })
            }
        }
    }

    /// Runs a loader on its place, if it needs one.
    pub(super) async fn run<L>(
        &self,
        load: impl Future<Output = Result<L, Error>>,
        flights: &[Flying<V>],
        patience: Patience,
        _place: Option<Place<'_>>,
    ) -> (Result<L, Error>, Duration) {
        let began = self.clock.now();
        let load = async {
            // Not where it is abandoned before it has begun.
            self.events.loads.add();
            load.await
        };
        let load = unharmed(load, "the loader panicked");
        let load = self.unless_abandoned(flights, timeout_at(patience.end, load));
        let loaded = self.attend(flights, patience, load).await;
        let cost = self.clock.now().since(began);
        let error = match loaded {
            Ok(Ok(Ok(loaded))) => return (Ok(loaded), cost),
            Ok(Ok(Err(error))) => error,
            Err(abandoned) => return (Err(abandoned), cost),
            Ok(Err(elapsed)) => {
                let problem = "the loader took longer than the load timeout";
                Error::with_source(ErrorKind::TimedOut, problem, elapsed)
            }
        };
        self.events.load_failures.add();
        (Err(error), cost)
    }

    /// Does a part of a load, until it is done or, where a load is not to outlive those who wait for it, all of them have
    /// gone.
    async fn unless_abandoned<T>(
        &self,
        flights: &[Flying<V>],
        part: impl Future<Output = T>,
    ) -> Result<T, Error> {
        if !self.settings.drops_abandoned_loads {
            return Ok(part.await);
        }
        let abandoned = poll_fn(|context| {
            // All of them are told whom to wake.
            let is_left = |flying: &Flying<V>| {
                flying.lead.is_left(context)
                    && flying.purpose != Purpose::Refresh
                    && !flying.lead.replaces()
                    && !flying.lead.has_released()
            };
            let left = flights.iter().filter(|flying| is_left(flying)).count();
            match left == flights.len() && flights.iter().all(|flying| flying.lead.abandon()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        tokio::select! {
            biased;
            () = abandoned => {
                self.events.abandoned.add();
                Err(Error::new(ErrorKind::Load, "nobody waited for the load any more"))
            }
            done = part => Ok(done),
        }
    }

    /// The right to load, where there is a limit to loads. A load that a loader of this cache waits for has it already:
    /// to let it wait for a place would be to let the two wait for each other.
    pub(super) async fn place(
        &self,
        flights: &[Flying<V>],
        patience: Patience,
    ) -> Result<Option<Place<'_>>, Error> {
        let Some(limit) = &self.load_limit else { return Ok(None) };
        let awaited_by = |waiter| {
            poll_fn(move |context| {
                // All of them are told whom to wake.
                let is_awaited = |flying: &Flying<V>| flying.lead.waiters().poll(waiter, context).is_ready();
                match flights.iter().filter(|flying| is_awaited(flying)).count() {
                    0 => Poll::Pending,
                    _ => Poll::Ready(()),
                }
            })
        };
        let place = async {
            tokio::select! {
                biased;
                // When loads that came together are given up together, none of those in the queue is to begin for a
                // moment.
                () = sleep_until(patience.end) => {
                    let problem =
                        "the load did not begin within the load timeout: `max_loads` others are running";
                    Err(Error::new(ErrorKind::TimedOut, problem))
                }
                () = awaited_by(Waiter::Loader) => Ok(None),
                place = limit.place(awaited_by(Waiter::Caller)) => Ok(Some(place)),
            }
        };
        let place = self.unless_abandoned(flights, place);
        self.attend(flights, patience, place).await.unwrap_or_else(Err)
    }
}

/// What code of others comes to, or that it panicked.
pub(super) async fn unharmed<L>(
    load: impl Future<Output = Result<L, Error>>,
    panicked: &'static str,
) -> Result<L, Error> {
    let mut load = pin!(load);
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(context)))
            .unwrap_or_else(|_| Poll::Ready(Err(Error::new(ErrorKind::Panicked, panicked))))
    })
    .await
}

pub(super) fn loader_failed(error: impl Into<BoxError>) -> Error {
    let error = error.into();
    // What a loader got from another cache of this crate is passed on as what it is.
    match error.downcast::<Error>() {
        Ok(error) if error.kind() == ErrorKind::Recursion => *error,
        Ok(error) => Error::with_source(ErrorKind::Load, "the loader failed", error as BoxError),
        Err(error) => Error::with_source(ErrorKind::Load, "the loader failed", error),
    }
}

pub(super) enum Boarded<V: Clone + Send + Sync + 'static> {
    Found(Remembered<V>),
    Join(Aboard<V>),
    Lead(Box<Flying<V>>),
}

impl<V: Clone + Send + Sync + 'static> Flying<V> {
    fn previous(&self) -> Option<Previous<V>> {
        let entry = self.previous.as_ref()?;
        let value = entry.content.as_ref().ok()?.clone();
        Some(Previous { value, validator: entry.validator().cloned() })
    }
}
