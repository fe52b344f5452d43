//! When things happened to a pod, from the stamps in its object.

use std::time::{Duration, UNIX_EPOCH};

use super::{ContainerStatus, Metadata, Status};

/// When things happened to a pod, as far as its object tells. Unix time in nanoseconds; stamps of
/// the API are cut to the second, so these are the ends of the second on the safe side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// The kubelet had not taken it on before, so it had no address before.
    pub accepted: Option<i64>,
    /// By then it had its addresses.
    pub networked: Option<i64>,
    /// It is to go or has finished.
    pub ends: bool,
    /// Of a pod that ends: it still had its addresses then.
    pub last_alive: Option<i64>,
    /// Of a pod that ends: its last container had ended by then.
    pub ended: Option<i64>,
}

pub(crate) const SECOND: i64 = 1_000_000_000;

/// The beginning of the second that a stamp of the API names.
pub(crate) fn stamp(text: Option<&str>) -> Option<i64> {
    let time = humantime::parse_rfc3339(text?).ok()?;
    let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    i64::try_from(Duration::from_secs(seconds).as_nanos()).ok()
}

pub(super) fn times(metadata: &Metadata, status: &Status) -> Times {
    let states = || {
        let states = status.all().flat_map(|status| [&status.state, &status.last_state]);
        states.flatten().flat_map(|state| [&state.running, &state.terminated]).flatten()
    };
    let sandbox = status.conditions.iter().flatten().find(|condition| {
        condition.r#type == "PodReadyToStartContainers" && condition.status == "True"
    });
    let sandbox = sandbox.and_then(|condition| stamp(condition.last_transition_time.as_deref()));
    let started = states().filter_map(|ran| stamp(ran.started_at.as_deref())).min();
    let deletion = stamp(metadata.deletion_timestamp.as_deref()).map(|killed_at| {
        // The stamp is when it will be killed; somebody asked for that the grace period before.
        let grace = metadata.deletion_grace_period_seconds.unwrap_or(0);
        killed_at.saturating_sub_unsigned(grace.saturating_mul(SECOND.unsigned_abs()))
    });
    let ends = deletion.is_some() || status.is_finished();
    let finished = states().filter_map(|ran| stamp(ran.finished_at.as_deref())).max();
    let finished = finished.filter(|_| ends && status.all().all(ContainerStatus::has_ended));
    // A pod that has finished may have lost its addresses long before somebody deletes it.
    let deletion = deletion.filter(|_| !status.is_finished());
    Times {
        accepted: stamp(status.start_time.as_deref())
            .or_else(|| stamp(metadata.creation_timestamp.as_deref())),
        networked: [sandbox, started].into_iter().flatten().min().map(|at| at + SECOND),
        ends,
        last_alive: finished.or(deletion),
        ended: finished.map(|at| at + SECOND),
    }
}

impl ContainerStatus {
    fn has_ended(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.terminated.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Object, *};

    fn observed(json: &str) -> super::super::Observed {
        serde_json::from_str::<Object>(json).unwrap().observe("here").unwrap()
    }

    const HEAD: &str = r#""name": "a", "uid": "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a""#;

    #[test]
    fn a_running_pod_tells_since_when_it_has_its_address() {
        let times = observed(&format!(
            r#"{{"metadata": {{{HEAD}, "creationTimestamp": "2026-01-01T00:00:00Z"}}, "status": {{
                "startTime": "2026-01-01T00:00:02Z", "phase": "Running",
                "conditions": [{{"type": "PodReadyToStartContainers", "status": "True",
                    "lastTransitionTime": "2026-01-01T00:00:04Z"}}],
                "containerStatuses": [{{"name": "c", "lastState": {{}},
                    "state": {{"running": {{"startedAt": "2026-01-01T00:00:05Z"}}}}}}]}}}}"#
        ))
        .times;
        let at = |second: i64| Some((1_767_225_600 + second) * SECOND);
        assert_eq!((times.accepted, times.networked), (at(2), at(5)));
        assert_eq!((times.ends, times.last_alive, times.ended), (false, None, None));
    }

    #[test]
    fn a_pod_that_ends_tells_until_when_it_had_its_address() {
        let at = |second: i64| Some((1_767_225_600 + second) * SECOND);
        let deleted =
            r#""deletionTimestamp": "2026-01-01T00:00:40Z", "deletionGracePeriodSeconds": 30"#;
        let terminating = observed(&format!(
            r#"{{"metadata": {{{HEAD}, {deleted}}}, "status": {{"phase": "Running",
                "containerStatuses": [{{"name": "c", "state": {{"running": {{}}}}}}]}}}}"#
        ))
        .times;
        assert_eq!((terminating.last_alive, terminating.ended), (at(10), None));
        let ended = r#"{"terminated": {"finishedAt": "2026-01-01T00:00:12Z"}}"#;
        let last = observed(&format!(
            r#"{{"metadata": {{{HEAD}, {deleted}}}, "status": {{"phase": "Failed",
                "containerStatuses": [{{"name": "c", "state": {ended}}}]}}}}"#
        ))
        .times;
        assert_eq!((last.ends, last.last_alive, last.ended), (true, at(12), at(13)));
        // A container that crashed is no end: the next one has the same address.
        let crashed = observed(&format!(
            r#"{{"metadata": {{{HEAD}}}, "status": {{"phase": "Running",
                "containerStatuses": [{{"name": "c", "state": {ended}}}]}}}}"#
        ))
        .times;
        assert_eq!((crashed.ends, crashed.last_alive, crashed.ended), (false, None, None));
    }
}
