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
    task::{Context, Poll, Waker},
    time::Duration,
};

use bb8::ManageConnection;

use super::{
    shared::Shared,
    tracked::{Ending, Tracked},
};
use crate::sync::lock;

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
            let held = (closing, self.allowed.clone());
            self.runtime.spawn(until_gone(going, held));
        }
        self.tell_hopeless();
    }
}

/// Keeps something until a connection is gone.
async fn until_gone<T>(going: Going, held: T) {
    let _ = tokio::time::timeout(LONGEST, going).await;
    drop(held);
}

impl<M: ManageConnection> Drop for Shared<M> {
    fn drop(&mut self) {
        lock(&self.watch.tasks).drain(..).for_each(|task| task.abort());
        let Some(allowed) = self.allowed.take() else { return };
        // What is granted to others is to be free, and these live on at the server for a moment. bb8 wants a runtime to be
        // asked in, wherever this is dropped.
        let _home = self.runtime.enter();
        for _ in 0..self.supply.count().idle {
            let mut idle = std::pin::pin!(self.store.get_owned());
            let Poll::Ready(Ok(mut connection)) = idle.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            else {
                return;
            };
            let tracked: &mut Tracked<M::Connection> = &mut connection;
            tracked.ending = Some(Ending::Retired);
            let going = self.tracking.going(tracked);
            self.drop_one(connection);
            if let Some(going) = going {
                self.runtime.spawn(until_gone(going, Arc::clone(&allowed)));
            }
        }
    }
}

impl<M: ManageConnection> Drop for Closing<M> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.start(shared.supply.gone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::pool::{Allowance, Demand, Pool, echo::Echo};

    /// Says when it is dropped, and with it what it was granted.
    struct Granted(Arc<AtomicBool>);

    impl Allowance for Granted {
        fn ceiling(&self) -> u32 {
            4
        }

        async fn want(&self, _: Demand) {}
    }

    impl Drop for Granted {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_granted_is_kept_until_the_last_connection_is_gone() {
        for is_idle in [true, false] {
            let (is_given_back, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
            let goes = Arc::clone(&gone);
            let pool =
                Pool::builder("test", Echo).adaptive(1..=4).allowance(Granted(Arc::clone(&is_given_back)));
            let gone_when = move |_: &_| -> Going {
                let goes = Arc::clone(&goes);
                Box::pin(async move { goes.notified().await })
            };
            let pool = pool.keep_open(1).gone_when(gone_when).build().unwrap();
            let mut connection = pool.get().await.unwrap();
            if !is_idle {
                connection.mark_broken();
            }
            drop(connection);
            drop(pool);
            let settle = || tokio::time::sleep(Duration::from_secs(1));
            settle().await;
            assert!(!is_given_back.load(Ordering::SeqCst));
            gone.notify_one();
            settle().await;
            assert!(is_given_back.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn pool_with_an_allowance_may_be_dropped_outside_of_its_runtime_and_after_it() {
        for is_over in [false, true] {
            let is_given_back = Arc::new(AtomicBool::new(false));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let granted = Granted(Arc::clone(&is_given_back));
            let pool = runtime.block_on(async {
                let pool = Pool::builder("test", Echo).adaptive(1..=4).allowance(granted).keep_open(1);
                let pool = pool.gone_when(|_| Box::pin(std::future::pending())).build().unwrap();
                drop(pool.get().await.unwrap());
                pool
            });
            let runtime = (!is_over).then_some(runtime);
            std::thread::spawn(move || drop(pool)).join().unwrap();
            drop(runtime);
            assert!(is_given_back.load(Ordering::SeqCst));
        }
    }
}
