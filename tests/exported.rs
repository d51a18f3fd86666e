//! What an exporter is told of pools and of a store in Redis: exactly what is documented, and what `stats()` says.

#![cfg(all(feature = "pool", feature = "redis"))]
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]
#![allow(clippy::float_cmp, reason = "the gauges of a pool are whole numbers")]

mod support;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use mcp_perf::{
    cache::{Put, Store},
    clock::Clock,
    pool::Pool,
    redis::RedisStore,
    testing::{FakeServer, Usl},
};
use support::{documented, recorder::Recorder, redis::RedisServer, wait::until};

const SECOND: Duration = Duration::from_secs(1);

/// The names of metrics in the sources.
fn in_the_sources(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            in_the_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(path).unwrap();
            let names = source.split("\"mcp_perf_").skip(1).map(|rest| rest.split('"').next().unwrap());
            found.extend(names.map(|name| format!("mcp_perf_{name}")));
        }
    }
}

#[test]
fn every_metric_is_on_the_page_and_none_besides() {
    let mut found = BTreeSet::new();
    in_the_sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    let documented: BTreeSet<String> =
        documented::metrics("mcp_perf_").into_iter().map(|[name, ..]| name.to_owned()).collect();
    assert!(found.len() > 40, "{found:?}");
    assert_eq!(found, documented);
}

#[test]
fn pool_exports_what_is_documented_and_what_its_stats_say() {
    let recorder = Recorder::of("pool", "test");
    let seen = recorder.clone();
    recorder.run_paused(async move {
        let server = FakeServer::new(Usl::new(0.15, 0.013));
        let pool =
            Pool::builder("test", server).clock(Clock::tokio()).size(2).timeout(SECOND).build().unwrap();
        assert_eq!(seen.names(), documented::kinds("mcp_perf_pool_"));
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
        assert_eq!(seen.names(), documented::kinds("mcp_perf_redis_"));
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
