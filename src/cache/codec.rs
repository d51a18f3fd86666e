//! How values become bytes for the remote tier.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, error::BoxError};

/// How the values of a cache become bytes for its remote tier, and values again.
///
/// | | choose it |
/// |-|-|
/// | [`json`](Self::json) | unless there is a reason: other programs can read it, and fields may be added |
/// | `message_pack` (feature `message-pack`) | for speed: half the time of JSON to write, two thirds to read, a sixth smaller, and fields may be added all the same |
/// | [`bytes`](Codec::bytes) | for values that are bytes already, such as an answer that is ready to be sent: nothing is done and nothing copied |
/// | [`custom`](Self::custom) | for anything else |
///
/// Every codec has a number, which is written with every entry: bytes of another codec are a miss and never
/// misread. So is whatever the codec cannot read, as after a change of the type. A change that it *can* read but
/// that means something else needs another [`schema`](super::RemoteCacheBuilder::schema).
///
/// ```
/// use bytes::Bytes;
/// use mcp_perf::{cache::{Cache, Codec, Key}, clock::Clock, testing::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let store = MemoryStore::new(Clock::system());
/// let cache: Cache<Bytes> = Cache::builder("pages").remote_with(store, Codec::bytes()).build().await?;
/// cache.insert(&Key::public("home"), Bytes::from_static(b"<h1>")).await?;
/// assert_eq!(cache.get(&Key::public("home")).await.as_deref(), Some(&b"<h1>"[..]));
/// # Ok(()) }
/// ```
pub struct Codec<V> {
    id: u8,
    encode: Encode<V>,
    decode: Decode<V>,
}

type Encode<V> = Arc<dyn Fn(&V) -> Result<Bytes, BoxError> + Send + Sync>;
type Decode<V> = Arc<dyn Fn(Bytes) -> Result<V, BoxError> + Send + Sync>;

const JSON: u8 = 1;
#[cfg(feature = "message-pack")]
const MESSAGE_PACK: u8 = 2;
const BYTES: u8 = 3;
/// From here on a number is the user's.
const CUSTOM: u8 = 128;

impl<V: Serialize + DeserializeOwned + 'static> Codec<V> {
    /// JSON, by the type's own `serde` implementation.
    ///
    /// What JSON cannot tell apart does not come back: a number that is not finite becomes `null`.
    #[must_use]
    pub fn json() -> Self {
        Self::built_in(
            JSON,
            |value| Ok(serde_json::to_vec(value)?.into()),
            |bytes| Ok(serde_json::from_slice(&bytes)?),
        )
    }

    /// `MessagePack` with the names of fields, by the type's own `serde` implementation.
    ///
    /// Values that are nested deeper than 128 levels are not read back, as with JSON.
    #[cfg(feature = "message-pack")]
    #[must_use]
    pub fn message_pack() -> Self {
        Self::built_in(
            MESSAGE_PACK,
            |value| Ok(rmp_serde::to_vec_named(value)?.into()),
            |bytes| {
                let mut reader = rmp_serde::Deserializer::from_read_ref(&bytes);
                // As in JSON. Its own limit of 1,024 is more than the stack of a task bears in some types.
                reader.set_max_depth(128);
                Ok(V::deserialize(&mut reader)?)
            },
        )
    }
}

impl Codec<Bytes> {
    /// The value as it is.
    ///
    /// A value that is read and was not compressed is a part of what the store answered with, not a copy: while it
    /// lives, so does the entry around it, about a hundred bytes and the key.
    #[must_use]
    pub fn bytes() -> Self {
        Self::built_in(BYTES, |value: &Bytes| Ok(value.clone()), Ok)
    }
}

impl<V> Codec<V> {
    /// A codec of one's own.
    ///
    /// `id` is what its entries are known by, 128 to 255, and has to change whenever bytes of the old codec could
    /// be misread by the new. `encode` and `decode` run where the cache needs them, on a thread of the runtime if
    /// the value is small, so they must not wait for anything. A `decode` that fails is a miss, an `encode` that
    /// fails an error of kind [`Codec`](crate::ErrorKind::Codec); so is a panic of either.
    ///
    /// ```
    /// use mcp_perf::cache::Codec;
    ///
    /// let text: Codec<String> = Codec::custom(
    ///     200,
    ///     |text: &String| Ok::<_, std::convert::Infallible>(text.clone().into()),
    ///     |bytes| String::from_utf8(bytes.into()),
    /// );
    /// # let _ = text;
    /// ```
    #[must_use]
    pub fn custom<E, D, EncodeError, DecodeError>(id: u8, encode: E, decode: D) -> Self
    where
        E: Fn(&V) -> Result<Bytes, EncodeError> + Send + Sync + 'static,
        D: Fn(Bytes) -> Result<V, DecodeError> + Send + Sync + 'static,
        EncodeError: Into<Box<dyn std::error::Error + Send + Sync>>,
        DecodeError: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self {
            // Zero is nobody's, so that a number out of range is found when the cache is built.
            id: if id < CUSTOM { 0 } else { id },
            encode: Arc::new(move |value| encode(value).map_err(Into::into)),
            decode: Arc::new(move |bytes| decode(bytes).map_err(Into::into)),
        }
    }

    fn built_in(
        id: u8,
        encode: fn(&V) -> Result<Bytes, BoxError>,
        decode: fn(Bytes) -> Result<V, BoxError>,
    ) -> Self
    where
        V: 'static,
    {
        Self { id, encode: Arc::new(encode), decode: Arc::new(decode) }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if self.id == 0 {
            return Err(Error::configuration("codec", "the id of a custom codec must be 128 to 255"));
        }
        Ok(())
    }

    /// What entries call it.
    pub(super) fn id(&self) -> u8 {
        self.id
    }

    /// Whether it takes no time, however large the value.
    pub(super) fn is_free(&self) -> bool {
        self.id == BYTES
    }

    pub(super) fn encode(&self, value: &V) -> Result<Bytes, BoxError> {
        (self.encode)(value)
    }

    pub(super) fn decode(&self, bytes: Bytes) -> Result<V, BoxError> {
        (self.decode)(bytes)
    }
}

impl<V> Clone for Codec<V> {
    fn clone(&self) -> Self {
        Self { id: self.id, encode: Arc::clone(&self.encode), decode: Arc::clone(&self.decode) }
    }
}

impl<V> fmt::Debug for Codec<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").field("id", &self.id).finish_non_exhaustive()
    }
}
