//! A small public key infrastructure: CAs, and certificates in files that are replaced as a kubelet
//! and cert-manager replace them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};

/// A CA.
#[derive(Debug)]
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

/// A certificate with its private key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl CertificateAuthority {
    /// A new one of this name.
    ///
    /// # Errors
    /// When there is no key.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Its certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for a server of this DNS name or address, and for a client of this common name.
    ///
    /// # Errors
    /// When there is no key.
    pub fn issue(&self, name: &str) -> Result<Pair> {
        self.issue_for(name, &[], 2200)
    }

    /// A certificate that ended years ago.
    ///
    /// # Errors
    /// When there is no key.
    pub fn issue_expired(&self, name: &str) -> Result<Pair> {
        self.issue_for(name, &[], 2021)
    }

    /// A client's certificate with organisations, which Kubernetes takes for groups.
    ///
    /// # Errors
    /// When there is no key.
    pub fn issue_member(&self, name: &str, organizations: &[&str]) -> Result<Pair> {
        self.issue_for(name, organizations, 2200)
    }

    fn issue_for(&self, name: &str, organizations: &[&str], until: i32) -> Result<Pair> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

impl Pair {
    /// Writes `tls.crt` and `tls.key` into `dir`, each replaced as a whole; gives their paths.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(PathBuf, PathBuf)> {
        Ok((
            write_file(&dir.join("tls.crt"), &self.certificate)?,
            write_file(&dir.join("tls.key"), &self.key)?,
        ))
    }
}

/// Replaces a file as a whole, readable by its owner only; gives its path.
///
/// # Errors
/// When it cannot be written.
pub fn write_file(path: &Path, text: &str) -> Result<PathBuf> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(new, path)?;
    Ok(path.to_owned())
}
