//! kube-proxy's ipsets (ipvs mode), listed and destroyed over netlink.

use std::{collections::BTreeSet, io, path::Path, thread, time::Duration};

use super::names;
use crate::datapath::netlink::{Message, Request, Socket, attributes, read_str};

/// `NFNL_SUBSYS_IPSET << 8` and its messages (uapi/linux/netfilter/ipset/ip_set.h).
const IPSET: u16 = 6 << 8;
const DESTROY: u16 = IPSET | 3;
const LIST: u16 = IPSET | 7;
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_FLAGS: u16 = 6;
/// The oldest protocol version that kernels support.
const PROTOCOL: [u8; 1] = [6];
/// `IPSET_FLAG_LIST_SETNAME`: names alone.
const LIST_SETNAME: u32 = 1 << 1;
/// `struct nfgenmsg`.
const HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];
/// `IPSET_ERR_BUSY`: a rule still names the set.
const BUSY: i32 = 4100;

/// The names of kube-proxy's sets; none if the ipset module is not loaded: a request would load it.
pub fn sets() -> io::Result<BTreeSet<String>> {
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(BTreeSet::new());
    }
    let mut list = Request::new(LIST, 0, &HEADER);
    list.attribute(ATTR_PROTOCOL, &PROTOCOL).attribute(ATTR_FLAGS, &LIST_SETNAME.to_be_bytes());
    let mut found = BTreeSet::new();
    Socket::open_netfilter()?.dump_request(list, |message| found.extend(name(&message)))?;
    found.retain(|name| names::is_set(name));
    Ok(found)
}

/// The kernel frees the rules of a transaction asynchronously: until then their sets are busy.
pub fn destroy(name: &str) -> io::Result<()> {
    let mut socket = Socket::open_netfilter()?;
    for _ in 0..50 {
        match socket.request(destruction(name)) {
            Err(error) if error.raw_os_error() == Some(BUSY) => thread::sleep(Duration::from_millis(100)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => return other,
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "a rule that is not kube-proxy's uses it"))
}

fn destruction(name: &str) -> Request {
    let mut request = Request::new(DESTROY, 0, &HEADER);
    request.attribute(ATTR_PROTOCOL, &PROTOCOL).attribute(ATTR_SETNAME, &[name.as_bytes(), &[0]].concat());
    request
}

fn name(message: &Message<'_>) -> Option<String> {
    let mut all = attributes(message.body.get(HEADER.len()..)?);
    all.find(|attribute| attribute.0 == ATTR_SETNAME).map(|attribute| read_str(attribute.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::messages;

    #[test]
    fn a_destruction_names_its_set() {
        let bytes = destruction("KUBE-CLUSTER-IP").encoded();
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, name(&message).as_deref()), (0x603, Some("KUBE-CLUSTER-IP")));
    }
}
