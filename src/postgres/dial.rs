//! How a server is reached, and how it is left.
//!
//! The driver hangs up when it has said goodbye. The server ends the session when it comes to that, and only then has
//! room for another one; it hangs up as the very last thing. So where the stream is ours, it ends when the other side
//! has ended. Where a connector of the program's own wants the driver's stream, it is the driver that connects, and
//! hangs up as it does.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_postgres::{
    Client, Config, SimpleQueryMessage, Socket,
    config::TargetSessionAttrs,
    tls::{MakeTlsConnect, TlsConnect},
};

use super::{
    cancel::{self, Cancel},
    connector::Connection,
    fault::Fault,
};
use crate::{ErrorKind, tcp, wheel::Drive};

/// How long the server may take to hang up, after which it is not waited for. It may be silent for good.
const GOODBYE: Duration = Duration::from_millis(500);
/// The same where a cancellation is all that was asked, and much depends on it.
const CANCELLED: Duration = Duration::from_secs(2);

/// How a server is reached over one kind of TLS.
pub(super) struct Way<T> {
    pub(super) dial: Dial<T>,
    pub(super) cancel: Cancel<T>,
}

/// Connects to what the configuration names, which is at the address, if it has one.
pub(super) type Dial<T> = for<'a> fn(&'a Config, Option<SocketAddr>, String, T) -> Dialing<'a>;

type Dialing<'a> = Pin<Box<dyn Future<Output = Result<(Client, Connection), Fault>> + Send + 'a>>;

/// A stream whose end is the other side's end.
pub(super) struct UntilClosed {
    stream: TcpStream,
    patience: Duration,
    /// Once our side has ended: how long the other one is waited for.
    goodbye: Option<Pin<Box<Sleep>>>,
}

/// A connector for TLS over one kind of stream, or for none, with everything that its work in another task takes.
pub(super) trait Securing<S>:
    MakeTlsConnect<S, TlsConnect: Send + TlsConnect<S, Future: Send>, Stream: Send> + Send + 'static
{
}

impl<S, T> Securing<S> for T where
    T: MakeTlsConnect<S, TlsConnect: Send + TlsConnect<S, Future: Send>, Stream: Send> + Send + 'static
{
}

impl<T> Clone for Way<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Way<T> {}

impl<T> Way<T>
where
    T: Securing<Socket>,
{
    /// As the driver does.
    pub(super) const DRIVERS: Self = Self { dial: by_driver::<T>, cancel: cancel::by_driver::<T> };
}

impl<T> Way<T>
where
    T: Securing<UntilClosed> + Securing<Socket>,
{
    /// It is certain when a connection, or a cancellation, is over.
    pub(super) const OWN: Self = Self { dial: by_ourselves::<T>, cancel: cancel::for_certain::<T> };
}

fn by_driver<T>(config: &Config, _: Option<SocketAddr>, _: String, tls: T) -> Dialing<'_>
where
    T: Securing<Socket>,
{
    Box::pin(async move {
        let (client, connection) = config.connect(tls).await?;
        Ok((client, Connection::new(connection)))
    })
}

fn by_ourselves<T>(config: &Config, address: Option<SocketAddr>, name: String, mut tls: T) -> Dialing<'_>
where
    T: Securing<UntilClosed> + Securing<Socket>,
{
    // A socket in the file system is the driver's to find.
    let Some(address) = address else { return by_driver(config, address, name, tls) };
    Box::pin(async move {
        let stream = UntilClosed::connect(config, address).await.map_err(Fault::unreached)?;
        let tls = MakeTlsConnect::<UntilClosed>::make_tls_connect(&mut tls, &name)
            .map_err(|error| Fault::new(ErrorKind::Tls, "TLS could not be agreed on", error))?;
        let (client, connection) = config.connect_raw(stream, tls).await?;
        let mut connection = Connection::new(connection);
        is_as_asked(config.get_target_session_attrs(), &client, &mut connection).await?;
        Ok((client, connection))
    })
}

/// Asks the server whether it takes writes, if the URL wants to know.
async fn is_as_asked(
    attributes: TargetSessionAttrs,
    client: &Client,
    connection: &mut Connection,
) -> Result<(), Fault> {
    let refused = match attributes {
        TargetSessionAttrs::ReadWrite => "on",
        TargetSessionAttrs::ReadOnly => "off",
        _ => return Ok(()),
    };
    let mut query = pin!(client.simple_query("show transaction_read_only"));
    let answer = poll_fn(|context| {
        if let Poll::Ready(ended) = connection.poll(context) {
            let ended = ended.err().map_or_else(Fault::ended, Fault::from);
            return Poll::Ready(Err(ended));
        }
        query.as_mut().poll(context).map_err(Fault::from)
    });
    let is_as_asked = answer.await?.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get(0).is_ok_and(|value| value != Some(refused)),
        _ => false,
    });
    if is_as_asked { Ok(()) } else { Err(Fault::of_another_kind()) }
}

impl UntilClosed {
    /// With the options of the configuration, as the driver sets them.
    async fn connect(config: &Config, address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        if let Some(timeout) = config.get_tcp_user_timeout() {
            tcp::give_up_after(&stream, *timeout)?;
        }
        if config.get_keepalives() {
            let (idle, interval) = (config.get_keepalives_idle(), config.get_keepalives_interval());
            tcp::keep_alive(&stream, idle, interval, config.get_keepalives_retries())?;
        }
        Ok(Self { stream, patience: GOODBYE, goodbye: None })
    }

    /// For a cancellation.
    pub(super) async fn to_cancel(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: TcpStream::connect(address).await?, patience: CANCELLED, goodbye: None })
    }
}

impl AsyncRead for UntilClosed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for UntilClosed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends our side, and waits for the other to end its own.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, patience, goodbye } = &mut *self;
        let goodbye = match goodbye {
            Some(goodbye) => goodbye,
            none => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                none.insert(Box::pin(sleep(*patience)))
            }
        };
        let mut unheard = [0; 64];
        loop {
            let mut buffer = ReadBuf::new(&mut unheard);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                // To hang up with something unread is a reset, and an end as well.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    let too_long = || io::Error::new(io::ErrorKind::TimedOut, "it did not hang up");
                    return goodbye.as_mut().poll(cx).map(|()| Err(too_long()));
                }
            }
        }
    }
}
