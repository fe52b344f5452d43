//! One agent's part of a stream: it is opened again when it breaks.

use std::{sync::Arc, time::Duration};

use orb8_proto::{Event, NodeAnswer, NodeOutcome, StreamRequest};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Status, Streaming};

use crate::agents::{Node, cause, outcome};

/// Before an agent is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// At most.
const LAST_RETRY: Duration = Duration::from_secs(10);
/// An agent that accepts a stream and does not begin it is asked again.
const OPENING: Duration = Duration::from_secs(10);

/// What is heard of an agent, which is named by its address.
#[expect(clippy::large_enum_variant, reason = "nearly all are the largest; a box would cost each")]
pub(super) enum Heard {
    Event(String, Event),
    /// How it goes with it from now on.
    Node(String, NodeAnswer),
    /// It is no agent any more.
    Left(String),
}

/// Follows an agent until the time is over or nobody listens.
pub(super) async fn follow(
    node: Arc<Node>,
    mut stream: Option<Streaming<Event>>,
    request: StreamRequest,
    deadline: Option<Instant>,
    heard: mpsc::Sender<Heard>,
) {
    let address = node.address().to_owned();
    let mut wait = RETRY;
    loop {
        let ended = match stream.take() {
            Some(stream) => tokio::select! {
                ended = pass_on(&address, stream, &heard) => ended,
                () = node.gone() => {
                    let _gone = heard.send(Heard::Left(address)).await;
                    return;
                }
            },
            None => None,
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if heard.is_closed() || left.is_some_and(|left| left < RETRY) {
            return;
        }
        if let Some(status) = ended {
            wait = RETRY;
            let answer = answer(&node, Some(&status));
            if heard.send(Heard::Node(address.clone(), answer)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = node.gone() => {
                let _gone = heard.send(Heard::Left(address)).await;
                return;
            }
        }
        wait = (wait * 2).min(LAST_RETRY);
        let mut request = request.clone();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        request.duration_ns = left.and_then(|left| i64::try_from(left.as_nanos()).ok());
        let mut client = node.client();
        let answer = match tokio::time::timeout(OPENING, client.stream_events(request)).await {
            Ok(Ok(response)) => {
                stream = Some(response.into_inner());
                answer(&node, None)
            }
            // What is asked for is not there yet, and may come.
            Ok(Err(status)) if status.code() == Code::NotFound => answer(&node, None),
            Ok(Err(status)) => answer(&node, Some(&status)),
            Err(_late) => {
                answer(&node, Some(&Status::deadline_exceeded("it does not begin to answer")))
            }
        };
        if heard.send(Heard::Node(address.clone(), answer)).await.is_err() {
            return;
        }
    }
}

/// Why it ended, unless the agent ended it in an orderly way.
async fn pass_on(
    address: &str,
    mut stream: Streaming<Event>,
    heard: &mpsc::Sender<Heard>,
) -> Option<Status> {
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                if heard.send(Heard::Event(address.to_owned(), event)).await.is_err() {
                    return None;
                }
            }
            Ok(None) => return Some(Status::unavailable("its agent stopped")),
            Err(status) => return Some(status),
        }
    }
}

fn answer(node: &Node, status: Option<&Status>) -> NodeAnswer {
    let (outcome, reason) = match status {
        None => (NodeOutcome::Answered, String::new()),
        Some(status) => (outcome(status), cause(status)),
    };
    NodeAnswer { node: node.name(), outcome: outcome.into(), reason, ..NodeAnswer::default() }
}
