//! How many connections: the algorithms that decide it, pure.
//!
//! # What they are for
//!
//! A server has a *knee*: up to some number of queries at once its throughput rises, beyond it every further one
//! makes all of them slower. Where the knee is depends on the server, its disk, the queries and the hour, so a number
//! in a configuration file is wrong most of the time. Not for a server that never comes near its knee, nor where
//! something else (a licence, a proxy) sets the number: [`Fixed`] is right there.
//!
//! # The model
//!
//! Time is cut into windows of about a second. The pool measures each ([`Sample`]), hands it to a [`Sizing`], and puts
//! the [`Decision`]'s target in force. `now` is the time since the algorithm began. Nothing here reads a clock, takes
//! a lock or waits, so ten minutes of a server's life are a test of milliseconds. Whoever only wants to know what
//! would be done does not put the target in force: an algorithm goes by what [`Sample::target`] says is in force, not
//! by what it asked for.
//!
//! ```
//! use mcp_perf::pool::sizing::{Bounds, Sample, Sizing, ThroughputVerified};
//! use std::time::Duration;
//!
//! let mut sizing = ThroughputVerified::new(Bounds::new(2, 64)?, 4);
//! for second in 1..=3 {
//!     let mut sample = Sample::default(); // what the pool saw in one second
//!     sample.window = Duration::from_secs(1);
//!     sample.target = sizing.target();
//!     sample.open = sizing.target();
//!     sample.completed = 2_000;
//!     sample.in_use_mean = 4.0;
//!     sample.in_use_max = 4;
//!     sample.was_full = true;
//!     sample.full_fraction = 1.0;
//!     sample.waiting = 30;
//!     let decision = sizing.step(&sample, Duration::from_secs(second));
//!     println!("{}: {}", decision.target, decision.reason);
//! }
//! assert_eq!(sizing.target(), 8); // callers wait: would twice as many do more work?
//! assert_eq!(sizing.proven(), 4); // not known yet
//! # Ok::<(), mcp_perf::Error>(())
//! ```
//!
//! # The algorithms
//!
//! | | grows | shrinks | wants to know |
//! |---|---|---|---|
//! | [`ThroughputVerified`] | on trial, and keeps what raised the throughput, or made calls quicker where less is asked for than can be done | when a smaller size does as much, and when the load has gone | how much throughput a connection has to bring ([`Gain`]) |
//! | [`Fixed`] | never | never | the size |
//! | [`Gradient2`] | while the time per query is near its long-term mean | when it is above | nothing |
//! | [`Aimd`] | by one while at least half of the limit is in use | by a tenth on a failure or a time above a limit | the limit |
//!
//! Everybody's first idea, one or two more when callers wait, is not here, because beyond the knee waiting
//! comes from there being too many already. Such a rule ends at the ceiling and stays there when the load has gone.
//!
//! # How good they are
//!
//! In `testing::Simulation` (feature `test-util`), slightly overloaded, from a size of 4 within 1 to 64, against the best
//! fixed size as found by trying them all. *Small* has its knee at 8, *large* at 44; calls are 10 and 20 ms of work,
//! give or take a tenth; with *reports*, one call in a hundred is a hundred times that, so that half of the server's
//! time goes to them. Throughput in the second and third minute: the median of 51 seeds, and the worst; the median
//! after everything became three times slower; how long a call had a connection; and the size when half of the load
//! had been gone for five minutes.
//!
//! | | small | large | small, reports | large, reports |
//! |---|---|---|---|---|
//! | [`Fixed`], the best size | 100 % (100 %), 100 %, 27.8 ms, 8 | 100 % (100 %), 100 %, 56.1 ms, 44 | 99 % (92 %), 102 %, 55.3 ms, 8 | 100 % (94 %), 100 %, 111.5 ms, 44 |
//! | [`ThroughputVerified`] | 100 % (97 %), 99 %, 27.0 ms, 7 | 99 % (96 %), 99 %, 50.2 ms, 40 | 97 % (89 %), 99 %, 54.6 ms, 6 | 98 % (92 %), 96 %, 97.9 ms, 37 |
//! | [`ThroughputVerified`], [`Gain::LATENCY`] | 97 % (93 %), 94 %, 21.0 ms, 5 | 96 % (96 %), 95 %, 42.3 ms, 32 | 91 % (78 %), 94 %, 39.4 ms, 6 | 95 % (88 %), 94 %, 84.6 ms, 30 |
//! | [`Gradient2`] | 85 % (85 %), 93 %, 70.3 ms, 35 | 99 % (99 %), 78 %, 47.9 ms, 64 | 85 % (77 %), 90 %, 135.5 ms, 45 | 98 % (85 %), 78 %, 88.9 ms, 64 |
//! | [`Aimd`] | 35 % (35 %), 35 %, 10.0 ms, 1 | 6 % (6 %), 6 %, 20.0 ms, 1 | 49 % (33 %), 35 %, 78.1 ms, 37 | 6 % (5 %), 7 %, 39.5 ms, 1 |
//! | two more when callers wait | 35 % (35 %), 35 %, 628.6 ms, 64 | 95 % (95 %), 95 %, 85.5 ms, 60 | 35 % (30 %), 35 %, 1240.7 ms, 64 | 97 % (88 %), 96 %, 168.2 ms, 60 |
//! | [`Fixed`], 10 | 99 % (99 %), 99 %, 35.2 ms, 10 | 52 % (52 %), 52 %, 24.5 ms, 10 | 98 % (90 %), 99 %, 70.5 ms, 10 | 52 % (50 %), 52 %, 48.7 ms, 10 |
//!
//! `cargo test --release --test sizing -- --ignored --nocapture` prints it. The simulated server knows no locks, no
//! caches and no other clients: a ranking, rather than a promise for yours. [`Aimd`] gives way to callers who find the
//! queue full, as it is meant to, and mostly ends at 1.

mod bounds;
mod ceiling;
mod fixed;
mod hold;
mod initial;
mod latency;
mod peak;
mod rates;
mod relief;
mod sample;
mod search;
mod tails;
mod trial;
mod verified;

use std::{fmt, time::Duration};

pub use bounds::{Bounds, Gain};
pub use fixed::Fixed;
pub use initial::{Machine, initial_size};
pub use latency::{Aimd, Gradient2};
pub use sample::Sample;
pub use verified::ThroughputVerified;

/// Callers wait for this share of the time and more: all that the pool can do is asked for. That need not be all that can
/// be done: few connections do less where calls come by chance than where the next one is always there.
const FULL: f64 = 0.9;

/// An algorithm that says how many connections a pool should use.
///
/// Implementations read no clock, wait for nothing, and do not panic whatever the sample holds. The target stays
/// within the bounds that they were made with. Between two calls of [`step`](Self::step) nothing changes.
pub trait Sizing: Send + 'static {
    /// Takes in one window and says what size is wanted from now on. `now` is the time since the algorithm began, at
    /// the end of the window.
    fn step(&mut self, sample: &Sample, now: Duration) -> Decision;

    /// The size that is wanted, in connections: what the last decision said.
    fn target(&self) -> u32;

    /// The largest size, in connections, that is known to do no harm: up to there the pool grows as soon as callers
    /// wait. An algorithm that knows of none answers with its target.
    fn proven(&self) -> u32;
}

/// What an algorithm wants, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Decision {
    /// The size from now on, in connections.
    pub target: u32,
    /// Why.
    pub reason: Reason,
    /// When the pool is to go back on its own, without waiting for the end of the window. It holds until the next
    /// decision.
    pub retreat: Option<Retreat>,
}

/// A way back from a size that may turn out too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retreat {
    /// As soon as more callers than this wait for a permit,
    pub waiting: u32,
    /// so many connections may be used again.
    pub target: u32,
}

impl Retreat {
    /// Back to `target` connections as soon as more than so many wait.
    #[must_use]
    pub fn new(waiting: u32, target: u32) -> Self {
        Self { waiting, target }
    }
}

impl Decision {
    /// A decision.
    #[must_use]
    pub fn new(target: u32, reason: Reason) -> Self {
        Self { target, reason, retreat: None }
    }

    /// The same, with a way back.
    #[must_use]
    pub fn or_retreat(mut self, retreat: impl Into<Option<Retreat>>) -> Self {
        self.retreat = retreat.into();
        self
    }
}

/// Why a size is wanted. [`Display`](fmt::Display) has it in words, for logs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// There is nothing to change.
    Steady,
    /// Callers wait, and the new size is within what is proven.
    Demand,
    /// Callers wait, and nobody knows whether more connections help: they are tried.
    TryingMore,
    /// Callers wait, and fewer connections may do as much: they are tried.
    TryingFewer,
    /// A trial is on.
    Measuring,
    /// A trial ended, and its size stays.
    Kept {
        /// Returns per second before the trial.
        before: f64,
        /// Returns per second during it.
        after: f64,
    },
    /// More were tried, and nobody waits any more.
    DemandMet,
    /// A trial ended, and the size is what it was before.
    Reverted {
        /// Returns per second before the trial.
        before: f64,
        /// Returns per second during it.
        after: f64,
    },
    /// Fewer were tried, and so many callers came to wait that it was given up at once.
    Retreated,
    /// Callers wait for longer than queries take, though less is asked for than can be done: it is tried whether more
    /// connections make calls quicker.
    TryingForTime,
    /// More connections made calls quicker, and stay until all is asked for that can be done.
    Quicker {
        /// How long 99 of 100 calls took at most, with as many as there were.
        before: Duration,
        /// The same with more.
        after: Duration,
    },
    /// More connections made calls no quicker, and the size is what it was before.
    NotQuicker {
        /// How long 99 of 100 calls took at most, with as many as there were.
        before: Duration,
        /// The same with more.
        after: Duration,
    },
    /// All is asked for that can be done: the size is what is proven to do most.
    Saturated,
    /// A trial was broken off, because what it measured would have said nothing.
    Void,
    /// Fewer were in use for minutes.
    Unused,
    /// The server refused a connection because it has too many.
    TooManyConnections,
    /// The ceiling was lowered below the size.
    Ceiling,
    /// Another size is in force than was wanted, and is gone on from.
    InForce,
    /// The rule of the named algorithm says so.
    Rule(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("nothing to change"),
            Self::Demand => f.write_str("callers wait, and the size is proven"),
            Self::TryingMore => f.write_str("callers wait: trying whether more connections do more"),
            Self::TryingFewer => f.write_str("callers wait: trying whether fewer connections do as much"),
            Self::Measuring => f.write_str("a trial is on"),
            Self::Kept { before, after } => write!(f, "kept: {after:.1}/s after {before:.1}/s"),
            Self::DemandMet => f.write_str("kept: nobody waits any more"),
            Self::Reverted { before, after } => write!(f, "taken back: {after:.1}/s after {before:.1}/s"),
            Self::Retreated => f.write_str("taken back at once: too many callers waited"),
            Self::TryingForTime => {
                f.write_str("callers wait: trying whether more connections make calls quicker")
            }
            Self::Quicker { before, after } => write!(f, "kept: 99 % within {after:.1?} after {before:.1?}"),
            Self::NotQuicker { before, after } => {
                write!(f, "taken back: 99 % within {after:.1?} after {before:.1?}")
            }
            Self::Saturated => f.write_str("all is asked for that can be done: back to what is proven"),
            Self::Void => f.write_str("a trial was broken off"),
            Self::Unused => f.write_str("fewer were in use for minutes"),
            Self::TooManyConnections => f.write_str("the server has too many connections"),
            Self::Ceiling => f.write_str("the ceiling was lowered"),
            Self::InForce => f.write_str("another size is in force"),
            Self::Rule(name) => f.write_str(name),
        }
    }
}
