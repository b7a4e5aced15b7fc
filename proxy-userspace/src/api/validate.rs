//! The API server's checks of single fields; each error names the field.

use std::net::IpAddr;

use ipnet::IpNet;

use super::field_error::{FieldError, Reason};
use crate::{model::Protocol, problem::RefusedAddress};

pub fn field(path: impl Into<String>, reason: Reason) -> FieldError {
    FieldError { path: path.into(), reason }
}

/// An IP address.
pub fn ip(path: &str, text: &str) -> Result<IpAddr, FieldError> {
    text.parse().map_err(|_| field(path, Reason::NotAnAddress(text.into())))
}

/// An IP address that a Service may have: not one with a special meaning on every host.
pub fn vip(path: &str, text: &str) -> Result<IpAddr, FieldError> {
    let address = ip(path, text)?;
    match RefusedAddress::of(address) {
        Some(why) => Err(field(path, Reason::SpecialAddress { address, why })),
        None => Ok(address),
    }
}

/// An address range; host bits are cleared.
pub fn range(path: &str, text: &str) -> Result<IpNet, FieldError> {
    let range: Result<IpNet, _> = text.trim().parse();
    range.map(|range| range.trunc()).map_err(|_| field(path, Reason::NotARange(text.into())))
}

pub fn port(path: &str, number: i64) -> Result<u16, FieldError> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| field(path, Reason::NotAPort(number)))
}

/// A protocol; TCP when there is none.
pub fn protocol(path: &str, name: Option<&str>) -> Result<Protocol, FieldError> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(value) => Err(field(path, Reason::NotOneOf { value: value.into(), allowed: "TCP, UDP, SCTP" })),
    }
}

/// A DNS label (RFC 1123), as names of Services and ports are.
pub fn label(path: &str, name: &str) -> Result<(), FieldError> {
    let is_label = name.len() <= 63 && is_part(name);
    if is_label { Ok(()) } else { Err(field(path, Reason::NotALabel(name.into()))) }
}

/// A DNS subdomain (RFC 1123), as most names are.
pub fn subdomain(path: &str, name: &str) -> Result<(), FieldError> {
    let is_subdomain = name.len() <= 253 && name.split('.').all(is_part);
    if is_subdomain { Ok(()) } else { Err(field(path, Reason::NotASubdomain(name.into()))) }
}

fn is_part(name: &str) -> bool {
    let is_alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(is_alphanumeric)
        && bytes.last().is_some_and(is_alphanumeric)
        && bytes.iter().all(|b| is_alphanumeric(b) || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(label("x", "a-1").is_ok());
        let long = "a".repeat(64);
        for bad in ["", "A", "-a", "a-", "a.b", "a_b", &long] {
            assert!(label("x", bad).is_err(), "{bad}");
        }
        assert!(subdomain("x", "node-1.example").is_ok());
        for bad in ["a..b", ".a", "a."] {
            assert!(subdomain("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_and_ranges() {
        assert_eq!(port("x", 65535), Ok(65535));
        assert!(port("x", 0).is_err() && port("x", 65536).is_err() && port("x", -1).is_err());
        assert_eq!(range("x", " 10.1.2.3/8 ").unwrap().to_string(), "10.0.0.0/8");
        assert!(range("x", "10.0.0.0").is_err());
        assert!(vip("x", "127.0.0.1").is_err());
        assert!(ip("x", "010.0.0.1").is_err());
    }
}
