//! IPv6 extension headers, inserted into existing packets.

use super::frame::Link;

/// One extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The next-header number that announces it.
    number: u8,
    /// The header without its first byte, which is the next header's number.
    rest: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop options: padding.
    pub const HOP_BY_HOP: Self = Self { number: 0, rest: Vec::new() };
    /// Destination options: padding.
    pub const OPTIONS: Self = Self { number: 60, rest: Vec::new() };

    /// A header of `8 * (units + 1)` bytes, filled with padding.
    pub fn new(number: u8, units: u8) -> Self {
        let mut rest = vec![units];
        let padding = 8 * (usize::from(units) + 1) - 2;
        // PadN contains the number of zero bytes that follow.
        rest.extend([1, (padding - 2).min(255) as u8]);
        rest.resize(padding + 1, 0);
        Self { number, rest }
    }

    /// A routing header (segment routing) with this many segments left.
    pub fn routing(segments_left: u8) -> Self {
        Self { number: 43, rest: vec![0, 4, segments_left, 0, 0, 0, 0] }
    }

    /// A fragment header; `offset` is in bytes.
    pub fn fragment(offset: u16, more: bool) -> Self {
        let [high, low] = (offset & 0xfff8 | u16::from(more)).to_be_bytes();
        Self { number: 44, rest: vec![0, high, low, 0xde, 0xad, 0xbe, 0xef] }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        let plain = Self::new(self.number, 0);
        let rest = if self.rest.is_empty() { &plain.rest } else { &self.rest };
        [&[next], &rest[..]].concat()
    }
}

/// An IPv6 packet with these headers inserted after its IPv6 header.
pub fn extended(packet: &[u8], link: Link, headers: &[Extension]) -> Vec<u8> {
    let ip = link.header();
    let mut out = packet.to_vec();
    let mut next = out[ip + 6];
    let mut between = Vec::new();
    for header in headers.iter().rev() {
        between.splice(0..0, header.bytes(next));
        next = header.number;
    }
    out[ip + 6] = next;
    let len = u16::from_be_bytes([out[ip + 4], out[ip + 5]]) + between.len() as u16;
    out[ip + 4..ip + 6].copy_from_slice(&len.to_be_bytes());
    out.splice(ip + 40..ip + 40, between);
    out
}
