//! Callers, and what they came to.
//!
//! [`drive`] tells how much can be done: a fixed number of callers, who ask again as soon as they were answered, and of
//! whom there are more than connections. How long *they* waited says little: a pool that serves those who have just
//! been served, and lets the others starve, looks quick.
//!
//! [`offer`] tells how long a call takes: calls come by chance, at a rate that can be done, whether or not the ones
//! before were answered, and a call's time begins when it should have begun.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use tokio::{task::JoinSet, time::sleep};

use super::{peers::Peer, site::TIMEOUT, work::Workload};
use crate::measure::Stopwatch;

/// Whoever failed lets others go first.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What was done within a span.
#[derive(Default)]
pub(super) struct Tally {
    span: Duration,
    /// Of each call, in microseconds.
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

    /// Calls a second, all of which have to have gone well.
    pub(super) fn whole(self) -> Result<f64> {
        let rate = self.rate();
        if let Some(failure) = self.failure {
            return Err(failure.context("a call failed"));
        }
        ensure!(!self.times.is_empty(), "nothing was done");
        Ok(rate)
    }

    /// Takes in the times of another one's calls.
    pub(super) fn add_times_of(&mut self, other: &Self) {
        self.times.extend_from_slice(&other.times);
    }

    /// The time, in seconds, that this share of the calls did not exceed.
    pub(super) fn percentile(&mut self, share: f64) -> f64 {
        percentile(&mut self.times, share)
    }
}

/// The time, in seconds, that this share of those given in microseconds did not exceed.
pub(super) fn percentile(times: &mut [u32], share: f64) -> f64 {
    let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    if times.is_empty() {
        return f64::NAN;
    }
    let (_, time, _) = times.select_nth_unstable(index);
    f64::from(*time) / 1e6
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

/// Lets calls come at so many a second, for so long, and waits until all are answered. One that fails took as long as
/// anybody may wait: a pool that turns callers away is not a quick one.
pub(super) async fn offer<P: Peer>(pool: &P, workload: Workload, rate: f64, span: Duration) -> Result<Tally> {
    // In a task, so that it runs where the callers do.
    tokio::spawn(let_come(pool.clone(), workload, rate, span)).await?
}

async fn let_come<P: Peer>(pool: P, workload: Workload, rate: f64, span: Duration) -> Result<Tally> {
    let stopwatch = Arc::new(Stopwatch::start());
    let mut random = fastrand::Rng::with_seed(1);
    let mut calls = JoinSet::new();
    let mut due = Duration::ZERO;
    while due < span {
        // A timer is no finer than a millisecond: those of one come together, late, and that counts, too.
        sleep(due.saturating_sub(stopwatch.elapsed())).await;
        let now = stopwatch.elapsed();
        while due <= now {
            calls.spawn(call_at(pool.clone(), workload, due, random.fork(), Arc::clone(&stopwatch)));
            due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
        }
    }
    let mut all = Tally { span, ..Tally::default() };
    while let Some(call) = calls.join_next().await {
        match call? {
            Ok(time) => all.times.push(in_microseconds(time)),
            Err(error) => {
                all.times.push(in_microseconds(TIMEOUT));
                all.failures += 1;
                all.failure = Some(error);
            }
        }
    }
    Ok(all)
}

async fn call_at<P: Peer>(
    pool: P,
    workload: Workload,
    due: Duration,
    mut random: fastrand::Rng,
    stopwatch: Arc<Stopwatch>,
) -> Result<Duration> {
    once(&pool, workload, &mut random).await?;
    Ok(stopwatch.elapsed().saturating_sub(due))
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
            Ok(()) => tally.times.push(in_microseconds(ended - began)),
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

pub(super) fn in_microseconds(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
