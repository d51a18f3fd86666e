//! Where the crate reads the time.
//!
//! A front type reads its clock once per operation and passes the instant down, so that one decision
//! sees one time and every algorithm below can be tested with literals. Monotonic time decides every
//! life and every rate; wall time is for what other machines say in wall time (a token's `exp`).
//!
//! The system clock reads the processor's counter where that is fit for it (by way of `quanta`), in a third of
//! the time that the operating system takes. Counters may start anew when a machine wakes up or is moved, so every
//! 20 ms of use the counter is held against the system's clock, and given up for good if the two disagree. Who only
//! wants to know that a deadline is still to come asks the system's coarse clock, which stands in memory: to read the
//! counter also keeps the processor from working ahead (`cache.l1_hit` of the rivals bench shows what that costs). With
//! feature `test-util` there are also `Clock::manual`, which moves only when told, and `Clock::tokio`, which moves
//! as tokio's does.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
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
    System(Arc<Watched>),
    #[cfg_attr(not(any(test, feature = "test-util")), expect(dead_code, reason = "made by `manual` only"))]
    Manual(Arc<Moved>),
    #[cfg(any(test, feature = "test-util"))]
    Tokio(tokio::time::Instant),
}

struct Moved {
    nanos: AtomicU64,
    wall_at_zero: SystemTime,
}

/// The wall time at which the clocks of tests begin.
#[cfg(any(test, feature = "test-util"))]
const WALL_AT_ZERO: Duration = Duration::from_secs(1_800_000_000);

/// How long the counter is believed without a look at the system's clock, in nanoseconds: as far as a counter that
/// jumped may lead astray.
const TRUST: u64 = 20_000_000;
/// By how much the two may disagree, besides a thousandth of the time that passed.
const TOLERANCE: u64 = 2_000_000;

/// The processor's counter, held against the system's clock again and again.
struct Watched {
    counter: quanta::Clock,
    start: u64,
    origin: std::time::Instant,
    /// The counter when it was last found right.
    checked: AtomicU64,
    /// [`TRUST`] as the counter counts; zero once it was found wrong.
    trust: AtomicU64,
    /// The two at that time.
    last: Mutex<Both>,
    found_wrong: OnceLock<FoundWrong>,
    coarse: Option<Coarse>,
}

struct Both {
    counter: u64,
    system: u64,
}

/// When the counter was given up: what this clock said, and what the system said.
struct FoundWrong {
    now: u64,
    system: u64,
}

impl Clock {
    /// The clock of the machine. The first one in a process takes about a millisecond to be made.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System(Arc::new(Watched::new(quanta::Clock::new()))))
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
        let wall_at_zero = SystemTime::UNIX_EPOCH + WALL_AT_ZERO;
        Self(Source::Manual(Arc::new(Moved { nanos: AtomicU64::new(0), wall_at_zero })))
    }

    /// A clock that follows tokio's: where a test pauses that, lives, deadlines and delays move together, and a
    /// wait costs nothing.
    ///
    /// ```
    /// use mcp_perf::clock::Clock;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
    /// let clock = Clock::tokio();
    /// let start = clock.now();
    /// tokio::time::sleep(Duration::from_secs(3_600)).await; // returns at once: `tokio::test(start_paused = true)`
    /// assert!(clock.now().since(start) >= Duration::from_secs(3_600));
    /// # });
    /// ```
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the door that everybody else has to use")]
    pub fn tokio() -> Self {
        Self(Source::Tokio(tokio::time::Instant::now()))
    }

    /// Moves a [`manual`](Self::manual) clock forward, monotonic and wall time alike; does nothing to
    /// those of the system and of tokio.
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
            Source::System(watched) => Instant(watched.now()),
            Source::Manual(moved) => Instant(moved.nanos.load(Ordering::SeqCst)),
            #[cfg(any(test, feature = "test-util"))]
            Source::Tokio(origin) => Instant(nanos(origin.elapsed())),
        }
    }

    /// Whether `deadline` is still to come, for sure. "No" may be said a second early, after which who has to know
    /// asks [`now`](Self::now).
    ///
    /// Takes a third of the time of that where the system has a coarse clock.
    #[inline]
    pub(crate) fn is_surely_before(&self, deadline: Instant) -> bool {
        match &self.0 {
            Source::System(watched) => watched.is_surely_before(deadline.0),
            _ => self.now() < deadline,
        }
    }

    /// The wall time, for comparing with what other machines wrote down.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the door that everybody else has to use")]
    pub fn wall(&self) -> SystemTime {
        match &self.0 {
            Source::System(_) => SystemTime::now(),
            Source::Manual(moved) => {
                moved.wall_at_zero + Duration::from_nanos(moved.nanos.load(Ordering::SeqCst))
            }
            #[cfg(any(test, feature = "test-util"))]
            Source::Tokio(origin) => SystemTime::UNIX_EPOCH + WALL_AT_ZERO + origin.elapsed(),
        }
    }
}

impl Watched {
    #[expect(clippy::disallowed_methods, reason = "this is the door that everybody else has to use")]
    fn new(counter: quanta::Clock) -> Self {
        let many = 1 << 32;
        let start = counter.raw();
        Self {
            start,
            origin: std::time::Instant::now(),
            checked: AtomicU64::new(start),
            trust: AtomicU64::new(many / (counter.delta_as_nanos(0, many) / TRUST).max(1)),
            last: Mutex::new(Both { counter: start, system: 0 }),
            found_wrong: OnceLock::new(),
            coarse: Coarse::if_quicker_than(&counter),
            counter,
        }
    }

    #[inline]
    fn is_surely_before(&self, deadline: u64) -> bool {
        let Some(coarse) = &self.coarse else { return self.now() < deadline };
        let reading = read_coarse();
        match coarse.now_at_most(reading) {
            Some(now) => now < deadline,
            None => coarse.synchronize(reading, || self.now()) < deadline,
        }
    }

    #[inline]
    fn now(&self) -> u64 {
        let counter = self.counter.raw();
        // One that went back is far ahead as well.
        if counter.wrapping_sub(self.checked.load(Ordering::Relaxed)) < self.trust.load(Ordering::Relaxed) {
            self.counter.delta_as_nanos(self.start, counter)
        } else {
            self.check(|| nanos(self.origin.elapsed()))
        }
    }

    #[cold]
    fn check(&self, system: impl Fn() -> u64) -> u64 {
        // For good, so nobody has to wait for the others.
        if let Some(found) = self.found_wrong.get() {
            return found.now + system().saturating_sub(found.system);
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = self.found_wrong.get() {
            return found.now + system().saturating_sub(found.system);
        }
        let counter = self.counter.raw();
        let both = Both { counter, system: system() };
        let between = self.counter.raw().wrapping_sub(counter);
        let counted = match counter < last.counter {
            true => 0,
            false => self.counter.delta_as_nanos(last.counter, counter),
        };
        let passed = both.system.saturating_sub(last.system);
        // A thread that was interrupted in between has not read the two at one moment.
        let at_one_moment = self.counter.delta_as_nanos(0, between) < TOLERANCE / 2;
        if at_one_moment && counted.abs_diff(passed) > TOLERANCE + passed / 1_000 {
            let now = self.counter.delta_as_nanos(self.start, last.counter) + passed;
            let found = self.found_wrong.get_or_init(|| FoundWrong { now, system: both.system });
            self.trust.store(0, Ordering::Relaxed);
            tracing::warn!(
                counted,
                passed,
                "the processor's counter disagrees with the system's clock, and is used no more"
            );
            return found.now;
        }
        if at_one_moment && counter >= last.counter {
            self.checked.store(counter, Ordering::Relaxed);
            *last = both;
        }
        self.counter.delta_as_nanos(self.start, counter.max(last.counter))
    }
}

/// The clock that the system moves on at each of its ticks, which costs a third of what the counter does.
///
/// It lags, so that it can tell what is not yet, but not what is.
struct Coarse {
    /// By how much it may lag after it was held against the counter, in nanoseconds.
    slack: u64,
    /// What makes of a reading a time of ours that is not before now.
    ahead: AtomicU64,
    /// The reading until when `ahead` is good.
    good_until: AtomicU64,
}

/// For how long the system's clock and the counter are believed to go alike, in nanoseconds.
const COARSE_TRUST: u64 = 1_000_000_000;
/// By how much the coarse clock may lag, in nanoseconds. A tick, in principle, and what the two clocks differ by after
/// that time (one slews by no more than 500 in a million). But the tick comes from one processor, and where that is a
/// virtual one, others run on while it is not let run: ticks were seen tens of milliseconds late on a busy host.
const COARSE_LAG: u64 = 1_000_000_000;
/// The longest tick that is of use, in nanoseconds.
const LONGEST_TICK: u64 = 10_000_000;

impl Coarse {
    /// `None` where there is no such clock, where it is too coarse, and where it takes a call into the kernel.
    #[cfg(target_os = "linux")]
    fn if_quicker_than(counter: &quanta::Clock) -> Option<Self> {
        let tick = as_nanos(rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse));
        let quickest = |read: &dyn Fn() -> u64| {
            let took = |_| {
                let start = counter.raw();
                for _ in 0..16 {
                    std::hint::black_box(read());
                }
                counter.raw().wrapping_sub(start)
            };
            (0..8).map(took).min()
        };
        let is_quicker = quickest(&read_coarse) < quickest(&|| counter.raw());
        (is_quicker && (1..=LONGEST_TICK).contains(&tick)).then(|| Self::with_slack(COARSE_LAG))
    }

    #[cfg(not(target_os = "linux"))]
    fn if_quicker_than(_: &quanta::Clock) -> Option<Self> {
        None
    }

    #[cfg(any(test, target_os = "linux"))]
    fn with_slack(slack: u64) -> Self {
        Self { slack, ahead: AtomicU64::new(0), good_until: AtomicU64::new(0) }
    }

    /// A time that is not before now; `None` if that is not known for the moment.
    #[inline]
    fn now_at_most(&self, reading: u64) -> Option<u64> {
        let is_good = reading < self.good_until.load(Ordering::Acquire);
        is_good.then(|| reading.wrapping_add(self.ahead.load(Ordering::Relaxed)))
    }

    /// The time now, of which `reading` was before: what passed in between makes later sums later, not earlier.
    #[cold]
    fn synchronize(&self, reading: u64, now: impl Fn() -> u64) -> u64 {
        let now = now();
        self.ahead.store(now.wrapping_sub(reading).wrapping_add(self.slack), Ordering::Relaxed);
        self.good_until.store(reading.saturating_add(COARSE_TRUST), Ordering::Release);
        now
    }
}

#[cfg(target_os = "linux")]
#[inline]
fn read_coarse() -> u64 {
    as_nanos(rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse))
}

#[cfg(not(target_os = "linux"))]
fn read_coarse() -> u64 {
    u64::MAX
}

#[cfg(target_os = "linux")]
#[inline]
#[expect(clippy::cast_sign_loss, reason = "monotonic time is since the machine started")]
fn as_nanos(time: rustix::time::Timespec) -> u64 {
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
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
            Source::System(_) => "system",
            Source::Manual(_) => "manual",
            #[cfg(any(test, feature = "test-util"))]
            Source::Tokio(_) => "tokio",
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
    fn counter_that_agrees_with_the_system_is_believed() {
        let (counter, mock) = quanta::Clock::mock();
        let watched = Watched::new(counter);
        for step in 1..100 {
            mock.increment(TRUST);
            // A little off, as counters are.
            assert_eq!(watched.check(|| step * (TRUST + TRUST / 2_000)), step * TRUST);
        }
        assert!(watched.found_wrong.get().is_none());
    }

    #[test]
    fn counter_that_starts_anew_or_leaps_is_not_followed() {
        let hour = 3_600 * 1_000_000_000_u64;
        for leap in
            [|mock: &quanta::Mock| mock.decrement(99), |mock: &quanta::Mock| mock.increment(3_600 << 30)]
        {
            let (counter, mock) = quanta::Clock::mock();
            mock.increment(100 * hour);
            let watched = Watched::new(counter);
            mock.increment(TRUST);
            assert_eq!(watched.check(|| TRUST), TRUST);
            leap(&mock);
            mock.increment(5);
            let passed = 2 * TRUST;
            assert_eq!(watched.check(|| passed), passed);
            // And from then on the system's clock alone is heard.
            mock.increment(hour);
            assert_eq!(watched.check(|| passed + 7), passed + 7);
            assert!(watched.now() < hour);
        }
    }

    #[test]
    fn what_has_come_is_never_surely_to_come() {
        let clock = Clock::system();
        let start = clock.now();
        // Longer than the coarse clock is trusted.
        while clock.now().since(start) < Duration::from_millis(1_200) {
            let reached = clock.now();
            assert!(!clock.is_surely_before(reached));
        }
        assert!(clock.is_surely_before(clock.now().after(Duration::from_secs(60))));
    }

    #[test]
    fn coarse_clock_errs_to_the_late_side() {
        let coarse = Coarse::with_slack(30);
        assert_eq!(coarse.now_at_most(7), None);
        assert_eq!(coarse.synchronize(7, || 1_000), 1_000);
        assert_eq!(coarse.now_at_most(7), Some(1_030));
        assert_eq!(coarse.now_at_most(8), Some(1_031));
        assert_eq!(coarse.now_at_most(7 + COARSE_TRUST), None);
        // Readings of another thread from before that.
        assert!(coarse.now_at_most(6).is_some_and(|now| now >= 1_000));
    }

    #[test]
    fn coarse_clock_that_stands_while_time_passes_errs_to_the_late_side_as_well() {
        // The machine's own, where it has one: by its own slack.
        let slack = Coarse::if_quicker_than(&quanta::Clock::new()).map_or(COARSE_LAG, |coarse| coarse.slack);
        let coarse = Coarse::with_slack(slack);
        let (reading, now) = (7, 5_000_000_000);
        coarse.synchronize(reading, || now);
        // The processor that ticks is not let run for nine tenths of a second.
        assert!(coarse.now_at_most(reading).is_some_and(|at_most| at_most >= now + 900_000_000));
        // It stood already when it was looked at, and goes on where it should have been.
        coarse.synchronize(reading, || now + 900_000_000);
        assert!(
            coarse.now_at_most(reading + 900_000_000).is_some_and(|at_most| at_most >= now + 900_000_000)
        );
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
