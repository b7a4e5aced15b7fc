//! SERVICE-SEMANTICS 2.7: the four detectLocal modes, which determine the pods of this node. Two decisions depend on
//! them: the short circuit of externalTrafficPolicy Local, and source translation.

use anyhow::Result;
use tests::{
    manifest::Service,
    net::{
        Plan,
        plan::{BOTH, Family, PODS_V4, PODS_V6, vip},
    },
};

use crate::{
    trio::{ALL, Trio, evenly, silent},
    world::{TARGET, at, is_of_node},
};

const CLUSTER: u16 = 30080;
const LOCAL: u16 = 30081;

/// One Service over all backends, one of policy Local whose backends are not on node 0.
fn start(plan: Plan, flags: &[&str]) -> Result<Trio> {
    Trio::start(plan, flags, services)
}

fn services(trio: &Trio) -> Vec<Service> {
    let cluster =
        Service::new("cluster", vip(10)).node_port(80, TARGET, CLUSTER).pods(&trio.servers.each_ref());
    let local = Service::new("local", vip(11)).node_port(80, TARGET, LOCAL).external_traffic_local();
    vec![cluster, local.pods(&[&trio.servers[1], &trio.servers[2]])]
}

/// Properties of every mode.
fn locals_are_detected(trio: &Trio, family: Family) -> Result<()> {
    let own = trio.clients[0].addr().of(family);
    let (cluster, local) = (at(trio.node(0).addr(), family, CLUSTER), at(trio.node(0).addr(), family, LOCAL));
    for answer in evenly(&trio.pod(0), at(vip(10), family, 80), &ALL) {
        assert_eq!(answer.peer.ip(), own, "a pod -> ClusterIP: {answer}");
    }
    for answer in evenly(&trio.pod(0), local, &["b", "c"]) {
        assert_eq!(answer.peer.ip(), own, "a pod's short circuit: {answer}");
    }
    evenly(&trio.host(0), local, &["b", "c"]);
    evenly(&trio.pod(0), cluster, &ALL);
    for to in [cluster, at(vip(10), family, 80)] {
        for answer in evenly(&trio.outside(), to, &ALL) {
            assert!(answer.backend == "a" || is_of_node(answer.peer, 0), "outside -> {to}: {answer}");
        }
    }
    // A pod of another node: every backend's reply finds the way back through this node.
    evenly(&trio.pod(1), cluster, &ALL);
    Ok(())
}

/// Pods of other nodes are not local in a mode that knows this node's pods.
fn strangers_are_not(trio: &Trio) {
    let strangers = BOTH.map(|family| at(trio.node(0).addr(), family, LOCAL));
    let attempts: Vec<_> =
        strangers.iter().flat_map(|to| [(trio.outside(), *to), (trio.pod(1), *to)]).collect();
    silent(&attempts);
}

#[test]
fn s2_7_detect_local_by_cluster_cidr() -> Result<()> {
    let ranges = format!("{PODS_V4},{PODS_V6}");
    for flags in [
        ["--cluster-cidr", &ranges].as_slice(),
        &["--cluster-cidr", &ranges, "--detect-local-mode", "ClusterCIDR"],
    ] {
        let trio = start(Plan::default(), flags)?;
        for family in BOTH {
            locals_are_detected(&trio, family)?;
            // Every pod of the cluster is local in this mode, and the reply must still find its way back.
            evenly(&trio.pod(1), at(trio.node(0).addr(), family, LOCAL), &["b", "c"]);
        }
        silent(&BOTH.map(|family| (trio.outside(), at(trio.node(0).addr(), family, LOCAL))));
    }
    Ok(())
}

#[test]
fn s2_7_detect_local_by_node_cidr() -> Result<()> {
    let trio = start(Plan::default(), &["--detect-local-mode", "NodeCIDR"])?;
    for family in BOTH {
        locals_are_detected(&trio, family)?;
    }
    strangers_are_not(&trio);
    Ok(())
}

#[test]
fn s2_7_detect_local_by_bridge() -> Result<()> {
    let flags = ["--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "cni0"];
    let trio = start(Plan::default().bridged(), &flags)?;
    for family in BOTH {
        locals_are_detected(&trio, family)?;
    }
    strangers_are_not(&trio);
    Ok(())
}

#[test]
fn s2_7_detect_local_by_name_prefix() -> Result<()> {
    let flags = ["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "veth"];
    for plan in [Plan::default(), Plan::default().bridged()] {
        let trio = start(plan, &flags)?;
        for family in BOTH {
            locals_are_detected(&trio, family)?;
        }
        strangers_are_not(&trio);
    }
    Ok(())
}

/// A dual-stack node whose Node object has a pod range of one family only: in the other, pods are detected by device.
#[test]
fn s2_7_detect_local_of_a_family_without_a_pod_range() -> Result<()> {
    for flags in [[].as_slice(), &["--detect-local-mode", "NodeCIDR"]] {
        for keep in BOTH {
            let trio = Trio::without_shunt(Plan::default())?;
            let nodes: Vec<String> = trio
                .cluster
                .nodes()
                .iter()
                .map(|node| only_range(&tests::manifest::node(node), keep))
                .collect();
            trio.cluster.apply("nodes.yaml", &nodes.join("---\n"))?;
            trio.apply(&services(&trio))?;
            trio.cluster.start(flags)?;
            for family in BOTH {
                locals_are_detected(&trio, family)?;
            }
            strangers_are_not(&trio);
        }
    }
    Ok(())
}

/// The Node without the pod range of the other family.
fn only_range(node: &str, keep: Family) -> String {
    let lines = node.lines().filter(|line| !line.trim_start().starts_with("podCIDR:"));
    let lines = lines.map(|line| match line.trim_start().strip_prefix("podCIDRs: [") {
        None => format!("{line}\n"),
        Some(ranges) => {
            let mut ranges = ranges.trim_end_matches(']').split(", ");
            let kept = ranges.find(|range| range.contains("::") == (keep == Family::V6));
            format!("  podCIDRs: [{}]\n", kept.expect("a range of each family"))
        }
    });
    lines.collect()
}
