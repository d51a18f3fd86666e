//! How many connections to have by what the server says is open.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use bb8::ManageConnection as _;
use tokio::time::timeout;

use super::{
    budget::{CALL_TIMEOUT, Observed, TRUST, observe, too_long},
    connection::PostgresConnection,
    pool::PostgresManager,
};
use crate::{
    Error,
    clock::{Clock, Instant},
    pool::{Allowance, Demand, budget::Budget},
    sync::{Mutex, lock},
};

/// A part of a [`Budget`] that grows where others leave theirs unused, and shrinks when they need it: by what
/// `pg_stat_activity` shows.
///
/// It needs no stock and no lock, and so promises less than a [`PostgresBudget`](super::PostgresBudget): each process looks
/// for itself, and two may see the same connection free. Who has more than its part leaves a tenth of the budget alone
/// for that reason, everybody leaves room for one process more, and a server that is full all the same makes every pool
/// give way. When the server cannot be asked, or was not for 30 s, what is left is the
/// [static share](Budget::static_share).
///
/// Every process of the fleet is to have an `application_name` of the fleet's name, a slash, and something of its own. One
/// that is called otherwise is told so by the log, and has its static share. A connection of its own does the asking, and
/// counts.
///
/// ```no_run
/// use mcp_perf::{pool::budget::Budget, postgres::{ObservedShare, PostgresManager}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let url = "postgres://server@127.0.0.1/server";
/// let manager = PostgresManager::builder(url)?.application_name("registry/1").build()?;
/// // 97 of the server's, ten of them for people and migrations; five processes at most.
/// let share = ObservedShare::new(manager.clone(), "registry", Budget::new(87, 5)?)?;
/// let pool = manager.pool("registry").adaptive(2..=80).allowance(share).build()?;
/// assert_eq!(pool.stats().ceiling, 16); // until the server was asked, an even part less the one that asks
/// # Ok(()) }
/// ```
pub struct ObservedShare {
    manager: PostgresManager,
    fleet: String,
    budget: Budget,
    clock: Clock,
    /// What came of the last look, and when that was.
    seen: Mutex<Option<(u32, Instant)>>,
    connection: tokio::sync::Mutex<Option<PostgresConnection>>,
    /// Whether the server could not be asked when it was last tried.
    is_away: AtomicBool,
    /// Whether it was told that this process is not called by the fleet's name.
    is_misnamed: AtomicBool,
}

impl ObservedShare {
    /// A share of the budget of the processes that call themselves `fleet`. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if the fleet's name is empty or has a slash in it, or if the static
    /// share is less than 2: one connection does the asking.
    pub fn new(manager: PostgresManager, fleet: impl Into<String>, budget: Budget) -> Result<Self, Error> {
        let fleet = fleet.into();
        if fleet.is_empty() || fleet.contains('/') {
            return Err(Error::configuration("fleet", "empty, or with a slash in it"));
        }
        if budget.static_share() < 2 {
            return Err(Error::configuration("budget", "less than 2 connections for each process"));
        }
        let (seen, connection) = (Mutex::default(), tokio::sync::Mutex::default());
        let (is_away, is_misnamed) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { manager, fleet, budget, clock: Clock::system(), seen, connection, is_away, is_misnamed })
    }

    /// Where the time is read: the system's clock unless set.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    async fn look(&self) -> Result<Observed, Error> {
        let mut place = self.connection.lock().await;
        // Out of its place: where no answer came, the next question is asked on another one.
        let connection = match place.take().filter(|connection| !connection.is_over()) {
            Some(connection) => connection,
            None => self.manager.connect().await?,
        };
        let asked = timeout(CALL_TIMEOUT, observe(&connection, &self.fleet)).await;
        let observed = asked.unwrap_or_else(|elapsed| Err(too_long("observe", elapsed)))?;
        *place = Some(connection);
        Ok(observed)
    }
}

impl Allowance for ObservedShare {
    fn ceiling(&self) -> u32 {
        let (seen, now) = (*lock(&self.seen), self.clock.now());
        let share = match seen {
            Some((share, at)) if now.since(at) < TRUST => share,
            _ => self.budget.static_share(),
        };
        share.saturating_sub(1).max(1)
    }

    /// The even part, which nobody else counts on.
    fn own(&self) -> u32 {
        self.budget.static_share().saturating_sub(1).max(1)
    }

    async fn want(&self, _: Demand) {
        let at = self.clock.now();
        match self.look().await {
            Ok(observed) => {
                let Observed { max_connections, reserved, open, of_fleet, processes, own } = observed;
                if self.is_away.swap(false, Ordering::Relaxed) {
                    tracing::info!("postgres: it is known again what is open");
                }
                if own == 0 {
                    // Nobody sees this process, and it would take all the others for strangers, or for nobody.
                    *lock(&self.seen) = None;
                    if !self.is_misnamed.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            fleet = self.fleet,
                            "postgres: the application_name does not begin with the fleet's name and a slash: an even \
                             part has to do"
                        );
                    }
                    return;
                }
                self.is_misnamed.store(false, Ordering::Relaxed);
                let connections = self.budget.connections();
                // What strangers have beyond what the budget leaves them is not there for us.
                let free = max_connections.saturating_sub(reserved).saturating_sub(open);
                let taken = of_fleet.max(connections.saturating_sub(free));
                let share = self.budget.observed_share(processes, taken, own);
                // Whoever comes next takes its even part without a look.
                let even = self.budget.static_share();
                let share = share.min(connections.saturating_sub(even)).max(even);
                *lock(&self.seen) = Some((share, at));
            }
            Err(error) => {
                *lock(&self.seen) = None;
                if !self.is_away.swap(true, Ordering::Relaxed) {
                    tracing::warn!("postgres: nobody says what is open, an even part has to do: {error}");
                }
            }
        }
    }
}

impl fmt::Debug for ObservedShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedShare")
            .field("fleet", &self.fleet)
            .field("budget", &self.budget)
            .field("ceiling", &self.ceiling())
            .finish_non_exhaustive()
    }
}
