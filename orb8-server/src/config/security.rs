//! What is encrypted, who is asked who they are, and when the answer may be: nobody.

use std::net::SocketAddr;

use orb8_transport::{Address, ClientAuth, ClientFiles, ServerFiles};

use super::RawConfig;
use crate::{access::Authority, discovery::Source};

/// What agents' certificates are for where orb8's own manifests install them.
const AGENT_NAME: &str = "orb8-agent.orb8-system.svc";

impl RawConfig {
    pub(super) fn server_tls(&self, problems: &mut Vec<String>) -> Option<ServerFiles> {
        let (certificate, key) = (self.tls_cert.clone(), self.tls_key.clone());
        ServerFiles::from_options("tls", certificate, key, self.tls_client_ca.clone())
            .unwrap_or_else(|error| {
                problems.push(error.to_string());
                None
            })
    }

    /// Plain text to agents only where nobody can listen, or where that was asked for.
    pub(super) fn agent_tls(
        &self,
        agents: &Source,
        problems: &mut Vec<String>,
    ) -> Option<ClientFiles> {
        let files = ClientFiles::from_options(
            "agent-tls",
            self.agent_tls_ca.clone(),
            self.agent_tls_cert.clone(),
            self.agent_tls_key.clone(),
            self.agent_tls_server_name.clone(),
        );
        let problem = match files {
            Ok(Some(mut files)) => {
                files.server_name.get_or_insert_with(|| AGENT_NAME.to_owned());
                return Some(files);
            }
            Ok(None) if self.insecure || is_here(agents) => return None,
            Ok(None) => format!(
                "agents: {agents} would be asked in plain text; give --agent-tls-ca, \
                 --agent-tls-cert and --agent-tls-key, or say --insecure"
            ),
            Err(error) => error.to_string(),
        };
        problems.push(problem);
        None
    }

    pub(super) fn authority(
        &self,
        listen: SocketAddr,
        encrypted: bool,
        problems: &mut Vec<String>,
    ) -> Authority {
        let client_ca = self.tls_client_ca.as_ref().is_some_and(|ca| !ca.as_os_str().is_empty());
        let among_us = listen.ip().is_loopback() || self.insecure;
        let problem = match self.auth.as_deref() {
            Some("kubernetes") => return Authority::Kubernetes,
            Some("certificates") | None if client_ca => return Authority::Certificates,
            Some("none") if client_ca || among_us => return Authority::Nobody,
            None if among_us => return Authority::Nobody,
            // Told of the address already.
            None if !encrypted => return Authority::Nobody,
            None | Some("none") => format!(
                "auth: whoever reaches {listen} would see every pod of the cluster; say --auth \
                 kubernetes, give --tls-client-ca, or say --insecure"
            ),
            Some("certificates") => {
                "auth: certificates takes --tls-client-ca, the CA that they are from".into()
            }
            Some(other) => {
                format!("auth: {other:?} is unknown; expected none, certificates or kubernetes")
            }
        };
        problems.push(problem);
        Authority::Nobody
    }
}

/// Somebody with a token needs no certificate; where certificates are all there is, nobody gets a
/// connection without one.
pub(super) fn as_asked_by(authority: Authority, files: ServerFiles) -> ServerFiles {
    let client_auth = match authority {
        Authority::Kubernetes => ClientAuth::Optional,
        Authority::Nobody | Authority::Certificates => ClientAuth::Required,
    };
    ServerFiles { client_auth, ..files }
}

/// Whether all agents are on this machine.
fn is_here(agents: &Source) -> bool {
    let Source::List(agents) = agents else { return false };
    let mut addresses = agents.iter().map(|agent| agent.address.parse::<Address>());
    addresses.all(|address| address.is_ok_and(|address| address.is_loopback()))
}
