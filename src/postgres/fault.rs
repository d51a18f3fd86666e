//! What a driver's error means.

use std::{error::Error as _, io};

use tokio_postgres::error::SqlState;

use crate::{Error, ErrorKind};

/// Sorts a driver's error: is the server away, or did it refuse?
///
/// In fixed words: the full text of the driver and the server, which may quote what was sent, is the source's.
pub(super) fn sorted(operation: &'static str, error: tokio_postgres::Error) -> Error {
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
pub(super) fn broke(error: &tokio_postgres::Error) -> bool {
    let Some(answer) = error.as_db_error() else {
        return unanswered(error).0 == ErrorKind::Unavailable;
    };
    let code = answer.code();
    code.code().starts_with("08")
        || [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
        || *code == SqlState::INVALID_SQL_STATEMENT_NAME
        // "cached plan must not change result type", which has no code of its own.
        || answer.routine() == Some("RevalidateCachedQuery")
}
