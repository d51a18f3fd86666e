//! Those who wait, in the order in which they came.
//!
//! A doubly linked list in one vector: joining, being served and leaving from anywhere in the line take the same
//! time however many wait, and once the vector has grown nobody allocates. It holds at most as many places as ever
//! waited at once, which whoever owns the queue bounds.
//!
//! A waker may own its task, and what that holds may come back here when it goes. So wakers are handed out, to be dropped
//! where nothing is locked.

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

/// Where somebody joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Ahead of everybody: it was their turn before, and they got nothing.
    Front,
    Back,
}

impl<T> Queue<T> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: NONE, head: NONE, tail: NONE, waiting: 0 }
    }

    /// How many wait who were not served.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting
    }

    pub(super) fn join(&mut self, end: End, waker: Waker) -> Ticket {
        let (previous, next) = match end {
            End::Front => (NONE, self.head),
            End::Back => (self.tail, NONE),
        };
        let place = Place { state: State::Waiting(waker), previous, next };
        let index = self.free;
        let index = if index == NONE {
            self.places.push(place);
            self.places.len() - 1
        } else {
            self.free = self.places[index].next;
            self.places[index] = place;
            index
        };
        match previous {
            NONE => self.head = index,
            previous => self.places[previous].next = index,
        }
        match next {
            NONE => self.tail = index,
            next => self.places[next].previous = index,
        }
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

    /// What was served; the ticket back if nothing was, and then `waker` is who to wake, instead of the one that is
    /// handed out.
    pub(super) fn collect(&mut self, ticket: Ticket, waker: &Waker) -> Result<T, (Ticket, Option<Waker>)> {
        if let State::Waiting(current) = &mut self.places[ticket.0].state {
            let is_another = !current.will_wake(waker);
            let before = is_another.then(|| std::mem::replace(current, waker.clone()));
            return Err((ticket, before));
        }
        let index = ticket.0;
        match self.vacate(index) {
            State::Served(what) => Ok(what),
            State::Free | State::Waiting(_) => Err((Ticket(index), None)),
        }
    }

    /// Leaves; what was served meanwhile is handed back, for somebody else, and otherwise the waker.
    #[expect(clippy::needless_pass_by_value, reason = "a place is left once")]
    pub(super) fn leave(&mut self, ticket: Ticket) -> Result<T, Option<Waker>> {
        let index = ticket.0;
        if matches!(self.places[index].state, State::Waiting(_)) {
            self.unlink(index);
        }
        match self.vacate(index) {
            State::Served(what) => Ok(what),
            State::Waiting(waker) => Err(Some(waker)),
            State::Free => Err(None),
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
        JoinFirst,
        Serve(u32),
        Leave(prop::sample::Index),
        Collect(prop::sample::Index),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => Just(Act::Join),
            1 => Just(Act::JoinFirst),
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
                        held.push((number, queue.join(End::Back, Waker::noop().clone()), None));
                        line.push_back(number);
                    }
                    Act::JoinFirst => {
                        held.push((number, queue.join(End::Front, Waker::noop().clone()), None));
                        line.push_front(number);
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
                        prop_assert_eq!(queue.leave(ticket).ok(), served);
                    }
                    Act::Collect(index) if !held.is_empty() => {
                        let (number, ticket, served) = held.swap_remove(index.index(held.len()));
                        match queue.collect(ticket, Waker::noop()) {
                            Ok(what) => prop_assert_eq!(Some(what), served),
                            Err((ticket, _)) => {
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
            let [first, second] = [(); 2].map(|()| queue.join(End::Back, Waker::noop().clone()));
            assert!(queue.leave(first).is_err() && queue.leave(second).is_err());
        }
        assert_eq!(queue.places.len(), 2);
    }
}
