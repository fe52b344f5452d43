//! What is written in a certificate: whose it is and from when to when it holds.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use x509_parser::{
    extensions::GeneralName,
    prelude::{ASN1Time, FromDer, X509Certificate},
};

/// Who a certificate says its holder is. Only as true as the CA: take it from a peer that was
/// verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The whole subject, as text.
    pub subject: String,
    /// The subject's common name, which Kubernetes takes for the user's name.
    pub common_name: Option<String>,
    /// The subject's organisations, which Kubernetes takes for the user's groups.
    pub organizations: Vec<String>,
    /// DNS names among the alternative names.
    pub dns_names: Vec<String>,
    /// URIs among the alternative names, such as `spiffe://…`.
    pub uris: Vec<String>,
    /// Addresses among the alternative names.
    pub addresses: Vec<IpAddr>,
    /// Holds from then on.
    pub not_before: SystemTime,
    /// Holds until then.
    pub not_after: SystemTime,
}

impl Identity {
    /// Reads one certificate.
    ///
    /// # Errors
    /// What the parser said of bytes that are no certificate.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        let subject = certificate.subject();
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(str::to_owned)
        };
        let mut identity = Self {
            subject: subject.to_string(),
            common_name: subject.iter_common_name().find_map(text),
            organizations: subject.iter_organization().filter_map(text).collect(),
            dns_names: Vec::new(),
            uris: Vec::new(),
            addresses: Vec::new(),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
        };
        let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => identity.dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => identity.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => identity.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(identity)
    }

    /// What is wrong with the certificate's time at `now`, if anything.
    #[must_use]
    pub fn out_of_date(&self, now: SystemTime) -> Option<String> {
        if let Ok(since) = now.duration_since(self.not_after) {
            return Some(format!("expired {} ago", coarse(since)));
        }
        let until = self.not_before.duration_since(now).ok()?;
        (!until.is_zero()).then(|| format!("not valid for another {}", coarse(until)))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alternative = self.dns_names.first().or(self.uris.first());
        match self.common_name.as_ref().or(alternative) {
            // Escaped, as it goes to logs: a CA may have signed anything.
            Some(name) => write!(f, "{}", name.escape_debug()),
            None => write!(f, "{}", self.subject.escape_debug()),
        }
    }
}

fn time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let at = if seconds < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    at.unwrap_or(epoch)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(|b| IpAddr::V4(Ipv4Addr::from(b))).ok();
    let v6 = || <[u8; 16]>::try_from(bytes).map(|b| IpAddr::V6(Ipv6Addr::from(b))).ok();
    v4().or_else(v6)
}

/// A length of time for people: its largest unit is enough.
pub(crate) fn coarse(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_and_times_are_read() {
        let mut params = CertificateParams::new(["node-1".into(), "10.0.0.1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "orb8-agent");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        let uri = "spiffe://cluster/ns/orb8/sa/agent";
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let read = Identity::parse(certificate.der()).unwrap();
        assert_eq!(read.common_name.as_deref(), Some("orb8-agent"));
        assert_eq!(read.organizations, ["system:nodes"]);
        assert_eq!(read.dns_names, ["node-1"]);
        assert_eq!(read.uris, [uri]);
        assert_eq!(read.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let day = Duration::from_secs(86_400);
        assert_eq!(read.out_of_date(read.not_before), None);
        assert_eq!(read.out_of_date(read.not_after + 3 * day).unwrap(), "expired 3 days ago");
        assert_eq!(
            read.out_of_date(read.not_before - 5 * day).unwrap(),
            "not valid for another 5 days"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes: Vec<u8>) {
            prop_assert!(Identity::parse(&bytes).is_err());
        }
    }
}
