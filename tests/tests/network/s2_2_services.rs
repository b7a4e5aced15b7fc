//! SERVICE-SEMANTICS 2.1 and 2.2: which Services and slices this proxy handles, and the effect on traffic when that
//! changes.

use std::net::SocketAddr;

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, Family, external, vip},
    },
};

use crate::{
    trio::{ALL, Trio, both, evenly, refused, soon, soon_unserved},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;

#[test]
fn s2_1_the_service_proxy_name_label_hands_a_service_over_and_back() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![trio.service("web", vip(10))])?;
    let labelled = trio.service("web", vip(10)).label("service.kubernetes.io/service-proxy-name: other");
    for _ in 0..2 {
        for to in both(vip(10), 80) {
            soon(&trio.pod(0), to, &ALL);
            soon(&trio.host(1), to, &ALL);
        }
        trio.apply(std::slice::from_ref(&labelled))?;
        for to in both(vip(10), 80) {
            soon_unserved(&trio.pod(0), to);
            soon_unserved(&trio.host(1), to);
        }
        trio.apply(&[trio.service("web", vip(10))])?;
    }
    Ok(())
}

#[test]
fn s2_1_slices_with_the_headless_label_are_none_of_ours() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![trio.service("web", vip(10))])?;
    let labelled = trio.service("web", vip(10)).slice_label("service.kubernetes.io/headless: \"\"");
    for _ in 0..2 {
        both(vip(10), 80).into_iter().for_each(|to| soon(&trio.pod(0), to, &ALL));
        trio.apply(std::slice::from_ref(&labelled))?;
        both(vip(10), 80).into_iter().for_each(|to| soon(&trio.pod(0), to, &[]));
        trio.apply(&[trio.service("web", vip(10))])?;
    }
    Ok(())
}

/// A change of the Node's zone changes the meaning of its hints.
#[test]
fn s2_1_a_changed_zone_label_takes_effect() -> Result<()> {
    use tests::manifest::Endpoint;
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let hinted = [("zone-a", 0), ("zone-b", 1), ("zone-b", 2)]
            .map(|(zone, server): (&str, usize)| Endpoint::pod(&trio.servers[server]).for_zones(&[zone]));
        vec![trio.empty("web", vip(10)).endpoints(hinted)]
    })?;
    let to = at(vip(10), Family::V4, 80);
    soon(&trio.pod(0), to, &["a"]);
    let nodes: Vec<_> = trio.cluster.nodes().iter().map(tests::manifest::node).collect();
    trio.cluster.apply("nodes.yaml", &nodes.join("---\n").replace("zone: zone-a", "zone: zone-b"))?;
    soon(&trio.pod(0), to, &["b", "c"]);
    soon(&trio.host(0), to, &["b", "c"]);
    Ok(())
}

#[test]
fn s2_2_external_name_is_not_served_even_with_a_cluster_ip() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        vec![trio.service("name", vip(10)).external_name("example.org"), trio.service("web", vip(11))]
    })?;
    for family in BOTH {
        evenly(&trio.pod(0), at(vip(11), family, 80), &ALL);
        soon_unserved(&trio.pod(0), at(vip(10), family, 80));
        soon_unserved(&trio.host(0), at(vip(10), family, 80));
    }
    Ok(())
}

#[test]
fn s2_2_headless_services_are_not_served() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        vec![trio.service("web", vip(10)).headless(), trio.service("other", vip(11))]
    })?;
    for family in BOTH {
        evenly(&trio.pod(0), at(vip(11), family, 80), &ALL);
        soon_unserved(&trio.pod(0), at(vip(10), family, 80));
        // Its endpoints are reachable like any pod.
        let direct = trio.servers[1].socket_addr(family, TARGET);
        assert_eq!(trio.pod(0).tcp(direct).answered().backend, "b");
    }
    Ok(())
}

/// A Service of each type, and whether its ClusterIP, its NodePort and its load balancer address are served.
fn of_type(trio: &Trio, kind: usize) -> (Service, [bool; 3]) {
    let service = Service::new("web", vip(10)).pods(&trio.servers.each_ref());
    match kind {
        0 => (service.tcp(80, TARGET).udp(80, TARGET), [true, false, false]),
        1 => (service.node_port(80, TARGET, NODE_PORT), [true, true, false]),
        2 => (service.node_port(80, TARGET, NODE_PORT).load_balancer(external(50)), [true; 3]),
        _ => (service.tcp(80, TARGET).udp(80, TARGET).external_name("example.org"), [false; 3]),
    }
}

/// From each of ClusterIP, NodePort, LoadBalancer and ExternalName to each other: twelve changes in sequence.
#[test]
fn s2_2_type_changes_in_every_direction() -> Result<()> {
    const ROUND_TRIP: [usize; 13] = [0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0];
    let trio = Trio::start(Plan::default(), &[], |trio| vec![of_type(trio, ROUND_TRIP[0]).0])?;
    for (nth, kind) in ROUND_TRIP.into_iter().enumerate() {
        let (service, served) = of_type(&trio, kind);
        trio.apply(&[service])?;
        // One family per change: two changes cover both.
        let family = BOTH[nth % 2];
        let ways: [SocketAddr; 3] = [
            at(vip(10), family, 80),
            at(trio.node(0).addr(), family, NODE_PORT),
            at(external(50), family, 80),
        ];
        for (to, served) in ways.into_iter().zip(served) {
            for from in [trio.outside(), trio.host(0)] {
                if served {
                    soon(&from, to, &ALL);
                } else {
                    soon_unserved(&from, to);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn s2_2_families_are_independent() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let both = trio.service("v4-only-endpoints", vip(12));
        let halves = [both.document(), both.slice(Family::V4, "")].join("---\n");
        trio.cluster.apply("halves.yaml", &halves).expect("the nodes' directories are there");
        vec![trio.service("v4", vip(10)).only(Family::V4), trio.service("v6", vip(11)).only(Family::V6)]
    })?;
    for from in [trio.pod(0), trio.host(0)] {
        evenly(&from, at(vip(10), Family::V4, 80), &ALL);
        evenly(&from, at(vip(11), Family::V6, 80), &ALL);
        soon_unserved(&from, at(vip(10), Family::V6, 80));
        soon_unserved(&from, at(vip(11), Family::V4, 80));
        // A ClusterIP of a family without endpoints is rejected.
        evenly(&from, at(vip(12), Family::V4, 80), &ALL);
        refused("v6 of a Service with v4 endpoints", &from, at(vip(12), Family::V6, 80));
    }
    Ok(())
}

/// A Service is deleted and created again, with the same and with another ClusterIP.
#[test]
fn s2_2_a_service_comes_and_goes() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![trio.service("web", vip(10))])?;
    for last in [10, 11, 10] {
        trio.apply(&[trio.service("web", vip(last))])?;
        for to in both(vip(last), 80) {
            soon(&trio.pod(0), to, &ALL);
            soon(&trio.host(1), to, &ALL);
        }
        trio.cluster.remove("services.yaml")?;
        for to in both(vip(last), 80) {
            soon_unserved(&trio.pod(0), to);
            soon_unserved(&trio.host(1), to);
        }
    }
    Ok(())
}
