//! A VIP answers ICMP echo while it has an endpoint.

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Hook, Link, Packet, Transport, Way,
    datapath::shared,
    world::{NODE, OUTSIDE, VIP},
};

use crate::{case::Case, foreign::shortest};

const ECHO: Transport = Transport::Echo { reply: false };

fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = Case::all();
    cases.retain(|case| case.transport == Transport::Udp);
    cases.into_iter().map(|case| Case { transport: ECHO, ..case }).collect()
}

fn answer(ask: &Packet) -> Vec<u8> {
    let answer = Packet { macs: [ask.macs[1], ask.macs[0]], ..ask.answer(0) };
    answer.bytes()
}

#[test]
fn a_vip_answers_to_all_and_the_node() -> Result<()> {
    for case in cases() {
        let mut node = shared()?;
        node.ping(case.at(VIP, 0).ip(), true)?;
        // A test run accepts no shorter packet without an Ethernet header.
        let least = if case.link == Link::Ethernet { 0 } else { 16 };
        for len in [least, least + 1, 56, 1400] {
            let mut ask = case.packet(case.at(OUTSIDE, 0), case.at(VIP, 0));
            ask.payload = vec![0xa5; len];
            assert_eq!(node.ingress(case.link, &ask.bytes()).redirected(), answer(&ask), "{case:?}");
            let ask = ask.from(case.at(NODE, 0));
            assert_eq!(node.own(case.link, &ask.bytes()).redirected(), answer(&ask), "{case:?}");
        }
        assert_eq!(node.counter(Counter::PingAnswered), 8);
        // Only forwarded, out of a device: it passed the ingress hook of the device it arrived on.
        let ask = case.packet(case.at(OUTSIDE, 0), case.at(VIP, 0)).bytes();
        assert_eq!(node.egress(case.link, &ask).passed(), ask);
    }
    Ok(())
}

#[test]
fn without_an_endpoint_it_is_unreachable() -> Result<()> {
    // As in `refusal`: a test run cannot insert bytes in front of a packet without an Ethernet header.
    for case in cases().into_iter().filter(|case| case.link == Link::Ethernet) {
        let mut node = shared()?;
        node.ping(case.at(VIP, 0).ip(), false)?;
        for len in [0, 1, 56, 1400] {
            let mut ask = case.packet(case.at(OUTSIDE, 0), case.at(VIP, 0));
            ask.payload = vec![0xa5; len];
            assert_eq!(node.ingress(case.link, &ask.bytes()).redirected(), ask.unreachable(), "{case:?}");
            let ask = ask.from(case.at(NODE, 0));
            assert_eq!(node.own(case.link, &ask.bytes()).redirected(), ask.unreachable(), "{case:?}");
        }
        assert_eq!(node.counter(Counter::NoBackend), 8, "{case:?}");
    }
    Ok(())
}

#[test]
fn other_icmp_passes() -> Result<()> {
    for case in cases() {
        let mut node = shared()?;
        node.ping(case.at(VIP, 0).ip(), true)?;
        let ask = case.packet(case.at(OUTSIDE, 0), case.at(VIP, 0));
        let elsewhere = case.packet(case.at(OUTSIDE, 0), case.at(NODE, 0)).bytes();
        let reply = ask.answer(0).to(case.at(VIP, 0)).bytes();
        let l4 = case.link.header() + case.ip.header();
        let mut coded = ask.bytes();
        coded[l4 + 1] = 1;
        let mut timestamp = ask.bytes();
        timestamp[l4] = 13;
        // The ICMP protocol number of the other IP version is ignored (it has no meaning, and no type 8 or 128).
        let mut crossed = ask.bytes();
        if case.ip.is_v4() {
            crossed[case.link.header() + 9] = 58;
            tests::packet::frame::mend_v4(&mut crossed[case.link.header()..l4]);
        } else {
            crossed[case.link.header() + 6] = 1;
        }
        let mut others = vec![elsewhere, reply, coded, timestamp, crossed];
        if l4 + 7 >= shortest(case) {
            let mut short = ask.bytes();
            short.truncate(l4 + 7);
            others.push(short);
        }
        for packet in others {
            for hook in [Hook::Ingress, Hook::Egress] {
                let way = Way { device: node.uplink, came_in: 0, complete: case.link == Link::Ethernet };
                assert_eq!(node.run(hook, case.link, &packet, way).passed(), packet, "{case:?} {hook:?}");
            }
        }
        assert_eq!(node.counter(Counter::PingAnswered), 0);
    }
    Ok(())
}
