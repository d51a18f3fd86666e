//! What a pool measured in one window.

use std::time::Duration;

/// What a pool measured in one window of about a second: the only thing that an algorithm sees.
///
/// Every field may hold any value; what makes no sense (a `NaN`, a window of no length) is left out of account. To
/// make one, change the fields of [`Sample::default`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// How long was measured.
    pub window: Duration,
    /// How many connections were given back.
    pub completed: u64,
    /// How long they had been out: the geometric mean, `exp(mean(ln(time)))`. Where a few queries take a hundred times
    /// longer, it tells a slower server from another mix of queries long before the count of returns does. Zero says
    /// that it is not measured, and the median serves instead: the coarser its histogram, the worse.
    pub hold_typical: Duration,
    /// How long they had been out: the median.
    pub hold_p50: Duration,
    /// How long they had been out: 99 % no longer than this.
    pub hold_p99: Duration,
    /// How many of them had been out for more than [ten times](Self::SLOW) of what is typical, and how long those had been on
    /// average. Where a few queries take a hundred times longer, what is done depends on how many of them there are, which
    /// is chance, and on how long they take, which is not. Zero says that there are none, or that it is not measured.
    pub slow: u64,
    /// How long those had been out: the mean.
    pub hold_slow: Duration,
    /// How long a query would take on average if as many of them were slow as usually are: by
    /// [`Hold`](super::hold::Hold).
    pub(crate) hold_mixed: Duration,
    /// How long callers waited for a permit, without connecting and checking: the median, those who did not wait
    /// included.
    pub wait_p50: Duration,
    /// How long callers waited for a permit: 95 % no longer than this.
    pub wait_p95: Duration,
    /// How long callers waited for a permit: 99 % no longer than this.
    pub wait_p99: Duration,
    /// How many callers wait at the end of the window.
    pub waiting: u32,
    /// The most callers that waited at once.
    pub max_waiting: u32,
    /// The most permits that were free and kept from those who waited, for a class that is sure of them.
    pub max_kept: u32,
    /// How many connections were out, averaged over time.
    pub in_use_mean: f64,
    /// The most connections that were out at once.
    pub in_use_max: u32,
    /// Whether every permit was out at some time, or kept for a class that is sure of it while others waited.
    pub was_full: bool,
    /// The share of the window, 0 to 1, during which every permit was out, or kept for others, and callers waited.
    pub full_fraction: f64,
    /// The size in force at the end of the window, in connections: permits that are out and will not be given out
    /// again are not counted. Zero says that it is not known, and what was wanted is taken to be in force.
    pub target: u32,
    /// Whether the pool went back to a larger size within the window, as a decision's
    /// [`retreat`](super::Decision::retreat) said.
    pub has_retreated: bool,
    /// Connections that are open at the end of the window, in use or not.
    pub open: u32,
    /// The largest size that is allowed from now on, where something besides the algorithm's own bounds says so (the
    /// share of a budget that several processes have).
    pub ceiling: Option<u32>,
    /// Callers that gave up waiting because of their deadline.
    pub timeouts: u64,
    /// Attempts to connect that failed, for whatever reason but the next field's.
    pub connect_failures: u64,
    /// Attempts to connect that the server refused because it has too many connections (SQLSTATE 53300).
    pub too_many_connections: u64,
}

impl Sample {
    /// So many times what is typical is slow.
    pub const SLOW: u32 = 10;

    /// Returns per second, if any can be told.
    pub(super) fn throughput(&self) -> Option<f64> {
        let seconds = self.window.as_secs_f64();
        (seconds > 0.0).then(|| self.completed as f64 / seconds)
    }

    /// The share of the window during which somebody waited: 0 to 1, and 0 if nobody can have.
    pub(super) fn backlog(&self) -> f64 {
        if self.max_waiting.max(self.waiting) == 0 || self.full_fraction.is_nan() {
            return 0.0;
        }
        self.full_fraction.clamp(0.0, 1.0)
    }

    /// How long a typical connection was out: zero if that is not known.
    pub(super) fn typical_hold(&self) -> Duration {
        if self.hold_typical.is_zero() { self.hold_p50 } else { self.hold_typical }
    }

    /// How long a query takes on average, with as many slow ones as there usually are; what is typical if that is not
    /// known.
    pub(super) fn mixed_hold(&self) -> Duration {
        if self.hold_mixed.is_zero() { self.typical_hold() } else { self.hold_mixed }
    }

    /// The mean time that connections were out, by Little's law: mean in use ÷ returns per second.
    pub(super) fn mean_hold(&self) -> Option<Duration> {
        let hold = self.in_use_mean / self.throughput()?;
        Duration::try_from_secs_f64(hold).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_left_out_of_account() {
        let mut sample =
            Sample { completed: 7, full_fraction: f64::NAN, max_waiting: 3, ..Sample::default() };
        assert_eq!((sample.throughput(), sample.mean_hold()), (None, None));
        assert!(sample.backlog().abs() < f64::EPSILON);
        sample.full_fraction = f64::INFINITY;
        assert!((sample.backlog() - 1.0).abs() < f64::EPSILON);
        sample.window = Duration::from_secs(2);
        for in_use in [f64::NAN, -1.0, f64::MAX] {
            sample.in_use_mean = in_use;
            assert_eq!(sample.mean_hold(), None);
        }
        sample.in_use_mean = 7.0;
        assert_eq!(sample.mean_hold(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn without_anybody_waiting_there_is_no_backlog() {
        let sample = Sample { full_fraction: 1.0, was_full: true, ..Sample::default() };
        assert!(sample.backlog().abs() < f64::EPSILON);
    }
}
