//! The faults that other tests rely on happen, and without them nothing does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use mcp_perf::{
    Error, ErrorKind,
    cache::{Invalidation, Put, Restamp, Stamp, Store, Written},
    clock::{Clock, Instant},
    testing::{self, Calls, Fault, FaultProxy, FaultStore, MemoryStore, Weather},
};
use support::{postgres::PostgresServer, redis::RedisServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn network() -> FaultStore<MemoryStore> {
    FaultStore::new(MemoryStore::new(Clock::tokio()), 7)
}

async fn put(store: &impl Store, bytes: &'static [u8]) -> Result<Written, Error> {
    store.put_if(Put::new("name", Bytes::from_static(bytes), MINUTE)).await
}

async fn read(store: &impl Store) -> Result<Option<Bytes>, Error> {
    let found = store.get_many(&["name"], &[]).await?;
    Ok(found.entries.into_iter().next().unwrap().entry.map(|entry| entry.bytes))
}

/// What is in the store itself.
async fn content(network: &FaultStore<MemoryStore>) -> Option<Bytes> {
    read(network.store()).await.unwrap()
}

// ===== the store =====

#[tokio::test(start_paused = true)]
async fn store_without_faults_keeps_the_contract_of_a_store() {
    testing::store::keeps_its_contract(&network(), async |time| tokio::time::sleep(time).await).await; // virtual
}

#[tokio::test(start_paused = true)]
async fn store_that_only_delays_and_reorders_keeps_the_contract_too() {
    let network = network();
    network.longest(Duration::from_micros(1), SECOND);
    network.rate(Fault::Delay, 0.5);
    network.rate(Fault::Reorder, 0.5);
    testing::store::keeps_its_contract(&network, async |time| tokio::time::sleep(time).await).await; // virtual
    assert!(network.met_with(Fault::Delay) > 0 && network.met_with(Fault::Reorder) > 0);
}

#[tokio::test(start_paused = true)]
async fn lost_call_is_not_heard_of_and_was_made_only_if_its_answer_was_lost() {
    for (fault, made) in [(Fault::LoseRequest, false), (Fault::LoseAnswer, true)] {
        let network = network();
        network.next(Calls::Writes, fault);
        timeout(SECOND, put(&network, b"new")).await.unwrap_err();
        assert_eq!(content(&network).await.is_some(), made, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn late_write_is_made_after_its_caller_is_gone_and_fences_still_hold_for_it() {
    let network = network();
    network.next(Calls::Writes, Fault::Late);
    timeout(Duration::ZERO, put(&network, b"late")).await.unwrap_err();
    assert_eq!(content(&network).await, None);
    tokio::time::sleep(network.longest_lateness()).await; // virtual
    assert_eq!(content(&network).await.as_deref(), Some(&b"late"[..]));

    let fence = network.get_many(&["name"], &[]).await.unwrap().entries[0].fence;
    network.next(Calls::Writes, Fault::Late);
    let old = Put::new("name", Bytes::from_static(b"old"), MINUTE).only_if(fence);
    timeout(Duration::ZERO, network.put_if(old)).await.unwrap_err();
    network.remove_many(&["name"], MINUTE).await.unwrap();
    tokio::time::sleep(network.longest_lateness()).await; // virtual
    assert_eq!(content(&network).await, None, "a removal came in between");
}

#[tokio::test(start_paused = true)]
async fn late_invalidations_are_made_as_well() {
    let network = network();
    put(&network, b"entry").await.unwrap();
    let stamp = network.get_many(&[], &["stamp"]).await.unwrap().stamps[0];
    network.next(Calls::Writes, Fault::Late);
    network.next(Calls::Writes, Fault::Late);
    let change = Restamp { name: "stamp", invalidation: Invalidation::Remove, stamp: Stamp::random() };
    timeout(Duration::ZERO, network.remove_many(&["name"], MINUTE)).await.unwrap_err();
    timeout(Duration::ZERO, network.restamp(&[change])).await.unwrap_err();
    tokio::time::sleep(network.longest_lateness()).await; // virtual
    let found = network.get_many(&["name"], &["stamp"]).await.unwrap();
    assert!(found.entries[0].entry.is_none() && found.stamps[0] != stamp);
}

#[tokio::test(start_paused = true)]
async fn reordered_call_lets_the_next_one_pass() {
    let network = network();
    network.next(Calls::Writes, Fault::Reorder);
    let (first, second) = tokio::join!(put(&network, b"first"), put(&network, b"second"));
    first.unwrap();
    second.unwrap();
    assert_eq!(content(&network).await.as_deref(), Some(&b"first"[..]));
}

#[tokio::test(start_paused = true)]
async fn garbled_entry_differs_and_is_left_whole_in_the_store() {
    let network = network();
    put(&network, b"0123456789").await.unwrap();
    for _ in 0..100 {
        network.next(Calls::Reads, Fault::Garble);
        assert_ne!(read(&network).await.unwrap().as_deref(), Some(&b"0123456789"[..]));
        assert_eq!(content(&network).await.as_deref(), Some(&b"0123456789"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_and_broken_connection_are_told_by_their_kind() {
    let network = network();
    network.next(Calls::All, Fault::Refuse);
    assert_eq!(read(&network).await.unwrap_err().kind(), ErrorKind::Refused);
    let mut made = 0;
    for _ in 0..100 {
        network.store().remove_many(&["name"], SECOND).await.unwrap();
        network.next(Calls::All, Fault::Break);
        assert_eq!(put(&network, b"x").await.unwrap_err().kind(), ErrorKind::Unavailable);
        made += usize::from(content(&network).await.is_some());
    }
    assert!((20..80).contains(&made), "made {made} of 100 times");
}

#[tokio::test(start_paused = true)]
async fn cut_concerns_one_node_and_what_was_said() {
    let here = network();
    let there = here.node();
    here.cut(Calls::Writes);
    timeout(SECOND, put(&here, b"x")).await.unwrap_err();
    assert_eq!(read(&here).await.unwrap(), None);
    put(&there, b"y").await.unwrap();
    here.cut(Calls::All);
    timeout(SECOND, here.ping()).await.unwrap_err();
    here.join();
    assert_eq!(read(&here).await.unwrap().as_deref(), Some(&b"y"[..]));
}

#[tokio::test(start_paused = true)]
async fn same_seed_gives_the_same_faults_and_another_gives_others() {
    let run = async |seed| {
        let network = FaultStore::new(MemoryStore::new(Clock::tokio()), seed);
        network.rate(Fault::Break, 0.2);
        network.rate(Fault::Refuse, 0.2);
        network.rate(Fault::LoseAnswer, 0.2);
        let mut ends = Vec::new();
        for _ in 0..200 {
            let end = timeout(SECOND, network.ping()).await.map(|end| end.map_err(|error| error.kind()));
            ends.push(end.map_err(|_| "silence"));
        }
        ends
    };
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}

// ===== the proxy =====

/// What comes back for `PING`, as long as somebody says something within a while.
async fn ping(client: &mut TcpStream) -> Option<Vec<u8>> {
    client.write_all(b"PING\r\n").await.ok()?;
    let mut answer = vec![0; 7];
    // Long enough for a slow machine to answer; a stall takes all of it.
    let read = timeout(Duration::from_millis(500), client.read_exact(&mut answer)).await;
    read.ok()?.ok().map(|_| answer)
}

async fn connect(proxy: &FaultProxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

const PONG: &[u8] = b"+PONG\r\n";

#[tokio::test]
async fn proxy_passes_stalls_garbles_refuses_and_cuts() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(local(server.port())).await.unwrap();
    let mut client = connect(&proxy).await;
    assert_eq!(ping(&mut client).await.as_deref(), Some(PONG));

    proxy.set(Weather::Garble(3));
    let garbled = ping(&mut client).await.unwrap();
    assert_ne!(garbled, PONG);

    proxy.set(Weather::Stall);
    let mut another = connect(&proxy).await;
    assert_eq!(ping(&mut client).await, None);
    assert_eq!(ping(&mut another).await, None, "accepted, and says nothing");
    proxy.set(Weather::Clear);
    // What was sent meanwhile is answered.
    let mut answer = [0; 7];
    another.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, PONG);

    for weather in [Weather::Throttle(100), Weather::Delay(Duration::from_millis(50))] {
        proxy.set(weather);
        let mut client = connect(&proxy).await;
        let clock = Clock::tokio();
        assert_eq!(ping(&mut client).await.as_deref(), Some(PONG));
        let took = clock.now().since(Instant::default());
        assert!(took >= Duration::from_millis(100), "{weather:?}: {took:?}");
    }

    proxy.set(Weather::Clear);
    let mut client = connect(&proxy).await;
    assert_eq!(ping(&mut client).await.as_deref(), Some(PONG));
    proxy.cut();
    assert_eq!(ping(&mut client).await, None);
    let mut client = connect(&proxy).await;
    assert_eq!(ping(&mut client).await.as_deref(), Some(PONG), "a new one");

    proxy.set(Weather::Refuse);
    assert_eq!(ping(&mut client).await, None);
    let mut client = connect(&proxy).await;
    assert!(!matches!(client.read(&mut [0; 7]).await, Ok(1..)), "closed at once");
}

#[tokio::test]
async fn proxy_that_is_dropped_closes_its_connections_and_its_port() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(local(server.port())).await.unwrap();
    let mut client = connect(&proxy).await;
    assert_eq!(ping(&mut client).await.as_deref(), Some(PONG));
    let address = proxy.address();
    drop(proxy);
    assert!(!matches!(client.read(&mut [0; 7]).await, Ok(1..)));
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn proxy_stands_before_postgresql_as_well() {
    let server = PostgresServer::start();
    let proxy = FaultProxy::start(local(server.port())).await.unwrap();
    let mut client = connect(&proxy).await;
    // The request for encryption, which a server without a certificate answers with one byte.
    client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'N');
    assert_eq!((proxy.accepted(), proxy.carried()), (1, 9));
}
