//! Frontend lookup: exact addresses first, then NodePorts.

use proxy_common::{
    Addr, Frontend, FrontendKey, Port,
    node::{port_bits, role},
};

use crate::base::maps::{FRONTENDS, NODE_ADDRS, PORTS};

/// The bits of [`port_bits`] for a destination port: an array read that saves hash lookups.
#[inline(always)]
pub fn port_flags(port: Port) -> u32 {
    PORTS.get(u32::from(port.host())).copied().unwrap_or(0)
}

/// Finds the frontend of a destination: exact addresses first, then NodePorts on addresses that have one of `roles`.
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
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    let role = unsafe { NODE_ADDRS.get(*addr) }?;
    if role & roles == 0 {
        return None;
    }
    get(&FrontendKey::new(addr.unspecified_alike(), port, proto))
}

/// Looks up one key. Port 0 with an ICMP protocol number is the ping entry of a VIP.
#[inline(always)]
pub fn get(key: &FrontendKey) -> Option<&'static Frontend> {
    // SAFETY: map memory, valid while the program runs (RCU); `entry::lookup` says what another CPU may do to it.
    unsafe { FRONTENDS.get(*key) }
}

/// Roles of the addresses at which the packet hooks serve NodePorts.
pub const PACKET_ROLES: u32 = role::NODEPORT;
