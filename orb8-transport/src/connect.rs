//! A client's way to a server.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    address::{Address, Scheme},
    client_io::{Carrier, ClientIo},
    client_tls::ClientTls,
    connect_error::ConnectError,
    limits::Limits,
};

/// A connection that was not used for this long is not used any more: servers do not wait for ever
/// for HTTP/2 to begin.
const KEPT: Duration = Duration::from_secs(3);

/// Connects to servers, each with a channel of its own that connects again by itself. Clones share
/// the files of TLS.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Option<ClientTls>,
    limits: Limits,
    /// May secrets go over plain text.
    insecure: bool,
}

impl Connector {
    /// With TLS to servers that have it. `None`: `https://` is refused, as nobody said whom to
    /// trust; give [`ClientTls::load`] of empty [`crate::ClientFiles`] for the system's CAs.
    #[must_use]
    pub const fn new(tls: Option<ClientTls>, limits: Limits) -> Self {
        Self { tls, limits, insecure: false }
    }

    /// Lets secrets go over plain text to other machines.
    #[must_use]
    pub const fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Whether TLS is spoken to `address`: as it says itself, else when there are files for it.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn speaks_tls(&self, address: &Address) -> Result<bool, ConnectError> {
        match (address.scheme(), &self.tls) {
            (Some(Scheme::Https), None) => Err(ConnectError::Options(format!(
                "{address}: TLS, but nothing says which CAs to trust"
            ))),
            (Some(Scheme::Https), Some(_)) => Ok(true),
            (Some(Scheme::Http), _) => Ok(false),
            (None, tls) => Ok(tls.is_some()),
        }
    }

    /// Refuses to send a secret, such as a token, over plain text to another machine, where
    /// everybody on the way can read it.
    ///
    /// # Errors
    /// When that is what would happen, and [`Connector::insecure`] does not allow it.
    pub fn may_send_secrets(&self, address: &Address) -> Result<(), ConnectError> {
        if self.insecure || address.is_loopback() || self.speaks_tls(address)? {
            return Ok(());
        }
        Err(ConnectError::Options(format!(
            "{address}: a token would be sent in plain text; use https:// or --tls-ca, or say \
             --insecure"
        )))
    }

    /// A channel that connects when it is first used, and again whenever the connection is lost.
    ///
    /// # Errors
    /// When there is no way to speak to the address. What fails later is in the status of calls;
    /// see [`crate::broken_by`].
    pub fn channel(&self, address: &Address) -> Result<Channel, ConnectError> {
        let (endpoint, way) = self.way(address)?;
        let connector = tower::service_fn(move |_: Uri| way.clone().go());
        Ok(endpoint.connect_with_connector_lazy(connector))
    }

    /// Like [`Connector::channel`], and connects at once. With TLS 1.3 a client certificate that
    /// the server refuses is only known from the first call.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn connect(&self, address: &Address) -> Result<Channel, ConnectError> {
        let (endpoint, way) = self.way(address)?;
        Self::first(endpoint, way).await
    }

    /// Like [`Connector::connect`], over what `dial` opens instead of TCP, such as a port that is
    /// forwarded. `address` is whom its other end is taken for: TLS looks for its host in the
    /// certificate, and messages name it.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn connect_over<F, S>(
        &self,
        address: &Address,
        dial: impl Fn() -> F + Send + Sync + 'static,
    ) -> Result<Channel, ConnectError>
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (endpoint, mut way) = self.way(address)?;
        way.dial = Some(Arc::new(move || {
            let opening = dial();
            Box::pin(async move { Ok(Carrier::Other(Box::new(opening.await?))) })
        }));
        Self::first(endpoint, way).await
    }

    async fn first(endpoint: Endpoint, way: Way) -> Result<Channel, ConnectError> {
        // The first connection is made here, for its error to keep its type. HTTP/2 begins on it
        // with the first request, which is then told why a server closes: one that came after the
        // connection's end would only hear that it has ended.
        let first = (way.clone().go().await?, Instant::now());
        let first = Arc::new(Mutex::new(Some(first)));
        let connector = tower::service_fn(move |_: Uri| {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let way = way.clone();
            async move {
                match first {
                    Some((io, made)) if made.elapsed() < KEPT => Ok(io),
                    _ => way.go().await,
                }
            }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }

    fn way(&self, address: &Address) -> Result<(Endpoint, Way), ConnectError> {
        let tls = if self.speaks_tls(address)? { self.tls.clone() } else { None };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", address.authority()))
            .map_err(|error| ConnectError::Options(format!("{address}: {error}")))?;
        let way = Way { address: address.clone(), tls, time: self.limits.connect_time, dial: None };
        Ok((self.limits.endpoint(endpoint), way))
    }
}

/// Opens what a connection goes over.
type Dial =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Carrier>> + Send>> + Send + Sync>;

/// Everything that one connection takes.
#[derive(Clone)]
struct Way {
    address: Address,
    tls: Option<ClientTls>,
    time: Duration,
    /// In the place of TCP.
    dial: Option<Dial>,
}

impl Way {
    async fn go(self) -> Result<TokioIo<ClientIo>, ConnectError> {
        let deadline = Instant::now() + self.time;
        let steps = async {
            let carrier = match &self.dial {
                None => Carrier::Tcp(self.tcp(deadline).await?),
                Some(dial) => dial()
                    .await
                    .map_err(|error| ConnectError::tcp(self.address.authority(), error))?,
            };
            let io = match &self.tls {
                None => ClientIo::plain(carrier),
                Some(tls) => ClientIo::tls(self.encrypt(tls, carrier).await?),
            };
            Ok(TokioIo::new(io))
        };
        timeout_at(deadline, steps).await.unwrap_or_else(|_| Err(self.timed_out()))
    }

    async fn encrypt(
        &self,
        tls: &ClientTls,
        carrier: Carrier,
    ) -> Result<Box<tokio_rustls::client::TlsStream<Carrier>>, ConnectError> {
        let address = self.address.authority();
        let name = match tls.server_name() {
            Some(name) => name.clone(),
            None => ServerName::try_from(self.address.host().to_owned()).map_err(|_| {
                let reason = "the host is not a name that a certificate can hold".into();
                ConnectError::Tls { address: address.into(), reason }
            })?,
        };
        let connector = TlsConnector::from(tls.config().await);
        let stream = connector.connect(name.clone(), carrier).await.map_err(|error| {
            ConnectError::handshake(address, &name.to_str(), tls.trusted(), &error)
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(crate::ALPN) {
            return Err(ConnectError::NotHttp2);
        }
        Ok(Box::new(stream))
    }

    /// Tries the host's addresses in their order, each with an equal share of the time that is left,
    /// so that one that swallows packets does not keep us from the next.
    async fn tcp(&self, deadline: Instant) -> Result<TcpStream, ConnectError> {
        let address = self.address.authority();
        let dns = |source| ConnectError::Dns { host: self.address.host().to_owned(), source };
        let found: Vec<_> = lookup_host(address).await.map_err(dns)?.collect();
        let mut last = None;
        for (at, one) in found.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(found.len() - at).unwrap_or(u32::MAX);
            match timeout(share, TcpStream::connect(one)).await {
                Ok(Ok(tcp)) => {
                    // Small frames are not to wait for the acknowledgement of those before.
                    let _without = tcp.set_nodelay(true);
                    return Ok(tcp);
                }
                Ok(Err(error)) => last = Some(ConnectError::tcp(address, error)),
                Err(_) => last = Some(self.timed_out()),
            }
        }
        Err(last.unwrap_or_else(|| dns(io::Error::other("no address"))))
    }

    fn timed_out(&self) -> ConnectError {
        ConnectError::TimedOut { address: self.address.authority().into(), time: self.time }
    }
}
