//! The cache alone: `cargo bench --bench cache`. Against others: `benches/rivals`.

#![allow(clippy::unwrap_used, reason = "what cannot be set up cannot be measured")]

mod support;

use std::{convert::Infallible, hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use mcp_perf::{
    cache::{Cache, Codec, Compression, Engine, Key, Loaded},
    clock::Clock,
    testing::MemoryStore,
};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::{self, Runtime},
    task::JoinSet,
};

type Payload = Arc<str>;

const NAME: &str = "tools/call:search_documents:8f14e45fceea167a5a36dedd4bea2543";

fn main() {
    support::run(&[hit, stale_hit, miss, many, contended, stampede, bytes]);
}

fn hit(criterion: &mut Criterion) {
    let runtime = runtime();
    let cache = filled(&runtime, &[]);
    let tagged = filled(&runtime, &["one", "two"]);
    let key = Key::public(NAME);
    let mut group = criterion.benchmark_group("cache/hit");
    group.bench_function("get_local", |bench| bench.iter(|| cache.get_local(black_box(&key))));
    group.bench_function("get_local, two tags", |bench| bench.iter(|| tagged.get_local(black_box(&key))));
    group.bench_function("get_or_load", |bench| {
        bench.to_async(&runtime).iter(|| cache.get_or_load(black_box(&key), load));
    });
    let quick = Cache::builder("bench").engine(Engine::QuickCache).build().unwrap();
    runtime.block_on(quick.insert(&key, payload())).unwrap();
    group.bench_function("get_or_load, quick_cache", |bench| {
        bench.to_async(&runtime).iter(|| quick.get_or_load(black_box(&key), load));
    });
    group.bench_function("get_or_load, private key made for it", |bench| {
        let key = || Key::private("alice@example.org", "search").part("a query");
        runtime.block_on(cache.insert(&key(), payload())).unwrap();
        bench.to_async(&runtime).iter(async || cache.get_or_load(&key(), load).await);
    });
}

/// A value whose time is over, served while a load runs behind it, or after one that failed.
fn stale_hit(criterion: &mut Criterion) {
    let runtime = runtime();
    let clock = Clock::manual();
    let builder = || Cache::builder("bench").clock(clock.clone()).load_timeout(Duration::from_secs(3_600));
    let revalidating = builder().stale_while_revalidate(Duration::from_secs(60)).build().unwrap();
    let throttled = builder().stale_if_error(Duration::from_secs(60)).build().unwrap();
    let key = Key::public(NAME);
    for cache in [&revalidating, &throttled] {
        let value = Loaded::new(payload()).time_to_live(Duration::from_secs(1));
        runtime.block_on(cache.insert(&key, value)).unwrap();
    }
    clock.advance(Duration::from_secs(2));
    let forever = std::future::pending::<Result<Payload, std::io::Error>>;
    let fail = async || Err::<Payload, _>(std::io::Error::other("down"));
    runtime.block_on(throttled.get_or_load(&key, fail)).unwrap();
    let mut group = criterion.benchmark_group("cache/stale_hit");
    group.bench_function("get_or_load, load running", |bench| {
        bench.to_async(&runtime).iter(|| revalidating.get_or_load(black_box(&key), forever));
    });
    group.bench_function("get_or_load, load failed", |bench| {
        bench.to_async(&runtime).iter(|| throttled.get_or_load(black_box(&key), forever));
    });
    for cache in [&revalidating, &throttled] {
        assert!(cache.stats().stale_hits > 0 && cache.stats().loads == 1);
    }
}

fn miss(criterion: &mut Criterion) {
    let runtime = runtime();
    let cache = filled(&runtime, &[]);
    let mut group = criterion.benchmark_group("cache/miss");
    group.bench_function("get_local", |bench| {
        bench.iter(|| cache.get_local(black_box(&Key::public("absent"))));
    });
    group.bench_function("get_or_load", |bench| {
        bench.to_async(&runtime).iter(async || {
            let name = fastrand::u128(..).to_le_bytes();
            cache.get_or_load(&Key::public(&name), load).await
        });
    });
    group.bench_function("insert", |bench| {
        bench.to_async(&runtime).iter(async || {
            let name = fastrand::u128(..).to_le_bytes();
            cache.insert(&Key::public(&name), payload()).await
        });
    });
}

/// A hundred keys at once.
fn many(criterion: &mut Criterion) {
    let runtime = runtime();
    let cache = Cache::builder("bench").build().unwrap();
    let names: Vec<String> = (0..100).map(|index| format!("{NAME}{index}")).collect();
    let keys: Vec<Key<'_>> = names.iter().map(Key::public).collect();
    let load = |missing: Vec<Key<'static>>| async {
        let rows = missing.into_iter().map(|key| (key, Ok::<_, Infallible>(payload())));
        Ok::<Vec<_>, Infallible>(rows.collect())
    };
    runtime.block_on(cache.get_or_load_many(&keys, &[], load));
    let mut group = criterion.benchmark_group("cache/many");
    group.throughput(Throughput::Elements(100));
    group.bench_function("get_or_load_many, hits", |bench| {
        bench.to_async(&runtime).iter(|| cache.get_or_load_many(black_box(&keys), &[], load));
    });
    group.bench_function("get_or_load_many, misses", |bench| {
        bench.to_async(&runtime).iter(async || {
            let missing: [_; 100] = std::array::from_fn(|_| fastrand::u128(..).to_le_bytes());
            cache.get_or_load_many(&missing.each_ref().map(Key::public), &[], load).await
        });
    });
}

fn contended(criterion: &mut Criterion) {
    let runtime = runtime();
    let cache = filled(&runtime, &[]);
    let key = Key::public(NAME);
    let get = || drop(cache.get_local(black_box(&key)));
    let mut group = criterion.benchmark_group("cache/contended");
    group.bench_function("get_local, one key", |bench| support::beside(get, || bench.iter(get)));
}

/// Everybody asks for one key that is not there.
fn stampede(criterion: &mut Criterion) {
    let runtime = runtime();
    let cache: Cache<Payload> = Cache::builder("bench").build().unwrap();
    let mut group = criterion.benchmark_group("cache/stampede");
    for tasks in [10, 1_000] {
        group.throughput(Throughput::Elements(tasks));
        group.bench_with_input(BenchmarkId::from_parameter(tasks), &tasks, |bench, tasks| {
            bench.to_async(&runtime).iter(async || {
                let name = fastrand::u128(..).to_le_bytes();
                let ask = |_| {
                    let cache = cache.clone();
                    async move { cache.get_or_load(&Key::public(&name), load).await.is_ok() }
                };
                (0..*tasks).map(ask).collect::<JoinSet<_>>().join_all().await
            });
        });
    }
}

/// What it costs to write a value to the remote tier and to read it there, but for the way: the store is in memory.
fn bytes(criterion: &mut Criterion) {
    use Compression::{Balanced, Heavy, Light, Off};
    for size in [1 << 10, 11 << 10, 115 << 10, 1 << 20] {
        let results = results(size);
        let json = Bytes::from(serde_json::to_vec(&results).unwrap());
        for setting in [Off, Balanced] {
            travel(criterion, "json", Codec::json(), setting, size, &results);
            travel(criterion, "message_pack", Codec::message_pack(), setting, size, &results);
        }
        for setting in [Off, Light, Balanced, Heavy] {
            travel(criterion, "bytes", Codec::bytes(), setting, size, &json);
        }
    }
}

fn travel<V: Clone + Send + Sync + 'static>(
    criterion: &mut Criterion,
    name: &str,
    codec: Codec<V>,
    setting: Compression,
    size: usize,
    value: &V,
) {
    let runtime = runtime();
    let store = MemoryStore::new(Clock::system());
    // Memory answers for no time at all, so every read is one of the store.
    let cache = Cache::builder("bench").remote_with(store, codec).compression(setting);
    let cache = runtime.block_on(cache.max_staleness(Duration::from_nanos(1)).build()).unwrap();
    let key = Key::public(NAME);
    let mut group = criterion.benchmark_group("cache/bytes");
    group.sample_size(20).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300));
    let what = format!("{name}, {setting:?}, {} KiB", size >> 10);
    group.bench_function(BenchmarkId::new("write", &what), |bench| {
        bench.to_async(&runtime).iter(async || cache.insert(&key, value.clone()).await);
    });
    group.bench_function(BenchmarkId::new("read", &what), |bench| {
        bench.to_async(&runtime).iter(async || assert!(cache.get(&key).await.is_some()));
    });
}

/// What a search tool answers.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Results {
    results: Vec<Server>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Server {
    id: u64,
    name: String,
    description: String,
    version: String,
    tags: Vec<String>,
    updated_at: String,
    score: f64,
}

/// Results of at least so many bytes as JSON.
fn results(size: usize) -> Results {
    const WORDS: [&str; 40] = [
        "server",
        "model",
        "context",
        "protocol",
        "search",
        "query",
        "document",
        "index",
        "vector",
        "remote",
        "local",
        "cache",
        "token",
        "stream",
        "request",
        "response",
        "for",
        "the",
        "a",
        "with",
        "and",
        "of",
        "that",
        "over",
        "from",
        "returns",
        "reads",
        "writes",
        "lists",
        "updates",
        "database",
        "file",
        "issue",
        "repository",
        "weather",
        "calendar",
        "message",
        "channel",
        "user",
        "account",
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let mut words =
        |count: usize| (0..count).map(|_| random.choice(WORDS).unwrap()).collect::<Vec<_>>().join(" ");
    let mut results = Results::default();
    let mut random = fastrand::Rng::with_seed(8);
    while serde_json::to_vec(&results).unwrap().len() < size {
        results.results.push(Server {
            id: random.u64(..1 << 40),
            name: words(2),
            description: words(random.usize(8..24)),
            version: format!("{}.{}.{}", random.u8(..5), random.u8(..20), random.u8(..20)),
            tags: (0..3).map(|_| words(1)).collect(),
            updated_at: format!("2026-{:02}-{:02}T12:00:00Z", random.u8(1..13), random.u8(1..29)),
            score: random.f64(),
        });
    }
    results
}

fn runtime() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn filled(runtime: &Runtime, tags: &[&str]) -> Cache<Payload> {
    let cache = Cache::builder("bench").build().unwrap();
    runtime.block_on(cache.insert_tagged(&Key::public(NAME), tags, payload())).unwrap();
    cache
}

async fn load() -> Result<Payload, Infallible> {
    Ok(payload())
}

fn payload() -> Payload {
    "x".repeat(1024).into()
}
