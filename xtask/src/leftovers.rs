//! What orb8 and its tests could leave on a machine, by name: programs in the kernel, network
//! namespaces, interfaces, cgroups, processes, files.
//!
//! A TCX link, a clsact filter and a pinned object all keep their program loaded, so the list of
//! programs covers every attachment, in every network namespace.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::programs::{ProgramError, loaded_programs};

/// All that is ours carries this at the start of its name.
const PREFIX: &str = "orb8";

/// Unloading is asynchronous: the kernel frees a program some RCU grace periods after its last
/// reference went, and a killed process needs a moment to be reaped.
const GRACE: Duration = Duration::from_secs(10);

/// What is there at one moment, each item in words.
pub(crate) struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Looks at everything. Needs root, for the list of programs.
    pub(crate) fn now() -> Result<Self> {
        let mut found = BTreeSet::new();
        programs(&mut found)?;
        processes(&mut found);
        entries(Path::new("/run/netns"), "network namespace", &mut found);
        entries(Path::new("/sys/class/net"), "interface", &mut found);
        entries(Path::new("/sys/fs/bpf"), "pinned object", &mut found);
        entries(Path::new("/run"), "file", &mut found);
        entries(&std::env::temp_dir(), "file", &mut found);
        cgroups(PathBuf::from("/sys/fs/cgroup"), &mut found);
        Ok(Self(found))
    }

    /// What has come since `before` and does not go away by itself.
    pub(crate) fn since(before: &Self) -> Result<BTreeSet<String>> {
        let deadline = Instant::now() + GRACE;
        loop {
            let left: BTreeSet<_> = Self::now()?.0.difference(&before.0).cloned().collect();
            if left.is_empty() || Instant::now() >= deadline {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn programs(found: &mut BTreeSet<String>) -> Result<()> {
    for program in loaded_programs() {
        let program = match program {
            Ok(program) => program,
            // Unloaded while we looked.
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                continue;
            }
            Err(error) => return Err(error).context("cannot list the kernel's BPF programs"),
        };
        let name = program.name_as_str().unwrap_or_default();
        if is_ours(name) {
            found.insert(format!("BPF program {name} (id {})", program.id()));
        }
    }
    Ok(())
}

fn processes(found: &mut BTreeSet<String>) {
    let Ok(list) = fs::read_dir("/proc") else { return };
    for entry in list.flatten() {
        let pid = entry.file_name();
        // A process that ends while we look has no file any more.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(name) = running(&stat)
            && is_ours(name)
        {
            found.insert(format!("process {name} (pid {})", pid.display()));
        }
    }
}

/// The name in a `/proc/<pid>/stat` (`812 (name) S 1 …`), unless the process is dead and only waits
/// to be reaped, which an orphan's new parent does in its own time.
fn running(stat: &str) -> Option<&str> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once(" (")?;
    (!after.starts_with(['Z', 'X'])).then_some(name)
}

/// Entries of one folder; a folder that is not there holds nothing of ours.
fn entries(folder: &Path, what: &str, found: &mut BTreeSet<String>) {
    let Ok(list) = fs::read_dir(folder) else { return };
    for entry in list.flatten() {
        if is_ours(&entry.file_name().to_string_lossy()) {
            found.insert(format!("{what} {}", entry.path().display()));
        }
    }
}

/// Folders anywhere in the cgroup hierarchies; what lies below one of ours goes with it.
fn cgroups(folder: PathBuf, found: &mut BTreeSet<String>) {
    let Ok(list) = fs::read_dir(folder) else { return };
    for entry in list.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if is_ours(&entry.file_name().to_string_lossy()) {
            found.insert(format!("cgroup {}", entry.path().display()));
        } else {
            cgroups(entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_that_still_run_have_a_name() {
        assert_eq!(running("812 (orb8-testpod) S 1 812"), Some("orb8-testpod"));
        assert_eq!(running("812 (a) b (c) R 1 812"), Some("a) b (c"));
        assert_eq!(running("812 (orb8-testpod) Z 1 812"), None);
    }

    #[test]
    fn what_carries_our_name_is_found_and_what_does_not_is_foreign() {
        let folder = std::env::temp_dir().join(format!("xtask-leftovers-{}", std::process::id()));
        for name in ["orb8-node-1/kubepods/pod1", "system.slice/orb8-scope", "foreign"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let mut found = BTreeSet::new();
        cgroups(folder.clone(), &mut found);
        entries(&folder, "file", &mut found);
        fs::remove_dir_all(&folder).unwrap();

        let expected = [
            format!("cgroup {}/orb8-node-1", folder.display()),
            format!("cgroup {}/system.slice/orb8-scope", folder.display()),
            format!("file {}/orb8-node-1", folder.display()),
        ];
        assert_eq!(found, BTreeSet::from(expected));
    }
}
