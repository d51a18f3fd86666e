//! A store that goes wrong, by a seed or by hand.
//!
//! [`FaultStore`] stands for the network between the nodes of a fleet and the store they share. What happens to a
//! call is drawn from one seed, so that a run that went wrong can be run again, or it is said by hand. Delays are
//! tokio's: where its time is paused they cost nothing, and with [`Clock::tokio`](crate::clock::Clock::tokio) the
//! lives of entries keep step.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    Error,
    cache::{Fence, Found, Invalidation, Put, Restamp, Stamp, Store, Written},
};

/// A [`Store`] whose calls are delayed, lost, made late, overtaken, garbled, refused and cut off.
///
/// Cheap to clone. A clone shares the view of the node it is a clone of; [`node`](Self::node) makes another node in
/// front of the same store, which can be [cut off](Self::cut) by itself. Without a rate, a fault by hand or a cut
/// every call is made at once and answered truly.
///
/// ```
/// use mcp_perf::{
///     cache::{Cache, Key},
///     clock::Clock,
///     testing::{Calls, Fault, FaultStore, MemoryStore},
/// };
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let clock = Clock::tokio();
/// let network = FaultStore::new(MemoryStore::new(clock.clone()), 42);
/// let (here, there) = (network.node(), network.node());
/// let one: Cache<u32> = Cache::builder("numbers").clock(clock.clone()).remote(here.clone()).build().await?;
/// let two: Cache<u32> = Cache::builder("numbers").clock(clock).remote(there).build().await?;
///
/// // A write that is made, and of which nothing is heard.
/// here.next(Calls::Writes, Fault::LoseAnswer);
/// let key = Key::public("a");
/// assert!(one.insert(&key, 1).await.is_err());
/// assert_eq!(two.get(&key).await, Some(1));
/// // Nobody knows whether it was made, so it is undone.
/// tokio::time::sleep(Duration::from_secs(10)).await;
/// assert_eq!(two.get(&key).await, None);
/// # Ok::<_, mcp_perf::Error>(()) }).unwrap();
/// ```
pub struct FaultStore<S> {
    network: Arc<Network<S>>,
    view: Arc<Mutex<View>>,
}

/// What can happen to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The connection breaks: an error at once, and nobody knows whether the call was made. It was in half of the
    /// cases.
    Break,
    /// The call takes its time, on the way there or on the way back.
    Delay,
    /// An entry comes back with other bytes: changed, cut off, or none of its own at all. A write is untouched.
    Garble,
    /// Nothing is heard of the call for as long as the caller waits, and a write is made later, whether somebody
    /// still waits or not. A read is lost.
    Late,
    /// The call is made, and nothing is heard of it.
    LoseAnswer,
    /// The call is not made, and nothing is heard of it.
    LoseRequest,
    /// The store answers, and would not. The call is not made.
    Refuse,
    /// The call is made after the next call of any node, if there is one before long.
    Reorder,
}

/// Every fault, in the order in which rates are drawn.
const FAULTS: [Fault; 8] = [
    Fault::Break,
    Fault::Delay,
    Fault::Garble,
    Fault::Late,
    Fault::LoseAnswer,
    Fault::LoseRequest,
    Fault::Refuse,
    Fault::Reorder,
];

/// Which calls are meant: pings are reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "there are no others")]
pub enum Calls {
    /// Both.
    All,
    /// Those that change nothing.
    Reads,
    /// Writes and invalidations.
    Writes,
}

struct Network<S> {
    store: S,
    schedule: Mutex<Schedule>,
    /// A call was made, for those that let another one pass.
    made: Notify,
    asked: AtomicU64,
    faults: [AtomicU64; FAULTS.len()],
}

struct Schedule {
    random: fastrand::Rng,
    rates: [f64; FAULTS.len()],
    longest_delay: Duration,
    longest_lateness: Duration,
}

/// What one node sees of the network.
#[derive(Default)]
struct View {
    cut: Option<Calls>,
    next: Vec<(Calls, Fault)>,
}

/// The lot of one call.
struct Fate {
    fault: Option<Fault>,
    delay: Duration,
    /// Whether the delay is on the way back, or the call was made before its connection broke.
    after: bool,
    noise: u64,
}

impl<S: Store> FaultStore<S> {
    /// A node in front of `store`, whose faults are drawn from `seed` once they have a [rate](Self::rate).
    pub fn new(store: S, seed: u64) -> Self {
        let schedule = Schedule {
            random: fastrand::Rng::with_seed(seed),
            rates: [0.0; FAULTS.len()],
            longest_delay: Duration::from_millis(200),
            longest_lateness: Duration::from_secs(4),
        };
        let network = Network {
            store,
            schedule: Mutex::new(schedule),
            made: Notify::new(),
            asked: AtomicU64::new(0),
            faults: Default::default(),
        };
        Self { network: Arc::new(network), view: Arc::default() }
    }

    /// Another node in front of the same store.
    #[must_use]
    pub fn node(&self) -> Self {
        Self { network: Arc::clone(&self.network), view: Arc::default() }
    }

    /// How often a call of any node meets with the fault: none unless set, of 0 to 1. The rates of all faults add up
    /// to 1 at most; what is beyond never happens.
    pub fn rate(&self, fault: Fault, rate: f64) {
        self.network.schedule().rates[fault as usize] = rate;
    }

    /// Takes every rate back; what is under way goes on.
    pub fn calm(&self) {
        self.network.schedule().rates = [0.0; FAULTS.len()];
    }

    /// How long a [delayed](Fault::Delay) call takes at most, 200 ms unless set, and how late a
    /// [late](Fault::Late) write is at most, 4 seconds unless set.
    ///
    /// A cache asks a store to remember a removal for longer than a load and a write may take, and reckons with a
    /// write that arrives a few seconds after it was given up. One that arrives after that memory is over is beyond
    /// what the contract of a [`Store`] promises to refuse.
    pub fn longest(&self, delay: Duration, lateness: Duration) {
        let mut schedule = self.network.schedule();
        (schedule.longest_delay, schedule.longest_lateness) = (delay, lateness);
    }

    /// How late a late write is at most.
    #[must_use]
    pub fn longest_lateness(&self) -> Duration {
        self.network.schedule().longest_lateness
    }

    /// The next call of this node and of that kind meets with the fault. Said more than once, one after the other.
    pub fn next(&self, calls: Calls, fault: Fault) {
        self.view().next.push((calls, fault));
    }

    /// Cuts this node off: nothing is heard of its calls, and none of them is made, until it is
    /// [joined](Self::join) again.
    pub fn cut(&self, calls: Calls) {
        self.view().cut = Some(calls);
    }

    /// Ends what [`cut`](Self::cut) began. Calls that were made meanwhile stay lost.
    pub fn join(&self) {
        self.view().cut = None;
    }

    /// How many calls the nodes made, whatever became of them.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.network.asked.load(Ordering::Relaxed)
    }

    /// How many calls of all nodes met with the fault.
    #[must_use]
    pub fn met_with(&self, fault: Fault) -> u64 {
        self.network.faults[fault as usize].load(Ordering::Relaxed)
    }

    /// The store itself, past every fault.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.network.store
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, calls: Calls) -> Fate {
        self.network.asked.fetch_add(1, Ordering::Relaxed);
        let by_hand = {
            let mut view = self.view();
            if view.cut.is_some_and(|cut| cut.concerns(calls)) {
                Some(Fault::LoseRequest)
            } else {
                let position = view.next.iter().position(|(meant, _)| meant.concerns(calls));
                position.map(|position| view.next.remove(position).1)
            }
        };
        let fate = self.network.schedule().draw(by_hand);
        if let Some(fault) = fate.fault {
            self.network.faults[fault as usize].fetch_add(1, Ordering::Relaxed);
        }
        fate
    }

    /// A call that changes nothing.
    async fn read<T>(&self, call: impl Future<Output = Result<T, Error>>) -> (Fate, Result<T, Error>) {
        let fate = self.fate(Calls::Reads);
        if matches!(fate.fault, Some(Fault::Late)) {
            std::future::pending::<()>().await;
        }
        let answer = self.meet(&fate, call).await;
        (fate, answer)
    }

    /// A call that changes something; in a task of its own where it is to be made late.
    async fn write<T>(
        &self,
        late: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
    {
        let fate = self.fate(Calls::Writes);
        if matches!(fate.fault, Some(Fault::Late)) {
            let network = Arc::clone(&self.network);
            tokio::spawn(async move {
                tokio::time::sleep(fate.delay).await;
                let _ = late.await;
                network.made.notify_waiters();
            });
            std::future::pending::<()>().await;
            return Err(broken());
        }
        self.meet(&fate, late).await
    }

    async fn meet<T>(&self, fate: &Fate, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let made = async {
            let answer = call.await;
            self.network.made.notify_waiters();
            answer
        };
        match fate.fault {
            Some(Fault::Refuse) => {
                Err(Error::refused("the test's store refuses", io::Error::other("as it was told")))
            }
            Some(Fault::Break) => {
                if fate.after {
                    let _ = made.await;
                }
                Err(broken())
            }
            Some(Fault::LoseRequest) => std::future::pending().await,
            Some(Fault::LoseAnswer) => {
                let _ = made.await;
                std::future::pending().await
            }
            Some(Fault::Delay) if fate.after => {
                let answer = made.await;
                tokio::time::sleep(fate.delay).await;
                answer
            }
            Some(Fault::Delay) => {
                tokio::time::sleep(fate.delay).await;
                made.await
            }
            Some(Fault::Reorder) => {
                // What is never overtaken goes on after a while.
                let _ = tokio::time::timeout(fate.delay, self.network.made.notified()).await;
                made.await
            }
            Some(Fault::Garble | Fault::Late) | None => made.await,
        }
    }
}

impl<S: Store> Store for FaultStore<S> {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let (fate, found) = self.read(self.network.store.get_many(entries, stamps)).await;
        let mut found = found?;
        if fate.fault == Some(Fault::Garble) {
            for entry in found.entries.iter_mut().filter_map(|slot| slot.entry.as_mut()) {
                entry.bytes = garbled(&entry.bytes, fate.noise);
            }
        }
        Ok(found)
    }

    async fn peek_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.read(self.network.store.peek_many(entries, stamps)).await.1
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        let network = Arc::clone(&self.network);
        let (name, bytes, life, fence) = (put.name.to_owned(), put.bytes, put.time_to_live, put.fence);
        self.write(async move { network.store.put_if(again(&name, bytes, life, fence)).await }).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        let network = Arc::clone(&self.network);
        let names: Vec<String> = entries.iter().map(ToString::to_string).collect();
        self.write(async move {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            network.store.remove_many(&names, hold).await
        })
        .await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        let network = Arc::clone(&self.network);
        let owned = |change: &Restamp<'_>| (change.name.to_owned(), change.invalidation, change.stamp);
        let changes: Vec<(String, Invalidation, Stamp)> = stamps.iter().map(owned).collect();
        self.write(async move {
            let changes: Vec<_> = changes
                .iter()
                .map(|(name, invalidation, stamp)| Restamp {
                    name,
                    invalidation: *invalidation,
                    stamp: *stamp,
                })
                .collect();
            network.store.restamp(&changes).await
        })
        .await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.read(self.network.store.ping()).await.1
    }
}

impl<S> Network<S> {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Schedule {
    /// The same number of draws whatever comes of them, so that a fault by hand moves no other.
    fn draw(&mut self, by_hand: Option<Fault>) -> Fate {
        let (mut draw, share) = (self.random.f64(), self.random.f64());
        let (after, noise) = (self.random.bool(), self.random.u64(..));
        let by_rate = FAULTS.into_iter().zip(self.rates).find_map(|(fault, rate)| {
            draw -= rate;
            (draw < 0.0).then_some(fault)
        });
        let fault = by_hand.or(by_rate);
        let longest = if fault == Some(Fault::Late) { self.longest_lateness } else { self.longest_delay };
        Fate { fault, delay: longest.mul_f64(share), after, noise }
    }
}

impl Calls {
    fn concerns(self, calls: Self) -> bool {
        self == Self::All || self == calls
    }
}

impl<S> Clone for FaultStore<S> {
    fn clone(&self) -> Self {
        Self { network: Arc::clone(&self.network), view: Arc::clone(&self.view) }
    }
}

impl<S> fmt::Debug for FaultStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = |fault: &Fault| (*fault, self.network.faults[*fault as usize].load(Ordering::Relaxed));
        f.debug_struct("FaultStore")
            .field("asked", &self.network.asked)
            .field("faults", &FAULTS.iter().map(met).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

fn again(name: &str, bytes: Bytes, life: Duration, fence: Option<Fence>) -> Put<'_> {
    Put { fence, ..Put::new(name, bytes, life) }
}

fn broken() -> Error {
    Error::unavailable("the test's store is gone", io::Error::other("as it was told"))
}

/// Bytes that were damaged on their way.
fn garbled(bytes: &[u8], noise: u64) -> Bytes {
    let at = usize::try_from(noise >> 40).unwrap_or(0);
    match noise % 4 {
        0 => Bytes::from_static(b"HTTP/1.1 400 Bad Request"),
        1 => Bytes::copy_from_slice(&bytes[..at % bytes.len().max(1)]),
        2 => bytes.iter().copied().chain(noise.to_le_bytes()).collect(),
        _ => {
            let mut bytes = bytes.to_vec();
            let length = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % length) {
                *byte ^= 1 << (noise >> 3 & 7);
            }
            bytes.into()
        }
    }
}
