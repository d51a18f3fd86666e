//! The task that opens one connection.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bb8::ManageConnection;
use tokio::sync::Semaphore;

use super::{
    connect::Turn,
    shared::Shared,
    tracked::{Ending, Tracked, Tracking},
};
use crate::{Error, ErrorKind, sync::lock};

/// Opens a connection, or ends when nobody needs one any more. While it waits it does not keep the pool alive.
pub(super) async fn run<M: ManageConnection>(mut opener: Opener<M>, attempts: Arc<Semaphore>) {
    loop {
        let Ok(attempt) = attempts.acquire().await else { return };
        match opener.step().await {
            Step::Ended => return,
            Step::Again => drop(attempt),
            Step::After(pause) => {
                // Others may have their turn meanwhile.
                drop(attempt);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Counted in the supply for as long as it exists, even if the manager panics.
pub(super) struct Opener<M: ManageConnection> {
    pool: Weak<Shared<M>>,
    is_counted: bool,
    has_begun: bool,
}

enum Step {
    Ended,
    Again,
    After(Duration),
}

impl<M: ManageConnection> Opener<M> {
    /// One that is counted already.
    pub(super) fn new(pool: Weak<Shared<M>>) -> Self {
        Self { pool, is_counted: true, has_begun: false }
    }

    async fn step(&mut self) -> Step {
        self.has_begun = true;
        let Some(shared) = self.pool.upgrade() else { return Step::Ended };
        if shared.supply.is_superfluous() {
            self.is_counted = false;
            return Step::Ended;
        }
        let turn = lock(&shared.turnstile).turn(shared.clock.now());
        if let Turn::Wait(pause) = turn {
            return Step::After(pause);
        }
        let attempt = Attempt { pool: Weak::clone(&self.pool), is_over: false };
        let (tracking, patience) = (shared.tracking.clone(), shared.settings.connect_timeout);
        // However long it takes, it keeps nothing alive but the manager.
        drop(shared);
        let Some(connection) = attempt.make(tracking, patience).await else { return Step::Again };
        self.is_counted = false;
        if let Some(shared) = self.pool.upgrade() {
            shared.keep(connection);
        }
        Step::Ended
    }
}

impl<M: ManageConnection> Drop for Opener<M> {
    fn drop(&mut self) {
        if let (true, Some(shared)) = (self.is_counted, self.pool.upgrade()) {
            let missing = shared.supply.gave_up();
            if self.has_begun {
                // Whoever waits needs another one.
                shared.start(missing);
            } else {
                // The runtime is down, and another one would come to the same.
                shared.is_left_alone(missing);
            }
        }
    }
}

/// An attempt to connect, which the turnstile hears of however it ends.
struct Attempt<M: ManageConnection> {
    pool: Weak<Shared<M>>,
    is_over: bool,
}

impl<M: ManageConnection> Attempt<M> {
    async fn make(mut self, tracking: Tracking<M>, patience: Duration) -> Option<Tracked<M::Connection>> {
        let began = tracking.clock().now();
        let made = tokio::time::timeout(patience, tracking.connect()).await;
        self.is_over = true;
        let shared = self.pool.upgrade()?;
        let made = made.unwrap_or_else(|elapsed| {
            let message = format!("pool {}: connect: no answer within {patience:?}", shared.name);
            Err(Error::with_source(ErrorKind::TimedOut, message, elapsed))
        });
        match made {
            Ok(connection) => {
                shared.recorded.connects.record(tracking.clock().now().since(began));
                let change = lock(&shared.turnstile).succeeded();
                shared.report(change, None);
                Some(connection)
            }
            Err(error) => {
                shared.connect_failed(Some(&error));
                None
            }
        }
    }
}

impl<M: ManageConnection> Drop for Attempt<M> {
    fn drop(&mut self) {
        if let (false, Some(shared)) = (self.is_over, self.pool.upgrade()) {
            shared.connect_failed(None);
        }
    }
}

impl<M: ManageConnection> Shared<M> {
    /// Puts a new connection where those who wait find it, unless it has become one too many while it was opened.
    fn keep(self: &Arc<Self>, connection: Tracked<M::Connection>) {
        if !self.supply.admit() {
            self.recorded.closed(if self.gate.is_closed() { Ending::Retired } else { Ending::Surplus });
            let going = self.tracking.going(&connection);
            self.drop_one(connection);
            self.see_off(going);
            return;
        }
        match self.store.add(connection) {
            Ok(()) => self.supply.looked_at(),
            // bb8 counts what it was asked to hold and what it holds; there is room for as many as are counted here.
            Err(_) => {
                self.supply.give_up();
                self.see_off(None);
            }
        }
    }

    fn connect_failed(self: &Arc<Self>, error: Option<&Error>) {
        self.recorded.connect_failures.add();
        if error.is_some_and(|error| error.kind() == ErrorKind::TooManyConnections) {
            self.recorded.too_many_connections.add();
            if self.supply.refused(self.clock.now()) {
                self.recorded.refusals.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            self.recorded.other_failures.fetch_add(1, Ordering::Relaxed);
        }
        let (change, is_open) = {
            let mut turnstile = lock(&self.turnstile);
            let change = turnstile.failed(error, self.clock.now(), fastrand::f64());
            (change, turnstile.is_open())
        };
        self.report(change, error);
        let told = match error {
            Some(error) => error.clone(),
            None => Error::new(ErrorKind::Panicked, format!("pool {}: connect: it panicked", self.name)),
        };
        self.failed(&told, is_open);
    }
}
