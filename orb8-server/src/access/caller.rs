//! Who asks: what came with a request to show it.

use std::{fmt, sync::Arc};

use orb8_transport::{Identity, Peer, peer};
use tonic::{Request, Status};

/// Longest token. That of a service account has some 1,200 characters.
const LONGEST_TOKEN: usize = 8_192;

/// Somebody whose name is beyond doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: Vec<(String, Vec<String>)>,
}

/// Whoever made a request.
#[derive(Clone)]
pub(crate) struct Caller {
    peer: Option<Peer>,
    token: Option<Arc<str>>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the token.
        f.debug_struct("Caller").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Caller {
    /// As far as the request tells.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a header that is no bearer token.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Ok(Self { peer: peer(request).cloned(), token: token(request)?.map(Into::into) })
    }

    /// Where it is, for logs.
    pub(crate) fn from(&self) -> String {
        self.peer.as_ref().map_or_else(String::new, ToString::to_string)
    }

    /// Holder of its certificate, which was verified.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.peer.as_ref()?.identity.as_deref()
    }

    /// Not to be logged.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The holder of the certificate as the Kubernetes API takes it: the common name is the user's,
    /// organisations are groups. Somebody without a name is nobody.
    pub(crate) fn user(&self) -> Option<Arc<User>> {
        let identity = self.identity()?;
        let name = identity.common_name.clone().filter(|name| !name.is_empty())?;
        let mut groups = identity.organizations.clone();
        groups.push("system:authenticated".into());
        Some(Arc::new(User { name, groups, ..User::default() }))
    }
}

/// The token of `authorization: Bearer …`.
fn token<T>(request: &Request<T>) -> Result<Option<&str>, Status> {
    let mut headers = request.metadata().get_all("authorization").iter();
    let Some(value) = headers.next() else { return Ok(None) };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    // As RFC 6750 has it, so that nothing else is ever asked about.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
    match token {
        Some(token) if token.len() > LONGEST_TOKEN => Err(Status::unauthenticated(format!(
            "authorization: a token of {} bytes; expected at most {LONGEST_TOKEN}",
            token.len()
        ))),
        Some(token)
            if !token.is_empty() && token.chars().all(allowed) && headers.next().is_none() =>
        {
            Ok(Some(token))
        }
        _ => Err(Status::unauthenticated("authorization: expected one \"Bearer TOKEN\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_or_the_header_refused() {
        let with = |values: &[&str]| {
            let mut request = Request::new(());
            for value in values {
                request.metadata_mut().append("authorization", value.parse().unwrap());
            }
            token(&request).map(|token| token.map(str::to_owned)).map_err(|e| e.code())
        };
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&["Bearer abc"]), Ok(Some("abc".into())));
        assert_eq!(with(&["bearer  abc "]), Ok(Some("abc".into())));
        let long = format!("Bearer {}", "x".repeat(LONGEST_TOKEN + 1));
        for wrong in ["Basic abc", "Bearer", "Bearer ", "", "Bearer a b", "Bearer a\"b", &*long] {
            assert_eq!(with(&[wrong]), Err(tonic::Code::Unauthenticated), "{wrong:?}");
        }
        assert_eq!(with(&["Bearer a", "Bearer b"]), Err(tonic::Code::Unauthenticated));
    }

    #[test]
    fn a_token_is_not_in_debug_output() {
        let mut request = Request::new(());
        request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
        let caller = Caller::of(&request).unwrap();
        assert_eq!(caller.token(), Some("secret"));
        assert!(!format!("{caller:?}").contains("secret"));
    }
}
