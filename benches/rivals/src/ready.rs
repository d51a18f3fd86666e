//! Futures that are ready when they are first asked.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

/// The output of a future that does not wait; `None` if it does.
#[inline]
pub fn ready<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
