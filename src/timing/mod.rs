//! How long things take, measured where they happen, at a cost that lets it stay on.
//!
//! # What it is for
//!
//! For latencies by kind of work, with percentiles, in the process that did the work: for a health page, a
//! log line, a decision to slow down. Not for tracing one request through many parts, which is what
//! `tracing` is for.
//!
//! # The model
//!
//! A [`Series`] is one kind of work, named by two words: an operation and its target (`tools/call` and the
//! tool). It is resolved once and kept. [`Series::start`] gives a [`Span`], which records how long it lived
//! when it is [finished](Span::finish) or, as [`Cancelled`](Outcome::Cancelled), dropped.
//!
//! ```
//! use mcp_perf::timing::{Outcome, Timing};
//!
//! let timing = Timing::default();
//! let series = timing.series("tools/call", "search");
//! let span = series.start();
//! let found = "a tool's work".len();
//! span.finish(if found > 0 { Outcome::Ok } else { Outcome::Error });
//!
//! let snapshot = timing.snapshot();
//! let search = &snapshot[0];
//! assert_eq!((search.operation.as_str(), search.target.as_str(), search.ok), ("tools/call", "search", 1));
//! assert!(search.p99 >= search.p50);
//! ```
//!
//! Times also go to the `metrics` recorder that is installed when a series is made, as the histogram
//! `mcp_perf_timing_seconds` with the labels `operation` and `target`.
//!
//! # What is promised
//!
//! - Recording takes no lock and allocates nothing: two clock reads and three additions. (A thread's first record
//!   in a series makes room for it, once.)
//! - A percentile is at most 6.25 % above the true one, and never below it: times are counted in buckets, 16
//!   to each doubling, and the upper edge of the bucket is told.
//! - Memory is bounded: a series holds 8 KiB for each thread that records in it, at most 16 times, and beyond
//!   [`max_series`](Timing::new) everything new is counted in one series of that operation, `_other`.

pub(crate) mod histogram;
#[cfg(feature = "tower")]
mod layer;
mod series;

#[cfg(feature = "tower")]
pub use layer::{ResponseFuture, Timed, TimingLayer};
pub use series::{Measured, Outcome, Series, Span, Timing};
