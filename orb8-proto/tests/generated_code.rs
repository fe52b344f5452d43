//! The committed files in `src/gen` are what those in `proto` generate today.
//! `cargo xtask codegen` runs this file with `ORB8_CODEGEN=write`, which replaces them.

use std::{fs, path::Path};

/// Each proto file, and the file that is generated for its package.
const FILES: [(&str, &str); 2] = [("orb8.proto", "orb8.rs"), ("cri.proto", "runtime.v1.rs")];

fn generate(proto: &str, generated: &str) -> String {
    let proto_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let descriptors =
        protox::compile([proto], [&proto_dir]).unwrap_or_else(|why| panic!("{proto}: {why}"));
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("code generation");
    fs::read_to_string(out.path().join(generated)).expect("generated file")
}

/// What reflection tells clients that have no proto file: orb8's own, without its comments, which
/// would be most of it.
fn describe() -> Vec<u8> {
    let proto_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut compiler = protox::Compiler::new([&proto_dir]).expect("the proto directory");
    compiler.include_source_info(false).include_imports(true);
    compiler.open_file("orb8.proto").unwrap_or_else(|why| panic!("orb8.proto: {why}"));
    compiler.encode_file_descriptor_set()
}

/// Holds `fresh` against the file that is committed as `name`, or writes it when asked to.
fn compare(name: &str, proto: &str, fresh: &[u8]) {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen").join(name);
    if std::env::var_os("ORB8_CODEGEN").is_some_and(|v| v == "write") {
        let dir = committed.parent().expect("a directory of generated code");
        fs::create_dir_all(dir).expect("the directory of generated code");
        fs::write(&committed, fresh).expect("generated code to be replaced");
    }
    let stands = fs::read(&committed).unwrap_or_default();
    assert!(stands == fresh, "proto/{proto} changed: run `cargo xtask codegen` and commit");
}

#[test]
fn generated_code_is_current() {
    for (proto, generated) in FILES {
        compare(generated, proto, generate(proto, generated).as_bytes());
    }
    compare("orb8.fds", "orb8.proto", &describe());
}
