//! Records of many nodes as one stream, in the order of their times as far as a short wait can
//! make it so.

mod follow;
mod order;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use orb8_proto::{Event, LossReport, NodeAnswer, NodeOutcome, NodeStatus, StreamRequest, event};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tonic::Status;

use self::{follow::Heard, order::Order};
use crate::{
    access::Sight,
    agents::{Agents, Node, unix_ns},
    cluster::Cluster,
    losses::Losses,
    query::{gather, judge},
};

/// Records of all nodes on their way to one client. When it is full the agents wait, and what they
/// then lose is counted there.
const INBOX: usize = 16_384;
/// For so long after its time agents may still send the last deltas.
const GRACE: Duration = Duration::from_secs(3);
/// How often what is due is sent.
const TICK: Duration = Duration::from_millis(20);

type Out = mpsc::Sender<Result<Event, Status>>;

/// One client's stream.
pub(crate) struct Merger {
    agents: Agents,
    cluster: Option<Cluster>,
    request: StreamRequest,
    /// What the client may see.
    sight: Sight,
    /// When its time is over.
    deadline: Option<Instant>,
    inbox: mpsc::Receiver<Heard>,
    heard: mpsc::Sender<Heard>,
    followers: JoinSet<()>,
    /// The nodes that are followed, by address, and how it goes.
    nodes: BTreeMap<String, NodeAnswer>,
    /// Nodes that were not heard for some time, by address, and why.
    gaps: BTreeMap<String, String>,
    order: Order,
    tally: Tally,
}

/// What became of a stream's records.
#[derive(Default)]
struct Tally {
    delivered: u64,
    /// Of this client, because it reads too slowly.
    lost: u64,
    told: u64,
    /// What the agents say that they lost of this stream, and at all, by node.
    nodes: BTreeMap<String, LossReport>,
}

impl Merger {
    /// Begins to follow every node that `request` is about. Agents have `limit` to begin.
    ///
    /// # Errors
    /// What every agent says is wrong with the request.
    pub(crate) async fn start(
        agents: Agents,
        cluster: Option<Cluster>,
        request: StreamRequest,
        sight: Sight,
        limit: Duration,
    ) -> Result<Self, Status> {
        let deadline = request
            .duration_ns
            .map(|ns| Instant::now() + Duration::from_nanos(u64::try_from(ns).unwrap_or(0)));
        let nodes = wanted(&agents, &request);
        let (heard, inbox) = mpsc::channel(INBOX);
        let mut merger = Self {
            agents,
            cluster,
            request,
            sight,
            deadline,
            inbox,
            heard,
            followers: JoinSet::new(),
            nodes: BTreeMap::new(),
            gaps: BTreeMap::new(),
            order: Order::default(),
            tally: Tally::default(),
        };
        let opened = std::sync::Mutex::new(Vec::new());
        let open = |node: Arc<Node>| {
            let (request, opened) = (merger.request.clone(), &opened);
            async move {
                let stream = node.client().stream_events(request).await?.into_inner();
                opened
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push((node, stream));
                Ok(())
            }
        };
        let outcomes = gather(&nodes, limit, open, |()| (0, 0)).await;
        judge(outcomes, &merger.sight)?;
        let mut opened: BTreeMap<_, _> = opened
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .into_iter()
            .map(|(node, stream)| (node.address().to_owned(), stream))
            .collect();
        for node in nodes {
            let stream = opened.remove(node.address());
            if stream.is_none() {
                let why = node.health().reason().to_owned();
                merger.gaps.insert(node.address().to_owned(), why);
            }
            merger.follow(node, stream);
        }
        Ok(merger)
    }

    fn follow(&mut self, node: Arc<Node>, stream: Option<tonic::Streaming<Event>>) {
        let answer = NodeAnswer {
            node: node.name(),
            outcome: match stream {
                Some(_) => NodeOutcome::Answered,
                None => NodeOutcome::Unreachable,
            }
            .into(),
            reason: stream.as_ref().map_or("not reached yet", |_| "").into(),
            ..NodeAnswer::default()
        };
        self.nodes.insert(node.address().to_owned(), answer);
        let request = self.request.clone();
        self.followers.spawn(follow::follow(
            node,
            stream,
            request,
            self.deadline,
            self.heard.clone(),
        ));
    }

    /// Follows agents that came since.
    fn follow_new(&mut self) {
        for node in wanted(&self.agents, &self.request) {
            if !self.nodes.contains_key(node.address()) {
                self.follow(node, None);
            }
        }
    }

    /// Passes records on until the client leaves, the time is over, or `stop` says why it ends.
    pub(crate) async fn run(mut self, out: Out, stop: impl Future<Output = Status>) {
        tokio::pin!(stop);
        let mut stopped = None;
        let mut changes = self.agents.changes();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let overtime = self.deadline.map(|deadline| deadline + GRACE);
        loop {
            tokio::select! {
                () = out.closed() => return,
                why = &mut stop => {
                    stopped = Some(why);
                    break;
                }
                () = until(overtime) => break,
                _ = tick.tick() => {
                    let due = self.order.due(now());
                    self.send_due(&out, due);
                }
                Some(heard) = self.inbox.recv() => {
                    self.take(heard, &out).await;
                }
                Some(_ended) = self.followers.join_next() => {
                    if self.followers.is_empty() && self.is_over() {
                        break;
                    }
                }
                Ok(()) = changes.changed() => if !self.is_over() {
                    self.follow_new();
                },
            }
        }
        self.followers.abort_all();
        while let Ok(heard) = self.inbox.try_recv() {
            self.take(heard, &out).await;
        }
        let rest = self.order.due(i64::MAX);
        for mut event in rest {
            self.name(&mut event);
            // Nothing else is to come: the client has its time for these.
            if out.send(Ok(event)).await.is_err() {
                return;
            }
            self.tally.delivered += 1;
        }
        let _gone = out.send(Ok(self.report(true))).await;
        if let Some(why) = stopped {
            let _gone = out.send(Err(why)).await;
        }
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Takes what a node tells.
    async fn take(&mut self, heard: Heard, out: &Out) {
        match heard {
            Heard::Event(address, event) => match event.event {
                Some(event::Event::Loss(report)) => {
                    let delta = self.tally.of_node(&address, report);
                    if let Some(report) = delta {
                        self.tell(out, event.node, event::Event::Loss(report)).await;
                    }
                }
                Some(event::Event::NodeStatus(status)) => {
                    let answer = self.nodes.get(&address).cloned();
                    // The interfaces of a thousand nodes are a question of its own.
                    let status = NodeStatus { interfaces: Vec::new(), answer, ..status };
                    self.tell(out, event.node, event::Event::NodeStatus(status)).await;
                }
                _ => {
                    if self.order.add(event, now()) {
                        let due = self.order.overdue();
                        self.send_due(out, due);
                    }
                }
            },
            Heard::Node(address, answer) => {
                if answer.outcome() != NodeOutcome::Answered {
                    self.gaps.entry(address.clone()).or_insert_with(|| answer.reason.clone());
                }
                let before = self.nodes.insert(address, answer.clone());
                if before.is_some_and(|b| b.outcome == answer.outcome && b.reason == answer.reason)
                {
                    return;
                }
                let node = answer.node.clone();
                let status = NodeStatus { answer: Some(answer), ..NodeStatus::default() };
                self.tell(out, node, event::Event::NodeStatus(status)).await;
            }
            Heard::Left(address) => drop(self.nodes.remove(&address)),
        }
    }

    /// Records never wait for a client: those that it has no room for are lost to it, and counted.
    fn send_due(&mut self, out: &Out, due: Vec<Event>) {
        for mut event in due {
            self.name(&mut event);
            match out.try_send(Ok(event)) {
                Ok(()) => self.tally.delivered += 1,
                Err(_) => self.tally.lost += 1,
            }
        }
        if self.tally.lost > self.tally.told && out.try_send(Ok(self.report(false))).is_ok() {
            self.tally.told = self.tally.lost;
        }
    }

    /// By now the API had as long to tell of the other end as the record waited for its turn. What
    /// the client may not see of it is hidden last.
    fn name(&self, event: &mut Event) {
        let Some(event::Event::NetworkFlow(flow)) = &mut event.event else { return };
        if let Some(cluster) = &self.cluster {
            cluster.name(flow);
        }
        self.sight.flow(flow);
    }

    /// News of nodes is not lost; a client that does not read holds up its own stream only.
    async fn tell(&self, out: &Out, node: String, event: event::Event) {
        let event = Event { node, timestamp_ns: now(), event: Some(event) };
        let _gone = out.send(Ok(event)).await;
    }

    fn report(&self, last: bool) -> Event {
        let mut nodes: Vec<NodeAnswer> = Vec::new();
        if last {
            nodes.extend(self.nodes.iter().map(|(address, answer)| {
                let mut answer = answer.clone();
                if let Some(why) = self.gaps.get(address)
                    && answer.outcome() == NodeOutcome::Answered
                {
                    answer.outcome = NodeOutcome::Partial.into();
                    answer.reason = format!("not heard for some time: {why}");
                }
                answer
            }));
            nodes.sort_by_cached_key(|answer| {
                (answer.outcome() == NodeOutcome::Answered, answer.node.clone())
            });
        }
        let lost_by_agents = self.tally.nodes.values().map(|report| report.records_lost);
        let mut losses = Losses::default();
        for report in self.tally.nodes.values() {
            losses.extend(report.losses.iter().cloned());
        }
        let report = LossReport {
            records_delivered: self.tally.delivered,
            records_lost: self.tally.lost + lost_by_agents.sum::<u64>(),
            losses: losses.into(),
            r#final: last,
            nodes,
        };
        Event { node: String::new(), timestamp_ns: now(), event: Some(event::Event::Loss(report)) }
    }
}

impl Tally {
    /// Takes an agent's report; the answer is what is new in it, for the client to be told at once.
    fn of_node(&mut self, address: &str, report: LossReport) -> Option<LossReport> {
        let known = self.nodes.entry(address.to_owned()).or_default();
        let is_news = report.records_lost > known.records_lost || report.losses != known.losses;
        known.clone_from(&report);
        // The last one is part of ours.
        (is_news && !report.r#final).then_some(report)
    }
}

/// The nodes that a request is about.
fn wanted(agents: &Agents, request: &StreamRequest) -> Vec<Arc<Node>> {
    let mut nodes = agents.all();
    nodes.retain(|node| request.node.is_empty() || node.name() == request.node);
    nodes
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn now() -> i64 {
    unix_ns(std::time::SystemTime::now())
}
