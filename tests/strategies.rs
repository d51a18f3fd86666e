//! Loads in batches, functions that remember, and the ways to write.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::{
    collections::HashMap,
    io,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_perf::{
    ErrorKind,
    cache::{BatchLoader, Cache, Key, Loaded, WriteBehind},
    clock::Clock,
    testing::MemoryStore,
};
use support::{
    stepped::{Step, Stepped},
    wait::settle,
};
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);

type Texts = Cache<String>;

fn local() -> Texts {
    Cache::builder("test").build().unwrap()
}

async fn node(clock: &Clock, store: &Stepped<MemoryStore>) -> Texts {
    let builder = Cache::builder("test").clock(clock.clone()).remote(store.clone());
    builder.remote_timeout(60 * SECOND).build().await.unwrap()
}

type Row = (Key<'static>, Result<String, io::Error>);

/// A loader that notes the sizes of its batches.
fn noting(
    sizes: &Arc<Mutex<Vec<usize>>>,
) -> impl Fn(Vec<Key<'static>>) -> std::future::Ready<io::Result<Vec<Row>>> + use<> {
    let sizes = Arc::clone(sizes);
    move |keys| {
        sizes.lock().unwrap().push(keys.len());
        std::future::ready(Ok(keys.into_iter().map(|key| (key, Ok("value".to_owned()))).collect()))
    }
}

#[tokio::test]
async fn look_ups_of_one_turn_are_one_load() {
    let sizes = Arc::default();
    let loader = BatchLoader::new(local(), noting(&sizes));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..100_usize {
        let loader = loader.clone();
        // Each key twice.
        tasks.spawn(async move { loader.get(&Key::public(&(index / 2).to_le_bytes())).await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(*sizes.lock().unwrap(), [50]);
    assert_eq!(loader.get(&Key::public(&0_usize.to_le_bytes())).await.unwrap(), "value");
    assert_eq!(sizes.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn value_that_is_due_is_answered_at_once_and_loaded_again_with_a_batch() {
    let clock = Clock::manual();
    let cache: Texts = Cache::builder("test")
        .clock(clock.clone())
        .time_to_live(100 * SECOND)
        .refresh_ahead()
        .build()
        .unwrap();
    let sizes = Arc::default();
    let loader = BatchLoader::new(cache.clone(), noting(&sizes));
    let key = Key::public("key");
    cache.insert(&key, "old".to_owned()).await.unwrap();
    clock.advance(91 * SECOND);
    assert_eq!(loader.get(&key).await.unwrap(), "old");
    settle().await;
    assert_eq!((loader.get(&key).await.unwrap().as_str(), sizes.lock().unwrap().len()), ("value", 1));
}

/// Whatever the batch comes to, those whom memory can answer do not wait for it.
#[tokio::test(start_paused = true)]
async fn who_is_answered_by_memory_does_not_wait_for_the_rest_of_a_batch() {
    let clock = Clock::tokio();
    let cache: Texts = Cache::builder("test")
        .clock(clock.clone())
        .time_to_live(100 * SECOND)
        .stale_while_revalidate(100 * SECOND)
        .refresh_ahead()
        .error_throttle(1_000 * SECOND)
        .build()
        .unwrap();
    let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let loader = BatchLoader::new(cache.clone(), {
        let sizes = Arc::clone(&sizes);
        move |keys: Vec<Key<'static>>| {
            sizes.lock().unwrap().push(keys.len());
            std::future::pending::<io::Result<Vec<(Key<'static>, io::Result<String>)>>>()
        }
    });
    let (stale, due) = (Key::public("stale"), Key::public("due"));
    cache.insert(&stale, "old".to_owned()).await.unwrap();
    tokio::time::sleep(9 * SECOND).await;
    cache.insert(&due, "old".to_owned()).await.unwrap();
    tokio::time::sleep(99 * SECOND).await;
    let before = cache.stats();
    let (missing, gone) = (Key::public("missing"), Key::public("gone"));
    cache.insert(&gone, Loaded::not_found().time_to_live(SECOND)).await.unwrap();
    let ask = |key| tokio::time::timeout(SECOND, loader.get(key));
    let answers = tokio::join!(ask(&stale), ask(&due), ask(&due), ask(&gone), ask(&missing));
    assert_eq!((answers.0.unwrap().unwrap().as_str(), answers.1.unwrap().unwrap().as_str()), ("old", "old"));
    assert!(answers.2.is_ok());
    assert_eq!(answers.3.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(answers.4.is_err());
    assert_eq!(*sizes.lock().unwrap(), [3], "what is due goes along");
    let stats = cache.stats();
    assert_eq!((stats.hits - before.hits, stats.stale_hits, stats.refreshes), (2, 1, 2));
}

#[tokio::test]
async fn full_batch_does_not_wait_for_the_turn_to_end() {
    let sizes = Arc::default();
    let loader = BatchLoader::new(local(), noting(&sizes)).max_batch(NonZeroUsize::new(8).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..20_usize {
        let loader = loader.clone();
        tasks.spawn(async move { loader.get(&Key::public(&index.to_le_bytes())).await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(*sizes.lock().unwrap(), [8, 8, 4]);
}

#[tokio::test]
async fn caller_that_goes_away_and_a_panic_harm_nobody_else_in_the_batch() {
    let loader = BatchLoader::new(local(), |keys: Vec<Key<'static>>| async move {
        assert!(!keys.contains(&Key::public("bad")), "the loader panics");
        Ok::<_, io::Error>(keys.into_iter().map(|key| (key, Ok("value".to_owned()))).collect::<Vec<_>>())
    });
    let gone = tokio::spawn({
        let loader = loader.clone();
        async move { loader.get(&Key::public("gone")).await }
    });
    let stays = tokio::spawn({
        let loader = loader.clone();
        async move { loader.get(&Key::public("stays")).await }
    });
    tokio::task::yield_now().await;
    gone.abort();
    assert_eq!(stays.await.unwrap().unwrap(), "value");
    assert_eq!(loader.get(&Key::public("bad")).await.unwrap_err().kind(), ErrorKind::Panicked);
    assert_eq!(loader.get(&Key::public("fine")).await.unwrap(), "value");
}

#[tokio::test]
async fn warming_loads_what_is_missing_and_tells_how_far_it_is() {
    let cache = local();
    cache.insert(&Key::public("0"), "there".to_owned()).await.unwrap();
    let keys: Vec<_> = (0..10).map(|index: usize| Key::public(&index.to_string()).into_owned()).collect();
    let sizes = Arc::default();
    let mut told = Vec::new();
    let batch = NonZeroUsize::new(4).unwrap();
    let warmed = cache.warm(keys, batch, &[], noting(&sizes), |warmed| told.push(warmed.done)).await;
    assert_eq!((warmed.done, warmed.total, warmed.failed), (10, 10, 0));
    assert_eq!((told, sizes.lock().unwrap().clone()), (vec![4, 8, 10], vec![3, 4, 2]));
}

#[tokio::test]
async fn function_remembers_by_its_arguments_and_its_name() {
    let cache = local();
    let calls = Arc::new(AtomicUsize::new(0));
    let shout = {
        let calls = Arc::clone(&calls);
        move |(text, times): (String, u32)| {
            calls.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, io::Error>(text.repeat(times as usize)) }
        }
    };
    let (one, two) = (cache.memoize("shout", shout.clone()).tags(["texts"]), cache.memoize("other", shout));
    for _ in 0..3 {
        assert_eq!(one.call(("a".to_owned(), 3)).await.unwrap(), "aaa");
    }
    assert_eq!(one.call(("a".to_owned(), 2)).await.unwrap(), "aa");
    assert_eq!(two.call(("a".to_owned(), 3)).await.unwrap(), "aaa");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    cache.remove(&one.key(&("a".to_owned(), 3))).await.unwrap();
    one.call(("a".to_owned(), 3)).await.unwrap();
    cache.remove_by_tag("texts").await.unwrap();
    one.call(("a".to_owned(), 3)).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn value_is_written_through_to_source_and_both_tiers() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let source = Arc::new(Mutex::new(String::new()));
    let write = |source: &Arc<Mutex<String>>| {
        let source = Arc::clone(source);
        move |value| async move {
            *source.lock().unwrap() = value;
            Ok::<_, io::Error>(())
        }
    };
    one.write_through(&Key::public("key"), &["tag"], "new".to_owned(), write(&source)).await.unwrap();
    assert_eq!(*source.lock().unwrap(), "new");
    assert_eq!(one.get_local(&Key::public("key")).as_deref(), Some("new"));
    assert_eq!(two.get(&Key::public("key")).await.as_deref(), Some("new"));
    two.remove_by_tag("tag").await.unwrap();
    assert_eq!(two.get(&Key::public("key")).await, None);
}

#[tokio::test]
async fn write_that_failed_leaves_nothing_behind() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = node(&clock, &store).await;
    let key = Key::public("key");
    cache.insert(&key, "old".to_owned()).await.unwrap();
    // It may have been carried out all the same.
    let fails = |_| async { Err::<(), _>(io::Error::other("connection lost")) };
    let error = cache.write_through(&key, &[], "new".to_owned(), fails).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    assert_eq!(cache.get(&key).await, None);
    let error = cache.write_through(&key, &[], Loaded::not_found(), fails).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);

    // So it may if the writer panics, at once or in the middle.
    for is_at_once in [true, false] {
        cache.insert(&key, "old".to_owned()).await.unwrap();
        let panics = move |_| {
            assert!(!is_at_once, "as the test wants it");
            async {
                tokio::task::yield_now().await;
                panic!("as the test wants it");
                #[expect(unreachable_code, reason = "the type of what it would answer")]
                Ok::<_, io::Error>(())
            }
        };
        let error = cache.write_through(&key, &[], "new".to_owned(), panics).await.unwrap_err();
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Panicked, "the write panicked"));
        assert_eq!(cache.get(&key).await, None);
    }
}

#[tokio::test]
async fn load_that_read_the_source_before_a_write_through_is_not_stored() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let key = Key::public("key");
    let mut loads = Vec::new();
    for cache in [&one, &two] {
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let cache = cache.clone();
        let loading = tokio::spawn(async move {
            let load = || async {
                may_go_on.await.unwrap();
                Ok::<_, io::Error>("old".to_owned())
            };
            cache.get_or_load(&Key::public("key"), load).await
        });
        loads.push((loading, go_on));
    }
    settle().await;
    let write = |_| async { Ok::<_, io::Error>(()) };
    one.write_through(&key, &[], "new".to_owned(), write).await.unwrap();
    for (loading, go_on) in loads {
        go_on.send(()).unwrap();
        loading.await.unwrap().unwrap();
    }
    settle().await;
    assert_eq!(one.get(&key).await.as_deref(), Some("new"));
    clock.advance(5 * SECOND);
    assert_eq!(two.get(&key).await.as_deref(), Some("new"));
}

#[tokio::test]
async fn two_nodes_that_write_through_at_once_leave_the_key_to_be_loaded() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let (one, two) = (node(&clock, &store).await, node(&clock, &store).await);
    let key = Key::public("key");
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let slow = tokio::spawn({
        let one = one.clone();
        async move {
            let write = |_| async {
                may_go_on.await.unwrap();
                Ok::<_, io::Error>(())
            };
            one.write_through(&Key::public("key"), &[], "one".to_owned(), write).await
        }
    });
    settle().await;
    let write = |_| async { Ok::<_, io::Error>(()) };
    two.write_through(&key, &[], "two".to_owned(), write).await.unwrap();
    go_on.send(()).unwrap();
    slow.await.unwrap().unwrap();
    clock.advance(5 * SECOND);
    assert_eq!((one.get(&key).await, two.get(&key).await), (None, None));
}

#[tokio::test]
async fn removal_while_a_write_through_is_stored_wins() {
    let clock = Clock::manual();
    let store = Stepped::new(MemoryStore::new(clock.clone()));
    let cache = node(&clock, &store).await;
    let key = Key::public("key");
    let mut held = store.hold(Step::BeforeWrite);
    let writing = tokio::spawn({
        let cache = cache.clone();
        async move {
            let write = |_| async { Ok::<_, io::Error>(()) };
            cache.write_through(&Key::public("key"), &[], "new".to_owned(), write).await
        }
    });
    held.reached().await;
    cache.remove(&key).await.unwrap();
    held.go_on();
    writing.await.unwrap().unwrap();
    assert_eq!(cache.get(&key).await, None);
}

/// A source that notes what it is told.
#[derive(Clone, Default)]
struct Source {
    rows: Arc<Mutex<HashMap<Key<'static>, u64>>>,
    batches: Arc<Mutex<Vec<usize>>>,
    fails: Arc<AtomicUsize>,
}

impl Source {
    fn behind(&self, cache: Cache<u64>) -> WriteBehind<u64> {
        let source = self.clone();
        WriteBehind::new(cache, move |batch| {
            let source = source.clone();
            async move { source.write(batch) }
        })
    }

    fn write(&self, batch: Vec<(Key<'static>, u64)>) -> io::Result<()> {
        let less = |left: usize| left.checked_sub(1);
        if self.fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Err(io::Error::other("away"));
        }
        let poison =
            || ["poison".to_owned()].into_iter().chain((0..20).map(|number| format!("poison {number}")));
        if batch.iter().any(|(key, _)| poison().any(|name| *key == Key::public(&name))) {
            return Err(io::Error::other("refused"));
        }
        self.batches.lock().unwrap().push(batch.len());
        self.rows.lock().unwrap().extend(batch);
        Ok(())
    }

    fn get(&self, name: &str) -> Option<u64> {
        self.rows.lock().unwrap().get(&Key::public(name).into_owned()).copied()
    }
}

fn counts() -> Cache<u64> {
    Cache::builder("counts").build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn writes_behind_are_gathered_and_the_last_of_a_key_is_written() {
    let source = Source::default();
    let behind = source.behind(counts());
    for count in 0..100 {
        for name in ["a", "b", "c"] {
            behind.insert(&Key::public(name), &[], count).await.unwrap();
        }
    }
    assert_eq!(behind.cache().get_local(&Key::public("a")), Some(99));
    tokio::time::sleep(SECOND).await;
    assert_eq!((source.get("a"), source.get("c"), behind.queued()), (Some(99), Some(99), 0));
    assert_eq!(*source.batches.lock().unwrap(), [3]);
    // And it goes on after it was idle.
    behind.insert(&Key::public("a"), &[], 100).await.unwrap();
    assert_eq!(behind.shutdown(SECOND).await, 0);
    assert_eq!(source.get("a"), Some(100));
    let error = behind.insert(&Key::public("a"), &[], 101).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn value_the_source_refuses_does_not_hold_up_the_others() {
    let source = Source::default();
    let behind = source.behind(counts());
    for (count, name) in ["poison", "a", "b", "c"].iter().enumerate() {
        behind.insert(&Key::public(name), &[], count as u64).await.unwrap();
    }
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((source.get("a"), source.get("b"), source.get("c")), (Some(1), Some(2), Some(3)));
    assert_eq!(behind.queued(), 1);
    behind.insert(&Key::public("d"), &[], 4).await.unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((source.get("d"), behind.shutdown(SECOND).await), (Some(4), 1));
}

#[tokio::test(start_paused = true)]
async fn many_values_that_the_source_refuses_do_not_hold_up_the_others_for_long() {
    let source = Source::default();
    let behind = source.behind(counts());
    for count in 0..20 {
        let name = format!("poison {count}");
        behind.insert(&Key::public(&name), &[], count).await.unwrap();
    }
    tokio::time::sleep(60 * SECOND).await;
    behind.insert(&Key::public("good"), &[], 1).await.unwrap();
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(source.get("good"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn shutdown_writes_what_was_put_off_once_the_source_is_back() {
    let source = Source::default();
    source.fails.store(usize::MAX, Ordering::SeqCst);
    let behind = source.behind(counts());
    for name in ["a", "b", "c"] {
        behind.insert(&Key::public(name), &[], 1).await.unwrap();
    }
    tokio::time::sleep(600 * SECOND).await;
    let (shut_down, goes_on) = (behind.clone(), source.clone());
    let ending = tokio::spawn(async move { shut_down.shutdown(5 * SECOND).await });
    // It comes back while it is being waited for.
    tokio::time::sleep(SECOND).await;
    goes_on.fails.store(0, Ordering::SeqCst);
    assert_eq!(ending.await.unwrap(), 0);
    assert_eq!(["a", "b", "c"].map(|name| source.get(name)), [Some(1); 3]);
}

#[tokio::test(start_paused = true)]
async fn writes_behind_outlast_a_source_that_is_away_for_a_while() {
    let source = Source::default();
    source.fails.store(5, Ordering::SeqCst);
    let behind = source.behind(counts());
    for count in 0..10 {
        behind.insert(&Key::public(&count.to_string()), &[], count).await.unwrap();
    }
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!((behind.queued(), source.rows.lock().unwrap().len()), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn queue_that_is_full_says_so_and_stores_nothing() {
    let source = Source::default();
    source.fails.store(usize::MAX, Ordering::SeqCst);
    let behind = source.behind(counts()).capacity(NonZeroUsize::new(2).unwrap());
    behind.insert(&Key::public("a"), &[], 1).await.unwrap();
    behind.insert(&Key::public("b"), &[], 1).await.unwrap();
    behind.insert(&Key::public("a"), &[], 2).await.unwrap();
    let error = behind.insert(&Key::public("c"), &[], 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(behind.cache().get_local(&Key::public("c")), None);
    assert_eq!(behind.shutdown(SECOND).await, 2);
}

#[tokio::test]
async fn reader_sees_what_is_queued_though_memory_forgot_it() {
    let source = Source::default();
    let behind = source.behind(counts()).delay(3_600 * SECOND);
    let key = Key::public("a");
    behind.insert(&key, &[], 7).await.unwrap();
    behind.cache().clear().await.unwrap();
    let old = || async { Ok::<_, io::Error>(6) };
    assert_eq!(behind.get_or_load(&key, &[], old).await.unwrap(), 7);
}

#[tokio::test]
async fn load_that_read_the_source_before_it_was_written_behind_is_not_stored() {
    let source = Source::default();
    let behind = source.behind(counts());
    let key = Key::public("a");
    behind.insert(&key, &[], 7).await.unwrap();
    behind.cache().clear().await.unwrap();
    // Straight at the cache, and so past the queue.
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let loading = tokio::spawn({
        let cache = behind.cache().clone();
        async move {
            let load = || async {
                may_go_on.await.unwrap();
                Ok::<_, io::Error>(6)
            };
            cache.get_or_load(&Key::public("a"), load).await
        }
    });
    settle().await;
    assert_eq!(behind.shutdown(10 * SECOND).await, 0);
    go_on.send(()).unwrap();
    loading.await.unwrap().unwrap();
    assert_eq!(behind.cache().get_local(&key), Some(7));
}

#[tokio::test(start_paused = true)]
async fn value_that_was_just_written_behind_does_not_come_back_over_a_newer_one() {
    let store = Stepped::new(MemoryStore::new(Clock::manual()));
    let cache = Cache::builder("counts").remote(store.clone()).remote_timeout(60 * SECOND).build().await;
    let source = Source::default();
    let behind = source.behind(cache.unwrap()).delay(SECOND);
    let keys = ["a", "b"].map(Key::public);
    for key in &keys {
        behind.insert(key, &[], 1).await.unwrap();
    }
    // Both are written, and of one of them that is being told to the remote tier.
    let mut held = store.hold(Step::BeforeWrite);
    held.reached().await;
    for key in &keys {
        behind.insert(key, &[], 2).await.unwrap();
    }
    held.go_on();
    settle().await;
    assert_eq!((source.get("a"), source.get("b")), (Some(1), Some(1)), "the next batch is not due yet");
    for key in &keys {
        assert_eq!(behind.get_or_load(key, &[], || async { Ok::<_, io::Error>(0) }).await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn value_that_was_written_behind_is_not_stored_again_over_a_removal_since() {
    let store = Stepped::new(MemoryStore::new(Clock::manual()));
    let cache = Cache::builder("counts").remote(store.clone()).remote_timeout(60 * SECOND).build().await;
    let cache: Cache<u64> = cache.unwrap();
    let source = Source::default();
    let behind = source.behind(cache.clone()).delay(SECOND);
    let keys = ["a", "b"].map(Key::public);
    for key in &keys {
        behind.insert(key, &[], 1).await.unwrap();
    }
    // The source has both, and of one of them that is being told to the remote tier.
    let mut held = store.hold(Step::BeforeWrite);
    held.reached().await;
    assert_eq!((source.get("a"), source.get("b")), (Some(1), Some(1)));
    for key in &keys {
        source.rows.lock().unwrap().insert(key.clone().into_owned(), 2); // somebody else writes
        cache.remove(key).await.unwrap();
    }
    held.go_on();
    settle().await;
    for key in &keys {
        let load = || async { Ok::<_, io::Error>(2) };
        assert_eq!(cache.get_or_load(key, load).await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn invalidation_while_a_value_is_written_behind_leaves_its_key_to_be_loaded() {
    for (is_remote, how) in [false, true].into_iter().flat_map(|remote| [0, 1, 2].map(|how| (remote, how))) {
        let builder = Cache::<u64>::builder("counts");
        let cache = match is_remote {
            true => builder.remote(MemoryStore::new(Clock::manual())).build().await.unwrap(),
            false => builder.build().unwrap(),
        };
        let (reached, has_reached) = oneshot::channel::<()>();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let once = Arc::new(Mutex::new(Some((reached, may_go_on))));
        let behind = WriteBehind::new(cache.clone(), move |_| {
            let once = once.lock().unwrap().take();
            async move {
                if let Some((reached, may_go_on)) = once {
                    reached.send(()).unwrap();
                    may_go_on.await.unwrap();
                }
                Ok::<_, io::Error>(())
            }
        });
        let key = Key::public("key");
        behind.insert(&key, &["tag"], 1).await.unwrap();
        has_reached.await.unwrap();
        match how {
            0 => cache.remove(&key).await.unwrap(),
            1 => cache.remove_by_tag("tag").await.unwrap(),
            _ => cache.clear().await.unwrap(),
        }
        go_on.send(()).unwrap();
        assert_eq!(behind.shutdown(SECOND).await, 0);
        assert_eq!(cache.get(&key).await, None, "remote: {is_remote}, way {how}");
    }
}

#[tokio::test(start_paused = true)]
async fn value_that_a_load_brought_from_before_a_write_behind_is_replaced() {
    let cache = counts();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let may_go_on = Arc::new(Mutex::new(Some(may_go_on)));
    let behind = WriteBehind::new(cache.clone(), move |_| {
        let may_go_on = may_go_on.lock().unwrap().take();
        async move {
            may_go_on.unwrap().await.unwrap();
            Ok::<_, io::Error>(())
        }
    });
    let key = Key::public("key");
    behind.insert(&key, &[], 1).await.unwrap();
    cache.remove(&key).await.unwrap();
    // It is being written, and a load past the queue reads what was there before.
    tokio::time::sleep(SECOND).await;
    assert_eq!(cache.get_or_load(&key, || async { Ok::<_, io::Error>(0) }).await.unwrap(), 0);
    go_on.send(()).unwrap();
    assert_eq!(behind.shutdown(SECOND).await, 0);
    assert_ne!(cache.get(&key).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn values_that_were_written_behind_stay_in_both_tiers_whatever_happens_to_others() {
    let store = MemoryStore::new(Clock::manual());
    let node = async || Cache::<u64>::builder("counts").remote(store.clone()).build().await.unwrap();
    let (one, two) = (node().await, node().await);
    let source = Source::default();
    let behind = WriteBehind::new(one.clone(), {
        let (source, cache) = (source.clone(), one.clone());
        move |batch| {
            let (source, cache) = (source.clone(), cache.clone());
            async move {
                for number in 0..200 {
                    cache.remove(&Key::public(&format!("other {number}"))).await.map_err(io::Error::other)?;
                }
                source.write(batch)
            }
        }
    });
    let keys: Vec<_> = (0..100).map(|number| Key::public(&format!("key {number}")).into_owned()).collect();
    let mut inserting = tokio::task::JoinSet::new();
    for key in keys.clone() {
        let behind = behind.clone();
        inserting.spawn(async move { behind.insert(&key, &["tag"], 1).await });
    }
    inserting.join_all().await;
    assert_eq!(behind.shutdown(60 * SECOND).await, 0);
    for key in &keys {
        assert_eq!((one.get_local(key), two.get(key).await), (Some(1), Some(1)), "{key:?}");
    }
    two.remove_by_tag("tag").await.unwrap();
    assert_eq!(two.get(&keys[0]).await, None);
}

/// A sink that panics the first time.
fn panics_once(source: &Source) -> WriteBehind<u64> {
    let (source, panics) = (source.clone(), Arc::new(AtomicUsize::new(1)));
    WriteBehind::new(counts(), move |batch| {
        let (source, panics) = (source.clone(), Arc::clone(&panics));
        async move {
            let less = |left: usize| left.checked_sub(1);
            assert!(panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err(), "a bug");
            source.write(batch)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn sink_that_panics_loses_nothing() {
    for how in ["nothing", "an insertion", "a shutdown"] {
        let source = Source::default();
        let behind = panics_once(&source);
        behind.insert(&Key::public("a"), &[], 1).await.unwrap();
        match how {
            "nothing" => {}
            "an insertion" => {
                tokio::time::sleep(SECOND).await;
                behind.insert(&Key::public("b"), &[], 2).await.unwrap();
            }
            _ => assert_eq!(behind.shutdown(60 * SECOND).await, 0),
        }
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!((behind.queued(), source.get("a")), (0, Some(1)), "and then {how}");
    }
}

/// With time that passes when nothing else is to be done.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn writes_behind_go_on_in_the_next_runtime() {
    for is_inserted in [false, true] {
        let source = Source::default();
        let behind = source.behind(counts());
        runtime().block_on(async { behind.insert(&Key::public("a"), &[], 1).await.unwrap() });
        runtime().block_on(async {
            if is_inserted {
                behind.insert(&Key::public("b"), &[], 2).await.unwrap();
            }
            assert_eq!(behind.shutdown(60 * SECOND).await, 0, "inserted: {is_inserted}");
        });
        assert_eq!(source.get("a"), Some(1));
    }
}

#[test]
fn batches_go_on_in_the_next_runtime() {
    let loader = BatchLoader::new(local(), noting(&Arc::default()));
    let (one, two) = (Key::public("a"), Key::public("b"));
    let mut left = Box::pin(loader.get(&one));
    // It is in the batch, and the runtime ends before that is loaded.
    runtime().block_on(async {
        let now = tokio::time::timeout(Duration::ZERO, &mut left);
        now.await.unwrap_err();
    });
    runtime().block_on(async {
        let next = tokio::time::timeout(60 * SECOND, loader.get(&two));
        assert_eq!(next.await.expect("it does not hang").unwrap(), "value");
        let left = tokio::time::timeout(60 * SECOND, left);
        assert_eq!(left.await.expect("nor does this").unwrap_err().kind(), ErrorKind::Panicked);
    });
}
