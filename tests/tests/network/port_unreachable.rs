//! A backend without a listener answers datagrams with port unreachable. Through every frontend, with and without
//! source translation, the client's connected socket gets the error: it quotes the packet that the client sent.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, vip},
    },
    traffic::Outcome,
};

use crate::{trio::Trio, world::at};

const NODE_PORT: u16 = 30080;
/// A port without a listener.
const DEAF: u16 = 9;

#[test]
fn reaches_the_socket_that_asked() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let deaf = Service::new("deaf", vip(10)).node_port(80, DEAF, NODE_PORT);
        vec![deaf.pods(&trio.servers.each_ref())]
    })?;
    for family in BOTH {
        let (cluster_ip, node) = (at(vip(10), family, 80), at(trio.node(0).addr(), family, NODE_PORT));
        for (from, to) in [(trio.pod(0), cluster_ip), (trio.outside(), node), (trio.pod(0), node)] {
            // Round robin: backends of this node and of both others.
            for _ in 0..6 {
                let socket = from.udp_connected(to)?;
                assert_eq!(Outcome::from_io(socket.ask()), Outcome::Refused, "{to}");
            }
        }
    }
    Ok(())
}
