//! A trial: another size for some seconds, and whether it stays.
//!
//! A machine that others share is not always as quick: by a third within a minute is nothing special. What was done before
//! a trial and what is done in it are two times, and such a change is larger than what most trials are about. So where
//! queries are quick the two sizes take turns, a window or two each, and every window is held against its neighbour of
//! the other size. Only a large difference is believed without that.

use std::time::Duration;

use super::{
    FULL, Reason, Retreat, Sample,
    rates::{Change, Estimate, Estimates, Pairs, Rates},
};

/// How long a connection of a trial may take to be open after the one before it, or the callers to give back what is too
/// many: the latter takes as long as their queries.
const SETTLES: Duration = Duration::from_secs(10);
/// In so many times a typical hold no query is left that began before the trial, and at most so long is waited for it.
const UNDER_WAY: u32 = 2;
const LONGEST_UNDER_WAY: Duration = Duration::from_secs(300);
/// How long is measured at most, while chance could still explain what is seen: for slow queries so many times a typical
/// hold, in which each connection comes back so often, up to the last.
const LONGEST: Duration = Duration::from_secs(30);
/// The same of a step that doubles the size. One that has to be looked at for long is too large, and a smaller one is
/// next.
const LONGEST_OF_LARGE: Duration = Duration::from_secs(10);
const LONGEST_HOLDS: u32 = 10;
const LONGEST_OF_ALL: Duration = Duration::from_secs(600);
/// By how much the time that queries take has to tell more than the count of returns does to be asked instead, and
/// after how long.
const SHARPER: f64 = 2.0;
const PATIENCE: Duration = Duration::from_secs(4);
/// By how much a server may be quicker or slower for reasons of its own, as a standard error of what is held against the
/// time before.
const DRIFT: f64 = 0.15;
/// Standard errors by which a result has to differ from what would be needed. It is looked at after every window, so
/// there are more than one chances to be wrong.
const CERTAIN: f64 = 2.5;
/// Standard errors that have to do at the end.
const LIKELY: f64 = 1.0;
/// By so many the count of returns is believed whatever the time of queries says, before the end as well.
const SURE: f64 = 4.0;
/// Below this share of the time with callers waiting, the queue is gone.
const QUEUE_GONE: f64 = 0.25;
/// Below this share of what was done and of what was in use before, and with the queue gone, the load is.
const LOAD_GONE: f64 = 0.5;

/// Where fewer are tried, so many of those that waited before may come to wait by chance, and a few more; and where the
/// line grew already, as many as come in so many windows.
const SPARE: u32 = 4;
const FEW: u32 = 8;
const WINDOWS: u32 = 8;

/// More or fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

impl Direction {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// A size that is being tried.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) from: u32,
    pub(super) size: u32,
    /// Where there are fewer: how many may wait.
    retreat: Option<Retreat>,
    /// What was done per second at the size that it started from.
    before: Estimates,
    /// By what share throughput has to change for the size to stay: to rise for more, not to fall for fewer.
    needed: f64,
    in_force: Option<Duration>,
    /// How many were open until then, and since when no more were.
    open: u32,
    opened: Duration,
    /// From when on what comes back began at this size.
    settled: Duration,
    rates: Rates,
    windows: f64,
    backlog: f64,
    /// The turns of the two sizes, where they take turns.
    turns: Option<Turns>,
    /// How long the slowest queries took, but for one in a hundred.
    slowest: Duration,
}

/// What became of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Measuring,
    Keep {
        reason: Reason,
        /// The knee is far: throughput rose by at least half of the share that the size did.
        steep: bool,
    },
    Revert {
        reason: Reason,
        /// More brought something, though not enough: a smaller step may bring most of it.
        has_risen: bool,
    },
    Void,
}

impl Trial {
    /// A trial of `size` in place of `from`, where throughput has to change by `gain` for every share of the size.
    /// Upwards by logarithms, so that one large step asks for no more than the small ones do that it is made of.
    /// Downwards a little less is given up than the way up asks for: what is between the two stays as it is.
    pub(super) fn new(from: u32, size: u32, before: Estimates, gain: f64, now: Duration) -> Self {
        let share = f64::from(size) / f64::from(from);
        Self {
            from,
            size,
            retreat: None,
            before,
            needed: if size > from { share.powf(gain) - 1.0 } else { gain * (share - 1.0) },
            in_force: None,
            open: 0,
            opened: now,
            settled: Duration::ZERO,
            rates: Rates::default(),
            windows: 0.0,
            backlog: 0.0,
            turns: None,
            slowest: Duration::ZERO,
        }
    }

    /// With what the slowest queries took before, but for one in a hundred.
    pub(super) fn with_slowest(self, slowest: Duration) -> Self {
        Self { slowest, ..self }
    }

    /// The size that is to be in force now.
    pub(super) fn in_turn(&self) -> u32 {
        if self.is_at_size() { self.size } else { self.from }
    }

    fn is_at_size(&self) -> bool {
        self.turns.as_ref().is_none_or(Turns::is_at_size)
    }

    /// When to go back to the size before at once: while the other one is in force.
    pub(super) fn retreat(&self) -> Option<Retreat> {
        self.retreat.filter(|_| self.is_at_size())
    }

    /// With fewer, callers wait who did not before, and more and more of them if fewer do too little for all that is
    /// asked for: that is given up at once. Before, there were at most so many, and in the last window they became so many
    /// more.
    pub(super) fn with_retreat(mut self, most_waiting: u32, growth: u32) -> Self {
        let fewer = self.from.saturating_sub(self.size);
        let chance = most_waiting / SPARE + FEW;
        let waiting = [fewer, chance, growth.saturating_mul(WINDOWS)]
            .into_iter()
            .fold(most_waiting, u32::saturating_add);
        self.retreat = (fewer > 0).then_some(Retreat { waiting, target: self.from });
        self
    }

    /// Whether it was given up since the last window.
    pub(super) fn was_given_up(&self, sample: &Sample) -> bool {
        self.retreat.is_some() && sample.has_retreated
    }

    pub(super) fn direction(&self) -> Direction {
        if self.size > self.from { Direction::Up } else { Direction::Down }
    }

    /// Takes in a window, when queries typically take `hold`.
    pub(super) fn judge(&mut self, sample: &Sample, hold: Duration, now: Duration) -> Verdict {
        if sample.connect_failures > 0 {
            return Verdict::Void;
        }
        // The window in which the size came into force holds both sizes, and so do the times of the queries that were
        // under way.
        let under_way = hold.saturating_mul(UNDER_WAY).min(LONGEST_UNDER_WAY);
        let under_way = if under_way < sample.window / 4 { Duration::ZERO } else { under_way };
        if self.is_blocked(sample, under_way) {
            let (before, after) = (self.before.throughput.mean, 0.0);
            return Verdict::Revert { reason: Reason::Reverted { before, after }, has_risen: false };
        }
        let Some(in_force) = self.in_force else {
            self.in_force = self.is_in_force(sample).then_some(now);
            self.slowest = self.slowest.max(sample.hold_p99);
            let is_quick = under_way.is_zero() && self.slowest < sample.window / 4;
            self.turns = (self.in_force.is_some() && is_quick).then(Turns::default);
            let patience = match self.direction() {
                Direction::Up => SETTLES,
                Direction::Down => SETTLES.max(under_way),
            };
            if self.direction() == Direction::Up && sample.open > self.open {
                (self.open, self.opened) = (sample.open, now);
            }
            let late = self.in_force.is_none() && now.saturating_sub(self.opened) > patience;
            return if late { Verdict::Void } else { Verdict::Measuring };
        };
        // Queries that take long now are of no window and no size alone.
        let cannot_take_turns = self.turns.is_some() && !under_way.is_zero();
        if cannot_take_turns || self.is_left_by_the_load(sample) {
            return Verdict::Void;
        }
        if self.rates.len() == 0 {
            // By how long queries take by now: at the new size it may be longer.
            self.settled = in_force.saturating_add(under_way);
        }
        if now.saturating_sub(sample.window) >= self.settled {
            if self.is_at_size() {
                self.rates.push(sample, usize::MAX);
                self.windows += 1.0;
                self.backlog += sample.backlog();
            }
            let is_gone = self.is_at_size() && sample.backlog() < QUEUE_GONE;
            match &mut self.turns {
                Some(turns) if !is_gone => turns.push(sample),
                // There is nothing to compare where as much is done as is asked for.
                turns => *turns = None,
            }
        }
        let is_large = self.size >= self.from.saturating_mul(2);
        let least = if is_large { LONGEST_OF_LARGE } else { LONGEST };
        let longest = hold.saturating_mul(LONGEST_HOLDS).clamp(least, LONGEST_OF_ALL);
        self.verdict(now.saturating_sub(self.settled), longest)
    }

    /// Whether so much less is asked for that what is done says nothing of the size. Where the queue is gone because this
    /// size does more, as much is done as before; where queries are slow, few may come back, and are in use.
    fn is_left_by_the_load(&self, sample: &Sample) -> bool {
        let is_less = |done| done < LOAD_GONE * self.before.throughput.mean;
        sample.backlog() < QUEUE_GONE
            && sample.throughput().is_some_and(is_less)
            && sample.in_use_mean < LOAD_GONE * f64::from(self.from)
    }

    /// Whether nobody was served for a whole window in which many should have come back: what is left at this size is
    /// held by those who hold it for long.
    fn is_blocked(&self, sample: &Sample, under_way: Duration) -> bool {
        let is_silent = sample.completed == 0 && sample.backlog() >= QUEUE_GONE;
        self.direction() == Direction::Down && self.is_at_size() && is_silent && under_way.is_zero()
    }

    fn is_in_force(&self, sample: &Sample) -> bool {
        match self.direction() {
            // What is kept for others is not opened.
            Direction::Up => {
                sample.open.saturating_add(sample.max_kept) >= self.size || sample.backlog() < QUEUE_GONE
            }
            Direction::Down => sample.in_use_max <= self.size,
        }
    }

    fn verdict(&self, measured: Duration, longest: Duration) -> Verdict {
        let (Some(change), pace) = self.changes() else {
            return if measured < longest { Verdict::Measuring } else { Verdict::Void };
        };
        let (sharper, other, certain) = match pace {
            Some(pace) if pace.error < change.error / SHARPER => (pace, Some(change), measured >= PATIENCE),
            pace => (change, pace, true),
        };
        let over = measured >= longest;
        let better = self.is_better(sharper, if over { LIKELY } else { CERTAIN });
        // What the one says is believed only as far as the other leaves it possible.
        let contradicts =
            |better: bool| other.and_then(|other| self.is_better(other, CERTAIN)) == Some(!better);
        let contradicted = better.is_some_and(contradicts);
        let sure = self.is_better(change, SURE).filter(|_| measured >= PATIENCE);
        if !over && sure.is_none() && (better.is_none() || contradicted || !certain) {
            return Verdict::Measuring;
        }
        // What is done is what is counted, if that is certain.
        let better = sure.or_else(|| if contradicted { self.is_better(change, CERTAIN) } else { better });
        let queue_gone = self.backlog / self.windows < QUEUE_GONE;
        let (before, after) = (self.before.throughput.mean, self.rates.mean());
        if queue_gone && change.value > -2.0 * change.error {
            Verdict::Keep { reason: Reason::DemandMet, steep: false }
        } else if better == Some(true) {
            Verdict::Keep { reason: Reason::Kept { before, after }, steep: self.is_steep(sharper) }
        } else {
            let has_risen = self.direction() == Direction::Up && sharper.value > LIKELY * sharper.error;
            Verdict::Revert { reason: Reason::Reverted { before, after }, has_risen }
        }
    }

    /// What changed, by the count of returns and by how long queries take.
    fn changes(&self) -> (Option<Change>, Option<Change>) {
        let after = self.rates.estimates();
        let before = self.before;
        let change = after.map(|after| after.throughput.relative_to(before.throughput));
        let pace = after.and_then(|after| Some(after.pace?.relative_to(before.pace?)));
        let Some(turns) = &self.turns else { return (change, pace) };
        let is_full = !turns.was_slack;
        let sharper = |change: Option<Change>, before: Option<Estimate>, turns: &Pairs| {
            let differ = before.map_or(0.0, Estimate::differ);
            let change = change.map(|change| change.or_drift(DRIFT));
            change
                .into_iter()
                .chain(turns.change(is_full, differ))
                .min_by(|one, other| one.error.total_cmp(&other.error))
        };
        (sharper(change, Some(before.throughput), &turns.throughput), sharper(pace, before.pace, &turns.pace))
    }

    /// Whether as much is done as has to be for the size to stay, if that is so by so many standard errors.
    fn is_better(&self, change: Change, errors: f64) -> Option<bool> {
        let excess = change.value - self.needed;
        (excess.abs() > errors * change.error).then_some(excess > 0.0)
    }

    fn is_steep(&self, change: Change) -> bool {
        let share = f64::from(self.size) / f64::from(self.from) - 1.0;
        share > 0.0 && change.value > share / 2.0
    }

    /// What was measured at its size.
    pub(super) fn into_rates(self) -> Rates {
        self.rates
    }
}

/// Two sizes in turn: the one that is tried for a window, and then either for two. The two of a pair are neighbours, and
/// now the one is first and then the other, so that what changes steadily is left out of account as well.
#[derive(Clone, Debug, Default)]
struct Turns {
    windows: usize,
    /// What was done per second in the first window of a pair, counted in both ways.
    first: [f64; 2],
    throughput: Pairs,
    pace: Pairs,
    /// In one of the windows less was asked for than could be done.
    was_slack: bool,
}

impl Turns {
    /// Of the window that is next.
    fn is_at_size(&self) -> bool {
        matches!(self.windows % 4, 0 | 3)
    }

    fn push(&mut self, sample: &Sample) {
        let seconds = sample.window.as_secs_f64();
        let rates =
            [sample.completed as f64 / seconds, sample.in_use_mean / sample.mixed_hold().as_secs_f64()];
        self.was_slack |= sample.backlog() < FULL;
        let is_at_size = self.is_at_size();
        self.windows += 1;
        if self.windows % 2 == 1 {
            self.first = rates;
            return;
        }
        for (pairs, (first, second)) in
            [&mut self.throughput, &mut self.pace].into_iter().zip(self.first.into_iter().zip(rates))
        {
            pairs.push(if is_at_size { second / first } else { first / second });
        }
    }
}
