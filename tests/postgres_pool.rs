//! Connections that a pool lends, in a real PostgreSQL: what one user leaves is nothing to the next, and what goes
//! wrong is told apart.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, atomic::AtomicU64, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use bb8::{ManageConnection as _, Pool, PooledConnection};
use bytes::BytesMut;
use mcp_perf::{
    Error, ErrorKind,
    clock::Clock,
    postgres::{
        PostgresConnection, PostgresManager, PostgresManagerBuilder, ResetPolicy, TransactionOptions,
    },
    testing::{FaultProxy, Weather},
};
use support::postgres::PostgresServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_postgres::{
    NoTls,
    types::{IsNull, ToSql, Type, to_sql_checked},
};

/// Longer than anything here takes, and shorter than anybody waits for a test.
const GENEROUS: Duration = Duration::from_secs(30);
/// How long a query takes that is never waited for to its end.
const FOREVER: &str = "select pg_sleep(600)";

type Lent<'a> = PooledConnection<'a, PostgresManager>;

fn builder(server: &PostgresServer) -> PostgresManagerBuilder {
    PostgresManager::builder(&server.url()).unwrap()
}

fn manager(server: &PostgresServer) -> PostgresManager {
    builder(server).build().unwrap()
}

/// A pool of one: whoever comes next gets what the last one left.
async fn pool_of(size: u32, manager: PostgresManager) -> Pool<PostgresManager> {
    Pool::builder().max_size(size).connection_timeout(GENEROUS).build(manager).await.unwrap()
}

/// The same, where nobody but us ends what was left.
async fn patient_pool(server: &PostgresServer) -> Pool<PostgresManager> {
    pool_of(1, builder(server).statement_timeout(None).build().unwrap()).await
}

async fn pool(server: &PostgresServer) -> Pool<PostgresManager> {
    pool_of(1, manager(server)).await
}

async fn until<T>(what: &str, done: impl AsyncFn() -> Option<T>) -> T {
    let poll = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    timeout(GENEROUS, poll).await.unwrap_or_else(|_| panic!("not within {GENEROUS:?}: {what}"))
}

async fn number(connection: &PostgresConnection, sql: &str) -> i64 {
    timeout(GENEROUS, connection.query_one_cached(sql, &[])).await.unwrap().unwrap().get(0)
}

async fn truth(connection: &PostgresConnection, sql: &str) -> bool {
    connection.query_one_cached(sql, &[]).await.unwrap().get(0)
}

/// Within a transaction, and nowhere else, the time stands still.
async fn is_in_transaction(connection: &PostgresConnection) -> bool {
    let now = "select (extract(epoch from now()) * 1000000)::bigint";
    number(connection, now).await == number(connection, now).await
}

async fn process(connection: &PostgresConnection) -> i64 {
    number(connection, "select pg_backend_pid()::bigint").await
}

/// Asks for something that takes forever, and leaves once the server is at it.
async fn leave(server: &PostgresServer, connection: &PostgresConnection) {
    let is_running = async || {
        (active(server, "%pg_sleep(600)%") > 0).then_some(()) // psql blocks, which the query does not mind
    };
    tokio::select! {
        answer = connection.query_cached(FOREVER, &[]) => panic!("it has ended: {answer:?}"),
        () = until("the query runs", is_running) => {}
    }
}

/// How many queries run that look like this.
fn active(server: &PostgresServer, like: &str) -> u64 {
    let count = format!(
        "select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() \
         and query like '{like}'"
    );
    server.psql(&count).unwrap().parse().unwrap()
}

#[tokio::test]
async fn connections_are_set_up_and_the_url_has_the_last_word() {
    let server = PostgresServer::start();
    let shown = async |manager: PostgresManager| {
        let connection = manager.connect().await.unwrap();
        let mut shown = Vec::new();
        for setting in ["application_name", "statement_timeout", "idle_in_transaction_session_timeout", "jit"]
        {
            let row = connection.query_one_cached(&format!("show {setting}"), &[]).await.unwrap();
            shown.push(row.get::<_, String>(0));
        }
        shown
    };
    assert_eq!(shown(manager(&server)).await, ["mcp-perf", "30s", "1min", "off"]);
    let set = builder(&server)
        .application_name("registry")
        .statement_timeout(Some(Duration::from_millis(1_500)))
        .idle_in_transaction_timeout(None)
        .jit(true);
    assert_eq!(shown(set.build().unwrap()).await, ["registry", "1500ms", "0", "on"]);
    let url = format!("{}?application_name=mine&options=-c%20statement_timeout%3D7s", server.url());
    let own = PostgresManager::builder(&url).unwrap().build().unwrap();
    assert_eq!(shown(own).await, ["mine", "7s", "1min", "off"]);
}

#[test]
fn impossible_settings_are_errors_that_name_the_field_and_not_the_password() {
    let builder = || PostgresManager::builder("postgres://user:hunter2@host/database").unwrap();
    let zero = Duration::ZERO;
    let wrong = [
        (builder().application_name(""), "application_name"),
        (builder().application_name("ä"), "application_name"),
        (builder().application_name("a".repeat(64)), "application_name"),
        (builder().connect_timeout(zero), "connect_timeout"),
        (builder().statement_timeout(Some(zero)), "statement_timeout"),
        (builder().statement_timeout(Some(Duration::MAX)), "statement_timeout"),
        (builder().idle_in_transaction_timeout(Some(zero)), "idle_in_transaction_timeout"),
        (builder().drain(zero), "drain"),
        (builder().statement_cache(10_001), "statement_cache"),
    ];
    for (builder, field) in wrong {
        let told = format!("{builder:?}");
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().starts_with(field), "{error}");
        assert!(!format!("{told} {error:?}").contains("hunter2"), "{told} {error:?}");
    }
    for url in
        ["postgres://user:hunter2@:wrong:/", "hunter2", "postgres://user:hunter2@host/?sslmode=hunter2"]
    {
        let error = PostgresManager::builder(url).unwrap_err();
        assert!(error.to_string().starts_with("url"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
    let nowhere = PostgresManager::builder("user=hunter2").unwrap().build().unwrap_err();
    assert_eq!(nowhere.to_string(), "url: names no host");
}

// Statements.

#[tokio::test]
async fn statement_is_prepared_once_for_each_connection_whoever_asks_and_however_many() {
    let server = PostgresServer::start();
    let pool = pool(&server).await;
    for round in 0..3_i64 {
        let connection = pool.get().await.unwrap();
        let ask = async |value: i64| -> i64 {
            let sql = "select $1::bigint + 1";
            connection.query_one_cached(sql, &[&value]).await.unwrap().get(0)
        };
        let answers = tokio::join!(ask(round), ask(2), ask(3), ask(4));
        assert_eq!(answers, (round + 1, 3, 4, 5));
        assert_eq!((connection.prepared(), connection.statements()), (1, 1));
    }
}

#[tokio::test]
async fn no_more_statements_are_kept_than_asked_for_and_the_server_forgets_the_others() {
    let server = PostgresServer::start();
    let pool = pool_of(1, builder(&server).statement_cache(3).build().unwrap()).await;
    let connection = pool.get().await.unwrap();
    let kept = "select count(*) from pg_prepared_statements";
    for number in 0..50 {
        let sql = format!("select {number}::bigint");
        assert_eq!(self::number(&connection, &sql).await, number);
        self::number(&connection, kept).await; // stays, because it is used
        assert!(connection.statements() <= 3);
    }
    assert_eq!(number(&connection, kept).await, 3);
    assert_eq!(connection.prepared(), 51);
}

#[tokio::test]
async fn callers_who_leave_while_a_statement_is_prepared_leave_none_behind() {
    let server = PostgresServer::start();
    let pool = pool_of(1, builder(&server).statement_cache(0).build().unwrap()).await;
    let connection = pool.get().await.unwrap();
    for number in 0..200_u64 {
        let sql = format!("select {number}::bigint");
        let patience = Duration::from_micros(number % 40 * 10);
        let _ = timeout(patience, connection.query_cached(&sql, &[])).await;
    }
    // The question itself is prepared as well.
    until("the others are gone", async || {
        (number(&connection, "select count(*) from pg_prepared_statements").await <= 1).then_some(())
    })
    .await;
    assert!(!connection.is_over());
}

#[tokio::test]
async fn statement_whose_plan_fits_no_more_is_prepared_anew_outside_transactions() {
    let server = PostgresServer::start();
    server.psql("create table things (a bigint); insert into things values (1)").unwrap();
    let pool = pool(&server).await;
    let mut connection = pool.get().await.unwrap();
    let columns = async |connection: &PostgresConnection| {
        connection.query_cached("select * from things", &[]).await.map(|rows| rows[0].len())
    };
    assert_eq!(columns(&connection).await.unwrap(), 1);
    server.psql("alter table things add b bigint").unwrap();
    assert_eq!(columns(&connection).await.unwrap(), 2);
    connection.batch_execute("deallocate all").await.unwrap();
    assert_eq!(columns(&connection).await.unwrap(), 2);

    server.psql("alter table things add c bigint").unwrap();
    let transaction = connection.transaction().await.unwrap();
    let error = transaction.query_cached("select * from things", &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    drop(transaction);
    assert_eq!(columns(&connection).await.unwrap(), 3);
    assert_eq!(connection.statements(), 1);
}

/// A type of the program's own, by its name.
#[derive(Debug)]
struct Mood(&'static str);

impl ToSql for Mood {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        kind.name() == "mood"
    }

    to_sql_checked!();
}

#[tokio::test]
async fn statement_of_a_type_of_ones_own_outlives_what_the_server_forgets_and_what_replaces_the_type() {
    let server = PostgresServer::start();
    server.psql("create type mood as enum ('fine'); create table moods (m mood)").unwrap();
    let pool = pool(&server).await;
    let connection = pool.get().await.unwrap();
    let insert = async || connection.execute_cached("insert into moods values ($1)", &[&Mood("fine")]).await;
    insert().await.unwrap();
    server
        .psql(
            "alter type mood rename to mood_old; create type mood as enum ('fine', 'better'); \
             alter table moods alter m type mood using m::text::mood; drop type mood_old",
        )
        .unwrap();
    // What was prepared fits no more, which is an error once.
    let _ = insert().await;
    insert().await.unwrap();
    for forgets in ["deallocate all", "discard all"] {
        connection.batch_execute(forgets).await.unwrap();
        assert_eq!(insert().await.unwrap(), 1, "{forgets}");
    }
    assert_eq!(connection.statements(), 1);
}

/// Where the driver has lost what it asks for types by, no later statement of such a type can be prepared.
#[tokio::test]
async fn connection_that_can_prepare_no_more_is_given_up() {
    let server = PostgresServer::start();
    server.psql("create type mood as enum ('fine'); create type size as enum ('small')").unwrap();
    let pool = pool(&server).await;
    let connection = pool.get().await.unwrap();
    connection.query_cached("select 'fine'::mood", &[]).await.unwrap();
    connection.batch_execute("deallocate all").await.unwrap();
    connection.query_cached("select 'small'::size", &[]).await.unwrap_err();
    assert!(connection.is_over());
    drop(connection);
    pool.get().await.unwrap().query_cached("select 'small'::size", &[]).await.unwrap();
}

#[tokio::test]
async fn procedure_that_failed_after_it_had_committed_is_not_called_again() {
    let server = PostgresServer::start();
    server
        .psql(
            "create table things (a bigint); create procedure p() language plpgsql as \
             $$ begin insert into things values (1); commit; execute 'execute nope'; end $$",
        )
        .unwrap();
    let pool = pool(&server).await;
    let connection = pool.get().await.unwrap();
    assert_eq!(connection.execute_cached("call p()", &[]).await.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(server.psql("select count(*) from things").unwrap(), "1");
}

#[tokio::test]
async fn connection_that_the_server_ended_unasked_says_why() {
    let server = PostgresServer::start();
    let manager = builder(&server).idle_in_transaction_timeout(Some(Duration::from_millis(50)));
    let pool = pool_of(1, manager.build().unwrap()).await;
    let mut connection = pool.get().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    let there = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
    until("the server ends it", async || (server.psql(there).unwrap() == "0").then_some(())).await;
    tokio::time::sleep(Duration::from_millis(100)).await; // what it said has arrived by then
    let error = transaction.query_cached("select 1", &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    let mut reasons = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        reasons.push(error.to_string());
        source = error.source();
    }
    let all = reasons.join(": ");
    assert!(all.contains("idle for too long"), "{all}");
}

// Transactions.

#[tokio::test]
async fn transaction_is_kept_if_committed_and_undone_otherwise() {
    let server = PostgresServer::start();
    server.psql("create table things (a bigint primary key)").unwrap();
    let pool = pool(&server).await;
    let insert = "insert into things values ($1)";
    let count = "select count(*) from things";
    let mut connection = pool.get().await.unwrap();

    let transaction = connection.transaction().await.unwrap();
    assert_eq!(transaction.execute_cached(insert, &[&1_i64]).await.unwrap(), 1);
    transaction.commit().await.unwrap();
    assert_eq!(number(&connection, count).await, 1);

    let transaction = connection.transaction().await.unwrap();
    transaction.execute_cached(insert, &[&2_i64]).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(number(&connection, count).await, 1);

    let transaction = connection.transaction().await.unwrap();
    transaction.execute_cached(insert, &[&3_i64]).await.unwrap();
    drop(transaction);
    assert_eq!(number(&connection, count).await, 1);
    assert!(!is_in_transaction(&connection).await);

    let transaction = connection.transaction().await.unwrap();
    transaction.execute_cached(insert, &[&1_i64]).await.unwrap_err();
    let error = transaction.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "PostgreSQL itself would roll back and call that a success");
    assert!(error.to_string().contains("an earlier statement"), "{error}");
    assert!(!is_in_transaction(&connection).await);
    assert!(!connection.is_dirty() && !connection.is_over());
}

/// A session that ends at the only moment at which no server can be made to end it: when it is asked, before it is lent.
#[tokio::test]
async fn session_that_ends_while_it_is_asked_whether_it_takes_writes_is_no_time_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://postgres@{}/postgres?target_session_attrs=read-write",
        listener.local_addr().unwrap()
    );
    let ends = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 4096];
        assert!(stream.read(&mut asked).await.unwrap() > 0, "who it is");
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.unwrap(); // welcome, and ready
        assert_eq!(stream.read(&mut asked).await.map(|_| asked[0]).unwrap(), b'Q');
    });
    let manager = PostgresManager::builder(&url).unwrap().connect_timeout(GENEROUS).build().unwrap();
    let error = timeout(GENEROUS / 2, manager.connect()).await.expect("it hangs").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    ends.await.unwrap();
}

#[tokio::test]
async fn query_may_be_cancelled_from_anywhere_and_its_connection_goes_on() {
    let server = PostgresServer::start();
    let pool = pool(&server).await;
    let connection = pool.get().await.unwrap();
    assert!(timeout(GENEROUS, connection.cancel()).await.unwrap(), "nothing runs, and nothing is struck");
    let cancel = connection.cancel();
    let cancelling = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await; // it is at it by then, or the query waits for the next
        cancel.await
    });
    let mut query = std::pin::pin!(connection.query_cached(FOREVER, &[]));
    let error = loop {
        match timeout(Duration::from_secs(1), &mut query).await {
            Ok(answer) => break answer.unwrap_err(),
            Err(_) => drop(timeout(GENEROUS, connection.cancel()).await.unwrap()),
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(cancelling.await.unwrap());
    assert_eq!(number(&connection, "select 1::bigint").await, 1);
    assert!(!connection.is_over());
}

#[tokio::test]
async fn cancellation_of_one_who_has_no_connection_any_more_strikes_nobody() {
    let server = PostgresServer::start();
    let pool = pool(&server).await;
    let connection = pool.get().await.unwrap();
    let backend = number(&connection, "select pg_backend_pid()::bigint").await;
    let cancel = connection.cancel();
    drop(connection);
    let connection = pool.get().await.unwrap();
    assert_eq!(number(&connection, "select pg_backend_pid()::bigint").await, backend);
    let asked = connection.query_cached("select pg_sleep(0.3)", &[]);
    let (asked, is_over) = tokio::join!(asked, async {
        tokio::time::sleep(Duration::from_millis(100)).await; // it runs by then, or the test shows less
        cancel.await
    });
    assert!(asked.is_ok() && is_over, "{asked:?}");
}

/// One that was under way when the connection was returned may arrive at any time.
#[tokio::test]
async fn connection_whose_cancellation_was_left_is_not_lent_again() {
    let server = PostgresServer::start();
    let pool = pool(&server).await;
    let connection = pool.get().await.unwrap();
    let backend = number(&connection, "select pg_backend_pid()::bigint").await;
    let mut cancel = Box::pin(connection.cancel());
    std::future::poll_fn(|context| {
        assert!(cancel.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    drop(cancel);
    drop(connection);
    assert_ne!(number(&pool.get().await.unwrap(), "select pg_backend_pid()::bigint").await, backend);
}

/// How a statement fails its transaction.
#[derive(Clone, Copy, Debug)]
enum Fails {
    Refused,
    Left,
    Forgotten,
    InABatch,
    AtTheDrivers,
}

#[tokio::test]
async fn transaction_of_which_a_statement_has_failed_is_not_said_to_be_committed() {
    let server = PostgresServer::start();
    let pool = pool(&server).await;
    let wrong = "select 1 / 0";
    for way in [Fails::Refused, Fails::Left, Fails::Forgotten, Fails::InABatch, Fails::AtTheDrivers] {
        // A savepoint undoes the failure, and the transaction can be committed.
        for is_undone in [false, true] {
            let mut connection = pool.get().await.unwrap();
            let pid = process(&connection).await;
            let transaction = connection.transaction().await.unwrap();
            transaction.batch_execute("savepoint before").await.unwrap();
            match way {
                Fails::Refused => drop(transaction.query_cached(wrong, &[]).await.unwrap_err()),
                Fails::Left | Fails::Forgotten => {
                    let mut query = Box::pin(transaction.query_cached(FOREVER, &[]));
                    assert!(timeout(Duration::from_millis(50), &mut query).await.is_err(), "it has ended");
                    match way {
                        Fails::Forgotten => {
                            std::mem::forget(query);
                            server.psql(&format!("select pg_cancel_backend({pid})")).unwrap();
                        }
                        _ => drop(query),
                    }
                }
                Fails::InABatch => drop(transaction.batch_execute(wrong).await.unwrap_err()),
                Fails::AtTheDrivers => drop(transaction.simple_query(wrong).await.unwrap_err()),
            }
            if is_undone {
                transaction.batch_execute("rollback to before").await.unwrap();
            }
            let ended = timeout(GENEROUS, transaction.commit()).await.unwrap();
            match ended {
                Ok(()) => assert!(is_undone, "{way:?}: it was rolled back"),
                Err(error) => {
                    assert!(!is_undone, "{way:?}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Refused, "{way:?}: {error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn constraint_that_was_put_off_fails_the_commit() {
    let server = PostgresServer::start();
    server.psql("create table things (a bigint unique deferrable initially deferred)").unwrap();
    let pool = pool(&server).await;
    let mut connection = pool.get().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute_cached("insert into things values (1), (1)", &[]).await.unwrap();
    assert_eq!(transaction.commit().await.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(number(&connection, "select count(*) from things").await, 0);
}

#[tokio::test]
async fn transaction_is_as_its_options_say() {
    let server = PostgresServer::start();
    let pool = pool(&server).await;
    let mut connection = pool.get().await.unwrap();
    let options = TransactionOptions::new()
        .isolation_level(tokio_postgres::IsolationLevel::Serializable)
        .read_only()
        .deferrable();
    let transaction = connection.transaction_with(options).await.unwrap();
    for (setting, value) in [
        ("transaction_isolation", "serializable"),
        ("transaction_read_only", "on"),
        ("transaction_deferrable", "on"),
    ] {
        let row = transaction.query_one_cached(&format!("show {setting}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), value, "{setting}");
    }
}

/// What one leaves open, in every way that there is.
async fn leave_open(way: usize, mut connection: Lent<'_>) {
    match way {
        0 => drop(connection.transaction().await.unwrap()),
        1 => std::mem::forget(connection.transaction().await.unwrap()),
        2 => connection.batch_execute("begin; set local work_mem = '1MB'").await.unwrap(),
        3 => drop(connection.execute_cached("begin", &[]).await.unwrap()),
        4 => drop(connection.simple_query("begin").await.unwrap()),
        5 => drop(connection.batch_execute("begin; select 1 / 0").await.unwrap_err()),
        6 => {
            let transaction = connection.transaction().await.unwrap();
            transaction.query_cached("select 1 / 0", &[]).await.unwrap_err();
        }
        _ => {
            let mut begin = Box::pin(connection.transaction());
            // Sent, and not answered.
            let _ = timeout(Duration::ZERO, &mut begin).await;
        }
    }
}

#[tokio::test]
async fn nobody_is_lent_a_connection_within_the_transaction_of_another() {
    let server = PostgresServer::start();
    for policy in [ResetPolicy::RollbackIfDirty, ResetPolicy::DiscardAll] {
        // Whether bb8 checks what it lends or not.
        for is_tested in [true, false] {
            let manager = builder(&server).reset(policy).build().unwrap();
            let pool = Pool::builder().max_size(1).test_on_check_out(is_tested).build(manager).await.unwrap();
            let first = process(&pool.get().await.unwrap()).await;
            for way in 0..8 {
                leave_open(way, pool.get().await.unwrap()).await;
                let connection = pool.get().await.unwrap();
                assert!(!is_in_transaction(&connection).await, "{policy:?} {is_tested} {way}");
                assert_eq!(
                    process(&connection).await,
                    first,
                    "{policy:?} {is_tested} {way}: it was replaced"
                );
            }
        }
    }
}

#[tokio::test]
async fn without_a_policy_a_transaction_begun_by_text_is_inherited_and_one_begun_by_guard_is_not() {
    let server = PostgresServer::start();
    let pool = pool_of(1, builder(&server).reset(ResetPolicy::None).build().unwrap()).await;
    for way in [0, 1, 6, 7] {
        leave_open(way, pool.get().await.unwrap()).await;
        assert!(!is_in_transaction(&pool.get().await.unwrap()).await, "{way}");
    }
    leave_open(2, pool.get().await.unwrap()).await;
    assert!(is_in_transaction(&pool.get().await.unwrap()).await, "or the tests above show nothing");
}

#[tokio::test]
async fn locks_of_a_dropped_transaction_are_free_before_anybody_asks_for_its_connection() {
    let server = PostgresServer::start();
    server.psql("create table things (a bigint); insert into things values (1)").unwrap();
    let pool = pool(&server).await;
    let mut connection = pool.get().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    transaction.execute_cached("update things set a = 2", &[]).await.unwrap();
    drop(transaction);
    drop(connection);
    until("nobody holds a lock", async || {
        let held = server
            .psql("select count(*) from pg_locks where locktype = 'relation' and mode = 'RowExclusiveLock'");
        (held.unwrap() == "0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_session_holds_is_given_up_if_the_policy_says_so() {
    let server = PostgresServer::start();
    server.psql("create role other").unwrap();
    let leave = async |pool: &Pool<PostgresManager>| {
        let connection = pool.get().await.unwrap();
        connection
            .query_cached("select set_config('statement_timeout', '1234ms', false)", &[])
            .await
            .unwrap();
        connection.query_cached("select pg_advisory_lock(7)", &[]).await.unwrap();
        connection.batch_execute("create temp table mine (); listen news; set role other").await.unwrap();
    };
    let found = "select concat_ws(' ', current_setting('statement_timeout'), \
        (select count(*) from pg_locks where locktype = 'advisory'), to_regclass('mine') is not null, \
        (select count(*) from pg_listening_channels()), current_user)";
    let find = async |pool: &Pool<PostgresManager>| -> String {
        pool.get().await.unwrap().query_one_cached(found, &[]).await.unwrap().get(0)
    };
    let discards = pool_of(1, builder(&server).reset(ResetPolicy::DiscardAll).build().unwrap()).await;
    assert_eq!(find(&discards).await, "30s 0 f 0 postgres");
    leave(&discards).await;
    assert_eq!(find(&discards).await, "30s 0 f 0 postgres");
    let connection = discards.get().await.unwrap();
    assert_eq!(connection.prepared(), 3, "statements stay prepared");
    drop(connection);
    drop(discards);

    let keeps = pool(&server).await;
    leave(&keeps).await;
    assert_eq!(find(&keeps).await, "1234ms 1 t 1 other", "or the test above shows nothing");
}

// Callers who leave.

#[tokio::test]
async fn query_that_nobody_waits_for_is_cancelled_and_its_connection_is_used_again() {
    let server = PostgresServer::start();
    let pool = patient_pool(&server).await;
    let connection = pool.get().await.unwrap();
    let first = process(&connection).await;
    leave(&server, &connection).await;
    // In the same checkout,
    assert_eq!(process(&connection).await, first);
    leave(&server, &connection).await;
    drop(connection);
    // and in another one.
    let connection = pool.get().await.unwrap();
    assert_eq!(process(&connection).await, first, "it was replaced");
    assert_eq!(active(&server, "%pg_sleep(600)%"), 0);
}

#[tokio::test]
async fn query_of_the_drivers_client_that_nobody_waits_for_is_cancelled_on_return() {
    let server = PostgresServer::start();
    for policy in [ResetPolicy::None, ResetPolicy::RollbackIfDirty, ResetPolicy::DiscardAll] {
        let pool = pool_of(1, builder(&server).statement_timeout(None).reset(policy).build().unwrap()).await;
        let connection = pool.get().await.unwrap();
        let first = process(&connection).await;
        let _ = timeout(Duration::from_millis(50), connection.simple_query(FOREVER)).await;
        drop(connection);
        assert_eq!(process(&pool.get().await.unwrap()).await, first, "{policy:?}");
    }
}

#[tokio::test]
async fn statement_that_is_still_being_prepared_is_not_in_the_transaction_of_the_next() {
    let server = PostgresServer::start();
    server.psql("create type mood as enum ('sad')").unwrap();
    for round in 0..30 {
        let pool = pool(&server).await; // what a type is, is asked once on each connection
        let connection = pool.get().await.unwrap();
        {
            // Some trips to the server, and it is left at one of them.
            let mut asks = Box::pin(connection.query_cached("select 'sad'::mood", &[]));
            for _ in 0..1 + round % 5 {
                let asked = poll_fn(|context| Poll::Ready(asks.as_mut().poll(context))).await;
                assert!(asked.is_pending(), "it is answered before it is left");
                tokio::task::yield_now().await;
            }
        }
        drop(connection);
        let mut connection = pool.get().await.unwrap();
        let transaction = connection.transaction().await.unwrap();
        // Refused once anything else was asked within it.
        let set = transaction.batch_execute("set transaction isolation level serializable").await;
        assert!(set.is_ok(), "round {round}: {set:?}");
    }
}

#[tokio::test]
async fn cancellation_strikes_nobody_else() {
    let server = PostgresServer::start();
    let pool = pool(&server).await;
    let connection = pool.get().await.unwrap();
    let first = process(&connection).await;
    // Around the moment at which what was left is cancelled, and after that.
    for round in 0..150_u64 {
        let sleeps = format!("select pg_sleep({})", 0.0005 * (round % 50) as f64);
        let _ = timeout(Duration::from_micros(round % 7 * 300), connection.query_cached(&sleeps, &[])).await;
        for number in 0..3_i64 {
            let row = connection.query_one_cached("select $1::bigint, pg_sleep(0.001)", &[&number]).await;
            assert_eq!(row.unwrap().get::<_, i64>(0), number, "round {round}");
        }
    }
    assert_eq!(process(&connection).await, first);
}

#[tokio::test]
async fn caller_who_leaves_takes_no_answer_from_those_who_ask_at_the_same_time() {
    let server = PostgresServer::start();
    let pool = patient_pool(&server).await;
    let connection = pool.get().await.unwrap();
    let sleep = async |seconds: f64| connection.query_cached("select pg_sleep($1)", &[&seconds]).await;
    // Prepared, so that they are sent in the order in which they are asked.
    sleep(0.0).await.unwrap();
    // The one who stays is served first; then what the other has left is cancelled.
    let (stayed, left) = tokio::join!(sleep(0.3), timeout(Duration::from_millis(20), sleep(600.0)));
    stayed.unwrap();
    assert!(left.is_err());
    assert_eq!(number(&connection, "select 1::bigint").await, 1);
}

#[tokio::test]
async fn query_that_was_left_ahead_of_others_ends_by_the_servers_timeout_and_theirs_is_answered() {
    let server = PostgresServer::start();
    let manager = builder(&server).statement_timeout(Some(Duration::from_millis(300))).build().unwrap();
    let pool = pool_of(1, manager).await;
    let connection = pool.get().await.unwrap();
    let sleep = async |seconds: f64| connection.query_cached("select pg_sleep($1)", &[&seconds]).await;
    sleep(0.0).await.unwrap();
    // Cancelled, it might be the one behind that is struck.
    let (left, stayed) = tokio::join!(timeout(Duration::from_millis(20), sleep(600.0)), sleep(0.1));
    assert!(left.is_err());
    stayed.unwrap();
}

#[tokio::test]
async fn commit_whose_caller_has_gone_has_a_second_to_end() {
    let server = PostgresServer::start();
    server
        .psql(
            "create table things (seconds float8); \
             create function slow() returns trigger language plpgsql as \
             $$ begin perform pg_sleep(new.seconds); return null; end $$; \
             create constraint trigger slow after insert on things deferrable initially deferred \
             for each row execute function slow()",
        )
        .unwrap();
    for policy in [ResetPolicy::RollbackIfDirty, ResetPolicy::DiscardAll] {
        server.psql("truncate things").unwrap();
        let pool = pool_of(1, builder(&server).statement_timeout(None).reset(policy).build().unwrap()).await;
        for seconds in [0.3, 600.0] {
            let mut connection = pool.get().await.unwrap();
            let transaction = connection.transaction().await.unwrap();
            transaction.batch_execute("set local work_mem = '1MB'").await.unwrap(); // dirty
            transaction.execute_cached("insert into things values ($1)", &[&seconds]).await.unwrap();
            assert!(timeout(Duration::from_millis(50), transaction.commit()).await.is_err());
        }
        until("it is committed, and the other one is not waited for", async || {
            let connection = pool.get().await.unwrap();
            let is_committed = number(&connection, "select count(*) from things").await == 1;
            (is_committed && active(&server, "%commit%") == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn connection_that_cannot_be_mended_is_given_up() {
    let server = PostgresServer::start();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
    let proxy = FaultProxy::start(address).await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let manager = PostgresManager::builder(&url).unwrap().build().unwrap();
    let pool = pool_of(1, manager).await;
    let connection = pool.get().await.unwrap();
    leave(&server, &connection).await;
    proxy.set(Weather::Stall);
    // Who asks is told when it is given up, and does not wait for the network's time-out. So is who has asked the
    // driver's client.
    let asked =
        async { tokio::join!(connection.query_cached("select 1", &[]), connection.simple_query("select 1")) };
    let (answer, raw) = timeout(GENEROUS, asked).await.unwrap();
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Disconnected);
    assert!(raw.unwrap_err().is_closed());
    assert!(connection.is_over());
    drop(connection);
    proxy.set(Weather::Clear);
    assert_eq!(number(&pool.get().await.unwrap(), "select 1::bigint").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_leave_at_any_moment_leave_nothing_wrong_behind() {
    let server = PostgresServer::start();
    server.psql("create table things (a bigint)").unwrap();
    let manager = builder(&server).reset(ResetPolicy::DiscardAll).build().unwrap();
    let pool = pool_of(3, manager).await;
    let served = Arc::new(AtomicU64::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8_u64 {
        let (pool, served) = (pool.clone(), Arc::clone(&served));
        callers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(caller);
            for _ in 0..60 {
                let use_it = async {
                    let mut connection = pool.get().await.unwrap();
                    assert!(!is_in_transaction(&connection).await);
                    let changed = "select current_setting('work_mem') = '1234kB'";
                    assert!(!truth(&connection, changed).await);
                    let transaction = connection.transaction().await.unwrap();
                    transaction.batch_execute("set work_mem = '1234kB'").await.unwrap();
                    let mine = i64::try_from(caller).unwrap();
                    let row = transaction
                        .query_one_cached("select $1::bigint, pg_sleep(0.002)", &[&mine])
                        .await
                        .unwrap();
                    assert_eq!(row.get::<_, i64>(0), mine);
                    transaction.execute_cached("insert into things values ($1)", &[&mine]).await.unwrap();
                    transaction.commit().await.unwrap();
                };
                let patience = Duration::from_micros(random.u64(0..20_000));
                let is_patient = random.u8(0..4) == 0;
                if timeout(if is_patient { GENEROUS } else { patience }, use_it).await.is_ok() {
                    served.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    let connection = pool.get().await.unwrap();
    let rows = number(&connection, "select count(*) from things").await;
    let served = i64::try_from(served.load(Ordering::Relaxed)).unwrap();
    assert!(rows >= served && served > 0, "{rows} rows, and {served} were told so");
}

// Failure.

#[tokio::test]
async fn what_keeps_a_connection_from_being_made_is_a_kind_of_its_own_and_holds_no_secret() {
    let server =
        PostgresServer::start_with(&[("max_connections", "12"), ("superuser_reserved_connections", "3")]);
    server.psql("create role server login password 'right'").unwrap();
    ask_for_passwords(&server);
    let url =
        |user: &str, host: &str, rest: &str| format!("postgres://{user}@{host}:{}/{rest}", server.port());
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cases = [
        (url("server:hunter2", "127.0.0.1", "postgres"), ErrorKind::Credentials),
        (url("server", "127.0.0.1", "postgres"), ErrorKind::Credentials),
        (url("server:hunter2", "no-such-host.invalid", "postgres"), ErrorKind::HostNotFound),
        (url("server:right", "127.0.0.1", "hunter2"), ErrorKind::Refused),
        ("postgres://server:hunter2@127.0.0.1:1/postgres".to_owned(), ErrorKind::Unavailable),
        (format!("postgres://server:hunter2@{}/postgres", silent.local_addr().unwrap()), ErrorKind::TimedOut),
        (url("server:right", "127.0.0.1", "postgres?target_session_attrs=read-only"), ErrorKind::Unavailable),
    ];
    for (url, kind) in cases {
        let manager =
            PostgresManager::builder(&url).unwrap().connect_timeout(Duration::from_secs(2)).build().unwrap();
        // The server reads its rules when it gets to it.
        let error = until(&format!("{kind:?}"), async || {
            let error = timeout(GENEROUS, manager.connect()).await.unwrap().err();
            error.filter(|error| error.kind() == kind)
        })
        .await;
        assert!(std::error::Error::source(&error).is_some(), "{error}");
        let told = format!("{error} {error:?} {manager:?}");
        assert!(!told.contains("hunter2") && !told.contains("right"), "{told}");
    }
    let right = url("server:right", "127.0.0.1", "postgres");
    let mut taken = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&right, NoTls).await {
        tokio::spawn(connection);
        taken.push(client);
    }
    let manager = PostgresManager::builder(&right).unwrap().build().unwrap();
    let error = manager.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyConnections);
    assert!(error.is_retryable());
    // What a server said is worth more than that another cannot be reached.
    let (port, closed) = (server.port(), "127.0.0.1:1");
    let hosts = [format!("127.0.0.1:{port},{closed}"), format!("{closed},127.0.0.1:{port}")];
    for host in hosts {
        for (password, kind) in
            [("right", ErrorKind::TooManyConnections), ("hunter2", ErrorKind::Credentials)]
        {
            let url = format!("postgres://server:{password}@{host}/postgres");
            let error = PostgresManager::builder(&url).unwrap().build().unwrap().connect().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{host}");
        }
    }
}

/// From now on everybody but `postgres` needs a password.
fn ask_for_passwords(server: &PostgresServer) {
    let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256";
    server.write_file("pg_hba.conf", rules);
    server.psql("select pg_reload_conf()").unwrap();
}

#[tokio::test]
async fn host_that_is_silent_leaves_time_for_the_next() {
    let server = PostgresServer::start();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres",
        silent.local_addr().unwrap().port(),
        server.port()
    );
    let manager =
        PostgresManager::builder(&url).unwrap().connect_timeout(Duration::from_secs(4)).build().unwrap();
    let connection = manager.connect().await.unwrap();
    assert_eq!(number(&connection, "select 1::bigint").await, 1);
}

#[tokio::test]
async fn server_that_goes_down_in_the_middle_is_told_and_every_connection_is_replaced() {
    let mut server = PostgresServer::start();
    let manager = manager(&server);
    let pool = pool_of(2, manager.clone()).await;
    let (busy, idle) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let end = async {
        until("the query runs", async || (active(&server, "%pg_sleep(600)%") > 0).then_some(())).await;
        server
            .psql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(600)'")
            .unwrap();
    };
    let (answer, ()) = tokio::join!(busy.query_cached(FOREVER, &[]), end);
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.is_retryable());
    assert_eq!(manager.generation(), 1);
    assert!(busy.is_over() && idle.is_over(), "the other one goes as well");
    drop((busy, idle));
    assert!(!pool.get().await.unwrap().is_over());
    assert_eq!(manager.generation(), 1, "however many noticed");

    // Without a word.
    let connection = pool.get().await.unwrap();
    let (answer, ()) = tokio::join!(connection.query_cached(FOREVER, &[]), async {
        until("the query runs", async || (active(&server, "%pg_sleep(600)%") > 0).then_some(())).await;
        server.kill();
    });
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Disconnected);
    drop(connection);
    let error = manager.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.restart();
    let connection = pool.get().await.unwrap();
    assert_eq!(number(&connection, "select 1::bigint").await, 1);
}

#[tokio::test]
async fn server_that_ends_idle_connections_is_noticed_without_a_question() {
    let server = PostgresServer::start();
    let manager = manager(&server);
    let pool = pool_of(1, manager.clone()).await;
    let pid = process(&pool.get().await.unwrap()).await;
    server.psql(&format!("select pg_terminate_backend({pid})")).unwrap();
    until("the generation rises", async || (manager.generation() == 1).then_some(())).await;
    assert_ne!(process(&pool.get().await.unwrap()).await, pid);
}

#[tokio::test]
async fn server_that_became_read_only_is_left_and_a_transaction_that_asked_for_it_stays() {
    let server = PostgresServer::start();
    server.psql("create table things (a bigint)").unwrap();
    let clock = Clock::manual();
    let manager = builder(&server).clock(clock.clone()).build().unwrap();
    let insert = "insert into things values (1)";
    let mut connection = manager.connect().await.unwrap();
    let transaction = connection.transaction_with(TransactionOptions::new().read_only()).await.unwrap();
    assert_eq!(transaction.execute_cached(insert, &[]).await.unwrap_err().kind(), ErrorKind::Refused);
    drop(transaction);
    assert_eq!((manager.generation(), connection.is_over()), (0, false));

    server.psql("alter database postgres set default_transaction_read_only = on").unwrap();
    let demoted = manager.connect().await.unwrap();
    let error = demoted.execute_cached(insert, &[]).await.unwrap_err();
    assert!(error.to_string().contains("read only"), "{error}");
    assert_eq!(manager.generation(), 1);
    assert!(demoted.is_over() && connection.is_over());
    // It still is, and connecting again and again would not change that.
    let demoted = manager.connect().await.unwrap();
    demoted.execute_cached(insert, &[]).await.unwrap_err();
    assert_eq!((manager.generation(), demoted.is_over()), (1, false));
    clock.advance(Duration::from_secs(10));
    demoted.execute_cached(insert, &[]).await.unwrap_err();
    assert_eq!((manager.generation(), demoted.is_over()), (2, true));
}

#[tokio::test]
async fn all_are_replaced_when_asked_for() {
    let server = PostgresServer::start();
    let manager = manager(&server);
    let pool = pool_of(1, manager.clone()).await;
    let first = process(&pool.get().await.unwrap()).await;
    manager.retire_all();
    let second = process(&pool.get().await.unwrap()).await;
    assert_ne!(first, second);
    let connection = pool.get().await.unwrap();
    connection.retire();
    assert_eq!(connection.query_cached("select 1", &[]).await.unwrap_err().kind(), ErrorKind::Disconnected);
    drop(connection);
    assert_ne!(process(&pool.get().await.unwrap()).await, second);
}

#[tokio::test]
async fn errors_of_the_server_are_its_own_and_no_reason_to_leave() {
    let server = PostgresServer::start();
    server.psql("create table things (a bigint primary key); insert into things values (1)").unwrap();
    let pool =
        pool_of(1, builder(&server).statement_timeout(Some(Duration::from_millis(50))).build().unwrap())
            .await;
    let connection = pool.get().await.unwrap();
    let kind = async |sql: &str| -> Error { connection.query_cached(sql, &[]).await.unwrap_err() };
    for (sql, expected) in [
        ("select 'hunter2' from", ErrorKind::Refused),
        ("insert into things values (1)", ErrorKind::Refused),
        ("select * from nowhere", ErrorKind::Refused),
        (FOREVER, ErrorKind::TimedOut),
    ] {
        let error = kind(sql).await;
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.downcast_source::<tokio_postgres::Error>().is_some());
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
    let many = connection.query_opt_cached("select 1 union select 2", &[]).await.unwrap_err();
    assert_eq!(many.kind(), ErrorKind::Refused);
    let none = connection.query_one_cached("select 1 where false", &[]).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Refused);
    assert!(!connection.is_over());
    assert_eq!(connection.statements(), 4, "what could not be prepared is not kept");
}

// Slow transactions.

#[tokio::test]
async fn transaction_that_was_open_for_long_is_logged_with_the_place_where_it_was_begun() {
    let server = PostgresServer::start();
    let logs = Logs::default();
    // With a second subscriber about, no thread may decide for all that nobody listens.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _guard = tracing::subscriber::set_default(logs.clone());
    let clock = Clock::manual();
    let manager = builder(&server).clock(clock.clone()).build().unwrap();
    let mut connection = manager.connect().await.unwrap();
    let quick = connection.transaction().await.unwrap();
    clock.advance(Duration::from_millis(999));
    quick.commit().await.unwrap();
    assert_eq!(logs.slow(), Vec::<String>::new());

    let line = line!() + 1;
    let slow = connection.transaction().await.unwrap();
    clock.advance(Duration::from_secs(1));
    slow.commit().await.unwrap();
    let dropped = connection.transaction().await.unwrap();
    clock.advance(Duration::from_secs(2));
    drop(dropped);
    let logged = logs.slow();
    assert_eq!(logged.len(), 2, "{logged:?}");
    let place = format!("tests/postgres_pool.rs:{line}:");
    assert!(logged[0].contains(&place) && logged[0].contains("committed"), "{logged:?}");
    assert!(logged[1].contains("dropped") && logged[1].contains("2s"), "{logged:?}");
}

/// What is logged, a line for an event.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<String>>>);

impl Logs {
    fn slow(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines.iter().filter(|line| line.contains("a transaction was open for long")).cloned().collect()
    }
}

impl tracing::Subscriber for Logs {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("mcp_perf")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        #[derive(Default)]
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{}={value:?} ", field.name()));
            }
        }
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn transaction_that_cannot_be_serialized_was_rolled_back_and_may_be_tried_again() {
    let server = PostgresServer::start();
    server
        .psql("create table accounts (id bigint, balance bigint); insert into accounts values (1, 0), (2, 0)")
        .unwrap();
    let pool = pool_of(2, manager(&server)).await;
    let (mut one, mut two) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let serializable =
        || TransactionOptions::new().isolation_level(tokio_postgres::IsolationLevel::Serializable);
    let one = one.transaction_with(serializable()).await.unwrap();
    let two = two.transaction_with(serializable()).await.unwrap();
    let write = "update accounts set balance = (select sum(balance) from accounts) + 1 where id = $1";
    one.execute_cached(write, &[&1_i64]).await.unwrap();
    two.execute_cached(write, &[&2_i64]).await.unwrap();
    one.commit().await.unwrap();
    let error = two.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    assert!(error.to_string().starts_with("postgres rolled back (commit)"), "{error}");
    assert_eq!(server.psql("select sum(balance) from accounts").unwrap(), "1");
}

/// What another server says to this one, of which a foreign table is, comes with the codes of a server that goes, and is
/// said here by a function; and so may be what a value that cannot be written says.
#[tokio::test]
async fn error_that_a_healthy_server_passes_on_retires_nothing() {
    let server = PostgresServer::start();
    server
        .psql("create function \"remote SQL command\"() returns void language plpgsql as $$ begin raise exception using errcode = '25006'; end $$")
        .unwrap();
    let manager = manager(&server);
    let (one, other) = (manager.connect().await.unwrap(), manager.connect().await.unwrap());
    for code in ["08001", "08006", "08P01", "53300", "57P01", "57P02", "57P03", "57014", "25P03"] {
        let raise = format!("do $$ begin raise exception using errcode = '{code}'; end $$");
        let error = one.batch_execute(&raise).await.unwrap_err();
        let kind = if code == "57014" { ErrorKind::TimedOut } else { ErrorKind::Refused };
        assert_eq!((error.kind(), one.is_over(), other.is_over()), (kind, false, false), "{error}");
    }
    let error = one.query_cached("select \"remote SQL command\"()", &[]).await.unwrap_err();
    assert_eq!((error.kind(), one.is_over(), other.is_over()), (ErrorKind::Refused, false, false), "{error}");
    let error = one.query_cached("select $1::text", &[&Unwritten]).await.unwrap_err();
    assert_eq!((error.kind(), one.is_over(), other.is_over()), (ErrorKind::Refused, false, false), "{error}");
    one.batch_execute("select 1").await.unwrap();
}

/// A value that cannot be written.
#[derive(Debug)]
struct Unwritten;

impl ToSql for Unwritten {
    fn to_sql(&self, _: &Type, _: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        Err(std::io::Error::from_raw_os_error(104).into())
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[tokio::test]
async fn server_that_says_that_it_goes_retires_every_connection() {
    let server = PostgresServer::start();
    let manager = manager(&server);
    let (one, other) = (manager.connect().await.unwrap(), manager.connect().await.unwrap());
    let error = one.batch_execute("select pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    assert!(one.is_over() && other.is_over());
    let after = one.batch_execute("select 1").await.unwrap_err();
    assert_eq!(after.kind(), ErrorKind::Disconnected);
    assert_eq!(std::error::Error::source(&after).expect("why").to_string(), error.to_string());
}

/// A pooler in between says what is fatal in the words of the log alone, and not in the field that is the same in any
/// language.
#[tokio::test]
async fn what_is_fatal_is_told_by_a_pooler_as_well() {
    for (code, kind) in [("08P01", ErrorKind::Unavailable), ("53300", ErrorKind::TooManyConnections)] {
        for fields in [vec!["SFATAL"], vec!["SFATAL", "VFATAL"]] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let code = format!("C{code}");
            let fields = fields.into_iter().chain([&*code, "Mno more"]);
            let text: Vec<u8> =
                fields.flat_map(|field| [field.as_bytes(), b"\0"].concat()).chain([0]).collect();
            let length = u32::try_from(text.len() + 4).unwrap().to_be_bytes();
            let answer = [b"E".as_slice(), &length, &text].concat();
            let pooler = tokio::spawn(async move {
                let (mut caller, _) = listener.accept().await.unwrap();
                let mut startup = [0; 1024];
                let _ = caller.read(&mut startup).await.unwrap();
                caller.write_all(&answer).await.unwrap();
            });
            let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
            let manager = PostgresManager::builder(&url).unwrap().build().unwrap();
            let error = manager.connect().await.map(drop).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            pooler.await.unwrap();
        }
    }
}
