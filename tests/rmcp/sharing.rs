//! One run for everybody who asks for the same, and what is never shared.

use std::{sync::Arc, time::Duration};

use mcp_perf::{
    cache::Cache,
    clock::Clock,
    rmcp::{Answer, Performance, ToolPolicy},
    testing::MemoryStore,
};
use rmcp::{
    ErrorData,
    model::{CallToolResponse, CreateTaskResult, InputRequiredResult, Task, TaskStatus},
};
use serde_json::{Value, json};
use tokio::sync::Barrier;

use crate::fixture::{
    Call, Client, GENERATIONS, Gate, Generation, MINUTE, Pending, Reply, Response, SECOND, Scripted, failed,
    keeping, said, settle, text, until,
};

async fn joined<T: Clone + Send + Sync + 'static>(answers: &Cache<T>, callers: u64) {
    until("callers wait for the run", || answers.stats().joined == callers).await;
}

#[tokio::test]
async fn without_settings_every_call_runs_the_tool() {
    for generation in GENERATIONS {
        let server = Scripted::new().counting("count");
        let wrapped = Performance::builder(server.clone()).build().unwrap();
        let client = Client::of(wrapped, generation).await;
        for run in 1..=5 {
            assert_eq!(client.hear("count", json!({})).await, format!("run {run}"));
        }
        assert_eq!(server.runs("count"), 5);
    }
}

#[tokio::test]
async fn only_the_tool_that_was_named_is_kept() {
    let server = Scripted::new().counting("kept").counting("other");
    let client = Client::of(keeping(&server, "kept").build().unwrap(), Generation::Legacy).await;
    for _ in 0..3 {
        client.hear("kept", json!({})).await;
        client.hear("other", json!({})).await;
    }
    assert_eq!((server.runs("kept"), server.runs("other")), (1, 3));
}

#[tokio::test]
async fn calls_one_after_the_other_share_one_run_across_connections() {
    for generation in GENERATIONS {
        let server = Scripted::new().counting("count");
        let wrapped = keeping(&server, "count").build().unwrap();
        for _ in 0..3 {
            let client = Client::of(wrapped.clone(), generation).await;
            for _ in 0..3 {
                assert_eq!(client.hear("count", json!({"a": 1})).await, "run 1");
            }
        }
        assert_eq!(server.runs("count"), 1);
    }
}

#[tokio::test]
async fn fifty_callers_at_once_share_one_run() {
    fifty_callers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_callers_at_once_share_one_run_on_several_threads() {
    fifty_callers().await;
}

async fn fifty_callers() {
    for generation in GENERATIONS {
        let gate = Gate::new();
        let server = Scripted::new().gated("slow", &gate);
        let wrapped = keeping(&server, "slow").build().unwrap();
        let client = Arc::new(Client::of(wrapped.clone(), generation).await);
        let barrier = Arc::new(Barrier::new(50));
        let callers: Vec<_> = (0..50)
            .map(|_| {
                let (client, barrier) = (Arc::clone(&client), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    client.hear("slow", json!({})).await
                })
            })
            .collect();
        gate.reached().await;
        joined(wrapped.answers(), 49).await;
        assert_eq!(server.runs("slow"), 1);
        gate.open();
        for caller in callers {
            assert_eq!(caller.await.unwrap(), "run 1");
        }
        assert_eq!(server.runs("slow"), 1);
    }
}

/// Two callers wait for one run of `tool`, which is then let go. Their replies come back, and that of a third,
/// who asks afterwards.
async fn two_wait_and_one_comes_later(server: &Scripted, gate: &Gate) -> [Reply; 3] {
    let wrapped = keeping(server, "tool").build().unwrap();
    let one = Arc::new(Client::of(wrapped.clone(), Generation::Modern).await);
    let two = Arc::new(Client::of(wrapped.clone(), Generation::Modern).await);
    let first = Pending::call(&one, "tool", json!({}));
    gate.reached().await;
    let second = Pending::call(&two, "tool", json!({}));
    joined(wrapped.answers(), 1).await;
    // For the first, for the second if it runs on its own, for the one who comes later, and for whoever should
    // not run at all.
    (0..10).for_each(|_| gate.open());
    [first.reply().await, second.reply().await, one.call("tool", json!({})).await]
}

#[tokio::test]
async fn result_that_is_an_error_is_for_those_who_waited_and_not_kept() {
    let gate = Gate::new();
    let server = Scripted::new().sharing("tool", gate.clone(), async |gate: Gate, call: Call| {
        gate.pass().await;
        if call.run == 1 { failed("broken") } else { said("mended") }
    });
    let [first, second, third] = two_wait_and_one_comes_later(&server, &gate).await;
    assert_eq!(first.as_ref().unwrap()["isError"], json!(true));
    assert_eq!(second, first);
    assert_eq!(text(&third), "mended");
    assert_eq!(server.runs("tool"), 2);
}

#[tokio::test]
async fn protocol_error_is_for_those_who_waited_and_not_kept() {
    let gate = Gate::new();
    let server = Scripted::new().sharing("tool", gate.clone(), async |gate: Gate, call: Call| {
        gate.pass().await;
        if call.run > 1 {
            return said("mended");
        }
        Err(ErrorData::invalid_params("broken", Some(json!({"why": "rust"}))))
    });
    let [first, second, third] = two_wait_and_one_comes_later(&server, &gate).await;
    let expected = json!({"code": -32602, "message": "broken", "data": {"why": "rust"}});
    assert_eq!((first, second), (Err(expected.clone()), Err(expected)));
    assert_eq!(text(&third), "mended");
    assert_eq!(server.runs("tool"), 2);
}

#[tokio::test]
async fn panicking_tool_releases_everybody_with_an_error_and_the_next_call_runs() {
    let gate = Gate::new();
    let server = Scripted::new().sharing("tool", gate.clone(), async |gate: Gate, call: Call| {
        gate.pass().await;
        assert!(call.run > 1, "on purpose: the first run panics");
        said("mended")
    });
    let [first, second, third] = two_wait_and_one_comes_later(&server, &gate).await;
    let error = first.unwrap_err();
    assert_eq!(error["code"], json!(-32603), "{error}");
    assert_eq!(second.unwrap_err(), error);
    assert_eq!(text(&third), "mended");
    assert_eq!(server.runs("tool"), 2);
}

#[tokio::test]
async fn error_is_not_told_to_other_processes() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    for answer in [failed("broken"), Err(ErrorData::invalid_params("broken", None)), asks_for_input(1)] {
        let server = Scripted::new().sharing("tool", answer.clone(), async |answer: Response, _| answer);
        for runs in 1..=2 {
            let answers: Cache<Answer> =
                Cache::builder("answers").clock(clock.clone()).remote(store.clone()).build().await.unwrap();
            let wrapped = keeping(&server, "tool").answers(answers).build().unwrap();
            let _ = Client::of(wrapped, Generation::Modern).await.call("tool", json!({})).await;
            assert_eq!(server.runs("tool"), runs, "{answer:?}");
        }
    }
}

/// A personal answer, told apart by the run that made it.
fn asks_for_input(run: usize) -> Response {
    Ok(InputRequiredResult::from_request_state(format!("state {run}")).into())
}

fn makes_a_task(run: usize) -> Response {
    let task =
        Task::new(format!("task {run}"), TaskStatus::Working, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z");
    Ok(CallToolResponse::Task(CreateTaskResult::new(task)))
}

type Answers = fn(usize) -> Response;

async fn never_shared(answer: Answers, member: &str, expected: [&str; 3]) {
    let gate = Gate::new();
    let shared = (gate.clone(), answer);
    let server =
        Scripted::new().sharing("tool", shared, async |(gate, answer): (Gate, Answers), call: Call| {
            gate.pass().await;
            answer(call.run)
        });
    let replies = two_wait_and_one_comes_later(&server, &gate).await;
    let mut members = replies.map(|reply| reply.unwrap()[member].as_str().unwrap().to_owned());
    assert_eq!(members[0], expected[0], "who ran it has the answer");
    members[1..].sort_unstable();
    assert_eq!(members, expected, "and everybody else one of their own");
    assert_eq!(server.runs("tool"), 3);
}

#[tokio::test]
async fn question_to_one_caller_is_neither_kept_nor_shared_with_those_who_waited() {
    never_shared(asks_for_input, "requestState", ["state 1", "state 2", "state 3"]).await;
}

#[tokio::test]
async fn task_of_one_caller_is_neither_kept_nor_shared_with_those_who_waited() {
    never_shared(makes_a_task, "taskId", ["task 1", "task 2", "task 3"]).await;
}

#[tokio::test]
async fn call_that_answers_an_earlier_question_runs_on_its_own_and_is_not_kept() {
    let gate = Gate::new();
    let server = Scripted::new().gated("tool", &gate);
    let wrapped = keeping(&server, "tool").build().unwrap();
    let client = Arc::new(Client::of(wrapped.clone(), Generation::Modern).await);
    let plain = json!({"name": "tool", "arguments": {}});
    let retries: [Value; 2] = [
        json!({"name": "tool", "arguments": {}, "requestState": "state 1"}),
        json!({"name": "tool", "arguments": {}, "inputResponses": {"q": {"action": "accept"}}}),
    ];
    // While nothing is known: they do not leave their answer behind.
    for (index, retry) in retries.iter().enumerate() {
        gate.open();
        assert_eq!(text(&client.ask("tools/call", retry.clone()).await), format!("run {}", index + 1));
        gate.reached().await;
    }
    // While a plain call runs: they do not join it.
    let leader = Pending::call(&client, "tool", json!({}));
    gate.reached().await;
    for _ in &retries {
        gate.open();
    }
    let waiting: Vec<_> = {
        let handles = [
            client.start("tools/call", retries[0].clone()).await,
            client.start("tools/call", retries[1].clone()).await,
        ];
        handles
            .into_iter()
            .map(|handle| tokio::spawn(async { crate::fixture::reply(handle.await_response().await) }))
            .collect()
    };
    gate.reached().await;
    gate.reached().await;
    gate.open();
    let mut runs = vec![leader.text().await];
    for reply in waiting {
        runs.push(text(&reply.await.unwrap()));
    }
    runs.sort_unstable();
    assert_eq!(runs, ["run 3", "run 4", "run 5"]);
    assert_eq!(wrapped.answers().stats().joined, 0);
    // While an answer is kept: they do not get it.
    let kept = text(&client.ask("tools/call", plain.clone()).await);
    for (index, retry) in retries.iter().enumerate() {
        gate.open();
        assert_eq!(text(&client.ask("tools/call", retry.clone()).await), format!("run {}", index + 6));
    }
    assert_eq!(text(&client.ask("tools/call", plain).await), kept);
}

#[tokio::test(start_paused = true)]
async fn tool_that_never_ends_releases_everybody_after_the_load_timeout_and_the_next_call_runs() {
    let timeouts =
        [None, Some(Cache::builder("answers").load_timeout(SECOND).error_throttle(Duration::ZERO))];
    for answers in timeouts {
        let server = Scripted::new().tool("tool", async |call| {
            if call.run == 1 {
                std::future::pending::<()>().await;
            }
            said("mended")
        });
        let builder = keeping(&server, "tool");
        let builder =
            answers.into_iter().fold(builder, |builder, answers| builder.answers(answers.build().unwrap()));
        let client = Arc::new(Client::of(builder.build().unwrap(), Generation::Legacy).await);
        let (first, second) =
            (Pending::call(&client, "tool", json!({})), Pending::call(&client, "tool", json!({})));
        let error = first.reply().await.unwrap_err();
        assert_eq!(error["code"], json!(-32603), "{error}");
        assert_eq!(second.reply().await.unwrap_err(), error);
        assert_eq!(client.hear("tool", json!({})).await, "mended", "no error is kept");
    }
}

#[tokio::test]
async fn every_call_of_a_kept_tool_is_one_look_up_in_the_statistics() {
    let server = Scripted::new().counting("count");
    let wrapped = keeping(&server, "count").build().unwrap();
    let client = Client::of(wrapped.clone(), Generation::Legacy).await;
    for _ in 0..4 {
        client.hear("count", json!({})).await;
    }
    let stats = wrapped.answers().stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (3, 1, 1));
    assert_eq!(stats.hit_rate(), Some(0.75));
}

#[tokio::test]
async fn callers_of_different_tools_and_arguments_do_not_wait_for_each_other() {
    let gate = Gate::new();
    let server = Scripted::new().gated("slow", &gate).counting("quick");
    let policy = || ToolPolicy::public(MINUTE);
    let wrapped = Performance::builder(server)
        .cache_tool("slow", policy())
        .cache_tool("quick", policy())
        .build()
        .unwrap();
    let client = Arc::new(Client::of(wrapped, Generation::Legacy).await);
    let one = Pending::call(&client, "slow", json!({"a": 1}));
    gate.reached().await;
    let two = Pending::call(&client, "slow", json!({"a": 2}));
    gate.reached().await;
    assert_eq!(client.hear("quick", json!({})).await, "run 1");
    settle().await;
    gate.open();
    gate.open();
    let mut runs = [one.text().await, two.text().await];
    runs.sort_unstable();
    assert_eq!(runs, ["run 1", "run 2"]);
}
