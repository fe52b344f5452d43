//! What a Kubernetes cluster consists of, followed through its API: pods by UID, container and
//! address, and at what time; Services, nodes and endpoints.
//!
//! What is known stays known while the API is away, and its age is told.

mod addresses;
mod api;
pub mod backoff;
mod client;
pub mod contact;
pub mod endpoints;
mod ids;
mod labels;
mod lookup;
pub mod manifest;
pub mod peers;
mod pod;
pub mod pods;
pub mod store;
pub mod watcher;
mod workload;

pub use client::{ClientError, KubernetesSource, client};
pub use ids::{ContainerId, InvalidContainerId, InvalidPodUid, PodUid};
pub use labels::Labels;
pub use lookup::PodLookup;
pub use pod::{Container, InvalidQos, Owner, Pod, Qos};
