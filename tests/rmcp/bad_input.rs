//! What is wrong with a request, the wrapped server says in the same bytes as the bare one.

use std::time::Duration;

use mcp_perf::{
    clock::Clock,
    limit::{Limiter, Quota},
    rmcp::{Performance, Principal, ToolPolicy},
};
use rmcp::{ErrorData, ServerHandler};
use serde_json::{Value, json};

use crate::{
    fixture::{Call, GENERATIONS, Generation, Http, Mode, Scripted, said},
    wire::{Wire, meta, post},
};

fn server() -> Scripted {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let add = async |call: Call| {
        let a =
            call.request.arguments.as_ref().and_then(|arguments| arguments.get("a")).and_then(Value::as_i64);
        match a {
            Some(a) => said(a.to_string()),
            None => {
                Err(ErrorData::invalid_params("a must be a whole number", Some(json!({"argument": "a"}))))
            }
        }
    };
    Scripted::new().tool_with_schema("add", schema.clone(), add).tool_with_schema("plain", schema, add)
}

/// With everything on.
fn wrapped() -> impl ServerHandler + Clone {
    let limiter = Limiter::builder()
        .policy("tool", Quota::per_second(1_000_000))
        .clock(Clock::manual())
        .build()
        .unwrap();
    let tool = limiter.scope("tool").unwrap();
    let by_a =
        |arguments: &rmcp::model::JsonObject| arguments.get("a").map(Value::to_string).into_iter().collect();
    Performance::builder(server())
        .cache_tool("add", ToolPolicy::private(Duration::from_secs(60)).tags(by_a))
        .invalidate_after("plain", by_a)
        .identity(|_| Some(Principal::new("everybody")))
        .limit(limiter, move |call| vec![tool.on(call.name)])
        .build()
        .unwrap()
}

fn bad_requests() -> Vec<(&'static str, Value)> {
    let mut bad = vec![
        ("tools/call", json!({"name": "subtract", "arguments": {"a": 1}})),
        ("tools/call", json!({"name": "", "arguments": {}})),
        ("tools/call", json!({"name": "\u{0}\u{1F4A9}\"\\", "arguments": {}})),
        ("tools/call", json!({"name": "x".repeat(10_000), "arguments": {}})),
        ("tools/call", json!({})),
        ("tools/call", json!({"name": 7})),
        ("tools/call", json!({"name": null, "arguments": {}})),
        ("tools/call", json!({"arguments": {"a": 1}})),
        ("tools/call", json!({"name": "add", "arguments": {"a": 1}, "inputResponses": 7})),
        ("tools/call", json!({"name": "add", "arguments": {"a": 1}, "requestState": 7})),
        ("tools/list", json!({"cursor": 7})),
        ("tools/list", json!({"cursor": "no such page"})),
        ("tools/delete", json!({"name": "add"})),
        ("house/unknown", json!({"a": [1, 2, 3]})),
        ("", json!({})),
        ("prompts/get", json!({"name": "no"})),
        ("prompts/get", json!({})),
        ("resources/read", json!({"uri": "no://such"})),
        ("completion/complete", json!({"ref": 7})),
        ("tasks/get", json!({"taskId": "no"})),
    ];
    let malformed = [
        json!(null),
        json!(7),
        json!("a"),
        json!([1, 2]),
        json!({}),
        json!({"a": null}),
        json!({"a": "1"}),
        json!({"a": 1.5}),
        json!({"a": {"a": 1}}),
        json!({"b": 1}),
        json!({"a": i64::MIN}),
        json!({"a": u64::MAX}),
        json!({"\u{0}": [[[[[[]]]]]]}),
    ];
    for tool in ["add", "plain"] {
        bad.push(("tools/call", json!({"name": tool})));
        for arguments in &malformed {
            bad.push(("tools/call", json!({"name": tool, "arguments": arguments})));
        }
    }
    bad
}

#[tokio::test]
async fn every_bad_request_is_answered_byte_for_byte_as_by_the_bare_server() {
    for generation in GENERATIONS {
        let (mut bare, _) = Wire::open(server(), generation).await;
        let (mut wrapped, _) = Wire::open(wrapped(), generation).await;
        let mut errors = 0;
        // Twice: the second time there could be something kept.
        for (method, params) in bad_requests().into_iter().chain(bad_requests()) {
            let (expected, answer) = (bare.ask(method, &params).await, wrapped.ask(method, &params).await);
            assert_eq!(answer, expected, "{method} {params}, {generation:?}");
            errors += usize::from(expected.contains(r#""error":"#));
        }
        assert!(errors > 2 * 35, "most of them are errors: {errors}");
    }
}

#[tokio::test]
async fn lines_that_are_no_requests_are_answered_byte_for_byte_as_by_the_bare_server() {
    let (mut bare, _) = Wire::open(server(), Generation::Legacy).await;
    let (mut wrapped, _) = Wire::open(wrapped(), Generation::Legacy).await;
    for line in [
        "{",
        "[]",
        "7",
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":8,"result":{}}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"add","arguments":{"a":1}}}"#,
    ] {
        // A request behind each: the answers up to its own are compared.
        for wire in [&mut bare, &mut wrapped] {
            wire.send(line).await;
            wire.send_request("ping", &json!({})).await;
        }
        loop {
            let (expected, answer) = (bare.receive().await, wrapped.receive().await);
            assert_eq!(answer, expected, "{line}");
            if expected.contains(r#""result":{}"#) {
                break;
            }
        }
    }
}

#[tokio::test]
async fn bad_requests_over_http_are_answered_with_the_status_and_bytes_of_the_bare_server() {
    for mode in [Mode::StatelessJson, Mode::Sessions] {
        let (bare, wrapped) = (Http::start(server(), mode).await, Http::start(wrapped(), mode).await);
        let with_meta = |mut params: Value| {
            params["_meta"] = meta();
            params
        };
        let call = |params: Value| {
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string()
        };
        for (method, name, body) in [
            ("tools/call", "subtract", call(with_meta(json!({"name": "subtract", "arguments": {"a": 1}})))),
            ("tools/call", "add", call(with_meta(json!({"name": "add", "arguments": {"a": "one"}})))),
            ("tools/call", "add", call(with_meta(json!({"name": "add", "arguments": [1]})))),
            ("tools/call", "add", call(json!({"name": "add", "arguments": {"a": 1}}))),
            ("tools/call", "other", call(with_meta(json!({"name": "add", "arguments": {"a": 1}})))),
            ("tools/list", "add", call(with_meta(json!({"name": "add", "arguments": {"a": 1}})))),
            ("tools/call", "add", "{".to_owned()),
            ("tools/call", "add", "[]".to_owned()),
            ("tools/call", "add", String::new()),
        ] {
            let headers =
                [("mcp-protocol-version", "2026-07-28"), ("mcp-method", method), ("mcp-name", name)];
            let expected = post(&bare, &headers, &body).await;
            assert_eq!(post(&wrapped, &headers, &body).await, expected, "{body}");
        }
    }
}
