//! The invalidation bus of a cache in PostgreSQL: `NOTIFY` and `LISTEN`.
//!
//! Two connections, whoever shares the bus: one that publishes, and one that listens to all of its channels, because
//! each costs the server a process. What arrives is handed on from the task that reads the connection, without
//! waiting: who asks too slowly loses the subscription, not the server its queue.
//!
//! # A channel's name and a message
//!
//! ```text
//! channel   prefix, ':', 128-bit digest of the cache's name for it     at most 63 bytes
//! payload   base64 of the message, without padding                     at most 7,999 bytes
//! ```

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use tokio::{sync::mpsc, task::AbortHandle};
use tokio_postgres::{
    AsyncMessage, Client, Socket,
    tls::{MakeTlsConnect, NoTls, TlsConnect},
};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    connector::{Connected, Connection, Connector},
    fault::{Fault, sorted},
    query::Query,
    schema::{Tables, check},
    shared::Pool,
};
use crate::{
    Error, ErrorKind,
    cache::{Bus, Subscription},
    clock::Clock,
    generation::Generation,
    sync::{Mutex, lock},
};

/// The longest payload of a notification.
const MOST_PAYLOAD: usize = 7_999;
/// What fits into it in base64, which makes four bytes of three.
const MOST_MESSAGE: usize = MOST_PAYLOAD * 3 / 4;
/// How many messages wait for one listener, before its subscription ends.
const MOST_WAITING: usize = 1024;
/// How long the server may take to answer `LISTEN`.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that listens has nothing to say, and is not idle. Not all servers know the setting.
const STAY: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'";

/// A [`Bus`] in PostgreSQL, for those who have a PostgreSQL and no Redis. Connects when it is first used; clones
/// share the connections.
///
/// It needs no table and no privilege but to connect. Channels belong to a database: processes hear each other if
/// they name the same one, which is best that of their [`PostgresStore`](super::PostgresStore).
///
/// ```no_run
/// use mcp_perf::{cache::Cache, postgres::{PostgresBus, PostgresStore}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let url = "postgres://server@127.0.0.1/server";
/// let cache: Cache<String> =
///     Cache::builder("answers").remote(PostgresStore::new(url)?).bus(PostgresBus::new(url)?).build().await?;
/// # Ok(()) }
/// ```
///
/// # What it costs
///
/// A transaction that notifies holds a lock of the whole server while it commits: of all transactions that do, one
/// commits at a time. Those that do not notify are not concerned, which is why the bus publishes in transactions of
/// its own, that do nothing else and wait for no disk, and never in those of the program. The cache sends what it
/// invalidates at about the same time as one message, and a message wakes every connection that listens in the
/// database. That is little for hundreds of invalidations a second among tens of processes; for thousands, or
/// hundreds of processes, a `RedisBus` is the better one, also beside a `PostgresStore`.
///
/// # Through a pooler
///
/// Listening belongs to a connection. `PgBouncer` and its like, where they lend one for each transaction or statement,
/// take a `LISTEN` and deliver nothing: the cache finds that its own messages do not come back, logs that the bus is
/// away, and goes on without. Give the bus the address of the server itself.
///
/// # When the connection is lost
///
/// PostgreSQL keeps nothing for who is not connected. The subscription ends with the reason, the cache subscribes
/// again after a pause that grows and differs between processes, and finds out by way of its store what it missed. A
/// connection that only fell silent is noticed by the cache in the same way as a pooler, within 20 seconds, and by
/// this bus when the server does not answer the next `LISTEN` within two; all of its subscriptions end then.
#[derive(Clone)]
pub struct PostgresBus {
    connector: Connector,
    prefix: String,
    publishing: Pool,
    /// There for as long as somebody is subscribed. Held while the server is told of a change of the channels.
    listening: Arc<tokio::sync::Mutex<Weak<Listening>>>,
}

/// What [`PostgresBus`] gives to who listens.
pub struct PostgresSubscription {
    messages: mpsc::Receiver<Bytes>,
    listening: Arc<Listening>,
}

/// The connection that listens.
struct Listening {
    client: Client,
    ears: Arc<Mutex<Ears>>,
    connection: AbortHandle,
}

/// Who listens to what, or why nobody does any more.
#[derive(Default)]
struct Ears {
    of_channels: HashMap<String, Vec<mpsc::Sender<Bytes>>>,
    ended: Option<Error>,
}

impl PostgresBus {
    /// A bus at `postgres://[user[:password]@]host[:port][/database]`, over TLS as
    /// [`PostgresStore::new`](super::PostgresStore::new) is.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if the URL is not of that form, or asks for TLS without the feature
    /// `postgres-tls`. Whether there is a server shows in the cache's log, and in
    /// [`BusStats::connected`](crate::cache::BusStats::connected).
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self::at(Connector::of_store(url, NoTls, false)?))
    }

    /// The same with a connector of your own, as for [`PostgresStore::with_tls`](super::PostgresStore::with_tls).
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_tls<T>(url: &str, tls: T) -> Result<Self, Error>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Ok(Self::at(Connector::of_store(url, tls, true)?))
    }

    /// What every channel begins with: `mcp_perf` unless set, as for [`PostgresStore`](super::PostgresStore), whose
    /// prefix it is best to share.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) unless it is 1 to 40 lower-case letters, digits or `_`, the
    /// first of them no digit.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self, Error> {
        self.prefix = prefix.into();
        check("prefix", &self.prefix)?;
        Ok(self)
    }

    fn at(connector: Connector) -> Self {
        let generation = Arc::new(Generation::new("postgres", Clock::system()));
        let publishing = Pool::new(connector.clone(), Arc::new(Tables::default()), 1, &generation);
        Self { connector, prefix: "mcp_perf".to_owned(), publishing, listening: Arc::default() }
    }

    /// Longer names the server would cut, and then take for the same.
    fn name(&self, channel: &str) -> String {
        let digest = xxh3_128(channel.as_bytes()).to_be_bytes();
        format!("{}:{}", self.prefix, STANDARD_NO_PAD.encode(digest))
    }
}

impl Bus for PostgresBus {
    type Subscription = PostgresSubscription;

    fn max_message(&self) -> usize {
        MOST_MESSAGE
    }

    async fn publish(&self, channel: &str, message: Bytes) -> Result<(), Error> {
        if message.len() > MOST_MESSAGE {
            let problem =
                format!("postgres: a message of {} bytes, and at most {MOST_MESSAGE}", message.len());
            return Err(Error::new(ErrorKind::Refused, problem));
        }
        let (channel, payload) = (&self.name(channel), &STANDARD_NO_PAD.encode(message));
        // Made again if the connection turns out to have been cut: twice does no harm.
        let published = self
            .publishing
            .run("publish", |session| async move { session.count(Query::Notify, &[channel, payload]).await });
        published.await.map(drop)
    }

    async fn subscribe(&self, channel: &str) -> Result<PostgresSubscription, Error> {
        let channel = self.name(channel);
        let mut current = self.listening.lock().await;
        let listening = match current.upgrade().filter(|listening| listening.is_open()) {
            Some(listening) => listening,
            None => Arc::new(Listening::connect(&self.connector).await?),
        };
        let messages = listening.listen(channel).await?;
        *current = Arc::downgrade(&listening);
        Ok(PostgresSubscription { messages, listening })
    }
}

impl Subscription for PostgresSubscription {
    async fn next(&mut self) -> Result<Bytes, Error> {
        match self.messages.recv().await {
            Some(message) => Ok(message),
            None => Err(self.listening.ended()),
        }
    }
}

impl Listening {
    async fn connect(connector: &Connector) -> Result<Self, Error> {
        let connected = connector.connect().await;
        let Connected { client, connection, .. } =
            connected.map_err(|fault: Fault| fault.coarsely_connecting("subscribe"))?;
        let ears = Arc::<Mutex<Ears>>::default();
        let connection = tokio::spawn(hear(connection, Arc::clone(&ears))).abort_handle();
        Ok(Self { client, ears, connection })
    }

    fn is_open(&self) -> bool {
        lock(&self.ears).ended.is_none()
    }

    /// Begins to listen to a channel, and ends with those that nobody listens to any more. By one caller at a time,
    /// so that none ends what another has just begun.
    async fn listen(&self, channel: String) -> Result<mpsc::Receiver<Bytes>, Error> {
        let (sender, messages) = mpsc::channel(MOST_WAITING);
        let left = lock(&self.ears).left();
        let left: String = left.iter().map(|channel| format!(r#"; UNLISTEN "{channel}""#)).collect();
        let sql = format!(r#"{STAY}{left}; LISTEN "{channel}""#);
        // Before the server is told: what it delivers from then on finds somebody.
        lock(&self.ears).of_channels.entry(channel).or_default().push(sender);
        match tokio::time::timeout(TIMEOUT, self.client.batch_execute(&sql)).await {
            Ok(listens) => listens.map_err(|error| sorted("subscribe", error))?,
            Err(elapsed) => {
                let silent =
                    Error::unavailable("postgres cannot be reached (subscribe): no answer in time", elapsed);
                lock(&self.ears).end(silent.clone());
                return Err(silent);
            }
        }
        Ok(messages)
    }

    /// Why a subscription is over.
    fn ended(&self) -> Error {
        let too_slow = || {
            let problem = "postgres: the subscription has ended: more messages came than were asked for";
            Error::new(ErrorKind::Unavailable, problem)
        };
        lock(&self.ears).ended.clone().unwrap_or_else(too_slow)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // One that hangs would never come to say goodbye.
        if !self.is_open() {
            self.connection.abort();
        }
    }
}

/// Hands on what the server says, for as long as the connection is there.
async fn hear(mut connection: Connection, ears: Arc<Mutex<Ears>>) {
    let ended = loop {
        match connection.message().await {
            Some(Ok(AsyncMessage::Notification(said))) => lock(&ears).hear(said.channel(), said.payload()),
            Some(Ok(_)) => {}
            Some(Err(error)) => break sorted("listen", error),
            None => {
                let closed = "postgres cannot be reached (listen): the connection was closed";
                break Error::new(ErrorKind::Unavailable, closed);
            }
        }
    };
    lock(&ears).end(ended);
}

impl Ears {
    fn hear(&mut self, channel: &str, payload: &str) {
        let Some(ears) = self.of_channels.get_mut(channel) else { return };
        let Ok(message) = STANDARD_NO_PAD.decode(payload) else {
            tracing::debug!(
                channel,
                "postgres: a notification of somebody else came on a channel of the bus"
            );
            return;
        };
        let message = Bytes::from(message);
        // One that is gone, or has no more room, is no listener any more.
        ears.retain(|ear| ear.try_send(message.clone()).is_ok());
    }

    /// Takes out the channels that nobody listens to any more.
    fn left(&mut self) -> Vec<String> {
        let is_left = |_: &String, ears: &mut Vec<mpsc::Sender<Bytes>>| {
            ears.retain(|ear| !ear.is_closed());
            ears.is_empty()
        };
        self.of_channels.extract_if(is_left).map(|(channel, _)| channel).collect()
    }

    /// Ends every subscription.
    fn end(&mut self, why: Error) {
        self.of_channels.clear();
        self.ended.get_or_insert(why);
    }
}

impl fmt::Debug for PostgresBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBus").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl fmt::Debug for PostgresSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSubscription").field("waiting", &self.messages.len()).finish_non_exhaustive()
    }
}
