//! SERVICE_STATS: flows, packets and bytes of each Service. Called by the hooks with each translated packet.

use aya_ebpf::{
    helpers::bpf_xdp_get_buff_len,
    programs::{TcContext, XdpContext},
};
use proxy_common::{CtEntry, ServiceStats};

use crate::{
    base::{atomic, globals, maps::SERVICE_STATS},
    packet::access::skb,
};

/// How much a packet adds to the statistics.
pub trait PacketSize {
    fn packets(&self) -> u64;
    fn bytes(&self) -> u64;
}

impl PacketSize for TcContext {
    #[inline(always)]
    fn packets(&self) -> u64 {
        // Both are 0 unless this is a GSO packet. Packets from a virtual machine have only the size.
        let (segments, size) = (skb(self).gso_segs, skb(self).gso_size);
        if segments != 0 {
            return u64::from(segments);
        }
        if size == 0 { 1 } else { u64::from(self.len().div_ceil(size)) }
    }

    #[inline(always)]
    fn bytes(&self) -> u64 {
        u64::from(self.len())
    }
}

impl PacketSize for XdpContext {
    #[inline(always)]
    fn packets(&self) -> u64 {
        1
    }

    #[inline(always)]
    fn bytes(&self) -> u64 {
        // SAFETY: the kernel's context. Not the distance of its pointers: a jumbo frame goes on elsewhere.
        unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }
}

/// The statistics of a service port on this CPU; service 0 is none.
#[inline(always)]
fn stats(service: u32) -> Option<&'static mut ServiceStats> {
    if service == 0 || !globals::stats() {
        return None;
    }
    // SAFETY: a live element of a per-CPU array, which only this CPU writes.
    SERVICE_STATS.get_ptr_mut(service).map(|stats| unsafe { &mut *stats })
}

/// Counts a new flow to a Service. Atomic, because a packet may interrupt a process in a socket hook.
#[inline(always)]
pub fn count_flow(service: u32) {
    if let Some(stats) = stats(service) {
        // SAFETY: a live map value, 8-byte aligned.
        unsafe { atomic::add_one(&raw mut stats.flows) };
    }
}

/// Counts a packet from a client.
#[inline(always)]
pub fn count_request(ctx: &impl PacketSize, service: u32) {
    if let Some(stats) = stats(service) {
        stats.packets_in += ctx.packets();
        stats.bytes_in += ctx.bytes();
    }
}

/// Counts a packet to a client.
#[inline(always)]
pub fn count_reply(ctx: &impl PacketSize, service: u32) {
    if let Some(stats) = stats(service) {
        stats.packets_out += ctx.packets();
        stats.bytes_out += ctx.bytes();
    }
}

/// Counts a packet of a request or reply half.
#[inline(always)]
pub fn count_packet(ctx: &impl PacketSize, entry: &CtEntry) {
    if entry.has(CtEntry::REQUEST) {
        count_request(ctx, entry.service);
    } else if entry.has(CtEntry::REPLY) {
        count_reply(ctx, entry.service);
    }
}
