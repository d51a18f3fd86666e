//! The performance layer that an MCP server embeds.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod cache;
pub mod clock;
mod error;
pub mod limit;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "rmcp")]
pub mod rmcp;
mod stripe;
mod sync;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
pub mod timing;

pub use error::{Error, ErrorKind};
