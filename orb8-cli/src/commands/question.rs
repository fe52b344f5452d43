//! What all queries have in common: whom to ask, when, and what to tell of the answer.

use std::{
    ops::AsyncFnOnce,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orb8_proto::{Coverage, NodeAnswer, NodeOutcome, NodeStatus, StatusRequest};
use tonic::Status;

use super::{filter_text, look, node_need};
use crate::{
    answers::Answers,
    args::{Cli, WindowArgs},
    client::{Client, Session, answer, question},
    exit::{Exit, Failure},
    node_notes::NodeNotes,
    notes::Notes,
    output::{
        Printer,
        columns::{self, Column},
    },
    standalone::{Purpose, Setup},
    summary::{Summary, grouped, loss_text, node_records_lost, rows_forgotten},
    target::{Need, Needs, Target},
};

/// How long standalone mode watches before it answers.
const DEFAULT_WATCH: Duration = Duration::from_secs(5);
/// A window that begins this much later than asked for is as good as that.
const SLACK: Duration = Duration::from_secs(1);
/// Nodes whose windows are told one by one.
const LISTED: usize = 5;

/// Beginning and end, in nanoseconds since the Unix epoch.
pub(super) type Window = (Option<i64>, Option<i64>);

/// One query, from its arguments to its exit code.
pub(super) struct Question<'a, T: 'static> {
    cli: &'a Cli,
    args: &'a WindowArgs,
    setup: &'a dyn Setup,
    notes: &'a Notes,
    columns: &'static [Column<T>],
    pub target: Target,
}

impl<'a, T> Question<'a, T> {
    /// Checks the arguments before anything starts.
    pub(super) async fn new(
        cli: &'a Cli,
        args: &'a WindowArgs,
        setup: &'a dyn Setup,
        notes: &'a Notes,
        columns: &'static [Column<T>],
    ) -> Result<Self, Failure> {
        columns::select(columns, &args.records.fields, args.records.output)
            .map_err(Failure::Usage)?;
        check_order(args)?;
        let target = Session::target(cli, setup, needs(args)).await?;
        Ok(Question { cli, args, setup, notes, columns, target })
    }

    /// Connects, watches if the agent is our own, asks, and prints the answer.
    pub(super) async fn ask(
        self,
        interface: &str,
        ask: impl AsyncFnOnce(&mut Client, Window) -> Result<(Vec<T>, Option<Coverage>), Status>,
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
            let window = (self.args.since.map(ago_ns), self.args.until.map(ago_ns));
            answer(&session.peer, ask(&mut session.client, window)).await
        }
        .await;
        let ours = session.is_local();
        session.close(self.notes).await;
        let (rows, coverage) = result?;
        let RecordLook { fields, format } = self.record_look();
        let of_nodes = coverage.as_ref().is_some_and(|coverage| coverage.nodes.len() > 1);
        let select = if of_nodes { columns::of_nodes } else { columns::select };
        let columns = select(self.columns, fields, format).map_err(Failure::Usage)?;
        Printer::stdout(columns, look(self.cli, &self.args.records))
            .all(&rows)
            .map_err(Failure::output)?;
        Ok(self.conclude(rows.len(), coverage, interface, ours))
    }

    fn record_look(&self) -> RecordLook<'_> {
        RecordLook { fields: &self.args.records.fields, format: self.args.records.output }
    }

    /// Tells how the agent does, and gives one of our own the time to see something.
    async fn watch(&self, session: &mut Session) -> Result<(), Failure> {
        let mut client = session.client.clone();
        let node = self.args.filter.node.clone().unwrap_or_default();
        // The agent of one node may be away, which the answer itself tells better.
        if !node.is_empty() {
            return Ok(());
        }
        let request = question(StatusRequest { node });
        let call = async { Ok(client.get_agent_status(request).await?.into_inner()) };
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

    /// Says who is missing, why there are no rows, or not all, and sums up. `ours`: the agent lived
    /// for this question only, so its losses are losses of this answer.
    fn conclude(
        &self,
        rows: usize,
        coverage: Option<Coverage>,
        interface: &str,
        ours: bool,
    ) -> Exit {
        let answers = coverage.as_ref().map_or_else(|| Answers::of_one(true), Answers::of);
        let coverage = coverage.unwrap_or_default();
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        answers.tell(self.notes);
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
        if let Some(text) = self.args.since.and_then(|since| short_window(since, &coverage)) {
            self.notes.warning(&text);
        }
        let since = match (ours, coverage.nodes.is_empty()) {
            (true, _) => "",
            (false, true) => " since the agent started",
            (false, false) => " since the agents started",
        };
        for loss in
            coverage.losses.iter().filter(|loss| loss.records + loss.packets + loss.calls > 0)
        {
            self.notes.warning(&format!("{}{since}", loss_text(loss)));
        }
        // An agent of our own should have kept them for us.
        let forgotten = if ours { rows_forgotten(&coverage.losses) } else { 0 };
        let summary = Summary {
            asked: answers.asked,
            answered: answers.answered(),
            received: rows.max(coverage.rows_matched),
            lost: node_records_lost(&coverage.losses).saturating_add(forgotten),
        };
        self.notes.info(&summary.to_string());
        let whole = if ours { summary.complete() } else { answers.whole() };
        if whole { Exit::Complete } else { Exit::Partial }
    }
}

struct RecordLook<'a> {
    fields: &'a [String],
    format: crate::output::Format,
}

/// What the window says about whom it can be asked of.
fn needs(args: &WindowArgs) -> Needs {
    let since = args.since.map(|_| Need {
        option: "--since",
        does: "looks back into what a running agent keeps; in standalone mode give --duration, the \
               time to watch",
    });
    let until = args.until.map(|_| Need {
        option: "--until",
        does: "ends the window that a running agent keeps; in standalone mode there is none before \
               now",
    });
    let duration = args.duration.map(|_| Need {
        option: "--duration",
        does: "is the time to watch in standalone mode; with a server give --since, how far to \
               look back",
    });
    Needs { server: since.or(until).or(node_need(args.filter.node.as_ref())), standalone: duration }
}

/// A window ends after it begins.
pub(super) fn check_order(args: &WindowArgs) -> Result<(), Failure> {
    match (args.since, args.until) {
        (Some(since), Some(until)) if since <= until => Err(Failure::Usage(format!(
            "the window would end before it begins: --since {} is how long ago it begins, --until {} \
             how long ago it ends",
            humantime::format_duration(since),
            humantime::format_duration(until)
        ))),
        _ => Ok(()),
    }
}

/// The time that long ago, as the wire has it.
fn ago_ns(ago: Duration) -> i64 {
    let then = SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH);
    let since_epoch = then.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}

/// Which nodes cover less than what was asked for.
fn short_window(since: Duration, coverage: &Coverage) -> Option<String> {
    let now = ago_ns(Duration::ZERO);
    let covers = |start_ns: i64| {
        let age = u64::try_from(now.saturating_sub(start_ns)).unwrap_or(0);
        Duration::from_nanos(age)
    };
    let is_short = |start_ns: i64| start_ns > 0 && covers(start_ns) + SLACK < since;
    let text = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
    let asked = text(since).to_string();
    let answered: Vec<&NodeAnswer> =
        coverage.nodes.iter().filter(|node| node.outcome() == NodeOutcome::Answered).collect();
    if answered.is_empty() {
        let start = coverage.start_time_ns;
        return is_short(start).then(|| {
            format!(
                "--since {asked}: the answer begins {} ago, no more is kept",
                text(covers(start))
            )
        });
    }
    let short: Vec<_> = answered.iter().filter(|node| is_short(node.start_time_ns)).collect();
    if short.is_empty() {
        return None;
    }
    let listed: Vec<String> = short
        .iter()
        .take(LISTED)
        .map(|node| format!("{} {}", node.node, text(covers(node.start_time_ns))))
        .collect();
    let more = match short.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "--since {asked}: {} of {} nodes keep less: {}{more}",
        short.len(),
        answered.len(),
        listed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ago: u64) -> NodeAnswer {
        NodeAnswer {
            node: name.into(),
            outcome: NodeOutcome::Answered.into(),
            start_time_ns: ago_ns(Duration::from_secs(ago)),
            ..NodeAnswer::default()
        }
    }

    #[test]
    fn a_window_that_is_shorter_than_asked_for_is_told() {
        let day = Duration::from_secs(86_400);
        let one = Coverage {
            start_time_ns: ago_ns(Duration::from_secs(300)),
            node: "a".into(),
            ..Coverage::default()
        };
        let text = short_window(day, &one).unwrap();
        assert!(text.starts_with("--since 1day: the answer begins 5m ago"), "{text}");
        assert_eq!(short_window(Duration::from_secs(300), &one), None);
        let nodes = vec![node("old", 86_401), node("young", 45)];
        let many = Coverage { nodes, ..Coverage::default() };
        let text = short_window(day, &many).unwrap();
        assert_eq!(text, "--since 1day: 1 of 2 nodes keep less: young 45s");
    }
}
