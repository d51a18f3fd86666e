//! A thousand tasks on one missing key, whose source answers when all of them have asked.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use mcp_perf::cache::{Cache, Key};
use tokio::{
    runtime::{self, Runtime},
    sync::Semaphore,
    task::JoinSet,
};

use super::{Payload, payload};
use crate::{
    measure::{Rounds, Stopwatch},
    report::{Comparison, print_loads},
};

const TASKS: u32 = 1_000;
const ROUNDS: Rounds = Rounds { count: 51, slice: Duration::from_millis(20) };

/// What is slow to read, and counts how often it was.
#[derive(Clone)]
struct Source {
    arrivals: Arc<Semaphore>,
    loads: Arc<AtomicU64>,
}

pub fn run() -> Result<()> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ours: Cache<Payload> = Cache::builder("stampede").build()?;
    let moka: moka::future::Cache<String, Payload> =
        moka::future::Cache::builder().max_capacity(10_000).time_to_live(Duration::from_secs(300)).build();
    let of_ours = |name: String, source: Source| {
        let cache = ours.clone();
        async move {
            source.arrive();
            let load = move || async move { Ok::<_, Infallible>(source.load().await) };
            cache.get_or_load(&Key::public(&name), load).await.is_ok()
        }
    };
    let of_moka = |name: String, source: Source| {
        let cache = moka.clone();
        async move {
            source.arrive();
            let load = async move { Ok::<_, Infallible>(source.load().await) };
            cache.try_get_with(name, load).await.is_ok()
        }
    };
    let (mut most, mut most_of_moka) = (0, 0);
    Comparison::microseconds("cache.stampede_time.moka", "moka").run(
        ROUNDS,
        &mut |count| stampedes(&runtime, count, &mut most, of_ours),
        &mut |count| stampedes(&runtime, count, &mut most_of_moka, of_moka),
    )?;
    print_loads("cache.stampede.loads", most, ("ideal", 1), 1.0);
    Ok(())
}

/// Runs so many stampedes one after the other, each on a new key, and notes the most loads that one came to.
fn stampedes<F>(
    runtime: &Runtime,
    count: u64,
    most: &mut u64,
    ask: impl Fn(String, Source) -> F,
) -> Result<Duration>
where
    F: Future<Output = bool> + Send + 'static,
{
    let mut total = Duration::ZERO;
    for _ in 0..count {
        let source = Source::new();
        let name = format!("tools/call:{:032x}", fastrand::u128(..));
        let stopwatch = Stopwatch::start();
        let served = runtime.block_on(async {
            let tasks: JoinSet<bool> = (0..TASKS).map(|_| ask(name.clone(), source.clone())).collect();
            tasks.join_all().await.into_iter().filter(|served| *served).count()
        });
        total += stopwatch.elapsed();
        ensure!(served == TASKS as usize, "only {served} were served");
        *most = source.loads.load(Ordering::SeqCst).max(*most);
    }
    Ok(total)
}

impl Source {
    fn new() -> Self {
        Self { arrivals: Arc::new(Semaphore::new(0)), loads: Arc::default() }
    }

    fn arrive(&self) {
        self.arrivals.add_permits(1);
    }

    async fn load(&self) -> Payload {
        let _ = self.arrivals.acquire_many(TASKS).await;
        self.loads.fetch_add(1, Ordering::SeqCst);
        payload(0).into()
    }
}
