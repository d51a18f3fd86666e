//! What the models of the races have in common.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use loom::sync::{Condvar, Mutex};

use crate::sync::lock;

/// Lets a thread of a model sleep until it is woken: one that never is ends the model with a deadlock.
struct Parked {
    is_woken: Mutex<bool>,
    woken: Condvar,
}

impl Parked {
    fn new() -> Arc<Self> {
        Arc::new(Self { is_woken: Mutex::new(false), woken: Condvar::new() })
    }

    fn park(&self) {
        let mut is_woken = lock(&self.is_woken);
        while !*is_woken {
            is_woken = self.woken.wait(is_woken).unwrap();
        }
        *is_woken = false;
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        *lock(&self.is_woken) = true;
        self.woken.notify_one();
    }
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let parked = Parked::new();
    let waker = Waker::from(Arc::clone(&parked));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => parked.park(),
        }
    }
}

/// Looks once, and goes away.
pub(crate) fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    let waker = Waker::from(Parked::new());
    pin!(future).poll(&mut Context::from_waker(&waker))
}
