//! The command line itself: usage errors, completions, manual pages, missing capabilities.

use std::{fs, process::Command, time::Duration};

use crate::fake_agent::{Run, orb8};

fn run(mut command: Command) -> Run {
    Run::new(command.output().unwrap(), Duration::ZERO)
}

#[test]
fn wrong_usage_exits_with_64_and_says_what_is_wrong() {
    for (arguments, said) in [
        ("", "Usage"),
        ("trace", "Usage"),
        ("trace gpu", "gpu"),
        ("dashboard", "dashboard"),
        ("trace network --durations 1s", "--duration"),
        ("trace network --duration 0s", "longer than zero"),
        ("trace network --duration soon", "expected a time like 10s"),
        ("trace network -o xml", "jsonl"),
        ("trace network -n a -A", "cannot be used with"),
        ("trace network --server nonsense", "expected HOST:PORT"),
        ("trace network --mode standalone --server a:1", "one of the two"),
        ("trace network --mode cluster", "needs a server address"),
        ("trace network --server a:1 --interface a --interface b", "one whole name"),
        ("trace network --server a:1 --interface veth*", "one whole name"),
        ("trace network --server a:1 --pods x.json", "--pods"),
        ("trace network --server a:1 --runtime auto", "--runtime"),
        ("trace network --mode standalone --runtime containerd", "expected auto, off, or the path"),
        ("query pods --server a:1 --interface a", "no --interface"),
        ("query pods --server a:1 --duration 1s", "--since"),
        ("query pods --since 1m", "--duration"),
        ("query pods --node a", "--node chooses one of the nodes that a server knows"),
        ("query pods --node a --mode standalone", "--node chooses"),
        ("query pods --node a --pods x.json", "contradict each other"),
        ("query pods --server a:1 --since 1m --until 2m", "end before it begins"),
        ("query pods --history http://a:1", "give --since"),
        ("query pods --since 1h --history a:1", "expected http://HOST:PORT"),
        ("query pods --since 1h --history http://a:1 --mode standalone", "asks a Prometheus"),
        ("query flows --since 1h --history http://a:1", "--history"),
        ("query pods --server a:1 --context c", "cannot be used with"),
        ("nodes", "lists the nodes that a server knows"),
        ("nodes --mode standalone", "lists the nodes that a server knows"),
        ("query pods --limit 0", "limit"),
        ("query flows --sort-by name", "bytes"),
        ("trace syscall --interface a", "--interface"),
        ("trace syscall --server a:1 --sample 10", "--sample"),
        ("trace syscall --mode standalone --sample many", "one of N"),
        ("query syscalls --sort-by bytes", "latency"),
        ("completions tcsh", "bash"),
        ("trace network --mode standalone --ring-buffer-size 1000000", "power of two"),
        ("status --mode standalone --flow-table-size many", "number of entries"),
    ] {
        let run = run(orb8(&arguments.split_whitespace().collect::<Vec<_>>()));
        assert_eq!(run.code, 64, "{arguments}: {run:?}");
        assert!(run.stderr.contains(said), "{arguments}: {said:?} in {}", run.stderr);
        assert_eq!(run.stdout, "", "{arguments}");
    }
}

#[test]
fn an_unknown_field_lists_the_candidates_before_anything_starts() {
    for (table, wrong, nearest) in
        [("flows", "byte", "bytes"), ("pods", "podname", "pod_name"), ("pods", "flow", "flows")]
    {
        let run = run(orb8(&["query", table, "--fields", wrong]));
        assert_eq!(run.code, 64, "{run:?}");
        assert!(run.stderr.contains(&format!("did you mean '{nearest}'?")), "{}", run.stderr);
        assert!(run.stderr.contains("namespace, pod, pod_name"), "{}", run.stderr);
        assert!(!run.stderr.contains("mode:"), "{}", run.stderr);
    }
}

#[test]
fn help_and_version_succeed() {
    for arguments in [&["--help"][..], &["-V"], &["trace", "network", "--help"], &["help", "query"]]
    {
        let run = run(orb8(arguments));
        assert_eq!(run.code, 0, "{run:?}");
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{run:?}");
    }
}

#[test]
fn completions_come_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = run(orb8(&["completions", shell]));
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.stdout.contains("ring-buffer-size"), "{shell}");
    }
}

#[test]
fn manual_pages_go_to_stdout_or_one_per_command_to_a_directory() {
    let page = run(orb8(&["man"]));
    assert!(page.code == 0 && page.stdout.contains(".TH orb8"), "{page:?}");
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    let run = run(orb8(&["man", "--dir", pages.to_str().unwrap()]));
    assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{run:?}");
    for page in
        ["orb8.1", "orb8-trace-network.1", "orb8-query-pods.1", "orb8-nodes.1", "orb8-status.1"]
    {
        assert!(fs::read_to_string(pages.join(page)).unwrap().contains(".TH"), "{page}");
    }
}

#[test]
fn without_capabilities_the_error_lists_what_is_missing_and_how_to_grant_it() {
    // An empty bounding set leaves nothing to root either. Who is not root has nothing anyway.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", env!("CARGO_BIN_EXE_orb8")]);
    let is_root = fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t");
    let mut command = if is_root { command } else { Command::new(env!("CARGO_BIN_EXE_orb8")) };
    command.args(["--mode", "standalone", "trace", "network", "--duration", "1s"]);
    let run = run(command);
    assert_eq!(run.code, 1, "{run:?}");
    for part in ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "sudo orb8", "setcap cap_bpf,"] {
        assert!(run.stderr.contains(part), "{part} in {}", run.stderr);
    }
    assert_eq!(run.stdout, "");
}
