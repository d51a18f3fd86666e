//! Classes of callers: what each is sure of, and how much it may have at most.
//!
//! With `N` permits, and class `i` having `in_i` of them, a guarantee `g_i` (`Σg < N`) and a cap `c_i`, a permit that
//! is free goes to class `i` if
//!
//! ```text
//! in_i < g_i   or   in_i < c_i  and  free > Σ_j max(0, g_j − in_j)
//! ```
//!
//! What is guaranteed and not used stays free, and is there at once when its class comes; everything else is lent to
//! whoever asks. Nothing is taken back from a caller. After the pool shrank below what is in use a guarantee is
//! therefore kept at the next returns, which is within one hold time.
//!
//! (The other known rule, that anybody may enter below the limit and at the limit whoever is below his share, admits
//! more than the limit. Requests can bear that, connections cannot.)
//!
//! When `N` falls to `Σg` or below, guarantees are scaled down, that of the system class last, and one permit at least
//! is for everybody: otherwise a class without a guarantee would wait for ever.

/// Where the class of the pool's own needs is, which is served before all others.
pub(super) const SYSTEM: usize = 0;

/// Where callers are who name no class.
pub(super) const DEFAULT: usize = 1;
pub(super) const DEFAULT_NAME: &str = "default";

/// A class of callers of a pool: [`Pool::class`](super::Pool::class) knows them by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// The pool that knows it; zero is every pool.
    pub(super) pool: u64,
    pub(super) index: usize,
}

impl Class {
    /// Callers who name no class.
    pub const DEFAULT: Self = Self { pool: 0, index: DEFAULT };
    /// Health checks, migrations and the like: served before everybody else, and not turned away because others wait.
    /// Where an [`adaptive`](super::PoolBuilder::adaptive) pool is smaller than it may be, one of them at a time has a
    /// connection above the size, and need not wait for a return; with
    /// [`system_reserve`](super::PoolBuilder::system_reserve) as many as that never do.
    pub const SYSTEM: Self = Self { pool: 0, index: SYSTEM };
}

/// What a class of callers may have: [`guarantee`](Self::guarantee) and [`at_most`](Self::at_most), in connections.
///
/// ```
/// use mcp_perf::pool::Share;
///
/// // Two servers in a process, 20 connections: 8 guaranteed to each, 4 for whoever comes first. When the pool grows to
/// // 30, either may have what is not guaranteed to the other.
/// let server = Share::new().guarantee(8).at_most(22);
/// # let _ = server;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Share {
    pub(super) guarantee: u32,
    pub(super) at_most: u32,
}

impl Share {
    /// Sure of nothing, and not bounded but by the pool.
    pub const fn new() -> Self {
        Self { guarantee: 0, at_most: u32::MAX }
    }

    /// How many connections are kept for this class, used or not: 0 unless set. All guarantees of a pool and its
    /// [`system_reserve`](super::PoolBuilder::system_reserve) together are less than the upper bound of its size. While the
    /// size is not above them they are scaled down: for what has to hold always, let the lower bound be above their sum.
    pub const fn guarantee(mut self, connections: u32) -> Self {
        self.guarantee = connections;
        self
    }

    /// How many connections this class has at most, even while others are free: without a bound unless set, at least
    /// 1 and at least the guarantee.
    pub const fn at_most(mut self, connections: u32) -> Self {
        self.at_most = connections;
        self
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new()
    }
}

/// What the classes of a pool have.
#[derive(Debug)]
pub(super) struct Classes {
    all: Box<[Standing]>,
    /// `Σ max(0, g − in)`: permits that are kept for those who are sure of them.
    kept: u32,
}

#[derive(Debug)]
struct Standing {
    share: Share,
    /// The guarantee with as many permits as there are.
    guarantee: u32,
    in_use: u32,
}

impl Classes {
    pub(super) fn new(shares: impl IntoIterator<Item = Share>, permits: u32) -> Self {
        let all = shares.into_iter().map(|share| Standing { share, guarantee: 0, in_use: 0 });
        let mut classes = Self { all: all.collect(), kept: 0 };
        classes.scale(permits);
        classes
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many permits a class has.
    pub(super) fn in_use(&self, class: usize) -> u32 {
        self.all[class].in_use
    }

    /// Fits the guarantees to the number of permits.
    pub(super) fn scale(&mut self, permits: u32) {
        let mut wanted: u64 = self.all.iter().map(|class| u64::from(class.share.guarantee)).sum();
        let mut left = u64::from(permits.saturating_sub(1));
        for (index, class) in self.all.iter_mut().enumerate() {
            let guarantee = u64::from(class.share.guarantee);
            let scaled = if wanted > left { guarantee * left / wanted.max(1) } else { guarantee };
            let at_least = u64::from(index == SYSTEM).min(guarantee).min(left);
            let scaled = scaled.max(at_least);
            wanted -= guarantee;
            left -= scaled;
            class.guarantee = u32::try_from(scaled).unwrap_or(u32::MAX);
        }
        self.kept = self.all.iter().map(Standing::kept).sum();
    }

    /// Whether one of `free` permits may go to this class.
    #[inline]
    pub(super) fn may_enter(&self, class: usize, free: u32) -> bool {
        let Standing { share, guarantee, in_use } = &self.all[class];
        free > 0 && (in_use < guarantee || (*in_use < share.at_most && free > self.kept))
    }

    /// How many more this class may have at most.
    pub(super) fn may_have(&self, class: usize) -> u32 {
        let Standing { share, in_use, .. } = &self.all[class];
        share.at_most.saturating_sub(*in_use)
    }

    /// Whether this class has less than it is sure of.
    #[inline]
    pub(super) fn is_owed(&self, class: usize) -> bool {
        self.all[class].kept() > 0
    }

    #[inline]
    pub(super) fn enter(&mut self, class: usize) {
        let class = &mut self.all[class];
        self.kept -= u32::from(class.kept() > 0);
        class.in_use += 1;
    }

    #[inline]
    pub(super) fn leave(&mut self, class: usize) {
        let class = &mut self.all[class];
        class.in_use -= 1;
        self.kept += u32::from(class.kept() > 0);
    }
}

impl Standing {
    fn kept(&self) -> u32 {
        self.guarantee.saturating_sub(self.in_use)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_servers_share_a_pool_and_neither_takes_what_is_sure_for_the_other() {
        let server = Share::new().guarantee(8).at_most(22);
        let mut classes = Classes::new([server, server], 20);
        let fill = |classes: &mut Classes, class, free: &mut u32| {
            while classes.may_enter(class, *free) {
                classes.enter(class);
                *free -= 1;
            }
        };
        let mut free = 20;
        fill(&mut classes, 0, &mut free);
        assert_eq!((classes.in_use(0), free), (12, 8), "eight of its own and the four that are shared");
        fill(&mut classes, 1, &mut free);
        assert_eq!((classes.in_use(1), free), (8, 0));
        // Ten more for whoever comes first.
        classes.scale(30);
        free = 10;
        fill(&mut classes, 0, &mut free);
        assert_eq!((classes.in_use(0), free), (22, 0));
    }

    #[test]
    fn kept_permits_are_not_lent_and_are_there_at_once() {
        let mut classes = Classes::new([Share::new(), Share::new().guarantee(2)], 5);
        (0..3).for_each(|_| classes.enter(0));
        assert!(!classes.may_enter(0, 2));
        assert!(classes.may_enter(1, 2));
    }

    #[test]
    fn system_class_keeps_one_for_as_long_as_there_are_two() {
        let shares = [Share::new().guarantee(1), Share::new().guarantee(8), Share::new().guarantee(8)];
        let classes = Classes::new(shares, 2);
        assert_eq!(classes.all.iter().map(|class| class.guarantee).collect::<Vec<_>>(), [1, 0, 0]);
    }

    proptest! {
        #[test]
        fn scaled_guarantees_leave_one_for_everybody(
            guarantees in prop::collection::vec(any::<u32>(), 0..8),
            permits in any::<u32>(),
        ) {
            let shares = guarantees.iter().map(|guarantee| Share::new().guarantee(*guarantee));
            let classes = Classes::new(shares, permits);
            prop_assert!(u64::from(classes.kept) <= u64::from(permits.saturating_sub(1)));
            let wanted: u64 = guarantees.iter().map(|guarantee| u64::from(*guarantee)).sum();
            if wanted < u64::from(permits) {
                prop_assert_eq!(u64::from(classes.kept), wanted);
            }
        }
    }
}
