//! A pod: a namespace on a node's pod network, and its servers.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::Result;

use super::{
    Netns, Place,
    plan::{Dual, Family},
};
use crate::traffic::Server;

/// A pod. Clones refer to the same pod.
#[derive(Clone, Debug)]
pub struct Pod(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    node: usize,
    addr: Dual,
    device: String,
    place: Place,
    servers: Mutex<Vec<Server>>,
}

impl Pod {
    pub(super) fn new(name: &str, node: usize, addr: Dual, device: String, netns: Arc<Netns>) -> Self {
        let (name, place, servers) = (name.to_owned(), Place::inside(netns), Mutex::default());
        Self(Arc::new(Inner { name, node, addr, device, place, servers }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Index of the pod's node.
    pub fn node(&self) -> usize {
        self.0.node
    }

    pub fn addr(&self) -> Dual {
        self.0.addr
    }

    pub fn socket_addr(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.0.addr.of(family), port)
    }

    /// The node's end of the pod's cable.
    pub fn device(&self) -> &str {
        &self.0.device
    }

    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Starts a TCP server on `port`, both families, that answers with the pod's name.
    pub fn serve_tcp(&self, port: u16) -> Result<()> {
        let server = Server::tcp(&self.0.place, SocketAddr::new([0u16; 8].into(), port), &self.0.name)?;
        self.0.servers.lock().expect("no holder panics").push(server);
        Ok(())
    }

    /// Starts a UDP server on `port`, both families, that answers with the pod's name.
    pub fn serve_udp(&self, port: u16) -> Result<()> {
        let server = Server::udp(&self.0.place, SocketAddr::new([0u16; 8].into(), port), &self.0.name)?;
        self.0.servers.lock().expect("no holder panics").push(server);
        Ok(())
    }

    /// Replies to other flows that its servers received.
    pub fn strays(&self) -> Vec<String> {
        let servers = self.0.servers.lock().expect("no holder panics");
        servers.iter().flat_map(Server::strays).collect()
    }

    /// Stops all servers; open connections stay open.
    pub fn stop_serving(&self) {
        self.0.servers.lock().expect("no holder panics").clear();
    }
}
