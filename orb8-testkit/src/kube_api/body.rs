//! Bodies that are written bit by bit, and break where they are told to.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::faults::Break;
use super::{Shared, lock};

/// The writing end of a body.
pub(super) struct Writer {
    shared: Arc<Shared>,
    bytes: mpsc::Sender<Result<Bytes, std::io::Error>>,
    cut: CancellationToken,
}

/// The client hung up, or was cut off.
pub(super) struct Closed;

/// How long half of a body may take to leave before the connection is reset.
const FLUSH: Duration = Duration::from_millis(30);

impl Writer {
    /// A body and its writer. `cut` ends the connection.
    pub(super) fn new(shared: Arc<Shared>, cut: CancellationToken) -> (Self, Body) {
        let (bytes, stream) = mpsc::channel(16);
        (Self { shared, bytes, cut }, Body::from_stream(ReceiverStream::new(stream)))
    }

    /// Sends a list or an event, as well as the faults of now allow.
    pub(super) async fn send(&self, text: Vec<u8>) -> Result<(), Closed> {
        let broken = lock(&self.shared.faults).break_next.take();
        match broken {
            None => self.trickle(text).await,
            Some(Break::Malformed) => {
                let mut text = text;
                let middle = text.len() / 2;
                // Not allowed anywhere, not even in strings.
                text[middle] = 0;
                self.trickle(text).await
            }
            Some(Break::Reset) => {
                self.trickle(text[..text.len() / 2].to_vec()).await?;
                tokio::time::sleep(FLUSH).await;
                self.cut.cancel();
                // A body that ended by itself would be whole.
                self.closed().await;
                Err(Closed)
            }
        }
    }

    /// Ends when the client hangs up.
    pub(super) async fn closed(&self) {
        self.bytes.closed().await;
    }

    async fn trickle(&self, text: Vec<u8>) -> Result<(), Closed> {
        let mut rest = Bytes::from(text);
        loop {
            let trickle = lock(&self.shared.faults).trickle;
            let Some(trickle) = trickle else { return self.pass(rest).await };
            let now = rest.split_to(trickle.bytes.clamp(1, rest.len()));
            self.pass(now).await?;
            if rest.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(trickle.pause).await;
        }
    }

    async fn pass(&self, bytes: Bytes) -> Result<(), Closed> {
        self.bytes.send(Ok(bytes)).await.map_err(|_| Closed)
    }
}
