//! A low path MTU: 1280 bytes between client and node, between node and backend, at the pod's own device, and on the
//! return path. The sender of a larger packet gets an ICMP error about a packet that has been translated since: upload,
//! download and datagrams must still work.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context, Result};
use tests::{
    manifest::Service,
    net::{
        Plan, Toward,
        plan::{BOTH, Family, vip},
    },
    traffic::Client,
};

use crate::{
    trio::Trio,
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;
const MTU: i32 = 1280;
const BYTES: usize = 1 << 20;
/// A megabyte in segments of 1200 bytes, and a few timeouts.
const AT_MOST: u128 = 5000;

/// The Service's backend is on node `backend`; the nodes' return paths to the outside client have the normal MTU.
fn start(backend: usize) -> Result<Trio> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let web = Service::new("web", vip(10)).node_port(80, TARGET, NODE_PORT);
        vec![web.pods(&[&trio.servers[backend]])]
    })?;
    trio.cluster.add_hop(MTU as u32)?;
    Ok(trio)
}

fn node_port(trio: &Trio, family: Family) -> SocketAddr {
    at(trio.node(0).addr(), family, NODE_PORT)
}

fn transfers(who: &str, from: &Client, to: SocketAddr) -> Result<()> {
    for (what, transfer) in [
        ("upload", (|stream| stream.upload_checked(BYTES)) as fn(&tests::traffic::Stream) -> _),
        ("download", |stream| stream.download_checked(BYTES)),
    ] {
        let start = Instant::now();
        let stream = from.stream(to);
        transfer(&stream).with_context(|| format!("{what} of {who} -> {to}"))?;
        let took = start.elapsed();
        anyhow::ensure!(took.as_millis() < AT_MOST, "{what} of {who} -> {to} took {took:?}");
    }
    Ok(())
}

/// A datagram that may not be fragmented is lost on the path; its sender gets the reason, and a smaller one arrives.
fn datagrams(who: &str, from: &Client, to: SocketAddr) -> Result<()> {
    let from = from.clone().dont_fragment();
    let socket = from.patience(std::time::Duration::from_millis(400)).udp_connected(to)?;
    socket.ask().with_context(|| format!("{who} -> {to}: a small one"))?;
    // Lost, or rejected as soon as the error has arrived.
    let first = socket.ask_long(1400);
    anyhow::ensure!(first.is_err(), "{who} -> {to}: 1400 bytes got through {MTU}");
    let mtu = socket.path_mtu()?;
    anyhow::ensure!(mtu == MTU, "{who} -> {to}: the way's MTU is {mtu} to the sender");
    let too_long = socket.ask_long(1400).err().and_then(|error| error.raw_os_error());
    anyhow::ensure!(too_long == Some(libc::EMSGSIZE), "{who} -> {to}: {too_long:?}, not EMSGSIZE");
    // The reply is longer than the request, by the name and the address: it may be fragmented.
    socket.ask_long(1100).with_context(|| format!("{who} -> {to}: 1100 bytes"))?;
    Ok(())
}

#[test]
fn between_client_and_node() -> Result<()> {
    for backend in [0, 1] {
        let trio = start(backend)?;
        for toward in [Toward::Node(0), Toward::Services] {
            trio.cluster.detour(trio.cluster.outside().netns(), toward)?;
        }
        for family in BOTH {
            for to in [node_port(&trio, family), at(vip(10), family, 80)] {
                transfers("outside", &trio.outside(), to)?;
            }
            datagrams("outside", &trio.outside(), node_port(&trio, family))?;
        }
    }
    Ok(())
}

/// The backend's packets are too big beyond the node: the error quotes the VIP's packets, and the backend must send
/// smaller ones.
#[test]
fn between_node_and_client_on_the_way_back() -> Result<()> {
    for backend in [0, 1] {
        let trio = start(backend)?;
        trio.cluster.detour(trio.node(0).netns(), Toward::Outside)?;
        for family in BOTH {
            for to in [node_port(&trio, family), at(vip(10), family, 80)] {
                transfers("outside", &trio.outside(), to)?;
            }
        }
    }
    Ok(())
}

/// With source translation (outside client) and without (pod).
#[test]
fn between_node_and_backend() -> Result<()> {
    let trio = start(1)?;
    trio.cluster.detour(trio.node(0).netns(), Toward::Pods(1))?;
    for family in BOTH {
        let cluster_ip = at(vip(10), family, 80);
        for (who, from) in trio.everyone(0) {
            let to = if who == "outside" { node_port(&trio, family) } else { cluster_ip };
            transfers(who, &from, to)?;
            datagrams(who, &from, to)?;
        }
    }
    Ok(())
}

/// The backend's return path to the node, and to the client pod behind it.
#[test]
fn between_backend_and_node_on_the_way_back() -> Result<()> {
    let trio = start(1)?;
    for toward in [Toward::Node(0), Toward::Pods(0)] {
        trio.cluster.detour(trio.node(1).netns(), toward)?;
    }
    for family in BOTH {
        transfers("a pod", &trio.pod(0), at(vip(10), family, 80))?;
        transfers("outside", &trio.outside(), node_port(&trio, family))?;
        transfers("the node", &trio.host(0), at(vip(10), family, 80))?;
    }
    Ok(())
}

/// The node itself finds that a translated packet does not fit the backend's device.
#[test]
fn at_the_backends_device() -> Result<()> {
    let trio = start(0)?;
    let device = trio.servers[0].device();
    trio.node(0).netns().ip(&format!("link set {device} mtu {MTU}\n"))?;
    for family in BOTH {
        for (who, from, to) in [
            ("a pod", trio.pod(0), at(vip(10), family, 80)),
            ("another node's pod", trio.pod(1), at(vip(10), family, 80)),
            ("outside", trio.outside(), node_port(&trio, family)),
        ] {
            let stream = from.stream(to);
            stream.upload_checked(BYTES).with_context(|| format!("upload of {who} -> {to}"))?;
            datagrams(who, &from, to)?;
        }
    }
    Ok(())
}
