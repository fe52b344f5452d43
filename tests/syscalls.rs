//! Every system call is counted, for its container, to the call.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use orb8_probes::tracepoint;
use orb8_proto::{
    AttributedBy, SignalState, StreamRequest, SyscallCount, SyscallProfileQuery, SyscallQuery,
    SyscallSort,
};
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Program, known_calls,
    program::{Calls, Spawn},
};
use orb8_tests::{Client, Heard, Traced};

const PATIENCE: Duration = Duration::from_secs(30);

fn start(node: &Node) -> Result<Traced> {
    Traced::start(node, |config| config.signals = vec!["syscall"])
}

fn query(client: &Client, query: SyscallQuery) -> Result<Vec<SyscallCount>> {
    Ok(client.call(|mut c| async move { c.query_syscalls(query).await })?.syscalls)
}

/// Calls of a container by name.
fn calls_of(client: &Client, pod: &Pod, container: &str) -> Result<BTreeMap<String, u64>> {
    let rows = query(
        client,
        SyscallQuery {
            namespace: pod.namespace().into(),
            pod_name: pod.name().into(),
            container: container.into(),
            ..SyscallQuery::default()
        },
    )?;
    for row in &rows {
        ensure!(row.attributed_by() == AttributedBy::Cgroup, "{row:?}");
        ensure!(row.container_id == pod.container_id(container)?, "{row:?}");
    }
    Ok(rows.into_iter().map(|row| (row.syscall, row.calls)).collect())
}

/// Calls that the agent says nobody counted, where they may be: from Linux 7.0 on, when a thread is
/// preempted amid a call on a map.
fn uncounted(client: &Client) -> Result<u64> {
    if !tracepoint::preempts(tracepoint::kernel()?) {
        return Ok(0);
    }
    let losses = client.status()?.losses;
    Ok(losses.iter().filter(|loss| loss.reason == "uncounted").map(|loss| loss.calls).sum())
}

/// Not one more than was made, and not one less that is not told of.
fn ensure_counted(
    client: &Client,
    counted: &BTreeMap<String, u64>,
    made: &[(&'static str, u64)],
) -> Result<()> {
    let mut less = 0;
    for (name, made) in made {
        let counted = counted.get(*name).copied().unwrap_or(0);
        ensure!(counted <= *made, "{name}: {counted} counted, {made} made");
        less += made - counted;
    }
    let uncounted = uncounted(client)?;
    ensure!(less <= uncounted, "{less} calls less, {uncounted} uncounted: {counted:?}");
    Ok(())
}

fn calls(threads: u32, times: u32, only: Option<&str>) -> Program {
    Program::Calls(Calls { threads, times, only: only.map(Into::into), per_second: None })
}

#[test]
fn twenty_different_calls_from_four_threads_are_counted_to_the_call() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web").containers(&["app", "sidecar"]))?;
    let traced = start(&node)?;
    let (threads, times) = (4, 250);
    pod.spawn("app", &calls(threads, times, None))?.wait()?;
    let counted = calls_of(&traced, &pod, "app")?;
    let expected = known_calls::expected(threads, times, None)?;
    assert_eq!(expected.len(), 20);
    ensure_counted(&traced, &counted, &expected)?;
    // Not a call of it is the other container's, or another's.
    assert_eq!(calls_of(&traced, &pod, "sidecar")?, BTreeMap::new());

    // A second run adds to the first one.
    pod.spawn("app", &calls(threads, times, None))?.wait()?;
    let counted = calls_of(&traced, &pod, "app")?;
    let twice: Vec<_> = expected.iter().map(|(name, made)| (*name, 2 * made)).collect();
    ensure_counted(&traced, &counted, &twice)?;
    traced.stop()
}

#[test]
fn every_kind_of_program_counts_to_the_call_and_tells_what_was_started() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let kernel = tracepoint::kernel()?;
    let kinds = tracepoint::kinds(kernel).iter().copied();
    for kind in kinds.filter(|kind| !tracepoint::is_preemptible(*kind, kernel)) {
        let traced = Traced::start(&node, |config| {
            config.signals = vec!["syscall"];
            config.tracepoints = Some(kind);
        })?;
        let state = traced.status()?.signals.into_iter().find(|signal| signal.name == "syscall");
        let state = state.context("no such signal")?;
        assert_eq!(state.state(), SignalState::Active, "{kind:?}: {state:?}");
        let heard = traced.trace(StreamRequest {
            signals: vec!["syscall".into()],
            syscalls: vec!["execve".into()],
            pod_name: "web".into(),
            ..StreamRequest::default()
        })?;
        pod.spawn("app", &calls(4, 250, None))?.wait()?;
        let counted = calls_of(&traced, &pod, "app")?;
        ensure_counted(&traced, &counted, &known_calls::expected(4, 250, None)?)
            .with_context(|| format!("{kind:?}"))?;
        let command = ["/bin/true", "an argument"].map(String::from).to_vec();
        pod.spawn("app", &Program::Spawn(Spawn { times: 20, command }))?.wait()?;
        let heard = traced.stop_with(heard)?;
        let programs: Vec<_> = programs(&heard).into_values().flatten().collect();
        assert_eq!(programs, vec![["/bin/true", "an argument"]; 20], "{kind:?}");
    }
    Ok(())
}

#[test]
fn three_million_calls_are_counted_while_events_flow_and_every_lost_event_is_counted() -> Result<()>
{
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web"))?;
    // A small ring and every third call told: more than anybody can read.
    let traced = Traced::start(&node, |config| {
        config.signals = vec!["syscall"];
        config.syscall_sample = 3;
        config.syscall_ring_buffer_size = 64 << 10;
    })?;
    let heard = traced.trace(StreamRequest {
        signals: vec!["syscall".into()],
        pod_name: "web".into(),
        syscalls: vec!["getppid".into()],
        ..StreamRequest::default()
    })?;
    let (threads, times) = (4, 750_000);
    pod.spawn("app", &calls(threads, times, Some("getppid")))?.wait_for(PATIENCE * 4)?;
    let counted = calls_of(&traced, &pod, "app")?;
    ensure_counted(&traced, &counted, &[("getppid", 3_000_000)])?;
    let lost = |traced: &Traced| -> Result<u64> {
        let losses = traced.status()?.losses;
        let of = |loss: &&orb8_proto::Loss| (&*loss.signal, &*loss.stage) == ("syscall", "kernel");
        Ok(losses.iter().filter(of).map(|loss| loss.records).sum())
    };
    let lost = lost(&traced)?;
    let heard = traced.stop_with(heard)?;
    assert!(lost > 0, "the ring was never full, so that nothing is shown");
    let report = heard.last_report();
    assert_eq!(
        heard.syscalls.len() as u64 + report.records_lost,
        report.records_delivered + report.records_lost
    );
    assert!(heard.syscalls.iter().all(|call| call.syscall == "getppid" && call.weight == 3));
    // One in three on each CPU; each CPU may be amid three at the end and at the beginning.
    let told = (heard.syscalls.len() as u64 + report.records_lost + lost) * 3;
    let cpus = std::thread::available_parallelism()?.get() as u64;
    assert!(told.abs_diff(3_000_000) <= 3 * 2 * cpus + 3_000_000 / 50, "{told}, {lost} lost");
    Ok(())
}

/// Programs that a trace heard of, by container: the arguments of each.
fn programs(heard: &Heard) -> BTreeMap<(String, String), Vec<Vec<String>>> {
    let mut programs: BTreeMap<_, Vec<Vec<String>>> = BTreeMap::new();
    for call in heard.syscalls.iter().filter(|call| call.path == "/bin/true") {
        let container = (call.pod_name.clone(), call.container.clone());
        programs.entry(container).or_default().push(call.args.clone());
    }
    programs
}

#[test]
fn ten_thousand_programs_in_a_hundred_containers_are_each_told_with_container_and_arguments()
-> Result<()> {
    const PODS: usize = 25;
    const CONTAINERS: [&str; 4] = ["one", "two", "three", "four"];
    const TIMES: u32 = 100;
    let node = Node::start(NodeOptions::default())?;
    let pods = (0..PODS)
        .map(|n| node.start_pod(PodSpec::new("shop", &format!("pod-{n}")).containers(&CONTAINERS)));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    let traced = start(&node)?;
    let heard = traced.trace(StreamRequest {
        syscalls: vec!["execve".into()],
        namespace: "shop".into(),
        ..StreamRequest::default()
    })?;
    let mut running = Vec::new();
    for pod in &pods {
        for container in CONTAINERS {
            let arguments = ["/bin/true", pod.name(), container, "{}", "an argument; 'quoted'"];
            let command = arguments.map(String::from).to_vec();
            let spawn = Program::Spawn(Spawn { times: TIMES, command });
            running.push(pod.spawn(container, &spawn)?);
        }
    }
    for process in &mut running {
        process.wait_for(PATIENCE * 4)?;
    }
    let heard = traced.stop_with(heard)?;
    let programs = programs(&heard);
    assert_eq!(programs.len(), PODS * CONTAINERS.len());
    for ((pod, container), told) in programs {
        let numbers: BTreeSet<String> = told.iter().map(|arguments| arguments[3].clone()).collect();
        assert_eq!(
            (told.len(), numbers.len()),
            (TIMES as usize, TIMES as usize),
            "{pod} {container}"
        );
        for arguments in told {
            let own = ["/bin/true", &pod, &container, &arguments[3], "an argument; 'quoted'"];
            assert_eq!(arguments, own);
        }
    }
    let report = heard.last_report();
    assert_eq!((report.records_lost, &report.losses), (0, &Vec::new()));
    Ok(())
}

#[test]
fn a_trace_of_one_pod_costs_the_events_of_that_pod() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let web = node.start_pod(PodSpec::new("shop", "web"))?;
    let db = node.start_pod(PodSpec::new("shop", "db"))?;
    let traced = Traced::start(&node, |config| {
        config.signals = vec!["syscall"];
        config.metrics_listen = Some((std::net::Ipv4Addr::LOCALHOST, 0).into());
        config.sensitive = Vec::new();
    })?;
    let events = || -> Result<[f64; 2]> {
        let metrics = traced.metrics(traced.metrics_addr().context("metrics were configured")?)?;
        Ok(["seen", "unwanted"].map(|name| {
            let name = format!("orb8_events_{name}_total{{signal=\"syscall\"}}");
            metrics.get(&name).copied().unwrap_or(-1.0)
        }))
    };
    let times = 500;
    let act = || -> Result<()> {
        for pod in [&web, &db] {
            pod.spawn("app", &calls(1, times, Some("timerfd_create")))?.wait()?;
        }
        Ok(())
    };
    act()?;
    // Programs that start are told in any case, also those of others on this machine.
    let [idle, _] = events()?;
    assert!(idle < f64::from(times), "nobody listens, and {idle} are told");
    let heard = traced.trace(StreamRequest {
        namespace: "shop".into(),
        pod_name: "web".into(),
        syscalls: vec!["timerfd_create".into()],
        ..StreamRequest::default()
    })?;
    act()?;
    let [seen, unwanted] = events()?;
    assert!(seen - idle < 2.0 * f64::from(times), "{seen}");
    assert!(unwanted >= f64::from(times), "{unwanted}");
    let heard = traced.stop_with(heard)?;
    assert_eq!(heard.syscalls.len(), times as usize);
    assert!(heard.syscalls.iter().all(|call| call.pod_name == "web" && call.weight == 1));
    Ok(())
}

#[test]
fn containers_that_come_and_go_have_their_calls_and_slots_are_used_again() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let traced = start(&node)?;
    let (threads, times) = (2, 20);
    let expected = known_calls::expected(threads, times, None)?;
    let mut containers = BTreeSet::new();
    for n in 0..40 {
        let pod = node.start_pod(PodSpec::new("shop", &format!("short-{n}")))?;
        pod.spawn("app", &calls(threads, times, None))?.wait()?;
        containers.insert(pod.container_id("app")?.to_owned());
        pod.stop()?;
    }
    let rows = query(&traced, SyscallQuery { limit: u32::MAX, ..SyscallQuery::default() })?;
    // Their names are not in the list that the agent has, so they are known by their ids.
    let mut by_container: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for row in rows.iter().filter(|row| containers.contains(&row.container_id)) {
        by_container.entry(&row.container_id).or_default().insert(row.syscall.clone(), row.calls);
    }
    assert_eq!(by_container.len(), 40);
    for calls in by_container.values() {
        ensure_counted(&traced, calls, &expected)?;
    }
    // What was counted on behalf of who is gone is given back.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let maps = traced.status()?.maps;
        let used = |name: &str| maps.iter().find(|map| map.name == name).map(|map| map.entries);
        let there = used("SYSCALL_COUNTS").context("a map")?;
        if there < 40 {
            break;
        }
        ensure!(Instant::now() < deadline, "{there} slots are used still");
        std::thread::sleep(Duration::from_millis(100));
    }
    traced.stop()
}

#[test]
fn a_query_shows_what_was_asked_for_and_names_who_was_meant() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let web = node.start_pod(PodSpec::new("shop", "web"))?;
    let db = node.start_pod(PodSpec::new("data", "db"))?;
    let traced = start(&node)?;
    web.spawn("app", &calls(1, 10, None))?.wait()?;
    db.spawn("app", &calls(1, 20, None))?.wait()?;
    let two = SyscallQuery {
        syscalls: vec!["umask".into(), "getegid".into()],
        namespace: "shop".into(),
        ..SyscallQuery::default()
    };
    let shown = |rows: &[SyscallCount]| -> Vec<(String, String, u64)> {
        rows.iter().map(|r| (r.pod_name.clone(), r.syscall.clone(), r.calls)).collect()
    };
    let rows = query(&traced, two.clone())?;
    let expected = [("web", "umask", 50), ("web", "getegid", 30)];
    assert_eq!(shown(&rows), expected.map(|(p, s, n)| (p.into(), s.into(), n)));
    assert_eq!((&*rows[0].class, rows[0].number), ("file", 95));
    let by_name = SyscallQuery { sort_by: SyscallSort::Name.into(), limit: 1, ..two.clone() };
    assert_eq!(shown(&query(&traced, by_name)?), [("web".into(), "getegid".into(), 30)]);

    let refused = |query: SyscallQuery| {
        traced.call(|mut c| async move { c.query_syscalls(query).await }).unwrap_err().to_string()
    };
    let wrong = SyscallQuery { syscalls: vec!["unmask".into()], ..two.clone() };
    assert!(refused(wrong).contains("umask"));
    let wrong = SyscallQuery { namespace: "shops".into(), ..two };
    assert!(refused(wrong).contains("known: data, shop"));
    let wrong = StreamRequest { syscalls: vec!["opennat".into()], ..StreamRequest::default() };
    let error = traced.open(wrong).unwrap_err().to_string();
    assert!(error.contains("openat"), "{error}");
    traced.stop()
}

#[test]
fn a_profile_has_every_call_since_the_container_began_and_says_where_it_has_gaps() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let early = node.start_pod(PodSpec::new("shop", "early"))?;
    early.spawn("app", &calls(1, 1, None))?.wait()?;
    let traced = start(&node)?;
    let before = SystemTime::now();
    let late = node.start_pod(PodSpec::new("shop", "late"))?;
    late.spawn("app", &calls(1, 1, Some("umask")))?.wait()?;
    let profile = |container_id: &str| -> Result<_> {
        let query = SyscallProfileQuery::default();
        let answer = traced.call(|mut c| async move { c.get_syscall_profile(query).await })?;
        let found = answer.profiles.into_iter().find(|p| p.container_id == container_id);
        found.context("no profile")
    };
    let late = profile(late.container_id("app")?)?;
    assert!(late.since_start && late.gaps.is_empty(), "{late:?}");
    assert!(late.syscalls.contains(&"umask".into()) && !late.syscalls.contains(&"flock".into()));
    assert_eq!(late.architecture, std::env::consts::ARCH);
    let since = u64::try_from(late.observed_from_ns)?;
    assert!(u128::from(since) >= before.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos());
    let early = profile(early.container_id("app")?)?;
    assert!(!early.since_start && early.gaps.len() == 1, "{early:?}");
    assert!(!early.syscalls.contains(&"flock".into()), "{early:?}");
    traced.stop()
}

#[test]
fn processes_of_the_node_have_their_calls_under_their_unit() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let traced = start(&node)?;
    node.spawn("daemon", &calls(1, 10, None))?.wait()?;
    let rows =
        query(&traced, SyscallQuery { syscalls: vec!["flock".into()], ..Default::default() })?;
    let made = known_calls::expected(1, 10, None)?;
    let made = made.iter().find(|(name, _)| *name == "flock").context("flock")?.1;
    let ours = rows.iter().find(|row| row.unit.contains("daemon")).context("a unit")?;
    assert_eq!((ours.calls, &*ours.pod_name), (made, ""), "{ours:?}");
    traced.stop()
}
