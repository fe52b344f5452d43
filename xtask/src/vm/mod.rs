//! `cargo xtask vm`: kernel tests of orb8 on Debian's kernels, in emulated machines.
//!
//! It takes minutes, and packages that nothing else needs, so neither `make test` nor CI runs it.
//! Everything it fetches or builds is below `target/vm`; deleting that folder gets newer kernels.

mod apt;
mod binaries;
mod image;
mod initrd;
mod kernel;
mod machine;
mod modules;
mod tool;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::step;
use kernel::Version;
use machine::Outcome;

/// On what to test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernels to boot, one after the other; all of them when none is given
    #[arg(long, value_enum, num_args = 1.., value_name = "VERSION")]
    kernel: Vec<Version>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    tool::check()?;
    let tests = binaries::build()?;
    let kernels = if args.kernel.is_empty() { Version::ALL } else { &args.kernel };
    let mut failed = Vec::new();
    for &version in kernels {
        let kernel = kernel::fetch(version)?;
        let initrd = image::build(&kernel, &tests)?;
        for Outcome { test, passed, seconds } in machine::boot(&kernel, &initrd, &tests)? {
            let result = if passed { "ok" } else { "FAILED" };
            println!("{}: {test}: {result} after {seconds} s", kernel.release);
            if !passed {
                failed.push(format!("{test} on {}", kernel.release));
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

/// Where everything of this command lies.
fn folder() -> PathBuf {
    step::root().join("target/vm")
}
