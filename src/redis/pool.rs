//! Shared connections with a health of their own.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ::redis::{ErrorKind, RedisError, ServerErrorKind, aio::MultiplexedConnection};
use bb8::{ManageConnection, QueueStrategy};
use bb8_redis::RedisConnectionManager;
use tokio::sync::Mutex;

use super::sorted;
use crate::{Error, ErrorKind as Kind};

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
    pub(super) async fn run<C, T, R>(
        &self,
        operation: &'static str,
        command: C,
        ask: impl Fn(MultiplexedConnection, Arc<C>) -> R + Sync,
    ) -> Result<T, Error>
    where
        C: Send + Sync,
        T: Send,
        R: Future<Output = Result<T, RedisError>> + Send,
    {
        let command = Arc::new(command);
        let mut tries = 0;
        loop {
            tries += 1;
            let (connection, health) = self.connection(operation).await?;
            let asked = Asked { health, answered: false };
            let error = match ask(connection, Arc::clone(&command)).await {
                Ok(answer) => {
                    asked.answered();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let has_broken = broke(&error);
            asked.failed(&error, has_broken);
            // It may have been cut while it was idle, which says nothing of the server. Every call of ours can be
            // made twice: at worst a write finds that it was made, and is taken for refused.
            if !has_broken || tries > CONNECTIONS {
                return Err(sorted(operation, error));
            }
        }
    }

    async fn connection(&self, operation: &'static str) -> Result<(MultiplexedConnection, Health), Error> {
        // A broken one goes when it is returned; there are no more of them than there are connections.
        for _ in 0..=CONNECTIONS {
            if self.connections.state().connections == 0 {
                self.connect(operation).await?;
            }
            let Ok(shared) = self.connections.get().await else {
                return Err(Error::new(Kind::Unavailable, "redis: no connection in time"));
            };
            if !shared.health.is_broken() {
                return Ok((shared.connection.clone(), shared.health.clone()));
            }
        }
        Err(Error::new(Kind::Unavailable, "redis: every connection broke while it was asked for"))
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

/// Whether another connection may do better: this one is gone, or leads to what is no longer the primary.
fn broke(error: &RedisError) -> bool {
    let gone = error.is_io_error() || error.is_unrecoverable_error();
    (gone && !error.is_timeout()) || matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly))
}

/// A call under way.
struct Asked {
    health: Health,
    answered: bool,
}

impl Asked {
    fn answered(mut self) {
        self.answered = true;
        self.health.0.store(0, Ordering::Relaxed);
    }

    fn failed(mut self, error: &RedisError, has_broken: bool) {
        self.answered = true;
        if has_broken {
            self.health.0.store(PATIENCE, Ordering::Relaxed);
        } else if error.is_timeout() {
            self.unanswered();
        }
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
