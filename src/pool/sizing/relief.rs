//! More connections where calls are slow for want of one, though the server could do more.
//!
//! Where less is asked for than can be done, throughput is what is asked for, at every size that can do it. How long
//! calls take is not the same: with few connections each one that is held up, by a slow query or because the system has
//! something else to do, holds up a line behind it. So where the slowest callers wait for longer than two queries
//! take, more connections are tried, and kept if the slowest calls were quicker. That says nothing of what the
//! server can do: as soon as all it can is asked for, the size is what is proven again. And it is left alone near that,
//! where lines come and go by chance: the server has to have been seen at its limits, and be well below them.

use std::time::Duration;

use super::{Bounds, FULL, Sample};

/// And for this share, where as much is done as can be.
const BUSY: f64 = 0.5;
/// For so many windows in a row, which a pause of the machine does not leave behind.
const LASTS: u32 = 5;
/// So many windows in a row in which they wait for half of the time, and what was of use is tried anew: the server may
/// do less by now, and less with more connections.
const DOUBTED: u32 = 300;
/// Of what was done at the limit, at most so much may be done now, or lines come and go by chance.
const BELOW: f64 = 0.85;
/// How much of what was done then is what was done in the last window of that kind.
const NEW: f64 = 0.2;
/// The slowest callers wait for so many times what a typical query takes.
const LONG: f64 = 2.0;
/// How many windows are held against as many.
const WINDOWS: usize = 3;
/// Calls in a window, of which the slowest in a hundred say something.
const CALLS: u64 = 100;
/// The slowest calls have to be quicker by this share for more connections to stay. Those that stayed before go if it is
/// slower by the same.
const QUICKER: f64 = 0.15;
/// How long the connections may take to be open.
const SETTLES: Duration = Duration::from_secs(10);
/// How long a trial waits for a load that has gone.
const LONGEST: Duration = Duration::from_secs(60);
/// The pause after a trial in vain, doubled each time.
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Which size makes calls quick while less than everything is asked for.
#[derive(Clone, Debug)]
pub(super) struct Relief {
    /// How long the slowest calls took, in the last windows in which they waited.
    tails: Vec<f64>,
    trial: Option<Trial>,
    /// The size is more than what is proven, for this and no other reason.
    is_in_force: bool,
    /// The last one that was.
    of_use: u32,
    /// Windows in a row in which more were asked for than there are.
    full: u32,
    /// Windows in a row in which callers waited for more than half of the time, and more than what is proven were there.
    crowded: u32,
    /// Returns per second when all was asked for that can be done.
    limit: f64,
    pause: Duration,
    not_before: Duration,
}

#[derive(Clone, Debug)]
struct Trial {
    from: u32,
    size: u32,
    /// Whether as many stayed before.
    is_known: bool,
    before: f64,
    began: Duration,
    is_open: bool,
    tails: Vec<f64>,
    /// In how many of its windows callers waited all the time.
    full: usize,
    /// The most that was done in one of those, in returns per second.
    most: f64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Advice {
    /// Nothing: the size is another rule's matter.
    None,
    /// More made calls quicker, and no other rule should touch them.
    Stay,
    /// More are tried.
    Try(u32),
    /// Nothing: a trial is on.
    Measure,
    /// More made calls quicker, and stay.
    Keep { before: Duration, after: Duration },
    /// They did not.
    TakeBack { to: u32, before: Duration, after: Duration },
    /// It cannot be told whether they do.
    Return(u32),
    /// What is proven is better now.
    Leave,
}

impl Relief {
    pub(super) fn new() -> Self {
        Self {
            tails: Vec::new(),
            trial: None,
            is_in_force: false,
            of_use: 0,
            full: 0,
            crowded: 0,
            limit: 0.0,
            pause: PAUSE,
            not_before: Duration::ZERO,
        }
    }

    /// Breaks off a trial, whose measure would say nothing. Returns the size before it, if its own is in force.
    pub(super) fn break_off(&mut self, target: u32, now: Duration) -> Option<u32> {
        self.tails.clear();
        let trial = self.trial.take().filter(|trial| trial.size == target)?;
        self.not_before = self.not_before.max(now.saturating_add(PAUSE));
        Some(trial.from)
    }

    /// Somebody else has changed the size.
    pub(super) fn overruled(&mut self, now: Duration) {
        self.trial = None;
        self.is_in_force = false;
        self.of_use = 0;
        self.tails.clear();
        self.not_before = self.not_before.max(now.saturating_add(PAUSE));
    }

    /// Takes in a window of a size that no other trial is about.
    pub(super) fn step(
        &mut self,
        sample: &Sample,
        [target, proven]: [u32; 2],
        bounds: Bounds,
        now: Duration,
    ) -> Advice {
        self.is_in_force &= target > proven;
        self.trial.take_if(|trial| trial.size != target);
        let done = sample.throughput().unwrap_or_default();
        let (is_full, is_at_limit) = (sample.backlog() >= FULL, done > BELOW * self.limit);
        let is_idle = self.trial.is_none() && !self.is_in_force;
        if is_full && is_at_limit && is_idle {
            let share = if self.limit > 0.0 { NEW } else { 1.0 };
            self.limit += share * (done - self.limit);
        }
        let is_busy = is_full || (is_at_limit && sample.backlog() >= BUSY);
        self.full = if is_busy { self.full.saturating_add(1) } else { 0 };
        let is_crowded = self.is_in_force && sample.backlog() >= BUSY;
        self.crowded = if is_crowded { self.crowded.saturating_add(1) } else { 0 };
        let may_leave = self.is_in_force && self.trial.is_none();
        if may_leave && (self.full >= LASTS || self.crowded >= DOUBTED) {
            self.is_in_force = false;
            self.crowded = 0;
            self.tails.clear();
            return Advice::Leave;
        }
        if sample.completed < CALLS && !is_full {
            // The load has gone, and may come back.
            self.tails.clear();
            return match self.trial.take_if(|trial| now.saturating_sub(trial.began) >= LONGEST) {
                Some(trial) => Advice::Return(trial.from),
                None => self.wait(),
            };
        }
        let (wait, hold) = (sample.wait_p99.as_secs_f64(), sample.hold_p99.as_secs_f64());
        if let Some(trial) = self.trial.take() {
            return self.go_on_with(trial, sample, wait + hold, now);
        }
        if is_at_limit || sample.completed < CALLS {
            self.tails.clear();
            return self.wait();
        }
        if wait <= LONG * sample.typical_hold().as_secs_f64() {
            self.tails.clear();
            return self.wait();
        }
        if self.tails.len() == WINDOWS {
            self.tails.remove(0);
        }
        self.tails.push(wait + hold);
        let is_known = self.of_use > target;
        let size = bounds.clamp(if is_known { self.of_use } else { target.saturating_mul(2) });
        if self.tails.len() < WINDOWS || (now < self.not_before && !is_known) || size <= target {
            return self.wait();
        }
        let before = median(&self.tails);
        self.tails.clear();
        self.trial = Some(Trial {
            from: target,
            size,
            is_known,
            before,
            began: now,
            is_open: false,
            tails: Vec::new(),
            full: 0,
            most: 0.0,
        });
        Advice::Try(size)
    }

    fn wait(&self) -> Advice {
        match (&self.trial, self.is_in_force) {
            (Some(_), _) => Advice::Measure,
            (None, true) => Advice::Stay,
            (None, false) => Advice::None,
        }
    }

    fn go_on_with(&mut self, mut trial: Trial, sample: &Sample, tail: f64, now: Duration) -> Advice {
        if !trial.is_open {
            // In this window some may still have been opened.
            let is_late = now.saturating_sub(trial.began) >= SETTLES;
            trial.is_open = sample.open >= trial.size || sample.in_use_max < trial.size || is_late;
            self.trial = Some(trial);
            return Advice::Measure;
        }
        trial.tails.push(tail);
        if sample.backlog() >= FULL {
            trial.full += 1;
            trial.most = trial.most.max(sample.throughput().unwrap_or_default());
        }
        if trial.tails.len() < WINDOWS {
            self.trial = Some(trial);
            return Advice::Measure;
        }
        let (before, after) = (trial.before, median(&trial.tails));
        let most = if trial.is_known { 1.0 + QUICKER } else { 1.0 - QUICKER };
        // Where all wait all the time, what is done decides and not how long it takes.
        let is_of_use = after < most * before && trial.full < WINDOWS;
        let in_time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let (before, after) = (in_time(before), in_time(after));
        if is_of_use {
            self.of_use = trial.size;
            self.is_in_force = true;
            self.full = 0;
            self.pause = PAUSE;
            self.not_before = now;
            // Where they are still long, more are tried in the next window.
            self.tails = trial.tails;
            return Advice::Keep { before, after };
        }
        if trial.is_known {
            self.of_use = 0;
        }
        if trial.full > 1 {
            // It is the server that does less than it did, and no pause of it.
            self.limit = trial.most.min(self.limit);
        }
        self.not_before = now.saturating_add(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Advice::TakeBack { to: trial.from, before, after }
    }
}

fn median(tails: &[f64]) -> f64 {
    let mut tails = tails.to_vec();
    tails.sort_unstable_by(f64::total_cmp);
    tails.get(tails.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MILLI: Duration = Duration::from_millis(1);

    /// A pool of 4, which are proven, at a server that was seen at its limit of 1,000 a second.
    struct Course {
        relief: Relief,
        target: u32,
        now: Duration,
    }

    impl Course {
        fn new() -> Self {
            let mut course = Self { relief: Relief::new(), target: 4, now: Duration::ZERO };
            assert_eq!(course.saturated(), Advice::None);
            course
        }

        fn step(&mut self, completed: u64, full: f64, wait: Duration) -> Advice {
            let sample = Sample {
                window: SECOND,
                completed,
                hold_typical: MILLI,
                hold_p99: 2 * MILLI,
                wait_p99: wait,
                max_waiting: 9,
                full_fraction: full,
                open: self.target,
                in_use_max: self.target,
                ..Sample::default()
            };
            self.now += SECOND;
            let bounds = Bounds::new(1, 20).unwrap();
            let advice = self.relief.step(&sample, [self.target, 4], bounds, self.now);
            match advice {
                Advice::Try(size) | Advice::Return(size) | Advice::TakeBack { to: size, .. } => {
                    self.target = size
                }
                Advice::Leave => self.target = 4,
                _ => {}
            }
            advice
        }

        fn saturated(&mut self) -> Advice {
            self.step(1_000, 1.0, 50 * MILLI)
        }

        /// Windows in which the slowest callers wait for so long, until something else than measuring is advised.
        fn waits(&mut self, wait: u32) -> Advice {
            for _ in 0..20 {
                match self.step(700, 0.5, wait * MILLI) {
                    Advice::None | Advice::Stay | Advice::Measure => {}
                    advice => return advice,
                }
            }
            Advice::None
        }

        fn keeps(&mut self, wait: u32) -> bool {
            matches!(self.waits(wait), Advice::Keep { .. })
        }
    }

    #[test]
    fn size_doubles_for_as_long_as_the_slowest_calls_become_quicker() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        let (before, after) = (32 * MILLI, 22 * MILLI);
        assert_eq!(course.waits(20), Advice::Keep { before, after });
        assert_eq!(course.step(700, 0.5, 20 * MILLI), Advice::Try(16), "the windows of the trial count");
        let (before, after) = (22 * MILLI, 20 * MILLI);
        assert_eq!(course.waits(18), Advice::TakeBack { to: 8, before, after });
        let began = course.now;
        assert_eq!(course.waits(20), Advice::None, "for a while");
        assert_eq!(course.waits(20), Advice::Try(16));
        assert!(course.now - began >= PAUSE - SECOND, "{:?}", course.now - began);
        assert!(course.keeps(10));
        assert_eq!(course.waits(10), Advice::Try(20), "the upper bound");
        assert!(course.keeps(5));
        assert_eq!(course.waits(5), Advice::None);
    }

    #[test]
    fn what_is_proven_is_back_when_all_is_asked_for_and_what_was_of_use_when_it_is_not() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        assert!(course.keeps(10));
        for _ in 1..LASTS {
            assert_eq!(course.saturated(), Advice::Stay);
        }
        assert_eq!(course.saturated(), Advice::Leave);
        assert_eq!(course.saturated(), Advice::None);
        assert_eq!(course.waits(30), Advice::Try(8));
        assert!(course.keeps(33), "a little slower is no reason");
        (0..LASTS).for_each(|_| assert_ne!(course.saturated(), Advice::None));
        assert_eq!(course.waits(30), Advice::Try(8));
        assert!(matches!(course.waits(60), Advice::TakeBack { to: 4, .. }));
        assert_eq!(course.waits(30), Advice::None, "it is forgotten, and tried after a while");
    }

    #[test]
    fn trial_ends_when_all_is_asked_for_or_another_rule_changes_the_size() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        (0..WINDOWS).for_each(|_| assert_eq!(course.saturated(), Advice::Measure));
        let (before, after) = (32 * MILLI, 52 * MILLI);
        assert_eq!(course.saturated(), Advice::TakeBack { to: 4, before, after });
        assert_eq!(course.waits(30), Advice::None, "for a while");
        assert_eq!(course.waits(30), Advice::Try(8));
        (1..60).for_each(|_| assert_eq!(course.step(0, 0.0, Duration::ZERO), Advice::Measure));
        assert_eq!(course.step(0, 0.0, Duration::ZERO), Advice::Return(4), "the load does not come back");
        assert_eq!(course.waits(30), Advice::Try(8));
        course.target = 6;
        assert_eq!(course.step(700, 0.5, 30 * MILLI), Advice::None);
        course.relief.overruled(course.now);
        let again = (1..100).find(|_| course.step(700, 0.5, 30 * MILLI) == Advice::Try(12));
        assert_eq!(again, Some(30), "where what is wanted is only said, it is not said all the time");
    }

    #[test]
    fn size_that_never_was_of_use_has_to_prove_itself() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        assert!(course.keeps(10));
        // A few were not in use for a while.
        course.target = 7;
        assert_eq!(course.waits(10), Advice::Try(8), "which is known");
        assert!(course.keeps(10));
        assert_eq!(course.waits(10), Advice::Try(16));
        assert!(matches!(course.waits(10), Advice::TakeBack { to: 8, .. }));
    }

    /// Neither all that is asked for nor all that can be done, and callers wait all the same.
    #[test]
    fn what_was_of_use_is_tried_anew_after_five_minutes_of_waiting() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        assert!(course.keeps(10));
        course.relief.not_before = Duration::MAX; // no others
        let left = (1..=DOUBTED).find(|_| course.step(700, 0.8, 60 * MILLI) == Advice::Leave);
        assert_eq!((left, course.target), (Some(DOUBTED), 4));
        assert_eq!(course.waits(20), Advice::Try(8));
        assert!(matches!(course.waits(60), Advice::TakeBack { to: 4, .. }), "they are of use no longer");
    }

    /// What is done in a pause is not what can be done.
    #[test]
    fn pause_of_the_server_in_a_trial_is_not_its_limit() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        for (completed, full) in [(700, 0.5), (700, 0.5), (700, 0.5)] {
            assert_eq!(course.step(completed, full, 40 * MILLI), Advice::Measure);
        }
        assert!(matches!(course.step(30, 1.0, 900 * MILLI), Advice::TakeBack { to: 4, .. }));
        assert!(course.relief.limit > 900.0, "{}", course.relief.limit);
    }

    #[test]
    fn trial_that_is_broken_off_is_not_begun_again_at_once() {
        let mut course = Course::new();
        assert_eq!(course.relief.break_off(4, course.now), None);
        assert_eq!(course.waits(30), Advice::Try(8));
        assert_eq!(course.relief.break_off(8, course.now), Some(4));
        course.target = 4;
        assert_eq!(course.waits(30), Advice::None);
        assert_eq!(course.waits(30), Advice::Try(8));
    }

    #[test]
    fn what_is_proven_is_back_where_callers_wait_and_as_much_is_done_as_can_be() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        assert!(course.keeps(10));
        let busy: Vec<Advice> = (0..LASTS).map(|_| course.step(900, BUSY, 10 * MILLI)).collect();
        assert_eq!(busy.last(), Some(&Advice::Leave), "the rules of throughput have their turn");
    }

    #[test]
    fn what_is_done_decides_where_callers_wait_all_the_time() {
        let mut course = Course::new();
        let mut waits = |wait: u32, windows: usize| {
            let advices: Vec<Advice> = (0..windows).map(|_| course.step(700, 1.0, wait * MILLI)).collect();
            advices
        };
        assert_eq!(waits(30, WINDOWS).last(), Some(&Advice::Try(8)), "the pool may be what holds them up");
        let (before, after) = (32 * MILLI, 12 * MILLI);
        assert_eq!(waits(10, WINDOWS + 1).last(), Some(&Advice::TakeBack { to: 4, before, after }));
        assert!(waits(30, 100).iter().all(|advice| *advice == Advice::None), "the server does no more now");
    }

    #[test]
    fn nothing_is_tried_without_need_or_near_the_limit_or_where_that_is_not_known() {
        let mut course = Course::new();
        for (completed, wait) in [(700, 2 * MILLI), (900, 30 * MILLI), (99, 30 * MILLI)] {
            for _ in 0..10 {
                assert_eq!(course.step(completed, 0.5, wait), Advice::None, "{completed}, {wait:?}");
            }
        }
        course.relief = Relief::new();
        assert_eq!(course.waits(30), Advice::None);
    }
}
