//! GCRA, the generic cell rate algorithm (ITU-T I.371), on one number per key.
//!
//! The number is the *theoretical arrival time* (TAT): when the key will have paid for everything it was
//! granted. With interval `T` per token, tolerance `burst × T` and cost `n`:
//!
//! ```text
//! new = max(TAT, now) + n × T          granted if new − now ≤ burst × T, and then TAT := new
//! retry after  new − now − burst × T   free again after  TAT − now
//! ```
//!
//! It admits what a token bucket admits, without a second word for the time of the last refill, so one
//! compare-and-swap decides. Time is counted in [`TICK`]s of 1/32 ns: whole nanoseconds would let
//! 7 million a second run 0.6 % fast. Products are made in 128 bits, sums saturate; 64 bits of ticks last
//! 18 years of uptime.

use std::time::Duration;

use crate::clock::Instant;

/// Ticks in a nanosecond.
const TICK: u64 = 32;
/// Below this many ticks per token the rate is off by more than 0.1 %.
const SHORTEST_INTERVAL: u128 = 500;
/// Half of what a `u64` holds: sums of two such spans do not saturate.
const LONGEST_SPAN: u128 = 1 << 62;

/// A time in ticks since the clock was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticks(pub(super) u64);

impl From<Instant> for Ticks {
    fn from(instant: Instant) -> Self {
        Self(instant.as_nanos().saturating_mul(TICK))
    }
}

/// A quota, ready for the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Emission {
    interval: u64,
    burst: u64,
    tolerance: u64,
}

/// What the arithmetic says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow {
        tat: Ticks,
    },
    Deny {
        retry_after: Ticks,
    },
    /// More than the burst: no waiting helps.
    Never,
}

impl Emission {
    /// `None` if the numbers are out of what the arithmetic holds exactly enough.
    #[expect(clippy::cast_possible_truncation, reason = "bounded by LONGEST_SPAN")]
    pub(super) fn new(count: u64, period: Duration, burst: u64) -> Option<Self> {
        let ticks = period.as_nanos().checked_mul(u128::from(TICK))?;
        let interval = (ticks + u128::from(count.saturating_sub(1))).checked_div(u128::from(count))?;
        let span = interval.checked_mul(u128::from(burst))?;
        ((SHORTEST_INTERVAL..=LONGEST_SPAN).contains(&interval) && span <= LONGEST_SPAN).then_some(Self {
            interval: interval as u64,
            burst,
            tolerance: span as u64,
        })
    }

    #[inline]
    pub(super) fn decide(self, tat: Ticks, now: Ticks, cost: u64) -> Verdict {
        if cost > self.burst {
            return Verdict::Never;
        }
        // Bounded by the span, since the cost is at most the burst.
        let new = tat.max(now).0.saturating_add(cost * self.interval);
        let debt = new - now.0;
        if debt <= self.tolerance() {
            Verdict::Allow { tat: Ticks(new) }
        } else {
            Verdict::Deny { retry_after: Ticks(debt - self.tolerance()) }
        }
    }

    /// What `cost` tokens add to the TAT. The cost has to be one that was allowed.
    #[inline]
    pub(super) fn charge(self, cost: u64) -> Ticks {
        Ticks(cost.saturating_mul(self.interval))
    }

    #[inline]
    pub(super) fn burst(self) -> u64 {
        self.burst
    }

    /// How long an empty bucket takes to be full.
    #[cfg(feature = "tower")]
    pub(super) fn refill(self) -> Duration {
        Ticks(self.tolerance()).duration()
    }

    #[inline]
    pub(super) fn tolerance(self) -> u64 {
        self.tolerance
    }
}

impl Ticks {
    /// Rounded up, so that whoever waits that long has waited long enough.
    pub(super) fn duration(self) -> Duration {
        Duration::from_nanos(self.0.div_ceil(TICK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000 * TICK;

    fn at(millisecond: u64) -> Ticks {
        Ticks(millisecond * MILLISECOND)
    }

    #[test]
    fn burst_then_one_per_interval() {
        let quota = Emission::new(10, Duration::from_secs(1), 3).unwrap();
        let mut tat = Ticks(0);
        for _ in 0..3 {
            let Verdict::Allow { tat: new } = quota.decide(tat, at(0), 1) else { panic!("within the burst") };
            tat = new;
        }
        assert_eq!(quota.decide(tat, at(0), 1), Verdict::Deny { retry_after: at(100) });
        assert_eq!(quota.decide(tat, at(60), 1), Verdict::Deny { retry_after: at(40) });
        assert_eq!(quota.decide(tat, at(100), 1), Verdict::Allow { tat: at(400) });
    }

    #[test]
    fn cost_above_the_burst_never_fits_and_cost_zero_always_does() {
        let quota = Emission::new(1, Duration::from_secs(60), 10).unwrap();
        assert_eq!(quota.decide(Ticks(0), at(0), 11), Verdict::Never);
        assert_eq!(quota.decide(Ticks(0), at(0), u64::MAX), Verdict::Never);
        assert_eq!(quota.decide(Ticks(7), at(0), 0), Verdict::Allow { tat: Ticks(7) });
    }

    #[test]
    fn extreme_quotas_and_times_do_not_wrap() {
        assert_eq!(Emission::new(u64::MAX, Duration::from_nanos(1), 1), None);
        assert_eq!(Emission::new(1, Duration::MAX, 1), None);
        assert_eq!(Emission::new(1, Duration::from_secs(86_400), 1_000_000), None);
        let quota = Emission::new(1, Duration::from_secs(86_400), 1_000).unwrap();
        let end = Ticks(u64::MAX);
        assert_eq!(quota.decide(end, end, 1_000), Verdict::Allow { tat: end });
        assert!(matches!(quota.decide(end, Ticks(0), 1), Verdict::Deny { .. }));
    }

    #[test]
    fn high_rates_are_exact_to_a_thousandth() {
        let quota = Emission::new(7_000_000, Duration::from_secs(1), 1).unwrap();
        let per_second = 1e9 * TICK as f64 / quota.interval as f64;
        assert!((per_second / 7e6 - 1.0).abs() < 1e-3, "{per_second}");
    }
}
