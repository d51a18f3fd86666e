//! A real Redis that dies, hangs, talks nonsense and changes its mind, under load: no caller gets an error that the
//! loader can spare him, no invalidation is lost, and nobody asks what is known to be away.
//!
//! ```text
//! MCP_PERF_OUTAGE_SECONDS=20 cargo test --release --test outage -- --nocapture killed
//! ```
//!
//! runs the outage for that long, prints what requests cost before, during and after it, and holds what it adds to them,
//! and the recovery, to what is promised: no more than the store's time-out in the first second, a millisecond while it is
//! left alone, and five seconds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]
#![allow(clippy::future_not_send, reason = "a test awaits them where it is")]
#![allow(clippy::print_stdout, reason = "what requests cost is for whoever runs it")]

mod support;

use std::{
    env,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    Error,
    cache::{Cache, Found, Key, Put, Restamp, Store, Written},
    clock::Clock,
    redis::RedisStore,
    testing::{
        FaultProxy, Weather,
        history::{Bounds, History, Node, Versioned},
    },
};
use support::{redis::RedisServer, wait::until};
use tokio::{task::JoinHandle, time::sleep};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const KEYS: usize = 50;
const CALLERS: usize = 4;
/// The default of `remote_timeout`.
const TIMEOUT: Duration = Duration::from_millis(250);
const TAGS: [&str; 2] = ["even", "odd"];
const BOUNDS: Bounds = Bounds {
    max_staleness: Duration::from_millis(500),
    time_to_live: Duration::from_secs(60),
    stale: Duration::ZERO,
    late: Duration::from_secs(10),
};

/// Counts what the cache asks its store; pings apart, which nobody waits for.
#[derive(Clone)]
struct Counted {
    store: RedisStore,
    calls: Arc<AtomicU64>,
    pings: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
    }
}

impl Store for Counted {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        self.count();
        self.store.get_many(entries, stamps).await
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        self.count();
        self.store.put_if(put).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        self.count();
        self.store.remove_many(entries, hold).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        self.count();
        self.store.restamp(stamps).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.pings.fetch_add(1, Ordering::SeqCst);
        self.store.ping().await
    }
}

/// Two nodes that are asked for something all the time.
struct Load {
    clock: Clock,
    history: History,
    nodes: Vec<Node>,
    stores: Vec<Counted>,
    errors: Arc<AtomicU64>,
    /// How long each request took since this was last looked at.
    times: Arc<Mutex<Vec<Duration>>>,
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    async fn start(url: &str) -> Self {
        let clock = Clock::system();
        let history = History::new(clock.clone(), BOUNDS);
        let (mut nodes, mut stores) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (calls, pings) = (Arc::default(), Arc::default());
            let store = Counted { store: RedisStore::new(url).unwrap(), calls, pings };
            let cache = Cache::<Versioned>::builder("test").clock(clock.clone());
            let cache = cache.time_to_live(BOUNDS.time_to_live).remote(store.clone());
            nodes.push(history.node(cache.max_staleness(BOUNDS.max_staleness).build().await.unwrap()));
            stores.push(store);
        }
        let mut load = Self {
            clock,
            history,
            nodes,
            stores,
            errors: Arc::default(),
            times: Arc::default(),
            stop: Arc::default(),
            callers: Vec::new(),
        };
        for caller in 0..2 * CALLERS {
            load.callers.push(tokio::spawn(load.caller(caller)));
        }
        load
    }

    fn caller(&self, number: usize) -> impl Future<Output = ()> + use<> {
        let (history, node) = (self.history.clone(), self.nodes[number % 2].clone());
        let (errors, times) = (Arc::clone(&self.errors), Arc::clone(&self.times));
        let (stop, clock) = (Arc::clone(&self.stop), self.clock.clone());
        let mut random = fastrand::Rng::with_seed(number as u64);
        async move {
            while !stop.load(Ordering::SeqCst) {
                let index = random.usize(..KEYS);
                let (key, tag) = (format!("key{index}"), TAGS[index % 2]);
                let began = clock.now();
                match random.u8(..100) {
                    0..4 => {
                        history.write(&key);
                        // In the background, again and again until everybody has been told.
                        let (node, by_tag, stop) = (node.clone(), random.u8(..8) == 0, Arc::clone(&stop));
                        tokio::spawn(async move {
                            while !stop.load(Ordering::SeqCst) {
                                let told = match by_tag {
                                    true => node.remove_by_tag(tag).await,
                                    false => node.remove(&key).await,
                                };
                                if told.is_ok() {
                                    break;
                                }
                                sleep(SECOND).await; // between tries
                            }
                        });
                    }
                    4..10 => drop(node.get(&key).await),
                    _ => {
                        let value = node.load(&key, &[tag], Duration::ZERO, Duration::ZERO).await;
                        errors.fetch_add(u64::from(value.is_none()), Ordering::SeqCst);
                        times.lock().unwrap().push(clock.now().since(began));
                    }
                }
                sleep(MILLISECOND).await; // between requests
            }
        }
    }

    /// Waits until every node leaves its store alone.
    async fn until_left_alone(&self) {
        for node in &self.nodes {
            until("the store is left alone", async || {
                let error = node.cache().remove(&Key::public("probe")).await.err()?;
                error.to_string().contains("left alone").then_some(())
            })
            .await;
        }
    }

    /// Waits until every node uses its store again, and has paid what it owed.
    async fn until_used_again(&self) {
        for node in &self.nodes {
            until("the store is used again", async || {
                for _ in 0..8 {
                    node.cache().remove(&Key::public("probe")).await.ok()?;
                }
                Some(())
            })
            .await;
        }
    }

    fn calls(&self) -> u64 {
        self.stores.iter().map(|store| store.calls.load(Ordering::SeqCst)).sum()
    }

    fn loads(&self) -> u64 {
        self.nodes.iter().map(|node| node.cache().stats().loads).sum()
    }

    /// Prints what requests cost since this was last asked, and tells what 99 of 100 took at most.
    fn report(&self, when: &str) -> Duration {
        let mut times = std::mem::take(&mut *self.times.lock().unwrap());
        times.sort_unstable();
        let at = |share: usize| {
            times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default()
        };
        println!("{when:>24}: {:6} requests, p50 {:>9.1?}, p99 {:>9.1?}", times.len(), at(50), at(99));
        at(99)
    }

    /// Stops, and holds everything that was read against what was promised.
    async fn finish(self) {
        // What failed has been tried again after this, and what is told now is known to everybody.
        sleep(SECOND + 2 * BOUNDS.max_staleness).await; // the bound itself
        self.stop.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.await.unwrap();
        }
        assert_eq!(
            self.errors.load(Ordering::SeqCst),
            0,
            "errors that the loader could have spared a caller"
        );
        let violations = self.history.check();
        assert!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
        assert!(self.history.values() > 500, "{} values", self.history.values());
    }
}

fn address(server: &RedisServer) -> SocketAddr {
    ([127, 0, 0, 1], server.port()).into()
}

/// As long as a normal run of the tests can spare, unless the environment says otherwise.
fn outage() -> (Duration, bool) {
    match env::var("MCP_PERF_OUTAGE_SECONDS") {
        Ok(seconds) => (Duration::from_secs(seconds.parse().expect("MCP_PERF_OUTAGE_SECONDS")), true),
        Err(_) => (SECOND, false),
    }
}

#[tokio::test]
async fn redis_that_is_killed_under_load_costs_no_error_and_no_invalidation() {
    let (outage, is_long) = outage();
    let mut server = RedisServer::start();
    let load = Load::start(&server.url()).await;
    sleep(outage.min(5 * SECOND)).await; // load
    let before = load.report("before");
    server.kill();
    if is_long {
        sleep(SECOND).await; // load
        let first = load.report("in the first second");
        assert!(first.saturating_sub(before) <= TIMEOUT, "{first:?} after {before:?}");
    }
    load.until_left_alone().await;
    load.report("until it is left alone");
    let (calls, loads) = (load.calls(), load.loads());
    sleep(outage).await; // load
    assert_eq!(load.calls(), calls, "nobody asks what is away");
    assert!(load.loads() > loads, "the loader serves");
    let alone = load.report("while it is left alone");
    assert!(!is_long || alone.saturating_sub(before) <= MILLISECOND, "{alone:?} after {before:?}");
    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    let _server = server.await.unwrap();
    let returned = load.clock.now();
    load.until_used_again().await;
    let took = load.clock.now().since(returned);
    load.report("until it is used again");
    println!("{:>24}: {took:?} after its return", "used again");
    sleep(outage.min(5 * SECOND)).await; // load
    load.report("after");
    assert!(!is_long || took < 5 * SECOND, "used again after {took:?}");
    load.finish().await;
}

#[tokio::test]
async fn connections_that_stall_or_talk_nonsense_under_load_cost_no_error_and_no_invalidation() {
    for weather in [Weather::Stall, Weather::Garble(7), Weather::Refuse] {
        let server = RedisServer::start();
        let proxy = FaultProxy::start(address(&server)).await.unwrap();
        let load = Load::start(&format!("redis://{}/", proxy.address())).await;
        sleep(300 * MILLISECOND).await; // load
        proxy.set(weather);
        load.until_left_alone().await;
        let calls = load.calls();
        sleep(300 * MILLISECOND).await; // load
        assert_eq!(load.calls(), calls, "{weather:?}: nobody asks what is away");
        proxy.set(Weather::Clear);
        load.until_used_again().await;
        assert!(load.calls() > calls);
        load.finish().await;
    }
}

#[tokio::test]
async fn connections_that_are_cut_again_and_again_cost_no_error_and_no_invalidation() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(address(&server)).await.unwrap();
    let load = Load::start(&format!("redis://{}/", proxy.address())).await;
    for _ in 0..50 {
        sleep(20 * MILLISECOND).await; // load
        proxy.cut();
    }
    load.until_used_again().await;
    load.finish().await;
}

#[tokio::test]
async fn redis_that_becomes_a_replica_costs_no_error_and_is_told_what_it_refused_when_it_takes_writes_again()
{
    let server = RedisServer::start();
    let load = Load::start(&server.url()).await;
    sleep(300 * MILLISECOND).await; // load
    let mut redis = server.connection().await;
    // Of nobody that answers, so it keeps what it has.
    let () = ::redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).query_async(&mut redis).await.unwrap();
    until("removals are refused", async || load.nodes[0].cache().remove(&Key::public("probe")).await.err())
        .await;
    sleep(SECOND).await; // load
    let () = ::redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).query_async(&mut redis).await.unwrap();
    load.until_used_again().await;
    load.finish().await;
}

#[tokio::test]
async fn write_that_was_given_up_and_arrives_after_a_removal_loses() {
    let server = RedisServer::start();
    let proxy = Arc::new(FaultProxy::start(address(&server)).await.unwrap());
    let node = async |url: &str| {
        let store = RedisStore::new(url).unwrap();
        Cache::<String>::builder("test").remote(store).build().await.unwrap()
    };
    let one = node(&format!("redis://{}/", proxy.address())).await;
    let two = node(&server.url()).await;
    let mut redis = server.connection().await;
    let mut scripts_run = async || {
        let stats: String = ::redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        let calls = line.split(['=', ',']).nth(1).unwrap_or("0");
        calls.parse::<u64>().unwrap()
    };
    // So that the script is known there: a late write is one message then.
    one.insert(&Key::public("warm"), "up".to_owned()).await.unwrap();

    let key = Key::public("key");
    let weather = Arc::clone(&proxy);
    let load = move || async move {
        weather.set(Weather::Stall);
        Ok::<_, Error>("old".to_owned())
    };
    assert_eq!(one.get_or_load(&key, load).await.unwrap(), "old");
    let before = scripts_run().await;
    // The write is given up.
    until("the write is given up", async || (one.stats().remote_failures > 0).then_some(())).await;
    two.remove(&key).await.unwrap();
    proxy.set(Weather::Clear);
    let mut arrived = false;
    for _ in 0..5_000 {
        arrived |= scripts_run().await > before;
        if arrived {
            break;
        }
        sleep(2 * MILLISECOND).await; // polling, bounded
    }
    assert!(arrived, "the write arrives late");
    assert_eq!(two.get(&key).await, None);
    let third = node(&server.url()).await;
    assert_eq!(third.get(&key).await, None);
}
