//! How connections are made where a host has several addresses; and how the end of one is noticed of which the other side
//! says nothing: it lost its power, or something in between forgot the connection.

use std::{io, time::Duration};

#[cfg(feature = "redis")]
use std::net::SocketAddr;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
#[cfg(feature = "redis")]
use tokio::time::sleep;

/// How long nothing may be heard before the other side is asked for a sign of life.
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// How long after one question the next one comes.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// After so many of them it is gone.
pub(crate) const KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may not be acknowledged.
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to the first of the addresses that answers. Each has the same share of what is left of the time, so that one
/// that is silent does not use up that of the others.
#[cfg(feature = "redis")]
pub(crate) async fn connect_to_any(addresses: &[SocketAddr], within: Duration) -> io::Result<TcpStream> {
    let end = sleep(within).deadline();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(sleep(Duration::ZERO).deadline());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error,
            Err(elapsed) => failure = io::Error::new(io::ErrorKind::TimedOut, elapsed),
        }
    }
    Err(failure)
}

/// Asks the other side for a sign of life now and then. What is `None` is as the system has it.
pub(crate) fn keep_alive(
    stream: &TcpStream,
    idle: Duration,
    interval: Option<Duration>,
    retries: Option<u32>,
) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(idle);
    #[cfg(not(any(target_os = "openbsd", target_os = "redox", target_os = "solaris")))]
    let keepalive = match interval {
        Some(interval) => keepalive.with_interval(interval),
        None => keepalive,
    };
    #[cfg(not(any(
        target_os = "openbsd",
        target_os = "redox",
        target_os = "solaris",
        target_os = "windows"
    )))]
    let keepalive = match retries {
        Some(retries) => keepalive.with_retries(retries),
        None => keepalive,
    };
    #[cfg(any(target_os = "openbsd", target_os = "redox", target_os = "solaris", target_os = "windows"))]
    let _ = (interval, retries);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Gives the connection up when what was sent is not acknowledged for so long, where the system can.
pub(crate) fn give_up_after(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(timeout))?;
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, timeout);
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// One whose queue is full answers nothing.
    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn address_that_is_silent_leaves_time_for_the_next() {
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let there = silent.local_addr().unwrap().as_socket().unwrap();
        let mut queue = Vec::new();
        while let Ok(Ok(waits)) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(there)).await
        {
            queue.push(waits);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let stream = connect_to_any(&[there, live], Duration::from_secs(2)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
        let error = connect_to_any(&[there], Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(connect_to_any(&[], Duration::from_secs(1)).await.is_err());
    }

    #[tokio::test]
    async fn options_are_those_that_were_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        keep_alive(&stream, KEEPALIVE_IDLE, Some(KEEPALIVE_INTERVAL), Some(KEEPALIVE_RETRIES)).unwrap();
        give_up_after(&stream, USER_TIMEOUT).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let times = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        assert_eq!(times, (KEEPALIVE_IDLE, KEEPALIVE_INTERVAL));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }
}
