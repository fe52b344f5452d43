//! The server as a client: agents that it does not trust, and that do not trust it.

use std::{collections::BTreeMap, path::Path};

use orb8_proto::{NodeOutcome, PodQuery};
use orb8_testkit::{
    SimAgent, SimNode,
    pki::{CertificateAuthority, Pair, write_file},
};
use orb8_transport::{ClientAuth, ServerFiles};

use crate::scene::{Client, Scene, pods, until};

/// Files of an agent in `dir`, which lets in clients of `ca`.
fn files(dir: &Path, pair: &Pair, ca: &CertificateAuthority) -> ServerFiles {
    std::fs::create_dir_all(dir).unwrap();
    let (certificate, key) = pair.write(dir).unwrap();
    let client_ca = Some(write_file(&dir.join("ca.crt"), &ca.pem()).unwrap());
    ServerFiles { certificate, key, client_ca, client_auth: ClientAuth::Required }
}

async fn agent(name: &str, files: ServerFiles) -> SimAgent {
    let any = ([127, 0, 0, 1], 0).into();
    SimAgent::start_tls(any, SimNode::new(name, 3), files).await.unwrap()
}

/// A server that asks agents with the files in `own`.
async fn server(ca: CertificateAuthority, own: &Path, agents: Vec<SimAgent>) -> Scene {
    let addresses: Vec<String> = agents.iter().map(|agent| agent.address().to_string()).collect();
    let change = |raw: &mut orb8_server::config::RawConfig| {
        raw.agent_tls_ca = Some(own.join("ca.crt"));
        raw.agent_tls_cert = Some(own.join("tls.crt"));
        raw.agent_tls_key = Some(own.join("tls.key"));
    };
    Scene::of(ca, agents, addresses.join(","), change, |_| ()).await
}

/// What became of each node, by address.
async fn outcomes(client: &mut Client) -> BTreeMap<String, (NodeOutcome, String)> {
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    let nodes = answer.coverage.unwrap().nodes;
    nodes.into_iter().map(|n| (n.node.clone(), (n.outcome(), n.reason))).collect()
}

const NAME: &str = "orb8-agent.orb8-system.svc";

#[tokio::test]
async fn an_agent_that_cannot_be_trusted_is_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (ca, other) =
        (CertificateAuthority::new("ca").unwrap(), CertificateAuthority::new("other").unwrap());
    files(&at("own"), &ca.issue("orb8-server").unwrap(), &ca);
    let good = agent("good", files(&at("good"), &ca.issue(NAME).unwrap(), &ca)).await;
    let mut agents = vec![good];
    let mut expected = Vec::new();
    for (name, pair, trusts, words) in [
        ("foreign", other.issue(NAME), &ca, "not from a CA that is trusted here"),
        ("expired", ca.issue_expired(NAME), &ca, "the agent's certificate expired"),
        ("another", ca.issue("elsewhere"), &ca, "not for \"orb8-agent.orb8-system.svc\""),
        (
            "distrusts",
            ca.issue(NAME),
            &other,
            "the agent refused the connection: it does not trust",
        ),
    ] {
        let agent = agent(name, files(&at(name), &pair.unwrap(), trusts)).await;
        expected.push((agent.address().to_string(), words));
        agents.push(agent);
    }
    let plain = SimAgent::start(SimNode::new("plain", 3)).await.unwrap();
    expected.push((plain.address().to_string(), "plain text, not TLS"));
    agents.push(plain);

    let scene = server(ca, &at("own"), agents).await;
    let mut client = scene.client("token-of-root");
    until("the good one answers", async || {
        pods(&mut scene.client("token-of-root"), "").await == Ok(3)
    })
    .await;
    let outcomes = outcomes(&mut client).await;
    assert_eq!(outcomes["good"].0, NodeOutcome::Answered);
    for (address, words) in expected {
        let (outcome, reason) = &outcomes[&address];
        assert!(reason.contains(words), "{address}: {reason}");
        assert_eq!(*outcome, NodeOutcome::Refused, "{reason}");
    }
    let options: Vec<&str> =
        outcomes.values().filter_map(|(_, reason)| reason.split(" --").nth(1)).collect();
    assert!(options.iter().all(|option| option.starts_with("agent-tls-")), "{options:?}");
    scene.end().await;
}

#[tokio::test]
async fn rotated_certificates_of_both_sides_count_at_the_next_connection() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (old, new) =
        (CertificateAuthority::new("old").unwrap(), CertificateAuthority::new("new").unwrap());
    files(&at("own"), &old.issue("orb8-server").unwrap(), &old);
    let first = agent("a", files(&at("agent"), &old.issue(NAME).unwrap(), &old)).await;
    let address = first.address();
    let scene = server(old, &at("own"), vec![first]).await;
    let mut client = scene.client("token-of-root");
    until("it answers", async || pods(&mut scene.client("token-of-root"), "").await == Ok(3)).await;

    let Scene { ca, api, dir: kept, server, mut agents } = scene;
    agents.pop().unwrap().kill().await;
    let rotated = files(&at("agent"), &new.issue(NAME).unwrap(), &new);
    let again = SimAgent::start_tls(address, SimNode::new("a", 5), rotated).await.unwrap();
    let scene = Scene { ca, api, dir: kept, server, agents: vec![again] };
    until("the agent is not trusted", async || {
        let outcomes = outcomes(&mut scene.client("token-of-root")).await;
        outcomes.values().any(|(outcome, _)| *outcome == NodeOutcome::Refused)
    })
    .await;
    files(&at("own"), &new.issue("orb8-server").unwrap(), &new);
    until("the server has taken its new files", async || {
        pods(&mut scene.client("token-of-root"), "").await == Ok(5)
    })
    .await;
    assert_eq!(pods(&mut client, "").await, Ok(5));
    scene.end().await;
}
