//! Connections to a real Redis that one caller has to itself: what is left on one is nothing to the next caller.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{
    error::Error as _,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    pool::{Connection, Pool, PoolBuilder},
    redis::RedisManager,
    testing::{FaultProxy, Weather},
};
use redis::{Cmd, FromRedisValue, cmd};
use support::{redis::RedisServer, wait::until};
use tokio::time::timeout;

/// Longer than anything here takes, and shorter than the pools wait.
const GENEROUS: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(90);

type Redis = Pool<RedisManager>;

fn builder(url: &str) -> PoolBuilder<RedisManager> {
    let manager = RedisManager::new(url).unwrap();
    Pool::builder("test", manager).timeout(PATIENCE).connects(8, 1_000.0)
}

fn pool(server: &RedisServer, size: u32) -> Redis {
    builder(&server.url()).size(size).build().unwrap()
}

async fn proxy(server: &RedisServer) -> FaultProxy {
    FaultProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await.unwrap()
}

async fn get(pool: &Redis) -> Result<Connection<RedisManager>, Error> {
    timeout(GENEROUS, pool.get()).await.expect("the pool hangs")
}

async fn ask<T: FromRedisValue>(connection: &mut Connection<RedisManager>, command: &Cmd) -> T {
    timeout(GENEROUS, connection.query(command)).await.expect("Redis hangs").unwrap()
}

async fn echo(connection: &mut Connection<RedisManager>, word: &str) -> String {
    ask(connection, cmd("ECHO").arg(word)).await
}

/// How many clients wait in a command.
async fn blocked(server: &RedisServer) -> usize {
    let info: String = cmd("INFO").arg("clients").query_async(&mut server.connection().await).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("blocked_clients:")).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn command_whose_caller_has_gone_takes_nothing_and_its_answer_is_nobody_elses() {
    let server = RedisServer::start();
    let pool = pool(&server, 1);
    for round in 1..=3 {
        let mut connection = get(&pool).await.unwrap();
        {
            let pop = Cmd::blpop("jobs", 0.0);
            let mut waits = std::pin::pin!(connection.query::<Option<(String, String)>>(&pop));
            tokio::select! {
                answer = &mut waits => panic!("it was answered: {answer:?}"),
                () = until("it waits", async || (blocked(&server).await == 1).then_some(())) => {}
            }
        }
        let error = connection.query::<String>(&cmd("PING")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected, "nor is it the same caller's");
        // Whether or not the connection is returned.
        until("the server has let go", async || (blocked(&server).await == 0).then_some(())).await;

        let mut others = server.connection().await;
        () = Cmd::rpush("jobs", "job").query_async(&mut others).await.unwrap();
        drop(connection);
        assert_eq!(pool.stats().closed.broken, round);
        let mut connection = get(&pool).await.unwrap();
        assert_eq!(echo(&mut connection, "mine").await, "mine");
        let job: Option<(String, String)> = ask(&mut connection, &Cmd::blpop("jobs", 1.0)).await;
        assert_eq!(job.unwrap().1, "job");
    }
}

/// After a failover the old primary answers everybody, and carries nothing out.
#[tokio::test]
async fn refusal_to_write_costs_every_connection_that_leads_there_and_seldom() {
    let server = RedisServer::start();
    let pool = pool(&server, 3);
    let all = async || {
        let connections = [get(&pool).await.unwrap(), get(&pool).await.unwrap(), get(&pool).await.unwrap()];
        connections.map(|connection| connection.id())
    };
    let mut before = all().await;
    before.sort_unstable();
    let mut others = server.connection().await;
    let () = cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).query_async(&mut others).await.unwrap();
    for round in 0..3 {
        let mut connection = get(&pool).await.unwrap();
        let error = connection.query::<()>(&Cmd::set("key", round)).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("READONLY"), "{error}");
    }
    let () = cmd("REPLICAOF").arg(&["NO", "ONE"]).query_async(&mut others).await.unwrap();
    let mut after = all().await;
    after.sort_unstable();
    assert!(before.iter().all(|id| !after.contains(id)), "{before:?}, {after:?}");
    assert!(after.iter().all(|id| *id < 8), "once, however often it is refused: {after:?}");
}

#[tokio::test]
async fn callers_who_wait_on_the_server_do_not_hold_up_each_other() {
    let server = RedisServer::start();
    let pool = pool(&server, 3);
    let wait = async |queue: &str| {
        let mut connection = get(&pool).await.unwrap();
        ask::<(String, String)>(&mut connection, &Cmd::blpop(queue, 0.0)).await.1
    };
    let push = async {
        until("both wait", async || (blocked(&server).await == 2).then_some(())).await;
        let mut connection = get(&pool).await.unwrap();
        for queue in ["b", "a"] {
            ask::<()>(&mut connection, &Cmd::rpush(queue, format!("for {queue}"))).await;
        }
    };
    let (a, b, ()) = tokio::join!(wait("a"), wait("b"), push);
    assert_eq!((a.as_str(), b.as_str()), ("for a", "for b"));
    let stats = pool.stats();
    assert_eq!((stats.connects, stats.open, stats.in_use, stats.returns), (3, 3, 0, 3));
}

#[tokio::test]
async fn answer_that_was_half_read_and_connection_that_was_cut_are_nobody_elses() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let pool = builder(&format!("redis://{}/", proxy.address())).size(1).build().unwrap();
    let value = "x".repeat(1 << 20);
    ask::<()>(&mut get(&pool).await.unwrap(), &Cmd::set("large", &value)).await;

    proxy.set(Weather::Throttle(64 * 1024));
    let mut connection = get(&pool).await.unwrap();
    let carried = proxy.carried();
    let read = Cmd::get("large");
    {
        let mut reads = std::pin::pin!(connection.query::<String>(&read));
        tokio::select! {
            answer = &mut reads => panic!("it is all here: {:?}", answer.map(|value| value.len())),
            () = until("some is here", async || (proxy.carried() > carried + 20_000).then_some(())) => {}
        }
    }
    drop(connection);
    proxy.set(Weather::Clear);
    let mut connection = get(&pool).await.unwrap();
    assert_eq!(echo(&mut connection, "mine").await, "mine");
    assert_eq!(ask::<String>(&mut connection, &read).await, value);

    proxy.set(Weather::Refuse);
    let error = timeout(GENEROUS, connection.query::<String>(&read)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.is_retryable() && error.source().is_some());
    drop(connection);
    assert_eq!(pool.stats().closed.broken, 2);
    proxy.set(Weather::Clear);
    let mut connection = until("it connects", async || get(&pool).await.ok()).await;
    assert_eq!(echo(&mut connection, "mine").await, "mine");
}

#[tokio::test]
async fn idle_connection_that_the_server_has_closed_is_not_lent() {
    let server = RedisServer::start();
    // Never asked whether it works.
    let pool = builder(&server.url()).size(1).test_after(Duration::MAX).build().unwrap();
    drop(get(&pool).await.unwrap());
    let mut others = server.connection().await;
    let closed: u32 = cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query_async(&mut others)
        .await
        .unwrap();
    assert_eq!(closed, 1);
    until("it is found out", async || {
        let mut connection = get(&pool).await.unwrap();
        (connection.id() == 1 && echo(&mut connection, "mine").await == "mine").then_some(())
    })
    .await;
    assert_eq!(pool.stats().closed.broken, 1);
}

#[tokio::test]
async fn connection_that_was_changed_is_not_lent_again_and_a_refusal_changes_nothing() {
    let server = RedisServer::start();
    let pool = pool(&server, 1);
    for round in 0..3 {
        let mut connection = get(&pool).await.unwrap();
        let error = connection.query::<String>(&cmd("GET")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.source().is_some());
        ask::<()>(&mut connection, &Cmd::set("text", "hunter2")).await;
        let error = connection.query::<u64>(&Cmd::get("text")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert_eq!(connection.id(), 0, "round {round}");
    }
    for (id, change) in [cmd("SELECT").arg(1), &mut cmd("MULTI"), cmd("CLIENT").arg("SETNAME").arg("x")]
        .into_iter()
        .enumerate()
    {
        let mut connection = get(&pool).await.unwrap();
        assert_eq!(connection.id(), id as u64);
        ask::<()>(&mut connection, change).await;
    }
    let mut connection = get(&pool).await.unwrap();
    assert_eq!(ask::<String>(&mut connection, &Cmd::get("text")).await, "hunter2");
}

#[tokio::test]
async fn what_keeps_a_connection_from_being_made_is_a_kind_of_its_own_and_holds_no_secret() {
    let server = RedisServer::start();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let full = RedisServer::start_with(&["--maxclients", "1"]);
    let _taken = get(&self::pool(&full, 1)).await.unwrap();
    let mut admin = server.connection().await;
    () = cmd("CONFIG").arg(&["SET", "requirepass", "right"]).query_async(&mut admin).await.unwrap();
    let cases = [
        (format!("redis://:hunter2@127.0.0.1:{}/", server.port()), ErrorKind::Credentials),
        (format!("redis://127.0.0.1:{}/", server.port()), ErrorKind::Credentials),
        ("redis://:hunter2@127.0.0.1:1/".to_owned(), ErrorKind::Unavailable),
        (format!("redis://:hunter2@{}/", silent.local_addr().unwrap()), ErrorKind::TimedOut),
        (full.url(), ErrorKind::TooManyConnections),
    ];
    for (url, kind) in cases {
        let pool = builder(&url).size(1).build().unwrap();
        let error = get(&pool).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.source().is_some(), "{error}");
        assert!(!format!("{error} {error:?} {pool:?}").contains("hunter2"));
    }
    let error = RedisManager::new("hunter2").unwrap_err();
    assert!(error.kind() == ErrorKind::Configuration && !format!("{error:?}").contains("hunter2"));
}

/// That a host vanishes cannot be had on one machine. That the kernel would find it out can be seen.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn kernel_looks_for_a_server_that_vanished() {
    let server = RedisServer::start();
    let pool = pool(&server, 1);
    let mut connection = get(&pool).await.unwrap();
    assert_eq!(echo(&mut connection, "word").await, "word");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", server.port());
    // Where to, and which timer runs: the second is the one that asks a silent peer for a sign of life.
    let mut ours = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(2)?.ends_with(&port).then(|| fields[5].to_owned())
    });
    assert!(ours.any(|timer| timer.starts_with("02:")), "{table}");
}
