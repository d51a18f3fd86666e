//! The registry behind this crate: what is cached, for how long, and what a report invalidates.
//!
//! Searches show nothing that a report changes, so they need no invalidation. A look at a server shows its
//! health, so its answer is tagged with the server, and a report on the server removes what carries that tag
//! before the report is answered.

use std::time::Duration;

use anyhow::Result;
use mcp_perf::{
    cache::Cache,
    redis::RedisStore,
    rmcp::{Performance, ToolPolicy},
};
use rmcp::model::JsonObject;

use crate::server::Registry;

const MINUTE: Duration = Duration::from_secs(60);

/// Wraps the server; a second level of cache is used if the URL of a Redis is given.
pub(crate) async fn wrap(registry: Registry, redis: Option<&str>) -> Result<Performance<Registry>> {
    let server = Performance::builder(registry)
        .cache_tool("search_servers", ToolPolicy::public(MINUTE))
        .cache_tool("find_tools", ToolPolicy::public(MINUTE))
        .cache_tool("get_server", ToolPolicy::public(MINUTE).tags(server_tag))
        .invalidate_after("report_health", server_tag);
    let Some(url) = redis else { return Ok(server.build()?) };
    // Each wrapped server stands before a database of its own, so they must not share entries.
    let store = RedisStore::new(url)?.prefix(format!("quickstart-{:08x}", fastrand::u32(..)))?;
    Ok(server.answers(Cache::builder("registry").remote(store).build().await?).build()?)
}

fn server_tag(arguments: &JsonObject) -> Vec<String> {
    arguments.get("id").and_then(|id| id.as_str()).map(|id| format!("server:{id}")).into_iter().collect()
}
