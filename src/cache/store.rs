//! The contract of the remote tier.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;

use super::tags::{Invalidation, Stamp};
use crate::Error;

/// A store of bytes that processes share: the remote tier of a [`Cache`](super::Cache).
///
/// It holds *entries* (bytes with a remaining life) and *stamps* (one nonce per tag), both under names
/// of printable ASCII of at most 160 bytes, which the cache makes. It knows nothing of values, codecs
/// or freshness.
///
/// One call should be one round trip. The cache puts a deadline on every call and drops the future when
/// it passes: a write that was given up may be made later, or never, but only whole.
///
/// A store that may come back in an earlier state (from a snapshot, or a replica that had not heard of everything) has to
/// notice it: no stamp and no fence may equal then what it was when it was read before. Otherwise what was removed
/// in between is back.
///
/// Errors: [`Error::unavailable`] when the store cannot be reached, [`Error::refused`] when it answered
/// and would not, [`Error::overloaded`] when it was not asked since too many others were. Never an empty answer instead of
/// an error: an absence that is not one would let a value be stored that an invalidation forbids.
///
/// `mcp_perf::testing::store` (feature `test-util`) holds the tests that every implementation must
/// pass, and a reference implementation in memory.
pub trait Store: Send + Sync + 'static {
    /// Reads entries and stamps, in the order of the names.
    ///
    /// An absent stamp is made: the store writes a random one, and if two callers do so at once both get
    /// the same one. A stamp may be forgotten, which costs the entries that carry it, but it never comes back as
    /// the old one.
    ///
    /// The fence of an absent entry is best unlike that of any other absence. Where it is always the same, the
    /// store must not forget a removal before its `hold` is over, under memory pressure or otherwise.
    fn get_many(
        &self,
        entries: &[&str],
        stamps: &[&str],
    ) -> impl Future<Output = Result<Found, Error>> + Send;

    /// Reads the same without the bytes of entries, which may be left out: what the cache asks when it remembers a
    /// value, and only wants to know whether it is still the one that is stored.
    ///
    /// An entry whose fence is the same as before, and that is there, is the same entry. The fence of an absent one
    /// is not used.
    ///
    /// [`get_many`](Self::get_many) unless the store can do better, which it is worth where entries are large.
    fn peek_many(
        &self,
        entries: &[&str],
        stamps: &[&str],
    ) -> impl Future<Output = Result<Found, Error>> + Send {
        self.get_many(entries, stamps)
    }

    /// Writes an entry if nothing was written or removed under its name since the fence was read, and tells the
    /// fence of what it wrote.
    ///
    /// Compare and write are one atomic step.
    fn put_if(&self, put: Put<'_>) -> impl Future<Output = Result<Written, Error>> + Send;

    /// Removes entries, whether there or not, and makes every fence on them that was read before
    /// worthless. The store has to remember the removal for `hold`, which is longer than a load may take: about
    /// half a minute unless the cache is told otherwise.
    fn remove_many(&self, entries: &[&str], hold: Duration)
    -> impl Future<Output = Result<(), Error>> + Send;

    /// Changes stamps, each in one atomic step, so that no entry agrees with them that carries the old ones.
    ///
    /// To remove is to write the whole stamp, to expire is to write its second half; [`Stamp::after`] says the same.
    /// An absent stamp becomes the whole new one in either case.
    fn restamp(&self, stamps: &[Restamp<'_>]) -> impl Future<Output = Result<(), Error>> + Send;

    /// Answers if the store can be reached, and is to be used. One that can be read, and takes no writes for now, may answer
    /// and say so to those who write; while it refuses, it is not asked after it was away.
    fn ping(&self) -> impl Future<Output = Result<(), Error>> + Send;
}

impl<S: Store> Store for Arc<S> {
    fn get_many(
        &self,
        entries: &[&str],
        stamps: &[&str],
    ) -> impl Future<Output = Result<Found, Error>> + Send {
        S::get_many(self, entries, stamps)
    }

    fn peek_many(
        &self,
        entries: &[&str],
        stamps: &[&str],
    ) -> impl Future<Output = Result<Found, Error>> + Send {
        S::peek_many(self, entries, stamps)
    }

    fn put_if(&self, put: Put<'_>) -> impl Future<Output = Result<Written, Error>> + Send {
        S::put_if(self, put)
    }

    fn remove_many(
        &self,
        entries: &[&str],
        hold: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        S::remove_many(self, entries, hold)
    }

    fn restamp(&self, stamps: &[Restamp<'_>]) -> impl Future<Output = Result<(), Error>> + Send {
        S::restamp(self, stamps)
    }

    fn ping(&self) -> impl Future<Output = Result<(), Error>> + Send {
        S::ping(self)
    }
}

/// What [`Store::get_many`] or [`Store::peek_many`] found, in the order of the names it was given.
#[derive(Clone, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "implementers of `Store` build it")]
pub struct Found {
    /// One for each entry that was asked for.
    pub entries: Vec<Slot>,
    /// One for each stamp that was asked for.
    pub stamps: Vec<Stamp>,
}

/// The place of one entry.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "implementers of `Store` build it")]
pub struct Slot {
    /// The entry, if there is one.
    pub entry: Option<Stored>,
    /// What [`Store::put_if`] compares: a fence for an absent entry, too.
    pub fence: Fence,
}

/// An entry in the store.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "implementers of `Store` build it")]
pub struct Stored {
    /// As they were written; nothing, or all of them, if only [peeked](Store::peek_many) at.
    pub bytes: Bytes,
    /// The life that is left, at most; zero is a miss.
    pub remaining: Duration,
}

/// What was under a name when it was read; only the store that made it can read it.
///
/// It has to differ after every write and every removal that is remembered.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Fence([u8; 16]);

impl Fence {
    /// A fence of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes it was made of.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({:032x})", u128::from_be_bytes(self.0))
    }
}

/// One write.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Put<'a> {
    /// The name of the entry.
    pub name: &'a str,
    /// Its bytes.
    pub bytes: Bytes,
    /// How long it may be served.
    pub time_to_live: Duration,
    /// What must be there still; `None` overwrites whatever is there, a removal included.
    pub fence: Option<Fence>,
}

impl<'a> Put<'a> {
    /// A write that overwrites whatever is there.
    #[must_use]
    pub fn new(name: &'a str, bytes: Bytes, time_to_live: Duration) -> Self {
        Self { name, bytes, time_to_live, fence: None }
    }

    /// The same, but only if what `fence` saw is there still.
    #[must_use]
    pub fn only_if(mut self, fence: Fence) -> Self {
        self.fence = Some(fence);
        self
    }
}

/// What became of a [`Put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third outcome")]
pub enum Written {
    /// Something was written or removed there since the fence was read.
    Refused,
    /// It is there, with this fence.
    Stored(Fence),
}

/// One change of a stamp.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "implementers of `Store` read it")]
pub struct Restamp<'a> {
    /// The name of the stamp.
    pub name: &'a str,
    /// How much of it changes.
    pub invalidation: Invalidation,
    /// What it becomes, wholly or in its second half.
    pub stamp: Stamp,
}

/// A future of a store behind `dyn`.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// [`Store`] behind `dyn`: one box per remote call keeps the cache free of a type parameter.
pub(crate) trait ErasedStore: Send + Sync {
    fn get_many<'a>(&'a self, entries: &'a [&'a str], stamps: &'a [&'a str]) -> Boxed<'a, Found>;
    fn peek_many<'a>(&'a self, entries: &'a [&'a str], stamps: &'a [&'a str]) -> Boxed<'a, Found>;
    fn put_if<'a>(&'a self, put: Put<'a>) -> Boxed<'a, Written>;
    fn remove_many<'a>(&'a self, entries: &'a [&'a str], hold: Duration) -> Boxed<'a, ()>;
    fn restamp<'a>(&'a self, stamps: &'a [Restamp<'a>]) -> Boxed<'a, ()>;
    fn ping(&self) -> Boxed<'_, ()>;
}

impl<S: Store> ErasedStore for S {
    fn get_many<'a>(&'a self, entries: &'a [&'a str], stamps: &'a [&'a str]) -> Boxed<'a, Found> {
        Box::pin(Store::get_many(self, entries, stamps))
    }

    fn peek_many<'a>(&'a self, entries: &'a [&'a str], stamps: &'a [&'a str]) -> Boxed<'a, Found> {
        Box::pin(Store::peek_many(self, entries, stamps))
    }

    fn put_if<'a>(&'a self, put: Put<'a>) -> Boxed<'a, Written> {
        Box::pin(Store::put_if(self, put))
    }

    fn remove_many<'a>(&'a self, entries: &'a [&'a str], hold: Duration) -> Boxed<'a, ()> {
        Box::pin(Store::remove_many(self, entries, hold))
    }

    fn restamp<'a>(&'a self, stamps: &'a [Restamp<'a>]) -> Boxed<'a, ()> {
        Box::pin(Store::restamp(self, stamps))
    }

    fn ping(&self) -> Boxed<'_, ()> {
        Box::pin(Store::ping(self))
    }
}
