//! Files that change on disk while servers and clients run.

use orb8_transport::{BearerToken, ClientAuth, Limits};

use crate::{
    pki::{Authority, Files, append, client},
    served::{DEADLINE, Served, check, check_with, until, watch},
};

#[tokio::test]
async fn a_rotated_certificate_is_shown_to_the_next_client_and_streams_go_on() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new();
    let tls = files.server(&old.issue("localhost"), None);
    let served = Served::start(Some(tls.clone()), Limits::default()).await;
    let channel = served.connect(Some(client(&old, None))).await.unwrap();
    let mut stream = watch(channel.clone()).await;

    files.write_pair(&new.issue("localhost"));
    until("the new pair is loaded", async || tls.state().reloads == 1).await;
    served.ask(Some(client(&new, None))).await.unwrap();
    assert!(served.ask(Some(client(&old, None))).await.is_err(), "the old one is gone");

    served.health.set("", false).await;
    let message = tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap();
    assert_eq!(message.unwrap().status, 2, "the stream of the old days goes on");
    check(channel).await.unwrap();
    drop(stream);
    served.end().await;
}

#[tokio::test]
async fn a_client_ca_that_is_withdrawn_lets_nobody_in_any_more() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new();
    let tls = files.server(&old.issue("localhost"), Some((&old, ClientAuth::Required)));
    let served = Served::start(Some(tls.clone()), Limits::default()).await;
    let (of_old, of_new) = (old.issue("node-1"), new.issue("node-1"));
    served.ask(Some(client(&old, Some(&of_old)))).await.unwrap();
    assert!(served.ask(Some(client(&old, Some(&of_new)))).await.is_err());

    // Both for a while, as a careful rotation has it.
    append(&files.path("ca.crt"), &new.pem());
    until("both are loaded", async || tls.state().reloads == 1).await;
    served.ask(Some(client(&old, Some(&of_old)))).await.unwrap();
    served.ask(Some(client(&old, Some(&of_new)))).await.unwrap();

    files.write("ca.crt", &new.pem());
    until("the new one is loaded", async || tls.state().reloads == 2).await;
    assert!(served.ask(Some(client(&old, Some(&of_old)))).await.is_err());
    served.ask(Some(client(&old, Some(&of_new)))).await.unwrap();
    served.end().await;
}

#[tokio::test]
async fn files_that_are_no_good_leave_the_old_ones_in_use_and_are_told_of() {
    let (ca, new) = (Authority::new("ca"), Authority::new("new"));
    let files = Files::new();
    let tls = files.server(&ca.issue("localhost"), None);
    let served = Served::start(Some(tls.clone()), Limits::default()).await;
    let next = new.issue("localhost");
    for (name, text, words) in [
        ("tls.crt", "nonsense", "no CERTIFICATE"),
        ("tls.crt", &*next.0, "not the key of the certificate"),
        ("tls.crt", "", "no PEM at all"),
    ] {
        files.write(name, text);
        let told = || tls.state().problem.is_some_and(|problem| problem.contains(words));
        until(words, async || told()).await;
        served.ask(Some(client(&ca, None))).await.unwrap();
        assert_eq!(tls.state().reloads, 0);
    }
    files.write_pair(&next);
    until("the next pair is loaded", async || tls.state().reloads == 1).await;
    assert_eq!(tls.state().problem, None);
    served.ask(Some(client(&new, None))).await.unwrap();
    served.end().await;
}

#[tokio::test]
async fn a_secret_that_is_swapped_as_a_kubelet_does_is_taken() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new();
    let link = |to: &str| {
        std::os::unix::fs::symlink(to, files.path("..tmp")).unwrap();
        std::fs::rename(files.path("..tmp"), files.path("..data")).unwrap();
    };
    for (dir, ca) in [("..1", &old), ("..2", &new)] {
        std::fs::create_dir(files.path(dir)).unwrap();
        let (certificate, key) = ca.issue("localhost");
        files.write(&format!("{dir}/tls.crt"), &certificate);
        files.write(&format!("{dir}/tls.key"), &key);
    }
    link("..1");
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), files.path(name)).unwrap();
    }
    let tls = orb8_transport::ServerTls::load(orb8_transport::ServerFiles {
        certificate: files.path("tls.crt"),
        key: files.path("tls.key"),
        client_ca: None,
        client_auth: ClientAuth::Required,
    })
    .unwrap();
    let served = Served::start(Some(tls.clone()), Limits::default()).await;
    served.ask(Some(client(&old, None))).await.unwrap();
    link("..2");
    until("the swap is seen", async || tls.state().reloads == 1).await;
    served.ask(Some(client(&new, None))).await.unwrap();
    served.end().await;
}

#[tokio::test]
async fn a_client_takes_rotated_files_when_it_connects_again() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new();
    let tls = files.server(&old.issue("localhost"), Some((&old, ClientAuth::Required)));
    let served = Served::start(Some(tls.clone()), Limits::default()).await;
    let own = Files::new();
    let mine = own.client(&old, Some(&old.issue("me")));
    served.ask(Some(mine.clone())).await.unwrap();

    files.write_pair(&new.issue("localhost"));
    files.write("ca.crt", &new.pem());
    own.write_pair(&new.issue("me-too"));
    own.write("ca.crt", &new.pem());
    let asked = async || served.ask(Some(mine.clone())).await.is_ok() && tls.state().reloads > 0;
    until("both sides are new", asked).await;
    assert_eq!(served.last().0.identity.unwrap().to_string(), "me-too");
    assert!(mine.state().reloads > 0);
    served.end().await;
}

#[tokio::test]
async fn a_rotated_token_is_sent_from_then_on() {
    let served = Served::start(None, Limits::default()).await;
    let files = Files::new();
    let path = files.write("token", "first");
    let token = BearerToken::file(path).unwrap();
    let channel = served.connect(None).await.unwrap();
    check_with(channel.clone(), token.clone()).await.unwrap();
    assert_eq!(served.last().1.as_deref(), Some("Bearer first"));
    files.write("token", "second\n");
    until("the new token is sent", async || {
        check_with(channel.clone(), token.clone()).await.unwrap();
        served.last().1.as_deref() == Some("Bearer second")
    })
    .await;
    served.end().await;
}
