//! Making a cache.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    Bus, Store,
    bus::ErasedBus,
    codec::Codec,
    coherence::{Coherence, LEAST_MESSAGE},
    compress::Compression,
    envelope,
    format::Format,
    freshness::Policy,
    front::Cache,
    local::Engine,
    paying::Debts,
    remote::Remote,
    stats::{Events, RemoteEvents},
    store::ErasedStore,
};
use crate::{Error, clock::Clock};

/// The longest time to live: 30 days. What has to live longer is data, not a cached copy of it.
pub const MAX_TIME_TO_LIVE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The largest [`max_value`](RemoteCacheBuilder::max_value): 512 MiB, more than which Redis does not take.
pub const MAX_VALUE: usize = 512 << 20;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// The longest that a value may be kept for after it was fresh: 7 days.
const MAX_STALE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Settings of a cache in the process alone; [`remote`](Self::remote) adds a tier behind it, and from there on the settings
/// are those of [`RemoteCacheBuilder`]: what is to be said of memory and loads is said before.
#[must_use = "a builder does nothing until `build`"]
pub struct CacheBuilder<V> {
    settings: Settings<V>,
}

/// Tells how many bytes a value takes up.
type Weigher<V> = Arc<dyn Fn(&V) -> u64 + Send + Sync>;
/// Tells for which errors a stale value may stand in.
pub(super) type MayStandIn = Arc<dyn Fn(&Error) -> bool + Send + Sync>;

/// What both builders set.
pub(super) struct Settings<V> {
    pub(super) name: String,
    pub(super) engine: Engine,
    pub(super) capacity: u64,
    /// What a value takes up, where the capacity is in bytes.
    pub(super) weigher: Option<Weigher<V>>,
    pub(super) policy: Policy,
    pub(super) time_to_idle: Option<Duration>,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) load_timeout: Duration,
    pub(super) max_loads: Option<usize>,
    pub(super) drops_abandoned_loads: bool,
    pub(super) error_throttle: Duration,
    pub(super) loader_tags: bool,
    /// Which errors a stale value may stand in for; all unless set.
    pub(super) serve_stale_if: Option<MayStandIn>,
    pub(super) clock: Clock,
}

impl<V: Clone + Send + Sync + 'static> CacheBuilder<V> {
    pub(super) fn new(name: String) -> Self {
        let settings = Settings {
            name,
            engine: Engine::default(),
            capacity: 10_000,
            weigher: None,
            policy: Policy {
                time_to_live: 300 * SECOND,
                negative_time_to_live: None,
                stale_while_revalidate: Duration::ZERO,
                stale_if_error: Duration::ZERO,
                stale_throttle: None,
                jitter: 0.0,
                refresh_ahead: false,
            },
            time_to_idle: None,
            soft_timeout: None,
            load_timeout: 30 * SECOND,
            max_loads: None,
            drops_abandoned_loads: false,
            error_throttle: Duration::from_millis(100),
            loader_tags: false,
            serve_stale_if: None,
            clock: Clock::system(),
        };
        Self { settings }
    }

    /// How many entries fit in memory: 10,000 unless set, at least 1.
    ///
    /// Beyond that the engine keeps those that are asked for more often.
    #[doc(alias = "max_capacity")]
    pub fn capacity(mut self, entries: u64) -> Self {
        (self.settings.capacity, self.settings.weigher) = (entries, None);
        self
    }

    /// How many bytes of entries fit in memory, instead of how many entries; at least 64 KiB.
    ///
    /// `weigher` tells what a value takes up, on the heap and besides its own size (for a `String` its capacity);
    /// its loader may say [otherwise](super::Loaded::cost). The key and about 300 bytes of the cache's are added, and
    /// some 200 and their text for tags or a validator. The
    /// engine's tables grow with the number of entries, so the process takes up somewhat more.
    ///
    /// ```
    /// # fn main() -> Result<(), mcp_perf::Error> {
    /// use mcp_perf::cache::Cache;
    ///
    /// let pages: Cache<String> =
    ///     Cache::builder("pages").capacity_bytes(64 << 20, |page: &String| page.capacity() as u64).build()?;
    /// # let _ = pages; Ok(()) }
    /// ```
    pub fn capacity_bytes(mut self, bytes: u64, weigher: impl Fn(&V) -> u64 + Send + Sync + 'static) -> Self {
        self.settings.capacity = bytes;
        self.settings.weigher = Some(Arc::new(weigher));
        self
    }

    /// What holds the entries in memory: [`Engine::Moka`] unless set.
    pub fn engine(mut self, engine: Engine) -> Self {
        self.settings.engine = engine;
        self
    }

    /// How long an entry may be served, unless its loader says otherwise: 5 minutes unless set, more than
    /// zero and at most [`MAX_TIME_TO_LIVE`].
    #[doc(alias = "ttl")]
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.policy.time_to_live = time_to_live;
        self
    }

    /// How long the answer that [there is no value](super::Loaded::not_found) may be served: 5 seconds unless set,
    /// or a tenth of the time to live if that is less; zero does not store it, the most is [`MAX_TIME_TO_LIVE`].
    #[doc(alias = "negative_ttl")]
    pub fn negative_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.policy.negative_time_to_live = Some(time_to_live);
        self
    }

    /// For how long nobody may have asked for an entry before this process forgets it; not at all unless set, more
    /// than zero if set, and at most [`MAX_TIME_TO_LIVE`].
    ///
    /// It never lengthens a life: the time to live counts from the load all the same. Otherwise what is asked for
    /// all the time would never be loaded again. The remote tier knows nothing of it.
    #[doc(alias = "tti")]
    pub fn time_to_idle(mut self, time_to_idle: Duration) -> Self {
        self.settings.time_to_idle = Some(time_to_idle);
        self
    }

    /// Takes up to this share off every life, differently for each key, so that what was loaded together does not
    /// expire together: none unless set, at most a half; a tenth is usual.
    pub fn jitter(mut self, share: f64) -> Self {
        self.settings.policy.jitter = share;
        self
    }

    /// For how long after its time to live a value is still served at once, while one load runs behind it: not at
    /// all unless set, at most 7 days.
    ///
    /// Nobody waits for a value that is asked for often enough. What was [removed](Cache::remove) is never served,
    /// and what was made to [expire](Cache::expire) is waited for. With a remote tier an answer that this
    /// process gave [`max_staleness`](RemoteCacheBuilder::max_staleness) ago or before costs a look there.
    #[doc(alias = "swr")]
    pub fn stale_while_revalidate(mut self, time: Duration) -> Self {
        self.settings.policy.stale_while_revalidate = time;
        self
    }

    /// For how long after its time to live a value is kept to stand in for a load that fails or is slow: not at all
    /// unless set, at most 7 days.
    ///
    /// Callers get it where they would have got the error of a failed load, and no load is tried again for the
    /// [`stale_throttle`](Self::stale_throttle). With a [`soft_timeout`](Self::soft_timeout) they also get it where
    /// the load takes longer than that. What was removed is never served, with one limit: if the remote tier does
    /// not answer either, nobody can tell what another process removed there.
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.settings.policy.stale_if_error = time;
        self
    }

    /// Which failures a stale value may stand in for: all unless set.
    ///
    /// A "no" is no failure of the source: a caller who may not see a value any more must not be shown the old one. A stale
    /// value goes from both tiers when a failure is one of those; a fresh one stays.
    /// The loader's error is the [source](Error::downcast_source) of the one that is given here.
    pub fn serve_stale_if(mut self, may: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.settings.serve_stale_if = Some(Arc::new(may));
        self
    }

    /// For how long a stale value is served after a failed load before the next is tried: half the time to live
    /// unless set, at most 30 seconds; an hour at most if set.
    pub fn stale_throttle(mut self, throttle: Duration) -> Self {
        self.settings.policy.stale_throttle = Some(throttle);
        self
    }

    /// How long callers wait for a load where there is a stale value to serve instead: for the
    /// [`load_timeout`](Self::load_timeout) unless set, at most an hour. The load goes on.
    ///
    /// It means nothing without [`stale_if_error`](Self::stale_if_error) or
    /// [`stale_while_revalidate`](Self::stale_while_revalidate).
    pub fn soft_timeout(mut self, timeout: Duration) -> Self {
        self.settings.soft_timeout = Some(timeout);
        self
    }

    /// Loads a value again before its time is over, behind a hit: in the last tenth of its life, and earlier by
    /// chance if a load takes long (by the rule known as `XFetch`). Not unless set.
    ///
    /// Who asks for it then does not wait for the next load, and of the processes that share it one begins. Nothing
    /// is loaded that nobody asks for.
    pub fn refresh_ahead(mut self) -> Self {
        self.settings.policy.refresh_ahead = true;
        self
    }

    /// Lets loaders choose tags, by [`Loaded::tags`](super::Loaded::tags). Not unless set.
    ///
    /// Tags that a call names are noted before its load, so that what was read before one of them was removed is never
    /// stored. Of those that a loader chooses nobody knows before, so the load is barred by the invalidation of *any*
    /// tag of the cache while it runs: its callers get the value, it is not stored
    /// ([`Stats::fenced`](super::Stats::fenced)), and in the place of [`refresh`](Cache::refresh) nothing is left. Who
    /// asks for a value after an invalidation of any tag does not join a load from before it, whatever that chooses.
    /// Where tags are removed many times in the time that a load takes, name them instead, in a cache without this.
    ///
    /// With a [remote tier](Self::remote) it costs one small read more with every look, which travels along; a round
    /// trip more for every look that finds tags that the call does not name; two after a load that chooses tags, within
    /// its [`load_timeout`](Self::load_timeout); and one with every invalidation of a tag. **All processes that share
    /// the cache need it, or none may have it**: one without it removes tags in a way that those with it do not notice.
    /// To turn it on in a fleet that is running, rename the cache.
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key, Loaded};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let articles: Cache<String> = Cache::builder("articles").loader_tags().build()?;
    /// let (title, authors) = ("On computable numbers", ["turing"]);
    /// articles
    ///     .get_or_load(&Key::public("42"), move || async move {
    ///         let tags = authors.map(|author| format!("author:{author}"));
    ///         Ok::<_, std::io::Error>(Loaded::new(title.to_owned()).tags(tags))
    ///     })
    ///     .await?;
    /// articles.remove_by_tag("author:turing").await?;
    /// assert_eq!(articles.get(&Key::public("42")).await, None);
    /// # Ok(()) }
    /// ```
    pub fn loader_tags(mut self) -> Self {
        self.settings.loader_tags = true;
        self
    }

    /// After how long a running loader is dropped and its waiters get an error: 30 seconds unless set, more
    /// than zero and at most an hour.
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.settings.load_timeout = timeout;
        self
    }

    /// How many loaders of this cache run at once in this process: as many as there are keys to load unless set; at
    /// least 1. A load of many keys counts as one.
    ///
    /// For a source that bears no more, when the cache is empty or the remote tier away. Beyond the limit loads wait
    /// for their turn, in the order in which they came, and their wait counts for the
    /// [`load_timeout`](Self::load_timeout) and the [`soft_timeout`](Self::soft_timeout). Loads that nobody waits for,
    /// ahead of time or behind a stale answer, have half of the places at most (and of one place that one), so that
    /// they do not keep those waiting who ask for what is missing.
    ///
    /// A loader that asks this cache for another key and waits for it does so on its own place, be that key in the queue
    /// already or not; where it asks for several at once, all of them run on that place. One that does so in a task of its
    /// own (`tokio::spawn`, or through a [`BatchLoader`](super::BatchLoader)) is not known to, and takes another; with all
    /// places taken by such, they wait for each other until their time is up.
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let reports: Cache<u32> = Cache::builder("reports").max_loads(4).build()?;
    /// let report = reports.get_or_load(&Key::public("2026"), || async { Ok::<_, std::io::Error>(42) }).await?;
    /// assert_eq!(report, 42);
    /// # Ok(()) }
    /// ```
    pub fn max_loads(mut self, loads: usize) -> Self {
        self.settings.max_loads = Some(loads);
        self
    }

    /// Drops a load when all who waited for it have gone, each by dropping the future that it waited with: a client that
    /// disconnects, say. Unless set a load goes on, and whoever asks next finds its value.
    ///
    /// For loaders that are dear, and whose values are seldom asked for twice. The loader's future is dropped where it
    /// waits, or never begun if it still has to [wait for a place](Self::max_loads); what it had its source do by then
    /// may be done. A load of many keys is dropped when nobody waits for any of them; one that a
    /// [`BatchLoader`](super::BatchLoader) gathered goes on. A load that nobody waited for to
    /// begin with is not dropped (ahead of the end of a value, or behind a stale one), and neither is one whose callers
    /// were given a stale value: the next will want the new one.
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key};
    /// use std::{future::pending, io, time::Duration};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let answers: Cache<String> = Cache::builder("answers").drop_abandoned_loads(true).build()?;
    /// let key = Key::public("a hard question");
    /// let thinking = answers.get_or_load(&key, || pending::<io::Result<String>>());
    /// assert!(tokio::time::timeout(Duration::from_millis(10), thinking).await.is_err());
    /// while answers.stats().abandoned == 0 {
    ///     tokio::task::yield_now().await;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn drop_abandoned_loads(mut self, drops: bool) -> Self {
        self.settings.drops_abandoned_loads = drops;
        self
    }

    /// For how long a failed load is answered with its error instead of being repeated: 100 ms unless set,
    /// at most an hour. Zero repeats at once, and then only those who waited share the error. With a remote tier and no bus
    /// it is no longer than [`max_staleness`](RemoteCacheBuilder::max_staleness): another process may have been luckier.
    ///
    /// Without it a source in trouble gets one request after the other, as fast as it can fail them.
    /// Removing the key ends the throttle.
    pub fn error_throttle(mut self, throttle: Duration) -> Self {
        self.settings.error_throttle = throttle;
        self
    }

    /// The clock that lives are measured by: the system's unless set.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Puts a store behind the memory, which other processes share. Values travel as JSON, by their `serde`
    /// implementation; that of an [`Arc`] takes serde's feature `rc`.
    pub fn remote<S: Store>(self, store: S) -> RemoteCacheBuilder<V>
    where
        V: Serialize + DeserializeOwned,
    {
        self.remote_with(store, Codec::json())
    }

    /// As [`remote`](Self::remote), with values in the form that `codec` gives them; [`Codec`] says which to
    /// choose when.
    pub fn remote_with<S: Store>(self, store: S, codec: Codec<V>) -> RemoteCacheBuilder<V> {
        RemoteCacheBuilder {
            local: self.settings,
            codec,
            compression: Compression::default(),
            schema: None,
            max_value: 8 << 20,
            store: Arc::new(store),
            bus: None,
            timeout: Duration::from_millis(250),
            soft_timeout: None,
            max_staleness: 5 * SECOND,
            lease: None,
            optional: false,
        }
    }

    /// Makes the cache.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration), naming the setting that is out of its range.
    pub fn build(self) -> Result<Cache<V>, Error> {
        self.settings.check()?;
        let events = Arc::new(Events::new(&self.settings.name));
        Ok(Cache::new(self.settings, events, None))
    }
}

impl<V> Settings<V> {
    fn check(&self) -> Result<(), Error> {
        let fits_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(fits_a_name) {
            return Err(Error::configuration("name", "1 to 64 letters, digits, `-`, `_` or `.`"));
        }
        if self.capacity == 0 {
            return Err(Error::configuration("capacity", "must be at least 1"));
        }
        if self.weigher.is_some() && self.capacity < 64 << 10 {
            return Err(Error::configuration("capacity_bytes", "must be at least 64 KiB"));
        }
        if self.max_loads.is_some_and(|loads| !(1..=tokio::sync::Semaphore::MAX_PERMITS).contains(&loads)) {
            return Err(Error::configuration("max_loads", "must be at least 1"));
        }
        if !(0.0..=0.5).contains(&self.policy.jitter) {
            return Err(Error::configuration("jitter", "must be from 0 to 0.5"));
        }
        let least = Duration::from_nanos(1);
        within("time_to_live", self.policy.time_to_live, least, MAX_TIME_TO_LIVE)?;
        let negative = self.policy.negative_time_to_live.unwrap_or_default();
        within("negative_time_to_live", negative, Duration::ZERO, MAX_TIME_TO_LIVE)?;
        within("time_to_idle", self.time_to_idle.unwrap_or(SECOND), least, MAX_TIME_TO_LIVE)?;
        within("stale_while_revalidate", self.policy.stale_while_revalidate, Duration::ZERO, MAX_STALE)?;
        within("stale_if_error", self.policy.stale_if_error, Duration::ZERO, MAX_STALE)?;
        within("stale_throttle", self.policy.stale_throttle.unwrap_or_default(), Duration::ZERO, HOUR)?;
        within("soft_timeout", self.soft_timeout.unwrap_or_default(), Duration::ZERO, HOUR)?;
        within("load_timeout", self.load_timeout, Duration::from_nanos(1), HOUR)?;
        within("error_throttle", self.error_throttle, Duration::ZERO, HOUR)
    }
}

/// Settings of a cache in two tiers: those of the remote one. [`build`](Self::build) is awaited.
#[must_use = "a builder does nothing until `build`"]
pub struct RemoteCacheBuilder<V> {
    local: Settings<V>,
    codec: Codec<V>,
    compression: Compression,
    schema: Option<u64>,
    max_value: usize,
    store: Arc<dyn ErasedStore>,
    bus: Option<Arc<dyn ErasedBus>>,
    timeout: Duration,
    soft_timeout: Option<Duration>,
    max_staleness: Duration,
    lease: Option<Duration>,
    optional: bool,
}

impl<V: Clone + Send + Sync + 'static> RemoteCacheBuilder<V> {
    /// How much is done to make values smaller in the store: [`Compression::Balanced`] unless set.
    ///
    /// Values that take long, above 64 KiB, are compressed, decompressed and read by threads apart from those
    /// that serve requests.
    ///
    /// ```
    /// use mcp_perf::{cache::{Cache, Compression}, clock::Clock, testing::MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let store = MemoryStore::new(Clock::system());
    /// let cache: Cache<String> =
    ///     Cache::builder("pages").remote(store).compression(Compression::Light).build().await?;
    /// # let _ = cache;
    /// # Ok(()) }
    /// ```
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// What the shape and the meaning of the values are called: nothing unless set.
    ///
    /// An entry of another schema is a miss, and is overwritten by what is loaded then. For a change of the type
    /// that the codec would not notice: a field whose unit changed, say. Processes of both schemas take entries
    /// from each other while they run side by side, which costs loads, never a wrong value.
    pub fn schema(mut self, schema: u64) -> Self {
        self.schema = Some(schema);
        self
    }

    /// How many bytes a value may have in the store, before it is compressed: 8 MiB unless set, which is room for
    /// what a server answers; at least 1 and at most [`MAX_VALUE`].
    ///
    /// A larger one is kept in memory only, which is logged once; to [`insert`](Cache::insert) it is an error. Without a
    /// [bus](Self::bus) it is loaded anew every [`max_staleness`](Self::max_staleness), since there is nothing to look at
    /// that would tell whether it still holds.
    /// It bounds what reading one entry may cost as well, whoever wrote it: one that declares more is a miss. So
    /// processes that share a store should have it alike.
    pub fn max_value(mut self, bytes: usize) -> Self {
        self.max_value = bytes;
        self
    }

    /// How long one call to the store may take before the cache goes on without it: 250 ms unless set, more
    /// than zero and at most a minute.
    pub fn remote_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long callers wait for the store where there is a stale value to serve instead: for the
    /// [`remote_timeout`](Self::remote_timeout) unless set, more than zero and at most a minute; ten times what
    /// the store usually takes is a good choice. The look into the store goes on, and the load after it if there is one.
    ///
    /// It means nothing without [`stale_if_error`](CacheBuilder::stale_if_error) or
    /// [`stale_while_revalidate`](CacheBuilder::stale_while_revalidate). Served is only what could be served from
    /// memory if it were fresh: what the store has confirmed within the [`max_staleness`](Self::max_staleness), or the
    /// [bus](Self::bus) covers, and what was not made to [`expire`](Cache::expire). A store that is slow is no reason to
    /// serve what another process may have removed longer ago. Once a load is to begin,
    /// [`soft_timeout`](CacheBuilder::soft_timeout) counts.
    pub fn remote_soft_timeout(mut self, timeout: Duration) -> Self {
        self.soft_timeout = Some(timeout);
        self
    }

    /// How long this process may serve an entry from memory without looking whether another process
    /// invalidated it: 5 seconds unless set, more than zero and at most [`MAX_TIME_TO_LIVE`].
    ///
    /// This is the bound on what may be stale here after an invalidation *there*; an invalidation in the
    /// same process takes effect at once. A longer one saves trips, a shorter one saves surprises. It counts from
    /// when the store was last asked, so what takes longer to load than this is served from the store alone, and
    /// loaded once more for those who ask this long after a load began that is still running; and it holds while the
    /// store is away, when every entry is loaded again after this time.
    pub fn max_staleness(mut self, max_staleness: Duration) -> Self {
        self.max_staleness = max_staleness;
        self
    }

    /// Tells other processes at once what this one invalidates, and hears the same of them, so that what is in
    /// memory is served for as long as it lives. [`max_staleness`](Self::max_staleness) holds on, as the bound for
    /// when the bus does not deliver.
    ///
    /// **All processes that share the cache need it, or none may have it**: one without a bus invalidates without
    /// telling, and those with one would serve what it invalidated. To add a bus to a fleet that is running, rename
    /// the cache with it.
    ///
    /// It costs one write more per invalidation, or per many at once, and per process four small reads of the store
    /// in every `max_staleness`. The bus need not be there when the cache is built.
    pub fn bus<B: Bus>(mut self, bus: B) -> Self {
        self.bus = Some(Arc::new(bus));
        self
    }

    /// Loads a missing value once for all processes that share the cache: one takes a *lease* of the key, the others
    /// wait for its value. Not unless set; at least twice the [`remote_timeout`](Self::remote_timeout) and at most an
    /// hour, and a few seconds are usual.
    ///
    /// Without it there is one load per process, which is enough unless a source bears no more than one at a time or
    /// there are very many processes: it costs a trip per load, and who waits has the value later than who loads, by up
    /// to half of what the load takes and 0.3 seconds at most. A value that is to be replaced lies in the lease and is
    /// written twice.
    ///
    /// `lease` is how long the others wait for a process that died; a lease that is needed for longer is prolonged.
    /// A load that fails, or brings nothing to store, gives it back, and the next of those who wait loads. They wait
    /// for the [`load_timeout`](CacheBuilder::load_timeout) at most, their own load included. A value is loaded ahead
    /// or behind a [stale answer](CacheBuilder::stale_while_revalidate) by one process alone, and nobody waits. A load
    /// that [`max_loads`](CacheBuilder::max_loads) keeps waiting takes none before it may begin.
    ///
    /// Whatever invalidates a key ends its lease: the load that holds it stores nothing, and a new one begins. While
    /// the store is away every process loads for itself. [`refresh`](Cache::refresh) waits for nobody, and
    /// [`get_or_load_many`](Cache::get_or_load_many) neither waits nor takes leases, since two batches that overlap
    /// would wait for each other. Processes may differ in it: who has no leases heeds none, and who has shorter ones
    /// takes over from who has longer ones.
    ///
    /// ```
    /// use mcp_perf::{cache::{Cache, Key}, clock::Clock, testing::MemoryStore};
    /// use std::{io, time::Duration};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let store = MemoryStore::new(Clock::system());
    /// let process = async || {
    ///     let cache = Cache::<u64>::builder("reports").remote(store.clone());
    ///     cache.share_loads(Duration::from_secs(5)).build().await
    /// };
    /// let (one, two) = (process().await?, process().await?);
    ///
    /// let report = || async {
    ///     tokio::time::sleep(Duration::from_millis(5)).await;
    ///     Ok::<_, io::Error>(42)
    /// };
    /// let key = Key::public("2026");
    /// let (first, second) = tokio::join!(one.get_or_load(&key, report), two.get_or_load(&key, report));
    /// assert_eq!((first?, second?), (42, 42));
    /// assert_eq!(one.stats().loads + two.stats().loads, 1);
    /// # Ok(()) }
    /// ```
    #[doc(alias = "stampede")]
    #[doc(alias = "distributed lock")]
    pub fn share_loads(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Builds the cache even if the store cannot be reached now, and uses it once it can.
    pub fn remote_optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Makes the cache, after asking the store for a sign of life, for which it has 5 seconds.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration), naming the setting that is out of its range; the
    /// store's error if it does not answer and is not [optional](Self::remote_optional).
    pub async fn build(self) -> Result<Cache<V>, Error> {
        self.local.check()?;
        self.codec.check()?;
        if !(1..=MAX_VALUE).contains(&self.max_value) {
            return Err(Error::configuration("max_value", "must be 1 byte to 512 MiB"));
        }
        within("remote_timeout", self.timeout, Duration::from_nanos(1), 60 * SECOND)?;
        let soft_timeout = self.soft_timeout.unwrap_or(self.timeout);
        within("remote_soft_timeout", soft_timeout, Duration::from_nanos(1), 60 * SECOND)?;
        within("max_staleness", self.max_staleness, Duration::from_nanos(1), MAX_TIME_TO_LIVE)?;
        if let Some(lease) = self.lease {
            // It is prolonged half way, which may take as long as a call does.
            if lease < 2 * self.timeout {
                return Err(Error::configuration("share_loads", "must be at least twice the remote_timeout"));
            }
            within("share_loads", lease, Duration::from_nanos(1), HOUR)?;
        }
        if self.bus.as_ref().is_some_and(|bus| bus.max_message() < LEAST_MESSAGE) {
            return Err(Error::configuration("bus", "max_message must be at least 128 bytes"));
        }
        let ping = tokio::time::timeout(self.timeout.max(5 * SECOND), self.store.ping()).await;
        match ping {
            Ok(Ok(())) => {}
            Ok(Err(error)) if self.optional => {
                tracing::warn!(cache = %self.local.name, cause = %error, "starting without the remote tier");
            }
            Err(_) if self.optional => {
                tracing::warn!(cache = %self.local.name, cause = "no answer", "starting without the remote tier");
            }
            Ok(Err(error)) => return Err(error),
            Err(elapsed) => {
                let problem = "the remote tier did not answer in time when the cache was built";
                return Err(Error::with_source(crate::ErrorKind::TimedOut, problem, elapsed));
            }
        }
        let events = Arc::new(Events::new(&self.local.name));
        let coherence = self
            .bus
            .map(|bus| Coherence::new(bus, &self.local.name, self.local.clock.clone(), self.max_staleness));
        let remote = Arc::new_cyclic(|me| Remote {
            me: Weak::clone(me),
            store: self.store,
            format: Format::new(&self.local.name, self.codec, self.compression, self.schema, self.max_value),
            cache: self.local.name.as_str().into(),
            epoch: envelope::epoch_name(&self.local.name).into(),
            any_tag: self.local.loader_tags.then(|| envelope::any_tag_name(&self.local.name).into()),
            timeout: self.timeout,
            soft_timeout: self.soft_timeout,
            // A load may begin just before the removal, read for `timeout`, run, and write for `timeout`.
            hold: self.local.load_timeout + 4 * self.timeout + 5 * SECOND,
            lease: self.lease,
            clock: self.local.clock.clone(),
            events: Arc::clone(&events),
            own_events: Arc::new(RemoteEvents::new(&self.local.name)),
            gate: Arc::default(),
            debts: Debts::default(),
            refuses_reads: AtomicBool::new(false),
            refuses_writes: AtomicBool::new(false),
            spared_until: AtomicU64::new(0),
            coherence,
            tell_unfit_from: AtomicU64::new(0),
        });
        Ok(Cache::new(self.local, events, Some((remote, self.max_staleness))))
    }
}

impl<V> fmt::Debug for Settings<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("engine", &self.engine)
            .field("capacity", &self.capacity)
            .field("in_bytes", &self.weigher.is_some())
            .field("policy", &self.policy)
            .field("time_to_idle", &self.time_to_idle)
            .field("soft_timeout", &self.soft_timeout)
            .field("load_timeout", &self.load_timeout)
            .field("max_loads", &self.max_loads)
            .field("error_throttle", &self.error_throttle)
            .field("loader_tags", &self.loader_tags)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl<V> fmt::Debug for CacheBuilder<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CacheBuilder").field(&self.settings).finish()
    }
}

impl<V> fmt::Debug for RemoteCacheBuilder<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteCacheBuilder")
            .field("local", &self.local)
            .field("codec", &self.codec)
            .field("compression", &self.compression)
            .field("schema", &self.schema)
            .field("max_value", &self.max_value)
            .field("remote_timeout", &self.timeout)
            .field("remote_soft_timeout", &self.soft_timeout)
            .field("max_staleness", &self.max_staleness)
            .field("share_loads", &self.lease)
            .field("remote_optional", &self.optional)
            .field("bus", &self.bus.is_some())
            .finish_non_exhaustive()
    }
}

fn within(field: &str, value: Duration, least: Duration, most: Duration) -> Result<(), Error> {
    if value < least {
        return Err(Error::configuration(field, format_args!("is {value:?}, and must be more than zero")));
    }
    if value > most {
        return Err(Error::configuration(field, format_args!("{value:?} is above the maximum of {most:?}")));
    }
    Ok(())
}
