//! Around any `rmcp` server: timing, limits and cached answers, over every transport.
//!
//! [`Performance`] wraps a [`ServerHandler`](::rmcp::ServerHandler) and is one, so it goes wherever the
//! handler went: over stdio, an in-memory pipe, or streamable HTTP with or without sessions, and for clients
//! of every protocol revision. Without settings it changes nothing that a client could see; what it adds has
//! to be asked for by name.
//!
//! ```
//! use mcp_perf::rmcp::{Performance, ToolPolicy};
//! use rmcp::ServerHandler;
//! use std::time::Duration;
//!
//! #[derive(Clone)]
//! struct Weather;
//! impl ServerHandler for Weather {}
//!
//! # fn main() -> Result<(), mcp_perf::Error> {
//! let server = Performance::builder(Weather)
//!     // The same for every caller, and good for a minute:
//!     .cache_tool("forecast", ToolPolicy::public(Duration::from_secs(60)).tag("forecasts"))
//!     // Whatever this one does, no forecast from before it is served after it:
//!     .invalidate_after("report_observation", |_arguments| vec!["forecasts".to_owned()])
//!     .build()?;
//!
//! // Where `Weather` was served, serve `server`; cloning it is cheap.
//! let each_connection = move || Ok::<_, std::io::Error>(server.clone());
//! # let _ = each_connection;
//! # Ok(()) }
//! ```
//!
//! # What a request goes through
//!
//! Timing, then the rate limit (only `tools/call`), then the cache of answers (only the tools that were named
//! to it), then the handler. Handshake, ping, cancellation and notifications go straight through.
//!
//! # What is cached
//!
//! A tool's answer, if its owner said so with [`cache_tool`](PerformanceBuilder::cache_tool), under a key of
//! the tool and its definition (as the handler's `get_tool` gives it when the wrapper is built), the arguments as given (objects in any order), whether the client speaks a
//! protocol before or since 2026-07-28, and, unless the policy says
//! [`public`](ToolPolicy::public), the caller. Only complete results that are no errors are stored. Calls that
//! answer an earlier request for input go to the handler every time.
//!
//! Say it only of tools that depend on nothing but their arguments (and, if private, on the caller), change
//! nothing, ask the client nothing and send no notifications: a hit does not run the tool, so it sends none. Callers who ask for the
//! same at once share one run; it has a cancellation token of its own, and no progress token.
//!
//! # One handler
//!
//! The wrapper holds one handler, which all its clones share: give it what is true of the server, not of one
//! session.
//!
//! # HTTP
//!
//! [`serve`] listens with `TCP_NODELAY`. Without it every answer of a server that streams its answers waits
//! some 40 ms for the client's delayed acknowledgement.

mod answer;
mod builder;
mod handler;
mod key;
mod meter;
mod policy;
mod serve;
mod unlisted;

pub use answer::Answer;
pub use builder::PerformanceBuilder;
pub use handler::Performance;
pub use policy::{Principal, ToolCall, ToolPolicy};
pub use serve::{serve, serve_until};
