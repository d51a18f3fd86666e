//! P4: four pools at a server that has connections for 40, each as if it were a process.
//!
//! First one of them has eight times the callers of each other, then all have as many. Ours have five connections each
//! and lease the other twenty from the server, in blocks; bb8's have a fixed number: ten, which is a fair share, or
//! 16, which is what one would like. The callers are not superusers: those may have what is kept for administrators.
//!
//! Every 100 ms the server is asked how many backends there are. What is refused (SQLSTATE 53300) is counted where
//! connections are made, from the eleventh second of each phase on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bb8::ManageConnection;
use mcp_perf::{
    ErrorKind,
    pool::budget::jain_index,
    postgres::{PostgresBudget, PostgresManager},
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_postgres::{NoTls, error::SqlState};

use super::{
    Effort,
    load::{Tally, drive},
    peers::{self, Peer, PreparingManager},
    site::{Placement, Site, TIMEOUT},
    work::Workload,
};
use crate::figure::Figure;

const BUDGET: u32 = 40;
/// With the three that are kept for superusers, and the sampler, which is one but takes one of the others.
const MAX_CONNECTIONS: u32 = BUDGET + 3 + 1;
const SHARE: u32 = 5;
const STOCK: u32 = 20;
const POOLS: u64 = 4;
const SKEWED: [u32; 4] = [64, 8, 8, 8];
const EVEN: [u32; 4] = [24; 4];
const WORKLOAD: Workload = Workload::Reports;
const SETTLE: Duration = Duration::from_secs(10);
const SAMPLE: Duration = Duration::from_millis(100);
/// A connection that is of no use here is of use to another process.
const IDLE: Duration = Duration::from_secs(2);
const BACKENDS: &str = "select count(*) from pg_stat_activity where usename = 'app'";

/// A phase of four pools, without its first seconds.
struct Outcome {
    calls: [u64; 4],
    span: Duration,
    refused: u64,
    failed: u64,
    /// The most backends at once, from the first moment on.
    backends: u64,
}

pub(super) fn run(effort: Effort) -> Result<()> {
    let span = effort.pick(Duration::from_secs(50), Duration::from_secs(5));
    let ours = both("ours", span, ours)?;
    let fair = both("bb8_10", span, |url, refused| bb8(url, refused, 10))?;
    let many = both("bb8_16", span, |url, refused| bb8(url, refused, 16))?;
    for (name, phase) in [("skewed", 0), ("even", 1)] {
        let all = [&ours[phase], &fair[phase], &many[phase]];
        let count = |case: &str, count: fn(&Outcome) -> u64| {
            let [ours, fair, many] = all.map(count);
            Figure::count(&format!("pool.p4.{name}.{case}"), ours)
                .rival("bb8_10", fair as f64)
                .rival("bb8_16", many as f64)
        };
        count("refused", |outcome| outcome.refused).at_most(0.0).print();
        count("most_backends", |outcome| outcome.backends).at_most(f64::from(BUDGET)).print();
        count("failed_calls", |outcome| outcome.failed).print();
        count("calls_per_second", Outcome::rate).print();
        count("hot_calls_per_second", Outcome::hot_rate).print();
    }
    let [ours, fair, many] = [&ours[1], &fair[1], &many[1]].map(Outcome::jain);
    Figure::index("pool.p4.even.jain", ours)
        .rival("bb8_10", fair)
        .rival("bb8_16", many)
        .at_least(0.9)
        .print();
    Ok(())
}

/// Both phases, on a server of their own.
fn both<P: Peer>(
    name: &str,
    span: Duration,
    pool: impl Fn(&str, &Arc<Refused>) -> Result<P>,
) -> Result<[Outcome; 2]> {
    let site = Site::start(Placement::Apart, MAX_CONNECTIONS)?;
    let _entered = site.runtime.enter();
    let refused = Arc::new(Refused::default());
    let mut pools = Vec::new();
    for number in 0..POOLS {
        let name = format!("fleet/{number}");
        let url = format!("postgres://app@127.0.0.1:{}/postgres?application_name={name}", site.server.port());
        pools.push(pool(&url, &refused)?);
    }
    let mut outcomes = Vec::new();
    for callers in [SKEWED, EVEN] {
        let outcome = site.runtime.block_on(phase(&site, &pools, callers, span, &refused))?;
        eprintln!(
            "pool.p4: {name}: calls {:?}, {} refused, {} failed, {} backends",
            outcome.calls, outcome.refused, outcome.failed, outcome.backends
        );
        outcomes.push(outcome);
    }
    outcomes.try_into().ok().context("two phases")
}

async fn phase<P: Peer>(
    site: &Site,
    pools: &[P],
    callers: [u32; 4],
    span: Duration,
    refused: &Refused,
) -> Result<Outcome> {
    let sampler = Sampler::start(&site.url()).await?;
    all(pools, callers, SETTLE).await?;
    let refused_before = refused.0.load(Ordering::Relaxed);
    let tallies = all(pools, callers, span).await?;
    let mut outcome = Outcome {
        calls: [0; 4],
        span,
        refused: refused.0.load(Ordering::Relaxed) - refused_before,
        failed: tallies.iter().map(|tally| tally.failures).sum(),
        backends: sampler.end().await?,
    };
    for (calls, tally) in outcome.calls.iter_mut().zip(&tallies) {
        *calls = tally.calls();
    }
    Ok(outcome)
}

async fn all<P: Peer>(pools: &[P], callers: [u32; 4], span: Duration) -> Result<Vec<Tally>> {
    let mut drives = JoinSet::new();
    for (number, (pool, callers)) in pools.iter().zip(callers).enumerate() {
        let pool = pool.clone();
        drives.spawn(async move { (number, drive(&pool, WORKLOAD, callers, span).await) });
    }
    let mut tallies = drives.join_all().await;
    tallies.sort_by_key(|(number, _)| *number);
    tallies.into_iter().map(|(_, tally)| tally).collect()
}

type OwnPool = peers::Ours<Counting<PostgresManager>>;

fn ours(url: &str, refused: &Arc<Refused>) -> Result<OwnPool> {
    let manager = PostgresManager::builder(url)?.build()?;
    let budget = PostgresBudget::builder(manager.clone(), "fleet").share(SHARE).stock(STOCK).build()?;
    let is_refusal = |error: &mcp_perf::Error| error.kind() == ErrorKind::TooManyConnections;
    let manager = Counting { manager, is_refusal, refused: Arc::clone(refused) };
    let pool = OwnPool::builder("bench", manager)
        .adaptive(1..=BUDGET)
        .initial(SHARE - 1)
        .allowance(budget)
        .idle_timeout(IDLE)
        .timeout(TIMEOUT)
        .build()?;
    Ok(pool)
}

fn bb8(url: &str, refused: &Arc<Refused>, size: u32) -> Result<peers::Bb8<Counting<PreparingManager>>> {
    let is_refusal = |error: &tokio_postgres::Error| error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS);
    let manager = Counting { manager: PreparingManager::new(url)?, is_refusal, refused: Arc::clone(refused) };
    let builder = bb8::Pool::builder().max_size(size).test_on_check_out(false).connection_timeout(TIMEOUT);
    Ok(builder.build_unchecked(manager))
}

/// How often the server refused a connection because it has too many.
#[derive(Default)]
struct Refused(AtomicU64);

/// A manager that counts those.
struct Counting<M: ManageConnection> {
    manager: M,
    is_refusal: fn(&M::Error) -> bool,
    refused: Arc<Refused>,
}

impl<M: ManageConnection> ManageConnection for Counting<M> {
    type Connection = M::Connection;
    type Error = M::Error;

    async fn connect(&self) -> Result<M::Connection, M::Error> {
        let connected = self.manager.connect().await;
        if connected.as_ref().is_err_and(self.is_refusal) {
            self.refused.0.fetch_add(1, Ordering::Relaxed);
        }
        connected
    }

    async fn is_valid(&self, connection: &mut M::Connection) -> Result<(), M::Error> {
        self.manager.is_valid(connection).await
    }

    fn has_broken(&self, connection: &mut M::Connection) -> bool {
        self.manager.has_broken(connection)
    }
}

/// Looks at the server all the while.
struct Sampler {
    is_over: Arc<AtomicBool>,
    most: JoinHandle<Result<u64>>,
}

impl Sampler {
    async fn start(url: &str) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let statement = client.prepare(BACKENDS).await?;
        let is_over = Arc::new(AtomicBool::new(false));
        let asked_to_end = Arc::clone(&is_over);
        let most = tokio::spawn(async move {
            let mut most = 0;
            while !asked_to_end.load(Ordering::Relaxed) {
                let count: i64 = client.query_one(&statement, &[]).await?.get(0);
                most = most.max(u64::try_from(count)?);
                sleep(SAMPLE).await;
            }
            Ok(most)
        });
        Ok(Self { is_over, most })
    }

    /// The most that there were at once.
    async fn end(self) -> Result<u64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.most.await?
    }
}

impl Outcome {
    fn rate(&self) -> u64 {
        self.calls.iter().sum::<u64>() / self.span.as_secs()
    }

    /// Of the one with most callers.
    fn hot_rate(&self) -> u64 {
        self.calls[0] / self.span.as_secs()
    }

    fn jain(&self) -> f64 {
        jain_index(&self.calls.map(|calls| u32::try_from(calls).unwrap_or(u32::MAX)))
    }
}
