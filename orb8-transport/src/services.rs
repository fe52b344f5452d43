//! What every gRPC port of orb8 serves beside its own service: health and reflection.

use tonic::service::Routes;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, HealthService},
};

/// Says whether the services of a port work. Clones say it together.
#[derive(Clone, Debug, Default)]
pub struct Health(HealthReporter);

impl Health {
    /// Whether `service`, such as `orb8.OrbitService`, works; the empty name stands for all.
    pub async fn set(&self, service: &str, works: bool) {
        let status = if works { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.set_service_status(service, status).await;
    }

    /// Ends the streams of those who watch, which would hold up the end of the server.
    pub async fn end(&self, services: &[&str]) {
        let mut reporter = self.0.clone();
        for service in services.iter().chain(&[""]) {
            reporter.set_service_status(service, ServingStatus::NotServing).await;
            reporter.clear_service_status(service).await;
        }
    }
}

/// Routes to gRPC health (`grpc.health.v1`) and reflection (`v1` and `v1alpha`, which older tools
/// speak), to be given to [`tonic::transport::Server::add_routes`] with one's own services added.
/// `descriptors` are encoded `FileDescriptorSet`s, such as `orb8_proto::FILE_DESCRIPTOR_SET`.
///
/// # Errors
/// When a descriptor set is broken.
pub fn services(
    descriptors: &[&[u8]],
) -> Result<(Health, Routes), tonic_reflection::server::Error> {
    let reflection = || {
        descriptors.iter().fold(
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET),
            |builder, set| builder.register_encoded_file_descriptor_set(set),
        )
    };
    let health = Health::default();
    let service = HealthService::from_health_reporter(health.0.clone());
    let routes = Routes::new(tonic_health::pb::health_server::HealthServer::new(service))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok((health, routes))
}
