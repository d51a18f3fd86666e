//! The task that opens one connection.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bb8::ManageConnection;
use tokio::sync::Semaphore;

use super::{
    connect::Turn,
    shared::Shared,
    tracked::{Ending, Tracked},
};
use crate::{Error, ErrorKind, sync::lock};

/// Opens a connection, or ends when nobody needs one any more. While it waits it does not keep the pool alive.
pub(super) async fn run<M: ManageConnection>(pool: Weak<Shared<M>>, attempts: Arc<Semaphore>) {
    let mut opener = Opener { pool, is_counted: true };
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
struct Opener<M: ManageConnection> {
    pool: Weak<Shared<M>>,
    is_counted: bool,
}

enum Step {
    Ended,
    Again,
    After(Duration),
}

impl<M: ManageConnection> Opener<M> {
    async fn step(&mut self) -> Step {
        let Some(shared) = self.pool.upgrade() else { return Step::Ended };
        if shared.supply.is_superfluous() {
            self.is_counted = false;
            return Step::Ended;
        }
        let turn = lock(&shared.turnstile).turn(shared.clock.now());
        if let Turn::Wait(pause) = turn {
            return Step::After(pause);
        }
        let attempt = Attempt { shared: &shared, is_over: false };
        match attempt.make().await {
            Some(connection) => {
                self.is_counted = false;
                shared.keep(connection);
                Step::Ended
            }
            None => Step::Again,
        }
    }
}

impl<M: ManageConnection> Drop for Opener<M> {
    fn drop(&mut self) {
        if let (true, Some(shared)) = (self.is_counted, self.pool.upgrade()) {
            // Whoever waits needs another one.
            shared.start(shared.supply.gave_up());
        }
    }
}

/// An attempt to connect, which the turnstile hears of however it ends.
struct Attempt<'a, M: ManageConnection> {
    shared: &'a Arc<Shared<M>>,
    is_over: bool,
}

impl<M: ManageConnection> Attempt<'_, M> {
    async fn make(mut self) -> Option<Tracked<M::Connection>> {
        let shared = self.shared;
        let began = shared.clock.now();
        let patience = shared.settings.connect_timeout;
        let made = tokio::time::timeout(patience, shared.store.dedicated_connection()).await;
        let made = made.unwrap_or_else(|elapsed| {
            let message = format!("pool {}: connect: no answer within {patience:?}", shared.name);
            Err(Error::with_source(ErrorKind::TimedOut, message, elapsed))
        });
        self.is_over = true;
        match made {
            Ok(connection) => {
                shared.recorded.connects.record(shared.clock.now().since(began));
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

impl<M: ManageConnection> Drop for Attempt<'_, M> {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.connect_failed(None);
        }
    }
}

impl<M: ManageConnection> Shared<M> {
    /// Puts a new connection where those who wait find it.
    fn keep(self: &Arc<Self>, connection: Tracked<M::Connection>) {
        if self.gate.is_closed() {
            self.recorded.closed(Ending::Retired);
            drop(connection);
            self.start(self.supply.gave_up());
            return;
        }
        match self.store.add(connection) {
            Ok(()) => self.supply.opened(),
            // bb8 counts what it was asked to hold and what it holds; there is room for as many as are counted here.
            Err(_) => self.start(self.supply.gave_up()),
        }
    }

    fn connect_failed(self: &Arc<Self>, error: Option<&Error>) {
        self.recorded.connect_failures.add();
        if error.is_some_and(|error| error.kind() == ErrorKind::TooManyConnections) {
            self.recorded.too_many_connections.add();
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
        self.supply.failed(&told, is_open);
    }
}
