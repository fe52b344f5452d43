//! Calls as the wire carries them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};

use orb8_common::syscall::{
    event_flags::{CUT, ENDED, UNBEGUN, UNREAD},
    text,
};
use orb8_proto::SyscallEvent;

use super::{errno, execs::Call, names};
use crate::{
    clock::WallClock,
    enricher::{Attribution, Identity},
};

/// Flags of an open that are bits of their own. Source: open(2); the C library knows the values, which
/// differ between architectures.
const OPEN_FLAGS: [(libc::c_int, &str); 14] = [
    (libc::O_CREAT, "O_CREAT"),
    (libc::O_EXCL, "O_EXCL"),
    (libc::O_NOCTTY, "O_NOCTTY"),
    (libc::O_TRUNC, "O_TRUNC"),
    (libc::O_APPEND, "O_APPEND"),
    (libc::O_NONBLOCK, "O_NONBLOCK"),
    (libc::O_DSYNC, "O_DSYNC"),
    (libc::O_ASYNC, "O_ASYNC"),
    (libc::O_DIRECT, "O_DIRECT"),
    (libc::O_DIRECTORY, "O_DIRECTORY"),
    (libc::O_NOFOLLOW, "O_NOFOLLOW"),
    (libc::O_NOATIME, "O_NOATIME"),
    (libc::O_CLOEXEC, "O_CLOEXEC"),
    (libc::O_PATH, "O_PATH"),
];

/// The record of a call by `attribution`.
pub(super) fn event(
    call: &Call,
    attribution: &Attribution,
    node: &str,
    wall: &WallClock,
) -> SyscallEvent {
    let head = &call.head;
    let identity = attribution.identity.as_deref();
    let of = |of: fn(&Identity) -> &str| identity.map_or("", of).to_owned();
    let syscall = names::name(head.number);
    let mut event = SyscallEvent {
        namespace: of(|i| &i.namespace),
        pod_name: of(|i| &i.pod_name),
        container: of(|i| &i.container),
        container_id: of(|i| &i.container_id),
        pod_uid: of(|i| &i.pod_uid),
        workload: of(|i| i.workload.as_deref().unwrap_or_default()),
        unit: of(|i| &i.unit),
        node: node.into(),
        attributed_by: orb8_proto::AttributedBy::from(attribution.by).into(),
        timestamp_ns: wall.unix_ns(head.timestamp_ns),
        pid: head.pid,
        tid: head.tid,
        comm: first_text(&head.comm),
        syscall: syscall.into(),
        number: head.number,
        weight: head.weight.into(),
        flags: open_flags(syscall, &head.args),
        arguments: head.args.to_vec(),
        cut: head.flags & CUT != 0,
        unread: head.flags & UNREAD != 0,
        ..SyscallEvent::default()
    };
    if head.flags & ENDED != 0 {
        event.result = Some(head.result);
        event.duration_ns = (head.flags & UNBEGUN == 0).then_some(head.duration_ns);
        event.error = u32::try_from(-head.result).map(errno::name).unwrap_or_default();
    }
    match head.text {
        text::PATH => event.path = first_text(&call.text),
        text::PROGRAM => {
            let mut texts = texts(&call.text);
            event.path = texts.next().unwrap_or_default();
            event.args = texts.collect();
        }
        text::ADDRESS => event.address = address(&call.text),
        _ => {}
    }
    event
}

fn first_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Texts that end with a zero byte each; the last one may have lost its.
fn texts(bytes: &[u8]) -> impl Iterator<Item = String> {
    let whole = (!bytes.is_empty()).then(|| bytes.strip_suffix(&[0]).unwrap_or(bytes));
    let texts = whole.into_iter().flat_map(|bytes| bytes.split(|byte| *byte == 0));
    texts.map(|text| String::from_utf8_lossy(text).into_owned())
}

fn open_flags(syscall: &str, args: &[u64; 6]) -> Vec<String> {
    let flags = match syscall {
        "open" => args[1],
        "openat" => args[2],
        _ => return Vec::new(),
    };
    #[expect(clippy::cast_possible_truncation, reason = "the kernel takes an int")]
    let flags = flags as libc::c_int;
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => "O_RDONLY",
        libc::O_WRONLY => "O_WRONLY",
        libc::O_RDWR => "O_RDWR",
        _ => "O_ACCMODE",
    };
    let set = OPEN_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name);
    std::iter::once(access).chain(set).map(String::from).collect()
}

/// A `struct sockaddr` for people. Source: ip(7), ipv6(7), unix(7).
fn address(bytes: &[u8]) -> String {
    let Some((family, rest)) = bytes.split_first_chunk::<2>() else { return String::new() };
    let family = u16::from_ne_bytes(*family);
    let port = |rest: &[u8]| rest.first_chunk::<2>().map(|port| u16::from_be_bytes(*port));
    match i32::from(family) {
        libc::AF_UNSPEC => "unspecified".into(),
        libc::AF_UNIX => match rest.split_first() {
            None => "unix:".into(),
            Some((0, name)) => {
                let name = String::from_utf8_lossy(name);
                format!("unix:@{}", name.trim_end_matches('\0'))
            }
            Some(_) => format!("unix:{}", first_text(rest)),
        },
        libc::AF_INET => {
            let ip = rest.get(2..).and_then(<[u8]>::first_chunk::<4>);
            match (port(rest), ip) {
                (Some(port), Some(ip)) => format!("{}:{port}", Ipv4Addr::from(*ip)),
                _ => "inet".into(),
            }
        }
        libc::AF_INET6 => {
            let ip = rest.get(6..).and_then(<[u8]>::first_chunk::<16>);
            let scope = rest.get(22..).and_then(<[u8]>::first_chunk::<4>);
            let scope = scope.map_or(0, |scope| u32::from_ne_bytes(*scope));
            match (port(rest), ip) {
                (Some(port), Some(ip)) => {
                    SocketAddrV6::new(Ipv6Addr::from(*ip), port, 0, scope).to_string()
                }
                _ => "inet6".into(),
            }
        }
        libc::AF_NETLINK => "netlink".into(),
        libc::AF_PACKET => "packet".into(),
        libc::AF_VSOCK => "vsock".into(),
        other => format!("family-{other}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sockaddr(family: i32, rest: &[u8]) -> Vec<u8> {
        let family = u16::try_from(family).unwrap().to_ne_bytes();
        [&family[..], rest].concat()
    }

    #[test]
    fn addresses_are_written_as_people_write_them() {
        let v4 = sockaddr(libc::AF_INET, &[1, 187, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(address(&v4), "10.0.0.1:443");
        let mut v6 = vec![0, 80, 0, 0, 0, 0];
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend([0; 4]);
        assert_eq!(address(&sockaddr(libc::AF_INET6, &v6)), "[::1]:80");
        assert_eq!(address(&sockaddr(libc::AF_UNIX, b"/run/x.sock\0rest")), "unix:/run/x.sock");
        assert_eq!(address(&sockaddr(libc::AF_UNIX, b"\0bus")), "unix:@bus");
        assert_eq!(address(&sockaddr(libc::AF_UNIX, b"")), "unix:");
        assert_eq!(address(&sockaddr(99, b"")), "family-99");
        assert_eq!(address(&[1]), "");
    }

    #[test]
    fn a_program_is_its_path_and_its_arguments_however_they_end() {
        let all = |bytes: &[u8]| texts(bytes).collect::<Vec<_>>();
        assert_eq!(all(b"/bin/sh\0sh\0-c\0\0"), ["/bin/sh", "sh", "-c", ""]);
        assert_eq!(all(b"/bin/sh\0cut of"), ["/bin/sh", "cut of"]);
        assert_eq!(all(b"\0"), [""]);
        assert!(all(b"").is_empty());
    }

    #[test]
    fn the_flags_of_an_open_have_their_names() {
        let flags = u64::try_from(libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC).unwrap();
        let names = ["O_WRONLY", "O_CREAT", "O_TRUNC"];
        assert_eq!(open_flags("openat", &[0, 0, flags, 0, 0, 0]), names);
        assert_eq!(open_flags("open", &[0, flags, 0, 0, 0, 0]), names);
        assert!(open_flags("read", &[0, flags, 0, 0, 0, 0]).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_address(bytes in prop::collection::vec(any::<u8>(), 0..200), family in 0_u8..50) {
            let _ = address(&bytes);
            let _ = address(&sockaddr(family.into(), &bytes));
            let _ = texts(&bytes).count();
        }
    }
}
