//! What one run of a tool came to, as its callers share it.

use ::rmcp::{
    ErrorData,
    model::{CallToolResponse, CallToolResult},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error as _};

use crate::cache::Loaded;

/// The answer of a tool, as a [`Cache`](crate::cache::Cache) holds it; see
/// [`PerformanceBuilder::answers`](super::PerformanceBuilder::answers).
#[derive(Clone, Debug)]
pub struct Answer(pub(super) Content);

#[derive(Clone, Debug)]
pub(super) enum Content {
    Complete(CallToolResult),
    /// Told to those who waited for this run, and to nobody else.
    Failed(ErrorData),
    /// A question to the one caller whose request ran, or a task of its: nothing to share.
    Personal,
}

impl Answer {
    /// Sorts a handler's answer. What is for one caller only comes back beside it.
    pub(super) fn sort(
        response: Result<CallToolResponse, ErrorData>,
    ) -> (Self, Option<Result<CallToolResponse, ErrorData>>) {
        match response {
            Ok(CallToolResponse::Complete(result)) => (Self(Content::Complete(result)), None),
            Err(error) => (Self(Content::Failed(error)), None),
            personal => (Self(Content::Personal), Some(personal)),
        }
    }

    /// Kept for `time_to_live` if it is a complete result and no error.
    pub(super) fn kept_for(self, time_to_live: std::time::Duration) -> Loaded<Self> {
        match &self.0 {
            Content::Complete(result) if result.is_error != Some(true) => {
                Loaded::new(self).time_to_live(time_to_live)
            }
            _ => Loaded::do_not_store(self),
        }
    }
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Content::Complete(result) => result.serialize(serializer),
            Content::Failed(_) | Content::Personal => {
                Err(S::Error::custom("only complete results are stored"))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        CallToolResult::deserialize(deserializer).map(|result| Self(Content::Complete(result)))
    }
}
