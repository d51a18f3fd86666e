//! What the remote tier could not be told: it keeps nobody from what is not concerned, it is told as soon as the tier
//! takes it, and until then no read undoes it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, Found, Key, Loaded, Put, Restamp, Store, Written},
    clock::Clock,
    testing::{Calls, Fault, FaultStore, MemoryStore},
};
use support::{
    stepped::{Held, Step, Stepped},
    wait::settle,
};
use tokio::sync::Notify;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The default of `max_staleness`.
const STALENESS: Duration = Duration::from_secs(5);
/// The longest pause of a debt, and the fifth that it may be spread by.
const LONGEST_PAUSE: Duration = Duration::from_secs(12);
const TAG: &str = "tag";

type Texts = Cache<String>;

/// A store that will not take certain names, nor a call in which there is one of them.
#[derive(Clone)]
struct Picky {
    store: Stepped<MemoryStore>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    refuses_all: AtomicBool,
    /// The names of the next invalidation are refused from then on.
    refuses_next: AtomicBool,
    refused: Mutex<HashSet<String>>,
    refusals: AtomicUsize,
    reads: AtomicUsize,
    /// How many names each removal had that was made.
    removals: Mutex<Vec<usize>>,
    /// The names of the stamps that were changed.
    restamped: Mutex<Vec<String>>,
    puts: AtomicUsize,
    refuses_puts: AtomicBool,
}

impl Picky {
    fn new(clock: &Clock) -> Self {
        Self { store: Stepped::new(MemoryStore::new(clock.clone())), seen: Arc::default() }
    }

    /// The same store, as another process reaches it.
    fn end(&self) -> Self {
        Self { store: self.store.clone(), seen: Arc::default() }
    }

    fn refuse_all(&self, refuses: bool) {
        self.seen.refuses_all.store(refuses, Ordering::SeqCst);
    }

    fn refuse_next(&self) {
        self.seen.refuses_next.store(true, Ordering::SeqCst);
    }

    fn take_everything(&self) {
        self.seen.refuses_next.store(false, Ordering::SeqCst);
        self.seen.refused.lock().unwrap().clear();
    }

    fn refusals(&self) -> usize {
        self.seen.refusals.load(Ordering::SeqCst)
    }

    fn reads(&self) -> usize {
        self.seen.reads.load(Ordering::SeqCst)
    }

    fn judge(&self, names: &[&str]) -> Result<(), Error> {
        let mut refused = self.seen.refused.lock().unwrap();
        if self.seen.refuses_next.swap(false, Ordering::SeqCst) {
            refused.extend(names.iter().map(ToString::to_string));
        }
        if !self.seen.refuses_all.load(Ordering::SeqCst) && !names.iter().any(|name| refused.contains(*name))
        {
            return Ok(());
        }
        self.seen.refusals.fetch_add(1, Ordering::SeqCst);
        Err(Error::refused("the test's store will not take it", io::Error::other("as it was told")))
    }
}

impl Store for Picky {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.seen.reads.fetch_add(1, Ordering::SeqCst);
        self.store.get_many(entries, stamps).await
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        self.seen.puts.fetch_add(1, Ordering::SeqCst);
        if self.seen.refuses_puts.load(Ordering::SeqCst) {
            return Err(Error::refused("the test's store is full", io::Error::other("as it was told")));
        }
        self.store.put_if(put).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        self.judge(entries)?;
        self.seen.removals.lock().unwrap().push(entries.len());
        self.store.remove_many(entries, hold).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        self.judge(&stamps.iter().map(|change| change.name).collect::<Vec<_>>())?;
        self.store.restamp(stamps).await?;
        self.seen.restamped.lock().unwrap().extend(stamps.iter().map(|change| change.name.to_owned()));
        Ok(())
    }

    async fn ping(&self) -> Result<(), Error> {
        self.store.ping().await
    }
}

async fn node(clock: &Clock, store: impl Store) -> Texts {
    Cache::builder("test").clock(clock.clone()).remote(store).build().await.unwrap()
}

async fn load(cache: &Texts, name: &str, tags: &[&str], value: &'static str) -> String {
    let load = move || async move { Ok::<_, io::Error>(value.to_owned()) };
    let value = cache.get_or_load_tagged(&Key::public(name), tags, load).await.unwrap();
    settle().await;
    value
}

/// Asks for something again and again, for so long.
async fn ask(cache: &Texts, name: &str, time: Duration) {
    const PAUSE: Duration = Duration::from_millis(20);
    for _ in 0..time.as_millis() / PAUSE.as_millis() {
        cache.get(&Key::public(name)).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Each offer is a trip, and turns the value into bytes first.
#[tokio::test(start_paused = true)]
async fn store_that_is_full_is_offered_what_was_loaded_every_five_seconds() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let cache = node(&clock, store.clone()).await;
    let puts = || store.seen.puts.load(Ordering::SeqCst);
    store.seen.refuses_puts.store(true, Ordering::SeqCst);
    for name in 0..20 {
        load(&cache, &name.to_string(), &[], "value").await;
    }
    assert_eq!(puts(), 2, "the first may have been one that it does not take");
    tokio::time::sleep(Duration::from_secs(5)).await;
    for name in 20..40 {
        load(&cache, &name.to_string(), &[], "value").await;
    }
    assert_eq!(puts(), 3);
    store.seen.refuses_puts.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    for name in 40..60 {
        load(&cache, &name.to_string(), &[], "value").await;
    }
    assert_eq!(puts(), 23, "it takes them again");
}

#[tokio::test(start_paused = true)]
async fn refused_debt_blocks_only_its_own_key() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.end()).await);
    load(&one, "bad", &[], "old").await;
    load(&one, "good", &["other tag"], "value").await;
    store.refuse_next();
    let refused = one.remove(&Key::public("bad")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    // Memory may not answer without the remote tier any more.
    tokio::time::sleep(STALENESS).await;
    for _ in 0..100 {
        assert_eq!(one.get(&Key::public("good")).await.as_deref(), Some("value"));
        assert_eq!(one.get(&Key::public("bad")).await, None);
        tokio::time::sleep(100 * MILLISECOND).await;
    }
    assert_eq!(load(&one, "good", &["other tag"], "unused").await, "value");
    assert_eq!(two.get(&Key::public("bad")).await.as_deref(), Some("old"), "it is there still");

    store.take_everything();
    ask(&one, "good", LONGEST_PAUSE).await;
    assert_eq!(load(&one, "bad", &[], "new").await, "new");
    tokio::time::sleep(STALENESS).await;
    assert_eq!(two.get(&Key::public("bad")).await.as_deref(), Some("new"), "it is shared again");
}

#[tokio::test(start_paused = true)]
async fn debt_is_paid_where_nobody_reads_and_by_the_runtime_that_is_there() {
    let clock = Clock::tokio();
    let faulty = FaultStore::new(MemoryStore::new(clock.clone()), 1);
    let (one, two) = (node(&clock, faulty.clone()).await, node(&clock, faulty.node()).await);
    for away in [SECOND / 10, 60 * SECOND] {
        load(&two, "key", &[TAG], "old").await;
        faulty.cut(Calls::All);
        for _ in 0..10 {
            one.remove_by_tag(TAG).await.unwrap_err();
            one.remove(&Key::public("key")).await.unwrap_err();
        }
        tokio::time::sleep(away).await;
        faulty.join();
        assert!(one.stats().owed > 0);
        tokio::time::sleep(LONGEST_PAUSE).await;
        assert_eq!(one.stats().owed, 0, "after {away:?}");
        assert_eq!(two.get(&Key::public("key")).await, None, "after {away:?}");
    }
}

/// A runtime goes down with a debt, under a cache that outlives it.
#[test]
fn debt_outlives_the_runtime_in_which_it_came_to_be_and_is_paid_in_the_next() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let clock = Clock::system();
    let faulty = FaultStore::new(MemoryStore::new(clock.clone()), 1);
    let first = runtime();
    let one = first.block_on(async {
        let one = node(&clock, faulty.clone()).await;
        faulty.cut(Calls::All);
        one.remove(&Key::public("key")).await.unwrap_err();
        assert_eq!(one.stats().owed, 1);
        one
    });
    drop(first);
    faulty.join();
    assert_eq!(runtime().block_on(one.shutdown(60 * SECOND)), 0);
}

/// Everything that changes what the store answers.
#[derive(Clone, Copy, Debug)]
enum Change {
    Remove,
    Expire,
    RemoveTag,
    Clear,
    Insert,
    Refresh,
}

const EVERY_CHANGE: [Change; 6] =
    [Change::Remove, Change::Expire, Change::RemoveTag, Change::Clear, Change::Insert, Change::Refresh];

impl Change {
    /// The step of the store that it cannot do without.
    fn step(self) -> Step {
        match self {
            Self::Insert | Self::Refresh | Self::Expire => Step::BeforeWrite,
            Self::Remove | Self::RemoveTag | Self::Clear => Step::BeforeInvalidation,
        }
    }

    async fn make(self, cache: Texts) {
        let key = Key::public("key");
        let new = |_| async { Ok::<_, io::Error>("new".to_owned()) };
        match self {
            Self::Remove => cache.remove(&key).await.unwrap(),
            Self::Expire => cache.expire(&key).await.unwrap(),
            Self::RemoveTag => cache.remove_by_tag(TAG).await.unwrap(),
            Self::Clear => cache.clear().await.unwrap(),
            Self::Insert => cache.insert(&key, "new".to_owned()).await.unwrap(),
            Self::Refresh => drop(cache.refresh(&key, &[TAG], new).await.unwrap()),
        }
    }
}

/// A cache whose store is being told of a change, and is held up.
async fn telling(change: Change, clock: &Clock) -> (Texts, Held) {
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let builder = Cache::builder("test").clock(clock.clone()).stale_if_error(60 * SECOND);
    let cache = builder.remote(store.clone()).build().await.unwrap();
    load(&cache, "key", &[TAG], "old").await;
    let mut held = store.hold(change.step());
    drop(tokio::spawn(change.make(cache.clone())));
    held.reached().await;
    settle().await;
    (cache, held)
}

/// A runtime goes down while the store is being told, under a cache that outlives it.
#[test]
fn what_a_store_was_being_told_when_the_runtime_went_down_is_owed() {
    for change in EVERY_CHANGE {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (clock, first) = (Clock::manual(), runtime());
        let (cache, held) = first.block_on(telling(change, &clock));
        drop(first);
        drop(held);
        clock.advance(STALENESS);
        runtime().block_on(async {
            assert_ne!(cache.get(&Key::public("key")).await.as_deref(), Some("old"), "{change:?}");
            assert_eq!(cache.shutdown(60 * SECOND).await, 0, "{change:?}");
        });
    }
}

/// A refresh has replaced what there is, and another that was to tell the store goes down with its runtime.
#[test]
fn what_another_refresh_was_to_tell_the_store_is_owed_when_the_runtime_goes_down() {
    for is_relieved in [false, true] {
        what_is_left_to_another_refresh_is_owed(is_relieved);
    }
}

/// Whether or not a third one took the other's place, which has failed since.
fn what_is_left_to_another_refresh_is_owed(is_relieved: bool) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (clock, first) = (Clock::manual(), runtime());
    let cache = first.block_on(async {
        let cache = node(&clock, MemoryStore::new(clock.clone())).await;
        load(&cache, "key", &[], "old").await;
        let (end, ended) = tokio::sync::oneshot::channel();
        let replacing = tokio::spawn({
            let cache = cache.clone();
            let loader = |_| async move { Ok::<_, io::Error>(ended.await.unwrap()) };
            async move { cache.refresh(&Key::public("key"), &[], loader).await }
        });
        settle().await;
        let (fail, failed) = tokio::sync::oneshot::channel::<()>();
        let other = tokio::spawn({
            let cache = cache.clone();
            let loader = |_| async move { failed.await.map(|()| String::new()).map_err(io::Error::other) };
            async move { cache.refresh(&Key::public("key"), &[], loader).await }
        });
        settle().await;
        end.send("new".to_owned()).unwrap();
        assert_eq!(replacing.await.unwrap().unwrap(), "new");
        if is_relieved {
            tokio::spawn({
                let cache = cache.clone();
                let loader = |_| std::future::pending::<Result<String, io::Error>>();
                async move { cache.refresh(&Key::public("key"), &[], loader).await }
            });
            settle().await;
            drop(fail);
            other.await.unwrap().unwrap_err();
            settle().await;
        } else {
            std::mem::forget(fail);
        }
        assert_eq!(cache.shutdown(Duration::ZERO).await, 1, "the store has not been told");
        cache
    });
    drop(first);
    runtime().block_on(async {
        assert_eq!(cache.get(&Key::public("key")).await, None);
        assert_eq!(cache.shutdown(60 * SECOND).await, 0);
    });
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_what_the_store_is_being_told() {
    for change in EVERY_CHANGE {
        let (cache, held) = telling(change, &Clock::tokio()).await;
        assert_eq!(cache.shutdown(SECOND / 10).await, 1, "{change:?}");
        let ending = tokio::spawn(async move { cache.shutdown(60 * SECOND).await });
        settle().await;
        assert!(!ending.is_finished(), "{change:?}");
        held.go_on();
        assert_eq!(ending.await.unwrap(), 0, "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_until_nothing_is_owed_and_no_longer_than_it_may() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.end()).await);
    assert_eq!(one.shutdown(SECOND).await, 0);
    load(&two, "key", &[], "old").await;
    store.refuse_all(true);
    one.remove(&Key::public("key")).await.unwrap_err();
    one.remove_by_tag(TAG).await.unwrap_err();
    // Until its pauses are long.
    tokio::time::sleep(60 * SECOND).await;
    let began = clock.now();
    assert_eq!(one.shutdown(SECOND).await, 2);
    assert_eq!(clock.now().since(began), SECOND);
    // It takes writes again while it is being waited for.
    let (ending, goes_on) = (one.clone(), store.clone());
    let ending = tokio::spawn(async move { ending.shutdown(5 * SECOND).await });
    tokio::time::sleep(3 * SECOND).await;
    goes_on.refuse_all(false);
    assert_eq!(ending.await.unwrap(), 0);
    tokio::time::sleep(STALENESS).await;
    assert_eq!(two.get(&Key::public("key")).await, None);
}

/// The tag of an entry is in the entry: who asks for the entry need not know of it.
#[tokio::test(start_paused = true)]
async fn entry_whose_carried_tag_is_owed_is_a_miss_though_nobody_asked_for_the_tag() {
    for expires in [false, true] {
        for many in [false, true] {
            let clock = Clock::tokio();
            let store = Picky::new(&clock);
            let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.end()).await);
            load(&two, "tagged", &["first", TAG], "old").await;
            load(&two, "other", &["first"], "value").await;
            store.refuse_next();
            match expires {
                true => one.expire_by_tag(TAG).await.unwrap_err(),
                false => one.remove_by_tag(TAG).await.unwrap_err(),
            };
            let case = format!("expires: {expires}, many: {many}");
            let keys = [Key::public("tagged"), Key::public("other")];
            assert_eq!(one.get(&keys[0]).await, None, "{case}");
            assert_eq!(one.get(&keys[1]).await.as_deref(), Some("value"), "{case}: not concerned");
            let found = match many {
                true => {
                    let load = |missing: Vec<Key<'static>>| async move {
                        let row = |key| (key, Ok::<_, io::Error>("new".to_owned()));
                        Ok::<_, io::Error>(missing.into_iter().map(row).collect::<Vec<_>>())
                    };
                    one.get_or_load_many(&keys[..1], &[], load).await.remove(0).unwrap()
                }
                false => load(&one, "tagged", &[], "new").await,
            };
            assert_eq!(found, "new", "{case}");
        }
    }
}

/// Where loaders choose tags: a load that is barred by the stamp of any tag must not see that of its own tag change
/// before.
#[tokio::test(start_paused = true)]
async fn tag_that_could_not_be_invalidated_is_told_after_any_tag_and_bars_the_loads_that_chose_it() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let node = async |store: Picky| {
        let cache = Cache::<String>::builder("test").clock(clock.clone()).loader_tags();
        let cache = cache.load_timeout(600 * SECOND);
        cache.remote(store).remote_timeout(60 * SECOND).build().await.unwrap()
    };
    let (one, two) = (node(store.clone()).await, node(store.end()).await);
    let (has_read, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let old = {
        let (two, has_read, go_on) = (two.clone(), Arc::clone(&has_read), Arc::clone(&go_on));
        let load = || async move {
            has_read.notify_one();
            go_on.notified().await;
            Ok::<_, io::Error>(Loaded::new("old".to_owned()).tags([TAG]))
        };
        tokio::spawn(async move { two.get_or_load(&Key::public("a"), load).await })
    };
    has_read.notified().await;
    store.refuse_next();
    assert_eq!(one.remove_by_tag(TAG).await.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(one.stats().owed, 2);
    // It concerns nobody who asks for something else.
    assert_eq!(load(&one, "b", &["named"], "value").await, "value");
    let chooses = || async { Ok::<_, io::Error>(Loaded::new("value".to_owned()).tags(["another"])) };
    assert_eq!(one.get_or_load(&Key::public("c"), chooses).await.unwrap(), "value");
    settle().await;
    assert_eq!(two.get(&Key::public("c")).await.as_deref(), Some("value"));
    // Of the tag itself nothing is stored that would have to carry its stamp.
    let chooses = || async { Ok::<_, io::Error>(Loaded::new("value".to_owned()).tags([TAG])) };
    assert_eq!(one.get_or_load(&Key::public("d"), chooses).await.unwrap(), "value");
    settle().await;
    assert_eq!(two.get(&Key::public("d")).await, None);
    ask(&one, "b", 30 * SECOND).await;
    assert_eq!(store.seen.restamped.lock().unwrap().len(), 0);

    store.take_everything();
    ask(&one, "b", LONGEST_PAUSE).await;
    assert_eq!(one.stats().owed, 0);
    let told = store.seen.restamped.lock().unwrap().clone();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].ends_with(":anytag"), "{told:?}");
    go_on.notify_one();
    assert_eq!(old.await.unwrap().unwrap(), "old");
    settle().await;
    tokio::time::sleep(STALENESS).await;
    assert_eq!(one.get(&Key::public("a")).await, None);
    assert_eq!(two.get(&Key::public("a")).await, None);
}

#[tokio::test(start_paused = true)]
async fn clear_that_was_refused_blocks_everything_until_it_is_paid() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.end()).await);
    load(&two, "a", &[], "old").await;
    store.refuse_next();
    one.clear().await.unwrap_err();
    assert_eq!(one.get(&Key::public("a")).await, None);
    let reads = store.reads();
    ask(&one, "a", 30 * SECOND).await;
    assert_eq!(store.reads(), reads, "nothing is asked for that cannot be believed");
    store.take_everything();
    ask(&one, "a", LONGEST_PAUSE).await;
    assert!(store.reads() > reads, "it is asked again");
    tokio::time::sleep(STALENESS).await;
    assert_eq!(two.get(&Key::public("a")).await, None, "it was told");
}

#[tokio::test(start_paused = true)]
async fn refused_debt_is_tried_again_with_pauses_that_grow_and_costs_other_reads_no_trip() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let one = node(&clock, store.clone()).await;
    store.refuse_next();
    one.remove(&Key::public("bad")).await.unwrap_err();
    let began = (store.refusals(), one.stats().remote_failures);
    for _ in 0..3_000 {
        one.get(&Key::public("good")).await;
        tokio::time::sleep(20 * MILLISECOND).await;
    }
    let tried = store.refusals() - began.0;
    // At 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3 and 12.7 s, and every ten seconds then, a fifth more or less.
    assert!((10..=14).contains(&tried), "tried {tried} times in a minute");
    assert_eq!(one.stats().remote_failures - began.1, tried as u64, "nothing else failed");
    assert_eq!(store.reads(), 3_000);
}

#[tokio::test(start_paused = true)]
async fn one_debt_that_is_refused_does_not_keep_the_others_from_being_paid() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.end()).await);
    let names: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    for name in &names {
        load(&two, name, &[], "old").await;
    }
    store.refuse_all(true);
    for name in &names {
        if name == "300" {
            store.refuse_next();
        }
        one.remove(&Key::public(name)).await.unwrap_err();
    }
    store.refuse_all(false);
    ask(&one, "anything", LONGEST_PAUSE).await;
    tokio::time::sleep(STALENESS).await;
    let mut left = Vec::new();
    for name in &names {
        if two.get(&Key::public(name)).await.is_some() {
            left.push(name.as_str());
        }
        assert_eq!(one.get(&Key::public(name)).await, None, "{name}");
    }
    assert_eq!(left, ["300"]);
}

#[tokio::test(start_paused = true)]
async fn debts_are_paid_by_the_chunk() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let one = node(&clock, store.clone()).await;
    store.refuse_all(true);
    for number in 0..1_000 {
        one.remove(&Key::public(&number.to_string())).await.unwrap_err();
    }
    store.refuse_all(false);
    ask(&one, "anything", LONGEST_PAUSE).await;
    let removals = std::mem::take(&mut *store.seen.removals.lock().unwrap());
    assert_eq!(removals.iter().sum::<usize>(), 1_000, "each once");
    assert_eq!(removals.iter().max(), Some(&256), "{removals:?}");
}

#[tokio::test(start_paused = true)]
async fn invalidation_that_is_called_again_and_taken_pays_the_debt() {
    let clock = Clock::tokio();
    for by_tag in [false, true] {
        let store = Picky::new(&clock);
        let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.end()).await);
        let remove = async || match by_tag {
            true => one.remove_by_tag(TAG).await,
            false => one.remove(&Key::public("a")).await,
        };
        store.refuse_next();
        remove().await.unwrap_err();
        // Long enough for its pause to be a long one.
        ask(&one, "anything", 30 * SECOND).await;
        store.take_everything();
        remove().await.unwrap();
        load(&one, "a", &[TAG], "new").await;
        assert_eq!(
            two.get(&Key::public("a")).await.as_deref(),
            Some("new"),
            "by tag: {by_tag}: shared at once"
        );
    }
}

/// What expired may stand in for a load that fails, and what was removed may not.
#[tokio::test(start_paused = true)]
async fn expiry_that_is_taken_does_not_pay_for_a_removal_that_was_not() {
    let clock = Clock::tokio();
    let store = Picky::new(&clock);
    let node = async |store: Picky| -> Texts {
        let builder = Cache::builder("test").clock(clock.clone()).stale_if_error(600 * SECOND);
        builder.remote(store).build().await.unwrap()
    };
    let (one, two) = (node(store.clone()).await, node(store.end()).await);
    let fail = async |cache: &Texts| {
        let load = || async { Err::<String, _>(io::Error::other("the source is away")) };
        cache.get_or_load(&Key::public("a"), load).await.map_err(|error| error.kind())
    };
    load(&two, "a", &[TAG], "old").await;
    store.refuse_next();
    one.remove_by_tag(TAG).await.unwrap_err();
    store.take_everything();
    one.expire_by_tag(TAG).await.unwrap();
    for _ in 0..100 {
        assert_eq!(fail(&one).await, Err(ErrorKind::Load));
        tokio::time::sleep(200 * MILLISECOND).await;
    }
    assert_eq!(fail(&two).await, Err(ErrorKind::Load), "removed in the end");
}

#[tokio::test]
async fn who_asks_for_what_is_not_owed_does_not_wait_for_what_is() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let builder = Cache::builder("test").clock(clock.clone()).remote(store.clone());
    let one: Texts = builder.remote_timeout(60 * SECOND).build().await.unwrap();
    load(&one, "bad", &[], "old").await;
    load(&one, "good", &[], "value").await;
    store.fail_writes(1);
    one.remove(&Key::public("bad")).await.unwrap_err();
    clock.advance(STALENESS);
    let mut payment = store.hold(Step::BeforeInvalidation);
    assert_eq!(one.get(&Key::public("good")).await.as_deref(), Some("value"));
    payment.reached().await;
    let waiting = tokio::spawn({
        let one = one.clone();
        async move { one.get(&Key::public("bad")).await }
    });
    settle().await;
    assert!(!waiting.is_finished(), "it is being paid");
    assert_eq!(one.get(&Key::public("good")).await.as_deref(), Some("value"));
    payment.go_on();
    assert_eq!(waiting.await.unwrap(), None);
}

/// The store took the removal, and nobody heard of it: it is made again, and what was stored in between is lost
/// rather than believed.
#[tokio::test(start_paused = true)]
async fn debt_whose_payment_is_late_or_lost_is_never_undone_by_a_read() {
    for fault in
        [Fault::Late, Fault::LoseAnswer, Fault::LoseRequest, Fault::Break, Fault::Refuse, Fault::Reorder]
    {
        for by_tag in [false, true] {
            let clock = Clock::tokio();
            let network = FaultStore::new(MemoryStore::new(clock.clone()), 3);
            let here = network.node();
            let (one, two) = (node(&clock, here.clone()).await, node(&clock, network.node()).await);
            load(&two, "a", &[TAG], "old").await;
            // The removal, and the first two payments.
            here.next(Calls::Writes, Fault::Refuse);
            here.next(Calls::Writes, fault);
            here.next(Calls::Writes, fault);
            match by_tag {
                true => one.remove_by_tag(TAG).await.unwrap_err(),
                false => one.remove(&Key::public("a")).await.unwrap_err(),
            };
            let case = format!("{fault:?}, by tag: {by_tag}");
            for _ in 0..500 {
                assert_eq!(one.get(&Key::public("a")).await, None, "{case}");
                tokio::time::sleep(20 * MILLISECOND).await;
            }
            assert_eq!(two.get(&Key::public("a")).await, None, "{case}: paid in the end");
        }
    }
}
