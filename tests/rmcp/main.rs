//! The wrapper around an rmcp server: what a client sees of it, what is cached, and for whom.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod bad_input;
mod completeness;
mod fixture;
mod invalidation;
mod keys;
mod limits;
#[path = "../support/log.rs"]
#[allow(dead_code, unreachable_pub, reason = "several test binaries include this module")]
mod log;
mod private;
mod secrets;
mod serve;
mod shared_run;
mod sharing;
#[path = "../support/stepped.rs"]
#[allow(dead_code, unreachable_pub, reason = "several test binaries include this module")]
mod stepped;
mod timing;
mod transports;
mod unlisted;
mod wire;
