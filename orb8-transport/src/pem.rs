//! PEM text to certificates and keys. Pure; every problem says what was found instead.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What is wrong with a PEM file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemProblem {
    /// No section of the kind that was looked for.
    #[error("no {expected} in it ({}); expected PEM, `-----BEGIN {expected}-----`", instead(found))]
    Missing {
        /// The label that was looked for.
        expected: &'static str,
        /// The labels that are there instead.
        found: Vec<String>,
    },
    /// A key under a passphrase, which nobody could give to a program that restarts by itself.
    #[error("the private key in it is encrypted; expected one without a passphrase")]
    Encrypted,
    /// Several keys, of which none is the obvious one.
    #[error("{0} private keys in it; expected one")]
    SeveralKeys(usize),
    /// The armour or the base64 within is broken.
    #[error("not sound PEM: {0}")]
    Broken(String),
    /// A section that says certificate and is none.
    #[error("certificate {number} in it is not an X.509 certificate: {reason}")]
    NotX509 {
        /// Counted from 1.
        number: usize,
        /// What the parser said.
        reason: String,
    },
}

fn instead(labels: &[String]) -> String {
    if labels.is_empty() { "no PEM at all".into() } else { format!("found {}", labels.join(", ")) }
}

/// All certificates in `text`, in order, at least one. Keys beside them are passed over: a file may
/// hold both.
///
/// # Errors
/// When there is none, or one that is broken.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemProblem> {
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PemProblem::Broken(error.to_string()))?;
    if certificates.is_empty() {
        return Err(PemProblem::Missing { expected: "CERTIFICATE", found: labels(text) });
    }
    for (at, certificate) in certificates.iter().enumerate() {
        let not_x509 = |reason| PemProblem::NotX509 { number: at + 1, reason };
        match X509Certificate::from_der(certificate) {
            Ok(([], _)) => {}
            Ok((rest, _)) => return Err(not_x509(format!("{} bytes too many", rest.len()))),
            Err(error) => return Err(not_x509(error.to_string())),
        }
    }
    Ok(certificates)
}

/// The private key in `text`: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// When there is none, more than one, or one that is encrypted or broken.
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemProblem> {
    let mut keys = PrivateKeyDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PemProblem::Broken(error.to_string()))?;
    // The old way to encrypt keeps the label and says so in a header; what is armoured is no key.
    let says_encrypted =
        |line: &[u8]| line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED");
    if text.split(|byte| *byte == b'\n').any(|line| says_encrypted(line.trim_ascii_end())) {
        return Err(PemProblem::Encrypted);
    }
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), more) => Err(PemProblem::SeveralKeys(more + 1)),
        (None, _) => {
            let found = labels(text);
            if found.iter().any(|label| label == "ENCRYPTED PRIVATE KEY") {
                return Err(PemProblem::Encrypted);
            }
            Err(PemProblem::Missing { expected: "PRIVATE KEY", found })
        }
    }
}

/// What the sections in `text` call themselves, a few of them, for messages.
fn labels(text: &[u8]) -> Vec<String> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.trim_ascii().strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----"))
        .map(|label| String::from_utf8_lossy(label).chars().take(40).collect())
        .take(4)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["a".into()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_chain_keeps_its_order_and_a_key_beside_it_is_found() {
        let ((leaf, key), (ca, _)) = (pair(), pair());
        let both = format!("comment\n{leaf}{key}{ca}");
        let chain = certificates(both.as_bytes()).unwrap();
        assert_eq!(chain[..1], certificates(leaf.as_bytes()).unwrap());
        assert_eq!(chain[1..], certificates(ca.as_bytes()).unwrap());
        assert!(private_key(both.as_bytes()).is_ok());
    }

    #[test]
    fn what_was_found_instead_is_in_the_message() {
        let (certificate, key) = pair();
        let said = certificates(key.as_bytes()).unwrap_err().to_string();
        assert!(said.contains("no CERTIFICATE") && said.contains("found PRIVATE KEY"), "{said}");
        let said = private_key(certificate.as_bytes()).unwrap_err().to_string();
        assert!(said.contains("no PRIVATE KEY") && said.contains("found CERTIFICATE"), "{said}");
        let said = certificates(b"hello").unwrap_err().to_string();
        assert!(said.contains("no PEM at all"), "{said}");
        let two = format!("{key}{}", pair().1);
        assert_eq!(private_key(two.as_bytes()), Err(PemProblem::SeveralKeys(2)));
    }

    #[test]
    fn encrypted_keys_are_refused_by_name() {
        let key = pair().1;
        let new = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let old = key.replace("PRIVATE KEY", "EC PRIVATE KEY").replacen(
            "-----\n",
            "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n",
            1,
        );
        assert_eq!(private_key(new.as_bytes()), Err(PemProblem::Encrypted));
        assert!(private_key(old.as_bytes()).is_err());
    }

    #[test]
    fn a_certificate_of_sound_base64_that_is_none_is_refused_with_its_number() {
        let text = format!(
            "{}-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
            pair().0
        );
        let said = certificates(text.as_bytes()).unwrap_err();
        assert!(matches!(said, PemProblem::NotX509 { number: 2, .. }), "{said}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_and_never_a_key_by_accident(bytes: Vec<u8>) {
            prop_assert!(certificates(&bytes).is_err());
            prop_assert!(private_key(&bytes).is_err());
        }

        /// One byte changed anywhere: either an error or another sound certificate, never a panic,
        /// and cut anywhere before its end it is no certificate.
        #[test]
        fn damaged_files_are_refused(at in 0.0f64..1.0, byte: u8, cut in 0.0f64..0.98) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
            let place = |share: f64, len: usize| (share * len as f64) as usize;
            let (certificate, key) = pair();
            for text in [&certificate, &key] {
                let mut damaged = text.clone().into_bytes();
                let at = place(at, damaged.len());
                damaged[at] = byte;
                let _either = (certificates(&damaged), private_key(&damaged));
                let cut = &text.as_bytes()[..place(cut, text.len())];
                prop_assert!(certificates(cut).is_err());
                prop_assert!(private_key(cut).is_err());
            }
        }
    }
}
