//! Series, spans, and the table of all series.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use super::histogram::Histogram;
use crate::{
    clock::{Clock, Instant},
    stripe::Counter,
    sync::{Mutex, lock},
};

/// The target that counts what has no series of its own.
const OTHER: &str = "_other";

/// All series of a server; cheap to clone, clones are the same.
#[derive(Clone)]
pub struct Timing(Arc<Inner>);

struct Inner {
    clock: Clock,
    max_series: usize,
    /// Read without a lock; a new series makes a new map, so this is for things there are a few hundred of.
    series: ArcSwap<Table>,
    adding: Mutex<()>,
}

/// By operation, then by target.
type Table = HashMap<Box<str>, HashMap<Box<str>, Series, Hasher>, Hasher>;

/// Looked up at every request, by names that are bounded in number whoever chooses them.
type Hasher = foldhash::fast::RandomState;

/// One kind of work; cheap to clone. Keep it where the work is, so that nothing is looked up.
#[derive(Clone)]
pub struct Series(Arc<Recorded>);

struct Recorded {
    operation: Box<str>,
    target: Box<str>,
    clock: Clock,
    histogram: Histogram,
    ok: Counter,
    error: Counter,
    refused: Counter,
    cancelled: Counter,
    exported: metrics::Histogram,
}

/// How a piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Nobody waited for it any more.
    Cancelled,
    /// It failed.
    Error,
    /// It did what it should.
    Ok,
    /// It was not begun: the caller was over a limit. Counted, and kept out of the times.
    Refused,
}

/// What a series has recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// The operation, as `tools/call`.
    pub operation: String,
    /// What it was done to or with, as the name of a tool; may be empty.
    pub target: String,
    /// How many ended well.
    pub ok: u64,
    /// How many failed; a tool's result that says so (`isError`) is one of them.
    pub error: u64,
    /// How many were not begun.
    pub refused: u64,
    /// How many nobody waited for any more.
    pub cancelled: u64,
    /// The mean time of those that were begun.
    pub mean: Duration,
    /// Half of them took at most this long.
    pub p50: Duration,
    /// 95 % of them took at most this long.
    pub p95: Duration,
    /// 99 % of them took at most this long.
    pub p99: Duration,
}

impl Measured {
    /// How many there were, however they ended.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ok + self.error + self.refused + self.cancelled
    }
}

/// One line: `tools/call search: 120 ok, 3 error, p50 1.2ms, p95 4ms, p99 9ms`.
impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)?;
        if !self.target.is_empty() {
            write!(f, " {}", self.target)?;
        }
        write!(f, ": {} ok", self.ok)?;
        for (count, what) in [(self.error, "error"), (self.refused, "refused"), (self.cancelled, "cancelled")]
        {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        write!(f, ", p50 {:.1?}, p95 {:.1?}, p99 {:.1?}", self.p50, self.p95, self.p99)
    }
}

impl Timing {
    /// Room for `max_series` series; what comes after is counted as `_other` of its operation.
    #[must_use]
    pub fn new(clock: Clock, max_series: usize) -> Self {
        Self(Arc::new(Inner { clock, max_series, series: ArcSwap::default(), adding: Mutex::default() }))
    }

    /// The series of an operation and its target, made if there is room.
    ///
    /// Names are labels: give it what there are a few hundred of, never what a caller can make up.
    #[must_use]
    pub fn series(&self, operation: &str, target: &str) -> Series {
        self.known(operation, target).unwrap_or_else(|| self.add(operation, target))
    }

    /// The series, if it exists. Takes no lock.
    #[inline]
    pub(crate) fn known(&self, operation: &str, target: &str) -> Option<Series> {
        self.0.series.load().get(operation)?.get(target).cloned()
    }

    /// The series that counts what has none of its own.
    #[must_use]
    pub fn other(&self, operation: &str) -> Series {
        self.known(operation, OTHER).unwrap_or_else(|| {
            // Operations are bounded like series, for the same reason.
            let operations = self.0.series.load().len();
            self.insert(if operations < self.0.max_series { operation } else { OTHER }, OTHER)
        })
    }

    /// What every series has recorded so far, by operation and target. Series without a record are left out.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Measured> {
        let table = self.0.series.load();
        let mut all: Vec<Measured> = table.values().flat_map(HashMap::values).map(Series::measured).collect();
        all.retain(|measured| measured.count() > 0);
        all.sort_by(|one, two| (&one.operation, &one.target).cmp(&(&two.operation, &two.target)));
        all
    }

    #[cold]
    fn add(&self, operation: &str, target: &str) -> Series {
        let count: usize = self.0.series.load().values().map(HashMap::len).sum();
        if count < self.0.max_series { self.insert(operation, target) } else { self.other(operation) }
    }

    #[cold]
    fn insert(&self, operation: &str, target: &str) -> Series {
        let _adding = lock(&self.0.adding);
        if let Some(series) = self.known(operation, target) {
            return series;
        }
        let series = Series::new(operation, target, self.0.clock.clone());
        let mut table = Table::clone(&self.0.series.load());
        table.entry(operation.into()).or_default().insert(target.into(), series.clone());
        self.0.series.store(Arc::new(table));
        series
    }
}

impl Default for Timing {
    /// The system's clock, and room for 256 series.
    fn default() -> Self {
        Self::new(Clock::system(), 256)
    }
}

impl Series {
    fn new(operation: &str, target: &str, clock: Clock) -> Self {
        let labels = [("operation", operation.to_owned()), ("target", target.to_owned())];
        Self(Arc::new(Recorded {
            operation: operation.into(),
            target: target.into(),
            clock,
            histogram: Histogram::new(),
            ok: Counter::default(),
            error: Counter::default(),
            refused: Counter::default(),
            cancelled: Counter::default(),
            exported: metrics::histogram!("mcp_perf_timing_seconds", &labels),
        }))
    }

    /// Starts the time of one piece of work.
    #[must_use = "a span that is dropped at once records a cancelled piece of work"]
    #[inline]
    pub fn start(&self) -> Span {
        Span { started: self.0.clock.now(), series: Some(self.clone()) }
    }

    /// As [`start`](Self::start), for whoever has no more use for the series.
    #[inline]
    #[cfg(feature = "rmcp")]
    pub(crate) fn into_span(self) -> Span {
        Span { started: self.0.clock.now(), series: Some(self) }
    }

    /// Records one piece of work that was timed elsewhere.
    pub fn record(&self, took: Duration, outcome: Outcome) {
        let Recorded { ok, error, refused, cancelled, histogram, exported, .. } = &*self.0;
        let count = match outcome {
            Outcome::Ok => ok,
            Outcome::Error => error,
            Outcome::Cancelled => cancelled,
            Outcome::Refused => {
                refused.add(1);
                return;
            }
        };
        count.add(1);
        histogram.record(took);
        exported.record(took);
    }

    /// What it has recorded so far.
    #[must_use]
    pub fn measured(&self) -> Measured {
        let recorded = &*self.0;
        let counted = recorded.histogram.counted();
        Measured {
            operation: recorded.operation.to_string(),
            target: recorded.target.to_string(),
            ok: recorded.ok.sum(),
            error: recorded.error.sum(),
            refused: recorded.refused.sum(),
            cancelled: recorded.cancelled.sum(),
            mean: counted.mean(),
            p50: counted.percentile(0.50),
            p95: counted.percentile(0.95),
            p99: counted.percentile(0.99),
        }
    }
}

/// A piece of work under way.
#[derive(Debug)]
pub struct Span {
    started: Instant,
    series: Option<Series>,
}

impl Span {
    /// Records how it ended.
    #[inline]
    pub fn finish(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    /// The same piece of work, counted in another series.
    #[cfg(feature = "rmcp")]
    pub(crate) fn belongs_to(&mut self, series: Series) {
        self.series = Some(series);
    }

    #[inline]
    fn end(&mut self, outcome: Outcome) {
        if let Some(series) = self.series.take() {
            let took = series.0.clock.now().since(self.started);
            series.record(took, outcome);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}

impl fmt::Debug for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.snapshot()).finish()
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.measured().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_records_how_long_it_lived_and_how_it_ended() {
        let clock = Clock::manual();
        let timing = Timing::new(clock.clone(), 8);
        let series = timing.series("tools/call", "search");
        for (outcome, milliseconds) in [(Outcome::Ok, 10), (Outcome::Error, 20), (Outcome::Refused, 0)] {
            let span = series.start();
            clock.advance(Duration::from_millis(milliseconds));
            span.finish(outcome);
        }
        let dropped = series.start();
        clock.advance(Duration::from_millis(60));
        drop(dropped);
        let measured = series.measured();
        assert_eq!((measured.ok, measured.error, measured.refused, measured.cancelled), (1, 1, 1, 1));
        assert_eq!(measured.mean, Duration::from_millis(30));
        assert!((Duration::from_millis(60)..Duration::from_millis(64)).contains(&measured.p99));
    }

    #[test]
    fn series_beyond_the_room_are_counted_together() {
        let timing = Timing::new(Clock::manual(), 4);
        for index in 0..100 {
            timing.series("tools/call", &format!("tool {index}")).record(Duration::ZERO, Outcome::Ok);
        }
        let snapshot = timing.snapshot();
        assert_eq!(snapshot.len(), 5);
        assert_eq!(snapshot.iter().find(|measured| measured.target == OTHER).unwrap().ok, 96);
        for index in 0..100 {
            timing.series(&format!("operation {index}"), "target").record(Duration::ZERO, Outcome::Ok);
        }
        assert!(timing.snapshot().len() <= 5 + 4, "{}", timing.snapshot().len());
    }
}
