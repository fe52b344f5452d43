//! Pods as the Kubernetes API writes them: the subset that orb8 reads, from JSON or YAML.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::{Container, Owner, Pod};

/// On the mirror of a static pod: the UID by which the kubelet knows it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Runtimes whose ids orb8 knows; pods of others (virtual nodes) are kept without containers.
const RUNTIMES: [&str; 3] = ["containerd://", "cri-o://", "docker://"];

/// Reads a `PodList` or `List`, or a stream of `Pod`s. The error names the entry and what was
/// expected.
pub(super) fn pods(text: &str) -> Result<Vec<Pod>, String> {
    let documents = documents(text)?;
    if documents.is_empty() {
        return Err("no document in it, expected Pod, PodList or List".to_owned());
    }
    let mut pods = Vec::new();
    for (at, document) in documents.into_iter().enumerate() {
        let place = format!("document {}", at + 1);
        match document.kind.as_deref() {
            Some("Pod") => pods.push(document.into_pod(&place)?),
            Some("PodList" | "List") => {
                let items = document
                    .items
                    .ok_or_else(|| format!("{place}: no `items`, expected a list of pods"))?;
                for (at, item) in items.into_iter().enumerate() {
                    pods.push(item.into_pod(&format!("{place}, items[{at}]"))?);
                }
            }
            kind => return Err(unexpected_kind(&place, kind, "Pod, PodList or List")),
        }
    }
    Ok(pods)
}

/// JSON documents may simply follow each other; YAML documents are separated by `---`.
fn documents(text: &str) -> Result<Vec<Object>, String> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('{') {
        return serde_json::Deserializer::from_str(text)
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|why| format!("it is not the JSON that kubectl prints: {why}"));
    }
    // The operator's own file: as large as the cluster is.
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|why| format!("it is not the YAML that kubectl prints: {why}"))
}

fn unexpected_kind(place: &str, kind: Option<&str>, expected: &str) -> String {
    let kind = kind.map_or("no kind".to_owned(), |kind| format!("kind `{kind}`"));
    format!("{place}: it has {kind}, expected {expected}")
}

/// A pod or a list of them: the subset that orb8 reads. Everything is optional to serde, so that
/// what is missing is reported with the entry's place and name.
#[derive(Deserialize)]
struct Object {
    kind: Option<String>,
    items: Option<Vec<Object>>,
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
struct OwnerReference {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    qos_class: Option<String>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

#[derive(Deserialize)]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

impl Object {
    fn into_pod(self, place: &str) -> Result<Pod, String> {
        // The items of a PodList need not repeat their kind.
        if self.kind.as_deref().is_some_and(|kind| kind != "Pod") {
            return Err(unexpected_kind(place, self.kind.as_deref(), "Pod"));
        }
        let metadata = self.metadata.unwrap_or_default();
        let name = metadata
            .name
            .filter(|name| !name.is_empty())
            .ok_or_else(|| format!("{place}: no metadata.name, expected the pod's name"))?;
        let namespace = metadata.namespace.unwrap_or_else(|| "default".to_owned());
        let place = format!("{place} (pod {namespace}/{name})");
        let uid = metadata
            .uid
            .ok_or_else(|| format!("{place}: no metadata.uid, expected the pod's UID"))?
            .parse()
            .map_err(|why| format!("{place}: metadata.uid: {why}"))?;
        let config_hash = match metadata.annotations.unwrap_or_default().remove(CONFIG_HASH) {
            // A static pod that is not a mirror carries its own hash.
            Some(hash) => hash.parse().ok().filter(|hash| *hash != uid),
            None => None,
        };
        let owners = metadata.owner_references.unwrap_or_default();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        Ok(Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid,
            config_hash,
            node: spec.node_name.unwrap_or_default().into(),
            host_network: spec.host_network.unwrap_or_default(),
            ips: status.ips(&place)?,
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            qos: match status.qos_class.as_deref() {
                None | Some("") => None,
                Some(class) => {
                    Some(class.parse().map_err(|why| format!("{place}: status.qosClass: {why}"))?)
                }
            },
            containers: status.containers(&place)?,
            labels: metadata.labels.unwrap_or_default(),
            owner: owner.map(|owner| Owner { kind: owner.kind.into(), name: owner.name.into() }),
        })
    }
}

impl Status {
    fn ips(&self, place: &str) -> Result<Vec<IpAddr>, String> {
        let all = self.pod_ips.iter().flatten().map(|entry| &entry.ip);
        let mut ips = Vec::new();
        for text in all.chain(&self.pod_ip).filter(|text| !text.is_empty()) {
            let ip = text.parse().map_err(|_| {
                format!("{place}: status.podIPs: `{text}` is not an IPv4 or IPv6 address")
            })?;
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        Ok(ips)
    }

    fn containers(&self, place: &str) -> Result<Vec<Container>, String> {
        let all = [
            &self.init_container_statuses,
            &self.container_statuses,
            &self.ephemeral_container_statuses,
        ];
        let mut containers = Vec::new();
        for status in all.into_iter().flatten().flatten() {
            let text = status.container_id.as_deref().unwrap_or_default();
            let Some(id) = RUNTIMES.iter().find_map(|scheme| text.strip_prefix(scheme)) else {
                continue;
            };
            let id = id
                .parse()
                .map_err(|why| format!("{place}: containerID of `{}`: {why}", status.name))?;
            containers.push(Container { name: status.name.as_str().into(), id });
        }
        Ok(containers)
    }
}
