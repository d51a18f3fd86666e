//! Who drives a connection: the caller that waits for an answer, or a task if nobody does.
//!
//! The driver comes in two halves. One takes questions and hands out answers; the other carries both over the wire, and
//! has to be polled by somebody. Left to a task, as is usual, every question wakes the task and every answer is
//! handed from the task to the caller, often from one thread to another, which on a fast network costs about as much
//! as the trip. So a caller that is alone on its connection takes the *wheel*: it polls that half itself, in the
//! middle of waiting for its own answer. Whatever is due for the connection wakes whoever has the wheel.
//!
//! A caller may stop polling without going away: what `select!` keeps for later, what a busy stream of futures has not
//! come to yet. Nobody else may depend on it then, so as soon as somebody else asks on the same connection the
//! task drives again, for as long as there is more than one. The same holds once the driver's own client was
//! handed out, of whose use nothing is known, until the connection is returned.
//!
//! While a caller has the wheel and is not polled, nobody hears what the server says on that connection, its end
//! neither. Only that caller waits for it then.
//!
//! Wakers are called while the half is locked, as the half itself calls them: one that polls in the middle of being
//! woken would wait for itself. Those of tokio and of the usual executors do not.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use tokio::task::coop::has_budget_remaining;

use crate::sync::{Mutex, lock};

/// How often a caller does what is due, or looks for its answer, within one poll. What is due then is done in the next
/// one, after others had their turn.
const MOST_ROUNDS: u32 = 16;

/// The half of a connection that has to be driven.
pub(crate) trait Drive: Send + 'static {
    /// Why it ended.
    type Ended: Send + 'static;

    /// Does what is due; ready when it has ended, after which it is not polled again.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Self::Ended>;
}

/// The wheel of one connection.
pub(crate) struct Wheel<D: Drive> {
    shared: Arc<Shared<D>>,
    /// Woken when something is due for the connection.
    due: Waker,
    /// Woken when the caller at the wheel is answered.
    answered: Waker,
}

struct Shared<D: Drive> {
    half: Mutex<Half<D>>,
    seat: Mutex<Seat>,
}

struct Half<D: Drive> {
    going: Option<D>,
    ended: Option<D::Ended>,
}

struct Seat {
    who: Who,
    /// Something is due for the connection, and whoever has the wheel has not begun with it. Whoever drives takes the
    /// mark away first.
    is_due: bool,
    /// The caller at the wheel was answered since it last looked.
    is_answered: bool,
    is_barred: bool,
    /// Counts callers that took the wheel.
    turn: u64,
    task: Option<Waker>,
}

/// Who has the wheel.
enum Who {
    Task,
    /// A caller that sleeps.
    Asleep(Waker),
    /// A caller that is being polled, or is about to be.
    Awake,
}

/// What a caller with the wheel does next.
enum Next {
    Drive,
    Look,
    Sleep,
    /// It has the wheel no longer.
    Lost,
}

impl<D: Drive> Wheel<D> {
    /// The future is the task.
    pub(crate) fn new(half: D) -> (Self, impl Future<Output = Option<D::Ended>> + Send + use<D>) {
        let shared = Arc::new(Shared {
            half: Mutex::new(Half { going: Some(half), ended: None }),
            seat: Mutex::new(Seat {
                who: Who::Task,
                is_due: true,
                is_answered: false,
                is_barred: false,
                turn: 0,
                task: None,
            }),
        });
        let due = Waker::from(Arc::new(Due(Arc::clone(&shared))));
        let answered = Waker::from(Arc::new(Answered(Arc::clone(&shared))));
        let task = Task(Arc::clone(&shared));
        let wheel = Self { shared, due: due.clone(), answered };
        (wheel, async move {
            let task = task; // the whole of it, which hangs up when the runtime drops it
            poll_fn(|context| task.poll(context, &due)).await
        })
    }

    /// Waits for an answer. `is_alone` says whether nobody else waits on this connection; who comes later is to call
    /// [`share`](Self::share).
    pub(crate) async fn carry<F: Future>(&self, is_alone: impl Fn() -> bool, answer: F) -> F::Output {
        let mut answer = pin!(answer);
        let mut hands = Hands { wheel: self, turn: self.shared.take(is_alone) };
        poll_fn(|context| hands.poll(answer.as_mut(), context)).await
    }

    /// Leaves the wheel to the task: somebody else has come.
    #[cold]
    pub(crate) fn share(&self) {
        self.shared.leave_to_task(false);
    }
}

/// For connections whose own client is handed out, and that may have to go at once.
#[cfg(any(test, feature = "postgres"))]
impl<D: Drive> Wheel<D> {
    /// Leaves the wheel to the task until it is [free](Self::free) again.
    pub(crate) fn bar(&self) {
        self.shared.leave_to_task(true);
    }

    /// Callers may take the wheel again.
    pub(crate) fn free(&self) {
        lock(&self.shared.seat).is_barred = false;
    }

    /// Hangs up at once, whatever is under way.
    pub(crate) fn hang_up(&self) {
        self.shared.hang_up();
    }

    /// The same, for later.
    pub(crate) fn hanging_up(&self) -> impl FnOnce() + Send + use<D> {
        let shared = Arc::clone(&self.shared);
        move || shared.hang_up()
    }
}

impl<D: Drive> Shared<D> {
    /// Which turn it is, if the wheel is the caller's now.
    fn take(&self, is_alone: impl Fn() -> bool) -> Option<u64> {
        let mut seat = lock(&self.seat);
        // In the lock: whoever comes after this look finds a caller at the wheel.
        if seat.is_barred || !is_alone() || !matches!(seat.who, Who::Task) {
            return None;
        }
        seat.who = Who::Awake;
        seat.is_answered = false;
        seat.turn += 1;
        Some(seat.turn)
    }

    /// `waker` is the caller's, who sleeps if there is nothing to do.
    fn next(&self, turn: u64, waker: &Waker, is_first: bool) -> Next {
        // Dropped outside the lock: a waker may own a task, and its end may come here.
        let (next, _before) = {
            let mut seat = lock(&self.seat);
            if !seat.is_of(turn) {
                return Next::Lost;
            }
            let (next, who) = if std::mem::take(&mut seat.is_answered) {
                (Next::Look, Who::Awake)
            } else if std::mem::take(&mut seat.is_due) {
                (Next::Drive, Who::Awake)
            } else if is_first {
                (Next::Look, Who::Awake)
            } else {
                (Next::Sleep, Who::Asleep(waker.clone()))
            };
            (next, std::mem::replace(&mut seat.who, who))
        };
        next
    }

    /// The caller at the wheel has gone.
    fn leave(&self, turn: u64) {
        // A caller that panics may have done so in the middle of what was due. And where the runtime has put off what
        // was due, because the caller's task had its share of time, it may forget it with the caller.
        let in_the_middle = std::thread::panicking() || !has_budget_remaining();
        let (waker, _before) = {
            let mut seat = lock(&self.seat);
            if !seat.is_of(turn) {
                return;
            }
            let before = std::mem::replace(&mut seat.who, Who::Task);
            let is_due = seat.is_due || in_the_middle;
            (seat.task.clone().filter(|_| is_due), before)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn leave_to_task(&self, for_long: bool) {
        let wakers = {
            let mut seat = lock(&self.seat);
            seat.is_barred |= for_long;
            match std::mem::replace(&mut seat.who, Who::Task) {
                Who::Task => return,
                Who::Awake => [None, seat.task.clone()],
                // It waits for its answer itself from now on.
                Who::Asleep(waker) => [Some(waker), seat.task.clone()],
            }
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn drive(&self, due: &Waker) {
        let mut half = lock(&self.half);
        // Out of its place: should it panic, nobody polls it again.
        let Some(mut going) = half.going.take() else { return };
        match going.poll(&mut Context::from_waker(due)) {
            Poll::Pending => half.going = Some(going),
            Poll::Ready(ended) => {
                half.ended = Some(ended);
                drop(half);
                drop(going);
                self.wake_task();
            }
        }
    }

    fn hang_up(&self) {
        let going = lock(&self.half).going.take();
        drop(going);
        self.wake_task();
    }

    fn wake_task(&self) {
        self.wake(|seat| seat.task.clone());
    }

    /// Wakes somebody outside the lock.
    fn wake(&self, whom: impl FnOnce(&mut Seat) -> Option<Waker>) {
        let waker = whom(&mut lock(&self.seat));
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A caller's hands, on the wheel or off it.
struct Hands<'a, D: Drive> {
    wheel: &'a Wheel<D>,
    turn: Option<u64>,
}

impl<D: Drive> Hands<'_, D> {
    fn poll<F: Future>(&mut self, mut answer: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Wheel { shared, due, answered } = self.wheel;
        let mut look = || answer.as_mut().poll(&mut Context::from_waker(answered));
        // Whatever woke the caller, its answer is looked at once, after what was due.
        let mut has_looked = false;
        for _ in 0..MOST_ROUNDS {
            let Some(turn) = self.turn else { return answer.as_mut().poll(context) };
            match shared.next(turn, context.waker(), !has_looked) {
                Next::Sleep => return Poll::Pending,
                Next::Drive => shared.drive(due),
                Next::Look => {
                    has_looked = true;
                    if let Poll::Ready(output) = look() {
                        return Poll::Ready(output);
                    }
                }
                Next::Lost => {
                    self.turn = None;
                    return answer.poll(context);
                }
            }
        }
        if !has_looked && let Poll::Ready(output) = look() {
            return Poll::Ready(output);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<D: Drive> Drop for Hands<'_, D> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn {
            self.wheel.shared.leave(turn);
        }
    }
}

/// The task. Dropped before the end, as a runtime does that shuts down, it hangs up.
struct Task<D: Drive>(Arc<Shared<D>>);

impl<D: Drive> Task<D> {
    /// Ready when the connection has ended; `None` if it was hung up on.
    fn poll(&self, context: &mut Context<'_>, due: &Waker) -> Poll<Option<D::Ended>> {
        let shared = &*self.0;
        let is_mine = {
            let mut seat = lock(&shared.seat);
            match &mut seat.task {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            let is_mine = matches!(seat.who, Who::Task);
            if is_mine {
                seat.is_due = false;
            }
            is_mine
        };
        if is_mine {
            shared.drive(due);
        }
        let mut half = lock(&shared.half);
        match half.going {
            Some(_) => Poll::Pending,
            None => Poll::Ready(half.ended.take()),
        }
    }
}

impl<D: Drive> Drop for Task<D> {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

struct Due<D: Drive>(Arc<Shared<D>>);

impl<D: Drive> Wake for Due<D> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake(|seat| {
            seat.is_due = true;
            seat.whom_to_wake()
        });
    }
}

struct Answered<D: Drive>(Arc<Shared<D>>);

impl<D: Drive> Wake for Answered<D> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake(|seat| match seat.who {
            // Who lost the wheel was woken then, and looks for itself.
            Who::Task => None,
            Who::Asleep(_) | Who::Awake => {
                seat.is_answered = true;
                seat.whom_to_wake()
            }
        });
    }
}

impl Seat {
    /// Whether the caller of this turn still has the wheel.
    fn is_of(&self, turn: u64) -> bool {
        self.turn == turn && !matches!(self.who, Who::Task)
    }

    fn whom_to_wake(&mut self) -> Option<Waker> {
        match std::mem::replace(&mut self.who, Who::Awake) {
            Who::Task => {
                self.who = Who::Task;
                self.task.clone()
            }
            Who::Asleep(waker) => Some(waker),
            Who::Awake => None,
        }
    }
}

impl<D: Drive> fmt::Debug for Wheel<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match lock(&self.shared.seat).who {
            Who::Task => "task",
            Who::Asleep(_) | Who::Awake => "caller",
        };
        f.debug_struct("Wheel").field("who", &who).finish_non_exhaustive()
    }
}

/// A connection over a wire on which the test is the server.
#[cfg(test)]
mod wire {
    use super::*;

    #[derive(Clone, Default)]
    pub(super) struct Wire(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        asked: u32,
        /// Those on the wire.
        questions: u32,
        answers: u32,
        /// Those that were handed out, and nobody has taken.
        received: u32,
        is_over: bool,
        is_hung_up_on: bool,
        due: Option<Waker>,
        server: Option<Waker>,
        caller: Option<Waker>,
    }

    pub(super) struct Half(Wire);

    impl Wire {
        pub(super) fn half(&self) -> Half {
            Half(self.clone())
        }

        fn with(&self, change: impl FnOnce(&mut State) -> Option<Waker>) {
            let waker = change(&mut lock(&self.0));
            if let Some(waker) = waker {
                waker.wake();
            }
        }

        /// Asks when it is first polled.
        pub(super) async fn ask(&self) {
            self.with(|state| {
                state.asked += 1;
                state.due.take()
            });
            let answered = |context: &mut Context<'_>| {
                let mut state = lock(&self.0);
                if state.received == 0 {
                    state.caller = Some(context.waker().clone());
                    return Poll::Pending;
                }
                state.received -= 1;
                Poll::Ready(())
            };
            poll_fn(answered).await;
        }

        /// Answers one question, as soon as there is one.
        pub(super) async fn serve(&self) {
            let asked = |context: &mut Context<'_>| {
                let mut state = lock(&self.0);
                if state.questions == 0 {
                    state.server = Some(context.waker().clone());
                    return Poll::Pending;
                }
                state.questions -= 1;
                Poll::Ready(())
            };
            poll_fn(asked).await;
            self.with(|state| {
                state.answers += 1;
                state.due.take()
            });
        }

        /// The server ends the connection.
        pub(super) fn end(&self) {
            self.with(|state| {
                state.is_over = true;
                state.due.take()
            });
        }

        pub(super) fn is_hung_up_on(&self) -> bool {
            lock(&self.0).is_hung_up_on
        }
    }

    impl Drive for Half {
        type Ended = u8;

        fn poll(&mut self, context: &mut Context<'_>) -> Poll<u8> {
            let (server, caller, ended) = {
                let mut state = lock(&self.0.0);
                let state = &mut *state;
                state.due = Some(context.waker().clone());
                let asked = std::mem::take(&mut state.asked);
                state.questions += asked;
                let answered = std::mem::take(&mut state.answers);
                state.received += answered;
                let server = state.server.take_if(|_| asked > 0);
                let caller = state.caller.take_if(|_| answered > 0);
                (server, caller, state.is_over)
            };
            server.into_iter().chain(caller).for_each(Waker::wake);
            if ended { Poll::Ready(7) } else { Poll::Pending }
        }
    }

    impl Drop for Half {
        fn drop(&mut self) {
            let mut state = lock(&self.0.0);
            state.is_hung_up_on = true;
            // A socket that is closed forgets whom it was to wake.
            let due = state.due.take();
            drop(state);
            drop(due);
        }
    }
}

#[cfg(all(test, not(mcp_perf_loom)))]
mod tests {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicU32, Ordering},
        task::ready,
    };

    use super::{wire::Wire, *};

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Poller(Arc<Count>);

    impl Poller {
        fn new() -> Self {
            Self(Arc::default())
        }

        fn poll<F: Future>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
            future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(&self.0))))
        }

        /// How often it was woken since this was last asked.
        fn woken(&self) -> u32 {
            self.0.0.swap(0, Ordering::Relaxed)
        }
    }

    #[test]
    fn caller_that_is_alone_drives_and_the_task_is_not_woken() {
        let wire = Wire::default();
        let (wheel, task) = Wheel::new(wire.half());
        let (mut task, mut server) = (pin!(task), pin!(wire.serve()));
        let (background, caller, remote) = (Poller::new(), Poller::new(), Poller::new());
        assert!(background.poll(task.as_mut()).is_pending());
        let mut call = pin!(wheel.carry(|| true, wire.ask()));
        assert!(remote.poll(server.as_mut()).is_pending());
        assert!(caller.poll(call.as_mut()).is_pending());
        assert_eq!(caller.woken(), 0, "it does at once what it could be woken for");
        assert!(remote.poll(server.as_mut()).is_ready());
        assert_eq!(caller.woken(), 1);
        assert!(caller.poll(call.as_mut()).is_ready());
        assert_eq!((caller.woken(), background.woken()), (0, 0));
        wire.end();
        assert_eq!(background.woken(), 1, "nobody else is there to hear it");
        assert_eq!(background.poll(task.as_mut()), Poll::Ready(Some(7)));
        assert!(wire.is_hung_up_on());
    }

    #[test]
    fn caller_that_goes_away_leaves_what_is_due_to_the_task() {
        let wire = Wire::default();
        let (wheel, task) = Wheel::new(wire.half());
        let (mut task, mut call) = (pin!(task), Box::pin(wheel.carry(|| true, wire.ask())));
        let (background, caller) = (Poller::new(), Poller::new());
        assert!(background.poll(task.as_mut()).is_pending());
        assert!(caller.poll(call.as_mut()).is_pending());
        wire.end();
        assert_eq!((caller.woken(), background.woken()), (1, 0));
        drop(call);
        assert_eq!(background.woken(), 1);
        assert_eq!(background.poll(task.as_mut()), Poll::Ready(Some(7)));
    }

    #[test]
    fn nobody_depends_on_a_caller_that_is_not_polled() {
        let wire = Wire::default();
        let (wheel, task) = Wheel::new(wire.half());
        let mut task = pin!(task);
        let (background, idler, busy) = (Poller::new(), Poller::new(), Poller::new());
        assert!(background.poll(task.as_mut()).is_pending());
        let mut idle = pin!(wheel.carry(|| true, wire.ask()));
        assert!(idler.poll(idle.as_mut()).is_pending());
        wheel.share();
        assert_eq!((idler.woken(), background.woken()), (1, 1));
        let mut call = pin!(wheel.carry(|| false, wire.ask()));
        assert!(busy.poll(call.as_mut()).is_pending());
        for _ in 0..2 {
            assert!(background.poll(task.as_mut()).is_pending());
            assert!(busy.poll(pin!(wire.serve())).is_ready());
        }
        assert!(background.poll(task.as_mut()).is_pending());
        assert!(busy.poll(call.as_mut()).is_ready());
        assert!(idler.poll(idle.as_mut()).is_ready());
    }

    #[test]
    fn wheel_that_is_barred_is_the_tasks_until_it_is_free() {
        let wire = Wire::default();
        let (wheel, task) = Wheel::new(wire.half());
        let mut task = pin!(task);
        let (background, caller) = (Poller::new(), Poller::new());
        assert!(background.poll(task.as_mut()).is_pending());
        wheel.bar();
        let mut call = pin!(wheel.carry(|| true, wire.ask()));
        assert!(caller.poll(call.as_mut()).is_pending());
        assert_eq!(background.woken(), 1, "it is due to be sent, by the task");
        wheel.free();
        let mut next = pin!(wheel.carry(|| true, wire.ask()));
        assert!(caller.poll(next.as_mut()).is_pending());
        assert_eq!(background.woken(), 0);
    }

    /// As a socket of tokio does.
    struct Budgeted;

    impl Drive for Budgeted {
        type Ended = ();

        fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
            // More than a task may do at a time; there is no bound outside of one.
            for _ in 0..1_000 {
                ready!(tokio::task::coop::poll_proceed(context)).made_progress();
            }
            Poll::Pending
        }
    }

    #[test]
    fn what_the_runtime_put_off_is_the_tasks_when_the_caller_goes_away() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (wheel, task) = Wheel::new(Budgeted);
        let (mut task, background) = (pin!(task), Poller::new());
        assert!(background.poll(task.as_mut()).is_pending());
        runtime.block_on(async {
            wheel.due.wake_by_ref();
            assert_eq!(background.woken(), 1);
            let caller = Poller::new();
            assert!(caller.poll(pin!(wheel.carry(|| true, std::future::pending::<()>()))).is_pending());
        });
        assert_eq!(background.woken(), 1);
    }

    /// As a socket does where a task has had its share of the processor.
    struct Restless;

    impl Drive for Restless {
        type Ended = ();

        fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    }

    #[test]
    fn caller_lets_others_go_on_when_much_is_due() {
        let (wheel, _task) = Wheel::new(Restless);
        let polls = Cell::new(0);
        let never = poll_fn(|_| {
            polls.set(polls.get() + 1);
            Poll::<()>::Pending
        });
        let (mut call, caller) = (pin!(wheel.carry(|| true, never)), Poller::new());
        assert!(caller.poll(call.as_mut()).is_pending());
        assert_eq!((caller.woken(), polls.get()), (1, 1), "and looks once whether it is answered");
    }

    #[test]
    fn caller_that_sleeps_at_the_wheel_is_told_when_it_is_hung_up_on() {
        for by_the_runtime in [false, true] {
            let (left, hears) = std::sync::mpsc::channel::<()>();
            let (wheel, task) = Wheel::new(Held(left));
            let (mut task, background, caller) = (Box::pin(task), Poller::new(), Poller::new());
            assert!(background.poll(task.as_mut()).is_pending());
            let waker = Arc::new(Mutex::new(None::<Waker>));
            let ends = poll_fn(|context| {
                *lock(&waker) = Some(context.waker().clone());
                match hears.try_recv() {
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            });
            let mut call = pin!(wheel.carry(|| true, ends));
            assert!(caller.poll(call.as_mut()).is_pending());
            if by_the_runtime {
                drop(task);
            } else {
                wheel.hang_up();
            }
            // As a channel does that is dropped with the half.
            lock(&waker).take().unwrap().wake();
            assert_eq!(caller.woken(), 1);
            assert!(caller.poll(call.as_mut()).is_ready());
        }
    }

    struct Held(#[expect(dead_code, reason = "dropped with it")] std::sync::mpsc::Sender<()>);

    impl Drive for Held {
        type Ended = ();

        fn poll(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    #[test]
    fn caller_that_moves_to_another_task_is_woken_there() {
        let wire = Wire::default();
        let (wheel, task) = Wheel::new(wire.half());
        let mut task = pin!(task);
        assert!(Poller::new().poll(task.as_mut()).is_pending());
        let (before, after) = (Poller::new(), Poller::new());
        let mut call = pin!(wheel.carry(|| true, wire.ask()));
        assert!(before.poll(call.as_mut()).is_pending());
        assert!(after.poll(call.as_mut()).is_pending());
        assert!(Poller::new().poll(pin!(wire.serve())).is_ready());
        assert_eq!((before.woken(), after.woken()), (0, 1));
        assert!(after.poll(call.as_mut()).is_ready());
    }

    /// Panics when it is driven by a caller, and not before.
    struct Fragile(bool);

    impl Drive for Fragile {
        type Ended = ();

        fn poll(&mut self, _: &mut Context<'_>) -> Poll<()> {
            assert!(!std::mem::replace(&mut self.0, true), "as the test wants it");
            Poll::Pending
        }
    }

    #[test]
    fn panic_of_the_half_ends_the_connection_and_the_task() {
        let (wheel, task) = Wheel::new(Fragile(false));
        let (mut task, background) = (pin!(task), Poller::new());
        assert!(background.poll(task.as_mut()).is_pending());
        wheel.due.wake_by_ref();
        assert_eq!(background.woken(), 1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = Poller::new().poll(pin!(wheel.carry(|| true, std::future::pending::<()>())));
        }));
        assert!(panicked.is_err());
        assert_eq!(background.woken(), 1);
        assert_eq!(background.poll(task.as_mut()), Poll::Ready(None));
    }

    #[test]
    fn runtime_that_goes_away_hangs_up_and_nothing_stays() {
        let wire = Wire::default();
        let (wheel, task) = Wheel::new(wire.half());
        let mut task = Box::pin(task);
        assert!(Poller::new().poll(task.as_mut()).is_pending());
        let shared = Arc::downgrade(&wheel.shared);
        drop(task);
        assert!(wire.is_hung_up_on());
        drop(wheel);
        assert_eq!(shared.strong_count(), 0, "it holds itself");
    }
}

#[cfg(all(test, mcp_perf_loom))]
mod model {
    use loom::sync::atomic::{AtomicU32, Ordering};

    use super::{wire::Wire, *};
    use crate::model::{block_on, poll_once};

    fn bounded(model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(model);
    }

    /// Questions that are answered as soon as the half is driven.
    #[derive(Clone, Default)]
    struct Asked(Arc<Mutex<Questions>>);

    #[derive(Default)]
    struct Questions {
        open: Vec<Question>,
        due: Option<Waker>,
        is_over: bool,
    }

    type Question = Arc<Mutex<Option<Waker>>>;

    struct Echo(Asked);

    impl Asked {
        async fn ask(&self) {
            let mut question: Option<Question> = None;
            poll_fn(|context| match &question {
                // The one that is held here, and nobody else's: it was answered.
                Some(question) if Arc::strong_count(question) == 1 => Poll::Ready(()),
                Some(question) => {
                    *lock(question) = Some(context.waker().clone());
                    if Arc::strong_count(question) == 1 { Poll::Ready(()) } else { Poll::Pending }
                }
                None => {
                    let new = Question::default();
                    *lock(&new) = Some(context.waker().clone());
                    question = Some(Arc::clone(&new));
                    let due = {
                        let mut questions = lock(&self.0);
                        questions.open.push(new);
                        questions.due.take()
                    };
                    due.into_iter().for_each(Waker::wake);
                    Poll::Pending
                }
            })
            .await;
        }

        fn end(&self) {
            let due = {
                let mut questions = lock(&self.0);
                questions.is_over = true;
                questions.due.take()
            };
            due.into_iter().for_each(Waker::wake);
        }
    }

    impl Drive for Echo {
        type Ended = ();

        fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
            let (open, is_over) = {
                let mut questions = lock(&self.0.0);
                questions.due = Some(context.waker().clone());
                (std::mem::take(&mut questions.open), questions.is_over)
            };
            for question in open {
                let waker = lock(&question).take();
                drop(question);
                waker.into_iter().for_each(Waker::wake);
            }
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    /// The server, on a thread of its own, answers so many questions and ends the connection.
    fn serving(wire: &Wire, questions: u32) -> loom::thread::JoinHandle<()> {
        let wire = wire.clone();
        loom::thread::spawn(move || {
            (0..questions).for_each(|_| block_on(wire.serve()));
            wire.end();
        })
    }

    #[test]
    fn no_interleaving_leaves_a_caller_at_the_wheel_without_its_answer() {
        bounded(|| {
            let wire = Wire::default();
            let (wheel, task) = Wheel::new(wire.half());
            let (server, task) = (serving(&wire, 1), loom::thread::spawn(move || block_on(task)));
            block_on(wheel.carry(|| true, wire.ask()));
            server.join().unwrap();
            assert_eq!(task.join().unwrap(), Some(7));
            assert!(wire.is_hung_up_on());
        });
    }

    /// One at the wheel is polled once and no more; another one asks.
    #[test]
    fn no_interleaving_makes_a_caller_wait_for_one_that_sleeps() {
        bounded(|| {
            let wire = Wire::default();
            let (wheel, task) = Wheel::new(wire.half());
            let (server, task) = (serving(&wire, 2), loom::thread::spawn(move || block_on(task)));
            let mut idle = Box::pin(wheel.carry(|| true, wire.ask()));
            let was_answered = poll_once(idle.as_mut()).is_ready();
            wheel.share();
            block_on(wheel.carry(|| false, wire.ask()));
            if !was_answered {
                block_on(idle);
            }
            server.join().unwrap();
            assert_eq!(task.join().unwrap(), Some(7));
        });
    }

    /// One at the wheel goes away in the middle, and the connection ends.
    #[test]
    fn no_interleaving_loses_what_is_due_when_a_caller_goes_away() {
        bounded(|| {
            let wire = Wire::default();
            let (wheel, task) = Wheel::new(wire.half());
            let (server, task) = (serving(&wire, 1), loom::thread::spawn(move || block_on(task)));
            let _ = poll_once(Box::pin(wheel.carry(|| true, wire.ask())).as_mut());
            server.join().unwrap();
            assert_eq!(task.join().unwrap(), Some(7));
        });
    }

    /// Callers who count themselves, as those of a connection do.
    struct Counted {
        wheel: Wheel<Echo>,
        asked: Asked,
        waiting: AtomicU32,
    }

    impl Counted {
        async fn call(&self) {
            if self.waiting.fetch_add(1, Ordering::SeqCst) > 0 {
                self.wheel.share();
            }
            let is_alone = || self.waiting.load(Ordering::SeqCst) == 1;
            self.wheel.carry(is_alone, self.asked.ask()).await;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// A caller on another thread, and what is done here meanwhile.
    fn beside_another(here: impl Fn(&Counted, loom::thread::JoinHandle<()>) + Send + Sync + 'static) {
        bounded(move || {
            let asked = Asked::default();
            let (wheel, task) = Wheel::new(Echo(asked.clone()));
            let task = loom::thread::spawn(move || block_on(task));
            let counted = Counted { wheel, asked, waiting: AtomicU32::new(0) };
            let counted = loom::sync::Arc::new(counted);
            let other = {
                let counted = counted.clone();
                loom::thread::spawn(move || block_on(counted.call()))
            };
            here(&counted, other);
            counted.asked.end();
            task.join().unwrap();
        });
    }

    #[test]
    fn no_interleaving_of_two_leaves_one_without_an_answer() {
        beside_another(|counted, other| {
            block_on(counted.call());
            other.join().unwrap();
        });
    }

    /// One is polled once, and not again before the other was answered.
    #[test]
    fn no_interleaving_of_two_makes_one_wait_for_the_other() {
        beside_another(|counted, other| {
            let mut idle = Box::pin(counted.call());
            let was_answered = poll_once(idle.as_mut()).is_ready();
            other.join().unwrap();
            if !was_answered {
                block_on(idle);
            }
        });
    }
}
