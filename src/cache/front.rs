//! The cache as its users see it.

use std::{fmt, sync::Arc, time::Duration};

use tracing::Instrument;

use super::{
    builder::{CacheBuilder, Settings},
    explain::Explanation,
    freshness::Standing,
    key::Key,
    load::Purpose,
    load_limit::LoadLimit,
    loaded::{Loaded, Previous, What},
    local::Local,
    remote::Remote,
    stats::{Events, Stats},
    tags::{Invalidation, Stamp},
    tiers::{Kept, Remembered, Tiers},
    untold::Untold,
    write::all,
};
use crate::{Error, ErrorKind};

/// A cache of values of type `V`, cheap to clone; clones are the same cache.
///
/// The [module page](super) says what it promises. `V` is cloned on every hit: put it in an
/// [`Arc`](std::sync::Arc) if that is dear. Its `Clone` and its `Drop` run inside the cache, so they must neither
/// panic nor call the cache. Methods that may load or write run that in a task of the tokio
/// runtime they are called in.
///
/// # Panics
///
/// Methods that load, and those that ask or tell a remote tier, panic outside of a tokio runtime with its timer enabled.
/// [`get_local`](Self::get_local), and hits in memory, need none.
pub struct Cache<V: Clone + Send + Sync + 'static>(pub(super) Arc<Tiers<V>>);

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Starts the settings of a cache. The name labels its metrics and, in a remote tier, its entries:
    /// caches of one name in one store share them. 1 to 64 letters, digits, `-`, `_` or `.`.
    pub fn builder(name: impl Into<String>) -> CacheBuilder<V> {
        CacheBuilder::new(name.into())
    }

    pub(super) fn new(
        settings: Settings<V>,
        events: Arc<Events>,
        remote: Option<(Arc<Remote<V>>, Duration)>,
    ) -> Self {
        let tiers = Arc::new(Tiers::new(settings, events, remote));
        tiers.coherence().inspect(|coherence| coherence.start(&Arc::downgrade(&tiers)));
        Self(tiers)
    }

    /// The name given to [`builder`](Self::builder).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.settings.name
    }

    /// Returns the value from this process's memory, if it is there and fresh.
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
        let value = match self.0.at_hand(key) {
            Ok(value) => value,
            Err(Some(Remembered::Fresh(value) | Remembered::Due(value))) => self.0.answer(value),
            Err(_) => return None,
        };
        self.0.events.hits.add();
        Some(value)
    }

    /// The value, if there is nothing to do about it: it is fresh, and no new load is due.
    #[inline]
    pub(super) fn fresh(&self, key: &Key<'_>) -> Option<V> {
        match self.0.remembered(key)? {
            Remembered::Fresh(value) => {
                self.0.events.hits.add();
                Some(self.0.answer(value))
            }
            _ => None,
        }
    }

    /// Returns the value from either tier, if it is there and fresh. Never loads.
    ///
    /// A remote tier that fails is a miss. It is not asked for what memory knows not to exist.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn get(&self, key: &Key<'_>) -> Option<V> {
        match self.0.remembered(key) {
            Some(Remembered::Fresh(value) | Remembered::Due(value)) => {
                self.0.events.hits.add();
                return Some(self.0.answer(value));
            }
            // What the remote tier has may be what this is the end of.
            Some(Remembered::Failure(error)) if error.kind() == ErrorKind::NotFound => {
                self.0.events.negative_hits.add();
                return None;
            }
            _ => self.0.events.misses.add(),
        }
        let remote = self.0.remote.as_ref()?;
        let glimpse = self.0.flights.glimpse(key)?;
        let mut captured = self.0.capture(&[]);
        let entry = self.0.look_in(remote, key, &mut captured).await?.entry?;
        let now = self.0.clock.now();
        let is_fresh = matches!(self.0.standing_of_heard(&entry, now), Standing::Fresh | Standing::Due);
        let value = entry.content.clone().ok().filter(|_| is_fresh);
        // Not where memory may not answer from it: under a very short `max_staleness`, say.
        if is_fresh && self.0.is_confirmed(&entry, now) {
            self.0.flights.store_unless_changed(key, glimpse, || self.0.local.insert(key.into(), entry));
        }
        value
    }

    /// Returns the value, from memory, the remote tier or `loader`, in this order.
    ///
    /// However many call this for one key at once, one loader runs, in a task of its own, for which it has to own what it
    /// needs; everybody gets what it returns. The loader returns a value or, to say how it is to be kept, a [`Loaded`].
    ///
    /// # Errors
    ///
    /// - [`Load`](ErrorKind::Load): the loader failed, here or within the
    ///   [`error_throttle`](CacheBuilder::error_throttle) before; its error is the source;
    /// - [`TimedOut`](ErrorKind::TimedOut): it took longer than the
    ///   [`load_timeout`](CacheBuilder::load_timeout);
    /// - [`NotFound`](ErrorKind::NotFound): it answered [`Loaded::not_found`], now or a while ago;
    /// - [`Panicked`](ErrorKind::Panicked): it panicked;
    /// - [`Recursion`](ErrorKind::Recursion): a loader asked for the value that it was loading.
    ///
    /// A remote tier that fails is no error here.
    ///
    /// # Cancel safety
    ///
    /// A caller that goes away leaves the load running, for the others and for the cache; unless it was the last one, and
    /// [`drop_abandoned_loads`](CacheBuilder::drop_abandoned_loads) is set.
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
    #[doc(alias = "get_with")]
    #[doc(alias = "try_get_with")]
    pub async fn get_or_load<F, R, L, E>(&self, key: &Key<'_>, loader: F) -> Result<V, Error>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        // Nothing of a hit is kept for after the wait.
        let loader = match self.at_hand(key, &[], |_| loader()) {
            Ok(answer) => return answer,
            Err(loader) => loader,
        };
        Box::pin(self.0.need(key, &[], Purpose::Need, loader)).await
    }

    /// As [`get_or_load`](Self::get_or_load), and an entry that is loaded carries `tags`.
    ///
    /// Tags are given before the load, not by it: what a tag stood for *before* the value was read decides
    /// whether the value may be stored. What only the value tells its loader may choose, where the cache was built
    /// with [`loader_tags`](CacheBuilder::loader_tags).
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
        let loader = match self.at_hand(key, tags, |_| loader()) {
            Ok(answer) => return answer,
            Err(loader) => loader,
        };
        Box::pin(self.0.need(key, tags, Purpose::Need, loader)).await
    }

    /// As [`get_or_load_tagged`](Self::get_or_load_tagged), with a loader that is told of the value before: it may
    /// ask its source whether that has changed (HTTP's `If-None-Match`, say), and answer
    /// [`Loaded::not_modified`].
    ///
    /// There is a value to tell of after its time to live where the cache keeps it for longer, by
    /// [`stale_if_error`](CacheBuilder::stale_if_error) or
    /// [`stale_while_revalidate`](CacheBuilder::stale_while_revalidate), and before it is over where it is
    /// [loaded ahead](CacheBuilder::refresh_ahead).
    ///
    /// # Errors
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key, Loaded, Previous};
    /// use std::{io, time::Duration};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// /// Asks the source, and says by which tag it knows what one has.
    /// async fn fetch(known: Option<Previous<String>>) -> io::Result<Loaded<String>> {
    ///     match known.and_then(|known| known.validator).as_deref() {
    ///         Some("\"v1\"") => Ok(Loaded::not_modified()),
    ///         _ => Ok(Loaded::new("a long page".to_owned()).validator("\"v1\"")),
    ///     }
    /// }
    ///
    /// let pages: Cache<String> =
    ///     Cache::builder("pages").stale_if_error(Duration::from_secs(3600)).build()?;
    /// let home = Key::public("home");
    /// assert_eq!(pages.get_or_revalidate(&home, &[], fetch).await?, "a long page");
    /// pages.expire(&home).await?;
    /// assert_eq!(pages.get_or_revalidate(&home, &[], fetch).await?, "a long page");
    /// # Ok(()) }
    /// ```
    pub async fn get_or_revalidate<F, R, L, E>(
        &self,
        key: &Key<'_>,
        tags: &[&str],
        loader: F,
    ) -> Result<V, Error>
    where
        F: FnOnce(Option<Previous<V>>) -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let loader = match self.at_hand(key, tags, loader) {
            Ok(answer) => return answer,
            Err(loader) => loader,
        };
        // Boxed, so that a hit carries no room for the miss.
        Box::pin(self.0.need(key, tags, Purpose::Need, loader)).await
    }

    /// What memory has to say, else the loader again. No future, so that a hit is not a stack of them.
    #[inline]
    fn at_hand<F, R, L, E>(&self, key: &Key<'_>, tags: &[&str], loader: F) -> Result<Result<V, Error>, F>
    where
        F: FnOnce(Option<Previous<V>>) -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        match self.0.at_hand(key) {
            Ok(value) => {
                self.0.events.hits.add();
                Ok(Ok(value))
            }
            Err(None) => Err(loader),
            Err(Some(remembered)) => {
                // While a load runs nothing more is to be done, and nothing to be made for it.
                if matches!(remembered, Remembered::Due(_) | Remembered::Revalidate(_))
                    && !self.0.flights.is_running(key)
                {
                    self.0.refresh_behind(key, tags, loader);
                }
                Ok(self.0.recall(remembered))
            }
        }
    }

    /// Loads the value unconditionally, and replaces it in both tiers.
    ///
    /// Until the load has ended, other callers get the old value. With a [bus](super::RemoteCacheBuilder::bus) other
    /// processes are told then, as of an [insertion](Self::insert).
    ///
    /// # Errors
    ///
    /// As [`get_or_load`](Self::get_or_load), but nothing stands in for a load that fails or is slow, however fresh:
    /// `Ok` is what the loader returned. What there was is kept for the others, as after any load ahead that fails. If
    /// it answered [`Loaded::not_found`] or [`Loaded::do_not_store`], what there was is gone.
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Self::get_or_load).
    pub async fn refresh<F, R, L, E>(&self, key: &Key<'_>, tags: &[&str], loader: F) -> Result<V, Error>
    where
        F: FnOnce(Option<Previous<V>>) -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        Box::pin(self.0.need(key, tags, Purpose::Force, loader)).await
    }

    /// Returns the values of many keys, in their order: from memory; from the remote tier, in one trip, and in another
    /// for the stamps of whatever tags the entries there carry beside `tags`; and what is missing then from one call of
    /// `loader`.
    ///
    /// The loader is given the keys that nobody else is loading, and answers with pairs, in any order: what it does
    /// not mention is [not found](Loaded::not_found), and an error of one key is no error of the others. What others
    /// are loading is waited for, not loaded twice. All entries that are loaded carry `tags`; for tags of its own see
    /// [`Loaded::tags`].
    ///
    /// # Errors
    ///
    /// One result per key, with the errors of [`get_or_load`](Self::get_or_load). If the loader fails as a whole,
    /// takes too long or panics, every key that it was given has that error.
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::{ErrorKind, cache::{Cache, Key}};
    /// use std::io;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let names: Cache<String> = Cache::builder("names").build()?;
    /// let keys = ["1", "2", "3"].map(Key::public);
    /// // One query for all that are missing, instead of one for each.
    /// let found = names
    ///     .get_or_load_many(&keys, &[], |missing| async move {
    ///         assert_eq!(missing.len(), 3);
    ///         let rows = [("1", "ada"), ("3", "grace")];
    ///         Ok::<_, io::Error>(rows.map(|(id, name)| (Key::public(id), Ok(name.to_owned()))))
    ///     })
    ///     .await;
    /// assert_eq!(found[0].as_deref().ok(), Some("ada"));
    /// assert_eq!(found[1].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
    /// assert_eq!(names.stats().loads, 1);
    /// # Ok(()) }
    /// ```
    pub async fn get_or_load_many<F, R, I, L, E>(
        &self,
        keys: &[Key<'_>],
        tags: &[&str],
        loader: F,
    ) -> Vec<Result<V, Error>>
    where
        F: FnOnce(Vec<Key<'static>>) -> R + Send + 'static,
        R: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (Key<'static>, Result<L, E>)> + Send + 'static,
        I::IntoIter: Send,
        L: Into<Loaded<V>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        Box::pin(self.0.need_many(keys, &[], tags, loader)).await
    }

    /// Stores a value, in both tiers.
    ///
    /// A load that is running does not overwrite it. The value is the caller's responsibility: if it was
    /// read before an invalidation, it is stored all the same.
    ///
    /// # Errors
    ///
    /// [`Codec`](ErrorKind::Codec) if it cannot be turned into bytes, or the remote tier's error. This process
    /// does not read an older value there then; others may. [`Refused`](ErrorKind::Refused) for [`Loaded::not_modified`],
    /// which is no value: nothing is changed.
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
        let Loaded { what, time_to_live, validator, cost, tags: more, store } = value.into();
        let captured = self.0.capture(&all(tags, &more));
        let policy = &self.0.settings.policy;
        let (content, fresh) = match what {
            What::Value(value) => (Ok(value), policy.life(time_to_live, key, captured.at)),
            What::NotFound => (Err(Error::not_found()), policy.negative_life(time_to_live)),
            What::NotModified => {
                return Err(Error::new(ErrorKind::Refused, "`not_modified` is no value to insert"));
            }
        };
        if !store || fresh.is_zero() {
            return self.remove(key).await;
        }
        let kept = Kept { content, fresh, load_cost: Duration::ZERO, validator, cost };
        if self.0.remote.is_none() {
            self.0.keep(key, &kept, &captured);
            return Ok(());
        }
        let (tiers, key) = (Arc::clone(&self.0), key.clone().into_owned());
        let untold = self.0.remote.as_ref().map(|remote| remote.untold_removal(&key));
        detached(untold, async move { tiers.write_through(&key, &kept, captured).await }).await
    }

    /// Removes the value from both tiers. A load that is running will not store what it read.
    ///
    /// # Errors
    ///
    /// The remote tier's error. It is gone for this process then, which does not ask for it there until it could tell;
    /// other processes may read it there until then, or until it dies. Calling again is safe.
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    #[doc(alias = "invalidate")]
    pub async fn remove(&self, key: &Key<'_>) -> Result<(), Error> {
        self.0.change_local(key, Invalidation::Remove);
        let Some(remote) = &self.0.remote else { return Ok(()) };
        let (tiers, key) = (Arc::clone(&self.0), key.clone().into_owned());
        detached(Some(remote.untold_removal(&key)), async move {
            let Some(remote) = &tiers.remote else { return Ok(()) };
            let removed = remote.remove(&key).await;
            // Again, for whatever read the remote tier between the first time and its removal there.
            tiers.change_local(&key, Invalidation::Remove);
            removed
        })
        .await
    }

    /// Makes the value stale, in both tiers: the next to ask waits for a load, and the old value stands in only where
    /// a stale one may ([`stale_if_error`](CacheBuilder::stale_if_error)). In a cache that keeps nothing stale it is
    /// as [`remove`](Self::remove). A load that is running will not store what it read.
    ///
    /// # Errors
    ///
    /// As [`remove`](Self::remove).
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    pub async fn expire(&self, key: &Key<'_>) -> Result<(), Error> {
        self.0.change_local(key, Invalidation::Expire);
        let Some(remote) = &self.0.remote else { return Ok(()) };
        let (tiers, key) = (Arc::clone(&self.0), key.clone().into_owned());
        detached(Some(remote.untold_removal(&key)), async move {
            let Some(remote) = &tiers.remote else { return Ok(()) };
            let expired = tiers.expire_remote(remote, &key).await;
            // Again, for whatever read the remote tier between the first time and its expiry there.
            tiers.change_local(&key, Invalidation::Expire);
            expired
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
        self.restamp(Some(tag.to_owned()), Invalidation::Remove).await
    }

    /// Makes every value stale that carries the tag, as [`expire`](Self::expire) does for one, in time that does not
    /// depend on their number. Loads that are running will not store what they read.
    ///
    /// # Errors
    ///
    /// As [`remove`](Self::remove).
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    pub async fn expire_by_tag(&self, tag: &str) -> Result<(), Error> {
        self.restamp(Some(tag.to_owned()), Invalidation::Expire).await
    }

    /// Makes every value of this cache stale; as [`expire_by_tag`](Self::expire_by_tag) for a tag that all of them
    /// carry.
    ///
    /// # Errors
    ///
    /// As [`remove`](Self::remove).
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    pub async fn expire_all(&self) -> Result<(), Error> {
        self.restamp(None, Invalidation::Expire).await
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
    #[doc(alias = "invalidate_all")]
    pub async fn clear(&self) -> Result<(), Error> {
        let done = self.restamp(None, Invalidation::Remove).await;
        self.0.local.clear();
        done
    }

    async fn restamp(&self, tag: Option<String>, invalidation: Invalidation) -> Result<(), Error> {
        let Some(remote) = &self.0.remote else {
            self.0.bump(tag.as_deref(), invalidation, None);
            return Ok(());
        };
        let stamp = Stamp::random();
        self.0.bump(tag.as_deref(), invalidation, Some(stamp));
        let tiers = Arc::clone(&self.0);
        detached(Some(remote.untold_stamp(tag.as_deref(), invalidation)), async move {
            let Some(remote) = &tiers.remote else { return Ok(()) };
            let done = remote.restamp(tag.as_deref(), invalidation, stamp).await;
            // Again, and looked up again, for whatever noted the old stamp before the new one was written.
            tiers.bump(tag.as_deref(), invalidation, Some(stamp));
            done
        })
        .await
    }

    /// Waits until the remote tier has been told every invalidation that it is being told, or that is [owed](Stats::owed) to
    /// it, for `timeout` at most, and returns how many it has not been told.
    ///
    /// To be called when a process ends, after the last call that invalidates something. What it has not been told then is
    /// lost with the process: others serve the old values to the end of their lives. What counts is what changed before: the
    /// values of insertions, of [`write_through`](Self::write_through) and of a [`refresh`](Self::refresh) that is done are
    /// waited for as well. Nothing else is: a load that is running, or its value that is not shared yet, costs the others a
    /// load. A [`WriteBehind`](super::WriteBehind) and a pool have a `shutdown`
    /// of their own. The cache can be used as before.
    ///
    /// # Cancel safety
    ///
    /// What is owed goes on being told, as long as the runtime is there.
    ///
    /// ```
    /// use mcp_perf::cache::Cache;
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let cache: Cache<String> = Cache::builder("answers").build()?;
    /// assert_eq!(cache.shutdown(Duration::from_secs(5)).await, 0);
    /// # Ok(()) }
    /// ```
    #[must_use = "these invalidations other processes never hear of"]
    pub async fn shutdown(&self, timeout: Duration) -> usize {
        let Some(remote) = &self.0.remote else { return 0 };
        let _ = tokio::time::timeout(timeout, remote.pay_everything()).await;
        remote.debts.untold()
    }

    /// Explains how a lookup of the key would be answered, and why: where the value is, whether it is fresh, whether a load
    /// is running.
    ///
    /// For debugging. It asks the remote tier (which may note there that nothing is there), and counts neither a hit nor a
    /// miss.
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let cache: Cache<u32> = Cache::builder("answers").build()?;
    /// cache.insert_tagged(&Key::public("a"), &["books"], 42).await?;
    /// cache.remove_by_tag("books").await?;
    /// let why = cache.explain(&Key::public("a")).await;
    /// assert_eq!(why.to_string(), "in memory: removed since (by its tag `books`); no remote tier; no load running");
    /// # Ok(()) }
    /// ```
    pub async fn explain(&self, key: &Key<'_>) -> Explanation {
        self.0.explain(key).await
    }

    /// What the cache did so far, and holds now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Tiers { events, local, flights, load_limit, remote, .. } = &*self.0;
        Stats {
            hits: events.hits.sum(),
            stale_hits: events.stale_hits.sum(),
            stale_misses: events.stale_misses.sum(),
            negative_hits: events.negative_hits.sum(),
            saved_load_time: Duration::from_micros(events.saved_micros.sum()),
            refreshes: events.refreshes.sum(),
            misses: events.misses.sum(),
            joined: events.joined.sum(),
            awaited: events.awaited.sum(),
            throttled: events.throttled.sum(),
            loads: events.loads.sum(),
            load_failures: events.load_failures.sum(),
            abandoned: events.abandoned.sum(),
            fenced: events.fenced.sum(),
            remote_hits: events.remote_hits.sum(),
            remote_unchanged: events.remote_unchanged.sum(),
            remote_misses: events.remote_misses.sum(),
            remote_unreadable: events.remote_unreadable.sum(),
            remote_failures: events.remote_failures.sum(),
            remote_status: remote.as_ref().map(|remote| remote.gate.status()).unwrap_or_default(),
            remote_outages: remote.as_ref().map_or(0, |remote| remote.own_events.outages.sum()),
            owed: remote.as_ref().map_or(0, |remote| remote.debts.len()),
            len: local.len(),
            weight: local.weight(),
            loading: flights.len(),
            queued: load_limit.as_ref().map_or(0, LoadLimit::queued),
            bus: self.0.coherence().map(|coherence| coherence.events.stats()).unwrap_or_default(),
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

/// Runs a write in a task of its own, so that a caller that goes away does not leave the tiers apart. What it does not tell
/// the remote tier, because its runtime ends, is owed.
pub(super) async fn detached<V: Send + Sync + 'static>(
    untold: Option<Untold<V>>,
    write: impl Future<Output = Result<(), Error>> + Send + 'static,
) -> Result<(), Error> {
    let write = async move {
        let written = write.await;
        untold.into_iter().for_each(Untold::told);
        written
    };
    tokio::spawn(write.in_current_span()).await.unwrap_or_else(|gone| {
        Err(Error::with_source(ErrorKind::Panicked, "the runtime shut down under a write", gone))
    })
}
