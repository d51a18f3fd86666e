//! A pool of connections that finds its own size.
//!
//! [`sizing`] holds the algorithms, without clock, lock or connection.

pub mod sizing;
