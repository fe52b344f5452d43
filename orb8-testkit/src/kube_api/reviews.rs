//! Who somebody is and what they may do: TokenReview and SubjectAccessReview, by what a test says.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::answer::Refusal;

/// Longest question.
pub(super) const LONGEST: usize = 64 << 10;

/// Tokens and rights.
#[derive(Debug, Default)]
pub(crate) struct Reviews {
    tokens: BTreeMap<String, Holder>,
    rights: Vec<Right>,
}

#[derive(Debug)]
struct Holder {
    user: String,
    groups: Vec<String>,
    /// Its time is over.
    expired: bool,
}

/// A right of a user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Right {
    who: String,
    verb: String,
    resource: String,
    /// Empty: in all of them, and outside.
    namespace: String,
}

impl Reviews {
    pub(super) fn add_token(&mut self, token: &str, user: &str, groups: &[&str]) {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let holder = Holder { user: user.into(), groups, expired: false };
        self.tokens.insert(token.into(), holder);
    }

    pub(super) fn expire_token(&mut self, token: &str) {
        if let Some(holder) = self.tokens.get_mut(token) {
            holder.expired = true;
        }
    }

    pub(super) fn grant(&mut self, who: &str, verb: &str, resource: &str, namespace: &str) {
        let [who, verb, resource, namespace] =
            [who, verb, resource, namespace].map(ToOwned::to_owned);
        self.rights.push(Right { who, verb, resource, namespace });
    }

    pub(super) fn revoke(&mut self, who: &str) {
        self.rights.retain(|right| right.who != who);
    }

    /// Answers a question; `None`: nothing is asked at this path.
    pub(super) fn answer(&self, path: &str, body: &[u8]) -> Option<Result<Value, Refusal>> {
        type Answer = fn(&Reviews, &Value) -> Result<Value>;
        let answer: Answer = match path {
            "/apis/authentication.k8s.io/v1/tokenreviews" => Self::token,
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => Self::access,
            _ => return None,
        };
        let answer = serde_json::from_slice(body).context("no JSON").and_then(|question: Value| {
            let status = answer(self, &question["spec"])?;
            let mut object = question;
            object["status"] = status;
            Ok(object)
        });
        Some(answer.map_err(|error| (StatusCode::BAD_REQUEST, format!("{error:#}"))))
    }

    fn token(&self, spec: &Value) -> Result<Value> {
        let token = spec["token"].as_str().context("no token")?;
        Ok(match self.tokens.get(token) {
            Some(Holder { user, groups, expired: false }) => {
                let mut groups = groups.clone();
                groups.push("system:authenticated".into());
                json!({ "authenticated": true, "user": { "username": user, "groups": groups } })
            }
            Some(_) => json!({ "error": "[invalid bearer token, token has expired]" }),
            None => json!({ "error": "invalid bearer token" }),
        })
    }

    fn access(&self, spec: &Value) -> Result<Value> {
        let asked = &spec["resourceAttributes"];
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut names = vec![spec["user"].as_str().context("no user")?];
        names.extend(spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str));
        let (verb, resource) = (word(&asked["verb"]), word(&asked["resource"]));
        let namespace = word(&asked["namespace"]);
        let fits = |right: &&Right| {
            names.contains(&&*right.who)
                && right.verb == verb
                && right.resource == resource
                && (right.namespace.is_empty() || right.namespace == namespace)
        };
        let allowed = word(&asked["group"]).is_empty() && self.rights.iter().find(fits).is_some();
        Ok(json!({ "allowed": allowed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(reviews: &Reviews, path: &str, spec: Value) -> Value {
        let body = json!({ "spec": spec }).to_string();
        reviews.answer(path, body.as_bytes()).unwrap().unwrap()["status"].clone()
    }

    #[test]
    fn tokens_are_known_until_they_end() {
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let mut reviews = Reviews::default();
        reviews.add_token("t", "ann", &["devs"]);
        let known = asked(&reviews, path, json!({ "token": "t" }));
        assert_eq!(known["user"]["username"], "ann");
        assert_eq!(known["user"]["groups"], json!(["devs", "system:authenticated"]));
        assert_eq!(asked(&reviews, path, json!({ "token": "u" }))["authenticated"], Value::Null);
        reviews.expire_token("t");
        let ended = asked(&reviews, path, json!({ "token": "t" }));
        assert!(ended["error"].as_str().unwrap().contains("expired"));
        assert!(reviews.answer(path, b"{").unwrap().is_err());
        assert!(reviews.answer("/api/v1/pods", b"{}").is_none());
    }

    #[test]
    fn a_right_is_for_one_namespace_or_for_all() {
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let mut reviews = Reviews::default();
        reviews.grant("ann", "list", "pods", "shop");
        reviews.grant("ops", "list", "pods", "");
        let may = |reviews: &Reviews, user: &str, groups: Value, verb: &str, namespace: &str| {
            let attributes = json!({ "verb": verb, "resource": "pods", "namespace": namespace });
            let spec = json!({ "user": user, "groups": groups, "resourceAttributes": attributes });
            asked(reviews, path, spec)["allowed"] == true
        };
        assert!(may(&reviews, "ann", json!([]), "list", "shop"));
        assert!(!may(&reviews, "ann", json!([]), "get", "shop"));
        assert!(!may(&reviews, "ann", json!([]), "list", "bank"));
        assert!(!may(&reviews, "ann", json!([]), "list", ""));
        assert!(may(&reviews, "bob", json!(["ops"]), "list", ""));
        assert!(may(&reviews, "bob", json!(["ops"]), "list", "bank"));
        reviews.revoke("ann");
        assert!(!may(&reviews, "ann", json!([]), "list", "shop"));
    }
}
