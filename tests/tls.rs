//! An agent that serves TLS, and the command line that asks it: the real programs, with certificates
//! made for the occasion.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_tests::binary;
use orb8_transport::{Address, ClientFiles, ClientTls, Connector, Limits};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const PATIENCE: Duration = Duration::from_secs(30);

/// A CA, a pair for `localhost` and one for a person, in the files of a directory.
fn write_certificates(dir: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    fs::write(dir.join("ca.crt"), params.self_signed(&key)?.pem())?;
    let ca = Issuer::new(params, key);
    for name in ["localhost", "me"] {
        let mut params = CertificateParams::new([name.into()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        fs::write(dir.join(format!("{name}.crt")), params.signed_by(&key, &ca)?.pem())?;
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// A running agent. It traces nothing: its port is what this is about.
struct Agent {
    process: Child,
    address: String,
}

impl Agent {
    fn command(arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("orb8-agent")?);
        command.args(["--metrics-listen", "127.0.0.1:0", "--interface", "no-such-veth*"]);
        command.args(["--node-name", "the-node", "--runtime", "off", "--kubernetes", "off"]);
        command.args(arguments).env_remove("RUST_LOG").stderr(Stdio::piped());
        Ok(command)
    }

    /// On a free port, which it logs.
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut process = Self::command(arguments)?.spawn()?;
        let mut log = BufReader::new(process.stderr.take().context("no log")?);
        let mut said = String::new();
        let address = loop {
            let from = said.len();
            if log.read_line(&mut said)? == 0 {
                process.wait()?;
                anyhow::bail!("the agent ended; it said:\n{said}");
            }
            let port = said[from..].split_once("grpc").and_then(|(_, rest)| {
                let rest = rest.split_once("Some(")?.1.split_once(')')?.0;
                rest.rsplit_once(':').map(|(_, port)| port.to_owned())
            });
            if let Some(port) = port {
                break format!("https://localhost:{port}");
            }
        };
        // Whatever it says from now on is read, for it not to wait.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Self { process, address })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _waited = self.process.wait();
    }
}

fn orb8(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("orb8")?).args(arguments).stdin(Stdio::null()).output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `dir/name` for each of the files that were written.
fn paths(dir: &Path) -> impl Fn(&str) -> String {
    let dir: PathBuf = dir.into();
    move |name| dir.join(name).display().to_string()
}

#[test]
fn a_person_with_a_certificate_is_answered_and_one_without_is_told_why() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write_certificates(dir.path())?;
    let at = paths(dir.path());
    let agent = Agent::start(&[
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        &at("localhost.crt"),
        "--tls-key",
        &at("localhost.key"),
        "--tls-client-ca",
        &at("ca.crt"),
    ])?;
    let (ca, certificate, key) = (at("ca.crt"), at("me.crt"), at("me.key"));
    let trusting = ["status", "--server", &agent.address, "--tls-ca", &ca];
    let showing = [&trusting[..], &["--tls-cert", &certificate, "--tls-key", &key]].concat();

    let answer = orb8(&showing)?;
    ensure!(String::from_utf8_lossy(&answer.stdout).contains("the-node"), "{answer:?}");

    let refused = orb8(&trusting)?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(stderr(&refused).contains("asks for a client certificate"), "{refused:?}");
    let plain = agent.address.replace("https", "http");
    let refused = orb8(&["status", "--server", &plain])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(stderr(&refused).contains("the server speaks TLS"), "{refused:?}");
    let half = orb8(&["status", "--server", &agent.address, "--tls-key", &key])?;
    ensure!(half.status.code() == Some(64), "{half:?}");
    ensure!(stderr(&half).contains("--tls-cert is missing"), "{half:?}");

    // Everything anew, the CA as well: the agent takes it while it runs.
    write_certificates(dir.path())?;
    let began = Instant::now();
    loop {
        let answer = orb8(&showing)?;
        if String::from_utf8_lossy(&answer.stdout).contains("the-node") {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "the new certificates are not in use: {answer:?}");
    }
    Ok(())
}

#[test]
fn health_says_whether_a_signal_delivers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write_certificates(dir.path())?;
    let at = paths(dir.path());
    let (certificate, key) = (at("localhost.crt"), at("localhost.key"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    // Beyond loopback, as TLS allows.
    let agent = Agent::start(&[&["--listen", "0.0.0.0:0"][..], &tls].concat())?;
    let ca = Some(dir.path().join("ca.crt"));
    let connector = Connector::new(
        Some(ClientTls::load(ClientFiles { ca, ..ClientFiles::default() })?),
        Limits::default(),
    );
    let address: Address = agent.address.parse().map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let channel = connector.connect(&address).await?;
        let mut orb8 = orb8_proto::orbit_service_client::OrbitServiceClient::new(channel.clone());
        let status =
            orb8.get_agent_status(orb8_proto::StatusRequest::default()).await?.into_inner();
        let delivers = status.signals.iter().any(|signal| {
            use orb8_proto::SignalState::{Active, Degraded};
            [Active, Degraded].contains(&signal.state())
        });
        let mut health = HealthClient::new(channel);
        let service = String::from("orb8.OrbitService");
        let answer = health.check(HealthCheckRequest { service }).await?.into_inner();
        let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
        ensure!((answer.status() == serving) == delivers, "{answer:?}, {status:?}");
        Ok(())
    })
}

#[test]
fn an_agent_that_would_be_unsafe_or_unreachable_does_not_start() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write_certificates(dir.path())?;
    let at = paths(dir.path());
    let (certificate, other_key) = (at("localhost.crt"), at("me.key"));
    for (arguments, words) in [
        (&["--listen", "0.0.0.0:0"][..], "give --tls-cert and --tls-key"),
        (&["--tls-cert", &certificate], "--tls-key is missing"),
        (&["--tls-cert", &certificate, "--tls-key", "/no/such"], "/no/such: cannot be read"),
        (&["--tls-cert", &certificate, "--tls-key", &other_key], "is not the key of"),
    ] {
        let ended = Agent::command(arguments)?.stdin(Stdio::null()).output()?;
        ensure!(!ended.status.success(), "{arguments:?}");
        ensure!(stderr(&ended).contains(words), "{ended:?} does not say {words:?}");
    }
    Ok(())
}
