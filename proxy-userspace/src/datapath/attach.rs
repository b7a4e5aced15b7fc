//! Attaches the tc programs to devices, checks them, and detaches them.
//!
//! An attachment outlives the process: tcx links are pinned and updated in place at the next start, clsact filters are
//! replaced in place. There is no window without a program, at start or at exit. The socket programs are
//! `cgroup_attach`'s, the XDP programs are `xdp`'s.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use super::{clsact, devices::select::Hook, direction::Direction, load::Loaded, netlink::Socket, pins::Pins};
use crate::bpf::{
    self,
    link::{self, AttachType, LinkInfo},
    prog,
};

impl Direction {
    fn attach_type(self) -> AttachType {
        match self {
            Self::Ingress => AttachType::TcxIngress,
            Self::Egress => AttachType::TcxEgress,
        }
    }

    /// The tc program for this hook; `with_xdp`: the device has our XDP program too.
    fn program(self, hook: Hook, with_xdp: bool) -> &'static str {
        match (self, hook) {
            (Self::Ingress, Hook::L2) if with_xdp => "ingress_xdp",
            (Self::Ingress, Hook::L3) => "ingress_l3",
            (Self::Egress, Hook::L3) => "egress_l3",
            (Self::Ingress, _) => "ingress_l2",
            (Self::Egress, _) => "egress_l2",
        }
    }
}

/// How tc programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Pinned links (Linux 6.6).
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

/// Attaches tc programs to devices.
#[derive(Debug)]
pub struct Attacher {
    pins: Pins,
    method: Method,
    netlink: Socket,
}

impl Attacher {
    pub fn new(pins: Pins, method: Method) -> io::Result<Self> {
        Ok(Self { pins, method, netlink: Socket::open()? })
    }

    pub fn method(&self) -> Method {
        self.method
    }

    fn pin_path(&self, direction: Direction, ifindex: u32) -> PathBuf {
        self.pins.link(&link_name(direction, ifindex))
    }

    /// Hooks a device, or updates its attachments to the programs of `loaded`. `NotFound`: the device is gone.
    pub fn hook(&mut self, loaded: &Loaded, ifindex: u32, hook: Hook, with_xdp: bool) -> io::Result<()> {
        for direction in Direction::BOTH {
            let name = direction.program(hook, with_xdp);
            let program = loaded.program(name).map_err(io::Error::other)?;
            let result = match self.method {
                Method::Tcx => self.hook_tcx(program, ifindex, direction),
                Method::Clsact => clsact::attach(&mut self.netlink, ifindex, direction, program, name),
            };
            result.map_err(|e| match e.raw_os_error() {
                Some(libc::ENODEV) => io::Error::new(io::ErrorKind::NotFound, e),
                _ => e,
            })?;
        }
        Ok(())
    }

    fn hook_tcx(&self, program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> io::Result<()> {
        let path = self.pin_path(direction, ifindex);
        match bpf::obj_get(&path) {
            Ok(old) => {
                let id = LinkInfo::of(old.as_fd())?.id;
                // The pinned link may belong to an earlier device with this ifindex, or to one that was moved to
                // another namespace: only links that the kernel lists on this device count.
                if prog::query(ifindex, direction.attach_type() as u32)?.iter().any(|a| a.link_id == id) {
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
        let fresh = link::create_tcx(program, ifindex, direction.attach_type())?;
        bpf::obj_pin(fresh.as_fd(), &path)
    }

    /// Whether both programs of `loaded` are on the device.
    pub fn is_hooked(
        &mut self,
        loaded: &Loaded,
        ifindex: u32,
        hook: Hook,
        with_xdp: bool,
    ) -> io::Result<bool> {
        for direction in Direction::BOTH {
            let program = loaded.program(direction.program(hook, with_xdp)).map_err(io::Error::other)?;
            let id = prog::ProgInfo::of(program)?.id;
            let there = match self.method {
                Method::Tcx => {
                    self.pin_path(direction, ifindex).exists()
                        && prog::query(ifindex, direction.attach_type() as u32)?
                            .iter()
                            .any(|a| a.prog_id == id)
                }
                Method::Clsact => clsact::attached(&mut self.netlink, ifindex, direction)? == Some(id),
            };
            if !there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the pins of a device's links, which detaches them: a pin holds the last reference of a link. Works
    /// wherever the device is now, even if it left the namespace or was deleted.
    pub fn unpin(&self, ifindex: u32) -> io::Result<()> {
        Direction::BOTH.into_iter().try_for_each(|d| bpf::remove_pin(&self.pin_path(d, ifindex)))
    }

    /// Detaches our programs from a device of this namespace.
    pub fn unhook(&mut self, ifindex: u32) -> io::Result<()> {
        self.unpin(ifindex)?;
        if self.method == Method::Clsact { self.remove_filters(ifindex) } else { Ok(()) }
    }

    /// Removes our clsact filters from a device, if there are any.
    pub fn remove_filters(&mut self, ifindex: u32) -> io::Result<()> {
        for direction in Direction::BOTH {
            clsact::detach(&mut self.netlink, ifindex, direction)?;
        }
        Ok(())
    }

    /// The ifindexes of pinned tcx links.
    pub fn pinned(&self) -> io::Result<Vec<u32>> {
        let mut found: Vec<_> =
            Pins::names(&self.pins.links())?.iter().filter_map(|name| parse_link_name(name)).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

fn link_name(direction: Direction, ifindex: u32) -> String {
    format!("tcx_{}_{ifindex}", direction.name())
}

/// The ifindex in the name of a pinned tcx link.
pub fn parse_link_name(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("tcx_")?;
    let (_, index) = rest.split_once('_')?;
    index.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::load::PROGRAMS;

    #[test]
    fn link_names_lead_back_to_devices() {
        for direction in Direction::BOTH {
            assert_eq!(parse_link_name(&link_name(direction, 42)), Some(42));
        }
        assert_eq!(parse_link_name("connect4"), None);
        assert_eq!(parse_link_name("tcx_ingress_"), None);
    }

    #[test]
    fn every_attached_program_is_loaded() {
        let on_devices = Direction::BOTH.iter().flat_map(|d| {
            [(Hook::L2, true), (Hook::L2, false), (Hook::L3, true)]
                .map(|(hook, with_xdp)| d.program(hook, with_xdp))
        });
        for name in on_devices {
            assert!(PROGRAMS.contains(&name), "{name}");
        }
    }
}
