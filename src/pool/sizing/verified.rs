//! Growth that has to prove itself.
//!
//! Waiting callers say that there is more to do than the pool does, not that more connections would do more: beyond the
//! server's knee they do less, the queue grows, and whoever grows on it grows on. So what grows is tried first, as a
//! hill is climbed: a step is kept if the throughput followed. The rules, once per window:
//!
//! 1. *Demand.* Callers wait more than a tenth of the time, and the size is below what is proven: straight to what is
//!    in use and waiting, at most to what is proven. The counterpart of TCP's slow-start threshold.
//! 2. *Trial.* Callers wait at least half of the time, at what is proven: another size for some seconds, in turn a
//!    larger and a smaller one; where larger ones came to an end only because no more is allowed, a larger one as soon as
//!    more is. A smaller one only if they did all the time in ten windows in a row, or in thirty without a
//!    quiet one between: where the load is less than what can be done, fewer do as much until they are too few, and a pause
//!    of the machine leaves a backlog that is gone by then. If none lasts for so long within a minute, a larger one is next again. A quarter more or
//!    fewer; twice as many at first, until one was taken back, and again where the last trial brought at least half of
//!    what it could. Where twice as many brought something and not enough, half as many more are tried next. When the
//!    connections are open, what is done per second is held against what was done before. A larger size is kept if that
//!    rose by more than the size did to the power of [`Gain`], a smaller one if it fell by less than [`Gain`] × the
//!    share that the size did. It is also kept if nobody waits any more, since then nothing can rise. What was kept is
//!    proven, and gone on from at once. What was taken back is followed by a pause, 10 s doubling to 5 min, varied by
//!    half. A smaller size is taken back at once, in the middle of a window, when the line grows much longer than it
//!    was. A trial that the load leaves is broken off: what is not asked for is not done at any size.
//!    Pauses are forgotten where what is done changed by a fifth within half a minute, and where callers waited all the time
//!    for ten windows in each of which less was done than 0.85 of what was done when they did before.
//! 3. *Shrink.* Down to one more than the most in use in 5 minutes, by a sixteenth every 10 s. What is proven is
//!    remembered for 10 minutes, and then fades by a quarter every 10 minutes: a smaller knee can only have come in
//!    hours, and a spike after a quiet hour should not start from nothing.
//! 4. *Relief.* The slowest callers (99 of 100) wait for more than twice what a typical query takes, although less is done
//!    than 0.85 of what was done when all was asked for that can be, and not all of them wait all the time: twice as many, in turn with as many as there were;
//!    where more are proven, those, without a trial. They stay if the slowest calls of ten windows, but for the worst of
//!    them, took less than 0.8 of the time, with the wait, that those of as many windows without them took; or from four on
//!    0.6, with the worst and without. A trial is in vain where that is not so, where they took 1.2 of the time after four,
//!    or where callers waited all the time, and is followed by a pause, 30 s doubling to 10 min. After five windows in
//!    which callers waited nine tenths of the time the size is what is proven again, since what does most and what is
//!    quickest below that are two things; and when that is over, what was of use before is tried again at once. So it is
//!    after five minutes in which they waited half of the time.
//! 5. *Refusal.* The server has too many connections: the ceiling is cut to 0.7 of those that are open, and rises by
//!    one every 30 s, and above what was open then by more and more. Whatever connecting failed for, there are no trials and no shrinking for 30 s; but other failures
//!    cut nothing, since a server that restarts will be as large as before.
//!
//! Why a trial decides when it does: the difference has to be 2.5 standard errors from what is needed, by the variance
//! between windows; after 30 s, or 10 s of a doubling, one has to do, and without that the size is taken back. That is
//! two windows for a doubling, and more the nearer the knee.
//!
//! What it is a difference from: where no query takes a quarter of a window, the size before, which is in force again for
//! one or two windows and then the other, and each window is held against its neighbour. A machine that others share is
//! a third quicker or slower within a minute, which is more than most trials are about; held against the time before
//! alone, a difference has to be larger by what that may explain (15 %). In simulation, where the server's speed wanders by a
//! fifth, that leaves a pool at 98 % of the best size (the worst of 30 runs at 96 %), and 96 % (90 %) without it. Where queries
//! take longer than that, the time before is all there is.
//!
//! Slow queries come back seldom, so all of that goes by how long a typical one takes where it takes seconds: before a
//! trial there are four times that of baseline, a trial waits for two until what began before it has ended, and lasts
//! for up to ten. That does for queries of up to 20 s. Of a minute and more, too few come back in any time that a trial
//! may last: hours pass near the size that it began with.
//!
//! Where one query in a hundred takes a hundred times longer, the count of returns varies by a tenth even over half a
//! minute, and a quarter more connections bring a fortieth near the knee. How long queries take varies by a tenth of that,
//! if the slow ones are told apart ([`Sample::hold_typical`], [`Sample::hold_slow`]) and are taken to be as many as they
//! usually are. If it is the sharper of the two it is asked instead, as mean in use ÷ hold of that mix. Where the two surely
//! say opposite things a trial goes on, and at its end, or once the count is off by four standard errors, it is as the
//! count says.
//!
//! What it does not see: other processes at the same server. Each finds that more connections get it a larger share.
//! A budget bounds them, not this.

use std::{collections::VecDeque, time::Duration};

use super::{
    Bounds, Decision, FULL, Gain, Reason, Sample, Sizing,
    ceiling::Ceiling,
    hold::Hold,
    peak::Peak,
    rates::Rates,
    relief::{Advice, Relief},
    search::Search,
    trial::{Direction, Trial, Verdict},
};

/// Callers wait for this share of the time: reason enough to grow up to what is proven.
const DEMAND: f64 = 0.1;
/// Callers wait for this share of the time: the size is what holds them up, and trials say something.
const BACKLOG: f64 = 0.5;
/// Windows that the baseline looks back on.
const LONGEST_BASELINE: usize = 30;
/// A baseline is this many typical holds long before there is a trial, or this long.
const BASELINE_HOLDS: u32 = 4;
const BASELINE: Duration = Duration::from_secs(120);
/// No trials and no shrinking for this long after connecting failed.
const FAILURE: Duration = Duration::from_secs(30);
/// Throughput that changed by this share, in this many windows, is another server's: what was learned is doubted.
const CHANGE: f64 = 0.2;
const CHANGE_WINDOWS: usize = 3;
/// The size comes down to the most that were in use in this time, by a sixteenth at a time.
const PEAK: Duration = Duration::from_secs(300);
const SHRINK: Duration = Duration::from_secs(10);
/// A proven size that is out of use is believed for this long, and then a quarter less of it.
const MEMORY: Duration = Duration::from_secs(600);

/// Grows where callers wait, and keeps what raised the throughput: the default.
///
/// Where callers wait most of the time it tries a larger size for some seconds, keeps it if the throughput rose by
/// enough ([`Gain`]), and otherwise takes it back; in turn it tries a smaller one, and keeps that if hardly less is
/// done. Up to what is proven it grows at once. Where less is asked for than can be done, and the slowest calls wait for
/// others, it tries more, and keeps them if those calls became quicker. With the load gone it comes down to what was in
/// use in the last five minutes.
///
/// It wants a window of about a second, in which a connection that was out when the size changed can come back; where
/// queries take longer, it takes windows together and its trials take longer: with queries of 20 s a good size is
/// found in half an hour. Where they take a minute or more, begin with one. All of its state is one or two kilobytes.
#[derive(Clone, Debug)]
pub struct ThroughputVerified {
    bounds: Bounds,
    gain: Gain,
    target: u32,
    proven: Proven,
    ceiling: Ceiling,
    in_use: Peak,
    /// What was done at the target while callers waited.
    baseline: Rates,
    /// The next window holds the time before the target came into force.
    is_new: bool,
    trial: Option<Trial>,
    search: Search,
    relief: Relief,
    failed: Option<Duration>,
    shrunk: Duration,
    hold: Hold,
    /// In how many windows in a row all was asked for that could be done, those of trials apart, and in how many of the
    /// baseline.
    in_a_row: usize,
    full: usize,
    /// The most that waited at once, in each window of the baseline.
    lines: VecDeque<u32>,
    /// How long the slowest queries took but for one in a hundred, in each of the last windows with a backlog.
    slowest: VecDeque<Duration>,
    /// How many waited at the end of the last window.
    waiting: u32,
}

#[derive(Clone, Copy, Debug)]
struct Proven {
    size: u32,
    at: Duration,
}

impl ThroughputVerified {
    /// Sizes within the bounds. It begins with the nearest to `initial`, and takes that for proven;
    /// [`initial_size`](super::initial_size) knows a good one.
    #[must_use]
    pub fn new(bounds: Bounds, initial: u32) -> Self {
        let target = bounds.clamp(initial);
        Self {
            bounds,
            gain: Gain::default(),
            target,
            proven: Proven { size: target, at: Duration::ZERO },
            ceiling: Ceiling::default(),
            in_use: Peak::new(PEAK, target),
            baseline: Rates::default(),
            is_new: false,
            trial: None,
            search: Search::new(0),
            relief: Relief::new(),
            failed: None,
            shrunk: Duration::ZERO,
            hold: Hold::default(),
            in_a_row: 0,
            full: 0,
            lines: VecDeque::new(),
            slowest: VecDeque::new(),
            waiting: 0,
        }
    }

    /// How much throughput a further connection has to bring; the default is [`Gain::THROUGHPUT`].
    #[must_use]
    pub fn gain(mut self, gain: Gain) -> Self {
        self.gain = gain;
        self
    }

    /// What the pauses between trials vary by; the default is 0. Processes that share a server want different seeds,
    /// or they try at the same time and measure each other.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.search = Search::new(seed);
        self
    }

    fn decide(&mut self, sample: &Sample, now: Duration) -> Reason {
        // What was kept for others is of use as well, as far as it was there.
        let of_use =
            sample.in_use_max.saturating_add(sample.max_kept).min(self.target.max(sample.in_use_max));
        self.in_use.note(of_use, now);
        if sample.connect_failures > 0 || sample.too_many_connections > 0 {
            self.failed = Some(now);
        }
        let cut = self.ceiling.heed(sample, self.bounds, now);
        let bounds = self.ceiling.within(sample, self.bounds);
        let is_out_of_reach = self.trial.as_ref().is_some_and(|trial| trial.size > bounds.ceiling());
        if cut || self.target > bounds.ceiling() || is_out_of_reach {
            let tried = self.relief.break_off(self.target, now);
            let before = self.trial.take().map(|trial| trial.from).or(tried);
            let size = before.map_or(self.target, |before| before.min(self.target));
            self.resize(bounds.clamp(size));
            self.relief.overruled(now);
            self.search.rest(now);
            return if cut { Reason::TooManyConnections } else { Reason::Ceiling };
        }
        if let Some(trial) = self.trial.take_if(|trial| trial.was_given_up(sample)) {
            self.return_to(trial.from, bounds);
            if self.failed == Some(now) {
                // That callers came to wait says nothing of the size.
                self.search.rest(now);
                return Reason::Void;
            }
            self.search.taken_back(now);
            return Reason::Retreated;
        }
        if sample.target != 0 && sample.target != self.target {
            self.trial = None;
            self.relief.overruled(now);
            self.resize(bounds.clamp(sample.target));
            self.search.rest(now);
            return Reason::InForce;
        }
        self.proven.fade(self.target, now);
        match self.trial.take() {
            Some(trial) => self.go_on_with(trial, sample, bounds, now),
            None => self.without_trial(sample, bounds, now),
        }
    }

    fn go_on_with(&mut self, mut trial: Trial, sample: &Sample, bounds: Bounds, now: Duration) -> Reason {
        match trial.judge(sample, self.hold.typical(), now) {
            Verdict::Measuring => {
                self.target = bounds.clamp(trial.in_turn());
                self.trial = Some(trial);
                Reason::Measuring
            }
            Verdict::Keep { reason, steep } => {
                self.target = bounds.clamp(trial.size);
                self.proven = Proven { size: trial.size, at: now };
                self.search.kept(steep, now);
                self.baseline = trial.into_rates();
                self.lines.clear();
                reason
            }
            Verdict::Revert { reason, has_risen } => {
                self.return_to(trial.from, bounds);
                // Where that was hardly more than half as many, there is no half of it.
                if has_risen && trial.size > trial.from.saturating_add((trial.from / 2).max(1)) {
                    self.search.overshot(now);
                } else {
                    self.search.taken_back(now);
                }
                reason
            }
            Verdict::Void => {
                self.return_to(trial.from, bounds);
                self.search.rest(now);
                Reason::Void
            }
        }
    }

    /// The baseline is of the size that is returned to, and stands.
    fn return_to(&mut self, size: u32, bounds: Bounds) {
        self.target = bounds.clamp(size);
        self.is_new = true;
        self.in_a_row = 0;
    }

    fn without_trial(&mut self, sample: &Sample, bounds: Bounds, now: Duration) -> Reason {
        let backlog = sample.backlog();
        let safe = bounds.clamp(self.proven.size);
        if backlog > DEMAND && self.target < safe {
            let demand = sample.in_use_max.saturating_add(sample.max_waiting.max(sample.waiting));
            self.resize(demand.clamp(self.target.saturating_add(1), safe));
            return Reason::Demand;
        }
        if std::mem::take(&mut self.is_new) {
            return Reason::Steady;
        }
        if let Some(reason) = self.relieve(sample, bounds, now) {
            return reason;
        }
        if backlog < BACKLOG {
            self.in_a_row = 0;
            if backlog < DEMAND {
                self.forget_baseline();
            }
            return self.shrink(now);
        }
        if sample.completed == 0 && self.hold.typical().is_zero() {
            // The first queries are still under way, and nobody knows for how long.
            return Reason::Steady;
        }
        if backlog >= FULL {
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.full = self.full.saturating_add(1);
        } else {
            self.in_a_row = 0;
        }
        self.baseline.push(sample, LONGEST_BASELINE);
        self.lines.push_back(sample.max_waiting.max(sample.waiting));
        if self.lines.len() > LONGEST_BASELINE {
            self.lines.pop_front();
        }
        self.slowest.push_back(sample.hold_p99);
        if self.slowest.len() > LONGEST_BASELINE {
            self.slowest.pop_front();
        }
        if self.baseline.forget_before_change(CHANGE_WINDOWS, CHANGE) {
            self.search.forget_pauses(now);
        }
        self.try_another(sample, bounds, now)
    }

    /// What is to be done for callers who wait although not all is asked for that can be done.
    fn relieve(&mut self, sample: &Sample, bounds: Bounds, now: Duration) -> Option<Reason> {
        if self.failed_lately(now) {
            let before = self.relief.break_off(self.target, now)?;
            self.resize(bounds.clamp(before));
            return Some(Reason::Void);
        }
        let safe = bounds.clamp(self.proven.size);
        let advice = self.relief.step(sample, [self.target, safe], bounds, now);
        let reason = match advice {
            Advice::None => return None,
            Advice::Doubt => {
                self.search.forget_pauses(now);
                return None;
            }
            Advice::Stay if sample.backlog() < BACKLOG => return None,
            Advice::Stay => Reason::Steady,
            Advice::Measure(size) if size != bounds.clamp(size) => {
                // Not so many are allowed any more.
                let before = self.relief.break_off(self.target, now).unwrap_or(self.target);
                self.resize(bounds.clamp(before));
                Reason::Void
            }
            Advice::Measure(size) => {
                // Calls are quick, and nearly all of the next window are of this size alone.
                self.target = size;
                Reason::Measuring
            }
            Advice::Grow => {
                self.resize(safe);
                Reason::Demand
            }
            Advice::Keep { size, before, after } => {
                self.resize(bounds.clamp(size));
                Reason::Quicker { before, after }
            }
            Advice::Try(size) => {
                self.resize(size);
                Reason::TryingForTime
            }
            Advice::TakeBack { to, before, after } => {
                self.resize(to);
                Reason::NotQuicker { before, after }
            }
            Advice::Return(to) => {
                self.resize(to);
                Reason::Void
            }
            Advice::Leave => {
                self.resize(bounds.clamp(self.proven.size));
                Reason::Saturated
            }
        };
        Some(reason)
    }

    fn try_another(&mut self, sample: &Sample, bounds: Bounds, now: Duration) -> Reason {
        self.search.allow(self.target, bounds.ceiling(), now);
        let is_due = self.search.is_due(self.baseline.len(), self.full, self.in_a_row, now)
            && self.baseline.time() >= self.baseline_takes();
        if self.failed_lately(now) || !is_due {
            return Reason::Steady;
        }
        let size = self.search.next(self.target, bounds, now);
        let Some((size, before)) = size.zip(self.baseline.estimates()) else { return Reason::Steady };
        let growth = sample.waiting.saturating_sub(self.waiting);
        let trial = Trial::new(self.target, size, before, self.gain.get(), now)
            .with_retreat(self.lines.iter().copied().max().unwrap_or(0), growth)
            .with_slowest(self.slowest.iter().copied().max().unwrap_or_default());
        let reason = match trial.direction() {
            Direction::Up => Reason::TryingMore,
            Direction::Down => Reason::TryingFewer,
        };
        self.trial = Some(trial);
        self.target = size;
        reason
    }

    /// How long it takes until each connection came back a few times.
    fn baseline_takes(&self) -> Duration {
        self.hold.typical().saturating_mul(BASELINE_HOLDS).min(BASELINE)
    }

    fn shrink(&mut self, now: Duration) -> Reason {
        let wanted = self.bounds.clamp(self.in_use.highest().saturating_add(1));
        if wanted >= self.target || now.saturating_sub(self.shrunk) < SHRINK || self.failed_lately(now) {
            return Reason::Steady;
        }
        self.shrunk = now;
        self.resize((self.target - (self.target / 16).max(1)).max(wanted));
        Reason::Unused
    }

    fn resize(&mut self, size: u32) {
        self.is_new |= size != self.target;
        self.target = size;
        self.forget_baseline();
    }

    fn forget_baseline(&mut self) {
        self.baseline.clear();
        self.lines.clear();
        self.full = 0;
    }

    fn failed_lately(&self, now: Duration) -> bool {
        self.failed.is_some_and(|failed| now.saturating_sub(failed) < FAILURE)
    }
}

impl Proven {
    /// Believes in a size that is out of use a little less.
    fn fade(&mut self, in_force: u32, now: Duration) {
        if in_force >= self.size {
            self.at = now;
        } else if now.saturating_sub(self.at) >= MEMORY {
            self.size = (self.size - (self.size / 4).max(1)).max(in_force);
            self.at = now;
        }
    }
}

impl Sizing for ThroughputVerified {
    fn step(&mut self, sample: &Sample, now: Duration) -> Decision {
        let sample = self.hold.note(sample);
        let reason = self.decide(&sample, now);
        self.waiting = sample.waiting;
        let retreat = self.trial.as_ref().and_then(Trial::retreat);
        Decision::new(self.target, reason).or_retreat(retreat)
    }

    fn target(&self) -> u32 {
        self.target
    }

    fn proven(&self) -> u32 {
        self.proven.size
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Retreat, *};

    const SECOND: Duration = Duration::from_secs(1);

    /// A pool in front of a server that does what `throughput` says of a size.
    struct Closed {
        sizing: ThroughputVerified,
        now: Duration,
    }

    impl Closed {
        fn new(floor: u32, ceiling: u32, initial: u32) -> Self {
            Self {
                sizing: ThroughputVerified::new(Bounds::new(floor, ceiling).unwrap(), initial),
                now: Duration::ZERO,
            }
        }

        /// A window with every permit out and callers waiting.
        fn busy(&self, completed: u64) -> Sample {
            let size = self.sizing.target();
            Sample {
                window: SECOND,
                completed,
                waiting: 50,
                max_waiting: 50,
                in_use_mean: f64::from(size),
                in_use_max: size,
                was_full: true,
                full_fraction: 1.0,
                target: size,
                open: size,
                ..Sample::default()
            }
        }

        fn idle(&self, in_use: u32) -> Sample {
            Sample {
                completed: 10,
                in_use_max: in_use,
                in_use_mean: 1.0,
                waiting: 0,
                max_waiting: 0,
                full_fraction: 0.0,
                ..self.busy(10)
            }
        }

        fn step(&mut self, sample: &Sample) -> Reason {
            self.now += SECOND;
            self.sizing.step(sample, self.now).reason
        }

        /// Busy windows until something other than waiting and measuring happens.
        fn until_decided(&mut self, throughput: impl Fn(u32) -> u64) -> Reason {
            for _ in 0..1_000 {
                let sample = self.busy(throughput(self.sizing.target()));
                match self.step(&sample) {
                    Reason::Steady | Reason::Measuring => {}
                    reason => return reason,
                }
            }
            Reason::Steady
        }
    }

    /// Ten for each of the first eight; every further one costs one.
    fn knee_at_8(size: u32) -> u64 {
        u64::from(if size <= 8 { 100 * size } else { 800 - 10 * (size - 8) })
    }

    #[test]
    fn sizes_double_while_throughput_does_and_the_first_that_does_not_is_taken_back() {
        let mut pool = Closed::new(1, 64, 2);
        for (tried, before, after) in [(4, 200.0, 400.0), (8, 400.0, 800.0)] {
            assert_eq!(pool.until_decided(knee_at_8), Reason::TryingMore);
            assert_eq!(pool.sizing.target(), tried);
            assert_eq!(pool.until_decided(knee_at_8), Reason::Kept { before, after });
            assert_eq!((pool.sizing.target(), pool.sizing.proven()), (tried, tried));
        }
        assert!(pool.now < 12 * SECOND, "{:?}", pool.now);
        assert_eq!(pool.until_decided(knee_at_8), Reason::TryingMore);
        assert_eq!(pool.until_decided(knee_at_8), Reason::Reverted { before: 800.0, after: 720.0 });
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (8, 8));
    }

    /// Most of what twice as many bring, some of them do.
    #[test]
    fn half_of_a_step_that_brought_too_little_is_tried_next() {
        let knee_at_6 = |size: u32| [0, 100, 200, 300, 400, 412, 424, 425, 426][size.min(8) as usize];
        let mut pool = Closed::new(1, 8, 4);
        assert_eq!(pool.until_decided(knee_at_6), Reason::TryingMore);
        assert_eq!(pool.until_decided(knee_at_6), Reason::Reverted { before: 400.0, after: 426.0 });
        let taken_back = pool.now;
        assert_eq!(pool.until_decided(knee_at_6), Reason::TryingMore);
        assert_eq!(pool.sizing.target(), 6);
        assert!(pool.now - taken_back <= 6 * SECOND, "{:?}", pool.now - taken_back);
        assert_eq!(pool.until_decided(knee_at_6), Reason::Kept { before: 400.0, after: 424.0 });
    }

    /// Connecting takes three seconds, and is done one by one.
    #[test]
    fn trial_waits_for_connections_as_long_as_they_come() {
        for (comes_after, reason) in [(3, Reason::Kept { before: 400.0, after: 800.0 }), (12, Reason::Void)] {
            let mut pool = Closed::new(1, 64, 4);
            assert_eq!(pool.until_decided(knee_at_8), Reason::TryingMore);
            assert_eq!(pool.sizing.target(), 8);
            let began = pool.now;
            let decided = (0..60).map(|_| {
                let seconds = u32::try_from((pool.now - began).as_secs()).unwrap();
                let open = (4 + seconds / comes_after).min(8);
                let sample = Sample { open, ..pool.busy(knee_at_8(open.min(pool.sizing.target()))) };
                pool.step(&sample)
            });
            let decided = decided.into_iter().find(|reason| !matches!(reason, Reason::Measuring));
            assert_eq!(decided, Some(reason));
        }
    }

    /// A share of a budget that others have the rest of, until it grows.
    #[test]
    fn way_up_that_ended_at_what_is_allowed_goes_on_when_more_is() {
        let mut pool = Closed::new(1, 64, 4);
        let step = |pool: &mut Closed, ceiling| {
            let sample = Sample { ceiling: Some(ceiling), ..pool.busy(knee_at_8(pool.sizing.target())) };
            pool.step(&sample)
        };
        for _ in 0..8 {
            assert_eq!(step(&mut pool, 4), Reason::Steady);
        }
        assert_eq!(step(&mut pool, 8), Reason::TryingMore, "at once");
        assert_eq!(pool.sizing.target(), 8, "twice as many, as if nothing had been in the way");
        let kept = (0..8).map(|_| step(&mut pool, 8)).find(|reason| *reason != Reason::Measuring);
        assert_eq!(kept, Some(Reason::Kept { before: 400.0, after: 800.0 }));
        for _ in 0..200 {
            assert_ne!(step(&mut pool, 8), Reason::TryingMore);
        }
        let tried = (0..20).any(|_| step(&mut pool, 10) == Reason::TryingMore && pool.sizing.target() == 10);
        assert!(tried, "whatever the pause was");
        for _ in 0..60 {
            step(&mut pool, 10);
        }
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (8, 8));
    }

    /// Most of what twice as many bring is needed, and no more is allowed than half as many again: that is not tried twice.
    #[test]
    fn step_that_was_cut_short_and_brought_too_little_is_taken_back_for_a_while() {
        let mut pool = Closed::new(1, 64, 11);
        let mut tried = Vec::new();
        for _ in 0..60 {
            let size = pool.sizing.target();
            let sample = Sample { ceiling: Some(15), ..pool.busy(1_000 + 5 * u64::from(size)) };
            if pool.step(&sample) == Reason::TryingMore {
                tried.push((pool.sizing.target(), pool.now));
            }
        }
        assert_eq!(tried.first().map(|(size, _)| *size), Some(15));
        let next = tried.get(1).map_or(Duration::MAX, |(_, at)| *at);
        assert!(next - tried[0].1 >= 15 * SECOND, "{tried:?}");
    }

    /// After an hour of trials in vain, and a quiet second, the server does half of what it did, and less is asked for than
    /// it still can do.
    #[test]
    fn server_that_does_less_has_sizes_tried_again_though_the_last_trials_were_in_vain() {
        let mut pool = Closed::new(1, 64, 8);
        for _ in 0..3_600 {
            let sample = pool.busy(knee_at_8(pool.sizing.target()));
            pool.step(&sample);
        }
        assert_eq!(pool.sizing.target(), 8);
        for _ in 0..30 {
            let idle = pool.idle(8);
            pool.step(&idle);
        }
        let slower = |size: u32| (25 * u64::from(size)).min(400);
        let began = pool.now;
        while pool.sizing.target() < 16 {
            let sample = pool.busy(slower(pool.sizing.target()));
            pool.step(&sample);
            assert!(pool.now - began < 120 * SECOND, "{}", pool.sizing.target());
        }
    }

    /// One query in a hundred takes so long that most windows have a third less than some.
    #[test]
    fn trials_for_time_do_not_come_between_those_for_throughput() {
        let mut pool = Closed::new(1, 64, 8);
        for number in 0..1_000_u32 {
            let mut sample = pool.busy(if number % 5 == 0 { 800 } else { 550 });
            (sample.wait_p99, sample.hold_typical) = (SECOND / 10, SECOND / 1000);
            assert_ne!(pool.step(&sample), Reason::TryingForTime);
        }
    }

    #[test]
    fn larger_and_smaller_are_tried_in_turn_after_ever_longer_pauses() {
        let mut pool = Closed::new(1, 64, 8);
        let mut trials = Vec::new();
        for _ in 0..16 {
            let reason = pool.until_decided(knee_at_8);
            if matches!(reason, Reason::TryingMore | Reason::TryingFewer) {
                trials.push((reason, pool.now));
            }
        }
        assert!(trials.windows(2).all(|pair| pair[0].0 != pair[1].0), "{trials:?}");
        let (first, last) = (trials[1].1 - trials[0].1, trials[7].1 - trials[6].1);
        assert!(first < 25 * SECOND && last > 150 * SECOND, "{trials:?}");
    }

    /// Callers wait though less is asked for than can be done, so that more are tried for a while: 8 in the place of 4.
    fn trying_for_time() -> (Closed, Sample) {
        let mut pool = Closed::new(1, 20, 4);
        let busy = pool.busy(1_000);
        pool.step(&busy);
        let mut waits = pool.busy(700);
        (waits.full_fraction, waits.wait_p99) = (0.3, SECOND / 30);
        (waits.hold_typical, waits.hold_p99) = (SECOND / 1000, SECOND / 500);
        let began = (0..10).any(|_| pool.step(&waits) == Reason::TryingForTime);
        assert!(began);
        (pool, waits)
    }

    #[test]
    fn trial_of_more_ends_where_it_began_when_less_is_allowed() {
        for windows in 1..9 {
            for is_refused in [false, true] {
                let (mut pool, mut waits) = trying_for_time();
                for _ in 0..windows {
                    (waits.target, waits.open) = (pool.sizing.target(), 8);
                    assert!(matches!(pool.step(&waits), Reason::Steady | Reason::Measuring));
                }
                (waits.target, waits.ceiling) = (pool.sizing.target(), (!is_refused).then_some(6));
                waits.too_many_connections = u64::from(is_refused);
                for _ in 0..3 {
                    pool.step(&waits);
                    (waits.target, waits.too_many_connections) = (pool.sizing.target(), 0);
                    assert!(waits.target <= 6, "{}", waits.target);
                }
                assert_eq!(pool.sizing.target(), 4, "after {windows} windows, {is_refused}");
            }
        }
    }

    #[test]
    fn size_that_is_proven_needs_no_trial_to_make_calls_quick() {
        let (mut pool, mut waits) = trying_for_time();
        pool.sizing = ThroughputVerified::new(pool.sizing.bounds, 4);
        pool.sizing.proven = Proven { size: 8, at: pool.now };
        (waits.full_fraction, waits.in_use_max) = (0.05, 8);
        let reasons: Vec<Reason> = (0..5).map(|_| pool.step(&waits)).collect();
        assert_eq!(reasons[2], Reason::Steady, "the limit is not known");
        pool.sizing.relief = trying_for_time().0.sizing.relief;
        pool.sizing.relief.overruled(pool.now);
        for _ in 0..5 {
            let reason = pool.step(&waits);
            waits.target = pool.sizing.target();
            assert!(matches!(reason, Reason::Steady | Reason::Demand), "{reason:?}");
        }
        assert_eq!(pool.sizing.target(), 8);
        // What is proven and not allowed is no reason to begin anew all the time.
        waits.ceiling = Some(6);
        let reasons: Vec<Reason> = (0..9)
            .map(|_| {
                waits.target = pool.sizing.target();
                pool.step(&waits)
            })
            .collect();
        assert_eq!(pool.sizing.target(), 6);
        assert!(!reasons.contains(&Reason::Demand), "{reasons:?}");
    }

    /// At three quarters of what the server can do: a pause of two seconds is made up for in six.
    #[test]
    fn fewer_are_not_tried_because_of_a_backlog_that_passes() {
        let mut pool = Closed::new(1, 64, 8);
        assert_eq!(pool.until_decided(knee_at_8), Reason::TryingMore);
        assert!(matches!(pool.until_decided(knee_at_8), Reason::Reverted { .. }));
        for _ in 0..100 {
            for _ in 0..8 {
                let sample = pool.busy(knee_at_8(pool.sizing.target()));
                assert_ne!(pool.step(&sample), Reason::TryingFewer);
            }
            for _ in 0..10 {
                let sample = pool.idle(8);
                assert_ne!(pool.step(&sample), Reason::TryingFewer);
            }
        }
        let reasons: Vec<_> = (0..8).map(|_| pool.until_decided(knee_at_8)).collect();
        assert!(reasons.contains(&Reason::TryingFewer), "of one that stays: {reasons:?}");
    }

    /// Which are too short for trials of fewer.
    #[test]
    fn knee_is_found_in_bursts_as_well() {
        let knee_at_32 = |size: u32| u64::from(100 * size.min(32) - size.saturating_sub(32));
        let mut pool = Closed::new(1, 64, 4);
        // Once, chance had it that more brought nothing.
        assert_eq!(pool.until_decided(|_| 400), Reason::TryingMore);
        assert!(matches!(pool.until_decided(|_| 400), Reason::Reverted { .. }));
        for _ in 0..180 {
            for _ in 0..8 {
                let sample = pool.busy(knee_at_32(pool.sizing.target()));
                pool.step(&sample);
            }
            for _ in 0..12 {
                let in_use = pool.sizing.target();
                let sample = pool.idle(in_use);
                pool.step(&sample);
            }
        }
        assert!(pool.sizing.proven() >= 24, "{}", pool.sizing.proven());
    }

    #[test]
    fn smaller_size_that_does_as_much_is_kept_and_not_grown_out_of_again() {
        let mut pool = Closed::new(1, 16, 16);
        let flat = |_| 500;
        assert_eq!(pool.until_decided(flat), Reason::TryingFewer);
        assert!(matches!(pool.until_decided(flat), Reason::Kept { .. }));
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (12, 12));
        let sample = pool.busy(500);
        assert_ne!(pool.step(&sample), Reason::Demand);
    }

    /// What the machine does from the moment on at which a trial begins is none of the trial's doing.
    #[test]
    fn sizes_take_turns_so_that_a_machine_that_changes_is_not_taken_for_them() {
        for (less, speed, is_kept) in [(0, 85, true), (100, 115, false)] {
            let server = |size| if size < 16 { 1_000 - less } else { 1_000 };
            let mut pool = Closed::new(1, 16, 16);
            assert_eq!(pool.until_decided(server), Reason::TryingFewer);
            let mut sizes = Vec::new();
            let reason = loop {
                sizes.push(pool.sizing.target());
                let sample = pool.busy(server(pool.sizing.target()) * speed / 100);
                match pool.step(&sample) {
                    Reason::Measuring => {}
                    reason => break reason,
                }
            };
            assert_eq!(matches!(reason, Reason::Kept { .. }), is_kept, "{reason:?} after {sizes:?}");
            assert!(sizes.starts_with(&[12, 12, 16]) && sizes.len() < 12, "{sizes:?}");
        }
    }

    /// Fewer do as much as is asked for until they are too few, and callers wait for longer and longer.
    #[test]
    fn fewer_are_not_tried_where_less_is_asked_for_than_can_be_done() {
        let mut pool = Closed::new(1, 8, 8);
        for _ in 0..600 {
            let sample = Sample { full_fraction: 0.8, ..pool.busy(500) };
            assert_ne!(pool.step(&sample), Reason::TryingFewer);
        }
        let reason = pool.until_decided(|_| 500);
        assert_eq!(reason, Reason::TryingFewer, "where it is");
    }

    /// What is asked for changes by anything from one window to the next.
    #[test]
    fn what_was_asked_for_once_is_not_taken_for_what_a_size_does() {
        let mut pool = Closed::new(1, 64, 8);
        assert_eq!(pool.until_decided(|_| 1_000), Reason::TryingMore);
        for completed in [1_000, 1_000, 600] {
            let sample = Sample { full_fraction: 0.7, ..pool.busy(completed) };
            assert_eq!(pool.step(&sample), Reason::Measuring);
        }
    }

    #[test]
    fn sizes_take_no_turns_once_queries_take_as_long_as_those() {
        let mut pool = Closed::new(1, 16, 16);
        assert_eq!(pool.until_decided(|_| 1_000), Reason::TryingFewer);
        for _ in 0..2 {
            let sample = pool.busy(1_000);
            assert_eq!(pool.step(&sample), Reason::Measuring);
        }
        let slow = Sample { hold_typical: SECOND, ..pool.busy(100) };
        assert_eq!(pool.step(&slow), Reason::Void);
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (16, 16));
    }

    /// Those that are left are held for long, by others than those who wait.
    #[test]
    fn trial_in_which_nobody_is_served_ends_with_its_first_window() {
        let mut pool = Closed::new(1, 4, 4);
        assert_eq!(pool.until_decided(|_| 500), Reason::TryingFewer);
        let sample = pool.busy(0);
        assert!(matches!(pool.step(&sample), Reason::Reverted { .. }));
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (4, 4));
    }

    #[test]
    fn trial_is_kept_when_nobody_waits_any_more() {
        let mut pool = Closed::new(1, 64, 4);
        assert_eq!(pool.until_decided(|_| 400), Reason::TryingMore);
        let mut sample = pool.busy(400);
        (sample.waiting, sample.max_waiting, sample.full_fraction) = (0, 1, 0.01);
        let reasons: Vec<_> = (0..4).map(|_| pool.step(&sample)).collect();
        assert!(reasons.contains(&Reason::DemandMet), "{reasons:?}");
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (8, 8));
    }

    #[test]
    fn what_is_proven_is_taken_at_once_and_fades() {
        let mut pool = Closed::new(1, 64, 32);
        for _ in 0..1_000 {
            let sample = pool.idle(3);
            pool.step(&sample);
        }
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (4, 24));
        let sample = pool.busy(400);
        assert_eq!(pool.step(&sample), Reason::Demand);
        assert_eq!(pool.sizing.target(), 24);
    }

    #[test]
    fn what_was_in_use_in_the_last_five_minutes_stays() {
        let mut pool = Closed::new(1, 64, 32);
        for second in 0..3600 {
            let sample = pool.idle(if second % 240 == 0 { 30 } else { 3 });
            pool.step(&sample);
        }
        assert_eq!(pool.sizing.target(), 31);
    }

    /// What is not asked for is not done, at any size.
    #[test]
    fn trial_that_the_load_leaves_is_void() {
        for (initial, tried) in [(4, Reason::TryingMore), (16, Reason::TryingFewer)] {
            let mut pool = Closed::new(1, 16, initial);
            assert_eq!(pool.until_decided(|_| 500), tried);
            for _ in 0..2 {
                let sample = pool.busy(500);
                assert_eq!(pool.step(&sample), Reason::Measuring);
            }
            let sample = pool.idle(1);
            assert_eq!(pool.step(&sample), Reason::Void);
            assert_eq!((pool.sizing.target(), pool.sizing.proven()), (initial, initial));
        }
    }

    #[test]
    fn trial_whose_connections_fail_is_void_and_none_follows_for_half_a_minute() {
        let mut pool = Closed::new(1, 64, 4);
        assert_eq!(pool.until_decided(knee_at_8), Reason::TryingMore);
        let failed = Sample { connect_failures: 1, ..pool.busy(400) };
        assert_eq!(pool.step(&failed), Reason::Void);
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (4, 4));
        let failed = pool.now;
        assert_eq!(pool.until_decided(knee_at_8), Reason::TryingMore);
        assert!(pool.now - failed >= 30 * SECOND);
    }

    #[test]
    fn trial_whose_connections_never_open_is_void() {
        let mut pool = Closed::new(1, 64, 4);
        assert_eq!(pool.until_decided(knee_at_8), Reason::TryingMore);
        let began = pool.now;
        let reason = loop {
            let sample = Sample { open: 5, ..pool.busy(400) };
            match pool.step(&sample) {
                Reason::Measuring => {}
                reason => break reason,
            }
        };
        assert_eq!(reason, Reason::Void);
        assert!(pool.now - began <= 12 * SECOND);
        assert_eq!(pool.sizing.target(), 4);
    }

    /// A busy window where every query takes 15 s: one connection comes back in it, or none.
    fn slow(pool: &Closed) -> Sample {
        let every = 15 / u64::from(pool.sizing.target()).min(15);
        let completed = u64::from(pool.now.as_secs().is_multiple_of(every));
        Sample { hold_typical: 15 * SECOND * u32::try_from(completed).unwrap(), ..pool.busy(completed) }
    }

    #[test]
    fn trial_of_fewer_waits_for_slow_queries_to_come_back() {
        let mut pool = Closed::new(1, 8, 8);
        assert!((0..200).any(|_| {
            let sample = slow(&pool);
            pool.step(&sample) == Reason::TryingFewer
        }));
        assert!(pool.now >= 60 * SECOND, "a baseline of four times a query: {:?}", pool.now);
        for _ in 0..25 {
            let sample = Sample { in_use_max: 8, ..slow(&pool) };
            assert_eq!(pool.step(&sample), Reason::Measuring);
        }
        let sample = Sample { in_use_max: 8, ..slow(&pool) };
        let reasons: Vec<_> = (0..10).map(|_| pool.step(&sample)).collect();
        assert!(reasons.contains(&Reason::Void), "but not without end: {reasons:?}");
    }

    #[test]
    fn nothing_shrinks_while_connecting_fails() {
        let mut pool = Closed::new(1, 64, 32);
        for _ in 0..1_000 {
            let sample = Sample { connect_failures: 1, ..pool.idle(0) };
            pool.step(&sample);
        }
        assert_eq!(pool.sizing.target(), 32);
    }

    #[test]
    fn refusal_ends_a_trial_and_lowers_the_ceiling() {
        let mut pool = Closed::new(1, 64, 16);
        assert_eq!(pool.until_decided(|size| u64::from(size) * 100), Reason::TryingMore);
        let refused = Sample { too_many_connections: 2, open: 20, ..pool.busy(1_600) };
        assert_eq!(pool.step(&refused), Reason::TooManyConnections);
        assert_eq!(pool.sizing.target(), 14);
    }

    #[test]
    fn where_nothing_is_put_in_force_it_only_ever_proposes() {
        let mut pool = Closed::new(1, 64, 8);
        let mut proposed = 0;
        for _ in 0..600 {
            let mut sample = pool.busy(800);
            (sample.target, sample.open, sample.in_use_max, sample.in_use_mean) = (8, 8, 8, 8.0);
            proposed += u32::from(pool.step(&sample) == Reason::TryingMore);
        }
        assert!((10..120).contains(&proposed), "{proposed}");
        assert_eq!(pool.sizing.proven(), 8);
    }

    #[test]
    fn fleet_ceiling_counts_at_once() {
        let mut pool = Closed::new(2, 64, 16);
        let lowered = Sample { ceiling: Some(5), ..pool.busy(1_600) };
        assert_eq!(pool.step(&lowered), Reason::Ceiling);
        assert_eq!(pool.sizing.target(), 5);
        let lowered = Sample { ceiling: Some(0), ..pool.busy(500) };
        pool.step(&lowered);
        assert_eq!(pool.sizing.target(), 2, "the floor stands");
    }

    /// Also while the size before is in force, in its turn.
    #[test]
    fn trial_of_more_than_is_allowed_by_now_ends() {
        for windows in 1..8 {
            let mut pool = Closed::new(2, 64, 8);
            assert_eq!(pool.until_decided(|_| 500), Reason::TryingMore);
            for _ in 0..windows {
                let sample = pool.busy(500);
                if pool.step(&sample) != Reason::Measuring {
                    break;
                }
            }
            for _ in 0..100 {
                let done = 100 * u64::from(pool.sizing.target());
                let sample = Sample { ceiling: Some(12), ..pool.busy(done) };
                pool.step(&sample);
                assert!(pool.sizing.target().max(pool.sizing.proven()) <= 12, "after {windows} windows");
            }
        }
    }

    /// Nine are kept for somebody who does not come; below 23 somebody else waits for them.
    #[test]
    fn what_is_kept_for_others_is_not_given_up_again_and_again() {
        let mut pool = Closed::new(2, 31, 23);
        let mut shrunk = 0;
        for _ in 0..1_800 {
            let size = pool.sizing.target();
            let sample = match size {
                23.. => pool.idle(14),
                _ => Sample {
                    in_use_max: size - 9,
                    max_kept: 9,
                    waiting: 2,
                    max_waiting: 2,
                    full_fraction: 0.3,
                    ..pool.idle(0)
                },
            };
            shrunk += usize::from(pool.step(&sample) == Reason::Unused);
        }
        assert!(shrunk <= 7, "{shrunk} times in half an hour");
    }

    #[test]
    fn trial_of_fewer_is_given_up_when_the_pool_went_back_by_itself() {
        let mut pool = Closed::new(1, 64, 16);
        // As much whatever the size: more are tried first, and taken back.
        assert_eq!(pool.until_decided(|_| 500), Reason::TryingMore);
        assert!(matches!(pool.until_decided(|_| 500), Reason::Reverted { .. }));
        let decision = loop {
            let sample = pool.busy(500);
            pool.now += SECOND;
            let decision = pool.sizing.step(&sample, pool.now);
            if decision.reason == Reason::TryingFewer {
                break decision;
            }
            assert_eq!(decision.retreat, None);
        };
        // 50 waited before; 4 fewer are served, a quarter may be chance, and eight more.
        assert_eq!((decision.target, decision.retreat), (12, Some(Retreat { waiting: 74, target: 16 })));
        let sample = Sample { target: 16, max_waiting: 75, has_retreated: true, ..pool.busy(400) };
        assert_eq!(pool.step(&sample), Reason::Retreated);
        assert_eq!((pool.sizing.target(), pool.sizing.proven()), (16, 16));
        let before = pool.now;
        assert_eq!(pool.until_decided(|_| 500), Reason::TryingMore, "the other way, after a pause");
        assert!(pool.now - before > 5 * SECOND);
    }

    #[test]
    fn retreat_while_connecting_fails_says_nothing_of_the_size() {
        let mut pool = Closed::new(1, 64, 16);
        assert_eq!(pool.until_decided(|_| 500), Reason::TryingMore);
        assert!(matches!(pool.until_decided(|_| 500), Reason::Reverted { .. }));
        assert_eq!(pool.until_decided(|_| 500), Reason::TryingFewer);
        let sample = Sample { target: 16, has_retreated: true, connect_failures: 1, ..pool.busy(0) };
        assert_eq!(pool.step(&sample), Reason::Void);
        assert_eq!(pool.sizing.target(), 16);
    }

    #[test]
    fn line_of_the_whole_baseline_counts_and_growth_of_the_last_window() {
        let mut pool = Closed::new(1, 64, 16);
        assert_eq!(pool.until_decided(|_| 500), Reason::TryingMore);
        assert!(matches!(pool.until_decided(|_| 500), Reason::Reverted { .. }));
        let retreat = loop {
            // Seventy for a moment, every third time.
            let burst = if pool.now.as_secs().is_multiple_of(3) { 70 } else { 10 };
            let sample = Sample { waiting: 10, max_waiting: burst, ..pool.busy(500) };
            pool.now += SECOND;
            let decision = pool.sizing.step(&sample, pool.now);
            if decision.reason == Reason::TryingFewer {
                break decision.retreat;
            }
        };
        assert_eq!(retreat, Some(Retreat { waiting: 70 + 4 + 17 + 8, target: 16 }));
    }

    #[test]
    fn way_back_is_there_for_as_long_as_the_trial_of_fewer() {
        let mut pool = Closed::new(1, 64, 16);
        let mut seen = Vec::new();
        for _ in 0..200 {
            let sample = pool.busy(500);
            pool.now += SECOND;
            let decision = pool.sizing.step(&sample, pool.now);
            let is_tried = matches!(decision.reason, Reason::TryingFewer | Reason::Measuring);
            let fewer = is_tried && decision.target < pool.sizing.proven();
            assert_eq!(decision.retreat.is_some(), fewer, "{decision:?}");
            seen.push(decision.reason);
        }
        let kept = seen.iter().filter(|reason| matches!(reason, Reason::Kept { .. })).count();
        assert!(kept > 2, "as much is done with fewer");
    }

    #[test]
    fn line_that_grew_before_may_go_on_growing_in_a_trial_of_fewer() {
        let mut pool = Closed::new(1, 64, 16);
        let mut waiting = 0;
        let retreat = loop {
            waiting += 100;
            let sample = Sample { waiting, max_waiting: waiting, ..pool.busy(500) };
            pool.now += SECOND;
            let decision = pool.sizing.step(&sample, pool.now);
            if decision.reason == Reason::TryingFewer {
                break decision.retreat;
            }
        };
        assert_eq!(retreat, Some(Retreat { waiting: waiting + 4 + waiting / 4 + 8 + 800, target: 16 }));
    }

    #[test]
    fn trial_of_fewer_does_not_return_above_a_ceiling_that_was_lowered_meanwhile() {
        let mut pool = Closed::new(1, 16, 16);
        assert_eq!(pool.until_decided(|_| 500), Reason::TryingFewer);
        let lowered = Sample { ceiling: Some(13), connect_failures: 1, ..pool.busy(500) };
        assert_eq!(pool.step(&lowered), Reason::Void);
        assert_eq!(pool.sizing.target(), 13);
    }
}
