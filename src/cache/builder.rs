//! Making a cache.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    Store,
    codec::Codec,
    front::Cache,
    remote::{Debts, Remote},
    stats::Events,
    store::ErasedStore,
};
use crate::{Error, clock::Clock, sync::Mutex};

/// The longest time to live: 30 days. What has to live longer is data, not a cached copy of it.
pub const MAX_TIME_TO_LIVE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Settings of a cache in the process alone; [`remote`](Self::remote) adds a tier behind it.
#[must_use = "a builder does nothing until `build`"]
pub struct CacheBuilder<V> {
    settings: Settings,
    value: PhantomData<fn() -> V>,
}

/// What both builders set.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) capacity: u64,
    pub(super) time_to_live: Duration,
    pub(super) load_timeout: Duration,
    pub(super) error_throttle: Duration,
    pub(super) clock: Clock,
}

impl<V: Clone + Send + Sync + 'static> CacheBuilder<V> {
    pub(super) fn new(name: String) -> Self {
        let settings = Settings {
            name,
            capacity: 10_000,
            time_to_live: 300 * SECOND,
            load_timeout: 30 * SECOND,
            error_throttle: Duration::from_millis(100),
            clock: Clock::system(),
        };
        Self { settings, value: PhantomData }
    }

    /// How many entries fit in memory: 10,000 unless set, at least 1.
    ///
    /// Beyond that the engine keeps those that are asked for more often.
    pub fn capacity(mut self, entries: u64) -> Self {
        self.settings.capacity = entries;
        self
    }

    /// How long an entry may be served, unless its loader says otherwise: 5 minutes unless set, more than
    /// zero and at most [`MAX_TIME_TO_LIVE`].
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.time_to_live = time_to_live;
        self
    }

    /// After how long a running loader is dropped and its waiters get an error: 30 seconds unless set, more
    /// than zero and at most an hour.
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.settings.load_timeout = timeout;
        self
    }

    /// For how long a failed load is answered with its error instead of being repeated: 100 ms unless set,
    /// at most an hour. Zero repeats at once, and then only those who waited share the error.
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

    /// Puts a store behind the memory, which other processes share.
    pub fn remote<S: Store>(self, store: S) -> RemoteCacheBuilder<V> {
        RemoteCacheBuilder {
            local: self.settings,
            value: PhantomData,
            store: Arc::new(store),
            timeout: Duration::from_millis(250),
            max_staleness: 5 * SECOND,
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

impl Settings {
    fn check(&self) -> Result<(), Error> {
        let fits_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(fits_a_name) {
            return Err(Error::configuration("name", "1 to 64 letters, digits, `-`, `_` or `.`"));
        }
        if self.capacity == 0 {
            return Err(Error::configuration("capacity", "must be at least 1"));
        }
        within("time_to_live", self.time_to_live, Duration::from_nanos(1), MAX_TIME_TO_LIVE)?;
        within("load_timeout", self.load_timeout, Duration::from_nanos(1), HOUR)?;
        within("error_throttle", self.error_throttle, Duration::ZERO, HOUR)
    }
}

/// Settings of a cache in two tiers.
#[must_use = "a builder does nothing until `build`"]
pub struct RemoteCacheBuilder<V> {
    local: Settings,
    value: PhantomData<fn() -> V>,
    store: Arc<dyn ErasedStore>,
    timeout: Duration,
    max_staleness: Duration,
    optional: bool,
}

impl<V> RemoteCacheBuilder<V>
where
    V: Clone + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// How long one call to the store may take before the cache goes on without it: 250 ms unless set, more
    /// than zero and at most a minute.
    pub fn remote_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long this process may serve an entry from memory without looking whether another process
    /// invalidated it: 5 seconds unless set, more than zero.
    ///
    /// This is the bound on what may be stale here after an invalidation *there*; an invalidation in the
    /// same process takes effect at once. A longer one saves trips, a shorter one saves surprises. It counts from
    /// when the store was last asked, so what takes longer to load than this is served from the store alone; and
    /// it holds while the store is away, when every entry is loaded again after this time.
    pub fn max_staleness(mut self, max_staleness: Duration) -> Self {
        self.max_staleness = max_staleness;
        self
    }

    /// Builds the cache even if the store cannot be reached now, and uses it once it can.
    pub fn remote_optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Makes the cache, after asking the store for a sign of life, for which it has 5 seconds.
    ///
    /// Values travel as JSON, by their `serde` implementation.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration), naming the setting that is out of its range; the
    /// store's error if it does not answer and is not [optional](Self::remote_optional).
    pub async fn build(self) -> Result<Cache<V>, Error> {
        self.local.check()?;
        within("remote_timeout", self.timeout, Duration::from_nanos(1), 60 * SECOND)?;
        within("max_staleness", self.max_staleness, Duration::from_nanos(1), MAX_TIME_TO_LIVE)?;
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
        let remote = Remote {
            store: self.store,
            codec: Codec::json(),
            cache: self.local.name.as_str().into(),
            timeout: self.timeout,
            // A load may begin just before the removal, read for `timeout`, run, and write for `timeout`.
            hold: self.local.load_timeout + 4 * self.timeout + 5 * SECOND,
            clock: self.local.clock.clone(),
            events: Arc::clone(&events),
            availability: Mutex::default(),
            debts: Debts::default(),
        };
        Ok(Cache::new(self.local, events, Some((remote, self.max_staleness))))
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
            .field("remote_timeout", &self.timeout)
            .field("max_staleness", &self.max_staleness)
            .field("remote_optional", &self.optional)
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
