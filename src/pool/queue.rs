//! Those who wait, in the order in which they came.
//!
//! A doubly linked list in one vector: joining, being served and leaving from anywhere in the line take the same
//! time however many wait, and once the vector has grown nobody allocates. It holds at most as many places as ever
//! waited at once, which whoever owns the queue bounds.

use std::task::Waker;

/// No place.
const NONE: usize = usize::MAX;

/// A line of tasks, each of which is served a `T`.
pub(super) struct Queue<T> {
    places: Vec<Place<T>>,
    /// The first place that nobody has; the others follow by `next`.
    free: usize,
    head: usize,
    tail: usize,
    waiting: u32,
}

struct Place<T> {
    state: State<T>,
    previous: usize,
    next: usize,
}

enum State<T> {
    Free,
    Waiting(Waker),
    /// No longer in the line, and not yet seen by the task.
    Served(T),
}

/// Somebody's place. It has to be [collected](Queue::collect) or [left](Queue::leave), or it stays taken.
#[derive(Debug)]
#[must_use]
pub(super) struct Ticket(usize);

impl<T> Queue<T> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: NONE, head: NONE, tail: NONE, waiting: 0 }
    }

    /// How many wait who were not served.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Joins the end of the line.
    pub(super) fn join(&mut self, waker: Waker) -> Ticket {
        let place = Place { state: State::Waiting(waker), previous: self.tail, next: NONE };
        let index = self.free;
        let index = if index == NONE {
            self.places.push(place);
            self.places.len() - 1
        } else {
            self.free = self.places[index].next;
            self.places[index] = place;
            index
        };
        match self.tail {
            NONE => self.head = index,
            tail => self.places[tail].next = index,
        }
        self.tail = index;
        self.waiting += 1;
        Ticket(index)
    }

    /// Serves whoever waited longest. The waker is theirs; `None` if nobody waits.
    pub(super) fn serve(&mut self, what: T) -> Option<Waker> {
        let index = self.head;
        if index == NONE {
            return None;
        }
        self.unlink(index);
        match std::mem::replace(&mut self.places[index].state, State::Served(what)) {
            State::Waiting(waker) => Some(waker),
            State::Free | State::Served(_) => None,
        }
    }

    /// What was served; the ticket back if nothing was, and then `waker` is who to wake.
    pub(super) fn collect(&mut self, ticket: Ticket, waker: &Waker) -> Result<T, Ticket> {
        if let State::Waiting(current) = &mut self.places[ticket.0].state {
            current.clone_from(waker);
            return Err(ticket);
        }
        let index = ticket.0;
        match self.vacate(index) {
            State::Served(what) => Ok(what),
            State::Free | State::Waiting(_) => Err(Ticket(index)),
        }
    }

    /// Leaves; what was served meanwhile is handed back, for somebody else.
    #[expect(clippy::needless_pass_by_value, reason = "a place is left once")]
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let index = ticket.0;
        if matches!(self.places[index].state, State::Waiting(_)) {
            self.unlink(index);
        }
        match self.vacate(index) {
            State::Served(what) => Some(what),
            State::Free | State::Waiting(_) => None,
        }
    }

    fn unlink(&mut self, index: usize) {
        let Place { previous, next, .. } = self.places[index];
        match previous {
            NONE => self.head = next,
            previous => self.places[previous].next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => self.places[next].previous = previous,
        }
        self.waiting -= 1;
    }

    fn vacate(&mut self, index: usize) -> State<T> {
        let free = Place { state: State::Free, previous: NONE, next: self.free };
        self.free = index;
        std::mem::replace(&mut self.places[index], free).state
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Act {
        Join,
        Serve(u32),
        Leave(prop::sample::Index),
        Collect(prop::sample::Index),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => Just(Act::Join),
            2 => any::<u32>().prop_map(Act::Serve),
            1 => any::<prop::sample::Index>().prop_map(Act::Leave),
            2 => any::<prop::sample::Index>().prop_map(Act::Collect),
        ]
    }

    proptest! {
        #[test]
        fn line_is_that_of_a_plain_list(acts in prop::collection::vec(act(), 0..200)) {
            let mut queue = Queue::new();
            // Who waits, by number; who holds a ticket, and what they were served.
            let (mut line, mut held) = (VecDeque::new(), Vec::<(u32, Ticket, Option<u32>)>::new());
            for (number, act) in (0..).zip(acts) {
                match act {
                    Act::Join => {
                        held.push((number, queue.join(Waker::noop().clone()), None));
                        line.push_back(number);
                    }
                    Act::Serve(what) => {
                        let first = line.pop_front();
                        prop_assert_eq!(queue.serve(what).is_some(), first.is_some());
                        if let Some((.., served)) = held.iter_mut().find(|held| Some(held.0) == first) {
                            *served = Some(what);
                        }
                    }
                    Act::Leave(index) if !held.is_empty() => {
                        let (number, ticket, served) = held.swap_remove(index.index(held.len()));
                        line.retain(|waiting| *waiting != number);
                        prop_assert_eq!(queue.leave(ticket), served);
                    }
                    Act::Collect(index) if !held.is_empty() => {
                        let (number, ticket, served) = held.swap_remove(index.index(held.len()));
                        match queue.collect(ticket, Waker::noop()) {
                            Ok(what) => prop_assert_eq!(Some(what), served),
                            Err(ticket) => {
                                prop_assert_eq!(served, None);
                                held.push((number, ticket, None));
                            }
                        }
                    }
                    Act::Leave(_) | Act::Collect(_) => {}
                }
                prop_assert_eq!(queue.waiting() as usize, line.len());
                prop_assert!(queue.places.len() <= 200);
            }
        }
    }

    #[test]
    fn places_are_used_again() {
        let mut queue = Queue::<()>::new();
        for _ in 0..1_000 {
            let (first, second) = (queue.join(Waker::noop().clone()), queue.join(Waker::noop().clone()));
            queue.leave(first);
            queue.leave(second);
        }
        assert_eq!(queue.places.len(), 2);
    }
}
