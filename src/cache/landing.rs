//! How a flight ends: with what its loader returned, and what becomes of that in both tiers.

use std::time::Duration;

use super::{
    freshness::Standing,
    key::{Key, StoredKey},
    lease::Held,
    load::{Flying, Purpose},
    loaded::{Loaded, What},
    local::{Entry, Local},
    message::Item,
    store::{Fence, Written},
    tags::{Invalidation, Seen},
    tiers::{Captured, Kept, Tiers},
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
    is_forced: bool,
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
                    let problem = "the loader answered `not_modified`, and had not been told of a value";
                    self.fail(flying, Error::new(ErrorKind::Load, problem), now);
                    return None;
                }
            },
        };
        let is_forced = flying.purpose == Purpose::Force;
        let fresh = if store { fresh } else { Duration::ZERO };
        if fresh.is_zero() && !is_forced {
            flying.lead.land(content, |_| ());
            return None;
        }
        let kept = Kept { content: content.clone(), fresh, load_cost, validator, cost };
        let heard_at = if self.remote.is_some() { flying.began_at } else { now };
        let entry = self.entry(&key, &kept, now, heard_at, flying.captured.seen());
        let store = |key: StoredKey| match fresh.is_zero() {
            true => self.local.remove(&key.as_key()),
            false => self.local.insert(key, entry),
        };
        if !flying.lead.land(content, store) {
            self.events.fenced.add();
            return None;
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
        let shared = Shared { key, kept, loaded_at: now, captured, fence, lease, is_forced };
        (is_forced || fence.is_some()).then_some(shared)
    }

    /// Lands with what there was, if that may stand in for the failure, else with the error.
    pub(super) fn fail(&self, mut flying: Flying<V>, error: Error, now: Instant) {
        if flying.lead.is_abandoned() {
            // It says nothing of the source, and there is nobody to be told.
            flying.lead.land(Err(error), |_| ());
            return;
        }
        let throttle = self.settings.policy.throttle();
        let may_stand_in = self.settings.serve_stale_if.as_ref().is_none_or(|may| may(&error));
        if may_stand_in && self.fallback(&flying).is_some() {
            tracing::debug!(cache = %self.settings.name, "a stale value stands in for a load that failed: {error}");
            // Who was answered before has been counted, for what is loaded ahead there is nobody to answer, and who
            // forced the load is told that it failed.
            if flying.purpose == Purpose::Need && !flying.lead.has_released() {
                self.events.stale_hits.add();
            }
            flying.lead.failed(error.clone());
            if let Some(entry) = flying.previous.take() {
                let times = entry.times().after_failure(now, throttle);
                flying.previous = Some(self.again(entry, times));
            }
            match self.land_previous(flying, Seen::is_left) {
                None => return,
                Some(goes_on) => flying = goes_on,
            }
        }
        let throttle = self.settings.error_throttle;
        let kept = Kept {
            content: Err(error.clone()),
            fresh: throttle,
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
            !is_forgotten && matches!(self.standing(entry, now), Standing::Fresh | Standing::Due)
        };
        let keeps = flying.previous.as_ref().is_some_and(is_good);
        flying.lead.land(Err(error), |key| {
            // The remote tier may have nothing of it, as one that is full, and memory be as good as before.
            let keeps = keeps || self.local.get(&key.as_key()).is_some_and(|entry| is_good(&entry));
            if !throttle.is_zero() && !keeps {
                self.local.insert(key, entry);
            }
        });
    }
}

impl<V: Clone + Send + Sync + 'static> Shared<V> {
    pub(super) async fn with(self, tiers: &Tiers<V>) {
        let Some(remote) = &tiers.remote else { return };
        let Self { key, kept, loaded_at, captured, fence, lease, is_forced } = self;
        let fence = lease.as_ref().and_then(Held::fence).or(fence);
        // Others may remember, and the remote tier may have, what was good until now.
        let item = Item::Key(key.clone(), Invalidation::Expire);
        let told = if is_forced { remote.announce(&item).await } else { None };
        let written = match fence {
            Some(fence) => tiers.share(remote, &key, &kept, loaded_at, &captured, fence).await,
            None => None,
        };
        if is_forced {
            if !matches!(written, Some(Written::Stored(_))) {
                // Refused because of a load that may have read before this one: what that stored is not to stay, either.
                // What fails is owed.
                let _ = remote.remove(&key).await;
            }
            let _ = remote.done(told, &item, Ok(())).await;
        }
        if let Some(lease) = lease.filter(|_| written.is_some()) {
            lease.forget();
        }
    }
}
