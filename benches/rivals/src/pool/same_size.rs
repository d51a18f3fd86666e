//! What a call costs with as many connections on every side, so that nothing counts but the pool and what it lends: 128
//! callers, of whom all but a few wait; and how long the slowest calls take at three quarters of what the rival can do.
//! No bar is set; where `p1` misses one, this tells whether the size is to blame.

use std::time::Duration;

use anyhow::Result;

use super::{
    Effort,
    load::{drive, offer},
    peers::{self, Peer},
    site::{Placement, Site},
    work::Workload,
};
use crate::{measure::Pair, report::Comparison};

const CALLERS: u32 = 128;
const SIZES: [u32; 2] = [4, 16];
const SLICE: Duration = Duration::from_secs(2);
/// Of what bb8 does at most.
const OFFERED: f64 = 0.75;
const SLICES: usize = 3;
const TIMES_SLICE: Duration = Duration::from_millis(500);

pub(super) fn run(effort: Effort, placement: Placement, workload: Workload) -> Result<()> {
    let case = match placement {
        Placement::Apart => "pool.same_size",
        Placement::Anywhere => "pool.same_size_unpinned",
    };
    let site = Site::start(placement, 3 * SIZES[1] + 10)?;
    for size in SIZES {
        let rounds = site.runtime.block_on(rounds(&site.url(), workload, size, effort.pick(9, 1)))?;
        for (name, [rates, tails]) in ["bb8", "deadpool"].into_iter().zip(rounds) {
            let case = format!("{case}.{}.{size}.{name}", workload.name());
            Comparison::rate(&case, name).of(rates)?;
            Comparison::microseconds(&format!("{case}.p99"), name).of(tails)?;
        }
        site.tidy()?;
    }
    Ok(())
}

/// Ours against bb8, and against deadpool: seconds for each call, and those that 99 of 100 calls took at most.
async fn rounds(url: &str, workload: Workload, size: u32, rounds: usize) -> Result<[[Vec<Pair>; 2]; 2]> {
    let ours = peers::ours(url)?.size(size).keep_open(size).build()?;
    let (bb8, deadpool) = (peers::bb8(url, size).await?, peers::deadpool(url, size)?);
    let mut pairs = [const { [Vec::new(), Vec::new()] }; 2];
    // The first round opens the connections, and is not counted.
    for round in 0..=rounds {
        let mut times = [0.0; 3];
        for turn in 0..3 {
            let side = (round + turn) % 3;
            times[side] = match side {
                0 => per_call(&ours, workload).await?,
                1 => per_call(&bb8, workload).await?,
                _ => per_call(&deadpool, workload).await?,
            };
        }
        if round > 0 {
            let [ours, bb8, deadpool] = times;
            pairs[0][0].push(Pair { ours, rival: bb8 });
            pairs[1][0].push(Pair { ours, rival: deadpool });
        }
    }
    for _ in 0..rounds {
        let rate = OFFERED / per_call(&bb8, workload).await?;
        for _ in 0..SLICES {
            let tail_of_ours = tail(&ours, workload, rate).await?;
            let (of_bb8, of_deadpool) =
                (tail(&bb8, workload, rate).await?, tail(&deadpool, workload, rate).await?);
            pairs[0][1].push(Pair { ours: tail_of_ours, rival: of_bb8 });
            pairs[1][1].push(Pair { ours: tail_of_ours, rival: of_deadpool });
        }
    }
    ours.shutdown(Duration::from_secs(5)).await?;
    Ok(pairs)
}

async fn tail(pool: &impl Peer, workload: Workload, rate: f64) -> Result<f64> {
    let mut tally = offer(pool, workload, rate, TIMES_SLICE).await?;
    Ok(tally.percentile(workload.tail()))
}

async fn per_call(pool: &impl Peer, workload: Workload) -> Result<f64> {
    Ok(drive(pool, workload, CALLERS, SLICE).await?.whole()?.recip())
}
