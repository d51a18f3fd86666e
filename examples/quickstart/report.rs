//! The figures of both runs, as a table for people and as JSON for programs.

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use serde::Serialize;

use crate::clients::Run;

/// Before and after.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) bare: Figures,
    pub(crate) wrapped: Figures,
    pub(crate) identical_answers: bool,
}

/// The figures of one run. Rates are shares of one.
#[derive(Serialize)]
pub(crate) struct Figures {
    requests_per_second: f64,
    mean_ms: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    error_rate: f64,
    cpu_us_per_request: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate: Option<f64>,
}

impl Figures {
    /// The figures of a run, with the hit rate of its cache if it had one.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    pub(crate) fn new(run: &Run, hit_rate: Option<f64>) -> Self {
        let requests = run.latencies.len() as f64;
        let total: Duration = run.latencies.iter().sum();
        Self {
            requests_per_second: requests / run.wall.as_secs_f64(),
            mean_ms: milliseconds(total) / requests,
            p50_ms: percentile(&run.latencies, 50),
            p95_ms: percentile(&run.latencies, 95),
            p99_ms: percentile(&run.latencies, 99),
            error_rate: run.errors as f64 / requests,
            cpu_us_per_request: milliseconds(run.cpu) * 1_000.0 / requests,
            hit_rate,
        }
    }
}

/// The least of the sorted latencies that `percent` in a hundred do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    milliseconds(sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { bare, wrapped, identical_answers } = self;
        writeln!(f, "{:<24}{:>12}{:>12}{:>12}", "", "bare", "wrapped", "gain")?;
        let mut row = |name: &str, unit: &str, [before, after]: [f64; 2], gain: f64| {
            let (before, after) = (rounded(before), rounded(after));
            writeln!(f, "{name:<17}{unit:<7}{before:>12}{after:>12}{gain:>11.1}x")
        };
        let rates = [bare, wrapped].map(|figures| figures.requests_per_second);
        row("requests", "/s", rates, rates[1] / rates[0])?;
        for (name, unit, cost) in COSTS {
            let costs = [bare, wrapped].map(cost);
            row(name, unit, costs, costs[0] / costs[1])?;
        }
        let mut share = |name: &str, figure: fn(&Figures) -> Option<f64>| {
            let [before, after] = [bare, wrapped].map(|figures| match figure(figures) {
                Some(share) => format!("{:.2}", share * 100.0),
                None => "-".into(),
            });
            writeln!(f, "{name:<17}{:<7}{before:>12}{after:>12}", "%")
        };
        share("errors", |figures| Some(figures.error_rate))?;
        share("cache hits", |figures| figures.hit_rate)?;

        writeln!(f, "\n{:<24}{:>12}{:>12}", "production target", "bare", "wrapped")?;
        for (target, is_met) in TARGETS {
            let [before, after] = [bare, wrapped].map(|figures| match is_met(figures) {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "-",
            });
            writeln!(f, "{target:<24}{before:>12}{after:>12}")?;
        }
        let answers = if *identical_answers { "identical" } else { "DIFFERENT" };
        write!(f, "{:<24}{:>12}{answers:>12}", "answers", "")
    }
}

/// What is better when it is less.
type Cost = (&'static str, &'static str, fn(&Figures) -> f64);

const COSTS: [Cost; 5] = [
    ("mean", "ms", |figures| figures.mean_ms),
    ("p50", "ms", |figures| figures.p50_ms),
    ("p95", "ms", |figures| figures.p95_ms),
    ("p99", "ms", |figures| figures.p99_ms),
    ("CPU per request", "µs", |figures| figures.cpu_us_per_request),
];

/// A name, and whether the figures meet it if they can tell.
type Target = (&'static str, fn(&Figures) -> Option<bool>);

const TARGETS: [Target; 5] = [
    ("p95 < 100 ms", |figures| Some(figures.p95_ms < 100.0)),
    ("p99 < 500 ms", |figures| Some(figures.p99_ms < 500.0)),
    ("> 1000 requests/s", |figures| Some(figures.requests_per_second > 1_000.0)),
    ("errors < 0.1 %", |figures| Some(figures.error_rate < 0.001)),
    ("cache hits > 90 %", |figures| figures.hit_rate.map(|rate| rate > 0.9)),
];

/// Three digits that mean something, and commas between thousands.
fn rounded(figure: f64) -> String {
    if figure < 100.0 {
        return format!("{figure:.2}");
    }
    let digits = format!("{figure:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
