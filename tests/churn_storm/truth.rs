//! What was really sent, as the senders say.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use orb8_testkit::kubelet::PodView;

/// Ethernet and UDP headers, with those of IPv4 and of IPv6.
const HEADERS: [u64; 2] = [14 + 20 + 8, 14 + 40 + 8];

/// What a pod is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It was there before and sends nothing.
    Silent,
    /// It sends for some seconds and stays until it is told to go.
    Lasting,
    /// It sends for 50 to 100 ms and ends.
    Brief,
    /// Its containers end and are started again.
    Restarting,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Lasting => "lasting",
            Self::Brief => "brief",
            Self::Restarting => "restarting",
        }
    }
}

/// One instance of a container.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) kind: Kind,
    pub(crate) uid: String,
    pub(crate) id: String,
    pub(crate) lived: Duration,
    pub(crate) packets: u64,
    /// With all headers, as interfaces count.
    pub(crate) bytes: u64,
}

/// Everybody who ended.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) senders: Vec<Sender>,
    /// Names of pods, by UID.
    pub(crate) names: BTreeMap<String, String>,
}

impl Truth {
    pub(crate) fn pods(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn add(&mut self, pod: PodView, kind: Kind) -> Result<()> {
        let counters = pod.last_counters.context("its interface was not counted")?;
        let mut sum = 0;
        for life in pod.lives {
            // Killed before it listens to SIGTERM, it has not sent anything yet.
            let ended = life.exit_code == 0 || life.exit_code == 128 + 15;
            ensure!(ended || kind == Kind::Silent, "{} of {}: {life:?}", life.container, pod.name);
            let packets = life.summary.packets;
            // It begins with IPv4 and takes turns.
            let headers = packets.div_ceil(2) * HEADERS[0] + packets / 2 * HEADERS[1];
            let bytes = life.summary.bytes + headers;
            sum += bytes;
            self.senders.push(Sender {
                kind,
                uid: pod.uid.clone(),
                id: life.id,
                lived: life.lived,
                packets,
                bytes,
            });
        }
        ensure!(sum <= counters.rx_bytes, "{} says {sum}, the kernel {counters:?}", pod.name);
        self.names.insert(pod.uid, pod.name);
        Ok(())
    }
}
