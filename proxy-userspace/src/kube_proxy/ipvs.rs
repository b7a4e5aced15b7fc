//! kube-proxy's virtual servers in IPVS. They have no names: kube-proxy's are those at an address of its device, and
//! NodePorts at the node's own addresses while that device exists. Others (keepalived's, those of a firewall mark) are
//! kept.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::datapath::netlink::{Request, Socket, attributes, read_u16};

/// uapi/linux/ip_vs.h and genetlink.h.
const CTRL: u16 = 16;
const CTRL_GETFAMILY: [u8; 4] = [3, 1, 0, 0];
const CTRL_FAMILY_ID: u16 = 1;
const CTRL_FAMILY_NAME: u16 = 2;
const DEL_SERVICE: [u8; 4] = [3, 1, 0, 0];
const ATTR_SERVICE: u16 = 1;
const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;

/// kube-apiserver's default; the actual range is not recorded on the node.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// `IPPROTO_*`.
    pub protocol: u8,
    pub at: SocketAddr,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match i32::from(self.protocol) {
            libc::IPPROTO_TCP => "TCP",
            libc::IPPROTO_UDP => "UDP",
            _ => "SCTP",
        };
        write!(f, "ipvs virtual server {protocol} {}", self.at)
    }
}

/// All virtual servers with an address in this network namespace; none without IPVS.
pub fn servers() -> io::Result<BTreeSet<Server>> {
    match fs::read_to_string("/proc/net/ip_vs") {
        Ok(text) => Ok(text.lines().filter_map(server_in).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// `TCP  0A600001:01BB rr`, `UDP  [fd00:…:0001]:0035 rr`; lines of real servers begin with an arrow.
fn server_in(line: &str) -> Option<Server> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "TCP" => libc::IPPROTO_TCP,
        "UDP" => libc::IPPROTO_UDP,
        "SCTP" => libc::IPPROTO_SCTP,
        _ => return None,
    };
    let (address, port) = words.next()?.rsplit_once(':')?;
    let address: IpAddr = match address.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    let at = SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?);
    Some(Server { protocol: protocol as u8, at })
}

/// Selects kube-proxy's. `vips`: the addresses of its device, `None` if it does not exist; `own`: the node's addresses.
pub fn is_own(server: &Server, vips: Option<&BTreeSet<IpAddr>>, own: &BTreeSet<IpAddr>) -> bool {
    let Some(vips) = vips else { return false };
    let address = server.at.ip();
    vips.contains(&address) || (own.contains(&address) && NODE_PORTS.contains(&server.at.port()))
}

/// Removes virtual servers; a missing one is not an error.
pub fn remove(servers: &[Server]) -> io::Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open_generic()?;
    let mut ask = Request::new(CTRL, 0, &CTRL_GETFAMILY);
    ask.attribute(CTRL_FAMILY_NAME, b"IPVS\0");
    let mut family = None;
    socket.ask(ask, |message| {
        let mut all = attributes(message.body.get(CTRL_GETFAMILY.len()..).unwrap_or_default());
        family = all.find(|it| it.0 == CTRL_FAMILY_ID).and_then(|it| read_u16(it.1, 0)).or(family);
    })?;
    let family = family.ok_or(io::ErrorKind::NotFound)?;
    for server in servers {
        match socket.request(removal(family, server)) {
            // ESRCH: the virtual server does not exist.
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn removal(family: u16, server: &Server) -> Request {
    let (af, address) = match server.at.ip() {
        IpAddr::V4(v4) => (libc::AF_INET, [&v4.octets()[..], &[0; 12]].concat()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut request = Request::new(family, 0, &DEL_SERVICE);
    request.nested(ATTR_SERVICE, |service| {
        service
            .attribute(SVC_AF, &(af as u16).to_ne_bytes())
            .attribute(SVC_PROTOCOL, &u16::from(server.protocol).to_ne_bytes())
            .attribute(SVC_ADDR, &address)
            .attribute(SVC_PORT, &server.at.port().to_be_bytes());
    });
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::messages;

    const TEXT: &str = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port Scheduler Flags\n\
        \x20 -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
        TCP  0A440001:01BB rr\n\
        \x20 -> C0A808C9:192B      Masq    1      0          0\n\
        UDP  [fd00:0010:0068:0000:0000:0000:0000:000a]:0035 rr persistent 10800\n\
        FWM  00000001 wlc\n\
        TCP  C0A808C9:7531 rr\n\
        TCP  C0A808C9:01BB wlc\n";

    #[test]
    fn virtual_servers_are_read_and_told_apart() {
        let found: Vec<_> = TEXT.lines().filter_map(server_in).collect();
        let shown: Vec<_> = found.iter().map(Server::to_string).collect();
        assert_eq!(
            shown,
            [
                "ipvs virtual server TCP 10.68.0.1:443",
                "ipvs virtual server UDP [fd00:10:68::a]:53",
                "ipvs virtual server TCP 192.168.8.201:30001",
                "ipvs virtual server TCP 192.168.8.201:443"
            ]
        );
        let vips = ["10.68.0.1", "fd00:10:68::a"].map(|it| it.parse().unwrap()).into();
        let own = ["192.168.8.201".parse().unwrap()].into();
        let ours: Vec<_> = found.iter().map(|server| is_own(server, Some(&vips), &own)).collect();
        assert_eq!(ours, [true, true, true, false]);
        assert!(!found.iter().any(|server| is_own(server, None, &own)));
    }

    #[test]
    fn a_removal_as_the_kernel_reads_it() {
        let at = SocketAddr::from(([10, 68, 0, 1], 443));
        let bytes = removal(33, &Server { protocol: 6, at }).encoded();
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, &message.body[..4]), (33, &DEL_SERVICE[..]));
        let service = attributes(&message.body[4..]).next().unwrap();
        let parts: Vec<_> = attributes(service.1).map(|it| (it.0, it.1.len())).collect();
        assert_eq!(parts, [(SVC_AF, 2), (SVC_PROTOCOL, 2), (SVC_ADDR, 16), (SVC_PORT, 2)]);
        assert_eq!(attributes(service.1).nth(3).unwrap().1, [1, 0xbb], "in network order");
    }
}
