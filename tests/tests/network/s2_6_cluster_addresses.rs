//! SERVICE-SEMANTICS 2.6, "nftables extra", and deviation 3: packets to other ports of a ClusterIP are rejected,
//! packets to unassigned addresses of a ServiceCIDR are dropped.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, external, vip},
    },
};

use crate::{
    trio::{ALL, Trio, both, evenly, on_every_wiring, refused, silent, soon},
    world::at,
};

const SERVED: u8 = 10;
const INGRESS_IP: u8 = 50;

#[test]
fn s2_6_other_port_of_a_cluster_ip_is_refused() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| {
            vec![trio.service("web", vip(SERVED)), Service::new("names", vip(11)).udp(53, 8080)]
        })?;
        for (other, node) in
            both(vip(SERVED), 81).into_iter().chain(both(vip(SERVED), 8080)).zip([0, 1].into_iter().cycle())
        {
            for (who, from) in trio.everyone(node) {
                refused(who, &from, other);
            }
        }
        for family in BOTH {
            // The port belongs to the other protocol.
            let attempt = trio.pod(0).tcp(at(vip(11), family, 53));
            assert!(attempt.outcome == tests::traffic::Outcome::Refused, "{attempt}");
            evenly(&trio.pod(0), at(vip(SERVED), family, 80), &ALL);
        }
        Ok(())
    })
}

#[test]
fn s2_6_other_port_of_a_load_balancers_address_is_not_touched() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        vec![trio.service("web", vip(SERVED)).load_balancer(external(INGRESS_IP))]
    })?;
    let node = trio.node(0);
    let untouched = both(external(INGRESS_IP), 81);
    silent(&untouched.map(|to| (trio.pod(0), to)));
    assert_eq!(node.counter("no_service_port")?, 0);
    Ok(())
}

#[test]
fn s2_6_unallocated_address_of_a_service_cidr_is_dropped() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![trio.service("web", vip(SERVED))])?;
    let range = |cidrs: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata:\n  name: kubernetes\nspec:\n  cidrs: [{cidrs}]\n"
        )
    };
    let (v4, v6) = (vip(0).v4, vip(0).v6);
    trio.cluster.apply("range.yaml", &range(&format!("{v4}/24, \"{v6}/120\"")))?;
    let free = both(vip(99), 80);
    let dropped = || trio.node(0).counter("unallocated");
    let count = |before: u64| dropped().is_ok_and(|now| now > before);
    tests::net::cluster::eventually(crate::trio::SOON, || {
        let _probe = trio.host(0).patience(std::time::Duration::from_millis(50)).udp(free[0]);
        count(0)
    })?;
    let everyone: Vec<_> = free.iter().flat_map(|to| trio.everyone(0).map(|(_, from)| (from, *to))).collect();
    let before = dropped()?;
    silent(&everyone);
    assert!(count(before), "dropped by us, not lost somewhere else");
    // An unassigned address gets a Service, and an assigned one keeps its Service.
    trio.apply(&[trio.service("web", vip(SERVED)), trio.service("late", vip(99))])?;
    for family in BOTH {
        soon(&trio.pod(0), at(vip(99), family, 80), &ALL);
        evenly(&trio.host(0), at(vip(SERVED), family, 80), &ALL);
    }
    Ok(())
}
