//! A loopback proxy that does to connections what networks do.
//!
//! [`FaultProxy`] stands between a client and a real server: Redis, PostgreSQL, anything over TCP. What it does can
//! be changed at any time, and holds for the connections that are open as well as for new ones.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Most bytes that one direction of a connection holds.
const BUFFER: usize = 16 * 1024;

/// What a [`FaultProxy`] does to bytes and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Weather {
    /// Nothing: bytes pass as they come.
    #[default]
    Clear,
    /// What arrives in either direction goes on this much later.
    Delay(Duration),
    /// One byte in so many of what the server says is another one. Zero is as [`Clear`](Self::Clear).
    Garble(u32),
    /// Connections are accepted and closed at once, and open ones when something arrives on them.
    Refuse,
    /// Connections are accepted and open ones stay so, and nothing passes. What was sent meanwhile passes when that
    /// ends.
    Stall,
    /// No more than so many bytes a second pass in either direction of a connection. Zero is as
    /// [`Stall`](Self::Stall).
    Throttle(u32),
}

/// A proxy on a port of its own of the loopback, in tasks of the runtime it was started in. Stops, and closes every
/// connection, when it is dropped.
///
/// It is for tests: the number of connections it carries is bounded by what the client opens.
///
/// ```
/// use mcp_perf::testing::{FaultProxy, Weather};
/// use tokio::{
///     io::{AsyncReadExt, AsyncWriteExt},
///     net::{TcpListener, TcpStream},
/// };
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let server = TcpListener::bind("127.0.0.1:0").await?;
/// let proxy = FaultProxy::start(server.local_addr()?).await?;
/// let mut client = TcpStream::connect(proxy.address()).await?;
/// let (mut other_end, _) = server.accept().await?;
///
/// client.write_all(b"ping").await?;
/// let mut heard = [0; 4];
/// other_end.read_exact(&mut heard).await?;
/// assert_eq!(&heard, b"ping");
///
/// proxy.set(Weather::Refuse);
/// proxy.cut();
/// assert!(!matches!(client.read(&mut heard).await, Ok(1..)));
/// # Ok(()) }
/// ```
pub struct FaultProxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Counts the cuts; connections end when it changes.
    cuts: watch::Sender<u64>,
    accepted: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy in front of `server`.
    ///
    /// # Errors
    ///
    /// Whatever kept the port from being opened. Whether there is a server shows with the first connection.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (weather, cuts) = (watch::Sender::new(Weather::Clear), watch::Sender::new(0));
        let (accepted, carried) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let line = Line {
            server,
            weather: weather.subscribe(),
            cuts: cuts.subscribe(),
            carried: Arc::clone(&carried),
        };
        let task = tokio::spawn(accept(listener, line, Arc::clone(&accepted)));
        Ok(Self { address, weather, cuts, accepted, carried, task })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens from now on.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Closes every open connection. What was on its way is lost.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How many connections were accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many bytes were carried, in both directions.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // The connections are its children, and go with it.
        self.task.abort();
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy")
            .field("address", &self.address)
            .field("weather", &*self.weather.borrow())
            .finish_non_exhaustive()
    }
}

/// What every connection knows.
#[derive(Clone)]
struct Line {
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    cuts: watch::Receiver<u64>,
    carried: Arc<AtomicU64>,
}

async fn accept(listener: TcpListener, line: Line, accepted: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file handles, say: those in use come back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        accepted.fetch_add(1, Ordering::Relaxed);
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(client, line.clone()));
    }
}

async fn connection(client: TcpStream, mut line: Line) {
    line.cuts.mark_unchanged();
    let mut cuts = line.cuts.clone();
    let carry = async {
        // A server that is stalled accepts; so does its proxy, which connects when the stall is over.
        if line.passes().await.is_none() {
            return;
        }
        let Ok(server) = TcpStream::connect(line.server).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        // Whichever direction ends first takes the other with it.
        tokio::select! {
            () = pump(from_client, to_server, line.clone(), false) => {}
            () = pump(from_server, to_client, line.clone(), true) => {}
        }
    };
    tokio::select! {
        () = carry => {}
        _ = cuts.changed() => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: Line, is_answer: bool) {
    let mut buffer = vec![0; BUFFER];
    let mut passed = 0_u64;
    loop {
        let most = match *line.weather.borrow() {
            // A tenth of a second's worth at a time.
            Weather::Throttle(rate) => (rate as usize / 10).clamp(1, BUFFER),
            _ => BUFFER,
        };
        let length = match from.read(&mut buffer[..most]).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let Some(weather) = line.passes().await else { return };
        match weather {
            Weather::Delay(delay) => tokio::time::sleep(delay).await,
            Weather::Throttle(rate) => {
                #[expect(clippy::cast_precision_loss, reason = "as many as fit the buffer")]
                let seconds = length as f64 / f64::from(rate);
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
            Weather::Garble(one_in @ 1..) if is_answer => {
                for byte in &mut buffer[..length] {
                    passed += 1;
                    if passed.is_multiple_of(u64::from(one_in)) {
                        *byte = !*byte;
                    }
                }
            }
            _ => {}
        }
        // The weather may have changed during the delay.
        if line.passes().await.is_none() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        line.carried.fetch_add(length as u64, Ordering::Relaxed);
    }
}

impl Line {
    /// Waits until something may pass; `None` where the connection is to be closed instead.
    async fn passes(&mut self) -> Option<Weather> {
        let stalls = |weather: &Weather| matches!(weather, Weather::Stall | Weather::Throttle(0));
        let weather = *self.weather.wait_for(|weather| !stalls(weather)).await.ok()?;
        (weather != Weather::Refuse).then_some(weather)
    }
}
