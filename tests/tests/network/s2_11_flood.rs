//! 2.11 under a flood of SYNs: half-open flows take their share of CONNTRACK and no more.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::Result;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use tests::{
    net::{Place, Plan, plan::BOTH},
    traffic::Client,
};

use crate::world::{World, web};

/// SYNs from addresses that do not exist, each from another one: the cheapest way to begin flows.
struct Flood {
    socket: OwnedFd,
    to: SocketAddr,
    sent: u32,
}

impl Flood {
    fn new(from: &Place, to: SocketAddr) -> io::Result<Self> {
        let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // IPPROTO_RAW: we write the IP header ourselves.
        Ok(Self { socket: from.socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?, to, sent: 0 })
    }

    fn send(&mut self, count: u32) -> io::Result<()> {
        for _ in 0..count {
            self.sent += 1;
            let packet = syn(self.sent, self.to);
            let to = SockaddrStorage::from(SocketAddr::new(self.to.ip(), 0));
            match sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
                // The device's queue is full: that one is lost.
                Ok(_) | Err(nix::Error::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A SYN of the `nth` client: an IP header and a TCP header without options.
fn syn(nth: u32, to: SocketAddr) -> Vec<u8> {
    let [_, a, b, c] = nth.to_be_bytes();
    let sport = 1024 + (nth % 60_000) as u16;
    let mut tcp = Vec::new();
    tcp.extend(sport.to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(nth.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, 0x02, 0x20, 0x00, 0, 0, 0, 0]);
    let (mut packet, source, destination) = match to.ip() {
        IpAddr::V4(v4) => {
            let source = [203, a & 0x0f | 0x10, b, c];
            // The kernel fills in length, identification and checksum.
            let mut head = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
            head.extend(source);
            head.extend(v4.octets());
            (head, source.to_vec(), v4.octets().to_vec())
        }
        IpAddr::V6(v6) => {
            let source = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xf, a, b, c];
            let mut head = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
            head.extend(source);
            head.extend(v6.octets());
            (head, source.to_vec(), v6.octets().to_vec())
        }
    };
    let pseudo = [&source[..], &destination[..], &[0, 6, 0, 20]].concat();
    let words = pseudo.chunks(2).chain(tcp.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend(tcp);
    packet
}

/// 12000 half-open flows at a table of 1024 halves: what is open goes on, and who is real gets in meanwhile and after.
#[test]
fn s2_11_a_flood_of_syns_keeps_nobody_out() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(&["--conntrack-max", "1024"])?;
    let patience = Duration::from_millis(500);
    let entries = || -> Result<u64> {
        let status = world.cluster.node(0).shunt_json(&["status"])?;
        Ok(status[0]["conntrack"]["entries"].as_u64().unwrap_or(u64::MAX))
    };
    for family in BOTH {
        let node_port = world.node_port(0, family);
        let clients = [(world.pod(), web(family)), (world.outside(), node_port)];
        let open: Vec<_> =
            clients.iter().flat_map(|(client, to)| (0..10).map(|_| client.stream(*to))).collect();
        let before: Vec<_> = open.iter().map(|stream| stream.steady(1)).collect();
        let mut flood = Flood::new(world.cluster.outside(), node_port)?;
        let mut most = 0;
        for _ in 0..30 {
            flood.send(200)?;
            for (client, to) in &clients {
                Client::clone(client).patience(patience).tcp(*to).answered();
            }
            most = most.max(entries()?);
        }
        eprintln!("{family:?}: {} SYNs, at most {most} of 1024 halves", flood.sent);
        let after: Vec<_> = open.iter().map(|stream| stream.steady(2)).collect();
        assert_eq!(before, after);
        assert!(most < 900, "{most} halves");
        for (client, to) in &clients {
            for _ in 0..10 {
                Client::clone(client).patience(patience).tcp(*to).answered();
            }
        }
    }
    // That it was one at all: the flood's flows were recorded.
    let counters = world.cluster.node(0).shunt_json(&["counter", "list"])?;
    let of = |name: &str| {
        let rows = counters.as_array().into_iter().flatten();
        rows.filter(|row| row["name"] == name).filter_map(|row| row["value"].as_u64()).sum::<u64>()
    };
    assert!(of("flow_new") > 10_000, "{counters}");
    assert!(of("half_open_forgotten") > 9_000 && of("conntrack_full") == 0, "{counters}");
    Ok(())
}
