//! The server under test, as its own documentation has it: a router made once, and shared by all clones.

use std::{sync::Arc, time::Duration};

use rmcp::{
    ServerHandler,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    schemars, tool, tool_handler, tool_router,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::measure::Stopwatch;

/// How long the tool that works does so.
pub const WORK: Duration = Duration::from_micros(100);

#[derive(Clone)]
pub struct Tools {
    tool_router: Arc<ToolRouter<Self>>,
}

#[derive(Deserialize, JsonSchema)]
struct Text {
    text: String,
}

#[tool_router]
impl Tools {
    pub fn new() -> Self {
        Self { tool_router: Arc::new(Self::tool_router()) }
    }

    #[tool(description = "Answers what it is given")]
    async fn echo(&self, Parameters(Text { text }): Parameters<Text>) -> String {
        text
    }

    #[tool(description = "As echo, after 100 microseconds of work")]
    async fn work(&self, Parameters(Text { text }): Parameters<Text>) -> String {
        let stopwatch = Stopwatch::start();
        while stopwatch.elapsed() < WORK {
            std::hint::spin_loop();
        }
        text
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Tools {}
