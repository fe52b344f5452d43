//! The connection to an agent, wherever it runs. Commands do not see the difference.

use std::{future::Future, time::Duration};

use anyhow::{Context, anyhow};
use orb8_proto::orbit_service_client::OrbitServiceClient;
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

use crate::{
    args::Cli,
    exit::Failure,
    interrupt::{self, Interrupt},
    notes::Notes,
    standalone::{LocalAgent, Purpose, Setup},
    target::{SERVER_ENV, ServerAddress, Target},
};

/// For a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the answer to one question, and for the start of a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent peer is probed this often, and given up after as long again without an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// For an agent of our own to end in an orderly way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer can hold every flow that an agent keeps; tonic's own limit of 4 MiB is too small.
const LARGEST_ANSWER: usize = 256 << 20;

/// A connection, and the agent behind it if that is ours.
pub(crate) struct Session {
    pub client: OrbitServiceClient<Channel>,
    pub interrupt: Interrupt,
    local: Option<LocalAgent>,
    /// How to call the other side in messages.
    pub peer: String,
}

impl Session {
    /// Finds out whom to talk to. Nothing is started yet.
    ///
    /// # Errors
    /// When the options contradict each other.
    pub(crate) fn target(cli: &Cli, agent: &dyn Setup) -> Result<Target, Failure> {
        let environment = std::env::var(SERVER_ENV).ok();
        let target =
            Target::resolve(cli.global.mode, cli.global.server.as_ref(), environment.as_deref())
                .map_err(Failure::Usage)?;
        match (&target, agent.standalone_only()) {
            (Target::Server { address, .. }, Some(option)) => Err(Failure::Usage(format!(
                "{option} sets up the agent of standalone mode; the agent at {address} has its own \
                 settings"
            ))),
            _ => Ok(target),
        }
    }

    /// Connects, or starts an agent of our own.
    ///
    /// # Errors
    /// When there is nobody to talk to; for an agent of our own with what is missing.
    pub(crate) async fn open(
        target: &Target,
        agent: &dyn Setup,
        purpose: Purpose,
        notes: &Notes,
    ) -> Result<Session, Failure> {
        notes.info(&target.to_string());
        let mut interrupt = interrupt::listen()?;
        let opening = async {
            let opened = match target {
                Target::Server { address, .. } => (connect(address).await?, None),
                Target::Standalone { .. } => {
                    let (local, channel) = LocalAgent::start(agent, purpose, notes).await?;
                    (channel, Some(local))
                }
            };
            Ok::<_, Failure>(opened)
        };
        let peer = match target {
            Target::Server { address, .. } => format!("the agent at {address}"),
            Target::Standalone { .. } => String::from("the agent in this process"),
        };
        let (channel, local) = tokio::select! {
            opened = opening => opened?,
            () = interrupt.requested() => {
                return Err(anyhow!("interrupted before the agent was ready").into());
            }
        };
        let client = OrbitServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        Ok(Session { client, interrupt, local, peer })
    }

    /// Takes the agent if it is ours, to stop it while its answers are still read.
    pub(crate) fn take_local(&mut self) -> Option<LocalAgent> {
        self.local.take()
    }

    /// Whether the agent is ours, so that all it ever lost was lost to us.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// Ends the connection, and the agent if it is ours.
    pub(crate) async fn close(mut self, notes: &Notes) {
        if let Some(local) = self.local.take() {
            stop(local, notes).await;
        }
    }
}

/// Stops an agent of our own. What it does not finish in time ends with the process.
pub(crate) async fn stop(local: LocalAgent, notes: &Notes) {
    if timeout(STOP_TIMEOUT, local.stop()).await.is_err() {
        notes.warning(&format!(
            "the agent did not stop within {} s; the kernel takes down its links with the process",
            STOP_TIMEOUT.as_secs()
        ));
    }
}

async fn connect(address: &ServerAddress) -> anyhow::Result<Channel> {
    address
        .endpoint()?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .with_context(|| format!("cannot reach an agent at {address}"))
}

/// Waits for an answer, but not for ever.
///
/// # Errors
/// [`Failure::NoAnswer`] when the time is over, else what the agent said.
pub(crate) async fn answer<T>(
    peer: &str,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(status)) => Err(anyhow!(status_text(peer, &status)).into()),
        Err(_) => Err(Failure::NoAnswer(format!(
            "{peer} did not answer within {} s",
            ANSWER_TIMEOUT.as_secs()
        ))),
    }
}

/// What an agent said, for people. Not escaped yet: that is done where it is printed.
pub(crate) fn status_text(peer: &str, status: &Status) -> String {
    match status.code() {
        // The agent's own words about the request, which say what is wrong or list candidates.
        Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition => {
            status.message().to_owned()
        }
        Code::Unimplemented => format!("{peer} is too old for this: it does not know the request"),
        code => format!("{peer}: {} ({code:?})", status.message()),
    }
}
