//! Nodes: their addresses, which are also those of their pods on the host network.

use std::net::IpAddr;

use orb8_proto::PeerKind;
use serde::Deserialize;

use super::{
    Named,
    book::{Addressed, Facts},
    services::{Metadata, addresses},
};
use crate::api::Resource;

/// A Node: the subset that orb8 reads.
#[derive(Deserialize)]
pub(super) struct Node {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Deserialize)]
struct NodeAddress {
    r#type: String,
    address: String,
}

impl Resource for Node {
    fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }
}

impl Addressed for Node {
    type Address = IpAddr;
    const WHAT: &'static str = "nodes";
    const PATH: &'static str = "/api/v1/nodes";

    fn is_for_life(_: &IpAddr) -> bool {
        false
    }

    fn read(self) -> Result<Facts<IpAddr>, String> {
        let named = Named::new(PeerKind::Node, "", &self.metadata.name);
        let listed = self.status.addresses.iter().flatten();
        let ips = listed.filter(|a| matches!(&*a.r#type, "InternalIP" | "ExternalIP"));
        let mut ips: Vec<IpAddr> = addresses(ips.map(|a| &a.address)).collect();
        ips.sort_unstable();
        ips.dedup();
        self.metadata.facts(named, ips)
    }
}
