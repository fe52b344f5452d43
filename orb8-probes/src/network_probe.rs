//! The object `network_probe`: one classifier per direction and kind of device, a pair for the
//! sockets of the node itself, a pulse, and what measurements compare with.
//!
//! Scroll down to drill down: hook → packet → flow → counters.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "maps, packets and helpers are raw pointers on this side")]

mod emit;
mod filter;
mod network;

use aya_ebpf::{
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use network::{Device, Netns};
use orb8_common::network::key_flags::HOOK_EGRESS;

/// `TCX_NEXT`, which is also `TC_ACT_UNSPEC`: leave the verdict to whoever comes next. `TC_ACT_OK`
/// would end the chain and switch off other people's filters on this interface.
const NEXT: i32 = -1;

#[classifier]
pub fn orb8_ingress(ctx: TcContext) -> i32 {
    network::account(&ctx, Device::Ethernet, 0);
    NEXT
}

#[classifier]
pub fn orb8_egress(ctx: TcContext) -> i32 {
    network::account(&ctx, Device::Ethernet, HOOK_EGRESS);
    NEXT
}

/// For devices whose packets begin with the network header.
#[classifier]
pub fn orb8_ingress_l3(ctx: TcContext) -> i32 {
    network::account(&ctx, Device::Network, 0);
    NEXT
}

/// For devices whose packets begin with the network header.
#[classifier]
pub fn orb8_egress_l3(ctx: TcContext) -> i32 {
    network::account(&ctx, Device::Network, HOOK_EGRESS);
    NEXT
}

/// What a program at a cgroup says to let the packet pass.
const ALLOW: i32 = 1;

/// Sockets of the agent's network namespace. Linux 6.15 or later.
#[cgroup_skb(ingress)]
pub fn orb8_host_ingress(ctx: SkBuffContext) -> i32 {
    network::account_host(&ctx, Netns::Own, 0);
    ALLOW
}

/// Sockets of the agent's network namespace. Linux 6.15 or later.
#[cgroup_skb(egress)]
pub fn orb8_host_egress(ctx: SkBuffContext) -> i32 {
    network::account_host(&ctx, Netns::Own, HOOK_EGRESS);
    ALLOW
}

/// Sockets of listed cgroups, whatever their network namespace: for older kernels.
#[cgroup_skb(ingress)]
pub fn orb8_host_ingress_listed(ctx: SkBuffContext) -> i32 {
    network::account_host(&ctx, Netns::Any, 0);
    ALLOW
}

/// Sockets of listed cgroups, whatever their network namespace: for older kernels.
#[cgroup_skb(egress)]
pub fn orb8_host_egress_listed(ctx: SkBuffContext) -> i32 {
    network::account_host(&ctx, Netns::Any, HOOK_EGRESS);
    ALLOW
}

/// Attached nowhere: the agent runs it, so that the programs know its network namespace. Linux 6.15
/// or later.
#[cgroup_skb(egress)]
pub fn orb8_host_netns(ctx: SkBuffContext) -> i32 {
    network::note_netns(&ctx);
    ALLOW
}

/// Attached nowhere: the floor under measurements of the programs at cgroups.
#[cgroup_skb(egress)]
pub fn orb8_host_empty(_ctx: SkBuffContext) -> i32 {
    ALLOW
}

/// Attached nowhere: the agent runs it to read the kernel's clocks and the ring's fill.
#[classifier]
pub fn orb8_pulse(_ctx: TcContext) -> i32 {
    network::pulse();
    NEXT
}

/// Attached nowhere: the floor under every measurement of the others.
#[classifier]
pub fn orb8_empty(_ctx: TcContext) -> i32 {
    NEXT
}

/// Attached nowhere: `orb8_ingress` on packets of many flows, for measurements.
#[classifier]
pub fn orb8_mix(ctx: TcContext) -> i32 {
    network::next_flow(&ctx);
    network::account(&ctx, Device::Ethernet, 0);
    NEXT
}

/// Attached nowhere: the floor under measurements of `orb8_mix`.
#[classifier]
pub fn orb8_mix_empty(ctx: TcContext) -> i32 {
    network::next_flow(&ctx);
    NEXT
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here, so nothing can.
    loop {}
}
