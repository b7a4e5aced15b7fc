//! Source translation (SNAT), completed by the first egress hook that a flow meets: it takes the address that the kernel
//! would choose and reserves a port of the node.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Proto, node::port_bits};

use crate::{
    base::{
        atomic,
        maps::{CONNTRACK, EEXIST, flow_context},
        scratch::FlowContext,
        verdict::DropReason,
    },
    conntrack::{
        entry,
        ports::{PROBES, is_in_pool, random_port},
        source_addr,
    },
    load_balancing::frontend,
    packet::access::RouteContext,
};

/// Completes the pending masquerade half `entry` with key `key`, for a packet that leaves by device `ifindex`. Two
/// CPUs may do so for one flow at the same time; the first to publish its port wins. A subprogram, so that the
/// verifier follows it once.
#[inline(never)]
pub fn complete<C: RouteContext>(
    ctx: &C,
    key: &CtKey,
    ifindex: u32,
    entry: &mut CtEntry,
) -> Result<(), DropReason> {
    let flow = flow_context().ok_or(Counter::NoFreeSource)?;
    let addr = source_addr::select(ctx, key, ifindex, &mut flow.fib).ok_or(Counter::NoFreeSource)?;
    reserve(key, entry, addr, flow)?;
    let port = u64::from(flow.reply.dport.be());
    // Both CPUs of a race write the same address: one flow leaves by one device.
    entry.addr = addr;
    // SAFETY: a live map value, 8-byte aligned; completed by this exchange alone.
    if let Err(won) = unsafe { atomic::set_if_zero(&raw mut entry.port, port) }
        && won != port
    {
        let _gone = CONNTRACK.remove(&flow.reply);
    }
    Ok(())
}

/// Reserves a source port towards this backend by inserting the unmasquerade half: the client's own port if it is in
/// the pool, else random ones up to a limit. Writes its key to `flow.reply`.
#[inline(always)]
fn reserve(key: &CtKey, pending: &CtEntry, addr: Addr, flow: &mut FlowContext) -> Result<(), DropReason> {
    flow.entry = *pending;
    flow.entry.addr = key.src;
    flow.entry.port = u64::from(key.sport.be());
    flow.entry.peer_port = key.dport;
    flow.entry.flags = CtEntry::UNMASQUERADE | CtEntry::SERVICE | pending.flags & CtEntry::XDP;
    flow.reply = CtKey::new(key.dst, key.dport, addr, key.sport, key.proto, Half::Ingress);
    // SCTP has to keep its port, even outside the pool: see `create.rs`.
    let fixed = key.proto == Proto::SCTP;
    let may_keep =
        is_in_pool(key.sport) || fixed && frontend::port_flags(key.sport) & port_bits::ANY_NODEPORT == 0;
    if may_keep && insert_unmasquerade(flow, false) {
        return Ok(());
    }
    if fixed {
        return Err(Counter::SctpPort);
    }
    let mut probe = 0;
    while probe < PROBES {
        let port = random_port();
        if is_in_pool(port) {
            flow.reply.dport = port;
            match CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_NOEXIST)) {
                Ok(()) => return Ok(()),
                Err(EEXIST) => {}
                Err(_) => return Err(Counter::ConntrackFull),
            }
        }
        probe += 1;
    }
    // No free port found. Most of these ports belong to closed flows: replace one.
    if is_in_pool(flow.reply.dport) && insert_unmasquerade(flow, true) {
        Ok(())
    } else {
        Err(Counter::NoFreeSource)
    }
}

/// Inserts the unmasquerade half under `flow.reply`; with `from_closed`, also in place of a closed flow's. That is
/// the last resort: the backend may still hold the port in TIME_WAIT and answer the SYN with a reset.
#[inline(never)]
fn insert_unmasquerade(flow: &mut FlowContext, from_closed: bool) -> bool {
    if CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    let Some(found) = entry::lookup(&flow.reply) else {
        return false;
    };
    if found.addr.is(&flow.entry.addr) && found.port == flow.entry.port {
        return true;
    }
    from_closed
        && evict_closed(flow, found)
        && CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_ANY)).is_ok()
}

/// Whether the flow that reserved this port is closed; if so, its other halves are removed.
#[inline(always)]
fn evict_closed(flow: &mut FlowContext, found: &CtEntry) -> bool {
    if !found.has(CtEntry::UNMASQUERADE) {
        return false;
    }
    let back = &flow.reply;
    flow.masquerade = CtKey::new(back.src, back.sport, found.addr, found.port(), back.proto, Half::Egress);
    let Some(half) = entry::lookup(&flow.masquerade) else {
        return true;
    };
    if !half.has(CtEntry::REPLY) || !entry::is_closed(back.proto, half) {
        return false;
    }
    entry::remove_by_reply(&flow.masquerade, half, true);
    true
}
