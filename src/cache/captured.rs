//! What is noted before a value is read: the state of the cache and of the tags that an entry of it will carry.

use std::sync::Arc;

use super::{
    remote::{Read, Stamps},
    tags::{Began, Cell, Seen, Stamp, Version},
    tiers::Tiers,
};
use crate::clock::Instant;

/// The state of the cache and of an entry's tags, noted before the value is read.
#[derive(Clone)]
pub(super) struct Captured {
    pub(super) at: Instant,
    pub(super) epoch: (Version, Option<Stamp>),
    pub(super) tags: Vec<CapturedTag>,
    /// The state of any tag, where the load may choose tags.
    pub(super) any: Option<CapturedTag>,
}

#[derive(Clone)]
pub(super) struct CapturedTag {
    pub(super) name: Arc<str>,
    pub(super) cell: Arc<Cell>,
    version: Version,
    pub(super) stamp: Option<Stamp>,
}

impl<V: Clone + Send + Sync + 'static> Tiers<V> {
    pub(super) fn capture(&self, tags: &[&str]) -> Captured {
        let capture = |tag: &&str| CapturedTag::of(self.tags.cell(tag));
        let at = self.clock.now();
        Captured { at, epoch: self.epoch.capture(), tags: tags.iter().map(capture).collect(), any: None }
    }

    /// The same before a load, which may choose tags besides these.
    pub(super) fn capture_for_load(&self, tags: &[&str]) -> Captured {
        // Before the tags: who invalidates one changes this first.
        let any = self.any_tag.as_ref().map(|cell| CapturedTag::of(Arc::clone(cell)));
        Captured { any, ..self.capture(tags) }
    }

    pub(super) fn began(&self, captured: &Captured) -> Began {
        let any = captured.any.as_ref().map(|any| &any.cell);
        Began::now(captured.at, &self.epoch, captured.tags.iter().map(|tag| &tag.cell)).or_any(any)
    }

    /// Returns whether what is noted now is what the answer says. If not, another answer or a removal of our
    /// own came in between, nobody knows which is the newer, and an entry that came with it is not to be
    /// trusted.
    pub(super) fn observe(&self, captured: &mut Captured, stamps: &Stamps) -> bool {
        // Before the tags, as everywhere. No entry carries it.
        if let (Some(any), Some(stamp)) = (&mut captured.any, stamps.any) {
            any.observe(stamp);
        }
        captured.epoch = self.epoch.observe(captured.epoch, stamps.epoch);
        let mut agrees = captured.epoch.1 == Some(stamps.epoch);
        for (tag, stamp) in captured.tags.iter_mut().zip(&stamps.tags) {
            agrees &= tag.observe(*stamp);
        }
        agrees
    }
}

impl Captured {
    pub(super) fn seen(&self) -> Seen {
        Seen::new(self.epoch.0, self.tags.iter().map(CapturedTag::seen).collect())
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.tags.iter().map(|tag| &*tag.name).collect()
    }

    /// Whether an answer of the remote tier has the stamps that are noted.
    pub(super) fn says(&self, read: &Read) -> bool {
        let mut tags = self.tags.iter().zip(&read.stamps.tags);
        self.epoch.1 == Some(read.stamps.epoch) && tags.all(|(tag, stamp)| tag.stamp == Some(*stamp))
    }

    /// The stamps to write with an entry; `None` unless the remote tier has told all of them.
    pub(super) fn stamps(&self) -> Option<(Stamp, Vec<(&str, Stamp)>)> {
        let tags = self.tags.iter().map(|tag| Some((&*tag.name, tag.stamp?))).collect::<Option<_>>()?;
        Some((self.epoch.1?, tags))
    }
}

impl CapturedTag {
    fn of(cell: Arc<Cell>) -> Self {
        let (version, stamp) = cell.capture();
        Self { name: Arc::clone(cell.name()), cell, version, stamp }
    }

    /// Takes note of what the remote tier says; returns whether it is what is noted then.
    fn observe(&mut self, stamp: Stamp) -> bool {
        (self.version, self.stamp) = self.cell.observe((self.version, self.stamp), stamp);
        self.stamp == Some(stamp)
    }

    /// Whether this is all that happened: the tag is as it was when it was noted.
    pub(super) fn still_holds(&self) -> bool {
        self.cell.capture().0 == self.version
    }

    pub(super) fn seen(&self) -> (Arc<Cell>, Version) {
        (Arc::clone(&self.cell), self.version)
    }

    pub(super) fn stamped(&self) -> Option<(Arc<str>, Stamp)> {
        Some((Arc::clone(&self.name), self.stamp?))
    }
}
