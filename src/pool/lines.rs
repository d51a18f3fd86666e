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
    /// The class that is asked first next time.
    turn: usize,
}

impl<T> Lines<T> {
    pub(super) fn new(classes: &Classes) -> Self {
        Self { lines: (0..classes.len()).map(|_| Queue::new()).collect(), waiting: 0, turn: 0 }
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
        let class = self.next(classes, may)?;
        let waker = self.lines[class].serve(what)?;
        self.waiting -= 1;
        self.turn = (class + 1) % self.lines.len();
        Some((class, waker))
    }

    /// Serves everybody.
    pub(super) fn serve_all(&mut self, mut what: impl FnMut() -> T) -> Vec<Waker> {
        self.waiting = 0;
        let lines = self.lines.iter_mut();
        lines.flat_map(|line| std::iter::from_fn(|| line.serve(what())).collect::<Vec<_>>()).collect()
    }

    fn next(&self, classes: &Classes, may: impl Fn(usize) -> bool) -> Option<usize> {
        let may = |class: &usize| self.lines[*class].waiting() > 0 && may(*class);
        let in_turn = || (self.turn..self.lines.len()).chain(0..self.turn).filter(may);
        Some(SYSTEM)
            .filter(may)
            .or_else(|| in_turn().find(|class| classes.is_owed(*class)))
            .or_else(|| in_turn().next())
    }
}
