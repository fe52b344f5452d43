//! What users write, and what they are told about it.

use std::{fs, path::Path};

use super::{values::ring_buffer_size, *};

fn errors(raw: RawConfig) -> String {
    raw.resolve().unwrap_err().to_string()
}

#[test]
fn every_problem_is_told_at_once_and_names_its_input() {
    let said = errors(RawConfig {
        listen: Some("everywhere".into()),
        ring_buffer_size: Some("1000000".into()),
        flow_table_size: Some("0".into()),
        tc_attach: Some("xdp".into()),
        tracepoints: Some("kprobe".into()),
        runtime: Some("containerd".into()),
        interfaces: vec!["a name that is far too long".into()],
        ..RawConfig::default()
    });
    let inputs = [
        "\"everywhere\"",
        "\"1000000\"",
        "\"0\"",
        "\"xdp\"",
        "\"kprobe\"",
        "\"containerd\"",
        "far too long",
    ];
    for input in inputs {
        assert!(said.contains(input), "{input} is missing from {said}");
    }
    assert_eq!(said.lines().count(), inputs.len());
}

#[test]
fn a_ring_is_a_power_of_two_of_whole_pages_up_to_32_mib() {
    for bad in ["", "0", "2048", "3000000", "67108864", "-1", "1MiB", "99999999999999"] {
        assert!(ring_buffer_size(bad).is_err(), "{bad}");
    }
    let page = rustix::param::page_size();
    assert_eq!(ring_buffer_size(&page.to_string()), Ok(u32::try_from(page).unwrap()));
    assert_eq!(ring_buffer_size("33554432"), Ok(32 << 20));
}

#[test]
fn plain_text_beyond_loopback_must_be_asked_for() {
    let raw = |insecure| RawConfig {
        listen: Some("0.0.0.0:9090".into()),
        insecure,
        ..RawConfig::default()
    };
    assert!(errors(raw(false)).contains("--insecure"));
    assert_eq!(raw(true).resolve().unwrap().listen, Some(([0, 0, 0, 0], 9090).into()));
}

#[test]
fn tls_opens_the_grpc_port_beyond_loopback_and_metrics_are_open_anyway() {
    let raw = |metrics_listen: Option<&str>| RawConfig {
        listen: Some("0.0.0.0:9090".into()),
        metrics_listen: metrics_listen.map(Into::into),
        tls_cert: Some("/tls.crt".into()),
        tls_key: Some("/tls.key".into()),
        ..RawConfig::default()
    };
    let config = raw(None).resolve().unwrap();
    assert_eq!(config.listen, Some(([0, 0, 0, 0], 9090).into()));
    assert_eq!(config.tls.unwrap().certificate, Path::new("/tls.crt"));
    let config = raw(Some("0.0.0.0:9091")).resolve().unwrap();
    assert_eq!(config.metrics_listen, Some(([0, 0, 0, 0], 9091).into()));
    let half = RawConfig { tls_key: None, ..raw(None) };
    assert!(errors(half).contains("--tls-key is missing"));
}

#[test]
fn a_flag_beats_the_file_and_an_unknown_key_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orb8.yaml");
    fs::write(&path, "node_name: from-file\nflow_table_size: \"1024\"\n").unwrap();
    let raw = RawConfig {
        file: Some(path.clone()),
        node_name: Some("from-flag".into()),
        ..RawConfig::default()
    };
    let config = raw.clone().resolve().unwrap();
    assert_eq!((&*config.node_name, config.flow_table_size), ("from-flag", 1024));
    fs::write(&path, "node_nam: typo\n").unwrap();
    assert!(errors(raw).contains("node_nam"));
}

#[test]
fn names_come_from_one_source() {
    let source = |kubernetes: Option<&str>, pods: bool, kubeconfig: bool, as_pod| {
        let raw = RawConfig {
            kubernetes: kubernetes.map(Into::into),
            pods: pods.then(|| "pods.json".into()),
            kubeconfig: kubeconfig.then(|| "/etc/passwd".into()),
            ..RawConfig::default()
        };
        let mut problems = Vec::new();
        let source = raw.kubernetes_source(as_pod, &mut problems);
        if problems.is_empty() { Ok(source) } else { Err(problems.concat()) }
    };
    let in_cluster = Ok(Some(KubernetesSource::InCluster));
    let file = Ok(Some(KubernetesSource::Kubeconfig(Some("/etc/passwd".into()))));
    assert_eq!(source(None, false, false, false), Ok(None));
    assert_eq!(source(None, false, false, true), in_cluster);
    assert_eq!(source(Some("auto"), true, false, true), Ok(None));
    assert_eq!(source(None, false, true, true), file);
    assert_eq!(source(Some("off"), false, true, true), Ok(None));
    assert_eq!(source(Some("on"), false, false, true), in_cluster);
    let home = Ok(Some(KubernetesSource::Kubeconfig(None)));
    assert_eq!(source(Some("on"), false, false, false), home);
    assert!(source(Some("on"), true, false, false).unwrap_err().contains("one source"));
    assert!(source(Some("yes"), false, false, false).unwrap_err().contains("auto, on or off"));
    let raw = RawConfig { kubeconfig: Some("/no/such".into()), ..RawConfig::default() };
    assert!(errors(raw).contains("/no/such"));
}

#[test]
fn peers_of_the_cluster_take_an_api_and_have_to_be_asked_for() {
    let raw = |peers: Option<&str>, kubernetes: &str| RawConfig {
        peers: peers.map(Into::into),
        kubernetes: Some(kubernetes.into()),
        ..RawConfig::default()
    };
    let scope = |peers, kubernetes| raw(peers, kubernetes).resolve().unwrap().peers;
    assert_eq!(scope(None, "on"), PeerScope::Node);
    assert_eq!(scope(Some("node"), "off"), PeerScope::Node);
    assert_eq!(scope(Some("cluster"), "on"), PeerScope::Cluster);
    assert!(errors(raw(Some("cluster"), "off")).contains("--kubernetes on"));
    assert!(errors(raw(Some("all"), "on")).contains("\"all\" is unknown"));
}

#[test]
fn an_interface_pattern_matches_by_name_or_by_its_beginning() {
    let config =
        RawConfig { interfaces: vec!["eth0".into(), "veth*".into()], ..RawConfig::default() }
            .resolve()
            .unwrap();
    assert!(config.names_interface("eth0") && config.names_interface("veth12"));
    assert!(!config.names_interface("eth01") && !config.names_interface("lo"));
}
