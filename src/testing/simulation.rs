//! A pool in front of a server, in virtual time: what a [`Sizing`] does to both, minutes of it in milliseconds.

use std::{collections::VecDeque, time::Duration};

use super::usl::{Processor, Usl};
use crate::pool::sizing::{Retreat, Sample, Sizing};

/// How long a pool waits before it asks again a server that refused a connection.
const RETRY: f64 = 0.1;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Load {
    /// So many calls per second on average, at random times (Poisson), whether or not earlier ones were answered.
    Open(f64),
    /// So many callers that call again as soon as they are answered.
    Closed(u32),
}

/// How much work a call is: what it takes on the undisturbed server, alone.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Work {
    /// What calls take, in the middle.
    pub usual: Duration,
    /// By what share of it they differ up and down, evenly; 0 to 1.
    pub spread: f64,
    /// The share of calls that take `rare` instead, 0 to 1.
    pub rarely: f64,
    /// What those take.
    pub rare: Duration,
}

impl Work {
    /// Calls that all take the same.
    #[must_use]
    pub fn new(usual: Duration) -> Self {
        Self { usual, spread: 0.0, rarely: 0.0, rare: usual }
    }

    fn draw(&self, random: &mut fastrand::Rng) -> Duration {
        if self.rarely > 0.0 && random.f64() < self.rarely {
            return self.rare;
        }
        self.usual.mul_f64((1.0 + self.spread * (2.0 * random.f64() - 1.0)).clamp(0.0, 2.0))
    }
}

/// A pool in front of a server, in virtual time.
///
/// Callers wait in one queue for a permit, then for a connection, which is opened if none is idle, and then for their
/// query, which shares the server with the others. Connections beyond the target are closed when they come back. One
/// seed gives one run: there is no other source of chance, and no clock.
///
/// ```
/// use mcp_perf::{pool::sizing::{Bounds, ThroughputVerified}, testing::{Load, Simulation, Usl, Work}};
/// use std::time::Duration;
///
/// let server = Usl::new(0.15, 0.013); // a knee at 8
/// let mut simulation = Simulation::new(server, Work::new(Duration::from_millis(10)), 1);
/// simulation.load(Load::Closed(100));
///
/// let mut sizing = ThroughputVerified::new(Bounds::new(2, 64)?, 2);
/// let minute = simulation.run(&mut sizing, Duration::from_secs(60));
/// let (per_second, best) = (minute.throughput(), 100.0 * server.throughput(8));
/// assert!(per_second > 0.9 * best, "{per_second} of {best}, found on the way");
/// # Ok::<(), mcp_perf::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Simulation {
    work: Work,
    window: Duration,
    connecting: Duration,
    max_connections: u32,
    longest_queue: usize,
    random: fastrand::Rng,
    server: Processor,
    now: f64,
    load: Load,
    next_arrival: f64,
    /// Callers of a closed load that are around.
    callers: u32,
    target: u32,
    /// When and to what it goes back by itself.
    retreat: Option<Retreat>,
    open: u32,
    idle: u32,
    in_use: u32,
    /// When those came who wait for a permit.
    queue: VecDeque<f64>,
    /// Calls with a permit that wait for a connection.
    without: VecDeque<u64>,
    /// When the connections will be there that are being opened.
    connects: VecDeque<f64>,
    calls: Calls,
    seen: Seen,
}

/// Calls that hold a permit. Their places are used again, so the numbers stay small.
#[derive(Clone, Debug, Default)]
struct Calls {
    calls: Vec<Call>,
    free: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    came: f64,
    held: f64,
}

/// What is measured in a window.
#[derive(Clone, Debug, Default)]
struct Seen {
    holds: Vec<f64>,
    waits: Vec<f64>,
    whole: Vec<f64>,
    in_use_seconds: f64,
    waiting_seconds: f64,
    in_use_max: u32,
    max_waiting: usize,
    was_full: bool,
    has_retreated: bool,
    gave_up: u64,
    refused: u64,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// How long it was.
    pub time: Duration,
    /// Calls that were answered.
    pub completed: u64,
    /// Calls that found the queue full.
    pub gave_up: u64,
    /// Connections that the server refused.
    pub refused: u64,
    /// How often the target changed.
    pub resizes: u64,
    /// The largest target.
    pub target_max: u32,
    /// The target, averaged over time.
    pub target_mean: f64,
    /// How long calls held a permit, on average.
    pub hold_mean: Duration,
    /// How long calls took, waiting included: 99 % no longer than this.
    pub whole_p99: Duration,
}

impl Outcome {
    /// Calls answered per second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.completed as f64 / self.time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Simulation {
    /// A server that nobody calls yet. Connections are there at once, and there may be any number.
    #[must_use]
    pub fn new(server: Usl, work: Work, seed: u64) -> Self {
        Self {
            work,
            window: Duration::from_secs(1),
            connecting: Duration::ZERO,
            max_connections: u32::MAX,
            longest_queue: 2_000,
            random: fastrand::Rng::with_seed(seed),
            server: Processor::new(server),
            now: 0.0,
            load: Load::Closed(0),
            next_arrival: f64::INFINITY,
            callers: 0,
            target: 1,
            retreat: None,
            open: 0,
            idle: 0,
            in_use: 0,
            queue: VecDeque::new(),
            without: VecDeque::new(),
            connects: VecDeque::new(),
            calls: Calls::default(),
            seen: Seen::default(),
        }
    }

    /// How long it takes to connect; the default is no time.
    #[must_use]
    pub fn connecting(mut self, time: Duration) -> Self {
        self.connecting = time;
        self
    }

    /// How many callers may wait; the default is 2,000. Who finds so many before them gives up.
    #[must_use]
    pub fn longest_queue(mut self, callers: usize) -> Self {
        self.longest_queue = callers;
        self
    }

    /// From now on this is the server.
    pub fn server(&mut self, server: Usl) {
        self.server.usl = server;
    }

    /// From now on the server refuses more connections than this; those that are open stay. The default is that it
    /// never does.
    pub fn max_connections(&mut self, connections: u32) {
        self.max_connections = connections;
    }

    /// From now on these call.
    pub fn load(&mut self, load: Load) {
        self.load = load;
        match load {
            Load::Open(_) => self.next_arrival = self.now + self.pause(),
            Load::Closed(callers) => {
                self.next_arrival = f64::INFINITY;
                while self.callers < callers {
                    self.callers += 1;
                    self.arrive();
                }
            }
        }
    }

    /// Puts a size in force. Connections in use beyond it stay until they come back.
    pub fn resize(&mut self, target: u32) {
        self.retreat = None;
        self.target = target;
        let surplus = self.open.saturating_sub(target).min(self.idle);
        self.open -= surplus;
        self.idle -= surplus;
        self.grant();
    }

    /// Lets the algorithm size the pool for so long, a window of one second at a time.
    pub fn run<S: Sizing + ?Sized>(&mut self, sizing: &mut S, time: Duration) -> Outcome {
        let mut outcome = Outcome::default();
        let (mut held, mut whole) = (0.0, Vec::new());
        if self.target != sizing.target() {
            self.resize(sizing.target());
        }
        while outcome.time < time {
            outcome.target_mean += f64::from(self.target) * self.window.as_secs_f64();
            outcome.target_max = outcome.target_max.max(self.target);
            let sample = self.window();
            held += self.seen.holds.iter().sum::<f64>();
            whole.append(&mut self.seen.whole);
            outcome.time += self.window;
            outcome.completed += sample.completed;
            outcome.gave_up += sample.timeouts;
            outcome.refused += sample.too_many_connections;
            let decision = sizing.step(&sample, Duration::from_secs_f64(self.now));
            if decision.target != self.target {
                outcome.resizes += 1;
                self.resize(decision.target);
                self.retreat = decision.retreat;
            } else if decision.retreat.is_none() {
                self.retreat = None;
            }
        }
        outcome.target_mean /= outcome.time.as_secs_f64().max(f64::MIN_POSITIVE);
        outcome.hold_mean = seconds(held / (outcome.completed.max(1) as f64));
        outcome.whole_p99 = quantile(&mut whole, 0.99);
        outcome
    }

    /// Lets one window pass, and says what a pool would have seen of it.
    pub fn window(&mut self) -> Sample {
        self.seen = Seen { in_use_max: self.in_use, max_waiting: self.queue.len(), ..Seen::default() };
        let began = self.now;
        let ends = began + self.window.as_secs_f64();
        while self.happens_next(ends) {}
        self.sample(ends - began)
    }

    /// The next thing that happens, if anything does by then.
    fn happens_next(&mut self, ends: f64) -> bool {
        let end = self.server.next_end().unwrap_or(f64::INFINITY);
        let connect = self.connects.front().copied().unwrap_or(f64::INFINITY);
        let next = end.min(connect).min(self.next_arrival);
        self.pass(next.min(ends));
        if next > ends {
            return false;
        }
        if end <= next {
            self.complete();
        } else if connect <= next {
            self.connect();
        } else {
            self.next_arrival = self.now + self.pause();
            self.arrive();
        }
        true
    }

    fn pass(&mut self, now: f64) {
        let passed = (now - self.now).max(0.0);
        self.seen.in_use_seconds += passed * f64::from(self.in_use);
        if !self.queue.is_empty() {
            self.seen.waiting_seconds += passed;
        }
        self.now = now;
        self.server.advance(now);
    }

    fn pause(&mut self) -> f64 {
        match self.load {
            Load::Open(per_second) if per_second > 0.0 => -(1.0 - self.random.f64()).ln() / per_second,
            _ => f64::INFINITY,
        }
    }

    fn arrive(&mut self) {
        if self.queue.len() >= self.longest_queue {
            self.seen.gave_up += 1;
            self.leave();
            return;
        }
        self.queue.push_back(self.now);
        self.grant();
        self.seen.max_waiting = self.seen.max_waiting.max(self.queue.len());
        let waiting = count(self.queue.len());
        if let Some(retreat) = self.retreat.take_if(|retreat| waiting > retreat.waiting) {
            self.seen.has_retreated = true;
            self.resize(retreat.target.max(self.target));
        }
    }

    /// One caller of a closed load less, if that is what this is.
    fn leave(&mut self) -> bool {
        let around = self.callers > 0;
        self.callers -= u32::from(around);
        around
    }

    fn grant(&mut self) {
        while self.in_use < self.target {
            let Some(came) = self.queue.pop_front() else { return };
            self.in_use += 1;
            self.seen.in_use_max = self.seen.in_use_max.max(self.in_use);
            self.seen.was_full |= self.in_use >= self.target;
            self.seen.waits.push(self.now - came);
            let call = self.calls.insert(Call { came, held: self.now });
            self.without.push_back(call);
            if self.idle > 0 {
                self.idle -= 1;
                self.serve();
            } else {
                self.open_another(self.connecting.as_secs_f64());
            }
        }
    }

    /// Opens a connection if fewer are being opened than calls wait for.
    fn open_another(&mut self, takes: f64) {
        if self.connects.len() < self.without.len() {
            let last = self.connects.back().copied().unwrap_or_default();
            self.connects.push_back((self.now + takes).max(last));
        }
    }

    fn connect(&mut self) {
        self.connects.pop_front();
        if self.open < self.max_connections {
            self.open += 1;
            self.serve();
        } else {
            self.seen.refused += 1;
            self.open_another(RETRY);
        }
    }

    /// Lends a connection that nobody has to the call that waits longest for one, or keeps it, or closes it.
    fn serve(&mut self) {
        if let Some(call) = self.without.pop_front() {
            let work = self.work.draw(&mut self.random);
            self.server.start(call, work);
        } else if self.open > self.target {
            self.open -= 1;
        } else {
            self.idle += 1;
        }
    }

    fn complete(&mut self) {
        let Some(Call { came, held }) = self.server.end().and_then(|call| self.calls.remove(call)) else {
            return;
        };
        self.seen.holds.push(self.now - held);
        self.seen.whole.push(self.now - came);
        self.in_use -= 1;
        if self.open > self.target {
            self.open -= 1;
        } else {
            self.serve();
        }
        self.grant();
        if let Load::Closed(callers) = self.load {
            if self.leave() && self.callers < callers {
                self.callers += 1;
                self.arrive();
            }
        } else {
            self.leave();
        }
    }

    fn sample(&mut self, window: f64) -> Sample {
        let seen = &mut self.seen;
        let hold_typical = typical(&seen.holds);
        let (slow, hold_slow) = slow(&seen.holds, hold_typical);
        Sample {
            window: self.window,
            completed: seen.holds.len() as u64,
            hold_typical,
            slow,
            hold_slow,
            hold_mixed: Duration::ZERO,
            hold_p50: quantile(&mut seen.holds, 0.5),
            hold_p99: quantile(&mut seen.holds, 0.99),
            wait_p50: quantile(&mut seen.waits, 0.5),
            wait_p95: quantile(&mut seen.waits, 0.95),
            wait_p99: quantile(&mut seen.waits, 0.99),
            waiting: count(self.queue.len()),
            max_waiting: count(seen.max_waiting),
            max_kept: 0,
            in_use_mean: seen.in_use_seconds / window,
            in_use_max: seen.in_use_max,
            was_full: seen.was_full,
            full_fraction: seen.waiting_seconds / window,
            target: self.target,
            has_retreated: seen.has_retreated,
            open: self.open,
            ceiling: None,
            timeouts: seen.gave_up,
            connect_failures: 0,
            too_many_connections: seen.refused,
        }
    }
}

impl Calls {
    fn insert(&mut self, call: Call) -> u64 {
        let place = self.free.pop().unwrap_or(self.calls.len() as u64);
        match usize::try_from(place).ok().and_then(|place| self.calls.get_mut(place)) {
            Some(free) => *free = call,
            None => self.calls.push(call),
        }
        place
    }

    fn remove(&mut self, place: u64) -> Option<Call> {
        self.free.push(place);
        self.calls.get(usize::try_from(place).ok()?).copied()
    }
}

/// The geometric mean.
fn typical(holds: &[f64]) -> Duration {
    let logarithms: f64 = holds.iter().map(|hold| hold.max(1e-9).ln()).sum();
    if holds.is_empty() { Duration::ZERO } else { seconds((logarithms / holds.len() as f64).exp()) }
}

/// How many took more than ten times what is typical, and their mean.
#[expect(clippy::cast_precision_loss, reason = "a mean")]
fn slow(holds: &[f64], typical: Duration) -> (u64, Duration) {
    let longest = f64::from(Sample::SLOW) * typical.as_secs_f64();
    let slow = || holds.iter().filter(|hold| **hold > longest);
    let count = slow().count();
    (count as u64, seconds(slow().sum::<f64>() / count.max(1) as f64))
}

fn count(callers: usize) -> u32 {
    u32::try_from(callers).unwrap_or(u32::MAX)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a length is an index"
)]
fn quantile(values: &mut [f64], share: f64) -> Duration {
    if values.is_empty() {
        return Duration::ZERO;
    }
    let place = ((values.len() - 1) as f64 * share).round() as usize;
    let (_, value, _) = values.select_nth_unstable_by(place, f64::total_cmp);
    seconds(*value)
}
