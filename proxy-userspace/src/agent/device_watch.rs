//! The devices and addresses of the node, as netlink reports them: dumped at start and at each repair, followed in between.
//!
//! Attaches nothing ([`super::device_hooks`] does).

use std::{io, os::fd::OwnedFd};

use proxy_common::Device;

use crate::{
    config::{Config, DetectLocal},
    datapath::{
        devices::{
            Change, Devices, Follow, Happened, Link,
            select::{Filter, Hook, Preferred},
        },
        netlink::Socket,
        source_addrs::Egress,
    },
    node::NodeAddress,
};

/// The node's devices, and the configuration that selects among them.
#[derive(Debug)]
pub(super) struct DeviceWatch {
    follow: Follow,
    netlink: Socket,
    pub(super) devices: Devices,
    preferred: Preferred,
    filter: Filter,
    detect: DetectLocal,
}

impl DeviceWatch {
    pub(super) fn open(config: &Config) -> io::Result<Self> {
        // Subscribe before the dump, so that no change is missed.
        let follow = Follow::open()?;
        let mut netlink = Socket::open()?;
        let devices = Devices::dump(&mut netlink)?;
        Ok(Self {
            follow,
            netlink,
            devices,
            preferred: Preferred::ask(),
            filter: Filter { include: config.devices.clone(), exclude: config.exclude_devices.clone() },
            detect: config.compile.detect_local.clone(),
        })
    }

    /// A descriptor that becomes readable with the next event.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.follow.descriptor()
    }

    /// The addresses of the node's devices, and the primary one of each family.
    pub(super) fn addresses(&self) -> (Vec<NodeAddress>, Vec<std::net::IpAddr>) {
        (self.devices.node_addresses(), self.devices.primary_addresses(&self.detect, self.preferred))
    }

    pub(super) fn name(&self, ifindex: u32) -> &str {
        self.devices.links.get(&ifindex).map_or("", |link| &link.name)
    }

    /// Applies the waiting events to `devices`.
    pub(super) fn drain(&mut self) -> io::Result<Happened> {
        self.follow.drain(&mut self.devices)
    }

    /// After [`drain`](Self::drain): reads what events do not contain. Returns whether anything changed.
    pub(super) fn refresh(&mut self, happened: &Happened) -> io::Result<bool> {
        let mut changed = !happened.changes.is_empty();
        if happened.routes {
            changed |= self.devices.dump_default_routes(&mut self.netlink)?;
        }
        if happened.routes || happened.changes.contains(&Change::Addresses) {
            let preferred = Preferred::ask();
            changed |= preferred != self.preferred;
            self.preferred = preferred;
        }
        Ok(changed)
    }

    /// Reads everything again.
    pub(super) fn dump(&mut self) -> io::Result<()> {
        // Events from before the dump would undo it.
        self.follow.drain(&mut Devices::default())?;
        let fresh = Devices::dump(&mut self.netlink)?;
        if fresh != self.devices {
            tracing::info!("devices or addresses changed without an event");
            self.devices = fresh;
        }
        self.preferred = Preferred::ask();
        Ok(())
    }

    /// The hooked devices, and the device that routes name for each.
    pub(super) fn egress(&self) -> Vec<Egress> {
        let is_hooked = |link: &&Link| matches!(self.devices.hook(link, &self.filter), Hook::L2 | Hook::L3);
        let hooked = self.devices.links.values().filter(is_hooked);
        hooked.map(|link| Egress { hooked: link.index, routed: self.devices.routed(link) }).collect()
    }

    /// A socket for requests, and the devices.
    pub(super) fn netlink(&mut self) -> (&mut Socket, &Devices) {
        (&mut self.netlink, &self.devices)
    }

    /// How every device is to be hooked, and its entry in DEVICES.
    pub(super) fn select(&self) -> impl Iterator<Item = (&Link, Hook, Device)> {
        self.devices.links.values().map(|link| {
            let hook = self.devices.hook(link, &self.filter);
            (link, hook, self.devices.describe(link, hook, &self.detect, self.preferred))
        })
    }
}
