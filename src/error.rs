//! The one error type of the crate.
//!
//! An outcome is not an error: a cache miss is `None`, a caller over the limit is a
//! [`Decision`](crate::limit::Decision). An [`Error`] says that something could not be done, and
//! [`kind`](Error::kind) says what a program can do about it. The driver's or the loader's own error
//! is the [`source`](std::error::Error::source); its text is not part of ours, because a driver's
//! text may quote a URL with a password. To see it, walk the sources, as `anyhow`'s `{:#}` does.

use std::{borrow::Cow, fmt, sync::Arc};

/// A boxed error of somebody else, as a source.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong in this crate.
///
/// One word wide and cheap to clone: one failed load is shared by everybody who waited for it.
///
/// Its text leaves out that of the driver's or the loader's own error, which may quote a URL with a password. That one is
/// the [`source`](std::error::Error::source): walk the sources to see it, as `anyhow`'s `{:#}` does.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    source: Option<BoxError>,
}

/// What a program can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was asked has been shut down.
    Closed,
    /// A value could not be turned into bytes. Nothing was stored in the remote tier.
    Codec,
    /// A setting is invalid; the message names it.
    Configuration,
    /// The server rejected the user or the password.
    Credentials,
    /// The connection broke during a call. Whether the call was carried out is not known.
    Disconnected,
    /// No address is known by the name of the host. Of Redis it is [`Unavailable`](Self::Unavailable).
    HostNotFound,
    /// The loader answered with an error, which is the source, or with what it may not answer.
    Load,
    /// The loader reported that there is no such value: an answer rather than a failure.
    NotFound,
    /// The queue is full: as many callers wait as may. Nothing was started.
    Overloaded,
    /// The loader panicked, or other code that was given to this crate and is awaited; or the runtime went down under it.
    Panicked,
    /// A loader asked, directly or by way of others, for the value that it was loading.
    Recursion,
    /// The server answered, and refused. Retrying does not help.
    Refused,
    /// Something took longer than its deadline.
    TimedOut,
    /// No encrypted connection could be agreed on: the other side speaks no TLS, or is not trusted. Of Redis it is
    /// [`Unavailable`](Self::Unavailable).
    Tls,
    /// The server's limit of connections is reached.
    TooManyConnections,
    /// The other side could not be reached, or gave the call up for another one, as after a deadlock, in which case nothing
    /// was changed. From the stores of a cache it also stands for a lost connection: the call may have been carried out.
    Unavailable,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: Some(source.into()) }))
    }

    /// The answer of a loader that there is nothing.
    pub(crate) fn not_found() -> Self {
        Self::new(ErrorKind::NotFound, "there is no such value")
    }

    /// An impossible value of the named setting.
    pub(crate) fn configuration(field: &str, problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Configuration, format!("{field}: {problem}"))
    }

    /// For implementers of a store: the other side could not be reached, or the connection broke.
    ///
    /// `what` names the store and the operation; it is printed, the source is not.
    #[must_use]
    pub fn unavailable(
        what: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::with_source(ErrorKind::Unavailable, what, source)
    }

    /// For implementers of a store: the other side answered, and would not.
    #[must_use]
    pub fn refused(
        what: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::with_source(ErrorKind::Refused, what, source)
    }

    /// For implementers of a store: it was not asked, since as many calls wait for it already as may. That is no sign of a
    /// store that is away.
    #[must_use]
    pub fn overloaded(
        what: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::with_source(ErrorKind::Overloaded, what, source)
    }

    /// What a program can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without anything being changed. After
    /// [`Disconnected`](ErrorKind::Disconnected), [`TimedOut`](ErrorKind::TimedOut), or an
    /// [`Unavailable`](ErrorKind::Unavailable) of a cache's store it may have been carried out
    /// already: repeat only what may happen twice. Of a failed load only the loader's
    /// own error knows; it is taken for one that may.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        use ErrorKind::{
            Disconnected, HostNotFound, Load, Overloaded, TimedOut, TooManyConnections, Unavailable,
        };
        matches!(
            self.kind(),
            Disconnected | HostNotFound | Load | Overloaded | TimedOut | TooManyConnections | Unavailable
        )
    }

    /// The source, if it is one of type `E`: the loader's own error, or the driver's.
    ///
    /// ```
    /// # use mcp_perf::cache::{Cache, Key};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let cache: Cache<String> = Cache::builder("files").build()?;
    /// let error = cache
    ///     .get_or_load(&Key::public("motd"), || async { std::fs::read_to_string("/no/such/file") })
    ///     .await
    ///     .unwrap_err();
    /// let cause = error.downcast_source::<std::io::Error>().map(|error| error.kind());
    /// assert_eq!(cause, Some(std::io::ErrorKind::NotFound));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn downcast_source<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.0.source.as_ref()?.downcast_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The source is left out here as in `Display`: whoever prints it walks to it on purpose.
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
    }

    #[test]
    fn text_of_a_source_is_never_in_the_text_of_the_error() {
        let error = Error::with_source(ErrorKind::Unavailable, "redis: connect", "redis://:hunter2@host");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "redis://:hunter2@host");
    }
}
