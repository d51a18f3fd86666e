//! Reads that go to Redis: the remote tier with an empty memory, against a bare `GET` of the same 1 KiB.
//!
//! The rivals fetch bytes and no more. Ours also asks for the life that is left and for the stamp of the whole
//! cache, checks both and a checksum, decodes, and keeps the value in memory. One worker thread, so that a core
//! is left to Redis.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bb8_redis::RedisConnectionManager;
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
    measure::{Rounds, Stopwatch},
    report::Comparison,
    support::{process::find_program, redis::RedisServer},
};

const KEYS: usize = 4_096;
const ROUNDS: Rounds = Rounds { count: 31, slice: Duration::from_millis(100) };

type Names = Arc<Vec<String>>;
type Pool = bb8::Pool<RedisConnectionManager>;

pub fn run() -> Result<()> {
    if find_program("redis-server").is_none() {
        eprintln!("cache.l2_get: left out, since there is no redis-server here");
        return Ok(());
    }
    let server = RedisServer::start();
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _entered = runtime.enter();
    let names: Names = Arc::new(names(KEYS));
    let client = redis::Client::open(server.url())?;
    let connection = runtime.block_on(client.get_multiplexed_async_connection())?;
    let manager = RedisConnectionManager::new(server.url())?;
    let pool = runtime.block_on(bb8::Pool::builder().build(manager))?;
    let store = RedisStore::new(&server.url())?;
    runtime.block_on(write(&names, &store, connection.clone()))?;

    for callers in [1, 16, 64] {
        let mut ours = |count| read_ours(&runtime, callers, count, &names, &store);
        Comparison::rate(&format!("cache.l2_get.{callers}.bb8"), "bb8").run(
            ROUNDS,
            &mut ours,
            &mut |count| in_turn(&runtime, callers, count, &names, &pool, get_pooled),
        )?;
        Comparison::rate(&format!("cache.l2_get.{callers}.redis_rs"), "redis_rs").run(
            ROUNDS,
            &mut ours,
            &mut |count| in_turn(&runtime, callers, count, &names, &connection, get_multiplexed),
        )?;
    }
    Ok(())
}

/// Every payload twice: as an entry of ours, and bare.
async fn write(names: &Names, store: &RedisStore, mut connection: MultiplexedConnection) -> Result<()> {
    let cache = reader(store).await?;
    for (index, name) in names.iter().enumerate() {
        cache.insert(&Key::public(name), payload(index)).await?;
        let () = connection.set(name, payload(index)).await?;
    }
    Ok(())
}

/// A cache with nothing in memory, whose connections are open.
async fn reader(store: &RedisStore) -> Result<Cache<String>> {
    Ok(Cache::builder("l2").time_to_live(Duration::from_secs(86_400)).remote(store.clone()).build().await?)
}

/// Reads through ours, every key once and then through a new reader, for which no key is in memory.
fn read_ours(
    runtime: &Runtime,
    callers: usize,
    count: u64,
    names: &Names,
    store: &RedisStore,
) -> Result<Duration> {
    let mut total = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let cache = runtime.block_on(reader(store))?;
        let some = left.min(names.len() as u64);
        total += in_turn(runtime, callers, some, names, &cache, get_ours)?;
        let stats = cache.stats();
        ensure!(stats.remote_hits == some, "not all were read from Redis: {stats:?}");
        left -= some;
    }
    Ok(total)
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
    Ok(pool.get().await?.get::<_, String>(&names[index]).await?.len())
}

async fn get_multiplexed(mut connection: MultiplexedConnection, names: Names, index: usize) -> Result<usize> {
    Ok(connection.get::<_, String>(&names[index]).await?.len())
}
