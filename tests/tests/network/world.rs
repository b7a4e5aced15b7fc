//! The small cluster of most tests: a server on each of two nodes, a client pod on each, one Service.

use std::net::SocketAddr;

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Cluster, Plan, Pod,
        plan::{Dual, Family, node_addr, pod_addr, vip},
    },
    traffic::Client,
};

/// The Service of a [`World`]: 80 -> 8080 at [`WEB`], on nodes at [`NODE_PORT`], TCP and UDP, IPv4 and IPv6.
pub const PORT: u16 = 80;
pub const TARGET: u16 = 8080;
pub const NODE_PORT: u16 = 30080;

/// Two nodes, two servers, two clients.
pub struct World {
    /// Backend on node 0, the node of `client`.
    pub near: Pod,
    /// Backend on node 1.
    pub far: Pod,
    pub client: Pod,
    /// A client on node 1.
    pub other: Pod,
    pub cluster: Cluster,
}

impl World {
    /// Builds the cluster, applies the Services that `services` returns and starts shunt on both nodes.
    pub fn start(plan: Plan, services: impl FnOnce(&Self) -> String) -> Result<Self> {
        let world = Self::without_shunt(plan)?;
        world.cluster.apply("services.yaml", &services(&world))?;
        world.cluster.start(&[])?;
        Ok(world)
    }

    pub fn without_shunt(plan: Plan) -> Result<Self> {
        let cluster = Cluster::new(plan)?;
        Ok(Self {
            near: cluster.add_server(0, "near", TARGET)?,
            far: cluster.add_server(1, "far", TARGET)?,
            client: cluster.add_pod(0, "client")?,
            other: cluster.add_pod(1, "other")?,
            cluster,
        })
    }

    /// The Service `web` over both servers.
    pub fn web(&self) -> Service {
        Service::new("web", web_addr()).node_port(PORT, TARGET, NODE_PORT).pods(&[&self.near, &self.far])
    }

    /// A client in the pod `client`.
    pub fn pod(&self) -> Client {
        Client::at(self.client.place())
    }

    pub fn outside(&self) -> Client {
        Client::at(self.cluster.outside())
    }

    /// A process of node `index` itself.
    pub fn host(&self, index: usize) -> Client {
        Client::at(self.cluster.node(index).place())
    }

    pub fn node_port(&self, index: usize, family: Family) -> SocketAddr {
        self.cluster.node(index).socket_addr(family, NODE_PORT)
    }
}

/// `web`'s ClusterIPs.
pub fn web_addr() -> Dual {
    vip(10)
}

/// `web`'s ClusterIP and port.
pub fn web(family: Family) -> SocketAddr {
    at(web_addr(), family, PORT)
}

pub fn at(addr: Dual, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(addr.of(family), port)
}

/// Whether `peer` is one of node `index`'s own addresses: the underlay's, the tunnel's or the bridge's.
pub fn is_of_node(peer: SocketAddr, index: usize) -> bool {
    [node_addr(index), pod_addr(index, 0), pod_addr(index, 1)].iter().any(|addr| addr.contains(peer.ip()))
}
