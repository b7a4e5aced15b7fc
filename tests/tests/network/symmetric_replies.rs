//! A node with two uplinks and source routing rules (`--symmetric-replies`): replies to a NodePort client leave through
//! the uplink on which the request arrived, whatever the route to the client is. Each uplink passes only its own
//! addresses, as providers do.
//!
//! There is no comparison with the reference: kube-proxy cannot do this.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan, Proxy,
        plan::{BOTH, Dual, Family, OUTSIDE, node_addr, vip},
    },
    traffic::Client,
};

use crate::{
    foreign_world::{Foreign, Losses, on_both_wirings},
    world::{PORT, TARGET, World, at},
};

/// Addresses on the second uplink: the node, and the outside client.
const NODE: Dual = dual(201);
const OUTSIDE_THERE: Dual = dual(100);
/// The client's address, reachable through both uplinks.
const CLIENT: Dual = Dual {
    v4: std::net::Ipv4Addr::new(198, 18, 1, 9),
    v6: std::net::Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 9),
};
const TO_NEAR: u16 = 30_086;
const TO_FAR: u16 = 30_087;
/// Port of a process of the node.
const OWN: u16 = 9998;

const fn dual(last: u16) -> Dual {
    Dual {
        v4: std::net::Ipv4Addr::new(192, 168, 9, last as u8),
        v6: std::net::Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, last),
    }
}

fn services(world: &World) -> Vec<Service> {
    let service = |name: &str, last: u8| Service::new(name, vip(last));
    vec![
        service("near", 60).node_port(PORT, TARGET, TO_NEAR).pods(&[&world.near]),
        service("far", 61).node_port(PORT, TARGET, TO_FAR).pods(&[&world.far]),
    ]
}

/// Gives node 0 its second uplink.
fn second_uplink(world: &World) -> Result<()> {
    let (node, outside) = (world.cluster.node(0).netns(), world.cluster.outside().netns());
    world.cluster.underlay().ip(&format!(
        "link add br1 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set br1 up\n\
         link add outside-2 type veth peer name eth1 netns {}\nlink set outside-2 master br1 up\n\
         link add node-1-2 type veth peer name eth1 netns {}\nlink set node-1-2 master br1 up\n",
        outside.path().display(),
        node.path().display()
    ))?;
    let Dual { v4, v6 } = CLIENT;
    // In the main table the client is behind the first uplink; the second is used for packets with its address as
    // source.
    node.ip(&format!(
        "link set eth1 up\naddr add {}/24 dev eth1\naddr add {}/64 dev eth1 nodad\n\
         route add {v4}/32 via {} dev eth0\nroute add {v6}/128 via {} dev eth0\n\
         route add {v4}/32 via {there4} dev eth1 table 100\nroute add {v6}/128 via {there6} dev eth1 table 100\n\
         rule add from {}/32 lookup 100\n",
        NODE.v4, NODE.v6, OUTSIDE.v4, OUTSIDE.v6, NODE.v4,
        there4 = OUTSIDE_THERE.v4,
        there6 = OUTSIDE_THERE.v6,
    ))?;
    node.run(&["ip", "-6", "rule", "add", "from", &format!("{}/128", NODE.v6), "lookup", "100"])?;
    // A strict check would use only the main table for the route back to the client.
    node.sysctl("net/ipv4/conf/eth1/rp_filter", "2")?;
    outside.ip(&format!(
        "link set eth1 up\naddr add {}/24 dev eth1\naddr add {}/64 dev eth1 nodad\n\
         addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n",
        OUTSIDE_THERE.v4, OUTSIDE_THERE.v6
    ))?;
    let first = node_addr(0);
    outside.nft(&format!(
        "table inet providers {{
            counter wrong {{ }}
            chain prerouting {{
                type filter hook prerouting priority 0; policy accept;
                iifname eth0 ip saddr {} counter name wrong drop
                iifname eth0 ip6 saddr {} counter name wrong drop
                iifname eth1 ip saddr {} counter name wrong drop
                iifname eth1 ip6 saddr {} counter name wrong drop
            }}
        }}",
        NODE.v4, NODE.v6, first.v4, first.v6
    ))
}

fn is_answered_by_the_uplink_it_was_asked_at(plan: Plan) -> Result<()> {
    let foreign = Foreign::start_wired(plan, Proxy::Shunt, &["--symmetric-replies"], |world| {
        second_uplink(world)?;
        Ok(services(world))
    })?;
    let mut losses = Losses::default();
    for family in BOTH {
        let client = Client::at(foreign.world.cluster.outside()).source(CLIENT.of(family));
        for (uplink, addr) in [("first", node_addr(0)), ("second", NODE)] {
            for (name, port) in [("near", TO_NEAR), ("far", TO_FAR)] {
                let to = at(addr, family, port);
                for attempt in [client.tcp(to), client.udp(to)] {
                    losses.note(&format!("by the {uplink} uplink, {name}: {attempt}"), attempt.is_answered());
                }
                // More than one segment in each direction, and a flow that continues.
                let much = client.connect(to).and_then(|stream| {
                    stream.upload_checked(1 << 18)?;
                    stream.download_checked(1 << 18)
                });
                losses.note_result(&format!("by the {uplink} uplink, {name}, {to}: 256 KiB"), much);
            }
        }
    }
    losses.none(&foreign)
}

/// The test network itself: a process of the node, which the source rules are meant for, is reachable through either
/// uplink.
fn the_nodes_own_server_is_reached(family: Family) -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    second_uplink(&world)?;
    let any: IpAddr = family.unspecified();
    let server =
        tests::traffic::Server::tcp(world.cluster.node(0).place(), SocketAddr::new(any, OWN), "own")?;
    let client = Client::at(world.cluster.outside()).source(CLIENT.of(family));
    for addr in [node_addr(0), NODE] {
        assert_eq!(client.tcp(at(addr, family, OWN)).answered().backend, "own");
    }
    drop(server);
    Ok(())
}

#[test]
fn a_node_port_is_answered_by_the_uplink_it_was_asked_at() -> Result<()> {
    on_both_wirings(is_answered_by_the_uplink_it_was_asked_at)
}

#[test]
fn rules_by_source_answer_by_the_uplink_that_was_asked() -> Result<()> {
    BOTH.into_iter().try_for_each(the_nodes_own_server_is_reached)
}
