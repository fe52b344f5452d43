//! `orb8 query`: the totals of a window, as one table.

use std::{collections::HashMap, time::Duration};

use orb8_proto::{
    AnomalyKind, AnomalyQuery, BaselineState, Coverage, FlowQuery, FlowSort, PodQuery, PodSort,
    SyscallQuery, SyscallSort,
};

use super::{
    history, interface_filter, no_interface_filter,
    question::{Question, Window},
};
use crate::{
    args::{
        self, Cli, FlowOrder, PodOrder, QueryAnomaliesArgs, QueryFlowsArgs, QueryPodsArgs,
        QuerySyscallsArgs, SyscallAgentArgs, SyscallOrder,
    },
    client::{Client, question},
    exit::{Exit, Failure},
    notes::Notes,
    output::{
        anomalies as anomaly_columns, flows as flow_columns, pods as pod_columns,
        syscalls::{self as syscall_columns, Counted},
    },
};

pub(super) async fn flows(
    cli: &Cli,
    args: &QueryFlowsArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let asked = Question::new(cli, &args.window, &args.agent, notes, flow_columns::COLUMNS).await?;
    let interface = interface_filter(&asked.target, &args.agent.interface)?;
    let mut query = FlowQuery {
        namespace: args.window.filter.namespace.clone().unwrap_or_default(),
        pod_name: args.window.filter.pod.clone().unwrap_or_default(),
        limit: args.window.limit.unwrap_or(0),
        node: args.window.filter.node.clone().unwrap_or_default(),
        sort_by: match args.sort_by {
            FlowOrder::Bytes => FlowSort::Bytes,
            FlowOrder::Packets => FlowSort::Packets,
            FlowOrder::Time => FlowSort::Time,
        }
        .into(),
        interface: interface.clone(),
        ..FlowQuery::default()
    };
    let ask = async |client: &mut Client, window: Window| {
        (query.start_time_ns, query.end_time_ns) = window;
        let response = client.query_flows(question(query)).await?.into_inner();
        Ok((response.flows, response.coverage))
    };
    asked.ask(&interface, ask).await
}

pub(super) async fn pods(cli: &Cli, args: &QueryPodsArgs, notes: &Notes) -> Result<Exit, Failure> {
    if let Some(url) = history::wanted(&args.history, &args.window)? {
        return history::pods(cli, args, &url, notes).await;
    }
    let asked = Question::new(cli, &args.window, &args.agent, notes, pod_columns::COLUMNS).await?;
    no_interface_filter(&asked.target, &args.agent.interface, "query pods")?;
    let mut query = PodQuery {
        namespace: args.window.filter.namespace.clone().unwrap_or_default(),
        pod_name: args.window.filter.pod.clone().unwrap_or_default(),
        limit: args.window.limit.unwrap_or(0),
        node: args.window.filter.node.clone().unwrap_or_default(),
        sort_by: match args.sort_by {
            PodOrder::Bytes => PodSort::Bytes,
            PodOrder::Packets => PodSort::Packets,
            PodOrder::Flows => PodSort::Flows,
            PodOrder::Name => PodSort::Name,
        }
        .into(),
        ..PodQuery::default()
    };
    let ask = async |client: &mut Client, window: Window| {
        (query.start_time_ns, query.end_time_ns) = window;
        let response = client.query_pods(question(query)).await?.into_inner();
        Ok((response.pods, response.coverage))
    };
    asked.ask("", ask).await
}

pub(super) async fn syscalls(
    cli: &Cli,
    args: &QuerySyscallsArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let ends = matches!(args.sort_by, SyscallOrder::Errors | SyscallOrder::Latency);
    let agent = SyscallAgentArgs { ends, ..args.agent.clone() };
    let asked = Question::new(cli, &args.window, &agent, notes, syscall_columns::COUNTS).await?;
    let mut query = SyscallQuery {
        namespace: args.window.filter.namespace.clone().unwrap_or_default(),
        pod_name: args.window.filter.pod.clone().unwrap_or_default(),
        limit: args.window.limit.unwrap_or(0),
        node: args.window.filter.node.clone().unwrap_or_default(),
        syscalls: args.syscall.clone(),
        container: args.container.clone().unwrap_or_default(),
        sort_by: match args.sort_by {
            SyscallOrder::Calls => SyscallSort::Calls,
            SyscallOrder::Errors => SyscallSort::Errors,
            SyscallOrder::Latency => SyscallSort::Latency,
            SyscallOrder::Name => SyscallSort::Name,
        }
        .into(),
        ..SyscallQuery::default()
    };
    let ask = async |client: &mut Client, window: Window| {
        (query.start_time_ns, query.end_time_ns) = window;
        let response = client.query_syscalls(question(query)).await?.into_inner();
        let seconds = Seconds::of(response.coverage.as_ref());
        let rows = response.syscalls.into_iter().map(|count| {
            let seconds = seconds.at(&count.node);
            Counted { count, seconds }
        });
        Ok((rows.collect(), response.coverage))
    };
    asked.ask("", ask).await
}

pub(super) async fn anomalies(
    cli: &Cli,
    args: &QueryAnomaliesArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let asked =
        Question::new(cli, &args.window, &args.agent, notes, anomaly_columns::COLUMNS).await?;
    let kind = |kind: &args::AnomalyKind| {
        i32::from(match kind {
            args::AnomalyKind::NewSyscall => AnomalyKind::NewSyscall,
            args::AnomalyKind::SensitiveSyscall => AnomalyKind::SensitiveSyscall,
            args::AnomalyKind::Rate => AnomalyKind::Rate,
            args::AnomalyKind::ErrorStorm => AnomalyKind::ErrorStorm,
        })
    };
    let mut query = AnomalyQuery {
        namespace: args.window.filter.namespace.clone().unwrap_or_default(),
        pod_name: args.window.filter.pod.clone().unwrap_or_default(),
        limit: args.window.limit.unwrap_or(0),
        node: args.window.filter.node.clone().unwrap_or_default(),
        kinds: args.kind.iter().map(kind).collect(),
        active_only: args.active,
        ..AnomalyQuery::default()
    };
    let ask = async |client: &mut Client, window: Window| {
        (query.start_time_ns, query.end_time_ns) = window;
        let response = client.query_anomalies(question(query)).await?.into_inner();
        let (all, is_learnt) = (response.baselines.len(), BaselineState::Learnt);
        let learnt = response.baselines.iter().filter(|b| b.state() == is_learnt).count();
        notes.info(&format!("{learnt} of {all} workloads are learnt"));
        Ok((response.anomalies, response.coverage))
    };
    asked.ask("", ask).await
}

/// How long the windows of nodes are that rates are of.
struct Seconds {
    all: f64,
    nodes: HashMap<String, f64>,
}

impl Seconds {
    fn of(coverage: Option<&Coverage>) -> Self {
        let seconds = |start: i64, end: i64| {
            Duration::from_nanos(u64::try_from(end.saturating_sub(start)).unwrap_or(0))
                .as_secs_f64()
        };
        let all = coverage.map_or(0.0, |c| seconds(c.start_time_ns, c.end_time_ns));
        let nodes = coverage.into_iter().flat_map(|coverage| &coverage.nodes);
        let nodes = nodes.map(|n| (n.node.clone(), seconds(n.start_time_ns, n.end_time_ns)));
        Seconds { all, nodes: nodes.filter(|(_, seconds)| *seconds > 0.0).collect() }
    }

    fn at(&self, node: &str) -> f64 {
        self.nodes.get(node).copied().unwrap_or(self.all)
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::NodeAnswer;

    use super::*;

    #[test]
    fn a_rate_is_of_the_window_that_its_node_covered() {
        let node = |node: &str, start: i64, end: i64| NodeAnswer {
            node: node.into(),
            start_time_ns: start * 1_000_000_000,
            end_time_ns: end * 1_000_000_000,
            ..NodeAnswer::default()
        };
        let coverage = Coverage {
            end_time_ns: 300_000_000_000,
            nodes: vec![node("young", 290, 300), node("silent", 0, 0)],
            ..Coverage::default()
        };
        let seconds = Seconds::of(Some(&coverage));
        assert_eq!(seconds.at("young"), 10.0);
        assert_eq!(seconds.at("silent"), 300.0);
    }
}
