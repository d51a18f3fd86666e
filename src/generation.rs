//! When every connection has to go.

use std::time::Duration;

use crate::{
    clock::{Clock, Instant},
    sync::{AtomicU64, Mutex, Ordering, lock},
};

/// How often connections are given up because the server refuses to write. Where it always does, a program that
/// writes in spite of it would do nothing but connect.
const READ_ONLY_PAUSE: Duration = Duration::from_secs(10);

/// Which connections are of today: those that were made since the server last went down or changed its part.
///
/// Raised once by however many connections notice the same thing, because only those of the current generation can.
#[derive(Debug)]
pub(crate) struct Generation {
    /// What the server is called in the log.
    server: &'static str,
    current: AtomicU64,
    /// The first generation after the server was last left for another one.
    left_by: AtomicU64,
    read_only: Mutex<Option<Instant>>,
    clock: Clock,
}

impl Generation {
    pub(crate) fn new(server: &'static str, clock: Clock) -> Self {
        let (current, left_by) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { server, current, left_by, read_only: Mutex::new(None), clock }
    }

    pub(crate) fn current(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// Whether connections of the generation `born` lead to a server that was left: it refused to write, or somebody
    /// said so.
    #[cfg(any(test, feature = "postgres"))]
    pub(crate) fn was_left(&self, born: u64) -> bool {
        born < self.left_by.load(Ordering::Acquire)
    }

    /// Gives up every connection that there is, for good: whatever they lead to, it is not to be counted on.
    #[cfg(feature = "postgres")]
    pub(crate) fn leave(&self) {
        let before = self.current.fetch_add(1, Ordering::AcqRel);
        self.left_by.fetch_max(before + 1, Ordering::AcqRel);
    }

    /// Gives up every connection of the generation `born`, unless that was done.
    #[cfg(any(test, feature = "postgres"))]
    pub(crate) fn retire(&self, born: u64) {
        let raised = self.current.compare_exchange(born, born + 1, Ordering::AcqRel, Ordering::Acquire);
        if raised.is_ok() {
            let server = self.server;
            tracing::info!(
                "{server}: the server goes down or ends connections; every connection is replaced"
            );
        }
    }

    /// The same because of a refusal to write, which may not help, and is not done again and again.
    pub(crate) fn retire_read_only(&self, born: u64) {
        let now = self.clock.now();
        let mut last = lock(&self.read_only);
        if last.is_some_and(|last| now.since(last) < READ_ONLY_PAUSE) {
            return;
        }
        let raised = self.current.compare_exchange(born, born + 1, Ordering::AcqRel, Ordering::Acquire);
        if raised.is_ok() {
            *last = Some(now);
            self.left_by.fetch_max(born + 1, Ordering::AcqRel);
            let server = self.server;
            tracing::warn!("{server}: the server refuses to write; every connection is replaced");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_notice_it_is_raised_once() {
        let generation = Generation::new("test", Clock::manual());
        generation.retire(0);
        generation.retire(0);
        assert_eq!(generation.current(), 1);
        generation.retire(1);
        assert_eq!(generation.current(), 2);
        assert!(!generation.was_left(0));
        generation.retire_read_only(2);
        assert_eq!([1, 2, 3].map(|born| generation.was_left(born)), [true, true, false]);
    }

    #[test]
    fn refusal_that_only_an_old_connection_heard_of_does_not_hide_the_next() {
        let generation = Generation::new("test", Clock::manual());
        generation.retire(0);
        generation.retire_read_only(0);
        assert_eq!(generation.current(), 1, "it is of the server that was left");
        generation.retire_read_only(1);
        assert_eq!(generation.current(), 2);
    }

    #[test]
    fn server_that_always_refuses_to_write_is_not_connected_to_without_end() {
        let clock = Clock::manual();
        let generation = Generation::new("test", clock.clone());
        for born in 0..100 {
            generation.retire_read_only(born);
        }
        assert_eq!(generation.current(), 1);
        clock.advance(READ_ONLY_PAUSE);
        generation.retire_read_only(1);
        assert_eq!(generation.current(), 2);
    }
}
