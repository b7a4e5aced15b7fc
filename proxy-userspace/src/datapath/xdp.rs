//! XDP programs on devices: pinned links, updated in place like those of tc, and the devices' capabilities.
//!
//! `devices::select` decides which devices are eligible; the agent falls back from native to generic mode.

use std::{
    fmt, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use super::{
    netlink::{Message, Request, Socket, attributes, read_u16, read_u32},
    pins::Pins,
};
use crate::bpf::{
    self,
    link::{self, LinkInfo},
};

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the device's driver, before there is an skb.
    Native,
    /// On skbs, on any device.
    Generic,
}

impl Mode {
    pub const BOTH: [Self; 2] = [Self::Native, Self::Generic];

    /// The program for this mode on a device of this kind.
    pub fn program(self, kind: &str) -> &'static str {
        match self {
            Self::Native if kind != "veth" => "xdp_native",
            _ => "xdp_soft",
        }
    }

    /// `XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE`.
    fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

fn pin_path(pins: &Pins, mode: Mode, ifindex: u32) -> PathBuf {
    pins.link(&format!("xdp_{mode}_{ifindex}"))
}

/// Mode and ifindex in the name of a pinned XDP link.
pub fn parse_link_name(name: &str) -> Option<(Mode, u32)> {
    let (mode, index) = name.strip_prefix("xdp_")?.split_once('_')?;
    let mode = Mode::BOTH.into_iter().find(|known| known.to_string() == mode)?;
    Some((mode, index.parse().ok()?))
}

/// The ifindexes of pinned XDP links.
pub fn pinned(pins: &Pins) -> io::Result<Vec<u32>> {
    let names = Pins::names(&pins.links())?;
    Ok(names.iter().filter_map(|name| parse_link_name(name)).map(|(_, ifindex)| ifindex).collect())
}

/// Attaches `program` to a device in this mode, replacing ours. EBUSY and EEXIST: another program is attached, and
/// stays.
pub fn attach(
    pins: &Pins,
    netlink: &mut Socket,
    program: BorrowedFd<'_>,
    ifindex: u32,
    mode: Mode,
) -> io::Result<()> {
    for other in Mode::BOTH.into_iter().filter(|other| *other != mode) {
        remove(&pin_path(pins, other, ifindex))?;
    }
    let path = pin_path(pins, mode, ifindex);
    match bpf::obj_get(&path) {
        Ok(old) => {
            let info = LinkInfo::of(old.as_fd())?;
            // The pinned link may belong to an earlier device with this ifindex, which is gone or in another namespace.
            if info.ifindex() == Some(ifindex) && attached(netlink, ifindex)? == Some(info.prog_id) {
                match link::update(old.as_fd(), program) {
                    Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
                    other => return other,
                }
            }
            bpf::remove_pin(&path)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let fresh = link::create_xdp(program, ifindex, mode.flags())?;
    bpf::obj_pin(fresh.as_fd(), &path)
}

/// Detaches our program from a device, even if it left the namespace.
pub fn detach(pins: &Pins, ifindex: u32) -> io::Result<()> {
    Mode::BOTH.into_iter().try_for_each(|mode| remove(&pin_path(pins, mode, ifindex)))
}

/// Detaches a pinned link and removes its pin. Removing the pin alone would detach later: the kernel frees bpffs inodes
/// after a grace period.
fn remove(path: &Path) -> io::Result<()> {
    match bpf::obj_get(path) {
        Ok(old) => match link::detach(old.as_fd()) {
            Err(e) if e.raw_os_error() != Some(libc::ENOLINK) => return Err(e),
            _ => {}
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    bpf::remove_pin(path)
}

/// The id of any XDP program on a device of this namespace.
pub fn attached(netlink: &mut Socket, ifindex: u32) -> io::Result<Option<u32>> {
    const RTM_NEWLINK: u16 = 16;
    const RTM_GETLINK: u16 = 18;
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let mut found = None;
    netlink.ask(Request::new(RTM_GETLINK, 0, &body), |message| {
        if message.kind == RTM_NEWLINK && read_u32(message.body, 4) == Some(ifindex) {
            found = program_in(message);
        }
    })?;
    Ok(found)
}

fn program_in(message: Message<'_>) -> Option<u32> {
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_PROG_ID: u16 = 4;
    let (_, xdp) = attributes(message.body.get(16..)?).find(|a| a.0 == IFLA_XDP)?;
    let (_, id) = attributes(xdp).find(|a| a.0 == IFLA_XDP_PROG_ID)?;
    read_u32(id, 0)
}

/// Whether a device's driver transmits frames that XDP programs redirect to it; for a veth, whether its peer accepts
/// frames that an XDP program transmits. `None`: unknown (kernel before 6.3).
pub fn transmits(ifindex: u32) -> io::Result<Option<bool>> {
    const GENL_ID_CTRL: u16 = 0x10;
    const GETFAMILY: [u8; 4] = [3, 1, 0, 0];
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    const DEV_GET: [u8; 4] = [1, 1, 0, 0];
    const IFINDEX: u16 = 1;
    const XDP_FEATURES: u16 = 3;
    const NDO_XMIT: u32 = 4;
    let mut netlink = Socket::open_generic()?;
    let mut request = Request::new(GENL_ID_CTRL, 0, &GETFAMILY);
    request.attribute(FAMILY_NAME, b"netdev\0");
    let mut family = None;
    let result = netlink.ask(request, |message| {
        let attribute = attributes(message.body.get(4..).unwrap_or_default()).find(|a| a.0 == FAMILY_ID);
        family = attribute.and_then(|(_, id)| read_u16(id, 0)).or(family);
    });
    let family = match (result, family) {
        (Err(e), _) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        (Err(e), _) => return Err(e),
        (Ok(()), None) => return Ok(None),
        (Ok(()), Some(family)) => family,
    };
    let mut request = Request::new(family, 0, &DEV_GET);
    request.attribute(IFINDEX, &ifindex.to_ne_bytes());
    let mut features = None;
    netlink.ask(request, |message| {
        let found = attributes(message.body.get(4..).unwrap_or_default()).find(|a| a.0 == XDP_FEATURES);
        // 64 bits; only the low ones are used.
        let low = if cfg!(target_endian = "little") { 0 } else { 4 };
        features = found.and_then(|(_, word)| read_u32(word, low)).or(features);
    })?;
    Ok(features.map(|features| features & NDO_XMIT != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_lead_back_to_devices() {
        let pins = Pins::under(std::path::Path::new("/b"));
        for mode in Mode::BOTH {
            let path = pin_path(&pins, mode, 42);
            assert_eq!(parse_link_name(path.file_name().unwrap().to_str().unwrap()), Some((mode, 42)));
        }
        for name in ["tcx_ingress_4", "xdp_odd_4", "xdp_native_", "connect4"] {
            assert_eq!(parse_link_name(name), None, "{name}");
        }
    }
}
