//! A server with a knee, for pools under tokio's paused time.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::usl::{Processor, Usl};
use crate::clock::{Clock, Instant};

/// By how much a query may end early, in seconds: what sums of floating-point numbers are off by.
const EARLY: f64 = 1e-9;

/// A server whose throughput has a knee, and which does on demand what servers do to pools. Clones are the same server.
///
/// It is a [`bb8::ManageConnection`]: give it to a pool as its manager. Queries in progress share the server as
/// [`Usl`] says. It is made for paused time (`#[tokio::test(start_paused = true)]`), where one run is like the next
/// and an hour takes as long as its events. Tokio's timers count whole milliseconds, so work of less than about 20 ms
/// ends late by a noticeable part; for finer questions there is [`Simulation`](super::Simulation).
///
/// ```
/// use mcp_perf::testing::{FakeServer, Usl};
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let server = FakeServer::new(Usl::new(0.15, 0.013)).max_connections(1);
/// let pool = bb8::Pool::builder().max_size(1).build(server.clone()).await?;
/// pool.get().await?.query(Duration::from_millis(100)).await?;
/// assert_eq!((server.stats().connects, server.stats().queries), (1, 1));
///
/// server.restart(Duration::from_secs(3)); // connections break, and connecting fails for three seconds
/// pool.get().await?.query(Duration::from_millis(100)).await?; // bb8 found out, and tried until it was back
/// assert_eq!(server.stats().connects, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct FakeServer {
    state: Arc<Mutex<State>>,
    /// Told whenever queries have to look again when they end.
    changed: Arc<watch::Sender<()>>,
    clock: Clock,
}

struct State {
    processor: Processor,
    started: Instant,
    connecting: Duration,
    max_connections: u32,
    hangs: bool,
    /// Down until then.
    down_until: Duration,
    /// Connections of earlier generations are broken.
    generation: u64,
    next_query: u64,
    running: Vec<u64>,
    stats: ServerStats,
}

/// What a [`FakeServer`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections that are open.
    pub open: u32,
    /// The most that were open at once.
    pub open_max: u32,
    /// Connections made.
    pub connects: u64,
    /// Attempts to connect that were refused because there were too many connections.
    pub refused: u64,
    /// Attempts to connect that are in progress.
    pub connecting: u32,
    /// The most attempts to connect that were in progress at once.
    pub connecting_max: u32,
    /// Queries that came to their end.
    pub queries: u64,
    /// Queries whose callers went away, and that ran on.
    pub abandoned: u64,
}

/// What a [`FakeServer`] answers with when it does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerError {
    /// There are as many connections as there may be.
    TooManyConnections,
    /// The server is down.
    Down,
    /// The connection broke: the server was restarted after it was made.
    Broken,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyConnections => "there are too many connections",
            Self::Down => "the server is down",
            Self::Broken => "the connection is broken",
        })
    }
}

impl std::error::Error for ServerError {}

impl FakeServer {
    /// A server that nobody is connected to. Connecting takes no time, and any number may.
    #[must_use]
    pub fn new(usl: Usl) -> Self {
        let clock = Clock::tokio();
        let state = State {
            processor: Processor::new(usl),
            started: clock.now(),
            connecting: Duration::ZERO,
            max_connections: u32::MAX,
            hangs: false,
            down_until: Duration::ZERO,
            generation: 0,
            next_query: 0,
            running: Vec::new(),
            stats: ServerStats::default(),
        };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::new(watch::Sender::new(())), clock }
    }

    /// How long it takes to connect; the default is no time.
    #[must_use]
    pub fn connecting(self, time: Duration) -> Self {
        self.lock().connecting = time;
        self
    }

    /// How many connections there may be; the default is any number. [`set_max_connections`](Self::set_max_connections)
    /// changes it.
    #[must_use]
    pub fn max_connections(self, connections: u32) -> Self {
        self.set_max_connections(connections);
        self
    }

    /// From now on there may be so many connections. Those that are open stay.
    pub fn set_max_connections(&self, connections: u32) {
        self.lock().max_connections = connections;
    }

    /// From now on this is how queries share the server, those in progress included.
    pub fn set_usl(&self, usl: Usl) {
        self.advance().processor.usl = usl;
        self.changed.send_replace(());
    }

    /// From now on everything takes so many times longer than at first.
    pub fn slow_down(&self, slowdown: f64) {
        self.advance().processor.usl.slowdown = slowdown;
        self.changed.send_replace(());
    }

    /// From now on attempts to connect are accepted and never answered, those in progress included, until this is
    /// called with `false`.
    pub fn hang_connects(&self, hangs: bool) {
        self.lock().hangs = hangs;
        self.changed.send_replace(());
    }

    /// Goes down, and comes back after so long. Connections are broken, queries fail, and connecting fails until then.
    pub fn restart(&self, down: Duration) {
        let mut state = self.advance();
        state.down_until = state.time(self.clock.now()) + down;
        state.generation += 1;
        state.stats.open = 0;
        state.processor = Processor::at(state.processor.usl, state.processor.now());
        state.running.clear();
        drop(state);
        self.changed.send_replace(());
    }

    /// What it saw so far.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        self.advance().stats
    }

    /// How many queries are in progress, abandoned ones included.
    #[must_use]
    pub fn running(&self) -> usize {
        self.advance().running.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state as of now: queries that have come to their end are over.
    fn advance(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let now = state.time(self.clock.now()).as_secs_f64();
        let before = state.running.len();
        while let Some(end) = state.processor.next_end().filter(|end| *end <= now + EARLY) {
            state.processor.advance(end);
            if let Some(query) = state.processor.end() {
                state.running.retain(|running| *running != query);
                state.stats.queries += 1;
            }
        }
        state.processor.advance(now);
        if state.running.len() < before {
            // The others have more of the server from now on.
            self.changed.send_replace(());
        }
        state
    }

    /// Waits until the query is over, or the server has lost it.
    async fn finish(&self, query: u64) {
        let mut changed = self.changed.subscribe();
        loop {
            let end = {
                let state = self.advance();
                if !state.running.contains(&query) {
                    return;
                }
                let end = state.processor.end_of(query).unwrap_or(f64::INFINITY) - state.processor.now();
                Duration::try_from_secs_f64(end).unwrap_or(Duration::MAX)
            };
            let pause = end.min(Duration::from_secs(86_400)).max(Duration::from_millis(1));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = changed.changed() => {}
            }
        }
    }

    fn begin(&self, work: Duration) -> u64 {
        let mut state = self.advance();
        let query = state.next_query;
        state.next_query += 1;
        state.processor.start(query, work);
        state.running.push(query);
        drop(state);
        self.changed.send_replace(());
        query
    }

    async fn admit(&self) -> Result<FakeConnection, ServerError> {
        let _attempt = Attempt::new(self);
        let takes = self.lock().connecting;
        tokio::time::sleep(takes).await;
        let mut changed = self.changed.subscribe();
        while self.lock().hangs {
            // The sender lives as long as the server.
            let _ = changed.changed().await;
        }
        let mut state = self.advance();
        if state.time(self.clock.now()) < state.down_until {
            return Err(ServerError::Down);
        }
        if state.stats.open >= state.max_connections {
            state.stats.refused += 1;
            return Err(ServerError::TooManyConnections);
        }
        state.stats.connects += 1;
        state.stats.open += 1;
        state.stats.open_max = state.stats.open_max.max(state.stats.open);
        Ok(FakeConnection { server: self.clone(), generation: state.generation, query: None })
    }
}

impl State {
    fn time(&self, now: Instant) -> Duration {
        now.since(self.started)
    }
}

impl fmt::Debug for FakeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeServer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// An attempt to connect, counted until it is over in one way or another.
struct Attempt<'a>(&'a FakeServer);

impl<'a> Attempt<'a> {
    fn new(server: &'a FakeServer) -> Self {
        let stats = &mut server.lock().stats;
        stats.connecting += 1;
        stats.connecting_max = stats.connecting_max.max(stats.connecting);
        Self(server)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.0.lock().stats.connecting -= 1;
    }
}

/// A connection to a [`FakeServer`].
pub struct FakeConnection {
    server: FakeServer,
    generation: u64,
    /// The query that is in progress. If the connection is used meanwhile, its caller went away.
    query: Option<u64>,
}

impl FakeConnection {
    /// Has the server do what takes it so long while it does nothing else.
    ///
    /// # Errors
    ///
    /// [`Broken`](ServerError::Broken) if the server was restarted since the connection was made.
    ///
    /// # Cancel safety
    ///
    /// As on a database, the query runs on when its caller goes away, and takes its share of the server; the next one
    /// on the connection waits for it. Closing the connection ends it.
    pub async fn query(&mut self, work: Duration) -> Result<(), ServerError> {
        self.settle().await?;
        let query = self.server.begin(work);
        self.query = Some(query);
        let mut caller = Caller { server: &self.server, waits: true };
        self.server.finish(query).await;
        caller.waits = false;
        drop(caller);
        self.query = None;
        self.check()
    }

    /// Whether the server was restarted since the connection was made.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.check().is_err()
    }

    /// Waits for the query whose caller went away.
    async fn settle(&mut self) -> Result<(), ServerError> {
        self.check()?;
        if let Some(query) = self.query {
            self.server.finish(query).await;
            self.query = None;
        }
        self.check()
    }

    fn check(&self) -> Result<(), ServerError> {
        if self.generation == self.server.lock().generation { Ok(()) } else { Err(ServerError::Broken) }
    }
}

/// Who waits for a query, and is counted when it goes away.
struct Caller<'a> {
    server: &'a FakeServer,
    waits: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.server.lock().stats.abandoned += u64::from(self.waits);
    }
}

impl Drop for FakeConnection {
    fn drop(&mut self) {
        let mut state = self.server.advance();
        if self.generation == state.generation {
            state.stats.open -= 1;
            if let Some(query) = self.query {
                state.processor.remove(query);
                state.running.retain(|running| *running != query);
            }
        }
        drop(state);
        self.server.changed.send_replace(());
    }
}

impl fmt::Debug for FakeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeConnection").field("broken", &self.is_broken()).finish_non_exhaustive()
    }
}

impl bb8::ManageConnection for FakeServer {
    type Connection = FakeConnection;
    type Error = ServerError;

    fn connect(&self) -> impl Future<Output = Result<FakeConnection, ServerError>> + Send {
        self.admit()
    }

    /// Asks the server, behind what is under way on the connection.
    async fn is_valid(&self, connection: &mut FakeConnection) -> Result<(), ServerError> {
        connection.settle().await
    }

    fn has_broken(&self, connection: &mut FakeConnection) -> bool {
        connection.is_broken()
    }
}
