//! Which size is tried next, and when.

use std::time::Duration;

use super::{Bounds, trial::Direction};

/// The pause after a trial that was taken back, doubled each time, and varied by half up or down.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The pause at the upper bound after a step there that brought much: fewer would do less, unless something changed.
const KNOWN: Duration = Duration::from_secs(60);
/// Windows with a backlog before a trial, and before one that doubles the size.
const BASELINE: usize = 5;
const QUICK_BASELINE: usize = 3;
/// Windows in a row in which all is asked for that can be done, before fewer are tried: what a pause of the machine left behind is done by then, at three quarters
/// of what can be done after a pause of three seconds.
const IN_A_ROW: usize = 10;
/// Or so many that were not in a row.
const OFTEN: usize = 30;
/// Where no backlog lasts for so long, as in bursts, more are tried again.
const BURSTS: Duration = Duration::from_secs(60);

/// Climbs a hill: on where the last step led up, the other way where it led down.
#[derive(Clone, Debug)]
pub(super) struct Search {
    next: Direction,
    /// Nothing was taken back yet, or the knee is far.
    doubles: bool,
    /// The knee is between this size and twice as many.
    halves: bool,
    /// The last step brought at least half of what it could.
    was_steep: bool,
    /// More would have been next, and are not allowed.
    bounded: Option<Bounded>,
    pause: Duration,
    not_before: Duration,
    random: fastrand::Rng,
}

/// Where more would have been tried, and the upper bound was in the way.
#[derive(Clone, Copy, Debug)]
struct Bounded {
    at: u32,
    doubles: bool,
}

impl Search {
    pub(super) fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let (next, not_before) = (Direction::Up, Duration::ZERO);
        let (doubles, halves, was_steep, bounded) = (true, false, false, None);
        Self { next, doubles, halves, was_steep, bounded, pause: PAUSE, not_before, random }
    }

    /// Whether it is time for a trial, after so many windows with a backlog. In so many of them all was asked for that could
    /// be done, and in the last so many in a row.
    pub(super) fn is_due(&mut self, windows: usize, full: usize, in_a_row: usize, now: Duration) -> bool {
        if now < self.not_before || windows < if self.doubles { QUICK_BASELINE } else { BASELINE } {
            return false;
        }
        let is_lasting = in_a_row >= IN_A_ROW || full >= OFTEN;
        if self.next == Direction::Down && !is_lasting {
            if now.saturating_sub(self.not_before) < BURSTS {
                return false;
            }
            self.turn();
        }
        true
    }

    /// The size to try in place of this one. At the end of the bounds there is none, and the other way comes next.
    pub(super) fn next(&mut self, size: u32, bounds: Bounds, now: Duration) -> Option<u32> {
        let step = match (self.doubles, std::mem::take(&mut self.halves)) {
            (true, _) => size,
            (false, true) => (size / 2).max(1),
            (false, false) => (size / 4).max(1),
        };
        let next = bounds.clamp(match self.next {
            Direction::Up => size.saturating_add(step),
            Direction::Down => size.saturating_sub(step),
        });
        if next == size {
            if self.next == Direction::Up {
                let doubles = self.doubles || self.bounded.is_some_and(|bounded| bounded.doubles);
                self.bounded = Some(Bounded { at: size, doubles });
            }
            self.turn();
            if std::mem::take(&mut self.was_steep) {
                self.not_before = now.saturating_add(self.varied(KNOWN));
            }
            return None;
        }
        if self.next == Direction::Up {
            self.bounded = None;
        }
        Some(next)
    }

    /// In place of this size, so many are allowed by now. Where the way up ended at fewer, it goes on.
    pub(super) fn allow(&mut self, size: u32, ceiling: u32, now: Duration) {
        if let Some(bounded) = self.bounded.take_if(|bounded| ceiling > bounded.at.min(size)) {
            (self.next, self.doubles, self.not_before) = (Direction::Up, bounded.doubles, now);
        }
    }

    pub(super) fn kept(&mut self, steep: bool, now: Duration) {
        self.doubles |= steep;
        self.was_steep = steep;
        self.bounded = None;
        self.forget_pauses(now);
    }

    pub(super) fn taken_back(&mut self, now: Duration) {
        self.turn();
        self.was_steep = false;
        self.not_before = now.saturating_add(self.varied(self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// More brought something, and not enough. If it was twice as many, half of that step comes next, at once.
    pub(super) fn overshot(&mut self, now: Duration) {
        if !std::mem::take(&mut self.doubles) {
            return self.taken_back(now);
        }
        self.halves = true;
        self.was_steep = false;
        self.not_before = now;
    }

    /// No trial for some time, through no fault of the size.
    pub(super) fn rest(&mut self, now: Duration) {
        let pause = self.varied(PAUSE);
        self.not_before = self.not_before.max(now.saturating_add(pause));
    }

    /// The next trial is due, and a pause after it starts small.
    pub(super) fn forget_pauses(&mut self, now: Duration) {
        self.pause = PAUSE;
        self.not_before = now;
    }

    fn turn(&mut self) {
        self.next = self.next.other();
        (self.doubles, self.halves) = (false, false);
    }

    fn varied(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(0.5 + self.random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn sizes_double_until_one_is_taken_back_and_then_change_by_a_quarter() {
        let bounds = Bounds::new(1, 64).unwrap();
        let mut search = Search::new(0);
        assert_eq!(search.next(20, bounds, SECOND), Some(40));
        search.kept(false, SECOND);
        assert_eq!(search.next(40, bounds, SECOND), Some(64));
        search.taken_back(SECOND);
        assert_eq!(search.next(40, bounds, SECOND), Some(30));
        search.taken_back(SECOND);
        assert_eq!(search.next(3, bounds, SECOND), Some(4), "at least one");
        search.kept(true, SECOND);
        assert_eq!(search.next(4, bounds, SECOND), Some(8), "far from the knee");
    }

    #[test]
    fn half_of_a_step_that_was_too_large_is_tried_at_once_and_once() {
        let bounds = Bounds::new(1, 64).unwrap();
        let mut search = Search::new(0);
        assert_eq!(search.next(4, bounds, SECOND), Some(8));
        search.overshot(SECOND);
        assert!(search.is_due(5, 10, 10, SECOND));
        assert_eq!(search.next(4, bounds, SECOND), Some(6));
        search.overshot(SECOND);
        assert!(!search.is_due(5, 10, 10, SECOND), "a small step that was too large is taken back");
        assert_eq!(search.next(4, bounds, SECOND), Some(3));
    }

    #[test]
    fn end_of_the_bounds_turns_it_round() {
        let mut search = Search::new(0);
        let bounds = Bounds::new(4, 16).unwrap();
        assert_eq!(search.next(16, bounds, SECOND), None);
        assert_eq!(search.next(16, bounds, SECOND), Some(12));
        let only = Bounds::new(4, 4).unwrap();
        assert_eq!((search.next(4, only, SECOND), search.next(4, only, SECOND)), (None, None));
    }

    #[test]
    fn fewer_are_not_tried_for_a_while_after_a_step_to_the_bound_that_brought_much() {
        let bounds = Bounds::new(2, 64).unwrap();
        for (steep, is_due) in [(true, false), (false, true)] {
            let mut search = Search::new(0);
            search.kept(steep, SECOND);
            assert_eq!(search.next(64, bounds, SECOND), None);
            assert_eq!(
                (search.is_due(5, 10, 10, 30 * SECOND), search.is_due(5, 10, 10, 92 * SECOND)),
                (is_due, true)
            );
            search.forget_pauses(2 * SECOND);
            assert!(search.is_due(5, 10, 10, 2 * SECOND), "what is done per second has changed");
            assert_eq!(search.next(64, bounds, 2 * SECOND), Some(48));
        }
        let mut search = Search::new(0);
        search.kept(true, SECOND);
        search.taken_back(SECOND);
        search.taken_back(SECOND);
        assert_eq!(search.next(64, bounds, 40 * SECOND), None);
        assert!(search.is_due(5, 10, 10, 40 * SECOND), "a step of long ago says nothing");
    }

    #[test]
    fn fewer_are_tried_where_callers_have_waited_for_long() {
        let mut search = Search::new(0);
        search.kept(false, SECOND);
        assert!(search.is_due(5, 5, 5, SECOND), "more, at any time");
        search.taken_back(SECOND);
        for (full, in_a_row, is_due) in [(5, 5, false), (29, 9, false), (10, 10, true), (30, 0, true)] {
            assert_eq!(search.is_due(40, full, in_a_row, 60 * SECOND), is_due, "{full}, {in_a_row}");
        }
        let bounds = Bounds::new(1, 64).unwrap();
        assert_eq!(search.next(8, bounds, 60 * SECOND), Some(6));
        search.taken_back(60 * SECOND);
        search.taken_back(60 * SECOND);
        assert!(search.is_due(5, 5, 5, 200 * SECOND), "after a minute of nothing but bursts");
        assert_eq!(search.next(8, bounds, 200 * SECOND), Some(10));
    }

    #[test]
    fn pauses_double_to_five_minutes_and_start_small_after_a_change() {
        let mut search = Search::new(0);
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            search.taken_back(Duration::ZERO);
            assert!(
                !search.is_due(5, 10, 10, SECOND * pause / 2 - SECOND)
                    && search.is_due(5, 10, 10, SECOND * pause * 3 / 2)
            );
        }
        search.forget_pauses(SECOND);
        assert!(search.is_due(5, 10, 10, SECOND) && !search.is_due(4, 10, 10, SECOND));
        search.taken_back(SECOND);
        assert!(search.is_due(5, 10, 10, 17 * SECOND));
    }

    #[test]
    fn what_ended_at_a_bound_goes_on_beyond_it_and_what_ended_at_a_knee_does_not() {
        let bounds = |ceiling| Bounds::new(1, ceiling).unwrap();
        let mut search = Search::new(0);
        let mut now = SECOND;
        // Every round of fewer and more ends the same way, and nothing is forgotten by that.
        for _ in 0..2 {
            assert_eq!(search.next(4, bounds(4), now), None);
            search.allow(4, 4, now);
            assert_eq!(search.next(4, bounds(4), now), Some(3), "the other way");
            search.taken_back(now);
            now += 60 * SECOND;
        }
        assert_eq!(search.next(4, bounds(4), now), None);
        search.allow(4, 10, now);
        assert!(search.is_due(3, 3, 3, now), "at once");
        assert_eq!(search.next(4, bounds(10), now), Some(8), "twice as many, as at first");
        search.taken_back(now);
        search.allow(4, 64, now + SECOND);
        assert!(!search.is_due(99, 99, 99, now + SECOND));
        assert_eq!(search.next(4, bounds(64), now + 60 * SECOND), Some(3));
    }

    #[test]
    fn bound_that_was_below_for_a_while_is_no_bound_any_more() {
        let bounds = |ceiling| Bounds::new(1, ceiling).unwrap();
        let mut search = Search::new(0);
        assert_eq!(search.next(16, bounds(16), SECOND), None);
        // It fell, and the size with it, and rises.
        search.allow(8, 16, 2 * SECOND);
        assert_eq!(search.next(8, bounds(16), 2 * SECOND), Some(16));
    }

    #[test]
    fn rest_never_shortens_a_pause() {
        let mut search = Search::new(0);
        for _ in 0..6 {
            search.taken_back(Duration::ZERO);
        }
        search.rest(Duration::ZERO);
        assert!(!search.is_due(5, 10, 10, 100 * SECOND));
    }
}
