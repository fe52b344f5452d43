//! Services: the addresses and ports under which clients reach them.

use std::net::IpAddr;

use orb8_proto::PeerKind;
use serde::Deserialize;

use super::{
    Named,
    book::{Addressed, Facts},
};
use crate::{api::Resource, manifest::times::stamp};

/// What a client may see of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Front {
    /// A ClusterIP: nobody else's while the Service exists, whatever the port.
    Cluster(IpAddr),
    /// An address of a load balancer, or an external IP, which Services may share: with IANA
    /// protocol number and port.
    Outside(IpAddr, u8, u16),
    /// A port of every node, with its protocol.
    NodePort(u8, u16),
}

/// A Service: the subset that orb8 reads.
#[derive(Deserialize)]
pub(super) struct Service {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

/// What every object has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) namespace: Option<String>,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: String,
    pub(super) resource_version: Option<String>,
    pub(super) creation_timestamp: Option<String>,
}

impl Metadata {
    /// What is known of the object `named`, that has `addresses`.
    pub(super) fn facts<A>(
        &self,
        named: std::sync::Arc<Named>,
        addresses: Vec<A>,
    ) -> Result<Facts<A>, String> {
        let who = || format!("{}/{}", self.namespace.as_deref().unwrap_or_default(), self.name);
        if self.name.is_empty() {
            return Err("no metadata.name, expected the object's name".into());
        }
        let uid = self.uid.parse().map_err(|why| format!("{}: metadata.uid: {why}", who()))?;
        let created = stamp(self.creation_timestamp.as_deref());
        Ok(Facts { uid, named, created, addresses })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    protocol: Option<String>,
    port: u16,
    node_port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    load_balancer: LoadBalancer,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize)]
struct Ingress {
    ip: Option<String>,
}

impl Resource for Service {
    fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }
}

impl Addressed for Service {
    type Address = Front;
    const WHAT: &'static str = "services";
    const PATH: &'static str = "/api/v1/services";

    fn is_for_life(address: &Front) -> bool {
        matches!(address, Front::Cluster(_))
    }

    fn read(self) -> Result<Facts<Front>, String> {
        let namespace = self.metadata.namespace.as_deref().unwrap_or("default");
        let named = Named::new(PeerKind::Service, namespace, &self.metadata.name);
        let fronts = self.fronts();
        self.metadata.facts(named, fronts)
    }
}

impl Service {
    fn fronts(&self) -> Vec<Front> {
        let Spec { cluster_ip, cluster_ips, external_ips, ports } = &self.spec;
        // A headless Service has `None` for an address.
        let cluster = cluster_ips.iter().flatten().chain(cluster_ip);
        let mut fronts: Vec<Front> = addresses(cluster).map(Front::Cluster).collect();
        let balanced = self.status.load_balancer.ingress.iter().flatten();
        let balanced = balanced.filter_map(|ingress| ingress.ip.as_ref());
        let outside: Vec<IpAddr> =
            addresses(external_ips.iter().flatten().chain(balanced)).collect();
        for port in ports.iter().flatten() {
            let Some(protocol) = number(port.protocol.as_deref()) else { continue };
            fronts.extend(outside.iter().map(|ip| Front::Outside(*ip, protocol, port.port)));
            let node_port = port.node_port.filter(|port| *port != 0);
            fronts.extend(node_port.map(|port| Front::NodePort(protocol, port)));
        }
        fronts.dedup();
        fronts
    }
}

/// Those of the texts that are addresses.
pub(super) fn addresses<'a>(
    texts: impl Iterator<Item = &'a String>,
) -> impl Iterator<Item = IpAddr> {
    texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical())
}

/// The IANA number of a protocol as the API calls it.
fn number(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("" | "TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some(_) => None,
    }
}
