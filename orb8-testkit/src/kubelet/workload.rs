//! What a pod is to run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{PodSpec, Program};

/// A pod's specification, and the program of each of its containers.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The pod.
    pub spec: PodSpec,
    /// By container name.
    pub programs: BTreeMap<String, Program>,
    /// How long a container that ended waits for its next start. A real kubelet begins with 10 s.
    pub backoff: Duration,
    /// The pod is deleted as soon as all of its containers have ended for good. Otherwise it stays until it is killed.
    pub deleted_when_done: bool,
}

impl Workload {
    /// Without programs yet.
    #[must_use]
    pub fn new(spec: PodSpec) -> Self {
        Self { spec, programs: BTreeMap::new(), backoff: Duration::ZERO, deleted_when_done: false }
    }

    /// With the program of one container.
    #[must_use]
    pub fn program(mut self, container: &str, program: Program) -> Self {
        self.programs.insert(container.to_owned(), program);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let spec = &self.spec;
        let containers: BTreeSet<&String> =
            spec.init_containers.iter().chain(&spec.containers).collect();
        let programs: BTreeSet<&String> = self.programs.keys().collect();
        ensure!(
            containers == programs,
            "{}/{}: programs for {programs:?}, expected them for {containers:?}",
            spec.namespace,
            spec.name
        );
        Ok(())
    }
}
