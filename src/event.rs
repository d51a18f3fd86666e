//! Events that are counted for `stats()` and for an exporter alike.

use crate::stripe::Counter;

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
