//! Who is learnt and judged as one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::enricher::Identity;

/// The containers that are expected to behave alike. Text that does not apply is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Workload {
    /// The pods' namespace.
    pub(crate) namespace: String,
    /// What runs the pods, such as `Deployment/web`, or the pod that nothing runs: `Pod/web`.
    pub(crate) owner: String,
    /// The container's name within the pod.
    pub(crate) container: String,
    /// The image, with its digest where that is known.
    pub(crate) image: String,
    /// A service of the node itself; all else is then empty.
    pub(crate) unit: String,
}

/// A container, or a unit of the node.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    /// Its names, as far as they are known by now.
    pub(crate) identity: Arc<Identity>,
    /// Its image, or empty where that is not known.
    pub(crate) image: Arc<str>,
    /// When it began, in nanoseconds since boot, if it has been watched from then on.
    pub(crate) born_ns: Option<u64>,
    /// It has been told to end: what it does now it does once.
    pub(crate) ending: bool,
}

impl Who {
    /// Its names may still come.
    pub(super) fn is_nameless(&self) -> bool {
        let Identity { namespace, container, container_id, unit, .. } = &*self.identity;
        let pod_is = !namespace.is_empty() || self.identity.pod_uid.is_empty();
        let container_is = container_id.is_empty() || !container_id.starts_with(&**container);
        unit.is_empty() && !(pod_is && container_is)
    }

    /// The workload that it belongs to, or none. What people do in sessions, and processes outside
    /// of every service, are nothing that stays the same.
    pub(super) fn workload(&self) -> Option<Workload> {
        let Identity { namespace, pod_name, container, workload, unit, .. } = &*self.identity;
        let owner = match workload.as_deref() {
            _ if !unit.is_empty() => String::new(),
            Some(workload) => workload.to_owned(),
            None if pod_name.is_empty() => String::new(),
            None => format!("Pod/{pod_name}"),
        };
        // A pod's container without a name: its sandbox, which only waits.
        if !namespace.is_empty() && self.is_nameless() {
            return None;
        }
        let somebody = !owner.is_empty() || !container.is_empty() || unit.ends_with(".service");
        somebody.then(|| Workload {
            namespace: namespace.to_string(),
            owner,
            container: container.to_string(),
            image: self.image.to_string(),
            unit: unit.to_string(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn identity(pod: &str, workload: Option<&str>) -> Identity {
        Identity {
            pod_uid: format!("uid-of-{pod}").into(),
            namespace: "shop".into(),
            pod_name: pod.into(),
            container_id: format!("id-of-{pod}").into(),
            container: "app".into(),
            qos: None,
            workload: workload.map(Into::into),
            unit: "".into(),
        }
    }

    fn who(identity: Identity) -> Who {
        Who { identity: identity.into(), image: "web:1".into(), born_ns: None, ending: false }
    }

    #[test]
    fn replicas_are_one_workload_and_another_image_is_another() {
        let [a, b] = ["web-1", "web-2"].map(|pod| who(identity(pod, Some("Deployment/web"))));
        assert_eq!(a.workload(), b.workload());
        let next = Who { image: "web:2".into(), ..b };
        assert_ne!(a.workload(), next.workload());
        assert_eq!(who(identity("one", None)).workload().unwrap().owner, "Pod/one");
    }

    #[test]
    fn of_the_nodes_own_only_services_are_judged() {
        let nobody = Identity {
            pod_uid: "".into(),
            namespace: "".into(),
            pod_name: "".into(),
            container_id: "".into(),
            container: "".into(),
            ..identity("", None)
        };
        for (unit, is) in [("sshd.service", true), ("session-4.scope", false), ("", false)] {
            let who = who(Identity { unit: unit.into(), ..nobody.clone() });
            assert_eq!((who.workload().is_some(), who.is_nameless()), (is, false), "{unit}");
        }
    }

    #[test]
    fn bare_ids_are_names_that_may_come() {
        let named = identity("web", None);
        let bare_pod = Identity { namespace: "".into(), ..named.clone() };
        let bare_container = Identity { container: "id-of".into(), ..named.clone() };
        assert!(who(bare_pod).is_nameless() && who(bare_container).is_nameless());
        assert!(!who(named).is_nameless());
    }
}
