//! The connection to a server or an agent, wherever it runs. Commands do not see the difference.

use std::{future::Future, time::Duration};

use anyhow::{Context, anyhow};
use orb8_proto::orbit_service_client::OrbitServiceClient;
use orb8_transport::{Address, BearerToken, ClientArgs, Connector, Limits, Scheme};
use tokio::time::timeout;
use tonic::{Request, Status, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    args::Cli,
    cluster::ClusterServer,
    exit::Failure,
    interrupt::{self, Interrupt},
    notes::Notes,
    peer::Peer,
    standalone::{LocalAgent, Purpose, Setup},
    target::{Need, Needs, SERVER_ENV, Target},
};

/// For the answer to one question, and for the start of a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent peer is probed this often, and given up after as long again without an answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// For an agent of our own to end in an orderly way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// For the API server to find a pod and open its port.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

/// What speaks to an agent or server, with a token where there is one.
pub(crate) type Client = OrbitServiceClient<InterceptedService<Channel, BearerToken>>;

/// A connection, and the agent behind it if that is ours.
pub(crate) struct Session {
    pub client: Client,
    pub interrupt: Interrupt,
    local: Option<LocalAgent>,
    pub peer: Peer,
}

impl Session {
    /// Finds out whom to talk to. Nothing is started yet. `needs`: options of the command that only
    /// one of the modes has, beside those that set up an agent.
    ///
    /// # Errors
    /// When the options contradict each other, or there is no server where one is needed.
    pub(crate) async fn target(
        cli: &Cli,
        agent: &dyn Setup,
        needs: Needs,
    ) -> Result<Target, Failure> {
        let setup = agent.standalone_only().map(|option| Need {
            option,
            does: "sets up the agent of standalone mode; one that runs has its own settings",
        });
        let needs = Needs { standalone: setup.or(needs.standalone), ..needs };
        Self::target_of(cli, needs).await
    }

    /// The same for a command that has no agent of its own.
    ///
    /// # Errors
    /// As [`Session::target`].
    pub(crate) async fn target_of(cli: &Cli, needs: Needs) -> Result<Target, Failure> {
        let environment = std::env::var(SERVER_ENV).ok();
        let (server, context) = (cli.global.server.as_ref(), cli.global.context.as_deref());
        Target::resolve(cli.global.mode, server, environment.as_deref(), context, needs).await
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
                Target::Cluster(server) => {
                    let (channel, token) = forward(server, connection).await?;
                    (channel, token, None)
                }
                Target::Standalone { .. } => {
                    let (local, channel) = LocalAgent::start(agent, purpose, notes).await?;
                    (channel, BearerToken::none(), Some(local))
                }
            };
            Ok::<_, Failure>(opened)
        };
        let name = match target {
            Target::Server { address, .. } => address.to_string(),
            Target::Cluster(server) => server.name(),
            Target::Standalone { .. } => String::from("the agent in this process"),
        };
        let (channel, token, local) = tokio::select! {
            opened = opening => opened?,
            () = interrupt.requested() => {
                return Err(anyhow!("interrupted before {name} was ready").into());
            }
        };
        let by_forward = matches!(target, Target::Cluster(_));
        let peer = Peer { name, by_forward, has_token: token.is_some() };
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
    let https = address.scheme() == Some(Scheme::Https);
    let connector = connection.connector(https, limits()).map_err(usage)?;
    let token = connection.token().map_err(usage)?;
    if token.is_some() {
        connector.may_send_secrets(address).map_err(usage)?;
    }
    let channel = connector.connect(address).await;
    let channel = channel.with_context(|| format!("cannot reach {address}"))?;
    Ok((channel, token))
}

/// Through the API server, which encrypts: a token may go that way whatever is spoken inside.
async fn forward(
    server: &ClusterServer,
    connection: &ClientArgs,
) -> Result<(Channel, BearerToken), Failure> {
    let limits = Limits { connect_time: FORWARD_TIMEOUT, ..limits() };
    let connector: Connector = connection.connector(false, limits).map_err(usage)?;
    let given = connection.token().map_err(usage)?;
    let token = if given.is_some() { given } else { server.token().clone() };
    let channel = server.connect(&connector).await;
    let channel = channel.with_context(|| format!("cannot reach {}", server.name()))?;
    Ok((channel, token))
}

fn usage(error: impl std::error::Error) -> Failure {
    Failure::Usage(error.to_string())
}

/// A question, with how long its answer is waited for: a server tells by then what it has.
pub(crate) fn question<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_TIMEOUT);
    request
}

/// Waits for an answer, but not for ever.
///
/// # Errors
/// [`Failure::NoAnswer`] when the time is over, else what the other side said.
pub(crate) async fn answer<T>(
    peer: &Peer,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(status)) if status.code() == tonic::Code::Cancelled && is_late(&status) => {
            Err(late(peer))
        }
        Ok(Err(status)) => Err(anyhow!(peer.text(&status)).into()),
        Err(_) => Err(late(peer)),
    }
}

/// What tonic makes of the time of a [`question`], which may be over a moment before ours.
fn is_late(status: &Status) -> bool {
    status.message() == "Timeout expired"
}

fn late(peer: &Peer) -> Failure {
    Failure::NoAnswer(format!("{peer} did not answer within {} s", ANSWER_TIMEOUT.as_secs()))
}
