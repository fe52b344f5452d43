//! Asking many agents at once, and not waiting for those that do not answer.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use orb8_proto::{NodeAnswer, NodeOutcome, NotFound};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use crate::{
    access::Sight,
    agents::{Health, Node, cause, outcome},
};

/// Agents that are asked at the same moment. Their answers are merged one by one, so this bounds
/// what is held of them.
const AT_A_TIME: usize = 256;

/// For so long agents that were silent before are waited for once all the others have answered.
const LAST_CALL: Duration = Duration::from_millis(50);

/// What became of the question to one node.
pub(crate) struct Outcome {
    pub(crate) answer: NodeAnswer,
    /// The error that it answered with.
    pub(crate) status: Option<Status>,
}

impl Outcome {
    fn new(node: &Node, outcome: NodeOutcome, reason: &str) -> Self {
        let answer = NodeAnswer {
            node: node.name(),
            outcome: outcome.into(),
            reason: reason.to_owned(),
            ..NodeAnswer::default()
        };
        Self { answer, status: None }
    }

    fn late(node: &Node, limit: Duration) -> Self {
        Self::new(node, NodeOutcome::Late, &format!("no answer within {limit:?}"))
    }

    fn failed(node: &Node, status: Status) -> Self {
        let failed = Self::new(node, outcome(&status), &cause(&status));
        Self { status: Some(status), ..failed }
    }

    /// It looked, and has something.
    pub(crate) fn is_found(&self) -> bool {
        self.answer.outcome() == NodeOutcome::Answered
    }

    /// It looked, and has nothing.
    pub(crate) fn is_missing(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.code() == Code::NotFound)
    }

    /// Of a node that was not waited for.
    fn passed_over(node: &Node) -> Self {
        let health = node.health();
        let outcome = match health {
            Health::Unreachable(_) => NodeOutcome::Unreachable,
            _ => NodeOutcome::Late,
        };
        let reason = match health.reason() {
            "" => "no answer in time",
            reason => reason,
        };
        Self::new(node, outcome, reason)
    }
}

/// Asks every node, and gives what came within `limit` to `take`, which says what window an answer
/// covers. The answer has what became of each, in the order of `nodes`.
///
/// An agent that did not answer the last time is asked as well, but nobody waits for it.
pub(crate) async fn gather<T, F>(
    nodes: &[Arc<Node>],
    limit: Duration,
    call: impl Fn(Arc<Node>) -> F,
    mut take: impl FnMut(T) -> (i64, i64),
) -> Vec<Outcome>
where
    F: Future<Output = Result<T, Status>>,
{
    let deadline = Instant::now() + limit;
    let mut outcomes: Vec<Option<Outcome>> = nodes.iter().map(|_| None).collect();
    let mut queue: Vec<(bool, usize)> =
        nodes.iter().enumerate().map(|(index, node)| (!is_awaited(node), index)).collect();
    // Those that are well first, so that the others do not keep a place from them.
    queue.sort_unstable();
    let mut awaited = queue.iter().filter(|(passed_over, _)| !passed_over).count();
    let mut queue = queue.into_iter();
    let ask = |(passed_over, index): (bool, usize)| {
        let answer = timeout_at(deadline, call(Arc::clone(&nodes[index])));
        async move { (passed_over, index, answer.await) }
    };
    let mut asked = FuturesUnordered::new();
    asked.extend(queue.by_ref().take(AT_A_TIME).map(&ask));
    let mut last_call = None;
    loop {
        if awaited == 0 && last_call.is_none() {
            last_call = Some((Instant::now() + LAST_CALL).min(deadline));
        }
        let next = match last_call {
            Some(at) => timeout_at(at, asked.next()).await.ok().flatten(),
            None => asked.next().await,
        };
        let Some((passed_over, index, answer)) = next else { break };
        awaited -= usize::from(!passed_over);
        let node = &nodes[index];
        outcomes[index] = Some(match answer {
            Ok(Ok(answer)) => {
                let mut outcome = Outcome::new(node, NodeOutcome::Answered, "");
                let covered = take(answer);
                (outcome.answer.start_time_ns, outcome.answer.end_time_ns) = covered;
                outcome
            }
            Ok(Err(status)) => Outcome::failed(node, status),
            Err(_late) => {
                node.was_late(limit);
                Outcome::late(node, limit)
            }
        });
        asked.extend(queue.next().map(&ask));
    }
    let pairs = outcomes.into_iter().zip(nodes);
    pairs.map(|(outcome, node)| outcome.unwrap_or_else(|| Outcome::passed_over(node))).collect()
}

/// What is told of the nodes, those that did not answer first.
///
/// # Errors
/// The agents' own: a request that is wrong for one is wrong for all, and what is on no node that
/// answered is not found, with everything that is there instead, as far as `sight` goes.
pub(crate) fn judge(outcomes: Vec<Outcome>, sight: &Sight) -> Result<Vec<NodeAnswer>, Status> {
    let mut answers = Vec::with_capacity(outcomes.len());
    let mut missing: Vec<Status> = Vec::new();
    let mut found = false;
    for Outcome { mut answer, status } in outcomes {
        match status {
            Some(status) if status.code() == Code::InvalidArgument => return Err(status),
            // It looked, and has nothing.
            Some(status) if status.code() == Code::NotFound => {
                (answer.outcome, answer.reason) = (NodeOutcome::Answered.into(), String::new());
                missing.push(status);
            }
            _ => found |= answer.outcome() == NodeOutcome::Answered,
        }
        answers.push(answer);
    }
    if !found && !missing.is_empty() {
        return Err(not_found(&missing, &answers, sight));
    }
    answers.sort_by_cached_key(|answer| {
        (answer.outcome() == NodeOutcome::Answered, answer.node.clone())
    });
    Ok(answers)
}

/// The one error that stands for all of these.
fn not_found(missing: &[Status], answers: &[NodeAnswer], sight: &Sight) -> Status {
    let mut told = missing.iter().filter_map(NotFound::of).peekable();
    let Some(NotFound { what, name, .. }) = told.peek().cloned() else {
        return sight.not_found(&missing[0]);
    };
    let mut candidates: BTreeSet<String> = told.flat_map(|one| one.candidates).collect();
    sight.candidates(&what, &mut candidates);
    let answered = answers.iter().filter(|a| a.outcome() == NodeOutcome::Answered).count();
    let place = match answers.len() - answered {
        0 => format!("any of {answered} nodes"),
        silent => format!("any of the {answered} nodes that answered ({silent} did not)"),
    };
    NotFound::status(&what, &name, &place, &candidates)
}

/// Whether an answer is waited for.
fn is_awaited(node: &Node) -> bool {
    matches!(node.health(), Health::Ready | Health::Connecting)
}
