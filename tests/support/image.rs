//! A container image of a program that is on this machine: there is no registry to pull one from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// Writes `dir/image.tar`, which `ctr images import` reads as `name`: `program` as `/program`, with
/// the libraries that it is linked to. Started as it is, it gets `arguments`.
pub(crate) fn write(dir: &Path, name: &str, program: &Path, arguments: &[&str]) -> Result<PathBuf> {
    let root = dir.join("rootfs");
    for folder in ["tmp", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    copy(program, &root.join("program"))?;
    for library in libraries(program)? {
        copy(&library, &root.join(library.strip_prefix("/")?))?;
    }
    tar(&root, &dir.join("layer.tar"), &["."])?;
    let layer = output(Command::new("sha256sum").arg(dir.join("layer.tar")))?;
    let digest = layer.split_whitespace().next().context("sha256sum says nothing")?;
    let entrypoint: Vec<&str> = ["/program"].iter().chain(arguments).copied().collect();
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Entrypoint": entrypoint },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{
        "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"],
    }]);
    fs::write(dir.join("config.json"), config.to_string())?;
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    let image = dir.join("image.tar");
    tar(dir, &image, &["manifest.json", "config.json", "layer.tar"])?;
    Ok(image)
}

/// As Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Absolute paths in what ldd(1) prints: `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld.so (0x…)`.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = output(Command::new("ldd").arg(program))?;
    let words = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("it has no folder")?)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

fn tar(from: &Path, to: &Path, what: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command.arg("--create").arg("--file").arg(to).arg("--directory").arg(from).args(what);
    output(&mut command).map(drop)
}

/// What a command prints, if it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {}: {complaint}", done.status);
    Ok(String::from_utf8(done.stdout)?)
}
