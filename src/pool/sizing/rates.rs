//! What was done in a row of windows, and whether two rows differ.

use std::{collections::VecDeque, time::Duration};

use super::Sample;

/// A window in which less came back is one with the next, up to so long: queries that take a second say little in one.
const FEWEST: f64 = 20.0;
const LONGEST: f64 = 5.0;
/// Pairs that agree by chance are no more exact than this.
const AGREED: f64 = 0.002;
/// By what share two neighbouring windows differ at least on a machine that others share, as a standard error.
const USUAL: f64 = 0.07;

/// What was done in the last windows at one size.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates(VecDeque<Window>);

#[derive(Clone, Copy, Debug)]
struct Window {
    seconds: f64,
    completed: f64,
    /// What would have come back if as many queries had been slow as usually are: mean in use ÷ hold of that mix × seconds.
    typical: f64,
}

/// How much is done per second, counted in one way or the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimates {
    /// By returns.
    pub(super) throughput: Estimate,
    /// By how long queries take, with as many slow ones as usual, if that is known.
    pub(super) pace: Option<Estimate>,
}

/// A mean rate per second, and by how much it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) mean: f64,
    /// The square of the standard error.
    variance: f64,
    windows: f64,
}

/// How much more was done in one of two neighbouring windows than in the other, again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairs(Vec<f64>);

/// A change as a share of what it is a change from, and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) value: f64,
    pub(super) error: f64,
}

impl Rates {
    /// Takes in a window; of more than `most` the oldest is forgotten. A window of no length is none.
    pub(super) fn push(&mut self, sample: &Sample, most: usize) {
        if sample.window.is_zero() {
            return;
        }
        let seconds = sample.window.as_secs_f64();
        let window = Window {
            seconds,
            completed: sample.completed as f64,
            typical: sample.in_use_mean / sample.mixed_hold().as_secs_f64() * seconds,
        };
        match self.0.back_mut() {
            Some(last) if last.completed < FEWEST && last.seconds < LONGEST => last.join(window),
            _ => self.0.push_back(window),
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

    /// How much was done per second; zero if nothing was.
    pub(super) fn mean(&self) -> f64 {
        let seconds: f64 = self.0.iter().map(|window| window.seconds).sum();
        let completed: f64 = self.0.iter().map(|window| window.completed).sum();
        if seconds > 0.0 { completed / seconds } else { 0.0 }
    }

    /// How long they were together.
    pub(super) fn time(&self) -> Duration {
        let seconds = self.0.iter().map(|window| window.seconds).sum();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Two windows at least, and something done in them.
    pub(super) fn estimates(&self) -> Option<Estimates> {
        Some(Estimates {
            throughput: estimate(self.0.iter(), |window| window.completed)?,
            pace: estimate(self.0.iter(), |window| window.typical),
        })
    }

    /// Forgets all but the last `count` windows if those are of another kind: by more than `share` of the mean, and
    /// hardly by chance. Says whether they were.
    pub(super) fn forget_before_change(&mut self, count: usize, share: f64) -> bool {
        let old = self.0.len().saturating_sub(count);
        if old < count {
            return false;
        }
        let completed = |window: &Window| window.completed;
        let before = estimate(self.0.iter().take(old), completed);
        let after = estimate(self.0.iter().skip(old), completed);
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

impl Pairs {
    /// Takes in a quotient; one that makes no sense is none.
    pub(super) fn push(&mut self, quotient: f64) {
        let logarithm = quotient.ln();
        if logarithm.is_finite() {
            self.0.push(logarithm);
        }
    }

    /// What they come to. Of one or two, by what such windows `differ` by otherwise, if all was asked for that could be
    /// done: what is asked for may differ by anything.
    pub(super) fn change(&self, is_all_asked_for: bool, differ: f64) -> Option<Change> {
        let count = self.0.len() as f64;
        if count < if is_all_asked_for { 1.0 } else { 3.0 } {
            return None;
        }
        let mean = self.0.iter().sum::<f64>() / count;
        let error = if count < 3.0 {
            differ.max(USUAL) / count.sqrt()
        } else {
            // Of either order a mean of its own: in the first window of a turn there are queries of the other size, and
            // that they leave out of the mean of both, but not of what the pairs differ by.
            let orders = if count < 4.0 { 1 } else { 2 };
            let squares: f64 = (0..orders).map(|order| self.squares(order, orders)).sum();
            let free = count - orders as f64;
            // Widened as that of two rows.
            (squares / free / count).sqrt().max(AGREED) * (1.0 + 3.0 / free)
        };
        Some(Change { value: mean.exp_m1(), error: error * mean.exp() })
    }
}

impl Pairs {
    /// How much every `orders`th of them from one on differs from their mean, as the sum of squares.
    fn squares(&self, from: usize, orders: usize) -> f64 {
        let of_order = || self.0.iter().skip(from).step_by(orders);
        let mean = of_order().sum::<f64>() / of_order().count() as f64;
        of_order().map(|logarithm| (logarithm - mean).powi(2)).sum()
    }
}

impl Change {
    /// The same, where the server may have become quicker or slower by this much meanwhile.
    pub(super) fn or_drift(self, drift: f64) -> Self {
        Self { error: self.error.hypot(drift * (1.0 + self.value)), ..self }
    }
}

impl Window {
    fn join(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.completed += other.completed;
        self.typical += other.typical;
    }
}

fn estimate<'a>(
    windows: impl ExactSizeIterator<Item = &'a Window> + Clone,
    done: impl Fn(&Window) -> f64,
) -> Option<Estimate> {
    let count = windows.len() as f64;
    let all: f64 = windows.clone().map(&done).sum();
    let seconds: f64 = windows.clone().map(|window| window.seconds).sum();
    if count < 2.0 || !all.is_finite() || all <= 0.0 {
        return None;
    }
    let mean = all / seconds;
    let squares: f64 = windows.map(|window| (done(window) / window.seconds - mean).powi(2)).sum();
    // One more or less is always chance, also where windows agree to the last return.
    let variance = (squares / (count - 1.0) / count).max(seconds.powi(-2));
    variance.is_finite().then_some(Estimate { mean, variance, windows: count })
}

impl Estimate {
    /// By what share two of its windows differ, as a standard error. Where one query in a hundred takes a thousand times
    /// longer, that is a third.
    pub(super) fn differ(self) -> f64 {
        (2.0 * self.variance * self.windows).sqrt() / self.mean
    }

    /// The change from `before` to here.
    ///
    /// The error is widened where few windows were seen, as Student's distribution is wider than the normal one: 2.5
    /// standard errors mean about the same for 3 windows as for 60.
    pub(super) fn relative_to(self, before: Self) -> Change {
        let ratio = self.mean / before.mean;
        // Of a quotient, where both are off by little: the relative errors add up as squares.
        let error = (self.variance / self.mean.powi(2) + before.variance / before.mean.powi(2)).sqrt();
        let widened = 1.0 + 3.0 / (self.windows + before.windows - 2.0);
        Change { value: ratio - 1.0, error: error * ratio * widened }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(completed: u64, seconds: u64) -> Sample {
        Sample { completed, window: Duration::from_secs(seconds), ..Sample::default() }
    }

    fn rates(completed: &[u64]) -> Rates {
        let mut rates = Rates::default();
        for completed in completed {
            rates.push(&window(*completed, 1), 30);
        }
        rates
    }

    fn throughput(rates: &Rates) -> Estimate {
        rates.estimates().unwrap().throughput
    }

    #[test]
    fn order_of_the_two_sizes_is_no_noise() {
        let mut pairs = Pairs::default();
        for (pair, noise) in [0.01, -0.02, 0.02, 0.0, -0.03, 0.02].into_iter().enumerate() {
            // The size that comes first has a fifth less, since the other one's queries have the connections still.
            let order: f64 = if pair % 2 == 0 { 0.8 } else { 1.25 };
            pairs.push(2.0 * order * f64::exp(noise));
        }
        let change = pairs.change(true, 0.1).unwrap();
        assert!((change.value - 1.0).abs() < 0.02 && change.error < 0.05, "{change:?}");
    }

    #[test]
    fn windows_of_different_length_count_by_their_length() {
        let mut rates = Rates::default();
        rates.push(&window(100, 1), 30);
        rates.push(&window(500, 4), 30);
        rates.push(&window(9, 0), 30);
        assert!((throughput(&rates).mean - 120.0).abs() < 1e-9);
    }

    #[test]
    fn few_windows_that_agree_are_not_believed_to_be_exact() {
        let (few, many) = (throughput(&rates(&[98, 102])), throughput(&rates(&[98, 102].repeat(10))));
        let (few, many) = (few.relative_to(few).error, many.relative_to(many).error);
        assert!(few > 0.06 && many < 0.01, "{few} {many}");
        let same = throughput(&rates(&[100, 100]));
        assert!(same.relative_to(same).error > 0.01);
    }

    #[test]
    fn nothing_done_is_no_estimate() {
        assert_eq!(rates(&[]).estimates(), None);
        assert_eq!(rates(&[100]).estimates(), None);
        assert_eq!(rates(&[0; 15]).estimates(), None);
    }

    #[test]
    fn without_a_typical_hold_there_is_no_pace() {
        assert_eq!(rates(&[100, 100]).estimates().unwrap().pace, None);
        let mut rates = Rates::default();
        for _ in 0..2 {
            let hold_p50 = Duration::from_millis(20);
            rates.push(&Sample { hold_p50, in_use_mean: 4.0, ..window(100, 1) }, 30);
        }
        assert!((rates.estimates().unwrap().pace.unwrap().mean - 200.0).abs() < 1e-9);
    }

    #[test]
    fn windows_with_few_returns_are_taken_together_for_five_seconds() {
        assert_eq!(rates(&[7, 7, 7, 7]).len(), 2);
        assert_eq!(rates(&[0; 10]).len(), 2);
        assert_eq!(rates(&[20, 20]).len(), 2);
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
    fn the_oldest_is_forgotten() {
        let mut rates = Rates::default();
        for completed in [1_000_000, 100, 100, 100] {
            rates.push(&window(completed, 1), 3);
        }
        assert!((throughput(&rates).mean - 100.0).abs() < 1e-9);
    }
}
