//! The shell around a [`Store`](super::Store): names, deadlines, leaving it alone while it is away, and owing it
//! what it could not be told.
//!
//! What is owed, and how it is paid, is in [`paying`](super::paying).
//!
//! Where the cache has a bus, every invalidation is announced before and published after: see
//! [`coherence`](super::coherence).

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    availability::{Failure, Gate, Passage, Round, Turn},
    builder::MAX_TIME_TO_LIVE,
    chain::Link,
    coherence::{Coherence, Told},
    debts::{Due, What},
    envelope,
    format::Format,
    key::Key,
    message::Item,
    paying::Debts,
    stats::{Events, RemoteEvents},
    store::{ErasedStore, Fence, Found, Put, Restamp, Slot, Written},
    tags::{Invalidation, Stamp},
};
use crate::{Error, ErrorKind, clock::Clock};

/// The remote tier of one cache.
pub(super) struct Remote<V> {
    /// Itself, for the task that pays.
    pub(super) me: Weak<Self>,
    pub(super) store: Arc<dyn ErasedStore>,
    pub(super) format: Format<V>,
    pub(super) cache: Box<str>,
    /// What the stamp of the whole cache is called.
    pub(super) epoch: Box<str>,
    /// What the stamp of any tag is called, where loaders choose tags.
    pub(super) any_tag: Option<Box<str>>,
    pub(super) timeout: Duration,
    /// How long those wait for an answer who have a value to be served instead.
    pub(super) soft_timeout: Option<Duration>,
    /// How long the store has to remember a removal: longer than any load that may have begun before it.
    pub(super) hold: Duration,
    /// How long a lease of a key lasts that is not prolonged; none are taken without it.
    pub(super) lease: Option<Duration>,
    pub(super) clock: Clock,
    pub(super) events: Arc<Events>,
    pub(super) own_events: Arc<RemoteEvents>,
    pub(super) gate: Arc<Gate>,
    pub(super) debts: Debts,
    /// Whether it refused the last read.
    pub(super) refuses_reads: AtomicBool,
    /// Whether it refused the last write.
    pub(super) refuses_writes: AtomicBool,
    /// Until when no value is offered to it that somebody loaded: it refused two writes in a row.
    pub(super) spared_until: AtomicU64,
    pub(super) coherence: Option<Arc<Coherence>>,
    /// When it may be told again that something does not fit into the store.
    pub(super) tell_unfit_from: AtomicU64,
}

/// What does not fit into the store is likely to come again and again; it is told once in so long.
const TELL_UNFIT: Duration = Duration::from_secs(60);

/// For how long a tier that refuses writes, most likely because it is full, is not offered what was loaded. What is to be
/// removed there, or was inserted by somebody, it is told nevertheless.
const SPARED: Duration = Duration::from_secs(5);

/// A tier that was hung when it was asked is asked again soon, however patient its calls are.
const LONGEST_PROBE: Duration = Duration::from_secs(1);
/// How often a link of the ledger's chain is tried before the chain is broken instead.
const LINK_TRIES: usize = 8;

/// Whether the bytes of entries are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Read,
    Peek,
}

/// An entry and the stamps it stands or falls with.
pub(super) struct Read {
    pub(super) slot: Slot,
    pub(super) stamps: Stamps,
}

/// The stamps of the whole cache and of some tags.
#[derive(Clone)]
pub(super) struct Stamps {
    pub(super) epoch: Stamp,
    /// In the order of the tags that were asked for.
    pub(super) tags: Vec<Stamp>,
    /// That of any tag, where loaders choose tags.
    pub(super) any: Option<Stamp>,
}

impl<V: Send + Sync + 'static> Remote<V> {
    /// Reads an entry with the stamps of `tags`, in one trip.
    pub(super) async fn read(&self, key: &Key<'_>, tags: &[&str]) -> Result<Read, Error> {
        let name = envelope::entry_name(&self.cache, key);
        let (mut entries, stamps) = self.find(&[&name], tags, Look::Read).await?;
        Ok(Read { slot: entries.pop().ok_or_else(short_answer)?, stamps })
    }

    /// Reads many entries that stand or fall with the same tags, in one trip. As many answers as keys, in their
    /// order.
    pub(super) async fn read_many(&self, keys: &[Key<'_>], tags: &[&str]) -> Result<Vec<Read>, Error> {
        self.look_at_many(keys, tags, Look::Read).await
    }

    /// The same without the bytes of the entries.
    pub(super) async fn peek_many(&self, keys: &[Key<'_>], tags: &[&str]) -> Result<Vec<Read>, Error> {
        self.look_at_many(keys, tags, Look::Peek).await
    }

    async fn look_at_many(&self, keys: &[Key<'_>], tags: &[&str], look: Look) -> Result<Vec<Read>, Error> {
        let names: Vec<String> = keys.iter().map(|key| envelope::entry_name(&self.cache, key)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (entries, stamps) = self.find(&names, tags, look).await?;
        Ok(entries.into_iter().map(|slot| Read { slot, stamps: stamps.clone() }).collect())
    }

    /// Reads the stamps of `tags`, and that of the whole cache.
    pub(super) async fn stamps(&self, tags: &[&str]) -> Result<Stamps, Error> {
        Ok(self.find(&[], tags, Look::Read).await?.1)
    }

    /// Reads entries by their names, and the stamps of the whole cache and of tags.
    async fn find(&self, names: &[&str], tags: &[&str], look: Look) -> Result<(Vec<Slot>, Stamps), Error> {
        let tags: Vec<String> = tags.iter().map(|tag| envelope::tag_name(&self.cache, tag)).collect();
        let mut stamps: SmallVec<[&str; 4]> =
            std::iter::once(&*self.epoch).chain(tags.iter().map(String::as_str)).collect();
        self.pay(names, &stamps).await?;
        // Nobody is kept from what he asks for because this one is owed.
        stamps.extend(self.any_tag.as_deref());
        let (kind, found) = match look {
            Look::Read => (Kind::Read, self.store.get_many(names, &stamps)),
            Look::Peek => (Kind::Peek, self.store.peek_many(names, &stamps)),
        };
        let Found { entries, stamps: found } = self.call(kind, found).await?;
        if entries.len() != names.len() || found.len() != stamps.len() {
            return Err(short_answer());
        }
        let Some((&epoch, rest)) = found.split_first() else { return Err(short_answer()) };
        let (tags, any) = rest.split_at(tags.len());
        let (tags, any) = (tags.to_vec(), any.first().copied());
        Ok((entries, Stamps { epoch, tags, any }))
    }

    /// Writes an entry; without a fence over whatever is there.
    pub(super) async fn put(
        &self,
        key: &Key<'_>,
        bytes: Bytes,
        time_to_live: Duration,
        fence: Option<super::Fence>,
    ) -> Result<Written, Error> {
        let name = envelope::entry_name(&self.cache, key);
        let put = Put { fence, ..Put::new(&name, bytes, time_to_live) };
        self.call(Kind::Write, self.store.put_if(put)).await
    }

    pub(super) async fn remove(&self, key: &Key<'_>) -> Result<(), Error> {
        let item = Item::Key(key.clone(), Invalidation::Remove);
        let told = self.announce(&item).await;
        let name = envelope::entry_name(&self.cache, key);
        let owed = self.owed(&name);
        let removed = self.call(Kind::Write, self.store.remove_many(&[&name], self.hold)).await;
        match &removed {
            Ok(()) => self.settle(owed.as_slice()),
            Err(_) => self.owe(&name, What::Entry),
        }
        self.done(told, &item, removed).await
    }

    /// Notes that what is stored under the key is not to be read again.
    pub(super) fn owe_removal(&self, key: &Key<'_>) {
        self.owe(&envelope::entry_name(&self.cache, key), What::Entry);
    }

    /// The same for who holds a lock, and notes it again without.
    pub(super) fn owe_removal_quietly(&self, key: &Key<'_>) {
        self.owe_quietly(&envelope::entry_name(&self.cache, key), What::Entry);
    }

    /// Changes the stamp of a tag, or of the whole cache.
    pub(super) async fn restamp(
        &self,
        tag: Option<&str>,
        invalidation: Invalidation,
        stamp: Stamp,
    ) -> Result<(), Error> {
        let (name, item) = match tag {
            Some(tag) => (envelope::tag_name(&self.cache, tag), Item::Tag(tag.into(), invalidation)),
            None => (self.epoch.to_string(), Item::Everything(invalidation)),
        };
        let told = self.announce(&item).await;
        // Now: what is settled has to be owed since before any tag changes.
        let owed = self.owed(&name);
        let (first, what) = match &self.any_tag {
            Some(any_tag) if tag.is_some() => {
                let owed = self.owed(any_tag);
                // Before that of the tag itself, or not at all.
                let first = self.change_stamp(any_tag, What::AnyTag, Stamp::random(), owed).await;
                (first, What::Tag(invalidation))
            }
            _ => (Ok(()), What::Stamp(invalidation)),
        };
        let written = match first {
            Ok(()) => self.change_stamp(&name, what, stamp, owed).await,
            Err(error) => {
                self.owe(&name, what);
                Err(error)
            }
        };
        self.done(told, &item, written).await
    }

    /// Changes a stamp, and settles what was owed of it; or owes that.
    async fn change_stamp(
        &self,
        name: &str,
        what: What,
        stamp: Stamp,
        owed: Option<Due>,
    ) -> Result<(), Error> {
        let invalidation = what.invalidation();
        // To expire is not to remove.
        let is_covered = |owed: &Due| {
            invalidation == Invalidation::Remove || owed.what.invalidation() == Invalidation::Expire
        };
        let owed = owed.filter(is_covered);
        let change = Restamp { name, invalidation, stamp };
        let written = self.call(Kind::Write, self.store.restamp(&[change])).await;
        match &written {
            Ok(()) => self.settle(owed.as_slice()),
            Err(_) => self.owe(name, what),
        }
        written
    }

    /// To be called, where other processes may remember what is about to be invalidated or overwritten in the store,
    /// before that is done; and [`done`](Self::done) after it. Nothing without a bus.
    pub(super) async fn announce(&self, item: &Item<'_>) -> Option<Told> {
        let coherence = self.coherence.as_ref()?;
        Some(coherence.announce(item, || self.extend(coherence)).await)
    }

    /// Lets what was announced be published, and returns `done`: what it came to, or that it could not be announced.
    /// That is owed then, so that the others find out when it is paid.
    pub(super) async fn done(
        &self,
        told: Option<Told>,
        item: &Item<'_>,
        done: Result<(), Error>,
    ) -> Result<(), Error> {
        let (Some(coherence), Some(told)) = (&self.coherence, told) else { return done };
        if told.is_good(self.clock.now()) {
            return done;
        }
        drop(told);
        // After it was done, when an announcement is good however long it took.
        let again = coherence.announce(item, || self.extend(coherence)).await;
        let announced = again.announced();
        if announced.is_err() {
            self.owe(&coherence.ledger, What::Entry);
        }
        done.and(announced)
    }

    /// Changes the ledger, as the next link of its chain if others leave room for it.
    async fn extend(&self, coherence: &Coherence) -> Result<Option<Link>, Error> {
        for _ in 0..LINK_TRIES {
            let before = match coherence.fence() {
                Some(fence) => fence,
                None => self.ledger_slot(coherence).await?.fence,
            };
            if let Written::Stored(after) = self.write_ledger(coherence, Some(before)).await? {
                coherence.saw(Some(after));
                return Ok(Some(Link { before, after }));
            }
            coherence.saw(None);
        }
        // A gap for everybody, which is what an announcement that nobody can hear of has to be.
        self.write_ledger(coherence, None).await.map(|_| None)
    }

    /// Announces something by itself; not even a link if there is no bus.
    pub(super) async fn extend_alone(&self) -> Result<Option<Link>, Error> {
        let Some(coherence) = &self.coherence else { return Ok(None) };
        let _one_at_a_time = coherence.turn.lock().await;
        self.extend(coherence).await
    }

    /// The fence of the ledger, which is made if it is not there; `None` if somebody else made it meanwhile.
    pub(super) async fn ledger(&self, coherence: &Coherence) -> Result<Option<Fence>, Error> {
        self.pay(&[&coherence.ledger], &[]).await?;
        let slot = self.ledger_slot(coherence).await?;
        if slot.entry.is_some() {
            return Ok(Some(slot.fence));
        }
        // Of an absent one nothing can be said: it may have come and gone.
        Ok(match self.write_ledger(coherence, Some(slot.fence)).await? {
            Written::Stored(fence) => Some(fence),
            Written::Refused => None,
        })
    }

    async fn ledger_slot(&self, coherence: &Coherence) -> Result<Slot, Error> {
        let found = self.call(Kind::Read, self.store.get_many(&[&coherence.ledger], &[])).await?;
        found.entries.into_iter().next().ok_or_else(short_answer)
    }

    async fn write_ledger(&self, coherence: &Coherence, fence: Option<Fence>) -> Result<Written, Error> {
        let put =
            Put { fence, ..Put::new(&coherence.ledger, Bytes::from_static(b"ledger"), MAX_TIME_TO_LIVE) };
        self.call(Kind::Write, self.store.put_if(put)).await
    }

    /// One call, if the tier is not known to be away, with its deadline.
    async fn call<T>(&self, kind: Kind, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.passage() {
            Some(round) => self.ask(round, kind, call).await,
            None => Err(Error::new(ErrorKind::Unavailable, "the remote tier is away and left alone for now")),
        }
    }

    /// Leave to ask the tier, if it is not known to be away.
    pub(super) fn passage(&self) -> Option<Round> {
        match self.gate.passage(&self.clock) {
            Passage::Ask(round) => return Some(round),
            Passage::Probe(round) => self.probe(round),
            Passage::Skip => {}
        }
        self.events.remote_failures.add();
        None
    }

    pub(super) async fn ask<T>(
        &self,
        round: Round,
        kind: Kind,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let result = within(self.timeout, call).await;
        note(&self.gate, round, &result, &self.clock, &self.cache, &self.own_events);
        if let Err(error) = &result {
            self.events.remote_failures.add();
            tracing::debug!(cache = %self.cache, kind = ?error.kind(), "call to the remote tier failed: {error}");
        }
        self.tell_refusals(kind, &result);
        result
    }

    /// Finds out whether the tier is back, in a task of its own: a tier that hangs takes the whole deadline to show
    /// it, and no caller has to wait for that.
    fn probe(&self, round: Round) {
        let (store, gate) = (Arc::clone(&self.store), Arc::clone(&self.gate));
        let events = Arc::clone(&self.own_events);
        let (clock, cache) = (self.clock.clone(), self.cache.clone());
        let timeout = self.timeout.min(LONGEST_PROBE);
        tokio::spawn(async move {
            let result = within(timeout, store.ping()).await;
            note(&gate, round, &result, &clock, &cache, &events);
        });
    }

    /// One line in a minute for what cannot be stored there.
    pub(super) fn tell_unfit(&self, error: &Error) {
        let (now, from) = (self.clock.now(), self.tell_unfit_from.load(Ordering::Relaxed));
        let next = now.after(TELL_UNFIT).as_nanos();
        let may_tell = now.as_nanos() >= from;
        if may_tell
            && self.tell_unfit_from.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::warn!(cache = %self.cache, "not stored in the remote tier: {error}");
        }
    }

    /// Whether it is of no use to offer it what was loaded: it has just refused such writes.
    pub(super) fn is_spared(&self) -> bool {
        // Looked at first: nearly always there is no need of the time.
        match self.spared_until.load(Ordering::Relaxed) {
            0 => false,
            until => self.clock.now().as_nanos() < until,
        }
    }

    /// One line when it begins to refuse reads, or writes, and one when it does so no more.
    fn tell_refusals<T>(&self, kind: Kind, result: &Result<T, Error>) {
        let refuses = matches!(result, Err(error) if error.kind() == ErrorKind::Refused);
        let refused = match kind {
            Kind::Read => &self.refuses_reads,
            Kind::Write => &self.refuses_writes,
            // Where that is refused, the entry is read.
            Kind::Peek => return,
        };
        if kind == Kind::Write {
            let was_spared = self.spared_until.load(Ordering::Relaxed) > 0;
            if refuses && refused.load(Ordering::Acquire) {
                let until = self.clock.now().after(SPARED).as_nanos();
                self.spared_until.store(until, Ordering::Relaxed);
            } else if result.is_ok() && was_spared {
                self.spared_until.store(0, Ordering::Relaxed);
            }
        }
        // Looked at first: what is written is every thread's.
        if !refuses && result.is_err()
            || refused.load(Ordering::Acquire) == refuses
            || refused.swap(refuses, Ordering::AcqRel) == refuses
        {
            return;
        }
        match (kind, result) {
            (Kind::Write, Err(error)) => {
                tracing::warn!(cache = %self.cache, cause = %error, "remote tier refuses writes");
            }
            (_, Err(error)) => {
                tracing::warn!(cache = %self.cache, cause = %error, "remote tier refuses reads");
            }
            (Kind::Write, Ok(_)) => tracing::info!(cache = %self.cache, "remote tier takes writes again"),
            (_, Ok(_)) => tracing::info!(cache = %self.cache, "remote tier answers reads again"),
        }
    }
}

/// The call's own result, or that it took too long.
pub(super) async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|elapsed| {
        Err(Error::with_source(ErrorKind::TimedOut, "the remote tier did not answer in time", elapsed))
    })
}

/// Tells the gate how a call went, and the operator if it moved.
fn note<T>(
    gate: &Gate,
    round: Round,
    result: &Result<T, Error>,
    clock: &Clock,
    cache: &str,
    events: &RemoteEvents,
) {
    let turn = match result {
        Ok(_) => gate.answered(round, clock),
        Err(error) => {
            let how = match error.kind() {
                ErrorKind::TimedOut => Failure::Slow,
                ErrorKind::Unavailable => Failure::Dead,
                _ => Failure::Refused,
            };
            gate.failed(round, how, clock)
        }
    };
    match turn {
        Some(Turn::WentAway) => {
            events.outages.add();
            events.is_up(false);
            let cause = result.as_ref().err().map(tracing::field::display);
            tracing::warn!(cache, cause, "remote tier is away: going on from memory and loader");
        }
        Some(Turn::CameBack) => {
            events.is_up(true);
            tracing::info!(cache, "remote tier is back");
        }
        None => {}
    }
}

/// What a refusal of a call says of the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Peek,
    Write,
}

/// A store that breaks its contract must not break the cache.
fn short_answer() -> Error {
    Error::new(ErrorKind::Refused, "the remote tier answered fewer entries or stamps than were asked for")
}
