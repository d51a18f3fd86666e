//! The shell around a [`Store`](super::Store): names, deadlines, leaving it alone while it is away, and owing it
//! what it could not be told.
//!
//! An invalidation that did not reach the store is *owed*. Until it is paid nothing is read from the store, so that
//! at least this process is not answered from before its own invalidations; every read tries to pay first.
//!
//! Where the cache has a bus, every invalidation is announced before and published after: see
//! [`coherence`](super::coherence).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    availability::{Failure, Gate, Passage, Round, Turn},
    builder::MAX_TIME_TO_LIVE,
    chain::{Link, SETTLING},
    coherence::{Coherence, Told},
    envelope,
    format::Format,
    key::Key,
    message::Item,
    stats::Events,
    store::{ErasedStore, Fence, Found, Put, Restamp, Slot, Written},
    tags::{Invalidation, Stamp},
};
use crate::{
    Error, ErrorKind,
    clock::Clock,
    sync::{Mutex, lock},
};

/// The remote tier of one cache.
pub(super) struct Remote<V> {
    pub(super) store: Arc<dyn ErasedStore>,
    pub(super) format: Format<V>,
    pub(super) cache: Box<str>,
    /// What the stamp of the whole cache is called.
    pub(super) epoch: Box<str>,
    pub(super) timeout: Duration,
    /// How long the store has to remember a removal: longer than any load that may have begun before it.
    pub(super) hold: Duration,
    /// How long a lease of a key lasts that is not prolonged; none are taken without it.
    pub(super) lease: Option<Duration>,
    pub(super) clock: Clock,
    pub(super) events: Arc<Events>,
    pub(super) gate: Arc<Gate>,
    pub(super) debts: Debts,
    pub(super) coherence: Option<Arc<Coherence>>,
    /// When it may be told again that something does not fit into the store.
    pub(super) tell_unfit_from: AtomicU64,
}

/// What does not fit into the store is likely to come again and again; it is told once in so long.
const TELL_UNFIT: Duration = Duration::from_secs(60);

/// A tier that was hung when it was asked is asked again soon, however patient its calls are.
const LONGEST_PROBE: Duration = Duration::from_secs(1);
/// How often a link of the ledger's chain is tried before the chain is broken instead.
const LINK_TRIES: usize = 8;

/// Beyond this many debts the whole cache is invalidated instead.
const MOST_DEBTS: usize = 10_000;

/// Invalidations that the store has not been told, by name, each with a number that tells a later one from it.
#[derive(Default)]
pub(super) struct Debts {
    exist: AtomicBool,
    owed: Mutex<Owed>,
    /// How the last attempt to pay failed, if it did; held while there is one.
    paying: tokio::sync::Mutex<Option<Error>>,
    attempts: AtomicU64,
    refuses_writes: AtomicBool,
}

#[derive(Clone, Default)]
struct Owed {
    entries: HashMap<String, u64>,
    /// A removal outlasts an expiry that comes after it.
    stamps: HashMap<String, (u64, Invalidation)>,
    number: u64,
}

/// Whether the bytes of entries are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Read,
    Peek,
}

/// An entry and the stamps it stands or falls with.
pub(super) struct Read {
    pub(super) slot: Slot,
    pub(super) epoch: Stamp,
    /// In the order of the tags that were asked for.
    pub(super) tags: Vec<Stamp>,
}

impl<V> Remote<V> {
    /// Reads an entry with the stamps of `tags`, in one trip.
    pub(super) async fn read(&self, key: &Key<'_>, tags: &[&str]) -> Result<Read, Error> {
        let name = envelope::entry_name(&self.cache, key);
        let Found { mut entries, stamps } = self.find(&[&name], tags, Look::Read).await?;
        let (slot, epoch) = entries.pop().zip(stamps.first().copied()).ok_or_else(short_answer)?;
        Ok(Read { slot, epoch, tags: stamps[1..].to_vec() })
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
        let found = self.find(&names, tags, look).await?;
        let Some((&epoch, tags)) = found.stamps.split_first() else { return Err(short_answer()) };
        let read = |slot| Read { slot, epoch, tags: tags.to_vec() };
        Ok(found.entries.into_iter().map(read).collect())
    }

    /// Reads the stamps of `tags`, and that of the whole cache first.
    pub(super) async fn stamps(&self, tags: &[&str]) -> Result<Vec<Stamp>, Error> {
        Ok(self.find(&[], tags, Look::Read).await?.stamps)
    }

    /// Reads entries by their names, and the stamps of the whole cache and of tags.
    async fn find(&self, names: &[&str], tags: &[&str], look: Look) -> Result<Found, Error> {
        let tags: Vec<String> = tags.iter().map(|tag| envelope::tag_name(&self.cache, tag)).collect();
        let stamps: SmallVec<[&str; 4]> =
            std::iter::once(&*self.epoch).chain(tags.iter().map(String::as_str)).collect();
        self.pay().await?;
        let found = match look {
            Look::Read => self.store.get_many(names, &stamps),
            Look::Peek => self.store.peek_many(names, &stamps),
        };
        let found = self.call(Kind::Read, found).await?;
        let is_whole = found.entries.len() == names.len() && found.stamps.len() == stamps.len();
        if is_whole { Ok(found) } else { Err(short_answer()) }
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
        let removed = self.call(Kind::Write, self.store.remove_many(&[&name], self.hold)).await;
        if removed.is_err() {
            self.owe_entry(name);
        }
        self.done(told, &item, removed).await
    }

    /// Notes that what is stored under the key is not to be read again.
    pub(super) fn owe_removal(&self, key: &Key<'_>) {
        self.owe_entry(envelope::entry_name(&self.cache, key));
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
        let change = Restamp { name: &name, invalidation, stamp };
        let written = self.call(Kind::Write, self.store.restamp(&[change])).await;
        if written.is_err() {
            self.owe(|owed, number| {
                let owed = owed.stamps.entry(name).or_insert((number, invalidation));
                let removes = owed.1 == Invalidation::Remove;
                *owed = (number, if removes { Invalidation::Remove } else { invalidation });
            });
        }
        self.done(told, &item, written).await
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
            self.owe_entry(coherence.ledger.clone());
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
    async fn extend_alone(&self) -> Result<Option<Link>, Error> {
        let Some(coherence) = &self.coherence else { return Ok(None) };
        let _one_at_a_time = coherence.turn.lock().await;
        self.extend(coherence).await
    }

    /// The fence of the ledger, which is made if it is not there; `None` if somebody else made it meanwhile.
    pub(super) async fn ledger(&self, coherence: &Coherence) -> Result<Option<Fence>, Error> {
        self.pay().await?;
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

    fn owe_entry(&self, name: String) {
        self.owe(|owed, number| {
            owed.entries.insert(name, number);
        });
    }

    fn owe(&self, note: impl FnOnce(&mut Owed, u64)) {
        let mut owed = lock(&self.debts.owed);
        owed.number += 1;
        let number = owed.number;
        note(&mut owed, number);
        if owed.entries.len() + owed.stamps.len() > MOST_DEBTS {
            let everything = (self.epoch.to_string(), (number, Invalidation::Remove));
            (owed.entries, owed.stamps) = (HashMap::new(), HashMap::from([everything]));
        }
        self.debts.exist.store(true, Ordering::Release);
    }

    /// Tells the store what it is owed, if anything, one caller at a time. Who waited for another's attempt that
    /// failed shares its failure: in turn, a hundred callers would wait for a hundred refusals.
    async fn pay(&self) -> Result<(), Error> {
        if !self.debts.exist.load(Ordering::Acquire) {
            return Ok(());
        }
        let attempts = self.debts.attempts.load(Ordering::Acquire);
        let turn = async { Ok(self.debts.paying.lock().await) };
        let mut failure =
            within(self.timeout, turn).await.inspect_err(|_| self.events.remote_failures.add())?;
        if self.debts.attempts.load(Ordering::Acquire) != attempts
            && let Some(error) = &*failure
        {
            self.events.remote_failures.add();
            return Err(error.clone());
        }
        if !self.debts.exist.load(Ordering::Acquire) {
            return Ok(());
        }
        let paid = self.pay_all().await;
        *failure = paid.as_ref().err().cloned();
        self.debts.attempts.fetch_add(1, Ordering::AcqRel);
        paid
    }

    /// New stamps are drawn, since an old one may have been in use.
    async fn pay_all(&self) -> Result<(), Error> {
        let began = self.clock.now();
        let link = self.extend_alone().await?;
        let paid = lock(&self.debts.owed).clone();
        let entries: Vec<&str> = paid.entries.keys().map(String::as_str).collect();
        let change = |(name, (_, invalidation)): (&'_ String, &(u64, Invalidation))| {
            (name.clone(), *invalidation, Stamp::random())
        };
        let changes: Vec<_> = paid.stamps.iter().map(change).collect();
        let stamps: Vec<Restamp<'_>> = changes
            .iter()
            .map(|(name, invalidation, stamp)| Restamp { name, invalidation: *invalidation, stamp: *stamp })
            .collect();
        if !stamps.is_empty() {
            self.call(Kind::Write, self.store.restamp(&stamps)).await?;
        }
        if !entries.is_empty() {
            self.call(Kind::Write, self.store.remove_many(&entries, self.hold)).await?;
        }
        let took_too_long = self.clock.now().since(began) > SETTLING;
        let links = [link, if took_too_long { self.extend_alone().await? } else { None }];
        // What exactly it was others cannot be told: of entries there are only names.
        if let Some(coherence) = &self.coherence {
            links.into_iter().flatten().for_each(|link| coherence.publish(link, &Item::Doubt));
        }
        let mut owed = lock(&self.debts.owed);
        owed.entries.retain(|name, number| paid.entries.get(name) != Some(number));
        owed.stamps.retain(|name, number| paid.stamps.get(name) != Some(number));
        self.debts.exist.store(!(owed.entries.is_empty() && owed.stamps.is_empty()), Ordering::Release);
        Ok(())
    }

    /// One call, if the tier is not known to be away, with its deadline.
    async fn call<T>(&self, kind: Kind, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let passage = self.gate.passage(&self.clock);
        let round = match passage {
            Passage::Ask(round) => round,
            Passage::Probe(_) | Passage::Skip => {
                if let Passage::Probe(round) = passage {
                    self.probe(round);
                }
                self.events.remote_failures.add();
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the remote tier is away and left alone for now",
                ));
            }
        };
        let result = within(self.timeout, call).await;
        note(&self.gate, round, &result, &self.clock, &self.cache);
        if let Err(error) = &result {
            self.events.remote_failures.add();
            tracing::debug!(cache = %self.cache, kind = ?error.kind(), "call to the remote tier failed: {error}");
        }
        if kind == Kind::Write {
            self.tell_refusals(&result);
        }
        result
    }

    /// Finds out whether the tier is back, in a task of its own: a tier that hangs takes the whole deadline to show
    /// it, and no caller has to wait for that.
    fn probe(&self, round: Round) {
        let (store, gate) = (Arc::clone(&self.store), Arc::clone(&self.gate));
        let (clock, cache) = (self.clock.clone(), self.cache.clone());
        let timeout = self.timeout.min(LONGEST_PROBE);
        tokio::spawn(async move {
            let result = within(timeout, store.ping()).await;
            note(&gate, round, &result, &clock, &cache);
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

    /// One line when it begins to refuse writes, one when it takes them again.
    fn tell_refusals<T>(&self, result: &Result<T, Error>) {
        let refuses = matches!(result, Err(error) if error.kind() == ErrorKind::Refused);
        if !refuses && result.is_err() || self.debts.refuses_writes.swap(refuses, Ordering::AcqRel) == refuses
        {
            return;
        }
        match result {
            Err(error) => tracing::warn!(cache = %self.cache, cause = %error, "remote tier refuses writes"),
            Ok(_) => tracing::info!(cache = %self.cache, "remote tier takes writes again"),
        }
    }
}

/// The call's own result, or that it took too long.
async fn within<T>(timeout: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|elapsed| {
        Err(Error::with_source(ErrorKind::TimedOut, "the remote tier did not answer in time", elapsed))
    })
}

/// Tells the gate how a call went, and the operator if it moved.
fn note<T>(gate: &Gate, round: Round, result: &Result<T, Error>, clock: &Clock, cache: &str) {
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
            let cause = result.as_ref().err().map(tracing::field::display);
            tracing::warn!(cache, cause, "remote tier is away: going on from memory and loader");
        }
        Some(Turn::CameBack) => tracing::info!(cache, "remote tier is back"),
        None => {}
    }
}

/// What a refusal of a call says of the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// A store that breaks its contract must not break the cache.
fn short_answer() -> Error {
    Error::new(ErrorKind::Refused, "the remote tier answered fewer entries or stamps than were asked for")
}
