//! Which nodes answered, and what the others said or did not say.

use orb8_proto::{Coverage, NodeAnswer, NodeOutcome};

use crate::{notes::Notes, summary::grouped};

/// Nodes that are named one by one before the rest is only counted.
const LISTED: usize = 20;

/// What became of a question to one node or many.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers {
    /// Nodes that were asked.
    pub asked: u64,
    /// Those that did not answer, or not to the end.
    pub missing: Vec<NodeAnswer>,
}

impl Answers {
    /// Of the one agent that was asked.
    pub(crate) fn of_one(whole: bool) -> Self {
        let missing = if whole { Vec::new() } else { vec![NodeAnswer::default()] };
        Answers { asked: 1, missing }
    }

    /// Of an answer: a server's tells of each node that it asked, an agent's is that of one.
    pub(crate) fn of(coverage: &Coverage) -> Self {
        Self::of_many_or_one(&coverage.nodes, &coverage.node)
    }

    /// The same, of a message that has no coverage. `node` names the agent that answered.
    pub(crate) fn of_many_or_one(nodes: &[NodeAnswer], node: &str) -> Self {
        match nodes {
            [] if !node.is_empty() => Self::of_one(true),
            nodes => Self::of_many(nodes),
        }
    }

    /// Of the nodes that a server asked, which may be none at all.
    pub(crate) fn of_many<'a>(nodes: impl IntoIterator<Item = &'a NodeAnswer>) -> Self {
        let mut answers = Answers::default();
        for answer in nodes {
            answers.asked += 1;
            if answer.outcome() != NodeOutcome::Answered {
                answers.missing.push(answer.clone());
            }
        }
        answers
    }

    /// Nodes that answered to the end.
    pub(crate) fn answered(&self) -> u64 {
        self.asked.saturating_sub(u64::try_from(self.missing.len()).unwrap_or(u64::MAX))
    }

    /// Whether there was somebody to ask and everybody answered.
    pub(crate) fn whole(&self) -> bool {
        self.asked > 0 && self.missing.is_empty()
    }

    /// Names who is missing, and why.
    pub(crate) fn tell(&self, notes: &Notes) {
        if self.asked == 0 {
            notes.warning("the server knows no agents: nobody was asked");
        }
        for answer in self.missing.iter().filter(|answer| !answer.node.is_empty()).take(LISTED) {
            notes.warning(&text(answer));
        }
        if self.missing.len() > LISTED {
            let more = self.missing.len() - LISTED;
            notes.warning(&format!(
                "and {} more nodes are missing: orb8 nodes lists them",
                grouped(u64::try_from(more).unwrap_or(u64::MAX))
            ));
        }
    }
}

/// What became of one node, as a sentence.
pub(crate) fn text(answer: &NodeAnswer) -> String {
    let became = match answer.outcome() {
        NodeOutcome::Answered => return format!("node {} answers", answer.node),
        NodeOutcome::Late => "did not answer",
        NodeOutcome::Unreachable => "was not reached",
        NodeOutcome::Refused => "refused",
        NodeOutcome::Partial => "answered in part",
        // A newer server's.
        NodeOutcome::Unspecified => "is missing",
    };
    match answer.reason.as_str() {
        "" => format!("node {} {became}", answer.node),
        reason => format!("node {} {became}: {reason}", answer.node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(node: &str, outcome: NodeOutcome, reason: &str) -> NodeAnswer {
        let (node, reason) = (node.to_owned(), reason.to_owned());
        NodeAnswer { node, outcome: outcome.into(), reason, ..NodeAnswer::default() }
    }

    #[test]
    fn an_agent_is_one_node_and_a_server_as_many_as_it_asked() {
        let agent = Coverage { node: "a".into(), ..Coverage::default() };
        assert_eq!((Answers::of(&agent).asked, Answers::of(&agent).whole()), (1, true));
        let nodes = vec![
            answer("c", NodeOutcome::Late, "no answer within 2s"),
            answer("d", NodeOutcome::Partial, ""),
            answer("a", NodeOutcome::Answered, ""),
        ];
        let of_many = Answers::of(&Coverage { nodes, ..Coverage::default() });
        assert_eq!((of_many.asked, of_many.answered(), of_many.whole()), (3, 1, false));
        assert_eq!(text(&of_many.missing[0]), "node c did not answer: no answer within 2s");
        assert_eq!(text(&of_many.missing[1]), "node d answered in part");
    }

    #[test]
    fn a_server_without_agents_has_no_whole_answer() {
        let nobody = Answers::of(&Coverage::default());
        assert_eq!((nobody.asked, nobody.whole()), (0, false));
    }
}
