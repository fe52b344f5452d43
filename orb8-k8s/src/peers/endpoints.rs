//! Endpoints outside of the cluster that a Service leads to, such as a database. Those inside are
//! known as pods.

use std::{collections::BTreeMap, net::IpAddr};

use orb8_proto::PeerKind;
use serde::Deserialize;

use super::{
    Named,
    book::{Addressed, Facts},
    services::{self, addresses},
};
use crate::api::Resource;

/// Names the Service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An EndpointSlice: the subset that orb8 reads.
#[derive(Deserialize)]
pub(super) struct EndpointSlice {
    metadata: Metadata,
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(flatten)]
    common: services::Metadata,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    addresses: Option<Vec<String>>,
    target_ref: Option<TargetRef>,
}

#[derive(Deserialize)]
struct TargetRef {
    kind: Option<String>,
}

impl Resource for EndpointSlice {
    fn version(&self) -> Option<&str> {
        self.metadata.common.resource_version.as_deref()
    }
}

impl Addressed for EndpointSlice {
    type Address = IpAddr;
    const WHAT: &'static str = "endpoint slices";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";

    fn is_for_life(_: &IpAddr) -> bool {
        false
    }

    fn read(self) -> Result<Facts<IpAddr>, String> {
        let Metadata { common, labels } = &self.metadata;
        let service = labels.iter().flatten().find(|(name, _)| *name == SERVICE_NAME);
        let service = service.map_or("", |(_, service)| service);
        let namespace = common.namespace.as_deref().unwrap_or("default");
        let outside = self.endpoints.iter().flatten().filter(|endpoint| !endpoint.is_known());
        // A slice without a Service names nobody.
        let texts = outside.filter_map(|e| e.addresses.as_ref()).flatten();
        let mut ips: Vec<IpAddr> = addresses(texts.filter(|_| !service.is_empty())).collect();
        ips.sort_unstable();
        ips.dedup();
        common.facts(Named::new(PeerKind::External, namespace, service), ips)
    }
}

impl Endpoint {
    /// As a pod or a node.
    fn is_known(&self) -> bool {
        let kind = self.target_ref.as_ref().and_then(|target| target.kind.as_deref());
        matches!(kind, Some("Pod" | "Node"))
    }
}
