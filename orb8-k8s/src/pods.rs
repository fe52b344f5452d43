//! The static pod list: a file as `kubectl get pods -A -o json` (or `yaml`) prints it, as names.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use orb8_proto::{PodSource, PodSourceState};

use super::{ContainerId, Pod, PodUid, manifest};
use crate::PodLookup;

/// Pods, found by UID, container and address. It never changes once it is built.
#[derive(Debug, Default)]
pub struct PodTable {
    pods: Vec<Arc<Pod>>,
    by_uid: HashMap<PodUid, Arc<Pod>>,
    by_container: HashMap<ContainerId, (Arc<Pod>, Arc<str>)>,
    /// None where two running pods claim the address: it then names neither.
    by_ip: HashMap<IpAddr, Option<Arc<Pod>>>,
    /// Empty for a table that nothing was read into.
    kind: &'static str,
}

/// A pod list that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PodListError {
    /// The file cannot be read.
    #[error("pod list {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what kubectl prints.
    #[error("pod list {}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which entry, what is wrong with it and what was expected.
        reason: String,
    },
}

impl PodTable {
    /// Reads a file: a `PodList` or `List`, or a stream of `Pod`s, as JSON or YAML.
    pub fn read(path: &Path) -> Result<Self, PodListError> {
        let text = fs::read_to_string(path)
            .map_err(|source| PodListError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|reason| PodListError::Invalid { path: path.to_owned(), reason })
    }

    /// Reads the text of such a file. The error names the entry and what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::new(manifest::pods(text)?)
    }

    /// Indexes pods. The error names two that contradict each other.
    pub fn new(pods: impl IntoIterator<Item = Pod>) -> Result<Self, String> {
        let mut table = Self { kind: "file", ..Self::default() };
        for pod in pods {
            table.insert(Arc::new(pod))?;
        }
        Ok(table)
    }

    fn insert(&mut self, pod: Arc<Pod>) -> Result<(), String> {
        for uid in [Some(pod.uid), pod.config_hash].into_iter().flatten() {
            if let Some(other) = self.by_uid.insert(uid, Arc::clone(&pod)) {
                return Err(format!(
                    "pods {}/{} and {}/{} have the same UID {uid}, expected one pod per UID",
                    other.namespace, other.name, pod.namespace, pod.name
                ));
            }
        }
        for container in &pod.containers {
            let owner = (Arc::clone(&pod), Arc::clone(&container.name));
            self.by_container.insert(container.id, owner);
        }
        // The address of a pod on the host network is the node's, that of a finished pod may be
        // anybody's by now.
        if !pod.host_network && !pod.finished {
            for &ip in &pod.ips {
                self.by_ip
                    .entry(ip.to_canonical())
                    .and_modify(|owner| *owner = None)
                    .or_insert_with(|| Some(Arc::clone(&pod)));
            }
        }
        self.pods.push(pod);
        Ok(())
    }
}

impl PodLookup for PodTable {
    fn by_uid(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.by_uid.get(uid).cloned()
    }

    fn by_container(&self, id: &ContainerId) -> Option<(Arc<Pod>, Arc<str>)> {
        self.by_container.get(id).cloned()
    }

    /// The list knows no times: it is taken to be true at every one.
    fn by_ip(&self, ip: IpAddr, _at_unix_ns: i64) -> Option<Arc<Pod>> {
        self.by_ip.get(&ip.to_canonical())?.clone()
    }

    fn generation(&self) -> u64 {
        0
    }

    fn namespaces(&self) -> Vec<Arc<str>> {
        let names: BTreeSet<_> = self.pods.iter().map(|pod| Arc::clone(&pod.namespace)).collect();
        names.into_iter().collect()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.clone()
    }

    fn source(&self) -> PodSource {
        PodSource {
            kind: self.kind.into(),
            state: PodSourceState::Static.into(),
            pods_known: self.pods.len() as u64,
            ..PodSource::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::Qos;

    const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
    const HASH: &str = "0f5d7cbb6ed9ea8e6ba0f1d9d2c8d1ff";

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn pod_json() -> String {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod",
            "metadata": {{"name": "web-5d9c7bb4f8-x2x7k", "namespace": "shop", "uid": "{UID}",
                "labels": {{"app": "web", "pod-template-hash": "5d9c7bb4f8"}},
                "ownerReferences": [{{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                    "blockOwnerDeletion": true, "name": "web-5d9c7bb4f8", "uid": "x"}}]}},
            "spec": {{"nodeName": "n1", "containers": [{{"name": "web", "image": "nginx"}}]}},
            "status": {{"phase": "Running", "podIP": "10.0.0.7", "qosClass": "Burstable",
                "podIPs": [{{"ip": "10.0.0.7"}}, {{"ip": "fd00::7"}}],
                "containerStatuses": [{{"name": "web", "ready": true, "containerID": "containerd://{}"}},
                    {{"name": "late", "state": {{"waiting": {{}}}}}}],
                "initContainerStatuses": [{{"name": "setup", "containerID": "cri-o://{}"}}],
                "ephemeralContainerStatuses": [{{"name": "debug", "containerID": "docker://{}"}}]}}}}"#,
            id('a'),
            id('b'),
            id('c'),
        )
    }

    #[test]
    fn a_pod_is_found_by_uid_container_and_every_address() {
        let table = PodTable::parse(&pod_json()).unwrap();
        let pod = table.by_uid(&UID.parse().unwrap()).unwrap();
        assert_eq!((&*pod.namespace, &*pod.name), ("shop", "web-5d9c7bb4f8-x2x7k"));
        assert_eq!((&*pod.node, pod.qos), ("n1", Some(Qos::Burstable)));
        assert_eq!(pod.workload().unwrap(), "Deployment/web");
        for ip in ["10.0.0.7", "fd00::7", "::ffff:10.0.0.7"] {
            assert_eq!(table.by_ip(ip.parse().unwrap(), 0), Some(Arc::clone(&pod)));
        }
        for (digit, name) in [('a', "web"), ('b', "setup"), ('c', "debug")] {
            let (found, container) = table.by_container(&id(digit).parse().unwrap()).unwrap();
            assert_eq!((&found, &*container), (&pod, name));
        }
        assert_eq!(table.namespaces(), [Arc::from("shop")]);
    }

    #[test]
    fn json_lists_json_streams_and_yaml_say_the_same() {
        let pod = pod_json();
        let expected = PodTable::parse(&pod).unwrap().pods();
        let second = pod.replace(UID, &UID.replace('8', "9")).replace("web-5", "web-6");
        let list = format!(r#"{{"kind": "List", "metadata": {{}}, "items": [{pod}, {second}]}}"#);
        let stream = format!("{pod}\n{second}\n");
        let yaml = format!("---\nkind: PodList\nitems:\n- {pod}\n- {second}\n");
        let yaml_stream = format!("{pod}\n---\n{second}\n---\n");
        for text in [list, stream, yaml, format!("# pods\n{yaml_stream}")] {
            let pods = PodTable::parse(&text).unwrap_or_else(|why| panic!("{why}: {text}")).pods();
            assert_eq!((pods.len(), &pods[0]), (2, &expected[0]));
        }
    }

    #[test]
    fn block_yaml_as_kubectl_prints_it_is_read() {
        let text = format!(
            "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    annotations:\n\
             \x20     kubernetes.io/config.hash: {HASH}\n    name: kube-proxy-n1\n    namespace: kube-system\n\
             \x20   uid: {UID}\n    labels:\n      tier: \"5\"\n  spec:\n    hostNetwork: true\n\
             \x20 status:\n    podIP: 192.168.0.1\n    podIPs:\n    - ip: 192.168.0.1\nkind: List\n"
        );
        let table = PodTable::parse(&text).unwrap();
        let pod = table.by_uid(&HASH.parse().unwrap()).expect("found by the kubelet's hash");
        assert_eq!(pod.uid.to_string(), UID);
        assert!(pod.host_network && pod.labels.get("tier") == Some("5"));
        assert_eq!(
            table.by_ip("192.168.0.1".parse().unwrap(), 0),
            None,
            "it is the node's address"
        );
    }

    #[test]
    fn an_address_names_a_pod_only_while_it_is_its_own() {
        let running = pod_json();
        let other = running.replace(UID, &UID.replace('8', "9"));
        let finished = other.replace("Running", "Succeeded");
        let ip = "10.0.0.7".parse().unwrap();
        let reused = PodTable::parse(&format!("{running}{finished}")).unwrap();
        assert_eq!(reused.by_ip(ip, 0).unwrap().uid.to_string(), UID);
        let contested = PodTable::parse(&format!("{running}{other}")).unwrap();
        assert_eq!(contested.by_ip(ip, 0), None);
    }

    #[test]
    fn errors_name_the_file_the_entry_and_what_was_expected() {
        let pod = pod_json();
        let cases = [
            ("", "no document in it, expected Pod"),
            ("[1, 2]", "YAML that kubectl prints"),
            ("{\"kind\": ", "JSON that kubectl prints: EOF"),
            ("kind: Service", "document 1: it has kind `Service`, expected Pod, PodList or List"),
            ("{}", "document 1: it has no kind"),
            ("kind: PodList", "document 1: no `items`"),
            (r#"{"kind":"List","items":[{"kind":"Node"}]}"#, "items[0]: it has kind `Node`"),
            (r#"{"kind":"PodList","items":[{}]}"#, "items[0]: no metadata.name"),
            (r#"{"kind":"Pod","metadata":{"name":"a"}}"#, "(pod default/a): no metadata.uid"),
            (&pod.replace(UID, "u-1"), "metadata.uid: `u-1` is not a pod UID: expected a UUID"),
            (&pod.replace("Burstable", "Best"), "status.qosClass: `Best` is not"),
            (&pod.replace("fd00::7", "fd00:::7"), "`fd00:::7` is not an IPv4 or IPv6 address"),
            (&pod.replace(&id('a'), "abc"), "containerID of `web`: `abc` is not a container id"),
            (&format!("{pod}{pod}"), "have the same UID"),
        ];
        for (text, expected) in cases {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let why = PodTable::read(file.path()).unwrap_err().to_string();
            let file = file.path().display().to_string();
            assert!(why.contains(expected) && why.contains(&file), "{text}: {why}");
        }
        let why = PodTable::read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(why.contains("/no/such/file") && why.contains("No such file"), "{why}");
    }

    #[test]
    fn a_list_of_five_thousand_pods_is_not_too_large() {
        let pod = pod_json();
        let mut text = "kind: PodList\nitems:\n".to_owned();
        for n in 0..5_000 {
            let uid = format!("{n:08x}-3f56-4f60-a7a8-0c2f8b5e6f3a");
            text += &format!("- {}\n", pod.replace(UID, &uid).replace('\n', " "));
        }
        assert_eq!(PodTable::parse(&text).unwrap().pods().len(), 5_000);
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_an_error_or_a_table_and_never_a_panic(text in any::<String>()) {
            let _ = PodTable::parse(&text);
            let _ = PodTable::parse(&format!("{{\"kind\": \"Pod\", \"metadata\": {{\"name\": {text:?}}}}}"));
        }
    }
}
