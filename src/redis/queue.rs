//! What callers want of a [connection](super::connection), until its [driver](super::driver) sends it: at most
//! [`MOST_CALLS`] calls, of at most [`MOST_BYTES`] (and one call, however large).

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use super::{
    batch::{Read, Waiter},
    fault::Fault,
    history::History,
    stats::Counts,
    wire::{Commands, Token},
};
use crate::sync::{Mutex, lock};

pub(super) const MOST_CALLS: usize = 16 * 1024;
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// So many bytes of calls are always enough to be sent.
const MUCH: usize = 64 * 1024;

/// What a connection and its driver share.
pub(super) struct Shared {
    pub(super) is_open: AtomicBool,
    pub(super) queue: Mutex<Queue>,
    /// What asks for the history of the data, where that matters.
    pub(super) question: Option<Commands>,
    pub(super) history: Mutex<History>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) calls: Vec<Call>,
    pub(super) bytes: usize,
    pub(super) closed: Option<Fault>,
    /// Who is to know what becomes of it.
    pub(super) counts: Option<Arc<Counts>>,
    /// Set where the driver has to be told of a call, as soon as so many wait.
    pub(super) driver: Option<Waker>,
    pub(super) enough: usize,
}

pub(super) enum Call {
    Read(Read),
    Run(Commands, Waiter<Vec<Token>>),
}

impl Queue {
    /// Whether what waits is worth a call of the system.
    pub(super) fn has_enough(&self) -> bool {
        !self.calls.is_empty() && (self.calls.len() >= self.enough || self.bytes >= MUCH)
    }
}

impl Call {
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Read(read) => read.names().size() + read.before.bytes.len(),
            Self::Run(commands, _) => commands.bytes.len(),
        }
    }

    pub(super) fn is_awaited(&self) -> bool {
        match self {
            Self::Read(read) => !read.waiter.is_closed(),
            Self::Run(_, waiter) => !waiter.is_closed(),
        }
    }

    fn fail(self, fault: Fault) {
        // Whoever went away need not be told.
        match self {
            Self::Read(read) => drop(read.waiter.send(Err(fault))),
            Self::Run(_, waiter) => drop(waiter.send(Err(fault))),
        }
    }
}

impl Shared {
    pub(super) fn new(question: Option<Commands>) -> Self {
        let (is_open, queue, history) = (AtomicBool::new(true), Mutex::default(), Mutex::default());
        Self { is_open, queue, question, history }
    }

    pub(super) fn push(&self, call: Call) -> Result<(), Fault> {
        let size = call.size();
        let mut queue = lock(&self.queue);
        if let Some(fault) = &queue.closed {
            return Err(fault.clone());
        }
        let has_room = queue.calls.len() < MOST_CALLS && queue.bytes + size <= MOST_BYTES;
        if !has_room && !queue.calls.is_empty() {
            return Err(Fault::Full);
        }
        queue.bytes += size;
        queue.calls.push(call);
        let is_enough = queue.has_enough();
        let driver = queue.driver.take_if(|_| is_enough);
        drop(queue);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(())
    }

    /// Has its end counted from now on, also if that was before; or not any more.
    pub(super) fn count_for(&self, counts: Option<&Arc<Counts>>) {
        let closed = {
            let mut queue = lock(&self.queue);
            queue.counts = counts.cloned();
            queue.closed.clone()
        };
        if let Some((counts, fault)) = counts.zip(closed) {
            counts.closed(&fault);
        }
    }

    pub(super) fn close(&self, fault: &Fault) {
        self.is_open.store(false, Ordering::Release);
        let mut queue = lock(&self.queue);
        let calls = mem::take(&mut queue.calls);
        let driver = queue.driver.take();
        let is_first = queue.closed.is_none();
        queue.closed.get_or_insert_with(|| fault.clone());
        let counts = queue.counts.clone().filter(|_| is_first);
        drop(queue);
        // An exporter is somebody else's code.
        if let Some(counts) = counts {
            counts.closed(fault);
        }
        calls.into_iter().for_each(|call| call.fail(fault.clone()));
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}
