//! ClusterIP without source translation: request and reply in every framing, both families, TCP and UDP.

use anyhow::Result;
use proxy_common::Counter;
use tests::packet::{
    Datapath,
    datapath::shared,
    frame::{ACK, FIN, PSH, SYN},
    world::{FAR_POD, OUTSIDE, POD, VIP},
};

use crate::case::Case;

/// The packets of a connection, or as many datagrams, each checked at every hook.
fn converse(case: Case, node: &Datapath, client: u16, backend: u16) {
    let (from, vip, to) = (case.at(client, 2000), case.at(VIP, 80), case.at(backend, 8080));
    let open = case.packet(from, vip);
    for (request, reply) in [(SYN, SYN | ACK), (ACK | PSH, ACK | PSH), (ACK | FIN, ACK | FIN), (ACK, ACK)] {
        let mut ask = open.flagged(request);
        if request & PSH != 0 {
            ask.payload = (0..=255).cycle().take(1001).collect();
        }
        let inside = case.ingress(node, &ask.bytes()).passed();
        assert_eq!(inside, ask.to(to).bytes(), "{case:?}: a request at ingress");
        assert_eq!(case.egress(node, &inside).passed(), inside, "{case:?}: a request at egress");

        let answer = ask.to(to).answer(reply);
        let inside = case.ingress(node, &answer.bytes()).passed();
        assert_eq!(inside, answer.bytes(), "{case:?}: a reply at ingress");
        let out = case.egress(node, &inside).passed();
        assert_eq!(out, answer.from(vip).bytes(), "{case:?}: a reply at egress");
    }
}

fn served(client: u16, backend: u16, local: bool) -> Result<()> {
    for case in Case::all() {
        let mut node = shared()?;
        let backend_id = node.backend(case.at(backend, 8080), case.proto(), local)?;
        let service = node.service(case.proto(), &[backend_id], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        converse(case, &node, client, backend);
        assert_eq!(node.flows().len(), 2, "{case:?}: both halves and no more");
        assert_eq!(node.counter(Counter::FlowNew), 1, "{case:?}");
        assert_eq!(node.counter(Counter::FlowMasqueraded), 0, "{case:?}");
    }
    Ok(())
}

#[test]
fn a_pod_reaches_a_pod_of_its_node() -> Result<()> {
    served(POD, POD + 1, true)
}

#[test]
fn a_pod_reaches_a_pod_of_another_node() -> Result<()> {
    served(POD, FAR_POD, false)
}

#[test]
fn outside_reaches_a_pod_of_this_node_under_its_own_address() -> Result<()> {
    served(OUTSIDE, POD, true)
}

#[test]
fn ethernet_padding_behind_a_short_datagram_stays() -> Result<()> {
    let mut node = shared()?;
    for case in Case::ethernet(tests::packet::Transport::Udp) {
        let backend = node.backend(case.at(POD, 8080), case.proto(), true)?;
        let service = node.service(case.proto(), &[backend], &[])?;
        node.cluster_ip(&service, case.at(VIP, 80))?;
        let mut ask = case.packet(case.at(OUTSIDE, 2000), case.at(VIP, 80));
        ask.payload = vec![1];
        let pad = |mut bytes: Vec<u8>| {
            bytes.extend([0; 9]);
            bytes
        };
        let out = node.ingress(case.link, &pad(ask.bytes())).passed();
        assert_eq!(out, pad(ask.to(case.at(POD, 8080)).bytes()));
    }
    Ok(())
}
