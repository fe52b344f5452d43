//! One step of a command: another program, shown before it runs, in the repository's root.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// The repository's root, where every step runs.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The cargo that runs this xtask.
pub(crate) fn cargo() -> Command {
    program(std::env::var("CARGO").as_deref().unwrap_or("cargo"))
}

/// Another program, in the repository's root.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    command
}

/// Whether `name` is on the PATH: some checks use tools that nobody has to have.
pub(crate) fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Shows the command and runs it; its output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    println!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed: {status}");
    Ok(())
}

/// Builds with cargo and returns the folder in which cargo put the binary `name`. Asking cargo
/// holds wherever the target folder is and whatever it is called.
pub(crate) fn build_bins(args: &[&str], name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.arg("build").args(args);
    let shown = shown(&command);
    println!("$ {shown}");
    let output = command
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(output.status.success(), "`{shown}` failed: {}", output.status);
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: serde_json::Value =
            serde_json::from_slice(line).context("a message of cargo that is not JSON")?;
        if message["target"]["name"] == name
            && let Some(file) = message["executable"].as_str()
            && let Some(folder) = Path::new(file).parent()
        {
            return Ok(folder.to_owned());
        }
    }
    bail!("`{shown}` built no binary `{name}`")
}

/// The command as one would type it, with the variables that were set for it.
fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy()))
    });
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    variables.chain([program]).chain(args).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/usr/bin/cargo");
        command.env("ORB8_CODEGEN", "write").env_remove("PATH").args(["test", "-p", "orb8-proto"]);
        assert_eq!(shown(&command), "ORB8_CODEGEN=write cargo test -p orb8-proto");
    }

    #[test]
    fn a_step_that_fails_is_named_with_its_status() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c exit 3") && error.contains('3'), "{error}");
    }
}
