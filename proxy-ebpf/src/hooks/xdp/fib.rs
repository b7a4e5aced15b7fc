//! Next hops: the host's routing table, neighbours and MTU, queried by bpf_fib_lookup.

use core::mem::size_of;

use aya_ebpf::{
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use proxy_common::Device;

use crate::{
    base::{
        headers::{AF_INET, AF_INET6, Ipv4, Ipv6},
        maps::DEVICES,
        scratch::{FibLookup, Mac},
        verdict::XdpVerdict,
    },
    hooks::xdp::frame::{ETHERNET, Family, ip_len},
    packet::{
        access::{PacketData as _, ptr_at},
        parse::Packet,
    },
};

/// How a frame leaves.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum NextHop {
    /// Not from here.
    Unknown,
    /// By the device it came in by.
    SameDevice,
    /// By another that has our program too.
    OtherDevice,
}

#[inline(always)]
pub fn ingress_ifindex(ctx: &XdpContext) -> u32 {
    // SAFETY: a field of the context, which is valid while the program runs.
    unsafe { (&raw const (*ctx.ctx).ingress_ifindex).read_volatile() }
}

/// Fills in what the packet's headers say, as the host's stack would look it up: between the two halves. `None`: the
/// header promises more than there is.
#[inline(always)]
pub fn prepare<F: Family>(ctx: &XdpContext, packet: &Packet, fib: &mut FibLookup) -> Option<()> {
    let len = ip_len::<F>(ctx)?;
    let (data, end) = ctx.bounds();
    let whole = data + ETHERNET + len as usize <= end || {
        // SAFETY: the context the kernel gave. What a driver's further buffers hold is no part of the linear part.
        let all = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
        all >= u64::from(len) + ETHERNET as u64
    };
    if !whole || len > u32::from(u16::MAX) {
        return None;
    }
    fib.class = if F::V4 {
        // SAFETY: `at` checked the bounds.
        u32::from(unsafe { (*ptr_at::<Ipv4>(ctx, ETHERNET)?).tos })
    } else {
        // SAFETY: `at` checked the bounds.
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

/// Looks the way up. Anything but a neighbour that is known (no route, a local or blackhole one, a neighbour still to
/// be asked for, a packet that is too long) is tc's and the stack's, as is a frame that was not sent to this node.
#[inline(always)]
pub fn lookup(ctx: &XdpContext, fib: &mut FibLookup) -> NextHop {
    let came_in = fib.ifindex;
    // SAFETY: the structure is the kernel's, of the length given.
    let failed =
        unsafe { bpf_fib_lookup(ctx.ctx.cast(), (&raw mut *fib).cast(), size_of::<FibLookup>() as i32, 0) };
    // SAFETY: `at` checked the bounds.
    let Some(sent_to) = ptr_at::<[Mac; 2]>(ctx, 0).map(|macs| unsafe { (*macs)[0] }) else {
        return NextHop::Unknown;
    };
    if failed != 0 {
        return NextHop::Unknown;
    }
    if fib.ifindex == came_in {
        return if same_mac(sent_to, fib.from_mac) { NextHop::SameDevice } else { NextHop::Unknown };
    }
    // SAFETY: a map's memory for as long as this program runs; see `entry::lookup` for what may become of it meanwhile.
    let (Some(from), Some(to)) = (unsafe { DEVICES.get(came_in) }, unsafe { DEVICES.get(fib.ifindex) })
    else {
        return NextHop::Unknown;
    };
    // Generic to generic or driver to driver: a frame's buffer is not what the other kind of device sends.
    let both = from.flags & to.flags & (Device::XDP_NATIVE | Device::XDP_GENERIC);
    if both != 0 && same_mac(sent_to, from.mac) { NextHop::OtherDevice } else { NextHop::Unknown }
}

/// Comparison without branches.
#[inline(always)]
fn same_mac(a: Mac, b: Mac) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) == 0
}

/// Gives the frame its next hop and sends it.
#[inline(always)]
pub fn send(ctx: &XdpContext, next_hop: NextHop, fib: &FibLookup) -> XdpVerdict {
    let Some(macs) = ptr_at::<[Mac; 2]>(ctx, 0) else {
        return XdpVerdict::Pass;
    };
    // SAFETY: `at` checked the bounds.
    unsafe { *macs = [fib.to_mac, fib.from_mac] };
    match next_hop {
        NextHop::OtherDevice => {
            // SAFETY: takes numbers; without flags it cannot fail.
            let _redirect = unsafe { bpf_redirect(fib.ifindex, 0) };
            XdpVerdict::Redirect
        }
        _ => XdpVerdict::Tx,
    }
}

/// Sends a frame back by way of a redirect.
#[inline(always)]
pub fn redirect_back(ctx: &XdpContext) -> XdpVerdict {
    // SAFETY: takes numbers; without flags it cannot fail.
    let _redirect = unsafe { bpf_redirect(ingress_ifindex(ctx), 0) };
    XdpVerdict::Redirect
}
