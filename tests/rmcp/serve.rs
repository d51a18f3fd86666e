//! Listening: `TCP_NODELAY`, and an end that lets running requests end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use mcp_perf::rmcp::{Performance, serve, serve_until};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    fixture::{Gate, Http, SECOND, Scripted, settle},
    wire::open_session,
};

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Running {
    /// Serves `/`, and `/slow`, which waits at the gate.
    async fn start(gate: &Gate) -> Self {
        let gate = gate.clone();
        let slow = move || async move {
            gate.pass().await;
            "slow"
        };
        let router = Router::new().route("/", get(async || "quick")).route("/slow", get(slow));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve_until(listener, router, async {
            let _ = stopped.await;
        }));
        Self { address, stop, served }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

async fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
}

/// What the server sends up to and with `end`.
async fn receive(stream: &mut TcpStream, end: &str) -> String {
    let mut received = Vec::new();
    while !received.ends_with(end.as_bytes()) {
        received.push(stream.read_u8().await.expect("the answer"));
    }
    String::from_utf8(received).unwrap()
}

async fn is_refused(address: SocketAddr) -> bool {
    match TcpStream::connect(address).await {
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

#[tokio::test]
async fn connection_answers_one_request_after_the_other() {
    let server = Running::start(&Gate::new()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        ask(&mut stream, "/").await;
        assert!(receive(&mut stream, "quick").await.starts_with("HTTP/1.1 200 OK"));
    }
}

#[tokio::test]
async fn end_lets_a_running_request_end_and_refuses_new_connections() {
    let gate = Gate::new();
    let server = Running::start(&gate).await;
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    ask(&mut idle, "/").await;
    receive(&mut idle, "quick").await;
    ask(&mut busy, "/slow").await;
    gate.reached().await;
    server.stop.send(()).unwrap();
    settle().await;
    assert!(is_refused(server.address).await, "nobody listens any more");
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0, "what is idle is closed");
    assert!(!server.served.is_finished(), "it waits for the running request");
    gate.open();
    let answer = receive(&mut busy, "slow").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    server.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn end_does_not_wait_longer_than_ten_seconds() {
    let gate = Gate::new();
    let server = Running::start(&gate).await;
    let mut stuck = server.connect().await;
    ask(&mut stuck, "/slow").await;
    gate.reached().await;
    // From here on time passes as soon as nothing else is to be done.
    tokio::time::pause();
    let stopped_at = paused_now();
    server.stop.send(()).unwrap();
    server.served.await.unwrap().unwrap();
    let waited = paused_now() - stopped_at;
    assert!((10 * SECOND..11 * SECOND).contains(&waited), "{waited:?}");
    let rest = tokio::time::timeout(SECOND, stuck.read(&mut [0; 1])).await;
    assert_eq!(rest.expect("what still ran is ended").unwrap(), 0);
}

/// The time that moves with the runtime's paused timers.
#[expect(
    clippy::disallowed_methods,
    reason = "the crate's clock does not stand still when the runtime's does"
)]
fn paused_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// How long the end takes while a client of a session holds its stream of events open.
async fn end_with_an_open_stream(how: impl FnOnce(&CancellationToken)) -> Duration {
    let streams = CancellationToken::new();
    let server = Performance::builder(Scripted::new().counting("count")).build().unwrap();
    let service = StreamableHttpService::new(
        move || Ok(server.clone()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default().with_cancellation_token(streams.clone()),
    );
    let http = Http::serve(service).await;
    let session = open_session(&http, &[]).await;
    let open = reqwest::Client::new()
        .get(&http.url)
        .header("accept", "text/event-stream")
        .header("mcp-session-id", session)
        .send()
        .await
        .unwrap();
    assert_eq!(open.status(), 200);
    tokio::time::pause();
    let stopped_at = paused_now();
    how(&streams);
    http.stop().await;
    let waited = paused_now() - stopped_at;
    drop(open);
    waited
}

#[tokio::test]
async fn end_waits_ten_seconds_for_a_stream_of_events_that_nobody_ends() {
    let waited = end_with_an_open_stream(|_| ()).await;
    assert!((10 * SECOND..11 * SECOND).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn end_is_at_once_if_the_token_of_the_streams_is_cancelled() {
    let waited = end_with_an_open_stream(CancellationToken::cancel).await;
    assert!(waited < SECOND, "{waited:?}");
}

#[tokio::test]
async fn client_that_never_finishes_its_header_fields_is_hung_up_on() {
    let server = Running::start(&Gate::new()).await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: local").await.unwrap();
    settle().await;
    tokio::time::pause();
    let began = paused_now();
    let mut rest = Vec::new();
    tokio::time::timeout(31 * SECOND, slow.read_to_end(&mut rest))
        .await
        .expect("the server hangs up")
        .unwrap();
    let waited = paused_now() - began;
    assert!(waited >= 29 * SECOND, "and not at once: {waited:?}");
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
}

#[tokio::test]
async fn end_without_connections_is_at_once() {
    let server = Running::start(&Gate::new()).await;
    server.stop.send(()).unwrap();
    server.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn dropped_server_stops_listening_and_answers_what_was_running() {
    let gate = Gate::new();
    let server = Running::start(&gate).await;
    let mut busy = server.connect().await;
    ask(&mut busy, "/slow").await;
    gate.reached().await;
    server.served.abort();
    assert!(server.served.await.unwrap_err().is_cancelled());
    assert!(is_refused(server.address).await);
    gate.open();
    assert!(receive(&mut busy, "slow").await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn connection_that_breaks_off_or_talks_nonsense_does_not_end_the_server() {
    let server = Running::start(&Gate::new()).await;
    for nonsense in [
        "",
        "GET",
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n1",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        drop(stream);
    }
    let mut stream = server.connect().await;
    ask(&mut stream, "/").await;
    receive(&mut stream, "quick").await;
    assert!(!server.served.is_finished());
}

async fn panics() -> &'static str {
    panic!("on purpose: a service that panics")
}

#[tokio::test]
async fn service_that_panics_ends_its_connection_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Router::new().route("/", get(async || "quick")).route("/panic", get(panics));
    tokio::spawn(serve(listener, service));
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask(&mut stream, "/panic").await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask(&mut stream, "/").await;
    receive(&mut stream, "quick").await;
}

/// The option as the kernel has it: a copy of the accepted socket is taken from this very process.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn accepted_connection_sends_without_delay() {
    let server = Running::start(&Gate::new()).await;
    let mut stream = server.connect().await;
    // It has answered, so the socket is as the server wants it.
    ask(&mut stream, "/").await;
    receive(&mut stream, "quick").await;
    let (ours, theirs) =
        match (socket_with_peer(server.address), socket_with_peer(stream.local_addr().unwrap())) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(error), _) | (_, Err(error)) => {
                assert!(matches!(error, rustix::io::Errno::PERM | rustix::io::Errno::NOSYS), "{error}");
                eprintln!("not tested: this sandbox forbids pidfd_getfd");
                return;
            }
        };
    assert!(theirs.expect("the server's end").nodelay().unwrap());
    assert!(!ours.expect("the client's end").nodelay().unwrap(), "it is not simply so for every socket");
}

#[cfg(target_os = "linux")]
fn socket_with_peer(peer: SocketAddr) -> rustix::io::Result<Option<std::net::TcpStream>> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if !target.to_string_lossy().starts_with("socket:") {
            continue;
        }
        let number = entry.file_name().to_string_lossy().parse().unwrap();
        let socket = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(copy) => std::net::TcpStream::from(copy),
            // Another test has closed it meanwhile.
            Err(rustix::io::Errno::BADF) => continue,
            Err(error) => return Err(error),
        };
        if socket.peer_addr().is_ok_and(|address| address == peer) {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}
