//! SERVICE-SEMANTICS 2.3: Service addresses that already belong to a node or an endpoint.

use anyhow::Result;
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan,
        plan::{BOTH, external, vip},
    },
};

use crate::{
    trio::{ALL, Trio, evenly, soon_unserved},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;
/// Port of an API server on the first two nodes.
const API: u16 = 6443;

#[test]
fn s2_3_external_ips_may_be_turned_off() -> Result<()> {
    for (flag, is_served) in [("true", true), ("false", false)] {
        let trio = Trio::start(Plan::default(), &["--allow-service-external-ips", flag], |trio| {
            let web = trio.service("web", vip(10)).external_ips(external(20));
            vec![web.load_balancer(external(21))]
        })?;
        [20, 21].into_iter().try_for_each(|last| trio.route_outside(external(last), 0))?;
        for family in BOTH {
            for (_, from) in trio.everyone(0) {
                evenly(&from, at(external(21), family, 80), &ALL);
                let to = at(external(20), family, 80);
                if is_served {
                    evenly(&from, to, &ALL);
                } else {
                    soon_unserved(&from, to);
                }
            }
            evenly(&trio.pod(0), at(vip(10), family, 80), &ALL);
        }
    }
    Ok(())
}

/// As in k3s, whose load balancers are the nodes; and as any user with permission to set an externalIP can cause.
#[test]
fn s2_3_a_nodes_address_may_be_a_services_and_an_endpoints_too() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let web = trio.service("web", vip(10)).load_balancer(trio.node(0).addr());
        let named = trio.service("named", vip(11)).external_ips(trio.servers[2].addr());
        let node_port =
            Service::new("other", vip(12)).node_port(80, TARGET, NODE_PORT).pods(&trio.servers.each_ref());
        let api = Service::new("kubernetes", vip(1)).tcp(443, API);
        vec![web, named, node_port, api.endpoints([0, 1].map(|node| Endpoint::at(trio.node(node).addr())))]
    })?;
    for family in BOTH {
        for node in [0, 1] {
            trio.node(node).serve_tcp(family, API, trio.node(node).name())?;
        }
        for (who, from) in trio.everyone(0) {
            evenly(&from, at(trio.node(0).addr(), family, 80), &ALL);
            evenly(&from, at(trio.node(0).addr(), family, NODE_PORT), &ALL);
            if who != "outside" {
                // Both endpoints stay in the set although one's address is a load balancer address.
                for _ in 0..2 {
                    let answers = [0, 1].map(|_| from.tcp(at(vip(1), family, 443)).answered().backend);
                    assert!(
                        answers.contains(&"node-1".into()) && answers.contains(&"node-2".into()),
                        "{who}"
                    );
                }
            }
            // The third pod's address is an externalIP, and still an endpoint like the others.
            if who == "a pod" {
                evenly(&from, at(vip(10), family, 80), &ALL);
            }
        }
        // Ports without a Service are the node's own.
        trio.outside().tcp(at(trio.node(0).addr(), family, 81)).refused();
        trio.node(0).serve_tcp(family, 81, "own")?;
        assert_eq!(trio.outside().tcp(at(trio.node(0).addr(), family, 81)).answered().backend, "own");
    }
    Ok(())
}
