//! Finds what should not have been read.
//!
//! A [`History`] is the source of truth of a test, and its witness. The *source* is a map of versions: every
//! [write](History::write) gives a key its next version, and [loaders](History::loader) read it. [`Node`]s, one for
//! each cache in front of it, note what they were asked for, what came of it, and when either was. Afterwards
//! [`check`](History::check) goes through what was noted and names every read that breaks a promise.
//!
//! # What is a violation
//!
//! An *invalidation* is a removal, of a key, by a tag, or of everything; or an insertion, which takes the place of
//! what was there. It **outlaws** every version that had been superseded in the source when it was asked for: an
//! insertion those before its own. A read that returned such a version is a violation if it was asked for
//!
//! - on the same node, after the invalidation had ended, be it with an error: what a node was told to forget it does
//!   not serve;
//! - on another node, [`max_staleness`](Bounds::max_staleness) or more after the invalidation had ended **without** an
//!   error.
//!
//! An expiry outlaws as well, for reads that do not load. One that loads may be given the outlawed on purpose, where
//! [`stale`](Bounds::stale) is more than zero, as long as its life lasts and nothing was removed. Besides, a read must
//! not return a version
//!
//! - of another key, or that the source never had by the time the read ended;
//! - that nobody had offered to a cache: no loader that had returned, no insertion that had begun;
//! - whose life was over when it was asked for: counted from the end of the last load or insertion of this version,
//!   [`time_to_live`](Bounds::time_to_live) and [`late`](Bounds::late) long, and for reads that load
//!   [`stale`](Bounds::stale) longer.
//!
//! # What is not
//!
//! The aim is that every report is a fault of the cache. So wherever two things were under way at once, the order
//! that excuses the cache is assumed:
//!
//! - A read that was asked for before the invalidation ended may have been answered before it. Nothing is said of it,
//!   even if it ended much later (it waited for a load).
//! - A version that was superseded *while* an invalidation was under way is not outlawed by it.
//! - An invalidation that never ended (its caller was dropped) outlaws nothing, and one that ended with an error
//!   outlaws nothing on other nodes: it may be carried out later, or never. A node that calls again until there is no
//!   error has a claim.
//! - Whoever **inserts** an old version has himself to blame. A read may return what an insertion offered, unless
//!   that had ended, with an error or without, before the invalidation was asked for. One that had failed may arrive
//!   late, and that must not undo the invalidation, so it is no excuse.
//! - A tag outlaws a version only where every load and insertion that offered it carried the tag.
//! - A read that returned nothing, or an error, claims nothing.
//!
//! Moments are times of a [`Clock`] and, within one time, the order in which they were noted, so virtual time that
//! stands still loses no order. Reads are held against invalidations one by one: linearisability of a register whose
//! writes are the invalidations, with a window for other nodes. Whether reads of one node are monotonic is not asked:
//! a bounded staleness does not promise it.
//!
//! # Bounds
//!
//! The history holds everything it was told, and grows without one: a test makes as many steps as it means to.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::judge::{Judge, seconds};
use crate::{
    Error,
    cache::{Cache, Key, Loaded},
    clock::{Clock, Instant},
};

/// A value of the source: the version of a key. What the caches under test hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Versioned {
    /// The key that it is a value of.
    pub key: String,
    /// Counted from 1 for each key; 0 is what was there before the first write.
    pub version: u64,
}

/// What the caches under test promise.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a test that forgets a new promise should not compile")]
pub struct Bounds {
    /// The setting of that name.
    pub max_staleness: Duration,
    /// The longest life of an entry.
    pub time_to_live: Duration,
    /// For how long a cache may serve on purpose what has expired, never what was removed: zero unless it is told to.
    ///
    /// While a cache cannot reach its store it may let a removed value stand in as well, since it cannot know. Where
    /// this is more than zero the store has to answer, or that is reported.
    pub stale: Duration,
    /// How late a write may reach the store after the caller gave it up. An entry lives so much longer then, where a
    /// store counts its life from when it arrives.
    pub late: Duration,
}

/// What a node was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// A look-up that does not load.
    Get(String),
    /// A look-up that loads.
    Load(String),
    /// A value and its tags.
    Insert(Versioned, Vec<String>),
    /// The removal of a key.
    Remove(String),
    /// The removal of what carries a tag.
    RemoveByTag(String),
    /// The removal of everything.
    Clear,
    /// The expiry of a key.
    Expire(String),
    /// The expiry of what carries a tag.
    ExpireByTag(String),
    /// The expiry of everything.
    ExpireAll,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a call has no other end")]
pub enum Outcome {
    /// It was carried out.
    Done,
    /// It ended with an error.
    Failed,
    /// There was nothing.
    Nothing,
    /// A value was returned.
    Value(Versioned),
}

/// When something was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Moment {
    /// The time.
    pub at: Instant,
    /// Its place among everything that was noted.
    pub order: u64,
}

/// One call of one node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Call {
    /// Which node.
    pub node: usize,
    /// What it was asked for.
    pub operation: Operation,
    /// When.
    pub began: Moment,
    /// When it ended and how; `None` while it is under way, and for ever if its caller was dropped.
    pub ended: Option<(Moment, Outcome)>,
}

/// What was wrong with a read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Breach {
    /// The value is of another key.
    OtherKey,
    /// Nobody had offered it to a cache, or the source never had it.
    NeverOffered,
    /// It had been outlawed; by the call with this number.
    Stale {
        /// The place of the invalidation in [`History::calls`].
        by: usize,
        /// How long it had been unlawful when it was asked for.
        since: Duration,
    },
    /// Its life had been over for so long.
    Outlived(Duration),
}

/// A read that breaks a promise. The first ones print what happened to their key as well.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Violation {
    /// The read.
    pub read: Call,
    /// What is wrong with it.
    pub breach: Breach,
    pub(super) story: Vec<String>,
}

/// The source and the witness of a test; cheap to clone, and clones are the same.
///
/// ```
/// use mcp_perf::{
///     cache::Cache,
///     clock::Clock,
///     testing::{FaultStore, MemoryStore, history::{Bounds, History}},
/// };
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
/// let clock = Clock::tokio();
/// let second = Duration::from_secs(1);
/// let bounds =
///     Bounds { max_staleness: 5 * second, time_to_live: 300 * second, stale: Duration::ZERO, late: Duration::ZERO };
/// let history = History::new(clock.clone(), bounds);
/// let network = FaultStore::new(MemoryStore::new(clock.clone()), 1);
/// let mut nodes = Vec::new();
/// for _ in 0..2 {
///     let cache = Cache::builder("test").clock(clock.clone()).remote(network.node()).build().await?;
///     nodes.push(history.node(cache));
/// }
///
/// nodes[0].load("a", &["tag"], Duration::ZERO, Duration::ZERO).await;
/// nodes[1].load("a", &["tag"], Duration::ZERO, Duration::ZERO).await;
/// history.write("a");
/// nodes[0].remove_by_tag("tag").await;
/// // The other node may serve it from memory for as long as that, and no longer.
/// nodes[1].get("a").await;
/// tokio::time::sleep(bounds.max_staleness).await;
/// nodes[1].get("a").await;
/// assert!(history.check().is_empty(), "{}", history.check()[0]);
/// assert_eq!(history.values(), 3);
/// # Ok::<_, mcp_perf::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct History {
    clock: Clock,
    bounds: Bounds,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
pub(super) struct Log {
    order: u64,
    nodes: usize,
    /// When each version of a key came to be, the first of them version 1.
    pub(super) source: BTreeMap<String, Vec<Moment>>,
    pub(super) offers: Vec<Offer>,
    pub(super) calls: Vec<Call>,
}

/// A version that a loader returned, at that moment. Insertions are offers too; those are found among the calls.
pub(super) struct Offer {
    pub(super) value: Versioned,
    pub(super) tags: Vec<String>,
    pub(super) at: Moment,
}

/// A call that was begun. Where it is dropped without its end, it has none.
#[must_use = "without its end it is a call whose caller was dropped"]
pub struct Running {
    history: History,
    call: usize,
}

impl History {
    /// A source without a write, and nothing noted. `clock` is that of the caches under test.
    #[must_use]
    pub fn new(clock: Clock, bounds: Bounds) -> Self {
        Self { clock, bounds, log: Arc::default() }
    }

    /// Puts a cache under observation, as the next node.
    #[must_use]
    pub fn node(&self, cache: Cache<Versioned>) -> Node {
        let mut log = self.log();
        log.nodes += 1;
        Node { history: self.clone(), number: log.nodes - 1, cache }
    }

    /// Changes the source: the key has its next version from now on.
    #[expect(clippy::must_use_candidate, reason = "most tests do not ask which version it is")]
    pub fn write(&self, key: &str) -> Versioned {
        let mut log = self.log();
        let now = log.moment(&self.clock);
        log.source.entry(key.to_owned()).or_default().push(now);
        log.latest(key)
    }

    /// What the source has now.
    #[must_use]
    pub fn read(&self, key: &str) -> Versioned {
        self.log().latest(key)
    }

    /// A loader that reads the source after `before`, and returns what it read after another `after`.
    pub async fn loader(
        &self,
        key: String,
        tags: Vec<String>,
        before: Duration,
        after: Duration,
    ) -> Versioned {
        sleep(before).await;
        let value = self.read(&key);
        sleep(after).await;
        let mut log = self.log();
        let at = log.moment(&self.clock);
        log.offers.push(Offer { value: value.clone(), tags, at });
        value
    }

    /// Notes that a node is asked for something; for caches that are no [`Cache`].
    pub fn begin(&self, node: usize, operation: Operation) -> Running {
        let mut log = self.log();
        let began = log.moment(&self.clock);
        log.calls.push(Call { node, operation, began, ended: None });
        Running { history: self.clone(), call: log.calls.len() - 1 }
    }

    /// Everything that the nodes were asked for, in the order in which they were.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.log().calls.clone()
    }

    /// How many reads returned a value: a test that finds nothing should have read something.
    #[must_use]
    pub fn values(&self) -> usize {
        self.log().calls.iter().filter(|call| call.value().is_some()).count()
    }

    /// Every read that breaks a promise, in the order in which they began.
    #[must_use]
    pub fn check(&self) -> Vec<Violation> {
        let log = self.log();
        Judge::new(&log, self.bounds).violations()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Notes how it ended.
    pub fn end(self, outcome: Outcome) {
        let mut log = self.history.log();
        let now = log.moment(&self.history.clock);
        log.calls[self.call].ended = Some((now, outcome));
    }

    fn end_with(self, result: &Result<(), Error>) {
        self.end(if result.is_ok() { Outcome::Done } else { Outcome::Failed });
    }
}

impl Log {
    fn moment(&mut self, clock: &Clock) -> Moment {
        self.order += 1;
        Moment { at: clock.now(), order: self.order }
    }

    fn latest(&self, key: &str) -> Versioned {
        let version = self.source.get(key).map_or(0, Vec::len) as u64;
        Versioned { key: key.to_owned(), version }
    }
}

/// A cache under observation; cheap to clone, and clones are the same node.
#[derive(Clone)]
pub struct Node {
    history: History,
    number: usize,
    cache: Cache<Versioned>,
}

impl Node {
    /// The cache itself. What it is asked for directly is not noted.
    #[must_use]
    pub fn cache(&self) -> &Cache<Versioned> {
        &self.cache
    }

    /// Looks a key up.
    pub async fn get(&self, key: &str) -> Option<Versioned> {
        let running = self.begin(Operation::Get(key.to_owned()));
        let value = self.cache.get(&Key::public(key)).await;
        running.end(value.clone().map_or(Outcome::Nothing, Outcome::Value));
        value
    }

    /// Looks a key up, and loads it from the source, with such delays before and after reading it. Returns whether
    /// there was a value.
    pub async fn load(
        &self,
        key: &str,
        tags: &[&str],
        before: Duration,
        after: Duration,
    ) -> Option<Versioned> {
        let owned = tags.iter().map(ToString::to_string).collect();
        let (history, name) = (self.history.clone(), key.to_owned());
        let load = async move { Ok(history.loader(name, owned, before, after).await.into()) };
        self.load_by(key, tags, load).await
    }

    /// The same, with a loader that chooses the tags: for a cache with
    /// [`loader_tags`](crate::cache::CacheBuilder::loader_tags).
    pub async fn load_choosing(
        &self,
        key: &str,
        tags: &[&str],
        before: Duration,
        after: Duration,
    ) -> Option<Versioned> {
        let owned: Vec<String> = tags.iter().map(ToString::to_string).collect();
        let (history, name) = (self.history.clone(), key.to_owned());
        let load = async move {
            let value = history.loader(name, owned.clone(), before, after).await;
            Ok(Loaded::new(value).tags(owned))
        };
        self.load_by(key, &[], load).await
    }

    /// Looks a key up with a loader that fails after so long. Returns what stood in for it, or what was there.
    pub async fn load_failing(&self, key: &str, tags: &[&str], after: Duration) -> Option<Versioned> {
        let fail = async move {
            sleep(after).await;
            Err(Error::unavailable("the source of the test is away", io::Error::other("as it was told")))
        };
        self.load_by(key, tags, fail).await
    }

    async fn load_by(
        &self,
        key: &str,
        tags: &[&str],
        load: impl Future<Output = Result<Loaded<Versioned>, Error>> + Send + 'static,
    ) -> Option<Versioned> {
        let running = self.begin(Operation::Load(key.to_owned()));
        let value = self.cache.get_or_load_tagged(&Key::public(key), tags, || load).await.ok();
        running.end(value.clone().map_or(Outcome::Failed, Outcome::Value));
        value
    }

    /// Inserts a value.
    ///
    /// # Errors
    ///
    /// Those of the cache.
    pub async fn insert(&self, value: Versioned, tags: &[&str]) -> Result<(), Error> {
        let owned = tags.iter().map(ToString::to_string).collect();
        let running = self.begin(Operation::Insert(value.clone(), owned));
        let key = value.key.clone();
        let done = self.cache.insert_tagged(&Key::public(&*key), tags, Loaded::new(value)).await;
        running.end_with(&done);
        done
    }

    /// Removes a key.
    ///
    /// # Errors
    ///
    /// Those of the cache.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        let running = self.begin(Operation::Remove(key.to_owned()));
        let done = self.cache.remove(&Key::public(key)).await;
        running.end_with(&done);
        done
    }

    /// Removes what carries a tag.
    ///
    /// # Errors
    ///
    /// Those of the cache.
    pub async fn remove_by_tag(&self, tag: &str) -> Result<(), Error> {
        let running = self.begin(Operation::RemoveByTag(tag.to_owned()));
        let done = self.cache.remove_by_tag(tag).await;
        running.end_with(&done);
        done
    }

    /// Makes a key expire.
    ///
    /// # Errors
    ///
    /// Those of the cache.
    pub async fn expire(&self, key: &str) -> Result<(), Error> {
        let running = self.begin(Operation::Expire(key.to_owned()));
        let done = self.cache.expire(&Key::public(key)).await;
        running.end_with(&done);
        done
    }

    /// Makes expire what carries a tag.
    ///
    /// # Errors
    ///
    /// Those of the cache.
    pub async fn expire_by_tag(&self, tag: &str) -> Result<(), Error> {
        let running = self.begin(Operation::ExpireByTag(tag.to_owned()));
        let done = self.cache.expire_by_tag(tag).await;
        running.end_with(&done);
        done
    }

    /// Makes everything expire.
    ///
    /// # Errors
    ///
    /// Those of the cache.
    pub async fn expire_all(&self) -> Result<(), Error> {
        let running = self.begin(Operation::ExpireAll);
        let done = self.cache.expire_all().await;
        running.end_with(&done);
        done
    }

    /// Removes everything.
    ///
    /// # Errors
    ///
    /// Those of the cache.
    pub async fn clear(&self) -> Result<(), Error> {
        let running = self.begin(Operation::Clear);
        let done = self.cache.clear().await;
        running.end_with(&done);
        done
    }

    fn begin(&self, operation: Operation) -> Running {
        self.history.begin(self.number, operation)
    }
}

impl Call {
    pub(super) fn value(&self) -> Option<&Versioned> {
        match &self.ended {
            Some((_, Outcome::Value(value))) => Some(value),
            _ => None,
        }
    }

    pub(super) fn has_ended_before(&self, moment: Moment) -> bool {
        self.ended.as_ref().is_some_and(|(ended, _)| *ended < moment)
    }
}

async fn sleep(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { node, operation, began, .. } = &self.read;
        write!(f, "node {node}, {operation:?} at {:.6} s: {:?}", seconds(began.at), self.breach)?;
        self.story.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.log().calls.len();
        f.debug_struct("History").field("bounds", &self.bounds).field("calls", &calls).finish_non_exhaustive()
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("call", &self.call).finish_non_exhaustive()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BOUNDS: Bounds = Bounds {
        max_staleness: Duration::from_secs(5),
        time_to_live: Duration::from_secs(60),
        stale: SECOND,
        late: SECOND,
    };

    struct Test {
        clock: Clock,
        history: History,
    }

    impl Test {
        /// A source at version 1 of "a", which some loader returned.
        fn new(tags: &[&str]) -> Self {
            let clock = Clock::manual();
            let test = Self { history: History::new(clock.clone(), BOUNDS), clock };
            test.history.write("a");
            test.offer(tags);
            test
        }

        fn offer(&self, tags: &[&str]) {
            let (mut log, tags) = (self.history.log(), tags.iter().map(ToString::to_string).collect());
            let (value, at) = (log.latest("a"), log.moment(&self.clock));
            log.offers.push(Offer { value, tags, at });
        }

        fn begin(&self, node: usize, operation: Operation) -> Running {
            self.history.begin(node, operation)
        }

        fn done(&self, node: usize, operation: Operation) {
            self.begin(node, operation).end(Outcome::Done);
        }

        fn reads(&self, node: usize, version: u64) {
            self.begin(node, get()).end(value(version));
        }

        fn loads(&self, node: usize, version: u64) {
            self.begin(node, Operation::Load("a".to_owned())).end(value(version));
        }

        fn pass(&self, seconds: u32) {
            self.clock.advance(seconds * SECOND);
        }

        fn breaches(&self) -> Vec<Breach> {
            self.history.check().into_iter().map(|violation| violation.breach).collect()
        }

        fn is_lawful(&self) -> bool {
            self.breaches().is_empty()
        }
    }

    fn get() -> Operation {
        Operation::Get("a".to_owned())
    }

    fn remove() -> Operation {
        Operation::Remove("a".to_owned())
    }

    fn insert(version: u64) -> Operation {
        Operation::Insert(Versioned { key: "a".to_owned(), version }, Vec::new())
    }

    fn value(version: u64) -> Outcome {
        Outcome::Value(Versioned { key: "a".to_owned(), version })
    }

    fn every_removal() -> [Operation; 3] {
        [remove(), Operation::RemoveByTag("tag".to_owned()), Operation::Clear]
    }

    #[test]
    fn stale_read_on_the_same_node_is_found_at_once_and_on_another_after_the_bound() {
        for removal in every_removal() {
            let test = Test::new(&["tag"]);
            test.history.write("a");
            test.done(0, removal.clone());
            test.reads(1, 1);
            test.pass(4);
            test.reads(1, 1);
            assert!(test.is_lawful(), "{removal:?}");
            test.reads(0, 1);
            assert_eq!(test.breaches(), [Breach::Stale { by: 0, since: 4 * SECOND }], "{removal:?}");
            test.pass(1);
            test.reads(1, 1);
            assert_eq!(test.breaches()[1..], [Breach::Stale { by: 0, since: Duration::ZERO }], "{removal:?}");
        }
    }

    #[test]
    fn version_that_is_still_that_of_the_source_is_never_stale() {
        for removal in every_removal() {
            let test = Test::new(&["tag"]);
            let running = test.begin(0, removal);
            // Superseded while the removal was under way.
            test.history.write("a");
            running.end(Outcome::Done);
            test.pass(10);
            test.reads(0, 1);
            test.reads(1, 1);
            assert!(test.is_lawful());
        }
    }

    #[test]
    fn read_that_began_before_the_removal_ended_may_return_what_it_likes() {
        let test = Test::new(&[]);
        test.history.write("a");
        let removal = test.begin(0, remove());
        let read = test.begin(0, get());
        removal.end(Outcome::Done);
        test.pass(30);
        read.end(value(1));
        assert!(test.is_lawful());
    }

    #[test]
    fn removal_that_failed_binds_its_own_node_and_one_that_never_ended_binds_none() {
        let test = Test::new(&[]);
        test.history.write("a");
        drop(test.begin(0, remove()));
        test.pass(10);
        test.reads(0, 1);
        test.reads(1, 1);
        assert!(test.is_lawful());
        test.begin(0, remove()).end(Outcome::Failed);
        test.pass(10);
        test.reads(1, 1);
        assert!(test.is_lawful());
        test.reads(0, 1);
        assert_eq!(test.breaches(), [Breach::Stale { by: 3, since: 10 * SECOND }]);
    }

    #[test]
    fn tag_binds_only_what_every_offer_of_the_version_carried() {
        let test = Test::new(&["other"]);
        test.history.write("a");
        test.done(0, Operation::RemoveByTag("tag".to_owned()));
        test.reads(0, 1);
        assert!(test.is_lawful());
        test.done(0, Operation::RemoveByTag("other".to_owned()));
        test.reads(0, 1);
        assert_eq!(test.breaches().len(), 1);
    }

    #[test]
    fn inserted_value_is_excused_unless_the_insertion_was_over_before_the_removal() {
        let test = Test::new(&[]);
        let early = test.begin(1, insert(1));
        test.history.write("a");
        let removal = test.begin(0, remove());
        early.end(Outcome::Done);
        removal.end(Outcome::Done);
        test.reads(0, 1);
        test.done(1, insert(1));
        test.reads(0, 1);
        assert!(test.is_lawful());
        // Now it is over, whether it failed or not.
        test.begin(1, insert(1)).end(Outcome::Failed);
        test.done(0, remove());
        test.reads(0, 1);
        assert_eq!(test.breaches(), [Breach::Stale { by: 6, since: Duration::ZERO }]);
    }

    #[test]
    fn insertion_takes_the_place_of_older_versions() {
        let test = Test::new(&[]);
        test.history.write("a");
        test.done(0, insert(2));
        test.reads(0, 2);
        assert!(test.is_lawful());
        test.reads(0, 1);
        assert_eq!(test.breaches().len(), 1);
    }

    #[test]
    fn expired_value_may_stand_in_for_a_load_while_it_lives_and_a_removed_one_may_not() {
        let every_expiry = [
            Operation::Expire("a".to_owned()),
            Operation::ExpireByTag("tag".to_owned()),
            Operation::ExpireAll,
        ];
        for expiry in every_expiry {
            let test = Test::new(&["tag"]);
            test.history.write("a");
            test.done(0, expiry.clone());
            test.loads(0, 1);
            test.reads(1, 1);
            test.pass(5);
            test.loads(0, 1);
            test.loads(1, 1);
            assert!(test.is_lawful(), "{expiry:?}");
            test.reads(0, 1);
            test.reads(1, 1);
            let since = |since| Breach::Stale { by: 0, since };
            assert_eq!(test.breaches(), [since(5 * SECOND), since(Duration::ZERO)], "{expiry:?}");
            test.done(0, remove());
            test.loads(0, 1);
            assert_eq!(test.breaches().len(), 3, "{expiry:?}");
        }
    }

    #[test]
    fn expired_value_may_not_be_served_at_all_where_nothing_stale_may() {
        let test = Test::new(&[]);
        let history = History { bounds: Bounds { stale: Duration::ZERO, ..BOUNDS }, ..test.history.clone() };
        history.write("a");
        test.done(0, Operation::Expire("a".to_owned()));
        test.loads(0, 1);
        assert_eq!(history.check().len(), 1);
    }

    #[test]
    fn life_that_is_over_and_values_from_nowhere_are_found() {
        let test = Test::new(&[]);
        test.pass(60);
        test.reads(0, 1);
        assert!(test.is_lawful());
        test.pass(1);
        test.loads(0, 1);
        assert!(test.is_lawful());
        test.reads(0, 1);
        test.pass(1);
        test.loads(0, 1);
        assert_eq!(test.breaches(), [const { Breach::Outlived(Duration::ZERO) }; 2]);

        let test = Test::new(&[]);
        test.reads(0, 2);
        // Written, and nobody has loaded it.
        test.history.write("a");
        test.reads(0, 2);
        test.begin(0, Operation::Get("b".to_owned())).end(value(1));
        assert_eq!(test.breaches(), [Breach::NeverOffered, Breach::NeverOffered, Breach::OtherKey]);
        test.offer(&[]);
        test.reads(0, 2);
        assert_eq!(test.breaches().len(), 3);
    }

    #[test]
    fn violation_tells_the_story_of_its_key() {
        let test = Test::new(&[]);
        test.history.write("a");
        test.done(0, remove());
        test.reads(0, 1);
        let text = test.history.check()[0].to_string();
        for line in ["node 0, Get(\"a\")", "a becomes version 2", "#0 Remove(\"a\")", "#0 … Done"] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
