//! A pool of connections that is fair, keeps its bound whatever happens, and may find its own size.

mod builder;
mod classes;
mod connect;
mod front;
mod gate;
mod guard;
mod holders;
mod maintenance;
mod opener;
mod queue;
mod sampler;
mod shared;
pub mod sizing;
mod stats;
mod supply;
mod tracked;
mod usage;

pub use builder::PoolBuilder;
pub use classes::{Class, Share};
pub use front::Pool;
pub use guard::Connection;
pub use holders::Held;
pub use sizing::Sizing;
pub use stats::{ClassStats, Closed, Stats};
