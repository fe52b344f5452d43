//! Findings and baselines as the protocol has them.

use std::cmp::Reverse;

use orb8_proto::{
    Anomaly, AnomalyKind, AnomalyQuery, AnomalyResponse, Baseline as WireBaseline, BaselineState,
    Coverage,
};

use super::{
    baseline::{Baseline, Phase},
    detector::Detector,
    finding::{Finding, Kind},
    settings::{STARTS, Settings},
    workload::Workload,
};

/// Rows of an answer, unless it is asked for fewer.
const LIMIT: usize = 10_000;

impl From<Kind> for AnomalyKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Sensitive => Self::SensitiveSyscall,
            Kind::New => Self::NewSyscall,
            Kind::Rate => Self::Rate,
            Kind::Errors => Self::ErrorStorm,
        }
    }
}

impl Finding {
    /// As a record of `node`.
    #[must_use]
    pub(crate) fn record(&self, node: &str) -> Anomaly {
        let workload = &*self.workload;
        Anomaly {
            id: self.id.clone(),
            kind: AnomalyKind::from(self.kind).into(),
            namespace: workload.namespace.clone(),
            pod_name: self.pod_name.to_string(),
            container: workload.container.clone(),
            workload: workload.owner.clone(),
            image: workload.image.clone(),
            unit: workload.unit.clone(),
            container_id: self.container_id.to_string(),
            node: node.to_owned(),
            syscall: self.what.clone(),
            since_ns: self.since_ns,
            last_seen_ns: self.last_seen_ns,
            cleared_ns: self.cleared_ns.unwrap_or(0),
            value: self.value,
            normal: self.normal,
            deviation: self.deviation,
            occurrences: self.occurrences,
            evidence: self.evidence.clone(),
            summary: self.summary(),
        }
    }
}

impl Detector {
    /// Answers a query, at a time in nanoseconds since the Unix epoch.
    #[must_use]
    pub(crate) fn query(&self, query: &AnomalyQuery, node: &str, unix_ns: i64) -> AnomalyResponse {
        let from = query.start_time_ns.unwrap_or(i64::MIN);
        let until = query.end_time_ns.unwrap_or(i64::MAX);
        let kinds: Vec<AnomalyKind> = query.kinds().collect();
        let wanted = |finding: &&Finding| {
            let workload = &*finding.workload;
            (query.namespace.is_empty() || query.namespace == workload.namespace)
                && finding.pod_name.starts_with(&query.pod_name)
                && (kinds.is_empty() || kinds.contains(&finding.kind.into()))
                && (!query.active_only || finding.cleared_ns.is_none())
                && finding.since_ns <= until
                && finding.cleared_ns.unwrap_or(i64::MAX) >= from
        };
        let mut found: Vec<&Finding> = self.findings().filter(wanted).collect();
        found.sort_by_key(|finding| (Reverse(finding.since_ns), finding.id.clone()));
        let matched = found.len();
        let limit = if query.limit == 0 { LIMIT } else { query.limit as usize };
        found.truncate(limit);
        let baselines = self.baselines_of(query);
        let empty_reason = match (matched, baselines.len()) {
            (0, 0) => "no workload with such a name has called anything yet".to_owned(),
            (0, known) => {
                let learnt = BaselineState::Learnt;
                let learnt = baselines.iter().filter(|b| b.state() == learnt).count();
                format!("nothing departs from normal: {learnt} of {known} workloads are learnt")
            }
            _ => String::new(),
        };
        AnomalyResponse {
            anomalies: found.into_iter().map(|finding| finding.record(node)).collect(),
            coverage: Some(Coverage {
                start_time_ns: query.start_time_ns.unwrap_or(0),
                end_time_ns: query.end_time_ns.unwrap_or(unix_ns),
                rows_matched: u64::try_from(matched).unwrap_or(u64::MAX),
                losses: Vec::new(),
                empty_reason,
                node: node.to_owned(),
                nodes: Vec::new(),
            }),
            baselines,
        }
    }

    /// The workloads that a query is about. A workload has no pod's name, but begins like its pods.
    fn baselines_of(&self, query: &AnomalyQuery) -> Vec<WireBaseline> {
        let wanted = |workload: &Workload| {
            let name = workload.owner.rsplit('/').next().unwrap_or_default();
            (query.namespace.is_empty() || query.namespace == workload.namespace)
                && (name.starts_with(&query.pod_name) || query.pod_name.starts_with(name))
        };
        let mut found: Vec<_> = self.baselines.iter().filter(|(w, _)| wanted(w)).collect();
        found.sort_by_key(|(workload, _)| *workload);
        found.truncate(LIMIT);
        found.into_iter().map(|(w, baseline)| baseline.record(w, self.settings())).collect()
    }

    /// Workloads that are being learnt, and those that are learnt.
    #[must_use]
    pub(crate) fn learning_and_learnt(&self) -> (u64, u64) {
        let learnt = self.baselines.values().filter(|b| b.state(self.settings())).count();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        (count(self.baselines.len() - learnt), count(learnt))
    }
}

impl Baseline {
    /// Whether some part of its containers' lives is judged.
    fn state(&self, settings: &Settings) -> bool {
        [Phase::Start, Phase::Life].into_iter().any(|phase| self.is_learnt(phase, settings))
    }

    fn record(&self, workload: &Workload, settings: &Settings) -> WireBaseline {
        let state =
            if self.state(settings) { BaselineState::Learnt } else { BaselineState::Learning };
        let learn = i64::try_from(settings.learn.as_nanos()).unwrap_or(i64::MAX);
        WireBaseline {
            namespace: workload.namespace.clone(),
            workload: [&workload.owner, &workload.unit]
                .into_iter()
                .find(|name| !name.is_empty())
                .cloned()
                .unwrap_or_default(),
            container: workload.container.clone(),
            image: workload.image.clone(),
            state: state.into(),
            since_ns: self.since_ns,
            learnt_ns: self.since_ns.saturating_add(learn),
            // Starts are what workloads are known by that only ever start.
            windows: if self.windows == 0 { self.starts.min(STARTS) } else { self.windows },
            syscalls: self.at_start.or(&self.in_life).len(),
        }
    }
}
