//! Traffic figures of each Service: known traffic, and the same figures wherever they are shown (`shunt top`,
//! `/metrics`, `shunt service`).

use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::{
    manifest::Service,
    net::{
        Lane, Node, Plan,
        cluster::eventually,
        plan::{Family, vip},
    },
    traffic::{Answer, UdpClient},
};

use crate::{
    shown::{Figures, figures, in_list, in_metrics, label, page, series, top, totals},
    world::{PORT, TARGET, World, at, web},
};

const SECOND: Duration = Duration::from_secs(1);
/// Length of the headers in front of a datagram's payload: Ethernet, IPv4 or IPv6, UDP.
const HEADERS: [(Family, u64); 2] = [(Family::V4, 14 + 20 + 8), (Family::V6, 14 + 40 + 8)];

/// All views show the same figures for `web`'s UDP port.
#[track_caller]
fn assert_udp(node: &Node, family: Family, want: &Figures) -> Result<()> {
    let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
    assert_eq!(totals(node, "web", "UDP", name)?, *want, "top {name}");
    assert_eq!(in_metrics(node, "web", "UDP", name)?, *want, "metrics {name}");
    assert_eq!(in_list(node, &web(family).ip().to_string(), "UDP")?, *want, "service list {name}");
    Ok(())
}

/// Sends this many requests; returns the bytes of requests and replies as packets.
fn ask(socket: &UdpClient, count: usize, headers: u64) -> Result<[u64; 2]> {
    let mut bytes = [0, 0];
    for _ in 0..count {
        let answer: Answer = socket.ask()?;
        let question = socket.question();
        bytes[0] += headers + question.len() as u64;
        bytes[1] += headers + format!("{answer} {question}").len() as u64;
    }
    Ok(bytes)
}

/// Packets handled by the XDP program.
fn in_lane(node: &Node) -> Result<u64> {
    Ok(node.counter("xdp_local")? + node.counter("xdp_forwarded")?)
}

/// From pods, from outside and from the node's own sockets, whose packets no program sees.
fn datagrams(plan: Plan, xdp: bool) -> Result<()> {
    let world = World::start(plan, |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    for (family, headers) in HEADERS {
        // The XDP program handles flows whose next hop is in the neighbour table.
        (0..4).for_each(|_| drop(world.outside().tcp(world.node_port(0, family)).answered()));
        assert_udp(node, family, &figures([0; 7]))?;
        let (mut want, mut in_xdp) = ([0; 7], 0);
        let outside = world.outside().udp_connected(world.node_port(0, family))?;
        for socket in [world.pod().udp_connected(web(family))?, outside] {
            let before = in_lane(node)?;
            let [bytes_in, bytes_out] = ask(&socket, 5, headers)?;
            in_xdp += in_lane(node)? - before;
            for (sum, more) in want.iter_mut().zip([1, 5, 5, bytes_in, bytes_out, 0, 0]) {
                *sum += more;
            }
        }
        world.host(0).udp(web(family)).answered();
        want[0] += 1;
        assert_udp(node, family, &figures(want))?;
        assert_eq!(in_xdp > 0, xdp, "{in_xdp} datagrams in the lane");
    }
    Ok(())
}

#[test]
fn datagrams_are_counted_to_the_byte() -> Result<()> {
    datagrams(Plan { xdp: None, ..Plan::default() }, false)
}

#[test]
fn datagrams_in_the_generic_xdp_lane_are_counted_to_the_byte() -> Result<()> {
    datagrams(Plan::default().xdp(Lane::Generic), true)
}

/// The number of packets of a connection depends on the hosts, but its payload does not.
#[test]
fn connections_are_counted_with_what_they_carry() -> Result<()> {
    const UP: u64 = 400_000;
    const DOWN: u64 = 900_000;
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    for (family, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        for (nth, to, from) in
            [(1, web(family), world.pod()), (2, world.node_port(0, family), world.outside())]
        {
            let stream = from.stream(to);
            stream.upload_checked(UP as usize)?;
            stream.download_checked(DOWN as usize)?;
            drop(stream);
            let found = totals(node, "web", "TCP", name)?;
            assert_eq!(found["flows"], nth, "{name}");
            for (way, payload) in [("in", UP), ("out", DOWN)] {
                let (packets, bytes) = (found[&format!("packets_{way}")], found[&format!("bytes_{way}")]);
                let payload = payload * nth;
                // A segment carries 1460 bytes at most; super-packets are counted by segment, with one header.
                assert!(packets >= payload / 1460, "{name} {way}: {packets} packets of {bytes} bytes");
                // Requests and response heads take a few hundred bytes; some packets may be retransmitted.
                let most = payload + payload / 10 + 4000 + packets * 90;
                assert!((payload..most).contains(&bytes), "{name} {way}: {bytes} bytes in {packets} packets");
            }
            // A last acknowledgement may have arrived in between.
            let shown = in_metrics(node, "web", "TCP", name)?;
            assert!(shown["flows"] == nth && shown["bytes_in"] >= found["bytes_in"], "{shown:?} {found:?}");
        }
    }
    Ok(())
}

#[test]
fn a_restart_keeps_totals_and_a_service_made_anew_has_none() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let [bytes_in, bytes_out] = ask(&world.pod().udp_connected(web(Family::V4))?, 3, HEADERS[0].1)?;
    let want = figures([1, 3, 3, bytes_in, bytes_out, 0, 0]);
    assert_udp(node, Family::V4, &want)?;
    node.stop_shunt()?;
    assert_eq!(totals(node, "web", "UDP", "IPv4")?, want, "while no agent runs");
    node.start_shunt(&[])?;
    assert_udp(node, Family::V4, &want)?;
    node.kill_shunt()?;
    node.start_shunt(&[])?;
    assert_udp(node, Family::V4, &want)?;
    // Removed, and no figures of it are shown; its id waits for its flows to end.
    world.cluster.remove("services.yaml")?;
    let is_gone = || {
        let of_web = |page: &[String]| page.iter().any(|line| line.contains("service=\"web\""));
        page(node).is_ok_and(|page| !of_web(&page)) && totals(node, "web", "UDP", "IPv4").is_err()
    };
    eventually(SECOND * 5, is_gone)?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    eventually(SECOND * 5, || totals(node, "web", "UDP", "IPv4").is_ok())?;
    assert_udp(node, Family::V4, &figures([0; 7]))?;
    // The same while no agent is running.
    world.pod().udp(web(Family::V4)).answered();
    node.stop_shunt()?;
    world.cluster.remove("services.yaml")?;
    node.start_shunt(&[])?;
    eventually(SECOND * 5, is_gone)?;
    world.cluster.apply("services.yaml", &world.web().yaml())?;
    eventually(SECOND * 5, || totals(node, "web", "UDP", "IPv4").is_ok())?;
    assert_udp(node, Family::V4, &figures([0; 7]))
}

#[test]
fn without_statistics_it_is_said_that_nobody_counts() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply(
        "services.yaml",
        &[world.web().yaml(), Service::new("empty", vip(11)).tcp(PORT, TARGET).yaml()].join("---\n"),
    )?;
    world.cluster.start(&["--service-stats-max=0"])?;
    let node = world.cluster.node(0);
    world.pod().tcp(web(Family::V4)).answered();
    world.pod().tcp(at(vip(11), Family::V4, PORT)).refused();
    let shown = top(node, &["--service", "default/web"])?;
    assert_eq!(shown["service_stats"], false);
    for row in shown["services"].as_array().context("services")? {
        assert!(row["total"]["flows"].is_null() && row["per_second"]["bytes_in"].is_null(), "{row}");
    }
    let known = totals(node, "empty", "TCP", "IPv4")?;
    assert_eq!((known.len(), known["refused"], known["dropped"]), (2, 1, 0), "{known:?}");
    let output = node.shunt_output(&["top", "--once", "--interval", "100ms"])?;
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--service-stats-max 0")
    );
    let page = page(node)?;
    assert!(series(&page, "shunt_service_flows_total", &[]).is_empty());
    assert_eq!(
        series(
            &page,
            "shunt_service_refused_total",
            &[label("service", "empty"), label("ip_family", "IPv4")]
        )[0]
        .1,
        1
    );
    // Once switched on, counting starts; rejections were counted all along.
    node.stop_shunt()?;
    node.start_shunt(&["--service-metrics-max", "1"])?;
    world.pod().udp(web(Family::V4)).answered();
    assert_eq!(totals(node, "web", "UDP", "IPv4")?["flows"], 1);
    assert_eq!(totals(node, "empty", "TCP", "IPv4")?["refused"], 1);
    bounded(node)
}

/// Of an agent with `--service-metrics-max 1`.
fn bounded(node: &Node) -> Result<()> {
    let page = page(node)?;
    let refused = series(&page, "shunt_service_refused_total", &[]);
    let other =
        series(&page, "shunt_service_refused_total", &[label("service", "_other"), label("namespace", "")]);
    assert!(refused.len() == 2 && other.len() == 1, "{refused:?}");
    assert_eq!(refused.iter().map(|(_, value)| value).sum::<u64>(), 1, "{refused:?}");
    Ok(())
}

#[test]
fn top_at_the_command_line() -> Result<()> {
    let world = World::start(Plan::default(), |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    let output = node.shunt_output(&["top"])?;
    assert_eq!(output.status.code(), Some(2), "no terminal: {output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--once"), "{output:?}");
    assert_eq!(node.shunt_output(&["top", "--once", "--interval", "1ms"])?.status.code(), Some(2));
    assert_eq!(node.shunt_output(&["top", "--once", "--service", "default/none"])?.status.code(), Some(1));
    world.pod().udp(web(Family::V6)).answered();
    let table =
        node.shunt_command(&["top", "--once", "--interval", "100ms", "--sort", "service", "--limit", "2"])?;
    assert!(table.starts_with("SERVICE ") && table.lines().count() == 3, "{table}");
    let bare = node.shunt_command(&["top", "--once", "--interval", "100ms", "--no-headers"])?;
    assert!(bare.lines().count() == 4 && bare.lines().all(|line| line.starts_with("default/web:")), "{bare}");
    let yaml = node.shunt_command(&["top", "--once", "--interval", "100ms", "-o", "yaml"])?;
    assert!(yaml.contains("service_stats: true"), "{yaml}");
    Ok(())
}
