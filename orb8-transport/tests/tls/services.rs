//! Health and reflection, as tools ask for them.

use orb8_transport::Limits;
use tokio_stream::{StreamExt, iter};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::served::{DEADLINE, Served, watch};

#[tokio::test]
async fn reflection_lists_the_services_and_describes_their_messages() {
    let served = Served::start(None, Limits::default()).await;
    let mut client = ServerReflectionClient::new(served.connect(None).await.unwrap());
    let request =
        |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let questions = [
        request(MessageRequest::ListServices(String::new())),
        request(MessageRequest::FileContainingSymbol("orb8.OrbitService".into())),
    ];
    let mut answers = client.server_reflection_info(iter(questions)).await.unwrap().into_inner();
    let listed = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    let names: Vec<&str> = listed.service.iter().map(|service| &*service.name).collect();
    assert!(names.contains(&"orb8.OrbitService"), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let described = answers.next().await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(described, MessageResponse::FileDescriptorResponse(_)), "{described:?}");
    drop(answers);
    served.end().await;
}

#[tokio::test]
async fn those_who_watch_health_do_not_hold_up_the_end() {
    let served = Served::start(None, Limits::default()).await;
    let mut stream = watch(served.connect(None).await.unwrap()).await;
    served.health.end(&[]).await;
    let last = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(DEADLINE, last).await.expect("the stream ends");
    served.end().await;
}
