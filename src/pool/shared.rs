//! How a caller gets a connection: a permit, then a connection, then a look at it.

use std::{
    panic::Location,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection;
use tokio::{runtime::Handle, sync::Semaphore};

use super::{
    allowance::Allowed,
    connect::{Change, Turnstile},
    gate::{Denied, Gate, Permit},
    guard::{Connection, Lease},
    holders::{Held, Holder},
    opener::{self, Opener},
    queue::End,
    stats::{ClassStats, Recorded},
    supply::{Openers, Supply, Waiting},
    tested::Tested,
    tracked::{Ending, Tracking},
};
use crate::{
    Error, ErrorKind,
    clock::{Clock, Instant},
    sync::{Mutex, lock},
};

/// How many holders an error names.
const NAMED: usize = 3;
/// How many connections that are in doubt a caller passes over for others, and has tested behind its back.
const MOST_SET_ASIDE: u32 = 2;
/// Less is no long time to hold a connection, however impatient those are who wait.
const LONG_HOLD: Duration = Duration::from_secs(30);

/// What all clones of a pool, its connections and its tasks have in common.
pub(super) struct Shared<M: ManageConnection> {
    pub(super) id: u64,
    pub(super) name: Box<str>,
    pub(super) settings: Settings,
    /// What it may have where it shares the server.
    pub(super) allowed: Option<Arc<Allowed>>,
    pub(super) clock: Clock,
    pub(super) runtime: Handle,
    pub(super) gate: Gate,
    pub(super) supply: Supply,
    /// The idle connections.
    pub(super) store: bb8::Pool<Tracking<M>>,
    pub(super) tracking: Tracking<M>,
    pub(super) turnstile: Mutex<Turnstile>,
    /// How many attempts to connect are made at once.
    pub(super) attempts: Arc<Semaphore>,
    pub(super) classes: Box<[Arc<str>]>,
    pub(super) recorded: Recorded,
    pub(super) watch: Watch,
}

/// Somebody asks for a connection.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) class: usize,
    pub(super) place: &'static Location<'static>,
    pub(super) began: Instant,
    pub(super) patience: Patience,
}

/// What a caller waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// That somebody returns a connection, or that one is opened.
    Either,
    /// That one is opened, as long as that may be.
    Opening,
}

/// Whether a connection can be lent.
enum Look {
    Fit,
    Unfit,
    /// It has to be asked: it was not used for a while, or is in doubt for reasons of its own.
    Unknown {
        is_stale: bool,
        is_doubtful: bool,
    },
}

/// What the pool's task found, for whoever asks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) proven: AtomicU32,
    /// A connection was found broken since the idle ones were looked at.
    pub(super) is_alarmed: AtomicBool,
    /// Thousandths.
    pub(super) utilisation: AtomicU32,
    /// Held by whoever gives way.
    pub(super) gives_way: Mutex<()>,
    /// How many connections are open above what may be.
    pub(super) surplus: AtomicU32,
    /// How many may be open while the others are given back to a server that has too many; zero says all.
    pub(super) gives_way_to: AtomicU32,
    /// For how many windows in a row more were open than are of use.
    pub(super) idle_windows: AtomicU32,
    /// Ends the tasks with the pool.
    pub(super) tasks: Mutex<Vec<tokio::task::AbortHandle>>,
}

/// What does not change in the life of a pool.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) floor: u32,
    pub(super) ceiling: u32,
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) test_timeout: Duration,
    pub(super) test_after: Duration,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) leak_threshold: Option<Duration>,
    pub(super) keep_open: u32,
    /// How many may be open, unless the target is above that.
    pub(super) most_open: u32,
}

impl Call {
    pub(super) fn holder(self, since: Instant) -> Holder {
        Holder { since, place: self.place, class: self.class, was_told: false }
    }
}

impl<M: ManageConnection> Shared<M> {
    /// Lends a connection, as soon as it is the caller's turn.
    pub(super) async fn lend(self: &Arc<Self>, call: Call) -> Result<Connection<M>, Error> {
        let (permit, now, is_held_up) = match self.gate.try_acquire(call.class, call.began) {
            Ok(permit) => (permit, call.began, false),
            Err(Denied::Taken) => {
                let is_held_up = self.gate.is_held_up(call.class);
                let permit = self.wait_for_permit(call).await?;
                (permit, self.clock.now(), is_held_up)
            }
            Err(denied) => return Err(yielded(self.denied(denied)).await),
        };
        // Whoever waits for either is not told that one has to be returned first.
        self.lend_with(permit, call, now, is_held_up).await?.ok_or_else(|| self.miscounted())
    }

    /// Lends one if no one else has to return theirs first.
    pub(super) async fn try_lend(self: &Arc<Self>, call: Call) -> Result<Option<Connection<M>>, Error> {
        match self.gate.try_acquire(call.class, call.began) {
            Ok(permit) => self.lend_with(permit, call, call.began, false).await,
            Err(Denied::Taken) => Ok(None),
            Err(denied) => Err(yielded(self.denied(denied)).await),
        }
    }

    async fn lend_with(
        self: &Arc<Self>,
        permit: Permit<'_>,
        call: Call,
        mut now: Instant,
        is_held_up: bool,
    ) -> Result<Option<Connection<M>>, Error> {
        // What comes from here on is no wait for others: it is in the times of connecting, or is a test.
        let waited = now.since(call.began);
        let mut cut_off = None;
        let mut set_aside = 0;
        let mut place = End::Back;
        loop {
            let slot = match self.supply.take(call.holder(now)) {
                Some(slot) => slot,
                None => {
                    if !self.wait_for_connection(call, place).await? {
                        return Ok(None);
                    }
                    now = self.clock.now();
                    self.supply.hold(call.holder(now))
                }
            };
            // If it is no good: it is still this caller's turn.
            place = End::Front;
            let mut lease = Lease::new(Arc::clone(self), slot, call.class, now);
            // There is one, so this does not wait. Until it is there it is bb8's, whatever becomes of this.
            lease.is_kept = true;
            let stored = self.store.get_owned().await;
            lease.is_kept = false;
            let Ok(stored) = stored else { return Err(self.miscounted()) };
            let mut connection = Connection::new(stored, lease);
            match self.look(&mut connection, now) {
                Look::Fit => {}
                Look::Unfit => continue,
                // What cut off one idle connection has most likely cut off the others that nobody has used since, and on a
                // server that is silent each test would take its whole time. What is wrong with one in doubt is its own.
                Look::Unknown { is_stale: true, .. }
                    if cut_off.is_some_and(|cut_off| connection.tracked().last_used < cut_off) =>
                {
                    connection.tracked().ending = Some(Ending::Invalid);
                    continue;
                }
                // It is being mended, say, and there are others.
                Look::Unknown { is_doubtful: true, .. }
                    if set_aside < MOST_SET_ASIDE && self.supply.count().idle > 0 =>
                {
                    set_aside += 1;
                    self.set_aside(connection);
                    now = self.clock.now();
                    continue;
                }
                Look::Unknown { is_stale, is_doubtful } => {
                    let began = self.clock.now();
                    let tested = self.test(connection, call).await?;
                    now = self.clock.now();
                    match tested {
                        Tested::Fit(fit) => connection = fit,
                        Tested::Invalid if is_stale && !is_doubtful => {
                            cut_off = Some(began);
                            continue;
                        }
                        Tested::Invalid | Tested::Retired => continue,
                    }
                }
            }
            connection.begin();
            permit.forget();
            self.recorded.waits.record(waited);
            if is_held_up {
                self.recorded.own_waits.record(waited);
            }
            return Ok(Some(connection));
        }
    }

    #[inline]
    fn look(&self, connection: &mut Connection<M>, now: Instant) -> Look {
        let tracked = connection.tracked();
        if let Some(ending) = self.tracking.examine(tracked, now) {
            tracked.ending = Some(ending);
            return Look::Unfit;
        }
        let is_stale = now.since(tracked.last_used) >= self.settings.test_after;
        let is_doubtful = self.tracking.is_doubtful(tracked);
        if is_stale || is_doubtful { Look::Unknown { is_stale, is_doubtful } } else { Look::Fit }
    }

    #[cold]
    async fn wait_for_permit(&self, call: Call) -> Result<Permit<'_>, Error> {
        match tokio::time::timeout(self.settings.timeout, self.gate.acquire(call.class)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(denied)) => Err(yielded(self.denied(denied)).await),
            Err(_) => Err(self.timed_out(call.began, "its turn")),
        }
    }

    /// Whether there is one for the caller.
    #[cold]
    async fn wait_for_connection(self: &Arc<Self>, call: Call, place: End) -> Result<bool, Error> {
        if let Some(error) = self.hopeless() {
            return Err(yielded(error).await);
        }
        let failed = self.supply.next_failure();
        let (waiting, openers) = self.supply.line_up(call.class, place);
        self.start(openers);
        if call.patience == Patience::Either {
            self.wait_in_line(waiting, call.began).await?;
            return Ok(true);
        }
        let is_none_opened =
            self.supply.is_in_vain() || lock(&self.turnstile).refusal(self.clock.now()).is_some();
        let mut served = pin!(self.wait_in_line(waiting, call.began));
        let mut failed = pin!(failed);
        loop {
            tokio::select! {
                biased; // one may have come back meanwhile
                served = served.as_mut() => return served.map(|()| true),
                () = std::future::ready(()), if is_none_opened => return Ok(false),
                () = failed.as_mut() => {
                    // Before the look: one that fails meanwhile is not missed.
                    let next = self.supply.next_failure();
                    if self.supply.has_hope(self.long_hold(), self.clock.now()) {
                        return Ok(false);
                    }
                    // There is nobody to wait for: who waits here is told what it failed for, if not this time.
                    failed.set(next);
                }
            }
        }
    }

    async fn wait_in_line(&self, waiting: Waiting<'_>, began: Instant) -> Result<(), Error> {
        match tokio::time::timeout(self.left(began), waiting).await {
            Ok(served) => served,
            Err(_) => Err(self.timed_out(began, "a connection to be opened or returned")),
        }
    }

    /// Why waiting for a connection is of no use: none can come back, and none is being made for the time being.
    fn hopeless(&self) -> Option<Error> {
        let now = self.clock.now();
        let error = lock(&self.turnstile).refusal(now)?;
        (!self.supply.has_hope(self.long_hold(), now)).then_some(error)
    }

    /// After a connection was lost: those who waited for it to come back may wait for nothing now.
    pub(super) fn tell_hopeless(&self) {
        if let Some(error) = self.hopeless() {
            self.failed(&error, true);
        }
    }

    /// An attempt to connect failed: those are told for whom there is nothing to wait for.
    pub(super) fn failed(&self, error: &Error, tell_all: bool) {
        self.supply.failed(error, tell_all, self.long_hold(), self.clock.now());
    }

    /// Who has held a connection for longer than this is not expected to bring it back.
    fn long_hold(&self) -> Duration {
        self.settings.timeout.max(LONG_HOLD)
    }

    /// Counts a connection that is closed. What broke it may have broken the idle ones, too, or the manager may know
    /// by now that it has: they are looked at soon.
    pub(super) fn count_closed(&self, why: Ending) {
        self.recorded.closed(why);
        if matches!(why, Ending::Broken | Ending::Invalid) {
            self.watch.is_alarmed.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn start(self: &Arc<Self>, Openers(count): Openers) {
        for _ in 0..count {
            // Made here: where the runtime is down the task is dropped before it begins.
            let opener = Opener::new(Arc::downgrade(self));
            self.runtime.spawn(opener::run(opener, Arc::clone(&self.attempts)));
        }
    }

    /// Nobody opens connections any more. Who waits for one is told, unless one may come back.
    pub(super) fn is_left_alone(&self, missing: Openers) {
        self.supply.do_without(missing);
        let problem = format!("pool {}: the runtime went down in which it was built", self.name);
        self.failed(&Error::new(ErrorKind::Panicked, problem), true);
    }

    pub(super) fn report(&self, change: Option<Change>, error: Option<&Error>) {
        match change {
            Some(Change::Opened) => {
                let cause = error.map(tracing::field::display);
                tracing::warn!(pool = &*self.name, cause, "cannot connect; tries again after pauses");
            }
            Some(Change::Closed) => tracing::info!(pool = &*self.name, "connects again"),
            None => {}
        }
    }

    pub(super) fn by_class(&self) -> Vec<ClassStats> {
        let classes = self.classes.iter().zip(self.gate.by_class());
        classes
            .map(|(name, (in_use, waiting))| ClassStats { name: name.to_string(), in_use, waiting })
            .collect()
    }

    pub(super) fn left(&self, began: Instant) -> Duration {
        self.settings.timeout.saturating_sub(self.clock.now().since(began))
    }

    pub(super) fn denied(&self, denied: Denied) -> Error {
        match denied {
            Denied::Closed => self.closed(),
            Denied::Full | Denied::Taken => {
                self.recorded.overloads.add();
                let level = self.gate.level();
                let message = format!(
                    "pool {}: {} callers wait already; {}",
                    self.name,
                    level.waiting,
                    self.who_holds(self.clock.now())
                );
                Error::new(ErrorKind::Overloaded, message)
            }
        }
    }

    pub(super) fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("pool {}: it was shut down", self.name))
    }

    /// bb8 has fewer connections than are counted: a defect of this crate, which costs the caller this call.
    fn miscounted(&self) -> Error {
        Error::new(ErrorKind::Unavailable, format!("pool {}: a connection is missing", self.name))
    }

    #[cold]
    pub(super) fn timed_out(&self, began: Instant, waited_for: &str) -> Error {
        self.recorded.timeouts.add();
        self.too_late(began, waited_for)
    }

    pub(super) fn too_late(&self, began: Instant, waited_for: &str) -> Error {
        let now = self.clock.now();
        let message = format!(
            "pool {}: waited {:.1?} for {waited_for}; {}",
            self.name,
            now.since(began),
            self.who_holds(now)
        );
        match lock(&self.turnstile).last_error() {
            Some(error) => {
                let message = format!("{message}; the last attempt to connect failed: {error}");
                Error::with_source(ErrorKind::TimedOut, message, error.clone())
            }
            None => Error::new(ErrorKind::TimedOut, message),
        }
    }

    /// Those that hold connections for longest, in that order.
    pub(super) fn longest(&self, now: Instant) -> Vec<Held> {
        self.supply.longest(NAMED).iter().map(|holder| holder.held(&self.classes, now)).collect()
    }

    /// As `4 of 4 in use, 2 wait, held longest: 1.2s at src/a.rs:1, 1.0s at src/b.rs:2`.
    fn who_holds(&self, now: Instant) -> String {
        let (level, count) = (self.gate.level(), self.supply.count());
        let held = self.longest(now);
        // Whose turn it is, and there is none for them yet.
        let without = count.waiting.min(level.in_use);
        let mut text = format!(
            "{} of {} in use, {} open, {} wait",
            level.in_use - without,
            level.target,
            count.idle + count.out,
            level.waiting + without
        );
        if count.closing > 0 {
            text = format!("{text}, {} being closed", count.closing);
        }
        if !held.is_empty() {
            let held: Vec<String> = held.iter().map(Held::to_string).collect();
            text = format!("{text}, held longest: {}", held.join(", "));
        }
        text
    }
}

/// Tells of an error that nobody waited for, after others had their turn: on a runtime of one thread a caller who
/// asks again at once would otherwise keep those from running who could help.
async fn yielded(error: Error) -> Error {
    tokio::task::yield_now().await;
    error
}
