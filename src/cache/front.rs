//! The cache as its users see it.

use std::{fmt, sync::Arc, time::Duration};

use tracing::Instrument;

use super::{
    builder::{CacheBuilder, Settings},
    flight::Boarding,
    key::Key,
    loaded::Loaded,
    local::Local,
    remote::Remote,
    stats::{Events, Stats},
    tags::{Cell, Invalidation, Stamp},
    tiers::{Remembered, Tiers},
};
use crate::{Error, ErrorKind};

/// A cache of values of type `V`, cheap to clone; clones are the same cache.
///
/// The [module page](super) says what it promises. `V` is cloned on every hit: put it in an
/// [`Arc`](std::sync::Arc) if that is dear. Its `Clone` and its `Drop` run inside the cache, so they must neither
/// panic nor call the cache. Methods that may load or write run that in a task of the tokio
/// runtime they are called in.
pub struct Cache<V: Clone + Send + Sync + 'static>(Arc<Tiers<V>>);

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Starts the settings of a cache. The name labels its metrics and, in a remote tier, its entries:
    /// caches of one name in one store share them. 1 to 64 letters, digits, `-`, `_` or `.`.
    pub fn builder(name: impl Into<String>) -> CacheBuilder<V> {
        CacheBuilder::new(name.into())
    }

    pub(super) fn new(
        settings: Settings,
        events: Arc<Events>,
        remote: Option<(Remote<V>, Duration)>,
    ) -> Self {
        Self(Arc::new(Tiers::new(settings, events, remote)))
    }

    /// The name given to [`builder`](Self::builder).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.settings.name
    }

    /// Returns the value from this process's memory, if it is there and may be served.
    ///
    /// Neither waits nor allocates.
    #[must_use]
    #[inline]
    pub fn get_local(&self, key: &Key<'_>) -> Option<V> {
        let hit = self.hit(key);
        if hit.is_none() {
            self.0.events.misses.add();
        }
        hit
    }

    /// As [`get_local`](Self::get_local), for those who go on with a method that counts the miss.
    #[inline]
    pub(crate) fn hit(&self, key: &Key<'_>) -> Option<V> {
        match self.0.remembered(key)? {
            Remembered::Value(value) => {
                self.0.events.hits.add();
                Some(value)
            }
            Remembered::Failure(_) => None,
        }
    }

    /// Returns the value from either tier, if it is there and may be served. Never loads.
    ///
    /// A remote tier that fails is a miss.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn get(&self, key: &Key<'_>) -> Option<V> {
        if let Some(value) = self.get_local(key) {
            return Some(value);
        }
        let remote = self.0.remote.as_ref()?;
        let glimpse = self.0.flights.glimpse(key);
        let mut captured = self.0.capture(&[]);
        let (value, entry) = self.0.look_in(remote, key, &mut captured).await?.entry?;
        self.0.flights.store_unless_changed(key, glimpse, || self.0.local.insert(key.into(), entry));
        Some(value)
    }

    /// Returns the value, from memory, the remote tier or `loader`, in this order.
    ///
    /// However many call this for one key at once, one loader runs; everybody gets what it returns. The
    /// loader returns a value or, to say how it is to be kept, a [`Loaded`].
    ///
    /// # Errors
    ///
    /// - [`Load`](ErrorKind::Load): the loader failed, here or within the
    ///   [`error_throttle`](CacheBuilder::error_throttle) before; its error is the source;
    /// - [`TimedOut`](ErrorKind::TimedOut): it took longer than the
    ///   [`load_timeout`](CacheBuilder::load_timeout);
    /// - [`Panicked`](ErrorKind::Panicked): it panicked.
    ///
    /// A remote tier that fails is no error here.
    ///
    /// # Cancel safety
    ///
    /// A caller that goes away leaves the load running, for the others and for the cache.
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let cache: Cache<u64> = Cache::builder("squares").build()?;
    /// for _ in 0..2 {
    ///     let square = cache.get_or_load(&Key::public("12"), || async { Ok::<_, std::io::Error>(144) }).await?;
    ///     assert_eq!(square, 144);
    /// }
    /// assert_eq!(cache.stats().loads, 1);
    /// # Ok(()) }
    /// ```
    pub async fn get_or_load<F, R, L, E>(&self, key: &Key<'_>, loader: F) -> Result<V, Error>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        if let Some(remembered) = self.0.remembered(key) {
            return self.0.recall(remembered);
        }
        // Boxed, so that a hit carries no room for the miss.
        Box::pin(self.load(key, &[], loader)).await
    }

    /// As [`get_or_load`](Self::get_or_load), and an entry that is loaded carries `tags`.
    ///
    /// Tags are given before the load, not by it: what a tag stood for *before* the value was read decides
    /// whether the value may be stored.
    ///
    /// # Errors
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Self::get_or_load).
    pub async fn get_or_load_tagged<F, R, L, E>(
        &self,
        key: &Key<'_>,
        tags: &[&str],
        loader: F,
    ) -> Result<V, Error>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        if let Some(remembered) = self.0.remembered(key) {
            return self.0.recall(remembered);
        }
        Box::pin(self.load(key, tags, loader)).await
    }

    async fn load<F, R, L, E>(&self, key: &Key<'_>, tags: &[&str], loader: F) -> Result<V, Error>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let tiers = &self.0;
        // Before boarding, and so before the load: whatever is removed from here on is newer than it.
        let captured = tiers.capture(tags);
        let began = tiers.began(&captured);
        let flight = match tiers.flights.board(key, &tiers.epoch, began, || tiers.remembered(key)) {
            Boarding::Found(remembered) => return tiers.recall(remembered),
            Boarding::Join(flight) => {
                tiers.events.misses.add();
                tiers.events.joined.add();
                flight
            }
            Boarding::Lead(lead) => {
                tiers.events.misses.add();
                let flight = lead.flight();
                let load = Arc::clone(tiers).fly(lead, captured, loader);
                tokio::spawn(load.in_current_span());
                flight
            }
        };
        flight.outcome().await
    }

    /// Stores a value, in both tiers.
    ///
    /// A load that is running does not overwrite it. The value is the caller's responsibility: if it was
    /// read before an invalidation, it is stored all the same.
    ///
    /// # Errors
    ///
    /// [`Codec`](ErrorKind::Codec) if it cannot be turned into bytes, or the remote tier's error. This process
    /// does not read an older value there then; others may.
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    pub async fn insert(&self, key: &Key<'_>, value: impl Into<Loaded<V>>) -> Result<(), Error> {
        self.insert_tagged(key, &[], value).await
    }

    /// As [`insert`](Self::insert), and the entry carries `tags`.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    ///
    /// # Cancel safety
    ///
    /// As [`insert`](Self::insert).
    pub async fn insert_tagged(
        &self,
        key: &Key<'_>,
        tags: &[&str],
        value: impl Into<Loaded<V>>,
    ) -> Result<(), Error> {
        let loaded = value.into();
        let Some(life) = self.0.life(&loaded) else { return self.remove(key).await };
        let captured = self.0.capture(tags);
        if self.0.remote.is_none() {
            self.0.keep(key, loaded.value, life, &captured);
            return Ok(());
        }
        let (tiers, key) = (Arc::clone(&self.0), key.clone().into_owned());
        detached(async move { tiers.write_through(&key, loaded.value, life, captured).await }).await
    }

    /// Removes the value from both tiers. A load that is running will not store what it read.
    ///
    /// # Errors
    ///
    /// The remote tier's error. It is gone for this process then, which reads nothing there until it could tell;
    /// other processes may read it there until then, or until it dies. Calling again is safe.
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    pub async fn remove(&self, key: &Key<'_>) -> Result<(), Error> {
        self.0.flights.fence(key, || self.0.local.remove(key));
        if self.0.remote.is_none() {
            return Ok(());
        }
        let (tiers, key) = (Arc::clone(&self.0), key.clone().into_owned());
        detached(async move {
            let Some(remote) = &tiers.remote else { return Ok(()) };
            let removed = remote.remove(&key).await;
            // Again, for whatever read the remote tier between the first time and its removal there.
            tiers.flights.fence(&key, || tiers.local.remove(&key));
            removed
        })
        .await
    }

    /// Removes every value that carries the tag, from both tiers, in time that does not depend on their
    /// number. Loads that are running will not store what they read.
    ///
    /// # Errors
    ///
    /// As [`remove`](Self::remove).
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let cache: Cache<&'static str> = Cache::builder("pages").build()?;
    /// cache.insert_tagged(&Key::public("home"), &["layout"], "<h1>").await?;
    /// cache.insert_tagged(&Key::public("about"), &["layout", "staff"], "<h2>").await?;
    /// cache.remove_by_tag("staff").await?;
    /// assert_eq!(cache.get(&Key::public("home")).await, Some("<h1>"));
    /// assert_eq!(cache.get(&Key::public("about")).await, None);
    /// # Ok(()) }
    /// ```
    pub async fn remove_by_tag(&self, tag: &str) -> Result<(), Error> {
        let cell = self.0.tags.known(tag);
        self.restamp(cell, Some(tag.to_owned()), Invalidation::Remove).await
    }

    /// Removes every value of this cache from both tiers; as [`remove_by_tag`](Self::remove_by_tag) for a
    /// tag that all of them carry.
    ///
    /// # Errors
    ///
    /// As [`remove`](Self::remove).
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    pub async fn clear(&self) -> Result<(), Error> {
        let done = self.restamp(Some(Arc::clone(&self.0.epoch)), None, Invalidation::Remove).await;
        self.0.local.clear();
        done
    }

    async fn restamp(
        &self,
        cell: Option<Arc<Cell>>,
        tag: Option<String>,
        invalidation: Invalidation,
    ) -> Result<(), Error> {
        let Some(_) = &self.0.remote else {
            cell.inspect(|cell| cell.bump(invalidation, None));
            return Ok(());
        };
        let stamp = Stamp::random();
        cell.inspect(|cell| cell.bump(invalidation, Some(stamp)));
        let tiers = Arc::clone(&self.0);
        detached(async move {
            let Some(remote) = &tiers.remote else { return Ok(()) };
            let done = remote.restamp(tag.as_deref(), invalidation, stamp).await;
            // Again, and looked up again, for whatever noted the old stamp before the new one was written.
            let cell = match tag.as_deref() {
                Some(tag) => tiers.tags.known(tag),
                None => Some(Arc::clone(&tiers.epoch)),
            };
            cell.inspect(|cell| cell.bump(invalidation, Some(stamp)));
            done
        })
        .await
    }

    /// What the cache did so far, and holds now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Tiers { events, local, flights, .. } = &*self.0;
        Stats {
            hits: events.hits.sum(),
            misses: events.misses.sum(),
            joined: events.joined.sum(),
            throttled: events.throttled.sum(),
            loads: events.loads.sum(),
            load_failures: events.load_failures.sum(),
            fenced: events.fenced.sum(),
            remote_hits: events.remote_hits.sum(),
            remote_misses: events.remote_misses.sum(),
            remote_failures: events.remote_failures.sum(),
            len: local.len(),
            loading: flights.len(),
        }
    }
}

impl<V: Clone + Send + Sync + 'static> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V: Clone + Send + Sync + 'static> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("settings", &self.0.settings).field("stats", &self.stats()).finish()
    }
}

/// Runs a write in a task of its own, so that a caller that goes away does not leave the tiers apart.
async fn detached(write: impl Future<Output = Result<(), Error>> + Send + 'static) -> Result<(), Error> {
    tokio::spawn(write.in_current_span()).await.unwrap_or_else(|gone| {
        Err(Error::with_source(ErrorKind::Panicked, "the runtime shut down under a write", gone))
    })
}
