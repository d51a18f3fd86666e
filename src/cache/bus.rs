//! The contract of the invalidation bus.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::Error;

/// How processes tell each other at once what they invalidated, so that each may keep what it has in memory for as
/// long as it lives, instead of asking the remote tier anew every
/// [`max_staleness`](super::RemoteCacheBuilder::max_staleness).
///
/// A bus is a dumb transport, and nothing that must be right depends on it. It may lose, repeat, reorder, delay and
/// damage messages, and be away altogether: what it did not deliver is found out by way of the remote tier, and
/// until then nothing is served for longer than `max_staleness`. What a bus should do, because the cache is only as
/// quick as it, is deliver soon, and say so when a subscription has ended.
///
/// Channels are printable ASCII of at most 100 bytes, which the cache makes; a transport whose names are shorter
/// digests them. Messages are any bytes, of at most
/// [`max_message`](Self::max_message); a transport for text encodes them, and states what is left. Who may publish
/// can make every process forget what it remembers, and do no worse: keys and tags travel in the clear, values
/// never do.
///
/// `mcp_perf::testing::bus` (feature `test-util`) holds the tests that every implementation must pass, and a bus in
/// memory that fails on demand.
pub trait Bus: Send + Sync + 'static {
    /// What [`subscribe`](Self::subscribe) gives.
    type Subscription: Subscription;

    /// The most bytes of one message: 16 KiB unless the transport says otherwise, and at least 128. A message
    /// carries what was invalidated at about the same time; a key too long for it makes the others doubt
    /// everything they remember.
    fn max_message(&self) -> usize {
        16 * 1024
    }

    /// Sends a message to everybody who is subscribed to the channel, the sender included.
    ///
    /// The cache publishes one message after the other, gives up on each after two seconds, and repeats none.
    fn publish(&self, channel: &str, message: Bytes) -> impl Future<Output = Result<(), Error>> + Send;

    /// Begins to listen. What is published after this has returned is delivered.
    ///
    /// The cache subscribes again when the subscription ends, and when it has not heard its own messages on it.
    fn subscribe(&self, channel: &str) -> impl Future<Output = Result<Self::Subscription, Error>> + Send;
}

/// One who listens to a [`Bus`]; dropped, it is unsubscribed.
pub trait Subscription: Send + 'static {
    /// The next message, waiting for it if need be. An error says that the subscription is over.
    ///
    /// Cancel safe: dropping the future loses no message. What waits to be asked for has to be bounded; a bus that
    /// has no more room ends the subscription.
    fn next(&mut self) -> impl Future<Output = Result<Bytes, Error>> + Send;
}

impl<B: Bus> Bus for Arc<B> {
    type Subscription = B::Subscription;

    fn max_message(&self) -> usize {
        B::max_message(self)
    }

    fn publish(&self, channel: &str, message: Bytes) -> impl Future<Output = Result<(), Error>> + Send {
        B::publish(self, channel, message)
    }

    fn subscribe(&self, channel: &str) -> impl Future<Output = Result<Self::Subscription, Error>> + Send {
        B::subscribe(self, channel)
    }
}

/// A future of a bus behind `dyn`.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// [`Bus`] behind `dyn`.
pub(crate) trait ErasedBus: Send + Sync {
    fn max_message(&self) -> usize;
    fn publish<'a>(&'a self, channel: &'a str, message: Bytes) -> Boxed<'a, ()>;
    fn subscribe<'a>(&'a self, channel: &'a str) -> Boxed<'a, Box<dyn ErasedSubscription>>;
}

/// [`Subscription`] behind `dyn`.
pub(crate) trait ErasedSubscription: Send {
    fn next(&mut self) -> Boxed<'_, Bytes>;
}

impl<B: Bus> ErasedBus for B {
    fn max_message(&self) -> usize {
        Bus::max_message(self)
    }

    fn publish<'a>(&'a self, channel: &'a str, message: Bytes) -> Boxed<'a, ()> {
        Box::pin(Bus::publish(self, channel, message))
    }

    fn subscribe<'a>(&'a self, channel: &'a str) -> Boxed<'a, Box<dyn ErasedSubscription>> {
        Box::pin(async move {
            let subscription = Bus::subscribe(self, channel).await?;
            Ok(Box::new(subscription) as Box<dyn ErasedSubscription>)
        })
    }
}

impl<S: Subscription> ErasedSubscription for S {
    fn next(&mut self) -> Boxed<'_, Bytes> {
        Box::pin(Subscription::next(self))
    }
}
