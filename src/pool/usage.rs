//! How the permits were used over a stretch of time: means by time, not by events.

use std::time::Duration;

use crate::clock::Instant;

/// What is counted since the last [`take`](Self::take).
#[derive(Debug)]
pub(super) struct Usage {
    began: Instant,
    /// Up to when time was counted.
    counted: Instant,
    /// Permits in use, times nanoseconds.
    permit_nanos: u64,
    full_nanos: u64,
    peak: u32,
    was_full: bool,
    peak_waiting: u32,
    peak_kept: u32,
}

/// The permits at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) in_use: u32,
    pub(super) target: u32,
    pub(super) waiting: u32,
    /// How many are free, and kept from those who wait: for a class that is sure of them.
    pub(super) kept: u32,
}

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) length: Duration,
    pub(super) in_use_mean: f64,
    pub(super) in_use_max: u32,
    /// Whether every permit was in use at some time, or kept from somebody who waited.
    pub(super) was_full: bool,
    /// For which share of the time that was so, and somebody waited; 0 to 1.
    pub(super) full_fraction: f64,
    pub(super) max_waiting: u32,
    /// The most that were kept from those who waited.
    pub(super) max_kept: u32,
    /// At the end.
    pub(super) level: Level,
}

impl Usage {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            counted: now,
            permit_nanos: 0,
            full_nanos: 0,
            peak: 0,
            was_full: false,
            peak_waiting: 0,
            peak_kept: 0,
        }
    }

    /// Counts the time up to now, through which the permits were at `level`: to be called before a change.
    #[inline]
    pub(super) fn count(&mut self, level: Level, now: Instant) {
        // Threads read the clock before they come here, so a later one may have the earlier time.
        if now <= self.counted {
            return;
        }
        let passed = now.as_nanos() - self.counted.as_nanos();
        self.permit_nanos = self.permit_nanos.saturating_add(u64::from(level.in_use).saturating_mul(passed));
        if level.is_full() && level.waiting > 0 {
            self.full_nanos += passed;
        }
        self.counted = now;
    }

    /// Takes note of where a change led.
    #[inline]
    pub(super) fn note(&mut self, level: Level) {
        self.peak = self.peak.max(level.in_use);
        self.peak_waiting = self.peak_waiting.max(level.waiting);
        self.peak_kept = self.peak_kept.max(level.kept);
        self.was_full |= level.is_full();
    }

    /// What was counted, and begins anew.
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub(super) fn take(&mut self, level: Level, now: Instant) -> Window {
        self.count(level, now);
        self.note(level);
        let length = self.counted.since(self.began);
        let share = |part: f64| if length.is_zero() { 0.0 } else { part / length.as_nanos() as f64 };
        let window = Window {
            length,
            in_use_mean: share(self.permit_nanos as f64),
            in_use_max: self.peak,
            was_full: self.was_full,
            full_fraction: share(self.full_nanos as f64),
            max_waiting: self.peak_waiting,
            max_kept: self.peak_kept,
            level,
        };
        *self = Self::new(self.counted);
        self.note(level);
        window
    }
}

impl Level {
    fn is_full(self) -> bool {
        self.in_use.saturating_add(self.kept) >= self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn mean_is_by_time() {
        let level = |in_use| Level { in_use, target: 4, waiting: in_use / 4, kept: 0 };
        let mut usage = Usage::new(at(0));
        usage.count(level(0), at(1));
        usage.note(level(4));
        usage.count(level(4), at(3));
        usage.note(level(2));
        let window = usage.take(level(2), at(4));
        assert_eq!((window.in_use_mean, window.in_use_max), (2.5, 4));
        assert_eq!((window.full_fraction, window.was_full), (0.5, true));
        assert_eq!(window.length, Duration::from_secs(4));
        let next = usage.take(level(2), at(5));
        assert_eq!((next.in_use_mean, next.in_use_max, next.was_full), (2.0, 2, false));
    }

    #[test]
    fn time_that_goes_back_is_not_counted_twice() {
        let level = Level { in_use: 1, target: 2, ..Level::default() };
        let mut usage = Usage::new(at(0));
        usage.count(level, at(2));
        usage.count(level, at(1));
        assert!((usage.take(level, at(2)).in_use_mean - 1.0).abs() < 1e-9);
        assert!(usage.take(level, at(2)).in_use_mean.abs() < 1e-9, "a window without length");
    }
}
