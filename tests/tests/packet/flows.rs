//! Flows with conflicting tuples, closed flows, and TCP's states.

use std::net::SocketAddr;

use anyhow::Result;
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Port, tcp};
use tests::packet::{
    Datapath, Hook, Transport, Way,
    datapath::shared,
    frame::{ACK, FIN, RST, SYN},
    world::{FAR_POD, OUTSIDE, POD, VIP},
};

use crate::case::Case;

/// A backend of two VIPs that a client also connects to directly.
fn two_vips(case: Case, node: &mut Datapath, back: SocketAddr, local: bool) -> Result<[SocketAddr; 3]> {
    let backend = node.backend(back, case.proto(), local)?;
    for vip in [VIP, VIP + 1] {
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(vip, 80))?;
    }
    Ok([case.at(VIP, 80), case.at(VIP + 1, 80), back])
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn one_client_port_to_two_vips_and_directly_to_their_backend() -> Result<()> {
    for case in Case::all() {
        for order in ORDERS {
            for (client, host, local) in [(POD, POD + 1, true), (POD, FAR_POD, false), (OUTSIDE, POD, true)] {
                let mut node = shared()?;
                let back = case.at(host, 8080);
                let fronts = two_vips(case, &mut node, back, local)?;
                let client = case.at(client, 2000);
                let mut sources: Vec<SocketAddr> = Vec::new();
                for index in order {
                    let ask = case.packet(client, fronts[index]);
                    let (source, to) = case.goes_whole(&node, &ask);
                    assert_eq!((to, source.ip()), (back, client.ip()), "{case:?} {order:?}");
                    assert!(!sources.contains(&source), "{case:?} {order:?}: two flows in one tuple");
                    sources.push(source);
                }
                assert_eq!(sources[0], client, "{case:?} {order:?}: the first keeps its port");
                assert_eq!(node.counter(Counter::FlowPortChanged), 2);
                // All three flows are open at once, in both directions.
                for _ in 0..2 {
                    for (index, source) in order.into_iter().zip(&sources) {
                        let answer = case.packet(back, *source).flagged(ACK);
                        let ends = case.goes_whole(&node, &answer);
                        assert_eq!(ends, (fronts[index], client), "{case:?} {order:?}");
                        let more = case.packet(client, fronts[index]).flagged(ACK);
                        assert_eq!(case.goes_whole(&node, &more), (*source, back), "{case:?} {order:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn one_client_port_to_two_vips_with_translated_sources() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let back = case.at(FAR_POD, 8080);
        let fronts = two_vips(case, &mut node, back, false)?;
        let client = case.at(OUTSIDE, 2000);
        let mut sources = Vec::new();
        for front in &fronts[..2] {
            let (source, to) = case.goes_whole(&node, &case.packet(client, *front));
            assert_eq!(to, back);
            sources.push(source);
        }
        assert_ne!(sources[0], sources[1], "{case:?}");
        for (front, source) in fronts.iter().zip(&sources) {
            let answer = case.packet(back, *source).flagged(ACK);
            assert_eq!(case.goes_whole(&node, &answer), (*front, client), "{case:?}");
        }
    }
    Ok(())
}

/// Opens a TCP flow and closes it from both sides.
fn open_and_close(
    case: Case,
    node: &Datapath,
    client: SocketAddr,
    front: SocketAddr,
) -> (SocketAddr, SocketAddr) {
    let ask = case.packet(client, front);
    let ends = case.goes_whole(node, &ask);
    let answer = case.packet(ends.1, ends.0);
    for (packet, want) in [
        (answer.flagged(SYN | ACK), (front, client)),
        (ask.flagged(ACK), ends),
        (ask.flagged(FIN | ACK), ends),
        (answer.flagged(FIN | ACK), (front, client)),
        (ask.flagged(ACK), ends),
    ] {
        assert_eq!(case.goes_whole(node, &packet), want, "{case:?}");
    }
    ends
}

/// Until then the backend is in LAST-ACK, and takes a SYN with this tuple for a segment of the old connection.
#[test]
fn the_tuple_towards_the_backend_is_free_when_the_last_fin_is_acknowledged() -> Result<()> {
    for case in Case::tcp() {
        for acknowledged in [false, true] {
            let mut node = shared()?;
            let (client, back) = (case.at(POD, 2000), case.at(POD + 1, 8080));
            let fronts = two_vips(case, &mut node, back, true)?;
            let ask = case.packet(client, fronts[0]);
            let answer = case.packet(back, client);
            case.goes_whole(&node, &ask);
            for (packet, end) in [
                (&answer, SYN | ACK),
                (&ask, ACK),
                (&ask, FIN | ACK),
                (&answer, FIN | ACK),
                (&answer, FIN | ACK),
            ] {
                case.goes_whole(&node, &packet.flagged(end));
            }
            if acknowledged {
                case.goes_whole(&node, &ask.flagged(ACK));
            }
            let (source, to) = case.goes_whole(&node, &case.packet(client, fronts[1]));
            assert_eq!(to, back, "{case:?}");
            assert_eq!(source == client, acknowledged, "{case:?}: {source}");
        }
    }
    Ok(())
}

/// The backend holds the tuple in TIME-WAIT, and compares timestamps that the client chose for another address.
#[test]
fn a_backend_that_closed_first_sees_another_port() -> Result<()> {
    for case in Case::tcp() {
        let mut node = shared()?;
        let (client, back) = (case.at(POD, 2000), case.at(POD + 1, 8080));
        let fronts = two_vips(case, &mut node, back, true)?;
        let ask = case.packet(client, fronts[0]);
        let answer = case.packet(back, client);
        case.goes_whole(&node, &ask);
        for (packet, flags) in
            [(&answer, SYN | ACK), (&ask, ACK), (&answer, FIN | ACK), (&ask, FIN | ACK), (&answer, ACK)]
        {
            case.goes_whole(&node, &packet.flagged(flags));
        }
        let (source, to) = case.goes_whole(&node, &case.packet(client, fronts[1]));
        assert_eq!((source.ip(), to), (client.ip(), back), "{case:?}");
        assert_ne!(source.port(), client.port(), "{case:?}");
    }
    Ok(())
}

#[test]
fn a_direct_connection_on_the_port_of_an_old_service_connection() -> Result<()> {
    for case in Case::tcp() {
        let mut node = shared()?;
        let (client, back) = (case.at(POD, 2000), case.at(POD + 1, 8080));
        let fronts = two_vips(case, &mut node, back, true)?;
        open_and_close(case, &node, client, fronts[0]);
        // No garbage collection has run.
        let direct = case.packet(client, back);
        assert_eq!(case.goes_whole(&node, &direct), (client, back), "{case:?}");
        let answer = case.packet(back, client).flagged(SYN | ACK);
        assert_eq!(
            case.goes_whole(&node, &answer),
            (back, client),
            "{case:?}: the reply is the backend's own"
        );
        assert_eq!(node.counter(Counter::FlowPortChanged), 0);
        // And back again, over the other Service.
        open_and_close(case, &node, client, back);
        assert_eq!(open_and_close(case, &node, client, fronts[1]), (client, back), "{case:?}");
        assert_eq!(node.counter(Counter::FlowPortChanged), 0);
    }
    Ok(())
}

#[test]
fn a_closed_tuple_is_free_at_once() -> Result<()> {
    for case in Case::tcp() {
        for (client, hosts, local) in
            [(POD, [POD + 1, POD + 2], true), (OUTSIDE, [FAR_POD, FAR_POD + 1], false)]
        {
            let mut node = shared()?;
            let backends = hosts
                .map(|host| node.backend(case.at(host, 8080), case.proto(), local))
                .into_iter()
                .collect::<Result<Vec<_>>>()?;
            let service = node.service(case.proto(), &backends, &[])?;
            node.cluster_ip(&service, case.at(VIP, 80))?;
            let (client, front) = (case.at(client, 2000), case.at(VIP, 80));
            let mut before = Vec::new();
            for round in 0..6 {
                let ends = open_and_close(case, &node, client, front);
                // A new backend is selected, with the same source as before.
                assert_eq!(ends.1, case.at(hosts[round % 2], 8080), "{case:?} round {round}");
                assert_eq!(ends.0.port(), 2000, "{case:?} round {round}");
                before.push(node.flows().len());
            }
            assert!(before[5] <= before[1], "{case:?}: old halves are left: {before:?}");
            assert_eq!(before[5] as u32, if local { 2 } else { 4 }, "{case:?}: {before:?}");
        }
    }
    Ok(())
}

#[test]
fn a_syn_moves_on_from_a_backend_that_is_gone() -> Result<()> {
    for case in Case::tcp() {
        let mut node = shared()?;
        let one = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[one], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
        assert_eq!(case.goes_whole(&node, &ask).1, case.at(POD, 8080));
        let two = node.backend(case.at(POD + 1, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[two], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        node.retire(one)?;
        assert_eq!(
            case.goes_whole(&node, &ask.flagged(ACK)).1,
            case.at(POD, 8080),
            "{case:?}: not in mid-stream"
        );
        assert_eq!(case.goes_whole(&node, &ask).1, case.at(POD + 1, 8080), "{case:?}: but with a SYN");
    }
    Ok(())
}

/// State of both halves, which must agree. The numbers above it are each half's own.
fn state(node: &Datapath, want: usize) -> u64 {
    let flows = node.flows();
    let states: Vec<_> = flows
        .values()
        .filter(|entry| entry.has(CtEntry::REQUEST) || entry.has(CtEntry::REPLY))
        .map(|entry| entry.state & tcp::FLAGS)
        .collect();
    assert_eq!(states.len(), want);
    assert!(states.iter().all(|state| *state == states[0]), "halves disagree: {states:?}");
    states[0]
}

#[test]
fn states_of_a_connection() -> Result<()> {
    for case in Case::tcp() {
        for (client, host, local) in [(POD, POD + 1, true), (OUTSIDE, FAR_POD, false)] {
            let mut node = shared()?;
            let back = case.at(host, 8080);
            let fronts = two_vips(case, &mut node, back, local)?;
            let client = case.at(client, 2000);
            let ask = case.packet(client, fronts[0]);
            let (source, _) = case.goes_whole(&node, &ask);
            let answer = case.packet(back, source);
            let near_reset = answer.flagged(RST).numbered(0x1234_6000, 0);
            assert_eq!(tcp::name(state(&node, 2), 6), "SYN_SENT");
            for (packet, name) in [
                (answer.flagged(SYN | ACK), "SYN_RECV"),
                (ask.flagged(ACK), "ESTABLISHED"),
                // Traffic takes a reset back whose number is only near.
                (near_reset.clone(), "CLOSE"),
                (ask.flagged(ACK), "ESTABLISHED"),
                (answer.flagged(FIN | ACK), "CLOSE_WAIT"),
                (ask.flagged(ACK), "CLOSE_WAIT"),
                (ask.flagged(FIN | ACK), "TIME_WAIT"),
                (answer.flagged(ACK), "TIME_WAIT"),
            ] {
                case.goes_whole(&node, &packet);
                assert_eq!(tcp::name(state(&node, 2), 6), name, "{case:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn states_of_datagrams() -> Result<()> {
    for case in Case::ethernet(Transport::Udp) {
        let mut node = shared()?;
        let back = case.at(POD, 8080);
        let fronts = two_vips(case, &mut node, back, true)?;
        let client = case.at(OUTSIDE, 2000);
        for _ in 0..2 {
            case.goes_whole(&node, &case.packet(client, fronts[0]));
            assert_eq!(tcp::name(state(&node, 2), 17), "UNREPLIED");
        }
        case.goes_whole(&node, &case.packet(back, client));
        assert_eq!(tcp::name(state(&node, 2), 17), "ASSURED");
    }
    Ok(())
}

/// Every substitute for a port in use.
fn pool() -> impl Iterator<Item = u16> {
    (1024..30_000).chain(61_000..=65_535)
}

#[test]
fn with_no_port_left_a_service_flow_drops_and_a_direct_one_passes() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        let (client, back) = (case.at(POD, 2000), case.at(POD + 1, 8080));
        let fronts = two_vips(case, &mut node, back, true)?;
        let (addr, to): (Addr, Addr) = (client.ip().into(), back.ip().into());
        let open = CtEntry {
            addr: case.at(VIP + 1, 80).ip().into(),
            port: u64::from(Port::new(80).be()),
            state: tcp::OPENED | tcp::REPLIED,
            peer_port: Port::new(1),
            device: 0,
            flags: CtEntry::REPLY | CtEntry::SERVICE,
            last_seen: 0,
            service: 0,
            backend: 1,
            created: 0,
        };
        for port in pool() {
            let key = CtKey::new(to, Port::new(8080), addr, Port::new(port), case.proto(), Half::Egress);
            node.conntrack.insert(key, open, 0)?;
        }
        let before = node.flows().len();
        case.ingress(&node, &case.packet(client, fronts[0]).bytes()).dropped();
        assert_eq!(node.counter(Counter::NoFreePort), 1);
        let direct = case.packet(client, back).bytes();
        assert_eq!(case.ingress(&node, &direct).passed(), direct, "{case:?}");
        assert_eq!(node.flows().len(), before, "{case:?}: nothing is left behind");
    }
    Ok(())
}

#[test]
fn with_no_source_port_left_a_flow_is_rejected() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        let back = case.at(FAR_POD, 8080);
        let fronts = two_vips(case, &mut node, back, false)?;
        let source: Addr = case.at(tests::packet::world::UPLINK, 0).ip().into();
        // Recorded flows of another owner on all these tuples: without a second half that could show that they are
        // closed.
        let taken = CtEntry {
            addr: source,
            port: 1,
            state: tcp::OPENED | tcp::REPLIED,
            peer_port: Port::new(8080),
            device: 0,
            flags: CtEntry::REQUEST | CtEntry::IDENTITY,
            last_seen: 0,
            service: 0,
            backend: 0,
            created: 0,
        };
        for port in 1024..=u16::MAX {
            let key = CtKey::new(
                back.ip().into(),
                Port::new(8080),
                source,
                Port::new(port),
                case.proto(),
                Half::Ingress,
            );
            node.conntrack.insert(key, taken, 0)?;
        }
        let ask = case.packet(case.at(OUTSIDE, 2000), fronts[0]);
        let inside = case.ingress(&node, &ask.bytes()).passed();
        // A forwarded packet no longer has a device checksum (skb_forward_csum).
        let way = Way { complete: false, ..case.way(Hook::Egress, &node) };
        node.run(Hook::Egress, case.link, &inside, way).redirected();
        assert_eq!(node.counter(Counter::NoFreeSource), 1, "{case:?}");
    }
    Ok(())
}

#[test]
fn two_peers_that_ask_each_other_from_their_server_ports() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let (one, two) = (case.at(POD, 7946), case.at(POD + 1, 7946));
        for (vip, back) in [(VIP, one), (VIP + 1, two)] {
            let backend = node.backend(back, case.proto(), true)?;
            let service = node.service(case.proto(), &[backend], &[])?;
            node.cluster_ip(&service, case.at(vip, 7946))?;
        }
        let (to_one, to_two) = (case.at(VIP, 7946), case.at(VIP + 1, 7946));
        assert_eq!(case.goes_whole(&node, &case.packet(one, to_two)), (one, two), "{case:?}");
        // The middle tuple is the reverse of the first flow's: the outgoing packet must not be treated as its reply.
        let (source, to) = case.goes_whole(&node, &case.packet(two, to_one));
        assert_eq!((source.ip(), to), (two.ip(), one), "{case:?}");
        assert_eq!(case.goes_whole(&node, &case.packet(one, source).flagged(ACK)), (to_one, two), "{case:?}");
        assert_eq!(case.goes_whole(&node, &case.packet(two, one).flagged(ACK)), (to_two, one), "{case:?}");
    }
    Ok(())
}
