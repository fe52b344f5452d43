//! What a server shows and asks for in a TLS handshake.

use std::{path::PathBuf, sync::Arc, time::Duration, time::SystemTime};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::CertificateDer,
    server::{VerifierBuilderError, WebPkiClientVerifier},
};

use crate::{
    certificate::Identity,
    error::{FileError, Part},
    pem,
    reloading::{FileState, Reloading, Source},
};

/// How often files are looked at. A kubelet takes a minute to bring a changed Secret.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Whether clients have to show a certificate where there is a CA to verify it with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no connection.
    #[default]
    Required,
    /// A certificate is verified if there is one: for a port that people with tokens use as well.
    /// Look at [`crate::Peer`] before anything is answered.
    Optional,
}

/// The files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, with the chain that leads to its CA (PEM).
    pub certificate: PathBuf,
    /// The certificate's private key (PEM, not encrypted).
    pub key: PathBuf,
    /// CAs of clients (PEM). `None`: clients are not asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may do without.
    pub client_auth: ClientAuth,
}

impl ServerFiles {
    /// From options that were given or not; an empty path is one that was not given, as in the
    /// environment of a container. `prefix` is what the options are called by: `tls` for
    /// `--tls-cert`.
    ///
    /// # Errors
    /// When a part is missing.
    pub fn from_options(
        prefix: &str,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        client_ca: Option<PathBuf>,
    ) -> Result<Option<Self>, FileError> {
        let client_ca = given(client_ca);
        match (given(certificate), given(key)) {
            (Some(certificate), Some(key)) => {
                let client_auth = ClientAuth::default();
                Ok(Some(Self { certificate, key, client_ca, client_auth }))
            }
            (None, None) if client_ca.is_none() => Ok(None),
            (certificate, key) => {
                let missing = |part: Option<PathBuf>, name| part.is_none().then_some(name);
                let missing: Vec<String> = [missing(certificate, "cert"), missing(key, "key")]
                    .into_iter()
                    .flatten()
                    .map(|name| format!("--{prefix}-{name}"))
                    .collect();
                Err(FileError::Options(format!(
                    "{prefix}: {} is missing; a server needs --{prefix}-cert and --{prefix}-key, \
                     and takes --{prefix}-client-ca beside them",
                    missing.join(" and ")
                )))
            }
        }
    }
}

pub(crate) fn given(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// A server's side of TLS, always as its files say now. Clones share it.
#[derive(Clone)]
pub struct ServerTls {
    files: Arc<Reloading<Loaded>>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    identity: Identity,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("state", &self.state()).finish()
    }
}

impl ServerTls {
    /// Reads the files. [`crate::incoming()`] looks at them again every [`CHECK_INTERVAL`].
    ///
    /// # Errors
    /// When they cannot be used. A certificate that has expired is only warned of: the clock may be
    /// wrong, a new one may come, and clients say it loudly enough.
    pub fn load(files: ServerFiles) -> Result<Self, FileError> {
        let mut sources = vec![
            Source::new(Part::Certificate, &files.certificate),
            Source::new(Part::Key, &files.key),
        ];
        sources.extend(files.client_ca.iter().map(|path| Source::new(Part::Ca, path)));
        let loaded = Reloading::load(sources, move |contents| build(&files, contents))?;
        Ok(Self { files: Arc::new(loaded) })
    }

    /// What the next handshake uses. A handshake that has begun keeps what it began with.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.files.current().config)
    }

    /// The server's own certificate.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.files.current().identity.clone()
    }

    /// How it stands with the files.
    #[must_use]
    pub fn state(&self) -> FileState {
        self.files.state()
    }

    /// Looks at the files now, if the last look is `age` ago or more.
    pub async fn refresh(&self, age: Duration) {
        self.files.refresh(age).await;
    }
}

fn build(files: &ServerFiles, contents: &[Vec<u8>]) -> Result<Loaded, FileError> {
    let [certificate, key, rest @ ..] = contents else {
        return Err(FileError::Options("a server needs a certificate and a key".into()));
    };
    let pair = Pair::parse(&files.certificate, certificate, &files.key, key)?;
    let identity = pair.identity()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |reason: String| FileError::Unusable {
        part: Part::Certificate,
        path: files.certificate.clone(),
        reason,
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(crate::VERSIONS)
        .map_err(|error| unusable(error.to_string()))?;
    let builder = match (&files.client_ca, rest) {
        (Some(path), [ca, ..]) => {
            let roots = Arc::new(roots(path, ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = match files.client_auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|error: VerifierBuilderError| {
                let reason = error.to_string();
                FileError::Unusable { part: Part::Ca, path: path.clone(), reason }
            })?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(pair.chain, pair.key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => FileError::NotAPair {
                certificate: files.certificate.clone(),
                key: files.key.clone(),
            },
            other => unusable(other.to_string()),
        })?;
    config.alpn_protocols = vec![crate::ALPN.to_vec()];
    // A resumed session keeps the client certificate of its first handshake: were tickets or a
    // cache kept, a CA that is withdrawn would be trusted until they are forgotten.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Loaded { config: Arc::new(config), identity })
}

/// A certificate and its key, parsed.
pub(crate) struct Pair {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: rustls::pki_types::PrivateKeyDer<'static>,
    certificate: PathBuf,
}

impl Pair {
    pub(crate) fn parse(
        certificate: &std::path::Path,
        certificate_text: &[u8],
        key: &std::path::Path,
        key_text: &[u8],
    ) -> Result<Self, FileError> {
        let wrong = |part, path: &std::path::Path| {
            let path = path.to_owned();
            move |problem| FileError::Pem { part, path, problem }
        };
        Ok(Self {
            chain: pem::certificates(certificate_text)
                .map_err(wrong(Part::Certificate, certificate))?,
            key: pem::private_key(key_text).map_err(wrong(Part::Key, key))?,
            certificate: certificate.to_owned(),
        })
    }

    /// The holder, with a warning when the certificate does not hold today.
    pub(crate) fn identity(&self) -> Result<Identity, FileError> {
        let unusable = |reason| FileError::Unusable {
            part: Part::Certificate,
            path: self.certificate.clone(),
            reason,
        };
        let leaf = self.chain.first().ok_or_else(|| unusable("no certificate".into()))?;
        let identity = Identity::parse(leaf).map_err(unusable)?;
        if let Some(problem) = identity.out_of_date(SystemTime::now()) {
            tracing::warn!(
                "certificate {}: {problem}; others will refuse it",
                self.certificate.display()
            );
        }
        Ok(identity)
    }
}

/// The CAs in `text`, all of them usable.
pub(crate) fn roots(path: &std::path::Path, text: &[u8]) -> Result<RootCertStore, FileError> {
    let path = path.to_owned();
    let certificates = pem::certificates(text).map_err(|problem| FileError::Pem {
        part: Part::Ca,
        path: path.clone(),
        problem,
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        if let Ok(identity) = Identity::parse(&certificate)
            && let Some(problem) = identity.out_of_date(SystemTime::now())
        {
            tracing::warn!("CA certificates {}: {identity}: {problem}", path.display());
        }
        roots.add(certificate).map_err(|error| FileError::Unusable {
            part: Part::Ca,
            path: path.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}
