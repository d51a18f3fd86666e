//! Ours against the others, interleaved in one process.
//!
//! `cargo run --release --manifest-path benches/rivals/Cargo.toml -- <cache|limit|pool|rmcp|all> [<part> ...]`
//!
//! One line on stdout for each comparison, and nothing else there that begins with `ratio`:
//!
//! `ratio <capability>.<case> ours=<value><unit> <rival>=<value><unit> ratio=<ours÷rival> bar<=<number> met|missed`
//!
//! Of costs (`ns`, `us`, `loads`) less is better and the bar is `<=`, of rates (`/s`) more and it is `>=`. A
//! comparison without a bar is there to be known. Where the bar is on how much more ours costs, `more=<ours−rival><unit>`
//! stands before it, and the bar has a unit.
//!
//! What has a bar of its own, whatever the rivals come to, is another line:
//!
//! `figure <capability>.<case> ours=<value><unit> [<rival>=<value><unit> ...] [bar<=<number><unit> met|missed]`
//!
//! Both sides run in turn, whoever was second going first in
//! the next round; the line shows the round whose ratio is the median of all rounds. How the machine and the
//! rounds were is on stderr.

mod cache;
mod draws;
mod figure;
mod limit;
mod machine;
mod measure;
mod parts;
mod pool;
mod ready;
mod report;
mod rmcp;

#[path = "../../../tests/support"]
#[allow(dead_code, unreachable_pub, reason = "the tests share it, and no one of its users needs all of it")]
mod support {
    pub mod postgres;
    pub mod process;
    pub mod redis;
}

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let capability = arguments.next().unwrap_or_default();
    let how: Vec<String> = arguments.collect();
    machine::describe();
    match capability.as_str() {
        "cache" => cache::run(&how),
        "limit" => limit::run(),
        "pool" => pool::run(&how),
        "rmcp" => rmcp::run(),
        "all" => {
            cache::run(&[])?;
            limit::run()?;
            pool::run(&how)?;
            rmcp::run()
        }
        other => bail!("which capability? cache, limit, pool, rmcp or all, not {other:?}"),
    }
}
