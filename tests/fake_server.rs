//! The server of the tests, under paused time: as quick as the law that it follows, and as bad as it is told to be.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use std::time::Duration;

use bb8::ManageConnection;
use mcp_perf::{
    clock::{Clock, Instant},
    testing::{FakeServer, ServerError, Usl},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

fn server() -> FakeServer {
    FakeServer::new(Usl::new(0.15, 0.013))
}

fn now() -> (Clock, Instant) {
    let clock = Clock::tokio();
    let now = clock.now();
    (clock, now)
}

/// Queries per second with so many connections in use all the time.
async fn throughput(server: &FakeServer, connections: u32) -> f64 {
    let mut callers = JoinSet::new();
    for _ in 0..connections {
        let mut connection = server.connect().await.unwrap();
        callers.spawn(async move { while connection.query(Duration::from_millis(100)).await.is_ok() {} });
    }
    sleep(10 * SECOND).await;
    let before = server.stats().queries;
    sleep(100 * SECOND).await;
    (server.stats().queries - before) as f64 / 100.0
}

#[tokio::test(start_paused = true)]
async fn throughput_follows_the_law() {
    for connections in [1, 4, 8, 32] {
        let expected = 10.0 * Usl::new(0.15, 0.013).throughput(connections);
        let found = throughput(&server(), connections).await;
        assert!((found / expected - 1.0).abs() < 0.03, "{connections}: {found} for {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn slower_server_slows_down_what_is_in_progress() {
    let server = server();
    let mut connection = server.connect().await.unwrap();
    let (clock, began) = now();
    let slow = async {
        sleep(SECOND / 2).await;
        server.slow_down(3.0);
    };
    let (answer, ()) = tokio::join!(connection.query(SECOND), slow);
    assert_eq!((answer, clock.now().since(began)), (Ok(()), 2 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_most_are_refused_until_one_is_closed() {
    let server = server().max_connections(2).connecting(SECOND);
    let (one, _two) = (server.connect().await.unwrap(), server.connect().await.unwrap());
    assert_eq!(server.connect().await.unwrap_err(), ServerError::TooManyConnections);
    drop(one);
    assert!(server.connect().await.is_ok());
    let stats = server.stats();
    assert_eq!((stats.connects, stats.refused, stats.open_max, stats.connecting), (3, 1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn restart_breaks_connections_and_fails_queries_and_connects_until_it_is_over() {
    let server = server();
    let mut connection = server.connect().await.unwrap();
    let restart = async {
        sleep(SECOND).await;
        server.restart(5 * SECOND);
    };
    let (answer, ()) = tokio::join!(connection.query(10 * SECOND), restart);
    assert_eq!(answer, Err(ServerError::Broken));
    assert!(server.has_broken(&mut connection));
    assert_eq!(server.is_valid(&mut connection).await, Err(ServerError::Broken));
    assert_eq!(server.connect().await.unwrap_err(), ServerError::Down);
    sleep(5 * SECOND).await;
    let _new = server.connect().await.unwrap();
    drop(connection);
    assert_eq!(server.stats().open, 1);
}

#[tokio::test(start_paused = true)]
async fn hung_connects_are_answered_when_it_is_over_and_are_not_counted_when_given_up() {
    let server = server();
    server.hang_connects(true);
    assert!(timeout(SECOND, server.connect()).await.is_err());
    assert_eq!(server.stats().connecting, 0);
    let later = async {
        sleep(SECOND).await;
        server.hang_connects(false);
    };
    let (connection, ()) = tokio::join!(server.connect(), later);
    assert!(connection.is_ok());
}

#[tokio::test(start_paused = true)]
async fn query_runs_on_when_its_caller_goes_away_and_the_next_waits_for_it() {
    let server = server();
    let mut connection = server.connect().await.unwrap();
    assert!(timeout(SECOND, connection.query(4 * SECOND)).await.is_err());
    assert_eq!((server.stats().abandoned, server.running()), (1, 1));
    let (clock, began) = now();
    connection.query(SECOND).await.unwrap();
    assert_eq!(clock.now().since(began), 4 * SECOND);

    assert!(timeout(SECOND, connection.query(60 * SECOND)).await.is_err());
    drop(connection);
    assert_eq!((server.running(), server.stats().open), (0, 0));
}
