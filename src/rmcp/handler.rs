//! The wrapper: every method of the trait goes to the handler, and some of them past it.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};

use ::rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CancelTaskParams, CancelledNotificationParam,
        CompleteRequestParams, CompleteResult, CustomNotification, CustomRequest, CustomResult,
        DiscoverResult, ErrorCode, GetPromptRequestParams, GetPromptResponse, GetSkillRequestParams,
        GetSkillResult, GetTaskParams, GetTaskResult, InitializeRequestParams, InitializeResult, JsonObject,
        ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListSkillsResult,
        ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ProtocolVersion,
        ReadResourceDirectoryRequestParams, ReadResourceDirectoryResult, ReadResourceRequestParams,
        ReadResourceResponse, ServerConfig, SubscribeRequestParams, SubscriptionFilter, Tool,
        UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};
use tokio_util::sync::CancellationToken;

use super::{
    answer::{Answer, Content},
    builder::{Identity, PerformanceBuilder},
    key::{self, Definition},
    meter::Meter,
    policy::{Tagger, ToolCall, ToolPolicy},
    unlisted::Seen,
};
use crate::{
    ErrorKind,
    cache::{Cache, Key},
    limit::{Decision, Denial, Limiter, Subject},
    timing::{Outcome, Timing},
};

/// A server made faster: wraps any [`ServerHandler`] and is one; cheap to clone.
///
/// The [module page](super) says what it does.
pub struct Performance<H>(pub(super) Arc<Shared<H>>);

/// Everything that the clones share.
pub(super) struct Shared<H> {
    pub(super) handler: H,
    pub(super) answers: Cache<Answer>,
    pub(super) rules: HashMap<Box<str>, Rule>,
    pub(super) listed: Seen,
    pub(super) identity: Option<Identity>,
    pub(super) limit: Option<Limit>,
    pub(super) limit_code: i32,
    pub(super) meter: Meter,
}

/// What was said of a tool.
#[derive(Default)]
pub(super) struct Rule {
    pub(super) policy: Option<(ToolPolicy, Definition)>,
    pub(super) invalidates: Vec<Tagger>,
}

pub(super) struct Limit {
    pub(super) limiter: Limiter,
    pub(super) subjects: Subjects,
}

type Subjects = Box<dyn Fn(&ToolCall<'_>) -> Vec<Subject> + Send + Sync>;

impl<H: ServerHandler> Performance<H> {
    /// Starts the settings of a wrapper around `handler`.
    pub fn builder(handler: H) -> PerformanceBuilder<H> {
        PerformanceBuilder::new(handler)
    }

    /// The wrapped handler.
    #[must_use]
    pub fn handler(&self) -> &H {
        &self.0.handler
    }

    /// The cached answers: for their [`stats`](Cache::stats), and to invalidate what a change made outside of any
    /// tool has made old.
    #[must_use]
    pub fn answers(&self) -> &Cache<Answer> {
        &self.0.answers
    }

    /// The times of requests by method, and of `tools/call` by tool.
    #[must_use]
    pub fn timing(&self) -> &Timing {
        self.0.meter.timing()
    }
}

impl<H: ServerHandler> Shared<H> {
    /// A call of a tool that something was said of, past timing and limit.
    async fn call(
        self: &Arc<Self>,
        rule: &Rule,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let invalidation = Invalidation::of(rule, request.arguments.as_ref(), &self.answers);
        let key = rule.policy.as_ref().and_then(|(policy, definition)| {
            self.key(policy, *definition, &request, &context).map(|key| (policy, key))
        });
        let response = match key {
            Some((policy, key)) => self.cached(policy, &key, request, context).await,
            None => self.handler.call_tool(request, context).await,
        };
        invalidation.run().await;
        response
    }

    /// The key of a call whose answer may be kept; `None` if it may not.
    fn key(
        &self,
        policy: &ToolPolicy,
        definition: Definition,
        request: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Option<Key<'static>> {
        if request.input_responses.is_some() || request.request_state.is_some() {
            return None;
        }
        let principal = if policy.is_public {
            None
        } else {
            // Without a principal nobody knows whom the answer is for.
            Some(self.identity.as_ref().and_then(|identity| identity(context))?)
        };
        Some(key::of_call(&request.name, definition, request.arguments.as_ref(), context, principal.as_ref()))
    }

    async fn cached(
        self: &Arc<Self>,
        policy: &ToolPolicy,
        key: &Key<'_>,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(Answer(Content::Complete(result))) = self.answers.hit(key) {
            return Ok(result.into());
        }
        let tags = request.arguments.as_ref().map(|arguments| policy.tags_of(arguments));
        let tags = tags.unwrap_or_else(|| policy.tags_of(&JsonObject::new()));
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let personal = Arc::new(OnceLock::new());
        let (shared, mine) = (Arc::clone(self), Arc::clone(&personal));
        let (run_request, run_context) = (request.clone(), for_everybody(context.clone()));
        let time_to_live = policy.time_to_live;
        let run = move || async move {
            let response = shared.handler.call_tool(run_request, run_context).await;
            let (answer, for_one) = Answer::sort(response);
            if let Some(for_one) = for_one {
                let _ = mine.set(for_one);
            }
            Ok::<_, ErrorData>(answer.kept_for(time_to_live))
        };
        match self.answers.get_or_load_tagged(key, &tags, run).await {
            Ok(Answer(Content::Complete(result))) => Ok(result.into()),
            Ok(Answer(Content::Failed(error))) => Err(error),
            // It was this call that ran, or else somebody else's, whose answer is not ours to have.
            Ok(Answer(Content::Personal)) => match personal.get() {
                Some(response) => response.clone(),
                None => self.handler.call_tool(request, context).await,
            },
            Err(error) => Err(ErrorData::internal_error(
                match error.kind() {
                    ErrorKind::TimedOut => "the tool took too long",
                    _ => "the tool panicked",
                },
                None,
            )),
        }
    }

    fn refusal(
        &self,
        request: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Option<ErrorData> {
        let limit = self.limit.as_ref()?;
        let call = ToolCall { name: &request.name, arguments: request.arguments.as_ref(), context };
        match limit.limiter.check(&(limit.subjects)(&call), 1) {
            Decision::Allow(_) => None,
            Decision::Deny(denial) => Some(self.over_the_limit(&limit.limiter, &denial)),
        }
    }

    #[cold]
    fn over_the_limit(&self, limiter: &Limiter, denial: &Denial) -> ErrorData {
        let milliseconds = denial.retry_after().map(|after| after.as_nanos().div_ceil(1_000_000));
        let data = serde_json::json!({
            "policy": limiter.policy_name(denial.policy),
            "limit": denial.limit,
            "remaining": denial.remaining(),
            "retryAfterMs": milliseconds.and_then(|milliseconds| u64::try_from(milliseconds).ok()),
        });
        ErrorData::new(ErrorCode(self.limit_code), "rate limit exceeded", Some(data))
    }
}

/// The context of a run that several callers share: no one's cancellation and no one's progress.
fn for_everybody(mut context: RequestContext<RoleServer>) -> RequestContext<RoleServer> {
    context.ct = CancellationToken::new();
    context.meta.remove("progressToken");
    context
}

/// What has to go once a call has ended, however it ends.
struct Invalidation {
    pending: Option<(Cache<Answer>, Vec<String>)>,
}

impl Invalidation {
    fn of(rule: &Rule, arguments: Option<&JsonObject>, answers: &Cache<Answer>) -> Self {
        if rule.invalidates.is_empty() {
            return Self { pending: None };
        }
        let none = JsonObject::new();
        let arguments = arguments.unwrap_or(&none);
        let tags = rule.invalidates.iter().flat_map(|tags| tags(arguments)).collect();
        Self { pending: Some((answers.clone(), tags)) }
    }

    /// Leaves to `drop` what it does not come to.
    async fn run(mut self) {
        if let Some((answers, tags)) = &mut self.pending {
            while let Some(tag) = tags.last() {
                remove(answers, tag).await;
                tags.pop();
            }
        }
    }
}

impl Drop for Invalidation {
    /// The call was dropped or panicked, and may have written.
    fn drop(&mut self) {
        if let Some((answers, tags)) = self.pending.take()
            && !tags.is_empty()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                for tag in tags {
                    remove(&answers, &tag).await;
                }
            });
        }
    }
}

async fn remove(answers: &Cache<Answer>, tag: &str) {
    if let Err(error) = answers.remove_by_tag(tag).await {
        tracing::warn!(cache = answers.name(), "answers of other processes may be old: {error}");
    }
}

/// How a response counts.
trait Counts {
    fn outcome(&self) -> Outcome;
}

impl<T> Counts for Result<T, ErrorData> {
    fn outcome(&self) -> Outcome {
        if self.is_ok() { Outcome::Ok } else { Outcome::Error }
    }
}

fn outcome_of_call(response: &Result<CallToolResponse, ErrorData>) -> Outcome {
    match response {
        Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => Outcome::Error,
        Ok(_) => Outcome::Ok,
        Err(_) => Outcome::Error,
    }
}

/// Methods that are timed and handed on.
macro_rules! timed {
    ($($(#[$attribute:meta])* $method:ident($($argument:ident: $type:ty),*) -> $result:ty = $series:ident;)*) => {$(
        $(#[$attribute])*
        async fn $method(&self, $($argument: $type),*) -> Result<$result, ErrorData> {
            let span = self.0.meter.$series.start();
            let response = self.0.handler.$method($($argument),*).await;
            span.finish(response.outcome());
            response
        }
    )*};
}

/// Notifications: handed on.
macro_rules! notified {
    ($($method:ident($($argument:ident: $type:ty),*);)*) => {$(
        async fn $method(&self, $($argument: $type),*) {
            self.0.handler.$method($($argument),*).await;
        }
    )*};
}

type Context = RequestContext<RoleServer>;
type Page = Option<PaginatedRequestParams>;

// A method that a release of rmcp adds has a default, which answers "method not found" or worse: nothing may be
// left to it.
#[deny(clippy::missing_trait_methods, reason = "every method has to reach the handler")]
impl<H: ServerHandler> ServerHandler for Performance<H> {
    timed! {
        cancel_task(request: CancelTaskParams, context: Context) -> () = cancel_task;
        complete(request: CompleteRequestParams, context: Context) -> CompleteResult = complete;
        discover(context: Context) -> DiscoverResult = discover;
        get_prompt(request: GetPromptRequestParams, context: Context) -> GetPromptResponse = get_prompt;
        get_skill(request: GetSkillRequestParams, context: Context) -> GetSkillResult = get_skill;
        get_task(request: GetTaskParams, context: Context) -> GetTaskResult = get_task;
        initialize(request: InitializeRequestParams, context: Context) -> InitializeResult = initialize;
        list_prompts(request: Page, context: Context) -> ListPromptsResult = list_prompts;
        list_resource_templates(request: Page, context: Context) -> ListResourceTemplatesResult = list_resource_templates;
        list_resources(request: Page, context: Context) -> ListResourcesResult = list_resources;
        list_skills(request: Page, context: Context) -> ListSkillsResult = list_skills;
        listen(context: SubscriptionContext) -> () = listen;
        on_custom_request(request: CustomRequest, context: Context) -> CustomResult = custom;
        ping(context: Context) -> () = ping;
        read_resource(request: ReadResourceRequestParams, context: Context) -> ReadResourceResponse = read_resource;
        read_resource_directory(request: ReadResourceDirectoryRequestParams, context: Context) -> ReadResourceDirectoryResult = read_resource_directory;
        #[expect(deprecated, reason = "clients before 2026-07-28 call it")]
        set_level(request: ::rmcp::model::SetLevelRequestParams, context: Context) -> () = set_level;
        #[expect(deprecated, reason = "clients before 2026-07-28 call it")]
        subscribe(request: SubscribeRequestParams, context: Context) -> () = subscribe;
        #[expect(deprecated, reason = "clients before 2026-07-28 call it")]
        unsubscribe(request: UnsubscribeRequestParams, context: Context) -> () = unsubscribe;
        update_task(request: UpdateTaskParams, context: Context) -> () = update_task;
    }

    notified! {
        on_cancelled(notification: CancelledNotificationParam, context: NotificationContext<RoleServer>);
        on_custom_notification(notification: CustomNotification, context: NotificationContext<RoleServer>);
        on_initialized(context: NotificationContext<RoleServer>);
        on_progress(notification: ProgressNotificationParam, context: NotificationContext<RoleServer>);
        on_roots_list_changed(context: NotificationContext<RoleServer>);
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let span = self.0.meter.start_tool(&request.name);
        if let Some(refusal) = self.0.refusal(&request, &context) {
            self.0.meter.finish_tool(span, Outcome::Refused);
            return Err(refusal);
        }
        let response = match self.0.rules.get(&*request.name) {
            // Nothing was said of this tool: no future of ours between it and its caller.
            None => self.0.handler.call_tool(request, context).await,
            // In a box: it is several times the size of the other, and the task of every request has room for both.
            Some(rule) => Box::pin(self.0.call(rule, request, context)).await,
        };
        self.0.meter.finish_tool(span, outcome_of_call(&response));
        response
    }

    async fn list_tools(&self, request: Page, context: Context) -> Result<ListToolsResult, ErrorData> {
        let is_first = request.as_ref().is_none_or(|request| request.cursor.is_none());
        let span = self.0.meter.list_tools.start();
        let response = self.0.handler.list_tools(request, context).await;
        span.finish(response.outcome());
        if let Ok(list) = &response
            && is_first
        {
            self.0.look_through(list);
        }
        response
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        self.0.handler.accepted_subscription_filter(requested)
    }

    fn get_info(&self) -> ServerConfig {
        self.0.handler.get_info()
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.0.handler.get_tool(name)
    }

    fn negotiate_initialize(&self, request: &InitializeRequestParams) -> Result<InitializeResult, ErrorData> {
        self.0.handler.negotiate_initialize(request)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        self.0.handler.supported_protocol_versions()
    }
}

impl<H> Clone for Performance<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H> fmt::Debug for Performance<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Performance")
            .field("answers", &self.0.answers)
            .field("timing", self.0.meter.timing())
            .finish_non_exhaustive()
    }
}
