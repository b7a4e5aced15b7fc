//! CONNTRACK is full: new flows to Services are refused and counted, existing flows continue, direct traffic is never
//! affected.

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath, Transport,
    frame::{ACK, ends},
    world::{FAR_POD, OUTSIDE, POD, VIP},
};

use crate::case::Case;

/// Entries of CONNTRACK here.
const ROOM: u32 = 16;

#[test]
fn new_flows_are_refused_and_nothing_else_is() -> Result<()> {
    let mut node = Datapath::load(ROOM)?;
    for transport in [Transport::SYN, Transport::Udp] {
        for case in Case::ethernet(transport) {
            for local in [true, false] {
                node.clear()?;
                let back = case.at(if local { POD } else { FAR_POD }, 8080);
                let backend = node.backend(back, case.proto(), local)?;
                let service = node.service(case.proto(), &[backend], &[])?;
                node.cluster_ip(&service, case.at(VIP, 80))?;
                let (mut open, mut refused) = (Vec::new(), 0);
                for port in 2000..2040 {
                    let ask = case.packet(case.at(OUTSIDE, port), case.at(VIP, 80));
                    let inside = node.ingress(case.link, &ask.bytes());
                    if !inside.is_passed() {
                        assert!(inside.is_redirected(), "{case:?}: refused, not dropped: {inside:?}");
                        refused += 1;
                        continue;
                    }
                    let out = node.egress(case.link, &inside.passed());
                    if !out.is_passed() {
                        assert!(out.is_redirected(), "{case:?}: refused, not dropped: {out:?}");
                        refused += 1;
                        continue;
                    }
                    open.push((ask, ends(&out.passed(), case.link)));
                }
                // All halves of as many flows as fit, and never half a flow.
                let halves = if local { 2 } else { 4 };
                assert!(open.len() as u32 >= ROOM / halves - 2, "{case:?}: {} open", open.len());
                assert!(open.len() as u32 <= ROOM / halves, "{case:?}: {} open", open.len());
                assert_eq!(refused + open.len(), 40);
                assert_eq!(node.counter(Counter::ConntrackFull), refused as u64, "{case:?}");
                for (ask, ends) in &open {
                    assert_eq!(case.goes_whole(&node, &ask.flagged(ACK)), *ends, "{case:?}: an open flow");
                    let answer = case.packet(ends.1, ends.0).flagged(ACK);
                    assert_eq!(case.goes_whole(&node, &answer), (case.at(VIP, 80), ask.src), "{case:?}");
                }
                for port in 3000..3040 {
                    let direct = case.packet(case.at(OUTSIDE, port), back).bytes();
                    assert_eq!(case.through(&node, &direct), direct, "{case:?}: a direct flow");
                }
            }
        }
    }
    Ok(())
}
