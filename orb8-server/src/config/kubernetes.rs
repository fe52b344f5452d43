//! How to reach the Kubernetes API, and what for.

use orb8_k8s::KubernetesSource;

use super::RawConfig;
use crate::discovery::Source;

impl RawConfig {
    /// How to reach the API, and whether the cluster is to be watched through it.
    pub(super) fn kubernetes(
        &self,
        agents: &Source,
        problems: &mut Vec<String>,
    ) -> (KubernetesSource, bool) {
        if let Some(path) = self.kubeconfig.as_ref().filter(|path| !path.is_file()) {
            problems.push(format!("kubeconfig: no file {}", path.display()));
        }
        let is_pod = KubernetesSource::running_as_pod();
        let by_it = matches!(agents, Source::Kubernetes(_));
        let wanted = match self.kubernetes.as_deref() {
            None | Some("auto") => by_it || is_pod || self.kubeconfig.is_some(),
            Some("on") => true,
            Some("off") => false,
            Some(other) => {
                problems
                    .push(format!("kubernetes: {other:?} is unknown; expected auto, on or off"));
                false
            }
        };
        (KubernetesSource::choose(self.kubeconfig.clone(), is_pod), wanted)
    }
}
