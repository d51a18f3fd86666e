//! Reads that go to Redis, against a bare `GET` of the same 1 KiB.
//!
//! `cache.l2_get` is a read of the store that a cache has behind it: bytes of a rival against bytes of ours, which come
//! with the life that is left to them, the fence of the entry and the stamp of the whole cache.
//!
//! `cache.l2_read` is a read of a cache whose memory may answer for no time at all, so that every read is one of Redis.
//! The rivals still fetch bytes and no more. Ours also looks into memory, checks the stamp and a checksum, decodes, and
//! has a deadline and a breaker.
//!
//! Both are with one worker thread, so that a core is left to Redis on a machine of two; `_2workers` with two.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bb8_redis::RedisConnectionManager;
use fred::prelude::{Builder, ClientLike, KeysInterface};
use mcp_perf::{
    cache::{Cache, Key, Put, Store},
    redis::RedisStore,
};
use redis::{AsyncCommands, aio::MultiplexedConnection};
use tokio::{
    runtime::{self, Runtime},
    task::JoinSet,
};

use super::{names, payload};
use crate::{
    measure::{Rounds, Side, Stopwatch},
    report::Comparison,
    support::{process::find_program, redis::RedisServer},
};

const KEYS: usize = 4_096;
const ROUNDS: Rounds = Rounds { count: 31, slice: Duration::from_millis(100) };
/// How many callers, and the bars of the ratios to bb8, fred and redis-rs.
const CASES: [(usize, [Option<f64>; 3]); 5] = [
    (1, [None, None, None]),
    (4, [None, None, Some(0.9)]),
    (16, [None, None, Some(0.9)]),
    (64, [Some(5.0), Some(1.4), Some(1.2)]),
    (512, [Some(8.0), Some(2.2), Some(2.0)]),
];
/// The name of a stamp: every read of a cache asks for one.
const STAMP: &str = "stamp";
/// Of what is stored.
const LIFE: Duration = Duration::from_secs(86_400);
/// Alone, what counts is how long it takes.
const LATENCY_BAR: f64 = 1.15;

type Names = Arc<Vec<String>>;
type Pool = bb8::Pool<RedisConnectionManager>;

/// What of ours is read.
#[derive(Clone, Copy)]
pub enum Tier {
    /// The store alone.
    Store,
    /// A cache that has the store behind it.
    Cache,
}

pub fn run(tier: Tier, workers: usize, case: &str) -> Result<()> {
    if find_program("redis-server").is_none() {
        eprintln!("{case}: left out, since there is no redis-server here");
        return Ok(());
    }
    compare(&RedisServer::start(), tier, workers, case)
}

fn compare(server: &RedisServer, tier: Tier, workers: usize, case: &str) -> Result<()> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let _entered = runtime.enter();
    let names: Names = Arc::new(names(KEYS));
    let client = redis::Client::open(server.url())?;
    let multiplexed = runtime.block_on(client.get_multiplexed_async_connection())?;
    let manager = RedisConnectionManager::new(server.url())?;
    let pool = runtime.block_on(bb8::Pool::builder().build(manager))?;
    let fred = Builder::from_config(fred::types::config::Config::from_url(&server.url())?).build()?;
    runtime.block_on(fred.init())?;
    let store = RedisStore::new(&server.url())?;
    let cache = runtime.block_on(write(&names, &store, multiplexed.clone()))?;

    for (callers, [bb8_bar, fred_bar, redis_rs_bar]) in CASES {
        let mut ours = |count| match tier {
            Tier::Store => in_turn(&runtime, callers, count, &names, &store, get_stored),
            Tier::Cache => {
                let before = cache.stats().remote_hits;
                let took = in_turn(&runtime, callers, count, &names, &cache, get_cached)?;
                let hits = cache.stats().remote_hits - before;
                ensure!(hits == count, "not all were read from Redis: {hits} of {count}");
                Ok(took)
            }
        };
        let compare = |rival, bar: Option<f64>, ours: &mut Side<'_>, theirs: &mut Side<'_>| {
            let name = format!("{case}.{callers}.{rival}");
            let comparison = Comparison::rate(&name, rival);
            bar.into_iter().fold(comparison, Comparison::at_least).run(ROUNDS, ours, theirs)
        };
        compare("bb8", bb8_bar, &mut ours, &mut |count| {
            in_turn(&runtime, callers, count, &names, &pool, get_pooled)
        })?;
        compare("fred", fred_bar, &mut ours, &mut |count| {
            in_turn(&runtime, callers, count, &names, &fred, get_fred)
        })?;
        let mut redis_rs = |count| in_turn(&runtime, callers, count, &names, &multiplexed, get_multiplexed);
        if callers == 1 {
            let name = format!("{case}.{callers}.redis_rs");
            let comparison = Comparison::microseconds(&name, "redis_rs").at_most(LATENCY_BAR);
            comparison.run(ROUNDS, &mut ours, &mut redis_rs)?;
        } else {
            compare("redis_rs", redis_rs_bar, &mut ours, &mut redis_rs)?;
        }
    }
    Ok(())
}

/// Every payload three times: as an entry of a cache, as one of the store, and bare. Returns a cache to read through, with nothing in memory.
async fn write(
    names: &Names,
    store: &RedisStore,
    mut connection: MultiplexedConnection,
) -> Result<Cache<String>> {
    let cache = || {
        let cache = Cache::builder("l2").time_to_live(LIFE).remote(store.clone());
        cache.max_staleness(Duration::from_nanos(1)).build()
    };
    let reader = cache().await?;
    let cache = cache().await?;
    for (index, name) in names.iter().enumerate() {
        cache.insert(&Key::public(name), payload(index)).await?;
        store.put_if(Put::new(name, payload(index).into(), LIFE)).await?;
        let () = connection.set(name, payload(index)).await?;
    }
    Ok(reader)
}

/// `count` reads by so many callers, each of which waits for an answer before it asks again.
fn in_turn<S, F>(
    runtime: &Runtime,
    callers: usize,
    count: u64,
    names: &Names,
    source: &S,
    get: fn(S, Names, usize) -> F,
) -> Result<Duration>
where
    S: Clone + Send + 'static,
    F: Future<Output = Result<usize>> + Send + 'static,
{
    let stopwatch = Stopwatch::start();
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (source, names) = (source.clone(), Arc::clone(names));
            tasks.spawn(async move {
                for turn in (caller as u64..count).step_by(callers) {
                    let index = usize::try_from(turn)? % names.len();
                    let length = get(source.clone(), Arc::clone(&names), index).await?;
                    ensure!(length == 1024, "{length} bytes");
                }
                Ok(())
            });
        }
        tasks.join_all().await.into_iter().collect::<Result<()>>()
    })?;
    Ok(stopwatch.elapsed())
}

async fn get_stored(store: RedisStore, names: Names, index: usize) -> Result<usize> {
    let found = store.get_many(&[&names[index]], &[STAMP]).await?;
    let entry = found.entries.first().and_then(|slot| slot.entry.as_ref());
    ensure!(found.stamps.len() == 1, "no stamp");
    Ok(entry.context("a miss")?.bytes.len())
}

async fn get_cached(cache: Cache<String>, names: Names, index: usize) -> Result<usize> {
    Ok(cache.get(&Key::public(&names[index])).await.context("a miss")?.len())
}

async fn get_pooled(pool: Pool, names: Names, index: usize) -> Result<usize> {
    Ok(pool.get().await?.get::<_, Vec<u8>>(&names[index]).await?.len())
}

async fn get_fred(client: fred::clients::Client, names: Names, index: usize) -> Result<usize> {
    Ok(client.get::<fred::bytes::Bytes, _>(names[index].as_str()).await?.len())
}

async fn get_multiplexed(mut connection: MultiplexedConnection, names: Names, index: usize) -> Result<usize> {
    Ok(connection.get::<_, Vec<u8>>(&names[index]).await?.len())
}
