//! Which modules a virtual machine loads, in an order in which each finds what it needs.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{kernel::Kernel, tool};

/// Pods are behind veths on a bridge; kernels without TCX have classifiers at clsact.
const WANTED: [&str; 4] = ["veth", "bridge", "sch_ingress", "cls_bpf"];

/// One module, not compressed.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) object: Vec<u8>,
}

/// The wanted modules and those they need; what is built into the kernel is not among them.
pub(super) fn in_order(kernel: &Kernel) -> Result<Vec<Module>> {
    let Kernel { release, base, .. } = kernel;
    tool::output(tool::command("depmod")?.arg("--basedir").arg(base).arg(release))?;
    let mut modules: Vec<Module> = Vec::new();
    for wanted in WANTED {
        let mut modprobe = tool::command("modprobe")?;
        // Without this machine's own rules for modules.
        modprobe.args(["--config", "/dev/null", "--show-depends", "--set-version", release]);
        let listed = tool::text(modprobe.arg("--dirname").arg(base).arg(wanted))?;
        for path in listed.lines().filter_map(|line| line.trim().strip_prefix("insmod ")) {
            let name = Path::new(path).file_name().context("a module without a name")?;
            let name = name.to_string_lossy().trim_end_matches(".xz").to_owned();
            if modules.iter().all(|module| module.name != name) {
                modules.push(Module { name, object: read(Path::new(path))? });
            }
        }
    }
    Ok(modules)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return tool::output(tool::command("xz")?.args(["--decompress", "--stdout"]).arg(path));
    }
    fs::read(path).with_context(|| path.display().to_string())
}
