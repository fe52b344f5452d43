//! `cargo xtask codegen`: the generated sources that are committed, written anew.

use anyhow::Result;

use crate::step;

/// The test that holds the generated code current writes it when told so: one generator, no drift.
pub(crate) fn run() -> Result<()> {
    step::run(step::cargo().env("ORB8_CODEGEN", "write").args([
        "test",
        "--package",
        "orb8-proto",
        "--test",
        "generated_code",
    ]))
}
