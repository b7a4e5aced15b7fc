//! Segments that none of a connection's ends sent, at tc and in XDP: they complete no handshake, and whatever they contain, the
//! connection's own packets go where they went.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use proxy_common::{Addr, Counter, CtEntry, CtKey, Half, Port, tcp};
use tests::packet::{
    Datapath, Transport,
    datapath::shared,
    frame::{ACK, FIN, Link, PSH, Packet, RST, SYN, ends},
    model::Random,
    world::{FAR_POD, NODE, OUTSIDE, POD, VIP},
};

use crate::case::Case;

const CLIENTS_FIRST: u32 = 0x1000_0000;
const BACKENDS_FIRST: u32 = 0x2000_0000;

/// A connection with data, whose ends keep their numbers as real ones do.
struct Connection {
    case: Case,
    client: SocketAddr,
    front: SocketAddr,
    /// Backend and client as the backend sees them, once the SYN has told.
    back: Option<[SocketAddr; 2]>,
    /// The next number of client and backend.
    next: [u32; 2],
}

impl Connection {
    fn new(case: Case, client: SocketAddr, front: SocketAddr) -> Self {
        Self { case, client, front, back: None, next: [CLIENTS_FIRST, BACKENDS_FIRST] }
    }

    fn packet(&self, from_client: bool, flags: u8, numbers: [u32; 2], payload: usize) -> Packet {
        let [src, dst] = match (from_client, self.back) {
            (true, _) | (_, None) => [self.client, self.front],
            (false, Some(back)) => back,
        };
        let [seq, ack] = numbers;
        let mut packet = Packet::new(
            self.case.link,
            self.case.ip,
            src,
            dst,
            Transport::Tcp { flags, seq, ack: if flags & ACK != 0 { ack } else { 0 } },
        );
        packet.payload = vec![b'x'; payload];
        packet
    }

    /// The next segment of one side. Fails if it is not translated as the first one was.
    fn sends(&mut self, node: &Datapath, from_client: bool, flags: u8, payload: usize) -> Result<()> {
        let [client, backend] = self.next;
        let numbers = if from_client { [client, backend] } else { [backend, client] };
        let packet = self.packet(from_client, flags, numbers, payload);
        let end = packet.segment().map_or(0, |segment| segment.end);
        self.next = if from_client { [end, backend] } else { [client, end] };
        let got = self.case.goes_whole(node, &packet);
        match self.back {
            None => self.back = Some([got.1, got.0]),
            Some([back, source]) => {
                let want = if from_client { (source, back) } else { (self.front, self.client) };
                ensure!(got == want, "{packet:?} went {got:?}, not {want:?}");
            }
        }
        Ok(())
    }

    fn opens(&mut self, node: &Datapath) -> Result<()> {
        self.sends(node, true, SYN, 0)?;
        self.sends(node, false, SYN | ACK, 0)?;
        self.sends(node, true, ACK, 0)
    }

    /// A forged segment in this direction, sent through both hooks as far as it gets.
    fn is_forged(&self, node: &Datapath, from_client: bool, flags: u8, numbers: [u32; 2], payload: usize) {
        let bytes = self.packet(from_client, flags, numbers, payload).bytes();
        let inside = node.ingress(self.case.link, &bytes);
        if inside.is_passed() {
            node.egress(self.case.link, &inside.bytes);
        }
    }
}

/// Two backends, so that a flow that begins anew goes elsewhere.
fn two_backends(case: Case, node: &mut Datapath, hosts: [u16; 2], local: bool) -> Result<()> {
    let backends = hosts
        .map(|host| node.backend(case.at(host, 8080), case.proto(), local))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let service = node.service(case.proto(), &backends, &[])?;
    node.cluster_ip(&service, case.at(VIP, 80))?;
    node.node_port(&service, case.ip, 30_080, 0)
}

/// The state of the flow of this request.
fn state(node: &Datapath, client: SocketAddr, front: SocketAddr) -> u64 {
    let (src, dst): (Addr, Addr) = (client.ip().into(), front.ip().into());
    let key = CtKey::new(src, Port::new(client.port()), dst, Port::new(front.port()), 6, Half::Ingress);
    node.flows().get(&key).map_or(0, |entry: &CtEntry| entry.state & tcp::FLAGS)
}

/// Forged segments of every kind between the real ones, for a connection to a backend of this node and of another: with random
/// numbers, with numbers of the windows, and with data.
#[test]
fn a_connection_goes_where_it_went_whatever_is_forged() -> Result<()> {
    let mut random = Random::new(0x5eed_0f1e);
    for case in Case::tcp() {
        for (client, hosts, local) in
            [(POD, [POD + 1, POD + 2], true), (OUTSIDE, [FAR_POD, FAR_POD + 1], false)]
        {
            let mut node = shared()?;
            two_backends(case, &mut node, hosts, local)?;
            let front = if local { case.at(VIP, 80) } else { case.at(NODE, 30_080) };
            for port in 2000..2020 {
                let mut connection = Connection::new(case, case.at(client, port), front);
                connection.opens(&node)?;
                for _ in 0..40 {
                    let from_client = random.below(2) == 0;
                    let flags = *random.of(&[
                        RST,
                        RST | ACK,
                        FIN,
                        FIN | ACK,
                        SYN,
                        SYN | ACK,
                        ACK,
                        ACK | PSH,
                        FIN | RST,
                        SYN | FIN,
                        0,
                    ]);
                    // A guess in the window, but never the number that comes next: that nobody can know.
                    let mut number = |next: u32| match random.below(3) {
                        0 => next.wrapping_add(1 + random.below(30_000)),
                        1 => next.wrapping_sub(1 + random.below(30_000)),
                        _ => random.word(),
                    };
                    let [client, backend] = connection.next;
                    let mut numbers = [number(client), number(backend)];
                    if !from_client {
                        numbers.reverse();
                    }
                    let payload = random.below(100) as usize;
                    connection.is_forged(&node, from_client, flags, numbers, payload);
                    // Both ends go on: each answers what it does not believe, and sends data.
                    let by_client = random.below(2) == 0;
                    let data = random.below(200) as usize;
                    connection.sends(&node, by_client, ACK | PSH, data)?;
                    connection.sends(&node, !by_client, ACK, 0)?;
                }
                let open = state(&node, connection.client, front);
                assert!(!tcp::is_over(open) && open & tcp::CONFIRMED != 0, "{case:?}: {open:#x}");
                // The ends are real, and noticed.
                connection.sends(&node, true, FIN | ACK, 0)?;
                connection.sends(&node, false, FIN | ACK, 0)?;
                connection.sends(&node, true, ACK, 0)?;
                let closed = state(&node, connection.client, front);
                assert!(tcp::is_over(closed), "{case:?}: {closed:#x}");
            }
        }
    }
    Ok(())
}

/// A silent connection, and an attacker who knows its four-tuple alone.
#[test]
fn a_silent_connection_stays_open() -> Result<()> {
    for case in Case::tcp() {
        for flags in [RST, RST | ACK, FIN | ACK] {
            let mut node = shared()?;
            two_backends(case, &mut node, [POD + 1, POD + 2], true)?;
            let mut connection = Connection::new(case, case.at(POD, 2000), case.at(VIP, 80));
            connection.opens(&node)?;
            for guess in (0..64).map(|nth: u32| nth.wrapping_mul(0x0400_0000) ^ 0x0012_3456) {
                for from_client in [true, false] {
                    connection.is_forged(&node, from_client, flags, [guess, guess], 0);
                    connection.is_forged(&node, from_client, ACK, [guess + 1, guess + 1], 0);
                }
                connection.is_forged(&node, true, SYN, [guess, 0], 0);
            }
            let open = state(&node, connection.client, connection.front);
            assert_eq!(open, tcp::ESTABLISHED, "{case:?} {flags:#x}");
            connection.sends(&node, true, ACK | PSH, 100)?;
            connection.sends(&node, false, ACK | PSH, 100)?;
            assert_eq!(node.counter(Counter::FlowNew), 1, "{case:?}");
        }
    }
    Ok(())
}

/// Changes the checksum of a TCP packet.
fn spoilt(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let at = packet.link.header() + packet.ip.header() + 16;
    bytes[at] ^= 0x21;
    bytes
}

/// SYN and ACK of a client that does not see the backend's answer, and an ACK that the backend drops.
#[test]
fn a_handshake_is_complete_with_the_right_number_and_checksum() -> Result<()> {
    for case in Case::tcp() {
        for payload in [0, 1, 63, 64, 65, 1400] {
            let mut node = shared()?;
            two_backends(case, &mut node, [POD + 1, POD + 2], true)?;
            let mut connection = Connection::new(case, case.at(POD, 2000), case.at(VIP, 80));
            connection.sends(&node, true, SYN, 0)?;
            let is_confirmed =
                |node: &Datapath| state(node, case.at(POD, 2000), case.at(VIP, 80)) & tcp::CONFIRMED != 0;
            let right = [CLIENTS_FIRST + 1, BACKENDS_FIRST + 1];
            connection.is_forged(&node, true, ACK, right, payload);
            assert!(!is_confirmed(&node), "{case:?}: before the answer");
            connection.sends(&node, false, SYN | ACK, 0)?;
            for ack in [0, BACKENDS_FIRST + 2, BACKENDS_FIRST - 0x4000, !BACKENDS_FIRST] {
                connection.is_forged(&node, true, ACK, [CLIENTS_FIRST + 1, ack], payload);
                assert!(!is_confirmed(&node), "{case:?}: {ack:#x}");
            }
            let ack = connection.packet(true, ACK, right, payload);
            node.ingress(case.link, &spoilt(&ack));
            assert!(!is_confirmed(&node), "{case:?}, {payload} bytes: with a wrong checksum");
            connection.sends(&node, true, ACK, payload)?;
            assert!(is_confirmed(&node), "{case:?}, {payload} bytes");
        }
    }
    Ok(())
}

/// The same in XDP, which sums segments without data.
#[test]
fn a_handshake_is_complete_in_xdp_with_the_right_number_and_checksum() -> Result<()> {
    for case in Case::ethernet(Transport::SYN) {
        let mut node = shared()?;
        node.wire()?;
        two_backends(case, &mut node, [FAR_POD, FAR_POD + 1], false)?;
        let (client, front) = (case.at(OUTSIDE, 2000), case.at(NODE, 30_080));
        let mut connection = Connection::new(case, client, front);
        let is_confirmed = |node: &Datapath| state(node, client, front) & tcp::CONFIRMED != 0;
        let out = node.lane(&connection.packet(true, SYN, [CLIENTS_FIRST, 0], 0).bytes());
        let (source, back) = ends(&out.bytes, Link::Ethernet);
        connection.back = Some([back, source]);
        node.lane(&connection.packet(false, SYN | ACK, [BACKENDS_FIRST, CLIENTS_FIRST + 1], 0).bytes());
        assert_eq!(state(&node, client, front), tcp::OPENED | tcp::REPLIED, "{case:?}");
        let ack = |number| connection.packet(true, ACK, [CLIENTS_FIRST + 1, number], 0);
        node.lane(&ack(BACKENDS_FIRST + 2).bytes());
        assert!(!is_confirmed(&node), "{case:?}: a wrong number");
        node.lane(&spoilt(&ack(BACKENDS_FIRST + 1)));
        assert!(!is_confirmed(&node), "{case:?}: a wrong checksum");
        node.lane(&ack(BACKENDS_FIRST + 1).bytes());
        assert!(is_confirmed(&node), "{case:?}");
        // Blind resets of both directions, then the client's own.
        for from_client in [true, false] {
            node.lane(&connection.packet(from_client, RST, [0x7777_7777, 0], 0).bytes());
        }
        assert_eq!(state(&node, client, front), tcp::ESTABLISHED, "{case:?}");
        let own = connection.packet(true, RST | ACK, [CLIENTS_FIRST + 1, BACKENDS_FIRST + 1], 0);
        node.lane(&own.bytes());
        assert!(tcp::is_over(state(&node, client, front)), "{case:?}");
    }
    Ok(())
}

/// A SYN for a flow whose backend has left its Service reaches that backend, which answers if it has the connection; after three of
/// them, a second apart and without an answer, the client gets another backend.
#[test]
fn a_syn_moves_on_from_a_backend_that_left_only_when_that_is_silent() -> Result<()> {
    const PACE: std::time::Duration = std::time::Duration::from_millis(1_010);
    for case in [Case::ethernet(Transport::SYN)[0], Case::ethernet(Transport::SYN)[1]] {
        for answers in [true, false] {
            let mut node = shared()?;
            let one = node.backend(case.at(POD + 1, 8080), case.proto(), true)?;
            let service = node.service(case.proto(), &[one], &[])?;
            node.cluster_ip(&service, case.at(VIP, 80))?;
            let mut connection = Connection::new(case, case.at(POD, 2000), case.at(VIP, 80));
            connection.opens(&node)?;
            let two = node.backend(case.at(POD + 2, 8080), case.proto(), true)?;
            let service = node.service(case.proto(), &[two], &[])?;
            node.cluster_ip(&service, case.at(VIP, 80))?;
            node.retire(one)?;
            let syn = connection.packet(true, SYN, [0x7000_0000, 0], 0);
            for nth in 0..3 {
                // As many as anybody likes in between.
                for _ in 0..3 {
                    let (_, to) = case.goes_whole(&node, &syn);
                    assert_eq!(to, case.at(POD + 1, 8080), "{case:?}: SYN {nth}");
                }
                if answers {
                    connection.sends(&node, false, ACK, 0)?;
                }
                if nth < 2 {
                    std::thread::sleep(PACE);
                }
                if nth == 1 && !answers {
                    break;
                }
            }
            let (_, to) = case.goes_whole(&node, &syn);
            let want = if answers { POD + 1 } else { POD + 2 };
            assert_eq!(to, case.at(want, 8080), "{case:?}: a backend that answers: {answers}");
        }
    }
    Ok(())
}
