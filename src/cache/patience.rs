//! For how long callers wait, and what they are given when that is over.

use std::pin::pin;

use tokio::time::{sleep, sleep_until};

use super::{
    flight::Meanwhile,
    freshness::Standing,
    load::{Flying, Purpose},
    local::Entry,
    remote::Remote,
    tiers::Tiers,
};

/// Until when a load may take, whatever it has to wait for before it begins.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// From when on those wait no longer who have a value to be served instead.
    soft: Option<tokio::time::Instant>,
    pub(super) end: tokio::time::Instant,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// For how long a load may take that is about to begin.
    pub(super) fn patience(&self) -> Patience {
        let from_now = |time| sleep(time).deadline();
        let settings = &self.settings;
        Patience { soft: settings.soft_timeout.map(from_now), end: from_now(settings.load_timeout) }
    }

    /// Does a part of a load, and lets those wait no longer who have a stale value when the load becomes slow.
    pub(super) async fn attend<'a, T>(
        &self,
        flights: impl IntoIterator<Item = &'a Flying<V>> + Clone,
        patience: Patience,
        part: impl Future<Output = T>,
    ) -> T {
        let can_release = flights.clone().into_iter().any(Flying::has_fallback);
        let Some(soft) = patience.soft.filter(|_| can_release) else { return part.await };
        let release = || flights.into_iter().for_each(|flying| self.release(flying));
        unless_slow(part, soft, release).await
    }

    /// Waits for an answer of the remote tier, and lets those wait no longer who have a stale value when it is slow.
    pub(super) async fn await_remote<'a, T>(
        &self,
        remote: &Remote<V>,
        flights: impl IntoIterator<Item = &'a Flying<V>> + Clone,
        answer: impl Future<Output = T>,
    ) -> T {
        let can_release = flights.clone().into_iter().any(Flying::has_fallback);
        let first = flights.clone().into_iter().next().filter(|_| can_release);
        let Some((soft, first)) = remote.soft_timeout.zip(first) else { return answer.await };
        // Of two questions the second has what the first left of it.
        let soft = sleep(soft.saturating_sub(self.clock.now().since(first.began_at))).deadline();
        let release = || flights.into_iter().for_each(|flying| self.release_confirmed(flying));
        unless_slow(answer, soft, release).await
    }

    /// Lets nobody wait where a stale value is to be served while a load runs.
    pub(super) fn release_at_once(&self, flying: &Flying<V>) {
        let now = self.clock.now();
        if flying.purpose == Purpose::Need
            && let Some(entry) = &flying.previous
            && entry.content.is_ok()
            && Standing::Revalidate
                == match flying.fence {
                    Some(_) => self.standing_of_heard(entry, now),
                    None => self.standing(entry, now),
                }
        {
            let until = entry.times().revalidate_until;
            // What was made to expire is waited for.
            flying.lead.release(Meanwhile { entry: entry.clone(), until, holds: Entry::still_holds });
        }
    }

    /// Lets those wait no longer who have a value to be served instead.
    pub(super) fn release(&self, flying: &Flying<V>) {
        if let Some(entry) = self.fallback(flying) {
            let until = entry.times().dies_at;
            flying.lead.release(Meanwhile { entry: entry.clone(), until, holds: Entry::is_left });
        }
    }

    /// The same, with what could be served from memory if it were fresh: it was not removed elsewhere longer ago than
    /// it may be stale, and not made to expire. That is waited for: the store is slow, and not the load.
    fn release_confirmed(&self, flying: &Flying<V>) {
        let now = self.clock.now();
        let may_be_served = |entry: &&Entry<V>| self.is_confirmed(entry, now) && !entry.times().was_expired;
        if let Some(entry) = self.fallback(flying).filter(may_be_served) {
            let until = entry.times().dies_at.min(self.confirmed_until(entry));
            flying.lead.release(Meanwhile { entry: entry.clone(), until, holds: Entry::still_holds });
        }
    }

    /// What to serve instead of a new value.
    pub(super) fn fallback<'a>(&self, flying: &'a Flying<V>) -> Option<&'a Entry<V>> {
        flying.fallback().filter(|entry| self.standing(entry, self.clock.now()) != Standing::Gone)
    }
}

impl<V: Clone + Send + Sync + 'static> Flying<V> {
    fn fallback(&self) -> Option<&Entry<V>> {
        self.previous.as_ref().filter(|entry| entry.content.is_ok())
    }

    fn has_fallback(&self) -> bool {
        self.fallback().is_some()
    }
}

/// Does a part of a load, and something else from `soft` on, once, while it goes on.
async fn unless_slow<T>(part: impl Future<Output = T>, soft: tokio::time::Instant, slow: impl FnOnce()) -> T {
    let mut part = pin!(part);
    tokio::select! {
        biased;
        done = &mut part => return done,
        () = sleep_until(soft) => slow(),
    }
    part.await
}
