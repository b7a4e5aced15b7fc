//! Next hops: the host's routing table, neighbours and MTU, queried by bpf_fib_lookup.

use core::mem::size_of;

use aya_ebpf::{
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use proxy_common::Device;

use crate::{
    base::{
        maps::DEVICES,
        protocol_headers::{AF_INET, AF_INET6, Ipv4, Ipv6},
        scratch::{FibLookup, Mac},
        verdict::XdpVerdict,
    },
    hooks::xdp::frame::{ETHERNET, Family, ip_len},
    packet::{
        access::{PacketData as _, ptr_at},
        parse::Packet,
    },
};

/// Where a frame leaves.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum NextHop {
    /// Unknown to XDP; left to tc.
    Unknown,
    /// By the device that it arrived on.
    SameDevice,
    /// By another device, which has our XDP program too.
    OtherDevice,
}

#[inline(always)]
pub fn ingress_ifindex(ctx: &XdpContext) -> u32 {
    // SAFETY: a field of the context, which is valid while the program runs.
    unsafe { (&raw const (*ctx.ctx).ingress_ifindex).read_volatile() }
}

/// Fills in the lookup from the packet's headers, with the client's address as the source, as in the host's own
/// lookup. `None`: the packet is shorter than its header says.
#[inline(always)]
pub fn prepare<F: Family>(ctx: &XdpContext, packet: &Packet, fib: &mut FibLookup) -> Option<()> {
    let len = ip_len::<F>(ctx)?;
    let (data, end) = ctx.bounds();
    let whole = data + ETHERNET + len as usize <= end || {
        // SAFETY: the kernel's context. What a driver's further buffers hold is no part of the linear part.
        let all = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
        all >= u64::from(len) + ETHERNET as u64
    };
    if !whole || len > u32::from(u16::MAX) {
        return None;
    }
    fib.class = if F::V4 {
        // SAFETY: `ptr_at` checked the bounds.
        u32::from(unsafe { (*ptr_at::<Ipv4>(ctx, ETHERNET)?).tos })
    } else {
        // SAFETY: `ptr_at` checked the bounds.
        unsafe { (*ptr_at::<Ipv6>(ctx, ETHERNET)?).version_class_flow & 0x0fff_ffff_u32.to_be() }
    };
    fib.family = if F::V4 { AF_INET } else { AF_INET6 };
    fib.proto = packet.key.proto;
    fib.sport = packet.key.sport.be();
    fib.len = len as u16;
    fib.ifindex = ingress_ifindex(ctx);
    if F::V4 {
        fib.src[0] = packet.key.src.v4_be();
    } else {
        fib.src = packet.key.src.words();
    }
    fib.table = 0;
    Some(())
}

/// Looks up the next hop. Everything but a known neighbour (no route, a local or blackhole route, an unresolved
/// neighbour, a packet above the MTU) is left to tc and the stack, and so is a frame to another machine's MAC
/// address.
#[inline(always)]
pub fn lookup(ctx: &XdpContext, fib: &mut FibLookup) -> NextHop {
    let came_in = fib.ifindex;
    // SAFETY: the structure has the kernel's layout, and its length is passed.
    let failed =
        unsafe { bpf_fib_lookup(ctx.ctx.cast(), (&raw mut *fib).cast(), size_of::<FibLookup>() as i32, 0) };
    // SAFETY: `ptr_at` checked the bounds.
    let Some(sent_to) = ptr_at::<[Mac; 2]>(ctx, 0).map(|macs| unsafe { (*macs)[0] }) else {
        return NextHop::Unknown;
    };
    if failed != 0 {
        return NextHop::Unknown;
    }
    if fib.ifindex == came_in {
        return if same_mac(sent_to, fib.from_mac) { NextHop::SameDevice } else { NextHop::Unknown };
    }
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    let (Some(from), Some(to)) = (unsafe { DEVICES.get(came_in) }, unsafe { DEVICES.get(fib.ifindex) })
    else {
        return NextHop::Unknown;
    };
    // Both generic or both in the driver: a device cannot send the buffers of the other kind.
    let both = from.flags & to.flags & (Device::XDP_NATIVE | Device::XDP_GENERIC);
    if both != 0 && same_mac(sent_to, from.mac) { NextHop::OtherDevice } else { NextHop::Unknown }
}

/// Equality without branches, each of which the verifier would follow.
#[inline(always)]
fn same_mac(a: Mac, b: Mac) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) == 0
}

/// Writes the MAC addresses and sends the frame.
#[inline(always)]
pub fn send(ctx: &XdpContext, next_hop: NextHop, fib: &FibLookup) -> XdpVerdict {
    let Some(macs) = ptr_at::<[Mac; 2]>(ctx, 0) else {
        return XdpVerdict::Pass;
    };
    // SAFETY: `ptr_at` checked the bounds.
    unsafe { *macs = [fib.to_mac, fib.from_mac] };
    match next_hop {
        NextHop::OtherDevice => {
            // SAFETY: takes numbers only; without flags it cannot fail.
            let _redirect = unsafe { bpf_redirect(fib.ifindex, 0) };
            XdpVerdict::Redirect
        }
        _ => XdpVerdict::Tx,
    }
}

/// Sends a frame back by a redirect.
#[inline(always)]
pub fn redirect_back(ctx: &XdpContext) -> XdpVerdict {
    // SAFETY: takes numbers only; without flags it cannot fail.
    let _redirect = unsafe { bpf_redirect(ingress_ifindex(ctx), 0) };
    XdpVerdict::Redirect
}
