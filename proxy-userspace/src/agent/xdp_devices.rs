//! `--xdp`: attaches the XDP program to uplinks, in the best mode that each device supports.
//!
//! A device that supports none, or has another XDP program, is served by tc alone. That is logged once, and tried again
//! with every repair.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use proxy_common::Device;

use crate::{
    bpf::prog::ProgInfo,
    config::Xdp,
    datapath::{
        devices::{Link, select::XdpEligibility},
        load::Loaded,
        netlink::Socket,
        pins::Pins,
        xdp::{self, Mode},
    },
};

/// The result for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attached {
    /// `None`: the device is served by tc alone.
    mode: Option<Mode>,
    program: &'static str,
    /// `Device::XDP_NATIVE` or `Device::XDP_GENERIC`, if the programs may redirect frames to it.
    flags: u32,
}

/// The devices that XDP serves.
#[derive(Debug)]
pub struct XdpDevices {
    pins: Pins,
    netlink: Socket,
    wanted: Xdp,
    attached: BTreeMap<u32, Attached>,
    /// Devices for which a reason was logged, so that it is logged once.
    reported: BTreeSet<u32>,
}

impl XdpDevices {
    pub fn new(pins: Pins, wanted: Xdp) -> io::Result<Self> {
        Ok(Self {
            pins,
            netlink: Socket::open()?,
            wanted,
            attached: BTreeMap::new(),
            reported: BTreeSet::new(),
        })
    }

    /// Whether XDP is to serve the device; logs why an uplink is not.
    pub fn wants(&mut self, link: &Link, eligibility: XdpEligibility) -> bool {
        if self.wanted == Xdp::Off {
            return false;
        }
        if let XdpEligibility::Unsupported(reason) = eligibility
            && self.reported.insert(link.index)
        {
            tracing::warn!(
                ifindex = link.index,
                device = link.name,
                "XDP does not serve this device: {reason}; tc does"
            );
        }
        eligibility == XdpEligibility::Eligible
    }

    /// The XDP flags of the device's entry in DEVICES.
    pub fn flags(&self, ifindex: u32) -> u32 {
        self.attached.get(&ifindex).map_or(0, |attached| attached.flags)
    }

    pub fn has(&self, ifindex: u32) -> bool {
        self.attached.contains_key(&ifindex)
    }

    /// Attaches our program to a device whose tc hooks are ready for it.
    pub fn attach(&mut self, loaded: &Loaded, link: &Link) -> io::Result<()> {
        let (ifindex, device) = (link.index, link.name.as_str());
        let modes: &[Mode] = match self.wanted {
            Xdp::Off => &[],
            Xdp::Native => &[Mode::Native, Mode::Generic],
            Xdp::Generic => &[Mode::Generic],
        };
        let mut attached = Attached { mode: None, program: "xdp_soft", flags: 0 };
        let mut refused = None;
        for mode in modes {
            let transmits = match mode {
                Mode::Native => xdp::transmits(ifindex).unwrap_or(None),
                Mode::Generic => Some(true),
            };
            // Otherwise the veth driver silently drops what an XDP program transmits.
            if link.kind == "veth" && transmits != Some(true) {
                refused = Some("the peer of a veth must have GRO on, or have an XDP program".to_owned());
                continue;
            }
            let program = loaded.program(mode.program(&link.kind)).map_err(io::Error::other)?;
            match xdp::attach(&self.pins, &mut self.netlink, program, ifindex, *mode) {
                Ok(()) => {
                    (attached.mode, attached.program) = (Some(*mode), mode.program(&link.kind));
                    attached.flags = match (mode, transmits) {
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
        self.attached.insert(ifindex, attached);
        let is_new = refused.is_some() && self.reported.insert(ifindex);
        match (attached.mode, refused) {
            (Some(mode), Some(reason)) if is_new => {
                tracing::warn!(ifindex, device, reason, "native XDP does not work here: using {mode}");
            }
            (None, Some(reason)) if is_new => {
                tracing::warn!(ifindex, device, reason, "XDP does not serve this device: tc does");
            }
            (Some(mode), _) => tracing::debug!(ifindex, device, %mode, "XDP serves this device"),
            (None, _) => {}
        }
        Ok(())
    }

    /// Detaches our program, before the device's tc programs are replaced by those without XDP.
    pub fn detach(&mut self, ifindex: u32) {
        if self.attached.remove(&ifindex).is_some()
            && let Err(error) = xdp::detach(&self.pins, ifindex)
        {
            tracing::warn!(ifindex, %error, "cannot detach the XDP program");
        }
    }

    /// The device was removed.
    pub fn forget(&mut self, ifindex: u32) {
        self.reported.remove(&ifindex);
        self.detach(ifindex);
    }

    /// Detaches what an earlier run left on devices that are not `wanted` now.
    pub fn detach_leftovers(&self, wanted: &BTreeSet<u32>) {
        for ifindex in xdp::pinned(&self.pins).unwrap_or_default() {
            if !wanted.contains(&ifindex)
                && let Err(error) = xdp::detach(&self.pins, ifindex)
            {
                tracing::warn!(ifindex, %error, "cannot remove the XDP program of an earlier run");
            }
        }
    }

    /// Forgets devices whose program is missing or could not be attached, so that they are tried again.
    pub fn repair(&mut self, loaded: &Loaded) {
        let netlink = &mut self.netlink;
        self.attached.retain(|ifindex, attached| {
            let ours = loaded.program(attached.program).ok().and_then(|program| ProgInfo::of(program).ok());
            let there = matches!((xdp::attached(netlink, *ifindex), ours), (Ok(Some(id)), Some(ours)) if id == ours.id);
            if attached.mode.is_some() && !there {
                tracing::warn!(ifindex, "its XDP program was gone: attaching it again");
            }
            attached.mode.is_some() && there
        });
    }
}
