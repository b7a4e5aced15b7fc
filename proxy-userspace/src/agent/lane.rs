//! The XDP lane (`--xdp`): our program on the uplinks it serves, by the best mode each takes.
//!
//! A device that takes neither, or has another's XDP program, is served by tc as if there were no lane; that is said
//! once, and tried again with every repair.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use proxy_common::Device;

use crate::{
    bpf::prog::ProgInfo,
    config::Xdp,
    datapath::{
        devices::{Link, select::Lane},
        load::Loaded,
        netlink::Socket,
        pins::Pins,
        xdp::{self, Mode},
    },
};

/// What came of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Joined {
    /// `None`: it is served by tc alone.
    mode: Option<Mode>,
    program: &'static str,
    /// `Device::XDP_NATIVE` or `Device::XDP_GENERIC`, where frames of other devices may leave by it.
    flags: u32,
}

/// The devices in the lane.
#[derive(Debug)]
pub struct Lanes {
    pins: Pins,
    netlink: Socket,
    wanted: Xdp,
    joined: BTreeMap<u32, Joined>,
    /// Devices of which something was said, so that it is said once.
    reported: BTreeSet<u32>,
}

impl Lanes {
    pub fn new(pins: Pins, wanted: Xdp) -> io::Result<Self> {
        Ok(Self {
            pins,
            netlink: Socket::open()?,
            wanted,
            joined: BTreeMap::new(),
            reported: BTreeSet::new(),
        })
    }

    /// Whether a device of this standing is to be in the lane; says why an uplink is not.
    pub fn wants(&mut self, link: &Link, lane: Lane) -> bool {
        if self.wanted == Xdp::Off {
            return false;
        }
        if let Lane::Refused(reason) = lane
            && self.reported.insert(link.index)
        {
            tracing::warn!(
                ifindex = link.index,
                device = link.name,
                "not in the XDP lane: {reason}; tc serves Services through it"
            );
        }
        lane == Lane::In
    }

    /// What DEVICES says of a device in the lane.
    pub fn flags(&self, ifindex: u32) -> u32 {
        self.joined.get(&ifindex).map_or(0, |joined| joined.flags)
    }

    pub fn has(&self, ifindex: u32) -> bool {
        self.joined.contains_key(&ifindex)
    }

    /// Puts our program on a device whose tc hooks are ready for it.
    pub fn join(&mut self, loaded: &Loaded, link: &Link) -> io::Result<()> {
        let (ifindex, device) = (link.index, link.name.as_str());
        let modes: &[Mode] = match self.wanted {
            Xdp::Off => &[],
            Xdp::Native => &[Mode::Native, Mode::Generic],
            Xdp::Generic => &[Mode::Generic],
        };
        let mut joined = Joined { mode: None, program: "xdp_soft", flags: 0 };
        let mut refused = None;
        for mode in modes {
            let transmits = match mode {
                Mode::Native => xdp::transmits(ifindex).unwrap_or(None),
                Mode::Generic => Some(true),
            };
            // What an XDP program sends on a veth without that is lost, and nobody is told.
            if link.kind == "veth" && transmits != Some(true) {
                refused =
                    Some("the peer of a veth must have GRO on, or an XDP program of its own".to_owned());
                continue;
            }
            let program = loaded.program(mode.program(&link.kind)).map_err(io::Error::other)?;
            match xdp::attach(&self.pins, &mut self.netlink, program, ifindex, *mode) {
                Ok(()) => {
                    (joined.mode, joined.program) = (Some(*mode), mode.program(&link.kind));
                    joined.flags = match (mode, transmits) {
                        (Mode::Native, Some(true)) => Device::XDP_NATIVE,
                        (Mode::Native, _) => 0,
                        (Mode::Generic, _) => Device::XDP_GENERIC,
                    };
                    break;
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                    refused = Some("it has an XDP program that is not shunt's, and keeps it".to_owned());
                    break;
                }
                Err(e) => refused = Some(e.to_string()),
            }
        }
        self.joined.insert(ifindex, joined);
        let is_news = refused.is_some() && self.reported.insert(ifindex);
        match (joined.mode, refused) {
            (Some(mode), Some(reason)) if is_news => {
                tracing::warn!(ifindex, device, reason, "native XDP does not work here: {mode} instead");
            }
            (None, Some(reason)) if is_news => {
                tracing::warn!(ifindex, device, reason, "not in the XDP lane: tc serves Services through it");
            }
            (Some(mode), _) => tracing::debug!(ifindex, device, %mode, "in the XDP lane"),
            (None, _) => {}
        }
        Ok(())
    }

    /// Takes our program off a device, before its tc hooks stop to know of it.
    pub fn leave(&mut self, ifindex: u32) {
        if self.joined.remove(&ifindex).is_some()
            && let Err(error) = xdp::detach(&self.pins, ifindex)
        {
            tracing::warn!(ifindex, %error, "cannot take the XDP program off the device");
        }
    }

    /// A device is gone.
    pub fn forget(&mut self, ifindex: u32) {
        self.reported.remove(&ifindex);
        self.leave(ifindex);
    }

    /// Takes off what an earlier run left on devices that are not `wanted` now.
    pub fn drop_leftovers(&self, wanted: &BTreeSet<u32>) {
        for ifindex in xdp::pinned(&self.pins).unwrap_or_default() {
            if !wanted.contains(&ifindex)
                && let Err(error) = xdp::detach(&self.pins, ifindex)
            {
                tracing::warn!(ifindex, %error, "cannot remove the XDP program of an earlier run");
            }
        }
    }

    /// Forgets devices that are not as they should be, or were not to be had, so that they join again.
    pub fn repair(&mut self, loaded: &Loaded) {
        let netlink = &mut self.netlink;
        self.joined.retain(|ifindex, joined| {
            let ours = loaded.program(joined.program).ok().and_then(|program| ProgInfo::of(program).ok());
            let there = matches!((xdp::attached(netlink, *ifindex), ours), (Ok(Some(id)), Some(ours)) if id == ours.id);
            if joined.mode.is_some() && !there {
                tracing::warn!(ifindex, "its XDP program was gone: attaching it again");
            }
            joined.mode.is_some() && there
        });
    }
}
