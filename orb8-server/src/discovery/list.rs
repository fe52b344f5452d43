//! Agents that were named one by one.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::{Member, Members};

pub(super) fn publish(agents: BTreeSet<Member>, members: &watch::Sender<Members>) {
    members.send_replace(Members { agents, problem: None });
}
