//! The server of a kubeconfig's context, asked through the API server by port-forward.

use std::{fs, path::Path, process::Command, time::Duration};

use orb8_proto::StatusResponse;
use orb8_testkit::{KubeApi, pki::CertificateAuthority};
use orb8_transport::{ClientAuth, ServerFiles};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::fake_agent::{FakeAgent, Run, Script, orb8};

const TOKEN: &str = "the-users-token";

/// An API server with the Service and its pods.
fn cluster(ready: &[(&str, &str)]) -> KubeApi {
    let api = KubeApi::start_with_tls(&CertificateAuthority::new("kubernetes").unwrap()).unwrap();
    let port = json!({ "name": "grpc", "port": 8080, "targetPort": "grpc" });
    api.apply(json!({
        "kind": "Service",
        "metadata": { "namespace": "orb8-system", "name": "orb8-server" },
        "spec": { "selector": { "app": "orb8-server" }, "ports": [port] },
    }))
    .unwrap();
    for (name, ready) in ready {
        let port = json!({ "name": "grpc", "containerPort": 18_080 });
        api.apply(json!({
            "kind": "Pod",
            "metadata": {
                "namespace": "orb8-system",
                "name": name,
                "labels": { "app": "orb8-server" },
            },
            "spec": { "containers": [{ "name": "server", "ports": [port] }] },
            "status": {
                "phase": "Running",
                "conditions": [{ "type": "Ready", "status": ready }],
            },
        }))
        .unwrap();
    }
    api.faults(|faults| faults.tokens = Some(vec![TOKEN.into()]));
    api
}

fn kubeconfig(dir: &Path, api: &KubeApi, user: &Value) -> String {
    let path = dir.join("kubeconfig");
    api.write_kubeconfig(&path, None).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["users"][0]["user"] = user.clone();
    config["contexts"][0]["name"] = "kind-dev".into();
    config["current-context"] = "kind-dev".into();
    fs::write(&path, config.to_string()).unwrap();
    path.display().to_string()
}

fn server() -> Script {
    let status = StatusResponse { version: "7.7.7".into(), ..StatusResponse::default() };
    Script { status, ..Script::default() }
}

fn run(mut command: Command) -> Run {
    Run::new(command.output().unwrap(), Duration::ZERO)
}

/// Of a server without nodes: it has no node that is missing, but none that answers either.
fn asks(kubeconfig: &str, arguments: &[&str]) -> Run {
    let mut command = orb8(arguments);
    command.env("KUBECONFIG", kubeconfig);
    run(command)
}

#[test]
fn the_server_is_found_by_the_kubeconfig_and_shown_its_users_token() {
    let dir = tempfile::tempdir().unwrap();
    let agent = FakeAgent::start(server());
    let api = cluster(&[("orb8-server-a", "False"), ("orb8-server-b", "True")]);
    api.listen("orb8-system", "orb8-server-b", 18_080, agent.address);
    let file = dir.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    for user in [json!({ "token": TOKEN }), json!({ "tokenFile": file })] {
        let config = kubeconfig(dir.path(), &api, &user);
        let run = asks(&config, &["status"]);
        assert!(run.stdout.contains("7.7.7"), "{run:?}");
        let said = "mode: cluster, asking svc/orb8-server in orb8-system of context kind-dev, by port-forward";
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
    let own = asks(
        &kubeconfig(dir.path(), &api, &json!({ "token": TOKEN })),
        &["--token", "another", "status"],
    );
    assert!(own.stdout.contains("7.7.7"), "{own:?}");
    let shown = agent.shown.lock().unwrap().clone();
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    // Each status is two questions: the server's own, and its nodes.
    assert_eq!(shown[..4], [(); 4].map(|()| bearer(TOKEN)));
    assert_eq!(shown[4..], [(); 2].map(|()| bearer("another")));
    let forwards = api.requests().iter().filter(|r| r.path.ends_with("b/portforward")).count();
    assert_eq!(forwards, 3);
}

#[test]
fn a_program_that_gets_the_token_is_run_once() {
    let dir = tempfile::tempdir().unwrap();
    let agent = FakeAgent::start(server());
    let api = cluster(&[("orb8-server-a", "True")]);
    api.listen("orb8-system", "orb8-server-a", 18_080, agent.address);
    let runs = dir.path().join("runs");
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": { "token": TOKEN },
    });
    let script = format!("echo run >> {}; echo '{credential}'", runs.display());
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", script],
        "interactiveMode": "Never",
    });
    let config = kubeconfig(dir.path(), &api, &json!({ "exec": exec }));
    let run = asks(&config, &["--mode", "cluster", "status"]);
    assert!(run.stdout.contains("7.7.7"), "{run:?}");
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
    let shown = agent.shown.lock().unwrap().clone();
    assert_eq!(shown[0].as_deref(), Some("Bearer the-users-token"));
}

#[test]
fn tls_goes_through_the_forwarded_port_and_names_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let files = certificate(dir.path(), "orb8-server.orb8-system.svc");
    let ca = dir.path().join("ca.crt").display().to_string();
    let agent = FakeAgent::start_with_tls(server(), files);
    let api = cluster(&[("orb8-server-a", "True")]);
    api.listen("orb8-system", "orb8-server-a", 18_080, agent.address);
    let config = kubeconfig(dir.path(), &api, &json!({ "token": TOKEN }));
    let good = asks(&config, &["--tls-ca", &ca, "status"]);
    assert!(good.stdout.contains("7.7.7"), "{good:?}");
    let plain = asks(&config, &["status"]);
    assert_eq!(plain.code, 1, "{plain:?}");
    assert!(plain.stderr.contains("--tls-ca FILE says so"), "{}", plain.stderr);
    let name = asks(&config, &["--tls-ca", &ca, "--tls-server-name", "other.svc", "status"]);
    assert_eq!(name.code, 1, "{name:?}");
    assert!(name.stderr.contains("other.svc"), "{}", name.stderr);
}

fn certificate(dir: &Path, name: &str) -> ServerFiles {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let ca = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let (certificate_file, key_file) = (dir.join("tls.crt"), dir.join("tls.key"));
    fs::write(&certificate_file, certificate.pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    ServerFiles {
        certificate: certificate_file,
        key: key_file,
        client_ca: None,
        client_auth: ClientAuth::Required,
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_an_error_in_the_words_of_who_refused() {
    let dir = tempfile::tempdir().unwrap();
    let none_ready = cluster(&[("orb8-server-a", "False")]);
    let nothing_listens = cluster(&[("orb8-server-a", "True")]);
    for (api, said) in [
        (&none_ready, "is ready: orb8-server-a is Running"),
        (&nothing_listens, "pod orb8-server-a: an error occurred forwarding 18080"),
    ] {
        let config = kubeconfig(dir.path(), api, &json!({ "token": TOKEN }));
        let run = asks(&config, &["query", "pods"]);
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stderr.contains(said), "{said:?} in {}", run.stderr);
    }
}

#[test]
fn a_server_that_wants_a_token_which_the_user_has_not_says_where_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let refused = tonic::Status::unauthenticated("a bearer token is needed");
    let agent = FakeAgent::start(Script { nodes: Err(refused), ..server() });
    let api = cluster(&[("orb8-server-a", "True")]);
    // As for a user with a certificate.
    api.faults(|faults| faults.tokens = None);
    api.listen("orb8-system", "orb8-server-a", 18_080, agent.address);
    let config = kubeconfig(dir.path(), &api, &json!({}));
    let run = asks(&config, &["nodes"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("kubectl create token"), "{}", run.stderr);
}

#[test]
fn without_a_server_in_the_context_standalone_says_why_and_cluster_mode_fails() {
    let dir = tempfile::tempdir().unwrap();
    let api = KubeApi::start().unwrap();
    let empty = kubeconfig(dir.path(), &api, &json!({}));
    let forbidden = KubeApi::start().unwrap();
    forbidden.faults(|faults| faults.forbidden = true);
    let away = KubeApi::start().unwrap();
    away.refuse(true);
    let broken = dir.path().join("broken");
    fs::write(&broken, "clusters: [").unwrap();
    let path = |name: &str| {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    for (config, said) in [
        (empty, "context kind-dev has no svc/orb8-server in namespace orb8-system"),
        (kubeconfig(&path("a"), &forbidden, &json!({})), "context kind-dev: "),
        (kubeconfig(&path("b"), &away, &json!({})), "context kind-dev: "),
        (broken.display().to_string(), "kubeconfig: "),
        ("/nonexistent/config".into(), "kubeconfig: "),
    ] {
        let fails = asks(&config, &["--mode", "cluster", "status"]);
        assert_eq!(fails.code, 1, "{fails:?}");
        assert!(fails.stderr.contains(said), "{said:?} in {}", fails.stderr);
        // An option that is wrong ends it before anything is loaded.
        let local = asks(&config, &["trace", "network", "--flow-table-size", "many"]);
        assert_eq!(local.code, 64, "{local:?}");
        assert!(local.stderr.contains("as --flow-table-size is for"), "{}", local.stderr);
    }
    let needs = asks(&kubeconfig(dir.path(), &api, &json!({})), &["nodes"]);
    assert_eq!(needs.code, 64, "{needs:?}");
    let said =
        "lists the nodes that a server knows. There is no server: context kind-dev has no svc";
    assert!(needs.stderr.contains(said), "{}", needs.stderr);
}

#[test]
fn an_api_server_that_does_not_answer_holds_up_standalone_mode_for_seconds_only() {
    let dir = tempfile::tempdir().unwrap();
    let api = cluster(&[]);
    api.delay(Duration::from_secs(120));
    let config = kubeconfig(dir.path(), &api, &json!({ "token": TOKEN }));
    let started = std::time::Instant::now();
    // It has no capabilities, which it tells after it has chosen its mode.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", env!("CARGO_BIN_EXE_orb8")]);
    command.args(["status"]).env("KUBECONFIG", &config).env_remove("ORB8_SERVER");
    let run = run(command);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let said = "mode: standalone (the API server of context kind-dev did not answer within 3 s)";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert!(run.stderr.contains("CAP_BPF"), "{}", run.stderr);
}
