//! Events and times that are counted for `stats()` and for an exporter alike.

#[cfg(any(feature = "pool", feature = "redis"))]
use std::time::Duration;

use crate::stripe::Counter;
#[cfg(any(feature = "pool", feature = "redis"))]
use crate::timing::histogram::Histogram;

/// One kind of event: counted here, and for the `metrics` recorder that was installed when its owner
/// was built.
pub(crate) struct Event {
    count: Counter,
    exported: metrics::Counter,
}

impl Event {
    pub(crate) fn new(exported: metrics::Counter) -> Self {
        Self { count: Counter::default(), exported }
    }

    #[inline]
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    #[inline]
    pub(crate) fn add_many(&self, count: u64) {
        self.count.add(count);
        self.exported.increment(count);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.count.sum()
    }
}

/// How long something took, again and again: counted here and exported as an [`Event`] is.
#[cfg(any(feature = "pool", feature = "redis"))]
pub(crate) struct Times {
    pub(crate) histogram: Histogram,
    exported: metrics::Histogram,
}

#[cfg(any(feature = "pool", feature = "redis"))]
impl Times {
    pub(crate) fn new(exported: metrics::Histogram) -> Self {
        Self { histogram: Histogram::new(), exported }
    }

    #[inline]
    pub(crate) fn record(&self, took: Duration) {
        self.histogram.record(took);
        self.exported.record(took);
    }
}
