//! The calls, answered from the state.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;

use orb8_proto::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use orb8_proto::cri::{
    ContainerEventResponse, CreateContainerRequest, CreateContainerResponse, GetEventsRequest,
    ListContainersRequest, ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse,
    PodSandboxStatusRequest, PodSandboxStatusResponse, RemovePodSandboxRequest,
    RemovePodSandboxResponse, RunPodSandboxRequest, RunPodSandboxResponse, StartContainerRequest,
    StartContainerResponse, StopPodSandboxRequest, StopPodSandboxResponse, VersionRequest,
    VersionResponse,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::faults::{Faults, Tells};
use super::state::State;

/// Serves until it is dropped.
pub(super) async fn serve(state: Arc<State>, listener: UnixListener) {
    let (accepted, connections) = mpsc::channel::<std::io::Result<UnixStream>>(16);
    let service = RuntimeServiceServer::new(Service(Arc::clone(&state)));
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(connections));
    let accepting = async {
        while let Ok((stream, _)) = listener.accept().await {
            if state.faults().garbage {
                tokio::spawn(garbage(stream));
            } else if accepted.send(Ok(stream)).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        ended = serving => if let Err(error) = ended {
            eprintln!("orb8-testkit: CRI: {error}");
        }
    }
}

/// What comes is read to its end: closing before that would be a reset, which may arrive before the answer.
async fn garbage(mut stream: UnixStream) {
    let answer = async {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    // Whether it is read is the client's business.
    let _answered = answer.await;
}

struct Service(Arc<State>);

impl Service {
    /// Notes the call, and fails if it is to.
    async fn called(&self, call: &'static str) -> Result<Faults, Status> {
        self.0.log(call);
        let faults = self.0.faults();
        if faults.hang {
            pending::<()>().await;
        }
        tokio::time::sleep(faults.delay).await;
        if faults.unimplemented {
            return Err(Status::unimplemented("unknown service runtime.v1.RuntimeService"));
        }
        Ok(faults)
    }
}

/// What a test does by [`CriServer::put`](super::CriServer::put).
fn by_nobody<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this runtime is driven by its test"))
}

#[tonic::async_trait]
impl RuntimeService for Service {
    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        let (runtime_name, runtime_version) = self.called("Version").await?.version;
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name,
            runtime_version,
            runtime_api_version: "v1".into(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        self.called("ListPodSandbox").await?;
        let items = self.0.sandboxes().iter().map(|sandbox| sandbox.listed()).collect();
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        self.called("PodSandboxStatus").await?;
        let id = request.into_inner().pod_sandbox_id;
        let mut sandboxes = self.0.sandboxes().into_iter();
        let found = sandboxes.find(|sandbox| sandbox.id == id);
        let found = found.ok_or_else(|| Status::not_found(format!("no sandbox {id}")))?;
        Ok(Response::new(PodSandboxStatusResponse { status: Some(found.status()) }))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        self.called("ListContainers").await?;
        let sandboxes = self.0.sandboxes();
        let containers = sandboxes.iter().flat_map(|sandbox| {
            sandbox.containers.iter().map(move |container| container.listed(sandbox))
        });
        Ok(Response::new(ListContainersResponse { containers: containers.collect() }))
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let tells = self.called("GetContainerEvents").await?.tells;
        let mut events = BroadcastStream::new(self.0.listen()).filter_map(Result::ok).map(Ok);
        match tells {
            Tells::Everybody => {
                // Servers in Go do not begin an answer before they have something to say.
                let first = events.next().await;
                Ok(Response::new(Box::pin(tokio_stream::iter(first).chain(events))))
            }
            Tells::Unimplemented => Err(Status::unimplemented("unknown method GetContainerEvents")),
            Tells::Nothing => pending().await,
            Tells::Ends => Ok(Response::new(Box::pin(tokio_stream::empty()))),
        }
    }

    async fn run_pod_sandbox(
        &self,
        _: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        by_nobody()
    }

    async fn stop_pod_sandbox(
        &self,
        _: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        by_nobody()
    }

    async fn remove_pod_sandbox(
        &self,
        _: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        by_nobody()
    }

    async fn create_container(
        &self,
        _: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        by_nobody()
    }

    async fn start_container(
        &self,
        _: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        by_nobody()
    }
}
