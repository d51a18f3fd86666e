//! Connections that are closed, and not gone yet.
//!
//! What is dropped here may live on at the server for a moment: while what still runs there is cancelled, for example.
//! A server that is full has no room for another one before that. So a connection that is closed counts until its manager
//! says that it is gone.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use bb8::ManageConnection;

use super::shared::Shared;

/// After this time a connection is taken for gone, whatever is said.
const LONGEST: Duration = Duration::from_secs(10);

/// How to know when a connection that is about to be dropped is gone.
pub(super) type GoneWhen<M> = Box<dyn Fn(&<M as ManageConnection>::Connection) -> Going + Send + Sync>;

/// Ready when a connection is gone.
pub(super) type Going = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Asks somebody else's code.
pub(super) fn ask<C>(gone_when: impl Fn(&C) -> Going, connection: &C) -> Option<Going> {
    catch_unwind(AssertUnwindSafe(|| gone_when(connection))).ok()
}

/// Counted in the supply until it is dropped, even if what it waits for panics.
struct Closing<M: ManageConnection>(Weak<Shared<M>>);

impl<M: ManageConnection> Shared<M> {
    /// Closes a connection, or gives it back to bb8, which closes it if it is to go. Closing is the work of somebody else's
    /// code: if that panics it must not take the task along.
    pub(super) fn drop_one<T>(&self, connection: T) {
        if catch_unwind(AssertUnwindSafe(|| drop(connection))).is_err() {
            tracing::error!(pool = &*self.name, "the end of a connection panicked");
        }
    }

    /// After a connection was given up, and the supply knows of it: counts it until it is gone.
    pub(super) fn see_off(self: &Arc<Self>, going: Option<Going>) {
        let closing = Closing(Arc::downgrade(self));
        if let Some(going) = going {
            self.runtime.spawn(async move {
                let closing = closing; // until the end
                let _ = tokio::time::timeout(LONGEST, going).await;
                drop(closing);
            });
        }
        self.tell_hopeless();
    }
}

impl<M: ManageConnection> Drop for Closing<M> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.start(shared.supply.gone());
        }
    }
}
