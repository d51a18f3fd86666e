//! What a loader returns, and what it is told.

use std::{sync::Arc, time::Duration};

/// What a loader found out, and how it is to be kept.
///
/// A loader that has a value and nothing to say about it returns the value itself.
///
/// ```
/// use mcp_perf::cache::{Cache, Key, Loaded};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let cache: Cache<&'static str> = Cache::builder("health").build()?;
/// let health = cache
///     .get_or_load(&Key::public("db"), || async {
///         let status = "degraded";
///         // The worse it is, the sooner it is looked at again.
///         let life = match status {
///             "healthy" => 300,
///             "degraded" => 60,
///             _ => 30,
///         };
///         Ok::<_, std::io::Error>(Loaded::new(status).time_to_live(Duration::from_secs(life)))
///     })
///     .await?;
/// assert_eq!(health, "degraded");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Loaded<V> {
    pub(super) what: What<V>,
    pub(super) time_to_live: Option<Duration>,
    pub(super) validator: Option<Arc<str>>,
    pub(super) cost: Option<u32>,
    pub(super) tags: Vec<Arc<str>>,
    pub(super) store: bool,
}

#[derive(Clone, Debug)]
pub(super) enum What<V> {
    Value(V),
    NotFound,
    NotModified,
}

impl<V> Loaded<V> {
    /// A value to be kept for the cache's own time to live.
    #[must_use]
    pub fn new(value: V) -> Self {
        Self::of(What::Value(value), true)
    }

    /// A value for the callers that wait for it and for nobody after them. What is fresh stays, and what is stale is served
    /// no more, since this is newer: it goes from both tiers.
    #[must_use]
    pub fn do_not_store(value: V) -> Self {
        Self::of(What::Value(value), false)
    }

    /// There is no such value, which is worth remembering too: for the cache's
    /// [`negative_time_to_live`](super::CacheBuilder::negative_time_to_live), unless
    /// [`time_to_live`](Self::time_to_live) says otherwise.
    ///
    /// The callers get an error of kind [`NotFound`](crate::ErrorKind::NotFound). A stale value is not served
    /// instead, then or later: it is replaced, or removed from both tiers where the answer is not to be remembered.
    #[must_use]
    pub fn not_found() -> Self {
        Self::of(What::NotFound, true)
    }

    /// The value that the loader was [told of](Previous) is still right: it lives anew.
    ///
    /// From a loader that was told of none it is an error of kind [`Load`](crate::ErrorKind::Load).
    #[must_use]
    pub fn not_modified() -> Self {
        Self::of(What::NotModified, true)
    }

    fn of(what: What<V>, store: bool) -> Self {
        Self { what, time_to_live: None, validator: None, cost: None, tags: Vec::new(), store }
    }

    /// How long this value may be served, instead of the cache's
    /// [`time_to_live`](super::CacheBuilder::time_to_live). Zero is as [`do_not_store`](Self::do_not_store);
    /// more than [`MAX_TIME_TO_LIVE`](super::MAX_TIME_TO_LIVE) is taken as that.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = Some(time_to_live);
        self
    }

    /// What the source knows this very value by, an HTTP `ETag` say: the next load is told of it, and may answer
    /// [`not_modified`](Self::not_modified).
    #[must_use]
    pub fn validator(mut self, validator: impl Into<Arc<str>>) -> Self {
        self.validator = Some(validator.into());
        self
    }

    /// What the value takes up in memory, in bytes, where the capacity is
    /// [in bytes](super::CacheBuilder::capacity_bytes): instead of what the cache estimates. The key and the
    /// cache's own share are added to it.
    #[must_use]
    pub fn cost(mut self, bytes: u32) -> Self {
        self.cost = Some(bytes);
        self
    }

    /// Tags that the entry carries, besides those that the call names: what is known only once the value is there, the
    /// authors of an article say.
    ///
    /// From a loader they need a cache that was built with [`loader_tags`](super::CacheBuilder::loader_tags), and are an
    /// error of kind [`Load`](crate::ErrorKind::Load) elsewhere. In such a cache those of the value before stay with
    /// [`not_modified`](Self::not_modified). A value that is inserted or written may have tags in any cache.
    #[must_use]
    pub fn tags<T: Into<Arc<str>>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}

/// The value that is about to be replaced, as a loader is told of it.
///
/// It is no longer fresh, and may be long out of date; it was not removed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Previous<V> {
    /// The value.
    pub value: V,
    /// What its load gave as its [`validator`](Loaded::validator).
    pub validator: Option<Arc<str>>,
}
