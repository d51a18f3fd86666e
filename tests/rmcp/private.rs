//! What one caller may see is never shown to another.

use std::sync::Arc;

use axum::http::request::Parts;
use mcp_perf::{
    ErrorKind,
    cache::Cache,
    clock::Clock,
    rmcp::{Answer, Performance, Principal, ToolPolicy},
    testing::MemoryStore,
};
use serde_json::json;

use crate::{
    fixture::{
        Call, Client, GENERATIONS, Gate, Generation, Http, MINUTE, Mode, Pending, Scripted, said, until,
    },
    wire::{open_session, post},
};

const MODES: [Mode; 3] = [Mode::Sessions, Mode::StatelessJson, Mode::StatelessEvents];

/// A tool that answers with the `Authorization` it was called with, and the number of the run.
fn whoami() -> Scripted {
    Scripted::new().tool("whoami", async |call| {
        let parts = call.context.extensions.get::<Parts>();
        let header = parts.and_then(|parts| parts.headers.get("authorization"));
        let who = header.map_or("nobody", |header| header.to_str().unwrap());
        said(format!("{who}, run {}", call.run))
    })
}

fn private(server: &Scripted, tool: &str) -> mcp_perf::rmcp::PerformanceBuilder<Scripted> {
    Performance::builder(server.clone()).cache_tool(tool, ToolPolicy::private(MINUTE))
}

#[tokio::test]
async fn callers_with_different_authorization_never_see_each_others_answer() {
    for mode in MODES {
        for generation in GENERATIONS {
            let server = whoami();
            let wrapped = private(&server, "whoami").identity(Principal::of_authorization).build().unwrap();
            let http = Http::start(wrapped, mode).await;
            let alice = Client::over_http(&http, generation, Some("alice")).await;
            let bob = Client::over_http(&http, generation, Some("bob")).await;
            for _ in 0..3 {
                assert_eq!(alice.hear("whoami", json!({})).await, "Bearer alice, run 1", "{mode:?}");
                assert_eq!(bob.hear("whoami", json!({})).await, "Bearer bob, run 2", "{mode:?}");
            }
            // Another connection of the same caller has the same answer.
            let alice = Client::over_http(&http, generation, Some("alice")).await;
            assert_eq!(alice.hear("whoami", json!({})).await, "Bearer alice, run 1", "{mode:?}");
        }
    }
}

#[tokio::test]
async fn callers_without_authorization_are_not_cached() {
    for mode in MODES {
        let server = whoami();
        let wrapped = private(&server, "whoami").identity(Principal::of_authorization).build().unwrap();
        let http = Http::start(wrapped.clone(), mode).await;
        let client = Client::over_http(&http, Generation::Modern, None).await;
        for run in 1..=3 {
            assert_eq!(client.hear("whoami", json!({})).await, format!("nobody, run {run}"), "{mode:?}");
        }
        let stats = wrapped.answers().stats();
        assert_eq!((stats.hits, stats.misses, stats.len), (0, 0, 0));
    }
}

#[tokio::test]
async fn callers_over_a_pipe_have_no_authorization_and_are_not_cached() {
    let server = whoami();
    let wrapped = private(&server, "whoami").identity(Principal::of_authorization).build().unwrap();
    let client = Client::of(wrapped, Generation::Legacy).await;
    assert_eq!(client.hear("whoami", json!({})).await, "nobody, run 1");
    assert_eq!(client.hear("whoami", json!({})).await, "nobody, run 2");
}

fn call_of(tool: &str) -> String {
    let call = json!({"name": tool, "arguments": {}});
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}).to_string()
}

#[tokio::test]
async fn request_with_two_authorizations_is_not_cached() {
    let server = whoami();
    let wrapped = private(&server, "whoami").identity(Principal::of_authorization).build().unwrap();
    let http = Http::start(wrapped, Mode::StatelessJson).await;
    let both = [("authorization", "Bearer alice"), ("authorization", "Bearer bob")];
    for run in 1..=2 {
        let answer = post(&http, &both, &call_of("whoami")).await.body;
        assert!(answer.contains(&format!("Bearer alice, run {run}")), "{answer}");
    }
}

#[tokio::test]
async fn session_that_another_caller_goes_on_with_does_not_show_the_answers_of_the_first() {
    let server = whoami();
    let wrapped = private(&server, "whoami").identity(Principal::of_authorization).build().unwrap();
    let http = Http::start(wrapped, Mode::Sessions).await;
    let session = open_session(&http, &[("authorization", "Bearer alice")]).await;
    for (who, said) in [
        (Some("Bearer alice"), "Bearer alice, run 1"),
        (Some("Bearer bob"), "Bearer bob, run 2"),
        (None, "nobody, run 3"),
        (Some("Bearer alice"), "Bearer alice, run 1"),
        (None, "nobody, run 4"),
    ] {
        let mut headers = vec![("mcp-session-id", session.as_str())];
        headers.extend(who.map(|who| ("authorization", who)));
        let answer = post(&http, &headers, &call_of("whoami")).await.body;
        assert!(answer.contains(said), "{who:?}: {answer}");
    }
}

/// A principal by the name that the client gives itself.
fn by_name(server: &Scripted, tool: &str) -> Performance<Scripted> {
    let builder = private(server, tool).identity(|context| {
        let name = context.client_info()?.name;
        (name != "anonymous").then(|| Principal::new(name))
    });
    builder.build().unwrap()
}

#[tokio::test]
async fn callers_told_apart_by_an_identity_of_ones_own_never_see_each_others_answer() {
    for generation in GENERATIONS {
        let server = Scripted::new().counting("inbox");
        let wrapped = by_name(&server, "inbox");
        for (name, runs) in [
            ("alice", ["run 1", "run 1"]),
            ("bob", ["run 2", "run 2"]),
            ("", ["run 3", "run 3"]),
            ("anonymous", ["run 4", "run 5"]),
            ("anonymous", ["run 6", "run 7"]),
            ("alice", ["run 1", "run 1"]),
        ] {
            let client = Client::named(name, wrapped.clone(), generation).await;
            for run in runs {
                assert_eq!(client.hear("inbox", json!({})).await, run, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn callers_who_ask_at_once_share_a_run_only_with_themselves() {
    let gate = Gate::new();
    let server = Scripted::new().sharing("inbox", gate.clone(), async |gate: Gate, call: Call| {
        gate.pass().await;
        said(call.context.client_info().unwrap().name)
    });
    let wrapped = by_name(&server, "inbox");
    let mut calls = Vec::new();
    for name in ["alice", "bob", "alice", "bob", "anonymous", "anonymous"] {
        let client = Arc::new(Client::named(name, wrapped.clone(), Generation::Legacy).await);
        calls.push((name, Pending::call(&client, "inbox", json!({}))));
    }
    // One of alice, one of bob, and two of nobody in particular.
    for _ in 0..4 {
        gate.reached().await;
    }
    until("the others wait", || wrapped.answers().stats().joined == 2).await;
    for _ in 0..4 {
        gate.open();
    }
    for (name, call) in calls {
        assert_eq!(call.text().await, name);
    }
    assert_eq!(server.runs("inbox"), 4);
}

#[tokio::test]
async fn callers_never_see_each_others_answer_through_a_shared_remote_tier() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let server = Scripted::new().counting("inbox");
    let node = async || {
        let answers: Cache<Answer> =
            Cache::builder("answers").clock(clock.clone()).remote(store.clone()).build().await.unwrap();
        let identity = |context: &_| {
            rmcp::service::RequestContext::client_info(context).map(|info| Principal::new(info.name))
        };
        private(&server, "inbox").identity(identity).answers(answers).build().unwrap()
    };
    for (name, run) in [("alice", "run 1"), ("bob", "run 2"), ("alice", "run 1"), ("bob", "run 2")] {
        let client = Client::named(name, node().await, Generation::Modern).await;
        assert_eq!(client.hear("inbox", json!({})).await, run, "{name}");
    }
}

#[tokio::test]
async fn public_and_private_answers_do_not_meet() {
    let shared: Cache<Answer> = Cache::builder("answers").build().unwrap();
    let server = Scripted::new().counting("tool");
    let public = crate::fixture::keeping(&server, "tool").answers(shared.clone()).build().unwrap();
    let private =
        private(&server, "tool").identity(|_| Some(Principal::new(""))).answers(shared).build().unwrap();
    let (one, two) =
        (Client::of(public, Generation::Legacy).await, Client::of(private, Generation::Legacy).await);
    assert_eq!(one.hear("tool", json!({})).await, "run 1");
    assert_eq!(two.hear("tool", json!({})).await, "run 2");
    assert_eq!(one.hear("tool", json!({})).await, "run 1");
}

#[tokio::test]
async fn private_policy_without_an_identity_is_refused_and_the_error_names_it() {
    let error = private(&whoami(), "whoami").build().map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("identity") && error.to_string().contains("whoami"), "{error}");
}
