//! A pool of connections that is fair, keeps its bound whatever happens, and may find its own size.
//!
//! # What it is for
//!
//! For connections that are used by one caller at a time and cost something to open: those of a database above all.
//! It works with every [`bb8::ManageConnection`], which makes the connections and says whether they work; bb8 keeps
//! the idle ones. Not for connections that many callers can share at once, such as a multiplexed Redis connection: a
//! pool of those only adds waiting.
//!
//! # The model
//!
//! ```text
//! get ─▶ gate: a permit, strictly in turn ─▶ supply: an idle connection, or the next that is ─▶ test ─▶ Connection
//!          ▲ target: how many may be in use       ▲ returned or opened                          if it was idle
//!          │                                      │
//!        sizing                                 openers ▸ few at once ▸ token bucket ▸ breaker ▸ manager
//! ```
//!
//! *Permits* and *connections* are two things. A permit says that its holder may use a connection now; how many there
//! are, the *target*, changes at once and costs nothing. Connections are opened when somebody with a permit finds none
//! idle, and closed when they are old, idle for long, or broken. What harms a busy server is how much runs at once, not
//! how much is open.
//!
//! # What is promised
//!
//! - **In turn.** Whoever waits longest is served next, within a [class](Class); newcomers pass nobody. (bare bb8: one
//!   caller that comes back at once starves the others until they time out.)
//! - **Exact.** Never more than the ceiling is open, being opened or being closed, through every resize, cancellation
//!   and failure. One that is closed counts until it is [gone](PoolBuilder::gone_when): where the manager is
//!   PostgreSQL's, until a query that runs on it is cancelled and the server has hung up, of a silent one for no longer
//!   than a few seconds.
//!   After the target fell, what is in use above it is *debt*: the next returns pay it, and nobody enters before.
//! - **Classes.** What a class is [guaranteed](Share::guarantee) is there at once, and within one hold time after a
//!   shrink; what is not used by its class and not kept is lent to the others. [`Class::SYSTEM`] is served first. Where
//!   there are fewer connections than permits, the same holds for who gets the next one.
//! - **The real reason.** A caller whose connection cannot be opened is told why, at once, unless one is out that may
//!   come back. A time-out names what was waited for, who holds connections for longest and where they asked for
//!   them, how many wait, and how the last attempt to connect failed.
//! - **No storms.** Two attempts to connect at once and ten a second unless set; after three failures in a row there
//!   are pauses, of 2 s at most. Meanwhile callers fail in microseconds, and an attempt that nobody needs any more is
//!   not made.
//! - **Nothing that is known to be dead is lent.** A connection that the manager calls broken, that is retired or too
//!   old is closed instead; one that was idle for [500 ms](PoolBuilder::test_after) is asked first. One that dies
//!   within those is found out by its borrower, as with any pool.
//! - **Cancelling is safe** at every await: permits, connections and turns go to whoever is next.
//! - **Bounded.** Connections by the ceiling, waiters by [`max_waiting`](PoolBuilder::max_waiting), openers by both.
//!
//! Nothing is taken back from a caller: one that never returns its connection keeps it. The
//! [leak threshold](PoolBuilder::leak_threshold) tells of those. A caller who holds one connection and waits for
//! another may wait for itself: take one at a time, or [`try_get`](Pool::try_get) the second.
//!
//! # How large
//!
//! [`size`](PoolBuilder::size) is fixed. [`adaptive`](PoolBuilder::adaptive) follows a [`Sizing`], once a second, within
//! bounds; [`observe`](PoolBuilder::observe) only logs what it would do. Every change is an event of `tracing` with its
//! reason and what it was decided on.
//!
//! Where several processes share a server, each may have a part of its connections: a constant one is the upper bound
//! of the size, and one that changes is an [`Allowance`]. The arithmetic of sharing is in [`budget`].
//!
//! # Metrics
//!
//! [`Pool::stats`] is a snapshot. Times, failures and what the pool has go to the `metrics` recorder that is installed
//! when it is built, with the label `pool`: the names are on a [page of the guide](crate::guide::metrics#a-pool).
//!
//! # Example
//!
//! ```
//! use mcp_perf::pool::{Class, Pool, Share};
//! use std::time::Duration;
//!
//! # struct Echo;
//! # impl bb8::ManageConnection for Echo {
//! #     type Connection = String;
//! #     type Error = std::io::Error;
//! #     async fn connect(&self) -> Result<String, std::io::Error> { Ok(String::new()) }
//! #     async fn is_valid(&self, _: &mut String) -> Result<(), std::io::Error> { Ok(()) }
//! #     fn has_broken(&self, _: &mut String) -> bool { false }
//! # }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
//! # let manager = Echo;
//! let pool = Pool::builder("orders", manager) // any `bb8::ManageConnection`
//!     .size(10)
//!     .class("reports", Share::new().at_most(2))
//!     .system_reserve(1)
//!     .timeout(Duration::from_secs(5))
//!     .build()?;
//!
//! let order = pool.get().await?;
//! let report = pool.get_for(pool.class("reports")?).await?;
//! let health = pool.get_for(Class::SYSTEM).await?;
//! assert_eq!(pool.stats().in_use, 3);
//! # drop((order, report, health));
//! pool.shutdown(Duration::from_secs(5)).await?;
//! # Ok(()) }
//! ```

mod allowance;
pub mod budget;
mod builder;
mod classes;
mod closing;
mod connect;
#[cfg(test)]
mod echo;
mod front;
mod gate;
mod guard;
mod holders;
mod kept;
mod lines;
mod maintenance;
mod opener;
mod queue;
mod sampler;
mod shared;
pub mod sizing;
mod stats;
mod supply;
mod tested;
mod tracked;
mod usage;

pub use allowance::{Allowance, Demand};
pub use builder::PoolBuilder;
pub use classes::{Class, Share};
pub use front::Pool;
pub use guard::Connection;
pub use holders::Held;
pub use sizing::Sizing;
pub use stats::{ClassStats, Closed, Stats};
