//! The invalidation bus: what it brings when it works, and that nothing old is served when it does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod support;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, Found, Key, Put, Restamp, Slot, Store, Written},
    clock::{Clock, Instant},
    testing::{self, MemoryBus, MemoryStore},
};
use support::{
    stepped::{Step, Stepped},
    wait::until,
};
use tokio::sync::oneshot;
use tracing::{Level, Metadata, span};

const SECOND: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);
/// The default of `max_staleness`.
const STALENESS: Duration = Duration::from_secs(5);
const TAG: &str = "tag";

type Texts = Cache<String>;

fn key() -> Key<'static> {
    Key::public("key")
}

// ===== a store whose ledger can be tampered with =====

/// What the tests do to the store.
#[derive(Clone)]
struct Tampered {
    inner: Stepped<MemoryStore>,
    how: Arc<How>,
}

#[derive(Default)]
struct How {
    /// The ledger seems never to change: whoever believes it sees no gap.
    lies: AtomicBool,
    lie: Mutex<Option<Slot>>,
    /// The next so many changes of the ledger fail.
    fail_ledger: AtomicUsize,
    is_away: AtomicBool,
    ledger_writes: AtomicU64,
}

impl Tampered {
    fn new(clock: &Clock) -> Self {
        Self { inner: Stepped::new(MemoryStore::new(clock.clone())), how: Arc::default() }
    }

    /// The same store, as one process reaches it.
    fn end(&self) -> Self {
        Self { inner: self.inner.clone(), how: Arc::default() }
    }

    fn is_away(&self) -> Result<(), Error> {
        match self.how.is_away.load(Ordering::SeqCst) {
            true => Err(Error::unavailable("the store is away", io::Error::other("as told"))),
            false => Ok(()),
        }
    }

    /// As a server that has no room forgets it; returns whether it was there.
    async fn evict_the_ledger(&self) -> bool {
        let ledger = "test:2:ledger";
        let found = self.inner.get_many(&[ledger], &[]).await.unwrap();
        self.inner.remove_many(&[ledger], Duration::ZERO).await.unwrap();
        found.entries[0].entry.is_some()
    }
}

fn is_ledger(name: &str) -> bool {
    name.ends_with(":ledger")
}

impl Store for Tampered {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.is_away()?;
        if !entries.first().is_some_and(|name| is_ledger(name)) {
            return self.inner.get_many(entries, stamps).await;
        }
        let mut found = self.inner.get_many(entries, stamps).await?;
        if self.how.lies.load(Ordering::SeqCst) && found.entries[0].entry.is_some() {
            found.entries[0] = self.how.lie.lock().unwrap().get_or_insert(found.entries[0].clone()).clone();
        }
        Ok(found)
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        self.is_away()?;
        if !is_ledger(put.name) {
            return self.inner.put_if(put).await;
        }
        self.how.ledger_writes.fetch_add(1, Ordering::SeqCst);
        let less = |left: usize| left.checked_sub(1);
        if self.how.fail_ledger.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Err(Error::unavailable("the ledger fails", io::Error::other("as told")));
        }
        self.inner.put_if(put).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        self.is_away()?;
        self.inner.remove_many(entries, hold).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        self.is_away()?;
        self.inner.restamp(stamps).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.inner.ping().await
    }
}

// ===== a fleet =====

/// Processes that share a store and a bus, in one test. Time is moved by hand, for clock and runtime alike.
struct Fleet {
    clock: Clock,
    store: Tampered,
    bus: MemoryBus,
}

struct Process {
    cache: Texts,
    bus: MemoryBus,
    store: Tampered,
}

impl Fleet {
    fn new() -> Self {
        let clock = Clock::manual();
        Self { store: Tampered::new(&clock), clock, bus: MemoryBus::new() }
    }

    async fn process(&self) -> Process {
        self.process_with(self.bus.end()).await
    }

    async fn process_with(&self, bus: MemoryBus) -> Process {
        let store = self.store.end();
        // What expired is kept, so that to expire is not to remove.
        let builder = Cache::builder("test").clock(self.clock.clone()).stale_if_error(600 * SECOND);
        let builder = builder.remote(store.clone()).remote_timeout(60 * SECOND);
        let cache = builder.bus(bus.clone()).build().await.unwrap();
        settle().await;
        Process { cache, bus, store }
    }

    /// Two processes, long after they were started.
    async fn two(&self) -> (Process, Process) {
        let both = (self.process().await, self.process().await);
        self.pass(3 * SECOND).await;
        both
    }

    async fn pass(&self, time: Duration) {
        let until = self.clock.now().after(time);
        while self.clock.now() < until {
            let step = until.since(self.clock.now()).min(STEP);
            self.clock.advance(step);
            tokio::time::advance(step).await;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Process {
    fn remembers(&self) -> Option<String> {
        self.cache.get_local(&key())
    }

    async fn load(&self, value: &str) -> String {
        let value = value.to_owned();
        let load = || async { Ok::<_, io::Error>(value) };
        let value = self.cache.get_or_load_tagged(&key(), &[TAG], load).await.unwrap();
        settle().await;
        value
    }
}

/// Every way to invalidate the key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Clear,
    Expire,
    ExpireAll,
    ExpireTag,
    Insert,
    Remove,
    Tag,
}

const EVERY_WAY: [Way; 7] =
    [Way::Clear, Way::Expire, Way::ExpireAll, Way::ExpireTag, Way::Insert, Way::Remove, Way::Tag];

impl Way {
    async fn invalidate(self, process: &Process) -> Result<(), Error> {
        match self {
            Self::Clear => process.cache.clear().await,
            Self::Expire => process.cache.expire(&key()).await,
            Self::ExpireAll => process.cache.expire_all().await,
            Self::ExpireTag => process.cache.expire_by_tag(TAG).await,
            Self::Insert => process.cache.insert(&key(), "new".to_owned()).await,
            Self::Remove => process.cache.remove(&key()).await,
            Self::Tag => process.cache.remove_by_tag(TAG).await,
        }
    }
}

/// Lets every task that can run do so, until none can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

// ===== when it works =====

#[tokio::test]
async fn bus_in_memory_keeps_the_contract_of_a_bus() {
    testing::bus::keeps_its_contract(&MemoryBus::new()).await;
    testing::bus::keeps_its_contract(&MemoryBus::new().with_max_message(128)).await;
}

#[tokio::test(start_paused = true)]
async fn invalidation_is_heard_by_other_processes_without_any_time_passing() {
    for way in EVERY_WAY {
        let fleet = Fleet::new();
        let (one, two) = fleet.two().await;
        one.load("old").await;
        two.load("unused").await;
        way.invalidate(&one).await.unwrap();
        settle().await;
        assert_eq!(two.remembers(), None, "{way:?}");
        assert_eq!(two.load("new").await, "new", "{way:?}");
        assert_eq!((one.cache.stats().bus.gaps, two.cache.stats().bus.gaps), (0, 0), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn memory_answers_for_as_long_as_an_entry_lives_and_asks_the_remote_tier_nothing() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("value").await;
    two.load("unused").await;
    let before = two.cache.stats();
    for _ in 0..40 {
        fleet.pass(5 * SECOND).await;
        assert_eq!((one.remembers().as_deref(), two.remembers().as_deref()), (Some("value"), Some("value")));
    }
    assert_eq!((two.cache.stats().loads, two.cache.stats().remote_hits), (before.loads, before.remote_hits));
    fleet.pass(100 * SECOND).await;
    assert_eq!((one.remembers(), two.remembers()), (None, None), "no life is gained");
}

#[tokio::test(start_paused = true)]
async fn load_that_runs_while_another_process_invalidates_is_not_remembered() {
    for way in EVERY_WAY {
        let fleet = Fleet::new();
        let (one, two) = fleet.two().await;
        let (release, released) = oneshot::channel();
        let cache = two.cache.clone();
        let loading = tokio::spawn(async move {
            let load = move || async move { Ok::<String, io::Error>(released.await.unwrap()) };
            cache.get_or_load_tagged(&key(), &[TAG], load).await
        });
        settle().await;
        way.invalidate(&one).await.unwrap();
        settle().await;
        release.send("old".to_owned()).unwrap();
        assert_eq!(loading.await.unwrap().unwrap(), "old", "{way:?}: who came before may have it");
        settle().await;
        assert_eq!(two.remembers(), None, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn answer_of_the_remote_tier_that_another_process_overtook_is_not_remembered() {
    for way in EVERY_WAY {
        for by_load in [true, false] {
            let fleet = Fleet::new();
            let (one, two) = fleet.two().await;
            one.load("old").await;
            let mut read = fleet.store.inner.hold(Step::ReadAnswered);
            let cache = two.cache.clone();
            let reading = tokio::spawn(async move {
                if by_load {
                    let load = || async { Ok::<_, io::Error>("loaded".to_owned()) };
                    cache.get_or_load_tagged(&key(), &[TAG], load).await.ok()
                } else {
                    cache.get(&key()).await
                }
            });
            read.reached().await;
            way.invalidate(&one).await.unwrap();
            settle().await;
            read.go_on();
            reading.await.unwrap();
            settle().await;
            assert_ne!(two.remembers().as_deref(), Some("old"), "{way:?}, by load: {by_load}");
        }
    }
}

/// Where an insertion is between the store's answer and its own memory, with somebody else's code to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn removal_that_is_heard_before_an_insertion_is_remembered_is_not_undone_by_it() {
    type Stop = (std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);
    let clock = Clock::system();
    let (store, bus) = (MemoryStore::new(clock.clone()), MemoryBus::new());
    let stop: Arc<Mutex<Option<Stop>>> = Arc::default();
    let stops = Arc::clone(&stop);
    let weigher = move |_: &String| {
        if let Some((reached, go_on)) = stops.lock().unwrap().take() {
            reached.send(()).unwrap();
            go_on.recv().unwrap();
        }
        0
    };
    let builder = || Texts::builder("test").clock(clock.clone());
    let one = builder().capacity_bytes(1 << 20, weigher).remote(store.clone()).bus(bus.end());
    let two = builder().remote(store.clone()).bus(bus.end());
    let (one, two) = (one.build().await.unwrap(), two.build().await.unwrap());
    until("both listen", async || (one.stats().bus.connected && two.stats().bus.connected).then_some(()))
        .await;
    let ((reached, is_there), (go_on, goes_on)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    *stop.lock().unwrap() = Some((reached, goes_on));
    let inserting = tokio::spawn({
        let one = one.clone();
        async move { one.insert(&key(), "old".to_owned()).await }
    });
    tokio::task::spawn_blocking(move || is_there.recv().unwrap()).await.unwrap();
    let heard = one.stats().bus.received;
    two.remove(&key()).await.unwrap();
    until("it is heard", async || (one.stats().bus.received > heard).then_some(())).await;
    go_on.send(()).unwrap();
    inserting.await.unwrap().unwrap();
    assert_eq!(one.get_local(&key()), None);
    assert_eq!(one.get(&key()).await, None);
}

#[tokio::test(start_paused = true)]
async fn many_invalidations_at_once_are_few_announcements_and_few_messages() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    for index in 0..1_000_u32 {
        two.cache.insert(&Key::public(&index.to_le_bytes()), "value".to_owned()).await.unwrap();
    }
    settle().await;
    let sent = one.cache.stats().bus.sent;
    let announced = one.store.how.ledger_writes.load(Ordering::SeqCst);
    let removals: Vec<_> = (0..1_000_u32)
        .map(|index| {
            let cache = one.cache.clone();
            tokio::spawn(async move { cache.remove(&Key::public(&index.to_le_bytes())).await })
        })
        .collect();
    for removal in removals {
        removal.await.unwrap().unwrap();
    }
    settle().await;
    let left =
        (0..1_000_u32).filter(|index| two.cache.get_local(&Key::public(&index.to_le_bytes())).is_some());
    assert_eq!(left.count(), 0);
    let sent = one.cache.stats().bus.sent - sent;
    let announced = one.store.how.ledger_writes.load(Ordering::SeqCst) - announced;
    assert!(sent <= 10 && announced <= 10, "{sent} messages, {announced} announcements");
    assert_eq!(two.cache.stats().bus.gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn processes_that_invalidate_all_at_once_leave_no_gap() {
    let fleet = Fleet::new();
    let mut fleet_of_four = Vec::new();
    for _ in 0..4 {
        fleet_of_four.push(fleet.process().await);
    }
    fleet.pass(3 * SECOND).await;
    for round in 0..50_u32 {
        let tasks: Vec<_> = fleet_of_four
            .iter()
            .flat_map(|process| (0..5_u32).map(|number| (process.cache.clone(), number)))
            .map(|(cache, number)| {
                tokio::spawn(async move {
                    let key = (round * 5 + number).to_le_bytes();
                    cache.insert(&Key::public(&key), "value".to_owned()).await
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        fleet.pass(STEP).await;
    }
    fleet.pass(5 * SECOND).await;
    for process in &fleet_of_four {
        assert_eq!(process.cache.stats().bus.gaps, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn invalidation_too_long_for_a_message_makes_others_look_again() {
    let fleet = Fleet::new();
    let bus = MemoryBus::new().with_max_message(128);
    let (one, two) = (fleet.process_with(bus.end()).await, fleet.process_with(bus.end()).await);
    fleet.pass(3 * SECOND).await;
    let long = "x".repeat(1_000);
    let long = Key::public(&long);
    one.cache.insert(&long, "old".to_owned()).await.unwrap();
    two.load("value").await;
    assert_eq!(two.cache.get(&long).await.as_deref(), Some("old"));
    one.cache.remove(&long).await.unwrap();
    fleet.pass(STALENESS).await;
    assert_eq!(two.cache.get(&long).await, None);
    assert_eq!((two.cache.stats().bus.gaps, two.cache.stats().bus.doubts), (0, 2));
    assert_eq!(two.cache.get(&key()).await.as_deref(), Some("value"), "looked up again");
}

#[tokio::test]
async fn hit_with_a_bus_allocates_nothing() {
    let fleet = Fleet::new();
    let one = fleet.process().await;
    one.load("value").await;
    let cache: Cache<Arc<str>> =
        Cache::builder("test").remote(fleet.store.end()).bus(fleet.bus.end()).build().await.unwrap();
    cache.insert(&Key::public("shared"), Arc::<str>::from("value")).await.unwrap();
    let hit = || assert!(cache.get_local(&Key::public("shared")).is_some());
    (0..1_000).for_each(|_| hit());
    let least = (0..100).map(|_| allocation_counter::measure(hit).count_total).min();
    assert_eq!(least, Some(0));
}

#[tokio::test(start_paused = true)]
async fn listening_ends_with_the_last_clone_and_what_waits_is_published() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    two.load("unused").await;
    assert_eq!(fleet.bus.listeners(), 2);
    let clone = one.cache.clone();
    drop(one);
    settle().await;
    assert_eq!(fleet.bus.listeners(), 2);
    clone.remove(&key()).await.unwrap();
    drop(clone);
    settle().await;
    assert_eq!(fleet.bus.listeners(), 1);
    assert_eq!(two.remembers(), None);
    drop(two);
    settle().await;
    assert_eq!(fleet.bus.listeners(), 0, "though no message woke it");
}

#[tokio::test]
async fn bus_that_carries_too_little_is_an_error_that_names_it() {
    let fleet = Fleet::new();
    let builder = Cache::<String>::builder("test").remote(fleet.store.end());
    let error = builder.bus(MemoryBus::new().with_max_message(127)).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().starts_with("bus: "), "{error}");
}

// ===== when it does not: law 8 =====

/// Everything that can be wrong with a bus while something is invalidated.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The message is lost, and nobody is told.
    Lost,
    /// It arrives with another bit in it.
    Damaged,
    /// The sender cannot publish.
    Refused,
    /// The receiver's subscription is silent, and looks alive.
    Deaf,
    /// It has ended, and cannot be made anew.
    Disconnected,
    /// The message comes too late to be of use.
    Late,
    /// The whole bus was away from the start.
    NeverThere,
}

const EVERY_FAULT: [Fault; 7] = [
    Fault::Lost,
    Fault::Damaged,
    Fault::Refused,
    Fault::Deaf,
    Fault::Disconnected,
    Fault::Late,
    Fault::NeverThere,
];

impl Fault {
    fn begin(self, sender: &MemoryBus, receiver: &MemoryBus) {
        match self {
            // The others are signs of life, which a process sends when it finds a gap.
            Self::Lost => sender.lose(1),
            Self::Damaged => sender.damage(1),
            Self::Refused => sender.refuse(true),
            Self::Deaf => receiver.deafen(true),
            Self::Disconnected => {
                receiver.refuse(true);
                receiver.disconnect();
            }
            Self::Late => receiver.hold(),
            Self::NeverThere => {
                for bus in [sender, receiver] {
                    bus.refuse(true);
                    bus.disconnect();
                }
            }
        }
    }

    fn end(sender: &MemoryBus, receiver: &MemoryBus) {
        for bus in [sender, receiver] {
            bus.refuse(false);
            bus.deafen(false);
            bus.release();
        }
    }
}

/// What the other process remembers once the bound is over.
async fn remembered_after(way: Way, fault: Fault, lies: bool) -> Option<String> {
    let fleet = Fleet::new();
    let (sender, receiver) = (fleet.bus.end(), fleet.bus.end());
    if fault == Fault::NeverThere {
        fault.begin(&sender, &receiver);
    }
    let (one, two) = (fleet.process_with(sender).await, fleet.process_with(receiver).await);
    two.store.how.lies.store(lies, Ordering::SeqCst);
    fleet.pass(3 * SECOND).await;
    one.load("old").await;
    two.load("unused").await;
    fleet.pass(20 * SECOND).await;
    assert_eq!(two.load("not asked for").await, "old");
    fault.begin(&one.bus, &two.bus);
    way.invalidate(&one).await.unwrap();
    fleet.pass(STALENESS - STEP).await;
    fleet.pass(STEP).await;
    let remembered = two.remembers();
    if lies {
        return remembered;
    }
    // And it comes back to what it was before.
    Fault::end(&one.bus, &two.bus);
    fleet.pass(60 * SECOND).await;
    let (gaps, looks) = (two.cache.stats().bus.gaps, two.cache.stats().remote_misses);
    two.load("newer").await;
    fleet.pass(60 * SECOND).await;
    assert!(two.remembers().is_some() && two.cache.stats().bus.connected, "{way:?}, {fault:?}");
    let stats = two.cache.stats();
    assert_eq!(stats.bus.gaps, gaps, "{way:?}, {fault:?}: healed");
    assert!(stats.remote_misses <= looks + 1, "{way:?}, {fault:?}: memory answers again");
    Way::Tag.invalidate(&one).await.unwrap();
    settle().await;
    if way != Way::Insert {
        assert_eq!(two.remembers(), None, "{way:?}, {fault:?}: and invalidations are heard again");
    }
    remembered
}

#[tokio::test(start_paused = true)]
async fn invalidation_that_the_bus_does_not_deliver_is_not_survived_beyond_the_staleness() {
    for way in EVERY_WAY {
        for fault in EVERY_FAULT {
            let remembered = remembered_after(way, fault, false).await;
            assert_ne!(remembered.as_deref(), Some("old"), "{way:?}, {fault:?}");
        }
    }
}

/// The test above can fail: whoever believes a ledger that never changes serves what is old.
#[tokio::test(start_paused = true)]
async fn without_the_ledger_the_same_faults_are_stale_reads() {
    for way in EVERY_WAY {
        for fault in EVERY_FAULT {
            let remembered = remembered_after(way, fault, true).await;
            assert_eq!(remembered.as_deref(), Some("old"), "{way:?}, {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn messages_late_repeated_and_in_reverse_are_no_gap() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    two.load("unused").await;
    two.bus.repeat(true);
    for _ in 0..20 {
        two.bus.hold();
        for way in EVERY_WAY {
            way.invalidate(&one).await.unwrap();
            fleet.pass(STEP).await;
        }
        two.bus.release();
        settle().await;
        assert_eq!(two.remembers(), None);
        two.load("newest").await;
        fleet.pass(SECOND).await;
    }
    fleet.pass(10 * SECOND).await;
    assert_eq!(two.cache.stats().bus.gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn dead_bus_costs_nothing_while_nothing_is_invalidated() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("value").await;
    two.load("unused").await;
    let before = two.cache.stats().remote_hits;
    Fault::NeverThere.begin(&one.bus, &two.bus);
    fleet.pass(60 * SECOND).await;
    assert_eq!(two.remembers().as_deref(), Some("value"));
    assert_eq!((two.cache.stats().remote_hits, two.cache.stats().bus.connected), (before, false));
}

#[tokio::test(start_paused = true)]
async fn ledger_that_is_evicted_again_and_again_hides_no_lost_message() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    for round in 0..3 {
        assert!(fleet.store.evict_the_ledger().await);
        fleet.pass(20 * SECOND).await;
        one.load("old").await;
        two.load("unused").await;
        fleet.pass(20 * SECOND).await;
        assert!(two.remembers().is_some(), "{round}: it was made anew");
        assert!(fleet.store.evict_the_ledger().await);
        one.bus.lose(1);
        Way::Tag.invalidate(&one).await.unwrap();
        assert!(fleet.store.evict_the_ledger().await);
        fleet.pass(STALENESS).await;
        assert_eq!(two.remembers(), None, "{round}");
    }
}

#[tokio::test(start_paused = true)]
async fn process_that_starts_between_an_announcement_and_its_invalidation_trusts_nothing_from_then() {
    let fleet = Fleet::new();
    let one = fleet.process().await;
    one.load("old").await;
    let mut write = fleet.store.inner.hold(Step::BeforeInvalidation);
    let cache = one.cache.clone();
    let removing = tokio::spawn(async move { cache.remove(&key()).await });
    write.reached().await;
    let two = fleet.process().await;
    fleet.pass(SECOND).await;
    assert_eq!(two.load("unused").await, "old", "not removed there yet");
    one.bus.lose(1);
    write.go_on();
    removing.await.unwrap().unwrap();
    fleet.pass(STALENESS).await;
    assert_eq!(two.remembers(), None);
    assert_eq!(two.cache.stats().bus.gaps, 0, "it began with a ledger that had been changed");
}

#[tokio::test(start_paused = true)]
async fn value_read_between_an_announcement_and_its_invalidation_is_not_trusted_for_long() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    two.load("unused").await;
    let mut write = fleet.store.inner.hold(Step::BeforeInvalidation);
    let cache = one.cache.clone();
    let removing = tokio::spawn(async move { cache.remove(&key()).await });
    write.reached().await;
    fleet.pass(SECOND).await;
    assert_eq!(two.load("unused").await, "old", "not removed there yet");
    one.bus.lose(10);
    write.go_on();
    removing.await.unwrap().unwrap();
    fleet.pass(STALENESS).await;
    assert_eq!(two.remembers(), None);
}

#[tokio::test(start_paused = true)]
async fn slow_invalidation_does_not_hold_up_those_after_it() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    two.load("unused").await;
    let mut write = fleet.store.inner.hold(Step::BeforeInvalidation);
    let cache = one.cache.clone();
    let slow = tokio::spawn(async move { cache.remove(&Key::public("another")).await });
    write.reached().await;
    Way::Tag.invalidate(&one).await.unwrap();
    settle().await;
    assert_eq!(two.remembers(), None);
    write.go_on();
    slow.await.unwrap().unwrap();
    fleet.pass(10 * SECOND).await;
    assert_eq!((one.cache.stats().bus.gaps, two.cache.stats().bus.gaps), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn own_message_that_comes_back_late_takes_nothing_away() {
    let fleet = Fleet::new();
    let (one, _two) = fleet.two().await;
    for way in EVERY_WAY {
        one.bus.hold();
        way.invalidate(&one).await.unwrap();
        one.load("new").await;
        one.bus.release();
        settle().await;
        assert_eq!(one.remembers().as_deref(), Some("new"), "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn process_that_cannot_look_at_the_ledger_trusts_its_memory_no_longer_than_without_a_bus() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    two.load("unused").await;
    fleet.pass(20 * SECOND).await;
    two.store.how.is_away.store(true, Ordering::SeqCst);
    two.bus.deafen(true);
    Way::Remove.invalidate(&one).await.unwrap();
    fleet.pass(STALENESS).await;
    assert_eq!(two.remembers(), None);
    assert_eq!(two.load("from the loader").await, "from the loader");
}

#[tokio::test(start_paused = true)]
async fn invalidation_whose_announcement_failed_is_announced_again_or_owed() {
    for way in EVERY_WAY {
        for failures in [1, 2] {
            let fleet = Fleet::new();
            let (one, two) = fleet.two().await;
            one.load("old").await;
            two.load("unused").await;
            fleet.pass(20 * SECOND).await;
            one.store.how.fail_ledger.store(failures, Ordering::SeqCst);
            // And the messages about it are lost as well.
            one.bus.lose(10);
            let done = way.invalidate(&one).await;
            settle().await;
            assert_eq!(two.remembers().as_deref(), Some("old"), "{way:?}");
            if failures == 2 {
                done.unwrap_err();
                // Paid by the next beat.
                fleet.pass(STALENESS / 4).await;
            } else {
                done.unwrap();
            }
            fleet.pass(STALENESS).await;
            assert_ne!(two.remembers().as_deref(), Some("old"), "{way:?}, {failures}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn invalidation_the_store_was_not_told_is_told_to_all_when_it_is_paid() {
    for way in EVERY_WAY {
        let fleet = Fleet::new();
        let (one, two) = fleet.two().await;
        one.load("old").await;
        two.load("unused").await;
        one.store.how.is_away.store(true, Ordering::SeqCst);
        way.invalidate(&one).await.unwrap_err();
        settle().await;
        assert_eq!(two.remembers(), None, "{way:?}: told all the same");
        assert_eq!(two.load("unused").await, "old", "{way:?}: it is in the store still");
        one.store.how.is_away.store(false, Ordering::SeqCst);
        let doubts = two.cache.stats().bus.doubts;
        fleet.pass(30 * SECOND).await;
        assert_eq!(two.cache.stats().bus.doubts, doubts + 1, "{way:?}: paid by a beat, once");
        assert_ne!(two.load("new").await, "old", "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalidation_slower_than_its_announcement_covers_is_announced_again() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    let mut write = fleet.store.inner.hold(Step::BeforeInvalidation);
    let cache = one.cache.clone();
    let removing = tokio::spawn(async move { cache.remove(&key()).await });
    write.reached().await;
    // Long enough for the others to find the gap, and to begin to trust again.
    fleet.pass(20 * SECOND).await;
    assert_eq!(two.load("unused").await, "old", "not removed there yet");
    fleet.pass(20 * SECOND).await;
    assert_eq!(two.remembers().as_deref(), Some("old"));
    // The messages of both announcements, which may be one.
    one.bus.lose(2);
    write.go_on();
    removing.await.unwrap().unwrap();
    fleet.pass(STALENESS).await;
    assert_eq!(two.remembers(), None);
}

#[tokio::test(start_paused = true)]
async fn subscription_that_went_silent_is_made_anew() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    assert_eq!(two.bus.subscriptions(), 1);
    fleet.pass(300 * SECOND).await;
    assert_eq!(two.bus.subscriptions(), 1, "not for being quiet");
    two.bus.deafen(true);
    fleet.pass(60 * SECOND).await;
    assert!(two.bus.subscriptions() > 1 && !two.cache.stats().bus.connected);
    two.bus.deafen(false);
    fleet.pass(10 * SECOND).await;
    assert!(two.cache.stats().bus.connected);
    two.load("old").await;
    Way::Tag.invalidate(&one).await.unwrap();
    settle().await;
    assert_eq!(two.remembers(), None);
}

#[tokio::test(start_paused = true)]
async fn bus_that_goes_and_comes_back_is_one_line_each() {
    let logs = Logs::default();
    // For all threads: a line that another test came upon where nobody listens would be silent for good.
    tracing::subscriber::set_global_default(logs.clone()).unwrap();
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    two.load("unused").await;
    one.bus.refuse(true);
    for _ in 0..20 {
        Way::Tag.invalidate(&one).await.unwrap();
        Way::Tag.invalidate(&two).await.unwrap();
        fleet.pass(5 * SECOND).await;
    }
    assert_eq!(logs.lines(), ["bus takes no messages: other processes find out by the remote tier"]);
    assert_eq!(one.bus.subscriptions(), 1, "it hears the others");
    one.bus.refuse(false);
    fleet.pass(20 * SECOND).await;
    assert_eq!(logs.lines()[1..], ["bus takes messages again"]);
    two.bus.refuse(true);
    two.bus.disconnect();
    fleet.pass(SECOND).await;
    assert_eq!(logs.lines()[2..], ["bus is away: what others invalidate is found out by the remote tier"]);
    fleet.pass(60 * SECOND).await;
    two.bus.refuse(false);
    fleet.pass(60 * SECOND).await;
    assert_eq!(logs.lines()[3..], ["bus is back"]);
}

#[tokio::test(start_paused = true)]
async fn strangers_on_the_channel_change_nothing() {
    use mcp_perf::cache::Bus;
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("value").await;
    two.load("unused").await;
    let mut random = fastrand::Rng::with_seed(5);
    for length in (0..2_000).step_by(7) {
        let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        fleet.bus.publish("test:2:bus1", bytes.into()).await.unwrap();
    }
    fleet.pass(20 * SECOND).await;
    assert_eq!(two.remembers().as_deref(), Some("value"));
    assert_eq!(two.cache.stats().bus.gaps, 0);
}

/// Keeps the messages of this crate that an operator sees, and the thread, which is the test, they came from.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<(ThreadId, String)>>>);

impl Logs {
    fn lines(&self) -> Vec<String> {
        let ours = |(of, line): &(ThreadId, String)| (*of == thread::current().id()).then(|| line.clone());
        self.0.lock().unwrap().iter().filter_map(ours).collect()
    }
}

impl tracing::Subscriber for Logs {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mcp_perf") && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push((thread::current().id(), message.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

// ===== histories =====

/// What the source of truth says, and since when it is to be heard everywhere.
#[derive(Default)]
struct Truth {
    now: HashMap<usize, u64>,
    /// Of each key, when the invalidation of what is older than a version was done.
    invalidated: Vec<(Instant, usize, u64)>,
}

impl Truth {
    /// The oldest version that may be served.
    fn floor(&self, key: usize, now: Instant) -> u64 {
        let over = |done: Instant| done.after(STALENESS) <= now;
        let versions = self.invalidated.iter().filter(|(done, of, _)| *of == key && over(*done));
        versions.map(|(_, _, version)| *version).max().unwrap_or(0)
    }
}

const KEYS: usize = 6;

fn name(index: usize) -> String {
    format!("key {index}")
}

/// What the memory of some process would serve now, and must not.
fn served_too_old(processes: &[Process], truth: &Truth, now: Instant) -> Vec<String> {
    let mut stale = Vec::new();
    for (number, process) in processes.iter().enumerate() {
        for key in 0..KEYS {
            let Some(served) = process.cache.get_local(&Key::public(&name(key))) else { continue };
            let floor = truth.floor(key, now);
            if served.parse::<u64>().unwrap() < floor {
                stale.push(format!("process {number} serves {served}, where {floor} is the oldest"));
            }
        }
    }
    stale
}

/// Runs a history of so many steps on four processes with faults, and returns what was served that was too old.
async fn history(seed: u64, steps: usize, lies: bool) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let fleet = Fleet::new();
    let mut processes = Vec::new();
    for _ in 0..4 {
        let process = fleet.process().await;
        process.store.how.lies.store(lies, Ordering::SeqCst);
        processes.push(process);
    }
    let truth = Arc::new(Mutex::new(Truth::default()));
    let mut stale = Vec::new();
    for step in 0..steps {
        let process = &processes[random.usize(..processes.len())];
        let index = random.usize(..KEYS);
        match random.u32(..100) {
            0..50 => {
                let (truth, cache) = (Arc::clone(&truth), process.cache.clone());
                let takes = Duration::from_millis(random.u64(0..400));
                tokio::spawn(async move {
                    let load = move || async move {
                        let version = *truth.lock().unwrap().now.entry(index).or_default();
                        tokio::time::sleep(takes).await;
                        Ok::<_, io::Error>(version.to_string())
                    };
                    let tag = (index % 2).to_string();
                    let _ = cache.get_or_load_tagged(&Key::public(&name(index)), &[&tag], load).await;
                });
            }
            50..75 => {
                let ways = [Way::Remove, Way::Expire, Way::Tag, Way::ExpireTag, Way::Clear, Way::Insert];
                let way = random.choice(ways).unwrap();
                let changed: Vec<usize> = match way {
                    Way::Clear | Way::ExpireAll => (0..KEYS).collect(),
                    Way::Expire | Way::Insert | Way::Remove => vec![index],
                    Way::ExpireTag | Way::Tag => (0..KEYS).filter(|key| key % 2 == index % 2).collect(),
                };
                for key in &changed {
                    *truth.lock().unwrap().now.entry(*key).or_default() += 1;
                }
                let version = truth.lock().unwrap().now[&index];
                let key = name(index);
                let tag = (index % 2).to_string();
                let done = match way {
                    Way::Clear => process.cache.clear().await,
                    Way::Expire => process.cache.expire(&Key::public(&key)).await,
                    Way::ExpireAll => process.cache.expire_all().await,
                    Way::ExpireTag => process.cache.expire_by_tag(&tag).await,
                    Way::Insert => {
                        let tags = [tag.as_str()];
                        process.cache.insert_tagged(&Key::public(&key), &tags, version.to_string()).await
                    }
                    Way::Remove => process.cache.remove(&Key::public(&key)).await,
                    Way::Tag => process.cache.remove_by_tag(&tag).await,
                };
                if done.is_ok() {
                    let (mut truth, now) = (truth.lock().unwrap(), fleet.clock.now());
                    for key in changed {
                        let version = truth.now[&key];
                        truth.invalidated.push((now, key, version));
                    }
                }
            }
            75..85 => {
                random.choice(&EVERY_FAULT[..6]).unwrap().begin(&process.bus, &process.bus);
            }
            85..88 => Fault::end(&process.bus, &process.bus),
            88..90 => processes.iter().for_each(|process| Fault::end(&process.bus, &process.bus)),
            // Who could not announce something has it removed, too, and it is not there then.
            90 => drop(fleet.store.evict_the_ledger().await),
            91..93 => process.store.how.fail_ledger.store(random.usize(1..4), Ordering::SeqCst),
            _ => process.store.how.is_away.store(random.u8(..5) == 0, Ordering::SeqCst),
        }
        let time = if random.u32(..30) == 0 { 6_000 } else { random.u64(0..600) };
        let until = fleet.clock.now().after(Duration::from_millis(time));
        loop {
            let now = fleet.clock.now();
            let too_old = served_too_old(&processes, &truth.lock().unwrap(), now);
            stale.extend(too_old.into_iter().map(|what| format!("seed {seed}, step {step}: {what}")));
            if now >= until {
                break;
            }
            fleet.pass(until.since(now).min(4 * STEP)).await;
        }
        // The oldest say nothing that younger ones do not.
        let mut truth = truth.lock().unwrap();
        let many = truth.invalidated.len().saturating_sub(200);
        truth.invalidated.drain(..many);
    }
    stale
}

#[tokio::test(start_paused = true)]
async fn no_history_with_faults_serves_anything_older_than_the_staleness() {
    for seed in 0..8 {
        let stale = history(seed, 400, false).await;
        assert!(stale.is_empty(), "{} of them: {:?}", stale.len(), &stale[..stale.len().min(5)]);
    }
}

/// The checker can fail.
#[tokio::test(start_paused = true)]
async fn history_with_a_ledger_that_lies_is_found_to_serve_old_values() {
    for seed in 0..4 {
        assert!(!history(seed, 400, true).await.is_empty(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn value_that_was_loaded_by_force_is_everybodys_within_the_staleness() {
    let fleet = Fleet::new();
    let (one, two) = fleet.two().await;
    one.load("old").await;
    two.load("unused").await;
    assert_eq!(two.remembers().as_deref(), Some("old"));
    let new = |_| async { Ok::<_, io::Error>("new".to_owned()) };
    one.cache.refresh(&key(), &[TAG], new).await.unwrap();
    settle().await;
    fleet.pass(STEP).await;
    assert_eq!(two.load("unused").await, "new");
}

/// A refresh that is held until its source "was read".
fn held_refresh(
    process: &Process,
    value: &str,
) -> (oneshot::Sender<()>, tokio::task::JoinHandle<Result<String, Error>>) {
    let (go_on, may_go_on) = oneshot::channel();
    let (cache, value) = (process.cache.clone(), value.to_owned());
    let load = |_| async move {
        may_go_on.await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(value)
    };
    (go_on, tokio::spawn(async move { cache.refresh(&key(), &[TAG], load).await }))
}

/// What is heard from others while a value is loaded by force may be older than that.
#[tokio::test(start_paused = true)]
async fn refresh_is_not_undone_by_what_another_process_read_before_it() {
    for writes_through in [false, true] {
        let fleet = Fleet::new();
        let (one, two) = fleet.two().await;
        one.load("old").await;
        let (early_may, early) = held_refresh(&two, "early");
        settle().await;
        let (new_may, new) = held_refresh(&one, "new");
        settle().await;
        if writes_through {
            two.cache.insert(&key(), "early".to_owned()).await.unwrap();
        }
        early_may.send(()).unwrap();
        early.await.unwrap().unwrap();
        settle().await;
        new_may.send(()).unwrap();
        assert_eq!(new.await.unwrap().unwrap(), "new");
        settle().await;
        for process in [&one, &two] {
            assert_ne!(process.cache.get(&key()).await.as_deref(), Some("early"));
        }
        fleet.pass(STALENESS).await;
        for process in [&one, &two] {
            assert_ne!(process.cache.get(&key()).await.as_deref(), Some("early"));
        }
        assert_eq!((one.load("newer").await, two.load("unused").await), ("newer".into(), "newer".into()));
        fleet.pass(STALENESS).await;
        assert_eq!((one.remembers().as_deref(), two.remembers().as_deref()), (Some("newer"), Some("newer")));
        assert_eq!((one.cache.stats().owed, two.cache.stats().owed), (0, 0));
    }
}
