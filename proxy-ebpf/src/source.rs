//! Source translation, completed: the first egress hook that a flow meets gives it an address of its device
//! and reserves the port.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    programs::TcContext,
};
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Port};

use crate::{
    atomic,
    begin::{EXISTS, PROBES, is_in_pool, random_port},
    flow,
    maps::{CONNTRACK, DEVICES, NODE_CONFIG},
    packet::{Packet, skb},
    verdict::DropReason,
};

/// Completes the pending masquerade half `entry`; two CPUs may do so for one flow at once, and the first to
/// publish its port wins.
#[inline(always)]
pub fn complete(ctx: &TcContext, packet: &Packet, entry: &mut CtEntry) -> Result<(), DropReason> {
    let addr = address(ctx, packet.v4).ok_or(Counter::NoFreeSource)?;
    let (reserved, port) = reserve(packet, entry, addr)?;
    // Whoever races here writes the same address: one flow leaves by one device.
    entry.addr = addr;
    // SAFETY: a live map value, 8-byte aligned; completed by this exchange alone.
    let published = unsafe { atomic::set_if_zero(&raw mut entry.port, u64::from(port.be())) };
    if let Err(won) = published
        && won != u64::from(port.be())
    {
        let _gone = CONNTRACK.remove(reserved);
    }
    Ok(())
}

/// The address of this device, else the node's primary one: over a tunnel the node's own address would fail
/// the other side's strict rp_filter.
#[inline(always)]
fn address(ctx: &TcContext, v4: bool) -> Option<Addr> {
    // SAFETY: BPF_F_NO_PREALLOC: an element is freed only after this program has ended.
    if let Some(device) = unsafe { DEVICES.get(skb(ctx).ifindex) } {
        let own = if v4 { device.source_v4 } else { device.source_v6 };
        if !own.is_unspecified() {
            return Some(own);
        }
    }
    let config = NODE_CONFIG.get(0)?;
    let primary = if v4 { config.primary_v4 } else { config.primary_v6 };
    if primary.is_unspecified() { None } else { Some(primary) }
}

/// Reserves a port of the node towards this backend by inserting the unmasquerade half: the client's own if
/// it is in the pool, else a random one, with bounded probing.
#[inline(always)]
fn reserve(packet: &Packet, pending: &CtEntry, addr: Addr) -> Result<(CtKey, Port), DropReason> {
    let key = &packet.key;
    let entry = CtEntry {
        addr: key.src,
        port: u64::from(key.sport.be()),
        peer_port: key.dport,
        flags: CtEntry::UNMASQUERADE | CtEntry::SERVICE,
        ..*pending
    };
    let mut back = CtKey::new(key.dst, key.dport, addr, key.sport, key.proto, Half::Ingress);
    let mut probe = 0;
    while probe < PROBES {
        if is_in_pool(back.dport) {
            match CONNTRACK.insert(&back, &entry, u64::from(BPF_NOEXIST)) {
                Ok(()) => return Ok((back, back.dport)),
                Err(EXISTS) => {
                    if let Some(found) = flow::lookup(&back) {
                        if found.addr == entry.addr && found.port == entry.port {
                            return Ok((back, back.dport));
                        }
                        if is_abandoned(&back, found)
                            && CONNTRACK.insert(&back, &entry, u64::from(BPF_ANY)).is_ok()
                        {
                            return Ok((back, back.dport));
                        }
                    }
                }
                Err(_) => return Err(Counter::ConntrackFull),
            }
        }
        back.dport = random_port();
        probe += 1;
    }
    Err(Counter::NoFreeSource)
}

/// Whether the flow that reserved this port is over; if so, its other halves are removed.
#[inline(always)]
fn is_abandoned(back: &CtKey, found: &CtEntry) -> bool {
    if !found.has(CtEntry::UNMASQUERADE) {
        return false;
    }
    let reply = CtKey::new(back.src, back.sport, found.addr, found.port(), back.proto, Half::Egress);
    let Some(half) = flow::lookup(&reply) else {
        return true;
    };
    if !half.has(CtEntry::REPLY) || !flow::is_closed(back.proto, half) {
        return false;
    }
    flow::forget_by_reply(&reply, half, true);
    true
}
