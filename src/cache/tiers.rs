//! How the two tiers, the flights and the tags work together.
//!
//! The order of steps is what the promises rest on, and every one of them is under a test:
//!
//! 1. note the versions of epoch and tags;
//! 2. board the flight (under the stripe's lock: look once more, join or lead);
//! 3. ask the remote tier for the entry, its fence and the stamps, and bring the versions up to date;
//! 4. load;
//! 5. land (under the lock: store in memory unless fenced), releasing the waiters;
//! 6. write to the remote tier if the fence of step 3 still holds there; if not, another process
//!    invalidated meanwhile, and what step 5 stored is dropped.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    builder::{MAX_TIME_TO_LIVE, Settings},
    envelope::Envelope,
    flight::{Flights, Lead},
    key::Key,
    loaded::Loaded,
    local::{Entry, Local, MokaLocal},
    remote::Remote,
    stats::Events,
    store::{Fence, Stored, Written},
    tags::{Began, Cell, Epoch, Seen, Stamp, Tags, Version},
};
use crate::{
    Error, ErrorKind,
    clock::{Clock, Instant},
};

/// How often an insertion is begun anew because somebody else wrote the key in between.
const WRITE_TRIES: usize = 3;

/// Everything that the clones of a cache share.
pub(super) struct Tiers<V: Clone + Send + Sync + 'static> {
    pub(super) local: MokaLocal<V>,
    pub(super) epoch: Epoch,
    clock: Clock,
    pub(super) events: Arc<Events>,
    pub(super) flights: Arc<Flights<V>>,
    pub(super) tags: Tags,
    pub(super) remote: Option<Remote<V>>,
    /// The longest that memory may answer without asking the remote tier.
    max_local_life: Duration,
    pub(super) settings: Settings,
}

/// What memory says about a key.
pub(super) enum Remembered<V> {
    Failure(Error),
    Value(V),
}

/// The state of the cache and of an entry's tags, noted before the value is read.
pub(super) struct Captured {
    at: Instant,
    epoch: (Version, Option<Stamp>),
    tags: Vec<CapturedTag>,
}

struct CapturedTag {
    name: Box<str>,
    cell: Arc<Cell>,
    version: Version,
    stamp: Option<Stamp>,
}

/// What a look into the remote tier came to.
pub(super) struct Looked<V> {
    /// The value, and the entry to keep of it.
    pub(super) entry: Option<(V, Entry<V>)>,
    fence: Fence,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    pub(super) fn new(
        settings: Settings,
        events: Arc<Events>,
        remote: Option<(Remote<V>, Duration)>,
    ) -> Self {
        let (remote, max_local_life) = remote.unzip();
        Self {
            local: MokaLocal::new(settings.capacity),
            epoch: Epoch::default(),
            clock: settings.clock.clone(),
            events,
            flights: Arc::new(Flights::new()),
            tags: Tags::default(),
            remote,
            max_local_life: max_local_life.unwrap_or(MAX_TIME_TO_LIVE),
            settings,
        }
    }

    #[inline]
    pub(super) fn remembered(&self, key: &Key<'_>) -> Option<Remembered<V>> {
        let entry = self.local.get(key)?;
        if !entry.is_valid(self.clock.now(), &self.epoch) {
            return None;
        }
        Some(match entry.content {
            Ok(value) => Remembered::Value(value),
            Err(error) => Remembered::Failure(error),
        })
    }

    #[inline]
    pub(super) fn recall(&self, remembered: Remembered<V>) -> Result<V, Error> {
        match remembered {
            Remembered::Value(value) => {
                self.events.hits.add();
                Ok(value)
            }
            Remembered::Failure(error) => {
                self.events.throttled.add();
                Err(error)
            }
        }
    }

    pub(super) fn capture(&self, tags: &[&str]) -> Captured {
        let capture = |tag: &&str| {
            let cell = self.tags.cell(tag);
            let (version, stamp) = cell.capture();
            CapturedTag { name: (*tag).into(), cell, version, stamp }
        };
        let at = self.clock.now();
        Captured { at, epoch: self.epoch.capture(), tags: tags.iter().map(capture).collect() }
    }

    pub(super) fn began(&self, captured: &Captured) -> Began {
        Began::now(&self.epoch, captured.tags.iter().map(|tag| &tag.cell))
    }

    /// How long a loaded value lives; `None` if it is not to be stored.
    pub(super) fn life(&self, loaded: &Loaded<V>) -> Option<Duration> {
        let life = loaded.time_to_live.unwrap_or(self.settings.time_to_live).min(MAX_TIME_TO_LIVE);
        (loaded.store && !life.is_zero()).then_some(life)
    }

    /// Stores a value in memory, in the place of whatever a running load will bring.
    pub(super) fn keep(&self, key: &Key<'_>, value: V, life: Duration, captured: &Captured) {
        // From when it was given, not from when the remote tier has it: no life is gained on the way there.
        let entry = self.entry(Ok(value), captured.at, captured.at, life, captured.seen());
        self.flights.fence(key, || self.local.insert(key.into(), entry));
    }

    /// An entry that lives from `from`, and of which other processes were last heard at `heard_at`.
    fn entry(
        &self,
        content: Result<V, Error>,
        from: Instant,
        heard_at: Instant,
        life: Duration,
        seen: Seen,
    ) -> Entry<V> {
        let fresh_until = from.after(life).min(heard_at.after(self.max_local_life));
        Entry { content, fresh_until, seen }
    }

    /// The load: remote tier, then loader, then memory, then the waiters, then the remote tier.
    pub(super) async fn fly<F, R, L, E>(self: Arc<Self>, lead: Lead<V>, mut captured: Captured, loader: F)
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let mut lead = lead;
        let mut fence = None;
        let asked_at = self.clock.now();
        if let Some(remote) = &self.remote
            && let Some(looked) = self.look_in(remote, &lead.key(), &mut captured).await
        {
            fence = Some(looked.fence);
            if let Some((value, entry)) = looked.entry {
                // It may carry tags that this flight does not name, so who came after the removal of one of them
                // may be waiting here: to them it must not be given.
                let seen = entry.seen.clone();
                let holds = || seen.still_holds(&self.epoch);
                match lead.land_if(holds, Ok(value), |key| self.local.insert(key, entry)) {
                    Ok(_) => return,
                    Err(back) => lead = back,
                }
            }
        }
        let loaded = self.run(loader).await;
        let now = self.clock.now();
        let heard_at = if self.remote.is_some() { asked_at } else { now };
        let (life, value) = match loaded {
            Ok(loaded) => (self.life(&loaded), loaded.value),
            Err(error) => {
                let throttle = self.settings.error_throttle;
                let entry = self.entry(Err(error.clone()), now, heard_at, throttle, captured.seen());
                lead.land(Err(error), |key| {
                    if !throttle.is_zero() {
                        self.local.insert(key, entry);
                    }
                });
                return;
            }
        };
        let Some(life) = life else {
            lead.land(Ok(value), |_| ());
            return;
        };
        let key = lead.key().into_owned();
        let entry = self.entry(Ok(value.clone()), now, heard_at, life, captured.seen());
        if !lead.land(Ok(value.clone()), |key| self.local.insert(key, entry)) {
            self.events.fenced.add();
            return;
        }
        if let (Some(remote), Some(fence)) = (&self.remote, fence) {
            let left = self.left(now, life, remote);
            // A loader that blocks its thread may run for longer than its time-out: the store need not
            // remember a removal for that long, so its fence proves nothing any more.
            if self.clock.now().since(asked_at) + remote.timeout >= remote.hold {
                self.events.fenced.add();
                return;
            }
            self.share(remote, &key, &value, left, &captured, fence).await;
        }
    }

    /// What is left of a life that began at `from`, once it is in the remote tier: that counts from when a write
    /// arrives, which may be as late as the time-out.
    fn left(&self, from: Instant, life: Duration, remote: &Remote<V>) -> Duration {
        life.saturating_sub(self.clock.now().since(from)).saturating_sub(remote.timeout)
    }

    async fn run<F, R, L, E>(&self, loader: F) -> Result<Loaded<V>, Error>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        self.events.loads.add();
        let loaded = match tokio::time::timeout(self.settings.load_timeout, loader()).await {
            Ok(Ok(loaded)) => return Ok(loaded.into()),
            Ok(Err(error)) => Error::with_source(ErrorKind::Load, "the loader failed", error),
            Err(elapsed) => {
                let problem = "the loader took longer than the load timeout";
                Error::with_source(ErrorKind::TimedOut, problem, elapsed)
            }
        };
        self.events.load_failures.add();
        Err(loaded)
    }

    /// Asks the remote tier for an entry, and brings `captured` up to date with the stamps there. `None` if
    /// it does not answer.
    pub(super) async fn look_in(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &mut Captured,
    ) -> Option<Looked<V>> {
        // Before the question: the life that is left counts from some moment after this one.
        let asked_at = self.clock.now();
        let read = remote.read(key, &captured.names()).await.ok()?;
        let agrees = self.observe(captured, read.epoch, &read.tags);
        let entry = match read.slot.entry {
            Some(stored) if agrees => self.open(remote, key, captured, stored, asked_at).await,
            _ => None,
        };
        match entry {
            Some(_) => self.events.remote_hits.add(),
            None => self.events.remote_misses.add(),
        }
        Some(Looked { entry, fence: read.slot.fence })
    }

    /// The value in the bytes, if it may be served.
    async fn open(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        captured: &Captured,
        stored: Stored,
        asked_at: Instant,
    ) -> Option<(V, Entry<V>)> {
        let envelope = Envelope::open(&stored.bytes, key)?;
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
        let holds = captured.epoch.1 == Some(envelope.epoch)
            && envelope
                .tags
                .iter()
                .all(|(tag, stamp)| named(tag).is_some_and(|now| now.stamp == Some(*stamp)));
        if !holds || stored.remaining.is_zero() {
            return None;
        }
        let value = (remote.codec.decode)(envelope.payload)?;
        let tags = captured.tags.iter().chain(&others.tags);
        let seen = Seen::new(captured.epoch.0, tags.map(CapturedTag::seen).collect());
        Some((value.clone(), self.entry(Ok(value), asked_at, asked_at, stored.remaining, seen)))
    }

    /// Returns whether what is noted now is what the answer says. If not, another answer or a removal of our
    /// own came in between, nobody knows which is the newer, and an entry that came with it is not to be
    /// trusted.
    fn observe(&self, captured: &mut Captured, epoch: Stamp, tags: &[Stamp]) -> bool {
        captured.epoch = self.epoch.observe(captured.epoch.0, epoch);
        let mut agrees = captured.epoch.1 == Some(epoch);
        for (tag, stamp) in captured.tags.iter_mut().zip(tags) {
            (tag.version, tag.stamp) = tag.cell.observe(tag.version, *stamp);
            agrees &= tag.stamp == Some(*stamp);
        }
        agrees
    }

    /// Offers a loaded value to the other processes, unless one of them invalidated it meanwhile.
    async fn share(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        value: &V,
        life: Duration,
        captured: &Captured,
        fence: Fence,
    ) {
        if life.is_zero() {
            return;
        }
        let bytes = match self.seal(remote, key, value, captured) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(cache = %self.settings.name, "not stored in the remote tier: {error}");
                return;
            }
        };
        if let Ok(Written::Refused) = remote.put(key, bytes, life, Some(fence)).await {
            self.events.fenced.add();
            self.flights.fence(key, || self.local.remove(key));
        }
    }

    /// Stores a value in both tiers, the remote one first.
    pub(super) async fn write_through(
        &self,
        key: &Key<'_>,
        value: V,
        life: Duration,
        mut captured: Captured,
    ) -> Result<(), Error> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let glimpse = self.flights.glimpse(key);
        let written = self.write(remote, key, &value, life, &mut captured).await;
        if written.is_err() {
            // What is there is older than what was to be put there.
            remote.owe_removal(key);
        }
        if self.flights.glimpse(key) == glimpse {
            self.keep(key, value, life, &captured);
        } else {
            // A removal that came meanwhile may have reached the remote tier before or after us. Let the
            // remote tier say which, by having nothing in memory.
            self.flights.fence(key, || self.local.remove(key));
        }
        written
    }

    async fn write(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        value: &V,
        life: Duration,
        captured: &mut Captured,
    ) -> Result<(), Error> {
        // With a fence, though it overwrites whatever is there: a write that was given up may still arrive, and
        // must not undo a removal that came in between.
        for _ in 0..WRITE_TRIES {
            let read = remote.read(key, &captured.names()).await?;
            self.observe(captured, read.epoch, &read.tags);
            let bytes = self.seal(remote, key, value, captured)?;
            let left = self.left(captured.at, life, remote);
            if left.is_zero()
                || remote.put(key, bytes, left, Some(read.slot.fence)).await? != Written::Refused
            {
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "others write or remove the key faster than this value can be stored",
        ))
    }

    fn seal(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        value: &V,
        captured: &Captured,
    ) -> Result<Bytes, Error> {
        let payload = (remote.codec.encode)(value)?;
        let too_long =
            || Error::new(ErrorKind::Codec, "the value, its key or a tag is too long to be stored");
        let (epoch, tags) = captured.stamps().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the remote tier has not told the stamps to store the value with",
            )
        })?;
        Envelope { epoch, tags, payload: &payload }.seal(key).ok_or_else(too_long)
    }
}

impl Captured {
    fn seen(&self) -> Seen {
        Seen::new(self.epoch.0, self.tags.iter().map(CapturedTag::seen).collect())
    }

    fn names(&self) -> Vec<&str> {
        self.tags.iter().map(|tag| &*tag.name).collect()
    }

    /// The stamps to write with an entry; `None` unless the remote tier has told all of them.
    fn stamps(&self) -> Option<(Stamp, Vec<(&str, Stamp)>)> {
        let tags = self.tags.iter().map(|tag| Some((&*tag.name, tag.stamp?))).collect::<Option<_>>()?;
        Some((self.epoch.1?, tags))
    }
}

impl CapturedTag {
    fn seen(&self) -> (Arc<Cell>, Version) {
        (Arc::clone(&self.cell), self.version)
    }
}
