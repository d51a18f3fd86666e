//! How a connection is made: where to, as whom, with which settings.
//!
//! The driver connects, one address at a time. The names are looked up here, for two reasons: each address gets its
//! share of the time, so that one that is silent does not use up that of the others; and a query can be cancelled for
//! certain only where it runs, at an address that the driver keeps to itself.

use std::{
    fmt,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{
    AsyncMessage, CancelToken, Client, Config, Socket,
    config::{Host, LoadBalanceHosts, SslMode},
};

use super::{
    dial::{Securing, Way},
    fault::Fault,
};
use crate::{
    Error, ErrorKind,
    tcp::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, USER_TIMEOUT},
    wheel::Drive,
};

/// How long an attempt to connect may take for the store of a cache, which can do without.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of the connections of a cache's store; the reasons are in the module's page.
pub(super) const STORE_OPTIONS: &str = "-c statement_timeout=2000 -c jit=off \
    -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off \
    -c default_transaction_isolation=read\\ committed";
const APPLICATION_NAME: &str = "mcp-perf";
/// What the driver says if the URL says nothing.
const DRIVERS_KEEPALIVE_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// How to connect: where to, as whom, over which TLS.
#[derive(Clone)]
pub(super) struct Connector(Arc<dyn Fn() -> Connecting + Send + Sync>);

type Connecting = Pin<Box<dyn Future<Output = Result<Connected, Fault>> + Send>>;

/// A connection that was just made.
pub(super) struct Connected {
    pub(super) client: Client,
    /// Nothing is sent unless it is driven.
    pub(super) connection: Connection,
    pub(super) canceller: Canceller,
}

/// The half of a connection that has to be driven, whatever its TLS.
pub(super) struct Connection(Box<PollMessage>);

type Message = Option<Result<AsyncMessage, tokio_postgres::Error>>;
type PollMessage = dyn FnMut(&mut Context<'_>) -> Poll<Message> + Send;

/// Cancels what runs on one connection, whatever its TLS.
#[derive(Clone)]
pub(super) struct Canceller(Arc<dyn Fn(CancelToken) -> Cancelling + Send + Sync>);

type Cancelling = Pin<Box<dyn Future<Output = bool> + Send>>;

/// One host of the configuration, with its port.
#[derive(Clone, PartialEq, Eq)]
struct Site {
    /// What a certificate has to be for.
    name: Option<String>,
    place: Place,
    port: u16,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Name(String),
    Address(IpAddr),
    /// A socket in the file system, which the driver finds.
    Folder(Host),
}

/// Everything that an attempt to connect takes.
struct Plan<T> {
    /// As whom and how, and to no host.
    config: Config,
    sites: Vec<Site>,
    in_any_order: bool,
    timeout: Duration,
    tls: T,
    way: Way<T>,
}

/// Reads a URL, or what else the driver takes for one.
///
/// The driver knows no `sslmode=verify-full`. Here it is what `require` is: the certificate and its name are checked
/// in any case.
pub(super) fn config(url: &str) -> Result<Config, Error> {
    let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    let url = match url.split_once('?').filter(|_| is_url) {
        Some((place, settings)) => {
            let settings = settings.split('&').map(known).collect::<Vec<_>>();
            format!("{place}?{}", settings.join("&"))
        }
        None => url.split(' ').map(known).collect::<Vec<_>>().join(" "),
    };
    // The driver's error may quote the URL, and with it the password: it is left out.
    url.parse().map_err(|_| {
        Error::configuration("url", "not one of the form postgres://[user[:password]@]host[:port][/database]")
    })
}

fn known(setting: &str) -> &str {
    if setting == "sslmode=verify-full" { "sslmode=require" } else { setting }
}

impl Connector {
    /// A connector to what `config` names. Its `options` come after ours, and so win.
    pub(super) fn new<T>(
        config: &Config,
        options: &str,
        timeout: Duration,
        tls: T,
        way: Way<T>,
    ) -> Result<Self, Error>
    where
        T: Securing<Socket> + Clone + Sync,
    {
        let plan = Arc::new(Plan {
            sites: sites(config)?,
            in_any_order: config.get_load_balance_hosts() == LoadBalanceHosts::Random,
            config: without_hosts(config, options),
            timeout,
            tls,
            way,
        });
        Ok(Self(Arc::new(move || {
            let plan = Arc::clone(&plan);
            Box::pin(async move { plan.connect().await })
        })))
    }

    /// A connector of a cache's store, whose TLS, if any, is the program's.
    pub(super) fn of_store<T>(url: &str, tls: T, has_tls: bool) -> Result<Self, Error>
    where
        T: Securing<Socket> + Clone + Sync,
    {
        let config = config(url)?;
        if config.get_ssl_mode() == SslMode::Require && !has_tls {
            #[cfg(feature = "postgres-tls")]
            return Self::new(
                &config,
                STORE_OPTIONS,
                CONNECT_TIMEOUT,
                super::tls::Tls::default(),
                Way::DRIVERS,
            );
            #[cfg(not(feature = "postgres-tls"))]
            return Err(Error::configuration(
                "url",
                "asks for TLS, which takes the feature `postgres-tls` or `with_tls`",
            ));
        }
        Self::new(&config, STORE_OPTIONS, CONNECT_TIMEOUT, tls, Way::DRIVERS)
    }

    /// Makes a connection, within its time-out.
    pub(super) async fn connect(&self) -> Result<Connected, Fault> {
        (self.0)().await
    }
}

impl<T> Plan<T>
where
    T: Securing<Socket> + Clone + Sync,
{
    /// Tries one host after the other, each of which gets the same share of the time.
    async fn connect(&self) -> Result<Connected, Fault> {
        let mut sites: Vec<&Site> = self.sites.iter().collect();
        if self.in_any_order {
            fastrand::shuffle(&mut sites);
        }
        let share = self.timeout / u32::try_from(sites.len()).unwrap_or(u32::MAX).max(1);
        let mut last = None;
        for site in sites {
            match tokio::time::timeout(share, self.connect_to(site, share)).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(fault)) => more_telling(&mut last, fault),
                Err(elapsed) => more_telling(&mut last, too_long(elapsed)),
            }
        }
        // There is one host at least.
        Err(last.unwrap_or_else(|| Fault::new(ErrorKind::HostNotFound, "no host is named", "no host")))
    }

    async fn connect_to(&self, site: &Site, share: Duration) -> Result<Connected, Fault> {
        let mut addresses = match &site.place {
            Place::Folder(_) => return self.connect_at(site, None).await,
            Place::Address(address) => vec![SocketAddr::new(*address, site.port)],
            Place::Name(name) => {
                let not_found = |error| Fault::new(ErrorKind::HostNotFound, "the host was not found", error);
                tokio::net::lookup_host((name.as_str(), site.port)).await.map_err(not_found)?.collect()
            }
        };
        if self.in_any_order {
            fastrand::shuffle(&mut addresses);
        }
        let share = share / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut last = None;
        for address in addresses {
            match tokio::time::timeout(share, self.connect_at(site, Some(address))).await {
                Ok(Ok(connected)) => return Ok(connected),
                // Another way to the same server, which has said no.
                Ok(Err(fault)) if fault.kind() == ErrorKind::Credentials => return Err(fault),
                Ok(Err(fault)) => more_telling(&mut last, fault),
                Err(elapsed) => more_telling(&mut last, too_long(elapsed)),
            }
        }
        Err(last
            .unwrap_or_else(|| Fault::new(ErrorKind::HostNotFound, "the host has no address", "no address")))
    }

    async fn connect_at(&self, site: &Site, address: Option<SocketAddr>) -> Result<Connected, Fault> {
        let mut config = self.config.clone();
        config.port(site.port).connect_timeout(self.timeout);
        match (&site.place, address) {
            (Place::Folder(Host::Tcp(name)), _) => config.host(name),
            #[cfg(unix)]
            (Place::Folder(Host::Unix(folder)), _) => config.host_path(folder),
            (_, Some(address)) => {
                if let Some(name) = &site.name {
                    config.host(name);
                }
                config.hostaddr(address.ip())
            }
            (Place::Name(name), None) => config.host(name),
            (Place::Address(address), None) => config.hostaddr(*address),
        };
        let (tls, way, name) = (self.tls.clone(), self.way, site.name.clone().unwrap_or_default());
        let dialed = (way.dial)(&config, address, name.clone(), tls.clone()).await;
        let (client, connection) = dialed.map_err(Fault::connecting)?;
        let cancel = way.cancel;
        Ok(Connected {
            client,
            connection,
            canceller: Canceller(Arc::new(move |token| cancel(token, address, name.clone(), tls.clone()))),
        })
    }
}

/// Keeps the last fault, but what a server said over that another could not be reached.
fn more_telling(last: &mut Option<Fault>, fault: Fault) {
    let is_said = |fault: &Fault| {
        use ErrorKind::{Disconnected, HostNotFound, TimedOut, Unavailable};
        !matches!(fault.kind(), Disconnected | HostNotFound | TimedOut | Unavailable)
    };
    if is_said(&fault) || !last.as_ref().is_some_and(is_said) {
        *last = Some(fault);
    }
}

fn too_long(elapsed: tokio::time::error::Elapsed) -> Fault {
    Fault::new(ErrorKind::TimedOut, "no connection in time", elapsed)
}

/// The hosts of a configuration. There may be names, addresses, or both, in which case the addresses are used and the
/// names are those of the certificates.
fn sites(config: &Config) -> Result<Vec<Site>, Error> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err(Error::configuration("url", "names no host"));
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(Error::configuration("url", "has more of `host` or of `hostaddr`"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(Error::configuration("url", "has neither one port nor one for each host"));
    }
    let site = |index: usize| {
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        let name = match hosts.get(index) {
            Some(Host::Tcp(name)) => Some(name.clone()),
            _ => None,
        };
        let place = match (addresses.get(index), hosts.get(index)) {
            (Some(address), _) => Place::Address(*address),
            (None, Some(Host::Tcp(name))) => Place::Name(name.clone()),
            (None, Some(folder)) => Place::Folder(folder.clone()),
            (None, None) => return None,
        };
        Some(Site { name, place, port })
    };
    Ok((0..count).filter_map(site).collect())
}

/// As whom and how to connect. The driver's type cannot forget its hosts.
fn without_hosts(config: &Config, options: &str) -> Config {
    let mut bare = Config::new();
    if let Some(user) = config.get_user() {
        bare.user(user);
    }
    if let Some(password) = config.get_password() {
        bare.password(password);
    }
    if let Some(database) = config.get_dbname() {
        bare.dbname(database);
    }
    bare.options(match config.get_options() {
        Some(own) => format!("{options} {own}"),
        None => options.to_owned(),
    })
    .application_name(config.get_application_name().unwrap_or(APPLICATION_NAME))
    .ssl_mode(config.get_ssl_mode())
    .ssl_negotiation(config.get_ssl_negotiation())
    .target_session_attrs(config.get_target_session_attrs())
    .channel_binding(config.get_channel_binding())
    .keepalives(config.get_keepalives())
    .keepalives_idle(match config.get_keepalives_idle() {
        DRIVERS_KEEPALIVE_IDLE => KEEPALIVE_IDLE,
        own => own,
    })
    .keepalives_interval(config.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL))
    .keepalives_retries(config.get_keepalives_retries().unwrap_or(KEEPALIVE_RETRIES))
    .tcp_user_timeout(config.get_tcp_user_timeout().copied().unwrap_or(USER_TIMEOUT));
    bare
}

impl Connection {
    pub(super) fn new<S, T>(mut connection: tokio_postgres::Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self(Box::new(move |context| connection.poll_message(context)))
    }

    /// What the server says of its own accord; `None` when the connection has ended.
    pub(super) async fn message(&mut self) -> Message {
        poll_fn(|context| (self.0)(context)).await
    }

    /// As [`Drive::poll`].
    pub(super) async fn run(mut self) -> Result<(), tokio_postgres::Error> {
        poll_fn(|context| self.poll(context)).await
    }
}

impl Drive for Connection {
    type Ended = Result<(), tokio_postgres::Error>;

    /// Carries queries and answers until the client is dropped or the connection breaks, and says why it did.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Self::Ended> {
        loop {
            match ready!((self.0)(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Canceller {
    /// Cancels what runs, if anything does. True if it is certain that this is over, and strikes nothing that is asked
    /// from now on.
    pub(super) async fn cancel(&self, token: CancelToken) -> bool {
        (self.0)(token).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(url: &str) -> Vec<(Option<String>, u16, bool)> {
        let sites = sites(&config(url).unwrap()).unwrap();
        sites
            .into_iter()
            .map(|site| (site.name, site.port, matches!(site.place, Place::Address(_))))
            .collect()
    }

    #[test]
    fn hosts_addresses_and_ports_are_paired_as_libpq_does() {
        assert_eq!(named("postgres://a/x"), [(Some("a".into()), 5432, false)]);
        assert_eq!(
            named("postgres://a:1,b:2/x"),
            [(Some("a".into()), 1, false), (Some("b".into()), 2, false)]
        );
        assert_eq!(
            named("host=a,b hostaddr=10.0.0.1,10.0.0.2 port=7"),
            [(Some("a".into()), 7, true), (Some("b".into()), 7, true)]
        );
        assert_eq!(named("hostaddr=10.0.0.1 port=7"), [(None, 7, true)]);
        for wrong in ["user=a", "host=a,b hostaddr=10.0.0.1", "host=a,b,c port=1,2"] {
            assert!(sites(&config(wrong).unwrap()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn verify_full_is_require_where_it_is_a_setting_and_nowhere_else() {
        for full in [
            "postgres://a/x?user=b&sslmode=verify-full",
            "host=a sslmode=verify-full user=b",
            "host=a password=p?x sslmode=verify-full",
        ] {
            assert_eq!(config(full).unwrap().get_ssl_mode(), SslMode::Require, "{full}");
        }
        let other = config("postgres://u:sslmode=verify-full@a/x").unwrap();
        assert_eq!(other.get_password(), Some(&b"sslmode=verify-full"[..]));
        assert_eq!(other.get_ssl_mode(), SslMode::Prefer);
    }

    #[test]
    fn everything_but_the_hosts_is_kept() {
        let all = "host=a user=u password=p dbname=d options='-c x=1' application_name=n sslmode=require \
            sslnegotiation=direct target_session_attrs=read-write channel_binding=require keepalives=0 \
            tcp_user_timeout=7";
        let bare = without_hosts(&config(all).unwrap(), "-c y=2");
        assert_eq!((bare.get_user(), bare.get_password()), (Some("u"), Some(&b"p"[..])));
        assert_eq!((bare.get_dbname(), bare.get_application_name()), (Some("d"), Some("n")));
        assert_eq!(bare.get_options(), Some("-c y=2 -c x=1"));
        assert_eq!(bare.get_ssl_mode(), SslMode::Require);
        assert_eq!(bare.get_ssl_negotiation(), tokio_postgres::config::SslNegotiation::Direct);
        assert_eq!(bare.get_target_session_attrs(), tokio_postgres::config::TargetSessionAttrs::ReadWrite);
        assert_eq!(bare.get_channel_binding(), tokio_postgres::config::ChannelBinding::Require);
        assert!(!bare.get_keepalives());
        assert_eq!(bare.get_tcp_user_timeout(), Some(&Duration::from_secs(7)));
        assert!(bare.get_hosts().is_empty());
    }
}
