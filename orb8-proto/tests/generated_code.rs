//! The committed `src/gen/orb8.rs` is what `proto/orb8.proto` generates today.
//! `cargo xtask codegen` runs this file with `ORB8_CODEGEN=write`, which replaces it.

use std::{fs, path::Path};

fn generate() -> String {
    let proto_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let descriptors = protox::compile(["orb8.proto"], [&proto_dir]).expect("orb8.proto compiles");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("code generation");
    fs::read_to_string(out.path().join("orb8.rs")).expect("generated file")
}

#[test]
fn generated_code_is_current() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen/orb8.rs");
    let fresh = generate();
    if std::env::var_os("ORB8_CODEGEN").is_some_and(|v| v == "write") {
        fs::create_dir_all(committed.parent().unwrap()).unwrap();
        fs::write(&committed, &fresh).unwrap();
    }
    let stands = fs::read_to_string(&committed).unwrap_or_default();
    assert!(stands == fresh, "proto/orb8.proto changed: run `cargo xtask codegen` and commit");
}
