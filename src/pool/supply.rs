//! Which connections there are, and who of those with a permit gets one.
//!
//! A permit says that its holder may use a connection; there may be none yet. So whoever finds none idle waits here,
//! in [line](super::lines), for the first that is returned or opened, whichever comes sooner. What a class is sure of is
//! scaled to the connections that there are: where the server has no more, permits alone would keep nobody's share.
//!
//! *Openers* are tasks, and there are as many as connections are wanted: one for each waiter, and for what is to be
//! kept open, within the ceiling. A caller that goes away loses nobody's work, since what its opener opens goes to the
//! next in line or becomes idle; and an opener that has not begun when nobody needs it any more ends (HikariCP owes to
//! this that a burst of fifty ends with five connections).
//!
//! bb8 holds the idle ones. It is asked only for what is known to be there, so nobody ever waits in it: its line is
//! unfair and keeps the reason of a failure to itself.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::sync::{Notify, futures::Notified};

use super::{
    classes::{Classes, Share},
    holders::{Holder, Holders, Slot},
    kept::Kept,
    lines::Lines,
    queue::{End, Ticket},
};
use crate::{
    Error,
    clock::Instant,
    sync::{Mutex, lock},
};

pub(super) struct Supply {
    state: Mutex<State>,
    /// Told when a connection is gone or comes back after [`close`](Supply::close).
    returned: Notify,
    /// Told when an attempt to connect failed.
    failures: Notify,
}

struct State {
    /// In bb8, and nobody's.
    idle: u32,
    /// Lent, on the way to a caller, or being looked at.
    out: u32,
    /// Of those, as many at most are being looked at, and back in a moment.
    looked_at: u32,
    /// And so many are tested behind everybody's back.
    set_aside: u32,
    /// Given up, and not gone yet.
    closing: u32,
    /// Openers.
    opening: u32,
    ceiling: u32,
    /// How many are kept open even if nobody wants them.
    kept: Kept,
    /// What everybody is told who would wait, once the pool is shut down.
    closed: Option<Error>,
    /// What each class has of those that are out.
    classes: Classes,
    lines: Lines<Result<(), Error>>,
    holders: Holders,
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) idle: u32,
    pub(super) out: u32,
    pub(super) closing: u32,
    pub(super) opening: u32,
    pub(super) waiting: u32,
}

/// So many openers are to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Openers(pub(super) u32);

impl Supply {
    pub(super) fn new(ceiling: u32, kept: u32, shares: impl IntoIterator<Item = Share>) -> Self {
        let classes = Classes::new(shares, 0);
        let lines = Lines::new(&classes);
        let state = State {
            looked_at: 0,
            set_aside: 0,
            idle: 0,
            out: 0,
            closing: 0,
            opening: 0,
            ceiling,
            kept: Kept::new(kept),
            closed: None,
            classes,
            lines,
            holders: Holders::default(),
        };
        Self { state: Mutex::new(state), returned: Notify::new(), failures: Notify::new() }
    }

    /// An idle connection: bb8 has one for whoever is told so.
    #[inline]
    pub(super) fn take(&self, holder: Holder) -> Option<Slot> {
        let mut state = lock(&self.state);
        if state.idle == 0 {
            return None;
        }
        state.idle -= 1;
        state.out += 1;
        state.classes.enter(holder.class);
        Some(state.holders.add(holder))
    }

    /// Waits for a connection. Whoever got one is to [hold](Self::hold) it at once. After [`close`](Self::close) nobody
    /// waits: who had his turn before is sent away here.
    pub(super) fn line_up(&self, class: usize, end: End) -> (Waiting<'_>, Openers) {
        let mut state = lock(&self.state);
        let ticket = state.lines.join(class, end, Waker::noop().clone());
        if let Some(closed) = state.closed.clone() {
            let _ = state.next(Err(closed));
        } else if state.idle > 0 {
            // It came back since nobody was found.
            state.idle -= 1;
            state.out += 1;
            let _ = state.serve();
        }
        let openers = state.missing();
        (Waiting { supply: self, class, ticket: Some(ticket) }, openers)
    }

    /// Takes note of who has a connection that was waited for.
    pub(super) fn hold(&self, holder: Holder) -> Slot {
        lock(&self.state).holders.add(holder)
    }

    /// A connection was put back into bb8.
    #[inline]
    pub(super) fn put_back(&self, slot: Slot) -> Option<Holder> {
        let (holder, waker, is_closed) = {
            let mut state = lock(&self.state);
            let holder = state.remove(slot);
            (holder, state.put_back(), state.closed.is_some())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if is_closed {
            self.returned.notify_waiters();
        }
        holder
    }

    /// A connection is given up; once it is [gone](Self::gone), there is room for another one.
    pub(super) fn lose(&self, slot: Slot) -> Option<Holder> {
        let mut state = lock(&self.state);
        let holder = state.remove(slot);
        state.give_up();
        holder
    }

    /// Takes all idle ones, to look at them.
    pub(super) fn take_all(&self) -> u32 {
        let mut state = lock(&self.state);
        let idle = std::mem::take(&mut state.idle);
        state.out += idle;
        state.looked_at = idle;
        idle
    }

    /// All of those are back, or given up.
    pub(super) fn has_looked(&self) {
        lock(&self.state).looked_at = 0;
    }

    /// A connection is nobody's from here on, though it is out: it is tested, and then put back as one that was
    /// [looked at](Self::looked_at), given up, or somebody's [again](Self::own).
    pub(super) fn disown(&self, slot: Slot) {
        lock(&self.state).remove(slot);
    }

    /// It is somebody's again.
    pub(super) fn own(&self, holder: Holder) -> Slot {
        let mut state = lock(&self.state);
        state.classes.enter(holder.class);
        state.holders.add(holder)
    }

    /// Nobody waits for one that is being tested.
    pub(super) fn set_aside(&self) {
        lock(&self.state).set_aside += 1;
    }

    /// It is about to be put back, or given up.
    pub(super) fn was_set_aside(&self) {
        lock(&self.state).set_aside -= 1;
    }

    /// Of those that were taken to be looked at or that were [admitted](Self::admit), one was put into bb8.
    pub(super) fn looked_at(&self) {
        let waker = lock(&self.state).put_back();
        self.after(waker);
    }

    /// Of those that were taken to be looked at or that were admitted, one is given up.
    pub(super) fn give_up(&self) {
        lock(&self.state).give_up();
    }

    /// One that was given up is gone.
    pub(super) fn gone(&self) -> Openers {
        let openers = {
            let mut state = lock(&self.state);
            state.closing -= 1;
            state.missing()
        };
        self.returned.notify_waiters();
        openers
    }

    /// No more than so many are opened from now on.
    pub(super) fn set_ceiling(&self, ceiling: u32) {
        lock(&self.state).ceiling = ceiling;
    }

    /// How many openers there should be more, by now.
    pub(super) fn missing(&self) -> Openers {
        lock(&self.state).missing()
    }

    /// Whether there are more openers than are needed. If so the one who asks is no longer counted, and has to end.
    pub(super) fn is_superfluous(&self) -> bool {
        let mut state = lock(&self.state);
        let is_superfluous = state.opening > state.wanted();
        if is_superfluous {
            state.opening -= 1;
        }
        is_superfluous
    }

    /// An opener has a connection, and ends. Whether there is room for it: there may be less by now, or none.
    /// If there is it is to be put into bb8 and counted as [looked at](Self::looked_at); if not, it is given up.
    pub(super) fn admit(&self) -> bool {
        let mut state = lock(&self.state);
        state.opening -= 1;
        let is_admitted = state.closed.is_none() && state.there() < state.ceiling;
        *(if is_admitted { &mut state.out } else { &mut state.closing }) += 1;
        is_admitted
    }

    /// An opener has put a connection into bb8.
    #[cfg(test)]
    fn opened(&self) {
        assert!(self.admit());
        self.looked_at();
    }

    /// An opener ends, and opened nothing.
    pub(super) fn gave_up(&self) -> Openers {
        let mut state = lock(&self.state);
        state.opening -= 1;
        state.missing()
    }

    /// Whether nothing is being opened for whoever came last, so that somebody has to return a connection first.
    pub(super) fn is_in_vain(&self) -> bool {
        let state = lock(&self.state);
        state.lines.waiting() > state.opening + state.looked_at + state.set_aside
    }

    /// Of the openers that there should be, so many are not to be had.
    pub(super) fn do_without(&self, Openers(count): Openers) {
        lock(&self.state).opening -= count;
    }

    /// Waits for the next failure of an attempt to connect, counted from when the future was made.
    pub(super) fn next_failure(&self) -> Notified<'_> {
        self.failures.notified()
    }

    /// Whether a connection is there, or may come back to one who would wait for `patience`. One that is held for longer
    /// than that already is not hoped for: it may have been lost long ago, and its holder not have looked.
    pub(super) fn has_hope(&self, patience: Duration, now: Instant) -> bool {
        let state = lock(&self.state);
        // One that was out a moment ago may be idle by now.
        state.idle > 0 || state.hoped_for(patience, now) > 0
    }

    /// An attempt to connect failed. If there is no connection that [may come back](Self::has_hope), whoever is next is
    /// told, or all are.
    pub(super) fn failed(&self, error: &Error, tell_all: bool, patience: Duration, now: Instant) {
        let wakers = {
            let mut state = lock(&self.state);
            match (state.hoped_for(patience, now), tell_all) {
                (1.., _) => Vec::new(),
                (0, false) => Vec::from_iter(state.next(Err(error.clone())).map(|(_, waker)| waker)),
                (0, true) => state.lines.serve_all(|| Err(error.clone())),
            }
        };
        wakers.into_iter().for_each(Waker::wake);
        self.failures.notify_waiters();
    }

    /// The server has no more. Returns whether that is news: not where no more was known, and nobody waits for any.
    pub(super) fn refused(&self, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let open = state.idle + state.out;
        state.lines.waiting() > 0 || state.kept.refused(open, now)
    }

    /// Once in a while: the server may have more by now.
    pub(super) fn try_more(&self, now: Instant) {
        let mut state = lock(&self.state);
        let open = state.idle + state.out;
        state.kept.rise(open, now);
    }

    /// Sends away everybody who waits or comes to wait, and opens nothing more.
    pub(super) fn close(&self, error: &Error) {
        let wakers = {
            let mut state = lock(&self.state);
            state.closed = Some(error.clone());
            state.lines.serve_all(|| Err(error.clone()))
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until nothing is out, and what was given up is gone.
    pub(super) async fn all_returned(&self) {
        loop {
            let returned = self.returned.notified();
            let mut returned = std::pin::pin!(returned);
            returned.as_mut().enable();
            let Count { out, closing, .. } = self.count();
            if out + closing == 0 {
                return;
            }
            returned.await;
        }
    }

    pub(super) fn count(&self) -> Count {
        let state = lock(&self.state);
        let State { idle, out, closing, opening, .. } = *state;
        Count { idle, out, closing, opening, waiting: state.lines.waiting() }
    }

    pub(super) fn longest(&self, count: usize) -> Vec<Holder> {
        lock(&self.state).holders.longest(count)
    }

    pub(super) fn overdue(&self, threshold: Duration, now: Instant) -> Vec<Holder> {
        lock(&self.state).holders.overdue(threshold, now)
    }

    fn after(&self, waker: Option<Waker>) {
        match waker {
            Some(waker) => waker.wake(),
            None => self.returned.notify_waiters(),
        }
    }
}

impl fmt::Debug for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Supply").field(&self.count()).finish()
    }
}

impl State {
    /// One that was out is in bb8 again, and goes to whoever is next.
    #[inline]
    fn put_back(&mut self) -> Option<Waker> {
        let waker = self.serve();
        if waker.is_none() {
            self.out -= 1;
            self.idle += 1;
        }
        waker
    }

    /// Gives one that is out and in bb8 to whoever is next.
    #[inline]
    fn serve(&mut self) -> Option<Waker> {
        let (class, waker) = self.next(Ok(()))?;
        self.classes.enter(class);
        Some(waker)
    }

    #[inline]
    fn next(&mut self, what: Result<(), Error>) -> Option<(usize, Waker)> {
        if self.lines.waiting() == 0 {
            return None;
        }
        self.classes.scale(self.idle + self.out);
        self.lines.serve(what, &self.classes, |_| true)
    }

    /// Somebody has a connection no longer.
    #[inline]
    fn remove(&mut self, slot: Slot) -> Option<Holder> {
        let holder = self.holders.remove(slot)?;
        self.classes.leave(holder.class);
        Some(holder)
    }

    /// How many of those that are out may come back soon.
    fn hoped_for(&self, patience: Duration, now: Instant) -> u32 {
        let long = u32::try_from(self.holders.long(patience, now)).unwrap_or(u32::MAX);
        self.out.saturating_sub(long)
    }

    /// One that was out is given up.
    fn give_up(&mut self) {
        self.out -= 1;
        self.closing += 1;
    }

    /// How many the server has.
    fn there(&self) -> u32 {
        self.idle + self.out + self.closing
    }

    /// How many openers are of use.
    fn wanted(&self) -> u32 {
        if self.closed.is_some() {
            return 0;
        }
        let wanted = self.lines.waiting().max(self.kept.count().saturating_sub(self.idle + self.out));
        wanted.min(self.ceiling.saturating_sub(self.there()))
    }

    fn missing(&mut self) -> Openers {
        let missing = self.wanted().saturating_sub(self.opening);
        self.opening += missing;
        Openers(missing)
    }
}

/// A place in the line of those who wait for a connection. Dropped, it hands on what it was given meanwhile.
#[derive(Debug)]
#[must_use]
pub(super) struct Waiting<'a> {
    supply: &'a Supply,
    class: usize,
    ticket: Option<Ticket>,
}

impl Future for Waiting<'_> {
    /// Whether there is one in bb8 for whoever waited.
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket.take() else { return Poll::Pending };
        let collected = lock(&self.supply.state).lines.collect(self.class, ticket, context.waker());
        match collected {
            Ok(served) => Poll::Ready(served),
            Err((ticket, _before)) => {
                self.ticket = Some(ticket);
                Poll::Pending
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (waker, own) = {
            let mut state = lock(&self.supply.state);
            match state.lines.leave(self.class, ticket) {
                Ok(Ok(())) => {
                    state.classes.leave(self.class);
                    (state.put_back(), None)
                }
                Ok(Err(_)) => return,
                Err(own) => (None, Some(own)),
            }
        };
        if own.is_none() {
            self.supply.after(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::{
        super::classes::{DEFAULT, SYSTEM},
        *,
    };
    use crate::ErrorKind;

    /// A class that is sure of two.
    const SURE: usize = 2;

    fn holder() -> Holder {
        holder_of(DEFAULT)
    }

    fn holder_of(class: usize) -> Holder {
        Holder { since: Instant::default(), place: Location::caller(), class, was_told: false }
    }

    fn supply(ceiling: u32, kept: u32) -> Supply {
        Supply::new(ceiling, kept, [Share::new(), Share::new(), Share::new().guarantee(2)])
    }

    fn poll(waiting: &mut Waiting<'_>) -> Poll<Result<(), ErrorKind>> {
        let polled = Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()));
        polled.map_err(|error| error.kind())
    }

    #[test]
    fn there_are_as_many_openers_as_waiters_and_no_more_than_there_is_room() {
        let supply = supply(2, 0);
        let (_one, openers) = supply.line_up(DEFAULT, End::Back);
        assert_eq!(openers, Openers(1));
        let (two, openers) = supply.line_up(DEFAULT, End::Back);
        assert_eq!(openers, Openers(1));
        let (_three, openers) = supply.line_up(DEFAULT, End::Back);
        assert_eq!(openers, Openers(0));
        supply.opened();
        assert!(!supply.is_superfluous());
        // Nobody but the third waits, and one can be opened.
        drop(two);
        assert!(!supply.is_superfluous());
        supply.opened();
        assert_eq!(supply.count(), Count { out: 2, ..Count::default() });
    }

    #[test]
    fn opener_is_superfluous_when_what_was_returned_came_sooner() {
        let supply = supply(4, 0);
        let (mut first, _) = supply.line_up(DEFAULT, End::Back);
        supply.opened();
        assert_eq!(poll(&mut first), Poll::Ready(Ok(())));
        let slot = supply.hold(holder());
        let (mut second, openers) = supply.line_up(DEFAULT, End::Back);
        assert_eq!(openers, Openers(1));
        supply.put_back(slot);
        assert!(supply.is_superfluous());
        assert_eq!(poll(&mut second), Poll::Ready(Ok(())));
        assert_eq!(supply.count(), Count { out: 1, ..Count::default() });
    }

    #[test]
    fn failure_is_told_only_where_nothing_may_come_back() {
        let error = Error::new(ErrorKind::Unavailable, "as the test wants it");
        let supply = supply(4, 0);
        let (mut first, _) = supply.line_up(DEFAULT, End::Back);
        let (mut second, _) = supply.line_up(DEFAULT, End::Back);
        let at = Instant::default();
        let failed = |tell_all| supply.failed(&error, tell_all, Duration::from_secs(30), at);
        failed(false);
        assert_eq!(poll(&mut first), Poll::Ready(Err(ErrorKind::Unavailable)));
        assert!(poll(&mut second).is_pending());
        supply.opened();
        let (mut third, _) = supply.line_up(DEFAULT, End::Back);
        failed(true);
        assert!(poll(&mut third).is_pending());
        assert_eq!(poll(&mut second), Poll::Ready(Ok(())));
        let _slot = supply.hold(holder());
        let patience = Duration::from_secs(30);
        for (seconds, is_hoped_for) in [(29, true), (30, false)] {
            let now = at.after(Duration::from_secs(seconds));
            assert_eq!(supply.has_hope(patience, now), is_hoped_for);
            supply.failed(&error, false, patience, now);
            assert_eq!(poll(&mut third).is_pending(), is_hoped_for, "held for {seconds} s");
        }
    }

    #[test]
    fn nobody_waits_once_it_is_closed() {
        let supply = supply(2, 1);
        let (mut before, _) = supply.line_up(DEFAULT, End::Back);
        supply.close(&Error::new(ErrorKind::Closed, "as the test wants it"));
        let (mut after, openers) = supply.line_up(DEFAULT, End::Back);
        assert_eq!(openers, Openers(0));
        for waiting in [&mut before, &mut after] {
            assert_eq!(poll(waiting), Poll::Ready(Err(ErrorKind::Closed)));
        }
        assert!(!supply.admit(), "what was being opened for the first");
        assert_eq!(supply.count(), Count { closing: 1, ..Count::default() });
    }

    /// Who was served, and did not know yet.
    fn next(line: &mut [Waiting<'_>]) -> Option<usize> {
        line.iter_mut().position(|waiting| waiting.ticket.is_some() && poll(waiting).is_ready())
    }

    fn in_use(supply: &Supply) -> [u32; 3] {
        let state = lock(&supply.state);
        [SYSTEM, DEFAULT, SURE].map(|class| state.classes.in_use(class))
    }

    #[test]
    fn classes_are_served_in_the_order_of_the_gate() {
        let supply = supply(3, 0);
        let out: Vec<Slot> = (0..3)
            .map(|_| {
                let (mut waiting, _) = supply.line_up(DEFAULT, End::Back);
                supply.opened();
                assert_eq!(poll(&mut waiting), Poll::Ready(Ok(())));
                supply.hold(holder())
            })
            .collect();
        let mut line =
            [DEFAULT, DEFAULT, SURE, SURE, SURE, SYSTEM].map(|class| supply.line_up(class, End::Back).0);
        let mut served = Vec::new();
        for slot in out {
            supply.put_back(slot);
            served.push(next(&mut line).unwrap());
        }
        assert_eq!((served, in_use(&supply)), (vec![5, 2, 3], [1, 0, 2]), "what it is sure of");
        drop(line);
        assert_eq!(supply.count(), Count { out: 3, ..Count::default() });
    }

    #[test]
    fn one_connection_at_least_is_for_everybody() {
        let supply = supply(4, 0);
        let mut line = [SURE, SURE, SURE, DEFAULT].map(|class| supply.line_up(class, End::Back).0);
        supply.opened();
        let mut served = Vec::new();
        for _ in 0..3 {
            let index = next(&mut line).unwrap();
            served.push(index);
            let slot = supply.hold(holder_of(line[index].class));
            supply.put_back(slot);
        }
        assert!(served.contains(&3), "a class that is sure of two has the only one: {served:?}");
    }

    #[test]
    fn waiter_that_was_served_and_goes_away_hands_on_the_connection() {
        let supply = supply(1, 0);
        let (first, _) = supply.line_up(DEFAULT, End::Back);
        let (mut second, _) = supply.line_up(DEFAULT, End::Back);
        supply.opened();
        drop(first);
        assert_eq!(poll(&mut second), Poll::Ready(Ok(())));
        drop(second);
        assert_eq!(supply.count().out, 1, "who was told has it");
        let (third, _) = supply.line_up(DEFAULT, End::Back);
        supply.looked_at();
        drop(third);
        assert_eq!(supply.count(), Count { idle: 1, ..Count::default() });
    }
}

#[cfg(all(test, mcp_perf_loom))]
mod model {
    use std::panic::Location;

    use super::{
        super::classes::{DEFAULT, SYSTEM},
        *,
    };
    use crate::model::{block_on, poll_once};

    fn holder(class: usize) -> Holder {
        Holder { since: Instant::default(), place: Location::caller(), class, was_told: false }
    }

    fn supply(ceiling: u32, kept: u32) -> Supply {
        Supply::new(ceiling, kept, [Share::new(), Share::new()])
    }

    fn get(supply: &Supply, class: usize) -> Slot {
        supply.take(holder(class)).unwrap_or_else(|| {
            block_on(supply.line_up(class, End::Back).0).unwrap();
            supply.hold(holder(class))
        })
    }

    #[test]
    fn no_interleaving_leaves_a_waiter_behind_when_the_supply_closes() {
        loom::model(|| {
            let supply = loom::sync::Arc::new(supply(1, 0));
            let waiter = {
                let supply = supply.clone();
                loom::thread::spawn(move || block_on(supply.line_up(DEFAULT, End::Back).0).is_err())
            };
            supply.close(&Error::new(crate::ErrorKind::Closed, "as the model wants it"));
            assert!(waiter.join().unwrap());
        });
    }

    /// One connection, room for no other, and three of two classes who want it, one of whom goes away.
    #[test]
    fn no_interleaving_loses_a_connection_that_is_returned() {
        loom::model(|| {
            let supply = loom::sync::Arc::new(supply(1, 0));
            let (first, _) = supply.line_up(DEFAULT, End::Back);
            supply.opened();
            block_on(first).unwrap();
            let slot = supply.hold(holder(DEFAULT));
            let patient = {
                let supply = supply.clone();
                loom::thread::spawn(move || {
                    let slot = get(&supply, SYSTEM);
                    supply.put_back(slot);
                })
            };
            let impatient = {
                let supply = supply.clone();
                loom::thread::spawn(move || {
                    if poll_once(supply.line_up(DEFAULT, End::Back).0).is_ready() {
                        let slot = supply.hold(holder(DEFAULT));
                        supply.put_back(slot);
                    }
                })
            };
            supply.put_back(slot);
            patient.join().unwrap();
            impatient.join().unwrap();
            assert_eq!(supply.count(), Count { idle: 1, ..Count::default() });
            let state = lock(&supply.state);
            assert_eq!([SYSTEM, DEFAULT].map(|class| state.classes.in_use(class)), [0, 0]);
        });
    }
}
