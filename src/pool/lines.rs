//! A line for each class of callers, and who of them all is next.
//!
//! The system class is, then classes with less than they are sure of, then the others, each in turn. Both lines of a
//! pool go by that, the one for a permit and the one for a connection.

use std::task::Waker;

use super::{
    classes::{Classes, SYSTEM},
    queue::{End, Queue, Ticket},
};

/// A line of tasks for each class, each of which is served a `T`.
pub(super) struct Lines<T> {
    lines: Box<[Queue<T>]>,
    waiting: u32,
    /// The class that is asked first next time: of those that are owed, and of all.
    turns: [usize; 2],
}

/// A class that is next.
#[derive(Clone, Copy)]
struct Next {
    class: usize,
    is_owed: bool,
    /// It would be also if it were neither owed one nor the system's.
    has_turn: bool,
}

impl<T> Lines<T> {
    pub(super) fn new(classes: &Classes) -> Self {
        Self { lines: (0..classes.len()).map(|_| Queue::new()).collect(), waiting: 0, turns: [0; 2] }
    }

    /// How many wait who were not served.
    #[inline]
    pub(super) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// The same by class.
    pub(super) fn by_class(&self) -> impl Iterator<Item = u32> {
        self.lines.iter().map(Queue::waiting)
    }

    /// How many wait who find a place as this class does: the system's own, or all others.
    pub(super) fn waiting_beside(&self, class: usize) -> u32 {
        let system = self.lines[SYSTEM].waiting();
        if class == SYSTEM { system } else { self.waiting - system }
    }

    /// Joins a line; see [`Queue::join`].
    pub(super) fn join(&mut self, class: usize, end: End, waker: Waker) -> Ticket {
        self.waiting += 1;
        self.lines[class].join(end, waker)
    }

    /// What was served; see [`Queue::collect`].
    pub(super) fn collect(
        &mut self,
        class: usize,
        ticket: Ticket,
        waker: &Waker,
    ) -> Result<T, (Ticket, Option<Waker>)> {
        self.lines[class].collect(ticket, waker)
    }

    /// Leaves; see [`Queue::leave`].
    pub(super) fn leave(&mut self, class: usize, ticket: Ticket) -> Result<T, Option<Waker>> {
        let left = self.lines[class].leave(ticket);
        self.waiting -= u32::from(left.is_err());
        left
    }

    /// Serves whoever is next of the classes that may be served; the waker is theirs.
    pub(super) fn serve(
        &mut self,
        what: T,
        classes: &Classes,
        may: impl Fn(usize) -> bool,
    ) -> Option<(usize, Waker)> {
        let Next { class, is_owed, has_turn } = self.next(classes, may)?;
        let waker = self.lines[class].serve(what)?;
        self.waiting -= 1;
        // Who is served out of turn takes nobody's: or those who are owed nothing could wait for ever.
        let after = (class + 1) % self.lines.len();
        let [owed, all] = &mut self.turns;
        if is_owed {
            *owed = after;
        }
        if has_turn {
            *all = after;
        }
        Some((class, waker))
    }

    /// Serves everybody.
    pub(super) fn serve_all(&mut self, mut what: impl FnMut() -> T) -> Vec<Waker> {
        self.waiting = 0;
        let lines = self.lines.iter_mut();
        lines.flat_map(|line| std::iter::from_fn(|| line.serve(what())).collect::<Vec<_>>()).collect()
    }

    fn next(&self, classes: &Classes, may: impl Fn(usize) -> bool) -> Option<Next> {
        let may = |class: &usize| self.lines[*class].waiting() > 0 && may(*class);
        let from = |turn: usize| (turn..self.lines.len()).chain(0..turn).filter(may);
        let [owed, all] = self.turns;
        let in_turn = from(all).next()?;
        let next = |class, is_owed| Next { class, is_owed, has_turn: class == in_turn };
        Some(SYSTEM)
            .filter(may)
            .map(|system| next(system, false))
            .or_else(|| from(owed).find(|class| classes.is_owed(*class)).map(|class| next(class, true)))
            .or_else(|| Some(next(in_turn, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::classes::Share, *};

    /// Who is served of a line that everybody joins again at once, in so many returns of these classes in turn.
    fn served(shares: &[Share], size: u32, returned: &[usize], returns: usize) -> Vec<usize> {
        let mut classes = Classes::new(shares.iter().copied(), size);
        let mut lines = Lines::new(&classes);
        for class in 0..shares.len() {
            for _ in 0..100 {
                let _ = lines.join(class, End::Back, Waker::noop().clone());
            }
        }
        returned.iter().for_each(|class| classes.enter(*class));
        let mut out: std::collections::VecDeque<usize> = returned.iter().copied().collect();
        let serve = |_| {
            let class = out.pop_front().unwrap();
            classes.leave(class);
            let (next, _) = lines.serve((), &classes, |class| class != SYSTEM).unwrap();
            classes.enter(next);
            out.push_back(next);
            next
        };
        (0..returns).map(serve).collect()
    }

    #[test]
    fn class_that_is_owed_nothing_has_its_turn_whoever_is_owed() {
        let shares = [Share::new(), Share::new(), Share::new().guarantee(2), Share::new()];
        let served = served(&shares, 4, &[2, 3, 2, 1], 40);
        for class in 1..4 {
            let times = served.iter().filter(|served| **served == class).count();
            assert!(times >= 5, "{class}: {served:?}");
        }
    }

    #[test]
    fn those_that_are_owed_have_their_turns_among_each_other() {
        let shares = [Share::new(), Share::new(), Share::new().guarantee(3), Share::new().guarantee(3)];
        let served = served(&shares, 7, &[1; 7], 6);
        assert_eq!(served, [2, 3, 2, 3, 2, 3]);
    }

    #[test]
    fn system_takes_nobodys_turn() {
        let classes = Classes::new([Share::new(), Share::new(), Share::new()], 1);
        let mut lines = Lines::new(&classes);
        let mut served = Vec::new();
        for class in [1, 2, 1, 2] {
            let _ = lines.join(class, End::Back, Waker::noop().clone());
        }
        for turn in 0..8 {
            if turn % 2 == 0 {
                let _ = lines.join(SYSTEM, End::Back, Waker::noop().clone());
            }
            served.extend(lines.serve((), &classes, |_| true).map(|(class, _)| class));
        }
        assert_eq!(served, [0, 1, 0, 2, 0, 1, 0, 2]);
    }
}
