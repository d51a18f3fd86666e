//! The layer over a service that does nothing, by the address of the peer, with header fields that say how the
//! caller stands.

use std::{
    convert::Infallible,
    future,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{body::Body, extract::ConnectInfo};
use http::{Request, Response, StatusCode, request::Parts};
use mcp_perf::limit::RateLimitLayer;
use tower::{Layer, Service, service_fn};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder};

use super::{Case, Ours};
use crate::{
    measure::{Rounds, time},
    ready::ready,
    report::Comparison,
};

pub(super) fn run() -> Result<()> {
    let line = |name| Comparison::nanoseconds(name, "tower_governor");
    layer(line("limit.layer_allow.tower_governor"), Case::Allow)?;
    layer(line("limit.layer_deny.tower_governor"), Case::Deny)
}

fn layer(line: Comparison<'_>, case: Case) -> Result<()> {
    let empty = |_request: Request<Body>| future::ready(Ok::<_, Infallible>(Response::new(Body::empty())));
    let ours = Ours::new(case, 1)?;
    let scope = ours.scope.clone();
    let mut ours = RateLimitLayer::new(ours.limiter.clone(), move |parts: &Parts| {
        parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| scope.on(&peer.0.ip()))
    })
    .layer(service_fn(empty));
    let (period, burst) = match case {
        Case::Allow => (Duration::from_nanos(20), 50_000_000),
        Case::Deny => (Duration::from_secs(3_600), 1),
    };
    let config = GovernorConfigBuilder::default().period(period).burst_size(burst).use_headers().finish();
    let mut governor = GovernorLayer::new(config.context("not a quota")?).layer(service_fn(empty));
    let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4_000);
    let wanted = match case {
        Case::Allow => StatusCode::OK,
        Case::Deny => StatusCode::TOO_MANY_REQUESTS,
    };
    // The first one takes what the small quota holds.
    call(&mut ours, 1, peer)?;
    call(&mut governor, 1, peer)?;
    line.run(Rounds::SHORT, &mut |count| answers(&mut ours, count, peer, wanted), &mut |count| {
        answers(&mut governor, count, peer, wanted)
    })
}

fn answers<S>(service: &mut S, count: u64, peer: SocketAddr, wanted: StatusCode) -> Result<Duration>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let mut last = Ok(wanted);
    let took = time(|| last = call(service, count, peer));
    ensure!(last? == wanted, "not the answer that was to be measured");
    Ok(took)
}

/// So many requests, and the status of the last one's answer.
fn call<S>(service: &mut S, count: u64, peer: SocketAddr) -> Result<StatusCode>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let mut status = StatusCode::OK;
    for _ in 0..count {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(ConnectInfo(peer));
        let Ok(response) = ready(service.call(request)).context("it waits")?;
        status = black_box(response).status();
    }
    Ok(status)
}
