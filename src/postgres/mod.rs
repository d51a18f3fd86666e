//! PostgreSQL (13 or later) as the remote tier of a cache, and as its invalidation bus.
//!
//! For those who have a PostgreSQL and no Redis, and want one cache for several processes. A read is one prepared
//! statement, which brings the entry, what is left of its life and the stamps of its tags; a write is one
//! statement, too. The tables are `UNLOGGED`: they cost no write-ahead log and are not replicated, and after a
//! crash of the server they are empty, which is a miss and nothing worse.
//!
//! ```no_run
//! use mcp_perf::{cache::Cache, postgres::PostgresStore};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
//! let store = PostgresStore::new("postgres://server@127.0.0.1/server")?.prefix("my_server")?;
//! store.migrate().await?; // makes the tables, unless they are there
//! let cache: Cache<String> = Cache::builder("answers").remote(store).build().await?;
//! # Ok(()) }
//! ```
//!
//! # Connections
//!
//! Three for a store, however many tasks use it: two for reading and one for writing, each of which carries the
//! queries of many callers at once. So nobody waits for a connection, and no read waits behind a write that waits
//! for a lock. bb8 makes, keeps and replaces them; a connection that was closed, or on which three calls in a row
//! went unanswered, is replaced when it is next asked for, and a call whose connection was cut is made again on
//! another one. A bus has two more, of which one listens. Every connection is set up as follows; what the URL says in `options` comes after and wins.
//!
//! | setting | value | why |
//! |---|---|---|
//! | `application_name` | `mcp-perf`, unless the URL has one | to be found in `pg_stat_activity` |
//! | `statement_timeout` | 2 s | the caller has given up by then, and those behind it have not |
//! | `default_transaction_isolation` | `read committed` | compare-and-write waits for the other writer instead of failing |
//! | `plan_cache_mode` | `force_generic_plan` | planning costs more than these queries |
//! | `enable_seqscan`, `enable_hashjoin`, `enable_mergejoin` | off | a plan made while a table was small, and kept, reads it by its key when it is big |
//! | `jit` | off | compiling costs more than these queries |
//! | TCP keepalive, user time-out | 30 s and 3 × 10 s; 30 s | a peer that vanished is noticed |
//!
//! Prepared statements and settings belong to a connection, so a pooler that hands out another one for each
//! transaction does not fit in between.
//!
//! # What has died
//!
//! Nothing that has expired is served, whether its row is still there or not. The rows are deleted by those who
//! write: one write in 500, by chance, starts a purge in the background, which deletes what died more than eleven
//! minutes ago in batches of 500, skips what others hold locked, and ends after 20 batches; a process runs one at
//! a time. [`PostgresStore::purge`] is the same for a scheduler of your own.

mod bus;
mod cache;
mod fence;
mod pool;
mod query;
mod schema;

use std::{error::Error as _, io};

pub use bus::{PostgresBus, PostgresSubscription};
pub use cache::PostgresStore;

use tokio_postgres::error::SqlState;

use crate::{Error, ErrorKind};

/// Sorts a driver's error: is the server away, or did it refuse?
///
/// In fixed words: the full text of the driver and the server, which may quote what was sent, is the source's.
fn sorted(operation: &'static str, error: tokio_postgres::Error) -> Error {
    let (kind, cause) = match error.code() {
        Some(code) => answered(code),
        None => unanswered(&error),
    };
    let message = match kind {
        ErrorKind::Unavailable => format!("postgres cannot be reached ({operation}): {cause}"),
        ErrorKind::TimedOut => format!("postgres took too long ({operation}): {cause}"),
        _ => format!("postgres refused ({operation}): {cause}"),
    };
    Error::with_source(kind, message, error)
}

/// What the server said.
fn answered(code: &SqlState) -> (ErrorKind, String) {
    use ErrorKind::{Refused, TimedOut, Unavailable};
    let (kind, cause) = match *code {
        SqlState::TOO_MANY_CONNECTIONS => (Unavailable, "it has too many connections"),
        SqlState::ADMIN_SHUTDOWN => (Unavailable, "it is shutting down, or ended the connection"),
        SqlState::IDLE_SESSION_TIMEOUT => (Unavailable, "it ended a connection that was idle for too long"),
        SqlState::CRASH_SHUTDOWN => (Unavailable, "it crashed and starts anew"),
        SqlState::CANNOT_CONNECT_NOW => (Unavailable, "it is starting or stopping"),
        SqlState::T_R_DEADLOCK_DETECTED | SqlState::T_R_SERIALIZATION_FAILURE => {
            (Unavailable, "it gave the call up for another one")
        }
        SqlState::QUERY_CANCELED => (TimedOut, "the statement was cancelled"),
        SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME => {
            (Refused, "there are no tables of this schema and prefix; `PostgresStore::migrate` makes them")
        }
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            (Refused, "it does not let this user in from here with this password")
        }
        SqlState::INVALID_CATALOG_NAME => (Refused, "there is no such database"),
        SqlState::INSUFFICIENT_PRIVILEGE => (Refused, "the user lacks a privilege"),
        SqlState::READ_ONLY_SQL_TRANSACTION => (Refused, "it is read only"),
        SqlState::DISK_FULL => (Refused, "its disk is full"),
        SqlState::OUT_OF_MEMORY => (Refused, "it is out of memory"),
        // Five letters and digits, of the server's own.
        _ if code.code().starts_with("08") => {
            return (Unavailable, format!("the connection failed ({})", code.code()));
        }
        _ => return (Refused, format!("error {}", code.code())),
    };
    (kind, cause.to_owned())
}

/// What became of a call that the server did not answer.
fn unanswered(error: &tokio_postgres::Error) -> (ErrorKind, String) {
    use ErrorKind::{Refused, Unavailable};
    use io::ErrorKind::{InvalidData, InvalidInput, TimedOut, UnexpectedEof};
    if error.is_closed() {
        return (Unavailable, "the connection was closed".to_owned());
    }
    let words = error.to_string(); // fixed ones, without the source
    let Some(source) = error.source() else { return (Refused, words) };
    match source.downcast_ref::<io::Error>().map(|io| (io.kind(), io.raw_os_error())) {
        Some((InvalidData | InvalidInput, _)) => (Refused, words),
        Some((kind @ (TimedOut | UnexpectedEof), _)) | Some((kind, Some(_))) => {
            (Unavailable, kind.to_string())
        }
        // Nobody was asked to connect: there was no address to ask for.
        Some((_, None)) => (Unavailable, "the host was not found".to_owned()),
        None if source.to_string() == "password missing" => {
            (Refused, "it asks for a password, and the URL has none".to_owned())
        }
        None => (Refused, words),
    }
}

/// Whether another connection may do better: this one is gone, or has lost what was prepared on it.
fn broke(error: &tokio_postgres::Error) -> bool {
    let Some(answer) = error.as_db_error() else {
        return unanswered(error).0 == ErrorKind::Unavailable;
    };
    let code = answer.code();
    let is_over = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::CRASH_SHUTDOWN,
        SqlState::IDLE_SESSION_TIMEOUT,
    ];
    code.code().starts_with("08")
        || is_over.contains(code)
        || *code == SqlState::INVALID_SQL_STATEMENT_NAME
        // "cached plan must not change result type", which has no code of its own.
        || answer.routine() == Some("RevalidateCachedQuery")
}
