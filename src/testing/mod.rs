//! For tests: a store and a bus in memory, what every store and every bus has to keep, stores and connections that go
//! wrong, a checker that finds what should not have been read, and servers with a knee for pools (feature `pool`).
//!
//! Feature `test-util`. [`Clock::manual`](crate::clock::Clock::manual) moves time, and
//! [`Clock::tokio`](crate::clock::Clock::tokio) lets tokio move it.
//!
//! ```
//! use mcp_perf::{cache::{Cache, Key}, clock::Clock, testing::MemoryStore};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
//! // Two processes that share a store, in one test.
//! let clock = Clock::manual();
//! let store = MemoryStore::new(clock.clone());
//! let node = || Cache::<u32>::builder("numbers").clock(clock.clone()).remote(store.clone()).build();
//! let (one, two) = (node().await?, node().await?);
//!
//! one.insert(&Key::public("a"), 1).await?;
//! assert_eq!(two.get(&Key::public("a")).await, Some(1));
//!
//! one.remove(&Key::public("a")).await?;
//! clock.advance(Duration::from_secs(5)); // `max_staleness`
//! assert_eq!(two.get(&Key::public("a")).await, None);
//! # Ok(()) }
//! ```

pub mod bus;
mod faults;
pub mod history;
mod judge;
mod memory;
mod memory_bus;
mod proxy;
#[cfg(feature = "pool")]
mod server;
#[cfg(feature = "pool")]
mod simulation;
pub mod store;
#[cfg(feature = "pool")]
mod usl;

pub use faults::{Calls, Fault, FaultStore};
pub use memory::MemoryStore;
pub use memory_bus::{MemoryBus, MemorySubscription};
pub use proxy::{FaultProxy, Weather};
#[cfg(feature = "pool")]
pub use server::{FakeConnection, FakeServer, ServerError, ServerStats};
#[cfg(feature = "pool")]
pub use simulation::{Load, Outcome, Simulation, Work};
#[cfg(feature = "pool")]
pub use usl::Usl;
