//! Every change of the interfaces of a network namespace, as the kernel announces it.

use std::{io, time::Duration};

use futures_util::{Stream, stream};

use super::{
    Message, NetlinkError, RouteSocket,
    links::{Link, LinkCounters},
};

/// A change of the interfaces of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// It is new, or something about it changed.
    Up(Link),
    /// It was removed, or moved to another namespace.
    Gone {
        /// Its index, free to be used again.
        index: u32,
        /// Its last name.
        name: String,
        /// What it carried. Of a veth, only what it sent: by then it has no other end any more, which
        /// counts what it received.
        counters: LinkCounters,
    },
    /// Changes were lost: only a new snapshot tells what is there.
    Resync,
}

/// RTNLGRP_LINK as a mask.
const LINK_GROUP: u32 = 1;
/// Holds the changes of some thousand interfaces, if the agent is kept from reading them for so long.
/// When it is too small the kernel says so, and the answer is [`LinkChange::Resync`].
const RECEIVE_BUFFER: usize = 16 << 20;
/// Between attempts to open a socket again.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

/// Every change of the interfaces of a namespace, from now on. To miss nothing, open it before the
/// snapshot is taken. Changes queued in between are then reported although the snapshot has them.
pub struct LinkWatch {
    /// None after it broke.
    socket: Option<RouteSocket>,
    receive_buffer: usize,
    /// Received, not handed out yet; in reverse.
    pending: Vec<LinkChange>,
}

impl LinkWatch {
    /// Watches the network namespace of the calling thread. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::with_receive_buffer(RECEIVE_BUFFER)
    }

    fn with_receive_buffer(bytes: usize) -> Result<Self, NetlinkError> {
        let socket =
            subscribe(bytes).map_err(|why| NetlinkError::new("watch the interfaces", why))?;
        Ok(Self { socket: Some(socket), receive_buffer: bytes, pending: Vec::new() })
    }

    /// Waits for the next change. A socket that overran or broke is replaced by a new one, in the
    /// namespace of the thread that waits, and reported as [`LinkChange::Resync`]. Cancelling it loses
    /// nothing.
    pub async fn next(&mut self) -> LinkChange {
        loop {
            if let Some(change) = self.pending.pop() {
                return change;
            }
            let Some(socket) = &self.socket else {
                self.reopen().await;
                return LinkChange::Resync;
            };
            let received = socket.receive().await;
            self.queue(received);
        }
    }

    /// The next change that the kernel has announced by now, if there is one: whatever was true when
    /// it answered a question before this is told by these.
    pub fn next_queued(&mut self) -> Option<LinkChange> {
        loop {
            if let Some(change) = self.pending.pop() {
                return Some(change);
            }
            // A broken one is replaced by whoever waits for the next change.
            let received = self.socket.as_ref()?.receive_queued().transpose()?;
            self.queue(received);
        }
    }

    fn queue(&mut self, received: io::Result<Vec<Message>>) {
        match received {
            Ok(messages) => self.pending.extend(messages.iter().rev().filter_map(change)),
            // The old queue is dropped with its socket: what is in it is older than the snapshot that
            // the consumer takes next, and its ends may be missing.
            Err(why) => {
                tracing::warn!(error = %why, "changes of interfaces were lost, listing them again");
                self.socket = None;
            }
        }
    }

    /// Whether changes may have been missed since the last one that was handed out.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.socket.is_none()
    }

    /// The same as a stream without an end.
    pub fn into_stream(self) -> impl Stream<Item = LinkChange> + Send {
        stream::unfold(self, async |mut watch| Some((watch.next().await, watch)))
    }

    async fn reopen(&mut self) {
        loop {
            match subscribe(self.receive_buffer) {
                Ok(socket) => {
                    self.socket = Some(socket);
                    return;
                }
                Err(why) => {
                    tracing::warn!(error = %why, "cannot watch the interfaces, trying again");
                    tokio::time::sleep(REOPEN_DELAY).await;
                }
            }
        }
    }
}

fn subscribe(receive_buffer: usize) -> io::Result<RouteSocket> {
    let socket = RouteSocket::open(LINK_GROUP)?;
    socket.set_receive_buffer(receive_buffer)?;
    Ok(socket)
}

fn change(message: &Message) -> Option<LinkChange> {
    // Bridges announce their ports in the same group. A port that leaves its bridge is not gone.
    if message.body.first() != Some(&0) {
        return None;
    }
    let link = Link::parse(&message.body)?;
    match message.kind {
        libc::RTM_NEWLINK => Some(LinkChange::Up(link)),
        libc::RTM_DELLINK => {
            let Link { index, name, counters, .. } = link;
            Some(LinkChange::Gone { index, name, counters })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::{
        links::Links,
        scratch::{Namespace, sh},
    };

    #[test]
    fn every_change_is_reported_and_a_port_that_leaves_its_bridge_is_not_gone() {
        Namespace::new().run(async || {
            let watch = LinkWatch::open().unwrap();
            sh("ip link add br0 type bridge; ip link add v0 type veth peer name v1; \
                ip link set v0 master br0; ip link set v0 up; ip link set v0 nomaster; \
                ip link set v1 name w1; ip link add end type bridge; ip link del v0");
            let mut seen = Vec::new();
            let mut changes = std::pin::pin!(watch.into_stream());
            while !seen
                .iter()
                .any(|change| matches!(change, LinkChange::Gone { name, .. } if name == "w1"))
            {
                let wait = tokio::time::timeout(Duration::from_secs(5), changes.next());
                seen.push(wait.await.expect("w1 is gone").unwrap());
            }
            let end = seen
                .iter()
                .position(|change| matches!(change, LinkChange::Up(l) if l.name == "end"));
            let (before, after) = seen.split_at(end.expect("a new interface is reported"));
            assert!(
                !before.iter().any(|change| matches!(change, LinkChange::Gone { .. })),
                "{seen:?}"
            );
            assert!(
                before
                    .iter()
                    .any(|change| matches!(change, LinkChange::Up(l) if l.name == "v0" && l.up))
            );
            assert!(
                before.iter().any(|change| matches!(change, LinkChange::Up(l) if l.name == "w1"))
            );
            assert!(
                after
                    .iter()
                    .any(|change| matches!(change, LinkChange::Gone { name, .. } if name == "v0"))
            );
        });
    }

    #[test]
    fn lost_changes_ask_for_a_new_snapshot_and_the_watch_goes_on() {
        Namespace::new().run(async || {
            let mut watch = LinkWatch::with_receive_buffer(4_096).unwrap();
            sh("for i in $(seq 60); do echo link add d$i type bridge; done | ip -batch -");
            let soon = Duration::from_secs(5);
            let lost = async { while !matches!(watch.next().await, LinkChange::Resync) {} };
            tokio::time::timeout(soon, lost).await.expect("the overrun is reported");
            assert_eq!(Links::open().unwrap().snapshot().await.unwrap().len(), 61);
            sh("ip link add after type bridge");
            let next = tokio::time::timeout(soon, watch.next()).await.expect("it goes on");
            assert!(matches!(&next, LinkChange::Up(link) if link.name == "after"), "{next:?}");
        });
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(
            kind in 16u16..18,
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = change(&Message { kind, flags: 0, sequence: 0, body });
        }
    }
}
