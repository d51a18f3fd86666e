//! A client and a server in one process, over a pipe in memory.

use std::time::Duration;

use anyhow::{Context, Result};
use rmcp::{
    RoleClient, ServerHandler, ServiceExt,
    model::{CallToolRequestParams, JsonObject},
    service::{Peer, RunningService},
};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::measure::Stopwatch;

/// Calls under way at once.
const CALLERS: u64 = 16;

/// A connection whose server runs in a task of the runtime.
pub struct Pipe<'a> {
    runtime: &'a Runtime,
    client: RunningService<RoleClient, ()>,
}

impl<'a> Pipe<'a> {
    pub fn open<H: ServerHandler>(runtime: &'a Runtime, handler: H) -> Result<Self> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        runtime.spawn(async move {
            if let Ok(server) = handler.serve(far).await {
                let _ = server.waiting().await;
            }
        });
        let client = runtime.block_on(().serve(near))?;
        Ok(Self { runtime, client })
    }

    /// So many calls of a tool by 16 callers, each of which waits for an answer before it asks again.
    pub fn call(&self, tool: &'static str, count: u64) -> Result<Duration> {
        let stopwatch = Stopwatch::start();
        self.runtime.block_on(async {
            let mut callers = JoinSet::new();
            for caller in 0..CALLERS {
                let each = (count + caller) / CALLERS;
                callers.spawn(calls(self.client.peer().clone(), tool, each));
            }
            callers.join_all().await.into_iter().collect::<Result<()>>()
        })?;
        Ok(stopwatch.elapsed())
    }
}

async fn calls(peer: Peer<RoleClient>, tool: &'static str, count: u64) -> Result<()> {
    let mut arguments = JsonObject::new();
    arguments.insert("text".to_owned(), "hello world".into());
    let params = CallToolRequestParams::new(tool).with_arguments(arguments);
    for _ in 0..count {
        let result = peer.call_tool(params.clone()).await?;
        let answer = result.content.first().and_then(|content| content.as_text());
        answer.filter(|text| text.text == "hello world").context("not the answer")?;
    }
    Ok(())
}
