//! The real `orb8-agent` in a pod of the real containerd, with exactly the permissions that a pod of the
//! DaemonSet has, by the calls of a kubelet.

use std::{
    fs,
    net::SocketAddr,
    ops::Deref,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orb8_proto::cri::{
    Capability, ContainerConfig, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption, SecurityProfile,
};
use orb8_testkit::{KubeApi, Node};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tonic::transport::Endpoint;

use crate::{Client, Containerd, RealPod, agent_process, client::runtime_in, image};

const IMAGE: &str = "localhost/orb8-agent:test";
const NAMESPACE: &str = "orb8-system";
/// Where a kubelet mounts a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What [`AgentContainer`] shows the API.
pub const SERVICE_ACCOUNT_TOKEN: &str = "token-of-the-agents-service-account";
/// The runtime unpacks the image, and the agent loads its programs.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running agent, and a client of it.
pub struct AgentContainer<'a> {
    client: Client,
    containerd: &'a Containerd,
    pod: RealPod,
    name: String,
    pid: u32,
    metrics: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Deref for AgentContainer<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl<'a> AgentContainer<'a> {
    /// Makes an image of the agent that was built, for [`start`](Self::start).
    ///
    /// # Errors
    /// When there is no agent, or containerd refuses the image.
    pub fn import(containerd: &Containerd) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let image = image::write(dir.path(), IMAGE, &agent_process::binary("orb8-agent")?, &[])?;
        containerd.import(&image)
    }

    /// Starts what the only one of `daemon_set`'s pods on `node` would be, but for one of its
    /// capabilities, if `without` names it. It finds the API, and is let in, by what a kubelet gives
    /// every pod.
    ///
    /// # Errors
    /// When it does not serve in time; the error carries its log.
    pub fn start(
        (node, containerd, api): (&Node, &'a Containerd, &KubeApi),
        daemon_set: &Value,
        without: Option<&str>,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        api.write_service_account(dir.path(), NAMESPACE, SERVICE_ACCOUNT_TOKEN)?;
        let spec = daemon_set.pointer("/spec/template/spec").context("no pod in it")?;
        let container = spec.pointer("/containers/0").context("no container in it")?;

        let node_ip = node.ipv4().to_string();
        let mut command = vec!["/program".to_owned()];
        for argument in container["args"].as_array().context("it has no arguments")? {
            let argument = argument.as_str().context("an argument is text")?;
            command.push(argument.replace("$(NODE_IP)", &node_ip));
        }
        let mut mounts = mounts(spec, container)?;
        mounts.push(mount(&dir.path().display().to_string(), SERVICE_ACCOUNT));
        let env = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
        let config = ContainerConfig {
            image: Some(ImageSpec { image: IMAGE.into() }),
            command,
            envs: vec![
                env("NODE_NAME", node.name()),
                env("NODE_IP", &node_ip),
                env("KUBERNETES_SERVICE_HOST", &api.addr().ip().to_string()),
                env("KUBERNETES_SERVICE_PORT", &api.addr().port().to_string()),
            ],
            mounts,
            linux: Some(LinuxContainerConfig {
                security_context: Some(security(spec, container, without)?),
            }),
            ..ContainerConfig::default()
        };
        let name = format!("agent-{}", without.unwrap_or("whole"));
        let uid = format!("00000000-0000-4000-8000-{:012x}", std::process::id());
        let shared = Some(namespaces(spec)?);
        let pod = containerd.run_pod_with(NAMESPACE, &name, &uid, shared)?;
        let id = containerd.run_config(&pod, &name, config)?;
        let group = node.cgroup_dir().join(format!("kubepods/besteffort/pod{uid}/{id}"));
        let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();

        let port = |name: &str| port_called(container, name);
        let grpc = format!("http://{node_ip}:{}", port("grpc")?);
        let metrics = SocketAddr::from((node.ipv4(), port("metrics")?));
        let client = connect(node, &grpc).with_context(|| containerd.log_of(&name))?;
        let pid = procs.lines().next().context("nobody is in its group")?.parse()?;
        Ok(Self { client, containerd, pod, name, pid, metrics, _dir: dir })
    }

    /// Where its metrics are.
    #[must_use]
    pub fn metrics_addr(&self) -> SocketAddr {
        self.metrics
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.containerd.log_of(&self.name)
    }

    /// What the kernel says of its process: `/proc/<pid>/status`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kernel_status(&self) -> Result<String> {
        let path = format!("/proc/{}/status", self.pid);
        fs::read_to_string(&path).context(path)
    }

    /// SIGTERM, as from a kubelet, and away with the pod. Gives its log.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(self) -> Result<String> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, Signal::TERM)?;
        let deadline = Instant::now() + START_LIMIT;
        while Path::new(&format!("/proc/{}", self.pid)).exists() {
            ensure!(Instant::now() < deadline, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = self.log();
        self.containerd.remove_pod(&self.pod)?;
        Ok(log)
    }
}

/// Number of a named port.
fn port_called(container: &Value, name: &str) -> Result<u16> {
    let ports = container["ports"].as_array().context("it has no ports")?;
    let port = ports.iter().find(|port| port["name"] == name);
    let number = port.and_then(|port| port["containerPort"].as_u64());
    Ok(u16::try_from(number.with_context(|| format!("no port {name}"))?)?)
}

/// `securityContext`, as a kubelet hands it on.
fn security(
    spec: &Value,
    container: &Value,
    without: Option<&str>,
) -> Result<LinuxContainerSecurityContext> {
    let context = &container["securityContext"];
    ensure!(context["runAsUser"] == 0, "the image's user is another one");
    ensure!(
        context["seccompProfile"]["type"] == "RuntimeDefault",
        "its seccomp profile is another"
    );
    let names = |which: &str| -> Vec<String> {
        let names = context["capabilities"][which].as_array().into_iter().flatten();
        names.filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    };
    let mut added = names("add");
    added.retain(|name| Some(name.as_str()) != without);
    if !sys_resource_may_be_given()? {
        added.retain(|name| name != "SYS_RESOURCE");
    }
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: added,
            drop_capabilities: names("drop"),
        }),
        privileged: context["privileged"] == true,
        namespace_options: Some(namespaces(spec)?),
        readonly_rootfs: context["readOnlyRootFilesystem"] == true,
        no_new_privs: context["allowPrivilegeEscalation"] == false,
        // The default one is the runtime's.
        seccomp: Some(SecurityProfile::default()),
    })
}

/// A machine that is a container itself may lack it, and what one lacks one cannot give. It counts
/// before Linux 5.11 only.
fn sys_resource_may_be_given() -> Result<bool> {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status")?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = u64::from_str_radix(bounding.context("no CapBnd")?.trim(), 16)?;
    Ok(bounding & SYS_RESOURCE != 0)
}

/// The node's network namespace is the one that containerd is in.
fn namespaces(spec: &Value) -> Result<NamespaceOption> {
    let mode = |shared: &Value| {
        if *shared == true { NamespaceMode::Node } else { NamespaceMode::Pod }
    };
    ensure!(spec["hostIPC"].is_null(), "it shares what nobody asked for");
    let (network, pid) = (mode(&spec["hostNetwork"]), mode(&spec["hostPID"]));
    Ok(NamespaceOption { network: network.into(), pid: pid.into(), ipc: NamespaceMode::Pod.into() })
}

/// Mounts of folders of the host; there are no others without TLS.
fn mounts(spec: &Value, container: &Value) -> Result<Vec<Mount>> {
    let list = |of: &Value, name: &str| of[name].as_array().cloned().unwrap_or_default();
    let volumes = list(spec, "volumes");
    let mounts = list(container, "volumeMounts").into_iter().map(|wanted| {
        let volume = volumes.iter().find(|volume| volume["name"] == wanted["name"]);
        let source = volume.and_then(|volume| volume.pointer("/hostPath/path")?.as_str());
        let source = source.with_context(|| format!("{wanted} is no folder of the host"))?;
        ensure!(wanted["readOnly"] == true, "{wanted} can be written to");
        Ok(mount(source, wanted["mountPath"].as_str().context("a mount has a path")?))
    });
    mounts.collect()
}

fn mount(source: &str, target: &str) -> Mount {
    Mount { container_path: target.into(), host_path: source.into(), readonly: true }
}

fn connect(node: &Node, url: &str) -> Result<Client> {
    let runtime = runtime_in(node.netns())?;
    let endpoint = Endpoint::from_shared(url.to_owned())?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let endpoint = endpoint.clone();
        // On a worker: the thread that waits here is not in the node's namespace.
        let connecting = runtime.spawn(async move { endpoint.connect().await });
        match runtime.block_on(connecting)? {
            Ok(channel) => return Ok(Client::new(runtime, channel)),
            Err(error) if Instant::now() > deadline => bail!("{url} does not serve: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
