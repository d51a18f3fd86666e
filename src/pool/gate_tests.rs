//! The gate against an oracle that does everything the long way, and under load.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;

use super::{
    super::classes::{DEFAULT, SYSTEM},
    *,
};

const NOW: Instant = Instant::from_nanos(0);

fn plain(target: u32) -> Gate {
    Gate::new(target, 1_000, [Share::new(), Share::new()], Clock::manual())
}

/// Whether it has a permit, or was refused one, or waits.
fn poll<'a>(acquire: &mut Acquire<'a>) -> Poll<Result<Permit<'a>, Denied>> {
    Pin::new(acquire).poll(&mut Context::from_waker(Waker::noop()))
}

fn joined(gate: &Gate, class: usize) -> Acquire<'_> {
    let mut acquire = gate.acquire(class);
    assert!(poll(&mut acquire).is_pending());
    acquire
}

/// Has the permit for good, if it was served.
fn is_served(acquire: &mut Acquire<'_>) -> bool {
    let Poll::Ready(Ok(permit)) = poll(acquire) else { return false };
    permit.forget();
    true
}

#[test]
fn permit_is_handed_to_the_longest_waiter_and_no_newcomer_is_faster() {
    let gate = plain(1);
    let permit = gate.try_acquire(1, NOW).unwrap();
    let (mut first, mut second) = (joined(&gate, 1), joined(&gate, 1));
    drop(permit);
    // Handed over already, although nobody has looked yet.
    assert_eq!(gate.try_acquire(1, NOW).unwrap_err(), Denied::Taken);
    assert!(!is_served(&mut second));
    assert!(is_served(&mut first));
    gate.release(1, NOW);
    assert!(is_served(&mut second));
}

#[test]
fn debt_is_paid_by_returns_and_nobody_enters_before() {
    let gate = plain(4);
    (0..4).for_each(|_| gate.try_acquire(1, NOW).unwrap().forget());
    let mut waiter = joined(&gate, 1);
    gate.set_target(2, None, NOW);
    for left in [3, 2] {
        gate.release(1, NOW);
        assert!(!is_served(&mut joined(&gate, 1)));
        assert_eq!(gate.level().in_use, left);
    }
    gate.release(1, NOW);
    assert!(is_served(&mut waiter));
    assert_eq!(gate.level(), Level { in_use: 2, target: 2, waiting: 0, kept: 0 });
}

#[test]
fn growth_serves_those_who_wait_at_once() {
    let gate = plain(1);
    gate.try_acquire(1, NOW).unwrap().forget();
    let mut waiters = [joined(&gate, 1), joined(&gate, 1), joined(&gate, 1)];
    gate.set_target(3, None, NOW);
    assert_eq!(waiters.each_mut().map(is_served), [true, true, false]);
}

#[test]
fn waiter_that_was_served_and_goes_away_hands_on_the_permit() {
    let gate = plain(1);
    let permit = gate.try_acquire(1, NOW).unwrap();
    let (first, mut second) = (joined(&gate, 1), joined(&gate, 1));
    drop(permit);
    drop(first);
    assert!(is_served(&mut second));
}

#[test]
fn system_class_is_served_first() {
    let gate = plain(1);
    let permit = gate.try_acquire(1, NOW).unwrap();
    let (mut user, mut system) = (joined(&gate, 1), joined(&gate, SYSTEM));
    drop(permit);
    assert!(is_served(&mut system));
    assert!(!is_served(&mut user));
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    let gate = Gate::new(0, 2, [Share::new()], Clock::manual());
    let (one, _two) = (joined(&gate, 0), joined(&gate, 0));
    assert!(matches!(poll(&mut gate.acquire(0)), Poll::Ready(Err(Denied::Full))));
    drop(one);
    let _three = joined(&gate, 0);
}

#[test]
fn closing_sends_everybody_away_and_keeps_the_permits_exact() {
    let gate = plain(1);
    let permit = gate.try_acquire(1, NOW).unwrap();
    let mut waiter = joined(&gate, 1);
    gate.close();
    assert!(matches!(poll(&mut waiter), Poll::Ready(Err(Denied::Closed))));
    assert_eq!(gate.try_acquire(1, NOW).unwrap_err(), Denied::Closed);
    drop(permit);
    assert_eq!(gate.level().in_use, 0);
}

#[derive(Clone, Debug)]
enum Act {
    Join(usize),
    /// A caller gives up, or gives back.
    Leave(prop::sample::Index),
    SetTarget(u32),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => (0..4_usize).prop_map(Act::Join),
        4 => any::<prop::sample::Index>().prop_map(Act::Leave),
        1 => (0..12_u32).prop_map(Act::SetTarget),
    ]
}

/// A caller of the oracle: its number, its class, and what it has of the gate.
enum Caller<'a> {
    Waits(Acquire<'a>),
    Has(#[expect(dead_code, reason = "returned when dropped")] Permit<'a>),
}

/// The rule of the classes, counted out.
struct Oracle {
    guarantees: [u32; 4],
    caps: [u32; 4],
}

impl Oracle {
    fn scaled(&self, target: u32) -> Option<[u32; 4]> {
        (self.guarantees.iter().sum::<u32>() < target.max(1)).then_some(self.guarantees)
    }

    /// Whether the class could have a permit with so many in use; `None` where guarantees are scaled.
    fn may_enter(&self, in_use: [u32; 4], target: u32, class: usize) -> Option<bool> {
        let guarantees = self.scaled(target)?;
        let free = target.saturating_sub(in_use.iter().sum());
        let kept: u32 = (0..4).map(|class| guarantees[class].saturating_sub(in_use[class])).sum();
        let borrows = in_use[class] < self.caps[class] && free > kept;
        Some(free > 0 && (in_use[class] < guarantees[class] || borrows))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn classes_keep_their_shares_and_everybody_their_turn(
        acts in prop::collection::vec(act(), 0..150),
        target in 0..12_u32,
        guarantees in prop::array::uniform4(0..3_u32),
        more in prop::array::uniform4(0..8_u32),
    ) {
        let caps = std::array::from_fn(|class| (guarantees[class] + more[class]).max(1));
        let oracle = Oracle { guarantees, caps };
        let shares = (0..4).map(|class| Share::new().guarantee(guarantees[class]).at_most(caps[class]));
        let gate = Gate::new(target, 1_000, shares, Clock::manual());
        let mut target = target;
        // By class, in the order of coming.
        let mut callers: [VecDeque<Caller<'_>>; 4] = Default::default();
        let mut in_use = [0_u32; 4];
        for act in acts {
            let (before, had): (u32, _) = (in_use.iter().sum(), in_use);
            let mut may_grow = true;
            match act {
                Act::Join(class) => callers[class].push_back(Caller::Waits(gate.acquire(class))),
                Act::Leave(index) => {
                    let all: usize = callers.iter().map(VecDeque::len).sum();
                    if all > 0 {
                        let mut index = index.index(all);
                        let class = (0..4).find(|class| {
                            let is_here = index < callers[*class].len();
                            if !is_here { index -= callers[*class].len(); }
                            is_here
                        });
                        callers[class.unwrap()].remove(index);
                    }
                    may_grow = false;
                }
                Act::SetTarget(new) => {
                    gate.set_target(new, None, NOW);
                    target = new;
                }
            }
            for (class, callers) in callers.iter_mut().enumerate() {
                let mut somebody_waits = false;
                for caller in callers.iter_mut() {
                    if let Caller::Waits(acquire) = caller
                        && let Poll::Ready(served) = poll(acquire)
                    {
                        prop_assert!(!somebody_waits, "class {class}: a later one was served first");
                        *caller = Caller::Has(served.unwrap());
                    }
                    somebody_waits |= matches!(caller, Caller::Waits(_));
                }
                let has = callers.iter().filter(|caller| matches!(caller, Caller::Has(_))).count();
                in_use[class] = u32::try_from(has).unwrap();
                prop_assert!(in_use[class] <= caps[class]);
            }
            let after: u32 = in_use.iter().sum();
            prop_assert!(after <= target || after <= before, "entered while in debt");
            prop_assert!(may_grow || after <= before.max(target));
            let waiting: usize = callers.iter().flatten().filter(|one| matches!(one, Caller::Waits(_))).count();
            let expected = Level { in_use: after, target, waiting: u32::try_from(waiting).unwrap(), kept: 0 };
            prop_assert_eq!(gate.level(), expected);
            prop_assert_eq!(gate.by_class().into_iter().map(|class| class.0).collect::<Vec<_>>(), in_use);
            // Whoever has more than it is sure of left free what others are sure of.
            let borrowed = |class: &usize| in_use[*class] > had[*class].max(guarantees[*class]);
            if let Some(guarantees) = oracle.scaled(target)
                && (0..4).any(|class| borrowed(&class))
            {
                let kept: u32 = (0..4).map(|class| guarantees[class].saturating_sub(in_use[class])).sum();
                prop_assert!(target - after >= kept, "{kept} are kept, {} are free", target - after);
            }
            // Nobody waits for what is free for them; and nobody below their guarantee while anything is free.
            for (class, callers) in callers.iter().enumerate() {
                if callers.iter().any(|caller| matches!(caller, Caller::Waits(_))) {
                    prop_assert_ne!(oracle.may_enter(in_use, target, class), Some(true), "class {}", class);
                }
            }
        }
        drop(callers);
        prop_assert_eq!(gate.level(), Level { in_use: 0, target, waiting: 0, kept: 0 });
    }
}

/// Two thousand resizes while 64 tasks come and go, one in seven of which gives up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resizes_under_load_break_no_target_and_lose_no_permit() {
    let gate = Arc::new(plain(16));
    let (in_use, peak) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..64_u64)
        .map(|seed| {
            let (gate, in_use, peak) = (Arc::clone(&gate), Arc::clone(&in_use), Arc::clone(&peak));
            let is_over = Arc::clone(&is_over);
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                while !is_over.load(Ordering::Relaxed) {
                    let mut acquire = gate.acquire(usize::from(random.bool()));
                    if random.u32(0..7) == 0 {
                        let polls = random.u32(0..3);
                        for _ in 0..polls {
                            let is_served = matches!(poll(&mut acquire), Poll::Ready(Ok(_returned)));
                            if is_served {
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                        continue;
                    }
                    let permit = acquire.await.unwrap();
                    peak.fetch_max(in_use.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    in_use.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            })
        })
        .collect();
    for round in 0..2_000 {
        gate.set_target(if round % 2 == 0 { 4 } else { 16 }, None, NOW);
        tokio::task::yield_now().await;
    }
    is_over.store(true, Ordering::Relaxed);
    let all = async {
        for caller in callers {
            caller.await.unwrap()
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("somebody waits for ever");
    assert!(peak.load(Ordering::SeqCst) <= 16, "{peak:?}");
    assert_eq!(gate.level(), Level { in_use: 0, target: 16, waiting: 0, kept: 0 });
}

/// One permit, two callers who come back at once, and a polite one: it waits for two handovers, no more.
#[test]
fn polite_caller_waits_for_no_more_handovers_than_there_were_callers_before_it() {
    let gate = plain(1);
    let mut holder = gate.try_acquire(1, NOW).unwrap();
    let mut greedy = joined(&gate, 1);
    let mut polite = joined(&gate, 1);
    let mut handovers = 0;
    loop {
        drop(holder);
        handovers += 1;
        // Whoever returned asks again before anybody else runs.
        let again = joined(&gate, 1);
        if is_served(&mut polite) {
            break;
        }
        let Poll::Ready(Ok(permit)) = poll(&mut greedy) else { panic!("somebody was served") };
        (holder, greedy) = (permit, again);
    }
    assert_eq!(handovers, 2);
}

#[derive(Default)]
struct Woken(AtomicU32);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn target_goes_back_before_anybody_is_turned_away() {
    let gate = Gate::new(2, 3, [Share::new(), Share::new()], Clock::manual());
    let _held = [(); 2].map(|()| gate.try_acquire(1, NOW).unwrap());
    gate.set_target(1, Some(Retreat { waiting: 9, target: 4 }), NOW);
    let mut waiters = [(); 3].map(|()| joined(&gate, 1));
    assert_eq!(gate.level(), Level { in_use: 4, target: 4, waiting: 1, kept: 0 });
    assert_eq!(waiters.each_mut().map(is_served), [true, true, false]);
}

#[test]
fn target_goes_back_at_once_when_more_wait_than_may() {
    let gate = plain(2);
    let held = [(); 2].map(|()| gate.try_acquire(1, NOW).unwrap());
    gate.set_target(1, Some(Retreat { waiting: 1, target: 4 }), NOW);
    let mut first = joined(&gate, 1);
    assert_eq!((gate.level().target, gate.most()), (1, 4));
    // Served while it joins, and told to look again: nobody else will tell it.
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut second = gate.acquire(1);
    assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!((gate.level().target, gate.most()), (4, 4));
    assert!(gate.has_retreated() && !gate.has_retreated(), "said once");
    assert!(is_served(&mut first) && is_served(&mut second));
    assert_eq!(gate.level(), Level { in_use: 4, target: 4, waiting: 0, kept: 0 });
    drop(held);
}

#[test]
fn target_does_not_go_back_above_a_bound_that_fell_meanwhile() {
    let gate = plain(4);
    let _held = [(); 3].map(|()| gate.try_acquire(1, NOW).unwrap());
    for (bound, before, after) in [(3, 2, 3), (1, 1, 1)] {
        gate.set_target(2, Some(Retreat { waiting: 0, target: 4 }), NOW);
        gate.keep_within(bound, NOW);
        assert_eq!((gate.level().target, gate.most()), (before, after));
        let _waits = joined(&gate, 1);
        assert_eq!(gate.level().target, after);
    }
}

#[test]
fn target_that_is_set_anew_forgets_the_way_back() {
    let gate = plain(1);
    let _held = gate.try_acquire(1, NOW).unwrap();
    gate.set_target(1, Some(Retreat { waiting: 0, target: 4 }), NOW);
    gate.set_target(1, None, NOW);
    let _waits = joined(&gate, 1);
    assert_eq!(gate.level().target, 1);
    gate.set_target(1, Some(Retreat { waiting: 1, target: 4 }), NOW);
    gate.forget_retreat();
    let _waits = joined(&gate, 1);
    assert_eq!((gate.level().target, gate.has_retreated()), (1, false));
}

#[test]
fn one_of_the_system_class_may_be_above_the_target_and_nobody_above_the_bound() {
    let gate = plain(2).up_to(3);
    let now = Instant::default();
    let held: Vec<_> = (0..2).map(|_| gate.try_acquire(DEFAULT, now).unwrap()).collect();
    assert_eq!(gate.try_acquire(DEFAULT, now).err(), Some(Denied::Taken));
    let system = gate.try_acquire(SYSTEM, now).unwrap();
    assert_eq!(gate.try_acquire(SYSTEM, now).err(), Some(Denied::Taken), "one at a time");
    drop(system);
    // What others may have falls below what is in use, and the system with it.
    gate.keep_within(2, now);
    assert_eq!(gate.try_acquire(SYSTEM, now).err(), Some(Denied::Taken));
    gate.keep_within(9, now);
    let system = gate.try_acquire(SYSTEM, now).unwrap();
    gate.set_target(3, None, now);
    assert_eq!(
        gate.try_acquire(DEFAULT, now).err(),
        Some(Denied::Taken),
        "three are in use, and three may be"
    );
    drop((held, system));
    assert_eq!(gate.level().in_use, 0);
}

#[test]
fn what_the_system_has_above_the_target_says_nothing_of_the_size() {
    let gate = plain(2).up_to(3);
    let _held: Vec<_> = (0..2).map(|_| gate.try_acquire(DEFAULT, NOW).unwrap()).collect();
    let _system = gate.try_acquire(SYSTEM, NOW).unwrap();
    let window = gate.window(NOW.after(Duration::from_secs(1)));
    assert_eq!((window.in_use_max, gate.level().in_use, gate.debt()), (2, 3, 0));
    gate.set_target(1, None, NOW);
    assert_eq!(gate.debt(), 1, "of which one is the system's");
}

#[test]
fn what_the_system_has_above_the_target_is_not_taken_from_what_others_are_sure_of() {
    let sure = 2;
    let shares = [Share::new(), Share::new(), Share::new().guarantee(2)];
    let gate = Gate::new(4, 1_000, shares, Clock::manual()).up_to(10);
    let _two: Vec<_> = (0..2).map(|_| gate.try_acquire(DEFAULT, NOW).unwrap()).collect();
    assert_eq!(gate.try_acquire(DEFAULT, NOW).err(), Some(Denied::Taken), "two are kept");
    let system = gate.try_acquire(SYSTEM, NOW).unwrap();
    let _kept: Vec<_> = (0..2).map(|_| gate.try_acquire(sure, NOW).unwrap()).collect();
    assert_eq!((gate.level().in_use, gate.level().target), (5, 4));
    // With as many as may be there is no room beside them.
    gate.set_target(10, None, NOW);
    let rest: Vec<_> = (0..20).filter_map(|_| gate.try_acquire(DEFAULT, NOW).ok()).collect();
    assert_eq!((rest.len(), gate.level().in_use), (5, 10));
    drop(system);
}

#[test]
fn who_waits_of_the_system_is_served_when_there_may_be_one_more() {
    let gate = plain(1).up_to(9);
    gate.keep_within(1, NOW);
    let _held = gate.try_acquire(DEFAULT, NOW).unwrap();
    let mut system = joined(&gate, SYSTEM);
    gate.keep_within(2, NOW);
    assert!(poll(&mut system).is_ready());
}
