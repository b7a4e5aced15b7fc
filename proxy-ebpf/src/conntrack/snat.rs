//! Source translation (SNAT), completed by the first egress hook that a flow meets: it takes the address that the kernel
//! would choose and reserves a port of the node.

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Proto, node::port_bits};

use crate::{
    base::{
        atomic,
        maps::{CONNTRACK, flow_context},
        scratch::FlowContext,
        verdict::DropReason,
    },
    conntrack::{entry, ports, source_addr},
    load_balancing::frontend,
    packet::access::RouteContext,
};

/// Completes the pending masquerade half `entry` with key `key`, for a packet that leaves by device `ifindex`. Two
/// CPUs may do so for one flow at the same time; the first to publish its port wins. A subprogram, so that the
/// verifier follows it once. Without `SEARCH` only the client's own port is tried: the search is too much for XDP's verifier, and
/// the egress hook completes what XDP leaves pending.
#[inline(never)]
pub fn complete<C: RouteContext, const SEARCH: bool>(
    ctx: &C,
    key: &CtKey,
    ifindex: u32,
    entry: &mut CtEntry,
) -> Result<(), DropReason> {
    let flow = flow_context().ok_or(Counter::NoFreeSource)?;
    let addr = source_addr::select(ctx, key, ifindex, &mut flow.fib).ok_or(Counter::NoFreeSource)?;
    reserve::<SEARCH>(key, entry, addr, flow)?;
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

/// Reserves a port of the node towards this backend by inserting the unmasquerade half: the client's own port if it is free,
/// else another one. Leaves its key in `flow.reply`.
#[inline(always)]
fn reserve<const SEARCH: bool>(
    key: &CtKey,
    pending: &CtEntry,
    addr: Addr,
    flow: &mut FlowContext,
) -> Result<(), DropReason> {
    flow.entry = *pending;
    flow.entry.addr = key.src;
    flow.entry.port = u64::from(key.sport.be());
    flow.entry.peer_port = key.dport;
    flow.entry.flags = CtEntry::UNMASQUERADE | CtEntry::SERVICE | pending.flags & CtEntry::XDP;
    flow.reply = CtKey::new(key.dst, key.dport, addr, key.sport, key.proto, Half::Ingress);
    // SCTP has to keep its port, even outside the pool: see `create.rs`.
    let fixed = key.proto == Proto::SCTP;
    let may_keep = ports::is_source_port(key.sport)
        || fixed && frontend::port_flags(key.sport) & port_bits::ANY_NODEPORT == 0;
    if may_keep && insert_unmasquerade(flow) {
        return Ok(());
    }
    if fixed {
        return Err(Counter::SctpPort);
    }
    if !SEARCH {
        return Err(Counter::NoFreeSource);
    }
    match ports::reserve_source(flow) {
        ports::reserved::DONE => Ok(()),
        ports::reserved::MAP_FULL => Err(Counter::ConntrackFull),
        _ => Err(Counter::NoFreeSource),
    }
}

/// Inserts the unmasquerade half under `flow.reply`, or finds it there already.
#[inline(always)]
fn insert_unmasquerade(flow: &FlowContext) -> bool {
    if CONNTRACK.insert(&flow.reply, &flow.entry, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    entry::lookup(&flow.reply)
        .is_some_and(|found| found.addr.is(&flow.entry.addr) && found.port == flow.entry.port)
}
