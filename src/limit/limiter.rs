//! The limiter as its users see it.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{Arc, Once},
    time::Duration,
};

use super::{
    gcra::{Emission, Ticks, Verdict},
    quota::Quota,
    table::{Fingerprint, Table},
};
use crate::{Error, clock::Clock, stripe::Counter};

/// Decides who may go on; cheap to clone, clones share their state.
///
/// The [module page](super) says what it promises.
#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    /// Random, to tell subjects of other limiters.
    id: u64,
    policies: Box<[Named]>,
    table: Table,
    clock: Clock,
    allowed: Counter,
    denied: Counter,
    allowed_exported: metrics::Counter,
    denied_exported: metrics::Counter,
}

struct Named {
    name: Box<str>,
    emission: Emission,
    /// SipHash with keys of its own: whoever chooses keys cannot choose which of them share a set, and a key has
    /// nothing in common with itself under another policy.
    hasher: RandomState,
}

/// A policy of a limiter, resolved once so that no decision looks up a name.
#[derive(Clone)]
pub struct Scope {
    limiter: u64,
    policy: Policy,
    hasher: RandomState,
}

/// Which policy of its limiter something speaks of; [`Limiter::policy_name`] knows its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy(usize);

/// What a decision charges: a policy, and a key that has a quota of its own under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    limiter: u64,
    policy: Policy,
    key: Fingerprint,
}

/// The outcome. Being over the limit is not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "there is no third outcome, and nobody should have to guess at one"
)]
pub enum Decision {
    /// Go on; every subject was charged.
    Allow(Standing),
    /// Stop; no subject was charged.
    Deny(Denial),
}

/// Where a subject stands after a grant: the one with the least left, if there were several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// The policy that has the least left.
    pub policy: Policy,
    /// Its burst.
    pub limit: u64,
    left: Left,
}

/// Why not, and when to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denial {
    /// The policy that has to be waited for the longest.
    pub policy: Policy,
    /// Its burst.
    pub limit: u64,
    left: Left,
    /// [`NEVER`] if the cost is above the burst.
    wait: Ticks,
}

const NEVER: Ticks = Ticks(u64::MAX);

/// What is left of a burst, as time. Whoever is let through seldom asks how much it is, and a flood of those who
/// are not never does: numbers and durations, which take divisions, are made when they are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    /// Until all of it will be there again.
    debt: Ticks,
    /// What one costs; zero where nothing is counted.
    interval: u64,
}

/// What a limiter did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Decisions to go on.
    pub allowed: u64,
    /// Decisions to stop.
    pub denied: u64,
    /// Debt, as time, that was let go because there was no room for the key that owed it.
    pub forgiven: Duration,
}

impl Limiter {
    /// Starts the settings of a limiter.
    pub fn builder() -> LimiterBuilder {
        LimiterBuilder { policies: Vec::new(), keys: 65_536, clock: Clock::system() }
    }

    /// The scope of the named policy.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) if there is no such policy.
    pub fn scope(&self, policy: &str) -> Result<Scope, Error> {
        let mut named = self.0.policies.iter().enumerate();
        let (index, named) = named.find(|(_, named)| &*named.name == policy).ok_or_else(|| {
            let known: Vec<&str> = self.0.policies.iter().map(|named| &*named.name).collect();
            Error::configuration(
                "policy",
                format_args!("no policy {policy:?}; there is {}", known.join(", ")),
            )
        })?;
        Ok(Scope { limiter: self.0.id, policy: Policy(index), hasher: named.hasher.clone() })
    }

    /// The name of a policy of this limiter.
    #[must_use]
    pub fn policy_name(&self, policy: Policy) -> &str {
        self.0.policies.get(policy.0).map_or("", |named| &named.name)
    }

    /// Charges `cost` to every subject, or to none.
    ///
    /// A cost of 0 charges nothing and is allowed. No subject at all is allowed. A subject of another limiter
    /// is denied.
    ///
    /// # Examples
    ///
    /// ```
    /// use mcp_perf::{clock::Clock, limit::{Decision, Limiter, Quota}};
    /// use std::time::Duration;
    ///
    /// let clock = Clock::manual();
    /// let limiter =
    ///     Limiter::builder().policy("caller", Quota::per_second(2)).clock(clock.clone()).build()?;
    /// let alice = limiter.scope("caller")?.on("alice");
    ///
    /// assert!(limiter.check(&[alice], 2).is_allowed());
    /// let Decision::Deny(denial) = limiter.check(&[alice], 1) else { panic!("she has had her two") };
    /// assert_eq!(denial.retry_after(), Some(Duration::from_millis(500)));
    /// clock.advance(Duration::from_millis(500));
    /// assert!(limiter.check(&[alice], 1).is_allowed());
    /// # Ok::<(), mcp_perf::Error>(())
    /// ```
    #[must_use = "a decision that nobody heeds limits nothing"]
    #[inline]
    pub fn check(&self, subjects: &[Subject], cost: u64) -> Decision {
        let now = self.0.clock.now().into();
        let decision = match subjects {
            [subject] => self.0.charge_one(*subject, cost, now),
            _ => self.0.charge_all(subjects, cost, now),
        };
        match decision {
            Decision::Allow(_) => {
                self.0.allowed.add(1);
                self.0.allowed_exported.increment(1);
            }
            Decision::Deny(_) => {
                self.0.denied.add(1);
                self.0.denied_exported.increment(1);
            }
        }
        decision
    }

    /// Decides as [`check`](Self::check) would, charges nothing and counts nothing.
    #[must_use]
    pub fn peek(&self, subjects: &[Subject], cost: u64) -> Decision {
        self.0.look(subjects, cost, self.0.clock.now().into())
    }

    /// What the limiter did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            allowed: self.0.allowed.sum(),
            denied: self.0.denied.sum(),
            forgiven: self.0.table.forgiven().duration(),
        }
    }

    #[cfg(feature = "tower")]
    pub(super) fn refill(&self, policy: Policy) -> Duration {
        self.0.policies.get(policy.0).map_or(Duration::ZERO, |named| named.emission.refill())
    }
}

impl Scope {
    /// This policy, charged to this key. Keys that are [`Hash`] alike share a quota; `&()` makes it one quota
    /// for everybody.
    #[must_use]
    #[inline]
    #[expect(
        clippy::manual_hash_one,
        reason = "a function of its own, it is not inlined, nor is what it calls"
    )]
    pub fn on<K: Hash + ?Sized>(&self, key: &K) -> Subject {
        let mut hasher = self.hasher.build_hasher();
        key.hash(&mut hasher);
        Subject { limiter: self.limiter, policy: self.policy, key: Fingerprint::new(hasher.finish()) }
    }
}

impl Decision {
    /// Whether to go on.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl Inner {
    #[inline]
    fn policy(&self, subject: Subject) -> Option<&Named> {
        self.policies.get(subject.policy.0).filter(|_| subject.limiter == self.id)
    }

    #[inline]
    fn charge_one(&self, subject: Subject, cost: u64, now: Ticks) -> Decision {
        let Some(policy) = self.policy(subject) else { return foreign(subject) };
        let verdict = self.table.charge(subject.key, policy.emission, cost, now);
        match verdict {
            Verdict::Allow { tat } => Decision::Allow(policy.standing(subject, tat, now)),
            Verdict::Deny { retry_after } => Decision::Deny(policy.denial(subject, cost, retry_after)),
            Verdict::Never => Decision::Deny(policy.refusal(subject, self.table.tat(subject.key), now)),
        }
    }

    /// First look at all, then charge one after the other; if one refuses after all, because another thread
    /// was faster, give back what the ones before it took.
    fn charge_all(&self, subjects: &[Subject], cost: u64, now: Ticks) -> Decision {
        let decision = self.look(subjects, cost, now);
        if !decision.is_allowed() {
            return decision;
        }
        let mut tightest: Option<Standing> = None;
        for (index, subject) in subjects.iter().enumerate() {
            match self.charge_one(*subject, cost, now) {
                Decision::Allow(standing) => tightest = Some(standing.tighter(tightest)),
                denial @ Decision::Deny(_) => {
                    self.give_back(&subjects[..index], cost, now);
                    return denial;
                }
            }
        }
        tightest.map_or(decision, Decision::Allow)
    }

    #[cold]
    fn give_back(&self, subjects: &[Subject], cost: u64, charged_at: Ticks) {
        for subject in subjects {
            let Some(policy) = self.policies.get(subject.policy.0) else { continue };
            let charge = policy.emission.charge(cost);
            // The charge left the key with at least this debt.
            let charged = Ticks(charged_at.0.saturating_add(charge.0));
            self.table.refund(subject.key, charge, charged, || self.clock.now().into());
        }
    }

    fn look(&self, subjects: &[Subject], cost: u64, now: Ticks) -> Decision {
        let mut standing: Option<Standing> = None;
        let mut denial: Option<Denial> = None;
        for subject in subjects {
            let Some(policy) = self.policy(*subject) else { return foreign(*subject) };
            let tat = self.table.tat(subject.key);
            match policy.emission.decide(tat, now, cost) {
                Verdict::Allow { tat } => {
                    standing = Some(policy.standing(*subject, tat, now).tighter(standing));
                }
                Verdict::Deny { retry_after } => {
                    denial = Some(policy.denial(*subject, cost, retry_after).longer(denial));
                }
                Verdict::Never => denial = Some(policy.refusal(*subject, tat, now).longer(denial)),
            }
        }
        let everything = Standing { policy: Policy(0), limit: u64::MAX, left: Left::default() };
        denial.map_or_else(|| Decision::Allow(standing.unwrap_or(everything)), Decision::Deny)
    }
}

impl Named {
    #[inline]
    fn standing(&self, subject: Subject, tat: Ticks, now: Ticks) -> Standing {
        let debt = Ticks(tat.0.saturating_sub(now.0));
        Standing { policy: subject.policy, limit: self.emission.burst(), left: self.left(debt) }
    }

    /// Not now: what is missing says how much of the burst is in debt.
    #[inline]
    fn denial(&self, subject: Subject, cost: u64, wait: Ticks) -> Denial {
        let missing = self.emission.charge(cost).0.saturating_sub(wait.0);
        let debt = Ticks(self.emission.tolerance().saturating_sub(missing));
        Denial { policy: subject.policy, limit: self.emission.burst(), left: self.left(debt), wait }
    }

    /// Never, for the cost is above the burst.
    #[cold]
    fn refusal(&self, subject: Subject, tat: Ticks, now: Ticks) -> Denial {
        let debt = Ticks(tat.0.saturating_sub(now.0));
        Denial { policy: subject.policy, limit: self.emission.burst(), left: self.left(debt), wait: NEVER }
    }

    #[inline]
    fn left(&self, debt: Ticks) -> Left {
        Left { debt, interval: self.emission.charge(1).0 }
    }
}

impl Left {
    /// How many tokens of a burst of `limit`.
    fn tokens(self, limit: u64) -> u64 {
        let tolerance = limit.saturating_mul(self.interval);
        tolerance.saturating_sub(self.debt.0).checked_div(self.interval).unwrap_or(limit)
    }
}

impl Standing {
    /// What is left of the burst now.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.left.tokens(self.limit)
    }

    /// When all of it will be there again.
    #[must_use]
    pub fn reset_after(&self) -> Duration {
        self.left.debt.duration()
    }

    /// The one with the smaller share left.
    fn tighter(self, other: Option<Self>) -> Self {
        // Shares of the burst that are in debt, compared across: no division.
        let owes = |one: &Self, burst_of: &Self| {
            u128::from(one.left.debt.0) * u128::from(burst_of.limit.saturating_mul(burst_of.left.interval))
        };
        other.into_iter().fold(self, |one, two| if owes(&two, &one) > owes(&one, &two) { two } else { one })
    }
}

impl Denial {
    /// What is left of the burst, less than was asked for.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.left.tokens(self.limit)
    }

    /// After this time the same request fits, if nobody else comes. `None` if it never will, because the cost
    /// is above the burst.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        (self.wait != NEVER).then(|| self.wait.duration())
    }

    /// The one to wait longer for.
    fn longer(self, other: Option<Self>) -> Self {
        other.into_iter().fold(self, |one, two| if two.wait > one.wait { two } else { one })
    }
}

/// A subject of another limiter: nothing is known of it, so nothing is granted. Told once: all calls are refused, and
/// nothing else says that it is for a mistake of the program.
#[cold]
fn foreign(subject: Subject) -> Decision {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| tracing::error!("a subject of another limiter is refused, as all of those are"));
    Decision::Deny(Denial { policy: subject.policy, limit: 0, left: Left::default(), wait: NEVER })
}

/// Settings of a limiter.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct LimiterBuilder {
    policies: Vec<(String, Quota)>,
    keys: usize,
    clock: Clock,
}

impl LimiterBuilder {
    /// Adds a policy. Its name appears in answers: printable ASCII without quotes and backslashes, at most 64
    /// characters.
    pub fn policy(mut self, name: impl Into<String>, quota: Quota) -> Self {
        self.policies.push((name.into(), quota));
        self
    }

    /// How many keys, over all policies, have room at once: 65,536 unless set, 1 to 16 million, at 16 bytes
    /// each. Twice the number of keys that are in debt at the same time is a good measure.
    pub fn keys(mut self, keys: usize) -> Self {
        self.keys = keys;
        self
    }

    /// The clock that rates are measured by: the system's unless set.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Makes the limiter.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration), naming the setting that is impossible.
    pub fn build(self) -> Result<Limiter, Error> {
        if self.policies.is_empty() {
            return Err(Error::configuration("policy", "at least one is needed"));
        }
        if !(1..=1 << 24).contains(&self.keys) {
            return Err(Error::configuration("keys", "must be from 1 to 16,777,216"));
        }
        let mut policies: Vec<Named> = Vec::with_capacity(self.policies.len());
        for (name, quota) in self.policies {
            let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
            if !(1..=64).contains(&name.len()) || !name.bytes().all(printable) {
                let problem = "1 to 64 printable ASCII characters, without quotes and backslashes";
                return Err(Error::configuration("policy name", problem));
            }
            if policies.iter().any(|other| *other.name == *name) {
                return Err(Error::configuration("policy", format_args!("{name:?} is there twice")));
            }
            let emission = quota.emission(&name)?;
            policies.push(Named { name: name.into(), emission, hasher: RandomState::new() });
        }
        Ok(Limiter(Arc::new(Inner {
            id: fastrand::u64(..),
            policies: policies.into(),
            table: Table::new(self.keys),
            clock: self.clock,
            allowed: Counter::default(),
            denied: Counter::default(),
            allowed_exported: metrics::counter!("mcp_perf_limit_decisions_total", "outcome" => "allow"),
            denied_exported: metrics::counter!("mcp_perf_limit_decisions_total", "outcome" => "deny"),
        })))
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.policies.iter().map(|named| &*named.name).collect();
        f.debug_struct("Limiter").field("policies", &names).field("stats", &self.stats()).finish()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scope").field(&self.policy).finish()
    }
}
