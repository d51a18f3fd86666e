//! One load for all processes that share a cache: who takes the lease, who waits, and what ends it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]

mod support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error, ErrorKind,
    cache::{Cache, CacheBuilder, Key, Loaded, RemoteState, Store},
    clock::Clock,
    postgres::PostgresStore,
    redis::RedisStore,
    testing::{Calls, Fault, FaultStore, MemoryStore},
};
use support::{
    postgres::PostgresServer,
    redis::RedisServer,
    stepped::{Step, Stepped},
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(5);

type Texts = Cache<String>;

/// Two nodes, whose time is tokio's, in front of one store in memory.
struct Pair {
    clock: Clock,
    store: Stepped<MemoryStore>,
    one: Texts,
    two: Texts,
}

impl Pair {
    async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(set: impl Fn(CacheBuilder<String>) -> CacheBuilder<String>) -> Self {
        let clock = Clock::tokio();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let one = node(&clock, &store, &set).await;
        let two = node(&clock, &store, &set).await;
        Self { clock, store, one, two }
    }

    fn loads(&self) -> u64 {
        self.one.stats().loads + self.two.stats().loads
    }
}

async fn node(
    clock: &Clock,
    store: &Stepped<MemoryStore>,
    set: impl Fn(CacheBuilder<String>) -> CacheBuilder<String>,
) -> Texts {
    let builder = set(Cache::builder("test").clock(clock.clone()));
    builder.remote(store.clone()).share_loads(LEASE).build().await.unwrap()
}

fn key() -> Key<'static> {
    Key::public("a")
}

/// A load that runs until it is told how to end.
struct Running {
    end: oneshot::Sender<Result<String, io::Error>>,
    caller: JoinHandle<Result<String, Error>>,
}

impl Running {
    /// Returns once the loader runs.
    async fn start(cache: &Texts, tags: &'static [&'static str]) -> Self {
        let (began, has_begun) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let cache = cache.clone();
        let caller = tokio::spawn(async move {
            let load = move || async move {
                began.send(()).unwrap();
                ended.await.unwrap_or_else(|_| panic!("the test's load panics"))
            };
            cache.get_or_load_tagged(&key(), tags, load).await
        });
        has_begun.await.unwrap();
        Self { end, caller }
    }

    async fn end(self, with: Result<&str, io::Error>) -> Result<String, Error> {
        self.end.send(with.map(str::to_owned)).unwrap();
        self.caller.await.unwrap()
    }
}

/// Asks in a task of its own, with a loader that takes no time.
fn ask(
    cache: &Texts,
    tags: &'static [&'static str],
    value: &'static str,
) -> JoinHandle<Result<String, Error>> {
    let cache = cache.clone();
    tokio::spawn(async move {
        let load = move || async move { Ok::<_, io::Error>(value.to_owned()) };
        cache.get_or_load_tagged(&key(), tags, load).await
    })
}

async fn get(cache: &Texts) -> Option<String> {
    cache.get(&key()).await
}

/// Lets every task that can run do so, until none can, at one time.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_misses_while_another_node_loads_waits_for_its_value() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &[]).await;
    let waits = ask(&pair.two, &[], "second");
    sleep(400 * MILLISECOND).await;
    assert!(!waits.is_finished());
    let ended_at = pair.clock.now();
    assert_eq!(load.end(Ok("first")).await.unwrap(), "first");
    assert_eq!(waits.await.unwrap().unwrap(), "first");
    // Half of what was waited, and a quarter more or less of that.
    assert!(pair.clock.now().since(ended_at) <= 250 * MILLISECOND);
    assert_eq!((pair.loads(), pair.two.stats().awaited), (1, 1));
    assert_eq!(get(&pair.two).await.as_deref(), Some("first"));
}

#[tokio::test(start_paused = true)]
async fn of_two_who_read_the_same_absence_one_loads() {
    let pair = Pair::new().await;
    let mut held = pair.store.hold(Step::ReadAnswered);
    let first = ask(&pair.one, &[], "first");
    held.reached().await;
    let load = Running::start(&pair.two, &[]).await;
    held.go_on();
    settle().await;
    assert_eq!(pair.one.stats().loads, 0);
    load.end(Ok("second")).await.unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "second");
    assert_eq!(pair.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_twice_where_nobody_shares_loads() {
    let clock = Clock::tokio();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let plain = Cache::builder("test").clock(clock.clone()).remote(store.clone()).build().await.unwrap();
    // The first write that reaches the store is the value's.
    let mut held = store.hold(Step::BeforeWrite);
    assert_eq!(ask(&plain, &[], "value").await.unwrap().unwrap(), "value");
    held.reached().await;
    held.go_on();
    settle().await;
    assert_eq!(get(&plain).await.as_deref(), Some("value"));
}

#[tokio::test(start_paused = true)]
async fn failed_load_gives_its_lease_back_and_the_next_one_loads() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &[]).await;
    let waits = ask(&pair.two, &[], "second");
    sleep(100 * MILLISECOND).await;
    let failed_at = pair.clock.now();
    let error = load.end(Err(io::Error::other("no"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    assert_eq!(waits.await.unwrap().unwrap(), "second");
    assert!(pair.clock.now().since(failed_at) < SECOND, "it waited for the end of the lease");
}

#[tokio::test(start_paused = true)]
async fn load_that_panics_or_is_not_to_be_stored_gives_its_lease_back() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &[]).await;
    drop(load.end);
    assert_eq!(load.caller.await.unwrap().unwrap_err().kind(), ErrorKind::Panicked);
    let began = pair.clock.now();
    assert_eq!(ask(&pair.two, &[], "second").await.unwrap().unwrap(), "second");
    assert!(pair.clock.now().since(began) < SECOND, "it waited for the end of a lease");
    // Where it failed it is not tried again for a second.
    tokio::time::sleep(2 * SECOND).await;
    let began = pair.clock.now();
    pair.two.remove(&key()).await.unwrap();
    let kept = || async { Ok::<_, io::Error>(Loaded::do_not_store("not kept".to_owned())) };
    assert_eq!(pair.two.get_or_load(&key(), kept).await.unwrap(), "not kept");
    assert_eq!(ask(&pair.one, &[], "kept").await.unwrap().unwrap(), "kept");
    assert!(pair.clock.now().since(began) < SECOND, "it waited for the end of a lease");
}

#[tokio::test(start_paused = true)]
async fn lease_of_a_node_that_died_is_over_when_its_time_is() {
    let pair = Pair::new().await;
    let (one, died) = (pair.one.clone(), Arc::new(Notify::new()));
    // A node that dies takes its runtime with it.
    let runtime = std::thread::spawn({
        let died = Arc::clone(&died);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let (began, has_begun) = oneshot::channel();
                tokio::spawn(async move {
                    let load = || async move {
                        began.send(()).unwrap();
                        std::future::pending::<Result<String, io::Error>>().await
                    };
                    one.get_or_load(&key(), load).await
                });
                has_begun.await.unwrap();
            });
            drop(runtime);
            died.notify_one();
        }
    });
    runtime.join().unwrap();
    died.notified().await;
    let began = pair.clock.now();
    assert_eq!(ask(&pair.two, &[], "second").await.unwrap().unwrap(), "second");
    let waited = pair.clock.now().since(began);
    assert!(waited >= LEASE - SECOND && waited <= LEASE + SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn lease_is_prolonged_while_its_load_runs() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &[]).await;
    let waits = ask(&pair.two, &[], "second");
    sleep(4 * LEASE).await;
    assert_eq!(pair.two.stats().loads, 0);
    load.end(Ok("first")).await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap(), "first");
    assert_eq!((pair.loads(), pair.one.stats().fenced), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_does_so_no_longer_than_a_load_may_take() {
    let pair = Pair::with(|builder| builder.load_timeout(10 * SECOND)).await;
    let slow = node(&pair.clock, &pair.store, |builder| builder.load_timeout(1_000 * SECOND)).await;
    let _load = Running::start(&slow, &[]).await;
    let began = pair.clock.now();
    let error = ask(&pair.two, &[], "second").await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(pair.clock.now().since(began).as_secs(), 10);
}

/// What ends the lease of node one, done on node two.
async fn invalidate(cache: &Texts, how: &str) {
    match how {
        "remove" => cache.remove(&key()).await,
        "expire" => cache.expire(&key()).await,
        "remove tag" => cache.remove_by_tag("tag").await,
        "expire tag" => cache.expire_by_tag("tag").await,
        "clear" => cache.clear().await,
        "expire all" => cache.expire_all().await,
        "insert" => cache.insert(&key(), "inserted".to_owned()).await,
        _ => unreachable!(),
    }
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn invalidation_ends_the_lease_and_its_value_is_never_stored() {
    for how in ["remove", "expire", "remove tag", "expire tag", "clear", "expire all"] {
        for stale in [false, true] {
            let stale_for = if stale { 60 * SECOND } else { Duration::ZERO };
            let pair =
                Pair::with(|builder| builder.time_to_live(10 * SECOND).stale_if_error(stale_for)).await;
            if stale {
                ask(&pair.one, &["tag"], "older").await.unwrap().unwrap();
                sleep(11 * SECOND).await;
            }
            let load = Running::start(&pair.one, &["tag"]).await;
            invalidate(&pair.two, how).await;
            let began = pair.clock.now();
            assert_eq!(ask(&pair.two, &["tag"], "new").await.unwrap().unwrap(), "new", "{how}");
            assert!(
                pair.clock.now().since(began) < LEASE / 2,
                "{how}: waited for a load that is worth nothing"
            );
            load.end(Ok("old")).await.unwrap();
            settle().await;
            for (name, cache) in [("one", &pair.one), ("two", &pair.two)] {
                // What node one remembers from before is bounded by its staleness.
                sleep(6 * SECOND).await;
                assert_ne!(get(cache).await.as_deref(), Some("old"), "{how}, node {name}, stale: {stale}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn insertion_ends_the_lease_and_stays() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &["tag"]).await;
    invalidate(&pair.two, "insert").await;
    load.end(Ok("old")).await.unwrap();
    settle().await;
    assert_eq!(get(&pair.one).await.as_deref(), Some("inserted"));
    assert_eq!(get(&pair.two).await.as_deref(), Some("inserted"));
}

#[tokio::test(start_paused = true)]
async fn who_waited_through_an_invalidation_loads_anew() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &[]).await;
    let waits = ask(&pair.two, &[], "new");
    sleep(50 * MILLISECOND).await;
    let third = node(&pair.clock, &pair.store, |builder| builder).await;
    third.remove(&key()).await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap(), "new");
    load.end(Ok("old")).await.unwrap();
    settle().await;
    assert_eq!(pair.one.stats().fenced, 1);
    assert_eq!(get(&third).await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn value_that_arrives_after_a_lease_was_taken_over_is_refused() {
    let clock = Clock::tokio();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let node = async || {
        let builder = Cache::builder("test").clock(clock.clone()).remote(store.clone()).share_loads(LEASE);
        builder.remote_timeout(LEASE / 2).build().await.unwrap()
    };
    let (one, two) = (node().await, node().await);
    let pair = Pair { clock, store, one, two };
    let load = Running::start(&pair.one, &[]).await;
    // Its prolongation does not reach the store for longer than the lease lasts, and the next comes long after.
    let mut held = pair.store.hold(Step::BeforeWrite);
    timeout(60 * SECOND, held.reached()).await.expect("the lease is prolonged");
    let second = Running::start(&pair.two, &[]).await;
    held.go_on();
    second.end(Ok("new")).await.unwrap();
    load.end(Ok("old")).await.unwrap();
    settle().await;
    assert_eq!(pair.one.stats().fenced, 1);
    assert_eq!(get(&pair.one).await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn stale_value_is_served_by_all_while_one_node_refreshes() {
    let pair =
        Pair::with(|builder| builder.time_to_live(10 * SECOND).stale_while_revalidate(60 * SECOND)).await;
    ask(&pair.one, &[], "old").await.unwrap().unwrap();
    settle().await;
    let third = node(&pair.clock, &pair.store, |builder| {
        builder.time_to_live(10 * SECOND).stale_while_revalidate(60 * SECOND)
    })
    .await;
    sleep(12 * SECOND).await;
    let (began, has_begun) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let load = || async move {
        began.send(()).unwrap();
        Ok::<_, io::Error>(ended.await.unwrap())
    };
    assert_eq!(pair.one.get_or_load(&key(), load).await.unwrap(), "old");
    has_begun.await.unwrap();
    let began = pair.clock.now();
    for _ in 0..3 {
        for cache in [&pair.one, &pair.two, &third] {
            // A node that has it in memory, and two that find it in the lease.
            assert_eq!(ask(cache, &[], "unused").await.unwrap().unwrap(), "old");
        }
    }
    assert!(pair.clock.now().since(began) < 100 * MILLISECOND, "somebody waited");
    assert_eq!(pair.loads() + third.stats().loads, 2);
    end.send("new".to_owned()).unwrap();
    sleep(SECOND).await;
    for cache in [&pair.one, &pair.two, &third] {
        assert_eq!(get(cache).await.as_deref(), Some("new"));
    }
    assert_eq!(pair.loads() + third.stats().loads, 2);
}

/// What is large and remembered is asked about without its bytes, which under a lease are wanted.
#[tokio::test(start_paused = true)]
async fn large_stale_value_stays_there_while_a_node_that_remembers_it_refreshes() {
    let set =
        |builder: CacheBuilder<String>| builder.time_to_live(10 * SECOND).stale_while_revalidate(60 * SECOND);
    let pair = Pair::with(set).await;
    let third = node(&pair.clock, &pair.store, set).await;
    let old: String = std::iter::repeat_with(fastrand::alphanumeric).take(8 * 1024).collect();
    pair.one.insert(&key(), old.clone()).await.unwrap();
    assert_eq!(get(&pair.two).await.as_ref(), Some(&old));
    sleep(12 * SECOND).await;
    let (began, has_begun) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let load = || async move {
        began.send(()).unwrap();
        Ok::<_, io::Error>(ended.await.unwrap())
    };
    assert_eq!(pair.two.get_or_load(&key(), load).await.unwrap(), old);
    has_begun.await.unwrap();
    let began = pair.clock.now();
    assert_eq!(ask(&third, &[], "unused").await.unwrap().unwrap(), old);
    assert!(pair.clock.now().since(began) < 100 * MILLISECOND, "it waited for the load");
    end.send("new".to_owned()).unwrap();
    sleep(SECOND).await;
    assert_eq!(get(&third).await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn value_is_loaded_ahead_by_one_node_and_fresh_for_all() {
    let pair = Pair::with(|builder| builder.time_to_live(100 * SECOND).refresh_ahead()).await;
    ask(&pair.one, &[], "old").await.unwrap().unwrap();
    settle().await;
    assert_eq!(ask(&pair.two, &[], "unused").await.unwrap().unwrap(), "old");
    sleep(95 * SECOND).await;
    // The first time it is looked up again, the second time it is due.
    for _ in 0..2 {
        for look_up in [&pair.one, &pair.two].map(|cache| ask(cache, &[], "new")) {
            assert_eq!(look_up.await.unwrap().unwrap(), "old");
        }
    }
    sleep(SECOND).await;
    assert_eq!(pair.loads(), 2);
    assert_eq!(get(&pair.one).await.as_deref(), Some("new"));
    assert_eq!(get(&pair.two).await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn value_from_before_outlives_the_lease_of_a_load_that_failed_and_gains_no_life() {
    let pair = Pair::with(|builder| builder.time_to_live(10 * SECOND).stale_if_error(30 * SECOND)).await;
    ask(&pair.one, &[], "old").await.unwrap().unwrap();
    settle().await;
    sleep(11 * SECOND).await;
    let load = Running::start(&pair.one, &[]).await;
    sleep(2 * LEASE).await;
    assert_eq!(load.end(Err(io::Error::other("down"))).await.unwrap(), "old");
    let fails = || async { Err::<String, _>(io::Error::other("down")) };
    assert_eq!(pair.two.get_or_load(&key(), fails).await.unwrap(), "old");
    // 40 seconds after it was loaded it is gone, whoever wrote it in between.
    sleep(20 * SECOND).await;
    assert_eq!(pair.two.get_or_load(&key(), fails).await.unwrap_err().kind(), ErrorKind::Load);
}

#[tokio::test(start_paused = true)]
async fn soft_timeout_counts_while_another_node_loads() {
    let pair = Pair::with(|builder| {
        builder.time_to_live(10 * SECOND).stale_if_error(60 * SECOND).soft_timeout(100 * MILLISECOND)
    })
    .await;
    ask(&pair.one, &[], "old").await.unwrap().unwrap();
    settle().await;
    sleep(11 * SECOND).await;
    let load = Running::start(&pair.one, &[]).await;
    let began = pair.clock.now();
    assert_eq!(ask(&pair.two, &[], "unused").await.unwrap().unwrap(), "old");
    let waited = pair.clock.now().since(began);
    assert!(waited >= 100 * MILLISECOND && waited < 200 * MILLISECOND, "{waited:?}");
    load.end(Ok("new")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn forced_load_waits_for_nobody_and_its_value_stays() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &[]).await;
    let began = pair.clock.now();
    let forced = |_| async { Ok::<_, io::Error>("forced".to_owned()) };
    assert_eq!(pair.two.refresh(&key(), &[], forced).await.unwrap(), "forced");
    assert!(pair.clock.now().since(began) < SECOND);
    load.end(Ok("old")).await.unwrap();
    settle().await;
    assert_eq!(get(&pair.one).await.as_deref(), Some("forced"));
}

#[tokio::test(start_paused = true)]
async fn everybody_loads_for_himself_while_the_store_fails() {
    let pair = Pair::new().await;
    pair.store.fail_writes(1);
    let alone = Running::start(&pair.one, &[]).await;
    pair.store.fail_reads(1);
    let began = pair.clock.now();
    assert_eq!(ask(&pair.two, &[], "second").await.unwrap().unwrap(), "second");
    assert!(pair.clock.now().since(began) < SECOND);
    alone.end(Ok("first")).await.unwrap();
    assert_eq!(pair.loads(), 2);
}

/// Two nodes that can each be kept from hearing of what they wrote.
async fn out_of_earshot() -> [(FaultStore<MemoryStore>, Texts); 2] {
    let clock = Clock::tokio();
    let network = FaultStore::new(MemoryStore::new(clock.clone()), 0);
    let node = async || {
        let store = network.node();
        let builder = Cache::builder("test").clock(clock.clone()).remote(store.clone());
        (store, builder.share_loads(LEASE).build().await.unwrap())
    };
    [node().await, node().await]
}

#[tokio::test(start_paused = true)]
async fn lease_that_was_taken_unheard_is_found_again_by_who_took_it() {
    let [(store, one), (_, two)] = out_of_earshot().await;
    store.next(Calls::Writes, Fault::LoseAnswer);
    let load = Running::start(&one, &[]).await;
    assert!(matches!(two.explain(&key()).await.remote, RemoteState::Leased(_)));
    load.end(Ok("first")).await.unwrap();
    settle().await;
    assert_eq!(get(&two).await.as_deref(), Some("first"));
    assert_eq!(one.get_local(&key()).as_deref(), Some("first"));
    assert_eq!(one.stats().fenced, 0);
}

#[tokio::test(start_paused = true)]
async fn lease_that_was_taken_unheard_is_given_back_by_a_load_that_fails() {
    let [(store, one), (_, two)] = out_of_earshot().await;
    store.next(Calls::Writes, Fault::LoseAnswer);
    let load = Running::start(&one, &[]).await;
    load.end(Err(io::Error::other("no"))).await.unwrap_err();
    settle().await;
    sleep(2 * MILLISECOND).await;
    assert!(!matches!(two.explain(&key()).await.remote, RemoteState::Leased(_)));
}

#[tokio::test(start_paused = true)]
async fn lease_that_was_prolonged_unheard_is_prolonged_again_and_filled() {
    let [(store, one), (_, two)] = out_of_earshot().await;
    let load = Running::start(&one, &[]).await;
    store.next(Calls::Writes, Fault::LoseAnswer);
    sleep(4 * LEASE).await;
    assert!(matches!(two.explain(&key()).await.remote, RemoteState::Leased(_)));
    load.end(Ok("first")).await.unwrap();
    settle().await;
    assert_eq!(get(&two).await.as_deref(), Some("first"));
    assert_eq!(one.stats().fenced, 0);
}

#[tokio::test(start_paused = true)]
async fn lease_of_another_is_not_taken_for_one_that_was_taken_unheard() {
    let [(store, one), (_, two)] = out_of_earshot().await;
    store.next(Calls::Writes, Fault::LoseRequest);
    let alone = Running::start(&one, &[]).await;
    let holder = Running::start(&two, &[]).await;
    alone.end(Ok("first")).await.unwrap();
    settle().await;
    holder.end(Ok("second")).await.unwrap();
    settle().await;
    assert_eq!(get(&one).await.as_deref(), Some("second"));
}

#[tokio::test(start_paused = true)]
async fn node_that_does_not_share_loads_neither_waits_for_a_lease_nor_serves_it() {
    let pair = Pair::new().await;
    let plain: Texts =
        Cache::builder("test").clock(pair.clock.clone()).remote(pair.store.clone()).build().await.unwrap();
    let load = Running::start(&pair.one, &[]).await;
    assert_eq!(get(&plain).await, None);
    assert!(matches!(plain.explain(&key()).await.remote, RemoteState::Leased(left) if left <= LEASE));
    assert_eq!(ask(&plain, &[], "plain").await.unwrap().unwrap(), "plain");
    load.end(Ok("old")).await.unwrap();
    settle().await;
    assert_eq!(get(&pair.two).await.as_deref(), Some("plain"));
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_loaded_whoever_has_their_leases() {
    let pair = Pair::new().await;
    let load = Running::start(&pair.one, &[]).await;
    let keys = [key(), Key::public("b")];
    let began = pair.clock.now();
    let loaded = pair
        .two
        .get_or_load_many(&keys, &[], |missing| async move {
            Ok::<_, io::Error>(missing.into_iter().map(|key| (key, Ok::<_, io::Error>("many".to_owned()))))
        })
        .await;
    assert!(loaded.iter().all(|value| value.as_deref().is_ok_and(|value| value == "many")));
    assert!(pair.clock.now().since(began) < SECOND);
    load.end(Ok("old")).await.unwrap();
}

#[tokio::test]
async fn lease_has_to_outlast_two_calls_to_the_store() {
    let build = async |lease| {
        let cache = Cache::<String>::builder("test").remote(MemoryStore::new(Clock::manual()));
        cache.remote_timeout(SECOND).share_loads(lease).build().await
    };
    assert!(build(2 * SECOND).await.is_ok());
    for lease in [Duration::ZERO, 2 * SECOND - MILLISECOND, 3_601 * SECOND] {
        let error = build(lease).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("share_loads"), "{error}");
    }
}

// ===== real stores =====

/// Ten nodes, each with connections of its own, are asked for one key after the other.
async fn one_load_for_all<S: Store>(store: impl Fn() -> S) {
    const NODES: usize = 10;
    const KEYS: usize = 20;
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        let builder = Cache::<String>::builder("test").remote(store()).share_loads(30 * SECOND);
        // A busy machine is no reason to load twice.
        nodes.push(builder.remote_timeout(10 * SECOND).build().await.unwrap());
    }
    let loads = Arc::new(AtomicUsize::new(0));
    for index in 0..KEYS {
        let mut callers = tokio::task::JoinSet::new();
        for cache in &nodes {
            for _ in 0..3 {
                let (cache, loads) = (cache.clone(), Arc::clone(&loads));
                callers.spawn(async move {
                    let load = move || async move {
                        let number = loads.fetch_add(1, Ordering::SeqCst);
                        sleep(30 * MILLISECOND).await;
                        Ok::<_, io::Error>(number.to_string())
                    };
                    cache.get_or_load(&Key::public(&format!("key{index}")), load).await.unwrap()
                });
            }
        }
        let values = callers.join_all().await;
        assert!(values.iter().all(|value| *value == index.to_string()), "{values:?}");
    }
    assert_eq!(loads.load(Ordering::SeqCst), KEYS);
    invalidation_while_a_real_lease_is_held(&nodes[0], &nodes[1]).await;
}

async fn invalidation_while_a_real_lease_is_held(one: &Texts, two: &Texts) {
    for how in ["remove", "remove tag", "clear"] {
        let load = Running::start(one, &["tag"]).await;
        invalidate(two, how).await;
        assert_eq!(ask(two, &["tag"], "new").await.unwrap().unwrap(), "new", "{how}");
        // Either value goes to the store after its callers have it.
        let fenced = one.stats().fenced;
        load.end(Ok("old")).await.unwrap();
        let refused = async {
            while one.stats().fenced == fenced || get(one).await.as_deref() != Some("new") {
                sleep(MILLISECOND).await;
            }
        };
        timeout(60 * SECOND, refused).await.unwrap_or_else(|_| panic!("{how}: not refused"));
        one.remove(&key()).await.unwrap();
    }
}

/// A node that dies while it loads, and one that waits.
async fn next_one_loads_when_the_holder_dies<S: Store>(
    store: impl Fn() -> S + Send + Sync + Clone + 'static,
) {
    let build = async |store: S| {
        let cache = Cache::<String>::builder("test").remote(store).remote_timeout(2 * SECOND);
        cache.share_loads(LEASE).build().await.unwrap()
    };
    let dead = store();
    let dies = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cache = build(dead).await;
            let load = Running::start(&cache, &[]).await;
            std::mem::forget(load.end);
        });
    });
    let alive = build(store()).await;
    tokio::task::spawn_blocking(|| dies.join().unwrap()).await.unwrap();
    assert!(matches!(alive.explain(&key()).await.remote, RemoteState::Leased(_)));
    assert_eq!(ask(&alive, &[], "second").await.unwrap().unwrap(), "second");
    assert_eq!((alive.stats().loads, alive.stats().awaited), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_lets_one_of_all_nodes_load() {
    let server = RedisServer::start();
    one_load_for_all(|| RedisStore::new(&server.url()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_frees_the_lease_of_a_node_that_died() {
    let server = RedisServer::start();
    let url = server.url();
    next_one_loads_when_the_holder_dies(move || RedisStore::new(&url).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_lets_one_of_all_nodes_load() {
    let server = PostgresServer::start();
    PostgresStore::new(&server.url()).unwrap().migrate().await.unwrap();
    one_load_for_all(|| PostgresStore::new(&server.url()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_frees_the_lease_of_a_node_that_died() {
    let server = PostgresServer::start();
    PostgresStore::new(&server.url()).unwrap().migrate().await.unwrap();
    let url = server.url();
    next_one_loads_when_the_holder_dies(move || PostgresStore::new(&url).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn who_has_no_place_to_load_holds_no_lease() {
    let pair = Pair::with(|builder| builder.max_loads(1)).await;
    let (release, released) = oneshot::channel::<()>();
    let cache = pair.one.clone();
    let busy = tokio::spawn(async move {
        let load = || async {
            released.await.unwrap();
            Ok::<_, io::Error>("busy".to_owned())
        };
        cache.get_or_load(&Key::public("busy"), load).await
    });
    settle().await;
    let queued = ask(&pair.one, &[], "one");
    settle().await;
    assert_eq!(pair.one.stats().queued, 1);
    let began = pair.clock.now();
    assert_eq!(ask(&pair.two, &[], "two").await.unwrap().unwrap(), "two");
    assert!(pair.clock.now().since(began) < SECOND);
    // Who was queued finds that when it is its turn.
    release.send(()).unwrap();
    assert_eq!(queued.await.unwrap().unwrap(), "two");
    assert_eq!(busy.await.unwrap().unwrap(), "busy");
    assert_eq!(pair.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_lease_of_another_node_holds_no_place() {
    let pair = Pair::with(|builder| builder.max_loads(1)).await;
    let running = Running::start(&pair.one, &[]).await;
    let waiting = ask(&pair.two, &[], "two");
    settle().await;
    assert_eq!((pair.two.stats().awaited, pair.two.stats().loads), (1, 0));
    let load = || async { Ok::<_, io::Error>("other".to_owned()) };
    assert_eq!(pair.two.get_or_load(&Key::public("other"), load).await.unwrap(), "other");
    assert_eq!(running.end(Ok("one")).await.unwrap(), "one");
    assert_eq!(waiting.await.unwrap().unwrap(), "one");
}
