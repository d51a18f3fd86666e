//! The performance layer that an MCP server embeds: cached answers, rate limits and timing, around any
//! [`rmcp`](https://docs.rs/rmcp) server or as parts that each work alone.
//!
//! ```
//! # #[cfg(feature = "rmcp")] {
//! use mcp_perf::{limit::{Limiter, Quota}, rmcp::{Performance, ToolPolicy}};
//! use std::time::Duration;
//!
//! # #[derive(Clone)] struct Registry;
//! # impl rmcp::ServerHandler for Registry {}
//! # fn main() -> Result<(), mcp_perf::Error> {
//! let limiter = Limiter::builder().policy("tool", Quota::per_second(500)).build()?;
//! let tool = limiter.scope("tool")?;
//!
//! let server = Performance::builder(Registry) // any `rmcp::ServerHandler`
//!     .cache_tool("search", ToolPolicy::public(Duration::from_secs(60)).tag("servers"))
//!     .invalidate_after("add_server", |_arguments| vec!["servers".to_owned()])
//!     .limit(limiter, move |call| vec![tool.on(call.name)])
//!     .build()?; // a `ServerHandler` again: serve it where `Registry` was served
//! # let _ = server; Ok(()) } main().unwrap();
//! # }
//! ```
//!
//! # The parts, in the order a request meets them
//!
//! | module | what it does | feature |
//! |---|---|---|
//! | [`timing`] | how long things take, by kind of work, with percentiles | |
//! | [`limit`] | who may do how much of what: GCRA in fixed memory, several limits in one decision | |
#![cfg_attr(
    feature = "rmcp",
    doc = "| [`rmcp`] | around a server: all of this for every transport and protocol revision | `rmcp` |"
)]
#![cfg_attr(
    not(feature = "rmcp"),
    doc = "| `rmcp` | around a server: all of this for every transport and protocol revision | `rmcp` |"
)]
//! | [`cache`] | values in memory, and behind it a store that processes share | |
#![cfg_attr(
    feature = "pool",
    doc = "| [`pool`] | connections to a database, fairly shared, as many as are of use | `pool` |"
)]
#![cfg_attr(
    not(feature = "pool"),
    doc = "| `pool` | connections to a database, fairly shared, as many as are of use | `pool` |"
)]
#![cfg_attr(
    feature = "redis",
    doc = "| [`redis`] | Redis as that store, as the bus of invalidations, and connections for commands that wait | `redis` |"
)]
#![cfg_attr(
    not(feature = "redis"),
    doc = "| `redis` | Redis as that store, as the bus of invalidations, and connections for commands that wait | `redis` |"
)]
#![cfg_attr(
    feature = "postgres",
    doc = "| [`postgres`] | PostgreSQL as that store and bus, and connections to it for a pool | `postgres` |"
)]
#![cfg_attr(
    not(feature = "postgres"),
    doc = "| `postgres` | PostgreSQL as that store and bus, and connections to it for a pool | `postgres` |"
)]
//! | [`clock`] | where all of them read the time | |
//!
//! [`guide`] has the pages that go across: how a request flows, which of a cache's settings is for what, what happens
//! when something fails, what an exporter gets and what to be woken for, how to tune a pool (with the features `pool` and
//! `postgres`), how to write a backend, and how to test with all this. Begin with [`caching`](guide::caching).
//!
//! # Features
//!
//! | feature | brings | costs |
//! |---|---|---|
//! | `tower` (default) | [`limit`] and [`timing`] as tower layers | `http`, `tower-layer`, `tower-service`: types and traits |
//! | `rmcp` | the wrapper, and `serve` with `TCP_NODELAY` | `rmcp` with its server, `hyper` |
//! | `redis` | Redis behind the cache, its invalidation bus, and connections for commands that wait | `redis`, `bb8` |
//! | `redis-tls` | the same over TLS | `tokio-rustls` with `ring` |
//! | `postgres` | PostgreSQL behind the cache, as its bus, and connections to it for a pool | `tokio-postgres`, `bb8`, `base64` |
//! | `postgres-tls` | the same over TLS | `tokio-postgres-rustls`, `tokio-rustls` with `ring` |
//! | `pool` | pools that find their own size | `bb8` |
//! | `message-pack` | `MessagePack` for values of the cache's remote tier | `rmp-serde` |
//! | `zstd` | zstd for large values there | `zstd`, and a C compiler |
//! | `quick-cache` | `quick_cache` as the engine of a cache's memory | `quick_cache` |
//! | `test-util` | a movable clock, a store and a bus in memory and ones that fail, contract tests, a checker that finds stale reads | nothing |
//! | `full` | all but `test-util` | |
//!
//! Features only add. The default build holds no driver, no server and no TLS.
//!
//! # Promises, and what is none
//!
//! - What is cached was asked for by name; nothing else changes what a client sees. The official conformance
//!   suite gives the same verdicts, check by check, with the wrapper and without.
//! - A value that was read before an invalidation is not stored after it; one caller's private answer is never
//!   another's. Both are tests that step through the races.
//! - Memory is bounded: caches by entries or bytes, limiters by keys, timing by series.
//! - Dropping a future anywhere leaves every count and every waiter right. No `unsafe`. No panic that input
//!   could cause.
//! - A cache is a copy: what must be true at this instant does not belong in one.
//!
//! Minimum Rust: 1.88. It rises in minor releases, to versions at least six months old.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(feature = "full", feature = "test-util")),
    allow(rustdoc::broken_intra_doc_links, reason = "pages lead to what other features bring")
)]

pub mod cache;
pub mod clock;
mod error;
mod event;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod generation;
pub mod guide;
pub mod limit;
#[cfg(all(test, mcp_perf_loom))]
mod model;
#[cfg(feature = "pool")]
pub mod pool;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "rmcp")]
pub mod rmcp;
mod stripe;
mod sync;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod tcp;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
pub mod timing;
#[cfg(any(feature = "postgres-tls", feature = "redis-tls"))]
mod tls;
#[cfg(any(test, feature = "postgres", feature = "redis"))]
mod wheel;

pub use error::{Error, ErrorKind};

/// The examples of the README are compiled and run as tests.
#[cfg(all(doctest, feature = "full"))]
#[doc = include_str!("../README.md")]
mod readme {}
