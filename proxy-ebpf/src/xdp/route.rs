//! Where a frame of the XDP lane leaves: the host's routing table, neighbours and MTU, asked by bpf_fib_lookup.

use core::mem::size_of;

use aya_ebpf::{
    bindings::bpf_fib_lookup as FibParams,
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use proxy_common::{Addr, Device, Port};

use super::frame::{ETHERNET, Family, ip_len};
use crate::{
    maps::DEVICES,
    packet::{Frame as _, Ipv4, Ipv6, Packet, at},
    verdict::Lane,
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct bpf_fib_lookup`, its unions as XDP uses them.
#[repr(C)]
pub struct Fib {
    family: u8,
    proto: u8,
    sport: u16,
    dport: u16,
    /// Of the IP packet: the lookup compares it with the route's MTU.
    len: u16,
    /// In: the device the packet came in by. Out: the one it leaves by.
    pub ifindex: u32,
    /// Traffic class (IPv4) or flow information.
    class: u32,
    src: [u32; 4],
    dst: [u32; 4],
    table: u32,
    from_mac: Mac,
    to_mac: Mac,
}

type Mac = [u16; 3];

const _: () = assert!(size_of::<Fib>() == size_of::<FibParams>());

impl Fib {
    /// The destination to look up.
    #[inline(always)]
    pub fn towards(&mut self, dst: &Addr, port: Port, v4: bool) {
        self.dport = port.be();
        if v4 {
            self.dst[0] = dst.v4_be();
        } else {
            self.dst = dst.words();
        }
    }
}

/// How a frame leaves.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Way {
    /// Not from here.
    None,
    /// By the device it came in by.
    Back,
    /// By another that has our program too.
    Across,
}

#[inline(always)]
pub fn came_in(ctx: &XdpContext) -> u32 {
    // SAFETY: a field of the context, which is valid while the program runs.
    unsafe { (&raw const (*ctx.ctx).ingress_ifindex).read_volatile() }
}

/// Fills in what the packet's headers say, as the host's stack would look it up: between the two halves. `None`: the
/// header promises more than there is.
#[inline(always)]
pub fn prepare<F: Family>(ctx: &XdpContext, packet: &Packet, fib: &mut Fib) -> Option<()> {
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
        u32::from(unsafe { (*at::<Ipv4>(ctx, ETHERNET)?).tos })
    } else {
        // SAFETY: `at` checked the bounds.
        unsafe { (*at::<Ipv6>(ctx, ETHERNET)?).version_class_flow & 0x0fff_ffff_u32.to_be() }
    };
    fib.family = if F::V4 { AF_INET } else { AF_INET6 };
    fib.proto = packet.key.proto;
    fib.sport = packet.key.sport.be();
    fib.len = len as u16;
    fib.ifindex = came_in(ctx);
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
pub fn way(ctx: &XdpContext, fib: &mut Fib) -> Way {
    let came_in = fib.ifindex;
    // SAFETY: the structure is the kernel's, of the length given.
    let failed =
        unsafe { bpf_fib_lookup(ctx.ctx.cast(), (&raw mut *fib).cast(), size_of::<Fib>() as i32, 0) };
    // SAFETY: `at` checked the bounds.
    let Some(sent_to) = at::<[Mac; 2]>(ctx, 0).map(|macs| unsafe { (*macs)[0] }) else {
        return Way::None;
    };
    if failed != 0 {
        return Way::None;
    }
    if fib.ifindex == came_in {
        return if same(sent_to, fib.from_mac) { Way::Back } else { Way::None };
    }
    // SAFETY: a map's memory for as long as this program runs; see `flow::lookup` for what may become of it meanwhile.
    let (Some(from), Some(to)) = (unsafe { DEVICES.get(came_in) }, unsafe { DEVICES.get(fib.ifindex) })
    else {
        return Way::None;
    };
    // Generic to generic or driver to driver: a frame's buffer is not what the other kind of device sends.
    let both = from.flags & to.flags & (Device::XDP_NATIVE | Device::XDP_GENERIC);
    if both != 0 && same(sent_to, from.mac) { Way::Across } else { Way::None }
}

/// Comparison without branches.
#[inline(always)]
fn same(a: Mac, b: Mac) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) == 0
}

/// Gives the frame its next hop and sends it.
#[inline(always)]
pub fn send(ctx: &XdpContext, way: Way, fib: &Fib) -> Lane {
    let Some(macs) = at::<[Mac; 2]>(ctx, 0) else {
        return Lane::Pass;
    };
    // SAFETY: `at` checked the bounds.
    unsafe { *macs = [fib.to_mac, fib.from_mac] };
    match way {
        Way::Across => {
            // SAFETY: takes numbers; without flags it cannot fail.
            let _redirect = unsafe { bpf_redirect(fib.ifindex, 0) };
            Lane::Across
        }
        _ => Lane::Back,
    }
}

/// Sends a frame back by way of a redirect.
#[inline(always)]
pub fn back_across(ctx: &XdpContext) -> Lane {
    // SAFETY: takes numbers; without flags it cannot fail.
    let _redirect = unsafe { bpf_redirect(came_in(ctx), 0) };
    Lane::Across
}
