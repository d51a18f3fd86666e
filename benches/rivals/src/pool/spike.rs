//! P2: silence, and then 50 callers at once; after those, 500.
//!
//! To connect takes 150 ms, which a proxy on the way adds; a query takes 2 ms. The pools have five connections open
//! and may have 50. Five are enough for the burst ten times over before the first further one could be open, so every
//! other one that is opened is a waste. deadpool opens none by itself; five callers make it do so.
//!
//! The 500 could use every connection that there may be. A pool that tries whether more do more has to find that out,
//! a fixed one has them: `ramp` is the first half minute, `ramped` what is done after it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use super::{
    Effort,
    load::drive,
    peers::{self, Peer, PreparingManager, Session},
    site::{Placement, Site, TIMEOUT},
    work::{Sql, Workload},
};
use crate::{
    figure::Figure,
    measure::{Pair, Stopwatch},
    report::Comparison,
};

const CONNECT: Duration = Duration::from_millis(150);
const BURST: usize = 50;
const CALLERS: u32 = 500;
const RAMPED: Duration = Duration::from_secs(3);
const KEPT: u32 = 5;
const CEILING: u32 = 50;
/// Until what is kept open is, and what the burst began has ended.
const QUIET: Duration = Duration::from_secs(2);

/// What a spike came to.
struct Spike {
    /// From the first call to the last answer, in seconds.
    burst: f64,
    /// Connections that were made for it.
    connects: u64,
    /// Of the 500, while the pool may grow and after it.
    ramp: f64,
    ramped: f64,
    /// Connections that were made for those.
    more_connects: u64,
    failures: u64,
}

/// A way to the server that is slow to open.
struct SlowDoor {
    port: u16,
    opened: Arc<AtomicU64>,
}

pub(super) fn run(effort: Effort) -> Result<()> {
    let rounds = effort.pick(5, 1);
    let ramp = effort.pick(Duration::from_secs(30), Duration::from_secs(1));
    let site = Site::start(Placement::Apart, 2 * CEILING)?;
    let [mut ours, mut bb8, mut deadpool] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        eprintln!("pool.p2: round {} of {rounds}", round + 1);
        let of_ours = site.runtime.block_on(async {
            let door = SlowDoor::open(&site).await?;
            let pool = peers::ours(&door.url())?.adaptive(KEPT..=CEILING).initial(KEPT).build()?;
            spike(&pool, &door, ramp).await
        })?;
        ours.push(of_ours);
        let of_bb8 = site.runtime.block_on(async {
            let door = SlowDoor::open(&site).await?;
            let builder = bb8::Pool::builder().max_size(CEILING).min_idle(KEPT).test_on_check_out(false);
            let builder = builder.connection_timeout(TIMEOUT);
            let pool: peers::Bb8 = builder.build(PreparingManager::new(&door.url())?).await?;
            spike(&pool, &door, ramp).await
        })?;
        bb8.push(of_bb8);
        let of_deadpool = site.runtime.block_on(async {
            let door = SlowDoor::open(&site).await?;
            let pool = peers::deadpool(&door.url(), CEILING)?;
            let mut held = Vec::new();
            for _ in 0..KEPT {
                held.push(Peer::get(&pool).await?);
            }
            drop(held);
            spike(&pool, &door, ramp).await
        })?;
        deadpool.push(of_deadpool);
    }
    report(&ours, &bb8, &deadpool)
}

async fn spike<P: Peer>(pool: &P, door: &SlowDoor, ramp: Duration) -> Result<Spike> {
    sleep(QUIET).await;
    // Each connection knows its statements before it counts.
    let mut held = Vec::new();
    for _ in 0..KEPT {
        let mut connection = pool.get().await?;
        connection.query(Sql::Short, &[]).await?;
        held.push(connection);
    }
    drop(held);
    let before = door.opened();
    let stopwatch = Stopwatch::start();
    let mut callers = JoinSet::new();
    for _ in 0..BURST {
        let pool = pool.clone();
        callers.spawn(async move { pool.get().await?.query(Sql::Short, &[]).await });
    }
    for answer in callers.join_all().await {
        ensure!(answer?.len() == 1, "not an answer");
    }
    let burst = stopwatch.elapsed().as_secs_f64();
    sleep(QUIET).await;
    let connects = door.opened() - before;

    let ramp = drive(pool, Workload::Short, CALLERS, ramp).await?;
    let ramped = drive(pool, Workload::Short, CALLERS, RAMPED).await?;
    for failure in [&ramp, &ramped].into_iter().filter_map(|tally| tally.failure.as_ref()) {
        eprintln!("  a call failed: {failure:#}");
    }
    Ok(Spike {
        burst,
        connects,
        ramp: ramp.rate(),
        ramped: ramped.rate(),
        more_connects: door.opened() - before - connects,
        failures: ramp.failures + ramped.failures,
    })
}

fn report(ours: &[Spike], bb8: &[Spike], deadpool: &[Spike]) -> Result<()> {
    let pairs = |rivals: &[Spike], seconds: fn(&Spike) -> f64| -> Vec<Pair> {
        let pair = |(ours, rival)| Pair { ours: seconds(ours), rival: seconds(rival) };
        ours.iter().zip(rivals).map(pair).collect()
    };
    for (name, rivals) in [("bb8", bb8), ("deadpool", deadpool)] {
        let line = |case: &str| format!("pool.p2.{case}.{name}");
        Comparison::microseconds(&line("burst"), name).of(pairs(rivals, |spike| spike.burst))?;
        Comparison::rate(&line("ramp"), name).of(pairs(rivals, |spike| spike.ramp.recip()))?;
        Comparison::rate(&line("ramped"), name).of(pairs(rivals, |spike| spike.ramped.recip()))?;
    }
    let worst =
        |spikes: &[Spike], count: fn(&Spike) -> u64| spikes.iter().map(count).max().unwrap_or_default();
    let figure = |name: &str, count: fn(&Spike) -> u64| {
        Figure::count(name, worst(ours, count))
            .rival("bb8", worst(bb8, count) as f64)
            .rival("deadpool", worst(deadpool, count) as f64)
    };
    figure("pool.p2.burst_connects", |spike| spike.connects).print();
    figure("pool.p2.ramp_connects", |spike| spike.more_connects).print();
    figure("pool.p2.failures", |spike| spike.failures).at_most(0.0).print();
    Ok(())
}

impl SlowDoor {
    async fn open(site: &Site) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let opened = Arc::new(AtomicU64::new(0));
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, site.server.port()));
        tokio::spawn(let_in(listener, server, Arc::clone(&opened)));
        Ok(Self { port, opened })
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

async fn let_in(listener: TcpListener, server: SocketAddr, opened: Arc<AtomicU64>) {
    while let Ok((mut client, _)) = listener.accept().await {
        opened.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            sleep(CONNECT).await;
            let mut upstream = TcpStream::connect(server).await?;
            client.set_nodelay(true)?;
            upstream.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut upstream).await
        });
    }
}
