//! Totals by workload: they agree with every other answer, go on when pods are gone, and never fall.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_k8s::KubernetesSource;
use orb8_proto::{PodQuery, SyscallQuery, TotalsQuery, TotalsResponse};
use orb8_testkit::{KubeApi, Node, NodeOptions, Pod, PodSpec, Program};
use orb8_tests::{Client, Traced, address};

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PORT: u16 = 7001;
const PATIENCE: Duration = Duration::from_secs(30);

/// Namespace and workload.
type Workload = (String, String);
/// Bytes and packets received, bytes and packets sent, and calls.
type Sums = BTreeMap<Workload, [u64; 5]>;

/// An agent of both signals with its metrics, which asks `api` for names.
fn traced(node: &Node, api: &KubeApi, dir: &tempfile::TempDir) -> Result<Traced> {
    let kubeconfig = dir.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig, None)?;
    Traced::start(node, |config| {
        config.pods = None;
        config.kubernetes = Some(KubernetesSource::Kubeconfig(Some(kubeconfig)));
        config.signals = vec!["network", "syscall"];
        config.metrics_listen = Some(LOOPBACK);
    })
}

fn totals(client: &Client) -> Result<TotalsResponse> {
    Ok(client.call(|mut c| async move { c.get_totals(TotalsQuery {}).await })?)
}

fn told(client: &Client) -> Result<Sums> {
    let all = totals(client)?.workloads.into_iter().map(|w| {
        let sums =
            [w.ingress_bytes, w.ingress_packets, w.egress_bytes, w.egress_packets, w.syscalls];
        ((w.namespace, w.workload), sums)
    });
    Ok(all.collect())
}

fn add(sums: &mut Sums, workload: Workload, more: [u64; 5]) {
    let sums = sums.entry(workload).or_default();
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// By the queries, which reach back to the agent's start for as long as this test takes.
fn answered(client: &Client) -> Result<Sums> {
    let mut sums = Sums::new();
    for pod in client.pods(PodQuery { limit: 100_000, ..PodQuery::default() })? {
        let [received, sent] = [pod.ingress_packets, pod.egress_packets];
        let more = [pod.ingress_bytes, received, pod.egress_bytes, sent, 0];
        add(&mut sums, (pod.namespace, pod.workload), more);
    }
    let all = SyscallQuery { limit: 1_000_000, ..SyscallQuery::default() };
    for row in client.call(|mut c| async move { c.query_syscalls(all).await })?.syscalls {
        add(&mut sums, (row.namespace, row.workload), [0, 0, 0, 0, row.calls]);
    }
    Ok(sums)
}

/// By the metrics.
#[derive(Default)]
struct Scraped {
    sums: Sums,
    /// So many pods run on this machine, other tests' included, that not all have series of their calls.
    is_cut: bool,
}

impl Scraped {
    fn ensure_no_less(&self, than: &Sums, what: &str) -> Result<()> {
        let mut than = than.clone();
        if self.is_cut {
            than.values_mut().for_each(|sums| sums[4] = 0);
            than.retain(|_, sums| *sums != [0; 5]);
        }
        ensure_no_more(&than, &self.sums, what)
    }
}

/// Reads them, after making sure that no series is there twice.
fn scraped(client: &Client, at: SocketAddr) -> Result<Scraped> {
    let (_, text) = client.get(at, "/metrics")?;
    let (mut sums, mut seen, mut is_cut) = (Sums::new(), BTreeSet::new(), false);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').context("a sample")?;
        ensure!(seen.insert(series), "{series} is there twice");
        let label = |name: &str| -> String {
            let rest = series.split_once(&format!("{name}=\"")).map_or("", |(_, rest)| rest);
            rest.split('"').next().unwrap_or_default().to_owned()
        };
        let is_sent = label("direction") == "egress";
        let of = match series.split('{').next().unwrap_or_default() {
            "orb8_network_bytes_total" => usize::from(is_sent) * 2,
            "orb8_network_packets_total" => usize::from(is_sent) * 2 + 1,
            "orb8_syscalls_total" => 4,
            "orb8_owners_without_series" => {
                is_cut = value != "0";
                continue;
            }
            _ => continue,
        };
        let mut more = [0; 5];
        more[of] = value.parse()?;
        add(&mut sums, (label("namespace"), label("workload")), more);
    }
    Ok(Scraped { sums, is_cut })
}

/// Every number of `one` is there and no less in `other`.
fn ensure_no_more(one: &Sums, other: &Sums, what: &str) -> Result<()> {
    for (workload, sums) in one {
        let others = other.get(workload).with_context(|| format!("{what}: no {workload:?}"))?;
        let fits = sums.iter().zip(others).all(|(one, other)| one <= other);
        ensure!(fits, "{what}, {workload:?}: {sums:?} and {others:?}");
    }
    Ok(())
}

/// What the agent told once it agreed with its other answers: exactly for what rests, such as `rests`.
fn agreed(client: &Client, at: SocketAddr, rests: &Workload) -> Result<Sums> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (before, told, after) = (answered(client)?, told(client)?, answered(client)?);
        ensure_no_more(&before, &told, "answers and totals")?;
        ensure_no_more(&told, &after, "totals and answers")?;
        scraped(client, at)?.ensure_no_less(&told, "totals and metrics")?;
        if before.get(rests).is_some_and(|before| after.get(rests) == Some(before)) {
            return Ok(told);
        }
        ensure!(Instant::now() < deadline, "{rests:?} never rests: {before:?} {after:?}");
    }
}

/// Starts `shop/client-0`, has it send, and waits until it is known by name.
fn client(node: &Node, client: &Client, to: SocketAddr, packets: u64) -> Result<Pod> {
    let spec = PodSpec::new("shop", "client-0").owner("StatefulSet", "client");
    let pod = node.start_pod(spec)?;
    let sent = pod.spawn("app", &Program::udp_send(to, packets, 1_000))?.wait()?;
    ensure!(sent.packets == packets, "{sent:?}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = client.pods(PodQuery::default())?;
        let its = rows.iter().find(|row| row.pod_uid == pod.uid());
        if its.is_some_and(|row| row.pod_name == "client-0" && row.egress_packets >= packets) {
            return Ok(pod);
        }
        ensure!(Instant::now() < deadline, "not in time: {rows:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn totals_agree_with_the_answers_and_go_on_when_pods_are_gone_and_come_back() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let api = KubeApi::start_in(&node.netns())?;
    node.report_to(&api)?;
    let server = node.start_pod(PodSpec::new("shop", "server").owner("DaemonSet", "server"))?;
    let _bare = node.start_pod(PodSpec::new("data", "bare"))?;
    let _sink = server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, PORT))?;
    let traced = traced(&node, &api, &dir)?;
    traced.wait_for("the names of two pods", |_, status| {
        status.pod_source.as_ref().is_some_and(|source| source.pods_known == 2)
    })?;
    let at = traced.metrics_addr().context("it serves metrics")?;
    let to = address(&server, false, PORT);
    let its: Workload = ("shop".into(), "StatefulSet/client".into());
    let pods_of = |client: &Client| -> Result<u32> {
        let all = totals(client)?.workloads;
        let it = all.iter().find(|w| (&w.namespace, &w.workload) == (&its.0, &its.1));
        Ok(it.map_or(0, |w| w.pods))
    };

    let (mut before, mut sent) = (Sums::new(), 0);
    for round in 1..=3_u64 {
        // A new pod each time, under the same name.
        let pod = client(&node, &traced, to, 100 * round)?;
        sent += 100 * round;
        let now = agreed(&traced, at, &its)?;
        ensure_no_more(&before, &now, "one round and the next")?;
        let of_it = now[&its];
        ensure!(of_it[3] >= sent && of_it[2] >= sent * 1_042, "{sent} packets, {of_it:?}");
        ensure!(of_it[4] > before.get(&its).map_or(0, |sums| sums[4]), "no calls: {of_it:?}");
        ensure!(now[&("shop".into(), "DaemonSet/server".into())][1] >= sent);
        assert_eq!(pods_of(&traced)?, 1);

        pod.stop()?;
        let deadline = Instant::now() + PATIENCE;
        while pods_of(&traced)? > 0 {
            ensure!(Instant::now() < deadline, "the pod is never gone");
            std::thread::sleep(Duration::from_millis(50));
        }
        let gone = agreed(&traced, at, &its)?;
        ensure_no_more(&now, &gone, "a pod and its end")?;
        before = gone;
    }
    let answer = totals(&traced)?;
    assert_eq!(answer.node, node.name());
    assert_eq!(answer.started_ns, traced.status()?.started_ns);
    assert!(answer.usage.is_some_and(|usage| usage.kernel_map_bytes > 0));
    traced.stop()
}

#[test]
fn totals_and_series_rise_and_are_whole_while_dozens_of_pods_come_and_go() -> Result<()> {
    const THREADS: u64 = 4;
    const PODS: u64 = 15;
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let api = KubeApi::start_in(&node.netns())?;
    node.report_to(&api)?;
    let server = node.start_pod(PodSpec::new("shop", "server").owner("DaemonSet", "server"))?;
    let _sink = server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, PORT))?;
    let traced = traced(&node, &api, &dir)?;
    let at = traced.metrics_addr().context("it serves metrics")?;
    let to = address(&server, false, PORT);

    // A name for each thread, which its pods have one after the other.
    let come_and_go = |thread: u64| -> Result<u64> {
        let (name, workload) = (format!("worker-{thread}"), format!("set-{}", thread % 2));
        let mut sent = 0;
        for number in 0..PODS {
            let spec = PodSpec::new("shop", &name).owner("StatefulSet", &workload);
            let pod = node.start_pod(spec)?;
            let packets = 50 + thread + number;
            pod.spawn("app", &Program::udp_send(to, packets, 1_000))?.wait()?;
            pod.stop()?;
            sent += packets;
        }
        Ok(sent)
    };
    let sent = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || come_and_go(thread))).collect();
        let mut before = (Sums::new(), Scraped::default());
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            // Series under bare ids go away as their names come, so only what has names is compared.
            let mut series = scraped(&traced, at)?;
            series.sums.retain(|(_, workload), _| !workload.is_empty());
            let now = (told(&traced)?, series);
            ensure_no_more(&before.0, &now.0, "totals and the next")?;
            now.1.ensure_no_less(&before.1.sums, "metrics and the next")?;
            before = now;
        }
        let mut sent = Vec::new();
        for thread in threads {
            sent.push(thread.join().expect("no panic")?);
        }
        anyhow::Ok(sent)
    })?;

    // What was told before its name came is in nobody's totals, for good.
    let rests = ("shop".to_owned(), "DaemonSet/server".to_owned());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = told(&traced)?;
        let of = |workload: &str| now.get(&("shop".into(), workload.into())).map_or(0, |s| s[3]);
        let nobodys = now.get(&Workload::default()).map_or(0, |sums| sums[3]);
        let sets = of("StatefulSet/set-0") + of("StatefulSet/set-1");
        let all: u64 = sent.iter().sum();
        if sets + nobodys >= all && sets > all / 2 && now[&rests][1] >= all {
            return traced.stop();
        }
        ensure!(Instant::now() < deadline, "{all} packets, {now:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
