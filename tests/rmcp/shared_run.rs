//! The run that several callers share: nobody's cancellation, nobody's progress.

use std::sync::{Arc, Mutex};

use mcp_perf::rmcp::Performance;
use rmcp::{ServerHandler, model::RequestMetaObject};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    fixture::{
        Call, Client, GENERATIONS, Gate, Generation, Http, Mode, Pending, Scripted, context, keeping, params,
        said, settle, text, until,
    },
    wire::{meta, post},
};

/// What the runs were given.
#[derive(Clone, Default)]
struct Given(Arc<Mutex<Vec<(RequestMetaObject, CancellationToken)>>>);

impl Given {
    fn note(&self, call: &Call) {
        assert!(call.request.meta.is_none(), "all of it is in the context");
        self.0.lock().unwrap().push((call.context.meta.clone(), call.context.ct.clone()));
    }

    fn first_token(&self) -> CancellationToken {
        self.0.lock().unwrap()[0].1.clone()
    }
}

fn recording(given: &Given, gate: &Gate) -> Scripted {
    let shared = (given.clone(), gate.clone());
    Scripted::new().sharing("tool", shared, async |(given, gate): (Given, Gate), call: Call| {
        given.note(&call);
        gate.pass().await;
        said(format!("run {}", call.run))
    })
}

#[tokio::test]
async fn shared_run_has_no_progress_token_and_an_unshared_one_has() {
    for generation in GENERATIONS {
        let (given, gate) = (Given::default(), Gate::new());
        let server = recording(&given, &gate);
        let bare = Client::of(Performance::builder(server.clone()).build().unwrap(), generation).await;
        let shared = Client::of(keeping(&server, "tool").build().unwrap(), generation).await;
        for client in [bare, shared] {
            gate.open();
            client.hear("tool", json!({})).await;
        }
        let given = given.0.lock().unwrap();
        let [(unshared, _), (shared, _)] = &given[..] else { panic!("two runs") };
        assert!(unshared.get_progress_token().is_some(), "the client sends one with every request");
        assert!(shared.get_progress_token().is_none());
        // And nothing else is missing.
        assert_eq!(shared.protocol_version(), unshared.protocol_version());
        assert_eq!(shared.client_info(), unshared.client_info());
    }
}

#[tokio::test]
async fn client_that_cancels_does_not_take_the_run_from_those_who_wait() {
    let (given, gate) = (Given::default(), Gate::new());
    let server = recording(&given, &gate);
    let wrapped = keeping(&server, "tool").build().unwrap();
    let leader = Client::of(wrapped.clone(), Generation::Legacy).await;
    let waiter = Arc::new(Client::of(wrapped.clone(), Generation::Legacy).await);
    let request = leader.start("tools/call", json!({"name": "tool", "arguments": {}})).await;
    gate.reached().await;
    let waiting = Pending::call(&waiter, "tool", json!({}));
    until("somebody waits", || wrapped.answers().stats().joined == 1).await;
    request.cancel(Some("changed my mind".to_owned())).await.unwrap();
    // A request behind the cancellation on the same connection: once it is answered, that one was handled.
    leader.ask("ping", json!({})).await.unwrap();
    settle().await;
    assert!(!given.first_token().is_cancelled(), "the run has a token of its own");
    gate.open();
    assert_eq!(waiting.text().await, "run 1");
    assert_eq!(waiter.hear("tool", json!({})).await, "run 1", "and its answer is kept");
    assert_eq!(server.runs("tool"), 1);
}

#[tokio::test]
async fn call_that_is_not_shared_is_cancelled_as_it_was() {
    let (given, gate) = (Given::default(), Gate::new());
    let server = recording(&given, &gate);
    let client = Client::of(Performance::builder(server).build().unwrap(), Generation::Legacy).await;
    let request = client.start("tools/call", json!({"name": "tool", "arguments": {}})).await;
    gate.reached().await;
    request.cancel(None).await.unwrap();
    let token = given.first_token();
    until("the token is cancelled", || token.is_cancelled()).await;
}

#[tokio::test]
async fn client_whose_connection_dies_does_not_take_the_run_from_those_who_wait() {
    for generation in GENERATIONS {
        let (given, gate) = (Given::default(), Gate::new());
        let server = recording(&given, &gate);
        let wrapped = keeping(&server, "tool").build().unwrap();
        let leader = Client::of(wrapped.clone(), generation).await;
        let waiter = Arc::new(Client::of(wrapped.clone(), generation).await);
        let request = leader.start("tools/call", json!({"name": "tool", "arguments": {}})).await;
        gate.reached().await;
        let waiting = Pending::call(&waiter, "tool", json!({}));
        until("somebody waits", || wrapped.answers().stats().joined == 1).await;
        drop((request, leader));
        settle().await;
        gate.open();
        assert_eq!(waiting.text().await, "run 1");
        assert!(!given.first_token().is_cancelled());
        assert_eq!(server.runs("tool"), 1);
    }
}

async fn call(http: Arc<Http>) {
    let call = json!({"name": "tool", "arguments": {}, "_meta": meta()});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call});
    let headers =
        [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "tool")];
    post(&http, &headers, &body.to_string()).await;
}

#[tokio::test]
async fn http_client_that_hangs_up_does_not_take_the_run_from_those_who_wait() {
    for mode in [Mode::StatelessJson, Mode::StatelessEvents] {
        let (given, gate) = (Given::default(), Gate::new());
        let server = recording(&given, &gate);
        let wrapped = keeping(&server, "tool").build().unwrap();
        let http = Arc::new(Http::start(wrapped.clone(), mode).await);
        let leader = tokio::spawn(call(Arc::clone(&http)));
        gate.reached().await;
        let waiter = Arc::new(Client::over_http(&http, Generation::Modern, None).await);
        let waiting = Pending::call(&waiter, "tool", json!({}));
        until("somebody waits", || wrapped.answers().stats().joined == 1).await;
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        settle().await;
        assert!(!given.first_token().is_cancelled());
        gate.open();
        assert_eq!(waiting.text().await, "run 1", "{mode:?}");
        assert_eq!(server.runs("tool"), 1);
    }
}

#[tokio::test]
async fn dropped_call_does_not_take_the_run_from_those_who_wait() {
    let (given, gate) = (Given::default(), Gate::new());
    let server = recording(&given, &gate);
    let wrapped = keeping(&server, "tool").build().unwrap();
    let call = |wrapped: Performance<Scripted>| async move {
        wrapped.call_tool(params("tool", json!({})), context(Generation::Legacy)).await
    };
    let leader = tokio::spawn(call(wrapped.clone()));
    gate.reached().await;
    let waiting = tokio::spawn(call(wrapped.clone()));
    until("somebody waits", || wrapped.answers().stats().joined == 1).await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    gate.open();
    let rmcp::model::CallToolResponse::Complete(result) = waiting.await.unwrap().unwrap() else { panic!() };
    assert_eq!(text(&Ok(serde_json::to_value(result).unwrap())), "run 1");
    assert_eq!(server.runs("tool"), 1);
}

#[tokio::test]
async fn run_that_everybody_left_goes_on_and_its_answer_is_kept() {
    let (given, gate) = (Given::default(), Gate::new());
    let server = recording(&given, &gate);
    let wrapped = keeping(&server, "tool").build().unwrap();
    let call = {
        let wrapped = wrapped.clone();
        async move { wrapped.call_tool(params("tool", json!({})), context(Generation::Legacy)).await }
    };
    let leader = tokio::spawn(call);
    gate.reached().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    gate.open();
    until("the run is over", || wrapped.answers().stats().loading == 0).await;
    let client = Client::of(wrapped, Generation::Legacy).await;
    assert_eq!(client.hear("tool", json!({})).await, "run 1");
    assert_eq!(server.runs("tool"), 1);
}

#[tokio::test]
async fn token_of_a_shared_run_outlives_the_answer() {
    let (given, gate) = (Given::default(), Gate::new());
    let server = recording(&given, &gate);
    let client = Client::of(keeping(&server, "tool").build().unwrap(), Generation::Legacy).await;
    gate.open();
    client.hear("tool", json!({})).await;
    client.ask("ping", json!({})).await.unwrap();
    assert!(!given.first_token().is_cancelled());
}
