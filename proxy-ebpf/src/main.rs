//! shunt's eBPF programs: entry points only. Each program runs its hook (`hooks/`) and returns what `finish.rs` makes of
//! the verdict. `floors.txt` lists the floors of this crate from the top; a file imports only from floors below its own.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// Keys and values are passed to the map helpers by reference to where they are: by value, each would first be copied
// to the 512-byte stack.
#![allow(clippy::needless_borrows_for_generic_args)]

mod base;
mod conntrack;
mod finish;
mod hooks;
mod load_balancing;
mod new_flow;
mod observe;
mod packet;
mod respond;
mod slow_path;

use aya_ebpf::{
    helpers::bpf_jiffies64,
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use proxy_common::Half;

use crate::{
    hooks::socket::{
        self,
        sock_addr::{V4, V6},
    },
    packet::link::{Ethernet, NoHeader},
};

/// tc ingress of a device with Ethernet headers.
#[classifier]
pub fn ingress_l2(ctx: TcContext) -> i32 {
    finish::tc::<Ethernet>(&ctx, Half::Ingress, hooks::ingress::ingress::<Ethernet>(&ctx))
}

/// tc egress of a device with Ethernet headers.
#[classifier]
pub fn egress_l2(ctx: TcContext) -> i32 {
    finish::tc::<Ethernet>(&ctx, Half::Egress, hooks::egress::egress::<Ethernet>(&ctx))
}

/// tc ingress of a device whose packets begin with the IP header (ipip, gre, wireguard, tun).
#[classifier]
pub fn ingress_l3(ctx: TcContext) -> i32 {
    finish::tc::<NoHeader>(&ctx, Half::Ingress, hooks::ingress::ingress::<NoHeader>(&ctx))
}

/// tc egress of a device whose packets begin with the IP header.
#[classifier]
pub fn egress_l3(ctx: TcContext) -> i32 {
    finish::tc::<NoHeader>(&ctx, Half::Egress, hooks::egress::egress::<NoHeader>(&ctx))
}

/// tc ingress of a device with our XDP program: packets that it has translated continue, everything else goes to
/// `ingress_l2`.
#[classifier]
pub fn ingress_xdp(ctx: TcContext) -> i32 {
    finish::tc::<Ethernet>(&ctx, Half::Ingress, hooks::ingress_xdp::ingress_xdp(&ctx))
}

/// XDP in the driver of an uplink.
#[xdp(frags)]
#[inline(always)]
pub fn xdp_native(ctx: XdpContext) -> u32 {
    finish::xdp(hooks::xdp::receive(&ctx))
}

/// XDP in generic mode, and in the driver of a veth.
#[xdp(frags)]
#[inline(always)]
pub fn xdp_soft(ctx: XdpContext) -> u32 {
    finish::xdp(hooks::xdp::receive_generic(&ctx))
}

/// Never attached. User space runs it by BPF_PROG_TEST_RUN to read the kernel's jiffies (low 32 bits), the clock of
/// all time stamps in the maps.
#[classifier]
pub fn clock(_ctx: TcContext) -> i32 {
    // SAFETY: takes no arguments and has no effect.
    let jiffies = unsafe { bpf_jiffies64() };
    jiffies as i32
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect::<V6>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::show_frontend::<V6>(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier rejects programs that could loop here.
    loop {}
}

/// bpf_l4_csum_replace, bpf_redirect and others are available to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
