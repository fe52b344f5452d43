//! A small public key infrastructure in a directory.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use orb8_transport::{ClientAuth, ClientFiles, ClientTls, ServerFiles, ServerTls};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};

/// A CA.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for `name` and its key, for servers and clients.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        self.issue_for(name, 2020, 2200)
    }

    pub(crate) fn issue_expired(&self, name: &str) -> (String, String) {
        self.issue_for(name, 2020, 2021)
    }

    fn issue_for(&self, name: &str, from: i32, until: i32) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Files of one side, under their own directory, where each is replaced as a whole.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    pub(crate) fn write_pair(&self, (certificate, key): &(String, String)) -> (PathBuf, PathBuf) {
        (self.write("tls.crt", certificate), self.write("tls.key", key))
    }

    /// A server with this pair, which asks clients for certificates of `ca`.
    pub(crate) fn server(
        &self,
        pair: &(String, String),
        ca: Option<(&Authority, ClientAuth)>,
    ) -> ServerTls {
        let (certificate, key) = self.write_pair(pair);
        let client_ca = ca.map(|(ca, _)| self.write("ca.crt", &ca.pem()));
        let client_auth = ca.map(|(_, auth)| auth).unwrap_or_default();
        ServerTls::load(ServerFiles { certificate, key, client_ca, client_auth }).unwrap()
    }

    /// A client that trusts `ca`, shows this pair, and expects the server to be `localhost`.
    pub(crate) fn client(&self, ca: &Authority, pair: Option<&(String, String)>) -> ClientTls {
        let pair = pair.map(|pair| self.write_pair(pair));
        let ca = Some(self.write("ca.crt", &ca.pem()));
        let server_name = Some("localhost".into());
        ClientTls::load(ClientFiles { ca, pair, server_name }).unwrap()
    }
}

/// A client's TLS whose files are of no further interest.
pub(crate) fn client(ca: &Authority, pair: Option<&(String, String)>) -> ClientTls {
    Files::new().client(ca, pair)
}

pub(crate) fn append(path: &Path, text: &str) {
    fs::write(path, fs::read_to_string(path).unwrap() + text).unwrap();
}
