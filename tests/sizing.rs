//! Sizing algorithms in a closed loop with a server that has a knee, in virtual time.
//!
//! `cargo test --release --test sizing -- --ignored --nocapture` prints the table of `mcp_perf::pool::sizing`.

#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use std::time::Duration;

use mcp_perf::{
    pool::sizing::{
        Aimd, Bounds, Decision, Fixed, Gain, Gradient2, Reason, Sample, Sizing, ThroughputVerified,
    },
    testing::{Load, Outcome, Simulation, Usl, Work},
};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A server, what is asked of it, and how much of that it does at its best size.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    server: Usl,
    work: Work,
}

fn bounds() -> Bounds {
    Bounds::new(1, 64).unwrap()
}

/// Best at 8.
fn small() -> Case {
    Case { name: "small", server: Usl::new(0.15, 0.013), work: noisy(Work::new(SECOND / 100)) }
}

/// Best at 44.
fn large() -> Case {
    Case { name: "large", server: Usl::new(0.02, 0.0005), work: noisy(Work::new(SECOND / 50)) }
}

fn noisy(mut work: Work) -> Work {
    work.spread = 0.1;
    work
}

/// One call in a hundred takes a hundred times longer, so that half of the server's time goes to them.
fn reports(mut case: Case, name: &'static str) -> Case {
    case.name = name;
    case.work.rarely = 0.01;
    case.work.rare = case.work.usual * 100;
    case
}

impl Case {
    fn simulation(&self, seed: u64) -> Simulation {
        Simulation::new(self.server, self.work, seed)
    }

    /// Calls per second at the best of all fixed sizes, found by trying them.
    fn best(&self) -> (u32, f64) {
        let mut even = *self;
        even.work.rarely = 0.0;
        let mean = |work: Work| {
            let rare = work.rarely * work.rare.as_secs_f64();
            work.usual.as_secs_f64() * (1.0 - work.rarely) + rare
        };
        let less = mean(even.work) / mean(self.work);
        let sizes = (1..12).chain((12..=64).step_by(4));
        let tried = sizes.map(|size| {
            let mut simulation = even.simulation(0);
            simulation.load(Load::Closed(100));
            simulation.run(&mut Fixed::new(size), 2 * SECOND);
            (size, simulation.run(&mut Fixed::new(size), 8 * SECOND).throughput() * less)
        });
        tried.max_by(|one, other| one.1.total_cmp(&other.1)).unwrap()
    }
}

/// What everybody thinks of first: two more when callers wait, one less after a minute in which some were idle.
struct Naive {
    target: u32,
    idle: u32,
}

impl Naive {
    fn new() -> Self {
        Self { target: 4, idle: 0 }
    }
}

impl Sizing for Naive {
    fn step(&mut self, sample: &Sample, _now: Duration) -> Decision {
        let waits = sample.wait_p95 > SECOND / 1000;
        self.idle = if waits || sample.in_use_max >= self.target { 0 } else { self.idle + 1 };
        if waits {
            self.target = bounds().clamp(self.target + 2);
        } else if self.idle == 60 {
            self.target = bounds().clamp(self.target - 1);
            self.idle = 0;
        }
        Decision::new(self.target, Reason::Rule("callers wait"))
    }

    fn target(&self) -> u32 {
        self.target
    }

    fn proven(&self) -> u32 {
        self.target
    }
}

fn verified(seed: u64) -> ThroughputVerified {
    ThroughputVerified::new(bounds(), 4).seed(seed)
}

/// What became of an algorithm in the tests of the study.
#[derive(Clone, Debug)]
struct Course {
    /// Throughput as a share of the best fixed size's: from the second minute on, and with everything three times
    /// slower.
    before: f64,
    after: f64,
    /// The second minute.
    steady: Outcome,
    /// When half of the load had been gone for five minutes.
    target: u32,
    proven: u32,
    /// Calls answered in those minutes, as a share of those that came.
    answered: f64,
}

/// Slightly too much load for three minutes, then everything takes three times longer, then half of the load.
fn course(case: Case, best: f64, sizing: &mut dyn Sizing, seed: u64) -> Course {
    let mut simulation = case.simulation(seed);
    simulation.load(Load::Open(1.05 * best));
    simulation.run(sizing, MINUTE);
    let steady = simulation.run(sizing, 2 * MINUTE);
    let mut slower = case.server;
    slower.slowdown = 3.0;
    simulation.server(slower);
    let after = simulation.run(sizing, 3 * MINUTE);
    simulation.server(case.server);
    simulation.run(sizing, MINUTE);
    simulation.load(Load::Open(best / 2.0));
    let half = simulation.run(sizing, 5 * MINUTE);
    Course {
        before: steady.throughput() / best,
        after: 3.0 * after.throughput() / best,
        target: sizing.target(),
        proven: sizing.proven(),
        answered: half.throughput() / (best / 2.0),
        steady,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn verified_growth_finds_the_best_size_where_growing_on_waits_collapses() {
    for case in [small(), large()] {
        let (size, best) = case.best();
        let found = course(case, best, &mut verified(1), 1);
        assert!(found.before >= 0.95 && found.after >= 0.95, "{}, best at {size}: {found:?}", case.name);
        assert!(found.target <= found.proven + 1 && found.answered > 0.99, "{}: {found:?}", case.name);
    }
    let case = small();
    let collapsed = course(case, case.best().1, &mut Naive::new(), 1);
    assert!(collapsed.before < 0.5 && collapsed.after < 0.5, "{collapsed:?}");
    assert_eq!(collapsed.target, 64, "and stays there: {collapsed:?}");
    assert!(collapsed.answered < 0.8, "{collapsed:?}");
}

#[test]
fn noise_does_not_lead_astray() {
    let case = small();
    let (_, best) = case.best();
    let found: Vec<f64> = (0..50)
        .map(|seed| {
            let (mut simulation, mut sizing) = (case.simulation(seed), verified(seed));
            simulation.load(Load::Closed(100));
            simulation.run(&mut sizing, MINUTE);
            simulation.run(&mut sizing, 2 * MINUTE).throughput() / best
        })
        .collect();
    let worst = found.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(median(found.clone()) >= 0.95 && worst >= 0.9, "{found:.3?}");
}

/// By a fifth, as a standard deviation, and it stays so for a quarter of a minute: a machine that others share.
#[test]
fn server_that_is_now_quicker_and_now_slower_does_not_lead_astray() {
    let mut tiny = small();
    (tiny.name, tiny.server, tiny.work) = ("tiny", Usl::new(0.25, 0.04), noisy(Work::new(SECOND / 500)));
    for case in [small(), tiny] {
        let best = (1..=64).map(|size| case.server.throughput(size)).fold(0.0, f64::max);
        let found: Vec<f64> = (0..20)
            .map(|seed| {
                let (mut simulation, mut sizing) = (case.simulation(seed), verified(seed));
                simulation.load(Load::Closed(100));
                let mut random = fastrand::Rng::with_seed(1_000 + seed);
                let (stays, mut speed, mut done) = ((-1.0_f64 / 15.0).exp(), 0.0, 0.0);
                for second in 0..300 {
                    // The sum of twelve is about normal.
                    let chance = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
                    speed = stays * speed + 0.2 * (1.0 - stays * stays).sqrt() * chance;
                    let mut server = case.server;
                    server.slowdown = f64::exp(-speed);
                    simulation.server(server);
                    simulation.run(&mut sizing, SECOND);
                    if second >= 60 {
                        done += case.server.throughput(sizing.target());
                    }
                }
                done / 240.0 / best
            })
            .collect();
        let worst = found.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(median(found.clone()) >= 0.97 && worst >= 0.93, "{}: {found:.3?}", case.name);
    }
}

#[test]
fn reports_among_lookups_do_not_hide_the_knee() {
    for (case, seeds) in [(reports(small(), "small"), 11), (reports(large(), "large"), 3)] {
        let (_, best) = case.best();
        let found: Vec<f64> = (0..seeds)
            .map(|seed| {
                let (mut simulation, mut sizing) = (case.simulation(seed), verified(seed));
                simulation.load(Load::Closed(100));
                simulation.run(&mut sizing, 2 * MINUTE);
                simulation.run(&mut sizing, 5 * MINUTE).throughput() / best
            })
            .collect();
        assert!(median(found.clone()) >= 0.95, "{}: {found:.3?}", case.name);
    }
}

#[test]
fn best_size_is_found_within_a_minute() {
    for case in [small(), large()] {
        let (_, best) = case.best();
        let (mut simulation, mut sizing) = (case.simulation(1), verified(1));
        simulation.load(Load::Closed(100));
        simulation.run(&mut sizing, MINUTE);
        // A trial may be on, which costs a little.
        let share = simulation.run(&mut sizing, 20 * SECOND).throughput() / best;
        assert!(share >= 0.95, "{}: {share}", case.name);
    }
}

/// Sees what a pool sees that has nothing but a histogram with sixteen buckets to a doubling.
struct Coarse(ThroughputVerified);

impl Sizing for Coarse {
    fn step(&mut self, sample: &Sample, now: Duration) -> Decision {
        let mut sample = sample.clone();
        let median = sample.hold_p50.as_secs_f64().max(1e-9);
        let bucket = median.log2().floor().exp2() / 16.0;
        sample.hold_p50 = Duration::from_secs_f64((median / bucket).round() * bucket);
        sample.hold_typical = Duration::ZERO;
        self.0.step(&sample, now)
    }

    fn target(&self) -> u32 {
        self.0.target()
    }

    fn proven(&self) -> u32 {
        self.0.proven()
    }
}

#[test]
fn median_of_a_coarse_histogram_will_do_among_reports() {
    let case = reports(small(), "small");
    let (_, best) = case.best();
    let found: Vec<f64> = (0..11)
        .map(|seed| {
            let (mut simulation, mut sizing) = (case.simulation(seed), Coarse(verified(seed)));
            simulation.load(Load::Closed(100));
            simulation.run(&mut sizing, 2 * MINUTE);
            simulation.run(&mut sizing, 5 * MINUTE).throughput() / best
        })
        .collect();
    assert!(median(found.clone()) >= 0.95, "{found:.3?}");
}

#[test]
fn knee_that_moves_is_found_again() {
    let (mut few, many) = (small(), large());
    few.work = many.work;
    let (mut simulation, mut sizing) = (many.simulation(3), verified(3));
    simulation.load(Load::Closed(100));
    for (case, sizes) in [(many, 30..=55), (few, 5..=10), (many, 30..=55)] {
        simulation.server(case.server);
        simulation.run(&mut sizing, 3 * MINUTE);
        let share = simulation.run(&mut sizing, MINUTE).throughput() / case.best().1;
        assert!(share >= 0.95, "{}: {share}", case.name);
        assert!(sizes.contains(&sizing.target()), "{}: {}", case.name, sizing.target());
    }
}

#[test]
fn slow_queries_do_not_keep_a_pool_at_its_floor() {
    let sizes: Vec<f64> = (0..5)
        .map(|seed| {
            // Every further connection does as much as the first.
            let mut simulation = Simulation::new(Usl::new(0.0, 0.0), noisy(Work::new(20 * SECOND)), seed);
            let mut sizing = ThroughputVerified::new(Bounds::new(2, 32).unwrap(), 2).seed(seed);
            simulation.load(Load::Closed(100));
            simulation.run(&mut sizing, 30 * MINUTE);
            f64::from(sizing.target())
        })
        .collect();
    assert!(median(sizes.clone()) >= 16.0, "{sizes:?}");
}

#[test]
fn knee_is_found_with_slow_queries_too() {
    for work in [5 * SECOND, 20 * SECOND] {
        let mut case = small();
        case.work = noisy(Work::new(work));
        let best = case.server.throughput(8) / work.as_secs_f64();
        let found: Vec<f64> = (0..11)
            .map(|seed| {
                let mut sizing = ThroughputVerified::new(Bounds::new(2, 32).unwrap(), 2).seed(seed);
                let mut simulation = case.simulation(seed);
                simulation.load(Load::Closed(100));
                simulation.run(&mut sizing, 30 * MINUTE);
                simulation.run(&mut sizing, 30 * MINUTE).throughput() / best
            })
            .collect();
        assert!(median(found.clone()) >= 0.9, "{work:?}: {found:.3?}");
    }
}

/// What is done in a second differs by a third from one second to the next then, which says nothing of a size.
#[test]
fn one_query_in_a_hundred_that_takes_two_thousand_times_longer_does_not_keep_a_pool_small() {
    for seed in 0..100 {
        let mut work = noisy(Work::new(SECOND / 10_000));
        (work.rarely, work.rare) = (0.01, SECOND / 5);
        let mut simulation = Simulation::new(Usl::new(0.0, 0.0), work, seed);
        simulation.load(Load::Closed(128));
        let mut sizing = ThroughputVerified::new(Bounds::new(2, 64).unwrap(), 2).seed(seed);
        let takes = (0..60).find(|_| {
            simulation.run(&mut sizing, SECOND);
            sizing.proven() >= 16
        });
        assert!(takes.is_some_and(|seconds| seconds <= 30), "seed {seed}: {takes:?}");
    }
}

/// A hundredth of the calls wait for something else for 200 ms, and most is done by having more of those at once, however
/// much the others slow each other down: from 0.1 ms to 0.5 ms at 64 connections.
#[test]
#[expect(clippy::cast_possible_truncation, reason = "whole queries")]
fn lookups_that_slow_each_other_down_do_not_hide_that_more_is_done() {
    let takes = |size: f64| (0.1e-3 * (1.0 + 4.0 * (size / 64.0).powi(4)), 0.2);
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        // Of twelve, nearly normal.
        let mut noise = |deviation: f64| deviation * ((0..12).map(|_| random.f64()).sum::<f64>() - 6.0);
        let mut sizing = ThroughputVerified::new(Bounds::new(2, 64).unwrap(), 2).seed(seed);
        for second in 1..=60 {
            let size = sizing.target();
            let (quick, slow) = takes(f64::from(size));
            let queries = f64::from(size) / (0.99 * quick + 0.01 * slow);
            let of_slow = (queries / 100.0) * (1.0 + noise((queries / 100.0).powf(-0.5)));
            let completed = 100.0 * of_slow * (1.0 + noise(of_slow.max(1.0).powf(-0.5)));
            let mut sample = Sample::default();
            (sample.window, sample.completed, sample.slow) = (SECOND, completed as u64, of_slow as u64);
            sample.hold_typical = Duration::from_secs_f64(quick * (1.0 + noise(0.05)));
            sample.hold_slow = Duration::from_secs_f64(slow * (1.0 + noise(0.01)));
            (sample.hold_p50, sample.hold_p99) = (sample.hold_typical, sample.hold_slow);
            (sample.in_use_mean, sample.in_use_max) = (f64::from(size), size);
            (sample.waiting, sample.max_waiting, sample.full_fraction) = (128 - size, 128 - size, 1.0);
            (sample.was_full, sample.target, sample.open) = (true, size, size);
            sizing.step(&sample, second * SECOND);
        }
        assert_eq!(sizing.proven(), 64, "seed {seed}");
    }
}

#[test]
fn low_load_never_grows() {
    let case = large();
    let (mut simulation, mut sizing) = (case.simulation(1), verified(1));
    simulation.load(Load::Open(0.25 * 4.0 * 50.0));
    let outcome = simulation.run(&mut sizing, 20 * MINUTE);
    assert_eq!((outcome.target_max, sizing.proven()), (4, 4));
}

#[test]
fn load_that_fits_gets_what_it_needs_and_no_more() {
    let case = large();
    let (mut simulation, mut sizing) = (case.simulation(1), verified(1));
    let rate = 0.3 * case.best().1;
    simulation.load(Load::Open(rate));
    simulation.run(&mut sizing, MINUTE);
    let outcome = simulation.run(&mut sizing, 4 * MINUTE);
    assert!(outcome.throughput() > 0.98 * rate && outcome.target_max <= 16, "{outcome:?}");
    assert!(outcome.whole_p99 < 3 * case.work.usual, "nobody waits: {outcome:?}");
}

#[test]
fn spikes_are_answered_from_what_is_proven() {
    let case = large();
    let (_, best) = case.best();
    let (mut simulation, mut sizing) =
        (case.simulation(1).connecting(SECOND * 15 / 100), ThroughputVerified::new(bounds(), 2));
    simulation.load(Load::Open(1.05 * best));
    simulation.run(&mut sizing, 3 * MINUTE);
    let proven = sizing.proven();
    simulation.load(Load::Open(10.0));
    simulation.run(&mut sizing, 15 * MINUTE);
    assert!(sizing.target() <= 5, "idle for a quarter of an hour: {}", sizing.target());
    simulation.load(Load::Open(0.8 * best));
    let spike = simulation.run(&mut sizing, 10 * SECOND);
    let share = spike.throughput() / (0.8 * best);
    assert!(share > 0.9, "{share} in the first ten seconds, {proven} proven: {spike:?}");
}

#[test]
fn shared_server_gives_what_it_has_left() {
    let mut case = small();
    case.server.others = 8;
    let (size, best) = case.best();
    let (mut simulation, mut sizing) = (case.simulation(1), verified(1));
    simulation.load(Load::Closed(100));
    simulation.run(&mut sizing, MINUTE);
    let share = simulation.run(&mut sizing, 3 * MINUTE).throughput() / best;
    assert!(share >= 0.95, "{share}, best at {size}");
}

#[test]
fn server_that_is_full_is_asked_for_less() {
    let case = large();
    let (mut simulation, mut sizing) = (case.simulation(1).connecting(SECOND / 20), verified(1));
    simulation.max_connections(20);
    simulation.load(Load::Closed(100));
    simulation.run(&mut sizing, MINUTE);
    let outcome = simulation.run(&mut sizing, 5 * MINUTE);
    // One refusal every few minutes, as the ceiling comes back; ten connects a second are tried until it is seen.
    assert!(outcome.refused <= 50 && outcome.target_max <= 25, "{outcome:?}");
    assert!(outcome.throughput() > 0.8 * 50.0 * case.server.throughput(20), "{outcome:?}");
}

#[test]
fn latency_gain_trades_some_throughput_for_shorter_queries() {
    let case = small();
    let (_, best) = case.best();
    let run = |gain| {
        let (mut simulation, mut sizing) = (case.simulation(1), verified(1).gain(gain));
        simulation.load(Load::Closed(100));
        simulation.run(&mut sizing, 2 * MINUTE);
        simulation.run(&mut sizing, 3 * MINUTE)
    };
    let (throughput, latency) = (run(Gain::THROUGHPUT), run(Gain::LATENCY));
    assert!(latency.throughput() > 0.88 * best, "{latency:?}");
    assert!(latency.hold_mean < throughput.hold_mean * 3 / 4, "{latency:?} {throughput:?}");
}

#[test]
fn same_seed_gives_the_same_run() {
    let run = || course(small(), 288.0, &mut verified(7), 7).steady;
    assert_eq!(run(), run());
}

/// Any sample, and mostly one of a pool under load.
fn samples() -> impl Strategy<Value = Sample> {
    let number = prop_oneof![0.0..100.0, Just(f64::NAN), Just(f64::INFINITY), Just(f64::MAX), Just(-1.0)];
    let share = prop_oneof![6 => 0.0..=1.0, 1 => Just(f64::NAN), 1 => Just(1e300)];
    let count = || prop_oneof![6 => 0..100_u64, 1 => Just(u64::MAX)];
    let rare = || prop_oneof![9 => Just(0_u64), 1 => count()];
    let size = || prop_oneof![6 => 0..80_u32, 1 => Just(u32::MAX)];
    let time = || prop_oneof![4 => Just(SECOND), 1 => Just(Duration::ZERO), 1 => Just(Duration::MAX)];
    let numbers = (count(), rare(), rare(), rare(), number, share);
    let sizes = (size(), size(), size(), size(), size(), proptest::option::weighted(0.1, size()));
    (time(), time(), numbers, sizes).prop_map(|(window, hold, numbers, sizes)| {
        let mut sample = Sample::default();
        sample.window = window;
        (sample.hold_typical, sample.hold_p50, sample.wait_p95) = (hold, hold, hold);
        let (completed, timeouts, failures, too_many, in_use_mean, full) = numbers;
        (sample.completed, sample.timeouts, sample.connect_failures) = (completed, timeouts, failures);
        (sample.too_many_connections, sample.in_use_mean, sample.full_fraction) =
            (too_many, in_use_mean, full);
        let (waiting, max_waiting, in_use_max, target, open, ceiling) = sizes;
        (sample.waiting, sample.max_waiting, sample.in_use_max) = (waiting, max_waiting, in_use_max);
        (sample.target, sample.open, sample.ceiling) = (target, open, ceiling);
        sample
    })
}

/// A window in which 1,000 were asked for and done, or 700 while callers waited, or nothing to speak of.
fn seconds_of_one_server() -> impl Strategy<Value = (u64, f64, u64)> {
    prop_oneof![
        2 => Just((1_000, 1.0, 50)),
        9 => (500..800_u64, 0.2..0.6, 10..90_u64),
        1 => Just((10, 0.0, 0)),
    ]
}

proptest! {
    /// In a course that is about the slowest calls above all.
    #[test]
    fn no_trial_leads_above_what_is_allowed(
        seconds in proptest::collection::vec(
            (seconds_of_one_server(), proptest::option::weighted(0.05, 1..20_u32)),
            50..300,
        ),
    ) {
        let bounds = Bounds::new(2, 20).unwrap();
        let mut sizing = ThroughputVerified::new(bounds, 4);
        let mut tried = false;
        for (second, ((completed, full, wait), ceiling)) in (1_u64..).zip(seconds) {
            let mut sample = Sample::default();
            (sample.window, sample.completed, sample.full_fraction) = (SECOND, completed, full);
            (sample.hold_typical, sample.hold_p99) = (SECOND / 1000, SECOND / 500);
            (sample.wait_p99, sample.max_waiting) = (Duration::from_millis(wait), 9);
            (sample.target, sample.open, sample.in_use_max) = (sizing.target(), 20, sizing.target());
            sample.ceiling = ceiling;
            let decision = sizing.step(&sample, Duration::from_secs(second));
            tried |= decision.reason == Reason::TryingForTime;
            let allowed = bounds.clamp(ceiling.unwrap_or(20));
            prop_assert!(decision.target <= allowed, "{decision:?}, allowed are {allowed}");
        }
        prop_assume!(tried);
    }

    #[test]
    fn no_sample_leads_out_of_the_bounds_or_to_a_panic(
        samples in proptest::collection::vec((samples(), any::<bool>(), 0..100_000_u64), 1..200),
        (floor, more) in (1..70_u32, 0..70_u32),
        initial in any::<u32>(),
    ) {
        let bounds = Bounds::new(floor, floor + more).unwrap();
        let algorithms: [Box<dyn Sizing>; 3] = [
            Box::new(ThroughputVerified::new(bounds, initial)),
            Box::new(Gradient2::new(bounds, initial)),
            Box::new(Aimd::new(bounds, initial)),
        ];
        for mut sizing in algorithms {
            let mut now = Duration::ZERO;
            for (sample, in_force, millis) in &samples {
                let mut sample = sample.clone();
                if *in_force {
                    sample.target = sizing.target();
                }
                now += Duration::from_millis(*millis);
                let decision = sizing.step(&sample, now);
                let allowed = sample.ceiling.map_or(bounds.ceiling(), |ceiling| bounds.clamp(ceiling));
                prop_assert!((floor..=allowed).contains(&decision.target), "{decision:?} {bounds:?}");
                prop_assert_eq!(decision.target, sizing.target());
                prop_assert!(bounds.clamp(sizing.proven()) == sizing.proven());
            }
            sizing.step(&Sample::default(), Duration::MAX);
        }
    }

    #[test]
    fn nothing_grows_while_nobody_waits(
        samples in proptest::collection::vec(samples(), 1..200),
    ) {
        let mut sizing = ThroughputVerified::new(bounds(), 20);
        for (second, mut sample) in (0_u64..).zip(samples) {
            (sample.waiting, sample.max_waiting, sample.target) = (0, 0, sizing.target());
            let before = sizing.target();
            prop_assert!(sizing.step(&sample, Duration::from_secs(second)).target <= before);
        }
    }
}

/// The table of the module's documentation.
#[test]
#[ignore = "prints a table"]
fn table() {
    let cases = [small(), large(), reports(small(), "small, reports"), reports(large(), "large, reports")];
    println!("| | {} |", cases.map(|case| case.name).join(" | "));
    println!("|---|---|---|---|---|");
    type Make = fn(u64, u32) -> Box<dyn Sizing>;
    let algorithms: [(&str, Make); 7] = [
        ("`Fixed`, the best size", |_, best| Box::new(Fixed::new(best))),
        ("`ThroughputVerified`", |seed, _| Box::new(verified(seed))),
        ("`ThroughputVerified`, `Gain::LATENCY`", |seed, _| Box::new(verified(seed).gain(Gain::LATENCY))),
        ("`Gradient2`", |_, _| Box::new(Gradient2::new(bounds(), 4))),
        ("`Aimd`", |_, _| Box::new(Aimd::new(bounds(), 4))),
        ("two more when callers wait", |_, _| Box::new(Naive::new())),
        ("`Fixed`, 10", |_, _| Box::new(Fixed::new(10))),
    ];
    let best = cases.map(|case| case.best());
    for (name, make) in algorithms {
        let cells = cases.iter().zip(best).map(|(case, (size, best))| {
            let courses: Vec<Course> =
                (0..51).map(|seed| course(*case, best, &mut *make(seed, size), seed)).collect();
            let of = |value: fn(&Course) -> f64| courses.iter().map(value).collect::<Vec<_>>();
            let worst = of(|course| course.before).into_iter().fold(f64::INFINITY, f64::min);
            format!(
                "{:.0} % ({:.0} %), {:.0} %, {:.1} ms, {:.0}",
                100.0 * median(of(|course| course.before)),
                100.0 * worst,
                100.0 * median(of(|course| course.after)),
                1e3 * median(of(|course| course.steady.hold_mean.as_secs_f64())),
                median(of(|course| f64::from(course.target))),
            )
        });
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

/// A server that does as much with one as with many, for which one call in 250 is fifty times the work.
fn flat() -> Case {
    let mut work = noisy(Work::new(SECOND / 500));
    (work.rarely, work.rare) = (0.004, SECOND / 10);
    Case { name: "flat", server: Usl::new(0.97, 0.0), work }
}

/// With few connections the lookups wait behind the reports, although the server has time for both.
#[test]
fn more_are_used_where_that_makes_calls_quicker_and_no_more_than_proven_where_all_is_asked_for() {
    let case = flat();
    let (_, best) = case.best();
    let mut slowest = [Vec::new(), Vec::new()];
    for seed in 0..9 {
        let mut learned = ThroughputVerified::new(bounds(), 2).seed(seed);
        let mut simulation = case.simulation(seed);
        simulation.load(Load::Closed(100));
        simulation.run(&mut learned, 2 * MINUTE);
        let few = Fixed::new(learned.proven());
        assert!(few.target() <= 4, "{}", few.target());
        let sizings: [Box<dyn Sizing>; 2] = [Box::new(learned), Box::new(few)];
        for (mut sizing, slowest) in sizings.into_iter().zip(&mut slowest) {
            let mut simulation = case.simulation(seed);
            simulation.load(Load::Open(0.6 * best));
            simulation.run(sizing.as_mut(), MINUTE);
            slowest.push(simulation.run(sizing.as_mut(), 3 * MINUTE).whole_p99.as_secs_f64());
            let (size, proven) = (sizing.target(), sizing.proven());
            simulation.load(Load::Closed(100));
            let full = simulation.run(sizing.as_mut(), 30 * SECOND);
            assert!(full.throughput() > 0.93 * best, "seed {seed}: {full:?}");
            assert!(sizing.target() <= 2 * proven.max(sizing.proven()), "from {size} to {}", sizing.target());
        }
    }
    let [ours, few] = slowest.map(median);
    assert!(ours < 0.6 * few, "{ours} s, and {few} s with as many as are proven");
}

/// Near what can be done lines come and go by chance, and more connections than the knee make them longer.
#[test]
fn more_are_not_used_for_lines_that_come_and_go_by_chance() {
    let case = small();
    let (size, best) = case.best();
    for seed in 0..9 {
        let mut sizing = ThroughputVerified::new(bounds(), 2).seed(seed);
        let mut simulation = case.simulation(seed);
        simulation.load(Load::Closed(100));
        simulation.run(&mut sizing, 2 * MINUTE);
        simulation.load(Load::Closed(0));
        simulation.load(Load::Open(0.9 * best));
        let most = simulation.run(&mut sizing, 5 * MINUTE).target_max;
        assert!(most <= size + size / 2, "seed {seed}: {most}");
    }
}
