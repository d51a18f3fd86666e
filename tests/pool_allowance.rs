//! What a pool may have of a server that it shares, and that it keeps to it, under paused time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    ErrorKind,
    clock::Clock,
    pool::{
        Allowance, Class, Connection, Demand, Pool, PoolBuilder, Sizing,
        sizing::{Decision, Reason, Sample},
    },
    testing::{FakeServer, Usl},
};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// Wants as many as there are callers, whatever they bring; what the pool allows of that is not its concern.
struct Greedy(u32);

impl Sizing for Greedy {
    fn step(&mut self, sample: &Sample, _: Duration) -> Decision {
        self.0 = (sample.in_use_max + sample.max_waiting).max(1);
        Decision::new(self.0, Reason::Rule("greedy"))
    }

    fn target(&self) -> u32 {
        self.0
    }

    fn proven(&self) -> u32 {
        self.0
    }
}

/// Wants so many, whatever comes.
struct Still(u32);

impl Sizing for Still {
    fn step(&mut self, _: &Sample, _: Duration) -> Decision {
        Decision::new(self.0, Reason::Rule("still"))
    }

    fn target(&self) -> u32 {
        self.0
    }

    fn proven(&self) -> u32 {
        self.0
    }
}

fn builder(server: &FakeServer) -> PoolBuilder<FakeServer> {
    let builder = Pool::builder("test", server.clone()).clock(Clock::tokio()).connects(8, 1_000.0);
    builder.adaptive(1..=20).initial(8).sizing(Greedy(8))
}

fn server() -> FakeServer {
    FakeServer::new(Usl::new(0.1, 0.001)).connecting(5 * MILLI)
}

async fn fill(pool: &Pool<FakeServer>) -> Vec<Connection<FakeServer>> {
    let mut all = Vec::new();
    while let Some(connection) = pool.try_get().await.unwrap() {
        all.push(connection);
    }
    all
}

/// Allows what it is told to.
#[derive(Clone, Default)]
struct Told {
    ceiling: Arc<AtomicU32>,
    wanted: Arc<Mutex<Vec<u32>>>,
}

impl Told {
    fn of(ceiling: u32) -> Self {
        let told = Self::default();
        told.set(ceiling);
        told
    }

    fn set(&self, ceiling: u32) {
        self.ceiling.store(ceiling, Ordering::Relaxed);
    }
}

impl Allowance for Told {
    fn ceiling(&self) -> u32 {
        self.ceiling.load(Ordering::Relaxed)
    }

    async fn want(&self, demand: Demand) {
        self.wanted.lock().unwrap().push(demand.wanted);
    }
}

/// Allows eight, three of them in any case, and takes its time to say so.
struct Slow;

impl Allowance for Slow {
    fn ceiling(&self) -> u32 {
        8
    }

    fn own(&self) -> u32 {
        3
    }

    async fn want(&self, _: Demand) {
        sleep(7 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_the_pools_own_does_not_wait_for_what_is_asked_for() {
    let server = server();
    let pool = builder(&server).initial(1).keep_open(0).allowance(Slow).build().unwrap();
    sleep(SECOND).await;
    assert_eq!(pool.stats().ceiling, 3, "it was asked for one");
    sleep(7 * SECOND).await;
    assert_eq!(pool.stats().ceiling, 8);
}

#[tokio::test(start_paused = true)]
async fn lower_bound_above_what_is_the_pools_own_is_an_error() {
    let server = server();
    let error = builder(&server).adaptive(4..=20).allowance(Slow).build().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().starts_with("floor"), "{error}");
    assert!(builder(&server).adaptive(3..=20).allowance(Slow).build().is_ok());
}

#[tokio::test(start_paused = true)]
async fn ceiling_that_falls_is_kept_to_and_nothing_is_taken_from_a_caller() {
    let (server, told) = (server(), Told::of(8));
    let pool = builder(&server).allowance(told.clone()).build().unwrap();
    let mut held = fill(&pool).await;
    assert_eq!((held.len(), pool.stats().ceiling), (8, 8));
    told.set(3);
    sleep(SECOND + 100 * MILLI).await;
    let stats = pool.stats();
    assert_eq!((stats.ceiling, stats.target, stats.debt, stats.open), (3, 3, 5, 8));
    assert!(pool.try_get().await.unwrap().is_none());
    // What is returned is one too many until there are as many as may be.
    for open in (3..8).rev() {
        drop(held.pop());
        assert_eq!((pool.stats().open, pool.stats().closed.surplus), (open, u64::from(8 - open)));
    }
    drop(held);
    assert_eq!((pool.stats().open, server.stats().open), (3, 3));
    assert_eq!(fill(&pool).await.len(), 3);

    // What was being opened when the ceiling fell is one too many, too.
    drop(fill(&pool).await);
    let slow = FakeServer::new(Usl::new(0.1, 0.001)).connecting(4 * SECOND);
    let told_late = Told::of(8);
    let late = builder(&slow).keep_open(0).allowance(told_late.clone()).build().unwrap();
    let wants_four = tokio::spawn({
        let late = late.clone();
        async move {
            let mut all = Vec::new();
            for _ in 0..4 {
                all.push(late.get().await.unwrap());
            }
            all
        }
    });
    while (slow.stats().open, slow.stats().connecting) != (3, 1) {
        sleep(100 * MILLI).await;
    }
    told_late.set(3);
    sleep(10 * SECOND).await;
    assert_eq!((slow.stats().open, late.stats().closed.surplus), (3, 1));
    wants_four.abort();

    // Idle ones go by themselves.
    told.set(8);
    sleep(SECOND + 100 * MILLI).await;
    pool.set_target(8).unwrap();
    drop(fill(&pool).await);
    assert_eq!(pool.stats().open, 8);
    told.set(2);
    sleep(SECOND + 100 * MILLI).await;
    assert_eq!((pool.stats().open, server.stats().open), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn floor_stands_whatever_is_allowed() {
    let (server, told) = (server(), Told::of(0));
    let pool = builder(&server).allowance(told).build().unwrap();
    assert_eq!((pool.stats().ceiling, fill(&pool).await.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn more_is_asked_for_while_callers_wait_and_less_when_it_is_not_in_use() {
    let (server, told) = (server(), Told::of(8));
    let idle = builder(&server).idle_timeout(30 * SECOND).allowance(told.clone());
    let pool = idle.build().unwrap();
    let last = || *told.wanted.lock().unwrap().last().unwrap();
    let held = fill(&pool).await;
    let waiter = tokio::spawn({
        let pool = pool.clone();
        async move { drop(pool.get().await) }
    });
    sleep(6 * SECOND).await;
    assert_eq!(last(), 10, "a quarter more than the ceiling");
    told.set(10);
    sleep(2 * SECOND).await;
    waiter.await.unwrap();
    sleep(6 * SECOND).await;
    assert!((8..=9).contains(&last()), "what is open: {}", last());
    drop(held);
    sleep(60 * SECOND).await;
    assert_eq!(last(), 1, "the floor");
}

#[tokio::test(start_paused = true)]
async fn more_is_asked_for_within_moments_of_when_callers_come_to_wait() {
    let (server, told) = (server(), Told::of(8));
    let pool = builder(&server).allowance(told.clone()).build().unwrap();
    let asked = || told.wanted.lock().unwrap().clone();
    let _held = fill(&pool).await;
    sleep(20 * SECOND + 100 * MILLI).await;
    let before = asked();
    assert!(before.len() <= 5 && before.iter().all(|wanted| *wanted <= 8), "seldom, and no more: {before:?}");
    let _waiter = tokio::spawn({
        let pool = pool.clone();
        async move { drop(pool.get().await) }
    });
    sleep(2 * SECOND + 100 * MILLI).await;
    assert_eq!(asked().last(), Some(&10));
}

/// Allows ten, and looks at what the pool keeps to while it is asked for something.
#[derive(Clone, Default)]
struct Watching {
    pool: Arc<OnceLock<Pool<FakeServer>>>,
    /// What was asked for, and the pool's ceiling meanwhile.
    seen: Arc<Mutex<Vec<(u32, u32)>>>,
}

impl Allowance for Watching {
    fn ceiling(&self) -> u32 {
        10
    }

    async fn want(&self, demand: Demand) {
        sleep(100 * MILLI).await;
        if let Some(pool) = self.pool.get() {
            self.seen.lock().unwrap().push((demand.wanted, pool.stats().ceiling));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_is_not_used_any_more_while_it_is_given_back() {
    let (server, watching) = (server(), Watching::default());
    let pool = builder(&server).idle_timeout(3 * SECOND).allowance(watching.clone()).build().unwrap();
    watching.pool.set(pool.clone()).unwrap();
    assert_eq!(fill(&pool).await.len(), 8);
    sleep(60 * SECOND).await;
    let seen = watching.seen.lock().unwrap();
    assert_eq!(seen.first(), Some(&(8, 8)));
    assert_eq!(seen.last(), Some(&(1, 1)));
    assert!(seen.iter().all(|(wanted, ceiling)| ceiling <= wanted), "{seen:?}");
    assert_eq!(pool.stats().ceiling, 10, "and then what there is may be used");
}

/// A stock that processes share, as a server would lease it: given out once.
#[derive(Clone)]
struct Stock(Arc<Mutex<u32>>);

struct Leased {
    stock: Stock,
    leased: AtomicU32,
    is_lost: Arc<AtomicBool>,
}

const SHARE: u32 = 3;

impl Leased {
    fn lose(&self) {
        *self.stock.0.lock().unwrap() += self.leased.swap(0, Ordering::Relaxed);
    }
}

impl Allowance for Leased {
    fn ceiling(&self) -> u32 {
        let is_lost = self.is_lost.load(Ordering::Relaxed);
        SHARE + if is_lost { 0 } else { self.leased.load(Ordering::Relaxed) }
    }

    async fn want(&self, demand: Demand) {
        sleep(20 * MILLI).await; // the way there
        if self.is_lost.load(Ordering::Relaxed) {
            return self.lose();
        }
        let wanted = demand.wanted.saturating_sub(SHARE);
        {
            let mut stock = self.stock.0.lock().unwrap();
            let leased = self.leased.load(Ordering::Relaxed);
            let granted = wanted.min(leased + *stock);
            *stock = *stock + leased - granted;
            self.leased.store(granted, Ordering::Relaxed);
        }
        sleep(20 * MILLI).await; // and back
    }
}

#[tokio::test(start_paused = true)]
async fn pools_that_share_a_stock_are_never_above_it_however_their_loads_change() {
    let (server, stock) = (server(), Stock(Arc::new(Mutex::new(10))));
    let pool = || {
        let leased = Leased { stock: stock.clone(), leased: AtomicU32::new(0), is_lost: Arc::default() };
        let builder = builder(&server).idle_timeout(SECOND).initial(2).sizing(Greedy(2));
        builder.timeout(3_600 * SECOND).allowance(leased).build().unwrap()
    };
    let pools = [pool(), pool()];
    let callers = [Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0))];
    for (pool, callers) in pools.iter().zip(&callers) {
        for caller in 0..16 {
            let (pool, callers) = (pool.clone(), Arc::clone(callers));
            tokio::spawn(async move {
                loop {
                    if caller < callers.load(Ordering::Relaxed) {
                        let mut connection = pool.get().await.unwrap();
                        let _ = connection.query(50 * MILLI).await;
                    } else {
                        sleep(100 * MILLI).await;
                    }
                }
            });
        }
    }
    let mut most = [0; 2];
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..20 {
        for (callers, most) in callers.iter().zip(&mut most) {
            let number = random.u32(0..16);
            callers.store(number, Ordering::Relaxed);
            *most = number.max(*most);
        }
        for _ in 0..100 {
            sleep(300 * MILLI).await;
            for (pool, most) in pools.iter().zip(&mut most) {
                *most = pool.stats().open.max(*most);
            }
        }
    }
    assert!(server.stats().open_max <= 2 * SHARE + 10, "{}", server.stats().open_max);
    assert!(most.iter().all(|most| *most > SHARE), "or nobody had a lease: {most:?}");
}

#[tokio::test(start_paused = true)]
async fn pool_whose_lease_is_lost_is_at_its_share_and_comes_back_when_it_can_be_had() {
    let (server, stock) = (server(), Stock(Arc::new(Mutex::new(10))));
    let is_lost = Arc::<AtomicBool>::default();
    let leased = Leased { stock: stock.clone(), leased: AtomicU32::new(0), is_lost: Arc::clone(&is_lost) };
    let pool = builder(&server).timeout(3_600 * SECOND).allowance(leased).build().unwrap();
    assert_eq!(pool.stats().ceiling, SHARE);
    for _ in 0..16 {
        let pool = pool.clone();
        tokio::spawn(async move {
            loop {
                let mut connection = pool.get().await.unwrap();
                let _ = connection.query(50 * MILLI).await;
            }
        });
    }
    sleep(120 * SECOND).await;
    assert_eq!((pool.stats().ceiling, pool.stats().open), (13, 13));
    is_lost.store(true, Ordering::Relaxed);
    sleep(2 * SECOND).await;
    for _ in 0..100 {
        sleep(700 * MILLI).await;
        let stats = pool.stats();
        assert!(stats.open <= SHARE && server.stats().open <= SHARE && stats.in_use <= SHARE, "{stats:?}");
    }
    is_lost.store(false, Ordering::Relaxed);
    sleep(120 * SECOND).await;
    assert_eq!((pool.stats().ceiling, pool.stats().open), (13, 13));
}

/// The size came down to what is of use, and the rest is of none here.
#[tokio::test(start_paused = true)]
async fn what_the_size_is_far_from_is_given_back_though_callers_wait() {
    let allowance = Told::of(16);
    let server = server();
    let pool = builder(&server).initial(16).sizing(Still(4)).allowance(allowance.clone()).build().unwrap();
    let lent = fill(&pool).await;
    assert_eq!(lent.len(), 16);
    drop(lent);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let pool = pool.clone();
        callers.spawn(async move {
            loop {
                let _lent = pool.get().await.unwrap();
                sleep(10 * MILLI).await;
            }
        });
    }
    sleep(60 * SECOND).await;
    let stats = pool.stats();
    assert_eq!((stats.target, stats.open, stats.waiting > 0), (4, 4, true), "{stats:?}");
    assert_eq!(allowance.wanted.lock().unwrap().last(), Some(&8), "twice as many may be tried");
}

/// Of five that are out two are to go, and one of those that come back is closed in any case.
#[tokio::test(start_paused = true)]
async fn connection_that_is_closed_for_another_reason_is_one_less_all_the_same() {
    let allowance = Told::of(5);
    let server = server();
    let pool = builder(&server).allowance(allowance.clone()).build().unwrap();
    let mut lent = Vec::new();
    for _ in 0..5 {
        lent.push(pool.get().await.unwrap());
    }
    allowance.set(3);
    sleep(SECOND + 100 * MILLI).await;
    lent[0].mark_broken();
    drop(lent);
    sleep(100 * MILLI).await;
    let stats = pool.stats();
    assert_eq!((stats.closed.broken, stats.closed.surplus, stats.open), (1, 1, 3), "{stats:?}");
}

#[tokio::test]
async fn pool_that_cannot_give_way_is_not_built() {
    for builder in [builder(&server()).size(4).initial(4), builder(&server()).observe(1..=4).initial(2)] {
        let error = builder.allowance(Told::of(2)).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().starts_with("allowance: "), "{error}");
    }
}

// Code of others that panics.

/// Panics at the second window.
struct Panicking(u32);

impl Sizing for Panicking {
    fn step(&mut self, _: &Sample, _: Duration) -> Decision {
        self.0 += 1;
        assert!(self.0 < 10, "as the test wants it");
        Decision::new(8, Reason::Rule("test"))
    }

    fn target(&self) -> u32 {
        8
    }

    fn proven(&self) -> u32 {
        8
    }
}

#[tokio::test(start_paused = true)]
async fn sizing_that_panics_leaves_the_size_and_everything_else_as_it_is() {
    let server = server();
    let told = Told::of(8);
    let pool = builder(&server).sizing(Panicking(8)).keep_open(2).allowance(told.clone()).build().unwrap();
    drop(fill(&pool).await);
    sleep(10 * SECOND).await;
    assert_eq!(pool.stats().target, 8);
    // The pool still looks after itself.
    told.set(3);
    sleep(2 * SECOND).await;
    assert_eq!((pool.stats().ceiling, pool.stats().open), (3, 3));
    pool.retire_all();
    sleep(20 * SECOND).await;
    assert_eq!(server.stats().open, 2, "kept open");
}

/// Allows eight, and panics whenever it is asked for some, or for what it allows.
#[derive(Clone, Default)]
struct Careless(Arc<AtomicBool>);

impl Allowance for Careless {
    fn ceiling(&self) -> u32 {
        assert!(!self.0.load(Ordering::SeqCst), "as the test wants it");
        8
    }

    async fn want(&self, _: Demand) {
        panic!("as the test wants it");
    }
}

#[tokio::test(start_paused = true)]
async fn allowance_that_panics_is_asked_again_and_costs_no_more_than_it_forbids() {
    let (server, careless) = (server(), Careless::default());
    // One that asks for little at first.
    let pool = builder(&server).initial(1).sizing(Greedy(1)).allowance(careless.clone()).build().unwrap();
    sleep(3 * SECOND + 100 * MILLI).await;
    assert_eq!(pool.stats().ceiling, 8, "what was asked for is not what it is held to for good");
    pool.set_target(8).unwrap();
    let all = fill(&pool).await;
    assert_eq!(all.len(), 8);
    drop(all);
    careless.0.store(true, Ordering::SeqCst);
    sleep(3 * SECOND).await;
    assert_eq!((pool.stats().ceiling, pool.stats().open), (1, 1), "the floor");
    careless.0.store(false, Ordering::SeqCst);
    sleep(3 * SECOND).await;
    assert_eq!(pool.stats().ceiling, 8);
}

/// What the system has beside the size is of use, and no reason to close what others use.
#[tokio::test(start_paused = true)]
async fn one_more_of_the_system_has_no_connection_closed_that_is_in_use() {
    let server = server();
    let pool = builder(&server).initial(4).sizing(Still(4)).allowance(Told::of(8)).build().unwrap();
    sleep(SECOND).await;
    for _ in 0..4 {
        let pool = pool.clone();
        tokio::spawn(async move {
            while let Ok(connection) = pool.get().await {
                sleep(90 * MILLI).await;
                drop(connection);
                sleep(10 * MILLI).await;
            }
        });
    }
    sleep(SECOND + 50 * MILLI).await; // all are in use
    let migration = pool.get_for(Class::SYSTEM).await.unwrap();
    assert_eq!(pool.stats().open, 5);
    let connects = pool.stats().connects;
    sleep(120 * SECOND).await;
    let stats = pool.stats();
    assert_eq!((stats.open, stats.closed.surplus, stats.connects), (5, 0, connects));
    drop(migration);
}
