//! A client's bearer token, from a word or from a file that is rotated.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tonic::{Request, Status, metadata::AsciiMetadataValue, service::Interceptor};

use crate::{
    error::{FileError, Part},
    reloading::{FileState, Reloading, Source},
};

/// How often a token's file is looked at while requests are made. A kubelet renews a token when a
/// fifth of its time is left, which is minutes before the old one ends.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The largest token. Headers have a limit as well, and a service account's has about 1 KiB.
const LARGEST_TOKEN: usize = 8 << 10;

/// Adds `authorization: Bearer …` to requests, or nothing where there is no token. Clones share the
/// token.
///
/// Whoever makes the connection decides whether a token may go there at all: see
/// [`crate::Connector`].
#[derive(Clone, Debug, Default)]
pub struct BearerToken(From);

#[derive(Clone, Default)]
enum From {
    #[default]
    Nothing,
    Word(AsciiMetadataValue),
    File(Arc<Reloading<AsciiMetadataValue>>),
}

impl std::fmt::Debug for From {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            From::Nothing => "nothing",
            From::Word(_) => "a word",
            From::File(_) => "a file",
        })
    }
}

impl BearerToken {
    /// No token: requests go as they are.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// This token.
    ///
    /// # Errors
    /// When it is none; the message does not repeat it.
    pub fn word(token: &str) -> Result<Self, FileError> {
        Ok(Self(From::Word(header(token).map_err(FileError::Options)?)))
    }

    /// The token in a file, read again when that changes.
    ///
    /// # Errors
    /// When there is none in it now.
    pub fn file(path: PathBuf) -> Result<Self, FileError> {
        let sources = vec![Source::new(Part::Token, &path)];
        let loaded = Reloading::load(sources, move |contents| {
            let unusable =
                |reason| FileError::Unusable { part: Part::Token, path: path.clone(), reason };
            let text = contents.first().and_then(|bytes| std::str::from_utf8(bytes).ok());
            header(text.unwrap_or_default()).map_err(unusable)
        })?;
        Ok(Self(From::File(Arc::new(loaded))))
    }

    /// Whether there is a token to give away.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        !matches!(self.0, From::Nothing)
    }

    /// How it stands with the file, where there is one.
    #[must_use]
    pub fn state(&self) -> Option<FileState> {
        match &self.0 {
            From::File(file) => Some(file.state()),
            _ => None,
        }
    }

    fn value(&self) -> Option<AsciiMetadataValue> {
        match &self.0 {
            From::Nothing => None,
            From::Word(value) => Some(value.clone()),
            From::File(file) => {
                // On the caller's thread: interceptors cannot wait, and the file is a small one in
                // memory, looked at once in a while.
                if file.due(CHECK_INTERVAL) {
                    file.check();
                }
                Some(file.current().as_ref().clone())
            }
        }
    }
}

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = self.value() {
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// The header for a token: what RFC 6750 calls `b64token`, so that no token brings a header of its
/// own.
fn header(token: &str) -> Result<AsciiMetadataValue, String> {
    let token = token.trim();
    let expected = "expected one word of letters, digits and -._~+/=";
    if token.is_empty() {
        return Err(format!("the token is empty; {expected}"));
    }
    if token.len() > LARGEST_TOKEN {
        return Err(format!("the token is longer than {} KiB", LARGEST_TOKEN >> 10));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
    if !token.chars().all(allowed) {
        return Err(format!("what is there is not a token; {expected}"));
    }
    let mut value = AsciiMetadataValue::try_from(format!("Bearer {token}"))
        .map_err(|_| format!("what is there is not a token; {expected}"))?;
    // Kept out of debug output and out of HTTP/2's tables of what was sent before.
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn sent(token: &BearerToken) -> Option<String> {
        let request = token.clone().call(Request::new(())).unwrap();
        Some(request.metadata().get("authorization")?.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_token_is_sent_and_none_is_not() {
        assert_eq!(sent(&BearerToken::none()), None);
        let word = BearerToken::word(" a.b-c\n").unwrap();
        assert_eq!(sent(&word).unwrap(), "Bearer a.b-c");
        assert!(!format!("{word:?}").contains("a.b-c"));
        let request = { word }.call(Request::new(())).unwrap();
        assert!(!format!("{request:?}").contains("a.b-c"));
    }

    #[test]
    fn a_rotated_file_is_taken_and_an_empty_one_keeps_the_old_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "old\n").unwrap();
        let token = BearerToken::file(path.clone()).unwrap();
        let From::File(file) = &token.0 else { panic!("a file") };
        fs::write(&path, "new\n").unwrap();
        file.check();
        assert_eq!(sent(&token).unwrap(), "Bearer new");
        fs::write(&path, "").unwrap();
        file.check();
        assert_eq!(sent(&token).unwrap(), "Bearer new");
        assert!(token.state().unwrap().problem.unwrap().contains("empty"));
        assert!(BearerToken::file(path).is_err());
    }

    proptest! {
        #[test]
        fn no_token_breaks_out_of_its_header(token: String) {
            if let Ok(token) = BearerToken::word(&token) {
                let sent = sent(&token).unwrap();
                prop_assert!(sent.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
                prop_assert_eq!(sent.matches(' ').count(), 1);
            }
        }

        #[test]
        fn errors_do_not_repeat_the_token(token in "[a-z]{10,20} [a-z]{10,20}") {
            let said = BearerToken::word(&token).unwrap_err().to_string();
            prop_assert!(!said.contains(&token));
        }
    }
}
