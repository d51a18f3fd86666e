//! The cache alone: `cargo bench --bench cache`. Against others: `benches/rivals`.

#![allow(clippy::unwrap_used, reason = "what cannot be set up cannot be measured")]

mod support;

use std::{convert::Infallible, hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput};
use mcp_perf::cache::{Cache, Key};
use tokio::{
    runtime::{self, Runtime},
    task::JoinSet,
};

type Payload = Arc<str>;

const NAME: &str = "tools/call:search_documents:8f14e45fceea167a5a36dedd4bea2543";

fn main() {
    support::run(&[hit, miss, contended, stampede]);
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
