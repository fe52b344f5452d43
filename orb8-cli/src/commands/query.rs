//! `orb8 query`: the totals of a window, as one table.

use std::{
    ops::AsyncFnOnce,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orb8_proto::{
    AnomalyKind, AnomalyQuery, BaselineState, Coverage, FlowQuery, FlowSort, NodeStatus, PodQuery,
    PodSort, StatusRequest, SyscallQuery, SyscallSort,
};
use tonic::Status;

use super::{filter_text, interface_filter, look, no_interface_filter};
use crate::{
    args::{
        self, Cli, FlowOrder, PodOrder, QueryAnomaliesArgs, QueryFlowsArgs, QueryPodsArgs,
        QuerySyscallsArgs, SyscallAgentArgs, SyscallOrder, WindowArgs,
    },
    client::{Client, Session, answer},
    exit::{Exit, Failure},
    node_notes::NodeNotes,
    notes::Notes,
    output::{
        Printer, anomalies as anomaly_columns,
        columns::{self, Column},
        flows as flow_columns, pods as pod_columns,
        syscalls::{self as syscall_columns, Counted},
    },
    standalone::{Purpose, Setup},
    summary::{Summary, grouped, loss_text, node_records_lost},
    target::Target,
};

/// How long standalone mode watches before it answers.
const DEFAULT_WATCH: Duration = Duration::from_secs(5);

pub(super) async fn flows(
    cli: &Cli,
    args: &QueryFlowsArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let (question, columns) =
        Question::new(cli, &args.window, &args.agent, notes, flow_columns::COLUMNS)?;
    let interface = interface_filter(&question.target, &args.agent.interface)?;
    let mut query = FlowQuery {
        namespace: args.window.filter.namespace.clone().unwrap_or_default(),
        pod_name: args.window.filter.pod.clone().unwrap_or_default(),
        limit: args.window.limit.unwrap_or(0),
        sort_by: match args.sort_by {
            FlowOrder::Bytes => FlowSort::Bytes,
            FlowOrder::Packets => FlowSort::Packets,
            FlowOrder::Time => FlowSort::Time,
        }
        .into(),
        interface: interface.clone(),
        ..FlowQuery::default()
    };
    let ask = async |client: &mut Client, start_time_ns| {
        query.start_time_ns = start_time_ns;
        let response = client.query_flows(query).await?.into_inner();
        Ok((response.flows, response.coverage))
    };
    question.ask(columns, &interface, ask).await
}

pub(super) async fn pods(cli: &Cli, args: &QueryPodsArgs, notes: &Notes) -> Result<Exit, Failure> {
    let (question, columns) =
        Question::new(cli, &args.window, &args.agent, notes, pod_columns::COLUMNS)?;
    no_interface_filter(&question.target, &args.agent.interface, "query pods")?;
    let mut query = PodQuery {
        namespace: args.window.filter.namespace.clone().unwrap_or_default(),
        pod_name: args.window.filter.pod.clone().unwrap_or_default(),
        limit: args.window.limit.unwrap_or(0),
        sort_by: match args.sort_by {
            PodOrder::Bytes => PodSort::Bytes,
            PodOrder::Packets => PodSort::Packets,
            PodOrder::Flows => PodSort::Flows,
            PodOrder::Name => PodSort::Name,
        }
        .into(),
        ..PodQuery::default()
    };
    let ask = async |client: &mut Client, start_time_ns| {
        query.start_time_ns = start_time_ns;
        let response = client.query_pods(query).await?.into_inner();
        Ok((response.pods, response.coverage))
    };
    question.ask(columns, "", ask).await
}

pub(super) async fn syscalls(
    cli: &Cli,
    args: &QuerySyscallsArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let ends = matches!(args.sort_by, SyscallOrder::Errors | SyscallOrder::Latency);
    let agent = SyscallAgentArgs { ends, ..args.agent.clone() };
    let (question, columns) =
        Question::new(cli, &args.window, &agent, notes, syscall_columns::COUNTS)?;
    let mut query = SyscallQuery {
        namespace: args.window.filter.namespace.clone().unwrap_or_default(),
        pod_name: args.window.filter.pod.clone().unwrap_or_default(),
        limit: args.window.limit.unwrap_or(0),
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
    let ask = async |client: &mut Client, start_time_ns| {
        query.start_time_ns = start_time_ns;
        let response = client.query_syscalls(query).await?.into_inner();
        let covered = response.coverage.as_ref().map_or(0, |c| c.end_time_ns - c.start_time_ns);
        let seconds = Duration::from_nanos(u64::try_from(covered).unwrap_or(0)).as_secs_f64();
        let rows = response.syscalls.into_iter().map(|count| Counted { count, seconds });
        Ok((rows.collect(), response.coverage))
    };
    question.ask(columns, "", ask).await
}

pub(super) async fn anomalies(
    cli: &Cli,
    args: &QueryAnomaliesArgs,
    notes: &Notes,
) -> Result<Exit, Failure> {
    let (question, columns) =
        Question::new(cli, &args.window, &args.agent, notes, anomaly_columns::COLUMNS)?;
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
        kinds: args.kind.iter().map(kind).collect(),
        active_only: args.active,
        ..AnomalyQuery::default()
    };
    let ask = async |client: &mut Client, start_time_ns| {
        query.start_time_ns = start_time_ns;
        let response = client.query_anomalies(query).await?.into_inner();
        let (all, is_learnt) = (response.baselines.len(), BaselineState::Learnt);
        let learnt = response.baselines.iter().filter(|b| b.state() == is_learnt).count();
        notes.info(&format!("{learnt} of {all} workloads are learnt"));
        Ok((response.anomalies, response.coverage))
    };
    question.ask(columns, "", ask).await
}

/// Columns of a record type, as `--fields` or the format chose them.
type Columns<T> = Vec<&'static Column<T>>;

/// What all queries have in common.
struct Question<'a> {
    cli: &'a Cli,
    args: &'a WindowArgs,
    setup: &'a dyn Setup,
    notes: &'a Notes,
    target: Target,
}

impl<'a> Question<'a> {
    /// Checks the arguments before anything starts.
    fn new<T>(
        cli: &'a Cli,
        args: &'a WindowArgs,
        setup: &'a dyn Setup,
        notes: &'a Notes,
        all: &'static [Column<T>],
    ) -> Result<(Self, Columns<T>), Failure> {
        let columns = columns::select(all, &args.records.fields, args.records.output)
            .map_err(Failure::Usage)?;
        let target = Session::target(cli, setup)?;
        let wrong = match target {
            Target::Standalone { .. } if args.since.is_some() => Some(
                "--since looks back into what a running agent keeps; in standalone mode give \
                 --duration, the time to watch",
            ),
            Target::Server { .. } if args.duration.is_some() => Some(
                "--duration is the time to watch in standalone mode; with a server give --since, \
                 how far to look back",
            ),
            _ => None,
        };
        match wrong {
            Some(message) => Err(Failure::Usage(message.to_owned())),
            None => Ok((Question { cli, args, setup, notes, target }, columns)),
        }
    }

    /// Connects, watches if the agent is our own, asks, and prints the answer.
    async fn ask<T>(
        self,
        columns: Columns<T>,
        interface: &str,
        ask: impl AsyncFnOnce(&mut Client, Option<i64>) -> Result<(Vec<T>, Option<Coverage>), Status>,
    ) -> Result<Exit, Failure> {
        let mut session = Session::open(
            &self.target,
            &self.cli.global.connection,
            self.setup,
            Purpose::Watch,
            self.notes,
        )
        .await?;
        let result = async {
            self.watch(&mut session).await?;
            let start = self.args.since.map(since_epoch_ns);
            answer(&session.peer, ask(&mut session.client, start)).await
        }
        .await;
        let ours = session.is_local();
        session.close(self.notes).await;
        let (rows, coverage) = result?;
        Printer::stdout(columns, look(self.cli, &self.args.records))
            .all(&rows)
            .map_err(Failure::output)?;
        let coverage = coverage.unwrap_or_default();
        Ok(self.conclude(rows.len(), &coverage, interface, ours))
    }

    /// Tells how the agent does, and gives one of our own the time to see something.
    async fn watch(&self, session: &mut Session) -> Result<(), Failure> {
        let mut client = session.client.clone();
        let call =
            async { Ok(client.get_agent_status(StatusRequest::default()).await?.into_inner()) };
        let status = answer(&session.peer, call).await?;
        let mut node = NodeNotes::of_signal(self.setup.signal());
        let notes = if session.is_local() {
            let (signals, interfaces) = (status.signals, status.interfaces);
            node.update(&NodeStatus { signals, interfaces, ..NodeStatus::default() })
        } else {
            node.warnings(&status.signals)
        };
        for note in notes {
            self.notes.tell(&note);
        }
        if session.is_local() {
            tokio::select! {
                () = tokio::time::sleep(self.args.duration.unwrap_or(DEFAULT_WATCH)) => (),
                () = session.interrupt.requested() => {
                    self.notes.info("interrupted: the answer covers the time until now");
                }
            }
        }
        Ok(())
    }

    /// Says why there are no rows, or not all, and sums up. `ours`: the agent lived for this
    /// question only, so its losses are losses of this answer.
    fn conclude(&self, rows: usize, coverage: &Coverage, interface: &str, ours: bool) -> Exit {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        if rows == 0 {
            let filter = filter_text(&self.args.filter, interface);
            let reason = match coverage.empty_reason.as_str() {
                "" => "the agent gave no reason",
                reason => reason,
            };
            self.notes.info(&format!("no rows{filter}: {reason}"));
        } else if rows < coverage.rows_matched {
            self.notes.info(&format!(
                "{} of {} rows shown: --limit takes more",
                grouped(rows),
                grouped(coverage.rows_matched)
            ));
        }
        let since = if ours { "" } else { " since the agent started" };
        for loss in
            coverage.losses.iter().filter(|loss| loss.records + loss.packets + loss.calls > 0)
        {
            self.notes.warning(&format!("{}{since}", loss_text(loss)));
        }
        let lost = node_records_lost(&coverage.losses);
        let summary =
            Summary { asked: 1, answered: 1, received: rows.max(coverage.rows_matched), lost };
        self.notes.info(&summary.to_string());
        if ours && !summary.complete() { Exit::Partial } else { Exit::Complete }
    }
}

/// The time that long ago, as the wire has it.
fn since_epoch_ns(ago: Duration) -> i64 {
    let then = SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH);
    let since_epoch = then.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}
