//! A trial: another size for some seconds, and whether it stays.

use std::time::Duration;

use super::{
    Reason, Sample,
    rates::{Estimate, Rates},
};

/// How long the connections of a trial may take to be open, or the callers to give back what is too many.
const SETTLES: Duration = Duration::from_secs(10);
/// How long is measured at most, while chance could still explain what is seen.
const LONGEST: Duration = Duration::from_secs(30);
/// Standard errors by which a result has to differ from what would be needed. It is looked at after every window, so
/// there are more than one chances to be wrong.
const CERTAIN: f64 = 2.5;
/// Below this share of the time with callers waiting, the queue is gone.
const QUEUE_GONE: f64 = 0.25;

/// More or fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

impl Direction {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// A size that is being tried.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) from: u32,
    pub(super) size: u32,
    /// What was done per second at the size that it started from.
    before: Estimate,
    /// By what share throughput has to change for the size to stay: to rise for more, not to fall for fewer.
    needed: f64,
    began: Duration,
    settled: Option<Duration>,
    rates: Rates,
    windows: f64,
    backlog: f64,
}

/// What became of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Measuring,
    Keep(Reason),
    Revert(Reason),
    Void,
}

impl Trial {
    /// A trial of `size` in place of `from`, where throughput has to change by `gain` for every share of the size.
    pub(super) fn new(from: u32, size: u32, before: Estimate, gain: f64, now: Duration) -> Self {
        let share = f64::from(size) / f64::from(from) - 1.0;
        Self {
            from,
            size,
            before,
            needed: gain * share,
            began: now,
            settled: None,
            rates: Rates::default(),
            windows: 0.0,
            backlog: 0.0,
        }
    }

    pub(super) fn direction(&self) -> Direction {
        if self.size > self.from { Direction::Up } else { Direction::Down }
    }

    /// Takes in a window.
    pub(super) fn judge(&mut self, sample: &Sample, now: Duration) -> Verdict {
        if sample.connect_failures > 0 {
            return Verdict::Void;
        }
        let Some(settled) = self.settled else {
            // The window in which the size came into force holds both sizes, and so do the times of the queries that
            // were under way.
            let under_way = sample.hold_p50.saturating_mul(2).min(SETTLES);
            self.settled = self.is_in_force(sample).then(|| now.saturating_add(under_way));
            let late = self.settled.is_none() && now.saturating_sub(self.began) > SETTLES;
            return if late { Verdict::Void } else { Verdict::Measuring };
        };
        if now.saturating_sub(sample.window) >= settled {
            self.rates.push(sample.completed, sample.window, usize::MAX);
            self.windows += 1.0;
            self.backlog += sample.backlog();
        }
        self.verdict(now.saturating_sub(settled))
    }

    fn is_in_force(&self, sample: &Sample) -> bool {
        match self.direction() {
            Direction::Up => sample.open >= self.size || sample.backlog() < QUEUE_GONE,
            Direction::Down => sample.in_use_max <= self.size,
        }
    }

    fn verdict(&self, measured: Duration) -> Verdict {
        let Some(after) = self.rates.estimate() else {
            return if measured < LONGEST { Verdict::Measuring } else { Verdict::Void };
        };
        let change = after.relative_to(self.before);
        let excess = change.value - self.needed;
        let certain = excess.abs() > CERTAIN * change.error;
        if !certain && measured < LONGEST {
            return Verdict::Measuring;
        }
        let (before, after) = (self.before.mean, after.mean);
        let queue_gone = self.backlog / self.windows < QUEUE_GONE;
        if queue_gone && change.value > -2.0 * change.error {
            Verdict::Keep(Reason::DemandMet)
        } else if excess > 0.0 && certain {
            Verdict::Keep(Reason::Kept { before, after })
        } else {
            Verdict::Revert(Reason::Reverted { before, after })
        }
    }

    /// What was measured at its size.
    pub(super) fn into_rates(self) -> Rates {
        self.rates
    }
}
