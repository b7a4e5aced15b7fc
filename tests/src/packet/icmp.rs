//! ICMP errors and redirects about packets, built from scratch.

use std::net::IpAddr;

use super::frame::{Ip, Link, checksum, ip_header, link_header, pseudo_header};

/// An ICMP message that quotes a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub link: Link,
    pub ip: Ip,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub kind: u8,
    pub code: u8,
    /// The rest of the header: an MTU, a pointer or a gateway.
    pub rest: [u8; 4],
    /// Bytes between header and quote: in an IPv6 redirect, addresses and options.
    pub between: Vec<u8>,
    /// The quoted packet, without its link header.
    pub quoted: Vec<u8>,
}

impl Error {
    /// An error about a packet on the wire; quotes its IP headers (`headers` bytes) and at most `len` bytes after them.
    pub fn about(packet: &[u8], link: Link, ip: Ip, headers: usize, len: usize) -> Self {
        let quoted = &packet[link.header()..];
        let end = (headers + len).min(quoted.len());
        let (kind, code, rest) = if ip.is_v4() { (3, 3, [0; 4]) } else { (1, 4, [0; 4]) };
        let any: IpAddr = if ip.is_v4() { [0; 4].into() } else { [0; 16].into() };
        let quoted = quoted[..end].to_vec();
        Self { link, ip, src: any, dst: any, kind, code, rest, between: Vec::new(), quoted }
    }

    /// The same error from `src` to `dst`.
    pub fn between_hosts(&self, src: IpAddr, dst: IpAddr) -> Self {
        Self { src, dst, ..self.clone() }
    }

    /// The same error with another type and code.
    pub fn of(&self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self { kind, code, rest, ..self.clone() }
    }

    /// Inserts an IPv6 redirect's target, destination and options in front of the quoted packet.
    pub fn redirecting(&self, target: IpAddr, destination: IpAddr) -> Self {
        let mut between = Vec::new();
        for addr in [target, destination] {
            let IpAddr::V6(addr) = addr else { panic!("{addr} in an IPv6 redirect") };
            between.extend(addr.octets());
        }
        // The target's link-layer address, then the redirected header, whose length is in units of 8 bytes.
        between.extend([2, 1, 2, 2, 2, 2, 2, 2]);
        let mut quoted = self.quoted.clone();
        quoted.resize(quoted.len().next_multiple_of(8), 0);
        between.extend([4, (quoted.len() / 8 + 1) as u8, 0, 0, 0, 0, 0, 0]);
        Self { between, quoted, ..self.clone() }
    }

    /// The message's bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let v4 = self.ip.is_v4();
        let proto = if v4 { 1 } else { 58 };
        let mut message = vec![self.kind, self.code, 0, 0];
        message.extend(self.rest);
        message.extend(&self.between);
        message.extend(&self.quoted);
        let pseudo = if v4 { Vec::new() } else { pseudo_header(self.src, self.dst, proto, message.len()) };
        let sum = checksum(&[&pseudo, &message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = link_header(self.link, [[2, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2]], v4);
        bytes.extend(ip_header(self.ip, self.src, self.dst, proto, 61, message.len()));
        bytes.extend(message);
        bytes
    }
}
