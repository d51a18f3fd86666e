//! Timing alone: `cargo bench --bench timing`.

mod support;

use std::{hint::black_box, time::Duration};

use criterion::Criterion;
use mcp_perf::{
    clock::Clock,
    timing::{Outcome, Timing},
};

fn main() {
    support::run(&[record, resolve, read, contended]);
}

fn record(criterion: &mut Criterion) {
    let series = Timing::default().series("tools/call", "search");
    let mut group = criterion.benchmark_group("timing/record");
    group.bench_function("a span", |bench| bench.iter(|| series.start().finish(Outcome::Ok)));
    group.bench_function("a span that is dropped", |bench| bench.iter(|| drop(series.start())));
    group.bench_function("a duration", |bench| {
        bench.iter(|| series.record(black_box(Duration::from_micros(150)), Outcome::Ok));
    });
    group.bench_function("nothing but the clock, twice", |bench| {
        let clock = Clock::system();
        bench.iter(|| (clock.now(), clock.now()));
    });
}

/// What keeping a series saves.
fn resolve(criterion: &mut Criterion) {
    let timing = Timing::default();
    let _series: Vec<_> =
        (0..100).map(|index| timing.series("tools/call", &format!("tool {index}"))).collect();
    criterion.bench_function("timing/resolve one of 100 series", |bench| {
        bench.iter(|| timing.series(black_box("tools/call"), black_box("tool 42")));
    });
}

fn read(criterion: &mut Criterion) {
    let timing = Timing::default();
    let mut random = fastrand::Rng::with_seed(1);
    for index in 0..100 {
        let series = timing.series("tools/call", &format!("tool {index}"));
        for _ in 0..100 {
            series.record(Duration::from_nanos(random.u64(..1 << 24)), Outcome::Ok);
        }
    }
    criterion.bench_function("timing/snapshot of 100 series", |bench| bench.iter(|| timing.snapshot()));
}

fn contended(criterion: &mut Criterion) {
    let series = Timing::default().series("tools/call", "search");
    let record = || series.record(black_box(Duration::from_micros(150)), Outcome::Ok);
    criterion.bench_function("timing/contended, a duration in one series", |bench| {
        support::beside(record, || bench.iter(record));
    });
}
