//! The pool as its users see it.

use std::{
    fmt,
    future::Future,
    panic::Location,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bb8::ManageConnection;

use super::{
    builder::PoolBuilder,
    classes::Class,
    guard::Connection,
    shared::{Call, Patience, Shared},
    stats::Stats,
};
use crate::{Error, sync::lock};

/// A pool of the connections that a [`bb8::ManageConnection`] makes; cheap to clone, clones are the same.
///
/// When the last clone and the last connection are gone, everything is closed.
pub struct Pool<M: ManageConnection>(pub(super) Arc<Shared<M>>);

impl<M: ManageConnection> Pool<M> {
    /// Settings of a pool. The name is in its errors, logs and metrics.
    pub fn builder(name: impl Into<String>, manager: M) -> PoolBuilder<M> {
        PoolBuilder::new(name.into(), manager)
    }

    /// Checks out a connection, waiting for the caller's turn: first come, first served within a class.
    ///
    /// The caller is in line from when the future is first polled, which has to be on a tokio runtime with its timer
    /// enabled.
    ///
    /// # Errors
    ///
    /// - [`TimedOut`](crate::ErrorKind::TimedOut) after [`timeout`](PoolBuilder::timeout). It tells what was waited
    ///   for, who holds connections for longest, and how the last attempt to connect failed, which is also the source.
    /// - What the attempt to connect failed with, at once, if no connection is out that could come back: one that is held
    ///   for longer than the time-out, and for 30 s, is not expected to. An error of
    ///   the manager that is an [`Error`] of this crate is that one; another one is the source of an
    ///   [`Unavailable`](crate::ErrorKind::Unavailable). A server that says nothing within
    ///   [`connect_timeout`](PoolBuilder::connect_timeout) is `TimedOut`.
    /// - [`Overloaded`](crate::ErrorKind::Overloaded) if as many wait as may.
    /// - [`Panicked`](crate::ErrorKind::Panicked) if there is none, and the manager panicked when it was to connect, or the
    ///   runtime went down in which the pool was built.
    /// - [`Closed`](crate::ErrorKind::Closed) after [`shutdown`](Self::shutdown).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line, and hands on a permit or a connection that was being handed over. A
    /// connection that is being opened is opened nevertheless, for whoever is next.
    ///
    /// # Examples
    ///
    /// ```
    /// # use mcp_perf::pool::Pool;
    /// # struct Echo;
    /// # impl bb8::ManageConnection for Echo {
    /// #     type Connection = String;
    /// #     type Error = std::io::Error;
    /// #     async fn connect(&self) -> Result<String, std::io::Error> { Ok(String::new()) }
    /// #     async fn is_valid(&self, _: &mut String) -> Result<(), std::io::Error> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut String) -> bool { false }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let pool = Pool::builder("echo", Echo).size(2).build()?;
    /// let mut connection = pool.get().await?;
    /// connection.push_str("hello");
    /// assert_eq!(pool.stats().in_use, 1);
    /// drop(connection);
    /// assert_eq!(pool.stats().in_use, 0);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn get(&self) -> impl Future<Output = Result<Connection<M>, Error>> + Send + use<'_, M> {
        self.get_for(Class::DEFAULT)
    }

    /// As [`get`](Self::get), for a class of callers.
    ///
    /// # Errors
    ///
    /// As `get`, and [`Configuration`](crate::ErrorKind::Configuration) for a class of another pool.
    #[track_caller]
    #[inline]
    pub fn get_for(
        &self,
        class: Class,
    ) -> impl Future<Output = Result<Connection<M>, Error>> + Send + use<'_, M> {
        let place = Location::caller();
        async move { self.0.lend(self.call(class, place, Patience::Either)?).await }
    }

    /// Checks out a connection if nobody has to return one first, else `None`. It may still wait for a new connection to be
    /// opened, or for one that nobody has to be tested.
    ///
    /// `None`, too, where the last place is that of a connection that is closed and not [gone](PoolBuilder::gone_when) yet,
    /// and where opening one fails while others have connections.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn try_get(&self) -> impl Future<Output = Result<Option<Connection<M>>, Error>> + Send + use<'_, M> {
        self.try_get_for(Class::DEFAULT)
    }

    /// As [`try_get`](Self::try_get), for a class of callers.
    ///
    /// # Errors
    ///
    /// As [`get_for`](Self::get_for).
    #[track_caller]
    pub fn try_get_for(
        &self,
        class: Class,
    ) -> impl Future<Output = Result<Option<Connection<M>>, Error>> + Send + use<'_, M> {
        let place = Location::caller();
        async move { self.0.try_lend(self.call(class, place, Patience::Opening)?).await }
    }

    /// A class that was [named](PoolBuilder::class) when the pool was built.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if none has this name.
    pub fn class(&self, name: &str) -> Result<Class, Error> {
        let index = self.0.classes.iter().position(|class| **class == *name);
        let index = index.ok_or_else(|| Error::configuration("class", format_args!("{name:?} is none")))?;
        Ok(Class { pool: self.0.id, index })
    }

    /// Has `connections` in use at most from now on, or from when enough of them were returned. In mode
    /// [`adaptive`](PoolBuilder::adaptive) this holds until the next decision, and never above what is
    /// [allowed](PoolBuilder::allowance).
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) unless it is from 1 to the ceiling.
    pub fn set_target(&self, connections: u32) -> Result<(), Error> {
        let ceiling = self.0.settings.ceiling;
        if !(1..=ceiling).contains(&connections) {
            return Err(Error::configuration("target", format_args!("must be from 1 to {ceiling}")));
        }
        // What is allowed falls before or after this, and not in between.
        {
            let _one = lock(&self.0.watch.gives_way);
            self.0.gate.set_target(connections.min(self.0.ceiling()), None, self.0.clock.now());
        }
        // As many may be open.
        self.0.give_way();
        self.0.start(self.0.supply.missing());
        Ok(())
    }

    /// Has every connection that is open now closed: idle ones soon, others when they are returned. For after a
    /// failover, when connections work and lead to the wrong server.
    pub fn retire_all(&self) {
        self.0.tracking.retire_all();
        let shared = Arc::clone(&self.0);
        self.0.runtime.spawn(async move {
            let now = shared.clock.now();
            shared.look_at_idle(now).await;
            shared.start(shared.supply.missing());
        });
    }

    /// What the pool is doing, and did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &*self.0;
        let recorded = &shared.recorded;
        let (level, count) = (shared.gate.level(), shared.supply.count());
        let (waits, holds) = (recorded.waits.histogram.counted(), recorded.holds.histogram.counted());
        let connects = recorded.connects.histogram.counted();
        Stats {
            in_use: level.in_use,
            idle: count.idle,
            open: count.idle + count.out,
            closing: count.closing,
            target: level.target,
            ceiling: shared.ceiling(),
            debt: shared.gate.debt(),
            proven: match shared.watch.proven.load(Ordering::Relaxed) {
                0 => level.target,
                proven => proven,
            },
            waiting: level.waiting,
            waiting_for_connection: count.waiting,
            utilisation: f64::from(shared.watch.utilisation.load(Ordering::Relaxed)) / 1_000.0,
            gets: waits.total(),
            wait_p50: waits.percentile(0.5),
            wait_p95: waits.percentile(0.95),
            wait_p99: waits.percentile(0.99),
            returns: holds.total(),
            hold_p50: holds.percentile(0.5),
            hold_p99: holds.percentile(0.99),
            connects: connects.total(),
            connect_failures: recorded.connect_failures.sum(),
            too_many_connections: recorded.too_many_connections.sum(),
            connect_p50: connects.percentile(0.5),
            connect_p99: connects.percentile(0.99),
            timeouts: recorded.timeouts.sum(),
            overloads: recorded.overloads.sum(),
            closed: recorded.closed_so_far(),
            leaks: recorded.leaks.sum(),
            longest: shared.longest(shared.clock.now()),
            classes: shared.by_class(),
        }
    }

    /// Lets nobody in any more, sends away those who wait, and closes every connection: idle ones now, others when
    /// they are returned. It waits for that, and until all are [gone](PoolBuilder::gone_when), for no longer than
    /// `timeout`; not for one that is still being opened, which is closed as soon as it is. What an
    /// [`Allowance`](super::Allowance) holds, as leases and a connection of its own, it gives back when the last clone
    /// of the pool and the last connection are gone.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::ErrorKind::TimedOut), naming who holds connections still, if anybody does. Those are closed
    /// when they are returned.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it only stops waiting.
    pub async fn shutdown(&self, timeout: Duration) -> Result<(), Error> {
        let shared = &self.0;
        shared.gate.close();
        // In this order: what is opened after it is not admitted, and what was before it is retired.
        shared.supply.close(&shared.closed());
        shared.tracking.retire_all();
        let began = shared.clock.now();
        shared.look_at_idle(began).await;
        let closed = async {
            shared.supply.all_returned().await;
            // One that was being returned while the pool was closed may have become idle since.
            shared.look_at_idle(shared.clock.now()).await;
            shared.supply.all_returned().await;
        };
        tokio::time::timeout(timeout, closed).await.map_err(|_| {
            let waited_for = match shared.supply.count().out {
                0 => "connections to be closed",
                1.. => "connections to be returned",
            };
            shared.too_late(began, waited_for)
        })
    }

    /// Somebody asks, now: the future may have been made long ago.
    fn call(
        &self,
        class: Class,
        place: &'static Location<'static>,
        patience: Patience,
    ) -> Result<Call, Error> {
        if class.pool != 0 && class.pool != self.0.id {
            return Err(Error::configuration("class", "it is one of another pool"));
        }
        Ok(Call { class: class.index, place, began: self.0.clock.now(), patience })
    }
}

impl<M: ManageConnection> Clone for Pool<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: ManageConnection> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.0.gate.level();
        f.debug_struct("Pool")
            .field("name", &self.0.name)
            .field("in_use", &level.in_use)
            .field("target", &level.target)
            .field("waiting", &level.waiting)
            .finish_non_exhaustive()
    }
}
