//! What a pool counts.

use std::{sync::atomic::AtomicU64, time::Duration};

use metrics::{Label, counter, gauge, histogram};

use super::{holders::Held, tracked::Ending};
use crate::{
    event::{Event, Times},
    timing::histogram::Histogram,
};

/// What a [`Pool`](super::Pool) is doing, and did since it was made: percentiles and counts are of all that time. An exporter's
/// histograms tell of the last minutes.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that callers have or are about to have, by the permits.
    pub in_use: u32,
    /// Open connections that nobody has.
    pub idle: u32,
    /// Open connections.
    pub open: u32,
    /// Connections that were given up, and of which it is not known yet that they are
    /// [gone](super::PoolBuilder::gone_when). They count towards the ceiling.
    pub closing: u32,
    /// How many connections may be in use.
    pub target: u32,
    /// How many connections there may be at most right now: the upper bound of the size, or what an
    /// [`Allowance`](super::Allowance) leaves of it.
    pub ceiling: u32,
    /// Connections in use above the target, after it fell.
    pub debt: u32,
    /// How many connections were found to be worth it, by the [`Sizing`](super::Sizing); the target without one.
    pub proven: u32,
    /// Callers that wait for their turn.
    pub waiting: u32,
    /// Callers whose turn it is and who wait for a connection to be opened or returned.
    pub waiting_for_connection: u32,
    /// How much of the target was in use in the last full second, the mean over time; 0 to 1.
    #[doc(alias = "utilization")]
    pub utilisation: f64,
    /// Calls that got a connection.
    pub gets: u64,
    /// Half of them waited for their turn for at most this long. What came after it, for a connection to be opened or
    /// returned where there are fewer than may be used, is not in it.
    pub wait_p50: Duration,
    /// 95 % of them waited for at most this long.
    pub wait_p95: Duration,
    /// 99 % of them waited for at most this long.
    pub wait_p99: Duration,
    /// Connections that were returned.
    pub returns: u64,
    /// Half of them were held for at most this long.
    pub hold_p50: Duration,
    /// 99 % of them were held for at most this long.
    pub hold_p99: Duration,
    /// Connections that were opened.
    pub connects: u64,
    /// Attempts to open one that failed.
    pub connect_failures: u64,
    /// Those of them that failed because the server has as many connections as it takes.
    pub too_many_connections: u64,
    /// Half of the connections were opened within this time.
    pub connect_p50: Duration,
    /// 99 % of the connections were opened within this time.
    pub connect_p99: Duration,
    /// Calls that waited in vain.
    pub timeouts: u64,
    /// Calls that were turned away, because as many waited as may.
    pub overloads: u64,
    /// Connections that were closed.
    pub closed: Closed,
    /// Connections that were held past the threshold.
    pub leaks: u64,
    /// Who holds a connection for longest, in that order; at most three.
    pub longest: Vec<Held>,
    /// The classes: `system`, `default`, and those that were named.
    pub classes: Vec<ClassStats>,
}

/// What a class of callers has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStats {
    /// Its name.
    pub name: String,
    /// Connections that its callers have or are about to have.
    pub in_use: u32,
    /// Those of its callers who wait for their turn.
    pub waiting: u32,
}

/// Connections that were closed, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// They were broken when they were returned or about to be lent.
    pub broken: u64,
    /// They did not pass the test before they were to be lent.
    pub invalid: u64,
    /// They had lived as long as they may.
    pub expired: u64,
    /// Nobody had used them for long.
    pub idle: u64,
    /// They were retired, or the pool was shut down.
    pub retired: u64,
    /// There were more than were [allowed](super::Allowance) by then, or than the server had room for.
    pub surplus: u64,
}

/// What one pool records. Times are counted here and for the `metrics` recorder that was installed when the pool was
/// built.
pub(super) struct Recorded {
    pub(super) waits: Times,
    /// Of those, the waits of callers whom their own class held up.
    pub(super) own_waits: Histogram,
    pub(super) holds: Times,
    pub(super) connects: Times,
    pub(super) connect_failures: Event,
    pub(super) too_many_connections: Event,
    /// Failures to connect for other reasons. A number of its own, since two counters are not read at once.
    pub(super) other_failures: AtomicU64,
    /// Refusals of a server that has too many connections, as far as the size goes by them.
    pub(super) refusals: AtomicU64,
    pub(super) timeouts: Event,
    pub(super) overloads: Event,
    pub(super) leaks: Event,
    closed: [Event; 6],
    gauges: [metrics::Gauge; 5],
}

impl Recorded {
    pub(super) fn new(pool: &str) -> Self {
        let labels = vec![Label::new("pool", pool.to_owned())];
        let event = |name: &'static str| Event::new(counter!(name, labels.clone()));
        let times = |name: &'static str| Times::new(histogram!(name, labels.clone()));
        let closed = |reason: &'static str| {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("reason", reason));
            Event::new(counter!("mcp_perf_pool_closed_total", labels))
        };
        let gauge = |name: &'static str| gauge!(name, labels.clone());
        Self {
            waits: times("mcp_perf_pool_wait_seconds"),
            own_waits: Histogram::new(),
            holds: times("mcp_perf_pool_hold_seconds"),
            connects: times("mcp_perf_pool_connect_seconds"),
            connect_failures: event("mcp_perf_pool_connect_failures_total"),
            too_many_connections: event("mcp_perf_pool_too_many_connections_total"),
            other_failures: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            timeouts: event("mcp_perf_pool_timeouts_total"),
            overloads: event("mcp_perf_pool_overloads_total"),
            leaks: event("mcp_perf_pool_leaks_total"),
            closed: ["broken", "invalid", "expired", "idle", "retired", "surplus"].map(closed),
            gauges: [
                gauge("mcp_perf_pool_in_use"),
                gauge("mcp_perf_pool_idle"),
                gauge("mcp_perf_pool_open"),
                gauge("mcp_perf_pool_target"),
                gauge("mcp_perf_pool_waiting"),
            ],
        }
    }

    pub(super) fn closed(&self, why: Ending) {
        self.closed[why as usize].add();
    }

    pub(super) fn closed_so_far(&self) -> Closed {
        let [broken, invalid, expired, idle, retired, surplus] = self.closed.each_ref().map(Event::sum);
        Closed { broken, invalid, expired, idle, retired, surplus }
    }

    /// In use, idle, open, target, waiting.
    pub(super) fn show(&self, levels: [u32; 5]) {
        for (gauge, level) in self.gauges.iter().zip(levels) {
            gauge.set(f64::from(level));
        }
    }
}
