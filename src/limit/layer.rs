//! Rate limits as a tower layer over HTTP.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode, request::Parts};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Decision, Limiter, Subject};

/// Answers `429 Too Many Requests` to requests over the limit, before anything behind it runs.
///
/// `subjects` says whom a request is charged to; all of them are charged or none. A request it names no
/// subject for passes unlimited, so let it fall back to something shared rather than to nothing.
///
/// Answers carry `RateLimit` and `RateLimit-Policy`, refusals also `Retry-After`. The decision is made when
/// the request comes, not in `poll_ready`, so an idle connection holds nothing and every clone counts.
///
/// Put it **inside** what authenticates, if it is to limit by account, and **outside** what is dear.
///
/// ```
/// use mcp_perf::limit::{Limiter, Quota, RateLimitLayer};
///
/// let limiter = Limiter::builder().policy("address", Quota::per_second(50)).build()?;
/// let address = limiter.scope("address")?;
/// let layer = RateLimitLayer::new(limiter, move |request: &http::request::Parts| {
///     // Behind a proxy of your own, whose header it is; never one that the client can write.
///     request.headers.get("x-real-ip").map(|ip| address.on(ip))
/// });
/// # let _ = tower_layer::Layer::layer(&layer, ());
/// # Ok::<(), mcp_perf::Error>(())
/// ```
#[derive(Clone)]
pub struct RateLimitLayer<F> {
    limiter: Limiter,
    subjects: F,
}

impl<F, I> RateLimitLayer<F>
where
    F: Fn(&Parts) -> I,
    I: IntoIterator<Item = Subject>,
{
    /// Limits every request by the subjects that `subjects` names for it, at a cost of 1.
    #[must_use]
    pub fn new(limiter: Limiter, subjects: F) -> Self {
        Self { limiter, subjects }
    }
}

impl<S, F: Clone> Layer<S> for RateLimitLayer<F> {
    type Service = RateLimit<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, limiter: self.limiter.clone(), subjects: self.subjects.clone() }
    }
}

impl<F> fmt::Debug for RateLimitLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateLimitLayer").field(&self.limiter).finish()
    }
}

/// The service of [`RateLimitLayer`].
#[derive(Clone)]
pub struct RateLimit<S, F> {
    inner: S,
    limiter: Limiter,
    subjects: F,
}

impl<S, F, I, B, R> Service<Request<B>> for RateLimit<S, F>
where
    S: Service<Request<B>, Response = Response<R>>,
    F: Fn(&Parts) -> I,
    I: IntoIterator<Item = Subject>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let decision = self.decide(&parts);
        let answer = match decision {
            Some(Decision::Deny(_)) => Answer::Refused,
            Some(Decision::Allow(_)) | None => {
                Answer::Passed { future: self.inner.call(Request::from_parts(parts, body)) }
            }
        };
        ResponseFuture { answer, decision, limiter: self.limiter.clone() }
    }
}

impl<S, F> RateLimit<S, F> {
    /// `None` if nobody is to be charged.
    fn decide<I>(&self, parts: &Parts) -> Option<Decision>
    where
        F: Fn(&Parts) -> I,
        I: IntoIterator<Item = Subject>,
    {
        let mut subjects = (self.subjects)(parts).into_iter();
        let first = subjects.next()?;
        Some(match subjects.next() {
            // The common case needs no list.
            None => self.limiter.check(&[first], 1),
            Some(second) => {
                let all: Vec<Subject> = [first, second].into_iter().chain(subjects).collect();
                self.limiter.check(&all, 1)
            }
        })
    }
}

impl<S: fmt::Debug, F> fmt::Debug for RateLimit<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("inner", &self.inner).field("limiter", &self.limiter).finish()
    }
}

pin_project! {
    /// The answer of [`RateLimit`].
    #[derive(Debug)]
    pub struct ResponseFuture<T> {
        #[pin]
        answer: Answer<T>,
        decision: Option<Decision>,
        limiter: Limiter,
    }
}

pin_project! {
    #[project = AnswerProjection]
    #[derive(Debug)]
    enum Answer<T> {
        Passed { #[pin] future: T },
        Refused,
    }
}

impl<T, R, E> Future for ResponseFuture<T>
where
    T: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.answer.project() {
            AnswerProjection::Passed { future } => ready!(future.poll(context))?,
            AnswerProjection::Refused => {
                let mut response = Response::new(R::default());
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                response
            }
        };
        if let Some(decision) = this.decision {
            this.limiter.describe(decision, response.headers_mut());
        }
        Poll::Ready(Ok(response))
    }
}
