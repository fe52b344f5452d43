//! `orb8 trace`: records as they happen, until the time is over or the user has seen enough.

use std::{
    future::{pending, ready},
    io::Stdout,
    pin::pin,
    time::Duration,
};

use orb8_proto::{Anomaly, Event, LossReport, StreamRequest, event::Event as Kind};
use orb8_transport::ClientArgs;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use super::{filter_text, interface_filter, look};
use crate::{
    args::{Cli, FilterArgs, SyscallAgentArgs, TraceNetworkArgs, TraceSyscallArgs},
    client::{self, Session, answer, status_text},
    exit::{Exit, Failure},
    node_notes::NodeNotes,
    notes::Notes,
    output::{Printer, columns, flows, stdout_closed, syscalls},
    standalone::{Purpose, Setup},
    summary::{Summary, loss_text, node_records_lost},
    target::Target,
};

/// How long after its time a stream may still end by itself, and how long it is drained after
/// Ctrl-C. An agent needs one harvest of its tables for the last records.
const GRACE: Duration = Duration::from_secs(5);

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
    let target = Session::target(cli, &args.agent)?;
    let interface = interface_filter(&target, &args.agent.interface)?;
    let filter = filter_text(&args.filter, &interface);
    let request = StreamRequest { interface, ..request("network", &args.filter, args.duration) };
    let mut follower = Follower::new(Printer::stdout(columns, look(cli, &args.records)), notes);
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
    let target = Session::target(cli, &agent)?;
    let filter = filter_text(&args.filter, "");
    let request = StreamRequest {
        syscalls: args.syscall.clone(),
        errors_only: args.errors,
        ..request("syscall", &args.filter, args.duration)
    };
    let mut follower = Follower::new(Printer::stdout(columns, look(cli, &args.records)), notes);
    follower.node = NodeNotes::of_signal("syscall");
    follower.pick = |event| match event {
        Kind::Syscall(call) => Some(call),
        _ => None,
    };
    follower.nothing = |_| String::from("no call that is told was made");
    follower.trace(&cli.global.connection, &target, &agent, request, args.duration, &filter).await
}

fn request(signal: &str, filter: &FilterArgs, duration: Option<Duration>) -> StreamRequest {
    StreamRequest {
        namespace: filter.namespace.clone().unwrap_or_default(),
        pod_name: filter.pod.clone().unwrap_or_default(),
        signals: vec![signal.to_owned()],
        duration_ns: duration.and_then(|time| i64::try_from(time.as_nanos()).ok()),
        ..StreamRequest::default()
    }
}

/// Reads one stream and keeps what its summary needs.
struct Follower<'n, T: 'static> {
    notes: &'n Notes,
    printer: Printer<T, Stdout>,
    /// The record in an event, if it is one of those asked for.
    pick: fn(Kind) -> Option<T>,
    /// Why there may be no records.
    nothing: fn(&NodeNotes) -> String,
    node: NodeNotes,
    /// Anomalies, which are told beside the records.
    anomalies: u64,
    last_report: Option<LossReport>,
}

impl<'n, T> Follower<'n, T> {
    fn new(printer: Printer<T, Stdout>, notes: &'n Notes) -> Self {
        Follower {
            notes,
            printer,
            pick: |_| None,
            nothing: |_| String::new(),
            node: NodeNotes::default(),
            anomalies: 0,
            last_report: None,
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
        let result = self.follow(&mut session, request, duration).await;
        let peer = session.peer.clone();
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
            Some(Kind::NodeStatus(status)) => {
                for note in self.node.update(&status) {
                    self.notes.tell(&note);
                }
            }
            Some(Kind::Loss(report)) => self.report(report),
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

    /// Tells what was lost since the last report.
    fn report(&mut self, report: LossReport) {
        let before = self.last_report.take().unwrap_or_default();
        let ours = report.records_lost.saturating_sub(before.records_lost);
        if ours > 0 {
            self.notes.warning(&format!("{ours} records of this trace lost: it reads too slowly"));
        }
        for loss in &report.losses {
            let known = before.losses.iter().any(|known| known == loss);
            if !known && loss.records + loss.packets + loss.calls > 0 {
                self.notes.warning(&loss_text(loss));
            }
        }
        self.last_report = Some(report);
    }

    /// Ends the output and sums up.
    fn conclude(self, end: End, peer: &str, filter: &str) -> Result<Exit, Failure> {
        let received = self.printer.rows();
        self.printer.finish().map_err(Failure::output)?;
        let report = self.last_report.unwrap_or_default();
        let whole = match &end {
            End::Closed if report.r#final => true,
            End::Closed => {
                self.notes.error(&format!("{peer} ended the stream without its final report"));
                false
            }
            End::Broken(status) => {
                self.notes.error(&format!("the stream broke: {}", status_text(peer, status)));
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
        if received == 0 && whole {
            let reason = (self.nothing)(&self.node);
            self.notes.info(&format!("no records{filter}: {reason}"));
        }
        // A record that the agent sent and that did not get here is lost too. Before the final
        // report it may just be under way.
        let in_transit = match &report {
            LossReport { r#final: true, records_delivered, .. } => {
                records_delivered.saturating_sub(received + self.anomalies)
            }
            _ => 0,
        };
        let lost = [report.records_lost, node_records_lost(&report.losses), in_transit];
        let summary = Summary {
            asked: 1,
            answered: u64::from(whole),
            received,
            lost: lost.into_iter().fold(0, u64::saturating_add),
        };
        self.notes.info(&summary.to_string());
        Ok(if summary.complete() { Exit::Complete } else { Exit::Partial })
    }
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
