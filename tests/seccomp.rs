//! A profile that `orb8 advise seccomp` writes lets the workload run under the real runc, and stops a
//! call that it never made.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orb8_testkit::{Node, NodeOptions, PodSpec, Program, program::Exec};
use orb8_tests::{OldGroups, Traced};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
/// Of the other test's pod: an agent sees the containers of every test that runs beside it.
const OTHER_UID: &str = "5b1c7a0e-94d2-4c07-8f0b-d1a6e2c3f4b5";
/// Reads a file now and then, with programs of its own, for two seconds and more.
const WORK: &str = "n=0; while [ $n -lt 30 ]; do cat /usr/lib/os-release >/dev/null || exit 9; \
                    sleep 0.05; n=$((n+1)); done; echo worked";
/// kill(2) to itself, with no signal: the shell needs no program for it, and WORK does not do it.
const INTRUDE: &str = "kill -0 $$ && echo intruded";

/// A folder from which runc runs containers.
struct Runc {
    dir: tempfile::TempDir,
    groups: String,
    /// Of the pod whose containers it runs.
    uid: &'static str,
}

impl Runc {
    /// With a root of this machine's programs, which cannot be written.
    fn new(node: &Node, uid: &'static str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("orb8-runc-").tempdir()?;
        let root = dir.path().join("rootfs");
        for name in ["", "usr", "proc", "dev", "tmp", "etc"] {
            fs::create_dir(root.join(name))?;
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name))?;
        }
        let groups = node.cgroup_dir().file_name().context("a node has a cgroup")?;
        Ok(Self { groups: groups.to_string_lossy().into_owned(), dir, uid })
    }

    /// Runs a script in a container of the pod, to its end.
    fn run(&self, id: &str, script: &str, seccomp: Option<&Value>) -> Result<Output> {
        let mut linux = json!({
            "cgroupsPath": format!("/{}/kubepods/besteffort/pod{}/{id}", self.groups, self.uid),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
        });
        if let Some(profile) = seccomp {
            linux["seccomp"] = profile.clone();
        }
        let bind = json!(["rbind", "ro", "nosuid"]);
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs", "readonly": true},
            "hostname": "web",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/usr", "type": "bind", "source": "/usr", "options": bind},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": linux,
        });
        fs::write(self.dir.path().join("config.json"), config.to_string())?;
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.dir.path().join("state"));
        runc.args(["run", "--bundle"]).arg(self.dir.path()).arg(id);
        runc.output().context("cannot run runc: scripts/setup.sh installs it")
    }
}

/// The pod, as Kubernetes would tell of it.
fn pod_list(id: &str) -> Value {
    json!({"kind": "Pod", "metadata": {
        "namespace": "shop", "name": "web-0", "uid": UID,
        "ownerReferences": [{"kind": "StatefulSet", "name": "web", "controller": true}],
    }, "status": {"containerStatuses": [{
        "name": "app", "image": "web:1", "imageID": "", "containerID": format!("containerd://{id}"),
    }]}})
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn advise(node: &Node, traced: &Traced, more: &[&str]) -> Result<Output> {
    let (orb8, at) =
        (orb8_tests::command_line()?, traced.grpc_addr().context("it serves")?.to_string());
    let mut command = vec![orb8.to_str().context("a path")?, "--server", &at, "advise", "seccomp"];
    command.extend(["-n", "shop", "--pod", "web-0"]);
    command.extend(more);
    node.exec(&command)
}

fn watch(node: &Node, pods: &Path) -> Result<Traced> {
    Traced::start(node, |config| {
        config.signals = vec!["syscall"];
        config.pods = Some(pods.to_owned());
        config.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    })
}

#[test]
fn an_advised_profile_lets_the_workload_run_and_stops_a_call_it_never_made() -> Result<()> {
    let mut old_groups = OldGroups::default();
    let node = Node::start(NodeOptions::default())?;
    old_groups.watch(&node);
    let runc = Runc::new(&node, UID)?;
    let id = "ab".repeat(32);
    let pods = runc.dir.path().join("pods.json");
    fs::write(&pods, pod_list(&id).to_string())?;
    let traced = watch(&node, &pods)?;

    let (out, err) = text(&runc.run(&id, WORK, None)?);
    ensure!(out == "worked\n", "{out}{err}");

    let refused = advise(&node, &traced, &[])?;
    let (out, err) = text(&refused);
    ensure!((refused.status.code(), &*out) == (Some(1), ""), "{out}{err}");
    ensure!(err.contains("expected at least 10m (--min-time)"), "{err}");
    let (forced, err) = text(&advise(&node, &traced, &["--force"])?);
    ensure!(forced.contains("FORCED") && forced.contains("expected at least 10m"), "{forced}{err}");

    let advised = advise(&node, &traced, &["--min-time", "1s"])?;
    let (out, err) = text(&advised);
    ensure!(advised.status.success() && !out.contains("FORCED"), "{out}{err}");
    let profile: Value = serde_json::from_str(&out)?;
    let allowed: Vec<&str> = profile["syscalls"][0]["names"]
        .as_array()
        .context("a list of names")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for call in ["openat", "execve", "wait4"] {
        ensure!(allowed.contains(&call), "{call} is missing in {allowed:?}");
    }
    // Those that runc made to prepare the container are not the workload's.
    for call in ["mount", "pivot_root", "umount2", "ptrace", "kill"] {
        ensure!(!allowed.contains(&call), "{call} is in {allowed:?}");
    }

    // Without the profile it does both; with it, it does its work, and that is all.
    let both = format!("{WORK}; {INTRUDE}");
    let (out, err) = text(&runc.run(&"cd".repeat(32), &both, None)?);
    ensure!(out == "worked\nintruded\n", "{out}{err}");
    let (out, err) = text(&runc.run(&"ef".repeat(32), &both, Some(&profile))?);
    ensure!(out == "worked\n", "{out}{err}");
    ensure!(err.contains("Operation not permitted"), "{out}{err}");
    traced.stop()
}

#[test]
fn a_profile_of_a_container_that_no_runtime_started_has_what_a_runtime_needs() -> Result<()> {
    let mut old_groups = OldGroups::default();
    let node = Node::start(NodeOptions::default())?;
    old_groups.watch(&node);
    let runc = Runc::new(&node, OTHER_UID)?;
    let pod = node.start_pod(PodSpec::new("shop", "web-0"))?;
    let pods = runc.dir.path().join("pods.json");
    node.write_pod_list(&pods)?;
    let traced = watch(&node, &pods)?;
    let command = ["/bin/sh", "-c", WORK].map(String::from).to_vec();
    // It ends without what the testkit's own programs say in the end.
    let _done = pod.spawn("app", &Program::Exec(Exec { command }))?.wait_for(LIMIT);

    let refused = advise(&node, &traced, &["--min-time", "1s"])?;
    let (out, err) = text(&refused);
    ensure!((refused.status.code(), &*out) == (Some(1), ""), "{out}{err}");
    ensure!(err.contains("no instance was watched from its first call on"), "{err}");
    let (out, err) = text(&advise(&node, &traced, &["--force"])?);
    let profile: Value = serde_json::from_str(&out).with_context(|| err)?;
    let both = format!("{WORK}; {INTRUDE}");
    let (out, err) = text(&runc.run(&"12".repeat(32), &both, Some(&profile))?);
    ensure!(out == "worked\n", "{out}{err}{profile:#}");
    traced.stop()
}
