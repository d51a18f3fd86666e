//! How long a typical query takes, also where hardly any come back.

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
}

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
