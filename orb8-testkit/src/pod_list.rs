//! The pods of a node as the Kubernetes API lists them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::cgroup::Qos;
use crate::node::Shared;
use crate::pod::Identity;

/// A v1 `PodList` of running pods.
pub(crate) fn pod_list<'a>(node: &Shared, pods: impl Iterator<Item = &'a Arc<Identity>>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PodList",
        "metadata": { "resourceVersion": "" },
        "items": pods.map(|pod| item(node, pod)).collect::<Vec<_>>(),
    })
}

fn item(node: &Shared, pod: &Identity) -> Value {
    let spec = &pod.spec;
    let started = rfc3339(pod.started);
    let mut metadata = json!({
        "name": spec.name,
        "namespace": spec.namespace,
        "uid": pod.uid,
        "creationTimestamp": started,
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
    let containers = pod.containers.iter().map(|container| {
        json!({ "name": container.name, "image": IMAGE, "resources": resources(spec.qos) })
    });
    let statuses = pod.containers.iter().map(|container| {
        json!({
            "name": container.name,
            "containerID": pod.runtime.container_uri(&container.id),
            "image": IMAGE,
            "imageID": "",
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": { "running": { "startedAt": started } },
            "lastState": {},
        })
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": node.name(),
            "restartPolicy": "Always",
            "containers": containers.collect::<Vec<_>>(),
        },
        "status": {
            "phase": "Running",
            "qosClass": spec.qos.as_str(),
            "hostIP": node.ipv4(1),
            "hostIPs": [{ "ip": node.ipv4(1) }, { "ip": node.ipv6(1) }],
            "podIP": pod.ipv4,
            "podIPs": [{ "ip": pod.ipv4 }, { "ip": pod.ipv6 }],
            "startTime": started,
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": started }],
            "containerStatuses": statuses.collect::<Vec<_>>(),
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
fn rfc3339(time: SystemTime) -> String {
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
