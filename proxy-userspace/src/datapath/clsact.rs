//! Attachment on kernels without tcx: a direct-action filter on the clsact qdisc, made over netlink.
//!
//! A filter lives with its device, not with a descriptor: nothing is pinned, and creating it again with the same
//! priority and handle replaces the program in place.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::{
    direction::Direction,
    netlink::{NLM_F_CREATE, NLM_F_EXCL, Request, Socket, attributes, read_u32},
};

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const TC_H_CLSACT: u32 = 0xffff_0000;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Before all other filters, so that they see translated packets.
const PRIORITY: u32 = 1;
/// "SH": others also use priority 1, handle 1, and the same handle would replace their filter.
const HANDLE: u32 = 0x5348;
const ETH_P_ALL: u16 = 3;

impl Direction {
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut body = [0; 20];
    for (at, word) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        body[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    body
}

fn filter_info() -> u32 {
    PRIORITY << 16 | u32::from(ETH_P_ALL.to_be())
}

/// Adds the clsact qdisc if the device has none.
fn add_qdisc(netlink: &mut Socket, ifindex: u32) -> io::Result<()> {
    let mut request =
        Request::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &tcmsg(ifindex, TC_H_CLSACT, TC_H_INGRESS, 0));
    request.attribute(TCA_KIND, b"clsact\0");
    match netlink.request(request) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Attaches `prog`, replacing our earlier filter.
pub fn attach(
    netlink: &mut Socket,
    ifindex: u32,
    direction: Direction,
    prog: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    add_qdisc(netlink, ifindex)?;
    let body = tcmsg(ifindex, HANDLE, direction.parent(), filter_info());
    let mut request = Request::new(RTM_NEWTFILTER, NLM_F_CREATE, &body);
    request.attribute(TCA_KIND, b"bpf\0").nested(TCA_OPTIONS, |options| {
        options
            .attribute(TCA_BPF_FD, &(prog.as_raw_fd() as u32).to_ne_bytes())
            .attribute(TCA_BPF_NAME, format!("shunt_{name}\0").as_bytes())
            .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    });
    netlink.request(request)
}

/// Removes our filter; a missing filter or device is not an error.
pub fn detach(netlink: &mut Socket, ifindex: u32, direction: Direction) -> io::Result<()> {
    let body = tcmsg(ifindex, HANDLE, direction.parent(), filter_info());
    let mut request = Request::new(RTM_DELTFILTER, 0, &body);
    request.attribute(TCA_KIND, b"bpf\0");
    match netlink.request(request) {
        // EINVAL: the device has no clsact qdisc.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

/// The id of the program in our filter, if there is one.
pub fn attached(netlink: &mut Socket, ifindex: u32, direction: Direction) -> io::Result<Option<u32>> {
    let mut found = None;
    let result = netlink.dump(RTM_GETTFILTER, &tcmsg(ifindex, 0, direction.parent(), 0), |message| {
        if message.kind == RTM_NEWTFILTER && read_u32(message.body, 8) == Some(HANDLE) {
            let options = attributes(message.body.get(20..).unwrap_or_default()).find(|a| a.0 == TCA_OPTIONS);
            let id = options.and_then(|(_, options)| attributes(options).find(|a| a.0 == TCA_BPF_ID));
            found = id.and_then(|(_, id)| read_u32(id, 0)).or(found);
        }
    });
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(None),
        other => other.map(|()| found),
    }
}
