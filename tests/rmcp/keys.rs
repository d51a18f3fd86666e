//! Which calls are the same, and for how long.

use mcp_perf::{
    cache::Cache,
    clock::Clock,
    rmcp::{Answer, Performance, ToolPolicy},
    testing::MemoryStore,
};
use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use crate::{
    fixture::{Call, Client, GENERATIONS, Generation, MINUTE, SECOND, Scripted, answers, keeping, said},
    wire::Wire,
};

/// How often the tool runs if these are called one after the other.
async fn runs_of(calls: &[&str]) -> usize {
    let server = Scripted::new().counting("tool");
    let wrapped = keeping(&server, "tool").build().unwrap();
    let (mut wire, _) = Wire::open(wrapped, Generation::Legacy).await;
    for (id, arguments) in calls.iter().enumerate() {
        // As text: a client's order of members and form of numbers reach the server.
        wire.send(&format!(
            r#"{{"jsonrpc":"2.0","id":{},"method":"tools/call","params":{{"name":"tool"{arguments}}}}}"#,
            id + 10,
        ))
        .await;
        let answer = wire.receive().await;
        assert!(answer.contains("run "), "{arguments}: {answer}");
    }
    server.runs("tool")
}

#[tokio::test]
async fn order_of_members_does_not_tell_calls_apart() {
    let calls = [
        r#","arguments":{"a":{"x":1,"y":[{"p":1,"q":2}]},"b":2}"#,
        r#","arguments":{"b":2,"a":{"y":[{"q":2,"p":1}],"x":1}}"#,
        r#", "arguments" : { "b" : 2, "a":{"y":[{"q":2,"p":1}],"x":1} }"#,
    ];
    assert_eq!(runs_of(&calls).await, 1);
}

#[tokio::test]
async fn metadata_of_the_request_does_not_tell_calls_apart() {
    let calls = [
        r#","arguments":{"a":1}"#,
        r#","arguments":{"a":1},"_meta":{"progressToken":1}"#,
        r#","arguments":{"a":1},"_meta":{"progressToken":2,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#,
    ];
    assert_eq!(runs_of(&calls).await, 1);
}

#[tokio::test]
async fn arguments_that_differ_in_anything_else_are_different_calls() {
    let calls = [
        "",
        r#","arguments":{}"#,
        r#","arguments":{"a":null}"#,
        r#","arguments":{"a":1}"#,
        r#","arguments":{"a":1.0}"#,
        r#","arguments":{"a":-1}"#,
        r#","arguments":{"a":"1"}"#,
        r#","arguments":{"a":true}"#,
        r#","arguments":{"a":[1]}"#,
        r#","arguments":{"a":[1,2]}"#,
        r#","arguments":{"a":[2,1]}"#,
        r#","arguments":{"a":[[1],2]}"#,
        r#","arguments":{"a":{}}"#,
        r#","arguments":{"a":{"b":1}}"#,
        r#","arguments":{"A":1}"#,
        r#","arguments":{"a":1,"b":null}"#,
        r#","arguments":{"a":18446744073709551615}"#,
        r#","arguments":{"a":18446744073709551614}"#,
        r#","arguments":{"a":"\u0000"}"#,
        r#","arguments":{"a":"\\u0000"}"#,
        r#","arguments":{"a":"é"}"#,
        r#","arguments":{"a":"e\u0301"}"#,
        r#","arguments":{"a\":1,\"b":1}"#,
    ];
    assert_eq!(runs_of(&calls).await, calls.len());
}

#[tokio::test]
async fn long_arguments_are_told_apart_by_every_byte_of_them() {
    for length in [100, 1_000, 10_000, 1_000_000] {
        let arguments = |last: &str| {
            let (a, b) = ("a".repeat(length), format!("{}{last}", "b".repeat(length)));
            [
                format!(r#","arguments":{{"a":"{a}","b":"{b}"}}"#),
                format!(r#","arguments":{{"b":"{b}","a":"{a}"}}"#),
            ]
        };
        let [[one, same_as_one], [two, same_as_two]] = [arguments("1"), arguments("2")];
        assert_eq!(runs_of(&[&one, &two, &same_as_one, &same_as_two]).await, 2, "{length}");
    }
}

#[tokio::test]
async fn tools_do_not_share() {
    let server = Scripted::new()
        .tool("one", async |_| said("one"))
        .tool("two", async |_| said("two"))
        .tool("", async |_| said("nameless"));
    let wrapped = Performance::builder(server)
        .cache_tool("one", ToolPolicy::public(MINUTE))
        .cache_tool("two", ToolPolicy::public(MINUTE))
        .cache_tool("", ToolPolicy::public(MINUTE))
        .build()
        .unwrap();
    let client = Client::of(wrapped, Generation::Legacy).await;
    for _ in 0..2 {
        for (tool, answer) in [("one", "one"), ("two", "two"), ("", "nameless")] {
            assert_eq!(client.hear(tool, json!({})).await, answer);
        }
    }
}

#[tokio::test]
async fn clients_of_different_generations_do_not_share() {
    let server = Scripted::new().counting("count");
    let wrapped = keeping(&server, "count").build().unwrap();
    for (index, generation) in GENERATIONS.into_iter().enumerate() {
        let client = Client::of(wrapped.clone(), generation).await;
        for _ in 0..2 {
            assert_eq!(client.hear("count", json!({})).await, format!("run {}", index + 1));
        }
        let reply = client.call("count", json!({})).await.unwrap();
        assert_eq!(reply.get("resultType").is_some(), generation == Generation::Modern, "{reply}");
    }
    assert_eq!(server.runs("count"), 2);
}

#[tokio::test]
async fn clients_of_different_generations_do_not_share_over_one_http_server() {
    use crate::fixture::{Http, Mode};
    for mode in [Mode::Sessions, Mode::StatelessJson, Mode::StatelessEvents] {
        let server = Scripted::new().counting("count");
        let http = Http::start(keeping(&server, "count").build().unwrap(), mode).await;
        for (index, generation) in GENERATIONS.into_iter().enumerate() {
            let client = Client::over_http(&http, generation, None).await;
            assert_eq!(client.hear("count", json!({})).await, format!("run {}", index + 1), "{mode:?}");
            assert_eq!(client.hear("count", json!({})).await, format!("run {}", index + 1), "{mode:?}");
        }
    }
}

#[tokio::test]
async fn two_servers_share_a_cache_only_for_tools_of_one_definition() {
    let shared = answers(&Clock::manual());
    let schema = |required: Value| json!({"type": "object", "properties": {"q": {}}, "required": required});
    let run = async |call: Call| said(format!("run {}", call.run));
    let old = Scripted::new().tool_with_schema("search", schema(json!([])), run);
    let same = Scripted::new().tool_with_schema("search", schema(json!([])), run);
    let new = Scripted::new().tool_with_schema("search", schema(json!(["q"])), run);
    for (server, runs) in [(&old, 1), (&same, 0), (&new, 1), (&old, 1)] {
        let wrapped = keeping(server, "search").answers(shared.clone()).build().unwrap();
        let client = Client::of(wrapped, Generation::Legacy).await;
        assert_eq!(client.hear("search", json!({"q": 1})).await, "run 1");
        assert_eq!(server.runs("search"), runs);
    }
}

#[tokio::test]
async fn answer_is_served_until_its_time_to_live_is_over_and_no_longer() {
    let clock = Clock::manual();
    let server = Scripted::new().counting("minute").counting("second");
    let wrapped = Performance::builder(server)
        .cache_tool("minute", ToolPolicy::public(MINUTE))
        .cache_tool("second", ToolPolicy::public(SECOND))
        .answers(answers(&clock))
        .build()
        .unwrap();
    let client = Client::of(wrapped, Generation::Legacy).await;
    let hear = async || (client.hear("minute", json!({})).await, client.hear("second", json!({})).await);
    let runs = |minute: u32, second: u32| (format!("run {minute}"), format!("run {second}"));
    let nanosecond = std::time::Duration::from_nanos(1);
    assert_eq!(hear().await, runs(1, 1));
    clock.advance(SECOND - nanosecond);
    assert_eq!(hear().await, runs(1, 1));
    clock.advance(nanosecond);
    assert_eq!(hear().await, runs(1, 2));
    clock.advance(MINUTE - SECOND - nanosecond);
    assert_eq!(hear().await, runs(1, 3));
    clock.advance(nanosecond);
    assert_eq!(hear().await, runs(2, 3), "a hit gained it no life");
}

#[tokio::test]
async fn time_to_live_of_the_given_cache_does_not_count() {
    let clock = Clock::manual();
    let short = Cache::builder("answers").clock(clock.clone()).time_to_live(SECOND).build().unwrap();
    let server = Scripted::new().counting("count");
    let client =
        Client::of(keeping(&server, "count").answers(short).build().unwrap(), Generation::Legacy).await;
    assert_eq!(client.hear("count", json!({})).await, "run 1");
    clock.advance(MINUTE / 2);
    assert_eq!(client.hear("count", json!({})).await, "run 1");
}

#[tokio::test]
async fn impossible_policies_are_refused_by_name() {
    let build = |tools: &[(&str, ToolPolicy)]| {
        let builder = Performance::builder(Scripted::new().counting("tool"));
        let builder =
            tools.iter().fold(builder, |builder, (tool, policy)| builder.cache_tool(*tool, policy.clone()));
        builder.build().map(|_| ()).map_err(|error| error.to_string())
    };
    let too_long = mcp_perf::cache::MAX_TIME_TO_LIVE + std::time::Duration::from_nanos(1);
    for policy in [ToolPolicy::public(std::time::Duration::ZERO), ToolPolicy::public(too_long)] {
        let error = build(&[("tool", policy)]).unwrap_err();
        assert!(error.contains("tool") && error.contains("time_to_live"), "{error}");
    }
    let error =
        build(&[("tool", ToolPolicy::public(SECOND)), ("tool", ToolPolicy::public(MINUTE))]).unwrap_err();
    assert!(error.contains("tool") && error.contains("twice"), "{error}");
    assert_eq!(build(&[("tool", ToolPolicy::public(mcp_perf::cache::MAX_TIME_TO_LIVE))]), Ok(()));
}

/// A process that shares the store with the others.
async fn node(server: &Scripted, clock: &Clock, store: &MemoryStore) -> Performance<Scripted> {
    let answers: Cache<Answer> =
        Cache::builder("answers").clock(clock.clone()).remote(store.clone()).build().await.unwrap();
    keeping(server, "tool").answers(answers).build().unwrap()
}

/// What a client of each generation is told by a process that ran the tool, and by one that did not.
async fn here_and_there(result: Value) -> Vec<(String, String)> {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let result: CallToolResult = serde_json::from_value(result).unwrap();
    let server = || {
        Scripted::new().sharing("tool", result.clone(), async |result: CallToolResult, _| Ok(result.into()))
    };
    let (one, two) = (server(), server());
    let mut told = Vec::new();
    for generation in GENERATIONS {
        let call = json!({"name": "tool", "arguments": {}});
        let (mut here, _) = Wire::open(node(&one, &clock, &store).await, generation).await;
        let (mut there, _) = Wire::open(node(&two, &clock, &store).await, generation).await;
        told.push((here.ask("tools/call", &call).await, there.ask("tools/call", &call).await));
    }
    assert_eq!((one.runs("tool"), two.runs("tool")), (2, 0), "it came from the other process");
    told
}

#[tokio::test]
async fn answer_from_another_process_is_the_answer_of_the_tool_byte_for_byte() {
    let everything = json!({
        "resultType": "complete",
        "content": [
            {"type": "text", "text": "a\u{0}\u{1F600}", "annotations": {"audience": ["user"], "priority": 0.3}},
            {"type": "image", "data": "AAEC", "mimeType": "image/png", "_meta": {"a": 1}},
            {"type": "audio", "data": "AAEC", "mimeType": "audio/wav"},
            {"type": "resource_link", "uri": "r://1", "name": "one", "size": 7},
            {"type": "resource", "resource": {"uri": "r://2", "text": "two", "_meta": {"b": null}}},
            {"type": "resource", "resource": {"uri": "r://3", "blob": "AAEC"}},
        ],
        "structuredContent": {"big": u64::MAX, "small": i64::MIN, "null": null, "nested": {"": [[], {}, 2.0]}},
        "isError": false,
        "_meta": {"house/key": {"x": [1, 2.0]}},
    });
    let little = [json!({"content": []}), json!({"content": [], "structuredContent": null})];
    for result in little.into_iter().chain([everything]) {
        for (here, there) in here_and_there(result).await {
            assert_eq!(there, here);
        }
    }
}

#[tokio::test]
async fn number_from_another_process_is_the_number_of_the_tool_to_the_last_bit() {
    let mut random = fastrand::Rng::with_seed(7);
    let numbers: Vec<f64> = std::iter::repeat_with(|| random.f64()).take(1_000).collect();
    for (here, there) in here_and_there(json!({"content": [], "structuredContent": numbers})).await {
        let numbers = |line: &str| -> Vec<String> {
            let (_, list) = line.split_once('[').unwrap().1.split_once('[').expect("the list");
            list.split(']').next().unwrap().split(',').map(str::to_owned).collect()
        };
        let (here, there) = (numbers(&here), numbers(&there));
        assert_eq!(here.len(), 1_000);
        let changed: Vec<_> = here.iter().zip(&there).filter(|(here, there)| here != there).collect();
        assert!(
            changed.is_empty(),
            "{} of 1,000, such as {:?}",
            changed.len(),
            &changed[..3.min(changed.len())]
        );
    }
}
