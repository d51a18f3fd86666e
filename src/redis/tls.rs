//! TLS to the server.

use std::io;

use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{connection::Stream, fault::Fault};
use crate::{Error, tls::Trust};

/// Whom to trust: the system's roots, or one's own.
#[derive(Clone, Default)]
pub(super) struct Tls(Trust);

impl Tls {
    /// Trusts the certificates in the PEM, and no others.
    pub(super) fn trusting(pem: &[u8]) -> Result<Self, Error> {
        Trust::only(pem).map(Self)
    }

    pub(super) async fn wrap(&self, host: &str, stream: TcpStream) -> Result<Box<dyn Stream>, Fault> {
        let config = self.0.config().await?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, "no name that a certificate could have")
        })?;
        Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
    }
}
