//! Evaluates the tables for a packet: which frontend it matches, and why. The programs decide by themselves; this module
//! names the reasons. For the socket hooks, which cannot be test-run, it is also the decision.

use std::net::IpAddr;

use proxy_common::{
    Addr, Backend, BackendMeta, Device, Frontend, FrontendKey, FrontendKind, Name, NodeConfig, Port, Proto,
    ServiceMeta, SourceRange, map, node::role,
};

use super::{
    request::Tuple,
    sandbox::{Sandbox, SandboxError},
    view::{BackendView, FrontendView},
};
use crate::inspect::text::proto_name;

type Result<T> = std::result::Result<T, SandboxError>;

/// The result of a frontend lookup.
pub enum Destination {
    Service(FrontendKey, Frontend),
    /// Not a service port: the value of [`super::view::Explanation::destination`], and the reason.
    Other(&'static str, String),
}

/// Looks up the frontend like the programs do: the exact address first, then NodePorts on node addresses with one of `roles`.
pub fn destination(sandbox: &Sandbox, tuple: &Tuple, roles: u32) -> Result<Destination> {
    let exact = tuple.destination();
    let ping = vip_entry(sandbox, tuple.dst.ip())?;
    if tuple.is_ping() {
        return Ok(match ping {
            Some((key, entry)) => Destination::Service(key, entry),
            None => {
                Destination::Other("foreign", format!("{} is not the address of a Service", tuple.dst.ip()))
            }
        });
    }
    let exact_found: Option<Frontend> = sandbox.copy(map::FRONTENDS, &exact)?;
    let under = FrontendKey::new(exact.addr.unspecified_alike(), exact.port, exact.proto);
    let node_port: Option<Frontend> = sandbox.copy(map::FRONTENDS, &under)?;
    if let Some(found) = exact_found {
        return Ok(Destination::Service(exact, found));
    }
    let own_roles: u32 = sandbox.copy(map::NODE_ADDRS, &exact.addr)?.unwrap_or(0);
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
                format!(
                    "{addr} is an external address of a Service without this port, so the packet is not translated"
                ),
            )
        });
    }
    if let Some(found) = node_port {
        let service = name_of(sandbox, &found)?;
        let why = match own_roles {
            0 => format!("{addr} is not an address of this node"),
            r if r & role::LOOPBACK != 0 => format!("{addr} serves NodePorts only to processes of the node"),
            _ => format!("{addr} is not among the addresses that accept NodePorts"),
        };
        return Ok(Destination::Other("node_port_elsewhere", format!("a NodePort of {service}, but {why}")));
    }
    if is_unallocated(sandbox, exact.addr)? {
        return Ok(Destination::Other(
            "unallocated",
            format!("{addr} is in a ServiceCIDR, but not allocated to a Service"),
        ));
    }
    let backend: Option<u32> = sandbox.copy(map::BACKEND_ADDRS, &exact)?;
    Ok(match backend {
        Some(_) => Destination::Other("backend", format!("{} is the address of a backend", tuple.dst)),
        None => Destination::Other("foreign", format!("{} is not a service port", tuple.dst)),
    })
}

/// The entry for ping that every VIP has.
fn vip_entry(sandbox: &Sandbox, addr: IpAddr) -> Result<Option<(FrontendKey, Frontend)>> {
    let proto = if addr.is_ipv4() { Proto::ICMP } else { Proto::ICMPV6 };
    let key = FrontendKey::new(addr.into(), Port::ZERO, proto);
    let found: Option<Frontend> = sandbox.copy(map::FRONTENDS, &key)?;
    Ok(found.map(|entry| (key, entry)))
}

fn is_unallocated(sandbox: &Sandbox, addr: Addr) -> Result<bool> {
    let config = sandbox.node_config()?;
    let used = config.service_prefixes.iter().take(config.service_prefix_count as usize);
    let own: u32 = sandbox.copy(map::NODE_ADDRS, &addr)?.unwrap_or(0);
    Ok(own & role::OWN == 0 && used.into_iter().any(|prefix| prefix.contains(&addr)))
}

pub fn device(sandbox: &Sandbox, ifindex: u32) -> Result<Option<Device>> {
    sandbox.copy(map::DEVICES, &ifindex)
}

/// Whether traffic policies treat the source as local, like the programs do.
pub fn is_local_client(sandbox: &Sandbox, src: IpAddr, ifindex: u32) -> Result<bool> {
    let config = sandbox.node_config()?;
    let by_device =
        if src.is_ipv4() { NodeConfig::LOCAL_BY_DEVICE_V4 } else { NodeConfig::LOCAL_BY_DEVICE_V6 };
    if config.flags & by_device != 0 {
        return Ok(device(sandbox, ifindex)?.is_some_and(|device| device.flags & Device::POD != 0));
    }
    let src = Addr::from(src);
    let used = config.pod_prefixes.iter().take(config.pod_prefix_count as usize);
    Ok(used.into_iter().any(|prefix| prefix.contains(&src)))
}

/// Whether the local set applies.
pub fn uses_local(frontend: &Frontend, local_client: bool) -> bool {
    frontend.has(Frontend::LOCAL) && !(frontend.has(Frontend::EXTERNAL) && local_client)
}

/// The widest source range that accepts the client; `None` if no range does. Copies the result for the programs.
pub fn accepting_range(sandbox: &Sandbox, frontend: &Frontend, client: IpAddr) -> Result<Option<String>> {
    let client = Addr::from(client);
    let owner = SourceRange::owner(frontend.service, frontend.kind);
    let asked = SourceRange::client(owner, client);
    let live: Option<u32> = sandbox.live(map::SOURCE_RANGES, &asked)?;
    let Some(one) = live else {
        return Ok(None);
    };
    sandbox.put(map::SOURCE_RANGES, &asked, &one)?;
    let least = if client.is_v4() { 96 } else { 0 };
    for len in least..=128 {
        let range = SourceRange::new(owner, client, len);
        if sandbox.live::<_, u32>(map::SOURCE_RANGES, &range)?.is_some() {
            let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            let bits = u128::from_be_bytes(bytemuck::cast(client)) & mask;
            let addr = std::net::Ipv6Addr::from_bits(bits).to_canonical();
            return Ok(Some(format!("{addr}/{}", range.address_bits())));
        }
    }
    Ok(Some(client.to_string()))
}

pub fn meta(sandbox: &Sandbox, service: u32) -> Result<ServiceMeta> {
    let unknown = ServiceMeta {
        namespace: Name::EMPTY,
        name: Name::EMPTY,
        port_name: Name::EMPTY,
        port: Port::ZERO,
        proto: 0,
        family: 0,
        flags: 0,
    };
    Ok(sandbox.live(map::SERVICE_META, &service)?.unwrap_or(unknown))
}

/// `NAMESPACE/NAME`, followed by the name of the port if it has one.
pub fn name_of(sandbox: &Sandbox, frontend: &Frontend) -> Result<String> {
    let meta = meta(sandbox, frontend.service)?;
    let name = format!("{}/{}", meta.namespace.as_str(), meta.name.as_str());
    Ok(match meta.port_name.as_str() {
        "" => name,
        port => format!("{name}:{port}"),
    })
}

pub fn frontend_view(sandbox: &Sandbox, key: &FrontendKey, frontend: &Frontend) -> Result<FrontendView> {
    let meta = meta(sandbox, frontend.service)?;
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

pub fn backend_view(sandbox: &Sandbox, id: u32, chosen_by: &'static str) -> Result<Option<BackendView>> {
    let backend: Option<Backend> = sandbox.copy(map::BACKENDS, &id)?;
    let meta: Option<BackendMeta> = sandbox.live(map::BACKEND_META, &id)?;
    Ok(backend.map(|backend| BackendView {
        id,
        address: backend.addr.to_string(),
        port: backend.port.host(),
        node: meta.map(|meta| meta.node().to_owned()).unwrap_or_default(),
        local: backend.has(Backend::LOCAL),
        chosen_by,
    }))
}
