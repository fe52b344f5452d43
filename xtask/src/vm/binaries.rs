//! What runs in a virtual machine, linked statically: it has no libraries but those of its tools.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};

use super::folder;
use crate::step::{self, cargo};

/// A test binary with its arguments; they run in this order.
pub(super) struct Test {
    pub(super) name: &'static str,
    pub(super) arguments: &'static [&'static str],
    pub(super) file: PathBuf,
}

/// Everything that was built.
pub(super) struct Binaries {
    pub(super) tests: Vec<Test>,
    /// The programs of the testkit's pods.
    pub(super) testpod: PathBuf,
}

/// Test targets of [`PACKAGES`], each with its arguments, in the order in which they run.
const TESTS: [(&str, &[&str]); 6] = [
    // The real object, verified by the kernel, and one helper of it after the other. Not the four
    // properties that want thousands of packets: emulated, they take longer than all the rest, and
    // what they are about is not what differs from kernel to kernel.
    (
        "program_on_crafted_packets",
        &[
            "--skip",
            "any_bytes",
            "--skip",
            "any_packet",
            "--skip",
            "cut_anywhere",
            "--skip",
            "without_a_link_header",
        ],
    ),
    // Real pods with real traffic: attached at TCX or clsact, harvested, compared with the kernel.
    ("exact", &[]),
    // The probe of system calls, by every kind of program.
    ("system_calls", &[]),
    // The agent by the kind that this kernel has. Not ten thousand programs once more.
    ("syscalls", &["--skip", "ten_thousand"]),
    ("latency", &[]),
    // Cgroups as this kernel tells of them.
    ("births", &[]),
];

const PACKAGES: [&str; 3] = ["orb8-probes", "orb8-tests", "orb8-testkit"];
const TESTPOD: &str = "orb8-testpod";
const TARGET: &str = "x86_64-unknown-linux-gnu";

pub(super) fn build() -> Result<Binaries> {
    let mut build = cargo();
    build
        // Emulation is slow enough for optimised code to be worth its wait.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_STRIP", "symbols")
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("ORB8_BPF", "required")
        .args(["build", "--target", TARGET, "--target-dir"])
        .arg(folder().join("build"))
        .args(PACKAGES.iter().flat_map(|package| ["--package", package]))
        .args(TESTS.iter().flat_map(|(name, _)| ["--test", name]))
        .args(["--bin", TESTPOD])
        .args(["--message-format", "json-render-diagnostics"]);
    println!("building the tests, statically");
    let output = build.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{build:?} failed: {}", output.status);
    let messages = String::from_utf8(output.stdout).context("what cargo printed")?;
    let test = |(name, arguments)| Ok(Test { name, arguments, file: executable(&messages, name)? });
    Ok(Binaries {
        tests: TESTS.into_iter().map(test).collect::<Result<_>>()?,
        testpod: executable(&messages, TESTPOD)?,
    })
}

/// Where cargo, by its messages, put the executable of the target `name`.
fn executable(messages: &str, name: &str) -> Result<PathBuf> {
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["target"]["name"] == name
            && let Some(file) = message["executable"].as_str()
        {
            return Ok(step::root().join(Path::new(file)));
        }
    }
    bail!("cargo built no `{name}`")
}
