//! Where the crate reads the time.
//!
//! A front type reads its clock once per operation and passes the instant down, so that one decision
//! sees one time and every algorithm below can be tested with literals. Monotonic time decides every
//! life and every rate; wall time is for what other machines say in wall time (a token's `exp`).
//!
//! The system clock reads the processor's counter where that is fit for it (by way of `quanta`), in a third of
//! the time that the operating system takes. With feature `test-util` there is also [`Clock::manual`], which
//! moves only when told.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// A source of time, cheap to clone; clones agree.
///
/// Times are [`Instant`]s: nanoseconds since the clock was made, so that one fits an atomic.
#[derive(Clone)]
pub struct Clock(Source);

/// A monotonic time of one [`Clock`]: nanoseconds since that clock was made. Instants of different
/// clocks do not compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

#[derive(Clone)]
enum Source {
    System {
        counter: quanta::Clock,
        start: u64,
    },
    #[cfg_attr(not(any(test, feature = "test-util")), expect(dead_code, reason = "made by `manual` only"))]
    Manual(Arc<Moved>),
}

struct Moved {
    nanos: AtomicU64,
    wall_at_zero: SystemTime,
}

impl Clock {
    /// The clock of the machine. The first one in a process takes about a millisecond to be made.
    #[must_use]
    pub fn system() -> Self {
        let counter = quanta::Clock::new();
        let start = counter.raw();
        Self(Source::System { counter, start })
    }

    /// A clock that stands still until [`advance`](Self::advance) moves it and all its clones.
    ///
    /// ```
    /// use mcp_perf::clock::Clock;
    /// use std::time::Duration;
    ///
    /// let clock = Clock::manual();
    /// let start = clock.now();
    /// clock.advance(Duration::from_secs(60));
    /// assert_eq!(clock.now().since(start), Duration::from_secs(60));
    /// ```
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn manual() -> Self {
        let wall_at_zero = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self(Source::Manual(Arc::new(Moved { nanos: AtomicU64::new(0), wall_at_zero })))
    }

    /// Moves a [`manual`](Self::manual) clock forward, monotonic and wall time alike; does nothing to
    /// the system's.
    #[cfg(any(test, feature = "test-util"))]
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(moved) = &self.0 {
            moved.nanos.fetch_add(nanos(by), Ordering::SeqCst);
        }
    }

    /// The monotonic time.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Instant {
        match &self.0 {
            Source::System { counter, start } => Instant(counter.delta_as_nanos(*start, counter.raw())),
            Source::Manual(moved) => Instant(moved.nanos.load(Ordering::SeqCst)),
        }
    }

    /// The wall time, for comparing with what other machines wrote down.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the door that everybody else has to use")]
    pub fn wall(&self) -> SystemTime {
        match &self.0 {
            Source::System { .. } => SystemTime::now(),
            Source::Manual(moved) => {
                moved.wall_at_zero + Duration::from_nanos(moved.nanos.load(Ordering::SeqCst))
            }
        }
    }
}

impl Instant {
    /// This many nanoseconds after the clock was made.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock was made.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The time `by` later; the end of time (584 years) if that is too far.
    #[must_use]
    pub const fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.0 {
            Source::System { .. } => "system",
            Source::Manual(_) => "manual",
        };
        f.debug_tuple("Clock").field(&source).finish()
    }
}

/// A duration in nanoseconds; the longest one if it does not fit.
pub(crate) const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        #[expect(clippy::cast_possible_truncation, reason = "compared on the line above")]
        {
            nanos as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_clock_never_goes_back() {
        let clock = Clock::system();
        let mut before = clock.now();
        for _ in 0..100_000 {
            let now = clock.now();
            assert!(now >= before);
            before = now;
        }
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Instant(1).since(Instant(2)), Duration::ZERO);
        assert_eq!(Instant(1).after(Duration::MAX), Instant(u64::MAX));
    }

    #[test]
    fn clones_of_a_manual_clock_move_together() {
        let (one, two) = {
            let clock = Clock::manual();
            (clock.clone(), clock)
        };
        one.advance(Duration::from_secs(1));
        assert_eq!(two.now(), Instant::from_nanos(1_000_000_000));
        assert_eq!(two.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_800_000_001);
    }
}
