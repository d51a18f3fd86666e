//! The pool against a server that counts, under paused time.

#![cfg(feature = "pool")]
#![expect(
    clippy::clone_on_ref_ptr,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests, which fail that way"
)]

mod support;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    clock::Clock,
    pool::{
        Class, Connection, Pool, PoolBuilder, Share,
        sizing::{Fixed, Gain},
    },
};
use support::log::Log;
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tracing::Level;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// A server in memory: counts connections, and fails as it is told.
#[derive(Clone, Default)]
struct Server(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: AtomicU32,
    /// With those that were being opened.
    most_open: AtomicU32,
    connecting: AtomicU32,
    most_connecting: AtomicU32,
    attempts: AtomicU32,
    tests: AtomicU32,
    /// Connections of an earlier generation are dead.
    generation: AtomicU64,
    latency: Mutex<Duration>,
    /// How long a connection lives on that was hung up.
    goodbye: Mutex<Duration>,
    /// How the next attempts go; after these, well.
    plan: Mutex<VecDeque<Attempt>>,
    is_away: AtomicBool,
    tests_hang: AtomicBool,
    tests_panic: AtomicBool,
    /// How long a test takes.
    testing: Mutex<Duration>,
    looks_panic: AtomicBool,
    ends_panic: AtomicBool,
}

#[derive(Clone, Copy)]
enum Attempt {
    Fails,
    Hangs,
    Panics,
}

#[derive(Debug)]
struct Refused(&'static str);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

struct Wire {
    server: Server,
    generation: u64,
    is_broken: bool,
    /// Answers that are still to be read.
    unread: u32,
    /// The other half goes with the connection.
    going: watch::Sender<()>,
}

impl Server {
    fn open(&self) -> u32 {
        self.0.open.load(Ordering::SeqCst)
    }

    fn most_open(&self) -> u32 {
        self.0.most_open.load(Ordering::SeqCst)
    }

    fn attempts(&self) -> u32 {
        self.0.attempts.load(Ordering::SeqCst)
    }

    fn tests(&self) -> u32 {
        self.0.tests.load(Ordering::SeqCst)
    }

    fn plan(&self, attempts: impl IntoIterator<Item = Attempt>) {
        self.0.plan.lock().unwrap().extend(attempts);
    }

    fn connecting_takes(&self, latency: Duration) {
        *self.0.latency.lock().unwrap() = latency;
    }

    fn saying_goodbye_takes(&self, time: Duration) {
        *self.0.goodbye.lock().unwrap() = time;
    }

    fn goes_away(&self) {
        self.0.is_away.store(true, Ordering::SeqCst);
        self.restarts();
    }

    fn comes_back(&self) {
        self.0.is_away.store(false, Ordering::SeqCst);
    }

    /// Every connection is dead from now on.
    fn restarts(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }
}

struct Counted<'a>(&'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn count<'a>(now: &'a AtomicU32, most: &AtomicU32) -> Counted<'a> {
    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    Counted(now)
}

impl bb8::ManageConnection for Server {
    type Connection = Wire;
    type Error = Refused;

    async fn connect(&self) -> Result<Wire, Refused> {
        self.0.attempts.fetch_add(1, Ordering::SeqCst);
        let _connecting = count(&self.0.connecting, &self.0.most_connecting);
        let (latency, plan) = (*self.0.latency.lock().unwrap(), self.0.plan.lock().unwrap().pop_front());
        sleep(latency).await;
        match plan {
            Some(Attempt::Fails) => return Err(Refused("wrong password")),
            Some(Attempt::Hangs) => std::future::pending().await,
            Some(Attempt::Panics) => panic!("as the test wants it"),
            None if self.0.is_away.load(Ordering::SeqCst) => return Err(Refused("nobody listens")),
            None => {}
        }
        std::mem::forget(count(&self.0.open, &self.0.most_open));
        let connecting = self.0.connecting.load(Ordering::SeqCst) - 1;
        self.0.most_open.fetch_max(self.open() + connecting, Ordering::SeqCst);
        let going = watch::Sender::new(());
        Ok(Wire { server: self.clone(), generation: self.generation(), is_broken: false, unread: 0, going })
    }

    async fn is_valid(&self, wire: &mut Wire) -> Result<(), Refused> {
        self.0.tests.fetch_add(1, Ordering::SeqCst);
        wire.unread += 1;
        assert!(!self.0.tests_panic.load(Ordering::SeqCst), "as the test wants it");
        let testing = *self.0.testing.lock().unwrap();
        sleep(testing).await;
        while self.0.tests_hang.load(Ordering::SeqCst) {
            sleep(MILLI).await; // virtual
        }
        wire.unread -= 1;
        if wire.is_alive() { Ok(()) } else { Err(Refused("connection reset")) }
    }

    fn has_broken(&self, wire: &mut Wire) -> bool {
        assert!(!self.0.looks_panic.load(Ordering::SeqCst), "as the test wants it");
        wire.is_broken
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let (server, going) = (self.server.clone(), self.going.clone());
        let goodbye = *self.server.0.goodbye.lock().unwrap();
        let end = move || {
            server.0.open.fetch_sub(1, Ordering::SeqCst);
            drop(going);
        };
        if goodbye.is_zero() {
            end();
        } else {
            tokio::spawn(async move {
                sleep(goodbye).await;
                end();
            });
        }
        let panics = self.server.0.ends_panic.load(Ordering::SeqCst);
        assert!(!panics || std::thread::panicking(), "as the test wants it");
    }
}

impl Wire {
    fn is_alive(&self) -> bool {
        self.generation == self.server.generation()
    }

    fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut going = self.going.subscribe();
        async move { while going.changed().await.is_ok() {} }
    }
}

fn builder(server: &Server) -> PoolBuilder<Server> {
    Pool::builder("test", server.clone()).clock(Clock::tokio())
}

fn stopwatch() -> (Clock, mcp_perf::clock::Instant) {
    let clock = Clock::tokio();
    let began = clock.now();
    (clock, began)
}

/// Lets tasks that are ready run.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

type Lent = Result<Connection<Server>, Error>;

/// Asks for a connection in a task of its own, which is in line when this returns.
async fn asks(pool: &Pool<Server>) -> JoinHandle<Lent> {
    asks_for(pool, Class::DEFAULT).await
}

async fn asks_for(pool: &Pool<Server>, class: Class) -> JoinHandle<Lent> {
    let pool = pool.clone();
    let asking = tokio::spawn(async move { pool.get_for(class).await });
    settle().await;
    asking
}

async fn refused(pool: &Pool<Server>) -> Error {
    pool.get().await.map(drop).unwrap_err()
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

// Law 9.

#[tokio::test(start_paused = true)]
async fn open_connections_never_exceed_the_ceiling_and_permits_are_exact() {
    let server = Server::default();
    resized_and_harassed(&server, builder(&server)).await;
}

#[tokio::test(start_paused = true)]
async fn nor_do_they_where_a_connection_that_is_closed_lives_on_for_a_while() {
    let server = Server::default();
    server.saying_goodbye_takes(7 * MILLI);
    resized_and_harassed(&server, builder(&server).gone_when(Wire::gone)).await;
}

/// Callers who hold, give up, break and outlive their connections, while the pool is resized 2,000 times and the
/// server fails and restarts.
async fn resized_and_harassed(server: &Server, builder: PoolBuilder<Server>) {
    server.connecting_takes(3 * MILLI);
    let pool = builder
        .size(16)
        .keep_open(2)
        .connects(8, 10_000.0)
        .test_after(5 * MILLI)
        .idle_timeout(12 * SECOND)
        .max_life(Duration::from_millis(700))
        .build()
        .unwrap();
    let (in_use, most_in_use) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let is_over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..64_u64)
        .map(|seed| {
            let (pool, server) = (pool.clone(), server.clone());
            let (in_use, most_in_use, is_over) = (in_use.clone(), most_in_use.clone(), is_over.clone());
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                let class = if random.u32(0..9) == 0 { Class::SYSTEM } else { Class::DEFAULT };
                while !is_over.load(Ordering::SeqCst) {
                    let get = pool.get_for(class);
                    let patience = if random.u32(0..7) == 0 { random.u32(0..3) * MILLI } else { 60 * SECOND };
                    let Ok(Ok(mut connection)) = tokio::time::timeout(patience, get).await else {
                        sleep(MILLI).await;
                        continue;
                    };
                    let in_use = count(&in_use, &most_in_use);
                    sleep(random.u32(0..4) * MILLI).await;
                    match random.u32(0..60) {
                        0 => connection.mark_broken(),
                        1 => connection.is_broken = true,
                        2 => connection.mark_dirty(),
                        3 => server.plan([Attempt::Fails]),
                        _ => {}
                    }
                    drop(in_use);
                }
            })
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..2_000 {
        pool.set_target(random.u32(1..=16)).unwrap();
        match round % 400 {
            20 => pool.retire_all(),
            40 => server.goes_away(),
            43 => server.comes_back(),
            _ => {}
        }
        sleep(MILLI).await;
    }
    pool.set_target(16).unwrap();
    is_over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    sleep(SECOND).await;
    let stats = pool.stats();
    assert!(server.most_open() <= 16, "{} were open at once", server.most_open());
    assert!(most_in_use.load(Ordering::SeqCst) <= 16);
    assert_eq!((stats.in_use, stats.debt, stats.target, stats.waiting), (0, 0, 16, 0));
    assert_eq!((stats.open, stats.idle), (server.open(), server.open()), "{stats:?}");
    assert_eq!(stats.gets, stats.returns);
    assert!(stats.gets > 1_000, "{stats:?}");
    assert_eq!(stats.waiting_for_connection, 0);
}

#[tokio::test(start_paused = true)]
async fn closed_connection_keeps_its_place_until_it_is_gone() {
    let server = Server::default();
    server.saying_goodbye_takes(SECOND);
    let pool = builder(&server).size(1).gone_when(Wire::gone).build().unwrap();
    pool.get().await.unwrap().mark_broken();
    let stats = pool.stats();
    assert_eq!((stats.open, stats.closing, stats.in_use, server.open()), (0, 1, 0, 1));
    assert!(pool.try_get().await.unwrap().is_none(), "there is room for none");
    let (clock, began) = stopwatch();
    let connection = pool.get().await.unwrap();
    assert_eq!(clock.now().since(began), SECOND);
    assert_eq!((pool.stats().closing, server.most_open()), (0, 1));

    // A pool that was shut down has left nothing behind, whichever way it was closed.
    drop(connection);
    let began = clock.now();
    let too_short = pool.shutdown(SECOND / 2).await.unwrap_err();
    assert_eq!(too_short.kind(), ErrorKind::TimedOut);
    assert!(too_short.to_string().contains("connections to be closed"), "{too_short}");
    pool.shutdown(60 * SECOND).await.unwrap();
    assert_eq!((clock.now().since(began), server.open()), (SECOND, 0));
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_opened_for_nobody_keeps_its_place_until_it_is_gone() {
    let server = Server::default();
    server.connecting_takes(MILLI);
    server.saying_goodbye_takes(SECOND);
    let pool = builder(&server).size(1).keep_open(0).gone_when(Wire::gone).build().unwrap();
    let asked = asks(&pool).await;
    let (clock, began) = stopwatch();
    pool.shutdown(60 * SECOND).await.unwrap();
    assert_eq!(asked.await.unwrap().map(drop).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!((pool.stats().closing, pool.stats().closed.retired), (0, 0), "it is still being opened");
    sleep(2 * MILLI).await;
    assert_eq!((pool.stats().closing, server.open(), pool.stats().closed.retired), (1, 1, 1));
    pool.shutdown(60 * SECOND).await.unwrap();
    assert_eq!((clock.now().since(began), server.open()), (SECOND + MILLI, 0));
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_opened_for_nobody_and_whose_end_panics_leaves_no_place_taken() {
    let server = Server::default();
    server.connecting_takes(MILLI);
    let pool = builder(&server).size(1).keep_open(0).build().unwrap();
    let asked = asks(&pool).await;
    pool.shutdown(SECOND).await.unwrap();
    asked.await.unwrap().map(drop).unwrap_err();
    server.0.ends_panic.store(true, Ordering::SeqCst);
    sleep(2 * MILLI).await;
    assert_eq!((pool.stats().closed.retired, pool.stats().closing), (1, 0));
    pool.shutdown(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn place_of_a_closed_connection_is_free_whatever_is_wrong_with_who_says_when() {
    let server = Server::default();
    let size_of_one = || builder(&server).size(1).timeout(60 * SECOND);
    let ready = || std::future::ready(());
    let panics =
        size_of_one().gone_when(move |_| if true { panic!("as the test wants it") } else { ready() });
    let panics_later = size_of_one().gone_when(|_| async { panic!("as the test wants it") });
    let never_says = size_of_one().gone_when(|_| std::future::pending());
    for (builder, waits) in [(panics, 0), (panics_later, 0), (never_says, 10)] {
        let pool = builder.build().unwrap();
        pool.get().await.unwrap().mark_broken();
        let (clock, began) = stopwatch();
        let connection = pool.get().await.unwrap();
        assert_eq!((clock.now().since(began), pool.stats().closing), (waits * SECOND, 0));
        drop(connection);
    }
}

#[tokio::test(start_paused = true)]
async fn shrinking_takes_permits_at_once_and_debt_is_paid_on_return() {
    let server = Server::default();
    let pool = builder(&server).size(4).build().unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.get().await.unwrap());
    }
    pool.set_target(2).unwrap();
    assert_eq!(pool.stats().debt, 2);
    let waiter = asks(&pool).await;
    held.truncate(2);
    settle().await;
    assert!(!waiter.is_finished(), "served while as many as may had a connection");
    assert_eq!(pool.stats().debt, 0);
    held.pop();
    assert!(waiter.await.unwrap().is_ok());
    let two = asks(&pool).await;
    settle().await;
    pool.set_target(4).unwrap();
    assert!(two.await.unwrap().is_ok(), "growth is at once");
}

// Law 10.

/// One connection, two callers who come back at once, and a polite one, which bare bb8 starves until it times out.
#[tokio::test(start_paused = true)]
async fn polite_caller_waits_for_two_handovers_however_greedy_the_others_are() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    let handovers = Arc::new(AtomicU32::new(0));
    let greedy: Vec<_> = (0..2)
        .map(|_| {
            let (pool, handovers) = (pool.clone(), handovers.clone());
            tokio::spawn(async move {
                loop {
                    let connection = pool.get().await.unwrap();
                    handovers.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    drop(connection);
                }
            })
        })
        .collect();
    settle().await;
    for _ in 0..100 {
        let before = handovers.load(Ordering::SeqCst);
        let connection = pool.get().await.unwrap();
        let waited = handovers.load(Ordering::SeqCst) - before;
        assert!(waited <= 2, "{waited} others were served first");
        drop(connection);
        settle().await;
    }
    greedy.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_the_order_of_their_coming() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    let first = pool.get().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for number in 0..10 {
        let (pool, order) = (pool.clone(), order.clone());
        waiters.push(tokio::spawn(async move {
            let connection = pool.get().await.unwrap();
            order.lock().unwrap().push(number);
            drop(connection);
        }));
        settle().await;
    }
    waiters[4].abort();
    settle().await;
    drop(first);
    settle().await;
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
}

#[tokio::test(start_paused = true)]
async fn guarantee_holds_at_once_and_the_rest_is_lent() {
    let server = Server::default();
    let catalog = Share::new().guarantee(2).at_most(3);
    let pool = builder(&server).size(5).class("catalog", catalog).system_reserve(1).build().unwrap();
    let catalog = pool.class("catalog").unwrap();
    let mut greedy = Vec::new();
    while let Some(connection) = pool.try_get().await.unwrap() {
        greedy.push(connection);
    }
    assert_eq!(greedy.len(), 2, "what nobody is sure of");
    let sure = [pool.try_get_for(catalog).await.unwrap(), pool.try_get_for(catalog).await.unwrap()];
    assert!(sure.iter().all(Option::is_some));
    assert!(pool.try_get_for(catalog).await.unwrap().is_none());
    assert!(pool.try_get_for(Class::SYSTEM).await.unwrap().is_some());
    let stats = pool.stats();
    let by_class: Vec<_> = stats.classes.iter().map(|class| (class.name.as_str(), class.in_use)).collect();
    assert_eq!(by_class, [("system", 0), ("default", 2), ("catalog", 2)]);
}

/// After a shrink the guarantee is honoured by the next returns, before anybody else is served.
#[tokio::test(start_paused = true)]
async fn guarantee_holds_within_one_hold_time_after_a_shrink() {
    let server = Server::default();
    let pool = builder(&server).size(6).class("reports", Share::new().guarantee(1)).build().unwrap();
    let reports = pool.class("reports").unwrap();
    let mut greedy = Vec::new();
    for _ in 0..5 {
        greedy.push(pool.get().await.unwrap());
    }
    pool.set_target(3).unwrap();
    let first_in_line = asks(&pool).await;
    let sure = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get_for(reports).await }
    });
    settle().await;
    greedy.truncate(3);
    settle().await;
    assert!(!sure.is_finished(), "as many as may have one");
    greedy.pop();
    settle().await;
    assert!(sure.is_finished());
    assert!(!first_in_line.is_finished());
}

/// Whoever has a permit may still wait for a connection, and is sure of the same there.
#[tokio::test(start_paused = true)]
async fn system_class_is_first_where_connections_are_short_of_permits() {
    let server = Server::default();
    let pool = builder(&server).size(6).system_reserve(1).keep_open(0).connects(8, 1_000.0);
    let pool = pool.connect_timeout(1_000 * SECOND).timeout(1_000 * SECOND).build().unwrap();
    let held = pool.get().await.unwrap();
    server.plan([Attempt::Hangs; 16]); // no other can be opened
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(asks(&pool).await);
    }
    let system = asks_for(&pool, Class::SYSTEM).await;
    assert_eq!(pool.stats().waiting_for_connection, 5, "everybody has a permit");
    drop(held);
    settle().await;
    assert!(system.is_finished(), "four callers are served before the health check");
    assert!(others.iter().all(|other| !other.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn guarantee_holds_where_connections_are_short_of_permits() {
    let server = Server::default();
    let pool = builder(&server).size(6).class("reports", Share::new().guarantee(1)).keep_open(0);
    let pool = pool.connects(8, 1_000.0).connect_timeout(1_000 * SECOND).timeout(1_000 * SECOND);
    let pool = pool.build().unwrap();
    let reports = pool.class("reports").unwrap();
    let mut greedy = vec![pool.get().await.unwrap(), pool.get().await.unwrap()];
    server.plan([Attempt::Hangs; 16]);
    let others = [asks(&pool).await, asks(&pool).await];
    let sure = [asks_for(&pool, reports).await, asks_for(&pool, reports).await];
    assert_eq!(pool.stats().waiting_for_connection, 4, "everybody has a permit");
    greedy.pop();
    settle().await;
    let served = |callers: &[JoinHandle<Lent>; 2]| callers.each_ref().map(JoinHandle::is_finished);
    assert_eq!((served(&sure), served(&others)), ([true, false], [false; 2]));
    greedy.pop();
    settle().await;
    assert_eq!((served(&sure), served(&others)), ([true, false], [true, false]), "it has what it is sure of");
}

// Law 12, and bad input.

#[tokio::test(start_paused = true)]
async fn reason_of_a_failed_connect_reaches_the_caller_at_once() {
    let server = Server::default();
    server.plan([Attempt::Fails]);
    let pool = builder(&server).size(2).keep_open(0).build().unwrap();
    let (clock, began) = stopwatch();
    let error = refused(&pool).await;
    assert_eq!((error.kind(), cause(&error).as_str()), (ErrorKind::Unavailable, "wrong password"));
    assert!(!error.to_string().contains("password"), "the text of a driver is not ours: {error}");
    assert!(clock.now().since(began) < SECOND);
    assert!(pool.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn connect_that_hangs_ends_by_its_own_time_out_and_the_pool_goes_on() {
    let server = Server::default();
    server.plan([Attempt::Hangs]);
    let pool = builder(&server).size(2).keep_open(0).connect_timeout(3 * SECOND).build().unwrap();
    let (clock, began) = stopwatch();
    let error = refused(&pool).await;
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(clock.now().since(began).as_secs(), 3);
    assert!(pool.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn manager_that_panics_costs_one_call() {
    let server = Server::default();
    server.plan([Attempt::Panics]);
    let pool = builder(&server).size(2).keep_open(0).build().unwrap();
    assert_eq!(refused(&pool).await.kind(), ErrorKind::Panicked);
    assert!(pool.get().await.is_ok());
    assert_eq!(pool.stats().in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn failed_connect_does_not_fail_callers_to_whom_a_connection_may_come_back() {
    let server = Server::default();
    let pool = builder(&server).size(2).keep_open(0).build().unwrap();
    let held = pool.get().await.unwrap();
    server.goes_away();
    let waiter = asks(&pool).await;
    sleep(5 * SECOND).await;
    assert!(!waiter.is_finished());
    drop(held);
    settle().await;
    // It is dead, but nobody knows yet: it was in use a moment ago.
    assert!(waiter.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn server_that_is_away_is_asked_seldom_and_used_soon_after_it_is_back() {
    let server = Server::default();
    server.goes_away();
    let pool = builder(&server).size(8).keep_open(1).build().unwrap();
    for _ in 0..1_000 {
        assert_eq!(refused(&pool).await.kind(), ErrorKind::Unavailable);
        sleep(20 * MILLI).await;
    }
    let attempts = server.attempts();
    assert!((5..60).contains(&attempts), "{attempts} attempts within 20 s");
    server.comes_back();
    sleep(3 * SECOND).await;
    assert!(pool.get().await.is_ok());
}

/// On one thread, while the one attempt that is made is under way for another caller: that has to get its turn.
#[tokio::test]
async fn caller_that_asks_again_at_once_does_not_keep_the_pool_from_recovering() {
    let server = Server::default();
    server.plan([Attempt::Fails; 3]);
    let pool = builder(&server).size(2).keep_open(0).build().unwrap();
    for _ in 0..3 {
        assert!(pool.get().await.is_err());
    }
    sleep(SECOND).await; // The first pause is over after 0.3 s.
    server.connecting_takes(300 * MILLI);
    let other = asks(&pool).await;
    sleep(30 * MILLI).await;
    let (clock, began) = stopwatch();
    while pool.get().await.is_err() {
        assert!(clock.now().since(began) < 60 * SECOND, "nobody else gets a turn");
    }
    assert!(other.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn time_out_names_holders_waiters_and_the_last_connect_error() {
    let server = Server::default();
    let pool = builder(&server).size(1).timeout(2 * SECOND).build().unwrap();
    let _held = pool.get().await.unwrap();
    let line = line!() - 1;
    let _other = asks(&pool).await;
    let error = refused(&pool).await;
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(text.contains("waited 2.0s for its turn; 1 of 1 in use"), "{text}");
    assert!(text.contains("1 wait"), "{text}");
    assert!(text.contains(&format!("tests/pool.rs:{line}")), "{text}");
    let pool = builder(&server).size(1).timeout(SECOND).class("reports", Share::new()).build().unwrap();
    let reports = pool.class("reports").unwrap();
    let held = pool.get_for(reports).await.unwrap();
    let line = line!() - 1;
    assert_eq!(&*pool.stats().longest[0].class, "reports");
    let text = refused(&pool).await.to_string();
    assert!(text.contains(&format!("held longest: 1.0s at tests/pool.rs:{line} (reports)")), "{text}");
    drop(held);
    let pool = builder(&server).size(1).build().unwrap();
    // A connection may come back, but does not; and another cannot be opened.
    pool.set_target(1).unwrap();
    let pool = builder(&server).size(2).keep_open(0).timeout(2 * SECOND).build().unwrap();
    let _held = pool.get().await.unwrap();
    server.goes_away();
    let error = refused(&pool).await;
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("the last attempt to connect failed"), "{error}");
    let source = error.downcast_source::<Error>().unwrap();
    assert_eq!(cause(source), "nobody listens");
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_dead_is_not_lent_if_it_was_idle() {
    let server = Server::default();
    let pool = builder(&server).size(4).build().unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(pool.stats().idle, 4);
    server.restarts();
    let connection = pool.get().await.unwrap();
    assert!(connection.is_alive());
    assert_eq!(pool.stats().closed.invalid, 4);
}

#[tokio::test(start_paused = true)]
async fn connection_is_tested_only_after_it_was_idle_for_long_or_was_marked() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    for _ in 0..10 {
        drop(pool.get().await.unwrap());
        sleep(400 * MILLI).await;
    }
    assert_eq!(server.tests(), 0);
    sleep(SECOND).await;
    let mut connection = pool.get().await.unwrap();
    assert_eq!(server.tests(), 1);
    connection.mark_dirty();
    drop(connection);
    drop(pool.get().await.unwrap());
    drop(pool.get().await.unwrap());
    assert_eq!(server.tests(), 2);
}

#[tokio::test(start_paused = true)]
async fn test_that_hangs_costs_its_time_out_and_the_connection() {
    let server = Server::default();
    let pool = builder(&server).size(1).test_timeout(SECOND).build().unwrap();
    drop(pool.get().await.unwrap());
    sleep(5 * SECOND).await;
    server.0.tests_hang.store(true, Ordering::SeqCst);
    let (clock, began) = stopwatch();
    let connection = pool.get().await.unwrap();
    assert_eq!((clock.now().since(began).as_secs(), connection.id()), (1, 1));
}

/// Eight idle connections to a server that says nothing any more cost one test, not eight.
#[tokio::test(start_paused = true)]
async fn after_a_test_that_failed_other_idle_connections_are_not_waited_for() {
    let server = Server::default();
    let pool = builder(&server).size(8).connects(8, 1_000.0).test_timeout(SECOND).build().unwrap();
    sleep(5 * SECOND).await;
    server.0.tests_hang.store(true, Ordering::SeqCst);
    let (clock, began) = stopwatch();
    let connection = pool.get().await.unwrap();
    assert_eq!((clock.now().since(began).as_secs(), server.tests()), (1, 1));
    assert!(connection.id() >= 8, "an old one");
    assert_eq!(pool.stats().closed.invalid, 8);
}

/// By the system's clock: a paused one never lets a moment pass between two looks at it.
#[tokio::test]
async fn connection_that_is_newer_than_a_test_that_failed_is_lent() {
    let server = Server::default();
    let pool = Pool::builder("test", server.clone()).size(2).connects(2, 1_000.0).test_after(Duration::ZERO);
    let pool = pool.build().unwrap();
    let both = [pool.get().await.unwrap(), pool.get().await.unwrap()];
    drop(both);
    server.restarts();
    let before = server.attempts();
    for _ in 0..3 {
        assert!(tokio::time::timeout(5 * SECOND, pool.get()).await.expect("it is lent").unwrap().is_alive());
    }
    assert!(server.attempts() - before <= 2, "{}", server.attempts() - before);
    assert_eq!(pool.stats().closed.invalid, 2);
}

#[tokio::test(start_paused = true)]
async fn connection_that_is_always_to_be_asked_is() {
    let server = Server::default();
    let pool = builder(&server).size(1).test_after(Duration::ZERO).build().unwrap();
    for asked in 1..=3 {
        drop(pool.get().await.unwrap());
        assert_eq!(server.tests(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn test_whose_caller_has_gone_goes_on_and_says_what_the_connection_is_worth() {
    let server = Server::default();
    let pool = builder(&server).size(1).test_timeout(2 * SECOND).build().unwrap();
    let id = pool.get().await.unwrap().id();
    *server.0.testing.lock().unwrap() = SECOND;
    sleep(5 * SECOND).await;
    assert!(tokio::time::timeout(SECOND / 2, pool.get()).await.is_err(), "its test takes longer");
    sleep(60 * SECOND).await;
    assert_eq!(pool.get().await.unwrap().id(), id);
    sleep(60 * SECOND).await;
    server.0.tests_hang.store(true, Ordering::SeqCst);
    for _ in 0..4 {
        assert!(tokio::time::timeout(SECOND / 2, pool.get()).await.is_err());
    }
    sleep(MILLI).await;
    server.0.tests_hang.store(false, Ordering::SeqCst);
    assert_ne!(pool.get().await.unwrap().id(), id);
}

#[tokio::test(start_paused = true)]
async fn callers_whom_their_own_class_holds_up_leave_room_for_the_others() {
    let server = Server::default();
    let few = Share::new().at_most(1);
    let pool = builder(&server).size(2).max_waiting(8).class("few", few).build().unwrap();
    let class = pool.class("few").unwrap();
    let _held = pool.get_for(class).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(asks_for(&pool, class).await);
    }
    let refused = pool.get_for(class).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    let last = pool.get().await.unwrap();
    let waits = asks(&pool).await;
    drop(last);
    assert!(waits.await.unwrap().is_ok());

    // Also where all of them came while others had everything: only the first of them waits for those.
    let pool = builder(&server).size(1).max_waiting(8).class("few", few).build().unwrap();
    let class = pool.class("few").unwrap();
    let last = pool.get().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(asks_for(&pool, class).await);
    }
    let refused = pool.get_for(class).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    let waits = asks(&pool).await;
    // What a task comes to that nobody waits for is dropped.
    drop((last, waiting));
    assert!(waits.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn connection_in_doubt_that_fails_its_test_says_nothing_of_the_others() {
    let server = Server::default();
    let pool = builder(&server).size(4).connects(4, 1_000.0).build().unwrap();
    sleep(SECOND).await;
    let mut left = pool.get().await.unwrap();
    sleep(5 * SECOND).await;
    left.mark_dirty();
    left.generation = u64::MAX; // its test fails
    drop(left);
    assert!(pool.get().await.unwrap().is_alive());
    settle().await;
    assert_eq!(pool.stats().closed.invalid, 1);
}

/// One that a caller left in the middle of something is being mended, and is the one that was returned last.
#[tokio::test(start_paused = true)]
async fn connection_in_doubt_does_not_hold_up_who_can_have_another() {
    let server = Server::default();
    let pool = builder(&server).size(3).connects(3, 1_000.0).test_after(Duration::MAX).timeout(SECOND);
    let pool = pool.test_timeout(2 * SECOND).build().unwrap();
    sleep(SECOND).await;
    for is_fit in [true, false] {
        let mut left = pool.get().await.unwrap();
        let id = left.id();
        left.mark_dirty();
        drop(left);
        *server.0.testing.lock().unwrap() = 100 * MILLI;
        server.0.tests_hang.store(!is_fit, Ordering::SeqCst);
        let (clock, began) = stopwatch();
        let connection = pool.get().await.unwrap();
        assert_ne!(connection.id(), id);
        assert!(clock.now().since(began).is_zero(), "it waited for the test");
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.open, stats.longest.len()), (1, 3, 1));
        drop(connection);
        sleep(3 * SECOND).await;
        let stats = pool.stats();
        assert_eq!((stats.closed.invalid, stats.timeouts), (u64::from(!is_fit), 0), "nobody waited");
        assert_eq!((stats.in_use, stats.idle), (0, 3));
    }
}

/// One that is being mended is nobody's, and back in a moment.
#[tokio::test(start_paused = true)]
async fn who_waits_for_nobody_else_waits_for_a_connection_that_is_being_tested() {
    let server = Server::default();
    let pool = builder(&server).size(2).connects(2, 1_000.0).test_after(Duration::MAX).build().unwrap();
    sleep(SECOND).await;
    let mut left = pool.get().await.unwrap();
    left.mark_dirty();
    drop(left);
    *server.0.testing.lock().unwrap() = 100 * MILLI;
    let (clock, began) = stopwatch();
    let first = pool.try_get().await.unwrap().unwrap();
    assert!(clock.now().since(began).is_zero(), "it waited for the test though another was idle");
    let second = pool.try_get().await.unwrap();
    assert!(second.is_some(), "nobody had to return it");
    assert_eq!(clock.now().since(began), 100 * MILLI);
    assert!(pool.try_get().await.unwrap().is_none());
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn pool_whose_connections_are_all_in_doubt_tests_few_of_them_for_one_caller() {
    let server = Server::default();
    let pool = builder(&server).size(8).connects(8, 1_000.0).test_if(|_| true).build().unwrap();
    sleep(SECOND).await;
    drop(pool.get().await.unwrap());
    settle().await;
    assert!((1..=3).contains(&server.tests()), "{}", server.tests());
    assert_eq!(pool.stats().idle, 8);
}

/// A connection that somebody keeps for good, as one that listens, is no reason for all others to wait in vain.
#[tokio::test(start_paused = true)]
async fn server_that_is_away_is_told_of_though_somebody_keeps_a_connection() {
    let server = Server::default();
    let pool = builder(&server).size(2).timeout(10 * SECOND).build().unwrap();
    let kept = pool.get().await.unwrap();
    let may_come_back = pool.get().await.unwrap();
    sleep(30 * SECOND).await;
    server.goes_away();
    drop(may_come_back);
    sleep(5 * SECOND).await;
    let (clock, began) = stopwatch();
    let error = refused(&pool).await;
    assert_eq!((error.kind(), cause(&error).as_str()), (ErrorKind::Unavailable, "nobody listens"));
    assert!(clock.now().since(began) < SECOND);
    server.comes_back();
    sleep(5 * SECOND).await;
    assert!(pool.get().await.unwrap().is_alive());
    drop(kept);
}

/// And the runtime of the pool has its own.
#[test]
fn pool_whose_runtime_has_ended_says_so_at_once() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (one, other) = (runtime(), runtime());
    let pool = {
        let _here = one.enter();
        let server = Server::default();
        Pool::builder("test", server).size(2).keep_open(0).timeout(5 * SECOND).build().unwrap()
    };
    let mut kept = one.block_on(pool.get()).unwrap();
    let idle = one.block_on(pool.get()).unwrap();
    drop(idle);
    kept.mark_dirty();
    drop(one);
    // Both idle, and one of them to be tested where nothing runs any more.
    drop(kept);
    other.block_on(async {
        let (first, second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
        pool.retire_all();
        drop((first, second));
        let clock = Clock::system();
        let began = clock.now();
        let error = refused(&pool).await;
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.to_string().contains("runtime"), "{error}");
        assert!(clock.now().since(began) < 4 * SECOND, "it waited for nothing");
    });
}

#[tokio::test(start_paused = true)]
async fn error_is_of_the_kind_that_the_pool_was_told() {
    let server = Server::default();
    server.goes_away();
    let builder = builder(&server).adaptive(1..=8).initial(4).keep_open(0);
    let pool = builder.error_kind(|error: &Refused| {
        assert_ne!(error.0, "whatever");
        Some(ErrorKind::TooManyConnections)
    });
    let pool = pool.build().unwrap();
    let error = refused(&pool).await;
    assert_eq!((error.kind(), cause(&error).as_str()), (ErrorKind::TooManyConnections, "nobody listens"));
    assert_eq!(pool.stats().too_many_connections, 1);
}

#[tokio::test(start_paused = true)]
async fn connection_is_judged_by_the_time_at_which_it_is_lent() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    drop(pool.get().await.unwrap());
    let get = pool.get();
    sleep(5 * SECOND).await;
    server.restarts();
    assert!(get.await.unwrap().is_alive(), "idle for five seconds, and not asked");
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_though_openers_panic() {
    let server = Server::default();
    let pool = builder(&server).size(2).keep_open(0).build().unwrap();
    let _held = pool.get().await.unwrap();
    server.plan([Attempt::Panics, Attempt::Panics]);
    let connection = tokio::time::timeout(900 * MILLI, pool.get()).await.unwrap();
    assert!(connection.is_ok(), "a connection was out, so nobody was told");
}

/// Whoever goes away during the test gives back permit and connection.
#[tokio::test(start_paused = true)]
async fn connection_that_is_retired_during_its_test_is_not_lent() {
    for shuts_down in [false, true] {
        let server = Server::default();
        let pool = builder(&server).size(1).build().unwrap();
        drop(pool.get().await.unwrap());
        sleep(5 * SECOND).await;
        server.0.tests_hang.store(true, Ordering::SeqCst);
        let asking = asks(&pool).await;
        let ends = |pool: Pool<Server>| async move {
            match shuts_down {
                true => pool.shutdown(10 * SECOND).await.unwrap(),
                false => pool.retire_all(),
            }
        };
        let ending = tokio::spawn(ends(pool.clone()));
        settle().await;
        server.0.tests_hang.store(false, Ordering::SeqCst);
        let lent = asking.await.unwrap();
        match shuts_down {
            true => assert_eq!(lent.map(|lent| lent.id()).unwrap_err().kind(), ErrorKind::Closed),
            false => assert_eq!(lent.unwrap().id(), 1),
        }
        ending.await.unwrap();
        assert_eq!(server.open(), pool.stats().open);
    }
}

#[tokio::test(start_paused = true)]
async fn caller_that_goes_away_during_the_test_takes_nothing_along() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    drop(pool.get().await.unwrap());
    sleep(5 * SECOND).await;
    server.0.tests_hang.store(true, Ordering::SeqCst);
    assert!(tokio::time::timeout(MILLI, pool.get()).await.is_err());
    assert_eq!((pool.stats().in_use, pool.stats().idle, pool.stats().open), (0, 0, 1));
    let trying = tokio::spawn({
        let pool = pool.clone();
        async move { pool.try_get().await.map(|lent| lent.is_some()) }
    });
    settle().await;
    server.0.tests_hang.store(false, Ordering::SeqCst);
    assert!(trying.await.unwrap().unwrap(), "nobody has it");
    let lent = pool.get().await.unwrap();
    assert_eq!((lent.id(), server.tests()), (0, 1), "it went on");
    assert_eq!(lent.unread, 0, "an answer that nobody read is taken for the next one's");
    drop(lent);
    assert_eq!((pool.stats().in_use, pool.stats().idle, pool.stats().longest.len()), (0, 1, 0));
}

#[test]
fn test_whose_caller_has_gone_goes_on_in_the_runtime_of_the_pool_and_ends_with_it() {
    let server = Server::default();
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (home, other) = (runtime(), runtime());
    let pool = home.block_on(async {
        let pool = builder(&server).size(1).test_after(Duration::ZERO).build().unwrap();
        drop(pool.get().await.unwrap());
        pool
    });
    server.0.tests_hang.store(true, Ordering::SeqCst);
    // It goes on in the pool's own.
    other.block_on(async { tokio::time::timeout(MILLI, pool.get()).await.map(drop).unwrap_err() });
    server.0.tests_hang.store(false, Ordering::SeqCst);
    let lent = home.block_on(async { tokio::time::timeout(10 * SECOND, pool.get()).await.unwrap().unwrap() });
    let id = lent.id();
    drop(lent);
    // And ends with that.
    server.0.tests_hang.store(true, Ordering::SeqCst);
    other.block_on(async { tokio::time::timeout(MILLI, pool.get()).await.map(drop).unwrap_err() });
    drop(home);
    assert_eq!((pool.stats().open, pool.stats().closed.invalid, server.open()), (0, id + 1, 0));
}

#[tokio::test(start_paused = true)]
async fn test_that_panics_ends_the_connection_and_not_its_caller() {
    let server = Server::default();
    let pool = builder(&server).size(2).keep_open(2).connects(2, 1_000.0).build().unwrap();
    sleep(5 * SECOND).await;
    server.0.tests_panic.store(true, Ordering::SeqCst);
    let lent = pool.get().await.unwrap();
    assert_eq!((lent.uses(), pool.stats().closed.invalid), (1, 2), "one that is new");
    drop(lent);
    assert_eq!(pool.stats().in_use, 0);
}

/// Neither is told that the other one has a connection.
#[tokio::test(start_paused = true)]
async fn those_who_would_wait_for_nobody_are_told_why_nothing_is_opened() {
    let server = Server::default();
    server.connecting_takes(10 * MILLI);
    let pool = builder(&server).size(2).keep_open(0).connects(1, 1_000.0).build().unwrap();
    server.goes_away();
    let (one, other) = tokio::join!(pool.try_get(), pool.try_get());
    for answer in [one, other] {
        assert_eq!(answer.map(|lent| lent.is_some()).unwrap_err().kind(), ErrorKind::Unavailable);
    }
    server.comes_back();
    sleep(SECOND).await;
    let _held = pool.get().await.unwrap();
    server.goes_away();
    assert!(pool.try_get().await.unwrap().is_none(), "one may come back");
}

/// Callers who leave before the test is over learn nothing, and so would everybody after them.
#[tokio::test(start_paused = true)]
async fn silent_connection_is_given_up_however_impatient_its_callers_are() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    drop(pool.get().await.unwrap());
    sleep(5 * SECOND).await;
    server.0.tests_hang.store(true, Ordering::SeqCst);
    for _ in 0..25 {
        if let Ok(connection) = tokio::time::timeout(100 * MILLI, pool.get()).await {
            assert_eq!(connection.unwrap().id(), 1);
            assert_eq!((pool.stats().closed.invalid, pool.stats().open), (1, 1));
            return;
        }
    }
    panic!("nobody got one: {:?}", pool.stats());
}

/// In a line that is as long as callers are patient everybody's turn comes when their time is nearly up.
#[tokio::test(start_paused = true)]
async fn caller_whose_turn_came_in_time_is_not_sent_away_over_a_test() {
    let server = Server::default();
    let pool = builder(&server).size(1).timeout(SECOND).build().unwrap();
    let mut held = pool.get().await.unwrap();
    *server.0.testing.lock().unwrap() = 10 * MILLI;
    let waiting = asks(&pool).await;
    sleep(SECOND - 2 * MILLI).await;
    held.mark_dirty();
    drop(held);
    sleep(MILLI).await;
    assert_eq!(waiting.await.unwrap().unwrap().id(), 0);
    assert_eq!((pool.stats().timeouts, pool.stats().closed.invalid), (0, 0));
}

/// Outside of a runtime bb8 panics, which has nothing to do with the connection.
#[tokio::test(start_paused = true)]
async fn get_that_is_polled_outside_of_a_runtime_takes_no_place() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    drop(pool.get().await.unwrap());
    let outside = pool.clone();
    let polled = std::thread::spawn(move || {
        let mut get = std::pin::pin!(outside.get());
        get.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    });
    drop(polled.join());
    assert_eq!((pool.stats().in_use, pool.stats().idle, pool.stats().open), (0, 1, 1));
    assert_eq!(pool.get().await.unwrap().id(), 0);
}

#[tokio::test(start_paused = true)]
async fn connection_of_a_panicking_task_is_closed() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    let task = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _connection = pool.get().await.unwrap();
            panic!("in the middle of a transaction");
        }
    });
    assert!(task.await.is_err());
    assert_eq!(pool.get().await.unwrap().id(), 1);
    assert_eq!((pool.stats().closed.broken, server.open()), (1, 1));
}

/// Whatever the manager panics over is closed, and the pool counts right and goes on looking after itself.
#[tokio::test(start_paused = true)]
async fn connection_at_the_sight_of_which_the_manager_panics_is_broken() {
    let server = Server::default();
    let pool = builder(&server).size(2).connects(4, 1_000.0).build().unwrap();
    let panics = |panics| server.0.looks_panic.store(panics, Ordering::SeqCst);
    let returned = pool.get().await.unwrap();
    panics(true);
    drop(returned);
    panics(false);
    sleep(SECOND).await;
    assert_eq!((pool.stats().open, pool.stats().idle, server.open()), (2, 2, 2), "one that came back");
    panics(true);
    sleep(10 * SECOND).await; // those that are idle are looked at once
    panics(false);
    sleep(SECOND).await;
    assert_eq!((pool.stats().open, pool.stats().idle, server.open()), (2, 2, 2), "some that were idle");
    let held = (pool.get().await.unwrap(), pool.get().await.unwrap());
    assert!(held.0.id().min(held.1.id()) >= 3);
}

// Connecting.

/// HikariCP's spike: 150 ms to connect, 2 ms of work, fifty callers at once.
/// Its end is somebody else's code, and the pool's own task runs it.
#[tokio::test(start_paused = true)]
async fn connection_whose_end_panics_takes_nothing_along() {
    let server = Server::default();
    let pool = builder(&server).size(3).keep_open(0).idle_timeout(SECOND).build().unwrap();
    let held = (pool.get().await.unwrap(), pool.get().await.unwrap(), pool.get().await.unwrap());
    drop(held);
    server.0.ends_panic.store(true, Ordering::SeqCst);
    sleep(15 * SECOND).await;
    assert_eq!((server.open(), pool.stats().open, pool.stats().idle), (0, 0, 0));
    server.0.ends_panic.store(false, Ordering::SeqCst);
    let held = (pool.get().await.unwrap(), pool.get().await.unwrap(), pool.get().await.unwrap());
    drop(held);
    sleep(15 * SECOND).await;
    assert_eq!((server.open(), pool.stats().closed.idle), (0, 6), "the task goes on");
}

#[tokio::test(start_paused = true)]
async fn whoever_tries_waits_for_nobody_to_return_where_none_can_be_opened() {
    let server = Server::default();
    let pool = builder(&server).size(2).keep_open(0).timeout(30 * SECOND).build().unwrap();
    let held = pool.get().await.unwrap();
    let (clock, began) = stopwatch();
    server.goes_away();
    // The attempt fails, and later none is made for the time being.
    for _ in 0..20 {
        assert!(pool.try_get().await.unwrap().is_none());
    }
    assert!(clock.now().since(began) < SECOND, "{:?}", clock.now().since(began));
    server.comes_back();
    sleep(10 * SECOND).await;
    assert!(pool.try_get().await.unwrap().is_some());
    drop(held);
    // One that hangs is waited for, as long as connecting may take.
    let pool = builder(&server).size(2).keep_open(0).connect_timeout(3 * SECOND).build().unwrap();
    let _held = pool.get().await.unwrap();
    server.plan([Attempt::Hangs, Attempt::Hangs]);
    let (clock, began) = stopwatch();
    assert!(pool.try_get().await.unwrap().is_none());
    assert_eq!(clock.now().since(began).as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn whoever_tries_has_what_is_opened_or_comes_back_meanwhile() {
    let server = Server::default();
    server.connecting_takes(SECOND);
    let pool = builder(&server).size(2).keep_open(0).build().unwrap();
    let held = pool.get().await.unwrap();
    let (clock, began) = stopwatch();
    assert!(pool.try_get().await.unwrap().is_some());
    assert_eq!(clock.now().since(began).as_secs(), 1);
    sleep(SECOND).await;
    let pool = builder(&server).size(2).keep_open(0).build().unwrap();
    drop(held);
    let held = pool.get().await.unwrap();
    let trying = tokio::spawn({
        let pool = pool.clone();
        async move { pool.try_get().await }
    });
    settle().await;
    drop(held);
    let (clock, began) = stopwatch();
    assert!(trying.await.unwrap().unwrap().is_some());
    assert_eq!(clock.now().since(began), Duration::ZERO);
}

/// Whoever looks after the pool is not kept from it by those who wait for what is wrong with it.
#[tokio::test(start_paused = true)]
async fn system_class_has_places_of_its_own_in_the_line() {
    let server = Server::default();
    let pool = builder(&server).size(1).max_waiting(1).build().unwrap();
    let held = pool.get().await.unwrap();
    let other = asks(&pool).await;
    let system = asks_for(&pool, Class::SYSTEM).await;
    assert!(!system.is_finished());
    assert_eq!(refused(&pool).await.kind(), ErrorKind::Overloaded);
    let error = pool.get_for(Class::SYSTEM).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "as many, and no more");
    drop(held);
    let held = system.await.unwrap().unwrap();
    assert!(!other.is_finished());
    drop(held);
    drop(other.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn one_of_the_system_class_gets_through_while_all_others_hold_what_they_have() {
    let server = Server::default();
    let pool = builder(&server).adaptive(2..=4).initial(2).connects(8, 1_000.0).build().unwrap();
    let held = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let ordinary = asks(&pool).await;
    let (clock, began) = stopwatch();
    let check = pool.get_for(Class::SYSTEM).await.unwrap();
    assert_eq!(clock.now().since(began), Duration::ZERO);
    assert_eq!((pool.stats().in_use, pool.stats().target, pool.stats().debt), (3, 2, 0));
    let second = asks_for(&pool, Class::SYSTEM).await;
    assert!(!second.is_finished(), "one at a time");
    drop(check);
    let second = second.await.unwrap().unwrap();
    drop(second);
    settle().await;
    assert!(!ordinary.is_finished(), "it was no permit of theirs");
    drop(held);
    drop(ordinary.await.unwrap().unwrap());

    // Not above what the pool may have.
    pool.set_target(4).unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.get().await.unwrap());
    }
    let check = asks_for(&pool, Class::SYSTEM).await;
    assert!(!check.is_finished());
    assert_eq!(server.most_open(), 4);
    drop(held);
    drop(check.await.unwrap().unwrap());
}

/// Law 10, where it was somebody's turn and the connection was no good.
#[tokio::test(start_paused = true)]
async fn caller_whose_connection_fails_its_test_is_still_next() {
    let server = Server::default();
    let pool = builder(&server).size(4).keep_open(0).build().unwrap();
    let (mut first, second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    // Permits are free, and no connection can be opened.
    server.goes_away();
    let (one, two) = (asks(&pool).await, asks(&pool).await);
    first.mark_dirty();
    drop(first);
    settle().await;
    assert_eq!((server.tests(), one.is_finished(), two.is_finished()), (1, false, false));
    drop(second);
    settle().await;
    assert!(one.is_finished() && !two.is_finished());
    drop(one.await.unwrap().unwrap());
    drop(two.await.unwrap().unwrap());
}

/// The same where it was idle: whoever came while it was being tested came later.
#[tokio::test(start_paused = true)]
async fn caller_whose_idle_connection_fails_its_test_is_ahead_of_who_came_meanwhile() {
    let server = Server::default();
    let pool = builder(&server).size(4).keep_open(0).build().unwrap();
    let (first, second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    drop(first);
    sleep(SECOND).await;
    server.goes_away();
    server.0.tests_hang.store(true, Ordering::SeqCst);
    let (one, two) = (asks(&pool).await, asks(&pool).await);
    sleep(5 * SECOND).await;
    assert_eq!((server.tests(), one.is_finished(), two.is_finished()), (1, false, false));
    drop(second);
    settle().await;
    assert!(one.is_finished() && !two.is_finished());
    drop(one.await.unwrap().unwrap());
    drop(two.await.unwrap().unwrap());
}

/// One that takes its time leads to a pool that nobody has any more.
#[tokio::test(start_paused = true)]
async fn attempt_to_connect_keeps_nothing_open_that_nobody_has() {
    let server = Server::default();
    let pool = builder(&server).size(2).connect_timeout(1_000 * SECOND).build().unwrap();
    server.plan([Attempt::Hangs]);
    drop(pool.get().await.unwrap());
    settle().await;
    assert_eq!((server.open(), pool.stats().idle), (1, 1));
    drop(pool);
    settle().await;
    assert_eq!(server.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn burst_opens_few_connections_because_returned_ones_come_sooner() {
    let server = Server::default();
    server.connecting_takes(150 * MILLI);
    let pool = builder(&server).size(50).keep_open(5).connects(5, 1_000.0).build().unwrap();
    sleep(SECOND).await;
    assert_eq!(server.attempts(), 5);
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let _connection = pool.get().await.unwrap();
                sleep(2 * MILLI).await;
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    sleep(SECOND).await;
    assert!(server.attempts() <= 10, "{} connects for a burst of 20 ms", server.attempts());
}

#[tokio::test(start_paused = true)]
async fn server_is_not_stormed() {
    let server = Server::default();
    server.connecting_takes(10 * MILLI);
    let pool = builder(&server).size(40).keep_open(0).connects(2, 10.0).build().unwrap();
    let mut callers = Vec::new();
    for _ in 0..40 {
        callers.push(asks(&pool).await);
    }
    let (clock, began) = stopwatch();
    for caller in callers {
        std::mem::forget(caller.await.unwrap().unwrap());
    }
    assert_eq!(server.0.most_connecting.load(Ordering::SeqCst), 2);
    let seconds = clock.now().since(began).as_secs_f64();
    assert!((3.0..5.0).contains(&seconds), "38 connections at 10 a second took {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn work_of_a_caller_that_went_away_is_for_the_next_one() {
    let server = Server::default();
    server.connecting_takes(SECOND);
    let pool = builder(&server).size(1).keep_open(0).build().unwrap();
    assert!(tokio::time::timeout(500 * MILLI, pool.get()).await.is_err());
    let (clock, began) = stopwatch();
    assert!(pool.get().await.is_ok());
    assert_eq!((clock.now().since(began).as_millis(), server.attempts()), (500, 1));
}

// Ageing.

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_down_to_those_that_are_kept_open() {
    let server = Server::default();
    let pool =
        builder(&server).size(8).keep_open(2).idle_timeout(30 * SECOND).max_life(None).build().unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(pool.get().await.unwrap());
    }
    drop(held);
    sleep(25 * SECOND).await;
    assert_eq!(server.open(), 8);
    sleep(20 * SECOND).await;
    assert_eq!((server.open(), pool.stats().closed.idle), (2, 6));
    sleep(600 * SECOND).await;
    assert_eq!(server.attempts(), 8, "nothing is closed and opened again");
}

#[tokio::test(start_paused = true)]
async fn connections_that_were_opened_together_are_not_closed_together() {
    let server = Server::default();
    let pool = builder(&server).size(20).max_life(1_000 * SECOND).connects(20, 1_000.0).build().unwrap();
    sleep(880 * SECOND).await;
    assert_eq!((server.open(), server.attempts()), (20, 20));
    let mut open_at = Vec::new();
    for _ in 0..14 {
        sleep(10 * SECOND).await;
        open_at.push(pool.stats().closed.expired);
    }
    assert_eq!(*open_at.last().unwrap(), 20);
    let most = open_at.windows(2).map(|two| two[1] - two[0]).max().unwrap();
    assert!(most <= 12, "{open_at:?}");
    assert_eq!(server.open(), 20, "and others are open in their place");
}

#[tokio::test(start_paused = true)]
async fn retire_all_closes_idle_ones_soon_and_lent_ones_on_return() {
    let server = Server::default();
    let pool = builder(&server).size(4).connects(4, 1_000.0).build().unwrap();
    sleep(SECOND).await;
    let held = pool.get().await.unwrap();
    pool.retire_all();
    settle().await;
    assert_eq!(pool.stats().closed.retired, 3);
    drop(held);
    assert_eq!(pool.stats().closed.retired, 4);
    sleep(SECOND).await;
    assert_eq!((server.open(), server.attempts()), (4, 8));
    assert!(pool.get().await.unwrap().id() >= 4);
}

// The end.

#[tokio::test(start_paused = true)]
async fn shutdown_sends_waiters_away_and_waits_for_holders() {
    let server = Server::default();
    let pool = builder(&server).size(1).build().unwrap();
    let held = pool.get().await.unwrap();
    let waiter = asks(&pool).await;
    let late = pool.shutdown(SECOND).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    assert!(late.to_string().contains("tests/pool.rs"), "{late}");
    assert_eq!(waiter.await.unwrap().map(drop).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(refused(&pool).await.kind(), ErrorKind::Closed);
    let ending = tokio::spawn({
        let pool = pool.clone();
        async move { pool.shutdown(SECOND).await }
    });
    settle().await;
    drop(held);
    ending.await.unwrap().unwrap();
    assert_eq!(server.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn shutdown_sends_away_whoever_waits_for_a_connect() {
    let server = Server::default();
    server.plan([Attempt::Hangs]);
    let pool = builder(&server).size(1).keep_open(0).build().unwrap();
    let waiter = asks(&pool).await;
    pool.shutdown(SECOND).await.unwrap();
    assert_eq!(waiter.await.unwrap().map(drop).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(pool.stats().in_use, 0);
}

/// He has his turn already, and joins those who wait for a connection when they were all sent away.
#[tokio::test(start_paused = true)]
async fn shutdown_sends_away_whoever_was_testing_a_connection() {
    let server = Server::default();
    let pool = builder(&server).size(1).test_timeout(SECOND).timeout(30 * SECOND).build().unwrap();
    drop(pool.get().await.unwrap());
    sleep(5 * SECOND).await;
    server.0.tests_hang.store(true, Ordering::SeqCst);
    let caller = asks(&pool).await;
    pool.shutdown(5 * SECOND).await.unwrap();
    let (clock, began) = stopwatch();
    let error = caller.await.unwrap().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    assert!(clock.now().since(began) < SECOND);
}

#[tokio::test(start_paused = true)]
async fn everything_is_closed_when_the_last_handle_and_the_last_connection_are_gone() {
    let server = Server::default();
    let pool = builder(&server).size(4).connects(4, 1_000.0).build().unwrap();
    sleep(SECOND).await;
    let held = pool.get().await.unwrap();
    drop(pool);
    assert_eq!(server.open(), 4);
    drop(held);
    settle().await;
    assert_eq!(server.open(), 0);
    assert_eq!(Arc::strong_count(&server.0), 1, "a task is left");
}

#[tokio::test(start_paused = true)]
async fn connection_may_be_dropped_outside_of_the_runtime() {
    let server = Server::default();
    let pool = builder(&server).size(1).keep_open(0).build().unwrap();
    let mut connection = pool.get().await.unwrap();
    connection.mark_broken();
    let waiter = asks(&pool).await;
    std::thread::spawn(move || drop(connection)).join().unwrap();
    assert!(waiter.await.unwrap().is_ok());
}

// What else.

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_may() {
    let server = Server::default();
    let pool = builder(&server).size(1).max_waiting(1).build().unwrap();
    let _held = pool.get().await.unwrap();
    let _waiter = asks(&pool).await;
    let error = refused(&pool).await;
    assert_eq!((error.kind(), pool.stats().overloads), (ErrorKind::Overloaded, 1));
}

#[tokio::test(start_paused = true)]
async fn leaks_are_counted_and_told_once_each() {
    let (server, log) = (Server::default(), Log::hear());
    let pool = builder(&server).size(2).leak_threshold(5 * SECOND).class("reports", Share::new());
    let pool = pool.build().unwrap();
    let held = pool.get_for(pool.class("reports").unwrap()).await.unwrap();
    sleep(30 * SECOND).await;
    let stats = pool.stats();
    assert_eq!(stats.leaks, 1);
    assert_eq!(stats.longest[0].held.as_secs(), 30);
    assert!(stats.longest[0].place.file().ends_with("pool.rs"));
    drop(held);
    assert!(pool.stats().longest.is_empty());
    let said = log.at_least(Level::INFO);
    assert!(said[0].starts_with("a connection is held for long") && said.len() == 2, "{said:?}");
    assert_eq!(said[1], "a connection was returned late");
    assert_eq!(log.fields("class"), [r#""reports""#]);
    let places = log.fields("place");
    assert!(places.iter().all(|place| place.contains("tests/pool.rs:")) && places.len() == 2, "{places:?}");
}

#[tokio::test(start_paused = true)]
async fn server_that_goes_and_comes_back_is_one_line_each() {
    let (server, log) = (Server::default(), Log::hear());
    server.goes_away();
    let pool = builder(&server).size(2).build().unwrap();
    for _ in 0..20 {
        refused(&pool).await;
        sleep(SECOND).await;
    }
    server.comes_back();
    sleep(5 * SECOND).await;
    drop(pool.get().await.unwrap());
    let said = ["cannot connect; tries again after pauses", "connects again"];
    assert_eq!(log.at_least(Level::INFO), said);
    assert!(log.fields("cause")[0].contains("test"), "{:?}", log.fields("cause"));
}

#[tokio::test(start_paused = true)]
async fn utilisation_and_hold_times_are_by_time() {
    let server = Server::default();
    let pool = builder(&server).size(4).build().unwrap();
    let held = (pool.get().await.unwrap(), pool.get().await.unwrap());
    sleep(10 * SECOND).await;
    assert!((pool.stats().utilisation - 0.5).abs() < 0.01);
    drop(held);
    let stats = pool.stats();
    assert_eq!((stats.gets, stats.returns), (2, 2));
    assert_eq!(stats.hold_p50.as_secs(), 10);
    assert_eq!(stats.wait_p99, Duration::ZERO);
}

#[tokio::test]
async fn impossible_settings_are_named() {
    let server = Server::default();
    let all = || builder(&server);
    let sure = |connections| Share::new().guarantee(connections);
    let wrong = [
        ("size", all().size(0)),
        ("floor", all().adaptive(std::ops::RangeInclusive::new(5, 4))),
        ("floor", all().observe(0..=4)),
        ("ceiling", all().adaptive(1..=u32::MAX)),
        ("initial", all().observe(2..=4).initial(9)),
        ("keep_open", all().size(2).keep_open(3)),
        ("timeout", all().timeout(Duration::ZERO)),
        ("connect_timeout", all().connect_timeout(Duration::ZERO)),
        ("connect_timeout", all().connect_timeout(Duration::MAX)),
        ("max_life", all().max_life(Duration::MAX)),
        ("idle_timeout", all().idle_timeout(Duration::ZERO)),
        ("connects", all().connects(0, 1.0)),
        ("connects", all().connects(1, f64::NAN)),
        ("max_waiting", all().max_waiting(0)),
        ("guarantee", all().size(4).class("a", sure(2)).class("b", sure(2))),
        ("guarantee", all().size(4).class("a", sure(u32::MAX)).class("b", sure(u32::MAX))),
        ("guarantee", all().size(1).system_reserve(1)),
        ("guarantee", all().observe(1..=9).initial(2).class("a", sure(2))),
        // As many as this machine's processors and memory speak for.
        ("guarantee", all().observe(1..=1_048_576).class("a", sure(1_048_575))),
        ("gain", all().size(4).gain(Gain::LATENCY)),
        ("sizing", all().size(4).sizing(Fixed::new(4))),
        ("gain", all().adaptive(1..=4).gain(Gain::LATENCY).sizing(Fixed::new(4))),
        ("class", all().class("a", Share::new()).class("a", Share::new())),
        ("class", all().class("system", Share::new())),
        ("class", all().class("a", Share::new().at_most(0))),
        ("class", all().class("a", sure(3).at_most(2))),
    ];
    for (field, builder) in wrong {
        let error = builder.build().map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().starts_with(field), "{field}: {error}");
    }
    let (one, other) = (all().build().unwrap(), all().class("a", Share::new()).build().unwrap());
    let foreign = other.class("a").unwrap();
    assert_eq!(one.get_for(foreign).await.map(drop).unwrap_err().kind(), ErrorKind::Configuration);
    assert!(one.class("a").is_err() && one.set_target(0).is_err() && one.set_target(11).is_err());
}

#[test]
fn pool_without_a_runtime_is_an_error() {
    let error = builder(&Server::default()).build().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
}
