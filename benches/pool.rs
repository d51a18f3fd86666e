//! The pool alone, of connections that cost nothing: `cargo bench --bench pool`. Against others: `benches/rivals`.

#![allow(clippy::unwrap_used, reason = "what cannot be set up cannot be measured")]

mod support;

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bb8::ManageConnection;
use criterion::{BenchmarkId, Criterion, Throughput};
use mcp_perf::pool::{
    Class, Connection, Pool, PoolBuilder, Share,
    sizing::{Bounds, Sample, Sizing, ThroughputVerified},
};
use tokio::{
    runtime::{self, Runtime},
    task::JoinSet,
};

/// How often each caller of a crowd takes a connection.
const TURNS: u64 = 100;

fn main() {
    support::run(&[alone, classes, contended, waiting, resized, stats, step]);
}

/// There is one idle, and nobody else.
fn alone(criterion: &mut Criterion) {
    let runtime = runtime(1);
    let pool = pool(&runtime, |builder| builder.size(8));
    let mut group = criterion.benchmark_group("pool/alone");
    group.bench_function("get and return", |bench| {
        bench.to_async(&runtime).iter(|| get(&pool, Class::DEFAULT));
    });
    group.bench_function("try_get and return", |bench| {
        bench.to_async(&runtime).iter(async || pool.try_get().await.unwrap().is_some());
    });
    let held: Vec<_> = runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(pool.get().await.unwrap());
        }
        held
    });
    group.bench_function("try_get, none is left", |bench| {
        bench.to_async(&runtime).iter(async || pool.try_get().await.unwrap().is_some());
    });
    drop(held);
}

/// What it costs that callers are told apart.
fn classes(criterion: &mut Criterion) {
    let runtime = runtime(1);
    let mut group = criterion.benchmark_group("pool/classes");
    for count in [1, 8] {
        let pool = pool(&runtime, |builder| {
            let builder = builder.size(32).system_reserve(1);
            let share = Share::new().guarantee(2).at_most(16);
            (0..count).fold(builder, |builder, number| builder.class(format!("class-{number}"), share))
        });
        let class = pool.class("class-0").unwrap();
        for (name, class) in [("named", class), ("default", Class::DEFAULT), ("system", Class::SYSTEM)] {
            group.bench_function(BenchmarkId::new(name, count), |bench| {
                bench.to_async(&runtime).iter(|| get(&pool, class));
            });
        }
    }
}

/// Another thread takes and returns, too. There are connections for both.
fn contended(criterion: &mut Criterion) {
    let runtime = runtime(1);
    let pool = pool(&runtime, |builder| builder.size(8));
    // Open, all of them: what is measured waits for nothing but the pool's own locks.
    let get = || drop(black_box(ready(pool.get())));
    let mut group = criterion.benchmark_group("pool/contended");
    group.bench_function("get and return", |bench| {
        let _entered = runtime.enter();
        let beside = || {
            let _entered = runtime.enter();
            get();
        };
        support::beside(beside, || bench.iter(get));
    });
}

/// More callers than connections, who let others go on while they have one.
fn waiting(criterion: &mut Criterion) {
    let runtime = runtime(2);
    let pool = pool(&runtime, |builder| builder.size(2));
    let mut group = criterion.benchmark_group("pool/waiting");
    for callers in [8, 512] {
        group.throughput(Throughput::Elements(callers * TURNS));
        group.bench_with_input(BenchmarkId::from_parameter(callers), &callers, |bench, callers| {
            bench.to_async(&runtime).iter(async || {
                let call = |_| {
                    let pool = pool.clone();
                    async move {
                        for _ in 0..TURNS {
                            let held = pool.get().await.unwrap();
                            tokio::task::yield_now().await;
                            drop(held);
                        }
                    }
                };
                (0..*callers).map(call).collect::<JoinSet<_>>().join_all().await
            });
        });
    }
}

/// The size goes up and down while a connection is out.
fn resized(criterion: &mut Criterion) {
    let runtime = runtime(1);
    let pool = pool(&runtime, |builder| builder.adaptive(1..=8).initial(8));
    let held = runtime.block_on(pool.get()).unwrap();
    let mut sizes = [1, 8].into_iter().cycle();
    criterion.bench_function("pool/set_target", |bench| {
        bench.iter(|| pool.set_target(sizes.next().unwrap_or(8)));
    });
    drop(held);
}

fn stats(criterion: &mut Criterion) {
    let runtime = runtime(1);
    let pool = pool(&runtime, |builder| builder.size(8));
    criterion.bench_function("pool/stats", |bench| bench.iter(|| pool.stats()));
}

/// One decision on the size: once a second.
fn step(criterion: &mut Criterion) {
    let mut sizing = ThroughputVerified::new(Bounds::new(2, 64).unwrap(), 4);
    let mut sample = Sample::default();
    sample.window = Duration::from_secs(1);
    sample.waiting = 30;
    sample.was_full = true;
    sample.full_fraction = 1.0;
    let mut now = Duration::ZERO;
    criterion.bench_function("pool/step", |bench| {
        bench.iter(|| {
            now += Duration::from_secs(1);
            let size = sizing.target();
            (sample.target, sample.open, sample.in_use_max) = (size, size, size);
            sample.in_use_mean = f64::from(size);
            // A knee at 16, and some chance.
            sample.completed = u64::from(100 * size.min(16)) + now.as_secs() % 7;
            sizing.step(black_box(&sample), now)
        });
    });
}

/// Connects to nowhere, at once.
struct Nothing;

impl ManageConnection for Nothing {
    type Connection = ();
    type Error = Infallible;

    async fn connect(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

/// A pool of which two connections are open.
fn pool(runtime: &Runtime, how: impl FnOnce(PoolBuilder<Nothing>) -> PoolBuilder<Nothing>) -> Pool<Nothing> {
    let _entered = runtime.enter();
    let pool = how(Pool::builder("bench", Nothing).connects(8, 1e6).keep_open(2)).build().unwrap();
    runtime.block_on(async { drop((pool.get().await.unwrap(), pool.get().await.unwrap())) });
    pool
}

async fn get(pool: &Pool<Nothing>, class: Class) {
    drop(black_box(pool.get_for(class).await.unwrap()));
}

/// What is there without waiting.
fn ready<E>(get: impl Future<Output = Result<Connection<Nothing>, E>>) -> Option<Connection<Nothing>> {
    match pin!(get).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(got) => got.ok(),
        Poll::Pending => None,
    }
}

fn runtime(workers: usize) -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}
