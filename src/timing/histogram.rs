//! A histogram of durations with a bounded relative error, that threads write without waiting.
//!
//! Log-linear, as HdrHistogram: each doubling of the value is cut into 16 buckets of equal width, so a bucket
//! is at most 1/16 of its lower edge wide. Values below 16 ns have a bucket each. 61 rows of 16 cover every
//! `u64`. Threads add to one of a few copies, with relaxed atomics; reading sums the copies.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::nanos,
    stripe::{self, STRIPES},
};

/// Buckets in a doubling, as a power of two.
const BITS: u32 = 4;
const ROW: usize = 1 << BITS;
const BUCKETS: usize = ROW * (64 - BITS as usize + 1);
/// A copy for each stripe of threads, made when the first thread of it records: a copy is 8 KiB.
pub(crate) struct Histogram([OnceLock<Box<Copy>>; STRIPES]);

struct Copy {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

/// The sum of the copies at about one moment.
pub(crate) struct Counted {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| OnceLock::new()))
    }

    #[inline]
    pub(crate) fn record(&self, duration: Duration) {
        let nanos = nanos(duration);
        let stripe = stripe::of_this_thread();
        let copy = self.0[stripe].get_or_init(Copy::new);
        stripe::add(&copy.counts[bucket(nanos)], stripe, 1);
        stripe::add(&copy.sum, stripe, nanos);
    }

    pub(crate) fn counted(&self) -> Counted {
        let mut counts = vec![0_u64; BUCKETS];
        for copy in self.copies() {
            for (count, of_copy) in counts.iter_mut().zip(&copy.counts) {
                *count += of_copy.load(Ordering::Relaxed);
            }
        }
        let sum = self.copies().fold(0_u64, |sum, copy| sum.saturating_add(copy.sum.load(Ordering::Relaxed)));
        Counted { total: counts.iter().sum(), counts, sum }
    }

    fn copies(&self) -> impl Iterator<Item = &Copy> {
        self.0.iter().filter_map(OnceLock::get).map(|copy| &**copy)
    }
}

impl Copy {
    #[cold]
    fn new() -> Box<Self> {
        Box::new(Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) })
    }
}

impl Counted {
    /// What came since `earlier` was counted, of the same histogram.
    #[cfg(feature = "pool")]
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts);
        Self {
            counts: counts.map(|(now, then)| now.saturating_sub(*then)).collect(),
            total: self.total.saturating_sub(earlier.total),
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }

    /// How many values.
    #[cfg(any(feature = "pool", feature = "redis"))]
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum.checked_div(self.total).unwrap_or(0))
    }

    /// The mean of the logarithms, as a duration: what is typical, however long the longest are.
    #[cfg(feature = "pool")]
    #[expect(clippy::cast_precision_loss, reason = "a mean, of buckets")]
    pub(crate) fn geometric_mean(&self) -> Duration {
        if self.total == 0 {
            return Duration::ZERO;
        }
        let middle = |index: usize| {
            let below = index.checked_sub(1).map_or(0, upper_edge);
            (below as f64 + upper_edge(index) as f64) / 2.0
        };
        let logarithms = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let sum: f64 = logarithms.map(|(index, count)| *count as f64 * middle(index).max(1.0).ln()).sum();
        Duration::try_from_secs_f64((sum / self.total as f64).exp() / 1e9).unwrap_or_default()
    }

    /// How many values are longer than this, and their mean: to a bucket.
    #[cfg(feature = "pool")]
    #[expect(clippy::cast_precision_loss, reason = "a mean, of buckets")]
    pub(crate) fn longer_than(&self, duration: Duration) -> (u64, Duration) {
        let first = bucket(nanos(duration)) + 1;
        let longer = || self.counts.iter().enumerate().skip(first).filter(|(_, count)| **count > 0);
        let count = longer().map(|(_, count)| count).sum::<u64>();
        let middle = |index: usize| f64::midpoint(upper_edge(index - 1) as f64, upper_edge(index) as f64);
        let sum: f64 = longer().map(|(index, count)| *count as f64 * middle(index)).sum();
        (count, Duration::try_from_secs_f64(sum / (count as f64).max(1.0) / 1e9).unwrap_or_default())
    }

    /// The smallest bucket edge that at least this share of the values is not above. `share` in 0..=1.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank; off by one in 2^53 is as good"
    )]
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_edge(index));
            }
        }
        Duration::ZERO
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "shifted until it fits in a byte")]
fn bucket(value: u64) -> usize {
    // Small values have row 0 to themselves; a larger one is shifted until five bits are left of it.
    let shift = (63 - (value | ROW as u64).leading_zeros()) - BITS;
    let row = shift as usize + usize::from(value >= ROW as u64);
    row * ROW + (value >> shift) as usize % ROW
}

/// The largest value of a bucket.
#[expect(clippy::cast_possible_truncation, reason = "the last edge less one is `u64::MAX`")]
fn upper_edge(bucket: usize) -> u64 {
    let (row, within) = (bucket / ROW, bucket % ROW);
    match row.checked_sub(1) {
        None => within as u64,
        Some(shift) => ((((ROW + within + 1) as u128) << shift) - 1) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_no_wider_than_a_sixteenth() {
        let values = (0..200_u64).chain((0..64).flat_map(|bit| {
            let power = 1_u64 << bit;
            [power.saturating_sub(1), power, power.saturating_add(1), power.saturating_add(power / 3)]
        }));
        for value in values.chain([u64::MAX]) {
            let edge = upper_edge(bucket(value));
            assert!(edge >= value, "{value}: {edge}");
            assert!(edge - value <= value / 16, "{value}: {edge}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper_edge(index)), index);
            assert_eq!(bucket(upper_edge(index) + 1), index + 1);
        }
    }

    #[test]
    fn percentiles_are_at_most_a_sixteenth_above_the_true_ones() {
        let histogram = Histogram::new();
        let mut random = fastrand::Rng::with_seed(3);
        let mut values: Vec<u64> = (0..10_000).map(|_| random.u64(..) >> random.u32(10..60)).collect();
        values.iter().for_each(|value| histogram.record(Duration::from_nanos(*value)));
        values.sort_unstable();
        let counted = histogram.counted();
        for (share, rank) in [(0.5, 5_000), (0.95, 9_500), (0.99, 9_900), (1.0, 10_000)] {
            let (told, exact) = (nanos(counted.percentile(share)), values[rank - 1]);
            assert!(told >= exact && told - exact <= exact / 16, "{share}: {told} for {exact}");
        }
    }

    #[test]
    fn empty_histogram_says_zero() {
        let counted = Histogram::new().counted();
        assert_eq!(
            (counted.total, counted.mean(), counted.percentile(0.99)),
            (0, Duration::ZERO, Duration::ZERO)
        );
    }
}
