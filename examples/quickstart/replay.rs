//! The strictest comparison: the same messages, one after the other, to a bare and to a wrapped
//! server in the same state, and every answer compared byte for byte as it came over the wire.
//!
//! With one message at a time nothing races, so no difference is excused. The sequence looks for
//! the mistakes that caches make: what was asked is asked again; reports fall on the servers being
//! looked at and are followed by a look; the same arguments come in another order or with defaults
//! spelled out; arguments that differ a little must not pass for the same; what is wrong must be
//! wrong the second time too; and both generations of the protocol, whose answers differ in form,
//! take turns.

use anyhow::Result;
use indicatif::ProgressBar;
use reqwest::{
    StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use serde_json::json;

use crate::{
    registry::Health,
    workload::{Pools, probe},
};

const STEPS: usize = 500;
/// So few servers that reports and looks meet.
const SERVERS: usize = 12;

/// Compares the servers at two addresses and returns the first message whose answers differ, with
/// both answers.
pub(crate) async fn compare(
    bare: &str,
    wrapped: &str,
    servers: &[(String, Health)],
    seed: u64,
    progress: &ProgressBar,
) -> Result<Option<String>> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let messages = messages(servers, seed);
    progress.set_length(messages.len() as u64);
    for message in messages {
        let (bare, wrapped) = tokio::try_join!(message.send(&http, bare), message.send(&http, wrapped))?;
        if bare != wrapped {
            let body = message.body;
            return Ok(Some(format!("{body}\n   bare: {bare:?}\nwrapped: {wrapped:?}")));
        }
        progress.inc(1);
    }
    progress.finish();
    Ok(None)
}

fn messages(servers: &[(String, Health)], seed: u64) -> Vec<Message> {
    let hello = json!({
        "protocolVersion": LEGACY,
        "capabilities": {},
        "clientInfo": { "name": "replay", "version": "1" },
    });
    let mut messages =
        vec![Message::legacy("initialize", &hello.to_string()), Message::legacy("tools/list", "{}")];
    let pools = Pools::new(seed);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..STEPS {
        for (tool, arguments) in step(&pools, &servers[..SERVERS.min(servers.len())], &mut random) {
            messages.push(if random.bool() {
                Message::legacy_call(tool, &arguments)
            } else {
                Message::modern_call(tool, &arguments)
            });
        }
    }
    messages
}

/// Draws a few calls that belong together. Their arguments are text, because order counts here.
fn step(
    pools: &Pools,
    servers: &[(String, Health)],
    random: &mut fastrand::Rng,
) -> Vec<(&'static str, String)> {
    let (id, _) = &servers[random.usize(..servers.len())];
    let look = ("get_server", json!({ "id": id }).to_string());
    let search = pools.searches.draw(random);
    let query = &search["query"];
    match random.u8(..20) {
        0..6 => vec![look],
        6..9 => vec![("search_servers", search.to_string())],
        9..11 => vec![("find_tools", pools.tool_searches.draw(random).to_string())],
        11..14 => {
            let (status, latency_ms) = probe(random);
            let seen = json!({ "id": id, "status": status, "latency_ms": latency_ms });
            vec![("report_health", seen.to_string()), look]
        }
        // The same in other words, in any order.
        14 => vec![
            ("search_servers", format!(r#"{{"query":{query},"limit":10}}"#)),
            ("search_servers", format!(r#"{{"limit":10,"query":{query}}}"#)),
            ("search_servers", format!(r#"{{ "query": {query}, "limit": null }}"#)),
        ],
        // Almost the same.
        15 => vec![
            ("search_servers", format!(r#"{{"query":{query},"limit":9}}"#)),
            ("search_servers", format!(r#"{{"query":{query},"limit":11}}"#)),
            ("find_tools", format!(r#"{{"query":{query}}}"#)),
            ("find_tools", format!(r#"{{"query":{query},"category":"mail"}}"#)),
            ("find_tools", format!(r#"{{"query":{query},"category":"Mail"}}"#)),
        ],
        // Wrong, each in its own way.
        16 => vec![("get_server", r#"{"id":"nobody/nothing"}"#.into())],
        17 => vec![("search_servers", format!(r#"{{"query":{query},"limit":51}}"#))],
        18 => vec![
            ("search_servers", r#"{"query":" - "}"#.into()),
            ("search_servers", r#"{"limit":5}"#.into()),
            ("search_servers", format!(r#"{{"query":{query},"limit":"ten"}}"#)),
        ],
        _ => vec![
            ("report_health", json!({ "id": id, "status": "tired", "latency_ms": 1 }).to_string()),
            ("forget_server", json!({ "id": id }).to_string()),
            look,
        ],
    }
}

const LEGACY: &str = "2025-11-25";
const MODERN: &str = "2026-07-28";

/// One message as it goes over the wire.
struct Message {
    body: String,
    headers: Vec<(&'static str, &'static str)>,
}

/// Status, kind and bytes of what comes back.
type Answer = (StatusCode, Option<HeaderValue>, String);

impl Message {
    fn legacy(method: &'static str, params: &str) -> Self {
        Self {
            body: format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#),
            headers: vec![("MCP-Protocol-Version", LEGACY)],
        }
    }

    fn legacy_call(tool: &'static str, arguments: &str) -> Self {
        let params = format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#);
        Self::legacy("tools/call", &params)
    }

    /// The newer protocol greets nobody; each message says who speaks, and its headers repeat what
    /// is called.
    fn modern_call(tool: &'static str, arguments: &str) -> Self {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": { "name": "replay", "version": "1" },
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let params = format!(r#"{{"name":"{tool}","arguments":{arguments},"_meta":{meta}}}"#);
        Self {
            headers: vec![("MCP-Protocol-Version", MODERN), ("Mcp-Method", "tools/call"), ("Mcp-Name", tool)],
            ..Self::legacy("tools/call", &params)
        }
    }

    async fn send(&self, http: &reqwest::Client, url: &str) -> Result<Answer> {
        let mut request = http
            .post(url)
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json")
            .body(self.body.clone());
        for &(name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answer = request.send().await?;
        let kind = answer.headers().get(CONTENT_TYPE).cloned();
        Ok((answer.status(), kind, answer.text().await?))
    }
}
