//! Cgroup v2 directories in the forms that kubelets give them, below a prefix that says who owns them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Directories of a node are `orb8-testkit-<pid of the owner>-<number>`.
const PREFIX: &str = "orb8-testkit-";

/// How long killed processes may take to leave a cgroup: they end in microseconds, unless the machine is overloaded.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// Kubernetes quality-of-service class of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qos {
    /// Requests equal limits; such pods sit directly below the `kubepods` cgroup.
    Guaranteed,
    /// Some requests or limits.
    #[default]
    Burstable,
    /// None.
    BestEffort,
}

impl Qos {
    /// As the API spells it: `Guaranteed`, `Burstable`, `BestEffort`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Who names the kubelet's cgroup directories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// `kubepods/burstable/pod<uid>/<container>`
    #[default]
    Cgroupfs,
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _>.slice/<container>.scope`
    Systemd,
}

/// The container runtime, which names the directory of a container and the scheme of its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// `cri-containerd-<id>.scope`, or the bare id with cgroupfs.
    #[default]
    Containerd,
    /// `crio-<id>.scope`, or `crio-<id>` with cgroupfs.
    CriO,
    /// As [`CriO`](Self::CriO), with the processes in a child directory `container`, as CRI-O on crun has it.
    CriOCrun,
    /// `docker-<id>.scope`, or the bare id with cgroupfs.
    Docker,
}

impl Runtime {
    /// A container's id as the API shows it, such as `containerd://<64 hex>`.
    #[must_use]
    pub fn container_uri(self, id: &str) -> String {
        let scheme = match self {
            Self::Containerd => "containerd",
            Self::CriO | Self::CriOCrun => "cri-o",
            Self::Docker => "docker",
        };
        format!("{scheme}://{id}")
    }
}

/// The form of a pod's directories.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    pub(crate) driver: CgroupDriver,
    pub(crate) runtime: Runtime,
    /// A component before `kubepods`: kind has `kubelet` there.
    pub(crate) root: Option<String>,
}

impl Layout {
    /// The pod's directory, relative to the node's.
    pub(crate) fn pod(&self, qos: Qos, uid: &str) -> PathBuf {
        let class = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        let pod = match self.driver {
            CgroupDriver::Cgroupfs => format!("pod{uid}"),
            // A dash separates the levels of a slice's name, so systemd's escape for the UID's own is needed.
            CgroupDriver::Systemd => format!("pod{}", uid.replace('-', "_")),
        };
        let levels: Vec<&str> = [self.root.as_deref(), Some("kubepods"), class, Some(&pod)]
            .into_iter()
            .flatten()
            .collect();
        match self.driver {
            CgroupDriver::Cgroupfs => levels.iter().collect(),
            CgroupDriver::Systemd => {
                (1..=levels.len()).map(|end| format!("{}.slice", levels[..end].join("-"))).collect()
            }
        }
    }

    /// A container's directory, relative to its pod's: the one that holds its processes.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        let prefix = match (self.runtime, self.driver) {
            (Runtime::CriO | Runtime::CriOCrun, _) => "crio-",
            (_, CgroupDriver::Cgroupfs) => "",
            (Runtime::Containerd, CgroupDriver::Systemd) => "cri-containerd-",
            (Runtime::Docker, CgroupDriver::Systemd) => "docker-",
        };
        let suffix = match self.driver {
            CgroupDriver::Cgroupfs => "",
            CgroupDriver::Systemd => ".scope",
        };
        let mut dir = PathBuf::from(format!("{prefix}{id}{suffix}"));
        if self.runtime == Runtime::CriOCrun {
            dir.push("container");
        }
        dir
    }
}

/// The directory of this process's node number `number`, not made yet.
pub(crate) fn prefix_dir(mount: &Path, number: u32) -> PathBuf {
    mount.join(format!("{PREFIX}{}-{number}", std::process::id()))
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    mount_point_in(&table)
        .context("no file system of type cgroup2 in /proc/self/mountinfo: mount one")
}

fn mount_point_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let is_cgroup2 = source.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Removes the directories of owners that are gone, and ends what still runs in them. `ours` says which numbers this
/// process has given out: a directory of the same process id with another number is of a former life.
pub(crate) fn sweep(mount: &Path, ours: impl Fn(u32) -> bool) -> Result<()> {
    for entry in fs::read_dir(mount).with_context(|| mount.display().to_string())? {
        let entry = entry?;
        let Some((pid, number)) = entry.file_name().to_str().and_then(owner) else { continue };
        let alive = match pid == std::process::id() {
            true => ours(number),
            false => Path::new("/proc").join(pid.to_string()).exists(),
        };
        if !alive {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn owner(name: &str) -> Option<(u32, u32)> {
    let (pid, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((pid.parse().ok()?, number.parse().ok()?))
}

/// Kills every process in and below `dir` and removes the directories, deepest first. A directory that is not there is
/// no error: somebody else has swept it.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + EXIT_LIMIT;
    loop {
        kill_tree(dir);
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                bail!("cannot remove the cgroup {}: {error}", dir.display())
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn kill_tree(dir: &Path) {
    for child in children(dir).unwrap_or_default() {
        kill_tree(&child);
    }
    // Read errors mean that the directory went away, kill errors that the process did: both are what is wanted.
    let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // A process of another pid namespace is listed as 0, which is no Pid.
    for pid in listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for child in children(dir)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(dir)
}

fn children(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f0e-11";

    fn path(driver: CgroupDriver, runtime: Runtime, root: Option<&str>, qos: Qos) -> String {
        let layout = Layout { driver, runtime, root: root.map(String::from) };
        layout.pod(qos, UID).join(layout.container("abc")).display().to_string()
    }

    #[test]
    fn paths_have_the_forms_that_kubelets_and_runtimes_give_them() {
        use CgroupDriver::{Cgroupfs, Systemd};
        let cases = [
            (
                path(Cgroupfs, Runtime::Containerd, None, Qos::Burstable),
                "kubepods/burstable/pod0f0e-11/abc",
            ),
            (path(Cgroupfs, Runtime::Docker, None, Qos::Guaranteed), "kubepods/pod0f0e-11/abc"),
            (
                path(Cgroupfs, Runtime::CriO, None, Qos::BestEffort),
                "kubepods/besteffort/pod0f0e-11/crio-abc",
            ),
            (
                path(Systemd, Runtime::Containerd, None, Qos::Burstable),
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f0e_11.slice/cri-containerd-abc.scope",
            ),
            (
                path(Systemd, Runtime::CriOCrun, None, Qos::Guaranteed),
                "kubepods.slice/kubepods-pod0f0e_11.slice/crio-abc.scope/container",
            ),
            (
                path(Systemd, Runtime::Containerd, Some("kubelet"), Qos::Guaranteed),
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod0f0e_11.slice/cri-containerd-abc.scope",
            ),
        ];
        for (is, expected) in cases {
            assert_eq!(is, expected);
        }
    }

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_one() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point_in("23 1 0:5 / /proc rw - proc proc rw"), None);
    }

    #[test]
    fn only_names_of_our_own_form_have_an_owner() {
        assert_eq!(owner("orb8-testkit-812-3"), Some((812, 3)));
        for foreign in ["orb8-testkit-", "orb8-testkit-812", "orb8-testkit-x-1", "system.slice"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
