//! What may be kept of a tool, for whom, and who a caller is.

use std::{fmt, sync::Arc, time::Duration};

use ::rmcp::{RoleServer, model::JsonObject, service::RequestContext};
use sha2::{Digest, Sha256};

/// How the answers of one tool may be cached.
#[derive(Clone)]
pub struct ToolPolicy {
    pub(super) is_public: bool,
    pub(super) time_to_live: Duration,
    tags: Vec<Tagger>,
}

pub(super) type Tagger = Arc<dyn Fn(&JsonObject) -> Vec<String> + Send + Sync>;

/// A call of a tool, for whoever decides whom it is charged to.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ToolCall<'a> {
    /// The name as the client sent it: it may be the name of no tool.
    pub name: &'a str,
    /// The arguments as the client sent them.
    pub arguments: Option<&'a JsonObject>,
    /// The request, with the client and, over HTTP, the request's parts in its extensions.
    pub context: &'a RequestContext<RoleServer>,
}

/// Who calls: bytes that tell callers apart, and are no secret. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Principal(Box<[u8]>);

impl ToolPolicy {
    /// The answer is the same for every caller, and may be served for `time_to_live`: more than zero, at most
    /// [`MAX_TIME_TO_LIVE`](crate::cache::MAX_TIME_TO_LIVE).
    #[must_use]
    pub fn public(time_to_live: Duration) -> Self {
        Self { is_public: true, time_to_live, tags: Vec::new() }
    }

    /// The answer depends on who calls: every [principal](super::PerformanceBuilder::identity) gets its own, and
    /// calls without one are not cached.
    #[must_use]
    pub fn private(time_to_live: Duration) -> Self {
        Self { is_public: false, time_to_live, tags: Vec::new() }
    }

    /// Answers carry this tag.
    #[must_use]
    pub fn tag(self, tag: impl Into<String>) -> Self {
        let tag = tag.into();
        self.tags(move |_| vec![tag.clone()])
    }

    /// Answers carry the tags that `tags` makes of the arguments, so that
    /// [`invalidate_after`](super::PerformanceBuilder::invalidate_after) can name them.
    ///
    /// ```
    /// use mcp_perf::rmcp::ToolPolicy;
    /// use std::time::Duration;
    ///
    /// let policy = ToolPolicy::public(Duration::from_secs(60))
    ///     .tags(|arguments| match arguments.get("id").and_then(|id| id.as_str()) {
    ///         Some(id) => vec![format!("server:{id}")],
    ///         None => Vec::new(),
    ///     });
    /// # let _ = policy;
    /// ```
    ///
    /// It is called with whatever the client sent, so it must not trust the arguments' shape: take a member
    /// with `get`, since indexing panics where there is none.
    #[must_use]
    pub fn tags(mut self, tags: impl Fn(&JsonObject) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.tags.push(Arc::new(tags));
        self
    }

    pub(super) fn tags_of(&self, arguments: &JsonObject) -> Vec<String> {
        self.tags.iter().flat_map(|tags| tags(arguments)).collect()
    }
}

impl fmt::Debug for ToolPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolPolicy")
            .field("is_public", &self.is_public)
            .field("time_to_live", &self.time_to_live)
            .finish_non_exhaustive()
    }
}

impl Principal {
    /// A principal of these bytes: an account's name, say. Never a secret, for they become part of keys; of a
    /// secret take a digest.
    #[must_use]
    pub fn new(name: impl AsRef<[u8]>) -> Self {
        Self(name.as_ref().into())
    }

    /// The digest of the request's `Authorization` header, if it came over HTTP and has one.
    ///
    /// Two tokens of one account are two principals, which is what the protocol asks for and wastes some hits;
    /// a server that knows its accounts does better with [`new`](Self::new). A caller without the header has no
    /// principal.
    #[must_use]
    pub fn of_authorization(context: &RequestContext<RoleServer>) -> Option<Self> {
        let parts = context.extensions.get::<http::request::Parts>()?;
        let mut headers = parts.headers.get_all(http::header::AUTHORIZATION).iter();
        let header = headers.next()?;
        // Several of them is not a request to be clever about.
        headers.next().is_none().then(|| Self(Sha256::digest(header.as_bytes()).as_slice().into()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// For [`Key::private`](crate::cache::Key::private) of a cache of one's own.
impl AsRef<[u8]> for Principal {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Principal(..)")
    }
}
