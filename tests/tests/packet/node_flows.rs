//! Flows opened from the node's own addresses by other parties of the node (FLOWS.md, section 1): its sockets, and pods
//! masqueraded by a CNI. Packets that shunt does not translate pass byte for byte, and no two flows share a tuple on
//! the wire.

use std::net::SocketAddr;

use anyhow::Result;
use proxy_common::{Counter, CtEntry, FrontendKind};
use tests::packet::{
    Datapath, Transport,
    datapath::shared,
    frame::{ACK, FIN, Packet, RST, SYN, ends},
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, VIP},
};

use crate::case::Case;

const NODE_PORT: u16 = 30_080;

/// A NodePort with one backend of this node.
fn node_port(case: Case, node: &mut Datapath) -> Result<SocketAddr> {
    let back = case.at(POD, 8080);
    let backend = node.backend(back, case.proto(), true)?;
    let service = node.service(case.proto(), &[backend], &[])?;
    node.node_port(&service, case.ip, NODE_PORT, 0)?;
    Ok(back)
}

/// A NodePort whose only backend is on another node.
fn far_node_port(case: Case, node: &mut Datapath) -> Result<SocketAddr> {
    let back = case.at(FAR_POD, 8080);
    let backend = node.backend(back, case.proto(), false)?;
    let service = node.service(case.proto(), &[backend], &[])?;
    node.node_port(&service, case.ip, NODE_PORT, 0)?;
    Ok(back)
}

/// The sender: the node itself, or a forwarded packet whose source netfilter has translated.
#[derive(Clone, Copy, Debug)]
enum By {
    Socket,
    Masquerade,
}

impl By {
    const BOTH: [Self; 2] = [Self::Socket, Self::Masquerade];

    #[track_caller]
    fn leaves(self, case: Case, node: &Datapath, packet: &Packet) -> Vec<u8> {
        match self {
            Self::Socket => node.own(case.link, &packet.bytes()).passed(),
            Self::Masquerade => case.egress(node, &packet.bytes()).passed(),
        }
    }
}

#[track_caller]
fn untouched(case: Case, node: &Datapath, packet: &Packet) {
    assert_eq!(case.ingress(node, &packet.bytes()).passed(), packet.bytes(), "{case:?}");
}

#[test]
fn answers_to_a_node_ports_number_pass_untouched() -> Result<()> {
    for case in Case::all() {
        for by in By::BOTH {
            let mut node = shared()?;
            let back = node_port(case, &mut node)?;
            let (own, server) = (case.at(NODE, NODE_PORT), case.at(OUTSIDE, 53));
            let ask = case.packet(own, server);
            assert_eq!(by.leaves(case, &node, &ask), ask.bytes(), "{case:?} {by:?}");
            let answer = case.packet(server, own).flagged(SYN | ACK);
            untouched(case, &node, &answer);
            assert_eq!(by.leaves(case, &node, &ask.flagged(ACK)), ask.flagged(ACK).bytes(), "{case:?}");
            untouched(case, &node, &answer.flagged(ACK));
            assert_eq!(node.counter(Counter::FlowNode), 1, "{case:?} {by:?}");
            assert_eq!(node.flows().len(), 2, "{case:?} {by:?}");
            // All other clients still reach the Service, from the same server too.
            let client = case.packet(case.at(OUTSIDE, 54), own);
            assert_eq!(case.goes_whole(&node, &client), (case.at(OUTSIDE, 54), back), "{case:?}");
        }
    }
    Ok(())
}

#[test]
fn a_load_balancers_address_on_the_node_is_no_different() -> Result<()> {
    for kind in [FrontendKind::LoadBalancerIp, FrontendKind::ExternalIp] {
        for case in Case::all() {
            let mut node = shared()?;
            let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
            let service = node.service(case.proto(), &[backend], &[])?;
            node.frontend(&service, case.at(NODE, 443), kind, 0)?;
            let (own, server) = (case.at(NODE, 443), case.at(OUTSIDE, 53));
            let ask = case.packet(own, server);
            By::Socket.leaves(case, &node, &ask);
            untouched(case, &node, &case.packet(server, own).flagged(SYN | ACK));
            // The same port at another address of the node is not a frontend's.
            let other = case.packet(case.at(UPLINK, 443), server);
            By::Socket.leaves(case, &node, &other);
            assert_eq!(node.counter(Counter::FlowNode), 1, "{case:?}");
        }
    }
    Ok(())
}

/// The connection was open before the port became a NodePort.
#[test]
fn a_segment_in_mid_stream_is_recorded() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        node_port(case, &mut node)?;
        let (own, server) = (case.at(NODE, NODE_PORT), case.at(OUTSIDE, 22));
        By::Socket.leaves(case, &node, &case.packet(own, server).flagged(ACK));
        untouched(case, &node, &case.packet(server, own).flagged(ACK));
        let open = |entry: &CtEntry| proxy_common::tcp::name(entry.state, case.proto());
        assert!(node.flows().values().all(|entry| open(entry) == "ESTABLISHED"), "{case:?}");
        // A reset that shunt itself sends from the NodePort opens no flow.
        By::Socket.leaves(case, &node, &case.packet(own, case.at(OUTSIDE, 23)).flagged(RST | ACK));
        assert_eq!(node.flows().len(), 2, "{case:?}");
    }
    Ok(())
}

#[test]
fn a_closed_flow_gives_its_tuple_to_either_side() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        let back = node_port(case, &mut node)?;
        let (own, peer) = (case.at(NODE, NODE_PORT), case.at(OUTSIDE, 2000));
        let open_and_close = |node: &Datapath| {
            let (ask, answer) = (case.packet(own, peer), case.packet(peer, own));
            By::Socket.leaves(case, node, &ask);
            untouched(case, node, &answer.flagged(SYN | ACK));
            By::Socket.leaves(case, node, &ask.flagged(FIN | ACK));
            untouched(case, node, &answer.flagged(FIN | ACK));
            By::Socket.leaves(case, node, &ask.flagged(ACK));
        };
        open_and_close(&node);
        // The socket uses its port again: the flow is open, not closed.
        By::Socket.leaves(case, &node, &case.packet(own, peer));
        untouched(case, &node, &case.packet(peer, own).flagged(SYN | ACK));
        untouched(case, &node, &case.packet(peer, own));
        open_and_close(&node);
        // The peer becomes a client of the NodePort.
        assert_eq!(case.goes_whole(&node, &case.packet(peer, own)), (peer, back), "{case:?}");
    }
    Ok(())
}

/// The node's flow is first: the masqueraded flow gets another port.
#[test]
fn a_translated_source_avoids_the_nodes_flows() -> Result<()> {
    for case in Case::all() {
        for by in By::BOTH {
            let mut node = shared()?;
            let back = far_node_port(case, &mut node)?;
            let own = case.at(UPLINK, 2000);
            let ask = case.packet(own, back);
            assert_eq!(by.leaves(case, &node, &ask), ask.bytes(), "{case:?} {by:?}");
            let client = case.packet(case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
            let (source, to) = case.goes_whole(&node, &client);
            assert_eq!((source.ip(), to), (own.ip(), back), "{case:?} {by:?}");
            assert_ne!(source, own, "{case:?} {by:?}");
            untouched(case, &node, &case.packet(back, own).flagged(SYN | ACK));
            let answer = case.packet(back, source).flagged(SYN | ACK);
            let ends = case.goes_whole(&node, &answer);
            assert_eq!(ends, (case.at(NODE, NODE_PORT), case.at(OUTSIDE, 2000)), "{case:?} {by:?}");
        }
    }
    Ok(())
}

/// The masqueraded flow is first: the node's flow gets another port, and its replies reach the node's socket.
#[test]
fn a_flow_of_the_node_avoids_translated_sources() -> Result<()> {
    for case in Case::all() {
        for by in By::BOTH {
            let mut node = shared()?;
            let back = far_node_port(case, &mut node)?;
            let own = case.at(UPLINK, 2000);
            let client = case.packet(case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
            assert_eq!(case.goes_whole(&node, &client), (own, back), "{case:?} {by:?}");
            let ask = case.packet(own, back);
            let out = by.leaves(case, &node, &ask);
            let (source, to) = ends(&out, case.link);
            assert_eq!((source.ip(), to), (own.ip(), back), "{case:?} {by:?}");
            assert_ne!(source, own, "{case:?} {by:?}");
            assert_eq!(out, ask.from(source).bytes(), "{case:?} {by:?}");
            for flags in [SYN | ACK, ACK] {
                let answer = case.packet(back, source).flagged(flags);
                let inside = case.ingress(&node, &answer.bytes()).passed();
                assert_eq!(inside, answer.to(own).bytes(), "{case:?} {by:?}");
                let more = ask.flagged(ACK);
                assert_eq!(by.leaves(case, &node, &more), more.from(source).bytes(), "{case:?} {by:?}");
            }
            // The first flow is unchanged.
            let answer = case.packet(back, own).flagged(SYN | ACK);
            let ends = case.goes_whole(&node, &answer);
            assert_eq!(ends, (case.at(NODE, NODE_PORT), case.at(OUTSIDE, 2000)), "{case:?} {by:?}");
        }
    }
    Ok(())
}

/// A translated reply may pass a second egress hook: it belongs to the Service, not to the node.
#[test]
fn a_translated_reply_at_a_second_hook_is_no_flow_of_the_nodes() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let back = node_port(case, &mut node)?;
        let (client, front) = (case.at(OUTSIDE, 2000), case.at(NODE, NODE_PORT));
        assert_eq!(case.goes_whole(&node, &case.packet(client, front)), (client, back), "{case:?}");
        let before = node.flows().len();
        let reply = case.packet(front, client).flagged(SYN | ACK);
        assert_eq!(case.egress(&node, &reply.bytes()).passed(), reply.bytes(), "{case:?}");
        assert_eq!(node.flows().len(), before, "{case:?}");
    }
    Ok(())
}

#[test]
fn other_flows_of_the_node_are_not_recorded() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let back = far_node_port(case, &mut node)?;
        for (from, to) in [
            (case.at(NODE, 40_000), case.at(OUTSIDE, 443)),
            // To the port of a backend, but not to its address.
            (case.at(NODE, 40_000), case.at(OUTSIDE, 8080)),
            // From a pod, with a NodePort as source port.
            (case.at(POD, NODE_PORT), case.at(OUTSIDE, 443)),
        ] {
            let ask = case.packet(from, to);
            assert_eq!(By::Masquerade.leaves(case, &node, &ask), ask.bytes(), "{case:?}");
        }
        if case.is_tcp() {
            let mid_stream = case.packet(case.at(NODE, 40_000), back).flagged(ACK);
            By::Socket.leaves(case, &node, &mid_stream);
        }
        assert!(node.flows().is_empty(), "{case:?}: {:?}", node.flows());
    }
    Ok(())
}

/// FLOWS.md: an address is reassigned to a pod of another Service while a half-open flow still refers to it.
#[test]
fn a_repeated_syn_stays_within_its_service() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        let (first, second) = (case.at(POD, 8080), case.at(POD + 1, 8080));
        let moved = node.backend(first, case.proto(), true)?;
        let stays = node.backend(second, case.proto(), true)?;
        let service = node.service(case.proto(), &[moved], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        let ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
        let to = |node: &Datapath| ends(&case.ingress(node, &ask.bytes()).passed(), case.link).1;
        assert_eq!(to(&node), first, "{case:?}");
        assert_eq!(to(&node), first, "{case:?}: a repeated SYN goes to the same backend");
        // The Service has the other backend now; the first one, still active, serves another Service.
        let changed = node.service(case.proto(), &[stays], &[])?;
        node.cluster_ip(&changed, case.at(VIP, 80))?;
        let other = node.service(case.proto(), &[moved], &[])?;
        node.cluster_ip(&other, case.at(VIP + 1, 80))?;
        assert_eq!(to(&node), second, "{case:?}");
    }
    Ok(())
}

/// All ports are tried before a flow is rejected, and until nearly all are taken few tries are needed.
#[test]
fn sixty_thousand_source_ports() -> Result<()> {
    let case = Case::ethernet(Transport::Udp)[0];
    let mut node = Datapath::load(262_144)?;
    let back = far_node_port(case, &mut node)?;
    let mut sources = std::collections::HashSet::new();
    for number in 0..60_000_u32 {
        // Two clients; half of the ports are from the node's own ephemeral range.
        let client = case.at(OUTSIDE + (number / 30_000) as u16, 30_000 + (number % 30_000) as u16);
        let ask = case.packet(client, case.at(NODE, NODE_PORT));
        let out = case.through(&node, &ask.bytes());
        let (source, to) = ends(&out, case.link);
        assert_eq!(to, back);
        // Open flows: flows without a reply are replaced by newer ones.
        case.through(&node, &case.packet(back, source).bytes());
        assert!(sources.insert(source), "{source} twice");
        assert_ne!(source.port(), NODE_PORT);
    }
    assert_eq!(node.counter(Counter::NoFreeSource), 0);
    assert_eq!(node.counter(Counter::ConntrackFull), 0);
    Ok(())
}
