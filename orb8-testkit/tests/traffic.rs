//! Pods talk to each other, and the kernel's counters agree with what the programs say they did.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::net::{IpAddr, SocketAddr};

use orb8_testkit::program::{
    Bind, DnsClient, DnsServer, Exec, Flows, HoldFlows, HttpClient, Proto, TcpSink, UdpSend,
    UdpSink,
};
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec, Program};

struct Pair {
    node: Node,
    client: Pod,
    server: Pod,
}

impl Pair {
    fn start() -> Self {
        let node = Node::start(NodeOptions::default()).unwrap();
        let client = node.start_pod(PodSpec::new("shop", "client")).unwrap();
        let server = node.start_pod(PodSpec::new("shop", "server")).unwrap();
        Self { node, client, server }
    }

    fn server_ips(&self) -> [IpAddr; 2] {
        [self.server.ipv4().into(), self.server.ipv6().into()]
    }
}

#[test]
fn a_thousand_datagrams_are_sent_received_and_counted_on_both_veths() {
    let pair = Pair::start();
    for ip in pair.server_ips() {
        let mut sink = pair.server.spawn("app", &Program::udp_sink(ip, 0)).unwrap();
        let before = (pair.client.link_counters().unwrap(), pair.server.link_counters().unwrap());
        let send = Program::udp_send(sink.addr().unwrap(), 1_000, 200);
        let sent = pair.client.spawn("app", &send).unwrap().wait().unwrap();
        assert_eq!((sent.packets, sent.bytes), (1_000, 200_000));

        let received = sink.stop().unwrap();
        assert_eq!((received.packets, received.bytes), (1_000, 200_000), "{ip}");
        let after = (pair.client.link_counters().unwrap(), pair.server.link_counters().unwrap());
        let rx = after.0.rx_packets - before.0.rx_packets;
        let tx = after.1.tx_packets - before.1.tx_packets;
        // Address resolution and multicast membership come on top, a few packets each.
        assert!((1_000..1_050).contains(&rx), "the client's veth received {rx}");
        assert!((1_000..1_050).contains(&tx), "the server's veth sent {tx}");
        let headers = if ip.is_ipv4() { 14 + 20 + 8 } else { 14 + 40 + 8 };
        assert!(after.0.rx_bytes - before.0.rx_bytes >= 1_000 * (200 + headers));
        let again = pair.node.link_counters(pair.client.veth()).unwrap();
        assert!((after.0.rx_packets..after.0.rx_packets + 50).contains(&again.rx_packets));
    }
}

#[test]
fn tcp_carries_every_byte_over_both_address_families() {
    let pair = Pair::start();
    for ip in pair.server_ips() {
        let mut sink = pair.server.spawn("app", &Program::tcp_sink(ip, 0)).unwrap();
        let before = pair.client.link_counters().unwrap();
        let send = Program::tcp_send(sink.addr().unwrap(), 20_000_000);
        assert_eq!(pair.client.spawn("app", &send).unwrap().wait().unwrap().bytes, 20_000_000);
        assert_eq!(sink.stop().unwrap().bytes, 20_000_000);
        let after = pair.client.link_counters().unwrap();
        assert!(after.rx_bytes - before.rx_bytes > 20_000_000);
    }
}

#[test]
fn an_echo_answers_every_datagram_and_a_rate_is_kept() {
    let pair = Pair::start();
    let bind = SocketAddr::new(pair.server.ipv6().into(), 7);
    let _echo = pair.server.spawn("app", &Program::UdpEcho(Bind { bind })).unwrap();
    let send = UdpSend {
        to: bind,
        packets: 100,
        size: 10,
        pps: Some(200),
        from_port: Some(4_000),
        await_echo: true,
    };
    let start = std::time::Instant::now();
    let summary = pair.client.spawn("app", &Program::UdpSend(send)).unwrap().wait().unwrap();
    assert_eq!((summary.packets, summary.replies), (100, 100));
    assert!(start.elapsed().as_millis() >= 480, "{:?}", start.elapsed());
}

#[test]
fn http_answers_with_and_without_keep_alive() {
    let pair = Pair::start();
    for (ip, keep_alive) in pair.server_ips().into_iter().zip([false, true]) {
        let bind = SocketAddr::new(ip, 8080);
        let _server = pair.server.spawn("app", &Program::HttpServer(Bind { bind })).unwrap();
        let get = HttpClient { to: bind, requests: 20, every: 1, size: 5_000, keep_alive };
        let summary = pair.client.spawn("app", &Program::HttpClient(get)).unwrap().wait().unwrap();
        assert_eq!((summary.replies, summary.bytes), (20, 100_000));
        assert_eq!(summary.flows, if keep_alive { 1 } else { 20 });
    }
}

#[test]
fn dns_resolves_over_both_address_families() {
    let pair = Pair::start();
    for ip in pair.server_ips() {
        let bind = SocketAddr::new(ip, 53);
        let record = vec!["web.shop.svc=10.96.0.10".to_owned()];
        let server = Program::DnsServer(DnsServer { bind, record });
        let _server = pair.server.spawn("app", &server).unwrap();
        let name = vec!["web.shop.svc".to_owned(), "no.such".to_owned()];
        let client = Program::DnsClient(DnsClient { to: bind, name, requests: 10, every: 0 });
        let summary = pair.client.spawn("app", &client).unwrap().wait().unwrap();
        assert_eq!((summary.replies, summary.flows), (10, 10));
    }
}

#[test]
fn many_flows_are_distinct_flows() {
    let pair = Pair::start();
    let bind = SocketAddr::new(pair.server.ipv4().into(), 9_000);
    let mut udp = pair.server.spawn("app", &Program::UdpSink(UdpSink { bind, ports: 3 })).unwrap();
    let mut tcp = pair.server.spawn("app", &Program::TcpSink(TcpSink { bind, ports: 3 })).unwrap();
    let flows = |proto, count| {
        let flows = Flows { to: bind, count, packets_per_flow: 2, size: 10, proto, ports: Some(3) };
        pair.client.spawn("app", &Program::Flows(flows)).unwrap().wait().unwrap()
    };
    assert_eq!(flows(Proto::Udp, 3_000).flows, 3_000);
    assert_eq!(flows(Proto::Tcp, 300).packets, 600);
    let udp = udp.stop().unwrap();
    assert_eq!((udp.flows, udp.packets), (3_000, 6_000));
    let tcp = tcp.stop().unwrap();
    assert_eq!((tcp.flows, tcp.bytes), (300, 6_000));
}

#[test]
fn held_flows_live_at_once_until_they_are_stopped() {
    let pair = Pair::start();
    let bind = SocketAddr::new(pair.server.ipv6().into(), 9_000);
    let mut sink = pair.server.spawn("app", &Program::UdpSink(UdpSink { bind, ports: 2 })).unwrap();
    let hold = HoldFlows { to: bind, count: 2_000, pps: 1_000, size: 20, ports: 2 };
    let mut held = pair.client.spawn("app", &Program::HoldFlows(hold)).unwrap();

    std::thread::sleep(std::time::Duration::from_millis(300));
    let sent = held.stop().unwrap();
    assert!((2_200..3_000).contains(&sent.packets), "{sent:?}");
    let received = sink.stop().unwrap();
    assert_eq!((received.packets, received.flows), (sent.packets, 2_000));
}

#[test]
fn a_program_that_fails_or_hangs_is_an_error_that_says_why() {
    let pair = Pair::start();
    let nobody = SocketAddr::new(pair.server.ipv4().into(), 1);
    let refused = pair.client.spawn("app", &Program::tcp_send(nobody, 10)).unwrap().wait();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("refused") && refused.contains(&nobody.to_string()), "{refused}");

    let elsewhere = Program::udp_sink(pair.client.ipv4(), 80);
    let not_ready = pair.server.spawn("app", &elsewhere).unwrap_err().to_string();
    assert!(not_ready.contains("cannot bind"), "{not_ready}");

    let sleep = Program::Exec(Exec { command: vec!["sleep".into(), "60".into()] });
    let mut sleep = pair.client.spawn("app", &sleep).unwrap();
    let limit = std::time::Duration::from_millis(100);
    let late = sleep.wait_for(limit).unwrap_err().to_string();
    assert!(late.contains("100ms"), "{late}");
    assert!(pair.client.spawn("db", &Program::udp_sink(pair.client.ipv4(), 0)).is_err());
}

#[test]
fn the_node_itself_talks_to_its_pods_and_pods_reach_the_gateway() {
    let pair = Pair::start();
    let to_pod = pair.server.spawn("app", &Program::udp_sink(pair.server.ipv4(), 0)).unwrap();
    let send = Program::udp_send(to_pod.addr().unwrap(), 10, 10);
    assert_eq!(pair.node.spawn("kubelet", &send).unwrap().wait().unwrap().packets, 10);

    let sink = pair.node.spawn("kubelet", &Program::tcp_sink(pair.node.ipv6(), 0)).unwrap();
    let send = Program::tcp_send(sink.addr().unwrap(), 1_000);
    assert_eq!(pair.client.spawn("app", &send).unwrap().wait().unwrap().bytes, 1_000);
}
