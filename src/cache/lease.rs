//! One load across processes: the lease of a key.
//!
//! A lease lies in the key. Who misses reads what is there with its fence, and writes a lease in its place if that
//! fence still holds; one of many can. The others read the lease, and look again from time to time until there is a
//! value. Who loads writes the value over his own lease, and only over that: whatever destroys the lease (a removal, an
//! insertion, another lease) refuses the write, and a lease whose tags were removed since is as none at all. So there
//! is nothing to keep in step with the key, and no lock to forget. A value that was there before stays in the lease,
//! and is served where it would have been.
//!
//! Who may not load yet, because too many other loads of his process run, takes no lease: others may have room. Nor does
//! he keep one of those places who waits for somebody else's lease.
//!
//! A lease is prolonged while the load runs, so it need not be as long as that: it is as long as a process that died
//! may keep the others waiting. A load that brings nothing to store gives it back. It saves loads and excludes
//! nothing: with the remote tier away, or after a lease that was lost, two processes may load one key, and the fences
//! decide whose value is stored.
//!
//! The lease in the key is that of rueidis (`rueidisaside`), the token that a removal destroys that of Facebook's
//! memcached (Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1). Those who wait are not woken:
//! a load invalidates nothing, so the bus does not tell of it, and a message for each would cost more than the looks.

use std::{slice, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{sleep, timeout_at},
};
use tracing::Instrument;

use super::{
    captured::Captured,
    envelope::{Envelope, Lease, Payload},
    key::Key,
    load::{Flying, Purpose},
    load_limit::Place,
    look::Before,
    patience::Patience,
    remote::Remote,
    store::{Fence, Written},
    tiers::Tiers,
};
use crate::{Error, ErrorKind, clock::Instant};

/// The shortest and the longest pause of those who wait. In between a pause is half of what was waited so far, so that
/// a value is late by no more than half of its load.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];
/// How long a lease lasts that was given back where there is no value to leave: what every store takes for a life.
const OVER: Duration = Duration::from_millis(1);

/// A lease of ours. Dropped, it is given back.
pub(super) struct Held<V: Clone + Send + Sync + 'static> {
    tiers: Arc<Tiers<V>>,
    /// `None` once it is known to be over.
    claim: Option<Claim>,
}

/// What a lease is written with, again and again.
struct Claim {
    key: Key<'static>,
    /// What it is known by, if whether it was written is not.
    holder: u64,
    fence: Fence,
    /// The store did not say what became of the last write.
    is_unsure: bool,
    captured: Captured,
    before: Option<Before>,
}

/// Somebody else's lease: the first that is seen of it says how long it may last, so that one which is not prolonged
/// is over whatever it says of itself.
struct Theirs {
    fence: Fence,
    until: Instant,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// The right to load: a place, and then the lease of the key. Or the value of who has the lease; `None` if that,
    /// or the end of the time for it, was the end of the flight.
    pub(super) async fn agree<'a>(
        self: &'a Arc<Self>,
        flying: Flying<V>,
        patience: Patience,
    ) -> Option<(Flying<V>, Option<Place<'a>>)> {
        match self.remote.as_ref().and_then(|remote| Some((remote, remote.lease?))) {
            Some((remote, lease)) => Box::pin(self.take_turns(remote, lease, flying, patience)).await,
            None => self.place_for(flying, patience).await,
        }
    }

    /// Looks again and again, for as long as a load may take: first for a value, then for the lease.
    async fn take_turns<'a>(
        self: &'a Arc<Self>,
        remote: &Remote<V>,
        lease: Duration,
        mut flying: Flying<V>,
        patience: Patience,
    ) -> Option<(Flying<V>, Option<Place<'a>>)> {
        let mut theirs = Theirs::in_the_way_of(&flying, None, self.clock.now(), lease);
        let mut paused = Duration::ZERO;
        loop {
            if theirs.is_none() {
                // A lease is for a load that runs, and a place for one that may.
                let (placed, place) = self.place_for(flying, patience).await?;
                flying = placed;
                if self.claim(remote, lease, &mut flying, patience).await {
                    return Some((flying, place));
                }
            }
            if paused.is_zero() {
                self.events.awaited.add();
            }
            let pause = (paused / 2).clamp(PAUSES[0], PAUSES[1]);
            paused += pause;
            // A quarter more or less, or all who wait would look at once.
            let pause = sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0));
            let pause = timeout_at(patience.end, pause);
            if self.attend(slice::from_ref(&flying), patience, pause).await.is_err() {
                let problem = "the value was not there in time, and another process was loading it";
                self.fail(flying, Error::new(ErrorKind::TimedOut, problem), self.clock.now());
                return None;
            }
            flying = self.look_again(remote, flying, theirs.as_ref(), patience).await?;
            self.release_at_once(&flying);
            theirs = Theirs::in_the_way_of(&flying, theirs, self.clock.now(), lease);
        }
    }

    /// A place for a load; `None` if it did not come in time, which was the end of the flight.
    async fn place_for(
        &self,
        flying: Flying<V>,
        patience: Patience,
    ) -> Option<(Flying<V>, Option<Place<'_>>)> {
        match self.place(slice::from_ref(&flying), patience).await {
            Ok(place) => Some((flying, place)),
            Err(error) => {
                self.fail(flying, error, self.clock.now());
                None
            }
        }
    }

    /// Asks the remote tier once more. While nothing moves there it costs no more than the question.
    async fn look_again(
        &self,
        remote: &Remote<V>,
        mut flying: Flying<V>,
        theirs: Option<&Theirs>,
        patience: Patience,
    ) -> Option<Flying<V>> {
        let asked_at = self.clock.now();
        let (key, names) = (flying.lead.key(), flying.captured.names());
        let read = remote.read(&key, &names);
        let read = self.attend(slice::from_ref(&flying), patience, read).await;
        drop((key, names));
        if let (Some(theirs), Ok(read)) = (theirs, &read)
            && theirs.fence == read.slot.fence
            && asked_at < theirs.until
            && flying.captured.says(read)
        {
            return Some(flying);
        }
        flying.began_at = asked_at;
        self.answered(flying, read, asked_at).await
    }

    /// Takes the lease. Returns whether the load may begin: with it, or because there can be none.
    async fn claim(
        self: &Arc<Self>,
        remote: &Remote<V>,
        lease: Duration,
        flying: &mut Flying<V>,
        patience: Patience,
    ) -> bool {
        // Everybody for himself, where the remote tier does not answer.
        let Some(fence) = flying.fence else { return true };
        let (key, captured) = (flying.lead.key().into_owned(), flying.captured.clone());
        let before = flying.before.take();
        let mut claim = Claim { key, holder: fastrand::u64(..), fence, is_unsure: false, captured, before };
        let written = self.attend(slice::from_ref(&*flying), patience, claim.write(remote, lease)).await;
        if written == Some(Written::Refused) {
            return false;
        }
        if written.is_some() || claim.is_unsure {
            flying.lease = Some(Held { tiers: Arc::clone(self), claim: Some(claim) });
        }
        true
    }
}

impl<V: Clone + Send + Sync + 'static> Held<V> {
    /// What is to be compared when the value is written over the lease; `None` if that is over.
    pub(super) async fn fence(&mut self) -> Option<Fence> {
        let claim = self.claim.as_mut()?;
        if claim.is_unsure
            && let Some(remote) = &self.tiers.remote
            && claim.is_over(remote).await == Some(true)
        {
            self.claim = None;
        }
        Some(self.claim.as_ref()?.fence)
    }

    /// There is nothing to give back any more.
    pub(super) fn forget(mut self) {
        self.claim = None;
    }

    /// Prolongs the lease, if there is one, for as long as the load runs.
    pub(super) async fn keep<T>(held: &mut Option<Self>, load: impl Future<Output = T>) -> T {
        let Some(held) = held else { return load.await };
        let has_ended = Notify::new();
        let load = async {
            let loaded = load.await;
            has_ended.notify_one();
            loaded
        };
        // Not dropped half way: whether a lease was prolonged decides what the value has to be compared with.
        tokio::join!(load, held.prolong(&has_ended)).0
    }

    async fn prolong(&mut self, has_ended: &Notify) {
        let Some(remote) = &self.tiers.remote else { return };
        let Some(lease) = remote.lease else { return };
        while let Some(claim) = &mut self.claim {
            tokio::select! {
                biased;
                () = has_ended.notified() => return,
                () = sleep(lease / 2) => {}
            }
            if claim.write(remote, lease).await == Some(Written::Refused) {
                self.claim = None;
            }
        }
    }
}

impl<V: Clone + Send + Sync + 'static> Drop for Held<V> {
    fn drop(&mut self) {
        let Some(mut claim) = self.claim.take() else { return };
        // Without a runtime it is over when its time is.
        let Ok(runtime) = Handle::try_current() else { return };
        let tiers = Arc::clone(&self.tiers);
        let give_back = async move {
            if let Some(remote) = &tiers.remote {
                claim.write(remote, Duration::ZERO).await;
            }
        };
        runtime.spawn(give_back.in_current_span());
    }
}

impl Claim {
    /// Writes a lease over what the fence saw; `None` if that cannot be done or nobody knows whether it was. Of no
    /// duration it gives the lease back, and leaves the value that was there before.
    async fn write<V: Send + Sync + 'static>(
        &mut self,
        remote: &Remote<V>,
        lease: Duration,
    ) -> Option<Written> {
        if self.is_unsure && self.is_over(remote).await? {
            return Some(Written::Refused);
        }
        let (bytes, life) = self.sealed(remote, lease)?;
        let written = remote.put(&self.key, bytes, life, Some(self.fence)).await;
        // What was refused, or not begun, was not done.
        let has_no_answer =
            |error: &Error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Unavailable);
        self.is_unsure = written.as_ref().is_err_and(has_no_answer);
        if let Ok(Written::Stored(fence)) = written {
            self.fence = fence;
        }
        written.ok()
    }

    /// Looks for the lease where the store did not say whether it was written: it lies there under a fence that nobody
    /// was told, and everybody would wait for it until its time is over. `None` if the store does not answer now, either.
    async fn is_over<V: Send + Sync + 'static>(&mut self, remote: &Remote<V>) -> Option<bool> {
        let slot = remote.read(&self.key, &[]).await.ok()?.slot;
        let lying = slot.entry.as_ref().and_then(|stored| Envelope::open(&stored.bytes, &self.key)?.lease);
        if lying.is_some_and(|lease| lease.holder == self.holder) {
            self.fence = slot.fence;
            self.is_unsure = false;
        }
        // As it was before the write, which may yet be made.
        Some(slot.fence != self.fence)
    }

    fn sealed<V>(&self, remote: &Remote<V>, lease: Duration) -> Option<(Bytes, Duration)> {
        if let Some(before) = &self.before {
            // A write may arrive as late as the time-out.
            let left = before.dies_at.since(remote.clock.now()).saturating_sub(remote.timeout);
            if !left.is_zero() {
                let (term, life) = Lease::over(lease, left, self.holder);
                let mut envelope = Envelope::open(&before.bytes, &self.key)?;
                envelope.lease = (!lease.is_zero()).then_some(term);
                // The lease stands or falls with the stamps that the load saw. Of a value that was made to expire
                // they tell no longer, so that is said in another way.
                envelope.epoch = before.epoch;
                envelope.tags = before.tags.iter().map(|(tag, stamp)| (&**tag, *stamp)).collect();
                if before.was_expired {
                    envelope.fresh = Duration::ZERO;
                }
                return Some((envelope.seal(&self.key)?, life));
            }
        }
        let (epoch, tags) = self.captured.stamps()?;
        let (term, life) = Lease::over(lease.max(OVER), Duration::ZERO, self.holder);
        let envelope = Envelope {
            epoch,
            tags,
            fresh: Duration::ZERO,
            life: Duration::ZERO,
            load_cost: Duration::ZERO,
            validator: None,
            cost: None,
            negative: false,
            lease: Some(term),
            payload: Payload::EMPTY,
        };
        Some((envelope.seal(&self.key)?, life))
    }
}

impl Theirs {
    /// The lease that a flight has to wait for, if there is one; `known` is that of the look before.
    fn in_the_way_of<V: Clone + Send + Sync + 'static>(
        flying: &Flying<V>,
        known: Option<Self>,
        now: Instant,
        longest: Duration,
    ) -> Option<Self> {
        let fence = flying.fence?;
        // Who loads now may have read before a forced load was asked for.
        if flying.purpose == Purpose::Force || flying.leased.is_zero() {
            return None;
        }
        let seen = || Self { fence, until: now.after(flying.leased.min(longest)) };
        Some(known.filter(|known| known.fence == fence).unwrap_or_else(seen))
            .filter(|theirs| now < theirs.until)
    }
}
