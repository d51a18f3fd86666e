//! How a connection is made: where to, as whom, with which settings.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio_postgres::{
    AsyncMessage, Client, Config, Socket,
    config::SslMode,
    tls::{MakeTlsConnect, TlsConnect},
};

use super::fault::sorted;
use crate::Error;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of every connection; the reasons are in the module's page.
const OPTIONS: &str = "-c statement_timeout=2000 -c jit=off -c plan_cache_mode=force_generic_plan \
    -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off \
    -c default_transaction_isolation=read\\ committed";
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How to connect: where to, as whom, over which TLS.
#[derive(Clone)]
pub(super) struct Connector(Arc<dyn Fn() -> Connecting + Send + Sync>);

type Connecting = Pin<Box<dyn Future<Output = Result<(Client, Connection), tokio_postgres::Error>> + Send>>;

/// The half of a connection that has to be driven, whatever its TLS.
pub(super) struct Connection(Box<PollMessage>);

type Message = Option<Result<AsyncMessage, tokio_postgres::Error>>;
type PollMessage = dyn FnMut(&mut Context<'_>) -> Poll<Message> + Send;

impl Connector {
    pub(super) fn new<T>(url: &str, tls: T, has_tls: bool) -> Result<Self, Error>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        // The driver's error may quote the URL, and with it the password: it is left out.
        let mut config: Config = url.parse().map_err(|_| {
            Error::configuration(
                "url",
                "not one of the form postgres://[user[:password]@]host[:port][/database]",
            )
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::configuration("url", "names no host"));
        }
        if config.get_ssl_mode() == SslMode::Require && !has_tls {
            return Err(Error::configuration("url", "asks for TLS, which takes `PostgresStore::with_tls`"));
        }
        let options = match config.get_options() {
            Some(own) => format!("{OPTIONS} {own}"),
            None => OPTIONS.to_owned(),
        };
        config.options(options);
        if config.get_application_name().is_none() {
            config.application_name("mcp-perf");
        }
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(USER_TIMEOUT);
        let config = Arc::new(config);
        Ok(Self(Arc::new(move || {
            let (config, tls) = (Arc::clone(&config), tls.clone());
            Box::pin(async move {
                let (client, mut connection) = config.connect(tls).await?;
                Ok((client, Connection(Box::new(move |context| connection.poll_message(context)))))
            })
        })))
    }

    /// Makes a connection, within its time-out. Nothing is sent on it unless its other half is driven.
    pub(super) async fn connect(&self, operation: &'static str) -> Result<(Client, Connection), Error> {
        match tokio::time::timeout(CONNECT_TIMEOUT, (self.0)()).await {
            Ok(connected) => connected.map_err(|error| sorted(operation, error)),
            Err(elapsed) => Err(Error::unavailable(
                format!("postgres cannot be reached ({operation}): no connection in time"),
                elapsed,
            )),
        }
    }
}

impl Connection {
    /// What the server says of its own accord; `None` when the connection has ended.
    pub(super) async fn message(&mut self) -> Message {
        poll_fn(|context| (self.0)(context)).await
    }

    /// Carries queries and answers until the client is dropped or the connection breaks.
    pub(super) async fn run(mut self) {
        while let Some(Ok(_)) = self.message().await {}
    }
}
