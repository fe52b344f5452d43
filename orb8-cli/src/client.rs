//! The connection to an agent, wherever it runs. Commands do not see the difference.

use std::{future::Future, time::Duration};

use anyhow::{Context, anyhow};
use orb8_proto::orbit_service_client::OrbitServiceClient;
use orb8_transport::{Address, BearerToken, ClientArgs, Limits, Scheme, broken_by};
use tokio::time::timeout;
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    args::Cli,
    exit::Failure,
    interrupt::{self, Interrupt},
    notes::Notes,
    standalone::{LocalAgent, Purpose, Setup},
    target::{SERVER_ENV, Target},
};

/// For the answer to one question, and for the start of a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent peer is probed this often, and given up after as long again without an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// For an agent of our own to end in an orderly way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What speaks to an agent or server, with a token where there is one.
pub(crate) type Client = OrbitServiceClient<InterceptedService<Channel, BearerToken>>;

/// A connection, and the agent behind it if that is ours.
pub(crate) struct Session {
    pub client: Client,
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
        connection: &ClientArgs,
        agent: &dyn Setup,
        purpose: Purpose,
        notes: &Notes,
    ) -> Result<Session, Failure> {
        notes.info(&target.to_string());
        let mut interrupt = interrupt::listen()?;
        let opening = async {
            let opened = match target {
                Target::Server { address, .. } => {
                    let (channel, token) = connect(address, connection).await?;
                    (channel, token, None)
                }
                Target::Standalone { .. } => {
                    let (local, channel) = LocalAgent::start(agent, purpose, notes).await?;
                    (channel, BearerToken::none(), Some(local))
                }
            };
            Ok::<_, Failure>(opened)
        };
        let peer = match target {
            Target::Server { address, .. } => format!("the agent at {address}"),
            Target::Standalone { .. } => String::from("the agent in this process"),
        };
        let (channel, token, local) = tokio::select! {
            opened = opening => opened?,
            () = interrupt.requested() => {
                return Err(anyhow!("interrupted before the agent was ready").into());
            }
        };
        let client = OrbitServiceClient::with_interceptor(channel, token)
            .max_decoding_message_size(limits().answer_bytes);
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

fn limits() -> Limits {
    Limits { keepalive_interval: KEEP_ALIVE, keepalive_time: KEEP_ALIVE, ..Limits::default() }
}

async fn connect(
    address: &Address,
    connection: &ClientArgs,
) -> Result<(Channel, BearerToken), Failure> {
    let usage = |error: &dyn std::error::Error| Failure::Usage(error.to_string());
    let https = address.scheme() == Some(Scheme::Https);
    let connector = connection.connector(https, limits()).map_err(|error| usage(&error))?;
    let token = connection.token().map_err(|error| usage(&error))?;
    if token.is_some() {
        connector.may_send_secrets(address).map_err(|error| usage(&error))?;
    }
    let channel = connector.connect(address).await;
    let channel = channel.with_context(|| format!("cannot reach an agent at {address}"))?;
    Ok((channel, token))
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
        code => {
            let broken = broken_by(status);
            format!("{peer}: {} ({code:?})", broken.as_deref().unwrap_or(status.message()))
        }
    }
}
