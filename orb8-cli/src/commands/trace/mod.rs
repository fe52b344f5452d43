//! `orb8 trace`: records as they happen, until the time is over or the user has seen enough.

mod follower;
mod told;

use std::time::Duration;

use orb8_proto::{StreamRequest, event::Event as Kind};

use self::{follower::Follower, told::Told};
use super::{filter_text, interface_filter, look, node_need};
use crate::{
    args::{Cli, FilterArgs, SyscallAgentArgs, TraceNetworkArgs, TraceSyscallArgs},
    client::Session,
    exit::{Exit, Failure},
    notes::Notes,
    output::{columns, flows, syscalls},
    target::Needs,
};

pub(crate) async fn network(
    cli: &Cli,
    args: &TraceNetworkArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let columns = columns::select(flows::COLUMNS, &args.records.fields, args.records.output)
        .map_err(Failure::Usage)?;
    let target = Session::target(cli, &args.agent, needs(&args.filter)).await?;
    let interface = interface_filter(&target, &args.agent.interface)?;
    let filter = filter_text(&args.filter, &interface);
    let request = StreamRequest { interface, ..request("network", &args.filter, args.duration) };
    let of_nodes = columns::of_nodes(flows::COLUMNS, &args.records.fields, args.records.output)
        .map_err(Failure::Usage)?;
    let mut follower = Follower::new(columns, of_nodes, look(cli, &args.records), notes);
    follower.pick = |event| match event {
        Kind::NetworkFlow(flow) => Some(flow),
        _ => None,
    };
    follower.nothing = |node| match node.attached() {
        None => String::from("it ended before the agent had answered"),
        Some(0) => String::from("no interface is attached"),
        Some(1) => String::from("no packet was seen on the attached interface"),
        Some(many) => format!("no packet was seen on the {many} attached interfaces"),
    };
    follower
        .trace(&cli.global.connection, &target, &args.agent, request, args.duration, &filter)
        .await
}

pub(crate) async fn syscall(
    cli: &Cli,
    args: &TraceSyscallArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let columns = columns::select(syscalls::EVENTS, &args.records.fields, args.records.output)
        .map_err(Failure::Usage)?;
    let agent = SyscallAgentArgs { ends: args.errors, ..args.agent.clone() };
    let target = Session::target(cli, &agent, needs(&args.filter)).await?;
    let filter = filter_text(&args.filter, "");
    let request = StreamRequest {
        syscalls: args.syscall.clone(),
        errors_only: args.errors,
        ..request("syscall", &args.filter, args.duration)
    };
    let of_nodes = columns::of_nodes(syscalls::EVENTS, &args.records.fields, args.records.output)
        .map_err(Failure::Usage)?;
    let mut follower = Follower::new(columns, of_nodes, look(cli, &args.records), notes);
    follower.told = Told::of_signal("syscall");
    follower.pick = |event| match event {
        Kind::Syscall(call) => Some(call),
        _ => None,
    };
    follower.nothing = |_| String::from("no call that is told was made");
    follower.trace(&cli.global.connection, &target, &agent, request, args.duration, &filter).await
}

fn needs(filter: &FilterArgs) -> Needs {
    Needs { server: node_need(filter.node.as_ref()), ..Needs::default() }
}

fn request(signal: &str, filter: &FilterArgs, duration: Option<Duration>) -> StreamRequest {
    StreamRequest {
        namespace: filter.namespace.clone().unwrap_or_default(),
        pod_name: filter.pod.clone().unwrap_or_default(),
        signals: vec![signal.to_owned()],
        node: filter.node.clone().unwrap_or_default(),
        duration_ns: duration.and_then(|time| i64::try_from(time.as_nanos()).ok()),
        ..StreamRequest::default()
    }
}
