//! The domain model: Services, EndpointSlices and Nodes as far as a proxy needs them, with API defaults filled in. The
//! sources deliver it, the snapshot holds it, `compile` reads it.
//!
//! Not the API's shape (`api/`) and not the datapath's (`proxy-common`); no Kubernetes client types.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use proxy_common::Proto;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// Namespace and name of a Service.
pub type ServiceKey = ObjectKey;

/// Address family. Below `compile`, the two families of a dual-stack Service are separate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// A transport protocol a Service port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    Tcp = Proto::TCP,
    Udp = Proto::UDP,
    Sctp = Proto::SCTP,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    /// `metadata.uid`; files need not have one.
    pub uid: Option<Arc<str>>,
    /// `metadata.creationTimestamp` (RFC 3339, UTC: sorts as text); files usually have none.
    pub created: Option<Arc<str>>,
    pub kind: ServiceType,
    /// Addresses of the Service, at most one a family; empty when it is headless or has none yet.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    pub has_selector: bool,
    /// Labelled `service.kubernetes.io/service-proxy-name`: served by another proxy.
    pub other_proxy: bool,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// Timeout of `sessionAffinity: ClientIP`.
    pub affinity_seconds: Option<u32>,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer.ingress` that the proxy captures (ipMode VIP).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`, those of both families.
    pub source_ranges: Vec<IpNet>,
    /// Entries of that list that are no address range.
    pub unreadable_ranges: Vec<Arc<str>>,
    /// The annotation `shunt.dev/nodeport-source-ranges`.
    pub node_port_ranges: SourceRanges,
    pub health_check_node_port: Option<u16>,
}

/// A list of address ranges of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    pub readable: Vec<IpNet>,
    /// Entries that are no address range.
    pub unreadable: Vec<Arc<str>>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the port has no name.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub target_port: TargetPort,
    pub node_port: Option<u16>,
}

/// The port inside a pod. The proxy never reads it (slices carry resolved numbers); the demo and the tests' endpoint
/// controller do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(Arc<str>),
}

/// An EndpointSlice, or an Endpoints object mirrored into one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub key: ObjectKey,
    /// Its Service; `None` if it names none or belongs to a headless Service: then it is ignored.
    pub service: Option<ServiceKey>,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
    /// The cause of its last change, if its controller recorded one. Not part of the contents: the snapshot removes it.
    pub trigger: Option<Trigger>,
}

/// When the pod or Service changed that caused the change of a slice
/// (`endpoints.kubernetes.io/last-change-trigger-time`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    pub family: Family,
    pub at: Timestamp,
}

/// One port of a slice: every endpoint of the slice listens on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of its addresses, the only one a proxy uses.
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    pub hints: Option<Box<Hints>>,
}

/// Topology hints of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub zones: Vec<Arc<str>>,
    pub nodes: Vec<Arc<str>>,
}

/// An endpoint of one Service port: what `compile` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Joins it to the Service port of this name and protocol.
    pub port_name: Arc<str>,
    pub protocol: Protocol,
    pub address: IpAddr,
    pub port: u16,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    pub hints: Option<Box<Hints>>,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Addresses of type InternalIP, in order: the first of each family is primary.
    pub internal_ips: Vec<IpAddr>,
    /// Addresses of any other type that are IP addresses.
    pub other_ips: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// It is being deleted, or the cluster autoscaler is about to delete it: load balancers should send elsewhere
    /// (KEP-3836).
    pub leaving: bool,
}

/// A ServiceCIDR: ranges from which ClusterIPs are allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    pub name: Arc<str>,
    /// At most one a family.
    pub cidrs: Vec<IpNet>,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// 4 or 6.
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

impl From<IpAddr> for Family {
    fn from(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Protocol {
    /// The IANA number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The protocol with this IANA number, if a Service port may have it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            Proto::TCP => Some(Self::Tcp),
            Proto::UDP => Some(Self::Udp),
            Proto::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }

    /// As Kubernetes spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Service {
    /// Its address of this family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::from(*ip) == family)
    }

    /// Whether this proxy serves it.
    pub fn is_served(&self) -> bool {
        !self.headless
            && !self.other_proxy
            && self.kind != ServiceType::ExternalName
            && !self.cluster_ips.is_empty()
    }
}

impl Node {
    /// The primary InternalIP of this family.
    pub fn primary_ip(&self, family: Family) -> Option<IpAddr> {
        self.internal_ips.iter().copied().find(|ip| Family::from(*ip) == family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_round_trip_by_number() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(Proto::ICMP), None);
    }
}
