//! The cache: hits in the process, a stampede on one key, reads of the remote tier.

mod hit;
mod peers;
mod remote;
mod stampede;

use std::sync::Arc;

use anyhow::Result;

/// What is cached: 1 KiB, shared with whoever reads it.
type Payload = Arc<str>;

pub fn run() -> Result<()> {
    hit::run()?;
    stampede::run()?;
    remote::run()
}

/// A text of 1 KiB, another one for each index.
fn payload(index: usize) -> String {
    format!("{index:064}").repeat(16)
}

/// Names of 58 bytes, as a tool's name and a digest of its arguments would be.
fn names(count: usize) -> Vec<String> {
    (0..count)
        .map(|index| format!("tools/call:search_documents:{:030x}", index as u128 * 0x9e37_79b9))
        .collect()
}
