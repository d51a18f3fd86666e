//! Growth that has to prove itself.

use std::time::Duration;

use super::{
    Bounds, Decision, Gain, Reason, Sample, Sizing,
    ceiling::Ceiling,
    peak::Peak,
    rates::Rates,
    trial::{Direction, Trial, Verdict},
};

/// Callers wait for this share of the time: reason enough to grow up to what is proven.
const DEMAND: f64 = 0.1;
/// Callers wait for this share of the time: the size is what holds them up, and trials say something.
const BACKLOG: f64 = 0.5;
/// Windows with a backlog before a trial, and before one that doubles the size.
const BASELINE: usize = 5;
const QUICK_BASELINE: usize = 3;
/// Windows that the baseline looks back on.
const LONGEST_BASELINE: usize = 30;
/// The pause after a trial that was taken back, doubled each time, and varied by half up or down.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// No trials and no shrinking for this long after connecting failed.
const FAILURE: Duration = Duration::from_secs(30);
/// Throughput that changed by this share, in this many windows, is another server's: what was learned is doubted.
const CHANGE: f64 = 0.2;
const CHANGE_WINDOWS: usize = 3;
/// The size comes down to the most that were in use in this time, by a sixteenth at a time.
const PEAK: Duration = Duration::from_secs(300);
const SHRINK: Duration = Duration::from_secs(10);
/// A proven size that is out of use is believed for this long, and then a quarter less of it.
const MEMORY: Duration = Duration::from_secs(600);

/// Grows where callers wait, and keeps what raised the throughput.
#[derive(Clone, Debug)]
pub struct ThroughputVerified {
    bounds: Bounds,
    gain: Gain,
    random: fastrand::Rng,
    target: u32,
    proven: Proven,
    ceiling: Ceiling,
    in_use: Peak,
    /// What was done at the target while callers waited.
    baseline: Rates,
    /// The next window holds the time before the target came into force.
    is_new: bool,
    trial: Option<Trial>,
    search: Search,
    failed: Option<Duration>,
    shrunk: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Proven {
    size: u32,
    at: Duration,
}

/// Where the next trial goes, and when.
#[derive(Clone, Copy, Debug)]
struct Search {
    next: Direction,
    /// Nothing was taken back yet.
    doubles: bool,
    pause: Duration,
    not_before: Duration,
}

impl ThroughputVerified {
    /// Sizes within the bounds, from `initial` on, where [`initial_size`](super::initial_size) says what to begin
    /// with.
    #[must_use]
    pub fn new(bounds: Bounds, initial: u32) -> Self {
        let target = bounds.clamp(initial);
        Self {
            bounds,
            gain: Gain::default(),
            random: fastrand::Rng::with_seed(0),
            target,
            proven: Proven { size: target, at: Duration::ZERO },
            ceiling: Ceiling::default(),
            in_use: Peak::new(PEAK, target),
            baseline: Rates::default(),
            is_new: false,
            trial: None,
            search: Search { next: Direction::Up, doubles: true, pause: PAUSE, not_before: Duration::ZERO },
            failed: None,
            shrunk: Duration::ZERO,
        }
    }

    /// How much throughput a further connection has to bring; the default is [`Gain::THROUGHPUT`].
    #[must_use]
    pub fn gain(mut self, gain: Gain) -> Self {
        self.gain = gain;
        self
    }

    /// What the pauses between trials vary by; the default is 0. Processes that share a server want different seeds,
    /// or they try at the same time and measure each other.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.random.seed(seed);
        self
    }

    fn decide(&mut self, sample: &Sample, now: Duration) -> Reason {
        self.in_use.note(sample.in_use_max, now);
        if sample.connect_failures > 0 {
            self.failed = Some(now);
        }
        let cut = self.ceiling.heed(sample, self.bounds, now);
        let bounds = self.ceiling.within(sample, self.bounds);
        if cut || self.target > bounds.ceiling() {
            let size = self.trial.take().map_or(self.target, |trial| trial.from.min(self.target));
            self.resize(bounds.clamp(size));
            self.rest(now);
            return if cut { Reason::TooManyConnections } else { Reason::Ceiling };
        }
        if sample.target != 0 && sample.target != self.target {
            self.trial = None;
            self.resize(bounds.clamp(sample.target));
            self.rest(now);
            return Reason::InForce;
        }
        self.proven.fade(self.target, now);
        match self.trial.take() {
            Some(trial) => self.go_on_with(trial, sample, now),
            None => self.without_trial(sample, bounds, now),
        }
    }

    fn go_on_with(&mut self, mut trial: Trial, sample: &Sample, now: Duration) -> Reason {
        match trial.judge(sample, now) {
            Verdict::Measuring => {
                self.trial = Some(trial);
                Reason::Measuring
            }
            Verdict::Keep(reason) => {
                self.proven = Proven { size: trial.size, at: now };
                self.search = Search { pause: PAUSE, not_before: now, ..self.search };
                self.baseline = trial.into_rates();
                reason
            }
            Verdict::Revert(reason) => {
                self.return_from(&trial);
                self.search.next = trial.direction().other();
                self.search.doubles = false;
                self.search.not_before = now.saturating_add(self.varied(self.search.pause));
                self.search.pause = (self.search.pause * 2).min(LONGEST_PAUSE);
                reason
            }
            Verdict::Void => {
                self.return_from(&trial);
                self.rest(now);
                Reason::Void
            }
        }
    }

    /// The baseline is of the size that is returned to, and stands.
    fn return_from(&mut self, trial: &Trial) {
        self.target = trial.from;
        self.is_new = true;
    }

    fn without_trial(&mut self, sample: &Sample, bounds: Bounds, now: Duration) -> Reason {
        let backlog = sample.backlog();
        let safe = bounds.clamp(self.proven.size);
        if backlog > DEMAND && self.target < safe {
            let demand = sample.in_use_max.saturating_add(sample.max_waiting.max(sample.waiting));
            self.resize(demand.clamp(self.target.saturating_add(1), safe));
            return Reason::Demand;
        }
        if std::mem::take(&mut self.is_new) {
            return Reason::Steady;
        }
        if backlog < BACKLOG {
            if backlog < DEMAND {
                self.baseline.clear();
            }
            return self.shrink(now);
        }
        self.baseline.push(sample, LONGEST_BASELINE);
        if self.baseline.forget_before_change(CHANGE_WINDOWS, CHANGE) {
            self.search.pause = PAUSE;
            self.search.not_before = now;
        }
        self.try_another(bounds, now)
    }

    fn try_another(&mut self, bounds: Bounds, now: Duration) -> Reason {
        let Search { next, doubles, not_before, .. } = self.search;
        let enough = if doubles { QUICK_BASELINE } else { BASELINE };
        if now < not_before || self.failed_lately(now) || self.baseline.len() < enough {
            return Reason::Steady;
        }
        let Some(before) = self.baseline.estimates() else { return Reason::Steady };
        let step = if doubles { self.target } else { (self.target / 4).max(1) };
        let size = bounds.clamp(match next {
            Direction::Up => self.target.saturating_add(step),
            Direction::Down => self.target.saturating_sub(step),
        });
        if size == self.target {
            self.search.next = next.other();
            self.search.doubles = false;
            return Reason::Steady;
        }
        self.trial = Some(Trial::new(self.target, size, before, self.gain.get(), now));
        self.target = size;
        match next {
            Direction::Up => Reason::TryingMore,
            Direction::Down => Reason::TryingFewer,
        }
    }

    fn shrink(&mut self, now: Duration) -> Reason {
        let wanted = self.bounds.clamp(self.in_use.highest().saturating_add(1));
        if wanted >= self.target || now.saturating_sub(self.shrunk) < SHRINK || self.failed_lately(now) {
            return Reason::Steady;
        }
        self.shrunk = now;
        self.resize((self.target - (self.target / 16).max(1)).max(wanted));
        Reason::Unused
    }

    fn resize(&mut self, size: u32) {
        self.is_new |= size != self.target;
        self.target = size;
        self.baseline.clear();
    }

    /// No trial for some time, through no fault of the size.
    fn rest(&mut self, now: Duration) {
        let pause = self.varied(PAUSE);
        self.search.not_before = self.search.not_before.max(now.saturating_add(pause));
    }

    fn varied(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(0.5 + self.random.f64())
    }

    fn failed_lately(&self, now: Duration) -> bool {
        self.failed.is_some_and(|failed| now.saturating_sub(failed) < FAILURE)
    }
}

impl Proven {
    /// Believes in a size that is out of use a little less.
    fn fade(&mut self, in_force: u32, now: Duration) {
        if in_force >= self.size {
            self.at = now;
        } else if now.saturating_sub(self.at) >= MEMORY {
            self.size = (self.size - (self.size / 4).max(1)).max(in_force);
            self.at = now;
        }
    }
}

impl Sizing for ThroughputVerified {
    fn step(&mut self, sample: &Sample, now: Duration) -> Decision {
        let reason = self.decide(sample, now);
        Decision::new(self.target, reason)
    }

    fn target(&self) -> u32 {
        self.target
    }

    fn proven(&self) -> u32 {
        self.proven.size
    }
}
