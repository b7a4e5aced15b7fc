//! Packets that no ordinary socket sends: pings, and SCTP by raw sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result};
use nix::sys::{
    socket::{MsgFlags, SockaddrStorage, recvfrom, sendto, setsockopt, sockopt},
    time::{TimeVal, TimeValLike as _},
};
use tests::{
    net::{
        Place,
        plan::{Family, vip},
    },
    traffic::ping,
};

use super::case::{ANYONE, Cases, SILENCE, agrees, next_port};
use crate::world::{TARGET, at};

pub fn pings(cases: &Cases<'_>, family: Family) -> Result<()> {
    let node = cases.0.node(0);
    let pod = &cases.0.clients[0];
    for (addr, verdict) in [(vip(10), "answered"), (vip(15), "refused"), (vip(99), "dropped")] {
        let addr = addr.of(family);
        let to = format!("{addr}/icmp");
        for (who, place, source) in [
            ("a pod", pod.place(), pod.addr().of(family)),
            ("the node", node.place(), node.addr().of(family)),
        ] {
            let told = node.shunt_json(&["explain", &source.to_string(), &to])?;
            let answered = ping(place, addr, SILENCE)?;
            assert_eq!(told["verdict"], verdict, "ping of {addr} by {who}: {told:#}");
            assert_eq!(answered, verdict == "answered", "ping of {addr} by {who}");
        }
    }
    Ok(())
}

/// No SCTP socket may be opened: raw sockets send an INIT and receive it at its destination.
pub fn sctp(cases: &Cases<'_>, family: Family) -> Result<()> {
    const SCTP: i32 = 132;
    let pod = &cases.0.clients[0];
    let raw = |place: &Place| -> io::Result<_> {
        let family = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        place.socket(family, libc::SOCK_RAW, SCTP)
    };
    let port = next_port();
    let source = SocketAddr::new(pod.addr().of(family), port);
    let to = at(vip(17), family, TARGET);
    let told = cases.0.node(0).shunt_json(&["explain", &source.to_string(), &format!("{to}/sctp")])?;
    let sockets = cases.0.servers.each_ref().map(|server| raw(server.place()));
    let mut message = [port.to_be_bytes(), TARGET.to_be_bytes()].concat();
    message.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sender = raw(pod.place())?;
    sendto(
        sender.as_raw_fd(),
        &message,
        &SockaddrStorage::from(SocketAddr::new(to.ip(), 0)),
        MsgFlags::empty(),
    )?;
    let mut came_to = Vec::new();
    for (name, socket) in ANYONE.iter().zip(sockets) {
        let socket = socket?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(300))?;
        let mut buffer = [0; 128];
        if let Ok((_, Some(from))) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
            let ip = match family {
                Family::V4 => from.as_sockaddr_in().map(|from| IpAddr::from(from.ip())),
                Family::V6 => from.as_sockaddr_in6().map(|from| IpAddr::from(from.ip())),
            };
            came_to.push((*name, ip.context("an IP peer")?));
        }
    }
    let [(backend, peer)] = came_to[..] else { panic!("SCTP came to {came_to:?}\n{told:#}") };
    assert_eq!(peer, source.ip());
    agrees(&told, backend, SocketAddr::new(peer, port), &|| format!("SCTP: {told:#}"));
    Ok(())
}
