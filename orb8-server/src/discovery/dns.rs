//! Agents behind one name: a headless Service has an address for each.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::sync::watch;

use super::{Member, Members};

/// Between two look-ups. Names of Services live for 5 to 30 seconds.
const INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn follow(name: &str, port: u16, members: &watch::Sender<Members>) {
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let found = tokio::net::lookup_host((name.trim_matches(['[', ']']), port)).await;
        members.send_if_modified(|known| {
            let next = match found {
                Ok(addresses) => Members { agents: addresses.map(member).collect(), problem: None },
                // The agents are still where they were.
                Err(error) => {
                    Members { problem: Some(format!("{name}: {error}")), ..known.clone() }
                }
            };
            let changed = *known != next;
            if let Some(problem) = next.problem.as_ref().filter(|_| changed) {
                tracing::warn!("agents: {problem}");
            }
            *known = next;
            changed
        });
    }
}

fn member(address: SocketAddr) -> Member {
    let address = match address.ip() {
        IpAddr::V4(ip) => format!("{ip}:{}", address.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", address.port()),
    };
    Member { address, node: None }
}
