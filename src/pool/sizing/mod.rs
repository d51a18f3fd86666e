//! What decides how many connections a pool should use.

use std::{fmt, time::Duration};

/// Decides the size of a pool from what was measured. Pure: no clock, no input or output.
pub trait Sizing: Send + 'static {
    /// Takes a sample, `now` after the beginning, and decides.
    fn step(&mut self, sample: &Sample, now: Duration) -> Decision;
    /// How many connections it wants.
    fn target(&self) -> u32;
    /// How many it has found to be worth it.
    fn proven(&self) -> u32;
}

/// What happened in a pool within a window of time.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Sample {
    /// How long the window was.
    pub window: Duration,
    /// Connections that were returned.
    pub completed: u64,
    /// Half of them were held for at most this long.
    pub hold_p50: Duration,
    /// 99 % of them were held for at most this long.
    pub hold_p99: Duration,
    /// Half of the callers waited for at most this long.
    pub wait_p50: Duration,
    /// 95 % of them waited for at most this long.
    pub wait_p95: Duration,
    /// 99 % of them waited for at most this long.
    pub wait_p99: Duration,
    /// Callers that wait now.
    pub waiting: u32,
    /// The most that waited at one time.
    pub max_waiting: u32,
    /// Connections in use, the mean over time.
    pub in_use_mean: f64,
    /// The most that were in use at one time.
    pub in_use_max: u32,
    /// Whether every permit was in use at some time.
    pub was_full: bool,
    /// For which share of the time.
    pub full_fraction: f64,
    /// Permits in force.
    pub target: u32,
    /// Open connections.
    pub open: u32,
    /// Callers that waited in vain.
    pub timeouts: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Those among them that the server refused for having too many connections.
    pub too_many_connections: u64,
}

/// What a [`Sizing`] decided.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Decision {
    /// How many connections may be used.
    pub target: u32,
    /// Why.
    pub reason: Reason,
}

/// Why a [`Sizing`] decided as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing speaks for a change.
    Hold,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing speaks for a change")
    }
}
