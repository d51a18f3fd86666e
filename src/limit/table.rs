//! The state of all keys in fixed memory: sets of eight slots, found by a keyed fingerprint.
//!
//! A slot is a fingerprint and a TAT. Looking up, granting and refusing take no lock: a grant is one
//! compare-and-swap on the TAT, a refusal loads only. Only a newcomer takes its set's lock, to choose whom to
//! replace: an empty slot, else one without debt (which loses nothing), else the one that would be free
//! soonest.
//!
//! A slot may change hands between the look at its fingerprint and the swap of its TAT. A newcomer clears the
//! fingerprint *before* it writes its TAT, so whoever reads a TAT and then finds the fingerprint still there
//! has read the TAT of its own key; and its swap, which names that TAT, fails once the newcomer's is there. A
//! swap that comes in between is lost together with the debt that is being forgiven. (Should the two TATs be
//! equal to the tick, the newcomer is charged once too often, which errs to the safe side.)

use super::gcra::{Emission, Ticks, Verdict};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

const WAYS: usize = if cfg!(mcp_perf_loom) { 1 } else { 8 };
/// An empty slot. No key has this fingerprint.
const EMPTY: u64 = 0;
const LOCKS: usize = if cfg!(mcp_perf_loom) { 1 } else { 64 };

/// Two cache lines: one to find the key, one to charge it.
#[repr(align(128))]
struct Set {
    fingerprints: [AtomicU64; WAYS],
    tats: [AtomicU64; WAYS],
}

pub(super) struct Table {
    sets: Box<[Set]>,
    locks: [Mutex<()>; LOCKS],
    /// Debt let go when a key was replaced, in ticks.
    forgiven: AtomicU64,
}

/// A key of one policy: 64 bits of a keyed hash, never [`EMPTY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub(super) fn new(hash: u64) -> Self {
        Self(if hash == EMPTY { 1 } else { hash })
    }

    /// Where the key is if it had the choice. Told by bits that do not tell the set.
    #[inline]
    fn first_way(self) -> usize {
        (self.0 >> 61) as usize % WAYS
    }
}

impl Table {
    /// Room for at least `keys`.
    pub(super) fn new(keys: usize) -> Self {
        let sets = keys.div_ceil(WAYS).next_power_of_two();
        let zeros = || std::array::from_fn(|_| AtomicU64::new(EMPTY));
        Self {
            sets: (0..sets).map(|_| Set { fingerprints: zeros(), tats: zeros() }).collect(),
            locks: std::array::from_fn(|_| Mutex::new(())),
            forgiven: AtomicU64::new(0),
        }
    }

    /// The key's TAT; long ago if it has none.
    #[inline]
    pub(super) fn tat(&self, key: Fingerprint) -> Ticks {
        let (_, set) = self.set(key);
        loop {
            let Some(way) = set.find(key) else { return Ticks(0) };
            let tat = set.tats[way].load(Ordering::Acquire);
            if set.is_still(way, key) {
                return Ticks(tat);
            }
        }
    }

    /// Decides, and charges the key if that is allowed.
    #[inline]
    pub(super) fn charge(&self, key: Fingerprint, quota: Emission, cost: u64, now: Ticks) -> Verdict {
        let (index, set) = self.set(key);
        loop {
            let Some(way) = set.find(key) else {
                if let Some(verdict) = self.admit(index, set, key, quota, cost, now) {
                    return verdict;
                }
                continue;
            };
            let tat = set.tats[way].load(Ordering::Acquire);
            if !set.is_still(way, key) {
                continue;
            }
            let verdict = quota.decide(Ticks(tat), now, cost);
            let Verdict::Allow { tat: new } = verdict else { return verdict };
            let swap = set.tats[way].compare_exchange(tat, new.0, Ordering::AcqRel, Ordering::Relaxed);
            if swap.is_ok() {
                return verdict;
            }
        }
    }

    /// Gives back a charge that was granted, and after which the TAT was `charged`.
    ///
    /// Exact while the key keeps its slot (one that was replaced and came back is given one charge too much): if
    /// `now` has passed `charged`, the debt has run off by itself and there is nothing to give
    /// back; if not, nobody can have started over from a later time, so the charge is still in the sum.
    pub(super) fn refund(&self, key: Fingerprint, charge: Ticks, charged: Ticks, now: impl Fn() -> Ticks) {
        let (_, set) = self.set(key);
        loop {
            let Some(way) = set.find(key) else { return };
            let tat = set.tats[way].load(Ordering::Acquire);
            // After the TAT was read: up to here nobody has started over, and if somebody does from here on,
            // the swap fails.
            if now() >= charged {
                return;
            }
            let less = tat.saturating_sub(charge.0);
            if set.is_still(way, key)
                && set.tats[way].compare_exchange(tat, less, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                return;
            }
        }
    }

    /// Debt let go so far.
    pub(super) fn forgiven(&self) -> Ticks {
        Ticks(self.forgiven.load(Ordering::Relaxed))
    }

    /// Gives the key a slot and charges it; `None` if another thread did the former.
    #[cold]
    fn admit(
        &self,
        index: usize,
        set: &Set,
        key: Fingerprint,
        quota: Emission,
        cost: u64,
        now: Ticks,
    ) -> Option<Verdict> {
        let Verdict::Allow { tat } = quota.decide(Ticks(0), now, cost) else {
            // More than the burst: not worth a slot.
            return Some(Verdict::Never);
        };
        let _guard = lock(&self.locks[index % LOCKS]);
        if set.find(key).is_some() {
            return None;
        }
        let (way, debt) = set.least_indebted(key, now);
        let more = |forgiven: u64| Some(forgiven.saturating_add(debt));
        let _ = self.forgiven.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        set.fingerprints[way].store(EMPTY, Ordering::Release);
        // A swap, though nobody wants the old one: it has a place in the order of the others' swaps.
        set.tats[way].swap(tat.0, Ordering::AcqRel);
        set.fingerprints[way].store(key.0, Ordering::Release);
        Some(Verdict::Allow { tat })
    }

    #[inline]
    fn set(&self, key: Fingerprint) -> (usize, &Set) {
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
        let index = key.0 as usize & (self.sets.len() - 1);
        (index, &self.sets[index])
    }
}

impl Set {
    #[inline]
    fn find(&self, key: Fingerprint) -> Option<usize> {
        let first = key.first_way();
        if self.is_still(first, key) {
            return Some(first);
        }
        // All eight, and no branch until the end: which of the others it has is not to be predicted, and a wrong
        // guess costs more than looking at all.
        let mut found = 0_u32;
        for (way, slot) in self.fingerprints.iter().enumerate() {
            found |= u32::from(slot.load(Ordering::Acquire) == key.0) << way;
        }
        (found != 0).then(|| found.trailing_zeros() as usize)
    }

    #[inline]
    fn is_still(&self, way: usize, key: Fingerprint) -> bool {
        self.fingerprints[way].load(Ordering::Acquire) == key.0
    }

    /// Whom to replace, and how much debt that forgives.
    fn least_indebted(&self, key: Fingerprint, now: Ticks) -> (usize, u64) {
        // Of those that owe nothing an empty one: the others lose nothing, but would have to be admitted again.
        let rank = |way: usize| match self.fingerprints[way].load(Ordering::Acquire) {
            EMPTY => (0, false, way != key.first_way()),
            _ => {
                let debt = self.tats[way].load(Ordering::Acquire).saturating_sub(now.0);
                (debt, true, way != key.first_way())
            }
        };
        let (way, (debt, ..)) =
            (0..WAYS).map(|way| (way, rank(way))).min_by_key(|(_, rank)| *rank).unwrap_or_default();
        (way, debt)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn quota(burst: u64) -> Emission {
        Emission::new(1, Duration::from_secs(1), burst).unwrap()
    }

    fn allows(table: &Table, key: u64, quota: Emission, now: Ticks) -> bool {
        matches!(table.charge(Fingerprint::new(key), quota, 1, now), Verdict::Allow { .. })
    }

    #[test]
    fn flood_of_new_keys_does_not_free_a_throttled_one() {
        let (table, now) = (Table::new(8), Ticks(0));
        for _ in 0..10 {
            assert!(allows(&table, 1, quota(10), now));
        }
        for key in 2..100_000 {
            assert!(allows(&table, key, quota(10), now));
            assert!(!allows(&table, 1, quota(10), now), "freed by key {key}");
        }
    }

    #[test]
    fn key_without_debt_is_replaced_before_one_with_debt_and_nothing_is_forgiven() {
        let table = Table::new(8);
        let later = Ticks::from(crate::clock::Instant::from_nanos(1_500_000_000));
        for key in 1..=7 {
            allows(&table, key, quota(3), Ticks(0));
            allows(&table, key, quota(3), Ticks(0));
        }
        allows(&table, 8, quota(3), Ticks(0));
        assert!(allows(&table, 9, quota(3), later));
        assert_eq!(table.tat(Fingerprint::new(8)), Ticks(0));
        assert_eq!(table.forgiven(), Ticks(0));
        allows(&table, 10, quota(3), later);
        assert!(table.forgiven() > Ticks(0));
    }

    #[test]
    fn newcomer_takes_an_empty_slot_before_one_without_debt() {
        let table = Table::new(8);
        for key in 1..=8 {
            // By then the ones before it owe nothing.
            let now = Ticks::from(crate::clock::Instant::from_nanos(key * 10_000_000_000));
            assert!(allows(&table, key, quota(1), now));
        }
        let is_there = |key| table.set(Fingerprint::new(key)).1.find(Fingerprint::new(key)).is_some();
        assert!((1..=8).all(is_there));
    }

    #[test]
    fn threads_together_get_the_burst_and_no_more() {
        let table = Table::new(64);
        let granted: usize = std::thread::scope(|scope| {
            let count = || (0..1_000).filter(|_| allows(&table, 7, quota(500), Ticks(0))).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 500);
    }

    #[test]
    fn refund_that_comes_late_does_not_cut_into_the_debt_of_those_who_started_over() {
        let (table, key, quota) = (Table::new(8), Fingerprint::new(1), quota(5));
        let later = Ticks::from(crate::clock::Instant::from_nanos(6_000_000_000));
        let Verdict::Allow { tat } = table.charge(key, quota, 5, Ticks(0)) else { panic!() };
        assert!(matches!(table.charge(key, quota, 5, later), Verdict::Allow { .. }));
        table.refund(key, quota.charge(5), tat, || later);
        assert!(!allows(&table, 1, quota, later), "five at one instant, with a burst of five");
    }

    #[test]
    fn refund_gives_back_what_was_charged_and_never_more() {
        let (table, key, quota) = (Table::new(8), Fingerprint::new(1), quota(5));
        let Verdict::Allow { tat } = table.charge(key, quota, 3, Ticks(0)) else { panic!() };
        table.refund(key, quota.charge(3), tat, || Ticks(0));
        assert_eq!(table.tat(key), Ticks(0));
        let Verdict::Allow { tat } = table.charge(key, quota, 3, Ticks(0)) else { panic!() };
        // The debt has run off, and somebody has started over from a later time.
        let later = Ticks(tat.0 + 1);
        table.charge(key, quota, 1, later);
        let before = table.tat(key);
        table.refund(key, quota.charge(3), tat, || later);
        assert_eq!(table.tat(key), before);
    }
}

#[cfg(all(test, mcp_perf_loom))]
mod model {
    use std::{sync::Arc, time::Duration};

    use super::*;

    #[test]
    fn no_interleaving_grants_more_than_the_burst() {
        loom::model(|| {
            let table = Arc::new(Table::new(8));
            let quota = Emission::new(1, Duration::from_secs(1), 2).unwrap();
            let charge = move |table: &Table| {
                matches!(table.charge(Fingerprint::new(1), quota, 1, Ticks(0)), Verdict::Allow { .. })
            };
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let table = Arc::clone(&table);
                    loom::thread::spawn(move || usize::from(charge(&table)) + usize::from(charge(&table)))
                })
                .collect();
            let granted: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert_eq!(granted, 2);
        });
    }

    /// Two keys and one slot: whoever has it at the end owes what it was charged, and nothing of the other's.
    #[test]
    fn no_interleaving_charges_one_key_for_another() {
        loom::model(|| {
            let table = Arc::new(Table::new(1));
            let quota = Emission::new(1, Duration::from_secs(1), 9).unwrap();
            let charge = move |table: &Table, key| table.charge(Fingerprint::new(key), quota, key, Ticks(0));
            charge(&table, 1);
            let other = loom::thread::spawn({
                let table = Arc::clone(&table);
                move || charge(&table, 1)
            });
            charge(&table, 3);
            other.join().unwrap();
            let (one, three) = (table.tat(Fingerprint::new(1)), table.tat(Fingerprint::new(3)));
            let owed = [quota.charge(1), quota.charge(2), quota.charge(3)];
            assert!(one == Ticks(0) || three == Ticks(0));
            assert!(one == Ticks(0) || owed[..2].contains(&one), "{one:?}");
            assert!(three == Ticks(0) || three == owed[2], "{three:?}");
        });
    }
}
