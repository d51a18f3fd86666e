//! The store in Redis against servers in every state: clusters, replicas, full ones, silent ones, with TLS and users.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bb8::ManageConnection as _;
use mcp_perf::{
    ErrorKind,
    cache::{Invalidation, Put, Restamp, Stamp, Store, Written},
    clock::{Clock, Instant},
    redis::{Closed, RedisManager, RedisStore, Stats},
    testing::{self, FaultProxy, Weather},
};
use redis::{FromRedisValue, aio::MultiplexedConnection};
use support::{certificate::Certificate, process::free_ports, redis::RedisServer, wait::until};
use tokio::{net::TcpListener, task::JoinHandle};

const MINUTE: Duration = Duration::from_secs(60);

async fn ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, command: &str) -> T {
    let mut words = command.split(' ');
    redis::cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>()).query_async(redis).await.unwrap()
}

async fn put(store: &RedisStore, name: &str, bytes: &'static [u8]) -> Result<Written, mcp_perf::Error> {
    store.put_if(Put::new(name, bytes.into(), MINUTE)).await
}

async fn read(store: &RedisStore, name: &str) -> Result<Option<Vec<u8>>, mcp_perf::Error> {
    let found = store.get_many(&[name], &["epoch"]).await?;
    Ok(found.entries[0].entry.as_ref().map(|entry| entry.bytes.to_vec()))
}

/// By as many callers at once.
fn eight_reads(store: &RedisStore) -> Vec<JoinHandle<Result<Option<Vec<u8>>, mcp_perf::Error>>> {
    let read = |_| {
        let store = store.clone();
        tokio::spawn(async move { read(&store, "name").await })
    };
    (0..8).map(read).collect()
}

/// How often the server ran a command.
async fn runs(redis: &mut MultiplexedConnection, command: &str) -> u64 {
    let stats: String = ask(redis, "INFO commandstats").await;
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn reads_at_the_same_time_are_few_questions_and_a_hit_writes_nothing() {
    let server = RedisServer::start();
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    let names: Vec<String> = (0..100).map(|name| format!("name-{name}")).collect();
    for name in &names {
        put(&store, name, b"value").await.unwrap();
        read(&store, name).await.unwrap();
    }
    let () = ask(&mut redis, "CONFIG RESETSTAT").await;
    let reads = names.iter().map(|name| {
        let (store, name) = (store.clone(), name.clone());
        tokio::spawn(async move { read(&store, &name).await.unwrap() })
    });
    for found in reads.collect::<Vec<_>>() {
        assert_eq!(found.await.unwrap().as_deref(), Some(&b"value"[..]));
    }
    // The first few are sent as they come; all others go together, in a few waves.
    let (times, gets) = (runs(&mut redis, "time").await, runs(&mut redis, "mget").await);
    assert!(times <= 25 && gets <= 25, "{times} questions, {gets} MGET");
    assert_eq!(runs(&mut redis, "set").await, 0);
}

#[tokio::test]
async fn more_names_than_fit_one_question_are_read_in_their_order() {
    let server = RedisServer::start();
    let store = RedisStore::new(&server.url()).unwrap();
    put(&store, "1234", b"value").await.unwrap();
    let names: Vec<String> = (0..2_500).map(|name| name.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let found = store.get_many(&names, &names).await.unwrap();
    let present: Vec<usize> =
        (0..found.entries.len()).filter(|place| found.entries[*place].entry.is_some()).collect();
    assert_eq!((found.entries.len(), found.stamps.len(), present), (2_500, 2_500, vec![1_234]));
    let nothing = store.get_many(&[], &[]).await.unwrap();
    assert!(nothing.entries.is_empty() && nothing.stamps.is_empty());
}

#[tokio::test]
async fn caller_that_goes_away_costs_the_others_of_its_batch_nothing() {
    let server = RedisServer::start();
    let store = RedisStore::new(&server.url()).unwrap();
    put(&store, "name", b"value").await.unwrap();
    for _ in 0..50 {
        let reads = (0..40).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { read(&store, "name").await.unwrap() })
        });
        let reads: Vec<_> = reads.collect();
        tokio::task::yield_now().await;
        for (index, read) in reads.into_iter().enumerate() {
            if index % 2 == 0 {
                read.abort();
            } else {
                assert_eq!(read.await.unwrap().as_deref(), Some(&b"value"[..]));
            }
        }
    }
}

#[tokio::test]
async fn reads_under_way_on_a_connection_that_is_cut_are_made_again() {
    let server = RedisServer::start();
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    put(&store, "name", b"value").await.unwrap();
    for _ in 0..20 {
        let reads = (0..64).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { read(&store, "name").await.unwrap() })
        });
        let reads: Vec<_> = reads.collect();
        let _: i64 = ask(&mut redis, "CLIENT KILL TYPE normal SKIPME yes").await;
        for read in reads {
            assert_eq!(read.await.unwrap().as_deref(), Some(&b"value"[..]));
        }
    }
}

#[tokio::test]
async fn what_is_large_has_a_connection_of_its_own() {
    let server = RedisServer::start();
    let store = RedisStore::new(&server.url()).unwrap().client_name("lanes").unwrap();
    let mut redis = server.connection().await;
    let connections = async |redis: &mut MultiplexedConnection| {
        let list: String = ask(redis, "CLIENT LIST").await;
        list.matches("name=lanes ").count()
    };
    put(&store, "small", b"value").await.unwrap();
    read(&store, "small").await.unwrap();
    assert_eq!(connections(&mut redis).await, 1);
    let large = vec![7; 3 << 20];
    // Written by another process, so that this one learns by reading.
    let other = RedisStore::new(&server.url()).unwrap();
    other.put_if(Put::new("large", large.clone().into(), MINUTE)).await.unwrap();
    assert_eq!(read(&store, "large").await.unwrap().as_ref(), Some(&large));
    assert_eq!(connections(&mut redis).await, 1);
    assert_eq!(read(&store, "large").await.unwrap().as_ref(), Some(&large));
    assert_eq!(connections(&mut redis).await, 2);
}

#[tokio::test]
async fn script_that_the_server_forgot_is_sent_again() {
    let server = RedisServer::start();
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    for _ in 0..2 {
        let stored = put(&store, "name", b"value").await.unwrap();
        assert!(matches!(stored, Written::Stored(_)));
        let () = ask(&mut redis, "SCRIPT FLUSH").await;
    }
}

/// A store, the same at the end of a way on which answers can be lost, and the way.
async fn near_and_far(server: &RedisServer) -> (RedisStore, RedisStore, FaultProxy) {
    let proxy = FaultProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await.unwrap();
    let far = RedisStore::new(&format!("redis://{}/", proxy.address())).unwrap();
    (RedisStore::new(&server.url()).unwrap(), far, proxy)
}

#[tokio::test]
async fn removal_that_is_made_twice_bars_what_began_before_a_removal_in_between() {
    let server = RedisServer::start();
    let (near, far, proxy) = near_and_far(&server).await;
    far.ping().await.unwrap();
    let fence = async || near.get_many(&["name"], &[]).await.unwrap().entries[0].fence;
    let before = fence().await;
    // The answer is still on its way when the question has arrived.
    proxy.set(Weather::Delay(Duration::from_millis(500)));
    let removing = tokio::spawn(async move { far.remove_many(&["name"], MINUTE).await });
    let arrived = async || {
        let seen = fence().await;
        (seen != before).then_some(seen)
    };
    let seen = until("the removal arrives", arrived).await;
    // A load begins, and another process removes.
    near.remove_many(&["name"], MINUTE).await.unwrap();
    proxy.set(Weather::Clear);
    // The answer is lost, and the call is made again.
    proxy.cut();
    removing.await.unwrap().unwrap();
    let old = Put::new("name", "old".into(), MINUTE).only_if(seen);
    assert_eq!(near.put_if(old).await.unwrap(), Written::Refused);
}

#[tokio::test]
async fn write_over_anything_that_is_made_twice_leaves_another_fence_each_time() {
    let server = RedisServer::start();
    let (near, far, proxy) = near_and_far(&server).await;
    put(&far, "other", b"the server knows the script").await.unwrap();
    let fence = async || near.get_many(&["name"], &[]).await.unwrap().entries[0].fence;
    let before = fence().await;
    proxy.set(Weather::Delay(Duration::from_millis(500)));
    let writing = tokio::spawn(async move { put(&far, "name", b"value").await });
    let arrived = async || {
        let seen = fence().await;
        (seen != before).then_some(seen)
    };
    let first = until("the write arrives", arrived).await;
    put(&near, "name", b"in between").await.unwrap();
    proxy.set(Weather::Clear);
    proxy.cut();
    let written = writing.await.unwrap().unwrap();
    let last = fence().await;
    assert_eq!(written, Written::Stored(last), "what is there is what its writer was told");
    assert_ne!(last, first);
}

#[tokio::test]
async fn write_whose_answer_was_lost_is_known_when_it_is_made_again() {
    let server = RedisServer::start();
    let (near, far, proxy) = near_and_far(&server).await;
    put(&far, "other", b"the server knows the script").await.unwrap();
    let fence = async || near.get_many(&["name"], &[]).await.unwrap().entries[0].fence;
    for is_removed in [false, true] {
        let before = fence().await;
        proxy.set(Weather::Delay(Duration::from_millis(500)));
        let far = far.clone();
        let write = async move { far.put_if(Put::new("name", "new".into(), MINUTE).only_if(before)).await };
        let writing = tokio::spawn(write);
        until("the write arrives", async || (fence().await != before).then_some(())).await;
        if is_removed {
            near.remove_many(&["name"], MINUTE).await.unwrap();
        }
        proxy.set(Weather::Clear);
        proxy.cut();
        let written = writing.await.unwrap().unwrap();
        let found = read(&near, "name").await.unwrap();
        if is_removed {
            assert_eq!((written, found), (Written::Refused, None));
        } else {
            assert_eq!((written, found), (Written::Stored(fence().await), Some(b"new".to_vec())));
        }
    }
}

#[tokio::test]
async fn stamp_that_is_written_twice_by_a_script_forgotten_in_between_is_another_one() {
    let server = RedisServer::start();
    let ((near, far, proxy), mut redis) = (near_and_far(&server).await, server.connection().await);
    let change = |name, stamp| Restamp { name, invalidation: Invalidation::Remove, stamp };
    far.restamp(&[change("other", Stamp::random())]).await.unwrap();
    let stamp = async || near.get_many(&[], &["tag"]).await.unwrap().stamps[0];
    let first = Stamp::random();
    proxy.set(Weather::Delay(Duration::from_millis(500)));
    let removing = tokio::spawn(async move { far.restamp(&[change("tag", first)]).await });
    until("the stamp arrives", async || (stamp().await == first).then_some(())).await;
    near.restamp(&[change("tag", Stamp::random())]).await.unwrap();
    let () = ask(&mut redis, "SCRIPT FLUSH").await;
    proxy.set(Weather::Clear);
    proxy.cut();
    removing.await.unwrap().unwrap();
    assert_ne!(stamp().await, first, "what was stored with it in between lives again");
}

#[tokio::test]
async fn nothing_that_comes_back_from_a_snapshot_equals_what_was_read_before() {
    let mut server = RedisServer::start();
    let (one, two) = (RedisStore::new(&server.url()).unwrap(), RedisStore::new(&server.url()).unwrap());
    put(&one, "name", b"value").await.unwrap();
    let found = async |store: &RedisStore| {
        let found = store.get_many(&["name"], &["tag"]).await.unwrap();
        (found.entries[0].fence, found.stamps[0])
    };
    let before = found(&one).await;
    assert_eq!(found(&two).await, before);
    let peeked = two.peek_many(&["name"], &["tag"]).await.unwrap();
    assert_eq!((peeked.entries[0].fence, peeked.stamps[0]), before);
    let () = ask(&mut server.connection().await, "SAVE").await;
    server.restart();
    until("the server is back", async || one.ping().await.ok()).await;
    let after = found(&one).await;
    assert_eq!(read(&one, "name").await.unwrap().as_deref(), Some(&b"value"[..]), "it did come back");
    assert!(after.0 != before.0 && after.1 != before.1);
    assert!(!after.1.to_bytes().iter().zip(before.1.to_bytes()).take(8).all(|(one, two)| *one == two));
    assert_eq!(found(&two).await, after, "and is the same to everybody");
    let late = Put::new("name", "late".into(), MINUTE).only_if(before.0);
    assert_eq!(one.put_if(late).await.unwrap(), Written::Refused);
    let put = Put::new("name", "new".into(), MINUTE).only_if(after.0);
    assert!(matches!(two.put_if(put).await.unwrap(), Written::Stored(_)));
}

/// A primary, a copy of it that others took for the primary for a while, and the first one again with what that had:
/// its connections have lived through all of it.
#[tokio::test]
async fn nothing_that_comes_back_from_a_replica_equals_what_was_read_before() {
    let (one, two) = (RedisServer::start(), RedisServer::start());
    let (mut at_one, mut at_two) = (one.connection().await, two.connection().await);
    let follow = async |redis: &mut MultiplexedConnection, server: &RedisServer| {
        let () = ask(redis, &format!("REPLICAOF 127.0.0.1 {}", server.port())).await;
        until("the copy is whole", async || {
            let info: String = ask(&mut redis.clone(), "INFO replication").await;
            info.contains("master_link_status:up").then_some(())
        })
        .await;
    };
    follow(&mut at_two, &one).await;
    let store = RedisStore::new(&one.url()).unwrap();
    put(&store, "name", b"value").await.unwrap();
    let before = store.get_many(&["name"], &["tag"]).await.unwrap();
    until("the copy has it", async || {
        let names: i64 = ask(&mut at_two.clone(), "DBSIZE").await;
        (names == 2).then_some(())
    })
    .await;
    let () = ask(&mut at_two, "REPLICAOF NO ONE").await;
    // What the copy has not heard of.
    store.remove_many(&["name"], MINUTE).await.unwrap();
    follow(&mut at_one, &two).await;
    let () = ask(&mut at_one, "REPLICAOF NO ONE").await;
    let after = until("it is noticed", async || {
        let found = store.get_many(&["name"], &["tag"]).await.ok()?;
        (found.stamps != before.stamps).then_some(found)
    })
    .await;
    assert!(after.entries[0].entry.is_some(), "the removal is lost");
    assert_ne!(after.entries[0].fence, before.entries[0].fence);
}

/// Somebody has to set it right, and until then nobody waits for a log to be filled.
#[tokio::test]
async fn server_that_does_not_let_us_in_is_not_asked_by_every_caller() {
    let server = RedisServer::start();
    let mut redis = server.connection().await;
    let () = ask(&mut redis, "CONFIG SET requirepass secret").await;
    let store = RedisStore::new(&server.url()).unwrap();
    let began = Clock::tokio();
    for _ in 0..200 {
        let error = read(&store, "name").await.unwrap_err();
        assert!(error.to_string().contains("NOAUTH"), "{error}");
    }
    let half_seconds = began.now().since(Instant::default()).as_millis() / 500;
    assert!(u128::from(store.stats().connect_failures) <= 1 + half_seconds, "{:?}", store.stats());
    let () = ask(&mut redis, "CONFIG SET requirepass ").await;
    until("it lets us in", async || read(&store, "name").await.ok()).await;
}

#[tokio::test]
async fn replica_is_left_by_those_who_only_read_and_not_begun_with() {
    let server = RedisServer::start();
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    put(&store, "name", b"value").await.unwrap();
    read(&store, "name").await.unwrap();
    let nowhere = free_ports().next().unwrap();
    let () = ask(&mut redis, &format!("REPLICAOF 127.0.0.1 {nowhere}")).await;
    let error = until("it is noticed", async || read(&store, "name").await.err()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let closed = store.stats().closed;
    assert!(closed.replaced > 0 && closed.lost == 0, "{closed:?}");
    let other = RedisStore::new(&server.url()).unwrap();
    let error = read(&other, "name").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("READONLY"), "{error}");
    let () = ask(&mut redis, "REPLICAOF NO ONE").await;
    assert_eq!(read(&other, "name").await.unwrap().as_deref(), Some(&b"value"[..]));
}

#[tokio::test]
async fn user_who_may_not_ask_for_the_history_is_served_without_it() {
    let server = RedisServer::start();
    let mut redis = server.connection().await;
    let () = ask(&mut redis, "ACL SETUSER narrow on >secret ~{mcp-perf}:* +@all -info").await;
    let store = RedisStore::new(&format!("redis://narrow:secret@127.0.0.1:{}", server.port())).unwrap();
    testing::store::keeps_its_contract(&store, async |time| tokio::time::sleep(time).await).await; // server time
}

/// Two nodes of one cluster, each with half of the slots.
async fn cluster() -> [(RedisServer, MultiplexedConnection, String); 2] {
    let mut nodes = Vec::new();
    for slots in ["0 8191", "8192 16383"] {
        let server = RedisServer::start_with(&["--cluster-enabled", "yes"]);
        let mut redis = server.connection().await;
        let () = ask(&mut redis, &format!("CLUSTER ADDSLOTSRANGE {slots}")).await;
        let id: String = ask(&mut redis, "CLUSTER MYID").await;
        nodes.push((server, redis, id));
    }
    let port = nodes[1].0.port();
    let () = ask(&mut nodes[0].1, &format!("CLUSTER MEET 127.0.0.1 {port}")).await;
    for (_, redis, _) in &nodes {
        until("the cluster is formed", async || {
            let info: String = ask(&mut redis.clone(), "CLUSTER INFO").await;
            let is_up = info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2");
            is_up.then_some(())
        })
        .await;
    }
    nodes.try_into().unwrap_or_else(|_| panic!("two nodes"))
}

#[tokio::test]
async fn store_finds_its_node_of_a_cluster_and_follows_the_names_to_another() {
    let [mut one, mut two] = cluster().await;
    let slot: i64 = ask(&mut one.1, "CLUSTER KEYSLOT {mcp-perf}:x").await;
    if slot > 8191 {
        std::mem::swap(&mut one, &mut two);
    }
    // One holds the names. The first of these stores was told the wrong address, the second the right one.
    for server in [&two.0, &one.0] {
        let () = ask(&mut one.1, "FLUSHALL").await;
        let store = RedisStore::new(&server.url()).unwrap();
        testing::store::keeps_its_contract(&store, async |time| tokio::time::sleep(time).await).await; // server time
        let names: Vec<String> = (0..200).map(|name| name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        store.get_many(&names, &names).await.unwrap();
    }
    let store = RedisStore::new(&one.0.url()).unwrap();
    put(&store, "name", b"value").await.unwrap();

    // While a slot moves, nobody knows where a name is that is not here.
    let () = ask(&mut two.1, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", one.2)).await;
    let () = ask(&mut one.1, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", two.2)).await;
    for (names, answer) in [(&["name", "absent"][..], "TRYAGAIN"), (&["absent"], "ASK")] {
        let error = store.get_many(names, &[]).await.unwrap_err();
        // Not away: what is here is answered.
        let is_refused = error.kind() == ErrorKind::Refused && error.to_string().contains(answer);
        assert!(is_refused, "{error}");
    }
    let stats: String = ask(&mut one.1, "INFO commandstats").await;
    // One that connects meanwhile finds what is here.
    let late = RedisStore::new(&one.0.url()).unwrap();
    late.ping().await.unwrap();
    for store in [&store, &late] {
        assert!(store.get_many(&["name"], &[]).await.unwrap().entries[0].entry.is_some());
    }
    let reads = stats.lines().find(|line| line.starts_with("cmdstat_mget:")).unwrap();
    assert!(reads.contains("rejected_calls=6,"), "each tried again, twice: {reads}");

    let () = ask(&mut one.1, "FLUSHALL").await;
    for node in [&mut two.1, &mut one.1] {
        let () = ask(node, &format!("CLUSTER SETSLOT {slot} STABLE")).await;
        let () = ask(node, &format!("CLUSTER SETSLOT {slot} NODE {}", two.2)).await;
    }
    let moved = async || put(&store, "name", b"moved").await.ok();
    until("both nodes know where the slot is", moved).await;
    assert_eq!(read(&store, "name").await.unwrap().as_deref(), Some(&b"moved"[..]));
    let keys: i64 = ask(&mut two.1, "DBSIZE").await;
    assert!(keys > 0, "at the node that the names moved to");
}

#[tokio::test]
async fn cluster_that_does_not_serve_the_slot_is_away_and_not_broken() {
    let server = RedisServer::start_with(&["--cluster-enabled", "yes"]);
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    let error = read(&store, "name").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable() && error.to_string().contains("CLUSTERDOWN"), "{error}");
    let () = ask(&mut redis, "CLUSTER ADDSLOTSRANGE 0 16383").await;
    until("the cluster is up", async || read(&store, "name").await.ok()).await;
}

#[tokio::test]
async fn primary_that_became_a_replica_is_left_for_another_connection() {
    let server = RedisServer::start();
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    put(&store, "name", b"value").await.unwrap();
    let connections = async |redis: &mut MultiplexedConnection| {
        let stats: String = ask(redis, "INFO stats").await;
        let count = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        count.unwrap().parse::<u64>().unwrap()
    };
    let before = connections(&mut redis).await;
    let nowhere = free_ports().next().unwrap();
    let () = ask(&mut redis, &format!("REPLICAOF 127.0.0.1 {nowhere}")).await;
    let error = put(&store, "name", b"other").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("READONLY"), "{error}");
    assert!(connections(&mut redis).await > before, "the address was asked again");
    let change = Restamp { name: "tag", invalidation: Invalidation::Remove, stamp: Stamp::random() };
    assert_eq!(store.restamp(&[change]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let () = ask(&mut redis, "REPLICAOF NO ONE").await;
    put(&store, "name", b"other").await.unwrap();
    assert_eq!(read(&store, "name").await.unwrap().as_deref(), Some(&b"other"[..]));
}

#[tokio::test]
async fn what_is_absent_is_read_again_and_what_is_there_is_not() {
    let server = RedisServer::start();
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    let names: Vec<String> = (0..20).map(|name| name.to_string()).collect();
    for name in &names {
        let large = Put::new(name, vec![7; 10_000].into(), MINUTE);
        store.put_if(large).await.unwrap();
    }
    let sent = async |redis: &mut MultiplexedConnection| {
        let statistics: String = ask(redis, "INFO stats").await;
        let sent = statistics.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
        sent.unwrap().parse::<u64>().unwrap()
    };
    let wanted: Vec<&str> = names.iter().map(String::as_str).chain(["absent", "nor this"]).collect();
    store.get_many(&[], &["stamp"]).await.unwrap();
    let before = sent(&mut redis).await;
    let found = store.get_many(&wanted, &["stamp", "another"]).await.unwrap();
    let sent = sent(&mut redis).await - before;
    assert!((200_000..300_000).contains(&sent), "{sent} bytes");
    let are_there: Vec<bool> = found.entries.iter().map(|slot| slot.entry.is_some()).collect();
    assert_eq!(are_there, [vec![true; 20], vec![false; 2]].concat());
    assert_eq!(found.stamps, store.get_many(&[], &["stamp", "another"]).await.unwrap().stamps);
    // The fences are those of what was noted.
    for (index, name) in [(20, "absent"), (21, "nor this")] {
        let late = Put::new(name, "late".into(), MINUTE).only_if(found.entries[index].fence);
        assert!(matches!(store.put_if(late).await.unwrap(), Written::Stored(_)));
    }
}

/// How many commands the server refused since it was full.
async fn refusals(redis: &mut MultiplexedConnection) -> u64 {
    let statistics: String = ask(redis, "INFO errorstats").await;
    let count = statistics.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
    count.unwrap().parse().unwrap()
}

#[tokio::test]
async fn full_server_refuses_writes_and_answers_reads() {
    let server = RedisServer::start();
    let (store, mut redis) = (RedisStore::new(&server.url()).unwrap(), server.connection().await);
    put(&store, "name", b"value").await.unwrap();
    read(&store, "name").await.unwrap();
    let () = ask(&mut redis, "CONFIG SET maxmemory-policy noeviction").await;
    let () = ask(&mut redis, "CONFIG SET maxmemory 1").await;
    let change = Restamp { name: "tag", invalidation: Invalidation::Expire, stamp: Stamp::random() };
    for error in [
        put(&store, "name", b"other").await.unwrap_err(),
        store.remove_many(&["name"], MINUTE).await.unwrap_err(),
        store.restamp(&[change]).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("OOM"), "{error}");
    }
    assert_eq!(read(&store, "name").await.unwrap().as_deref(), Some(&b"value"[..]));
    let refused = store.get_many(&["name"], &["absent"]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "no stamp, and nothing that could hold by it");
    let absent = store.get_many(&["absent"], &[]).await.unwrap();
    assert!(absent.entries[0].entry.is_none());
    let put = Put::new("absent", "late".into(), MINUTE).only_if(absent.entries[0].fence);
    let refused = store.put_if(put).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("OOM"), "{refused}");
    // What would be refused again is not tried for each that is absent.
    let before = refusals(&mut redis).await;
    for _ in 0..20 {
        assert!(read(&store, "another").await.unwrap().is_none());
    }
    let tried = refusals(&mut redis).await - before;
    assert!(tried <= 2, "{tried} of 20");
    let () = ask(&mut redis, "CONFIG SET maxmemory 0").await;
    let put = Put::new("absent", "late".into(), MINUTE).only_if(absent.entries[0].fence);
    let refused = store.put_if(put).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "nothing is there to compare with, and nobody else wrote");
}

#[tokio::test]
async fn user_password_database_and_name_are_taken_from_the_url_and_shown_nowhere() {
    let server = RedisServer::start();
    let mut redis = server.connection().await;
    let () = ask(&mut redis, "ACL SETUSER ca@he on >p@s/s:w%rd ~{mcp-perf}:* +@all -pexpire").await;
    let at = |login: &str| format!("redis://{login}@127.0.0.1:{}/3", server.port());
    let store = RedisStore::new(&at("ca%40he:p%40s%2Fs%3Aw%25rd")).unwrap().client_name("me").unwrap();
    put(&store, "name", b"value").await.unwrap();
    assert_eq!(read(&store, "name").await.unwrap().as_deref(), Some(&b"value"[..]));
    let list: String = ask(&mut redis, "CLIENT LIST").await;
    assert!(list.lines().any(|line| line.contains(" name=me ") && line.contains(" db=3 ")), "{list}");

    for (login, code) in [("ca%40he:hunter2", "WRONGPASS"), ("nobody:hunter2", "WRONGPASS")] {
        let store = RedisStore::new(&at(login)).unwrap();
        let error = store.ping().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(code), "{error}");
        assert!(!format!("{error} {error:?} {store:?}").contains("hunter2"));
    }
    // One that needs no password is not taken for the default user, who may do more.
    let () = ask(&mut redis, "ACL SETUSER plain on nopass ~* +@all").await;
    let manager = RedisManager::new(&at("plain")).unwrap();
    let who = manager.connect().await.unwrap().query::<String>(redis::cmd("ACL").arg("WHOAMI")).await;
    assert_eq!(who.unwrap(), "plain");
    let () = ask(&mut redis, "CONFIG SET requirepass secret").await;
    let error = RedisStore::new(&server.url()).unwrap().ping().await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("NOAUTH")), (ErrorKind::Refused, true), "{error}");
}

#[tokio::test]
async fn what_the_user_may_not_do_is_refused_by_its_kind() {
    let server = RedisServer::start();
    let mut redis = server.connection().await;
    let () = ask(&mut redis, "ACL SETUSER narrow on >secret ~{mcp-perf}:* +@all -mget").await;
    let () = ask(&mut redis, "ACL SETUSER elsewhere on >secret ~{other}:* +@all").await;
    for (user, operation) in [("narrow", "read"), ("elsewhere", "read"), ("elsewhere", "write")] {
        let url = format!("redis://{user}:secret@127.0.0.1:{}", server.port());
        let store = RedisStore::new(&url).unwrap();
        let error = match operation {
            "read" => read(&store, "private-name").await.map(drop),
            _ => put(&store, "private-name", b"value").await.map(drop),
        };
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(error.to_string(), format!("redis refused ({operation}): NOPERM"));
        assert!(!format!("{error:?}").contains("private-name"));
    }
}

#[tokio::test]
async fn server_that_falls_silent_is_given_up_and_used_again_when_it_speaks() {
    let server = RedisServer::start();
    let store = RedisStore::new(&server.url()).unwrap();
    put(&store, "name", b"value").await.unwrap();
    server.pause();
    let reads = eight_reads(&store);
    for read in reads {
        let read = tokio::time::timeout(MINUTE, read).await.expect("the connection is given up");
        assert_eq!(read.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    }
    server.resume();
    assert_eq!(read(&store, "name").await.unwrap().as_deref(), Some(&b"value"[..]));
}

#[tokio::test]
async fn stats_tell_what_the_connections_do_and_how_they_ended() {
    let mut server = RedisServer::start();
    let store = RedisStore::new(&server.url()).unwrap();
    assert_eq!(store.stats(), Stats::default(), "it was not used");
    put(&store, "name", b"value").await.unwrap();
    // That there is no stamp is noted by the first to find out.
    read(&store, "name").await.unwrap();
    let before = store.stats();
    for _ in 0..9 {
        read(&store, "name").await.unwrap();
    }
    let stats = store.clone().stats();
    assert_eq!([stats.open, stats.waiting, stats.queued], [1, 0, 0]);
    assert_eq!((stats.trips - before.trips, stats.retries), (9, before.retries));
    assert_eq!((stats.connects, stats.connect_failures, stats.closed), (1, 0, Closed::default()));
    assert!(Duration::ZERO < stats.trip_p50 && stats.trip_p50 <= stats.trip_p99, "{stats:?}");
    assert!(Duration::ZERO < stats.connect_p50 && stats.connect_p50 <= stats.connect_p99, "{stats:?}");

    server.pause();
    let reads = eight_reads(&store);
    until("all wait", async || (store.stats().waiting == 8).then_some(())).await;
    for read in reads {
        read.await.unwrap().unwrap_err();
    }
    let stats = store.stats();
    assert_eq!([stats.open, stats.waiting, stats.queued], [0, 0, 0]);
    assert_eq!((stats.closed.silent, stats.closed.lost, stats.connect_failures), (1, 0, 1), "{stats:?}");
    assert_eq!(stats.retries, before.retries + 8);
    server.resume();
    read(&store, "name").await.unwrap();
    assert_eq!((store.stats().open, store.stats().connects), (1, 2));

    server.kill();
    read(&store, "name").await.unwrap_err();
    let stats = store.stats();
    assert_eq!((stats.open, stats.closed.silent, stats.closed.lost), (0, 1, 1), "{stats:?}");
    assert_eq!(stats.connect_failures, 2, "{stats:?}");
}

/// A value on a long way: the server says nothing before it has the last byte.
#[tokio::test]
async fn value_that_takes_its_time_to_arrive_is_no_silence() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await.unwrap();
    let store = RedisStore::new(&format!("redis://{}/", proxy.address())).unwrap();
    let large = vec![7; 4 * 1024 * 1024];
    let put = async || store.put_if(Put::new("large", large.clone().into(), MINUTE)).await;
    put().await.unwrap();
    read(&store, "name").await.unwrap();
    proxy.set(Weather::Throttle(3_000_000)); // a second and a half
    put().await.unwrap();
    // Both are on their way when the first of them is answered.
    let (one, two) = tokio::join!(put(), put());
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(store.stats().closed, Closed::default());
    proxy.set(Weather::Stall);
    read(&store, "name").await.unwrap_err();
    assert!(store.stats().closed.silent > 0, "where little was sent it is");
}

/// What `stop-writes-on-bgsave-error` makes of a disk that is full.
#[tokio::test]
async fn server_that_cannot_save_is_read_over_new_connections_too() {
    let folder = tempfile::tempdir().unwrap();
    let server = RedisServer::start_with(&["--dir", folder.path().to_str().unwrap(), "--save", "3600 1"]);
    let mut redis = server.connection().await;
    let store = RedisStore::new(&server.url()).unwrap();
    put(&store, "name", b"value").await.unwrap();
    read(&store, "name").await.unwrap(); // which notes the stamp
    drop(folder);
    let () = ask(&mut redis, "BGSAVE").await;
    let other = RedisStore::new(&server.url()).unwrap();
    let refused = until("it notices", async || put(&store, "name", b"other").await.err()).await;
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert!(read(&other, "name").await.unwrap().is_some());
    other.ping().await.expect("or it would be left alone for as long as it cannot save");
    let manager = RedisManager::new(&server.url()).unwrap();
    let mut own = manager.connect().await.unwrap();
    manager.is_valid(&mut own).await.unwrap();
}

#[tokio::test]
async fn what_answers_nothing_or_is_no_redis_is_an_error_in_time() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let store = RedisStore::new(&format!("redis://{}", silent.local_addr().unwrap())).unwrap();
    // All of them share one attempt: in turn they would not be through in time.
    let asked = (0..60).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.ping().await.unwrap_err() })
    });
    for asked in asked.collect::<Vec<_>>() {
        let error = tokio::time::timeout(MINUTE, asked).await.expect("one time-out for all").unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("in time"), "{error}");
    }

    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let store = RedisStore::new(&format!("redis://{}", other.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = other.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = store.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no Redis"), "{error}");
}

#[tokio::test]
async fn tls_checks_the_certificate_by_the_given_authority_or_the_roots_of_the_system() {
    let Certificate { certificate, key } = Certificate::of_localhost();
    let server = RedisServer::start_with_tls(&certificate, &key);
    let url = server.tls_url().unwrap();
    let store = RedisStore::new(&url).unwrap().certificate_authority(&certificate).unwrap();
    testing::store::keeps_its_contract(&store, async |time| tokio::time::sleep(time).await).await; // server time

    let unknown = RedisStore::new(&url).unwrap();
    let error = unknown.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("TLS"), "{error}");
    let another_name = RedisStore::new(&url.replace("localhost", "127.0.0.1")).unwrap();
    let another_name = another_name.certificate_authority(&certificate).unwrap();
    assert!(another_name.ping().await.unwrap_err().to_string().contains("TLS"));

    let plain = RedisStore::new("redis://localhost").unwrap();
    for error in [
        plain.certificate_authority(&certificate).unwrap_err(),
        unknown.certificate_authority("no certificate").unwrap_err(),
    ] {
        assert!(error.to_string().starts_with("certificate_authority: "), "{error}");
    }
    assert!(RedisStore::new("rediss://:hunter2@localhost/#insecure").is_err());
}

#[test]
fn client_name_is_checked() {
    for name in ["", "a b", "a\n", "ü", &"x".repeat(65)] {
        let error = RedisStore::new("redis://localhost").unwrap().client_name(name).unwrap_err();
        assert!(error.to_string().starts_with("client_name: "), "{error}");
    }
}
