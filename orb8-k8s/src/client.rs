//! Where the Kubernetes API is, as whom to ask it, and a client that does.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// What a kubelet mounts into a pod that may ask the API.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Where the API is, and as whom to ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubernetesSource {
    /// By the service account of the pod that this process runs in.
    InCluster,
    /// By a kubeconfig: this one, else what `KUBECONFIG` names, else `~/.kube/config`.
    Kubeconfig(Option<PathBuf>),
}

impl KubernetesSource {
    /// Whether a kubelet started this process, with a service account.
    #[must_use]
    pub fn running_as_pod() -> bool {
        std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists()
    }

    /// By this kubeconfig, else by the service account of the pod that this is, else by the
    /// kubeconfig that a person has.
    #[must_use]
    pub fn choose(kubeconfig: Option<PathBuf>, running_as_pod: bool) -> Self {
        match kubeconfig {
            None if running_as_pod => Self::InCluster,
            path => Self::Kubeconfig(path),
        }
    }
}

/// The API cannot even be asked: there is no configuration, or it makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClientError(String);

/// Reads the configuration and makes a client. Nothing is asked yet, and the client asks nothing a
/// second time by itself.
///
/// # Errors
/// When the configuration, or what it names, cannot be read or makes no sense.
pub async fn client(source: &KubernetesSource) -> Result<Client, ClientError> {
    Ok(client_and_url(source).await?.0)
}

/// As [`client`], with the URL of the API, which messages name.
pub(crate) async fn client_and_url(
    source: &KubernetesSource,
) -> Result<(Client, String), ClientError> {
    let mut config = read(source).await.map_err(ClientError)?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    // Who asks waits itself, and says so.
    config.default_retry = false;
    let agent = concat!("orb8/", env!("CARGO_PKG_VERSION"));
    if let (Ok(name), Ok(value)) = ("user-agent".parse(), agent.parse()) {
        config.headers.push((name, value));
    }
    let url = config.cluster_url.to_string();
    // A kubeconfig may name a program that gives the token.
    let client = tokio::task::spawn_blocking(move || Client::try_from(config)).await;
    let client =
        client.map_err(|e| ClientError(e.to_string()))?.map_err(|e| ClientError(innermost(&e)))?;
    Ok((client, url))
}

async fn read(source: &KubernetesSource) -> Result<Config, String> {
    let options = KubeConfigOptions::default();
    match source {
        KubernetesSource::InCluster => Config::incluster()
            .map_err(|e| format!("no service account of a pod: {}", innermost(&e))),
        KubernetesSource::Kubeconfig(None) => {
            Config::from_kubeconfig(&options).await.map_err(|e| format!("kubeconfig: {e}"))
        }
        KubernetesSource::Kubeconfig(Some(path)) => {
            let named = |e| format!("kubeconfig {}: {e}", path.display());
            let file = Kubeconfig::read_from(path).map_err(named)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(named)
        }
    }
}

/// The last cause of an error says what happened; those before say where.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}
