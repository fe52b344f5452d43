//! `orb8 status`: what an agent is, what works, what it lost and what it costs.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orb8_proto::{AgentSource, Node, PodSource, PodSourceState, StatusRequest, StatusResponse};
use orb8_transport::broken_by;
use tonic::{Code, Status};

use super::{no_interface_filter, node_need, nodes};
use crate::{
    args::{Cli, StatusArgs},
    client::{Session, answer, question},
    exit::{Exit, Failure},
    notes::Notes,
    output::{
        Format, Look, Printer,
        columns::{Column, select},
        document, escape, node,
        nodes::COLUMNS as NODES,
        value::{Value, human_bytes},
    },
    standalone::Purpose,
    summary::Summary,
    target::Needs,
};

pub(super) async fn run(cli: &Cli, args: &StatusArgs, notes: &Notes) -> Result<Exit, Failure> {
    let needs = Needs { server: node_need(args.node.as_ref()), ..Needs::default() };
    let target = Session::target(cli, &args.agent, needs).await?;
    no_interface_filter(&target, &args.agent.interface, "status")?;
    let session =
        Session::open(&target, &cli.global.connection, &args.agent, Purpose::Preflight, notes)
            .await?;
    let result = ask(&session, args).await;
    session.close(notes).await;
    let (status, nodes) = result?;
    let mut out = io::stdout().lock();
    if args.output.is_table() {
        let color = cli.global.color.on(io::stdout().is_terminal());
        let look = Look { format: args.output, headers: true, color };
        match &nodes {
            None => write_for_people(&status, look, &mut out),
            Some(nodes) => write_server(&status, nodes, look, &mut out),
        }
        .map_err(Failure::output)?;
    } else {
        let value = as_value(&status, nodes.as_deref());
        document::write(&value, args.output, &mut out).map_err(Failure::output)?;
    }
    let Some(nodes) = nodes else {
        let summary = Summary { asked: 1, answered: 1, received: 1, lost: 0 };
        notes.info(&summary.to_string());
        return Ok(Exit::Complete);
    };
    notes.info(&nodes::summary(&nodes));
    let ready = nodes::all_ready(&nodes);
    Ok(if ready { Exit::Complete } else { Exit::Partial })
}

/// The status, and of a server the nodes that it knows.
async fn ask(
    session: &Session,
    args: &StatusArgs,
) -> Result<(StatusResponse, Option<Vec<Node>>), Failure> {
    let mut client = session.client.clone();
    let request = question(StatusRequest { node: args.node.clone().unwrap_or_default() });
    let call = async {
        match client.get_agent_status(request).await {
            Ok(response) => Ok(Ok(response.into_inner())),
            // A server's word that the node's agent does not answer.
            Err(status) if args.node.is_some() && is_word_of_server(&status) => {
                Ok(Err(status.message().to_owned()))
            }
            Err(status) => Err(status),
        }
    };
    let status = answer(&session.peer, call).await?.map_err(Failure::NoAnswer)?;
    // An agent says on which node it is.
    let nodes = match status.node.as_str() {
        "" => Some(nodes::list(&session.client, &session.peer, "").await?.nodes),
        _ => None,
    };
    Ok((status, nodes))
}

fn is_word_of_server(status: &Status) -> bool {
    status.code() == Code::Unavailable && broken_by(status).is_none()
}

/// A server has no signals, interfaces or maps of its own: it has nodes.
fn write_server(
    status: &StatusResponse,
    nodes: &[Node],
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    write_process("Server", "orb8-server", status, out)?;
    writeln!(out, "Nodes:    {}", nodes::summary(nodes))?;
    let missing: Vec<Node> = nodes.iter().filter(|node| nodes::is_missing(node)).cloned().collect();
    if missing.is_empty() {
        return out.flush();
    }
    section(NODES, &missing, "", look, out)?;
    out.flush()
}

fn write_process(
    label: &str,
    name: &str,
    status: &StatusResponse,
    out: &mut dyn Write,
) -> io::Result<()> {
    let uptime = Duration::from_secs(uptime(status).as_secs());
    for (label, text) in [
        (label, escape::for_terminal(name).into_owned()),
        ("Version", escape::for_terminal(&status.version).into_owned()),
        ("Kernel", escape::for_terminal(&status.kernel_release).into_owned()),
        ("Uptime", humantime::format_duration(uptime).to_string()),
    ] {
        writeln!(out, "{:<9} {text}", format!("{label}:"))?;
    }
    if let Some(usage) = &status.usage {
        writeln!(
            out,
            "Usage:    {:.2} s of CPU, {} resident, {} in kernel maps, {} open files",
            usage.cpu_seconds,
            human_bytes(usage.resident_bytes),
            human_bytes(usage.kernel_map_bytes),
            usage.open_fds
        )?;
    }
    Ok(())
}

fn write_for_people(status: &StatusResponse, look: Look, out: &mut dyn Write) -> io::Result<()> {
    write_process("Node", &status.node, status, out)?;
    if let Some(source) = &status.pod_source {
        writeln!(out, "Pods:     {}", pods(source))?;
    }
    if let Some(source) = &status.runtime_source
        // Where names come from nowhere else, that was said.
        && status.pod_source.as_ref().is_none_or(|pods| pods.kind != source.kind)
    {
        writeln!(out, "Runtime:  {}", runtime(source))?;
    }
    if let Some(source) = &status.peer_source {
        let pods_are_known = status.pod_source.as_ref().is_some_and(|pods| !pods.kind.is_empty());
        writeln!(out, "Peers:    {}", peers(source, pods_are_known))?;
    }
    if let Some(AgentSource { source, agents, problem }) = &status.agent_source {
        let gap = if problem.is_empty() { "" } else { "; may be old: " };
        let [source, problem] = [source, problem].map(|text| escape::for_terminal(text));
        writeln!(out, "Agents:   {agents} known, from {source}{gap}{problem}")?;
    }
    section(node::SIGNALS, &status.signals, "no signals", look, out)?;
    section(node::INTERFACES, &status.interfaces, "no interfaces", look, out)?;
    section(node::MAPS, &status.maps, "no kernel maps", look, out)?;
    section(node::LOSSES, &status.losses, "nothing lost", look, out)?;
    out.flush()
}

/// Who is known by name, and how current that is.
fn pods(source: &PodSource) -> String {
    let PodSource { kind, pods_known, .. } = source;
    let known = if kind.is_empty() {
        "nobody is known by name: pods are shown by their ids".to_owned()
    } else {
        format!("{pods_known} known, from {}", escape::for_terminal(kind))
    };
    current(known, source)
}

/// Who is asked where the others do not know.
fn runtime(source: &PodSource) -> String {
    let detail = detail(source);
    if source.kind.is_empty() {
        return detail;
    }
    format!("{} pods known to {} {detail}", source.pods_known, escape::for_terminal(&source.kind))
}

/// Whose names peers have, and how current those are.
fn peers(source: &PodSource, pods_are_known: bool) -> String {
    let PodSource { kind, pods_known, .. } = source;
    let known = match &**kind {
        "" if pods_are_known => "this node and its pods are known".into(),
        "" => "this node is known".into(),
        kind => format!(
            "the cluster is known, {pods_known} pods of other nodes, from {}",
            escape::for_terminal(kind)
        ),
    };
    current(known, source)
}

/// What is known, with why that may not be all.
fn current(known: String, source: &PodSource) -> String {
    let detail = detail(source);
    if detail.is_empty() { known } else { format!("{known}, {detail}") }
}

fn detail(source: &PodSource) -> String {
    let reason = escape::for_terminal(&source.reason);
    match source.state() {
        PodSourceState::Away => {
            let age = Duration::from_nanos(u64::try_from(source.age_ns).unwrap_or(0)).as_secs();
            let age = humantime::format_duration(Duration::from_secs(age));
            format!("away for {age}: {reason}")
        }
        _ => reason.into_owned(),
    }
}

fn section<T>(
    columns: &'static [Column<T>],
    rows: &[T],
    empty: &str,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out)?;
    if rows.is_empty() {
        return writeln!(out, "{empty}");
    }
    let columns = select(columns, &[], look.format).map_err(io::Error::other)?;
    Printer::new(columns, look, out).all(rows)
}

/// The whole answer for the data formats, with the protocol's names.
fn as_value<'a>(status: &'a StatusResponse, nodes: Option<&'a [Node]>) -> Value<'a> {
    let usage = status.usage.as_ref().map_or(Value::Absent, |usage| {
        Value::Map(vec![
            ("cpu_seconds", Value::Real(usage.cpu_seconds)),
            ("resident_bytes", Value::Bytes(usage.resident_bytes)),
            ("open_fds", Value::Number(usage.open_fds)),
            ("kernel_map_bytes", Value::Bytes(usage.kernel_map_bytes)),
        ])
    });
    let mut fields = vec![
        ("node", Value::text(&status.node)),
        ("version", Value::text(&status.version)),
        ("kernel_release", Value::text(&status.kernel_release)),
        ("started_ns", Value::TimeNs(status.started_ns)),
        ("uptime_seconds", Value::Number(uptime(status).as_secs())),
        ("signals", rows(node::SIGNALS, &status.signals)),
        ("interfaces", rows(node::INTERFACES, &status.interfaces)),
        ("maps", rows(node::MAPS, &status.maps)),
        ("losses", rows(node::LOSSES, &status.losses)),
        ("usage", usage),
        ("pod_source", status.pod_source.as_ref().map_or(Value::Absent, pod_source)),
        ("runtime_source", status.runtime_source.as_ref().map_or(Value::Absent, pod_source)),
        ("peer_source", status.peer_source.as_ref().map_or(Value::Absent, pod_source)),
        ("agent_source", status.agent_source.as_ref().map_or(Value::Absent, agent_source)),
    ];
    if let Some(nodes) = nodes {
        fields.push(("nodes", rows(NODES, nodes)));
    }
    Value::Map(fields)
}

fn agent_source(source: &AgentSource) -> Value<'_> {
    Value::Map(vec![
        ("source", Value::text(&source.source)),
        ("agents", Value::Number(source.agents)),
        ("problem", Value::text(&source.problem)),
    ])
}

fn pod_source(source: &PodSource) -> Value<'_> {
    let state = match source.state() {
        PodSourceState::Unspecified => "unspecified",
        PodSourceState::Static => "static",
        PodSourceState::Syncing => "syncing",
        PodSourceState::Connected => "connected",
        PodSourceState::Away => "away",
    };
    Value::Map(vec![
        ("kind", Value::text(&source.kind)),
        ("state", Value::text(state)),
        ("pods_known", Value::Number(source.pods_known)),
        ("age_seconds", Value::Number(u64::try_from(source.age_ns).unwrap_or(0) / 1_000_000_000)),
        ("reason", Value::text(&source.reason)),
    ])
}

fn rows<'a, T>(columns: &'static [Column<T>], rows: &'a [T]) -> Value<'a> {
    let columns = select(columns, &[], Format::Json).unwrap_or_default();
    let map =
        |row| Value::Map(columns.iter().map(|column| (column.name, (column.get)(row))).collect());
    Value::List(rows.iter().map(map).collect())
}

fn uptime(status: &StatusResponse) -> Duration {
    let started = Duration::from_nanos(u64::try_from(status.started_ns).unwrap_or(0));
    SystemTime::now().duration_since(UNIX_EPOCH + started).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use orb8_proto::{InterfaceStatus, Loss, SignalState, SignalStatus, Usage};

    use super::*;

    fn status() -> StatusResponse {
        StatusResponse {
            node: "node-1".into(),
            version: "0.1.0".into(),
            started_ns: 1_700_000_000_000_000_000,
            kernel_release: "6.18.0\u{1b}[2J".into(),
            signals: vec![SignalStatus {
                name: "network".into(),
                state: SignalState::Degraded.into(),
                reason: "no ring".into(),
            }],
            losses: vec![Loss {
                signal: "network".into(),
                stage: "kernel".into(),
                reason: "ring_full".into(),
                records: 12,
                ..Loss::default()
            }],
            interfaces: vec![InterfaceStatus {
                name: "veth1".into(),
                attached: "tcx".into(),
                ingress_bytes: 1000,
                kernel_ingress_bytes: 1007,
                ..InterfaceStatus::default()
            }],
            usage: Some(Usage { cpu_seconds: 1.5, resident_bytes: 40 << 20, ..Usage::default() }),
            maps: vec![],
            pod_source: Some(PodSource {
                kind: "kubernetes".into(),
                state: PodSourceState::Away.into(),
                pods_known: 37,
                age_ns: 12_400_000_000,
                reason: "connection refused\u{1b}[2J".into(),
            }),
            runtime_source: Some(PodSource {
                kind: "containerd".into(),
                state: PodSourceState::Connected.into(),
                pods_known: 38,
                age_ns: 0,
                reason: "2.0.1 at /run/containerd/containerd.sock".into(),
            }),
            peer_source: Some(PodSource {
                state: PodSourceState::Static.into(),
                reason: "connection tracking cannot be asked\u{1b}[2J".into(),
                ..PodSource::default()
            }),
            agent_source: Some(AgentSource {
                source: "kubernetes:orb8-system/orb8-agent".into(),
                agents: 12,
                problem: "the API is away\u{1b}[2J".into(),
            }),
        }
    }

    fn for_people(format: Format) -> String {
        let mut out = Vec::new();
        write_for_people(&status(), Look { format, headers: true, color: false }, &mut out)
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_see_states_with_reasons_and_the_gap_to_the_kernel() {
        let text = for_people(Format::Table);
        let pods = "37 known, from kubernetes, away for 12s: connection refused";
        let parts = ["node-1", "degraded   no ring", "40.0 MiB resident", "-7", "ring_full   12"];
        let runtime = "38 pods known to containerd 2.0.1 at /run/containerd/containerd.sock";
        let peers = "this node and its pods are known, connection tracking cannot be asked";
        let agents =
            "12 known, from kubernetes:orb8-system/orb8-agent; may be old: the API is away";
        for part in parts.into_iter().chain([pods, runtime, peers, agents]) {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(text.contains("no kernel maps"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(for_people(Format::Wide).contains("KERNEL-EGRESS-PACKETS"));
    }

    #[test]
    fn the_data_formats_hold_the_whole_answer() {
        let write = |format| {
            let mut out = Vec::new();
            document::write(&as_value(&status(), None), format, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let json: serde_json::Value = serde_json::from_str(&write(Format::Json)).unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_str(&write(Format::Yaml)).unwrap();
        assert_eq!(json["signals"][0]["state"], "degraded");
        assert_eq!(json["interfaces"][0]["difference_bytes"], -7);
        assert_eq!(json["usage"]["cpu_seconds"], 1.5);
        assert_eq!(json["maps"], serde_json::json!([]));
        assert_eq!(json["losses"], yaml["losses"]);
        assert_eq!(json["pod_source"]["state"], "away");
        assert_eq!(json["pod_source"]["pods_known"], 37);
    }
}
