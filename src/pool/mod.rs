//! A pool of connections that is fair, keeps its bound whatever happens, and may find its own size.

#![expect(dead_code, reason = "its parts come one after the other")]

mod classes;
mod gate;
mod queue;
mod usage;

pub use classes::Share;
