//! What an exporter is told of pools and of a store in Redis: exactly what is documented, and what `stats()` says.

#![cfg(all(feature = "pool", feature = "redis"))]
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]
#![allow(clippy::float_cmp, reason = "the gauges of a pool are whole numbers")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use mcp_perf::{
    cache::{Put, Store},
    clock::Clock,
    pool::Pool,
    redis::RedisStore,
    testing::{FakeServer, Usl},
};
use support::{recorder::Recorder, redis::RedisServer, wait::until};

const SECOND: Duration = Duration::from_secs(1);

/// The names in the section of a module's page that tells of an exporter. A name that begins with `_` has the prefix.
fn documented(page: &str, prefix: &str) -> BTreeSet<String> {
    let section = page.split("For an exporter").nth(1).unwrap();
    let section = section.split("//!\n").next().unwrap();
    let words = section.split('`').skip(1).step_by(2);
    let names = words.filter(|word| word.starts_with('_') || word.starts_with(prefix));
    names.map(|name| format!("{prefix}{}", name.trim_start_matches(prefix))).collect()
}

/// The names without what tells them apart beyond their owner.
fn names(recorder: &Recorder) -> BTreeSet<String> {
    recorder.names().into_keys().map(|name| name.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn pool_exports_what_is_documented_and_what_its_stats_say() {
    let recorder = Recorder::of("pool", "test");
    let seen = recorder.clone();
    recorder.run_paused(async move {
        let server = FakeServer::new(Usl::new(0.15, 0.013));
        let pool =
            Pool::builder("test", server).clock(Clock::tokio()).size(2).timeout(SECOND).build().unwrap();
        assert_eq!(names(&seen), documented(include_str!("../src/pool/mod.rs"), "mcp_perf_pool"));
        let (one, _two) = (pool.get().await.unwrap(), pool.get().await.unwrap());
        pool.get().await.unwrap_err();
        tokio::time::sleep(2 * SECOND).await;
        let levels = ["in_use", "idle", "open", "target", "waiting"];
        let levels = levels.map(|name| seen.gauge(&format!("mcp_perf_pool_{name}")));
        assert_eq!(levels, [2.0, 0.0, 2.0, 2.0, 0.0]);
        drop(one);
        pool.retire_all();
        drop(pool.get().await.unwrap());
        tokio::time::sleep(2 * SECOND).await;
        let stats = pool.stats();
        let counts = ["timeouts_total", "closed_total reason=retired", "connect_seconds", "hold_seconds"];
        let counts = counts.map(|name| seen.count(&format!("mcp_perf_pool_{name}")));
        assert_eq!(counts, [stats.timeouts, stats.closed.retired, stats.connects, 2]);
        assert_eq!(counts, [1, 1, 3, 2]);
    });
}

#[test]
fn store_in_redis_exports_what_is_documented_and_what_its_stats_say() {
    let mut server = RedisServer::start();
    let recorder = Recorder::of("prefix", "test");
    let seen = recorder.clone();
    recorder.run(async move {
        let store = RedisStore::new(&server.url()).unwrap().prefix("test").unwrap();
        store.put_if(Put::new("name", b"value"[..].into(), 60 * SECOND)).await.unwrap();
        assert_eq!(names(&seen), documented(include_str!("../src/redis/mod.rs"), "mcp_perf_redis"));
        store.get_many(&["name"], &["stamp"]).await.unwrap();
        let agrees = || {
            let stats = store.stats();
            let own = [stats.trips, stats.connects, stats.connect_failures, stats.retries, stats.closed.lost];
            let names = [
                "trip_seconds",
                "connect_seconds",
                "connect_failures_total",
                "retries_total",
                "closed_total reason=lost",
            ];
            assert_eq!(names.map(|name| seen.count(&format!("mcp_perf_redis_{name}"))), own);
            own
        };
        let [trips, connects, ..] = agrees();
        assert!(trips >= 2 && connects == 1, "{:?}", store.stats());
        server.kill();
        store.get_many(&["name"], &["stamp"]).await.unwrap_err();
        until("its end is counted", async || (store.stats().closed.lost == 1).then_some(())).await;
        let [.., failures, _, _] = agrees();
        assert!(failures >= 1, "{:?}", store.stats());
    });
}
