//! Rate limits: who may do how much of what, decided in nanoseconds, in fixed memory.
//!
//! # What it is for
//!
//! Keeping one caller from taking what all of them need, and a caller in a loop from costing more than a
//! refusal. Not for counting what is billed (a decision is not a ledger), nor for bounding how much runs at
//! once: a rate says nothing about work that takes long.
//!
//! # The model
//!
//! A *policy* is a named [`Quota`]: so many per period, and a burst. A *scope* is a policy of a limiter; a
//! scope [`on`](Scope::on) a key (an account, an address, a tool) is what is charged. One decision may
//! charge several, and then takes from all or from none:
//!
//! ```
//! use mcp_perf::limit::{Decision, Limiter, Quota};
//!
//! let limiter = Limiter::builder()
//!     .policy("caller", Quota::per_second(10).burst(20))
//!     .policy("everybody", Quota::per_minute(6_000))
//!     .build()?;
//! let (caller, everybody) = (limiter.scope("caller")?, limiter.scope("everybody")?);
//!
//! match limiter.check(&[caller.on("alice"), everybody.on(&())], 1) {
//!     Decision::Allow(standing) => assert_eq!(standing.remaining(), 19),
//!     Decision::Deny(denial) => println!("again in {:?}", denial.retry_after()),
//! }
//! # Ok::<(), mcp_perf::Error>(())
//! ```
//!
//! # What is promised
//!
//! - In any window of time a key is granted at most `burst + rate × window`, whatever the threads do. There
//!   are no window boundaries at which it could have twice that.
//! - A refusal takes nothing, from no policy, and costs no more than a grant: no clock is read twice,
//!   nothing is written, nothing allocated.
//! - Memory is what [`keys`](LimiterBuilder::keys) says, whatever keys come. When a set of the table is full
//!   of keys in debt, a newcomer takes the place of the one that would have been free soonest, so a key that
//!   is being throttled is freed only when seven others of its set owe at least as much. Which keys share a
//!   set is a secret of the process. [`Stats::forgiven`] counts what was let go.
//! - Arithmetic does not wrap, whatever the cost and the quota.
//!
//! Decisions are counted in [`Limiter::stats`], and as `mcp_perf_limit_decisions_total` with the label `outcome`
//! (`allow`, `deny`) for the `metrics` recorder that is installed when the limiter is built.
//!
//! Under a race several limits in one decision may refuse what would have fitted, never grant what would
//! not.

mod gcra;
#[cfg(feature = "tower")]
mod headers;
#[cfg(feature = "tower")]
mod layer;
mod limiter;
mod quota;
mod table;

#[cfg(feature = "tower")]
pub use layer::{RateLimit, RateLimitLayer, ResponseFuture};
pub use limiter::{Decision, Denial, Limiter, LimiterBuilder, Policy, Scope, Standing, Stats, Subject};
pub use quota::Quota;
