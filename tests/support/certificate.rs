//! A certificate of its own for a test's server.

/// What a server needs to show that it is `localhost`, in PEM.
pub struct Certificate {
    pub certificate: String,
    pub key: String,
}

impl Certificate {
    pub fn of_localhost() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        Self { certificate: certificate.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }
}
