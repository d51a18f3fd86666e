//! How values become bytes for the remote tier.

use serde::{Serialize, de::DeserializeOwned};

use super::envelope::Payload;
use crate::{Error, ErrorKind};

/// What an entry calls this codec.
pub(crate) const JSON: u8 = 1;

/// JSON, by the type's own `serde` implementation.
///
/// Two functions instead of a trait object with a bound: the front type then asks nothing of a value
/// that never leaves the process.
pub(crate) struct Codec<V> {
    pub(crate) encode: fn(&V) -> Result<Vec<u8>, Error>,
    /// `None` for bytes that are no such value: a miss, since the type may have changed with a release.
    pub(crate) decode: fn(&[u8]) -> Option<V>,
}

impl<V> Codec<V> {
    /// The value, if these are bytes of this codec, as they came from it.
    pub(crate) fn open(&self, payload: &Payload<'_>) -> Option<V> {
        let Payload { codec, compression, schema, raw_length, bytes } = *payload;
        let as_made = codec == JSON && compression == 0 && schema.is_none();
        let whole = usize::try_from(raw_length).is_ok_and(|length| length == bytes.len());
        if as_made && whole { (self.decode)(bytes) } else { None }
    }
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
