//! What is written to the remote tier, and when it may not be.

use std::time::Duration;

use bytes::Bytes;

use super::{
    captured::Captured,
    envelope::{Envelope, Payload},
    format::Encoded,
    key::Key,
    local::Local,
    message::Item,
    remote::Remote,
    store::{Fence, Written},
    tags::Invalidation,
    tiers::{Kept, Tiers},
};
use crate::{
    Error, ErrorKind,
    clock::{Instant, nanos},
};

/// How often an insertion is begun anew because somebody else wrote the key in between.
const WRITE_TRIES: usize = 3;

/// A value that is not to be stored in the remote tier: there is too little life left, or it does not fit.
pub(super) struct Unfit;

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    /// Offers a loaded value to the other processes, unless one of them invalidated it meanwhile. `None` unless what
    /// the fence saw is certain to be there no longer.
    ///
    /// # Errors
    ///
    /// What the fence saw is as it was: this is not to be stored.
    pub(super) async fn share(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        kept: &Kept<V>,
        loaded_at: Instant,
        captured: &Captured,
        fence: Fence,
    ) -> Result<Option<Written>, Unfit> {
        if captured.stamps().is_none() {
            // A removal of our own came before the load, and is on its way to the remote tier.
            self.events.fenced.add();
            return Ok(None);
        }
        if remote.is_spared() {
            self.events.remote_failures.add();
            return Ok(None);
        }
        let (bytes, life) = match self.seal(remote, key, kept, loaded_at, captured).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Err(Unfit),
            // Told by the format, and once.
            Err(error) if error.kind() == ErrorKind::Codec => return Err(Unfit),
            Err(error) => {
                remote.tell_unfit(&error);
                return Err(Unfit);
            }
        };
        let written = remote.put(key, bytes, life, Some(fence)).await.ok();
        if written == Some(Written::Refused) {
            self.events.fenced.add();
            // A forced load that began since will bring what is newer than either.
            self.flights.watch(key).fence_unless_forced(|_| self.local.remove(key));
        }
        Ok(written)
    }

    /// Stores a value in both tiers, the remote one first.
    pub(super) async fn write_through(
        &self,
        key: &Key<'_>,
        kept: &Kept<V>,
        mut captured: Captured,
    ) -> Result<(), Error> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let item = Item::Key(key.clone(), Invalidation::Remove);
        let told = remote.announce(&item).await;
        let watch = self.flights.watch(key);
        let written = self.write(remote, key, kept, &mut captured).await;
        if written.is_err() {
            // What is there is older than what was to be put there.
            remote.owe_removal(key);
        }
        let entry = self.entry(key, kept, captured.at, captured.at, captured.seen());
        watch.fence(|is_unchanged| match is_unchanged {
            true => self.local.insert(key.into(), entry),
            // A removal that came meanwhile may have reached the remote tier before or after us. Let the
            // remote tier say which, by having nothing in memory.
            false => self.local.remove(key),
        });
        remote.done(told, &item, written).await
    }

    async fn write(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        kept: &Kept<V>,
        captured: &mut Captured,
    ) -> Result<(), Error> {
        // With a fence, though it overwrites whatever is there: a write that was given up may still arrive, and
        // must not undo a removal that came in between.
        for _ in 0..WRITE_TRIES {
            let read = remote.read(key, &captured.names()).await?;
            if !self.observe(captured, &read.stamps) {
                continue;
            }
            let Some((bytes, life)) = self.seal(remote, key, kept, captured.at, captured).await? else {
                // Not worth the trip; but what is there is older.
                return remote.remove(key).await;
            };
            if remote.put(key, bytes, life, Some(read.slot.fence)).await? != Written::Refused {
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the key is written or removed faster than this value can be stored",
        ))
    }

    /// Makes what is stored under the key expire, in the remote tier.
    pub(super) async fn expire_remote(&self, remote: &Remote<V>, key: &Key<'_>) -> Result<(), Error> {
        let item = Item::Key(key.clone(), Invalidation::Expire);
        let told = remote.announce(&item).await;
        let expired = self.write_expired(remote, key).await;
        if expired.is_err() {
            remote.owe_removal(key);
        }
        remote.done(told, &item, expired).await
    }

    async fn write_expired(&self, remote: &Remote<V>, key: &Key<'_>) -> Result<(), Error> {
        for _ in 0..WRITE_TRIES {
            let read = remote.read(key, &[]).await?;
            let stale = read.slot.entry.as_ref().and_then(|stored| {
                let mut envelope = Envelope::open(&stored.bytes, key)?;
                let left = envelope.value_left(stored.remaining).saturating_sub(remote.timeout);
                let is_worth_it = !envelope.negative && envelope.fresh < envelope.life && !left.is_zero();
                // Nor must a load that holds the lease.
                (envelope.fresh, envelope.life, envelope.lease) = (Duration::ZERO, left, None);
                is_worth_it.then(|| Some((envelope.seal(key)?, left)))?
            });
            // What was never to be stale is removed, and so is what is not there: a load that is running
            // elsewhere must not store what it read.
            let Some((bytes, life)) = stale else { return remote.remove(key).await };
            if remote.put(key, bytes, life, Some(read.slot.fence)).await? != Written::Refused {
                return Ok(());
            }
        }
        remote.remove(key).await
    }

    /// The bytes of an entry that was made at `from`, and how long they are to live; `None` if there is not enough
    /// life left to be worth it.
    pub(super) async fn seal(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        kept: &Kept<V>,
        from: Instant,
        captured: &Captured,
    ) -> Result<Option<(Bytes, Duration)>, Error> {
        // In whole milliseconds, as it is written: of a part of one that is lost the entry would be stale, where none is to be.
        let fresh = Duration::from_millis(nanos(self.left(from, kept.fresh, remote)) / 1_000_000);
        let afterlife = match &kept.content {
            Ok(_) => self.settings.policy.afterlife(),
            Err(_) => Duration::ZERO,
        };
        if fresh.is_zero() {
            return Ok(None);
        }
        let encoded = match &kept.content {
            Ok(value) => Some(remote.format.encode(value).await?),
            Err(_) => None,
        };
        let too_long = || Error::new(ErrorKind::Refused, "the key or a tag is too long to be stored");
        let (epoch, tags) = captured.stamps().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the remote tier has not told the stamps to store the value with",
            )
        })?;
        let envelope = Envelope {
            epoch,
            tags,
            fresh,
            life: fresh + afterlife,
            load_cost: kept.load_cost,
            validator: kept.validator.as_deref(),
            cost: kept.cost,
            negative: kept.content.is_err(),
            lease: None,
            payload: encoded.as_ref().map_or(Payload::EMPTY, Encoded::payload),
        };
        Ok(Some((envelope.seal(key).ok_or_else(too_long)?, fresh + afterlife)))
    }

    /// What is left of a life that began at `from`, once it is in the remote tier: that counts from when a write
    /// arrives, which may be as late as the time-out.
    fn left(&self, from: Instant, life: Duration, remote: &Remote<V>) -> Duration {
        life.saturating_sub(self.clock.now().since(from)).saturating_sub(remote.timeout)
    }
}
