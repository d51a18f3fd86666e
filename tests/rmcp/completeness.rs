//! No method of the handler is left to rmcp's default.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    env, fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
};

use mcp_perf::rmcp::Performance;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CancelTaskParams, CancelledNotificationParam,
        CompleteRequestParams, CompleteResult, CustomNotification, CustomRequest, CustomResult, DetailedTask,
        DiscoverResult, ErrorCode, GetPromptRequestParams, GetPromptResponse, GetPromptResult,
        GetSkillRequestParams, GetSkillResult, GetTaskParams, GetTaskResult, Implementation,
        InitializeRequestParams, InitializeResult, ListPromptsResult, ListResourceTemplatesResult,
        ListResourcesResult, ListSkillsResult, ListToolsResult, PaginatedRequestParams,
        ProgressNotificationParam, ProtocolVersion, ReadResourceDirectoryRequestParams,
        ReadResourceDirectoryResult, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
        ServerCapabilities, ServerConfig, Skill, SkillFrontmatter, SkillResources, SubscribeRequestParams,
        SubscriptionFilter, Task, TaskPayload, TaskStatus, Tool, UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    fixture::{GENERATIONS, Generation, said, until},
    wire::Wire,
};

// ===== by the sources =====

#[test]
fn wrapper_has_every_method_that_the_trait_of_rmcp_has() {
    let trait_source = fs::read_to_string(rmcp_folder().join("src/handler/server.rs")).unwrap();
    let (_, body) =
        trait_source.split_once("macro_rules! server_handler_methods").expect("the trait's methods");
    let (body, _) = body.split_once("pub trait ServerHandler").expect("the trait");
    let of_trait: BTreeSet<&str> = body.lines().filter_map(declared).collect();

    let wrapper = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/rmcp/handler.rs")).unwrap();
    let (_, body) = wrapper.split_once("ServerHandler for Performance<H> {").expect("the wrapper's methods");
    let (body, _) = body.split_once("\n}\n").expect("the end of the implementation");
    let of_wrapper: BTreeSet<&str> =
        body.lines().filter_map(|line| declared(line).or_else(|| listed(line))).collect();

    assert!(of_trait.len() >= 32 && of_trait.contains("call_tool"), "{of_trait:?}");
    let missing: Vec<_> = of_trait.difference(&of_wrapper).collect();
    let more: Vec<_> = of_wrapper.difference(&of_trait).collect();
    assert!(missing.is_empty() && more.is_empty(), "missing: {missing:?}; not of the trait: {more:?}");
}

/// The name in `fn name(…` or `async fn name(…`.
fn declared(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

/// The name in `name(argument: Type, …) …;`, as the macros of the wrapper list their methods.
fn listed(line: &str) -> Option<&str> {
    let (name, rest) = line.strip_prefix("        ")?.split_once('(')?;
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    (name.bytes().all(is_name) && rest.contains(": ") && rest.ends_with(';')).then_some(name)
}

/// Where cargo put the sources of the rmcp that this is compiled against.
fn rmcp_folder() -> PathBuf {
    let cargo = |arguments: &[&str]| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
        let done =
            Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    // Packages of other platforms need not be there.
    let version = cargo(&["-vV"]);
    let platform =
        version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    let metadata = cargo(&["metadata", "--format-version=1", "--offline", "--filter-platform", platform]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().expect("packages");
    let rmcp: Vec<&Value> = packages.iter().filter(|package| package["name"] == "rmcp").collect();
    assert_eq!(rmcp.len(), 1, "one version of rmcp");
    let manifest = PathBuf::from(rmcp[0]["manifest_path"].as_str().expect("a path"));
    manifest.parent().expect("a folder").to_owned()
}

// ===== by what comes out =====

/// Every answer says which method made it, and of what.
#[derive(Clone, Default)]
struct Distinct {
    heard: Arc<Mutex<Vec<String>>>,
}

/// What each answer says.
fn mark(method: &str) -> String {
    format!("from {method}")
}

/// An answer that has no room for a mark is an error that has.
fn refused<T>(method: &str, request: &impl Serialize) -> Result<T, ErrorData> {
    let request = serde_json::to_value(request).unwrap();
    Err(ErrorData::new(ErrorCode(1_000), mark(method), Some(request)))
}

fn made<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

fn skill(method: &str) -> Skill {
    let frontmatter = SkillFrontmatter::new("weather", mark(method));
    Skill::new("skill://weather/SKILL.md", frontmatter, SkillResources::Dynamic)
}

impl Distinct {
    fn hear(&self, method: &str, what: &impl Serialize) {
        let what = serde_json::to_string(what).unwrap();
        self.heard.lock().unwrap().push(format!("{method} {what}"));
    }

    fn heard(&self) -> Vec<String> {
        let mut heard = self.heard.lock().unwrap().clone();
        heard.sort_unstable();
        heard
    }
}

type Context = RequestContext<RoleServer>;
type Page = Option<PaginatedRequestParams>;

#[expect(deprecated, reason = "clients before 2026-07-28 still call the deprecated ones")]
impl ServerHandler for Distinct {
    async fn ping(&self, _: Context) -> Result<(), ErrorData> {
        refused("ping", &())
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: Context,
    ) -> Result<InitializeResult, ErrorData> {
        context.peer.set_peer_info(request.clone());
        let config = self.get_info().with_protocol_version(request.protocol_version);
        Ok(config.with_instructions(mark("initialize")))
    }

    fn negotiate_initialize(&self, request: &InitializeRequestParams) -> Result<InitializeResult, ErrorData> {
        refused("negotiate_initialize", request)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(&[ProtocolVersion::V_2025_11_25, ProtocolVersion::V_2026_07_28])
    }

    async fn discover(&self, _: Context) -> Result<DiscoverResult, ErrorData> {
        let config = self.get_info().with_instructions(mark("discover"));
        Ok(DiscoverResult::from_server_info(vec![ProtocolVersion::V_2026_07_28], config))
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: Context,
    ) -> Result<CompleteResult, ErrorData> {
        Ok(made(json!({"completion": {"values": [mark("complete"), request.argument.value]}})))
    }

    async fn set_level(
        &self,
        request: rmcp::model::SetLevelRequestParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        refused("set_level", &request)
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let description = format!("{} {}", mark("get_prompt"), request.name);
        Ok(made::<GetPromptResult>(json!({"description": description, "messages": []})).into())
    }

    async fn list_prompts(&self, request: Page, _: Context) -> Result<ListPromptsResult, ErrorData> {
        Ok(made(
            json!({"prompts": [{"name": mark("list_prompts"), "description": json!(request).to_string()}]}),
        ))
    }

    async fn list_resources(&self, request: Page, _: Context) -> Result<ListResourcesResult, ErrorData> {
        Ok(made(json!({"resources": [{"uri": mark("list_resources"), "name": json!(request).to_string()}]})))
    }

    async fn list_resource_templates(
        &self,
        request: Page,
        _: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let template =
            json!({"uriTemplate": mark("list_resource_templates"), "name": json!(request).to_string()});
        Ok(made(json!({"resourceTemplates": [template]})))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let contents = json!([{"uri": request.uri, "text": mark("read_resource")}]);
        Ok(made::<ReadResourceResult>(json!({"contents": contents})).into())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        let mut accepted = requested.clone();
        accepted.prompts_list_changed = None;
        Some(accepted)
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        refused("listen", context.accepted())
    }

    async fn subscribe(&self, request: SubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        refused("subscribe", &request)
    }

    async fn unsubscribe(&self, request: UnsubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        refused("unsubscribe", &request)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        said(format!("{} {}", mark("call_tool"), json!(request)))
    }

    async fn list_tools(&self, request: Page, _: Context) -> Result<ListToolsResult, ErrorData> {
        let tool = json!({
            "name": mark("list_tools"),
            "description": json!(request).to_string(),
            "inputSchema": {"type": "object"},
        });
        Ok(made(json!({"tools": [tool]})))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        Some(Tool::new(name.to_owned(), mark("get_tool"), Arc::default()))
    }

    async fn on_custom_request(&self, request: CustomRequest, _: Context) -> Result<CustomResult, ErrorData> {
        Ok(CustomResult::new(json!({"from": mark("on_custom_request"), "method": request.method})))
    }

    async fn on_cancelled(
        &self,
        notification: CancelledNotificationParam,
        _: NotificationContext<RoleServer>,
    ) {
        self.hear("on_cancelled", &notification);
    }

    async fn on_progress(&self, notification: ProgressNotificationParam, _: NotificationContext<RoleServer>) {
        self.hear("on_progress", &notification);
    }

    async fn on_initialized(&self, _: NotificationContext<RoleServer>) {
        self.hear("on_initialized", &());
    }

    async fn on_roots_list_changed(&self, _: NotificationContext<RoleServer>) {
        self.hear("on_roots_list_changed", &());
    }

    async fn on_custom_notification(
        &self,
        notification: CustomNotification,
        _: NotificationContext<RoleServer>,
    ) {
        self.hear("on_custom_notification", &notification.method);
    }

    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_completions()
            .enable_logging()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_skills_with_directory_read()
            .enable_tasks()
            .enable_tools()
            .enable_tool_list_changed()
            .build();
        ServerConfig::new(capabilities).with_server_info(Implementation::new(mark("get_info"), "1"))
    }

    async fn get_task(&self, request: GetTaskParams, _: Context) -> Result<GetTaskResult, ErrorData> {
        let task =
            Task::new(request.task_id, TaskStatus::Working, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z");
        let task = task.with_status_message(mark("get_task"));
        Ok(GetTaskResult::new(DetailedTask::new(task, TaskPayload::Working)))
    }

    async fn update_task(&self, request: UpdateTaskParams, _: Context) -> Result<(), ErrorData> {
        refused("update_task", &request)
    }

    async fn cancel_task(&self, request: CancelTaskParams, _: Context) -> Result<(), ErrorData> {
        refused("cancel_task", &request)
    }

    async fn list_skills(&self, _: Page, _: Context) -> Result<ListSkillsResult, ErrorData> {
        Ok(made(json!({"skills": [skill("list_skills")]})))
    }

    async fn get_skill(&self, _: GetSkillRequestParams, _: Context) -> Result<GetSkillResult, ErrorData> {
        Ok(GetSkillResult::new(skill("get_skill")))
    }

    async fn read_resource_directory(
        &self,
        request: ReadResourceDirectoryRequestParams,
        _: Context,
    ) -> Result<ReadResourceDirectoryResult, ErrorData> {
        Ok(made(json!({"resources": [{"uri": request.uri, "name": mark("read_resource_directory")}]})))
    }
}

/// Every request, with the method that answers it.
fn requests() -> Vec<(&'static str, &'static str, Value)> {
    let page = json!({"cursor": "page 2"});
    let argument = json!({"name": "city", "value": "lis"});
    let filter = json!({"toolsListChanged": true, "promptsListChanged": true});
    vec![
        ("ping", "ping", json!({})),
        ("discover", "server/discover", json!({})),
        (
            "complete",
            "completion/complete",
            json!({"ref": {"type": "ref/prompt", "name": "p"}, "argument": argument}),
        ),
        ("set_level", "logging/setLevel", json!({"level": "debug"})),
        ("get_prompt", "prompts/get", json!({"name": "p"})),
        ("list_prompts", "prompts/list", page.clone()),
        ("list_resources", "resources/list", page.clone()),
        ("list_resource_templates", "resources/templates/list", page.clone()),
        ("read_resource", "resources/read", json!({"uri": "r://1"})),
        ("listen", "subscriptions/listen", json!({"notifications": filter})),
        ("subscribe", "resources/subscribe", json!({"uri": "r://1"})),
        ("unsubscribe", "resources/unsubscribe", json!({"uri": "r://1"})),
        ("call_tool", "tools/call", json!({"name": "t", "arguments": {"a": 1}})),
        ("list_tools", "tools/list", page),
        ("on_custom_request", "house/custom", json!({"a": 1})),
        ("get_task", "tasks/get", json!({"taskId": "7"})),
        ("update_task", "tasks/update", json!({"taskId": "7", "inputResponses": {}})),
        ("cancel_task", "tasks/cancel", json!({"taskId": "7"})),
        ("list_skills", "skills/list", json!({})),
        ("get_skill", "skills/get", json!({"uri": "skill://weather/SKILL.md"})),
        ("read_resource_directory", "resources/directory/read", json!({"uri": "r://"})),
    ]
}

#[tokio::test]
async fn every_request_is_answered_by_the_method_of_the_handler_byte_for_byte() {
    let mut seen = BTreeSet::new();
    for generation in GENERATIONS {
        let (mut bare, hello) = Wire::open(Distinct::default(), generation).await;
        let wrapped = Performance::builder(Distinct::default()).build().unwrap();
        let (mut wrapped, wrapped_hello) = Wire::open(wrapped, generation).await;
        assert_eq!(wrapped_hello, hello);
        if hello.is_some_and(|hello| hello.contains(&mark("initialize"))) {
            seen.insert("initialize");
        }
        for (handler, method, params) in requests() {
            let (expected, answer) = (bare.ask(method, &params).await, wrapped.ask(method, &params).await);
            assert_eq!(answer, expected, "{method}, {generation:?}");
            let mut said = expected.contains(&mark(handler));
            if expected.contains("notifications/subscriptions/acknowledged") {
                let (expected, answer) = (bare.receive().await, wrapped.receive().await);
                assert_eq!(answer, expected, "{method}, {generation:?}");
                assert!(!expected.contains("promptsListChanged"), "what the handler accepts: {expected}");
                said = expected.contains(&mark(handler));
            }
            if said {
                seen.insert(handler);
            }
        }
    }
    let methods: BTreeSet<&str> =
        requests().into_iter().map(|(handler, ..)| handler).chain(["initialize"]).collect();
    assert_eq!(seen, methods, "every method was reached at least once");
}

#[tokio::test]
async fn every_notification_reaches_the_handler() {
    let told = [
        ("notifications/cancelled", json!({"requestId": 99, "reason": "no"})),
        ("notifications/progress", json!({"progressToken": 3, "progress": 0.5})),
        ("notifications/roots/list_changed", json!({})),
        ("notifications/house/custom", json!({"a": 1})),
    ];
    let (bare, wrapped) = (Distinct::default(), Distinct::default());
    let wrapper = Performance::builder(wrapped.clone()).build().unwrap();
    let (mut bare_wire, _) = Wire::open(bare.clone(), Generation::Legacy).await;
    let (mut wrapped_wire, _) = Wire::open(wrapper, Generation::Legacy).await;
    for (method, params) in &told {
        bare_wire.tell(method, params).await;
        wrapped_wire.tell(method, params).await;
    }
    let all = told.len() + 1; // and `initialized`
    until("every notification is handled", || bare.heard().len() == all && wrapped.heard().len() == all)
        .await;
    assert_eq!(wrapped.heard(), bare.heard());
    for method in
        ["on_cancelled", "on_progress", "on_initialized", "on_roots_list_changed", "on_custom_notification"]
    {
        assert!(bare.heard().iter().any(|heard| heard.starts_with(method)), "{method}: {:?}", bare.heard());
    }
}

#[tokio::test]
async fn what_rmcp_asks_the_handler_for_without_a_request_is_the_handlers_own() {
    let (bare, wrapped) = (Distinct::default(), Performance::builder(Distinct::default()).build().unwrap());
    assert_eq!(wrapped.get_info(), bare.get_info());
    assert_eq!(wrapped.supported_protocol_versions(), bare.supported_protocol_versions());
    assert_eq!(wrapped.get_tool("t"), bare.get_tool("t"));
    assert!(bare.get_tool("t").is_some());
    let filter: SubscriptionFilter = made(json!({"toolsListChanged": true, "promptsListChanged": true}));
    assert_eq!(wrapped.accepted_subscription_filter(&filter), bare.accepted_subscription_filter(&filter));
    let request: InitializeRequestParams = made(
        json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}),
    );
    let refusal = wrapped.negotiate_initialize(&request).unwrap_err();
    assert_eq!(refusal.message, mark("negotiate_initialize"));
}
