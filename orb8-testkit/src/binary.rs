//! Where the `orb8-testpod` binary is.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

const NAME: &str = "orb8-testpod";

/// The path of the `orb8-testpod` binary: in `$ORB8_BIN_DIR` when that is set, else beside the running executable or
/// one directory above it (test executables live in `target/<profile>/deps`).
///
/// # Errors
/// When it is in none of these places; the error says how to build it.
pub fn testpod_path() -> Result<PathBuf> {
    let places = match std::env::var_os("ORB8_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => {
            let exe = std::env::current_exe().context("cannot tell the running executable")?;
            exe.ancestors().skip(1).take(2).map(PathBuf::from).collect()
        }
    };
    match places.iter().map(|dir| dir.join(NAME)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("no {NAME} in {places:?}: build it with `cargo build -p orb8-testkit`"),
    }
}
