//! Tags: one word that invalidates every entry that carries it.
//!
//! A tag has a *stamp*, a random number that changes whenever the tag is removed. A load notes the
//! stamps of its tags **before** it reads anything, the entry keeps them, and the entry is valid only
//! while every stamp is still the one it saw. Equality of nonces, not order of times: no clock of any
//! machine takes part, two removals in one tick differ, and a stamp that was lost comes back as a new
//! one, which errs to the safe side. A tag can also be made to *expire*: what carries it is stale then, and
//! may be served where a stale value may. So a stamp is two nonces, and a version two numbers.
//!
//! In the process a stamp is a version, a number in a shared [`Cell`], so a check is one atomic load per tag.
//! Behind it stands the nonce of the remote tier, as last seen. A version changes when the tag is
//! removed here *or* when the remote nonce turns out to be another one; it never returns to an old
//! number, so what was invalidated once stays so, whatever the remote tier says later.
//!
//! The whole cache is a tag as well, the [`Epoch`]: clearing is removing it.
//!
//! Tags that a loader chooses are noted after its source was read, which takes more: see [`chosen`](super::chosen).

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use crate::{
    clock::Instant,
    sync::{Mutex, lock},
};

/// A tag's nonces in the remote tier: one that changes when what carries the tag is removed, and one that changes
/// when it is only made to expire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    removed: u64,
    expired: u64,
}

/// What an invalidation leaves of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "implementers of `Store` match it")]
pub enum Invalidation {
    /// It is stale: to be loaded anew, and to be served only where a stale one would be.
    Expire,
    /// Nothing.
    Remove,
}

/// Bytes of a [`Stamp`].
pub(crate) const STAMP: usize = 16;

impl Stamp {
    /// A new one, that no entry carries.
    #[must_use]
    pub fn random() -> Self {
        Self { removed: fastrand::u64(1..), expired: fastrand::u64(1..) }
    }

    /// As written to the remote tier: the half that removes, then the half that expires.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; STAMP];
        bytes[..8].copy_from_slice(&self.removed.to_le_bytes());
        bytes[8..].copy_from_slice(&self.expired.to_le_bytes());
        bytes
    }

    /// As read from the remote tier.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [removed, expired] = [0, 8].map(|from| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[from..from + 8]);
            u64::from_le_bytes(half)
        });
        Self { removed, expired }
    }

    /// What this stamp becomes by an invalidation with the nonces of `new`.
    #[must_use]
    pub fn after(self, invalidation: Invalidation, new: Self) -> Self {
        match invalidation {
            Invalidation::Remove => new,
            Invalidation::Expire => Self { removed: self.removed, expired: new.expired },
        }
    }

    /// Whether nothing was removed since `earlier`.
    pub(crate) fn has_not_removed(self, earlier: Self) -> bool {
        self.removed == earlier.removed
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamp({:016x}, {:016x})", self.removed, self.expired)
    }
}

/// A tag's state in this process.
#[derive(Default)]
pub(crate) struct Cell {
    /// What the tag is called; nothing, if it is none.
    name: Arc<str>,
    version: AtomicU64,
    /// The last version that took values away instead of only expiring them.
    removed_in: AtomicU64,
    /// How often it was removed here. Unlike the version it does not change when the remote tier is merely
    /// found to say something else.
    removals: AtomicU64,
    /// The remote nonce that goes with the version; `None` until the remote tier was asked.
    /// The lock is held for every change of the version, so that the two are read as a pair.
    remote: Mutex<Heard>,
    /// The same pair, for those who would not wait for the lock: good while its version is still the cell's.
    noted: ArcSwapOption<(Version, Option<Stamp>)>,
}

/// What the remote tier said of a tag.
#[derive(Clone, Copy, Default)]
struct Heard {
    stamp: Option<Stamp>,
    /// The half of it that removes, also where the other one is not known: another process made the tag expire, and
    /// told no nonce.
    removed: Option<u64>,
}

/// The cell that every entry of a cache depends on.
pub(crate) type Epoch = Arc<Cell>;

impl Cell {
    fn named(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    #[inline]
    fn version(&self) -> Version {
        Version(self.version.load(Ordering::Acquire))
    }

    /// The state to note before a value is read.
    pub(crate) fn capture(&self) -> (Version, Option<Stamp>) {
        if let Some(noted) = &*self.noted.load()
            && noted.0 == self.version()
        {
            return **noted;
        }
        let remote = lock(&self.remote);
        (self.version(), remote.stamp)
    }

    /// Whether nothing was removed since `seen`.
    fn is_left(&self, seen: Version) -> bool {
        seen >= Version(self.removed_in.load(Ordering::Acquire))
    }

    /// Goes on to another version, under the lock.
    fn advance(&self, removes: bool) {
        let next = self.version().0 + 1;
        if removes {
            self.removed_in.store(next, Ordering::Release);
        }
        self.version.store(next, Ordering::Release);
    }

    /// Invalidates what depends on the cell; `stamp` has the nonces that the remote tier is being told.
    pub(crate) fn bump(&self, invalidation: Invalidation, stamp: Option<Stamp>) {
        let mut remote = lock(&self.remote);
        self.advance(invalidation == Invalidation::Remove);
        self.removals.fetch_add(1, Ordering::AcqRel);
        *remote = match invalidation {
            Invalidation::Remove => Heard { stamp, removed: stamp.map(|stamp| stamp.removed) },
            // Of a half that was never heard nothing can be said.
            Invalidation::Expire => {
                let stamp = remote.stamp.zip(stamp).map(|(old, new)| old.after(invalidation, new));
                Heard { stamp, ..*remote }
            }
        };
        self.noted.store(Some(Arc::new((self.version(), remote.stamp))));
    }

    fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Takes note of the nonce that the remote tier gave in answer to a question asked when the cell
    /// was in the state `asked_in`, and returns the state to go on with.
    ///
    /// An answer older than a removal of our own is ignored: the load has not begun yet, so the state
    /// after the removal is the right one to note. But the nonce of that is not told: it may reach the remote tier
    /// after that of a later removal, and would then revive what had been stored with it. What is stored carries only
    /// what the remote tier has said.
    pub(crate) fn observe(
        &self,
        asked_in: (Version, Option<Stamp>),
        answer: Stamp,
    ) -> (Version, Option<Stamp>) {
        let (asked_at, known) = asked_in;
        // No news, which is what nearly every answer is: a nonce never changes without the version.
        if known == Some(answer) && self.version() == asked_at {
            return asked_in;
        }
        let mut remote = lock(&self.remote);
        if self.version() == asked_at && remote.stamp != Some(answer) {
            self.advance(remote.removed != Some(answer.removed));
            *remote = Heard { stamp: Some(answer), removed: Some(answer.removed) };
            self.noted.store(Some(Arc::new((self.version(), remote.stamp))));
        }
        (self.version(), remote.stamp.filter(|known| *known == answer))
    }
}

/// A cell's state as it was seen: how often it had changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u64);

/// A tag, and its state as it was seen.
type Tag = (Arc<Cell>, Version);

/// The states of epoch and tags that a load saw before it read anything.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) epoch: Version,
    pub(crate) tags: SeenTags,
}

/// What a tag takes up besides its cell and its name, about: its place in the table, counts, and what is noted of it.
const BESIDES: usize = 160;

/// The states of tags, if there are any.
#[derive(Clone, Default)]
pub(crate) struct SeenTags(Option<Arc<[Tag]>>);

impl Version {
    #[inline]
    pub(crate) fn still_holds(self, epoch: &Epoch) -> bool {
        self == epoch.version()
    }

    pub(crate) fn is_left(self, epoch: &Epoch) -> bool {
        epoch.is_left(self)
    }
}

impl Seen {
    pub(crate) fn new(epoch: Version, tags: Vec<Tag>) -> Self {
        Self { epoch, tags: SeenTags((!tags.is_empty()).then(|| tags.into())) }
    }

    /// Whether nothing was invalidated since.
    pub(crate) fn still_holds(&self, epoch: &Epoch) -> bool {
        self.epoch.still_holds(epoch) && self.tags.still_hold()
    }

    /// Whether nothing was removed since, though it may have been made to expire.
    pub(crate) fn is_left(&self, epoch: &Epoch) -> bool {
        self.epoch.is_left(epoch) && self.tags.are_left()
    }

    /// The states of now, unless something was removed since.
    pub(crate) fn renewed(&self, epoch: &Epoch) -> Option<Self> {
        // Before the look whether anything was removed, so that what is removed in between is not left by either.
        let tags = self.tags.iter().map(|(cell, _)| (Arc::clone(cell), cell.version())).collect();
        let now = Self::new(epoch.version(), tags);
        self.is_left(epoch).then_some(now)
    }
}

impl SeenTags {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn cells(&self) -> impl Iterator<Item = &Arc<Cell>> {
        self.iter().map(|(cell, _)| cell)
    }

    /// The bytes that they take up, about: of each tag a part of what those who carry it by now have in common.
    pub(crate) fn weight(&self) -> usize {
        let of_tag = |(cell, _): &Tag| {
            // The table has one besides, and so has whoever is about to store this.
            let shared_by = Arc::strong_count(cell).saturating_sub(2).max(1);
            size_of::<Tag>() + (size_of::<Cell>() + BESIDES + cell.name.len()) / shared_by
        };
        self.iter().map(of_tag).sum()
    }

    /// Whether nothing was invalidated since.
    #[inline]
    pub(crate) fn still_hold(&self) -> bool {
        self.iter().all(|(cell, seen)| cell.version() == *seen)
    }

    /// Whether nothing was removed since, though it may have been made to expire.
    pub(crate) fn are_left(&self) -> bool {
        self.removed().is_none()
    }

    /// The tag that was removed since, if one was.
    pub(crate) fn removed(&self) -> Option<&Arc<Cell>> {
        self.iter().find(|(cell, seen)| !cell.is_left(*seen)).map(|(cell, _)| cell)
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = &Tag> {
        self.0.iter().flat_map(|tags| tags.iter())
    }
}

/// How often the cache and a load's tags had been removed here when the load began. Who asks after a later
/// removal must not be given what that load returns.
pub(crate) struct Began {
    at: Instant,
    epoch: u64,
    tags: Box<[(Arc<Cell>, u64)]>,
    /// Any tag, where the load may choose tags.
    any: Option<(Arc<Cell>, u64)>,
}

impl Began {
    pub(crate) fn now<'a>(at: Instant, epoch: &Epoch, tags: impl Iterator<Item = &'a Arc<Cell>>) -> Self {
        let tags = tags.map(|cell| (Arc::clone(cell), cell.removals())).collect();
        Self { at, epoch: epoch.removals(), tags, any: None }
    }

    /// The same of a load that may choose tags.
    pub(crate) fn or_any(mut self, any: Option<&Arc<Cell>>) -> Self {
        self.any = any.map(|cell| (Arc::clone(cell), cell.removals()));
        self
    }

    /// How long before `later` this was.
    pub(crate) fn is_before(&self, later: &Self) -> Duration {
        later.at.since(self.at)
    }

    pub(crate) fn is_current(&self, epoch: &Epoch) -> bool {
        self.epoch == epoch.removals() && self.tags.iter().all(|(cell, began)| cell.removals() == *began)
    }

    /// Whether the load can choose no tag that was removed here since it began.
    pub(crate) fn is_free_to_choose(&self) -> bool {
        self.any.as_ref().is_none_or(|(cell, began)| cell.removals() == *began)
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
    cells: HashMap<Arc<str>, Arc<Cell>, foldhash::fast::RandomState>,
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
        let cell = Arc::new(Cell::named(tag));
        table.cells.insert(Arc::clone(&cell.name), Arc::clone(&cell));
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
        cell.bump(Invalidation::Remove, None);
        assert!(!first.still_holds(&epoch));
        let third = seen();
        assert!(third.still_holds(&epoch) && !second.still_holds(&epoch));
        epoch.bump(Invalidation::Remove, None);
        assert!(!third.still_holds(&epoch));
    }

    #[test]
    fn entry_that_was_made_to_expire_is_left_until_it_is_removed() {
        let (epoch, cell) = (Epoch::default(), Arc::<Cell>::default());
        let (one, two) = (Stamp::random(), Stamp::random());
        cell.observe(cell.capture(), one);
        let seen = Seen::new(epoch.capture().0, vec![(Arc::clone(&cell), cell.capture().0)]);
        cell.bump(Invalidation::Expire, Some(two));
        assert!(!seen.still_holds(&epoch) && seen.is_left(&epoch));
        // As the remote tier tells it, when it was expired there as well.
        cell.observe(cell.capture(), one.after(Invalidation::Expire, Stamp::random()));
        assert!(seen.is_left(&epoch));
        cell.observe(cell.capture(), two);
        assert!(!seen.is_left(&epoch));
    }

    #[test]
    fn answer_older_than_our_own_removal_is_ignored() {
        let cell = Cell::default();
        let asked_in = cell.capture();
        let ours = Stamp::random();
        cell.bump(Invalidation::Remove, Some(ours));
        assert_eq!(cell.observe(asked_in, Stamp::random()), (cell.capture().0, None));
        assert_eq!(cell.capture().1, Some(ours));
    }

    #[test]
    fn remote_nonce_that_changed_and_changed_back_does_not_revive() {
        let (epoch, cell) = (Epoch::default(), Arc::<Cell>::default());
        let (first, second) = (Stamp::random(), Stamp::random());
        let (version, _) = cell.observe(cell.capture(), first);
        let seen = Seen::new(epoch.capture().0, vec![(Arc::clone(&cell), version)]);
        cell.observe(cell.capture(), first);
        assert!(seen.still_holds(&epoch));
        cell.observe(cell.capture(), second);
        cell.observe(cell.capture(), first);
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
