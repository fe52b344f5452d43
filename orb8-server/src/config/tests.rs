//! What users write, and what they are told about it.

use orb8_transport::ClientAuth;

use super::*;

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let raw = RawConfig {
        listen: Some("0.0.0.0:8080".into()),
        metrics_listen: Some("nowhere".into()),
        agents: Some("a b".into()),
        query_timeout: Some("1h".into()),
        max_rows: Some("0".into()),
        kubernetes: Some("perhaps".into()),
        kubeconfig: Some("/no/such/file".into()),
        ..RawConfig::default()
    };
    let error = raw.resolve().unwrap_err().to_string();
    for part in [
        "listen: 0.0.0.0:8080 is not a loopback address",
        "metrics-listen: \"nowhere\"",
        "agents: \"a b\"",
        "query-timeout: \"1h\"",
        "max-rows: \"0\"",
        "kubernetes: \"perhaps\" is unknown; expected auto, on or off",
        "kubeconfig: no file /no/such/file",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(error.lines().count(), 7);
    let error = RawConfig::default().resolve().unwrap_err().to_string();
    assert!(error.starts_with("agents: not said where they are"), "{error}");
}

fn raw(change: impl FnOnce(&mut RawConfig)) -> RawConfig {
    let mut raw = RawConfig { agents: Some("127.0.0.1:9090".into()), ..RawConfig::default() };
    change(&mut raw);
    raw
}

fn said(raw: RawConfig) -> String {
    raw.resolve().unwrap_err().to_string()
}

fn encrypted(raw: &mut RawConfig) {
    raw.listen = Some("0.0.0.0:8080".into());
    raw.tls_cert = Some("/tls.crt".into());
    raw.tls_key = Some("/tls.key".into());
}

#[test]
fn who_decides_is_safe_by_default_and_has_to_be_said_where_it_is_not() {
    let authority = |raw: RawConfig| raw.resolve().unwrap().authority;
    assert_eq!(authority(raw(|_| ())), Authority::Nobody);
    let said_of_all = "whoever reaches 0.0.0.0:8080 would see every pod";
    for auth in [None, Some("none".to_owned())] {
        let open = raw(|raw| {
            encrypted(raw);
            raw.auth = auth.clone();
        });
        assert!(said(open.clone()).contains(said_of_all));
        assert_eq!(authority(RawConfig { insecure: true, ..open.clone() }), Authority::Nobody);
        let with_ca = RawConfig { tls_client_ca: Some("/ca.crt".into()), ..open };
        let expected = if auth.is_some() { Authority::Nobody } else { Authority::Certificates };
        let config = with_ca.resolve().unwrap();
        assert_eq!(config.authority, expected);
        assert_eq!(config.tls.unwrap().client_auth, ClientAuth::Required);
    }
    let kubernetes = raw(|raw| {
        encrypted(raw);
        raw.auth = Some("kubernetes".into());
        raw.tls_client_ca = Some("/ca.crt".into());
    });
    let config = kubernetes.resolve().unwrap();
    assert_eq!(config.authority, Authority::Kubernetes);
    assert_eq!(config.tls.unwrap().client_auth, ClientAuth::Optional);
    assert!(said(raw(|raw| raw.auth = Some("certificates".into()))).contains("--tls-client-ca"));
    let unknown = said(raw(|raw| raw.auth = Some("ldap".into())));
    assert_eq!(unknown, "auth: \"ldap\" is unknown; expected none, certificates or kubernetes");
}

#[test]
fn agents_elsewhere_are_asked_by_tls_or_by_name_in_plain_text() {
    let here = raw(|raw| raw.agents = Some("127.0.0.1:1,[::1]:2,localhost:3".into()));
    assert_eq!(here.resolve().unwrap().agent_tls, None);
    for agents in ["10.0.0.1:9090", "127.0.0.1:1,node-2", "dns:orb8-agent.orb8-system"] {
        let elsewhere = raw(|raw| raw.agents = Some(agents.into()));
        let problem = said(elsewhere.clone());
        assert!(problem.contains("would be asked in plain text"), "{problem}");
        let by_name = RawConfig { insecure: true, ..elsewhere.clone() };
        assert_eq!(by_name.resolve().unwrap().agent_tls, None);
        let by_tls = RawConfig { agent_tls_ca: Some("/ca.crt".into()), ..elsewhere };
        let files = by_tls.clone().resolve().unwrap().agent_tls.unwrap();
        assert_eq!(files.server_name.as_deref(), Some("orb8-agent.orb8-system.svc"));
        let half = RawConfig { agent_tls_key: Some("/tls.key".into()), ..by_tls };
        assert!(said(half).contains("--agent-tls-cert is missing"));
    }
}

#[test]
fn metrics_are_plain_text_anywhere() {
    let open = raw(|raw| raw.metrics_listen = Some("0.0.0.0:8081".into()));
    assert_eq!(open.resolve().unwrap().metrics_listen, ([0, 0, 0, 0], 8081).into());
}

#[test]
fn the_cluster_is_watched_where_its_api_is_asked_for_agents_or_that_is_said() {
    let knows = |agents: &str, kubernetes: Option<&str>| {
        let raw = RawConfig {
            agents: Some(agents.into()),
            kubernetes: kubernetes.map(str::to_owned),
            insecure: true,
            ..RawConfig::default()
        };
        raw.resolve().unwrap().knows_cluster
    };
    assert!(knows("kubernetes:a/b", None) && knows("kubernetes:a/b", Some("auto")));
    assert!(knows("10.0.0.1", Some("on")));
    assert!(!knows("kubernetes:a/b", Some("off")) && !knows("10.0.0.1", None));
}
