//! The invalidation bus over a real PostgreSQL, and what happens when that goes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{io, net::Ipv4Addr, time::Duration};

use mcp_perf::{
    ErrorKind,
    cache::{Bus, Cache, Key, Subscription},
    postgres::{PostgresBus, PostgresStore, PostgresSubscription},
    testing::{self, FaultProxy, Weather},
};
use support::postgres::PostgresServer;
use tokio_postgres::NoTls;

/// So long that whatever is seen is seen by the bus.
const HOUR: Duration = Duration::from_secs(60 * 60);
const MINUTE: Duration = Duration::from_secs(60);
/// The connections of a bus, by what they asked for last.
const LISTENERS: &str = "application_name = 'mcp-perf' and query like '%LISTEN%'";
const PUBLISHERS: &str = "application_name = 'mcp-perf' and query like '%pg_notify%'";

type Texts = Cache<String>;

fn bus(server: &PostgresServer) -> PostgresBus {
    PostgresBus::new(&server.url()).unwrap()
}

/// A server with the tables of a store, which survive its death.
async fn server() -> PostgresServer {
    let server = PostgresServer::start_with(&[("synchronous_commit", "on")]);
    PostgresStore::new(&server.url()).unwrap().migrate().await.unwrap();
    server
}

async fn node(server: &PostgresServer, max_staleness: Duration) -> Texts {
    let cache = node_with(server, bus(server), max_staleness).await;
    until("the bus is there", async || is_connected(&cache)).await;
    cache
}

async fn node_with(server: &PostgresServer, bus: PostgresBus, max_staleness: Duration) -> Texts {
    let store = PostgresStore::new(&server.url()).unwrap();
    let builder = Cache::builder("test").time_to_live(HOUR).remote(store).remote_timeout(MINUTE);
    builder.max_staleness(max_staleness).bus(bus).build().await.unwrap()
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
    let poll = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    tokio::time::timeout(MINUTE, poll).await.unwrap_or_else(|_| panic!("not within a minute: {what}"))
}

async fn forgets(cache: &Texts, key: &Key<'_>) {
    until("it is forgotten", async || cache.get_local(key).is_none().then_some(())).await;
}

/// Both remember the same value.
async fn both_remember(one: &Texts, two: &Texts, key: &Key<'_>, value: &str) {
    load(one, key, value).await;
    until("the value is in the store", async || two.get(key).await.filter(|found| found == value)).await;
    assert_eq!(two.get_local(key).as_deref(), Some(value));
}

async fn hears(subscription: &mut PostgresSubscription) -> Result<bytes::Bytes, mcp_perf::Error> {
    tokio::time::timeout(MINUTE, subscription.next()).await.expect("nothing within a minute")
}

fn count(server: &PostgresServer, which: &str) -> usize {
    let count = server.psql(&format!("select count(*) from pg_stat_activity where {which}"));
    count.unwrap().parse().unwrap()
}

fn terminate(server: &PostgresServer, which: &str) -> usize {
    let terminated =
        server.psql(&format!("select pg_terminate_backend(pid) from pg_stat_activity where {which}"));
    terminated.unwrap().lines().filter(|line| *line == "t").count()
}

#[tokio::test]
async fn postgres_keeps_the_contract_of_a_bus() {
    let server = PostgresServer::start();
    testing::bus::keeps_its_contract(&bus(&server)).await;
    let over_tls = PostgresBus::with_tls(&server.url(), NoTls).unwrap();
    testing::bus::everybody_who_listens_hears_the_sender_too(&over_tls).await;
    let required = PostgresBus::with_tls(&format!("{}?sslmode=require", server.url()), NoTls).unwrap();
    let refused = required.subscribe("channel").await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("TLS"), "{refused}");
}

#[tokio::test]
async fn what_one_node_invalidates_the_other_forgets_long_before_the_staleness() {
    let server = server().await;
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
async fn subscriptions_whose_connection_the_server_ended_are_made_anew() {
    let server = server().await;
    let (one, two) = (node(&server, HOUR).await, node(&server, HOUR).await);
    for round in 0..3_u8 {
        let name = [round];
        let key = Key::public(&name);
        assert_eq!(terminate(&server, LISTENERS), 2);
        until("both listen again", async || (count(&server, LISTENERS) == 2).then_some(())).await;
        both_remember(&one, &two, &key, "value").await;
        one.remove(&key).await.unwrap();
        forgets(&two, &key).await;
    }
}

#[tokio::test]
async fn message_that_met_no_subscription_is_made_good_within_the_staleness() {
    let server = server().await;
    let staleness = Duration::from_secs(2);
    let (one, two) = (node(&server, staleness).await, node(&server, staleness).await);
    for round in 0..3_u8 {
        let name = [round];
        let key = Key::public(&name);
        both_remember(&one, &two, &key, "value").await;
        terminate(&server, LISTENERS);
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
    let server = server().await;
    let (one, two) = (node(&server, HOUR).await, node(&server, HOUR).await);
    let key = Key::public("key");
    both_remember(&one, &two, &key, "value").await;
    assert_eq!(terminate(&server, PUBLISHERS), 2);
    one.remove(&key).await.unwrap();
    forgets(&two, &key).await;
    assert_eq!(one.stats().bus.unsent, 0);
}

#[tokio::test]
async fn server_that_is_killed_and_comes_back_is_listened_to_again() {
    let mut server = server().await;
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
    until("PostgreSQL is told", async || one.remove(&key).await.ok()).await;
    forgets(&two, &key).await;
    both_remember(&one, &two, &key, "after").await;
    two.remove_by_tag("tag").await.unwrap();
    forgets(&one, &key).await;
}

#[tokio::test]
async fn end_of_a_connection_is_told_with_its_reason_and_the_next_subscription_has_another() {
    let mut server = PostgresServer::start();
    let bus = bus(&server);
    let (mut one, mut two) = (bus.subscribe("one").await.unwrap(), bus.subscribe("two").await.unwrap());
    assert_eq!(terminate(&server, LISTENERS), 1);
    for subscription in [&mut one, &mut two] {
        let ended = hears(subscription).await.unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::Unavailable);
        assert!(ended.to_string().contains("ended the connection"), "{ended}");
    }
    let mut again = bus.subscribe("one").await.unwrap();
    bus.publish("one", "heard".into()).await.unwrap();
    assert_eq!(hears(&mut again).await.unwrap(), "heard");
    server.kill();
    assert_eq!(hears(&mut again).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(bus.publish("one", "lost".into()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(bus.subscribe("one").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn connection_that_fell_silent_ends_its_subscriptions_when_the_server_does_not_answer_the_next_one() {
    let server = PostgresServer::start();
    let proxy = FaultProxy::start((Ipv4Addr::LOCALHOST, server.port()).into()).await.unwrap();
    let bus = PostgresBus::new(&format!("postgres://postgres@{}/postgres", proxy.address())).unwrap();
    let mut one = bus.subscribe("one").await.unwrap();
    proxy.set(Weather::Stall);
    let refused = tokio::time::timeout(MINUTE, bus.subscribe("two")).await.unwrap().unwrap_err();
    assert_eq!(refused.to_string(), "postgres cannot be reached (subscribe): no answer in time");
    assert_eq!(hears(&mut one).await.unwrap_err().to_string(), refused.to_string());
    drop(one);
    proxy.set(Weather::Clear);
    let mut one = bus.subscribe("one").await.unwrap();
    bus.publish("one", "heard".into()).await.unwrap();
    assert_eq!(hears(&mut one).await.unwrap(), "heard");
    until("the silent one is gone", async || (count(&server, LISTENERS) == 1).then_some(())).await;
}

#[tokio::test]
async fn caches_that_share_a_bus_share_two_connections_and_channels_without_a_listener_are_left() {
    let server = PostgresServer::start();
    let bus = bus(&server);
    let mut kept = bus.subscribe("kept").await.unwrap();
    for round in 0..10 {
        let channel = format!("channel {round}");
        let mut listener = bus.clone().subscribe(&channel).await.unwrap();
        bus.publish(&channel, "both".into()).await.unwrap();
        assert_eq!(hears(&mut listener).await.unwrap(), "both");
    }
    assert_eq!((count(&server, LISTENERS), count(&server, PUBLISHERS)), (1, 1));
    let last = server.psql(&format!("select query from pg_stat_activity where {LISTENERS}")).unwrap();
    assert_eq!(last.matches("UNLISTEN").count(), 1, "the one of the round before: {last}");
    bus.publish("kept", "still there".into()).await.unwrap();
    assert_eq!(hears(&mut kept).await.unwrap(), "still there");
    drop(kept);
    until("nobody listens", async || (count(&server, LISTENERS) == 0).then_some(())).await;
}

#[tokio::test]
async fn callers_who_leave_while_they_subscribe_leave_the_others_and_nothing_behind() {
    let server = PostgresServer::start();
    let bus = bus(&server);
    let mut kept = bus.subscribe("kept").await.unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..100 {
        let patience = Duration::from_micros(random.u64(..2_000));
        let channel = format!("channel {}", round % 3);
        let _ = tokio::time::timeout(patience, bus.subscribe(&channel)).await;
        bus.publish("kept", round.to_string().into()).await.unwrap();
        assert_eq!(hears(&mut kept).await.unwrap(), round.to_string());
    }
    drop(kept);
    until("nobody listens", async || (count(&server, LISTENERS) == 0).then_some(())).await;
}

#[tokio::test]
async fn listener_that_is_too_slow_loses_its_subscription_and_others_keep_theirs() {
    let server = PostgresServer::start();
    let bus = bus(&server);
    let (mut slow, mut quick) =
        (bus.subscribe("channel").await.unwrap(), bus.subscribe("channel").await.unwrap());
    for number in 0..1_100 {
        bus.publish("channel", number.to_string().into()).await.unwrap();
        assert_eq!(hears(&mut quick).await.unwrap(), number.to_string());
    }
    let mut heard = 0;
    let ended = loop {
        match hears(&mut slow).await {
            Ok(_) => heard += 1,
            Err(ended) => break ended,
        }
    };
    assert_eq!(heard, 1024);
    assert!(ended.to_string().contains("more messages came than were asked for"), "{ended}");
}

#[tokio::test]
async fn message_that_is_too_long_is_refused_and_a_key_that_is_makes_others_doubt() {
    let server = server().await;
    let bus = bus(&server);
    let mut listener = bus.subscribe("channel").await.unwrap();
    let longest = vec![255; bus.max_message()];
    let refused = bus.publish("channel", [&longest[..], b"1"].concat().into()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert_eq!(refused.to_string(), "postgres: a message of 6000 bytes, and at most 5999");
    bus.publish("channel", longest.clone().into()).await.unwrap();
    assert_eq!(hears(&mut listener).await.unwrap(), longest);

    let staleness = Duration::from_secs(2);
    let (one, two) = (node(&server, staleness).await, node(&server, staleness).await);
    let name = vec![b'k'; 7_000];
    let (long, other) = (Key::public(&name), Key::public("other"));
    both_remember(&one, &two, &long, "value").await;
    both_remember(&one, &two, &other, "value").await;
    one.remove(&long).await.unwrap();
    until("two doubts", async || (two.stats().bus.doubts == 1).then_some(())).await;
    forgets(&two, &long).await;
    assert_eq!(two.get(&long).await, None);
    assert_eq!(two.get(&other).await.as_deref(), Some("value"), "asked about, and found to be right");
}

#[tokio::test]
async fn what_others_notify_on_a_channel_of_the_bus_is_not_heard() {
    let server = PostgresServer::start();
    let bus = bus(&server);
    let mut listener = bus.subscribe("channel").await.unwrap();
    let query = server.psql(&format!("select query from pg_stat_activity where {LISTENERS}")).unwrap();
    let name = query.rsplit('"').nth(1).unwrap();
    for payload in ["", "no base64!", "YQ==", "é"] {
        server.psql(&format!(r#"notify "{name}", '{payload}'"#)).unwrap();
    }
    bus.publish("channel", "ours".into()).await.unwrap();
    assert_eq!(hears(&mut listener).await.unwrap(), "", "nothing, in any encoding");
    assert_eq!(hears(&mut listener).await.unwrap(), "ours");
}

#[tokio::test]
async fn listening_is_not_taken_for_idling() {
    let server = PostgresServer::start_with(&[("idle_session_timeout", "100ms")]);
    let bus = bus(&server);
    let mut listener = bus.subscribe("channel").await.unwrap();
    bus.publish("channel", "first".into()).await.unwrap();
    assert_eq!(hears(&mut listener).await.unwrap(), "first");
    until("who publishes was sent away", async || (count(&server, PUBLISHERS) == 0).then_some(())).await;
    bus.publish("channel", "second".into()).await.unwrap();
    assert_eq!(hears(&mut listener).await.unwrap(), "second");
}

#[tokio::test]
async fn prefixes_and_databases_keep_the_buses_of_programs_apart() {
    let server = PostgresServer::start();
    server.psql("create database other").unwrap();
    let elsewhere =
        PostgresBus::new(&format!("postgres://postgres@127.0.0.1:{}/other", server.port())).unwrap();
    let long = "x".repeat(40);
    let (one, two) = (bus(&server).prefix(&long).unwrap(), bus(&server).prefix(&long[..39]).unwrap());
    let mut listener = one.subscribe("channel").await.unwrap();
    two.publish("channel", "two's".into()).await.unwrap();
    elsewhere.prefix(&long).unwrap().publish("channel", "elsewhere's".into()).await.unwrap();
    one.publish("channel", "one's".into()).await.unwrap();
    assert_eq!(hears(&mut listener).await.unwrap(), "one's");
    for prefix in ["", "a\"", "Upper", &"x".repeat(41)] {
        let error = bus(&server).prefix(prefix).unwrap_err();
        assert!(error.to_string().starts_with("prefix: "), "{error}");
    }
}

#[tokio::test]
async fn wrong_password_is_a_clear_error_and_no_password_is_shown_anywhere() {
    for url in ["", "hunter2", "http://:hunter2@host"] {
        let error = PostgresBus::new(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(
            error.to_string().starts_with("url: ") && !format!("{error:?}").contains("hunter2"),
            "{error}"
        );
    }
    let mut server = server().await;
    server.psql("create role server login password 'right'").unwrap();
    server.ask_for_passwords();
    let at = |login: &str| {
        PostgresBus::new(&format!("postgres://{login}@127.0.0.1:{}/postgres", server.port())).unwrap()
    };
    let (right, wrong) = (at("server:right"), at("server:hunter2"));
    let refused = until("the rules hold", async || wrong.subscribe("channel").await.err()).await;
    let refused_too = wrong.publish("channel", "message".into()).await.unwrap_err();
    for error in [&refused, &refused_too] {
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().ends_with("it does not let this user in from here with this password"));
    }
    // One who may do nothing but connect.
    let mut listener = right.subscribe("channel").await.unwrap();
    right.publish("channel", "message".into()).await.unwrap();
    assert_eq!(hears(&mut listener).await.unwrap(), "message");
    // A cache goes on without.
    let cache = node_with(&server, wrong.clone(), MINUTE).await;
    load(&cache, &Key::public("key"), "value").await;
    assert!(is_connected(&cache).is_none());
    server.kill();
    let away = wrong.subscribe("channel").await.unwrap_err();
    assert_eq!(away.kind(), ErrorKind::Unavailable);
    let told =
        format!("{right:?} {wrong:?} {listener:?} {refused} {refused:?} {refused_too:?} {away} {away:?}");
    assert!(!told.contains("hunter2") && !told.contains("right"), "{told}");
}
