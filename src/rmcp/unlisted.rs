//! Names that something was said of, and that no tool has.
//!
//! A server is asked for its tools by clients only, and may know none of them before; so what is misspelt in the
//! builder is found when the first whole list goes by.

use std::sync::atomic::{AtomicBool, Ordering};

use ::rmcp::{ServerHandler, model::ListToolsResult};

use super::handler::Shared;

/// Whether a list went by that told.
#[derive(Debug, Default)]
pub(super) struct Seen(AtomicBool);

impl<H: ServerHandler> Shared<H> {
    /// Looks, once, for the names of the rules in a list that is whole: not one page of several.
    pub(super) fn look_through(&self, list: &ListToolsResult) {
        let is_whole = list.next_cursor.is_none();
        if self.rules.is_empty() || !is_whole || self.listed.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let is_listed = |name: &str| list.tools.iter().any(|tool| tool.name == name);
        let mut missing: Vec<&str> = self.rules.keys().map(|name| &**name).collect();
        // One that is hidden from this caller is no mistake, and the handler may know it.
        missing.retain(|name| !is_listed(name) && self.handler.get_tool(name).is_none());
        missing.sort_unstable();
        if !missing.is_empty() {
            let message = "named in `cache_tool` or `invalidate_after` and not among the tools: misspelt?";
            tracing::warn!(tools = ?missing, "{message}");
        }
    }
}
