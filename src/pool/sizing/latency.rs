//! Limits that follow the time per query: for comparison, and for servers that only a latency describes.
//!
//! Both are Netflix's ([concurrency-limits](https://github.com/Netflix/concurrency-limits), `Gradient2Limit` and
//! `AIMDLimit`), with their constants, stepped once per window with the mean time that connections were out. Made for
//! requests that are much alike; where some take a hundred times longer, the mean is noise.

use std::time::Duration;

use super::{Bounds, Decision, Reason, Sample, Sizing};

/// Windows that the long-term mean looks back on.
const LONG: f64 = 600.0;
/// The first windows, whose plain mean is where the long-term mean starts.
const WARM_UP: u32 = 10;
/// How much slower than the long-term mean is no sign of overload.
const TOLERANCE: f64 = 1.5;
/// How many may wait on the server: what the limit grows by while times are good.
const QUEUE: f64 = 4.0;
/// How much of a new limit is believed at once.
const SMOOTHING: f64 = 0.2;
/// Windows with fewer returns say nothing.
const FEWEST: u64 = 10;

/// Grows while the time per query stays near its long-term mean, and shrinks as it rises above.
///
/// `limit := 0.8 × limit + 0.2 × (limit × clamp(1.5 × long ÷ now, 0.5, 1) + 4)`, where `long` is the mean over about
/// 600 windows. Left alone while less than half of the limit is in use.
///
/// The long-term mean follows a slow server within minutes, so that being slow becomes normal: it settles above the
/// best size, and drifts.
#[derive(Clone, Debug)]
pub struct Gradient2 {
    bounds: Bounds,
    limit: f64,
    long: f64,
    windows: u32,
}

impl Gradient2 {
    /// Sizes within the bounds, from `initial` on.
    #[must_use]
    pub fn new(bounds: Bounds, initial: u32) -> Self {
        Self { bounds, limit: f64::from(bounds.clamp(initial)), long: 0.0, windows: 0 }
    }

    /// The long-term mean after one more window.
    fn long_after(&mut self, now: f64) -> f64 {
        self.windows = self.windows.saturating_add(1);
        if self.windows <= WARM_UP {
            self.long += (now - self.long) / f64::from(self.windows);
        } else {
            self.long += (now - self.long) * 2.0 / (LONG + 1.0);
        }
        // After an overload the mean comes down faster than it went up.
        if self.long > 2.0 * now {
            self.long *= 0.95;
        }
        self.long
    }
}

impl Sizing for Gradient2 {
    fn step(&mut self, sample: &Sample, _now: Duration) -> Decision {
        let bounds = within(self.bounds, sample);
        if let Some(hold) = hold(sample) {
            let long = self.long_after(hold);
            if f64::from(sample.in_use_max) >= self.limit / 2.0 {
                let gradient = (TOLERANCE * long / hold).clamp(0.5, 1.0);
                self.limit += SMOOTHING * (self.limit * gradient + QUEUE - self.limit);
            }
        }
        self.limit = self.limit.clamp(f64::from(bounds.floor()), f64::from(bounds.ceiling()));
        Decision::new(self.target(), Reason::Rule("gradient of the time per query"))
    }

    fn target(&self) -> u32 {
        whole(self.limit)
    }

    fn proven(&self) -> u32 {
        self.target()
    }
}

/// Grows by one while at least half of the limit is in use, and shrinks by a tenth when callers gave up, connecting
/// failed or queries took longer than a limit.
///
/// Additive increase, multiplicative decrease: fair between processes that share a server, but without a failure it
/// has no reason to stop before the ceiling.
#[derive(Clone, Debug)]
pub struct Aimd {
    bounds: Bounds,
    limit: u32,
    slow: Duration,
}

impl Aimd {
    /// Sizes within the bounds, from `initial` on. A mean time per query above 5 s counts as a failure.
    #[must_use]
    pub fn new(bounds: Bounds, initial: u32) -> Self {
        Self { bounds, limit: bounds.clamp(initial), slow: Duration::from_secs(5) }
    }

    /// The mean time per query that counts as a failure; the default is 5 s.
    #[must_use]
    pub fn slow(mut self, slow: Duration) -> Self {
        self.slow = slow;
        self
    }
}

impl Sizing for Aimd {
    fn step(&mut self, sample: &Sample, _now: Duration) -> Decision {
        let bounds = within(self.bounds, sample);
        let failed = sample.timeouts > 0 || sample.connect_failures > 0 || sample.too_many_connections > 0;
        let slow = sample.mean_hold().is_some_and(|hold| hold > self.slow);
        let reason = if failed || slow {
            self.limit = whole(f64::from(self.limit) * 0.9);
            "a tenth less after a failure"
        } else if sample.in_use_max >= self.limit / 2 && sample.completed > 0 {
            self.limit = self.limit.saturating_add(1);
            "one more while in use"
        } else {
            "less than half is in use"
        };
        self.limit = bounds.clamp(self.limit);
        Decision::new(self.limit, Reason::Rule(reason))
    }

    fn target(&self) -> u32 {
        self.limit
    }

    fn proven(&self) -> u32 {
        self.limit
    }
}

fn within(bounds: Bounds, sample: &Sample) -> Bounds {
    bounds.below(sample.ceiling.unwrap_or(u32::MAX))
}

/// The mean time that connections were out, in seconds, where enough came back to tell.
fn hold(sample: &Sample) -> Option<f64> {
    let hold = sample.mean_hold()?.as_secs_f64();
    (sample.completed >= FEWEST && hold > 0.0).then_some(hold)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from a limit within u32 bounds")]
fn whole(limit: f64) -> u32 {
    limit as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds::new(1, 100).unwrap()
    }

    /// A second in which `in_use` connections were out, each for `hold` seconds.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
    fn sample(in_use: u32, hold: f64) -> Sample {
        Sample {
            window: Duration::from_secs(1),
            completed: (f64::from(in_use) / hold) as u64,
            in_use_mean: f64::from(in_use),
            in_use_max: in_use,
            ..Sample::default()
        }
    }

    #[test]
    fn gradient_grows_while_times_are_good_and_halves_as_they_double_again() {
        let mut gradient = Gradient2::new(bounds(), 20);
        // 20 × 1 + 4, a fifth of it believed: 20.8.
        gradient.step(&sample(20, 0.1), Duration::ZERO);
        assert!((gradient.limit - 20.8).abs() < 1e-9);
        for _ in 0..9 {
            gradient.step(&sample(20, 0.1), Duration::ZERO);
        }
        let before = gradient.target();
        for _ in 0..10 {
            gradient.step(&sample(20, 1.0), Duration::ZERO);
        }
        assert!(gradient.target() < before / 2 + 5, "{} after {before}", gradient.target());
    }

    #[test]
    fn gradient_leaves_a_limit_alone_that_is_not_in_use() {
        let mut gradient = Gradient2::new(bounds(), 40);
        for _ in 0..100 {
            gradient.step(&sample(10, 0.1), Duration::ZERO);
        }
        assert_eq!(gradient.target(), 40);
    }

    #[test]
    fn aimd_adds_one_and_takes_a_tenth() {
        let mut aimd = Aimd::new(bounds(), 20);
        aimd.step(&sample(20, 0.1), Duration::ZERO);
        assert_eq!(aimd.target(), 21);
        aimd.step(&Sample { timeouts: 1, ..sample(20, 0.1) }, Duration::ZERO);
        assert_eq!(aimd.target(), 18);
        aimd.step(&sample(18, 6.0), Duration::ZERO);
        assert_eq!(aimd.target(), 16);
        aimd.step(&sample(7, 0.1), Duration::ZERO);
        assert_eq!(aimd.target(), 16);
    }
}
