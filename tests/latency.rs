//! Where the ends of system calls are watched, errors and latencies are those of the calls that were
//! made.

use anyhow::{Context as _, Result};
use orb8_proto::{StreamRequest, SyscallCount, SyscallOutcome, SyscallQuery, SyscallSort};
use orb8_testkit::{Node, NodeOptions, PodSpec, Program, program::Endings};
use orb8_tests::{Client, Traced};

const PATH: &str = "/no/such/file of a test";
const TIMES: u32 = 40;
const SLEEP_MS: u64 = 20;

fn start(node: &Node, latency: bool) -> Result<Traced> {
    Traced::start(node, |config| {
        config.signals = vec!["syscall"];
        config.syscall_latency = latency;
    })
}

fn endings() -> Program {
    Program::Endings(Endings { times: TIMES, path: PATH.into(), sleep_ms: SLEEP_MS })
}

fn query(client: &Client, sort_by: SyscallSort) -> Result<Vec<SyscallCount>> {
    let query = SyscallQuery {
        namespace: "shop".into(),
        sort_by: sort_by.into(),
        ..SyscallQuery::default()
    };
    Ok(client.call(|mut c| async move { c.query_syscalls(query).await })?.syscalls)
}

fn outcome<'a>(rows: &'a [SyscallCount], name: &str) -> Result<&'a SyscallOutcome> {
    let row = rows.iter().find(|row| row.syscall == name);
    row.and_then(|row| row.outcome.as_ref()).with_context(|| format!("{name}: {rows:?}"))
}

fn errors(outcome: &SyscallOutcome, name: &str) -> u64 {
    outcome.errors_by_number.iter().find(|error| error.name == name).map_or(0, |error| error.count)
}

#[test]
fn errors_and_latencies_are_those_of_the_calls_that_were_made() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let traced = start(&node, true)?;
    pod.spawn("app", &endings())?.wait()?;
    let times = u64::from(TIMES);
    let rows = query(&traced, SyscallSort::Calls)?;
    let getsid = outcome(&rows, "getsid")?;
    assert_eq!((getsid.returned, getsid.errors), (times, times));
    assert_eq!(errors(getsid, "ESRCH"), times);
    assert_eq!(getsid.latency.iter().sum::<u64>(), times);
    let openat = outcome(&rows, "openat")?;
    // The program's own start looks for libraries, too.
    assert!(errors(openat, "ENOENT") >= times, "{openat:?}");
    let sleep = outcome(&rows, "clock_nanosleep")?;
    // The program's time limit is a sleep too, which its end cuts short.
    assert_eq!((sleep.returned, sleep.errors), (times + 1, 0));
    assert!(sleep.duration_ns >= times * SLEEP_MS * 1_000_000, "{sleep:?}");
    assert!(sleep.p50_ns >= SLEEP_MS * 1_000_000 && sleep.p99_ns >= sleep.p50_ns, "{sleep:?}");
    // Not one is in a bucket below its length.
    let bound = (SLEEP_MS * 1_000_000).ilog2() as usize - 7;
    assert_eq!(sleep.latency[..bound].iter().sum::<u64>(), 0, "{sleep:?}");
    // Every call of the program has ended, but for those that never do.
    for row in rows.iter().filter(|row| row.syscall != "exit_group" && row.syscall != "exit") {
        let outcome = row.outcome.as_ref().context("no outcome")?;
        assert!(outcome.returned <= row.calls, "{row:?}");
        assert_eq!(errors_sum(outcome), outcome.errors, "{row:?}");
    }
    let by_errors = query(&traced, SyscallSort::Errors)?;
    let most = by_errors.iter().map(|row| row.outcome.as_ref().map_or(0, |o| o.errors));
    assert!(most.is_sorted_by(|a, b| a >= b));
    assert!(["openat", "getsid"].contains(&&*by_errors[0].syscall), "{:?}", by_errors[0]);
    let by_latency = query(&traced, SyscallSort::Latency)?;
    let slowest = by_latency.iter().map(|row| row.outcome.as_ref().map_or(0, |o| o.p99_ns));
    assert!(slowest.is_sorted_by(|a, b| a >= b));
    traced.stop()
}

fn errors_sum(outcome: &SyscallOutcome) -> u64 {
    outcome.errors_by_number.iter().map(|error| error.count).sum()
}

#[test]
fn a_trace_of_errors_tells_each_call_that_failed_and_no_other() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let traced = start(&node, true)?;
    let request = StreamRequest {
        signals: vec!["syscall".into()],
        namespace: "shop".into(),
        ..StreamRequest::default()
    };
    let all = traced.trace(request.clone())?;
    let failed = traced.trace(StreamRequest { errors_only: true, ..request })?;
    pod.spawn("app", &endings())?.wait()?;
    let heard = traced.stop_with(failed)?;
    drop(all);
    let told = |name: &'static str| heard.syscalls.iter().filter(move |call| call.syscall == name);
    let times = TIMES as usize;
    assert_eq!(told("getsid").count(), times);
    let opened: Vec<_> = told("openat").filter(|call| call.path == PATH).collect();
    assert_eq!(opened.len(), times);
    for call in opened {
        assert_eq!((call.result, &*call.error), (Some(-2), "ENOENT"), "{call:?}");
        assert!(call.duration_ns.is_some_and(|ns| ns > 0), "{call:?}");
        assert_eq!((&*call.pod_name, call.weight), ("web", 1), "{call:?}");
        assert!(call.flags.contains(&"O_CLOEXEC".to_owned()), "{call:?}");
    }
    assert!(heard.syscalls.iter().all(|call| call.result.is_some_and(|result| result < 0)));
    assert!(heard.last_report().losses.is_empty(), "{:?}", heard.last_report());
    Ok(())
}

#[test]
fn an_agent_that_does_not_watch_ends_says_so_and_how_it_would() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let _pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let traced = start(&node, false)?;
    let request = StreamRequest { errors_only: true, ..StreamRequest::default() };
    let error = traced.open(request).unwrap_err().to_string();
    assert!(error.contains("--latency"), "{error}");
    let error = query(&traced, SyscallSort::Errors).unwrap_err().to_string();
    assert!(error.contains("--latency"), "{error}");
    let rows =
        traced.call(|mut c| async move { c.query_syscalls(SyscallQuery::default()).await })?;
    assert!(rows.syscalls.iter().all(|row| row.outcome.is_none()));
    traced.stop()
}
