//! What the agent said, held against the truth.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use orb8_proto::{Direction, FlowState, NetworkFlow, PodTraffic};

use crate::{
    PORT,
    truth::{Sender, Truth},
};

/// A container that lived this long is not to be missed.
const LONG_ENOUGH: Duration = Duration::from_millis(50);

/// In bytes, but for the containers.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) sent: u64,
    pub(crate) heard: u64,
    /// Of that, before an interface was attached to.
    pub(crate) early: u64,
    /// Records that say so.
    pub(crate) early_containers: usize,
    /// More than they sent, of pods that were heard of.
    pub(crate) to_wrong_pod: u64,
    pub(crate) to_wrong_container: u64,
    pub(crate) to_nobody: u64,
    /// Of a known pod.
    pub(crate) to_no_container: u64,
    /// Of containers that sent, and lived long enough.
    pub(crate) containers: usize,
    /// Those of them that no record names.
    pub(crate) missing: Vec<Sender>,
    /// Whoever sent more than was heard, with what was heard, and what of that was early.
    pub(crate) short: Vec<(u64, u64, Sender)>,
    /// Whoever sent less than was heard, likewise.
    pub(crate) over: Vec<(u64, u64, Sender)>,
    /// What was heard of containers that are no senders.
    pub(crate) strangers: Vec<NetworkFlow>,
}

impl Verdict {
    pub(crate) fn of(truth: &Truth, flows: &[NetworkFlow]) -> Self {
        // Before the interface was attached to, what a container sent is told without addresses. What is
        // told then without a container is not the senders' for certain, and does not count.
        let is_early =
            |f: &NetworkFlow| f.state() == FlowState::Early && !f.container_id.is_empty();
        let sent = flows.iter().filter(|f| {
            f.direction() == Direction::Egress && (f.dst_port == u32::from(PORT) || is_early(f))
        });
        let (mut by_pod, mut by_container) = (BTreeMap::new(), BTreeMap::new());
        let mut early = BTreeMap::new();
        let mut verdict = Self::default();
        for flow in sent.clone() {
            verdict.heard += flow.bytes;
            if is_early(flow) {
                verdict.early += flow.bytes;
                verdict.early_containers += 1;
                *early.entry(&*flow.container_id).or_insert(0) += flow.bytes;
            }
            if flow.pod_uid.is_empty() {
                verdict.to_nobody += flow.bytes;
                continue;
            }
            *by_pod.entry(&*flow.pod_uid).or_insert(0) += flow.bytes;
            if flow.container_id.is_empty() {
                verdict.to_no_container += flow.bytes;
            } else {
                *by_container.entry(&*flow.container_id).or_insert(0) += flow.bytes;
            }
        }
        let surplus = |heard: &BTreeMap<&str, u64>, sent: BTreeMap<&str, u64>| {
            let over = |(id, heard): (&&str, &u64)| {
                heard.saturating_sub(sent.get(id).copied().unwrap_or_default())
            };
            heard.iter().map(over).sum()
        };
        verdict.sent = truth.senders.iter().map(|sender| sender.bytes).sum();
        verdict.to_wrong_pod = surplus(&by_pod, sums(truth, |sender| &sender.uid));
        verdict.to_wrong_container = surplus(&by_container, sums(truth, |sender| &sender.id));
        let ids: BTreeSet<_> = truth.senders.iter().map(|sender| &*sender.id).collect();
        let strangers = sent.filter(|f| f.bytes > 0 && !ids.contains(&*f.container_id));
        verdict.strangers = strangers.cloned().collect();
        let due = truth.senders.iter().filter(|s| s.packets > 0 && s.lived >= LONG_ENOUGH);
        verdict.containers = due.clone().count();
        let of = |heard: &BTreeMap<&str, u64>, s: &Sender| heard.get(&*s.id).copied().unwrap_or(0);
        let told = |s: &Sender| (of(&by_container, s), of(&early, s), s.clone());
        let (short, exact_or_over): (Vec<_>, Vec<_>) =
            truth.senders.iter().map(told).partition(|(heard, _, sender)| *heard < sender.bytes);
        verdict.short = short;
        verdict.over = exact_or_over;
        verdict.over.retain(|(heard, _, sender)| *heard > sender.bytes);
        verdict.missing = due.filter(|s| !by_container.contains_key(&*s.id)).cloned().collect();
        verdict
    }

    /// The share of what was sent that has a pod, and the right one.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(crate) fn attributed(&self) -> f64 {
        (self.heard - self.to_nobody - self.to_wrong_pod) as f64 / self.sent as f64
    }
}

fn sums<'a>(truth: &'a Truth, key: impl Fn(&'a Sender) -> &'a str) -> BTreeMap<&'a str, u64> {
    let mut sums = BTreeMap::new();
    for sender in &truth.senders {
        *sums.entry(key(sender)).or_insert(0) += sender.bytes;
    }
    sums
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut missing = BTreeMap::new();
        for sender in &self.missing {
            *missing.entry(sender.kind.name()).or_insert(0) += 1;
        }
        write!(
            f,
            "{} bytes sent, {} heard ({} early, of {} containers), {:.4} % attributed; to a wrong pod {}, a wrong container {}, \
             nobody {}, no container {}; {} of {} containers missing {missing:?}",
            self.sent,
            self.heard,
            self.early,
            self.early_containers,
            self.attributed() * 100.0,
            self.to_wrong_pod,
            self.to_wrong_container,
            self.to_nobody,
            self.to_no_container,
            self.missing.len(),
            self.containers,
        )
    }
}

/// Whether pods are called by their names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    right: usize,
    pub(crate) wrong: usize,
    /// Known by their UIDs only: they were gone before the API told of them.
    bare: usize,
    /// Sent, and are in no answer.
    absent: usize,
}

impl Names {
    pub(crate) fn of(truth: &Truth, answered: &[PodTraffic]) -> Self {
        let mut names = Self::default();
        let mut there = BTreeSet::new();
        for pod in answered {
            let Some(name) = truth.names.get(&pod.pod_uid) else { continue };
            there.insert(&*pod.pod_uid);
            match &pod.pod_name {
                told if told == name => names.right += 1,
                told if *told == pod.pod_uid => names.bare += 1,
                _ => names.wrong += 1,
            }
        }
        let senders = truth.senders.iter().filter(|s| s.packets > 0);
        let uids: BTreeSet<&str> = senders.map(|sender| &*sender.uid).collect();
        names.absent = uids.iter().filter(|uid| !there.contains(*uid)).count();
        names
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pods by their names, {} by wrong ones, {} by UID only, {} in no answer",
            self.right, self.wrong, self.bare, self.absent
        )
    }
}
