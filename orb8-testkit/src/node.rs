//! The node: a network namespace with a bridge, a cgroup prefix, and the list of its pods.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cgroup::{self, CgroupDriver, Layout, Runtime};
use crate::cri_server::{self, CriServer};
use crate::identity::Identity;
use crate::kube_api::{self, KubeApi};
use crate::link::{LinkCounters, Veth};
use crate::netns::{Netns, new_netns};
use crate::pod::Pod;
use crate::pod_object::{Phase, node_object, pod_list, pod_object};
use crate::pod_spec::PodSpec;
use crate::process::Process;
use crate::program::{Hold, Program};
use crate::route::{Mac, Route};
use crate::testpod_path;

/// Nodes that this process has started: the next one's number.
static NODES: AtomicU32 = AtomicU32::new(1);

/// Bits of the network part of a node's IPv4 and IPv6 networks: as large as a kubelet's with up to 500 pods.
pub(crate) const PREFIX_LENGTHS: (u8, u8) = (22, 64);

/// The node's own place in its network.
pub(crate) const NODE_NUMBER: u16 = 1;

/// What pods may have.
const HOST_NUMBERS: RangeInclusive<u16> = 2..=1022;

/// How many IPv4 networks of that size fit into 10.244.0.0/16.
const NETWORKS: u32 = 64;

/// How a node is to be.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Node name in the pod list; `orb8-node-<number>` when not given.
    pub name: Option<String>,
    /// Form of the cgroup directories of its pods, unless a pod says otherwise.
    pub driver: CgroupDriver,
    /// Container runtime of its pods, unless a pod says otherwise.
    pub runtime: Runtime,
    /// A component before `kubepods` in cgroup paths: kind has `kubelet` there.
    pub cgroup_root: Option<String>,
}

/// A node. It ends, with all that is in it, when it and all its pods are dropped.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
}

/// What a node and its pods share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    number: u8,
    pub(crate) testpod: PathBuf,
    /// Absolute path of the cgroup directory that all of the node's lie in.
    pub(crate) cgroup: PathBuf,
    pub(crate) netns: Netns,
    /// Index of the bridge that its pods are connected to.
    pub(crate) bridge: u32,
    pub(crate) layout: Layout,
    pods: Mutex<Pods>,
    /// Learns of this node's pods, once there is one.
    api: OnceLock<Arc<kube_api::Shared>>,
    /// Learns of them too.
    cri: OnceLock<Arc<cri_server::State>>,
    holder: Mutex<Process>,
}

#[derive(Debug, Default)]
struct Pods {
    /// In the order of their admission.
    running: Vec<Arc<Identity>>,
    last_host_number: u16,
}

impl Node {
    /// Starts a node, after having removed the cgroups that killed owners left.
    ///
    /// # Errors
    /// Without root, cgroup v2, `ip`, or the `orb8-testpod` binary; the error says which.
    pub fn start(options: NodeOptions) -> Result<Self> {
        let mount = cgroup::mount_point()?;
        cgroup::sweep(&mount, |number| number < NODES.load(Ordering::SeqCst))?;

        let number = NODES.fetch_add(1, Ordering::SeqCst);
        let testpod = testpod_path()?;
        let cgroup = cgroup::prefix_dir(&mount, number);
        fs::create_dir(&cgroup)
            .with_context(|| format!("cannot make {}: root?", cgroup.display()))?;
        match Self::start_in(options, number, testpod, cgroup.clone()) {
            Ok(node) => Ok(node),
            Err(error) => {
                cgroup::remove(&cgroup)?;
                Err(error)
            }
        }
    }

    fn start_in(
        options: NodeOptions,
        number: u32,
        testpod: PathBuf,
        cgroup: PathBuf,
    ) -> Result<Self> {
        let forwarding = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
        let hold = Program::Hold(Hold { sysctl: forwarding.map(String::from).to_vec() });
        let dir = cgroup.join("system.slice");
        let holder = Process::start(new_netns(&testpod, &dir)?, &hold)?;
        let netns = Netns::of(holder.pid(), testpod.clone());

        // Nodes never meet, so that a number that comes back does no harm.
        let n = u8::try_from((number - 1) % NETWORKS)?;
        let (ipv4, ipv6) = (node_ipv4(n, NODE_NUMBER), node_ipv6(n, NODE_NUMBER));
        let (ipv4_bits, ipv6_bits) = PREFIX_LENGTHS;
        let mac = bridge_mac(n).map(|byte| format!("{byte:02x}")).join(":");
        netns.ip(
            &[],
            &format!(
                "link set lo up\n\
                 link add br0 address {mac} type bridge forward_delay 0\n\
                 addr add {ipv4}/{ipv4_bits} dev br0\n\
                 addr add {ipv6}/{ipv6_bits} dev br0 nodad\n\
                 link set br0 up"
            ),
        )?;
        let layout =
            Layout { driver: options.driver, runtime: options.runtime, root: options.cgroup_root };
        let shared = Shared {
            name: options.name.unwrap_or_else(|| format!("orb8-node-{number}")),
            number: n,
            testpod,
            cgroup,
            bridge: Route::open(&netns)?.link("br0")?.index,
            netns,
            layout,
            pods: Mutex::default(),
            api: OnceLock::new(),
            cri: OnceLock::new(),
            holder: Mutex::new(holder),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Starts a pod: its namespace, veth, addresses, cgroups and sandbox process. No container runs a program yet.
    ///
    /// # Errors
    /// When the specification contradicts itself, or when the kernel refuses a step.
    pub fn start_pod(&self, spec: PodSpec) -> Result<Pod> {
        Pod::start(Arc::clone(&self.shared), spec)
    }

    /// Starts a program on the node itself, outside of any pod: in cgroup `system.slice/<service>.service`.
    ///
    /// # Errors
    /// When it cannot be started, or is a server that does not get ready.
    pub fn spawn(&self, service: &str, program: &Program) -> Result<Process> {
        let dir = self.shared.cgroup.join("system.slice").join(format!("{service}.service"));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let mut command = self.shared.netns.command();
        command.arg("--cgroup").arg(dir);
        Process::start(command, program)
    }

    /// Adds a veth pair with nothing behind it, as fast as it goes; see [`Veth`].
    ///
    /// # Errors
    /// When the name is taken or longer than 14 bytes.
    pub fn add_veth(&self, name: &str) -> Result<Veth> {
        Veth::add(self.shared.netns.clone(), name)
    }

    /// Runs a command in the node's network namespace to its end, at most a minute. Its exit status is the caller's to
    /// judge.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        self.shared.netns.exec(command, &[])
    }

    /// What the kernel has counted on an interface of the node.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn link_counters(&self, ifname: &str) -> Result<LinkCounters> {
        LinkCounters::read(&self.shared.netns, ifname)
    }

    /// Moves the calling thread into the node's network namespace, for good.
    ///
    /// # Errors
    /// When the node's holder was killed.
    pub fn enter(&self) -> Result<()> {
        self.shared.netns.enter()
    }

    /// The node's network namespace, to be entered by other threads: `move || netns.enter()`.
    #[must_use]
    pub fn netns(&self) -> Netns {
        self.shared.netns.clone()
    }

    /// `/proc/<pid of the holder>/ns/net`.
    #[must_use]
    pub fn netns_path(&self) -> PathBuf {
        self.shared.netns.path().to_owned()
    }

    /// The process that holds the namespace.
    #[must_use]
    pub fn holder_pid(&self) -> u32 {
        self.shared.netns.holder()
    }

    /// Node name, as in the pod list.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The node's IPv4 address, which is its pods' gateway.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.shared.ipv4(NODE_NUMBER)
    }

    /// The node's IPv6 address, which is its pods' gateway.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.shared.ipv6(NODE_NUMBER)
    }

    /// The cgroup directory that all directories of the node lie in.
    #[must_use]
    pub fn cgroup_dir(&self) -> &Path {
        &self.shared.cgroup
    }

    /// From now on, the API learns of the node and of what becomes of its pods, as from a kubelet.
    ///
    /// # Errors
    /// When the node reports to an API already.
    pub fn report_to(&self, api: &KubeApi) -> Result<()> {
        if self.shared.api.set(api.shared()).is_err() {
            bail!("{} reports to an API already", self.name());
        }
        api.apply(node_object(&self.shared))?;
        let pods = self.shared.pods().running.clone();
        pods.iter().try_for_each(|pod| self.shared.report(pod, Phase::Running))
    }

    /// From now on, there is a container runtime at `path` that knows the node's pods.
    ///
    /// # Errors
    /// When there can be no socket, or the node has a runtime already.
    pub fn serve_cri(&self, path: &Path) -> Result<CriServer> {
        let server = CriServer::start(path)?;
        if self.shared.cri.set(server.state()).is_err() {
            bail!("{} has a container runtime already", self.name());
        }
        let pods = self.shared.pods().running.clone();
        pods.iter().for_each(|pod| server.state().report(pod, Phase::Running));
        Ok(server)
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The running pods as a Kubernetes v1 `PodList`, as `kubectl get pods -A -o json` prints it.
    #[must_use]
    pub fn pod_list(&self) -> Value {
        pod_list(&self.shared, self.shared.pods().running.iter())
    }

    /// Writes [`pod_list`](Self::pod_list) to a file, in one step: a reader sees the old list or the new one.
    ///
    /// # Errors
    /// When the file or its neighbour `<path>.new` cannot be written.
    pub fn write_pod_list(&self, path: &Path) -> Result<()> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        fs::write(&draft, serde_json::to_vec_pretty(&self.pod_list())?)
            .and_then(|()| fs::rename(&draft, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Shared {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The address with this host number on the node's network.
    pub(crate) fn ipv4(&self, host: u16) -> Ipv4Addr {
        node_ipv4(self.number, host)
    }

    /// As [`ipv4`](Self::ipv4).
    pub(crate) fn ipv6(&self, host: u16) -> Ipv6Addr {
        node_ipv6(self.number, host)
    }

    /// The link-layer address of the pods' gateway.
    pub(crate) fn bridge_mac(&self) -> Mac {
        bridge_mac(self.number)
    }

    /// Gives the pod a host number, unless it is on the node's own network, and puts it on the list.
    pub(crate) fn admit(
        &self,
        spec: PodSpec,
        build: impl FnOnce(PodSpec, Option<u16>) -> Result<Identity>,
    ) -> Result<Arc<Identity>> {
        let mut pods = self.pods();
        let host = if spec.host_network { None } else { Some(pods.free_host(spec.host_number)?) };
        let identity = Arc::new(build(spec, host)?);
        pods.last_host_number = host.unwrap_or(pods.last_host_number);
        pods.running.push(Arc::clone(&identity));
        Ok(identity)
    }

    /// Tells the API, if there is one, how far a pod has come.
    pub(crate) fn report(&self, pod: &Identity, phase: Phase) -> Result<()> {
        self.cri.get().into_iter().for_each(|cri| cri.report(pod, phase));
        let Some(api) = self.api.get() else { return Ok(()) };
        api.apply(pod_object(self, pod, phase)).map(drop)
    }

    /// Tells the API, if there is one, that a pod is gone.
    pub(crate) fn report_gone(&self, pod: &Identity) -> Result<()> {
        self.cri.get().into_iter().for_each(|cri| cri.report_gone(pod));
        let Some(api) = self.api.get() else { return Ok(()) };
        api.delete("Pod", &pod.spec.namespace, &pod.spec.name).map(drop)
    }

    /// Puts another state of a pod on the list.
    pub(crate) fn replace(&self, pod: &Arc<Identity>) {
        let mut pods = self.pods();
        if let Some(old) = pods.running.iter_mut().find(|running| running.uid == pod.uid) {
            *old = Arc::clone(pod);
        }
    }

    /// Takes a pod off the list.
    pub(crate) fn dismiss(&self, pod: &Identity) {
        self.pods().running.retain(|running| running.uid != pod.uid);
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods {
    /// The wanted number, or else the one that was free for longest, as numbers go round.
    fn free_host(&self, wanted: Option<u16>) -> Result<u16> {
        let taken: BTreeSet<u16> = self.running.iter().filter_map(|pod| pod.host_number).collect();
        match wanted {
            Some(host) if HOST_NUMBERS.contains(&host) && !taken.contains(&host) => Ok(host),
            Some(host) => bail!("host number {host} is in use or not within {HOST_NUMBERS:?}"),
            None => {
                let after = HOST_NUMBERS.filter(|host| *host > self.last_host_number);
                let before = HOST_NUMBERS.filter(|host| *host <= self.last_host_number);
                let free = after.chain(before).find(|host| !taken.contains(host));
                free.with_context(|| format!("host numbers {HOST_NUMBERS:?} are all in use"))
            }
        }
    }
}

/// A fixed one: a bridge without takes its ports', and pods would lose their gateway when a port goes.
fn bridge_mac(node: u8) -> Mac {
    [0x02, 0, 0x0a, 0xf4, node, 1]
}

/// Within 10.244.0.0/16.
fn node_ipv4(node: u8, host: u16) -> Ipv4Addr {
    let network = u32::from(Ipv4Addr::new(10, 244, 0, 0)) + (u32::from(node) << 10);
    Ipv4Addr::from(network + u32::from(host))
}

/// Within fd00:244::/32.
fn node_ipv6(node: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, host)
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.holder.get_mut().unwrap_or_else(PoisonError::into_inner).kill();
        if let Err(error) = cgroup::remove(&self.cgroup) {
            eprintln!("orb8-testkit: {error:#}");
        }
    }
}
