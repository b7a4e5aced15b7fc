//! The XDP program (`--xdp`) on uplinks that behave like wires: that it is really used, its fallbacks, and that
//! attaching and detaching it is not noticed.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tests::{
    net::{
        Lane, Node, Plan,
        cluster::eventually,
        foreign,
        plan::{BOTH, Family},
    },
    traffic::Tally,
};

use crate::world::{World, is_of_node};

fn start(lane: Lane) -> Result<World> {
    World::start(Plan::default().xdp(lane), |world| world.web().yaml())
}

fn counter(node: &Node, name: &str) -> Result<u64> {
    let all = node.shunt_json(&["counter", "list"])?;
    let found = all.as_array().into_iter().flatten().find(|one| one["name"] == name);
    found.and_then(|one| one["value"].as_u64()).with_context(|| format!("no counter {name}"))
}

/// How the uplink's XDP link is attached, if there is one.
fn attached(node: &Node) -> Result<Option<String>> {
    let links = node.shunt_json(&["link", "list"])?;
    let found = links.as_array().into_iter().flatten().find(|link| link["type"] == "xdp");
    Ok(found.map(|link| {
        assert_eq!(link["devname"], "eth0");
        link["attach_type"].as_str().unwrap_or_default().to_owned()
    }))
}

/// Counts the far backend's packets that the node's own stack sees.
fn watch_stack(world: &World) -> Result<()> {
    let far = world.far.addr();
    world.cluster.node(0).netns().nft(&format!(
        "table inet watch {{\n chain seen {{\n  type filter hook prerouting priority -400;\n  ip daddr {v4} counter\n  \
         ip saddr {v4} counter\n  ip6 daddr {v6} counter\n  ip6 saddr {v6} counter\n }}\n}}\n",
        v4 = far.v4,
        v6 = far.v6
    ))
}

fn seen_by_stack(world: &World) -> Result<u64> {
    let rules = world.cluster.node(0).netns().run(&["nft", "list", "table", "inet", "watch"])?;
    let counts =
        rules.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// Outside traffic to node 0: the near backend sees the client, the far one an address of the node. The node's stack
/// does not see the far backend's traffic once the neighbours are known.
fn the_lane_is_used(lane: Lane) -> Result<()> {
    let world = start(lane)?;
    let (node, outside) = (world.cluster.node(0), world.outside());
    assert_eq!(attached(node)?, Some(format!("xdp_{lane}")));
    for family in BOTH {
        let to = world.node_port(0, family);
        // The first flows to an unresolved neighbour are handled at tc.
        for _ in 0..4 {
            outside.tcp(to).answered();
        }
    }
    watch_stack(&world)?;
    let (local, forwarded) = (counter(node, "xdp_local")?, counter(node, "xdp_forwarded")?);
    for family in BOTH {
        let to = world.node_port(0, family);
        for attempt in
            (0..4).flat_map(|_| [outside.tcp(to), outside.tcp(to), outside.udp(to), outside.udp(to)])
        {
            let answer = attempt.answered();
            let kept = answer.peer.ip() == world.cluster.outside_addr().of(family);
            let right = if answer.backend == "near" { kept } else { is_of_node(answer.peer, 0) };
            assert!(right, "{to}: {answer}");
        }
    }
    assert_eq!(seen_by_stack(&world)?, 0, "the far backend's traffic met the node's stack");
    // In each family four connections and four datagrams to each backend; a connection is several packets each way.
    assert!(counter(node, "xdp_local")? - local >= 2 * (4 * 3 + 4), "to the near backend");
    assert!(counter(node, "xdp_forwarded")? - forwarded >= 2 * (4 * 6 + 4 * 2), "to the far one and back");
    // More than one packet, in both directions.
    for family in BOTH {
        for _ in 0..2 {
            outside.stream(world.node_port(0, family)).upload(&vec![b'x'; 200_000])?;
        }
    }
    // Traffic that is not for the XDP program takes the normal path.
    for family in BOTH {
        world.pod().tcp(world.node_port(0, family)).answered();
        world.host(0).tcp(world.node_port(0, family)).answered();
    }
    Ok(())
}

#[test]
fn native_is_really_used() -> Result<()> {
    the_lane_is_used(Lane::Native)
}

#[test]
fn generic_is_really_used() -> Result<()> {
    the_lane_is_used(Lane::Generic)
}

/// A socket that receives every packet of the uplink (a DHCP client's, tcpdump's) holds clones of them. The kernel
/// would copy these, without their metadata, before a program that writes.
#[test]
fn a_packet_socket_on_the_uplink_costs_no_mark() -> Result<()> {
    for lane in Lane::BOTH {
        let world = start(lane)?;
        let listen = || {
            let all = SockProtocol::EthAll;
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all)
        };
        let _taps = world.cluster.node(0).netns().enter(listen)?;
        for family in BOTH {
            let to = world.node_port(0, family);
            Tally::of(6, || world.outside().tcp(to)).even_over(&["near", "far"]);
            Tally::of(6, || world.outside().udp(to)).even_over(&["near", "far"]);
        }
        assert_eq!(counter(world.cluster.node(0), "flow_direct")?, 0, "{lane}: a mark was lost");
    }
    Ok(())
}

#[test]
fn native_falls_back_to_generic_and_says_why() -> Result<()> {
    let world = World::without_shunt(Plan::default().xdp(Lane::Native))?;
    // The other end of node 0's cable no longer polls.
    world.cluster.underlay().run(&["ethtool", "-K", "node-1", "gro", "off"])?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(&[])?;
    let [node, other] = [0, 1].map(|index| world.cluster.node(index));
    assert_eq!(attached(node)?.as_deref(), Some("xdp_generic"));
    assert_eq!(attached(other)?.as_deref(), Some("xdp_native"));
    let log = node.shunt_log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("native XDP does not work here")).collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].contains("WARN") && said[0].contains("eth0") && said[0].contains("GRO"), "{}", said[0]);
    for family in BOTH {
        Tally::of(6, || world.outside().tcp(world.node_port(0, family))).even_over(&["near", "far"]);
    }
    assert!(counter(node, "xdp_local")? > 0);
    Ok(())
}

#[test]
fn another_xdp_program_stays_and_tc_serves() -> Result<()> {
    let world = World::without_shunt(Plan::default().xdp(Lane::Generic))?;
    let node = world.cluster.node(0);
    let theirs = foreign::occupy_xdp(node.netns(), "eth0")?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(&[])?;
    assert_eq!(attached(node)?, None);
    assert!(node.shunt_log().contains("not shunt's"), "{}", node.shunt_log());
    for family in BOTH {
        Tally::of(6, || world.outside().tcp(world.node_port(0, family))).even_over(&["near", "far"]);
    }
    assert_eq!(counter(node, "xdp_local")?, 0);
    drop(theirs);
    Ok(())
}

/// Restarted with the XDP program, without it, and with it again, under open connections; and cleaned up.
#[test]
fn the_lane_comes_and_goes_under_traffic() -> Result<()> {
    let world = start(Lane::Native)?;
    let node = world.cluster.node(0);
    let open: Vec<_> = BOTH
        .into_iter()
        .flat_map(|family: Family| [(); 2].map(|()| world.outside().stream(world.node_port(0, family))))
        .collect();
    let before: Vec<_> = open.iter().map(|stream| stream.steady(2)).collect();
    for (flag, want) in [
        ("native", Some("xdp_native")),
        ("generic", Some("xdp_generic")),
        ("off", None),
        ("native", Some("xdp_native")),
    ] {
        node.stop_shunt()?;
        let now: Vec<_> = open.iter().map(|stream| stream.steady(3)).collect();
        assert_eq!(now, before, "while shunt is away, before --xdp {flag}");
        node.start_shunt(&["--xdp", flag])?;
        assert_eq!(attached(node)?.as_deref(), want);
        let now: Vec<_> = open.iter().map(|stream| stream.steady(3)).collect();
        assert_eq!(now, before, "--xdp {flag}");
        for family in BOTH {
            Tally::of(4, || world.outside().tcp(world.node_port(0, family))).even_over(&["near", "far"]);
        }
    }
    node.stop_shunt()?;
    node.shunt_command(&["cleanup"])?;
    let gone = eventually(Duration::from_secs(2), || {
        !node.netns().run(&["ip", "link", "show", "eth0"]).is_ok_and(|text| text.contains("xdp"))
    });
    gone.context("cleanup left the XDP program")?;
    Ok(())
}
