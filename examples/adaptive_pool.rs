// DATABASE_URL=postgres://user:password@localhost/database cargo run --release --example adaptive_pool
//
//! A pool that finds its own size, live: callers who come back at once, of whom half leave after a while, and each
//! second what the pool does, with every decision and its reason. It reads no table and changes nothing in the database. The
//! argument is how many seconds it runs: 30 unless given.

#![expect(clippy::disallowed_methods, reason = "its stopwatch is not the clock of the thing it measures")]

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mcp_perf::{
    Error,
    pool::{
        Pool, Stats,
        sizing::{Bounds, Decision, Reason, Sample, Sizing, ThroughputVerified},
    },
    postgres::PostgresManager,
};
use tokio::task::JoinSet;

const FLOOR: u32 = 2;
const CEILING: u32 = 24;
const CALLERS: usize = 32;
/// Some work for a processor, and a moment of waiting for something else, as a disk.
const QUERY: &str = "select sum(i * i), pg_sleep(0.002) from generate_series(1, 10000) as i";
const HOW_TO_START_ONE: &str = "\
DATABASE_URL is not set. With Docker, a database of its own for this:

    docker run --rm --name adaptive-pool -e POSTGRES_PASSWORD=example -p 55432:5432 postgres
    # and then, in another terminal:
    DATABASE_URL=postgres://postgres:example@127.0.0.1:55432/postgres cargo run --release --example adaptive_pool

or with the programs of an installed PostgreSQL, which do not run as root:

    initdb --pgdata=/tmp/adaptive-pool --username=postgres --auth=trust
    postgres -D /tmp/adaptive-pool -p 55432 -c unix_socket_directories=
    # and then, in another terminal:
    DATABASE_URL=postgres://postgres@127.0.0.1:55432/postgres cargo run --release --example adaptive_pool";

/// The default algorithm, which says what it does. A pool logs the same by `tracing`; this is to show that an
/// algorithm of one's own is a type with three methods.
struct Aloud(ThroughputVerified);

impl Sizing for Aloud {
    #[expect(clippy::print_stdout, reason = "it is what the example is for")]
    fn step(&mut self, sample: &Sample, now: Duration) -> Decision {
        let old = self.0.target();
        let decision = self.0.step(sample, now);
        let is_verdict = matches!(
            decision.reason,
            Reason::Kept { .. }
                | Reason::DemandMet
                | Reason::Reverted { .. }
                | Reason::Retreated
                | Reason::Quicker { .. }
                | Reason::NotQuicker { .. }
                | Reason::Void
        );
        // In a trial the two sizes take turns, second by second.
        let is_turn = matches!(decision.reason, Reason::Measuring);
        if is_verdict || decision.target != old && !is_turn {
            println!("        size {old} -> {}: {}", decision.target, decision.reason);
        }
        decision
    }

    fn target(&self) -> u32 {
        self.0.target()
    }

    fn proven(&self) -> u32 {
        self.0.proven()
    }
}

/// Who calls, and how long they waited for a connection.
#[derive(Default)]
struct Load {
    /// Those of a higher number have left.
    callers: AtomicUsize,
    waited_micros: AtomicU64,
    served: AtomicU64,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "it is what the example is for")]
async fn main() -> Result<(), Error> {
    let Ok(url) = env::var("DATABASE_URL") else {
        println!("{HOW_TO_START_ONE}");
        return Ok(());
    };
    let seconds = env::args().nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(30_u32);
    let sizing = ThroughputVerified::new(Bounds::new(FLOOR, CEILING)?, FLOOR);
    let manager = PostgresManager::builder(&url)?.application_name("adaptive_pool").build()?;
    let pool = manager
        .pool("example")
        .adaptive(FLOOR..=CEILING)
        .initial(FLOOR)
        .sizing(Aloud(sizing))
        .timeout(Duration::from_secs(10))
        .build()?;
    drop(pool.get().await?); // what is wrong with the URL or the server is told here

    let load = Arc::new(Load::default());
    load.callers.store(CALLERS, Relaxed);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(call(caller, pool.clone(), Arc::clone(&load)));
    }
    println!("callers  size  open  waiting  queries/s   hold p50  mean wait");
    for second in 0..seconds {
        if second == seconds * 2 / 3 {
            println!("        half of the callers leave");
            load.callers.store(CALLERS / 2, Relaxed);
        }
        let (began, before) = (Instant::now(), load.so_far());
        tokio::time::sleep(Duration::from_secs(1)).await;
        load.print(&pool.stats(), before, began.elapsed());
    }
    load.callers.store(0, Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap_or(Ok(()))?;
    }
    assert_eq!(pool.stats().in_use, 0);
    pool.shutdown(Duration::from_secs(5)).await
}

/// Comes back at once, until it is told to leave.
async fn call(number: usize, pool: Pool<PostgresManager>, load: Arc<Load>) -> Result<(), Error> {
    while number < load.callers.load(Relaxed) {
        let asked = Instant::now();
        let connection = pool.get().await?;
        let waited = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        connection.query_cached(QUERY, &[]).await?;
        load.waited_micros.fetch_add(waited, Relaxed);
        load.served.fetch_add(1, Relaxed);
    }
    Ok(())
}

impl Load {
    fn so_far(&self) -> (u64, u64) {
        (self.served.load(Relaxed), self.waited_micros.load(Relaxed))
    }

    #[expect(clippy::print_stdout, reason = "it is what the example is for")]
    fn print(&self, stats: &Stats, (served, waited): (u64, u64), took: Duration) {
        let (served, waited) =
            (self.served.load(Relaxed) - served, self.waited_micros.load(Relaxed) - waited);
        println!(
            "{:>7}  {:>4}  {:>4}  {:>7}  {:>9.0}  {:>9.1?}  {:>9.1?}",
            self.callers.load(Relaxed),
            stats.target,
            stats.open,
            stats.waiting,
            served as f64 / took.as_secs_f64(),
            stats.hold_p50,
            Duration::from_micros(waited / served.max(1)),
        );
    }
}
