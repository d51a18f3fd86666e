//! The limiter alone: `cargo bench --bench limit`. Against others: `benches/rivals`.

#![allow(clippy::unwrap_used, reason = "what cannot be set up cannot be measured")]

mod support;

use std::hint::black_box;

use criterion::Criterion;
use mcp_perf::limit::{Limiter, Quota, Scope};

const ACCOUNT: &str = "https://accounts.example.org/000000000000042";

fn main() {
    support::run(&[allow, deny, several, contended]);
}

fn allow(criterion: &mut Criterion) {
    let (limiter, [account]) = limiter([plenty()]);
    let mut group = criterion.benchmark_group("limit/allow");
    group.bench_function("a number", |bench| {
        bench.iter(|| limiter.check(&[account.on(black_box(&42_u64))], 1));
    });
    group.bench_function("a string of 44 bytes", |bench| {
        bench.iter(|| limiter.check(&[account.on(black_box(ACCOUNT))], 1));
    });
    group.bench_function("a key never seen before", |bench| {
        bench.iter(|| limiter.check(&[account.on(&fastrand::u64(..))], 1));
    });
}

fn deny(criterion: &mut Criterion) {
    let (limiter, [account]) = limiter([Quota::per_hour(1)]);
    let mut group = criterion.benchmark_group("limit/deny");
    let check = || limiter.check(&[account.on(black_box(&42_u64))], 1);
    assert!(check().is_allowed());
    group.bench_function("a number", |bench| bench.iter(check));
    assert!(!check().is_allowed());
    group.bench_function("more than the burst", |bench| {
        bench.iter(|| limiter.check(&[account.on(black_box(&43_u64))], 2));
    });
}

/// Three quotas in one decision, of which the last may refuse.
fn several(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limit/three at once");
    for (name, last) in [("allow", plenty()), ("deny", Quota::per_hour(1))] {
        let (limiter, [account, tool, everybody]) = limiter([plenty(), plenty(), last]);
        let subjects = || [account.on(black_box(ACCOUNT)), tool.on(black_box("search")), everybody.on(&())];
        let _ = limiter.check(&subjects(), 1);
        group.bench_function(name, |bench| bench.iter(|| limiter.check(&subjects(), 1)));
    }
}

fn contended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limit/contended, one key");
    for (name, quota) in [("allow", plenty()), ("deny", Quota::per_hour(1))] {
        let (limiter, [account]) = limiter([quota]);
        let check = || {
            let _ = black_box(limiter.check(&[account.on(black_box(&42_u64))], 1));
        };
        group.bench_function(name, |bench| support::beside(check, || bench.iter(check)));
    }
}

/// More than a bench can use up.
fn plenty() -> Quota {
    Quota::per_second(60_000_000)
}

fn limiter<const COUNT: usize>(quotas: [Quota; COUNT]) -> (Limiter, [Scope; COUNT]) {
    let names: [String; COUNT] = std::array::from_fn(|index| format!("policy-{index}"));
    let builder = names.iter().zip(quotas);
    let builder = builder.fold(Limiter::builder(), |builder, (name, quota)| builder.policy(name, quota));
    let limiter = builder.build().unwrap();
    let scopes = names.map(|name| limiter.scope(&name).unwrap());
    (limiter, scopes)
}
