//! The limiter: a refusal against a grant, and both against governor.
//!
//! Ours hashes keys with SipHash and reads the system's clock; governor is as its guide has it, in a `DashMap`
//! that hashes with SipHash too, with the clock of quanta. What a user writes is measured, from the key on.

mod keyed;
mod layer;

use std::{hash::Hash, hint::black_box};

use anyhow::{Result, ensure};
use mcp_perf::limit::{Decision, Limiter, Quota, Scope};

use crate::{
    measure::{Rounds, time},
    report::Comparison,
};

/// The key of what is measured on one key alone.
const KEY: u64 = 7;

/// Whether the quota is so large that it always allows, or used up for the next hour.
#[derive(Clone, Copy)]
enum Case {
    Allow,
    Deny,
}

/// A limiter of ours with one policy.
struct Ours {
    limiter: Limiter,
    scope: Scope,
}

pub fn run() -> Result<()> {
    deny_against_allow()?;
    keyed::run()?;
    layer::run()
}

fn deny_against_allow() -> Result<()> {
    let (denying, allowing) = (Ours::new(Case::Deny, 1)?, Ours::new(Case::Allow, 1)?);
    denying.use_up(&[KEY])?;
    allowing.use_up(&[KEY])?;
    Comparison::nanoseconds("limit.deny_vs_allow", "allow").at_most(1.0).run(
        Rounds::SHORT,
        &mut |count| Ok(time(|| denying.check_one(count))),
        &mut |count| Ok(time(|| allowing.check_one(count))),
    )?;
    denying.ensure_only(Case::Deny, 1)?;
    allowing.ensure_only(Case::Allow, 1)
}

impl Ours {
    /// With room for twice as many keys, as the builder recommends.
    fn new(case: Case, keys: usize) -> Result<Self> {
        let limiter =
            Limiter::builder().policy("caller", case.of_ours()).keys((2 * keys).max(65_536)).build()?;
        let scope = limiter.scope("caller")?;
        Ok(Self { limiter, scope })
    }

    #[inline]
    fn check<K: Hash>(&self, key: &K) -> Decision {
        self.limiter.check(&[self.scope.on(key)], 1)
    }

    fn check_one(&self, count: u64) {
        for _ in 0..count {
            black_box(self.check(black_box(&KEY)));
        }
    }

    /// Gives every key its slot, and takes what a small quota holds.
    fn use_up<K: Hash>(&self, keys: &[K]) -> Result<()> {
        ensure!(keys.iter().all(|key| self.check(key).is_allowed()), "ours denied the first");
        Ok(())
    }

    /// Whether nearly all decisions were as they should be: a table of fixed size may let a key go.
    fn ensure_only(&self, case: Case, keys: usize) -> Result<()> {
        let stats = self.limiter.stats();
        let wrong = match case {
            Case::Allow => stats.denied,
            // The first of every key was allowed.
            Case::Deny => stats.allowed - keys as u64,
        };
        eprintln!("  of {} decisions of ours {wrong} were the other way", stats.allowed + stats.denied);
        ensure!(wrong <= (stats.allowed + stats.denied) / 20, "{stats:?}");
        Ok(())
    }
}

impl Case {
    fn of_ours(self) -> Quota {
        match self {
            Self::Allow => Quota::per_second(50_000_000),
            Self::Deny => Quota::per_hour(1),
        }
    }
}
