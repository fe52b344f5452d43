//! One stream, from its request to its summary.

use std::{
    future::{pending, ready},
    io::Stdout,
    pin::pin,
    time::Duration,
};

use orb8_proto::{Anomaly, Event, NodeStatus, StreamRequest, event::Event as Kind};
use orb8_transport::ClientArgs;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use super::Told;
use crate::{
    client::{self, Session, answer},
    exit::{Exit, Failure},
    node_notes::NodeNotes,
    notes::Notes,
    output::{Look, Printer, columns::Column, stdout_closed},
    peer::Peer,
    standalone::{Purpose, Setup},
    summary::{Summary, node_records_lost},
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

/// Reads one stream and keeps what its summary needs.
pub(super) struct Follower<'n, T: 'static> {
    notes: &'n Notes,
    printer: Printer<T, Stdout>,
    /// The columns for records of several nodes, until it is known that they are.
    of_nodes: Option<Vec<&'static Column<T>>>,
    look: Look,
    /// The record in an event, if it is one of those asked for.
    pub(super) pick: fn(Kind) -> Option<T>,
    /// Why there may be no records.
    pub(super) nothing: fn(&NodeNotes) -> String,
    pub(super) told: Told,
    /// Anomalies, which are told beside the records.
    anomalies: u64,
}

impl<'n, T> Follower<'n, T> {
    pub(super) fn new(
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
            told: Told::default(),
            anomalies: 0,
        }
    }

    pub(super) async fn trace(
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
            self.told.ask_who_is_missing(&session, &node).await;
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
            Some(Kind::NodeStatus(status)) => {
                self.choose_columns(&status);
                self.told.status(&event.node, &status, self.notes);
            }
            Some(Kind::Loss(report)) => self.told.report(event.node, report, self.notes),
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

    /// A server's stream begins with a node's answer: before its first record a table gets a column
    /// for nodes.
    fn choose_columns(&mut self, status: &NodeStatus) {
        if status.answer.is_some()
            && let Some(columns) = self.of_nodes.take()
            && self.printer.rows() == 0
        {
            self.printer = Printer::stdout(columns, self.look);
        }
    }

    /// Ends the output and sums up.
    fn conclude(self, end: End, peer: &Peer, filter: &str) -> Result<Exit, Failure> {
        let received = self.printer.rows();
        let whole = match &end {
            End::Closed if self.told.last().is_some() => true,
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
        let answers = self.told.who_answered(whole);
        answers.tell(self.notes);
        let nothing = match self.told.nodes() {
            0 => (self.nothing)(self.told.agent()),
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
            .told
            .last()
            .map_or(0, |report| report.records_delivered.saturating_sub(received + self.anomalies));
        let report = self.told.losses();
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
