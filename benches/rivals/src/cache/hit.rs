//! A hit in the process: against the engine that ours stands on, which is what the front costs, and against what
//! else one could take.
//!
//! Draws are zipf unless the name says uniform. All hold 10,000 values under keys of 58 bytes, with room for twice
//! as many, and hand out an `Arc<str>` of 1 KiB, in a future. What lets its hash be chosen has foldhash, and what
//! knows a time to live has one of an hour. `moka_no_ttl` is moka without any, which never has to look at a clock;
//! raw quick_cache and foyer know none. `table` is what is left of the task where nothing is ever forgotten or written:
//! what the machine takes to find 10,000 keys and count who has the values. (`quick_to_table` has raw quick_cache in the
//! place of ours.)
//!
//! Ours stands on moka where the line is of moka, and where its name begins with `l1_hit_on_moka`; else on quick_cache.

use std::hint::black_box;

use anyhow::{Result, ensure};
use mcp_perf::cache::Engine;
use tokio::runtime::{self, Runtime};

use super::{
    names,
    peers::{
        CachedFunction, CachedStore, Cachekit, Foyer, Hitbox, KEYS, Moka, Ours, Peeked, Peer, Quick, Table,
    },
};
use crate::{
    draws::Draws,
    measure::{Rounds, time, time_two_threads},
    report::Comparison,
};

/// What all comparisons share.
struct Contest {
    names: Vec<String>,
    zipf: Draws,
    runtime: Runtime,
}

pub fn run() -> Result<()> {
    let contest = Contest {
        names: names(KEYS),
        zipf: Draws::zipf(KEYS),
        runtime: runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?,
    };
    let on_moka = contest.fill(Ours::new(Engine::Moka)?)?;
    let on_quick = contest.fill(Ours::new(Engine::QuickCache)?)?;
    contest.against_moka(&on_moka)?;
    contest.against_quick(&on_quick)?;
    contest.against_others(&on_quick, &on_moka)?;
    for ours in [on_moka, on_quick] {
        ensure!(ours.0.stats().misses == 0, "not all were hits: {:?}", ours.0.stats());
    }
    Ok(())
}

impl Contest {
    fn against_moka(&self, ours: &Ours) -> Result<()> {
        let (moka, no_ttl) = (self.fill(Moka::new())?, self.fill(Moka::without_ttl())?);
        let line = |name| Comparison::nanoseconds(name, "moka");
        self.hits(line("cache.l1_hit.moka").at_most(1.15), ours, &moka)?;
        self.hits_of(&Draws::uniform(KEYS), line("cache.l1_hit_uniform.moka"), ours, &moka)?;
        self.hits(line("cache.l1_hit.moka_no_ttl"), ours, &no_ttl)?;
        self.hits(line("cache.l1_peek.moka"), &Peeked(ours), &moka)?;
        self.hits_of_two_threads(line("cache.l1_hit_2threads.moka"), ours, &moka)
    }

    fn against_quick(&self, ours: &Ours) -> Result<()> {
        let quick = self.fill(Quick::new())?;
        let line = |name| Comparison::nanoseconds(name, "quick_cache");
        self.hits(line("cache.l1_hit.quick").at_most(1.8), ours, &quick)?;
        self.hits(line("cache.l1_peek.quick"), &Peeked(ours), &quick)?;
        let table = Table::filled(&self.names);
        self.hits(Comparison::nanoseconds("cache.l1_hit.table", "a bare table"), ours, &table)?;
        self.hits(Comparison::nanoseconds("cache.l1_hit.quick_to_table", "a bare table"), &quick, &table)?;
        self.hits_of_two_threads(line("cache.l1_hit_2threads.quick"), ours, &quick)
    }

    fn against_others(&self, on_quick: &Ours, on_moka: &Ours) -> Result<()> {
        let line = Comparison::nanoseconds;
        let foyer = self.fill(Foyer::new())?;
        self.hits(line("cache.l1_hit.foyer", "foyer").at_most(0.45), on_quick, &foyer)?;
        self.hits_of_two_threads(line("cache.l1_hit_2threads.foyer", "foyer"), on_quick, &foyer)?;
        self.hits(line("cache.l1_hit_on_moka.foyer", "foyer"), on_moka, &foyer)?;
        let cachekit = self.fill(Cachekit::new()?)?;
        self.hits(line("cache.l1_hit.cachekit", "cachekit").at_most(0.5), on_quick, &cachekit)?;
        self.hits(line("cache.l1_hit_on_moka.cachekit", "cachekit"), on_moka, &cachekit)?;
        let _entered = self.runtime.enter();
        let hitbox = self.fill(Hitbox::new())?;
        self.hits(line("cache.l1_hit.hitbox", "hitbox").at_most(0.5), on_quick, &hitbox)?;
        self.hits(line("cache.l1_hit_on_moka.hitbox", "hitbox"), on_moka, &hitbox)?;
        let cached = self.fill(CachedFunction)?;
        self.hits(line("cache.l1_hit.cached", "cached").at_most(0.5), on_quick, &cached)?;
        self.hits(line("cache.l1_hit_on_moka.cached", "cached"), on_moka, &cached)?;
        let loads = [Hitbox::loads(), CachedFunction::loads()];
        ensure!(loads == [KEYS as u64; 2], "not all were hits: {loads:?}");
        let store = self.fill(CachedStore::new())?;
        self.hits(line("cache.l1_hit.cached_store", "cached_store"), on_quick, &store)?;
        self.hits_of_two_threads(line("cache.l1_hit_2threads.cached_store", "cached_store"), on_quick, &store)
    }

    fn fill<P: Peer>(&self, peer: P) -> Result<P> {
        peer.filled(&self.names, &self.runtime)
    }

    fn hits(&self, line: Comparison<'_>, ours: &impl Peer, rival: &impl Peer) -> Result<()> {
        self.hits_of(&self.zipf, line, ours, rival)
    }

    fn hits_of(
        &self,
        draws: &Draws,
        line: Comparison<'_>,
        ours: &impl Peer,
        rival: &impl Peer,
    ) -> Result<()> {
        let (mut of_ours, mut of_rival) = (draws.clone(), draws.clone());
        line.run(
            Rounds::SHORT,
            &mut |count| Ok(time(|| self.runtime.block_on(self.get(ours, count, &mut of_ours)))),
            &mut |count| Ok(time(|| self.runtime.block_on(self.get(rival, count, &mut of_rival)))),
        )
    }

    fn hits_of_two_threads(&self, line: Comparison<'_>, ours: &impl Peer, rival: &impl Peer) -> Result<()> {
        let draws = || self.zipf.anywhere();
        line.run(
            Rounds::SHORT,
            &mut |count| {
                let get = |mut draws| self.runtime.block_on(self.get(ours, count, &mut draws));
                Ok(time_two_threads(draws, get))
            },
            &mut |count| {
                let get = |mut draws| self.runtime.block_on(self.get(rival, count, &mut draws));
                Ok(time_two_threads(draws, get))
            },
        )
    }

    async fn get(&self, peer: &impl Peer, count: u64, draws: &mut Draws) {
        for _ in 0..count {
            black_box(peer.hit(&self.names[draws.draw()]).await);
        }
    }
}
