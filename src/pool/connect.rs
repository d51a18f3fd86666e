//! When to connect: how many attempts at once, how many in a second, and none for a while after several failed.
//!
//! A server that comes back, or one that is asked for forty connections in one moment, is kept down by just that. So
//! attempts go through a token bucket and a few at a time, and after [`FAILURES`] in a row a breaker opens: for a
//! *pause* nothing is tried, then one attempt is, and the next pause is longer if that fails. Pauses are decorrelated
//! (`min(cap, U(base, 3 × the last))`, as Finagle's and AWS's), so that processes which lost a server at one moment do
//! not come back in one.
//!
//! The breaker is around connecting, not around queries: with an open one, callers still get connections that work.

use std::time::Duration;

use crate::{Error, clock::Instant};

/// How many attempts have to fail in a row before there are pauses.
pub(super) const FAILURES: u32 = 3;
const BASE: Duration = Duration::from_millis(100);
/// Short enough for a server to be in use again soon after it is back, and nothing to it before.
const LONGEST: Duration = Duration::from_secs(2);
/// How soon to ask again while somebody else tries.
const SOON: Duration = Duration::from_millis(20);

/// Whether to connect now.
#[derive(Debug)]
pub(super) struct Turnstile {
    bucket: Bucket,
    breaker: Breaker,
    /// How the last attempt failed, if it did.
    last_error: Option<Error>,
}

/// What an opener is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    /// Ask again after this time.
    Wait(Duration),
}

/// A change of the breaker that the operator should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Opened,
    Closed,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Instant,
}

#[derive(Debug)]
enum Breaker {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration },
    Trying { pause: Duration },
}

impl Turnstile {
    /// Attempts come at `per_second`, and `burst` of them without delay.
    pub(super) fn new(per_second: f64, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self {
            bucket: Bucket { tokens: burst, burst, per_second, filled: now },
            breaker: Breaker::Closed { failures: 0 },
            last_error: None,
        }
    }

    /// Whether an attempt may be made now. Whoever may has to say how it went.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        match self.breaker {
            Breaker::Open { until, .. } if now < until => return Turn::Wait(until.since(now)),
            Breaker::Trying { .. } => return Turn::Wait(SOON),
            Breaker::Closed { .. } | Breaker::Open { .. } => {}
        }
        let turn = self.bucket.take(now);
        if let (Turn::Now, Breaker::Open { pause, .. }) = (turn, &self.breaker) {
            self.breaker = Breaker::Trying { pause: *pause };
        }
        turn
    }

    pub(super) fn succeeded(&mut self) -> Option<Change> {
        self.last_error = None;
        match std::mem::replace(&mut self.breaker, Breaker::Closed { failures: 0 }) {
            Breaker::Closed { .. } => None,
            Breaker::Open { .. } | Breaker::Trying { .. } => Some(Change::Closed),
        }
    }

    /// An attempt failed, or was given up. `random` in 0..1.
    pub(super) fn failed(&mut self, error: Option<&Error>, now: Instant, random: f64) -> Option<Change> {
        if let Some(error) = error {
            self.last_error = Some(error.clone());
        }
        let (last, change) = match self.breaker {
            Breaker::Closed { failures } if failures + 1 < FAILURES => {
                self.breaker = Breaker::Closed { failures: failures + 1 };
                return None;
            }
            Breaker::Closed { .. } => (BASE, Some(Change::Opened)),
            // One that began before the breaker opened says nothing new.
            Breaker::Open { .. } => return None,
            Breaker::Trying { pause } => (pause, None),
        };
        let pause = (BASE + (last * 3).saturating_sub(BASE).mul_f64(random)).min(LONGEST);
        self.breaker = Breaker::Open { until: now.after(pause), pause };
        change
    }

    /// Why nothing is tried for the time being; `None` if something is, or would be.
    pub(super) fn refusal(&self, now: Instant) -> Option<Error> {
        match self.breaker {
            Breaker::Open { until, .. } if now < until => self.last_error.clone(),
            Breaker::Trying { .. } => self.last_error.clone(),
            Breaker::Closed { .. } | Breaker::Open { .. } => None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.breaker, Breaker::Closed { .. })
    }

    pub(super) fn last_error(&self) -> Option<&Error> {
        self.last_error.as_ref()
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> Turn {
        let grown = now.since(self.filled).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + grown).min(self.burst);
        self.filled = self.filled.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Turn::Now;
        }
        let missing = (1.0 - self.tokens) / self.per_second;
        Turn::Wait(Duration::try_from_secs_f64(missing).unwrap_or(LONGEST).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn error() -> Error {
        Error::new(ErrorKind::Unavailable, "as the test wants it")
    }

    #[test]
    fn burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut turnstile = Turnstile::new(10.0, 2, at(0));
        assert_eq!([turnstile.turn(at(0)), turnstile.turn(at(0))], [Turn::Now, Turn::Now]);
        assert_eq!(turnstile.turn(at(0)), Turn::Wait(Duration::from_millis(100)));
        assert_eq!(turnstile.turn(at(100)), Turn::Now);
        assert!(matches!(turnstile.turn(at(150)), Turn::Wait(_)));
    }

    #[test]
    fn pauses_grow_and_end_with_the_first_success() {
        let mut turnstile = Turnstile::new(1_000.0, 1_000, at(0));
        for _ in 1..FAILURES {
            assert_eq!(turnstile.failed(Some(&error()), at(0), 0.5), None);
            assert_eq!(turnstile.turn(at(0)), Turn::Now);
        }
        assert_eq!(turnstile.failed(Some(&error()), at(0), 1.0), Some(Change::Opened));
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..6 {
            let Turn::Wait(pause) = turnstile.turn(at(now)) else { panic!() };
            assert!(turnstile.refusal(at(now)).is_some());
            pauses.push(pause.as_millis());
            now += u64::try_from(pause.as_millis()).unwrap();
            assert!(turnstile.refusal(at(now)).is_none(), "somebody has to try");
            assert_eq!(turnstile.turn(at(now)), Turn::Now);
            assert_eq!(turnstile.turn(at(now)), Turn::Wait(SOON), "one at a time");
            assert_eq!(turnstile.failed(None, at(now), 1.0), None);
        }
        assert_eq!(pauses, [300, 900, 2_000, 2_000, 2_000, 2_000]);
        assert_eq!(turnstile.succeeded(), Some(Change::Closed));
        assert_eq!(turnstile.turn(at(now)), Turn::Now);
        assert!(turnstile.last_error().is_none());
    }
}
