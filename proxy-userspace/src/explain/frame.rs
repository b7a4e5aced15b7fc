//! Builds the Ethernet frame for a test run, and parses the frame that a program returns.
//!
//! The frame contains the shortest message that starts a flow: a SYN, a datagram, an SCTP INIT or an echo request. Its
//! checksums are valid, because the XDP programs check whether a checksum is complete.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{Proto, csum};

use super::request::Tuple;

const ETHERNET: usize = 14;
const TTL: u8 = 64;

/// Ethernet addresses: destination, source.
pub type Macs = [[u8; 6]; 2];

/// A reply that a program generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Reset,
    Unreachable,
    Echo,
}

/// Builds the frame.
pub fn build(tuple: &Tuple, macs: Macs) -> Vec<u8> {
    let message = message(tuple);
    let mut frame = macs.concat();
    match (tuple.src.ip(), tuple.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + message.len() as u16).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, TTL, tuple.proto, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            let sum = !csum::fold(sum(0, &frame[ETHERNET..]));
            frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_ne_bytes());
        }
        (src, dst) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((message.len() as u16).to_be_bytes());
            frame.extend([tuple.proto, TTL]);
            frame.extend(octets(src));
            frame.extend(octets(dst));
        }
    }
    frame.extend(message);
    frame
}

/// The transport header and payload.
fn message(tuple: &Tuple) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(tuple.src.port().to_be_bytes());
    message.extend(tuple.dst.port().to_be_bytes());
    let sum_at = match tuple.proto {
        Proto::TCP => {
            message.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
            16
        }
        Proto::UDP => {
            message.extend([0, 12, 0, 0]);
            message.extend(b"what");
            6
        }
        Proto::SCTP => {
            // Verification tag 0, checksum 0 (not verified here), and an INIT of minimum length.
            message.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]);
            message.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            return message;
        }
        _ => {
            let kind = if tuple.is_v4() { 8 } else { 128 };
            message = vec![kind, 0, 0, 0, 0, 1, 0, 1];
            2
        }
    };
    let mut pseudo = Vec::new();
    if tuple.proto != Proto::ICMP {
        pseudo.extend(octets(tuple.src.ip()));
        pseudo.extend(octets(tuple.dst.ip()));
        pseudo.extend((message.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, tuple.proto]);
    }
    let sum = !csum::fold(sum(sum(0, &pseudo), &message));
    message[sum_at..sum_at + 2].copy_from_slice(&sum.to_ne_bytes());
    message
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The sum of the Internet checksum, over an even number of bytes.
fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .fold(start, |sum, pair| csum::add(sum, u16::from_ne_bytes([pair[0], pair[1]]).into()))
}

/// Parses addresses and ports of a frame; `None` for anything but IPv4 and IPv6.
pub fn read(frame: &[u8]) -> Option<Tuple> {
    let ip = frame.get(ETHERNET..)?;
    let (src, dst, proto, message): (IpAddr, IpAddr, u8, _) = match ip.first()? >> 4 {
        4 => (
            <[u8; 4]>::try_from(ip.get(12..16)?).ok()?.into(),
            <[u8; 4]>::try_from(ip.get(16..20)?).ok()?.into(),
            ip[9],
            ip.get(20..)?,
        ),
        6 => (
            <[u8; 16]>::try_from(ip.get(8..24)?).ok()?.into(),
            <[u8; 16]>::try_from(ip.get(24..40)?).ok()?.into(),
            ip[6],
            ip.get(40..)?,
        ),
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let (sport, dport) = match proto {
        Proto::ICMP | Proto::ICMPV6 => (0, 0),
        _ => (port(0)?, port(2)?),
    };
    Some(Tuple { src: SocketAddr::new(src, sport), dst: SocketAddr::new(dst, dport), proto })
}

/// The kind of reply that a program generated.
pub fn answer(frame: &[u8]) -> Option<Answer> {
    let tuple = read(frame)?;
    let message = &frame[ETHERNET + if tuple.is_v4() { 20 } else { 40 }..];
    match (tuple.proto, message.first()?) {
        (Proto::TCP, _) => (message.get(13)? & 0x04 != 0).then_some(Answer::Reset),
        (Proto::ICMP, 3) | (Proto::ICMPV6, 1) => Some(Answer::Unreachable),
        (Proto::ICMP, 0) | (Proto::ICMPV6, 129) => Some(Answer::Echo),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::request::Request;

    const MACS: Macs = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

    #[test]
    fn a_built_frame_parses_and_has_valid_checksums() {
        for (source, destination) in [
            ("10.0.0.1:1000", "10.68.0.10:80"),
            ("10.0.0.1:1000", "10.68.0.10:53/udp"),
            ("10.0.0.1:1000", "10.68.0.10:53/sctp"),
            ("10.0.0.1", "10.68.0.10/icmp"),
            ("[fd00::1]:1000", "[fd00::2]:80"),
            ("[fd00::1]:1000", "[fd00::2]:53/udp"),
            ("fd00::1", "fd00::2/icmp"),
        ] {
            let tuple = Request::parse(source, destination, None).unwrap().tuple;
            let frame = build(&tuple, MACS);
            assert_eq!(read(&frame), Some(tuple), "{tuple}");
            assert_eq!(answer(&frame), None, "{tuple} is a question");
            if tuple.is_v4() {
                assert_eq!(csum::fold(sum(0, &frame[14..34])), 0xffff, "{tuple}: header");
                if tuple.proto == Proto::ICMP {
                    assert_eq!(csum::fold(sum(0, &frame[34..])), 0xffff, "{tuple}: message");
                }
            } else {
                // The pseudo-header: both addresses, then length and protocol.
                let ends = sum(sum(0, &frame[22..54]), &[0, tuple.proto]);
                let sum = sum(sum(ends, &(frame.len() as u16 - 54).to_be_bytes()), &frame[54..]);
                assert_eq!(csum::fold(sum), 0xffff, "{tuple}: message");
            }
        }
    }
}
