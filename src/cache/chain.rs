//! Whether every invalidation was heard: the pure half of [`coherence`](super::coherence).
//!
//! Every announcement changes the ledger, one entry of the remote tier, by a compare-and-set: it names the fence it
//! found, and leaves another. So the announcements of all processes form one chain of fences, whoever made them and
//! whatever became of the messages about them. A message carries the [`Link`] its sender made. Who has heard every
//! link from one fence to another has heard of everything that was announced in between; and the fence that the
//! ledger has now says how far the chain goes. No clock, no number and no list of the processes takes part.
//!
//! Links may come in any order and any number of times. Those that do not join on yet are kept, up to
//! [`MOST_AHEAD`]; beyond that they are forgotten, which comes to a gap, and a gap is always safe.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::store::Fence;
use crate::clock::Instant;

/// How many links that do not join on are kept.
const MOST_AHEAD: usize = 1024;
/// How many looks are awaited at once: more than there are in any grace.
const MOST_AWAITED: usize = 16;

/// How long after its announcement an invalidation may reach the store and be covered by it. Of the protocol: the
/// same in every process, whatever its settings.
pub(super) const SETTLING: Duration = Duration::from_secs(2);

/// From which fence to which an announcement led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) before: Fence,
    pub(super) after: Fence,
}

/// What a look at the ledger came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The first look.
    Began,
    /// Something was announced and not heard of.
    Gap,
}

/// What was heard of the chain, and what follows from it.
pub(super) struct Chain {
    /// How long a link may be on its way before it counts as lost.
    grace: Duration,
    /// Everything up to here was heard, from where the present stretch began.
    heard_to: Option<Fence>,
    ahead: HashMap<[u8; 16], Fence>,
    /// What the ledger said at the last looks, in their order. It may have been behind what was heard by the time that it
    /// was read here: that is never met with, and whatever comes after it, is.
    awaited: VecDeque<Awaited>,
    trust: Trust,
}

/// What the ledger said, and is yet to be heard of.
#[derive(Clone, Copy)]
struct Awaited {
    fence: Fence,
    at: Instant,
}

/// What the present stretch is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trust {
    /// What was read from the remote tier before this is not covered.
    pub(super) since: Instant,
    /// Everything that was announced before this has been heard.
    pub(super) confirmed_at: Instant,
}

impl Trust {
    /// Nothing is covered.
    pub(super) const NONE: Self =
        Self { since: Instant::from_nanos(u64::MAX), confirmed_at: Instant::from_nanos(0) };
}

impl Chain {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, heard_to: None, ahead: HashMap::new(), awaited: VecDeque::new(), trust: Trust::NONE }
    }

    pub(super) fn trust(&self) -> Trust {
        self.trust
    }

    /// Takes note of an announcement whose invalidations have been applied here.
    pub(super) fn link(&mut self, link: Link) {
        if self.ahead.len() >= MOST_AHEAD {
            self.ahead.clear();
        }
        self.ahead.insert(link.before.to_bytes(), link.after);
        self.follow();
    }

    /// Takes note of the ledger's fence, as it was at some time between `at` and `answered_at`.
    pub(super) fn looked(&mut self, at: Instant, answered_at: Instant, fence: Fence) -> Option<Turn> {
        if self.heard_to == Some(fence) {
            self.confirm(at);
            return None;
        }
        let is_late = self.awaited.front().is_some_and(|first| at.since(first.at) >= self.grace);
        let turn = match self.heard_to {
            None => Turn::Began,
            Some(_) if is_late => Turn::Gap,
            Some(_) => {
                if self.awaited.len() < MOST_AWAITED {
                    self.awaited.push_back(Awaited { fence, at });
                }
                return None;
            }
        };
        self.heard_to = Some(fence);
        self.awaited.clear();
        // What was announced before this look, and not heard of, has reached the store by then.
        self.trust.since = answered_at.after(SETTLING);
        self.follow();
        Some(turn)
    }

    /// Something was invalidated that cannot be told: nothing from before `now` is covered.
    pub(super) fn suspect(&mut self, now: Instant) {
        // Before the first look nothing is covered in any case.
        self.trust.since = self.trust.since.max(now);
    }

    /// Goes as far as the links lead. Each is taken out, so that a ring of them, which only a stranger could send,
    /// ends too.
    fn follow(&mut self) {
        while let Some(from) = self.heard_to
            && let Some(after) = self.ahead.remove(&from.to_bytes())
        {
            self.heard_to = Some(after);
            if let Some(place) = self.awaited.iter().position(|awaited| awaited.fence == after) {
                let last = self.awaited.drain(..=place).next_back();
                self.trust.confirmed_at =
                    last.map_or(Instant::default(), |last| last.at).max(self.trust.confirmed_at);
            }
        }
    }

    fn confirm(&mut self, at: Instant) {
        self.awaited.clear();
        self.trust.confirmed_at = self.trust.confirmed_at.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(second: u64) -> Instant {
        Instant::from_nanos(second * 1_000_000_000)
    }

    const fn fence(number: u8) -> Fence {
        Fence::from_bytes([number; 16])
    }

    const fn link(before: u8, after: u8) -> Link {
        Link { before: fence(before), after: fence(after) }
    }

    fn look(chain: &mut Chain, at: Instant, fence: Fence) -> Option<Turn> {
        chain.looked(at, at, fence)
    }

    /// Has heard everything up to fence 1, ten seconds after it began.
    fn chain() -> Chain {
        let mut chain = Chain::new(Duration::from_secs(2));
        assert_eq!(chain.trust(), Trust::NONE);
        assert_eq!(look(&mut chain, second(0), fence(1)), Some(Turn::Began));
        assert_eq!(look(&mut chain, second(10), fence(1)), None);
        assert_eq!(chain.trust(), Trust { since: second(2), confirmed_at: second(10) });
        chain
    }

    #[test]
    fn announcement_is_confirmed_when_it_is_heard_as_of_when_the_ledger_was_looked_at() {
        let mut chain = chain();
        assert_eq!(look(&mut chain, second(11), fence(2)), None);
        assert_eq!(chain.trust().confirmed_at, second(10), "not before it was heard");
        chain.link(link(1, 2));
        assert_eq!(chain.trust(), Trust { since: second(2), confirmed_at: second(11) });
    }

    #[test]
    fn links_in_any_order_and_number_lead_to_the_end() {
        let mut chain = chain();
        assert_eq!(look(&mut chain, second(11), fence(4)), None);
        for (before, after) in [(3, 4), (2, 3), (3, 4), (1, 2), (1, 2), (2, 3), (4, 5)] {
            chain.link(link(before, after));
        }
        assert_eq!(chain.trust(), Trust { since: second(2), confirmed_at: second(11) });
        assert_eq!(look(&mut chain, second(12), fence(5)), None);
        assert_eq!(chain.trust().confirmed_at, second(12));
    }

    #[test]
    fn confirmation_goes_on_though_something_is_always_under_way() {
        let mut chain = chain();
        for step in 1..50 {
            let at = second(10 + u64::from(step));
            assert_eq!(look(&mut chain, at, fence(step + 1)), None, "one behind at every look");
            chain.link(link(step, step + 1));
            assert_eq!(chain.trust(), Trust { since: second(2), confirmed_at: at });
        }
    }

    /// Links may be faster than an answer of the store.
    #[test]
    fn look_that_is_behind_what_was_heard_meanwhile_is_no_gap() {
        let mut chain = chain();
        chain.link(link(1, 2));
        chain.link(link(2, 3));
        assert_eq!(look(&mut chain, second(11), fence(2)), None, "it was so when it was asked");
        assert_eq!(look(&mut chain, second(12), fence(4)), None);
        chain.link(link(3, 4));
        assert_eq!(chain.trust(), Trust { since: second(2), confirmed_at: second(12) });
        assert_eq!(look(&mut chain, second(13), fence(5)), None);
        chain.link(link(4, 5));
        assert_eq!(chain.trust(), Trust { since: second(2), confirmed_at: second(13) });
    }

    #[test]
    fn missing_link_is_a_gap_after_the_grace_and_covers_nothing_from_before_it_settled() {
        let mut chain = chain();
        assert_eq!(look(&mut chain, second(11), fence(3)), None);
        chain.link(link(2, 3));
        assert_eq!(look(&mut chain, second(12), fence(3)), None, "still within the grace");
        assert_eq!(chain.trust().confirmed_at, second(10));
        assert_eq!(look(&mut chain, second(13), fence(3)), Some(Turn::Gap));
        assert_eq!(chain.trust().since, second(15));
        // The late link changes nothing any more.
        chain.link(link(1, 2));
        assert_eq!(look(&mut chain, second(14), fence(3)), None);
        assert_eq!(chain.trust(), Trust { since: second(15), confirmed_at: second(14) });
    }

    #[test]
    fn answer_that_took_long_settles_from_when_it_came() {
        let mut chain = Chain::new(Duration::from_secs(2));
        chain.looked(second(1), second(5), fence(1));
        assert_eq!(chain.trust().since, second(7));
        chain.looked(second(8), second(9), fence(1));
        assert_eq!(chain.trust(), Trust { since: second(7), confirmed_at: second(8) });
    }

    #[test]
    fn ledger_that_was_lost_or_went_back_is_a_gap() {
        let mut chain = chain();
        chain.link(link(1, 2));
        for found in [fence(1), fence(9)] {
            let at = chain.trust().confirmed_at;
            assert_eq!(look(&mut chain, at.after(Duration::from_secs(1)), found), None);
            assert_eq!(look(&mut chain, at.after(Duration::from_secs(3)), found), Some(Turn::Gap));
            assert_eq!(look(&mut chain, at.after(Duration::from_secs(4)), found), None);
        }
    }

    #[test]
    fn what_a_stranger_links_neither_loops_nor_grows() {
        let mut chain = chain();
        chain.link(link(1, 1));
        chain.link(link(1, 2));
        chain.link(link(2, 1));
        for number in 0..10 * MOST_AHEAD as u128 {
            let (before, after) = (number << 64 | 1, number << 64 | 2);
            let fence = |number: u128| Fence::from_bytes(number.to_be_bytes());
            chain.link(Link { before: fence(before), after: fence(after) });
        }
        assert!(chain.ahead.len() <= MOST_AHEAD);
    }

    #[test]
    fn suspicion_never_makes_more_trusted() {
        let mut chain = Chain::new(Duration::from_secs(2));
        chain.suspect(second(1));
        assert_eq!(chain.trust(), Trust::NONE);
        let mut chain = self::chain();
        chain.suspect(second(1));
        assert_eq!(chain.trust().since, second(2));
        chain.suspect(second(12));
        assert_eq!(chain.trust().since, second(12));
    }
}
