//! TLS to the server, as the driver takes it.

use std::{convert::Infallible, io, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::ClientConfig;

use crate::tls::Trust;

/// Checks the certificate and its name, always. Whom it trusts may have to be read first, which is done when a
/// connection is made.
#[derive(Clone, Default)]
pub(super) struct Tls(pub(super) Trust);

/// A handshake that is about to begin.
pub(super) struct Handshake {
    trust: Trust,
    host: String,
}

type Stream<S> = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;

impl<S> MakeTlsConnect<S> for Tls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Handshake;
    type Error = Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, Infallible> {
        Ok(Handshake { trust: self.0.clone(), host: host.to_owned() })
    }
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let config = self.trust.config().await?;
            let mut config = ClientConfig::clone(&config);
            // Without it a server refuses `sslnegotiation=direct`; one that knows nothing of it takes no notice.
            config.alpn_protocols = vec![b"postgresql".to_vec()];
            let mut make = MakeRustlsConnect::new(config);
            let Ok(connect) = MakeTlsConnect::<S>::make_tls_connect(&mut make, &self.host);
            connect.connect(stream).await
        })
    }
}
