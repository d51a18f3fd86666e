//! How long a value is fresh, for how long it is kept after that, and when to load it again before.
//!
//! ```text
//! loaded ─────────────── fresh ───────────────▶ stale, served at once ───▶ stale, served if need be ───▶ gone
//!         0.9 of its life, or XFetch: ▲          (stale_while_revalidate)    (stale_if_error)
//!         a hit starts a load
//! ```
//!
//! Life and freshness are two things: what is no longer fresh may still be the best answer there is, when the
//! source is slow or down. All of it is arithmetic of times here, told by literals in the tests.
//!
//! `XFetch`: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015. A reader
//! loads ahead of time if `now + load time · (-ln random) ≥ expiry`, so that of many readers (and of many processes
//! that read one entry) one begins early enough, and how early adapts to what a load takes.

use std::time::Duration;

use super::key::Key;
use crate::clock::{Instant, nanos};

/// From this share of its life on a value is loaded ahead whatever `XFetch` says.
const LATE: u64 = 10; // the last tenth
/// So many load times before the end `XFetch` is not asked: it would say yes once in e^10 readers.
const XFETCH_REACH: u64 = 10;

/// What a cache was told about the lives of its values.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) time_to_live: Duration,
    pub(super) negative_time_to_live: Option<Duration>,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
    pub(super) stale_throttle: Option<Duration>,
    pub(super) jitter: f64,
    pub(super) refresh_ahead: bool,
}

/// The times of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) fresh_until: Instant,
    /// When a hit may begin to start a load; `fresh_until` if never.
    pub(crate) ahead_from: Instant,
    /// When it starts one in any case.
    late_from: Instant,
    /// Until when it may be served though it is stale, without waiting.
    pub(crate) revalidate_until: Instant,
    /// Until when it is served though it is stale, and without another attempt: the last one failed.
    pub(crate) throttled_until: Instant,
    pub(crate) dies_at: Instant,
    /// What the load took, in microseconds.
    pub(crate) load_cost: u32,
    /// Whether it is stale because it was made to expire.
    pub(crate) was_expired: bool,
}

/// How a value stands at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Fresh,
    /// Fresh, and a load is due.
    Due,
    /// To be served at once, while a load runs.
    Revalidate,
    /// To be served at once, without a load.
    Throttled,
    /// To be served if a load fails or is slow.
    Stale,
    Gone,
}

impl Policy {
    /// The life of a value that was asked to live for `wanted`: no longer than that, and a little different for
    /// every key and time, so that what was loaded together does not expire together.
    pub(super) fn life(&self, wanted: Option<Duration>, key: &Key<'_>, now: Instant) -> Duration {
        let life = wanted.unwrap_or(self.time_to_live).min(super::MAX_TIME_TO_LIVE);
        if self.jitter == 0.0 {
            return life;
        }
        #[expect(clippy::cast_precision_loss, reason = "a random share")]
        let share =
            xxhash_rust::xxh3::xxh3_64_with_seed(key.bytes(), now.as_nanos()) as f64 / u64::MAX as f64;
        life.mul_f64(1.0 - self.jitter * share)
    }

    /// The life of the answer that there is no value, which was asked to live for `wanted`: no longer than that.
    pub(super) fn negative_life(&self, wanted: Option<Duration>) -> Duration {
        let default = (self.time_to_live / 10).min(Duration::from_secs(5));
        wanted.or(self.negative_time_to_live).unwrap_or(default).min(super::MAX_TIME_TO_LIVE)
    }

    /// For how long a value outlives its freshness.
    pub(super) fn afterlife(&self) -> Duration {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    /// For how long a stale value is served after a failed load before the next attempt.
    pub(super) fn throttle(&self) -> Duration {
        let default = (self.time_to_live / 2).min(Duration::from_secs(30));
        self.stale_throttle.unwrap_or(default)
    }

    /// The times of a value that is fresh for `fresh` from `from` on.
    pub(super) fn times(&self, from: Instant, fresh: Duration, load_cost: Duration) -> Times {
        self.times_of_kept(from, Duration::ZERO, fresh, fresh + self.afterlife(), load_cost)
    }

    /// The times of a value that is `age` old at `from`, is fresh for `whole` in all, and has `life` left.
    pub(super) fn times_of_kept(
        &self,
        from: Instant,
        age: Duration,
        whole: Duration,
        life: Duration,
        load_cost: Duration,
    ) -> Times {
        let fresh_until = from.after(whole.saturating_sub(age));
        // Of its time after that too some may be over.
        let window = self.stale_while_revalidate.saturating_sub(age.saturating_sub(whole));
        let before_end =
            |nanos: u64| Instant::from_nanos(fresh_until.as_nanos().saturating_sub(nanos)).max(from);
        let late_from = before_end(nanos(whole) / LATE);
        let dies_at = from.after(life);
        Times {
            fresh_until,
            ahead_from: match self.refresh_ahead {
                true => before_end(nanos(load_cost).saturating_mul(XFETCH_REACH)).min(late_from),
                false => fresh_until,
            },
            late_from,
            revalidate_until: fresh_until.after(window).min(dies_at),
            throttled_until: Instant::default(),
            dies_at,
            load_cost: u32::try_from(load_cost.as_micros()).unwrap_or(u32::MAX),
            was_expired: false,
        }
    }
}

impl Times {
    /// The times of what is never stale: it is fresh for `fresh` and then gone.
    pub(crate) fn mortal(from: Instant, fresh: Duration) -> Self {
        Self::mortal_until(from.after(fresh), 0)
    }

    pub(crate) fn mortal_until(fresh_until: Instant, load_cost: u32) -> Self {
        Self {
            fresh_until,
            ahead_from: fresh_until,
            late_from: fresh_until,
            revalidate_until: fresh_until,
            throttled_until: Instant::default(),
            dies_at: fresh_until,
            load_cost,
            was_expired: false,
        }
    }

    /// Whether a value stands the same by either at any time.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        // When it is late matters to those alone who look ahead.
        let looks_ahead = self.ahead_from < self.fresh_until;
        let late_from = if looks_ahead { self.late_from } else { other.late_from };
        Self { late_from, ..*self } == *other
    }

    /// How a value stands that nothing invalidated.
    ///
    /// `random` is asked for a number in (0, 1] if chance decides.
    pub(crate) fn standing(&self, now: Instant, random: impl FnOnce() -> f64) -> Standing {
        if now < self.ahead_from {
            Standing::Fresh
        } else if now < self.fresh_until {
            if self.is_due(now, random) { Standing::Due } else { Standing::Fresh }
        } else if now < self.throttled_until.min(self.dies_at) {
            Standing::Throttled
        } else if now < self.revalidate_until {
            Standing::Revalidate
        } else if now < self.dies_at {
            Standing::Stale
        } else {
            Standing::Gone
        }
    }

    /// How a value stands that was made to expire since, or of which nobody knows whether it was removed elsewhere.
    /// That a load of it failed before then is no reason not to try.
    pub(crate) fn standing_of_unconfirmed(&self, now: Instant) -> Standing {
        let has_afterlife = self.fresh_until < self.dies_at;
        if now < self.dies_at && has_afterlife { Standing::Stale } else { Standing::Gone }
    }

    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a load")]
    fn is_due(&self, now: Instant, random: impl FnOnce() -> f64) -> bool {
        let load = f64::from(self.load_cost) * 1_000.0;
        let left = self.fresh_until.since(now).as_nanos() as f64;
        now >= self.late_from || load * -random().ln() >= left
    }

    /// The times of a value whose load failed at `now`: the next attempt is `throttle` away.
    pub(crate) fn after_failure(self, now: Instant, throttle: Duration) -> Self {
        let again = now.after(throttle);
        let later = again.min(self.fresh_until);
        Self {
            ahead_from: self.ahead_from.max(later),
            late_from: self.late_from.max(later),
            throttled_until: again,
            ..self
        }
    }

    /// The times of a value that is stale from now on, whatever it was.
    pub(crate) fn expired(self, now: Instant) -> Self {
        let earlier = |time: Instant| time.min(now);
        Self {
            fresh_until: earlier(self.fresh_until),
            ahead_from: earlier(self.ahead_from),
            late_from: earlier(self.late_from),
            revalidate_until: earlier(self.revalidate_until),
            throttled_until: Instant::default(),
            // What was never to be stale is gone.
            dies_at: if self.fresh_until < self.dies_at { self.dies_at } else { earlier(self.dies_at) },
            load_cost: self.load_cost,
            was_expired: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy {
            time_to_live: 100 * SECOND,
            negative_time_to_live: None,
            stale_while_revalidate: 20 * SECOND,
            stale_if_error: 50 * SECOND,
            stale_throttle: None,
            jitter: 0.0,
            refresh_ahead: true,
        }
    }

    fn at(second: u64) -> Instant {
        Instant::from_nanos(second * 1_000_000_000)
    }

    fn standing(times: &Times, second: u64) -> Standing {
        // The least likely chance: nobody loads ahead by it.
        times.standing(at(second), || 1.0)
    }

    #[test]
    fn value_goes_through_its_standings_in_their_order() {
        let times = policy().times(at(0), 100 * SECOND, SECOND);
        let seconds = [0, 89, 90, 99, 100, 119, 120, 149, 150];
        let standings = seconds.map(|second| standing(&times, second));
        let (fresh, due, stale) = (Standing::Fresh, Standing::Due, Standing::Stale);
        let revalidate = Standing::Revalidate;
        assert_eq!(standings, [fresh, fresh, due, due, revalidate, revalidate, stale, stale, Standing::Gone]);
    }

    #[test]
    fn without_stale_windows_a_value_is_fresh_and_then_gone() {
        let policy = Policy {
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            refresh_ahead: false,
            ..policy()
        };
        let times = policy.times(at(0), 100 * SECOND, SECOND);
        assert_eq!([99, 100].map(|second| standing(&times, second)), [Standing::Fresh, Standing::Gone]);
        assert_eq!(
            times,
            Policy { refresh_ahead: true, ..policy.clone() }.times(at(0), 100 * SECOND, SECOND).not_ahead()
        );
        assert_eq!(times.expired(at(5)).standing_of_unconfirmed(at(5)), Standing::Gone);
    }

    impl Times {
        fn not_ahead(self) -> Self {
            Self { ahead_from: self.fresh_until, ..self }
        }
    }

    /// P(load ahead at τ before the end) = e^(-τ / load time).
    #[test]
    fn chance_of_a_load_ahead_is_that_of_xfetch() {
        let times = policy().times(at(0), 100 * SECOND, 20 * SECOND);
        let mut random = fastrand::Rng::with_seed(1);
        for (second, expected) in [(80, 0.367_9), (60, 0.135_3), (40, 0.049_8)] {
            let draws = 20_000;
            let due = |_: &u32| times.standing(at(second), || 1.0 - random.f64()) == Standing::Due;
            #[expect(clippy::cast_precision_loss, reason = "a small count")]
            let share = (0..draws).filter(due).count() as f64 / f64::from(draws);
            assert!((share - expected).abs() < 0.015, "{second} s: {share}, not {expected}");
        }
    }

    #[test]
    fn failed_load_is_not_repeated_while_the_throttle_lasts() {
        let mut times = policy().times(at(0), 100 * SECOND, SECOND);
        times.throttled_until = at(130);
        assert_eq!(standing(&times, 129), Standing::Throttled);
        assert_eq!(standing(&times, 130), Standing::Stale);
        times.throttled_until = at(1_000);
        assert_eq!(standing(&times, 150), Standing::Gone, "a throttle does not lengthen a life");
    }

    #[test]
    fn value_that_was_made_to_expire_is_never_served_without_an_attempt() {
        let times = policy().times(at(0), 100 * SECOND, SECOND);
        assert_eq!(times.standing_of_unconfirmed(at(10)), Standing::Stale);
        let expired = times.expired(at(10));
        assert_eq!(standing(&expired, 10), Standing::Stale);
        assert_eq!(standing(&expired, 149), Standing::Stale);
        assert_eq!(standing(&expired, 150), Standing::Gone);
    }

    #[test]
    fn jitter_takes_and_never_gives() {
        let policy = Policy { jitter: 0.1, ..policy() };
        let lives: Vec<_> =
            (0..1_000).map(|key: u32| policy.life(None, &Key::public(&key.to_le_bytes()), at(7))).collect();
        assert!(lives.iter().all(|life| (90 * SECOND..=100 * SECOND).contains(life)));
        let distinct: std::collections::HashSet<_> = lives.iter().collect();
        assert!(distinct.len() > 990);
        assert_eq!(
            lives[5],
            policy.life(None, &Key::public(&5_u32.to_le_bytes()), at(7)),
            "same for all nodes"
        );
    }
}
