//! The network signal, kernel side: parse a packet, find its flow, count it.

#[cfg(target_arch = "bpf")]
mod account;
#[cfg(target_arch = "bpf")]
mod early;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
mod host;
#[cfg(target_arch = "bpf")]
mod key;
#[cfg(target_arch = "bpf")]
mod mix;
pub mod parse;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod slot;

#[cfg(target_arch = "bpf")]
pub(crate) use {
    account::account,
    flows::pulse,
    host::{Netns, account as account_host, note_netns},
    mix::next_flow,
    skb::Device,
};
