//! The interfaces of the node: which are traced, who is behind them, what went through them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use orb8_common::network::Counts;

use super::early::Early;
use crate::{
    config::{Config, WINDOW},
    k8s::{cgroup::CgroupIdentity, cgroup_tree::FoundCgroup},
    netlink::links::{Link, LinkCounters},
    probe_loader::Attachment,
};

/// How long records of a pod's veth wait for the pod to be known. After that they get the best
/// identity there is.
pub(super) const WAIT_FOR_OWNER: Duration = Duration::from_secs(3);

/// Last packets and counters of an interface that is gone are known by then.
const WAIT_FOR_LATE: Duration = Duration::from_secs(15);

/// A veth without a pod is looked at again this often at least: a process may have moved in.
const LONGEST_BETWEEN_LOOKS: Duration = Duration::from_secs(60);

/// What the sockets of the node are called where an interface is named. Not a name that an interface
/// would be given.
pub(super) const HOST_SOCKETS_NAME: &str = "host-sockets";

/// Names an interface for the life of the agent; indices are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Serial(pub(super) u32);

/// Whose view an interface gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The host side of a veth: what arrives here is what the workload behind it sends.
    Workload,
    /// The node's own.
    Host,
}

/// Sockets of the node itself, which are an interface to the rest of the slice.
pub(super) enum Sockets {
    /// Those of one cgroup.
    Of(FoundCgroup),
    /// Those whose cgroup is not listed. Their flows say which it is.
    Unlisted,
}

/// One interface of this run, or the sockets of one cgroup.
pub(super) struct Interface {
    /// There is no interface, but these.
    pub(super) sockets: Option<Sockets>,
    pub(super) name: Arc<str>,
    pub(super) index: u32,
    pub(super) side: Side,
    pub(super) nsid: Option<i32>,
    /// Dropping them detaches. In a box, as `early` is: of interfaces that are gone, of which there are
    /// many, it is empty.
    attachments: Option<Box<[Attachment; 2]>>,
    pub(super) attached: &'static str,
    /// A clsact qdisc that was made for it is removed with it.
    pub(super) qdisc_is_ours: bool,
    pub(super) attached_unix_ns: i64,
    pub(super) seen_at: Instant,
    pub(super) owner: Option<CgroupIdentity>,
    /// The pod that a socket behind it belongs to: who it is, where nobody could be found in its
    /// namespace before it was gone.
    pub(super) sender: Option<CgroupIdentity>,
    look_again_at: Instant,
    /// Since the attachment: at ingress, at egress.
    pub(super) totals: [Counts; 2],
    pub(super) overflow_taken: [Counts; 2],
    /// The kernel's counters from which ours count.
    pub(super) kernel_at_attach: LinkCounters,
    /// No packet passed unseen by one side while that was read.
    pub(super) baseline_is_exact: bool,
    /// It is there and not wanted any more: when it is detached from, it retires.
    pub(super) leaves: bool,
    /// It was made while we followed: what it carried before it was attached to is known.
    pub(super) early: Option<Box<Early>>,
    pub(super) gone: Option<Instant>,
}

impl Interface {
    pub(super) fn new(link: &Link, side: Side, now: Instant) -> Self {
        Self {
            nsid: link.peer_nsid,
            kernel_at_attach: link.counters,
            ..Self::named(link.name.as_str().into(), link.index, side, now)
        }
    }

    /// Sockets that are counted under a pseudo index.
    pub(super) fn of_sockets(index: u32, sockets: Sockets, now: Instant) -> Self {
        Self {
            sockets: Some(sockets),
            ..Self::named(HOST_SOCKETS_NAME.into(), index, Side::Host, now)
        }
    }

    fn named(name: Arc<str>, index: u32, side: Side, now: Instant) -> Self {
        Self {
            sockets: None,
            name,
            index,
            side,
            nsid: None,
            attachments: None,
            attached: "",
            qdisc_is_ours: false,
            attached_unix_ns: 0,
            seen_at: now,
            owner: None,
            sender: None,
            look_again_at: now,
            totals: [Counts::default(); 2],
            overflow_taken: [Counts::default(); 2],
            kernel_at_attach: LinkCounters::default(),
            baseline_is_exact: false,
            leaves: false,
            early: None,
            gone: None,
        }
    }

    pub(super) fn hold(&mut self, attachments: [Attachment; 2]) {
        self.attached = attachments[0].how.as_str();
        self.qdisc_is_ours = attachments.iter().any(Attachment::made_the_qdisc);
        self.attachments = Some(Box::new(attachments));
    }

    /// What holds it; dropping that detaches.
    pub(super) fn release(&mut self) -> Option<[Attachment; 2]> {
        self.attachments.take().map(|attachments| *attachments)
    }

    pub(super) const fn is_attached(&self) -> bool {
        self.attachments.is_some()
    }

    /// Whether records may be given to an owner now.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.side == Side::Host
            || self.owner.is_some()
            || self.gone.is_some()
            || now.saturating_duration_since(self.seen_at) > WAIT_FOR_OWNER
    }

    /// Whether it is time to look for who is behind it.
    pub(super) fn wants_owner(&self, now: Instant) -> bool {
        self.side == Side::Workload
            && self.owner.is_none()
            && self.gone.is_none()
            && now >= self.look_again_at
    }

    /// Notes what a look found. Behind a veth that is no pod's, looks become rarer.
    pub(super) fn looked_for_owner(&mut self, found: Option<CgroupIdentity>, now: Instant) {
        self.owner = found;
        let age = now.saturating_duration_since(self.seen_at);
        if age > WAIT_FOR_OWNER {
            self.look_again_at = now + age.min(LONGEST_BETWEEN_LOOKS);
        }
    }
}

/// Every interface that was traced, those that are gone included while somebody may ask.
#[derive(Default)]
pub(super) struct Interfaces {
    // An index map: where pods come and go there are thousands, and a hash map of them that grows is
    // there twice, every page of it touched.
    all: IndexMap<Serial, Interface>,
    by_index: HashMap<u32, Serial>,
    next: u32,
    /// Why an interface that should be traced is not.
    pub(super) refused: HashMap<u32, (String, String)>,
}

impl Interfaces {
    pub(super) fn add(&mut self, interface: Interface) -> Serial {
        self.next += 1;
        let serial = Serial(self.next);
        self.by_index.insert(interface.index, serial);
        self.all.insert(serial, interface);
        serial
    }

    pub(super) fn serial(&self, index: u32) -> Option<Serial> {
        self.by_index.get(&index).copied()
    }

    pub(super) fn get(&self, serial: Serial) -> Option<&Interface> {
        self.all.get(&serial)
    }

    pub(super) fn get_mut(&mut self, serial: Serial) -> Option<&mut Interface> {
        self.all.get_mut(&serial)
    }

    pub(super) fn attached(&self) -> impl Iterator<Item = (Serial, &Interface)> {
        self.all.iter().filter(|(_, i)| i.is_attached()).map(|(serial, i)| (*serial, i))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Serial, &Interface)> {
        self.all.iter().map(|(serial, i)| (*serial, i))
    }

    /// The index is free for another interface from here on.
    pub(super) fn gone(&mut self, serial: Serial, now: Instant) {
        if let Some(interface) = self.all.get_mut(&serial) {
            drop(interface.release());
            interface.gone = Some(now);
            self.by_index.remove(&interface.index);
        }
    }

    /// Forgets interfaces that went away before the window began. Answers those that went first, where
    /// more than `most` are gone: they are forgotten, too, and were still of use.
    pub(super) fn forget(&mut self, now: Instant, most: usize) -> Vec<(Serial, Interface)> {
        let since = |at| now.saturating_duration_since(at);
        self.all.retain(|_, i| i.gone.is_none_or(|at| since(at) < WINDOW));
        let mut gone: Vec<(Instant, Serial)> =
            self.all.iter().filter_map(|(serial, i)| Some((i.gone?, *serial))).collect();
        gone.sort_unstable();
        gone.truncate(gone.len().saturating_sub(most));
        gone.retain(|(at, _)| since(*at) > WAIT_FOR_LATE);
        let early: HashSet<Serial> = gone.into_iter().map(|(_, serial)| serial).collect();
        self.all.extract_if(.., |serial, _| early.contains(serial)).collect()
    }
}

/// Which of the interfaces that are there should be traced.
///
/// Named ones if any are named; else every pod's veth; else the default route's interface. Both of
/// the last two together would count a packet that leaves the node twice.
///
/// Where the node itself is a container (kind, a VM in a pod), its own way out is a veth as well:
/// the interface of the default route is nobody's but the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Named,
    Pods,
    WayOut,
}

impl Wanted {
    pub(super) fn among<'a>(
        config: &Config,
        mut links: impl Iterator<Item = &'a Link>,
        default_route: &[u32],
    ) -> Self {
        if !config.interfaces.is_empty() {
            Self::Named
        } else if links.any(|link| is_pods(link, default_route)) {
            Self::Pods
        } else {
            Self::WayOut
        }
    }

    /// Whose view the interface gives, if it should be traced.
    pub(super) fn side(self, link: &Link, config: &Config, default_route: &[u32]) -> Option<Side> {
        let pods = is_pods(link, default_route);
        let wanted = match self {
            Self::Named => config.names_interface(&link.name),
            Self::Pods => pods,
            Self::WayOut => default_route.contains(&link.index),
        };
        wanted.then_some(if pods { Side::Workload } else { Side::Host })
    }
}

fn is_pods(link: &Link, default_route: &[u32]) -> bool {
    link.host_side_of_pod() && !default_route.contains(&link.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    fn link(index: u32, name: &str, peer_nsid: Option<i32>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: peer_nsid.map(|_| "veth".into()),
            arphrd: 1,
            up: true,
            peer_index: None,
            peer_nsid,
            counters: LinkCounters::default(),
        }
    }

    fn chosen(named: &[&str], links: &[Link], default_route: &[u32]) -> Vec<(String, Side)> {
        let interfaces = named.iter().map(|name| (*name).to_owned()).collect();
        let config = RawConfig { interfaces, ..RawConfig::default() }.resolve().unwrap();
        let wanted = Wanted::among(&config, links.iter(), default_route);
        let side =
            |link: &Link| Some((link.name.clone(), wanted.side(link, &config, default_route)?));
        links.iter().filter_map(side).collect()
    }

    #[test]
    fn of_too_many_that_are_gone_the_first_ones_make_room_once_they_are_settled() {
        let (mut interfaces, start) = (Interfaces::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for index in 1..=6 {
            let link = link(index, "veth", Some(0));
            let serial = interfaces.add(Interface::new(&link, Side::Workload, start));
            if index > 1 {
                interfaces.gone(serial, at(u64::from(index)));
            }
        }
        let forgotten = |interfaces: &mut Interfaces, seconds, most| {
            let early = interfaces.forget(at(seconds), most);
            let mut early: Vec<u32> = early.iter().map(|(_, i)| i.index).collect();
            early.sort_unstable();
            early
        };
        assert!(forgotten(&mut interfaces, 100, 5).is_empty());
        assert!(forgotten(&mut interfaces, 16, 3).is_empty(), "their last packets may come yet");
        assert_eq!(forgotten(&mut interfaces, 100, 3), [2, 3]);
        assert!(forgotten(&mut interfaces, 100, 3).is_empty());
        assert!(forgotten(&mut interfaces, 305, 0).iter().eq(&[6]), "4 and 5 left the window");
        assert_eq!(interfaces.all().count(), 1);
    }

    #[test]
    fn every_pods_veth_or_else_the_way_out_but_never_both() {
        let (eth0, pod) = (link(2, "eth0", None), link(3, "veth3", Some(0)));
        let both = [eth0.clone(), pod];
        assert_eq!(chosen(&[], &both, &[2]), [("veth3".into(), Side::Workload)]);
        assert_eq!(chosen(&[], &[eth0], &[2]), [("eth0".into(), Side::Host)]);
    }

    #[test]
    fn the_way_out_of_a_node_in_a_container_is_not_a_pods_veth() {
        let (eth0, pod) = (link(2, "eth0", Some(0)), link(3, "veth3", Some(1)));
        let both = [eth0.clone(), pod];
        assert_eq!(chosen(&[], &both, &[2]), [("veth3".into(), Side::Workload)]);
        assert_eq!(chosen(&[], &[eth0], &[2]), [("eth0".into(), Side::Host)]);
        let named = [("eth0".into(), Side::Host), ("veth3".into(), Side::Workload)];
        assert_eq!(chosen(&["eth0", "veth*"], &both, &[2]), named);
    }
}
