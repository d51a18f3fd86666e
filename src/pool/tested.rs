//! Tests of connections before they are lent.
//!
//! A test that is cut short leaves an answer behind, which the next would take for its own. So one that is begun goes on, for
//! as long as a test may take, whether or not its caller is there, and without him it is this pool's own runtime that drives
//! it, as far as it does not wait for a timer of the caller's. The connection is nobody's meanwhile.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bb8::ManageConnection;

use super::{
    guard::Connection,
    shared::{Call, Shared},
    tracked::Ending,
};
use crate::{Error, clock::Instant};

/// How long a test of a connection may take whose caller's time is up: his turn came in time.
const GRACE: Duration = Duration::from_millis(50);

/// A connection that is being tested, and then is as it stands.
type Test<M> = Pin<Box<dyn Future<Output = Connection<M>> + Send>>;

/// A test that somebody waits for, and that goes on without him.
struct Awaited<'a, M: ManageConnection> {
    shared: &'a Arc<Shared<M>>,
    began: Instant,
    /// Until it is over.
    test: Option<Test<M>>,
}

impl<M: ManageConnection> Future for Awaited<'_, M> {
    /// `None` if it panicked, and the connection is closed.
    type Output = Option<Connection<M>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Connection<M>>> {
        let Some(mut test) = self.test.take() else { return Poll::Ready(None) };
        match catch_unwind(AssertUnwindSafe(|| test.as_mut().poll(context))) {
            Ok(Poll::Ready(connection)) => Poll::Ready(Some(connection)),
            Ok(Poll::Pending) => {
                self.test = Some(test);
                Poll::Pending
            }
            Err(_) => Poll::Ready(None),
        }
    }
}

impl<M: ManageConnection> Drop for Awaited<'_, M> {
    fn drop(&mut self) {
        if let Some(test) = self.test.take() {
            let passed = self.shared.clock.now().since(self.began);
            self.shared.go_on_with(test, self.shared.settings.test_timeout.saturating_sub(passed));
        }
    }
}

/// Counted in the supply as a test that nobody waits for, until it is dropped.
struct Aside<M: ManageConnection>(Arc<Shared<M>>);

impl<M: ManageConnection> Drop for Aside<M> {
    fn drop(&mut self) {
        self.0.supply.was_set_aside();
    }
}

/// What the test of a connection came to.
pub(super) enum Tested<M: ManageConnection> {
    Fit(Connection<M>),
    Invalid,
    /// It works, and is not to be lent: it was retired meanwhile, or the pool shut down.
    Retired,
}

impl<M: ManageConnection> Shared<M> {
    /// Has a connection tested that is nobody's meanwhile.
    #[cold]
    pub(super) fn set_aside(self: &Arc<Self>, connection: Connection<M>) {
        self.go_on_with(self.begin_test(connection), self.settings.test_timeout);
    }

    /// Nobody waits for what a test comes to: as the connection stands then it is put back, or closed. Until then it is one
    /// that nobody has.
    fn go_on_with(self: &Arc<Self>, test: Test<M>, limit: Duration) {
        self.supply.set_aside();
        let aside = Aside(Arc::clone(self));
        self.runtime.spawn(async move {
            let (mut test, aside) = (test, aside);
            let tested = tokio::time::timeout(limit, test.as_mut()).await;
            // First: when the connection is there, it is no longer one that is waited for.
            drop(aside);
            drop((tested, test));
        });
    }

    /// Whether a connection works, as it says itself.
    ///
    /// A test that is cut short leaves an answer behind, which the next would take for its own. So if whoever waits goes or
    /// has no more time, it [goes on](Self::go_on_with) without him.
    #[cold]
    pub(super) async fn test(
        self: &Arc<Self>,
        connection: Connection<M>,
        call: Call,
    ) -> Result<Tested<M>, Error> {
        let test_timeout = self.settings.test_timeout;
        let patience = self.left(call.began).max(GRACE).min(test_timeout);
        let began = self.clock.now();
        let mut awaited = Awaited { shared: self, began, test: Some(self.begin_test(connection)) };
        let too_late = || self.timed_out(call.began, "a connection that was being tested");
        let mut connection = match tokio::time::timeout(patience, &mut awaited).await {
            Ok(Some(connection)) => connection,
            Err(_) if patience < test_timeout => return Err(too_late()),
            Ok(None) | Err(_) => {
                // It panicked, or had all of its time: it is closed.
                drop(awaited.test.take());
                return if self.left(call.began).is_zero() { Err(too_late()) } else { Ok(Tested::Invalid) };
            }
        };
        match connection.tracked().ending {
            None => {
                connection.own(call.holder(self.clock.now()));
                Ok(Tested::Fit(connection))
            }
            Some(Ending::Invalid) if self.left(call.began).is_zero() => Err(too_late()),
            Some(Ending::Invalid) => Ok(Tested::Invalid),
            Some(_) => Ok(Tested::Retired),
        }
    }

    /// Asks a connection whether it works, for as long as that takes, and takes note of what it says. It is nobody's
    /// meanwhile.
    fn begin_test(self: &Arc<Self>, mut connection: Connection<M>) -> Test<M> {
        connection.disown();
        let shared = Arc::clone(self);
        Box::pin(async move {
            let tracked = connection.tracked();
            // From here on, and unless it says otherwise, also where this is dropped.
            tracked.ending = Some(Ending::Invalid);
            if shared.tracking.test(tracked).await.is_ok() {
                let now = shared.clock.now();
                tracked.is_dirty = false;
                tracked.last_used = now;
                // It may have been retired meanwhile, or the pool shut down.
                tracked.ending = shared.tracking.examine(tracked, now);
            }
            connection
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pool, classes::DEFAULT, echo::Echo, queue::End};

    /// Where the pool's own runtime has ended, nothing is tested behind anybody's back.
    #[test]
    fn test_that_could_not_begin_is_waited_for_by_nobody() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (home, other) = (runtime(), runtime());
        let pool = home.block_on(async {
            let pool = Pool::builder("test", Echo).size(3).connects(3, 1_000.0).build().unwrap();
            let mut lent = Vec::new();
            for _ in 0..3 {
                lent.push(pool.get().await.unwrap());
            }
            lent.iter_mut().for_each(super::Connection::mark_dirty);
            drop(lent);
            pool
        });
        drop(home);
        other.block_on(async {
            let _lent = (pool.get().await.unwrap(), pool.get().await.unwrap(), pool.get().await.unwrap());
            let _waiting = pool.0.supply.line_up(DEFAULT, End::Back);
            assert!(pool.0.supply.is_in_vain());
        });
    }
}
