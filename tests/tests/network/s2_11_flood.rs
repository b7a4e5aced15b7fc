//! 2.11 under a SYN flood: half-open flows use no more than their share of CONNTRACK.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use tests::{
    net::{Place, Plan, cluster::eventually, plan::BOTH},
    traffic::{Client, Outcome},
};

use crate::world::{World, web};

/// SYNs from addresses that do not exist, each from a different one: the cheapest way to open flows.
struct Flood {
    socket: OwnedFd,
    to: SocketAddr,
    sent: u32,
}

impl Flood {
    fn new(from: &Place, to: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: raw_socket(from, to)?, to, sent: 0 })
    }

    fn send(&mut self, count: u32) -> io::Result<()> {
        for _ in 0..count {
            self.sent += 1;
            let packet = syn(self.sent, self.to);
            let to = SockaddrStorage::from(SocketAddr::new(self.to.ip(), 0));
            match sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
                // The device's queue is full: that packet is lost.
                Ok(_) | Err(nix::Error::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A SYN of the `nth` client.
fn syn(nth: u32, to: SocketAddr) -> Vec<u8> {
    let [_, a, b, c] = nth.to_be_bytes();
    let source: IpAddr = match to {
        SocketAddr::V4(_) => [203, a & 0x0f | 0x10, b, c].into(),
        SocketAddr::V6(_) => [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xf, a, b, c].into(),
    };
    segment(SocketAddr::new(source, 1024 + (nth % 60_000) as u16), to, [nth, 0], 0x02)
}

/// A TCP segment without data or options, with its IP header; `numbers` are its sequence and acknowledgement.
pub fn segment(from: SocketAddr, to: SocketAddr, numbers: [u32; 2], flags: u8) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    tcp.extend([0x50, flags, 0x20, 0x00, 0, 0, 0, 0]);
    let (mut packet, addresses) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The kernel fills in identification and checksum.
            (vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0], [from.octets(), to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (vec![0x60, 0, 0, 0, 0, 20, 6, 64], [from.octets(), to.octets()].concat())
        }
        _ => panic!("{from} and {to} are not of one family"),
    };
    let pseudo = [&addresses[..], &[0, 6, 0, 20]].concat();
    let words = pseudo.chunks(2).chain(tcp.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend(addresses);
    packet.extend(tcp);
    packet
}

/// A socket at `place` that sends segments with their own IP headers.
pub fn raw_socket(place: &Place, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    place.socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)
}

/// 12000 half-open flows with a table of 1024 halves: open flows continue, and real clients are served during and after
/// the flood.
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
    // Checks that the flood took effect: its flows were recorded.
    let counters = world.cluster.node(0).shunt_json(&["counter", "list"])?;
    let of = |name: &str| {
        let rows = counters.as_array().into_iter().flatten();
        rows.filter(|row| row["name"] == name).filter_map(|row| row["value"].as_u64()).sum::<u64>()
    };
    assert!(of("flow_new") > 10_000, "{counters}");
    assert!(of("half_open_forgotten") > 9_000 && of("conntrack_full") == 0, "{counters}");
    Ok(())
}

/// A table that answered datagrams fill: open connections continue, new ones are refused at once, and the log says why.
#[test]
fn s2_11_a_full_table_refuses_at_once_and_says_so() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    world.cluster.start(&["--conntrack-max", "1024"])?;
    let patience = Duration::from_secs(1);
    let open: Vec<_> =
        BOTH.iter().flat_map(|family| (0..10).map(|_| world.pod().stream(web(*family)))).collect();
    let before: Vec<_> = open.iter().map(|stream| stream.steady(1)).collect();
    let mut sockets = Vec::new();
    let refused = (0..600).any(|_| match world.pod().patience(patience).udp_connected(web(BOTH[0])) {
        Ok(socket) => {
            let answer = socket.ask();
            sockets.push(socket);
            answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        }
        Err(_) => false,
    });
    assert!(refused, "{} datagrams found room", sockets.len());
    for family in BOTH {
        let began = Instant::now();
        let outcome = world.pod().patience(patience).tcp(web(family)).outcome;
        assert!(matches!(outcome, Outcome::Refused), "{family:?}: {outcome:?}");
        assert!(began.elapsed() < Duration::from_millis(300), "{family:?}: after {:?}", began.elapsed());
    }
    let after: Vec<_> = open.iter().map(|stream| stream.steady(2)).collect();
    assert_eq!(before, after);
    eventually(Duration::from_secs(15), || {
        world.cluster.node(0).shunt_log().contains("CONNTRACK is full: new flows to Services are refused")
    })?;
    Ok(())
}
