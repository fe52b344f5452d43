//! What runs a pod, for a person: the Deployment rather than the ReplicaSet.
//!
//! All of it is read off the pod itself, by labels that controllers document, so that nobody needs
//! the right to read their objects.

use super::{Labels, Owner, Pod};

/// A label that names the object that a person made, where the pod's owner is something that this
/// object made: the owner's kind, the label, the object's kind.
const ABOVE: [(&str, &str, &str); 4] = [
    // https://jobset.sigs.k8s.io
    ("Job", "jobset.sigs.k8s.io/jobset-name", "JobSet"),
    // The launcher of an MPIJob; its workers, and all pods of other training jobs, are its own.
    ("Job", "training.kubeflow.org/job-name", "MPIJob"),
    // https://lws.sigs.k8s.io
    ("StatefulSet", "leaderworkerset.sigs.k8s.io/name", "LeaderWorkerSet"),
    // OpenShift
    ("ReplicationController", "deploymentconfig", "DeploymentConfig"),
];

/// Kind and name of what a RayCluster or a submitter was made for: its own name nobody chose.
const RAY: [&str; 2] = ["ray.io/originated-from-crd", "ray.io/originated-from-cr-name"];

/// Labels that carry the hash by which a controller names its ReplicaSets, and the controller's
/// kind.
const HASHED: [(&str, &str); 2] =
    [("rollouts-pod-template-hash", "Rollout"), ("pod-template-hash", "Deployment")];

/// Minutes since 1970 that a CronJob may have been due: from 2015 on. Dates such as `20260131`,
/// which people like to put there as well, are smaller.
const DUE_MINUTES: std::ops::Range<u64> = 23_667_840..100_000_000;

impl Pod {
    /// What the pod's owner is for a person: `Deployment/web` rather than `ReplicaSet/web-5d9c7`.
    #[must_use]
    pub fn workload(&self) -> Option<String> {
        let Owner { kind, name } = self.owner.as_ref()?;
        for (below, label, kind_above) in ABOVE {
            if &**kind == below
                && let Some(above) = self.labels.get(label)
            {
                return Some(format!("{kind_above}/{above}"));
            }
        }
        let [ray_kind, ray_name] = RAY.map(|label| self.labels.get(label));
        if let (Some(kind), Some(name)) = (ray_kind, ray_name) {
            return Some(format!("{kind}/{name}"));
        }
        let above = match &**kind {
            "ReplicaSet" => HASHED.into_iter().find_map(|(label, kind)| {
                let rest = name.strip_suffix(self.labels.get(label)?)?;
                Some((kind, rest.strip_suffix('-')?))
            }),
            "Job" => self.cron_job(name).map(|name| ("CronJob", name)),
            _ => None,
        };
        let (kind, name) = above.unwrap_or((kind, name));
        Some(format!("{kind}/{name}"))
    }

    /// Drops what only an owner's records need. What is left gives the same name and workload.
    pub(super) fn keep_what_peers_need(&mut self) {
        self.owner = self.workload().and_then(|workload| {
            let (kind, name) = workload.split_once('/')?;
            Some(Owner { kind: kind.into(), name: name.into() })
        });
        self.labels = Labels::default();
        self.containers = Vec::new();
        self.config_hash = None;
        self.ips.shrink_to_fit();
    }

    /// A CronJob names its Jobs after the minute that they were due.
    fn cron_job<'a>(&self, job: &'a str) -> Option<&'a str> {
        let label = |name| self.labels.get(name);
        let labelled = label("batch.kubernetes.io/job-name").or_else(|| label("job-name"));
        let (cron_job, due) = job.rsplit_once('-').filter(|_| labelled == Some(job))?;
        let digits = due.len() == 8 && due.bytes().all(|byte| byte.is_ascii_digit());
        (digits && DUE_MINUTES.contains(&due.parse().ok()?)).then_some(cron_job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(kind: &str, name: &str, labels: &[(&str, &str)]) -> String {
        let pod = Pod {
            namespace: "shop".into(),
            name: "a-pod".into(),
            uid: "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a".parse().unwrap(),
            config_hash: None,
            node: "".into(),
            host_network: false,
            ips: vec![],
            finished: false,
            ending: false,
            qos: None,
            labels: labels.iter().copied().collect(),
            owner: Some(Owner { kind: kind.into(), name: name.into() }),
            containers: vec![],
        };
        let mut peer = pod.clone();
        peer.keep_what_peers_need();
        assert_eq!(peer.workload(), pod.workload());
        assert!(peer.labels == Labels::default());
        pod.workload().unwrap()
    }

    #[test]
    fn the_workload_is_what_a_person_made() {
        let hash = ("pod-template-hash", "5d9c7bb4f8");
        let job = |name| ("batch.kubernetes.io/job-name", name);
        let ray = [(RAY[0], "RayJob"), (RAY[1], "train")];
        // Kind and name of the owner, labels, workload.
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case<'_>; 14] = [
            ("ReplicaSet", "web-5d9c7bb4f8", &[hash], "Deployment/web"),
            ("ReplicaSet", "web-5d9c7bb4f8", &[], "ReplicaSet/web-5d9c7bb4f8"),
            ("ReplicaSet", "by-hand", &[hash], "ReplicaSet/by-hand"),
            ("ReplicaSet", "web-7c", &[("rollouts-pod-template-hash", "7c")], "Rollout/web"),
            ("StatefulSet", "db", &[], "StatefulSet/db"),
            ("DaemonSet", "agent", &[], "DaemonSet/agent"),
            ("Job", "backup-29381760", &[job("backup-29381760")], "CronJob/backup"),
            ("Job", "backup-29381760", &[], "Job/backup-29381760"),
            ("Job", "import-20260131", &[job("import-20260131")], "Job/import-20260131"),
            ("Job", "t-w-0", &[("jobset.sigs.k8s.io/jobset-name", "t")], "JobSet/t"),
            (
                "PyTorchJob",
                "bert",
                &[("training.kubeflow.org/job-name", "bert")],
                "PyTorchJob/bert",
            ),
            ("Job", "b-launcher", &[("training.kubeflow.org/job-name", "b")], "MPIJob/b"),
            ("RayCluster", "train-x7k2p", &ray, "RayJob/train"),
            ("RayCluster", "by-hand", &[("ray.io/cluster", "by-hand")], "RayCluster/by-hand"),
        ];
        for (kind, name, labels, expected) in cases {
            assert_eq!(workload(kind, name, labels), expected);
        }
    }
}
