//! Whether the remote tier is worth asking.
//!
//! A gate that callers pass, and tell afterwards how it went. A call is *answered*, or *slow* (its deadline
//! passed), or finds the tier *dead* (refused or cut connections, bytes that are no answer). The gate closes on
//!
//! - [`DEAD_IN_A_ROW`] dead ones, which cost little each and mean one thing;
//! - half of at least [`ENOUGH`] calls within [`WINDOW`] seconds slow: one hiccup under load makes many calls slow at
//!   once, and is no reason by itself to go without the tier;
//! - nothing but slow and dead ones for [`SILENCE`], at least [`DEAD_IN_A_ROW`] of them: a tier that hangs must not
//!   cost a quiet server its deadline on every request, for want of calls to count.
//!
//! While the gate is closed nobody waits. After [`PAUSE`], a fifth more or less so that a fleet does not come back in
//! one moment, the next caller sends a *probe* ahead and does not wait for it either. If that is answered,
//! [`TRIALS`] callers go through; if all of those are answered, everybody does. The first failure on the way closes
//! it again. The pause does not grow: one probe in two seconds is nothing to a server, and a tier that was away for
//! an hour is used again as soon as one that was away for a moment, within 2.4 seconds and five answers.
//!
//! A refusal says nothing of any of this: a server that is full can be read, and a queue that is full is ours. Nor
//! does a call that began before the gate last moved, which is what a [`Round`] is for. While nothing fails answers are not counted and nobody takes a lock: the share of
//! slow calls is that since the first of them.
//!
//! Deciding is pure: time comes in, a [`Passage`] or a [`Turn`] goes out. Three outcomes instead of two, the share of
//! slow calls and the widening half-open state are those of resilience4j; that a refusal and a wait of our own must
//! not count is what breakers learned that opened on them.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::{
    clock::{Clock, Instant},
    sync::{Mutex, lock},
};

const DEAD_IN_A_ROW: u32 = 5;
/// Calls within the window below which no share of them says anything.
const ENOUGH: u32 = 20;
/// In seconds.
const WINDOW: usize = 10;
const SILENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(2);
const TRIALS: u32 = 4;

/// The state of the gate.
#[derive(Debug, Default)]
struct Availability {
    round: Round,
    state: State,
}

/// Goes up whenever the gate moves: a call that was let through in an earlier round is not heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Round(u64);

#[derive(Debug)]
enum State {
    Open(Record),
    Closed {
        ask_again: Instant,
    },
    /// A probe is under way. Its caller may be gone with its runtime, so it lapses.
    Probing {
        lapses: Instant,
    },
    /// Callers of whom nothing was heard (theirs may be gone) are replaced when the time is up.
    Trying {
        let_through: u32,
        answered: u32,
        lapses: Instant,
    },
}

/// What was heard while the gate is open.
#[derive(Debug, Default)]
struct Record {
    dead_in_a_row: u32,
    unanswered: Option<Unanswered>,
    window: [Second; WINDOW],
}

/// Slow and dead calls without an answer in between.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    since: Instant,
    calls: u32,
}

/// The calls that ended within one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    calls: u32,
    slow: u32,
}

/// May the remote tier be asked?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    Ask(Round),
    /// No, but somebody has to find out whether it may.
    Probe(Round),
    Skip,
}

/// How a call went that was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Dead,
    /// Refused there or here: see the head of this file.
    Refused,
    Slow,
}

/// Whether a cache uses its remote tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoteStatus {
    /// The cache has no remote tier.
    #[default]
    None,
    /// It is asked.
    Up,
    /// It is left alone, after too many calls that failed or were slow, until it answers a ping.
    Away,
    /// It answered a ping: a few calls go through, and if they are answered, all.
    Returning,
}

/// A change that the operator should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    WentAway,
    CameBack,
}

/// The gate as its callers share it: nobody meets anybody in its lock while nothing fails.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Whether anything failed of late, so that answers have to be counted too.
    is_troubled: AtomicBool,
    /// [`Availability::round`], as it was when the lock was last released.
    round: AtomicU64,
    state: Mutex<Availability>,
}

impl Gate {
    pub(super) fn passage(&self, clock: &Clock) -> Passage {
        if !self.is_troubled.load(Ordering::Acquire) {
            return Passage::Ask(Round(self.round.load(Ordering::Acquire)));
        }
        self.with(|state| state.passage(clock.now()))
    }

    pub(super) fn answered(&self, round: Round, clock: &Clock) -> Option<Turn> {
        if !self.is_troubled.load(Ordering::Acquire) {
            return None;
        }
        self.with(|state| {
            let now = clock.now();
            let turn = state.answered(round, now);
            if state.is_calm(now) {
                self.is_troubled.store(false, Ordering::Release);
            }
            turn
        })
    }

    pub(super) fn failed(&self, round: Round, how: Failure, clock: &Clock) -> Option<Turn> {
        self.with(|state| {
            self.is_troubled.store(true, Ordering::Release);
            state.failed(round, how, clock.now(), fastrand::f64())
        })
    }

    pub(super) fn status(&self) -> RemoteStatus {
        if !self.is_troubled.load(Ordering::Acquire) {
            return RemoteStatus::Up;
        }
        match lock(&self.state).state {
            State::Open(_) => RemoteStatus::Up,
            State::Closed { .. } | State::Probing { .. } => RemoteStatus::Away,
            State::Trying { .. } => RemoteStatus::Returning,
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Availability) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.round.store(state.round.0, Ordering::Release);
        result
    }
}

impl Availability {
    /// Whether the gate is open, and nothing failed that could still come to closing it.
    fn is_calm(&self, now: Instant) -> bool {
        match &self.state {
            State::Open(record) => {
                record.dead_in_a_row == 0 && record.unanswered.is_none() && !record.was_slow(now)
            }
            State::Closed { .. } | State::Probing { .. } | State::Trying { .. } => false,
        }
    }

    fn passage(&mut self, now: Instant) -> Passage {
        match &mut self.state {
            State::Open(_) => Passage::Ask(self.round),
            State::Closed { ask_again: due } | State::Probing { lapses: due } if now >= *due => {
                Passage::Probe(self.moves_to(State::Probing { lapses: now.after(PAUSE) }))
            }
            State::Closed { .. } | State::Probing { .. } => Passage::Skip,
            State::Trying { let_through, answered, lapses } => {
                if now >= *lapses {
                    (*let_through, *lapses) = (*answered, now.after(PAUSE));
                }
                if *let_through >= TRIALS {
                    return Passage::Skip;
                }
                *let_through += 1;
                Passage::Ask(self.round)
            }
        }
    }

    /// A call that was let through in `round` was answered.
    fn answered(&mut self, round: Round, now: Instant) -> Option<Turn> {
        if round != self.round {
            return None;
        }
        match &mut self.state {
            State::Open(record) => {
                record.answered(now);
                None
            }
            State::Closed { .. } => None,
            State::Probing { .. } => {
                self.moves_to(State::Trying { let_through: 0, answered: 0, lapses: now.after(PAUSE) });
                None
            }
            State::Trying { answered, .. } => {
                *answered += 1;
                if *answered < TRIALS {
                    return None;
                }
                self.moves_to(State::default());
                Some(Turn::CameBack)
            }
        }
    }

    /// A call that was let through in `round` was not answered. `draw`, at random from 0 up to 1, spreads the pause.
    fn failed(&mut self, round: Round, how: Failure, now: Instant, draw: f64) -> Option<Turn> {
        if round != self.round {
            return None;
        }
        let was_open = match &mut self.state {
            State::Open(record) => {
                if !record.gives_up(how, now) {
                    return None;
                }
                true
            }
            State::Trying { let_through, .. } if how == Failure::Refused => {
                *let_through = let_through.saturating_sub(1);
                return None;
            }
            State::Closed { .. } | State::Probing { .. } | State::Trying { .. } => false,
        };
        self.moves_to(State::Closed { ask_again: now.after(PAUSE.mul_f64(0.8 + 0.4 * draw)) });
        was_open.then_some(Turn::WentAway)
    }

    fn moves_to(&mut self, state: State) -> Round {
        self.state = state;
        self.round.0 += 1;
        self.round
    }
}

impl Default for State {
    fn default() -> Self {
        Self::Open(Record::default())
    }
}

impl Record {
    fn answered(&mut self, now: Instant) {
        (self.dead_in_a_row, self.unanswered) = (0, None);
        self.second(now).calls += 1;
    }

    /// Notes a failure; returns whether it is one too many.
    fn gives_up(&mut self, how: Failure, now: Instant) -> bool {
        if how == Failure::Refused {
            return false;
        }
        let second = self.second(now);
        second.calls += 1;
        match how {
            Failure::Slow => {
                second.slow += 1;
                self.dead_in_a_row = 0;
            }
            Failure::Dead | Failure::Refused => self.dead_in_a_row += 1,
        }
        let unanswered = self.unanswered.get_or_insert(Unanswered { since: now, calls: 0 });
        unanswered.calls += 1;
        let is_silent = unanswered.calls >= DEAD_IN_A_ROW && now.since(unanswered.since) >= SILENCE;
        self.dead_in_a_row >= DEAD_IN_A_ROW || is_silent || self.is_slow(now)
    }

    fn recent(&self, now: Instant) -> impl Iterator<Item = &Second> {
        let this = number(now);
        self.window.iter().filter(move |second| second.number + WINDOW as u64 > this)
    }

    fn was_slow(&self, now: Instant) -> bool {
        self.recent(now).any(|second| second.slow > 0)
    }

    fn is_slow(&self, now: Instant) -> bool {
        let recent = self.recent(now);
        let (calls, slow) = recent.fold((0, 0), |sum, second| (sum.0 + second.calls, sum.1 + second.slow));
        calls >= ENOUGH && 2 * slow >= calls
    }

    fn second(&mut self, now: Instant) -> &mut Second {
        let number = number(now);
        #[expect(clippy::cast_possible_truncation, reason = "less than `WINDOW`")]
        let second = &mut self.window[(number % WINDOW as u64) as usize];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }
}

fn number(now: Instant) -> u64 {
    now.as_nanos() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::{
        Failure::{Dead, Refused, Slow},
        *,
    };

    /// The middle of the spread: a pause of two seconds.
    const MIDDLE: f64 = 0.5;

    const fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(milliseconds * 1_000_000)
    }

    fn ask(gate: &mut Availability, now: Instant) -> Round {
        match gate.passage(now) {
            Passage::Ask(round) => round,
            closed => panic!("{closed:?} at {now:?}"),
        }
    }

    fn probe(gate: &mut Availability, now: Instant) -> Round {
        match gate.passage(now) {
            Passage::Probe(round) => round,
            other => panic!("{other:?} at {now:?}"),
        }
    }

    /// One call that ends when it begins.
    fn call(gate: &mut Availability, end: Result<(), Failure>, now: Instant) -> Option<Turn> {
        let round = ask(gate, now);
        match end {
            Ok(()) => gate.answered(round, now),
            Err(how) => gate.failed(round, how, now, MIDDLE),
        }
    }

    fn closed_at(now: Instant) -> Availability {
        let mut gate = Availability::default();
        let turns: Vec<_> = (0..5).map(|_| call(&mut gate, Err(Dead), now)).collect();
        assert_eq!(turns, [None, None, None, None, Some(Turn::WentAway)]);
        gate
    }

    #[test]
    fn five_dead_calls_in_a_row_close_it_and_an_answer_in_between_starts_the_count_again() {
        let mut gate = Availability::default();
        for end in [Err(Dead), Err(Dead), Err(Dead), Err(Dead), Ok(())].into_iter().cycle().take(100) {
            assert_eq!(call(&mut gate, end, at(0)), None);
        }
        assert_eq!(closed_at(at(0)).passage(at(0)), Passage::Skip);
    }

    #[test]
    fn refusals_neither_close_it_nor_keep_it_open() {
        let mut gate = Availability::default();
        for _ in 0..1_000 {
            assert_eq!(call(&mut gate, Err(Refused), at(0)), None);
        }
        for _ in 0..4 {
            assert_eq!(call(&mut gate, Err(Dead), at(0)), None);
            assert_eq!(call(&mut gate, Err(Refused), at(0)), None);
        }
        assert_eq!(call(&mut gate, Err(Dead), at(0)), Some(Turn::WentAway));
    }

    #[test]
    fn half_of_twenty_calls_slow_closes_it_and_fewer_calls_or_a_smaller_share_do_not() {
        let mut gate = Availability::default();
        for _ in 0..19 {
            assert_eq!(call(&mut gate, Err(Slow), at(0)), None);
        }
        assert_eq!(call(&mut gate, Err(Slow), at(0)), Some(Turn::WentAway));

        let mut gate = Availability::default();
        for _ in 0..11 {
            assert_eq!(call(&mut gate, Ok(()), at(0)), None);
        }
        for _ in 0..10 {
            assert_eq!(call(&mut gate, Err(Slow), at(0)), None);
        }
        assert_eq!(call(&mut gate, Err(Slow), at(0)), Some(Turn::WentAway));
    }

    #[test]
    fn slow_calls_are_forgotten_after_the_window() {
        let mut gate = Availability::default();
        for second in 0..100 {
            // Half of them slow, and eighteen within any ten seconds.
            for end in [Err(Slow), Ok(())] {
                let now = at(second * 1_200);
                assert_eq!(call(&mut gate, end, now), None, "second {second}");
            }
        }
    }

    #[test]
    fn nothing_but_silence_for_a_second_closes_it_however_few_ask() {
        let mut gate = Availability::default();
        for end in [250, 500, 750, 1_000] {
            assert_eq!(call(&mut gate, Err(Slow), at(end)), None);
        }
        assert_eq!(call(&mut gate, Err(Slow), at(1_250)), Some(Turn::WentAway));

        // A hiccup: as many within less than a second, and then an answer.
        let mut gate = Availability::default();
        for end in [100, 100, 100, 100, 100, 1_099] {
            assert_eq!(call(&mut gate, Err(Slow), at(end)), None);
        }
        assert_eq!(call(&mut gate, Ok(()), at(1_099)), None);
        assert_eq!(call(&mut gate, Err(Slow), at(5_000)), None);
    }

    #[test]
    fn nobody_is_let_through_while_it_is_closed_and_one_probe_goes_ahead_after_the_pause() {
        let mut gate = closed_at(at(0));
        assert_eq!(gate.passage(at(1_999)), Passage::Skip);
        let round = probe(&mut gate, at(2_000));
        assert_eq!(gate.passage(at(2_000)), Passage::Skip);
        assert_eq!(gate.failed(round, Dead, at(2_001), MIDDLE), None, "nothing new");
        assert_eq!(gate.passage(at(4_000)), Passage::Skip);
        probe(&mut gate, at(4_001));
    }

    #[test]
    fn pause_is_spread_by_a_fifth_and_does_not_grow() {
        for (draw, pause) in [(0.0, 1_600), (0.5, 2_000), (1.0, 2_400)] {
            let mut gate = closed_at(at(0));
            let mut now = 2_000;
            for _ in 0..1_000 {
                let round = probe(&mut gate, at(now));
                gate.failed(round, Dead, at(now), draw);
                assert_eq!(gate.passage(at(now + pause - 1)), Passage::Skip);
                now += pause;
            }
        }
    }

    #[test]
    fn answered_probe_lets_four_through_and_four_answers_let_everybody_through() {
        let mut gate = closed_at(at(0));
        let round = probe(&mut gate, at(2_000));
        assert_eq!(gate.answered(round, at(2_001)), None);
        let rounds: Vec<_> = (0..4).map(|_| ask(&mut gate, at(2_001))).collect();
        assert_eq!(gate.passage(at(2_001)), Passage::Skip);
        let turns: Vec<_> = rounds.iter().map(|round| gate.answered(*round, at(2_002))).collect();
        assert_eq!(turns, [None, None, None, Some(Turn::CameBack)]);
        for _ in 0..100 {
            ask(&mut gate, at(2_002));
        }
    }

    #[test]
    fn first_failure_among_the_four_closes_it_and_a_refusal_makes_room_for_another() {
        let mut gate = closed_at(at(0));
        let round = probe(&mut gate, at(2_000));
        gate.answered(round, at(2_000));
        let round = ask(&mut gate, at(2_000));
        assert_eq!(gate.failed(round, Refused, at(2_000), MIDDLE), None);
        for _ in 0..4 {
            assert_eq!(ask(&mut gate, at(2_000)), round);
        }
        assert_eq!(gate.passage(at(2_000)), Passage::Skip);
        assert_eq!(gate.failed(round, Slow, at(2_100), MIDDLE), None);
        // The others say nothing new, and do not lengthen the pause.
        assert_eq!(gate.answered(round, at(2_200)), None);
        assert_eq!(gate.failed(round, Dead, at(2_200), MIDDLE), None);
        assert_eq!(gate.passage(at(4_099)), Passage::Skip);
        probe(&mut gate, at(4_100));
    }

    #[test]
    fn refused_probe_leaves_it_closed() {
        let mut gate = closed_at(at(0));
        let round = probe(&mut gate, at(2_000));
        assert_eq!(gate.failed(round, Refused, at(2_000), MIDDLE), None);
        assert_eq!(gate.passage(at(3_999)), Passage::Skip);
        probe(&mut gate, at(4_000));
    }

    #[test]
    fn calls_from_before_it_moved_are_not_heard() {
        let mut gate = Availability::default();
        let early = ask(&mut gate, at(0));
        for _ in 0..5 {
            call(&mut gate, Err(Dead), at(0));
        }
        assert_eq!(gate.answered(early, at(1)), None);
        assert_eq!(gate.passage(at(1)), Passage::Skip);
        let round = probe(&mut gate, at(2_000));
        assert_eq!(gate.failed(early, Slow, at(2_000), MIDDLE), None);
        assert_eq!(gate.answered(round, at(2_000)), None);
        ask(&mut gate, at(2_000));
    }

    #[test]
    fn probes_and_trials_of_which_nothing_is_heard_do_not_close_it_for_good() {
        let mut gate = closed_at(at(0));
        probe(&mut gate, at(2_000));
        let round = probe(&mut gate, at(4_000));
        gate.answered(round, at(4_000));
        let gone: Vec<_> = (0..4).map(|_| ask(&mut gate, at(4_000))).collect();
        assert_eq!(gate.passage(at(5_999)), Passage::Skip);
        gate.answered(gone[0], at(5_999));
        for _ in 0..3 {
            ask(&mut gate, at(6_000));
        }
        assert_eq!(gate.passage(at(6_000)), Passage::Skip);
    }
}
