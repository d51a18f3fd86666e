//! Two sides in turn, in slices short enough that most of them are left alone by the rest of the machine.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// How many rounds there are, and how long a side's turn is in each.
#[derive(Clone, Copy)]
pub struct Rounds {
    pub count: usize,
    pub slice: Duration,
}

impl Rounds {
    /// For what takes nanoseconds.
    pub const SHORT: Self = Self { count: 101, slice: Duration::from_millis(5) };
    /// For what needs a while to be a fair sample of itself: many tasks, sockets.
    pub const LONG: Self = Self { count: 61, slice: Duration::from_millis(200) };
}

/// What one round came to, in seconds per operation.
#[derive(Clone, Copy)]
pub struct Pair {
    pub ours: f64,
    pub rival: f64,
}

impl Pair {
    pub fn ratio(self) -> f64 {
        self.ours / self.rival
    }
}

/// A side of a comparison: runs so many operations, and says how long they took.
pub type Side<'a> = dyn FnMut(u64) -> Result<Duration> + 'a;

/// Runs all rounds, and returns them in the order of their ratios.
pub fn rounds(rounds: Rounds, ours: &mut Side<'_>, rival: &mut Side<'_>) -> Result<Vec<Pair>> {
    let of_ours = fill(rounds.slice, ours)?;
    let of_rival = fill(rounds.slice, rival)?;
    let mut pairs = Vec::with_capacity(rounds.count);
    for round in 0..rounds.count {
        let (first, second);
        if round % 2 == 0 {
            first = per_operation(ours, of_ours)?;
            second = per_operation(rival, of_rival)?;
            pairs.push(Pair { ours: first, rival: second });
        } else {
            first = per_operation(rival, of_rival)?;
            second = per_operation(ours, of_ours)?;
            pairs.push(Pair { ours: second, rival: first });
        }
    }
    pairs.sort_by(|one, two| one.ratio().total_cmp(&two.ratio()));
    Ok(pairs)
}

/// How many operations fill a slice. Warms the side up on the way.
fn fill(slice: Duration, side: &mut Side<'_>) -> Result<u64> {
    let mut count = 64;
    loop {
        let took = side(count)?;
        ensure!(count < 1 << 40, "the work was optimised away");
        let missing = slice.as_secs_f64() / took.as_secs_f64().max(1e-9);
        if missing <= 1.2 {
            return Ok(((count as f64 * missing) as u64).max(1));
        }
        count = (count as f64 * missing.min(8.0)) as u64;
    }
}

fn per_operation(side: &mut Side<'_>, count: u64) -> Result<f64> {
    Ok(side(count)?.as_secs_f64() / count as f64)
}

/// How long `work` takes.
pub fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let stopwatch = Stopwatch::start();
    work();
    stopwatch.elapsed()
}

/// Runs `work` on two threads at once, each with what `set_up` makes, and returns how long the slower one took.
pub fn time_two_threads<S>(set_up: impl Fn() -> S + Sync, work: impl Fn(S) + Sync) -> Duration {
    let barrier = Barrier::new(2);
    let timed = || {
        let state = set_up();
        barrier.wait();
        time(|| work(state))
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(timed);
        let mine = timed();
        other.join().map_or(mine, |theirs| theirs.max(mine))
    })
}

/// A point in time. What is measured reads its own clock; this one stands outside.
pub struct Stopwatch(Instant);

#[expect(clippy::disallowed_methods, reason = "a bench is not of the crate, whose clock can stand still")]
impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
