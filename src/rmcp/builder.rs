//! Making a [`Performance`].

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use ::rmcp::{RoleServer, ServerHandler, model::JsonObject, service::RequestContext};

use super::{
    answer::Answer,
    handler::{Limit, Performance, Rule, Shared},
    key::Definition,
    meter::{Meter, TOOLS_CALL},
    policy::{Principal, Tagger, ToolCall, ToolPolicy},
    unlisted::Seen,
};
use crate::{
    Error,
    cache::{Cache, MAX_TIME_TO_LIVE},
    limit::{Limiter, Subject},
    timing::Timing,
};

/// Longer than any client waits: the wrapped server gives up on a tool no sooner than the bare one.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60 * 60);

pub(super) type Identity = Box<dyn Fn(&RequestContext<RoleServer>) -> Option<Principal> + Send + Sync>;

/// Settings of a [`Performance`].
#[must_use = "a builder does nothing until `build`"]
pub struct PerformanceBuilder<H> {
    handler: H,
    answers: Option<Cache<Answer>>,
    policies: Vec<(String, ToolPolicy)>,
    invalidations: Vec<(String, Tagger)>,
    identity: Option<Identity>,
    limit: Option<Limit>,
    limit_code: i32,
    timing: Timing,
}

impl<H: ServerHandler> PerformanceBuilder<H> {
    pub(super) fn new(handler: H) -> Self {
        Self {
            handler,
            answers: None,
            policies: Vec::new(),
            invalidations: Vec::new(),
            identity: None,
            limit: None,
            limit_code: 429,
            timing: Timing::default(),
        }
    }

    /// Keeps the answers of a tool, as the policy says; see [what is cached](super#what-is-cached).
    ///
    /// A name that no tool has is no error, since servers may make their tools as they go. It is logged, as a
    /// warning, when the first list of tools that goes by in one page does not have it.
    pub fn cache_tool(mut self, tool: impl Into<String>, policy: ToolPolicy) -> Self {
        self.policies.push((tool.into(), policy));
        self
    }

    /// Once a call of `tool` has ended, and before its answer is sent, answers that carry one of the tags that
    /// `tags` makes of its arguments are gone; and those that were being made meanwhile are not kept.
    ///
    /// It does not matter how the call ended: one that failed, or that nobody waited for, may have written. A call
    /// that is answered with a task has ended when the task was made: what the task writes later, invalidate by way
    /// of [`answers`](super::Performance::answers). If a remote tier cannot be told, the call's answer is sent all
    /// the same; this process does not read old answers there, other processes may until it is told.
    ///
    /// A name that no tool has is told as that of [`cache_tool`](Self::cache_tool) is.
    pub fn invalidate_after(
        mut self,
        tool: impl Into<String>,
        tags: impl Fn(&JsonObject) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.invalidations.push((tool.into(), Arc::new(tags)));
        self
    }

    /// Where answers are kept: 10,000 of them in memory, unless set. Give it a cache of your own for another
    /// capacity, or for one that other processes share:
    ///
    /// ```no_run
    /// # use mcp_perf::{cache::Cache, rmcp::Performance};
    /// # struct Weather;
    /// # impl rmcp::ServerHandler for Weather {}
    /// # async fn build() -> Result<(), mcp_perf::Error> {
    /// # #[cfg(feature = "redis")] {
    /// let store = mcp_perf::redis::RedisStore::new("redis://127.0.0.1")?;
    /// let answers = Cache::builder("weather").capacity(50_000).remote(store).build().await?;
    /// let server = Performance::builder(Weather).answers(answers).build()?;
    /// # }
    /// # Ok(()) }
    /// ```
    ///
    /// Times to live come from the policies, not from this cache. Its
    /// [`load_timeout`](crate::cache::CacheBuilder::load_timeout) bounds how long a cached tool may run, and its
    /// [`error_throttle`](crate::cache::CacheBuilder::error_throttle) applies to runs that panicked or took longer. In the
    /// cache that is made unless set they are an hour and zero; in one of your own they are 30 seconds and 100 ms unless you
    /// set them: for slow tools `.load_timeout(Duration::from_secs(3600)).error_throttle(Duration::ZERO)`.
    ///
    /// Closures given to this builder are called with whatever clients send: one that panics leaves its client
    /// without an answer.
    pub fn answers(mut self, answers: Cache<Answer>) -> Self {
        self.answers = Some(answers);
        self
    }

    /// Who a caller is, for the tools with a [private](ToolPolicy::private) policy. Without a principal a call
    /// of those is not cached.
    ///
    /// [`Principal::of_authorization`] fits here; so does a closure that reads what an authentication layer put
    /// into the request's extensions:
    ///
    /// ```
    /// use mcp_perf::rmcp::{Performance, Principal, ToolPolicy};
    /// use std::time::Duration;
    ///
    /// #[derive(Clone)]
    /// struct Account { id: String } // a tower layer in front put it there
    /// # struct Mail;
    /// # impl rmcp::ServerHandler for Mail {}
    /// # fn main() -> Result<(), mcp_perf::Error> {
    /// let server = Performance::builder(Mail)
    ///     .cache_tool("inbox", ToolPolicy::private(Duration::from_secs(30)))
    ///     .identity(|context| {
    ///         let request = context.extensions.get::<http::request::Parts>()?;
    ///         request.extensions.get::<Account>().map(|account| Principal::new(&account.id))
    ///     })
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn identity(
        mut self,
        identity: impl Fn(&RequestContext<RoleServer>) -> Option<Principal> + Send + Sync + 'static,
    ) -> Self {
        self.identity = Some(Box::new(identity));
        self
    }

    /// Limits `tools/call`, at a cost of 1 to each of the subjects that `subjects` names for the call; all are
    /// charged or none. A call over the limit is answered with a JSON-RPC error whose `data` holds `policy`,
    /// `limit`, `remaining` and `retryAfterMs`. A call for which none is named passes.
    ///
    /// By caller, behind what authenticates (all without a principal share one quota):
    ///
    /// ```
    /// use mcp_perf::{limit::{Limiter, Quota}, rmcp::{Performance, Principal}};
    /// # struct Weather;
    /// # impl rmcp::ServerHandler for Weather {}
    /// # fn main() -> Result<(), mcp_perf::Error> {
    /// let limiter = Limiter::builder().policy("caller", Quota::per_second(10).burst(20)).build()?;
    /// let caller = limiter.scope("caller")?;
    /// let server = Performance::builder(Weather)
    ///     .limit(limiter, move |call| vec![caller.on(&Principal::of_authorization(call.context))])
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    ///
    /// By tool:
    ///
    /// ```
    /// use mcp_perf::{limit::{Limiter, Quota}, rmcp::Performance};
    /// # struct Weather;
    /// # impl rmcp::ServerHandler for Weather {}
    /// # fn main() -> Result<(), mcp_perf::Error> {
    /// let limiter = Limiter::builder().policy("tool", Quota::per_second(100)).build()?;
    /// let tool = limiter.scope("tool")?;
    /// let server = Performance::builder(Weather).limit(limiter, move |call| vec![tool.on(call.name)]).build()?;
    /// # Ok(()) }
    /// ```
    pub fn limit(
        mut self,
        limiter: Limiter,
        subjects: impl Fn(&ToolCall<'_>) -> Vec<Subject> + Send + Sync + 'static,
    ) -> Self {
        self.limit = Some(Limit { limiter, subjects: Box::new(subjects) });
        self
    }

    /// The code of the error that a call over the limit is answered with: 429 unless set. The protocol keeps
    /// -32768 to -32000 for itself, so a code in that range is refused.
    pub fn limit_code(mut self, code: i32) -> Self {
        self.limit_code = code;
        self
    }

    /// Where times are recorded: into a [`Timing`] of its own unless set. A handler that wants to show them is given
    /// a clone of it (and of [`answers`](Self::answers)) before it is wrapped.
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Wraps the handler.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration), naming the setting that is impossible: a time to live
    /// of zero or above the maximum, a private policy without an [`identity`](Self::identity), a tool that is
    /// cached twice, or both cached and named as one that writes.
    pub fn build(self) -> Result<Performance<H>, Error> {
        if (-32768..=-32000).contains(&self.limit_code) {
            let problem = format!("{} is reserved by JSON-RPC and the protocol", self.limit_code);
            return Err(Error::configuration("limit_code", problem));
        }
        let mut rules: HashMap<Box<str>, Rule> = HashMap::new();
        for (tool, policy) in self.policies {
            let field = format!("cache_tool {tool:?}");
            if policy.time_to_live.is_zero() || policy.time_to_live > MAX_TIME_TO_LIVE {
                let problem = format!("time_to_live must be more than zero and at most {MAX_TIME_TO_LIVE:?}");
                return Err(Error::configuration(&field, problem));
            }
            if !policy.is_public && self.identity.is_none() {
                return Err(Error::configuration(
                    "identity",
                    format_args!("needed by the private policy of {tool:?}: call `.identity(..)`"),
                ));
            }
            let definition = Definition::of(self.handler.get_tool(&tool).as_ref());
            let rule = rules.entry(tool.into()).or_default();
            if rule.policy.replace((policy, definition)).is_some() {
                return Err(Error::configuration(&field, "is there twice"));
            }
        }
        for (tool, tags) in self.invalidations {
            let rule = rules.entry(tool.as_str().into()).or_default();
            if rule.policy.is_some() {
                let problem = "is cached as well: a hit would not run it, so nothing would be written";
                return Err(Error::configuration(&format!("invalidate_after {tool:?}"), problem));
            }
            rule.invalidates.push(tags);
        }
        let meter = Meter::new(self.timing);
        for tool in rules.keys() {
            // Known by name already, so that not even their first call is counted as another's.
            let _ = meter.timing().series(TOOLS_CALL, tool);
        }
        let answers = match self.answers {
            Some(answers) => answers,
            None => {
                Cache::builder("tools").load_timeout(LOAD_TIMEOUT).error_throttle(Duration::ZERO).build()?
            }
        };
        Ok(Performance(Arc::new(Shared {
            handler: self.handler,
            answers,
            rules,
            listed: Seen::default(),
            identity: self.identity,
            limit: self.limit,
            limit_code: self.limit_code,
            meter,
        })))
    }
}

impl<H> fmt::Debug for PerformanceBuilder<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerformanceBuilder")
            .field("policies", &self.policies)
            .field("limit_code", &self.limit_code)
            .finish_non_exhaustive()
    }
}
