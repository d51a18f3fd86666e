//! The invalidation bus of a cache in Redis: `PUBLISH` and `SUBSCRIBE`.
//!
//! Every subscription has a connection of its own, in RESP3, and all that is published goes over one more: neither
//! waits for the answers of the cache's store, which may be long. What arrives is handed on from the driver's own
//! task without waiting: who asks too slowly loses the subscription, not the server its memory.
//!
//! Pub/sub in Redis keeps nothing: who is not connected when a message is published never gets it. The cache finds
//! that out by itself. In a cluster `PUBLISH` reaches the subscribers of every node.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind as Cause, IntoConnectionInfo, ProtocolVersion, PushInfo,
    PushKind, RedisError, ServerErrorKind, Value,
    aio::{MultiplexedConnection, SendError},
    cmd,
};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    Error, ErrorKind,
    cache::{Bus, Subscription},
};

/// How many messages wait for one listener, before its subscription ends.
const MOST_WAITING: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(2);

/// A [`Bus`] in Redis 6 or later, or Valkey. Connects when it is first used; clones share the connection that they
/// publish over.
///
/// An ACL user needs `+publish`, `+subscribe` and the channels `mcp-perf:*`, or whatever the
/// [prefix](Self::prefix) is.
///
/// ```no_run
/// use mcp_perf::{cache::Cache, redis::{RedisBus, RedisStore}};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let url = "redis://127.0.0.1:6379";
/// let cache: Cache<String> =
///     Cache::builder("answers").remote(RedisStore::new(url)?).bus(RedisBus::new(url)?).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisBus {
    client: Client,
    prefix: String,
    publishing: Arc<tokio::sync::Mutex<Publishing>>,
}

/// The connection that messages go out over, and which one it is.
#[derive(Default)]
struct Publishing {
    connection: Option<MultiplexedConnection>,
    number: u64,
}

/// What [`RedisBus`] gives to who listens.
pub struct RedisSubscription {
    messages: mpsc::Receiver<Bytes>,
    // Closed when it is dropped.
    _connection: MultiplexedConnection,
}

impl RedisBus {
    /// A bus at `redis://[user:password@]host[:port]`. Databases share their channels: programs that share a Redis
    /// and not their caches need different [prefixes](Self::prefix).
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if the URL is not of that form.
    pub fn new(url: &str) -> Result<Self, Error> {
        // The driver's error may quote the URL, and with it the password: it is left out.
        let not_a_url = |_: RedisError| {
            Error::configuration("url", "not one of the form redis://[user:password@]host[:port]")
        };
        let address = url.into_connection_info().map_err(not_a_url)?;
        let settings = address.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(address.set_redis_settings(settings)).map_err(not_a_url)?;
        Ok(Self { client, prefix: "mcp-perf".to_owned(), publishing: Arc::default() })
    }

    /// What every channel begins with: `mcp-perf` unless set, as for [`RedisStore`](super::RedisStore), whose prefix
    /// it is best to share.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) unless it is 1 to 64 letters, digits, `-`, `_`, `.` or `:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self, Error> {
        self.prefix = prefix.into();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if (1..=64).contains(&self.prefix.len()) && self.prefix.bytes().all(fits) {
            Ok(self)
        } else {
            Err(Error::configuration("prefix", "1 to 64 letters, digits, `-`, `_`, `.` or `:`"))
        }
    }

    fn name(&self, channel: &str) -> String {
        format!("{}:{channel}", self.prefix)
    }

    async fn publishing(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        let mut publishing = self.publishing.lock().await;
        if let Some(connection) = &publishing.connection {
            return Ok((connection.clone(), publishing.number));
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&configuration()).await?;
        publishing.connection = Some(connection.clone());
        publishing.number += 1;
        Ok((connection, publishing.number))
    }

    /// Another connection is to be made, unless that was done already.
    async fn give_up(&self, number: u64) {
        let mut publishing = self.publishing.lock().await;
        if publishing.number == number {
            publishing.connection = None;
        }
    }

    async fn try_publish(&self, channel: &str, message: &Bytes) -> Result<(), RedisError> {
        let (mut connection, number) = self.publishing().await?;
        let published = cmd("PUBLISH").arg(channel).arg(&message[..]).query_async(&mut connection).await;
        if let Err(error) = &published
            && (error.is_io_error() || error.is_unrecoverable_error())
        {
            self.give_up(number).await;
        }
        published
    }
}

fn configuration() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT))
}

impl Bus for RedisBus {
    type Subscription = RedisSubscription;

    async fn publish(&self, channel: &str, message: Bytes) -> Result<(), Error> {
        let channel = self.name(channel);
        let published = match self.try_publish(&channel, &message).await {
            // It may have been cut while it was idle, which says nothing of the server. Twice does no harm.
            Err(error) if error.is_io_error() && !error.is_timeout() && !error.is_connection_refusal() => {
                self.try_publish(&channel, &message).await
            }
            published => published,
        };
        published.map_err(|error| sorted("publish", error))
    }

    async fn subscribe(&self, channel: &str) -> Result<RedisSubscription, Error> {
        let channel = self.name(channel);
        let (sender, messages) = mpsc::channel(MOST_WAITING);
        let mailbox = Mutex::new(Some(sender));
        let configuration = configuration().set_push_sender(move |push| deliver(&mailbox, push));
        let failed = |error| sorted("subscribe", error);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&configuration);
        let mut connection = connecting.await.map_err(failed)?;
        connection.subscribe(channel).await.map_err(failed)?;
        Ok(RedisSubscription { messages, _connection: connection })
    }
}

/// Called by the driver for what the server sends unasked.
fn deliver(mailbox: &Mutex<Option<mpsc::Sender<Bytes>>>, push: PushInfo) -> Result<(), SendError> {
    let mut mailbox = mailbox.lock().unwrap_or_else(PoisonError::into_inner);
    let delivered = match push.kind {
        PushKind::Message => match (push.data.into_iter().nth(1), &*mailbox) {
            (Some(Value::BulkString(message)), Some(sender)) => sender.try_send(message.into()).is_ok(),
            _ => false,
        },
        // Whatever else ends it is no subscription either.
        PushKind::Disconnection | PushKind::Unsubscribe => false,
        _ => true,
    };
    if delivered {
        return Ok(());
    }
    *mailbox = None;
    Err(SendError)
}

impl Subscription for RedisSubscription {
    async fn next(&mut self) -> Result<Bytes, Error> {
        let ended = || Error::new(ErrorKind::Unavailable, "redis: the subscription has ended");
        self.messages.recv().await.ok_or_else(ended)
    }
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl fmt::Debug for RedisSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSubscription").field("waiting", &self.messages.len()).finish_non_exhaustive()
    }
}

/// Sorts a driver's error: is the server away, or did it refuse?
fn sorted(operation: &'static str, error: RedisError) -> Error {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    let away = !matches!(error.kind(), Cause::AuthenticationFailed)
        && (error.is_io_error() || error.is_unrecoverable_error())
        || matches!(
            error.kind(),
            Cause::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain)
        );
    // In the driver's own fixed words: its full text, which may quote what was sent, is the source's.
    let cause = if error.is_connection_refusal() { "connection refused" } else { error.category() };
    if away {
        Error::unavailable(format!("redis cannot be reached ({operation}): {cause}"), error)
    } else {
        Error::refused(format!("redis refused ({operation}): {cause}"), error)
    }
}
