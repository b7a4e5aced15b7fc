//! The flows that nf_conntrack translates: those of another Service proxy (kube-proxy in iptables or nftables mode),
//! read over ctnetlink. Read when shunt takes over a node (`agent::takeover`); never written. IPVS translations are not
//! in these tables.

use std::{io, net::IpAddr};

use proxy_common::{Addr, Port, Proto, tcp};

use super::netlink::{Message, Socket, attributes, read_u16};

/// `NFNL_SUBSYS_CTNETLINK << 8` and its messages; attributes (uapi/linux/netfilter/nfnetlink_conntrack.h).
const IPCTNL_MSG_CT_NEW: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = 1 << 8 | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

/// Bits of CTA_STATUS (uapi/linux/netfilter/nf_conntrack_common.h).
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_DST_NAT: u32 = 1 << 5;

/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// A flow whose destination nf_conntrack translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translated {
    pub proto: u8,
    pub client: (Addr, Port),
    /// The destination that the client used.
    pub frontend: (Addr, Port),
    /// The translated destination.
    pub backend: (Addr, Port),
    /// Bits of [`tcp`].
    pub state: u64,
}

/// A flow as nf_conntrack knows it, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tracked {
    pub proto: u8,
    /// Source and destination of the packets that began it.
    pub original: ((Addr, Port), (Addr, Port)),
    /// Of the packets that answer.
    pub reply: ((Addr, Port), (Addr, Port)),
    /// The destination is translated.
    pub has_dnat: bool,
    /// Bits of [`tcp`].
    pub state: u64,
}

/// All TCP, UDP and SCTP flows whose destination is translated; none if the kernel has no connection tracking.
pub fn translated() -> io::Result<Vec<Translated>> {
    let mut found: Vec<_> = tracked()?.iter().filter_map(Tracked::translated).collect();
    // An interrupted dump contains some flows twice.
    found.sort_by_key(|flow| (flow.proto, flow.client.0.words(), flow.client.1.host()));
    found.dedup();
    Ok(found)
}

/// All TCP, UDP and SCTP flows of which packets may still arrive, some of them twice; none if the kernel has no connection
/// tracking.
pub fn tracked() -> io::Result<Vec<Tracked>> {
    let mut found = Vec::new();
    let listed = Socket::open_netfilter().and_then(|mut netlink| {
        netlink.dump(IPCTNL_MSG_CT_GET, &[0; HEADER], |message| found.extend(read(&message)))
    });
    match listed {
        Ok(()) => {}
        // The table changes constantly; what was read still holds for most flows.
        Err(error) if error.kind() == io::ErrorKind::Other && !found.is_empty() => {}
        // EINVAL: no nfnetlink subsystem answers for conntrack; EPROTONOSUPPORT: no nfnetlink at all.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPROTONOSUPPORT)) => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

impl Tracked {
    fn translated(&self) -> Option<Translated> {
        // A connection that is not open yet repeats its SYN.
        let is_opening = self.proto == Proto::TCP && self.state & tcp::REPLIED == 0;
        (self.has_dnat && !is_opening).then_some(Translated {
            proto: self.proto,
            client: self.original.0,
            frontend: self.original.1,
            backend: self.reply.0,
            state: self.state,
        })
    }
}

/// An entry, if packets may still arrive.
fn read(message: &Message<'_>) -> Option<Tracked> {
    if message.kind != IPCTNL_MSG_CT_NEW {
        return None;
    }
    let body = message.body.get(HEADER..)?;
    let status = u32::from_be_bytes(find(body, CTA_STATUS)?.try_into().ok()?);
    let original = tuple(find(body, CTA_TUPLE_ORIG)?)?;
    let reply = tuple(find(body, CTA_TUPLE_REPLY)?)?;
    let tcp_state = find(body, CTA_PROTOINFO)
        .and_then(|info| find(info, CTA_PROTOINFO_TCP))
        .and_then(|info| find(info, CTA_PROTOINFO_TCP_STATE))
        .and_then(|state| state.first().copied());
    let state = match original.proto {
        Proto::TCP => state_of(tcp_state?)?,
        _ if status & IPS_SEEN_REPLY != 0 => tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED,
        _ => tcp::OPENED,
    };
    Some(Tracked {
        proto: original.proto,
        original: (original.source, original.destination),
        reply: (reply.source, reply.destination),
        has_dnat: status & IPS_DST_NAT != 0,
        state,
    })
}

/// Maps a state of `enum tcp_conntrack`; `None` for connections that are closed.
fn state_of(tcp_conntrack: u8) -> Option<u64> {
    const SYN_SENT: u8 = 1;
    const SYN_RECV: u8 = 2;
    const ESTABLISHED: u8 = 3;
    const FIN_WAIT: u8 = 4;
    const CLOSE_WAIT: u8 = 5;
    const LAST_ACK: u8 = 6;
    const TIME_WAIT: u8 = 7;
    let open = tcp::OPENED | tcp::REPLIED | tcp::CONFIRMED;
    Some(match tcp_conntrack {
        SYN_SENT => tcp::OPENED,
        SYN_RECV => tcp::OPENED | tcp::REPLIED,
        ESTABLISHED => open,
        // The side that sent FIN is unknown; both have the same timeout.
        FIN_WAIT | CLOSE_WAIT => open | tcp::FIN_CLIENT,
        LAST_ACK => open | tcp::FIN_CLIENT | tcp::FIN_BACKEND,
        TIME_WAIT => open | tcp::FIN_CLIENT | tcp::FIN_BACKEND | tcp::LAST_ACK,
        _ => return None,
    })
}

struct Tuple {
    proto: u8,
    source: (Addr, Port),
    destination: (Addr, Port),
}

fn tuple(data: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (find(data, CTA_TUPLE_IP)?, find(data, CTA_TUPLE_PROTO)?);
    let number = *find(proto, CTA_PROTO_NUM)?.first()?;
    if !matches!(number, Proto::TCP | Proto::UDP | Proto::SCTP) {
        return None;
    }
    let port = |kind| Some(Port::from_be(read_u16(find(proto, kind)?, 0)?));
    let addr = |v4: u16, v6: u16| {
        let found = find(ip, v4).or_else(|| find(ip, v6))?;
        let ip = match found.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(found).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(found).ok()?),
        };
        Some(Addr::from(ip))
    };
    Some(Tuple {
        proto: number,
        source: (addr(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        destination: (addr(CTA_IP_V4_SRC + 1, CTA_IP_V6_SRC + 1)?, port(CTA_PROTO_DST_PORT)?),
    })
}

fn find(data: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(data).find(|attribute| attribute.0 == kind).map(|attribute| attribute.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::{Request, messages};

    fn entry(status: u32, state: u8) -> Option<Translated> {
        let ip = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let mut request = Request::new(IPCTNL_MSG_CT_NEW, 0, &[2, 0, 0, 0]);
        for (kind, from, to, ports) in [
            (CTA_TUPLE_ORIG, "172.20.0.4", "10.68.0.10", [40_000u16, 80]),
            (CTA_TUPLE_REPLY, "172.20.1.3", "172.20.0.4", [8080, 40_000]),
        ] {
            request.nested(kind, |tuple| {
                tuple.nested(CTA_TUPLE_IP, |r| {
                    r.attribute(CTA_IP_V4_SRC, &ip(from)).attribute(CTA_IP_V4_SRC + 1, &ip(to));
                });
                tuple.nested(CTA_TUPLE_PROTO, |r| {
                    r.attribute(CTA_PROTO_NUM, &[Proto::TCP])
                        .attribute(CTA_PROTO_SRC_PORT, &ports[0].to_be_bytes())
                        .attribute(CTA_PROTO_DST_PORT, &ports[1].to_be_bytes());
                });
            });
        }
        request.attribute(CTA_STATUS, &status.to_be_bytes());
        request.nested(CTA_PROTOINFO, |r| {
            r.nested(CTA_PROTOINFO_TCP, |r| {
                r.attribute(CTA_PROTOINFO_TCP_STATE, &[state]);
            });
        });
        let bytes = request.encoded();
        read(&messages(&bytes).next().unwrap()).and_then(|flow| flow.translated())
    }

    #[test]
    fn translated_connections_are_told_from_others() {
        let flow = entry(IPS_DST_NAT | IPS_SEEN_REPLY, 3).unwrap();
        let at = |text: &str, port| (Addr::from(text.parse::<IpAddr>().unwrap()), Port::new(port));
        assert_eq!(flow.proto, Proto::TCP);
        assert_eq!(flow.client, at("172.20.0.4", 40_000));
        assert_eq!(flow.frontend, at("10.68.0.10", 80));
        assert_eq!(flow.backend, at("172.20.1.3", 8080));
        assert_eq!(tcp::name(flow.state, Proto::TCP), "ESTABLISHED");
        assert_eq!(entry(IPS_SEEN_REPLY, 3), None);
    }

    #[test]
    fn only_connections_that_go_on_count() {
        let name = |state| entry(IPS_DST_NAT, state).map(|flow| tcp::name(flow.state, Proto::TCP));
        assert_eq!([0, 1, 8, 9].map(name), [None; 4]);
        assert_eq!([2, 4, 7].map(name), [Some("SYN_RECV"), Some("FIN_WAIT"), Some("TIME_WAIT")]);
    }
}
