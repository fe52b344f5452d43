//! make-certs.sh makes Secrets that openssl and Kubernetes take, renews them, and leaves nothing about.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use orb8_tests::manifests::{documents, kustomized, object, printed, repository};
use serde_json::Value;

use crate::kinds::all_known;

fn make_certs(temporary: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(repository().join("deploy/make-certs.sh"));
    Ok(command.env("TMPDIR", temporary).args(arguments).output()?)
}

fn secrets(temporary: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let made = make_certs(temporary, arguments)?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    ensure!(fs::read_dir(temporary)?.next().is_none(), "it left something in TMPDIR");
    documents(&String::from_utf8(made.stdout)?)
}

/// Writes the files of a Secret to a folder of its name.
fn unpack(secret: &Value, to: &Path) -> Result<std::path::PathBuf> {
    let dir = to.join(secret["metadata"]["name"].as_str().context("no name")?);
    fs::create_dir(&dir)?;
    for (name, value) in secret["data"].as_object().context("no data")? {
        let encoded = dir.join("encoded");
        fs::write(&encoded, value.as_str().context("not text")?)?;
        let decoded = Command::new("base64").arg("--decode").arg(&encoded).output()?;
        ensure!(decoded.status.success(), "{name} is not base64");
        fs::write(dir.join(name), decoded.stdout)?;
        fs::remove_file(encoded)?;
    }
    Ok(dir)
}

fn verify(dir: &Path, purpose: &str, name: &str) -> Result<String> {
    let mut verify = Command::new("openssl");
    verify.arg("verify").arg("-CAfile").arg(dir.join("ca.crt"));
    verify.args(["-purpose", purpose, "-verify_hostname", name]);
    printed(verify.arg(dir.join("tls.crt")))
}

#[test]
fn certificates_are_good_for_what_they_are_for_and_for_nothing_else() -> Result<()> {
    let (dir, temporary) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let ca = dir.path().join("ca");
    let ca_words = ca.display().to_string();
    let made = secrets(temporary.path(), &[&ca_words])?;
    all_known(&made)?;
    let agent = unpack(object(&made, "Secret/orb8-agent-tls")?, dir.path())?;
    let server = unpack(object(&made, "Secret/orb8-server-tls")?, dir.path())?;
    verify(&agent, "sslserver", "orb8-agent.orb8-system.svc")?;
    verify(&server, "sslserver", "orb8-server.orb8-system.svc")?;
    verify(&server, "sslserver", "localhost")?;
    verify(&server, "sslclient", "orb8-server")?;
    verify(&agent, "sslclient", "orb8-agent").expect_err("an agent may not ask another agent");
    verify(&agent, "sslserver", "orb8-server").expect_err("an agent is no server");
    for dir in [&agent, &server] {
        let public = |arguments: &[&str], file: &str| {
            printed(Command::new("openssl").args(arguments).arg("-in").arg(dir.join(file)))
        };
        let of_key = public(&["pkey", "-pubout"], "tls.key")?;
        assert_eq!(public(&["x509", "-noout", "-pubkey"], "tls.crt")?, of_key);
    }
    let mode =
        |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    assert_eq!((mode(&ca)?, mode(&ca.join("ca.key"))?), (0o700, 0o600));

    // cert-manager makes them for the same names and uses.
    let objects = kustomized("overlays/full")?;
    for (title, dir) in [("orb8-agent", &agent), ("orb8-server", &server)] {
        let spec = &object(&objects, &format!("Certificate/{title}"))?["spec"];
        assert_eq!(spec["secretName"], format!("{title}-tls"));
        for name in spec["dnsNames"].as_array().context("no names")? {
            verify(dir, "sslserver", name.as_str().context("not text")?)?;
        }
        let is_client =
            spec["usages"].as_array().is_some_and(|u| u.iter().any(|u| u == "client auth"));
        assert_eq!(is_client, verify(dir, "sslclient", title).is_ok());
    }
    Ok(())
}

#[test]
fn a_second_run_keeps_the_ca_so_that_old_and_new_certificates_know_each_other() -> Result<()> {
    let (dir, temporary) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let ca = dir.path().join("ca").display().to_string();
    let first = secrets(temporary.path(), &[&ca])?;
    let second = secrets(temporary.path(), &["--namespace", "elsewhere", "--days", "2", &ca])?;
    let title = "Secret/orb8-server-tls";
    let (first, second) = (object(&first, title)?, object(&second, title)?);
    assert_eq!(first["data"]["ca.crt"], second["data"]["ca.crt"]);
    assert_ne!(first["data"]["tls.key"], second["data"]["tls.key"]);
    assert_eq!(second["metadata"]["namespace"], "elsewhere");
    let second = unpack(second, dir.path())?;
    verify(&second, "sslserver", "orb8-server.elsewhere.svc")?;
    Ok(())
}

#[test]
fn what_it_does_not_understand_it_refuses() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    for arguments in [&[][..], &["--dayz", "1", "x"], &["one", "two"], &["--days"]] {
        let made = make_certs(temporary.path(), arguments)?;
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        ensure!(!made.status.success() && said.contains("usage:"), "{arguments:?}: {said}");
        ensure!(made.stdout.is_empty(), "{arguments:?} made something");
    }
    Ok(())
}
