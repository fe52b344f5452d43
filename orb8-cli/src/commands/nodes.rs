//! `orb8 nodes`: the nodes that a server knows, and how their agents do.

use orb8_proto::{Node, NodeQuery, NodeResponse, NodeState};

use super::look;
use crate::{
    args::{AgentArgs, Cli, NodesArgs},
    client::{Client, Session, answer, question},
    exit::{Exit, Failure},
    notes::Notes,
    output::{Printer, columns, nodes::COLUMNS},
    peer::Peer,
    standalone::Purpose,
    summary::grouped,
    target::{Need, Needs},
};

/// Names that are listed where none was meant.
const CANDIDATES: usize = 10;

pub(super) async fn run(cli: &Cli, args: &NodesArgs, notes: &Notes) -> Result<Exit, Failure> {
    let columns = columns::select(COLUMNS, &args.records.fields, args.records.output)
        .map_err(Failure::Usage)?;
    let does = "lists the nodes that a server knows";
    let needs = Needs { server: Some(Need { option: "orb8 nodes", does }), ..Needs::default() };
    let target = Session::target_of(cli, needs).await?;
    let setup = AgentArgs::default();
    let session =
        Session::open(&target, &cli.global.connection, &setup, Purpose::Watch, notes).await?;
    let prefix = args.name.clone().unwrap_or_default();
    let NodeResponse { mut nodes, problem } = list(&session.client, &session.peer, &prefix).await?;
    if !problem.is_empty() {
        notes.warning(&format!("the list of nodes may be old: {problem}"));
    }
    if nodes.is_empty() && !prefix.is_empty() {
        let all = list(&session.client, &session.peer, "").await?.nodes;
        return Err(anyhow::anyhow!(unknown(&prefix, &all)).into());
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Printer::stdout(columns, look(cli, &args.records)).all(&nodes).map_err(Failure::output)?;
    if nodes.is_empty() {
        notes.info("no nodes: the server knows no agents");
    }
    notes.info(&summary(&nodes));
    Ok(if all_ready(&nodes) { Exit::Complete } else { Exit::Partial })
}

/// Nodes whose name starts like this.
pub(super) async fn list(
    client: &Client,
    peer: &Peer,
    prefix: &str,
) -> Result<NodeResponse, Failure> {
    let mut client = client.clone();
    let query = question(NodeQuery { name: prefix.to_owned() });
    let call = async { Ok(client.list_nodes(query).await?.into_inner()) };
    answer(peer, call).await
}

fn is_ready(node: &Node) -> bool {
    node.state() == NodeState::Ready
}

/// Whether its agent should answer and does not.
pub(super) fn is_missing(node: &Node) -> bool {
    has_agent(&node) && !is_ready(node)
}

/// Whether it has an agent. Where none is meant to run, none is missing.
fn has_agent(node: &&Node) -> bool {
    node.state() != NodeState::NoAgent
}

/// Whether there are agents, and all of them answer.
pub(super) fn all_ready(nodes: &[Node]) -> bool {
    let mut with_agent = nodes.iter().filter(has_agent).peekable();
    with_agent.peek().is_some() && with_agent.all(is_ready)
}

/// How many are ready, as the last line says it.
pub(super) fn summary(nodes: &[Node]) -> String {
    let count = |nodes: usize| grouped(u64::try_from(nodes).unwrap_or(u64::MAX));
    let ready = nodes.iter().filter(|node| is_ready(node)).count();
    let with_agent = nodes.iter().filter(has_agent).count();
    let without = match nodes.len() - with_agent {
        0 => String::new(),
        without => format!(", {} without an agent", count(without)),
    };
    format!("{}/{} nodes ready{without}", count(ready), count(with_agent))
}

fn unknown(prefix: &str, all: &[Node]) -> String {
    let mut names: Vec<&str> = all.iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    let listed = names.iter().take(CANDIDATES).copied().collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(CANDIDATES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match names.is_empty() {
        true => format!("no node starts with {prefix:?}: the server knows no agents"),
        false => format!("no node starts with {prefix:?}; known: {listed}{more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_an_agent_is_told_and_does_not_count_as_missing() {
        let node = |state: NodeState| Node { state: state.into(), ..Node::default() };
        let mut nodes = vec![node(NodeState::Ready), node(NodeState::NoAgent)];
        assert_eq!(summary(&nodes), "1/1 nodes ready, 1 without an agent");
        assert!(all_ready(&nodes));
        nodes.push(node(NodeState::Silent));
        assert_eq!(summary(&nodes), "1/2 nodes ready, 1 without an agent");
        assert!(!all_ready(&nodes));
        assert!(!all_ready(&[node(NodeState::NoAgent)]));
    }

    #[test]
    fn a_node_that_is_not_there_lists_those_that_are() {
        let node = |n: u32| Node { name: format!("node-{n:02}"), ..Node::default() };
        let all: Vec<Node> = (0..12).rev().map(node).collect();
        let text = unknown("x", &all);
        assert!(text.starts_with("no node starts with \"x\"; known: node-00, node-01,"), "{text}");
        assert!(text.ends_with("node-09 and 2 more"), "{text}");
    }
}
