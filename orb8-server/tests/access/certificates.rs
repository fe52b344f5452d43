//! Certificates of clients and of the server, and ports that speak something else.

use orb8_testkit::pki::{CertificateAuthority, write_file};
use tonic::Code;

use crate::scene::{Scene, log, pods, until};

#[tokio::test]
async fn the_holder_of_a_certificate_is_who_it_names_as_in_kubernetes() {
    let scene = Scene::start().await;
    let mut ann = scene.holder(&scene.ca.issue("ann").unwrap());
    assert_eq!(pods(&mut ann, "ns-1").await, Ok(4));
    let (code, said) = pods(&mut ann, "").await.unwrap_err();
    assert_eq!(code, Code::PermissionDenied, "{said}");
    scene.api.grant("ops", "list", "pods", "");
    let mut member = scene.holder(&scene.ca.issue_member("bob", &["ops"]).unwrap());
    assert_eq!(pods(&mut member, "").await, Ok(40));
    // A token says who asks, whatever the certificate says of the way it came.
    let tls = scene.tls(&scene.ca, Some(&scene.ca.issue("root").unwrap()));
    assert!(pods(&mut scene.client_with(Some(tls), "token-of-ann"), "").await.is_err());
    scene.end().await;
}

#[tokio::test]
async fn certificates_that_are_no_good_are_refused_with_the_reason_and_logged() {
    let other = CertificateAuthority::new("other").unwrap();
    for (expired, words, logged) in [
        (true, "the client certificate has expired", "xpired"),
        (false, "does not trust the CA", "nknownIssuer"),
    ] {
        let scene = Scene::start().await;
        let pair = if expired { scene.ca.issue_expired("root") } else { other.issue("root") };
        let said = pods(&mut scene.holder(&pair.unwrap()), "").await.unwrap_err().1;
        assert!(said.contains(words), "{said}");
        until("it is logged", async || log().tells_of(&[logged])).await;
        until("it is counted", async || {
            scene.metric("orb8_connections_refused_total{reason=\"handshake\"}").await >= 1.0
        })
        .await;
        scene.end().await;
    }
    // And a client refuses a server whose certificate is of another CA than its own.
    let scene = Scene::start().await;
    let mut client = scene.client_with(Some(scene.tls(&other, None)), "token-of-root");
    let said = pods(&mut client, "").await.unwrap_err().1;
    assert!(said.contains("not from a CA that is trusted here"), "{said}");
    scene.end().await;
}

#[tokio::test]
async fn where_certificates_decide_there_is_no_connection_without_one() {
    let scene = Scene::start_with(|raw| raw.auth = None, |_| ()).await;
    let mut anybody = scene.holder(&scene.ca.issue("anybody").unwrap());
    assert_eq!(pods(&mut anybody, "").await, Ok(40));
    let said = pods(&mut scene.client("token-of-root"), "").await.unwrap_err().1;
    assert!(said.contains("asks for a client certificate"), "{said}");
    assert!(scene.api.requests().is_empty(), "nobody is asked");
    scene.end().await;
}

#[tokio::test]
async fn plain_text_and_tls_that_meet_each_other_say_so() {
    let scene = Scene::start().await;
    let said = pods(&mut scene.client_with(None, "token-of-root"), "").await.unwrap_err().1;
    assert!(said.contains("the server speaks TLS"), "{said}");
    until("it is logged", async || log().tells_of(&["plain text on a port that speaks TLS"])).await;
    assert!(scene.metric("orb8_connections_refused_total{reason=\"plain_text\"}").await >= 1.0,);
    scene.end().await;

    let plain = Scene::start_with(
        |raw| (raw.tls_cert, raw.tls_key, raw.tls_client_ca) = (None, None, None),
        |_| (),
    )
    .await;
    let said = pods(&mut plain.client("token-of-root"), "").await.unwrap_err().1;
    assert!(said.contains("the server speaks plain text"), "{said}");
    until("it is logged", async || log().tells_of(&["TLS on a port that speaks plain text"])).await;
    // Kubernetes decides all the same.
    assert_eq!(pods(&mut plain.client_with(None, "token-of-root"), "").await, Ok(40));
    assert!(pods(&mut plain.client_with(None, ""), "").await.is_err());
    plain.end().await;
}

#[tokio::test]
async fn a_rotated_certificate_and_a_rotated_client_ca_count_without_a_restart() {
    let scene = Scene::start().await;
    let new = CertificateAuthority::new("new").unwrap();
    let mut before = scene.holder(&scene.ca.issue("root").unwrap());
    assert_eq!(pods(&mut before, "").await, Ok(40));
    new.issue("localhost").unwrap().write(scene.dir.path()).unwrap();
    write_file(&scene.dir.path().join("ca.crt"), &new.pem()).unwrap();
    let pair = new.issue("root").unwrap();
    until("the new files are in use", async || {
        let tls = scene.tls(&new, Some(&pair));
        pods(&mut scene.client_with(Some(tls), ""), "").await == Ok(40)
    })
    .await;
    let mut old = scene.holder(&scene.ca.issue("root").unwrap());
    let said = pods(&mut old, "").await.unwrap_err().1;
    assert!(said.contains("not from a CA that is trusted here"), "{said}");
    scene.end().await;
}
