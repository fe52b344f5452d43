//! `orb8 trace`: records as they happen, until the time is over or the user has seen enough.

use std::{
    collections::BTreeMap,
    future::{pending, ready},
    io::Stdout,
    pin::pin,
    time::Duration,
};

use orb8_proto::{
    Anomaly, Event, LossReport, NodeAnswer, NodeOutcome, NodeQuery, NodeState, NodeStatus,
    StreamRequest, event::Event as Kind,
};
use orb8_transport::ClientArgs;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{filter_text, interface_filter, look, node_need};
use crate::{
    answers::{self, Answers},
    args::{Cli, FilterArgs, SyscallAgentArgs, TraceNetworkArgs, TraceSyscallArgs},
    client::{self, Session, answer},
    exit::{Exit, Failure},
    node_notes::NodeNotes,
    notes::{Note, Notes},
    output::{
        Look, Printer,
        columns::{self, Column},
        flows, stdout_closed, syscalls,
    },
    peer::Peer,
    standalone::{Purpose, Setup},
    summary::{Summary, loss_text, node_records_lost},
    target::{Needs, Target},
};

/// How long after its time a stream may still end by itself, and how long it is drained after
/// Ctrl-C. An agent needs one harvest of its tables for the last records.
const GRACE: Duration = Duration::from_secs(5);
/// For a server to say which nodes there are, after the user has left.
const LAST_QUESTION: Duration = Duration::from_secs(2);

/// Why a stream was read no further.
enum End {
    /// The agent closed it.
    Closed,
    /// The connection broke, or the agent gave up.
    Broken(Status),
    /// It did not end in time.
    Overtime,
    /// The user left, and the agent goes on without us.
    Left,
}

pub(super) async fn network(
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

pub(super) async fn syscall(
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
    follower.node = NodeNotes::of_signal("syscall");
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

/// Reads one stream and keeps what its summary needs.
struct Follower<'n, T: 'static> {
    notes: &'n Notes,
    printer: Printer<T, Stdout>,
    /// The columns for records of several nodes, until it is known that they are.
    of_nodes: Option<Vec<&'static Column<T>>>,
    look: Look,
    /// The record in an event, if it is one of those asked for.
    pick: fn(Kind) -> Option<T>,
    /// Why there may be no records.
    nothing: fn(&NodeNotes) -> String,
    /// The agent that is asked.
    node: NodeNotes,
    /// Those that a server asks, by name.
    cluster: Cluster,
    /// Anomalies, which are told beside the records.
    anomalies: u64,
    /// The last report of the other side, and of a server's nodes, by name.
    reports: BTreeMap<String, LossReport>,
    /// The report that ends the stream.
    last: Option<LossReport>,
}

/// What a server's stream told of its nodes. There are as many as the server has.
#[derive(Default)]
struct Cluster {
    notes: BTreeMap<String, NodeNotes>,
    answers: BTreeMap<String, NodeAnswer>,
}

impl<'n, T> Follower<'n, T> {
    fn new(
        columns: Vec<&'static Column<T>>,
        of_nodes: Vec<&'static Column<T>>,
        look: Look,
        notes: &'n Notes,
    ) -> Self {
        Follower {
            notes,
            printer: Printer::stdout(columns, look),
            of_nodes: Some(of_nodes),
            look,
            pick: |_| None,
            nothing: |_| String::new(),
            node: NodeNotes::default(),
            cluster: Cluster::default(),
            anomalies: 0,
            reports: BTreeMap::new(),
            last: None,
        }
    }

    async fn trace(
        mut self,
        connection: &ClientArgs,
        target: &Target,
        setup: &dyn Setup,
        request: StreamRequest,
        duration: Option<Duration>,
        filter: &str,
    ) -> Result<Exit, Failure> {
        let mut session =
            Session::open(target, connection, setup, Purpose::Watch, self.notes).await?;
        if !request.node.is_empty() {
            self.of_nodes = None;
        }
        let node = request.node.clone();
        let result = self.follow(&mut session, request, duration).await;
        let peer = session.peer.clone();
        if let Ok(End::Left) = &result {
            self.ask_who_is_missing(&session, &node).await;
        }
        session.close(self.notes).await;
        self.conclude(result?, &peer, filter)
    }

    /// Reads to the end. `duration` is also asked of the agent; here it is the guard against one
    /// that hangs.
    async fn follow(
        &mut self,
        session: &mut Session,
        request: StreamRequest,
        duration: Option<Duration>,
    ) -> Result<End, Failure> {
        let mut deadline = duration.map(|time| Instant::now() + time + GRACE);
        let mut client = session.client.clone();
        let call = async { Ok(client.stream_events(request).await?.into_inner()) };
        let mut stream = tokio::select! {
            opened = answer(&session.peer, call) => opened?,
            () = session.interrupt.requested() => return Ok(End::Left),
            () = until(deadline) => return Ok(End::Overtime),
        };
        let mut closed = pin!(stdout_closed());
        let mut stopping: Option<JoinHandle<()>> = None;
        let mut unflushed = false;
        let end = loop {
            tokio::select! {
                // In this order, so that a stream that never pauses cannot hold up the rest.
                biased;
                () = session.interrupt.requested(), if stopping.is_none() => {
                    let Some(local) = session.take_local() else { break End::Left };
                    let notes = *self.notes;
                    stopping = Some(tokio::spawn(async move { client::stop(local, &notes).await }));
                    deadline = Some(Instant::now() + GRACE);
                }
                () = until(deadline) => break End::Overtime,
                () = &mut closed => return Err(Failure::OutputClosed),
                event = stream.message() => match event {
                    Ok(Some(event)) => unflushed |= self.take(event)?,
                    Ok(None) => break End::Closed,
                    Err(status) => break End::Broken(status),
                },
                // Nothing else is ready: the reader should have what there is.
                () = ready(()), if unflushed => {
                    self.printer.flush().map_err(Failure::output)?;
                    unflushed = false;
                }
            }
        };
        drop::<Streaming<Event>>(stream);
        if let Some(stopping) = stopping {
            // It has its own deadline.
            let _ = stopping.await;
        }
        Ok(end)
    }

    /// Takes in one event; says whether a record was written.
    fn take(&mut self, event: Event) -> Result<bool, Failure> {
        match event.event {
            Some(Kind::NodeStatus(status)) => self.status(&event.node, &status),
            Some(Kind::Loss(report)) => self.report(event.node, report),
            Some(Kind::Anomaly(anomaly)) => {
                self.anomalies += 1;
                self.notes.warning(&anomaly_text(&anomaly));
            }
            Some(other) => {
                if let Some(record) = (self.pick)(other) {
                    self.printer.record(&record).map_err(Failure::output)?;
                    return Ok(true);
                }
            }
            // A newer agent's event of a kind that this version does not know.
            None => (),
        }
        Ok(false)
    }

    /// Tells what is new of a node.
    fn status(&mut self, node: &str, status: &NodeStatus) {
        let Some(answer) = &status.answer else {
            for note in self.node.update(status) {
                self.notes.tell(&note);
            }
            return;
        };
        if let Some(columns) = self.of_nodes.take()
            && self.printer.rows() == 0
        {
            self.printer = Printer::stdout(columns, self.look);
        }
        let known = self.cluster.answers.insert(node.to_owned(), answer.clone());
        let was_well = known.is_none_or(|known| known.outcome() == NodeOutcome::Answered);
        let is_well = answer.outcome() == NodeOutcome::Answered;
        if is_well != was_well {
            let text = answers::text(answer);
            let note = if is_well { Note::Info(text) } else { Note::Warning(text) };
            self.notes.tell(&note);
        }
        let notes =
            self.cluster.notes.entry(node.to_owned()).or_insert_with(|| self.node.another());
        // News of whether it answers has nothing else in it.
        if status.signals.is_empty() && status.message.is_empty() {
            return;
        }
        for note in notes.update(status) {
            self.notes.tell(&note.of(node));
        }
    }

    /// Tells what was lost since the last report of the same node, or of all.
    fn report(&mut self, node: String, report: LossReport) {
        let before = self.reports.remove(&node).unwrap_or_default();
        let tell = |text: String| {
            let warning = Note::Warning(text);
            self.notes.tell(&if self.cluster.notes.contains_key(&node) {
                warning.of(&node)
            } else {
                warning
            });
        };
        let ours = report.records_lost.saturating_sub(before.records_lost);
        if ours > 0 {
            tell(format!("{ours} records of this trace lost: it reads too slowly"));
        }
        for loss in &report.losses {
            let known = before.losses.iter().any(|known| known == loss);
            if !known && loss.records + loss.packets + loss.calls > 0 {
                tell(loss_text(loss));
            }
        }
        if report.r#final {
            self.last = Some(report.clone());
        }
        self.reports.insert(node, report);
    }

    /// The user left before the final report, which would have named the nodes of a server that did
    /// not answer. Those that told nothing so far are asked about.
    async fn ask_who_is_missing(&mut self, session: &Session, node: &str) {
        if self.cluster.answers.is_empty() && !session.peer.by_forward {
            return;
        }
        let mut client = session.client.clone();
        let asking = client.list_nodes(NodeQuery { name: node.to_owned() });
        // What cannot be known by then stays unknown: the user waits.
        let Ok(Ok(nodes)) = timeout(LAST_QUESTION, asking).await else { return };
        for known in nodes.into_inner().nodes {
            let wanted = node.is_empty() || known.name == node;
            if wanted && !self.cluster.answers.contains_key(&known.name) {
                let outcome = match known.state() {
                    NodeState::Unreachable => NodeOutcome::Unreachable,
                    _ => NodeOutcome::Late,
                };
                let answer = NodeAnswer {
                    node: known.name.clone(),
                    outcome: outcome.into(),
                    reason: known.reason,
                    ..NodeAnswer::default()
                };
                self.cluster.answers.insert(known.name, answer);
            }
        }
    }

    /// Who was asked, and who answered to the end.
    fn answers(&self, whole: bool) -> Answers {
        match &self.last {
            Some(report) if !report.nodes.is_empty() => Answers::of_many(&report.nodes),
            // A server that has no agents: an agent's report has its name.
            Some(_) if self.reports.keys().all(String::is_empty) && self.is_of_server() => {
                Answers::default()
            }
            _ if self.cluster.answers.is_empty() => Answers::of_one(whole),
            _ if whole => Answers::of_many(self.cluster.answers.values()),
            _ => {
                let mut answers = Answers::of_many(self.cluster.answers.values());
                // The stream broke, and with it what each of them would have said.
                let missing =
                    |answer: &NodeAnswer| NodeAnswer { node: String::new(), ..answer.clone() };
                answers.missing = self.cluster.answers.values().map(missing).collect();
                answers
            }
        }
    }

    /// Whether nothing that came is an agent's own.
    fn is_of_server(&self) -> bool {
        self.node.attached().is_none()
    }

    /// Ends the output and sums up.
    fn conclude(self, end: End, peer: &Peer, filter: &str) -> Result<Exit, Failure> {
        let received = self.printer.rows();
        let whole = match &end {
            End::Closed if self.last.is_some() => true,
            End::Closed => {
                self.notes.error(&format!("{peer} ended the stream without its final report"));
                false
            }
            End::Broken(status) => {
                self.notes.error(&format!("the stream broke: {}", peer.text(status)));
                false
            }
            End::Overtime => {
                self.notes.error(&format!(
                    "{peer} did not end the stream within {} s of its time",
                    GRACE.as_secs()
                ));
                false
            }
            End::Left => true,
        };
        let answers = self.answers(whole);
        answers.tell(self.notes);
        let nothing = match self.cluster.answers.len() {
            0 => (self.nothing)(&self.node),
            1 => String::from("its node told of none"),
            many => format!("{many} nodes told of none"),
        };
        self.printer.finish().map_err(Failure::output)?;
        if received == 0 && whole {
            self.notes.info(&format!("no records{filter}: {nothing}"));
        }
        // A record that was sent and that did not get here is lost too. Before the final report it
        // may just be under way.
        let in_transit = self
            .last
            .as_ref()
            .map_or(0, |report| report.records_delivered.saturating_sub(received + self.anomalies));
        let report = self.last.or_else(|| sum(self.reports)).unwrap_or_default();
        let lost = [report.records_lost, node_records_lost(&report.losses), in_transit];
        let summary = Summary {
            asked: answers.asked,
            answered: answers.answered(),
            received,
            lost: lost.into_iter().fold(0, u64::saturating_add),
        };
        self.notes.info(&summary.to_string());
        Ok(if summary.complete() { Exit::Complete } else { Exit::Partial })
    }
}

/// What was told of losses so far: a server's own report has its nodes' in it.
fn sum(mut reports: BTreeMap<String, LossReport>) -> Option<LossReport> {
    if let Some(report) = reports.remove("") {
        return Some(report);
    }
    reports.into_values().reduce(|mut sum, report| {
        sum.records_lost = sum.records_lost.saturating_add(report.records_lost);
        sum.losses.extend(report.losses);
        sum
    })
}

/// An anomaly as a line for people.
fn anomaly_text(anomaly: &Anomaly) -> String {
    let Anomaly { namespace, pod_name, container, unit, summary, evidence, .. } = anomaly;
    let of = match unit.as_str() {
        "" => format!("{namespace}/{pod_name} ({container})"),
        unit => format!("host:{unit}"),
    };
    let state = if anomaly.cleared_ns > 0 { "anomaly is over" } else { "anomaly" };
    let because = evidence.first().map(|text| format!(": {text}")).unwrap_or_default();
    format!("{state} in {of}: {summary}{because}")
}

/// Waits for a deadline that need not exist.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
