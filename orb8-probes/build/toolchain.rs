//! Finds a Rust toolchain that can compile for the BPF target, and runs it undisturbed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// What to tell a user whose machine has no such toolchain.
pub(crate) const HELP: &str = "\
no Rust toolchain that can build eBPF programs was found. Install one of these:
  Debian 12+:  apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf rust-web-llvm
  rustup:      rustup component add rust-src llvm-tools
or set ORB8_BPF_RUSTC to a rustc whose sysroot has the core library of bpfel-unknown-none,
or ORB8_BPF_OBJECTS to a directory with probe objects that were built elsewhere.";

/// A rustc with the cargo and the `llc` that belong to it.
pub(crate) struct Toolchain {
    pub(crate) sysroot: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) llc: PathBuf,
    /// There is no precompiled core library for the target, but the sources of one.
    pub(crate) build_std: bool,
}

impl Toolchain {
    /// `ORB8_BPF_RUSTC`, else the first that can of the outer rustc and the system's; a toolchain
    /// with a precompiled core library is preferred.
    pub(crate) fn find() -> Result<Self, String> {
        println!("cargo::rerun-if-env-changed=ORB8_BPF_RUSTC");
        if let Some(named) = env::var_os("ORB8_BPF_RUSTC") {
            return Self::of(Path::new(&named)).ok_or_else(|| {
                format!(
                    "ORB8_BPF_RUSTC={} cannot build for {TARGET}: it has neither the core library \
                     nor rust-src, or there is no llc of its LLVM",
                    named.display()
                )
            });
        }
        let outer = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut found: Vec<Self> = [outer, "/usr/bin/rustc".into(), "rustc".into()]
            .into_iter()
            .filter_map(|rustc| Self::of(Path::new(&rustc)))
            .collect();
        found.sort_by_key(|toolchain| toolchain.build_std);
        found.into_iter().next().ok_or_else(|| HELP.to_owned())
    }

    fn of(rustc: &Path) -> Option<Self> {
        let sysroot = PathBuf::from(stdout_of(Command::new(rustc).args(["--print", "sysroot"]))?);
        // Past the rustup proxy: the inner build must not depend on the directory it runs in.
        let rustc =
            [sysroot.join("bin/rustc"), rustc.to_path_buf()].into_iter().find(|p| p.is_file())?;
        let version = stdout_of(Command::new(&rustc).arg("-vV"))?;
        let field = |name: &str| {
            version.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default()
        };
        let llvm = field("LLVM version:").split('.').next().unwrap_or_default().to_owned();
        let libdir =
            stdout_of(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
        let has_core = fs::read_dir(libdir).is_ok_and(|dir| {
            dir.flatten().any(|e| e.file_name().to_string_lossy().starts_with("libcore-"))
        });
        let has_src = sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file();
        if !has_core && !has_src {
            return None;
        }
        let llc = [
            sysroot.join(format!("lib/rustlib/{}/bin/llc", field("host:"))),
            format!("/usr/lib/llvm-{llvm}/bin/llc").into(),
        ]
        .into_iter()
        .find(|p| p.is_file())
        .or_else(|| on_path(&format!("llc-{llvm}"))?.canonicalize().ok())?;
        let cargo = [rustc.with_file_name("cargo"), "/usr/bin/cargo".into()]
            .into_iter()
            .find(|p| p.is_file())?;
        Some(Self { sysroot, rustc, cargo, llc, build_std: !has_core })
    }

    /// A tool of the same LLVM.
    pub(crate) fn llvm_tool(&self, name: &str) -> PathBuf {
        self.llc.with_file_name(name)
    }
}

/// Runs `command` in a clean environment; its standard error is the answer, or the error.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    run_with(command, [])
}

/// The same, with `variables` set after the environment was cleaned.
pub(crate) fn run_with<const N: usize>(
    command: &mut Command,
    variables: [(&str, String); N],
) -> Result<String, String> {
    let out = scrub(command).envs(variables).output().map_err(|e| format!("{command:?}: {e}"))?;
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() { Ok(stderr) } else { Err(format!("{command:?} failed\n{stderr}")) }
}

fn stdout_of(command: &mut Command) -> Option<String> {
    let out = scrub(command).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// What says how to reach a registry, and where cargo keeps its things.
const KEPT: [&str; 8] = [
    "CARGO_HOME",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
];

const DROPPED_PREFIXES: [&str; 4] = ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"];

const DROPPED: [&str; 12] = [
    "RUSTFLAGS",
    "LD_LIBRARY_PATH",
    "TARGET",
    "HOST",
    "PROFILE",
    "OPT_LEVEL",
    "DEBUG",
    "OUT_DIR",
    "NUM_JOBS",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "MIRI_SYSROOT",
];

/// Removes what the outer cargo, rustup, clippy and this build script would leak into the inner
/// build.
fn scrub(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let kept = KEPT.iter().any(|p| name.starts_with(p));
        let dropped =
            DROPPED_PREFIXES.iter().any(|p| name.starts_with(p)) || DROPPED.contains(&&*name);
        if dropped && !kept {
            command.env_remove(&*name);
        }
    }
    command
}
