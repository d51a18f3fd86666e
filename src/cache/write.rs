//! Write-through: to the source and both tiers, and what becomes of the key when nobody knows whose write was last.

use std::{sync::Arc, time::Duration};

use super::{
    Cache, Key, Loaded,
    captured::Captured,
    flight::Watch,
    front::detached,
    load::unharmed,
    loaded::What,
    local::Local,
    message::Item,
    remote::Remote,
    store::{Fence, Written},
    tags::Invalidation,
    tiers::{Kept, Tiers},
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
    /// if it took longer than the [`load_timeout`](super::CacheBuilder::load_timeout); [`Panicked`](ErrorKind::Panicked) if
    /// it panicked. It may have been carried out then, so the key is removed. [`Refused`](ErrorKind::Refused), without a call
    /// of `write`, for a [`Loaded`] that holds no value. That the remote tier did not take the value is no error: the
    /// removal is owed to it.
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out. A process that dies between the source and the remote tier leaves the old value
    /// there, to the end of its life.
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
        let Loaded { what, time_to_live, validator, cost, tags: more, store } = value.into();
        let What::Value(value) = what else {
            return Err(Error::new(ErrorKind::Refused, "there is no value to write"));
        };
        let captured = self.0.capture(&all(tags, &more));
        let fresh = self.0.settings.policy.life(time_to_live, key, captured.at);
        let fresh = if store { fresh } else { Duration::ZERO };
        let kept = Kept { content: Ok(value.clone()), fresh, load_cost: Duration::ZERO, validator, cost };
        let (tiers, key) = (Arc::clone(&self.0), key.clone().into_owned());
        let write = async move { write(value).await.map_err(|error| failed(error.into())) };
        let write = unharmed(write, "the write panicked");
        let untold = self.0.remote.as_ref().map(|remote| remote.untold_removal(&key));
        detached(untold, async move { tiers.write_source(&key, &kept, captured, write).await }).await
    }
}

/// The tags that a call names and those of its value.
pub(super) fn all<'a>(named: &[&'a str], chosen: &'a [Arc<str>]) -> Vec<&'a str> {
    let chosen = chosen.iter().map(|tag| &**tag).filter(|tag| !named.contains(tag));
    let mut tags: Vec<&str> = named.iter().copied().chain(chosen).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

fn failed(error: BoxError) -> Error {
    Error::with_source(ErrorKind::Load, "the write failed", error)
}

/// How a key stood before its source was written: whatever happens to it from then on may be newer than the write.
pub(super) struct Unwritten<V> {
    pub(super) watch: Watch<V>,
    pub(super) captured: Captured,
    /// `None` where the remote tier did not tell.
    pub(super) fence: Option<Fence>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    async fn write_source(
        &self,
        key: &Key<'_>,
        kept: &Kept<V>,
        mut captured: Captured,
        write: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let watch = self.flights.watch(key);
        let fence = self.fences(std::slice::from_ref(key), &mut captured).await.pop().flatten();
        let written =
            tokio::time::timeout(self.settings.load_timeout, write).await.unwrap_or_else(|elapsed| {
                let problem = "the write took longer than the load timeout";
                Err(Error::with_source(ErrorKind::TimedOut, problem, elapsed))
            });
        let kept = Some(kept).filter(|kept| written.is_ok() && !kept.fresh.is_zero());
        self.store_written(key, kept, Unwritten { watch, captured, fence }).await;
        written
    }

    /// Asks the remote tier for the fences of keys, and brings `captured` up to date with the stamps there.
    pub(super) async fn fences(&self, keys: &[Key<'_>], captured: &mut Captured) -> Vec<Option<Fence>> {
        let unknown = || vec![None; keys.len()];
        let Some(remote) = &self.remote else { return unknown() };
        let peeked = remote.peek_many(keys, &captured.names()).await;
        let has_peeked = peeked.is_ok();
        let looked = match peeked {
            Err(error) if error.kind() == ErrorKind::Refused => {
                remote.read_many(keys, &captured.names()).await
            }
            peeked => peeked,
        };
        let Ok(reads) = looked else { return unknown() };
        // All of them came with the same stamps.
        if !reads.first().is_some_and(|read| self.observe(captured, &read.stamps)) {
            return unknown();
        }
        let mut fences: Vec<Option<Fence>> = reads.iter().map(|read| Some(read.slot.fence)).collect();
        // What a peek says of an absence is no fence of it.
        let absent: Vec<usize> =
            (0..keys.len()).filter(|&place| has_peeked && reads[place].slot.entry.is_none()).collect();
        if !absent.is_empty() {
            let missing: Vec<Key<'_>> = absent.iter().map(|&place| keys[place].clone()).collect();
            let Ok(reads) = remote.read_many(&missing, &captured.names()).await else { return unknown() };
            if !reads.first().is_some_and(|read| self.observe(captured, &read.stamps)) {
                return unknown();
            }
            for (place, read) in absent.into_iter().zip(reads) {
                fences[place] = Some(read.slot.fence);
            }
        }
        fences
    }

    /// Stores what the source has taken, in both tiers. If there is nothing that it is known to have taken, or if
    /// somebody else wrote or removed the key meanwhile, the key is left empty.
    pub(super) async fn store_written(
        &self,
        key: &Key<'_>,
        kept: Option<&Kept<V>>,
        Unwritten { watch, captured, fence }: Unwritten<V>,
    ) {
        let mut kept = kept;
        if let Some(remote) = &self.remote {
            let stored = match (kept, fence) {
                (Some(kept), Some(fence)) => self.put_written(remote, key, kept, &captured, fence).await,
                _ => None,
            };
            if stored == Some(Written::Refused) {
                kept = None;
            }
            if !matches!(stored, Some(Written::Stored(_))) {
                // What fails is owed.
                let _ = remote.remove(key).await;
            }
        }
        let entry = kept.map(|kept| self.entry(key, kept, captured.at, captured.at, captured.seen()));
        let is_kept = watch.fence(|is_unchanged| {
            match entry.filter(|_| is_unchanged) {
                Some(entry) => self.local.insert(key.into(), entry),
                None => self.local.remove(key),
            }
            is_unchanged
        });
        if !is_kept && let Some(remote) = self.remote.as_ref().filter(|_| kept.is_some()) {
            let _ = remote.remove(key).await;
        }
    }

    /// Returns what it came to in the remote tier; `None` if nobody knows, or not all others will hear of it.
    async fn put_written(
        &self,
        remote: &Remote<V>,
        key: &Key<'_>,
        kept: &Kept<V>,
        captured: &Captured,
        fence: Fence,
    ) -> Option<Written> {
        let (bytes, life) = self.seal(remote, key, kept, captured.at, captured).await.ok().flatten()?;
        let item = Item::Key(key.clone(), Invalidation::Remove);
        let told = remote.announce(&item).await;
        // The store need not remember a removal for longer than that.
        let is_held = self.clock.now().since(captured.at) + remote.timeout < remote.hold;
        let stored = match is_held {
            true => remote.put(key, bytes, life, Some(fence)).await.ok(),
            false => None,
        };
        let is_told = remote.done(told, &item, Ok(())).await.is_ok();
        stored.filter(|_| is_told)
    }
}
