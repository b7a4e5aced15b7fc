//! SERVICE-SEMANTICS 2.8: the addresses that serve NodePorts. Deviation 10: without the flag, all of the node's own;
//! deviation 9: loopback only for the node's own processes.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, Family, OUTSIDE, pod_addr, vip},
    },
};

use crate::{
    trio::{ALL, Trio, evenly, soon, soon_unserved},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;

/// A second address of node 0 on the underlay, by family.
const SECOND: [&str; 2] = ["192.168.8.77", "fd00:8::77"];

fn start(plan: Plan, flags: &[&str]) -> Result<Trio> {
    let trio = Trio::without_shunt(plan)?;
    let service = Service::new("web", vip(10)).node_port(80, TARGET, NODE_PORT);
    trio.apply(&[service.pods(&trio.servers.each_ref())])?;
    change_second(&trio, "add")?;
    trio.cluster.start(flags)?;
    Ok(trio)
}

/// Adds node 0's second addresses or removes them.
fn change_second(trio: &Trio, verb: &str) -> Result<()> {
    let [v4, v6] = SECOND;
    trio.node(0).netns().ip(&format!("addr {verb} {v4}/24 dev eth0\naddr {verb} {v6}/64 dev eth0\n"))
}

fn second(family: Family, port: u16) -> SocketAddr {
    let text = SECOND[usize::from(family == Family::V6)];
    SocketAddr::new(text.parse::<IpAddr>().expect("an address"), port)
}

/// The port at an excluded address is unused by shunt: rejected by the node's own stack, or served by its owner.
#[track_caller]
fn is_free(trio: &Trio, to: SocketAddr) {
    for (_, from) in trio.everyone(0) {
        from.tcp(to).refused();
    }
    let place = trio.node(0).place();
    let _server = tests::traffic::Server::tcp(place, to, "plain").expect("a free port");
    for (who, from) in trio.everyone(0) {
        assert_eq!(from.tcp(to).answered().backend, "plain", "{who} -> {to}");
    }
}

#[test]
fn s2_8_by_default_all_of_the_nodes_addresses() -> Result<()> {
    for plan in [Plan::default(), Plan::default().bridged().vxlan()] {
        let bridged = plan.pod_net == tests::net::PodNet::Bridged;
        let trio = start(plan, &[])?;
        for family in BOTH {
            let mut ways = vec![at(trio.node(0).addr(), family, NODE_PORT), second(family, NODE_PORT)];
            if bridged {
                // The bridge's gateway address and the tunnel's own address.
                ways.extend([1, 0].map(|host| SocketAddr::new(pod_addr(0, host).of(family), NODE_PORT)));
            }
            for to in ways {
                evenly(&trio.pod(0), to, &ALL);
                evenly(&trio.host(0), to, &ALL);
                if to.ip() == trio.node(0).addr().of(family) || to == second(family, NODE_PORT) {
                    evenly(&trio.outside(), to, &ALL);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn s2_8_primary_is_the_nodes_internal_ip() -> Result<()> {
    let trio = start(Plan::default().bridged(), &["--nodeport-addresses", "primary"])?;
    for family in BOTH {
        for (_, from) in trio.everyone(0) {
            evenly(&from, at(trio.node(0).addr(), family, NODE_PORT), &ALL);
        }
        is_free(&trio, second(family, NODE_PORT));
        trio.pod(0).tcp(SocketAddr::new(pod_addr(0, 1).of(family), NODE_PORT)).refused();
    }
    Ok(())
}

#[test]
fn s2_8_ranges_choose_addresses() -> Result<()> {
    let trio = start(Plan::default(), &["--nodeport-addresses", "192.168.8.77/32,fd00:8::77/128"])?;
    for family in BOTH {
        for (_, from) in trio.everyone(0) {
            evenly(&from, second(family, NODE_PORT), &ALL);
        }
        is_free(&trio, at(trio.node(0).addr(), family, NODE_PORT));
        // Its ClusterIP does not depend on the flag.
        evenly(&trio.pod(0), at(vip(10), family, 80), &ALL);
    }
    Ok(())
}

#[test]
fn s2_8_a_family_without_a_range_has_all_its_addresses() -> Result<()> {
    let trio = start(Plan::default(), &["--nodeport-addresses", "192.168.8.77/32"])?;
    is_free(&trio, at(trio.node(0).addr(), Family::V4, NODE_PORT));
    for to in [
        second(Family::V4, NODE_PORT),
        second(Family::V6, NODE_PORT),
        at(trio.node(0).addr(), Family::V6, NODE_PORT),
    ] {
        for (_, from) in trio.everyone(0) {
            evenly(&from, to, &ALL);
        }
    }
    Ok(())
}

#[test]
fn s2_8_loopback_is_the_nodes_own_processes_only() -> Result<()> {
    let trio = start(Plan::default(), &[])?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], NODE_PORT));
    evenly(&trio.host(0), loopback, &ALL);
    // From outside: packets of a machine that routes 127.0.0.1 here are martians for the node, whatever their port.
    let outside = trio.cluster.outside().netns();
    outside.sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    outside.ip("addr del 127.0.0.1/8 dev lo\n")?;
    outside.ip(&format!("route add 127.0.0.1/32 via {} src {}\n", trio.node(0).addr().v4, OUTSIDE.v4))?;
    crate::trio::silent(&[(trio.outside(), loopback)]);
    let route_localnet = trio.node(0).netns().run(&["cat", "/proc/sys/net/ipv4/conf/all/route_localnet"])?;
    assert_eq!(route_localnet.trim(), "0", "CVE-2020-8558");
    Ok(())
}

/// Node addresses that are added and removed while shunt runs.
#[test]
fn s2_8_the_nodes_addresses_change_at_run_time() -> Result<()> {
    let trio = start(Plan::default(), &[])?;
    for _ in 0..2 {
        for family in BOTH {
            soon(&trio.outside(), second(family, NODE_PORT), &ALL);
            soon(&trio.host(0), second(family, NODE_PORT), &ALL);
        }
        change_second(&trio, "del")?;
        for family in BOTH {
            soon_unserved(&trio.outside(), second(family, NODE_PORT));
            evenly(&trio.outside(), at(trio.node(0).addr(), family, NODE_PORT), &ALL);
        }
        change_second(&trio, "add")?;
    }
    Ok(())
}
