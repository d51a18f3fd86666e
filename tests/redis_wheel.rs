//! Callers that drive the shared connection to a real Redis themselves, because they come one at a time: whoever stops
//! polling in the middle, goes away or is on another runtime keeps nobody else from an answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod support;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use mcp_perf::{
    cache::{Put, Store},
    clock::Clock,
    redis::RedisStore,
};
use support::redis::RedisServer;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::timeout,
};

const GENEROUS: Duration = Duration::from_secs(30);
/// More than it takes to be taken for somebody who is alone.
const OFTEN: usize = 40;

async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    timeout(GENEROUS, future).await.unwrap_or_else(|_| panic!("not within {GENEROUS:?}: {what}"))
}

/// Begins, and lets nothing more happen.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

async fn read(store: &RedisStore, name: &str) -> Option<Bytes> {
    let found = in_time("a read", store.get_many(&[name], &[])).await.unwrap();
    found.entries.into_iter().next().unwrap().entry.map(|entry| entry.bytes)
}

async fn alone(store: &RedisStore) {
    for _ in 0..OFTEN {
        in_time("an answer", store.ping()).await.unwrap();
    }
}

async fn filled(server: &RedisServer) -> RedisStore {
    let store = RedisStore::new(&server.url()).unwrap();
    for name in ["a", "b"] {
        let put = Put::new(name, Bytes::copy_from_slice(name.as_bytes()), Duration::from_secs(60));
        in_time("a write", store.put_if(put)).await.unwrap();
    }
    store
}

#[expect(clippy::needless_pass_by_value, reason = "a test is made to be run")]
fn on_every_runtime(test: impl AsyncFn(&RedisServer)) {
    let server = RedisServer::start();
    for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        builder.enable_all().build().unwrap().block_on(test(&server));
    }
}

/// So many connections were made so far, with the one that asks.
async fn connections(server: &RedisServer) -> u64 {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut connection).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn read_that_is_not_polled_holds_up_nobody() {
    on_every_runtime(async |server| {
        let store = filled(server).await;
        alone(&store).await;
        let mut paused = pin!(store.get_many(&["a"], &[]));
        server.pause();
        assert!(!poll_once(paused.as_mut()).await);
        server.resume();
        assert_eq!(read(&store, "b").await.unwrap(), "b");
        let found = in_time("the paused one", paused).await.unwrap();
        assert_eq!(found.entries.len(), 1);
        // Alone again, and then one that is never taken up again.
        alone(&store).await;
        server.pause();
        let forgotten = store.clone();
        let mut forgotten = Box::pin(async move { forgotten.get_many(&["a"], &[]).await.map(drop) });
        assert!(!poll_once(forgotten.as_mut()).await);
        std::mem::forget(forgotten);
        server.resume();
        assert_eq!(read(&store, "a").await.unwrap(), "a");
    });
}

#[test]
fn callers_that_come_and_go_are_all_answered() {
    on_every_runtime(async |server| {
        let store = Arc::new(filled(server).await);
        for callers in [1, 2, 1, 8, 1] {
            let mut tasks = JoinSet::new();
            for caller in 0..callers {
                let store = Arc::clone(&store);
                tasks.spawn(async move {
                    for turn in 0..100 {
                        if (turn + caller) % 9 == 4 {
                            let _ = poll_once(pin!(store.get_many(&["a"], &[]))).await;
                        }
                        let name = ["a", "b"][turn % 2];
                        assert_eq!(read(&store, name).await.unwrap(), name);
                    }
                });
            }
            while let Some(task) = in_time("all callers", tasks.join_next()).await {
                task.unwrap();
            }
        }
    });
}

/// What a connection needs of a runtime it has from its own, whoever is at the wheel.
#[test]
fn caller_on_another_runtime_takes_nothing_along_when_that_ends() {
    let server = RedisServer::start();
    let home = Runtime::new().unwrap();
    let store = home.block_on(filled(&server));
    let before = home.block_on(connections(&server));
    for _ in 0..3 {
        let away = Builder::new_current_thread().enable_all().build().unwrap();
        away.block_on(async {
            // The connection looks for silence every 50 ms, and somebody is to be at the wheel then.
            let clock = Clock::system();
            let began = clock.now();
            while clock.now().since(began) < Duration::from_millis(200) {
                alone(&store).await;
            }
        });
        drop(away);
        home.block_on(async {
            tokio::time::sleep(Duration::from_millis(100)).await; // for it to look once more
            assert_eq!(read(&store, "a").await.unwrap(), "a");
        });
    }
    // With this one; a machine that stands still for a second may cost one more.
    assert!(home.block_on(connections(&server)) <= before + 2, "some broke");
}

#[test]
fn store_goes_on_elsewhere_when_the_runtime_of_its_connection_ends() {
    let server = RedisServer::start();
    let home = Runtime::new().unwrap();
    let store = home.block_on(async {
        let store = filled(&server).await;
        alone(&store).await;
        store
    });
    drop(home);
    let away = Runtime::new().unwrap();
    away.block_on(async { assert_eq!(read(&store, "a").await.unwrap(), "a") });
}
