//! The server of a Kubernetes cluster, found by the kubeconfig and reached through the API server, so
//! that nothing has to be exposed.

mod credentials;
mod forward;

use std::{env, fmt, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use orb8_transport::{Address, BearerToken, ConnectError, Connector};
use tokio::time::timeout;
use tonic::transport::Channel;

/// As `deploy/` has it.
const NAMESPACE: &str = "orb8-system";
const SERVICE: &str = "orb8-server";
const PORT: i32 = 8080;
/// For the API server to say whether there is a server, where nobody asked for one: what a person
/// waits for standalone mode with a kubeconfig that leads nowhere.
const GLANCE: Duration = Duration::from_secs(3);
/// For the same where cluster mode was asked for. Whatever gets credentials may take longer: it may
/// ask the user.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no server.
#[derive(Debug)]
pub(crate) enum NoServer {
    NoKubeconfig,
    /// Everything else, in words.
    Because(String),
}

impl fmt::Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoServer::NoKubeconfig => f.write_str("no --server, no ORB8_SERVER and no kubeconfig"),
            NoServer::Because(why) => f.write_str(why),
        }
    }
}

/// A Service that leads to servers.
pub(crate) struct ClusterServer {
    context: String,
    client: Client,
    /// Of its pods.
    selector: String,
    /// Of the pod: a number, or a name that its containers give a number to.
    port: IntOrString,
    token: BearerToken,
}

impl fmt::Debug for ClusterServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClusterServer").field(&self.context).finish()
    }
}

impl fmt::Display for ClusterServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "svc/{SERVICE} in {NAMESPACE} of context {}", self.context)
    }
}

/// Looks for the server in a context of the kubeconfig, the current one where none is named. Without
/// a kubeconfig nobody is asked and no time is spent.
///
/// # Errors
/// When there is none. `asked`: cluster mode was asked for, so it may take longer to find out.
pub(crate) async fn find(context: Option<&str>, asked: bool) -> Result<ClusterServer, NoServer> {
    let kubeconfig = read()?;
    let context = match context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone()) {
        Some(context) if !context.is_empty() => context,
        _ => return Err(NoServer::Because("the kubeconfig has no current context".into())),
    };
    if asked {
        return look(kubeconfig, context, PATIENCE).await;
    }
    let name = context.clone();
    timeout(GLANCE, look(kubeconfig, context, GLANCE))
        .await
        .unwrap_or_else(|_| Err(silent(&name, GLANCE)))
}

fn read() -> Result<Kubeconfig, NoServer> {
    let named = env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
    let default = env::home_dir().map(|home| home.join(".kube/config"));
    if !named && !default.is_some_and(|path| path.exists()) {
        return Err(NoServer::NoKubeconfig);
    }
    Kubeconfig::read().map_err(|error| NoServer::Because(format!("kubeconfig: {}", chain(&error))))
}

async fn look(
    kubeconfig: Kubeconfig,
    context: String,
    limit: Duration,
) -> Result<ClusterServer, NoServer> {
    let because = |why: String| NoServer::Because(format!("context {context}: {why}"));
    let options =
        KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config =
        config.map_err(|error| NoServer::Because(format!("kubeconfig: {}", chain(&error))))?;
    config.connect_timeout = Some(limit);
    // Whoever is overloaded is not asked again and again while a person waits.
    config.default_retry = false;
    let token = credentials::resolve(&mut config).await.map_err(&because)?;
    let token = token.map(|token| BearerToken::word(&token)).transpose();
    let token = token.map_err(|error| because(format!("its user's token: {error}")))?;
    let client = Client::try_from(config).map_err(|error| because(chain(&error)))?;
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let found = match timeout(limit, services.get_opt(SERVICE)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(because(chain(&error))),
        Err(_) => return Err(silent(&context, limit)),
    };
    let Some(spec) = found.and_then(|service| service.spec) else {
        let why = format!("context {context} has no svc/{SERVICE} in namespace {NAMESPACE}");
        return Err(NoServer::Because(why));
    };
    let selector: Vec<String> = spec
        .selector
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if selector.is_empty() {
        return Err(because(format!("svc/{SERVICE} in {NAMESPACE} selects no pods")));
    }
    let ports = spec.ports.unwrap_or_default();
    let port = ports.into_iter().find(|port| port.port == PORT);
    let port = port.and_then(|port| port.target_port).unwrap_or(IntOrString::Int(PORT));
    Ok(ClusterServer {
        client,
        selector: selector.join(","),
        port,
        token: token.unwrap_or_default(),
        context,
    })
}

impl ClusterServer {
    /// How to call it in messages.
    pub(crate) fn name(&self) -> String {
        format!("svc/{SERVICE} of context {}", self.context)
    }

    /// The token of the kubeconfig's user, if that has one.
    pub(crate) fn token(&self) -> &BearerToken {
        &self.token
    }

    /// A channel to one of the Service's pods, whichever is ready whenever a connection is made.
    ///
    /// # Errors
    /// When there is no connection.
    pub(crate) async fn connect(&self, connector: &Connector) -> Result<Channel, ConnectError> {
        let address: Address =
            format!("{SERVICE}.{NAMESPACE}.svc:{PORT}").parse().map_err(ConnectError::Options)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let (selector, port) = (self.selector.clone(), self.port.clone());
        connector
            .connect_over(&address, move || {
                forward::open(pods.clone(), selector.clone(), port.clone())
            })
            .await
    }
}

fn silent(context: &str, limit: Duration) -> NoServer {
    NoServer::Because(format!(
        "the API server of context {context} did not answer within {} s",
        limit.as_secs()
    ))
}

/// An error with what caused it. Those of kube repeat their causes as often as not.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
