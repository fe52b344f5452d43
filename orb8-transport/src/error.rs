//! What can be wrong with the files that TLS is made of.

use std::{fmt, io, path::PathBuf};

use crate::pem::PemProblem;

/// What a file was to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A certificate, with the chain that leads to its CA.
    Certificate,
    /// The certificate's private key.
    Key,
    /// The certificates of CAs that are trusted.
    Ca,
    /// A bearer token.
    Token,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Certificate => "certificate",
            Part::Key => "private key",
            Part::Ca => "CA certificates",
            Part::Token => "token",
        })
    }
}

/// Why files cannot be used. Every message names the file and what was expected of it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("{part} {}: cannot be read: {source}", path.display())]
    Unreadable {
        /// What it was to hold.
        part: Part,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold what it is to hold.
    #[error("{part} {}: {problem}", path.display())]
    Pem {
        /// What it was to hold.
        part: Part,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: PemProblem,
    },
    /// Both files are sound, but not a pair: also what a swap looks like that is half done.
    #[error(
        "private key {}: is not the key of the certificate in {}; expected a pair",
        key.display(), certificate.display()
    )]
    NotAPair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// TLS does not take it: an algorithm that is not supported, a certificate that is malformed.
    #[error("{part} {}: cannot be used: {reason}", path.display())]
    Unusable {
        /// What it was to hold.
        part: Part,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The system's own CA certificates cannot be found.
    #[error("the system's CA certificates cannot be read: {0}; name a file of CA certificates")]
    SystemRoots(String),
    /// Options that contradict or lack each other.
    #[error("{0}")]
    Options(String),
}
