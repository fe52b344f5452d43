//! Answers from the tables: calls, profiles, state. Nothing here changes anything.

use std::cmp::Reverse;

use orb8_proto::{
    AnomalyQuery, AnomalyResponse, Coverage, Loss, StreamRequest, SyscallCount, SyscallOutcome,
    SyscallProfile, SyscallProfileQuery, SyscallProfileResponse, SyscallQuery, SyscallResponse,
    SyscallSort,
};
use tonic::Status;

use super::{
    NAME,
    classes::class_of,
    metrics::SyscallMetrics,
    names,
    table::{Account, Owner},
    task::Task,
    telling::Wanted,
};
use crate::{
    clock::boot_ns,
    enricher::Identity,
    ledger::Stage,
    query::{Kept, PodFilter, Range, limit, losses},
    signals::Snapshot,
};

/// A request for records has to name pods and calls that there are.
pub(super) fn check_stream(task: &Task, request: &StreamRequest) -> Result<(), Status> {
    Wanted::parse(&request.syscalls).map_err(Status::invalid_argument)?;
    if request.errors_only && task.ends.is_none() {
        return Err(no_ends());
    }
    check(task, &PodFilter::new(&request.namespace, &request.pod_name))
}

fn no_ends() -> Status {
    Status::failed_precondition(
        "this agent watches the beginnings of system calls only: it knows no errors and no latencies; \
         start it with --latency",
    )
}

fn check(task: &Task, filter: &PodFilter) -> Result<(), Status> {
    let seen = task.accounts.iter().filter_map(|(_, account)| account.identity());
    let seen = seen.map(|i| (i.namespace.to_string(), i.pod_name.to_string()));
    filter.check(&*task.context.pods, seen, &task.context.config.node_name)
}

fn coverage(task: &Task, range: &Range, rows: usize) -> Coverage {
    let (start_time_ns, end_time_ns) = range.covers();
    let empty = || {
        let accounts = task.accounts.len();
        format!(
            "{accounts} containers and units are watched, and no call of them matches in that time"
        )
    };
    Coverage {
        start_time_ns,
        end_time_ns,
        rows_matched: rows as u64,
        losses: losses(&task.context.ledger, NAME),
        empty_reason: if rows == 0 { empty() } else { String::new() },
        node: task.context.config.node_name.clone(),
        nodes: Vec::new(),
    }
}

/// Calls of a window, per container and call.
pub(super) fn calls(task: &Task, query: &SyscallQuery) -> Result<SyscallResponse, Status> {
    let filter = PodFilter::new(&query.namespace, &query.pod_name);
    check(task, &filter)?;
    let numbers = match Wanted::parse(&query.syscalls).map_err(Status::invalid_argument)? {
        Wanted::Usual => None,
        Wanted::Calls(numbers) => Some(numbers),
    };
    let by_end = matches!(query.sort_by(), SyscallSort::Errors | SyscallSort::Latency);
    if by_end && task.ends.is_none() {
        return Err(no_ends());
    }
    let kept = Kept { started_ns: task.started_ns, now_ns: boot_ns(), wall: task.wall };
    let range = Range::new(kept, query.start_time_ns, query.end_time_ns)?;
    let mut rows = Vec::new();
    for (_, account) in task.accounts.iter().filter(|(_, a)| is_of(a, &filter, &query.container)) {
        let mut outcomes = account.ends.outcomes(range.from, range.to);
        let mut sums = account.sums(range.from, range.to);
        // Calls that a filter refused never began, and some that end now began long ago.
        sums.extend(outcomes.keys().map(|number| (*number, 0)));
        sums.sort_unstable_by_key(|(number, calls)| (*number, Reverse(*calls)));
        sums.dedup_by_key(|(number, _)| *number);
        for (number, calls) in sums {
            if numbers.as_ref().is_none_or(|numbers| numbers.contains(&number.into())) {
                let none = || task.ends.as_ref().map(|_| SyscallOutcome::default());
                let outcome = outcomes.remove(&number).or_else(none);
                rows.push(Row { account, number, calls, outcome });
            }
        }
    }
    let matched = rows.len();
    let by_name = |row: &Row<'_>| {
        let identity = row.account.identity();
        let owner = identity.map(|i| {
            let Identity { namespace, pod_name, container, unit, .. } = &**i;
            (namespace.clone(), pod_name.clone(), unit.clone(), container.clone())
        });
        (owner, names::name(row.number.into()))
    };
    match query.sort_by() {
        SyscallSort::Name => rows.sort_by_cached_key(by_name),
        SyscallSort::Errors => {
            rows.sort_by_cached_key(|row| (Reverse(row.end(|o| o.errors)), by_name(row)));
        }
        SyscallSort::Latency => {
            rows.sort_by_cached_key(|row| (Reverse(row.end(|o| o.p99_ns)), by_name(row)));
        }
        _ => rows.sort_by_cached_key(|row| (Reverse(row.calls), by_name(row))),
    }
    rows.truncate(limit(query.limit));
    let syscalls = rows.into_iter().map(|row| row.build(task)).collect();
    Ok(SyscallResponse { syscalls, coverage: Some(coverage(task, &range, matched)) })
}

fn is_of(account: &Account, filter: &PodFilter, container: &str) -> bool {
    let identity = account.identity();
    let of = |of: fn(&Identity) -> &str| identity.map_or("", |identity| of(identity));
    filter.wants(of(|i| &i.namespace), of(|i| &i.pod_name))
        && (container.is_empty() || container == of(|i| &i.container))
}

/// A line of the answer.
struct Row<'a> {
    account: &'a Account,
    number: u16,
    calls: u64,
    /// Where the ends of calls are watched.
    outcome: Option<SyscallOutcome>,
}

impl Row<'_> {
    fn end(&self, of: impl FnOnce(&SyscallOutcome) -> u64) -> u64 {
        self.outcome.as_ref().map_or(0, of)
    }

    fn build(self, task: &Task) -> SyscallCount {
        let Self { account, number, calls, outcome } = self;
        SyscallCount { outcome, ..count(task, account, number, calls) }
    }
}

fn count(task: &Task, account: &Account, number: u16, calls: u64) -> SyscallCount {
    let identity = account.identity();
    let text = |of: fn(&Identity) -> &str| identity.map_or("", |i| of(i)).to_owned();
    let last = account.totals().iter().find(|total| total.number == number);
    let syscall = names::name(number.into());
    SyscallCount {
        namespace: text(|i| &i.namespace),
        pod_name: text(|i| &i.pod_name),
        container: text(|i| &i.container),
        syscall: syscall.into(),
        calls,
        pod_uid: text(|i| &i.pod_uid),
        container_id: text(|i| &i.container_id),
        attributed_by: orb8_proto::AttributedBy::from(account.attribution.by).into(),
        node: task.context.config.node_name.clone(),
        workload: text(|i| i.workload.as_deref().unwrap_or_default()),
        unit: text(|i| &i.unit),
        number: number.into(),
        class: class_of(syscall).into(),
        timestamp_ns: last.map_or(0, |total| task.wall.unix_ns(total.last_ns)),
        outcome: None,
    }
}

/// What departs from normal.
pub(super) fn anomalies(task: &Task, query: &AnomalyQuery) -> Result<AnomalyResponse, Status> {
    check(task, &PodFilter::new(&query.namespace, &query.pod_name))?;
    let detector = &task.anomalies.detector;
    let now = task.wall.unix_ns(boot_ns());
    let mut answer = detector.query(query, &task.context.config.node_name, now);
    if let Some(coverage) = &mut answer.coverage {
        let losses = detector.tally().losses();
        // Findings that there were and that are not in the answer.
        let losses = losses
            .into_iter()
            .filter(|(reason, records)| reason.starts_with("withheld") && *records > 0);
        coverage.losses = losses
            .map(|(reason, records)| Loss {
                signal: NAME.into(),
                stage: Stage::Aggregate.as_str().into(),
                reason: reason.into(),
                records,
                ..Loss::default()
            })
            .collect();
    }
    Ok(answer)
}

/// What containers were seen to call since they are watched.
pub(super) fn profiles(
    task: &Task,
    query: &SyscallProfileQuery,
) -> Result<SyscallProfileResponse, Status> {
    let filter = PodFilter::new(&query.namespace, &query.pod_name);
    check(task, &filter)?;
    let accounts = task.accounts.iter();
    let accounts = accounts.filter(|(owner, account)| {
        matches!(owner, Owner::Container(_)) && is_of(account, &filter, &query.container)
    });
    let mut profiles: Vec<_> = accounts.map(|(_, account)| profile(task, account)).collect();
    profiles.sort_by(|a, b| {
        (&a.namespace, &a.pod_name, &a.container, a.observed_from_ns).cmp(&(
            &b.namespace,
            &b.pod_name,
            &b.container,
            b.observed_from_ns,
        ))
    });
    let node = task.context.config.node_name.clone();
    Ok(SyscallProfileResponse { profiles, node, nodes: Vec::new() })
}

fn profile(task: &Task, account: &Account) -> SyscallProfile {
    let identity = account.identity();
    let text = |of: fn(&Identity) -> &str| identity.map_or("", |i| of(i)).to_owned();
    // What only the runtime called, to prepare the container, its program has no need for.
    let mut syscalls: Vec<String> = account
        .totals()
        .iter()
        .filter(|total| !account.is_runtimes_alone(total))
        .map(|total| names::name(total.number.into()).to_owned())
        .collect();
    syscalls.sort_unstable();
    let mut gaps = Vec::new();
    let nobodys = match account.lives {
        true => task.without_owner().saturating_sub(account.nobodys.0),
        false => account.nobodys.1.saturating_sub(account.nobodys.0),
    };
    if nobodys > 0 {
        gaps.push(format!("{nobodys} calls of that time could be anybody's"));
    }
    for (name, what) in [("compat", "of 32-bit programs"), ("other", "with numbers of no table")] {
        if syscalls.iter().any(|call| call == name) {
            gaps.push(format!("it makes calls {what}, which have no name here"));
        }
    }
    if !account.since_start {
        gaps.push("it was there before it was watched".into());
    }
    let until = if account.lives { boot_ns() } else { account.last_ns };
    SyscallProfile {
        node: task.context.config.node_name.clone(),
        namespace: text(|i| &i.namespace),
        pod_name: text(|i| &i.pod_name),
        container: text(|i| &i.container),
        pod_uid: text(|i| &i.pod_uid),
        container_id: text(|i| &i.container_id),
        workload: text(|i| i.workload.as_deref().unwrap_or_default()),
        architecture: names::ARCHITECTURE.into(),
        syscalls,
        observed_from_ns: task.wall.unix_ns(account.first_ns.max(task.started_ns)),
        observed_until_ns: task.wall.unix_ns(until),
        since_start: account.since_start,
        gaps,
    }
}

/// State for status and metrics.
pub(super) fn snapshot(task: &Task) -> Snapshot {
    let size = u64::from(task.context.config.syscall_ring_buffer_size);
    let ring = (task.ring_used, size);
    let (mut maps, mut map_bytes) = task.probe.fill(task.slots.len(), task.unslotted.len(), ring);
    if let Some(ends) = &task.ends {
        let (more, bytes) = ends.fill();
        maps.extend(more);
        map_bytes += bytes;
    }
    let metadata = &task.filter.metadata;
    maps.push(metadata.status());
    map_bytes += metadata.memory();
    Snapshot {
        maps,
        map_bytes,
        ring: Some(("SYSCALL_EVENTS", ring.0, ring.1)),
        events_seen: task.kernel.events_seen,
        events_unwanted: task.kernel.events_unwanted,
        events_delivered: task.events.delivered(),
        metrics: Some(Box::new(SyscallMetrics::of(task))),
        ..Snapshot::default()
    }
}
