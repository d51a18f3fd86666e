//! A pool of connections to a real PostgreSQL: what goes wrong is told at once and by its cause, what one caller leaves
//! is nothing to the next, and after a disturbance everything is back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{
    collections::HashSet,
    error::Error as _,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection as _;
use mcp_perf::{
    Error, ErrorKind,
    pool::{
        Class, Connection, Pool, PoolBuilder, Share, Sizing,
        sizing::{Decision, Reason, Sample},
    },
    postgres::{PostgresBudget, PostgresConnection, PostgresManager},
    testing::{FaultProxy, Weather},
};
use support::{postgres::PostgresServer, wait::until};
use tokio::{
    task::{JoinSet, block_in_place},
    time::timeout,
};
use tokio_postgres::NoTls;

/// Longer than anything here takes, and shorter than the pools wait: what ends by then was not their time-out.
const GENEROUS: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a query takes that is never waited for to its end.
const FOREVER: &str = "select pg_sleep(600)";

type Postgres = Pool<PostgresManager>;

fn manager(url: &str) -> PostgresManager {
    PostgresManager::builder(url).unwrap().application_name("pooled").build().unwrap()
}

/// Connects as fast as it can.
fn builder(url: &str) -> PoolBuilder<PostgresManager> {
    manager(url).pool("test").timeout(PATIENCE).connects(8, 1_000.0)
}

fn pool(server: &PostgresServer, size: u32) -> Postgres {
    builder(&server.url()).size(size).build().unwrap()
}

async fn get(pool: &Postgres) -> Result<Connection<PostgresManager>, Error> {
    timeout(GENEROUS, pool.get()).await.expect("the pool hangs")
}

async fn number(connection: &PostgresConnection, sql: &str) -> i64 {
    timeout(GENEROUS, connection.query_one_cached(sql, &[])).await.unwrap().unwrap().get(0)
}

async fn process(connection: &PostgresConnection) -> i64 {
    number(connection, "select pg_backend_pid()::bigint").await
}

/// How many connections the server has of the pool.
fn backends(server: &PostgresServer) -> u64 {
    let count = "select count(*) from pg_stat_activity where application_name = 'pooled'";
    server.psql(count).unwrap().parse().unwrap()
}

/// Has every connection of the pool open, and returns them.
async fn fill(pool: &Postgres, size: u32) -> Vec<Connection<PostgresManager>> {
    let mut all = Vec::new();
    for _ in 0..size {
        all.push(get(pool).await.unwrap());
    }
    all
}

fn kind<T>(answer: Result<T, Error>) -> ErrorKind {
    answer.err().expect("an error").kind()
}

// Bad input.

#[tokio::test]
async fn what_keeps_a_pool_from_connecting_is_told_at_once_as_a_kind_of_its_own_without_a_secret() {
    let server = PostgresServer::start();
    server.psql("create role server login password 'right'").unwrap();
    server.ask_for_passwords();
    let url = |host: &str, rest: &str| format!("postgres://server:hunter2@{host}:{}/{rest}", server.port());
    let cases = [
        (url("127.0.0.1", "postgres"), ErrorKind::Credentials),
        (url("no-such-host.invalid", "postgres"), ErrorKind::HostNotFound),
        (url("127.0.0.1", "postgres?sslmode=require"), ErrorKind::Tls),
        ("postgres://server:hunter2@127.0.0.1:1/postgres".to_owned(), ErrorKind::Unavailable),
    ];
    for (url, expected) in cases {
        let pool = builder(&url).size(2).build().unwrap();
        // The server reads its rules when it gets to it.
        let error = until(&format!("{expected:?}"), async || {
            get(&pool).await.err().filter(|error| error.kind() == expected)
        })
        .await;
        assert!(error.source().is_some(), "{error}");
        // With the breaker open, too, they are told, and why.
        for _ in 0..5 {
            assert_eq!(kind(get(&pool).await), expected);
        }
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.waiting, stats.open, stats.timeouts), (0, 0, 0, 0));
        let told = format!("{error} {error:?} {pool:?} {stats:?}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}

/// Stays as it is, and keeps what it was told.
struct Told(u32, Arc<Mutex<Vec<Sample>>>);

impl Sizing for Told {
    fn step(&mut self, sample: &Sample, _: Duration) -> Decision {
        self.1.lock().unwrap().push(sample.clone());
        Decision::new(self.0, Reason::Steady)
    }

    fn target(&self) -> u32 {
        self.0
    }

    fn proven(&self) -> u32 {
        self.0
    }
}

#[tokio::test]
async fn server_that_is_full_is_told_apart_and_the_sizing_hears_of_it() {
    let settings = [("max_connections", "10"), ("superuser_reserved_connections", "3")];
    let server = PostgresServer::start_with(&settings);
    server.psql("create role server login").unwrap();
    let url = format!("postgres://server@127.0.0.1:{}/postgres", server.port());
    let mut taken = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await {
        tokio::spawn(connection);
        taken.push(client);
    }
    let told = Arc::<Mutex<Vec<Sample>>>::default();
    let sizing = Told(2, Arc::clone(&told));
    let pool = builder(&url).adaptive(1..=4).initial(2).sizing(sizing).build().unwrap();

    let error = get(&pool).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyConnections);
    let cause = error.downcast_source::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    assert_eq!(cause, Some(&tokio_postgres::error::SqlState::TOO_MANY_CONNECTIONS));
    until("the sizing hears of it", async || {
        let told = told.lock().unwrap();
        told.iter().find(|sample| sample.too_many_connections > 0).map(|sample| {
            assert_eq!(sample.connect_failures, 0, "it is counted once");
        })
    })
    .await;
    let stats = pool.stats();
    assert_eq!(stats.too_many_connections, stats.connect_failures);

    // As soon as there is room for one.
    taken.pop();
    let first = until("there is room", async || get(&pool).await.ok()).await;
    let only = process(&first).await;
    // Who waits for a second one may get the first, and is not told to go away.
    let mut waiter = std::pin::pin!(pool.get());
    assert!(timeout(Duration::from_millis(200), &mut waiter).await.is_err());
    drop(first);
    assert_eq!(process(&timeout(GENEROUS, waiter).await.unwrap().unwrap()).await, only);
}

#[tokio::test]
async fn time_out_at_a_full_server_names_it_as_the_cause() {
    let settings = [("max_connections", "5"), ("superuser_reserved_connections", "3")];
    let server = PostgresServer::start_with(&settings);
    server.psql("create role server login").unwrap();
    let url = format!("postgres://server@127.0.0.1:{}/postgres", server.port());
    let pool = builder(&url).size(4).timeout(Duration::from_millis(500)).build().unwrap();
    let mut held = Vec::new();
    let filling = async {
        loop {
            match get(&pool).await {
                Ok(connection) => held.push(connection),
                // While nobody has one that may come back, callers are told at once.
                Err(error) if held.is_empty() => assert_eq!(error.kind(), ErrorKind::TooManyConnections),
                Err(error) => return error,
            }
        }
    };
    let error = timeout(GENEROUS, filling).await.expect("no more are to be had");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let cause = error.downcast_source::<Error>().unwrap();
    assert_eq!(cause.kind(), ErrorKind::TooManyConnections);
    assert!(error.to_string().contains("tests/pool_postgres.rs"), "who holds them: {error}");
}

#[tokio::test]
async fn connect_that_hangs_ends_by_its_own_time_out_and_the_next_one_is_made() {
    let server = PostgresServer::start();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
    let proxy = FaultProxy::start(address).await.unwrap();
    proxy.set(Weather::Stall);
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let pool = builder(&url).size(1).connect_timeout(Duration::from_millis(200)).build().unwrap();
    for _ in 0..2 {
        let error = get(&pool).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains("connect: no answer within 200ms"), "{error}");
        assert!(error.source().is_some());
    }
    assert_eq!(pool.stats().timeouts, 0, "it was not the pool's own");
    proxy.set(Weather::Clear);
    let connection = until("it connects", async || get(&pool).await.ok()).await;
    assert_eq!(number(&connection, "select 1::bigint").await, 1);
}

#[tokio::test]
async fn connection_that_hangs_is_found_out_before_it_is_lent() {
    let server = PostgresServer::start();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
    let proxy = FaultProxy::start(address).await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let patience = Duration::from_millis(200);
    let tested = builder(&url).size(2).test_after(Duration::ZERO).test_timeout(patience);
    let pool = tested.connect_timeout(patience).build().unwrap();
    drop(fill(&pool, 2).await);
    proxy.set(Weather::Stall);
    assert_eq!(kind(get(&pool).await), ErrorKind::TimedOut);
    assert_eq!(pool.stats().closed.invalid, 2, "one was asked, and the other was taken for the same");
    proxy.set(Weather::Clear);
    let _connection = until("it connects", async || get(&pool).await.ok()).await;
}

#[tokio::test]
async fn whoever_waits_is_told_that_the_pool_was_shut_down_and_the_server_has_its_connections_back() {
    let server = PostgresServer::start();
    let pool = pool(&server, 2);
    let held = fill(&pool, 2).await;
    let waiter = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get().await.map(drop) }
    });
    until("it waits", async || (pool.stats().waiting == 1).then_some(())).await;
    let shutdown = tokio::spawn({
        let pool = pool.clone();
        async move { pool.shutdown(GENEROUS).await }
    });
    assert_eq!(kind(timeout(GENEROUS, waiter).await.unwrap().unwrap()), ErrorKind::Closed);
    assert_eq!(number(&held[0], "select 1::bigint").await, 1, "who has one may finish");
    drop(held);
    timeout(GENEROUS, shutdown).await.unwrap().unwrap().unwrap();
    assert_eq!(backends(&server), 0);
    assert_eq!(kind(get(&pool).await), ErrorKind::Closed);
}

// What one caller leaves.

#[tokio::test]
async fn next_caller_finds_the_statements_and_nothing_else_of_the_last_one() {
    let server = PostgresServer::start();
    let pool = pool(&server, 1);
    let first = process(&get(&pool).await.unwrap()).await;
    for round in 0..10 {
        let mut connection = get(&pool).await.unwrap();
        match round % 3 {
            0 => connection.batch_execute("begin; set local work_mem = '1MB'").await.unwrap(),
            1 => drop(connection.transaction().await.unwrap()),
            _ => std::mem::forget(connection.transaction().await.unwrap()),
        }
        drop(connection);
        let connection = get(&pool).await.unwrap();
        let now = "select (extract(epoch from now()) * 1000000)::bigint";
        // Within a transaction, and nowhere else, the time stands still.
        assert_ne!(number(&connection, now).await, number(&connection, now).await, "round {round}");
        assert_eq!(process(&connection).await, first, "round {round}: it was replaced");
        assert_eq!((connection.statements(), connection.prepared()), (2, 2), "round {round}");
    }
    assert_eq!(pool.stats().connects, 1);
}

/// Asks for something that takes forever, and leaves once the server is at it.
async fn leave(server: &PostgresServer, connection: &PostgresConnection) {
    tokio::select! {
        answer = connection.query_cached(FOREVER, &[]) => panic!("it has ended: {answer:?}"),
        () = until("the query runs", async || is_asleep(server).then_some(())) => {}
    }
}

fn is_asleep(server: &PostgresServer) -> bool {
    let count =
        "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(600)'";
    server.psql(count).unwrap() != "0"
}

#[tokio::test]
async fn query_whose_caller_has_gone_is_cancelled_and_its_connection_lent_again() {
    let server = PostgresServer::start();
    let pool = pool(&server, 1);
    let connection = get(&pool).await.unwrap();
    let first = process(&connection).await;
    leave(&server, &connection).await;
    drop(connection);
    assert_eq!(process(&get(&pool).await.unwrap()).await, first);
    assert!(!is_asleep(&server));
    assert_eq!(pool.stats().connects, 1);
}

/// The driver's client knows nothing of what an earlier caller has left: the pool has to.
#[tokio::test]
async fn cancellation_of_what_one_caller_left_strikes_nobody_who_uses_the_drivers_client() {
    let server = PostgresServer::start();
    let pool = pool(&server, 1);
    let first = process(&get(&pool).await.unwrap()).await;
    // Around the moment at which what was left is cancelled.
    for round in 0..100_u64 {
        let connection = get(&pool).await.unwrap();
        let sleeps = format!("select pg_sleep({})", 0.008 + 0.0001 * (round % 50) as f64);
        let _ = timeout(Duration::from_millis(1), connection.query_cached(&sleeps, &[])).await;
        drop(connection);
        let connection = get(&pool).await.unwrap();
        let answer = timeout(GENEROUS, connection.simple_query("select pg_sleep(0.01)")).await.unwrap();
        assert!(answer.is_ok(), "round {round}: {answer:?}");
    }
    assert_eq!(process(&get(&pool).await.unwrap()).await, first);
}

#[tokio::test]
async fn query_with_a_row_too_many_is_not_left_to_the_next_caller() {
    let server = PostgresServer::start();
    let manager = PostgresManager::builder(&server.url()).unwrap().statement_timeout(None).build().unwrap();
    let pool = manager.pool("test").size(1).timeout(PATIENCE).connects(8, 1_000.0).build().unwrap();
    for in_same_checkout in [true, false] {
        let mut connection = get(&pool).await.unwrap();
        let endless = "select generate_series(1, 2000000000)"; // streamed, minutes of it
        let error = timeout(GENEROUS, connection.query_opt_cached(endless, &[])).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        if !in_same_checkout {
            drop(connection);
            connection = get(&pool).await.unwrap();
        }
        assert_eq!(number(&connection, "select 1::bigint").await, 1, "it waits behind what was left");
    }
    assert_eq!(pool.stats().connects, 1, "it was replaced");
}

/// How the pool comes to close a connection without asking its manager.
#[derive(Clone, Copy, Debug)]
enum Closed {
    Retired,
    MarkedBroken,
    ShutDown,
    /// By the manager, which the pool does ask.
    GivenUp,
}

#[tokio::test]
async fn connection_that_is_closed_takes_its_query_along() {
    let server = PostgresServer::start();
    let manager = PostgresManager::builder(&server.url()).unwrap();
    let manager = manager.application_name("pooled").statement_timeout(None).build().unwrap();
    for way in [Closed::Retired, Closed::MarkedBroken, Closed::ShutDown, Closed::GivenUp] {
        // A call whose caller has gone, and one of the driver's client, of which nothing is known.
        for is_counted in [true, false] {
            let pool = manager.pool("test").size(1).timeout(PATIENCE).connects(8, 1_000.0).build().unwrap();
            let mut connection = get(&pool).await.unwrap();
            if is_counted {
                leave(&server, &connection).await;
            } else {
                tokio::select! {
                    answer = connection.simple_query(FOREVER) => panic!("it has ended: {answer:?}"),
                    () = until("the query runs", async || is_asleep(&server).then_some(())) => {}
                }
            }
            match way {
                Closed::Retired => pool.retire_all(),
                Closed::MarkedBroken => connection.mark_broken(),
                Closed::ShutDown => {}
                Closed::GivenUp => manager.retire_all(),
            }
            if let Closed::ShutDown = way {
                let (ended, ()) = tokio::join!(pool.shutdown(GENEROUS), async { drop(connection) });
                ended.unwrap();
            } else {
                drop(connection);
            }
            // One may have been opened in its place.
            let is_gone = || !is_asleep(&server) && backends(&server) == u64::from(pool.stats().open);
            until(&format!("it is gone: {way:?}, {is_counted}"), async || is_gone().then_some(())).await;
        }
    }
}

/// Law 9, as the server sees it: what is given up with a query on it is there until that is cancelled.
#[tokio::test]
async fn pool_as_large_as_its_server_is_never_refused_a_connection() {
    let settings = [("max_connections", "7"), ("superuser_reserved_connections", "3")];
    let server = PostgresServer::start_with(&settings);
    server.psql("create role server login").unwrap();
    let url = format!("postgres://server@127.0.0.1:{}/postgres", server.port());
    let pool = builder(&url).size(4).build().unwrap();
    let mut all = fill(&pool, 4).await;
    // The session that made the role may have taken a moment to end.
    let failures = pool.stats().connect_failures;
    for way in [Closed::Retired, Closed::MarkedBroken, Closed::GivenUp] {
        for connection in &all {
            let query = connection.query_cached(FOREVER, &[]);
            assert!(timeout(Duration::from_millis(50), query).await.is_err(), "it has ended");
        }
        let connects = pool.stats().connects;
        if let Closed::Retired = way {
            pool.retire_all();
        }
        for mut connection in all {
            match way {
                Closed::MarkedBroken => connection.mark_broken(),
                Closed::GivenUp => connection.retire(),
                Closed::Retired | Closed::ShutDown => {}
            }
        }
        assert_eq!((pool.stats().open, pool.stats().closing), (0, 4), "{way:?}");
        // Each of them is opened anew, as soon as there is room.
        all = fill(&pool, 4).await;
        let stats = pool.stats();
        assert_eq!((stats.connects - connects, stats.connect_failures - failures), (4, 0), "{way:?}");
        assert_eq!(backends(&server), 4, "{way:?}");
    }
    drop(all);
    // With nothing to cancel, too, it takes the server a moment to end a session.
    let connects = pool.stats().connects;
    for round in 0..50 {
        let all = fill(&pool, 4).await;
        match round % 2 {
            0 => pool.retire_all(),
            _ => all.iter().for_each(|connection| connection.retire()),
        }
    }
    let stats = pool.stats();
    assert!(stats.connects - connects >= 100, "{stats:?}");
    assert_eq!(stats.connect_failures, failures);
    timeout(GENEROUS, pool.shutdown(GENEROUS)).await.unwrap().unwrap();
}

// Failover and restart.

#[tokio::test]
async fn failover_that_one_connection_notices_retires_all_and_idle_ones_need_not_be_asked_for() {
    let server = PostgresServer::start();
    let pool = pool(&server, 4);
    let mut all = fill(&pool, 4).await;
    let mut before = HashSet::new();
    for connection in &all {
        before.insert(process(connection).await);
    }
    let (busy, held) = (all.remove(0), all.remove(0));
    drop(all);
    let end = async {
        until("the query runs", async || is_asleep(&server).then_some(())).await;
        let kill =
            "select pg_terminate_backend(pid) from pg_stat_activity where query = 'select pg_sleep(600)'";
        server.psql(kill).unwrap();
    };
    let (answer, ()) = tokio::join!(busy.query_cached(FOREVER, &[]), end);
    assert_eq!(kind(answer), ErrorKind::Disconnected);
    drop(busy);
    until("the idle ones are gone", async || (pool.stats().closed.broken == 3).then_some(())).await;
    drop(held);
    let after = fill(&pool, 4).await;
    for connection in &after {
        assert!(!before.contains(&process(connection).await));
    }
    assert_eq!(pool.stats().closed.broken, 4);
}

#[tokio::test]
async fn pool_at_a_server_that_takes_no_writes_any_more_goes_to_the_one_that_does() {
    let (old, new) = (PostgresServer::start(), PostgresServer::start());
    for server in [&old, &new] {
        server.psql("create table things (a bigint)").unwrap();
    }
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", old.port(), new.port());
    let url = format!("postgres://postgres@{hosts}/postgres?target_session_attrs=read-write");
    let pool = builder(&url).size(4).build().unwrap();
    let all = fill(&pool, 4).await;
    drop(all);
    assert_eq!((backends(&old), backends(&new)), (4, 0));
    old.psql("alter system set default_transaction_read_only = on").unwrap();
    old.psql("select pg_reload_conf()").unwrap();
    let insert = async || {
        let connection = get(&pool).await.unwrap();
        connection.execute_cached("insert into things values (1)", &[]).await
    };
    // Who is told of it first has an error, and nobody after.
    until("it is heard of", async || insert().await.is_err().then_some(())).await;
    for _ in 0..8 {
        insert().await.unwrap();
    }
    until("the old one is left", async || (backends(&old) == 0).then_some(())).await;
    assert!(backends(&new) > 0);
}

#[tokio::test]
async fn connection_that_was_being_made_when_all_were_retired_is_not_lent() {
    let server = PostgresServer::start();
    let manager = manager(&server.url());
    // The first is asked first, and cannot be there at once.
    let (connection, ()) = tokio::join!(manager.connect(), async { manager.retire_all() });
    assert!(connection.unwrap().is_over(), "it may lead to the server that was left");
    assert!(!manager.connect().await.unwrap().is_over());
}

/// Every caller of a round is served.
async fn round(pool: &Postgres, callers: i64) -> Result<(), Error> {
    let mut all = JoinSet::new();
    for caller in 0..callers {
        let pool = pool.clone();
        all.spawn(async move {
            let connection = get(&pool).await?;
            let answer =
                timeout(GENEROUS, connection.query_one_cached("select $1::bigint", &[&caller])).await;
            assert_eq!(answer.expect("the query hangs")?.get::<_, i64>(0), caller);
            Ok(())
        });
    }
    while let Some(served) = all.join_next().await {
        served.unwrap()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_is_restarted_in_the_middle_is_in_full_use_again_soon_after() {
    let mut server = PostgresServer::start();
    let pool = builder(&server.url()).size(8).connects(2, 10.0).build().unwrap();
    let (is_over, failures) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Error>>>::default());
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let (pool, is_over, failures) = (pool.clone(), Arc::clone(&is_over), Arc::clone(&failures));
        callers.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let served = async { get(&pool).await?.query_cached("select pg_sleep(0.005)", &[]).await };
                let served = timeout(GENEROUS, served).await.expect("a caller hangs");
                if let Err(error) = served {
                    failures.lock().unwrap().push(error);
                }
            }
        });
    }
    until("all are open", async || (pool.stats().open == 8).then_some(())).await;
    block_in_place(|| server.kill());
    until("callers are told", async || {
        let failures = failures.lock().unwrap();
        failures.iter().any(|error| error.kind() == ErrorKind::Unavailable).then_some(())
    })
    .await;
    block_in_place(|| server.restart());

    // 2 s for the longest pause between attempts, and a second for eight connections at ten a second: 5 s on a machine
    // that does nothing else.
    let recovery = until("all are open again, and everybody is served", async || {
        round(&pool, 16).await.ok()?;
        (pool.stats().open == 8).then_some(())
    });
    timeout(Duration::from_secs(50), recovery).await.expect("it takes too long");
    is_over.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    for error in failures.lock().unwrap().iter() {
        let kinds = [ErrorKind::Disconnected, ErrorKind::Unavailable];
        assert!(kinds.contains(&error.kind()) && error.is_retryable(), "{error:?}");
        assert!(error.source().is_some(), "{error:?}");
    }
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.waiting, stats.open, stats.timeouts), (0, 0, 8, 0));
}

/// One use of a connection, by somebody who would notice another's transaction, setting or answer, and leaves something
/// behind.
async fn use_it(pool: &Postgres, caller: i64, wrong: &AtomicU64) -> Result<(), Error> {
    let mut connection = pool.get().await?;
    let found = "select current_setting('work_mem') = '1234kB' or txid_current_if_assigned() is not null";
    if connection.query_one_cached(found, &[]).await?.get(0) {
        wrong.fetch_add(1, Ordering::Relaxed);
    }
    let transaction = connection.transaction().await?;
    transaction.batch_execute("set local work_mem = '1234kB'").await?;
    transaction.execute_cached("insert into things values ($1)", &[&caller]).await?;
    let row = transaction.query_one_cached("select $1::bigint, pg_sleep(0.001)", &[&caller]).await?;
    if row.get::<_, i64>(0) != caller {
        wrong.fetch_add(1, Ordering::Relaxed);
    }
    transaction.commit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_disturbance_no_permit_is_lost_and_nobody_was_lent_what_another_had_left() {
    let mut server = PostgresServer::start();
    server.psql("create table things (a bigint)").unwrap();
    let pool = pool(&server, 6);
    let (is_over, wrong, served) =
        (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let mut callers = JoinSet::new();
    for caller in 0..40_i64 {
        let (pool, is_over) = (pool.clone(), Arc::clone(&is_over));
        let (wrong, served) = (Arc::clone(&wrong), Arc::clone(&served));
        callers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(caller.unsigned_abs());
            while !is_over.load(Ordering::Relaxed) {
                let patience =
                    if random.u8(0..7) == 0 { Duration::from_micros(random.u64(0..8_000)) } else { GENEROUS };
                match timeout(patience, use_it(&pool, caller, &wrong)).await {
                    Ok(Ok(())) => drop(served.fetch_add(1, Ordering::Relaxed)),
                    Ok(Err(error)) => assert!(error.is_retryable(), "{error:?}"),
                    Err(_) => assert!(patience < GENEROUS, "a caller hangs"),
                }
            }
        });
    }
    let more = async |count: u64| {
        let before = served.load(Ordering::Relaxed);
        let enough = async || (served.load(Ordering::Relaxed) > before + count).then_some(());
        until("callers are served", enough).await;
    };
    more(200).await;
    for _ in 0..5 {
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pooled' \
            and random() < 0.5";
        block_in_place(|| server.psql(kill)).unwrap();
        more(50).await;
    }
    block_in_place(|| server.restart());
    more(200).await;
    is_over.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(wrong.load(Ordering::Relaxed), 0, "wrong-state borrows");
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.waiting, stats.waiting_for_connection, stats.debt), (0, 0, 0, 0));
    // All of them at once.
    let all = fill(&pool, 6).await;
    assert!(timeout(GENEROUS, pool.try_get()).await.unwrap().unwrap().is_none());
    for connection in &all {
        assert_eq!(number(connection, "select 1::bigint").await, 1);
    }
    assert_eq!((pool.stats().open, backends(&server)), (6, 6));
}

// Classes.

/// Takes as many as it gets without waiting for others.
async fn take_all(pool: &Postgres, class: Class) -> Vec<Connection<PostgresManager>> {
    let mut taken = Vec::new();
    while let Some(connection) = timeout(GENEROUS, pool.try_get_for(class)).await.unwrap().unwrap() {
        taken.push(connection);
    }
    taken
}

#[tokio::test]
async fn two_servers_of_a_process_share_a_pool_and_neither_keeps_the_other_or_the_system_out() {
    let server = PostgresServer::start_with(&[("max_connections", "60")]);
    // 8 and 8 are sure, 1 for the system, 4 for whoever comes first, and 10 more when the pool grows.
    let share = Share::new().guarantee(8).at_most(22);
    let pool = builder(&server.url())
        .observe(21..=31)
        .initial(21)
        .class("search", share)
        .class("registry", share)
        .system_reserve(1)
        .build()
        .unwrap();
    let (search, registry) = (pool.class("search").unwrap(), pool.class("registry").unwrap());

    let of_search = take_all(&pool, search).await;
    assert_eq!(of_search.len(), 8 + 4);
    let of_registry = take_all(&pool, registry).await;
    assert_eq!(of_registry.len(), 8, "what it is sure of, at once");
    let health = timeout(GENEROUS, pool.get_for(Class::SYSTEM)).await.unwrap().unwrap();
    assert_eq!(number(&health, "select 1::bigint").await, 1);
    assert!(take_all(&pool, Class::DEFAULT).await.is_empty());

    drop(of_registry);
    pool.set_target(31).unwrap();
    let more = take_all(&pool, search).await;
    assert_eq!(of_search.len() + more.len(), 22, "what was shared, and all that was added");
    assert_eq!(take_all(&pool, registry).await.len(), 8, "and still");
    let stats = pool.stats();
    let search = stats.classes.iter().find(|class| class.name == "search").unwrap();
    assert_eq!((search.in_use, stats.target), (22, 31));
    assert!(backends(&server) <= 31);
}

// A share of the server.

#[tokio::test]
async fn pool_that_borrows_from_a_stock_is_at_its_share_when_the_lease_is_lost() {
    let server = PostgresServer::start();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
    let proxy = FaultProxy::start(address).await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    // The way to the leases only: the pool itself has no reason to complain.
    let leases = PostgresManager::builder(&url).unwrap().connect_timeout(Duration::from_secs(2)).build();
    let budget = PostgresBudget::builder(leases.unwrap(), "fleet").share(4).stock(16).build().unwrap();
    let pool = builder(&server.url()).adaptive(2..=30).sizing(Greedy(2)).allowance(budget).build().unwrap();
    assert_eq!(pool.stats().ceiling, 3);

    let is_over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..24 {
        let (pool, is_over) = (pool.clone(), Arc::clone(&is_over));
        callers.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let connection = get(&pool).await.unwrap();
                connection.query_cached("select pg_sleep(0.02)", &[]).await.unwrap();
            }
        });
    }
    until("it has borrowed", async || (pool.stats().open > 6).then_some(())).await;
    assert!(backends(&server) <= 3 + 16);

    proxy.set(Weather::Refuse);
    proxy.cut();
    until("it is at its share", async || (pool.stats().open <= 3 && backends(&server) <= 3).then_some(()))
        .await;
    for _ in 0..20 {
        assert!(pool.stats().open <= 3 && backends(&server) <= 3);
        round(&pool, 4).await.unwrap();
    }
    proxy.set(Weather::Clear);
    until("it has borrowed again", async || (pool.stats().open > 6).then_some(())).await;
    is_over.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
}

/// Law 12, as a server sees it that has just so many connections: four pools whose callers want more than their shares
/// by turns.
#[tokio::test]
async fn pools_that_share_a_tight_server_are_refused_nothing_and_use_what_others_leave() {
    const SHARE: u32 = 4;
    const STOCK: u32 = 8;
    const BUDGET: u32 = 4 * SHARE + STOCK;
    // As many as there are in the budget, and one for the test, which is there when the last of them may be opened.
    let settings = [("max_connections", "28"), ("superuser_reserved_connections", "3")];
    assert_eq!(BUDGET, 28 - 3 - 1);
    let server = PostgresServer::start_with(&settings);
    server.psql("create role fleet login").unwrap();
    let url = format!("postgres://fleet@127.0.0.1:{}/postgres", server.port());
    let pools: Vec<Postgres> = (0..4)
        .map(|process| {
            let named = |of: &str| format!("fleet/{process}{of}");
            let manager =
                |of| PostgresManager::builder(&url).unwrap().application_name(named(of)).build().unwrap();
            let budget = PostgresBudget::builder(manager("-leases"), "fleet").share(SHARE).stock(STOCK);
            let builder = Pool::builder(named(""), manager("")).adaptive(2..=BUDGET).sizing(Greedy(2));
            builder.connects(100, 100.0).allowance(budget.build().unwrap()).build().unwrap()
        })
        .collect();
    let count = "select count(*) from pg_stat_activity where usename = 'fleet'";
    let most = AtomicU64::new(0);
    for turn in 0..8 {
        let busy = &pools[turn % 4];
        let is_over = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for (index, pool) in pools.iter().enumerate() {
            for _ in 0..if index == turn % 4 { 20 } else { 2 } {
                let (pool, is_over) = (pool.clone(), Arc::clone(&is_over));
                callers.spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        let connection = get(&pool).await.unwrap();
                        connection.query_cached("select pg_sleep(0.005)", &[]).await.unwrap();
                    }
                });
            }
        }
        until("who has callers has borrowed", async || {
            let backends = server.psql(count).unwrap().parse().unwrap();
            assert!(backends <= u64::from(BUDGET), "{backends}");
            most.fetch_max(backends, Ordering::Relaxed);
            (busy.stats().open > SHARE).then_some(())
        })
        .await;
        is_over.store(true, Ordering::Relaxed);
        while let Some(caller) = callers.join_next().await {
            caller.unwrap();
        }
    }
    for pool in &pools {
        let stats = pool.stats();
        assert_eq!((stats.connect_failures, stats.timeouts), (0, 0), "{stats:?}");
    }
    assert!(most.into_inner() > u64::from(4 * SHARE));
}

/// Wants as many as there are callers.
struct Greedy(u32);

impl Sizing for Greedy {
    fn step(&mut self, sample: &Sample, _: Duration) -> Decision {
        self.0 = (sample.in_use_max + sample.max_waiting).max(2);
        Decision::new(self.0, Reason::Rule("greedy"))
    }

    fn target(&self) -> u32 {
        self.0
    }

    fn proven(&self) -> u32 {
        self.0
    }
}
