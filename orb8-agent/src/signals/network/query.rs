//! Answers from the tables: flows, pods, state. Nothing here changes anything.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use orb8_common::network::Counts;
use orb8_proto::{
    Coverage, FlowQuery, FlowResponse, FlowSort, FlowState, InterfaceStatus, NetworkFlow, PodQuery,
    PodResponse, PodSort, PodTraffic,
};
use tonic::Status;

use super::{
    Filter, NAME,
    give::Flowless,
    metrics::NetworkMetrics,
    pods::{Account, Owner},
    record,
    task::Task,
};
use crate::{
    aggregator::slice_of,
    netlink::links::Link,
    query::{Kept, PodFilter, Range, limit, losses, unknown},
    signals::Snapshot,
};

fn range(task: &Task, start_ns: Option<i64>, end_ns: Option<i64>) -> Result<Range, Status> {
    let (now_ns, wall) = (task.clock.now_ns(), task.clock.wall());
    Range::new(Kept { started_ns: task.started_ns, now_ns, wall }, start_ns, end_ns)
}

fn coverage(task: &Task, range: &Range, rows: usize) -> Coverage {
    let (start_time_ns, end_time_ns) = range.covers();
    Coverage {
        start_time_ns,
        end_time_ns,
        rows_matched: rows as u64,
        losses: losses(&task.context.ledger, NAME),
        empty_reason: if rows == 0 { empty_reason(task) } else { String::new() },
        node: task.context.config.node_name.clone(),
        nodes: Vec::new(),
    }
}

fn empty_reason(task: &Task) -> String {
    let attached = task.interfaces.attached().count();
    if attached == 0 {
        return "no interface is traced on this node; `orb8 status` says why".into();
    }
    let flows = task.table.len();
    if flows == 0 {
        return format!("{attached} interfaces are traced and no packet passed them");
    }
    format!("{flows} flows on {attached} interfaces, and none of them matches in that time")
}

/// An unknown namespace, pod or interface is an error that lists the candidates.
pub(super) fn check(task: &Task, filter: &Filter) -> Result<(), Status> {
    let node = &task.context.config.node_name;
    if !filter.interface.is_empty() {
        let names: BTreeSet<String> =
            task.interfaces.all().map(|(_, i)| i.name.to_string()).collect();
        if !names.contains(&filter.interface) {
            return Err(unknown("interface", &filter.interface, node, &names));
        }
    }
    let seen = task.accounts.iter().filter_map(|account| account.identity.as_ref());
    let seen = seen.map(|i| (i.namespace.to_string(), i.pod_name.to_string()));
    filter.pods.check(&*task.context.pods, seen, node)
}

/// Flows with packets in the window.
pub(super) fn flows(task: &Task, query: &FlowQuery) -> Result<FlowResponse, Status> {
    let filter = Filter {
        pods: PodFilter::new(&query.namespace, &query.pod_name),
        interface: query.interface.clone(),
    };
    check(task, &filter)?;
    let range = range(task, query.start_time_ns, query.end_time_ns)?;
    let mut rows = Vec::new();
    for (key, flow) in task.table.iter() {
        let Some(interface) = task.interfaces.get(key.serial()) else { continue };
        if !filter.interface.is_empty() && filter.interface != *interface.name {
            continue;
        }
        let identity = flow.attribution.identity.as_deref();
        let (namespace, pod) = identity.map_or(("", ""), |i| (&*i.namespace, &*i.pod_name));
        if !filter.pods.wants(namespace, pod) {
            continue;
        }
        if let Some(sum) = flow.window.sum(range.from, range.to) {
            rows.push((key, flow, interface, sum));
        }
    }
    let early: Vec<NetworkFlow> = early(task, &filter, &range).collect();
    let matched = rows.len() + early.len();
    // Sorted before they are built: most queries want a few of many.
    match query.sort_by() {
        FlowSort::Packets => rows.sort_by_key(|(_, _, _, sum)| Reverse(sum.packets)),
        FlowSort::Time => rows.sort_by_key(|(_, flow, ..)| Reverse(flow.last_ns)),
        FlowSort::Unspecified | FlowSort::Bytes => {
            rows.sort_by_key(|(_, _, _, sum)| Reverse(sum.bytes));
        }
    }
    rows.truncate(limit(query.limit));
    let build = |(key, flow, interface, sum): (_, _, _, super::table::SliceCounts)| {
        let flow: &super::table::Flow = flow;
        let key: &super::table::FlowKey = key;
        let mut row: NetworkFlow =
            record::frame(&task.context.config.node_name, key.id(), flow, interface);
        let counts = Counts {
            packets: sum.packets.into(),
            bytes: sum.bytes,
            extra_segments: sum.extra_segments.into(),
        };
        record::set_counts(&mut row, &counts);
        row.timestamp_ns = task.clock.unix_ns(flow.last_ns);
        task.peers.write(&mut row, key.id(), flow, interface.side);
        row.first_seen_ns = task.clock.unix_ns(flow.first_ns);
        row.state = flow.end.map_or(FlowState::Active, |_| FlowState::Ended).into();
        row.end_reason = flow.end.map_or("", super::table::End::as_str).into();
        row
    };
    let mut flows: Vec<NetworkFlow> = rows.into_iter().map(build).collect();
    if !early.is_empty() {
        flows.extend(early);
        match query.sort_by() {
            FlowSort::Packets => flows.sort_by_key(|flow| Reverse(flow.packets)),
            FlowSort::Time => flows.sort_by_key(|flow| Reverse(flow.timestamp_ns)),
            FlowSort::Unspecified | FlowSort::Bytes => {
                flows.sort_by_key(|flow| Reverse(flow.bytes));
            }
        }
        flows.truncate(limit(query.limit));
    }
    Ok(FlowResponse { flows, coverage: Some(coverage(task, &range, matched)) })
}

/// What passed interfaces before they were attached to, which has no flow.
fn early<'a>(
    task: &'a Task,
    filter: &'a Filter,
    range: &'a Range,
) -> impl Iterator<Item = NetworkFlow> + use<'a> {
    let wanted = |row: &&Flowless| {
        let identity = row.attribution.identity.as_deref();
        let (namespace, pod) = identity.map_or(("", ""), |i| (&*i.namespace, &*i.pod_name));
        (range.from..=range.to).contains(&slice_of(row.at_ns))
            && (filter.interface.is_empty() || filter.interface == *row.interface)
            && filter.pods.wants(namespace, pod)
    };
    task.early_rows().filter(wanted).map(|row| task.flowless(row))
}

/// Totals per owner in the window.
pub(super) fn pods(task: &Task, query: &PodQuery) -> Result<PodResponse, Status> {
    let filter = Filter {
        pods: PodFilter::new(&query.namespace, &query.pod_name),
        interface: String::new(),
    };
    check(task, &filter)?;
    let range = range(task, query.start_time_ns, query.end_time_ns)?;
    let flows = flows_per_owner(task, &range);
    let mut rows: Vec<PodTraffic> = Vec::new();
    for account in task.accounts.iter() {
        let identity = account.identity.as_deref();
        let (namespace, pod) = identity.map_or(("", ""), |i| (&*i.namespace, &*i.pod_name));
        if !filter.pods.wants(namespace, pod) {
            continue;
        }
        if let Some(row) = pod_row(task, account, &range, &flows) {
            rows.push(row);
        }
    }
    let matched = rows.len();
    rows.sort_by(|a, b| {
        (&a.namespace, &a.pod_name, &a.unit).cmp(&(&b.namespace, &b.pod_name, &b.unit))
    });
    match query.sort_by() {
        PodSort::Name => {}
        PodSort::Packets => rows.sort_by_key(|r| Reverse(r.ingress_packets + r.egress_packets)),
        PodSort::Flows => rows.sort_by_key(|r| Reverse(r.flows)),
        PodSort::Unspecified | PodSort::Bytes => {
            rows.sort_by_key(|r| Reverse(r.ingress_bytes + r.egress_bytes));
        }
    }
    rows.truncate(limit(query.limit));
    Ok(PodResponse { pods: rows, coverage: Some(coverage(task, &range, matched)) })
}

fn flows_per_owner(task: &Task, range: &Range) -> HashMap<Owner, u64> {
    let mut flows = HashMap::new();
    for (_, flow) in task.table.iter() {
        if flow.window.sum(range.from, range.to).is_none() {
            continue;
        }
        let owner = Owner::of(flow.attribution.identity.as_deref(), flow.attribution.by);
        *flows.entry(owner).or_insert(0) += 1;
    }
    flows
}

fn pod_row(
    task: &Task,
    account: &Account,
    range: &Range,
    flows: &HashMap<Owner, u64>,
) -> Option<PodTraffic> {
    let sum = account.window.sum(range.from, range.to)?;
    let by = orb8_proto::AttributedBy::from(account.by).into();
    let identity = account.identity.as_deref();
    let owner = Owner::of(identity, account.by);
    Some(PodTraffic {
        namespace: identity.map_or_else(String::new, |i| i.namespace.to_string()),
        pod_name: identity.map_or_else(String::new, |i| i.pod_name.to_string()),
        ingress_bytes: sum.ingress.bytes,
        egress_bytes: sum.egress.bytes,
        ingress_packets: sum.ingress.packets,
        egress_packets: sum.egress.packets,
        flows: flows.get(&owner).copied().unwrap_or(0),
        timestamp_ns: task.clock.unix_ns(account.last_ns),
        attributed_by: by,
        pod_uid: identity.map_or_else(String::new, |i| i.pod_uid.to_string()),
        node: task.context.config.node_name.clone(),
        interfaces: account.interfaces.iter().map(ToString::to_string).collect(),
        qos_class: identity.and_then(|i| i.qos).map_or("", |q| q.as_str()).into(),
        overflow_packets: sum.overflow_packets,
        early_packets: sum.early_packets,
        workload: identity.and_then(|i| i.workload.as_deref()).unwrap_or_default().into(),
        unit: identity.map_or_else(String::new, |i| i.unit.to_string()),
    })
}

/// State for status and metrics; `links` are the interfaces now, with the kernel's counters.
pub(super) fn snapshot(task: &mut Task, links: &[Link]) -> Snapshot {
    let ring = (task.ring_pending, u64::from(task.context.config.ring_buffer_size));
    let (mut maps, mut map_bytes) = task.probe.fill(ring).unwrap_or_default();
    maps.push(task.filter.metadata().status());
    map_bytes += task.filter.metadata().memory();
    Snapshot {
        interfaces: interfaces(task, links),
        maps,
        map_bytes,
        ring: Some(("FLOW_EVENTS", ring.0, ring.1)),
        events_seen: task.kernel.events_seen,
        events_unwanted: task.kernel.events_unwanted,
        events_delivered: task.events.delivered(),
        peer_source: Some(task.peers.source()),
        metrics: Some(Box::new(NetworkMetrics {
            pods: task.accounts.totals(),
            flows: task.table.len() as u64,
            peers_unasked: task.peers.unasked,
        })),
    }
}

fn interfaces(task: &Task, links: &[Link]) -> Vec<InterfaceStatus> {
    let uids: HashMap<String, (String, String)> = task
        .context
        .pods
        .pods()
        .iter()
        .map(|p| (p.uid.to_string(), (p.namespace.to_string(), p.name.to_string())))
        .collect();
    let mut all: Vec<InterfaceStatus> = Vec::new();
    for (_, interface) in task.interfaces.attached() {
        let Some(link) = links.iter().find(|link| link.index == interface.index) else { continue };
        let uid = interface.owner.and_then(|owner| owner.pod_uid).map(|uid| uid.to_string());
        let bare = uid.clone().unwrap_or_default();
        let named = uid.and_then(|uid| uids.get(&uid).cloned());
        let (namespace, pod_name) = named.unwrap_or((String::new(), bare));
        let (then, now) = (interface.kernel_at_attach, link.counters);
        let [ingress, egress] = interface.totals;
        all.push(InterfaceStatus {
            name: interface.name.to_string(),
            ifindex: interface.index,
            namespace,
            pod_name,
            attached: interface.attached.into(),
            reason: String::new(),
            attached_ns: interface.attached_unix_ns,
            ingress_bytes: ingress.bytes,
            ingress_packets: ingress.packets,
            egress_bytes: egress.bytes,
            egress_packets: egress.packets,
            kernel_ingress_bytes: now.rx_bytes.saturating_sub(then.rx_bytes),
            kernel_ingress_packets: now.rx_packets.saturating_sub(then.rx_packets),
            kernel_egress_bytes: now.tx_bytes.saturating_sub(then.tx_bytes),
            kernel_egress_packets: now.tx_packets.saturating_sub(then.tx_packets),
            approximate: !interface.baseline_is_exact,
        });
    }
    for (index, (name, why)) in &task.interfaces.refused {
        all.push(InterfaceStatus {
            name: name.clone(),
            ifindex: *index,
            reason: why.clone(),
            ..InterfaceStatus::default()
        });
    }
    all.sort_by_key(|interface| interface.ifindex);
    all
}
