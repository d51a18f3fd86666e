//! How much a server does at once: the universal scalability law, and work that shares it.
//!
//! `C(n) = n ÷ (1 + σ(n − 1) + κn(n − 1))` times the rate of one alone (N. Gunther, *Guerrilla Capacity Planning*,
//! 2007): σ is the share of the work that only one can do at a time, κ what any two cost each other. The peak is at
//! `√((1 − σ) ÷ κ)`; beyond it more work at once is less work done.

use std::{cmp::Ordering, collections::BinaryHeap, time::Duration};

/// A server whose throughput rises with the number of queries at once up to a knee, and falls beyond it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Usl {
    /// σ, the share of the work that only one query can do at a time, 0 to 1.
    pub contention: f64,
    /// κ, what any two queries cost each other, 0 or more.
    pub coherence: f64,
    /// How many times longer everything takes than it did at first.
    pub slowdown: f64,
    /// How many queries of other clients are in progress all the time.
    pub others: u32,
}

impl Usl {
    /// A server with this contention σ and coherence κ, as quick as it is, and all ours. What is negative or no
    /// number counts as 0.
    #[must_use]
    pub fn new(contention: f64, coherence: f64) -> Self {
        Self { contention: contention.max(0.0), coherence: coherence.max(0.0), slowdown: 1.0, others: 0 }
    }

    /// What is done at once by `n` queries of ours, in times of what a lone one would get done on the undisturbed
    /// server.
    ///
    /// ```
    /// use mcp_perf::testing::Usl;
    ///
    /// let server = Usl::new(0.15, 0.013);
    /// assert_eq!(server.throughput(1), 1.0);
    /// assert!(server.throughput(8) > 2.8);
    /// assert!(server.throughput(64) < 1.1);
    /// ```
    #[must_use]
    pub fn throughput(&self, n: u32) -> f64 {
        let all = f64::from(n) + f64::from(self.others);
        let dragged = 1.0 + self.contention * (all - 1.0) + self.coherence * all * (all - 1.0);
        if n == 0 { 0.0 } else { f64::from(n) / dragged / self.slowdown.max(f64::MIN_POSITIVE) }
    }
}

/// Queries in progress, which share the server evenly.
///
/// Time is in seconds since the server began. All queries get the same share, so they are ordered by how much of it
/// each has to see go by: nothing but a sum is touched as time passes.
#[derive(Clone, Debug)]
pub(super) struct Processor {
    pub(super) usl: Usl,
    now: f64,
    /// The work that a query would have got done that was there from the beginning.
    done: f64,
    queries: BinaryHeap<Query>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Query {
    ends: f64,
    id: u64,
}

impl Processor {
    pub(super) fn new(usl: Usl) -> Self {
        Self::at(usl, 0.0)
    }

    /// Without queries, at some later time.
    pub(super) fn at(usl: Usl, now: f64) -> Self {
        Self { usl, now, done: 0.0, queries: BinaryHeap::new() }
    }

    pub(super) fn now(&self) -> f64 {
        self.now
    }

    /// Lets time pass. Not beyond the end of a query: [`next_end`](Self::next_end) comes first.
    pub(super) fn advance(&mut self, now: f64) {
        self.done += (now - self.now).max(0.0) * self.share();
        self.now = self.now.max(now);
    }

    /// Begins a query that takes so long on the undisturbed server, alone.
    pub(super) fn start(&mut self, id: u64, work: Duration) {
        self.queries.push(Query { ends: self.done + work.as_secs_f64(), id });
    }

    /// When the next query ends if none comes and none goes until then.
    pub(super) fn next_end(&self) -> Option<f64> {
        let query = self.queries.peek()?;
        Some(self.now + (query.ends - self.done).max(0.0) / self.share())
    }

    /// When a query ends if none comes and none goes until then.
    pub(super) fn end_of(&self, id: u64) -> Option<f64> {
        let query = self.queries.iter().find(|query| query.id == id)?;
        Some(self.now + (query.ends - self.done).max(0.0) / self.share())
    }

    /// Takes out the query that ends next.
    pub(super) fn end(&mut self) -> Option<u64> {
        self.queries.pop().map(|query| query.id)
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.queries.retain(|query| query.id != id);
    }

    /// Work done per second by each of the queries.
    fn share(&self) -> f64 {
        let n = u32::try_from(self.queries.len()).unwrap_or(u32::MAX).max(1);
        self.usl.throughput(n) / f64::from(n)
    }
}

impl Eq for Query {}

impl Ord for Query {
    /// The one that ends first is the greatest; of two that end together, the one that began first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.ends.total_cmp(&self.ends).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Query {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
