//! Debian's kernels: which there are, and where a fetched one has its parts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{apt::Suite, folder};

/// The kernel of a Debian release.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Version {
    /// Debian 11: the oldest that orb8 promises to run on
    #[value(name = "5.10")]
    Bullseye,
    /// Debian 12: the last without TCX
    #[value(name = "6.1")]
    Bookworm,
    /// Debian 13
    #[value(name = "6.12")]
    Trixie,
    /// The newest that there is
    #[value(name = "sid")]
    Sid,
}

impl Version {
    pub(super) const ALL: &[Self] = &[Self::Bullseye, Self::Bookworm, Self::Trixie, Self::Sid];

    fn suite(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// A kernel that is here.
pub(super) struct Kernel {
    /// As `uname -r` says: `6.1.0-56-cloud-amd64`.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The folder with `lib/modules/<release>`.
    pub(super) base: PathBuf,
    /// What is made for this kernel goes here.
    pub(super) folder: PathBuf,
}

/// The smallest of Debian's images that has all that orb8 uses; it is the one of cloud machines.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// Fetches the kernel, unless it is here already.
pub(super) fn fetch(version: Version) -> Result<Kernel> {
    let folder = folder().join(version.suite());
    let unpacked = folder.join("kernel");
    if !unpacked.exists() {
        println!("fetching the kernel of Debian's {}", version.suite());
        let suite = Suite::open(version.suite(), &folder.join("apt"))?;
        let packages = parts(&suite)?;
        let draft = folder.join("kernel-draft");
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        suite.unpack(&packages, &draft)?;
        fs::rename(&draft, &unpacked)?;
    }
    find(&unpacked, folder).with_context(|| format!("the kernel in {}", unpacked.display()))
}

/// The packages that the meta package stands for. Newer suites divide a kernel into several.
fn parts(suite: &Suite) -> Result<Vec<String>> {
    let (mut parts, mut open) = (Vec::new(), vec![PACKAGE.to_owned()]);
    while let Some(package) = open.pop() {
        for dependency in suite.dependencies(&package)? {
            let is_part = ["linux-image-", "linux-binary-", "linux-modules-"]
                .iter()
                .any(|prefix| dependency.starts_with(prefix));
            if is_part && !parts.contains(&dependency) {
                parts.push(dependency.clone());
                open.push(dependency);
            }
        }
    }
    ensure!(!parts.is_empty(), "{PACKAGE} depends on no image");
    Ok(parts)
}

fn find(unpacked: &Path, folder: PathBuf) -> Result<Kernel> {
    let bases = [unpacked.to_owned(), unpacked.join("usr")];
    let base = bases
        .into_iter()
        .find(|base| base.join("lib/modules").is_dir())
        .context("no lib/modules")?;
    let modules = base.join("lib/modules");
    let release = fs::read_dir(&modules)?.next().context("lib/modules is empty")??.file_name();
    let release = release.into_string().ok().context("a release that is not text")?;
    let images = [
        unpacked.join("boot").join(format!("vmlinuz-{release}")),
        modules.join(&release).join("vmlinuz"),
    ];
    let image = images.into_iter().find(|image| image.is_file()).context("no vmlinuz")?;
    Ok(Kernel { release, image, base, folder })
}
