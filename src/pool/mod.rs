//! A pool of connections that finds its own size.
//!
//! [`sizing`] has the algorithms and [`budget`] the arithmetic of what many processes share, both without clock, lock
//! or connection.

pub mod budget;
pub mod sizing;
