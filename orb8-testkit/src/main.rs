//! `orb8-testpod`: enters a pod's cgroup and network namespace and performs one program there.

mod testpod;

use std::process::ExitCode;

fn main() -> ExitCode {
    match testpod::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orb8-testpod: {error:#}");
            ExitCode::FAILURE
        }
    }
}
