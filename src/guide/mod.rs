//! Pages that go across the modules. There is no code here.

#[doc = include_str!("caching.md")]
pub mod caching {}

#[doc = include_str!("failure_modes.md")]
pub mod failure_modes {}

#[doc = include_str!("request_flow.md")]
pub mod request_flow {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[cfg(all(feature = "pool", feature = "postgres"))]
#[doc = include_str!("tuning_a_pool.md")]
pub mod tuning_a_pool {}

#[doc = include_str!("writing_a_backend.md")]
pub mod writing_a_backend {}
