//! The agent works with the permissions that `deploy/` gives it, under the real containerd's default
//! seccomp profile, and needs each of its capabilities.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{AttributedBy, FlowQuery, PodSourceState, SignalState};
use orb8_testkit::{KubeApi, Process, Program, pki::CertificateAuthority, program::UdpSend};
use orb8_tests::{
    AgentContainer, Containerd, OldGroups, SERVICE_ACCOUNT_TOKEN, Scene, address,
    manifests::{file, kustomized, object},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node with two pods, a runtime, an API, and what the API's object of the agents says.
struct Cluster {
    scene: Scene,
    containerd: Containerd,
    api: KubeApi,
    daemon_set: Value,
    // Dropped last.
    _old_groups: OldGroups,
}

impl Cluster {
    fn start() -> Result<Self> {
        let mut old_groups = OldGroups::default();
        let scene = Scene::start()?;
        old_groups.watch(&scene.node);
        let containerd = Containerd::start(&scene.node)?;
        AgentContainer::import(&containerd)?;
        let ca = CertificateAuthority::new("kubernetes")?;
        let api = KubeApi::start_with_tls_in(&scene.node.netns(), &ca)?;
        api.faults(|faults| faults.tokens = Some(vec![SERVICE_ACCOUNT_TOKEN.into()]));
        scene.node.report_to(&api)?;
        // There is no Secret here to take certificates from.
        let objects = kustomized("overlays/insecure-dev")?;
        let mut daemon_set = object(&objects, "DaemonSet/orb8-agent")?.clone();
        // Of all kinds of program, the one that needs most.
        let variables = daemon_set.pointer_mut("/spec/template/spec/containers/0/env");
        let variables = variables.and_then(Value::as_array_mut).context("no env")?;
        variables.push(json!({ "name": "ORB8_TRACEPOINTS", "value": "classic" }));
        Ok(Self { scene, containerd, api, daemon_set, _old_groups: old_groups })
    }

    fn agent(&self, without: Option<&str>) -> Result<AgentContainer<'_>> {
        let on = (&self.scene.node, &self.containerd, &self.api);
        AgentContainer::start(on, &self.daemon_set, without)
    }

    /// Datagrams from one pod to the other, for longer than a test takes.
    fn traffic(&self) -> Result<[Process; 2]> {
        let sink = Program::udp_sink(std::net::Ipv4Addr::UNSPECIFIED, 7001);
        let send = Program::UdpSend(UdpSend {
            to: address(&self.scene.server, false, 7001),
            packets: 1 << 40,
            size: 100,
            pps: Some(100),
            from_port: None,
            await_echo: false,
        });
        Ok([self.scene.server.spawn("app", &sink)?, self.scene.client.spawn("app", &send)?])
    }
}

#[test]
fn the_agent_does_its_work_with_what_the_daemon_set_permits() -> Result<()> {
    let cluster = Cluster::start()?;
    let agent = cluster.agent(None)?;
    let _traffic = cluster.traffic()?;

    let status = agent.kernel_status()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
    };
    assert_eq!((&*of("NoNewPrivs"), &*of("Seccomp")), ("1", "2"), "{status}");
    let effective = u64::from_str_radix(&of("CapEff"), 16)?;
    let bpf_perfmon_net_admin_ptrace = 1 << 39 | 1 << 38 | 1 << 12 | 1 << 19;
    let sys_resource = 1 << 24;
    assert_eq!(effective & !sys_resource, bpf_perfmon_net_admin_ptrace, "{status}");

    let began = Instant::now();
    loop {
        let flows = agent.flows(FlowQuery { limit: 1_000, ..FlowQuery::default() })?;
        let told = |pod: &str, by: AttributedBy| {
            flows.iter().any(|flow| {
                (&*flow.namespace, &*flow.pod_name) == ("shop", pod)
                    && flow.attributed_by() == by
                    && (by == AttributedBy::Veth || flow.container == "app")
                    && flow.dst_port == 7001
            })
        };
        let status = agent.status()?;
        let active = status.signals.iter().filter(|s| s.state() == SignalState::Active);
        let active: Vec<&str> = active.map(|signal| &*signal.name).collect();
        let source = status.pod_source.clone().unwrap_or_default();
        if told("client", AttributedBy::SocketCgroup)
            && told("server", AttributedBy::Veth)
            && active == ["network", "syscall"]
            && source.state() == PodSourceState::Connected
        {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{status:?}, {flows:#?}\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(agent.get(agent.metrics_addr(), "/readyz")?, (200, "ok\n".into()));

    asks_for_no_more_than_its_role_permits(&cluster.api)?;
    tells_every_metric_that_an_alert_of_agents_asks_for(
        &agent.get(agent.metrics_addr(), "/metrics")?.1,
    )?;
    let log = agent.stop()?;
    assert!(log.contains("stopped") && !log.contains("WARN"), "{log}");
    Ok(())
}

/// `/api/v1/nodes/n1` as ("nodes", "get").
fn asks_for_no_more_than_its_role_permits(api: &KubeApi) -> Result<()> {
    let rbac = file("rbac.yaml")?;
    let rules = object(&rbac, "ClusterRole/orb8-agent")?["rules"].clone();
    let rules = rules.as_array().context("rules are a list")?;
    let asked: BTreeSet<(String, &str)> = api
        .requests()
        .iter()
        .map(|request| {
            assert_eq!(request.method, "GET");
            let parts: Vec<&str> = request.path.split('/').skip(3).collect();
            let verb = match parts.len() {
                _ if request.is_watch() => "watch",
                1 => "list",
                _ => "get",
            };
            (parts[0].to_owned(), verb)
        })
        .collect();
    assert!(asked.contains(&("pods".to_owned(), "watch")), "{asked:?}");
    for (resource, verb) in asked {
        let has = |value: &Value, wanted: &str| {
            value.as_array().is_some_and(|values| values.iter().any(|value| value == wanted))
        };
        let permitted = rules
            .iter()
            .any(|rule| has(&rule["resources"], &resource) && has(&rule["verbs"], verb));
        ensure!(permitted, "the agent has asked to {verb} {resource}, and may not");
    }
    Ok(())
}

fn tells_every_metric_that_an_alert_of_agents_asks_for(text: &str) -> Result<()> {
    let told: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ').map(|(name, _)| name))
        .collect();
    let rules = file("components/prometheus/rules.yaml")?;
    let rules = rules[0].pointer("/spec/groups/0/rules").and_then(Value::as_array);
    let mut asked = 0;
    for rule in rules.context("no rules")? {
        let expression = rule["expr"].as_str().context("an alert has an expression")?;
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("orb8_")) {
            ensure!(told.contains(name), "{} asks for {name}: {told:?}", rule["alert"]);
            asked += 1;
        }
    }
    ensure!(asked > 6, "alerts ask for {asked} metrics only");
    Ok(())
}

#[test]
fn none_of_the_capabilities_can_be_spared() -> Result<()> {
    let cluster = Cluster::start()?;
    let _traffic = cluster.traffic()?;
    for without in ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE"] {
        let agent = cluster.agent(Some(without))?;
        let began = Instant::now();
        let what_it_says = loop {
            let status = agent.status()?;
            let signal = status.signals.iter().find(|signal| signal.name == "network");
            let signal = signal.context("no network signal")?;
            if signal.state() == SignalState::Failed || signal.state() == SignalState::Degraded {
                break signal.reason.clone();
            }
            // Without SYS_PTRACE packets are counted and nobody is found behind a veth.
            let flows = agent.flows(FlowQuery { limit: 1_000, ..FlowQuery::default() })?;
            let of_traffic = flows.iter().filter(|flow| flow.dst_port == 7001);
            let by: BTreeSet<AttributedBy> =
                of_traffic.map(orb8_proto::NetworkFlow::attributed_by).collect();
            if by.contains(&AttributedBy::None) {
                break "attributed by none".to_owned();
            }
            ensure!(began.elapsed() < PATIENCE, "without {without}: {status:?}, {flows:#?}");
            std::thread::sleep(Duration::from_millis(100));
        };
        let expected = match without {
            "SYS_PTRACE" => "attributed by none",
            // The verifier holds the program to the rules for everybody.
            "PERFMON" => "Permission denied",
            _ => "CAP_",
        };
        ensure!(what_it_says.contains(expected), "without {without}: {what_it_says}");
        agent.stop()?;
    }
    Ok(())
}
