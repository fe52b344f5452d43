//! What Docker's list and events say about pods and other containers. No I/O here.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use orb8_k8s::{
    Container, ContainerId, Labels, Pod, PodUid,
    manifest::{Observed, Times},
};
use serde::Deserialize;

use super::sandboxes::SANDBOX;

/// How cri-dockerd says which pod and container it is.
const POD_UID: &str = "io.kubernetes.pod.uid";
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// `podsandbox` or `container`.
const TYPE: &str = "io.kubernetes.docker.type";

/// An entry of `/containers/json`: the subset that orb8 reads.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    id: String,
    names: Option<Vec<String>>,
    image: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    /// Seconds since the Unix epoch.
    #[serde(default)]
    created: i64,
    #[serde(default)]
    host_config: HostConfig,
    network_settings: Option<NetworkSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Option<Endpoint>>>,
}

#[derive(Debug, Default, Deserialize)]
struct Endpoint {
    #[serde(rename = "IPAddress")]
    ipv4: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    ipv6: Option<String>,
}

/// A container that an event told of: it has no address yet.
#[derive(Debug)]
pub(super) struct Started(Listed);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    action: Option<String>,
    actor: Option<Actor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: BTreeMap<String, String>,
}

impl Started {
    /// Reads a line of `/events`. None where it is no start, and where it is no event at all: the
    /// next list tells.
    pub(super) fn of_event(line: &[u8]) -> Option<Self> {
        let event: Event = serde_json::from_slice(line).ok()?;
        if !matches!(event.action.as_deref(), Some("create" | "start")) {
            return None;
        }
        let Actor { id, mut attributes } = event.actor?;
        let name = attributes.remove("name")?;
        Some(Self(Listed {
            id,
            names: Some(vec![name]),
            labels: Some(attributes),
            ..Listed::default()
        }))
    }

    /// Its pod. None where that has a name already: one container would hide the others.
    pub(super) fn pod(self, now: i64) -> Option<Observed> {
        let is_alone = self.0.label(POD_UID).is_none();
        is_alone.then(|| pods(vec![self.0], now).pop()).flatten()
    }
}

impl Listed {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(|value| &**value)
    }

    /// Its own name. There may be aliases, `/other/alias`, which links from other containers made.
    fn name(&self) -> &str {
        let names = || self.names.iter().flatten().map(|name| name.trim_start_matches('/'));
        names().find(|name| !name.contains('/')).or_else(|| names().next()).unwrap_or_default()
    }

    fn ips(&self) -> Vec<IpAddr> {
        let networks = self.network_settings.iter().flat_map(|settings| &settings.networks);
        let endpoints = networks.flat_map(BTreeMap::values).flatten();
        let texts = endpoints.flat_map(|endpoint| [&endpoint.ipv4, &endpoint.ipv6]).flatten();
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    fn is_sandbox(&self) -> bool {
        self.label(TYPE) == Some("podsandbox") || self.label(CONTAINER_NAME) == Some(SANDBOX)
    }
}

/// The pods of a list that was asked for at `now`. A container that Kubernetes did not start is a
/// pod of its own, in no namespace. One whose id makes no sense is left out.
pub(super) fn pods(listed: Vec<Listed>, now: i64) -> Vec<Observed> {
    let mut pods: HashMap<PodUid, Observed> = HashMap::new();
    for container in listed {
        let Ok(id) = container.id.parse::<ContainerId>() else { continue };
        let uid = container.label(POD_UID).and_then(|uid| uid.parse().ok());
        let name = match container.label(CONTAINER_NAME) {
            _ if container.is_sandbox() => SANDBOX,
            Some(name) if uid.is_some() => name,
            _ => container.name(),
        };
        let image = container.image.as_deref().unwrap_or_default().into();
        let own = Container { name: name.into(), id, image };
        let uid = uid.unwrap_or_else(|| PodUid::of_container(&id));
        let observed = pods.entry(uid).or_insert_with(|| empty(uid, &container, now));
        observed.pod.containers.push(own);
        observed.pod.ips.extend(container.ips());
        observed.pod.host_network |= container.host_config.network_mode.as_deref() == Some("host");
        let created = container.created.checked_mul(1_000_000_000).filter(|at| *at > 0);
        let earliest = [observed.times.accepted, created].into_iter().flatten().min();
        observed.times.accepted = earliest;
    }
    pods.into_values().collect()
}

fn empty(uid: PodUid, container: &Listed, now: i64) -> Observed {
    let text = |label| container.label(label).map(Arc::from);
    let labels = container.labels.iter().flatten();
    let labels = labels.filter(|(name, _)| !name.starts_with("io.kubernetes."));
    let pod = Pod {
        namespace: text(POD_NAMESPACE).unwrap_or_else(|| Arc::from("")),
        name: text(POD_NAME).unwrap_or_else(|| container.name().into()),
        uid,
        config_hash: None,
        node: Arc::from(""),
        host_network: false,
        ips: Vec::new(),
        finished: false,
        ending: false,
        qos: None,
        labels: labels.map(|(name, value)| (&**name, &**value)).collect::<Labels>(),
        owner: None,
        containers: Vec::new(),
    };
    let times = Times { last_alive: Some(now), ..Times::default() };
    Observed { pod, times, problems: Vec::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    fn read(json: &str) -> Vec<Observed> {
        let mut pods = pods(serde_json::from_str(json).unwrap(), 7);
        pods.sort_by(|one, other| one.pod.name.cmp(&other.pod.name));
        pods
    }

    #[test]
    fn a_plain_container_is_a_pod_in_no_namespace() {
        let pods = read(&format!(
            r#"[{{"Id": "{}", "Names": ["/other/db", "/web"], "Image": "nginx", "State": "running",
                "Created": 1700000000, "Labels": {{"com.docker.compose.service": "web"}},
                "HostConfig": {{"NetworkMode": "shop_default"}}, "NetworkSettings": {{"Networks":
                {{"shop_default": {{"IPAddress": "172.18.0.2", "GlobalIPv6Address": ""}},
                  "none": null}}}}}},
               {{"Id": "{}", "Names": ["/proxy"], "Labels": null, "Created": 1700000000,
                "HostConfig": {{"NetworkMode": "host"}}}}, {{"Id": "odd"}}]"#,
            id("a"),
            id("b")
        ));
        let [proxy, web] = &*pods else { panic!("{}", pods.len()) };
        assert_eq!((&*web.pod.namespace, &*web.pod.name), ("", "web"));
        assert_eq!(web.pod.uid.to_string(), "a".repeat(32));
        assert_eq!(
            web.pod.containers,
            [Container { name: "web".into(), id: id("a").parse().unwrap(), image: "nginx".into() }]
        );
        assert_eq!(web.pod.ips, ["172.18.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(web.pod.labels.get("com.docker.compose.service"), Some("web"));
        assert_eq!(web.times.accepted, Some(1_700_000_000_000_000_000));
        assert!(proxy.pod.host_network && !web.pod.host_network);
    }

    #[test]
    fn containers_with_the_labels_of_kubernetes_are_one_pod() {
        let labels = |kind: &str, name: &str| {
            format!(
                r#"{{"{POD_UID}": "{UID}", "{POD_NAME}": "web-0", "{POD_NAMESPACE}": "shop",
                "{TYPE}": "{kind}", "{CONTAINER_NAME}": "{name}", "app": "web"}}"#
            )
        };
        let pods = read(&format!(
            r#"[{{"Id": "{}", "Names": ["/k8s_app_web-0"], "Labels": {}, "Created": 1700000005}},
               {{"Id": "{}", "Names": ["/k8s_POD_web-0"], "Labels": {}, "Created": 1700000001}}]"#,
            id("a"),
            labels("container", "app"),
            id("b"),
            labels("podsandbox", "POD"),
        ));
        let [Observed { pod, times, .. }] = &*pods else { panic!("{}", pods.len()) };
        assert_eq!(
            (&*pod.namespace, &*pod.name, pod.uid.to_string()),
            ("shop", "web-0", UID.into())
        );
        let names: Vec<_> = pod.containers.iter().map(|c| &*c.name).collect();
        assert_eq!(names, ["app", "POD"]);
        assert_eq!(pod.labels.iter().collect::<Vec<_>>(), [("app", "web")]);
        assert_eq!(times.accepted, Some(1_700_000_001_000_000_000));
    }

    #[test]
    fn an_event_names_a_container_that_was_started() {
        let event = |action: &str, label: &str| {
            let line = format!(
                r#"{{"Type": "container", "Action": "{action}", "Actor": {{"ID": "{}",
                "Attributes": {{"name": "web", "image": "nginx" {label}}}}}, "time": 1}}"#,
                id("a")
            );
            Started::of_event(line.as_bytes())
        };
        let pod = event("start", "").unwrap().pod(7).unwrap().pod;
        assert_eq!((&*pod.name, pod.containers.len()), ("web", 1));
        assert!(event("die", "").is_none());
        let of_pod = event("create", &format!(r#", "{POD_UID}": "{UID}""#)).unwrap();
        assert!(of_pod.pod(7).is_none(), "the list tells of all of its containers");
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line in any::<Vec<u8>>(), text in ".{0,40}") {
            let _ = Started::of_event(&line);
            let json = format!(r#"{{"Action": "start", "Actor": {{"ID": {text:?}, "Attributes": {{"name": "a"}}}}}}"#);
            let _ = Started::of_event(json.as_bytes()).map(|started| started.pod(0));
        }
    }
}
