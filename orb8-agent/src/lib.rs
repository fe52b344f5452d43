//! stub
pub mod enricher;
pub mod k8s;
pub mod netlink;
