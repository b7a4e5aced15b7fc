//! Frontend lookup: exact addresses first, then NodePorts.

use proxy_common::{
    Addr, Frontend, FrontendKey, Port,
    node::{port_bits, role},
};

use crate::base::maps::{FRONTENDS, NODE_ADDRS, PORTS};

/// The bits of [`port_bits`] for a destination port: a free array read that spares hash lookups.
#[inline(always)]
pub fn port_flags(port: Port) -> u32 {
    PORTS.get(u32::from(port.host())).copied().unwrap_or(0)
}

/// The frontend at this address: exact addresses first, then NodePorts on addresses that have one of `roles`.
#[inline(always)]
pub fn find(addr: &Addr, port: Port, proto: u8, bits: u32, roles: u32) -> Option<&'static Frontend> {
    if bits & port_bits::frontend(proto) != 0
        && let Some(found) = get(&FrontendKey::new(*addr, port, proto))
    {
        return Some(found);
    }
    if bits & port_bits::nodeport(proto) == 0 {
        return None;
    }
    // SAFETY: a map's memory for as long as this program runs; see `entry::lookup` for what may become of it meanwhile.
    let role = unsafe { NODE_ADDRS.get(*addr) }?;
    if role & roles == 0 {
        return None;
    }
    get(&FrontendKey::new(addr.unspecified_alike(), port, proto))
}

/// An exact lookup; 0 and a protocol number of ICMP as port and protocol is the ping answer of a VIP.
#[inline(always)]
pub fn get(key: &FrontendKey) -> Option<&'static Frontend> {
    // SAFETY: a map's memory for as long as this program runs; see `entry::lookup` for what may become of it meanwhile.
    unsafe { FRONTENDS.get(*key) }
}

/// The address roles at which the packet hooks serve NodePorts.
pub const PACKET_ROLES: u32 = role::NODEPORT;
