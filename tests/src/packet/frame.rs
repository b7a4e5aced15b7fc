//! Packets as bytes, built from scratch: every header field and every checksum, by code that shares nothing with the
//! datapath. The expected output of a hook is built the same way and compared byte for byte.

use std::net::{IpAddr, SocketAddr};

use proxy_common::tcp;

/// TCP header flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// The link-layer header in front of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    Ethernet,
    /// None. A test run reads bytes 12 and 13 as an EtherType all the same: see [`super::world::addr`].
    Ip,
}

impl Link {
    pub const BOTH: [Self; 2] = [Self::Ethernet, Self::Ip];

    pub fn header(self) -> usize {
        match self {
            Self::Ethernet => 14,
            Self::Ip => 0,
        }
    }
}

/// The IP version and header form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ip {
    V4,
    /// With 12 bytes of options.
    V4Options,
    V6,
}

impl Ip {
    pub const ALL: [Self; 3] = [Self::V4, Self::V4Options, Self::V6];

    pub fn is_v4(self) -> bool {
        self != Self::V6
    }

    /// Length of the IP header.
    pub fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V4Options => 32,
            Self::V6 => 40,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
    },
    Udp,
    /// UDP over IPv4 without a checksum.
    UdpNoSum,
    /// ICMP or ICMPv6 echo; ports are not used.
    Echo {
        reply: bool,
    },
}

impl Transport {
    pub const SYN: Self = Self::tcp(SYN);

    /// A segment of a connection of which both sides begin with the same number and send no data: each acknowledges the other's SYN
    /// or FIN. A reset has the number that its receiver expects.
    pub const fn tcp(flags: u8) -> Self {
        const SEQ: u32 = 0x1234_5678;
        let seq = if flags & RST != 0 { SEQ + 1 } else { SEQ };
        Self::Tcp { flags, seq, ack: if flags & ACK != 0 { SEQ + 1 } else { 0 } }
    }

    /// Protocol number under this IP version.
    pub fn proto(self, v4: bool) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp | Self::UdpNoSum => 17,
            Self::Echo { .. } if v4 => 1,
            Self::Echo { .. } => 58,
        }
    }
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub link: Link,
    pub ip: Ip,
    /// Ethernet destination and source.
    pub macs: [[u8; 6]; 2],
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub transport: Transport,
    pub ttl: u8,
    /// A multiple of four bytes.
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn new(link: Link, ip: Ip, src: SocketAddr, dst: SocketAddr, transport: Transport) -> Self {
        let payload = if matches!(transport, Transport::Tcp { flags, .. } if flags & PSH == 0) {
            Vec::new()
        } else {
            b"thirteen byte".to_vec()
        };
        // Maximum segment size and window scale.
        let tcp_options = vec![2, 4, 5, 0xb4, 1, 3, 3, 7];
        let macs = [[2, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]];
        Self { link, ip, macs, src, dst, transport, ttl: 61, tcp_options, payload }
    }

    /// The same packet to another destination.
    pub fn to(&self, dst: SocketAddr) -> Self {
        Self { dst, ..self.clone() }
    }

    /// The same packet from another source.
    pub fn from(&self, src: SocketAddr) -> Self {
        Self { src, ..self.clone() }
    }

    /// The receiver's reply: source and destination swapped, TCP with these flags.
    pub fn answer(&self, flags: u8) -> Self {
        let transport = match self.transport {
            Transport::Tcp { .. } => Transport::tcp(flags),
            Transport::Echo { .. } => Transport::Echo { reply: true },
            other => other,
        };
        Self { src: self.dst, dst: self.src, transport, ..self.clone() }
    }

    /// The same packet with other TCP flags.
    pub fn flagged(&self, flags: u8) -> Self {
        let transport = if self.is_tcp() { Transport::tcp(flags) } else { self.transport };
        Self { transport, ..self.clone() }
    }

    /// The same segment with these numbers.
    pub fn numbered(&self, seq: u32, ack: u32) -> Self {
        let Transport::Tcp { flags, .. } = self.transport else { panic!("only TCP has numbers") };
        Self { transport: Transport::Tcp { flags, seq, ack }, ..self.clone() }
    }

    /// What a flow table reads of it.
    pub fn segment(&self) -> Option<tcp::Segment> {
        let Transport::Tcp { flags, seq, ack } = self.transport else { return None };
        Some(tcp::Segment::new(flags, seq, ack, self.payload.len() as u32))
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp { .. })
    }

    pub fn proto(&self) -> u8 {
        self.transport.proto(self.ip.is_v4())
    }

    /// The packet's bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let body = self.body();
        let mut bytes = link_header(self.link, self.macs, self.ip.is_v4());
        bytes.extend(ip_header(self.ip, self.src.ip(), self.dst.ip(), self.proto(), self.ttl, body.len()));
        bytes.extend(body);
        bytes
    }

    /// The bytes from the transport header on.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let sum_at = match self.transport {
            Transport::Tcp { flags, seq, ack } => {
                body.extend(self.src.port().to_be_bytes());
                body.extend(self.dst.port().to_be_bytes());
                body.extend(seq.to_be_bytes());
                body.extend(ack.to_be_bytes());
                let words = 5 + self.tcp_options.len() / 4;
                body.extend([(words as u8) << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
                body.extend(&self.tcp_options);
                Some(16)
            }
            Transport::Udp | Transport::UdpNoSum => {
                body.extend(self.src.port().to_be_bytes());
                body.extend(self.dst.port().to_be_bytes());
                body.extend((8 + self.payload.len() as u16).to_be_bytes());
                body.extend([0, 0]);
                (self.transport == Transport::Udp).then_some(6)
            }
            Transport::Echo { reply } => {
                let kind = match (self.ip.is_v4(), reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                body.extend([kind, 0, 0, 0, 0x77, 0x07, 0, 1]);
                Some(2)
            }
        };
        body.extend(&self.payload);
        if let Some(at) = sum_at {
            let has_pseudo = !(self.ip.is_v4() && matches!(self.transport, Transport::Echo { .. }));
            let pseudo = if has_pseudo {
                pseudo_header(self.src.ip(), self.dst.ip(), self.proto(), body.len())
            } else {
                Vec::new()
            };
            let mut sum = checksum(&[&pseudo, &body]);
            if sum == 0 && self.transport == Transport::Udp {
                sum = 0xffff;
            }
            body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        body
    }

    /// The reset in reply to a packet to a closed port (RFC 9293, 3.10.7.1).
    pub fn reset(&self) -> Vec<u8> {
        let Transport::Tcp { flags, seq, ack } = self.transport else { panic!("only TCP is reset") };
        let taken = self.payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let transport = if flags & ACK != 0 {
            Transport::Tcp { flags: RST, seq: ack, ack: 0 }
        } else {
            Transport::Tcp { flags: RST | ACK, seq: 0, ack: seq.wrapping_add(taken) }
        };
        let answer = Self {
            macs: [self.macs[1], self.macs[0]],
            src: self.dst,
            dst: self.src,
            transport,
            ttl: 64,
            tcp_options: Vec::new(),
            payload: Vec::new(),
            ..self.clone()
        };
        let mut bytes = answer.bytes();
        // The only other field that differs in the reply: a window of zero.
        let tcp = self.link.header() + self.ip.header();
        bytes[tcp + 14..tcp + 16].fill(0);
        let old = u16::from_be_bytes([bytes[tcp + 16], bytes[tcp + 17]]);
        bytes[tcp + 16..tcp + 18].fill(0);
        let pseudo = pseudo_header(answer.src.ip(), answer.dst.ip(), 6, 20);
        let sum = checksum(&[&pseudo, &bytes[tcp..]]);
        assert_ne!(old, sum, "the window counts");
        bytes[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// ICMP port unreachable (RFC 792 3/3, RFC 4443 1/4) about this packet, quoting its IP header and 8 bytes.
    pub fn unreachable(&self) -> Vec<u8> {
        let original = self.bytes();
        let v4 = self.ip.is_v4();
        let quoted = &original[self.link.header()..self.link.header() + self.ip.header() + 8];
        let (kind, code, proto) = if v4 { (3, 3, 1) } else { (1, 4, 58) };
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend(quoted);
        let (src, dst) = (self.dst.ip(), self.src.ip());
        let pseudo = if v4 { Vec::new() } else { pseudo_header(src, dst, proto, message.len()) };
        let sum = checksum(&[&pseudo, &message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());

        let mut bytes = link_header(self.link, [self.macs[1], self.macs[0]], v4);
        let at = bytes.len();
        bytes.extend(ip_header(if v4 { Ip::V4 } else { Ip::V6 }, src, dst, proto, 64, message.len()));
        if v4 {
            // Internetwork control, no identification, don't fragment.
            bytes[at + 1] = 0xc0;
            bytes[at + 4..at + 6].fill(0);
            bytes[at + 6..at + 8].copy_from_slice(&[0x40, 0]);
            mend_v4(&mut bytes[at..at + 20]);
        } else {
            bytes[at..at + 4].copy_from_slice(&[0x60, 0, 0, 0]);
        }
        bytes.extend(message);
        bytes
    }
}

/// Source and destination of a packet built by this module.
pub fn ends(bytes: &[u8], link: Link) -> (SocketAddr, SocketAddr) {
    let ip = &bytes[link.header()..];
    let addr = |from: usize, len: usize| -> IpAddr {
        match len {
            4 => IpAddr::from(<[u8; 4]>::try_from(&ip[from..from + 4]).expect("four bytes")),
            _ => IpAddr::from(<[u8; 16]>::try_from(&ip[from..from + 16]).expect("sixteen bytes")),
        }
    };
    let (src, dst, l4) = match ip[0] >> 4 {
        4 => (addr(12, 4), addr(16, 4), usize::from(ip[0] & 15) * 4),
        _ => (addr(8, 16), addr(24, 16), 40),
    };
    let port = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    (SocketAddr::new(src, port(l4)), SocketAddr::new(dst, port(l4 + 2)))
}

pub(super) fn link_header(link: Link, macs: [[u8; 6]; 2], v4: bool) -> Vec<u8> {
    match link {
        Link::Ip => Vec::new(),
        Link::Ethernet => {
            let mut header = macs.concat();
            header.extend(if v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
            header
        }
    }
}

pub(super) fn ip_header(ip: Ip, src: IpAddr, dst: IpAddr, proto: u8, ttl: u8, len: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x40 | (ip.header() / 4) as u8, 0x28];
            header.extend(((ip.header() + len) as u16).to_be_bytes());
            header.extend([0xab, 0xcd, 0x40, 0x00, ttl, proto, 0, 0]);
            header.extend(src.octets());
            header.extend(dst.octets());
            if ip == Ip::V4Options {
                // Record route with room for two, end of list.
                header.extend([7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
            mend_v4(&mut header);
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x62, 0xe1, 0x23, 0x45];
            header.extend((len as u16).to_be_bytes());
            header.extend([proto, ttl]);
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        _ => panic!("{src} and {dst} are not of one family"),
    }
}

/// Recomputes an IPv4 header's checksum.
pub fn mend_v4(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

pub(super) fn pseudo_header(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut header = Vec::new();
    for addr in [src, dst] {
        match addr {
            IpAddr::V4(v4) => header.extend(v4.octets()),
            IpAddr::V6(v6) => header.extend(v6.octets()),
        }
    }
    header.extend((len as u32).to_be_bytes());
    header.extend([0, 0, 0, proto]);
    header
}

/// The Internet checksum (RFC 1071) over parts of even length; only the last part may have an odd length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_of_known_bytes() {
        // From RFC 1071's example words, and a header whose checksum appears in many textbooks.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        let mut header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        mend_v4(&mut header);
        assert_eq!(header[10..12], [0xb8, 0x61]);
    }

    #[test]
    fn ends_are_found_again() {
        for link in Link::BOTH {
            for (ip, src, dst) in [
                (Ip::V4Options, "8.0.1.2:1000", "8.0.68.1:80"),
                (Ip::V6, "[2001:db8:86dd::2]:1000", "[2001:db8:86dd::1]:80"),
            ] {
                let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
                let packet = Packet::new(link, ip, src, dst, Transport::Udp);
                assert_eq!(ends(&packet.bytes(), link), (src, dst));
            }
        }
    }
}
