//! The invalidation bus over a real Redis, and what happens when that goes.

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
    cache::{Bus, Cache, Key, Subscription},
    redis::{RedisBus, RedisStore},
    testing,
};
use support::{certificate::Certificate, redis::RedisServer};

/// So long that whatever is seen is seen by the bus.
const HOUR: Duration = Duration::from_secs(60 * 60);

type Texts = Cache<String>;

fn bus(server: &RedisServer) -> RedisBus {
    RedisBus::new(&server.url()).unwrap()
}

async fn node(server: &RedisServer, max_staleness: Duration) -> Texts {
    let store = RedisStore::new(&server.url()).unwrap();
    let builder = Cache::builder("test").time_to_live(HOUR).remote(store);
    let cache = builder.max_staleness(max_staleness).bus(bus(server)).build().await.unwrap();
    until("the bus is there", async || is_connected(&cache)).await;
    cache
}

fn is_connected(cache: &Texts) -> Option<()> {
    cache.stats().bus.connected.then_some(())
}

async fn load(cache: &Texts, key: &Key<'_>, value: &str) -> String {
    let value = value.to_owned();
    cache.get_or_load_tagged(key, &["tag"], || async { Ok::<_, io::Error>(value) }).await.unwrap()
}

/// Waits until the other tasks and the server have done their part.
async fn until<T>(what: &str, done: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Duration::from_secs(60);
    let poll = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    tokio::time::timeout(deadline, poll).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"))
}

async fn forgets(cache: &Texts, key: &Key<'_>) {
    until("it is forgotten", async || cache.get_local(key).is_none().then_some(())).await;
}

/// Both remember the same value.
async fn both_remember(one: &Texts, two: &Texts, key: &Key<'_>, value: &str) {
    load(one, key, value).await;
    until("the value is in Redis", async || two.get(key).await.filter(|found| found == value)).await;
    assert_eq!(two.get_local(key).as_deref(), Some(value));
}

async fn kill_clients(server: &RedisServer, kind: &str) -> u64 {
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let kill = ["KILL", "TYPE", kind, "SKIPME", "yes"];
    ::redis::cmd("CLIENT").arg(&kill).query_async(&mut redis).await.unwrap()
}

async fn listeners(server: &RedisServer) -> usize {
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let list: String =
        ::redis::cmd("CLIENT").arg(&["LIST", "TYPE", "pubsub"]).query_async(&mut redis).await.unwrap();
    list.lines().count()
}

#[tokio::test]
async fn redis_keeps_the_contract_of_a_bus() {
    let server = RedisServer::start();
    testing::bus::keeps_its_contract(&bus(&server)).await;
}

#[tokio::test]
async fn what_one_node_invalidates_the_other_forgets_long_before_the_staleness() {
    let server = RedisServer::start();
    let (one, two) = (node(&server, HOUR).await, node(&server, HOUR).await);
    let key = Key::private("alice", "inbox");
    both_remember(&one, &two, &key, "a").await;
    one.remove(&key).await.unwrap();
    forgets(&two, &key).await;
    both_remember(&one, &two, &key, "b").await;
    two.remove_by_tag("tag").await.unwrap();
    forgets(&one, &key).await;
    both_remember(&one, &two, &key, "c").await;
    one.clear().await.unwrap();
    forgets(&two, &key).await;
    both_remember(&one, &two, &key, "d").await;
    two.insert(&key, "e".to_owned()).await.unwrap();
    forgets(&one, &key).await;
    assert_eq!(one.get(&key).await.as_deref(), Some("e"));
    assert_eq!((one.stats().bus.unsent, two.stats().bus.unsent), (0, 0));
}

#[tokio::test]
async fn subscriptions_that_the_server_cut_are_made_anew() {
    let server = RedisServer::start();
    let (one, two) = (node(&server, HOUR).await, node(&server, HOUR).await);
    for round in 0..3_u8 {
        let name = [round];
        let key = Key::public(&name);
        assert_eq!(kill_clients(&server, "pubsub").await, 2);
        until("both listen again", async || (listeners(&server).await == 2).then_some(())).await;
        both_remember(&one, &two, &key, "value").await;
        one.remove(&key).await.unwrap();
        forgets(&two, &key).await;
    }
}

#[tokio::test]
async fn message_that_met_no_subscription_is_made_good_within_the_staleness() {
    let server = RedisServer::start();
    let staleness = Duration::from_secs(1);
    let (one, two) = (node(&server, staleness).await, node(&server, staleness).await);
    for round in 0..5_u8 {
        let name = [round];
        let key = Key::public(&name);
        both_remember(&one, &two, &key, "value").await;
        kill_clients(&server, "pubsub").await;
        // Nobody listens, or just so.
        one.remove(&key).await.unwrap();
        let since = mcp_perf::clock::Clock::system();
        let done = since.now();
        loop {
            let asked = since.now();
            if two.get_local(&key).is_none() {
                break;
            }
            // Whatever the machine is busy with: what is served is served before the bound.
            assert!(asked.since(done) < staleness, "{round}");
            tokio::time::sleep(Duration::from_millis(1)).await; // polling, bounded by the line above
        }
    }
}

#[tokio::test]
async fn connections_for_publishing_that_were_cut_while_idle_lose_no_message() {
    let server = RedisServer::start();
    let (one, two) = (node(&server, HOUR).await, node(&server, HOUR).await);
    let key = Key::public("key");
    both_remember(&one, &two, &key, "value").await;
    assert!(kill_clients(&server, "normal").await >= 2);
    one.remove(&key).await.unwrap();
    forgets(&two, &key).await;
    assert_eq!(one.stats().bus.unsent, 0);
}

/// What is published at a replica reaches nobody but those who listen there.
#[tokio::test]
async fn replica_is_not_published_at() {
    let server = RedisServer::start();
    let (bus, mut redis) = (bus(&server), server.connection().await);
    let publish = || bus.publish("channel", "message"[..].into());
    publish().await.unwrap();
    let () = redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).query_async(&mut redis).await.unwrap();
    let error = until("it is noticed", async || publish().await.err()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let () = redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).query_async(&mut redis).await.unwrap();
    until("it is the primary again", async || publish().await.ok()).await;
}

#[tokio::test]
async fn server_that_is_killed_and_comes_back_is_listened_to_again() {
    let mut server = RedisServer::start();
    let (one, two) = (node(&server, HOUR).await, node(&server, HOUR).await);
    let key = Key::public("key");
    both_remember(&one, &two, &key, "before").await;
    server.kill();
    until("it is noticed", async || (!two.stats().bus.connected).then_some(())).await;
    one.remove(&key).await.unwrap_err();
    assert_eq!(one.get_local(&key), None);
    assert_eq!(two.get_local(&key).as_deref(), Some("before"), "nobody could tell, and the hour is not over");
    server.restart();
    until("one hears again", async || is_connected(&one)).await;
    until("two hears again", async || is_connected(&two)).await;
    until("Redis is told", async || one.remove(&key).await.ok()).await;
    forgets(&two, &key).await;
    both_remember(&one, &two, &key, "after").await;
    two.remove_by_tag("tag").await.unwrap();
    forgets(&one, &key).await;
}

#[tokio::test]
async fn bus_that_is_not_there_when_the_cache_is_built_is_used_once_it_is() {
    let (store, mut server) = (RedisServer::start(), RedisServer::start());
    server.kill();
    let make = async || {
        let tier = RedisStore::new(&store.url()).unwrap();
        let builder = Cache::<String>::builder("test").remote(tier).max_staleness(HOUR);
        builder.bus(bus(&server)).build().await.unwrap()
    };
    let (one, two) = (make().await, make().await);
    let key = Key::public("key");
    both_remember(&one, &two, &key, "value").await;
    server.restart();
    until("one hears", async || is_connected(&one)).await;
    until("two hears", async || is_connected(&two)).await;
    one.remove(&key).await.unwrap();
    forgets(&two, &key).await;
}

#[tokio::test]
async fn prefixes_keep_the_buses_of_programs_apart() {
    let server = RedisServer::start();
    let (one, two) = (bus(&server).prefix("one").unwrap(), bus(&server).prefix("two").unwrap());
    let mut listener = one.subscribe("channel").await.unwrap();
    two.publish("channel", "two's".into()).await.unwrap();
    one.publish("channel", "one's".into()).await.unwrap();
    assert_eq!(listener.next().await.unwrap(), "one's");
    assert!(one.prefix("a b").unwrap_err().to_string().starts_with("prefix: "));
}

#[tokio::test]
async fn password_is_shown_nowhere() {
    for url in ["", "hunter2", "http://:hunter2@host", "redis://:hunter2@host:notaport"] {
        let error = RedisBus::new(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(
            error.to_string().starts_with("url: ") && !format!("{error:?}").contains("hunter2"),
            "{error}"
        );
    }
    let mut server = RedisServer::start();
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let right = ["SET", "requirepass", "right"];
    let () = ::redis::cmd("CONFIG").arg(&right).query_async(&mut redis).await.unwrap();
    let bus = RedisBus::new(&format!("redis://:hunter2@127.0.0.1:{}", server.port())).unwrap();
    let refused = bus.publish("channel", "message".into()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    server.kill();
    let away = bus.subscribe("channel").await.unwrap_err();
    assert_eq!(away.kind(), ErrorKind::Unavailable);
    assert!(!format!("{bus:?} {refused} {refused:?} {away} {away:?}").contains("hunter2"));
}

#[tokio::test]
async fn user_who_may_only_publish_and_subscribe_on_its_channels_is_enough() {
    let server = RedisServer::start();
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let rules =
        ["SETUSER", "ca@he", "on", ">p@s/s:w%rd", "resetchannels", "&mcp-perf:*", "+publish", "+subscribe"];
    let () = ::redis::cmd("ACL").arg(&rules).query_async(&mut redis).await.unwrap();
    let at = |login: &str| RedisBus::new(&format!("redis://{login}@127.0.0.1:{}/3", server.port())).unwrap();
    let bus = at("ca%40he:p%40s%2Fs%3Aw%25rd");
    testing::bus::keeps_its_contract(&bus).await;
    let elsewhere = bus.prefix("elsewhere").unwrap();
    let wrong = at("ca%40he:hunter2");
    for (error, refused) in [
        (elsewhere.subscribe("channel").await.unwrap_err(), "redis refused (subscribe): NOPERM"),
        (
            elsewhere.publish("channel", "message".into()).await.unwrap_err(),
            "redis refused (publish): NOPERM",
        ),
        (wrong.subscribe("channel").await.unwrap_err(), "redis refused (subscribe): WRONGPASS"),
        (wrong.publish("channel", "message".into()).await.unwrap_err(), "redis refused (publish): WRONGPASS"),
    ] {
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Refused, refused.to_owned()));
        assert!(!format!("{error:?} {wrong:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn tls_carries_the_bus_and_checks_the_certificate() {
    let Certificate { certificate, key } = Certificate::of_localhost();
    let server = RedisServer::start_with_tls(&certificate, &key);
    let url = server.tls_url().unwrap();
    let bus = RedisBus::new(&url).unwrap().certificate_authority(&certificate).unwrap();
    testing::bus::keeps_its_contract(&bus).await;
    let store = RedisStore::new(&url).unwrap().certificate_authority(&certificate).unwrap();
    let make = async || {
        let builder = Cache::<String>::builder("test").remote(store.clone()).max_staleness(HOUR);
        let cache = builder.bus(bus.clone()).build().await.unwrap();
        until("the bus is there", async || is_connected(&cache)).await;
        cache
    };
    let (one, two) = (make().await, make().await);
    let key = Key::public("key");
    both_remember(&one, &two, &key, "value").await;
    one.remove(&key).await.unwrap();
    forgets(&two, &key).await;

    let unknown = RedisBus::new(&url).unwrap();
    for error in [
        unknown.subscribe("channel").await.unwrap_err(),
        unknown.publish("channel", "message".into()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("TLS"), "{error}");
    }
    let plain = RedisBus::new(&server.url()).unwrap().certificate_authority(&certificate).unwrap_err();
    assert!(plain.to_string().starts_with("certificate_authority: "), "{plain}");
}

#[tokio::test]
async fn listener_that_is_too_slow_loses_its_subscription_and_others_keep_theirs() {
    let server = RedisServer::start();
    let bus = bus(&server);
    let (mut slow, mut quick) =
        (bus.subscribe("channel").await.unwrap(), bus.subscribe("channel").await.unwrap());
    for number in 0..1_100 {
        bus.publish("channel", number.to_string().into()).await.unwrap();
        assert_eq!(quick.next().await.unwrap(), number.to_string());
    }
    let mut heard = 0;
    let ended = loop {
        match slow.next().await {
            Ok(_) => heard += 1,
            Err(ended) => break ended,
        }
    };
    assert_eq!(heard, 1024);
    assert!(ended.to_string().contains("more messages came than were asked for"), "{ended}");
    until("its connection is gone", async || (listeners(&server).await == 1).then_some(())).await;
    drop(quick);
    until("who is dropped listens no more", async || (listeners(&server).await == 0).then_some(())).await;
}

#[tokio::test]
async fn message_that_is_too_long_is_refused_and_one_of_somebody_else_ends_the_subscription() {
    let server = RedisServer::start();
    let bus = bus(&server);
    let mut listener = bus.subscribe("channel").await.unwrap();
    let refused = bus.publish("channel", vec![7; bus.max_message() + 1].into()).await.unwrap_err();
    assert_eq!(refused.to_string(), "redis: a message of 16385 bytes, and at most 16384");
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let long = vec![7_u8; 1 << 20];
    let () = ::redis::cmd("PUBLISH").arg("mcp-perf:channel").arg(long).query_async(&mut redis).await.unwrap();
    let ended = listener.next().await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Unavailable);
    assert!(ended.to_string().contains("too long"), "{ended}");
}
