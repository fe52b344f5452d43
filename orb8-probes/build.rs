//! Compiles the kernel half for `bpfel-unknown-none` and leaves one object per probe in `$OUT_DIR`.
//!
//! No nightly and no bpf-linker: rustc does fat LTO into one bitcode file, and `llc` of the same
//! LLVM makes the ELF. Where no such toolchain is there, the crate still builds, without objects,
//! and says so when a probe is asked for; `ORB8_BPF=required` makes that an error.

#[path = "build/btf_names.rs"]
mod btf_names;
#[path = "build/toolchain.rs"]
mod toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use toolchain::{TARGET, Toolchain};

/// One object each; the bins of bpf/Cargo.toml.
const PROBES: [&str; 3] = ["cgroup_probe", "network_probe", "syscall_probe"];

fn main() -> ExitCode {
    println!("cargo::rustc-check-cfg=cfg(orb8_probes)");
    println!("cargo::rerun-if-env-changed=ORB8_BPF");
    println!("cargo::rerun-if-env-changed=ORB8_BPF_OBJECTS");
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    for watched in
        ["src", "bpf/Cargo.toml", "bpf/Cargo.lock", "build", "build.rs", "../orb8-common"]
    {
        println!("cargo::rerun-if-changed={}", crate_dir.join(watched).display());
    }
    let required = env::var_os("ORB8_BPF").is_some_and(|v| v == "required");
    match build(&crate_dir, &out_dir) {
        Ok(()) => println!("cargo::rustc-cfg=orb8_probes"),
        Err(Failure::NoToolchain(why)) if !required => {
            // A file that is never there: look again at every build, a toolchain may have come.
            println!("cargo::rerun-if-changed={}", out_dir.join("no-toolchain-yet").display());
            println!("cargo::warning=orb8 is built WITHOUT its eBPF probes; it cannot trace.");
            for line in why.lines() {
                println!("cargo::warning={line}");
            }
        }
        Err(Failure::NoToolchain(why) | Failure::Broken(why)) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

enum Failure {
    /// This machine cannot build eBPF.
    NoToolchain(String),
    /// It could, but the build failed.
    Broken(String),
}

fn build(crate_dir: &Path, out_dir: &Path) -> Result<(), Failure> {
    if let Some(dir) = env::var_os("ORB8_BPF_OBJECTS") {
        return PROBES.iter().try_for_each(|probe| {
            let from = Path::new(&dir).join(probe);
            let copied = fs::copy(&from, out_dir.join(probe));
            copied.map(drop).map_err(|e| Failure::Broken(format!("{}: {e}", from.display())))
        });
    }
    let toolchain = Toolchain::find().map_err(Failure::NoToolchain)?;
    PROBES.iter().try_for_each(|probe| {
        compile(&toolchain, crate_dir, out_dir, probe).map_err(Failure::Broken)
    })
}

fn compile(t: &Toolchain, crate_dir: &Path, out_dir: &Path, probe: &str) -> Result<(), String> {
    let target_dir = out_dir.join("bpf-target");
    let bitcode = target_dir.join(format!("{probe}.bc"));
    let object = out_dir.join(probe);
    let workspace = crate_dir.parent().unwrap_or(crate_dir);
    let cargo_home = env::var("CARGO_HOME")
        .unwrap_or_else(|_| format!("{}/.cargo", env::var("HOME").unwrap_or_default()));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").map_err(|e| e.to_string())?;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Ctarget-cpu=v3".into(), // 32-bit ALU and jumps: Linux 5.1 and later
        "-Clinker=true".into(),   // `true` the program: there is nothing to link
        format!("--remap-path-prefix={}=orb8", workspace.display()),
        format!("--remap-path-prefix={cargo_home}=cargo"),
        // LLVM copies the source lines that it can open into BTF; without this the object would
        // depend on whether rust-src is installed.
        format!("--remap-path-prefix={}=rust", t.sysroot.join("lib/rustlib/src/rust").display()),
    ];
    let mut cargo = Command::new(&t.cargo);
    cargo
        .current_dir(crate_dir.join("bpf"))
        .args(["rustc", "--release", "--locked", "--bin", probe, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(t.build_std.then_some("-Zbuild-std=core"))
        .args(["--", &format!("--emit=llvm-bc={}", bitcode.display())]);
    // Inline assembly for BPF is unstable, and two crates use it: aya-ebpf for its helpers and the
    // probe for its atomics. -Zbuild-std needs the unscoped permission.
    let bootstrap = if t.build_std { "1".into() } else { format!("aya_ebpf,{probe}") };
    let inner = [
        ("RUSTC", t.rustc.display().to_string()),
        ("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")),
        ("RUSTC_BOOTSTRAP", bootstrap),
    ];
    toolchain::run_with(&mut cargo, inner)?;

    let mut llc = Command::new(&t.llc);
    llc.args(["-filetype=obj", "-mcpu=v3", "--bpf-disable-trap-unreachable", "-o"]);
    let said = toolchain::run(llc.arg(&object).arg(&bitcode))?;
    if said.contains("error") {
        return Err(format!("{llc:?} said\n{said}")); // llc exits 0 on some BPF back-end errors
    }
    let mut elf = fs::read(&object).map_err(|e| format!("{}: {e}", object.display()))?;
    btf_names::sanitize(&mut elf).ok_or(format!("{probe}: no readable .BTF section"))?;
    fs::write(&object, elf).map_err(|e| format!("{}: {e}", object.display()))?;
    // BTF is all that the loader and the kernel use; DWARF would make the object depend on paths.
    toolchain::run(Command::new(t.llvm_tool("llvm-strip")).arg("--strip-debug").arg(&object))?;
    Ok(())
}
