//! Where a server is, and who we are to it.

use std::{fmt, path::PathBuf, time::Duration};

use ::redis::{ConnectionAddr, IntoConnectionInfo};
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::lookup_host,
};

use super::{
    connection::Stream,
    fault::{Fault, Lost},
    wire::{self, Commands, Token},
};
use crate::{
    Error,
    tcp::{self, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, USER_TIMEOUT},
};

/// For a connection to be made, from the name of its host to its first answer.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A server, and what to say to it first.
#[derive(Clone)]
pub(super) struct Address {
    place: Place,
    user: Option<Box<str>>,
    password: Option<Box<str>>,
    pub(super) database: i64,
    pub(super) client_name: Option<Box<str>>,
    #[cfg(feature = "redis-tls")]
    tls: Option<super::tls::Tls>,
}

#[derive(Clone)]
enum Place {
    Tcp(Box<str>, u16),
    Socket(PathBuf),
}

impl Address {
    /// What a URL says. The driver reads it, whose error may quote it, and with it the password: that is left out.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let secure = ["rediss://", "valkeys://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let wrong = |problem| Error::configuration("url", problem);
        if secure.is_some() && cfg!(not(feature = "redis-tls")) {
            return Err(wrong("TLS needs the feature `redis-tls`"));
        }
        if secure.is_some() && url.contains('#') {
            return Err(wrong("a certificate is always checked: no fragment is understood"));
        }
        let plain = secure.map(|rest| format!("redis://{rest}"));
        let form = "not one of the form redis[s]://[user:password@]host[:port][/database]";
        let info = plain.as_deref().unwrap_or(url).into_connection_info().map_err(|_| wrong(form))?;
        let settings = info.redis_settings();
        let place = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Place::Tcp(host.as_str().into(), *port),
            ConnectionAddr::Unix(path) => Place::Socket(path.clone()),
            _ => return Err(wrong(form)),
        };
        Ok(Self {
            place,
            user: settings.username().map(Into::into),
            password: settings.password().map(Into::into),
            database: settings.db(),
            client_name: None,
            #[cfg(feature = "redis-tls")]
            tls: secure.is_some().then(super::tls::Tls::default),
        })
    }

    /// The same, at another node of the cluster; an empty host is that of the one that named it.
    pub(super) fn at(&self, host: &str, port: u16) -> Self {
        let host = match &self.place {
            Place::Tcp(known, _) if host.is_empty() => known.clone(),
            _ => host.into(),
        };
        Self { place: Place::Tcp(host, port), ..self.clone() }
    }

    /// The same, trusting the certificates in the PEM and no others.
    #[cfg(feature = "redis-tls")]
    pub(super) fn trusting(mut self, pem: &[u8]) -> Result<Self, Error> {
        if self.tls.is_none() {
            return Err(Error::configuration("certificate_authority", "the URL is not one of rediss://"));
        }
        self.tls = Some(super::tls::Tls::trusting(pem)?);
        Ok(self)
    }

    /// A connection that is ready for commands.
    pub(super) async fn open(&self) -> Result<Box<dyn Stream>, Fault> {
        let connecting = async {
            let mut stream = self.stream().await?;
            self.greet(&mut stream).await?;
            Ok(stream)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err(Fault::Lost(Lost::TimedOut)))
    }

    async fn stream(&self) -> Result<Box<dyn Stream>, Fault> {
        let (host, port) = match &self.place {
            Place::Tcp(host, port) => (host, *port),
            #[cfg(unix)]
            Place::Socket(path) => return Ok(Box::new(tokio::net::UnixStream::connect(path).await?)),
            #[cfg(not(unix))]
            Place::Socket(_) => return Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into()),
        };
        let addresses: Vec<_> = lookup_host((&**host, port)).await?.collect();
        let stream = tcp::connect_to_any(&addresses, CONNECT_TIMEOUT).await;
        let stream = stream.map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => Fault::Lost(Lost::TimedOut),
            _ => error.into(),
        })?;
        stream.set_nodelay(true)?;
        // A command may wait on the server for as long as it likes, and so may we: for one that is there.
        tcp::keep_alive(&stream, KEEPALIVE_IDLE, Some(KEEPALIVE_INTERVAL), Some(KEEPALIVE_RETRIES))?;
        tcp::give_up_after(&stream, USER_TIMEOUT)?;
        #[cfg(feature = "redis-tls")]
        if let Some(tls) = &self.tls {
            return tls.wrap(host, stream).await;
        }
        Ok(Box::new(stream))
    }

    /// Says who we are and what we want, in one trip, and waits until the server is ready for commands.
    async fn greet(&self, stream: &mut Box<dyn Stream>) -> Result<(), Fault> {
        let mut greeting = Commands::default();
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                greeting.add(&[b"AUTH", user.as_bytes(), password.as_bytes()]);
            }
            (None, Some(password)) => greeting.add(&[b"AUTH", password.as_bytes()]),
            // One that needs none (`nopass`): without a word we would be another one, who may do more.
            (Some(user), None) => greeting.add(&[b"AUTH", user.as_bytes(), b""]),
            (None, None) => {}
        }
        if self.database != 0 {
            greeting.add(&[b"SELECT", self.database.to_string().as_bytes()]);
        }
        let mut unimportant = usize::MAX;
        if let Some(name) = &self.client_name {
            unimportant = greeting.count;
            greeting.add(&[b"CLIENT", b"SETNAME", name.as_bytes()]);
        }
        // One that still loads its data, or wants a password that we do not have, says so here. Who may not ask is
        // known to it, which is as good; and one that takes no writes says it to a `PING` as well, and can be read.
        let ping = greeting.count;
        greeting.add(&[b"PING"]);
        stream.write_all(&greeting.bytes).await?;
        stream.flush().await?;
        let mut buffer = BytesMut::new();
        for answer in 0..greeting.count {
            let token = loop {
                if let Some(token) = wire::next(&mut buffer)? {
                    break token;
                }
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(Fault::Lost(Lost::Closed));
                }
            };
            match token {
                Token::Status => {}
                Token::Refusal(_) if answer == unimportant => {}
                Token::Refusal(refusal) if answer == ping && wire::is_as_good_as_pong(refusal.code()) => {}
                Token::Refusal(refusal) => return Err(Fault::Refused(refusal)),
                _ => return Err(Fault::Lost(Lost::NotRedis)),
            }
        }
        if buffer.is_empty() { Ok(()) } else { Err(Fault::Lost(Lost::NotRedis)) }
    }
}

/// Nothing of it: it holds a password, and a host may be nobody's business.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").finish_non_exhaustive()
    }
}
