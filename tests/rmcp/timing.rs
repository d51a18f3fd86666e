//! Every request is timed under its method, and tool calls by tool.

use std::{collections::BTreeMap, time::Duration};

use mcp_perf::{
    clock::Clock,
    rmcp::{Performance, ToolPolicy},
    timing::{Measured, Timing},
};
use rmcp::{ErrorData, ServerHandler};
use serde_json::json;

use crate::fixture::{
    Call, Client, GENERATIONS, Gate, Generation, MINUTE, Scripted, context, failed, params, said,
};

/// Ended well, failed, refused, left: of the series that have any.
fn counts(timing: &Timing) -> BTreeMap<(String, String), [u64; 4]> {
    let counted = |Measured { operation, target, ok, error, refused, cancelled, .. }| {
        ((operation, target), [ok, error, refused, cancelled])
    };
    timing
        .snapshot()
        .into_iter()
        .map(counted)
        .filter(|(_, counts)| counts.iter().any(|count| *count > 0))
        .collect()
}

fn of(timing: &Timing, tool: &str) -> [u64; 4] {
    counts(timing).get(&("tools/call".to_owned(), tool.to_owned())).copied().unwrap_or_default()
}

#[tokio::test]
async fn every_kind_of_request_is_counted_under_its_method() {
    let timing = Timing::default();
    for generation in GENERATIONS {
        let server = Scripted::new().counting("count");
        let wrapped = Performance::builder(server).timing(timing.clone()).build().unwrap();
        let client = Client::of(wrapped, generation).await;
        let is_legacy = generation == Generation::Legacy;
        let complete =
            json!({"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": "b"}});
        let requests = [
            (true, "completion/complete", complete),
            (true, "prompts/get", json!({"name": "p"})),
            (true, "prompts/list", json!({})),
            (true, "resources/list", json!({})),
            (true, "resources/read", json!({"uri": "r://1"})),
            (true, "resources/templates/list", json!({})),
            (true, "tasks/cancel", json!({"taskId": "1"})),
            (true, "tasks/get", json!({"taskId": "1"})),
            (true, "tasks/update", json!({"taskId": "1", "inputResponses": {}})),
            (true, "tools/call", json!({"name": "count"})),
            (true, "tools/list", json!({})),
            (true, "house/custom", json!({})),
            (is_legacy, "logging/setLevel", json!({"level": "debug"})),
            (is_legacy, "ping", json!({})),
            (is_legacy, "resources/subscribe", json!({"uri": "r://1"})),
            (is_legacy, "resources/unsubscribe", json!({"uri": "r://1"})),
        ];
        for (_, method, params) in requests.into_iter().filter(|(is_theirs, ..)| *is_theirs) {
            let _ = client.ask(method, params).await;
        }
    }
    let expected = [
        ("completion/complete", "", [2, 0]),
        ("custom", "", [0, 2]),
        ("initialize", "", [1, 0]),
        ("logging/setLevel", "", [0, 1]),
        ("ping", "", [1, 0]),
        ("prompts/get", "", [0, 2]),
        ("prompts/list", "", [2, 0]),
        ("resources/list", "", [2, 0]),
        ("resources/read", "", [0, 2]),
        ("resources/subscribe", "", [0, 1]),
        ("resources/templates/list", "", [2, 0]),
        ("resources/unsubscribe", "", [0, 1]),
        ("server/discover", "", [1, 0]),
        ("tasks/cancel", "", [0, 2]),
        ("tasks/get", "", [0, 2]),
        ("tasks/update", "", [0, 2]),
        ("tools/call", "count", [2, 0]),
        ("tools/list", "", [2, 0]),
    ];
    let expected: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(method, tool, [ok, error])| ((method.to_owned(), tool.to_owned()), [ok, error, 0, 0]))
        .collect();
    assert_eq!(counts(&timing), expected);
}

#[tokio::test]
async fn names_that_callers_make_up_get_no_series() {
    let server = Scripted::new().counting("count");
    let wrapped = Performance::builder(server).build().unwrap();
    let client = Client::of(wrapped.clone(), Generation::Legacy).await;
    for name in 0..1_000 {
        client.call(&format!("made up {name}"), json!({})).await.unwrap_err();
    }
    client.hear("count", json!({})).await;
    let series: Vec<String> = wrapped
        .timing()
        .snapshot()
        .into_iter()
        .map(|series| format!("{} {}", series.operation, series.target))
        .collect();
    assert_eq!(series, ["initialize ", "tools/call _other", "tools/call count"]);
    assert_eq!(of(wrapped.timing(), "_other"), [0, 1_000, 0, 0]);
    assert_eq!(of(wrapped.timing(), "count"), [1, 0, 0, 0]);
}

#[tokio::test]
async fn tool_errors_and_protocol_errors_count_as_errors_kept_or_not() {
    let server = || {
        Scripted::new().tool("tool", async |call: Call| match call.text("how") {
            Some("result") => failed("broken"),
            Some("protocol") => Err(ErrorData::internal_error("broken", None)),
            _ => said("fine"),
        })
    };
    let kept = Performance::builder(server()).cache_tool("tool", ToolPolicy::public(MINUTE)).build().unwrap();
    for wrapped in [Performance::builder(server()).build().unwrap(), kept] {
        let client = Client::of(wrapped.clone(), Generation::Legacy).await;
        for how in ["well", "result", "protocol", "well"] {
            let _ = client.call("tool", json!({"how": how})).await;
        }
        assert_eq!(of(wrapped.timing(), "tool"), [2, 2, 0, 0]);
    }
}

#[tokio::test]
async fn tool_that_the_settings_name_has_a_series_before_it_ever_went_well() {
    let server =
        Scripted::new().tool("kept", async |_| failed("broken")).tool("writes", async |_| failed("broken"));
    let wrapped = Performance::builder(server)
        .cache_tool("kept", ToolPolicy::public(MINUTE))
        .invalidate_after("writes", |_| Vec::new())
        .build()
        .unwrap();
    let client = Client::of(wrapped.clone(), Generation::Legacy).await;
    for tool in ["kept", "writes"] {
        client.call(tool, json!({})).await.unwrap();
        assert_eq!(of(wrapped.timing(), tool), [0, 1, 0, 0]);
    }
}

#[tokio::test]
async fn call_that_nobody_waited_for_counts_as_cancelled() {
    let gate = Gate::new();
    let wrapped = Performance::builder(Scripted::new().gated("slow", &gate))
        .invalidate_after("slow", |_| Vec::new())
        .build()
        .unwrap();
    let call = {
        let wrapped = wrapped.clone();
        tokio::spawn(async move {
            let _ = wrapped.call_tool(params("slow", json!({})), context(Generation::Legacy)).await;
        })
    };
    gate.reached().await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(of(wrapped.timing(), "slow"), [0, 0, 0, 1]);
}

#[tokio::test]
async fn time_of_a_call_is_what_passed_while_it_ran() {
    let clock = Clock::manual();
    let moved = clock.clone();
    let server = Scripted::new().sharing("slow", moved, async |clock: Clock, call: Call| {
        let milliseconds = call.request.arguments.unwrap()["ms"].as_u64().unwrap();
        clock.advance(Duration::from_millis(milliseconds));
        said("done")
    });
    let wrapped = Performance::builder(server).timing(Timing::new(clock, 64)).build().unwrap();
    let client = Client::of(wrapped.clone(), Generation::Legacy).await;
    for milliseconds in [10, 20, 30] {
        client.hear("slow", json!({"ms": milliseconds})).await;
    }
    let all = wrapped.timing().snapshot();
    let slow = all.iter().find(|series| series.target == "slow").unwrap();
    assert_eq!((slow.ok, slow.mean), (3, Duration::from_millis(20)));
}
