//! The storm: who comes, who goes, and what they send.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use orb8_testkit::{
    Kubelet, KubeletPod, Node, PodSpec, Program, RestartPolicy, Workload,
    program::{Hold, UdpTalk},
};

use crate::{
    PORT,
    truth::{Kind, Truth},
};

const LIMIT: Duration = Duration::from_secs(60);
/// Pods that are started at a time before the storm.
const AT_A_TIME: usize = 16;
/// How often the storm looks who is gone.
const LOOK: Duration = Duration::from_millis(4);
/// The source ports of every second pod, so that its successor's flows have the same addresses and
/// ports.
const SHARED_PORTS: u16 = 5_000;
/// The other pods' containers have ports of their own, from here on.
const OWN_PORTS: u16 = 10_000;

/// How large a storm is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// On the node at any moment.
    pub(crate) pods: u32,
    /// That are started, and as many that end.
    pub(crate) per_second: u32,
    pub(crate) duration: Duration,
}

/// A storm on a node.
pub(crate) struct Storm<'a> {
    node: &'a Node,
    size: Size,
    /// Each has an address and an interface's name, which pods have one after the other.
    slots: Vec<Slot>,
    random: u64,
    next_port: u16,
    started: u32,
    truth: Truth,
}

struct Slot {
    pod: Option<(KubeletPod, Kind)>,
    /// It was told to go, or goes by itself.
    leaves: bool,
}

impl<'a> Storm<'a> {
    pub(crate) fn new(node: &'a Node, size: Size) -> Result<Self> {
        let slots = (0..size.pods).map(|_| Slot { pod: None, leaves: false }).collect();
        Ok(Self {
            node,
            size,
            slots,
            random: 0x9e37_79b9_7f4a_7c15,
            next_port: OWN_PORTS,
            started: 0,
            truth: Truth::default(),
        })
    }

    pub(crate) fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Pods that were started in the storm.
    pub(crate) fn started(&self) -> u32 {
        self.started
    }

    /// Starts a silent pod in every slot.
    pub(crate) fn populate(&mut self) -> Result<()> {
        let kubelet = Kubelet::of(self.node);
        let numbers: Vec<usize> = (0..self.slots.len()).collect();
        for chunk in numbers.chunks(AT_A_TIME) {
            for number in chunk {
                let workload = Workload::new(spec(*number, &format!("silent-{number}"))?)
                    .program("app", Program::Hold(Hold::default()));
                self.slots[*number].pod = Some((kubelet.run(workload)?, Kind::Silent));
            }
            for number in chunk {
                let (pod, _) = self.slots[*number].pod.as_ref().context("it was started")?;
                pod.wait_running(LIMIT)?;
            }
        }
        Ok(())
    }

    /// Ends and starts pods at the storm's rate, for its duration.
    pub(crate) fn rage(&mut self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < self.size.duration {
            let due = begun.elapsed().as_millis() * u128::from(self.size.per_second) / 1_000;
            let due = u32::try_from(due)?;
            let mut leaving = 0;
            for number in 0..self.slots.len() {
                let slot = &self.slots[number];
                if slot.leaves && slot.pod.as_ref().is_none_or(|(pod, _)| pod.is_gone()) {
                    self.note_end(number)?;
                    if self.started < due {
                        self.start_talker(number)?;
                    }
                }
                leaving += u32::from(self.slots[number].leaves);
            }
            if self.started + leaving < due {
                self.end_one()?;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Ends all that sent, at the storm's rate.
    pub(crate) fn calm_down(&mut self) -> Result<()> {
        let gap = Duration::from_secs(1) / self.size.per_second;
        for number in 0..self.slots.len() {
            let slot = &mut self.slots[number];
            if let Some((pod, kind)) = &slot.pod
                && *kind != Kind::Silent
            {
                pod.kill()?;
                slot.leaves = true;
                std::thread::sleep(gap);
            }
        }
        for number in 0..self.slots.len() {
            if self.slots[number].leaves {
                self.note_end(number)?;
            }
        }
        Ok(())
    }

    /// Tells one pod to go that does not yet.
    fn end_one(&mut self) -> Result<()> {
        let count = self.slots.len();
        let first = self.below(u64::try_from(count)?)?;
        let staying = (0..count).map(|at| (first + at) % count).find(|at| !self.slots[*at].leaves);
        let Some(number) = staying else { return Ok(()) };
        let slot = &mut self.slots[number];
        if let Some((pod, _)) = &slot.pod {
            pod.kill()?;
        }
        slot.leaves = true;
        Ok(())
    }

    /// Notes what the pod of a slot was, once it is gone.
    fn note_end(&mut self, number: usize) -> Result<()> {
        if let Some((pod, kind)) = self.slots[number].pod.take() {
            let view = pod.wait_gone(LIMIT)?;
            self.truth.add(view, kind)?;
        }
        Ok(())
    }

    fn start_talker(&mut self, number: usize) -> Result<()> {
        let kind = match self.below(100)? {
            0..30 => Kind::Brief,
            30..35 => Kind::Restarting,
            _ => Kind::Lasting,
        };
        let shared_ports = self.below(2)? == 0;
        let two = self.below(3)? == 0;
        let containers: &[&str] = if two { &["app", "side"] } else { &["app"] };
        let spec = spec(number, &format!("{}-{}", kind.name(), self.started))?;
        let mut workload = Workload::new(spec.containers(containers));
        for (at, container) in (0..).zip(containers) {
            let from_port = match (kind, shared_ports) {
                // The second life of a container is another flow, as it is for most clients.
                (Kind::Restarting, _) => 0,
                (_, true) => SHARED_PORTS + at,
                (_, false) => self.own_port(),
            };
            let program = self.talk(kind, from_port)?;
            workload = workload.program(container, program);
        }
        match kind {
            Kind::Restarting => workload.backoff = Duration::from_secs(1),
            Kind::Brief => workload.deleted_when_done = true,
            Kind::Lasting | Kind::Silent => {}
        }
        if kind != Kind::Restarting {
            workload.spec.restart_policy = RestartPolicy::Never;
        }
        self.slots[number] = Slot {
            pod: Some((Kubelet::of(self.node).run(workload)?, kind)),
            leaves: kind == Kind::Brief,
        };
        self.started += 1;
        Ok(())
    }

    fn talk(&mut self, kind: Kind, from_port: u16) -> Result<Program> {
        let to: Vec<SocketAddr> =
            vec![(self.node.ipv4(), PORT).into(), (self.node.ipv6(), PORT).into()];
        let (packets, pps) = match kind {
            // Within 50 to 100 ms.
            Kind::Brief => {
                let packets = 4 + self.below(6)?;
                (packets, 2_000 * packets / (50 + self.below(50)?))
            }
            Kind::Restarting => (20 + self.below(20)?, 12),
            Kind::Lasting | Kind::Silent => (20 + self.below(100)?, 20 + self.below(40)?),
        };
        let talk = UdpTalk {
            to,
            packets: u64::try_from(packets)?,
            size: 40 + self.below(400)?,
            pps: u64::try_from(pps)?,
            from_port,
            stay: kind == Kind::Lasting,
        };
        Ok(Program::UdpTalk(talk))
    }

    fn own_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(OWN_PORTS);
        port
    }

    /// The same numbers in every run (xorshift64).
    fn below(&mut self, limit: u64) -> Result<usize> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Ok(usize::try_from(self.random % limit)?)
    }
}

fn interface(slot: usize) -> String {
    format!("storm{slot}")
}

fn spec(slot: usize, name: &str) -> Result<PodSpec> {
    Ok(PodSpec {
        host_number: Some(u16::try_from(2 + slot)?),
        veth: Some(interface(slot)),
        static_neighbours: true,
        ..PodSpec::new("storm", name)
    })
}
