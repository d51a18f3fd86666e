//! TLS to a server, for the backends.
//!
//! The crypto provider is named here and handed over. Nothing is installed for the process, whose choice is the
//! program's, and which another library may have made already.

use std::{io, sync::Arc};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::Error;

/// Whom to trust: the system's roots, or one's own.
#[derive(Clone, Default)]
pub(crate) struct Trust(Option<Arc<ClientConfig>>);

impl Trust {
    /// Trusts the certificates in the PEM, and no others.
    pub(crate) fn only(pem: &[u8]) -> Result<Self, Error> {
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

    /// What a handshake takes.
    pub(crate) async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        match &self.0 {
            Some(config) => Ok(Arc::clone(config)),
            // Read from files, and anew for every connection: certificates change while a program runs.
            None => tokio::task::spawn_blocking(system).await.map_err(io::Error::other)?,
        }
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
