//! The cache: hits in the process (`l1_hit`), a stampede on one key (`stampede`), reads of the store behind it
//! (`l2_get` and `l2_get_2workers`) and through it (`l2_read` and `l2_read_2workers`). All of them are run unless some are named.

mod hit;
mod peers;
mod remote;
mod stampede;

use std::sync::Arc;

use anyhow::Result;
use remote::Tier;

use crate::parts::chosen;

/// What is cached: 1 KiB, shared with whoever reads it.
type Payload = Arc<str>;

type Part = fn() -> Result<()>;

const PARTS: [(&str, Part); 6] = [
    ("l1_hit", hit::run),
    ("stampede", stampede::run),
    ("l2_get", || remote::run(Tier::Store, 1, "cache.l2_get")),
    ("l2_get_2workers", || remote::run(Tier::Store, 2, "cache.l2_get_2workers")),
    ("l2_read", || remote::run(Tier::Cache, 1, "cache.l2_read")),
    ("l2_read_2workers", || remote::run(Tier::Cache, 2, "cache.l2_read_2workers")),
];

/// Runs the parts that are named.
pub fn run(names: &[String]) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for run in chosen(&PARTS, &names)? {
        run()?;
    }
    Ok(())
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
