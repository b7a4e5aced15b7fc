//! SERVICE-SEMANTICS 2.4: from EndpointSlices to endpoints.

use anyhow::Result;
use tests::{
    manifest::{Endpoint, Service},
    net::{
        Plan,
        plan::{BOTH, Dual, Family, vip},
    },
    traffic::Outcome,
};

use crate::{
    trio::{ALL, Trio, both, evenly, refused, silent, soon},
    world::{TARGET, at},
};

/// The Service `web` with one slice per family for each of these Services' endpoints and ports; `edit` may change each.
fn slices(document: &Service, parts: &[Service], edit: impl Fn(usize, String) -> String) -> String {
    let mut documents = vec![document.document()];
    for (nth, part) in parts.iter().enumerate() {
        documents.extend(BOTH.map(|family| edit(nth, part.slice(family, &format!("-{nth}")))));
    }
    documents.join("---\n")
}

fn as_is(_: usize, text: String) -> String {
    text
}

fn of_web(trio: &Trio, servers: &[usize]) -> Service {
    let pods: Vec<_> = servers.iter().map(|nth| &trio.servers[*nth]).collect();
    trio.empty("web", vip(10)).pods(&pods)
}

#[test]
fn s2_4_all_slices_of_a_service_are_merged() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![])?;
    let parts = [of_web(&trio, &[0]), of_web(&trio, &[1, 2]), of_web(&trio, &[1])];
    trio.cluster.apply("web.yaml", &slices(&parts[0], &parts, as_is))?;
    both(vip(10), 80).into_iter().for_each(|to| soon(&trio.pod(0), to, &ALL));
    // One of them is removed: endpoints that others contain too stay.
    trio.cluster.apply("web.yaml", &slices(&parts[0], &parts[1..], as_is))?;
    both(vip(10), 80).into_iter().for_each(|to| soon(&trio.pod(0), to, &["b", "c"]));
    trio.cluster.apply("web.yaml", &slices(&parts[0], &parts[2..], as_is))?;
    both(vip(10), 80).into_iter().for_each(|to| soon(&trio.pod(0), to, &["b"]));
    Ok(())
}

/// Pods of two versions with different port numbers for `http`: each slice has its own number for the name.
#[test]
fn s2_4_slices_may_differ_in_the_port_number() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![])?;
    let late = trio.cluster.add_server(2, "late", TARGET + 5)?;
    let old = of_web(&trio, &[0, 1]);
    let new = Service::new("web", vip(10)).tcp(80, TARGET + 5).udp(80, TARGET + 5).pods(&[&late]);
    trio.cluster.apply("web.yaml", &slices(&old, &[old.clone(), new], as_is))?;
    for to in both(vip(10), 80) {
        soon(&trio.pod(0), to, &["a", "b", "late"]);
        evenly(&trio.host(1), to, &["a", "b", "late"]);
    }
    Ok(())
}

#[test]
fn s2_4_what_does_not_belong_is_ignored() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![])?;
    let part = |nth: usize| of_web(&trio, &[nth]);
    let edit = |nth: usize, text: String| match nth {
        0 => text,
        1 => text.replace("kubernetes.io/service-name: web", "app: web"),
        2 => text.replace("namespace: default", "namespace: elsewhere"),
        3 => text.replace("name: tcp-80", "name: other").replace("name: udp-80", "name: other"),
        4 => text.replace(", port: 8080", ""),
        _ => text
            .replace("addressType: IPv4", "addressType: FQDN")
            .replace("addressType: IPv6", "addressType: FQDN"),
    };
    let parts = [part(0), part(1), part(1), part(1), part(1), part(2)];
    trio.cluster.apply("web.yaml", &slices(&parts[0], &parts, edit))?;
    for to in both(vip(10), 80) {
        soon(&trio.pod(0), to, &["a"]);
        evenly(&trio.host(1), to, &["a"]);
    }
    Ok(())
}

/// Only the first address of an endpoint is used.
#[test]
fn s2_4_only_the_first_address_counts() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![])?;
    let part = of_web(&trio, &[0]);
    let text = slices(&part, std::slice::from_ref(&part), |_, text| {
        BOTH.iter().fold(text, |text, family| {
            let (first, second) = (trio.servers[0].addr().of(*family), trio.servers[1].addr().of(*family));
            text.replace(&format!("[\"{first}\"]"), &format!("[\"{first}\", \"{second}\"]"))
        })
    });
    assert_eq!(text.matches("\", \"").count(), 3, "the ClusterIPs, and an endpoint of each family:\n{text}");
    trio.cluster.apply("web.yaml", &text)?;
    for to in both(vip(10), 80) {
        soon(&trio.pod(0), to, &["a"]);
        for _ in 0..4 {
            assert_eq!(trio.pod(0).tcp(to).answered().backend, "a");
        }
    }
    Ok(())
}

#[test]
fn s2_4_absent_conditions_mean_ready_and_absent_nodes_mean_elsewhere() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let bare = trio.servers.each_ref().map(|pod| Endpoint::pod(pod).without_conditions());
        let nowhere = Endpoint::pod(&trio.servers[0]).without_node();
        let both = [nowhere.clone(), Endpoint::pod(&trio.servers[1])];
        vec![
            trio.empty("bare", vip(10)).endpoints(bare),
            trio.empty("local", vip(11)).internal_traffic_local().endpoints(both),
            trio.empty("cluster", vip(12)).endpoints([nowhere]),
        ]
    })?;
    for family in BOTH {
        evenly(&trio.pod(0), at(vip(10), family, 80), &ALL);
        // It is on node 0, but the endpoint does not name a node.
        evenly(&trio.pod(1), at(vip(11), family, 80), &["b"]);
        evenly(&trio.pod(0), at(vip(12), family, 80), &["a"]);
    }
    silent(&BOTH.map(|family| (trio.pod(0), at(vip(11), family, 80))));
    Ok(())
}

#[test]
fn s2_4_unready_endpoints_are_not_used_and_published_ones_are() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |trio| {
        let [a, b, c] = trio.servers.each_ref().map(Endpoint::pod);
        vec![
            trio.empty("mixed", vip(10)).endpoints([a.clone(), b.clone().unready(), c.clone().gone()]),
            trio.empty("none", vip(11)).endpoints([a.unready(), b.clone().unready(), c.clone().gone()]),
            // publishNotReadyAddresses: the controller marks every endpoint as ready.
            trio.empty("published", vip(12)).endpoints([b.published_terminating(), c]),
        ]
    })?;
    for family in BOTH {
        for from in [trio.pod(0), trio.host(1)] {
            for _ in 0..2 {
                evenly(&from, at(vip(10), family, 80), &["a"]);
            }
            refused("a Service of unready endpoints", &from, at(vip(11), family, 80));
            evenly(&from, at(vip(12), family, 80), &["b", "c"]);
        }
    }
    Ok(())
}

/// The same address twice: the endpoint that is not terminating wins, in either order (a reused pod address).
#[test]
fn s2_4_of_two_with_one_address_the_running_one_wins() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![])?;
    let [dead, running, other] = [
        trio.empty("web", vip(10)).endpoints([Endpoint::pod(&trio.servers[0]).gone()]),
        of_web(&trio, &[0]),
        of_web(&trio, &[1]),
    ];
    for parts in [[dead.clone(), running.clone(), other.clone()], [running, dead, other]] {
        trio.cluster.apply("web.yaml", &slices(&parts[0], &parts, as_is))?;
        for to in both(vip(10), 80) {
            soon(&trio.pod(0), to, &["a", "b"]);
            // It is in the set only once.
            evenly(&trio.pod(0), to, &["a", "b"]);
        }
        trio.cluster.remove("web.yaml")?;
        both(vip(10), 80).into_iter().for_each(|to| crate::trio::soon_unserved(&trio.pod(0), to));
    }
    Ok(())
}

/// An endpoint moves between slices, as when the controller repacks them: no connection fails meanwhile.
#[test]
fn s2_4_a_move_between_slices_is_not_noticed() -> Result<()> {
    let trio = Trio::start(Plan::default(), &[], |_| vec![])?;
    let parts = [of_web(&trio, &[0, 1]), of_web(&trio, &[2]), of_web(&trio, &[1, 2]), of_web(&trio, &[0])];
    let states = [&parts[..2], &parts[..3], &[parts[3].clone(), parts[2].clone()], &parts[2..]];
    let vip: Dual = vip(10);
    trio.cluster.apply("web.yaml", &slices(&parts[0], states[0], as_is))?;
    soon(&trio.pod(0), at(vip, Family::V6, 80), &ALL);
    for state in states.iter().cycle().take(8) {
        trio.cluster.apply("web.yaml", &slices(&parts[0], state, as_is))?;
        for to in (0..30).flat_map(|_| both(vip, 80)) {
            let attempt = trio.pod(0).tcp(to);
            assert!(matches!(attempt.outcome, Outcome::Answered(_)), "{attempt}");
        }
    }
    Ok(())
}
