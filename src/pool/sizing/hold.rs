//! How long a typical query takes, also where hardly any come back; and how long one takes on average where a few of them
//! take much longer.
//!
//! The mean of a window depends on how many slow ones there are in it, which is chance and nothing that the size of the pool
//! has a part in. So it is made up of how long the others take, how long the slow ones do, and of the share of them in
//! the last minute or so (stratified, that is, as a survey is).

use std::time::Duration;

use super::Sample;

/// So many returns outweigh all that were before.
const ENOUGH: f64 = 20.0;

/// How long the last queries had a connection, typically.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    typical: Duration,
    /// For how long nothing has come back.
    silence: Duration,
    /// What came back in the last minute or so, and the slow ones among them: older windows count less.
    completed: f64,
    slow: f64,
    /// How long the last slow ones took on average.
    slow_takes: Duration,
}

/// Of what was counted, so much counts a window later.
const REMEMBERED: f64 = 0.98;

impl Hold {
    /// Takes in a window, and hands it on with what is typical where nothing came back in it: in a silence that is
    /// longer than a query took, queries take longer than they did.
    pub(super) fn note(&mut self, sample: &Sample) -> Sample {
        let mut known = sample.clone();
        if sample.completed == 0 {
            self.silence = self.silence.saturating_add(sample.window);
            if !self.typical.is_zero() {
                known.hold_typical = self.typical.max(self.silence);
            }
        } else {
            self.silence = Duration::ZERO;
            self.join(sample.typical_hold(), (sample.completed as f64 / ENOUGH).min(1.0));
            self.completed = REMEMBERED * self.completed + sample.completed as f64;
            self.slow = REMEMBERED * self.slow + sample.slow.min(sample.completed) as f64;
            if sample.slow > 0 {
                self.slow_takes = sample.hold_slow;
            }
            let of_slow = self.slow_takes.as_secs_f64() * self.slow / self.completed;
            let mixed = sample.typical_hold().as_secs_f64() + of_slow;
            known.hold_mixed = Duration::try_from_secs_f64(mixed).unwrap_or_default();
        }
        known
    }

    /// By those that came back; zero if nothing is known.
    pub(super) fn typical(&self) -> Duration {
        self.typical
    }

    /// A geometric mean, as each window's is.
    fn join(&mut self, hold: Duration, weight: f64) {
        if self.typical.is_zero() || weight >= 1.0 {
            self.typical = hold;
        } else if !hold.is_zero() {
            let (before, now) = (self.typical.as_secs_f64(), hold.as_secs_f64());
            let both = before.powf(1.0 - weight) * now.powf(weight);
            self.typical = Duration::try_from_secs_f64(both).unwrap_or(hold);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn window(completed: u64, hold_typical: Duration) -> Sample {
        Sample { completed, hold_typical, window: SECOND, ..Sample::default() }
    }

    #[test]
    fn where_nothing_comes_back_it_is_as_before_until_the_silence_is_longer() {
        let mut hold = Hold::default();
        let silent = |hold: &mut Hold| hold.note(&window(0, Duration::ZERO)).hold_typical;
        assert_eq!(silent(&mut hold), Duration::ZERO);
        hold.note(&window(1, 3 * SECOND));
        let silences: Vec<_> = (0..5).map(|_| silent(&mut hold).as_secs()).collect();
        assert_eq!(silences, [3, 3, 3, 4, 5]);
        assert_eq!(hold.note(&window(20, SECOND)).hold_typical, SECOND);
        assert_eq!(silent(&mut hold), SECOND);
    }

    #[test]
    fn how_many_are_slow_in_a_window_is_chance_and_how_long_they_take_is_not() {
        let mut hold = Hold::default();
        let mut mixed = |slow, takes| {
            let sample = Sample { slow, hold_slow: takes, ..window(10_000, SECOND / 10_000) };
            hold.note(&sample).mixed_hold().as_secs_f64()
        };
        for slow in [100, 90, 110, 80, 120, 95] {
            assert!((mixed(slow, SECOND / 5) / 0.0021 - 1.0).abs() < 0.06);
        }
        assert!((mixed(100, SECOND / 2) / 0.0051 - 1.0).abs() < 0.06);
        assert_eq!(Hold::default().note(&window(100, SECOND)).mixed_hold(), SECOND, "none are");
    }

    #[test]
    fn one_slow_query_among_others_is_not_typical() {
        let mut hold = Hold::default();
        hold.note(&window(100, SECOND / 100));
        hold.note(&window(1, 60 * SECOND));
        assert!(hold.typical() < SECOND / 50, "{:?}", hold.typical());
        for _ in 0..200 {
            hold.note(&window(1, 60 * SECOND));
        }
        assert!(hold.typical() > 59 * SECOND, "all are: {:?}", hold.typical());
        hold.note(&window(1, Duration::ZERO));
        hold.note(&window(1, Duration::MAX));
    }
}
