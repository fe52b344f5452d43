//! The API's certificate, which can be changed under it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ALL_VERSIONS, ServerConfig};

use crate::pki::CertificateAuthority;

/// What the API shows in handshakes, and the CA that clients are told to trust.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) ca: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// A certificate of `ca` for an address.
    pub(super) fn issued_by(ca: &CertificateAuthority, address: Ipv4Addr) -> Result<Self> {
        let pair = ca.issue(&address.to_string())?;
        let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(ALL_VERSIONS)?
            .with_no_client_auth()
            .with_single_cert(chain.collect::<Result<_, _>>()?, key)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), ca: ca.pem() })
    }
}
