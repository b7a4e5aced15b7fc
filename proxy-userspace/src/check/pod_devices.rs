//! Pods whose packets pass no device of this node, and so no hook: macvlan and ipvlan interfaces, SR-IOV functions. The node
//! has no list of them, only indications: the CNI configuration, additional MAC addresses that an uplink listens for, and,
//! once an agent has run, routes to backends of this node.

use std::{collections::BTreeSet, fs, io, net::IpAddr, path::Path};

use super::{
    finding::Finding,
    survey::{self, Survey},
};
use crate::{
    datapath::{
        devices::Link,
        netlink::{Message, Socket, attributes, read_u16, read_u32},
    },
    inspect::backends::BackendView,
};

/// The CNI configuration directory of container runtimes.
pub(super) const CNI_DIR: &str = "/etc/cni/net.d";
const SYSFS: &str = "/sys/class/net";
/// CNI plugins that create such interfaces.
const PLUGINS: [&str; 4] = ["macvlan", "ipvlan", "sriov", "host-device"];

pub(super) fn examine(survey: &Survey, types: &BTreeSet<String>) -> Vec<Finding> {
    let uplinks: Vec<&Link> = survey.uplinks().collect();
    let mut signs = Vec::new();
    let plugins: Vec<_> = PLUGINS.into_iter().filter(|name| types.contains(*name)).collect();
    if !plugins.is_empty() {
        signs.push(format!("{CNI_DIR} configures the plugin {}", plugins.join(", ")));
    }
    signs.extend(uplinks.iter().filter_map(|link| functions(Path::new(SYSFS), &link.name)));
    signs.extend(children(survey, &uplinks));
    let listened = extra_mac_addresses().unwrap_or_default();
    signs.extend(uplinks.iter().filter_map(|link| evaluate_addresses(link, &listened)));
    signs.extend(
        survey.maps.as_ref().and_then(|maps| evaluate_routes(&backends_by_uplink(survey, &maps.backends))),
    );
    vec![evaluate(types), evaluate_signs(&signs)]
}

fn evaluate(types: &BTreeSet<String>) -> Finding {
    let names = types.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Finding::ok(
        "pod network",
        if names.is_empty() { format!("no configuration in {CNI_DIR}") } else { names },
    )
}

fn evaluate_signs(signs: &[String]) -> Finding {
    const CHECK: &str = "pods' devices";
    if signs.is_empty() {
        return Finding::ok(CHECK, "no indication of pods without a device on this node");
    }
    Finding::warn(
        CHECK,
        format!("{}: such pods have no device on this node, so their packets pass no hook", signs.join("; ")),
        "run shunt with --socket-lb all, so that such pods can reach Services (TCP and UDP); attach pods that are backends to a \
         pod network with host devices (veth)",
    )
}

/// Virtual functions of an uplink, which may belong to pods.
fn functions(sysfs: &Path, device: &str) -> Option<String> {
    let text = fs::read_to_string(sysfs.join(device).join("device/sriov_numvfs")).ok()?;
    let count: u32 = text.trim().parse().ok().filter(|count| *count > 0)?;
    Some(format!("{device} has {count} SR-IOV functions"))
}

/// macvlan and ipvlan devices of the node on an uplink, through which it reaches such pods.
fn children(survey: &Survey, uplinks: &[&Link]) -> Vec<String> {
    let links = survey.devices.links.values();
    let found = links.filter(|link| matches!(link.kind.as_str(), "macvlan" | "ipvlan"));
    found
        .filter_map(|link| {
            let parent = uplinks.iter().find(|uplink| Some(uplink.index) == link.parent)?;
            Some(format!("{} is a {} device on {}", link.name, link.kind, parent.name))
        })
        .collect()
}

/// Additional MAC addresses that devices listen for. A macvlan interface in any network namespace adds its address to the list
/// of its parent while it is up.
fn extra_mac_addresses() -> io::Result<BTreeSet<(u32, [u8; 6])>> {
    const RTM_GETNEIGH: u16 = 30;
    // `struct ndmsg`.
    let mut body = [0; 12];
    body[0] = libc::AF_BRIDGE as u8;
    let mut found = BTreeSet::new();
    Socket::open()?.dump(RTM_GETNEIGH, &body, |message| found.extend(extra_mac_address(&message)))?;
    Ok(found)
}

fn extra_mac_address(message: &Message<'_>) -> Option<(u32, [u8; 6])> {
    const RTM_NEWNEIGH: u16 = 28;
    const NUD_PERMANENT: u16 = 0x80;
    const NTF_SELF: u8 = 2;
    const NDA_LLADDR: u16 = 2;
    let (index, state) = (read_u32(message.body, 4)?, read_u16(message.body, 8)?);
    let listens = message.kind == RTM_NEWNEIGH
        && state & NUD_PERMANENT != 0
        && message.body.get(10).is_some_and(|flags| flags & NTF_SELF != 0);
    let mut all = attributes(message.body.get(12..)?);
    let mac: [u8; 6] = all.find(|it| it.0 == NDA_LLADDR)?.1.try_into().ok()?;
    // Any device listens for multicast groups.
    (listens && mac[0] & 1 == 0).then_some((index, mac))
}

fn evaluate_addresses(uplink: &Link, listened: &BTreeSet<(u32, [u8; 6])>) -> Option<String> {
    // The lists of bridges, bonds and tunnels have other entries.
    if !uplink.kind.is_empty() && uplink.kind != "veth" {
        return None;
    }
    let count = listened.iter().filter(|(index, mac)| *index == uplink.index && *mac != uplink.mac).count();
    let plural = if count == 1 { "" } else { "es" };
    (count > 0).then(|| {
        format!("{} listens for {count} more address{plural}, as with macvlan interfaces", uplink.name)
    })
}

/// Backends of this node whose route leads to an uplink instead of a pod device, with the name of the uplink. Bridges are
/// skipped: pods may be on other ports of a bridge, which have hooks.
fn backends_by_uplink(survey: &Survey, backends: &[BackendView]) -> BTreeSet<(String, String)> {
    let Ok(mut netlink) = Socket::open() else { return BTreeSet::new() };
    let addresses: BTreeSet<IpAddr> =
        backends.iter().filter(|backend| backend.local).filter_map(|it| it.address.parse().ok()).collect();
    let uplinks: Vec<_> = survey.uplinks().filter(|link| link.kind != "bridge").collect();
    addresses
        .into_iter()
        .filter_map(|address| {
            let index = survey::route(&mut netlink, address)?;
            let uplink = uplinks.iter().find(|link| link.index == index)?;
            Some((address.to_string(), uplink.name.clone()))
        })
        .collect()
}

fn evaluate_routes(found: &BTreeSet<(String, String)>) -> Option<String> {
    let (address, uplink) = found.first()?;
    let more = if found.len() > 1 { format!(" (and {} more)", found.len() - 1) } else { String::new() };
    Some(format!("backend {address}{more} of this node is reached through uplink {uplink}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::finding::Level,
        datapath::netlink::{Request, messages},
    };

    fn neighbour(state: u16, flags: u8, mac: [u8; 6]) -> Option<(u32, [u8; 6])> {
        let mut body = [0; 12];
        body[4..8].copy_from_slice(&3u32.to_ne_bytes());
        body[8..10].copy_from_slice(&state.to_ne_bytes());
        body[10] = flags;
        let mut request = Request::new(28, 0, &body);
        request.attribute(2, &mac);
        messages(&request.encoded()).find_map(|message| extra_mac_address(&message))
    }

    #[test]
    fn extra_addresses_of_an_uplink() {
        let mac = [2, 0, 0, 0, 0, 9];
        assert_eq!(neighbour(0x80, 2, mac), Some((3, mac)));
        assert_eq!(neighbour(0x02, 2, mac), None, "learned");
        assert_eq!(neighbour(0x80, 4, mac), None, "a bridge's port");
        assert_eq!(neighbour(0x80, 2, [1, 0, 0x5e, 0, 0, 1]), None, "a group");
        let uplink = Link { index: 3, name: "eth0".to_owned(), mac: [2, 0, 0, 0, 0, 1], ..Link::default() };
        let sign = evaluate_addresses(&uplink, &[(3, mac), (3, uplink.mac), (4, mac)].into()).unwrap();
        assert!(sign.contains("eth0 listens for 1 more address,"), "{sign}");
        assert_eq!(evaluate_addresses(&uplink, &[(3, uplink.mac)].into()), None);
        let bridge = Link { kind: "bridge".to_owned(), ..uplink };
        assert_eq!(evaluate_addresses(&bridge, &[(3, mac)].into()), None);
    }

    #[test]
    fn virtual_functions() {
        let sysfs = std::env::temp_dir().join(format!("shunt-check-sysfs-{}", std::process::id()));
        for (device, count) in [("eth0", "4\n"), ("eth1", "0\n")] {
            fs::create_dir_all(sysfs.join(device).join("device")).unwrap();
            fs::write(sysfs.join(device).join("device/sriov_numvfs"), count).unwrap();
        }
        let found = ["eth0", "eth1", "eth2"].map(|device| functions(&sysfs, device));
        fs::remove_dir_all(&sysfs).unwrap();
        assert_eq!(found, [Some("eth0 has 4 SR-IOV functions".to_owned()), None, None]);
    }

    #[test]
    fn indications_cause_a_warning() {
        assert_eq!(evaluate_signs(&[]).level, Level::Ok);
        let routes = [("192.168.8.50".to_owned(), "eth0".to_owned())].into();
        let evaluated = evaluate_signs(&[evaluate_routes(&routes).unwrap()]);
        assert!(
            evaluated.level == Level::Warn && evaluated.detail.starts_with("backend 192.168.8.50 of"),
            "{evaluated:?}"
        );
        assert_eq!(evaluate_routes(&BTreeSet::new()), None);
        assert_eq!(evaluate(&["bridge".to_owned()].into()).detail, "bridge");
    }
}
