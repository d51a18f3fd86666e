//! What is done once in a while: closing what is idle or old, keeping some open, telling of leaks, and sizing.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bb8::ManageConnection;

use super::{
    closing::Going,
    holders::Held,
    sampler::Sampler,
    shared::Shared,
    sizing::{Reason, Retreat, Sample, Sizing},
    tracked::{Ending, Tracked, Tracking},
};
use crate::{clock::Instant, sync::lock};

/// How often a pool looks at itself.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How many ticks lie between two looks at every idle connection, unless one was found broken or is one too many.
const LOOK: u64 = 10;
/// For so many windows in a row more are open than are of use before what is borrowed of them is given back.
const IDLE_WINDOWS: u32 = 5;

/// What is done with what a [`Sizing`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// It becomes the target.
    Do,
    /// The log says what would be done.
    Say,
}

/// What decides the size, and what is done with it.
pub(super) struct Followed {
    pub(super) sizing: Box<dyn Sizing>,
    pub(super) follow: Follow,
}

/// Ends with the pool, which it does not keep alive.
pub(super) async fn run<M: ManageConnection>(pool: Weak<Shared<M>>, mut sizing: Option<Followed>) {
    let Some(mut sampler) = pool.upgrade().map(|shared| Sampler::new(&shared)) else { return };
    for tick in 1_u64.. {
        tokio::time::sleep(TICK).await;
        let Some(shared) = pool.upgrade() else { return };
        let now = shared.clock.now();
        shared.tell_leaks(now);
        shared.give_way();
        let has_surplus = shared.watch.surplus.load(Ordering::Relaxed) > 0;
        let is_alarmed = shared.watch.is_alarmed.swap(false, Ordering::Relaxed);
        if tick % LOOK == 0 || has_surplus || is_alarmed {
            shared.look_at_idle(now).await;
        }
        shared.supply.try_more(now);
        shared.start(shared.supply.missing());
        let sample = sampler.sample(&shared, now);
        sizing.take_if(|sizing| !shared.size(sizing, &sample, sampler.age(now), now));
        shared.show();
    }
}

impl<M: ManageConnection> Shared<M> {
    /// Returns whether there is to be a next time.
    fn size(&self, followed: &mut Followed, sample: &Sample, age: Duration, now: Instant) -> bool {
        let Followed { sizing, follow } = followed;
        // Somebody else's code: if that panics, the pool has to go on without it.
        let decided = catch_unwind(AssertUnwindSafe(|| {
            let before = sizing.target();
            (before, sizing.step(sample, age), sizing.proven())
        }));
        let Ok((before, decision, proven)) = decided else {
            tracing::error!(pool = &*self.name, "the sizing panicked: the size stays as it is");
            // Nobody is left to say that the server has room again.
            self.watch.gives_way_to.store(0, Ordering::Relaxed);
            self.give_way();
            return false;
        };
        self.watch.proven.store(proven, Ordering::Relaxed);
        let within = |target: u32| target.clamp(self.settings.floor, self.ceiling());
        let target = within(decision.target);
        let old = match decision.reason {
            // It is in force by now, and this is the first to be said of it.
            Reason::Ceiling | Reason::InForce if *follow == Follow::Do => before,
            _ if *follow == Follow::Do => sample.target,
            _ => within(before),
        };
        // What a trial came to is what everybody wants to hear of, also where it changes nothing, and not the turns of it.
        let is_said = match decision.reason {
            Reason::Kept { .. } | Reason::Reverted { .. } | Reason::DemandMet | Reason::Retreated => true,
            Reason::Quicker { .. } | Reason::NotQuicker { .. } | Reason::Void => true,
            Reason::Measuring => false,
            // It is for as long as nothing is put in force.
            Reason::InForce if *follow == Follow::Say => false,
            _ => target != old,
        };
        if is_said {
            tracing::info!(
                pool = &*self.name,
                old,
                new = target,
                reason = %decision.reason,
                is_followed = *follow == Follow::Do,
                completed = sample.completed,
                waiting = sample.waiting,
                max_waiting = sample.max_waiting,
                timeouts = sample.timeouts,
                full = sample.full_fraction,
                in_use = sample.in_use_mean,
                open = sample.open,
                ceiling = self.ceiling(),
                hold = ?sample.hold_p50,
                wait = ?sample.wait_p95,
                connect_failures = sample.connect_failures,
                too_many_connections = sample.too_many_connections,
                "size"
            );
        }
        if *follow == Follow::Say {
            return true;
        }
        {
            // The ceiling falls before or after this, and not in between.
            let _one = lock(&self.watch.gives_way);
            let ceiling = self.ceiling();
            let within = |retreat: Retreat| Retreat { target: retreat.target.min(ceiling), ..retreat };
            if target != sample.target {
                self.gate.set_target(target.min(ceiling), decision.retreat.map(within), now);
            } else if decision.retreat.is_none() {
                self.gate.forget_retreat();
            }
        }
        self.give_back(sample, target);
        true
    }

    /// Where the server has too many connections, those above the size are what it is short of, and where others share an
    /// allowance they may be what those are short of: they are closed, but for what is kept open. (Idle, they would stay
    /// until the size is back, and never be missed.)
    fn give_back(&self, sample: &Sample, target: u32) {
        let size = target.max(self.settings.keep_open);
        // What is borrowed and not of use for a while is of use to others. Where two sizes are tried in turn the larger one
        // is, and where fewer are tried what there is to go back to.
        let of_use = self.allowed.as_ref().map(|allowed| size.max(allowed.own).max(self.gate.most()));
        let is_idle = of_use.is_some_and(|of_use| sample.open > of_use);
        let windows =
            if is_idle { self.watch.idle_windows.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        self.watch.idle_windows.store(windows, Ordering::Relaxed);
        let gives_way_to = match self.watch.gives_way_to.load(Ordering::Relaxed) {
            _ if sample.too_many_connections > 0 => size,
            _ if windows >= IDLE_WINDOWS => of_use.unwrap_or(size),
            0 => return,
            most if sample.open <= most => 0,
            most => most.max(size),
        };
        self.watch.gives_way_to.store(gives_way_to, Ordering::Relaxed);
        self.give_way();
    }

    fn tell_leaks(&self, now: Instant) {
        let Some(threshold) = self.settings.leak_threshold else { return };
        for holder in self.supply.overdue(threshold, now) {
            let Held { held, place, class } = holder.held(&self.classes, now);
            self.recorded.leaks.add();
            tracing::warn!(
                pool = &*self.name,
                class = &*class,
                ?held,
                %place,
                "a connection is held for long: is it leaked, or is this work meant to take so long?"
            );
        }
    }

    /// Looks at every idle connection, and closes those that are broken, retired or outlived, and those that nobody
    /// used for long unless they are kept open, and those that are too many by now.
    ///
    /// bb8 lends the one that was returned last, so what is idle for long is at the far end: all are taken, and put
    /// back in the same order. That takes microseconds, and no look at the network.
    pub(super) async fn look_at_idle(self: &Arc<Self>, now: Instant) {
        let mut taken = Taken { pool: self, count: self.supply.take_all(), connections: Vec::new() };
        for _ in 0..taken.count {
            match self.store.get_owned().await {
                Ok(connection) => taken.connections.push(connection),
                Err(_) => taken.is_lost(None),
            }
        }
        let open = self.supply.count();
        let mut surplus = (open.idle + open.out).saturating_sub(self.settings.keep_open);
        // The one that was used longest ago first.
        while let Some(mut connection) = taken.connections.pop() {
            let tracked: &mut Tracked<M::Connection> = &mut connection;
            let is_idle = self.settings.idle_timeout.is_some_and(|most| now.since(tracked.last_used) >= most);
            let ending = self.tracking.examine(tracked, now);
            // Whatever it is closed for, it is one less.
            let is_surplus = self.watch.take_surplus();
            let ending = ending.or(is_surplus.then_some(Ending::Surplus));
            let ending = ending.or((is_idle && surplus > 0).then_some(Ending::Idle));
            tracked.ending = ending;
            let going = ending.and_then(|_| self.tracking.going(tracked));
            self.drop_one(connection);
            match ending {
                None => taken.is_back(),
                Some(why) => {
                    surplus = surplus.saturating_sub(1);
                    self.recorded.closed(why);
                    taken.is_lost(going);
                }
            }
        }
    }

    fn show(&self) {
        let (level, count) = (self.gate.level(), self.supply.count());
        let open = count.idle + count.out;
        self.recorded.show([level.in_use, count.idle, open, level.target, level.waiting + count.waiting]);
    }
}

/// Idle connections that are being looked at. Whatever interrupts that, all of them are counted again.
struct Taken<'a, M: ManageConnection> {
    pool: &'a Arc<Shared<M>>,
    count: u32,
    connections: Vec<bb8::PooledConnection<'static, Tracking<M>>>,
}

impl<M: ManageConnection> Taken<'_, M> {
    /// One is in bb8 again.
    fn is_back(&mut self) {
        self.count -= 1;
        self.pool.supply.looked_at();
    }

    /// One is closed.
    fn is_lost(&mut self, going: Option<Going>) {
        self.count -= 1;
        self.pool.supply.give_up();
        self.pool.see_off(going);
    }
}

impl<M: ManageConnection> Drop for Taken<'_, M> {
    fn drop(&mut self) {
        self.connections.clear();
        while self.count > 0 {
            self.is_back();
        }
        self.pool.supply.has_looked();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            Mutex, PoisonError,
            atomic::{AtomicBool, AtomicU32},
        },
    };

    use super::{
        super::{
            Allowance, Demand, Pool, PoolBuilder,
            classes::DEFAULT,
            echo::Echo,
            queue::End,
            sizing::{Decision, Reason},
            supply::Openers,
        },
        *,
    };
    use crate::{
        Error, ErrorKind,
        clock::Clock,
        testing::{FakeServer, ServerError, Usl},
    };

    /// Wants one more each time, and writes down what it was told.
    struct OneMore {
        target: u32,
        told: Arc<Mutex<Vec<(Duration, Sample)>>>,
    }

    impl Sizing for OneMore {
        fn step(&mut self, sample: &Sample, now: Duration) -> Decision {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).push((now, sample.clone()));
            self.target += 1;
            Decision::new(self.target, Reason::Steady)
        }

        fn target(&self) -> u32 {
            self.target
        }

        fn proven(&self) -> u32 {
            7
        }
    }

    type Told = Arc<Mutex<Vec<(Duration, Sample)>>>;

    fn pool(how: impl FnOnce(PoolBuilder<Echo>) -> PoolBuilder<Echo>) -> (Pool<Echo>, Told) {
        let told = Told::default();
        let sizing = OneMore { target: 2, told: Arc::clone(&told) };
        let builder = Pool::builder("test", Echo).clock(Clock::tokio()).sizing(sizing);
        (how(builder).build().unwrap(), told)
    }

    #[tokio::test(start_paused = true)]
    async fn adaptive_pool_does_what_is_decided_within_its_bounds() {
        let (pool, _) = pool(|builder| builder.adaptive(2..=5).initial(2));
        let mut targets = Vec::new();
        for _ in 0..5 {
            tokio::time::sleep(TICK).await;
            tokio::task::yield_now().await;
            targets.push(pool.stats().target);
        }
        assert_eq!(targets, [3, 4, 5, 5, 5]);
        assert_eq!(pool.stats().proven, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn observing_pool_keeps_its_size() {
        let (pool, told) = pool(|builder| builder.observe(2..=5).initial(3));
        tokio::time::sleep(5 * TICK + TICK / 2).await;
        assert_eq!((pool.stats().target, told.lock().unwrap().len()), (3, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn sample_says_what_happened_in_its_window_and_no_more() {
        let (pool, told) = pool(|builder| builder.observe(2..=2).initial(2));
        for _ in 0..2 {
            tokio::time::sleep(TICK / 4).await;
            let held = (pool.get().await.unwrap(), pool.get().await.unwrap());
            let waiting = tokio::spawn({
                let pool = pool.clone();
                async move { drop(pool.get().await) }
            });
            tokio::time::sleep(TICK / 4).await;
            drop(held);
            waiting.await.unwrap();
            tokio::time::sleep(TICK / 2).await;
        }
        tokio::time::sleep(3 * TICK).await;
        let told = told.lock().unwrap();
        for (number, (now, sample)) in told.iter().take(2).enumerate() {
            assert_eq!(now.as_millis() / 10, 100 * (number as u128 + 1));
            assert_eq!((sample.completed, sample.target, sample.open), (3, 2, 2));
            assert_eq!(
                (sample.in_use_max, sample.was_full, sample.waiting, sample.max_waiting),
                (2, true, 0, 1)
            );
            assert!((sample.in_use_mean - 0.5).abs() < 0.01 && (sample.full_fraction - 0.25).abs() < 0.01);
            assert_eq!(sample.hold_p99.as_millis() / 20, 12);
            assert_eq!((sample.wait_p50, sample.wait_p99.as_millis() / 20), (Duration::ZERO, 12));
        }
        let (_, quiet) = told.last().unwrap();
        assert_eq!((quiet.completed, quiet.in_use_max, quiet.was_full, quiet.max_waiting), (0, 0, false, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn where_one_broke_the_idle_ones_are_looked_at_within_a_second_and_replaced() {
        let server = FakeServer::new(Usl::new(0.1, 0.001));
        let pool = Pool::builder("test", server.clone()).clock(Clock::tokio()).connects(4, 1_000.0);
        let pool = pool.size(4).build().unwrap();
        tokio::time::sleep(TICK / 10).await;
        let lent = pool.get().await.unwrap();
        server.restart(Duration::ZERO);
        tokio::time::sleep(TICK).await;
        assert_eq!(pool.stats().closed.broken, 0, "nobody has noticed");
        drop(lent);
        tokio::time::sleep(TICK).await;
        assert_eq!((pool.stats().closed.broken, pool.stats().open, pool.stats().connects), (4, 4, 8));
    }

    /// Has room for ten.
    #[derive(Clone, Default)]
    struct Small(Arc<AtomicU32>);

    struct One(Arc<AtomicU32>);

    impl Drop for One {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl ManageConnection for Small {
        type Connection = One;
        type Error = Error;

        async fn connect(&self) -> Result<One, Error> {
            if self.0.load(Ordering::Relaxed) == 10 {
                return Err(Error::new(ErrorKind::TooManyConnections, "as the test wants it"));
            }
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(One(Arc::clone(&self.0)))
        }

        async fn is_valid(&self, _: &mut One) -> Result<(), Error> {
            Ok(())
        }

        fn has_broken(&self, _: &mut One) -> bool {
            false
        }
    }

    /// Allows as much as there is.
    struct Plenty;

    impl Allowance for Plenty {
        fn ceiling(&self) -> u32 {
            20
        }

        async fn want(&self, _: Demand) {}
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_is_full_is_given_connections_back() {
        for (are_held, is_allowed, kept, left) in
            [(true, false, 1, 7), (false, false, 1, 7), (true, true, 1, 7), (false, true, 9, 9)]
        {
            let server = Small::default();
            let pool = Pool::builder("test", server.clone()).clock(Clock::tokio()).connects(8, 1_000.0);
            let pool = pool.adaptive(1..=20).initial(20).keep_open(kept);
            let pool = if is_allowed { pool.allowance(Plenty) } else { pool };
            let pool = pool.build().unwrap();
            let mut held = Vec::new();
            for _ in 0..10 {
                held.push(pool.get().await.unwrap());
            }
            assert!(tokio::time::timeout(TICK / 10, pool.get()).await.is_err(), "it is refused");
            if !are_held {
                held.clear();
            }
            tokio::time::sleep(TICK).await;
            assert_eq!(pool.stats().target, 7, "the sizing heard of it");
            held.clear();
            tokio::time::sleep(2 * TICK).await;
            let (stats, open) = (pool.stats(), server.0.load(Ordering::Relaxed));
            assert_eq!((stats.open, open, stats.closed.surplus), (left, left, u64::from(10 - left)));
            // The size comes back by one in half a minute where callers wait, and what is opened then stays.
            tokio::time::sleep(60 * TICK).await;
            for _ in 0..8 {
                held.push(tokio::time::timeout(5 * TICK, pool.get()).await.unwrap().unwrap());
            }
            held.clear();
            tokio::time::sleep(2 * TICK).await;
            assert_eq!(pool.stats().closed.surplus, u64::from(10 - left));
            assert!(pool.stats().open > 7, "{:?}", pool.stats());
        }
    }

    /// It asks again and again, for nobody.
    #[tokio::test(start_paused = true)]
    async fn size_returns_though_more_are_to_be_kept_open_than_the_server_has() {
        let server = FakeServer::new(Usl::new(0.1, 0.001)).max_connections(10).connecting(TICK / 50);
        let pool = Pool::builder("test", server.clone()).clock(Clock::tokio()).connects(4, 1_000.0);
        let is_full = |error: &ServerError| {
            matches!(error, ServerError::TooManyConnections).then_some(ErrorKind::TooManyConnections)
        };
        let pool = pool.adaptive(1..=20).initial(20).keep_open(15).error_kind(is_full).build().unwrap();
        tokio::time::sleep(2 * TICK).await;
        assert_eq!((pool.stats().target, pool.stats().open), (7, 10));
        tokio::time::sleep(61 * TICK).await;
        let mut held = Vec::new();
        for _ in 0..9 {
            held.push(tokio::time::timeout(5 * TICK, pool.get()).await.unwrap().unwrap());
        }
        held.clear();
        let failures = pool.stats().connect_failures;
        assert!(failures < 20, "{failures}");
        server.set_max_connections(30);
        tokio::time::sleep(90 * TICK).await;
        assert_eq!(pool.stats().open, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn observing_pool_opens_no_more_than_its_size() {
        let (pool, _) = pool(|builder| builder.observe(1..=8).initial(2).keep_open(0).connects(8, 1_000.0));
        let held = pool.get().await.unwrap();
        // Somebody comes while it is in use, and is served before what is opened for him is there, again and again.
        let mut openers = 0;
        for _ in 0..8 {
            let (waiting, Openers(count)) = pool.0.supply.line_up(DEFAULT, End::Back);
            std::mem::forget(waiting);
            openers += count;
        }
        assert_eq!(openers, 1);
        pool.set_target(5).unwrap();
        assert_eq!(pool.0.supply.count().opening, 4);
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_in_doubt_is_asked_before_it_is_lent_and_others_are_not() {
        let in_doubt = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicU32::new(0));
        let pool = Pool::builder("test", Asked(Arc::clone(&asked))).clock(Clock::tokio()).size(1);
        let doubt = Arc::clone(&in_doubt);
        let pool = pool.test_if(move |()| doubt.load(Ordering::Relaxed)).build().unwrap();
        for (is_in_doubt, so_far) in [(false, 0), (true, 1), (true, 2), (false, 2)] {
            in_doubt.store(is_in_doubt, Ordering::Relaxed);
            drop(pool.get().await.unwrap());
            assert_eq!(asked.load(Ordering::Relaxed), so_far);
        }
    }

    /// Counts how often it is asked whether a connection works.
    struct Asked(Arc<AtomicU32>);

    impl ManageConnection for Asked {
        type Connection = ();
        type Error = io::Error;

        async fn connect(&self) -> Result<(), io::Error> {
            Ok(())
        }

        async fn is_valid(&self, (): &mut ()) -> Result<(), io::Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn has_broken(&self, (): &mut ()) -> bool {
            false
        }
    }
}
