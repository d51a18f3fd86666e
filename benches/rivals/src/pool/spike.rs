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
    doors: Arc<Opened>,
}

/// How many connections there were through it, and how many are there now.
#[derive(Default)]
struct Opened {
    ever: AtomicU64,
    now: AtomicU64,
}

pub(super) fn run(effort: Effort) -> Result<()> {
    let rounds = effort.pick(5, 1);
    let ramp = effort.pick(Duration::from_secs(30), Duration::from_secs(1));
    // Those of the pool before are still going.
    let site = Site::start(Placement::Apart, 4 * CEILING)?;
    let [mut ours, mut bb8, mut deadpool] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        eprintln!("pool.p2: round {} of {rounds}", round + 1);
        site.runtime.block_on(async {
            let (pool, door) = with_ours(&site).await?;
            ours.push(spike(&pool, &door, ramp).await?);
            let (pool, door) = with_bb8(&site).await?;
            bb8.push(spike(&pool, &door, ramp).await?);
            let (pool, door) = with_deadpool(&site).await?;
            deadpool.push(spike(&pool, &door, ramp).await?);
            anyhow::Ok(())
        })?;
    }
    report(&ours, &bb8, &deadpool)
}

/// After the 500, eleven minutes in which nobody calls: how many connections are left, and how a burst of 50 does then.
pub(super) fn run_silence(effort: Effort) -> Result<()> {
    let ramp = effort.pick(Duration::from_secs(30), Duration::from_secs(1));
    let silence = effort.pick(Duration::from_secs(660), Duration::from_secs(1));
    let site = Site::start(Placement::Apart, 4 * CEILING)?;
    let sides = site.runtime.block_on(async {
        let ours = with_ours(&site).await?;
        let bb8 = with_bb8(&site).await?;
        let deadpool = with_deadpool(&site).await?;
        spike(&ours.0, &ours.1, ramp).await?;
        spike(&bb8.0, &bb8.1, ramp).await?;
        spike(&deadpool.0, &deadpool.1, ramp).await?;
        eprintln!("pool.p2_silence: {silence:?}");
        sleep(silence).await;
        anyhow::Ok([
            After::of(&ours.0, &ours.1).await?,
            After::of(&bb8.0, &bb8.1).await?,
            After::of(&deadpool.0, &deadpool.1).await?,
        ])
    })?;
    let [ours, bb8, deadpool] = &sides;
    let figure = |figure: Figure, of: fn(&After) -> f64| {
        figure.rival("bb8", of(bb8)).rival("deadpool", of(deadpool)).print();
    };
    figure(Figure::count("pool.p2_silence.left", ours.left), |after| after.left as f64);
    figure(Figure::count("pool.p2_silence.burst_connects", ours.connects), |after| after.connects as f64);
    figure(Figure::milliseconds("pool.p2_silence.burst", ours.burst), |after| after.burst);
    Ok(())
}

/// What is after the silence.
struct After {
    left: u64,
    connects: u64,
    /// In seconds.
    burst: f64,
}

impl After {
    async fn of<P: Peer>(pool: &P, door: &SlowDoor) -> Result<Self> {
        let (left, before) = (door.open_now(), door.opened());
        let burst = burst(pool).await?;
        sleep(QUIET).await;
        Ok(Self { left, connects: door.opened() - before, burst })
    }
}

async fn with_ours(site: &Site) -> Result<(peers::Ours, SlowDoor)> {
    let door = SlowDoor::open(site).await?;
    let pool = peers::ours(&door.url())?.adaptive(KEPT..=CEILING).initial(KEPT).build()?;
    Ok((pool, door))
}

async fn with_bb8(site: &Site) -> Result<(peers::Bb8, SlowDoor)> {
    let door = SlowDoor::open(site).await?;
    let builder = bb8::Pool::builder().max_size(CEILING).min_idle(KEPT).test_on_check_out(false);
    let builder = builder.connection_timeout(TIMEOUT);
    Ok((builder.build(PreparingManager::new(&door.url())?).await?, door))
}

async fn with_deadpool(site: &Site) -> Result<(peers::Deadpool, SlowDoor)> {
    let door = SlowDoor::open(site).await?;
    let pool = peers::deadpool(&door.url(), CEILING)?;
    let mut held = Vec::new();
    for _ in 0..KEPT {
        held.push(Peer::get(&pool).await?);
    }
    drop(held);
    Ok((pool, door))
}

/// Fifty callers at once: seconds from the first call to the last answer.
async fn burst<P: Peer>(pool: &P) -> Result<f64> {
    let stopwatch = Stopwatch::start();
    let mut callers = JoinSet::new();
    for _ in 0..BURST {
        let pool = pool.clone();
        callers.spawn(async move { pool.get().await?.query(Sql::Short, &[]).await });
    }
    for answer in callers.join_all().await {
        ensure!(answer?.len() == 1, "not an answer");
    }
    Ok(stopwatch.elapsed().as_secs_f64())
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
    let burst = burst(pool).await?;
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
        let doors = Arc::<Opened>::default();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, site.server.port()));
        tokio::spawn(let_in(listener, server, Arc::clone(&doors)));
        Ok(Self { port, doors })
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn opened(&self) -> u64 {
        self.doors.ever.load(Ordering::Relaxed)
    }

    fn open_now(&self) -> u64 {
        self.doors.now.load(Ordering::Relaxed)
    }
}

async fn let_in(listener: TcpListener, server: SocketAddr, doors: Arc<Opened>) {
    while let Ok((mut client, _)) = listener.accept().await {
        doors.ever.fetch_add(1, Ordering::Relaxed);
        doors.now.fetch_add(1, Ordering::Relaxed);
        let doors = Arc::clone(&doors);
        tokio::spawn(async move {
            let passed = async {
                sleep(CONNECT).await;
                let mut upstream = TcpStream::connect(server).await?;
                client.set_nodelay(true)?;
                upstream.set_nodelay(true)?;
                copy_bidirectional(&mut client, &mut upstream).await
            };
            let passed = passed.await;
            doors.now.fetch_sub(1, Ordering::Relaxed);
            passed
        });
    }
}
