//! What an exporter is told of a cache: exactly what is documented, and the state of its remote tier and its queues.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]
#![allow(clippy::float_cmp, reason = "the gauges of a cache are whole numbers")]

mod support;

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use mcp_perf::{
    cache::{Cache, Key, RemoteStatus, WriteBehind},
    clock::Clock,
    testing::{Calls, Fault, FaultStore, MemoryBus, MemoryStore},
};
use support::{documented, recorder::Recorder};
use tokio::sync::{Notify, Semaphore};

const SECOND: Duration = Duration::from_secs(1);

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn every_metric_of_a_cache_is_in_the_documented_table_and_none_besides() {
    let recorded = Recorder::of("cache", "test");
    recorded.run_paused(async {
        let clock = Clock::tokio();
        let builder = Cache::<String>::builder("test").clock(clock.clone()).max_loads(3);
        let builder = builder.remote(MemoryStore::new(clock)).bus(MemoryBus::new());
        let cache = builder.build().await.unwrap();
        let _behind = WriteBehind::new(cache, |_| async { Ok::<_, io::Error>(()) });
    });
    assert_eq!(recorded.names(), documented::kinds("mcp_perf_cache_"));
}

#[test]
fn metric_of_a_part_that_a_cache_does_not_have_is_not_exported() {
    let recorded = Recorder::of("cache", "test");
    recorded.run_paused(async {
        let _cache: Cache<String> = Cache::builder("test").build().unwrap();
    });
    let always =
        documented::metrics("mcp_perf_cache_").into_iter().filter(|[_, _, only_with]| *only_with == "–");
    let expected: BTreeMap<String, &str> = always.map(|[name, kind, _]| (name.to_owned(), kind)).collect();
    assert_eq!(recorded.names(), expected);
}

#[test]
fn remote_tier_that_goes_away_and_comes_back_is_seen_in_the_stats_and_the_metrics() {
    let recorded = Recorder::of("cache", "test");
    let seen = recorded.clone();
    recorded.run_paused(async move {
        let clock = Clock::tokio();
        let store = FaultStore::new(MemoryStore::new(clock.clone()), 1);
        let builder = Cache::<String>::builder("test").clock(clock).remote(store.clone());
        let cache = builder.build().await.unwrap();
        let status = || (cache.stats().remote_status, seen.gauge("mcp_perf_cache_remote_up"));
        let owed = || (cache.stats().owed, seen.gauge("mcp_perf_cache_owed"));
        assert_eq!((status(), owed()), ((RemoteStatus::Up, 1.0), (0, 0.0)));

        store.cut(Calls::All);
        cache.remove(&Key::public("a")).await.unwrap_err();
        cache.remove(&Key::public("a")).await.unwrap_err();
        cache.remove_by_tag("tag").await.unwrap_err();
        assert_eq!(owed(), (2, 2.0), "one for each name");
        for _ in 0..20 {
            let is_away = cache.stats().remote_status == RemoteStatus::Away;
            assert_eq!(seen.gauge("mcp_perf_cache_remote_up"), if is_away { 0.0 } else { 1.0 });
            cache.get(&Key::public("b")).await;
        }
        assert_eq!(status(), (RemoteStatus::Away, 0.0));
        assert_eq!((cache.stats().remote_outages, seen.count("mcp_perf_cache_remote_outages_total")), (1, 1));

        store.join();
        tokio::time::sleep(3 * SECOND).await;
        cache.get(&Key::public("b")).await;
        settle().await;
        assert_eq!(status(), (RemoteStatus::Returning, 0.0), "its ping was answered");
        for _ in 0..20 {
            let is_up = cache.stats().remote_status == RemoteStatus::Up;
            assert_eq!(seen.gauge("mcp_perf_cache_remote_up"), if is_up { 1.0 } else { 0.0 });
            cache.get(&Key::public("b")).await;
        }
        assert_eq!(status(), (RemoteStatus::Up, 1.0));
        for _ in 0..20 {
            tokio::time::sleep(SECOND).await;
            cache.get(&Key::public("b")).await;
            settle().await;
        }
        assert_eq!(owed(), (0, 0.0), "told at last");
        assert_eq!(cache.stats().remote_outages, 1);

        store.next(Calls::Writes, Fault::Refuse);
        cache.clear().await.unwrap_err();
        assert_eq!((status(), owed()), ((RemoteStatus::Up, 1.0), (1, 1.0)), "up, and it refuses");
    });
    recorded.run_paused(async {
        let cache: Cache<String> = Cache::builder("test").build().unwrap();
        assert_eq!((cache.stats().remote_status, cache.stats().owed), (RemoteStatus::None, 0));
    });
}

#[test]
fn queues_of_loads_and_of_writes_are_as_long_in_the_metrics_as_they_are() {
    let recorded = Recorder::of("cache", "test");
    let seen = recorded.clone();
    recorded.run_paused(async move {
        let cache: Cache<String> = Cache::builder("test").max_loads(1).build().unwrap();
        let release = Arc::new(Notify::new());
        let mut loads = tokio::task::JoinSet::new();
        for name in ["a", "b", "c"] {
            let (cache, release) = (cache.clone(), Arc::clone(&release));
            loads.spawn(async move {
                let load = move || async move {
                    release.notified().await;
                    Ok::<_, io::Error>("value".to_owned())
                };
                cache.get_or_load(&Key::public(name), load).await
            });
        }
        for left in [2, 1, 0] {
            settle().await;
            assert_eq!((cache.stats().queued, seen.gauge("mcp_perf_cache_queued")), (left, left as f64));
            release.notify_one();
        }
        loads.join_all().await;

        let may_write = Arc::new(Semaphore::new(0));
        let wait = Arc::clone(&may_write);
        let behind = WriteBehind::new(cache, move |_| {
            let wait = Arc::clone(&wait);
            async move { wait.acquire().await.map(drop) }
        });
        for (number, name) in ["a", "b", "b", "c"].into_iter().enumerate() {
            behind.insert(&Key::public(name), &[], number.to_string()).await.unwrap();
            assert_eq!(seen.gauge("mcp_perf_cache_write_behind_queued"), behind.queued() as f64);
        }
        assert_eq!(behind.queued(), 3);
        may_write.add_permits(1);
        assert_eq!(behind.shutdown(60 * SECOND).await, 0);
        assert_eq!(seen.gauge("mcp_perf_cache_write_behind_queued"), 0.0);
    });
}
