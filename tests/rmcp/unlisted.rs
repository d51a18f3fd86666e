//! What the builder names and the server does not have is told to the operator, and changes nothing else.

use mcp_perf::rmcp::{Performance, ToolPolicy};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{ListToolsResult, PaginatedRequestParams, Tool},
    service::RequestContext,
};
use serde_json::json;
use tracing::Level;

use crate::{
    fixture::{Client, GENERATIONS, Generation, MINUTE, Scripted, context, object, said},
    log::Log,
};

/// A server that lists its tools in pages of two, and knows one more by name.
struct Listing {
    tools: &'static [&'static str],
    hidden: Option<&'static str>,
}

impl ServerHandler for Listing {
    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.hidden.filter(|hidden| *hidden == name).map(tool)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let cursor = request.and_then(|request| request.cursor);
        let from = cursor.as_deref().map_or(0, |cursor| cursor.parse().unwrap());
        let page = self.tools[from..].iter().take(2).copied().map(tool).collect();
        let mut list = ListToolsResult::with_all_items(page);
        list.next_cursor = (from + 2 < self.tools.len()).then(|| (from + 2).to_string());
        Ok(list)
    }
}

fn tool(name: &'static str) -> Tool {
    Tool::new(name, "listed", object(json!({"type": "object"})))
}

fn wrapped<H: ServerHandler>(server: H) -> Performance<H> {
    Performance::builder(server)
        .cache_tool("serch", ToolPolicy::public(MINUTE))
        .cache_tool("search", ToolPolicy::public(MINUTE))
        .invalidate_after("ad", |_| vec!["servers".to_owned()])
        .build()
        .unwrap()
}

async fn list<H: ServerHandler>(server: &Performance<H>, cursor: Option<&str>) {
    let request = cursor.map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor.into())));
    server.list_tools(request, context(Generation::Legacy)).await.unwrap();
}

const TOLD: &str = "named in `cache_tool` or `invalidate_after` and not among the tools: misspelt?";

#[tokio::test]
async fn name_that_is_not_in_the_first_whole_list_is_told_once() {
    let log = Log::hear();
    let server = wrapped(Listing { tools: &["search", "add"], hidden: None });
    assert_eq!(log.at_least(Level::WARN), [""; 0], "before anybody asked, nobody knows");
    for _ in 0..3 {
        list(&server, None).await;
    }
    assert_eq!(log.at_least(Level::WARN), [TOLD]);
    assert_eq!(log.fields("tools"), [r#"["ad", "serch"]"#]);
}

#[tokio::test]
async fn one_page_of_several_and_a_tool_that_the_handler_knows_are_no_reason_to_tell() {
    let log = Log::hear();
    let paged = wrapped(Listing { tools: &["search", "add", "other"], hidden: None });
    list(&paged, None).await;
    list(&paged, Some("2")).await;
    let right = wrapped(Listing { tools: &["search", "serch"], hidden: Some("ad") });
    list(&right, None).await;
    assert_eq!(log.at_least(Level::WARN), [""; 0]);
}

#[tokio::test]
async fn list_is_what_the_server_says_whatever_was_misspelt() {
    let server = || Scripted::new().tool("search", async |_| said("found"));
    for generation in GENERATIONS {
        let (bare, wrapped) =
            (Client::of(server(), generation).await, Client::of(wrapped(server()), generation).await);
        let expected = bare.ask("tools/list", json!({})).await;
        assert_eq!(wrapped.ask("tools/list", json!({})).await, expected);
        assert_eq!(wrapped.hear("search", json!({})).await, "found");
    }
}
