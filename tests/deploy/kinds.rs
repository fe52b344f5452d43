//! Every object is one that the Kubernetes API knows, field by field.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Namespace, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use orb8_tests::manifests::{charted, file, kustomized, title};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// What the objects of other people's kinds say: exactly this, by their reference documentation.
mod others {
    use super::{BTreeMap, Deserialize, Serialize, Value};

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct Object<S> {
        api_version: String,
        kind: String,
        metadata: Metadata,
        spec: S,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Metadata {
        name: String,
        namespace: String,
        labels: BTreeMap<String, String>,
    }

    /// https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor
    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct ServiceMonitorSpec {
        selector: Selector,
        namespace_selector: NamespaceSelector,
        endpoints: Vec<Endpoint>,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Selector {
        match_labels: BTreeMap<String, String>,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct NamespaceSelector {
        match_names: Vec<String>,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Endpoint {
        port: String,
        path: String,
        interval: String,
        honor_labels: bool,
        scheme: Scheme,
        relabelings: Vec<Relabeling>,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Scheme {
        Http,
        Https,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Relabeling {
        #[serde(skip_serializing_if = "Option::is_none")]
        source_labels: Option<Vec<String>>,
        target_label: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        replacement: Option<String>,
    }

    /// promtool looks at the groups.
    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct PrometheusRuleSpec {
        groups: Vec<Value>,
    }

    /// https://cert-manager.io/docs/reference/api-docs/#cert-manager.io/v1.IssuerSpec
    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) enum IssuerSpec {
        SelfSigned(BTreeMap<String, String>),
        #[serde(rename_all = "camelCase")]
        Ca {
            secret_name: String,
        },
    }

    /// https://cert-manager.io/docs/reference/api-docs/#cert-manager.io/v1.CertificateSpec
    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub(super) struct CertificateSpec {
        secret_name: String,
        duration: String,
        private_key: PrivateKey,
        issuer_ref: IssuerRef,
        #[serde(rename = "isCA", skip_serializing_if = "Option::is_none")]
        is_ca: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        common_name: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        renew_before: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        usages: Option<Vec<String>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        dns_names: Option<Vec<String>>,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct PrivateKey {
        algorithm: String,
        size: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        rotation_policy: Option<String>,
    }

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct IssuerRef {
        group: String,
        kind: String,
        name: String,
    }
}

/// What is left of an object when it went through its type: what its type does not know is gone.
fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value> {
    Ok(serde_json::to_value(serde_json::from_value::<T>(object.clone())?)?)
}

fn as_its_kind_has_it(object: &Value) -> Result<Value> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => through::<Namespace>(object),
        ("v1", "Secret") => through::<Secret>(object),
        ("v1", "Service") => through::<Service>(object),
        ("v1", "ServiceAccount") => through::<ServiceAccount>(object),
        ("apps/v1", "DaemonSet") => through::<DaemonSet>(object),
        ("apps/v1", "Deployment") => through::<Deployment>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => through::<NetworkPolicy>(object),
        ("policy/v1", "PodDisruptionBudget") => through::<PodDisruptionBudget>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            through::<ClusterRoleBinding>(object)
        }
        ("monitoring.coreos.com/v1", "ServiceMonitor") => {
            through::<others::Object<others::ServiceMonitorSpec>>(object)
        }
        ("monitoring.coreos.com/v1", "PrometheusRule") => {
            through::<others::Object<others::PrometheusRuleSpec>>(object)
        }
        ("cert-manager.io/v1", "Issuer") => through::<others::Object<others::IssuerSpec>>(object),
        ("cert-manager.io/v1", "Certificate") => {
            through::<others::Object<others::CertificateSpec>>(object)
        }
        (version, kind) => bail!("{version} {kind} is not among the kinds that orb8 installs"),
    }
}

/// Paths of fields that are in `written` and not, or differently, in `known`. What is empty may be gone.
fn differences(at: &str, written: &Value, known: Option<&Value>) -> Vec<String> {
    let is_empty = |value: &Value| {
        value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty)
    };
    match (written, known) {
        (written, None) if is_empty(written) => Vec::new(),
        (Value::Object(fields), Some(Value::Object(known))) => fields
            .iter()
            .flat_map(|(name, value)| differences(&format!("{at}.{name}"), value, known.get(name)))
            .collect(),
        (Value::Array(items), Some(Value::Array(known))) if items.len() == known.len() => items
            .iter()
            .zip(known)
            .enumerate()
            .flat_map(|(i, (item, known))| differences(&format!("{at}[{i}]"), item, Some(known)))
            .collect(),
        (written, Some(known)) if written == known => Vec::new(),
        (written, known) => vec![format!("{at}: {written} became {known:?}")],
    }
}

/// Fails unless every one of the objects is what its kind has, and nothing else.
pub(crate) fn all_known(objects: &[Value]) -> Result<()> {
    ensure!(!objects.is_empty(), "there are no objects");
    for object in objects {
        let title = title(object);
        let known = match as_its_kind_has_it(object) {
            Ok(known) => known,
            Err(error) => bail!("{title}: {error:#}"),
        };
        let differences = differences(&title, object, Some(&known));
        ensure!(differences.is_empty(), "fields that Kubernetes does not know: {differences:#?}");
    }
    Ok(())
}

#[test]
fn every_object_has_only_fields_that_its_kind_knows() -> Result<()> {
    for kustomization in [".", "overlays/insecure-dev", "overlays/full"] {
        all_known(&kustomized(kustomization)?)?;
    }
    let everything = json!({
        "namespace": { "create": true },
        "tls": { "certManager": true },
        "imagePullSecrets": [{ "name": "registry" }],
        "agent": {
            "runtimeDirectory": "/run/containerd",
            "extraArgs": ["--tc-attach=clsact"],
            "seccompProfile": { "type": "Localhost", "localhostProfile": "orb8.json" },
        },
        "server": { "tolerations": [{ "operator": "Exists" }] },
        "prometheus": { "enabled": true, "labels": { "release": "prometheus" } },
    });
    all_known(&charted(&everything)?)
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() -> Result<()> {
    let mut objects = file("daemonset.yaml")?;
    all_known(&objects)?;
    objects[0]["spec"]["template"]["spec"]["hostPid"] = true.into();
    let error = all_known(&objects).unwrap_err().to_string();
    ensure!(error.contains("DaemonSet/orb8-agent.spec.template.spec.hostPid"), "{error}");
    Ok(())
}

#[test]
fn files_applied_one_by_one_are_what_the_kustomization_installs() -> Result<()> {
    let mut files = Vec::new();
    for name in ["namespace", "rbac", "daemonset", "server", "networkpolicy"] {
        files.extend(file(&format!("{name}.yaml"))?);
    }
    let mut together = kustomized(".")?;
    files.sort_by_key(title);
    together.sort_by_key(title);
    ensure!(files == together, "they differ");
    Ok(())
}
