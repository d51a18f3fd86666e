//! What the remote tier could not be told, and when it is to be tried again: the pure half of paying, whose other
//! half is in [`remote`](super::remote).
//!
//! A *debt* is the name of an entry or of a stamp, and what was to become of it. All debts that are due are tried
//! together, [`CHUNK`] at a time. Nobody can tell which of a chunk was refused, so its debts are tried one by one from
//! then on: one that the store will not take, or not in time, must not keep the others waiting. Each has its own pause,
//! from [`FIRST_PAUSE`] doubling to [`LONGEST_PAUSE`], a fifth more or less. Besides, after one was refused alone
//! everything rests for [`FIRST_PAUSE`], so that a store that refuses all of them is asked ten times a second, however
//! much is owed to it. Where loaders choose tags, the stamp of any tag goes before those of tags (see
//! [`chosen`](super::chosen)). That the tier was away is no debt's fault: whether it is asked then is up to its
//! [gate](super::availability).
//!
//! Deciding is pure: time comes in, what to try comes out. That whoever failed goes alone is as in
//! [`write_behind`](super::write_behind).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::tags::Invalidation;
use crate::clock::Instant;

/// How many debts are tried in one call.
const CHUNK: usize = 256;
/// Beyond this many debts the whole cache is invalidated instead.
const MOST_DEBTS: usize = 10_000;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What was to become of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// An entry that is to be removed.
    Entry,
    Stamp(Invalidation),
    /// The stamp of a tag, where that of any tag changes before it.
    Tag(Invalidation),
    /// The stamp of any tag.
    AnyTag,
}

impl What {
    pub(super) fn invalidation(self) -> Invalidation {
        match self {
            Self::Entry | Self::AnyTag => Invalidation::Remove,
            Self::Stamp(invalidation) | Self::Tag(invalidation) => invalidation,
        }
    }
}

/// All debts of one cache to its store.
#[derive(Debug, Default)]
pub(super) struct Owed {
    debts: HashMap<Arc<str>, Debt>,
    /// The names, by when they are to be tried.
    queue: Queue,
    /// Those that wait for any tag, if that is owed.
    tags: Queue,
    number: u64,
    /// The name of the stamp of any tag, while that is owed.
    any_tag: Option<Arc<str>>,
    /// Nothing is tried before.
    rests_until: Instant,
}

type Queue = BTreeMap<(Instant, u64), Arc<str>>;

#[derive(Debug)]
struct Debt {
    what: What,
    /// Tells it from an earlier one of the same name.
    number: u64,
    due: Instant,
    goes_alone: bool,
    /// How often it was not taken when it was tried alone.
    refusals: u32,
}

/// A debt that is being tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) name: Arc<str>,
    pub(super) what: What,
    number: u64,
}

impl Due {
    fn of(name: &Arc<str>, debt: &Debt) -> Self {
        Self { name: Arc::clone(name), what: debt.what, number: debt.number }
    }
}

/// How it stands with names that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// None of them is owed.
    Paid,
    /// One is owed, and all that are may be tried now.
    Due,
    /// One is owed, and not to be tried yet.
    PutOff,
}

impl Owed {
    pub(super) fn len(&self) -> usize {
        self.debts.len()
    }

    /// Takes note of a debt; `everything` is the name of the stamp that stands for all of them. One that is owed
    /// already keeps its pause: that it was asked for again makes the store no more willing.
    pub(super) fn owe(&mut self, name: &str, what: What, everything: &str, now: Instant) {
        self.number += 1;
        let number = self.number;
        let (mut debt, name) = match self.debts.remove_entry(name) {
            Some((name, debt)) => {
                self.queue_of(debt.what).remove(&(debt.due, debt.number));
                (debt, name)
            }
            None => (Debt { what, number, due: now, goes_alone: false, refusals: 0 }, name.into()),
        };
        // A removal outlasts an expiry that comes after it.
        if debt.what.invalidation() != Invalidation::Remove {
            debt.what = what;
        }
        debt.number = number;
        if what == What::AnyTag {
            self.any_tag = Some(Arc::clone(&name));
        }
        self.queue_of(debt.what).insert((debt.due, number), Arc::clone(&name));
        self.debts.insert(name, debt);
        if self.debts.len() > MOST_DEBTS {
            *self = Self { number, rests_until: self.rests_until, ..Self::default() };
            self.owe(everything, What::Stamp(Invalidation::Remove), everything, now);
        }
    }

    /// How it stands with these names.
    pub(super) fn standing<'a>(&self, names: impl Iterator<Item = &'a str>, now: Instant) -> Standing {
        let any_tag_due = self.any_tag().map(|(_, debt)| debt.due);
        let mut standing = Standing::Paid;
        for debt in names.filter_map(|name| self.debts.get(name)) {
            let is_behind = matches!(debt.what, What::Tag(_)) && any_tag_due.is_some_and(|due| due > now);
            if debt.due > now || is_behind {
                return Standing::PutOff;
            }
            standing = Standing::Due;
        }
        standing
    }

    /// What is owed under a name, to be [settled](Self::settle) by who tells the store himself.
    pub(super) fn debt(&self, name: &str) -> Option<Due> {
        self.debts.get_key_value(name).map(|(name, debt)| Due::of(name, debt))
    }

    /// Whether there is anything to try.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let is_first_due = |queue: &Queue| queue.first_key_value().is_some_and(|((due, _), _)| *due <= now);
        now >= self.rests_until
            && (is_first_due(&self.queue) || self.any_tag.is_none() && is_first_due(&self.tags))
    }

    /// What is to be tried in one attempt; nothing if nothing is due.
    pub(super) fn take(&self, now: Instant) -> Vec<Due> {
        let mut taken = Vec::new();
        if !self.is_due(now) {
            return taken;
        }
        if let Some((name, debt)) = self.any_tag().filter(|(_, debt)| debt.due <= now) {
            return vec![Due::of(name, debt)];
        }
        // By turns, so that neither waits for the other.
        let no_tags = Queue::new();
        let tags = if self.any_tag.is_none() { &self.tags } else { &no_tags };
        let (mut queue, mut tags) = (self.queue.iter().peekable(), tags.iter().peekable());
        while taken.len() < CHUNK {
            let next = match (queue.peek(), tags.peek()) {
                (Some((key, _)), Some((tag, _))) if tag < key => tags.next(),
                (Some(_), _) => queue.next(),
                (None, _) => tags.next(),
            };
            let Some(((due, _), name)) = next else { break };
            let Some(debt) = self.debts.get(name).filter(|_| *due <= now) else { break };
            if debt.goes_alone && !taken.is_empty() {
                break;
            }
            taken.push(Due::of(name, debt));
            if debt.goes_alone {
                break;
            }
        }
        taken
    }

    fn any_tag(&self) -> Option<(&Arc<str>, &Debt)> {
        self.debts.get_key_value(self.any_tag.as_ref()?)
    }

    fn queue_of(&mut self, what: What) -> &mut Queue {
        if matches!(what, What::Tag(_)) { &mut self.tags } else { &mut self.queue }
    }

    /// The store was told. What was owed anew meanwhile still is.
    pub(super) fn settle(&mut self, paid: &[Due]) {
        for Due { name, number, .. } in paid {
            if let Some(debt) = self.debts.get(name).filter(|debt| debt.number == *number) {
                let (what, place) = (debt.what, (debt.due, debt.number));
                self.queue_of(what).remove(&place);
                self.debts.remove(name);
                self.any_tag.take_if(|any_tag| any_tag == name);
            }
        }
    }

    /// The store would not take it, or not in time. `draw`, at random from 0 up to 1, spreads the pause.
    pub(super) fn refused(&mut self, tried: &[Due], now: Instant, draw: f64) {
        let was_alone = tried.len() == 1;
        for Due { name, .. } in tried {
            // Owed anew meanwhile, it is as unwelcome as before.
            let Some(debt) = self.debts.get_mut(name) else { continue };
            let before = (debt.due, debt.number);
            debt.goes_alone = true;
            debt.due = now;
            if was_alone {
                debt.due = now.after(pause(debt.refusals).mul_f64(0.8 + 0.4 * draw));
                debt.refusals = debt.refusals.saturating_add(1);
            }
            let (what, after) = (debt.what, (debt.due, debt.number));
            let queue = self.queue_of(what);
            queue.remove(&before);
            queue.insert(after, Arc::clone(name));
        }
        if was_alone {
            self.rest(now);
        }
    }

    /// Everything may be tried now, whatever was refused before.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.rests_until = now;
        for queue in [&mut self.queue, &mut self.tags] {
            for ((_, number), name) in queue.split_off(&(now, u64::MAX)) {
                if let Some(debt) = self.debts.get_mut(&name) {
                    debt.due = now;
                }
                queue.insert((now, number), name);
            }
        }
    }

    /// Nothing is tried for a moment: the store cannot be told anything, or has just refused something.
    pub(super) fn rest(&mut self, now: Instant) {
        self.rests_until = now.after(FIRST_PAUSE);
    }
}

/// The pause after a refusal that came after so many others.
fn pause(refusals: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << refusals.min(10)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The middle of the spread.
    const MIDDLE: f64 = 0.5;
    const EXPIRE: What = What::Stamp(Invalidation::Expire);
    const REMOVE: What = What::Stamp(Invalidation::Remove);

    const fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(milliseconds * 1_000_000)
    }

    fn owing(names: &[&str]) -> Owed {
        let mut owed = Owed::default();
        for name in names {
            owed.owe(name, What::Entry, "epoch", at(0));
        }
        owed
    }

    fn names(due: &[Due]) -> Vec<&str> {
        due.iter().map(|due| &*due.name).collect()
    }

    #[test]
    fn what_is_hurried_is_due_and_nothing_is_lost() {
        let mut owed = owing(&["a", "b"]);
        owed.owe("tag", What::Tag(Invalidation::Remove), "epoch", at(0));
        for _ in 0..5 {
            for name in ["a", "b", "tag"] {
                let due = owed.debt(name).unwrap();
                owed.refused(&[due], at(0), MIDDLE);
            }
        }
        assert!(!owed.is_due(at(1_000)));
        owed.hurry(at(1_000));
        assert_eq!(owed.len(), 3);
        for _ in 0..3 {
            let due = owed.take(at(1_000));
            assert_eq!(due.len(), 1, "alone, as before");
            owed.settle(&due);
        }
        assert_eq!(owed.len(), 0);
    }

    /// The stamp of a tag may change once that of any tag has, and no sooner.
    #[test]
    fn stamp_of_any_tag_goes_first_and_alone_and_keeps_other_tags_waiting_until_it_is_taken() {
        let mut owed = owing(&["entry"]);
        owed.owe("epoch", REMOVE, "epoch", at(0));
        owed.owe("tag", What::Tag(Invalidation::Remove), "epoch", at(0));
        owed.owe("any", What::AnyTag, "epoch", at(1));
        let first = owed.take(at(1));
        assert_eq!(names(&first), ["any"]);
        owed.refused(&first, at(1), MIDDLE);
        // It rests, and is put off for as long.
        assert!(!owed.is_due(at(100)));
        let again = owed.take(at(101));
        assert_eq!(names(&again), ["any"]);
        owed.refused(&again, at(101), MIDDLE);
        assert_eq!(names(&owed.take(at(250))), ["entry", "epoch"], "what it does not concern");
        assert_eq!(standing(&owed, "tag", at(250)), Standing::PutOff);
        assert_eq!(standing(&owed, "tag", at(301)), Standing::Due);
        owed.settle(&owed.take(at(250)));
        assert!(!owed.is_due(at(250)), "the tag alone");
        let last = owed.take(at(301));
        assert_eq!(names(&last), ["any"]);
        owed.settle(&last);
        owed.owe("later", What::Entry, "epoch", at(301));
        assert_eq!(names(&owed.take(at(301))), ["tag", "later"]);
    }

    #[test]
    fn too_many_debts_take_the_stamp_of_any_tag_along() {
        let mut owed = Owed::default();
        owed.owe("any", What::AnyTag, "epoch", at(0));
        let what = What::Tag(Invalidation::Remove);
        (0..MOST_DEBTS).for_each(|name| owed.owe(&name.to_string(), what, "epoch", at(0)));
        assert_eq!(names(&owed.take(at(0))), ["epoch"]);
        assert_eq!(owed.len(), 1);
    }

    fn standing(owed: &Owed, name: &str, now: Instant) -> Standing {
        owed.standing([name].into_iter(), now)
    }

    #[test]
    fn debts_are_tried_together_and_those_of_a_refused_chunk_one_by_one() {
        let mut owed = owing(&["a", "b", "c"]);
        let chunk = owed.take(at(0));
        assert_eq!(names(&chunk), ["a", "b", "c"]);
        owed.refused(&chunk, at(0), MIDDLE);
        for name in ["a", "b", "c"] {
            let alone = owed.take(at(0));
            assert_eq!(names(&alone), [name]);
            owed.settle(&alone);
        }
        assert_eq!(owed.len(), 0);
        assert!(!owed.is_due(at(0)));
    }

    #[test]
    fn chunk_is_bounded_and_takes_the_longest_owed_first() {
        let all: Vec<String> = (0..CHUNK + 10).map(|number| number.to_string()).collect();
        let mut owed = owing(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let first = owed.take(at(0));
        assert_eq!(names(&first), all[..CHUNK]);
        owed.settle(&first);
        assert_eq!(names(&owed.take(at(0))), all[CHUNK..]);
    }

    #[test]
    fn pause_of_a_debt_doubles_up_to_its_cap_and_is_spread_by_a_fifth() {
        let pause_after = |refusals: u64, draw: f64| {
            let mut owed = owing(&["a"]);
            let mut now = at(0);
            for number in 1.. {
                owed.refused(&owed.take(now), now, draw);
                let before = now;
                now = owed.queue.first_key_value().unwrap().0.0;
                if number == refusals {
                    return now.since(before);
                }
                now = now.max(owed.rests_until);
            }
            unreachable!("the count ends")
        };
        for (refusals, milliseconds) in [(1, 100), (2, 200), (3, 400), (7, 6_400), (8, 10_000), (40, 10_000)]
        {
            assert_eq!(pause_after(refusals, MIDDLE), Duration::from_millis(milliseconds), "{refusals}");
        }
        assert_eq!(pause_after(1, 0.0), Duration::from_millis(80));
        assert_eq!(pause_after(8, 1.0), Duration::from_secs(12));
    }

    #[test]
    fn refused_debt_does_not_hold_up_what_is_owed_later() {
        let mut owed = owing(&["bad"]);
        owed.refused(&owed.take(at(0)), at(0), MIDDLE);
        owed.refused(&owed.take(at(100)), at(100), MIDDLE);
        owed.owe("good", What::Entry, "epoch", at(150));
        assert_eq!(names(&owed.take(at(199))), Vec::<&str>::new(), "everything rests after a refusal");
        assert_eq!(names(&owed.take(at(200))), ["good"]);
        assert_eq!(standing(&owed, "bad", at(200)), Standing::PutOff);
        assert_eq!(standing(&owed, "good", at(200)), Standing::Due);
        assert_eq!(standing(&owed, "other", at(200)), Standing::Paid);
        let both = ["good", "bad"].into_iter();
        assert_eq!(owed.standing(both, at(200)), Standing::PutOff);
    }

    #[test]
    fn what_is_owed_anew_while_it_is_paid_is_owed_still() {
        let mut owed = owing(&["a", "b"]);
        let chunk = owed.take(at(0));
        owed.owe("a", What::Entry, "epoch", at(1));
        owed.settle(&chunk);
        assert_eq!(names(&owed.take(at(1))), ["a"]);
    }

    #[test]
    fn debt_that_is_owed_anew_keeps_its_pause() {
        let mut owed = owing(&["a"]);
        owed.refused(&owed.take(at(0)), at(0), MIDDLE);
        owed.refused(&owed.take(at(100)), at(100), MIDDLE);
        owed.owe("a", What::Entry, "epoch", at(200));
        assert!(owed.take(at(299)).is_empty());
        assert_eq!(names(&owed.take(at(300))), ["a"]);
    }

    #[test]
    fn removal_outlasts_an_expiry_that_comes_after_it() {
        for (first, second, both) in
            [(REMOVE, EXPIRE, REMOVE), (EXPIRE, REMOVE, REMOVE), (EXPIRE, EXPIRE, EXPIRE)]
        {
            let mut owed = Owed::default();
            owed.owe("tag", first, "epoch", at(0));
            owed.owe("tag", second, "epoch", at(0));
            assert_eq!(owed.take(at(0)).iter().map(|due| due.what).collect::<Vec<_>>(), [both]);
        }
    }

    #[test]
    fn more_debts_than_there_is_room_for_become_the_removal_of_everything() {
        let mut owed = Owed::default();
        for number in 0..=MOST_DEBTS {
            owed.owe(&number.to_string(), What::Entry, "epoch", at(0));
        }
        let everything = owed.take(at(0));
        assert_eq!((names(&everything), everything[0].what), (vec!["epoch"], REMOVE));
        assert_eq!((owed.len(), owed.queue.len()), (1, 1));
    }

    #[test]
    fn queue_and_debts_hold_the_same_names_whatever_happens_to_them() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut owed = Owed::default();
        let mut now = at(0);
        for _ in 0..20_000 {
            now = now.after(Duration::from_millis(random.u64(..30)));
            let taken = owed.take(now);
            match random.u8(..5) {
                0 => owed.settle(&taken),
                1 => owed.refused(&taken, now, random.f64()),
                2 => {
                    owed.owe(&random.u8(..40).to_string(), What::Entry, "epoch", now);
                    owed.settle(&taken);
                }
                3 => {
                    owed.owe(&random.u8(..40).to_string(), What::Entry, "epoch", now);
                    owed.refused(&taken, now, random.f64());
                }
                _ => owed.owe(&random.u8(..40).to_string(), What::Entry, "epoch", now),
            }
            assert_eq!(owed.debts.len(), owed.queue.len());
            for ((due, number), name) in &owed.queue {
                let debt = &owed.debts[name];
                assert_eq!((debt.due, debt.number), (*due, *number));
            }
        }
    }
}
