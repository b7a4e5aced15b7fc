//! shunt's eBPF programs: entry points only. Each stage of the packet line is a module of its own; the order
//! they run in is `ingress.rs` and `egress.rs` for packets, `socket.rs` for the node's own sockets.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// Keys and values of maps go to the helpers by reference from where they are: by value, each would be copied to the
// 512-byte stack first.
#![allow(clippy::needless_borrows_for_generic_args)]

mod affinity;
mod atomic;
mod begin;
mod count;
mod echo;
mod egress;
mod flow;
mod fragment;
mod globals;
mod half_open;
mod headers;
mod held;
mod icmp_error;
mod ingress;
mod maps;
mod new_flow;
mod nobody;
mod odd;
mod packet;
mod reject;
mod rewrite;
mod service;
mod socket;
mod source;
mod strip;
mod trace;
mod verdict;
mod watch;
mod xdp;

use aya_ebpf::{
    helpers::bpf_jiffies64,
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};

use packet::{Ethernet, NoHeader};
use proxy_common::Half;

/// tc ingress of a device with Ethernet headers.
#[classifier]
pub fn ingress_l2(ctx: TcContext) -> i32 {
    ingress::ingress::<Ethernet>(&ctx).tc_action::<Ethernet>(&ctx, Half::Ingress)
}

/// tc egress of a device with Ethernet headers.
#[classifier]
pub fn egress_l2(ctx: TcContext) -> i32 {
    egress::egress::<Ethernet>(&ctx).tc_action::<Ethernet>(&ctx, Half::Egress)
}

/// tc ingress of a device whose packets begin with the IP header (ipip, gre, wireguard, tun).
#[classifier]
pub fn ingress_l3(ctx: TcContext) -> i32 {
    ingress::ingress::<NoHeader>(&ctx).tc_action::<NoHeader>(&ctx, Half::Ingress)
}

/// tc egress of a device whose packets begin with the IP header.
#[classifier]
pub fn egress_l3(ctx: TcContext) -> i32 {
    egress::egress::<NoHeader>(&ctx).tc_action::<NoHeader>(&ctx, Half::Egress)
}

/// tc ingress of a device with our XDP program: what that has translated goes on, everything else goes to
/// `ingress_l2`.
#[classifier]
pub fn ingress_xdp(ctx: TcContext) -> i32 {
    xdp::gate(&ctx);
    verdict::Verdict::NEXT.tc_action::<Ethernet>(&ctx, Half::Ingress)
}

/// XDP in the driver of an uplink.
#[xdp(frags)]
#[inline(always)]
pub fn xdp_native(ctx: XdpContext) -> u32 {
    xdp::receive(&ctx).xdp_action()
}

/// XDP of an uplink in generic mode, and in the driver of a veth: what passes is tagged, and what goes back out is
/// redirected, because after XDP_TX a veth wakes a peer only if that has an XDP program too.
#[xdp(frags)]
#[inline(always)]
pub fn xdp_soft(ctx: XdpContext) -> u32 {
    match xdp::receive(&ctx) {
        verdict::Lane::Back => xdp::back_across(&ctx),
        fate if fate.is_untouched() => {
            xdp::tag_generic(&ctx);
            fate
        }
        fate => fate,
    }
    .xdp_action()
}

/// Never attached: BPF_PROG_TEST_RUN of it tells user space the kernel's jiffies (low 32 bits), the clock
/// that every time stamp in the maps is read from.
#[classifier]
pub fn clock(_ctx: TcContext) -> i32 {
    // SAFETY: takes no arguments and has no effect.
    let jiffies = unsafe { bpf_jiffies64() };
    jiffies as i32
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect::<socket::V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect::<socket::V6>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg::<socket::V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg::<socket::V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<socket::V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<socket::V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<socket::V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<socket::V6>(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses programs that could loop here.
    loop {}
}

/// bpf_l4_csum_replace, bpf_redirect and the like are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
