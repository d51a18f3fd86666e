//! Throughputs of a row of windows, and whether two rows differ.

use std::{collections::VecDeque, time::Duration};

/// A window in which less came back is one with the next, up to so long: queries that take a second say little in one.
const FEWEST: f64 = 20.0;
const LONGEST: f64 = 5.0;

/// What was done in the last windows at one size.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates(VecDeque<Window>);

#[derive(Clone, Copy, Debug)]
struct Window {
    completed: f64,
    seconds: f64,
}

/// A mean rate per second, and by how much it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) mean: f64,
    /// The square of the standard error.
    variance: f64,
}

/// A change as a share of what it is a change from, and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) value: f64,
    pub(super) error: f64,
}

impl Rates {
    /// Takes in a window; of more than `most` the oldest is forgotten. A window of no length is none.
    pub(super) fn push(&mut self, completed: u64, window: Duration, most: usize) {
        if window.is_zero() {
            return;
        }
        let (completed, seconds) = (completed as f64, window.as_secs_f64());
        match self.0.back_mut() {
            Some(last) if last.completed < FEWEST && last.seconds < LONGEST => {
                last.completed += completed;
                last.seconds += seconds;
            }
            _ => self.0.push_back(Window { completed, seconds }),
        }
        while self.0.len() > most {
            self.0.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn estimate(&self) -> Option<Estimate> {
        estimate(self.0.iter())
    }

    /// Forgets all but the last `count` windows if those are of another kind: by more than `share` of the mean, and
    /// hardly by chance. Says whether they were.
    pub(super) fn forget_before_change(&mut self, count: usize, share: f64) -> bool {
        let old = self.0.len().saturating_sub(count);
        if old < count {
            return false;
        }
        let (before, after) = (estimate(self.0.iter().take(old)), estimate(self.0.iter().skip(old)));
        let changed = before.zip(after).is_some_and(|(before, after)| {
            let change = after.relative_to(before);
            change.value.abs() > share.max(4.0 * change.error)
        });
        if changed {
            self.0.drain(..old);
        }
        changed
    }
}

/// Two windows at least, and something done in them.
fn estimate<'a>(windows: impl ExactSizeIterator<Item = &'a Window> + Clone) -> Option<Estimate> {
    let count = windows.len() as f64;
    let completed: f64 = windows.clone().map(|window| window.completed).sum();
    let seconds: f64 = windows.clone().map(|window| window.seconds).sum();
    if count < 2.0 || completed <= 0.0 {
        return None;
    }
    let mean = completed / seconds;
    let squares: f64 = windows.map(|window| (window.completed / window.seconds - mean).powi(2)).sum();
    // A few windows may agree by chance: no better than half of what independent events would vary by.
    let least = mean / seconds / 2.0;
    let variance = (squares / (count - 1.0) / count).max(least);
    variance.is_finite().then_some(Estimate { mean, variance })
}

impl Estimate {
    pub(super) fn relative_to(self, before: Self) -> Change {
        let value = self.mean / before.mean - 1.0;
        // Of a quotient, where both are off by little: the relative errors add up as squares.
        let error = (self.variance / self.mean.powi(2) + before.variance / before.mean.powi(2)).sqrt();
        Change { value, error: error * self.mean / before.mean }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(completed: &[u64]) -> Rates {
        let mut rates = Rates::default();
        for completed in completed {
            rates.push(*completed, Duration::from_secs(1), 30);
        }
        rates
    }

    #[test]
    fn windows_of_different_length_count_by_their_length() {
        let mut rates = Rates::default();
        rates.push(100, Duration::from_secs(1), 30);
        rates.push(500, Duration::from_secs(4), 30);
        rates.push(9, Duration::ZERO, 30);
        let estimate = rates.estimate().unwrap();
        assert!((estimate.mean - 120.0).abs() < 1e-9);
    }

    #[test]
    fn windows_that_agree_by_chance_are_not_believed_to_be_exact() {
        let change = rates(&[100, 100]).estimate().unwrap();
        assert!(change.relative_to(change).error > 0.05);
    }

    #[test]
    fn nothing_done_is_no_estimate() {
        assert_eq!(rates(&[]).estimate(), None);
        assert_eq!(rates(&[100]).estimate(), None);
        assert_eq!(rates(&[0, 0, 0]).estimate(), None);
    }

    #[test]
    fn a_change_is_told_from_noise() {
        let noise = [1000, 1080, 930, 1010, 950, 1100, 1020, 900];
        assert!(!rates(&noise).forget_before_change(3, 0.2));
        let mut slower = rates(&[noise.as_slice(), &[340, 310, 350]].concat());
        assert!(slower.forget_before_change(3, 0.2));
        assert_eq!(slower.len(), 3);
    }

    #[test]
    fn windows_with_few_returns_are_taken_together_for_five_seconds() {
        assert_eq!(rates(&[7, 7, 7, 7]).len(), 2);
        assert_eq!(rates(&[0; 10]).len(), 2);
        assert_eq!(rates(&[20, 20]).len(), 2);
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut rates = Rates::default();
        for completed in [1_000_000, 100, 100, 100] {
            rates.push(completed, Duration::from_secs(1), 3);
        }
        assert!((rates.estimate().unwrap().mean - 100.0).abs() < 1e-9);
    }
}
