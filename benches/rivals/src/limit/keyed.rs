//! Many keys, each with a quota of its own.

use std::{hash::Hash, hint::black_box, num::NonZeroU32};

use anyhow::{Context, Result, ensure};
use governor::{DefaultKeyedRateLimiter, RateLimiter};

use super::{Case, Ours};
use crate::{
    draws::Draws,
    measure::{Rounds, time, time_two_threads},
    report::Comparison,
};

pub(super) fn run() -> Result<()> {
    let line = |name| Comparison::nanoseconds(name, "governor");
    let numbers = |count: u64| (0..count).collect::<Vec<_>>();
    let names: Vec<String> =
        (0..1_000).map(|index| format!("https://accounts.example.org/{index:015}")).collect();
    keyed(line("limit.keyed.governor").at_most(0.8), Case::Allow, &numbers(1_000))?;
    keyed(line("limit.keyed_deny.governor"), Case::Deny, &numbers(1_000))?;
    keyed(line("limit.keyed_string.governor"), Case::Allow, &names)?;
    keyed(line("limit.keyed_1m.governor"), Case::Allow, &numbers(1_000_000))?;
    keyed(line("limit.keyed_1m_deny.governor"), Case::Deny, &numbers(1_000_000))?;
    keyed_by_two_threads(line("limit.keyed_2threads.governor"), Case::Allow, &numbers(1_000))?;
    keyed_by_two_threads(line("limit.keyed_2threads_deny.governor"), Case::Deny, &numbers(1_000))
}

fn keyed<K: Clone + Eq + Hash>(line: Comparison<'_>, case: Case, keys: &[K]) -> Result<()> {
    let (ours, governor) = both(case, keys)?;
    let draws = Draws::uniform(keys.len());
    let (mut of_ours, mut of_governor) = (draws.clone(), draws);
    line.run(
        Rounds::SHORT,
        &mut |count| Ok(time(|| decide_ours(&ours, count, keys, &mut of_ours))),
        &mut |count| Ok(time(|| decide_governor(&governor, count, keys, &mut of_governor))),
    )?;
    ours.ensure_only(case, keys.len())
}

fn keyed_by_two_threads<K: Clone + Eq + Hash + Sync + Send>(
    line: Comparison<'_>,
    case: Case,
    keys: &[K],
) -> Result<()> {
    let (ours, governor) = both(case, keys)?;
    let draws = Draws::uniform(keys.len());
    let draws = || draws.anywhere();
    line.run(
        Rounds::SHORT,
        &mut |count| Ok(time_two_threads(draws, |mut draws| decide_ours(&ours, count, keys, &mut draws))),
        &mut |count| {
            Ok(time_two_threads(draws, |mut draws| decide_governor(&governor, count, keys, &mut draws)))
        },
    )?;
    ours.ensure_only(case, keys.len())
}

/// Both limiters, in a state where `case` is what they say of every key.
fn both<K: Clone + Eq + Hash>(case: Case, keys: &[K]) -> Result<(Ours, DefaultKeyedRateLimiter<K>)> {
    let ours = Ours::new(case, keys.len())?;
    let governor = RateLimiter::keyed(governor_quota(case)?);
    ours.use_up(keys)?;
    ensure!(keys.iter().all(|key| governor.check_key(key).is_ok()), "governor denied the first");
    let allows = keys.iter().filter(|key| governor.check_key(key).is_ok()).count();
    ensure!(allows == if matches!(case, Case::Allow) { keys.len() } else { 0 }, "governor allowed {allows}");
    Ok((ours, governor))
}

#[inline]
fn decide_governor<K: Clone + Eq + Hash>(
    governor: &DefaultKeyedRateLimiter<K>,
    count: u64,
    keys: &[K],
    draws: &mut Draws,
) {
    for _ in 0..count {
        let _ = black_box(governor.check_key(&keys[draws.draw()]));
    }
}

#[inline]
fn decide_ours<K: Hash>(ours: &Ours, count: u64, keys: &[K], draws: &mut Draws) {
    for _ in 0..count {
        black_box(ours.check(&keys[draws.draw()]));
    }
}

fn governor_quota(case: Case) -> Result<governor::Quota> {
    Ok(match case {
        Case::Allow => governor::Quota::per_second(NonZeroU32::new(50_000_000).context("not zero")?),
        Case::Deny => governor::Quota::per_hour(NonZeroU32::MIN),
    })
}
