//! The queue of [write-behind](super::write_behind): the last value of each key, in the order in which they are to be
//! written, and when one is tried again that failed.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Key, key::StoredKey, write::Unwritten};

pub(super) struct Queue<V> {
    /// What is not written yet, what is being written included.
    pub(super) pending: HashMap<StoredKey, Pending<V>>,
    /// The keys that are to be written, each once, the oldest first.
    pub(super) order: VecDeque<StoredKey>,
    /// Whether the task that writes is running.
    pub(super) is_running: bool,
    pub(super) is_closed: bool,
}

pub(super) struct Pending<V> {
    pub(super) value: V,
    pub(super) tags: Arc<[String]>,
    /// Of the value: it may be overwritten while it is being written.
    pub(super) number: u64,
    pub(super) failures: u32,
    /// By the runtime's time, as the pauses.
    pub(super) not_before: Option<Instant>,
    /// Whether the cache has it.
    pub(super) is_stored: bool,
}

/// What is being written.
pub(super) struct Taken<V> {
    pub(super) key: StoredKey,
    pub(super) value: V,
    pub(super) tags: Arc<[String]>,
    pub(super) number: u64,
    /// Whether it failed before, and is alone.
    pub(super) has_failed: bool,
}

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl<V: Clone> Queue<V> {
    pub(super) fn new() -> Self {
        let (pending, order) = (HashMap::new(), VecDeque::new());
        Self { pending, order, is_running: false, is_closed: false }
    }

    /// Returns whether there was room.
    pub(super) fn push(&mut self, key: &Key<'_>, value: V, tags: Arc<[String]>, capacity: usize) -> bool {
        let key = StoredKey::from(key);
        if let Some(pending) = self.pending.get_mut(&key) {
            let is_being_written = pending.number % 2 == 1;
            pending.value = value;
            pending.tags = tags;
            pending.is_stored = false;
            // Even: not being written. Another number: what is being written is another value.
            pending.number += if is_being_written { 1 } else { 2 };
            if is_being_written {
                self.order.push_back(key);
            }
            return true;
        }
        if self.pending.len() >= capacity {
            return false;
        }
        let pending = Pending { value, tags, number: 0, failures: 0, not_before: None, is_stored: false };
        self.pending.insert(key.clone(), pending);
        self.order.push_back(key);
        true
    }

    /// Takes no more, and puts off nothing that is there.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.pending.values_mut().for_each(|pending| pending.not_before = None);
    }

    /// The longest pause after a failure.
    pub(super) fn longest_pause(&self) -> Duration {
        if self.is_closed { FIRST_PAUSE } else { LONGEST_PAUSE }
    }

    /// Whether there is no reason to wait for more.
    pub(super) fn has_enough(&self, most: usize) -> bool {
        self.is_closed
            || self.order.len() >= most
            || self.pending.values().any(|pending| pending.failures > 0)
    }

    /// The next batch; whoever failed before goes alone.
    pub(super) fn take(&mut self, most: usize, now: Instant) -> Vec<Taken<V>> {
        let mut batch = Vec::new();
        for _ in 0..self.order.len() {
            let Some(key) = self.order.pop_front() else { break };
            let Some(pending) = self.pending.get_mut(&key) else { continue };
            let goes_alone = pending.failures > 0;
            if pending.not_before > Some(now) || (goes_alone && !batch.is_empty()) {
                self.order.push_back(key);
                continue;
            }
            pending.number += 1;
            let (value, tags) = (pending.value.clone(), Arc::clone(&pending.tags));
            batch.push(Taken { key, value, tags, number: pending.number, has_failed: goes_alone });
            if goes_alone || batch.len() >= most {
                break;
            }
        }
        batch
    }

    /// Takes note of how a batch went; returns what was written and is the last value still. That is pending until
    /// it is [settled](Self::settled).
    pub(super) fn done(
        &mut self,
        batch: Vec<(Taken<V>, Unwritten<V>)>,
        is_written: bool,
        now: Instant,
    ) -> Vec<(Taken<V>, Unwritten<V>)> {
        let mut written = Vec::new();
        let longest = self.longest_pause();
        for (taken, before) in batch {
            let Some(pending) = self.pending.get_mut(&taken.key) else { continue };
            let is_last = pending.number == taken.number;
            if is_written && is_last {
                written.push((taken, before));
            } else if is_written {
                pending.failures = 0;
            } else {
                pending.failures = pending.failures.saturating_add(1);
                // The first time it may have been another's fault.
                let pause =
                    if pending.failures == 1 { Duration::ZERO } else { pause(pending.failures, longest) };
                pending.not_before = Some(now + pause);
                if is_last {
                    pending.number += 1;
                    self.order.push_back(taken.key);
                }
            }
        }
        written
    }

    /// What was being written is to be written again: nobody knows how it went.
    pub(super) fn interrupted(&mut self) {
        for (key, pending) in self.pending.iter_mut().filter(|(_, pending)| pending.number % 2 == 1) {
            pending.number += 1;
            pending.failures = pending.failures.max(1);
            self.order.push_back(key.clone());
        }
    }

    /// Forgets a value that was written, if it is the last one still.
    pub(super) fn settled(&mut self, key: &StoredKey, number: u64) {
        match self.pending.get_mut(key) {
            Some(pending) if pending.number == number => drop(self.pending.remove(key)),
            Some(pending) => pending.failures = 0,
            None => {}
        }
    }
}

/// The pause after so many failures in a row.
pub(super) fn pause(failures: u32, longest: Duration) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest)
}
