//! Connections for a pool: how they are made, checked and given up.

use std::{fmt, sync::Arc, time::Duration};

use bb8::ManageConnection;
use tokio_postgres::{
    Config, NoTls, Socket,
    config::SslMode,
    tls::{MakeTlsConnect, TlsConnect},
};

use super::{
    connection::PostgresConnection,
    connector::{self, Connector},
    dial::Way,
    line::{Line, ResetPolicy},
};
use crate::{Error, clock::Clock, generation::Generation};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
const SLOW_TRANSACTION: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_millis(250);
const STATEMENT_CACHE: usize = 100;
/// The server keeps each with its plan, in tens of kilobytes.
const MOST_STATEMENTS: usize = 10_000;
/// What the server takes in an `int` of milliseconds.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);
/// What the server takes of a name.
const LONGEST_NAME: usize = 63;

/// Makes connections for a pool: for `bb8::Pool` as it is, or for this crate's, by its method `pool`.
///
/// Over tokio-postgres itself, and not over `bb8-postgres`, whose manager lends the driver's bare client: it keeps no
/// statements, does not see what a caller has left, and drops what a server says when it goes down.
///
/// - On return a connection is reset as the [policy](ResetPolicy) says, in the background.
/// - On checkout it is waited for if that is still under way, and asked whether it is there. Leave bb8's
///   `test_on_check_out` on; without it a connection that was given up meanwhile answers every call with
///   [`Disconnected`](crate::ErrorKind::Disconnected).
/// - When the server says that it goes down, or refuses to write because it became a standby, every connection made
///   until then is replaced when it is returned or next asked for; [`generation`](Self::generation) tells that it
///   happened.
///
/// # Connections
///
/// What the URL says in `options` comes after these settings, and wins.
///
/// | setting | value | why |
/// |---|---|---|
/// | `application_name` | `mcp-perf`, unless the URL has one | to be found in `pg_stat_activity` |
/// | `statement_timeout` | 30 s | a query that nobody waits for any more holds its locks no longer than this |
/// | `idle_in_transaction_session_timeout` | 60 s | the same of a transaction whose program hangs; vacuum waits for it, too |
/// | `jit` | off | compiling costs more than the short queries of a server; reports may switch it on |
/// | TCP keepalive, user time-out | 30 s and 3 × 10 s; 30 s | a peer that vanished is noticed |
///
/// # TLS
///
/// With `sslmode=require` or `sslmode=verify-full` in the URL, and the feature `postgres-tls`, connections are
/// encrypted, and the server's certificate and its name are checked, against the system's roots or an
/// authority of one's own (`certificate_authority`); there is no mode that encrypts without
/// checking. A server that does not oblige is an error of kind [`Tls`](crate::ErrorKind::Tls). Without either
/// setting they are not encrypted: what nobody checks keeps nobody out.
///
/// # Examples
///
/// ```no_run
/// use mcp_perf::postgres::{PostgresManager, ResetPolicy};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = PostgresManager::builder("postgres://server@127.0.0.1/server")?
///     .application_name("registry")
///     .statement_timeout(Some(Duration::from_secs(5)))
///     .reset(ResetPolicy::DiscardAll)
///     .build()?;
/// let pool = bb8::Pool::builder().max_size(8).build(manager).await?;
/// # let _ = pool; Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresManager {
    connector: Connector,
    settings: Arc<Settings>,
    generation: Arc<Generation>,
}

/// Settings of a [`PostgresManager`].
#[derive(Clone)]
#[must_use]
pub struct PostgresManagerBuilder {
    config: Config,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
    statement_timeout: Option<Duration>,
    idle_in_transaction_timeout: Option<Duration>,
    is_jit_on: bool,
    tls: Tls,
    settings: Settings,
}

/// How connections are encrypted.
#[derive(Clone)]
enum Tls {
    /// As the URL says.
    AsAsked,
    #[cfg(feature = "postgres-tls")]
    Trusting(crate::tls::Trust),
    /// By the program's own connector.
    Own(Arc<Connect>),
}

type Connect = dyn Fn(&Config, &str, Duration) -> Result<Connector, Error> + Send + Sync;

/// What holds for every connection of a manager.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) statement_cache: usize,
    pub(super) reset: ResetPolicy,
    pub(super) drain: Duration,
    pub(super) slow_transaction: Option<Duration>,
    pub(super) clock: Clock,
}

impl PostgresManager {
    /// Connections to `postgres://[user[:password]@]host[:port][/database]`, or what else the driver reads: see the
    /// page of `tokio_postgres::Config`.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if the URL is not of that form. It is not quoted, since it
    /// may hold a password.
    pub fn builder(url: &str) -> Result<PostgresManagerBuilder, Error> {
        Ok(Self::with_config(connector::config(url)?))
    }

    /// The same from the driver's configuration.
    pub fn with_config(config: Config) -> PostgresManagerBuilder {
        PostgresManagerBuilder {
            config,
            application_name: None,
            connect_timeout: None,
            statement_timeout: Some(STATEMENT_TIMEOUT),
            idle_in_transaction_timeout: Some(IDLE_IN_TRANSACTION_TIMEOUT),
            is_jit_on: false,
            tls: Tls::AsAsked,
            settings: Settings {
                statement_cache: STATEMENT_CACHE,
                reset: ResetPolicy::default(),
                drain: DRAIN,
                slow_transaction: Some(SLOW_TRANSACTION),
                clock: Clock::system(),
            },
        }
    }

    /// Counts how often every connection had to be replaced: because the server said that it goes down, or because it
    /// refused to write. A pool that sees it rise may replace the idle ones before they are asked for.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.current()
    }

    /// Gives up every connection made so far: each is closed when it is returned or next asked for. Clones of the manager
    /// are the same here, so a [`PostgresBudget`](super::PostgresBudget) made of one goes back to its share, and leases
    /// anew when what its pool had beyond that is closed.
    pub fn retire_all(&self) {
        self.generation.leave();
    }
}

impl PostgresManagerBuilder {
    /// The name under which the connections are found in `pg_stat_activity`: 1 to 63 printable ASCII characters. The
    /// URL's, or `mcp-perf`, unless set.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = Some(name.into());
        self
    }

    /// How long an attempt to connect may take, with the lookup of the name, TLS and the check of the password: the
    /// URL's `connect_timeout`, or 5 s, unless set. Several hosts or addresses share it equally. At least 1 ms.
    /// Where the pool has one of its own, the shorter one decides.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// How long a statement may take before the server cancels it: 30 s unless set; `None` leaves it to the server's
    /// own setting, which is without end by default. 1 ms to 24 days.
    pub fn statement_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.statement_timeout = timeout.into();
        self
    }

    /// How long a transaction may be open with nothing asked before the server ends the connection: 60 s unless set;
    /// `None` leaves it to the server's own setting, which is without end by default. 1 ms to 24 days.
    pub fn idle_in_transaction_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.idle_in_transaction_timeout = timeout.into();
        self
    }

    /// Whether the server may compile queries that it takes for expensive: no, unless set. What it takes for
    /// expensive it guesses, and a short query compiled by mistake takes a hundred times as long.
    pub fn jit(mut self, is_on: bool) -> Self {
        self.is_jit_on = is_on;
        self
    }

    /// How many prepared statements a connection keeps: 100 unless set, 0 to 10,000. Each takes tens of kilobytes of
    /// the server's memory, on every connection; more distinct texts than this are prepared again and again. With 0
    /// each statement is prepared when it is used, which is two trips more.
    pub fn statement_cache(mut self, statements: usize) -> Self {
        self.settings.statement_cache = statements;
        self
    }

    /// How a connection is made fit for its next user: [`ResetPolicy::RollbackIfDirty`] unless set.
    pub fn reset(mut self, policy: ResetPolicy) -> Self {
        self.settings.reset = policy;
        self
    }

    /// How long a connection whose query was cancelled may take to be ready again before it is given up: 250 ms
    /// unless set. At least 1 ms. To give it up costs a new connection. A pool gives it up as well once its own time for a
    /// test is over, which is 2 s (`test_timeout`) in one of this crate.
    pub fn drain(mut self, patience: Duration) -> Self {
        self.settings.drain = patience;
        self
    }

    /// From when on a transaction is logged as slow when it ends, with the place where it was begun: 1 s unless set;
    /// `None` for never.
    pub fn slow_transaction(mut self, threshold: impl Into<Option<Duration>>) -> Self {
        self.settings.slow_transaction = threshold.into();
        self
    }

    /// Trusts the authorities whose certificates are in the PEM, and no others, and insists on TLS, whether or not the
    /// URL does.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if it holds no certificate.
    #[cfg(feature = "postgres-tls")]
    pub fn certificate_authority(mut self, pem: impl AsRef<[u8]>) -> Result<Self, Error> {
        self.tls = Tls::Trusting(crate::tls::Trust::only(pem.as_ref())?);
        self.config.ssl_mode(SslMode::Require);
        Ok(self)
    }

    /// Takes a connector of your own for tokio-postgres 0.7, such as one with certificates of clients. By `sslmode` the
    /// URL decides whether it has to be used: `require` refuses to go without, `prefer`, which is the default, goes
    /// without if the server cannot.
    ///
    /// A connection whose query was cancelled is given up, since with such a connector it cannot be known when the
    /// cancellation is over; nor when the server has ended a connection that was closed. Both are so over a Unix socket,
    /// too.
    pub fn with_tls<T>(mut self, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        self.tls = Tls::Own(Arc::new(move |config, options, timeout| {
            Connector::new(config, options, timeout, tls.clone(), Way::DRIVERS)
        }));
        self
    }

    /// Where the time is read: the system's clock unless set. The server's and the network's time-outs go by their own.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Puts it together. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration), naming the setting that is out of its range, or `url` if it
    /// names no host or asks for TLS that is not there.
    pub fn build(self) -> Result<PostgresManager, Error> {
        let options = self.options()?;
        let Self { mut config, application_name, connect_timeout, tls, settings, .. } = self;
        if let Some(name) = application_name {
            if name.is_empty()
                || name.len() > LONGEST_NAME
                || !name.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            {
                return Err(Error::configuration(
                    "application_name",
                    "not 1 to 63 printable ASCII characters",
                ));
            }
            config.application_name(name);
        }
        let timeout = connect_timeout.or(config.get_connect_timeout().copied()).unwrap_or(CONNECT_TIMEOUT);
        for (field, duration) in [("connect_timeout", timeout), ("drain", settings.drain)] {
            within(field, duration)?;
        }
        if settings.statement_cache > MOST_STATEMENTS {
            return Err(Error::configuration("statement_cache", "more than 10,000"));
        }
        let connector = tls.connector(&config, &options, timeout)?;
        let generation = Arc::new(Generation::new("postgres", settings.clock.clone()));
        Ok(PostgresManager { connector, settings: Arc::new(settings), generation })
    }

    /// The server's settings, as it takes them when a connection is made.
    fn options(&self) -> Result<String, Error> {
        let mut options = format!("-c jit={}", if self.is_jit_on { "on" } else { "off" });
        for (field, setting, timeout) in [
            ("statement_timeout", "statement_timeout", self.statement_timeout),
            (
                "idle_in_transaction_timeout",
                "idle_in_transaction_session_timeout",
                self.idle_in_transaction_timeout,
            ),
        ] {
            if let Some(timeout) = timeout {
                within(field, timeout)?;
                options.push_str(&format!(" -c {setting}={}", timeout.as_millis()));
            }
        }
        Ok(options)
    }
}

impl Tls {
    fn connector(&self, config: &Config, options: &str, timeout: Duration) -> Result<Connector, Error> {
        match self {
            Self::Own(connect) => connect(config, options, timeout),
            #[cfg(feature = "postgres-tls")]
            Self::Trusting(trust) => {
                let tls = super::tls::Tls(trust.clone());
                Connector::new(config, options, timeout, tls, Way::OWN)
            }
            #[cfg(feature = "postgres-tls")]
            Self::AsAsked if config.get_ssl_mode() == SslMode::Require => {
                Connector::new(config, options, timeout, super::tls::Tls::default(), Way::OWN)
            }
            #[cfg(not(feature = "postgres-tls"))]
            Self::AsAsked if config.get_ssl_mode() == SslMode::Require => Err(Error::configuration(
                "url",
                "asks for TLS, which takes the feature `postgres-tls` or a connector of your own",
            )),
            Self::AsAsked => Connector::new(config, options, timeout, NoTls, Way::OWN),
        }
    }
}

/// Whether the server and the timers can take it.
fn within(field: &str, duration: Duration) -> Result<(), Error> {
    if duration < Duration::from_millis(1) || duration > LONGEST {
        return Err(Error::configuration(field, "not a time of 1 ms to 24 days"));
    }
    Ok(())
}

impl ManageConnection for PostgresManager {
    type Connection = PostgresConnection;
    type Error = Error;

    /// Makes a connection, within the [time-out](PostgresManagerBuilder::connect_timeout).
    ///
    /// # Errors
    ///
    /// Each cause is a kind of its own: [`Credentials`](crate::ErrorKind::Credentials),
    /// [`HostNotFound`](crate::ErrorKind::HostNotFound), [`Tls`](crate::ErrorKind::Tls),
    /// [`TooManyConnections`](crate::ErrorKind::TooManyConnections), [`TimedOut`](crate::ErrorKind::TimedOut),
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if nothing listens there or the server is starting or stopping,
    /// and [`Refused`](crate::ErrorKind::Refused) for the rest, such as a database that is not there.
    async fn connect(&self) -> Result<PostgresConnection, Error> {
        let born = self.generation.current();
        let connected = self.connector.connect().await.map_err(|fault| fault.during("connect"))?;
        Ok(PostgresConnection(Line::new(connected, &self.settings, &self.generation, born)))
    }

    /// Waits until a reset or a cancellation is through, and asks the server whether it is there; for no longer than
    /// a second, or than a cancellation [may take](PostgresManagerBuilder::drain) if that is more.
    async fn is_valid(&self, connection: &mut PostgresConnection) -> Result<(), Error> {
        connection.0.check().await
    }

    /// Whether a connection that is returned has to be closed. If not, it starts to be reset.
    fn has_broken(&self, connection: &mut PostgresConnection) -> bool {
        if !connection.0.is_over() {
            connection.0.let_go();
        }
        connection.0.is_over()
    }
}

impl fmt::Debug for PostgresManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresManager")
            .field("reset", &self.settings.reset)
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PostgresManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration holds a password.
        f.debug_struct("PostgresManagerBuilder").finish_non_exhaustive()
    }
}
