//! Options that programs share.

use std::{fmt, path::PathBuf};

use crate::{
    bearer::BearerToken,
    client_tls::{ClientFiles, ClientTls},
    connect::Connector,
    error::FileError,
    limits::Limits,
};

/// A word that is not written to logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(word: String) -> Self {
        Self(word)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How a client reaches servers. Without any of them, `https://` trusts the system's CAs, and an
/// address that says nothing is spoken to in plain text.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ClientArgs {
    /// CA certificates that the server's has to come from (PEM) [default: those of the system]
    #[arg(long, global = true, env = "ORB8_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate to show to a server that asks for one (PEM)
    #[arg(long, global = true, env = "ORB8_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, global = true, env = "ORB8_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Name that the server's certificate is for [default: the host of the address]
    #[arg(long, global = true, env = "ORB8_TLS_SERVER_NAME", value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// File with a bearer token, read again when it is rotated
    #[arg(long, global = true, env = "ORB8_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Bearer token; a file keeps it out of the list of processes [default: where the server is
    /// found by a kubeconfig, that of its user]
    #[arg(
        long,
        global = true,
        env = "ORB8_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub token: Option<Secret>,
    /// Send a token in plain text as well
    #[arg(long, global = true, env = "ORB8_INSECURE")]
    pub insecure: bool,
}

impl ClientArgs {
    /// What connects. `https` says that an address asks for TLS without any option that does.
    ///
    /// # Errors
    /// When options contradict each other, or files cannot be used.
    pub fn connector(&self, https: bool, limits: Limits) -> Result<Connector, FileError> {
        let files = ClientFiles::from_options(
            "tls",
            self.tls_ca.clone(),
            self.tls_cert.clone(),
            self.tls_key.clone(),
            self.tls_server_name.clone(),
        )?;
        let files = files.or_else(|| https.then(ClientFiles::default));
        let tls = files.map(ClientTls::load).transpose()?;
        Ok(Connector::new(tls, limits).insecure(self.insecure))
    }

    /// What is shown to the server beside the certificate.
    ///
    /// # Errors
    /// When there is no token where one was promised.
    pub fn token(&self) -> Result<BearerToken, FileError> {
        let file = self.token_file.clone().filter(|path| !path.as_os_str().is_empty());
        match (self.token.as_ref().map(Secret::reveal).filter(|token| !token.is_empty()), file) {
            (Some(token), _) => BearerToken::word(token),
            (None, Some(path)) => BearerToken::file(path),
            (None, None) => Ok(BearerToken::none()),
        }
    }
}
