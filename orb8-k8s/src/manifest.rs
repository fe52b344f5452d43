//! Pods as the Kubernetes API writes them: the subset that orb8 reads, from JSON or YAML.
//!
//! Everything else (managed fields, environments, volumes) is dropped while it is read.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

pub use self::times::Times;
use self::times::times;
use super::{Container, Owner, Pod, PodUid, api::Resource};

pub(super) mod times;

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
            Some("Pod") => pods.push(document.observe(&place)?.faultless()?),
            Some("PodList" | "List") => {
                let items = document
                    .items
                    .ok_or_else(|| format!("{place}: no `items`, expected a list of pods"))?;
                for (at, item) in items.into_iter().enumerate() {
                    pods.push(item.observe(&format!("{place}, items[{at}]"))?.faultless()?);
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

/// A pod, and what its object says about the time.
pub struct Observed {
    /// The pod.
    pub pod: Pod,
    /// When things happened to it.
    pub times: Times,
    /// Parts that were left out, because they are not what they should be.
    pub problems: Vec<String>,
}

/// A pod or a list of them: the subset that orb8 reads. Everything is optional to serde, so that
/// what is missing is reported with the entry's place and name.
#[derive(Deserialize)]
pub(super) struct Object {
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
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    deletion_grace_period_seconds: Option<u64>,
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
    start_time: Option<String>,
    conditions: Option<Vec<Condition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    image: Option<String>,
    #[serde(rename = "imageID")]
    image_id: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: Option<ContainerState>,
    last_state: Option<ContainerState>,
}

#[derive(Deserialize)]
struct ContainerState {
    running: Option<Ran>,
    terminated: Option<Ran>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ran {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
}

impl Observed {
    /// For a file that somebody wrote: there, a part that makes no sense is an error.
    fn faultless(self) -> Result<Pod, String> {
        match self.problems.into_iter().next() {
            None => Ok(self.pod),
            Some(problem) => Err(problem),
        }
    }
}

impl Resource for Object {
    fn version(&self) -> Option<&str> {
        self.metadata.as_ref()?.resource_version.as_deref()
    }
}

impl Object {
    /// The pod, without the parts that make no sense. An error where it cannot be told which pod
    /// it is.
    pub(super) fn observe(self, place: &str) -> Result<Observed, String> {
        // The items of a PodList need not repeat their kind.
        if self.kind.as_deref().is_some_and(|kind| kind != "Pod") {
            return Err(unexpected_kind(place, self.kind.as_deref(), "Pod"));
        }
        let mut metadata = self.metadata.unwrap_or_default();
        let name = metadata
            .name
            .take()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| format!("{place}: no metadata.name, expected the pod's name"))?;
        let namespace = metadata.namespace.take().unwrap_or_else(|| "default".to_owned());
        let place = format!("{place} (pod {namespace}/{name})");
        let uid = metadata
            .uid
            .take()
            .ok_or_else(|| format!("{place}: no metadata.uid, expected the pod's UID"))?
            .parse()
            .map_err(|why| format!("{place}: metadata.uid: {why}"))?;
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let mut problems = Vec::new();
        let times = times(&metadata, &status);
        let owners = metadata.owner_references.take().unwrap_or_default();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
        let pod = Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid,
            config_hash: config_hash(metadata.annotations.take(), uid),
            node: spec.node_name.unwrap_or_default().into(),
            host_network: spec.host_network.unwrap_or_default(),
            ips: status.ips(&place, &mut problems),
            finished: status.is_finished(),
            ending: metadata.deletion_timestamp.is_some(),
            qos: match status.qos_class.as_deref() {
                None | Some("") => None,
                Some(class) => class
                    .parse()
                    .map_err(|why| problems.push(format!("{place}: status.qosClass: {why}")))
                    .ok(),
            },
            containers: status.containers(&place, &mut problems),
            labels: metadata.labels.take().into_iter().flatten().collect(),
            owner: owner.map(|owner| Owner { kind: owner.kind.into(), name: owner.name.into() }),
        };
        Ok(Observed { pod, times, problems })
    }
}

impl ContainerStatus {
    /// The image with its digest, which tells two images apart that had one name.
    fn image(&self) -> String {
        let name = self.image.as_deref().unwrap_or_default();
        let digest = self.image_id.as_deref().and_then(|id| Some(id.rsplit_once("sha256:")?.1));
        match digest {
            Some(digest) if !name.contains("sha256:") => format!("{name}@sha256:{digest}"),
            _ => name.to_owned(),
        }
    }
}

/// A static pod that is not a mirror carries its own hash, which is its UID.
fn config_hash(annotations: Option<BTreeMap<String, String>>, uid: PodUid) -> Option<PodUid> {
    annotations?.remove(CONFIG_HASH)?.parse().ok().filter(|hash| *hash != uid)
}

impl Status {
    fn is_finished(&self) -> bool {
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    fn ips(&self, place: &str, problems: &mut Vec<String>) -> Vec<IpAddr> {
        let all = self.pod_ips.iter().flatten().map(|entry| &entry.ip);
        let mut ips = Vec::new();
        for text in all.chain(&self.pod_ip).filter(|text| !text.is_empty()) {
            match text.parse() {
                Ok(ip) if ips.contains(&ip) => {}
                Ok(ip) => ips.push(ip),
                Err(_) => problems.push(format!(
                    "{place}: status.podIPs: `{text}` is not an IPv4 or IPv6 address"
                )),
            }
        }
        ips
    }

    /// Containers of every kind. A sidecar is an init container that stays.
    fn all(&self) -> impl Iterator<Item = &ContainerStatus> {
        let all = [
            &self.init_container_statuses,
            &self.container_statuses,
            &self.ephemeral_container_statuses,
        ];
        all.into_iter().flatten().flatten()
    }

    fn containers(&self, place: &str, problems: &mut Vec<String>) -> Vec<Container> {
        let mut containers: Vec<Container> = Vec::new();
        for status in self.all() {
            let ended = |state: &Option<ContainerState>| {
                state.as_ref()?.terminated.as_ref()?.container_id.clone()
            };
            let ids =
                [status.container_id.clone(), ended(&status.state), ended(&status.last_state)];
            for text in ids.into_iter().flatten() {
                let Some(id) = RUNTIMES.iter().find_map(|scheme| text.strip_prefix(scheme)) else {
                    continue;
                };
                match id.parse() {
                    Ok(id) if containers.iter().any(|known| known.id == id) => {}
                    Ok(id) => {
                        let (name, image) = (status.name.as_str().into(), status.image().into());
                        containers.push(Container { name, id, image });
                    }
                    Err(why) => {
                        problems.push(format!("{place}: containerID of `{}`: {why}", status.name))
                    }
                }
            }
        }
        containers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(json: &str) -> Observed {
        serde_json::from_str::<Object>(json).unwrap().observe("here").unwrap()
    }

    const HEAD: &str = r#""name": "a", "uid": "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a""#;

    #[test]
    fn a_restarted_container_is_known_under_both_ids() {
        let id = |digit: &str| format!("containerd://{}", digit.repeat(64));
        let pod = observed(&format!(
            r#"{{"metadata": {{{HEAD}}}, "status": {{"containerStatuses": [{{"name": "c",
                "containerID": "{}", "state": {{"running": {{}}}},
                "lastState": {{"terminated": {{"containerID": "{}"}}}}}}]}}}}"#,
            id("b"),
            id("a")
        ))
        .pod;
        let ids: Vec<String> = pod.containers.iter().map(|c| c.id.short()).collect();
        assert_eq!(ids, ["b".repeat(12), "a".repeat(12)]);
    }

    #[test]
    fn a_part_that_makes_no_sense_does_not_hide_the_pod() {
        let observed = observed(&format!(
            r#"{{"metadata": {{{HEAD}}}, "status": {{"podIP": "10.0.0.300", "qosClass": "Best",
                "startTime": "soon",
                "containerStatuses": [{{"name": "c", "containerID": "containerd://1"}}]}}}}"#
        ));
        assert_eq!((&*observed.pod.name, observed.problems.len()), ("a", 3));
        assert_eq!(observed.times, Times::default());
    }
}
