//! Which destination ports a rule of nftables matches, and whether it asks conntrack for a translation. An expression loads
//! a value into a register, and a later one compares it: [`Registers`] follows one rule from expression to expression.

use super::{
    attribute::{be32, find},
    chain::Rule,
    xt_match::IPS_DST_NAT,
};

/// Attributes (uapi/linux/netfilter/nf_tables.h).
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const TRANSPORT_HEADER: u32 = 2;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const RANGE_SREG: u16 = 1;
const RANGE_OP: u16 = 2;
const RANGE_FROM: u16 = 3;
const RANGE_TO: u16 = 4;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_FLAGS: u16 = 5;
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const CT_DIRECTION: u16 = 3;
const BITWISE_SREG: u16 = 1;
const BITWISE_MASK: u16 = 4;
const DATA_VALUE: u16 = 1;

/// `enum nft_ct_keys`.
const CT_STATUS: u32 = 2;
/// Destination address (three forms) and port.
const CT_DESTINATIONS: [u32; 4] = [9, 12, 20, 22];
const ORIGINAL: u8 = 0;

/// The registers of one rule that matter here.
#[derive(Debug, Default)]
pub struct Registers {
    /// The one that holds the destination port, and what the port may be after the comparisons so far.
    port: Option<(u32, u16, u16)>,
    /// The one that holds conntrack's status.
    status: Option<u32>,
}

impl Registers {
    /// Follows the expression `name`.
    pub fn follow(&mut self, name: &str, data: &[u8], rule: &mut Rule) {
        let number = |kind| find(data, kind).and_then(be32);
        match name {
            "payload" => {
                let is_port = number(PAYLOAD_BASE) == Some(TRANSPORT_HEADER)
                    && number(PAYLOAD_OFFSET) == Some(2)
                    && number(PAYLOAD_LEN) == Some(2);
                self.finish(rule);
                self.port = number(PAYLOAD_DREG).filter(|_| is_port).map(|register| (register, 0, u16::MAX));
            }
            "cmp" => {
                let value = find(data, CMP_DATA).and_then(port);
                if let Some(value) = value
                    && let Some((_, low, high)) = self.port_in(number(CMP_SREG))
                {
                    // Equal; less, at most; greater, at least. "Not equal" leaves almost every port.
                    match number(CMP_OP) {
                        Some(0) => (*low, *high) = (value, value),
                        Some(2) => *high = value.saturating_sub(1),
                        Some(3) => *high = value,
                        Some(4) => *low = value.saturating_add(1),
                        Some(5) => *low = value,
                        _ => {}
                    }
                }
            }
            "range" => {
                let ends = find(data, RANGE_FROM).and_then(port).zip(find(data, RANGE_TO).and_then(port));
                if let Some(ends) = ends.filter(|_| number(RANGE_OP) == Some(0))
                    && let Some((_, low, high)) = self.port_in(number(RANGE_SREG))
                {
                    (*low, *high) = ends;
                }
            }
            "lookup" => {
                let is_inverted = number(LOOKUP_FLAGS).unwrap_or_default() & 1 != 0;
                if !is_inverted
                    && self.port_in(number(LOOKUP_SREG)).is_some()
                    && let Some(set) = find(data, LOOKUP_SET)
                {
                    rule.port_sets.push(crate::datapath::netlink::read_str(set));
                }
            }
            "ct" => self.load_ct(data, rule),
            "bitwise" => {
                // The status is in host order.
                let mask = find(data, BITWISE_MASK).and_then(|mask| find(mask, DATA_VALUE));
                let mask = mask.and_then(|mask| Some(u32::from_ne_bytes(mask.get(..4)?.try_into().ok()?)));
                let is_status = self.status.is_some() && self.status == number(BITWISE_SREG);
                if is_status && mask.is_some_and(|mask| mask & IPS_DST_NAT != 0) {
                    rule.asks_translation = Some("ct status dnat");
                }
            }
            _ => {}
        }
    }

    fn load_ct(&mut self, data: &[u8], rule: &mut Rule) {
        let is_original = find(data, CT_DIRECTION).and_then(|direction| direction.first()) == Some(&ORIGINAL);
        match find(data, CT_KEY).and_then(be32) {
            Some(CT_STATUS) => self.status = find(data, CT_DREG).and_then(be32),
            Some(key) if CT_DESTINATIONS.contains(&key) && is_original => {
                rule.asks_translation = Some("ct original");
            }
            _ => {}
        }
    }

    fn port_in(&mut self, register: Option<u32>) -> Option<&mut (u32, u16, u16)> {
        self.port.as_mut().filter(|port| Some(port.0) == register)
    }

    /// Enters what the comparisons left of the port; the rule ends, or loads something else.
    pub fn finish(&mut self, rule: &mut Rule) {
        if let Some((_, low, high)) = self.port.take()
            && (low, high) != (0, u16::MAX)
        {
            rule.ports.push((low, high));
        }
    }
}

/// The port in a `DATA` attribute.
fn port(data: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(find(data, DATA_VALUE)?.try_into().ok()?))
}
