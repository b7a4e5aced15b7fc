//! Why a Service is not served as specified.
//!
//! A problem is a state, not an event: it lasts until its cause is gone. The controller holds the current ones, logs
//! each once and returns new ones to its caller.

use std::{fmt, net::IpAddr, sync::Arc};

use proxy_common::FrontendKey;

use crate::model::ServiceKey;

/// One problem of one Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub service: ServiceKey,
    pub kind: ProblemKind,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ProblemKind {
    #[error("it has no clusterIP; it cannot be served until it has one")]
    NoClusterIp,
    #[error("endpoint address {address} is refused: it is {why}")]
    EndpointRefused { address: IpAddr, why: RefusedAddress },
    #[error("loadBalancerSourceRanges: {range:?} is not an address range; it allows no client")]
    SourceRange { range: Arc<str> },
    #[error(
        "annotation shunt.dev/nodeport-source-ranges: {range:?} is not an address range; it allows no client"
    )]
    NodePortSourceRange { range: Arc<str> },
    #[error(
        "port {port}/SCTP is refused: its endpoint {address} listens on {target}, and SCTP ports cannot be translated; make \
         port and targetPort the same"
    )]
    SctpPort { port: u16, address: IpAddr, target: u16 },
    #[error(
        "NodePort {node_port} of port {port}/SCTP is refused: SCTP ports cannot be translated; make port, targetPort and \
         nodePort the same, or use the Service's addresses"
    )]
    SctpNodePort { port: u16, node_port: u16 },
    #[error(
        "externalTrafficPolicy is Local, but it has no healthCheckNodePort: its load balancer cannot find the nodes \
         that have endpoints"
    )]
    NoHealthCheckPort,
    #[error("healthCheckNodePort {port} cannot be opened at {address}: {reason}; trying again")]
    HealthCheckPort { port: u16, address: IpAddr, reason: String },
    #[error("healthCheckNodePort {port} is answered for Service {owner}, whose claim takes precedence")]
    HealthCheckPortTaken { port: u16, owner: ServiceKey },
    #[error("externalIPs are not served: --allow-service-external-ips is false")]
    ExternalIps,
    #[error("{frontend} is served for Service {owner}, whose claim takes precedence", frontend = Frontend(*frontend))]
    FrontendTaken { frontend: FrontendKey, owner: ServiceKey },
    #[error("map {map} is full ({max} entries); {consequence}")]
    Full { map: &'static str, max: u32, consequence: Consequence },
}

/// What happens to a Service that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consequence {
    /// It was not served before.
    NotServed,
    /// Its previous state is still served.
    ServedAsBefore,
}

/// Why traffic is not sent to an endpoint address (CVE-2021-25737 and similar).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusedAddress {
    Unspecified,
    Loopback,
    LinkLocal,
    Multicast,
    Broadcast,
    V4Mapped,
    /// A Service's.
    ClusterIp,
}

impl Problem {
    pub fn new(service: &ServiceKey, kind: ProblemKind) -> Self {
        Self { service: service.clone(), kind }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.kind)
    }
}

impl fmt::Display for Consequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotServed => "it is not served until other Services are removed",
            Self::ServedAsBefore => "its previous state is served until other Services are removed",
        })
    }
}

impl RefusedAddress {
    /// Why traffic is never sent to `ip`, based on the address alone.
    pub fn of(ip: IpAddr) -> Option<Self> {
        let link_local = match ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        Some(match ip {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Self::V4Mapped,
            IpAddr::V4(v4) if v4.is_broadcast() => Self::Broadcast,
            _ if ip.is_unspecified() => Self::Unspecified,
            _ if ip.is_loopback() => Self::Loopback,
            _ if ip.is_multicast() => Self::Multicast,
            _ if link_local => Self::LinkLocal,
            _ => return None,
        })
    }
}

impl fmt::Display for RefusedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "the unspecified address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::V4Mapped => "an IPv4-mapped IPv6 address",
            Self::ClusterIp => "a Service's ClusterIP",
        })
    }
}

/// A frontend in readable form.
struct Frontend(FrontendKey);

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrontendKey { addr, port, proto, .. } = self.0;
        let proto = proxy_common::Proto::name(proto).unwrap_or("?");
        if addr.is_unspecified() {
            let family = if addr.is_v4() { "IPv4" } else { "IPv6" };
            return write!(f, "NodePort {port}/{proto} ({family})");
        }
        let ip = addr.to_ip();
        if ip.is_ipv6() { write!(f, "[{ip}]:{port}/{proto}") } else { write!(f, "{ip}:{port}/{proto}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_refused() {
        for (text, why) in [
            ("0.0.0.0", RefusedAddress::Unspecified),
            ("::", RefusedAddress::Unspecified),
            ("127.0.0.2", RefusedAddress::Loopback),
            ("::1", RefusedAddress::Loopback),
            ("169.254.169.254", RefusedAddress::LinkLocal),
            ("fe80::1", RefusedAddress::LinkLocal),
            ("224.0.0.1", RefusedAddress::Multicast),
            ("ff02::1", RefusedAddress::Multicast),
            ("255.255.255.255", RefusedAddress::Broadcast),
            ("::ffff:127.0.0.1", RefusedAddress::V4Mapped),
        ] {
            assert_eq!(RefusedAddress::of(text.parse().unwrap()), Some(why), "{text}");
        }
        for text in ["10.0.0.1", "192.168.8.201", "fd00::1", "2001:db8::1", "::2"] {
            assert_eq!(RefusedAddress::of(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn problems_name_the_service_and_the_frontend() {
        let key = ServiceKey::new("default", "web");
        let frontend =
            FrontendKey::new(proxy_common::Addr::UNSPECIFIED_V6, proxy_common::Port::new(30080), 6);
        let kind = ProblemKind::FrontendTaken { frontend, owner: ServiceKey::new("default", "older") };
        assert_eq!(
            Problem::new(&key, kind).to_string(),
            "Service default/web: NodePort 30080/TCP (IPv6) is served for Service default/older, whose claim takes precedence"
        );
    }
}
