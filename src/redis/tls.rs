//! TLS to a server.
//!
//! The crypto provider is named here and handed over. Nothing is installed for the process, whose choice is the
//! program's, and which another library may have made already.

use std::{io, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::{connection::Stream, fault::Fault};
use crate::Error;

/// Whom to trust: the system's roots, or one's own.
#[derive(Clone, Default)]
pub(super) struct Tls(Option<Arc<ClientConfig>>);

impl Tls {
    /// Trusts the certificates in the PEM, and no others.
    pub(super) fn trusting(pem: &[u8]) -> Result<Self, Error> {
        let wrong = |problem| Error::configuration("certificate_authority", problem);
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| wrong("not PEM"))?;
            roots.add(certificate).map_err(|_| wrong("not a certificate of an authority"))?;
        }
        if roots.is_empty() {
            return Err(wrong("no certificate in it"));
        }
        Ok(Self(Some(Arc::new(config(roots).map_err(|_| wrong("not fit for TLS"))?))))
    }

    pub(super) async fn wrap(&self, host: &str, stream: TcpStream) -> Result<Box<dyn Stream>, Fault> {
        let config = match &self.0 {
            Some(config) => Arc::clone(config),
            // Read from files, and anew for every connection: certificates change while a program runs.
            None => tokio::task::spawn_blocking(system).await.map_err(io::Error::other)??,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, "no name that a certificate could have")
        })?;
        Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
    }
}

/// The roots that the system trusts.
fn system() -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    // Some that cannot be read are usual, and no reason to trust none.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(Arc::new(config(roots)?))
}

fn config(roots: RootCertStore) -> io::Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
