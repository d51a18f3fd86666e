//! The invalidation bus of a cache in Redis: `PUBLISH` and `SUBSCRIBE`.
//!
//! Every subscription has a connection of its own, and all that is published goes over one more: neither waits for
//! the answers of the cache's store, which may be long. What arrives is handed on from the task that reads the
//! connection, without waiting: who asks too slowly loses the subscription, not the server its memory.
//!
//! Pub/sub in Redis keeps nothing: who is not connected when a message is published never gets it. The cache finds
//! that out by itself. In a cluster `PUBLISH` reaches the subscribers of every node.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::AbortHandle,
};

use super::{
    address::{Address, CONNECT_TIMEOUT},
    connection::{Connection, Stream},
    fault::{Fault, Lost},
    history::History,
    pool::{Naming, Pool, Size},
    wire::{self, Commands, Token},
};
use crate::{
    Error, ErrorKind,
    cache::{Bus, Subscription},
};

const MOST_MESSAGE: usize = 16 * 1024;
/// How many messages wait for one listener, before its subscription ends.
const MOST_WAITING: usize = 1024;
/// Of a message that has not arrived whole no more than this is kept. A longer one is of somebody else.
const MOST_PIECES: usize = 2 * MOST_MESSAGE;
/// What the server says on a subscription has three parts, or four for what we never ask for.
const MOST_PARTS: usize = 4;

/// A [`Bus`] in Redis (6.2 or later, Valkey). Connects when it is first used; clones share the connection that they
/// publish over.
///
/// An ACL user needs `+publish`, `+subscribe` and the channels `mcp-perf:*`, or whatever the
/// [prefix](Self::prefix) is; and `+info`, by which a server is left that became a replica, and passes nothing on.
///
/// ```no_run
/// use mcp_perf::{cache::Cache, redis::{RedisBus, RedisStore}};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mcp_perf::Error> {
/// let url = "redis://127.0.0.1:6379";
/// let cache: Cache<String> =
///     Cache::builder("answers").remote(RedisStore::new(url)?).bus(RedisBus::new(url)?).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisBus {
    publishing: Pool,
    prefix: String,
}

/// What [`RedisBus`] gives to who listens.
pub struct RedisSubscription {
    messages: mpsc::Receiver<Bytes>,
    /// Why it is over, unless it was too slow.
    ended: Arc<OnceLock<Error>>,
    task: AbortHandle,
}

impl RedisBus {
    /// A bus at `redis://[user:password@]host[:port]`, or `redis+unix:///path[?user=…&pass=…]`.
    ///
    /// `rediss://` is TLS, with the feature `redis-tls`. User and password are percent-encoded where they have to be.
    /// Databases share their channels: programs that share a Redis and not their caches need different
    /// [prefixes](Self::prefix).
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if the URL is not of that form.
    pub fn new(url: &str) -> Result<Self, Error> {
        let mut address = Address::parse(url)?;
        // One command less that the user would have to be allowed.
        address.database = 0;
        Ok(Self { publishing: publishing(address), prefix: "mcp-perf".to_owned() })
    }

    /// What every channel begins with: `mcp-perf` unless set, as for [`RedisStore`](super::RedisStore), whose prefix
    /// it is best to share.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) unless it is 1 to 64 letters, digits, `-`, `_`, `.` or `:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self, Error> {
        self.prefix = prefix.into();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if (1..=64).contains(&self.prefix.len()) && self.prefix.bytes().all(fits) {
            Ok(self)
        } else {
            Err(Error::configuration("prefix", "1 to 64 letters, digits, `-`, `_`, `.` or `:`"))
        }
    }

    /// Whom to trust with `rediss://`: the certificates in this PEM, and no others. Unless set, the authorities that
    /// the system trusts.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) if it holds no certificate, or the URL is not one of TLS.
    #[cfg(feature = "redis-tls")]
    pub fn certificate_authority(mut self, pem: impl AsRef<[u8]>) -> Result<Self, Error> {
        self.publishing = publishing(self.publishing.address().clone().trusting(pem.as_ref())?);
        Ok(self)
    }

    fn name(&self, channel: &str) -> String {
        format!("{}:{channel}", self.prefix)
    }

    /// A connection that listens to the channel.
    async fn listening(&self, channel: &str) -> Result<Ear, Fault> {
        let stream = self.publishing.address().open().await?;
        let mut ear = Ear { stream, buffer: BytesMut::new(), parts: Vec::new() };
        let mut subscribe = Commands::default();
        subscribe.add(&[b"SUBSCRIBE", channel.as_bytes()]);
        ear.stream.write_all(&subscribe.bytes).await?;
        ear.stream.flush().await?;
        match ear.next().await? {
            Said::Subscribed => Ok(ear),
            _ => Err(Fault::Lost(Lost::NotRedis)),
        }
    }
}

/// What is published at a replica reaches who listens there, and nobody else, unless it is one of a cluster: a server that
/// became one is left. To listen is possible at either.
fn publishing(address: Address) -> Pool {
    Pool::new(address, Some(History::question_of_role()), Naming::default())
}

impl Bus for RedisBus {
    type Subscription = RedisSubscription;

    fn max_message(&self) -> usize {
        MOST_MESSAGE
    }

    async fn publish(&self, channel: &str, message: Bytes) -> Result<(), Error> {
        if message.len() > MOST_MESSAGE {
            let problem = format!("redis: a message of {} bytes, and at most {MOST_MESSAGE}", message.len());
            return Err(Error::new(ErrorKind::Refused, problem));
        }
        let mut publish = Commands::default();
        publish.add(&[b"PUBLISH", self.name(channel).as_bytes(), &message]);
        // Made again if the connection turns out to have been cut: twice does no harm.
        let send = |connection: &Connection, _| connection.run(publish.clone());
        self.publishing.call("publish", Size::Small, send).await.map(drop)
    }

    async fn subscribe(&self, channel: &str) -> Result<RedisSubscription, Error> {
        let channel = self.name(channel);
        let ear = tokio::time::timeout(CONNECT_TIMEOUT, self.listening(&channel)).await;
        let ear =
            ear.unwrap_or(Err(Fault::Lost(Lost::TimedOut))).map_err(|fault| fault.during("subscribe"))?;
        let (sender, messages) = mpsc::channel(MOST_WAITING);
        let ended = Arc::<OnceLock<Error>>::default();
        let task = tokio::spawn(hear(ear, sender, Arc::clone(&ended))).abort_handle();
        Ok(RedisSubscription { messages, ended, task })
    }
}

impl Subscription for RedisSubscription {
    async fn next(&mut self) -> Result<Bytes, Error> {
        let too_slow = || {
            let problem = "redis: the subscription has ended: more messages came than were asked for";
            Error::new(ErrorKind::Unavailable, problem)
        };
        let message = self.messages.recv().await;
        message.ok_or_else(|| self.ended.get().cloned().unwrap_or_else(too_slow))
    }
}

impl Drop for RedisSubscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Hands on what is published, for as long as the connection is there and there is room.
async fn hear(mut ear: Ear, sender: mpsc::Sender<Bytes>, ended: Arc<OnceLock<Error>>) {
    let fault = loop {
        match ear.next().await {
            Ok(Said::Message(message)) => {
                if sender.try_send(message).is_err() {
                    return;
                }
            }
            Ok(Said::Subscribed) => {}
            Err(fault) => break fault,
        }
    };
    // Before the sender is gone, which is how it is noticed.
    let _ = ended.set(fault.during("listen"));
}

/// The reading end of a connection that is subscribed.
struct Ear {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    /// What has arrived of what is being said, its head included.
    parts: Vec<Token>,
}

#[derive(Debug, PartialEq)]
enum Said {
    Message(Bytes),
    Subscribed,
}

impl Ear {
    async fn next(&mut self) -> Result<Said, Fault> {
        loop {
            while let Some(token) = wire::next(&mut self.buffer)? {
                if let Some(said) = understand(&mut self.parts, token)? {
                    return Ok(said);
                }
            }
            if self.buffer.len() > MOST_PIECES {
                return Err(Fault::Lost(Lost::TooLong));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Fault::Lost(Lost::Closed));
            }
        }
    }
}

/// What was said, once its last part has come.
fn understand(parts: &mut Vec<Token>, token: Token) -> Result<Option<Said>, Fault> {
    parts.push(token);
    let said = match &parts[..] {
        [Token::Refusal(refusal)] => return Err(Fault::Refused(refusal.clone())),
        [Token::Array(count), rest @ ..] if *count <= MOST_PARTS && rest.len() < *count => return Ok(None),
        [Token::Array(_), Token::Bytes(kind), Token::Bytes(_), Token::Bytes(message)]
            if kind == "message" =>
        {
            Said::Message(message.clone())
        }
        [Token::Array(_), Token::Bytes(kind), Token::Bytes(_), Token::Integer(_)] if kind == "subscribe" => {
            Said::Subscribed
        }
        // Whatever ends it is no subscription either.
        _ => return Err(Fault::Lost(Lost::NotRedis)),
    };
    parts.clear();
    Ok(Some(said))
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl fmt::Debug for RedisSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSubscription").field("waiting", &self.messages.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ear(bytes: &[u8]) -> Ear {
        Ear { stream: Box::new(tokio::io::empty()), buffer: BytesMut::from(bytes), parts: Vec::new() }
    }

    #[tokio::test]
    async fn messages_are_understood_however_they_are_cut() {
        let said =
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\n\r\n\r\n";
        for cut in 0..said.len() {
            let (first, rest) = said.split_at(cut);
            let mut ear = ear(first);
            ear.stream = Box::new(tokio::io::join(rest, tokio::io::sink()));
            assert_eq!(ear.next().await.unwrap(), Said::Subscribed, "cut at {cut}");
            assert_eq!(ear.next().await.unwrap(), Said::Message(Bytes::from_static(b"\r\n")), "cut at {cut}");
            assert!(matches!(ear.next().await, Err(Fault::Lost(Lost::Closed))));
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_subscription() {
        for said in [
            &b"+OK\r\n"[..],
            b":1\r\n",
            b"*0\r\n",
            b"*1000000000\r\n",
            b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n",
            b"*3\r\n*3\r\n*3\r\n*3\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
        ] {
            let fault = ear(said).next().await.unwrap_err();
            assert!(matches!(fault, Fault::Lost(Lost::NotRedis)), "{fault:?}");
        }
        let refused = ear(b"-NOPERM no access to 'secret'\r\n").next().await.unwrap_err();
        assert_eq!(refused.during("listen").to_string(), "redis refused (listen): NOPERM");
        let endless =
            [&b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1000000\r\n"[..], &vec![b'x'; MOST_PIECES]].concat();
        assert!(matches!(ear(&endless).next().await, Err(Fault::Lost(Lost::TooLong))));
    }
}
