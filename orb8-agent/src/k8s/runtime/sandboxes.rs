//! What the sandboxes and containers of the CRI say about pods. No I/O here.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use orb8_k8s::{
    Container, ContainerId, Labels, Pod, PodUid,
    manifest::{Observed, Times},
};
use orb8_proto::cri::{
    Container as CriContainer, ContainerEventResponse, ContainerEventType, NamespaceMode,
    PodSandbox, PodSandboxState, PodSandboxStatus,
};

/// What the sandbox of a pod is called among its containers. Kubelets have always called it so.
pub(super) const SANDBOX: &str = "POD";
/// A sandbox that is ready gets its addresses in a moment or never.
const ADDRESS_TRIES: u8 = 5;
/// Of the labels of a sandbox, those are the kubelet's own.
const KUBELETS: &str = "io.kubernetes.";

/// What is remembered of each sandbox that is listed.
#[derive(Debug, Default)]
pub(super) struct Seen {
    network: Option<Network>,
    tries: u8,
    /// When it was last seen to be ready, and when it was first seen not to be.
    ready_at: Option<i64>,
    ended_at: Option<i64>,
}

/// Of which network a sandbox is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// It is the node's.
    host: bool,
    ips: Vec<IpAddr>,
}

impl Network {
    pub(super) fn of(status: &PodSandboxStatus) -> Self {
        let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options);
        let host = options.is_some_and(|options| options.network() == NamespaceMode::Node);
        let network = status.network.iter();
        let texts = network.flat_map(|network| {
            std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.ip))
        });
        // A sandbox without an address has an empty one.
        Self { host, ips: texts.filter_map(|text| text.parse().ok()).collect() }
    }
}

/// What is remembered of sandboxes between two lists.
#[derive(Debug, Default)]
pub(super) struct Sandboxes(HashMap<String, Seen>);

impl Sandboxes {
    /// Forgets those that are not listed any more, and gives the ids of those whose network is to be
    /// asked for. A network never changes.
    pub(super) fn unknown(&mut self, listed: &[PodSandbox]) -> Vec<String> {
        let ids: HashSet<&str> = listed.iter().map(|sandbox| &*sandbox.id).collect();
        self.0.retain(|id, _| ids.contains(&**id));
        let ready = listed.iter().filter(|sandbox| is_ready(sandbox));
        let unknown = ready.filter(|sandbox| {
            self.0.get(&sandbox.id).is_none_or(|seen| match &seen.network {
                None => true,
                Some(network) => {
                    !network.host && network.ips.is_empty() && seen.tries < ADDRESS_TRIES
                }
            })
        });
        unknown.map(|sandbox| sandbox.id.clone()).collect()
    }

    pub(super) fn learn(&mut self, id: String, network: Network) {
        let seen = self.0.entry(id).or_default();
        seen.network = Some(network);
        seen.tries = seen.tries.saturating_add(1);
    }

    /// The pods of a list that was asked for at `now`. The number is of sandboxes that were left out,
    /// because their ids are of no known form.
    pub(super) fn pods(
        &mut self,
        listed: Vec<PodSandbox>,
        containers: Vec<CriContainer>,
        now: i64,
    ) -> (Vec<Observed>, usize) {
        let mut of_sandbox: HashMap<String, Vec<CriContainer>> = HashMap::new();
        for container in containers {
            of_sandbox.entry(container.pod_sandbox_id.clone()).or_default().push(container);
        }
        let mut left_out = 0;
        let mut pods: HashMap<PodUid, (Order, Observed)> = HashMap::new();
        for sandbox in listed {
            let containers = of_sandbox.remove(&sandbox.id).unwrap_or_default();
            let order = (is_ready(&sandbox), sandbox.created_at);
            let Some(observed) = self.pod(sandbox, &containers, now) else {
                left_out += 1;
                continue;
            };
            // A sandbox that was lost is replaced by a new one of the same pod.
            match pods.remove(&observed.pod.uid) {
                None => pods.insert(observed.pod.uid, (order, observed)),
                Some((other, mut before)) if other < order => {
                    let mut observed = observed;
                    observed.pod.containers.append(&mut before.pod.containers);
                    pods.insert(observed.pod.uid, (order, observed))
                }
                Some((other, mut newer)) => {
                    newer.pod.containers.extend(observed.pod.containers);
                    pods.insert(newer.pod.uid, (other, newer))
                }
            };
        }
        (pods.into_values().map(|(_, observed)| observed).collect(), left_out)
    }

    /// The pod that an event tells of, if that tells more than that there was one.
    pub(super) fn pod_of_event(
        &mut self,
        event: ContainerEventResponse,
        now: i64,
    ) -> Option<Observed> {
        use ContainerEventType::{ContainerCreatedEvent, ContainerStartedEvent};
        if !matches!(event.container_event_type(), ContainerCreatedEvent | ContainerStartedEvent) {
            return None;
        }
        let status = event.pod_sandbox_status?;
        if status.state() != PodSandboxState::SandboxReady {
            return None;
        }
        self.learn(status.id.clone(), Network::of(&status));
        let containers: Vec<_> = event
            .containers_statuses
            .into_iter()
            .map(|container| CriContainer {
                pod_sandbox_id: status.id.clone(),
                state: container.state,
                id: container.id,
                metadata: container.metadata,
                created_at: container.created_at,
            })
            .collect();
        let sandbox = PodSandbox {
            id: status.id,
            metadata: status.metadata,
            state: status.state,
            created_at: status.created_at,
            labels: status.labels,
        };
        self.pod(sandbox, &containers, now)
    }

    fn pod(
        &mut self,
        sandbox: PodSandbox,
        containers: &[CriContainer],
        now: i64,
    ) -> Option<Observed> {
        let ready = is_ready(&sandbox);
        let id: Option<ContainerId> = sandbox.id.parse().ok();
        let metadata = sandbox.metadata.unwrap_or_default();
        // Whoever talks to a runtime by hand gives its pods any UID.
        let uid = metadata.uid.parse().ok().or_else(|| Some(PodUid::of_container(&id?)))?;
        let seen = self.0.entry(sandbox.id).or_default();
        if ready {
            (seen.ready_at, seen.ended_at) = (Some(now), None);
        } else {
            seen.ended_at.get_or_insert(now);
        }
        let network = seen.network.clone().unwrap_or_default();
        let created = containers.iter().map(|container| container.created_at);
        let times = Times {
            accepted: stamp(sandbox.created_at),
            // Containers are made when the sandbox has its network.
            networked: created.min().and_then(stamp),
            ends: !ready,
            last_alive: seen.ready_at,
            ended: seen.ended_at,
        };
        let own = id.map(|id| Container { name: SANDBOX.into(), id, image: Arc::from("") });
        let containers = containers.iter().filter_map(|container| {
            let name = container.metadata.as_ref().map_or("", |metadata| &metadata.name);
            Some(Container {
                name: name.into(),
                id: container.id.parse().ok()?,
                image: Arc::from(""),
            })
        });
        let labels = sandbox.labels.into_iter().filter(|(name, _)| !name.starts_with(KUBELETS));
        let pod = Pod {
            namespace: metadata.namespace.into(),
            name: metadata.name.into(),
            uid,
            config_hash: None,
            node: Arc::from(""),
            host_network: network.host,
            ips: network.ips,
            finished: !ready,
            ending: false,
            qos: None,
            labels: labels.collect::<Labels>(),
            owner: None,
            containers: containers.chain(own).collect(),
        };
        Some(Observed { pod, times, problems: Vec::new() })
    }
}

/// Whether it is ready, and when it was made: the largest is the sandbox that a pod has now.
type Order = (bool, i64);

fn is_ready(sandbox: &PodSandbox) -> bool {
    sandbox.state() == PodSandboxState::SandboxReady
}

fn stamp(created_at: i64) -> Option<i64> {
    (created_at > 0).then_some(created_at)
}

#[cfg(test)]
mod tests {
    use orb8_proto::cri::{ContainerMetadata, PodIp, PodSandboxMetadata, PodSandboxNetworkStatus};

    use super::*;

    const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    fn sandbox(digit: &str, uid: &str, state: PodSandboxState, created_at: i64) -> PodSandbox {
        PodSandbox {
            id: id(digit),
            metadata: Some(PodSandboxMetadata {
                name: format!("web-{digit}"),
                uid: uid.into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            state: state.into(),
            created_at,
            labels: [("app", "web"), ("io.kubernetes.pod.uid", uid)]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
        }
    }

    fn container(digit: &str, sandbox: &str, name: &str, created_at: i64) -> CriContainer {
        CriContainer {
            id: id(digit),
            pod_sandbox_id: id(sandbox),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            created_at,
            ..CriContainer::default()
        }
    }

    fn network(ips: &[&str], host: bool) -> Network {
        Network { host, ips: ips.iter().map(|ip| ip.parse().unwrap()).collect() }
    }

    use PodSandboxState::{SandboxNotready as NotReady, SandboxReady as Ready};

    #[test]
    fn a_pod_has_the_names_of_its_sandbox_and_the_containers_of_all_of_its_sandboxes() {
        let mut seen = Sandboxes::default();
        let listed = vec![sandbox("b", UID, Ready, 20), sandbox("a", UID, NotReady, 10)];
        assert_eq!(seen.unknown(&listed), [id("b")], "the other has no address any more");
        seen.learn(id("b"), network(&["10.0.0.7", "fd00::7"], false));
        let containers = vec![container("c", "b", "app", 30), container("d", "a", "app", 15)];
        for listed in [listed.clone(), listed.into_iter().rev().collect()] {
            let (pods, left_out) = seen.pods(listed, containers.clone(), 1_000);
            let [Observed { pod, times, .. }] = &*pods else { panic!("{}", pods.len()) };
            assert_eq!((left_out, &*pod.namespace, &*pod.name), (0, "shop", "web-b"));
            assert_eq!(pod.uid.to_string(), UID);
            let mut names: Vec<_> =
                pod.containers.iter().map(|c| (c.id.short(), c.name.to_string())).collect();
            names.sort_unstable();
            let expected = [("a", "POD"), ("b", "POD"), ("c", "app"), ("d", "app")];
            let expected = expected.map(|(digit, name)| (digit.repeat(12), name.to_owned()));
            assert_eq!(names, expected);
            assert_eq!((pod.ips.len(), pod.finished, pod.host_network), (2, false, false));
            assert_eq!(pod.labels.iter().collect::<Vec<_>>(), [("app", "web")]);
            assert_eq!((times.accepted, times.networked), (Some(20), Some(30)));
            assert_eq!((times.ends, times.last_alive, times.ended), (false, Some(1_000), None));
        }
    }

    #[test]
    fn a_sandbox_that_ends_had_its_address_until_it_was_last_seen_ready() {
        let mut seen = Sandboxes::default();
        seen.pods(vec![sandbox("a", UID, Ready, 10)], vec![], 100);
        seen.learn(id("a"), network(&["10.0.0.7"], false));
        let end = |seen: &mut Sandboxes, now| {
            seen.pods(vec![sandbox("a", UID, NotReady, 10)], vec![], now).0.remove(0)
        };
        let ended = end(&mut seen, 200);
        assert!(ended.pod.finished && ended.times.ends && ended.pod.ips.len() == 1);
        assert_eq!((ended.times.last_alive, ended.times.ended), (Some(100), Some(200)));
        assert_eq!(end(&mut seen, 300).times, ended.times, "it does not end twice");
        assert!(seen.unknown(&[]).is_empty());
        assert!(seen.0.is_empty());
    }

    #[test]
    fn networks_are_asked_for_until_there_is_an_address() {
        let mut seen = Sandboxes::default();
        let listed = [sandbox("a", UID, Ready, 10)];
        for _ in 0..ADDRESS_TRIES {
            assert_eq!(seen.unknown(&listed).len(), 1);
            seen.learn(id("a"), network(&[], false));
        }
        assert!(seen.unknown(&listed).is_empty());
        seen.learn(id("a"), network(&[], true));
        assert!(seen.pods(listed.to_vec(), vec![], 1).0[0].pod.host_network);
    }

    #[test]
    fn a_status_tells_the_network_and_every_address() {
        use orb8_proto::cri::{LinuxPodSandboxStatus, Namespace, NamespaceOption};
        let status = PodSandboxStatus {
            network: Some(PodSandboxNetworkStatus {
                ip: "10.0.0.7".into(),
                additional_ips: vec![PodIp { ip: "fd00::7".into() }, PodIp { ip: "".into() }],
            }),
            ..PodSandboxStatus::default()
        };
        assert_eq!(Network::of(&status), network(&["10.0.0.7", "fd00::7"], false));
        let options =
            NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        let namespaces = Some(Namespace { options: Some(options) });
        let linux = Some(LinuxPodSandboxStatus { namespaces });
        let status = PodSandboxStatus { linux, ..PodSandboxStatus::default() };
        assert_eq!(Network::of(&status), network(&[], true));
    }

    #[test]
    fn a_uid_of_no_form_is_replaced_and_a_sandbox_without_any_id_is_left_out() {
        let mut seen = Sandboxes::default();
        let mut nameless = sandbox("a", "crictl-made-this", Ready, 10);
        let (pods, left_out) = seen.pods(vec![nameless.clone()], vec![], 1);
        assert_eq!((pods[0].pod.uid.to_string(), left_out), ("a".repeat(32), 0));
        nameless.id = "sandbox-1".into();
        let (pods, left_out) = seen.pods(vec![nameless], vec![], 1);
        assert_eq!((pods.len(), left_out), (0, 1));
    }
}
