//! PostgreSQL (13 or later): connections for a pool, a share of the server's connections, and the remote tier of a
//! cache, and its invalidation bus.
//!
//! | type | what for |
//! |---|---|
//! | [`PostgresManager`] | connections for a pool of bb8's or of this crate's: statements prepared once, guarded transactions, nothing of the last user's |
//! | [`PostgresBudget`] | how many connections this process may have, where many share a server |
//! | `ObservedShare` | the same for a pool, by what the server says is open: no stock, and less is promised (feature `pool`) |
//! | [`PostgresStore`] | the remote tier of a cache |
//! | [`PostgresBus`] | its invalidation bus |
//!
//! # A pool's connections
//!
//! A pool lends a connection to one user after another, and each of them may leave something behind: a query that
//! still runs because its caller has gone, an open transaction, a changed setting, a lock. Queries and transactions
//! never reach the next: every call is counted, and one that is dropped is cancelled on the server; a transaction is a
//! guard that rolls back unless it was committed. How much of the rest is undone is the [`ResetPolicy`]'s to say. All
//! of it happens in the background, and the next call on that connection waits until it has.
//!
//! A caller that is alone on its connection, which is the rule where a pool lends it, reads and writes the socket itself
//! while it waits. The usual way over a task costs a hand-over in both directions, often between threads. Where
//! several ask on one connection at once, or through the driver's client, a task does it, so that nobody depends on a
//! caller that is not polled.
//!
//! Errors tell what a program can do: see the kinds at [`connect`](PostgresManager#method.connect) and
//! [`query_cached`](PostgresConnection::query_cached). A failover is noticed by the first connection that hears of it,
//! and costs all of them.
//!
//! Not for a server behind a pooler that hands out another session for each transaction: prepared statements, settings
//! and locks belong to a session.
//!
//! # The store of a cache
//!
//! For those who have a PostgreSQL and no Redis, and want one cache for several processes. A read is one prepared
//! statement, which brings the entry, what is left of its life and the stamps of its tags; a write is one
//! statement, too. The tables are `UNLOGGED`: they cost no write-ahead log and are not replicated, and after a
//! crash of the server they are empty, which is a miss and nothing worse.
//!
//! ```no_run
//! use mcp_perf::{cache::Cache, postgres::PostgresStore};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
//! let store = PostgresStore::new("postgres://server@127.0.0.1/server")?.prefix("my_server")?;
//! store.migrate().await?; // makes the tables, unless they are there
//! let cache: Cache<String> = Cache::builder("answers").remote(store).build().await?;
//! # Ok(()) }
//! ```
//!
//! ## Connections
//!
//! Three for a store, however many tasks use it: two for reading and one for writing, each of which carries the
//! queries of many callers at once. So nobody waits for a connection, and no read waits behind a write that waits
//! for a lock. bb8 makes, keeps and replaces them; a connection that was closed, or on which three calls in a row
//! went unanswered, is replaced when it is next asked for, and a call whose connection was cut is made again on
//! another one. A bus has two more, of which one listens. Every connection is set up as follows; what the URL says in `options` comes after and wins.
//!
//! | setting | value | why |
//! |---|---|---|
//! | `application_name` | `mcp-perf`, unless the URL has one | to be found in `pg_stat_activity` |
//! | `statement_timeout` | 2 s | the caller has given up by then, and those behind it have not |
//! | `default_transaction_isolation` | `read committed` | compare-and-write waits for the other writer instead of failing |
//! | `plan_cache_mode` | `force_generic_plan` | planning costs more than these queries |
//! | `enable_seqscan`, `enable_hashjoin`, `enable_mergejoin` | off | a plan made while a table was small, and kept, reads it by its key when it is big |
//! | `jit` | off | compiling costs more than these queries |
//! | TCP keepalive, user time-out | 30 s and 3 × 10 s; 30 s | a peer that vanished is noticed |
//!
//! Prepared statements and settings belong to a connection, so a pooler that hands out another one for each
//! transaction does not fit in between.
//!
//! ## What has died
//!
//! Nothing that has expired is served, whether its row is still there or not. The rows are deleted by those who
//! write: one write in 500, by chance, starts a purge in the background, which deletes what died more than eleven
//! minutes ago in batches of 500, skips what others hold locked, and ends after 20 batches; a process runs one at
//! a time. [`PostgresStore::purge`] is the same for a scheduler of your own.

mod budget;
mod bus;
mod cache;
mod cancel;
mod connection;
mod connector;
mod dial;
mod fault;
mod fence;
mod line;
#[cfg(feature = "pool")]
mod observed;
mod pool;
#[cfg(feature = "pool")]
mod pooled;
mod query;
mod schema;
mod shared;
mod statements;
#[cfg(feature = "postgres-tls")]
mod tls;
mod transaction;

pub use budget::{Observed, PostgresBudget, PostgresBudgetBuilder};
pub use bus::{PostgresBus, PostgresSubscription};
pub use cache::PostgresStore;
pub use connection::PostgresConnection;
pub use line::ResetPolicy;
#[cfg(feature = "pool")]
pub use observed::ObservedShare;
pub use pool::{PostgresManager, PostgresManagerBuilder};
pub use transaction::{Transaction, TransactionOptions};
