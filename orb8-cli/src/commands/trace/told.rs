//! What a stream told of its nodes: how they do, what they lost, and which of them are missing.

use std::{collections::BTreeMap, time::Duration};

use orb8_proto::{LossReport, NodeAnswer, NodeOutcome, NodeQuery, NodeState, NodeStatus};
use tokio::time::timeout;

use crate::{
    answers::{self, Answers},
    client::Session,
    node_notes::NodeNotes,
    notes::{Note, Notes},
    summary::loss_text,
};

/// For a server to say which nodes there are, after the user has left.
const LAST_QUESTION: Duration = Duration::from_secs(2);

/// Of one stream. A server's has as many nodes as that knows.
#[derive(Default)]
pub(super) struct Told {
    /// Of the agent that is asked.
    agent: NodeNotes,
    /// Of those that a server asks, by name.
    nodes: BTreeMap<String, NodeNotes>,
    answers: BTreeMap<String, NodeAnswer>,
    /// The last report of the other side, and of a server's nodes, by name.
    reports: BTreeMap<String, LossReport>,
    /// The report that ends the stream.
    last: Option<LossReport>,
}

impl Told {
    /// Of a signal that may be one of several.
    pub(super) fn of_signal(signal: &'static str) -> Self {
        Told { agent: NodeNotes::of_signal(signal), ..Told::default() }
    }

    /// What the agent told of itself.
    pub(super) fn agent(&self) -> &NodeNotes {
        &self.agent
    }

    /// How many nodes a server told of.
    pub(super) fn nodes(&self) -> usize {
        self.answers.len()
    }

    /// The report that ended the stream.
    pub(super) fn last(&self) -> Option<&LossReport> {
        self.last.as_ref()
    }

    /// Tells what is new of a node.
    pub(super) fn status(&mut self, node: &str, status: &NodeStatus, tell: &Notes) {
        let Some(answer) = &status.answer else {
            for note in self.agent.update(status) {
                tell.tell(&note);
            }
            return;
        };
        let known = self.answers.insert(node.to_owned(), answer.clone());
        let was_well = known.is_none_or(|known| known.outcome() == NodeOutcome::Answered);
        let is_well = answer.outcome() == NodeOutcome::Answered;
        if is_well != was_well {
            let text = answers::text(answer);
            let note = if is_well { Note::Info(text) } else { Note::Warning(text) };
            tell.tell(&note);
        }
        let notes = self.nodes.entry(node.to_owned()).or_insert_with(|| self.agent.another());
        // News of whether it answers has nothing else in it.
        if status.signals.is_empty() && status.message.is_empty() {
            return;
        }
        for note in notes.update(status) {
            tell.tell(&note.of(node));
        }
    }

    /// Tells what was lost since the last report of the same node, or of all.
    pub(super) fn report(&mut self, node: String, report: LossReport, notes: &Notes) {
        let before = self.reports.remove(&node).unwrap_or_default();
        let tell = |text: String| {
            let warning = Note::Warning(text);
            notes.tell(&if self.nodes.contains_key(&node) { warning.of(&node) } else { warning });
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
    pub(super) async fn ask_who_is_missing(&mut self, session: &Session, node: &str) {
        if self.answers.is_empty() && !session.peer.by_forward {
            return;
        }
        let mut client = session.client.clone();
        let asking = client.list_nodes(NodeQuery { name: node.to_owned() });
        // What cannot be known by then stays unknown: the user waits.
        let Ok(Ok(nodes)) = timeout(LAST_QUESTION, asking).await else { return };
        for known in nodes.into_inner().nodes {
            let has_agent = known.state() != NodeState::NoAgent;
            let wanted = has_agent && (node.is_empty() || known.name == node);
            if wanted && !self.answers.contains_key(&known.name) {
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
                self.answers.insert(known.name, answer);
            }
        }
    }

    /// Who was asked, and who answered to the end.
    pub(super) fn who_answered(&self, whole: bool) -> Answers {
        match &self.last {
            Some(report) if !report.nodes.is_empty() => Answers::of_many(&report.nodes),
            // A server that has no agents: an agent's report has its name.
            Some(_) if self.reports.keys().all(String::is_empty) && self.is_of_server() => {
                Answers::default()
            }
            _ if self.answers.is_empty() => Answers::of_one(whole),
            _ if whole => Answers::of_many(self.answers.values()),
            _ => {
                let mut answers = Answers::of_many(self.answers.values());
                // The stream broke, and with it what each of them would have said.
                let missing =
                    |answer: &NodeAnswer| NodeAnswer { node: String::new(), ..answer.clone() };
                answers.missing = self.answers.values().map(missing).collect();
                answers
            }
        }
    }

    /// Whether nothing that came is an agent's own.
    fn is_of_server(&self) -> bool {
        self.agent.attached().is_none()
    }

    /// What was lost, by the final report or else by what was told so far.
    pub(super) fn losses(self) -> LossReport {
        self.last.or_else(|| sum(self.reports)).unwrap_or_default()
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
