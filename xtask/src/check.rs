//! `cargo xtask check`: everything that can be wrong without running the product.

use anyhow::Result;

use crate::step::{self, cargo, program};

const SCRIPTS: [&str; 6] = [
    "scripts/setup.sh",
    "scripts/setup-lima.sh",
    "scripts/test-tools.sh",
    "deploy/make-certs.sh",
    ".ci/run",
    "xtask/src/vm/init.sh",
];

/// Cheapest first. The optional tools are skipped by name, so that nobody takes silence for a pass.
pub(crate) fn run() -> Result<()> {
    step::run(cargo().args(["fmt", "--all", "--check"]))?;
    // The kernel side has a manifest of its own, which `--all` does not reach.
    step::run(program("rustfmt").args(["--check", "orb8-probes/src/network_probe.rs"]))?;
    for script in SCRIPTS {
        step::run(program("bash").args(["-n", script]))?;
    }
    if wanted("shellcheck") {
        step::run(program("shellcheck").args(SCRIPTS))?;
    }
    step::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step::run(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]))?;
    if wanted("cargo-deny") {
        step::run(cargo().args(["deny", "check", "--hide-inclusion-graph"]))?;
    }
    Ok(())
}

fn wanted(tool: &str) -> bool {
    let there = step::installed(tool);
    if !there {
        println!("- {tool} is not installed: that check is skipped");
    }
    there
}
