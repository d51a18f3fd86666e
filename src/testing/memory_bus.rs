//! The reference bus, which fails on demand.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    Error,
    cache::{Bus, Subscription},
};

/// How many messages wait for one listener, before its subscription ends.
const MOST_WAITING: usize = 1024;

/// A [`Bus`] in memory. Clones are one process's end of it; [`end`](Self::end) makes another's, with faults of its
/// own.
#[derive(Clone)]
pub struct MemoryBus {
    listeners: Arc<Mutex<Vec<Listener>>>,
    end: Arc<Mutex<End>>,
    max_message: usize,
}

struct Listener {
    channel: String,
    sender: mpsc::Sender<Bytes>,
    end: Arc<Mutex<End>>,
}

#[derive(Default)]
struct End {
    lose: usize,
    damage: usize,
    refuses: bool,
    is_deaf: bool,
    repeats: bool,
    holds: bool,
    held: Vec<(mpsc::Sender<Bytes>, Bytes)>,
    subscriptions: usize,
}

/// What [`MemoryBus`] gives to who listens.
#[derive(Debug)]
pub struct MemorySubscription(mpsc::Receiver<Bytes>);

impl MemoryBus {
    /// A bus that nobody listens to yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "one bus is not as good as another")]
    pub fn new() -> Self {
        Self { listeners: Arc::default(), end: Arc::default(), max_message: 16 * 1024 }
    }

    /// The same bus, carrying no more than so many bytes at once.
    #[must_use]
    pub fn with_max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    /// The end of another process.
    #[must_use]
    pub fn end(&self) -> Self {
        Self { end: Arc::default(), ..self.clone() }
    }

    /// The next so many messages published here reach nobody, and nobody is told.
    pub fn lose(&self, count: usize) {
        lock(&self.end).lose = count;
    }

    /// The next so many messages published here arrive with a bit turned over.
    pub fn damage(&self, count: usize) {
        lock(&self.end).damage = count;
    }

    /// Whether publishing here, and subscribing anew, is an error.
    pub fn refuse(&self, refuses: bool) {
        lock(&self.end).refuses = refuses;
    }

    /// Whether nothing arrives here, though the subscriptions look alive.
    pub fn deafen(&self, is_deaf: bool) {
        lock(&self.end).is_deaf = is_deaf;
    }

    /// Whether everything arrives here twice.
    pub fn repeat(&self, repeats: bool) {
        lock(&self.end).repeats = repeats;
    }

    /// Keeps back what arrives here until it is [released](Self::release).
    pub fn hold(&self) {
        lock(&self.end).holds = true;
    }

    /// Lets what was kept back arrive, the last first, and keeps back nothing more.
    pub fn release(&self) {
        let mut end = lock(&self.end);
        end.holds = false;
        for (listener, message) in end.held.drain(..).rev() {
            let _ = listener.try_send(message);
        }
    }

    /// Ends every subscription made here.
    pub fn disconnect(&self) {
        lock(&self.end).held.clear();
        lock(&self.listeners).retain(|listener| !Arc::ptr_eq(&listener.end, &self.end));
    }

    /// How many subscriptions there are, at all ends.
    #[must_use]
    pub fn listeners(&self) -> usize {
        let mut listeners = lock(&self.listeners);
        listeners.retain(|listener| !listener.sender.is_closed());
        listeners.len()
    }

    /// How often somebody subscribed here.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        lock(&self.end).subscriptions
    }

    fn refuses(&self) -> Result<(), Error> {
        if lock(&self.end).refuses {
            return Err(Error::unavailable("the bus in memory refuses", std::io::Error::other("as told")));
        }
        Ok(())
    }

    /// What becomes of a message on its way out.
    fn sent(&self, message: Bytes) -> Option<Bytes> {
        let mut end = lock(&self.end);
        if end.lose > 0 {
            end.lose -= 1;
            return None;
        }
        if end.damage == 0 {
            return Some(message);
        }
        end.damage -= 1;
        let mut damaged = message.to_vec();
        let at = damaged.len() / 2;
        damaged.get_mut(at).into_iter().for_each(|byte| *byte ^= 1);
        Some(damaged.into())
    }
}

impl Bus for MemoryBus {
    type Subscription = MemorySubscription;

    fn max_message(&self) -> usize {
        self.max_message
    }

    async fn publish(&self, channel: &str, message: Bytes) -> Result<(), Error> {
        self.refuses()?;
        if message.len() > self.max_message {
            return Err(Error::refused("the message is too long", std::io::Error::other("too long")));
        }
        let Some(message) = self.sent(message) else { return Ok(()) };
        let mut listeners = lock(&self.listeners);
        // One that is gone, or has no more room, is no listener any more.
        listeners.retain(|listener| listener.channel != channel || listener.deliver(&message));
        Ok(())
    }

    async fn subscribe(&self, channel: &str) -> Result<MemorySubscription, Error> {
        self.refuses()?;
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        lock(&self.end).subscriptions += 1;
        let listener = Listener { channel: channel.to_owned(), sender, end: Arc::clone(&self.end) };
        lock(&self.listeners).push(listener);
        Ok(MemorySubscription(receiver))
    }
}

impl Listener {
    fn deliver(&self, message: &Bytes) -> bool {
        let mut end = lock(&self.end);
        if end.is_deaf {
            return !self.sender.is_closed();
        }
        for _ in 0..if end.repeats { 2 } else { 1 } {
            if end.holds && end.held.len() < MOST_WAITING {
                end.held.push((self.sender.clone(), message.clone()));
            } else if end.holds || self.sender.try_send(message.clone()).is_err() {
                return false;
            }
        }
        true
    }
}

impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Bytes, Error> {
        let ended =
            || Error::unavailable("the bus in memory: disconnected", std::io::Error::other("as told"));
        self.0.recv().await.ok_or_else(ended)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBus").field("listeners", &self.listeners()).finish_non_exhaustive()
    }
}
