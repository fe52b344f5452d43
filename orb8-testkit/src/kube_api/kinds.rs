//! The kinds of objects that the API serves, and where.

use anyhow::{Context, Result};
use serde_json::Value;

/// One kind.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// As in `kind` of an object.
    pub(super) name: &'static str,
    pub(super) api_version: &'static str,
    /// Before `/namespaces/…` in paths.
    root: &'static str,
    /// Last in a list's path.
    plural: &'static str,
    namespaced: bool,
}

const fn core(name: &'static str, plural: &'static str, namespaced: bool) -> Kind {
    Kind { name, api_version: "v1", root: "/api/v1/", plural, namespaced }
}

static KINDS: [Kind; 5] = [
    core("Pod", "pods", true),
    core("Node", "nodes", false),
    core("Namespace", "namespaces", false),
    core("Service", "services", true),
    Kind {
        name: "EndpointSlice",
        api_version: "discovery.k8s.io/v1",
        root: "/apis/discovery.k8s.io/v1/",
        plural: "endpointslices",
        namespaced: true,
    },
];

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resource<'a> {
    pub(super) kind: &'static Kind,
    /// Empty: all.
    pub(super) namespace: &'a str,
    /// Empty: all.
    pub(super) name: &'a str,
}

impl Kind {
    pub(super) fn named(name: &str) -> Result<&'static Self> {
        let kind = KINDS.iter().find(|kind| kind.name == name);
        kind.with_context(|| {
            let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
            format!("kind {name:?} is not served, expected one of {names:?}")
        })
    }

    /// The namespace that an object of this kind is in; empty for what is in none.
    pub(super) fn namespace_of<'a>(&self, object: &'a Value) -> &'a str {
        match object["metadata"]["namespace"].as_str() {
            _ if !self.namespaced => "",
            Some(namespace) => namespace,
            None => "default",
        }
    }
}

/// None where nothing is served.
pub(super) fn resource(path: &str) -> Option<Resource<'_>> {
    KINDS.iter().find_map(|kind| {
        let parts: Vec<&str> = path.strip_prefix(kind.root)?.split('/').collect();
        let (namespace, rest) = match &*parts {
            ["namespaces", namespace, rest @ ..] if kind.namespaced => (*namespace, rest),
            rest => ("", rest),
        };
        let name = match rest {
            [plural] if *plural == kind.plural => "",
            [plural, name]
                if *plural == kind.plural && (!namespace.is_empty() || !kind.namespaced) =>
            {
                name
            }
            _ => return None,
        };
        Some(Resource { kind, namespace, name })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_lists_and_objects() {
        let asked = |path| resource(path).map(|r| (r.kind.name, r.namespace, r.name));
        assert_eq!(asked("/api/v1/pods"), Some(("Pod", "", "")));
        assert_eq!(asked("/api/v1/namespaces/shop/pods"), Some(("Pod", "shop", "")));
        assert_eq!(asked("/api/v1/namespaces/shop/pods/web"), Some(("Pod", "shop", "web")));
        assert_eq!(asked("/api/v1/nodes/n1"), Some(("Node", "", "n1")));
        assert_eq!(asked("/api/v1/namespaces/shop"), Some(("Namespace", "", "shop")));
        let slices = "/apis/discovery.k8s.io/v1/endpointslices";
        assert_eq!(asked(slices), Some(("EndpointSlice", "", "")));
        for nowhere in ["/api/v1/pods/web", "/api/v1/secrets", "/", "/api/v1/namespaces/shop/nodes"]
        {
            assert_eq!(asked(nowhere), None, "{nowhere}");
        }
    }
}
