//! Reads that go to Redis: the remote tier with an empty memory, against a bare `GET` of the same 1 KiB.
//!
//! The rivals fetch bytes and no more. Ours also asks for the life that is left and for the stamp of the whole
//! cache, checks both and a checksum, and decodes. Memory may answer for no time at all, so that every read is one of
//! Redis. `cache.l2_get` is with one worker thread, so that a core is left to Redis on a machine of two;
//! `cache.l2_get_2workers` with two.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bb8_redis::RedisConnectionManager;
use fred::prelude::{Builder, ClientLike, KeysInterface};
use mcp_perf::{
    cache::{Cache, Key},
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
/// Alone, what counts is how long it takes.
const LATENCY_BAR: f64 = 1.15;

type Names = Arc<Vec<String>>;
type Pool = bb8::Pool<RedisConnectionManager>;

pub fn run(workers: usize, case: &str) -> Result<()> {
    if find_program("redis-server").is_none() {
        eprintln!("{case}: left out, since there is no redis-server here");
        return Ok(());
    }
    compare(&RedisServer::start(), workers, case)
}

fn compare(server: &RedisServer, workers: usize, case: &str) -> Result<()> {
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
    let ours = runtime.block_on(write(&names, &store, multiplexed.clone()))?;

    for (callers, [bb8_bar, fred_bar, redis_rs_bar]) in CASES {
        let mut ours = |count| {
            let before = ours.stats().remote_hits;
            let took = in_turn(&runtime, callers, count, &names, &ours, get_ours)?;
            let hits = ours.stats().remote_hits - before;
            ensure!(hits == count, "not all were read from Redis: {hits} of {count}");
            Ok(took)
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

/// Every payload twice: as an entry of ours, and bare. Returns a cache to read through, with nothing in memory.
async fn write(
    names: &Names,
    store: &RedisStore,
    mut connection: MultiplexedConnection,
) -> Result<Cache<String>> {
    let cache = || {
        let cache = Cache::builder("l2").time_to_live(Duration::from_secs(86_400)).remote(store.clone());
        cache.max_staleness(Duration::from_nanos(1)).build()
    };
    let reader = cache().await?;
    let cache = cache().await?;
    for (index, name) in names.iter().enumerate() {
        cache.insert(&Key::public(name), payload(index)).await?;
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

async fn get_ours(cache: Cache<String>, names: Names, index: usize) -> Result<usize> {
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
