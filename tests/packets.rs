//! Packets as they are on a node: pings, errors, fragments, tags, devices without Ethernet, ARP.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{Direction, FlowQuery, NetworkFlow};
use orb8_testkit::Program;
use orb8_tests::{Classifier, Scene, Traced, address, assert_exact};
use rustix::{
    net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Flows of the client's interface, which is exact.
fn flows(scene: &Scene, traced: &Traced) -> Result<Vec<NetworkFlow>> {
    let now = traced.quiet_counters(scene.client.veth())?;
    assert_exact(&now)?;
    let interface = scene.client.veth().into();
    let flows = traced.flows(FlowQuery { interface, limit: 10_000, ..Default::default() })?;
    ensure!(flows.iter().all(|f| !f.malformed), "{flows:?}");
    Ok(flows)
}

/// Moves the calling thread into a network namespace, for good.
fn enter(netns: &Path) -> Result<()> {
    move_into_link_name_space(File::open(netns)?.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Sends echo requests from a namespace.
fn ping(netns: PathBuf, to: IpAddr, count: u16) -> Result<()> {
    let pinger = std::thread::spawn(move || {
        enter(&netns)?;
        // Type, code, checksum, identifier, sequence number; the kernel sums up for IPv6 only.
        let (family, protocol, request) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, [8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, [128, 0, 0, 0, 0, 0, 0, 0]),
        };
        let socket = socket(family, SocketType::RAW, Some(protocol))?;
        for _ in 0..count {
            sendto(&socket, &request, SendFlags::empty(), &SocketAddr::new(to, 0))?;
        }
        anyhow::Ok(())
    });
    pinger.join().map_err(|_panic| anyhow::anyhow!("the pinger panicked"))?
}

fn icmp(flows: &[NetworkFlow], direction: Direction, kind: u32) -> Result<&NetworkFlow> {
    let found = flows.iter().find(|f| f.direction() == direction && f.icmp_type == Some(kind));
    found.with_context(|| format!("no {direction:?} flow of ICMP type {kind} in {flows:?}"))
}

#[test]
fn pings_and_neighbour_discovery_are_told_by_their_types() -> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    for ipv6 in [false, true] {
        ping(scene.client.netns_path().to_owned(), scene.server_ip(ipv6), 5)?;
    }
    let flows = flows(&scene, &traced)?;
    let pairs = [("icmp", 8, 0, 14 + 20 + 8), ("ipv6-icmp", 128, 129, 14 + 40 + 8)];
    for (protocol, request, reply, size) in pairs {
        for (direction, kind) in [(Direction::Egress, request), (Direction::Ingress, reply)] {
            let flow = icmp(&flows, direction, kind)?;
            assert_eq!((flow.packets, flow.bytes), (5, 5 * size), "{flow:?}");
            assert_eq!((&*flow.protocol, flow.icmp_code), (protocol, Some(0)), "{flow:?}");
            assert_eq!((flow.src_port, flow.dst_port), (0, 0), "{flow:?}");
            assert_eq!(&*flow.pod_name, "client");
        }
    }
    // Who has fd00:…, and the answer.
    icmp(&flows, Direction::Egress, 135)?;
    icmp(&flows, Direction::Ingress, 136)?;
    let arp: Vec<_> = flows.iter().filter(|f| f.protocol == "arp").collect();
    assert!(arp.iter().any(|f| f.direction() == Direction::Egress), "{arp:?}");
    assert!(arp.iter().any(|f| f.direction() == Direction::Ingress), "{arp:?}");
    assert!(arp.iter().all(|f| f.src_ip.is_empty() && f.src_port == 0), "{arp:?}");
    traced.stop()
}

#[test]
fn a_port_that_nobody_listens_on_answers_by_icmp() -> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    for ipv6 in [false, true] {
        let send = Program::udp_send(address(&scene.server, ipv6, 7009), 1, 64);
        scene.client.spawn("app", &send)?.wait()?;
    }
    let flows = flows(&scene, &traced)?;
    for (kind, code) in [(3, 3), (1, 4)] {
        let flow = icmp(&flows, Direction::Ingress, kind)?;
        assert_eq!(flow.icmp_code, Some(code), "{flow:?}");
    }
    traced.stop()
}

#[test]
fn fragments_are_counted_and_no_payload_is_taken_for_ports() -> Result<()> {
    const DATAGRAMS: u64 = 10;
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    for ipv6 in [false, true] {
        let any = scene.server_ip(ipv6);
        let mut sink = scene.server.spawn("app", &Program::udp_sink(any, 7001))?;
        let send = Program::udp_send(address(&scene.server, ipv6, 7001), DATAGRAMS, 20_000);
        scene.client.spawn("app", &send)?.wait()?;
        assert_eq!(sink.stop()?.bytes, DATAGRAMS * 20_000);
    }
    let flows = flows(&scene, &traced)?;
    // Header and bytes that a fragment of an MTU of 1500 carries, in units of 8.
    for (ipv6, header, share) in [(false, 20, 1_480), (true, 40 + 8, 1_448)] {
        let to = scene.server_ip(ipv6).to_string();
        let sent = flows.iter().filter(|f| f.protocol == "udp" && f.dst_ip == to);
        let (later, first): (Vec<&NetworkFlow>, Vec<_>) = sent.partition(|f| f.fragment);
        assert_eq!((first.len(), later.len()), (1, 1), "{first:?} {later:?}");
        assert_eq!(first[0].dst_port, 7001);
        assert_eq!(first[0].packets, DATAGRAMS);
        assert_eq!((later[0].src_port, later[0].dst_port), (0, 0));
        let whole: u64 = 8 + 20_000;
        let fragments = whole.div_ceil(share);
        assert_eq!(later[0].packets, DATAGRAMS * (fragments - 1));
        let bytes = DATAGRAMS * (whole + fragments * (14 + header));
        assert_eq!(first[0].bytes + later[0].bytes, bytes);
    }
    traced.stop()
}

#[test]
fn a_tagged_packet_shows_its_vlan_and_its_ports() -> Result<()> {
    const VLAN: u16 = 42;
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    // Nobody in that VLAN answers, so the client has to know the way.
    let to = address(&scene.server, false, 7001);
    let neighbour = format!("ip neigh replace {} lladdr 02:00:00:00:00:99 dev eth0", to.ip());
    assert!(scene.client.exec(&["sh", "-c", &neighbour])?.status.success());
    let netns = scene.client.netns_path().to_owned();
    let tagger = std::thread::spawn(move || {
        enter(&netns)?;
        Classifier::tagger("eth0", VLAN)
    });
    let _tagger = tagger.join().map_err(|_panic| anyhow::anyhow!("the tagger panicked"))??;
    scene.client.spawn("app", &Program::udp_send(to, 10, 64))?.wait()?;
    let flows = flows(&scene, &traced)?;
    let tagged: Vec<_> = flows.iter().filter(|f| f.dst_port == 7001).collect();
    assert_eq!(tagged.len(), 1, "{tagged:?}");
    assert_eq!((tagged[0].vlan_id, &*tagged[0].protocol), (Some(VLAN.into()), "udp"));
    assert_eq!((tagged[0].packets, &*tagged[0].dst_ip), (10, &*to.ip().to_string()));
    traced.stop()
}

/// VXLAN-GPE carries IP without Ethernet, so its device has no link-layer header.
#[test]
fn a_device_without_ethernet_is_read_from_the_ip_header_on() -> Result<()> {
    let scene = Scene::start()?;
    let (node, pod) = (&scene.node, &scene.server);
    // What IPv6 says to everybody has no way through the tunnel: it would be dropped behind the
    // hook, and not be in the device's counters.
    let tunnel = |own: &str, other: &str, via: IpAddr| {
        format!(
            "ip link add vx0 type vxlan dstport 4790 external gpe \
             && echo 1 > /proc/sys/net/ipv6/conf/vx0/disable_ipv6 \
             && ip addr add {own}/32 dev vx0 && ip link set vx0 up \
             && ip route add {other}/32 encap ip id 7 dst {via} dev vx0"
        )
    };
    let here = tunnel("10.98.0.1", "10.98.0.2", pod.ipv4().into());
    let there = tunnel("10.98.0.2", "10.98.0.1", node.ipv4().into());
    for output in [node.exec(&["sh", "-c", &here])?, pod.exec(&["sh", "-c", &there])?] {
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let traced = Traced::start(node, |config| config.interfaces = vec!["vx0".into()])?;
    let any = IpAddr::from([0, 0, 0, 0]);
    let mut sink = pod.spawn("app", &Program::udp_sink(any, 7001))?;
    let send = Program::udp_send("10.98.0.2:7001".parse()?, 20, 100);
    node.spawn("sender", &send)?.wait()?;
    ping(node.netns_path(), "10.98.0.2".parse()?, 3)?;
    assert_eq!(sink.stop()?.packets, 20);

    let now = traced.quiet_counters("vx0")?;
    assert_exact(&now)?;
    let flows = traced.flows(FlowQuery { interface: "vx0".into(), ..FlowQuery::default() })?;
    ensure!(flows.iter().all(|f| !f.malformed), "{flows:?}");
    let sent = flows.iter().find(|f| f.dst_port == 7001).context("the datagrams")?;
    assert_eq!((sent.packets, sent.bytes), (20, 20 * (20 + 8 + 100)), "{sent:?}");
    assert_eq!((&*sent.src_ip, &*sent.dst_ip), ("10.98.0.1", "10.98.0.2"));
    assert_eq!(icmp(&flows, Direction::Egress, 8)?.packets, 3);
    assert_eq!(icmp(&flows, Direction::Ingress, 0)?.packets, 3);
    traced.stop()
}

#[test]
fn a_large_transfer_is_one_flow_each_way_whose_segments_are_counted() -> Result<()> {
    const BYTES: u64 = 64 << 20;
    let scene = Scene::start()?;
    for ipv6 in [false, true] {
        let traced = Traced::start(&scene.node, |_| {})?;
        let _sink = scene.server.spawn("app", &Program::tcp_sink(scene.server_ip(ipv6), 7002))?;
        let send = Program::tcp_send(address(&scene.server, ipv6, 7002), BYTES);
        scene.client.spawn("app", &send)?.wait()?;
        let flows = flows(&scene, &traced)?;
        let of: Vec<_> = flows.iter().filter(|f| f.dst_port == 7002).collect();
        let back: Vec<_> = flows.iter().filter(|f| f.src_port == 7002).collect();
        assert_eq!((of.len(), back.len()), (1, 1), "{of:?} {back:?}");
        // A segment of an MTU of 1500 has 1,448 bytes of data over IPv4 and 1,428 over IPv6.
        let segments = BYTES.div_ceil(if ipv6 { 1_428 } else { 1_448 });
        let wire = of[0].wire_packets;
        assert!((segments..segments + segments / 10).contains(&wire), "{wire} of {segments}");
        assert!(of[0].packets < wire / 4, "GSO was on: {of:?}");
        traced.stop()?;
    }
    Ok(())
}
