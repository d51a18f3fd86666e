//! The laws of the limiter, against a model and against governor.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what is wrong by panicking")]

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{RateLimiter, clock::FakeRelativeClock};
use mcp_perf::{
    ErrorKind,
    clock::Clock,
    limit::{Decision, Limiter, Quota, Subject},
};
use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

fn limiter(clock: &Clock, policies: &[(&str, Quota)]) -> Limiter {
    let builder = Limiter::builder().clock(clock.clone()).keys(1_024);
    policies.iter().fold(builder, |builder, (name, quota)| builder.policy(*name, *quota)).build().unwrap()
}

fn on(limiter: &Limiter, policy: &str, key: &str) -> Subject {
    limiter.scope(policy).unwrap().on(key)
}

proptest! {
    /// Every decision is governor's, where governor can be asked (it rounds intervals to whole nanoseconds and
    /// counts in `u32`).
    #[test]
    fn decides_as_governor_does(
        interval in 1_u64..1_000_000_000,
        burst in 1_u32..50,
        steps in prop::collection::vec((0_u64..2_000_000_000, 1_u32..60), 1..60),
    ) {
        let period = Duration::from_nanos(interval);
        let theirs_clock = FakeRelativeClock::default();
        let quota = governor::Quota::with_period(period).unwrap().allow_burst(NonZeroU32::new(burst).unwrap());
        let theirs = RateLimiter::direct_with_clock(quota, theirs_clock.clone());
        let clock = Clock::manual();
        let ours = limiter(&clock, &[("p", Quota::per(1, period).burst(u64::from(burst)))]);
        let subject = on(&ours, "p", "key");
        for (wait, cost) in steps {
            clock.advance(Duration::from_nanos(wait));
            theirs_clock.advance(Duration::from_nanos(wait));
            let allowed = matches!(theirs.check_n(NonZeroU32::new(cost).unwrap()), Ok(Ok(())));
            prop_assert_eq!(ours.check(&[subject], u64::from(cost)).is_allowed(), allowed);
        }
    }

    /// No window holds more than the burst and what the rate brings in that time.
    #[test]
    fn no_window_admits_more_than_burst_and_rate(
        count in 1_u64..1_000,
        period in 1_u64..100,
        burst in 1_u64..50,
        steps in prop::collection::vec((0_u64..500_000_000, 0_u64..8), 1..80),
    ) {
        let clock = Clock::manual();
        let quota = Quota::per(count, Duration::from_secs(period)).burst(burst);
        let limiter = limiter(&clock, &[("p", quota)]);
        let subject = on(&limiter, "p", "key");
        let mut granted: Vec<(u64, u64)> = Vec::new();
        for (wait, cost) in steps {
            clock.advance(Duration::from_nanos(wait));
            if limiter.check(&[subject], cost).is_allowed() {
                granted.push((clock.now().as_nanos(), cost));
            }
        }
        for (first, (from, _)) in granted.iter().enumerate() {
            let mut sum = 0;
            for (until, cost) in &granted[first..] {
                sum += cost;
                let rate = count as f64 / (period as f64 * 1e9);
                // A thousandth for the rounding of the interval to 1/32 ns.
                let most = burst as f64 + rate * (until - from) as f64 * 1.001 + 1e-6;
                prop_assert!(sum as f64 <= most, "{} in {} ns, at most {}", sum, until - from, most);
            }
        }
    }

    /// A refusal says when to come back: not a nanosecond too early, and not later than needed.
    #[test]
    fn retry_after_is_exact(burst in 1_u64..20, per_second in 1_u64..1_000_000, cost in 1_u64..20) {
        let clock = Clock::manual();
        let limiter = limiter(&clock, &[("p", Quota::per_second(per_second).burst(burst))]);
        let subject = on(&limiter, "p", "key");
        while limiter.check(&[subject], 1).is_allowed() {}
        let Decision::Deny(denial) = limiter.check(&[subject], cost) else { unreachable!() };
        let Some(after) = denial.retry_after() else {
            prop_assert!(cost > burst);
            return Ok(());
        };
        clock.advance(after - Duration::from_nanos(1));
        prop_assert!(!limiter.peek(&[subject], cost).is_allowed());
        clock.advance(Duration::from_nanos(1));
        prop_assert!(limiter.check(&[subject], cost).is_allowed());
    }

    /// Several limits take from all or from none, as a model of buckets says.
    #[test]
    fn several_limits_take_all_or_none(
        bursts in prop::collection::vec(1_u64..20, 1..5),
        costs in prop::collection::vec(0_u64..8, 1..40),
    ) {
        let clock = Clock::manual();
        let names: Vec<String> = (0..bursts.len()).map(|index| index.to_string()).collect();
        let hourly = |burst: &u64| Quota::per_hour(1).burst(*burst);
        let policies: Vec<(&str, Quota)> =
            names.iter().map(String::as_str).zip(bursts.iter().map(hourly)).collect();
        let limiter = limiter(&clock, &policies);
        let subjects: Vec<Subject> = names.iter().map(|name| on(&limiter, name, "key")).collect();
        let mut left = bursts;
        for cost in costs {
            let fits = left.iter().all(|left| *left >= cost);
            prop_assert_eq!(limiter.peek(&subjects, cost).is_allowed(), fits);
            prop_assert_eq!(limiter.check(&subjects, cost).is_allowed(), fits);
            if fits {
                left.iter_mut().for_each(|left| *left -= cost);
            }
        }
    }
}

#[test]
fn keys_and_policies_have_quotas_of_their_own() {
    let clock = Clock::manual();
    let limiter = limiter(&clock, &[("one", Quota::per_hour(1)), ("two", Quota::per_hour(1))]);
    for subject in [on(&limiter, "one", "a"), on(&limiter, "one", "b"), on(&limiter, "two", "a")] {
        assert!(limiter.check(&[subject], 1).is_allowed());
        assert!(!limiter.check(&[subject], 1).is_allowed());
    }
    assert_eq!((limiter.stats().allowed, limiter.stats().denied), (3, 3));
}

#[test]
fn denial_names_the_policy_to_wait_for_longest_and_a_grant_the_tightest() {
    let clock = Clock::manual();
    let limiter = limiter(&clock, &[("second", Quota::per_second(2)), ("hour", Quota::per_hour(4))]);
    let both = [on(&limiter, "second", "a"), on(&limiter, "hour", "a")];
    let Decision::Allow(standing) = limiter.check(&both, 2) else { panic!() };
    assert_eq!((limiter.policy_name(standing.policy), standing.remaining()), ("second", 0));
    clock.advance(Duration::from_secs(1));
    assert!(limiter.check(&both, 2).is_allowed());
    let Decision::Deny(denial) = limiter.check(&both, 1) else { panic!() };
    assert_eq!(limiter.policy_name(denial.policy), "hour");
    assert_eq!(denial.retry_after(), Some(Duration::from_secs(15 * 60 - 1)));
}

#[test]
fn cost_that_never_fits_is_told_apart() {
    let limiter = limiter(&Clock::manual(), &[("p", Quota::per_second(5))]);
    let subject = on(&limiter, "p", "key");
    for cost in [6, 1 << 40, u64::MAX] {
        let Decision::Deny(denial) = limiter.check(&[subject], cost) else { panic!() };
        assert_eq!((denial.retry_after(), denial.remaining()), (None, 5));
    }
    assert!(limiter.check(&[subject], 5).is_allowed());
}

#[test]
fn subject_of_another_limiter_is_denied() {
    let clock = Clock::manual();
    let (one, other) =
        (limiter(&clock, &[("p", Quota::per_second(1))]), limiter(&clock, &[("p", Quota::per_second(1))]));
    assert!(!one.check(&[on(&other, "p", "key")], 1).is_allowed());
}

#[test]
fn rate_that_is_no_whole_interval_is_never_exceeded() {
    let clock = Clock::manual();
    let limiter = limiter(&clock, &[("p", Quota::per_second(7_000_000).burst(14_000))]);
    let subject = on(&limiter, "p", "key");
    let mut granted = 0;
    for _ in 0..=1_000 {
        let mut most = 14_000;
        while most > 0 {
            if limiter.check(&[subject], most).is_allowed() {
                granted += most;
            } else {
                most /= 2;
            }
        }
        clock.advance(Duration::from_millis(1));
    }
    assert!(granted <= 7_000_000 + 14_000, "{granted} in a second");
}

#[test]
fn forgiven_debt_is_counted_without_wrapping() {
    let years = Duration::from_secs(4 * 365 * 86_400);
    let clock = Clock::manual();
    let limiter =
        Limiter::builder().policy("p", Quota::per(1, years).burst(1)).keys(1).clock(clock).build().unwrap();
    let scope = limiter.scope("p").unwrap();
    let mut before = Duration::ZERO;
    for key in 0..40 {
        let _ = limiter.check(&[scope.on(&key)], 1);
        let forgiven = limiter.stats().forgiven;
        assert!(forgiven >= before, "{before:?}, then {forgiven:?}");
        before = forgiven;
    }
}

#[test]
fn impossible_quota_is_an_error_that_names_the_field() {
    let build = |quota| Limiter::builder().policy("p", quota).build();
    let second = Duration::from_secs(1);
    let cases = [
        ("quota count", build(Quota::per(0, second))),
        ("quota period", build(Quota::per(1, Duration::ZERO))),
        ("quota burst", build(Quota::per_second(1).burst(0))),
        ("quota burst", build(Quota::per(1, 86_400 * second).burst(1_000_000))),
        ("quota rate", build(Quota::per(u64::MAX, second))),
        ("quota rate", build(Quota::per(1, Duration::MAX))),
        ("policy: ", Limiter::builder().build()),
        ("policy name", Limiter::builder().policy("a\"b", Quota::per_second(1)).build()),
        (
            "policy: ",
            Limiter::builder().policy("a", Quota::per_second(1)).policy("a", Quota::per_second(2)).build(),
        ),
        ("keys", Limiter::builder().policy("p", Quota::per_second(1)).keys(0).build()),
        ("keys", Limiter::builder().policy("p", Quota::per_second(1)).keys(usize::MAX).build()),
    ];
    for (field, result) in cases {
        let error = result.expect_err(field);
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains(field), "{field}: {error}");
    }
}

/// Random threads over few keys: what is granted never exceeds the burst, and what a refused decision took
/// from its first policy is given back.
#[test]
fn threads_never_get_more_than_the_burst_and_refusals_take_nothing() {
    let clock = Clock::manual();
    let limiter = limiter(
        &clock,
        &[("wide", Quota::per_hour(1).burst(1_000)), ("narrow", Quota::per_hour(1).burst(300))],
    );
    let both = Arc::new([on(&limiter, "wide", "k"), on(&limiter, "narrow", "k")]);
    let granted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..2_000).filter(|_| limiter.check(&both[..], 1).is_allowed()).count()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(granted, 300);
    let Decision::Allow(wide) = limiter.peek(&both[..1], 0) else { panic!() };
    assert_eq!(wide.remaining(), 700);
}

#[test]
fn decisions_allocate_nothing() {
    let limiter = limiter(&Clock::system(), &[("one", Quota::per_hour(50)), ("two", Quota::per_hour(50))]);
    let (one, two) = (limiter.scope("one").unwrap(), limiter.scope("two").unwrap());
    let allocations = allocation_counter::measure(|| {
        for index in 0..1_000_u32 {
            let _ = limiter.check(&[one.on(&index)], 1);
            let _ = limiter.check(&[one.on("a"), two.on("a")], 1);
        }
    });
    assert_eq!(allocations.count_total, 0);
    assert!(limiter.stats().denied > 0 && limiter.stats().allowed > 0);
}

#[test]
fn recording_a_time_allocates_nothing() {
    let series = mcp_perf::timing::Timing::default().series("tools/call", "search");
    series.start().finish(mcp_perf::timing::Outcome::Ok);
    let allocations = allocation_counter::measure(|| {
        for _ in 0..1_000 {
            series.start().finish(mcp_perf::timing::Outcome::Ok);
        }
    });
    assert_eq!(allocations.count_total, 0);
}
