//! Pages that go across the modules. There is no code here.
//!
//! | read | to know |
//! |---|---|
//! | [`caching`] | what a cache's settings are for, with their defaults |
//! | [`request_flow`] | what a call goes through, and what waits for what |
//! | [`failure_modes`] | what happens when something fails, what is logged and counted, and how to end all of it |
//! | [`metrics`] | every name that an exporter gets, and alerts |
//! | `tuning_a_pool` | how to check what a pool does, and how several processes share a server (features `pool`, `postgres`) |
//! | [`testing`] | how to test with a clock of your own, stores that fail, and a server that is slow |
//! | [`writing_a_backend`] | what a store has to promise |

#[doc = include_str!("caching.md")]
pub mod caching {}

#[doc = include_str!("failure_modes.md")]
pub mod failure_modes {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("request_flow.md")]
pub mod request_flow {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[cfg(all(feature = "pool", feature = "postgres"))]
#[doc = include_str!("tuning_a_pool.md")]
pub mod tuning_a_pool {}

#[doc = include_str!("writing_a_backend.md")]
pub mod writing_a_backend {}
