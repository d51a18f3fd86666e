//! What happened since the last time.

use std::{sync::atomic::Ordering, time::Duration};

use bb8::ManageConnection;

use super::{shared::Shared, sizing::Sample};
use crate::{clock::Instant, timing::histogram::Counted};

/// What was counted when the last sample was taken.
pub(super) struct Sampler {
    began: Instant,
    holds: Counted,
    waits: Counted,
    own_waits: Counted,
    timeouts: u64,
    /// For other reasons than the next field's.
    connect_failures: u64,
    refusals: u64,
}

impl Sampler {
    pub(super) fn new<M: ManageConnection>(shared: &Shared<M>) -> Self {
        Self::at(shared, shared.clock.now())
    }

    fn at<M: ManageConnection>(shared: &Shared<M>, began: Instant) -> Self {
        let recorded = &shared.recorded;
        Self {
            began,
            holds: recorded.holds.histogram.counted(),
            waits: recorded.waits.histogram.counted(),
            own_waits: recorded.own_waits.counted(),
            timeouts: recorded.timeouts.sum(),
            connect_failures: recorded.other_failures.load(Ordering::Relaxed),
            refusals: recorded.refusals.load(Ordering::Relaxed),
        }
    }

    /// How long it has been taking samples.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.since(self.began)
    }

    pub(super) fn sample<M: ManageConnection>(&mut self, shared: &Shared<M>, now: Instant) -> Sample {
        let next = Self::at(shared, self.began);
        let (holds, waits) = (next.holds.since(&self.holds), next.waits.since(&self.waits));
        // Those would not be over sooner with more connections.
        let waits = waits.since(&next.own_waits.since(&self.own_waits));
        let hold_typical = holds.geometric_mean();
        let (slow, hold_slow) = holds.longer_than(hold_typical.saturating_mul(Sample::SLOW));
        let window = shared.gate.window(now);
        let count = shared.supply.count();
        let sample = Sample {
            window: window.length,
            completed: holds.total(),
            hold_typical,
            slow,
            hold_slow,
            hold_mixed: Duration::ZERO,
            hold_p50: holds.percentile(0.5),
            hold_p99: holds.percentile(0.99),
            wait_p50: waits.percentile(0.5),
            wait_p95: waits.percentile(0.95),
            wait_p99: waits.percentile(0.99),
            waiting: window.level.waiting,
            max_waiting: window.max_waiting,
            max_kept: window.max_kept,
            in_use_mean: window.in_use_mean,
            in_use_max: window.in_use_max,
            was_full: window.was_full,
            full_fraction: window.full_fraction,
            has_retreated: shared.gate.has_retreated(),
            target: window.level.target,
            open: count.idle + count.out,
            ceiling: shared.allowed.is_some().then(|| shared.ceiling()),
            timeouts: next.timeouts.saturating_sub(self.timeouts),
            connect_failures: next.connect_failures.saturating_sub(self.connect_failures),
            too_many_connections: next.refusals.saturating_sub(self.refusals),
        };
        *self = next;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "of a thousand, about")]
        let thousandths = (1_000.0 * (sample.in_use_mean / f64::from(sample.target.max(1))).min(1.0)) as u32;
        shared.watch.utilisation.store(thousandths, Ordering::Relaxed);
        sample
    }
}
