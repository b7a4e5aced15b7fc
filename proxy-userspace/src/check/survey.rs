//! Facts that several checks share, read once: packet filter rules, devices and addresses, and the contents of the pinned
//! maps, if there are any.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use proxy_common::{FrontendKind, NodeConfig, map};

use crate::{
    datapath::{
        devices::{Devices, Link},
        netlink::{Request, Socket, attributes, read_u32},
        xdp,
    },
    inspect::{
        backends::{self, BackendView},
        pins::Pins,
        services::ServiceMaps,
    },
    netfilter::{self, Chain},
};

#[derive(Debug)]
pub(super) struct Survey {
    pub rules: io::Result<Vec<Chain>>,
    pub devices: Devices,
    /// `None` before the first `shunt run`.
    pub maps: Option<Maps>,
}

/// Contents of the pinned maps.
#[derive(Debug, Default)]
pub(super) struct Maps {
    pub backends: Vec<BackendView>,
    pub vips: BTreeSet<IpAddr>,
    pub node_ports: BTreeSet<u16>,
    pub pod_ranges: Vec<ipnet::IpNet>,
    /// Devices with shunt's XDP program.
    pub xdp: Vec<u32>,
}

impl Survey {
    pub(super) fn of(bpffs: &Path) -> Self {
        let devices = Socket::open().and_then(|mut netlink| Devices::dump(&mut netlink));
        Self {
            rules: netfilter::chains(),
            devices: devices.unwrap_or_default(),
            maps: Maps::read(&Pins::new(bpffs), bpffs),
        }
    }

    /// Devices of default routes.
    pub(super) fn uplinks(&self) -> impl Iterator<Item = &Link> {
        self.devices.default_routes.iter().filter_map(|index| self.devices.links.get(index))
    }

    pub(super) fn device_name(&self, index: u32) -> String {
        self.devices.links.get(&index).map_or_else(|| index.to_string(), |link| link.name.clone())
    }
}

impl Maps {
    fn read(pins: &Pins, bpffs: &Path) -> Option<Self> {
        let maps = ServiceMaps::read(pins).ok()?;
        let config = pins.read::<u32, NodeConfig>(map::NODE_CONFIG).ok()?;
        let ranges = config.first().map(|(_, config)| {
            let all = config.pod_prefixes.iter().take(config.pod_prefix_count as usize);
            all.filter_map(|prefix| prefix.to_string().parse().ok()).collect()
        });
        let vips = maps
            .frontends
            .iter()
            .filter(|(_, frontend)| frontend.kind != FrontendKind::NodePort as u32)
            .filter_map(|(key, _)| key.addr.to_string().parse().ok());
        let node_ports =
            maps.frontends.iter().filter(|(_, frontend)| frontend.kind == FrontendKind::NodePort as u32);
        Some(Self {
            node_ports: node_ports.map(|(key, _)| key.port.host()).collect(),
            backends: backends::views(&maps),
            vips: vips.collect(),
            pod_ranges: ranges.unwrap_or_default(),
            xdp: xdp::pinned(&crate::datapath::pins::Pins::under(bpffs)).unwrap_or_default(),
        })
    }
}

/// The egress device for packets of this node to `to`; `None` for addresses of the node.
pub(super) fn route(netlink: &mut Socket, to: IpAddr) -> Option<u32> {
    const RTM_NEWROUTE: u16 = 24;
    const RTM_GETROUTE: u16 = 26;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTN_UNICAST: u8 = 1;
    let (family, octets) = match to {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut body = [0; 12];
    (body[0], body[1]) = (family as u8, octets.len() as u8 * 8);
    let mut request = Request::new(RTM_GETROUTE, 0, &body);
    request.attribute(RTA_DST, &octets);
    let mut found = None;
    let asked = netlink.ask(request, |message| {
        if message.kind == RTM_NEWROUTE && message.body.get(7) == Some(&RTN_UNICAST) {
            let mut all = attributes(message.body.get(12..).unwrap_or_default());
            found = all.find(|it| it.0 == RTA_OIF).and_then(|it| read_u32(it.1, 0));
        }
    });
    asked.ok().and(found)
}

/// The plugin types in the CNI configurations in `dir`, including delegated ones.
pub(super) fn cni_types(dir: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let known =
        |path: &PathBuf| path.extension().is_some_and(|it| it == "conf" || it == "conflist" || it == "json");
    let mut types = BTreeSet::new();
    for path in files.map(|file| file.path()).filter(known) {
        let text = fs::read_to_string(path).unwrap_or_default();
        collect_types(&serde_json::from_str(&text).unwrap_or_default(), &mut types);
    }
    types
}

/// Collects `type` of a network configuration, of the plugins in a list, and of multus delegates; not of IPAM plugins.
fn collect_types(config: &serde_json::Value, types: &mut BTreeSet<String>) {
    types.extend(config["type"].as_str().map(str::to_owned));
    for within in ["plugins", "delegates"] {
        for plugin in config[within].as_array().into_iter().flatten() {
            collect_types(plugin, types);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types_in(text: &str) -> Vec<String> {
        let mut types = BTreeSet::new();
        collect_types(&serde_json::from_str(text).unwrap_or_default(), &mut types);
        types.into_iter().collect()
    }

    #[test]
    fn plugin_types() {
        assert_eq!(types_in(r#"{"type": "bridge", "ipam": {"type": "host-local"}}"#), ["bridge"]);
        assert_eq!(
            types_in(r#"{"plugins": [{"type": "cilium-cni"}, {"type": "portmap"}]}"#),
            ["cilium-cni", "portmap"]
        );
        let multus = r#"{"type": "multus", "delegates": [{"plugins": [{"type": "macvlan"}]}]}"#;
        assert_eq!(types_in(multus), ["macvlan", "multus"]);
        assert!(types_in("not json").is_empty());
    }
}
