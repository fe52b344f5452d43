//! A pod: the cgroups of its containers, and a network namespace behind a veth pair unless it shares the node's.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::cgroup;
use crate::identity::{Container, ContainerKind, Identity};
use crate::link::{LinkCounters, await_forwarding};
use crate::netns::{Netns, new_netns};
use crate::node::{NODE_NUMBER, PREFIX_LENGTHS, Shared};
use crate::pod_object::Phase;
use crate::pod_spec::PodSpec;
use crate::process::Process;
use crate::program::{Hold, Program};
use crate::random;
use crate::route::{Addresses, Mac, Route};

/// Exit code of what was killed with SIGKILL.
const KILLED: i32 = 137;

/// A running pod. Dropping it stops it.
#[derive(Debug)]
pub struct Pod {
    node: Arc<Shared>,
    identity: Arc<Identity>,
    /// The "pause" process, which holds the namespace. `None` before it is started and after the stop.
    sandbox: Option<Process>,
    netns: Netns,
    /// `None` until it is there, and on the node's own network.
    veth: Option<String>,
    ifindex: u32,
    is_gone: bool,
}

impl Pod {
    /// A pod whose containers run as far as anybody can tell, though no program does yet.
    pub(crate) fn start(node: Arc<Shared>, spec: PodSpec) -> Result<Self> {
        let mut pod = Self::sandbox(node, spec)?;
        for at in 0..pod.identity.containers.len() {
            pod.begin(at)?;
        }
        pod.change(|identity| {
            let init = |container: &&mut Container| container.kind == ContainerKind::Init;
            identity.containers.iter_mut().filter(init).for_each(|container| container.end(0));
        });
        pod.report(Phase::Running)?;
        Ok(pod)
    }

    /// A pod whose containers wait to be started.
    pub(crate) fn sandbox(node: Arc<Shared>, spec: PodSpec) -> Result<Self> {
        if spec.containers.is_empty() {
            bail!("pod {}/{} has no container, expected at least one", spec.namespace, spec.name);
        }
        let veth = match (spec.host_network, &spec.veth, spec.host_number) {
            (true, None, None) => None,
            (true, ..) => bail!(
                "pod {}/{} is on the node's network, expected neither a veth nor a host number",
                spec.namespace,
                spec.name
            ),
            (false, Some(name), _) => Some(name.clone()),
            (false, None, _) => Some(format!("veth{}", random::hex::<4>()?)),
        };
        let identity = node.admit(spec, |spec, host| Identity::new(&node, spec, host))?;
        let mut pod = Self {
            veth: None,
            netns: node.netns.clone(),
            sandbox: None,
            ifindex: 0,
            is_gone: false,
            identity,
            node,
        };
        // From here on, dropping the half-made pod takes it apart again.
        pod.report(Phase::Pending)?;
        pod.start_sandbox()?;
        if let Some(name) = veth {
            pod.connect(name)?;
        }
        Ok(pod)
    }

    /// Makes the cgroup of the container that is at this place: of a new instance, if one has ended.
    pub(crate) fn begin(&mut self, at: usize) -> Result<()> {
        let mut identity = Identity::clone(&self.identity);
        if identity.containers[at].ended().is_some() {
            identity.renew(at)?;
        }
        let dir = &identity.containers[at].dir;
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        identity.containers[at].begin();
        self.change(|old| *old = identity);
        Ok(())
    }

    /// The container that is at this place has ended: its cgroup is removed, with what is left in it.
    pub(crate) fn end(&mut self, at: usize, exit_code: i32) -> Result<()> {
        // CRI-O on crun has a directory around it.
        let mut dir = &*self.identity.containers[at].dir;
        while let Some(parent) = dir.parent().filter(|parent| *parent != self.identity.dir) {
            dir = parent;
        }
        cgroup::remove(dir)?;
        self.change(|identity| identity.containers[at].end(exit_code));
        Ok(())
    }

    /// Changes what is to be said of it.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Identity)) {
        let mut identity = Identity::clone(&self.identity);
        change(&mut identity);
        self.identity = Arc::new(identity);
        self.node.replace(&self.identity);
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Tells how far it is.
    pub(crate) fn report(&self, phase: Phase) -> Result<()> {
        self.node.report(&self.identity, phase)
    }

    fn start_sandbox(&mut self) -> Result<()> {
        let dir = &self.identity.sandbox.dir;
        let hold = Program::Hold(Hold::default());
        if self.identity.spec.host_network {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            let mut command = self.netns.command();
            command.arg("--cgroup").arg(dir);
            self.sandbox = Some(Process::start(command, &hold)?);
            return Ok(());
        }
        let sandbox = Process::start(new_netns(&self.node.testpod, dir)?, &hold)?;
        self.netns = Netns::of(sandbox.pid(), self.node.testpod.clone());
        self.sandbox = Some(sandbox);
        Ok(())
    }

    fn connect(&mut self, name: String) -> Result<()> {
        let mut node = Route::open(&self.node.netns)?;
        let mac = self.static_mac();
        let bridge = self.node.bridge;
        node.add_veth(&name, ("eth0", mac), Some(self.netns.holder()), Some(bridge))?;
        // Not before: until here the name may be somebody else's.
        let veth = self.veth.insert(name);
        self.ifindex = node.link(veth)?.index;
        let gateways = [self.node.ipv4(NODE_NUMBER).into(), self.node.ipv6(NODE_NUMBER).into()];
        let addresses = Addresses {
            ipv4: (self.identity.ipv4, PREFIX_LENGTHS.0),
            ipv6: (self.identity.ipv6, PREFIX_LENGTHS.1),
            gateways,
        };
        let mut pod = Route::open(&self.netns)?;
        pod.configure("eth0", &addresses)?;
        if let Some(mac) = mac {
            node.stop_floods(self.ifindex)?;
            node.add_neighbours(bridge, self.ips(), mac)?;
            let eth0 = pod.link("eth0")?.index;
            pod.add_neighbours(eth0, gateways, self.node.bridge_mac())?;
        }
        await_forwarding(&mut node, self.veth())
    }

    /// The address of its interface, if others know it from the start.
    fn static_mac(&self) -> Option<Mac> {
        let [high, low] = self.identity.host_number?.to_be_bytes();
        self.identity.spec.static_neighbours.then_some([0x02, 0, 0x0a, 0xf5, high, low])
    }

    fn ips(&self) -> [IpAddr; 2] {
        [self.identity.ipv4.into(), self.identity.ipv6.into()]
    }

    /// Starts a program in a container. When this returns it is in the cgroup and the namespace, and a server is ready.
    ///
    /// # Errors
    /// When the pod has no such container, or the program cannot be started or does not get ready.
    pub fn spawn(&self, container: &str, program: &Program) -> Result<Process> {
        let mut command = self.netns.command();
        command.arg("--cgroup").arg(&self.container(container)?.dir);
        Process::start(command, program)
    }

    /// Runs a command in the pod's network namespace (not in its cgroups) to its end, at most a minute. Its exit status
    /// is the caller's to judge.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        self.netns.exec(command, &[])
    }

    /// Stops the pod: its processes are killed, its veth and its cgroups are gone when this returns.
    ///
    /// # Errors
    /// When a cgroup cannot be removed.
    pub fn stop(mut self) -> Result<()> {
        self.tear_down()
    }

    /// What the kernel has counted on the host side of its veth: `rx` is what the pod sent.
    ///
    /// # Errors
    /// When the node is gone, or the pod is on its network.
    pub fn link_counters(&self) -> Result<LinkCounters> {
        let veth = self.veth.as_deref();
        let veth = veth.with_context(|| format!("{} has no interface of its own", self.name()))?;
        LinkCounters::read(&self.node.netns, veth)
    }

    /// Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.identity.spec.namespace
    }

    /// Pod name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.identity.spec.name
    }

    /// Pod UID, a random UUID; of a static pod the 32 hexadecimal characters that its cgroups have.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.identity.uid
    }

    /// IPv4 address; the node's when it is on the node's network.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.identity.ipv4
    }

    /// IPv6 address, as [`ipv4`](Self::ipv4).
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.identity.ipv6
    }

    /// Name of the host side of its veth, in the node's namespace; empty when it is on the node's network.
    #[must_use]
    pub fn veth(&self) -> &str {
        self.veth.as_deref().unwrap_or_default()
    }

    /// Index of [`veth`](Self::veth) in the node's namespace; 0 when it is on the node's network.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// `/proc/<pid of the sandbox>/ns/net`, or of the node's holder when it is on the node's network.
    #[must_use]
    pub fn netns_path(&self) -> &Path {
        self.netns.path()
    }

    /// The sandbox process, which holds the pod's namespace if it has its own.
    #[must_use]
    pub fn sandbox_pid(&self) -> u32 {
        self.sandbox.as_ref().map_or(0, Process::pid)
    }

    /// A container's id, 64 hexadecimal characters.
    ///
    /// # Errors
    /// When the pod has no such container.
    pub fn container_id(&self, container: &str) -> Result<&str> {
        Ok(&self.container(container)?.id)
    }

    /// The directory that holds a container's processes.
    ///
    /// # Errors
    /// When the pod has no such container.
    pub fn cgroup_dir(&self, container: &str) -> Result<&Path> {
        Ok(&self.container(container)?.dir)
    }

    /// The kernel's id of a container's cgroup, which is the inode of its directory.
    ///
    /// # Errors
    /// When the pod has no such container.
    pub fn cgroup_id(&self, container: &str) -> Result<u64> {
        let dir = self.cgroup_dir(container)?;
        Ok(fs::metadata(dir).with_context(|| dir.display().to_string())?.ino())
    }

    fn container(&self, name: &str) -> Result<&Container> {
        let containers = &self.identity.containers;
        containers.iter().find(|container| container.name == name).with_context(|| {
            let names: Vec<&str> = containers.iter().map(|container| &*container.name).collect();
            format!("no container {name:?} in {}, expected one of {names:?}", self.name())
        })
    }

    fn tear_down(&mut self) -> Result<()> {
        // Its address and its name may be another's by the second time.
        if std::mem::replace(&mut self.is_gone, true) {
            return Ok(());
        }
        if self.sandbox.is_none() {
            self.leave()?;
            return self.node.report_gone(&self.identity);
        }
        let asked = SystemTime::now();
        self.report(Phase::Terminating { asked })?;
        self.take_apart(asked)
    }

    /// The rest of its end, for one that was told to go at `asked`.
    pub(crate) fn take_apart(&mut self, asked: SystemTime) -> Result<()> {
        self.is_gone = true;
        // Deleted by name, because a namespace takes its links away only some time after its last process. It fails when
        // the node was killed, and the link with it.
        if let Some(veth) = &self.veth {
            let _ = Route::open(&self.node.netns).and_then(|mut route| {
                if self.static_mac().is_some() {
                    route.delete_neighbours(self.node.bridge, self.ips())?;
                }
                route.delete_link(veth)
            });
        }
        self.sandbox = None;
        self.leave()?;
        let killed = |container: &mut Container| container.end(KILLED);
        self.change(|identity| identity.containers.iter_mut().for_each(killed));
        // As late as from a kubelet: the pod's address may be another's by now.
        self.report(Phase::Ended { asked })?;
        self.node.report_gone(&self.identity)
    }

    fn leave(&self) -> Result<()> {
        self.node.dismiss(&self.identity);
        cgroup::remove(&self.identity.dir)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            eprintln!("orb8-testkit: {error:#}");
        }
    }
}
