//! The wrapper against the bare server: what it costs, and what a hit saves.
//!
//! Client and server share one runtime, of one worker thread unless the name says two.

mod duplex;
mod http;
mod server;

use std::time::Duration;

use anyhow::{Result, ensure};
use mcp_perf::{
    limit::{Limiter, Quota},
    rmcp::{Performance, ToolPolicy},
};
use tokio::runtime::{self, Runtime};

use self::{duplex::Pipe, http::Site, server::Tools};
use crate::{measure::Rounds, report::Comparison};

pub fn run() -> Result<()> {
    let one = runtime_of(1)?;
    over_duplex(bare("rmcp.overhead.duplex").at_least(0.97), &one, plain()?)?;
    over_http(bare("rmcp.overhead.http").at_least(0.97), &one, plain()?)?;
    over_duplex(bare("rmcp.overhead.duplex_limited"), &one, limited()?)?;
    hit(&one)?;
    drop(one);
    let two = runtime_of(2)?;
    over_duplex(bare("rmcp.overhead.duplex_2workers"), &two, plain()?)?;
    over_http(bare("rmcp.overhead.http_2workers"), &two, plain()?)
}

fn bare(name: &str) -> Comparison<'_> {
    Comparison::rate(name, "bare")
}

fn runtime_of(workers: usize) -> Result<Runtime> {
    Ok(runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?)
}

/// The wrapper as it comes.
fn plain() -> Result<Performance<Tools>> {
    Ok(Performance::builder(Tools::new()).build()?)
}

/// The wrapper with a limit that is never reached, and a cache for a tool that is not called.
fn limited() -> Result<Performance<Tools>> {
    let quota = Quota::per_second(10_000_000);
    let limiter = Limiter::builder().policy("caller", quota).policy("tool", quota).build()?;
    let (caller, tool) = (limiter.scope("caller")?, limiter.scope("tool")?);
    let subjects = move |call: &mcp_perf::rmcp::ToolCall<'_>| vec![caller.on("somebody"), tool.on(call.name)];
    Ok(Performance::builder(Tools::new())
        .limit(limiter, subjects)
        .cache_tool("work", ToolPolicy::public(Duration::from_secs(60)))
        .build()?)
}

fn over_duplex(line: Comparison<'_>, runtime: &Runtime, wrapped: Performance<Tools>) -> Result<()> {
    let (ours, bare) = (Pipe::open(runtime, wrapped)?, Pipe::open(runtime, Tools::new())?);
    line.run(Rounds::LONG, &mut |count| ours.call("echo", count), &mut |count| bare.call("echo", count))
}

fn over_http(line: Comparison<'_>, runtime: &Runtime, wrapped: Performance<Tools>) -> Result<()> {
    let (mut ours, mut bare) = (Site::open(runtime, wrapped)?, Site::open(runtime, Tools::new())?);
    line.run(Rounds::LONG, &mut |count| ours.call(count), &mut |count| bare.call(count))
}

fn hit(runtime: &Runtime) -> Result<()> {
    let policy = ToolPolicy::public(Duration::from_secs(3_600));
    let wrapped = Performance::builder(Tools::new()).cache_tool("work", policy).build()?;
    let (ours, bare) = (Pipe::open(runtime, wrapped.clone())?, Pipe::open(runtime, Tools::new())?);
    ours.call("work", 1)?;
    let rounds = Rounds { count: 31, ..Rounds::LONG };
    Comparison::rate("rmcp.hit.duplex", "run").run(
        rounds,
        &mut |count| ours.call("work", count),
        &mut |count| bare.call("work", count),
    )?;
    let loads = wrapped.answers().stats().loads;
    ensure!(loads == 1, "the tool ran {loads} times");
    Ok(())
}
