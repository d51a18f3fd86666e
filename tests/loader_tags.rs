//! Tags that loaders choose: they are carried like those that callers name, and nothing that was read before one of them
//! was invalidated is stored after it, whenever that happens.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::{io, sync::Arc, time::Duration};

use mcp_perf::{
    Error, ErrorKind,
    cache::{BatchLoader, Cache, CacheBuilder, Found, Key, Loaded, Put, Restamp, Store, Written},
    clock::Clock,
    testing::{MemoryBus, MemoryStore},
};
use support::{
    stepped::{Held, Step, Stepped},
    wait::settle,
};
use tokio::{sync::Notify, task::JoinHandle};

const SECOND: Duration = Duration::from_secs(1);
/// The default of `max_staleness`.
const STALENESS: Duration = Duration::from_secs(5);

type Texts = Cache<String>;
type Answer = JoinHandle<Result<String, Error>>;

fn key() -> Key<'static> {
    Key::public("key")
}

fn builder(clock: &Clock) -> CacheBuilder<String> {
    Cache::builder("test").clock(clock.clone()).time_to_live(1_000 * SECOND).loader_tags()
}

async fn node(clock: &Clock, store: impl Store) -> Texts {
    builder(clock).remote(store).remote_timeout(60 * SECOND).build().await.unwrap()
}

/// A value whose loader chooses the tag of its own name.
async fn load(cache: &Texts, value: &'static str) -> Result<String, Error> {
    cache.get_or_load(&key(), move || async move { chosen(value) }).await
}

fn chosen(value: &str) -> io::Result<Loaded<String>> {
    Ok(Loaded::new(value.to_owned()).tags(["tag", "other"]))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Remove,
    Expire,
}

const HOWS: [How; 2] = [How::Remove, How::Expire];

impl How {
    async fn to(self, cache: &Texts, tag: &str) -> Result<(), Error> {
        match self {
            Self::Remove => cache.remove_by_tag(tag).await,
            Self::Expire => cache.expire_by_tag(tag).await,
        }
    }
}

// ===== what is carried =====

#[tokio::test]
async fn entry_carries_the_tags_of_its_loader_and_those_of_its_caller() {
    for tag in ["named", "tag", "other"] {
        for how in HOWS {
            let cache = builder(&Clock::manual()).build().unwrap();
            let load = || async { chosen("value") };
            cache.get_or_load_tagged(&key(), &["named", "tag"], load).await.unwrap();
            cache.remove_by_tag("another").await.unwrap();
            assert_eq!(cache.get(&key()).await.as_deref(), Some("value"));
            how.to(&cache, tag).await.unwrap();
            assert_eq!(cache.get(&key()).await, None, "{how:?} by {tag}");
        }
    }
}

#[tokio::test]
async fn other_processes_find_the_entry_and_its_tags() {
    for how in HOWS {
        let clock = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.clone()).await);
        load(&one, "value").await.unwrap();
        settle().await;
        assert_eq!(load(&two, "another").await.unwrap(), "value");
        how.to(&two, "tag").await.unwrap();
        assert_eq!(two.get(&key()).await, None);
        assert_eq!(node(&clock, store).await.get(&key()).await, None);
        clock.advance(STALENESS);
        assert_eq!(load(&one, "new").await.unwrap(), "new");
    }
}

#[tokio::test]
async fn each_of_many_has_tags_of_its_own() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let cache = node(&clock, store.clone()).await;
    let keys = ["1", "2", "3"].map(Key::public);
    let rows = |keys: Vec<Key<'static>>| async move {
        let row = |key: Key<'static>| {
            let name = ["1", "2", "3"].into_iter().find(|name| Key::public(name) == key).unwrap();
            (key, Ok(Loaded::new(name.to_owned()).tags([format!("row {name}"), "rows".to_owned()])))
        };
        Ok::<_, io::Error>(keys.into_iter().map(row).collect::<Vec<_>>())
    };
    for batched in [false, true] {
        if batched {
            let users = BatchLoader::new(cache.clone(), rows);
            let found = tokio::join!(users.get(&keys[0]), users.get(&keys[1]), users.get(&keys[2]));
            assert!(found.0.is_ok() && found.1.is_ok() && found.2.is_ok());
        } else {
            assert!(cache.get_or_load_many(&keys, &[], rows).await.iter().all(Result::is_ok));
        }
        settle().await;
        cache.remove_by_tag("row 2").await.unwrap();
        for cache in [&cache, &node(&clock, store.clone()).await] {
            assert_eq!(cache.get(&keys[0]).await.as_deref(), Some("1"));
            assert_eq!(cache.get(&keys[1]).await, None);
        }
        cache.remove_by_tag("rows").await.unwrap();
        assert_eq!(cache.get(&keys[0]).await, None);
    }
    assert_eq!(cache.stats().loads, 2);
}

#[tokio::test]
async fn absence_has_tags_as_well() {
    let cache = builder(&Clock::manual()).negative_time_to_live(SECOND).build().unwrap();
    let absent = || async { Ok::<_, io::Error>(Loaded::not_found().tags(["tag"])) };
    assert_eq!(cache.get_or_load(&key(), absent).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(load(&cache, "value").await.unwrap_err().kind(), ErrorKind::NotFound);
    cache.remove_by_tag("tag").await.unwrap();
    assert_eq!(load(&cache, "value").await.unwrap(), "value");
}

#[tokio::test]
async fn value_that_was_not_modified_keeps_its_tags() {
    for remote in [false, true] {
        let clock = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let settings = builder(&clock).stale_if_error(1_000 * SECOND);
        let cache = match remote {
            true => settings.remote(store).build().await.unwrap(),
            false => settings.build().unwrap(),
        };
        load(&cache, "value").await.unwrap();
        settle().await;
        clock.advance(1_500 * SECOND);
        let unchanged = |_| async { Ok::<_, io::Error>(Loaded::not_modified()) };
        assert_eq!(cache.get_or_revalidate(&key(), &[], unchanged).await.unwrap(), "value");
        settle().await;
        assert_eq!(cache.get(&key()).await.as_deref(), Some("value"));
        cache.remove_by_tag("other").await.unwrap();
        assert_eq!(cache.get(&key()).await, None, "remote: {remote}");
    }
}

#[tokio::test]
async fn loader_that_chooses_tags_where_it_may_not_is_an_error_that_says_so() {
    let cache = Cache::<String>::builder("test").build().unwrap();
    let error = load(&cache, "value").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    assert!(error.to_string().contains("`loader_tags`"), "{error}");
    let many = |keys: Vec<Key<'static>>| async move {
        Ok::<_, io::Error>(keys.into_iter().map(|key| (key, chosen("value"))).collect::<Vec<_>>())
    };
    let found = cache.get_or_load_many(&[Key::public("1")], &[], many).await;
    assert_eq!(found[0].as_ref().unwrap_err().kind(), ErrorKind::Load);
    // What the call names as well is no choice.
    let load = || async { chosen("value") };
    let value = cache.get_or_load_tagged(&Key::public("2"), &["other", "tag", "more"], load).await;
    assert_eq!(value.unwrap(), "value");
}

#[tokio::test]
async fn inserted_value_has_its_tags_in_any_cache() {
    for through in [false, true] {
        let cache = Cache::<String>::builder("test").build().unwrap();
        let value = chosen("value").unwrap();
        match through {
            false => cache.insert_tagged(&key(), &["named", "tag"], value).await.unwrap(),
            true => {
                let write = |_| async { Ok::<_, io::Error>(()) };
                cache.write_through(&key(), &["named", "tag"], value, write).await.unwrap();
            }
        }
        assert_eq!(cache.get(&key()).await.as_deref(), Some("value"));
        cache.remove_by_tag("other").await.unwrap();
        assert_eq!(cache.get(&key()).await, None);
    }
}

// ===== an invalidation while a load runs =====

/// Loads that can be walked through.
#[derive(Clone, Copy, Debug)]
enum Way {
    Need,
    Refresh,
    Many,
}

/// Begins a load of "old" that reads its source at once, and returns it when told.
fn begin(cache: &Texts, way: Way) -> (Answer, Arc<Notify>, Arc<Notify>) {
    let (has_read, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let read = {
        let (has_read, go_on) = (Arc::clone(&has_read), Arc::clone(&go_on));
        move || async move {
            has_read.notify_one();
            go_on.notified().await;
            chosen("old")
        }
    };
    let cache = cache.clone();
    let answer = tokio::spawn(async move {
        match way {
            Way::Need => cache.get_or_load(&key(), read).await,
            Way::Refresh => cache.refresh(&key(), &[], |_| read()).await,
            Way::Many => {
                let read = |keys: Vec<Key<'static>>| async move {
                    let row = (keys[0].clone(), read().await);
                    Ok::<_, io::Error>([row])
                };
                cache.get_or_load_many(&[key()], &[], read).await.pop().unwrap()
            }
        }
    });
    (answer, has_read, go_on)
}

/// When the invalidation comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    WhileLoading,
    /// The tags were looked up, and the answer is on its way.
    TagsNoted,
    /// So is that to the question how any tag stands.
    AnyTagSeen,
    /// What was loaded is about to be written.
    BeforeWrite,
    Never,
}

async fn next(held: Held, store: &Stepped<MemoryStore>, step: Step) -> Held {
    let mut next = store.hold(step);
    held.go_on();
    next.reached().await;
    next
}

#[tokio::test(start_paused = true)]
async fn nothing_is_stored_that_was_read_before_an_invalidation_whenever_it_comes() {
    for when in [When::WhileLoading, When::TagsNoted, When::AnyTagSeen, When::BeforeWrite, When::Never] {
        for (way, how, elsewhere) in [Way::Need, Way::Refresh, Way::Many]
            .into_iter()
            .flat_map(|way| HOWS.map(|how| (way, how)))
            .flat_map(|(way, how)| [false, true].map(|elsewhere| (way, how, elsewhere)))
        {
            let case = format!("{way:?}, {how:?} {when:?}, elsewhere: {elsewhere}");
            let clock = Clock::manual();
            let inner = MemoryStore::new(clock.clone());
            let store = Stepped::new(inner.clone());
            let one = node(&clock, store.clone()).await;
            let two = node(&clock, inner.clone()).await;
            let (answer, has_read, go_on) = begin(&one, way);
            has_read.notified().await;
            let invalidate = async || {
                if when != When::Never {
                    how.to(if elsewhere { &two } else { &one }, "tag").await.unwrap();
                }
            };
            if when == When::WhileLoading {
                invalidate().await;
            }
            let mut held = store.hold(Step::ReadAnswered);
            go_on.notify_one();
            held.reached().await;
            match when {
                When::WhileLoading | When::Never => held.go_on(),
                When::TagsNoted => {
                    invalidate().await;
                    held.go_on();
                }
                When::AnyTagSeen => {
                    let held = next(held, &store, Step::ReadAnswered).await;
                    invalidate().await;
                    held.go_on();
                }
                When::BeforeWrite => {
                    let held = next(held, &store, Step::BeforeWrite).await;
                    invalidate().await;
                    held.go_on();
                }
            }
            assert_eq!(answer.await.unwrap().unwrap(), "old", "{case}");
            settle().await;
            let kept = (when == When::Never).then_some("old");
            assert_eq!(node(&clock, inner).await.get(&key()).await.as_deref(), kept, "{case}: in the store");
            if elsewhere {
                clock.advance(STALENESS);
            }
            assert_eq!(one.get(&key()).await.as_deref(), kept, "{case}: in memory");
        }
    }
}

/// Answers questions for stamps piece by piece: that of any tag first, and the others when it was held for long enough.
#[derive(Clone)]
struct Torn(Stepped<MemoryStore>);

impl Store for Torn {
    async fn get_many(&self, entries: &[&str], stamps: &[&str]) -> Result<Found, Error> {
        let (last, rest) = stamps.split_last().unwrap();
        let first = self.0.get_many(&[], &[last]).await?;
        let mut found = self.0.get_many(entries, rest).await?;
        found.stamps.extend(first.stamps);
        Ok(found)
    }

    async fn put_if(&self, put: Put<'_>) -> Result<Written, Error> {
        self.0.put_if(put).await
    }

    async fn remove_many(&self, entries: &[&str], hold: Duration) -> Result<(), Error> {
        self.0.remove_many(entries, hold).await
    }

    async fn restamp(&self, stamps: &[Restamp<'_>]) -> Result<(), Error> {
        self.0.restamp(stamps).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.0.ping().await
    }
}

/// A store may be of many machines.
#[tokio::test(start_paused = true)]
async fn parts_of_one_answer_may_be_of_different_times() {
    for how in HOWS {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let one = node(&clock, Torn(store.clone())).await;
        let two = node(&clock, store.clone()).await;
        let (answer, has_read, go_on) = begin(&one, Way::Need);
        has_read.notified().await;
        let mut any_read = store.hold(Step::ReadAnswered);
        go_on.notify_one();
        any_read.reached().await;
        // Before the tags are read for the same answer.
        how.to(&two, "tag").await.unwrap();
        any_read.go_on();
        assert_eq!(answer.await.unwrap().unwrap(), "old");
        settle().await;
        assert_eq!(node(&clock, store).await.get(&key()).await, None, "{how:?}");
    }
}

/// Before the second of the two writes of an invalidation a load must be barred by the first.
#[tokio::test(start_paused = true)]
async fn load_that_ends_in_the_middle_of_an_invalidation_is_not_stored() {
    for how in HOWS {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.clone()).await);
        let (answer, has_read, go_on) = begin(&one, Way::Need);
        has_read.notified().await;
        let mut first = store.hold(Step::StampChanged);
        let invalidated = tokio::spawn({
            let two = two.clone();
            async move { how.to(&two, "tag").await }
        });
        first.reached().await;
        go_on.notify_one();
        assert_eq!(answer.await.unwrap().unwrap(), "old");
        settle().await;
        first.go_on();
        invalidated.await.unwrap().unwrap();
        assert_eq!(node(&clock, store).await.get(&key()).await, None, "{how:?}");
    }
}

/// An invalidation that was asked for in between is not made by one of before: what that has changed of any tag is older.
#[tokio::test(start_paused = true)]
async fn invalidation_that_failed_is_not_settled_by_one_that_was_under_way() {
    for how in HOWS {
        let clock = Clock::manual();
        let store = Stepped::new(MemoryStore::new(clock.clone()));
        let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.clone()).await);
        let mut any_changed = store.hold(Step::StampChanged);
        let first = tokio::spawn({
            let one = one.clone();
            async move { how.to(&one, "tag").await }
        });
        any_changed.reached().await;
        let (answer, has_read, go_on) = begin(&two, Way::Need);
        has_read.notified().await;
        // The source changes now.
        store.fail_writes(1);
        how.to(&one, "tag").await.unwrap_err();
        any_changed.go_on();
        first.await.unwrap().unwrap();
        go_on.notify_one();
        assert_eq!(answer.await.unwrap().unwrap(), "old");
        settle().await;
        let paid = tokio::time::timeout(60 * SECOND, async {
            while one.stats().owed > 0 {
                one.get(&Key::public("another")).await;
                tokio::time::sleep(SECOND / 10).await; // virtual
            }
        });
        paid.await.unwrap();
        assert_eq!(node(&clock, store).await.get(&key()).await, None, "{how:?}");
    }
}

#[tokio::test]
async fn without_a_remote_tier_nothing_is_kept_that_was_read_before_an_invalidation() {
    for (way, how) in
        [Way::Need, Way::Refresh, Way::Many].into_iter().flat_map(|way| HOWS.map(|how| (way, how)))
    {
        let cache = builder(&Clock::manual()).build().unwrap();
        let (answer, has_read, go_on) = begin(&cache, way);
        has_read.notified().await;
        how.to(&cache, "tag").await.unwrap();
        go_on.notify_one();
        assert_eq!(answer.await.unwrap().unwrap(), "old");
        assert_eq!(cache.get(&key()).await, None, "{way:?}, {how:?}");
        assert_eq!(cache.stats().fenced, 1);
    }
}

#[tokio::test]
async fn who_asks_after_the_invalidation_is_not_given_what_was_read_before_it() {
    for how in HOWS {
        let cache = builder(&Clock::manual()).build().unwrap();
        let (answer, has_read, go_on) = begin(&cache, Way::Need);
        has_read.notified().await;
        how.to(&cache, "tag").await.unwrap();
        let new = tokio::time::timeout(60 * SECOND, load(&cache, "new"));
        assert_eq!(new.await.expect("joined the load of before").unwrap(), "new", "{how:?}");
        go_on.notify_one();
        assert_eq!(answer.await.unwrap().unwrap(), "old");
        assert_eq!(cache.get(&key()).await.as_deref(), Some("new"));
    }
}

/// Heard over the bus, by a process that does not know the tag yet.
#[tokio::test(start_paused = true)]
async fn invalidation_that_is_heard_bars_a_load_that_will_choose_the_tag() {
    for how in HOWS {
        let clock = Clock::manual();
        let (store, bus) = (Stepped::new(MemoryStore::new(clock.clone())), MemoryBus::new());
        let with_bus = async |store: Stepped<MemoryStore>| {
            let cache = builder(&clock).remote(store).bus(bus.clone()).remote_timeout(60 * SECOND);
            cache.build().await.unwrap()
        };
        let (one, two) = (with_bus(store.clone()).await, with_bus(store.clone()).await);
        settle().await;
        let (answer, has_read, go_on) = begin(&one, Way::Need);
        has_read.notified().await;
        how.to(&two, "tag").await.unwrap();
        settle().await;
        // Of itself it would not find out now.
        store.fail_reads(usize::MAX);
        go_on.notify_one();
        assert_eq!(answer.await.unwrap().unwrap(), "old");
        assert_eq!(one.get_local(&key()), None, "{how:?}");
    }
}

/// Nobody can tell then whether a tag was removed elsewhere: it is kept in memory, as any value is that was loaded
/// while the store was away.
#[tokio::test(start_paused = true)]
async fn store_that_goes_away_under_a_load_leaves_its_value_in_memory_alone() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let (one, two) = (node(&clock, store.clone()).await, node(&clock, store.clone()).await);
    let (answer, has_read, go_on) = begin(&one, Way::Need);
    has_read.notified().await;
    two.remove_by_tag("tag").await.unwrap();
    two.insert_tagged(&Key::public("another"), &["tag", "other"], "value".to_owned()).await.unwrap();
    // By the way, the stamps of after the removal become known.
    assert_eq!(one.get(&Key::public("another")).await.as_deref(), Some("value"));
    store.fail_reads(1);
    go_on.notify_one();
    assert_eq!(answer.await.unwrap().unwrap(), "old");
    settle().await;
    assert_eq!(one.get_local(&key()).as_deref(), Some("old"));
    assert_eq!(two.get(&key()).await, None);
    clock.advance(STALENESS);
    assert_eq!(one.get_local(&key()), None);
    assert_eq!(load(&one, "new").await.unwrap(), "new");
}

#[tokio::test]
async fn load_that_chooses_nothing_is_stored_though_another_tag_was_removed() {
    let clock = Clock::manual();
    let store = MemoryStore::new(clock.clone());
    let cache = node(&clock, store.clone()).await;
    let (has_read, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let answer = tokio::spawn({
        let (cache, has_read, go_on) = (cache.clone(), Arc::clone(&has_read), Arc::clone(&go_on));
        let load = || async move {
            has_read.notify_one();
            go_on.notified().await;
            Ok::<_, io::Error>("value".to_owned())
        };
        async move { cache.get_or_load_tagged(&key(), &["named"], load).await }
    });
    has_read.notified().await;
    cache.remove_by_tag("another").await.unwrap();
    go_on.notify_one();
    assert_eq!(answer.await.unwrap().unwrap(), "value");
    settle().await;
    assert_eq!(cache.get_local(&key()).as_deref(), Some("value"));
    assert_eq!(node(&clock, store).await.get(&key()).await.as_deref(), Some("value"));
    assert_eq!(cache.stats().fenced, 0);
}
