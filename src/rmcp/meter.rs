//! Series for requests by method, and for `tools/call` by tool.

use crate::timing::{Outcome, Series, Span, Timing};

/// The operation of tool calls, whose series have the tool as target.
pub(super) const TOOLS_CALL: &str = "tools/call";

macro_rules! methods {
    ($($name:ident = $method:literal,)*) => {
        /// One series per method, resolved once.
        pub(super) struct Meter {
            timing: Timing,
            $(pub(super) $name: Series,)*
            /// Calls of what turns out to be no tool, and the first call of each tool until it ends.
            unknown_tool: Series,
        }

        impl Meter {
            pub(super) fn new(timing: Timing) -> Self {
                Self {
                    $($name: timing.series($method, ""),)*
                    unknown_tool: timing.other(TOOLS_CALL),
                    timing,
                }
            }
        }
    };
}

methods! {
    complete = "completion/complete",
    custom = "custom",
    discover = "server/discover",
    get_prompt = "prompts/get",
    get_skill = "skills/get",
    get_task = "tasks/get",
    cancel_task = "tasks/cancel",
    initialize = "initialize",
    list_prompts = "prompts/list",
    list_resource_templates = "resources/templates/list",
    list_resources = "resources/list",
    list_skills = "skills/list",
    list_tools = "tools/list",
    listen = "subscriptions/listen",
    ping = "ping",
    read_resource = "resources/read",
    read_resource_directory = "resources/directory/read",
    set_level = "logging/setLevel",
    subscribe = "resources/subscribe",
    unsubscribe = "resources/unsubscribe",
    update_task = "tasks/update",
}

/// A tool call under way. A name gets a series only once a call of it went well: names that callers make up
/// do not fill the table.
pub(super) struct ToolSpan {
    span: Span,
    unknown: Option<Box<str>>,
}

impl Meter {
    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    #[inline]
    pub(super) fn start_tool(&self, tool: &str) -> ToolSpan {
        match self.timing.known(TOOLS_CALL, tool) {
            Some(series) => ToolSpan { span: series.into_span(), unknown: None },
            None => ToolSpan { span: self.unknown_tool.start(), unknown: Some(tool.into()) },
        }
    }

    #[inline]
    pub(super) fn finish_tool(&self, mut call: ToolSpan, outcome: Outcome) {
        if outcome == Outcome::Ok
            && let Some(tool) = &call.unknown
        {
            call.span.belongs_to(self.timing.series(TOOLS_CALL, tool));
        }
        call.span.finish(outcome);
    }
}
