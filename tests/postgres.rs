//! The remote tier in a real PostgreSQL, and what happens without it.

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
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mcp_perf::{
    ErrorKind,
    cache::{Cache, Fence, Found, Invalidation, Key, Put, Restamp, Stamp, Store, Written},
    postgres::PostgresStore,
    testing,
};
use support::postgres::PostgresServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::NoTls;

const MINUTE: Duration = Duration::from_secs(60);

/// A server whose commits survive its death, so that only what is meant to be lost is.
fn server() -> PostgresServer {
    PostgresServer::start_with(&[("synchronous_commit", "on")])
}

fn store(server: &PostgresServer) -> PostgresStore {
    PostgresStore::new(&server.url()).unwrap()
}

async fn migrated(server: &PostgresServer) -> PostgresStore {
    let store = store(server);
    store.migrate().await.unwrap();
    store
}

async fn node(server: &PostgresServer) -> Cache<String> {
    Cache::builder("test").remote(store(server)).remote_timeout(MINUTE).build().await.unwrap()
}

async fn load(cache: &Cache<String>, key: &Key<'_>, value: &str) -> String {
    let value = value.to_owned();
    cache.get_or_load_tagged(key, &["tag"], || async { Ok::<_, io::Error>(value) }).await.unwrap()
}

/// Waits until what a load left to its own task has been done, which only the store can tell.
async fn until<T>(what: &str, done: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Duration::from_secs(30);
    let poll = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(2)).await; // polling, with a deadline
        }
    };
    tokio::time::timeout(deadline, poll).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"))
}

async fn fence(store: &PostgresStore, name: &str) -> Fence {
    store.get_many(&[name], &[]).await.unwrap().entries[0].fence
}

async fn bytes(store: &PostgresStore, name: &str) -> Option<Vec<u8>> {
    let Found { mut entries, .. } = store.get_many(&[name], &[]).await.unwrap();
    entries.remove(0).entry.map(|entry| entry.bytes.to_vec())
}

async fn put(store: &PostgresStore, name: &str, bytes: &'static str, fence: Option<Fence>) -> Written {
    let put = Put::new(name, bytes.into(), MINUTE);
    store.put_if(fence.map_or_else(|| put.clone(), |fence| put.clone().only_if(fence))).await.unwrap()
}

fn is_stored(written: Written) -> bool {
    matches!(written, Written::Stored(_))
}

fn names(server: &PostgresServer, table: &str) -> Vec<String> {
    let names =
        server.psql(&format!("select name from mcp_perf_{table} where name <> '' order by 1")).unwrap();
    names.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn postgres_keeps_the_contract_of_a_store() {
    let server = server();
    let store = migrated(&server).await;
    // Lives are measured by the server, so time has to pass for real.
    testing::store::keeps_its_contract(&store, async |time| tokio::time::sleep(time).await).await; // server time
}

#[tokio::test]
async fn nodes_share_what_one_of_them_loaded_and_forget_what_one_removed() {
    let server = server();
    migrated(&server).await;
    let (one, two) = (node(&server).await, node(&server).await);
    let key = Key::private("alice", "inbox");
    assert_eq!(load(&one, &key, "loaded once").await, "loaded once");
    let shared = until("the value is in PostgreSQL", async || two.get(&key).await).await;
    assert_eq!(shared, "loaded once");
    assert_eq!((one.stats().loads, two.stats().loads, two.stats().remote_hits), (1, 0, 1));

    one.remove_by_tag("tag").await.unwrap();
    assert_eq!(one.get(&key).await, None);
    assert_eq!(node(&server).await.get(&key).await, None, "its tag was removed");

    assert_eq!(load(&one, &key, "loaded again").await, "loaded again");
    until("the value is in PostgreSQL again", async || node(&server).await.get(&key).await).await;
    two.remove(&key).await.unwrap();
    assert_eq!(node(&server).await.get(&key).await, None, "it was removed");

    two.insert(&key, "written".to_owned()).await.unwrap();
    assert_eq!(node(&server).await.get(&key).await.as_deref(), Some("written"));
    one.clear().await.unwrap();
    assert_eq!(node(&server).await.get(&key).await, None, "everything was cleared");
}

#[tokio::test]
async fn what_one_list_says_twice_of_a_stamp_is_done_in_its_order() {
    let server = server();
    let store = migrated(&server).await;
    let change = |invalidation, stamp| Restamp { name: "stamp", invalidation, stamp };
    let stamp = async || store.get_many(&[], &["stamp", "stamp"]).await.unwrap().stamps;
    let [one, two, three] = [Stamp::random(), Stamp::random(), Stamp::random()];
    store.restamp(&[change(Invalidation::Expire, one), change(Invalidation::Expire, two)]).await.unwrap();
    assert_eq!(stamp().await, [one.after(Invalidation::Expire, two); 2]);
    store.restamp(&[change(Invalidation::Remove, two), change(Invalidation::Expire, three)]).await.unwrap();
    assert_eq!(stamp().await, [two.after(Invalidation::Expire, three); 2]);
    store.restamp(&[change(Invalidation::Expire, one), change(Invalidation::Remove, three)]).await.unwrap();
    assert_eq!(stamp().await, [three; 2]);
    // As an epoch that is forgotten among a thousand debts would be.
    let twice = ["b", "a", "b"];
    store.remove_many(&twice, MINUTE).await.unwrap();
    assert!(store.get_many(&twice, &[]).await.unwrap().entries.iter().all(|slot| slot.entry.is_none()));
}

#[tokio::test]
async fn many_who_lock_the_same_rows_in_different_orders_all_get_through() {
    let server = server();
    migrated(&server).await;
    let stores = [(); 4].map(|()| store(&server));
    let names: Vec<String> = (0..1_000).map(|index| format!("name {index}")).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..24 {
        let store = stores[round % stores.len()].clone();
        let mut names = names.clone();
        fastrand::Rng::with_seed(round as u64).shuffle(&mut names);
        tasks.spawn(async move {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let stamp = |name| Restamp { name, invalidation: Invalidation::Remove, stamp: Stamp::random() };
            let stamps: Vec<_> = names.iter().copied().map(stamp).collect();
            store.get_many(&names, &names).await.unwrap();
            store.remove_many(&names, MINUTE).await.unwrap();
            store.restamp(&stamps).await.unwrap();
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn reading_writes_nothing_once_stamps_and_generation_are_there() {
    let server = server();
    let store = migrated(&server).await;
    store.get_many(&["absent"], &["stamp"]).await.unwrap();
    assert!(names(&server, "entries").is_empty());
    let transactions = || server.psql("select pg_snapshot_xmax(pg_current_snapshot())").unwrap();
    let before = transactions();
    for _ in 0..20 {
        store.get_many(&["absent"], &["stamp"]).await.unwrap();
    }
    assert_eq!(transactions(), before);
}

#[tokio::test]
async fn stamp_that_was_not_used_for_long_is_noted_as_used_and_stays_the_same() {
    let server = server();
    let store = migrated(&server).await;
    let stamp = async || store.get_many(&[], &["stamp"]).await.unwrap().stamps[0];
    let made = stamp().await;
    server.psql("update mcp_perf_stamps set used = used - interval '30 days 23 hours'").unwrap();
    assert_eq!(stamp().await, made);
    server.psql("update mcp_perf_stamps set used = used - interval '30 days 23 hours'").unwrap();
    assert_eq!(store.purge().await.unwrap(), 0, "it was read a moment ago");
    assert_eq!(stamp().await, made);
}

#[tokio::test]
async fn plans_go_by_the_key_even_if_the_tables_were_small_when_they_were_made() {
    const TABLES: &str = "'mcp_perf_entries', 'mcp_perf_stamps'";
    let server = server();
    let store = migrated(&server).await;
    store.put_if(Put::new("some", "x".into(), MINUTE)).await.unwrap();
    store.get_many(&["some", "absent"], &["stamp"]).await.unwrap();
    store.remove_many(&["some"], MINUTE).await.unwrap();
    store.purge().await.unwrap();
    // Statistics are complete when those whose they are have left.
    drop(store);
    let connected = "select count(*) from pg_stat_activity where application_name = 'mcp-perf'";
    until("the connections are gone", async || (server.psql(connected).unwrap() == "0").then_some(())).await;
    let scans = |which| {
        let sum = format!("select sum({which}) from pg_stat_user_tables where relname in ({TABLES})");
        server.psql(&sum).unwrap().parse::<u32>().unwrap()
    };
    // Making an index reads the table once, and each of the two has two.
    assert_eq!(scans("seq_scan"), 4);
    assert!(scans("idx_scan") > 0);
}

#[tokio::test]
async fn garbage_in_the_table_is_a_miss_and_is_written_over() {
    let server = server();
    migrated(&server).await;
    let key = Key::public("key");
    for garbage in [
        "bytes = null",
        "bytes = ''",
        r"bytes = '\x00ff'",
        "bytes = 'MP' || substr(bytes, 3, 10)",
        "bytes = bytes || bytes",
        // More than one, which may be what it was.
        "bytes = overlay(bytes placing 'xyxyxyxy' from 40)",
        "expires = '-infinity'",
        "bytes = 'MP', expires = 'infinity'",
        "fence = gen_random_uuid(), bytes = 'MP'",
        // Begins as the fence of an absence does.
        "fence = '41000000-0000-0000-0000-000000000001', bytes = 'MP'",
    ] {
        let cache = node(&server).await;
        cache.insert(&key, "value".to_owned()).await.unwrap();
        server.psql(&format!("update mcp_perf_entries set {garbage} where name <> ''")).unwrap();
        let fresh = node(&server).await;
        assert_eq!(fresh.get(&key).await, None, "{garbage}");
        assert_eq!(load(&fresh, &key, "loaded").await, "loaded", "{garbage}");
        let shared = until("it was written over", async || node(&server).await.get(&key).await).await;
        assert_eq!(shared, "loaded", "{garbage}");
    }
    let cache = node(&server).await;
    cache.insert(&key, "value".to_owned()).await.unwrap();
    server.psql("update mcp_perf_entries set expires = 'infinity'").unwrap();
    assert_eq!(
        node(&server).await.get(&key).await.as_deref(),
        Some("value"),
        "no life is too long to be read"
    );
}

#[tokio::test]
async fn load_from_before_a_crash_does_not_get_in_after_it() {
    let mut server = server();
    let store = migrated(&server).await;
    store.put_if(Put::new("present", "old".into(), MINUTE)).await.unwrap();
    let (absent, present) = (fence(&store, "absent").await, fence(&store, "present").await);
    let stamp = store.get_many(&[], &["stamp"]).await.unwrap().stamps[0];
    // What bars the old load is lost with everything else.
    store.remove_many(&["absent", "present"], MINUTE).await.unwrap();
    server.restart();
    assert!(names(&server, "entries").is_empty(), "the tables are unlogged");

    for (name, fence) in [("absent", absent), ("present", present)] {
        assert_eq!(put(&store, name, "old", Some(fence)).await, Written::Refused, "{name}, nothing there");
        store.get_many(&[name], &[]).await.unwrap();
        assert_eq!(put(&store, name, "old", Some(fence)).await, Written::Refused, "{name}, a new generation");
        let fence = self::fence(&store, name).await;
        assert!(is_stored(put(&store, name, "new", Some(fence)).await), "{name}");
    }
    assert_ne!(store.get_many(&[], &["stamp"]).await.unwrap().stamps[0], stamp);
}

#[tokio::test]
async fn load_from_before_the_tables_were_emptied_does_not_get_in() {
    let server = server();
    let store = migrated(&server).await;
    let absent = fence(&store, "name").await;
    store.remove_many(&["name"], MINUTE).await.unwrap();
    server.psql("truncate mcp_perf_entries").unwrap();
    assert_eq!(put(&store, "name", "old", Some(absent)).await, Written::Refused);
    let absent = fence(&store, "name").await;
    assert!(is_stored(put(&store, "name", "new", Some(absent)).await));
}

#[tokio::test]
async fn removal_that_was_purged_still_bars_the_load_from_before_it() {
    let server = server();
    let store = migrated(&server).await;
    let absent = fence(&store, "name").await;
    store.remove_many(&["name"], MINUTE).await.unwrap();
    // Twelve minutes pass, as the server sees it: every time that it gave out is so much older.
    server
        .psql("update mcp_perf_entries set expires = expires - interval '13 minutes' where name <> ''")
        .unwrap();
    assert_eq!(store.purge().await.unwrap(), 1);
    let mut bytes = absent.to_bytes();
    let read = i64::from_be_bytes(bytes[8..].try_into().unwrap());
    for (minutes, is_in_time) in [(13, false), (9, true), (-1, false)] {
        bytes[8..].copy_from_slice(&(read - minutes * 60_000_000).to_be_bytes());
        let written = put(&store, "name", "old", Some(Fence::from_bytes(bytes))).await;
        assert_eq!(is_stored(written), is_in_time, "read {minutes} minutes ago");
    }
}

#[tokio::test]
async fn purge_removes_what_died_and_nothing_else() {
    let server = server();
    let store = migrated(&server).await;
    let all = ["dead", "dead removal", "expired", "live", "removal"];
    store.get_many(&all, &["dead", "live"]).await.unwrap();
    for name in ["dead", "expired", "live"] {
        put(&store, name, "bytes", None).await;
    }
    store.remove_many(&["dead removal", "removal"], MINUTE).await.unwrap();
    assert_eq!(store.purge().await.unwrap(), 0);
    let age = |names, by| {
        let age = format!(
            "update mcp_perf_entries set expires = expires - interval '{by}' where name in ({names})"
        );
        server.psql(&age).unwrap();
    };
    age("'dead', 'dead removal'", "13 minutes");
    age("'expired'", "11 minutes");
    server.psql("update mcp_perf_stamps set used = used - interval '32 days' where name = 'dead'").unwrap();
    let before = store.get_many(&all, &["live"]).await.unwrap();

    assert_eq!(store.purge().await.unwrap(), 3);
    assert_eq!(names(&server, "entries"), ["expired", "live", "removal"]);
    assert_eq!(names(&server, "stamps"), ["live"]);
    let after = store.get_many(&all, &["live"]).await.unwrap();
    assert_eq!(before.stamps, after.stamps);
    for index in [2, 3, 4] {
        assert_eq!(before.entries[index].fence, after.entries[index].fence, "{}", all[index]);
    }
    assert_eq!(bytes(&store, "live").await.as_deref(), Some(&b"bytes"[..]));
    // A load that saw it expired, and takes its time, is stored all the same.
    assert!(is_stored(put(&store, "expired", "new", Some(after.entries[2].fence)).await));
}

/// As rows of megabytes are, on a disk that is slow: all of a batch would take three seconds, and no statement may take more
/// than two.
#[tokio::test]
async fn purge_of_rows_that_are_slow_to_delete_takes_fewer_at_a_time() {
    let server = server();
    let store = migrated(&server).await;
    server
        .psql(
            "create function slow() returns trigger language plpgsql as \
             $$ begin perform pg_sleep(0.01); return old; end $$; \
             create trigger slow before delete on mcp_perf_entries for each row execute function slow(); \
             insert into mcp_perf_entries (name, fence, bytes, expires) \
             select 'dead ' || n, gen_random_uuid(), '', now() - interval '1 hour' from generate_series(1, 300) n",
        )
        .unwrap();
    assert_eq!(store.purge().await.unwrap(), 300);
}

#[tokio::test]
async fn purge_waits_for_nobody_and_leaves_what_is_locked() {
    let server = server();
    let store = migrated(&server).await;
    for name in ["locked", "free"] {
        put(&store, name, "x", None).await;
    }
    server.psql("update mcp_perf_entries set expires = '-infinity' where name <> ''").unwrap();
    let (mut client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let transaction = client.transaction().await.unwrap();
    transaction.execute("select from mcp_perf_entries where name = 'locked' for update", &[]).await.unwrap();
    // The store purges by itself, too, and may have been earlier: what counts is what is left.
    assert!(store.purge().await.unwrap() <= 1);
    assert_eq!(names(&server, "entries"), ["locked"]);
    transaction.rollback().await.unwrap();
    assert!(store.purge().await.unwrap() <= 1);
    until("the entry is gone", async || names(&server, "entries").is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_beside_readers_and_writers_take_nothing_that_lives() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let server = server();
    let stores = [migrated(&server).await, migrated(&server).await];
    let dead = "insert into mcp_perf_entries select 'dead ' || i, gen_random_uuid(), 'x', '-infinity' \
                from generate_series(1, 12000) i";
    server.psql(dead).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let store = stores[task % 2].clone();
        tasks.spawn(async move {
            let mut rounds = 0;
            while !DONE.load(Ordering::Relaxed) || rounds < 10 {
                let name = format!("dead {}", fastrand::u32(1..12_000));
                let other = format!("live {task}");
                put(&store, &other, "live", None).await;
                // What is written over is alive, whether a purge had its eye on it or not.
                if is_stored(put(&store, &name, "live", None).await) {
                    assert_eq!(bytes(&store, &name).await.as_deref(), Some(&b"live"[..]), "{name}");
                }
                assert_eq!(bytes(&store, &other).await.as_deref(), Some(&b"live"[..]), "{other}");
                rounds += 1;
            }
        });
    }
    let purge = async |store: &PostgresStore| {
        let mut purged = 0;
        while names(&server, "entries").len() > 8 && store.purge().await.unwrap() > 0 {
            purged += 1;
        }
        purged
    };
    tokio::join!(purge(&stores[0]), purge(&stores[1]));
    DONE.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    let left =
        server.psql("select count(*) from mcp_perf_entries where expires < now() - interval '11 minutes'");
    assert_eq!(left.unwrap(), "0");
}

#[tokio::test]
async fn writers_purge_what_died() {
    let server = server();
    let store = migrated(&server).await;
    let dead = "insert into mcp_perf_entries select 'dead ' || i, gen_random_uuid(), 'x', '-infinity' \
                from generate_series(1, 2000) i";
    server.psql(dead).unwrap();
    // As many as start a purge for certain.
    let names: Vec<String> = (0..500).map(|index| format!("removed {index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    store.remove_many(&names, MINUTE).await.unwrap();
    let left = "select count(*) from mcp_perf_entries where name like 'dead %'";
    until("the dead are gone", async || (server.psql(left).unwrap() == "0").then_some(())).await;
    assert_eq!(self::names(&server, "entries").len(), 500);
}

#[tokio::test]
async fn connections_that_were_cut_while_idle_cost_no_invalidation() {
    let server = server();
    migrated(&server).await;
    let (one, two) = (node(&server).await, node(&server).await);
    let key = Key::public("key");
    load(&one, &key, "old").await;
    until("the value is in PostgreSQL", async || two.get(&key).await).await;
    let kill =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'mcp-perf'";
    assert_ne!(server.psql(kill).unwrap(), "0");
    one.remove_by_tag("tag").await.unwrap();
    assert_eq!(load(&one, &key, "new").await, "new");
    assert_eq!((one.stats().remote_failures, two.stats().remote_failures), (0, 0));
}

#[tokio::test]
async fn restart_in_the_middle_costs_each_caller_one_failed_trip_at_most() {
    let mut server = server();
    let store = migrated(&server).await;
    put(&store, "name", "x", None).await;
    // Under way when it dies: nobody may wait for the answer for ever.
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("begin; select from mcp_perf_entries where name = 'name' for update").await.unwrap();
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.remove_many(&["name"], MINUTE).await }
    });
    let waits = "select count(*) from pg_stat_activity where application_name = 'mcp-perf' and wait_event_type = 'Lock'";
    until("the removal waits for the lock", async || (server.psql(waits).unwrap() == "1").then_some(()))
        .await;
    server.kill();
    let error = writing.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(store.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    server.restart();
    store.remove_many(&["name"], MINUTE).await.unwrap();
    assert_eq!(bytes(&store, "name").await, None);
    store.ping().await.unwrap();
}

#[tokio::test]
async fn server_that_hangs_is_left_for_a_fresh_connection() {
    let server = server();
    let store = migrated(&server).await;
    put(&store, "name", "x", None).await;
    bytes(&store, "name").await;
    let pids = "select string_agg(pid::text, ',') from pg_stat_activity \
                where application_name = 'mcp-perf' and query like '%UNION ALL%'";
    let readers = server.psql(pids).unwrap();
    server.pause();
    for _ in 0..12 {
        let asked = tokio::time::timeout(Duration::from_millis(50), store.get_many(&["name"], &[])).await;
        assert!(asked.is_err() || asked.unwrap().is_err());
    }
    server.resume();
    until("it answers again", async || store.get_many(&["name"], &[]).await.ok()).await;
    let left = format!("select count(*) from pg_stat_activity where pid in ({readers})");
    until("the old connections are gone", async || (server.psql(&left).unwrap() == "0").then_some(())).await;
    store.remove_many(&["name"], MINUTE).await.unwrap();
    assert_eq!(bytes(&store, "name").await, None);
}

#[tokio::test]
async fn callers_who_leave_at_any_moment_leave_everything_right() {
    let server = server();
    migrated(&server).await;
    let store = store(&server);
    let random = fastrand::Rng::with_seed(7);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (store, mut random) = (store.clone(), fastrand::Rng::with_seed(random.get_seed() + task));
        tasks.spawn(async move {
            for round in 0..60 {
                // The first ones leave while a connection is being made, later ones within a call.
                let patience = Duration::from_micros(random.u64(..3_000));
                let (name, stamp) = (format!("name {}", round % 7), format!("stamp {round}"));
                let call = async {
                    let found = store.get_many(&[&name], &[&stamp]).await?;
                    let put = Put::new(&name, "x".into(), MINUTE).only_if(found.entries[0].fence);
                    store.put_if(put).await?;
                    store.remove_many(&[&name], MINUTE).await
                };
                let _ = tokio::time::timeout(patience, call).await;
            }
        });
    }
    tasks.join_all().await;
    store.ping().await.unwrap();
    put(&store, "name", "x", None).await;
    assert_eq!(bytes(&store, "name").await.as_deref(), Some(&b"x"[..]));
    let held = "select count(*) from pg_stat_activity where application_name = 'mcp-perf'";
    until("no connection is left over", async || {
        bytes(&store, "name").await;
        (server.psql(held).unwrap() == "3").then_some(())
    })
    .await;
}

#[tokio::test]
async fn unreachable_postgres_is_a_clear_error_of_build_unless_it_is_optional() {
    let mut server = server();
    migrated(&server).await;
    server.kill();
    let error = Cache::<String>::builder("test").remote(store(&server)).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    assert_eq!(error.to_string(), "postgres cannot be reached (connect): connection refused");
    assert!(std::error::Error::source(&error).is_some());

    let optional = Cache::<String>::builder("test").remote(store(&server)).remote_optional();
    let cache = optional.build().await.unwrap();
    assert_eq!(load(&cache, &Key::public("key"), "from the loader").await, "from the loader");
    server.restart();
    until("the cache uses the server that came up", async || {
        cache.insert(&Key::public("later"), "shared".to_owned()).await.ok()?;
        node(&server).await.get(&Key::public("later")).await
    })
    .await;
}

#[tokio::test]
async fn without_migration_the_error_says_what_to_call() {
    let server = server();
    let error = Cache::<String>::builder("test").remote(store(&server)).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("`PostgresStore::migrate`"), "{error}");
    let elsewhere = store(&server).schema("nowhere").unwrap();
    assert!(elsewhere.ping().await.unwrap_err().to_string().contains("`PostgresStore::migrate`"));
    assert_eq!(server.psql("select count(*) from pg_tables where tablename like 'mcp%'").unwrap(), "0");
}

#[tokio::test]
async fn migration_by_many_at_once_is_done_once_and_changes_nothing_the_second_time() {
    let server = server();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store(&server).schema("its_own").unwrap().prefix("cache_of_mine").unwrap();
        tasks.spawn(async move { store.migrate().await });
    }
    assert!(tasks.join_all().await.iter().all(Result::is_ok));
    let store = store(&server).schema("its_own").unwrap().prefix("cache_of_mine").unwrap();
    put(&store, "name", "kept", None).await;
    store.migrate().await.unwrap();
    assert_eq!(bytes(&store, "name").await.as_deref(), Some(&b"kept"[..]));
    store.ping().await.unwrap();
    let made =
        "select count(*) from pg_tables where schemaname = 'its_own' and tablename like 'cache_of_mine_%'";
    assert_eq!(server.psql(made).unwrap(), "3");
    assert_eq!(server.psql("select version from its_own.cache_of_mine_version").unwrap(), "1");
}

#[tokio::test]
async fn tables_of_a_later_release_are_left_alone_and_what_is_missing_is_made_again() {
    let server = server();
    let store = migrated(&server).await;
    server.psql("update mcp_perf_version set version = 2").unwrap();
    let error = store.ping().await.unwrap_err();
    assert!(error.to_string().contains("later release"), "{error}");
    server.psql("drop table mcp_perf_stamps").unwrap();
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("later release"), "{error}");
    let stamps = "select count(*) from pg_tables where tablename = 'mcp_perf_stamps'";
    assert_eq!(server.psql(stamps).unwrap(), "0");
    for damage in [
        "update mcp_perf_version set version = 0",
        "delete from mcp_perf_version",
        "drop table mcp_perf_entries",
        "drop table mcp_perf_version",
    ] {
        server.psql(damage).unwrap();
        assert!(store.ping().await.unwrap_err().to_string().contains("`PostgresStore::migrate`"), "{damage}");
        store.migrate().await.unwrap();
        store.ping().await.unwrap();
    }
    assert_eq!(bytes(&store, "name").await, None);
}

#[tokio::test]
async fn what_keeps_a_connection_from_being_made_is_told_apart_and_holds_no_secret() {
    let server =
        PostgresServer::start_with(&[("max_connections", "12"), ("superuser_reserved_connections", "3")]);
    migrated(&server).await;
    server.psql("create role server login password 'right'").unwrap();
    server.ask_for_passwords();
    let url = |user: &str, host: &str, database: &str| {
        format!("postgres://{user}@{host}:{}/{database}", server.port())
    };
    let cases = [
        (url("server:hunter2", "127.0.0.1", "postgres"), ErrorKind::Refused, "with this password"),
        (url("server", "127.0.0.1", "postgres"), ErrorKind::Refused, "the URL has none"),
        (url("server:right", "127.0.0.1", "hunter2"), ErrorKind::Refused, "no such database"),
        (
            url("server:hunter2", "no-such-host.invalid", "postgres"),
            ErrorKind::Unavailable,
            "host was not found",
        ),
        (url("server:right", "127.0.0.1", "postgres"), ErrorKind::Refused, "lacks a privilege"),
    ];
    for (url, kind, cause) in cases {
        let store = PostgresStore::new(&url).unwrap();
        let error = until(cause, async || {
            // The server reads its rules when it gets to it.
            store.ping().await.err().filter(|error| error.to_string().contains(cause))
        })
        .await;
        assert_eq!(error.kind(), kind, "{error}");
        let told = format!("{error} {error:?} {store:?}");
        assert!(!told.contains("hunter2") && !told.contains("right"), "{told}");
    }
    server.psql("grant select, insert, update, delete on all tables in schema public to server").unwrap();
    let right = PostgresStore::new(&url("server:right", "127.0.0.1", "postgres")).unwrap();
    right.ping().await.unwrap();
    right.migrate().await.unwrap(); // there is nothing to do that it may not
    server.psql("revoke delete on mcp_perf_entries from server").unwrap();
    assert!(right.ping().await.unwrap_err().to_string().contains("may not"), "told by ping already");
    let other = right.clone().prefix("other").unwrap();
    assert!(other.migrate().await.unwrap_err().to_string().contains("lacks a privilege"));

    let mut taken = Vec::new();
    while let Ok((client, connection)) =
        tokio_postgres::connect(&url("server:right", "127.0.0.1", "postgres"), NoTls).await
    {
        tokio::spawn(connection);
        taken.push(client);
    }
    let one_too_many = PostgresStore::new(&url("server:right", "127.0.0.1", "postgres")).unwrap();
    let error = until("too many connections", async || {
        one_too_many.ping().await.err().filter(|error| error.to_string().contains("too many connections"))
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn read_only_server_is_found_by_ping_and_refuses_writes_alone() {
    let server = server();
    let store = migrated(&server).await;
    put(&store, "name", "x", None).await;
    store.get_many(&["name"], &["stamp"]).await.unwrap();
    let age = "update mcp_perf_stamps set used = used - interval '2 days'";
    server.psql(age).unwrap();
    server.psql("alter database postgres set default_transaction_read_only = on").unwrap();
    let store = self::store(&server);
    let error = store.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("read only"), "{error}");
    let error = store.remove_many(&["name"], MINUTE).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().contains("read only")),
        (ErrorKind::Refused, true),
        "{error}"
    );
    let found = store.get_many(&["name"], &["stamp"]).await.unwrap();
    assert!(found.entries[0].entry.is_some());
}

/// A primary that turned into a standby goes on answering. Another one of the URL's hosts may have taken over.
#[tokio::test]
async fn server_that_refuses_to_write_is_left_for_another_one_by_readers_too() {
    let (one, other) = (server(), server());
    for server in [&one, &other] {
        migrated(server).await;
    }
    let ports = format!("{},{}", one.port(), other.port());
    let hosts = "host=127.0.0.1,127.0.0.1 user=postgres dbname=postgres target_session_attrs=read-write";
    let store = PostgresStore::new(&format!("{hosts} port={ports}")).unwrap();
    put(&store, "name", "old", None).await;
    assert_eq!(bytes(&store, "name").await.as_deref(), Some(&b"old"[..]));
    one.psql("alter system set default_transaction_read_only = on").unwrap();
    one.psql("select pg_reload_conf()").unwrap();
    let count = "select count(*) from mcp_perf_entries where name = 'other'";
    let writes = async || {
        let is_written = store.remove_many(&["other"], MINUTE).await.is_ok();
        (is_written && other.psql(count).unwrap() == "1").then_some(())
    };
    until("it writes elsewhere", writes).await;
    assert_eq!(bytes(&store, "name").await, None, "a reader went on at the server that was left");
}

/// Its kernel acknowledges what was sent, so that nothing else finds it out.
#[tokio::test]
async fn migration_does_not_wait_for_ever_for_a_server_that_says_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", listener.local_addr().unwrap());
    let store = PostgresStore::new(&url).unwrap();
    let migrating = tokio::spawn(async move { store.migrate().await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut asked = [0; 4096];
    assert!(stream.read(&mut asked).await.unwrap() > 0, "who it is");
    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.unwrap(); // welcome, and ready
    assert!(stream.read(&mut asked).await.unwrap() > 0, "the first question");
    tokio::time::pause();
    let error = migrating.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn url_that_asks_for_tls_is_not_served_without() {
    let server = server();
    let url = format!("{}?sslmode=require", server.url());
    let store = PostgresStore::with_tls(&url, NoTls).unwrap();
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("TLS"), "{error}");
    let preferred = PostgresStore::with_tls(&server.url(), NoTls).unwrap();
    preferred.migrate().await.unwrap();
}

#[tokio::test]
async fn callers_who_connect_at_once_share_one_attempt_and_its_error() {
    // A host that takes connections and says nothing.
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = PostgresStore::new(&format!("postgres://{}", host.local_addr().unwrap())).unwrap();
    let ask = || async { store.remove_many(&["name"], MINUTE).await.unwrap_err() };
    // Some are less patient than the network, and leave the attempt to the others.
    assert!(tokio::time::timeout(Duration::from_millis(20), ask()).await.is_err());
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    for error in [one, two, three] {
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.to_string(), "postgres cannot be reached (connect): no connection in time");
    }
    host.accept().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), host.accept()).await.is_err(), "another attempt");
    ask().await;
    host.accept().await.unwrap(); // who asks later tries again
}

#[test]
fn malformed_url_prefix_and_schema_are_errors_that_name_the_field_and_not_the_password() {
    for url in [
        "",
        "hunter2",
        "postgres://:hunter2@host:notaport",
        "postgres://user:hunter2@/database",
        "http://:hunter2@host",
    ] {
        let error = PostgresStore::new(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(
            error.to_string().starts_with("url: ") && !format!("{error:?}").contains("hunter2"),
            "{error}"
        );
    }
    let store = PostgresStore::new("postgres://127.0.0.1").unwrap();
    let long = "x".repeat(41);
    for name in ["", "a b", "1a", "a\"", "a;drop table users", "a'", "Ä", "a-b", "Upper", "a\0", &long] {
        let error = store.clone().prefix(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().starts_with("prefix: "), "{error}");
        assert!(store.clone().schema(name).unwrap_err().to_string().starts_with("schema: "));
    }
}

#[tokio::test]
async fn prefixes_keep_programs_apart_even_if_they_are_words_of_sql_and_as_long_as_may_be() {
    let server = server();
    let long = "x".repeat(40);
    let mut stores = Vec::new();
    for prefix in ["select", "_", &long] {
        let store = store(&server).schema("user").unwrap().prefix(prefix).unwrap();
        store.migrate().await.unwrap();
        store.ping().await.unwrap();
        assert_eq!(bytes(&store, "name").await, None);
        put(&store, "name", "x", None).await;
        stores.push(store);
    }
    stores[0].remove_many(&["name"], MINUTE).await.unwrap();
    assert_eq!(bytes(&stores[1], "name").await.as_deref(), Some(&b"x"[..]));
}

#[tokio::test]
async fn every_connection_is_set_up_and_the_url_has_the_last_word() {
    let server = server();
    let url = format!("{}?options=-c%20statement_timeout%3D60s&application_name=mine", server.url());
    PostgresStore::new(&url).unwrap().migrate().await.unwrap();
    let store = PostgresStore::new(&url).unwrap();
    store.ping().await.unwrap();
    bytes(&store, "name").await;
    let held = "select count(*) from pg_stat_activity where application_name = 'mine'";
    until("two connections to read and one to write", async || {
        store.get_many(&[], &[]).await.unwrap();
        (server.psql(held).unwrap() == "3").then_some(())
    })
    .await;
    // Another's settings show in what they do: one of two that wait for a lock gives up after 2 seconds.
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    put(&store, "name", "x", None).await;
    client.batch_execute("begin; select from mcp_perf_entries where name = 'name' for update").await.unwrap();
    let patient = tokio::spawn(async move { store.remove_many(&["name"], MINUTE).await });
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    until("it waits", async || (server.psql(waits).unwrap() == "1").then_some(())).await;
    let error = self::store(&server).remove_many(&["name"], MINUTE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    client.batch_execute("commit").await.unwrap();
    patient.await.unwrap().unwrap();
}

/// A store, the same through a proxy, and the proxy.
async fn near_and_far(server: &PostgresServer) -> (PostgresStore, PostgresStore, testing::FaultProxy) {
    let near = migrated(server).await;
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, server.port()));
    let proxy = testing::FaultProxy::start(address).await.unwrap();
    let far = format!("postgres://postgres@{}/postgres", proxy.address());
    (near, PostgresStore::new(&far).unwrap(), proxy)
}

#[tokio::test]
async fn stamp_that_is_written_twice_revives_nothing_from_before_a_stamp_in_between() {
    for invalidation in [Invalidation::Remove, Invalidation::Expire] {
        let server = server();
        let (near, far, proxy) = near_and_far(&server).await;
        let change = move |name, stamp| Restamp { name, invalidation, stamp };
        // Connected, and prepared.
        far.restamp(&[change("other", Stamp::random())]).await.unwrap();
        let stamp = async || near.get_many(&[], &["tag"]).await.unwrap().stamps[0];
        let (before, first) = (stamp().await, Stamp::random());
        let first = before.after(invalidation, first);
        // The answer is still on its way when the question has arrived.
        proxy.set(testing::Weather::Delay(Duration::from_millis(500)));
        let removing = tokio::spawn(async move { far.restamp(&[change("tag", first)]).await });
        until("the stamp arrives", async || (stamp().await == first).then_some(())).await;
        // Another process invalidates.
        near.restamp(&[change("tag", Stamp::random())]).await.unwrap();
        proxy.set(testing::Weather::Clear);
        // The answer is lost, and the call is made again.
        proxy.cut();
        removing.await.unwrap().unwrap();
        assert_ne!(stamp().await, first, "what was stored with it in between lives again");
    }
}

#[tokio::test]
async fn removal_that_is_made_twice_bars_what_began_before_a_removal_in_between() {
    let server = server();
    let (near, far, proxy) = near_and_far(&server).await;
    far.remove_many(&["other"], MINUTE).await.unwrap();
    put(&near, "name", "value", None).await;
    let before = fence(&near, "name").await;
    proxy.set(testing::Weather::Delay(Duration::from_millis(500)));
    let removing = tokio::spawn(async move { far.remove_many(&["name"], MINUTE).await });
    let arrived = async || {
        let seen = fence(&near, "name").await;
        (seen != before).then_some(seen)
    };
    let seen = until("the removal arrives", arrived).await;
    // A load begins, and another process removes.
    near.remove_many(&["name"], MINUTE).await.unwrap();
    proxy.set(testing::Weather::Clear);
    proxy.cut();
    removing.await.unwrap().unwrap();
    assert_eq!(put(&near, "name", "old", Some(seen)).await, Written::Refused);
}

#[tokio::test]
async fn write_whose_answer_was_lost_is_known_when_it_is_made_again() {
    let server = server();
    let (near, far, proxy) = near_and_far(&server).await;
    // Connected, and prepared.
    put(&near, "there", "value", None).await;
    for name in ["other", "there"] {
        assert!(is_stored(put(&far, name, "old", Some(fence(&near, name).await)).await));
    }
    for name in ["absent", "there"] {
        for is_removed in [false, true] {
            let before = fence(&near, name).await;
            proxy.set(testing::Weather::Delay(Duration::from_millis(500)));
            let far = far.clone();
            let writing = tokio::spawn(async move { put(&far, name, "new", Some(before)).await });
            until("it arrives", async || (fence(&near, name).await != before).then_some(())).await;
            if is_removed {
                near.remove_many(&[name], MINUTE).await.unwrap();
            }
            proxy.set(testing::Weather::Clear);
            proxy.cut();
            let written = writing.await.unwrap();
            if is_removed {
                assert_eq!((written, bytes(&near, name).await), (Written::Refused, None));
            } else {
                assert_eq!(written, Written::Stored(fence(&near, name).await));
                assert_eq!(bytes(&near, name).await.as_deref(), Some(&b"new"[..]));
            }
        }
    }
}
