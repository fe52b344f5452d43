//! One agent: its channel, and what is known of its health.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use orb8_proto::{
    Node as NodeView, NodeOutcome, NodeQuery, NodeState, orbit_service_client::OrbitServiceClient,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, transport::Channel};

use super::Timing;
use crate::discovery::Member;

/// Largest answer of one agent: every flow that it keeps.
const LARGEST_ANSWER: usize = 64 << 20;

/// The client of an agent.
pub type Client = OrbitServiceClient<Channel>;

/// Whether an agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not heard yet.
    Connecting,
    /// Its last answer came in time.
    Ready,
    /// Connected, as far as that can be told, and no answer.
    Silent(String),
    /// There is no connection, or it answers with an error.
    Unreachable(String),
}

impl Health {
    /// As it is told.
    #[must_use]
    pub fn state(&self) -> NodeState {
        match self {
            Self::Connecting => NodeState::Connecting,
            Self::Ready => NodeState::Ready,
            Self::Silent(_) => NodeState::Silent,
            Self::Unreachable(_) => NodeState::Unreachable,
        }
    }

    /// Why it is not ready.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Connecting => "its agent has not answered yet",
            Self::Ready => "",
            Self::Silent(reason) | Self::Unreachable(reason) => reason,
        }
    }
}

#[derive(Debug)]
struct Known {
    health: Health,
    since: SystemTime,
    heard: Option<SystemTime>,
    round_trip: Duration,
    /// As the agent told of itself.
    told: NodeView,
}

/// One agent. It is asked how it is until nobody holds it any more.
pub struct Node {
    member: Member,
    client: Client,
    known: Mutex<Known>,
    changes: watch::Sender<u64>,
    gone: CancellationToken,
    _pings_end: DropGuard,
}

impl Node {
    pub(super) fn start(
        member: Member,
        channel: Channel,
        timing: Timing,
        changes: watch::Sender<u64>,
    ) -> Arc<Self> {
        let client = OrbitServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        let known = Known {
            health: Health::Connecting,
            since: SystemTime::now(),
            heard: None,
            round_trip: Duration::ZERO,
            told: NodeView::default(),
        };
        let token = CancellationToken::new();
        let node = Arc::new(Self {
            member,
            client,
            known: Mutex::new(known),
            changes,
            gone: CancellationToken::new(),
            _pings_end: token.clone().drop_guard(),
        });
        // Ends with the node, which it does not hold.
        let weak = Arc::downgrade(&node);
        tokio::spawn(token.run_until_cancelled_owned(async move {
            let mut wait = timing.retry / 20;
            while let Some(node) = weak.upgrade() {
                let is_well = node.ping(timing.answer).await;
                drop(node);
                wait = if is_well { timing.ping } else { (wait * 2).min(timing.retry) };
                tokio::time::sleep(wait).await;
                if is_well {
                    wait = timing.retry / 20;
                }
            }
        }));
        node
    }

    /// As its source told of it.
    pub(super) fn member(&self) -> &Member {
        &self.member
    }

    /// `HOST:PORT` of the agent.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.member.address
    }

    /// Its name, or its address as long as that is not known.
    #[must_use]
    pub fn name(&self) -> String {
        let known = self.lock();
        match (&self.member.node, &*known.told.name) {
            (_, told) if !told.is_empty() => told.to_owned(),
            (Some(node), _) => node.clone(),
            (None, _) => self.member.address.clone(),
        }
    }

    /// Every name that its node is known by: to its source, and to itself.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        let told = Some(self.lock().told.name.clone()).filter(|told| !told.is_empty());
        self.member.node.iter().cloned().chain(told).collect()
    }

    /// To ask it something.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether it answers.
    #[must_use]
    pub fn health(&self) -> Health {
        self.lock().health.clone()
    }

    /// Ends when the agent is not among the members any more.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// As it is told to clients.
    #[must_use]
    pub fn view(&self) -> NodeView {
        let name = self.name();
        let known = self.lock();
        NodeView {
            name,
            address: self.member.address.clone(),
            state: known.health.state().into(),
            reason: known.health.reason().to_owned(),
            since_ns: unix_ns(known.since),
            heard_ns: known.heard.map_or(0, unix_ns),
            round_trip_ns: u64::try_from(known.round_trip.as_nanos()).unwrap_or(u64::MAX),
            ..known.told.clone()
        }
    }

    /// Notes that a question was not answered in time.
    pub fn was_late(&self, limit: Duration) {
        self.set(Health::Silent(format!("no answer within {limit:?}")));
    }

    pub(super) fn retire(&self) {
        self.gone.cancel();
    }

    async fn ping(&self, limit: Duration) -> bool {
        let mut client = self.client();
        let began = Instant::now();
        let health = match timeout(limit, client.list_nodes(NodeQuery::default())).await {
            Ok(Ok(response)) => {
                let told = response.into_inner().nodes.into_iter().next().unwrap_or_default();
                let mut known = self.lock();
                known.heard = Some(SystemTime::now());
                known.round_trip = began.elapsed();
                known.told = told;
                Health::Ready
            }
            // Of a version that does not know the question; it answers.
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                self.lock().heard = Some(SystemTime::now());
                Health::Ready
            }
            Ok(Err(status)) => Health::Unreachable(cause(&status)),
            Err(_late) => Health::Silent(format!("no answer within {limit:?}")),
        };
        let is_well = health == Health::Ready;
        self.set(health);
        is_well
    }

    fn set(&self, health: Health) {
        let mut known = self.lock();
        if known.health.state() != health.state() {
            known.since = SystemTime::now();
            tracing::info!(
                node = known.told.name,
                address = self.member.address,
                reason = health.reason(),
                "agent is {}",
                health.state().as_str_name()
            );
            self.changes.send_modify(|version| *version += 1);
        }
        known.health = health;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an error says of the node. One that TLS kept us from is there, and refuses us or is refused:
/// that is mended elsewhere than a network.
#[must_use]
pub fn outcome(status: &Status) -> NodeOutcome {
    match status.code() {
        Code::Unavailable if orb8_transport::is_refusal(status) => NodeOutcome::Refused,
        Code::Unavailable => NodeOutcome::Unreachable,
        Code::DeadlineExceeded | Code::Cancelled => NodeOutcome::Late,
        _ => NodeOutcome::Refused,
    }
}

/// The cause of an error where there is one: that of a broken connection says more than that it
/// broke.
#[must_use]
pub fn cause(status: &Status) -> String {
    match orb8_transport::broken_by(status) {
        // Of the two ends of this connection, the other one is the agent, and what names our side's
        // files is called otherwise than in a client of this server.
        Some(cause) => cause.replace("the server", "the agent").replace("--tls-", "--agent-tls-"),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// Unix time in nanoseconds.
#[must_use]
pub fn unix_ns(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
