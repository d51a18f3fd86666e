//! A store whose calls can be held at a step, so that a race is walked through instead of hoped for.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error,
    cache::{Found, Put, Restamp, Store, Written},
};
use tokio::sync::oneshot;

/// Where a call can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A read has its answer, and the cache does not have it yet.
    ReadAnswered,
    /// A write has not reached the store.
    BeforeWrite,
    /// A removal or a new stamp has not reached the store.
    BeforeInvalidation,
    #[allow(dead_code, reason = "not every test file needs it")]
    /// A new stamp is there, and the cache does not know.
    StampChanged,
}

#[derive(Clone)]
pub struct Stepped<S> {
    inner: S,
    hold: Arc<Mutex<Option<Hold>>>,
    failures: Arc<AtomicUsize>,
    read_failures: Arc<AtomicUsize>,
}

struct Hold {
    step: Step,
    reached: oneshot::Sender<()>,
    go_on: oneshot::Receiver<()>,
}

/// The next call that reaches the step waits there.
pub struct Held {
    reached: Option<oneshot::Receiver<()>>,
    go_on: oneshot::Sender<()>,
}

impl<S: Sync> Stepped<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, hold: Arc::default(), failures: Arc::default(), read_failures: Arc::default() }
    }

    /// The next so many writes and invalidations fail.
    pub fn fail_writes(&self, count: usize) {
        self.failures.store(count, Ordering::SeqCst);
    }

    /// The next so many reads fail.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub fn fail_reads(&self, count: usize) {
        self.read_failures.store(count, Ordering::SeqCst);
    }

    fn fails(&self) -> Result<(), Error> {
        Self::count_down(&self.failures)
    }

    fn count_down(failures: &AtomicUsize) -> Result<(), Error> {
        let less = |left: usize| left.checked_sub(1);
        match failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => {
                Err(Error::unavailable("the test's store fails", std::io::Error::other("as it was told")))
            }
            Err(_) => Ok(()),
        }
    }

    pub fn hold(&self, step: Step) -> Held {
        let (reached, has_reached) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel();
        *self.hold.lock().unwrap() = Some(Hold { step, reached, go_on: may_go_on });
        Held { reached: Some(has_reached), go_on }
    }

    async fn at(&self, step: Step) {
        let hold = self.hold.lock().unwrap().take_if(|hold| hold.step == step);
        if let Some(hold) = hold {
            let _ = hold.reached.send(());
            let _ = hold.go_on.await;
        }
    }
}

impl Held {
    pub async fn reached(&mut self) {
        self.reached.take().expect("waited for once").await.expect("a call reaches the step");
    }

    pub fn go_on(self) {
        let _ = self.go_on.send(());
    }
}

impl<S: Store> Store for Stepped<S> {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        Self::count_down(&self.read_failures)?;
        let found = self.inner.get_many(entries, stamps).await;
        self.at(Step::ReadAnswered).await;
        found
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        self.at(Step::BeforeWrite).await;
        self.fails()?;
        self.inner.put_if(put).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        self.at(Step::BeforeInvalidation).await;
        self.fails()?;
        self.inner.remove_many(entries, hold).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        self.at(Step::BeforeInvalidation).await;
        self.fails()?;
        let changed = self.inner.restamp(stamps).await;
        self.at(Step::StampChanged).await;
        changed
    }

    async fn ping(&self) -> Result<(), Error> {
        self.inner.ping().await
    }
}
