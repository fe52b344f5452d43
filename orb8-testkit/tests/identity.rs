//! A pod is who its cgroups, its interface and the pod list say it is.

use std::fs;

use orb8_testkit::program::{Bind, Exec, Flows, Hold, HttpClient, Proto, UdpSend};
use orb8_testkit::{CgroupDriver, Node, NodeOptions, PodSpec, Program, Qos, Runtime};

#[test]
fn a_program_is_in_the_cgroup_of_its_container_and_in_the_namespace_of_its_pod() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let spec = PodSpec::new("shop", "web")
        .qos(Qos::Guaranteed)
        .containers(&["app", "proxy"])
        .driver(CgroupDriver::Systemd)
        .runtime(Runtime::CriOCrun);
    let pod = node.start_pod(spec).unwrap();
    let proxy = pod.spawn("proxy", &Program::Hold(Hold::default())).unwrap();

    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", proxy.pid())).unwrap();
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let expected = format!(
        "kubepods.slice/kubepods-pod{}.slice/crio-{}.scope/container",
        pod.uid().replace('-', "_"),
        pod.container_id("proxy").unwrap()
    );
    assert!(path.ends_with(&expected), "{path}, expected {expected}");
    assert!(pod.cgroup_dir("proxy").unwrap().ends_with(&expected));
    assert_ne!(pod.cgroup_id("proxy").unwrap(), pod.cgroup_id("app").unwrap());

    let namespace = |path: &std::path::Path| fs::read_link(path).unwrap();
    let own = namespace(format!("/proc/{}/ns/net", proxy.pid()).as_ref());
    assert_eq!(own, namespace(pod.netns_path()));
    assert_ne!(own, namespace(&node.netns_path()));
    assert_ne!(namespace(&node.netns_path()), namespace("/proc/self/ns/net".as_ref()));
    assert_eq!(pod.container_id("app").unwrap().len(), 64);
}

#[test]
fn a_threads_entry_into_the_node_shows_it_the_pods_veth() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let pod = node.start_pod(PodSpec::new("shop", "web")).unwrap();
    let netns = node.netns();
    let devices = std::thread::spawn(move || {
        netns.enter().unwrap();
        fs::read_to_string("/proc/thread-self/net/dev").unwrap()
    });
    assert!(devices.join().unwrap().contains(pod.veth()));
    assert!(!fs::read_to_string("/proc/self/net/dev").unwrap().contains(pod.veth()));

    let shown = node.exec(&["ip", "-o", "link", "show", "dev", pod.veth()]).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.starts_with(&format!("{}: ", pod.ifindex())), "{shown}");
    let inside = pod.exec(&["ip", "-o", "addr", "show", "dev", "eth0"]).unwrap();
    let inside = String::from_utf8(inside.stdout).unwrap();
    assert!(inside.contains(&pod.ipv4().to_string()), "{inside}");
    assert!(inside.contains(&pod.ipv6().to_string()), "{inside}");
}

#[test]
fn the_pod_list_names_running_pods_as_the_api_does() {
    let options = NodeOptions { name: Some("worker-1".into()), ..NodeOptions::default() };
    let node = Node::start(options).unwrap();
    let spec = PodSpec::new("shop", "web-7f-x")
        .qos(Qos::BestEffort)
        .label("app", "web")
        .owner("ReplicaSet", "web-7f");
    let web = node.start_pod(spec).unwrap();
    let gone = node.start_pod(PodSpec::new("shop", "gone")).unwrap();
    assert_ne!(web.ipv4(), gone.ipv4());
    gone.stop().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.json");
    node.write_pod_list(&path).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing beside the list");

    assert_eq!(list["kind"], "PodList");
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let pod = &list["items"][0];
    assert_eq!(pod["metadata"]["uid"], web.uid());
    assert_eq!(pod["metadata"]["namespace"], "shop");
    assert_eq!(pod["metadata"]["labels"]["app"], "web");
    assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "web-7f");
    assert_eq!(pod["spec"]["nodeName"], "worker-1");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert_eq!(pod["status"]["podIPs"][1]["ip"], web.ipv6().to_string());
    let id = format!("containerd://{}", web.container_id("app").unwrap());
    assert_eq!(pod["status"]["containerStatuses"][0]["containerID"], id);
}

#[test]
fn addresses_go_round_and_a_wanted_one_is_given() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let first = node.start_pod(PodSpec::new("a", "first")).unwrap();
    let address = first.ipv4();
    first.stop().unwrap();
    let next = node.start_pod(PodSpec::new("a", "next")).unwrap();
    assert_ne!(next.ipv4(), address, "the last one to be reused");

    let wanted = |host| PodSpec { host_number: Some(host), ..PodSpec::new("a", "again") };
    let again = node.start_pod(wanted(address.octets()[3].into())).unwrap();
    assert_eq!(again.ipv4(), address);
    let taken = node.start_pod(wanted(address.octets()[3].into())).unwrap_err().to_string();
    assert!(taken.contains("in use"), "{taken}");
    assert!(node.start_pod(wanted(1)).is_err(), "the gateway's");
    assert!(node.start_pod(wanted(1023)).is_err(), "the broadcast address");
}

#[test]
fn a_pod_on_the_nodes_network_has_its_own_cgroups_and_the_nodes_addresses() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let pod = node.start_pod(PodSpec::new("kube-system", "proxy").host_network()).unwrap();
    assert_eq!((pod.ipv4(), pod.ipv6()), (node.ipv4(), node.ipv6()));
    assert_eq!((pod.veth(), pod.ifindex()), ("", 0));
    assert!(pod.link_counters().is_err());
    let server = pod.spawn("app", &Program::tcp_sink(node.ipv4(), 0)).unwrap();
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    for (pid, of) in [(server.pid(), pod.container_id("app").unwrap()), (pod.sandbox_pid(), "")] {
        assert_eq!(namespace(pid), fs::read_link(node.netns_path()).unwrap());
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.contains(&format!("/pod{}/", pod.uid())), "{cgroup}");
        assert!(cgroup.trim().ends_with(of), "{cgroup}");
    }
    let list = node.pod_list();
    let object = &list["items"][0];
    assert_eq!(object["spec"]["hostNetwork"], true);
    assert_eq!(object["status"]["podIP"], node.ipv4().to_string());
    assert_eq!(object["status"]["hostIP"], node.ipv4().to_string());

    let client = node.start_pod(PodSpec::new("shop", "client")).unwrap();
    let send = Program::tcp_send(server.addr().unwrap(), 1_000);
    assert_eq!(client.spawn("app", &send).unwrap().wait().unwrap().bytes, 1_000);
    let cgroup = pod.cgroup_dir("app").unwrap().to_owned();
    drop(server);
    pod.stop().unwrap();
    assert!(!cgroup.exists());
    assert!(
        node.start_pod(PodSpec { host_number: Some(5), ..PodSpec::new("a", "b").host_network() })
            .is_err()
    );
}

#[test]
fn a_name_of_an_interface_is_used_again_at_once() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let spec = || PodSpec { veth: Some("vethagain".into()), ..PodSpec::new("a", "again") };
    let first = node.start_pod(spec()).unwrap();
    assert!(node.start_pod(spec()).is_err(), "it is taken");
    assert!(first.link_counters().is_ok(), "and is not taken away");
    let index = first.ifindex();
    first.stop().unwrap();
    let second = node.start_pod(spec()).unwrap();
    assert_eq!(second.veth(), "vethagain");
    assert_ne!(second.ifindex(), index);
}

#[test]
fn static_neighbours_need_no_question_and_are_forgotten_with_their_pod() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let spec = || PodSpec { static_neighbours: true, ..PodSpec::new("a", "known") };
    let of_node = || {
        let shown = node.exec(&["ip", "neighbour", "show", "nud", "permanent"]).unwrap();
        String::from_utf8(shown.stdout).unwrap()
    };
    let pod = node.start_pod(spec()).unwrap();
    assert!(of_node().contains(&format!("{} dev br0", pod.ipv4())), "{}", of_node());
    assert!(of_node().contains(&format!("{} dev br0", pod.ipv6())), "{}", of_node());
    for ip in [node.ipv4().into(), std::net::IpAddr::from(node.ipv6())] {
        let server = node.spawn("sink", &Program::tcp_sink(ip, 0)).unwrap();
        let send = Program::tcp_send(server.addr().unwrap(), 1_000);
        assert_eq!(pod.spawn("app", &send).unwrap().wait().unwrap().bytes, 1_000);
    }
    let learnt = pod.exec(&["ip", "neighbour", "show", "nud", "reachable"]).unwrap();
    assert_eq!(String::from_utf8(learnt.stdout).unwrap(), "");
    pod.stop().unwrap();
    assert_eq!(of_node(), "");
}

#[test]
fn every_program_survives_the_way_over_the_command_line() {
    #[derive(clap::Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(subcommand)]
        program: Program,
    }
    let to = "[fd00::2]:53".parse().unwrap();
    let programs = [
        Program::Hold(Hold { sysctl: vec!["net.a=1".into(), "net.b=2".into()] }),
        Program::udp_sink([10, 0, 0, 1], 0),
        Program::UdpSend(UdpSend {
            to,
            packets: 5,
            size: 0,
            pps: Some(9),
            from_port: None,
            await_echo: true,
        }),
        Program::UdpEcho(Bind { bind: to }),
        Program::tcp_send(to, u64::MAX),
        Program::HttpClient(HttpClient { to, requests: 1, every: 2, size: 3, keep_alive: false }),
        Program::Flows(Flows {
            to,
            count: 7,
            packets_per_flow: 2,
            size: 3,
            proto: Proto::Tcp,
            ports: None,
        }),
        Program::Exec(Exec { command: vec!["ip".into(), "-j".into(), "--".into()] }),
    ];
    for program in programs {
        let arguments = program.arguments().unwrap();
        let parsed = <Line as clap::Parser>::try_parse_from(&arguments).map(|line| line.program);
        assert_eq!(parsed.unwrap(), program, "{arguments:?}");
    }
}
