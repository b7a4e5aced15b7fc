//! Fragments IP packets as a sender or a router does. Shares no code with the datapath.

use super::frame::{Link, mend_v4};

/// The fragment header's number in IPv6.
const FRAGMENT_HEADER: u8 = 44;

/// Splits a packet into fragments of `size` bytes of payload (a multiple of eight), the last one shorter, with this
/// identification. IPv4 options are copied to all of them.
pub fn fragments(packet: &[u8], link: Link, id: u32, size: usize) -> Vec<Vec<u8>> {
    assert_eq!(size % 8, 0, "offsets count eights");
    let (front, payload) = packet.split_at(link.header() + header_len(&packet[link.header()..]));
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(nth, part)| fragment(front, link, id, nth * size, nth + 1 < count, part))
        .collect()
}

/// One fragment: link-layer and IP headers of the whole packet, offset in bytes.
pub fn fragment(front: &[u8], link: Link, id: u32, offset: usize, more: bool, part: &[u8]) -> Vec<u8> {
    let mut bytes = front.to_vec();
    let ip = link.header();
    if bytes[ip] >> 4 == 4 {
        let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        let len = (bytes.len() - ip + part.len()) as u16;
        bytes[ip + 2..ip + 4].copy_from_slice(&len.to_be_bytes());
        bytes[ip + 4..ip + 6].copy_from_slice(&(id as u16).to_be_bytes());
        bytes[ip + 6..ip + 8].copy_from_slice(&word.to_be_bytes());
        mend_v4(&mut bytes[ip..]);
    } else {
        let word = offset as u16 | u16::from(more);
        let len = (8 + part.len()) as u16;
        bytes[ip + 4..ip + 6].copy_from_slice(&len.to_be_bytes());
        let next = std::mem::replace(&mut bytes[ip + 6], FRAGMENT_HEADER);
        bytes.extend([next, 0]);
        bytes.extend(word.to_be_bytes());
        bytes.extend(id.to_be_bytes());
    }
    bytes.extend(part);
    bytes
}

/// Length of an IP packet's header, without extension headers.
fn header_len(ip: &[u8]) -> usize {
    if ip[0] >> 4 == 4 { usize::from(ip[0] & 15) * 4 } else { 40 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Ip, Packet, Transport};

    #[test]
    fn payloads_come_together_again() {
        for link in Link::BOTH {
            for (ip, src, dst) in [
                (Ip::V4Options, "8.0.1.2:1000", "8.0.68.1:80"),
                (Ip::V6, "[2001:db8:86dd::2]:1000", "[2001:db8:86dd::1]:80"),
            ] {
                let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
                let mut packet = Packet::new(link, ip, src, dst, Transport::Udp);
                packet.payload = (0..=255).cycle().take(2000).collect();
                let whole = packet.bytes();
                let cut = fragments(&whole, link, 7, 800);
                assert_eq!(cut.len(), 3);
                let extra = if ip.is_v4() { 0 } else { 8 };
                let front = link.header() + ip.header() + extra;
                let payload: Vec<u8> = cut.iter().flat_map(|one| one[front..].to_vec()).collect();
                assert_eq!(payload, whole[link.header() + ip.header()..]);
                let word = |one: &[u8]| {
                    let at = link.header() + if ip.is_v4() { 6 } else { 42 };
                    u16::from_be_bytes([one[at], one[at + 1]])
                };
                let words: Vec<u16> = cut.iter().map(|one| word(one)).collect();
                let want = if ip.is_v4() { [0x2000, 0x2000 | 100, 200] } else { [1, 801, 1600] };
                assert_eq!(words, want);
            }
        }
    }
}
