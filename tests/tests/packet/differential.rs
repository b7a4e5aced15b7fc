//! Compares the program with the model, over many random packets of a few conflicting flows.

use std::{
    collections::HashSet,
    env,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use proxy_common::{Addr, Counter, CtEntry, Frontend, FrontendKind, Half};
use tests::packet::{
    Datapath, Ip, Link, Packet, Transport,
    datapath::shared,
    frame::{ACK, FIN, PSH, RST, SYN},
    model::{Front, Model, Random, Tuple},
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, VIP, addr, at},
};

const PACKETS: u32 = 100_000;

/// The test stops after this time, even if incomplete; that counts as failure, since CI would hide a slow machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Default seed; SHUNT_SEED overrides it.
const SEED: u64 = 0x5348_554e_5400_0001;

/// Sources and destinations of packets: these clients, these ports.
const CLIENTS: [u16; 6] = [POD, POD + 3, OUTSIDE, OUTSIDE + 1, FAR_POD + 1, NODE];
const PORTS: [u16; 8] = [2000, 2001, 2002, 2003, 29_999, 30_001, 45_000, 61_000];

/// Creates the same Services on the node and in the model.
fn set_up(node: &mut Datapath) -> Result<(Model, Vec<(SocketAddr, u8)>)> {
    let mut model = Model::default();
    let mut targets = Vec::new();
    for ip in [Ip::V4, Ip::V6] {
        model.uplink.push(addr(ip, UPLINK));
        model.node_addrs.extend([addr(ip, NODE), addr(ip, UPLINK)]);
        model.pods.extend((0x0100..0x0200).map(|host| addr(ip, host)));
        for proto in [6, 17] {
            // The first backend is a client too.
            let backs = [POD, POD + 1, POD + 2, FAR_POD, FAR_POD + 5].map(|host| at(ip, host, 8080));
            let mut ids = Vec::new();
            for back in backs {
                ids.push(node.backend(back, proto, model.pods.contains(&back.ip()))?);
                model.backends.insert((back, proto));
                targets.push((back, proto));
            }
            let mut serve = |vip: u16, node_port: u16, flags: u32, cluster: &[usize], local: &[usize]| {
                let pick = |set: &[usize]| set.iter().map(|n| ids[*n]).collect::<Vec<_>>();
                let service = node.service(proto, &pick(cluster), &pick(local))?;
                let front = |external: bool| Front {
                    service: service.id,
                    external,
                    local_policy: flags & Frontend::LOCAL != 0,
                    cluster: cluster.iter().map(|n| backs[*n]).collect(),
                    local: local.iter().map(|n| backs[*n]).collect(),
                };
                let vip = at(ip, vip, 80);
                node.frontend(&service, vip, FrontendKind::ClusterIp, flags)?;
                model.fronts.insert((vip, proto), front(false));
                targets.push((vip, proto));
                node.node_port(&service, ip, node_port, flags)?;
                model.node_ports.insert((node_port, proto, ip.is_v4()), front(true));
                targets.push((at(ip, NODE, node_port), proto));
                anyhow::Ok(())
            };
            serve(VIP, 30_080, 0, &[0, 1, 3], &[])?;
            serve(VIP + 1, 30_081, 0, &[1], &[])?;
            serve(VIP + 2, 30_082, 0, &[3, 4], &[])?;
            serve(VIP + 3, 30_083, Frontend::LOCAL, &[3], &[1, 2])?;
            serve(VIP + 4, 30_084, Frontend::LOCAL, &[4], &[])?;
            serve(VIP + 5, 30_085, 0, &[], &[])?;
            // Destinations without a Service.
            targets.extend([(at(ip, VIP, 81), proto), (at(ip, OUTSIDE + 7, 80), proto)]);
        }
    }
    Ok((model, targets))
}

fn transport(random: &mut Random, proto: u8, ip: Ip, syn: bool) -> Transport {
    if proto == 17 {
        return if ip.is_v4() && random.below(3) == 0 { Transport::UdpNoSum } else { Transport::Udp };
    }
    let others = [SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, FIN | ACK, FIN, RST, RST | ACK, SYN | FIN, 0];
    let flags = if syn { SYN } else { *random.of(&others) };
    // Most have the numbers of one connection without data: what all segments have is what the model keeps, too.
    if random.below(4) == 0 {
        Transport::Tcp { flags, seq: random.word(), ack: random.word() }
    } else {
        Transport::tcp(flags & !PSH)
    }
}

/// A packet from a client to a target, or a reply of a flow in the model.
fn packet(random: &mut Random, model: &Model, targets: &[(SocketAddr, u8)]) -> Packet {
    let reply = if random.below(5) < 2 { model.some_reply(random) } else { None };
    let is_reply = reply.is_some();
    let (src, dst, proto): Tuple = reply.unwrap_or_else(|| {
        let (dst, proto) = *random.of(targets);
        let ip = if dst.is_ipv4() { Ip::V4 } else { Ip::V6 };
        (at(ip, *random.of(&CLIENTS), *random.of(&PORTS)), dst, proto)
    });
    let ip = match (dst.is_ipv4(), random.below(4)) {
        (true, 0) => Ip::V4Options,
        (true, _) => Ip::V4,
        (false, _) => Ip::V6,
    };
    let syn = !is_reply && random.below(5) < 2;
    let transport = transport(random, proto, ip, syn);
    // Without Ethernet a test run cannot insert an ICMP message at the right offset.
    let link = if proto == 6 { *random.of(&Link::BOTH) } else { Link::Ethernet };
    let mut packet = Packet::new(link, ip, src, dst, transport);
    packet.ttl = 1 + random.below(255) as u8;
    if random.below(2) == 0 {
        packet.tcp_options.clear();
    }
    // The datapath keeps numbers that lag behind data (`tcp::LAG`), the model does not.
    let len = if matches!(transport, Transport::Tcp { flags, .. } if transport == Transport::tcp(flags)) {
        0
    } else {
        random.below(64)
    };
    packet.payload = (0..len).map(|_| random.word() as u8).collect();
    packet
}

#[test]
fn a_hundred_thousand_random_packets() -> Result<()> {
    let seed = match env::var("SHUNT_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => SEED,
    };
    println!("seed {seed} (SHUNT_SEED={seed} runs the same packets again)");
    let mut random = Random::new(seed);
    let mut node = shared()?;
    let (mut model, targets) = set_up(&mut node)?;
    let start = Instant::now();
    let (mut ended, mut own) = (0, 0);
    for number in 0..PACKETS {
        ensure!(start.elapsed() < LIMIT, "only {number} packets in {LIMIT:?}");
        let packet = packet(&mut random, &model, &targets);
        let told = |error: String| anyhow::anyhow!("seed {seed}, packet {number}: {packet:?}\n{error}");
        if packet.src.ip() == addr(packet.ip, NODE) {
            // The node's own packets do not pass the ingress hook.
            own += 1;
            let outcome = node.own(packet.link, &packet.bytes());
            model.at_egress(&packet, true, &outcome).map_err(told)?;
            continue;
        }
        let outcome = node.ingress(packet.link, &packet.bytes());
        let Some(inside) = model.at_ingress(&packet, &outcome).map_err(told)? else {
            ended += 1;
            continue;
        };
        let outcome = node.egress(packet.link, &inside.bytes());
        let told =
            |error: String| anyhow::anyhow!("seed {seed}, packet {number} at egress: {inside:?}\n{error}");
        if model.at_egress(&inside, false, &outcome).map_err(told)?.is_none() {
            ended += 1;
        }
    }
    println!(
        "{PACKETS} packets in {:?}, {own} of the node's own, {ended} refused or dropped",
        start.elapsed()
    );
    // The halves in the map are exactly those of the model's flows.
    let tuple = |addr: Addr, port: proxy_common::Port| SocketAddr::new(addr.to_ip(), port.host());
    let mut have = [HashSet::new(), HashSet::new()];
    // Flows of the node's own addresses are covered by `three_parties`: the model here has none.
    for (key, _) in node.flows().iter().filter(|(_, entry)| !entry.has(CtEntry::NODE_FLOW)) {
        let hook = usize::from(key.half == Half::Egress as u8);
        have[hook].insert((tuple(key.src, key.sport), tuple(key.dst, key.dport), key.proto));
    }
    let (ingress, egress) = model.tuples();
    for (have, want) in have.iter().zip([ingress, egress]) {
        let (more, less): (Vec<_>, Vec<_>) =
            (have.difference(&want).take(5).collect(), want.difference(have).take(5).collect());
        assert!(more.is_empty() && less.is_empty(), "left over {more:?}, missing {less:?}");
        assert!(have.len() > 500, "{}: too few flows to mean anything", have.len());
    }
    // Each of these must have happened often.
    for counter in [
        Counter::FlowNew,
        Counter::FlowDirect,
        Counter::FlowMasqueraded,
        Counter::FlowPortChanged,
        Counter::NoBackend,
        Counter::NoLocalEndpoints,
        Counter::NoFlow,
    ] {
        let count = node.counter(counter);
        println!("{} {count}", counter.name());
        assert!(count > 300, "{} only {count} times", counter.name());
    }
    Ok(())
}
