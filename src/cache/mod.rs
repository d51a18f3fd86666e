//! A cache in two tiers: in the process, and behind it a store that the processes of a fleet share.
//!
//! # What it is for
//!
//! For values that are slow to make and asked for more often than they change. Not for what must be
//! true at this very instant (a balance, a permission that was just withdrawn), not for what nobody asks
//! for twice, and not as the only copy of anything: every entry may be gone at any time.
//!
//! # How a value is found
//!
//! ```text
//! get_or_load ─▶ in process ─hit▶ value                         no await, no lock of ours, no allocation
//!                    │ miss
//!                    ▼
//!                 flight: one per key, everybody else waits      a task of its own
//!                    │
//!                    ├─▶ remote ─hit▶ value ─▶ in process
//!                    └─▶ loader ────▶ value ─▶ in process ─▶ waiters ─▶ remote
//! ```
//!
//! # What is promised
//!
//! - **One load.** However many ask for a missing key at once, one loader runs. A caller that goes away,
//!   a loader that panics or fails or takes longer than [`load_timeout`](CacheBuilder::load_timeout)
//!   releases everybody: with the value, or with the one shared error. A failed load is not repeated for
//!   [`error_throttle`](CacheBuilder::error_throttle). With [`share_loads`](RemoteCacheBuilder::share_loads) it is one
//!   load for all processes, as long as the store answers in time. (With a remote tier a load is joined for
//!   [`max_staleness`](RemoteCacheBuilder::max_staleness), since nobody knows what other processes removed since it began:
//!   of a source that hangs for longer, another load begins after each of those.)
//! - **Nothing old after an invalidation.** A value that was read before a [`remove`](Cache::remove),
//!   [`remove_by_tag`](Cache::remove_by_tag) or [`clear`](Cache::clear) is never stored after it, not in
//!   this process and not in the remote tier, wherever the load was running. Callers that were waiting
//!   when the invalidation came may still get it.
//! - **What is stale is served where you said so**, and nowhere else: at once while a load runs behind it
//!   ([`stale_while_revalidate`](CacheBuilder::stale_while_revalidate)), or in the place of a load that fails or is
//!   slow ([`stale_if_error`](CacheBuilder::stale_if_error)). What was removed is never stale, it is gone; what was
//!   made to [`expire`](Cache::expire) is waited for.
//! - **No life gained.** An entry that travels through the tiers dies no later than it would have where
//!   it was made.
//! - **Other processes** see an invalidation at once in the remote tier, and in their own memory within
//!   [`max_staleness`](RemoteCacheBuilder::max_staleness) of when it last asked for what it serves. With a
//!   [bus](RemoteCacheBuilder::bus) they are told at once, and memory serves an entry for as long as it lives;
//!   `max_staleness` then bounds what a lost message, or a bus that is away, can do. The bus is not trusted with
//!   that: every invalidation is written down in the remote tier first, and every process sees there whether it
//!   heard of all.
//! - **A remote tier that is away** is left alone: the cache goes on from memory and loader, asks again
//!   every two seconds while anybody calls, and says so once in the log. Memory answers for
//!   [`max_staleness`](RemoteCacheBuilder::max_staleness) at a time even then, since other processes may still
//!   reach what this one cannot. What could not be invalidated there is an error of the call that wanted it, and
//!   is owed: this process does not ask for that there before it was told. What it answers is never trusted: bytes
//!   that are not ours, damaged, or of another type are a miss.
//!
//! Dropping any of the futures here is safe at any point: loads and writes run in tasks of their own and
//! are finished.
//!
//! # How values are written
//!
//! | strategy | how | the caller waits for | lost in a crash |
//! |---|---|---|---|
//! | cache-aside | write the source, then [`Cache::remove`] | source and removal | nothing; but the removal, if it comes between the two: the old value is served to the end of its life |
//! | write-through | [`Cache::write_through`] | source and cache | nothing; but if it comes between the source and the store, that has the old value to the end of its life |
//! | write-behind | [`WriteBehind`] | the cache | what is [queued](WriteBehind::queued): up to its `delay` of writes, more while the source is away |
//!
//! # How values travel
//!
//! A value becomes bytes by a [`Codec`], is made smaller by a [`Compression`] if that pays, and lies in the store
//! with its key, its tags and a checksum around it. Bytes of another codec, schema or key, above
//! [`max_value`](RemoteCacheBuilder::max_value), cut short or made up are a miss.
//!
//! Names in the store hold the version of that layout. Releases that differ in it do not read, overwrite or delete
//! each other's entries; while they run side by side they are two caches, and an invalidation in one is none in the
//! other. The changelog says when the version changes.
//!
//! # Metrics
//!
//! [`Cache::stats`] is a snapshot. The same goes to the `metrics` recorder that is installed when the cache is built, with
//! the label `cache`: the names, and what to be woken for, are on a [page of the guide](crate::guide::metrics#a-cache).
//!
//! ```
//! use mcp_perf::cache::{Cache, Key};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
//! let cache: Cache<String> =
//!     Cache::builder("weather").capacity(1_000).time_to_live(Duration::from_secs(60)).build()?;
//!
//! async fn forecast(city: &str) -> Result<String, std::io::Error> {
//!     Ok(format!("sunny in {city}"))
//! }
//!
//! let key = Key::public("lisbon");
//! let value = cache.get_or_load_tagged(&key, &["portugal"], || forecast("lisbon")).await?;
//! assert_eq!(value, "sunny in lisbon");
//! assert_eq!(cache.get(&key).await.as_deref(), Some("sunny in lisbon"));
//!
//! cache.remove_by_tag("portugal").await?;
//! assert_eq!(cache.get(&key).await, None);
//! assert_eq!(cache.stats().loads, 1);
//! # Ok(()) }
//! ```

mod availability;
mod batch;
mod builder;
mod bus;
mod captured;
mod chain;
mod channel;
mod chosen;
mod codec;
mod coherence;
mod compress;
mod debts;
mod envelope;
mod explain;
mod flight;
mod format;
mod freshness;
mod front;
#[cfg(test)]
mod hostile;
mod key;
mod landing;
mod lease;
mod load;
mod load_limit;
mod load_many;
mod loaded;
mod local;
mod look;
mod memoize;
mod message;
mod nesting;
mod patience;
mod paying;
mod recheck;
mod remote;
mod stats;
mod store;
mod storing;
mod tags;
mod tiers;
mod untold;
mod write;
mod write_behind;
mod write_queue;

pub use availability::RemoteStatus;
pub use batch::{BatchLoader, Warmed};
pub use builder::{CacheBuilder, MAX_TIME_TO_LIVE, MAX_VALUE, RemoteCacheBuilder};
pub use bus::{Bus, Subscription};
pub use codec::Codec;
pub use compress::Compression;
pub use explain::{Explanation, LocalState, RemoteState};
pub use front::Cache;
pub use key::Key;
pub use loaded::{Loaded, Previous};
pub use local::Engine;
pub use memoize::{Argument, Memoized};
pub use stats::{BusStats, Stats};
pub use store::{Fence, Found, Put, Restamp, Slot, Store, Stored, Written};
pub use tags::{Invalidation, Stamp};
pub use write_behind::WriteBehind;
