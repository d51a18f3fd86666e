//! The connections of one store: two that everybody shares, and how they are replaced.
//!
//! What is large, or is likely to be, goes over a connection of its own, so that small answers do not wait behind it.
//! bb8 makes the connections, keeps them, and throws the broken ones away; callers share what it keeps, and check
//! nothing out.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bb8::ManageConnection;
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    address::{Address, CONNECT_TIMEOUT},
    connection::Connection,
    fault::{Fault, Lost},
    stats::{Counts, Stats},
    wire::{Commands, Refusal},
};
use crate::{
    Error,
    clock::Instant,
    sync::{Mutex, lock},
};

/// A call is made once more after a connection was lost, and once more after a node named another one.
const TRIES: u32 = 3;
/// For how long a call waits, as often as it was tried, while names are on their way to another node. They go over one
/// by one, and most calls want several: all of them are here again, or there, after a moment or after the last of them.
const BETWEEN_NODES: Duration = Duration::from_millis(20);
/// For how long a refusal to let us in is that of everybody who asks: somebody has to set something right, and until then
/// each attempt is a line in the server's log, and all of a caller's time.
const REFUSED: Duration = Duration::from_millis(500);
/// For how long a server that would not note what is absent, most likely because it is full, is not asked to.
const UNASKED: Duration = Duration::from_secs(1);
/// How many names are remembered for having been large.
const LARGE_NAMES: usize = 1024;

/// The connections of one store.
#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    site: Arc<Site>,
    small: Lane,
    large: Lane,
    /// Made for the first of them: most stores have none, and need not look for them.
    large_names: OnceLock<Box<[AtomicU64; LARGE_NAMES]>>,
    /// Until when it is not asked to note what is absent, in nanoseconds.
    notes_nothing_until: AtomicU64,
}

/// Where the server is.
struct Site {
    configured: Address,
    /// What a connection asks to learn the history of the data, where that matters.
    question: Option<Commands>,
    /// Whether it was told that nothing answers that.
    has_told: AtomicBool,
    /// The node of a cluster that has our names, once another one said so.
    moved: Mutex<Option<Address>>,
    names: Naming,
    /// Since it was first used.
    counts: OnceLock<Arc<Counts>>,
}

/// What is said before the names of a store.
#[derive(Clone, Debug, Default)]
pub(super) struct Naming {
    /// What the store is called for an exporter, if it is to be told.
    pub(super) prefix: Option<Box<str>>,
    /// What every name begins with: the prefix as a hash tag.
    pub(super) tag: Box<str>,
}

/// Which connection a call goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
}

/// A connection that is replaced when it breaks.
struct Lane {
    current: ArcSwapOption<Connection>,
    connections: bb8::Pool<Manager>,
    /// How the last attempt failed, if it did, and when; held while there is one.
    connecting: tokio::sync::Mutex<Option<(Fault, Instant)>>,
    attempts: AtomicU64,
}

/// Tells bb8 how to connect, and which connections have broken.
pub(super) struct Manager(Arc<Site>);

/// How a call is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    /// By the digest of its text, which the server is likely to know.
    ByDigest,
    /// In full.
    InFull,
}

impl Pool {
    /// Connections to this address, which ask this question. What they count is exported with the prefix, if there is
    /// one.
    pub(super) fn new(address: Address, question: Option<Commands>, names: Naming) -> Self {
        let (has_told, moved, counts) = (AtomicBool::new(false), Mutex::default(), OnceLock::new());
        let site = Arc::new(Site { configured: address, question, has_told, moved, names, counts });
        let (small, large) = (Lane::new(&site), Lane::new(&site));
        let (large_names, notes_nothing_until) = (OnceLock::new(), AtomicU64::new(0));
        Self(Arc::new(Inner { site, small, large, large_names, notes_nothing_until }))
    }

    pub(super) fn names(&self) -> &Naming {
        &self.0.site.names
    }

    /// The address that it was made with.
    pub(super) fn address(&self) -> &Address {
        &self.0.site.configured
    }

    /// Makes a call on a shared connection, and makes it again on another one where that may help.
    ///
    /// Every call of ours can be made twice: what it writes is drawn anew, or it finds that it was made.
    pub(super) async fn call<T: Send>(
        &self,
        operation: &'static str,
        size: Size,
        send: impl Fn(&Connection, Script) -> Result<oneshot::Receiver<Result<T, Fault>>, Fault> + Send + Sync,
    ) -> Result<T, Error> {
        let mut script = Script::ByDigest;
        let mut tries = 0;
        let mut lost = false;
        loop {
            tries += 1;
            let connection = self.connection(size).await.map_err(|fault| fault.during(operation))?;
            let answer = {
                let answer = pin!(async {
                    match send(&connection, script) {
                        Ok(answer) => answer.await.unwrap_or(Err(Fault::Lost(Lost::Closed))),
                        Err(fault) => Err(fault),
                    }
                });
                connection.carry(answer).await
            };
            let fault = match answer {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            // That a server does not know a script is nothing to be counted.
            let before = script;
            let again = match &fault {
                Fault::Full => false,
                Fault::Lost(_) => !std::mem::replace(&mut lost, true),
                Fault::Refused(refusal) => match refusal.code() {
                    "MOVED" => self.0.site.follow(refusal) && self.replace(&connection),
                    // The address may lead to the new primary by now.
                    "READONLY" => {
                        *lock(&self.0.site.moved) = None;
                        self.replace(&connection) && !std::mem::replace(&mut lost, true)
                    }
                    "ASK" | "TRYAGAIN" if tries < TRIES => {
                        // Boxed, so that those who need not wait carry no room for it.
                        Box::pin(sleep(BETWEEN_NODES * tries)).await;
                        true
                    }
                    "NOSCRIPT" => std::mem::replace(&mut script, Script::InFull) == Script::ByDigest,
                    _ => false,
                },
            };
            if !again || tries == TRIES {
                return Err(fault.during(operation));
            }
            if script == before {
                self.0.site.counts().retries.add();
            }
        }
    }

    /// What the connections are doing, and did so far.
    pub(super) fn stats(&self) -> Stats {
        let Some(counts) = self.0.site.counts.get() else { return Stats::default() };
        let mut stats = counts.so_far();
        for connection in [&self.0.small, &self.0.large].into_iter().filter_map(Lane::open) {
            let (waiting, queued) = connection.calls();
            stats.open += 1;
            stats.waiting += waiting;
            // Some of those have gone, and are still to be taken out.
            stats.queued += queued.min(waiting);
        }
        stats
    }

    /// Which connection an entry is likely to need.
    pub(super) fn likely_size(&self, name: &str) -> Size {
        let Some(large_names) = self.0.large_names.get() else { return Size::Small };
        let (place, name) = large_name(large_names, name);
        if place.load(Ordering::Relaxed) == name { Size::Large } else { Size::Small }
    }

    /// Takes note of the size that an entry has. Where two names meet in one place the later one is remembered.
    pub(super) fn note_size(&self, name: &str, size: Size) {
        match (size, self.0.large_names.get()) {
            (Size::Large, _) => {
                let make = || Box::new([const { AtomicU64::new(0) }; LARGE_NAMES]);
                let (place, name) = large_name(self.0.large_names.get_or_init(make), name);
                place.store(name, Ordering::Relaxed);
            }
            (Size::Small, Some(large_names)) => {
                let (place, name) = large_name(large_names, name);
                let _ = place.compare_exchange(name, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
            (Size::Small, None) => {}
        }
    }

    /// Whether the server would not note what is absent, a moment ago.
    pub(super) fn notes_nothing(&self) -> bool {
        // Looked at first: nearly always there is no need of the time.
        match self.0.notes_nothing_until.load(Ordering::Relaxed) {
            0 => false,
            until => self.0.site.counts().clock.now().as_nanos() < until,
        }
    }

    /// Takes note of whether it did.
    pub(super) fn has_noted(&self, everything: bool) {
        let until = &self.0.notes_nothing_until;
        if !everything {
            let end = self.0.site.counts().clock.now().after(UNASKED);
            until.store(end.as_nanos(), Ordering::Relaxed);
        } else if until.load(Ordering::Relaxed) > 0 {
            until.store(0, Ordering::Relaxed);
        }
    }

    fn lane(&self, size: Size) -> &Lane {
        match size {
            Size::Small => &self.0.small,
            Size::Large => &self.0.large,
        }
    }

    async fn connection(&self, size: Size) -> Result<Arc<Connection>, Fault> {
        if let Some(connection) = self.lane(size).open() {
            return Ok(connection);
        }
        self.connecting(size).await.unwrap_or(Err(Fault::Lost(Lost::Closed)))
    }

    /// In a task of its own, so that callers less patient than the network do not each start over.
    #[cold]
    #[inline(never)]
    fn connecting(&self, size: Size) -> JoinHandle<Result<Arc<Connection>, Fault>> {
        let pool = self.clone();
        tokio::spawn(async move { pool.lane(size).connect(&pool.0.site).await })
    }

    /// Has a connection that leads to the wrong place replaced, and its twin with it.
    fn replace(&self, connection: &Arc<Connection>) -> bool {
        let lanes = [&self.0.small, &self.0.large];
        let is_current = |lane: &&Lane| {
            lane.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, connection))
        };
        connection.close(Lost::Replaced);
        if lanes.iter().any(is_current) {
            for lane in lanes {
                if let Some(current) = lane.current.swap(None) {
                    current.close(Lost::Replaced);
                }
            }
        }
        true
    }
}

/// Where a name is noted, and what is noted there of it.
fn large_name<'a>(large_names: &'a [AtomicU64; LARGE_NAMES], name: &str) -> (&'a AtomicU64, u64) {
    let hash = xxh3_64(name.as_bytes()).max(1);
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
    let place = hash as usize % LARGE_NAMES;
    (&large_names[place], hash)
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = [&self.0.small, &self.0.large].iter().filter(|lane| lane.open().is_some()).count();
        f.debug_struct("Pool").field("connections", &open).finish_non_exhaustive()
    }
}

impl Lane {
    fn new(site: &Arc<Site>) -> Self {
        let connections = bb8::Pool::builder()
            .max_size(1)
            .test_on_check_out(false)
            .retry_connection(false)
            .connection_timeout(CONNECT_TIMEOUT)
            // A shared connection is in use all the time, and either may need a runtime to be there already.
            .max_lifetime(None)
            .idle_timeout(None)
            .build_unchecked(Manager(Arc::clone(site)));
        let connecting = tokio::sync::Mutex::default();
        Self { current: ArcSwapOption::empty(), connections, connecting, attempts: AtomicU64::new(0) }
    }

    fn open(&self) -> Option<Arc<Connection>> {
        self.current.load().as_ref().filter(|connection| connection.is_open()).map(Arc::clone)
    }

    /// Makes the connection, one caller at a time. Who waited for another's attempt that failed shares its failure:
    /// in turn, a hundred callers of a silent address would wait for a hundred time-outs.
    async fn connect(&self, site: &Site) -> Result<Arc<Connection>, Fault> {
        let attempts = self.attempts.load(Ordering::Acquire);
        let mut failure = self.connecting.lock().await;
        if let Some(connection) = self.open() {
            return Ok(connection);
        }
        let counts = site.counts();
        if let Some((fault, at)) = &*failure {
            let is_new = self.attempts.load(Ordering::Acquire) != attempts;
            let is_refusal = fault.is_lasting() && counts.clock.now().since(*at) < REFUSED;
            if is_new || is_refusal {
                return Err(fault.clone());
            }
        }
        // A broken one goes when it is returned. Connecting is not left to `get`, which waits for its time-out and
        // keeps the reason to itself.
        if self.connections.state().connections > 0 {
            drop(self.connections.get().await);
        }
        let began = counts.clock.now();
        let made = self.connections.dedicated_connection().await;
        match &made {
            Ok(connection) => {
                counts.connects.record(counts.clock.now().since(began));
                connection.count_for(counts);
            }
            Err(_) => counts.connect_failures.add(),
        }
        self.attempts.fetch_add(1, Ordering::AcqRel);
        *failure = made.as_ref().err().map(|fault| (fault.clone(), counts.clock.now()));
        let made = match made {
            Ok(made) => made,
            Err(fault) => {
                // The node that was named may be gone as well.
                *lock(&site.moved) = None;
                return Err(fault);
            }
        };
        // Without room for it, it is ours alone, which is as good.
        let _ = self.connections.add(Arc::clone(&made));
        self.current.store(Some(Arc::clone(&made)));
        Ok(made)
    }
}

impl Site {
    fn counts(&self) -> &Arc<Counts> {
        self.counts.get_or_init(|| Arc::new(Counts::new(self.names.prefix.as_deref())))
    }

    async fn connect(&self) -> Result<Connection, Fault> {
        let address = lock(&self.moved).clone();
        let stream = address.as_ref().unwrap_or(&self.configured).open().await?;
        let connection = Connection::new(stream, self.question.clone());
        // A bus has no data, and only wants to know whether it is at the primary.
        let matters = self.names.prefix.is_some();
        if !connection.ask().await? && matters && !self.has_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "redis does not tell the history of its data (`INFO replication`): what was removed may be back after \
                 a restart or a failover"
            );
        }
        Ok(connection)
    }

    /// Goes to the node that the refusal names, and tells whether it names one.
    fn follow(&self, refusal: &Refusal) -> bool {
        let place = refusal.line().split(' ').nth(2).and_then(|place| place.rsplit_once(':'));
        let Some((host, Ok(port))) = place.map(|(host, port)| (host, port.parse())) else { return false };
        // `?` is a node that knows no name of its own.
        let host = if host == "?" { "" } else { host };
        *lock(&self.moved) = Some(self.configured.at(host, port));
        true
    }
}

impl ManageConnection for Manager {
    type Connection = Arc<Connection>;
    type Error = Fault;

    async fn connect(&self) -> Result<Arc<Connection>, Fault> {
        match self.0.connect().await {
            Err(Fault::Refused(refusal)) if refusal.code() == "MOVED" && self.0.follow(&refusal) => {
                self.0.connect().await
            }
            made => made,
        }
        .map(Arc::new)
    }

    async fn is_valid(&self, connection: &mut Arc<Connection>) -> Result<(), Fault> {
        if connection.is_open() { Ok(()) } else { Err(Fault::Lost(Lost::Closed)) }
    }

    fn has_broken(&self, connection: &mut Arc<Connection>) -> bool {
        !connection.is_open()
    }
}
