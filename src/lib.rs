//! Response caching, rate limiting and latency metrics for MCP servers: around any [`rmcp`](https://docs.rs/rmcp)
//! server, or as parts (among them a two-tier cache and database pools that size themselves) that each work alone, in any
//! tokio service.
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
//! | [`limit`] | rate limits: GCRA in fixed memory, several limits in one decision | |
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
    doc = "| [`pool`] | a connection pool over any bb8 manager: first come, first served, with classes, sized by measured throughput | `pool` |"
)]
#![cfg_attr(
    not(feature = "pool"),
    doc = "| `pool` | a connection pool over any bb8 manager: first come, first served, with classes, sized by measured throughput | `pool` |"
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
//! The [`guide`] covers the flow of a request, choosing a cache's settings, failure modes, metrics and alerts, tuning a
//! pool (with the features `pool` and `postgres`), writing a backend, and testing. Start with
//! [`caching`](guide::caching).
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
//! # Guarantees and limits
//!
//! - What is cached was asked for by name; nothing else changes what a client sees. The official conformance
//!   suite gives the same verdicts, check by check, with the wrapper and without.
//! - A value that was read before an invalidation is not stored after it; one caller's private answer is never
//!   another's. Both are tests that step through the races.
//! - Memory is bounded: caches by entries or bytes, limiters by keys, timing by series.
//! - Dropping a future anywhere leaves every count and every waiter right. No `unsafe`. Untrusted input never causes a
//!   panic.
//! - A cache is a copy: what must be true at this instant does not belong in one.
//! - Not for rate limits that several processes share ([`limit`] counts in one process), nor for one process that only
//!   wants a bounded map: `moka` or `quick_cache` alone is leaner.
//!
//! # Public dependencies
//!
//! Types of these crates are in signatures, so a new major version of one is a breaking release of this crate: `bytes` 1,
//! `serde` 1; with `tower`: `http` 1, `tower-layer` and `tower-service` 0.3; with `rmcp`: `rmcp` 3, `hyper` 1; with `pool`:
//! `bb8` 0.9; with `postgres`: `tokio-postgres` 0.7; with `redis`: `redis` 1. Metrics go to the recorder that is installed
//! for `metrics` 0.24.
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
