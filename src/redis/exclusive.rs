//! Connections that one caller has to itself, for a pool.
//!
//! The connections of a cache carry the calls of many callers at once, and a command that waits on the server, as
//! `BLPOP`, would hold up all of them. For such commands a pool lends connections, and then what one caller leaves is a
//! danger to the next: a command whose caller has gone still waits on the server, takes an element that nobody will see,
//! and its answer is read as that of the next command. So the command has the connection's stream until its answer is read
//! to the end, and takes it along when it is dropped: the server sees it closed and ends the command, whether or not the
//! connection is returned.

use std::{
    error::Error as _,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Waker},
};

use ::redis::{Arg, Cmd, FromRedisValue, Value, parse_redis_value};
use bb8::ManageConnection;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};

use super::{
    address::Address,
    connection::Stream,
    fault::{Fault, Lost},
    wire::{self, Extent},
};
use crate::{Error, ErrorKind, clock::Clock, generation::Generation};

/// Commands that change what a connection is to the server. `CLIENT` is looked at more closely.
const CHANGING: [&str; 21] = [
    "ASKING",
    "AUTH",
    "HELLO",
    "MONITOR",
    "MULTI",
    "PSUBSCRIBE",
    "PSYNC",
    "PUNSUBSCRIBE",
    "QUIT",
    "READONLY",
    "READWRITE",
    "REPLCONF",
    "RESET",
    "SCRIPT",
    "SELECT",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "SYNC",
    "UNSUBSCRIBE",
    "WATCH",
];
/// So much room, in bytes, a connection keeps for answers that come.
const MOST_ROOM: usize = 64 * 1024;
/// What of `CLIENT` changes nothing of the connection itself.
const UNCHANGING: [&str; 7] = ["GETNAME", "ID", "INFO", "KILL", "LIST", "TRACKINGINFO", "UNBLOCK"];

/// Makes connections to Redis for a pool, of which each caller has one to itself: for commands that wait, as `BLPOP`,
/// `BLMOVE` and `XREAD BLOCK`. For all others one connection that everybody shares is faster.
///
/// It is a [`bb8::ManageConnection`], for bb8's own pool and for this crate's.
///
/// - A connection is closed instead of lent again if a call on it failed or was dropped before its end, if the server has
///   closed it or sent what nobody asked for, and if a command changed what it is (`SELECT`, `MULTI`, `WATCH`,
///   `SUBSCRIBE`, `CLIENT REPLY` and their like).
/// - A server that answers `READONLY` is the primary no longer: every connection that was made before is closed instead
///   of lent again, at most once in ten seconds.
/// - A command waits for its answer for as long as the server does. One that vanished without a word is noticed by TCP's
///   keepalive, after a minute at most (30 s of silence, and three questions 10 s apart; over TCP).
/// - On checkout `is_valid` asks the server by `PING`.
///
/// # Examples
///
/// ```no_run
/// use mcp_perf::redis::RedisManager;
/// use redis::Cmd;
///
/// # #[cfg(feature = "pool")]
/// # async fn work() -> Result<(), mcp_perf::Error> {
/// use mcp_perf::pool::Pool;
///
/// let pool = Pool::builder("queue", RedisManager::new("redis://127.0.0.1:6379")?).size(4).build()?;
/// let mut connection = pool.get().await?;
/// // Dropped while it waits, it takes nothing from the queue.
/// let job: Option<(String, String)> = connection.query(&Cmd::blpop("jobs", 5.0)).await?;
/// # let _ = job; Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RedisManager {
    address: Address,
    generation: Arc<Generation>,
}

/// A connection to Redis that one caller has to itself, made by a [`RedisManager`].
pub struct RedisConnection {
    /// With a command until its answer is read to the end, and gone with one that was not.
    stream: Option<Box<dyn Stream>>,
    incoming: BytesMut,
    has_changed: bool,
    generation: Arc<Generation>,
    /// The generation that it belongs to.
    born: u64,
}

impl RedisManager {
    /// Connections to `redis://[user:password@]host[:port][/database]`, `rediss://` or
    /// `redis+unix:///path[?db=…&user=…&pass=…]`.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if the URL is not of that form. It is not quoted, since it may hold a
    /// password.
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self::at(Address::parse(url)?))
    }

    fn at(address: Address) -> Self {
        Self { address, generation: Arc::new(Generation::new("redis", Clock::system())) }
    }

    /// Whom to trust with `rediss://`: the certificates in this PEM, and no others. Unless set, the authorities that
    /// the system trusts.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if it holds no certificate, or the URL is not one of TLS.
    #[cfg(feature = "redis-tls")]
    pub fn certificate_authority(self, pem: impl AsRef<[u8]>) -> Result<Self, Error> {
        Ok(Self::at(self.address.trusting(pem.as_ref())?))
    }
}

impl ManageConnection for RedisManager {
    type Connection = RedisConnection;
    type Error = Error;

    /// Makes a connection, within two seconds.
    ///
    /// # Errors
    ///
    /// [`Credentials`](ErrorKind::Credentials), [`TooManyConnections`](ErrorKind::TooManyConnections),
    /// [`TimedOut`](ErrorKind::TimedOut), [`Unavailable`](ErrorKind::Unavailable) if nothing answers there or the
    /// server is starting, and [`Refused`](ErrorKind::Refused) for the rest.
    async fn connect(&self) -> Result<RedisConnection, Error> {
        // Before the attempt: what is given up meanwhile may be where this one leads.
        let born = self.generation.current();
        let stream = self.address.open().await.map_err(not_connected)?;
        Ok(RedisConnection {
            stream: Some(stream),
            incoming: BytesMut::new(),
            has_changed: false,
            generation: Arc::clone(&self.generation),
            born,
        })
    }

    /// Asks the server whether it is there.
    async fn is_valid(&self, connection: &mut RedisConnection) -> Result<(), Error> {
        let is_pong = |error: &Error| {
            let refusal = error.source().and_then(|source| source.downcast_ref::<::redis::RedisError>());
            refusal.and_then(::redis::RedisError::code).is_some_and(wire::is_as_good_as_pong)
        };
        match connection.query::<Value>(&::redis::cmd("PING")).await {
            Err(error) if !is_pong(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a call on it failed or was left, it was changed, the server has closed it, or is the primary no longer.
    fn has_broken(&self, connection: &mut RedisConnection) -> bool {
        connection.is_over()
    }
}

impl RedisConnection {
    /// Sends a command and waits for its answer, for as long as that takes.
    ///
    /// # Errors
    ///
    /// [`Refused`](ErrorKind::Refused) if the server refused, with its own words as the source, or answered with
    /// something else than a `T`: the connection is as good as before. [`Unavailable`](ErrorKind::Unavailable) if it said
    /// that it cannot answer now, or leads elsewhere (`LOADING`, `BUSY`, `READONLY`, `MOVED` and the like).
    /// [`Disconnected`](ErrorKind::Disconnected) if the connection broke or was given up before: whether the command was carried out is not known.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end it closes the connection, which answers no more and is not lent again. The server notices
    /// that within moments and does not carry out a command that was still waiting. What it has answered by then is lost:
    /// an element that must not be is taken by `BLMOVE` to a list of those that are being worked at, or from a stream with
    /// `XREADGROUP`.
    pub async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Error> {
        // What there is already is no answer to this one.
        let Some(mut stream) = self.stream.take().filter(|_| self.incoming.is_empty()) else {
            return Err(Error::new(ErrorKind::Disconnected, "redis: the connection was given up"));
        };
        self.has_changed |= is_changing(command);
        let answer = exchange(&mut stream, &mut self.incoming, &command.get_packed_command()).await;
        let answer = answer.map_err(not_answered)?;
        self.stream = Some(stream);
        let wrong = |error| Error::refused("redis answered with another type than was asked for", error);
        match answer {
            Value::ServerError(refusal) => {
                let refusal = ::redis::RedisError::from(refusal);
                if refusal.code() == Some("READONLY") {
                    self.generation.retire_read_only(self.born);
                }
                Err(refused(refusal))
            }
            answer => T::from_redis_value(answer).map_err(wrong),
        }
    }

    /// Whether nobody should use it any more.
    #[must_use]
    pub fn is_over(&mut self) -> bool {
        self.has_changed || self.born < self.generation.current() || self.has_heard()
    }

    /// Whether it is closed, or there is an end or anything else that is no answer. Nothing is waited for.
    fn has_heard(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return true };
        let mut unheard = [0; 1];
        let mut context = Context::from_waker(Waker::noop());
        let heard = Pin::new(&mut **stream).poll_read(&mut context, &mut ReadBuf::new(&mut unheard));
        let has_heard = !self.incoming.is_empty() || heard.is_ready();
        if has_heard {
            self.stream = None;
        }
        has_heard
    }
}

async fn exchange(
    stream: &mut Box<dyn Stream>,
    incoming: &mut BytesMut,
    command: &[u8],
) -> Result<Value, Fault> {
    stream.write_all(command).await?;
    stream.flush().await?;
    let mut extent = Extent::default();
    loop {
        if let Some(length) = extent.of(incoming)? {
            let answer = incoming.split_to(length);
            if length > MOST_ROOM {
                // It would keep all that room for as long as the connection lives.
                *incoming = BytesMut::from(&incoming[..]);
            }
            return parse_redis_value(&answer).map_err(|_| Fault::Lost(Lost::NotRedis));
        }
        if stream.read_buf(incoming).await? == 0 {
            return Err(Fault::Lost(Lost::Closed));
        }
    }
}

/// Whether a command leaves the connection another one than it was.
fn is_changing(command: &Cmd) -> bool {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(word) => word,
        _ => b"",
    });
    let (name, next) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_in =
        |list: &[&str], word: &[u8]| list.iter().any(|other| other.as_bytes().eq_ignore_ascii_case(word));
    if name.eq_ignore_ascii_case(b"CLIENT") { !is_in(&UNCHANGING, next) } else { is_in(&CHANGING, name) }
}

fn refused(refusal: ::redis::RedisError) -> Error {
    // Its first word only: the rest, which may quote what was asked for, is the source's.
    let code = refusal.code().unwrap_or_default().to_owned();
    match code.as_str() {
        "BUSY" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "MOVED" | "READONLY" => {
            Error::unavailable(format!("redis cannot answer now (query): {code}"), refusal)
        }
        _ => Error::refused(format!("redis refused (query): {code}"), refusal),
    }
}

fn not_answered(fault: Fault) -> Error {
    Error::with_source(
        ErrorKind::Disconnected,
        format!("redis: the connection was lost (query): {}", fault.cause()),
        fault,
    )
}

fn not_connected(fault: Fault) -> Error {
    let kind = match &fault {
        Fault::Refused(refusal) if refusal.line().starts_with("ERR max number of clients") => {
            ErrorKind::TooManyConnections
        }
        Fault::Refused(refusal) => match refusal.code() {
            "NOAUTH" | "WRONGPASS" => ErrorKind::Credentials,
            // A password where none is set, or the wrong one for a server before version 6.
            _ if refusal.line().starts_with("ERR AUTH") => ErrorKind::Credentials,
            _ => return fault.during("connect"),
        },
        Fault::Lost(Lost::TimedOut) => ErrorKind::TimedOut,
        Fault::Full | Fault::Lost(_) => return fault.during("connect"),
    };
    Error::with_source(kind, format!("redis: no connection: {}", fault.cause()), fault)
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConnection").field("is_open", &self.stream.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ::redis::cmd;
    use tokio::io::DuplexStream;

    use super::*;

    /// A connection, and what answers at its other end.
    fn connection() -> (RedisConnection, DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let connection = RedisConnection {
            stream: Some(Box::new(near)),
            incoming: BytesMut::new(),
            has_changed: false,
            generation: Arc::new(Generation::new("redis", Clock::system())),
            born: 0,
        };
        (connection, far)
    }

    /// A server answers some commands more than once.
    #[tokio::test]
    async fn answer_that_was_there_before_is_no_answer_of_the_next_command() {
        let (mut connection, mut far) = connection();
        far.write_all(b"+one\r\n+two\r\n").await.unwrap();
        assert_eq!(connection.query::<String>(&cmd("ECHO")).await.unwrap(), "one");
        let error = connection.query::<String>(&cmd("ECHO")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected);
        assert!(connection.is_over());
    }

    #[tokio::test]
    async fn room_for_a_large_answer_is_not_kept() {
        let (mut connection, mut far) = connection();
        let large = format!("$500000\r\n{}\r\n", "x".repeat(500_000));
        for rest in ["", "+more\r\n"] {
            far.write_all(large.as_bytes()).await.unwrap();
            far.write_all(rest.as_bytes()).await.unwrap();
            assert_eq!(connection.query::<String>(&cmd("GET")).await.unwrap().len(), 500_000);
            assert_eq!(connection.incoming, rest.as_bytes());
            assert!(!connection.incoming.try_reclaim(MOST_ROOM + 1));
        }
    }

    #[test]
    fn commands_that_change_a_connection_are_known_however_they_are_written() {
        let unsubscribe = cmd("UNSUBSCRIBE").arg("a").arg("b").clone();
        let reply = cmd("CLIENT").arg("reply").clone();
        for changing in [cmd("select"), cmd("MULTI"), cmd("Watch"), unsubscribe, reply] {
            assert!(is_changing(&changing));
        }
        for harmless in [Cmd::new(), cmd("BLPOP"), cmd("CLIENT").arg("id").clone(), Cmd::get("select")] {
            assert!(!is_changing(&harmless));
        }
    }
}
