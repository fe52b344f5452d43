//! Who is let in, who is not, and what they are told.

use orb8_transport::{
    Address, ClientAuth, ClientFiles, ClientTls, Connector, Limits, Refused, ServerFiles, ServerTls,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    pki::{Authority, Files, client},
    served::{Served, until},
};

fn has(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{said:?} does not say {word:?}");
    }
}

#[tokio::test]
async fn both_sides_know_each_other_and_the_request_says_who_sent_it() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let tls = files.server(&ca.issue("localhost"), Some((&ca, ClientAuth::Required)));
    assert_eq!(tls.identity().dns_names, ["localhost"]);
    let served = Served::start(Some(tls), Limits::default()).await;
    served.ask(Some(client(&ca, Some(&ca.issue("node-1"))))).await.unwrap();
    let (peer, _) = served.last();
    assert!(peer.tls && peer.remote.ip().is_loopback());
    let identity = peer.identity.unwrap();
    assert_eq!(identity.common_name.as_deref(), Some("node-1"));
    assert_eq!(identity.dns_names, ["node-1"]);
    served.end().await;
}

#[tokio::test]
async fn clients_without_a_good_certificate_are_refused_and_told_why() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let files = Files::new();
    let tls = files.server(&ca.issue("localhost"), Some((&ca, ClientAuth::Required)));
    let served = Served::start(Some(tls), Limits::default()).await;
    for (pair, words) in [
        (None, "asks for a client certificate"),
        (Some(other.issue("node-1")), "does not trust the CA"),
        (Some(ca.issue_expired("node-1")), "has expired"),
    ] {
        let before = served.refused(Refused::Handshake);
        let said = served.ask(Some(client(&ca, pair.as_ref()))).await.unwrap_err();
        has(&said, &["the server refused the connection", words]);
        until("the refusal is counted", async || served.refused(Refused::Handshake) > before).await;
    }
    assert!(served.seen.lock().unwrap().is_empty(), "no request of a refused client is served");
    served.end().await;
}

#[tokio::test]
async fn where_certificates_are_optional_a_bad_one_is_still_refused() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let files = Files::new();
    let tls = files.server(&ca.issue("localhost"), Some((&ca, ClientAuth::Optional)));
    let served = Served::start(Some(tls), Limits::default()).await;
    served.ask(Some(client(&ca, None))).await.unwrap();
    assert_eq!(served.last().0.identity, None);
    served.ask(Some(client(&ca, Some(&ca.issue("node-1"))))).await.unwrap();
    assert_eq!(served.last().0.identity.unwrap().to_string(), "node-1");
    let said = served.ask(Some(client(&ca, Some(&other.issue("node-1"))))).await.unwrap_err();
    has(&said, &["does not trust the CA"]);
    served.end().await;
}

#[tokio::test]
async fn servers_that_are_not_who_they_should_be_are_refused_and_named() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    for (pair, words) in [
        (other.issue("localhost"), ["not from a CA that is trusted", "ca.crt"]),
        (ca.issue_expired("localhost"), ["certificate expired", "days ago"]),
        (ca.issue("node-1"), ["not for \"localhost\"", "node-1"]),
    ] {
        let files = Files::new();
        let served = Served::start(Some(files.server(&pair, None)), Limits::default()).await;
        let said = served.ask(Some(client(&ca, None))).await.unwrap_err();
        has(&said, &words);
        has(&said, &[&served.address.to_string()]);
        served.end().await;
    }
}

#[tokio::test]
async fn plain_text_and_tls_that_meet_each_other_say_so_on_both_sides() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let tls = files.server(&ca.issue("localhost"), None);
    let encrypted = Served::start(Some(tls), Limits::default()).await;
    let said = encrypted.ask(None).await.unwrap_err();
    has(&said, &["the server speaks TLS", "https://"]);
    until("counted", async || encrypted.refused(Refused::PlainText) == 1).await;

    let plain = Served::start(None, Limits::default()).await;
    let said = plain.ask(Some(client(&ca, None))).await.unwrap_err();
    has(&said, &["the server speaks plain text", "http://"]);
    until("counted", async || plain.refused(Refused::Tls) == 1).await;
    plain.ask(None).await.unwrap();
    assert_eq!((plain.last().0.tls, plain.last().0.identity), (false, None));

    // A browser at either.
    for (served, status, reason) in
        [(&plain, "HTTP/1.1 400", Refused::NotHttp2), (&encrypted, "\u{15}", Refused::PlainText)]
    {
        let before = served.refused(reason);
        let mut tcp = TcpStream::connect(served.address).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).starts_with(status), "{answer:?}");
        until("counted", async || served.refused(reason) == before + 1).await;
    }
    encrypted.end().await;
    plain.end().await;
}

#[tokio::test]
async fn whoever_is_not_there_is_told_apart() {
    let connector = Connector::new(None, Limits::default());
    let address: Address = "no-such-host.invalid:1".parse().unwrap();
    let said = connector.connect(&address).await.unwrap_err().to_string();
    has(&said, &["no-such-host.invalid", "cannot be resolved"]);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = Address::from(listener.local_addr().unwrap());
    drop(listener);
    let said = connector.connect(&free).await.unwrap_err().to_string();
    has(&said, &[free.authority(), "nothing listens there"]);
    // The same from a channel that connects when it is used.
    let said = crate::served::check(connector.channel(&free).unwrap()).await.unwrap_err();
    has(&said, &[free.authority(), "nothing listens there"]);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Address::from(listener.local_addr().unwrap());
    let limits =
        Limits { connect_time: std::time::Duration::from_millis(300), ..Limits::default() };
    let connector = Connector::new(Some(client(&Authority::new("ca"), None)), limits);
    let said = connector.connect(&silent).await.unwrap_err().to_string();
    has(&said, &[silent.authority(), "no connection within 0.3 s"]);
}

#[tokio::test]
async fn secrets_stay_off_plain_text_unless_that_is_asked_for() {
    let plain = Connector::new(None, Limits::default());
    let away: Address = "10.0.0.1:1".parse().unwrap();
    let said = plain.may_send_secrets(&away).unwrap_err().to_string();
    has(&said, &["10.0.0.1:1", "plain text", "--insecure"]);
    assert!(plain.may_send_secrets(&"127.0.0.1:1".parse().unwrap()).is_ok());
    assert!(plain.insecure(true).may_send_secrets(&away).is_ok());
    let tls = client(&Authority::new("ca"), None);
    let connector = Connector::new(Some(tls), Limits::default());
    assert!(connector.may_send_secrets(&away).is_ok());
    assert!(connector.may_send_secrets(&"http://10.0.0.1:1".parse().unwrap()).is_err());
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_was_expected() {
    let ca = Authority::new("ca");
    let (pair, foreign) = (ca.issue("localhost"), ca.issue("localhost"));
    let files = Files::new();
    let (certificate, key) = files.write_pair(&pair);
    let load = |certificate: &std::path::Path, key: &std::path::Path, client_ca: Option<&str>| {
        let files = ServerFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            client_ca: client_ca.map(Into::into),
            client_auth: ClientAuth::Required,
        };
        ServerTls::load(files).unwrap_err().to_string()
    };
    let missing = files.path("missing");
    has(&load(&missing, &key, None), &["certificate", "missing", "cannot be read"]);
    has(&load(&certificate, &missing, None), &["private key", "missing"]);
    has(&load(&key, &key, None), &["no CERTIFICATE", "found PRIVATE KEY", "tls.key"]);
    has(&load(&certificate, &certificate, None), &["no PRIVATE KEY", "tls.crt"]);
    let other = files.write("other.key", &foreign.1);
    has(&load(&certificate, &other, None), &["other.key", "not the key of", "tls.crt", "a pair"]);
    let empty = files.write("empty.crt", "");
    has(&load(&certificate, &key, empty.to_str()), &["CA certificates", "empty.crt", "no PEM"]);
    let wrong_name = ClientFiles { server_name: Some("a b".into()), ..ClientFiles::default() };
    has(&ClientTls::load(wrong_name).unwrap_err().to_string(), &["\"a b\"", "DNS name"]);
}

#[test]
fn a_pair_is_both_or_neither() {
    let path = || Some(std::path::PathBuf::from("/x"));
    let empty = || Some(std::path::PathBuf::new());
    assert_eq!(ServerFiles::from_options("tls", empty(), None, empty()).unwrap(), None);
    for (certificate, key, ca, missing) in [
        (path(), None, None, "--tls-key"),
        (empty(), path(), None, "--tls-cert"),
        (None, None, path(), "--tls-cert and --tls-key"),
    ] {
        let said = ServerFiles::from_options("tls", certificate, key, ca).unwrap_err().to_string();
        has(&said, &[missing, "missing"]);
    }
    let said = ClientFiles::from_options("agent-tls", None, path(), None, None).unwrap_err();
    has(&said.to_string(), &["--agent-tls-key is missing"]);
    assert_eq!(ClientFiles::from_options("tls", None, None, None, None).unwrap(), None);
}
