//! Who traffic belongs to, and how we know: evidence in, one owner with its provenance out.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use orb8_k8s::{ContainerId, PodLookup, PodUid, Qos};

use crate::k8s::cgroup::CgroupIdentity;

/// How a record was given its owner. The wire has the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttributedBy {
    /// The cgroup of the socket that sent the packets.
    SocketCgroup,
    /// The network namespace behind the veth.
    Veth,
    /// An address that one pod owns.
    PodIp,
    /// Seen on an interface of the node, and no pod's.
    Host,
    /// Nobody is known to own it.
    None,
    /// The cgroup of the process that called.
    Cgroup,
}

impl From<AttributedBy> for orb8_proto::AttributedBy {
    fn from(by: AttributedBy) -> Self {
        match by {
            AttributedBy::SocketCgroup => Self::SocketCgroup,
            AttributedBy::Veth => Self::Veth,
            AttributedBy::PodIp => Self::PodIp,
            AttributedBy::Host => Self::Host,
            AttributedBy::None => Self::None,
            AttributedBy::Cgroup => Self::Cgroup,
        }
    }
}

/// The owner of traffic, as well as it can be named. Text that is not known is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The pod's UID in the API where it is known there, else the kubelet's.
    pub pod_uid: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name; its UID where nobody knows the name.
    pub pod_name: Arc<str>,
    /// The container's id; empty where only the pod is known.
    pub container_id: Arc<str>,
    /// The container's name; its short id where nobody knows the name.
    pub container: Arc<str>,
    /// The pod's QoS class.
    pub qos: Option<Qos>,
    /// What runs the pod, such as `Deployment/web`.
    pub workload: Option<Arc<str>>,
    /// A process of the node itself: its systemd unit or its cgroup. All else is then empty.
    pub unit: Arc<str>,
}

impl Identity {
    fn of_unit(unit: &str) -> Self {
        let empty: Arc<str> = Arc::from("");
        Self {
            pod_uid: Arc::clone(&empty),
            namespace: Arc::clone(&empty),
            pod_name: Arc::clone(&empty),
            container_id: Arc::clone(&empty),
            container: empty,
            qos: None,
            workload: None,
            unit: unit.into(),
        }
    }

    /// Nothing of it is shown by its id.
    #[must_use]
    pub fn has_names(&self) -> bool {
        let container =
            self.container_id.is_empty() || !self.container_id.starts_with(&*self.container);
        !self.namespace.is_empty() && container
    }
}

/// An owner and how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribution {
    /// None for the node itself and for nobody.
    pub identity: Option<Arc<Identity>>,
    /// The evidence that decided.
    pub by: AttributedBy,
}

/// What is known about a flow's local end.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The cgroup of the socket that sent the packets, where the probe saw one.
    pub sender_cgroup: Option<&'a CgroupIdentity>,
    /// Who lives in the network namespace behind the interface.
    pub veth_owner: Option<&'a CgroupIdentity>,
    /// The flow's address on this side.
    pub local_ip: IpAddr,
    /// When the flow was last seen, as Unix time in nanoseconds: who has the address by now may be
    /// somebody else.
    pub at_unix_ns: i64,
    /// The interface is the node's own, not a pod's.
    pub interface_is_host: bool,
}

/// At this many distinct identities the ones that no record uses any more are dropped, and if
/// that is not enough, all: identities are then built again, and only sharing is lost.
const INTERNED_MAX: usize = 16_384;

/// Gives traffic its owner. Every record of one container shares one [`Identity`].
pub struct Enricher {
    pods: Arc<dyn PodLookup>,
    interned: HashMap<Key, Interned>,
    units: HashMap<Arc<str>, Arc<Identity>>,
}

type Key = (Option<PodUid>, Option<ContainerId>);

struct Interned {
    identity: Arc<Identity>,
    generation: u64,
}

impl Enricher {
    /// An enricher that asks `pods` for names.
    #[must_use]
    pub fn new(pods: Arc<dyn PodLookup>) -> Self {
        Self { pods, interned: HashMap::new(), units: HashMap::new() }
    }

    /// Names the owner of a flow.
    ///
    /// The veth is the truth about the pod. The sending socket's cgroup adds the container, but
    /// only when it is in the same pod: on packets that enter a pod it names the other end.
    pub fn attribute(&mut self, evidence: Evidence<'_>) -> Attribution {
        let sender = evidence.sender_cgroup.filter(|owner| names_somebody(owner));
        let veth = evidence.veth_owner.filter(|owner| names_somebody(owner));
        let (owner, by) = match (sender, veth) {
            (Some(sender), None) => (sender, AttributedBy::SocketCgroup),
            (Some(sender), Some(veth)) if self.same_owner(sender, veth) => {
                (sender, AttributedBy::SocketCgroup)
            }
            (_, Some(veth)) => {
                // Containers of a pod share its namespace, so the process that happened to be
                // found there says nothing about which of them sent this.
                let pod = CgroupIdentity { container_id: None, ..*veth };
                let owner = if self.pod_uid(veth).is_some() { &pod } else { veth };
                return self.attributed(owner, self.pod_uid(veth), AttributedBy::Veth);
            }
            (None, None) => return self.without_cgroup(evidence),
        };
        self.attributed(owner, self.pod_uid(owner), by)
    }

    /// Names the owner of what happened in a container's cgroup.
    pub fn of_container(&mut self, owner: &CgroupIdentity, by: AttributedBy) -> Attribution {
        self.attributed(owner, self.pod_uid(owner), by)
    }

    /// The owner of what happened in a cgroup of the node itself.
    pub fn of_unit(&mut self, unit: &str, by: AttributedBy) -> Attribution {
        if self.units.len() >= INTERNED_MAX {
            self.forget_unused();
        }
        if self.units.len() >= INTERNED_MAX {
            self.units.clear();
        }
        let identity = match self.units.get(unit) {
            Some(known) => Arc::clone(known),
            None => {
                let identity = Arc::new(Identity::of_unit(unit));
                self.units.insert(Arc::clone(&identity.unit), Arc::clone(&identity));
                identity
            }
        };
        Attribution { identity: Some(identity), by }
    }

    /// The same owner with the names that have become known since, if any have.
    pub fn named_by_now(&mut self, identity: &Arc<Identity>) -> Option<Arc<Identity>> {
        if identity.has_names() || !identity.unit.is_empty() {
            return None;
        }
        let (pod_uid, container_id) =
            (identity.pod_uid.parse().ok(), identity.container_id.parse().ok());
        let owner = CgroupIdentity { pod_uid, container_id, qos: identity.qos, runtime: None };
        let pod_uid = self.pod_uid(&owner);
        let named = self.attributed(&owner, pod_uid, AttributedBy::None).identity;
        named.filter(|named| named != identity)
    }

    fn without_cgroup(&mut self, evidence: Evidence<'_>) -> Attribution {
        if let Some(pod) = self.pods.by_ip(evidence.local_ip, evidence.at_unix_ns) {
            let owner =
                CgroupIdentity { pod_uid: None, container_id: None, qos: pod.qos, runtime: None };
            return self.attributed(&owner, Some(pod.uid), AttributedBy::PodIp);
        }
        let by = if evidence.interface_is_host { AttributedBy::Host } else { AttributedBy::None };
        Attribution { identity: None, by }
    }

    /// The pod of a cgroup, by its path or, where the path does not show it, by its container.
    fn pod_uid(&self, owner: &CgroupIdentity) -> Option<PodUid> {
        owner.pod_uid.or_else(|| Some(self.pods.by_container(&owner.container_id?)?.0.uid))
    }

    fn same_owner(&self, one: &CgroupIdentity, other: &CgroupIdentity) -> bool {
        match (self.pod_uid(one), self.pod_uid(other)) {
            (Some(one), Some(other)) => {
                one == other || {
                    // One may be the kubelet's hash and the other the API's UID of a static pod.
                    let uid = |uid| self.pods.by_uid(uid).map(|pod| pod.uid);
                    uid(&one).is_some_and(|pod| Some(pod) == uid(&other))
                }
            }
            (None, None) => one.container_id == other.container_id,
            _ => false,
        }
    }

    fn attributed(
        &mut self,
        owner: &CgroupIdentity,
        pod_uid: Option<PodUid>,
        by: AttributedBy,
    ) -> Attribution {
        let key = (pod_uid, owner.container_id);
        let generation = self.pods.generation();
        if let Some(known) = self.interned.get(&key)
            && known.generation == generation
        {
            return Attribution { identity: Some(Arc::clone(&known.identity)), by };
        }
        let mut identity = Arc::new(self.identity(owner, pod_uid));
        // The same words stay the same allocation when the generation moved for somebody else.
        if let Some(known) = self.interned.get(&key)
            && known.identity == identity
        {
            identity = Arc::clone(&known.identity);
        }
        self.make_room();
        self.interned.insert(key, Interned { identity: Arc::clone(&identity), generation });
        Attribution { identity: Some(identity), by }
    }

    /// Drops the names that no record uses any more: where pods come and go there would be many.
    pub fn forget_unused(&mut self) {
        self.interned.retain(|_, known| Arc::strong_count(&known.identity) > 1);
        self.units.retain(|_, identity| Arc::strong_count(identity) > 1);
    }

    fn make_room(&mut self) {
        if self.interned.len() < INTERNED_MAX {
            return;
        }
        self.forget_unused();
        if self.interned.len() >= INTERNED_MAX {
            self.interned.clear();
        }
    }

    fn identity(&self, owner: &CgroupIdentity, pod_uid: Option<PodUid>) -> Identity {
        let by_container = owner.container_id.and_then(|id| self.pods.by_container(&id));
        let (by_container, container) = by_container.unzip();
        let pod = pod_uid.and_then(|uid| self.pods.by_uid(&uid)).or(by_container);
        let empty: Arc<str> = Arc::from("");
        let uid = pod.as_ref().map(|pod| pod.uid).or(pod_uid);
        let pod_uid = uid.map_or_else(|| Arc::clone(&empty), |uid| uid.to_string().into());
        Identity {
            namespace: pod.as_ref().map_or(empty.clone(), |pod| Arc::clone(&pod.namespace)),
            pod_name: pod.as_ref().map_or(Arc::clone(&pod_uid), |pod| Arc::clone(&pod.name)),
            pod_uid,
            container: container
                .or_else(|| Some(owner.container_id?.short().into()))
                .unwrap_or_else(|| Arc::clone(&empty)),
            container_id: owner.container_id.map_or(empty, |id| id.to_string().into()),
            qos: pod.as_ref().and_then(|pod| pod.qos).or(owner.qos),
            workload: pod.and_then(|pod| pod.workload()).map(Into::into),
            unit: Arc::from(""),
        }
    }
}

fn names_somebody(owner: &CgroupIdentity) -> bool {
    owner.pod_uid.is_some() || owner.container_id.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::cgroup;
    use orb8_k8s::pods::PodTable;

    const WEB: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
    const DB: &str = "1d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
    const HASH: &str = "0f5d7cbb6ed9ea8e6ba0f1d9d2c8d1ff";
    const NOWHERE: &str = "192.0.2.1";

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    fn enricher() -> Enricher {
        let text = format!(
            "kind: Pod\nmetadata: {{namespace: shop, name: web, uid: {WEB}, \
               annotations: {{kubernetes.io/config.hash: {HASH}}}}}\n\
             status: {{podIP: 10.0.0.7, qosClass: Guaranteed, containerStatuses: \
               [{{name: nginx, containerID: 'containerd://{}'}}]}}\n---\n\
             kind: Pod\nmetadata: {{namespace: shop, name: db, uid: {DB}}}\n\
             status: {{podIP: 10.0.0.8}}\n",
            id("a")
        );
        Enricher::new(Arc::new(PodTable::parse(&text).unwrap()))
    }

    fn cgroup(uid: &str, container: &str) -> CgroupIdentity {
        cgroup::parse(&format!("/kubepods/burstable/pod{uid}/{container}")).unwrap()
    }

    fn attribute(
        sender: Option<&CgroupIdentity>,
        veth: Option<&CgroupIdentity>,
        ip: &str,
        host: bool,
    ) -> Attribution {
        enricher().attribute(Evidence {
            sender_cgroup: sender,
            veth_owner: veth,
            local_ip: ip.parse().unwrap(),
            at_unix_ns: 0,
            interface_is_host: host,
        })
    }

    #[test]
    fn the_socket_names_the_container_of_the_veths_pod() {
        let (sender, pause) = (cgroup(WEB, &id("a")), cgroup(WEB, &id("f")));
        for veth in [Some(&pause), None] {
            let found = attribute(Some(&sender), veth, NOWHERE, false);
            assert_eq!(found.by, AttributedBy::SocketCgroup);
            let identity = found.identity.unwrap();
            assert_eq!(
                (&*identity.namespace, &*identity.pod_name, &*identity.container),
                ("shop", "web", "nginx")
            );
            assert_eq!((&*identity.pod_uid, &*identity.container_id), (WEB, &*id("a")));
            assert_eq!(identity.qos, Some(Qos::Guaranteed));
        }
    }

    #[test]
    fn the_veth_outranks_a_sender_of_another_pod() {
        let (sender, veth) = (cgroup(DB, &id("b")), cgroup(WEB, &id("f")));
        let found = attribute(Some(&sender), Some(&veth), "10.0.0.8", true);
        assert_eq!(found.by, AttributedBy::Veth);
        let identity = found.identity.unwrap();
        assert_eq!((&*identity.pod_name, &*identity.container), ("web", ""));
    }

    #[test]
    fn a_static_pod_is_one_pod_under_both_of_its_uids() {
        let (sender, veth) = (cgroup(HASH, &id("a")), cgroup(WEB, &id("f")));
        let found = attribute(Some(&sender), Some(&veth), NOWHERE, false);
        assert_eq!(found.by, AttributedBy::SocketCgroup);
        let identity = found.identity.unwrap();
        assert_eq!((&*identity.pod_name, &*identity.pod_uid), ("web", WEB));
    }

    #[test]
    fn a_container_whose_pod_is_hidden_is_named_by_its_id() {
        let sender = cgroup::parse(&format!("/../cri-containerd-{}.scope", id("a"))).unwrap();
        let veth = cgroup(WEB, &id("f"));
        let found = attribute(Some(&sender), Some(&veth), NOWHERE, false);
        assert_eq!(found.by, AttributedBy::SocketCgroup);
        assert_eq!(&*found.identity.unwrap().pod_name, "web");
    }

    #[test]
    fn an_address_decides_where_no_cgroup_does_and_the_host_comes_after_it() {
        let found = attribute(None, None, "10.0.0.8", true);
        assert_eq!(found.by, AttributedBy::PodIp);
        assert_eq!(&*found.identity.unwrap().pod_name, "db");
        let host = attribute(None, None, NOWHERE, true);
        assert_eq!(host, Attribution { identity: None, by: AttributedBy::Host });
        let nobody = attribute(None, None, NOWHERE, false);
        assert_eq!(nobody, Attribution { identity: None, by: AttributedBy::None });
    }

    #[test]
    fn unknown_names_fall_back_to_bare_ids() {
        let uid = "2d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
        let sender = cgroup(uid, &id("c"));
        let identity = attribute(Some(&sender), None, NOWHERE, false).identity.unwrap();
        assert_eq!((&*identity.namespace, &*identity.pod_name), ("", uid));
        assert_eq!((&*identity.container, identity.qos), ("cccccccccccc", Some(Qos::Burstable)));
    }

    #[test]
    fn names_that_come_late_are_given_to_the_same_owner() {
        let mut nameless = Enricher::new(Arc::new(PodTable::default()));
        let mut bare = |sender: &CgroupIdentity| {
            let evidence = Evidence {
                sender_cgroup: Some(sender),
                veth_owner: None,
                local_ip: NOWHERE.parse().unwrap(),
                at_unix_ns: 0,
                interface_is_host: false,
            };
            nameless.attribute(evidence).identity.unwrap()
        };
        let hidden = cgroup::parse(&format!("/../cri-containerd-{}.scope", id("a"))).unwrap();
        let mut enricher = enricher();
        for sender in [cgroup(WEB, &id("a")), cgroup(HASH, &id("a")), hidden] {
            let named = enricher.named_by_now(&bare(&sender)).unwrap();
            assert_eq!((&*named.pod_name, &*named.container), ("web", "nginx"));
            assert_eq!((&*named.pod_uid, enricher.named_by_now(&named)), (WEB, None));
        }
        let other = bare(&cgroup("2d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a", &id("c")));
        assert_eq!(enricher.named_by_now(&other), None);
    }

    #[test]
    fn a_docker_container_behind_a_veth_is_named_without_a_pod() {
        let veth = cgroup::parse(&format!("/docker/{}", id("c"))).unwrap();
        let found = attribute(None, Some(&veth), NOWHERE, false);
        assert_eq!(found.by, AttributedBy::Veth);
        let identity = found.identity.unwrap();
        assert_eq!((&*identity.pod_name, &*identity.container), ("", "cccccccccccc"));
    }

    #[test]
    fn memory_does_not_grow_with_records_or_with_dead_containers() {
        let mut enricher = enricher();
        let local_ip = NOWHERE.parse().unwrap();
        let mut ask = |container: &str| {
            let sender = cgroup(WEB, container);
            let evidence = Evidence {
                sender_cgroup: Some(&sender),
                veth_owner: None,
                local_ip,
                at_unix_ns: 0,
                interface_is_host: false,
            };
            (enricher.attribute(evidence).identity.unwrap(), enricher.interned.len())
        };
        let (first, _) = ask(&id("a"));
        assert!(Arc::ptr_eq(&first, &ask(&id("a")).0));
        let most = (0..INTERNED_MAX + 10).map(|n| ask(&format!("{n:064x}")).1).max();
        assert_eq!(most, Some(INTERNED_MAX));
        assert!(Arc::ptr_eq(&first, &ask(&id("a")).0), "an identity in use was dropped");
        drop(enricher.of_unit("cron.service", AttributedBy::SocketCgroup));
        enricher.forget_unused();
        assert_eq!((enricher.interned.len(), enricher.units.len()), (1, 0));
    }

    #[test]
    fn a_unit_is_an_owner_of_its_own_that_no_pod_name_replaces() {
        let mut enricher = enricher();
        let found = enricher.of_unit("sshd.service", AttributedBy::SocketCgroup);
        assert_eq!(found.by, AttributedBy::SocketCgroup);
        let identity = found.identity.unwrap();
        assert_eq!((&*identity.unit, &*identity.pod_name), ("sshd.service", ""));
        assert!(Arc::ptr_eq(
            &identity,
            &enricher.of_unit("sshd.service", AttributedBy::SocketCgroup).identity.unwrap()
        ));
        assert_eq!(enricher.named_by_now(&identity), None);
        let most = (0..INTERNED_MAX + 10).map(|n| {
            enricher.of_unit(&format!("run-{n}.scope"), AttributedBy::SocketCgroup);
            enricher.units.len()
        });
        assert_eq!(most.max(), Some(INTERNED_MAX));
        assert!(Arc::ptr_eq(
            &identity,
            &enricher.of_unit("sshd.service", AttributedBy::SocketCgroup).identity.unwrap()
        ));
    }

    #[test]
    fn the_wire_has_the_same_values() {
        use orb8_proto::AttributedBy as Wire;
        for (by, wire) in [
            (AttributedBy::SocketCgroup, Wire::SocketCgroup),
            (AttributedBy::Veth, Wire::Veth),
            (AttributedBy::PodIp, Wire::PodIp),
            (AttributedBy::Host, Wire::Host),
            (AttributedBy::None, Wire::None),
            (AttributedBy::Cgroup, Wire::Cgroup),
        ] {
            assert_eq!(Wire::from(by), wire);
        }
    }
}
