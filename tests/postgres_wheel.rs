//! Callers that drive their connection themselves, on a real PostgreSQL: whoever stops polling in the middle, goes
//! away or is on another runtime keeps nobody else from an answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod support;

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bb8::{ManageConnection as _, Pool};
use mcp_perf::{
    ErrorKind,
    postgres::{PostgresConnection, PostgresManager},
};
use support::{postgres::PostgresServer, process::eventually};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

/// Longer than anything here takes, and shorter than anybody waits for a test.
const GENEROUS: Duration = Duration::from_secs(30);
const SHORT: &str = "select pg_sleep(0.05)";

fn manager(server: &PostgresServer) -> PostgresManager {
    PostgresManager::builder(&server.url()).unwrap().build().unwrap()
}

async fn connection(server: &PostgresServer) -> PostgresConnection {
    manager(server).connect().await.unwrap()
}

async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    timeout(GENEROUS, future).await.unwrap_or_else(|_| panic!("not within {GENEROUS:?}: {what}"))
}

async fn number(connection: &PostgresConnection, sql: &str) -> i64 {
    in_time(sql, connection.query_one_cached(sql, &[])).await.unwrap().get(0)
}

/// Begins, and lets nothing more happen.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context: &mut Context<'_>| Poll::Ready(future.as_mut().poll(context).is_ready()))
        .await
}

fn backends(server: &PostgresServer) -> String {
    let others = "select count(*) from pg_stat_activity \
        where backend_type = 'client backend' and pid <> pg_backend_pid()";
    server.psql(others).unwrap()
}

async fn until_it_runs(server: &PostgresServer) {
    let active =
        "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep(600)'";
    while server.psql(active).unwrap() == "0" {
        tokio::time::sleep(Duration::from_millis(2)).await; // polling, with the deadline of whoever waits
    }
}

/// Everything here holds whatever the runtime.
#[expect(clippy::needless_pass_by_value, reason = "a test is made to be run")]
fn on_every_runtime(test: impl AsyncFn(&PostgresServer)) {
    let server = PostgresServer::start();
    for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(test(&server));
    }
}

#[test]
fn query_that_is_not_polled_holds_up_no_other_on_its_connection() {
    on_every_runtime(async |server| {
        let connection = connection(server).await;
        number(&connection, "select 1::int8").await;
        in_time("prepare", connection.query_cached(SHORT, &[])).await.unwrap();
        // Once begun, left for as long as the other takes, and taken up again.
        let mut paused = pin!(connection.query_cached(SHORT, &[]));
        assert!(!poll_once(paused.as_mut()).await);
        assert_eq!(number(&connection, "select 1::int8").await, 1);
        assert_eq!(in_time("the paused one", paused).await.unwrap().len(), 1);
        assert_eq!(number(&connection, "select 2::int8").await, 2);
    });
}

#[test]
fn query_that_is_not_polled_holds_up_nobody_on_the_drivers_client() {
    on_every_runtime(async |server| {
        let connection = connection(server).await;
        in_time("prepare", connection.query_cached(SHORT, &[])).await.unwrap();
        let client: &tokio_postgres::Client = &connection;
        let mut before = pin!(connection.query_cached(SHORT, &[]));
        assert!(!poll_once(before.as_mut()).await);
        in_time("asked behind it", client.simple_query("select 1")).await.unwrap();
        in_time("the paused one", before).await.unwrap();
        let mut paused = pin!(connection.query_cached(SHORT, &[]));
        assert!(!poll_once(paused.as_mut()).await);
        let client: &tokio_postgres::Client = &connection;
        in_time("asked when another is at the wheel", client.simple_query("select 1")).await.unwrap();
        in_time("the paused one", paused).await.unwrap();
    });
}

/// What one caller has left is undone before another goes on, whoever else is in the middle of something.
#[test]
fn query_that_is_not_polled_holds_up_nobody_who_waits_for_a_repair() {
    on_every_runtime(async |server| {
        let connection = connection(server).await;
        let slow = "select pg_sleep(0.5)";
        in_time("prepare", connection.query_cached(slow, &[])).await.unwrap();
        number(&connection, "select 1::int8").await;
        // A new statement, which is prepared in a task.
        let mut paused = pin!(connection.query_cached("select pg_sleep(0.01)", &[]));
        assert!(!poll_once(paused.as_mut()).await);
        // Or the cancellation of what is left strikes it.
        let is_prepared = "select count(*) from pg_stat_activity \
            where query = 'select pg_sleep(0.01)' and state = 'idle'";
        while server.psql(is_prepared).unwrap() == "0" {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await; // the answer arrives, or there is nothing to see
        assert!(!poll_once(pin!(connection.query_cached(slow, &[]))).await);
        let mut waits = pin!(connection.query_one_cached("select 1::int8", &[]));
        assert!(!poll_once(waits.as_mut()).await);
        // The statement is prepared, and what was left still runs, unless this thread was held up for as long as a repair
        // and a query take.
        let early = std::future::poll_fn(|context| Poll::Ready(paused.as_mut().poll(context))).await;
        in_time("behind the repair", waits).await.unwrap();
        match early {
            Poll::Ready(answer) => answer.unwrap(),
            Poll::Pending => in_time("the paused one", paused).await.unwrap(),
        };
    });
}

#[test]
fn query_that_is_forgotten_holds_up_neither_a_reset_nor_a_test() {
    on_every_runtime(async |server| {
        let manager = manager(server);
        for is_dirty in [false, true] {
            let mut connection = manager.connect().await.unwrap();
            in_time("prepare", connection.query_cached(SHORT, &[])).await.unwrap();
            if is_dirty {
                connection.batch_execute("select 1").await.unwrap();
            }
            let mut forgotten = Box::pin(async {
                let _ = connection.query_cached(SHORT, &[]).await;
            });
            assert!(!poll_once(forgotten.as_mut()).await);
            std::mem::forget(forgotten);
            if is_dirty {
                in_time("the reset", connection.reset()).await.unwrap();
            }
            in_time("the test", manager.is_valid(&mut connection)).await.unwrap();
        }
    });
}

/// What nobody polls and nobody drops holds up neither the next user, nor the end of what another has left.
#[test]
fn query_that_is_forgotten_is_ended_when_the_connection_is_returned() {
    on_every_runtime(async |server| {
        let manager =
            PostgresManager::builder(&server.url()).unwrap().statement_timeout(None).build().unwrap();
        let slow = "select pg_sleep(600)";
        for is_closed in [false, true] {
            let mut connection = manager.connect().await.unwrap();
            let mut forgotten = Box::pin(async {
                let _ = connection.query_cached(slow, &[]).await;
            });
            let begins = async {
                while !poll_once(forgotten.as_mut()).await && slept(server) != "1" {
                    tokio::time::sleep(Duration::from_millis(5)).await; // polling, with a deadline
                }
            };
            in_time("the server is at it", begins).await;
            std::mem::forget(forgotten);
            if is_closed {
                drop(connection);
            } else {
                assert!(!manager.has_broken(&mut connection));
                assert_eq!(number(&connection, "select 7::int8").await, 7);
            }
            let ends = async {
                while slept(server) != "0" {
                    tokio::time::sleep(Duration::from_millis(5)).await; // polling, with a deadline
                }
            };
            in_time("it ends", ends).await;
        }
    });
}

/// How many wait for no good on the server.
fn slept(server: &PostgresServer) -> String {
    let sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    server.psql(sleeping).unwrap()
}

#[test]
fn many_at_once_on_one_connection_are_all_answered() {
    on_every_runtime(async |server| {
        let connection = Arc::new(connection(server).await);
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..16_i64 {
            let connection = Arc::clone(&connection);
            callers.spawn(async move {
                for turn in 0..50_i64 {
                    let (sql, sent) = ("select $1::int8 + 1", caller * 1_000 + turn);
                    if turn % 7 == 3 {
                        // One that goes away: in the middle of being at the wheel, or not.
                        let _ = poll_once(pin!(connection.query_one_cached(sql, &[&sent]))).await;
                    }
                    let row = in_time("an answer", connection.query_one_cached(sql, &[&sent])).await;
                    assert_eq!(row.unwrap().get::<_, i64>(0), sent + 1);
                    tokio::task::yield_now().await;
                }
            });
        }
        while let Some(caller) = in_time("all callers", callers.join_next()).await {
            caller.unwrap();
        }
    });
}

#[test]
fn long_answer_comes_whole() {
    on_every_runtime(async |server| {
        let connection = connection(server).await;
        let sql = "select i, repeat('x', 100) from generate_series(1, 100000::int8) as i";
        let rows = in_time("all rows", connection.query_cached(sql, &[])).await.unwrap();
        assert!(rows.iter().map(|row| row.get::<_, i64>(0)).eq(1..=100_000));
        assert_eq!(number(&connection, "select 1::int8").await, 1);
    });
}

#[test]
fn backend_that_is_killed_is_an_error_at_the_wheel_and_is_noticed_without_a_caller() {
    on_every_runtime(async |server| {
        let idle = connection(server).await;
        let busy = connection(server).await;
        assert_eq!(number(&idle, "select 1::int8").await, 1);
        number(&busy, "select 1::int8").await;
        let kill = || {
            server
                .psql(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where backend_type = 'client backend' and pid <> pg_backend_pid()",
                )
                .unwrap()
        };
        let query = busy.query_cached("select pg_sleep(600)", &[]);
        let (error, killed) = tokio::join!(in_time("the error", query), async {
            until_it_runs(server).await;
            kill()
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Disconnected);
        assert_eq!(killed, "2");
        let noticed = async {
            while !idle.is_over() {
                tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
            }
        };
        in_time("an idle connection that has ended", noticed).await;
    });
}

/// The connection is of one runtime, its caller of another, or of none.
#[test]
fn caller_may_be_on_another_runtime() {
    let server = PostgresServer::start();
    let home = Runtime::new().unwrap();
    let connection = home.block_on(connection(&server));
    home.block_on(number(&connection, "select 1::int8"));
    let away = Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..100 {
        assert_eq!(away.block_on(number(&connection, "select 1::int8")), 1);
    }
    // Neither a time-out nor anything else of a runtime.
    let row = block_here(connection.query_one_cached("select 1::int8", &[])).unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

/// Waits on this thread, without a runtime.
fn block_here<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park_timeout(GENEROUS),
        }
    }
}

#[test]
fn runtime_that_shuts_down_closes_what_it_carried() {
    let server = PostgresServer::start();
    let home = Runtime::new().unwrap();
    let (connection, pool) = home.block_on(async {
        let connection = connection(&server).await;
        number(&connection, "select 1::int8").await;
        let pool = Pool::builder().max_size(2).min_idle(2).build(manager(&server)).await.unwrap();
        number(&pool.get().await.unwrap(), "select 1::int8").await;
        (connection, pool)
    });
    drop(home);
    assert!(eventually(|| backends(&server) == "0"));
    let away = Runtime::new().unwrap();
    let error = away.block_on(async { connection.query_one_cached("select 1::int8", &[]).await });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Disconnected);
    drop(pool);
}
