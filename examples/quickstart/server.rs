//! The MCP server: four tools over the registry, and how they are served over HTTP.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;
use rmcp::{
    ServerHandler,
    handler::server::{
        router::tool::ToolRouter,
        wrapper::{Json, Parameters},
    },
    model::{Implementation, ServerCapabilities, ServerConfig},
    tool, tool_handler, tool_router,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::never::NeverSessionManager,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::registry::{Database, FoundTool, Health, ServerDetail, ServerSummary, Status, words};

/// Where the server answers, below its address.
const PATH: &str = "/mcp";

const DEFAULT_LIMIT: u32 = 10;
const MAX_LIMIT: u32 = 50;
/// A query of more words than this is a text, and costs like one.
const MAX_WORDS: usize = 16;

/// The MCP server, bare: every call goes to the database.
#[derive(Clone)]
pub(crate) struct Registry {
    database: Database,
    // Built once: without `router = self.tool_router` the macro builds it anew for every call.
    tool_router: Arc<ToolRouter<Self>>,
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct SearchServers {
    /// Words to look for in titles, descriptions, tags and publishers; any of them may match.
    query: String,
    /// How many servers to return at most, 1 to 50; 10 if absent.
    limit: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct FoundServers {
    /// Best match first.
    servers: Vec<ServerSummary>,
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct GetServer {
    /// The id of a server, as searches return it.
    id: String,
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct FindTools {
    /// Words to look for in names and descriptions of tools; any of them may match.
    query: String,
    /// Only tools of servers in this category.
    category: Option<String>,
    /// How many tools to return at most, 1 to 50; 10 if absent.
    limit: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct FoundTools {
    /// Best match first.
    tools: Vec<FoundTool>,
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct ReportHealth {
    /// The id of the server that was probed.
    id: String,
    /// What the probe saw.
    status: Status,
    /// How long the server took to answer, in milliseconds.
    latency_ms: u32,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ReportedHealth {
    id: String,
    health: Health,
}

impl Registry {
    pub(crate) fn new(database: Database) -> Self {
        Self { database, tool_router: Arc::new(Self::tool_router()) }
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }
}

#[tool_router]
impl Registry {
    /// Ranks all MCP servers of the registry by a full-text query.
    #[tool(annotations(title = "Search servers", read_only_hint = true, open_world_hint = false))]
    async fn search_servers(
        &self,
        Parameters(arguments): Parameters<SearchServers>,
    ) -> Result<Json<FoundServers>, String> {
        let limit = checked_limit(arguments.limit)?;
        let query = checked_query(arguments.query)?;
        let servers = self.database.search_servers(query, limit).await;
        Ok(Json(FoundServers { servers: servers.map_err(unavailable)? }))
    }

    /// Describes one MCP server: its tools, its version and its present health.
    #[tool(annotations(title = "Get a server", read_only_hint = true, open_world_hint = false))]
    async fn get_server(
        &self,
        Parameters(arguments): Parameters<GetServer>,
    ) -> Result<Json<ServerDetail>, String> {
        let found = self.database.server(arguments.id.clone()).await;
        match found.map_err(unavailable)? {
            Some(server) => Ok(Json(server)),
            None => Err(unknown_server(&arguments.id)),
        }
    }

    /// Ranks the tools of all MCP servers, or of those of one category, by a full-text query.
    #[tool(annotations(title = "Find tools", read_only_hint = true, open_world_hint = false))]
    async fn find_tools(
        &self,
        Parameters(arguments): Parameters<FindTools>,
    ) -> Result<Json<FoundTools>, String> {
        let limit = checked_limit(arguments.limit)?;
        let query = checked_query(arguments.query)?;
        let tools = self.database.find_tools(query, arguments.category, limit).await;
        Ok(Json(FoundTools { tools: tools.map_err(unavailable)? }))
    }

    /// Records what a probe of an MCP server saw. Later answers of `get_server` show it.
    #[tool(annotations(
        title = "Report health",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn report_health(
        &self,
        Parameters(arguments): Parameters<ReportHealth>,
    ) -> Result<Json<ReportedHealth>, String> {
        let ReportHealth { id, status, latency_ms } = arguments;
        let reported = self.database.report_health(id.clone(), status, latency_ms).await;
        match reported.map_err(unavailable)? {
            Some(health) => Ok(Json(ReportedHealth { id, health })),
            None => Err(unknown_server(&id)),
        }
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Registry {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("registry", env!("CARGO_PKG_VERSION")))
            .with_instructions(
                "A registry of MCP servers. Search for servers or for tools, then get a server by \
                 the id found.",
            )
    }
}

// What fails is told in the answer of the tool, not as an error of the protocol: whoever called the
// tool sees the first and can act on it.

fn checked_limit(limit: Option<u32>) -> Result<u32, String> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        limit => Err(format!("invalid argument `limit`: must be 1 to {MAX_LIMIT}, is {limit}")),
    }
}

fn checked_query(query: String) -> Result<String, String> {
    match words(&query).take(MAX_WORDS + 1).count() {
        1..=MAX_WORDS => Ok(query),
        0 => Err("invalid argument `query`: holds no word".into()),
        _ => Err(format!("invalid argument `query`: must be at most {MAX_WORDS} words")),
    }
}

fn unknown_server(id: &str) -> String {
    format!("no server has the id `{id}`")
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for `map_err`")]
fn unavailable(error: anyhow::Error) -> String {
    format!("the registry cannot answer: {error}")
}

/// A server that answers until it is dropped.
pub(crate) struct Running {
    pub(crate) url: String,
    task: JoinHandle<io::Result<()>>,
}

/// Starts serving `handler` on a free port of the loopback interface.
pub(crate) async fn start<H: ServerHandler + Clone>(handler: H) -> Result<Running> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok(Running { url: url(listener.local_addr()?), task: tokio::spawn(serve(listener, handler)) })
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where clients find the server that listens at `address`.
pub(crate) fn url(address: SocketAddr) -> String {
    format!("http://{address}{PATH}")
}

/// Serves `handler` over streamable HTTP until the task is stopped.
///
/// Stateless, answered with plain JSON and sent at once: the fastest way in which `rmcp` serves
/// tools that neither notify nor ask back.
pub(crate) async fn serve<H>(listener: TcpListener, handler: H) -> io::Result<()>
where
    H: ServerHandler + Clone,
{
    let service = StreamableHttpService::new(
        move || Ok(handler.clone()),
        Arc::new(NeverSessionManager::default()),
        StreamableHttpServerConfig::default().with_legacy_session_mode(false).with_json_response(true),
    );
    mcp_perf::rmcp::serve(listener, axum::Router::new().nest_service(PATH, service)).await
}
