//! Ours against the others, interleaved in one process.
//!
//! `cargo run --release --manifest-path benches/rivals/Cargo.toml -- <cache|limit|rmcp|all>`
//!
//! One line on stdout for each comparison, and nothing else there that begins with `ratio`:
//!
//! `ratio <capability>.<case> ours=<value><unit> <rival>=<value><unit> ratio=<ours÷rival> bar<=<number> met|missed`
//!
//! Of costs (`ns`, `us`, `loads`) less is better and the bar is `<=`, of rates (`/s`) more and it is `>=`. A
//! comparison without a bar is there to be known. Both sides run in turn, whoever was second going first in
//! the next round; the line shows the round whose ratio is the median of all rounds. How the machine and the
//! rounds were is on stderr.

mod cache;
mod draws;
mod limit;
mod machine;
mod measure;
mod ready;
mod report;
mod rmcp;

#[path = "../../../tests/support"]
#[allow(dead_code, unreachable_pub, reason = "the tests share it, and no one of its users needs all of it")]
mod support {
    pub mod process;
    pub mod redis;
}

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let capability = std::env::args().nth(1).unwrap_or_default();
    machine::describe();
    match capability.as_str() {
        "cache" => cache::run(),
        "limit" => limit::run(),
        "rmcp" => rmcp::run(),
        "all" => {
            cache::run()?;
            limit::run()?;
            rmcp::run()
        }
        other => bail!("which capability? cache, limit, rmcp or all, not {other:?}"),
    }
}
