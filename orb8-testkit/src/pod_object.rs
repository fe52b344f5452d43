//! The pods of a node as the Kubernetes API knows them, from the first object to the last.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::cgroup::Qos;
use crate::identity::{Container, ContainerKind, ContainerState, Ended, Identity};
use crate::node::{NODE_NUMBER, PREFIX_LENGTHS, Shared};

/// How far a pod has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// The kubelet has taken it on; its containers have not all begun.
    Pending,
    /// Its containers run.
    Running,
    /// Its containers have ended for good. It stays until somebody deletes it.
    Finished,
    /// It is to be deleted, and still runs.
    Terminating {
        /// When somebody asked for that.
        asked: SystemTime,
    },
    /// Its containers have ended; it is about to be deleted.
    Ended {
        /// As before.
        asked: SystemTime,
    },
}

/// A v1 `PodList` of running pods.
pub(crate) fn pod_list<'a>(node: &Shared, pods: impl Iterator<Item = &'a Arc<Identity>>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PodList",
        "metadata": { "resourceVersion": "" },
        "items": pods.map(|pod| pod_object(node, pod, Phase::Running)).collect::<Vec<_>>(),
    })
}

/// A v1 `Pod`.
pub(crate) fn pod_object(node: &Shared, pod: &Identity, phase: Phase) -> Value {
    let containers = |wanted: &[ContainerKind]| -> Vec<Value> {
        let wanted = pod.containers.iter().filter(|container| wanted.contains(&container.kind));
        let object = |container: &Container| {
            let mut object = json!({ "name": container.name, "image": IMAGE, "resources": resources(pod.spec.qos) });
            if container.kind == ContainerKind::Sidecar {
                object["restartPolicy"] = "Always".into();
            }
            object
        };
        wanted.map(object).collect()
    };
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(node, pod, phase),
        "spec": {
            "nodeName": node.name(),
            "restartPolicy": pod.spec.restart_policy.as_str(),
            "terminationGracePeriodSeconds": pod.spec.grace.as_secs(),
            "containers": containers(&[ContainerKind::App]),
        },
        "status": status(node, pod, phase),
    });
    let others = [("initContainers", INIT), ("ephemeralContainers", &[ContainerKind::Ephemeral])];
    for (field, kinds) in others {
        let containers = containers(kinds);
        if !containers.is_empty() {
            object["spec"][field] = containers.into();
        }
    }
    if pod.spec.host_network {
        object["spec"]["hostNetwork"] = true.into();
    }
    object
}

const INIT: &[ContainerKind] = &[ContainerKind::Init, ContainerKind::Sidecar];

fn metadata(node: &Shared, pod: &Identity, phase: Phase) -> Value {
    let spec = &pod.spec;
    let mut metadata = json!({
        "name": spec.name,
        "namespace": spec.namespace,
        "uid": pod.mirror_uid.as_ref().unwrap_or(&pod.uid),
        "creationTimestamp": rfc3339(pod.started),
        "resourceVersion": "1",
        "labels": spec.labels,
    });
    if let Some(owner) = &spec.owner {
        metadata["ownerReferences"] = json!([{
            "apiVersion": if owner.kind == "Job" { "batch/v1" } else { "apps/v1" },
            "kind": owner.kind,
            "name": owner.name,
            "uid": pod.owner_uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }]);
    }
    if pod.mirror_uid.is_some() {
        metadata["annotations"] = json!({
            "kubernetes.io/config.hash": pod.uid,
            "kubernetes.io/config.mirror": pod.uid,
            "kubernetes.io/config.source": "file",
        });
        metadata["ownerReferences"] = json!([{
            "apiVersion": "v1",
            "kind": "Node",
            "name": node.name(),
            "uid": pod.owner_uid,
            "controller": true,
        }]);
    }
    if let Phase::Terminating { asked } | Phase::Ended { asked } = phase {
        metadata["deletionTimestamp"] = rfc3339(asked + spec.grace).into();
        metadata["deletionGracePeriodSeconds"] = spec.grace.as_secs().into();
    }
    metadata
}

fn status(node: &Shared, pod: &Identity, phase: Phase) -> Value {
    let started = rfc3339(pod.started);
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": started });
    let statuses = |wanted: &[ContainerKind]| -> Vec<Value> {
        let wanted = pod.containers.iter().filter(|container| wanted.contains(&container.kind));
        wanted.map(|container| container_status(pod, container)).collect()
    };
    let mut status = json!({
        "phase": phase_name(pod, phase),
        "qosClass": pod.spec.qos.as_str(),
        "hostIP": node.ipv4(NODE_NUMBER),
        "hostIPs": [{ "ip": node.ipv4(NODE_NUMBER) }, { "ip": node.ipv6(NODE_NUMBER) }],
        "startTime": started,
        "conditions": [condition("PodScheduled")],
        "containerStatuses": statuses(&[ContainerKind::App]),
    });
    let others = [
        ("initContainerStatuses", INIT),
        ("ephemeralContainerStatuses", &[ContainerKind::Ephemeral]),
    ];
    for (field, kinds) in others {
        let statuses = statuses(kinds);
        if !statuses.is_empty() {
            status[field] = statuses.into();
        }
    }
    if pod.containers.iter().any(|container| container.state != ContainerState::Waiting) {
        status["podIP"] = pod.ipv4.to_string().into();
        status["podIPs"] = json!([{ "ip": pod.ipv4 }, { "ip": pod.ipv6 }]);
    }
    if matches!(phase, Phase::Running) {
        status["conditions"] = json!([condition("PodScheduled"), condition("Ready")]);
    }
    status
}

fn phase_name(pod: &Identity, phase: Phase) -> &'static str {
    let mut apps = pod.containers.iter().filter(|container| container.kind == ContainerKind::App);
    match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Finished | Phase::Terminating { .. } | Phase::Ended { .. } => {
            if apps.clone().any(Container::is_running) {
                "Running"
            } else if apps.clone().all(|container| container.state == ContainerState::Waiting) {
                "Pending"
            } else if apps.all(|container| container.ended().is_some_and(|end| end.exit_code == 0))
            {
                "Succeeded"
            } else {
                "Failed"
            }
        }
    }
}

fn container_status(pod: &Identity, container: &Container) -> Value {
    let uri = |id: &str| pod.runtime().container_uri(id);
    let terminated = |id: &str, end: Ended| {
        json!({ "terminated": {
            "containerID": uri(id),
            "exitCode": end.exit_code,
            "reason": if end.exit_code == 0 { "Completed" } else { "Error" },
            "startedAt": rfc3339(end.started),
            "finishedAt": rfc3339(end.finished),
        } })
    };
    let mut status = json!({
        "name": container.name,
        "image": IMAGE,
        "imageID": "",
        "ready": container.is_running(),
        "started": container.is_running(),
        "restartCount": container.restarts,
        "state": match container.state {
            ContainerState::Waiting => json!({ "waiting": { "reason": "ContainerCreating" } }),
            ContainerState::Running { since } => {
                json!({ "running": { "startedAt": rfc3339(since) } })
            }
            ContainerState::Ended(end) => terminated(&container.id, end),
        },
        "lastState": match &container.last {
            None => json!({}),
            Some((id, end)) => terminated(id, *end),
        },
    });
    if container.state != ContainerState::Waiting {
        status["containerID"] = uri(&container.id).into();
    }
    status
}

/// A v1 `Node`.
pub(crate) fn node_object(node: &Shared) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name() } },
        "spec": {
            "podCIDR": format!("{}/{}", node.ipv4(0), PREFIX_LENGTHS.0),
            "podCIDRs": [
                format!("{}/{}", node.ipv4(0), PREFIX_LENGTHS.0),
                format!("{}/{}", node.ipv6(0), PREFIX_LENGTHS.1),
            ],
        },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": node.ipv4(NODE_NUMBER) },
                { "type": "InternalIP", "address": node.ipv6(NODE_NUMBER) },
                { "type": "Hostname", "address": node.name() },
            ],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

const IMAGE: &str = "localhost/orb8-testpod:latest";

/// Requests and limits that give a pod this class.
fn resources(qos: Qos) -> Value {
    let some = json!({ "cpu": "100m", "memory": "64Mi" });
    match qos {
        Qos::Guaranteed => json!({ "requests": some, "limits": some }),
        Qos::Burstable => json!({ "requests": some }),
        Qos::BestEffort => json!({}),
    }
}

/// A time as the API writes it: UTC, whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Counted in years that begin in March, a leap day is the last of its year, and months of 153 days per five repeat.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_the_api_writes_them() {
        // From date(1): date -u -d @N +%FT%TZ
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
        ];
        for (seconds, written) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), written);
        }
    }
}
