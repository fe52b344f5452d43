//! A node with two pods, which is all that many tests need.

use std::net::IpAddr;

use anyhow::Result;
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec};

use crate::{address, hooks::programs_at};

/// A node, and the pods `client` and `server` in namespace `shop`.
pub struct Scene {
    /// The node.
    pub node: Node,
    /// Who sends.
    pub client: Pod,
    /// Who is sent to.
    pub server: Pod,
}

impl Scene {
    /// Starts it.
    pub fn start() -> Result<Self> {
        Self::on(Node::start(NodeOptions::default())?)
    }

    /// Starts it; the calling thread is in the node's network namespace from here on.
    pub fn start_inside() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        node.enter()?;
        Self::on(node)
    }

    fn on(node: Node) -> Result<Self> {
        let client = node.start_pod(PodSpec::new("shop", "client"))?;
        let server = node.start_pod(PodSpec::new("shop", "server"))?;
        Ok(Self { node, client, server })
    }

    /// The server's address, IPv4 or IPv6.
    #[must_use]
    pub fn server_ip(&self, ipv6: bool) -> IpAddr {
        address(&self.server, ipv6, 0).ip()
    }

    /// Names of the pods' interfaces, the client's first.
    #[must_use]
    pub fn veths(&self) -> [&str; 2] {
        [self.client.veth(), self.server.veth()]
    }

    /// Names of the programs at the hooks of both. To be called on a thread that is inside.
    pub fn programs(&self) -> Result<Vec<String>> {
        let mut names = programs_at(&self.node, self.client.veth())?;
        names.extend(programs_at(&self.node, self.server.veth())?);
        Ok(names)
    }
}
