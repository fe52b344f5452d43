//! Programs of this machine that the command runs, or copies into the virtual one.

use std::{
    env,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// Each with the Debian package that brings it.
const NEEDED: [(&str, &str); 12] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("apt-get", "apt"),
    ("depmod", "kmod"),
    ("dpkg-deb", "dpkg"),
    ("insmod", "kmod"),
    ("ip", "iproute2"),
    ("ldd", "libc-bin"),
    ("mount", "mount"),
    ("setpriv", "util-linux"),
    ("sleep", "coreutils"),
    ("unshare", "util-linux"),
    ("xz", "xz-utils"),
];

/// Names all that is missing, and how to get it.
pub(super) fn check() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")),
        "the virtual machines are x86_64 and run programs of this machine: it has to be x86_64 \
         with Debian or one of its descendants"
    );
    let mut packages: Vec<_> = NEEDED
        .iter()
        .filter(|(name, _)| path(name).is_err())
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    bail!(
        "missing packages; as root, run: apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

/// Where a program is: on the PATH, or where Debian keeps those for root.
pub(super) fn path(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("no `{name}` on this machine"))
}

/// A program whose output is read, so it has to be untranslated.
pub(super) fn command(name: &str) -> Result<Command> {
    let mut command = Command::new(path(name)?);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    Ok(command)
}

/// Runs the command to its end and returns what it printed.
pub(super) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let Output { status, stdout, stderr } = output;
    let complaint = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{command:?} failed: {status}\n{}", complaint.trim());
    Ok(stdout)
}

/// As [`output`], as text.
pub(super) fn text(command: &mut Command) -> Result<String> {
    String::from_utf8(output(command)?).with_context(|| format!("what {command:?} printed"))
}
