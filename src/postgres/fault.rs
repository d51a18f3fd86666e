//! What a driver's error means.

use std::{borrow::Cow, error::Error as _, io};

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::{Error, ErrorKind, error::BoxError};

/// Of PostgreSQL 17.
const TRANSACTION_TIMEOUT: &str = "25P04";
const NO_TABLES: &str = "there is no such table or schema";
const OF_ANOTHER_KIND: &str = "it is not of the kind (`target_session_attrs`) that the URL asks for";
const GAVE_UP: &str = "it gave the call up for another one";

/// A failed call, or a failed attempt to connect, before it is told to the caller.
///
/// In fixed words: the full text of the driver and the server, which may quote what was sent, is the source's.
#[derive(Debug)]
pub(super) struct Fault {
    kind: ErrorKind,
    cause: Cow<'static, str>,
    source: BoxError,
}

impl Fault {
    pub(super) fn new(
        kind: ErrorKind,
        cause: impl Into<Cow<'static, str>>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self { kind, cause: cause.into(), source: source.into() }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether all that is known is that the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.source.downcast_ref::<tokio_postgres::Error>().is_some_and(tokio_postgres::Error::is_closed)
    }

    /// The same of an attempt to connect: a call that was never made is not one whose outcome is unknown.
    pub(super) fn connecting(mut self) -> Self {
        if self.kind == ErrorKind::Disconnected {
            self.kind = ErrorKind::Unavailable;
        }
        self
    }

    pub(super) fn during(self, operation: &'static str) -> Error {
        let Self { kind, cause, source } = self;
        let what = match kind {
            ErrorKind::TimedOut => "postgres took too long",
            ErrorKind::Disconnected => "postgres: the connection was lost",
            _ if cause == GAVE_UP => "postgres rolled back",
            _ if coarse(kind) == ErrorKind::Unavailable => "postgres cannot be reached",
            _ => "postgres refused",
        };
        Error::with_source(kind, format!("{what} ({operation}): {cause}"), source)
    }

    /// Nothing answers there.
    pub(super) fn unreached(error: io::Error) -> Self {
        Self::new(ErrorKind::Unavailable, error.kind().to_string(), error)
    }

    /// The server hung up, and did not say why.
    pub(super) fn ended() -> Self {
        Self::new(
            ErrorKind::Disconnected,
            "the connection was closed",
            io::Error::from(io::ErrorKind::UnexpectedEof),
        )
    }

    /// The server is not one that may be used.
    pub(super) fn of_another_kind() -> Self {
        Self::new(ErrorKind::Unavailable, OF_ANOTHER_KIND, io::Error::from(io::ErrorKind::PermissionDenied))
    }

    /// For the store of a cache, which asks one thing: is the server away, or did it refuse?
    pub(super) fn coarsely(mut self, operation: &'static str) -> Error {
        self.kind = coarse(self.kind);
        if self.cause == NO_TABLES {
            self.cause =
                "there are no tables of this schema and prefix; `PostgresStore::migrate` makes them".into();
        }
        self.during(operation)
    }

    /// The same of an attempt to connect, to which no answer is as good as no server.
    pub(super) fn coarsely_connecting(mut self, operation: &'static str) -> Error {
        if self.kind == ErrorKind::TimedOut {
            self.kind = ErrorKind::Unavailable;
        }
        self.coarsely(operation)
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        let (kind, cause) = match error.code() {
            Some(code) if !is_fatal(&error) && is_of_a_connection(code) => passed_on(code),
            Some(code) => answered(code),
            None => unanswered(&error),
        };
        Self::new(kind, cause, error)
    }
}

fn coarse(kind: ErrorKind) -> ErrorKind {
    match kind {
        ErrorKind::Disconnected | ErrorKind::HostNotFound | ErrorKind::TooManyConnections => {
            ErrorKind::Unavailable
        }
        ErrorKind::Credentials | ErrorKind::Tls => ErrorKind::Refused,
        kind => kind,
    }
}

/// Sorts a driver's error for the store of a cache.
pub(super) fn sorted(operation: &'static str, error: tokio_postgres::Error) -> Error {
    Fault::from(error).coarsely(operation)
}

/// What the server said.
fn answered(code: &SqlState) -> (ErrorKind, Cow<'static, str>) {
    use ErrorKind::{Credentials, Disconnected, Refused, TimedOut, TooManyConnections, Unavailable};
    let (kind, cause) = match *code {
        SqlState::TOO_MANY_CONNECTIONS => (TooManyConnections, "it has too many connections"),
        SqlState::ADMIN_SHUTDOWN => (Disconnected, "it is shutting down, or ended the connection"),
        SqlState::IDLE_SESSION_TIMEOUT => (Disconnected, "it ended a connection that was idle for too long"),
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => {
            (Disconnected, "it ended a connection whose transaction was idle for too long")
        }
        SqlState::CRASH_SHUTDOWN => (Disconnected, "it crashed and starts anew"),
        SqlState::CANNOT_CONNECT_NOW => (Unavailable, "it is starting or stopping"),
        SqlState::T_R_DEADLOCK_DETECTED | SqlState::T_R_SERIALIZATION_FAILURE => (Unavailable, GAVE_UP),
        SqlState::QUERY_CANCELED => (TimedOut, "the statement was cancelled"),
        SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME => (Refused, NO_TABLES),
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            (Credentials, "it does not let this user in from here with this password")
        }
        SqlState::INVALID_CATALOG_NAME => (Refused, "there is no such database"),
        SqlState::INSUFFICIENT_PRIVILEGE => (Refused, "the user lacks a privilege"),
        SqlState::READ_ONLY_SQL_TRANSACTION => (Refused, "it is read only"),
        SqlState::IN_FAILED_SQL_TRANSACTION => (Refused, "an earlier statement of the transaction failed"),
        SqlState::DISK_FULL => (Refused, "its disk is full"),
        SqlState::OUT_OF_MEMORY => (Refused, "it is out of memory"),
        _ if code.code() == TRANSACTION_TIMEOUT => {
            (Disconnected, "it ended a connection whose transaction took too long")
        }
        // Five letters and digits, of the server's own.
        _ if code.code().starts_with("08") => {
            return (Disconnected, format!("the connection failed ({})", code.code()).into());
        }
        _ => return (Refused, format!("error {}", code.code()).into()),
    };
    (kind, cause.into())
}

/// Whether it tells of a connection, if the server says it of its own.
fn is_of_a_connection(code: &SqlState) -> bool {
    let ends = [
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::IDLE_SESSION_TIMEOUT,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    let code = code.code();
    is_of_going_down(code)
        || code.starts_with("08")
        || code == TRANSACTION_TIMEOUT
        || ends.iter().any(|end| end.code() == code)
}

/// What another server said, of which this one tells in a statement's error: a foreign table's, say. This one goes on.
fn passed_on(code: &SqlState) -> (ErrorKind, Cow<'static, str>) {
    (ErrorKind::Refused, format!("error {}", code.code()).into())
}

/// What became of a call that the server did not answer.
fn unanswered(error: &tokio_postgres::Error) -> (ErrorKind, Cow<'static, str>) {
    use ErrorKind::{Credentials, Disconnected, Refused, Tls, Unavailable};
    use io::ErrorKind::{InvalidData, InvalidInput, PermissionDenied, TimedOut, UnexpectedEof};
    if error.is_closed() {
        return (Disconnected, "the connection was closed".into());
    }
    // Fixed ones, without the source. The driver tells its own errors apart by nothing else.
    let words = error.to_string();
    let Some(source) = error.source() else { return (Refused, words.into()) };
    // Code of others, whatever its error is of.
    if ["error serializing", "error deserializing"].iter().any(|how| words.starts_with(how)) {
        return (Refused, words.into());
    }
    match words.as_str() {
        "error performing TLS handshake" if source.to_string() == "server does not support TLS" => {
            return (Tls, "it speaks no TLS, and the URL asks for it".into());
        }
        "error performing TLS handshake" => return (Tls, "TLS could not be agreed on".into()),
        "authentication error" => return (Credentials, "neither side believes the other".into()),
        _ => {}
    }
    match source.downcast_ref::<io::Error>().map(|io| (io.kind(), io.raw_os_error())) {
        Some((InvalidData | InvalidInput, _)) => (Refused, words.into()),
        Some((PermissionDenied, None)) => (Unavailable, OF_ANOTHER_KIND.into()),
        Some((kind @ (TimedOut | UnexpectedEof), _)) | Some((kind, Some(_))) => {
            (Disconnected, kind.to_string().into())
        }
        Some((kind, None)) => (Unavailable, kind.to_string().into()),
        None if source.to_string() == "password missing" => {
            (Credentials, "it asks for a password, and the URL has none".into())
        }
        None => (Refused, words.into()),
    }
}

/// Whether another connection may do better: this one is gone, or has lost what was prepared on it.
pub(super) fn broke(error: &tokio_postgres::Error) -> bool {
    is_over(error) || is_stale(error)
}

/// Whether the connection has ended, or is about to.
pub(super) fn is_over(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(_) => is_fatal(error),
        None => coarse(unanswered(error).0) == ErrorKind::Unavailable,
    }
}

/// Whether it was the last that the server said on this connection. The code alone does not tell: what another server says
/// to this one, of which a foreign table is, comes with the same as the error of a statement.
fn is_fatal(error: &tokio_postgres::Error) -> bool {
    let is_fatal = |answer: &DbError| match answer.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
        // A pooler in between says it in the words of the log alone.
        None => matches!(answer.severity(), "FATAL" | "PANIC"),
    };
    error.as_db_error().is_some_and(is_fatal)
}

/// Whether the server refuses to write, and not another one that it asks, as far as it says so in English.
pub(super) fn is_read_only(error: &tokio_postgres::Error) -> bool {
    let is_of_another =
        |answer: &DbError| answer.where_().is_some_and(|place| place.contains("remote SQL command"));
    error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
        && !error.as_db_error().is_some_and(is_of_another)
}

/// Whether the server said that it goes down, and every connection with it.
pub(super) fn is_going_down(error: &tokio_postgres::Error) -> bool {
    is_fatal(error) && error.code().is_some_and(|code| is_of_going_down(code.code()))
}

fn is_of_going_down(code: &str) -> bool {
    let going = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
    going.iter().any(|going| going.code() == code)
}

/// Whether the statement has to be prepared anew, and was not carried out.
pub(super) fn is_stale(error: &tokio_postgres::Error) -> bool {
    let is_of_the_statement = error.as_db_error().is_some_and(is_of_the_statement);
    is_of_the_statement && (is_forgotten(error) || is_of_other_types(error))
}

/// Whether the server does not know the statement any more, or one that it uses.
pub(super) fn is_forgotten(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME)
}

/// Whether what the statement answers is of other types by now: "cached plan must not change result type", which has no
/// code of its own.
pub(super) fn is_of_other_types(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|answer| answer.routine() == Some("RevalidateCachedQuery"))
}

/// Whether the statement may be of other tables or types than those of now, so that it is as well to prepare it anew
/// when it is next asked for: a type that was replaced, say.
pub(super) fn may_be_outdated(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("42") || *code == SqlState::INTERNAL_ERROR)
}

/// What happened inside of a function or a procedure has that for its context, or begins with it. That may have done
/// something before it failed. A server may be set to name the parameters of a statement.
fn is_of_the_statement(answer: &DbError) -> bool {
    answer.where_().is_none_or(|context| context.starts_with("unnamed portal"))
}
