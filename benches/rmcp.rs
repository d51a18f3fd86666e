//! The wrapper around a server, called in the process: `cargo bench --bench rmcp`. With a transport and a client
//! around it: `benches/rivals`.

#![allow(clippy::unwrap_used, reason = "what cannot be set up cannot be measured")]

mod support;

use std::time::Duration;

use criterion::Criterion;
use mcp_perf::{
    limit::{Limiter, Quota},
    rmcp::{Performance, ToolPolicy},
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, JsonObject, RequestId},
    service::{RequestContext, RunningService},
};
use tokio::runtime::{self, Runtime};

/// Answers every tool with what it was given.
#[derive(Clone)]
struct Echo;

impl ServerHandler for Echo {
    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let text = arguments.get("text").and_then(|text| text.as_str()).unwrap_or_default();
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }
}

fn main() {
    support::run(&[call]);
}

fn call(criterion: &mut Criterion) {
    let runtime = runtime();
    let connection = runtime.block_on(connect());
    let mut group = criterion.benchmark_group("rmcp/call");
    let mut measure = |name: &str, server: &dyn Fn(&mut criterion::Bencher<'_>)| {
        group.bench_function(name, |bench| server(bench));
    };
    measure("bare", &|bench| calls(bench, &runtime, &connection, &Echo));
    measure("wrapped", &|bench| calls(bench, &runtime, &connection, &wrapped()));
    measure("limited", &|bench| calls(bench, &runtime, &connection, &limited()));
    measure("hit", &|bench| calls(bench, &runtime, &connection, &cached()));
}

fn calls<H: ServerHandler>(
    bench: &mut criterion::Bencher<'_>,
    runtime: &Runtime,
    connection: &RunningService<RoleServer, Echo>,
    server: &H,
) {
    let mut arguments = JsonObject::new();
    arguments.insert("text".to_owned(), "hello world".into());
    let request = CallToolRequestParams::new("echo").with_arguments(arguments);
    let context = RequestContext::new(RequestId::Number(1), connection.peer().clone());
    bench.to_async(runtime).iter(|| server.call_tool(request.clone(), context.clone()));
}

fn wrapped() -> Performance<Echo> {
    Performance::builder(Echo).build().unwrap()
}

fn limited() -> Performance<Echo> {
    let limiter = Limiter::builder().policy("tool", Quota::per_second(60_000_000)).build().unwrap();
    let tool = limiter.scope("tool").unwrap();
    Performance::builder(Echo).limit(limiter, move |call| vec![tool.on(call.name)]).build().unwrap()
}

fn cached() -> Performance<Echo> {
    let policy = ToolPolicy::public(Duration::from_secs(3_600));
    Performance::builder(Echo).cache_tool("echo", policy).build().unwrap()
}

/// A connection to a client, since a call's context has a peer.
async fn connect() -> RunningService<RoleServer, Echo> {
    let (near, far) = tokio::io::duplex(4096);
    let client = tokio::spawn(async { ().serve(near).await.unwrap().waiting().await });
    drop(client);
    Echo.serve(far).await.unwrap()
}

fn runtime() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
