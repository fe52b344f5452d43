//! `cargo xtask test`: every test there is, then a look at what they left behind.

use anyhow::{Result, bail};

use crate::{
    leftovers::Leftovers,
    step::{self, cargo},
};

/// What to test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For `cargo test`, instead of `--workspace`: `-p orb8-tests --test exact`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    cargo_args: Vec<String>,
}

/// Tests in one binary that run at the same time, unless `RUST_TEST_THREADS` says otherwise. Most
/// of them drive a node full of traffic: more would measure each other on a small machine.
const THREADS: &str = "2";

/// The workspace as root; what needs no kernel of its own otherwise.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.cargo_args.is_empty() {
        return with_kernel(&args.cargo_args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    if rustix::process::geteuid().is_root() {
        return with_kernel(&["--workspace", "--no-fail-fast"]);
    }
    println!("not root: only the tests that need no privileges; `sudo make test` runs all of them");
    let unprivileged = ["orb8-common", "orb8-proto", "orb8-cli", "xtask"];
    let packages = unprivileged.iter().flat_map(|name| ["--package", name]);
    step::run(cargo().arg("test").args(packages))?;
    let parser = ["--package", "orb8-probes", "--test", "parse_arbitrary_bytes"];
    step::run(cargo().arg("test").args(parser))?;
    // Those of netlink make network namespaces.
    let agent = ["--package", "orb8-agent", "--lib", "--", "--skip", "netlink::"];
    step::run(cargo().arg("test").args(agent))
}

fn with_kernel(cargo_args: &[&str]) -> Result<()> {
    // End-to-end tests run the real binaries, and cargo builds those only for their own package.
    let bin_dir = step::build_bins(&["--workspace", "--bins"], "orb8")?;
    let before = Leftovers::now()?;

    let mut tests = cargo();
    tests.arg("test").args(cargo_args).env("ORB8_BIN_DIR", bin_dir);
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        tests.env("RUST_TEST_THREADS", THREADS);
    }
    let tested = step::run(&mut tests);

    // Also after a failure: what was left behind may be why.
    let left = Leftovers::since(&before)?;
    for item in &left {
        eprintln!("left behind: {item}");
    }
    tested?;
    if !left.is_empty() {
        bail!("the tests passed and left {} things behind", left.len());
    }
    println!("nothing was left behind in the kernel, in cgroups or on disk");
    Ok(())
}
