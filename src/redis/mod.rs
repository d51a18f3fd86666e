//! Redis (6.2 or later, Valkey) as the remote tier of a cache, and as its invalidation bus.
//!
//! Two connections of a store, shared by everybody: one for what is small, one for what is 64 KiB or more; a bus has one to
//! publish, and one for each cache that listens. Clone one store for all caches. Nobody waits for a
//! connection, the server sees few of them, and reads that are made at the same time travel as few questions, so that
//! more callers cost less each. A connection that broke, fell silent or leads to a server that is the primary no
//! longer is replaced, and a call that was under way on it is made once more.
//!
//! A server that comes back without its last writes, from a snapshot or as a replica that took over, brings back nothing
//! that was removed: by `INFO replication` it tells that its data are of another history, and then all that was stored
//! before is a miss. Users who may not ask that do without.
//!
//! Of a cluster it uses one node, and follows the names when they move to another. It asks for the commands `AUTH`,
//! `CLIENT SETNAME`, `EVAL`, `EVALSHA`, `GETRANGE`, `INFO`, `MGET`, `PEXPIRE`, `PING`, `PSETEX`, `SELECT`, `SET` and `TIME`,
//! on names that begin with the prefix in braces and a colon, and a bus for `INFO`, `PUBLISH` and `SUBSCRIBE` on channels that begin
//! without the braces: `ACL SETUSER app ~{mcp-perf}:* &mcp-perf:* …`.
//!
//! What the connections do is in [`RedisStore::stats`], and goes to the `metrics` recorder that is installed when the
//! store is first used, with the label `prefix`: the names are on a
//! [page of the guide](crate::guide::metrics#the-connections-of-a-redis-store).
//!
//! ```no_run
//! use mcp_perf::{cache::Cache, redis::RedisStore};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
//! let store = RedisStore::new("redis://127.0.0.1:6379")?.prefix("my-server")?;
//! let cache: Cache<String> = Cache::builder("answers").remote(store).build().await?;
//! # Ok(()) }
//! ```
//!
//! Commands that wait on the server, as `BLPOP`, have no place there. For those [`RedisManager`] makes connections that a
//! pool lends to one caller at a time.

mod address;
mod batch;
mod bus;
mod cache;
mod connection;
mod driver;
mod exclusive;
mod fault;
mod history;
mod incoming;
mod pool;
mod queue;
mod stats;
#[cfg(feature = "redis-tls")]
mod tls;
mod wire;

pub use bus::{RedisBus, RedisSubscription};
pub use cache::RedisStore;
pub use exclusive::{RedisConnection, RedisManager};
pub use stats::{Closed, Stats};
#[cfg(feature = "test-util")]
#[doc(hidden)]
pub use wire::tokens;
