//! The devices of the node kept hooked: what netlink tells, what [`select`](crate::datapath::devices::select)
//! decides, carried out by [`Attacher`], and DEVICES kept in step.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use bytemuck::bytes_of;
use proxy_common::{Device, map};

use super::{lane::Lanes, source_addrs::SourceAddrs};
use crate::{
    config::{Config, DetectLocal},
    controller::NodeAddress,
    datapath::{
        attach::{Attacher, Direction, Method},
        clsact,
        devices::{
            Change, Devices, Follow,
            select::{Filter, Hook, Preferred},
        },
        load::Loaded,
        netlink::Socket,
        pins::Pins,
        source_addrs::Egress,
    },
    maps::{MapError, MapStore as _, Op},
    metrics::METRICS,
};

/// A device with our programs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hooked {
    hook: Hook,
    device: Device,
    /// Our XDP program is to be there too.
    lane: bool,
}

/// How long devices waited for their programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    pub last: Duration,
    pub max: Duration,
}

/// All devices, and what is on them.
#[derive(Debug)]
pub struct DeviceHooks {
    follow: Follow,
    netlink: Socket,
    devices: Devices,
    preferred: Preferred,
    sources: SourceAddrs,
    filter: Filter,
    detect: DetectLocal,
    attacher: Attacher,
    lanes: Lanes,
    hooked: BTreeMap<u32, Hooked>,
    /// Devices that were reported as not understood or as failing, so that it is said once.
    reported: BTreeSet<u32>,
    /// Nothing is attached before the maps are complete.
    is_attaching: bool,
    /// When the oldest event was taken that is not dealt with completely.
    since: Option<Instant>,
    pub latency: Latency,
}

/// What came of an event or a repair.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// The node's addresses may have changed.
    pub addresses: bool,
    /// Some device could not be hooked, or there was no time for it: try again after this.
    pub again: Option<Duration>,
}

/// After a device that could not be hooked.
const RETRY: Duration = Duration::from_secs(1);

/// A tcx attachment waits for an RCU grace period, 10-20 ms each: after this long the agent looks at what
/// else there is to do, and comes back.
const SLICE: Duration = Duration::from_millis(200);

impl DeviceHooks {
    /// Begins to follow devices and reads what is there; attaches nothing yet.
    pub fn open(config: &Config, pins: Pins, method: Method) -> io::Result<Self> {
        // Listening begins before the dump, so that nothing falls between the two.
        let follow = Follow::open()?;
        let mut netlink = Socket::open()?;
        let devices = Devices::dump(&mut netlink)?;
        Ok(Self {
            follow,
            netlink,
            devices,
            preferred: Preferred::ask(),
            sources: SourceAddrs::default(),
            filter: Filter { include: config.devices.clone(), exclude: config.exclude_devices.clone() },
            detect: config.compile.detect_local.clone(),
            lanes: Lanes::new(pins.clone(), config.xdp)?,
            attacher: Attacher::new(pins, method)?,
            hooked: BTreeMap::new(),
            reported: BTreeSet::new(),
            is_attaching: false,
            since: None,
            latency: Latency::default(),
        })
    }

    /// A descriptor that becomes readable with the next event.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.follow.descriptor()
    }

    /// The addresses of the node's devices, and the primary one of each family.
    pub fn addresses(&self) -> (Vec<NodeAddress>, Vec<std::net::IpAddr>) {
        (self.devices.node_addresses(), self.devices.primary_addresses(&self.detect, self.preferred))
    }

    pub fn count(&self) -> usize {
        self.hooked.len()
    }

    /// The maps are complete: hooks every device there is, and takes off what an earlier run left on others.
    pub fn attach_all(&mut self, loaded: &mut Loaded) -> Result<Outcome, MapError> {
        self.is_attaching = true;
        self.sources.distrust();
        self.refresh_sources(loaded)?;
        let lanes: Vec<_> = self.wanted().into_iter().filter(|(_, wanted)| wanted.lane).collect();
        // Off before tc's hooks stop to know what it has translated.
        self.lanes.drop_leftovers(&lanes.into_iter().map(|(ifindex, _)| ifindex).collect());
        if let Err(error) = loaded.fill_ingress() {
            tracing::error!(%error, "cannot fill INGRESS: uplinks in the XDP lane are not served");
        }
        let mut outcome = self.reconcile(loaded)?;
        while outcome.again == Some(Duration::ZERO) {
            outcome = self.reconcile(loaded)?;
        }
        self.drop_leftovers();
        Ok(outcome)
    }

    /// Links pinned for devices that are not to be hooked, and attachments by the other method.
    fn drop_leftovers(&mut self) {
        let pinned = self.attacher.pinned().unwrap_or_default();
        for ifindex in pinned {
            let wanted = self.hooked.contains_key(&ifindex) && self.attacher.method() == Method::Tcx;
            if !wanted && let Err(error) = self.attacher.unpin(ifindex) {
                tracing::warn!(ifindex, %error, "cannot remove the pins of an earlier run");
            }
        }
        for ifindex in self.devices.links.keys() {
            if self.attacher.method() == Method::Tcx || !self.hooked.contains_key(ifindex) {
                for direction in Direction::BOTH {
                    if let Err(error) = clsact::detach(&mut self.netlink, *ifindex, direction) {
                        tracing::warn!(ifindex, %error, "cannot remove the filter of an earlier run");
                    }
                }
            }
        }
    }

    /// Takes the events that are waiting.
    pub fn on_events(&mut self, loaded: &mut Loaded) -> Result<Outcome, EventError> {
        let began = Instant::now();
        let happened = self.follow.drain(&mut self.devices)?;
        if happened.lost {
            tracing::info!("device events were lost: reading all devices anew");
            return self.repair(loaded);
        }
        // A number may come back at once with another device: what hung on the old one is gone.
        for change in &happened.changes {
            if let Change::LinkGone(ifindex) = change {
                self.forget(loaded, *ifindex)?;
            }
        }
        if happened.sources {
            self.sources.changed();
        }
        let mut addresses = !happened.changes.is_empty();
        if happened.routes {
            addresses |= self.devices.dump_default_routes(&mut self.netlink)?;
        }
        if happened.routes || happened.changes.contains(&Change::Addresses) {
            let preferred = Preferred::ask();
            addresses |= preferred != self.preferred;
            self.preferred = preferred;
        }
        let mut outcome = Outcome::default();
        if addresses {
            self.since.get_or_insert(began);
            outcome = self.reconcile(loaded)?;
        }
        Ok(self.follow_sources(loaded, outcome)?)
    }

    /// Reads devices anew and compares what is attached with what should be.
    pub fn repair(&mut self, loaded: &mut Loaded) -> Result<Outcome, EventError> {
        // Events of before the dump would turn the clock back.
        self.follow.drain(&mut Devices::default())?;
        let fresh = Devices::dump(&mut self.netlink)?;
        if fresh != self.devices {
            tracing::info!("devices or addresses had changed unseen");
            self.devices = fresh;
        }
        self.preferred = Preferred::ask();
        let gone: Vec<_> =
            self.hooked.keys().copied().filter(|index| !self.devices.links.contains_key(index)).collect();
        for ifindex in gone {
            self.forget(loaded, ifindex)?;
        }
        let hooked: Vec<_> = self.hooked.iter().map(|(ifindex, hooked)| (*ifindex, *hooked)).collect();
        self.lanes.repair(loaded);
        for (ifindex, Hooked { hook, lane, .. }) in hooked {
            if !matches!(self.attacher.is_hooked(loaded, ifindex, hook, lane), Ok(true)) {
                tracing::warn!(
                    ifindex,
                    device = self.name(ifindex),
                    "its programs were gone: hooking it again"
                );
                self.hooked.remove(&ifindex);
            }
        }
        self.repair_entries(loaded)?;
        self.sources.distrust();
        let outcome = self.reconcile(loaded)?;
        let outcome = self.follow_sources(loaded, outcome)?;
        Ok(Outcome { addresses: true, ..outcome })
    }

    /// Brings DEVICES back to what it should hold.
    fn repair_entries(&mut self, loaded: &mut Loaded) -> Result<(), MapError> {
        let mut held: BTreeMap<Vec<u8>, Vec<u8>> = loaded.store.read(map::DEVICES)?.into_iter().collect();
        let mut ops = Vec::new();
        for (ifindex, hooked) in &self.hooked {
            let (key, value) = (bytes_of(ifindex).to_vec(), bytes_of(&hooked.device).to_vec());
            if held.remove(&key).as_ref() != Some(&value) {
                ops.push(Op::Put { map: map::DEVICES, key, value });
            }
        }
        ops.extend(held.into_keys().map(|key| Op::Delete { map: map::DEVICES, key }));
        loaded.store.write(&ops).map_err(|(_, error)| error)
    }

    /// Looks for the kernel's choice of sources, if that is due; new devices are hooked first.
    fn follow_sources(&mut self, loaded: &mut Loaded, outcome: Outcome) -> Result<Outcome, MapError> {
        let Some(due) = self.sources.due().filter(|_| self.is_attaching) else { return Ok(outcome) };
        if outcome.again == Some(Duration::ZERO) {
            return Ok(outcome);
        }
        let mut outcome = outcome;
        if due.is_zero() && self.refresh_sources(loaded)? {
            let hooked = self.reconcile(loaded)?;
            outcome.again = outcome.again.into_iter().chain(hooked.again).min();
        }
        outcome.again = outcome.again.into_iter().chain(self.sources.due()).min();
        Ok(outcome)
    }

    /// Whether the source of a device changed.
    fn refresh_sources(&mut self, loaded: &mut Loaded) -> Result<bool, MapError> {
        let devices = &self.devices;
        let hooked = devices
            .links
            .values()
            .filter(|link| matches!(devices.hook(link, &self.filter), Hook::L2 | Hook::L3));
        let egress: Vec<_> =
            hooked.map(|link| Egress { hooked: link.index, routed: devices.routed(link) }).collect();
        self.sources.refresh(&mut self.netlink, devices, &egress, &mut loaded.store)
    }

    fn name(&self, ifindex: u32) -> &str {
        self.devices.links.get(&ifindex).map_or("", |link| &link.name)
    }

    /// A device is gone: its pins and its entry go too.
    fn forget(&mut self, loaded: &mut Loaded, ifindex: u32) -> Result<(), MapError> {
        self.reported.remove(&ifindex);
        self.lanes.forget(ifindex);
        if self.hooked.remove(&ifindex).is_none() {
            return Ok(());
        }
        if let Err(error) = self.attacher.unpin(ifindex) {
            tracing::warn!(ifindex, %error, "cannot remove the pins of a device that is gone");
        }
        self.delete_entry(loaded, ifindex)
    }

    fn delete_entry(&self, loaded: &mut Loaded, ifindex: u32) -> Result<(), MapError> {
        let key = bytes_of(&ifindex).to_vec();
        loaded.store.write(&[Op::Delete { map: map::DEVICES, key }]).map_err(|(_, error)| error)
    }

    /// Hooks what should be and is not, unhooks what should not be, updates DEVICES.
    fn reconcile(&mut self, loaded: &mut Loaded) -> Result<Outcome, MapError> {
        let mut outcome = Outcome { addresses: true, again: None };
        if !self.is_attaching {
            return Ok(outcome);
        }
        let began = Instant::now();
        for (ifindex, wanted) in self.wanted() {
            let now = self.hooked.get(&ifindex).copied();
            let joined = self.lanes.has(ifindex) == wanted.lane;
            match wanted.hook {
                Hook::L2 | Hook::L3 if now == Some(wanted) && joined => {}
                Hook::L2 | Hook::L3 if began.elapsed() > SLICE => {
                    outcome.again = Some(Duration::ZERO);
                    return Ok(outcome);
                }
                Hook::L2 | Hook::L3 => {
                    if !self.hook(loaded, ifindex, wanted)? {
                        outcome.again = Some(RETRY);
                    }
                }
                Hook::Not | Hook::Excluded | Hook::Unknown(_) => {
                    self.leave_alone(loaded, ifindex, wanted.hook)?;
                }
            }
        }
        self.since = None;
        Ok(outcome)
    }

    /// What every device should have on it.
    fn wanted(&mut self) -> Vec<(u32, Hooked)> {
        let (devices, lanes) = (&self.devices, &mut self.lanes);
        let each = devices.links.values().map(|link| {
            let hook = devices.hook(link, &self.filter);
            let mut device = devices.describe(link, hook, &self.detect, self.preferred);
            self.sources.describe(link.index, &mut device);
            let lane = lanes.wants(link, devices.lane(link, hook, &device));
            if lane {
                device.flags |= lanes.flags(link.index);
            }
            (link.index, Hooked { hook, device, lane })
        });
        each.collect()
    }

    /// Whether it worked, or need not be tried again.
    fn hook(&mut self, loaded: &mut Loaded, ifindex: u32, wanted: Hooked) -> Result<bool, MapError> {
        let (key, value) = (bytes_of(&ifindex).to_vec(), bytes_of(&wanted.device).to_vec());
        loaded.store.write(&[Op::Put { map: map::DEVICES, key, value }]).map_err(|(_, error)| error)?;
        if !wanted.lane {
            self.lanes.leave(ifindex);
        }
        let now = self.hooked.get(&ifindex);
        if now.is_some_and(|now| (now.hook, now.lane) == (wanted.hook, wanted.lane)) {
            self.hooked.insert(ifindex, wanted);
            return self.join(loaded, ifindex, wanted);
        }
        match self.attacher.hook(loaded, ifindex, wanted.hook, wanted.lane) {
            Ok(()) => {
                self.hooked.insert(ifindex, wanted);
                self.reported.remove(&ifindex);
                let device = self.name(ifindex).to_owned();
                if let Some(since) = self.since {
                    let took = since.elapsed();
                    METRICS.own.hooked(took);
                    self.latency = Latency { last: took, max: self.latency.max.max(took) };
                    let max = self.latency.max;
                    tracing::debug!(ifindex, device, ?took, ?max, "hooked");
                } else {
                    tracing::debug!(ifindex, device, "hooked");
                }
                self.join(loaded, ifindex, wanted)
            }
            // Gone meanwhile: its own event says so soon.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.delete_entry(loaded, ifindex)?;
                Ok(true)
            }
            Err(error) => {
                if self.reported.insert(ifindex) {
                    tracing::warn!(ifindex, device = self.name(ifindex), %error, "cannot hook the device");
                }
                Ok(false)
            }
        }
    }

    /// Puts a hooked device into the XDP lane, if it is to be there and is not.
    fn join(&mut self, loaded: &mut Loaded, ifindex: u32, mut wanted: Hooked) -> Result<bool, MapError> {
        let Some(link) = self.devices.links.get(&ifindex).filter(|_| wanted.lane && !self.lanes.has(ifindex))
        else {
            return Ok(true);
        };
        if let Err(error) = self.lanes.join(loaded, link) {
            tracing::warn!(ifindex, device = link.name, %error, "cannot put the device into the XDP lane");
        }
        wanted.device.flags |= self.lanes.flags(ifindex);
        let (key, value) = (bytes_of(&ifindex).to_vec(), bytes_of(&wanted.device).to_vec());
        loaded.store.write(&[Op::Put { map: map::DEVICES, key, value }]).map_err(|(_, error)| error)?;
        self.hooked.insert(ifindex, wanted);
        Ok(true)
    }

    fn leave_alone(&mut self, loaded: &mut Loaded, ifindex: u32, hook: Hook) -> Result<(), MapError> {
        self.lanes.leave(ifindex);
        if self.hooked.remove(&ifindex).is_some() {
            if let Err(error) = self.attacher.unhook(ifindex) {
                tracing::warn!(ifindex, device = self.name(ifindex), %error, "cannot unhook the device");
            }
            self.delete_entry(loaded, ifindex)?;
            tracing::debug!(ifindex, device = self.name(ifindex), "unhooked");
        }
        if let Hook::Unknown(link_type) = hook
            && self.reported.insert(ifindex)
        {
            tracing::warn!(
                ifindex,
                device = self.name(ifindex),
                link_type,
                "link type is not known: not hooked, Services are not reached through this device"
            );
        }
        Ok(())
    }

    /// Tries again what failed.
    pub fn retry(&mut self, loaded: &mut Loaded) -> Result<Outcome, MapError> {
        let outcome = self.reconcile(loaded)?;
        self.follow_sources(loaded, outcome)
    }
}

/// Why devices could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("reading devices by rtnetlink failed: {0}")]
    Netlink(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] MapError),
}
