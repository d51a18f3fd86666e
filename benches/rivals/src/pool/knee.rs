//! P1: does the pool find the size at which the server does most, and how soon?
//!
//! Fixed pools of 2 to 64 connections are swept, of bb8 and of deadpool; the best and the worst of all of them is what
//! ours is held against. In each round ours begins anew with two connections and may learn for a minute, less the slice
//! in which it is measured. 128 callers, so that every size has more than it can serve.
//!
//! `pool.p1` has the server on one core and the clients on another, `pool.p1_unpinned` both wherever the system puts
//! them.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    Effort,
    load::{Tally, drive},
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

struct Plan {
    placements: &'static [(&'static str, Placement)],
    sizes: &'static [u32],
    rounds: usize,
    /// From the start of ours to the end of its slice.
    within: Duration,
    slice: Duration,
}

/// A pool of a kind and a size, or ours, in all rounds.
struct Cell {
    name: String,
    rival: Option<(Rival, u32)>,
    rounds: Vec<Outcome>,
}

#[derive(Clone, Copy)]
enum Rival {
    Bb8,
    Deadpool,
}

#[derive(Clone, Copy)]
struct Outcome {
    rate: f64,
    p99: f64,
}

impl Plan {
    fn new(effort: Effort) -> Self {
        match effort {
            Effort::Full => Self {
                placements: &[("pool.p1", Placement::Apart), ("pool.p1_unpinned", Placement::Anywhere)],
                sizes: &SIZES,
                rounds: 5,
                within: Duration::from_secs(60),
                slice: Duration::from_secs(3),
            },
            Effort::Quick => Self {
                placements: &[("pool.p1", Placement::Apart)],
                sizes: &FEW_SIZES,
                rounds: 1,
                within: Duration::from_secs(12),
                slice: Duration::from_secs(1),
            },
        }
    }
}

pub(super) fn run(effort: Effort) -> Result<()> {
    let plan = Plan::new(effort);
    for (name, placement) in plan.placements {
        let site = Site::start(*placement, 2 * CEILING)?;
        for workload in Workload::ALL {
            sweep(&format!("{name}.{}", workload.name()), &site, workload, &plan)?;
        }
    }
    Ok(())
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
            let outcome = cell.run(site, workload, plan)?;
            cell.rounds.push(outcome);
            site.tidy()?;
        }
    }
    let [ours, rivals @ ..] = &cells[..] else { return Ok(()) };
    report(name, ours, rivals)
}

fn report(name: &str, ours: &Cell, rivals: &[Cell]) -> Result<()> {
    for rival in rivals {
        let name = format!("{name}.{}", rival.name);
        Comparison::rate(&name, &rival.name).of(ours.rates_against(rival))?;
    }
    let by_rate = |one: &&Cell, other: &&Cell| one.median_rate().total_cmp(&other.median_rate());
    let (best, worst) = (rivals.iter().max_by(by_rate), rivals.iter().min_by(by_rate));
    if let Some((best, worst)) = best.zip(worst) {
        let line = |case: &str| format!("{name}.{case}");
        let rate = |name: &str, rival: &Cell, bar| {
            Comparison::rate(name, &rival.name).at_least(bar).of(ours.rates_against(rival))
        };
        rate(&line("best_fixed"), best, 0.95)?;
        Comparison::microseconds(&line("best_fixed_p99"), &best.name)
            .at_most(1.1)
            .of(ours.p99s_against(best))?;
        rate(&line("worst_fixed"), worst, 1.5)?;
    }
    Ok(())
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

    fn run(&self, site: &Site, workload: Workload, plan: &Plan) -> Result<Outcome> {
        let url = site.url();
        let tally = site.runtime.block_on(async {
            match self.rival {
                None => {
                    let pool =
                        peers::ours(&url)?.adaptive(BEGINS_WITH..=CEILING).initial(BEGINS_WITH).build()?;
                    let tally = measure(&pool, workload, plan.within - plan.slice, plan.slice).await?;
                    let stats = pool.stats();
                    eprintln!(
                        "  ours: target {}, proven {}, open {}",
                        stats.target, stats.proven, stats.open
                    );
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
        let mut tally: Tally = tally?;
        let outcome = Outcome { rate: tally.rate(), p99: tally.percentile(0.99) };
        eprintln!(
            "  {}: {:.0}/s, p99 {:.1} ms, failures {}",
            self.name,
            outcome.rate,
            outcome.p99 * 1e3,
            tally.failures
        );
        match tally.failure {
            Some(failure) => Err(failure.context(format!("a call of {} failed", self.name))),
            None => {
                ensure!(tally.calls() > 0, "{}: nothing was done", self.name);
                Ok(outcome)
            }
        }
    }

    fn median_rate(&self) -> f64 {
        let mut rates: Vec<f64> = self.rounds.iter().map(|round| round.rate).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or_default()
    }

    fn rates_against(&self, rival: &Self) -> Vec<Pair> {
        self.against(rival, |outcome| outcome.rate.recip())
    }

    fn p99s_against(&self, rival: &Self) -> Vec<Pair> {
        self.against(rival, |outcome| outcome.p99)
    }

    fn against(&self, rival: &Self, seconds: fn(&Outcome) -> f64) -> Vec<Pair> {
        let rounds = self.rounds.iter().zip(&rival.rounds);
        rounds.map(|(ours, rival)| Pair { ours: seconds(ours), rival: seconds(rival) }).collect()
    }
}

async fn measure<P: Peer>(pool: &P, workload: Workload, warm_up: Duration, slice: Duration) -> Result<Tally> {
    drive(pool, workload, CALLERS, warm_up).await?;
    drive(pool, workload, CALLERS, slice).await
}
