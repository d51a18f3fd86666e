//! How a connection that was left in the middle of something is made fit again.
//!
//! A repair asks for something whose answer says that the connection is fit again: an empty query, a rollback, a
//! reset. It is put into the queue when the caller leaves, before anything else can be, and answers come in the order
//! of the questions. Only a statement that is still being prepared is waited for first: that takes several questions, one
//! after the other's answer. If the answer takes longer than a moment, what runs is cancelled on the server, unless other
//! callers, who are still there, wait for their own answers. A cancellation that may still strike later, or that
//! changes nothing, costs the connection.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::{Line, Preparing};

/// How long what was left may go on before it is cancelled. Most of what is left is short, and a cancellation takes a
/// connection of its own.
pub(super) const GRACE: Duration = Duration::from_millis(10);
/// The same of a commit, which nobody should keep from its end.
pub(super) const COMMIT_GRACE: Duration = Duration::from_secs(1);
/// How long the server may take to hear of a cancellation.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers that say "not yet" in a row, after which the connection is given up.
const MOST_ANSWERS: u32 = 4;

/// Answered whatever the state of the transaction.
pub(super) const NOTHING: &str = "";
pub(in super::super) const ROLLBACK: &str = "rollback";
/// Ends a transaction if there is one. By itself `rollback` would leave a warning in the server's log where there is
/// none, which is the rule.
pub(super) const ROLLBACK_IF_OPEN: &str = "begin; rollback";

type Asked = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

/// A repair under way: one that is dropped before its end has failed.
struct Repair {
    line: Arc<Line>,
    commits: u32,
    is_done: bool,
}

impl Drop for Repair {
    fn drop(&mut self) {
        self.line.change(|condition| {
            condition.repairs -= 1;
            condition.commits -= self.commits;
            condition.is_retired |= !self.is_done;
        });
        if !self.is_done {
            // The driver would wait for the answers that are due before it hangs up.
            self.line.abort();
        }
    }
}

impl Line {
    pub(super) fn repair(self: &Arc<Self>, sql: &'static str, grace: Duration, preparing: Option<Preparing>) {
        // There may be a caller at the wheel that was forgotten, and will not be polled again.
        self.wheel.share();
        let commits = u32::from(grace == COMMIT_GRACE);
        self.change(|condition| {
            condition.repairs += 1;
            condition.commits += commits;
        });
        let repair = Repair { line: Arc::clone(self), commits, is_done: false };
        let asked = self.ask(sql, preparing);
        self.runtime.spawn(async move {
            let mut repair = repair; // the whole of it, and not a copy of its field
            repair.is_done = repair.line.mend(asked, sql, grace).await;
        });
    }

    /// Puts a question into the queue at once, whenever its answer is waited for; or behind the last one that it takes to
    /// prepare a statement.
    fn ask(self: &Arc<Self>, sql: &'static str, preparing: Option<Preparing>) -> Asked {
        let line = Arc::clone(self);
        let mut asked: Asked = Box::pin(async move {
            if let Some(preparing) = preparing {
                let _ = preparing.await;
            }
            line.client.batch_execute(sql).await
        });
        match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => asked,
            Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
        }
    }

    async fn mend(self: &Arc<Self>, mut asked: Asked, sql: &'static str, grace: Duration) -> bool {
        let (mut was_cancelled, mut is_asked_again, mut answers) = (false, false, 0);
        loop {
            let patience = if was_cancelled { self.settings.drain } else { grace };
            let answer = match timeout(patience, &mut asked).await {
                Ok(answer) => answer,
                // Others are being served. They have no need to hurry.
                Err(_) if self.in_flight.load(Ordering::SeqCst) > 0 => continue,
                // Ahead of this is a commit, whose own repair cancels it when its time is up.
                Err(_) if grace < COMMIT_GRACE && self.condition.borrow().commits > 0 => continue,
                Err(_) if was_cancelled => return false,
                Err(_) => {
                    was_cancelled = true;
                    if !self.cancel().await {
                        return false;
                    }
                    continue;
                }
            };
            answers += 1;
            asked = match answer {
                Ok(()) if !is_asked_again => return true,
                Ok(()) => {
                    is_asked_again = false;
                    self.ask(sql, None)
                }
                Err(_) if answers > MOST_ANSWERS => return false,
                Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                    is_asked_again = sql != ROLLBACK_IF_OPEN;
                    self.ask(ROLLBACK, None)
                }
                // The cancellation was for what came before, and came a little late.
                Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => self.ask(sql, None),
                Err(_) => return false,
            };
        }
    }

    /// Cancels what whoever has the connection now runs when the future is polled; nothing once somebody else has it.
    pub(in super::super) fn cancel_own(&self) -> impl Future<Output = bool> + Send + use<> {
        let (loan, number, cancel) = (Arc::clone(&self.loan), self.loan.number(), self.cancel_running());
        async move {
            let Some(sending) = loan.send(number) else { return true };
            let is_over = cancel.await;
            sending.over(is_over);
            is_over
        }
    }

    /// Cancels what runs when the future is polled.
    fn cancel_running(&self) -> impl Future<Output = bool> + Send + use<> {
        let (canceller, token) = (self.canceller.clone(), self.client.cancel_token());
        async move { timeout(CANCEL_TIMEOUT, canceller.cancel(token)).await.unwrap_or(false) }
    }

    async fn cancel(&self) -> bool {
        tracing::debug!("postgres: a query that nobody waits for is cancelled");
        self.cancel_running().await
    }
}
