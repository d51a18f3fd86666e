//! The tasks at the bus: one publishes what this process announces, one hears what others do.

use std::{
    pin::pin,
    sync::{Arc, Weak, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};

use super::{
    bus::{ErasedBus, ErasedSubscription},
    message::{Message, Node, Writer},
    stats::BusEvents,
    tiers::Tiers,
};
use crate::{
    Error, ErrorKind,
    sync::{AtomicBool, Ordering},
};

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long without a message the way is tried, by sending one.
const QUIET: Duration = Duration::from_secs(15);
/// How long such a message may take to come back.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The bus as the tasks use it.
#[derive(Clone)]
pub(super) struct Way {
    bus: Arc<dyn ErasedBus>,
    channel: Arc<str>,
    events: Arc<BusEvents>,
    /// Whether the last message could be published.
    takes_messages: Arc<AtomicBool>,
}

impl Way {
    pub(super) fn new(bus: Arc<dyn ErasedBus>, channel: Arc<str>, events: Arc<BusEvents>) -> Self {
        Self { bus, channel, events, takes_messages: Arc::new(AtomicBool::new(true)) }
    }
}

/// Publishes what waits, as few messages as hold it.
pub(super) async fn publish(
    way: Way,
    node: Node,
    mut waiting: mpsc::Receiver<Bytes>,
    bytes_waiting: Arc<AtomicUsize>,
) {
    let max_message = way.bus.max_message();
    let mut next = None;
    loop {
        let (first, mut taken) = match next.take() {
            Some(first) => (first, 0),
            None => match waiting.recv().await {
                Some(first) => {
                    let length = first.len();
                    (first, length)
                }
                None => return,
            },
        };
        // What others have ready in this tick goes with it.
        tokio::task::yield_now().await;
        let mut message = Writer::new(node);
        message.push(&first);
        while let Ok(batch) = waiting.try_recv() {
            taken += batch.len();
            if !message.has_room(&batch, max_message) {
                next = Some(batch);
                break;
            }
            message.push(&batch);
        }
        bytes_waiting.fetch_sub(taken, Ordering::Relaxed);
        match within(PUBLISH_TIMEOUT, way.bus.publish(&way.channel, message.seal())).await {
            Ok(()) => {
                way.events.sent.add();
                if !way.takes_messages.swap(true, Ordering::AcqRel) {
                    tracing::info!(channel = %way.channel, "bus takes messages again");
                }
            }
            Err(error) => {
                way.events.unsent.add();
                if way.takes_messages.swap(false, Ordering::AcqRel) {
                    let message = "bus takes no messages: other processes find out by the remote tier";
                    tracing::warn!(channel = %way.channel, cause = %error, "{message}");
                }
            }
        }
    }
}

async fn within<T>(time: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(time, call).await.unwrap_or_else(|elapsed| {
        Err(Error::with_source(ErrorKind::TimedOut, "the bus did not answer in time", elapsed))
    })
}

/// Listens, and subscribes again whenever that ends.
pub(super) async fn listen<V>(way: Way, tiers: Weak<Tiers<V>>, try_the_way: Arc<Notify>)
where
    V: Clone + Send + Sync + 'static,
{
    let (mut pause, mut is_away) = (FIRST_PAUSE, false);
    loop {
        let (ended, has_heard) = match within(SUBSCRIBE_TIMEOUT, way.bus.subscribe(&way.channel)).await {
            Ok(mut subscription) => {
                let mut ears = Ears { way: &way, tiers: &tiers, is_away: &mut is_away, has_heard: false };
                let Some(error) = ears.hear(&mut *subscription, &try_the_way).await else { return };
                (error, ears.has_heard)
            }
            Err(error) => (error, false),
        };
        way.events.connected(false);
        if !std::mem::replace(&mut is_away, true) {
            let message = "bus is away: what others invalidate is found out by the remote tier";
            tracing::warn!(channel = %way.channel, cause = %ended, "{message}");
        }
        pause = if has_heard { FIRST_PAUSE } else { pause };
        // Not all processes at once, when it was the bus that went.
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

struct Ears<'a, V: Clone + Send + Sync + 'static> {
    way: &'a Way,
    tiers: &'a Weak<Tiers<V>>,
    is_away: &'a mut bool,
    has_heard: bool,
}

impl<V: Clone + Send + Sync + 'static> Ears<'_, V> {
    /// Hears until the subscription ends, or seems to; `None` if the cache is gone.
    async fn hear(
        &mut self,
        subscription: &mut dyn ErasedSubscription,
        try_the_way: &Notify,
    ) -> Option<Error> {
        // Whether a message of our own is on its way to us. The first shows that the subscription works.
        let mut expecting = true;
        self.send_nothing()?;
        let mut silence = pin!(sleep(PATIENCE));
        loop {
            tokio::select! {
                heard = subscription.next() => match heard {
                    Ok(bytes) => {
                        self.take(&bytes)?;
                        expecting = false;
                        silence.set(sleep(QUIET));
                    }
                    Err(error) => return Some(error),
                },
                () = &mut silence => {
                    // What could not be sent cannot come back.
                    if expecting && self.way.takes_messages.load(Ordering::Acquire) {
                        let silent = "a message sent to the bus did not come back";
                        return Some(Error::new(ErrorKind::TimedOut, silent));
                    }
                    expecting = true;
                    self.send_nothing()?;
                    silence.set(sleep(PATIENCE));
                }
                () = try_the_way.notified(), if !expecting => {
                    expecting = true;
                    self.send_nothing()?;
                    silence.set(sleep(PATIENCE));
                }
            }
        }
    }

    fn send_nothing(&self) -> Option<()> {
        self.tiers.upgrade()?.coherence()?.send(Bytes::new());
        Some(())
    }

    fn take(&mut self, bytes: &[u8]) -> Option<()> {
        let tiers = self.tiers.upgrade()?;
        let coherence = tiers.coherence()?;
        self.has_heard = true;
        self.way.events.connected(true);
        if std::mem::replace(self.is_away, false) {
            tracing::info!(channel = %self.way.channel, "bus is back");
        }
        self.way.events.received.add();
        let Some(message) = Message::open(bytes) else {
            // If it was one of ours, its link is missing.
            tracing::debug!(channel = %self.way.channel, "something on the bus is no message of this cache");
            return Some(());
        };
        if message.sender == coherence.node {
            return Some(());
        }
        for batch in message.batches {
            for item in &batch.items {
                tiers.hear(item);
            }
            // After it was applied: from here on it may be confirmed.
            if let Some(link) = batch.link {
                coherence.link(link);
            }
        }
        Some(())
    }
}
