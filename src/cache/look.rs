//! What a look into the remote tier comes to.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    envelope::Envelope,
    freshness::Times,
    key::Key,
    local::Entry,
    recheck,
    remote::{Read, Remote},
    store::{Fence, Stored},
    tags::{Seen, Stamp},
    tiers::{Captured, CapturedTag, Kept, Tiers},
};
use crate::{Error, clock::Instant};

/// What a look into the remote tier came to.
pub(super) struct Looked<V> {
    pub(super) entry: Option<Entry<V>>,
    pub(super) fence: Fence,
    /// How long somebody's lease of the key still stands; zero without one.
    pub(super) lease: Duration,
    /// The entry as it lies there, where it is to stay there under a lease.
    pub(super) before: Option<Before>,
}

/// The bytes of an entry, and when its value dies.
pub(super) struct Before {
    pub(super) bytes: Bytes,
    pub(super) dies_at: Instant,
    /// A stamp that it carries is not that of now.
    pub(super) was_expired: bool,
    /// The stamps of now, of its own tags and of those that the load names.
    pub(super) epoch: Stamp,
    pub(super) tags: Vec<(Arc<str>, Stamp)>,
}

/// What the bytes of an entry came to.
struct Opened<V> {
    entry: Option<Entry<V>>,
    lease: Duration,
    before: Option<Before>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// Asks the remote tier for an entry, and brings `captured` up to date with the stamps there. `None` if
    /// it does not answer.
    pub(super) async fn look_in(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &mut Captured,
    ) -> Option<Looked<V>> {
        if let Some(known) = self.known(key, captured)
            && let Some(looked) = self.peek_at(remote, key, captured, known).await.ok()?
        {
            return Some(looked);
        }
        // Before the question: the life that is left counts from some moment after this one.
        let asked_at = self.clock.now();
        let read = remote.read(key, &captured.names()).await.ok()?;
        Some(self.take(remote, key, captured, read, asked_at).await)
    }

    /// What to make of an answer of the remote tier to a question of `asked_at`.
    pub(super) async fn take(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &mut Captured,
        read: Read,
        asked_at: Instant,
    ) -> Looked<V> {
        let agrees = self.observe(captured, read.epoch, &read.tags);
        let stored = read.slot.entry.filter(|_| agrees);
        let opened = match &stored {
            Some(stored) => self.open(remote, key, captured, stored, read.slot.fence, asked_at).await,
            None => None,
        };
        let nothing = Opened { entry: None, lease: Duration::ZERO, before: None };
        let Opened { entry, lease, before } = opened.unwrap_or(nothing);
        match entry {
            Some(_) => self.events.remote_hits.add(),
            None => self.events.remote_misses.add(),
        }
        Looked { entry, fence: read.slot.fence, lease, before }
    }

    /// What is in the bytes: an entry, if it may be served or at least be fallen back on, and whether somebody is
    /// loading the key.
    async fn open(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &Captured,
        stored: &Stored,
        fence: Fence,
        asked_at: Instant,
    ) -> Option<Opened<V>> {
        let unreadable = || {
            self.events.remote_unreadable.add();
            remote.format.tell_unreadable();
        };
        let Some(envelope) = Envelope::open(&stored.bytes, key) else {
            unreadable();
            return None;
        };
        let asked_for = |tag: &str| captured.tags.iter().find(|captured| &*captured.name == tag);
        let more: Vec<&str> =
            envelope.tags.iter().map(|(tag, _)| *tag).filter(|tag| asked_for(tag).is_none()).collect();
        let mut others = self.capture(&more);
        if !more.is_empty() {
            // Loaded under tags that this caller does not name: a second trip, for their stamps.
            let stamps = remote.stamps(&more).await.ok()?;
            let (&epoch, tags) = stamps.split_first()?;
            if !self.observe(&mut others, epoch, tags) {
                return None;
            }
        }
        let named =
            |tag: &str| asked_for(tag).or_else(|| others.tags.iter().find(|captured| &*captured.name == tag));
        let carried = envelope.tags.iter().map(|(tag, stamp)| (named(tag).and_then(|now| now.stamp), stamp));
        let carried = std::iter::once((captured.epoch.1, &envelope.epoch)).chain(carried);
        let (mut is_left, mut still_holds) = (true, true);
        for (now, then) in carried {
            is_left &= now.is_some_and(|now| now.has_not_removed(*then));
            still_holds &= now == Some(*then);
        }
        if !is_left {
            return None;
        }
        let remaining = envelope.value_left(stored.remaining);
        // It carries the stamps that the load saw: what that brings is not worth waiting for if they changed.
        let lease = if still_holds { envelope.lease_left(stored.remaining) } else { Duration::ZERO };
        let nothing = Some(Opened { entry: None, lease, before: None });
        if remaining.is_zero() {
            return nothing;
        }
        let age = envelope.life - remaining;
        let content = match envelope.negative {
            true => Err(Error::not_found()),
            false => match remote.format.decode(&stored.bytes, &envelope.payload).await {
                Some(value) => Ok(value),
                None => {
                    unreadable();
                    return nothing;
                }
            },
        };
        let times = match &content {
            Ok(_) => {
                let (whole, cost) = (envelope.fresh, envelope.load_cost);
                self.settings.policy.times_of_kept(asked_at, age, whole, remaining, cost)
            }
            Err(_) => Times::mortal(asked_at, envelope.fresh.saturating_sub(age).min(remaining)),
        };
        // Nothing is written that is not fresh, except by `expire`.
        let was_expired = envelope.fresh.is_zero() || !still_holds;
        let times = if was_expired { times.expired(asked_at) } else { times };
        let kept = Kept {
            content,
            fresh: times.fresh_until.since(asked_at),
            load_cost: envelope.load_cost,
            validator: envelope.validator.map(Arc::from),
            cost: None,
        };
        let tags = || captured.tags.iter().chain(&others.tags);
        let seen = Seen::new(captured.epoch.0, tags().map(CapturedTag::seen).collect());
        // One under a lease is about to change.
        let read_from = (recheck::pays(stored.bytes.len()) && lease.is_zero()).then_some(fence);
        let entry = self.entry_of(key, &kept, times, asked_at, seen, read_from);
        let before = match (captured.epoch.1, tags().map(CapturedTag::stamped).collect()) {
            (Some(epoch), Some(tags)) if remote.lease.is_some() && entry.content.is_ok() => {
                Some(Before { bytes: stored.bytes.clone(), dies_at: times.dies_at, was_expired, epoch, tags })
            }
            _ => None,
        };
        Some(Opened { entry: Some(entry), lease, before })
    }
}
