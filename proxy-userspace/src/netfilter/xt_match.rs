//! What an `xt` match asks: in iptables-legacy's tables, and in the `match` expressions of iptables-nft. The layouts are
//! those of uapi/linux/netfilter (`xt_tcpudp.h`, `xt_multiport.h`, `xt_conntrack.h`).

use super::chain::Rule;

/// Offset of the flags in `struct xt_conntrack_mtinfo1` to `3`; inverted flags, states and status follow.
const CONNTRACK_FLAGS: usize = 146;
const CONNTRACK_STATES: usize = 150;
/// The two masks are 16 bits wide from revision 2 on.
const CONNTRACK_STATUS: usize = 152;
/// `XT_CONNTRACK_*`.
const STATE: u16 = 1;
const ORIGINAL_DST: u16 = 1 << 3;
const STATUS: u16 = 1 << 6;
const ORIGINAL_DST_PORT: u16 = 1 << 9;
/// `XT_CONNTRACK_STATE_DNAT`.
const STATE_DNAT: u16 = 1 << 7;
/// `IPS_DST_NAT`.
pub const IPS_DST_NAT: u32 = 1 << 5;

/// Destination ports in `struct xt_tcp` and `struct xt_udp`, and their inversions, of which bit 1 is the destination's.
const DST_PORTS: usize = 4;
const TCP_INVERTED: usize = 11;
const UDP_INVERTED: usize = 8;

/// `struct xt_multiport_v1`: flags (0: source), count, ports, whether each begins a range, inversion.
const MULTIPORT_MAX: usize = 15;
const MULTIPORT_PORTS: usize = 2;
const MULTIPORT_RANGES: usize = MULTIPORT_PORTS + 2 * MULTIPORT_MAX;
const MULTIPORT_INVERTED: usize = MULTIPORT_RANGES + MULTIPORT_MAX;

/// Enters what the match `name` asks.
pub fn describe(name: &str, info: &[u8], rule: &mut Rule) {
    match name {
        "state" => rule.asks_state = true,
        "conntrack" => describe_conntrack(info, rule),
        "tcp" => rule.ports.extend(ports(info, TCP_INVERTED)),
        "udp" => rule.ports.extend(ports(info, UDP_INVERTED)),
        "multiport" => rule.ports.extend(multiport(info)),
        _ => {}
    }
}

fn describe_conntrack(info: &[u8], rule: &mut Rule) {
    let word = |at| u16_at(info, at).unwrap_or_default();
    let flags = word(CONNTRACK_FLAGS);
    rule.asks_state |= flags & STATE != 0;
    let is_dnat = flags & STATE != 0 && word(CONNTRACK_STATES) & STATE_DNAT != 0
        || flags & STATUS != 0 && u32::from(word(CONNTRACK_STATUS)) & IPS_DST_NAT != 0;
    if flags & (ORIGINAL_DST | ORIGINAL_DST_PORT) != 0 {
        rule.asks_translation = Some("ct original");
    } else if is_dnat {
        rule.asks_translation = Some("ct status dnat");
    }
}

/// The destination ports, unless they are all or inverted.
fn ports(info: &[u8], inverted: usize) -> Option<(u16, u16)> {
    let ports = (u16_at(info, DST_PORTS)?, u16_at(info, DST_PORTS + 2)?);
    (info.get(inverted)? & 2 == 0 && ports != (0, u16::MAX)).then_some(ports)
}

fn multiport(info: &[u8]) -> Vec<(u16, u16)> {
    let byte = |at: usize| info.get(at).copied().unwrap_or_default();
    if byte(0) == 0 || byte(MULTIPORT_INVERTED) != 0 {
        return Vec::new();
    }
    let count = usize::from(byte(1)).min(MULTIPORT_MAX);
    let port = |i: usize| u16_at(info, MULTIPORT_PORTS + 2 * i).unwrap_or_default();
    let mut found = Vec::new();
    let mut i = 0;
    while i < count {
        let is_range = byte(MULTIPORT_RANGES + i) != 0 && i + 1 < count;
        let last = if is_range { i + 1 } else { i };
        found.push((port(i), port(last)));
        i = last + 1;
    }
    found
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, info: &[u8]) -> Rule {
        let mut rule = Rule::default();
        describe(name, info, &mut rule);
        rule
    }

    #[test]
    fn destination_ports() {
        let tcp = |from: u16, to: u16, inverted: u8| {
            let mut info = [0; 12];
            info[2..4].copy_from_slice(&u16::MAX.to_ne_bytes());
            info[4..6].copy_from_slice(&from.to_ne_bytes());
            info[6..8].copy_from_slice(&to.to_ne_bytes());
            info[11] = inverted;
            asked("tcp", &info).ports
        };
        assert_eq!(tcp(30000, 32767, 0), [(30000, 32767)]);
        assert_eq!(tcp(0, u16::MAX, 0), []);
        assert_eq!(tcp(22, 22, 2), []);
        let mut info = [0; 48];
        info[..2].copy_from_slice(&[1, 3]);
        for (i, port) in [80u16, 30000, 30100].into_iter().enumerate() {
            info[2 + 2 * i..4 + 2 * i].copy_from_slice(&port.to_ne_bytes());
        }
        info[MULTIPORT_RANGES + 1] = 1;
        assert_eq!(asked("multiport", &info).ports, [(80, 80), (30000, 30100)]);
        info[0] = 0;
        assert_eq!(asked("multiport", &info).ports, [], "source ports");
    }

    #[test]
    fn translations_that_conntrack_knows() {
        let conntrack = |flags: u16, states: u16, status: u16| {
            let mut info = [0; 160];
            for (at, value) in
                [(CONNTRACK_FLAGS, flags), (CONNTRACK_STATES, states), (CONNTRACK_STATUS, status)]
            {
                info[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
            let rule = asked("conntrack", &info);
            (rule.asks_state, rule.asks_translation)
        };
        assert_eq!(conntrack(STATE, 2, 0), (true, None));
        assert_eq!(conntrack(STATE, STATE_DNAT, 0), (true, Some("ct status dnat")));
        assert_eq!(conntrack(STATUS, 0, 1 << 5), (false, Some("ct status dnat")));
        assert_eq!(conntrack(ORIGINAL_DST_PORT, 0, 0), (false, Some("ct original")));
        assert_eq!(conntrack(1 << 8, 0, 0), (false, None), "the original source port");
    }
}
