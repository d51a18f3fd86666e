//! Redis (6.2 or later, Valkey) as the remote tier of a cache.
//!
//! A few connections, shared by everybody: each carries the commands of many callers at once, so nobody
//! waits for a connection, and the server sees few of them. bb8 makes, keeps and replaces them; a
//! connection that broke, or on which three calls in a row went unanswered, is replaced when it is next
//! asked for. A call whose connection was cut is made again on another one. TLS is not supported yet.
//!
//! ```no_run
//! use mcp_perf::{cache::Cache, redis::RedisStore};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
//! let store = RedisStore::new("redis://127.0.0.1:6379")?.prefix("my-server")?;
//! let cache: Cache<String> = Cache::builder("answers").remote(store).build().await?;
//! # Ok(()) }
//! ```

mod cache;
mod pool;

pub use cache::RedisStore;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::Error;

/// Sorts a driver's error: is the server away, or did it refuse?
fn sorted(operation: &'static str, error: RedisError) -> Error {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    let away = !matches!(error.kind(), ErrorKind::AuthenticationFailed)
        && (error.is_io_error() || error.is_unrecoverable_error())
        || matches!(
            error.kind(),
            ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain)
        );
    // In the driver's own fixed words: its full text, which may quote what was sent, is the source's.
    let cause = if error.is_connection_refusal() { "connection refused" } else { error.category() };
    if away {
        Error::unavailable(format!("redis cannot be reached ({operation}): {cause}"), error)
    } else {
        Error::refused(format!("redis refused ({operation}): {cause}"), error)
    }
}
