//! What is known of each connection, and when one has to go.
//!
//! bb8 is used as a store with a ceiling: no spare connections, no ageing, no test and no retry of its own, because
//! none of these can be changed or steered once a bb8 pool is built. Connections in it carry what is needed to
//! decide all that here: by the time one is put back it knows whether it stays, which is what bb8 asks it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bb8::ManageConnection;

use super::closing::{self, Going, GoneWhen};
use crate::{
    Error, ErrorKind,
    clock::{Clock, Instant},
};

/// How much shorter than the longest life one may be, so that connections made together do not all go together.
const JITTER: f64 = 0.1;

/// The user's manager, and what makes its connections tracked ones. Clones are the same.
pub(super) struct Tracking<M: ManageConnection>(Arc<Inner<M>>);

struct Inner<M: ManageConnection> {
    manager: M,
    /// Makes the manager's error ours.
    into_error: IntoError<M>,
    doubt: Option<Doubt<M>>,
    gone_when: Option<GoneWhen<M>>,
    clock: Clock,
    max_life: Option<Duration>,
    connected: AtomicU64,
    /// Connections of an earlier one do not stay.
    generation: AtomicU64,
}

/// Whether a connection has to be asked whether it works before it is lent.
pub(super) type Doubt<M> = Box<dyn Fn(&<M as ManageConnection>::Connection) -> bool + Send + Sync>;

/// Of which kind an error of the manager is, if it is of one.
pub(super) type KindOf<M> = Box<dyn Fn(&<M as ManageConnection>::Error) -> Option<ErrorKind> + Send + Sync>;

/// What is done, and how it failed.
pub(super) type IntoError<M> =
    Box<dyn Fn(&'static str, <M as ManageConnection>::Error) -> Error + Send + Sync>;

/// A connection, and what is known of it.
pub(super) struct Tracked<C> {
    pub(super) connection: C,
    /// Counted up in each pool.
    pub(super) id: u64,
    generation: u64,
    expires: Option<Instant>,
    /// When it was last known to work.
    pub(super) last_used: Instant,
    pub(super) uses: u64,
    /// Whether it has to be looked at before it is lent again, however recently it was used.
    pub(super) is_dirty: bool,
    /// Why it does not stay.
    pub(super) ending: Option<Ending>,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The manager or the user says that it is broken.
    Broken,
    /// It did not pass the test before it was to be lent.
    Invalid,
    /// It reached the end of its life.
    Expired,
    /// Nobody used it for long.
    Idle,
    /// All connections of its time were retired, or the pool was shut down.
    Retired,
    /// There are more than may be by now.
    Surplus,
}

impl<M: ManageConnection> Tracking<M> {
    pub(super) fn new(
        manager: M,
        into_error: IntoError<M>,
        doubt: Option<Doubt<M>>,
        gone_when: Option<GoneWhen<M>>,
        clock: Clock,
        max_life: Option<Duration>,
    ) -> Self {
        Self(Arc::new(Inner {
            manager,
            into_error,
            doubt,
            gone_when,
            clock,
            max_life,
            connected: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }))
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Has every connection that exists closed when it is next looked at.
    pub(super) fn retire_all(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Why the connection should not be lent any more, if it should not. Costs what the manager's `has_broken` costs.
    #[inline]
    pub(super) fn examine(&self, tracked: &mut Tracked<M::Connection>, now: Instant) -> Option<Ending> {
        if tracked.generation != self.0.generation.load(Ordering::Acquire) {
            Some(Ending::Retired)
        } else if tracked.expires.is_some_and(|end| now >= end) {
            Some(Ending::Expired)
        } else if self.is_broken(&mut tracked.connection) {
            Some(Ending::Broken)
        } else {
            None
        }
    }

    /// Whether the manager says so. If it panics it does, too: what unwound from here would leave the connection counted
    /// and gone, and end the pool's own task.
    #[inline]
    fn is_broken(&self, connection: &mut M::Connection) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.0.manager.has_broken(connection))).unwrap_or(true)
    }

    /// Whether it has to be asked, however recently it was used.
    #[inline]
    pub(super) fn is_doubtful(&self, tracked: &Tracked<M::Connection>) -> bool {
        tracked.is_dirty || self.0.doubt.as_ref().is_some_and(|doubt| doubt(&tracked.connection))
    }

    /// When a connection that is about to be dropped will be gone; at once, if nobody says otherwise.
    pub(super) fn going(&self, tracked: &Tracked<M::Connection>) -> Option<Going> {
        closing::ask(self.0.gone_when.as_ref()?, &tracked.connection)
    }

    /// Asks the server whether the connection works.
    pub(super) async fn test(&self, tracked: &mut Tracked<M::Connection>) -> Result<(), Error> {
        let tested = self.0.manager.is_valid(&mut tracked.connection).await;
        tested.map_err(|error| (self.0.into_error)("test", error))
    }
}

impl<M: ManageConnection> Clone for Tracking<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: ManageConnection> ManageConnection for Tracking<M> {
    type Connection = Tracked<M::Connection>;
    type Error = Error;

    async fn connect(&self) -> Result<Self::Connection, Error> {
        let inner = &*self.0;
        // Before the attempt: what was retired meanwhile may be where this one leads.
        let generation = inner.generation.load(Ordering::Acquire);
        let connected = inner.manager.connect().await;
        let connection = connected.map_err(|error| (inner.into_error)("connect", error))?;
        let now = inner.clock.now();
        let life = inner.max_life.map(|life| life.mul_f64(1.0 - JITTER * fastrand::f64()));
        Ok(Tracked {
            connection,
            id: inner.connected.fetch_add(1, Ordering::Relaxed),
            generation,
            expires: life.map(|life| now.after(life)),
            last_used: now,
            uses: 0,
            is_dirty: false,
            ending: None,
        })
    }

    async fn is_valid(&self, tracked: &mut Self::Connection) -> Result<(), Error> {
        self.test(tracked).await
    }

    fn has_broken(&self, tracked: &mut Self::Connection) -> bool {
        tracked.ending.is_some()
    }
}
