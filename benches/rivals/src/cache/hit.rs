//! A hit in the process against raw moka, the engine that ours stands on: what the front costs.
//!
//! Draws are zipf unless the name says uniform. Both hold 10,000 values under keys of 58 bytes, with room for
//! twice as many, hash with foldhash, and clone an `Arc<str>` of 1 KiB out. moka is given the time to live that
//! our entries have too; `moka_no_ttl` is moka without any, which never has to look at a clock.

use std::{hint::black_box, io, time::Duration};

use anyhow::{Result, ensure};
use foldhash::fast::RandomState;
use mcp_perf::cache::{Cache, Key};
use tokio::runtime::{self, Runtime};

use super::{Payload, names, payload};
use crate::{
    draws::Draws,
    measure::{Rounds, time, time_two_threads},
    report::Comparison,
};

const KEYS: usize = 10_000;
const CAPACITY: u64 = 2 * KEYS as u64;
const TIME_TO_LIVE: Duration = Duration::from_secs(3_600);

type Moka = moka::sync::Cache<String, Payload, RandomState>;

/// Ours and moka twice, all full.
struct Contest {
    names: Vec<String>,
    ours: Cache<Payload>,
    moka: Moka,
    moka_no_ttl: Moka,
    runtime: Runtime,
}

pub fn run() -> Result<()> {
    let contest = Contest::new()?;
    let (zipf, uniform) = (Draws::zipf(KEYS), Draws::uniform(KEYS));
    let moka = &contest.moka;
    let line = |name| Comparison::nanoseconds(name, "moka");
    contest.hits(line("cache.l1_hit.moka").at_most(1.15), &zipf, moka)?;
    contest.hits(line("cache.l1_hit_uniform.moka"), &uniform, moka)?;
    contest.hits(line("cache.l1_hit.moka_no_ttl"), &zipf, &contest.moka_no_ttl)?;
    contest.peeks(line("cache.l1_peek.moka"), &zipf)?;
    contest.hits_of_two_threads(line("cache.l1_hit_2threads.moka"), &zipf)?;
    ensure!(contest.ours.stats().misses == 0, "not all were hits: {:?}", contest.ours.stats());
    Ok(())
}

impl Contest {
    fn new() -> Result<Self> {
        let names = names(KEYS);
        let builder = || moka::sync::Cache::builder().max_capacity(CAPACITY);
        let moka = builder().time_to_live(TIME_TO_LIVE).build_with_hasher(RandomState::default());
        let moka_no_ttl = builder().build_with_hasher(RandomState::default());
        let ours = Cache::builder("hits").capacity(CAPACITY).time_to_live(TIME_TO_LIVE).build()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        for (index, name) in names.iter().enumerate() {
            let payload = Payload::from(payload(index));
            moka.insert(name.clone(), Payload::clone(&payload));
            moka_no_ttl.insert(name.clone(), Payload::clone(&payload));
            runtime.block_on(ours.insert(&Key::public(name), payload))?;
        }
        moka.run_pending_tasks();
        moka_no_ttl.run_pending_tasks();
        ensure!(moka.entry_count() == ours.stats().len, "not all fitted");
        Ok(Self { names, ours, moka, moka_no_ttl, runtime })
    }

    /// What a user writes: `get_or_load`, in a task that has nothing to wait for.
    fn hits(&self, line: Comparison<'_>, draws: &Draws, moka: &Moka) -> Result<()> {
        let (mut of_ours, mut of_moka) = (draws.clone(), draws.clone());
        line.run(
            Rounds::SHORT,
            &mut |count| Ok(time(|| self.runtime.block_on(self.load(count, &mut of_ours)))),
            &mut |count| Ok(time(|| self.runtime.block_on(self.get(moka, count, &mut of_moka)))),
        )
    }

    fn peeks(&self, line: Comparison<'_>, draws: &Draws) -> Result<()> {
        let (mut of_ours, mut of_moka) = (draws.clone(), draws.clone());
        line.run(Rounds::SHORT, &mut |count| Ok(time(|| self.peek(count, &mut of_ours))), &mut |count| {
            Ok(time(|| self.runtime.block_on(self.get(&self.moka, count, &mut of_moka))))
        })
    }

    fn hits_of_two_threads(&self, line: Comparison<'_>, draws: &Draws) -> Result<()> {
        let handle = self.runtime.handle();
        let draws = || draws.anywhere();
        let load = |count, mut draws| handle.block_on(self.load(count, &mut draws));
        let get = |count, mut draws| handle.block_on(self.get(&self.moka, count, &mut draws));
        line.run(
            Rounds::SHORT,
            &mut |count| Ok(time_two_threads(draws, |draws| load(count, draws))),
            &mut |count| Ok(time_two_threads(draws, |draws| get(count, draws))),
        )
    }

    async fn load(&self, count: u64, draws: &mut Draws) {
        for _ in 0..count {
            let key = Key::public(&self.names[draws.draw()]);
            let _ = black_box(self.ours.get_or_load(&key, no_loader).await);
        }
    }

    fn peek(&self, count: u64, draws: &mut Draws) {
        for _ in 0..count {
            black_box(self.ours.get_local(&Key::public(&self.names[draws.draw()])));
        }
    }

    /// In a future as well, though it needs none.
    async fn get(&self, moka: &Moka, count: u64, draws: &mut Draws) {
        for _ in 0..count {
            black_box(moka.get(self.names[draws.draw()].as_str()));
        }
    }
}

/// Would be a miss, and there are none.
async fn no_loader() -> io::Result<Payload> {
    Err(io::Error::other("every key is there"))
}
