//! The gRPC protocol of orb8: messages, client and server of `orb8.OrbitService`.
//!
//! Generated from `proto/orb8.proto`, which holds the documentation of every field, and committed,
//! so that nobody needs a protobuf compiler to build orb8.

#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code; the documentation is in the proto file"
)]
mod r#gen {
    include!("gen/orb8.rs");
}

pub use r#gen::*;
