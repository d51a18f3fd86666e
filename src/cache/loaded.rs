//! What a loader returns.

use std::time::Duration;

/// A loaded value and how it is to be kept.
///
/// A loader that has nothing to say about that returns the value itself.
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
///         let life = if status == "healthy" { 300 } else { 30 };
///         Ok::<_, std::io::Error>(Loaded::new(status).time_to_live(Duration::from_secs(life)))
///     })
///     .await?;
/// assert_eq!(health, "degraded");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Loaded<V> {
    pub(super) value: V,
    pub(super) time_to_live: Option<Duration>,
    pub(super) store: bool,
}

impl<V> Loaded<V> {
    /// A value to be kept for the cache's own time to live.
    #[must_use]
    pub fn new(value: V) -> Self {
        Self { value, time_to_live: None, store: true }
    }

    /// A value for the callers that wait for it and for nobody after them.
    #[must_use]
    pub fn do_not_store(value: V) -> Self {
        Self { value, time_to_live: None, store: false }
    }

    /// How long this value may be served, instead of the cache's
    /// [`time_to_live`](super::CacheBuilder::time_to_live). Zero is as [`do_not_store`](Self::do_not_store);
    /// more than [`MAX_TIME_TO_LIVE`](super::MAX_TIME_TO_LIVE) is taken as that.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = Some(time_to_live);
        self
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}
