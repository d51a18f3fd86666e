//! How processes keep what they remember coherent: the protocol over a [`Bus`](super::Bus) and the remote tier.
//!
//! # The protocol
//!
//! Who invalidates something does, in this order:
//!
//! 1. forget it in its own memory;
//! 2. *announce*: change the ledger, one entry of the remote tier, by a compare-and-set, which makes one
//!    [`Link`] of the [chain](super::chain) of all announcements of all processes;
//! 3. invalidate in the remote tier;
//! 4. publish what was invalidated, together with the link.
//!
//! Steps 2 to 4 are shared: what comes while the ledger is being changed goes into one batch, with one link and in
//! one message. Nobody waits for step 4.
//!
//! Everybody hears messages: fences the running loads of the keys, forgets what was invalidated, and then joins the
//! link to what was heard before. And everybody looks at the ledger every quarter of `max_staleness` (a *beat*): if
//! all links up to the fence that is there have been heard, everything that was announced before the look has been
//! applied, and that moment is written down as `confirmed_at`. If a link is not heard within two beats, there is a
//! *gap*: a new stretch begins at the fence that is there, and what was read from the remote tier before the
//! stretch is not covered by it. So a dead bus to which nothing was to be said costs nothing, and a lost message
//! costs each process one look per entry it still wants.
//!
//! An entry is served until `max_staleness` after the remote tier was last asked for it (`heard_at`), as without a
//! bus; or, if it was asked for within the present stretch, until `max_staleness` after `confirmed_at`.
//!
//! # Why nothing is served for longer than `max_staleness` after its invalidation
//!
//! Claim: if an invalidation, as its caller sees it, is done at `t`, no process serves what it concerns from
//! memory at or after `t + max_staleness`, whatever became of any message.
//!
//! Let the entry have been read after `heard_at = h`, and the invalidation have reached the remote tier at `e`. If
//! `e < h` the entry is not what was invalidated. Else, if it is served by the first rule, that is before
//! `h + max_staleness <= e + max_staleness`. By the second: it was announced at some `a < e`, and the stretch began
//! with a look that was answered at `s`, where `s + SETTLING <= h`. If the ledger's fence of that look came after
//! the announcement, then `a <= s`, and `e <= a + SETTLING <= h` (below), against the assumption. So the
//! announcement is in the chain after the stretch began. If `a < confirmed_at`, its link was heard and the entry
//! forgotten, or the load that brought it fenced, before `confirmed_at` was written. If `a >= confirmed_at`, the
//! entry is served before `confirmed_at + max_staleness <= a + max_staleness`. ∎
//!
//! That `e <= a + SETTLING` is seen to by the announcer: if the announcement failed, or the invalidation took
//! longer, it is announced once more before it is done. That comes after `e`, and the same proof goes through with
//! it. If it fails as well, so does the call, and the announcement is owed.
//!
//! What the steps rest on is the remote tier's compare-and-set alone. Case by case:
//!
//! | what fails | what is found | nothing old after |
//! |---|---|---|
//! | a message is lost, the subscription silent, the bus away, a publisher refused or its queue full | the link is not heard: a gap | `max_staleness` |
//! | a process dies after 2, before 3 | a gap; nothing was invalidated | – |
//! | a process dies after 3, before 4 | a gap | `max_staleness` after 3 |
//! | messages late, repeated, in another order | links wait for those before them; what is repeated costs a miss | `max_staleness` |
//! | messages damaged or forged | a wrong sum is no message, so a gap; a forged one makes others forget too much, or links what is not there, which leads nowhere | `max_staleness` |
//! | the ledger is evicted, or the store comes back in an earlier state | a fence that no link leads to, for none is as it was before: a gap | `max_staleness` |
//! | the remote tier is away from a reader | nothing is confirmed: no entry outlives `max_staleness` | `max_staleness` |
//! | the remote tier is away from a writer | its call fails and is owed; it is published all the same, so that those it reaches forget | `max_staleness` after it is paid, which beats and reads try |
//! | the announcement fails, twice, and the invalidation succeeds | the same | the same |
//! | a process is stopped between 2 and 3 for longer than `SETTLING` | it announces again | `max_staleness` |
//!
//! Two of these at once are covered by the same proof, since it asks of no message that it arrives. What is not
//! covered: a process that is stopped between 2 and 3 for longer than `SETTLING` *and* dies before it announces
//! again *and* whose message is lost; a remote tier that makes a write after it was given up, by more than
//! `SETTLING`, for a process that then dies; a process of the same cache **without** a bus, which announces
//! nothing.

use std::{
    sync::{Arc, OnceLock, Weak, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, OnceCell, mpsc},
    task::AbortHandle,
    time::sleep,
};

use super::{
    bus::ErasedBus,
    chain::{Chain, Link, SETTLING, Trust, Turn},
    channel::{Way, listen, publish},
    envelope,
    message::{self, BATCH, FRAME, Item, Node},
    stats::BusEvents,
    store::Fence,
    tiers::Tiers,
};
use crate::{
    Error,
    clock::{Clock, Instant},
    sync::{AtomicU64, Mutex, Ordering, lock},
};

/// The least that a bus has to carry at once.
pub(super) const LEAST_MESSAGE: usize = 128;
/// How many batches, and bytes of them, wait to be published; what comes beyond is not published, and found missing
/// by the others.
const MOST_WAITING: usize = 4096;
const MOST_BYTES_WAITING: usize = 1024 * 1024;

/// What a process knows and says of the invalidations of all.
pub(super) struct Coherence {
    pub(super) node: Node,
    channel: Arc<str>,
    pub(super) ledger: String,
    clock: Clock,
    bus: Arc<dyn ErasedBus>,
    beat: Duration,
    pub(super) covered: Arc<Covered>,
    chain: Mutex<Chain>,
    /// The ledger's fence as last seen, to try first.
    fence: Mutex<Option<Fence>>,
    gathering: Mutex<Weak<Batch>>,
    /// Held by who changes the ledger.
    pub(super) turn: tokio::sync::Mutex<()>,
    outgoing: mpsc::Sender<Bytes>,
    waiting: Mutex<Option<mpsc::Receiver<Bytes>>>,
    bytes_waiting: Arc<AtomicUsize>,
    try_the_way: Arc<Notify>,
    pub(super) events: Arc<BusEvents>,
    tasks: OnceLock<[AbortHandle; 2]>,
}

/// Until when entries are covered: what a hit reads.
pub(super) struct Covered {
    since: AtomicU64,
    confirmed_at: AtomicU64,
    max_staleness: Duration,
}

impl Covered {
    fn new(max_staleness: Duration) -> Self {
        let covered = Self { since: AtomicU64::new(0), confirmed_at: AtomicU64::new(0), max_staleness };
        covered.set(Trust::NONE);
        covered
    }

    /// Until when an entry may be served that the remote tier was asked for at `heard_at`.
    #[inline]
    pub(super) fn until(&self, heard_at: Instant) -> Instant {
        // In this order, against that of `set`: who sees a confirmation of a new stretch sees where it began.
        let confirmed_at = Instant::from_nanos(self.confirmed_at.load(Ordering::Acquire));
        let since = Instant::from_nanos(self.since.load(Ordering::Acquire));
        let from = if heard_at >= since { heard_at.max(confirmed_at) } else { heard_at };
        from.after(self.max_staleness)
    }

    fn set(&self, trust: Trust) {
        self.since.store(trust.since.as_nanos(), Ordering::Release);
        self.confirmed_at.store(trust.confirmed_at.as_nanos(), Ordering::Release);
    }
}

/// What is announced together. Published when the last who invalidates something of it is done, or gone.
pub(super) struct Batch {
    coherence: Arc<Coherence>,
    gathered: Mutex<Gathered>,
    /// The link, once the ledger was changed; `None` if it could not be, or not as a link of the chain.
    announced: OnceCell<Result<Option<Link>, Error>>,
}

#[derive(Default)]
struct Gathered {
    items: Vec<u8>,
    count: u32,
    is_closed: bool,
}

/// An invalidation that was announced, or could not be, and is not done yet.
pub(super) struct Told {
    began: Instant,
    announced: Result<(), Error>,
    _batch: Arc<Batch>,
}

impl Told {
    pub(super) fn announced(&self) -> Result<(), Error> {
        self.announced.clone()
    }

    /// Whether what is done by `now` is covered by the announcement.
    pub(super) fn is_good(&self, now: Instant) -> bool {
        self.announced.is_ok() && now.since(self.began) <= SETTLING
    }
}

impl Coherence {
    pub(super) fn new(
        bus: Arc<dyn ErasedBus>,
        cache: &str,
        clock: Clock,
        max_staleness: Duration,
    ) -> Arc<Self> {
        let beat = (max_staleness / 4).max(Duration::from_millis(1));
        let (outgoing, waiting) = mpsc::channel(MOST_WAITING);
        Arc::new(Self {
            node: fastrand::u128(..).to_le_bytes(),
            channel: format!("{cache}:{}:bus{}", envelope::VERSION, message::VERSION).into(),
            ledger: envelope::ledger_name(cache),
            clock,
            bus,
            beat,
            covered: Arc::new(Covered::new(max_staleness)),
            chain: Mutex::new(Chain::new(2 * beat)),
            fence: Mutex::default(),
            gathering: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            outgoing,
            waiting: Mutex::new(Some(waiting)),
            bytes_waiting: Arc::default(),
            try_the_way: Arc::default(),
            events: Arc::new(BusEvents::new(cache)),
            tasks: OnceLock::new(),
        })
    }

    /// Starts listening, looking and publishing, for as long as the cache is there.
    pub(super) fn start<V: Clone + Send + Sync + 'static>(&self, tiers: &Weak<Tiers<V>>) {
        let Some(waiting) = lock(&self.waiting).take() else { return };
        let way = Way::new(Arc::clone(&self.bus), Arc::clone(&self.channel), Arc::clone(&self.events));
        // Ends by itself when the cache is gone and what waits has been published.
        tokio::spawn(publish(way.clone(), self.node, waiting, Arc::clone(&self.bytes_waiting)));
        let listening = listen(way, Weak::clone(tiers), Arc::clone(&self.try_the_way));
        let looking = look(Weak::clone(tiers), self.beat);
        let _ =
            self.tasks.set([tokio::spawn(listening).abort_handle(), tokio::spawn(looking).abort_handle()]);
    }

    /// The batch that the item is announced with.
    fn gather(self: &Arc<Self>, item: &Item<'_>) -> Arc<Batch> {
        let most = self.bus.max_message().saturating_sub(FRAME + BATCH);
        let mut bytes = item.to_bytes();
        if bytes.len() > most {
            bytes = Item::Doubt.to_bytes();
        }
        let mut gathering = lock(&self.gathering);
        if let Some(batch) = gathering.upgrade().filter(|batch| batch.take(&bytes, most)) {
            return batch;
        }
        let gathered = Gathered { items: bytes, count: 1, is_closed: false };
        let batch = Arc::new(Batch {
            coherence: Arc::clone(self),
            gathered: Mutex::new(gathered),
            announced: OnceCell::new(),
        });
        *gathering = Arc::downgrade(&batch);
        batch
    }

    /// Announces an item, by means of `extend`, which makes a link of the chain. One of many at once does it for
    /// all. What could not be announced is published all the same.
    pub(super) async fn announce<F>(self: &Arc<Self>, item: &Item<'_>, extend: impl FnOnce() -> F) -> Told
    where
        F: Future<Output = Result<Option<Link>, Error>>,
    {
        // Before it joins: the ledger cannot have been changed by then.
        let began = self.clock.now();
        let batch = self.gather(item);
        let announced = batch.announced.get_or_init(|| async {
            let _one_at_a_time = self.turn.lock().await;
            // What others have ready in this tick goes with it.
            tokio::task::yield_now().await;
            // Who comes from here on may come after the ledger was changed.
            lock(&batch.gathered).is_closed = true;
            extend().await
        });
        let announced = announced.await.as_ref().map(|_| ()).map_err(Clone::clone);
        Told { began, announced, _batch: batch }
    }

    /// Publishes one item, or nothing, with its own link.
    pub(super) fn publish(&self, link: Link, item: Option<&Item<'_>>) {
        let bytes = item.map(Item::to_bytes).unwrap_or_default();
        self.send(message::batch(Some(link), item.is_some().into(), &bytes));
        self.link(link);
    }

    /// The ledger's fence as last seen.
    pub(super) fn fence(&self) -> Option<Fence> {
        *lock(&self.fence)
    }

    pub(super) fn saw(&self, fence: Option<Fence>) {
        *lock(&self.fence) = fence;
    }

    pub(super) fn link(&self, link: Link) {
        self.saw(Some(link.after));
        self.change(|chain| chain.link(link));
    }

    fn looked(&self, at: Instant, fence: Fence) {
        self.saw(Some(fence));
        let now = self.clock.now();
        if self.change(|chain| chain.looked(at, now, fence)) == Some(Turn::Gap) {
            self.events.gaps.add();
            let message =
                "an invalidation was announced and not heard of: what is remembered is looked up again";
            tracing::debug!(channel = %self.channel, "{message}");
            self.try_the_way.notify_one();
        }
    }

    /// Nothing that is remembered is covered any more.
    pub(super) fn doubt(&self) {
        let now = self.clock.now();
        self.change(|chain| chain.suspect(now));
        self.events.doubts.add();
    }

    fn change<T>(&self, change: impl FnOnce(&mut Chain) -> T) -> T {
        let mut chain = lock(&self.chain);
        let changed = change(&mut chain);
        // Under the lock, so that the two numbers are of one state.
        self.covered.set(chain.trust());
        changed
    }

    /// Hands a batch, or nothing, to the publisher.
    pub(super) fn send(&self, batch: Bytes) {
        let length = batch.len();
        let waiting = self.bytes_waiting.fetch_add(length, Ordering::Relaxed);
        if waiting + length > MOST_BYTES_WAITING || self.outgoing.try_send(batch).is_err() {
            self.bytes_waiting.fetch_sub(length, Ordering::Relaxed);
            self.events.unsent.add();
        }
    }
}

impl Drop for Coherence {
    fn drop(&mut self) {
        for task in self.tasks.get().into_iter().flatten() {
            task.abort();
        }
    }
}

impl Batch {
    /// Adds an item, if there is room and time.
    fn take(&self, item: &[u8], most: usize) -> bool {
        let mut gathered = lock(&self.gathered);
        if gathered.is_closed || gathered.items.len() + item.len() > most {
            return false;
        }
        gathered.items.extend_from_slice(item);
        gathered.count += 1;
        true
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let link = self.announced.get().and_then(|announced| announced.as_ref().ok().copied().flatten());
        {
            let gathered = lock(&self.gathered);
            self.coherence.send(message::batch(link, gathered.count, &gathered.items));
        }
        // Of its own invalidations this process need not hear.
        if let Some(link) = link {
            self.coherence.link(link);
        }
    }
}

/// Looks at the ledger, every beat.
async fn look<V: Clone + Send + Sync + 'static>(tiers: Weak<Tiers<V>>, beat: Duration) {
    loop {
        {
            let Some(tiers) = tiers.upgrade() else { return };
            let (Some(remote), Some(coherence)) = (&tiers.remote, tiers.coherence()) else { return };
            let at = coherence.clock.now();
            if let Ok(Some(fence)) = remote.ledger(coherence).await {
                coherence.looked(at, fence);
            }
        }
        sleep(beat).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(second: u64) -> Instant {
        Instant::from_nanos(second * 1_000_000_000)
    }

    #[test]
    fn entry_is_covered_as_of_the_last_confirmation_if_it_was_read_within_the_stretch() {
        let covered = Covered::new(Duration::from_secs(5));
        assert_eq!(covered.until(second(1)), second(6), "by its own look, before anything was confirmed");
        covered.set(Trust { since: second(10), confirmed_at: second(100) });
        assert_eq!(covered.until(second(9)), second(14), "read before the stretch");
        assert_eq!(covered.until(second(10)), second(105));
        assert_eq!(covered.until(second(101)), second(106), "read after the confirmation");
    }
}

#[cfg(all(test, mcp_perf_loom))]
mod model {
    use super::*;

    const fn second(second: u64) -> Instant {
        Instant::from_nanos(second * 1_000_000_000)
    }

    /// A hit while a gap is found and the stretch after it confirmed.
    #[test]
    fn no_interleaving_covers_an_entry_by_a_stretch_it_was_not_read_in() {
        loom::model(|| {
            let covered = Arc::new(Covered::new(Duration::from_secs(5)));
            covered.set(Trust { since: second(10), confirmed_at: second(50) });
            let gap = loom::thread::spawn({
                let covered = Arc::clone(&covered);
                move || {
                    covered.set(Trust { since: second(100), confirmed_at: second(50) });
                    covered.set(Trust { since: second(100), confirmed_at: second(200) });
                }
            });
            assert_eq!(covered.until(second(60)), second(65));
            gap.join().unwrap();
        });
    }
}
