//! What the tables say about a packet: who it is addressed to, and why. The programs decide by themselves; this names
//! what they decide by, and is all there is for the socket hooks, which cannot be run.

use std::net::IpAddr;

use proxy_common::{
    Addr, Backend, BackendMeta, Device, Frontend, FrontendKey, FrontendKind, Name, NodeConfig, Port, Proto,
    ServiceMeta, SourceRange, map, node::role,
};

use super::{
    ExplainError,
    question::Tuple,
    twin::Twin,
    view::{BackendView, FrontendView},
};
use crate::inspect::proto_name;

type Result<T> = std::result::Result<T, ExplainError>;

/// What a destination is.
pub enum Destination {
    Service(FrontendKey, Frontend),
    /// Not a service port; the name in [`super::view::Explanation::destination`], and why.
    Other(&'static str, String),
}

/// The frontend at the packet's destination, as `service::frontend` of the programs finds it: an exact address first,
/// then NodePorts at addresses with one of `roles`.
pub fn destination(twin: &Twin, tuple: &Tuple, roles: u32) -> Result<Destination> {
    let exact = tuple.destination();
    let ping = vip_entry(twin, tuple.dst.ip())?;
    if tuple.is_ping() {
        return Ok(match ping {
            Some((key, entry)) => Destination::Service(key, entry),
            None => Destination::Other("foreign", format!("{} is no Service's address", tuple.dst.ip())),
        });
    }
    let exact_found: Option<Frontend> = twin.copy(map::FRONTENDS, &exact)?;
    let under = FrontendKey::new(exact.addr.unspecified_alike(), exact.port, exact.proto);
    let node_port: Option<Frontend> = twin.copy(map::FRONTENDS, &under)?;
    if let Some(found) = exact_found {
        return Ok(Destination::Service(exact, found));
    }
    let own_roles: u32 = twin.copy(map::NODE_ADDRS, &exact.addr)?.unwrap_or(0);
    if let Some(found) = node_port
        && own_roles & roles != 0
    {
        return Ok(Destination::Service(under, found));
    }
    let addr = tuple.dst.ip();
    if let Some((_, vip)) = ping {
        return Ok(if vip.has(Frontend::CLUSTER_IP) {
            Destination::Other("other_port_of_cluster_ip", format!("{addr} is a ClusterIP without this port"))
        } else {
            Destination::Other(
                "vip_other_port",
                format!("{addr} is a Service's external address without this port, so it is left alone"),
            )
        });
    }
    if let Some(found) = node_port {
        let service = name_of(twin, &found)?;
        let why = match own_roles {
            0 => format!("{addr} is none of this node's addresses"),
            r if r & role::LOOPBACK != 0 => format!("{addr} serves NodePorts to processes of the node only"),
            _ => format!("{addr} is not among the addresses that accept NodePorts"),
        };
        return Ok(Destination::Other("node_port_elsewhere", format!("a NodePort of {service}, but {why}")));
    }
    if is_unallocated(twin, exact.addr)? {
        return Ok(Destination::Other(
            "unallocated",
            format!("{addr} lies in a ServiceCIDR and no Service has it"),
        ));
    }
    let backend: Option<u32> = twin.copy(map::BACKEND_ADDRS, &exact)?;
    Ok(match backend {
        Some(_) => {
            Destination::Other("backend", format!("{} is a backend itself, asked directly", tuple.dst))
        }
        None => Destination::Other("foreign", format!("{} is no Service's", tuple.dst)),
    })
}

/// The entry that every VIP has, for ping.
fn vip_entry(twin: &Twin, addr: IpAddr) -> Result<Option<(FrontendKey, Frontend)>> {
    let proto = if addr.is_ipv4() { Proto::ICMP } else { Proto::ICMPV6 };
    let key = FrontendKey::new(addr.into(), Port::ZERO, proto);
    let found: Option<Frontend> = twin.copy(map::FRONTENDS, &key)?;
    Ok(found.map(|entry| (key, entry)))
}

fn is_unallocated(twin: &Twin, addr: Addr) -> Result<bool> {
    let config = config(twin)?;
    let used = config.service_prefixes.iter().take(config.service_prefix_count as usize);
    let own: u32 = twin.copy(map::NODE_ADDRS, &addr)?.unwrap_or(0);
    Ok(own & role::OWN == 0 && used.into_iter().any(|prefix| prefix.contains(&addr)))
}

pub fn config(twin: &Twin) -> Result<NodeConfig> {
    Ok(twin.copy(map::NODE_CONFIG, &0u32)?.unwrap_or(bytemuck::Zeroable::zeroed()))
}

pub fn device(twin: &Twin, ifindex: u32) -> Result<Option<Device>> {
    twin.copy(map::DEVICES, &ifindex)
}

/// Whether policies take the source for one of this node, as `new_flow::origin` of the programs does.
pub fn is_local_client(twin: &Twin, src: IpAddr, ifindex: u32) -> Result<bool> {
    let config = config(twin)?;
    let by_device =
        if src.is_ipv4() { NodeConfig::LOCAL_BY_DEVICE_V4 } else { NodeConfig::LOCAL_BY_DEVICE_V6 };
    if config.flags & by_device != 0 {
        return Ok(device(twin, ifindex)?.is_some_and(|device| device.flags & Device::POD != 0));
    }
    let src = Addr::from(src);
    let used = config.pod_prefixes.iter().take(config.pod_prefix_count as usize);
    Ok(used.into_iter().any(|prefix| prefix.contains(&src)))
}

/// Whether the set is the local one.
pub fn uses_local(frontend: &Frontend, local_client: bool) -> bool {
    frontend.has(Frontend::LOCAL) && !(frontend.has(Frontend::EXTERNAL) && local_client)
}

/// Whether source ranges let a client in, copied for the programs; and the widest range that does.
pub fn let_in(twin: &Twin, service: u32, client: IpAddr) -> Result<Option<String>> {
    let client = Addr::from(client);
    let asked = SourceRange::client(service, client);
    let live: Option<u32> = twin.live(map::SOURCE_RANGES, &asked)?;
    let Some(one) = live else {
        return Ok(None);
    };
    twin.put(map::SOURCE_RANGES, &asked, &one)?;
    let least = if client.is_v4() { 96 } else { 0 };
    for len in least..=128 {
        let range = SourceRange::new(service, client, len);
        if twin.live::<_, u32>(map::SOURCE_RANGES, &range)?.is_some() {
            let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            let bits = u128::from_be_bytes(bytemuck::cast(client)) & mask;
            let addr = std::net::Ipv6Addr::from_bits(bits).to_canonical();
            return Ok(Some(format!("{addr}/{}", range.address_bits())));
        }
    }
    Ok(Some(client.to_string()))
}

pub fn meta(twin: &Twin, service: u32) -> Result<ServiceMeta> {
    let nobody = ServiceMeta {
        namespace: Name::EMPTY,
        name: Name::EMPTY,
        port_name: Name::EMPTY,
        port: Port::ZERO,
        proto: 0,
        family: 0,
        flags: 0,
    };
    Ok(twin.live(map::SERVICE_META, &service)?.unwrap_or(nobody))
}

/// `NAMESPACE/NAME`, with the port's name where it has one.
pub fn name_of(twin: &Twin, frontend: &Frontend) -> Result<String> {
    let meta = meta(twin, frontend.service)?;
    let name = format!("{}/{}", meta.namespace.as_str(), meta.name.as_str());
    Ok(match meta.port_name.as_str() {
        "" => name,
        port => format!("{name}:{port}"),
    })
}

pub fn frontend_view(twin: &Twin, key: &FrontendKey, frontend: &Frontend) -> Result<FrontendView> {
    let meta = meta(twin, frontend.service)?;
    Ok(FrontendView {
        kind: FrontendKind::from_number(frontend.kind).map_or("unknown", FrontendKind::name),
        namespace: meta.namespace.as_str().to_owned(),
        name: meta.name.as_str().to_owned(),
        port_name: meta.port_name.as_str().to_owned(),
        address: key.addr.to_string(),
        port: key.port.host(),
        protocol: proto_name(key.proto),
        has_endpoints: frontend.has(Frontend::HAS_ENDPOINTS),
    })
}

pub fn backend_view(twin: &Twin, id: u32, chosen_by: &'static str) -> Result<Option<BackendView>> {
    let backend: Option<Backend> = twin.copy(map::BACKENDS, &id)?;
    let meta: Option<BackendMeta> = twin.live(map::BACKEND_META, &id)?;
    Ok(backend.map(|backend| BackendView {
        id,
        address: backend.addr.to_string(),
        port: backend.port.host(),
        node: meta.map(|meta| meta.node().to_owned()).unwrap_or_default(),
        local: backend.has(Backend::LOCAL),
        chosen_by,
    }))
}
