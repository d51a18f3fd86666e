//! Permits, handed out strictly in turn, of which there may be more or fewer at any time.
//!
//! bb8 has one notification for everybody who waits: whoever comes by at the right moment is faster than whoever was
//! woken, and a caller in a tight loop starves the others until they time out. So callers pass this gate first. A
//! permit that is returned is handed to whoever waits longest while it is returned, and newcomers never pass those
//! who wait.
//!
//! The number of permits changes at once: more are there at once; fewer means that what is in use above the target, the
//! *debt*, is paid by the next returns. (A semaphore's permits can only be forgotten while they are free, and a pool
//! that shrinks is busy. Paid at acquisition instead, debt would delay somebody who waits.)
//!
//! [Classes](super::classes) say who may have a permit that is free, and [lines](super::lines) who of them has it. One
//! caller of the system's class may have one more than there are, where that is allowed: whoever is to find out why
//! nobody gets a permit has to get one.
//!
//! All of it is one small state behind a lock that is held for some ten nanoseconds. Time is read outside.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use super::{
    classes::{Classes, SYSTEM, Share},
    lines::Lines,
    queue::{End, Ticket},
    sizing::Retreat,
    usage::{Level, Usage, Window},
};
use crate::{
    clock::{Clock, Instant},
    sync::{Mutex, lock},
};

pub(super) struct Gate {
    state: Mutex<State>,
    clock: Clock,
}

struct State {
    target: u32,
    /// How many may be in use with the system's: now, and ever. Never mind if that is less than the target.
    most: u32,
    most_ever: u32,
    /// Whether the system has one more than there are.
    has_one_more: bool,
    /// When and to what it goes back by itself.
    retreat: Option<Retreat>,
    /// Whether it did since this was last asked.
    has_retreated: bool,
    in_use: u32,
    /// How many may wait, and as many more of the system's class: what keeps others out must not keep out whoever is to
    /// find out why.
    room: u32,
    is_closed: bool,
    classes: Classes,
    lines: Lines<Served>,
    usage: Usage,
}

/// How somebody's wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Permit,
    Closed,
}

/// Why somebody gets no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    Closed,
    /// As many wait as may.
    Full,
    /// None is free for this class; only [`Gate::try_acquire`] says so.
    Taken,
}

impl Gate {
    /// With `target` permits, for at most `room` waiters.
    pub(super) fn new(target: u32, room: u32, shares: impl IntoIterator<Item = Share>, clock: Clock) -> Self {
        let classes = Classes::new(shares, target);
        let lines = Lines::new(&classes);
        let usage = Usage::new(clock.now());
        let state = State {
            target,
            most: 0,
            most_ever: 0,
            has_one_more: false,
            retreat: None,
            has_retreated: false,
            in_use: 0,
            room,
            is_closed: false,
            classes,
            lines,
            usage,
        };
        Self { state: Mutex::new(state), clock }
    }

    /// With one permit more for the system's class, within this bound.
    pub(super) fn up_to(self, most: u32) -> Self {
        {
            let mut state = lock(&self.state);
            (state.most, state.most_ever) = (most, most);
        }
        self
    }

    /// A permit, if one is free for this class.
    #[inline]
    pub(super) fn try_acquire(&self, class: usize, now: Instant) -> Result<Permit<'_>, Denied> {
        lock(&self.state).enter(class, now)?;
        Ok(Permit { gate: self, class })
    }

    /// Waits for a permit. Dropped, it leaves the line, and hands on a permit that it was given meanwhile.
    pub(super) fn acquire(&self, class: usize) -> Acquire<'_> {
        Acquire { gate: self, class, ticket: None }
    }

    /// Takes back a permit that was [forgotten](Permit::forget).
    #[inline]
    pub(super) fn release(&self, class: usize, now: Instant) {
        let waker = lock(&self.state).release(class, now);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Has so many permits from now on, or until it is time to retreat.
    pub(super) fn set_target(&self, target: u32, retreat: Option<Retreat>, now: Instant) {
        let wakers = {
            let mut state = lock(&self.state);
            state.retreat = retreat.map(|retreat| state.within_reach(retreat));
            state.set_target(target, now)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Stays as it is.
    pub(super) fn forget_retreat(&self) {
        lock(&self.state).retreat = None;
    }

    /// Whether it went back by itself since this was last asked.
    pub(super) fn has_retreated(&self) -> bool {
        std::mem::take(&mut lock(&self.state).has_retreated)
    }

    /// Has so many permits at most, after a retreat and for the system, too.
    pub(super) fn keep_within(&self, most: u32, now: Instant) {
        let wakers = {
            let mut state = lock(&self.state);
            state.most = most.min(state.most_ever);
            if let Some(retreat) = &mut state.retreat {
                retreat.target = retreat.target.min(most);
            }
            // Whoever of the system waits may have one now.
            let target = state.target.min(most);
            state.set_target(target, now)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How many permits there may be without anybody saying so: after a retreat, and with the one more of the system class.
    pub(super) fn most(&self) -> u32 {
        let state = lock(&self.state);
        let most = state.retreat.map_or(state.target, |retreat| retreat.target.max(state.target));
        most + u32::from(state.has_one_more)
    }

    /// Lets nobody in any more, and sends away those who wait.
    pub(super) fn close(&self) {
        let wakers = {
            let mut state = lock(&self.state);
            state.is_closed = true;
            state.lines.serve_all(|| Served::Closed)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }

    pub(super) fn level(&self) -> Level {
        lock(&self.state).level()
    }

    /// How many wait who would be served if there were more permits.
    pub(super) fn waiting_for_more(&self) -> u32 {
        lock(&self.state).waiting_for_more()
    }

    /// Whether this class will have as many as it may by those of it who wait, so that who comes waits for its own.
    pub(super) fn is_held_up(&self, class: usize) -> bool {
        lock(&self.state).is_held_up(class)
    }

    /// How many are in use above the target after it fell.
    pub(super) fn debt(&self) -> u32 {
        let Level { in_use, target, .. } = lock(&self.state).judged();
        in_use.saturating_sub(target)
    }

    /// How the permits were used since this was last asked.
    pub(super) fn window(&self, now: Instant) -> Window {
        let mut state = lock(&self.state);
        let level = state.judged();
        state.usage.take(level, now)
    }

    /// How many permits each class has, and how many of it wait.
    pub(super) fn by_class(&self) -> Vec<(u32, u32)> {
        let state = lock(&self.state);
        let lines = state.lines.by_class().enumerate();
        lines.map(|(class, waiting)| (state.classes.in_use(class), waiting)).collect()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("level", &self.level()).finish_non_exhaustive()
    }
}

impl State {
    fn level(&self) -> Level {
        Level { in_use: self.in_use, target: self.target, waiting: self.lines.waiting(), kept: 0 }
    }

    /// What the size is to be judged by: without the one that the system has beside the target, and with what is kept
    /// from those who wait.
    fn judged(&self) -> Level {
        let Level { in_use, target, .. } = self.level();
        let beside = self.has_one_more && in_use > target;
        let free = target.saturating_sub(in_use);
        let waiting = self.waiting_for_more();
        let kept = if waiting > 0 { free } else { 0 };
        Level { in_use: in_use - u32::from(beside), target, waiting, kept }
    }

    /// How many wait who would be served if there were more. Those who wait for their own class to give one back would
    /// not.
    #[inline]
    fn waiting_for_more(&self) -> u32 {
        if self.lines.waiting() == 0 {
            return 0;
        }
        let waiting = self.lines.by_class().enumerate();
        waiting.map(|(class, waiting)| waiting.min(self.classes.may_have(class))).sum()
    }

    /// Whether who comes to wait would wait for the own class to give one back.
    fn is_held_up(&self, class: usize) -> bool {
        let may_have = self.classes.may_have(class);
        may_have == 0 || self.lines.by_class().nth(class).is_some_and(|waiting| waiting >= may_have)
    }

    /// How many wait for their own class to give one back.
    fn held_up(&self) -> u32 {
        self.lines.waiting() - self.waiting_for_more()
    }

    fn set_target(&mut self, target: u32, now: Instant) -> Vec<Waker> {
        self.usage.count(self.judged(), now);
        self.target = target;
        self.classes.scale(target);
        let wakers: Vec<Waker> = std::iter::from_fn(|| self.serve_next()).collect();
        self.usage.note(self.judged());
        wakers
    }

    /// Goes back to where there were more permits if too many wait.
    fn retreat(&mut self, now: Instant) -> Vec<Waker> {
        let waiting = self.waiting_for_more();
        match self.retreat.take_if(|retreat| waiting > retreat.waiting) {
            Some(retreat) => {
                self.has_retreated = true;
                self.set_target(retreat.target.max(self.target), now)
            }
            None => Vec::new(),
        }
    }

    /// Before the line is full and callers are turned away, unless it is about to be without any retreat.
    fn within_reach(&self, mut retreat: Retreat) -> Retreat {
        if self.lines.waiting() <= self.room / 2 {
            let room = self.room.saturating_sub(self.held_up());
            retreat.waiting = retreat.waiting.min(room.saturating_sub(1));
        }
        retreat
    }

    #[inline]
    fn enter(&mut self, class: usize, now: Instant) -> Result<(), Denied> {
        if self.is_closed {
            return Err(Denied::Closed);
        }
        // What is free is free because nobody who waits may have it, so a newcomer who may is ahead of nobody.
        if !self.classes.may_enter(class, self.free()) {
            if class != SYSTEM || !self.may_have_one_more() {
                return Err(Denied::Taken);
            }
            self.has_one_more = true;
        }
        self.usage.count(self.judged(), now);
        self.take(class);
        self.usage.note(self.judged());
        Ok(())
    }

    fn join(&mut self, class: usize, waker: &Waker, now: Instant) -> Result<Ticket, Denied> {
        // Those whom their own class holds up leave room for the others, who may be served before them.
        let are_many = || self.held_up() >= (self.room / 2).max(1);
        if self.lines.waiting_beside(class) >= self.room || self.is_held_up(class) && are_many() {
            return Err(Denied::Full);
        }
        self.usage.count(self.judged(), now);
        let ticket = self.lines.join(class, End::Back, waker.clone());
        self.usage.note(self.judged());
        Ok(ticket)
    }

    #[inline]
    fn release(&mut self, class: usize, now: Instant) -> Option<Waker> {
        self.usage.count(self.judged(), now);
        self.in_use -= 1;
        self.classes.leave(class);
        self.has_one_more &= self.classes.in_use(SYSTEM) > 0;
        // One permit more is free, so one more may enter: whoever of the others may, could have before.
        self.serve_next()
    }

    /// What is free for everybody: what the system has beside the target is not taken from that.
    fn free(&self) -> u32 {
        let beside = self.target.saturating_add(u32::from(self.has_one_more)).min(self.most);
        self.target.max(beside).saturating_sub(self.in_use)
    }

    /// Whether the system may have one more than there are.
    #[inline]
    fn may_have_one_more(&self) -> bool {
        self.target.max(self.in_use) < self.most && self.classes.in_use(SYSTEM) == 0
    }

    fn take(&mut self, class: usize) {
        self.in_use += 1;
        self.classes.enter(class);
    }

    /// Hands a permit to whoever is next, if there is one for them.
    fn serve_next(&mut self) -> Option<Waker> {
        let (free, is_one_more) = (self.free(), self.may_have_one_more());
        if self.lines.waiting() == 0 || (free == 0 && !is_one_more) {
            return None;
        }
        let may = |class| self.classes.may_enter(class, free) || (class == SYSTEM && is_one_more);
        let (class, waker) = self.lines.serve(Served::Permit, &self.classes, may)?;
        self.has_one_more |= class == SYSTEM && !self.classes.may_enter(class, free);
        self.take(class);
        Some(waker)
    }
}

/// Somebody's permit; returned when dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Permit<'a> {
    gate: &'a Gate,
    class: usize,
}

impl Permit<'_> {
    /// Leaves it to the caller to [release](Gate::release) it.
    #[inline]
    pub(super) fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.gate.release(self.class, self.gate.clock.now());
    }
}

/// The future of [`Gate::acquire`].
#[derive(Debug)]
#[must_use]
pub(super) struct Acquire<'a> {
    gate: &'a Gate,
    class: usize,
    ticket: Option<Ticket>,
}

impl<'a> Future for Acquire<'a> {
    type Output = Result<Permit<'a>, Denied>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (gate, class) = (self.gate, self.class);
        let mut state = lock(&gate.state);
        let mut wakers = Vec::new();
        let mut before = None;
        let served = match self.ticket.take() {
            Some(ticket) => state.lines.collect(class, ticket, context.waker()).map_err(|(ticket, waker)| {
                before = waker;
                ticket
            }),
            None => {
                let now = gate.clock.now();
                match state.enter(class, now) {
                    Ok(()) => Ok(Served::Permit),
                    Err(Denied::Taken) => match state.join(class, context.waker(), now) {
                        Ok(ticket) => {
                            wakers = state.retreat(now);
                            Err(ticket)
                        }
                        Err(denied) => return Poll::Ready(Err(denied)),
                    },
                    Err(denied) => return Poll::Ready(Err(denied)),
                }
            }
        };
        match served {
            Ok(Served::Permit) => Poll::Ready(Ok(Permit { gate, class })),
            Ok(Served::Closed) => Poll::Ready(Err(Denied::Closed)),
            Err(ticket) => {
                drop(state);
                drop(before);
                self.ticket = Some(ticket);
                // One of them may be the caller's own.
                wakers.into_iter().for_each(Waker::wake);
                Poll::Pending
            }
        }
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let now = self.gate.clock.now();
        let (waker, _own) = {
            let mut state = lock(&self.gate.state);
            let level = state.judged();
            match state.lines.leave(self.class, ticket) {
                Ok(Served::Permit) => (state.release(self.class, now), None),
                Ok(Served::Closed) => (None, None),
                Err(own) => {
                    state.usage.count(level, now);
                    (None, own)
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;

#[cfg(all(test, mcp_perf_loom))]
mod model {
    use super::*;
    use crate::model::{block_on, poll_once};

    fn gate(target: u32) -> loom::sync::Arc<Gate> {
        loom::sync::Arc::new(Gate::new(target, 8, [Share::new(), Share::new()], Clock::manual()))
    }

    /// All interleavings of three threads in which none is interrupted more than three times.
    fn bounded(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    fn at_rest(gate: &Gate) {
        let level = gate.level();
        assert_eq!((level.in_use, level.waiting), (0, 0));
        assert!(gate.try_acquire(1, Instant::default()).is_ok(), "a permit was lost");
    }

    #[test]
    fn no_interleaving_loses_a_wake_up_or_a_permit() {
        bounded(|| {
            let gate = gate(1);
            let threads: Vec<_> = (0..2)
                .map(|class| {
                    let gate = gate.clone();
                    loom::thread::spawn(move || drop(block_on(gate.acquire(class)).unwrap()))
                })
                .collect();
            drop(block_on(gate.acquire(1)).unwrap());
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            at_rest(&gate);
        });
    }

    /// Whoever gives up while being handed a permit hands it on.
    #[test]
    fn no_interleaving_loses_the_permit_of_a_caller_that_goes_away() {
        loom::model(|| {
            let gate = gate(1);
            let held = gate.try_acquire(1, Instant::default()).unwrap();
            let impatient = {
                let gate = gate.clone();
                loom::thread::spawn(move || drop(poll_once(gate.acquire(1))))
            };
            let patient = {
                let gate = gate.clone();
                loom::thread::spawn(move || drop(block_on(gate.acquire(1)).unwrap()))
            };
            drop(held);
            impatient.join().unwrap();
            patient.join().unwrap();
            at_rest(&gate);
        });
    }

    /// From two to one and back, while both permits come and go.
    #[test]
    fn no_interleaving_of_a_resize_breaks_the_target() {
        bounded(|| {
            let gate = gate(2);
            let in_use = loom::sync::Arc::new(loom::sync::atomic::AtomicU32::new(0));
            let caller = {
                let (gate, in_use) = (gate.clone(), in_use.clone());
                loom::thread::spawn(move || {
                    let permit = block_on(gate.acquire(1)).unwrap();
                    assert!(in_use.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2);
                    in_use.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(permit);
                })
            };
            let resizer = {
                let gate = gate.clone();
                loom::thread::spawn(move || {
                    gate.set_target(0, None, Instant::default());
                    gate.set_target(1, None, Instant::default());
                })
            };
            drop(block_on(gate.acquire(1)).unwrap());
            caller.join().unwrap();
            resizer.join().unwrap();
            at_rest(&gate);
            assert_eq!(gate.level().target, 1);
        });
    }

    #[test]
    fn no_interleaving_leaves_a_waiter_behind_when_the_gate_closes() {
        loom::model(|| {
            let gate = gate(0);
            let waiter = {
                let gate = gate.clone();
                loom::thread::spawn(move || block_on(gate.acquire(1)).map(drop))
            };
            gate.close();
            assert_eq!(waiter.join().unwrap(), Err(Denied::Closed));
        });
    }
}
