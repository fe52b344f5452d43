//! What a virtual machine finds in its first and only file system.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    binaries::{Binaries, Test},
    initrd::Archive,
    kernel::Kernel,
    modules, tool,
};

/// Process 1.
const INIT: &str = include_str!("init.sh");
/// What process 1 and the testkit start, copied from this machine with their libraries.
const TOOLS: [&str; 7] = ["sh", "mount", "insmod", "sleep", "true", "ip", "unshare"];

/// Writes the archive for `kernel` and returns where it is.
pub(super) fn build(kernel: &Kernel, binaries: &Binaries) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in ["/dev", "/proc", "/sys", "/tmp", "/run"] {
        archive.folder(folder);
    }
    archive.file("/init", INIT.as_bytes());

    let mut libraries = BTreeSet::new();
    for name in TOOLS {
        let path = tool::path(name)?;
        archive.file(&format!("/bin/{name}"), &read(&path)?);
        libraries.extend(libraries_of(&path)?);
    }
    for library in &libraries {
        archive.file(library, &read(Path::new(library))?);
    }

    let mut order = String::new();
    for module in modules::in_order(kernel)? {
        archive.file(&format!("/modules/{}", module.name), &module.object);
        writeln!(order, "{}", module.name)?;
    }
    archive.file("/modules/order", order.as_bytes());

    let mut order = String::new();
    for Test { name, arguments, file } in &binaries.tests {
        archive.file(&format!("/tests/{name}"), &read(file)?);
        writeln!(order, "{name} {}", arguments.join(" "))?;
    }
    archive.file("/tests/order", order.as_bytes());
    archive.file("/tests/orb8-testpod", &read(&binaries.testpod)?);

    let path = kernel.folder.join("initrd");
    fs::write(&path, archive.finish()).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The libraries of a program, the dynamic linker among them.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let listed = tool::text(tool::command("ldd")?.arg(program))?;
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(String::from).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}
