//! iproute2 commands for a cluster's devices, addresses and routes. Text only; [`super::cluster`] runs them.

use std::path::Path;

use super::plan::{
    Between, EXTERNAL_V4, EXTERNAL_V6, OUTSIDE, PodNet, ROUTER, SERVICES_V4, SERVICES_V6, node_addr, pod_addr,
};

/// VXLAN network identifier and port, as flannel uses them.
const VNI: u32 = 1;
const VXLAN_PORT: u16 = 8472;

/// In the underlay: the switch that connects all machines and is also their router (it forwards nothing).
pub fn underlay() -> String {
    format!(
        "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
         link set br0 up\n\
         addr add {}/24 dev br0\n\
         addr add {}/64 dev br0 nodad\n",
        ROUTER.v4, ROUTER.v6
    )
}

/// In the underlay: a cable from `port` to `eth0` of the machine in the namespace at `peer`.
pub fn cable(port: &str, peer: &Path) -> String {
    format!(
        "link add {port} type veth peer name eth0 netns {}\nlink set {port} master br0 up\n",
        peer.display()
    )
}

/// In the outside client: addresses, and routes to ClusterIPs and external addresses through node 0, as on an
/// off-cluster host with a route.
pub fn outside() -> String {
    let via = node_addr(0);
    format!(
        "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add {SERVICES_V4} via {v4}\nroute add {SERVICES_V6} via {v6}\n\
         route add {EXTERNAL_V4} via {v4}\nroute add {EXTERNAL_V6} via {v6}\n",
        OUTSIDE.v4,
        OUTSIDE.v6,
        v4 = via.v4,
        v6 = via.v6
    )
}

/// In node `index`: its uplink and, for bridged pods, the bridge.
pub fn node(index: usize, pods: PodNet) -> String {
    let own = node_addr(index);
    let mut lines = format!(
        "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add default via {}\nroute add default via {}\n",
        own.v4, own.v6, ROUTER.v4, ROUTER.v6
    );
    if pods == PodNet::Bridged {
        let gateway = pod_addr(index, 1);
        // A fixed MAC address, as the bridge plugin sets it: otherwise the bridge takes the lowest of its ports' and
        // changes with them.
        lines += &format!(
            "link add cni0 address 02:00:ac:14:{index:02x}:01 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             link set cni0 up\n\
             addr add {}/24 dev cni0\naddr add {}/64 dev cni0 nodad\n",
            gateway.v4, gateway.v6
        );
    }
    lines
}

/// In node `index`: routes to the pods of all other nodes. `tunnel_mac` gives the MAC address of a node's tunnel
/// device.
pub fn between(index: usize, nodes: usize, how: Between) -> String {
    let own = pod_addr(index, 0);
    let mut lines = String::new();
    match how {
        Between::Routes => {}
        Between::Vxlan => {
            lines += &format!(
                "link add flannel.1 mtu 1450 address {} type vxlan id {VNI} dstport {VXLAN_PORT} local {} nolearning\n\
                 addr add {}/32 dev flannel.1\naddr add {}/128 dev flannel.1 nodad\nlink set flannel.1 up\n",
                tunnel_mac(index),
                node_addr(index).v4,
                own.v4,
                own.v6
            );
        }
        Between::Tun => {
            lines += &format!(
                "link set tun0 mtu 1400 up\naddr add {}/32 dev tun0\naddr add {}/128 dev tun0 nodad\n",
                own.v4, own.v6
            );
        }
    }
    for other in (0..nodes).filter(|other| *other != index) {
        let (range, peer) = (pod_addr(other, 0), node_addr(other));
        lines += &match how {
            Between::Routes => format!(
                "route add {}/24 via {}\nroute add {}/64 via {}\n",
                range.v4, peer.v4, range.v6, peer.v6
            ),
            Between::Vxlan => format!(
                "neigh add {v4} lladdr {mac} dev flannel.1 nud permanent\n\
                 neigh add {v6} lladdr {mac} dev flannel.1 nud permanent\n\
                 route add {v4}/24 via {v4} dev flannel.1 onlink\n\
                 route add {v6}/64 via {v6} dev flannel.1 onlink\n",
                v4 = range.v4,
                v6 = range.v6,
                mac = tunnel_mac(other)
            ),
            Between::Tun => {
                format!("route add {}/24 dev tun0\nroute add {}/64 dev tun0\n", range.v4, range.v6)
            }
        };
    }
    lines
}

/// In node `index`, for `bridge fdb`: the underlay addresses of the other nodes' tunnel devices.
pub fn forwarding_database(index: usize, nodes: usize) -> String {
    (0..nodes)
        .filter(|other| *other != index)
        .map(|other| format!("fdb append {} dev flannel.1 dst {}\n", tunnel_mac(other), node_addr(other).v4))
        .collect()
}

fn tunnel_mac(index: usize) -> String {
    format!("02:00:ac:14:{index:02x}:00")
}

/// In the node: the pod's cable and, for routed pods, its host route.
pub fn pod_at_node(pods: PodNet, device: &str, peer: &Path, node: usize, host: u8, mtu: u32) -> String {
    let own = pod_addr(node, host);
    let cable =
        format!("link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n", peer.display());
    cable
        + &match pods {
            PodNet::Bridged => format!("link set {device} master cni0 up\n"),
            PodNet::Routed => format!(
                "link set {device} up\naddr add fe80::1/64 dev {device} nodad\n\
                 route add {}/32 dev {device}\nroute add {}/128 dev {device}\n",
                own.v4, own.v6
            ),
        }
}

/// In the pod: its address and its default route.
pub fn pod_inside(pods: PodNet, node: usize, host: u8) -> String {
    let (own, gateway) = (pod_addr(node, host), pod_addr(node, 1));
    match pods {
        PodNet::Bridged => format!(
            "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             route add default via {}\nroute add default via {}\n",
            own.v4, own.v6, gateway.v4, gateway.v6
        ),
        PodNet::Routed => format!(
            "link set eth0 up\naddr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n\
             route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n\
             route add default via fe80::1 dev eth0\n",
            own.v4, own.v6
        ),
    }
}
