// cargo run --example axum_layers
//
//! Timing and a rate limit around an axum server, without MCP: twenty requests of one client, of which it may
//! make five.

use axum::{Router, body::Body, http::Request, routing::get};
use mcp_perf::{
    limit::{Limiter, Quota, RateLimitLayer},
    timing::{Timing, TimingLayer},
};
use tower::{ServiceBuilder, ServiceExt};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "it is what the example is for")]
async fn main() -> anyhow::Result<()> {
    let timing = Timing::default();
    let limiter = Limiter::builder().policy("client", Quota::per_minute(60).burst(5)).build()?;
    let client = limiter.scope("client")?;

    let app = Router::new().route("/", get(async || "hello")).layer(
        ServiceBuilder::new()
            // Outermost, so that refusals are timed too.
            .layer(TimingLayer::new(&timing))
            .layer(RateLimitLayer::new(limiter.clone(), move |request: &axum::http::request::Parts| {
                // The proxy's header, never one that the client can write; all without it share one quota.
                [client.on(&request.headers.get("x-real-ip"))]
            })),
    );

    for _ in 0..20 {
        let request = Request::get("/").header("x-real-ip", "192.0.2.1").body(Body::empty())?;
        let response = app.clone().oneshot(request).await?;
        println!("{} {:?}", response.status(), response.headers().get("ratelimit"));
    }

    let stats = limiter.stats();
    assert_eq!((stats.allowed, stats.denied), (5, 15));
    for series in timing.snapshot().iter().filter(|series| series.ok > 0) {
        println!(
            "{} {}: {} answered, {} refused, p99 {:?}",
            series.operation, series.target, series.ok, series.refused, series.p99
        );
    }
    Ok(())
}
