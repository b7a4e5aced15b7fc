//! Packets that a plain socket on a plain device does not send: IP options, no checksum, checksums that are already
//! computed, super-packets, no link-layer header. Every test ends with a check of all namespaces' checksum error
//! counters (see `tests::net::checksums`).

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{
    manifest::Service,
    net::{
        Netns, Plan, offload,
        plan::{BOTH, Between, Family, vip},
    },
    traffic::{Client, Server},
};

use crate::{
    trio::{ALL, Trio, evenly},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;

fn start(plan: Plan) -> Result<Trio> {
    Trio::start(plan, &[], |trio| {
        let web = Service::new("web", vip(10)).node_port(80, TARGET, NODE_PORT);
        vec![web.pods(&trio.servers.each_ref())]
    })
}

/// Paths for a pod, for the node itself and for outside.
fn ways(trio: &Trio, family: Family) -> [(&'static str, Client, SocketAddr); 4] {
    let (cluster_ip, node) = (at(vip(10), family, 80), at(trio.node(0).addr(), family, NODE_PORT));
    [
        ("a pod", trio.pod(0), cluster_ip),
        ("a pod", trio.pod(0), node),
        ("outside", trio.outside(), node),
        ("the node", trio.host(0), cluster_ip),
    ]
}

/// Transfers `bytes` up and down, once to each backend.
fn bulk(who: &str, from: &Client, to: SocketAddr, bytes: usize) -> Result<()> {
    for _ in ALL {
        let stream = from.stream(to);
        stream.upload_checked(bytes).with_context(|| format!("upload of {who} -> {to}"))?;
        stream.download_checked(bytes).with_context(|| format!("download of {who} -> {to}"))?;
    }
    Ok(())
}

#[test]
fn with_options_in_the_ip_header() -> Result<()> {
    for plan in [Plan::default(), Plan::default().bridged().vxlan()] {
        let is_tunnel = plan.between == Between::Vxlan;
        let trio = start(plan)?;
        // No super-packets: a kernel that forwards them reads the first bytes after IPv6's header as TCP's to compute
        // their segments' length, and treats a third of them as too big (skb_gso_transport_seglen, seen on 6.18).
        let ends = [trio.clients[0].place().netns(), trio.cluster.outside().netns()];
        for netns in ends.into_iter().chain(trio.cluster.nodes().iter().map(|node| node.netns())) {
            offload::tx_checksum(netns, "eth0", false)?;
        }
        // Packets decapsulated by a tunnel are merged too.
        if is_tunnel {
            for node in trio.cluster.nodes() {
                offload::receive(node.netns(), "flannel.1", false)?;
                offload::receive(node.netns(), "eth0", false)?;
            }
        }
        for family in BOTH {
            for (who, from, to) in ways(&trio, family) {
                let from = from.with_ip_options();
                evenly(&from, to, &ALL);
                bulk(who, &from, to, 256 << 10)?;
            }
        }
    }
    Ok(())
}

#[test]
fn datagrams_without_a_checksum() -> Result<()> {
    let trio = start(Plan::default())?;
    for (_, from, to) in ways(&trio, Family::V4) {
        let from = from.without_checksum();
        for _ in ALL {
            from.udp(to).answered();
        }
    }
    // IPv6 requires a checksum, unless both ends agreed on none (RFC 6935): a tunnel through a Service.
    let tunnel = Service::new("tunnel", vip(11)).udp_node_port(80, TARGET + 1, NODE_PORT + 1);
    trio.apply(&[tunnel.pods(&[&trio.servers[1]])])?;
    let at_pod = trio.servers[1].socket_addr(Family::V6, TARGET + 1);
    let _server = Server::udp_without_checksum(trio.servers[1].place(), at_pod, "tunnel")?;
    let to = at(vip(11), Family::V6, 80);
    // Between two pods without a Service: the ends have agreed.
    trio.pod(0).without_checksum().udp(at_pod).answered();
    let served = || {
        let impatient = trio.pod(0).without_checksum().patience(Duration::from_millis(100));
        let answer = impatient.udp(to).outcome;
        matches!(answer, tests::traffic::Outcome::Answered(_))
    };
    assert!(tests::net::cluster::eventually(crate::trio::SOON, served).is_ok(), "{to} is not served");
    let node = at(trio.node(0).addr(), Family::V6, NODE_PORT + 1);
    for (from, to) in [(trio.pod(0), to), (trio.outside(), node), (trio.host(0), to), (trio.outside(), to)] {
        assert_eq!(from.without_checksum().udp(to).answered().backend, "tunnel");
    }
    Ok(())
}

/// All devices compute checksums before sending, or only some do.
#[test]
fn with_checksum_offload_off() -> Result<()> {
    for plan in [Plan::default(), Plan::default().bridged().vxlan()] {
        let trio = start(plan)?;
        let pods: Vec<&Netns> =
            trio.clients.iter().chain(&trio.servers).map(|pod| pod.place().netns()).collect();
        let nodes: Vec<&Netns> = trio.cluster.nodes().iter().map(|node| node.netns()).collect();
        let outside = [trio.cluster.outside().netns()];
        // One group after the other, so that both kinds of ends communicate.
        for group in [&outside[..], &pods, &nodes] {
            for netns in group {
                offload::tx_checksum(netns, "eth0", false)?;
            }
            for family in BOTH {
                for (who, from, to) in ways(&trio, family) {
                    evenly(&from, to, &ALL);
                    bulk(who, &from, to, 256 << 10)?;
                }
            }
        }
        // The nodes' ends of the pods' cables too.
        for pod in trio.clients.iter().chain(&trio.servers) {
            offload::tx_checksum(trio.node(pod.node()).netns(), pod.device(), false)?;
        }
        for family in BOTH {
            for (who, from, to) in ways(&trio, family) {
                evenly(&from, to, &ALL);
                bulk(who, &from, to, 256 << 10)?;
            }
        }
    }
    Ok(())
}

/// Bytes and packets received on a device so far.
fn received(netns: &Netns, device: &str) -> Result<(u64, u64)> {
    let text = netns.run(&["ip", "-j", "-s", "link", "show", "dev", device])?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let rx = &value[0]["stats64"]["rx"];
    rx["bytes"].as_u64().zip(rx["packets"].as_u64()).with_context(|| format!("no counters in {text}"))
}

/// Tens of megabytes in packets of up to 64 KB, which no checksum and no length may distinguish from plain ones.
#[test]
fn super_packets() -> Result<()> {
    for plan in [Plan::default(), Plan::default().vxlan()] {
        let trio = start(plan)?;
        let device = trio.clients[0].device();
        let before = received(trio.node(0).netns(), device)?;
        for family in BOTH {
            for (who, from, to) in ways(&trio, family) {
                bulk(who, &from, to, 8 << 20)?;
            }
        }
        let after = received(trio.node(0).netns(), device)?;
        let mean = (after.0 - before.0) / (after.1 - before.1);
        ensure!(mean > 3000, "{mean} bytes in the mean packet from a pod: these were no super-packets");
    }
    Ok(())
}

#[test]
fn by_devices_without_a_link_layer_header() -> Result<()> {
    let trio = start(Plan::default().tun())?;
    for family in BOTH {
        for (who, from, to) in ways(&trio, family) {
            evenly(&from, to, &ALL);
            bulk(who, &from, to, 1 << 20)?;
        }
    }
    Ok(())
}
