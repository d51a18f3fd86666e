//! A whole pool at a server that has a knee, under paused time: gate, supply, measurement and decision together, where
//! `tests/sizing.rs` has the decision alone.

#![cfg(all(feature = "pool", feature = "test-util"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    clock::Clock,
    pool::{
        Pool, PoolBuilder, Share, Sizing,
        sizing::{Decision, Fixed, Gain, Reason, Sample},
    },
    testing::{FakeServer, Usl},
};
use support::log::Log;
use tokio::{task::JoinHandle, time::sleep};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Of one query alone. Tokio's timers count milliseconds.
const WORK: Duration = Duration::from_millis(40);
const CEILING: u32 = 64;

/// Best at eight.
fn usl() -> Usl {
    Usl::new(0.15, 0.013)
}

/// Queries a second at the best size.
fn best() -> f64 {
    let most = (1..=CEILING).map(|size| usl().throughput(size)).fold(0.0, f64::max);
    most / WORK.as_secs_f64()
}

type Fake = Pool<FakeServer>;

fn builder(server: &FakeServer) -> PoolBuilder<FakeServer> {
    let builder = Pool::builder("test", server.clone()).clock(Clock::tokio()).connects(8, 1_000.0);
    builder.timeout(10 * SECOND).adaptive(1..=CEILING).initial(4)
}

/// What comes from outside: so many calls a second, whatever becomes of the ones before.
struct Load {
    rate: Arc<AtomicU64>,
    calls: JoinHandle<()>,
}

impl Load {
    fn start(pool: &Fake, rate: f64) -> Self {
        let load = Arc::new(AtomicU64::new(rate.to_bits()));
        let (pool, rate) = (pool.clone(), Arc::clone(&load));
        let calls = tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(1);
            let mut owed = 0.0;
            loop {
                // In pieces of five milliseconds, each of which brings by chance what falls to it.
                sleep(Duration::from_millis(5)).await;
                owed += f64::from_bits(rate.load(Ordering::Relaxed)) * 0.01 * random.f64();
                while owed >= 1.0 {
                    owed -= 1.0;
                    tokio::spawn(call(pool.clone()));
                }
            }
        });
        Self { rate: load, calls }
    }

    fn set(&self, rate: f64) {
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.calls.abort();
    }
}

async fn call(pool: Fake) {
    // Where there is more than can be done, some are turned away.
    if let Ok(mut connection) = pool.get().await {
        let _ = connection.query(WORK).await;
    }
}

/// Queries a second, over a minute, as a share of what the best size does.
async fn done(server: &FakeServer) -> f64 {
    let before = server.stats().queries;
    sleep(MINUTE).await;
    let queries = u32::try_from(server.stats().queries - before).unwrap();
    f64::from(queries) / MINUTE.as_secs_f64() / best()
}

/// What became of a pool: in its second minute, with everything three times slower, and its size when half of the load
/// had been gone for five minutes.
async fn course(server: &FakeServer, pool: &Fake) -> (f64, f64, u32) {
    let load = Load::start(pool, 1.05 * best());
    sleep(MINUTE).await;
    let before = done(server).await;
    server.slow_down(3.0);
    load.set(1.05 * best() / 3.0);
    sleep(MINUTE).await;
    let after = 3.0 * done(server).await;
    server.slow_down(1.0);
    load.set(best() / 2.0);
    sleep(5 * MINUTE).await;
    (before, after, pool.stats().target)
}

#[tokio::test(start_paused = true)]
async fn pool_finds_the_size_at_which_its_server_does_most_and_tells_how() {
    let log = Log::hear();
    for seed in 1..=5 {
        // When trials are made is drawn.
        fastrand::seed(seed);
        let server = FakeServer::new(usl()).connecting(SECOND / 50);
        let pool = builder(&server).build().unwrap();
        let (before, after, target) = course(&server, &pool).await;
        assert!(before >= 0.95 && after >= 0.95, "seed {seed}: {before:.3}, {after:.3}");
        assert!(target <= 10, "seed {seed}: {:?}", pool.stats());
        assert!(server.stats().open_max <= CEILING);
    }
    // Every decision is a line, those that leave the size as it is because it paid, too.
    let reasons = log.fields("reason");
    let [tried, kept, taken_back] = ["trying whether more", "kept: ", "taken back: "]
        .map(|reason| reasons.iter().filter(|line| line.contains(reason)).count());
    assert!(tried > 0 && kept > 0 && taken_back > 0, "{reasons:#?}");
    for field in ["old", "new", "max_waiting", "timeouts", "ceiling", "too_many_connections"] {
        assert_eq!(log.fields(field).len(), reasons.len(), "{field}");
    }
}

#[tokio::test(start_paused = true)]
async fn pool_stops_growing_where_its_gain_says() {
    let mut ends = Vec::new();
    for gain in [Gain::LATENCY, Gain::THROUGHPUT, Gain::new(0.02).unwrap()] {
        fastrand::seed(1);
        let server = FakeServer::new(Usl::new(0.1, 0.002)).connecting(SECOND / 50);
        let pool = builder(&server).gain(gain).build().unwrap();
        // More than can be done with any number.
        let _load = Load::start(&pool, 500.0);
        sleep(3 * MINUTE).await;
        ends.push(pool.stats().proven);
    }
    assert!(ends.is_sorted() && ends[0] + 2 <= ends[2], "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn pool_that_observes_says_what_it_would_do_and_does_nothing() {
    let log = Log::hear();
    let server = FakeServer::new(usl()).connecting(SECOND / 50);
    let pool = builder(&server).observe(2..=CEILING).initial(2).build().unwrap();
    let load = Load::start(&pool, best());
    sleep(MINUTE).await;
    drop(load);
    assert_eq!(pool.stats().target, 2);
    let (reasons, followed) = (log.fields("reason"), log.fields("is_followed"));
    assert!(!reasons.is_empty() && reasons.iter().all(|line| line.contains("trying")), "{reasons:#?}");
    assert!(followed.len() == reasons.len() && followed.iter().all(|is| is == "false"));
    assert!(log.fields("old").iter().all(|old| old == "2"));
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_beyond_the_bounds_is_one_change_and_one_line() {
    let log = Log::hear();
    let server = FakeServer::new(usl()).connecting(SECOND / 50);
    let pool = builder(&server).adaptive(2..=10).initial(4).sizing(Fixed::new(30)).build().unwrap();
    sleep(MINUTE).await;
    assert_eq!(
        (pool.stats().target, log.fields("old"), log.fields("new")),
        (10, vec!["4".into()], vec!["10".into()])
    );
    // What others put in force is told, too, by an algorithm that goes on from there.
    let other = builder(&server).adaptive(2..=10).initial(4).build().unwrap();
    other.set_target(9).unwrap();
    sleep(2 * SECOND).await;
    assert_eq!(
        (log.fields("old").pop().unwrap(), log.fields("new").pop().unwrap()),
        ("4".into(), "9".into())
    );
    drop(other);
    let log = Log::hear();
    pool.set_target(4).unwrap();
    sleep(MINUTE).await;
    assert_eq!((pool.stats().target, log.fields("old")), (10, vec!["4".into()]));
}

/// What is kept for others is no room for those who wait; and who may have no more is not helped by more.
#[tokio::test(start_paused = true)]
async fn pool_that_keeps_some_for_others_grows_and_one_whose_callers_may_have_no_more_does_not() {
    let server = FakeServer::new(usl()).connecting(SECOND / 50);
    let builder = |server: &FakeServer| builder(server).adaptive(4..=CEILING).initial(4);
    let pool = builder(&server).system_reserve(1).class("quiet", Share::new().guarantee(2)).build().unwrap();
    let load = Load::start(&pool, 1.05 * best());
    sleep(5 * MINUTE).await;
    let done = done(&server).await;
    assert!(done >= 0.9, "{done}, {:?}", pool.stats());
    drop(load);
    sleep(MINUTE).await; // who waits still has been served, and this pool says no more

    let server = FakeServer::new(usl()).connecting(SECOND / 50);
    let pool = builder(&server).class("few", Share::new().at_most(2)).build().unwrap();
    let few = pool.class("few").unwrap();
    let log = Log::hear();
    for _ in 0..20 {
        let pool = pool.clone();
        tokio::spawn(async move {
            while let Ok(mut connection) = pool.get_for(few).await {
                connection.query(WORK).await.unwrap();
            }
        });
    }
    sleep(5 * MINUTE).await;
    assert_eq!((pool.stats().target, pool.stats().open <= 4), (4, true), "{:?}", pool.stats());
    assert!(
        !log.fields("reason").iter().any(|reason| reason.contains("more")),
        "{:#?}",
        log.fields("reason")
    );
}

/// Those that wait for their own class are no reason to keep as many as the others needed in the busy hours.
#[tokio::test(start_paused = true)]
async fn pool_whose_reports_wait_for_each_other_comes_down_to_what_is_of_use() {
    let server = FakeServer::new(usl()).connecting(SECOND / 50);
    let pool = builder(&server).initial(8).class("reports", Share::new().at_most(2)).build().unwrap();
    let reports = pool.class("reports").unwrap();
    let load = Load::start(&pool, 1.05 * best());
    sleep(5 * MINUTE).await;
    load.set(best() / 20.0);
    for _ in 0..10 {
        let pool = pool.clone();
        tokio::spawn(async move {
            while let Ok(mut connection) = pool.get_for(reports).await {
                connection.query(25 * WORK).await.unwrap();
            }
        });
    }
    sleep(10 * MINUTE).await;
    let log = Log::hear();
    sleep(10 * MINUTE).await;
    let stats = pool.stats();
    assert!(stats.target <= 5, "{stats:?}");
    assert!(log.fields("reason").len() <= 8, "{:#?}", log.fields("reason"));
}

/// One more whenever somebody waits.
struct Naive(u32);

impl Sizing for Naive {
    fn step(&mut self, sample: &Sample, _: Duration) -> Decision {
        if sample.max_waiting > 0 {
            self.0 = (self.0 + 2).min(CEILING);
        }
        Decision::new(self.0, Reason::Rule("callers wait"))
    }

    fn target(&self) -> u32 {
        self.0
    }

    fn proven(&self) -> u32 {
        self.0
    }
}

#[tokio::test(start_paused = true)]
async fn pool_that_grows_because_callers_wait_collapses() {
    let server = FakeServer::new(usl()).connecting(SECOND / 50);
    let pool = builder(&server).sizing(Naive(4)).build().unwrap();
    let (before, after, target) = course(&server, &pool).await;
    assert!(before < 0.5 && after < 0.5 && target == CEILING, "{before:.3}, {after:.3}, {target}");
}

/// What a trial of fewer costs, where it turns out to be too few at once.
#[tokio::test(start_paused = true)]
async fn trial_of_fewer_is_given_up_before_the_line_is_long() {
    // Each connection does its part, so that every one less is work that piles up: forty-four calls a second with six.
    let server = FakeServer::new(Usl::new(0.0, 0.0)).connecting(SECOND / 50);
    let log = Log::hear();
    let pool = builder(&server).adaptive(2..=8).initial(8).build().unwrap();
    let load = Load::start(&pool, 0.97 * 8.0 / WORK.as_secs_f64());
    let mut most = 0;
    for _ in 0..900 {
        sleep(SECOND).await;
        most = most.max(pool.stats().waiting);
    }
    drop(load);
    let reasons = log.fields("reason");
    assert!(reasons.iter().any(|reason| reason.starts_with("taken back at once")), "{reasons:#?}");
    assert!(most < 500, "{most} waited, {reasons:#?}");
}
