//! The remote tier in a real Redis, and what happens without it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{io, time::Duration};

use mcp_perf::{
    ErrorKind,
    cache::{Cache, Key, Put, RemoteStatus, Store},
    redis::RedisStore,
    testing,
};
use support::{log::Log, redis::RedisServer, wait::until};
use tracing::Level;

fn store(server: &RedisServer) -> RedisStore {
    RedisStore::new(&server.url()).unwrap()
}

async fn node(server: &RedisServer) -> Cache<String> {
    Cache::builder("test").remote(store(server)).build().await.unwrap()
}

async fn load(cache: &Cache<String>, key: &Key<'_>, value: &str) -> String {
    let value = value.to_owned();
    cache.get_or_load_tagged(key, &["tag"], || async { Ok::<_, io::Error>(value) }).await.unwrap()
}

#[tokio::test]
async fn redis_keeps_the_contract_of_a_store() {
    let server = RedisServer::start();
    // Lives are measured by the server, so time has to pass for real.
    testing::store::keeps_its_contract(&store(&server), async |time| tokio::time::sleep(time).await).await; // server time
}

/// A queue of our own is no Redis that is away.
#[tokio::test]
async fn more_calls_than_there_is_room_for_do_not_make_redis_seem_away() {
    let server = RedisServer::start();
    let store = store(&server);
    let cache =
        Cache::<String>::builder("test").remote(store.clone()).remote_timeout(Duration::from_secs(60));
    let cache = cache.build().await.unwrap();
    let mut gets = tokio::task::JoinSet::new();
    for index in 0_u32..20_000 {
        let (store, cache) = (store.clone(), cache.clone());
        gets.spawn(async move {
            let error = store.get_many(&["name"], &[]).await.err();
            cache.get(&Key::public("key").part(&index.to_le_bytes())).await;
            error
        });
    }
    let errors: Vec<_> = gets.join_all().await.into_iter().flatten().collect();
    assert!(!errors.is_empty() && errors.iter().all(|error| error.kind() == ErrorKind::Overloaded));
    assert!(cache.stats().remote_failures > 0);
    assert_eq!((cache.stats().remote_outages, cache.stats().remote_status), (0, RemoteStatus::Up));
}

#[tokio::test]
async fn redis_that_refuses_reads_is_said_to_do_so_once() {
    let server = RedisServer::start();
    let mut redis = server.connection().await;
    let mut acl = async |rules: &str| {
        let mut command = ::redis::cmd("ACL");
        command.arg("SETUSER").arg("default").arg(rules);
        let () = command.query_async(&mut redis).await.unwrap();
    };
    let cache = node(&server).await;
    let log = Log::hear();
    acl("-mget").await;
    for _ in 0..20 {
        assert_eq!(cache.get(&Key::public("key")).await, None);
    }
    acl("+mget").await;
    cache.get(&Key::public("key")).await;
    assert_eq!(log.at_least(Level::INFO), ["remote tier refuses reads", "remote tier answers reads again"]);
}

#[tokio::test]
async fn nodes_share_what_one_of_them_loaded_and_forget_what_one_removed() {
    let server = RedisServer::start();
    let (one, two) = (node(&server).await, node(&server).await);
    let key = Key::private("alice", "inbox");
    assert_eq!(load(&one, &key, "loaded once").await, "loaded once");
    let shared = until("the value is in Redis", async || two.get(&key).await).await;
    assert_eq!(shared, "loaded once");
    assert_eq!((one.stats().loads, two.stats().loads, two.stats().remote_hits), (1, 0, 1));

    one.remove_by_tag("tag").await.unwrap();
    assert_eq!(one.get(&key).await, None);
    let third = node(&server).await;
    assert_eq!(third.get(&key).await, None);
    assert_eq!(load(&third, &key, "loaded again").await, "loaded again");
}

/// What a look without the bytes says of an absence is nothing to be compared with.
#[tokio::test]
async fn what_is_written_through_for_the_first_time_is_in_both_tiers() {
    let server = RedisServer::start();
    let (one, two) = (node(&server).await, node(&server).await);
    for name in ["never asked for", "removed"] {
        let key = Key::public(name);
        if name == "removed" {
            one.remove(&key).await.unwrap();
        }
        let write = |_| async { Ok::<_, io::Error>(()) };
        one.write_through(&key, &["tag"], "new".to_owned(), write).await.unwrap();
        assert_eq!(one.get_local(&key).as_deref(), Some("new"), "{name}");
        assert_eq!(two.get(&key).await.as_deref(), Some("new"), "{name}");
    }
}

#[tokio::test]
async fn garbage_and_strange_types_in_redis_are_a_miss() {
    let server = RedisServer::start();
    let mut redis = server.connection().await;
    for garbage in ["", "x", "E23456789abcdef0", "Eaaaaaaaaaaaaaaaagarbage", "X"] {
        let cache = node(&server).await;
        cache.insert(&Key::public("key"), "value".to_owned()).await.unwrap();
        let names: Vec<String> = ::redis::cmd("KEYS").arg("*:e:*").query_async(&mut redis).await.unwrap();
        assert_eq!(names.len(), 1);
        let () = ::redis::cmd("SET").arg(&names[0]).arg(garbage).query_async(&mut redis).await.unwrap();
        let fresh = node(&server).await;
        assert_eq!(fresh.get(&Key::public("key")).await, None, "{garbage:?}");
        assert_eq!(load(&fresh, &Key::public("key"), "loaded").await, "loaded");
        let () = ::redis::pipe()
            .cmd("DEL")
            .arg(&names[0])
            .ignore()
            .cmd("RPUSH")
            .arg(&names[0])
            .arg("a list")
            .ignore()
            .query_async(&mut redis)
            .await
            .unwrap();
        let fresh = node(&server).await;
        assert_eq!(load(&fresh, &Key::public("key"), "loaded").await, "loaded", "beside a list");
        let () = ::redis::cmd("DEL").arg(&names[0]).query_async(&mut redis).await.unwrap();
    }
}

#[tokio::test]
async fn unreachable_redis_is_a_clear_error_of_build_unless_it_is_optional() {
    let mut server = RedisServer::start();
    server.kill();
    let error = Cache::<String>::builder("test").remote(store(&server)).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    assert!(error.to_string().contains("redis cannot be reached"), "{error}");
    assert!(std::error::Error::source(&error).is_some());

    let optional = Cache::<String>::builder("test").remote(store(&server)).remote_optional();
    let cache = optional.build().await.unwrap();
    assert_eq!(load(&cache, &Key::public("key"), "from the loader").await, "from the loader");
    assert_eq!(cache.get_local(&Key::public("key")).as_deref(), Some("from the loader"));
    server.restart();
    until("the cache uses the Redis that came up", async || {
        let other = node(&server).await;
        let name = Key::public("later");
        load(&cache, &name, "shared").await;
        cache.remove(&name).await.ok()?;
        load(&cache, &name, "shared").await;
        until_shared(&other, &name).await
    })
    .await;
}

async fn until_shared(other: &Cache<String>, key: &Key<'_>) -> Option<()> {
    for _ in 0..20 {
        if other.get(key).await.is_some() {
            return Some(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await; // polling, bounded
    }
    None
}

#[tokio::test]
async fn server_goes_on_without_redis_says_so_once_and_uses_it_again() {
    let log = Log::hear();
    let mut server = RedisServer::start();
    let cache = node(&server).await;
    server.kill();
    for index in 0_u32..200 {
        let name = index.to_le_bytes();
        let key = Key::public(&name);
        assert_eq!(load(&cache, &key, "from the loader").await, "from the loader");
        assert_eq!(cache.get(&key).await.as_deref(), Some("from the loader"), "from memory");
    }
    assert_eq!(cache.stats().loads, 200);
    let error = cache.remove(&Key::public("key")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(log.at_least(Level::INFO), ["remote tier is away: going on from memory and loader"]);

    server.restart();
    until("the Redis that came back is used", async || {
        cache.remove(&Key::public("key")).await.ok()?;
        (log.at_least(Level::INFO).last()? == "remote tier is back").then_some(())
    })
    .await;
    assert_eq!(log.at_least(Level::INFO).len(), 2);
}

#[tokio::test]
async fn redis_that_hangs_costs_no_more_than_the_time_out_and_then_nothing() {
    let server = RedisServer::start();
    let cache: Cache<String> = Cache::builder("test")
        .remote(store(&server))
        .remote_timeout(Duration::from_millis(20))
        .build()
        .await
        .unwrap();
    server.pause();
    for index in 0_u32..50 {
        assert_eq!(load(&cache, &Key::public(&index.to_le_bytes()), "loaded").await, "loaded");
    }
    // The first calls of a second waited for it; the others were not made, but for probes that nobody waits for.
    let failures = cache.stats().remote_failures;
    assert_eq!((cache.stats().loads, failures), (50, 50));
    server.resume();
    until("it is asked again", async || cache.remove(&Key::public("key")).await.ok()).await;
}

#[tokio::test]
async fn connections_that_were_cut_while_idle_cost_no_invalidation() {
    let server = RedisServer::start();
    let (one, two) = (node(&server).await, node(&server).await);
    let key = Key::public("key");
    load(&one, &key, "old").await;
    until("the value is in Redis", async || two.get(&key).await).await;
    let mut redis = server.connection().await;
    let _: ::redis::Value = ::redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query_async(&mut redis)
        .await
        .unwrap();
    one.remove_by_tag("tag").await.unwrap();
    assert_eq!(load(&one, &key, "new").await, "new");
}

#[tokio::test]
async fn removal_that_redis_forgot_still_bars_the_load_from_before_it() {
    let server = RedisServer::start();
    let (one, two) = (node(&server).await, node(&server).await);
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let loading = tokio::spawn({
        let one = one.clone();
        async move {
            let load = move || async move {
                let _ = started.send(());
                let _ = released.await;
                Ok::<_, io::Error>("old".to_owned())
            };
            one.get_or_load(&Key::public("key"), load).await
        }
    });
    has_started.await.unwrap();
    two.remove(&Key::public("key")).await.unwrap();
    // As an eviction does, which likes what dies soon.
    let mut redis = server.connection().await;
    let names: Vec<String> = ::redis::cmd("KEYS").arg("*:e:*").query_async(&mut redis).await.unwrap();
    let () = ::redis::cmd("DEL").arg(&names).query_async(&mut redis).await.unwrap();
    release.send(()).unwrap();
    loading.await.unwrap().unwrap();
    until("the load offered its value", async || (one.stats().fenced > 0).then_some(())).await;
    assert_eq!(two.get(&Key::public("key")).await, None);
}

#[tokio::test]
async fn wrong_password_is_refused_and_shown_nowhere() {
    let server = RedisServer::start();
    let mut redis = server.connection().await;
    let () =
        ::redis::cmd("CONFIG").arg(&["SET", "requirepass", "right"]).query_async(&mut redis).await.unwrap();
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port());
    let store = RedisStore::new(&url).unwrap();
    let error = Cache::<String>::builder("test").remote(store.clone()).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(!format!("{error} {error:?} {store:?}").contains("hunter2"));
    let right = RedisStore::new(&url.replace("hunter2", "right")).unwrap();
    Cache::<String>::builder("test").remote(right).build().await.unwrap();
}

#[test]
fn malformed_url_and_prefix_are_errors_that_name_the_field_and_not_the_password() {
    for url in ["", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:notaport"] {
        let error = RedisStore::new(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(
            error.to_string().starts_with("url: ") && !format!("{error:?}").contains("hunter2"),
            "{error}"
        );
    }
    let store = RedisStore::new("redis://127.0.0.1").unwrap();
    assert!(store.prefix("a b").unwrap_err().to_string().starts_with("prefix: "));
}

#[tokio::test]
async fn prefixes_keep_programs_apart() {
    let server = RedisServer::start();
    let (one, two) = (store(&server).prefix("one").unwrap(), store(&server).prefix("two").unwrap());
    one.put_if(Put::new("name", "1".into(), Duration::from_secs(60))).await.unwrap();
    assert!(two.get_many(&["name"], &[]).await.unwrap().entries[0].entry.is_none());
}
