//! Shared connections with a health of their own.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ::redis::{RedisError, aio::MultiplexedConnection};
use bb8::{ManageConnection, QueueStrategy};
use bb8_redis::RedisConnectionManager;
use tokio::sync::Mutex;

use super::sorted;
use crate::{Error, ErrorKind};

/// Enough to keep one big answer from holding up every small one.
const CONNECTIONS: u32 = 2;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// So many unanswered calls in a row, and the connection is taken for dead.
const PATIENCE: u32 = 3;

/// The connections of one store.
#[derive(Clone)]
pub(super) struct Pool {
    connections: bb8::Pool<Manager>,
    connecting: Arc<Mutex<()>>,
}

/// bb8-redis connects; what it cannot say is whether a connection has broken.
struct Manager(RedisConnectionManager);

/// A connection, handed out as clones.
pub(super) struct Shared {
    connection: MultiplexedConnection,
    health: Health,
}

/// Calls that went unanswered in a row.
#[derive(Clone, Default)]
struct Health(Arc<AtomicU32>);

impl Pool {
    pub(super) fn new(url: &str) -> Result<Self, Error> {
        // The driver's error may quote the URL, and with it the password: it is left out.
        let manager = RedisConnectionManager::new(url).map_err(|_| {
            Error::configuration("url", "not one of the form redis://[user:password@]host[:port][/db]")
        })?;
        let pool = bb8::Pool::builder()
            .max_size(CONNECTIONS)
            .test_on_check_out(false)
            .retry_connection(false)
            .connection_timeout(CONNECT_TIMEOUT)
            .queue_strategy(QueueStrategy::Fifo)
            // Shared connections are in use all the time, and either may need a runtime to be there already.
            .max_lifetime(None)
            .idle_timeout(None)
            .build_unchecked(Manager(manager));
        Ok(Self { connections: pool, connecting: Arc::default() })
    }

    /// Runs one call on a shared connection, and keeps account of its health.
    ///
    /// A call that is dropped before it was answered counts as unanswered.
    pub(super) async fn run<T>(
        &self,
        operation: &'static str,
        call: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, Error> {
        let (connection, health) = self.connection(operation).await?;
        let asked = Asked { health, answered: false };
        let result = call(connection).await;
        asked.ended(result.as_ref().err());
        result.map_err(|error| sorted(operation, error))
    }

    async fn connection(&self, operation: &'static str) -> Result<(MultiplexedConnection, Health), Error> {
        // A broken one goes when it is returned; there are no more of them than there are connections.
        for _ in 0..=CONNECTIONS {
            if self.connections.state().connections == 0 {
                self.connect(operation).await?;
            }
            let Ok(shared) = self.connections.get().await else {
                return Err(Error::new(ErrorKind::Unavailable, "redis: no connection in time"));
            };
            if !shared.health.is_broken() {
                return Ok((shared.connection.clone(), shared.health.clone()));
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "redis: every connection broke while it was asked for"))
    }

    /// Makes the first connection, one at a time. Not left to bb8, whose `get` waits for its time-out and
    /// keeps the reason to itself; and in a task of its own, so that callers less patient than the network
    /// do not each start over.
    async fn connect(&self, operation: &'static str) -> Result<(), Error> {
        let pool = self.clone();
        let connecting = tokio::spawn(async move {
            let _one_at_a_time = pool.connecting.lock().await;
            if pool.connections.state().connections > 0 {
                return Ok(());
            }
            let made = tokio::time::timeout(CONNECT_TIMEOUT, pool.connections.dedicated_connection()).await;
            match made {
                Ok(Ok(connection)) => {
                    // No room means that there are connections, which is as good.
                    let _ = pool.connections.add(connection);
                    Ok(())
                }
                Ok(Err(error)) => Err(sorted(operation, error)),
                Err(elapsed) => Err(Error::unavailable("redis: no connection in time", elapsed)),
            }
        });
        connecting.await.unwrap_or_else(|gone| Err(Error::unavailable("redis: the runtime shut down", gone)))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.connections.state();
        f.debug_struct("Pool").field("connections", &state.connections).finish_non_exhaustive()
    }
}

impl ManageConnection for Manager {
    type Connection = Shared;
    type Error = RedisError;

    async fn connect(&self) -> Result<Shared, RedisError> {
        Ok(Shared { connection: self.0.connect().await?, health: Health::default() })
    }

    async fn is_valid(&self, shared: &mut Shared) -> Result<(), RedisError> {
        self.0.is_valid(&mut shared.connection).await
    }

    fn has_broken(&self, shared: &mut Shared) -> bool {
        shared.health.is_broken()
    }
}

impl Health {
    fn is_broken(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= PATIENCE
    }
}

/// A call under way.
struct Asked {
    health: Health,
    answered: bool,
}

impl Asked {
    fn ended(mut self, error: Option<&RedisError>) {
        self.answered = true;
        let unanswered = match error {
            Some(error) if error.is_timeout() => return self.unanswered(),
            Some(error) if error.is_io_error() || error.is_unrecoverable_error() => PATIENCE,
            _ => 0,
        };
        self.health.0.store(unanswered, Ordering::Relaxed);
    }

    fn unanswered(&self) {
        self.health.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered {
            self.unanswered();
        }
    }
}
