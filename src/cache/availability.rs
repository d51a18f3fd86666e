//! Whether the remote tier is worth asking.
//!
//! Three failures in a row close the gate for a second, and each failed probe for twice as long, up to
//! half a minute. While it is closed nobody waits; after that one caller at a time goes through as a
//! probe. One success opens it. Deciding is pure: time comes in, a [`Passage`] or a [`Turn`] goes out.

use std::time::Duration;

use crate::clock::Instant;

const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The state of the gate.
#[derive(Debug, Default)]
pub(super) struct Availability {
    failures: u32,
    away: Option<Away>,
}

#[derive(Debug)]
struct Away {
    pause: Duration,
    ask_again: Instant,
    /// Whether a probe is under way: calls that were already running when the gate closed fail as
    /// well, and say nothing new.
    probing: bool,
}

/// May the remote tier be asked?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    Ask,
    Skip,
}

/// A change that the operator should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    WentAway,
    CameBack,
}

impl Availability {
    pub(super) fn passage(&mut self, now: Instant) -> Passage {
        match &mut self.away {
            None => Passage::Ask,
            Some(away) if now >= away.ask_again => {
                // The next probe, should nobody report on this one (its caller may be gone).
                away.ask_again = now.after(away.pause);
                away.probing = true;
                Passage::Ask
            }
            Some(_) => Passage::Skip,
        }
    }

    pub(super) fn succeeded(&mut self) -> Option<Turn> {
        self.failures = 0;
        self.away.take().map(|_| Turn::CameBack)
    }

    pub(super) fn failed(&mut self, now: Instant) -> Option<Turn> {
        if let Some(away) = &mut self.away {
            if std::mem::take(&mut away.probing) {
                away.pause = (2 * away.pause).min(LONGEST_PAUSE);
                away.ask_again = now.after(away.pause);
            }
            return None;
        }
        self.failures += 1;
        if self.failures < PATIENCE {
            return None;
        }
        self.away = Some(Away { pause: FIRST_PAUSE, ask_again: now.after(FIRST_PAUSE), probing: false });
        Some(Turn::WentAway)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(second: u64) -> Instant {
        Instant::from_nanos(second * 1_000_000_000)
    }

    fn away() -> Availability {
        let mut gate = Availability::default();
        let turns: Vec<_> = (0..PATIENCE).map(|_| gate.failed(second(0))).collect();
        assert_eq!(turns, [None, None, Some(Turn::WentAway)]);
        gate
    }

    #[test]
    fn success_in_between_starts_the_count_again() {
        let mut gate = Availability::default();
        for _ in 0..10 {
            assert_eq!(gate.failed(second(0)), None);
            assert_eq!(gate.failed(second(0)), None);
            assert_eq!(gate.succeeded(), None);
        }
    }

    #[test]
    fn nobody_waits_while_it_is_away_and_one_at_a_time_asks_after_the_pause() {
        let mut gate = away();
        assert_eq!(gate.passage(second(0)), Passage::Skip);
        assert_eq!(gate.passage(second(1)), Passage::Ask);
        assert_eq!(gate.passage(second(1)), Passage::Skip);
        assert_eq!(gate.failed(second(1)), None);
        assert_eq!(gate.passage(second(2)), Passage::Skip);
        assert_eq!(gate.passage(second(3)), Passage::Ask);
        assert_eq!(gate.succeeded(), Some(Turn::CameBack));
        assert_eq!(gate.passage(second(3)), Passage::Ask);
    }

    #[test]
    fn pause_grows_to_its_bound_and_no_further() {
        let mut gate = away();
        let mut now = 0;
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(gate.passage(second(now + pause - 1)), Passage::Skip);
            now += pause;
            assert_eq!(gate.passage(second(now)), Passage::Ask);
            gate.failed(second(now));
        }
    }

    #[test]
    fn calls_that_were_running_when_the_gate_closed_do_not_lengthen_the_pause() {
        let mut gate = away();
        for _ in 0..100 {
            assert_eq!(gate.failed(second(0)), None);
        }
        assert_eq!(gate.passage(second(1)), Passage::Ask);
    }

    #[test]
    fn probe_that_nobody_reports_on_does_not_close_the_gate_for_good() {
        let mut gate = away();
        assert_eq!(gate.passage(second(1)), Passage::Ask);
        assert_eq!(gate.passage(second(2)), Passage::Ask);
    }
}
