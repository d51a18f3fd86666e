//! How a flight ends: with what its loader returned, and what becomes of that in both tiers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::runtime::Handle;

use super::{
    builder::MayStandIn,
    captured::Captured,
    flight::{Forced, Place, Watch},
    freshness::Standing,
    key::{Key, StoredKey},
    lease::Held,
    load::{Flying, Purpose},
    loaded::{Loaded, What},
    local::{Entry, Local},
    message::Item,
    store::{Fence, Written},
    storing::Unfit,
    tags::{Invalidation, Seen},
    tiers::{Kept, Tiers},
    untold::Untold,
};
use crate::{Error, ErrorKind, clock::Instant};

/// A loaded value on its way to the other processes.
pub(super) struct Shared<V: Clone + Send + Sync + 'static> {
    key: Key<'static>,
    kept: Kept<V>,
    loaded_at: Instant,
    captured: Captured,
    /// `None` if nothing is to be compared with it any more: what is there is to go.
    fence: Option<Fence>,
    lease: Option<Held<V>>,
    /// Whether there was something before, which the remote tier may have.
    takes_a_place: bool,
    /// Of a forced load: what it left in memory, if anything, and whether something was stored or removed since.
    forced: Option<(Watch<V>, Option<Entry<V>>)>,
    /// And that the remote tier has to hear of it, whatever becomes of this.
    untold: Option<Untold<V>>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// Lands with what the loader returned at `now`, and returns what is to be offered to other processes.
    pub(super) fn settle(
        &self,
        flying: Flying<V>,
        loaded: Result<Loaded<V>, Error>,
        now: Instant,
        load_cost: Duration,
    ) -> Option<Shared<V>> {
        let key = flying.lead.key().into_owned();
        let Loaded { what, time_to_live, mut validator, mut cost, store, .. } = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                self.fail(flying, error, now);
                return None;
            }
        };
        let policy = &self.settings.policy;
        let (content, fresh) = match what {
            What::Value(value) => (Ok(value), policy.life(time_to_live, &key, now)),
            What::NotFound => (Err(Error::not_found()), policy.negative_life(time_to_live)),
            What::NotModified => match flying.previous.as_ref().map(|entry| (&entry.content, entry)) {
                Some((Ok(value), known)) => {
                    validator = validator.or_else(|| known.validator().cloned());
                    cost = cost.or(known.cost());
                    (Ok(value.clone()), policy.life(time_to_live, &key, now))
                }
                _ => {
                    self.events.load_failures.add();
                    let problem = "the loader answered `not_modified`, and had not been told of a value";
                    self.fail(flying, Error::new(ErrorKind::Load, problem), now);
                    return None;
                }
            },
        };
        let takes_a_place = flying.previous.is_some();
        let mut forced = (flying.purpose == Purpose::Force).then(|| self.flights.watch(&key));
        let fresh = if store { fresh } else { Duration::ZERO };
        if fresh.is_zero() && forced.is_none() {
            self.land_unstored(flying, content, now);
            return None;
        }
        let kept = Kept { content: content.clone(), fresh, load_cost, validator, cost };
        let heard_at = if self.remote.is_some() { flying.began_at } else { now };
        let entry = self.entry(&key, &kept, now, heard_at, flying.captured.seen());
        let entry = (!fresh.is_zero()).then_some(entry);
        let left = entry.clone().filter(|_| forced.is_some());
        let is_forced = forced.is_some();
        let mut untold = self.remote.as_ref().filter(|_| is_forced).map(|remote| remote.untold_removal(&key));
        let store = |stored: StoredKey, place: Place<'_, V>| {
            match entry.filter(|_| matches!(place, Place::Kept)) {
                None => self.local.remove(&key),
                Some(entry) => self.local.insert(stored, entry),
            }
            // Its caller is told of the new, and is not to find in the remote tier what it replaces.
            match place {
                Place::LeftTo(successor) => {
                    untold.take().into_iter().for_each(|untold| successor.take_on(Box::new(untold)));
                }
                Place::Kept | Place::Lost if self.local.get(&key).is_none() => {
                    untold.iter_mut().for_each(Untold::bar);
                }
                Place::Kept | Place::Lost => {}
            }
        };
        let landed = match &mut forced {
            Some(watch) => flying.lead.land_over(content, watch, store),
            None if flying.lead.land(content, |key| store(key, Place::Kept)) => Forced::Stored,
            None => Forced::Fenced,
        };
        match landed {
            Forced::Stored | Forced::Displaced => {}
            Forced::Superseded => {
                self.events.fenced.add();
                return None;
            }
            Forced::Fenced | Forced::Outlived => {
                self.events.fenced.add();
                if matches!(landed, Forced::Outlived) {
                    self.forget(&key);
                }
                // Whoever fenced it tells the remote tier, or will.
                untold.into_iter().for_each(Untold::told);
                return None;
            }
        }
        let remote = self.remote.as_ref()?;
        // A loader that blocks its thread may run for longer than its time-out: the store need not
        // remember a removal for that long, so its fence proves nothing any more.
        let is_too_late = self.clock.now().since(flying.began_at) + remote.timeout >= remote.hold;
        if is_too_late {
            self.events.fenced.add();
        }
        let fence = flying.fence.filter(|_| !is_too_late);
        let (captured, lease) = (flying.captured, flying.lease);
        let is_to_be_told = forced.is_some() || fence.is_some();
        let left = left.filter(|_| matches!(landed, Forced::Stored));
        let forced = forced.map(|watch| (watch, left));
        let shared =
            Shared { key, kept, loaded_at: now, captured, fence, lease, takes_a_place, forced, untold };
        is_to_be_told.then_some(shared)
    }

    /// Lands with what is not to be stored. What there was is not served any more where it has been replaced: whatever it
    /// was, by the news that there is none, and what is stale by any value.
    fn land_unstored(&self, flying: Flying<V>, content: Result<V, Error>, now: Instant) {
        let key = flying.lead.key().into_owned();
        let is_none = content.is_err();
        let is_outdated = |entry: &Entry<V>| {
            is_none || !matches!(self.standing_of_heard(entry, now), Standing::Fresh | Standing::Due)
        };
        // What was looked for there and not found need not be removed there.
        let lies_there = self.remote.is_some() && flying.previous.as_ref().is_some_and(is_outdated);
        let has_landed = flying.lead.land(content, |key| {
            if self.local.get(&key.as_key()).is_some_and(|entry| is_outdated(&entry)) {
                self.local.remove(&key.as_key());
            }
            if lies_there {
                self.owe_removal(&key.as_key());
            }
        });
        if has_landed && lies_there {
            self.disown(&key);
        }
    }

    /// Removes the key from both tiers, without waiting for it.
    fn forget(&self, key: &Key<'_>) {
        self.flights.fence(key, || {
            self.local.remove(key);
            self.owe_removal(key);
        });
        self.disown(key);
    }

    /// What the remote tier has of the key is not read before it is removed. In the lock, before anybody finds nothing in
    /// memory and looks there; to be followed by [`disown`](Self::disown).
    pub(super) fn owe_removal(&self, key: &Key<'_>) {
        if let Some(remote) = &self.remote {
            remote.owe_removal_quietly(key);
        }
    }

    /// Has the remote tier forget the key, and does not read it there before.
    pub(super) fn disown(&self, key: &Key<'_>) {
        let Some(remote) = &self.remote else { return };
        remote.owe_removal(key);
        // At once, and so that the others are told which key it is. What fails is owed still.
        if let Ok(runtime) = Handle::try_current() {
            let (remote, key) = (Arc::clone(remote), key.clone().into_owned());
            runtime.spawn(async move { remote.remove(&key).await });
        }
    }

    /// Lands with what there was, if that may stand in for the failure, else with the error.
    pub(super) fn fail(&self, mut flying: Flying<V>, error: Error, now: Instant) {
        if flying.lead.replaces() {
            // What there was is older than what another forced load brought since.
            let key = flying.lead.key().into_owned();
            let mut is_replaced = false;
            // In the lock, since nobody is kept from reading it by this load any more.
            flying.lead.land(Err(error), |key| {
                is_replaced = true;
                self.owe_removal(&key.as_key());
            });
            // Unless it was fenced: who did that has seen to it, or another load took its place.
            if is_replaced {
                self.forget(&key);
            }
            return;
        }
        if flying.lead.is_abandoned() {
            // It says nothing of the source, and there is nobody to be told.
            flying.lead.land(Err(error), |_| ());
            return;
        }
        let throttle = self.settings.policy.throttle();
        // Somebody else's code: what panics has not said yes.
        let may = |may: &MayStandIn| catch_unwind(AssertUnwindSafe(|| may(&error))).unwrap_or(false);
        let may_stand_in = self.settings.serve_stale_if.as_ref().is_none_or(may);
        if may_stand_in && self.fallback(&flying).is_some() {
            tracing::debug!(cache = %self.settings.name, "a stale value stands in for a load that failed: {error}");
            flying.lead.failed(error.clone());
            flying.lead.stands_in(true);
            if let Some(entry) = flying.previous.take() {
                let times = entry.times().after_failure(now, throttle);
                flying.previous = Some(self.again(entry, times));
            }
            match self.land_previous(flying, Seen::is_left) {
                None => return,
                Some(goes_on) => flying = goes_on,
            }
        }
        let error_throttle = self.settings.error_throttle;
        let kept = Kept {
            content: Err(error.clone()),
            fresh: error_throttle,
            load_cost: Duration::ZERO,
            validator: None,
            cost: None,
        };
        // No value that may be old: it is as good as it is new, however long the load took.
        let entry = self.entry(&flying.lead.key(), &kept, now, now, flying.captured.seen());
        // A value that is good for some time yet is worth more than the news that there is no newer one.
        let idle = self.settings.time_to_idle;
        let is_good = |entry: &Entry<V>| {
            let is_forgotten = idle.is_some_and(|idle| entry.is_idle(idle, now));
            !is_forgotten
                && match self.standing(entry, now) {
                    Standing::Fresh | Standing::Due => true,
                    Standing::Revalidate | Standing::Throttled => may_stand_in && entry.content.is_ok(),
                    Standing::Stale | Standing::Gone => false,
                }
        };
        let key = flying.lead.key().into_owned();
        let previous = flying.previous.take();
        let lies_there =
            self.remote.is_some() && previous.as_ref().is_some_and(|entry| entry.content.is_ok());
        let (mut is_kept, mut is_replaced) = (false, false);
        let flight = Arc::clone(flying.lead.flight());
        let has_landed = flying.lead.land(Err(error), |key| {
            // Since it failed, and before this lock.
            if flight.replaces() {
                is_replaced = true;
                self.owe_removal(&key.as_key());
                return;
            }
            // The remote tier may have nothing of it, as one that is full, and memory be as good as before.
            let there = self.local.get(&key.as_key());
            if let Some(good) = there.into_iter().chain(previous).find(is_good) {
                is_kept = true;
                let times = good.times().after_failure(now, throttle);
                self.local.insert(key, self.again(good, times));
                return;
            }
            let stored = key.as_key();
            // It would be found there by the next, and stand in for the failure until that is known again.
            if !may_stand_in && lies_there {
                self.owe_removal(&stored);
            }
            if !error_throttle.is_zero() {
                self.local.insert(key, entry);
            } else if !may_stand_in {
                self.local.remove(&stored);
            }
        });
        if is_replaced {
            self.forget(&key);
        } else if has_landed && !is_kept && !may_stand_in && lies_there {
            self.disown(&key);
        }
    }
}

impl<V: Clone + Send + Sync + 'static> Shared<V> {
    pub(super) async fn with(self, tiers: &Tiers<V>) {
        let Some(remote) = &tiers.remote else { return };
        let Self { key, kept, loaded_at, captured, fence, mut lease, takes_a_place, forced, untold } = self;
        let of_lease = match &mut lease {
            Some(lease) => lease.fence().await,
            None => None,
        };
        let fence = of_lease.or(fence);
        // Others may remember, and the remote tier may have, what was good until now.
        let item = Item::Key(key.clone(), Invalidation::Expire);
        let told = if forced.is_some() { remote.announce(&item).await } else { None };
        let written = match fence {
            Some(fence) => tiers.share(remote, &key, &kept, loaded_at, &captured, fence).await,
            None => Ok(None),
        };
        let written = written.unwrap_or_else(|Unfit| {
            // What is there still is older.
            if takes_a_place && forced.is_none() {
                tiers.disown(&key);
            }
            None
        });
        if let Some((watch, left)) = forced {
            if !matches!(written, Some(Written::Stored(_))) {
                // Refused because of a load that may have read before this one: what that stored is not to stay, either.
                // What fails is owed.
                let _ = remote.remove(&key).await;
            }
            // Once more: whatever read the remote tier between the landing and the change there has read what was to be
            // replaced.
            watch.fence_unless_forced(|is_unchanged| match left.filter(|_| is_unchanged) {
                Some(entry) => tiers.local.insert((&key).into(), entry),
                None => tiers.local.remove(&key),
            });
            let _ = remote.done(told, &item, Ok(())).await;
            untold.into_iter().for_each(Untold::told);
        }
        if let Some(lease) = lease.filter(|_| written.is_some()) {
            lease.forget();
        }
    }
}
