//! connect() from a pod and from the node, to a Service and directly to its backend, through the real `shunt`.
//!
//! Client and server are pinned to different cores. All kinds take turns in small blocks, so that other load on the
//! machine affects all of them; a run without shunt comes before and after.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{Backlog, SockaddrStorage, accept, bind, connect, listen, setsockopt, sockopt},
    unistd::Pid,
};

use crate::{
    manifest::Service,
    net::{
        Cluster, Place, Plan,
        plan::{Family, vip},
    },
};

/// Blocks of each kind, and connections in one.
const BLOCKS: usize = 40;
const BLOCK: usize = 50;

/// The port of the Service's backend; shunt has no entry for the other port.
const BACKEND: u16 = 8080;
const UNKNOWN: u16 = 9090;

/// A kind of connection and its median.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    pub name: &'static str,
    /// Median in microseconds.
    pub p50: f64,
    /// As a multiple of the same path without the Service, measured alternately with it.
    pub to_direct: Option<f64>,
}

/// A client and its destination.
struct Kind<'a> {
    name: &'static str,
    place: &'a Place,
    to: SocketAddr,
    /// Index of the kind it is compared with.
    base: Option<usize>,
}

pub fn measure() -> Result<Vec<Connect>> {
    let cores = thread::available_parallelism()?.get();
    ensure!(cores >= 2, "client and server need a core each; this machine has {cores}");
    let cluster = Cluster::new(Plan { nodes: 1, prefix: "shunt-bench", ..Plan::default() })?;
    let (client, server) = (cluster.add_pod(0, "client")?, cluster.add_pod(0, "server")?);
    for port in [BACKEND, UNKNOWN] {
        serve(server.place(), server.socket_addr(Family::V4, port))?;
    }
    let service = Service::new("bench", vip(10)).tcp(80, BACKEND).pods(&[&server]);
    cluster.apply("bench.yaml", &service.yaml())?;
    pin(0)?;

    let (pod, node) = (client.place(), cluster.node(0).place());
    let direct = server.socket_addr(Family::V4, UNKNOWN);
    let backend = server.socket_addr(Family::V4, BACKEND);
    let front = SocketAddr::new(vip(10).of(Family::V4), 80);
    let bare = [
        Kind { name: "pod to pod, no shunt on the node", place: pod, to: direct, base: None },
        Kind { name: "node to pod, no shunt on the node", place: node, to: direct, base: None },
    ];
    let kinds = [
        Kind { name: "pod to pod, beside the Service", place: pod, to: direct, base: None },
        Kind { name: "pod to ClusterIP (tc)", place: pod, to: front, base: Some(0) },
        Kind { name: "pod to the backend's own address", place: pod, to: backend, base: Some(0) },
        Kind { name: "node to pod, beside the Service", place: node, to: direct, base: None },
        Kind { name: "node to ClusterIP (socket hook)", place: node, to: front, base: Some(3) },
    ];
    let mut without = run(&bare, BLOCKS / 2)?;
    cluster.start(&[])?;
    let with = run(&kinds, BLOCKS)?;
    cluster.node(0).stop_shunt()?;
    cluster.node(0).shunt_command(&["cleanup"])?;
    for (all, more) in without.iter_mut().zip(run(&bare, BLOCKS / 2)?) {
        all.extend(more);
    }

    let mut figures = Vec::new();
    for (kinds, times) in [(&bare[..], without), (&kinds[..], with)] {
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        figures.extend(kinds.iter().zip(&medians).map(|(kind, p50)| Connect {
            name: kind.name,
            p50: *p50,
            to_direct: kind.base.map(|base| p50 / medians[base]),
        }));
    }
    Ok(figures)
}

/// Microseconds of each connection of each kind, the kinds in turn.
fn run(kinds: &[Kind<'_>], blocks: usize) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::with_capacity(blocks * BLOCK); kinds.len()];
    for _ in 0..blocks {
        for (kind, times) in kinds.iter().zip(&mut times) {
            for _ in 0..BLOCK {
                times.push(once(kind).with_context(|| kind.name)?);
            }
        }
    }
    Ok(times)
}

fn once(kind: &Kind<'_>) -> Result<f64> {
    let socket = kind.place.socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    // Closed by a reset: no port has to wait two minutes before reuse.
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    let to = SockaddrStorage::from(kind.to);
    let start = Instant::now();
    connect(socket.as_raw_fd(), &to)?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Accepts and closes connections, on the other core, until the process ends.
fn serve(place: &Place, addr: SocketAddr) -> Result<()> {
    let listener: OwnedFd = place.socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(addr))?;
    listen(&listener, Backlog::new(1024)?)?;
    thread::spawn(move || -> Result<()> {
        pin(1)?;
        loop {
            let fd = accept(listener.as_raw_fd())?;
            nix::unistd::close(fd)?;
        }
    });
    Ok(())
}

/// Pins the calling thread to one core.
fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pinning a thread to core {core}"))
}
