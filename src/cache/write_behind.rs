//! Write-behind: to the cache now, and to the source soon, by a bounded queue that keeps the last value of a key.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    num::NonZeroUsize,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::Gauge;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tracing::Instrument;

use super::{
    Cache, Key, Loaded,
    captured::{Captured, CapturedTag},
    front::detached,
    key::AsKey,
    stats::{queued_writes, show},
    tiers::Kept,
    untold::Untold,
    write::Unwritten,
    write_queue::{FIRST_PAUSE, Pending, Queue, Taken, pause},
};
use crate::{
    Error, ErrorKind,
    error::BoxError,
    sync::{Mutex, lock},
};

type Batch<V> = Vec<(Key<'static>, V)>;
type Sink<V> = dyn Fn(Batch<V>) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> + Send + Sync;

/// A cache whose writes reach their source a little later, together: write-behind.
///
/// A write is in the cache at once and in a bounded queue; of several writes to one key only the last is carried out.
/// A batch that fails, or whose sink panics, is tried again key by key, each with a pause that doubles, so that one value
/// that the source will not take does not hold up the others. Cheap to clone; clones are the same queue.
///
/// **What is queued is lost in a crash**, and with the last clone without a [`shutdown`](Self::shutdown) before it
/// the queue is still written, as long as the runtime lives; after that, the next write or the shutdown in another one
/// goes on with it. Other processes see a write in the remote tier before the source has it. Removals have no queue:
/// call [`Cache::remove`], which does not wait for the queue either: what is queued is
/// [answered](Self::get_or_load) from there until the source has it, whatever the cache forgets meanwhile. Where a key is invalidated, or written by somebody
/// else, while its value is on its way to the source, nobody knows what the source took last: the key is left empty, and
/// the next to ask loads what is there.
///
/// ```
/// use mcp_perf::cache::{Cache, Key, WriteBehind};
/// use std::{io, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let counts: Cache<u64> = Cache::builder("counts").build()?;
/// let counts = WriteBehind::new(counts, |batch| async move {
///     // insert into counts select * from unnest($1, $2) on conflict (key) do update …
///     println!("{} rows", batch.len());
///     Ok::<_, io::Error>(())
/// });
/// for count in 0..100 {
///     counts.insert(&Key::public("visits"), &[], count).await?;
/// }
/// assert_eq!(counts.shutdown(Duration::from_secs(5)).await, 0); // all written: one row
/// # Ok(()) }
/// ```
pub struct WriteBehind<V: Clone + Send + Sync + 'static>(Arc<Behind<V>>);

struct Behind<V: Clone + Send + Sync + 'static> {
    cache: Cache<V>,
    sink: Arc<Sink<V>>,
    capacity: usize,
    max_batch: usize,
    delay: Duration,
    queue: Mutex<Queue<V>>,
    /// Held while the last value of a key is put into the cache, by the key's hash: of two that are put there at once
    /// the older one might stay.
    storing: [tokio::sync::Mutex<()>; STORING],
    /// Told when something was written.
    changed: Notify,
    /// Told when pauses are to be cut short.
    hurry: Notify,
    /// As many wait as are written at once.
    filled: Notify,
    /// Whether anything waits to be written.
    is_queued: AtomicBool,
    /// Told how many are pending.
    exported: Gauge,
}

/// Enough that writers of different keys seldom wait for each other.
const STORING: usize = 64;

impl<V: Clone + Send + Sync + 'static> WriteBehind<V> {
    /// Writes behind `cache` by `sink`, which is given the last values of up to 64 keys, each key once.
    ///
    /// If it fails, none, some or all of them may have been written: they are written again.
    pub fn new<F, R, E>(cache: Cache<V>, sink: F) -> Self
    where
        F: Fn(Vec<(Key<'static>, V)>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let sink = move |batch| {
            let write = sink(batch);
            Box::pin(async move { write.await.map_err(Into::into) })
                as Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>
        };
        let exported = queued_writes(cache.name());
        Self(Arc::new(Behind {
            cache,
            sink: Arc::new(sink),
            capacity: 10_000,
            max_batch: 64,
            delay: Duration::from_millis(10),
            queue: Mutex::new(Queue::new()),
            storing: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            changed: Notify::new(),
            hurry: Notify::new(),
            filled: Notify::new(),
            is_queued: AtomicBool::new(false),
            exported,
        }))
    }

    /// How many keys may wait to be written: 10,000 unless set. To be set before the first write, as the others.
    #[must_use]
    pub fn capacity(self, keys: NonZeroUsize) -> Self {
        self.with(|behind| behind.capacity = keys.get())
    }

    /// How many keys are written at once, at most: 64 unless set.
    #[must_use]
    pub fn max_batch(self, keys: NonZeroUsize) -> Self {
        self.with(|behind| behind.max_batch = keys.get())
    }

    /// How long a write waits for others to be written with: 10 ms unless set. What a crash may cost grows with it.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.with(|behind| behind.delay = delay)
    }

    fn with(self, change: impl FnOnce(&mut Behind<V>)) -> Self {
        let mut behind = Arc::try_unwrap(self.0).unwrap_or_else(|shared| Behind {
            cache: shared.cache.clone(),
            sink: Arc::clone(&shared.sink),
            capacity: shared.capacity,
            max_batch: shared.max_batch,
            delay: shared.delay,
            queue: Mutex::new(Queue::new()),
            storing: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            changed: Notify::new(),
            hurry: Notify::new(),
            filled: Notify::new(),
            is_queued: AtomicBool::new(false),
            exported: shared.exported.clone(),
        });
        change(&mut behind);
        Self(Arc::new(behind))
    }

    /// The cache in front.
    #[must_use]
    pub fn cache(&self) -> &Cache<V> {
        &self.0.cache
    }

    /// How many keys wait to be written, those that are being written included.
    #[must_use]
    pub fn queued(&self) -> usize {
        lock(&self.0.queue).pending.len()
    }

    /// Stores a value in the cache, and queues it for the source.
    ///
    /// # Errors
    ///
    /// [`Overloaded`](ErrorKind::Overloaded) if the queue is full, [`Closed`](ErrorKind::Closed) after a
    /// [`shutdown`](Self::shutdown); nothing is stored then. That the remote tier did not take the value is no error.
    ///
    /// # Cancel safety
    ///
    /// Once polled it is carried out.
    pub async fn insert(&self, key: &Key<'_>, tags: &[&str], value: V) -> Result<(), Error> {
        let tags: Arc<[String]> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        {
            let mut queue = lock(&self.0.queue);
            if queue.is_closed {
                return Err(Error::new(ErrorKind::Closed, "the queue of writes was shut down"));
            }
            if !queue.push(key, value, tags, self.0.capacity) {
                return Err(Error::new(ErrorKind::Overloaded, "the queue of writes is full"));
            }
            self.0.is_queued.store(true, Ordering::Release);
            if queue.order.len() == self.0.max_batch {
                self.0.filled.notify_waiters();
            }
        }
        self.0.show();
        self.0.run();
        let (behind, key) = (Arc::clone(&self.0), key.clone().into_owned());
        // What is not stored now is when it is written.
        detached(None::<Untold<V>>, async move {
            behind.store_last(&key, |pending| !pending.is_stored).await;
            Ok(())
        })
        .await
    }

    /// The value: from the queue, from memory, from the remote tier or from `loader`.
    ///
    /// Reads that must see this process's own writes have to come this way: when memory was too small for an entry
    /// that is still queued, the source has an older value.
    ///
    /// # Errors
    ///
    /// Those of [`Cache::get_or_load`].
    ///
    /// # Cancel safety
    ///
    /// As [`Cache::get_or_load`].
    pub async fn get_or_load<F, R, L, E>(&self, key: &Key<'_>, tags: &[&str], loader: F) -> Result<V, Error>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>> + 'static,
        E: Into<BoxError> + 'static,
    {
        // Before memory: who loaded by way of the cache itself may have read the source from before.
        if self.0.is_queued.load(Ordering::Acquire)
            && let Some(pending) = lock(&self.0.queue).pending.get(key as &dyn AsKey)
        {
            return Ok(pending.value.clone());
        }
        if let Some(value) = self.0.cache.fresh(key) {
            return Ok(value);
        }
        self.0.cache.get_or_load_tagged(key, tags, loader).await
    }

    /// Takes no more writes, writes what is queued without further delay, and returns how many keys were still
    /// unwritten when that was done or `timeout` had passed. What failed before is tried at once, and then again, one key
    /// after the other, ten in a second.
    ///
    /// # Cancel safety
    ///
    /// The writing goes on.
    #[must_use = "what is unwritten is lost with the process"]
    pub async fn shutdown(&self, timeout: Duration) -> usize {
        lock(&self.0.queue).close();
        self.0.hurry.notify_one();
        self.0.run();
        let drained = async {
            loop {
                let changed = self.0.changed.notified();
                if self.queued() == 0 {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(timeout, drained).await;
        self.queued()
    }
}

/// Writes until nothing is left.
async fn write_all<V: Clone + Send + Sync + 'static>(mut running: Running<V>) {
    let behind = Arc::clone(&running.behind);
    let mut failures: u32 = 0;
    loop {
        // Before the look: whoever fills a batch after it is heard.
        let mut filled = pin!(behind.filled.notified());
        filled.as_mut().enable();
        let pause = {
            let queue = lock(&behind.queue);
            match failures {
                0 if queue.has_enough(behind.max_batch) => Duration::ZERO,
                0 => behind.delay,
                failures => pause(failures, queue.longest_pause()),
            }
        };
        if !pause.is_zero() {
            // Cut short by a shutdown, and when there is enough to be written, unless it is the source that rests.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = behind.hurry.notified() => {}
                () = &mut filled, if failures == 0 => {}
            }
        }
        let (batch, is_over) = {
            let mut queue = lock(&behind.queue);
            let batch = queue.take(behind.max_batch, runtime_now());
            let is_over = queue.pending.is_empty();
            if is_over {
                behind.is_queued.store(false, Ordering::Release);
                queue.is_running = false;
                running.is_over = true;
            }
            (batch, is_over)
        };
        if is_over {
            behind.changed.notify_waiters();
            return;
        }
        if batch.is_empty() {
            // All that is left has failed before, and is to be tried later.
            tokio::time::sleep(FIRST_PAUSE / 4).await;
            continue;
        }
        let batch = behind.before(batch).await;
        let values = batch.iter().map(|(taken, _)| (taken.key.as_key().into_owned(), taken.value.clone()));
        let values = values.collect();
        let has_failed_before = batch.iter().any(|(taken, _)| taken.has_failed);
        let is_written = behind.write(values).await;
        match is_written {
            true if failures > 0 => tracing::info!(cache = behind.cache.name(), "writing behind goes on"),
            false if failures == 0 => {
                let (cache, keys) = (behind.cache.name(), batch.len());
                tracing::warn!(cache, keys, "writing behind failed, and is tried again");
            }
            _ => {}
        }
        failures = match is_written {
            true => 0,
            // What failed before says little of the source: it has a pause of its own.
            false if has_failed_before => failures.max(1),
            false => failures.saturating_add(1),
        };
        let written = lock(&behind.queue).done(batch, is_written, runtime_now());
        // At once: what is put off may be invalidated meanwhile, and a store that gathers calls makes few trips of
        // them.
        let mut settling = JoinSet::new();
        for (taken, before) in written {
            let behind = Arc::clone(&behind);
            settling.spawn(async move { behind.settle(taken, before).await }.in_current_span());
        }
        settling.join_all().await;
        behind.changed.notify_waiters();
    }
}

/// Pauses are the runtime's, so what is measured against them is its time too.
#[expect(clippy::disallowed_methods, reason = "no life and no rate depends on it")]
fn runtime_now() -> Instant {
    Instant::now()
}

/// The one task that writes.
struct Running<V: Clone + Send + Sync + 'static> {
    behind: Arc<Behind<V>>,
    /// Whether it ended by itself, and not with its runtime.
    is_over: bool,
}

impl<V: Clone + Send + Sync + 'static> Drop for Running<V> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut queue = lock(&self.behind.queue);
        queue.is_running = false;
        queue.interrupted();
    }
}

impl<V: Clone + Send + Sync + 'static> Behind<V> {
    /// Starts the task that writes, unless it is running or has nothing to do.
    fn run(self: &Arc<Self>) {
        {
            let mut queue = lock(&self.queue);
            if queue.pending.is_empty() || std::mem::replace(&mut queue.is_running, true) {
                return;
            }
        }
        let running = Running { behind: Arc::clone(self), is_over: false };
        tokio::spawn(write_all(running).in_current_span());
    }

    /// Tells the exporter how many are pending.
    fn show(&self) {
        show(&self.exported, || lock(&self.queue).pending.len());
    }

    /// Returns whether the source took it.
    async fn write(&self, values: Batch<V>) -> bool {
        let sink = Arc::clone(&self.sink);
        let write = async move { sink(values).await };
        let write = tokio::time::timeout(self.cache.0.settings.load_timeout, write);
        // In a task of its own, so that a panic ends no other.
        let mut writing = JoinSet::new();
        writing.spawn(write.in_current_span());
        matches!(writing.join_next().await, Some(Ok(Ok(Ok(())))))
    }

    /// Notes how the keys of a batch stand, when the cache has their values and the source does not.
    async fn before(self: &Arc<Self>, batch: Vec<Taken<V>>) -> Vec<(Taken<V>, Unwritten<V>)> {
        let mut storing = JoinSet::new();
        for taken in &batch {
            let (behind, key) = (Arc::clone(self), taken.key.clone());
            let store = async move { behind.store_last(&key.as_key(), |pending| !pending.is_stored).await };
            storing.spawn(store.in_current_span());
        }
        storing.join_all().await;
        let tiers = &self.cache.0;
        let keys: Vec<Key<'_>> = batch.iter().map(|taken| taken.key.as_key()).collect();
        let watches: Vec<_> = keys.iter().map(|key| tiers.flights.watch(key)).collect();
        let tags: Vec<_> = batch.iter().map(|taken| Arc::clone(&taken.tags)).collect();
        let names: HashSet<&str> = tags.iter().flat_map(|tags| &**tags).map(String::as_str).collect();
        let mut captured = tiers.capture(&Vec::from_iter(names));
        let fences = tiers.fences(&keys, &mut captured).await;
        drop(keys);
        let by_name: HashMap<&str, &CapturedTag> =
            captured.tags.iter().map(|tag| (&*tag.name, tag)).collect();
        let unwritten = |((taken, watch), fence): ((Taken<V>, _), _)| {
            let tags = taken.tags.iter().filter_map(|tag| by_name.get(&**tag).copied().cloned()).collect();
            (taken, Unwritten { watch, captured: Captured { tags, any: None, ..captured }, fence })
        };
        batch.into_iter().zip(watches).zip(fences).map(unwritten).collect()
    }

    /// Puts what was written into the cache once more: a load that began before may have read what the source had
    /// before, here or elsewhere.
    async fn settle(&self, taken: Taken<V>, before: Unwritten<V>) {
        let Taken { key: stored, value, number, .. } = taken;
        let key = stored.as_key();
        let _storing = self.storing(&key).lock().await;
        let is_last = lock(&self.queue).pending.get(&stored).is_some_and(|last| last.number == number);
        // If not, the cache is being given the last.
        if is_last {
            let tiers = &self.cache.0;
            let fresh = tiers.settings.policy.life(None, &key, before.captured.at);
            let kept =
                Kept { content: Ok(value), fresh, load_cost: Duration::ZERO, validator: None, cost: None };
            tiers.store_written(&key, Some(&kept), before).await;
        }
        lock(&self.queue).settled(&stored, number);
        self.show();
    }

    fn storing(&self, key: &Key<'_>) -> &tokio::sync::Mutex<()> {
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
        let stripe = xxhash_rust::xxh3::xxh3_64(key.bytes()) as usize % STORING;
        &self.storing[stripe]
    }

    /// Puts the last value of a key into the cache, if it is pending still and `wanted`.
    async fn store_last(&self, key: &Key<'_>, wanted: impl FnOnce(&Pending<V>) -> bool) {
        // Whoever queues a newer value from here on comes for it after this.
        let _storing = self.storing(key).lock().await;
        let (value, tags) = {
            let mut queue = lock(&self.queue);
            let Some(pending) = queue.pending.get_mut(key as &dyn AsKey).filter(|pending| wanted(pending))
            else {
                return;
            };
            pending.is_stored = true;
            (pending.value.clone(), Arc::clone(&pending.tags))
        };
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        // In this process it is there in any case.
        let _ = self.cache.insert_tagged(key, &tags, value).await;
    }
}

impl<V: Clone + Send + Sync + 'static> Clone for WriteBehind<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V: Clone + Send + Sync + 'static> fmt::Debug for WriteBehind<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBehind").field("queued", &self.queued()).finish_non_exhaustive()
    }
}
