//! The cache alone: `cargo bench --bench cache`. Against others: `benches/rivals`.

#![allow(clippy::unwrap_used, reason = "what cannot be set up cannot be measured")]

mod support;

use std::{convert::Infallible, hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use mcp_perf::{
    cache::{Cache, Codec, Compression, Key},
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
    support::run(&[hit, miss, contended, stampede, bytes]);
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
    group.bench_function("get_or_load, private key made for it", |bench| {
        let key = || Key::private("alice@example.org", "search").part("a query");
        runtime.block_on(cache.insert(&key(), payload())).unwrap();
        bench.to_async(&runtime).iter(async || cache.get_or_load(&key(), load).await);
    });
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
    for size in [1 << 10, 11 << 10, 115 << 10] {
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
