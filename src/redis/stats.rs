//! What the shared connections of a store count.

use std::time::Duration;

use metrics::{Counter, Label, counter, histogram};

use super::fault::{Fault, Lost};
use crate::{
    clock::Clock,
    event::{Event, Times},
};

/// What the connections of a [`RedisStore`](super::RedisStore) are doing, and did since it was first used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that are open: two at most, which all callers share.
    pub open: u32,
    /// Calls that wait for an answer on a connection that is open.
    pub waiting: u32,
    /// Those of them that were not sent yet.
    pub queued: u32,
    /// Questions that were answered. Reads that are made at the same time travel as one.
    pub trips: u64,
    /// Half of them were answered within this time, from when they were written.
    pub trip_p50: Duration,
    /// 99 % of them were answered within this time.
    pub trip_p99: Duration,
    /// Times that a call had to be made once more, since the connection was lost under it or led to the wrong server.
    pub retries: u64,
    /// Connections that were opened.
    pub connects: u64,
    /// Attempts to open one that failed.
    pub connect_failures: u64,
    /// Half of the connections were opened within this time.
    pub connect_p50: Duration,
    /// 99 % of the connections were opened within this time.
    pub connect_p99: Duration,
    /// Connections that ended.
    pub closed: Closed,
}

/// Connections that ended, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// They were closed by the server, or cut.
    pub lost: u64,
    /// They owed an answer, and brought nothing for a second.
    pub silent: u64,
    /// They led to a server that is not the primary, or does not have the names.
    pub replaced: u64,
    /// They brought what is not of the protocol.
    pub malformed: u64,
}

/// What one store records: here, and for the `metrics` recorder that was installed when it was first used.
pub(super) struct Counts {
    pub(super) clock: Clock,
    pub(super) trips: Times,
    pub(super) connects: Times,
    pub(super) connect_failures: Event,
    pub(super) retries: Event,
    closed: [Event; 4],
}

impl Counts {
    /// Those of the store whose names begin with this prefix; nothing is exported without one.
    pub(super) fn new(prefix: Option<&str>) -> Self {
        let labels = prefix.map(|prefix| vec![Label::new("prefix", prefix.to_owned())]);
        let event = |name: &'static str| {
            Event::new(labels.clone().map_or_else(Counter::noop, |labels| counter!(name, labels)))
        };
        let times = |name: &'static str| {
            let exported =
                labels.clone().map_or_else(metrics::Histogram::noop, |labels| histogram!(name, labels));
            Times::new(exported)
        };
        let closed = |reason: &'static str| {
            let with_reason = |mut labels: Vec<Label>| {
                labels.push(Label::from_static_parts("reason", reason));
                counter!("mcp_perf_redis_closed_total", labels)
            };
            Event::new(labels.clone().map_or_else(Counter::noop, with_reason))
        };
        Self {
            clock: Clock::system(),
            trips: times("mcp_perf_redis_trip_seconds"),
            connects: times("mcp_perf_redis_connect_seconds"),
            connect_failures: event("mcp_perf_redis_connect_failures_total"),
            retries: event("mcp_perf_redis_retries_total"),
            closed: ["lost", "silent", "replaced", "malformed"].map(closed),
        }
    }

    /// A connection ended, and why.
    pub(super) fn closed(&self, why: &Fault) {
        let reason = match why {
            Fault::Lost(Lost::Silent) => 1,
            Fault::Lost(Lost::Replaced) | Fault::Refused(_) => 2,
            Fault::Lost(Lost::NotRedis | Lost::TooLong) => 3,
            _ => 0,
        };
        self.closed[reason].add();
    }

    /// With what is so right now left out.
    pub(super) fn so_far(&self) -> Stats {
        let (trips, connects) = (self.trips.histogram.counted(), self.connects.histogram.counted());
        let [lost, silent, replaced, malformed] = self.closed.each_ref().map(Event::sum);
        Stats {
            trips: trips.total(),
            trip_p50: trips.percentile(0.5),
            trip_p99: trips.percentile(0.99),
            retries: self.retries.sum(),
            connects: connects.total(),
            connect_failures: self.connect_failures.sum(),
            connect_p50: connects.percentile(0.5),
            connect_p99: connects.percentile(0.99),
            closed: Closed { lost, silent, replaced, malformed },
            ..Stats::default()
        }
    }
}
