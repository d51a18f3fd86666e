//! What a client gets from a wrapped server is what it gets from the bare one, however it is connected.

use mcp_perf::rmcp::{Performance, ToolPolicy};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    handler::server::wrapper::Parameters,
    model::{
        CallToolResult, ContentBlock, GetPromptRequestParams, GetPromptResponse, GetPromptResult,
        ListPromptsResult, ListResourcesResult, PaginatedRequestParams, Prompt, PromptMessage,
        ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, Resource, ResourceContents,
        Role, ServerCapabilities, ServerConfig,
    },
    schemars::{self, JsonSchema},
    service::RequestContext,
    tool, tool_handler, tool_router,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fixture::{Client, GENERATIONS, Generation, Http, MINUTE, Mode, Reply};

/// A server as people write them, with rmcp's macros.
#[derive(Clone)]
struct Calculator;

#[derive(Deserialize, JsonSchema)]
struct Sum {
    a: i64,
    b: i64,
}

#[tool_router]
impl Calculator {
    #[tool(description = "Adds two numbers", annotations(read_only_hint = true))]
    async fn add(&self, Parameters(Sum { a, b }): Parameters<Sum>) -> Result<CallToolResult, ErrorData> {
        let sum = a.checked_add(b).ok_or_else(|| ErrorData::invalid_params("too much", None))?;
        let mut result = CallToolResult::success(vec![ContentBlock::text(sum.to_string())]);
        result.structured_content = Some(json!({"sum": sum}));
        Ok(result)
    }

    #[tool(description = "Divides by zero")]
    async fn divide(&self) -> Result<CallToolResult, ErrorData> {
        Ok(CallToolResult::error(vec![ContentBlock::text("by zero")]))
    }
}

#[tool_handler]
impl ServerHandler for Calculator {
    fn get_info(&self) -> ServerConfig {
        let capabilities =
            ServerCapabilities::builder().enable_tools().enable_prompts().enable_resources().build();
        ServerConfig::new(capabilities)
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(vec![Prompt::new("sum", Some("asks for a sum"), None)]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != "sum" {
            return Err(ErrorData::invalid_params("no such prompt", None));
        }
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, "What is 1 + 2?")]).into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(vec![Resource::new("number://pi", "pi")]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if request.uri != "number://pi" {
            return Err(ErrorData::resource_not_found("no such number", None));
        }
        Ok(ReadResourceResult::new(vec![ResourceContents::text("3.14", request.uri)]).into())
    }
}

/// What a client may ask, well and badly.
fn script() -> Vec<(&'static str, Value)> {
    vec![
        ("tools/list", json!({})),
        ("tools/call", json!({"name": "add", "arguments": {"a": 1, "b": 2}})),
        ("tools/call", json!({"name": "divide"})),
        ("tools/call", json!({"name": "add", "arguments": {"a": i64::MAX, "b": 1}})),
        ("tools/call", json!({"name": "subtract", "arguments": {"a": 1, "b": 2}})),
        ("tools/call", json!({"name": "add", "arguments": {"a": "one"}})),
        ("tools/call", json!({"name": "add", "arguments": [1, 2]})),
        ("tools/call", json!({"arguments": {"a": 1, "b": 2}})),
        ("house/unknown", json!({"a": 1})),
        ("prompts/list", json!({})),
        ("prompts/get", json!({"name": "sum"})),
        ("prompts/get", json!({"name": "product"})),
        ("resources/list", json!({})),
        ("resources/read", json!({"uri": "number://pi"})),
        ("resources/read", json!({"uri": "number://e"})),
        ("resources/templates/list", json!({})),
    ]
}

async fn play(client: Client) -> Vec<(String, Reply)> {
    let mut replies = Vec::new();
    for (method, params) in script() {
        let reply = client.ask(method, params.clone()).await;
        replies.push((format!("{method} {params}"), reply));
    }
    replies
}

fn same(generation: Generation, bare: &[(String, Reply)], wrapped: &[(String, Reply)]) {
    assert_eq!(bare.len(), wrapped.len());
    for ((asked, bare), (_, wrapped)) in bare.iter().zip(wrapped) {
        assert_eq!(wrapped, bare, "{asked}, {generation:?}");
    }
    // And it was no conversation of errors alone.
    let (_, sum) = &bare[1];
    assert_eq!(sum.as_ref().unwrap()["structuredContent"], json!({"sum": 3}));
    let is_2026 = generation == Generation::Modern;
    assert_eq!(sum.as_ref().unwrap().get("resultType").is_some(), is_2026, "the shape of {generation:?}");
    assert_eq!(bare.iter().filter(|(_, reply)| reply.is_err()).count(), 7, "{bare:#?}");
}

fn wrapped() -> Performance<Calculator> {
    Performance::builder(Calculator).build().unwrap()
}

#[tokio::test]
async fn answers_are_those_of_the_bare_server_in_memory() {
    for generation in GENERATIONS {
        let bare = play(Client::of(Calculator, generation).await).await;
        same(generation, &bare, &play(Client::of(wrapped(), generation).await).await);
    }
}

#[tokio::test]
async fn answers_are_those_of_the_bare_server_over_a_pair_of_pipes() {
    for generation in GENERATIONS {
        let bare = play(Client::over_pipes(Calculator, generation).await).await;
        same(generation, &bare, &play(Client::over_pipes(wrapped(), generation).await).await);
    }
}

async fn compare_over_http(mode: Mode) {
    let (bare, wrapped) = (Http::start(Calculator, mode).await, Http::start(wrapped(), mode).await);
    for generation in GENERATIONS {
        let bare = play(Client::over_http(&bare, generation, None).await).await;
        same(generation, &bare, &play(Client::over_http(&wrapped, generation, None).await).await);
    }
}

#[tokio::test]
async fn answers_are_those_of_the_bare_server_over_http_with_sessions() {
    compare_over_http(Mode::Sessions).await;
}

#[tokio::test]
async fn answers_are_those_of_the_bare_server_over_stateless_http_in_json() {
    compare_over_http(Mode::StatelessJson).await;
}

#[tokio::test]
async fn answers_are_those_of_the_bare_server_over_stateless_http_in_events() {
    compare_over_http(Mode::StatelessEvents).await;
}

#[tokio::test]
async fn answer_from_the_cache_is_the_answer_of_the_tool_on_every_transport() {
    let caching = || {
        let policy = ToolPolicy::public(MINUTE);
        Performance::builder(Calculator).cache_tool("add", policy).build().unwrap()
    };
    for generation in GENERATIONS {
        let server = caching();
        let mut clients = vec![
            Client::of(server.clone(), generation).await,
            Client::over_pipes(server.clone(), generation).await,
        ];
        let mut listening = Vec::new();
        for mode in [Mode::Sessions, Mode::StatelessJson, Mode::StatelessEvents] {
            let http = Http::start(server.clone(), mode).await;
            clients.push(Client::over_http(&http, generation, None).await);
            listening.push(http);
        }
        let arguments = json!({"a": 40, "b": 2});
        let bare = Client::of(Calculator, generation).await.call("add", arguments.clone()).await;
        for client in &clients {
            assert_eq!(client.call("add", arguments.clone()).await, bare);
        }
        let stats = server.answers().stats();
        assert_eq!((stats.loads, stats.hits), (1, 4), "{stats:?}");
    }
}
