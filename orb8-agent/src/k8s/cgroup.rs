//! What a cgroup path says: which pod, which container, which QoS class, which runtime.
//!
//! Two drivers write the tree. With *cgroupfs* the path is spelt out,
//! `/kubepods/burstable/pod<uid>/<container>`; with *systemd* every level repeats its parents' names
//! and the UID's dashes become underscores,
//! `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope`.
//! Guaranteed pods sit directly below `kubepods`. Anything may come before (a kind node, a cgroup root
//! given to the kubelet, `..` where the reader's cgroup namespace begins further down) and after
//! (children that crun, CRI-O or the workload itself make).

use std::fmt;

use orb8_k8s::{ContainerId, PodUid, Qos};

/// The container runtime that named a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// containerd, by its CRI plugin.
    Containerd,
    /// CRI-O.
    CriO,
    /// Docker Engine.
    Docker,
    /// Podman.
    Podman,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
        })
    }
}

/// What is known of the owner of a cgroup, from its path alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CgroupIdentity {
    /// The pod; none for a container that Kubernetes did not start, or where a cgroup namespace
    /// hides the pod's level.
    pub pod_uid: Option<PodUid>,
    /// The container; none for the pod's own cgroup and for helpers such as conmon.
    pub container_id: Option<ContainerId>,
    /// The pod's class, where the path still shows it.
    pub qos: Option<Qos>,
    /// Who named the container's cgroup. Bare ids do not tell.
    pub runtime: Option<Runtime>,
}

/// Reads a cgroup path. None where it belongs to neither a pod nor a container.
///
/// The innermost pod wins, so a cluster inside a container of another one names its own pods. Below
/// a pod the outermost container wins: containers that a workload starts are part of it.
#[must_use]
pub fn parse(path: &str) -> Option<CgroupIdentity> {
    // The kernel says so in /proc/<pid>/cgroup when the directory was removed under a process.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let mut parent = "";
    let mut pod: Option<CgroupIdentity> = None;
    let mut bare: Option<CgroupIdentity> = None;
    for component in path.split('/').filter(|component| !component.is_empty()) {
        // containerd, told to use cgroupfs by a kubelet that uses systemd, takes the whole
        // `slice:prefix:name` of the kubelet for one directory name.
        let (slice, container) = match component.split_once(':') {
            Some((slice, rest)) => (slice, rest.split_once(':')),
            None => (component, None),
        };
        if let Some(found) = parse_pod(slice, parent) {
            pod = Some(found);
        }
        let found = match container {
            Some((prefix, name)) => name.parse().ok().map(|id| (id, runtime_of_prefix(prefix))),
            None => parse_container(component, parent),
        };
        if let Some((id, runtime)) = found {
            let owner = pod.as_mut().unwrap_or_else(|| bare.insert(NOBODY));
            if owner.container_id.is_none() {
                (owner.container_id, owner.runtime) = (Some(id), runtime);
            }
        }
        parent = component;
    }
    pod.or(bare)
}

/// Reads the content of `/proc/<pid>/cgroup`: the path that names the owner, and what it says.
///
/// On hybrid hosts the kubelet may use only the version 1 hierarchies, so these are asked when the
/// version 2 line (`0::`) names nobody.
#[must_use]
pub fn parse_proc_cgroup(content: &str) -> Option<(&str, Option<CgroupIdentity>)> {
    let paths = || content.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let unified = content.lines().find_map(|line| line.strip_prefix("0::"));
    unified
        .into_iter()
        .chain(paths())
        .find_map(|path| Some((path, Some(parse(path)?))))
        .or_else(|| Some((unified.or_else(|| paths().next())?, None)))
}

const NOBODY: CgroupIdentity =
    CgroupIdentity { pod_uid: None, container_id: None, qos: None, runtime: None };

/// The directory of a pod, by either driver.
fn parse_pod(component: &str, parent: &str) -> Option<CgroupIdentity> {
    let (uid, qos) = match component.strip_suffix(".slice") {
        Some(unit) => {
            let (class, uid) = unit.rsplit_once("-pod")?;
            // What comes before `kubepods` is the cgroup root that the kubelet was given.
            let class = &class[class.rfind("kubepods")?..];
            let qos = match class {
                "kubepods" => Qos::Guaranteed,
                "kubepods-burstable" => Qos::Burstable,
                "kubepods-besteffort" => Qos::BestEffort,
                _ => return None,
            };
            (PodUid::parse_separated(uid, b'_')?, Some(qos))
        }
        None => {
            let uid = component.strip_prefix("pod")?;
            let qos = match parent {
                "kubepods" => Some(Qos::Guaranteed),
                "burstable" => Some(Qos::Burstable),
                "besteffort" => Some(Qos::BestEffort),
                _ => None,
            };
            (PodUid::parse_separated(uid, b'-')?, qos)
        }
    };
    Some(CgroupIdentity { pod_uid: Some(uid), qos, ..NOBODY })
}

/// The directory of a container: `<prefix>-<id>.scope`, `<prefix>-<id>` or the bare id.
fn parse_container(component: &str, parent: &str) -> Option<(ContainerId, Option<Runtime>)> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let Some((prefix, id)) = name.rsplit_once('-') else {
        let runtime = if parent == "docker" { Some(Runtime::Docker) } else { None };
        return Some((name.parse().ok()?, runtime));
    };
    // An unknown prefix is not a container: `crio-conmon-<id>` is the monitor of one.
    Some((id.parse().ok()?, Some(runtime_of_prefix(prefix)?)))
}

fn runtime_of_prefix(prefix: &str) -> Option<Runtime> {
    match prefix {
        "cri-containerd" => Some(Runtime::Containerd),
        "crio" => Some(Runtime::CriO),
        "docker" => Some(Runtime::Docker),
        "libpod" => Some(Runtime::Podman),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
    const ID: &str = "3f1c6e1f0b2d4c5a9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f9a8b7c6d";
    const OUTER: &str = "aa1c6e1f0b2d4c5a9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f9a8b7caa";

    /// `{U}` the UID, `{u}` with underscores, `{C}` the container, `{O}` an outer container.
    fn path(pattern: &str) -> String {
        pattern
            .replace("{U}", UID)
            .replace("{u}", &UID.replace('-', "_"))
            .replace("{C}", ID)
            .replace("{O}", OUTER)
    }

    fn in_pod(qos: Option<Qos>, runtime: Option<Runtime>) -> CgroupIdentity {
        CgroupIdentity {
            pod_uid: Some(UID.parse().unwrap()),
            container_id: Some(ID.parse().unwrap()),
            qos,
            runtime,
        }
    }

    #[test]
    fn the_paths_of_every_driver_and_runtime_name_pod_and_container() {
        use Qos::{BestEffort, Burstable, Guaranteed};
        use Runtime::{Containerd, CriO, Docker};
        let table = [
            // systemd driver
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/cri-containerd-{C}.scope",
                Burstable,
                Some(Containerd),
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{u}.slice/cri-containerd-{C}.scope",
                BestEffort,
                Some(Containerd),
            ),
            (
                "/kubepods.slice/kubepods-pod{u}.slice/cri-containerd-{C}.scope",
                Guaranteed,
                Some(Containerd),
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/crio-{C}.scope",
                Burstable,
                Some(CriO),
            ),
            (
                "/kubepods.slice/kubepods-pod{u}.slice/crio-{C}.scope/container",
                Guaranteed,
                Some(CriO),
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{u}.slice/docker-{C}.scope",
                BestEffort,
                Some(Docker),
            ),
            // cgroupfs driver
            ("/kubepods/burstable/pod{U}/{C}", Burstable, None),
            ("/kubepods/besteffort/pod{U}/{C}", BestEffort, None),
            ("/kubepods/pod{U}/{C}", Guaranteed, None),
            ("/kubepods/burstable/pod{U}/crio-{C}", Burstable, Some(CriO)),
            // a cgroup namespace that systemd or crun made inside the container
            ("/kubepods/burstable/pod{U}/{C}/init.scope", Burstable, None),
            ("/kubepods/burstable/pod{U}/{C}/system.slice/nginx.service", Burstable, None),
            // containers inside the container
            ("/kubepods/burstable/pod{U}/{C}/docker/{O}", Burstable, None),
            // kind, with either driver, and its node on Docker and on Podman
            ("/docker/{O}/kubelet/kubepods/burstable/pod{U}/{C}", Burstable, None),
            (
                "/system.slice/docker-{O}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{u}.slice/cri-containerd-{C}.scope",
                Burstable,
                Some(Containerd),
            ),
            (
                "/machine.slice/libpod-{O}.scope/container/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{u}.slice/cri-containerd-{C}.scope",
                Guaranteed,
                Some(Containerd),
            ),
            // containerd with cgroupfs under a kubelet with systemd
            (
                "/system.slice/containerd.service/kubepods-burstable-pod{u}.slice:cri-containerd:{C}",
                Burstable,
                Some(Containerd),
            ),
            ("/kubepods-pod{u}.slice:cri-containerd:{C}", Guaranteed, Some(Containerd)),
            ("/kubepods-besteffort-pod{u}.slice:crio:{C}", BestEffort, Some(CriO)),
            // hybrid, with the hierarchy's own prefix
            ("/sys/fs/cgroup/unified/kubepods/besteffort/pod{U}/{C}", BestEffort, None),
            ("/../../besteffort/pod{U}/{C}", BestEffort, None),
            ("/kubepods/burstable/pod{U}/{C} (deleted)", Burstable, None),
        ];
        for (pattern, qos, runtime) in table {
            let path = path(pattern);
            assert_eq!(parse(&path), Some(in_pod(Some(qos), runtime)), "{path}");
        }
    }

    #[test]
    fn a_cgroup_namespace_may_hide_the_class_or_the_pod() {
        assert_eq!(parse(&path("/../../pod{U}/{C}")), Some(in_pod(None, None)));
        let sibling = parse(&path("/../cri-containerd-{C}.scope")).unwrap();
        assert_eq!((sibling.pod_uid, sibling.runtime), (None, Some(Runtime::Containerd)));
        assert_eq!(sibling.container_id, Some(ID.parse().unwrap()));
    }

    #[test]
    fn a_static_pod_is_known_by_the_hash_of_its_manifest() {
        let hash = "0f5d7cbb6ed9ea8e6ba0f1d9d2c8d1ff";
        for path in [
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice"),
            format!("/kubepods/burstable/pod{hash}"),
        ] {
            let found = parse(&path).unwrap();
            assert_eq!(found.pod_uid, Some(hash.parse().unwrap()));
            assert_eq!((found.qos, found.container_id), (Some(Qos::Burstable), None));
        }
    }

    #[test]
    fn the_monitor_of_a_container_is_the_pods_but_not_the_containers() {
        let found = parse(&path("/kubepods.slice/kubepods-pod{u}.slice/crio-conmon-{C}.scope"));
        assert_eq!(found.unwrap().container_id, None);
        assert_eq!(found.unwrap().pod_uid, Some(UID.parse().unwrap()));
    }

    #[test]
    fn a_container_without_kubernetes_has_no_pod() {
        for (pattern, runtime) in [
            ("/docker/{C}", Some(Runtime::Docker)),
            ("/system.slice/docker-{C}.scope", Some(Runtime::Docker)),
            ("/machine.slice/libpod-{C}.scope/container", Some(Runtime::Podman)),
            ("/{C}", None),
        ] {
            let found = parse(&path(pattern)).unwrap();
            assert_eq!(found.container_id, Some(ID.parse().unwrap()), "{pattern}");
            assert_eq!((found.pod_uid, found.qos, found.runtime), (None, None, runtime));
        }
    }

    #[test]
    fn paths_of_the_node_itself_name_nobody() {
        for pattern in [
            "",
            "/",
            "/..",
            "/init.scope",
            "/system.slice/sshd.service",
            "/user.slice/user-1000.slice/session-2.scope",
            "/kubepods",
            "/kubepods.slice/kubepods-burstable.slice",
            "/kubepods/burstable",
            "/kubepods/burstable/podcast",
            "/kubepods.slice/kubepods-burstable-pod{U}.slice",
            "/kubepods.slice/kubepods-other-pod{u}.slice",
            "/system.slice/pod{u}.slice",
            "/system.slice/crio-conmon-{C}.scope",
        ] {
            assert_eq!(parse(&path(pattern)), None, "{pattern}");
        }
    }

    #[test]
    fn proc_cgroup_prefers_the_line_that_names_somebody() {
        let pod = path("/kubepods/burstable/pod{U}/{C}");
        let expected = Some((pod.as_str(), Some(in_pod(Some(Qos::Burstable), None))));
        let unified = format!("0::{pod}\n");
        assert_eq!(parse_proc_cgroup(&unified), expected);
        let hybrid = format!("12:cpu,cpuacct:{pod}\n1:name=systemd:{pod}\n0::/\n");
        assert_eq!(parse_proc_cgroup(&hybrid), expected);
        let host = "9:name=systemd:/a\n0::/system.slice/sshd.service\n";
        assert_eq!(parse_proc_cgroup(host), Some(("/system.slice/sshd.service", None)));
        let old = "9:name=systemd:/a\n4:memory:/b\n";
        assert_eq!(parse_proc_cgroup(old), Some(("/a", None)));
        assert_eq!(parse_proc_cgroup("nonsense"), None);
    }

    fn prefix() -> impl Strategy<Value = String> {
        select(vec!["", "/..", "/../..", "/kubelet", "/system.slice/k3s.service", "/docker/{O}"])
            .prop_map(path)
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            let _ = parse(&text);
            let _ = parse_proc_cgroup(&text);
        }

        #[test]
        fn arbitrary_text_made_of_familiar_pieces_never_panics(
            pieces in prop::collection::vec(
                select(vec!["/", "kubepods", "-pod", "pod", ".slice", ":", "-", ".scope", "crio",
                    "burstable", UID, ID, "é", " (deleted)", "_", "cri-containerd", ".."]),
                0..24,
            )
        ) {
            let text = pieces.concat();
            let _ = parse(&text);
            let _ = parse_proc_cgroup(&text);
        }

        #[test]
        fn every_form_of_every_pod_and_container_is_read_back(
            prefix in prefix(),
            uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}",
            id in "[0-9a-f]{64}",
            qos in select(vec![Qos::Guaranteed, Qos::Burstable, Qos::BestEffort]),
            runtime in select(vec![Runtime::Containerd, Runtime::CriO, Runtime::Docker]),
            form in 0..4,
            child in select(vec!["", "/container", "/init.scope", "/a/b"]),
        ) {
            let class = match qos {
                Qos::Guaranteed => "",
                Qos::Burstable => "burstable",
                Qos::BestEffort => "besteffort",
            };
            let name = match runtime {
                Runtime::Containerd => "cri-containerd",
                Runtime::CriO => "crio",
                Runtime::Docker | Runtime::Podman => "docker",
            };
            let dir = if class.is_empty() { String::new() } else { format!("/{class}") };
            let dash = if class.is_empty() { String::new() } else { format!("-{class}") };
            let escaped = uid.replace('-', "_");
            let (path, runtime) = match form {
                0 => (format!("{prefix}/kubepods{dir}/pod{uid}/{id}{child}"), None),
                1 => (
                    format!("{prefix}/kubepods{dir}/pod{uid}/{name}-{id}{child}"),
                    Some(runtime),
                ),
                2 => (
                    format!(
                        "{prefix}/kubepods.slice/kubepods{dash}.slice/kubepods{dash}-pod{escaped}\
                         .slice/{name}-{id}.scope{child}"
                    ),
                    Some(runtime),
                ),
                _ => (
                    format!("{prefix}/kubepods{dash}-pod{escaped}.slice:{name}:{id}{child}"),
                    Some(runtime),
                ),
            };
            let found = parse(&path).unwrap();
            prop_assert_eq!(found.pod_uid.unwrap().to_string(), uid);
            prop_assert_eq!(found.container_id.unwrap().to_string(), id);
            prop_assert_eq!(found.qos, Some(qos));
            prop_assert_eq!(found.runtime, runtime);
        }
    }
}
