//! A connection that is mended before anybody uses it.
//!
//! A caller may leave at any time: its query still runs, its transaction is still open, and whoever asks next on that
//! connection waits behind the one or finds itself inside the other. So every call is counted, and one that was left
//! starts a *repair* at once, in the background. Until all repairs are through, every call on the connection waits,
//! whoever makes it; if one fails, the connection is *retired* and no call is made on it any more.

mod loan;
mod repair;

use std::{
    fmt, io,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use loan::Loan;
pub(super) use repair::ROLLBACK;
use repair::{COMMIT_GRACE, GRACE, NOTHING, ROLLBACK_IF_OPEN};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle, time::timeout};
use tokio_postgres::Client;

use super::{
    connector::{Canceller, Connected, Connection},
    fault::{
        Fault, is_forgotten, is_going_down, is_of_other_types, is_over, is_read_only, is_stale,
        may_be_outdated,
    },
    pool::Settings,
    statements::{Cell, Prepared, Statements},
};
use crate::{Error, ErrorKind, generation::Generation, wheel::Wheel};

/// How long the server may take to answer when it has nothing else to do.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one that is given up may take to end: the answers that are due, and goodbye.
const FAREWELL: Duration = Duration::from_secs(1);
/// `discard all` but for the prepared statements, which are ours, and known to the driver.
const DISCARD: &str = "begin; rollback; close all; set session authorization default; reset all; unlisten *; \
    select pg_advisory_unlock_all(); discard temp; discard sequences";

/// What a user leaves behind: something was asked.
pub(super) const USED: u8 = 1;
/// Something was asked that may have left a transaction open, or a setting changed.
pub(super) const DIRTY: u8 = 2;
/// A transaction was begun whose guard has not ended it.
pub(super) const OPEN: u8 = 4;
/// The driver's client was handed out.
const RAW: u8 = 8;

/// How a connection is made fit for its next user when it is returned.
///
/// Transactions that were begun by [`transaction`](super::PostgresConnection::transaction) are rolled back by their
/// guard, whatever the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetPolicy {
    /// Not at all: for programs that begin transactions by their guard alone and change no setting. A transaction
    /// begun by SQL text is inherited by the next user; a query that still runs is not, here either.
    None,
    /// Whatever may have left a transaction open is followed by a rollback: SQL in the text protocol, use of the
    /// driver's client, statements other than queries and changes of rows. Costs one trip in the background, and only
    /// after those. Settings that were changed, locks, and temporary tables stay.
    #[default]
    RollbackIfDirty,
    /// After every use everything that a session holds is given up: settings, advisory locks, temporary tables,
    /// subscriptions, cursors and the role; as `DISCARD ALL` does, but for the prepared statements. Costs one trip in
    /// the background after every use.
    DiscardAll,
}

/// One connection, and those who wait on it.
pub(super) struct Line {
    client: Client,
    canceller: Canceller,
    pub(super) statements: Statements,
    settings: Arc<Settings>,
    generation: Arc<Generation>,
    /// The generation that it belongs to.
    born: u64,
    in_flight: AtomicU32,
    condition: watch::Sender<Condition>,
    /// The error that ended it, if a caller was told or the server said so unasked.
    cause: Arc<OnceLock<Error>>,
    /// What callers ask of it, who look several times in each call.
    glance: AtomicU8,
    traces: AtomicU8,
    runtime: Handle,
    wheel: Wheel<Connection>,
    /// The other half is dropped when the connection was hung up.
    end: watch::Receiver<()>,
    loan: Arc<Loan>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Condition {
    /// How many are under way.
    repairs: u32,
    /// How many of those wait for the end of a commit.
    commits: u32,
    is_retired: bool,
}

/// Calls have to wait, or will never be made.
const UNFIT: u8 = 1;
const RETIRED: u8 = 2;

/// A call under way, which starts a repair unless it is ended.
struct Call<'a> {
    line: &'a Arc<Line>,
    grace: Duration,
    /// The task that prepares its statement, and goes on without it.
    preparing: Option<Preparing>,
    is_over: bool,
}

/// Whether a statement may be made again on its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Alone,
    InTransaction { is_read_only: bool },
}

/// What a caller wants to hear.
pub(super) trait Answer: Sized + Send {
    fn ask(
        client: &Client,
        prepared: &Prepared,
        parameters: Parameters<'_>,
    ) -> impl Future<Output = Result<Self, tokio_postgres::Error>> + Send;
}

/// As the driver takes them.
pub(super) type Parameters<'a> = &'a [&'a (dyn tokio_postgres::types::ToSql + Sync)];

type Preparing = JoinHandle<Result<Prepared, tokio_postgres::Error>>;

impl Line {
    /// `born` is the generation of before the attempt: what was retired meanwhile may be where this one leads.
    pub(super) fn new(
        connected: Connected,
        settings: &Arc<Settings>,
        generation: &Arc<Generation>,
        born: u64,
    ) -> Arc<Self> {
        let Connected { client, connection, canceller } = connected;
        let going = Arc::clone(generation);
        let (wheel, driven) = Wheel::new(connection);
        let (going_on, end) = watch::channel(());
        let cause = Arc::<OnceLock<Error>>::default();
        let last_words = Arc::clone(&cause);
        tokio::spawn(async move {
            let _going_on = going_on;
            let Some(Err(error)) = driven.await else { return };
            // A server that goes down says so to those who ask nothing, too.
            if is_going_down(&error) {
                going.retire(born);
            }
            if error.as_db_error().is_some() {
                last_words.get_or_init(|| Fault::from(error).during("connection"));
            }
        });
        Arc::new(Self {
            client,
            canceller,
            statements: Statements::new(settings.statement_cache),
            settings: Arc::clone(settings),
            generation: Arc::clone(generation),
            born,
            in_flight: AtomicU32::new(0),
            condition: watch::Sender::default(),
            cause,
            glance: AtomicU8::new(0),
            traces: AtomicU8::new(0),
            runtime: Handle::current(),
            wheel,
            end,
            loan: Arc::default(),
        })
    }

    /// Ready when the connection was hung up, for which somebody has to drop it.
    pub(super) fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut end = self.end.clone();
        async move { while end.changed().await.is_ok() {} }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The driver's client, of whose use nothing is seen.
    pub(super) fn raw(&self) -> &Client {
        self.mark(USED | DIRTY | RAW);
        self.wheel.bar();
        &self.client
    }

    /// Whether nobody should use it any more.
    pub(super) fn is_over(&self) -> bool {
        self.has_ended() || self.born < self.generation.current()
    }

    /// Whether what the session holds is worth nothing: it has ended, or the server was left for another one.
    pub(super) fn holds_nothing(&self) -> bool {
        self.has_ended() || self.generation.was_left(self.born)
    }

    /// Whether this very connection is no more, whatever is known of the others.
    pub(super) fn has_ended(&self) -> bool {
        let is_retired = self.glance.load(Ordering::SeqCst) & RETIRED != 0;
        is_retired || self.client.is_closed()
    }

    pub(super) fn retire(&self) {
        self.change(|condition| condition.is_retired = true);
    }

    fn change(&self, change: impl FnOnce(&mut Condition)) {
        self.condition.send_modify(|condition| {
            change(condition);
            let unfit = if *condition == Condition::default() { 0 } else { UNFIT };
            let retired = if condition.is_retired { RETIRED } else { 0 };
            self.glance.store(unfit | retired, Ordering::SeqCst);
        });
    }

    /// Whoever had the connection has no more use for it. What still runs on it is cancelled first, since the driver
    /// hangs up when every answer has come, and the server goes on when it is hung up on; all that a session holds ends
    /// with it.
    pub(super) fn close(self: &Arc<Self>) {
        self.wheel.share();
        self.count_forgotten();
        let may_run = self.traces.swap(0, Ordering::Relaxed) & DIRTY != 0;
        if may_run && !self.client.is_closed() {
            self.repair(NOTHING, GRACE, None);
        }
        // One that hangs would never come to say goodbye, and nobody waits for an answer. Repairs see to it themselves.
        if self.condition.borrow().repairs == 0 {
            let (hang_up, gone) = (self.wheel.hanging_up(), self.gone());
            self.runtime.spawn(async move {
                if timeout(FAREWELL, gone).await.is_err() {
                    hang_up();
                }
            });
        }
    }

    /// Hangs up at once, whatever is under way.
    fn abort(&self) {
        self.wheel.hang_up();
    }

    /// Runs a statement that is prepared here once.
    pub(super) async fn run<A: Answer>(
        self: &Arc<Self>,
        sql: &str,
        parameters: Parameters<'_>,
        scope: Scope,
    ) -> Result<A, Error> {
        let mut call = match self.begin_at_once(GRACE) {
            Some(call) => call,
            None => Box::pin(self.begin(GRACE)).await?,
        };
        self.mark(USED);
        let mut is_second = false;
        loop {
            let cell = self.statements.cell(sql);
            let now;
            let prepared = match cell.get() {
                Some(prepared) => prepared,
                None => {
                    now = match Box::pin(call.prepare(&cell, sql, scope)).await {
                        Ok(prepared) => prepared,
                        Err(fault) => return Err(call.failed("prepare", fault)),
                    };
                    &now
                }
            };
            if !prepared.is_plain {
                self.mark(DIRTY);
            }
            let error = match self.carry(pin!(A::ask(&self.client, prepared, parameters))).await {
                Ok(answer) => {
                    call.ended();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let is_stale = is_stale(&error);
            if is_forgotten(&error) || is_of_other_types(&error) || may_be_outdated(&error) {
                self.statements.forget(sql, &cell);
            }
            if is_of_other_types(&error) {
                // Not where the server has forgotten its statements: that by which the driver asks for types is among them.
                self.client.clear_type_cache();
            }
            // A failed statement has failed its transaction, so there it cannot be made again.
            if !is_stale || is_second || scope != Scope::Alone {
                return Err(call.refused("query", error, scope));
            }
            is_second = true;
        }
    }

    /// Runs SQL in the text protocol.
    pub(super) async fn batch(
        self: &Arc<Self>,
        operation: &'static str,
        sql: &str,
        traces: u8,
        scope: Scope,
    ) -> Result<(), Error> {
        let grace = if operation == "commit" { COMMIT_GRACE } else { GRACE };
        let call = match self.begin_at_once(grace) {
            Some(call) => call,
            None => Box::pin(self.begin(grace)).await?,
        };
        self.mark(traces);
        match self.carry(pin!(self.client.batch_execute(sql))).await {
            Ok(()) => {
                call.ended();
                Ok(())
            }
            Err(error) => Err(call.refused(operation, error, scope)),
        }
    }

    /// Counts a call, if the connection is fit.
    #[inline]
    fn begin_at_once(self: &Arc<Self>, grace: Duration) -> Option<Call<'_>> {
        // Counted first: a repair that this does not see sees this, and cancels nothing.
        if self.in_flight.fetch_add(1, Ordering::SeqCst) > 0 {
            self.wheel.share();
        }
        if self.is_fit() {
            return Some(Call { line: self, grace, preparing: None, is_over: false });
        }
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        None
    }

    /// Waits until the connection is fit, and counts a call.
    async fn begin(self: &Arc<Self>, grace: Duration) -> Result<Call<'_>, Error> {
        loop {
            self.fit().await?;
            if let Some(call) = self.begin_at_once(grace) {
                return Ok(call);
            }
        }
    }

    /// Waits for the answer to one call.
    async fn carry<F: Future>(&self, answer: F) -> F::Output {
        // In this order: whoever goes away has its repair counted before it is no longer counted itself. Who waits for a
        // repair needs somebody who drives.
        let is_alone = || self.in_flight.load(Ordering::SeqCst) == 1 && self.is_fit();
        self.wheel.carry(is_alone, answer).await
    }

    pub(super) fn is_fit(&self) -> bool {
        self.glance.load(Ordering::SeqCst) == 0
    }

    /// Waits until nothing of anybody else is going on.
    pub(super) async fn fit(&self) -> Result<(), Error> {
        let mut condition = self.condition.subscribe();
        let condition = condition.wait_for(|condition| condition.repairs == 0 || condition.is_retired).await;
        match condition {
            Ok(condition) if !condition.is_retired => Ok(()),
            _ => Err(self.given_up()),
        }
    }

    fn given_up(&self) -> Error {
        let problem = "postgres: the connection was given up";
        match self.cause.get() {
            Some(cause) => Error::with_source(ErrorKind::Disconnected, problem, cause.clone()),
            None => {
                let cause = io::Error::other("what was left on it could not be undone, or it was closed");
                Error::with_source(ErrorKind::Disconnected, problem, cause)
            }
        }
    }

    /// Waits until the connection is fit, and asks the server whether it is there.
    pub(super) async fn check(&self) -> Result<(), Error> {
        if self.is_over() {
            return Err(Error::new(ErrorKind::Disconnected, "postgres: the connection is over"));
        }
        self.wheel.share();
        let check = async {
            self.fit().await?;
            self.client.check_connection().await.map_err(|error| Fault::from(error).during("check"))
        };
        // A query that was cancelled may take longer than that to end, where that is wanted.
        let is_under_repair = self.condition.borrow().repairs > 0;
        let patience = if is_under_repair { self.settings.drain } else { Duration::ZERO };
        let checked = timeout(CHECK_TIMEOUT.max(patience), check).await;
        checked.unwrap_or_else(|elapsed| {
            self.retire();
            // Repairs see to it themselves: what they have to cancel would go on.
            if self.condition.borrow().repairs == 0 {
                self.abort();
            }
            Err(Fault::new(ErrorKind::TimedOut, "no answer in time", elapsed).during("check"))
        })
    }

    /// The guard of a transaction has ended it, or sees to it.
    pub(super) fn closed(&self) {
        self.traces.fetch_and(!OPEN, Ordering::Relaxed);
    }

    fn mark(&self, traces: u8) {
        if self.traces.load(Ordering::Relaxed) & traces != traces {
            self.traces.fetch_or(traces, Ordering::Relaxed);
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.reset_asked(self.traces.load(Ordering::Relaxed)).is_some()
    }

    fn reset_asked(&self, traces: u8) -> Option<&'static str> {
        match self.settings.reset {
            ResetPolicy::DiscardAll if traces != 0 => Some(DISCARD),
            ResetPolicy::RollbackIfDirty if traces & DIRTY != 0 => Some(ROLLBACK_IF_OPEN),
            // A guard that was forgotten has not seen to it.
            _ if traces & OPEN != 0 => Some(ROLLBACK_IF_OPEN),
            ResetPolicy::None if traces & DIRTY != 0 => Some(NOTHING),
            _ => None,
        }
    }

    /// Whoever had the connection has it no longer, so nobody can wait for an answer any more. A call that is still
    /// counted was forgotten: nobody will poll it, nor drop it, and what it asked for may run. To be called by the owner.
    fn count_forgotten(&self) {
        if self.in_flight.swap(0, Ordering::SeqCst) > 0 {
            self.mark(USED | DIRTY);
        }
    }

    /// Starts to reset what the last user left, if there is anything.
    pub(super) fn let_go(self: &Arc<Self>) {
        if self.loan.end() {
            // What may be cancelled is somebody else's by then.
            self.retire();
        }
        self.count_forgotten();
        let traces = self.traces.swap(0, Ordering::Relaxed);
        if let Some(sql) = self.reset_asked(traces) {
            self.repair(sql, GRACE, None);
        }
        if traces & RAW != 0 {
            // What was asked there is answered before the repair is, which every call waits for.
            self.wheel.free();
        }
    }

    /// Ends the transaction that its guard has left.
    pub(super) fn roll_back(self: &Arc<Self>) {
        self.closed();
        self.repair(ROLLBACK, GRACE, None);
    }

    /// Keeps an error that ended the connection, for those who come after, who are told no more than that it is closed.
    fn noted(&self, operation: &'static str, fault: Fault) -> Error {
        if let Some(cause) = self.cause.get().filter(|_| fault.is_closed()) {
            let problem = format!("postgres: the connection was lost ({operation})");
            return Error::with_source(ErrorKind::Disconnected, problem, cause.clone());
        }
        let is_closed = fault.is_closed();
        let error = fault.during(operation);
        if self.has_ended()
            && !is_closed
            && matches!(error.kind(), ErrorKind::Disconnected | ErrorKind::Unavailable)
        {
            self.cause.get_or_init(|| error.clone());
        }
        error
    }

    /// Draws conclusions from a failed call, for this connection and for the others.
    fn learn(&self, error: &tokio_postgres::Error, scope: Scope) {
        if is_over(error) {
            self.retire();
        }
        if is_going_down(error) {
            self.generation.retire(self.born);
        }
        // A primary that became a standby goes on answering, and refuses every write until it is left.
        let is_asked_for = scope == Scope::InTransaction { is_read_only: true };
        if is_read_only(error) && !is_asked_for {
            self.generation.retire_read_only(self.born);
        }
    }
}

impl Call<'_> {
    /// In a task of its own: a statement that is half prepared would stay with the server for good.
    async fn prepare(&mut self, cell: &Cell, sql: &str, scope: Scope) -> Result<Prepared, Fault> {
        let (line, place, text) = (Arc::clone(self.line), Arc::clone(cell), sql.to_owned());
        let prepare = async move {
            let prepared = line.statements.prepare(&place, &line.client, &text).await;
            prepared.inspect_err(|error| {
                line.learn(error, scope);
                // What the driver asks for types by, which it never prepares anew.
                if is_forgotten(error) {
                    line.retire();
                }
            })
        };
        let prepared = match self.preparing.insert(self.line.runtime.spawn(prepare)).await {
            Ok(prepared) => prepared.map_err(Fault::from),
            Err(gone) => Err(Fault::new(ErrorKind::Unavailable, "the runtime shut down", gone)),
        };
        self.preparing = None;
        if prepared.is_err() {
            self.line.statements.forget(sql, cell);
        }
        prepared
    }

    fn ended(mut self) {
        self.is_over = true;
    }

    fn refused(self, operation: &'static str, error: tokio_postgres::Error, scope: Scope) -> Error {
        self.line.learn(&error, scope);
        if error.as_db_error().is_some() {
            return self.failed(operation, error.into());
        }
        // The driver has given up, as at a row too many: the rest of the answer is left as by a caller who has gone.
        self.line.noted(operation, error.into())
    }

    fn failed(mut self, operation: &'static str, fault: Fault) -> Error {
        self.is_over = true;
        self.line.noted(operation, fault)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.line.repair(NOTHING, self.grace, self.preparing.take());
        }
        // The repair is counted first, so that nobody comes in between.
        self.line.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("statements", &self.statements)
            .field("in_flight", &self.in_flight.load(Ordering::Relaxed))
            .field("condition", &*self.condition.borrow())
            .finish_non_exhaustive()
    }
}
