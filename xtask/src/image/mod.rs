//! `cargo xtask image`: images of the agent and the server for containers, from static binaries, without
//! a Docker daemon.
//!
//! Each image is one layer with one program on top of nothing. The same build gives the same digests:
//! times are fixed and owners are numbers.

mod layout;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use self::layout::{Image, tar};
use crate::step::{self, cargo, program, root};

/// What to build, and where to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for the images
    #[arg(long, default_value = "target/image", value_name = "DIR")]
    out: PathBuf,
    /// Name in front of /agent and /server
    #[arg(long, default_value = "docker.io/orb8", value_name = "REPOSITORY")]
    repository: String,
    /// Tag of the images
    #[arg(long, default_value = "latest")]
    tag: String,
    /// Cargo profile: release, or dev for a try
    #[arg(long, default_value = "release")]
    profile: String,
    /// Only this program
    #[arg(long, value_name = "PROGRAM")]
    only: Option<String>,
}

/// A program that becomes an image.
struct Part {
    package: &'static str,
    /// Last part of the image's name.
    image: &'static str,
    /// Root without its powers for the agent, as a container's user gets no capability unless it is root.
    user: &'static str,
    ports: &'static [u16],
}

const PARTS: [Part; 2] = [
    Part { package: "orb8-agent", image: "agent", user: "0:0", ports: &[9090, 9091] },
    Part { package: "orb8-server", image: "server", user: "65532:65532", ports: &[8080, 8081] },
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let parts: Vec<&Part> = PARTS
        .iter()
        .filter(|part| args.only.as_deref().is_none_or(|only| only == part.package))
        .filter(|part| root().join(part.package).join("Cargo.toml").is_file())
        .collect();
    if parts.is_empty() {
        let known: Vec<&str> = PARTS.iter().map(|part| part.package).collect();
        bail!("{:?} is none of the programs that have an image: {known:?}", args.only);
    }
    let target = target()?;
    for part in parts {
        let built = build(part, &target, &args.profile)?;
        let made = image(part, &built, args)?;
        check(&made, part)?;
    }
    Ok(())
}

/// A target whose binaries need nothing of the system that they run on.
fn target() -> Result<String> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let mut print = program("rustc");
    print.args(["--print", "target-libdir", "--target", &target]);
    let printed = print.output().context("cannot start rustc")?;
    let libdir = PathBuf::from(String::from_utf8(printed.stdout)?.trim());
    let has_std = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("libstd-");
    let there = fs::read_dir(&libdir).is_ok_and(|dir| dir.flatten().any(has_std));
    ensure!(there, "no standard library for {target}: rustup target add {target}");
    let compiler = format!("CC_{}", target.replace('-', "_"));
    ensure!(
        step::installed("musl-gcc") || std::env::var_os(&compiler).is_some(),
        "no C compiler for {target}: install musl-tools, or name one in {compiler}"
    );
    Ok(target)
}

fn build(part: &Part, target: &str, profile: &str) -> Result<PathBuf> {
    // An image without its probes would be of no use to anybody.
    let mut command = cargo();
    command.env("ORB8_BPF", "required").args(["build", "--locked", "--target", target]);
    command.args(["--profile", profile, "--package", part.package]);
    if cfg!(target_arch = "aarch64") {
        // Kernels there have pages of up to 64 KiB, which jemalloc has to be built for.
        command.env("JEMALLOC_SYS_WITH_LG_PAGE", "16");
    }
    step::run(&mut command)?;
    let folder =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let profile = if profile == "dev" { "debug" } else { profile };
    Ok(folder.join(target).join(profile).join(part.package))
}

/// What was made of a part.
struct Made {
    /// The folder of the OCI layout.
    layout: PathBuf,
    /// The same as one file.
    archive: PathBuf,
    /// What is in the image, unpacked; goes away.
    files: tempfile::TempDir,
}

fn image(part: &Part, binary: &Path, args: &Args) -> Result<Made> {
    let files = tempfile::tempdir()?;
    let inside = files.path();
    fs::create_dir_all(inside.join("etc"))?;
    fs::copy(binary, inside.join(part.package)).with_context(|| binary.display().to_string())?;
    fs::copy(root().join("LICENSE"), inside.join("LICENSE"))?;
    fs::write(
        inside.join("etc/passwd"),
        "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
    )?;
    fs::write(inside.join("etc/group"), "root:x:0:\nnonroot:x:65532:\n")?;

    let out = root().join(&args.out);
    let layout = out.join(part.package);
    let name = format!("{}/{}:{}", args.repository, part.image, args.tag);
    let image = Image {
        name: &name,
        entrypoint: &format!("/{}", part.package),
        user: part.user,
        ports: part.ports,
        title: part.package,
        version: env!("CARGO_PKG_VERSION"),
        revision: &revision(),
    };
    let size = layout::write(&layout, &image, inside)?;
    let archive = out.join(format!("{}.tar", part.package));
    tar(&layout, &archive, &["oci-layout", "index.json", "blobs"])?;
    println!(
        "{name}: {:.1} MB to fetch, {:.1} MB unpacked; {}",
        megabytes(size.compressed),
        megabytes(size.unpacked),
        archive.display()
    );
    Ok(Made { layout, archive, files })
}

/// Commit that was built, marked where there is more than is in it; `unknown` outside of a repository.
fn revision() -> String {
    let git = |args: &[&str]| -> Option<String> {
        let done = program("git").args(args).output().ok().filter(|done| done.status.success())?;
        Some(String::from_utf8(done.stdout).ok()?.trim().to_owned())
    };
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit}-modified"),
        _ => "unknown".to_owned(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What was written is what was meant, and the program runs where there is nothing else.
fn check(made: &Made, part: &Part) -> Result<()> {
    layout::verify(&made.layout)?;
    ensure!(made.archive.is_file(), "no {}", made.archive.display());
    if !rustix::process::geteuid().is_root() {
        println!("not root: not tried whether {} starts in it", part.package);
        return Ok(());
    }
    let alone = Command::new("chroot")
        .arg(made.files.path())
        .args([&format!("/{}", part.package), "--version"])
        .output()
        .context("cannot start chroot")?;
    let said = String::from_utf8_lossy(&alone.stdout);
    let expected = format!("{} {}", part.package, env!("CARGO_PKG_VERSION"));
    ensure!(
        alone.status.success() && said.trim() == expected,
        "{} does not run with nothing but itself: {said}{}",
        part.package,
        String::from_utf8_lossy(&alone.stderr)
    );
    Ok(())
}
