//! What the integration tests share: private servers, stores that are walked through, waiting, and the log.
//!
//! A guard starts a server of its own on a free loopback port, in a temporary folder, with durability
//! off, and ends it when it is dropped, on a panic too. A server that is not installed is a failure
//! which names its package, never a skipped test.
//!
//! Starting and killing block the calling thread: in an async test do it first, or in `spawn_blocking`.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "several test binaries include this module, and none uses every method of every guard"
)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a server that does not start is the failure of its test"
)]

pub mod certificate;
pub mod documented;
pub mod log;
pub mod postgres;
pub mod process;
pub mod recorder;
pub mod redis;
pub mod stepped;
pub mod wait;
