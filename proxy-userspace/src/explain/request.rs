//! Parses the arguments `SRC[:PORT] DST:PORT[/PROTO]`, before any map is opened.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{Addr, CtKey, FrontendKey, Half, Port, Proto};

/// Addresses, ports and protocol of a packet. The ports of a ping are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// IANA protocol number; ICMP or ICMPv6 for a ping.
    pub proto: u8,
}

impl Tuple {
    pub fn is_v4(&self) -> bool {
        self.src.is_ipv4()
    }

    pub fn is_ping(&self) -> bool {
        matches!(self.proto, Proto::ICMP | Proto::ICMPV6)
    }

    /// The key in CONNTRACK.
    pub fn key(&self, half: Half) -> CtKey {
        let (sport, dport) = (Port::new(self.src.port()), Port::new(self.dst.port()));
        CtKey::new(self.src.ip().into(), sport, self.dst.ip().into(), dport, self.proto, half)
    }

    /// The key of its destination, in FRONTENDS and BACKEND_ADDRS.
    pub fn destination(&self) -> FrontendKey {
        FrontendKey::new(self.dst.ip().into(), Port::new(self.dst.port()), self.proto)
    }

    /// The same with another destination.
    pub fn to(self, addr: Addr, port: Port) -> Self {
        Self { dst: SocketAddr::new(addr.to_ip(), port.host()), ..self }
    }

    /// One end as text: for a ping without a port.
    pub fn end(&self, at: SocketAddr) -> String {
        if self.is_ping() { at.ip().to_string() } else { at.to_string() }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Proto::name(self.proto).unwrap_or("?");
        write!(f, "{name} {} -> {}", self.end(self.src), self.end(self.dst))
    }
}

/// The packet to trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub tuple: Tuple,
    /// The source port was not given: an unused one is chosen.
    pub any_port: bool,
    /// The ingress device; `None` derives it from the routes.
    pub device: Option<String>,
}

/// Arguments that describe no packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("{0:?} is not an address, or an address and port: write 10.0.0.1:80 or [fd00::1]:80")]
    Address(String),
    #[error("{0:?} has no port: write ADDRESS:PORT, or ADDRESS/icmp for a ping")]
    NoPort(String),
    #[error("{0:?} is not a protocol of Services: use tcp, udp, sctp, or icmp for a ping")]
    Protocol(String),
    #[error("{0:?} has a port, but a ping has none")]
    PingPort(String),
    #[error("{0} and {1} are of different address families")]
    Families(IpAddr, IpAddr),
    #[error("{0} is not a unicast address")]
    NotUnicast(IpAddr),
}

/// A port of Linux's ephemeral range, as most clients use.
pub const DEFAULT_SOURCE_PORT: u16 = 50_000;

impl Request {
    /// Parses the two arguments.
    pub fn parse(source: &str, destination: &str, device: Option<&str>) -> Result<Self, RequestError> {
        let (to, proto) = destination.rsplit_once('/').unwrap_or((destination, "tcp"));
        let (src_ip, src_port) = end(source)?;
        let (dst_ip, dst_port) = end(to)?;
        let proto = match (proto.to_ascii_lowercase().as_str(), dst_ip) {
            ("tcp", _) => Proto::TCP,
            ("udp", _) => Proto::UDP,
            ("sctp", _) => Proto::SCTP,
            ("icmp" | "ping", IpAddr::V4(_)) => Proto::ICMP,
            ("icmp" | "icmpv6" | "ping", IpAddr::V6(_)) => Proto::ICMPV6,
            _ => return Err(RequestError::Protocol(proto.to_owned())),
        };
        if src_ip.is_ipv4() != dst_ip.is_ipv4() {
            return Err(RequestError::Families(src_ip, dst_ip));
        }
        if let Some(bad) = [src_ip, dst_ip].into_iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
            return Err(RequestError::NotUnicast(bad));
        }
        let is_ping = matches!(proto, Proto::ICMP | Proto::ICMPV6);
        if is_ping && src_port.or(dst_port).is_some() {
            let with = if src_port.is_some() { source } else { to };
            return Err(RequestError::PingPort(with.to_owned()));
        }
        let dst_port = match dst_port {
            Some(port) => port,
            None if is_ping => 0,
            None => return Err(RequestError::NoPort(destination.to_owned())),
        };
        let default = if is_ping { 0 } else { DEFAULT_SOURCE_PORT };
        Ok(Self {
            tuple: Tuple {
                src: SocketAddr::new(src_ip, src_port.unwrap_or(default)),
                dst: SocketAddr::new(dst_ip, dst_port),
                proto,
            },
            any_port: src_port.is_none() && !is_ping,
            device: device.map(str::to_owned),
        })
    }
}

/// An address of either family, with or without a port; port 0 is rejected.
fn end(word: &str) -> Result<(IpAddr, Option<u16>), RequestError> {
    let bad = || RequestError::Address(word.to_owned());
    let bare = word.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(word);
    let (ip, port) = match (bare.parse::<IpAddr>(), word.parse::<SocketAddr>()) {
        (Ok(ip), _) => (ip, None),
        (_, Ok(at)) if at.port() != 0 => (at.ip(), Some(at.port())),
        _ => return Err(bad()),
    };
    Ok((ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str, destination: &str) -> Result<Request, RequestError> {
        Request::parse(source, destination, None)
    }

    #[test]
    fn both_families() {
        let v4 = parse("10.0.0.1", "10.68.0.10:80").unwrap();
        assert!(v4.any_port);
        assert_eq!(v4.tuple.to_string(), format!("TCP 10.0.0.1:{DEFAULT_SOURCE_PORT} -> 10.68.0.10:80"));
        let v6 = parse("[fd00::1]:4000", "[fd00::2]:53/udp").unwrap();
        assert_eq!(v6.tuple.to_string(), "UDP [fd00::1]:4000 -> [fd00::2]:53");
        assert!(!v6.any_port);
        assert_eq!(parse("[fd00::1]", "[fd00::2]:53/SCTP").unwrap().tuple.proto, Proto::SCTP);
        assert_eq!(parse("fd00::1", "fd00::2/icmp").unwrap().tuple.to_string(), "ICMPv6 fd00::1 -> fd00::2");
        assert_eq!(parse("10.0.0.1", "10.0.0.2/icmp").unwrap().tuple.proto, Proto::ICMP);
        // The form in which an IPv6 socket shows an IPv4 peer.
        assert!(parse("::ffff:10.0.0.1", "10.68.0.10:80").unwrap().tuple.is_v4());
    }

    #[test]
    fn errors_name_the_argument() {
        for (source, destination, word) in [
            ("10.0.0", "10.68.0.10:80", "10.0.0"),
            ("10.0.0.1:0", "10.68.0.10:80", "10.0.0.1:0"),
            ("10.0.0.1", "10.68.0.10", "has no port"),
            ("10.0.0.1", "10.68.0.10:80/quic", "quic"),
            ("10.0.0.1", "10.68.0.10:80/icmp", "has a port"),
            ("10.0.0.1", "10.68.0.10/icmpv6", "icmpv6"),
            ("10.0.0.1", "[fd00::1]:80", "different address families"),
            ("10.0.0.1", "224.0.0.1:80", "224.0.0.1"),
            ("0.0.0.0", "10.68.0.10:80", "0.0.0.0"),
            ("fd00::1", "fd00::2:80", "has no port"),
        ] {
            let error = parse(source, destination).unwrap_err().to_string();
            assert!(error.contains(word), "{source} {destination}: {error}");
        }
    }
}
