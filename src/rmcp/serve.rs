//! Listening for HTTP the way an MCP server should.

use std::{convert::Infallible, error::Error as StdError, future::pending, io, time::Duration};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower_service::Service;

/// Serves HTTP/1.1 on `listener` until the task is dropped; see [`serve_until`].
///
/// # Errors
///
/// None: what goes wrong with one connection ends that connection.
///
/// # Cancel safety
///
/// Dropping it stops accepting; idle connections are closed, the others when the request they are at is answered.
pub async fn serve<S, B>(listener: TcpListener, service: S) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    serve_until(listener, service, pending()).await
}

/// Serves HTTP/1.1 on `listener` until `stop` is done, then lets running requests end, for at most 10 seconds, and
/// ends what is still running after that.
///
/// The service is rmcp's `StreamableHttpService`, alone or under tower layers, or an axum `Router` that holds
/// it. Every connection has `TCP_NODELAY` set: without it an answer in several small writes, as rmcp's
/// server-sent events are, waits for the acknowledgement that the client delays by some 40 ms.
///
/// A stream that a client keeps open is a running request. So that these do not take up the 10 seconds, give rmcp's
/// configuration a cancellation token, and cancel it when the server is to stop.
///
/// There is no bound on the number of connections: that is for the proxy in front, or the process's limit on files.
///
/// The example takes `cargo add rmcp@3.9 --features transport-streamable-http-server`, and `tokio-util`.
///
/// ```no_run
/// use mcp_perf::rmcp::{Performance, serve_until};
/// use rmcp::{ServerHandler, transport::streamable_http_server::{
///     StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
/// }};
///
/// # #[derive(Clone)] struct Weather;
/// # impl ServerHandler for Weather {}
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Performance::builder(Weather).build()?;
/// let streams = tokio_util::sync::CancellationToken::new();
/// let service = StreamableHttpService::new(
///     move || Ok(server.clone()),
///     std::sync::Arc::new(LocalSessionManager::default()),
///     StreamableHttpServerConfig::default().with_cancellation_token(streams.child_token()),
/// );
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// let stop = async {
///     let _ = tokio::signal::ctrl_c().await;
///     streams.cancel();
/// };
/// serve_until(listener, service, stop).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// None: what goes wrong with one connection ends that connection.
///
/// # Cancel safety
///
/// As [`serve`].
pub async fn serve_until<S, B>(
    listener: TcpListener,
    service: S,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    // The timer bounds how long a client may take to send its header fields: 30 seconds.
    http.timer(TokioTimer::new());
    // Ends what is still running when the time to end is over; dropping `serve` leaves it alone.
    let over = tokio_util::sync::CancellationToken::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                rest_after(&error).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("TCP_NODELAY cannot be set: {error}");
        }
        let connection =
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service.clone()));
        let connection = graceful.watch(connection);
        let over = over.clone();
        tokio::spawn(async move {
            if let Some(Err(error)) = over.run_until_cancelled(connection).await {
                tracing::debug!("connection ended: {error}");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(Duration::from_secs(10), graceful.shutdown()).await.is_err() {
        over.cancel();
        tracing::warn!("requests were still running 10 seconds after the server was to stop");
    }
    Ok(())
}

/// A connection that was gone before it was accepted is nothing; anything else is the process out of something,
/// and asking again at once would only burn a core.
async fn rest_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!("cannot accept connections: {error}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
