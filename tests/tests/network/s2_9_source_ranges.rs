//! SERVICE-SEMANTICS 2.9 and the row of 2.3: loadBalancerSourceRanges. Also the source ranges of NodePorts.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use tests::{
    manifest::Service,
    net::{
        Lane, Plan,
        cluster::eventually,
        plan::{BOTH, Dual, Family, OUTSIDE, external, node_addr, pod_addr, vip},
    },
    traffic::{Attempt, Client, Outcome},
};

use crate::{
    trio::{ALL, PROTOCOLS, SOON, Trio, both, evenly, on_every_wiring, refused, silent},
    world::{TARGET, at},
};

/// Ranges that contain no client of these clusters.
const ELSEWHERE: &str = "192.0.2.0/24, \"2001:db8:ffff::/48\"";

/// `web-N` at load balancer address N, which allows these ranges.
fn ranged(n: u8, ranges: &str) -> Service {
    Service::new(&format!("web-{n}"), vip(n))
        .tcp(80, TARGET)
        .udp(80, TARGET)
        .load_balancer(external(n))
        .spec(&format!("loadBalancerSourceRanges: [{ranges}]"))
}

/// One address of each family as ranges.
fn only(addr: Dual) -> String {
    format!("{}/32, \"{}/128\"", addr.v4, addr.v6)
}

fn src_range(trio: &Trio) -> Result<u64> {
    let counters = trio.node(0).shunt_json(&["counter", "list"])?;
    let rows = counters.as_array().context("a list")?;
    Ok(rows.iter().filter(|row| row["name"] == "src_range").filter_map(|row| row["value"].as_u64()).sum())
}

#[track_caller]
fn answered(from: &Client, to: std::net::SocketAddr) {
    PROTOCOLS.iter().for_each(|protocol| drop(protocol(from, to).answered()));
}

#[test]
fn s2_9_who_is_in_a_range_comes_in_and_nobody_else() -> Result<()> {
    on_every_wiring(|plan| {
        let masquerades = plan.masquerades();
        let pods = format!("{}/24, \"{}/64\"", pod_addr(0, 0).v4, pod_addr(0, 0).v6);
        let trio = Trio::start(plan, &[], |trio| {
            let all = trio.servers.each_ref();
            vec![
                ranged(51, &only(OUTSIDE)).pods(&all),
                ranged(52, &pods).pods(&all),
                ranged(53, &only(node_addr(0))).pods(&all),
                ranged(54, ELSEWHERE).pods(&all),
            ]
        })?;
        let before = src_range(&trio)?;
        let everyone = trio.everyone(0);
        let mut silence = Vec::new();
        for (n, let_in) in [(51, Some("outside")), (52, Some("a pod")), (53, Some("the node")), (54, None)] {
            for to in both(external(n), 80) {
                for (who, from) in &everyone {
                    if Some(*who) == let_in {
                        evenly(from, to, &ALL);
                    } else {
                        silence.push((from.clone(), to));
                    }
                }
            }
        }
        // An IPv4 destination from an IPv6 socket.
        evenly(&trio.host(0).v4_mapped(), at(external(53), Family::V4, 80), &ALL);
        silence.push((trio.host(0).v4_mapped(), at(external(51), Family::V4, 80)));
        silent(&silence);
        let dropped = src_range(&trio)? - before;
        assert!(dropped >= 2 * silence.len() as u64, "{dropped} packets for {} clients", silence.len());
        // The ranges on this node do not apply to a pod of another node: its own node checks the pod's own address.
        if !masquerades {
            silent(&both(external(52), 80).map(|to| (trio.pod(1), to)));
        }
        Ok(())
    })
}

/// The NodePort, the ClusterIP and externalIPs of the same Service are unrestricted.
#[test]
fn s2_9_only_the_load_balancers_addresses_are_restricted() -> Result<()> {
    let (node_port, other) = (30051, external(61));
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let service = Service::new("web", vip(51))
            .node_port(80, TARGET, node_port)
            .load_balancer(external(51))
            .external_ips(other)
            .spec(&format!("loadBalancerSourceRanges: [{ELSEWHERE}]"));
        // An address that is both a load balancer address and an externalIP counts as the load balancer's.
        let twice = ranged(52, ELSEWHERE).external_ips(external(52));
        vec![service.pods(&trio.servers.each_ref()), twice.pods(&trio.servers.each_ref())]
    })?;
    for family in BOTH {
        let open =
            [at(vip(51), family, 80), at(trio.node(0).addr(), family, node_port), at(other, family, 80)];
        for (to, (_, from)) in open.into_iter().flat_map(|to| trio.everyone(0).map(|who| (to, who))) {
            answered(&from, to);
        }
    }
    let closed = [51, 52].into_iter().flat_map(|n| both(external(n), 80));
    let silence: Vec<_> = closed.flat_map(|to| trio.everyone(0).map(|(_, from)| (from, to))).collect();
    silent(&silence);
    Ok(())
}

#[test]
fn s2_3_each_family_has_its_own_ranges_and_all_of_them_is_none() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let all = trio.servers.each_ref();
        vec![
            // Only of the other family.
            ranged(51, "192.0.2.0/24").pods(&all),
            ranged(52, "\"2001:db8:ffff::/48\"").pods(&all),
            // /0 lifts the other entries of its family.
            ranged(53, &format!("{ELSEWHERE}, 0.0.0.0/0")).pods(&all),
            ranged(54, &format!("{ELSEWHERE}, \"::/0\"")).pods(&all),
            // Whitespace around an entry.
            ranged(55, &format!("\"  {}/32\\t\", \" {}/128 \"", OUTSIDE.v4, OUTSIDE.v6)).pods(&all),
            // An invalid entry allows no client, and does not affect clients that another entry allows.
            ranged(56, "\"192.168.8.100\"").pods(&all),
            ranged(57, &format!("\"300.0.0.0/8\", {}", only(OUTSIDE))).pods(&all),
        ]
    })?;
    let is_open = |n: u8, family: Family| match n {
        51 | 54 | 56 => family == Family::V6,
        52 | 53 => family == Family::V4,
        _ => true,
    };
    let mut silence = Vec::new();
    for n in 51..=57 {
        for family in BOTH {
            let to = at(external(n), family, 80);
            if is_open(n, family) {
                answered(&trio.outside(), to);
            } else {
                silence.extend([trio.outside(), trio.pod(0), trio.host(0)].map(|from| (from, to)));
            }
        }
    }
    // Services with valid ranges allow no other client either.
    silence.extend([55, 57].into_iter().flat_map(|n| both(external(n), 80)).map(|to| (trio.pod(0), to)));
    silent(&silence);
    let log = trio.node(0).shunt_log();
    for word in ["\"192.168.8.100\" is not an address range", "\"300.0.0.0/8\" is not an address range"] {
        assert!(log.contains(word), "no {word} in:\n{log}");
    }
    Ok(())
}

/// Ranges are checked first, so a rejected client cannot probe for endpoints.
#[test]
fn s2_9_ranges_come_before_the_refusal() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![ranged(51, &only(OUTSIDE))])?;
    for to in both(external(51), 80) {
        refused("outside", &trio.outside(), to);
    }
    let silence = both(external(51), 80).map(|to| [(trio.pod(0), to), (trio.host(0), to)]);
    silent(&silence.concat());
    Ok(())
}

/// Whether new flows are answered, as soon as the change is applied.
fn soon_answers(from: &Client, to: std::net::SocketAddr, want: bool) -> Result<()> {
    let quick = from.clone().patience(Duration::from_millis(250));
    let outcome = |attempt: Attempt| matches!(attempt.outcome, Outcome::Answered(_));
    eventually(SOON, || PROTOCOLS.iter().all(|protocol| outcome(protocol(&quick, to)) == want))
        .with_context(|| format!("{to}: {}", if want { "let in" } else { "kept out" }))?;
    Ok(())
}

#[test]
fn s2_9_a_change_concerns_new_flows_at_once_and_open_ones_never() -> Result<()> {
    let trio = Trio::without_shunt(Plan::default())?;
    let ours = [OUTSIDE, node_addr(0), trio.clients[0].addr()].map(only).join(", ");
    let all = trio.servers.each_ref();
    trio.apply(&[ranged(51, &ours).pods(&all)])?;
    trio.cluster.start(&[])?;
    let everyone = trio.everyone(0);
    let streams: Vec<_> =
        everyone.iter().flat_map(|(_, from)| both(external(51), 80).map(|to| from.stream(to))).collect();
    let sockets = everyone
        .iter()
        .flat_map(|(_, from)| both(external(51), 80).map(|to| from.udp_connected(to)))
        .collect::<std::io::Result<Vec<_>>>()?;
    let held: Vec<_> = streams.iter().map(|stream| stream.steady(2)).collect();
    let asked = sockets.iter().map(|socket| socket.ask()).collect::<std::io::Result<Vec<_>>>()?;
    for ranges in [ELSEWHERE, &ours, "0.0.0.0/0, \"::/0\"", ELSEWHERE, &ours] {
        trio.apply(&[ranged(51, ranges).pods(&all)])?;
        for to in both(external(51), 80) {
            soon_answers(&trio.outside(), to, ranges != ELSEWHERE)?;
            soon_answers(&trio.pod(0), to, ranges != ELSEWHERE)?;
            soon_answers(&trio.host(0), to, ranges != ELSEWHERE)?;
        }
        for (stream, before) in streams.iter().zip(&held) {
            assert_eq!(stream.steady(2), *before, "with {ranges}");
        }
        for (socket, before) in sockets.iter().zip(&asked) {
            assert_eq!(socket.ask()?, *before, "with {ranges}");
        }
    }
    Ok(())
}

/// With socket hooks for all processes, a pod is still checked by its own address.
#[test]
fn s2_9_pods_whose_sockets_are_translated() -> Result<()> {
    let pods = format!("{}/24, \"{}/64\"", pod_addr(0, 0).v4, pod_addr(0, 0).v6);
    let trio = Trio::start(Plan::default(), &["--socket-lb", "all"], |trio| {
        let all = trio.servers.each_ref();
        vec![ranged(51, &pods).pods(&all), ranged(52, &only(node_addr(0))).pods(&all)]
    })?;
    let pod = Client::at(&trio.node(0).process_of(&trio.clients[0])?);
    for to in both(external(51), 80) {
        evenly(&pod, to, &ALL);
        silent(&[(trio.host(0), to)]);
        pod.udp_unconnected(to)?.ask()?;
    }
    for to in both(external(52), 80) {
        evenly(&trio.host(0), to, &ALL);
        silent(&[(pod.clone(), to)]);
        evenly(&pod, at(vip(52), if to.is_ipv4() { Family::V4 } else { Family::V6 }, 80), &ALL);
    }
    Ok(())
}

/// The node's own bound sockets are checked by their bound address.
#[test]
fn s2_9_the_nodes_bound_sockets() -> Result<()> {
    let trio = Trio::start(Plan::default().bridged(), &[], |trio| {
        vec![ranged(51, &only(pod_addr(0, 1))).pods(&trio.servers.each_ref()[..1])]
    })?;
    for family in BOTH {
        let (to, gateway) = (at(external(51), family, 80), pod_addr(0, 1).of(family));
        let bound = trio.host(0).source(gateway);
        answered(&bound, to);
        let unconnected = bound.udp_unconnected(to)?;
        unconnected.ask()?;
        silent(&[(trio.host(0), to), (trio.host(0).source(node_addr(0).of(family)), to)]);
        let socket = trio.host(0).patience(Duration::from_millis(300)).udp_unconnected(to)?;
        assert!(socket.ask().is_err(), "a datagram from the node's own address was answered");
    }
    Ok(())
}

/// If the load balancer address is also the node's, the node's processes connect from that very address: it is allowed
/// if the node is.
#[test]
fn s2_9_the_address_itself_is_let_in_with_the_node() -> Result<()> {
    let trio = Trio::without_shunt(Plan::default())?;
    let here = [&trio.servers[0]];
    trio.apply(&[ranged(51, &only(node_addr(0))).pods(&here), ranged(52, &only(OUTSIDE)).pods(&here)])?;
    let lines: String = [51, 52]
        .map(external)
        .map(|addr| format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n", addr.v4, addr.v6))
        .concat();
    trio.node(0).netns().ip(&lines)?;
    trio.cluster.start(&[])?;
    for family in BOTH {
        let from_itself = |n: u8| {
            let vip: IpAddr = external(n).of(family);
            (trio.host(0).source(vip), at(external(n), family, 80))
        };
        let (from, to) = from_itself(51);
        answered(&from, to);
        let (from, to) = from_itself(52);
        for protocol in PROTOCOLS {
            let attempt = protocol(&from.clone().patience(Duration::from_millis(300)), to);
            assert!(!matches!(attempt.outcome, Outcome::Answered(_)), "{attempt}");
        }
    }
    // The list shows the ranges: `service list` gives the clients that each address allows.
    let services = trio.node(0).shunt_json(&["service", "list"])?;
    let shown = |address: String| {
        let mut rows = services.as_array().into_iter().flatten();
        let row = rows.find(|row| row["address"] == *address && row["protocol"] == "TCP");
        row.map(|row| row["source_ranges"].clone())
    };
    let (v4, node) = (external(51).v4, node_addr(0).v4);
    assert_eq!(shown(v4.to_string()), Some(serde_json::json!([format!("{node}/32"), format!("{v4}/32")])));
    assert_eq!(shown(vip(51).v4.to_string()), Some(serde_json::Value::Null));
    let wide = trio.node(0).shunt_command(&["service", "list", "-o", "wide"])?;
    assert!(wide.contains(&format!("{node}/32,{v4}/32")), "{wide}");
    Ok(())
}

/// Source ranges of NodePorts, by the flag and by the annotation: each family has its own, and no other address of the
/// Service is restricted.
fn node_ports_are_restricted(plan: Plan) -> Result<()> {
    const OPEN: u16 = 30061;
    const BY_FLAG: u16 = 30062;
    const BY_ANNOTATION: u16 = 30063;
    let flag = format!("{}/32,{}/128", node_addr(0).v4, OUTSIDE.v6);
    let trio = Trio::start(plan, &["--nodeport-source-ranges", &flag], |trio| {
        let ranges = |text: String| format!("shunt.dev/nodeport-source-ranges: \"{text}\"");
        let service =
            |n, node_port| Service::new(&format!("web-{n}"), vip(n)).node_port(80, TARGET, node_port);
        let pod = trio.clients[0].addr();
        vec![
            service(61, OPEN).annotation(&ranges("0.0.0.0/0,::/0".to_owned())),
            service(62, BY_FLAG).load_balancer(external(62)),
            service(63, BY_ANNOTATION).annotation(&ranges(format!("{}/32, {}/32", OUTSIDE.v4, pod.v4))),
        ]
        .into_iter()
        .map(|service| service.pods(&trio.servers.each_ref()))
        .collect()
    })?;
    let mut silence = Vec::new();
    for family in BOTH {
        let v4 = family == Family::V4;
        for (port, want) in [
            (OPEN, [true, true, true]),
            (BY_FLAG, [false, v4, !v4]),
            // It has no IPv6 range: the flag's ranges apply.
            (BY_ANNOTATION, [v4, false, true]),
        ] {
            let to = at(trio.node(0).addr(), family, port);
            for ((who, from), is_open) in trio.everyone(0).into_iter().zip(want) {
                if is_open {
                    answered(&from, to);
                } else if who == "the node" {
                    // The node's own NodePort: the system call fails.
                    for protocol in PROTOCOLS {
                        protocol(&from, to).refused();
                    }
                } else {
                    silence.push((from, to));
                }
            }
        }
        for (_, from) in trio.everyone(0) {
            for to in [at(vip(62), family, 80), at(external(62), family, 80)] {
                answered(&from, to);
            }
        }
    }
    let before = src_range(&trio)?;
    silent(&silence);
    assert!(src_range(&trio)? - before >= silence.len() as u64, "fewer drops than clients");
    let services = trio.node(0).shunt_json(&["service", "list"])?;
    let shown = |name: &str, kind: &str, family: Family| {
        let mut rows = services.as_array().into_iter().flatten();
        let is_v4 = |row: &serde_json::Value| !row["address"].as_str().unwrap_or_default().contains(':');
        let row = rows
            .find(|row| row["name"] == name && row["kind"] == kind && is_v4(row) == (family == Family::V4));
        row.map(|row| row["source_ranges"].clone())
    };
    let only = |range: String| Some(serde_json::json!([range]));
    assert_eq!(shown("web-62", "NodePort", Family::V4), only(format!("{}/32", node_addr(0).v4)));
    assert_eq!(shown("web-62", "NodePort", Family::V6), only(format!("{}/128", OUTSIDE.v6)));
    assert_eq!(shown("web-62", "LoadBalancerIP", Family::V4), Some(serde_json::Value::Null));
    assert_eq!(shown("web-61", "NodePort", Family::V4), Some(serde_json::Value::Null));
    let (client, to) = (trio.clients[0].addr().v4, at(trio.node(0).addr(), Family::V4, BY_FLAG));
    let told = trio.node(0).shunt_command(&["explain", &format!("{client}:4000"), &to.to_string()])?;
    assert!(told.contains(&format!("the NodePort's source ranges do not contain {client}")), "{told}");
    Ok(())
}

#[test]
fn s2_9_node_ports_of_a_node_with_source_ranges() -> Result<()> {
    on_every_wiring(node_ports_are_restricted)
}

#[test]
fn s2_9_node_ports_with_source_ranges_in_the_xdp_lane() -> Result<()> {
    node_ports_are_restricted(Plan::default().xdp(Lane::Generic))
}
