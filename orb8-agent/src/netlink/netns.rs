//! Which container is behind a veth, without entering any namespace.
//!
//! The kernel numbers the namespaces that ours is connected to: a veth names its other end's
//! namespace by that number (`IFLA_LINK_NETNSID`), and so does `RTM_GETNSID` for the namespace of
//! a process. The process's cgroup then names the container.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    sync::Arc,
};

use super::{NetlinkError, RouteSocket, attributes, number, push_attribute};
use crate::k8s::cgroup::{self, CgroupIdentity};

/// Who lives in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsOwner {
    /// The namespace's inode, as in `/proc/<pid>/ns/net`.
    pub netns_inode: u64,
    /// A process in it, of the owner if one is known.
    pub pid: u32,
    /// The pod or container that most of its processes belong to. None: only processes of the
    /// node are in it.
    pub identity: Option<CgroupIdentity>,
    /// That process's cgroup.
    pub cgroup_path: Arc<str>,
}

/// Processes looked at per namespace. Those with the lowest ids come first: a pod's own, rather
/// than what was started in it later.
const PIDS_PER_NETNS: usize = 16;

const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// struct rtgenmsg (the family), padded.
const HEADER: usize = 4;

/// Resolves namespace ids as the calling thread's namespace numbers them.
pub struct NetnsResolver {
    socket: RouteSocket,
    own_inode: u64,
    owners: HashMap<i32, NetnsOwner>,
}

impl NetnsResolver {
    /// Resolves the ids of the calling thread's network namespace, for ever. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let opening = |why| NetlinkError::new("open a socket to resolve network namespaces", why);
        let socket = RouteSocket::open(0).map_err(opening)?;
        let own = fs::metadata("/proc/thread-self/ns/net").map_err(opening)?;
        Ok(Self { socket, own_inode: own.ino(), owners: HashMap::new() })
    }

    /// Finds who lives in these namespaces. An id without an entry in the answer has no process
    /// (yet). Costs one link read per process of the machine while one of them has no container
    /// yet, and a few file reads per id otherwise.
    pub async fn resolve(
        &mut self,
        wanted: &[i32],
    ) -> Result<HashMap<i32, NetnsOwner>, NetlinkError> {
        let wanted: HashSet<i32> = wanted.iter().copied().collect();
        let owners = std::mem::take(&mut self.owners);
        let own_inode = self.own_inode;
        let missing = wanted.clone();
        let (owners, mut unknown) = reading(move || survey(owners, &missing, own_inode)).await?;
        self.owners = owners;
        unknown.retain(|inode, _| !self.owners.values().any(|owner| owner.netns_inode == *inode));
        let mut numbered = Vec::new();
        for (inode, pids) in unknown {
            if let Some(nsid) = self.nsid(inode, &pids).await? {
                numbered.push((nsid, inode, pids));
            }
        }
        let found = move || -> Vec<_> {
            let owner = |(nsid, inode, pids): (_, _, Vec<_>)| Some((nsid, owner_of(inode, &pids)?));
            numbered.into_iter().filter_map(owner).collect()
        };
        self.owners.extend(reading(found).await?);
        let known = self.owners.iter().filter(|(nsid, _)| wanted.contains(nsid));
        Ok(known.map(|(nsid, owner)| (*nsid, owner.clone())).collect())
    }

    /// The number of a namespace, by an open file of it: an id of a process could be another one's
    /// by the time the kernel reads it.
    async fn nsid(&mut self, inode: u64, pids: &[u32]) -> Result<Option<i32>, NetlinkError> {
        let namespace = pids.iter().find_map(|pid| {
            let file = File::open(format!("/proc/{pid}/ns/net")).ok()?;
            (file.metadata().ok()?.ino() == inode).then_some(file)
        });
        let Some(namespace) = namespace else { return Ok(None) };
        let mut body = vec![0; HEADER];
        push_attribute(&mut body, NETNSA_FD, &namespace.as_raw_fd().to_ne_bytes());
        let what = "get the id of a network namespace";
        let answer = self.socket.call(what, libc::RTM_GETNSID, &body).await?;
        let id = answer.iter().find_map(|message| {
            let mut attributes = attributes(message.body.get(HEADER..)?);
            number(attributes.find(|(kind, _)| *kind == NETNSA_NSID)?.1).map(i32::from_ne_bytes)
        });
        // -1: no interface connects it with ours.
        Ok(id.filter(|id| *id >= 0))
    }
}

/// Reads files of /proc on a thread of their own: on a busy node that takes milliseconds.
async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetlinkError> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|why| NetlinkError::new("read /proc", io::Error::other(why)))
}

/// Drops the owners that are no longer there and, if a wanted one is then missing, lists the
/// processes of every namespace but ours.
fn survey(
    mut owners: HashMap<i32, NetnsOwner>,
    wanted: &HashSet<i32>,
    own_inode: u64,
) -> (HashMap<i32, NetnsOwner>, HashMap<u64, Vec<u32>>) {
    // Inodes, pids and ids are all used again, so a remembered owner counts only while its process
    // is still in the same namespace and in the same cgroup. Where only the node's processes were,
    // the container may have come since.
    owners.retain(|_, owner| {
        owner.identity.is_some()
            && netns_inode(owner.pid) == Some(owner.netns_inode)
            && cgroup_of(owner.pid).is_some_and(|(path, _)| path == *owner.cgroup_path)
    });
    let mut unknown: HashMap<u64, Vec<u32>> = HashMap::new();
    if wanted.iter().any(|nsid| !owners.contains_key(nsid)) {
        for pid in processes() {
            if let Some(inode) = netns_inode(pid).filter(|inode| *inode != own_inode) {
                let pids = unknown.entry(inode).or_default();
                if pids.len() < PIDS_PER_NETNS {
                    pids.push(pid);
                }
            }
        }
    }
    (owners, unknown)
}

/// The ids of all processes, lowest first.
fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// None for a process that is gone or that we may not look at.
fn netns_inode(pid: u32) -> Option<u64> {
    parse_netns_link(fs::read_link(format!("/proc/{pid}/ns/net")).ok()?.to_str()?)
}

/// `net:[4026531840]`
fn parse_netns_link(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn cgroup_of(pid: u32) -> Option<(String, Option<CgroupIdentity>)> {
    let content = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let (path, identity) = cgroup::parse_proc_cgroup(&content)?;
    Some((path.to_owned(), identity))
}

/// The owner that most of these processes agree on; of equals the one with the lowest process id.
/// Somebody else's process may have entered the namespace to look around.
fn owner_of(inode: u64, pids: &[u32]) -> Option<NetnsOwner> {
    let mut votes: Vec<(usize, NetnsOwner)> = Vec::new();
    for &pid in pids {
        // The process may have moved or ended since it was listed.
        let Some((path, identity)) = cgroup_of(pid) else { continue };
        if netns_inode(pid) != Some(inode) {
            continue;
        }
        let same = |owner: &NetnsOwner| match (&owner.identity, &identity) {
            (Some(one), Some(other)) => match (one.pod_uid, other.pod_uid) {
                (None, None) => one.container_id == other.container_id,
                (one, other) => one == other,
            },
            (None, None) => true,
            _ => false,
        };
        match votes.iter_mut().find(|(_, owner)| same(owner)) {
            Some((count, _)) => *count += 1,
            None => votes.push((
                1,
                NetnsOwner { netns_inode: inode, pid, identity, cgroup_path: path.into() },
            )),
        }
    }
    // `max_by_key` takes the last of equals.
    let best = votes.into_iter().rev();
    best.max_by_key(|(count, owner)| (owner.identity.is_some(), *count)).map(|(_, owner)| owner)
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        process,
        time::{Duration, Instant},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        k8s::cgroup_tree::CgroupTree,
        netlink::{
            links::Links,
            scratch::{Namespace, sh},
        },
    };

    const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";

    /// A container's cgroup in the kubepods layout, in the machine's own hierarchy.
    struct Cgroup {
        root: PathBuf,
        container: PathBuf,
    }

    impl Cgroup {
        fn new(test: &str, uid: &str, container: &str) -> Self {
            let mount = CgroupTree::open().unwrap().mount().mount_point.clone();
            let root = mount.join(format!("orb8-test-{test}-{}", process::id()));
            let container = root.join(format!("kubepods/burstable/pod{uid}/{container}"));
            fs::create_dir_all(&container).expect("making a cgroup takes root");
            Self { root, container }
        }

        fn enter(&self, pid: u32) {
            fs::write(self.container.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let start = Instant::now();
            // Killed processes leave their cgroup a moment later.
            for dir in
                self.container.ancestors().take_while(|dir| *dir != self.root.parent().unwrap())
            {
                while fs::remove_dir(dir).is_err() && start.elapsed() < Duration::from_secs(5) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    async fn nsid_behind(name: &str) -> i32 {
        let links = Links::open().unwrap().snapshot().await.unwrap();
        links.iter().find(|link| link.name == name).unwrap().peer_nsid.unwrap()
    }

    fn veth(name: &str, pod: &Namespace) {
        sh(&format!("ip link add {name} type veth peer name eth0 netns {}", pod.pid()));
    }

    #[test]
    fn the_container_behind_each_veth_is_found_by_its_cgroup() {
        let cgroup = Cgroup::new("behind", UID, &"7".repeat(64));
        let (node, pod, other) = (Namespace::new(), Namespace::new(), Namespace::new());
        cgroup.enter(pod.pid());
        node.run(async || {
            veth("pod0", &pod);
            veth("other0", &other);
            let (of_pod, of_other) = (nsid_behind("pod0").await, nsid_behind("other0").await);
            let mut resolver = NetnsResolver::open().unwrap();
            let found = resolver.resolve(&[of_pod, of_other, 4_242]).await.unwrap();
            assert_eq!(found.len(), 2);
            let owner = &found[&of_pod];
            let identity = owner.identity.unwrap();
            assert_eq!(identity.pod_uid.unwrap().to_string(), UID);
            assert_eq!(identity.container_id.unwrap().to_string(), "7".repeat(64));
            assert_eq!((owner.pid, Some(owner.netns_inode)), (pod.pid(), netns_inode(pod.pid())));
            assert!(owner.cgroup_path.ends_with(&"7".repeat(64)));
            assert_eq!(found[&of_other].pid, other.pid());
            assert_eq!(found[&of_other].identity, None);
            assert_eq!(
                resolver.resolve(&[of_other]).await.unwrap().len(),
                1,
                "only what was asked"
            );
        });
        drop((node, pod));
    }

    /// Starts a process in the namespace, in the test's own cgroup.
    fn visit(pod: &Namespace) -> process::Child {
        let visitor = process::Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", &format!("--net=/proc/{}/ns/net", pod.pid())])
            .args(["sleep", "60"])
            .spawn()
            .unwrap();
        let start = Instant::now();
        while netns_inode(visitor.id()) != netns_inode(pod.pid()) {
            assert!(start.elapsed() < Duration::from_secs(5), "nsenter");
        }
        visitor
    }

    #[test]
    fn a_container_that_comes_after_the_nodes_own_processes_is_found() {
        let cgroup = Cgroup::new("later", UID, &"7".repeat(64));
        let (node, pod) = (Namespace::new(), Namespace::new());
        let mut container = node.run(async || {
            veth("pod0", &pod);
            let nsid = nsid_behind("pod0").await;
            let mut resolver = NetnsResolver::open().unwrap();
            assert_eq!(resolver.resolve(&[nsid]).await.unwrap()[&nsid].identity, None);
            let container = visit(&pod);
            cgroup.enter(container.id());
            let owner = resolver.resolve(&[nsid]).await.unwrap().remove(&nsid).unwrap();
            assert_eq!((owner.pid, owner.identity.is_some()), (container.id(), true));
            container
        });
        container.kill().unwrap();
        container.wait().unwrap();
    }

    #[test]
    fn a_process_that_only_looks_around_does_not_take_over_the_namespace() {
        let (first, second) = ("1".repeat(64), "2".repeat(64));
        let cgroup = Cgroup::new("visitor", UID, &first);
        let guest = Cgroup::new("guest", &UID.replace('8', "9"), &second);
        let (node, pod) = (Namespace::new(), Namespace::new());
        cgroup.enter(pod.pid());
        // In the node's own cgroup, and in another pod's.
        let mut visitors = [visit(&pod), visit(&pod)];
        guest.enter(visitors[0].id());
        let owner = node.run(async || {
            veth("pod0", &pod);
            let nsid = nsid_behind("pod0").await;
            NetnsResolver::open().unwrap().resolve(&[nsid]).await.unwrap().remove(&nsid).unwrap()
        });
        for visitor in &mut visitors {
            visitor.kill().unwrap();
            visitor.wait().unwrap();
        }
        assert_eq!(owner.identity.unwrap().container_id.unwrap().to_string(), first);
        drop((node, pod));
    }

    #[test]
    fn an_owner_that_ended_is_forgotten_and_a_new_one_with_its_number_is_found() {
        let (node, pod) = (Namespace::new(), Namespace::new());
        node.run(async || {
            let mut resolver = NetnsResolver::open().unwrap();
            veth("pod0", &pod);
            let nsid = nsid_behind("pod0").await;
            assert_eq!(resolver.resolve(&[nsid]).await.unwrap()[&nsid].pid, pod.pid());
            drop(pod);
            let start = Instant::now();
            while !resolver.resolve(&[nsid]).await.unwrap().is_empty() {
                assert!(start.elapsed() < Duration::from_secs(10), "it is still remembered");
            }
            // The kernel gives the lowest free number, once the old namespace is gone.
            let start = Instant::now();
            let successor = loop {
                let successor = Namespace::new();
                veth("pod1", &successor);
                if nsid_behind("pod1").await == nsid {
                    break successor;
                }
                assert!(start.elapsed() < Duration::from_secs(10), "{nsid} is never used again");
                sh("ip link del pod1");
            };
            assert_eq!(resolver.resolve(&[nsid]).await.unwrap()[&nsid].pid, successor.pid());
        });
    }

    proptest! {
        #[test]
        fn arbitrary_links_never_panic(text in any::<String>(), inode: u64) {
            let _ = parse_netns_link(&text);
            prop_assert_eq!(parse_netns_link(&format!("net:[{inode}]")), Some(inode));
        }
    }
}
