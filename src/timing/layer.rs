//! Timing as a tower layer over HTTP.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Outcome, Series, Span, Timing};

/// Times every request until the head of its answer, in a series of the operation `http` by method.
///
/// An error of the service behind it and an answer of 500 and above count as failed. A body that streams is
/// not waited for.
///
/// ```
/// use mcp_perf::timing::{Timing, TimingLayer};
///
/// let timing = Timing::default();
/// let layer = TimingLayer::new(&timing);
/// # let _ = tower_layer::Layer::layer(&layer, ());
/// // later, on a page for operators
/// for series in timing.snapshot() {
///     println!("{} {}: p99 {:?}", series.operation, series.target, series.p99);
/// }
/// ```
#[derive(Clone, Debug)]
pub struct TimingLayer {
    methods: Methods,
}

/// One series for each method, resolved once.
#[derive(Clone, Debug)]
struct Methods {
    delete: Series,
    get: Series,
    post: Series,
    other: Series,
}

impl TimingLayer {
    /// Times requests into `timing`.
    #[must_use]
    pub fn new(timing: &Timing) -> Self {
        let series = |method| timing.series("http", method);
        let methods = Methods {
            delete: series("DELETE"),
            get: series("GET"),
            post: series("POST"),
            other: timing.other("http"),
        };
        Self { methods }
    }
}

impl<S> Layer<S> for TimingLayer {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Timed { inner, methods: self.methods.clone() }
    }
}

/// The service of [`TimingLayer`].
#[derive(Clone, Debug)]
pub struct Timed<S> {
    inner: S,
    methods: Methods,
}

impl<S, B, R> Service<Request<B>> for Timed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let series = match *request.method() {
            http::Method::POST => &self.methods.post,
            http::Method::GET => &self.methods.get,
            http::Method::DELETE => &self.methods.delete,
            _ => &self.methods.other,
        };
        let span = Some(series.start());
        ResponseFuture { future: self.inner.call(request), span }
    }
}

pin_project! {
    /// The answer of [`Timed`].
    #[derive(Debug)]
    pub struct ResponseFuture<T> {
        #[pin]
        future: T,
        span: Option<Span>,
    }
}

impl<T, R, E> Future for ResponseFuture<T>
where
    T: Future<Output = Result<Response<R>, E>>,
{
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.future.poll(context));
        if let Some(span) = this.span.take() {
            span.finish(match &result {
                Ok(response) if response.status() == http::StatusCode::TOO_MANY_REQUESTS => Outcome::Refused,
                Ok(response) if !response.status().is_server_error() => Outcome::Ok,
                Ok(_) | Err(_) => Outcome::Error,
            });
        }
        Poll::Ready(result)
    }
}
