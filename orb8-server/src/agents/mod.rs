//! The agents of the cluster: who there is, a connection to each, and how each is doing.

mod node;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
    time::Duration,
};

use orb8_transport::{Address, ClientTls, Limits};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub use self::node::{Client, Health, Node, cause, outcome, unix_ns};
use crate::discovery::Members;

/// How agents are asked how they are.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two questions to an agent that is well.
    pub ping: Duration,
    /// An answer that takes longer is none.
    pub answer: Duration,
    /// Between two questions to an agent that is not well, at most.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(5),
            answer: Duration::from_secs(1),
            retry: Duration::from_secs(5),
        }
    }
}

/// Makes the channel to an agent. It connects when it is used, again and again.
pub type Connector = Arc<dyn Fn(&str) -> Result<Channel, String> + Send + Sync>;

/// Channels with TLS, as its files say whenever one connects, or in plain text.
#[must_use]
pub fn connector(tls: Option<ClientTls>) -> Connector {
    let limits = Limits {
        connect_time: Duration::from_secs(3),
        // A silent agent is given up after some seconds, not after the kernel's quarter of an hour.
        keepalive_interval: Duration::from_secs(10),
        keepalive_time: Duration::from_secs(10),
        ..Limits::default()
    };
    let connector = orb8_transport::Connector::new(tls, limits);
    Arc::new(move |written| {
        let address: Address = written.parse()?;
        connector.channel(&address).map_err(|error| error.to_string())
    })
}

/// All agents that are known. Clones share them.
#[derive(Clone)]
pub struct Agents {
    inner: Arc<Inner>,
}

struct Inner {
    connector: Connector,
    timing: Timing,
    nodes: RwLock<BTreeMap<String, Arc<Node>>>,
    /// Grows with every agent that comes, goes, or gets well or ill.
    changes: watch::Sender<u64>,
    problem: RwLock<Option<String>>,
}

impl Agents {
    /// Nobody yet.
    #[must_use]
    pub fn new(connector: Connector, timing: Timing) -> Self {
        let (changes, _) = watch::channel(0);
        let inner = Inner {
            connector,
            timing,
            nodes: RwLock::default(),
            changes,
            problem: RwLock::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Follows what a source says until `token` says stop.
    pub async fn follow(self, mut members: watch::Receiver<Members>, token: CancellationToken) {
        loop {
            let now = members.borrow_and_update().clone();
            self.take(now);
            tokio::select! {
                () = token.cancelled() => break,
                changed = members.changed() => if changed.is_err() {
                    token.cancelled().await;
                    break;
                },
            }
        }
        self.take(Members::default());
    }

    /// Every agent, by address.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Node>> {
        let nodes = self.inner.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.values().cloned().collect()
    }

    /// Tells of changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Why the list of agents may be old.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.inner.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take(&self, members: Members) {
        *self.inner.problem.write().unwrap_or_else(PoisonError::into_inner) = members.problem;
        let mut nodes = self.write();
        let before = nodes.len();
        nodes.retain(|_, node| {
            // Addresses are used again: on another node it is another agent.
            let stays = members.agents.contains(node.member());
            if !stays {
                node.retire();
            }
            stays
        });
        let mut changed = nodes.len() != before;
        for member in members.agents {
            if nodes.contains_key(&member.address) {
                continue;
            }
            changed = true;
            match (self.inner.connector)(&member.address) {
                Ok(channel) => {
                    let changes = self.inner.changes.clone();
                    let node = Node::start(member, channel, self.inner.timing, changes);
                    nodes.insert(node.address().to_owned(), node);
                }
                Err(problem) => tracing::warn!("agents: {problem}"),
            }
        }
        drop(nodes);
        if changed {
            self.inner.changes.send_modify(|version| *version += 1);
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Arc<Node>>> {
        self.inner.nodes.write().unwrap_or_else(PoisonError::into_inner)
    }
}
