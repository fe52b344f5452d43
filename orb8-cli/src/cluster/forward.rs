//! A port of a pod, as a stream of bytes through the API server.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::{NAMESPACE, SERVICE, chain};

/// Opens the port of one of the pods that are ready.
///
/// # Errors
/// When there is none, or the API server does not let us in, in words.
pub(super) async fn open(
    pods: Api<Pod>,
    selector: String,
    port: IntOrString,
) -> io::Result<Forwarded> {
    let all = pods.list(&ListParams::default().labels(&selector)).await;
    let all = all.map_err(|error| io::Error::other(chain(&error)))?.items;
    let ready: Vec<&Pod> = all.iter().filter(|pod| is_ready(pod)).collect();
    let Some(pod) = ready.get(any_of(ready.len())) else {
        return Err(io::Error::other(none_ready(&all)));
    };
    let (name, port) = (pod.name_any(), number(pod, &port)?);
    let because = |why: String| io::Error::other(format!("pod {name}: {why}"));
    let mut forwarder =
        pods.portforward(&name, &[port]).await.map_err(|error| because(chain(&error)))?;
    let (Some(stream), Some(error)) = (forwarder.take_stream(port), forwarder.take_error(port))
    else {
        return Err(because(format!("port {port} was not forwarded")));
    };
    // What moves the bytes ends with the stream.
    Ok(Forwarded { stream, error: Some(Box::pin(error)), pod: name })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = |conditions: &Vec<PodCondition>| {
        conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
    };
    pod.metadata.deletion_timestamp.is_none() && conditions.is_some_and(ready)
}

/// One of `count`, not always the same: servers share the work.
fn any_of(count: usize) -> usize {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.subsec_micros() as usize).checked_rem(count).unwrap_or(0)
}

fn none_ready(all: &[Pod]) -> String {
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
    let pods: Vec<String> = all
        .iter()
        .map(|pod| format!("{} is {}", pod.name_any(), phase(pod).unwrap_or("unknown".into())))
        .collect();
    match pods.is_empty() {
        true => format!("svc/{SERVICE} in {NAMESPACE} has no pods"),
        false => {
            format!("no pod of svc/{SERVICE} in {NAMESPACE} is ready: {}", pods.join(", "))
        }
    }
}

/// The number of a port that may have a name.
fn number(pod: &Pod, port: &IntOrString) -> io::Result<u16> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
        }
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| {
        let port = match port {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(name) => format!("{name:?}"),
        };
        io::Error::other(format!("pod {} has no port {port}", pod.name_any()))
    })
}

/// A forwarded port. What the kubelet says went wrong is the error of the next reading.
pub(super) struct Forwarded {
    stream: DuplexStream,
    /// Until it has told.
    error: Option<Pin<Box<dyn Future<Output = Option<String>> + Send>>>,
    pod: String,
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            return read;
        }
        // Nothing came, now or for good.
        if let Some(Poll::Ready(told)) = self.error.as_mut().map(|error| error.as_mut().poll(cx)) {
            self.error = None;
            if let Some(message) = told {
                let why = format!("pod {}: {}", self.pod, message.trim());
                return Poll::Ready(Err(io::Error::other(why)));
            }
        }
        read
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_pod_is_ready_when_it_says_so_and_is_not_on_its_way_out() {
        let condition = |status: &str| serde_json::json!([{ "type": "Ready", "status": status }]);
        let status = |text: &str| serde_json::json!({ "conditions": condition(text) });
        assert!(is_ready(&pod(serde_json::json!({ "status": status("True") }))));
        assert!(!is_ready(&pod(serde_json::json!({ "status": status("False") }))));
        assert!(!is_ready(&pod(serde_json::json!({ "status": {} }))));
        let leaving = serde_json::json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let leaving = serde_json::json!({ "metadata": leaving, "status": status("True") });
        assert!(!is_ready(&pod(leaving)));
    }

    #[test]
    fn a_port_with_a_name_is_the_containers() {
        let ports = serde_json::json!([{ "name": "grpc", "containerPort": 8443 }]);
        let containers = serde_json::json!([{ "name": "a" }, { "name": "b", "ports": ports }]);
        let pod = pod(serde_json::json!({
            "metadata": { "name": "p" }, "spec": { "containers": containers },
        }));
        let find = |port| number(&pod, &port);
        assert_eq!(find(IntOrString::String("grpc".into())).unwrap(), 8443);
        assert_eq!(find(IntOrString::Int(1)).unwrap(), 1);
        let error = find(IntOrString::String("http".into())).unwrap_err().to_string();
        assert_eq!(error, "pod p has no port \"http\"");
        assert!(find(IntOrString::Int(70_000)).is_err());
    }
}
