//! Tags: one word that invalidates every entry that carries it.
//!
//! A tag has a *stamp*, a random number that changes whenever the tag is removed. A load notes the
//! stamps of its tags **before** it reads anything, the entry keeps them, and the entry is valid only
//! while every stamp is still the one it saw. Equality of nonces, not order of times: no clock of any
//! machine takes part, two removals in one tick differ, and a stamp that was lost comes back as a new
//! one, which errs to the safe side.
//!
//! In the process a stamp is a version, a number in a shared [`Cell`], so a check is one atomic load per tag.
//! Behind it stands the nonce of the remote tier, as last seen. A version changes when the tag is
//! removed here *or* when the remote nonce turns out to be another one; it never returns to an old
//! number, so what was invalidated once stays so, whatever the remote tier says later.
//!
//! The whole cache is a tag as well, the [`Epoch`]: clearing is removing it.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::sync::{Mutex, lock};

/// A tag's nonce in the remote tier.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// A new one, that no entry carries.
    #[must_use]
    pub fn random() -> Self {
        Self(fastrand::u64(1..))
    }

    /// As written to the remote tier.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// As read from the remote tier.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamp({:016x})", self.0)
    }
}

/// A tag's state in this process.
#[derive(Default)]
pub(crate) struct Cell {
    version: AtomicU64,
    /// How often it was removed here. Unlike the version it does not change when the remote tier is merely
    /// found to say something else.
    removals: AtomicU64,
    /// The remote nonce that goes with the version; `None` until the remote tier was asked.
    /// The lock is held for every change of the version, so that the two are read as a pair.
    remote: Mutex<Option<Stamp>>,
}

/// The cell that every entry of a cache depends on.
pub(crate) type Epoch = Arc<Cell>;

impl Cell {
    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The state to note before a value is read.
    pub(crate) fn capture(&self) -> (u64, Option<Stamp>) {
        let remote = lock(&self.remote);
        (self.version(), *remote)
    }

    /// Invalidates what depends on the cell; `stamp` is what the remote tier is being told.
    pub(crate) fn bump(&self, stamp: Option<Stamp>) {
        let mut remote = lock(&self.remote);
        self.version.fetch_add(1, Ordering::AcqRel);
        self.removals.fetch_add(1, Ordering::AcqRel);
        *remote = stamp;
    }

    fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Takes note of the nonce that the remote tier gave in answer to a question asked when the cell
    /// was at version `asked_at`, and returns the state to go on with.
    ///
    /// An answer older than a removal of our own is ignored: the load has not begun yet, so the state
    /// after the removal is the right one to note.
    pub(crate) fn observe(&self, asked_at: u64, answer: Stamp) -> (u64, Option<Stamp>) {
        let mut remote = lock(&self.remote);
        if self.version() == asked_at && *remote != Some(answer) {
            self.version.fetch_add(1, Ordering::AcqRel);
            *remote = Some(answer);
        }
        (self.version(), *remote)
    }
}

/// The stamps that a load saw before it read anything.
#[derive(Clone)]
pub(crate) struct Seen {
    epoch: u64,
    tags: Option<Arc<[Version]>>,
}

/// A tag and the version of it that was seen.
type Version = (Arc<Cell>, u64);

impl Seen {
    pub(crate) fn new(epoch: u64, tags: Vec<Version>) -> Self {
        Self { epoch, tags: (!tags.is_empty()).then(|| tags.into()) }
    }

    #[inline]
    pub(crate) fn still_holds(&self, epoch: &Epoch) -> bool {
        self.epoch == epoch.version()
            && self.tags.as_ref().is_none_or(|tags| tags.iter().all(|(cell, seen)| cell.version() == *seen))
    }
}

/// How often the cache and a load's tags had been removed here when the load began. Who asks after a later
/// removal must not be given what that load returns.
pub(crate) struct Began {
    epoch: u64,
    tags: Box<[Version]>,
}

impl Began {
    pub(crate) fn now<'a>(epoch: &Epoch, tags: impl Iterator<Item = &'a Arc<Cell>>) -> Self {
        Self { epoch: epoch.removals(), tags: tags.map(|cell| (Arc::clone(cell), cell.removals())).collect() }
    }

    pub(crate) fn is_current(&self, epoch: &Epoch) -> bool {
        self.epoch == epoch.removals() && self.tags.iter().all(|(cell, began)| cell.removals() == *began)
    }
}

/// The cells of the tags in use.
///
/// Bounded by use: a cell that no entry and no running load holds is forgotten when the table has
/// doubled since the last sweep. Nothing depends on such a cell, so a fresh one may take its place.
#[derive(Default)]
pub(crate) struct Tags(Mutex<Table>);

#[derive(Default)]
struct Table {
    cells: HashMap<Box<str>, Arc<Cell>, foldhash::fast::RandomState>,
    sweep_at: usize,
}

/// Below this many cells the table is never swept.
const SWEEP_FROM: usize = 1024;

impl Tags {
    /// The cell of a tag, made if need be.
    pub(crate) fn cell(&self, tag: &str) -> Arc<Cell> {
        let mut table = lock(&self.0);
        if let Some(cell) = table.cells.get(tag) {
            return Arc::clone(cell);
        }
        if table.cells.len() >= table.sweep_at.max(SWEEP_FROM) {
            table.cells.retain(|_, cell| Arc::strong_count(cell) > 1);
            table.sweep_at = 2 * table.cells.len();
        }
        let cell = Arc::<Cell>::default();
        table.cells.insert(tag.into(), Arc::clone(&cell));
        cell
    }

    /// The cell of a tag if anything may depend on it.
    pub(crate) fn known(&self, tag: &str) -> Option<Arc<Cell>> {
        lock(&self.0).cells.get(tag).cloned()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.0).cells.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_valid_until_its_tag_or_the_epoch_is_bumped() {
        let (epoch, cell) = (Epoch::default(), Arc::<Cell>::default());
        let seen = || Seen::new(epoch.capture().0, vec![(Arc::clone(&cell), cell.capture().0)]);
        let (first, second) = (seen(), seen());
        cell.bump(None);
        assert!(!first.still_holds(&epoch));
        let third = seen();
        assert!(third.still_holds(&epoch) && !second.still_holds(&epoch));
        epoch.bump(None);
        assert!(!third.still_holds(&epoch));
    }

    #[test]
    fn answer_older_than_our_own_removal_is_ignored() {
        let cell = Cell::default();
        let (asked_at, _) = cell.capture();
        let ours = Stamp::random();
        cell.bump(Some(ours));
        assert_eq!(cell.observe(asked_at, Stamp::random()).1, Some(ours));
    }

    #[test]
    fn remote_nonce_that_changed_and_changed_back_does_not_revive() {
        let (epoch, cell) = (Epoch::default(), Arc::<Cell>::default());
        let (first, second) = (Stamp::random(), Stamp::random());
        let (version, _) = cell.observe(cell.capture().0, first);
        let seen = Seen::new(epoch.capture().0, vec![(Arc::clone(&cell), version)]);
        cell.observe(cell.capture().0, first);
        assert!(seen.still_holds(&epoch));
        cell.observe(cell.capture().0, second);
        cell.observe(cell.capture().0, first);
        assert!(!seen.still_holds(&epoch));
    }

    #[test]
    fn table_forgets_the_cells_that_nothing_depends_on() {
        let tags = Tags::default();
        let kept: Vec<_> = (0..10).map(|index| tags.cell(&format!("kept {index}"))).collect();
        for index in 0..100 * SWEEP_FROM {
            tags.cell(&format!("gone {index}"));
        }
        assert!(tags.len() <= 2 * SWEEP_FROM);
        for (index, cell) in kept.iter().enumerate() {
            assert!(Arc::ptr_eq(cell, &tags.cell(&format!("kept {index}"))));
        }
    }
}
