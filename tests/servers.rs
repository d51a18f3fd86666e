//! The guards of the private servers, on which every other integration test relies.

#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "what the tests share fails and prints as they do"
)]

mod support;

use std::env;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::time::Duration;

use support::postgres::PostgresServer;
use support::process::eventually;
use support::redis::RedisServer;

#[test]
fn redis_answers() {
    let server = RedisServer::start();
    assert_eq!(redis(server.port(), "PING"), "+PONG\r\n");
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}/", server.port()));
}

#[test]
fn redis_takes_arguments() {
    let server = RedisServer::start_with(&["--maxmemory", "2mb"]);
    let answer = redis(server.port(), "CONFIG GET maxmemory");
    assert!(answer.contains("2097152"), "{answer}");
}

#[test]
fn two_redis_servers_do_not_share_data() {
    let (one, other) = (RedisServer::start(), RedisServer::start());
    assert_ne!(one.port(), other.port());
    assert_eq!(redis(one.port(), "SET key here"), "+OK\r\n");
    assert_eq!(redis(other.port(), "GET key"), "$-1\r\n");
}

#[test]
fn killed_redis_comes_back_empty_on_its_port() {
    let mut server = RedisServer::start();
    let port = server.port();
    assert_eq!(redis(port, "SET key here"), "+OK\r\n");
    server.kill();
    assert!(!listens(port));
    server.restart();
    assert_eq!(server.port(), port);
    assert_eq!(redis(port, "GET key"), "$-1\r\n");
}

#[test]
fn paused_redis_answers_only_when_resumed() {
    let server = RedisServer::start();
    let mut stream = connect(server.port());
    server.pause();
    stream.write_all(b"PING\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut answer = [0; 7];
    assert!(stream.read_exact(&mut answer).is_err());
    server.resume();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
}

#[test]
fn paused_redis_is_gone_when_dropped() {
    let server = RedisServer::start();
    let port = server.port();
    server.pause();
    drop(server);
    assert!(!listens(port));
}

#[test]
fn redis_is_gone_after_a_panic() {
    let mut port = 0;
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let server = RedisServer::start();
        port = server.port();
        assert!(listens(port));
        panic!("on purpose, with a server running");
    }));
    assert!(caught.is_err());
    assert!(port != 0 && !listens(port));
}

#[test]
fn redis_is_gone_when_the_tests_end_without_drop() {
    if env::var_os(WITHOUT_DROP).is_some() {
        let server = RedisServer::start();
        end_without_drop(server.port());
    }
    assert_gone_without_drop("redis_is_gone_when_the_tests_end_without_drop");
}

#[test]
fn missing_redis_is_a_failure_that_names_its_package() {
    let output = run_again("redis_answers", "PATH", "/nowhere");
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("install the package `redis-server`"), "{text}");
}

#[test]
fn redis_that_cannot_start_shows_its_log() {
    let caught = catch_unwind(|| RedisServer::start_with(&["--no-such-option", "1"]));
    let message = panic_message(caught);
    assert!(message.contains("no-such-option"), "{message}");
}

#[test]
fn postgres_answers() {
    let server = PostgresServer::start();
    assert_eq!(server.psql("select 1").as_deref(), Ok("1"));
    assert_eq!(server.psql("show fsync").as_deref(), Ok("off"));
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port());
    assert_eq!(server.url(), url);
    let error = server.psql("select nothing").unwrap_err();
    assert!(error.contains("\"nothing\" does not exist"), "{error}");
}

#[test]
fn postgres_has_hypopg() {
    let server = PostgresServer::start();
    server.create_extension("hypopg");
    let sql = "create table t (id int); select indexname is not null from \
               hypopg_create_index('create index on t (id)')";
    assert_eq!(server.psql(sql).as_deref(), Ok("t"));
}

#[test]
fn missing_extension_is_a_failure_that_names_its_package() {
    let server = PostgresServer::start();
    let caught = catch_unwind(|| server.create_extension("nowhere"));
    let message = panic_message(caught);
    assert!(message.contains("install the package `postgresql-"), "{message}");
    assert!(message.contains("-nowhere`"), "{message}");
}

#[test]
fn two_postgres_servers_do_not_share_data() {
    let (one, other) = (PostgresServer::start(), PostgresServer::start());
    assert_ne!(one.port(), other.port());
    assert!(one.psql("create table t ()").is_ok());
    assert!(other.psql("select from t").is_err());
}

#[test]
fn killed_postgres_comes_back_with_its_data_on_its_port() {
    let mut server = PostgresServer::start_with(&[("synchronous_commit", "on")]);
    let port = server.port();
    let sql = "create table t (id int); insert into t values (7)";
    server.psql(sql).unwrap();
    server.kill();
    assert!(!listens(port));
    server.restart();
    assert_eq!(server.port(), port);
    assert_eq!(server.psql("select id from t").as_deref(), Ok("7"));
}

#[test]
fn paused_postgres_answers_only_when_resumed() {
    let server = PostgresServer::start();
    let mut stream = connect(server.port());
    server.pause();
    stream.write_all(&SSL_REQUEST).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut answer = [0];
    assert!(stream.read_exact(&mut answer).is_err());
    server.resume();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"N");
}

#[test]
fn postgres_and_its_connections_are_gone_after_a_panic() {
    let mut held = None;
    let mut port = 0;
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let server = PostgresServer::start();
        port = server.port();
        let mut stream = connect(port);
        stream.write_all(&SSL_REQUEST).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        held = Some(stream);
        panic!("on purpose, with a server running");
    }));
    assert!(caught.is_err());
    assert!(port != 0 && !listens(port));
    // Closed by the process that served it, so that one is gone too.
    match held.unwrap().read(&mut [0]) {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn postgres_is_gone_when_the_tests_end_without_drop() {
    if env::var_os(WITHOUT_DROP).is_some() {
        let server = PostgresServer::start();
        end_without_drop(server.port());
    }
    assert_gone_without_drop("postgres_is_gone_when_the_tests_end_without_drop");
}

#[test]
fn postgres_that_cannot_start_shows_its_log() {
    let caught = catch_unwind(|| PostgresServer::start_with(&[("no_such_setting", "1")]));
    let message = panic_message(caught);
    assert!(message.contains("no_such_setting"), "{message}");
}

const PATIENCE: Duration = Duration::from_secs(30);

/// The first message of a PostgreSQL client: its length and a code; answered by `N` or `S`.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Tells a test that it runs in a process of its own, which it ends.
const WITHOUT_DROP: &str = "MCP_PERF_TEST_ENDS_WITHOUT_DROP";

fn end_without_drop(port: u16) -> ! {
    println!("\nport={port}");
    std::process::exit(0)
}

fn assert_gone_without_drop(test: &str) {
    let output = run_again(test, WITHOUT_DROP, "1");
    let text = text(&output);
    let port = text.lines().find_map(|line| line.strip_prefix("port="));
    let port = port.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    assert!(eventually(|| !listens(port)), "port {port}");
}

/// Runs one test of this file in a process of its own.
fn run_again(test: &str, variable: &str, value: &str) -> Output {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(variable, value)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn panic_message<T>(caught: std::thread::Result<T>) -> String {
    let Err(panic) = caught else {
        panic!("it did not panic");
    };
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The raw answer to one command.
fn redis(port: u16, command: &str) -> String {
    let mut stream = connect(port);
    write!(stream, "{command}\r\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
