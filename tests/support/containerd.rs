//! The real containerd on a node, with runc and CNI, and the calls by which a kubelet runs pods.
//!
//! All that it makes is below a temporary folder, in the node's network namespace and in a mount
//! namespace of its own, so that nothing outlives its processes but empty groups of cgroup v1.

use std::{
    fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use orb8_proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
    VersionRequest, runtime_service_client::RuntimeServiceClient,
};
use orb8_testkit::{Node, Process, Program, program::Exec, testpod_path};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::image;

/// It loads its plugins in a second or two.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A pod takes half a second.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// What every container runs, and the sandboxes.
const IMAGE: &str = "localhost/orb8-testpod:latest";
/// Where distributions have CNI's plugins.
const CNI: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

type Client = RuntimeServiceClient<Channel>;

/// A running containerd. Dropping it kills it; its containers end with the node.
pub struct Containerd {
    runtime: Arc<Runtime>,
    client: Client,
    process: Process,
    groups: String,
    dir: tempfile::TempDir,
}

/// A pod that runs.
#[derive(Debug)]
pub struct RealPod {
    /// Its UID.
    pub uid: String,
    /// Id of its sandbox.
    pub sandbox: String,
    config: PodSandboxConfig,
}

impl Containerd {
    /// Starts it on `node`.
    ///
    /// # Errors
    /// When containerd, runc or CNI's plugins are not installed (scripts/setup.sh does that), or it
    /// does not start; the error carries its log then.
    pub fn start(node: &Node) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("orb8-containerd-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        for folder in ["image", "cni", "logs"] {
            fs::create_dir(at(folder))?;
        }
        let image = image::write(&at("image"), IMAGE, &testpod_path()?, &["run", "hold"])?;
        fs::write(at("config.toml"), config(dir.path())?)?;
        fs::write(at("cni/10-bridge.conflist"), network(dir.path()))?;
        // The shims' sockets and CNI's cache have fixed places.
        let script = format!(
            "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && \
             exec containerd --config {} 2>{}",
            at("config.toml").display(),
            at("log").display()
        );
        let command = ["unshare", "--mount", "sh", "-c", &script].map(String::from).to_vec();
        let process = node.spawn("containerd", &Program::Exec(Exec { command }))?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let groups = node.cgroup_dir().file_name().context("a node has a cgroup")?;
        let client = runtime.block_on(async { connect(at("containerd.sock")).await });
        let client = client.with_context(|| fs::read_to_string(at("log")).unwrap_or_default())?;
        let groups = groups.to_string_lossy().into_owned();
        let started = Self { runtime: Arc::new(runtime), client, process, groups, dir };
        started.import(&image)?;
        Ok(started)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Runs the sandbox of a pod, in groups as a kubelet would have named them.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_pod(&self, namespace: &str, name: &str, uid: &str) -> Result<RealPod> {
        self.run_pod_with(namespace, name, uid, None)
    }

    /// As [`run_pod`](Self::run_pod), with namespaces that it shares with the node.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_pod_with(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        shared: Option<NamespaceOption>,
    ) -> Result<RealPod> {
        let labels = [
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.uid", uid),
        ];
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: uid.into(),
                namespace: namespace.into(),
                attempt: 0,
            }),
            // Who shares the node's network shares its name.
            hostname: if shared.is_some() { String::new() } else { name.into() },
            log_directory: self.dir.path().join("logs").display().to_string(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/kubepods/besteffort/pod{uid}", self.groups),
                security_context: shared
                    .map(|shared| LinuxSandboxSecurityContext { namespace_options: Some(shared) }),
            }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer = self.call(|mut c| async move { c.run_pod_sandbox(request).await })?;
        Ok(RealPod { uid: uid.into(), sandbox: answer.pod_sandbox_id, config })
    }

    /// Runs a program in a container of `pod`; gives the container's id.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_container(&self, pod: &RealPod, name: &str, program: &Program) -> Result<String> {
        let mut command = vec!["/program".to_owned(), "run".to_owned()];
        command.extend(program.arguments()?);
        let config = ContainerConfig {
            image: Some(ImageSpec { image: IMAGE.into() }),
            command,
            ..ContainerConfig::default()
        };
        self.run_config(pod, name, config)
    }

    /// Runs a container as `config` has it, but for its name and its log; gives its id.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_config(&self, pod: &RealPod, name: &str, config: ContainerConfig) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
                log_path: format!("{name}.log"),
                ..config
            }),
            sandbox_config: Some(pod.config.clone()),
        };
        let made = self.call(|mut c| async move { c.create_container(request).await })?;
        let id = made.container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        self.call(|mut c| async move { c.start_container(request).await })?;
        Ok(id)
    }

    /// Ends a pod, with all of its containers.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_pod(&self, pod: &RealPod) -> Result<()> {
        let pod_sandbox_id = pod.sandbox.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.call(|mut c| async move { c.stop_pod_sandbox(request).await })?;
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        self.call(|mut c| async move { c.remove_pod_sandbox(request).await })?;
        Ok(())
    }

    /// Imports an image, as `ctr images import` does.
    ///
    /// # Errors
    /// What containerd says.
    pub fn import(&self, image: &Path) -> Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        ctr.args(["images", "import", "--snapshotter", "native"]).arg(image);
        image::output(&mut ctr).map(drop)
    }

    /// What a container logged so far.
    #[must_use]
    pub fn log_of(&self, container: &str) -> String {
        let path = self.dir.path().join("logs").join(format!("{container}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn call<T, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let answer = ask(self.client.clone());
        let answer = self.runtime.block_on(async { timeout(CALL_LIMIT, answer).await })?;
        Ok(answer.with_context(|| self.log())?.into_inner())
    }
}

/// Waits until somebody answers at `socket`.
async fn connect(socket: PathBuf) -> Result<Client> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { io::Result::Ok(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://containerd.local");
        let refused = match endpoint.connect_with_connector(connector).await {
            Ok(channel) => {
                let mut client = Client::new(channel);
                match client.version(VersionRequest::default()).await {
                    Ok(_) => return Ok(client),
                    Err(status) => status.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            bail!("containerd does not answer: {refused}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn config(dir: &Path) -> Result<String> {
    let plugins = CNI.iter().find(|dir| Path::new(dir).join("bridge").exists());
    let plugins = plugins.with_context(|| {
        format!("no CNI plugins in {CNI:?}: scripts/setup.sh installs containernetworking-plugins")
    })?;
    let dir = dir.display();
    Ok(format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{dir}/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{dir}/cni"
"#
    ))
}

/// A bridge of its own in the node's network namespace.
fn network(dir: &Path) -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "orb8", "plugins": [{{
            "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
            "ipam": {{"type": "host-local", "dataDir": "{}/ipam",
                "ranges": [[{{"subnet": "10.88.0.0/16"}}]]}}}}]}}"#,
        dir.display()
    )
}

/// Removes what is left of a node's groups in hierarchies of cgroup v1, which runc makes and nobody
/// but a kubelet removes. To be made before the node, so that it is dropped after it.
#[derive(Debug, Default)]
pub struct OldGroups(Option<String>);

impl OldGroups {
    /// Of this node.
    pub fn watch(&mut self, node: &Node) {
        let name = node.cgroup_dir().file_name();
        self.0 = name.map(|name| name.to_string_lossy().into_owned());
    }
}

impl Drop for OldGroups {
    fn drop(&mut self) {
        let Some(name) = &self.0 else { return };
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies {
            remove_groups(&hierarchy.path().join(name));
        }
    }
}

/// What is not there, or is in use, shows as left behind.
fn remove_groups(dir: &Path) {
    for child in fs::read_dir(dir).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&child.path());
        }
    }
    let _removed = fs::remove_dir(dir);
}
