//! Write-through: to the source and both tiers, and what becomes of the key when nobody knows whose write was last.

use std::{sync::Arc, time::Duration};

use super::{
    Cache, Key, Loaded,
    front::detached,
    loaded::What,
    local::Local,
    message::Item,
    store::Written,
    tags::Invalidation,
    tiers::{Captured, Kept, Tiers},
};
use crate::{Error, ErrorKind, error::BoxError};

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Writes a value to its source by `write`, and then stores it in both tiers: write-through.
    ///
    /// Loads that began before are not stored. If somebody else wrote or removed the key meanwhile, here or in
    /// another process, nobody knows whose write the source took last: the key is left empty, and the next to ask
    /// loads what is there.
    ///
    /// # Errors
    ///
    /// [`Load`](ErrorKind::Load) if `write` failed, with its error as the source; [`TimedOut`](ErrorKind::TimedOut)
    /// if it took longer than the [`load_timeout`](super::CacheBuilder::load_timeout). It may have been carried out
    /// then, so the key is removed. That the remote tier did not take the value is no error: the removal is owed to
    /// it.
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key};
    /// use std::io;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let titles: Cache<String> = Cache::builder("titles").build()?;
    /// let key = Key::public("42");
    /// let update = |title: String| async move {
    ///     // update pages set title = $1 where id = 42
    ///     Ok::<_, io::Error>(drop(title))
    /// };
    /// titles.write_through(&key, &[], "News".to_owned(), update).await?;
    /// assert_eq!(titles.get(&key).await.as_deref(), Some("News"));
    /// # Ok(()) }
    /// ```
    pub async fn write_through<F, R, E>(
        &self,
        key: &Key<'_>,
        tags: &[&str],
        value: impl Into<Loaded<V>>,
        write: F,
    ) -> Result<(), Error>
    where
        F: FnOnce(V) -> R + Send + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let Loaded { what, time_to_live, validator, cost, store } = value.into();
        let What::Value(value) = what else {
            return Err(Error::new(ErrorKind::Refused, "there is no value to write"));
        };
        let captured = self.0.capture(tags);
        let fresh = self.0.settings.policy.life(time_to_live, key, captured.at);
        let fresh = if store { fresh } else { Duration::ZERO };
        let kept = Kept { content: Ok(value.clone()), fresh, load_cost: Duration::ZERO, validator, cost };
        let (tiers, key) = (Arc::clone(&self.0), key.clone().into_owned());
        let write = async move { write(value).await.map_err(|error| failed(error.into())) };
        detached(async move { tiers.write_source(&key, &kept, captured, write).await }).await
    }
}

pub(super) fn failed(error: BoxError) -> Error {
    Error::with_source(ErrorKind::Load, "the write failed", error)
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    async fn write_source(
        &self,
        key: &Key<'_>,
        kept: &Kept<V>,
        mut captured: Captured,
        write: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let glimpse = self.flights.glimpse(key);
        // Before the write: whatever others do to the key from here on may be newer than it.
        let fence = match &self.remote {
            Some(remote) => self.look_in(remote, key, &mut captured).await.map(|looked| looked.fence),
            None => None,
        };
        let written =
            tokio::time::timeout(self.settings.load_timeout, write).await.unwrap_or_else(|elapsed| {
                let problem = "the write took longer than the load timeout";
                Err(Error::with_source(ErrorKind::TimedOut, problem, elapsed))
            });
        let mut is_ours = written.is_ok() && !kept.fresh.is_zero();
        if let Some(remote) = &self.remote {
            let sealed = match fence {
                Some(fence) if is_ours => {
                    let sealed = self.seal(remote, key, kept, captured.at, &captured).await;
                    sealed.ok().flatten().map(|(bytes, life)| (bytes, life, fence))
                }
                _ => None,
            };
            let stored = match sealed {
                Some((bytes, life, fence)) => {
                    let item = Item::Key(key.clone(), Invalidation::Remove);
                    let told = remote.announce(&item).await;
                    let stored = remote.put(key, bytes, life, Some(fence)).await.ok();
                    let is_told = remote.done(told, &item, Ok(())).await.is_ok();
                    stored.filter(|_| is_told)
                }
                None => None,
            };
            is_ours &= matches!(stored, Some(Written::Stored(_)));
            if !is_ours {
                // What fails is owed.
                let _ = remote.remove(key).await;
            }
        }
        if is_ours && self.flights.glimpse(key) == glimpse {
            self.keep(key, kept, &captured);
        } else {
            self.flights.fence(key, || self.local.remove(key));
            if let Some(remote) = self.remote.as_ref().filter(|_| is_ours) {
                let _ = remote.remove(key).await;
            }
        }
        written
    }
}
