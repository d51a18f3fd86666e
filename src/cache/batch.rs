//! Many loads as one: of look-ups that come one by one, and of keys that are known beforehand.

use std::{fmt, future::Future, num::NonZeroUsize, pin::Pin, sync::Arc};

use tokio::sync::oneshot;
use tracing::Instrument;

use super::{Cache, Key, Loaded, tiers::Remembered};
use crate::{
    Error, ErrorKind,
    error::BoxError,
    sync::{Mutex, lock},
};

/// What a loader of many answers, with its types put away.
type Rows<V> = Result<Vec<(Key<'static>, Result<Loaded<V>, BoxError>)>, BoxError>;
type Loader<V> = dyn Fn(Vec<Key<'static>>) -> Pin<Box<dyn Future<Output = Rows<V>> + Send>> + Send + Sync;
type Answer<V> = oneshot::Sender<Result<V, Error>>;

/// Gathers the look-ups that come in one turn of the runtime, and loads what is missing at once: the cure for a
/// query per item of a list.
///
/// Code that asks for one value at a time stays as it is. What is asked for while the tasks that are ready now run is
/// one batch: it costs one look into the remote tier and one call of the loader. Cheap to clone; clones gather
/// together.
///
/// ```
/// use mcp_perf::cache::{BatchLoader, Cache, Key};
/// use std::io;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let cache: Cache<String> = Cache::builder("users").build()?;
/// let users = BatchLoader::new(cache.clone(), |ids| async move {
///     // select id, name from users where id = any($1)
///     let rows: Vec<_> = ids.into_iter().map(|id| (id, Ok("ada".to_owned()))).collect();
///     Ok::<_, io::Error>(rows)
/// });
/// let (one, two, three) = (Key::public("1"), Key::public("2"), Key::public("3"));
/// let (one, two, three) = tokio::join!(users.get(&one), users.get(&two), users.get(&three));
/// assert!(one.is_ok() && two.is_ok() && three.is_ok());
/// assert_eq!(cache.stats().loads, 1);
/// # Ok(()) }
/// ```
pub struct BatchLoader<V: Clone + Send + Sync + 'static>(Arc<Inner<V>>);

struct Inner<V: Clone + Send + Sync + 'static> {
    cache: Cache<V>,
    loader: Arc<Loader<V>>,
    tags: Vec<String>,
    max_batch: NonZeroUsize,
    /// What the next batch will be: never more than [`Inner::max_batch`].
    gathered: Mutex<Gathered<V>>,
}

struct Gathered<V> {
    keys: Vec<Key<'static>>,
    answers: Vec<Answer<V>>,
    /// What has been answered, and is due.
    ahead: Vec<Key<'static>>,
    /// Counts the batches, so that a tick that was overtaken by a full batch leaves the next one alone.
    batch: u64,
}

impl<V: Clone + Send + Sync + 'static> BatchLoader<V> {
    /// A loader of batches of at most 1,000, through `cache`.
    ///
    /// `loader` keeps to what [`Cache::get_or_load_many`] says of its own.
    pub fn new<F, R, I, L, E>(cache: Cache<V>, loader: F) -> Self
    where
        F: Fn(Vec<Key<'static>>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (Key<'static>, Result<L, E>)> + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        let loader = move |keys| {
            let load = loader(keys);
            let row = |(key, loaded): (Key<'static>, Result<L, E>)| {
                (key, loaded.map(Into::into).map_err(Into::into))
            };
            let load = async move {
                match load.await {
                    Ok(rows) => Ok(rows.into_iter().map(row).collect()),
                    Err(error) => Err(error.into()),
                }
            };
            Box::pin(load) as Pin<Box<dyn Future<Output = Rows<V>> + Send>>
        };
        Self(Arc::new(Inner {
            cache,
            loader: Arc::new(loader),
            tags: Vec::new(),
            max_batch: NonZeroUsize::new(1_000).unwrap_or(NonZeroUsize::MIN),
            gathered: Mutex::new(Gathered::new(0)),
        }))
    }

    /// How many keys one call of the loader is given at most: 1,000 unless set. A full batch does not wait.
    #[must_use]
    pub fn max_batch(self, keys: NonZeroUsize) -> Self {
        self.with(|inner| inner.max_batch = keys)
    }

    /// The tags that entries carry which are loaded here: none unless set.
    #[must_use]
    pub fn tags<T: Into<String>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        self.with(|inner| inner.tags = tags.into_iter().map(Into::into).collect())
    }

    /// The same, with another setting; without what was gathered by clones, if there are any.
    fn with(self, change: impl FnOnce(&mut Inner<V>)) -> Self {
        let mut inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| Inner {
            cache: shared.cache.clone(),
            loader: Arc::clone(&shared.loader),
            tags: shared.tags.clone(),
            max_batch: shared.max_batch,
            gathered: Mutex::new(Gathered::new(0)),
        });
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// The value: from memory, or with the next batch. What memory answers with and is due to be loaded again goes with the
    /// batch behind that answer.
    ///
    /// # Errors
    ///
    /// Those of [`Cache::get_or_load`].
    ///
    /// # Cancel safety
    ///
    /// A caller that goes away leaves its key in the batch.
    pub async fn get(&self, key: &Key<'_>) -> Result<V, Error> {
        let tiers = &self.0.cache.0;
        // Here, where it is known: a batch has a task of its own.
        let is_forbidden = || tiers.forbid_recursion(key);
        if let Some(remembered) = tiers.remembered(key) {
            let is_due = matches!(remembered, Remembered::Due(_) | Remembered::Revalidate(_));
            if is_due && !tiers.flights.is_running(key) && is_forbidden().is_ok() {
                // It goes with the batch, to be loaded again behind its answer.
                self.gather(|gathered| gathered.ahead.push(key.clone().into_owned()));
            }
            return tiers.recall(remembered);
        }
        is_forbidden()?;
        let (answer, answered) = oneshot::channel();
        self.gather(|gathered| {
            gathered.keys.push(key.clone().into_owned());
            gathered.answers.push(answer);
        });
        answered.await.unwrap_or_else(|gone| {
            Err(Error::with_source(ErrorKind::Panicked, "the runtime shut down under a batch", gone))
        })
    }

    fn gather(&self, add: impl FnOnce(&mut Gathered<V>)) {
        let mut gathered = lock(&self.0.gathered);
        add(&mut gathered);
        if gathered.len() >= self.0.max_batch.get() {
            let batch = gathered.take();
            drop(gathered);
            tokio::spawn(self.clone().load(batch).in_current_span());
        } else if gathered.len() == 1 {
            let tick = Tick { loader: self.clone(), batch: gathered.batch };
            drop(gathered);
            tokio::spawn(tick.run().in_current_span());
        }
    }

    async fn load(self, batch: Gathered<V>) {
        let Inner { cache, loader, tags, .. } = &*self.0;
        let Gathered { keys, answers, ahead, .. } = batch;
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let loader = Arc::clone(loader);
        let values = Box::pin(cache.0.need_many(&keys, &ahead, &tags, move |missing| loader(missing))).await;
        for (answer, value) in answers.into_iter().zip(values) {
            // Nobody there any more.
            let _ = answer.send(value);
        }
    }
}

/// The end of the turn that a batch is gathered in. If the runtime ends first, so does the batch: its callers get an
/// error, and the next key begins another.
struct Tick<V: Clone + Send + Sync + 'static> {
    loader: BatchLoader<V>,
    batch: u64,
}

impl<V: Clone + Send + Sync + 'static> Tick<V> {
    async fn run(self) {
        // Every task that is ready runs first.
        tokio::task::yield_now().await;
        if let Some(batch) = self.take() {
            self.loader.clone().load(batch).await;
        }
    }

    fn take(&self) -> Option<Gathered<V>> {
        let mut gathered = lock(&self.loader.0.gathered);
        (gathered.batch == self.batch).then(|| gathered.take())
    }
}

impl<V: Clone + Send + Sync + 'static> Drop for Tick<V> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<V> Gathered<V> {
    fn new(batch: u64) -> Self {
        Self { keys: Vec::new(), answers: Vec::new(), ahead: Vec::new(), batch }
    }

    fn len(&self) -> usize {
        self.keys.len() + self.ahead.len()
    }

    fn take(&mut self) -> Self {
        let next = Self::new(self.batch.wrapping_add(1));
        std::mem::replace(self, next)
    }
}

impl<V: Clone + Send + Sync + 'static> Clone for BatchLoader<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V: Clone + Send + Sync + 'static> fmt::Debug for BatchLoader<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchLoader")
            .field("cache", &self.0.cache)
            .field("max_batch", &self.0.max_batch)
            .finish_non_exhaustive()
    }
}

/// How far [`Cache::warm`] has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warmed {
    /// Keys that are done.
    pub done: usize,
    /// Keys in all.
    pub total: usize,
    /// Those among the done that there is no value for.
    pub failed: usize,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Loads what is missing of `keys` before anybody asks for it, `batch` keys at a time, one batch after the other.
    ///
    /// `loader` keeps to what [`get_or_load_many`](Self::get_or_load_many) says of its own; `progress` is told after
    /// every batch. What fails is counted, and left to be loaded by whoever asks for it.
    ///
    /// # Cancel safety
    ///
    /// The batch that is running is finished, the rest is not begun.
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::cache::{Cache, Key};
    /// use std::{io, num::NonZeroUsize};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let squares: Cache<u64> = Cache::builder("squares").build()?;
    /// let keys: Vec<_> = (0_u64..100).map(|n| Key::public(&n.to_le_bytes()).into_owned()).collect();
    /// let batch = NonZeroUsize::new(25).unwrap();
    /// let warmed = squares
    ///     .warm(keys, batch, &[], |missing| async move {
    ///         Ok::<_, io::Error>(missing.into_iter().map(|key| (key, Ok(1))).collect::<Vec<_>>())
    ///     }, |so_far| println!("{} of {}", so_far.done, so_far.total))
    ///     .await;
    /// assert_eq!((warmed.done, warmed.failed, squares.stats().loads), (100, 0, 4));
    /// # Ok(()) }
    /// ```
    pub async fn warm<F, R, I, L, E>(
        &self,
        keys: Vec<Key<'static>>,
        batch: NonZeroUsize,
        tags: &[&str],
        loader: F,
        mut progress: impl FnMut(Warmed) + Send,
    ) -> Warmed
    where
        F: Fn(Vec<Key<'static>>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = (Key<'static>, Result<L, E>)> + Send + 'static,
        I::IntoIter: Send,
        L: Into<Loaded<V>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let loader = Arc::new(loader);
        let mut warmed = Warmed { total: keys.len(), ..Warmed::default() };
        for keys in keys.chunks(batch.get()) {
            let loader = Arc::clone(&loader);
            let values = self.get_or_load_many(keys, tags, move |missing| loader(missing)).await;
            warmed.done += values.len();
            warmed.failed += values.iter().filter(|value| value.is_err()).count();
            progress(warmed);
        }
        warmed
    }
}
