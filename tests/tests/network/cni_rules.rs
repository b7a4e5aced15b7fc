//! Under a CNI's strictest rules and strict source checks, all traffic works, and conntrack classifies no packet as
//! invalid.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, vip},
    },
    traffic::{Client, Tally},
};

use crate::world::{World, at, web};

const BOTH_BACKENDS: [&str; 2] = ["near", "far"];

fn everything_passes(plan: Plan) -> Result<()> {
    let world = World::start(plan.with_cni_rules(), |world| {
        let near = Service::new("near", vip(31)).node_port(80, 8080, 30081).pods(&[&world.near]);
        let far = Service::new("far", vip(32)).node_port(80, 8080, 30082).pods(&[&world.far]);
        [world.web().yaml(), near.yaml(), far.yaml()].join("---\n")
    })?;
    let node = world.cluster.node(0);
    for family in BOTH {
        for from in [world.pod(), Client::at(world.other.place()), world.host(0)] {
            Tally::of(10, || from.tcp(web(family))).even_over(&BOTH_BACKENDS);
            Tally::of(10, || from.udp(web(family))).even_over(&BOTH_BACKENDS);
        }
        for (port, backend) in [(30081, "near"), (30082, "far")] {
            for from in [world.outside(), world.pod(), world.host(0)] {
                let to = node.socket_addr(family, port);
                assert_eq!(from.tcp(to).answered().backend, backend);
                assert_eq!(from.udp(to).answered().backend, backend);
                from.stream(to).upload(&vec![3; 1 << 18])?;
            }
        }
        // Traffic that the rules forbid stays forbidden, also through a Service.
        world.pod().tcp(at(world.far.addr(), family, 8081)).timed_out();
        world.pod().stream(web(family)).steady(20);
    }
    assert_eq!(world.cluster.invalid()?, 0, "packets that conntrack calls invalid");
    Ok(())
}

#[test]
fn routed_pods() -> Result<()> {
    everything_passes(Plan::default())
}

#[test]
fn bridged_pods() -> Result<()> {
    everything_passes(Plan::default().bridged())
}

#[test]
fn routed_pods_over_vxlan() -> Result<()> {
    everything_passes(Plan::default().vxlan())
}

#[test]
fn bridged_pods_over_vxlan() -> Result<()> {
    everything_passes(Plan::default().bridged().vxlan())
}

/// Tests the rules themselves: without shunt the counter of invalid packets does count.
#[test]
fn an_invalid_packet_would_be_seen() -> Result<()> {
    let world = World::without_shunt(Plan::default().with_cni_rules())?;
    let node = world.cluster.node(0);
    let stream = world.pod().stream(world.far.socket_addr(BOTH[0], 8080));
    // Conntrack loses the flow and may not pick it up in mid-stream: the next segment is invalid.
    node.netns().sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    node.netns().enter(flush_conntrack)?;
    assert!(stream.ask().is_err());
    assert!(world.cluster.invalid()? > 0);
    Ok(())
}

/// Empties the namespace's nf_conntrack with a netlink message (IPCTNL_MSG_CT_DELETE without a tuple).
fn flush_conntrack() -> Result<()> {
    const CT_DELETE: u16 = (1 << 8) | 2;
    const REQUEST_ACK: u16 = 1 | 4;
    let fd = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Netlink,
        nix::sys::socket::SockType::Raw,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        nix::sys::socket::SockProtocol::NetlinkNetFilter,
    )?;
    let mut message = Vec::new();
    message.extend(20u32.to_ne_bytes());
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend(REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    // nfgenmsg: any family, version 0, no resource.
    message.extend([0; 4]);
    nix::unistd::write(&fd, &message)?;
    let mut answer = [0; 64];
    nix::unistd::read(&fd, &mut answer)?;
    let errno = i32::from_ne_bytes(answer[16..20].try_into()?);
    anyhow::ensure!(errno == 0, "flushing conntrack: errno {}", -errno);
    Ok(())
}
