//! P3: the server is three times slower for a while, every backend is killed, the server is restarted without a word,
//! and all the time one caller in ten goes away in the middle.
//!
//! Eight connections (`p3_adaptive`: ours, at two to eight), 32 callers. A call sees whose session it got, marks it as its own within a transaction, updates a
//! row and commits. The mark is gone when the transaction is: whoever finds one has somebody else's transaction, and
//! so has whoever is told that the transaction has failed before he began one.
//!
//! Afterwards all eight have to be there for one who asks for all of them: what is missing has leaked. A pool has
//! recovered when within half a second nine tenths of what was done before are done again.
//!
//! The server is slower because others want its core, twice as many as it has backends: what a call takes then is told
//! for every pool, and so is when each has recovered from it.
//!
//! Failed calls are not the fewer the better: a pool that tells its callers at once that the server is away lets them
//! fail, and ask again after 10 ms, where another one keeps them waiting and says nothing.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_postgres::error::SqlState;

use super::{
    Effort,
    load::{in_microseconds, percentile},
    peers::{self, Peer, Session},
    site::{Placement, Site, TIMEOUT},
    work::Sql,
};
use crate::{figure::Figure, measure::Stopwatch};

const SIZE: u32 = 8;
/// Of a pool of ours that finds its size.
const FLOOR: u32 = 2;
const CALLERS: u64 = 32;
/// One call in so many is given up, after less than so many microseconds.
const CANCELLED: u32 = 10;
/// How many others want the server's core while it is slow.
const CROWD: u32 = 2 * SIZE;
/// Slow is who does no more than this share of what was done before.
const SLOW: f64 = 0.6;
const PATIENCE: u64 = 5_000;
const AFTER_FAILURE: Duration = Duration::from_millis(10);
const WINDOW: Duration = Duration::from_millis(500);
const RECOVERED: f64 = 0.9;
/// In milliseconds.
const RECOVERY: f64 = 5_000.0;
const KILL: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
    where backend_type = 'client backend' and pid <> pg_backend_pid()";

struct Phases {
    /// For a pool that finds its size.
    learning: Duration,
    before: Duration,
    slow: Duration,
    /// How long a recovery is waited for.
    after: Duration,
}

/// What the callers came to so far.
#[derive(Default)]
struct Watch {
    done: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    wrong: AtomicU64,
    is_over: AtomicBool,
    /// How long the calls took that began while the server was slow and went well, in microseconds.
    slow: Mutex<Vec<u32>>,
    is_slow: AtomicBool,
}

/// The whole of it. Times are in seconds.
struct Outcome {
    /// What is done in a second while nothing happens.
    rate: f64,
    slow_rate: f64,
    slow_p99: f64,
    after_slow: f64,
    after_kill: f64,
    after_restart: f64,
    failed: u64,
    wrong: u64,
    leaked: u64,
}

pub(super) fn run(effort: Effort) -> Result<()> {
    let phases = Phases {
        learning: effort.pick(Duration::from_secs(60), Duration::from_secs(10)),
        before: effort.pick(Duration::from_secs(20), Duration::from_secs(3)),
        slow: effort.pick(Duration::from_secs(30), Duration::from_secs(3)),
        after: effort.pick(Duration::from_secs(60), Duration::from_secs(10)),
    };
    let fixed = async |url: &str| Ok(peers::ours(url)?.size(SIZE).build()?);
    let at_once = Duration::from_secs(1); // all are open
    let ours = disturb("ours", &phases, at_once, fixed, |_| Ok(()))?;
    let adaptive = async |url: &str| Ok(peers::ours(url)?.adaptive(FLOOR..=SIZE).build()?);
    let all = |pool: &peers::Ours| Ok(pool.set_target(SIZE)?);
    let adaptive = disturb("ours, adaptive", &phases, phases.learning, adaptive, all)?;
    let bb8 = async |url: &str| peers::bb8_that_tests(url, SIZE, true).await;
    let bb8 = disturb("bb8", &phases, at_once, bb8, |_| Ok(()))?;
    let deadpool = async |url: &str| peers::deadpool(url, SIZE);
    let deadpool = disturb("deadpool", &phases, at_once, deadpool, |_| Ok(()))?;

    show("pool.p3", &ours, &bb8, &deadpool);
    show("pool.p3_adaptive", &adaptive, &bb8, &deadpool);
    Ok(())
}

fn show(case: &str, ours: &Outcome, bb8: &Outcome, deadpool: &Outcome) {
    let count = |name: &str, count: fn(&Outcome) -> u64| {
        Figure::count(&format!("{case}.{name}"), count(ours))
            .rival("bb8", count(bb8) as f64)
            .rival("deadpool", count(deadpool) as f64)
    };
    count("leaked_permits", |outcome| outcome.leaked).at_most(0.0).print();
    count("wrong_state_borrows", |outcome| outcome.wrong).at_most(0.0).print();
    count("failed_calls", |outcome| outcome.failed).print();
    count("calls_per_second", |outcome| outcome.rate as u64).print();
    count("slow_calls_per_second", |outcome| outcome.slow_rate as u64).print();
    let time = |name: &str, time: fn(&Outcome) -> f64| {
        let figure = Figure::milliseconds(&format!("{case}.{name}"), time(ours));
        figure.rival("bb8", time(bb8)).rival("deadpool", time(deadpool))
    };
    time("slow_p99", |outcome| outcome.slow_p99).print();
    time("recovery_after_slow", |outcome| outcome.after_slow).at_most(RECOVERY).print();
    time("recovery_after_kill", |outcome| outcome.after_kill).at_most(RECOVERY).print();
    time("recovery_after_restart", |outcome| outcome.after_restart).at_most(RECOVERY).print();
}

/// On a server of its own, since the last one may have left it in a bad way. `all` has the pool lend as many as it may.
fn disturb<P: Peer>(
    name: &str,
    phases: &Phases,
    warm_up: Duration,
    pool: impl AsyncFn(&str) -> Result<P>,
    all: impl FnOnce(&P) -> Result<()>,
) -> Result<Outcome> {
    let mut site = Site::start(Placement::Apart, 100)?;
    let url = site.url();
    let watch = Arc::new(Watch::default());
    let pool = site.runtime.block_on(pool(&url))?;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn_on(call_again(pool.clone(), Arc::clone(&watch), caller), site.runtime.handle());
    }
    // This thread is not one of the runtime's, so it may block.
    std::thread::sleep(warm_up);
    let rate = watch.rate(phases.before);
    let slow_rate = {
        let _crowd = site.crowd(CROWD)?;
        watch.is_slow.store(true, Ordering::Relaxed);
        watch.rate(phases.slow)
    };
    watch.is_slow.store(false, Ordering::Relaxed);
    ensure!(slow_rate < SLOW * rate, "the server was not slow: {slow_rate:.0}/s of {rate:.0}/s");
    let after_slow = watch.recovery(rate, phases.after);
    site.sql(KILL)?;
    let after_kill = watch.recovery(rate, phases.after);
    site.restart()?;
    let after_restart = watch.recovery(rate, phases.after);
    watch.is_over.store(true, Ordering::Relaxed);

    let leaked = site.runtime.block_on(async {
        callers.join_all().await;
        all(&pool)?;
        anyhow::Ok(missing(&pool).await)
    })?;
    let [failed, wrong, cancelled] =
        [&watch.failed, &watch.wrong, &watch.cancelled].map(|count| count.load(Ordering::Relaxed));
    eprintln!(
        "pool.p3: {name}: {rate:.0} calls/s, {slow_rate:.0} while the server was slow, {cancelled} cancelled, \
         {failed} failed"
    );
    let slow_p99 = watch.slow_percentile(0.99);
    Ok(Outcome { rate, slow_rate, slow_p99, after_slow, after_kill, after_restart, failed, wrong, leaked })
}

async fn call_again<P: Peer>(pool: P, watch: Arc<Watch>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    while !watch.is_over.load(Ordering::Relaxed) {
        let account = random.i64(1..=1_000);
        let patience = match random.u32(..CANCELLED) {
            0 => Duration::from_micros(random.u64(..PATIENCE)),
            _ => 2 * TIMEOUT,
        };
        let (stopwatch, is_slow) = (Stopwatch::start(), watch.is_slow.load(Ordering::Relaxed));
        match timeout(patience, call(&pool, &watch, account)).await {
            Ok(Ok(())) => watch.count_done(stopwatch.elapsed(), is_slow),
            Ok(Err(_)) => {
                watch.failed.fetch_add(1, Ordering::Relaxed);
                sleep(AFTER_FAILURE).await;
            }
            Err(_) => drop(watch.cancelled.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

async fn call<P: Peer>(pool: &P, watch: &Watch, account: i64) -> Result<()> {
    let mut session = pool.get().await?;
    let is_wrong = match session.query(Sql::Owner, &[]).await {
        Ok(rows) => !rows.first().context("no row")?.try_get::<_, String>(0)?.is_empty(),
        Err(error) if is_of_failed_transaction(&error) => true,
        Err(error) => return Err(error),
    };
    watch.wrong.fetch_add(u64::from(is_wrong), Ordering::Relaxed);
    session.transaction(&[(Sql::Own, &[account]), (Sql::UpdateAccount, &[account, 1])]).await
}

fn is_of_failed_transaction(error: &anyhow::Error) -> bool {
    let driver = error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    driver.and_then(tokio_postgres::Error::code) == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
}

/// How many connections cannot be had when nobody has any.
async fn missing<P: Peer>(pool: &P) -> u64 {
    let mut held = Vec::new();
    for taken in 0..SIZE {
        match timeout(TIMEOUT, pool.get()).await {
            Ok(Ok(session)) => held.push(session),
            Ok(Err(_)) | Err(_) => return u64::from(SIZE - taken),
        }
    }
    0
}

impl Watch {
    /// Those that began while the server was slow have to wait for it, however long they take.
    fn count_done(&self, took: Duration, is_slow: bool) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if is_slow {
            self.slow.lock().unwrap_or_else(PoisonError::into_inner).push(in_microseconds(took));
        }
    }

    /// In seconds.
    fn slow_percentile(&self, share: f64) -> f64 {
        let mut times = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        percentile(&mut times, share)
    }

    /// Calls a second, for so long.
    fn rate(&self, span: Duration) -> f64 {
        let (stopwatch, before) = (Stopwatch::start(), self.done.load(Ordering::Relaxed));
        std::thread::sleep(span);
        (self.done.load(Ordering::Relaxed) - before) as f64 / stopwatch.elapsed().as_secs_f64()
    }

    /// After how many seconds it is nearly as before. Infinite if that takes too long.
    fn recovery(&self, before: f64, patience: Duration) -> f64 {
        let stopwatch = Stopwatch::start();
        while stopwatch.elapsed() < patience {
            let began = stopwatch.elapsed();
            if self.rate(WINDOW) >= RECOVERED * before {
                return began.as_secs_f64();
            }
        }
        f64::INFINITY
    }
}
