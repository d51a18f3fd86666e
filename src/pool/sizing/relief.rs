//! More connections where calls are slow for want of one, though the server could do more.
//!
//! Where less is asked for than can be done, throughput is what is asked for, at every size that can do it. How long
//! calls take is not the same: with few connections each one that is held up, by a slow query or because the system has
//! something else to do, holds up a line behind it. So where the slowest callers wait for longer than two queries
//! take, more connections are tried, and kept if the slowest calls were much quicker. How long those of one second take is
//! mostly a matter of chance: so the two sizes take turns, a second or two each, and the seconds of each are taken together
//! ([`Tails`]). That says nothing of what the server can do: as soon as all it can is asked for, the size is what is proven
//! again. And it is left alone near that, where lines come and go by chance: the server has to have been seen at its
//! limits, and be well below them. Where callers wait all the time nothing is tried for them here: more are asked for than
//! this size can do, and whether another one does more is for the [search](super::search) to find; at once, if that lasts
//! and less is done than was before.

use std::time::Duration;

use super::{Bounds, FULL, Sample, tails::Tails};

/// And for this share, where as much is done as can be.
const BUSY: f64 = 0.5;
/// For so many windows in a row, which a pause of the machine does not leave behind.
const LASTS: u32 = 5;
/// For so many windows in a row callers wait all the time and less is done than can be: it cannot be any more. Where one
/// query in a hundred takes long, half as many are chance.
const SHORT: u32 = 10;
/// So many windows in a row in which they wait for half of the time, and what was of use is tried anew: the server may
/// do less by now, and less with more connections.
const DOUBTED: u32 = 300;
/// Of what was done at the limit, at most so much may be done now, or lines come and go by chance.
const BELOW: f64 = 0.85;
/// How much of what was done then is what was done in the last window of that kind.
const NEW: f64 = 0.2;
/// The slowest callers wait for so many times what a typical query takes.
const LONG: f64 = 2.0;
/// For so many windows in a row, before more are tried.
const WINDOWS: usize = 3;
/// After so many pairs of windows, one of either size, is decided what is clear, and after so many the rest.
const EARLY: usize = 4;
const PAIRS: usize = 10;
/// The slowest calls have to take less than this share of the time for more connections to stay. Those that stayed before
/// go if it is as much the other way.
const QUICKER: f64 = 0.8;
/// And these are clear, if it is so without the worst window of either size as well.
const CLEARLY_QUICKER: f64 = 0.6;
const CLEARLY_SLOWER: f64 = 1.2;
/// Calls in a window, of which the slowest in a hundred say something.
const CALLS: u64 = 100;
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
    /// In how many windows in a row the slowest calls waited.
    long: usize,
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
    /// Windows in a row in which callers waited all the time and less than that was done, and the most of it.
    short: u32,
    most: f64,
    pause: Duration,
    not_before: Duration,
}

#[derive(Clone, Debug)]
struct Trial {
    from: u32,
    size: u32,
    /// Whether as many stayed before.
    is_known: bool,
    began: Duration,
    is_open: bool,
    /// The windows with more, and those without.
    with: Tails,
    without: Tails,
    /// Of those with more: what was done per second where callers waited all the time.
    full: Vec<Option<f64>>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Advice {
    /// Nothing: the size is another rule's matter.
    None,
    /// The server does less than it did, and callers wait for it: what is known of sizes may be another's.
    Doubt,
    /// More made calls quicker, and no other rule should touch them.
    Stay,
    /// More are proven, and would be of use.
    Grow,
    /// More are tried.
    Try(u32),
    /// This size in the next window: a trial is on.
    Measure(u32),
    /// More made calls quicker, and stay.
    Keep { size: u32, before: Duration, after: Duration },
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
            long: 0,
            trial: None,
            is_in_force: false,
            of_use: 0,
            full: 0,
            crowded: 0,
            limit: 0.0,
            short: 0,
            most: 0.0,
            pause: PAUSE,
            not_before: Duration::ZERO,
        }
    }

    /// Breaks off a trial, whose measure would say nothing. Returns the size before it.
    pub(super) fn break_off(&mut self, target: u32, now: Duration) -> Option<u32> {
        self.long = 0;
        let trial = self.trial.take().filter(|trial| trial.is_about(target))?;
        self.not_before = self.not_before.max(now.saturating_add(PAUSE));
        Some(trial.from)
    }

    /// Somebody else has changed the size.
    pub(super) fn overruled(&mut self, now: Duration) {
        self.trial = None;
        self.is_in_force = false;
        self.of_use = 0;
        self.long = 0;
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
        self.trial.take_if(|trial| !trial.is_about(target));
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
            self.long = 0;
            return Advice::Leave;
        }
        if sample.completed < CALLS && !is_full {
            // The load has gone, and may come back.
            self.long = 0;
            return match self.trial.take_if(|trial| now.saturating_sub(trial.began) >= LONGEST) {
                Some(trial) => self.give_up(&trial, now),
                None => self.wait(),
            };
        }
        // Else what was begun at one size comes back at the other.
        let is_quick = sample.typical_hold() < sample.window / 4;
        if let Some(trial) = self.trial.take() {
            return if is_quick { self.go_on_with(trial, sample, now) } else { self.give_up(&trial, now) };
        }
        let is_long = sample.wait_p99.as_secs_f64() > LONG * sample.typical_hold().as_secs_f64();
        if is_full {
            // A trial here would come between those of the search.
            // Of few calls it is chance how many come back in one window.
            let is_short = sample.completed >= CALLS && !is_at_limit;
            return if self.falls_short(done, is_short) { Advice::Doubt } else { self.wait() };
        }
        self.short = 0;
        if is_at_limit || sample.completed < CALLS || !is_long {
            self.long = 0;
            return self.wait();
        }
        self.long = self.long.saturating_add(1);
        if target < proven && self.long >= WINDOWS {
            self.long = 0;
            return Advice::Grow;
        }
        let is_known = self.of_use > target;
        let size = bounds.clamp(if is_known { self.of_use } else { target.saturating_mul(2) });
        let may_try = is_quick && (is_known || now >= self.not_before);
        if self.long < WINDOWS || !may_try || size <= target {
            return self.wait();
        }
        self.long = 0;
        self.trial = Some(Trial {
            from: target,
            size,
            is_known,
            began: now,
            is_open: false,
            with: Tails::default(),
            without: Tails::default(),
            full: Vec::new(),
        });
        Advice::Try(size)
    }

    /// Whether callers waited all the time in so many windows in a row, and less was done in each than can be by what is known
    /// of that. It is known anew then.
    fn falls_short(&mut self, done: f64, is_short: bool) -> bool {
        if !is_short || self.is_in_force {
            self.short = 0;
            return false;
        }
        self.most = if self.short == 0 { done } else { self.most.max(done) };
        self.short = self.short.saturating_add(1);
        if self.short < SHORT {
            return false;
        }
        self.short = 0;
        self.limit = self.most;
        true
    }

    /// Goes back, and does not try again for a while.
    fn give_up(&mut self, trial: &Trial, now: Duration) -> Advice {
        self.rest(now);
        Advice::Return(trial.from)
    }

    fn rest(&mut self, now: Duration) {
        self.not_before = now.saturating_add(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn wait(&mut self) -> Advice {
        match (&mut self.trial, self.is_in_force) {
            (Some(trial), _) => {
                // A pair is of neighbours.
                trial.forget_half();
                Advice::Measure(trial.in_turn())
            }
            (None, true) => Advice::Stay,
            (None, false) => Advice::None,
        }
    }

    fn go_on_with(&mut self, mut trial: Trial, sample: &Sample, now: Duration) -> Advice {
        if trial.is_open {
            trial.push(sample);
        } else {
            // In this window some may still have been opened.
            let is_late = now.saturating_sub(trial.began) >= SETTLES;
            trial.is_open = sample.open >= trial.size || sample.in_use_max < trial.size || is_late;
        }
        let Some(is_of_use) = trial.verdict() else {
            let size = trial.in_turn();
            self.trial = Some(trial);
            return Advice::Measure(size);
        };
        let in_time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let [before, after] = [&trial.without, &trial.with].map(|tails| in_time(tails.slowest()));
        if is_of_use {
            self.of_use = trial.size;
            self.is_in_force = true;
            self.full = 0;
            self.pause = PAUSE;
            self.not_before = now;
            // Where they are still long, more are tried in the next window.
            self.long = WINDOWS;
            return Advice::Keep { size: trial.size, before, after };
        }
        if trial.is_known {
            self.of_use = 0;
        }
        let (full, most) = trial.when_full();
        if full > 1 && 2 * full > trial.with.len() {
            // It is the server that does less than it did, and no pause of it.
            self.limit = most.min(self.limit);
        }
        self.rest(now);
        Advice::TakeBack { to: trial.from, before, after }
    }
}

impl Trial {
    fn is_about(&self, size: u32) -> bool {
        size == self.size || size == self.from
    }

    /// The size of the next window.
    fn in_turn(&self) -> u32 {
        if self.is_with_more() { self.size } else { self.from }
    }

    /// The next window: first with more, and then two of either kind in turn, so that what changes steadily is left out of
    /// account.
    fn is_with_more(&self) -> bool {
        matches!((self.with.len() + self.without.len()) % 4, 0 | 3)
    }

    /// A pair is of neighbours.
    fn forget_half(&mut self) {
        let pairs = self.with.len().min(self.without.len());
        self.with.keep_first(pairs);
        self.full.truncate(pairs);
        self.without.keep_first(pairs);
    }

    /// In how many of the windows with more callers waited all the time, and the most that was done in one of those.
    fn when_full(&self) -> (usize, f64) {
        let full = self.full.iter().flatten();
        (full.clone().count(), full.copied().fold(0.0, f64::max))
    }

    fn push(&mut self, sample: &Sample) {
        if !self.is_with_more() {
            self.without.push(sample);
            return;
        }
        self.with.push(sample);
        let is_full = sample.backlog() >= FULL;
        self.full.push(is_full.then(|| sample.throughput().unwrap_or_default()));
    }

    /// Whether more are of use, as soon as that can be told: after both windows of a pair.
    fn verdict(&self) -> Option<bool> {
        let pairs = self.with.len();
        if pairs != self.without.len() {
            return None;
        }
        if pairs >= WINDOWS && self.full.iter().rev().take(WINDOWS).all(Option::is_some) {
            // Where all wait all the time, what is done decides and not how long it takes.
            return Some(false);
        }
        if pairs < EARLY {
            return None;
        }
        let of_all = self.with.slowest() / self.without.slowest();
        let of_most = self.with.but_the_worst().slowest() / self.without.but_the_worst().slowest();
        let (least, most) = (of_all.min(of_most), of_all.max(of_most));
        if self.is_known {
            return Some(least * QUICKER < 1.0);
        }
        match pairs >= PAIRS {
            true => Some(of_most < QUICKER),
            false if most < CLEARLY_QUICKER => Some(true),
            false => (least > CLEARLY_SLOWER).then_some(false),
        }
    }
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
                Advice::Try(size)
                | Advice::Measure(size)
                | Advice::Keep { size, .. }
                | Advice::Return(size)
                | Advice::TakeBack { to: size, .. } => self.target = size,
                Advice::Leave => self.target = 4,
                Advice::None | Advice::Doubt | Advice::Stay | Advice::Grow => {}
            }
            advice
        }

        fn saturated(&mut self) -> Advice {
            self.step(1_000, 1.0, 50 * MILLI)
        }

        /// Windows in which the slowest callers wait for so long, by the size, until something else than measuring is
        /// advised, and for no more windows than that.
        fn until(&mut self, windows: usize, wait: impl Fn(u32) -> u32) -> Advice {
            for _ in 0..windows {
                match self.step(700, 0.5, wait(self.target) * MILLI) {
                    Advice::None | Advice::Stay | Advice::Measure(_) => {}
                    advice => return advice,
                }
            }
            Advice::None
        }

        /// The same at every size, for a while.
        fn waits(&mut self, wait: u32) -> Advice {
            self.until(20, |_| wait)
        }

        /// A trial in which the slowest callers wait for so long with more, and for 30 ms without.
        fn tries(&mut self, wait: u32) -> Advice {
            let from = self.relief.trial.as_ref().map_or(self.target, |trial| trial.from);
            self.until(1 + 2 * PAIRS, |size| if size > from { wait } else { 30 })
        }

        fn keeps(&mut self, wait: u32) -> bool {
            matches!(self.tries(wait), Advice::Keep { .. })
        }
    }

    #[test]
    fn size_doubles_for_as_long_as_the_slowest_calls_become_quicker() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        let (before, after) = (32 * MILLI, 17 * MILLI);
        assert_eq!(course.tries(15), Advice::Keep { size: 8, before, after });
        assert_eq!(course.step(700, 0.5, 20 * MILLI), Advice::Try(16), "they are still long");
        let (before, after) = (32 * MILLI, 28 * MILLI);
        assert_eq!(course.tries(26), Advice::TakeBack { to: 8, before, after }, "hardly");
        let began = course.now;
        assert_eq!(course.waits(20), Advice::None, "for a while");
        assert_eq!(course.waits(20), Advice::Try(16));
        assert!(course.now - began >= PAUSE - SECOND, "{:?}", course.now - began);
        assert!(course.keeps(10));
        assert_eq!(course.waits(10), Advice::Try(20), "the upper bound");
        assert!(course.keeps(5));
        assert_eq!(course.waits(5), Advice::None);
    }

    /// What the trial comes to, and after how many pairs of windows, in which the slowest calls with more and without took
    /// so many milliseconds.
    fn outcome(pair: impl Fn(usize) -> [u32; 2]) -> (u32, usize) {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        assert_eq!(course.step(700, 0.5, MILLI), Advice::Measure(8), "until they are open");
        for number in 0.. {
            let [with, without] = pair(number);
            let waits = if number % 2 == 0 { [with, without] } else { [without, with] };
            let mut last = Advice::None;
            for wait in waits {
                last = course.step(700, 0.5, (wait - 2) * MILLI);
            }
            if !matches!(last, Advice::Measure(_)) {
                return (course.target, number + 1);
            }
        }
        (0, 0)
    }

    #[test]
    fn what_is_clear_is_decided_early_and_what_is_not_later() {
        let (early, late) = (EARLY, PAIRS);
        assert_eq!(outcome(|_| [18, 32]), (8, early));
        assert_eq!(outcome(|_| [22, 32]), (8, late));
        assert_eq!(outcome(|_| [28, 32]), (4, late));
        assert_eq!(outcome(|_| [40, 32]), (4, early));
        assert_eq!(outcome(|number| if number == 1 { [900, 32] } else { [18, 32] }), (8, late), "a pause");
        assert_eq!(outcome(|number| if number == 1 { [32, 900] } else { [32, 32] }), (4, late), "another");
        let now_and_then = |number| if number % 2 == 1 { 900 } else { 10 };
        assert_eq!(outcome(|number| [32, now_and_then(number)]), (8, early), "the slowest of all windows");
    }

    /// A machine that becomes slower by a tenth every second, or quicker.
    #[test]
    fn what_changes_steadily_is_no_reason() {
        for share in [0.9, 1.1] {
            let mut course = Course::new();
            assert_eq!(course.waits(30), Advice::Try(8));
            let mut wait = 100.0_f64;
            let advice = (0..=2 * PAIRS).find_map(|_| {
                wait *= share;
                match course.step(700, 0.5, MILLI.mul_f64(wait)) {
                    Advice::Measure(_) => None,
                    advice => Some(advice),
                }
            });
            assert!(matches!(advice, Some(Advice::TakeBack { to: 4, .. })), "{advice:?}");
        }
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
        assert!(course.keeps(33), "a little slower is no reason to go");
        (0..LASTS).for_each(|_| assert_ne!(course.saturated(), Advice::None));
        assert_eq!(course.waits(30), Advice::Try(8));
        assert!(matches!(course.tries(60), Advice::TakeBack { to: 4, .. }));
        assert_eq!(course.waits(30), Advice::None, "it is forgotten, and tried after a while");
    }

    #[test]
    fn trial_ends_when_all_is_asked_for_or_another_rule_changes_the_size() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        for size in [8, 4, 4, 8, 8, 4] {
            assert_eq!(course.saturated(), Advice::Measure(size));
        }
        let (before, after) = (52 * MILLI, 52 * MILLI);
        assert_eq!(course.saturated(), Advice::TakeBack { to: 4, before, after });
        assert_eq!(course.waits(30), Advice::None, "for a while");
        assert_eq!(course.waits(30), Advice::Try(8));
        (0..2).for_each(|_| assert_ne!(course.step(700, 0.5, 30 * MILLI), Advice::None));
        assert_eq!(course.target, 4, "its turn");
        (3..60).for_each(|_| assert_eq!(course.step(0, 0.0, Duration::ZERO), Advice::Measure(8)));
        assert_eq!(course.step(0, 0.0, Duration::ZERO), Advice::Return(4), "the load does not come back");
        assert_eq!(course.waits(30), Advice::None, "if it does, for a moment, it is not tried again at once");
        assert_eq!(course.until(60, |_| 30), Advice::Try(8));
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
        assert!(matches!(course.tries(30), Advice::TakeBack { to: 8, .. }));
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
        assert!(matches!(course.tries(60), Advice::TakeBack { to: 4, .. }), "they are of use no longer");
    }

    /// What is done in a pause is not what can be done.
    #[test]
    fn pause_of_the_server_in_a_trial_is_not_its_limit() {
        let mut course = Course::new();
        assert_eq!(course.waits(30), Advice::Try(8));
        for size in [8, 4, 4, 8] {
            assert_eq!(course.step(700, 0.5, 40 * MILLI), Advice::Measure(size));
        }
        assert_eq!(course.step(30, 1.0, 900 * MILLI), Advice::Measure(8));
        assert!(matches!(course.tries(40), Advice::TakeBack { to: 4, .. }));
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
        let mut advice = course.waits(30);
        assert_eq!(advice, Advice::Try(8));
        while !matches!(advice, Advice::TakeBack { .. }) {
            assert!(course.now < 60 * SECOND);
            let wait = if course.target == 8 { 10 } else { 30 };
            advice = course.step(700, 1.0, wait * MILLI);
        }
        let (before, after) = (32 * MILLI, 12 * MILLI);
        assert_eq!(advice, Advice::TakeBack { to: 4, before, after });
        for _ in 0..100 {
            let advice = course.step(700, 0.8, 30 * MILLI);
            assert_eq!(advice, Advice::None, "the server does no more now");
        }
    }

    #[test]
    fn what_waits_all_the_time_is_left_to_the_search_which_is_told_when_less_is_done_for_long() {
        let mut course = Course::new();
        let mut told = Vec::new();
        for window in 1..=100 {
            match course.step(600 + window, 1.0, 30 * MILLI) {
                Advice::None => {}
                Advice::Doubt => told.push(window),
                advice => panic!("{advice:?}"),
            }
        }
        assert_eq!(told, [u64::from(SHORT)], "once");
        assert!(course.relief.limit > 610.0 && course.relief.limit < 700.0, "{}", course.relief.limit);
        for (window, done) in (0..100).map(|window| (window, if window % 8 == 0 { 700 } else { 400 })) {
            assert_eq!(course.step(done, 1.0, 30 * MILLI), Advice::None, "not in a row: {window}");
        }
    }

    #[test]
    fn window_in_which_all_wait_neither_begins_a_trial_nor_puts_one_off() {
        let mut course = Course::new();
        for _ in 0..2 {
            assert_eq!(course.step(700, 0.7, 30 * MILLI), Advice::None);
            assert_eq!(course.step(700, 1.0, 30 * MILLI), Advice::None);
        }
        assert_eq!(course.step(700, 0.7, 30 * MILLI), Advice::Try(8));
    }

    #[test]
    fn nothing_is_tried_where_calls_outlast_the_turns() {
        let mut course = Course::new();
        let slow = |target| Sample {
            window: SECOND,
            completed: 700,
            hold_typical: SECOND / 4,
            wait_p99: SECOND,
            max_waiting: 9,
            full_fraction: 0.5,
            open: target,
            in_use_max: target,
            ..Sample::default()
        };
        let bounds = Bounds::new(1, 20).unwrap();
        for _ in 0..10 {
            course.now += SECOND;
            assert_eq!(course.relief.step(&slow(4), [4, 4], bounds, course.now), Advice::None);
        }
        assert_eq!(course.waits(30), Advice::Try(8));
        assert_eq!(course.relief.step(&slow(8), [8, 4], bounds, course.now), Advice::Return(4));
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
