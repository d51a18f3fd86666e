//! How many connections a pool may have where several processes share a server: asked now and then, and kept.
//!
//! What was allowed may be taken back at any time, so there are two rules. *Down at once, up when told*: every second
//! the pool looks at what it may have, without asking anybody, and gives way within that second: nobody enters above
//! it, nothing is opened above it, idle connections above it are closed, and those in use when they are returned. And
//! *lower before it is given back*: before it asks for less, the pool keeps to that less itself, so that what another
//! process is given meanwhile is free.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bb8::ManageConnection;

use super::shared::{Shared, Watch};
use crate::sync::lock;

/// How often it is asked for what is wanted.
const ASK: Duration = Duration::from_secs(5);
/// And while that is more than is allowed, or the pool has more than that; how often is looked whether it is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What says how many connections a pool may have, where several processes share a server.
///
/// Given to [`PoolBuilder::allowance`](super::PoolBuilder::allowance), to one pool each: what is allowed is counted for it
/// alone.
pub trait Allowance: Send + Sync + 'static {
    /// How many connections the pool may have right now, by what is known without asking. It is called every second
    /// and from within other calls, and must not block. Where what was granted may be lost, as a lease whose session
    /// has ended, it answers with what is left without.
    fn ceiling(&self) -> u32;

    /// How many of them are the pool's whatever it asks for: none unless said otherwise. While
    /// [`want`](Self::want) runs, which may take long where the server is silent, the pool may have these, however few it
    /// asked for. A pool whose lower bound is above this is not [built](super::PoolBuilder::build), if there are any. To be
    /// always the same, and never above [`ceiling`](Self::ceiling).
    fn own(&self) -> u32 {
        0
    }

    /// Asks for what is wanted, and gives back what is above. What came of it is in [`ceiling`](Self::ceiling).
    ///
    /// It is called every five seconds, or every second while the pool may not have what it wants or has more than it
    /// may, and not again before it has ended. While it runs the pool keeps to what it said it wants, or to what is its
    /// [own](Self::own).
    ///
    /// Where others are to have some of what was granted, it takes two calls: let [`ceiling`](Self::ceiling) fall, and
    /// give back what is above [`Demand::open`] when the pool asks next, by when it has given way.
    ///
    /// # Cancel safety
    ///
    /// Dropped at any time, it leaves nothing granted that [`ceiling`](Self::ceiling) does not know of.
    fn want(&self, demand: Demand) -> impl Future<Output = ()> + Send;
}

/// How many connections somebody wants, and how many there are.
///
/// ```
/// use mcp_perf::pool::Demand;
///
/// let demand = Demand::new(8, 10);
/// assert_eq!((demand.open, demand.wanted), (8, 10));
/// assert_eq!(Demand::new(8, 2).wanted, 8, "what is open is wanted");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Demand {
    /// Open or in use, or about to be: what may not be given to others yet.
    pub open: u32,
    /// Of use, those that are open among them: never less.
    pub wanted: u32,
}

impl Demand {
    /// So many that are open, and so many that are of use; what is open counts as of use.
    #[must_use]
    pub fn new(open: u32, wanted: u32) -> Self {
        Self { open, wanted: wanted.max(open) }
    }
}

/// The same for any, behind a pointer.
trait Erased: Send + Sync {
    fn ceiling(&self) -> u32;
    fn want(&self, demand: Demand) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

impl<A: Allowance> Erased for A {
    fn ceiling(&self) -> u32 {
        Allowance::ceiling(self)
    }

    fn want(&self, demand: Demand) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(Allowance::want(self, demand))
    }
}

/// Shared, so that what was given to a pool can still be asked.
impl<A: Allowance> Allowance for Arc<A> {
    fn ceiling(&self) -> u32 {
        A::ceiling(self)
    }

    fn own(&self) -> u32 {
        A::own(self)
    }

    fn want(&self, demand: Demand) -> impl Future<Output = ()> + Send {
        A::want(self, demand)
    }
}

/// What a pool is allowed, and keeps to.
pub(super) struct Allowed {
    by: Box<dyn Erased>,
    /// What it may have while it asks for less.
    pub(super) own: u32,
    /// What the pool keeps to while it asks for less.
    held: AtomicU32,
}

impl Allowed {
    pub(super) fn new(by: impl Allowance) -> Arc<Self> {
        let own = catch_unwind(AssertUnwindSafe(|| by.own())).unwrap_or(0);
        Arc::new(Self { by: Box::new(by), own, held: AtomicU32::new(u32::MAX) })
    }

    /// Somebody else's code: if that panics, nothing is allowed but the floor.
    fn ceiling(&self) -> u32 {
        let ceiling = catch_unwind(AssertUnwindSafe(|| self.by.ceiling())).unwrap_or(0);
        ceiling.min(self.held.load(Ordering::Relaxed).max(self.own))
    }

    /// Returns whether it ended as it should.
    async fn want(&self, demand: Demand) -> bool {
        let mut wanted = pin!(async { self.by.want(demand).await });
        let unharmed = |context: &mut Context<'_>| match catch_unwind(AssertUnwindSafe(|| {
            wanted.as_mut().poll(context)
        })) {
            Ok(poll) => poll.map(|()| true),
            Err(_) => Poll::Ready(false),
        };
        poll_fn(unharmed).await
    }
}

impl<M: ManageConnection> Shared<M> {
    /// How many connections there may be right now. The floor stands whatever is said.
    pub(super) fn ceiling(&self) -> u32 {
        let (floor, ceiling) = (self.settings.floor, self.settings.ceiling);
        self.allowed.as_ref().map_or(ceiling, |allowed| allowed.ceiling().clamp(floor, ceiling))
    }

    /// How many there are, or are about to be.
    fn there(&self) -> u32 {
        let (level, count) = (self.gate.level(), self.supply.count());
        let open = count.idle + count.out + count.closing + count.opening;
        self.gate.most().max(level.in_use).max(open).max(self.settings.floor)
    }

    /// How many to ask for: what there is, and a quarter more where that does not do.
    fn wanted(&self) -> u32 {
        let (level, ceiling, there) = (self.gate.level(), self.ceiling(), self.there());
        if self.gate.waiting_for_more() == 0 {
            return there;
        }
        // While callers wait nothing is given back that the sizing may be about to try.
        let next = level.target.saturating_mul(2).max(self.watch.proven.load(Ordering::Relaxed));
        let more = if level.target >= ceiling { (ceiling / 4).max(1) } else { 0 };
        there.max(ceiling.min(next)).saturating_add(more).min(self.settings.ceiling)
    }

    /// Gives way to what is allowed by now and to what the server has room for, or makes use of it.
    pub(super) fn give_way(&self) {
        // Looked at and set by one at a time: what was looked at before may be another's by now.
        let _one = lock(&self.watch.gives_way);
        let ceiling = self.ceiling();
        let open = match self.watch.gives_way_to.load(Ordering::Relaxed) {
            0 => ceiling,
            size => size.min(ceiling),
        };
        let open = open.min(self.settings.most_open.max(self.gate.most()));
        self.supply.set_ceiling(open);
        self.gate.keep_within(ceiling, self.clock.now());
        let count = self.supply.count();
        self.watch.surplus.store((count.idle + count.out).saturating_sub(open), Ordering::Relaxed);
    }
}

impl Watch {
    /// Whether this connection is one too many; if so it has to be closed.
    #[inline]
    pub(super) fn take_surplus(&self) -> bool {
        let surplus = &self.surplus;
        let fewer = |surplus: u32| surplus.checked_sub(1);
        surplus.load(Ordering::Relaxed) > 0
            && surplus.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }
}

/// Asks for what is wanted, for as long as there is a pool, which it does not keep alive.
pub(super) async fn run<M: ManageConnection>(pool: Weak<Shared<M>>, allowed: Arc<Allowed>) {
    loop {
        let Some(shared) = pool.upgrade() else { return };
        let wanted = shared.wanted();
        allowed.held.store(wanted, Ordering::Relaxed);
        shared.give_way();
        // What was begun before that counts, too; nothing more can be now.
        let demand = Demand::new(shared.there(), wanted);
        allowed.held.store(demand.wanted, Ordering::Relaxed);
        drop(shared);
        let has_ended = allowed.want(demand).await;
        allowed.held.store(u32::MAX, Ordering::Relaxed);
        let Some(shared) = pool.upgrade() else { return };
        shared.give_way();
        if !has_ended {
            tracing::error!(pool = &*shared.name, "the allowance panicked when it was asked for connections");
        }
        drop(shared);
        for _ in 0..ASK.as_secs() / ASK_AGAIN.as_secs() {
            tokio::time::sleep(ASK_AGAIN).await;
            let Some(shared) = pool.upgrade() else { return };
            let ceiling = allowed.ceiling();
            if ceiling < demand.wanted || ceiling < shared.wanted() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::{
        super::{Pool, classes::DEFAULT, echo::Echo, queue::End, supply::Openers},
        *,
    };
    use crate::sync::Mutex;

    /// Allows eight, and less as soon as it was once looked at.
    #[derive(Clone)]
    struct Falling(Arc<(AtomicU32, Mutex<Option<Look>>)>);

    /// Says that somebody looked, and waits until he may go on.
    type Look = (Sender<()>, Receiver<()>);

    impl Allowance for Falling {
        fn ceiling(&self) -> u32 {
            let ceiling = self.0.0.load(Ordering::SeqCst);
            if let Some((looked, goes_on)) = lock(&self.0.1).take() {
                looked.send(()).unwrap();
                // Whoever else gives way is done, or waits for us.
                let _ = goes_on.recv_timeout(Duration::from_millis(100));
            }
            ceiling
        }

        async fn want(&self, _: Demand) {}
    }

    /// A pool that may have eight and no more than three as soon as somebody has looked, who goes on when the pool has
    /// given way.
    fn fallen_in_the_middle(looks: impl FnOnce(&Pool<Echo>) + Send + 'static) -> Pool<Echo> {
        let allowance = Falling(Arc::new((AtomicU32::new(8), Mutex::new(None))));
        let pool = Pool::builder("test", Echo).adaptive(1..=8).keep_open(0).allowance(allowance.clone());
        let pool = pool.build().unwrap();
        let (one, other) = (pool.clone(), pool.clone());
        let ((looked, has_looked), (go_on, goes_on)) = (channel(), channel());
        *lock(&allowance.0.1) = Some((looked, goes_on));
        let first = std::thread::spawn(move || looks(&one));
        has_looked.recv().unwrap();
        allowance.0.0.store(3, Ordering::SeqCst);
        let second = std::thread::spawn(move || other.0.give_way());
        let releases = std::thread::spawn(move || {
            second.join().unwrap();
            let _ = go_on.send(());
        });
        first.join().unwrap();
        releases.join().unwrap();
        pool
    }

    #[tokio::test]
    async fn target_that_was_asked_for_is_not_above_a_ceiling_that_has_fallen_meanwhile() {
        let pool = fallen_in_the_middle(|pool| pool.set_target(8).unwrap());
        assert_eq!(pool.stats().target, 3);
    }

    #[tokio::test]
    async fn ceiling_that_has_fallen_is_not_raised_by_who_looked_before() {
        let pool = fallen_in_the_middle(|pool| pool.0.give_way());
        let opened = (0..8).map(|_| {
            let (waiting, Openers(count)) = pool.0.supply.line_up(DEFAULT, End::Back);
            std::mem::forget(waiting);
            count
        });
        assert_eq!(opened.sum::<u32>(), 3);
    }
}
