//! Caches with values in memory, each asked as its own documentation recommends.

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use async_trait::async_trait;
use cached::{ShardedLruTtlCache, macros::concurrent_cached};
use cachekit::{
    BackendError, CacheKit,
    backend::{Backend, HealthStatus},
    reliability::ReliabilityConfig,
};
use foldhash::fast::RandomState;
use hitbox::offload::OffloadManager;
use hitbox_backend::{
    composition::{Compose, CompositionBackend},
    format::BincodeFormat,
};
use hitbox_fn::prelude::{CacheableResponse, PolicyConfig, cached};
use hitbox_moka::MokaBackend;
use mcp_perf::cache::{Cache, Engine, Key};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use super::{Payload, payload};

pub const KEYS: usize = 10_000;
const CAPACITY: u64 = 2 * KEYS as u64;
const TIME_TO_LIVE: Duration = Duration::from_secs(3_600);

/// A cache, and how its users look a value up that is there.
pub trait Peer: Sync {
    type Hit;

    fn put(&self, name: &str, payload: Payload) -> impl Future<Output = Result<()>>;

    /// `None` only for what is not there.
    fn hit(&self, name: &str) -> impl Future<Output = Option<Self::Hit>>;

    /// With all the names in it, each of which hits.
    fn filled(self, names: &[String], runtime: &Runtime) -> Result<Self>
    where
        Self: Sized,
    {
        runtime.block_on(async {
            for (index, name) in names.iter().enumerate() {
                self.put(name, payload(index).into()).await?;
            }
            for name in names {
                ensure!(self.hit(name).await.is_some(), "not all fitted");
            }
            Ok(())
        })?;
        Ok(self)
    }
}

/// What a user of ours writes: `get_or_load`, in a task that has nothing to wait for.
pub struct Ours(pub Cache<Payload>);

impl Ours {
    pub fn new(engine: Engine) -> Result<Self> {
        let builder = Cache::builder("hits").engine(engine);
        Ok(Self(builder.capacity(CAPACITY).time_to_live(TIME_TO_LIVE).build()?))
    }
}

impl Peer for Ours {
    type Hit = Payload;

    async fn put(&self, name: &str, payload: Payload) -> Result<()> {
        Ok(self.0.insert(&Key::public(name), payload).await?)
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        self.0.get_or_load(&Key::public(name), no_loader).await.ok()
    }
}

/// Would be a miss, and there are none.
async fn no_loader() -> io::Result<Payload> {
    Err(io::Error::other("every key is there"))
}

/// As [`Ours`], by the method that is no future.
pub struct Peeked<'a>(pub &'a Ours);

impl Peer for Peeked<'_> {
    type Hit = Payload;

    async fn put(&self, name: &str, payload: Payload) -> Result<()> {
        self.0.put(name, payload).await
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        self.0.0.get_local(&Key::public(name))
    }
}

pub struct Moka(moka::sync::Cache<String, Payload, RandomState>);

impl Moka {
    pub fn new() -> Self {
        let builder = moka::sync::Cache::builder().max_capacity(CAPACITY).time_to_live(TIME_TO_LIVE);
        Self(builder.build_with_hasher(RandomState::default()))
    }

    /// Which never has to look at a clock.
    pub fn without_ttl() -> Self {
        let builder = moka::sync::Cache::builder().max_capacity(CAPACITY);
        Self(builder.build_with_hasher(RandomState::default()))
    }
}

impl Peer for Moka {
    type Hit = Payload;

    async fn put(&self, name: &str, payload: Payload) -> Result<()> {
        self.0.insert(name.to_owned(), payload);
        Ok(())
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        self.0.get(name)
    }
}

/// What nobody can be quicker than who finds a key by its hash and hands out what is shared: the table of the standard
/// library, which forgets nothing, and which nobody else may write.
pub struct Table(HashMap<String, Payload, RandomState>);

impl Table {
    pub fn filled(names: &[String]) -> Self {
        Self(names.iter().enumerate().map(|(index, name)| (name.clone(), payload(index).into())).collect())
    }
}

impl Peer for Table {
    type Hit = Payload;

    async fn put(&self, _: &str, _: Payload) -> Result<()> {
        bail!("it is made full")
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        self.0.get(name).cloned()
    }
}

/// It has no time to live.
pub struct Quick(quick_cache::sync::Cache<String, Payload, quick_cache::UnitWeighter, RandomState>);

impl Quick {
    pub fn new() -> Self {
        let (weighter, hasher) = (quick_cache::UnitWeighter, RandomState::default());
        let life = quick_cache::sync::DefaultLifecycle::default();
        let expected = 2 * KEYS;
        Self(quick_cache::sync::Cache::with(expected, CAPACITY, weighter, hasher, life))
    }
}

impl Peer for Quick {
    type Hit = Payload;

    async fn put(&self, name: &str, payload: Payload) -> Result<()> {
        self.0.insert(name.to_owned(), payload);
        Ok(())
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        self.0.get(name)
    }
}

/// In memory, with its default eviction and number of shards. It has no time to live, and a hit is a handle on the
/// entry instead of a clone of the value.
pub struct Foyer(foyer::Cache<String, Payload, RandomState>);

impl Foyer {
    pub fn new() -> Self {
        Self(foyer::CacheBuilder::new(2 * KEYS).with_hash_builder(RandomState::default()).build())
    }
}

impl Peer for Foyer {
    type Hit = foyer::CacheEntry<String, Payload, RandomState>;

    async fn put(&self, name: &str, payload: Payload) -> Result<()> {
        self.0.insert(name.to_owned(), payload);
        Ok(())
    }

    async fn hit(&self, name: &str) -> Option<Self::Hit> {
        self.0.get(name)
    }
}

/// As its preset `production` has it, before a remote tier that has nothing and is not asked.
pub struct Cachekit(CacheKit);

impl Cachekit {
    pub fn new() -> Result<Self> {
        let builder = CacheKit::builder().backend(Arc::new(Nothing)).default_ttl(TIME_TO_LIVE);
        Ok(Self(builder.l1_capacity(2 * KEYS).reliability(ReliabilityConfig::default()).build()?))
    }
}

impl Peer for Cachekit {
    type Hit = Payload;

    async fn put(&self, name: &str, payload: Payload) -> Result<()> {
        Ok(self.0.set(name, &payload).await?)
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        self.0.get(name).await.ok().flatten()
    }
}

/// A remote tier that takes everything and has nothing.
struct Nothing;

#[async_trait]
impl Backend for Nothing {
    async fn get(&self, _: &str) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(None)
    }

    async fn set(&self, _: &str, _: Vec<u8>, _: Option<Duration>) -> Result<(), BackendError> {
        Ok(())
    }

    async fn delete(&self, _: &str) -> Result<bool, BackendError> {
        Ok(false)
    }

    async fn exists(&self, _: &str) -> Result<bool, BackendError> {
        Ok(false)
    }

    async fn health(&self) -> Result<HealthStatus, BackendError> {
        let backend_type = "nothing".to_owned();
        Ok(HealthStatus { is_healthy: true, latency_ms: 0.0, backend_type, details: Default::default() })
    }
}

/// A function with the attribute of its first page, over two tiers: moka in the format that it recommends, and one
/// behind it that is not asked.
pub struct Hitbox(hitbox_fn::Cache<HitboxTiers, hitbox::concurrency::NoopConcurrencyManager, OffloadManager>);

type HitboxTier = MokaBackend<BincodeFormat>;
type HitboxTiers = CompositionBackend<HitboxTier, HitboxTier, OffloadManager>;

#[derive(Clone, Serialize, Deserialize, CacheableResponse)]
pub struct Answer {
    payload: Payload,
}

static HITBOX_LOADS: AtomicU64 = AtomicU64::new(0);

#[cached]
async fn answer(_name: String) -> Answer {
    HITBOX_LOADS.fetch_add(1, Ordering::Relaxed);
    Answer { payload: payload(0).into() }
}

impl Hitbox {
    pub fn new() -> Self {
        let tier = || MokaBackend::builder().max_entries(CAPACITY).value_format(BincodeFormat).build();
        let offload = OffloadManager::with_defaults();
        let cache = hitbox_fn::Cache::builder()
            .backend(tier().compose(tier(), offload.clone()))
            .policy(PolicyConfig::builder().ttl(TIME_TO_LIVE).build())
            .offload(offload);
        Self(cache.build())
    }

    pub fn loads() -> u64 {
        HITBOX_LOADS.load(Ordering::Relaxed)
    }
}

impl Peer for Hitbox {
    type Hit = Answer;

    async fn put(&self, name: &str, _payload: Payload) -> Result<()> {
        let _ = answer(name.to_owned()).cache(&self.0).await;
        Ok(())
    }

    async fn hit(&self, name: &str) -> Option<Answer> {
        Some(answer(name.to_owned()).cache(&self.0).await)
    }
}

/// A function with its attribute for concurrent callers.
pub struct CachedFunction;

static CACHED_LOADS: AtomicU64 = AtomicU64::new(0);

#[concurrent_cached(max_size = 20_000, ttl_secs = 3_600)]
async fn remembered(name: String) -> Payload {
    let _ = name;
    CACHED_LOADS.fetch_add(1, Ordering::Relaxed);
    payload(0).into()
}

impl CachedFunction {
    pub fn loads() -> u64 {
        CACHED_LOADS.load(Ordering::Relaxed)
    }
}

impl Peer for CachedFunction {
    type Hit = Payload;

    async fn put(&self, name: &str, _payload: Payload) -> Result<()> {
        remembered(name.to_owned()).await;
        Ok(())
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        Some(remembered(name.to_owned()).await)
    }
}

/// The store behind [`CachedFunction`], without the function: a look-up, and no load.
pub struct CachedStore(ShardedLruTtlCache<String, Payload>);

impl CachedStore {
    pub fn new() -> Self {
        Self(ShardedLruTtlCache::new(2 * KEYS, TIME_TO_LIVE))
    }
}

impl Peer for CachedStore {
    type Hit = Payload;

    async fn put(&self, name: &str, payload: Payload) -> Result<()> {
        self.0.set(name.to_owned(), payload);
        Ok(())
    }

    async fn hit(&self, name: &str) -> Option<Payload> {
        self.0.get(name)
    }
}
