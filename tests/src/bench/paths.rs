//! Nanoseconds of the datapath's paths, by BPF_PROG_TEST_RUN.
//!
//! A test run repeats a program on the output of the previous run. An established flow is measured with two flows, each
//! of which translates the packet into the other's: every run does the complete work for one packet. A new flow cannot
//! be repeated like that; it is measured run by run, as are the inserts it is compared with.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::Result;
use proxy_common::{Addr, CtEntry, CtKey, Half, Port, tcp};

use super::yardstick::Yardsticks;
use crate::packet::{
    Datapath, Hook, Ip, Link, Packet, Transport, Way,
    frame::ACK,
    run,
    world::{OUTSIDE, POD, VIP, at},
};

/// Runs per measurement, and number of measurements; the lowest result is used.
const REPEAT: u32 = 100_000;
const ROUNDS: u32 = 15;

/// New flows; the median and the lowest result are used.
const NEW_FLOWS: u16 = 20_000;

const LINK: Link = Link::Ethernet;

/// Calls made by a path. Counted by hand along the path in proxy-ebpf's source, for a packet whose headers are linear.
/// They are not measured, because a kernel under lockdown allows no probes on its functions. Array reads and the clock
/// are not calls: the kernel inlines their instructions into the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Hash lookups.
    pub lookups: u32,
    /// Helper calls, these lookups included.
    pub helpers: u32,
}

/// CONNTRACK; address and ports in the transport checksum.
const ESTABLISHED: Calls = Calls { lookups: 1, helpers: 3 };
/// CONNTRACK.
const NOT_OURS: Calls = Calls { lookups: 1, helpers: 1 };
/// CONNTRACK, and FRONTENDS because PORTS has the port.
const NEAR_MISS: Calls = Calls { lookups: 2, helpers: 2 };
/// CONNTRACK three times (the flow, the same tuple in the other direction, the flow whose place in HALF_OPEN this one
/// takes), FRONTENDS; two inserts; address and ports in the transport checksum.
pub const NEW_FLOW: Calls = Calls { lookups: 4, helpers: 8 };

/// A path's figures.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: &'static str,
    /// Minus the time of an empty program.
    pub ns: f64,
    pub calls: Calls,
}

/// Median and lowest of single runs, minus those of an empty program.
#[derive(Clone, Copy, Debug)]
pub struct Single {
    pub median: f64,
    pub least: f64,
}

#[derive(Debug)]
pub struct Figures {
    /// The empty program, as the kernel times it.
    pub empty: f64,
    pub hash: f64,
    pub lru: f64,
    pub paths: Vec<Figure>,
    pub new_flow: Single,
    /// Two bare inserts of new keys.
    pub inserts: Single,
    /// Name and verified instructions of each program.
    pub programs: Vec<(String, u32)>,
}

/// A packet at a hook.
struct Path {
    name: &'static str,
    hook: Hook,
    packet: Packet,
    calls: Calls,
}

pub fn measure() -> Result<Figures> {
    let mut node = Datapath::load(262_144)?;
    let paths = set_up(&mut node)?;
    let yard = Yardsticks::load()?;
    let way = Way { device: node.uplink, came_in: node.pod, complete: false };

    let sticks = [&yard.empty, &yard.hash, &yard.lru].map(|fd| fd.as_fd());
    let plain = paths[0].packet.bytes();
    let mut runs: Vec<(BorrowedFd<'_>, Vec<u8>, u32)> =
        sticks.into_iter().map(|fd| (fd, plain.clone(), u32::MAX)).collect();
    runs.extend(paths.iter().map(|path| (node.fd(path.hook, LINK), path.packet.bytes(), u32::MAX)));
    // In turn, so that a change of the machine's speed affects all of them.
    for _ in 0..ROUNDS {
        for (fd, packet, least) in &mut runs {
            *least = (*least).min(run::time(*fd, packet, way, REPEAT)?);
        }
    }
    let least: Vec<f64> = runs.into_iter().map(|(.., least)| f64::from(least)).collect();
    let net = |index: usize| least[index] - least[0];

    let bare = singles(yard.empty.as_fd(), NEW_FLOWS, way)?;
    let net_single = |times: Vec<u32>| Single {
        median: f64::from(times[times.len() / 2]) - f64::from(bare[bare.len() / 2]),
        least: f64::from(times[0]) - f64::from(bare[0]),
    };
    let inserts = net_single(singles(yard.inserts.as_fd(), NEW_FLOWS, way)?);
    let new_flow = net_single(singles(node.fd(Hook::Ingress, LINK), NEW_FLOWS, way)?);
    node.forget_flows()?;
    let figures = paths
        .iter()
        .enumerate()
        .map(|(index, path)| Figure { name: path.name, ns: net(sticks.len() + index), calls: path.calls })
        .collect();
    let programs = node.verified()?;
    Ok(Figures { empty: least[0], hash: net(1), lru: net(2), paths: figures, new_flow, inserts, programs })
}

/// Sorted times of single runs, each on a packet that opens a flow of its own.
fn singles(program: BorrowedFd<'_>, count: u16, way: Way) -> std::io::Result<Vec<u32>> {
    let mut all = Vec::with_capacity(count.into());
    for number in 0..count {
        let client = at(Ip::V4, OUTSIDE, 1024 + number);
        let packet = Packet::new(LINK, Ip::V4, client, at(Ip::V4, VIP, 81), Transport::SYN);
        all.push(run::time(program, &packet.bytes(), way, 1)?);
    }
    all.sort_unstable();
    Ok(all)
}

/// Fills the maps; returns the paths in the order they are printed.
fn set_up(node: &mut Datapath) -> Result<Vec<Path>> {
    let mut paths = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        // A Service that only provides its port's bits and new flows.
        let backend = node.backend(at(ip, POD + 1, 8081), 6, true)?;
        let service = node.service(6, &[backend], &[])?;
        node.cluster_ip(&service, at(ip, VIP, 81))?;

        let (client, vip, back) = (at(ip, OUTSIDE, 500), at(ip, VIP, 80), at(ip, POD, 8080));
        for (from, to) in [(vip, back), (back, vip)] {
            let port = |socket: std::net::SocketAddr| Port::new(socket.port());
            let addr = |socket: std::net::SocketAddr| Addr::from(socket.ip());
            let entry = CtEntry {
                addr: addr(to),
                port: u64::from(port(to).be()),
                state: tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED,
                peer_port: port(client),
                device: 0,
                flags: CtEntry::SERVICE | CtEntry::REQUEST,
                last_seen: 0,
                service: service.id,
                backend,
                created: 0,
            };
            let key = CtKey::new(addr(client), port(client), addr(from), port(from), 6, Half::Ingress);
            node.conntrack.insert(key, entry, 0)?;
            let key = CtKey::new(addr(from), port(from), addr(client), port(client), 6, Half::Egress);
            let flags = CtEntry::SERVICE | CtEntry::REPLY;
            node.conntrack.insert(key, CtEntry { flags, ..entry }, 0)?;
        }
        let ask = Packet::new(LINK, ip, client, vip, Transport::SYN).flagged(ACK);
        let elsewhere = at(ip, OUTSIDE + 1, 9000);
        let names = if ip.is_v4() {
            [
                "established, request at ingress, IPv4",
                "established, reply at egress, IPv4",
                "not ours at ingress, IPv4",
                "not ours at ingress, a VIP's port, IPv4",
                "not ours at egress, IPv4",
            ]
        } else {
            [
                "established, request at ingress, IPv6",
                "established, reply at egress, IPv6",
                "not ours at ingress, IPv6",
                "not ours at ingress, a VIP's port, IPv6",
                "not ours at egress, IPv6",
            ]
        };
        let packets = [
            (Hook::Ingress, ask.clone(), ESTABLISHED),
            (Hook::Egress, ask.to(back).answer(ACK), ESTABLISHED),
            (Hook::Ingress, ask.to(elsewhere), NOT_OURS),
            (Hook::Ingress, ask.to(at(ip, OUTSIDE + 1, 81)), NEAR_MISS),
            (Hook::Egress, ask.to(elsewhere), NOT_OURS),
        ];
        let named = names.into_iter().zip(packets);
        paths.extend(named.map(|(name, (hook, packet, calls))| Path { name, hook, packet, calls }));
    }
    Ok(paths)
}
