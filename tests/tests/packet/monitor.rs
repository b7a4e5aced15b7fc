//! The events of `shunt monitor`, field by field; without a monitor nothing is written.

use std::net::SocketAddr;

use anyhow::Result;
use bytemuck::Zeroable as _;
use proxy_common::{
    Addr, Counter, EventKind, FlowEvent, Frontend, Hook, Monitor, Port,
    observe::{EVENTS_BYTES, kinds},
};
use tests::packet::{
    Datapath, Link, Transport,
    datapath::shared,
    events::monotonic,
    frame::ACK,
    world::{FAR_POD, NODE, OUTSIDE, POD, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

/// The required fields of an event about a packet from `src` to `dst`.
fn event(case: Case, src: SocketAddr, dst: SocketAddr, kind: EventKind, hook: Hook) -> FlowEvent {
    FlowEvent {
        src: src.ip().into(),
        sport: Port::new(src.port()),
        client_port: Port::new(src.port()),
        dst: dst.ip().into(),
        dport: Port::new(dst.port()),
        to: Addr::UNSPECIFIED_V6,
        proto: case.proto(),
        kind: kind as u8,
        hook: hook as u8,
        ..FlowEvent::zeroed()
    }
}

/// The only event since the last call, reported between `before` and now, with its time cleared.
#[track_caller]
fn only(node: &mut Datapath, before: u64) -> FlowEvent {
    let told = node.told().expect("EVENTS is readable");
    let [event] = *told else { panic!("{} events: {told:#?}", told.len()) };
    let now = monotonic().expect("a clock");
    assert!((before..=now).contains(&event.time), "{} is not within {before}..{now}", event.time);
    FlowEvent { time: 0, ..event }
}

#[test]
fn a_flow_is_told_once_with_where_it_goes() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let near = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let far = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let here = node.service(case.proto(), &[near], &[near])?;
        let there = node.service(case.proto(), &[far], &[])?;
        node.cluster_ip(&here, case.at(VIP, 80))?;
        node.node_port(&there, case.ip, NODE_PORT, 0)?;
        node.watch(kinds::ALL)?;
        let client = case.at(OUTSIDE, 2000);
        for (front, backend, id, service, flags) in [
            (case.at(VIP, 80), case.at(POD, 8080), near, here.id, FlowEvent::LOCAL),
            (case.at(NODE, NODE_PORT), case.at(FAR_POD, 8080), far, there.id, FlowEvent::MASQUERADED),
        ] {
            let before = monotonic()?;
            let ask = case.packet(client, front);
            case.through(&node, &ask.bytes());
            case.through(&node, &ask.flagged(ACK).bytes());
            let expected = FlowEvent {
                to: backend.ip().into(),
                to_port: Port::new(8080),
                flags,
                service,
                backend: id,
                ifindex: node.uplink,
                ..event(case, client, front, EventKind::Flow, Hook::Ingress)
            };
            assert_eq!(only(&mut node, before), expected, "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn another_client_port_is_told() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        let fronts = [case.at(VIP, 80), case.at(VIP + 1, 80)];
        fronts.iter().try_for_each(|front| node.cluster_ip(&service, *front))?;
        node.watch(kinds::ALL)?;
        fronts.iter().for_each(|front| {
            case.ingress(&node, &case.packet(case.at(OUTSIDE, 2000), *front).bytes()).passed();
        });
        let ports: Vec<_> = node.told()?.iter().map(|it| (it.sport.host(), it.client_port.host())).collect();
        assert_eq!(ports.len(), 2, "{case:?}");
        assert!(ports[0] == (2000, 2000) && ports[1].0 == 2000 && ports[1].1 != 2000, "{ports:?}");
    }
    Ok(())
}

#[test]
fn what_is_refused_or_dropped_says_why_at_both_hooks() -> Result<()> {
    for case in Case::all().into_iter().filter(|case| case.link == Link::Ethernet) {
        let mut node = shared()?;
        let none = node.service(case.proto(), &[], &[])?;
        let far = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let elsewhere = node.service(case.proto(), &[far], &[])?;
        node.cluster_ip(&none, case.at(VIP, 80))?;
        node.node_port(&elsewhere, case.ip, NODE_PORT, Frontend::LOCAL)?;
        node.watch(kinds::ALL)?;
        let (refused, dropped) = (EventKind::Refused, EventKind::Dropped);
        for (from, front, own, kind, reason) in [
            (OUTSIDE, case.at(VIP, 80), false, refused, Counter::NoBackend),
            (NODE, case.at(VIP, 80), true, refused, Counter::NoBackend),
            (OUTSIDE, case.at(NODE, NODE_PORT), false, dropped, Counter::NoLocalEndpoints),
        ] {
            let before = monotonic()?;
            let ask = case.packet(case.at(from, 2000), front);
            let hook = if own { Hook::Egress } else { Hook::Ingress };
            let out =
                if own { node.own(case.link, &ask.bytes()) } else { node.ingress(case.link, &ask.bytes()) };
            if kind == dropped {
                out.dropped();
            } else {
                out.redirected();
            }
            let expected = FlowEvent {
                reason: reason as u32,
                ifindex: node.uplink,
                ..event(case, ask.src, front, kind, hook)
            };
            assert_eq!(only(&mut node, before), expected, "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn the_xdp_lane_tells_of_its_flows() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        node.wire()?;
        let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.node_port(&service, case.ip, NODE_PORT, 0)?;
        node.watch(kinds::ALL)?;
        let before = monotonic()?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
        node.lane(&ask.bytes());
        node.lane(&ask.flagged(ACK).bytes());
        let expected = FlowEvent {
            to: case.at(FAR_POD, 0).ip().into(),
            to_port: Port::new(8080),
            flags: FlowEvent::MASQUERADED,
            service: service.id,
            backend,
            ifindex: node.uplink,
            ..event(case, ask.src, ask.dst, EventKind::Flow, Hook::Xdp)
        };
        assert_eq!(only(&mut node, before), expected, "{case:?}");
    }
    Ok(())
}

#[test]
fn nothing_is_told_that_nobody_wants() -> Result<()> {
    let [case, _] = Case::ethernet(Transport::Udp);
    let mut node = shared()?;
    let none = node.service(case.proto(), &[], &[])?;
    node.cluster_ip(&none, case.at(VIP, 80))?;
    let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80)).bytes();
    let soon = monotonic()? + 60_000_000_000;
    let refused = kinds::bit(EventKind::Refused);
    let nobody = Monitor::zeroed();
    for (monitor, count) in [
        (nobody, 0),
        (Monitor { kinds: refused, one_in: 1, ..nobody }, 0),
        // Its lease has expired.
        (Monitor { until: soon - 60_000_000_000, kinds: refused, one_in: 1, ..nobody }, 0),
        (Monitor { until: soon, kinds: kinds::ALL & !refused, one_in: 1, ..nobody }, 0),
        (Monitor { until: soon, kinds: refused, one_in: 1, ..nobody }, 1),
        (Monitor { until: soon, kinds: refused, one_in: 0, ..nobody }, 1),
    ] {
        node.monitor(monitor)?;
        node.ingress(case.link, &ask).redirected();
        assert_eq!(node.told()?.len(), count, "{monitor:?}");
    }
    node.monitor(Monitor { until: soon, kinds: refused, one_in: 4, lost: 0 })?;
    (0..400).for_each(|_| drop(node.ingress(case.link, &ask).redirected()));
    // 100 on average; the limits are six times the deviation of 9 either way.
    let count = node.told()?.len();
    assert!((46..154).contains(&count), "{count} of 400, one in 4");
    Ok(())
}

/// A full ring loses events, not packets, and the losses are counted.
#[test]
fn what_finds_no_room_is_counted() -> Result<()> {
    let [case, _] = Case::ethernet(Transport::Udp);
    let mut node = shared()?;
    let none = node.service(case.proto(), &[], &[])?;
    node.cluster_ip(&none, case.at(VIP, 80))?;
    node.watch(kinds::ALL)?;
    let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80)).bytes();
    // With a header of 8 bytes each.
    let room = EVENTS_BYTES as usize / (size_of::<FlowEvent>() + 8);
    let asked = room + 100;
    (0..asked).for_each(|_| drop(node.ingress(case.link, &ask).redirected()));
    let (told, lost) = (node.told()?.len(), node.lost()?);
    assert_eq!(told + lost as usize, asked);
    assert!(told <= room && told > room - 10, "{told} of {room}");
    Ok(())
}
