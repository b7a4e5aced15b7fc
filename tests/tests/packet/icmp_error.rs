//! ICMP errors about packets of a flow quote the packet that their receiver sent, in both directions, and their
//! checksums are those of a message built from scratch. Errors about unknown flows pass byte for byte.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Hook, Ip, Link, Packet, Way,
    datapath::shared,
    extension::{Extension, extended},
    frame::{ACK, PSH, SYN, checksum},
    icmp::Error,
    world::{FAR_POD, NODE, OUTSIDE, POD, UPLINK, VIP},
};

use crate::case::Case;

/// A router on the path.
const ROUTER: u16 = 0x0a01;

/// Types, codes and the rest of the header.
fn kinds(v4: bool) -> &'static [(u8, u8, [u8; 4])] {
    if v4 {
        &[
            (3, 3, [0; 4]),
            (3, 4, [0, 0, 5, 0]),
            (3, 1, [0; 4]),
            (4, 0, [0; 4]),
            (11, 0, [0; 4]),
            (12, 0, [9, 0, 0, 0]),
        ]
    } else {
        &[(1, 4, [0; 4]), (1, 0, [0; 4]), (2, 0, [0, 0, 5, 0]), (3, 0, [0; 4]), (4, 1, [0, 0, 0, 6])]
    }
}

/// Both directions of a flow, with its addresses at each place.
struct Flow {
    case: Case,
    client: SocketAddr,
    front: SocketAddr,
    /// The client as the backend's side sees it, inside the node and beyond.
    inside: SocketAddr,
    source: SocketAddr,
    back: SocketAddr,
}

impl Flow {
    /// Opens the flow and sends a reply.
    fn open(case: Case, node: &Datapath, client: SocketAddr, front: SocketAddr) -> Self {
        let ask = case.packet(client, front);
        let inside = case.ingress(node, &ask.bytes()).passed();
        let (inside_src, back) = tests::packet::frame::ends(&inside, case.link);
        let out = case.egress(node, &inside).passed();
        let (source, _) = tests::packet::frame::ends(&out, case.link);
        let answer = case.packet(back, source).flagged(SYN | ACK);
        assert_eq!(case.through(node, &answer.bytes()), answer.from(front).to(client).bytes(), "{case:?}");
        Self { case, client, front, inside: inside_src, source, back }
    }

    /// A packet of the flow with payload.
    fn packet(&self, src: SocketAddr, dst: SocketAddr) -> Packet {
        let mut packet = self.case.packet(src, dst).flagged(ACK | PSH);
        packet.payload = (0..40).collect();
        packet
    }

    /// An error about that packet with these extension headers; quotes this many bytes of its transport header and
    /// payload.
    fn error(&self, src: SocketAddr, dst: SocketAddr, chain: &[Extension], len: usize) -> Error {
        let Case { link, ip, .. } = self.case;
        let plain = self.packet(src, dst).bytes();
        let bytes = extended_if(&plain, link, chain);
        let headers = ip.header() + bytes.len() - plain.len();
        Error::about(&bytes, link, ip, headers, len)
    }

    /// The output of a hook for an error, with a device checksum over it.
    #[track_caller]
    fn hook(&self, node: &Datapath, hook: Hook, came_in: u32, error: &Error) -> Vec<u8> {
        let complete = error.link == Link::Ethernet;
        let way = Way { device: node.uplink, came_in, complete };
        node.run(hook, error.link, &error.bytes(), way).passed()
    }

    /// Sends an error through the node: each of the three is the message at that place.
    #[track_caller]
    fn goes(&self, node: &Datapath, outer: &[Extension], [arrives, inside, leaves]: [&Error; 3]) {
        let link = self.case.link;
        let wire = |error: &Error| extended_if(&error.bytes(), link, outer);
        let way = |came_in| Way { device: node.uplink, came_in, complete: link == Link::Ethernet };
        let got = node.run(Hook::Ingress, link, &wire(arrives), way(node.uplink)).passed();
        assert_eq!(got, wire(inside), "{:?} at ingress: {arrives:?}", self.case);
        let got = node.run(Hook::Egress, link, &got, way(node.pod)).passed();
        assert_eq!(got, wire(leaves), "{:?} at egress: {inside:?}", self.case);
        well_formed(&got, link, self.case.ip, outer.is_empty());
    }

    /// Errors from both sides, about requests and replies.
    fn all_ways(&self, node: &Datapath, outer: &[Extension], quoted: &[Extension], len: usize) {
        let case = self.case;
        let router = case.at(ROUTER, 0).ip();
        let (client, front, back) = (self.client.ip(), self.front.ip(), self.back.ip());
        for (kind, code, rest) in kinds(case.ip.is_v4()) {
            let about = |src, dst, from: IpAddr, to: IpAddr| {
                self.error(src, dst, quoted, len).of(*kind, *code, *rest).between_hosts(from, to)
            };
            for reporter in [back, router] {
                let shown = if reporter == back { front } else { reporter };
                self.goes(
                    node,
                    outer,
                    [
                        &about(self.source, self.back, reporter, self.source.ip()),
                        &about(self.inside, self.back, reporter, client),
                        &about(self.client, self.front, shown, client),
                    ],
                );
            }
            for reporter in [client, router] {
                let shown = if reporter == client { self.source.ip() } else { reporter };
                self.goes(
                    node,
                    outer,
                    [
                        &about(self.front, self.client, reporter, front),
                        &about(self.back, self.inside, reporter, back),
                        &about(self.back, self.source, shown, back),
                    ],
                );
            }
            // The node's stack has seen the packet between the hooks.
            let own = case.at(NODE, 0).ip();
            for (seen, told) in [
                (about(self.inside, self.back, own, client), about(self.client, self.front, own, client)),
                (about(self.back, self.inside, own, back), about(self.back, self.source, own, back)),
            ] {
                if outer.is_empty() {
                    assert_eq!(self.hook(node, Hook::Egress, 0, &seen), told.bytes(), "{case:?}: {seen:?}");
                }
            }
        }
    }
}

fn extended_if(packet: &[u8], link: Link, chain: &[Extension]) -> Vec<u8> {
    if chain.is_empty() { packet.to_vec() } else { extended(packet, link, chain) }
}

/// Checks the message's own lengths and checksums.
fn well_formed(bytes: &[u8], link: Link, ip: Ip, plain: bool) {
    let at = &bytes[link.header()..];
    if ip.is_v4() {
        assert_eq!(checksum(&[&at[..ip.header()]]), 0);
        assert_eq!(checksum(&[&at[ip.header()..]]), 0);
        let quoted = &at[ip.header() + 8..];
        assert_eq!(checksum(&[&quoted[..usize::from(quoted[0] & 15) * 4]]), 0);
    } else if plain {
        let len = (at.len() - 40) as u32;
        assert_eq!(checksum(&[&at[8..40], &len.to_be_bytes(), &[0, 0, 0, 58], &at[40..]]), 0);
    }
}

/// A flow with its source translated.
fn from_outside(case: Case, node: &mut Datapath) -> Result<Flow> {
    let backend = node.backend(case.at(FAR_POD, 8080), case.proto(), false)?;
    let service = node.service(case.proto(), &[backend], &[])?;
    node.node_port(&service, case.ip, 30_080, 0)?;
    let flow = Flow::open(case, node, case.at(OUTSIDE, 2000), case.at(NODE, 30_080));
    assert_eq!(flow.source.ip(), case.at(UPLINK, 0).ip(), "{case:?}");
    Ok(flow)
}

/// A pod's flow whose own port is taken by a direct connection to the backend.
fn from_a_pod(case: Case, node: &mut Datapath) -> Result<Flow> {
    let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
    let service = node.service(case.proto(), &[backend], &[])?;
    node.cluster_ip(&service, case.at(VIP, 80))?;
    let (client, back) = (case.at(POD + 1, 2000), case.at(POD, 8080));
    let direct = case.packet(client, back);
    assert_eq!(case.through(node, &direct.bytes()), direct.bytes());
    let flow = Flow::open(case, node, client, case.at(VIP, 80));
    assert_ne!(flow.inside.port(), 2000, "{case:?}: the middle tuple is taken");
    assert_eq!(flow.source, flow.inside);
    Ok(flow)
}

#[test]
fn errors_about_a_flow_with_a_translated_source() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let flow = from_outside(case, &mut node)?;
        for len in [8, 12, 20, 1000] {
            flow.all_ways(&node, &[], &[], len);
        }
        assert!(node.counter(Counter::IcmpErrorTranslated) >= 4 * 10 * 4);
    }
    Ok(())
}

#[test]
fn errors_about_a_flow_with_another_client_port() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let flow = from_a_pod(case, &mut node)?;
        for len in [8, 20, 1000] {
            flow.all_ways(&node, &[], &[], len);
        }
    }
    Ok(())
}

#[test]
fn extension_headers_in_the_error_and_in_the_quote() -> Result<()> {
    let chains = [
        vec![],
        vec![Extension::OPTIONS],
        vec![Extension::HOP_BY_HOP, Extension::routing(0), Extension::new(60, 4)],
        vec![Extension::fragment(0, false)],
    ];
    for case in Case::all().into_iter().filter(|case| !case.ip.is_v4()) {
        let mut node = shared()?;
        let flow = from_outside(case, &mut node)?;
        for outer in &chains {
            for quoted in &chains {
                flow.all_ways(&node, outer, quoted, 8);
                flow.all_ways(&node, outer, quoted, 1000);
            }
            // Of a fragmented datagram, only the first fragment is identified by its ports.
            flow.all_ways(&node, outer, &[Extension::fragment(0, true)], 1000);
        }
    }
    Ok(())
}

#[track_caller]
fn passes(node: &Datapath, link: Link, bytes: &[u8], what: &str) {
    for (hook, came_in) in [(Hook::Ingress, node.uplink), (Hook::Egress, node.pod), (Hook::Egress, 0)] {
        let way = Way { device: node.uplink, came_in, complete: false };
        let outcome = node.run(hook, link, bytes, way);
        assert_eq!(outcome.verdict, -1, "{hook:?}: {what}");
        assert_eq!(outcome.bytes, bytes, "{hook:?}: {what}");
    }
}

#[test]
fn errors_about_nobodys_flow_pass() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let flow = from_outside(case, &mut node)?;
        let (client, back) = (case.at(POD + 1, 2000), case.at(FAR_POD, 8080));
        case.through(&node, &case.packet(client, back).bytes());
        let router = case.at(ROUTER, 0).ip();
        for (src, dst, what) in [
            (case.at(OUTSIDE, 2001), case.at(NODE, 30_080), "another client port"),
            (case.at(OUTSIDE, 2000), case.at(VIP, 80), "no frontend"),
            (case.at(UPLINK, 40_000), flow.back, "the node's own connection"),
            (client, back, "a direct connection"),
            (back, client, "its answer"),
        ] {
            let error = flow.error(src, dst, &[], 1000).between_hosts(router, src.ip());
            passes(&node, case.link, &error.bytes(), &format!("{case:?}: {what}"));
        }
        assert_eq!(node.counter(Counter::IcmpErrorTranslated), 0, "{case:?}");
    }
    Ok(())
}

#[test]
fn errors_cut_short_or_malformed_pass() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let flow = from_outside(case, &mut node)?;
        let (ip, header) = (case.link.header(), case.ip.header());
        let error = flow
            .error(flow.source, flow.back, &[], 1000)
            .between_hosts(case.at(ROUTER, 0).ip(), flow.source.ip());
        let whole = error.bytes();
        let quote = ip + header + 8;
        for len in super::foreign::shortest(case)..quote + header + 4 {
            passes(&node, case.link, &whole[..len], &format!("{case:?} cut to {len} bytes"));
        }
        let bad = |at: usize, value: u8, what: &str| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            passes(&node, case.link, &bytes, &format!("{case:?}: {what}"));
        };
        for version in [0, 5, if case.ip.is_v4() { 6 } else { 4 }] {
            bad(quote, version << 4 | 5, "the quote's version");
        }
        for proto in [0, 1, 2, 47, 50, 51, 58, 89, 255] {
            bad(quote + if case.ip.is_v4() { 9 } else { 6 }, proto, "the quote's protocol");
        }
        let kind = ip + header;
        for other in if case.ip.is_v4() { [0, 9, 10, 13, 14] } else { [129, 133, 134, 135, 136] } {
            bad(kind, other, "another type");
        }
        if case.ip.is_v4() {
            bad(quote, 0x44, "the quote's header length");
            bad(quote, 0x4f, "options that are ports");
            bad(quote + 7, 1, "a later fragment in the quote");
            bad(ip + 6, 0x20, "the error's own first fragment");
            bad(ip + 7, 1, "the error's own later fragment");
        } else {
            let first = extended(&whole, case.link, &[Extension::fragment(0, true)]);
            passes(&node, case.link, &first, "the error's own first fragment");
            let later = flow.error(flow.source, flow.back, &[Extension::fragment(8, true)], 1000);
            let later = later.between_hosts(case.at(ROUTER, 0).ip(), flow.source.ip());
            passes(&node, case.link, &later.bytes(), "a later fragment in the quote");
        }
        assert_eq!(node.counter(Counter::IcmpErrorTranslated), 0, "{case:?}");
    }
    Ok(())
}

#[test]
fn redirects_about_a_translated_flow_are_dropped() -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let flow = from_outside(case, &mut node)?;
        let router = case.at(ROUTER, 0).ip();
        let redirect = |src: SocketAddr, dst: SocketAddr| {
            let error = flow.error(src, dst, &[], 28).between_hosts(router, src.ip());
            if case.ip.is_v4() {
                error.of(5, 1, [8, 0, 10, 2]).bytes()
            } else {
                error.of(137, 0, [0; 4]).redirecting(case.at(ROUTER + 1, 0).ip(), dst.ip()).bytes()
            }
        };
        let hook = |hook, bytes: &[u8]| {
            node.run(hook, case.link, bytes, Way { device: node.uplink, came_in: 0, complete: false })
        };
        // Whichever packet of the flow the error is about at the hook.
        for (src, dst) in [(flow.source, flow.back), (flow.front, flow.client), (flow.client, flow.front)] {
            hook(Hook::Ingress, &redirect(src, dst)).dropped();
        }
        for (src, dst) in [(flow.inside, flow.back), (flow.back, flow.inside)] {
            hook(Hook::Egress, &redirect(src, dst)).dropped();
        }
        assert_eq!(node.counter(Counter::RedirectDropped), 5, "{case:?}");
        for (src, dst) in [
            (case.at(OUTSIDE, 2001), case.at(NODE, 30_080)),
            (case.at(NODE, 2001), flow.back),
            (case.at(POD, 2001), case.at(OUTSIDE, 53)),
        ] {
            passes(&node, case.link, &redirect(src, dst), &format!("{case:?}: a redirect about others"));
        }
        assert_eq!(node.counter(Counter::RedirectDropped), 5, "{case:?}");
    }
    Ok(())
}
