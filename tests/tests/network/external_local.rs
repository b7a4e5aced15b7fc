//! externalTrafficPolicy Local: only local backends, the client's address is kept, packets are dropped silently if
//! there is no local backend. The node's own pods and processes are exempt.

use anyhow::Result;
use tests::{
    net::{
        Lane, Plan,
        plan::{BOTH, OUTSIDE},
    },
    traffic::Client,
};

use crate::world::{World, web};

fn local_only(plan: Plan) -> Result<()> {
    let world = World::start(plan, |world| {
        let service = tests::manifest::Service::new("web", crate::world::web_addr());
        service.node_port(80, 8080, 30080).external_traffic_local().pods(&[&world.far]).yaml()
    })?;
    for family in BOTH {
        let (without, with) = (world.node_port(0, family), world.node_port(1, family));
        for attempt in [world.outside().tcp(with), world.outside().udp(with)] {
            let answer = attempt.answered();
            assert_eq!((answer.backend.as_str(), answer.peer.ip()), ("far", OUTSIDE.of(family)), "{answer}");
        }
        world.outside().tcp(without).timed_out();
        world.outside().udp(without).timed_out();
        // A pod of the other node is external to this node only if its own node forwards its packets here.
        for from in [world.pod(), Client::at(world.other.place())] {
            from.tcp(with).answered();
            from.udp(with).answered();
            // The policy does not apply to ClusterIPs.
            from.tcp(web(family)).answered();
        }
        // Short circuits: the node's own pods and processes reach backends on other nodes.
        for attempt in [world.pod().tcp(without), world.pod().udp(without)] {
            assert_eq!(attempt.answered().backend, "far");
        }
        for attempt in [world.host(0).tcp(without), world.host(0).udp(without)] {
            assert_eq!(attempt.answered().backend, "far");
        }
    }
    Ok(())
}

#[test]
fn in_the_native_xdp_lane() -> Result<()> {
    local_only(Plan::default().xdp(Lane::Native))
}

#[test]
fn in_the_generic_xdp_lane() -> Result<()> {
    local_only(Plan::default().xdp(Lane::Generic))
}

#[test]
fn routed_pods() -> Result<()> {
    local_only(Plan::default())
}

#[test]
fn bridged_pods() -> Result<()> {
    local_only(Plan::default().bridged())
}

#[test]
fn over_vxlan() -> Result<()> {
    local_only(Plan::default().vxlan())
}

#[test]
fn under_cni_rules() -> Result<()> {
    local_only(Plan::default().with_cni_rules())
}
