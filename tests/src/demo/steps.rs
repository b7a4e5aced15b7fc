//! The steps of the walk-through, in the owner's order.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    stage::Stage,
    step::{Seen, Step},
};
use crate::{
    net::{
        Place,
        plan::{Family, OUTSIDE, node_addr},
    },
    traffic::{Attempt, Client, Outcome, Tally, ping},
};

const NODE_PORT: u16 = 20651;
const FILE: &str = "new-nginx.yaml";

fn nothing(_: &mut Stage) -> Result<()> {
    Ok(())
}

/// All steps.
pub fn all() -> Vec<Step> {
    vec![
        Step {
            title: "Deployment new-nginx: a pod on each node, a Service in front",
            command: "node-1 shunt service list",
            expected: "new-nginx with a ClusterIP of 10.68/16 and both pods as backends",
            act: nothing,
            look: service_list,
        },
        Step {
            title: "the ClusterIP from the node itself",
            command: "node-1 curl http://NEW-NGINX/    (6 times)",
            expected: "the two pods take turns",
            act: nothing,
            look: |stage| taking_turns(stage, stage.cluster.node(0).place()),
        },
        Step {
            title: "the ClusterIP from a pod",
            command: "client-1 curl http://NEW-NGINX/    (6 times)",
            expected: "the two pods take turns",
            act: nothing,
            look: |stage| taking_turns(stage, client(stage)?),
        },
        Step {
            title: "new-nginx becomes a NodePort, 20651",
            command: "outside curl http://192.168.8.201:20651/    (4 times)\n\
                      outside curl http://192.168.8.202:20651/    (4 times)",
            expected: "both pods answer through both nodes, twice each",
            act: |stage| {
                stage.edit(FILE, "type: ClusterIP", "type: NodePort")?;
                stage.edit(FILE, "targetPort: http", "targetPort: http\n    nodePort: 20651")
            },
            look: node_ports,
        },
        Step {
            title: "the NodePort on the node's own loopback",
            command: "node-1 curl http://127.0.0.1:20651/",
            expected: "an answer",
            act: nothing,
            look: |stage| {
                let to = SocketAddr::from(([127, 0, 0, 1], NODE_PORT));
                let attempt = Client::at(stage.cluster.node(0).place()).tcp(to);
                Ok(Seen::new(matches!(attempt.outcome, Outcome::Answered(_)), describe(&attempt)))
            },
        },
        Step {
            title: "Service mysvc without selector, its Endpoints a server of node-2 itself",
            command: "client-1 curl http://MYSVC/\nnode-1 curl http://MYSVC/",
            expected: "the server at 192.168.8.202:9999 answers both",
            act: nothing,
            look: mysvc,
        },
        Step {
            title: "new-nginx is scaled to one replica",
            command: "client-1 curl http://NEW-NGINX/    (4 times)",
            expected: "the one pod answers, four times",
            act: |stage| stage.edit(FILE, "replicas: 2", "replicas: 1"),
            look: |stage| {
                let only = pod_name(stage)?;
                let to = cluster_ip(stage, "new-nginx", 80)?;
                let (tally, failed) = tally(4, || Ok(Client::at(client(stage)?).tcp(to)))?;
                Ok(Seen::new(failed.is_none() && tally.count(&only) == 4, show(&tally, failed)))
            },
        },
        Step {
            title: "whom the pod sees, called from outside through the other node (policy Cluster)",
            command: "outside curl http://192.168.8.202:20651/",
            expected: "the pod on node-1 sees the address of node-2, 192.168.8.202",
            act: nothing,
            look: |stage| {
                let attempt = from_outside(stage, 1);
                Ok(Seen::new(peer(&attempt) == Some(node_addr(1).v4.into()), describe(&attempt)))
            },
        },
        Step {
            title: "externalTrafficPolicy: Local",
            command: "outside curl http://192.168.8.202:20651/\noutside curl http://192.168.8.201:20651/",
            expected: "node-2 has no pod and no longer answers; through node-1 the pod sees 192.168.8.100",
            act: |stage| stage.edit(FILE, "type: NodePort", "type: NodePort\n  externalTrafficPolicy: Local"),
            look: |stage| local_at(stage, 0),
        },
        Step {
            title: "the pod moves to node-2",
            command: "outside curl http://192.168.8.201:20651/\noutside curl http://192.168.8.202:20651/",
            expected: "now node-1 does not answer; through node-2 the pod sees 192.168.8.100",
            act: |stage| {
                stage.edit(
                    FILE,
                    "spec:\n      containers:",
                    "spec:\n      nodeName: node-2\n      containers:",
                )
            },
            look: |stage| local_at(stage, 1),
        },
        Step {
            title: "ping of the ClusterIP",
            command: "client-1 ping -c 1 NEW-NGINX\noutside ping -c 1 NEW-NGINX\nnode-1 ping -c 1 NEW-NGINX",
            expected: "an answer to each",
            act: nothing,
            look: pings,
        },
        Step {
            title: "a UDP Service, port 53, both families",
            command: "a datagram from client-1 and from node-1, 4 sockets each",
            expected: "the two pods take turns",
            act: nothing,
            look: dns,
        },
        Step {
            title: "what node-2's datapath holds now",
            command: "node-2 shunt service list",
            expected: "new-nginx under its ClusterIP and under NodePort 20651, one local backend",
            act: nothing,
            look: |stage| {
                let table = stage.cluster.node(1).shunt_command(&["service", "list"])?;
                let vip = stage.control.cluster_ip("new-nginx").unwrap_or_default();
                Ok(Seen::new(table.contains(vip) && table.contains("20651"), table.trim_end()))
            },
        },
    ]
}

fn service_list(stage: &Stage) -> Result<Seen> {
    let table = stage.cluster.node(0).shunt_command(&["service", "list"])?;
    let vip = stage.control.cluster_ip("new-nginx").context("new-nginx has no clusterIP")?;
    let pods: Vec<_> = stage.control.pods_of("new-nginx").collect();
    let nodes: Vec<_> = pods.iter().map(|pod| pod.node()).collect();
    let shown = pods.iter().all(|pod| table.contains(&pod.addr().v4.to_string()));
    Ok(Seen::new(shown && table.contains(vip) && nodes == [0, 1], table.trim_end()))
}

fn taking_turns(stage: &Stage, from: &Place) -> Result<Seen> {
    let to = cluster_ip(stage, "new-nginx", 80)?;
    let client = Client::at(from);
    let attempts: Vec<_> = (0..6).map(|_| client.tcp(to)).collect();
    let names: Vec<_> = attempts.iter().map(backend).collect();
    let alternate = names.iter().all(Option::is_some) && names.windows(2).all(|pair| pair[0] != pair[1]);
    let shown: Vec<_> =
        attempts.iter().map(|attempt| backend(attempt).unwrap_or_else(|| describe(attempt))).collect();
    Ok(Seen::new(alternate, shown.join(", ")))
}

fn node_ports(stage: &Stage) -> Result<Seen> {
    let (mut good, mut lines) = (true, Vec::new());
    for node in 0..2 {
        let (tally, failed) = tally(4, || Ok(from_outside(stage, node)))?;
        good &=
            failed.is_none() && stage.control.pods_of("new-nginx").all(|pod| tally.count(pod.name()) == 2);
        lines.push(format!("through node-{}: {}", node + 1, show(&tally, failed)));
    }
    Ok(Seen::new(good, lines.join("\n")))
}

fn mysvc(stage: &Stage) -> Result<Seen> {
    let to = cluster_ip(stage, "mysvc", 80)?;
    let attempts = [client(stage)?, stage.cluster.node(0).place()].map(|place| Client::at(place).tcp(to));
    let good = attempts.iter().all(|attempt| backend(attempt).as_deref() == Some("the-server-of-node-2"));
    Ok(Seen::new(good, attempts.each_ref().map(describe).join("\n")))
}

/// Under policy Local with the one pod on node `with`.
fn local_at(stage: &Stage, with: usize) -> Result<Seen> {
    let silent = from_outside(stage, 1 - with);
    let answered = from_outside(stage, with);
    let good = silent.outcome == Outcome::TimedOut && peer(&answered) == Some(OUTSIDE.v4.into());
    Ok(Seen::new(good, format!("{}\n{}", describe(&silent), describe(&answered))))
}

fn pings(stage: &Stage) -> Result<Seen> {
    let vip = cluster_ip(stage, "new-nginx", 80)?.ip();
    let (mut good, mut lines) = (true, Vec::new());
    for (name, place) in [
        ("client-1", client(stage)?),
        ("outside", stage.cluster.outside()),
        ("node-1", stage.cluster.node(0).place()),
    ] {
        let answered = ping(place, vip, Duration::from_secs(1))?;
        good &= answered;
        lines.push(format!("{name}: {}", if answered { "answered" } else { "no answer" }));
    }
    Ok(Seen::new(good, lines.join("\n")))
}

fn dns(stage: &Stage) -> Result<Seen> {
    let (mut good, mut lines) = (true, Vec::new());
    for family in [Family::V4, Family::V6] {
        let to = dns_addr(stage, family)?;
        for (name, place) in [("client-1", client(stage)?), ("node-1", stage.cluster.node(0).place())] {
            let (tally, failed) = tally(4, || Ok(Client::at(place).udp(to)))?;
            good &= failed.is_none() && stage.control.pods_of("dns").all(|pod| tally.count(pod.name()) == 2);
            lines.push(format!("{name} -> {to}: {}", show(&tally, failed)));
        }
    }
    Ok(Seen::new(good, lines.join("\n")))
}

fn dns_addr(stage: &Stage, family: Family) -> Result<SocketAddr> {
    let ips = stage.control.cluster_ips("dns");
    let ip: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let ip = ip.into_iter().find(|ip| ip.is_ipv4() == (family == Family::V4));
    Ok(SocketAddr::new(ip.context("dns has no clusterIP of that family")?, 53))
}

fn cluster_ip(stage: &Stage, service: &str, port: u16) -> Result<SocketAddr> {
    let ip = stage.control.cluster_ip(service).with_context(|| format!("{service} has no clusterIP"))?;
    Ok(SocketAddr::new(ip.parse()?, port))
}

fn client(stage: &Stage) -> Result<&Place> {
    Ok(stage.control.pods_of("client").next().context("there is no client pod")?.place())
}

fn pod_name(stage: &Stage) -> Result<String> {
    let pod = stage.control.pods_of("new-nginx").next().context("new-nginx has no pod")?;
    Ok(pod.name().to_owned())
}

fn from_outside(stage: &Stage, node: usize) -> Attempt {
    Client::at(stage.cluster.outside()).tcp(stage.cluster.node(node).socket_addr(Family::V4, NODE_PORT))
}

fn backend(attempt: &Attempt) -> Option<String> {
    match &attempt.outcome {
        Outcome::Answered(answer) => Some(answer.backend.clone()),
        _ => None,
    }
}

fn peer(attempt: &Attempt) -> Option<IpAddr> {
    match &attempt.outcome {
        Outcome::Answered(answer) => Some(answer.peer.ip()),
        _ => None,
    }
}

/// Without its duration, so that two runs print the same.
fn describe(attempt: &Attempt) -> String {
    let what = match &attempt.outcome {
        Outcome::Answered(answer) => answer.to_string(),
        Outcome::Refused => "refused".to_owned(),
        Outcome::TimedOut => "no answer".to_owned(),
        Outcome::Failed(error) => error.clone(),
    };
    format!("{}: {what}", attempt.what)
}

/// Counts replies by backend; stops at the first attempt without a reply and describes it.
fn tally(count: usize, mut attempt: impl FnMut() -> Result<Attempt>) -> Result<(Tally, Option<String>)> {
    let mut tally = Tally::default();
    for _ in 0..count {
        let attempt = attempt()?;
        match backend(&attempt) {
            Some(name) => tally.add(&name),
            None => return Ok((tally, Some(describe(&attempt)))),
        }
    }
    Ok((tally, None))
}

fn show(tally: &Tally, failed: Option<String>) -> String {
    let counts: Vec<_> = tally.iter().map(|(name, count)| format!("{name} {count} times")).collect();
    counts.into_iter().chain(failed).collect::<Vec<_>>().join(", ")
}
