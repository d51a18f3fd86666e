//! How much is allowed.

use std::time::Duration;

use super::gcra::Emission;
use crate::Error;

/// So many per period, and at most so many at once.
///
/// What is not used accumulates up to the burst. Without [`burst`](Self::burst) the burst is the number per
/// period: `per_minute(60)` lets 60 through at once, and then one a second.
///
/// A quota over a long period wants a second policy over a short one beside it: 10,000 an hour are also
/// 10,000 in the first second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    count: u64,
    period: Duration,
    burst: u64,
}

impl Quota {
    /// `count` per `period`, neither of them zero: from one in four years to 64 million a second. Anything else is an error
    /// when the limiter is built.
    #[must_use]
    pub const fn per(count: u64, period: Duration) -> Self {
        Self { count, period, burst: count }
    }

    /// `count` per second.
    #[must_use]
    pub const fn per_second(count: u64) -> Self {
        Self::per(count, Duration::from_secs(1))
    }

    /// `count` per minute.
    #[must_use]
    pub const fn per_minute(count: u64) -> Self {
        Self::per(count, Duration::from_secs(60))
    }

    /// `count` per hour.
    #[must_use]
    pub const fn per_hour(count: u64) -> Self {
        Self::per(count, Duration::from_secs(60 * 60))
    }

    /// At most this many at once: at least one, and no more than are back within four years.
    #[must_use]
    pub const fn burst(mut self, burst: u64) -> Self {
        self.burst = burst;
        self
    }

    pub(super) fn emission(&self, policy: &str) -> Result<Emission, Error> {
        let wrong = |what: &str, problem: &str| {
            Err(Error::configuration(&format!("policy {policy:?}: quota {what}"), problem))
        };
        if self.count == 0 {
            return wrong("count", "must be at least 1");
        }
        if self.period.is_zero() {
            return wrong("period", "must be more than zero");
        }
        if self.burst == 0 {
            return wrong("burst", "must be at least 1");
        }
        match Emission::new(self.count, self.period, self.burst) {
            Some(emission) => Ok(emission),
            None if Emission::new(self.count, self.period, 1).is_some() => {
                wrong("burst", "would take more than four years to come back")
            }
            None => wrong("rate", "must be between one in four years and 64 million a second"),
        }
    }
}
