//! Route netlink, as far as a node needs it to give pods their interfaces: starting `ip` for each step would cost more
//! than the steps.

mod link;
mod message;
mod veth;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt,
};

use crate::netns::Netns;
pub(crate) use link::PortState;
use message::{Message, answers};
pub(crate) use veth::{Addresses, Mac};

/// The kernel answers as soon as it gets the one lock for interfaces.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Larger than what the kernel says about one interface.
const DATAGRAM: usize = 32 << 10;

/// A socket in one network namespace.
pub(crate) struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    /// Opens a socket in `netns`; the calling thread stays where it is.
    pub(crate) fn open(netns: &Netns) -> Result<Self> {
        let open = || -> Result<OwnedFd> {
            netns.enter()?;
            let kind = SocketType::RAW;
            Ok(socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None)?)
        };
        // A socket belongs to the namespace that its maker is in at that moment.
        let opened = thread::scope(|scope| scope.spawn(open).join());
        let socket = opened.map_err(|_panic| anyhow!("a thread panicked in {netns:?}"))??;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_LIMIT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel do all of it, in this order, and gives its answers but for the receipts.
    fn request(&mut self, messages: &[Message]) -> Result<Vec<Vec<u8>>> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence += 1;
            message.encode(self.sequence, &mut bytes)?;
        }
        send(&self.socket, &bytes, SendFlags::empty()).context("netlink: cannot send")?;
        let mut found = Vec::new();
        let mut open = messages.len();
        let mut refused = None;
        let mut buffer = vec![0; DATAGRAM];
        while open > 0 {
            let (length, _) = recv(&self.socket, &mut *buffer, RecvFlags::empty())
                .with_context(|| format!("netlink: no answer within {ANSWER_LIMIT:?}"))?;
            for answer in answers(&buffer[..length]) {
                let Some(message) =
                    answer.sequence.checked_sub(first).and_then(|at| messages.get(at as usize))
                else {
                    bail!("netlink: an answer to request {}, which was not sent", answer.sequence)
                };
                match answer.receipt() {
                    None => found.push(answer.body.to_vec()),
                    Some(code) => {
                        open -= 1;
                        if code != 0 {
                            let why = io::Error::from_raw_os_error(-code);
                            refused.get_or_insert_with(|| {
                                anyhow!(why).context(format!("cannot {}", message.what))
                            });
                        }
                    }
                }
            }
        }
        refused.map_or(Ok(found), Err)
    }
}

/// `AF_INET` or `AF_INET6`, and the address.
fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (2, address.octets().to_vec()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    }
}
