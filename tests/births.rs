//! Containers that are gone before anybody could look are named all the same: the kernel told of
//! their cgroups when they were made.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::Result;
use orb8_proto::{AttributedBy, Direction, FlowQuery};
use orb8_testkit::{Node, NodeOptions, PodSpec, Program};
use orb8_tests::Traced;

const PORT: u16 = 7001;
const PODS: u64 = 20;

#[test]
fn a_container_that_sent_and_was_gone_at_once_is_named_by_its_id() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let _sink = node.spawn("sink", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, PORT))?;
    // No list: what is known of the pods comes from the kernel alone.
    let traced = Traced::start(&node, |config| config.pods = None)?;
    let to = SocketAddr::from((node.ipv4(), PORT));
    let mut sent = BTreeMap::new();
    for number in 0..PODS {
        let pod = node.start_pod(PodSpec::new("brief", &format!("p{number}")))?;
        traced.wait_attached(pod.veth())?;
        pod.spawn("app", &Program::udp_send(to, number + 1, 64))?.wait()?;
        let id = pod.container_id("app")?.to_owned();
        sent.insert(id, (pod.uid().to_owned(), pod.veth().to_owned(), number + 1));
        pod.stop()?;
    }
    // By now there is nothing left of them to be looked at.
    let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
    let ours = flows
        .iter()
        .filter(|f| f.direction() == Direction::Egress && f.dst_port == u32::from(PORT));
    let told: BTreeMap<_, _> = ours
        .map(|f| {
            assert_eq!(f.attributed_by(), AttributedBy::SocketCgroup, "{f:?}");
            (f.container_id.clone(), (f.pod_uid.clone(), f.interface.clone(), f.packets))
        })
        .collect();
    assert_eq!(told, sent);
    // And what the kernel said in their name (ARP, neighbour discovery) is their pod's.
    for flow in flows.iter().filter(|f| f.interface.starts_with("veth")) {
        let owner = sent.values().find(|(_, veth, _)| *veth == flow.interface);
        assert_eq!(Some(&flow.pod_uid), owner.map(|(uid, ..)| uid), "{flow:?}");
    }
    traced.stop()
}
