//! What strangers can do to a port.

use std::{
    fs,
    time::{Duration, Instant},
};

use orb8_transport::{ClientAuth, Limits, Refused};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    pki::{Authority, Files, client},
    served::{DEADLINE, Served, until, watch},
};

fn many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

/// The beginning of a TLS handshake, as a real client sends it.
fn client_hello(authority: &Authority) -> Vec<u8> {
    let files = Files::new();
    let path = files.write("ca.crt", &authority.pem());
    let mut roots = rustls::RootCertStore::empty();
    let pem = fs::read(path).unwrap();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn a_thousand_handshakes_that_never_end_do_not_keep_a_good_client_out() {
    many_descriptors();
    let ca = Authority::new("ca");
    let files = Files::new();
    let tls = files.server(&ca.issue("localhost"), Some((&ca, ClientAuth::Required)));
    // So long that nothing below is owed to handshakes that ran out of time.
    let limits =
        Limits { handshakes: 64, handshake_time: Duration::from_secs(600), ..Limits::default() };
    let served = Served::start(Some(tls), limits).await;
    let hello = client_hello(&ca);
    let mut strangers = Vec::new();
    for number in 0..1000 {
        let mut tcp = TcpStream::connect(served.address).await.unwrap();
        // Silent, cut short in the middle, or silent after a whole first message.
        let sent = &hello[..[0, hello.len() / 2, hello.len()][number % 3]];
        tcp.write_all(sent).await.unwrap();
        strangers.push(tcp);
    }
    let good = client(&ca, Some(&ca.issue("node-1")));
    served.ask(Some(good)).await.unwrap();
    until("the oldest are displaced", async || served.refused(Refused::Displaced) >= 900).await;
    drop(strangers);
    served.end().await;
}

#[tokio::test]
async fn clients_that_say_nothing_are_sent_away() {
    let limits = Limits { handshake_time: Duration::from_millis(200), ..Limits::default() };
    let ca = Authority::new("ca");
    let tls = Files::new().server(&ca.issue("localhost"), None);
    for (tls, begin) in [(None, &b"PRI * HTTP/2.0"[..]), (None, b""), (Some(tls), &[22, 3, 1])] {
        let served = Served::start(tls, limits).await;
        let mut tcp = TcpStream::connect(served.address).await.unwrap();
        tcp.write_all(begin).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut rest)).await;
        let _how = closed.expect("the connection is closed");
        until("counted", async || served.refused(Refused::TooSlow) == 1).await;
        served.end().await;
    }
}

#[tokio::test]
async fn one_connection_too_many_is_refused_until_another_ends() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let served = Served::start(None, limits).await;
    let first = watch(served.connect(None).await.unwrap()).await;
    let second = watch(served.connect(None).await.unwrap()).await;
    assert!(served.ask(None).await.is_err());
    until("counted", async || served.refused(Refused::TooMany) >= 1).await;
    drop(first);
    until("there is room again", async || served.ask(None).await.is_ok()).await;
    drop(second);
    served.end().await;
}

#[tokio::test]
async fn a_client_that_holds_its_stream_is_cut_off_at_the_end() {
    let served = Served::start(None, Limits::default()).await;
    let stream = watch(served.connect(None).await.unwrap()).await;
    // Within the grace that the server gives, not at the keepalive's or the client's pleasure.
    served.end().await;
    drop(stream);
}

fn memory_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Bytes that get some way in: noise, and the beginnings of real ones with noise in and after them.
fn noise(hello: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let begun = prop_oneof![Just(hello), Just(preface), Just(b"GET / HTTP/1.1\r\n".to_vec())];
    let rest = || proptest::collection::vec(any::<u8>(), 0..2000);
    let damaged = (begun, any::<prop::sample::Index>(), any::<u8>(), rest()).prop_map(
        |(mut bytes, at, byte, rest)| {
            let at = at.index(bytes.len());
            if rest.len() % 2 == 0 {
                bytes[at] = byte;
            }
            bytes.extend(rest);
            bytes
        },
    );
    prop_oneof![rest(), damaged]
}

/// Sends, reads what comes for a moment, and leaves.
async fn annoy(address: std::net::SocketAddr, bytes: Vec<u8>) {
    let Ok(mut tcp) = TcpStream::connect(address).await else { return };
    let _refused = tcp.write_all(&bytes).await;
    let mut answer = [0; 1024];
    let _none = tokio::time::timeout(Duration::from_millis(5), tcp.read(&mut answer)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_either_kind_of_port_breaks_nothing_and_leaves_nothing() {
    many_descriptors();
    let ca = Authority::new("ca");
    let files = Files::new();
    let tls = files.server(&ca.issue("localhost"), Some((&ca, ClientAuth::Required)));
    let limits = Limits::default();
    let encrypted = Served::start(Some(tls), limits).await;
    let plain = Served::start(None, limits).await;
    let good = client(&ca, Some(&ca.issue("node-1")));
    encrypted.ask(Some(good.clone())).await.unwrap();
    plain.ask(None).await.unwrap();

    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let noise = noise(client_hello(&ca));
    let seconds = std::env::var("ORB8_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    let annoyed = async |seconds: u64, runner: &mut TestRunner| {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut sent = 0_u64;
        while Instant::now() < end {
            let crowd: Vec<_> = (0..32)
                .map(|number| {
                    let bytes = noise.new_tree(runner).unwrap().current();
                    let to = if number % 2 == 0 { encrypted.address } else { plain.address };
                    tokio::spawn(annoy(to, bytes))
                })
                .collect();
            for one in crowd {
                one.await.unwrap();
            }
            sent += 32;
        }
        sent
    };
    // What allocators and pools keep after a first round is not growth.
    annoyed(seconds / 2, &mut runner).await;
    let before = memory_kib();
    let sent = annoyed(seconds.div_ceil(2), &mut runner).await;
    let after = memory_kib();
    assert!(sent >= 200, "{sent} connections are no test");
    assert!(after < before + 32 * 1024, "{before} KiB grew to {after} KiB over {sent} connections");
    encrypted.ask(Some(good)).await.unwrap();
    plain.ask(None).await.unwrap();
    let refused = encrypted.port.refused();
    assert!(refused.len() >= 2, "the noise reached the handshake: {refused:?}");
    for served in [&encrypted, &plain] {
        until("all but the good client's are closed", async || served.port.open() <= 1).await;
    }
    encrypted.end().await;
    plain.end().await;
}
