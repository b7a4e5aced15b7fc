//! The monitor's lease: one monitor at a time, for the duration it requests, at no cost otherwise. And it keeps up with
//! the events.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, MapData, RingBuf};
use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use tests::{
    net::{Monitor, Node, Plan, cluster::eventually, plan::Family, shunt},
    traffic::Outcome,
};

use crate::world::{World, web};

fn start() -> Result<World> {
    World::start(Plan::default(), |world| world.web().yaml())
}

/// The path where EVENTS is pinned, under any version of the contract.
fn events_path(node: &Node) -> std::path::PathBuf {
    node.bpffs().join(format!("v{}/maps/EVENTS", proxy_common::SCHEMA))
}

/// Drains EVENTS, with no other reader at the same time; returns the number of events.
fn unread(node: &Node) -> Result<usize> {
    let map = Map::from_map_data(MapData::from_pin(events_path(node))?)?;
    let mut ring: RingBuf<MapData> = map.try_into()?;
    let mut count = 0;
    while ring.next().is_some() {
        count += 1;
    }
    Ok(count)
}

/// MONITOR's `until`.
fn until(node: &Node) -> Result<u64> {
    let dump = node.shunt_command(&["-j", "map", "dump", "MONITOR", "--all"])?;
    let value: serde_json::Value = serde_json::from_str(&dump)?;
    let field = |value: &serde_json::Value| -> Option<u64> {
        value.as_array()?.first()?["formatted"]["value"]["until"].as_u64()
    };
    field(&value).with_context(|| dump.clone())
}

fn monotonic() -> Result<u64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64)
}

/// `count` flows at once: one datagram each, from consecutive source ports.
fn burst(world: &World, first: u16, count: u16) -> Result<Duration> {
    let (own, to) = (world.client.addr().v4, web(Family::V4));
    world.client.place().netns().enter(|| {
        let start = Instant::now();
        for port in first..first + count {
            UdpSocket::bind(SocketAddr::new(own.into(), port))?.send_to(b"hello", to)?;
        }
        Ok(start.elapsed())
    })
}

#[test]
fn nothing_is_written_while_nobody_watches() -> Result<()> {
    let world = start()?;
    let node = world.cluster.node(0);
    world.pod().tcp(web(Family::V4)).answered();
    world.host(0).tcp(web(Family::V4)).answered();
    assert_eq!((until(node)?, unread(node)?), (0, 0));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let monitor = Monitor::start(node, &[])?;
        let ahead = until(node)?.saturating_sub(monotonic()?);
        assert!((1_000_000_000..=3_000_000_000).contains(&ahead), "{ahead} ns");
        monitor.signal(signal)?;
        assert!(monitor.wait()?.status.success(), "{signal}");
        assert_eq!(until(node)?, 0, "{signal}");
    }
    world.pod().tcp(web(Family::V4)).answered();
    assert_eq!(unread(node)?, 0);
    Ok(())
}

/// Its lease expires by itself; unread events are discarded.
#[test]
fn a_killed_watcher_costs_nothing_for_long() -> Result<()> {
    let world = start()?;
    let node = world.cluster.node(0);
    let monitor = Monitor::start(node, &[])?;
    monitor.signal(Signal::SIGKILL)?;
    assert!(!monitor.wait()?.status.success());
    let left = until(node)?;
    assert_ne!(left, 0, "killed, it could not end its lease");
    world.pod().tcp(web(Family::V4)).answered();
    // The lock was released with the process.
    let next = Monitor::start(node, &["--count", "1"])?;
    world.pod().udp(web(Family::V4)).answered();
    let told = next.wait()?;
    assert!(told.lines.len() == 1 && told.lines[0].contains("\"UDP\""), "an earlier one's events: {told:?}");

    let monitor = Monitor::start(node, &[])?;
    monitor.signal(Signal::SIGKILL)?;
    monitor.wait()?;
    let over = || Ok::<_, anyhow::Error>(until(node)? < monotonic()?);
    eventually(Duration::from_secs(4), || over().unwrap_or(false))?;
    unread(node)?;
    world.pod().tcp(web(Family::V4)).answered();
    world.host(0).tcp(web(Family::V4)).answered();
    assert_eq!(unread(node)?, 0);
    Ok(())
}

#[test]
fn a_second_watcher_is_refused() -> Result<()> {
    let world = start()?;
    let node = world.cluster.node(0);
    let monitor = Monitor::start(node, &[])?;
    let second = node.shunt_output(&["monitor"])?;
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another `shunt monitor`") && second.stdout.is_empty(), "{said}");
    // Which takes nothing from the first monitor.
    world.pod().tcp(web(Family::V4)).answered();
    monitor.event(&[("kind", "flow".into())])?;
    Ok(())
}

#[test]
fn it_ends_by_itself() -> Result<()> {
    let world = start()?;
    let node = world.cluster.node(0);
    let monitor = Monitor::start(node, &["--count", "3"])?;
    for _ in 0..5 {
        world.pod().tcp(web(Family::V4)).answered();
    }
    let ended = monitor.wait()?;
    assert!(ended.status.success() && ended.lines.len() == 3, "{ended:?}");
    assert_eq!(until(node)?, 0);

    // Events reported before the signal are printed.
    let monitor = Monitor::start(node, &[])?;
    (0..20).for_each(|_| drop(world.pod().tcp(web(Family::V4)).answered()));
    assert_eq!(monitor.stop()?.lines.len(), 20);

    let start = Instant::now();
    let ended = Monitor::start(node, &["--duration", "1200ms"])?.wait()?;
    assert!(ended.status.success() && start.elapsed() >= Duration::from_millis(1200), "{ended:?}");

    // Its reader is gone: it notices without an event to write.
    let mut command = node.netns().command(shunt::binary()?);
    command.args(["monitor", "--bpffs"]).arg(node.bpffs()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    drop(child.stdout.take());
    let mut status = None;
    let ended = eventually(Duration::from_secs(3), || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ensure!(status.is_some_and(|status| status.success()), "{status:?}");
    assert_eq!(until(node)?, 0);

    for bad in [["--kind", "lost"], ["--address", "10.0.0"], ["--duration", "soon"]] {
        assert_eq!(node.shunt_output(&[&["monitor"], &bad[..]].concat())?.status.code(), Some(2), "{bad:?}");
    }
    Ok(())
}

/// The maps outlive the agent, and so does a monitor; it exits when the maps are removed.
#[test]
fn an_agent_that_restarts_is_not_noticed_and_one_that_is_removed_is() -> Result<()> {
    let world = start()?;
    let node = world.cluster.node(0);
    let monitor = Monitor::start(node, &[])?;
    let tell = |port: u16| -> Result<()> {
        world.pod().port(port).tcp(web(Family::V4)).answered();
        let client = SocketAddr::new(world.client.addr().of(Family::V4), port).to_string();
        monitor.event(&[("client", client.into())]).map(drop)
    };
    tell(21_001)?;
    node.stop_shunt()?;
    tell(21_002)?;
    node.start_shunt(&[])?;
    tell(21_003)?;
    node.stop_shunt()?;
    node.shunt_command(&["cleanup"])?;
    let ended = monitor.wait()?;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("MONITOR is gone") && ended.stderr.contains("cleanup"), "{ended:?}");
    let none = node.shunt_output(&["monitor"])?;
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(1) && said.contains("no pinned maps"), "{said}");
    Ok(())
}

#[test]
fn a_burst_is_told_whole_and_a_sample_of_it_in_part() -> Result<()> {
    const FLOWS: u16 = 5000;
    let world = start()?;
    let node = world.cluster.node(0);
    let monitor =
        Monitor::start(node, &["--protocol", "udp", "--address", &world.client.addr().v4.to_string()])?;
    let took = burst(&world, 10_000, FLOWS)?;
    let told = eventually(Duration::from_secs(10), || monitor.lines().len() == usize::from(FLOWS));
    let ended = monitor.stop()?;
    println!("{FLOWS} flows in {took:?}, told {:?} later; {:?}", told, ended.stderr);
    assert!(
        ended.stderr.is_empty() && ended.lines.len() == usize::from(FLOWS),
        "{} {}",
        ended.lines.len(),
        ended.stderr
    );

    let monitor = Monitor::start(node, &["--sample", "5"])?;
    burst(&world, 20_000, 2000)?;
    // 400 on average; the limits are ten times the deviation of 18 either way.
    thread::sleep(Duration::from_millis(300));
    let count = monitor.stop()?.lines.len();
    assert!((220..580).contains(&count), "{count} of 2000, one in 5");
    Ok(())
}

/// It may read and map the pins, and nothing else.
#[test]
fn with_cap_bpf_alone() -> Result<()> {
    let world = start()?;
    let node = world.cluster.node(0);
    let mut command = node.netns().command("setpriv");
    command.args(["--inh-caps", "-all,+bpf", "--bounding-set", "-all,+bpf", "--no-new-privs"]);
    command.arg(shunt::binary()?).args(["monitor", "-j", "--count", "1", "--bpffs"]).arg(node.bpffs());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    eventually(Duration::from_secs(5), || until(node).is_ok_and(|until| until != 0))?;
    world.pod().tcp(web(Family::V4)).answered();
    let output = child.wait_with_output()?;
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("default/web"), "{told}{said}");
    Ok(())
}

/// Its output is not read: the ring fills, lost events are counted and reported, and packets are unaffected.
#[test]
fn what_nobody_reads_is_lost_and_told() -> Result<()> {
    let world = start()?;
    let node = world.cluster.node(0);
    let mut command = node.netns().command(shunt::binary()?);
    command
        .args(["monitor", "-j", "--bpffs"])
        .arg(node.bpffs())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    eventually(Duration::from_secs(5), || until(node).is_ok_and(|until| until != 0))?;
    burst(&world, 5000, 15_000)?;
    let outcome = world.pod().tcp(web(Family::V4)).outcome;
    // It renews its lease while it waits for its reader, and a signal ends it.
    thread::sleep(Duration::from_millis(3500));
    let renewed = until(node)?.saturating_sub(monotonic()?);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    let ended = eventually(Duration::from_secs(3), || matches!(child.try_wait(), Ok(Some(_))));
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(ended.is_ok() && output.status.success(), "{:?}: {said}", output.status);
    assert!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
    assert!(renewed > 0 && said.contains("events lost") && said.contains("--sample"), "{renewed}: {said}");
    Ok(())
}
