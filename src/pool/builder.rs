//! The settings of a pool.

use std::{
    fmt,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::Duration,
};

use bb8::ManageConnection;
use tokio::{runtime::Handle, sync::Semaphore};

use super::{
    allowance::{self, Allowance, Allowed},
    classes::{DEFAULT_NAME, Share},
    closing::GoneWhen,
    connect::Turnstile,
    front::Pool,
    gate::Gate,
    maintenance::{self, Follow, Followed},
    shared::{Settings, Shared, Watch},
    sizing::{Bounds, Gain, Machine, Sizing, ThroughputVerified, initial_size},
    stats::Recorded,
    supply::Supply,
    tracked::{Doubt, IntoError, KindOf, Tracking},
};
use crate::{
    Error, ErrorKind,
    clock::Clock,
    error::BoxError,
    sync::{Mutex, lock},
};

/// More connections than any server has, and few enough to be counted in anything.
const MOST: u32 = 1 << 20;
/// Longer than anybody means.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Settings of a [`Pool`].
#[must_use = "a builder does nothing until `build`"]
pub struct PoolBuilder<M: ManageConnection> {
    name: String,
    manager: M,
    mode: Mode,
    floor: u32,
    ceiling: u32,
    initial: Option<u32>,
    sizing: Option<Box<dyn Sizing>>,
    gain: Option<Gain>,
    allowed: Option<Arc<Allowed>>,
    classes: Vec<(String, Share)>,
    system_reserve: u32,
    max_waiting: u32,
    timeout: Duration,
    connect_timeout: Duration,
    connects_at_once: u32,
    connects_per_second: f64,
    test_timeout: Duration,
    test_after: Duration,
    doubt: Option<Doubt<M>>,
    gone_when: Option<GoneWhen<M>>,
    kind_of: Option<KindOf<M>>,
    idle_timeout: Option<Duration>,
    max_life: Option<Duration>,
    leak_threshold: Option<Duration>,
    keep_open: Option<u32>,
    clock: Clock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Fixed,
    Observe,
    Adaptive,
}

impl<M: ManageConnection> PoolBuilder<M> {
    pub(super) fn new(name: String, manager: M) -> Self {
        Self {
            name,
            manager,
            mode: Mode::Fixed,
            floor: 10,
            ceiling: 10,
            initial: None,
            sizing: None,
            gain: None,
            allowed: None,
            classes: Vec::new(),
            system_reserve: 0,
            max_waiting: 4_096,
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            connects_at_once: 2,
            connects_per_second: 10.0,
            test_timeout: Duration::from_secs(2),
            test_after: Duration::from_millis(500),
            doubt: None,
            gone_when: None,
            kind_of: None,
            idle_timeout: Some(Duration::from_secs(600)),
            max_life: Some(Duration::from_secs(1_800)),
            leak_threshold: None,
            keep_open: None,
            clock: Clock::system(),
        }
    }

    /// Sets a fixed size, in connections: 10 unless set. 1 to 1,048,576.
    #[doc(alias = "max_size")]
    pub fn size(mut self, connections: u32) -> Self {
        (self.mode, self.floor, self.ceiling) = (Mode::Fixed, connections, connections);
        self
    }

    /// Lets the pool size itself within these bounds, by the throughput that it measures: 1 to 1,048,576.
    pub fn adaptive(mut self, connections: RangeInclusive<u32>) -> Self {
        (self.mode, self.floor, self.ceiling) = (Mode::Adaptive, *connections.start(), *connections.end());
        self
    }

    /// Keeps the [initial](Self::initial) size, and logs what [`adaptive`](Self::adaptive) would do with these bounds.
    pub fn observe(mut self, connections: RangeInclusive<u32>) -> Self {
        (self.mode, self.floor, self.ceiling) = (Mode::Observe, *connections.start(), *connections.end());
        self
    }

    /// With how many connections it begins, within the bounds: what [`initial_size`] says unless set.
    pub fn initial(mut self, connections: u32) -> Self {
        self.initial = Some(connections);
        self
    }

    /// How much throughput a further connection has to bring to be kept, in the modes [`adaptive`](Self::adaptive)
    /// and [`observe`](Self::observe): [`Gain::THROUGHPUT`] unless set. With [`Gain::LATENCY`] the pool stays smaller,
    /// and queries are quicker. An error with a fixed size, or with a [`sizing`](Self::sizing) of one's own.
    pub fn gain(mut self, gain: Gain) -> Self {
        self.gain = Some(gain);
        self
    }

    /// What decides the size in the modes [`adaptive`](Self::adaptive) and [`observe`](Self::observe):
    /// [`ThroughputVerified`] unless set. An error with a fixed size.
    pub fn sizing(mut self, sizing: impl Sizing) -> Self {
        self.sizing = Some(Box::new(sizing));
        self
    }

    /// What says how many connections the pool may have right now, for processes that share a server. Only for an
    /// [`adaptive`](Self::adaptive) pool, whose ceiling comes down to it and goes up to it again within a second; what
    /// is in use above it is closed when it is returned. Of what is more than the pool's own, connections that are idle above
    /// the size for some seconds are closed, so that others may have them. The lower bound stands whatever is said, so it is to be no more than
    /// what is always allowed; where the allowance tells what is the pool's [own](super::Allowance::own), more is an error.
    pub fn allowance(mut self, allowance: impl Allowance) -> Self {
        self.allowed = Some(Allowed::new(allowance));
        self
    }

    /// Adds a class of callers, to be had from [`Pool::class`]. Callers of no class share what is left, as
    /// [`Class::DEFAULT`](super::Class::DEFAULT). Names are unique, and neither `system` nor `default`; what all classes are
    /// sure of, with the [`system_reserve`](Self::system_reserve), is less than the upper bound, so that some are shared.
    pub fn class(mut self, name: impl Into<String>, share: Share) -> Self {
        self.classes.push((name.into(), share));
        self
    }

    /// How many connections are kept for [`Class::SYSTEM`](super::Class::SYSTEM): none unless set, because nobody else
    /// has them then. Without, one caller of that class at a time may have a connection above the size, where that is
    /// below the upper bound; at the bound, and where the size is fixed, it waits for a return, as the first in line.
    pub fn system_reserve(mut self, connections: u32) -> Self {
        self.system_reserve = connections;
        self
    }

    /// How many callers may wait at once: 4,096 unless set, from 1 to 1,048,576. Whoever comes then is turned away at
    /// once. As many more of [`Class::SYSTEM`](super::Class::SYSTEM) may; of classes that have as many connections as they
    /// [may](super::Share::at_most) half as many, so that they leave room for the others.
    #[doc(alias = "queue_size")]
    pub fn max_waiting(mut self, callers: u32) -> Self {
        self.max_waiting = callers;
        self
    }

    /// How long a caller waits for a connection, all told: 30 s unless set, more than zero and at most a year.
    #[doc(alias = "acquire_timeout")]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long an attempt to connect may take: 5 s unless set, more than zero and at most a year. It goes on
    /// when its caller has gone. Where the manager has one of its own, the shorter one decides.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How many attempts to connect are made `at_once`, and how many `per_second` after a first burst of as many: 2
    /// and 10 unless set; from 1 to 1,048,576, and a rate above zero. A server that comes back is not met by
    /// everybody together.
    pub fn connects(mut self, at_once: u32, per_second: f64) -> Self {
        (self.connects_at_once, self.connects_per_second) = (at_once, per_second);
        self
    }

    /// A connection that was idle for longer than this is asked whether it works before it is lent: 500 ms unless
    /// set. Zero asks always, [`Duration::MAX`] never.
    #[doc(alias = "test_on_check_out")]
    pub fn test_after(mut self, idle: Duration) -> Self {
        self.test_after = idle;
        self
    }

    /// A connection of which this is true is asked as well, however recently it was used: never unless set. For
    /// managers whose connections may still be busy with what the last caller left. It is called for every checkout,
    /// and should not wait; and it should be false once a test was passed, for where others are idle the one in doubt is
    /// tested behind the caller's back, who takes one of those. It replaces one that was set before, that of a pool of
    /// `PostgresManager::pool`, too.
    pub fn test_if(mut self, is_doubtful: impl Fn(&M::Connection) -> bool + Send + Sync + 'static) -> Self {
        self.doubt = Some(Box::new(is_doubtful));
        self
    }

    /// When a connection that is closed is gone: at once unless set. It is called just before a connection is dropped,
    /// which counts towards the ceiling until the future has ended, for 10 s at most. For managers whose connections
    /// live on at the server for a while, which has no room for others meanwhile. It replaces one that was set before,
    /// that of a pool of `PostgresManager::pool`, too.
    ///
    /// ```
    /// # use mcp_perf::pool::Pool;
    /// use tokio::sync::{mpsc, watch};
    ///
    /// struct Session {
    ///     /// A task passes these on, and says goodbye to the server when there are no more.
    ///     commands: mpsc::Sender<String>,
    ///     /// The task has the other half, on which nothing is ever sent.
    ///     goodbye: watch::Receiver<()>,
    /// }
    /// # struct Sessions;
    /// # impl bb8::ManageConnection for Sessions {
    /// #     type Connection = Session;
    /// #     type Error = std::io::Error;
    /// #     async fn connect(&self) -> Result<Session, std::io::Error> {
    /// #         let (task, goodbye) = watch::channel(());
    /// #         let (commands, mut received) = mpsc::channel(1);
    /// #         tokio::spawn(async move {
    /// #             while received.recv().await.is_some() {}
    /// #             drop(task);
    /// #         });
    /// #         Ok(Session { commands, goodbye })
    /// #     }
    /// #     async fn is_valid(&self, _: &mut Session) -> Result<(), std::io::Error> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut Session) -> bool { false }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let pool = Pool::builder("sessions", Sessions)
    ///     .gone_when(|session: &Session| {
    ///         let mut goodbye = session.goodbye.clone();
    ///         async move { while goodbye.changed().await.is_ok() {} }
    ///     })
    ///     .build()?;
    /// # pool.get().await?.commands.send(String::new()).await.unwrap();
    /// # pool.shutdown(std::time::Duration::from_secs(1)).await?;
    /// # Ok(()) }
    /// ```
    pub fn gone_when<F>(mut self, gone_when: impl Fn(&M::Connection) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.gone_when = Some(Box::new(move |connection| Box::pin(gone_when(connection))));
        self
    }

    /// Of which kind an error of the manager is, where it makes a difference: [`Unavailable`](ErrorKind::Unavailable)
    /// unless said otherwise. [`TooManyConnections`](ErrorKind::TooManyConnections) above all, on which an adaptive pool
    /// uses fewer. An error that is this crate's own stays as it is.
    ///
    /// ```
    /// use mcp_perf::{ErrorKind, pool::Pool};
    ///
    /// # use bb8::ManageConnection;
    /// # use std::io;
    /// # struct Sessions;
    /// # impl ManageConnection for Sessions {
    /// #     type Connection = ();
    /// #     type Error = io::Error;
    /// #     async fn connect(&self) -> io::Result<()> { Err(io::ErrorKind::QuotaExceeded.into()) }
    /// #     async fn is_valid(&self, (): &mut ()) -> io::Result<()> { Ok(()) }
    /// #     fn has_broken(&self, (): &mut ()) -> bool { false }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
    /// let pool = Pool::builder("sessions", Sessions)
    ///     .error_kind(|error: &io::Error| {
    ///         let is_full = error.kind() == io::ErrorKind::QuotaExceeded;
    ///         is_full.then_some(ErrorKind::TooManyConnections)
    ///     })
    ///     .build()?;
    /// assert_eq!(pool.get().await.unwrap_err().kind(), ErrorKind::TooManyConnections);
    /// # Ok(()) }
    /// ```
    pub fn error_kind(
        mut self,
        kind_of: impl Fn(&M::Error) -> Option<ErrorKind> + Send + Sync + 'static,
    ) -> Self {
        self.kind_of = Some(Box::new(kind_of));
        self
    }

    /// How long a test may take ([`test_after`](Self::test_after), [`test_if`](Self::test_if)) before the connection is
    /// taken for broken: 2 s unless set, more than zero and at most a year. Its caller waits no longer than he may, but for
    /// 50 ms. It goes on without him: cut short, it might leave an answer behind that the next would take for its own.
    pub fn test_timeout(mut self, timeout: Duration) -> Self {
        self.test_timeout = timeout;
        self
    }

    /// After how long without use a connection is closed, unless it is [kept open](Self::keep_open): 10 min unless
    /// set, never if `None`, more than zero and at most a year. It may take 10 s longer.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.idle_timeout = timeout.into();
        self
    }

    /// How old a connection may become: 30 min unless set, any age if `None`, more than zero and at most a year. Each
    /// lives up to a tenth less, by chance, so that those that were opened together are not closed together.
    #[doc(alias = "max_lifetime")]
    pub fn max_life(mut self, life: impl Into<Option<Duration>>) -> Self {
        self.max_life = life.into();
        self
    }

    /// Logs connections that are held for longer than this, with the place in the code that asked for them: none unless set;
    /// more than zero and at most a year.
    #[doc(alias = "leak_detection_threshold")]
    pub fn leak_threshold(mut self, held: impl Into<Option<Duration>>) -> Self {
        self.leak_threshold = held.into();
        self
    }

    /// How many connections are open even if nobody uses them: the lower bound of the size unless set,
    /// at most the upper one. Where the server has no more, it is what there are; one more is tried after 30 s, and as long as
    /// there is one, more every 10 s. Callers who wait have theirs tried at once.
    #[doc(alias = "min_idle")]
    pub fn keep_open(mut self, connections: u32) -> Self {
        self.keep_open = Some(connections);
        self
    }

    /// The clock that times are read from: the system's unless set. Waits are tokio's in any case.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Makes the pool, and begins to open what is kept open. Its tasks run in the runtime in which this is called.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration), naming the setting that is impossible, or the runtime if
    /// there is none here.
    pub fn build(mut self) -> Result<Pool<M>, Error>
    where
        M: ManageConnection<Error: std::error::Error + Sync>,
    {
        let runtime = Handle::try_current()
            .map_err(|error| Error::with_source(ErrorKind::Configuration, "runtime: none is here", error))?;
        self.check()?;
        let bounds = Bounds::new(self.floor, self.ceiling)?;
        let initial = self.begins_with(bounds);
        let sizing = self.take_sizing(bounds, initial);
        let into_error: IntoError<M> = {
            let (name, kind_of) = (self.name.clone(), self.kind_of);
            Box::new(move |operation, error| {
                let kind = || kind_of.as_ref().and_then(|kind_of| kind_of(&error));
                // Somebody else's code, which here must not unwind.
                let kind = catch_unwind(AssertUnwindSafe(kind)).ok().flatten();
                into_error(&name, operation, kind, Box::new(error))
            })
        };
        let keep_open = self.keep_open.unwrap_or(self.floor);
        // One that observes is as it would be without.
        let most = if self.mode == Mode::Observe { initial } else { self.ceiling };
        let settings = Settings {
            floor: self.floor,
            ceiling: self.ceiling,
            timeout: self.timeout,
            connect_timeout: self.connect_timeout,
            test_timeout: self.test_timeout,
            test_after: self.test_after,
            idle_timeout: self.idle_timeout,
            leak_threshold: self.leak_threshold,
            keep_open,
            most_open: most.max(keep_open),
        };
        let tracking = Tracking::new(
            self.manager,
            into_error,
            self.doubt,
            self.gone_when,
            self.clock.clone(),
            self.max_life,
        );
        let (names, shares) = with_own_classes(&self.classes, self.system_reserve);
        let now = self.clock.now();
        let shared = Arc::new(Shared {
            id: fastrand::u64(1..),
            gate: Gate::new(initial, self.max_waiting, shares.iter().copied(), self.clock.clone())
                .up_to(most),
            supply: Supply::new(settings.most_open, settings.keep_open, shares),
            store: store(&tracking, &settings),
            tracking,
            turnstile: Mutex::new(Turnstile::new(self.connects_per_second, self.connects_at_once, now)),
            attempts: Arc::new(Semaphore::new(self.connects_at_once as usize)),
            classes: names,
            recorded: Recorded::new(&self.name),
            watch: Watch::default(),
            name: self.name.into(),
            settings,
            allowed: self.allowed,
            clock: self.clock,
            runtime,
        });
        let pool: Weak<Shared<M>> = Arc::downgrade(&shared);
        if let Some(allowed) = &shared.allowed {
            shared.give_way();
            let task = shared.runtime.spawn(allowance::run(Weak::clone(&pool), Arc::clone(allowed)));
            lock(&shared.watch.tasks).push(task.abort_handle());
        }
        let task = shared.runtime.spawn(maintenance::run(pool, sizing));
        lock(&shared.watch.tasks).push(task.abort_handle());
        shared.start(shared.supply.missing());
        Ok(Pool(shared))
    }

    fn check(&self) -> Result<(), Error> {
        let within = |field: &str, value: u32, most: u32| match value {
            0 => Err(Error::configuration(field, "must not be zero")),
            value if value > most => Err(Error::configuration(field, format_args!("must be at most {most}"))),
            _ => Ok(()),
        };
        let (floor, ceiling) = match self.mode {
            Mode::Fixed => ("size", "size"),
            Mode::Observe | Mode::Adaptive => ("floor", "ceiling"),
        };
        within(ceiling, self.ceiling, MOST)?;
        within(floor, self.floor, MOST)?;
        if self.floor > self.ceiling {
            let problem = format_args!("{} is above the ceiling of {}", self.floor, self.ceiling);
            return Err(Error::configuration(floor, problem));
        }
        if let Some(initial) = self.initial.filter(|initial| !(self.floor..=self.ceiling).contains(initial)) {
            let problem = format_args!("{initial} is not from {} to {}", self.floor, self.ceiling);
            return Err(Error::configuration("initial", problem));
        }
        if self.allowed.is_some() && self.mode != Mode::Adaptive {
            return Err(Error::configuration("allowance", "only an adaptive pool can give way"));
        }
        let own = self.allowed.as_ref().map_or(0, |allowed| allowed.own);
        if own > 0 && self.floor > own {
            let problem = format_args!("{} is above the {own} that the allowance always leaves", self.floor);
            return Err(Error::configuration("floor", problem));
        }
        let is_fixed = self.mode == Mode::Fixed;
        for (field, is_set) in [("gain", self.gain.is_some()), ("sizing", self.sizing.is_some())] {
            if is_fixed && is_set {
                return Err(Error::configuration(field, "a pool of a fixed size has none"));
            }
        }
        if self.gain.is_some() && self.sizing.is_some() {
            return Err(Error::configuration("gain", "the `sizing` that is given decides by itself"));
        }
        if self.keep_open.is_some_and(|kept| kept > self.ceiling) {
            return Err(Error::configuration("keep_open", format_args!("is above {}", self.ceiling)));
        }
        within("max_waiting", self.max_waiting, MOST)?;
        within("connects at once", self.connects_at_once, MOST)?;
        if !(self.connects_per_second.is_finite() && self.connects_per_second > 0.0) {
            return Err(Error::configuration("connects per second", "must be above zero"));
        }
        self.check_durations()?;
        self.check_classes()
    }

    fn check_durations(&self) -> Result<(), Error> {
        let all = [
            ("timeout", Some(self.timeout)),
            ("connect_timeout", Some(self.connect_timeout)),
            ("test_timeout", Some(self.test_timeout)),
            ("idle_timeout", self.idle_timeout),
            ("max_life", self.max_life),
            ("leak_threshold", self.leak_threshold),
        ];
        for (field, duration) in all {
            match duration {
                Some(Duration::ZERO) => return Err(Error::configuration(field, "must not be zero")),
                Some(long) if long > LONGEST => {
                    return Err(Error::configuration(field, "must be at most a year"));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn check_classes(&self) -> Result<(), Error> {
        let mut sure = u64::from(self.system_reserve);
        for (index, (name, share)) in self.classes.iter().enumerate() {
            let is_taken = |(other, _): &(String, Share)| other == name;
            if self.classes[..index].iter().any(is_taken) || OWN.contains(&name.as_str()) {
                return Err(Error::configuration("class", format_args!("{name:?} is there twice")));
            }
            if share.at_most == 0 {
                return Err(Error::configuration("class", format_args!("{name:?} may have at most zero")));
            }
            if share.guarantee > share.at_most {
                let problem = format_args!("{name:?} is sure of more than it may have at most");
                return Err(Error::configuration("class", problem));
            }
            sure += u64::from(share.guarantee);
        }
        // One that observes keeps the size that it begins with.
        let size = match self.mode {
            Mode::Observe => self.begins_with(Bounds::new(self.floor, self.ceiling)?),
            Mode::Fixed | Mode::Adaptive => self.ceiling,
        };
        if sure > 0 && sure >= u64::from(size) {
            let problem = format_args!("{sure} of {size} connections leave none to share");
            return Err(Error::configuration("guarantee", problem));
        }
        Ok(())
    }

    fn begins_with(&self, bounds: Bounds) -> u32 {
        bounds.clamp(self.initial.unwrap_or_else(|| initial_size(&Machine::read(), bounds)))
    }

    fn take_sizing(&mut self, bounds: Bounds, initial: u32) -> Option<Followed> {
        let follow = match self.mode {
            Mode::Fixed => return None,
            Mode::Observe => Follow::Say,
            Mode::Adaptive => Follow::Do,
        };
        // Each process with a seed of its own, so that those that share a server do not try in step.
        let verified = || {
            ThroughputVerified::new(bounds, initial)
                .gain(self.gain.unwrap_or_default())
                .seed(fastrand::u64(..))
        };
        let sizing = self.sizing.take().unwrap_or_else(|| Box::new(verified()));
        Some(Followed { sizing, follow })
    }
}

/// The names of the classes that every pool has.
const OWN: [&str; 2] = ["system", DEFAULT_NAME];

fn with_own_classes(named: &[(String, Share)], system_reserve: u32) -> (Box<[Arc<str>]>, Vec<Share>) {
    let own = [Share::new().guarantee(system_reserve), Share::new()];
    let names = OWN.into_iter().map(Arc::from).chain(named.iter().map(|(name, _)| name.as_str().into()));
    let shares = own.into_iter().chain(named.iter().map(|(_, share)| *share));
    (names.collect(), shares.collect())
}

/// bb8 as a store: with nothing that it does by itself.
fn store<M: ManageConnection>(tracking: &Tracking<M>, settings: &Settings) -> bb8::Pool<Tracking<M>> {
    bb8::Pool::builder()
        .max_size(settings.ceiling)
        .min_idle(None)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_on_check_out(false)
        .retry_connection(false)
        .queue_strategy(bb8::QueueStrategy::Lifo)
        .connection_timeout(settings.connect_timeout)
        .build_unchecked(tracking.clone())
}

/// An error of ours stays as it is; anybody else's is a source.
fn into_error(pool: &str, operation: &'static str, kind: Option<ErrorKind>, error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => {
            let kind = kind.unwrap_or(ErrorKind::Unavailable);
            Error::with_source(kind, format!("pool {pool}: {operation}"), error)
        }
    }
}

impl<M: ManageConnection> fmt::Debug for PoolBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .field("size", &(self.floor..=self.ceiling))
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}
