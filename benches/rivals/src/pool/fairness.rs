//! One connection, two callers who ask for it again as soon as they have returned it, and one who does something else
//! in between. How long does that one wait?

use std::time::Duration;

use anyhow::Result;
use tokio::{
    runtime::{self, Runtime},
    task::JoinSet,
    time::sleep,
};

use super::{
    Effort,
    nothing::{Lender, bb8, deadpool, ours},
};
use crate::{figure::Figure, measure::Stopwatch};

const TIMEOUT: Duration = Duration::from_secs(3);
const HOLD: Duration = Duration::from_millis(1);
const ELSEWHERE: Duration = Duration::from_millis(5);
/// In milliseconds: some turns of the others, on a machine that has other things to do.
const WORST: f64 = 20.0;

/// What the callers came to.
struct Outcome {
    /// The polite one's, in seconds. The whole time-out if that was over.
    worst: f64,
    polite: u64,
    greedy: [u64; 2],
}

pub(super) fn run(effort: Effort) -> Result<()> {
    let span = effort.pick(TIMEOUT + Duration::from_secs(2), Duration::from_secs(1));
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _entered = runtime.enter();
    let of_ours = contest(&runtime, "ours", &ours(1, TIMEOUT)?, span)?;
    let of_bb8 = contest(&runtime, "bb8", &runtime.block_on(bb8(1, TIMEOUT))?, span)?;
    let of_deadpool = contest(&runtime, "deadpool", &deadpool(1, TIMEOUT)?, span)?;
    Figure::milliseconds("pool.fairness.worst_wait", of_ours.worst)
        .rival("bb8", of_bb8.worst)
        .rival("deadpool", of_deadpool.worst)
        .at_most(WORST)
        .print();
    Figure::count("pool.fairness.polite_gets", of_ours.polite)
        .rival("bb8", of_bb8.polite as f64)
        .rival("deadpool", of_deadpool.polite as f64)
        .print();
    Ok(())
}

fn contest<L: Lender>(runtime: &Runtime, name: &str, lender: &L, span: Duration) -> Result<Outcome> {
    let outcome = runtime.block_on(async {
        let stopwatch = Stopwatch::start();
        let mut greedy = JoinSet::new();
        for _ in 0..2 {
            let lender = lender.clone();
            greedy.spawn(async move {
                let (stopwatch, mut gets) = (Stopwatch::start(), 0);
                while stopwatch.elapsed() < span {
                    let held = lender.get().await;
                    gets += u64::from(held.is_some());
                    sleep(HOLD).await;
                    drop(held);
                }
                gets
            });
        }
        let (mut worst, mut polite) = (0.0_f64, 0);
        while stopwatch.elapsed() < span {
            sleep(ELSEWHERE).await;
            let wait = Stopwatch::start();
            let held = lender.get().await;
            worst = worst.max(wait.elapsed().as_secs_f64());
            polite += u64::from(held.is_some());
            drop(held);
        }
        let greedy = greedy.join_all().await;
        Outcome { worst, polite, greedy: [greedy[0], greedy[1]] }
    });
    let Outcome { polite, greedy: [one, other], .. } = outcome;
    eprintln!("pool.fairness: {name}: gets of the greedy {one} and {other}, of the polite one {polite}");
    Ok(outcome)
}
