//! Shared parts of the tests of foreign flows: a server outside and one among the other node's processes, used from
//! source ports that are also Services' ports, and Services of every kind that has a node's address.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tests::{
    manifest::Service,
    net::{
        Plan, Pod, Proxy,
        plan::{BOTH, Family, node_addr, vip},
    },
    traffic::{Client, Server},
};

use crate::world::{NODE_PORT, PORT, TARGET, World, at};

/// Port of the foreign servers, TCP and UDP.
pub const ASKED: u16 = 53;
/// Of a load balancer address and of an externalIP that are node 0's own.
pub const BALANCER_PORT: u16 = 20_443;
pub const EXTERNAL_PORT: u16 = 20_444;
/// Ports of frontends at node 0's address.
pub const NUMBERS: [u16; 3] = [NODE_PORT, BALANCER_PORT, EXTERNAL_PORT];

/// A [`World`] with foreign servers, and the proxy that serves it.
pub struct Foreign {
    /// Servers of the outside client.
    strangers: Vec<Server>,
    pub proxy: Proxy,
    pub world: World,
}

impl Foreign {
    /// The cluster; the proxy serves the Services that `services` returns.
    pub fn start(plan: Plan, proxy: Proxy, services: impl FnOnce(&World) -> Vec<Service>) -> Result<Self> {
        Self::start_with(plan, proxy, &[], services)
    }

    pub fn start_with(
        plan: Plan,
        proxy: Proxy,
        flags: &[&str],
        services: impl FnOnce(&World) -> Vec<Service>,
    ) -> Result<Self> {
        Self::start_wired(plan, proxy, flags, |world| Ok(services(world)))
    }

    /// The same; `services` may add more network configuration.
    pub fn start_wired(
        plan: Plan,
        proxy: Proxy,
        flags: &[&str],
        services: impl FnOnce(&World) -> Result<Vec<Service>>,
    ) -> Result<Self> {
        let world = World::without_shunt(plan)?;
        let outside = world.cluster.outside();
        let any = SocketAddr::new(Family::V6.unspecified(), ASKED);
        let strangers = vec![Server::tcp(outside, any, "stranger")?, Server::udp(outside, any, "stranger")?];
        for family in BOTH {
            world.cluster.node(1).serve_tcp(family, ASKED, "neighbour")?;
            world.cluster.node(1).serve_udp(family, ASKED, "neighbour")?;
        }
        let services = services(&world)?;
        proxy.start(&world.cluster, &services, flags)?;
        Ok(Self { strangers, proxy, world })
    }

    /// Serves exactly these Services from now on.
    pub fn apply(&self, services: &[Service]) -> Result<()> {
        self.proxy.apply(&self.world.cluster, services)
    }

    /// Servers besides the cluster's Services for a process or a pod of node 0: name and address.
    pub fn strangers(&self, family: Family) -> [(&'static str, SocketAddr); 2] {
        [
            ("stranger", at(self.world.cluster.outside_addr(), family, ASKED)),
            ("neighbour", at(node_addr(1), family, ASKED)),
        ]
    }

    /// The two backends at their own addresses.
    pub fn backends(&self, family: Family) -> [(&'static str, SocketAddr); 2] {
        [("near", &self.world.near), ("far", &self.world.far)]
            .map(|(name, pod): (_, &Pod)| (name, pod.socket_addr(family, TARGET)))
    }

    /// Replies to other flows that servers received.
    pub fn strays(&self) -> Vec<String> {
        let world = &self.world;
        let of_pods = [&world.near, &world.far].into_iter().flat_map(Pod::strays);
        let of_nodes = world.cluster.nodes().iter().flat_map(|node| node.strays());
        of_pods.chain(of_nodes).chain(self.strangers.iter().flat_map(Server::strays)).collect()
    }

    /// Checks that every Service of [`every_kind`] answers the outside client at node 0, over TCP and UDP.
    pub fn all_are_served(&self, family: Family, losses: &mut Losses) {
        let outside = self.world.outside();
        for number in NUMBERS {
            let to = at(node_addr(0), family, number);
            for attempt in [outside.tcp(to), outside.udp(to)] {
                losses.note(&attempt.to_string(), attempt.is_answered());
            }
        }
    }

    /// A process of node 0 with this source port.
    pub fn host(&self, port: u16) -> Client {
        self.world.host(0).port(port)
    }
}

/// A NodePort, a load balancer address and an externalIP, the latter two node 0's own address; each over both backends,
/// TCP and UDP.
pub fn every_kind(world: &World) -> Vec<Service> {
    let pods = [&world.near, &world.far];
    let at_port = |name: &str, last: u8, port: u16| {
        Service::new(name, vip(last)).tcp(port, TARGET).udp(port, TARGET).pods(&pods)
    };
    vec![
        Service::new("numbered", vip(40)).node_port(PORT, TARGET, NODE_PORT).pods(&pods),
        at_port("balanced", 41, BALANCER_PORT).load_balancer(node_addr(0)),
        at_port("external", 42, EXTERNAL_PORT).external_ips(node_addr(0)),
    ]
}

/// Attempts and failures. A test must end without failures, and reports all of them otherwise.
#[derive(Debug, Default)]
pub struct Losses {
    tried: usize,
    lost: Vec<String>,
}

impl Losses {
    pub fn note(&mut self, what: &str, is_right: bool) {
        self.tried += 1;
        if !is_right {
            self.lost.push(what.to_owned());
        }
    }

    pub fn note_result<T>(&mut self, what: &str, result: std::io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.tried += 1;
                Some(value)
            }
            Err(error) => {
                self.note(&format!("{what}: {error}"), false);
                None
            }
        }
    }

    /// Number of failures.
    pub fn len(&self) -> usize {
        self.lost.len()
    }

    /// Merges two results.
    pub fn and(mut self, other: Self) -> Self {
        self.tried += other.tried;
        self.lost.extend(other.lost);
        self
    }

    /// Fails with all failures, and with the replies that reached the wrong server.
    pub fn none(self, foreign: &Foreign) -> Result<()> {
        let strays = foreign.strays();
        let (lost, tried) = (self.lost.len(), self.tried);
        println!("{:?}: {lost} of {tried} lost, {} answers delivered elsewhere", foreign.proxy, strays.len());
        anyhow::ensure!(
            lost == 0 && strays.is_empty(),
            "{lost} of {tried} lost: {:#?}\ndelivered elsewhere: {:#?}",
            &self.lost[..lost.min(40)],
            &strays[..strays.len().min(20)]
        );
        Ok(())
    }
}

impl std::fmt::Display for Losses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} lost", self.lost.len(), self.tried)
    }
}

/// Whether to run the full numbers instead of the small ones that already show a fault.
pub fn is_full() -> bool {
    std::env::var("SHUNT_TEST_FULL").is_ok_and(|value| value == "1")
}

/// Runs a test with routed and with bridged pods, under one proxy; prints the network configuration of a failure.
pub fn on_both_wirings(test: impl Fn(Plan) -> Result<()>) -> Result<()> {
    for (name, plan) in [("routed", Plan::default()), ("bridged", Plan::default().bridged())] {
        // A panic's message follows this line in the test's output.
        println!("---- with {name} pods");
        test(plan).with_context(|| format!("with {name} pods"))?;
    }
    Ok(())
}
