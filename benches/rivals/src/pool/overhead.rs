//! What the pool itself costs: a connection is taken and returned, and nothing is done with it.

use std::{hint::black_box, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    runtime::{self, Runtime},
    task::JoinSet,
};

use super::{
    Effort,
    nothing::{Lender, bb8, deadpool, ours},
};
use crate::{
    measure::{Rounds, Stopwatch, time, time_two_threads},
    report::Comparison,
};

/// What a turn in line, the permits and the figures may add to bb8.
const MORE: Duration = Duration::from_nanos(300);
const SIZE: u32 = 8;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Callers for two connections: three of four wait.
const CALLERS: u64 = 8;
const FEW: u32 = 2;

pub(super) fn run(effort: Effort) -> Result<()> {
    let plan = Rounds { count: effort.pick(Rounds::SHORT.count, 5), ..Rounds::SHORT };
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _entered = runtime.enter();
    let ours_of = |size| ours(size, TIMEOUT);
    let (bb8_of, deadpool_of) = (|size| runtime.block_on(bb8(size, TIMEOUT)), |size| deadpool(size, TIMEOUT));

    let (ours, bb8, deadpool) = (ours_of(SIZE)?, bb8_of(SIZE)?, deadpool_of(SIZE)?);
    let line = Comparison::nanoseconds;
    alone(line("pool.overhead.bb8", "bb8").at_most_more(MORE), plan, &runtime, &ours, &bb8)?;
    alone(line("pool.overhead.deadpool", "deadpool"), plan, &runtime, &ours, &deadpool)?;
    of_two(line("pool.overhead_2threads.bb8", "bb8"), plan, &runtime, &ours, &bb8)?;
    of_two(line("pool.overhead_2threads.deadpool", "deadpool"), plan, &runtime, &ours, &deadpool)?;

    let (ours, bb8, deadpool) = (ours_of(FEW)?, bb8_of(FEW)?, deadpool_of(FEW)?);
    in_line(line("pool.overhead_waiting.bb8", "bb8"), plan, &runtime, &ours, &bb8)?;
    in_line(line("pool.overhead_waiting.deadpool", "deadpool"), plan, &runtime, &ours, &deadpool)
}

/// Nobody else is there.
fn alone(
    line: Comparison<'_>,
    plan: Rounds,
    runtime: &Runtime,
    ours: &impl Lender,
    rival: &impl Lender,
) -> Result<()> {
    line.run(plan, &mut |count| Ok(time(|| runtime.block_on(take(ours, count)))), &mut |count| {
        Ok(time(|| runtime.block_on(take(rival, count))))
    })
}

/// Two threads that never wait for a connection, only for each other's use of the pool.
fn of_two(
    line: Comparison<'_>,
    plan: Rounds,
    runtime: &Runtime,
    ours: &impl Lender,
    rival: &impl Lender,
) -> Result<()> {
    line.run(
        plan,
        &mut |count| Ok(time_two_threads(|| (), |()| runtime.block_on(take(ours, count)))),
        &mut |count| Ok(time_two_threads(|| (), |()| runtime.block_on(take(rival, count)))),
    )
}

/// More callers than connections, who let the others go on while they hold one.
fn in_line(
    line: Comparison<'_>,
    plan: Rounds,
    runtime: &Runtime,
    ours: &impl Lender,
    rival: &impl Lender,
) -> Result<()> {
    line.run(plan, &mut |count| taking_turns(runtime, ours, count), &mut |count| {
        taking_turns(runtime, rival, count)
    })
}

async fn take(lender: &impl Lender, count: u64) {
    for _ in 0..count {
        drop(black_box(lender.get().await));
    }
}

fn taking_turns<L: Lender>(runtime: &Runtime, lender: &L, count: u64) -> Result<Duration> {
    let stopwatch = Stopwatch::start();
    runtime.block_on(async {
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let lender = lender.clone();
            callers.spawn(async move {
                for _ in 0..(count + caller) / CALLERS {
                    let held = lender.get().await.context("nothing to be had")?;
                    tokio::task::yield_now().await;
                    drop(held);
                }
                anyhow::Ok(())
            });
        }
        callers.join_all().await.into_iter().collect::<Result<()>>()
    })?;
    Ok(stopwatch.elapsed())
}
