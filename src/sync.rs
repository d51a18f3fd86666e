//! Locks and atomics, by way of loom where its model checker runs (`--cfg mcp_perf_loom`).

#[cfg(mcp_perf_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::sync::PoisonError;
#[cfg(not(mcp_perf_loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Locks, whether or not another thread panicked while it held the lock: what this crate guards is
/// whole between any two statements, and a panicking loader must not take the cache with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
