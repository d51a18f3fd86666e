//! How values become bytes for the remote tier.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, ErrorKind};

/// JSON, by the type's own `serde` implementation.
///
/// Two functions instead of a trait object with a bound: the front type then asks nothing of a value
/// that never leaves the process.
pub(crate) struct Codec<V> {
    pub(crate) encode: fn(&V) -> Result<Vec<u8>, Error>,
    /// `None` for bytes that are no such value: a miss, since the type may have changed with a release.
    pub(crate) decode: fn(&[u8]) -> Option<V>,
}

impl<V: Serialize + DeserializeOwned> Codec<V> {
    pub(crate) fn json() -> Self {
        Self {
            encode: |value| {
                serde_json::to_vec(value).map_err(|error| {
                    Error::with_source(ErrorKind::Codec, "the value cannot be written as JSON", error)
                })
            },
            decode: |bytes| serde_json::from_slice(bytes).ok(),
        }
    }
}
