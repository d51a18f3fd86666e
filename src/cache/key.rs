//! What a value is cached under: its name, and whose it is.
//!
//! Two keys are equal only if they were built from the same parts in the same order: parts are joined
//! with their lengths, so `("a:b", "")` and `("a", "b")` stay apart, and a private key never equals a
//! public one. Parts are any bytes: empty, with `NUL` or `:` in them, or a mebibyte long.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    hash::{Hash, Hasher},
};

/// The key of a cached value.
///
/// There is no way to make one without saying who may see the value:
/// [`public`](Self::public) is for values that are the same for every caller,
/// [`private`](Self::private) for those that depend on the caller, whose principal then is part of the
/// key.
///
/// ```
/// use mcp_perf::cache::Key;
///
/// let everyone = Key::public("server:42");
/// let (alice, bob) = (Key::private("alice", "inbox"), Key::private("bob", "inbox"));
/// assert_ne!(alice, bob);
/// assert_ne!(Key::public("search").part("a b").part("c"), Key::public("search").part("a").part("b c"));
/// # let _ = everyone;
/// ```
///
/// A public key of one part borrows it, so that a look-up allocates nothing.
#[derive(Clone)]
pub struct Key<'a> {
    kind: Kind,
    bytes: Cow<'a, [u8]>,
}

/// How the bytes of a key are to be read, so that keys of different shape are never equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// One part as it is.
    Public = 1,
    /// Parts with their lengths.
    PublicParts = 2,
    /// Parts with their lengths, the first of which is the principal.
    Private = 3,
}

impl<'a> Key<'a> {
    /// The key of a value that is the same for every caller.
    #[must_use]
    pub fn public<N: AsRef<[u8]> + ?Sized>(name: &'a N) -> Self {
        Self { kind: Kind::Public, bytes: Cow::Borrowed(name.as_ref()) }
    }

    /// The key of a value that only `principal` may see.
    ///
    /// The principal is whatever tells callers apart: an account, or a digest of what it presented;
    /// never a secret itself.
    #[must_use]
    pub fn private<P, N>(principal: &P, name: &N) -> Self
    where
        P: AsRef<[u8]> + ?Sized,
        N: AsRef<[u8]> + ?Sized,
    {
        let (principal, name) = (principal.as_ref(), name.as_ref());
        let mut bytes = Vec::with_capacity(principal.len() + name.len() + 16);
        append(&mut bytes, principal);
        append(&mut bytes, name);
        Self { kind: Kind::Private, bytes: Cow::Owned(bytes) }
    }

    /// The same key with one more part.
    #[must_use]
    pub fn part<N: AsRef<[u8]> + ?Sized>(self, part: &N) -> Self {
        let (kind, mut bytes) = match self.kind {
            Kind::Public => {
                let mut bytes = Vec::with_capacity(self.bytes.len() + part.as_ref().len() + 16);
                append(&mut bytes, &self.bytes);
                (Kind::PublicParts, bytes)
            }
            kind => (kind, self.bytes.into_owned()),
        };
        append(&mut bytes, part.as_ref());
        Self { kind, bytes: Cow::Owned(bytes) }
    }

    /// The same key, owning its bytes.
    #[must_use]
    pub fn into_owned(self) -> Key<'static> {
        Key { kind: self.kind, bytes: Cow::Owned(self.bytes.into_owned()) }
    }

    /// The key that [`kind`](Self::kind), as a number, and [`bytes`](Self::bytes) were taken of.
    pub(crate) fn from_parts(kind: u8, bytes: &'a [u8]) -> Option<Self> {
        let kind =
            [Kind::Public, Kind::PublicParts, Kind::Private].into_iter().find(|of| *of as u8 == kind)?;
        Some(Self { kind, bytes: Cow::Borrowed(bytes) })
    }

    /// What it was made of, in order: the principal first, if it is private.
    ///
    /// For loaders of many, which have to know what they are to load.
    ///
    /// ```
    /// use mcp_perf::cache::Key;
    ///
    /// assert_eq!(Key::public("lisbon").parts(), [b"lisbon"]);
    /// assert_eq!(Key::private("ada", "inbox").part("1").parts(), [&b"ada"[..], b"inbox", b"1"]);
    /// ```
    #[must_use]
    pub fn parts(&self) -> Vec<&[u8]> {
        if self.kind == Kind::Public {
            return vec![&self.bytes];
        }
        let (mut parts, mut rest) = (Vec::new(), &*self.bytes);
        while let Some((length, after)) = rest.split_first_chunk() {
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let Some((part, after)) = after.split_at_checked(length) else { break };
            parts.push(part);
            rest = after;
        }
        parts
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn append(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
    bytes.extend_from_slice(part);
}

impl PartialEq<Key<'_>> for Key<'_> {
    fn eq(&self, other: &Key<'_>) -> bool {
        self.kind == other.kind && self.bytes == other.bytes
    }
}

impl Eq for Key<'_> {}

impl Hash for Key<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.kind, &self.bytes, state);
    }
}

/// Shows the kind and the size: the bytes of a key may be personal.
impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, {} bytes)", self.kind, self.bytes.len())
    }
}

/// A key as the in-process tier and the flights hold it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct StoredKey {
    kind: Kind,
    bytes: Box<[u8]>,
}

impl StoredKey {
    pub(crate) fn as_key(&self) -> Key<'_> {
        Key { kind: self.kind, bytes: Cow::Borrowed(&self.bytes) }
    }
}

impl From<&Key<'_>> for StoredKey {
    fn from(key: &Key<'_>) -> Self {
        Self { kind: key.kind, bytes: key.bytes.as_ref().into() }
    }
}

impl Hash for StoredKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.kind, &self.bytes, state);
    }
}

/// What a stored key is found by, whether or not it is owned: a table of the standard library knows no
/// [`Equivalent`](moka::Equivalent).
pub(crate) trait AsKey {
    fn parts(&self) -> (Kind, &[u8]);
}

impl AsKey for Key<'_> {
    fn parts(&self) -> (Kind, &[u8]) {
        (self.kind, &self.bytes)
    }
}

impl AsKey for StoredKey {
    fn parts(&self) -> (Kind, &[u8]) {
        (self.kind, &self.bytes)
    }
}

impl<'a> Borrow<dyn AsKey + 'a> for StoredKey {
    fn borrow(&self) -> &(dyn AsKey + 'a) {
        self
    }
}

impl PartialEq for dyn AsKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn AsKey + '_ {}

impl Hash for dyn AsKey + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (kind, bytes) = self.parts();
        hash(kind, bytes, state);
    }
}

impl moka::Equivalent<StoredKey> for Key<'_> {
    fn equivalent(&self, key: &StoredKey) -> bool {
        self.kind == key.kind && *self.bytes == *key.bytes
    }
}

/// One write of the bytes and one of the kind: the prefix-freedom of slices is not needed for one field.
#[inline]
fn hash<H: Hasher>(kind: Kind, bytes: &[u8], state: &mut H) {
    state.write(bytes);
    state.write_u8(kind as u8);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_of_different_parts_never_meet() {
        let long = vec![b'x'; 1 << 20];
        let keys = [
            Key::public(""),
            Key::public("").part(""),
            Key::public("").part("").part(""),
            Key::public("a:b"),
            Key::public("a:b").part(""),
            Key::public("a").part(":b"),
            Key::public("a").part("b"),
            Key::public("a\0b"),
            Key::private("a", "b"),
            Key::private("", "ab"),
            Key::private("ab", ""),
            Key::private("a", "b").part(""),
            Key::public(&long),
            Key::public(&long[1..]),
            // the bytes of a private key, offered as a public name
            Key { kind: Kind::Public, bytes: Key::private("a", "b").bytes.into_owned().into() },
        ];
        let distinct: HashSet<&Key<'_>> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn stored_key_is_found_by_the_borrowed_one() {
        let hasher = foldhash::fast::RandomState::default();
        use std::hash::BuildHasher;
        for key in [Key::public("a"), Key::private("p", "a"), Key::public("a").part("b")] {
            let stored = StoredKey::from(&key);
            assert_eq!(hasher.hash_one(&key), hasher.hash_one(&stored));
            assert!(moka::Equivalent::equivalent(&key, &stored));
            assert!(HashSet::from([stored.clone()]).contains(&key as &dyn AsKey));
            assert_eq!(stored.as_key(), key);
        }
    }

    #[test]
    fn debug_shows_no_byte_of_the_key() {
        assert_eq!(format!("{:?}", Key::private("alice@example.org", "inbox")), "Key(Private, 38 bytes)");
    }
}
