//! The gRPC protocol of orb8: messages, client and server of `orb8.OrbitService`. In [`cri`], the
//! one that container runtimes speak.
//!
//! Generated from the files in `proto`, which hold the documentation of every field, and committed,
//! so that nobody needs a protobuf compiler to build orb8.

#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the documentation is in the proto file"
)]
mod r#gen {
    include!("gen/orb8.rs");
}

mod not_found;

pub use r#gen::*;

/// `orb8.proto` as an encoded `google.protobuf.FileDescriptorSet`: what gRPC reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/orb8.fds");

#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::enum_variant_names,
    reason = "generated code; the documentation is in the proto file"
)]
pub mod cri {
    //! The part of the Container Runtime Interface (`runtime.v1`) that orb8 and its tests use.

    include!("gen/runtime.v1.rs");
}
