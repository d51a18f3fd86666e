//! P1: does the pool find the size at which the server does most, and how soon? And how long do calls take then?
//!
//! Fixed pools of 2 to 64 connections are swept, of bb8 and of deadpool; the best and the worst of all of them is what
//! ours is held against. In each round ours begins anew with two connections and may learn for a minute, less the slice
//! in which it is measured. 128 callers, so that every size has more than it can serve.
//!
//! How long calls take is measured at three quarters of what the best fixed pool can do, from when a call should have
//! begun: in the sweep, where more is asked for than can be done, a pool that lets callers starve has the shortest
//! times. A pool of ours learns under the full load for a minute, and then both have slices in turn. If it is still too
//! small it is overloaded, turns callers away, and the times say so.
//!
//! `pool.p1` has the server on one core and the clients on another, `pool.p1_unpinned` both wherever the system puts
//! them.

use std::{cmp::Ordering, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Effort,
    load::{Tally, drive, offer},
    peers::{self, Peer},
    site::{Placement, Site},
    work::Workload,
};
use crate::{measure::Pair, report::Comparison};

const CALLERS: u32 = 128;
const CEILING: u32 = 64;
const BEGINS_WITH: u32 = 2;
const SIZES: [u32; 6] = [2, 4, 8, 16, 32, 64];
const FEW_SIZES: [u32; 3] = [2, 8, 64];
/// Until all connections of a fixed size are open and have run each statement.
const WARM_UP: Duration = Duration::from_secs(1);
/// Of what the best fixed pool does at most.
const OFFERED: f64 = 0.75;

struct Plan {
    sizes: &'static [u32],
    rounds: usize,
    /// In which times are measured. They vary more than rates do.
    times: usize,
    /// From the start of ours to the end of its slice.
    within: Duration,
    slice: Duration,
}

/// A pool of a kind and a size, or ours, in all rounds.
struct Cell {
    name: String,
    rival: Option<(Rival, u32)>,
    /// Calls a second.
    rounds: Vec<f64>,
}

#[derive(Clone, Copy)]
enum Rival {
    Bb8,
    Deadpool,
}

impl Plan {
    fn new(effort: Effort) -> Self {
        match effort {
            Effort::Full => Self {
                sizes: &SIZES,
                rounds: 5,
                times: 15,
                within: Duration::from_secs(60),
                slice: Duration::from_secs(3),
            },
            Effort::Quick => Self {
                sizes: &FEW_SIZES,
                rounds: 1,
                times: 1,
                within: Duration::from_secs(12),
                slice: Duration::from_secs(1),
            },
        }
    }
}

pub(super) fn run(effort: Effort, placement: Placement, workload: Workload) -> Result<()> {
    let case = match placement {
        Placement::Apart => "pool.p1",
        Placement::Anywhere => "pool.p1_unpinned",
    };
    let site = Site::start(placement, 2 * CEILING)?;
    sweep(&format!("{case}.{}", workload.name()), &site, workload, &Plan::new(effort))
}

fn sweep(name: &str, site: &Site, workload: Workload, plan: &Plan) -> Result<()> {
    let fixed = plan.sizes.iter().flat_map(|size| [(Rival::Bb8, *size), (Rival::Deadpool, *size)]);
    let mut cells = vec![Cell::new(None)];
    cells.extend(fixed.map(|rival| Cell::new(Some(rival))));
    for round in 0..plan.rounds {
        eprintln!("{name}: round {} of {}", round + 1, plan.rounds);
        // Whoever was last goes first in the next round.
        for place in 0..cells.len() {
            let index = if round % 2 == 0 { place } else { cells.len() - 1 - place };
            let cell = &mut cells[index];
            let rate = cell.run(site, workload, plan)?;
            cell.rounds.push(rate);
            site.tidy()?;
        }
    }
    report(name, &cells)?;
    let best = cells.iter().skip(1).max_by(Cell::by_rate).context("nothing was swept")?;
    let times = times(site, workload, plan, best)?;
    Comparison::microseconds(&format!("{name}.best_fixed_p99"), &best.name).at_most(1.1).of(times)
}

/// All cells, the losing ones too, and then the best and the worst.
fn report(name: &str, cells: &[Cell]) -> Result<()> {
    let [ours, rivals @ ..] = cells else { return Ok(()) };
    for rival in rivals {
        let name = format!("{name}.{}", rival.name);
        Comparison::rate(&name, &rival.name).of(ours.against(rival))?;
    }
    let (best, worst) = (rivals.iter().max_by(Cell::by_rate), rivals.iter().min_by(Cell::by_rate));
    for (case, rival, bar) in [("best_fixed", best, 0.95), ("worst_fixed", worst, 1.5)] {
        let rival = rival.context("nothing was swept")?;
        Comparison::rate(&format!("{name}.{case}"), &rival.name).at_least(bar).of(ours.against(rival))?;
    }
    Ok(())
}

/// The 99th percentile of how long calls take, ours and of the best.
fn times(site: &Site, workload: Workload, plan: &Plan, best: &Cell) -> Result<Vec<Pair>> {
    let rate = OFFERED * best.median();
    let times = site.runtime.block_on(async {
        let url = site.url();
        let ours = ours(&url)?;
        drive(&ours, workload, CALLERS, plan.within).await?;
        let times = match best.rival {
            Some((Rival::Bb8, size)) => {
                in_turn(&ours, &peers::bb8(&url, size).await?, workload, plan, rate).await?
            }
            Some((Rival::Deadpool, size)) => {
                in_turn(&ours, &peers::deadpool(&url, size)?, workload, plan, rate).await?
            }
            None => Vec::new(),
        };
        ours.shutdown(Duration::from_secs(5)).await?;
        anyhow::Ok(times)
    });
    let times = times?;
    site.tidy()?;
    Ok(times)
}

async fn in_turn(
    ours: &peers::Ours,
    rival: &impl Peer,
    workload: Workload,
    plan: &Plan,
    rate: f64,
) -> Result<Vec<Pair>> {
    drive(rival, workload, CALLERS, WARM_UP).await?;
    let mut pairs = Vec::new();
    for round in 0..plan.times {
        let (first, second);
        let pair = if round % 2 == 0 {
            first = p99(ours, workload, rate, plan.slice).await?;
            second = p99(rival, workload, rate, plan.slice).await?;
            Pair { ours: first, rival: second }
        } else {
            first = p99(rival, workload, rate, plan.slice).await?;
            second = p99(ours, workload, rate, plan.slice).await?;
            Pair { ours: second, rival: first }
        };
        let (ours_ms, rival_ms) = (pair.ours * 1e3, pair.rival * 1e3);
        eprintln!(
            "  p99: ours {ours_ms:.1} ms at target {}, the other {rival_ms:.1} ms",
            ours.stats().target
        );
        pairs.push(pair);
    }
    Ok(pairs)
}

async fn p99(pool: &impl Peer, workload: Workload, rate: f64, span: Duration) -> Result<f64> {
    let mut tally = offer(pool, workload, rate, span).await?;
    if let Some(failure) = &tally.failure {
        eprintln!("  {} of {} calls failed: {failure:#}", tally.failures, tally.calls());
    }
    Ok(tally.percentile(workload.tail()))
}

fn ours(url: &str) -> Result<peers::Ours> {
    Ok(peers::ours(url)?.adaptive(BEGINS_WITH..=CEILING).initial(BEGINS_WITH).build()?)
}

impl Cell {
    fn new(rival: Option<(Rival, u32)>) -> Self {
        let name = match rival {
            None => "ours".to_owned(),
            Some((Rival::Bb8, size)) => format!("bb8_{size}"),
            Some((Rival::Deadpool, size)) => format!("deadpool_{size}"),
        };
        Self { name, rival, rounds: Vec::new() }
    }

    fn run(&self, site: &Site, workload: Workload, plan: &Plan) -> Result<f64> {
        let url = site.url();
        let tally: Result<Tally> = site.runtime.block_on(async {
            match self.rival {
                None => {
                    let pool = ours(&url)?;
                    let tally = measure(&pool, workload, plan.within - plan.slice, plan.slice).await?;
                    let stats = pool.stats();
                    eprintln!("  ours: target {}, proven {}", stats.target, stats.proven);
                    pool.shutdown(Duration::from_secs(5)).await?;
                    Ok(tally)
                }
                Some((Rival::Bb8, size)) => {
                    measure(&peers::bb8(&url, size).await?, workload, WARM_UP, plan.slice).await
                }
                Some((Rival::Deadpool, size)) => {
                    measure(&peers::deadpool(&url, size)?, workload, WARM_UP, plan.slice).await
                }
            }
        });
        let tally = tally?;
        eprintln!("  {}: {:.0}/s", self.name, tally.rate());
        if let Some(failure) = tally.failure {
            return Err(failure.context(format!("a call of {} failed", self.name)));
        }
        ensure!(tally.calls() > 0, "{}: nothing was done", self.name);
        Ok(tally.rate())
    }

    fn median(&self) -> f64 {
        let mut rates = self.rounds.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or_default()
    }

    fn by_rate(one: &&Self, other: &&Self) -> Ordering {
        one.median().total_cmp(&other.median())
    }

    /// In seconds per call.
    fn against(&self, rival: &Self) -> Vec<Pair> {
        let rounds = self.rounds.iter().zip(&rival.rounds);
        rounds.map(|(ours, rival)| Pair { ours: ours.recip(), rival: rival.recip() }).collect()
    }
}

async fn measure<P: Peer>(pool: &P, workload: Workload, warm_up: Duration, slice: Duration) -> Result<Tally> {
    drive(pool, workload, CALLERS, warm_up).await?;
    drive(pool, workload, CALLERS, slice).await
}
