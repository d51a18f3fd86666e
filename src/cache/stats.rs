//! What a cache counts.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use metrics::{Label, counter, gauge};

use super::availability::RemoteStatus;
use crate::{event::Event, stripe::Counter};

/// What a [`Cache`](super::Cache) did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Answered from the process's own memory.
    pub hits: u64,
    /// Answered with a stale value, because the load was slow or had failed, or runs behind the answer. Not among
    /// the hits; those who waited first are among the misses.
    pub stale_hits: u64,
    /// Answered from memory with "there is no such value".
    pub negative_hits: u64,
    /// Not in memory. Each became a remote hit, a load, a wait for somebody else's, or nothing.
    pub misses: u64,
    /// Misses that waited for a load that was running already.
    pub joined: u64,
    /// Loads that were not begun, or later, because another process was loading the key: where
    /// [loads are shared](super::RemoteCacheBuilder::share_loads).
    pub awaited: u64,
    /// Calls answered with the error of a load that failed a moment before.
    pub throttled: u64,
    /// Loaders that ran.
    pub loads: u64,
    /// Loads that nobody waited for: of a value again ahead of its end, or behind a stale answer. Those are counted, too,
    /// that ended before their loader ran, since another process had been earlier; of loads of many, each key.
    pub refreshes: u64,
    /// Loaders that failed, panicked or took too long; and of loads of many that did not, the keys that failed.
    pub load_failures: u64,
    /// Loads that were dropped, begun or not, because all who waited for them had gone: where
    /// [that is wanted](super::CacheBuilder::drop_abandoned_loads).
    pub abandoned: u64,
    /// What loading all that was answered from memory would have taken, by how long each value's load had taken.
    pub saved_load_time: Duration,
    /// Loaded values that were not stored, because the key was invalidated meanwhile; or any tag, where the loader
    /// [chose tags](super::CacheBuilder::loader_tags).
    pub fenced: u64,
    /// Fresh in the remote tier, when that was asked: by those who missed, and by loads ahead.
    pub remote_hits: u64,
    /// Large values of which the remote tier said that it has what memory has: they were asked about, and not read
    /// again.
    pub remote_unchanged: u64,
    /// Not in the remote tier, or not fit to be served.
    pub remote_misses: u64,
    /// Entries, among those misses, that were there and could not be read: damaged, of another key, codec or schema,
    /// larger than [`max_value`](super::RemoteCacheBuilder::max_value), or not what the codec takes. A few while
    /// releases of different schemas run side by side are to be expected; many mean that programs share a name.
    pub remote_unreadable: u64,
    /// Calls to the remote tier that failed, timed out, or were not made because it is away, refuses writes, or was not
    /// told of an invalidation yet.
    pub remote_failures: u64,
    /// Whether the remote tier is used.
    pub remote_status: RemoteStatus,
    /// How often it was found to be away.
    pub remote_outages: u64,
    /// Invalidations that the remote tier could not be told, and is to be told yet: one for each key or tag, and one
    /// for all tags where loaders choose them. What they concern is not asked for there. A number that stays above zero
    /// while the tier is up means that it refuses them.
    pub owed: usize,
    /// Entries in memory, those counted that died and are not yet gone.
    pub len: u64,
    /// What the entries in memory take up: bytes where the capacity is in bytes, else as `len`.
    pub weight: u64,
    /// Loads running now, those counted that wait for the remote tier or for their turn.
    pub loading: usize,
    /// Loads, among those, that wait until fewer than [`max_loads`](super::CacheBuilder::max_loads) run.
    pub queued: usize,
    /// Of the bus; all zero without one.
    pub bus: BusStats,
    /// Of the stale answers, those that are misses as well.
    pub(super) stale_misses: u64,
}

/// What the bus of a [`Cache`](super::Cache) did since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusStats {
    /// Whether it delivers: something was heard since the cache subscribed last.
    pub connected: bool,
    /// Messages published, each with what was invalidated at about the same time.
    pub sent: u64,
    /// Messages that could not be published. Other processes find out by the remote tier.
    pub unsent: u64,
    /// Messages heard, our own among them.
    pub received: u64,
    /// How often something was found to have been invalidated and not heard of, so that what is remembered had to
    /// be looked up again.
    pub gaps: u64,
    /// How often another process said that it invalidated what cannot be named, with the same consequence.
    pub doubts: u64,
}

impl Stats {
    /// Hits of both tiers in all look-ups; `None` before the first.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn hit_rate(&self) -> Option<f64> {
        let answered = self.hits + self.stale_hits + self.negative_hits;
        let looked_up = (answered + self.misses).saturating_sub(self.stale_misses);
        // A load ahead looks into the remote tier, too, and nobody has missed anything.
        (looked_up > 0).then(|| ((answered + self.remote_hits) as f64 / looked_up as f64).min(1.0))
    }
}

/// The events of one cache.
pub(super) struct Events {
    pub(super) hits: Event,
    pub(super) stale_hits: Event,
    pub(super) stale_misses: Counter,
    pub(super) negative_hits: Event,
    pub(super) saved_micros: Event,
    pub(super) misses: Event,
    pub(super) joined: Event,
    pub(super) awaited: Event,
    pub(super) throttled: Event,
    pub(super) loads: Event,
    pub(super) refreshes: Event,
    pub(super) load_failures: Event,
    pub(super) abandoned: Event,
    pub(super) fenced: Event,
    pub(super) remote_hits: Event,
    pub(super) remote_unchanged: Event,
    pub(super) remote_misses: Event,
    pub(super) remote_unreadable: Event,
    pub(super) remote_failures: Event,
}

impl Events {
    pub(super) fn new(cache: &str) -> Self {
        let labels = vec![Label::new("cache", cache.to_owned())];
        let event = |name: &'static str| Event::new(counter!(name, labels.clone()));
        Self {
            hits: event("mcp_perf_cache_hits_total"),
            stale_hits: event("mcp_perf_cache_stale_hits_total"),
            stale_misses: Counter::default(),
            negative_hits: event("mcp_perf_cache_negative_hits_total"),
            saved_micros: event("mcp_perf_cache_saved_load_microseconds_total"),
            misses: event("mcp_perf_cache_misses_total"),
            joined: event("mcp_perf_cache_joined_total"),
            awaited: event("mcp_perf_cache_awaited_total"),
            throttled: event("mcp_perf_cache_throttled_total"),
            loads: event("mcp_perf_cache_loads_total"),
            refreshes: event("mcp_perf_cache_refreshes_total"),
            load_failures: event("mcp_perf_cache_load_failures_total"),
            abandoned: event("mcp_perf_cache_abandoned_total"),
            fenced: event("mcp_perf_cache_fenced_total"),
            remote_hits: event("mcp_perf_cache_remote_hits_total"),
            remote_unchanged: event("mcp_perf_cache_remote_unchanged_total"),
            remote_misses: event("mcp_perf_cache_remote_misses_total"),
            remote_unreadable: event("mcp_perf_cache_remote_unreadable_total"),
            remote_failures: event("mcp_perf_cache_remote_failures_total"),
        }
    }
}

/// The events of one remote tier that are not of single calls.
pub(super) struct RemoteEvents {
    pub(super) outages: Event,
    up: metrics::Gauge,
    owed: metrics::Gauge,
}

impl RemoteEvents {
    pub(super) fn new(cache: &str) -> Self {
        let labels = vec![Label::new("cache", cache.to_owned())];
        let events = Self {
            outages: Event::new(counter!("mcp_perf_cache_remote_outages_total", labels.clone())),
            up: gauge!("mcp_perf_cache_remote_up", labels.clone()),
            owed: gauge!("mcp_perf_cache_owed", labels),
        };
        // Until the contrary is known.
        events.is_up(true);
        events
    }

    pub(super) fn is_up(&self, is_up: bool) {
        self.up.set(if is_up { 1.0 } else { 0.0 });
    }

    pub(super) fn owes(&self, debts: impl Fn() -> usize) {
        show(&self.owed, debts);
    }
}

/// Sets a gauge to what is counted, by a caller who holds no lock: an exporter is somebody else's code. Once more if
/// somebody else did so meanwhile, who may have counted later.
pub(super) fn show(gauge: &metrics::Gauge, count: impl Fn() -> usize) {
    let mut shown = count();
    loop {
        gauge.set(exact(shown));
        match count() {
            now if now == shown => return,
            now => shown = now,
        }
    }
}

/// The gauge of the loads that wait for their turn.
pub(super) fn queued_loads(cache: &str) -> metrics::Gauge {
    gauge!("mcp_perf_cache_queued", "cache" => cache.to_owned())
}

/// The gauge of the keys that wait to be written behind the cache.
pub(super) fn queued_writes(cache: &str) -> metrics::Gauge {
    gauge!("mcp_perf_cache_write_behind_queued", "cache" => cache.to_owned())
}

/// As a gauge wants it.
#[expect(clippy::cast_precision_loss, reason = "nobody has as many as that")]
pub(super) fn exact(number: usize) -> f64 {
    number as f64
}

/// The events of one bus.
pub(super) struct BusEvents {
    pub(super) sent: Event,
    pub(super) unsent: Event,
    pub(super) received: Event,
    pub(super) gaps: Event,
    pub(super) doubts: Event,
    is_connected: AtomicBool,
    connected: metrics::Gauge,
}

impl BusEvents {
    pub(super) fn new(cache: &str) -> Self {
        let labels = vec![Label::new("cache", cache.to_owned())];
        let event = |name: &'static str| Event::new(counter!(name, labels.clone()));
        Self {
            sent: event("mcp_perf_cache_bus_sent_total"),
            unsent: event("mcp_perf_cache_bus_unsent_total"),
            received: event("mcp_perf_cache_bus_received_total"),
            gaps: event("mcp_perf_cache_bus_gaps_total"),
            doubts: event("mcp_perf_cache_bus_doubts_total"),
            is_connected: AtomicBool::new(false),
            connected: gauge!("mcp_perf_cache_bus_connected", labels.clone()),
        }
    }

    pub(super) fn connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
        self.connected.set(if is_connected { 1.0 } else { 0.0 });
    }

    pub(super) fn stats(&self) -> BusStats {
        BusStats {
            connected: self.is_connected.load(Ordering::Relaxed),
            sent: self.sent.sum(),
            unsent: self.unsent.sum(),
            received: self.received.sum(),
            gaps: self.gaps.sum(),
            doubts: self.doubts.sum(),
        }
    }
}
