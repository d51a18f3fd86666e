//! The tower layers in axum, as a user would put them there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, request::Parts},
    routing::{get, post},
};
use mcp_perf::{
    clock::Clock,
    limit::{Limiter, Quota, RateLimitLayer},
    timing::{Timing, TimingLayer},
};
use tower::ServiceExt;

fn request(method: &str, path: &str, caller: Option<&str>) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path);
    caller
        .into_iter()
        .fold(builder, |builder, caller| builder.header("x-caller", caller))
        .body(Body::empty())
        .unwrap()
}

async fn answer(router: &Router, request: Request<Body>) -> (StatusCode, HeaderMap) {
    let response = router.clone().oneshot(request).await.unwrap();
    (response.status(), response.headers().clone())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn over_the_limit_is_429_with_the_fields_of_the_draft_and_the_handler_does_not_run() {
    let clock = Clock::manual();
    let limiter = Limiter::builder()
        .policy("caller", Quota::per_second(1).burst(2))
        .clock(clock.clone())
        .build()
        .unwrap();
    let scope = limiter.scope("caller").unwrap();
    let subjects = move |request: &Parts| request.headers.get("x-caller").map(|caller| scope.on(caller));
    let router =
        Router::new().route("/", get(async || "hello")).layer(RateLimitLayer::new(limiter.clone(), subjects));

    let (status, headers) = answer(&router, request("GET", "/", Some("alice"))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(text(&headers, "ratelimit-policy"), Some("\"caller\";q=2;w=2"));
    assert_eq!(text(&headers, "ratelimit"), Some("\"caller\";r=1;t=1"));
    answer(&router, request("GET", "/", Some("alice"))).await;
    let (status, headers) = answer(&router, request("GET", "/", Some("alice"))).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(text(&headers, "retry-after"), Some("1"));
    assert_eq!(text(&headers, "ratelimit"), Some("\"caller\";r=0;t=1"));

    // Another caller, and one that nobody is charged for.
    assert_eq!(answer(&router, request("GET", "/", Some("bob"))).await.0, StatusCode::OK);
    let (status, headers) = answer(&router, request("GET", "/", None)).await;
    assert_eq!((status, text(&headers, "ratelimit")), (StatusCode::OK, None));

    // Whoever waits for as long as it says is let through.
    clock.advance(Duration::from_secs(1));
    assert_eq!(answer(&router, request("GET", "/", Some("alice"))).await.0, StatusCode::OK);
    assert_eq!(limiter.stats().denied, 1);
}

#[tokio::test]
async fn several_subjects_of_a_request_are_charged_together_or_not_at_all() {
    let limiter = Limiter::builder()
        .policy("caller", Quota::per_hour(10))
        .policy("everybody", Quota::per_hour(1))
        .build()
        .unwrap();
    let (caller, everybody) = (limiter.scope("caller").unwrap(), limiter.scope("everybody").unwrap());
    let subjects = {
        let caller = caller.clone();
        move |_: &Parts| [caller.on("alice"), everybody.on(&())]
    };
    let router =
        Router::new().route("/", get(async || ())).layer(RateLimitLayer::new(limiter.clone(), subjects));
    assert_eq!(answer(&router, request("GET", "/", None)).await.0, StatusCode::OK);
    assert_eq!(answer(&router, request("GET", "/", None)).await.0, StatusCode::TOO_MANY_REQUESTS);
    let mcp_perf::limit::Decision::Allow(left) = limiter.peek(&[caller.on("alice")], 0) else { panic!() };
    assert_eq!(left.remaining(), 9);
}

#[tokio::test]
async fn requests_are_timed_by_method_and_counted_by_how_they_ended() {
    let timing = Timing::default();
    let router = Router::new()
        .route("/ok", get(async || ()).post(async || ()))
        .route("/broken", post(async || StatusCode::BAD_GATEWAY))
        .route("/limited", get(async || StatusCode::TOO_MANY_REQUESTS))
        .layer(TimingLayer::new(&timing));
    for (method, path) in
        [("GET", "/ok"), ("POST", "/ok"), ("POST", "/broken"), ("GET", "/limited"), ("PUT", "/ok")]
    {
        answer(&router, request(method, path, None)).await;
    }
    let counts = |method: &str| {
        let all = timing.snapshot();
        let series = all.iter().find(|series| series.operation == "http" && series.target == method).unwrap();
        (series.ok, series.error, series.refused)
    };
    assert_eq!(counts("GET"), (1, 0, 1));
    assert_eq!(counts("POST"), (1, 1, 0));
    assert_eq!(counts("_other"), (1, 0, 0));
}

#[tokio::test]
async fn request_that_is_dropped_counts_as_cancelled() {
    let timing = Timing::default();
    let router = Router::new().route("/", get(std::future::pending::<()>)).layer(TimingLayer::new(&timing));
    let call = tokio::spawn(router.oneshot(request("GET", "/", None)));
    tokio::task::yield_now().await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let all = timing.snapshot();
    assert_eq!(all.iter().find(|series| series.target == "GET").unwrap().cancelled, 1);
}

#[tokio::test]
async fn refusal_of_an_inner_layer_is_not_overwritten_by_an_outer_one() {
    let layer = |name: &str, quota: Quota| {
        let limiter = Limiter::builder().policy(name, quota).clock(Clock::manual()).build().unwrap();
        let scope = limiter.scope(name).unwrap();
        RateLimitLayer::new(limiter, move |_: &Parts| Some(scope.on(&())))
    };
    let router = Router::new()
        .route("/", get(async || ()))
        .layer(layer("narrow", Quota::per_minute(1)))
        .layer(layer("wide", Quota::per_second(100)));
    answer(&router, request("GET", "/", None)).await;
    let (status, headers) = answer(&router, request("GET", "/", None)).await;
    assert_eq!((status, text(&headers, "retry-after")), (StatusCode::TOO_MANY_REQUESTS, Some("60")));
    let all: Vec<_> = headers.get_all("ratelimit").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(all, ["\"narrow\";r=0;t=60", "\"wide\";r=98;t=1"]);
}
