//! The task at the socket of a [connection](super::connection).
//!
//! It is woken by the first call; it lets every other task that is ready have its turn, once or until this thread has nothing
//! else to do ([`SOME`]), and then sends what is queued: the reads as one question ([`Batch`]), the other commands before it.
//! While they are no more than a [`FEW`] they are sent at once. Under load a batch grows by itself. What is queued while little is under way leaves in up to
//! [`WAVES`] parts, a turn apart, so that client and server work at the same time. Stopping at one or two of them halves
//! what a few callers get; but once all are under way a server that is [near](NEAR) has enough to do, and what comes one by
//! one leaves when fewer are, or when there is as much as one of those parts has. Sent as it comes, it takes a call of the
//! system for every few, which on two threads is a third of all that a read costs. Where the way takes longer than the
//! server does, the parts are on the way, and nothing waits for them.
//!
//! Answers are handed out a batch at a time, though more may have come: those whom the first answers have their turn, and
//! what they ask leaves, before the next is looked at. The server answers at once all that it found at once, and if all
//! of that were handed out together all callers would ask together again: then one side works while the other waits.
//!
//! A connection that owes an answer, and brought not one byte of it for a second ([`SILENCE`]), is given up; later where
//! much was sent that is not answered, which takes its time to arrive.
//!
//! # Bounds
//!
//! Of what was sent and awaits its answer there is no more than the server takes: once [`MOST_UNSENT`] bytes are not
//! taken, calls stay in the queue. The server's answer is read into [pieces](super::incoming) of 128 KiB, and a value that it
//! announces takes room as it arrives.

use std::{
    collections::VecDeque,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    runtime,
    task::yield_now,
    time::{Sleep, sleep},
};

use super::{
    batch::{Batch, Waiter},
    connection::Stream,
    fault::{Fault, Lost},
    history::{AGAIN, History},
    incoming::Incoming,
    queue::{Call, MOST_CALLS, Shared},
    stats::Counts,
    wire::Token,
};
use crate::{
    clock::{Clock, Instant},
    sync::lock,
    wheel::Drive,
};

/// In so many parts the calls are to be under way that wait at one time, if there are enough of them.
const WAVES: usize = 6;
/// So many calls, under way and waiting, are sent as they come: there is hardly anybody to wait for.
const FEW: usize = 3;
/// While no more calls than this are under way and waiting, the turn of the others is waited for on this thread alone: until
/// it has nothing else to do, or tokio looks for events, which is every 61 tasks. Woken at once the driver goes to where other
/// threads find it, and one of them is woken to look; where that is a core of a server on the same machine, four callers get
/// a third less. With more of them there is enough to do for both.
const SOME: usize = 8;
/// A server that answers within so long is near: nobody waits for longer than this because others are under way.
const NEAR: Duration = Duration::from_millis(3);
/// So many ticks may a connection owe an answer without a byte of it: a second.
const SILENCE: u32 = 20;
/// And one more for so many bytes that were sent and are not answered, of which the server says nothing before it has the
/// last: ten megabits a second are enough.
const SENT_IN_A_TICK: u64 = 64 * 1024;
/// How often a connection in use looks for silence. A timer that is due before those of the callers is good for them as
/// well: the runtime wakes its driver, which is a call of the system, for every timer that is the next one due.
const TICK: Duration = Duration::from_millis(50);
/// While so much is not taken by the other end, nothing more is made ready.
const MOST_UNSENT: usize = 1024 * 1024;
/// For so many calls room is kept, of about a hundred bytes each.
const MOST_SPARE: usize = 1024;

/// What the task has, or the caller in its place.
pub(super) struct Driver {
    stream: Box<dyn Stream>,
    shared: Arc<Shared>,
    incoming: Incoming,
    outgoing: Vec<u8>,
    written: usize,
    flushed: bool,
    /// Room for calls, empty, for the queue to grow in next.
    spare: Vec<Call>,
    /// In the order in which the answers will come, each with how many bytes of all were sent by its end.
    owed: VecDeque<(Owed, u64)>,
    /// The parts that are under way: their ends, in the same measure, and how many calls each has.
    parts: VecDeque<(u64, usize)>,
    /// How many calls they have together.
    under_way: usize,
    /// How long the last answer took.
    trip: Duration,
    /// Whether everybody else had a turn since the driver saw that there is something to send.
    has_yielded: bool,
    tick: Option<Pin<Box<Sleep>>>,
    runtime: runtime::Handle,
    clock: Clock,
    /// When the history was asked for.
    asked_at: Instant,
    /// Whether anything was sent since the last tick.
    was_used: bool,
    /// Whether anything was heard since the last tick.
    was_heard: bool,
    silent_ticks: u32,
    /// How many bytes were sent.
    sent: u64,
    /// How many of them have been answered.
    answered: u64,
    /// Who wants to know how long an answer takes.
    counts: Option<Arc<Counts>>,
}

enum Owed {
    Batch(Batch, Instant),
    History,
    /// Answers of no interest.
    Ignored(usize),
    Run {
        answers: Vec<Token>,
        missing: usize,
        waiter: Waiter<Vec<Token>>,
        asked_at: Instant,
    },
}

impl Owed {
    /// How many callers wait for it.
    fn calls(&self) -> usize {
        match self {
            Self::Batch(batch, _) => batch.waiting(),
            Self::Run { .. } => 1,
            Self::History | Self::Ignored(_) => 0,
        }
    }
}

impl Driver {
    pub(super) fn new(stream: Box<dyn Stream>, shared: Arc<Shared>) -> Self {
        let clock = Clock::system();
        Self {
            asked_at: clock.now(),
            clock,
            stream,
            shared,
            incoming: Incoming::default(),
            outgoing: Vec::new(),
            written: 0,
            flushed: true,
            spare: Vec::new(),
            owed: VecDeque::new(),
            parts: VecDeque::new(),
            under_way: 0,
            trip: Duration::ZERO,
            has_yielded: false,
            tick: None,
            runtime: runtime::Handle::current(),
            was_used: false,
            was_heard: false,
            silent_ticks: 0,
            sent: 0,
            answered: 0,
            counts: None,
        }
    }

    fn drive(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        let mut again = false;
        let are_few = self.are_few();
        let is_turn = mem::take(&mut self.has_yielded) || are_few;
        if is_turn && self.outgoing.len() - self.written < MOST_UNSENT {
            self.collect(if are_few { 1 } else { WAVES });
        }
        let is_stuck = self.send(context)?.is_pending();
        again |= self.receive(context)?;
        let enough = self.enough();
        let queued = {
            let mut queue = lock(&self.shared.queue);
            if let Some(fault) = &queue.closed {
                return Err(fault.clone());
            }
            queue.enough = enough;
            if !queue.has_enough() {
                if !queue.driver.as_ref().is_some_and(|driver| driver.will_wake(context.waker())) {
                    queue.driver = Some(context.waker().clone());
                }
            } else {
                // Where the other end takes nothing, it wakes the driver when it does.
                again |= !is_stuck || self.outgoing.len() - self.written < MOST_UNSENT;
            }
            queue.calls.len()
        };
        if again {
            self.has_yielded = true;
            if self.under_way + queued <= SOME {
                // Puts the waker where the runtime finds it when it has nothing else to do.
                let _ = pin!(yield_now()).poll(context);
            } else {
                context.waker().wake_by_ref();
            }
        }
        self.be_patient(context)
    }

    /// Whether so few calls are under way and waiting that nobody need be waited for.
    fn are_few(&self) -> bool {
        let calls = self.owed.iter().map(|(owed, _)| owed.calls());
        let under_way: usize = calls.filter(|calls| *calls > 0).take(FEW).sum();
        under_way < FEW && under_way + lock(&self.shared.queue).calls.len() <= FEW
    }

    /// Makes what is queued ready to be sent, or enough of it that so many parts are under way.
    fn collect(&mut self, waves: usize) {
        // Some now and the rest a moment later: while the server answers some, the callers of others are at work. All
        // together they would take turns, and half of the time one side would wait for the other.
        let enough = self.enough();
        let mut queue = lock(&self.shared.queue);
        queue.enough = enough;
        if !queue.has_enough() {
            return;
        }
        let waves = waves.saturating_sub(self.parts.len()).max(1);
        let some = queue.calls.len().div_ceil(waves);
        let mut calls = mem::take(&mut self.spare);
        if some < queue.calls.len() {
            calls.extend(queue.calls.drain(..some));
            let taken: usize = calls.iter().map(Call::size).sum();
            queue.bytes = queue.bytes.saturating_sub(taken);
        } else {
            queue.bytes = 0;
            mem::swap(&mut queue.calls, &mut calls);
        }
        if self.counts.is_none() {
            self.counts.clone_from(&queue.counts);
        }
        drop(queue);
        if self.written >= MOST_UNSENT {
            // Where the other end never takes all of it at one time.
            self.outgoing.drain(..mem::take(&mut self.written));
        }
        self.was_used = true;
        if self.owed.is_empty() {
            self.silent_ticks = 0;
        }
        let asked_at = self.clock.now();
        self.ask_again(asked_at);
        let mut reads = Vec::with_capacity(calls.len());
        let mut count = 0;
        for call in calls.drain(..).filter(Call::is_awaited) {
            count += 1;
            match call {
                Call::Read(read) => {
                    if read.before.count > 0 {
                        self.outgoing.extend_from_slice(&read.before.bytes);
                        self.owe(Owed::Ignored(read.before.count));
                    }
                    reads.push(read);
                }
                Call::Run(commands, waiter) => {
                    if commands.count == 0 {
                        drop(waiter.send(Ok(Vec::new())));
                        continue;
                    }
                    self.outgoing.extend_from_slice(&commands.bytes);
                    let answers = Vec::with_capacity(commands.count.min(MOST_CALLS));
                    self.owe(Owed::Run { answers, missing: commands.count, waiter, asked_at });
                }
            }
        }
        calls.shrink_to(MOST_SPARE);
        self.spare = calls;
        if !reads.is_empty() {
            let history = *lock(&self.shared.history);
            let batch = Batch::ask(reads, history, &mut self.outgoing);
            self.owe(Owed::Batch(batch, asked_at));
        }
        if count > 0 {
            self.parts.push_back((self.ready(), count));
            self.under_way += count;
        }
    }

    /// So many calls are worth a part: any, until all parts are under way to a server that is near, and then as many as one
    /// of those has.
    fn enough(&mut self) -> usize {
        while let Some((end, count)) = self.parts.front()
            && *end <= self.answered
        {
            self.under_way -= count;
            self.parts.pop_front();
        }
        if self.parts.len() < WAVES || self.trip > NEAR {
            return 1;
        }
        (self.under_way / self.parts.len()).max(1)
    }

    /// Takes note of an answer that what is ready by now will have.
    fn owe(&mut self, owed: Owed) {
        let end = self.ready();
        self.owed.push_back((owed, end));
    }

    /// How many bytes will have been sent when all is that is ready.
    fn ready(&self) -> u64 {
        self.sent + (self.outgoing.len() - self.written) as u64
    }

    /// Asks for the history in front of what is sent next, if it was not asked for of late.
    fn ask_again(&mut self, now: Instant) {
        let Some(question) = &self.shared.question else { return };
        if now.since(self.asked_at) < AGAIN {
            return;
        }
        self.asked_at = now;
        self.outgoing.extend_from_slice(&question.bytes);
        self.owe(Owed::History);
    }

    /// Takes note of the history; what comes after is of it. Where there is no answer, that of before goes on.
    fn learn(&mut self, answer: &Token) -> Result<(), Fault> {
        let Some(history) = History::of(answer)? else { return Ok(()) };
        let before = mem::replace(&mut *lock(&self.shared.history), history);
        if before != history {
            tracing::debug!("redis: the data are of another history: what was stored before is not used");
            for owed in &mut self.owed {
                if let (Owed::Batch(batch, _), _) = owed {
                    batch.history = history;
                }
            }
        }
        Ok(())
    }

    /// Writes what is ready, as far as the other end takes it.
    fn send(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Fault> {
        while self.written < self.outgoing.len() {
            let rest = &self.outgoing[self.written..];
            match Pin::new(&mut self.stream).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Err(Fault::Lost(Lost::Closed)),
                Poll::Ready(Ok(count)) => {
                    self.written += count;
                    self.sent += count as u64;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(Poll::Pending),
            }
            self.flushed = false;
        }
        self.written = 0;
        self.outgoing.clear();
        self.outgoing.shrink_to(MOST_UNSENT);
        if !self.flushed {
            match Pin::new(&mut self.stream).poll_flush(context) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return Ok(Poll::Pending),
            }
            self.flushed = true;
        }
        Ok(Poll::Ready(()))
    }

    /// Reads until nothing is there, or for one full piece: those whom it answers shall have their turn. Returns
    /// whether there may be more.
    fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, Fault> {
        loop {
            if self.settle()? {
                return Ok(true);
            }
            let room = self.incoming.make_room();
            match pin!(self.stream.read_buf(&mut self.incoming.bytes)).poll(context) {
                Poll::Ready(Ok(0)) => return Err(Fault::Lost(Lost::Closed)),
                Poll::Ready(Ok(count)) => {
                    self.was_heard = true;
                    if self.settle()? || count == room {
                        return Ok(true);
                    }
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(false),
            }
        }
    }

    /// Hands out the answers that are there, up to the end of one batch. Returns whether there may be more.
    fn settle(&mut self) -> Result<bool, Fault> {
        while let Some(token) = self.incoming.next()? {
            let is_settled = match self.owed.front_mut().map(|(owed, _)| owed) {
                None => return Err(Fault::Lost(Lost::NotRedis)),
                Some(Owed::Batch(batch, _)) => batch.take(token)?,
                Some(_) if matches!(token, Token::Array(_)) => return Err(Fault::Lost(Lost::NotRedis)),
                Some(Owed::History) => {
                    self.learn(&token)?;
                    true
                }
                Some(Owed::Ignored(missing)) => {
                    *missing -= 1;
                    *missing == 0
                }
                Some(Owed::Run { answers, missing, .. }) => {
                    answers.push(token);
                    *missing -= 1;
                    *missing == 0
                }
            };
            if !is_settled {
                continue;
            }
            let Some((settled, end)) = self.owed.pop_front() else { continue };
            self.answered = end;
            if let Owed::Batch(_, asked_at) | Owed::Run { asked_at, .. } = &settled {
                self.trip = self.clock.now().since(*asked_at);
                if let Some(counts) = &self.counts {
                    counts.trips.record(self.trip);
                }
            }
            match settled {
                Owed::Run { answers, waiter, .. } => {
                    let refusal = answers.iter().find_map(|answer| match answer {
                        Token::Refusal(refusal) => Some(refusal.clone()),
                        _ => None,
                    });
                    drop(waiter.send(refusal.map_or(Ok(answers), |refusal| Err(Fault::Refused(refusal)))));
                }
                Owed::Batch(..) if !self.incoming.bytes.is_empty() => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Gives the connection up when it has been silent for too long.
    fn be_patient(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        loop {
            let Some(tick) = &mut self.tick else {
                // A turn that is waited for comes when this thread has nothing else to do. Should it never have, the
                // timer is heard by another.
                if self.owed.is_empty() && !self.was_used && !self.has_yielded {
                    self.incoming.rest();
                    return Ok(());
                }
                self.was_used = false;
                self.was_heard = false;
                // Whoever has the wheel may be on a runtime that ends before this one does.
                let _home = self.runtime.enter();
                self.tick = Some(Box::pin(sleep(TICK)));
                continue;
            };
            if tick.as_mut().poll(context).is_pending() {
                return Ok(());
            }
            self.tick = None;
            let is_silent = !self.owed.is_empty() && !self.was_heard;
            self.silent_ticks = if is_silent { self.silent_ticks + 1 } else { 0 };
            let unanswered = self.sent.saturating_sub(self.answered);
            let of_sent = u32::try_from(unanswered / SENT_IN_A_TICK).unwrap_or(u32::MAX);
            if self.silent_ticks > SILENCE.saturating_add(of_sent) {
                return Err(Fault::Lost(Lost::Silent));
            }
        }
    }

    fn fail(&mut self, fault: &Fault) {
        self.shared.close(fault);
        for (owed, _) in self.owed.drain(..) {
            match owed {
                Owed::Batch(mut batch, _) => batch.fail(fault),
                Owed::History | Owed::Ignored(_) => {}
                Owed::Run { waiter, .. } => drop(waiter.send(Err(fault.clone()))),
            }
        }
    }
}

impl Drive for Driver {
    type Ended = ();

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Err(fault) = self.drive(context) {
            self.fail(&fault);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // With its runtime, say, which is nothing to be alarmed at.
        self.shared.count_for(None);
        self.fail(&Fault::Lost(Lost::Closed));
    }
}

#[cfg(test)]
mod tests {
    use std::{io, task::Waker};

    use tokio::{
        io::{AsyncRead, ReadBuf},
        sync::oneshot,
    };

    use super::*;
    use crate::redis::{
        batch::{Names, Read},
        wire::Commands,
    };

    /// The other end of a way that takes some bytes at a time, and never all that there are.
    #[derive(Default)]
    struct Slow {
        is_full: bool,
    }

    impl AsyncRead for Slow {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.is_full = !self.is_full;
            if self.is_full { Poll::Ready(Ok(bytes.len().min(300_000))) } else { Poll::Pending }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The other end of a way that takes all, and says what it is told to.
    #[derive(Default)]
    struct Open(Arc<std::sync::Mutex<Vec<u8>>>);

    impl AsyncRead for Open {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            room: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let answer = mem::take(&mut *self.0.lock().unwrap());
            room.put_slice(&answer);
            if answer.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
        }
    }

    impl AsyncWrite for Open {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// How often it was woken.
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn driver() -> Driver {
        Driver::new(Box::new(Slow::default()), Arc::new(Shared::new(None)))
    }

    #[tokio::test]
    async fn what_was_sent_is_forgotten_though_there_is_always_more() {
        let mut driver = driver();
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = Vec::new();
        for _ in 0..400 {
            while driver.shared.queue.lock().unwrap().calls.len() < 8 {
                let (waiter, answer) = oneshot::channel();
                let commands = Commands { bytes: vec![b'x'; 256 * 1024], count: 1 };
                driver.shared.push(Call::Run(commands, waiter)).unwrap();
                waiting.push(answer);
            }
            driver.drive(&mut context).unwrap();
            assert!(driver.outgoing.len() < 4 * MOST_UNSENT, "{}", driver.outgoing.len());
        }
        assert!(driver.sent > 50 * 1024 * 1024, "{}", driver.sent);
    }

    /// A driver with all parts under way, ten calls each, and what it takes to go on from there.
    struct Busy {
        driver: Driver,
        says: Arc<std::sync::Mutex<Vec<u8>>>,
        woken: Arc<Woken>,
        waiting: Vec<oneshot::Receiver<Result<Box<crate::redis::batch::Values>, Fault>>>,
    }

    impl Busy {
        fn idle() -> Self {
            let other_end = Open::default();
            let says = Arc::clone(&other_end.0);
            let driver = Driver::new(Box::new(other_end), Arc::new(Shared::new(None)));
            Self { driver, says, woken: Arc::default(), waiting: Vec::new() }
        }

        fn new() -> Self {
            let mut busy = Self::idle();
            busy.ask(10 * WAVES);
            busy.drive(WAVES + 1);
            assert_eq!(busy.state(), (WAVES, 10 * WAVES, 0));
            busy.times_woken();
            busy
        }

        fn ask(&mut self, count: usize) {
            for _ in 0..count {
                let (waiter, answer) = oneshot::channel();
                let mut names = Names::default();
                names.add(&["name"]);
                let read = Read::new(names, Commands::default(), waiter);
                self.driver.shared.push(Call::Read(read)).unwrap();
                self.waiting.push(answer);
            }
        }

        fn drive(&mut self, turns: usize) {
            let waker = Waker::from(Arc::clone(&self.woken));
            for _ in 0..turns {
                self.driver.has_yielded = true;
                self.driver.drive(&mut Context::from_waker(&waker)).unwrap();
            }
        }

        fn answers(&self, parts: usize) {
            let answer = b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n*1\r\n$-1\r\n".repeat(parts);
            self.says.lock().unwrap().extend(answer);
        }

        /// Parts, the calls that they have, and those that wait.
        fn state(&mut self) -> (usize, usize, usize) {
            self.driver.enough();
            let queued = lock(&self.driver.shared.queue).calls.len();
            (self.driver.parts.len(), self.driver.under_way, queued)
        }

        fn times_woken(&self) -> usize {
            self.woken.0.swap(0, std::sync::atomic::Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn few_calls_wait_for_an_answer_or_for_more_when_much_is_under_way() {
        let mut busy = Busy::new();
        busy.ask(9);
        assert_eq!(busy.times_woken(), 0, "it need not be told");
        busy.drive(1);
        assert_eq!((busy.state(), busy.times_woken()), ((WAVES, 10 * WAVES, 9), 0), "nor turn in circles");
        busy.ask(1);
        assert_eq!(busy.times_woken(), 1);
        busy.drive(1);
        assert_eq!(busy.state(), (WAVES + 1, 10 * (WAVES + 1), 0));
        busy.ask(9);
        busy.answers(2);
        busy.drive(4);
        assert_eq!(busy.state(), (WAVES, 10 * (WAVES - 1) + 9, 0));
    }

    #[tokio::test]
    async fn turn_of_the_others_is_waited_for_without_waking_a_thread_where_there_are_few() {
        let cases = [
            (Busy::idle(), FEW + 1, false),
            (Busy::idle(), SOME, false),
            (Busy::idle(), SOME + 1, true),
            (Busy::new(), 10, true),
        ];
        for (mut busy, calls, is_at_once) in cases {
            busy.ask(calls);
            busy.times_woken();
            let waker = Waker::from(Arc::clone(&busy.woken));
            busy.driver.drive(&mut Context::from_waker(&waker)).unwrap();
            assert_eq!(busy.state().2, calls, "not yet");
            assert_eq!(busy.times_woken(), usize::from(is_at_once));
            yield_now().await;
            assert_eq!(busy.times_woken(), usize::from(!is_at_once));
        }
    }

    #[tokio::test]
    async fn nothing_waits_for_an_answer_that_has_a_long_way() {
        let mut busy = Busy::new();
        busy.driver.trip = 2 * NEAR;
        busy.drive(1);
        busy.ask(1);
        assert_eq!(busy.times_woken(), 1);
        busy.drive(1);
        assert_eq!(busy.state(), (WAVES + 1, 10 * WAVES + 1, 0));
    }

    #[tokio::test]
    async fn large_call_does_not_wait_for_others() {
        let mut busy = Busy::new();
        let (waiter, _answer) = oneshot::channel();
        let commands = Commands { bytes: vec![b'x'; 64 * 1024], count: 1 };
        busy.driver.shared.push(Call::Run(commands, waiter)).unwrap();
        assert_eq!(busy.times_woken(), 1);
        busy.drive(1);
        assert_eq!(busy.state(), (WAVES + 1, 10 * WAVES + 1, 0));
    }

    #[tokio::test]
    async fn calls_that_nobody_waits_for_are_no_part() {
        let mut busy = Busy::new();
        busy.ask(10);
        busy.waiting.truncate(10 * WAVES);
        busy.drive(1);
        assert_eq!(busy.state(), (WAVES, 10 * WAVES, 0));
    }

    #[tokio::test]
    async fn callers_are_counted_and_not_what_nobody_waits_for() {
        let mut driver = driver();
        let mut reads = Vec::new();
        let mut answers = Vec::new();
        for _ in 0..10 {
            let (waiter, answer) = oneshot::channel();
            let mut names = Names::default();
            names.add(&["name"]);
            reads.push(Read::new(names, Commands::default(), waiter));
            answers.push(answer);
        }
        (0..3).for_each(|_| driver.owe(Owed::Ignored(1)));
        assert!(driver.are_few());
        let batch = Batch::ask(reads, History::default(), &mut Vec::new());
        let now = driver.clock.now();
        driver.owe(Owed::Batch(batch, now));
        assert!(!driver.are_few());
    }
}
