//! One connection, shared by many callers.
//!
//! A caller puts its call into the connection's [queue](super::queue) and waits. The [driver](super::driver) is a task of
//! its own, or the caller itself where callers come one at a time (see [`Wheel`]): on two threads that saves one from
//! waking the other in both directions, which costs as much as the trip.
//!
//! A connection is open until it is not, and then never again: its end was read or written to no avail, it brought
//! bytes that are not of the protocol, or it was silent. Everybody who waits is told then. A caller that gave up says
//! nothing about a connection: it may just have been impatient.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};

use super::{
    batch::{Names, Read, Values},
    driver::Driver,
    fault::{Fault, Lost},
    history::History,
    queue::{Call, Shared},
    stats::Counts,
    wire::{Commands, Token},
};
use crate::{sync::lock, wheel::Wheel};

/// Whoever is alone takes the wheel after so many were.
const OFTEN: u32 = 16;

/// What a connection runs over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// A connection, which ends when it is dropped.
pub(super) struct Connection {
    shared: Arc<Shared>,
    wheel: Wheel<Driver>,
    /// How many callers wait.
    waiting: AtomicU32,
    /// How many callers in a row found nobody else waiting.
    alone: AtomicU32,
}

impl Connection {
    /// Spawns the driver of a connection that is ready for commands, and asks this question again and again if there
    /// is one.
    pub(super) fn new(stream: Box<dyn Stream>, question: Option<Commands>) -> Self {
        let shared = Arc::new(Shared::new(question));
        let (wheel, task) = Wheel::new(Driver::new(stream, Arc::clone(&shared)));
        tokio::spawn(task);
        let (waiting, alone) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { shared, wheel, waiting, alone }
    }

    /// Makes calls, and waits for what they come to. Whoever is alone takes the wheel, unless there was company of
    /// late: it would soon have to be left again.
    pub(super) async fn carry<F: Future>(&self, calls: F) -> F::Output {
        let Self { wheel, waiting, alone, .. } = self;
        let others = waiting.fetch_add(1, Ordering::SeqCst);
        let _gone = Gone(waiting);
        if others > 0 {
            // Once is enough, for as long as nobody can have taken it.
            if alone.load(Ordering::Relaxed) > 0 {
                alone.store(0, Ordering::Relaxed);
                wheel.share();
            }
            return calls.await;
        }
        if alone.load(Ordering::Relaxed) < OFTEN {
            alone.fetch_add(1, Ordering::Relaxed);
            return calls.await;
        }
        // Asked in the lock that `share` takes: who took the mark away and this does not see has yet to come there.
        let is_alone = || waiting.load(Ordering::SeqCst) == 1 && alone.load(Ordering::Relaxed) >= OFTEN;
        wheel.carry(is_alone, calls).await
    }

    /// Has what becomes of it counted.
    pub(super) fn count_for(&self, counts: &Arc<Counts>) {
        self.shared.count_for(Some(counts));
    }

    /// How many calls wait for an answer, and how many of those for being sent.
    pub(super) fn calls(&self) -> (u32, u32) {
        let queued = lock(&self.shared.queue).calls.len();
        (self.waiting.load(Ordering::Relaxed), u32::try_from(queued).unwrap_or(u32::MAX))
    }

    pub(super) fn is_open(&self) -> bool {
        self.shared.is_open.load(Ordering::Acquire)
    }

    /// Ends it for everybody who uses it.
    pub(super) fn close(&self, lost: Lost) {
        self.shared.close(&Fault::Lost(lost));
    }

    /// The history that the data are of, as last heard.
    pub(super) fn history(&self) -> History {
        *lock(&self.shared.history)
    }

    /// Asks for the history, and tells whether there was an answer, if a question was given.
    pub(super) async fn ask(&self) -> Result<bool, Fault> {
        let Some(question) = &self.shared.question else { return Ok(true) };
        let mut answer = self.answer(question.clone()).await;
        // The names are on their way to another node, and are still this one's. It says so of every name that is not there,
        // and of none that is; so it is asked without one.
        if matches!(&answer, Err(Fault::Refused(refusal)) if matches!(refusal.code(), "ASK" | "TRYAGAIN")) {
            answer = self.answer(History::question_of_role()).await;
        }
        let answer = match answer {
            // Who may not ask does without, and who asks a server that does not know the command.
            Err(Fault::Refused(refusal)) if matches!(refusal.code(), "NOPERM" | "ERR") => return Ok(false),
            answer => answer?,
        };
        let history = answer.first().map_or(Ok(None), History::of)?;
        *lock(&self.shared.history) = history.unwrap_or_default();
        Ok(history.is_some())
    }

    async fn answer(&self, commands: Commands) -> Result<Vec<Token>, Fault> {
        self.run(commands)?.await.unwrap_or(Err(Fault::Lost(Lost::Closed)))
    }

    /// Reads values, after running other commands whose answers are of no interest.
    pub(super) fn read(
        &self,
        names: Names,
        before: Commands,
    ) -> Result<oneshot::Receiver<Result<Box<Values>, Fault>>, Fault> {
        let (waiter, answer) = oneshot::channel();
        self.shared.push(Call::Read(Read::new(names, before, waiter)))?;
        Ok(answer)
    }

    /// Runs commands each of which is answered by one token; the first refusal among the answers is that of all.
    pub(super) fn run(
        &self,
        commands: Commands,
    ) -> Result<oneshot::Receiver<Result<Vec<Token>, Fault>>, Fault> {
        let (waiter, answer) = oneshot::channel();
        self.shared.push(Call::Run(commands, waiter))?;
        Ok(answer)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("is_open", &self.is_open()).finish_non_exhaustive()
    }
}

/// One caller less waits.
struct Gone<'a>(&'a AtomicU32);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Nobody wants it any more.
        self.shared.count_for(None);
        self.shared.close(&Fault::Lost(Lost::Closed));
    }
}
