//! SERVICE-SEMANTICS 2.10: session affinity.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan,
        cluster::eventually,
        plan::{BOTH, Dual, external, vip},
    },
    traffic::{Attempt, Client, Outcome},
};

use crate::{
    trio::{ALL, PROTOCOLS, SOON, Trio, both, evenly, on_every_wiring},
    world::{TARGET, at},
};

const NODE_PORT: u16 = 30080;
const EXTERNAL_IP: u8 = 40;
const INGRESS_IP: u8 = 50;

/// All kinds of frontends, with affinity and this timeout in seconds.
fn sticky(seconds: u32) -> Service {
    Service::new("web", vip(10))
        .node_port(80, TARGET, NODE_PORT)
        .load_balancer(external(INGRESS_IP))
        .external_ips(external(EXTERNAL_IP))
        .spec("sessionAffinity: ClientIP")
        .spec(&format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"))
}

/// The same Service without affinity.
fn turns() -> Service {
    Service::new("web", vip(10))
        .node_port(80, TARGET, NODE_PORT)
        .load_balancer(external(INGRESS_IP))
        .external_ips(external(EXTERNAL_IP))
}

/// All addresses of the Service at node 0, by family.
fn addresses(trio: &Trio) -> [[SocketAddr; 4]; 2] {
    let of = |dual: Dual, port| both(dual, port);
    let (cluster, node) = (of(vip(10), 80), of(trio.node(0).addr(), NODE_PORT));
    let (ingress, other) = (of(external(INGRESS_IP), 80), of(external(EXTERNAL_IP), 80));
    [0, 1].map(|family| [cluster[family], node[family], ingress[family], other[family]])
}

type Protocol = fn(&Client, SocketAddr) -> Attempt;

/// The backend that answers a new flow.
#[track_caller]
fn asked(protocol: Protocol, from: &Client, to: SocketAddr) -> String {
    protocol(from, to).answered().backend
}

/// The backend that answers all of several new flows, at each of these addresses.
#[track_caller]
fn the_same(protocol: Protocol, from: &Client, to: &[SocketAddr]) -> String {
    let first = asked(protocol, from, to[0]);
    for to in to.iter().chain(to) {
        assert_eq!(asked(protocol, from, *to), first, "at {to}");
    }
    first
}

#[test]
fn s2_10_a_client_stays_with_its_backend_at_every_address_of_the_service() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| vec![sticky(10800).pods(&trio.servers.each_ref())])?;
        for of_family in addresses(&trio) {
            for protocol in PROTOCOLS {
                // Three clients take the three backends in turn: a client with affinity does not advance the round
                // robin.
                let backends: BTreeSet<String> = [trio.pod(0), trio.host(0), trio.outside()]
                    .iter()
                    .map(|from| the_same(protocol, from, &of_family))
                    .collect();
                assert_eq!(backends, ALL.map(str::to_owned).into(), "{of_family:?}");
            }
        }
        Ok(())
    })
}

/// Only a new connection restarts the timeout; packets of an open one do not.
#[test]
fn s2_10_time_runs_out_and_only_new_flows_begin_it_anew() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![sticky(2).pods(&trio.servers.each_ref())])?;
    let clients = [trio.pod(0), trio.host(0), trio.outside()];
    let all: Vec<(&Client, SocketAddr, Protocol)> = clients
        .iter()
        .flat_map(|from| both(vip(10), 80).map(|to| PROTOCOLS.map(|protocol| (from, to, protocol))))
        .flatten()
        .collect();
    let ask = || all.iter().map(|(from, to, protocol)| asked(*protocol, from, *to)).collect::<Vec<_>>();
    let first = ask();
    let streams: Vec<_> =
        clients.iter().flat_map(|from| both(vip(10), 80).map(|to| from.stream(to))).collect();
    let held: Vec<_> = streams.iter().map(|stream| stream.steady(1).backend).collect();
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(ask(), first, "a new flow within 2 s of the last one");
    }
    let idle = Instant::now();
    while idle.elapsed() < Duration::from_millis(2200) {
        thread::sleep(Duration::from_millis(200));
        streams.iter().for_each(|stream| drop(stream.steady(1)));
    }
    // The second client first, so that no client takes its former turn again.
    let of_one = all.len() / clients.len();
    for i in (of_one..all.len()).chain(0..of_one) {
        let (from, to, protocol) = all[i];
        assert_ne!(asked(protocol, from, to), first[i], "{from:?} at {to} after 2 s without a new flow");
    }
    for (stream, backend) in streams.iter().zip(&held) {
        assert_eq!(&stream.steady(1).backend, backend, "an open connection stays where it is");
    }
    Ok(())
}

#[test]
fn s2_10_is_switched_on_and_off_live() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![turns().pods(&trio.servers.each_ref())])?;
    let clients = [trio.pod(0), trio.host(0), trio.outside()];
    let servers = trio.servers.each_ref();
    let stays = |from: &Client, to| {
        let answers: BTreeSet<_> = (0..6).map(|_| asked(Client::tcp, from, to)).collect();
        answers.len() == 1
    };
    for _ in 0..2 {
        for to in both(vip(10), 80) {
            clients.iter().for_each(|from| drop(evenly(from, to, &ALL)));
        }
        trio.apply(&[sticky(10800).pods(&servers)])?;
        for to in both(vip(10), 80) {
            for from in &clients {
                eventually(SOON, || stays(from, to)).with_context(|| format!("{to}: switched on"))?;
                for protocol in PROTOCOLS {
                    the_same(protocol, from, &[to; 4]);
                }
            }
        }
        trio.apply(&[turns().pods(&servers)])?;
        for to in both(vip(10), 80) {
            for from in &clients {
                eventually(SOON, || !stays(from, to)).with_context(|| format!("{to}: switched off"))?;
            }
        }
    }
    Ok(())
}

/// Clients leave a removed backend; a backend that returns has no clients with affinity.
#[test]
fn s2_10_a_backend_that_leaves_the_set_is_left() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![sticky(10800).pods(&trio.servers.each_ref())])?;
    let without = |name: &str| {
        let endpoints = trio.servers.iter().map(|pod| match pod.name() == name {
            true => Endpoint::pod(pod).unready(),
            false => Endpoint::pod(pod),
        });
        sticky(10800).endpoints(endpoints)
    };
    for to in both(vip(10), 80) {
        for from in [trio.pod(0), trio.host(0), trio.outside()] {
            let first = asked(Client::tcp, &from, to);
            trio.apply(&[without(&first)])?;
            let moved =
                || matches!(from.tcp(to).outcome, Outcome::Answered(answer) if answer.backend != first);
            eventually(SOON, moved).with_context(|| format!("{to}: {first} left"))?;
            let second = the_same(Client::tcp, &from, &[to; 3]);
            assert_ne!(second, first);
            trio.apply(&[sticky(10800).pods(&trio.servers.each_ref())])?;
            // Long enough for the change to be applied.
            thread::sleep(Duration::from_millis(300));
            assert_eq!(the_same(Client::tcp, &from, &[to; 4]), second, "{to}: {first} came back");
        }
    }
    Ok(())
}

/// Under policy Local a NodePort has a smaller set than the ClusterIP: a client keeps its backend if both sets contain
/// it, and gets a new one if the frontend's set does not.
#[test]
fn s2_10_only_a_backend_of_the_frontends_own_set_is_stayed_with() -> Result<()> {
    on_every_wiring(|plan| {
        let trio = Trio::start(plan, &[], |trio| {
            vec![sticky(10800).external_traffic_local().pods(&trio.servers.each_ref())]
        })?;
        for family in BOTH {
            let (cluster, node) = (at(vip(10), family, 80), at(trio.node(0).addr(), family, NODE_PORT));
            for protocol in PROTOCOLS {
                the_same(protocol, &trio.pod(0), &[cluster, node]);
                // Three clients take the three turns in this node's order: once `a` was taken, the outside client gets
                // another one.
                let before = [trio.pod(0), trio.host(0), Client::at(trio.servers[0].place())];
                assert!(before.iter().any(|from| asked(protocol, from, cluster) == "a"));
                assert_ne!(the_same(protocol, &trio.outside(), &[cluster]), "a");
                assert_eq!(the_same(protocol, &trio.outside(), &[node, cluster]), "a");
            }
        }
        Ok(())
    })
}

#[test]
fn s2_10_every_pod_is_its_own_client_of_the_socket_hooks() -> Result<()> {
    let trio = Trio::start(Plan::default(), &["--socket-lb", "all"], |trio| {
        vec![sticky(3).pods(&trio.servers.each_ref())]
    })?;
    let second = trio.cluster.add_pod(0, "second")?;
    let first = Client::at(&trio.node(0).process_of(&trio.clients[0])?);
    let second = Client::at(&trio.node(0).process_of(&second)?);
    for of_family in addresses(&trio) {
        let clients = [first.clone(), second.clone(), trio.host(0)];
        for protocol in PROTOCOLS {
            let backends: BTreeSet<String> =
                clients.iter().map(|from| the_same(protocol, from, &of_family)).collect();
            assert_eq!(backends, ALL.map(str::to_owned).into(), "{of_family:?}");
        }
        // Sockets that name their peer with each datagram count as the same client.
        let backend = asked(Client::udp, &first, of_family[0]);
        for to in of_family {
            assert_eq!(first.udp_unconnected(to)?.ask()?.backend, backend, "{to}");
        }
    }
    let list = trio.node(0).shunt_json(&["affinity", "list"])?;
    let clients: BTreeSet<_> =
        list.as_array().context("a list")?.iter().filter_map(|item| item["client"].as_str()).collect();
    assert!(clients.len() == 3 && clients.iter().all(|client| client.starts_with("netns:")), "{list}");
    // The timeout expires here too: the next turn is the third client's.
    let before = both(vip(10), 80).map(|to| asked(Client::tcp, &trio.host(0), to));
    thread::sleep(Duration::from_millis(3100));
    for (to, backend) in both(vip(10), 80).into_iter().zip(before) {
        assert_ne!(asked(Client::tcp, &trio.host(0), to), backend, "{to}");
    }
    Ok(())
}

/// Many flows of one client start on several CPUs before any of them is recorded.
#[test]
fn s2_10_flows_that_begin_at_once_agree() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![sticky(1).pods(&trio.servers.each_ref())])?;
    for round in 0..6 {
        for (to, from) in
            both(vip(10), 80).into_iter().flat_map(|to| [(to, trio.pod(0)), (to, trio.outside())])
        {
            let answers: BTreeSet<String> = thread::scope(|scope| {
                let one =
                    || scope.spawn(|| (0..8).map(|_| asked(Client::tcp, &from, to)).collect::<Vec<_>>());
                let all: Vec<_> = (0..4).map(|_| one()).collect();
                all.into_iter().flat_map(|thread| thread.join().expect("every flow is answered")).collect()
            });
            assert_eq!(answers.len(), 1, "round {round} at {to}: {answers:?}");
        }
        // Long enough for all entries to expire.
        thread::sleep(Duration::from_millis(1100));
    }
    Ok(())
}

#[test]
fn s2_10_affinity_list_tells_who_stays_where() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![sticky(600).pods(&trio.servers.each_ref())])?;
    let node = trio.node(0);
    let entries = || -> Result<usize> {
        let dump: serde_json::Value =
            serde_json::from_str(&node.shunt_command(&["-j", "map", "dump", "AFFINITY"])?)?;
        Ok(dump.as_array().context("a list")?.len())
    };
    for family in BOTH {
        let backend = asked(Client::tcp, &trio.pod(0), at(vip(10), family, 80));
        let server = trio.servers.iter().find(|pod| pod.name() == backend).context("one of them")?;
        let list = node.shunt_json(&["affinity", "list"])?;
        let client = trio.clients[0].addr().of(family).to_string();
        let mine: Vec<_> =
            list.as_array().context("a list")?.iter().filter(|item| item["client"] == *client).collect();
        assert_eq!(mine.len(), 1, "{list}");
        assert_eq!(mine[0]["service"], "default/web:tcp-80");
        assert_eq!(mine[0]["backend"], server.socket_addr(family, TARGET).to_string());
        let (age, left) = (mine[0]["age_seconds"].as_u64(), mine[0]["expires_in_seconds"].as_u64());
        assert!(
            age.is_some_and(|age| age < 20) && left.is_some_and(|left| (580..=600).contains(&left)),
            "{list}"
        );
        let table = node.shunt_command(&["affinity", "list"])?;
        assert!(table.contains("EXPIRES") && table.contains(&client), "{table}");
    }
    // No backend, no client: the entries themselves are removed, so that their ids can be reused.
    assert!(entries()? > 0);
    trio.apply(&[sticky(600)])?;
    eventually(SOON, || entries().is_ok_and(|count| count == 0))?;
    assert_eq!(node.shunt_json(&["affinity", "list"])?, serde_json::json!([]));
    Ok(())
}

/// The maps outlive the agent, and so does affinity; a re-created Service has no clients with affinity.
#[test]
fn s2_10_a_restart_forgets_nobody_and_a_new_service_knows_nobody() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| vec![sticky(10800).pods(&trio.servers.each_ref())])?;
    let servers = trio.servers.each_ref();
    let to = both(vip(10), 80);
    // Two other clients take a turn each, so that a fresh start would give this one another backend.
    let clients = [trio.host(0), trio.outside(), trio.pod(0)];
    let before = clients.each_ref().map(|from| to.map(|to| asked(Client::tcp, from, to)));
    trio.node(0).stop_shunt()?;
    assert_eq!(to.map(|to| asked(Client::tcp, &clients[2], to)), before[2], "while shunt is away");
    trio.node(0).start_shunt(&[])?;
    // The first scan of the entries comes with the first sync.
    thread::sleep(Duration::from_millis(500));
    for (from, before) in clients.iter().zip(&before) {
        for (to, before) in to.iter().zip(before) {
            assert_eq!(&the_same(Client::tcp, from, &[*to; 3]), before, "{to} after the restart");
        }
    }
    let node = trio.node(0);
    let count = || node.shunt_json(&["affinity", "list"]).map(|list| list.as_array().map_or(0, Vec::len));
    assert_eq!(count()?, 6);
    trio.cluster.remove("services.yaml")?;
    eventually(SOON, || count().is_ok_and(|count| count == 0)).context("the Service is gone")?;
    trio.apply(&[sticky(10800).pods(&servers)])?;
    let quick = clients[0].clone().patience(Duration::from_millis(200));
    for to in to {
        eventually(SOON, || matches!(quick.tcp(to).outcome, Outcome::Answered(_))).context("made anew")?;
    }
    assert_eq!(count()?, 2, "only who has asked since");
    Ok(())
}
