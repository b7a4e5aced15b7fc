//! Short texts that several views share.

use std::net::SocketAddr;

use proxy_common::{Addr, Port, Proto};

/// `ADDRESS:PORT`, with an IPv6 address in brackets.
pub(crate) fn addr_port(addr: Addr, port: Port) -> String {
    SocketAddr::new(addr.to_ip(), port.host()).to_string()
}

/// The name of a protocol, or its decimal number.
pub(crate) fn proto_name(proto: u8) -> String {
    Proto::name(proto).map_or_else(|| proto.to_string(), str::to_owned)
}

pub(crate) fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_in_brackets() {
        let v6: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
        assert_eq!(addr_port(v6.into(), Port::new(80)), "[fd00::1]:80");
        assert_eq!(addr_port(Addr::UNSPECIFIED_V4, Port::new(30000)), "0.0.0.0:30000");
    }
}
