//! What a killed run left on an interface's clsact hooks. TCX links need no such care: they end
//! with the process.

use std::{fs, io};

use super::{Message, NetlinkError, RouteSocket, attributes, number, push_attribute, text};

/// A BPF filter of orb8's on a clsact hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The interface.
    pub ifindex: u32,
    /// The hook: [`INGRESS`] or [`EGRESS`].
    pub parent: u32,
    /// The filter chain; 0 unless somebody set another.
    pub chain: u32,
    /// Its place among the filters of the hook.
    pub priority: u16,
    /// The EtherType it sees, in network byte order as the kernel keeps it.
    pub protocol: u16,
    /// Its number among those of the same priority.
    pub handle: u32,
    /// The program's name.
    pub name: String,
    /// The program's id, where the kernel tells.
    pub prog_id: Option<u32>,
}

/// The ingress hook of clsact (`ffff:fff2`).
pub const INGRESS: u32 = 0xffff_fff2;
/// The egress hook of clsact (`ffff:fff3`).
pub const EGRESS: u32 = 0xffff_fff3;

/// What clsact itself hangs from (`ffff:fff1`), and its handle.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// struct tcmsg: family, padding, interface (i32), handle, parent, info (u32 each).
const HEADER: usize = 20;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// How orb8's programs are named.
const NAMES: [&str; 2] = ["orb8_ingress", "orb8_egress"];

/// Finds and removes leftovers in one network namespace.
pub struct Leftovers {
    socket: RouteSocket,
}

impl Leftovers {
    /// Works in the network namespace of the calling thread, for ever. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = RouteSocket::open(0)
            .map_err(|why| NetlinkError::new("open a socket for tc filters", why))?;
        Ok(Self { socket })
    }

    /// orb8's filters on both hooks of an interface. None where there is no clsact.
    pub async fn orb8_filters(&mut self, ifindex: u32) -> Result<Vec<Filter>, NetlinkError> {
        let mut found = Vec::new();
        for parent in [INGRESS, EGRESS] {
            let answer = self.filters(ifindex, parent).await?;
            found.extend(answer.iter().filter_map(|message| Filter::parse(&message.body)));
        }
        Ok(found)
    }

    /// Removes a filter. One that is no longer there is not an error.
    pub async fn remove(&mut self, filter: &Filter) -> Result<(), NetlinkError> {
        let info = u32::from(filter.priority) << 16 | u32::from(filter.protocol);
        let mut body = header(filter.ifindex, filter.handle, filter.parent, info);
        push_attribute(&mut body, libc::TCA_KIND, b"bpf\0");
        push_attribute(&mut body, TCA_CHAIN, &filter.chain.to_ne_bytes());
        let what = format!("remove filter {} from interface {}", filter.name, filter.ifindex);
        match self.socket.call(&what, libc::RTM_DELTFILTER, &body).await {
            Ok(_) => Ok(()),
            // The kernel refuses in several ways what is not there; only the list is clear.
            Err(why) if self.orb8_filters(filter.ifindex).await?.contains(filter) => Err(why),
            Err(_) => Ok(()),
        }
    }

    /// Removes an interface's clsact, unless there is none or somebody's filter hangs from it. Says
    /// whether it was removed.
    pub async fn remove_clsact_if_empty(&mut self, ifindex: u32) -> Result<bool, NetlinkError> {
        for parent in [INGRESS, EGRESS] {
            if !self.filters(ifindex, parent).await?.is_empty() {
                return Ok(false);
            }
        }
        // An ingress qdisc would answer to the same handle.
        let what = format!("list the qdiscs of interface {ifindex}");
        let body = header(ifindex, 0, 0, 0);
        let qdiscs = self.socket.dump(&what, libc::RTM_GETQDISC, &body).await?;
        let is_ours = |message: &Message| {
            interface_of(&message.body) == Some(ifindex)
                && kind_of(&message.body).as_deref() == Some("clsact")
        };
        if !qdiscs.iter().any(is_ours) {
            return Ok(false);
        }
        let mut body = header(ifindex, CLSACT_HANDLE, CLSACT, 0);
        push_attribute(&mut body, libc::TCA_KIND, b"clsact\0");
        let what = format!("remove clsact from interface {ifindex}");
        match self.socket.call(&what, libc::RTM_DELQDISC, &body).await {
            Ok(_) => Ok(true),
            Err(why) if gone(&why) => Ok(false),
            Err(why) => Err(why),
        }
    }

    async fn filters(&mut self, ifindex: u32, parent: u32) -> Result<Vec<Message>, NetlinkError> {
        let what = format!("list the filters of interface {ifindex}");
        let body = header(ifindex, 0, parent, 0);
        match self.socket.dump(&what, libc::RTM_GETTFILTER, &body).await {
            Err(why) if gone(&why) => Ok(Vec::new()),
            answer => answer,
        }
    }
}

/// The interface, the qdisc or the filter is not there.
fn gone(why: &NetlinkError) -> bool {
    matches!(why.io().raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

fn header(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, ifindex, handle, parent, info].iter().flat_map(|field| field.to_ne_bytes()).collect()
}

fn field(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..).and_then(number).map(u32::from_ne_bytes)
}

fn interface_of(body: &[u8]) -> Option<u32> {
    field(body, 4)
}

fn kind_of(body: &[u8]) -> Option<String> {
    let kind = attributes(body.get(HEADER..)?).find(|(kind, _)| *kind == libc::TCA_KIND)?;
    Some(text(kind.1))
}

impl Filter {
    /// Reads RTM_NEWTFILTER. None for what is not orb8's, and for the heading that the kernel puts
    /// before the filters of one priority.
    fn parse(body: &[u8]) -> Option<Self> {
        if kind_of(body)? != "bpf" {
            return None;
        }
        let info = field(body, 16)?;
        let mut filter = Self {
            ifindex: interface_of(body)?,
            handle: field(body, 8)?,
            parent: field(body, 12)?,
            chain: 0,
            priority: u16::try_from(info >> 16).ok()?,
            protocol: u16::try_from(info & 0xffff).ok()?,
            name: String::new(),
            prog_id: None,
        };
        for (kind, value) in attributes(body.get(HEADER..)?) {
            match kind {
                TCA_CHAIN => filter.chain = u32::from_ne_bytes(number(value)?),
                libc::TCA_OPTIONS => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            TCA_BPF_NAME => filter.name = text(value),
                            TCA_BPF_ID => filter.prog_id = number(value).map(u32::from_ne_bytes),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        NAMES.iter().any(|name| filter.name.starts_with(name)).then_some(filter)
    }
}

/// Whether any process has this BPF program open: then it is not a leftover but another orb8 at work.
/// Reads the descriptors of every process, so ask only about a filter that was found.
pub async fn program_held_by_a_process(prog_id: u32) -> io::Result<bool> {
    tokio::task::spawn_blocking(move || held(prog_id)).await.map_err(io::Error::other)?
}

fn held(prog_id: u32) -> io::Result<bool> {
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let is_process =
            process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if !is_process {
            continue;
        }
        // Processes and descriptors come and go under the walk.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let is_bpf = fs::read_link(descriptor.path())
                .is_ok_and(|target| target.to_string_lossy().contains("bpf"));
            let info = || process.path().join("fdinfo").join(descriptor.file_name());
            if is_bpf && fs::read_to_string(info()).is_ok_and(|info| names_program(&info, prog_id))
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether the fdinfo of a program or of a link says `prog_id:<tab><id>`.
fn names_program(fdinfo: &str, prog_id: u32) -> bool {
    fdinfo
        .lines()
        .filter_map(|line| line.strip_prefix("prog_id:"))
        .any(|id| id.trim().parse() == Ok(prog_id))
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;

    use aya::{
        EbpfLoader,
        programs::{
            SchedClassifier, TcAttachType,
            tc::{NlOptions, TcAttachOptions},
        },
    };
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::{
        links::Links,
        scratch::{Namespace, sh},
    };

    async fn with_veth() -> (Leftovers, u32) {
        sh("ip link add d0 type veth peer name d1; ip link set d0 up");
        let links = Links::open().unwrap().snapshot().await.unwrap();
        let index = links.iter().find(|link| link.name == "d0").unwrap().index;
        (Leftovers::open().unwrap(), index)
    }

    #[test]
    fn filters_of_others_are_not_touched_and_keep_clsact() {
        Namespace::new().run(async || {
            let (mut leftovers, index) = with_veth().await;
            assert_eq!(leftovers.orb8_filters(index).await.unwrap(), []);
            assert!(!leftovers.remove_clsact_if_empty(index).await.unwrap(), "there is none");
            sh("tc qdisc add dev d0 clsact; \
                tc filter add dev d0 egress prio 5 protocol ip u32 match u32 0 0 classid 1:1; \
                tc filter add dev d0 ingress prio 7 bpf bytecode '1,6 0 0 0,' classid 1:1");
            let before = sh("tc filter show dev d0 egress; tc filter show dev d0 ingress");
            assert_eq!(leftovers.orb8_filters(index).await.unwrap(), []);
            assert!(!leftovers.remove_clsact_if_empty(index).await.unwrap());
            sh("tc filter del dev d0 egress");
            assert!(!leftovers.remove_clsact_if_empty(index).await.unwrap(), "ingress is in use");
            assert!(before.contains("u32") && before.contains("bytecode"));
            assert!(sh("tc filter show dev d0 ingress").contains("bytecode"));
            sh("tc filter del dev d0 ingress");
            assert!(leftovers.remove_clsact_if_empty(index).await.unwrap());
            assert!(!sh("tc qdisc show dev d0").contains("clsact"));
            sh("tc qdisc add dev d0 ingress");
            assert!(!leftovers.remove_clsact_if_empty(index).await.unwrap());
            assert!(sh("tc qdisc show dev d0").contains("ingress"));
        });
    }

    #[test]
    fn what_a_killed_run_left_is_found_told_from_a_live_one_and_removed() {
        let object = match orb8_probes::NETWORK_PROBE {
            Ok(object) => object,
            Err(missing) => return eprintln!("not tested: {missing}"),
        };
        Namespace::new().run(async || {
            let (mut leftovers, index) = with_veth().await;
            sh("tc qdisc add dev d0 clsact; \
                tc filter add dev d0 ingress prio 7 bpf bytecode '1,6 0 0 0,' classid 1:1");
            let mut ebpf = EbpfLoader::new().load(object).unwrap();
            let mut prog_ids = Vec::new();
            for (name, hook) in
                [("orb8_ingress", TcAttachType::Ingress), ("orb8_egress", TcAttachType::Egress)]
            {
                let program: &mut SchedClassifier =
                    ebpf.program_mut(name).unwrap().try_into().unwrap();
                program.load().unwrap();
                prog_ids.push(program.info().unwrap().id());
                let options = TcAttachOptions::Netlink(NlOptions::default());
                let link = program.attach_with_options("d0", hook, options).unwrap();
                // As when the process is killed: nobody detaches it.
                let _ = ManuallyDrop::new(program.take_link(link).unwrap());
            }
            let found = leftovers.orb8_filters(index).await.unwrap();
            let summary: Vec<_> = found
                .iter()
                .map(|filter| (filter.parent, filter.name.as_str(), filter.prog_id))
                .collect();
            let expected = [
                (INGRESS, "orb8_ingress", Some(prog_ids[0])),
                (EGRESS, "orb8_egress", Some(prog_ids[1])),
            ];
            assert_eq!(summary, expected);
            assert!(program_held_by_a_process(prog_ids[0]).await.unwrap());
            drop(ebpf);
            for (filter, prog_id) in found.iter().zip(prog_ids) {
                assert!(!program_held_by_a_process(prog_id).await.unwrap());
                leftovers.remove(filter).await.unwrap();
                leftovers.remove(filter).await.expect("removing it again is no error");
            }
            assert_eq!(leftovers.orb8_filters(index).await.unwrap(), []);
            assert!(!leftovers.remove_clsact_if_empty(index).await.unwrap());
            assert!(sh("tc filter show dev d0 ingress").contains("bytecode"));
            sh("tc filter del dev d0 ingress");
            assert!(leftovers.remove_clsact_if_empty(index).await.unwrap());
        });
    }

    #[test]
    fn an_interface_that_is_gone_has_no_leftovers() {
        Namespace::new().run(async || {
            let mut leftovers = Leftovers::open().unwrap();
            assert_eq!(leftovers.orb8_filters(4_242).await.unwrap(), []);
            assert!(!leftovers.remove_clsact_if_empty(4_242).await.unwrap());
        });
    }

    #[test]
    fn a_program_is_held_where_fdinfo_names_it() {
        let info = "pos:\t0\nflags:\t02000002\nprog_type:\t3\nprog_id:\t117\nrun_cnt:\t0\n";
        assert!(names_program(info, 117));
        assert!(!names_program(info, 11) && !names_program("map_id:\t117\n", 117));
    }

    #[tokio::test]
    async fn nobody_holds_a_program_that_does_not_exist() {
        assert!(!program_held_by_a_process(u32::MAX).await.unwrap());
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(body in prop::collection::vec(any::<u8>(), 0..200), text: String) {
            let _ = Filter::parse(&body);
            let mut named = header(1, 2, INGRESS, 3);
            push_attribute(&mut named, libc::TCA_KIND, b"bpf\0");
            push_attribute(&mut named, libc::TCA_OPTIONS, &body);
            let _ = Filter::parse(&named);
            let _ = names_program(&text, 1);
        }
    }
}
