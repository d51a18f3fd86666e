//! What a look into the remote tier comes to.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    captured::{Captured, CapturedTag},
    envelope::Envelope,
    freshness::{Standing, Times},
    key::Key,
    local::Entry,
    recheck,
    remote::{Read, Remote},
    store::{Fence, Stored},
    tags::{Seen, Stamp},
    tiers::{Kept, Tiers},
};
use crate::{Error, clock::Instant};

/// More tags of an entry than this are looked up by a table.
const FEW_TAGS: usize = 16;

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

/// An entry as it lies in the remote tier.
pub(super) struct Sealed<'a> {
    stored: &'a Stored,
    envelope: Envelope<'a>,
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
        let found = self.found(remote, key, captured, &read);
        let others = self.others(remote, found.as_ref(), captured).await;
        self.judge(remote, key, captured, read.slot.fence, found.zip(others), asked_at).await
    }

    /// The state of those tags that an entry carries and the caller did not name.
    pub(super) async fn others(
        &self,
        remote: &Remote<V>,
        found: Option<&Sealed<'_>>,
        captured: &Captured,
    ) -> Option<Vec<CapturedTag>> {
        let names: Vec<&str> = found.map(|found| found.unnamed(captured).collect()).unwrap_or_default();
        if names.is_empty() { Some(Vec::new()) } else { self.stamped(remote, &names).await }
    }

    /// Brings `captured` up to date with an answer, and returns the entry that came with it, if it can be read.
    pub(super) fn found<'a>(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &mut Captured,
        read: &'a Read,
    ) -> Option<Sealed<'a>> {
        let agrees = self.observe(captured, &read.stamps);
        let stored = read.slot.entry.as_ref().filter(|_| agrees)?;
        let envelope = Envelope::open(&stored.bytes, key);
        if envelope.is_none() {
            self.unreadable(remote);
        }
        Some(Sealed { stored, envelope: envelope? })
    }

    /// The state of tags that entries carry and the caller did not name, for which it takes a second trip; `None` if
    /// they cannot be told.
    pub(super) async fn stamped(&self, remote: &Remote<V>, tags: &[&str]) -> Option<Vec<CapturedTag>> {
        let mut captured = self.capture(tags);
        let stamps = remote.stamps(tags).await.ok()?;
        // A tag of which nobody knows whether this is its stamp has none, and so has no entry that carries it.
        self.observe(&mut captured, &stamps);
        captured.epoch.1.map(|_| captured.tags)
    }

    /// What an entry comes to, found with those of its tags that the caller did not name.
    pub(super) async fn judge(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &Captured,
        fence: Fence,
        found: Option<(Sealed<'_>, Vec<CapturedTag>)>,
        asked_at: Instant,
    ) -> Looked<V> {
        let opened = match found {
            Some(found) => self.open(remote, key, captured, fence, found, asked_at).await,
            None => None,
        };
        let nothing = Opened { entry: None, lease: Duration::ZERO, before: None };
        let Opened { entry, lease, before } = opened.unwrap_or(nothing);
        let now = self.clock.now();
        let is_fresh =
            |entry: &Entry<V>| matches!(self.standing_of_heard(entry, now), Standing::Fresh | Standing::Due);
        match entry.as_ref().is_some_and(is_fresh) {
            true => self.events.remote_hits.add(),
            false => self.events.remote_misses.add(),
        }
        Looked { entry, fence, lease, before }
    }

    fn unreadable(&self, remote: &Remote<V>) {
        self.events.remote_unreadable.add();
        remote.format.tell_unreadable();
    }

    /// What is in the bytes: an entry, if it may be served or at least be fallen back on, and whether somebody is
    /// loading the key.
    async fn open(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &Captured,
        fence: Fence,
        (Sealed { stored, envelope }, others): (Sealed<'_>, Vec<CapturedTag>),
        asked_at: Instant,
    ) -> Option<Opened<V>> {
        let tags = || captured.tags.iter().chain(&others);
        // Whoever wrote the entry says how many there are.
        let many = if envelope.tags.len() > FEW_TAGS { tags().count() } else { 0 };
        let mut by_name = HashMap::with_capacity(many);
        by_name.extend(tags().take(many).map(|tag| (&*tag.name, tag)));
        let named = |tag: &str| match many {
            0 => tags().find(|captured| &*captured.name == tag),
            _ => by_name.get(tag).copied(),
        };
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
                    self.unreadable(remote);
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
            // Whoever wrote it may say little of much.
            cost: envelope.cost.map(|cost| cost.max(envelope.payload.raw_length)),
        };
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

impl<'a> Sealed<'a> {
    /// The tags that it carries, without those that are captured.
    pub(super) fn unnamed(&self, captured: &Captured) -> impl Iterator<Item = &'a str> {
        let is_named = |name: &str| captured.tags.iter().any(|tag| &*tag.name == name);
        self.envelope.tags.iter().map(|(name, _)| *name).filter(move |name| !is_named(name))
    }
}
