//! Sharing the connections of one server among many processes.
//!
//! A server takes a fixed number of connections, and no process knows what the others have. Three answers, each of
//! which falls back to the one before:
//!
//! 1. A *share* of its own for each process, by configuration. Always there.
//! 2. What the server says is open: [`PostgresBudget::observe`], and `ObservedShare` for a pool (feature `pool`). It
//!    promises nothing.
//! 3. *Blocks* of a common stock, leased from the server: [`PostgresBudget::want`]. A block is an advisory lock, which
//!    one session at a time can hold, and which the server takes back when the session ends, however it ends.
//!
//! The stock is what is left when every process has its share: `share × processes + stock ≤ max_connections`, less what
//! is kept for administrators. So a process whose session is lost and goes back to its share takes nothing from those
//! who have leased its blocks since.
//!
//! Who gets less than it wants says so, by another lock that many can hold. Who sees that lock, and has more blocks than
//! are one's part if all who hold or want any share alike, gives way: half of what is more than that part is taken off
//! its ceiling, and given back when it asks next, as far as it is not open any more. So processes that want more than
//! there is have about as much each, after a few calls, and a process that is alone has all.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection as _;
use tokio::time::{error::Elapsed, timeout};

use super::{connection::PostgresConnection, fault::Fault, line::Line, pool::PostgresManager};
use crate::{
    Error, ErrorKind,
    clock::{Clock, Instant},
    sync::{Mutex, lock},
};

/// Connections in one block: few trips for many connections, and little that lies idle.
const BLOCK: u32 = 4;
const MOST_CONNECTIONS: u32 = 262_143;
/// How long a lease is believed without asking the server. Sessions that vanish are noticed by it in its own time,
/// which is longer by default.
pub(super) const TRUST: Duration = Duration::from_secs(30);
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Every lock is tried for, in the order given, until there are enough.
const LEASE: &str =
    "select block from unnest($2::int4[]) as block where pg_try_advisory_lock($1, block) limit $3";
/// The lock of those who want more: no block has this number.
const WANTING: i32 = i32::MAX;
const WANT: &str = "select pg_try_advisory_lock_shared($1, $2)";
const WANT_NO_MORE: &str = "select pg_advisory_unlock_shared($1, $2)";
/// How many sessions hold or want blocks, and whether others than this one want more.
const CLAIMS: &str = "select count(*), coalesce(bool_or(wants), false), min(blocks) filter (where wants) from (\
    select pid, bool_or(objid = $2::int4::oid) and pid <> pg_backend_pid() as wants, \
    count(*) filter (where objid <> $2::int4::oid) as blocks \
    from pg_locks where locktype = 'advisory' and objsubid = 2 and classid = $1::int4::oid and granted \
    and database = (select oid from pg_database where datname = current_database()) group by pid) as claims";
const GIVE_BACK: &str = "select pg_advisory_unlock($1, block) from unnest($2::int4[]) as block";
const OBSERVE: &str = "select current_setting('max_connections')::int8, \
    current_setting('superuser_reserved_connections')::int8 \
        + coalesce(current_setting('reserved_connections', true)::int8, 0), \
    count(*), count(*) filter (where of_fleet), count(distinct application_name) filter (where of_fleet), \
    count(*) filter (where of_fleet and application_name = current_setting('application_name')) \
    from (select application_name, starts_with(application_name, $1) as of_fleet from pg_stat_activity \
    where backend_type = 'client backend' or (backend_type is null and datid is not null)) as backends";

/// How many connections a process may have to a server that it shares with others of its kind.
///
/// For all processes together `share × processes + stock` is to be no more than the server's `max_connections`, less what
/// it keeps for administrators and what others use. Nobody checks that. A process with two pools has two budgets, and two
/// shares.
///
/// A connection of its own, which is part of the share, holds what is leased. Advisory locks belong to a database and a
/// session: every process of a fleet names the same database, and a pooler that hands out another session for each
/// transaction does not fit in between.
///
/// ```no_run
/// use mcp_perf::postgres::{PostgresBudget, PostgresManager};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// // Four processes of 8 and a stock of 48: 80 of the server's 97.
/// let manager = PostgresManager::builder("postgres://server@127.0.0.1/server")?
///     .application_name("registry/1")
///     .build()?;
/// let budget = PostgresBudget::builder(manager, "registry").share(8).stock(48).build()?;
/// assert_eq!(budget.ceiling(), 7); // and the budget's own
/// let ceiling = budget.want(20).await; // 7, and up to 16 from the stock
/// # let _ = ceiling; Ok(()) }
/// ```
pub struct PostgresBudget {
    manager: PostgresManager,
    fleet: String,
    share: u32,
    blocks: u32,
    clock: Clock,
    leased: Mutex<Leased>,
    session: tokio::sync::Mutex<Option<Session>>,
    /// Whether the server could not be asked when it was last tried.
    is_away: AtomicBool,
}

/// Settings of a [`PostgresBudget`].
#[derive(Debug)]
#[must_use]
pub struct PostgresBudgetBuilder {
    manager: PostgresManager,
    fleet: String,
    share: u32,
    stock: u32,
    clock: Clock,
}

/// What the server said of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observed {
    /// How many it takes.
    pub max_connections: u32,
    /// How many of those it keeps for superusers and the like.
    pub reserved: u32,
    /// How many are open.
    pub open: u32,
    /// How many of those are of the fleet.
    pub of_fleet: u32,
    /// How many names there are among those, which are its processes.
    pub processes: u32,
    /// How many have the name of the one that asks.
    pub own: u32,
}

/// What is known of the lease without asking.
#[derive(Default)]
struct Leased {
    /// Those that may be used.
    blocks: u32,
    /// When the server last said so.
    proven: Instant,
    /// Of the connection, which is the session's.
    line: Weak<Line>,
}

/// The connection that holds the locks.
struct Session {
    connection: PostgresConnection,
    blocks: Vec<i32>,
    /// No more blocks than this are kept, as soon as the others are not in use.
    limit: usize,
    /// Whether it holds the lock of those who want more.
    is_wanting: bool,
}

/// In blocks.
#[derive(Clone, Copy)]
struct Demand {
    open: usize,
    wanted: usize,
    /// Where others want more.
    gives_way: bool,
}

impl PostgresBudget {
    /// A budget of the processes that call themselves `fleet`, which is not empty and has no slash.
    ///
    /// Their `application_name` is to be the fleet's name, a slash, and something of their own, for
    /// [`observe`](Self::observe) to count them.
    pub fn builder(manager: PostgresManager, fleet: impl Into<String>) -> PostgresBudgetBuilder {
        PostgresBudgetBuilder { manager, fleet: fleet.into(), share: 0, stock: 0, clock: Clock::system() }
    }

    /// How many connections this process may have for its pool, by what is known without asking: the share, less the
    /// budget's own connection, and what is leased.
    ///
    /// What is leased counts for 30 s after the server last [said so](Self::want), and not once the session has ended.
    #[must_use]
    pub fn ceiling(&self) -> u32 {
        let now = self.clock.now();
        let leased = lock(&self.leased);
        // That others were ended says nothing of this one: nobody has its blocks while it is there. Where the server is the
        // primary no longer, others lease from another one.
        let is_there = leased.line.upgrade().is_some_and(|line| !line.holds_nothing());
        self.of(if is_there && now.since(leased.proven) < TRUST { leased.blocks } else { 0 })
    }

    /// Leases or gives back until the [ceiling](Self::ceiling) is `connections` or up to 3 more (blocks are whole), or as near to it as the stock
    /// allows,
    /// and says what it is then. Also the proof that the lease still holds: call it every ten seconds or so.
    ///
    /// Ask for no less than what is open: what is given back may be taken at once. A pool is better served
    /// by [`want_more`](Self::want_more), which lets the others have their part. If the server cannot be asked, what
    /// was leased is given up, which leaves the share. It takes no longer than the manager's time-out for connecting
    /// and 2 s, and as long again for every call of this or of [`observe`](Self::observe) that came before.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it gives up what was leased.
    pub async fn want(&self, connections: u32) -> u32 {
        let blocks = self.blocks_of(connections);
        self.bring_to(Demand { open: blocks, wanted: blocks, gives_way: false }).await
    }

    /// The same for a process that has `open` connections and would use `wanted`.
    ///
    /// If other processes have less than they want, and this one has more than its part of the stock, the
    /// [ceiling](Self::ceiling) falls by some of that. What is above it then is to be closed, and is given back by the
    /// next call that says it is not open any more.
    ///
    /// # Cancel safety
    ///
    /// As for [`want`](Self::want).
    pub async fn want_more(&self, open: u32, wanted: u32) -> u32 {
        let (open, wanted) = (self.blocks_of(open), self.blocks_of(wanted.max(open)));
        self.bring_to(Demand { open, wanted, gives_way: true }).await
    }

    async fn bring_to(&self, demand: Demand) -> u32 {
        let mut place = self.session.lock().await;
        // Out of its place: dropped from here on, the connection is closed, and the server takes its locks back.
        let session = place.take();
        let mut forfeit = Forfeit { leased: &self.leased, is_kept: false };
        // Before the question: the answer is no proof of what was later.
        let proven = self.clock.now();
        match self.lease(session, demand).await {
            Ok(session) => {
                let blocks = u32::try_from(session.blocks.len().min(session.limit)).unwrap_or(0);
                let line = Arc::downgrade(&session.connection.0);
                *lock(&self.leased) = Leased { blocks, proven, line };
                forfeit.is_kept = true;
                *place = Some(session);
                if self.is_away.swap(false, Ordering::Relaxed) {
                    tracing::info!("postgres: connections can be leased again");
                }
            }
            // Said once: whoever wants more than the share asks every second.
            Err(error) if !self.is_away.swap(true, Ordering::Relaxed) => {
                tracing::warn!("postgres: no lease of connections, the share has to do: {error}");
            }
            Err(_) => {}
        }
        drop(forfeit);
        self.ceiling()
    }

    /// Asks the server what is open. A hint for whoever sizes a fleet; others may connect at any time. Of roles that this
    /// user is no member of everything counts that may be a client, unless the user has the privileges of
    /// `pg_read_all_stats`.
    ///
    /// # Errors
    ///
    /// As for [`query_cached`](PostgresConnection::query_cached), and those of connecting.
    /// [`TimedOut`](ErrorKind::TimedOut) if there is no answer within 2 s: the connection is given up, and with it what
    /// was leased.
    pub async fn observe(&self) -> Result<Observed, Error> {
        let mut place = self.session.lock().await;
        let session = match place.take().filter(|session| !session.holds_nothing()) {
            Some(session) => place.insert(session),
            None => place.insert(Session::new(self.manager.connect().await?)),
        };
        let observed = timeout(CALL_TIMEOUT, observe(&session.connection, &self.fleet)).await;
        observed.unwrap_or_else(|elapsed| {
            *place = None;
            Err(too_long("observe", elapsed))
        })
    }

    pub(super) fn of(&self, blocks: u32) -> u32 {
        self.share.saturating_sub(1).saturating_add(blocks.saturating_mul(BLOCK))
    }

    /// How many blocks it takes for so many connections.
    fn blocks_of(&self, connections: u32) -> usize {
        connections.saturating_sub(self.of(0)).div_ceil(BLOCK).min(self.blocks) as usize
    }

    async fn lease(&self, session: Option<Session>, demand: Demand) -> Result<Session, Error> {
        let mut session = match session {
            Some(session) if !session.holds_nothing() => session,
            // The server was left. What is open there yet has its blocks for as long, so that nobody else has them.
            Some(session) if demand.gives_way && demand.open > 0 && !session.has_ended() => {
                return Ok(session);
            }
            left => {
                // What the old one held is gone with it, or will be. It takes a connection, and what is leased anew may be what
                // it held.
                drop(left);
                *lock(&self.leased) = Leased::default();
                Session::new(self.manager.connect().await?)
            }
        };
        let asked = timeout(CALL_TIMEOUT, self.ask(&mut session, demand)).await;
        asked.unwrap_or_else(|elapsed| Err(too_long("lease", elapsed)))?;
        Ok(session)
    }

    async fn ask(&self, session: &mut Session, demand: Demand) -> Result<(), Error> {
        let kept = demand.open.min(session.blocks.len());
        self.change(session, demand.wanted.min(session.limit).max(kept)).await?;
        let class = class(&self.fleet);
        let is_wanting = session.blocks.len() < demand.wanted;
        if is_wanting != session.is_wanting {
            let lock = if is_wanting { WANT } else { WANT_NO_MORE };
            session.connection.query_one_cached(lock, &[&class, &WANTING]).await?;
            session.is_wanting = is_wanting;
        }
        let claims = session.connection.query_one_cached(CLAIMS, &[&class, &WANTING]).await?;
        let claimants = claims.try_get::<_, i64>(0).ok().and_then(|count| usize::try_from(count).ok());
        let others_want = claims.try_get(1).unwrap_or_default();
        let least = claims.try_get::<_, Option<i64>>(2).ok().flatten();
        let least = least.and_then(|blocks| usize::try_from(blocks).ok());
        session.limit = match others_want && demand.gives_way {
            true => limit(session.blocks.len(), self.blocks as usize, claimants.unwrap_or_default(), least),
            false => usize::MAX,
        };
        Ok(())
    }

    async fn change(&self, session: &mut Session, wanted: usize) -> Result<(), Error> {
        let Session { connection, blocks, .. } = session;
        let class = class(&self.fleet);
        if blocks.len() > wanted {
            let surplus = blocks.split_off(wanted);
            // Lower before anybody else has them.
            {
                let mut leased = lock(&self.leased);
                leased.blocks = leased.blocks.min(u32::try_from(wanted).unwrap_or(u32::MAX));
            }
            connection.query_cached(GIVE_BACK, &[&class, &surplus]).await?;
            return Ok(());
        }
        let most = i64::try_from(wanted - blocks.len()).unwrap_or(i64::MAX);
        // No more than the server takes: the builder saw to that.
        let all = i32::try_from(self.blocks).unwrap_or(i32::MAX);
        let mut free: Vec<i32> = (0..all).filter(|block| !blocks.contains(block)).collect();
        // In any order, or everybody tries for the same ones first.
        fastrand::shuffle(&mut free);
        // Asked even for nothing: the answer is the proof that the session is there.
        let rows = connection.query_cached(LEASE, &[&class, &free, &most]).await?;
        blocks.extend(rows.iter().filter_map(|row| row.try_get::<_, i32>(0).ok()));
        Ok(())
    }
}

impl PostgresBudgetBuilder {
    /// How many connections this process has for itself, with the budget's own: at least 2. Has to be set, 2
    /// to 262,143. Its pool never gets less than one below this.
    pub fn share(mut self, connections: u32) -> Self {
        self.share = connections;
        self
    }

    /// How many connections there are for all processes together beyond their shares: none unless set, at most 262,143. Leased in
    /// blocks of 4; what does not make up a block is not used. The same in every process.
    pub fn stock(mut self, connections: u32) -> Self {
        self.stock = connections;
        self
    }

    /// Where the time is read: the system's clock unless set.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Puts it together. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration), naming the setting that is out of its range.
    pub fn build(self) -> Result<PostgresBudget, Error> {
        let Self { manager, fleet, share, stock, clock } = self;
        if fleet.is_empty() || fleet.contains('/') {
            return Err(Error::configuration("fleet", "empty, or with a slash in it"));
        }
        if !(2..=MOST_CONNECTIONS).contains(&share) {
            return Err(Error::configuration("share", "less than 2, or more than a server takes"));
        }
        if stock > MOST_CONNECTIONS {
            return Err(Error::configuration("stock", "more than a server takes"));
        }
        let (leased, session) = (Mutex::default(), tokio::sync::Mutex::default());
        let (blocks, is_away) = (stock / BLOCK, AtomicBool::new(false));
        Ok(PostgresBudget { manager, fleet, share, blocks, clock, leased, session, is_away })
    }
}

impl Observed {
    /// What each process of the fleet may have if they share alike, and leave a tenth of it to administrators.
    #[must_use]
    pub fn fair_share(&self) -> u32 {
        let others = self.open.saturating_sub(self.of_fleet);
        let free = self.max_connections.saturating_sub(self.reserved).saturating_sub(others);
        (free - free.div_ceil(10)) / self.processes.max(1)
    }
}

impl Session {
    fn new(connection: PostgresConnection) -> Self {
        Self { connection, blocks: Vec::new(), limit: usize::MAX, is_wanting: false }
    }

    fn holds_nothing(&self) -> bool {
        self.connection.0.holds_nothing()
    }

    fn has_ended(&self) -> bool {
        self.connection.0.has_ended()
    }
}

/// How many blocks somebody who has so many may keep where others want more: one's part, and half of what is above it. The
/// part is rounded up, unless one of those has less than a whole part.
fn limit(blocks: usize, all: usize, claimants: usize, least: Option<usize>) -> usize {
    let (whole, rounded_up) = (all / claimants.max(1), all.div_ceil(claimants.max(1)));
    let part = if least.is_some_and(|least| least < whole) { whole } else { rounded_up };
    part + blocks.saturating_sub(part) / 2
}

/// Asks what is open.
pub(super) async fn observe(connection: &PostgresConnection, fleet: &str) -> Result<Observed, Error> {
    let row = connection.query_one_cached(OBSERVE, &[&format!("{fleet}/")]).await?;
    let number = |index: usize| {
        let number = row.try_get::<_, i64>(index).unwrap_or_default();
        u32::try_from(number).unwrap_or_default()
    };
    Ok(Observed {
        max_connections: number(0),
        reserved: number(1),
        open: number(2),
        of_fleet: number(3),
        processes: number(4),
        own: number(5),
    })
}

/// Gives up what was leased unless it was kept.
struct Forfeit<'a> {
    leased: &'a Mutex<Leased>,
    is_kept: bool,
}

impl Drop for Forfeit<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            *lock(self.leased) = Leased::default();
        }
    }
}

pub(super) fn too_long(operation: &'static str, elapsed: Elapsed) -> Error {
    Fault::new(ErrorKind::TimedOut, "no answer in time", elapsed).during(operation)
}

/// The name of the fleet as the first half of a lock's number.
fn class(fleet: &str) -> i32 {
    let hash = xxhash_rust::xxh3::xxh3_64(format!("mcp-perf budget {fleet}").as_bytes());
    let [a, b, c, d, ..] = hash.to_be_bytes();
    i32::from_be_bytes([a, b, c, d])
}

impl fmt::Debug for PostgresBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBudget")
            .field("fleet", &self.fleet)
            .field("share", &self.share)
            .field("ceiling", &self.ceiling())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_most_gives_way_until_all_have_their_part() {
        let mut blocks = 5;
        let steps: Vec<usize> = std::iter::from_fn(|| {
            let kept = limit(blocks, 5, 4, Some(1));
            let given = std::mem::replace(&mut blocks, kept) - kept;
            (given > 0).then_some(kept)
        })
        .collect();
        assert_eq!(steps, [3, 2]);
        let of_five = |blocks, claimants| limit(blocks, 5, claimants, None);
        assert_eq!((of_five(1, 4), limit(0, 0, 0, None), of_five(100, 0)), (2, 0, 52));
        // Whoever comes late finds three each, and nothing for itself.
        assert_eq!((limit(3, 12, 5, Some(0)), limit(3, 12, 5, Some(2))), (2, 3));
    }

    #[test]
    fn fair_share_leaves_what_is_others_and_a_tenth() {
        let observed =
            Observed { max_connections: 100, reserved: 3, open: 27, of_fleet: 10, processes: 4, own: 3 };
        assert_eq!(observed.fair_share(), 18); // 100 - 3 - 17 = 80, of which 72
        assert_eq!(Observed { processes: 0, ..observed }.fair_share(), 72);
        assert_eq!(Observed { reserved: 200, ..observed }.fair_share(), 0);
    }
}
