//! Streams, which go on for longer than an answer is believed.

use std::time::Duration;

use orb8_proto::{Event, LossReport, NetworkFlow, PeerKind, StreamRequest, event};
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::scene::{PATIENCE, Scene, log, told};

fn of(namespace: &str) -> StreamRequest {
    StreamRequest { namespace: namespace.into(), ..StreamRequest::default() }
}

/// Reads until a record came.
async fn record(stream: &mut Streaming<Event>) -> Event {
    loop {
        let event = timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        if matches!(event.event, Some(event::Event::NetworkFlow(_))) {
            return event;
        }
    }
}

/// The first flow.
pub(crate) async fn flow(mut stream: Streaming<Event>) -> NetworkFlow {
    match record(&mut stream).await.event {
        Some(event::Event::NetworkFlow(flow)) => flow,
        other => panic!("{other:?}"),
    }
}

/// Reads to the end, which is an error; gives the last report too.
async fn end(stream: Streaming<Event>) -> (LossReport, Code, String) {
    timeout(PATIENCE, read_to_end(stream)).await.expect("the stream ends")
}

async fn read_to_end(mut stream: Streaming<Event>) -> (LossReport, Code, String) {
    let mut last = LossReport::default();
    loop {
        match stream.message().await {
            Ok(Some(Event { event: Some(event::Event::Loss(report)), .. })) => last = report,
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => {
                let (code, said) = told(status);
                return (last, code, said);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_reason_when_its_client_may_not_see_it_any_more() {
    let scene = Scene::start().await;
    let (mut ann, mut root) = (scene.client("token-of-ann"), scene.client("token-of-root"));
    let mut hers = ann.stream_events(of("ns-1")).await.unwrap().into_inner();
    let mut roots = root.stream_events(of("")).await.unwrap().into_inner();
    let event = record(&mut hers).await;
    let Some(event::Event::NetworkFlow(flow)) = event.event else { panic!("{event:?}") };
    assert_eq!(flow.namespace, "ns-1");
    assert_eq!(flow.peer.unwrap().kind(), PeerKind::Hidden);
    record(&mut roots).await;

    scene.api.revoke("ann");
    let (last, code, said) = end(hers).await;
    assert!(last.r#final && last.records_delivered > 0, "{last:?}");
    assert_eq!(code, Code::PermissionDenied);
    assert!(said.starts_with("the stream ends: \"ann\" may not list"), "{said}");
    assert!(log().tells_of(&["permission_denied", "the stream ends", "ann"]));
    // Whoever still may is not disturbed.
    record(&mut roots).await;

    scene.api.expire_token("token-of-root");
    let (last, code, said) = end(roots).await;
    assert!(last.r#final);
    assert_eq!(code, Code::Unauthenticated);
    assert!(said.contains("token has expired"), "{said}");
    assert_eq!(scene.metric("orb8_open_streams").await, 0.0);
    scene.end().await;
}

#[tokio::test]
async fn a_stream_outlives_an_api_that_is_away_for_a_moment_and_not_one_that_stays_away() {
    let grace = Duration::from_secs(4);
    let scene = Scene::start_with(|_| (), |config| config.access.grace = grace).await;
    let mut root = scene.client("token-of-root");
    let mut stream = root.stream_events(of("")).await.unwrap().into_inner();
    record(&mut stream).await;
    let refused = |scene: &Scene| {
        let requests = scene.api.requests();
        requests.iter().filter(|request| request.status == 500).count()
    };
    scene.api.faults(|faults| faults.status = Some(500));
    crate::scene::until("it was asked in vain, twice", async || refused(&scene) >= 2).await;
    scene.api.faults(|faults| faults.status = None);
    record(&mut stream).await;

    scene.api.refuse(true);
    let (last, code, said) = end(stream).await;
    assert!(last.r#final);
    assert_eq!(code, Code::Unavailable);
    assert!(said.contains("the stream ends: the Kubernetes API does not say"), "{said}");
    scene.end().await;
}
