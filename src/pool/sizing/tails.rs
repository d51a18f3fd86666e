//! How long the slowest calls of several windows took.
//!
//! The slowest call in a hundred of one second says little of the slowest in a hundred of a minute: where one query a
//! second takes long, there are seconds with two of them and seconds without. So windows are taken together, by what is
//! known of each: three points of its distribution, and between them and beyond straight lines on a logarithmic scale.

use super::Sample;

/// What is asked for: as long as the slowest in a hundred took.
const SLOWEST: f64 = 0.01;
/// The steps of the search: each halves what is uncertain, which may be anything at first.
const STEPS: u32 = 64;

/// Windows of one size.
#[derive(Clone, Debug, Default)]
pub(super) struct Tails(Vec<Window>);

#[derive(Clone, Copy, Debug)]
struct Window {
    calls: f64,
    /// How long calls took, with the wait, in seconds: half of them, 95 and 99 in a hundred, no longer than this.
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Tails {
    /// Takes in a window. One in which nothing came back is one call that took as long as the window.
    pub(super) fn push(&mut self, sample: &Sample) {
        let hold = sample.typical_hold();
        let least = 1e-9;
        let of = |time: std::time::Duration| time.as_secs_f64().max(least);
        let window = if sample.completed == 0 {
            let whole = of(sample.window);
            Window { calls: 1.0, p50: whole, p95: whole, p99: whole }
        } else {
            // The wait and what follows are known apart: of all but the slowest, one is about as long as it is typically.
            let p50 = of(sample.wait_p50.saturating_add(hold));
            let p95 = of(sample.wait_p95.saturating_add(hold)).max(p50);
            let p99 = of(sample.wait_p99.saturating_add(sample.hold_p99)).max(p95);
            Window { calls: sample.completed as f64, p50, p95, p99 }
        };
        self.0.push(window);
    }

    /// How many windows there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets all but the first of them.
    pub(super) fn keep_first(&mut self, windows: usize) {
        self.0.truncate(windows);
    }

    /// The same windows but for the worst of them: a pause of the machine is all of that.
    pub(super) fn but_the_worst(&self) -> Self {
        let mut others = self.0.clone();
        let worst = (0..others.len()).max_by(|one, other| others[*one].p99.total_cmp(&others[*other].p99));
        if let Some(worst) = worst.filter(|_| others.len() > 1) {
            others.swap_remove(worst);
        }
        Self(others)
    }

    /// How long the slowest in a hundred of all took at least, in seconds; zero without any.
    pub(super) fn slowest(&self) -> f64 {
        let calls: f64 = self.0.iter().map(|window| window.calls).sum();
        let share_above = |time: f64| {
            let above: f64 = self.0.iter().map(|window| window.calls * window.share_above(time)).sum();
            above / calls
        };
        let longest = self.0.iter().map(|window| window.p99).fold(0.0, f64::max);
        let (mut low, mut high) = (0.0, longest);
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            if share_above(middle) > SLOWEST {
                low = middle;
            } else {
                high = middle;
            }
        }
        high
    }
}

impl Window {
    /// The share of its calls that took longer.
    fn share_above(self, time: f64) -> f64 {
        let points = [(0.0, 1.0), (self.p50, 0.5), (self.p95, 0.05), (self.p99, SLOWEST)];
        for pair in points.windows(2) {
            let [(from, share), (to, least)] = [pair[0], pair[1]];
            if time < to {
                let part = (time - from) / (to - from);
                return share * f64::powf(least / share, part);
            }
        }
        // As steep as it was, or steeper.
        let width = (self.p99 - self.p95).min(self.p99 - self.p50) / f64::ln(5.0);
        if width > 0.0 { SLOWEST * (-(time - self.p99) / width).exp() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn sample(completed: u64, wait: [f64; 3], hold: f64) -> Sample {
        let [wait_p50, wait_p95, wait_p99] = wait.map(Duration::from_secs_f64);
        let hold = Duration::from_secs_f64(hold);
        Sample {
            window: Duration::from_secs(1),
            completed,
            hold_typical: hold,
            hold_p99: hold,
            wait_p50,
            wait_p95,
            wait_p99,
            ..Sample::default()
        }
    }

    fn slowest(samples: &[Sample]) -> f64 {
        let mut tails = Tails::default();
        samples.iter().for_each(|sample| tails.push(sample));
        tails.slowest()
    }

    #[test]
    fn of_one_window_it_is_what_it_says() {
        let found = slowest(&[sample(100, [0.0, 0.1, 0.3], 0.01)]);
        assert!((found - 0.31).abs() < 1e-9, "{found}");
        assert!(slowest(&[]).abs() < f64::EPSILON);
    }

    /// One second in ten is a bad one: those of it are the slowest of all.
    #[test]
    fn few_bad_windows_are_the_tail_of_all_and_many_quiet_ones_do_not_hide_them() {
        let (good, bad) = (sample(100, [0.0, 0.0, 0.001], 0.001), sample(100, [0.1, 0.5, 0.9], 0.001));
        let mut all = vec![good.clone(); 9];
        all.push(bad.clone());
        let found = slowest(&all);
        assert!(found > 0.2 && found < 0.5, "one in ten of them: {found}");
        all.extend(vec![good; 90]);
        let found = slowest(&all);
        assert!(found < 0.01, "{found}");
        assert!(slowest(std::slice::from_ref(&bad)) > 0.9);
        let of = |samples: &[Sample]| {
            let mut tails = Tails::default();
            samples.iter().for_each(|sample| tails.push(sample));
            tails.but_the_worst().slowest()
        };
        assert!(of(&[bad.clone(), all[0].clone()]) < 0.01 && of(&[bad]) > 0.9);
    }

    #[test]
    fn window_in_which_nothing_came_back_is_one_long_call() {
        let silent = Sample { window: Duration::from_secs(3), ..Sample::default() };
        assert!(slowest(&[silent.clone(), sample(10, [0.0; 3], 0.001)]) > 2.9);
        assert!(slowest(&[silent, sample(1_000, [0.0; 3], 0.001)]) < 0.01);
    }

    proptest! {
        #[test]
        fn it_is_no_longer_than_the_longest_and_no_shorter_than_the_shortest(
            windows in proptest::collection::vec((0_u64..1_000, [0.0..9.0, 0.0..9.0, 0.0..9.0], 0.0..1.0), 1..20),
        ) {
            let mut tails = Tails::default();
            for (completed, wait, hold) in windows {
                tails.push(&sample(completed, wait, hold));
            }
            let of_each = || tails.0.iter().map(|window| window.p99);
            let (least, most) = (of_each().fold(f64::INFINITY, f64::min), of_each().fold(0.0, f64::max));
            let slowest = tails.slowest();
            prop_assert!(slowest >= least * (1.0 - 1e-9) && slowest <= most, "{least} {slowest} {most}");
        }
    }
}
