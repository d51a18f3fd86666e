//! Callers that ask again as soon as they were answered, and what they came to.
//!
//! A fixed number of callers and no fixed rate: with more offered than can be done, the time since a call should have
//! begun says how long the overload has lasted, and nothing of the pool. With more callers than connections there is
//! always one who waits, and a call's time, from asking for a connection to the answer, is what the pool's size and
//! its order make of it.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{task::JoinSet, time::sleep};

use super::{peers::Peer, work::Workload};
use crate::measure::Stopwatch;

/// Whoever failed lets others go first.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What was done within a span.
#[derive(Default)]
pub(super) struct Tally {
    span: Duration,
    /// Of each call that was answered, in microseconds.
    times: Vec<u32>,
    pub(super) failures: u64,
    /// One of them.
    pub(super) failure: Option<anyhow::Error>,
}

impl Tally {
    pub(super) fn calls(&self) -> u64 {
        self.times.len() as u64
    }

    pub(super) fn rate(&self) -> f64 {
        self.times.len() as f64 / self.span.as_secs_f64()
    }

    /// The time, in seconds, that this share of the calls did not exceed.
    pub(super) fn percentile(&mut self, share: f64) -> f64 {
        let index = ((self.times.len() as f64 * share) as usize).min(self.times.len().saturating_sub(1));
        if self.times.is_empty() {
            return f64::NAN;
        }
        let (_, time, _) = self.times.select_nth_unstable(index);
        f64::from(*time) / 1e6
    }
}

/// Runs the callers for so long. Calls that end later do not count.
pub(super) async fn drive<P: Peer>(
    pool: &P,
    workload: Workload,
    callers: u32,
    span: Duration,
) -> Result<Tally> {
    let stopwatch = Arc::new(Stopwatch::start());
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        tasks.spawn(call_again(pool.clone(), workload, u64::from(caller), span, Arc::clone(&stopwatch)));
    }
    let mut all = Tally { span, ..Tally::default() };
    while let Some(tally) = tasks.join_next().await {
        let tally = tally?;
        all.times.extend(tally.times);
        all.failures += tally.failures;
        all.failure = all.failure.or(tally.failure);
    }
    Ok(all)
}

async fn call_again<P: Peer>(
    pool: P,
    workload: Workload,
    seed: u64,
    span: Duration,
    stopwatch: Arc<Stopwatch>,
) -> Tally {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tally = Tally::default();
    loop {
        let began = stopwatch.elapsed();
        let outcome = once(&pool, workload, &mut random).await;
        let ended = stopwatch.elapsed();
        if ended > span {
            return tally;
        }
        match outcome {
            Ok(()) => tally.times.push(u32::try_from((ended - began).as_micros()).unwrap_or(u32::MAX)),
            Err(error) => {
                tally.failures += 1;
                tally.failure = Some(error);
                sleep(AFTER_FAILURE).await;
            }
        }
    }
}

async fn once<P: Peer>(pool: &P, workload: Workload, random: &mut fastrand::Rng) -> Result<()> {
    workload.call(&mut pool.get().await?, random).await
}
