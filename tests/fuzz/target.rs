//! A port under attack, and the ways to it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use orb8_testkit::pki::CertificateAuthority;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// A way to a port, encrypted or not.
pub(crate) trait Line: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Line for T {}

#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// Where it speaks gRPC; HTTP/1 else.
    pub(crate) is_grpc: bool,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// A port of gRPC, by TLS where there is a CA.
    pub(crate) fn grpc(address: SocketAddr, ca: Option<&CertificateAuthority>) -> Result<Self> {
        let tls = ca.map(|ca| {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes())?)?;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec()];
            anyhow::Ok(Arc::new(config))
        });
        Ok(Self { address, is_grpc: true, tls: tls.transpose()? })
    }

    pub(crate) fn metrics(address: SocketAddr) -> Self {
        Self { address, is_grpc: false, tls: None }
    }

    /// A bare connection.
    pub(crate) async fn tcp(&self) -> Option<TcpStream> {
        timeout(Duration::from_secs(5), TcpStream::connect(self.address)).await.ok()?.ok()
    }

    /// One that is through TLS where the port speaks that.
    pub(crate) async fn line(&self) -> Option<Box<dyn Line>> {
        let tcp = self.tcp().await?;
        let Some(config) = &self.tls else { return Some(Box::new(tcp)) };
        let connector = TlsConnector::from(Arc::clone(config));
        let name = "localhost".try_into().ok()?;
        let tls = timeout(Duration::from_secs(5), connector.connect(name, tcp)).await.ok()?.ok()?;
        Some(Box::new(tls))
    }

    /// How a client of TLS begins, wherever it then goes.
    pub(crate) fn hello(&self) -> Vec<u8> {
        let config = self.tls.clone().unwrap_or_else(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let versions =
                ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let builder = versions.expect("the versions of the provider");
            Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
        });
        let name = "localhost".try_into().expect("a name");
        let mut hello = Vec::new();
        if let Ok(mut connection) = rustls::ClientConnection::new(config, name) {
            let _written = connection.write_tls(&mut hello);
        }
        hello
    }
}
