//! Over the limit: who is, what they are told, and what is never limited.

use mcp_perf::{
    ErrorKind,
    clock::Clock,
    limit::{Limiter, Quota},
    rmcp::{Performance, ToolPolicy},
};
use serde_json::{Value, json};

use crate::{
    fixture::{Client, GENERATIONS, Generation, Http, MINUTE, Mode, SECOND, Scripted, keeping, until},
    wire::Wire,
};

/// One call a second for everybody.
fn one_a_second(clock: &Clock) -> Limiter {
    Limiter::builder().policy("everybody", Quota::per_second(1)).clock(clock.clone()).build().unwrap()
}

fn limited(server: &Scripted, limiter: &Limiter) -> Performance<Scripted> {
    let everybody = limiter.scope("everybody").unwrap();
    Performance::builder(server.clone())
        .limit(limiter.clone(), move |_| vec![everybody.on(&())])
        .build()
        .unwrap()
}

/// A limiter that has nothing left for an hour.
fn used_up() -> Limiter {
    let limiter =
        Limiter::builder().policy("everybody", Quota::per_hour(1)).clock(Clock::manual()).build().unwrap();
    let everybody = limiter.scope("everybody").unwrap();
    assert!(limiter.check(&[everybody.on(&())], 1).is_allowed());
    limiter
}

#[tokio::test]
async fn call_over_the_limit_is_told_when_to_come_back_and_never_reaches_the_handler() {
    for generation in GENERATIONS {
        let clock = Clock::manual();
        let limiter = one_a_second(&clock);
        let server = Scripted::new().counting("count");
        let wrapped = limited(&server, &limiter);
        let client = Client::of(wrapped.clone(), generation).await;
        assert_eq!(client.hear("count", json!({})).await, "run 1");
        clock.advance(SECOND / 4);
        let refused = client.call("count", json!({})).await.unwrap_err();
        let data = json!({"policy": "everybody", "limit": 1, "remaining": 0, "retryAfterMs": 750});
        assert_eq!(refused, json!({"code": 429, "message": "rate limit exceeded", "data": data}));
        assert_eq!(server.runs("count"), 1);
        clock.advance(3 * SECOND / 4);
        assert_eq!(client.hear("count", json!({})).await, "run 2", "as it was told");
        let all = wrapped.timing().snapshot();
        let calls = all.iter().find(|series| series.target == "count").unwrap();
        assert_eq!((calls.ok, calls.error, calls.refused), (2, 0, 1));
        assert_eq!((limiter.stats().allowed, limiter.stats().denied), (2, 1));
    }
}

#[tokio::test]
async fn refusal_reaches_the_client_over_http() {
    for mode in [Mode::Sessions, Mode::StatelessJson, Mode::StatelessEvents] {
        for generation in GENERATIONS {
            let http = Http::start(limited(&Scripted::new().counting("count"), &used_up()), mode).await;
            let client = Client::over_http(&http, generation, None).await;
            let refused = client.call("count", json!({})).await.unwrap_err();
            assert_eq!(refused["code"], json!(429), "{mode:?}");
            assert_eq!(refused["data"]["retryAfterMs"], json!(3_600_000), "{mode:?}");
        }
    }
}

#[tokio::test]
async fn nothing_but_tool_calls_is_limited() {
    for generation in GENERATIONS {
        let server = Scripted::new().counting("count");
        let bare = Client::of(server.clone(), generation).await;
        bare.call("count", json!({})).await.unwrap();
        // Connecting is a handshake, or a discovery, with nothing left of the quota.
        let client = Client::of(limited(&server, &used_up()), generation).await;
        assert!(client.call("count", json!({})).await.is_err());
        for (method, params) in [
            ("ping", json!({})),
            ("tools/list", json!({})),
            ("prompts/list", json!({})),
            ("resources/list", json!({})),
            ("resources/templates/list", json!({})),
            (
                "completion/complete",
                json!({"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": "b"}}),
            ),
            ("logging/setLevel", json!({"level": "debug"})),
            ("tasks/get", json!({"taskId": "1"})),
            ("tasks/cancel", json!({"taskId": "1"})),
            ("house/custom", json!({})),
        ] {
            let (expected, answer) =
                (bare.ask(method, params.clone()).await, client.ask(method, params.clone()).await);
            assert_eq!(answer, expected, "{method}, {generation:?}");
        }
    }
}

#[tokio::test]
async fn notifications_are_not_limited() {
    use rmcp::{RoleServer, ServerHandler, model::CancelledNotificationParam, service::NotificationContext};
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[derive(Clone, Default)]
    struct Told(Arc<AtomicUsize>);
    impl ServerHandler for Told {
        async fn on_cancelled(&self, _: CancelledNotificationParam, _: NotificationContext<RoleServer>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let (told, limiter) = (Told::default(), used_up());
    let everybody = limiter.scope("everybody").unwrap();
    let wrapped =
        Performance::builder(told.clone()).limit(limiter, move |_| vec![everybody.on(&())]).build().unwrap();
    let (mut wire, _) = Wire::open(wrapped, Generation::Legacy).await;
    for id in 0..5 {
        wire.tell("notifications/cancelled", &json!({"requestId": id})).await;
    }
    until("the handler hears of all", || told.0.load(Ordering::SeqCst) == 5).await;
}

#[tokio::test]
async fn call_is_charged_to_what_the_closure_makes_of_it() {
    let clock = Clock::manual();
    let limiter = Limiter::builder()
        .policy("tool", Quota::per_hour(2))
        .policy("caller", Quota::per_hour(1))
        .clock(clock)
        .build()
        .unwrap();
    let (tool, caller) = (limiter.scope("tool").unwrap(), limiter.scope("caller").unwrap());
    let server = Scripted::new().counting("one").counting("two").counting("free");
    let wrapped = Performance::builder(server)
        .limit(limiter, move |call| match call.name {
            "free" => Vec::new(),
            name => {
                let who = call.arguments.and_then(|arguments| arguments.get("who")).and_then(Value::as_str);
                let info = call.context.client_info().map(|info| info.name);
                assert_eq!(info.as_deref(), Some("client"), "the context is the request's");
                let mut subjects = vec![tool.on(name)];
                subjects.extend(who.map(|who| caller.on(who)));
                subjects
            }
        })
        .build()
        .unwrap();
    let client = Client::of(wrapped, Generation::Legacy).await;
    let denied = async |tool: &str, arguments: Value| {
        let reply = client.call(tool, arguments).await;
        reply.err().map(|error| error["data"]["policy"].as_str().unwrap().to_owned())
    };
    assert_eq!(denied("one", json!({"who": "alice"})).await, None);
    assert_eq!(denied("one", json!({"who": "alice"})).await.as_deref(), Some("caller"));
    assert_eq!(denied("one", json!({"who": "bob"})).await, None, "a refusal took nothing from the tool's");
    assert_eq!(denied("one", json!({})).await.as_deref(), Some("tool"));
    assert_eq!(denied("two", json!({})).await, None);
    for _ in 0..10 {
        assert_eq!(denied("free", json!({})).await, None);
    }
}

#[tokio::test]
async fn answer_from_the_cache_is_charged_as_any_other() {
    let limiter =
        Limiter::builder().policy("everybody", Quota::per_hour(2)).clock(Clock::manual()).build().unwrap();
    let everybody = limiter.scope("everybody").unwrap();
    let server = Scripted::new().counting("count");
    let wrapped = keeping(&server, "count").limit(limiter, move |_| vec![everybody.on(&())]).build().unwrap();
    let client = Client::of(wrapped, Generation::Legacy).await;
    for _ in 0..2 {
        assert_eq!(client.hear("count", json!({})).await, "run 1");
    }
    assert_eq!(client.call("count", json!({})).await.unwrap_err()["code"], json!(429));
}

#[tokio::test]
async fn refusal_is_kept_by_nobody() {
    let clock = Clock::manual();
    let limiter = one_a_second(&clock);
    let everybody = limiter.scope("everybody").unwrap();
    let server = Scripted::new().counting("count");
    let wrapped = Performance::builder(server)
        .cache_tool("count", ToolPolicy::public(MINUTE))
        .limit(limiter.clone(), move |_| vec![everybody.on(&())])
        .build()
        .unwrap();
    let everybody = limiter.scope("everybody").unwrap();
    assert!(limiter.check(&[everybody.on(&())], 1).is_allowed());
    let client = Client::of(wrapped, Generation::Legacy).await;
    assert!(client.call("count", json!({})).await.is_err());
    clock.advance(SECOND);
    assert_eq!(client.hear("count", json!({})).await, "run 1");
}

#[tokio::test]
async fn subject_of_another_limiter_is_refused_and_told_no_time() {
    let (limiter, other) = (
        used_up(),
        Limiter::builder()
            .policy("a", Quota::per_second(1))
            .policy("b", Quota::per_second(1))
            .build()
            .unwrap(),
    );
    let foreign = other.scope("b").unwrap();
    let wrapped = Performance::builder(Scripted::new().counting("count"))
        .limit(limiter, move |_| vec![foreign.on(&())])
        .build()
        .unwrap();
    let refused = Client::of(wrapped, Generation::Legacy).await.call("count", json!({})).await.unwrap_err();
    assert_eq!(refused["data"], json!({"policy": "", "limit": 0, "remaining": 0, "retryAfterMs": null}));
}

#[tokio::test]
async fn code_of_a_refusal_is_what_was_set() {
    for code in [-32_769, -31_999, 0, 7, i32::MIN, i32::MAX] {
        let limiter = used_up();
        let everybody = limiter.scope("everybody").unwrap();
        let wrapped = Performance::builder(Scripted::new().counting("count"))
            .limit(limiter, move |_| vec![everybody.on(&())])
            .limit_code(code)
            .build()
            .unwrap();
        let client = Client::of(wrapped, Generation::Legacy).await;
        assert_eq!(client.call("count", json!({})).await.unwrap_err()["code"], json!(code));
    }
}

#[test]
fn code_that_the_protocol_reserves_is_refused_by_name() {
    for code in [-32_768, -32_700, -32_603, -32_029, -32_000] {
        let error = Performance::builder(Scripted::new()).limit_code(code).build().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(
            error.to_string().contains("limit_code") && error.to_string().contains(&code.to_string()),
            "{error}"
        );
    }
}
