//! Cancelling what a caller left behind.
//!
//! A query is cancelled over a connection of its own, by a word that the server passes on to the process that runs it.
//! Nobody answers that word, and one that comes late strikes whatever runs by then. The server hangs up once it has
//! passed it on, so who waits for that knows that nothing asked later is struck. The driver does not wait; the stream
//! that it is handed here does.

use std::{net::SocketAddr, pin::Pin};

use tokio_postgres::{CancelToken, Socket, tls::MakeTlsConnect};

use super::dial::{Securing, UntilClosed};

/// How to cancel what runs at an address; true if it is certain that this is over.
pub(super) type Cancel<T> = fn(CancelToken, Option<SocketAddr>, String, T) -> Cancelling;

type Cancelling = Pin<Box<dyn Future<Output = bool> + Send>>;

/// By a connection of our own: it is certain when it is over.
pub(super) fn for_certain<T>(
    token: CancelToken,
    address: Option<SocketAddr>,
    name: String,
    mut tls: T,
) -> Cancelling
where
    T: Securing<UntilClosed> + Securing<Socket>,
{
    // A socket in the file system is the driver's to find.
    let Some(address) = address else { return by_driver(token, address, name, tls) };
    Box::pin(async move {
        let Ok(tls) = MakeTlsConnect::<UntilClosed>::make_tls_connect(&mut tls, &name) else { return false };
        let Ok(stream) = UntilClosed::to_cancel(address).await else { return false };
        token.cancel_query_raw(stream, tls).await.is_ok()
    })
}

/// As the driver does: it is never certain when it is over.
pub(super) fn by_driver<T>(token: CancelToken, _: Option<SocketAddr>, _: String, tls: T) -> Cancelling
where
    T: Securing<Socket>,
{
    Box::pin(async move {
        let _ = token.cancel_query(tls).await;
        false
    })
}
