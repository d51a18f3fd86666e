//! What goes wrong with a server, by kind.
//!
//! | what | means | and then |
//! |---|---|---|
//! | more calls wait than there is room for | nothing of the server | overloaded |
//! | no connection, a cut or silent one, no Redis at the other end | it is away | another connection, once |
//! | `MOVED` | the names are at another node of the cluster | a connection to that one, once |
//! | `READONLY` | it is the primary no longer, or not yet | another connection, once |
//! | `TRYAGAIN`, `ASK` | the names are on their way to another node of the cluster | again after a pause, twice; then refused |
//! | `LOADING`, `CLUSTERDOWN`, `MASTERDOWN`, `BUSY` | it cannot answer just now | it is away |
//! | `OOM`, `MISCONF`, `NOREPLICAS` | it takes no writes, and can be read | refused |
//! | `NOAUTH`, `WRONGPASS`, `NOPERM`, and all else | somebody has to set something right | refused |

use std::{fmt, io, sync::Arc};

use super::wire::{Malformed, Refusal};
use crate::{Error, ErrorKind};

/// Why a call was not answered, or not as it was meant to be.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// More calls wait than there is room for.
    Full,
    /// The connection, with what became of it. Whether the call arrived is not known.
    Lost(Lost),
    /// The server answered, and would not.
    Refused(Refusal),
}

/// How a connection ended, or failed to begin.
#[derive(Clone, Debug)]
pub(super) enum Lost {
    Closed,
    Failed(Arc<io::Error>),
    NotRedis,
    Replaced,
    Silent,
    TimedOut,
    /// It brought a message that is longer than any of ours.
    TooLong,
}

impl Fault {
    /// The error of an operation.
    pub(super) fn during(self, operation: &'static str) -> Error {
        if matches!(self, Self::Full) {
            let message = format!("redis was not asked ({operation}): {}", self.cause());
            return Error::with_source(ErrorKind::Overloaded, message, self);
        }
        let Self::Refused(refusal) = &self else {
            let message = format!("redis cannot be reached ({operation}): {}", self.cause());
            return Error::unavailable(message, self);
        };
        // Its first word only: the rest, which may quote what was asked for, is the source's.
        match refusal.code() {
            code if passes(code) => {
                Error::unavailable(format!("redis cannot answer now ({operation}): {code}"), self.clone())
            }
            _ if refusal.line().starts_with(FULL) => {
                Error::unavailable(format!("redis has too many clients ({operation})"), self)
            }
            "" => Error::refused(format!("redis refused ({operation})"), self),
            code => Error::refused(format!("redis refused ({operation}): {code}"), self),
        }
    }

    /// Whether it will be so until somebody sets something right.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Self::Refused(refusal) if !passes(refusal.code()) && !refusal.line().starts_with(FULL))
    }

    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Full => "too many calls wait for it",
            Self::Lost(lost) => lost.cause(),
            Self::Refused(_) => "it refused",
        }
    }
}

/// What a server says that has as many clients as it takes.
const FULL: &str = "ERR max number of clients";

/// Whether a server that refuses with this may answer in a moment, or another one may.
fn passes(code: &str) -> bool {
    matches!(code, "BUSY" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "MOVED" | "READONLY")
}

impl Lost {
    fn cause(&self) -> &'static str {
        match self {
            Self::Closed => "the connection was closed",
            Self::Failed(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "connection refused",
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "the connection was cut",
                io::ErrorKind::InvalidData => "no agreement on TLS",
                _ => "the connection failed",
            },
            Self::NotRedis => "what answers is no Redis",
            Self::Replaced => "the connection was replaced",
            Self::Silent => "the connection fell silent",
            Self::TimedOut => "no connection in time",
            Self::TooLong => "somebody else's message is too long",
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Lost(Lost::Failed(Arc::new(error)))
    }
}

impl From<Malformed> for Fault {
    fn from(_: Malformed) -> Self {
        Self::Lost(Lost::NotRedis)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(Lost::Failed(error)) => error.fmt(f),
            Self::Refused(refusal) => f.write_str(refusal.line()),
            _ => f.write_str(self.cause()),
        }
    }
}

impl std::error::Error for Fault {}
