//! Seeded histories: four nodes in front of one store that goes wrong, and no stale read beyond the bound.
//!
//! Ten thousand steps are minutes of virtual time and a second of real time. Which seeds, and how many:
//!
//! ```text
//! MCP_PERF_HISTORIES=200 MCP_PERF_FIRST_SEED=1 cargo test --release --test history -- --nocapture seeded
//! ```
//!
//! A violation prints the seed and what happened to the key. `MCP_PERF_SHRINK=1` looks for a shorter history first.
//! A seed draws the same steps and faults each time; which keys share a stripe of the cache does not follow from it, so
//! a rare interleaving may take a few runs.
//! The same checker is held to find stale reads in caches whose store breaks its contract.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what is wrong by panicking"
)]

use std::{
    collections::{BTreeSet, HashMap},
    env,
    sync::{Arc, Mutex},
    time::Duration,
};

use mcp_perf::{
    Error,
    cache::{Cache, Engine, Found, Invalidation, Put, Restamp, Slot, Stamp, Store, Written},
    clock::Clock,
    testing::{
        Calls, Fault, FaultStore, MemoryBus, MemoryStore,
        history::{Bounds, Breach, History, Node, Violation},
    },
};
use tokio::time::{sleep, timeout};

const NODES: usize = 4;
const KEYS: usize = 6;
const TAGS: usize = 3;
const STEPS: usize = 10_000;
/// How many histories a defect has to be found in.
const HISTORIES: u64 = 50;
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const BOUNDS: Bounds = Bounds {
    max_staleness: Duration::from_secs(5),
    time_to_live: Duration::from_secs(60),
    stale: Duration::ZERO,
    late: Duration::from_secs(4),
};

/// What happens, after a pause.
#[derive(Clone, Debug)]
struct Step {
    pause: Duration,
    node: usize,
    key: usize,
    action: Action,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Cut(Calls),
    Get,
    /// The source changes, and the value is put where the old one was.
    Insert,
    /// A value from before the source's last change is inserted, which is its user's own fault.
    InsertOld,
    /// A look-up whose loader fails after so long.
    Fail(Duration),
    Invalidate(How, Caller),
    Join,
    Load {
        before: Duration,
        after: Duration,
        /// After which its caller goes away.
        patience: Duration,
    },
    /// The source changes and nobody is told.
    Write,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Clear,
    Expire,
    ExpireAll,
    ExpireTag,
    Remove,
    RemoveTag,
}

/// What a caller does about an invalidation that failed.
#[derive(Clone, Copy, Debug)]
enum Caller {
    GivesUp,
    GoesAway(Duration),
    TriesAgain,
}

/// From the number [`KEYS`] on one that makes its entry so large that it is asked about before it is read again.
fn key(index: usize) -> String {
    format!("key{index}{}", "-".repeat(index / KEYS * 4_096))
}

fn tag(index: usize) -> String {
    format!("tag{}", index % TAGS)
}

/// What a history is made of: every seed has its own mixture, since what one hides another shows.
#[derive(Clone, Copy, Debug)]
struct Mixture {
    /// Of a thousand steps.
    invalidations: u16,
    /// Of a hundred invalidations.
    clears: u8,
    /// Of a hundred invalidations those that leave what expired.
    expiries: u8,
    cuts: u16,
    /// The longest pause that is common.
    pause: Duration,
    /// The longest half of a load.
    load: Duration,
    /// How often something goes wrong, compared with the usual.
    faults: f64,
    /// Whether a key is loaded once for all nodes.
    shares_loads: bool,
    /// Whether every other load chooses its tags, instead of being given them.
    chooses_tags: bool,
    /// Whether the nodes tell each other what they invalidate, by a bus that loses, damages and holds up messages.
    has_bus: bool,
    /// For how long what is past its time may stand in for loads, some of which fail then. Nothing is lost on the way
    /// to the store, and nobody is cut off: while a node cannot ask, what was removed may stand in as well.
    stale: Duration,
}

impl Mixture {
    fn draw(random: &mut fastrand::Rng) -> Self {
        Self {
            invalidations: random.choice([10, 50, 150, 300]).unwrap(),
            clears: random.choice([0, 2, 10]).unwrap(),
            expiries: random.choice([0, 20, 80]).unwrap(),
            cuts: random.choice([0, 2, 20]).unwrap(),
            pause: random.choice([10, 50, 200]).unwrap() * MILLISECOND,
            load: random.choice([50, 1_000, 14_000]).unwrap() * MILLISECOND,
            faults: random.choice([0.2, 1.0, 1.8]).unwrap(),
            shares_loads: false,
            chooses_tags: false,
            has_bus: false,
            stale: Duration::ZERO,
        }
    }
}

/// Few large entries that are wanted often and change now and then, so that asking about them decides what is served.
fn draw_large(seed: u64) -> (Mixture, Vec<Step>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mixture = Mixture {
        invalidations: 20,
        clears: 2,
        expiries: 20,
        cuts: 2,
        pause: 200 * MILLISECOND,
        load: 50 * MILLISECOND,
        faults: 1.0,
        shares_loads: false,
        chooses_tags: false,
        has_bus: false,
        stale: Duration::ZERO,
    };
    let mut large = || {
        let step = draw_step(&mixture, &mut random);
        let is_seldom = random.u8(..20) == 0;
        let action = match step.action {
            Action::Insert | Action::InsertOld | Action::Write if !is_seldom => Action::Get,
            action => action,
        };
        Step { key: KEYS + step.key % 2, action, ..step }
    };
    (mixture, (0..STEPS / 2).map(|_| large()).collect())
}

/// Tags are removed often, seldom enough that some loads meet with none, and it is they that decide what is served.
fn draw_choosing(seed: u64) -> (Mixture, Vec<Step>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mixture = Mixture { chooses_tags: true, cuts: 2, load: SECOND, ..Mixture::draw(&mut random) };
    let mut step = || {
        let step = draw_step(&mixture, &mut random);
        let action = match step.action {
            Action::Invalidate(How::Remove, caller) => Action::Invalidate(How::RemoveTag, caller),
            Action::Invalidate(How::Expire, caller) => Action::Invalidate(How::ExpireTag, caller),
            action => action,
        };
        Step { action, ..step }
    };
    (mixture, (0..STEPS).map(|_| step()).collect())
}

/// Loads fail now and then, and what expired stands in for them.
fn draw_stale(seed: u64) -> (Mixture, Vec<Step>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mixture = Mixture { expiries: 60, cuts: 0, stale: 30 * SECOND, ..Mixture::draw(&mut random) };
    let mut step = || {
        let step = draw_step(&mixture, &mut random);
        let fails = random.u8(..4) == 0;
        let action = match step.action {
            Action::Load { before, .. } if fails => Action::Fail(before),
            action => action,
        };
        Step { action, ..step }
    };
    (mixture, (0..STEPS).map(|_| step()).collect())
}

fn draw(seed: u64) -> (Mixture, Vec<Step>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mixture = Mixture::draw(&mut random);
    (mixture, (0..STEPS).map(|_| draw_step(&mixture, &mut random)).collect())
}

fn draw_step(mixture: &Mixture, random: &mut fastrand::Rng) -> Step {
    let pause = match random.u8(..100) {
        0..40 => Duration::ZERO,
        40..98 => up_to(random, mixture.pause),
        _ => up_to(random, 10 * mixture.pause),
    };
    let expires = random.u8(..100) < mixture.expiries;
    let how = match random.u8(..100) {
        share if share < mixture.clears => {
            if expires {
                How::ExpireAll
            } else {
                How::Clear
            }
        }
        share if share < mixture.clears + 25 => {
            if expires {
                How::ExpireTag
            } else {
                How::RemoveTag
            }
        }
        _ => {
            if expires {
                How::Expire
            } else {
                How::Remove
            }
        }
    };
    let caller = match random.u8(..10) {
        0 => Caller::GoesAway(up_to(random, 300 * MILLISECOND)),
        1..4 => Caller::GivesUp,
        _ => Caller::TriesAgain,
    };
    let action = match random.u16(..1_000) {
        share if share < mixture.invalidations => Action::Invalidate(how, caller),
        share if share < mixture.invalidations + mixture.cuts => match random.u8(..4) {
            0 => Action::Cut(random.choice([Calls::All, Calls::Reads, Calls::Writes]).unwrap()),
            _ => Action::Join,
        },
        _ => match random.u8(..100) {
            0..60 => {
                let longest = if random.u8(..5) == 0 { mixture.load } else { 20 * MILLISECOND };
                let (before, after) = (up_to(random, longest), up_to(random, longest));
                let goes_away = random.u8(..20) == 0;
                let patience = if goes_away { up_to(random, 400 * MILLISECOND) } else { 60 * SECOND };
                Action::Load { before, after, patience }
            }
            60..94 => Action::Get,
            94..98 => Action::Insert,
            98 => Action::InsertOld,
            _ => Action::Write,
        },
    };
    Step { pause, node: random.usize(..NODES), key: random.usize(..KEYS), action }
}

fn up_to(random: &mut fastrand::Rng, longest: Duration) -> Duration {
    longest.mul_f64(random.f64())
}

/// What a run came to.
struct Run {
    history: History,
    violations: Vec<Violation>,
    faults: u64,
    /// How often an entry was asked about, and had not changed.
    unchanged: u64,
    /// How often a stale value was served.
    stale_hits: u64,
    /// How many loaded values were not stored.
    fenced: u64,
    /// How often something was announced and not heard of.
    gaps: u64,
}

/// Every other history is one of the other engine.
fn engine(seed: u64) -> Engine {
    #[cfg(feature = "quick-cache")]
    if seed.is_multiple_of(2) {
        return Engine::QuickCache;
    }
    let _ = seed;
    Engine::Moka
}

/// Does to a node's end of the bus what buses do; some of it until something else happens.
fn disturb(end: &MemoryBus, random: &mut fastrand::Rng) {
    match random.u8(..100) {
        0..8 => end.lose(random.usize(1..4)),
        8..11 => end.damage(1),
        11..13 => end.refuse(true),
        13..15 => end.deafen(true),
        15..18 => end.hold(),
        18..20 => end.repeat(true),
        20..22 => end.disconnect(),
        22..40 => {
            end.refuse(false);
            end.deafen(false);
            end.repeat(false);
            end.release();
        }
        _ => {}
    }
}

/// Runs steps on nodes in front of what `broken` makes of a store.
fn run<S: Store>(seed: u64, mixture: &Mixture, steps: &[Step], broken: impl FnOnce(MemoryStore) -> S) -> Run {
    // Stamps and jitter as well.
    fastrand::seed(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let clock = Clock::tokio();
        let bounds = Bounds { stale: mixture.stale, ..BOUNDS };
        let history = History::new(clock.clone(), bounds);
        let network = FaultStore::new(broken(MemoryStore::new(clock.clone())), seed);
        network.longest(200 * MILLISECOND, BOUNDS.late);
        let (mut nodes, mut ends) = (Vec::new(), Vec::new());
        let bus = MemoryBus::new();
        for _ in 0..NODES {
            let view = network.node();
            let cache = Cache::builder("test").clock(clock.clone()).time_to_live(BOUNDS.time_to_live);
            let cache = cache.engine(engine(seed));
            let mut cache = cache.stale_if_error(mixture.stale);
            if mixture.chooses_tags {
                cache = cache.loader_tags();
            }
            let mut cache = cache.remote(view.clone()).max_staleness(BOUNDS.max_staleness);
            if mixture.shares_loads {
                cache = cache.share_loads(SECOND);
            }
            if mixture.has_bus {
                let end = bus.end();
                cache = cache.bus(end.clone());
                ends.push(end);
            }
            nodes.push((history.node(cache.build().await.unwrap()), view));
        }
        for (fault, rate) in [
            (Fault::Break, 0.02),
            (Fault::Delay, 0.30),
            (Fault::Garble, 0.02),
            (Fault::Late, 0.04),
            (Fault::LoseAnswer, 0.02),
            (Fault::LoseRequest, 0.02),
            (Fault::Refuse, 0.01),
            (Fault::Reorder, 0.10),
        ] {
            if mixture.stale.is_zero() || matches!(fault, Fault::Delay | Fault::Reorder) {
                network.rate(fault, rate * mixture.faults);
            }
        }
        let mut random = fastrand::Rng::with_seed(seed);
        for step in steps {
            sleep(step.pause).await; // virtual
            let (node, view) = &nodes[step.node];
            ends.get(step.node).into_iter().for_each(|end| disturb(end, &mut random));
            match step.action {
                Action::Cut(calls) => view.cut(calls),
                Action::Join => view.join(),
                _ => {
                    let (history, node) = (history.clone(), node.clone());
                    drop(tokio::spawn(act(history, node, step.clone(), mixture.chooses_tags)));
                }
            }
        }
        network.calm();
        nodes.iter().for_each(|(_, view)| view.join());
        // Until everything that was under way has ended, and every gate is open again.
        sleep(60 * SECOND).await; // virtual
        let keys: BTreeSet<usize> = steps.iter().map(|step| step.key).collect();
        for (node, _) in &nodes {
            for &index in &keys {
                node.load(&key(index), &[&tag(index)], Duration::ZERO, Duration::ZERO).await;
            }
        }
        let violations = history.check();
        let faults =
            [Fault::Late, Fault::LoseAnswer, Fault::LoseRequest].map(|fault| network.met_with(fault));
        let faults = faults.iter().sum();
        let unchanged = nodes.iter().map(|(node, _)| node.cache().stats().remote_unchanged).sum();
        let stale_hits = nodes.iter().map(|(node, _)| node.cache().stats().stale_hits).sum();
        let fenced = nodes.iter().map(|(node, _)| node.cache().stats().fenced).sum();
        let gaps = nodes.iter().map(|(node, _)| node.cache().stats().bus.gaps).sum();
        Run { history, violations, faults, unchanged, stale_hits, fenced, gaps }
    })
}

async fn act(history: History, node: Node, step: Step, chooses_tags: bool) {
    let (key, tag) = (key(step.key), tag(step.key));
    let tags = [&*tag];
    match step.action {
        Action::Cut(_) | Action::Join => {}
        Action::Fail(after) => drop(node.load_failing(&key, &tags, after).await),
        Action::Get => drop(node.get(&key).await),
        Action::Insert => {
            let value = history.write(&key);
            let _ = node.insert(value, &tags).await;
        }
        Action::InsertOld => {
            let value = history.read(&key);
            history.write(&key);
            let _ = node.insert(value, &tags).await;
        }
        Action::Load { before, after, patience } if chooses_tags && before.as_nanos() % 2 == 0 => {
            let _ = timeout(patience, node.load_choosing(&key, &tags, before, after)).await;
        }
        Action::Load { before, after, patience } => {
            let _ = timeout(patience, node.load(&key, &tags, before, after)).await;
        }
        Action::Invalidate(how, caller) => {
            history.write(&key);
            let invalidate = || async {
                match how {
                    How::Clear => node.clear().await,
                    How::Expire => node.expire(&key).await,
                    How::ExpireAll => node.expire_all().await,
                    How::ExpireTag => node.expire_by_tag(&tag).await,
                    How::Remove => node.remove(&key).await,
                    How::RemoveTag => node.remove_by_tag(&tag).await,
                }
            };
            match caller {
                Caller::GivesUp => drop(invalidate().await),
                Caller::GoesAway(patience) => drop(timeout(patience, invalidate()).await),
                Caller::TriesAgain => {
                    for _ in 0..5 {
                        if invalidate().await.is_ok() {
                            break;
                        }
                        sleep(300 * MILLISECOND).await; // virtual
                    }
                }
            }
        }
        Action::Write => drop(history.write(&key)),
    }
}

fn number(name: &str, unless_set: u64) -> u64 {
    env::var(name).ok().map_or(unless_set, |number| number.parse().expect(name))
}

/// Leaves steps out as long as something is still wrong, for at most so many runs.
fn shrink<S: Store>(
    seed: u64,
    mixture: &Mixture,
    mut steps: Vec<Step>,
    broken: impl Fn(MemoryStore) -> S,
) -> Vec<Step> {
    let mut runs = 2_000;
    let mut length = steps.len() / 2;
    while length > 0 && runs > 0 {
        let mut from = 0;
        while from < steps.len() && runs > 0 {
            let mut fewer = steps.clone();
            // What comes later keeps its time.
            let pause: Duration =
                fewer.drain(from..(from + length).min(steps.len())).map(|step| step.pause).sum();
            if let Some(next) = fewer.get_mut(from) {
                next.pause += pause;
            }
            runs -= 1;
            if run(seed, mixture, &fewer, &broken).violations.is_empty() {
                from += length;
            } else {
                steps = fewer;
            }
        }
        length /= 2;
    }
    steps
}

#[test]
fn seeded_histories_with_faults_have_no_stale_read_beyond_the_bound() {
    seeded_histories(false);
}

#[test]
fn seeded_histories_of_shared_loads_have_no_stale_read_beyond_the_bound() {
    seeded_histories(true);
}

fn seeded_histories(shares_loads: bool) {
    let (first, histories) = (number("MCP_PERF_FIRST_SEED", 1), number("MCP_PERF_HISTORIES", 3));
    for seed in first..first + histories {
        let (mut mixture, mut steps) = draw(seed);
        mixture.shares_loads = shares_loads;
        let mut outcome = run(seed, &mixture, &steps, |store| store);
        if !outcome.violations.is_empty() && env::var_os("MCP_PERF_SHRINK").is_some() {
            steps = shrink(seed, &mixture, steps, |store| store);
            outcome = run(seed, &mixture, &steps, |store| store);
            for step in &steps {
                println!("{step:?}");
            }
        }
        let Run { history, violations, faults, .. } = outcome;
        let (calls, values) = (history.calls().len(), history.values());
        println!("seed {seed}: {calls} calls, {values} values, {faults} faults, {mixture:?}");
        if let Some(violation) = violations.first() {
            panic!("seed {seed}, {} violations, the first: {violation}", violations.len());
        }
        // Or the history proves nothing.
        assert!(5 * values > calls && faults > 20, "{values} of {calls} calls, {faults} faults");
    }
}

#[test]
fn seeded_histories_with_a_bus_that_fails_have_no_stale_read_beyond_the_bound() {
    let (first, histories) = (number("MCP_PERF_FIRST_SEED", 1), number("MCP_PERF_HISTORIES", 4));
    for seed in first..first + histories {
        let (mut mixture, steps) = draw(seed);
        mixture.has_bus = true;
        let Run { history, violations, gaps, .. } = run(seed, &mixture, &steps, |store| store);
        let (calls, values) = (history.calls().len(), history.values());
        println!("seed {seed}: {calls} calls, {values} values, {gaps} gaps, {mixture:?}");
        if let Some(violation) = violations.first() {
            panic!("seed {seed}, {} violations, the first: {violation}", violations.len());
        }
        // Or the history proves nothing of the bus.
        assert!(5 * values > calls && gaps > 5, "{values} of {calls} calls, {gaps} gaps");
    }
}

#[test]
fn seeded_histories_of_large_entries_have_no_stale_read_beyond_the_bound() {
    let (first, histories) = (number("MCP_PERF_FIRST_SEED", 1), number("MCP_PERF_HISTORIES", 3));
    for seed in first..first + histories {
        let (mixture, steps) = draw_large(seed);
        let Run { violations, unchanged, .. } = run(seed, &mixture, &steps, |store| store);
        println!("seed {seed}: {unchanged} unchanged");
        if let Some(violation) = violations.first() {
            panic!("seed {seed}, {} violations, the first: {violation}", violations.len());
        }
        // Or the history proves nothing of asking.
        assert!(unchanged > 30, "{unchanged}");
    }
}

#[test]
fn seeded_histories_with_stale_values_that_stand_in_have_no_stale_read_where_none_may() {
    let (first, histories) = (number("MCP_PERF_FIRST_SEED", 1), number("MCP_PERF_HISTORIES", 3));
    for seed in first..first + histories {
        for shares_loads in [false, true] {
            let (mut mixture, steps) = draw_stale(seed);
            mixture.shares_loads = shares_loads;
            let Run { violations, stale_hits, .. } = run(seed, &mixture, &steps, |store| store);
            println!("seed {seed}: {stale_hits} stale, {mixture:?}");
            if let Some(violation) = violations.first() {
                panic!("seed {seed}, {} violations, the first: {violation}", violations.len());
            }
            // Or the history proves nothing of what stands in.
            assert!(stale_hits > 20, "{stale_hits}");
        }
    }
}

#[test]
fn seeded_histories_of_tags_that_loaders_choose_have_no_stale_read_beyond_the_bound() {
    let (first, histories) = (number("MCP_PERF_FIRST_SEED", 1), number("MCP_PERF_HISTORIES", 3));
    for seed in first..first + histories {
        for shares_loads in [false, true] {
            let (mut mixture, steps) = draw_choosing(seed);
            mixture.shares_loads = shares_loads;
            let Run { history, violations, fenced, .. } = run(seed, &mixture, &steps, |store| store);
            let (calls, values) = (history.calls().len(), history.values());
            println!("seed {seed}: {calls} calls, {values} values, {fenced} fenced, {mixture:?}");
            if let Some(violation) = violations.first() {
                panic!("seed {seed}, {} violations, the first: {violation}", violations.len());
            }
            // Or the history proves nothing.
            assert!(5 * values > calls && fenced > 5, "{values} of {calls} calls, {fenced} fenced");
        }
    }
}

// ===== the check can fail =====

/// A store that breaks its contract in one way.
#[derive(Clone)]
struct Broken {
    inner: MemoryStore,
    how: Defect,
    /// The stamps that were answered first.
    stamps: Arc<Mutex<HashMap<String, Stamp>>>,
    /// The entries that were read last, by name.
    read: Arc<Mutex<HashMap<String, Slot>>>,
    /// The name of the entry that was read last.
    last: Arc<Mutex<Option<String>>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    /// Who asks about an entry is told what was last read of it.
    AnswersOldPeeks,
    /// Tags and the whole cache never expire.
    DropsExpiries,
    /// Removals and new stamps are acknowledged, and not made.
    DropsInvalidations,
    /// A removal leaves nothing that would refuse a write from before it.
    ForgetsRemovals,
    /// The stamp of any tag never changes.
    ForgetsAnyTag,
    /// Entries live for ever.
    ForgetsLives,
    /// Writes are made whatever their fence is.
    IgnoresFences,
    /// Every answer has the stamps that were answered first.
    RemembersOldStamps,
    /// The entry that was asked for before is answered.
    SwapsEntries,
}

impl Broken {
    fn by(how: Defect) -> impl Fn(MemoryStore) -> Self {
        move |inner| Self { inner, how, stamps: Arc::default(), read: Arc::default(), last: Arc::default() }
    }
}

impl Store for Broken {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let mut found = self.inner.get_many(entries, stamps).await?;
        if self.how == Defect::RemembersOldStamps {
            let mut first = self.stamps.lock().unwrap();
            for (name, stamp) in stamps.iter().zip(&mut found.stamps) {
                *stamp = *first.entry((*name).to_owned()).or_insert(*stamp);
            }
        }
        if self.how == Defect::SwapsEntries
            && let [entry] = entries
        {
            let last = self.last.lock().unwrap().replace((*entry).to_owned());
            let last = last.unwrap_or_default();
            found.entries = self.inner.get_many(&[&last], &[]).await?.entries;
        }
        if self.how == Defect::AnswersOldPeeks {
            let names = entries.iter().map(ToString::to_string);
            self.read.lock().unwrap().extend(names.zip(found.entries.iter().cloned()));
        }
        Ok(found)
    }

    async fn peek_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        if self.how != Defect::AnswersOldPeeks {
            return self.get_many(entries, stamps).await;
        }
        let mut found = self.inner.peek_many(entries, stamps).await?;
        let read = self.read.lock().unwrap();
        for (name, slot) in entries.iter().zip(&mut found.entries) {
            *slot = read.get(*name).unwrap_or(slot).clone();
        }
        Ok(found)
    }

    async fn put_if(&self, mut put: Put<'_>) -> Result<Written, Error> {
        let ignores = match self.how {
            Defect::IgnoresFences => true,
            Defect::ForgetsRemovals => {
                self.inner.get_many(&[put.name], &[]).await?.entries[0].entry.is_none()
            }
            _ => false,
        };
        if ignores {
            put.fence = None;
        }
        if self.how == Defect::ForgetsLives {
            put.time_to_live = 3_600 * SECOND;
        }
        self.inner.put_if(put).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        if self.how == Defect::DropsInvalidations {
            return Ok(());
        }
        self.inner.remove_many(entries, hold).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        let is_dropped = |change: &Restamp<'_>| match self.how {
            Defect::DropsExpiries => change.invalidation == Invalidation::Expire,
            Defect::ForgetsAnyTag => change.name.ends_with(":anytag"),
            how => how == Defect::DropsInvalidations,
        };
        if stamps.iter().any(is_dropped) {
            return Ok(());
        }
        self.inner.restamp(stamps).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.inner.ping().await
    }
}

/// How often reads of each kind were found, in as many histories as it takes to find one.
fn breaches(
    draw: fn(u64) -> (Mixture, Vec<Step>),
    defect: Defect,
    shares_loads: bool,
    wanted: impl Fn(&Breach) -> bool,
) -> usize {
    (1..=HISTORIES)
        .map(|seed| {
            let (mut mixture, steps) = draw(seed);
            mixture.shares_loads = shares_loads;
            let violations = run(seed, &mixture, &steps, Broken::by(defect)).violations;
            violations.iter().filter(|violation| wanted(&violation.breach)).count()
        })
        .find(|found| *found > 0)
        .unwrap_or_default()
}

#[test]
fn stale_reads_are_found_where_a_store_breaks_its_contract() {
    for defect in [
        Defect::DropsInvalidations,
        Defect::ForgetsRemovals,
        Defect::IgnoresFences,
        Defect::RemembersOldStamps,
    ] {
        for shares_loads in [false, true] {
            let found = breaches(draw, defect, shares_loads, |breach| matches!(breach, Breach::Stale { .. }));
            println!("{defect:?}, loads shared: {shares_loads}: {found}");
            assert!(found > 0, "{defect:?}, loads shared: {shares_loads}");
        }
    }
    let defect = Defect::DropsExpiries;
    let found = breaches(draw_stale, defect, false, |breach| matches!(breach, Breach::Stale { .. }));
    println!("{defect:?}: {found}");
    assert!(found > 0, "{defect:?}");
    let defect = Defect::ForgetsAnyTag;
    let found = breaches(draw_choosing, defect, false, |breach| matches!(breach, Breach::Stale { .. }));
    println!("{defect:?}: {found}");
    assert!(found > 0, "{defect:?}");
    let defect = Defect::AnswersOldPeeks;
    let found = breaches(draw_large, defect, false, |breach| matches!(breach, Breach::Stale { .. }));
    println!("{defect:?}: {found}");
    assert!(found > 0, "{defect:?}");
}

#[test]
fn lives_that_are_too_long_are_found() {
    assert!(breaches(draw, Defect::ForgetsLives, false, |breach| matches!(breach, Breach::Outlived(_))) > 0);
}

#[test]
fn store_that_mixes_up_its_entries_is_harmless_since_the_key_is_written_in_them() {
    let (mixture, steps) = draw(1);
    let violations = run(1, &mixture, &steps, Broken::by(Defect::SwapsEntries)).violations;
    assert!(violations.is_empty(), "{}", violations[0]);
}
