//! Shared connections with a health of their own.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bb8::{AddError, ManageConnection, QueueStrategy};
use tokio::{
    sync::{OnceCell, watch},
    task::AbortHandle,
};
use tokio_postgres::{Client, Row, Statement, types::ToSql};

use super::{
    connector::{CONNECT_TIMEOUT, Connected, Connector},
    fault::{broke, is_read_only, sorted},
    query::Query,
    schema::Tables,
};
use crate::{
    Error, ErrorKind,
    generation::Generation,
    sync::{Mutex, lock},
};

/// Between two attempts to make a connection that nobody waits for.
const PAUSE: Duration = Duration::from_secs(1);
/// So many unanswered calls in a row, and the connection is taken for dead.
const PATIENCE: u32 = 3;

/// The connections of one store for one purpose.
#[derive(Clone)]
pub(super) struct Pool {
    connections: bb8::Pool<Manager>,
    size: u32,
    connecting: Arc<Mutex<Option<Outcome>>>,
    filling: Arc<AtomicBool>,
}

/// What became of an attempt to connect; `None` while it is under way.
type Outcome = watch::Receiver<Option<Result<(), Error>>>;

struct Manager {
    connector: Connector,
    tables: Arc<Tables>,
    generation: Arc<Generation>,
}

/// A connection that many use at once.
pub(super) struct Session {
    client: Client,
    tables: Arc<Tables>,
    prepared: [OnceCell<Statement>; Query::COUNT],
    /// Calls that went unanswered in a row.
    unanswered: AtomicU32,
    generation: Arc<Generation>,
    /// The generation that it belongs to.
    born: u64,
    connection: AbortHandle,
}

impl Pool {
    /// Connections that are left together with all others of the generation.
    pub(super) fn new(
        connector: Connector,
        tables: Arc<Tables>,
        size: u32,
        generation: &Arc<Generation>,
    ) -> Self {
        let generation = Arc::clone(generation);
        let connections = bb8::Pool::builder()
            .max_size(size)
            .test_on_check_out(false)
            .retry_connection(false)
            .connection_timeout(CONNECT_TIMEOUT)
            .queue_strategy(QueueStrategy::Fifo)
            // Shared connections are in use all the time, and either may need a runtime to be there already.
            .max_lifetime(None)
            .idle_timeout(None)
            .build_unchecked(Manager { connector, tables, generation });
        Self { connections, size, connecting: Arc::default(), filling: Arc::default() }
    }

    /// Runs one call on a shared connection, and keeps account of its health.
    ///
    /// A call that is dropped before it was answered counts as unanswered.
    pub(super) async fn run<T, R>(
        &self,
        operation: &'static str,
        ask: impl Fn(Arc<Session>) -> R + Sync,
    ) -> Result<T, Error>
    where
        T: Send,
        R: Future<Output = Result<T, tokio_postgres::Error>> + Send,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let session = self.session().await?;
            let asked = Asked { session: Arc::clone(&session), answered: false };
            let error = match ask(Arc::clone(&session)).await {
                Ok(answer) => {
                    asked.answered();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let has_broken = broke(&error);
            asked.failed(has_broken);
            if is_read_only(&error) {
                // The address may lead to another server by now. Those who read go along: what they would be told there is
                // of before.
                session.generation.retire_read_only(session.born);
            }
            // Others may have had an answer there meanwhile.
            let has_broken = has_broken || session.is_broken();
            // It may have been cut while it was idle, which says nothing of the server. Every call of ours can be
            // made twice: what it writes is drawn anew, or it finds that it was made.
            if !has_broken || tries > self.size {
                return Err(sorted(operation, error));
            }
        }
    }

    async fn session(&self) -> Result<Arc<Session>, Error> {
        // A broken one goes when it is returned; there are no more of them than there are connections.
        for _ in 0..=self.size {
            match self.connections.state().connections {
                0 => self.connect().await?,
                connections if connections < self.size => self.fill(),
                _ => {}
            }
            let Ok(session) = self.connections.get().await else {
                return Err(Error::new(ErrorKind::Unavailable, "postgres: no connection in time"));
            };
            if !session.is_broken() {
                return Ok(Arc::clone(&session));
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "postgres: every connection broke while it was asked for"))
    }

    /// Makes the first connection. Not left to bb8, whose `get` waits for its time-out and keeps the reason to itself;
    /// and in a task of its own, whose outcome everybody shares who asks meanwhile, so that callers less patient than
    /// the network do not each start over.
    async fn connect(&self) -> Result<(), Error> {
        let mut outcome = {
            let mut connecting = lock(&self.connecting);
            let running = connecting.take().filter(|outcome| outcome.has_changed().is_ok_and(|has| !has));
            connecting.insert(running.unwrap_or_else(|| self.start_connecting())).clone()
        };
        let outcome = outcome.wait_for(Option::is_some).await;
        outcome.map_or_else(
            |gone| Err(Error::unavailable("postgres: the runtime shut down", gone)),
            |outcome| outcome.clone().unwrap_or(Ok(())),
        )
    }

    fn start_connecting(&self) -> Outcome {
        let (tell, outcome) = watch::channel(None);
        let pool = self.clone();
        tokio::spawn(async move {
            let is_there = pool.connections.state().connections > 0;
            let _ = tell.send(Some(if is_there { Ok(()) } else { pool.add().await }));
        });
        outcome
    }

    /// Makes another connection in the background, unless that is being done, or failed a moment ago.
    fn fill(&self) {
        let Some(filling) = Flag::raise(&self.filling) else { return };
        let pool = self.clone();
        tokio::spawn(async move {
            if let Err(error) = pool.add().await {
                tracing::debug!("postgres: no further connection: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            drop(filling);
        });
    }

    async fn add(&self) -> Result<(), Error> {
        let session = self.connections.dedicated_connection().await?;
        match self.connections.add(session) {
            Err(AddError::Broken(_)) => Err(Error::new(
                ErrorKind::Unavailable,
                "postgres: the server was left while it was connected to",
            )),
            // No room means that there are connections, which is as good.
            Ok(()) | Err(AddError::NoCapacity(_)) => Ok(()),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.connections.state();
        f.debug_struct("Pool")
            .field("connections", &state.connections)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl ManageConnection for Manager {
    type Connection = Arc<Session>;
    type Error = Error;

    async fn connect(&self) -> Result<Arc<Session>, Error> {
        // Before the attempt: what is left meanwhile may be where this one leads.
        let born = self.generation.current();
        let connected = self.connector.connect().await;
        let Connected { client, connection, .. } =
            connected.map_err(|fault| fault.coarsely_connecting("connect"))?;
        let connection = tokio::spawn(connection.run()).abort_handle();
        Ok(Arc::new(Session {
            client,
            tables: Arc::clone(&self.tables),
            prepared: Default::default(),
            unanswered: AtomicU32::new(0),
            generation: Arc::clone(&self.generation),
            born,
            connection,
        }))
    }

    async fn is_valid(&self, session: &mut Arc<Session>) -> Result<(), Error> {
        session.client.simple_query("").await.map(drop).map_err(|error| sorted("check", error))
    }

    fn has_broken(&self, session: &mut Arc<Session>) -> bool {
        session.is_broken()
    }
}

impl Session {
    /// Runs a query that answers with rows.
    pub(super) async fn rows(
        &self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.client.query(self.prepared(query).await?, parameters).await
    }

    /// Runs a query that answers with how many rows it wrote.
    pub(super) async fn count(
        &self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, tokio_postgres::Error> {
        self.client.execute(self.prepared(query).await?, parameters).await
    }

    /// Prepares a query when it is first used here.
    async fn prepared(&self, query: Query) -> Result<&Statement, tokio_postgres::Error> {
        let prepare = async || self.client.prepare(&query.sql(&self.tables)).await;
        self.prepared[query as usize].get_or_try_init(prepare).await
    }

    fn is_broken(&self) -> bool {
        self.client.is_closed()
            || self.unanswered.load(Ordering::Relaxed) >= PATIENCE
            || self.born < self.generation.current()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // One that hangs would never come to say goodbye.
        if self.is_broken() {
            self.connection.abort();
        }
    }
}

/// A call under way.
struct Asked {
    session: Arc<Session>,
    answered: bool,
}

impl Asked {
    fn answered(mut self) {
        self.answered = true;
        self.session.unanswered.store(0, Ordering::Relaxed);
    }

    fn failed(mut self, has_broken: bool) {
        self.answered = true;
        // To refuse is to answer.
        self.session.unanswered.store(if has_broken { PATIENCE } else { 0 }, Ordering::Relaxed);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered {
            self.session.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Something that is done by one task at a time, and no longer when this is dropped.
pub(super) struct Flag(Arc<AtomicBool>);

impl Flag {
    /// `None` if it is being done.
    pub(super) fn raise(flag: &Arc<AtomicBool>) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(flag)))
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
