//! How a flight ends: with what its loader returned, and what becomes of that in both tiers.

use std::time::Duration;

use super::{
    freshness::Standing,
    key::Key,
    lease::Held,
    load::{Flying, Purpose},
    loaded::{Loaded, What},
    local::Local,
    store::Fence,
    tags::Seen,
    tiers::{Captured, Kept, Tiers},
};
use crate::{Error, ErrorKind, clock::Instant};

/// A loaded value on its way to the other processes.
pub(super) struct Shared<V: Clone + Send + Sync + 'static> {
    key: Key<'static>,
    kept: Kept<V>,
    loaded_at: Instant,
    captured: Captured,
    fence: Fence,
    lease: Option<Held<V>>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// Lands with what the loader returned, and returns what is to be offered to other processes.
    pub(super) fn settle(
        &self,
        flying: Flying<V>,
        loaded: Result<Loaded<V>, Error>,
        load_cost: Duration,
    ) -> Option<Shared<V>> {
        let now = self.clock.now();
        let key = flying.lead.key().into_owned();
        let Loaded { what, time_to_live, mut validator, cost, store } = match loaded {
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
            What::NotModified => {
                match flying.previous.as_ref().map(|entry| (&entry.content, entry.validator())) {
                    Some((Ok(value), known)) => {
                        validator = validator.or_else(|| known.cloned());
                        (Ok(value.clone()), policy.life(time_to_live, &key, now))
                    }
                    _ => {
                        let problem = "the loader answered `not_modified`, and had not been told of a value";
                        self.fail(flying, Error::new(ErrorKind::Load, problem), now);
                        return None;
                    }
                }
            }
        };
        if !store || fresh.is_zero() {
            flying.lead.land(content, |_| ());
            return None;
        }
        let kept = Kept { content: content.clone(), fresh, load_cost, validator, cost };
        let heard_at = if self.remote.is_some() { flying.began_at } else { now };
        let entry = self.entry(&key, &kept, now, heard_at, flying.captured.seen());
        if !flying.lead.land(content, |key| self.local.insert(key, entry)) {
            self.events.fenced.add();
            return None;
        }
        let fence = flying.fence?;
        // A loader that blocks its thread may run for longer than its time-out: the store need not
        // remember a removal for that long, so its fence proves nothing any more.
        let remote = self.remote.as_ref()?;
        if self.clock.now().since(flying.began_at) + remote.timeout >= remote.hold {
            self.events.fenced.add();
            return None;
        }
        Some(Shared { key, kept, loaded_at: now, captured: flying.captured, fence, lease: flying.lease })
    }

    /// Lands with a stale value if there is one that may stand in for the failure, else with the error.
    pub(super) fn fail(&self, mut flying: Flying<V>, error: Error, now: Instant) {
        let throttle = self.settings.policy.throttle();
        let may_stand_in = self.settings.serve_stale_if.as_ref().is_none_or(|may| may(&error));
        if may_stand_in && self.fallback(&flying).is_some() {
            tracing::debug!(cache = %self.settings.name, "a stale value stands in for a load that failed: {error}");
            // Who was answered before has been counted, and for what is loaded ahead there is nobody to answer.
            if flying.purpose != Purpose::Refresh && !flying.lead.has_released() {
                self.events.stale_hits.add();
            }
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
        let heard_at = if self.remote.is_some() { flying.began_at } else { now };
        let kept = Kept {
            content: Err(error.clone()),
            fresh: throttle,
            load_cost: Duration::ZERO,
            validator: None,
            cost: None,
        };
        let entry = self.entry(&flying.lead.key(), &kept, now, heard_at, flying.captured.seen());
        // A value that is good for some time yet is worth more than the news that there is no newer one.
        let keeps = flying.previous.as_ref().is_some_and(|entry| self.standing(entry, now) == Standing::Due);
        flying.lead.land(Err(error), |key| {
            if !throttle.is_zero() && !keeps {
                self.local.insert(key, entry);
            }
        });
    }
}

impl<V: Clone + Send + Sync + 'static> Shared<V> {
    pub(super) async fn with(self, tiers: &Tiers<V>) {
        let Some(remote) = &tiers.remote else { return };
        let Self { key, kept, loaded_at, captured, fence, lease } = self;
        let fence = lease.as_ref().and_then(Held::fence).unwrap_or(fence);
        let is_settled = tiers.share(remote, &key, &kept, loaded_at, &captured, fence).await;
        if let Some(lease) = lease.filter(|_| is_settled) {
            lease.forget();
        }
    }
}
