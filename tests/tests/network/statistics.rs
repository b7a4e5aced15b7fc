//! What each Service carries, and what each device refuses and drops: known traffic, and the same figures wherever they
//! are shown (`shunt top`, `/metrics`, `shunt service`, `shunt counter`).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{
    manifest::Service,
    net::{
        Lane, Node, Plan,
        cluster::eventually,
        plan::{BOTH, Family, vip},
    },
    traffic::{Answer, UdpClient},
};

use crate::world::{NODE_PORT, PORT, TARGET, World, at, web, web_addr};

const SECOND: Duration = Duration::from_secs(1);
const METRICS: u16 = 10_249;
/// What lies in front of a datagram's payload: Ethernet, IPv4 or IPv6, UDP.
const HEADERS: [(Family, u64); 2] = [(Family::V4, 14 + 20 + 8), (Family::V6, 14 + 40 + 8)];

/// Figures of one service port, by their JSON names.
type Figures = BTreeMap<String, u64>;

/// `shunt top --once -o json` of a node, its one object.
fn top(node: &Node, more: &[&str]) -> Result<Value> {
    let shown = node.shunt_json(&[&["top", "--once", "--interval", "100ms"], more].concat())?;
    shown.get(0).cloned().context("top shows nothing")
}

/// What top says that one service port has had.
fn totals(node: &Node, service: &str, protocol: &str, family: &str) -> Result<Figures> {
    let shown = top(node, &[])?;
    let rows = shown["services"].as_array().context("services")?;
    let row = rows
        .iter()
        .find(|row| row["name"] == service && row["protocol"] == protocol && row["family"] == family)
        .with_context(|| format!("no {service} {protocol} {family} in {shown}"))?;
    assert_eq!(row["namespace"], "default");
    let totals = row["total"].as_object().context("totals")?;
    Ok(totals.iter().filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect())
}

/// The lines of `/metrics`.
fn page(node: &Node) -> Result<Vec<String>> {
    let answer = node.get(METRICS, "/metrics")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(body.lines().map(str::to_owned).collect())
}

/// Series of a metric that have all of these labels, with their values.
fn series<'a>(page: &'a [String], name: &str, labels: &[String]) -> Vec<(&'a str, u64)> {
    let of_name = |line: &&'a String| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    let lines = page.iter().filter(of_name).filter(|line| labels.iter().all(|label| line.contains(label)));
    lines
        .filter_map(|line| line.rsplit_once(' ').and_then(|(name, value)| Some((name, value.parse().ok()?))))
        .collect()
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

/// The same from `/metrics`.
fn in_metrics(node: &Node, service: &str, protocol: &str, family: &str) -> Result<Figures> {
    let page = page(node)?;
    let mut found = Figures::new();
    for (figure, metric, direction) in [
        ("flows", "flows", None),
        ("packets_in", "packets", Some("in")),
        ("packets_out", "packets", Some("out")),
        ("bytes_in", "bytes", Some("in")),
        ("bytes_out", "bytes", Some("out")),
        ("refused", "refused", None),
        ("dropped", "dropped", None),
    ] {
        let mut labels = vec![label("namespace", "default"), label("service", service)];
        labels.extend([label("protocol", protocol), label("ip_family", family)]);
        labels.extend(direction.map(|direction| label("direction", direction)));
        match series(&page, &format!("shunt_service_{metric}_total"), &labels)[..] {
            [(_, value)] => drop(found.insert(figure.to_owned(), value)),
            ref other => anyhow::bail!("{metric} {labels:?}: {other:?}"),
        }
    }
    Ok(found)
}

/// And from `shunt service list`.
fn in_list(node: &Node, address: &str, protocol: &str) -> Result<Figures> {
    let list = node.shunt_json(&["service", "list"])?;
    let rows = list.as_array().context("rows")?;
    let row = rows.iter().find(|row| row["address"] == address && row["protocol"] == protocol);
    let statistics = row.and_then(|row| row["statistics"].as_object()).context("statistics")?;
    let figures = statistics.iter().filter(|(name, _)| !name.ends_with("_flows"));
    Ok(figures.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect())
}

/// `[flows, packets in, packets out, bytes in, bytes out, refused, dropped]` by name.
fn figures(values: [u64; 7]) -> Figures {
    let names = ["flows", "packets_in", "packets_out", "bytes_in", "bytes_out", "refused", "dropped"];
    names.map(str::to_owned).into_iter().zip(values).collect()
}

/// Everybody says the same of `web`'s UDP port.
#[track_caller]
fn assert_udp(node: &Node, family: Family, want: &Figures) -> Result<()> {
    let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
    assert_eq!(totals(node, "web", "UDP", name)?, *want, "top {name}");
    assert_eq!(in_metrics(node, "web", "UDP", name)?, *want, "metrics {name}");
    assert_eq!(in_list(node, &web(family).ip().to_string(), "UDP")?, *want, "service list {name}");
    Ok(())
}

/// Asks so often; the bytes of questions and answers as packets.
fn ask(socket: &UdpClient, count: usize, headers: u64) -> Result<[u64; 2]> {
    let mut bytes = [0, 0];
    for nth in 0..count {
        let answer: Answer = socket.ask()?;
        let question = format!("q{nth}");
        bytes[0] += headers + question.len() as u64;
        bytes[1] += headers + format!("{answer} {question}").len() as u64;
    }
    Ok(bytes)
}

/// Packets that the lane has taken.
fn in_lane(node: &Node) -> Result<u64> {
    Ok(node.counter("xdp_local")? + node.counter("xdp_forwarded")?)
}

/// From pods, from outside and from the node's own sockets, whose packets nobody sees.
fn datagrams(plan: Plan, xdp: bool) -> Result<()> {
    let world = World::start(plan, |world| world.web().yaml())?;
    let node = world.cluster.node(0);
    for (family, headers) in HEADERS {
        // The lane takes flows whose next hop the neighbour table has.
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

/// How many packets a connection takes is the hosts' affair, but not what they carry.
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
                // A segment carries 1460 bytes at most; super-packets count by their segments, and have one head.
                assert!(packets >= payload / 1460, "{name} {way}: {packets} packets of {bytes} bytes");
                // Requests and heads of answers are some hundred bytes; some packets may be sent again.
                let most = payload + payload / 10 + 4000 + packets * 90;
                assert!((payload..most).contains(&bytes), "{name} {way}: {bytes} bytes in {packets} packets");
            }
            // A last acknowledgement may have come in between.
            let shown = in_metrics(node, "web", "TCP", name)?;
            assert!(shown["flows"] == nth && shown["bytes_in"] >= found["bytes_in"], "{shown:?} {found:?}");
        }
    }
    Ok(())
}

/// `empty` has no endpoint, and `away` has policy Local and its endpoint on the other node.
fn nobody(world: &World) -> String {
    let empty = Service::new("empty", vip(11)).tcp(PORT, TARGET).udp(PORT, TARGET);
    let away = Service::new("away", web_addr()).node_port(PORT, TARGET, NODE_PORT).external_traffic_local();
    [empty.yaml(), away.pods(&[&world.far]).yaml()].join("---\n")
}

/// Rows of `shunt counter list` by device; the total has none.
fn by_device(node: &Node, counter: &str) -> Result<BTreeMap<String, u64>> {
    let list = node.shunt_json(&["counter", "list"])?;
    let rows = list.as_array().context("rows")?.iter().filter(|row| row["name"] == counter);
    let text = |row: &Value| row["device"].as_str().unwrap_or_default().to_owned();
    Ok(rows.map(|row| (text(row), row["value"].as_u64().unwrap_or_default())).collect())
}

/// What `/metrics` has of a reason, by device.
fn of_devices(node: &Node, metric: &str, reason: &str) -> Result<BTreeMap<String, u64>> {
    let page = page(node)?;
    let found = series(&page, &format!("shunt_datapath_{metric}_total"), &[label("reason", reason)]);
    let device = |series: &str| {
        series.split("device=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("?").to_owned()
    };
    Ok(found.into_iter().map(|(series, value)| (device(series), value)).collect())
}

fn map<const N: usize>(entries: [(&str, u64); N]) -> BTreeMap<String, u64> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn refusals_and_drops_have_a_service_a_reason_and_a_device() -> Result<()> {
    let world = World::start(Plan::default(), nobody)?;
    let node = world.cluster.node(0);
    let pod = world.client.device();
    for family in BOTH {
        world.pod().tcp(at(vip(11), family, PORT)).refused();
        world.pod().udp(at(vip(11), family, PORT)).refused();
        world.host(0).tcp(at(vip(11), family, PORT)).refused();
        world.outside().udp(world.node_port(0, family)).timed_out();
    }
    for family in ["IPv4", "IPv6"] {
        let tcp = figures([0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(totals(node, "empty", "TCP", family)?, tcp);
        assert_eq!(in_metrics(node, "empty", "TCP", family)?, tcp);
        assert_eq!(totals(node, "empty", "UDP", family)?, figures([0, 0, 0, 0, 0, 1, 0]));
        assert_eq!(in_metrics(node, "away", "UDP", family)?, figures([0, 0, 0, 0, 0, 0, 1]));
    }
    let refused = by_device(node, "no_backend")?;
    assert_eq!(refused, map([("", 6), (pod, 4), ("(sockets)", 2)]));
    assert_eq!(node.counter("no_backend")?, 6, "the total comes first");
    assert_eq!(by_device(node, "no_local_endpoints")?, map([("", 2), ("eth0", 2)]));
    assert_eq!(of_devices(node, "refusals", "no_backend")?, map([("", 2), (pod, 4)]));
    assert_eq!(of_devices(node, "drops", "no_local_endpoints")?, map([("", 0), ("eth0", 2)]));
    let shown = top(node, &["--sort", "dropped"])?;
    let drops = shown["drops"].as_array().context("drops")?;
    let found = |reason: &str, device: &str| {
        drops
            .iter()
            .find(|row| row["reason"] == reason && row["device"] == device)
            .map(|row| row["total"].clone())
    };
    assert_eq!(found("no_local_endpoints", "eth0"), Some(2.into()), "{shown}");
    assert_eq!(found("no_backend", "(sockets)"), Some(2.into()), "{shown}");
    assert_eq!(
        (&shown["node"]["refused"]["total"], &shown["node"]["dropped"]["total"]),
        (&6.into(), &2.into())
    );
    // In words: totals alone, and devices where there is room.
    let table = node.shunt_command(&["counter", "list"])?;
    assert!(!table.contains("eth0") && !table.contains("DEVICE"), "{table}");
    let wide = node.shunt_command(&["counter", "list", "-o", "wide"])?;
    assert!(wide.contains("DEVICE") && wide.contains("eth0") && wide.contains("(sockets)"), "{wide}");
    Ok(())
}

/// A pod that goes takes its device's entries along; the total, and what other devices have, stay.
#[test]
fn a_device_that_is_gone_leaves_its_drops_to_the_total() -> Result<()> {
    let world = World::without_shunt(Plan::default())?;
    world.cluster.apply("services.yaml", &nobody(&world))?;
    world.cluster.start(&["--iptables-sync-period", "1s"])?;
    let node = world.cluster.node(0);
    let guest = world.cluster.add_pod(0, "guest")?;
    let to = at(vip(11), Family::V4, PORT);
    eventually(SECOND * 5, || {
        node.shunt_json(&["link", "list"]).is_ok_and(|links| links.to_string().contains(guest.device()))
    })?;
    tests::traffic::Client::at(guest.place()).udp(to).refused();
    world.pod().udp(to).refused();
    assert_eq!(
        by_device(node, "no_backend")?,
        map([("", 2), (guest.device(), 1), (world.client.device(), 1)])
    );
    let device = guest.device().to_owned();
    world.cluster.remove_pod(&guest)?;
    let folded = map([("", 2), (world.client.device(), 1), ("(gone)", 1)]);
    eventually(SECOND * 10, || by_device(node, "no_backend").is_ok_and(|found| found == folded))?;
    let shown = of_devices(node, "refusals", "no_backend")?;
    assert_eq!(shown, map([("", 0), (world.client.device(), 1)]), "{device} is gone");
    let events = series(&page(node)?, "shunt_datapath_events_total", &[label("event", "no_backend")])[0].1;
    assert_eq!(events, 2);
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
    // Gone, and nothing of it is shown; its id waits for its flows to end.
    world.cluster.remove("services.yaml")?;
    let is_gone = || {
        let of_web = |page: &[String]| page.iter().any(|line| line.contains("service=\"web\""));
        page(node).is_ok_and(|page| !of_web(&page)) && totals(node, "web", "UDP", "IPv4").is_err()
    };
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
    world.cluster.start(&["--service-stats=false"])?;
    let node = world.cluster.node(0);
    world.pod().tcp(web(Family::V4)).answered();
    world.pod().tcp(at(vip(11), Family::V4, PORT)).refused();
    let shown = top(node, &["--service", "default/web"])?;
    assert_eq!(shown["service_stats"], false);
    for row in shown["services"].as_array().context("services")? {
        assert!(row["total"]["flows"].is_null() && row["per_second"]["bytes_in"].is_null(), "{row}");
    }
    assert_eq!(totals(node, "empty", "TCP", "IPv4")?, map([("refused", 1), ("dropped", 0)]));
    let output = node.shunt_output(&["top", "--once", "--interval", "100ms"])?;
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--service-stats=false")
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
    // Turned on, they begin; refusals go on.
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
