//! What the bytes of others go through on their way to a caller, and what holds for any of them.
//!
//! By the public contracts alone: a store that answers with these bytes, a bus that delivers them. So nothing has to be
//! opened up for this, and all of the path is tried, lives and stamps included. Shared by the tests beside this file and
//! by the targets in `fuzz/`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use mcp_perf::{
    Error,
    cache::{
        Bus, Cache, Codec, Fence, Found, Key, Put, RemoteCacheBuilder, Restamp, Slot, Stamp, Store, Stored,
        Subscription, Written,
    },
    clock::Clock,
    testing::MemoryStore,
};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Runtime, sync::mpsc};
use xxhash_rust::xxh3::xxh3_64;

/// Below what is worked on by another thread, so that every run is like the last.
pub const MAX_VALUE: usize = 64 << 10;
/// Every stamp of the store, so that an entry of an earlier run, or of a file, still carries the right ones.
const STAMP: [u8; 16] = [7; 16];

/// A type with something of everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Value {
    pub text: String,
    pub numbers: Vec<i64>,
    pub inner: Option<Box<Self>>,
    pub any: serde_json::Value,
}

/// The key that everything is stored and asked for under.
pub fn key() -> Key<'static> {
    Key::private("alice", "key")
}

/// A store that answers with the same entry whatever the name, and notes what was done to it.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    entry: Option<Bytes>,
    written: Option<Bytes>,
    removals: usize,
}

impl Shelf {
    pub fn answer_with(&self, entry: Option<Bytes>) {
        self.noted().entry = entry;
    }

    pub fn take_written(&self) -> Option<Bytes> {
        self.noted().written.take()
    }

    pub fn removals(&self) -> usize {
        self.noted().removals
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Shelf {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let entry = self.noted().entry.clone();
        // Not less than any entry was written with.
        let stored = |bytes| Stored { bytes, remaining: Duration::from_secs(3_600) };
        let slot = Slot { entry: entry.map(stored), fence: Fence::default() };
        Ok(Found { entries: vec![slot; entries.len()], stamps: vec![Stamp::from_bytes(STAMP); stamps.len()] })
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        self.noted().written = Some(put.bytes);
        Ok(Written::Stored(Fence::default()))
    }

    async fn remove_many(&self, names: &[&str], _: Duration) -> Result<(), Error> {
        self.noted().removals += names.len();
        Ok(())
    }

    async fn restamp(&self, _: &[Restamp<'_>]) -> Result<(), Error> {
        Ok(())
    }

    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A cache over the shelf, whose time stands still.
pub fn node<V: Clone + Send + Sync + 'static>(shelf: &Shelf, codec: Codec<V>) -> RemoteCacheBuilder<V> {
    Cache::builder("hostile")
        .capacity(16)
        .stale_if_error(Duration::from_secs(600))
        .clock(Clock::manual())
        .remote_with(shelf.clone(), codec)
        .max_value(MAX_VALUE)
}

/// A runtime that does one thing after the other, and whose time passes only while nothing is to be done.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// Which of the codecs read an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadBy {
    pub bytes: bool,
    pub json: bool,
    pub message_pack: bool,
}

/// Caches of every codec over one shelf.
pub struct Reader {
    runtime: Runtime,
    shelf: Shelf,
    bytes: Cache<Bytes>,
    json: Cache<Value>,
    message_pack: Cache<Value>,
}

impl Reader {
    pub fn new() -> Self {
        let (runtime, shelf) = (runtime(), Shelf::default());
        let [json, message_pack] = [Codec::json(), Codec::message_pack()]
            .map(|codec| runtime.block_on(node(&shelf, codec).build()).expect("a cache"));
        let bytes = runtime.block_on(node(&shelf, Codec::bytes()).build()).expect("a cache");
        Self { runtime, shelf, bytes, json, message_pack }
    }

    /// Reads the bytes as they are, and then with the checksum that they should end with: it is no secret, so a hostile
    /// writer makes it right, and a fuzzer would never find it.
    pub fn read_both(&self, entry: &[u8]) {
        self.read(entry);
        if let Some((body, _)) = entry.split_last_chunk::<8>() {
            self.read(&checksummed(body));
        }
    }

    /// Reads an entry as every codec does, and holds what came out to what is promised.
    pub fn read(&self, entry: &[u8]) -> ReadBy {
        let entry = Bytes::copy_from_slice(entry);
        self.runtime.block_on(async {
            let bytes = self.read_by(&self.bytes, &entry).await;
            assert!(bytes.as_ref().is_none_or(|bytes| bytes.len() <= MAX_VALUE), "a value above the maximum");
            ReadBy {
                bytes: bytes.is_some(),
                json: self.read_by(&self.json, &entry).await.is_some(),
                message_pack: self.read_by(&self.message_pack, &entry).await.is_some(),
            }
        })
    }

    async fn read_by<V: Clone + Send + Sync + 'static>(&self, cache: &Cache<V>, entry: &Bytes) -> Option<V> {
        self.shelf.answer_with(Some(entry.clone()));
        let value = cache.get(&key()).await;
        let _ = cache.explain(&key()).await;
        // Sealed anew, whatever its fields are, and then of no use but to stand in.
        self.shelf.take_written();
        cache.expire(&key()).await.expect("nothing refuses it");
        if let Some(expired) = self.shelf.take_written() {
            self.shelf.answer_with(Some(expired));
            assert!(cache.get(&key()).await.is_none(), "served, though it was made to expire");
        }
        cache.remove(&key()).await.expect("nothing refuses it");
        value
    }
}

/// The bytes and their checksum.
pub fn checksummed(body: &[u8]) -> Vec<u8> {
    [body, &xxh3_64(body).to_le_bytes()].concat()
}

/// A bus that delivers what a stranger publishes, and notes what was published last.
#[derive(Clone, Default)]
struct Channel(Arc<Mutex<Traffic>>);

#[derive(Default)]
struct Traffic {
    listener: Option<mpsc::UnboundedSender<Bytes>>,
    last: Option<Bytes>,
}

impl Channel {
    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, message: Bytes) {
        let mut traffic = self.traffic();
        if let Some(listener) = &traffic.listener {
            let _ = listener.send(message.clone());
        }
        traffic.last = Some(message);
    }
}

impl Bus for Channel {
    type Subscription = Listener;

    async fn publish(&self, _: &str, message: Bytes) -> Result<(), Error> {
        self.deliver(message);
        Ok(())
    }

    async fn subscribe(&self, _: &str) -> Result<Listener, Error> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.traffic().listener = Some(sender);
        Ok(Listener(receiver))
    }
}

struct Listener(mpsc::UnboundedReceiver<Bytes>);

impl Subscription for Listener {
    async fn next(&mut self) -> Result<Bytes, Error> {
        match self.0.recv().await {
            Some(message) => Ok(message),
            None => Err(Error::unavailable("the channel is closed", std::io::Error::other("closed"))),
        }
    }
}

/// A process that listens to a bus on which strangers talk.
pub struct Hearer {
    runtime: Runtime,
    channel: Channel,
    cache: Cache<u32>,
    /// One that it understands.
    sound: Bytes,
}

impl Hearer {
    pub fn new() -> Self {
        let (runtime, channel, clock) = (runtime(), Channel::default(), Clock::manual());
        let build = Cache::builder("hostile")
            .clock(clock.clone())
            .remote(MemoryStore::new(clock))
            .bus(channel.clone())
            .build();
        let cache = runtime.block_on(build).expect("a cache");
        runtime.block_on(async {
            cache.insert_tagged(&key(), &["tag"], 1).await.expect("a store that takes it");
            settle().await;
        });
        let mut hearer = Self { runtime, channel, cache, sound: Bytes::new() };
        hearer.sound = hearer.message_of(async |cache| {
            cache.remove(&Key::public("another")).await.expect("a store that takes it");
        });
        hearer
    }

    /// What is published when this is done.
    pub fn message_of(&self, invalidate: impl AsyncFnOnce(&Cache<u32>)) -> Bytes {
        self.runtime.block_on(async {
            invalidate(&self.cache).await;
            settle().await;
        });
        let message = self.channel.traffic().last.take();
        message.expect("a message")
    }

    /// Hears the bytes as they are, and then with the checksum that they should end with.
    pub fn hear_both(&self, message: &[u8]) {
        self.hear(message);
        if let Some((body, _)) = message.split_last_chunk::<8>() {
            self.hear(&checksummed(body));
        }
    }

    /// Hears a message: it may make the process forget, and do no worse.
    pub fn hear(&self, message: &[u8]) {
        self.runtime.block_on(async {
            self.channel.deliver(Bytes::copy_from_slice(message));
            settle().await;
            let heard = self.cache.stats().bus.received;
            self.channel.deliver(self.sound.clone());
            settle().await;
            assert!(self.cache.stats().bus.received > heard, "it listens no more");
            assert_eq!(
                self.cache.get(&key()).await,
                Some(1),
                "a message took away or changed what is stored"
            );
        });
    }
}

/// Lets the tasks run that have something to do.
pub async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}
