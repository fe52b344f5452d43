//! Whom a client trusts, and what it shows of itself.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, client::Resumption, pki_types::ServerName};

use crate::{
    error::{FileError, Part},
    reloading::{FileState, Reloading, Source},
    server_tls::{Pair, given, roots},
};

/// A client looks at its files when it connects, but not more often than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The files of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// CAs of servers (PEM). `None`: those that this system trusts.
    pub ca: Option<PathBuf>,
    /// The client's own certificate and private key (PEM), for servers that ask for one.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// The name to look for in the server's certificate. `None`: the host of the address, which
    /// no certificate can hold where addresses are those of pods.
    pub server_name: Option<String>,
}

impl ClientFiles {
    /// From options that were given or not; what is empty was not given. `prefix` is what the
    /// options are called by: `tls` for `--tls-ca`. `None`: none was given.
    ///
    /// # Errors
    /// When one half of a pair is missing.
    pub fn from_options(
        prefix: &str,
        ca: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        server_name: Option<String>,
    ) -> Result<Option<Self>, FileError> {
        let pair = match (given(certificate), given(key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (certificate, _) => {
                let missing = if certificate.is_none() { "cert" } else { "key" };
                return Err(FileError::Options(format!(
                    "{prefix}: --{prefix}-{missing} is missing; expected --{prefix}-cert and \
                     --{prefix}-key together, or neither"
                )));
            }
        };
        let server_name = server_name.filter(|name| !name.is_empty());
        let files = Self { ca: given(ca), pair, server_name };
        Ok((files != Self::default()).then_some(files))
    }
}

/// A client's side of TLS, as its files say whenever it connects. Clones share it.
#[derive(Clone)]
pub struct ClientTls {
    files: Arc<Reloading<Arc<ClientConfig>>>,
    server_name: Option<ServerName<'static>>,
    trusted: Arc<str>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files, and the system's CAs where no other is named.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn load(files: ClientFiles) -> Result<Self, FileError> {
        let server_name = files.server_name.clone().map(|name| {
            ServerName::try_from(name.clone()).map_err(|_| {
                FileError::Options(format!(
                    "{name:?} is not a server name; expected a DNS name or an IP address"
                ))
            })
        });
        let mut sources: Vec<Source> =
            files.ca.iter().map(|path| Source::new(Part::Ca, path)).collect();
        if let Some((certificate, key)) = &files.pair {
            sources.push(Source::new(Part::Certificate, certificate));
            sources.push(Source::new(Part::Key, key));
        }
        let trusted = match &files.ca {
            Some(path) => path.display().to_string(),
            None => "those of this system; name another with --tls-ca".into(),
        };
        // Once: they change with the system, and there are many.
        let system = if files.ca.is_none() { Some(Arc::new(system_roots()?)) } else { None };
        let loaded =
            Reloading::load(sources, move |contents| build(&files, system.as_ref(), contents))?;
        let server_name = server_name.transpose()?;
        Ok(Self { files: Arc::new(loaded), server_name, trusted: trusted.into() })
    }

    /// How it stands with the files.
    #[must_use]
    pub fn state(&self) -> FileState {
        self.files.state()
    }

    /// What the next connection uses, looked up on disk if that is some time ago.
    pub(crate) async fn config(&self) -> Arc<ClientConfig> {
        self.files.refresh(CHECK_INTERVAL).await;
        Arc::clone(&self.files.current())
    }

    /// Which CAs are trusted, for messages.
    pub(crate) fn trusted(&self) -> &str {
        &self.trusted
    }

    pub(crate) const fn server_name(&self) -> Option<&ServerName<'static>> {
        self.server_name.as_ref()
    }
}

fn system_roots() -> Result<RootCertStore, FileError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Among a hundred and more, one that this library does not take says nothing about the others.
    let (taken, _passed_over) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let reason = if errors.is_empty() { "there are none".into() } else { errors.join("; ") };
        return Err(FileError::SystemRoots(reason));
    }
    Ok(roots)
}

fn build(
    files: &ClientFiles,
    system: Option<&Arc<RootCertStore>>,
    contents: &[Vec<u8>],
) -> Result<Arc<ClientConfig>, FileError> {
    let mut contents = contents.iter();
    let missing = || FileError::Options("a client's files were not read".into());
    let trusted = match (&files.ca, system) {
        (Some(path), _) => Arc::new(roots(path, contents.next().ok_or_else(missing)?)?),
        (None, Some(system)) => Arc::clone(system),
        (None, None) => return Err(missing()),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(crate::VERSIONS)
        .map_err(|error| FileError::Options(error.to_string()))?
        .with_root_certificates(trusted);
    let mut config = match &files.pair {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate_text = contents.next().ok_or_else(missing)?;
            let key_text = contents.next().ok_or_else(missing)?;
            let pair = Pair::parse(certificate, certificate_text, key, key_text)?;
            pair.identity()?;
            builder.with_client_auth_cert(pair.chain, pair.key).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    FileError::NotAPair { certificate: certificate.clone(), key: key.clone() }
                }
                other => FileError::Unusable {
                    part: Part::Certificate,
                    path: certificate.clone(),
                    reason: other.to_string(),
                },
            })?
        }
    };
    config.alpn_protocols = vec![crate::ALPN.to_vec()];
    // Each connection verifies anew; they last long enough for that to cost nothing.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
