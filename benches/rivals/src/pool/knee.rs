//! P1: does the pool find the size at which the server does most, and how soon? And how long do calls take then?
//!
//! Fixed pools of 2 to 64 connections are swept, of bb8 and of deadpool. The best and the worst of all of them is what
//! ours is held against: in each round it begins anew with two connections, learns, and has slices in turn with those
//! two in the last seconds of its first minute. 128 callers, so that every size has more than it can serve.
//!
//! How long calls take is measured at three quarters of what the best fixed pool can do, from when a call should have
//! begun: in the sweep, where more is asked for than can be done, a pool that lets callers starve has the shortest
//! times. A pool of ours learns under the full load for a minute, and then both have some seconds in turn, cut into
//! slices short enough that most are left alone by the rest of the machine: a pause of the machine is the 99th
//! percentile of any slice that it falls into. (Were the slices themselves in turn, ours would see a load that comes and
//! goes by the second.) What the best can do is measured again before and after each pair, since a machine that others
//! share is not always as quick: where the best could no longer have done what was asked for, both were overloaded, and
//! the pair is measured once more. If ours is still too small it is overloaded, and the times say so. The median of all
//! pairs of slices is held against the bar; `p99_of_all` has the calls of all slices that count together, with every pause
//! and every trial in them.
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
use crate::{figure::Figure, measure::Pair, report::Comparison};

const CALLERS: u32 = 128;
const CEILING: u32 = 64;
const BEGINS_WITH: u32 = 2;
const SIZES: [u32; 6] = [2, 4, 8, 16, 32, 64];
const FEW_SIZES: [u32; 3] = [2, 8, 64];
/// Until all connections of a fixed size are open and have run each statement.
const WARM_UP: Duration = Duration::from_secs(1);
/// Of what the best fixed pool does at most.
const OFFERED: f64 = 0.75;
/// Of what the best does after its slices: a pair for which more than that was asked for does not count.
const ASKED_AT_MOST: f64 = 0.9;
/// How many slices each side has in a row.
const IN_A_ROW: usize = 16;

struct Plan {
    sizes: &'static [u32],
    rounds: usize,
    /// How often each side has its slices for times in a row, and how long one is.
    times: usize,
    time_slice: Duration,
    /// From the start of ours to the end of its last slice.
    within: Duration,
    slice: Duration,
    /// How often ours, the best and the worst have a turn in a round, and for how long.
    turns: u32,
    turn: Duration,
}

/// A pool of a kind and a size, in all rounds of the sweep.
struct Cell {
    rival: Rival,
    size: u32,
    /// Calls a second.
    rounds: Vec<f64>,
}

#[derive(Clone, Copy)]
enum Rival {
    Bb8,
    Deadpool,
}

/// A pool of a rival.
enum Fixed {
    Bb8(peers::Bb8),
    Deadpool(peers::Deadpool),
}

/// Ours against the best and against the worst, in seconds per call.
#[derive(Default)]
struct Pairs {
    best: Vec<Pair>,
    worst: Vec<Pair>,
}

impl Plan {
    fn new(effort: Effort) -> Self {
        match effort {
            Effort::Full => Self {
                sizes: &SIZES,
                rounds: 5,
                times: 6,
                time_slice: Duration::from_millis(500),
                within: Duration::from_secs(60),
                slice: Duration::from_secs(3),
                turns: 3,
                turn: Duration::from_secs(1),
            },
            Effort::Quick => Self {
                sizes: &FEW_SIZES,
                rounds: 1,
                times: 1,
                time_slice: Duration::from_millis(100),
                within: Duration::from_secs(12),
                slice: Duration::from_secs(1),
                turns: 1,
                turn: Duration::from_secs(1),
            },
        }
    }
}

pub(super) fn run(effort: Effort, placement: Placement, workload: Workload) -> Result<()> {
    let case = match placement {
        Placement::Apart => "pool.p1",
        Placement::Anywhere => "pool.p1_unpinned",
    };
    // For ours, and for the two that it is held against.
    let site = Site::start(placement, 3 * CEILING)?;
    sweep(&format!("{case}.{}", workload.name()), &site, workload, &Plan::new(effort))
}

fn sweep(name: &str, site: &Site, workload: Workload, plan: &Plan) -> Result<()> {
    let kinds = [Rival::Bb8, Rival::Deadpool];
    let sizes = plan.sizes.iter().flat_map(|size| kinds.map(|rival| (rival, *size)));
    let mut cells: Vec<Cell> = sizes.map(|(rival, size)| Cell { rival, size, rounds: Vec::new() }).collect();
    for round in 0..plan.rounds {
        eprintln!("{name}: round {} of {}", round + 1, plan.rounds);
        // Whoever was last goes first in the next round.
        for place in 0..cells.len() {
            let index = if round % 2 == 0 { place } else { cells.len() - 1 - place };
            let cell = &mut cells[index];
            let rate = site.runtime.block_on(cell.run(&site.url(), workload, plan))?;
            eprintln!("  {}: {rate:.0}/s", cell.name());
            cell.rounds.push(rate);
            site.tidy()?;
        }
    }
    let best = cells.iter().max_by(Cell::by_rate).context("nothing was swept")?;
    let worst = cells.iter().min_by(Cell::by_rate).context("nothing was swept")?;
    let mut pairs = Pairs::default();
    for round in 0..plan.rounds {
        eprintln!("{name}: ours, the best and the worst, round {} of {}", round + 1, plan.rounds);
        site.runtime.block_on(pairs.add_round(&site.url(), workload, plan, best, worst))?;
        site.tidy()?;
    }
    // All cells, the losing ones too, and then the best and the worst.
    let median = median(pairs.best.iter().map(|pair| pair.ours.recip()));
    for cell in &cells {
        let pair = |rate: &f64| Pair { ours: median.recip(), rival: rate.recip() };
        let (name, pairs) = (format!("{name}.{}", cell.name()), cell.rounds.iter().map(pair));
        Comparison::rate(&name, &cell.name()).of(pairs.collect())?;
    }
    let spread = best.median() / worst.median();
    println!("  in the sweep the best did {spread:.3} of the worst, which is what can be had");
    for (case, rival, bar, pairs) in
        [("best_fixed", best, 0.95, pairs.best), ("worst_fixed", worst, 1.5, pairs.worst)]
    {
        Comparison::rate(&format!("{name}.{case}"), &rival.name()).at_least(bar).of(pairs)?;
    }
    let [mut of_ours, mut of_best] = [Tally::default(), Tally::default()];
    let url = site.url();
    let times = times(&url, workload, plan, best, [&mut of_ours, &mut of_best]);
    let times = site.runtime.block_on(times)?;
    site.tidy()?;
    let [of_ours, of_best] = [of_ours, of_best].map(|mut tally| tally.percentile(workload.tail()));
    Figure::milliseconds(&format!("{name}.p99_of_all"), of_ours).rival(&best.name(), of_best).print();
    Comparison::microseconds(&format!("{name}.best_fixed_p99"), &best.name()).at_most(1.1).of(times)
}

impl Pairs {
    /// Ours begins anew, learns, and has its turns.
    async fn add_round(
        &mut self,
        url: &str,
        workload: Workload,
        plan: &Plan,
        best: &Cell,
        worst: &Cell,
    ) -> Result<()> {
        let (best, worst) = (best.warm(url, workload).await?, worst.warm(url, workload).await?);
        let ours = ours(url)?;
        drive(&ours, workload, CALLERS, plan.within - 3 * plan.turns * plan.turn).await?.whole()?;
        for turn in 0..plan.turns {
            let rate_of_best = best.rate(workload, plan.turn).await?;
            let rate_of_ours = drive(&ours, workload, CALLERS, plan.turn).await?.whole()?;
            let rate_of_worst = worst.rate(workload, plan.turn).await?;
            let stats = ours.stats();
            eprintln!(
                "  turn {}: ours {rate_of_ours:.0}/s at target {}, the best {rate_of_best:.0}/s, \
                 the worst {rate_of_worst:.0}/s",
                turn + 1,
                stats.target
            );
            let pair = |rival: f64| Pair { ours: rate_of_ours.recip(), rival: rival.recip() };
            self.best.push(pair(rate_of_best));
            self.worst.push(pair(rate_of_worst));
        }
        ours.shutdown(Duration::from_secs(5)).await?;
        Ok(())
    }
}

/// The 99th percentile of how long calls take, ours and of the best.
async fn times(
    url: &str,
    workload: Workload,
    plan: &Plan,
    best: &Cell,
    [of_ours, of_best]: [&mut Tally; 2],
) -> Result<Vec<Pair>> {
    let ours = ours(url)?;
    drive(&ours, workload, CALLERS, plan.within).await?.whole()?;
    let rival = best.warm(url, workload).await?;
    let mut pairs = Vec::new();
    let mut tries = 0;
    let mut could = rival.rate(workload, plan.turn).await?;
    while pairs.len() < plan.times * IN_A_ROW {
        let rate = OFFERED * could;
        let [mut all_of_ours, mut all_of_theirs] = [Tally::default(), Tally::default()];
        let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
        for turn in 0..2 {
            for _ in 0..IN_A_ROW {
                if (tries + turn) % 2 == 0 {
                    our_times.push(p99(&ours, workload, rate, plan.time_slice, &mut all_of_ours).await?);
                } else {
                    their_times.push(rival.p99(workload, rate, plan.time_slice, &mut all_of_theirs).await?);
                }
            }
        }
        let in_milliseconds = |times: &[f64]| 1e3 * median(times.iter().copied());
        eprintln!(
            "  p99 at {rate:.0}/s: ours {:.1} ms at target {}, the other {:.1} ms",
            in_milliseconds(&our_times),
            ours.stats().target,
            in_milliseconds(&their_times)
        );
        tries += 1;
        could = rival.rate(workload, plan.turn).await?;
        if rate > ASKED_AT_MOST * could {
            eprintln!("  does not count: the other could do no more than {could:.0}/s after that");
            ensure!(tries < 4 * plan.times, "this machine is not as quick for long enough to measure times");
            continue;
        }
        of_ours.add_times_of(&all_of_ours);
        of_best.add_times_of(&all_of_theirs);
        pairs.extend(our_times.into_iter().zip(their_times).map(|(ours, rival)| Pair { ours, rival }));
    }
    println!("  {} of {tries} pairs of times count, in the others the machine had slowed down", plan.times);
    ours.shutdown(Duration::from_secs(5)).await?;
    Ok(pairs)
}

async fn p99(
    pool: &impl Peer,
    workload: Workload,
    rate: f64,
    span: Duration,
    all: &mut Tally,
) -> Result<f64> {
    let mut tally = offer(pool, workload, rate, span).await?;
    all.add_times_of(&tally);
    if let Some(failure) = &tally.failure {
        eprintln!("  {} of {} calls failed: {failure:#}", tally.failures, tally.calls());
    }
    Ok(tally.percentile(workload.tail()))
}

fn median(rates: impl Iterator<Item = f64>) -> f64 {
    let mut rates: Vec<f64> = rates.collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

fn ours(url: &str) -> Result<peers::Ours> {
    Ok(peers::ours(url)?.adaptive(BEGINS_WITH..=CEILING).initial(BEGINS_WITH).build()?)
}

impl Cell {
    fn name(&self) -> String {
        match self.rival {
            Rival::Bb8 => format!("bb8_{}", self.size),
            Rival::Deadpool => format!("deadpool_{}", self.size),
        }
    }

    async fn run(&self, url: &str, workload: Workload, plan: &Plan) -> Result<f64> {
        let pool = self.warm(url, workload).await?;
        pool.rate(workload, plan.slice).await.with_context(|| self.name())
    }

    /// A pool whose connections are open, and have run each statement.
    async fn warm(&self, url: &str, workload: Workload) -> Result<Fixed> {
        let pool = match self.rival {
            Rival::Bb8 => Fixed::Bb8(peers::bb8(url, self.size).await?),
            Rival::Deadpool => Fixed::Deadpool(peers::deadpool(url, self.size)?),
        };
        pool.rate(workload, WARM_UP).await.with_context(|| self.name())?;
        Ok(pool)
    }

    fn by_rate(one: &&Self, other: &&Self) -> Ordering {
        one.median().total_cmp(&other.median())
    }

    fn median(&self) -> f64 {
        median(self.rounds.iter().copied())
    }
}

impl Fixed {
    async fn rate(&self, workload: Workload, span: Duration) -> Result<f64> {
        let tally = match self {
            Self::Bb8(pool) => drive(pool, workload, CALLERS, span).await?,
            Self::Deadpool(pool) => drive(pool, workload, CALLERS, span).await?,
        };
        tally.whole()
    }

    async fn p99(&self, workload: Workload, rate: f64, span: Duration, all: &mut Tally) -> Result<f64> {
        match self {
            Self::Bb8(pool) => p99(pool, workload, rate, span, all).await,
            Self::Deadpool(pool) => p99(pool, workload, rate, span, all).await,
        }
    }
}
