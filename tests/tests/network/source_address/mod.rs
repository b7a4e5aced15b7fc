//! The source of a translated flow is the address that the kernel itself would choose for the flow's route and device.
//! It is compared with `ip route get DESTINATION oif DEVICE`, for every shape of [`shapes`], while shunt runs. This
//! includes kernels before 6.7, where a program cannot query the kernel and the table from netlink is used instead.
//!
//! A client outside connects to NodePorts of node 1 whose backends are addresses of node 2, each behind a different
//! kind of route.

mod shapes;

use std::{net::IpAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Cluster, Lane, Netns, Plan,
        cluster::eventually,
        plan::{BOTH, Dual, Family, vip},
        shunt,
    },
    traffic::{Client, Outcome, Server},
};

use self::shapes::{MARK, SHAPES, Shape, Source, To};
use crate::world::TARGET;

/// Time limit for netlink changes to reach the maps.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// Longer than the agent's interval between two scans of the routes.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// Prefixes of the addresses that the node keeps.
const OWN: [&str; 6] = ["127.0.0.1/", "::1/", "192.168.8.201/", "fd00:8::201/", "fe80:", "172.20."];

/// The way of finding the source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// By query, as this kernel supports.
    Asked,
    /// From the table, as on kernels before 6.7.
    Table,
}

impl To {
    const ALL: [Self; 4] = [Self::Routed, Self::OnLink, Self::Tunnel, Self::Wire];

    const fn net(self) -> u8 {
        match self {
            Self::Routed => 0,
            Self::OnLink => 1,
            Self::Tunnel => 2,
            Self::Wire => 3,
        }
    }

    /// The backend: 10.90.0.10 and so on.
    fn addr(self) -> Dual {
        Dual {
            v4: [10, 90 + self.net(), 0, 10].into(),
            v6: [0xfd00, 0x90 + u16::from(self.net()), 0, 0, 0, 0, 0, 0x10].into(),
        }
    }

    const fn node_port(self) -> u16 {
        30_090 + self.net() as u16
    }

    fn device(self) -> &'static str {
        match self {
            Self::Routed | Self::OnLink => "eth0",
            Self::Tunnel => "vx0",
            Self::Wire => "wire",
        }
    }
}

struct Sources {
    cluster: Cluster,
    how: How,
    _servers: Vec<Server>,
}

impl Sources {
    fn start(how: How) -> Result<Self> {
        let cluster = Cluster::new(Plan::default())?;
        let servers = wire(&cluster)?;
        let services: Vec<_> = To::ALL.iter().map(|to| service(*to)).collect();
        cluster.apply("services.yaml", &services.join("---\n"))?;
        let node = cluster.node(0);
        let mut program = vec![shunt::binary()?.into()];
        if how == How::Table {
            program.splice(0..0, ["env".into(), "SHUNT_FORCE_SOURCE_TABLE=1".into()]);
        }
        node.launch_shunt_by(&program, &[])?;
        node.wait_ready()?;
        Ok(Self { cluster, how, _servers: servers })
    }

    fn ip(&self, lines: &str) -> Result<()> {
        ip(self.cluster.node(0).netns(), lines)
    }

    /// Restores the node's default configuration.
    fn reset(&self) -> Result<()> {
        let node = self.cluster.node(0).netns();
        let out = node.run(&["ip", "-o", "addr"])?;
        // The latest first: removing a primary address also removes its secondary ones.
        for line in out.lines().rev() {
            let words: Vec<_> = line.split_whitespace().collect();
            let [_, device, _, addr, rest @ ..] = words.as_slice() else { continue };
            if OWN.iter().any(|own| addr.starts_with(own)) {
                continue;
            }
            let mut command = vec!["ip", "addr", "del", addr, "dev", device];
            if let ["peer", peer, ..] = rest {
                command.splice(4..4, ["peer", peer]);
            }
            // Temporary addresses are removed with the address they are derived from.
            node.output(&command)?;
        }
        for family in ["-4", "-6"] {
            node.run(&["ip", family, "rule", "flush"])?;
            node.run(&["ip", family, "rule", "add", "pref", "32766", "lookup", "main"])?;
            for what in [["proto", "boot"], ["table", "90"]] {
                node.output(&[&["ip", family, "route", "flush"], what.as_slice()].concat())?;
            }
        }
        node.output(&["ip", "nexthop", "flush"])?;
        node.output(&["nft", "delete", "table", "inet", "marking"])?;
        self.ip("route add default via 192.168.8.202\nroute add default via fd00:8::202\n")
    }

    /// The kernel's source address for a route out of a device.
    fn kernel(&self, to: To, family: Family) -> Result<IpAddr> {
        let node = self.cluster.node(0).netns();
        let told =
            node.run(&["ip", "route", "get", &to.addr().of(family).to_string(), "oif", to.device()])?;
        let mut words = told.split_whitespace().skip_while(|word| *word != "src");
        let source = words.nth(1).with_context(|| format!("no source in {told:?}"))?;
        Ok(source.parse()?)
    }

    fn client(&self) -> Client {
        Client::at(self.cluster.outside()).patience(Duration::from_millis(700))
    }

    /// The address that the backend sees, for a new TCP and a new UDP flow.
    fn seen(&self, to: To, family: Family) -> [Outcome; 2] {
        let at = self.cluster.node(0).socket_addr(family, to.node_port());
        [self.client().tcp(at).outcome, self.client().udp(at).outcome]
    }

    /// Waits for the right source; fails with the observed one.
    fn settles(&self, to: To, family: Family, want: IpAddr) -> Result<(), String> {
        let is_right =
            |outcome: &Outcome| matches!(outcome, Outcome::Answered(answer) if answer.peer.ip() == want);
        let mut last = None;
        let settled = eventually(SETTLED_WITHIN, || {
            let seen = self.seen(to, family);
            let right = seen.iter().all(is_right);
            last = Some(seen);
            right
        });
        settled.map(drop).map_err(|_| format!("{last:?} instead of {want}"))
    }

    /// The shape's source, checked against the kernel, which takes a moment for IPv6 addresses.
    fn want(&self, shape: &Shape) -> Result<IpAddr> {
        let mut said = None;
        let is_expected = |kernel: IpAddr| match shape.source {
            Source::Is(source) => source.parse() == Ok(kernel),
            Source::Not(source) => source.parse() != Ok(kernel),
            Source::OfRoute(_) => true,
        };
        eventually(Duration::from_secs(2), || {
            said = self.kernel(shape.to, shape.family).ok();
            said.is_some_and(is_expected)
        })
        .with_context(|| format!("the kernel says {said:?}"))?;
        let kernel = said.context("no route")?;
        match shape.source {
            // The XDP program bypasses netfilter: there are no marks.
            Source::OfRoute(_) if shape.is_marked() && Lane::of_environment().is_some() => Ok(kernel),
            Source::OfRoute(source) if self.how == How::Asked => Ok(source.parse()?),
            _ => Ok(kernel),
        }
    }

    /// Configures the node as the shape describes. The outer result is about that, the inner one about the source.
    fn try_shape(&self, shape: &Shape, explain: bool) -> Result<Result<(), String>> {
        self.reset()?;
        if shape.is_marked() {
            self.cluster.node(0).netns().nft(MARK)?;
        }
        self.ip(&shape.lines.join("\n"))?;
        let want = self.want(shape)?;
        // Twice: a correct result may be left from before.
        for pause in [Duration::ZERO, SECOND_LOOK] {
            thread::sleep(pause);
            if let Err(why) = self.settles(shape.to, shape.family, want) {
                return Ok(Err(why));
            }
        }
        // The test run of an explanation passes no netfilter rules that could mark the packet.
        if explain && !shape.is_marked() {
            let told = self.explained(shape)?;
            if told != want {
                return Ok(Err(format!("shunt explain says {told} instead of {want}")));
            }
        }
        Ok(Ok(()))
    }

    /// The source that `shunt explain` shows for the backend.
    fn explained(&self, shape: &Shape) -> Result<IpAddr> {
        let node = self.cluster.node(0);
        let from = tests::net::plan::OUTSIDE.of(shape.family).to_string();
        let to = node.socket_addr(shape.family, shape.to.node_port()).to_string();
        let told = node.shunt_json(&["explain", &from, &to])?;
        let text = told["outcome"]["source"].as_str().with_context(|| format!("no source in {told:#}"))?;
        Ok(text.parse::<std::net::SocketAddr>()?.ip())
    }
}

/// Runs commands in iproute2's batch syntax, in order; those for a single family, which a batch does not support, one
/// by one.
fn ip(netns: &Netns, lines: &str) -> Result<()> {
    for line in lines.lines() {
        if line.starts_with('-') {
            let words: Vec<_> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
            netns.run(&words)?;
        } else {
            netns.ip(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

/// Adds node 2's addresses, and a wire and a tunnel between both nodes. Node 2 replies through the route of each
/// address, and accepts packets from any interface.
fn wire(cluster: &Cluster) -> Result<Vec<Server>> {
    let (node, far) = (cluster.node(0).netns(), cluster.node(1).netns());
    for scope in ["all", "default", "eth0"] {
        far.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    node.sysctl("net/ipv6/conf/default/use_tempaddr", "2")?;
    node.sysctl("net/ipv6/conf/eth0/use_tempaddr", "2")?;
    let peer = far.path();
    let tunnel = |own: u8, other: u8, tail: &str| {
        format!(
            "link add vx0 address 02:00:00:00:77:{tail} type vxlan id 77 dstport 4790 local 192.168.8.{own} remote 192.168.8.{other}\n\
             addr add fe80::{tail}/64 dev vx0 nodad\nlink set vx0 up\n"
        )
    };
    ip(
        node,
        &format!(
            "link add wire type veth peer name wire netns {}\naddr add fe80::aa/64 dev wire nodad\nlink set wire up\n\
         {}route replace default via 192.168.8.202\nroute replace default via fd00:8::202\n",
            peer.display(),
            tunnel(201, 202, "aa"),
        ),
    )?;
    ip(
        far,
        &format!(
            "addr add fe80::bb/64 dev wire nodad\nlink set wire up\n{}\
         route replace default via 192.168.8.201\nroute replace default via fd00:8::201\n\
         addr add 10.90.0.10/32 dev lo\naddr add fd00:90::10/128 dev lo nodad\n\
         addr add 10.91.0.10/24 dev eth0\naddr add 10.91.0.11/24 dev eth0\naddr add fd00:91::10/64 dev eth0 nodad\n\
         addr add 10.92.0.10/32 dev lo\naddr add fd00:92::10/128 dev lo nodad\n\
         addr add 10.93.0.10/32 dev lo\naddr add fd00:93::10/128 dev wire nodad\n\
         rule add from 10.92.0.10 lookup 92\nroute add default dev vx0 table 92\n\
         rule add from 10.93.0.10 lookup 93\nroute add default dev wire table 93\n\
         -6 rule add from fd00:92::10 lookup 92\nroute add default via fe80::aa dev vx0 table 92\n\
         -6 rule add from fd00:93::10 lookup 93\nroute add default via fe80::aa dev wire table 93\n",
            tunnel(202, 201, "bb"),
        ),
    )?;
    let mut servers = Vec::new();
    for to in To::ALL {
        for family in BOTH {
            let at = (to.addr().of(family), TARGET).into();
            servers.push(Server::tcp(cluster.node(1).place(), at, "far")?);
            servers.push(Server::udp(cluster.node(1).place(), at, "far")?);
        }
    }
    Ok(servers)
}

fn service(to: To) -> String {
    let name = format!("{to:?}").to_lowercase();
    Service::new(&name, vip(90 + to.net()))
        .node_port(80, TARGET, to.node_port())
        .endpoints([Endpoint::at(to.addr())])
        .yaml()
}

/// All shapes in sequence on a node that is never restarted. All of them are tried before the test fails.
fn every_shape(how: How) -> Result<()> {
    let sources = Sources::start(how)?;
    let mut wrong = Vec::new();
    for (nth, shape) in SHAPES.iter().enumerate() {
        // An explanation loads the programs once more: not done for every shape.
        let found = sources.try_shape(shape, nth % 4 == 3).unwrap_or_else(|error| Err(format!("{error:#}")));
        if let Err(why) = found {
            wrong.push(format!("{:?}, {}: {why}", shape.family, shape.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} shapes: {wrong:#?}", wrong.len(), SHAPES.len());
    Ok(())
}

#[test]
fn the_source_is_the_kernels_choice() -> Result<()> {
    every_shape(How::Asked)
}

#[test]
fn the_source_is_the_kernels_choice_by_the_table() -> Result<()> {
    every_shape(How::Table)
}

/// Address changes while connections are open: they keep their source, and continue as long as it exists.
fn open_flows(how: How) -> Result<()> {
    let sources = Sources::start(how)?;
    for (family, steps) in [
        (
            Family::V4,
            [
                ("addr add 10.0.0.5/32 dev eth0\n", "192.168.8.201"),
                (
                    "addr add 10.99.0.1/32 dev lo\nroute add 10.90.0.0/16 via 192.168.8.202 src 10.99.0.1\n",
                    "10.99.0.1",
                ),
                (
                    "addr add 10.99.0.2/32 dev lo\nroute replace 10.90.0.0/16 via 192.168.8.202 src 10.99.0.2\n",
                    "10.99.0.2",
                ),
                ("route del 10.90.0.0/16\n", "192.168.8.201"),
            ],
        ),
        (
            Family::V6,
            [
                ("addr add fc00::5/128 dev eth0 nodad\n", "fd00:8::201"),
                (
                    "addr add fd00:99::1/128 dev lo nodad\nroute add fd00:90::/32 via fd00:8::202 src fd00:99::1\n",
                    "fd00:99::1",
                ),
                ("addr add fd00:90:1::1/64 dev eth0 nodad\nroute del fd00:90::/32\n", "fd00:90:1::1"),
                ("addr change fd00:90:1::1/64 dev eth0 preferred_lft 0 valid_lft forever\n", "fd00:8::201"),
            ],
        ),
    ] {
        let at = sources.cluster.node(0).socket_addr(family, To::Routed.node_port());
        let mut open = Vec::new();
        for (lines, source) in
            [("", sources.cluster.node(0).addr().of(family).to_string().as_str())].into_iter().chain(steps)
        {
            sources.ip(lines)?;
            let settled = sources.settles(To::Routed, family, source.parse()?);
            assert_eq!(settled, Ok(()), "{family:?} after {lines:?}");
            let stream = sources.client().stream(at);
            let datagrams = sources.client().udp_connected(at)?;
            let peers = [stream.ask()?.peer, datagrams.ask()?.peer];
            open.push((stream, datagrams, peers));
            for (stream, datagrams, peers) in &open {
                assert_eq!([stream.ask()?.peer, datagrams.ask()?.peer], *peers, "{family:?} after {lines:?}");
                stream.steady(2);
            }
        }
        let sources: Vec<_> = open.iter().map(|(_, _, peers)| peers[0].ip().to_string()).collect();
        assert!(sources.windows(2).any(|pair| pair[0] != pair[1]), "{sources:?}");
    }
    Ok(())
}

#[test]
fn open_flows_keep_their_source() -> Result<()> {
    open_flows(How::Asked)
}

#[test]
fn open_flows_keep_their_source_by_the_table() -> Result<()> {
    open_flows(How::Table)
}
