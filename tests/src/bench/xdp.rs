//! Nanoseconds of the XDP program's paths, by BPF_PROG_TEST_RUN of `xdp_native`.
//!
//! As in [`super::paths`], two flows translate a frame into each other's. A forwarded frame loses one hop per run, so a
//! measurement has few runs. A frame passed to this node's stack gets a mark in front of it, and marks accumulate:
//! these frames are measured run by run, and the lowest of many single runs is used. The empty program is measured next
//! to each path in the same way. Counters verify that each run took the complete path.
//!
//! A measurement of more than one run waits twice for the kernel to change its XDP dispatcher (synchronize_rcu): tens
//! of milliseconds on a busy machine.

use std::{net::SocketAddr, os::fd::AsFd as _};

use anyhow::{Result, ensure};
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Port, tcp};

use super::{
    paths::{Calls, Figure},
    yardstick,
};
use crate::packet::{
    Datapath, Ip, Link, Packet, Transport,
    frame::ACK,
    run,
    world::{FAR_POD, OUTSIDE, POD, VIP, at},
};

/// CONNTRACK; the mark.
const LOCAL: Calls = Calls { lookups: 1, helpers: 2 };
/// CONNTRACK at both stages; the route.
const REMOTE: Calls = Calls { lookups: 2, helpers: 3 };
/// CONNTRACK.
const NOT_OURS: Calls = Calls { lookups: 1, helpers: 1 };

/// Runs per measurement, and number of measurements.
#[derive(Clone, Copy, Debug)]
struct Extent {
    repeat: u32,
    rounds: u32,
}

const MARKED: Extent = Extent { repeat: 1, rounds: 20_000 };
const SENT: Extent = Extent { repeat: 200, rounds: 50 };
const PASSED: Extent = Extent { repeat: 100_000, rounds: 15 };

/// A frame at the hook.
struct Path {
    name: &'static str,
    frame: Vec<u8>,
    extent: Extent,
    /// A counter that each run increments exactly once.
    counter: Option<Counter>,
    calls: Calls,
}

/// The paths' figures, and the empty program's time as measured by the kernel.
pub fn measure() -> Result<(f64, Vec<Figure>)> {
    let mut node = Datapath::load(65_536)?;
    node.wire()?;
    node.mirror()?;
    let paths = set_up(&mut node)?;
    let empty = yardstick::empty_xdp()?;
    let time = |program, path: &Path| run::time_xdp(program, &path.frame, node.uplink, path.extent.repeat);
    let mut least = vec![(u32::MAX, u32::MAX); paths.len()];
    // In turn, so that a change of the machine's speed affects all of them.
    const TURNS: u32 = 5;
    for _ in 0..TURNS {
        for (path, (full, bare)) in paths.iter().zip(&mut least) {
            for _ in 0..path.extent.rounds / TURNS {
                *full = (*full).min(time(node.lane_fd(), path)?);
                *bare = (*bare).min(time(empty.as_fd(), path)?);
            }
        }
    }
    for counter in [Counter::XdpLocal, Counter::XdpForwarded] {
        let counts = paths.iter().filter(|path| path.counter == Some(counter));
        let runs: u32 = counts.map(|path| path.extent.repeat * (path.extent.rounds / TURNS * TURNS)).sum();
        let counted = node.counter(counter);
        ensure!(counted == u64::from(runs), "{counter:?} is {counted} after {runs} runs");
    }
    ensure!(node.counter(Counter::XdpLeft) == 0, "some runs were left to tc");
    let figure = |(path, (full, bare)): (&Path, &(u32, u32))| Figure {
        name: path.name,
        ns: f64::from(*full) - f64::from(*bare),
        calls: path.calls,
    };
    let bare = least.last().map_or(0, |(_, bare)| *bare);
    Ok((f64::from(bare), paths.iter().zip(&least).map(figure).collect()))
}

/// Fills the maps; returns the paths in the order they are printed.
fn set_up(node: &mut Datapath) -> Result<Vec<Path>> {
    let mut paths = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        let (client, source) = (at(ip, OUTSIDE, 500), at(ip, OUTSIDE + 1, 600));
        let (vip, near, far) = (at(ip, VIP, 80), at(ip, POD, 8080), at(ip, FAR_POD, 8080));
        for (from, to) in [(vip, near), (near, vip)] {
            request(node, (client, from), (client, to))?;
        }
        // The address of another Service: a frame to the one above is for this node's backend.
        let vip = at(ip, VIP, 81);
        for (from, to) in [((client, vip), (source, far)), ((source, far), (client, vip))] {
            request(node, from, to)?;
            reply(node, from, to)?;
        }
        let plain = Packet::new(Link::Ethernet, ip, client, vip, Transport::SYN).flagged(ACK);
        let plain = Packet { ttl: 255, ..plain };
        let answer = Packet { src: far, dst: source, ..plain.clone() };
        let names = if ip.is_v4() {
            [
                "XDP, request to a local backend, IPv4",
                "XDP, request to a remote backend, IPv4",
                "XDP, reply of a remote backend, IPv4",
                "XDP, not ours, IPv4",
            ]
        } else {
            [
                "XDP, request to a local backend, IPv6",
                "XDP, request to a remote backend, IPv6",
                "XDP, reply of a remote backend, IPv6",
                "XDP, not ours, IPv6",
            ]
        };
        let packets = [
            (plain.to(at(ip, VIP, 80)), MARKED, Some(Counter::XdpLocal), LOCAL),
            (plain.clone(), SENT, Some(Counter::XdpForwarded), REMOTE),
            (answer, SENT, Some(Counter::XdpForwarded), REMOTE),
            (plain.to(at(ip, OUTSIDE + 1, 9000)), PASSED, None, NOT_OURS),
        ];
        paths.extend(names.into_iter().zip(packets).map(|(name, (packet, extent, counter, calls))| Path {
            name,
            frame: packet.bytes(),
            extent,
            counter,
            calls,
        }));
    }
    Ok(paths)
}

type Ends = (SocketAddr, SocketAddr);

/// Records the translation of a request's source and destination; if the source changes, both of its halves.
fn request(node: &mut Datapath, from: Ends, to: Ends) -> Result<()> {
    let masqueraded = from.0 != to.0;
    let flags = CtEntry::REQUEST | if masqueraded { CtEntry::MASQUERADED } else { 0 };
    insert(node, (from.0, from.1, Half::Ingress), entry(to.1, from.0.port(), flags))?;
    if masqueraded {
        let entry = entry(to.0, to.1.port(), CtEntry::MASQUERADE);
        insert(node, (from.0, to.1, Half::Egress), entry)?;
    }
    Ok(())
}

/// Records the translation of the reply to a request with the ends `to`, in a flow with the original ends `from`.
fn reply(node: &mut Datapath, from: Ends, to: Ends) -> Result<()> {
    insert(node, (to.1, to.0, Half::Ingress), entry(from.0, to.1.port(), CtEntry::UNMASQUERADE))?;
    insert(node, (to.1, from.0, Half::Egress), entry(from.1, from.0.port(), CtEntry::REPLY))
}

fn entry(to: SocketAddr, peer_port: u16, half: u32) -> CtEntry {
    CtEntry {
        addr: Addr::from(to.ip()),
        port: u64::from(Port::new(to.port()).be()),
        state: tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED,
        peer_port: Port::new(peer_port),
        device: 0,
        flags: half | CtEntry::SERVICE | CtEntry::XDP,
        last_seen: 0,
        service: 1,
        backend: 1,
        created: 0,
    }
}

fn insert(
    node: &mut Datapath,
    (src, dst, half): (SocketAddr, SocketAddr, Half),
    entry: CtEntry,
) -> Result<()> {
    let key = CtKey::new(
        Addr::from(src.ip()),
        Port::new(src.port()),
        Addr::from(dst.ip()),
        Port::new(dst.port()),
        6,
        half,
    );
    Ok(node.conntrack.insert(key, entry, 0)?)
}
