//! Compares `shunt explain` with real traffic: each case is first explained, then tried with the same source port, by a
//! real socket or, where no socket may be opened (SCTP), by a raw one.

mod case;
mod raw_packets;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::{
    manifest::Service,
    net::{
        Plan, Pod,
        plan::{BOTH, Family, OUTSIDE, external, vip},
    },
    traffic::Client,
};

use self::{
    case::{ANYONE, Cases, Expected, agrees, next_port},
    raw_packets::{pings, sctp},
};
use crate::{
    trio::Trio,
    world::{NODE_PORT, PORT, TARGET, World, at, web, web_addr},
};

/// NodePorts of policy Local: with a backend on node 0, and without.
const NEAR_PORT: u16 = 30081;
const FAR_PORT: u16 = 30082;

fn services(trio: &Trio) -> Vec<Service> {
    let all = trio.servers.each_ref();
    let [a, b, _] = all;
    let ranges = format!("{}/32, \"{}/128\"", OUTSIDE.v4, OUTSIDE.v6);
    let local = |name: &str, n: u8, port: u16| {
        Service::new(name, vip(n)).node_port(PORT, TARGET, port).external_traffic_local()
    };
    vec![
        Service::new("web", vip(10)).node_port(PORT, TARGET, NODE_PORT).pods(&all),
        local("near", 11, NEAR_PORT).pods(&[a]),
        local("far", 12, FAR_PORT).pods(&[b]),
        Service::new("ranged", vip(13))
            .tcp(PORT, TARGET)
            .load_balancer(external(51))
            .external_ips(external(41))
            .spec(&format!("loadBalancerSourceRanges: [{ranges}]"))
            .pods(&all),
        Service::new("self", vip(14)).tcp(PORT, TARGET).pods(&[a]),
        trio.empty("none", vip(15)),
        trio.service("sticky", vip(16)).spec("sessionAffinity: ClientIP"),
        Service::new("streams", vip(17)).sctp(TARGET, TARGET).pods(&all),
    ]
}

fn ranges() -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\nspec: {{cidrs: [{}/24, \
         \"{}/120\"]}}\n",
        vip(0).v4,
        vip(0).v6
    )
}

#[test]
fn explain_says_what_happens() -> Result<()> {
    let trio = Trio::without_shunt(Plan::default())?;
    trio.apply(&services(&trio))?;
    trio.cluster.apply("range.yaml", &ranges())?;
    trio.cluster.start(&[])?;
    let cases = Cases(&trio);
    for family in BOTH {
        cluster_addresses(&cases, family)?;
        verdicts(&cases, family)?;
    }
    // An explanation takes half a second of verifier time: each of these groups runs in one family.
    node_ports(&cases, Family::V4)?;
    external_addresses(&cases, Family::V6)?;
    state(&cases, Family::V4)?;
    pings(&cases, Family::V6)?;
    sctp(&cases, Family::V4)?;
    nothing_changes(&trio)
}

fn cluster_addresses(cases: &Cases<'_>, family: Family) -> Result<()> {
    let anyone = Expected::Answered { by: ANYONE, own_source: Some(true) };
    let to = at(vip(10), family, PORT);
    for turn in 0..3 {
        let told = cases.pod("ClusterIP from a pod", to).is(&anyone)?;
        assert_eq!(told["backend"]["chosen_by"], "turn", "{turn}");
        assert_eq!(told["frontend"]["kind"], "ClusterIP");
        assert_eq!(told["policy"]["set_size"], 3);
    }
    cases.pod("ClusterIP from a pod, UDP", to).udp().is(&anyone)?;
    // Backends of this node and of others: the route decides the source.
    for _ in 0..2 {
        let told = cases.host("ClusterIP from the node", to).is(&anyone)?;
        assert_eq!(told["lane"], "socket");
    }
    cases.host("ClusterIP from the node, UDP", to).udp().is(&anyone)?;
    let itself = Expected::Answered { by: &["a"], own_source: Some(false) };
    let server = &cases.0.servers[0];
    let hairpin = Client::at(server.place());
    cases.of("hairpin", hairpin, server.addr().of(family), at(vip(14), family, PORT)).is(&itself)?;
    let off_cluster = Expected::Answered { by: ANYONE, own_source: None };
    cases.outside("ClusterIP from off the cluster", to).is(&off_cluster)?;
    Ok(())
}

fn node_ports(cases: &Cases<'_>, family: Family) -> Result<()> {
    let node = cases.0.node(0).addr();
    let to = at(node, family, NODE_PORT);
    let mut seen = Vec::new();
    let nearby = Expected::Answered { by: ANYONE, own_source: None };
    for _ in 0..3 {
        let told = cases.outside("NodePort, policy Cluster", to).is(&nearby)?;
        seen.push(told["backend"]["local"] == true);
    }
    seen.sort_unstable();
    assert_eq!(seen, [false, false, true], "one backend here, two elsewhere");
    cases
        .host("NodePort at the node's own address", to)
        .is(&Expected::Answered { by: ANYONE, own_source: Some(true) })?;
    if family == Family::V4 {
        let to = SocketAddr::from(([127, 0, 0, 1], NODE_PORT));
        cases
            .host("NodePort at loopback", to)
            .is(&Expected::Answered { by: ANYONE, own_source: Some(true) })?;
    }
    let kept = |by| Expected::Answered { by, own_source: Some(true) };
    let near = at(node, family, NEAR_PORT);
    let told = cases.outside("NodePort, policy Local, a backend here", near).is(&kept(&["a"]))?;
    assert_eq!((&told["policy"]["policy"], &told["policy"]["set"]), (&"Local".into(), &"local".into()));
    let far = at(node, family, FAR_PORT);
    cases
        .outside("NodePort, policy Local, no backend here", far)
        .is(&Expected::Dropped("no_local_endpoints"))?;
    let told = cases.pod("the same from a pod of the node", far).is(&kept(&["b"]))?;
    assert_eq!(told["policy"]["short_circuit"], true);
    cases.host("the same from the node", far).is(&kept(&["b"]))?;
    // The same port at an address that is not the node's.
    let elsewhere = at(OUTSIDE, family, NODE_PORT);
    let _server = tests::traffic::Server::tcp(cases.0.cluster.outside(), elsewhere, "elsewhere")?;
    let way = format!(
        "route replace {}/{} via {}\n",
        cases.0.clients[0].addr().of(family),
        bits(family),
        node.of(family)
    );
    cases.0.cluster.outside().netns().ip(&way)?;
    let told = cases.pod("a NodePort's number elsewhere", elsewhere).is(&Expected::Untouched("elsewhere"))?;
    assert_eq!(told["destination"], "node_port_elsewhere");
    Ok(())
}

fn bits(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

fn external_addresses(cases: &Cases<'_>, family: Family) -> Result<()> {
    let ranged = at(external(51), family, PORT);
    let nearby = Expected::Answered { by: ANYONE, own_source: None };
    for _ in 0..2 {
        let told = cases.outside("load balancer's address, inside its ranges", ranged).is(&nearby)?;
        let range = format!("{}/{}", OUTSIDE.of(family), bits(family));
        assert_eq!(
            (&told["policy"]["let_in"], &told["policy"]["source_range"]),
            (&true.into(), &range.into())
        );
    }
    let out = Expected::Dropped("src_range");
    cases.pod("load balancer's address, outside its ranges", ranged).is(&out)?;
    cases.host("the same from the node", ranged).is(&out)?;
    let told = cases
        .pod("externalIP", at(external(41), family, PORT))
        .is(&Expected::Answered { by: ANYONE, own_source: Some(true) })?;
    assert_eq!(told["frontend"]["kind"], "ExternalIP");
    Ok(())
}

fn verdicts(cases: &Cases<'_>, family: Family) -> Result<()> {
    let none = at(vip(15), family, PORT);
    let refused = Expected::Refused("no_backend");
    let told = cases.pod("no endpoints", none).is(&refused)?;
    assert_eq!(told["answer"], "tcp_reset");
    let told = cases.pod("no endpoints, UDP", none).udp().is(&refused)?;
    assert_eq!(told["answer"], "icmp_port_unreachable");
    let told = cases.host("no endpoints, from the node", none).is(&refused)?;
    assert_eq!(told["answer"], "connection_refused");
    let other = at(vip(10), family, 81);
    cases.pod("another port of a ClusterIP", other).is(&Expected::Refused("no_service_port"))?;
    cases.host("the same from the node", other).is(&Expected::Refused("no_service_port"))?;
    let free = at(vip(99), family, PORT);
    let told = cases.pod("an unallocated address", free).is(&Expected::Dropped("unallocated"))?;
    assert_eq!(told["destination"], "unallocated");
    let server = &cases.0.servers[1];
    let direct = at(server.addr(), family, TARGET);
    let told = cases.pod("a backend itself", direct).is(&Expected::Untouched("b"))?;
    assert_eq!(told["destination"], "backend");
    let plain = at(cases.0.node(0).addr(), family, 9999);
    cases.0.node(0).serve_tcp(family, 9999, "plain")?;
    let told = cases.pod("a port of the node's own", plain).is(&Expected::Untouched("plain"))?;
    assert_eq!(told["destination"], "foreign");
    Ok(())
}

/// Affinity, and open flows.
fn state(cases: &Cases<'_>, family: Family) -> Result<()> {
    let sticky = at(vip(16), family, PORT);
    let anyone = Expected::Answered { by: ANYONE, own_source: Some(true) };
    for who in ["a pod", "the node"] {
        let case = |name| match who {
            "a pod" => cases.pod(name, sticky),
            _ => cases.host(name, sticky),
        };
        let first = case("affinity, first").is(&anyone)?;
        assert_eq!(first["affinity"]["hit"], false, "{who}: {first:#}");
        let again = case("affinity, again").is(&anyone)?;
        assert_eq!(again["affinity"]["hit"], true, "{who}: {again:#}");
        assert_eq!(again["backend"]["id"], first["backend"]["id"], "{who}");
        assert_eq!(again["backend"]["chosen_by"], "affinity", "{who}");
    }
    let to = at(vip(10), family, PORT);
    let stream = cases.0.pod(0).stream(to);
    let answer = stream.ask()?;
    // Another flow takes a turn in between.
    cases.pod("another flow", to).is(&anyone)?;
    let words = [stream.local_addr()?.to_string(), to.to_string()];
    let told = cases.0.node(0).shunt_json(&["explain", &words[0], &words[1]])?;
    assert_eq!(
        (&told["flow"]["goes_on"], &told["flow"]["state"]),
        (&true.into(), &"ESTABLISHED".into()),
        "{told:#}"
    );
    assert_eq!((&told["backend"]["chosen_by"], &told["verdict"]), (&"flow".into(), &"translated".into()));
    agrees(&told, &answer.backend, answer.peer, &|| format!("an open flow: {told:#}"));
    stream.steady(2);
    Ok(())
}

/// With the agent stopped, explanations still work, and leave all maps unchanged.
fn nothing_changes(trio: &Trio) -> Result<()> {
    let node = trio.node(0);
    node.stop_shunt()?;
    // Wait until sockets of the cases above have exchanged their last packets.
    std::thread::sleep(Duration::from_secs(2));
    let dump = || -> Result<Vec<(&str, String)>> {
        let names = proxy_common::map::ALL.into_iter();
        names.map(|name| Ok((name, node.shunt_command(&["-j", "map", "dump", name])?))).collect()
    };
    let before = dump()?;
    let pod = trio.clients[0].addr();
    let began = Instant::now();
    let mut asked = 0;
    for (source, to) in [
        (IpAddr::from(pod.v4), at(vip(10), Family::V4, PORT)),
        (pod.v6.into(), at(vip(16), Family::V6, PORT)),
        (OUTSIDE.v4.into(), at(node.addr(), Family::V4, NODE_PORT)),
        (OUTSIDE.v6.into(), at(node.addr(), Family::V6, FAR_PORT)),
        (node.addr().v4.into(), at(vip(16), Family::V4, PORT)),
        (pod.v4.into(), at(vip(15), Family::V4, PORT)),
    ] {
        node.shunt_command(&["explain", &source.to_string(), &to.to_string()])?;
        asked += 1;
    }
    println!("{asked} explanations in {:?}", began.elapsed());
    for ((name, before), (_, after)) in before.iter().zip(dump()?) {
        assert!(*before == after, "{name} has changed");
    }
    let text = node.shunt_command(&["explain", &pod.v4.to_string(), "10.68.0.10:80"])?;
    for words in
        ["  1. from ", "ClusterIP of default/web:tcp-80", "the next in turn; 2 others follow", "translated"]
    {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
    for (words, code, says) in [
        (["10.0.0.1", "10.68.0.10"], 2, "has no port"),
        (["10.0.0.1", "[fd00::1]:80"], 2, "different address families"),
        (["--from=nowhere", "10.68.0.10:80"], 2, ""),
    ] {
        let output = node.shunt_output(&["explain", words[0], words[1]])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code) && said.contains(says),
            "{words:?}: {}: {said}",
            output.status
        );
    }
    let output = node.shunt_output(&["explain", "10.0.0.1", "10.68.0.10:80", "--from", "nowhere"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("no device \"nowhere\""), "{said}");
    node.shunt_command(&["cleanup"])?;
    let output = node.shunt_output(&["explain", "10.0.0.1", "10.68.0.10:80"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("no pinned maps"), "{said}");
    Ok(())
}

/// Bridged pods over a tunnel: hooks are on the bridge's ports, and source translation uses the tunnel's address.
#[test]
fn explain_knows_bridges_and_tunnels() -> Result<()> {
    let world = World::start(Plan::default().bridged().vxlan(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    for family in BOTH {
        let name_of = |pod: &Pod| pod.addr().of(family).to_string();
        let tried = |source: IpAddr, to: SocketAddr, from: Client| -> Result<()> {
            let port = next_port();
            let source = SocketAddr::new(source, port);
            let told = node.shunt_json(&["explain", &source.to_string(), &to.to_string()])?;
            let attempt = from.port(port).tcp(to);
            let answer = attempt.answered();
            let backend = if answer.backend == "near" { &world.near } else { &world.far };
            assert_eq!(told["backend"]["address"], name_of(backend), "{attempt}\n{told:#}");
            let seen: SocketAddr = told["outcome"]["source"].as_str().context("a source")?.parse()?;
            assert_eq!(seen.ip(), answer.peer.ip(), "{attempt}\n{told:#}");
            Ok(())
        };
        // Both turns, then the two other ways to take a turn.
        for _ in 0..2 {
            tried(OUTSIDE.of(family), world.node_port(0, family), world.outside())?;
        }
        tried(world.client.addr().of(family), web(family), world.pod())?;
        tried(node.addr().of(family), web(family), world.host(0))?;
        let told = node.shunt_json(&[
            "explain",
            &name_of(&world.client),
            &at(web_addr(), family, PORT).to_string(),
        ])?;
        assert_eq!(told["from"]["device"], world.client.device(), "{told:#}");
    }
    Ok(())
}
