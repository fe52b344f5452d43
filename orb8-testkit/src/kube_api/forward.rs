//! `portforward` of a pod, as a kubelet does it over WebSocket: subprotocol `v4.channel.k8s.io`, in
//! every message a first byte that says which channel it is of, two channels for a port (data and
//! error), each of which begins with the port in two bytes, little end first.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use axum::http::{Request, Response, StatusCode};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tokio_util::sync::CancellationToken;

use super::answer::Refusal;

/// What a kubelet speaks; of remote commands it speaks newer ones as well.
const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes that are passed on at a time.
const PIECE: usize = 32 << 10;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Which pod's port is meant, if this is such a path.
pub(super) fn pod_of(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/api/v1/namespaces/")?.strip_suffix("/portforward")?;
    let (namespace, name) = rest.split_once("/pods/")?;
    (!namespace.contains('/') && !name.contains('/')).then_some((namespace, name))
}

/// The port that a query asks for.
pub(super) fn port_of(text: Option<&str>) -> Result<u16, Refusal> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        (StatusCode::BAD_REQUEST, format!("expected one port in the query, not {text:?}"))
    })
}

/// Switches protocols, and connects the client to `there`: what listens at the pod's port. `None`:
/// nothing does.
pub(super) fn forward(
    request: Request<Incoming>,
    pod: String,
    port: u16,
    there: Option<SocketAddr>,
    cut: CancellationToken,
) -> Result<Response<Body>, Refusal> {
    let accept = handshake(request.headers()).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    tokio::spawn(cut.run_until_cancelled_owned(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let io = TokioIo::new(upgraded);
        let socket: Socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        // A client that hangs up is no news.
        let _ended = serve(socket, &pod, port, there).await;
    }));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The answer to the client's key, if it asks for what is spoken here.
fn handshake(headers: &HeaderMap) -> Result<HeaderValue, String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !text(UPGRADE).eq_ignore_ascii_case("websocket") {
        return Err("Upgrade request required".into());
    }
    let offered = text(SEC_WEBSOCKET_PROTOCOL);
    if !offered.split(',').any(|protocol| protocol.trim() == PROTOCOL) {
        return Err(format!("unable to negotiate a protocol: {offered:?} has no {PROTOCOL}"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("no Sec-WebSocket-Key")?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|error| error.to_string())
}

async fn serve(
    socket: Socket,
    pod: &str,
    port: u16,
    there: Option<SocketAddr>,
) -> anyhow::Result<()> {
    let (mut to_client, from_client) = socket.split();
    for channel in [DATA, ERROR] {
        send(&mut to_client, channel, &port.to_le_bytes()).await?;
    }
    let connected = match there {
        Some(address) => TcpStream::connect(address).await.map_err(|error| error.to_string()),
        None => Err("connection refused".into()),
    };
    match connected {
        Ok(stream) => pass_on(to_client, from_client, stream).await,
        Err(why) => {
            let text = format!(
                "an error occurred forwarding {port} -> {port}: error forwarding port {port} to \
                 pod {pod}, uid : dial tcp4 127.0.0.1:{port}: connect: {why}"
            );
            send(&mut to_client, ERROR, text.as_bytes()).await?;
            // The kubelet leaves it to the client to close.
            from_client.for_each(|_| std::future::ready(())).await;
            Ok(())
        }
    }
}

async fn send(
    to_client: &mut (impl Sink<Message, Error = tokio_tungstenite::tungstenite::Error> + Unpin),
    channel: u8,
    bytes: &[u8],
) -> anyhow::Result<()> {
    let message = [&[channel], bytes].concat();
    Ok(to_client.send(Message::binary(message)).await?)
}

/// Until either side ends.
async fn pass_on(
    mut to_client: impl Sink<Message, Error = tokio_tungstenite::tungstenite::Error> + Unpin,
    mut from_client: impl Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
    stream: TcpStream,
) -> anyhow::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let from_pod = async {
        let mut piece = vec![0; PIECE];
        loop {
            let n = read.read(&mut piece).await?;
            if n == 0 {
                to_client.send(Message::Close(None)).await?;
                return anyhow::Ok(());
            }
            send(&mut to_client, DATA, &piece[..n]).await?;
        }
    };
    let to_pod = async {
        while let Some(message) = from_client.next().await {
            match message? {
                Message::Binary(bytes) if bytes.first() == Some(&DATA) => {
                    write.write_all(&bytes[1..]).await?;
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        write.shutdown().await?;
        anyhow::Ok(())
    };
    tokio::select! {
        ended = from_pod => ended,
        ended = to_pod => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pods_portforward_is_one() {
        let path = "/api/v1/namespaces/shop/pods/web/portforward";
        assert_eq!(pod_of(path), Some(("shop", "web")));
        for other in [
            "/api/v1/namespaces/shop/pods/web",
            "/api/v1/namespaces/shop/pods/web/log/portforward",
            "/api/v1/pods/web/portforward",
        ] {
            assert_eq!(pod_of(other), None, "{other}");
        }
    }
}
