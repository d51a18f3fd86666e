//! The lines that the figures are read from.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::measure::{Pair, Rounds, Side, rounds};

/// One comparison, and what is wanted of it.
pub struct Comparison<'a> {
    name: &'a str,
    rival: &'a str,
    unit: Unit,
    bar: Option<Bar>,
}

#[derive(Clone, Copy)]
enum Unit {
    Nanoseconds,
    Microseconds,
    PerSecond,
}

#[derive(Clone, Copy)]
enum Bar {
    AtLeast(f64),
    AtMost(f64),
    /// In units: ours may be this much more.
    MoreAtMost(f64),
}

impl<'a> Comparison<'a> {
    /// Nanoseconds an operation, against those of `rival`.
    pub fn nanoseconds(name: &'a str, rival: &'a str) -> Self {
        Self { name, rival, unit: Unit::Nanoseconds, bar: None }
    }

    /// Microseconds an operation.
    pub fn microseconds(name: &'a str, rival: &'a str) -> Self {
        Self { name, rival, unit: Unit::Microseconds, bar: None }
    }

    /// Operations a second.
    pub fn rate(name: &'a str, rival: &'a str) -> Self {
        Self { name, rival, unit: Unit::PerSecond, bar: None }
    }

    /// Wants a ratio of at most this.
    pub fn at_most(mut self, ratio: f64) -> Self {
        self.bar = Some(Bar::AtMost(ratio));
        self
    }

    /// Wants a ratio of at least this.
    pub fn at_least(mut self, ratio: f64) -> Self {
        self.bar = Some(Bar::AtLeast(ratio));
        self
    }

    /// Wants ours to cost at most this much more: for what is added to something very small.
    pub fn at_most_more(mut self, cost: Duration) -> Self {
        self.bar = Some(Bar::MoreAtMost(self.unit.of(cost.as_secs_f64())));
        self
    }

    /// Runs the rounds and prints the line.
    pub fn run(self, plan: Rounds, ours: &mut Side<'_>, rival: &mut Side<'_>) -> Result<()> {
        eprintln!("{}: {} rounds of 2 x {:?}", self.name, plan.count, plan.slice);
        let pairs = rounds(plan, ours, rival).with_context(|| self.name.to_owned())?;
        self.of(pairs)
    }

    /// Prints the line of rounds that were run elsewhere.
    pub fn of(self, mut pairs: Vec<Pair>) -> Result<()> {
        ensure!(!pairs.is_empty(), "{}: no rounds", self.name);
        pairs.sort_by(|one, two| one.ratio().total_cmp(&two.ratio()));
        self.describe(&pairs);
        let median = pairs[pairs.len() / 2];
        let (ours, rival) = (self.unit.of(median.ours), self.unit.of(median.rival));
        print(self.name, (ours, self.rival, rival), self.unit, self.bar);
        Ok(())
    }

    /// How far the rounds lie apart.
    fn describe(&self, pairs: &[Pair]) {
        let at = |share: f64| {
            let Pair { ours, rival } = pairs[(pairs.len() as f64 * share) as usize];
            self.unit.of(ours) / self.unit.of(rival)
        };
        let quickest = |side: fn(&Pair) -> f64| pairs.iter().map(side).fold(f64::INFINITY, f64::min);
        let (ours, rival) = (quickest(|pair| pair.ours), quickest(|pair| pair.rival));
        let unit = self.unit;
        eprintln!(
            "  quartiles of the ratio {:.3} and {:.3}; quickest ours {:.*}{unit}, {} {:.*}{unit}",
            at(0.25).min(at(0.75)),
            at(0.25).max(at(0.75)),
            unit.digits(),
            unit.of(ours),
            self.rival,
            unit.digits(),
            unit.of(rival),
        );
    }
}

/// Prints a comparison of two counts of loads.
pub fn print_loads(name: &str, ours: u64, (rival, theirs): (&str, u64), at_most: f64) {
    let ratio = ours as f64 / theirs as f64;
    println!(
        "ratio {name} ours={ours}loads {rival}={theirs}loads ratio={ratio:.3} {}",
        judged("<=", at_most, ratio <= at_most)
    );
}

fn print(name: &str, (ours, rival, theirs): (f64, &str, f64), unit: Unit, bar: Option<Bar>) {
    let digits = unit.digits();
    let ratio = ours / theirs;
    let verdict = bar.map(|bar| format!(" {}", bar.judge(ours, theirs, unit))).unwrap_or_default();
    println!(
        "ratio {name} ours={ours:.digits$}{unit} {rival}={theirs:.digits$}{unit} ratio={ratio:.3}{verdict}"
    );
}

impl Unit {
    fn of(self, seconds: f64) -> f64 {
        match self {
            Self::Nanoseconds => seconds * 1e9,
            Self::Microseconds => seconds * 1e6,
            Self::PerSecond => seconds.recip(),
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Nanoseconds | Self::Microseconds => 1,
            Self::PerSecond => 0,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::PerSecond => "/s",
        })
    }
}

impl Bar {
    fn judge(self, ours: f64, theirs: f64, unit: Unit) -> String {
        let ratio = ours / theirs;
        match self {
            Self::AtLeast(bar) => judged(">=", bar, ratio >= bar),
            Self::AtMost(bar) => judged("<=", bar, ratio <= bar),
            Self::MoreAtMost(bar) => {
                let more = ours - theirs;
                let verdict = judged("<=", format_args!("{bar}{unit}"), more <= bar);
                format!("more={more:.*}{unit} {verdict}", unit.digits())
            }
        }
    }
}

/// How a line ends that has a bar.
pub fn judged(sign: &str, bar: impl fmt::Display, is_met: bool) -> String {
    format!("bar{sign}{bar} {}", if is_met { "met" } else { "missed" })
}
