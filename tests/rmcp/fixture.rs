//! A server whose tools are scripted, clients of both generations, and steps to walk a race by.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use mcp_perf::{
    cache::Cache,
    clock::Clock,
    rmcp::{Answer, Performance, PerformanceBuilder, ToolPolicy, serve_until},
};
use rmcp::{
    ErrorData, RoleClient, RoleServer, ServerHandler, ServiceError, ServiceExt,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig,
        ClientRequest, ContentBlock, Implementation, JsonObject, ListToolsResult, PaginatedRequestParams,
        ProtocolVersion, RequestId, ServerCapabilities, ServerConfig, Tool,
    },
    service::{
        ClientLifecycleMode, ClientServiceExt, PeerRequestOptions, RequestContext, RequestHandle,
        RunningService, serve_directly,
    },
    transport::{
        IntoTransport, StreamableHttpClientTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
        streamable_http_server::{
            StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
        },
    },
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, SemaphorePermit, oneshot},
    task::JoinHandle,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// What a tool answers.
pub(crate) type Response = Result<CallToolResponse, ErrorData>;
/// What a client gets, as JSON: the result, or the error.
pub(crate) type Reply = Result<Value, Value>;

// ===== the server =====

/// A server that answers `tools/call` as its tools were scripted, and counts their runs.
#[derive(Clone, Default)]
pub(crate) struct Scripted(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    tools: HashMap<String, Scene>,
    runs: HashMap<String, usize>,
}

#[derive(Clone)]
struct Scene {
    tool: Tool,
    play: Arc<Play>,
}

type Play = dyn Fn(Call) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync;

/// One run of a tool.
pub(crate) struct Call {
    pub(crate) request: CallToolRequestParams,
    pub(crate) context: RequestContext<RoleServer>,
    /// 1 for the first run of this tool.
    pub(crate) run: usize,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn tool<F>(self, name: &str, play: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response> + Send + 'static,
    {
        self.tool_with_schema(name, json!({"type": "object"}), play)
    }

    pub(crate) fn tool_with_schema<F>(
        self,
        name: &str,
        schema: Value,
        play: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let tool = Tool::new(name.to_owned(), "a scripted tool", Arc::new(object(schema)));
        let scene = Scene { tool, play: Arc::new(move |call| Box::pin(play(call))) };
        self.0.lock().unwrap().tools.insert(name.to_owned(), scene);
        self
    }

    /// A tool that shares something with the test.
    pub(crate) fn sharing<S, F>(
        self,
        name: &str,
        shared: S,
        play: impl Fn(S, Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        S: Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        self.tool(name, move |call| play(shared.clone(), call))
    }

    /// A tool that waits at the gate, and then answers `run 1`, `run 2` and so on.
    pub(crate) fn gated(self, name: &str, gate: &Gate) -> Self {
        self.sharing(name, gate.clone(), async |gate: Gate, call: Call| {
            gate.pass().await;
            said(format!("run {}", call.run))
        })
    }

    /// A tool that answers `run 1`, `run 2` and so on.
    pub(crate) fn counting(self, name: &str) -> Self {
        self.tool(name, async |call| said(format!("run {}", call.run)))
    }

    /// How often the tool ran, or began to.
    pub(crate) fn runs(&self, tool: &str) -> usize {
        self.0.lock().unwrap().runs.get(tool).copied().unwrap_or(0)
    }
}

impl ServerHandler for Scripted {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.0.lock().unwrap().tools.get(name).map(|scene| scene.tool.clone())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut tools: Vec<Tool> =
            self.0.lock().unwrap().tools.values().map(|scene| scene.tool.clone()).collect();
        tools.sort_by(|one, two| one.name.cmp(&two.name));
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Response {
        let (scene, run) = {
            let mut script = self.0.lock().unwrap();
            let runs = script.runs.entry(request.name.to_string()).or_default();
            *runs += 1;
            let run = *runs;
            (script.tools.get(&*request.name).cloned(), run)
        };
        match scene {
            Some(scene) => (scene.play)(Call { request, context, run }).await,
            None => Err(ErrorData::invalid_params(format!("no tool {:?}", request.name), None)),
        }
    }
}

impl Call {
    pub(crate) fn text(&self, member: &str) -> Option<&str> {
        self.request.arguments.as_ref()?.get(member)?.as_str()
    }
}

/// A result that says this.
pub(crate) fn said(text: impl Into<String>) -> Response {
    Ok(CallToolResult::success(vec![ContentBlock::text(text.into())]).into())
}

/// A result that says this, and that it is an error.
pub(crate) fn failed(text: impl Into<String>) -> Response {
    Ok(CallToolResult::error(vec![ContentBlock::text(text.into())]).into())
}

pub(crate) fn object(value: Value) -> JsonObject {
    serde_json::from_value(value).expect("an object")
}

// ===== the wrapper =====

/// Answers in memory that live by this clock.
pub(crate) fn answers(clock: &Clock) -> Cache<Answer> {
    Cache::builder("answers").clock(clock.clone()).build().unwrap()
}

/// A wrapper that keeps the tool's answers for a minute, for everybody.
pub(crate) fn keeping(server: &Scripted, tool: &str) -> PerformanceBuilder<Scripted> {
    Performance::builder(server.clone()).cache_tool(tool, ToolPolicy::public(MINUTE).tag("all"))
}

/// Serves a connection until the client is gone.
pub(crate) async fn serve<H, T, E, A>(server: H, transport: T)
where
    H: ServerHandler,
    T: IntoTransport<RoleServer, E, A>,
    E: std::error::Error + Send + Sync + 'static,
{
    if let Ok(running) = server.serve(transport).await {
        let _ = running.waiting().await;
    }
}

// ===== clients =====

/// The two shapes that the protocol has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// 2025-11-25: a handshake, then requests.
    Legacy,
    /// 2026-07-28: every request says who asks.
    Modern,
}

pub(crate) const GENERATIONS: [Generation; 2] = [Generation::Legacy, Generation::Modern];

impl Generation {
    pub(crate) fn version(self) -> ProtocolVersion {
        match self {
            Self::Legacy => ProtocolVersion::V_2025_11_25,
            Self::Modern => ProtocolVersion::V_2026_07_28,
        }
    }

    fn lifecycle(self) -> ClientLifecycleMode {
        match self {
            Self::Legacy => ClientLifecycleMode::Initialize,
            Self::Modern => ClientLifecycleMode::Discover { preferred_versions: vec![self.version()] },
        }
    }

    fn config(self, name: &str) -> ClientConfig {
        let capabilities = ClientCapabilities::builder().enable_tasks().build();
        let config = ClientConfig::new(capabilities, Implementation::new(name, "1.0.0"));
        match self {
            Self::Legacy => config.with_protocol_version(self.version()),
            Self::Modern => config,
        }
    }
}

pub(crate) struct Client(RunningService<RoleClient, ClientConfig>);

impl Client {
    /// A client of its own connection in memory.
    pub(crate) async fn of<H: ServerHandler>(server: H, generation: Generation) -> Self {
        Self::named("client", server, generation).await
    }

    pub(crate) async fn named<H: ServerHandler>(name: &str, server: H, generation: Generation) -> Self {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(server, far));
        Self(generation.config(name).serve_with_lifecycle(near, generation.lifecycle()).await.unwrap())
    }

    /// Over two pipes, one for each direction, as over stdio.
    pub(crate) async fn over_pipes<H: ServerHandler>(server: H, generation: Generation) -> Self {
        let (to_server, from_client) = tokio::io::simplex(1 << 16);
        let (to_client, from_server) = tokio::io::simplex(1 << 16);
        tokio::spawn(serve(server, (to_server, from_server)));
        let near = (to_client, from_client);
        let client = generation.config("client").serve_with_lifecycle(near, generation.lifecycle());
        Self(client.await.unwrap())
    }

    pub(crate) async fn over_http(http: &Http, generation: Generation, token: Option<&str>) -> Self {
        let config = StreamableHttpClientTransportConfig::with_uri(http.url.as_str());
        let config = token.into_iter().fold(config, StreamableHttpClientTransportConfig::auth_header);
        let transport = StreamableHttpClientTransport::from_config(config);
        let client = generation.config("client").serve_with_lifecycle(transport, generation.lifecycle());
        Self(client.await.unwrap())
    }

    pub(crate) async fn call(&self, tool: &str, arguments: Value) -> Reply {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// The text of the answer of a tool.
    pub(crate) async fn hear(&self, tool: &str, arguments: Value) -> String {
        text(&self.call(tool, arguments).await)
    }

    pub(crate) async fn ask(&self, method: &str, params: Value) -> Reply {
        reply(self.start(method, params).await.await_response().await)
    }

    /// Sends a request and does not wait for the answer.
    pub(crate) async fn start(&self, method: &str, params: Value) -> RequestHandle<RoleClient> {
        let request: ClientRequest =
            serde_json::from_value(json!({"method": method, "params": params})).unwrap();
        self.0.send_cancellable_request(request, PeerRequestOptions::no_options()).await.unwrap()
    }
}

/// A call under way.
pub(crate) struct Pending(JoinHandle<Reply>);

impl Pending {
    pub(crate) fn call(client: &Arc<Client>, tool: &str, arguments: Value) -> Self {
        let (client, tool) = (Arc::clone(client), tool.to_owned());
        Self(tokio::spawn(async move { client.call(&tool, arguments).await }))
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.0.is_finished()
    }

    pub(crate) async fn reply(self) -> Reply {
        self.0.await.unwrap()
    }

    pub(crate) async fn text(self) -> String {
        text(&self.reply().await)
    }
}

pub(crate) fn reply(response: Result<rmcp::model::ServerResult, ServiceError>) -> Reply {
    match response {
        Ok(result) => Ok(serde_json::to_value(result).unwrap()),
        Err(ServiceError::McpError(error)) => Err(serde_json::to_value(error).unwrap()),
        Err(other) => panic!("no answer: {other}"),
    }
}

pub(crate) fn text(reply: &Reply) -> String {
    let answer = reply.as_ref().unwrap_or_else(|error| panic!("an error: {error}"));
    answer["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {answer}")).to_owned()
}

/// A context for calling the wrapper directly, where its future can be dropped.
pub(crate) fn context(generation: Generation) -> RequestContext<RoleServer> {
    let (_, far) = tokio::io::duplex(1 << 10);
    let running = serve_directly::<RoleServer, _, _, _, _>(
        Scripted::new(),
        far,
        Some(generation.config("direct").with_protocol_version(generation.version())),
    );
    RequestContext::new(RequestId::Number(1), running.peer().clone())
}

pub(crate) fn params(tool: &str, arguments: Value) -> CallToolRequestParams {
    CallToolRequestParams::new(tool.to_owned()).with_arguments(object(arguments))
}

// ===== HTTP =====

/// How a server answers over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A session per client, answers as events. Clients of 2026-07-28 have no session all the same.
    Sessions,
    /// No session, answers as JSON.
    StatelessJson,
    /// No session, answers as events.
    StatelessEvents,
}

/// A server that listens, until it is dropped.
pub(crate) struct Http {
    pub(crate) url: String,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

type Service<H> = StreamableHttpService<H, LocalSessionManager>;

impl Http {
    pub(crate) async fn start<H: ServerHandler + Clone>(server: H, mode: Mode) -> Self {
        let config = match mode {
            Mode::Sessions => StreamableHttpServerConfig::default(),
            Mode::StatelessJson => {
                StreamableHttpServerConfig::default().with_legacy_session_mode(false).with_json_response(true)
            }
            Mode::StatelessEvents => StreamableHttpServerConfig::default().with_legacy_session_mode(false),
        };
        let service =
            Service::new(move || Ok(server.clone()), Arc::new(LocalSessionManager::default()), config);
        Self::serve(service).await
    }

    pub(crate) async fn serve<H: ServerHandler>(service: Service<H>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(serve_until(listener, service, async {
            let _ = stopped.await;
        }));
        Self { url, stop, served }
    }

    /// Tells it to end, and waits for that.
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }
}

// ===== steps =====

/// A place in a tool where runs wait until the test lets them go on.
#[derive(Clone)]
pub(crate) struct Gate {
    arrivals: Arc<Semaphore>,
    passes: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { arrivals: Arc::new(Semaphore::new(0)), passes: Arc::new(Semaphore::new(0)) }
    }

    /// For the tool: says that it is here, and waits.
    pub(crate) async fn pass(&self) {
        self.arrivals.add_permits(1);
        self.passes.acquire().await.unwrap().forget();
    }

    /// For the test: waits for one run to be here.
    pub(crate) async fn reached(&self) {
        let has_arrived = || self.arrivals.try_acquire().map(SemaphorePermit::forget).is_ok();
        until("a run is at the gate", has_arrived).await;
    }

    /// For the test: lets one run, or the next one to come, go on.
    pub(crate) fn open(&self) {
        self.passes.add_permits(1);
    }
}

/// Lets other tasks run until something is so. What never becomes so is a failure, not a hang.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..10_000_000 {
        if is_so() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never happened: {what}");
}

/// Lets every task that can run do so, until none can.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
