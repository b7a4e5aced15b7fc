//! Keeps the node's devices hooked: compares what [`DeviceWatch`] selects with what is attached, attaches and detaches
//! through [`Attacher`] and [`XdpDevices`], and keeps DEVICES in step.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use proxy_common::Device;

use super::{device_entries, device_watch::DeviceWatch, source_addrs::SourceAddrs, xdp_devices::XdpDevices};
use crate::{
    config::Config,
    datapath::{
        attach::{Attacher, Method},
        devices::{Change, select::Hook},
        load::Loaded,
        pins::Pins,
    },
    maps::MapError,
    metrics::METRICS,
    node::NodeAddress,
};

/// What a device has attached, or should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hooked {
    hook: Hook,
    device: Device,
    /// Our XDP program too.
    with_xdp: bool,
}

/// How long devices waited for their programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    pub last: Duration,
    pub max: Duration,
}

/// All devices, and what is attached to them.
#[derive(Debug)]
pub struct DeviceHooks {
    watch: DeviceWatch,
    sources: SourceAddrs,
    attacher: Attacher,
    xdp: XdpDevices,
    hooked: BTreeMap<u32, Hooked>,
    /// Devices that were logged as unknown or failing, so that it is logged once.
    reported: BTreeSet<u32>,
    /// Nothing is attached before the maps are complete.
    is_attaching: bool,
    /// When the oldest event arrived that is not completely handled.
    since: Option<Instant>,
    pub latency: Latency,
}

/// The result of an event or a repair.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// The node's addresses may have changed.
    pub addresses: bool,
    /// Some device could not be hooked, or is left for the next time slice: try again after this.
    pub retry_in: Option<Duration>,
}

/// After a device that could not be hooked.
const RETRY: Duration = Duration::from_secs(1);

/// A tcx attachment waits for an RCU grace period, 10-20 ms each: after this time the agent handles other work first.
const SLICE: Duration = Duration::from_millis(200);

impl DeviceHooks {
    /// Follows devices from now on and reads the present ones; attaches nothing yet.
    pub fn open(config: &Config, pins: Pins, method: Method) -> io::Result<Self> {
        Ok(Self {
            watch: DeviceWatch::open(config)?,
            sources: SourceAddrs::default(),
            xdp: XdpDevices::new(pins.clone(), config.xdp)?,
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
        self.watch.descriptor()
    }

    /// The addresses of the node's devices, and the primary one of each family.
    pub fn addresses(&self) -> (Vec<NodeAddress>, Vec<std::net::IpAddr>) {
        self.watch.addresses()
    }

    pub fn count(&self) -> usize {
        self.hooked.len()
    }

    /// The maps are complete: hooks every device, and unhooks what an earlier run left on others.
    pub fn attach_all(&mut self, loaded: &mut Loaded) -> Result<Outcome, MapError> {
        self.is_attaching = true;
        self.sources.distrust();
        self.refresh_sources(loaded)?;
        let with_xdp = self.wanted().into_iter().filter(|(_, wanted)| wanted.with_xdp);
        // Before the tc programs are replaced by those that do not know what XDP has translated.
        self.xdp.detach_leftovers(&with_xdp.map(|(ifindex, _)| ifindex).collect());
        if let Err(error) = loaded.fill_ingress() {
            tracing::error!(%error, "cannot fill INGRESS: uplinks with XDP are not served");
        }
        let mut outcome = self.reconcile(loaded)?;
        while outcome.retry_in == Some(Duration::ZERO) {
            outcome = self.reconcile(loaded)?;
        }
        self.drop_leftovers();
        Ok(outcome)
    }

    /// Removes pinned links of devices that are not to be hooked, and attachments by the other method.
    fn drop_leftovers(&mut self) {
        let pinned = self.attacher.pinned().unwrap_or_default();
        for ifindex in pinned {
            let wanted = self.hooked.contains_key(&ifindex) && self.attacher.method() == Method::Tcx;
            if !wanted && let Err(error) = self.attacher.unpin(ifindex) {
                tracing::warn!(ifindex, %error, "cannot remove the pins of an earlier run");
            }
        }
        for ifindex in self.watch.devices.links.keys() {
            let unwanted = self.attacher.method() == Method::Tcx || !self.hooked.contains_key(ifindex);
            if unwanted && let Err(error) = self.attacher.remove_filters(*ifindex) {
                tracing::warn!(ifindex, %error, "cannot remove the filters of an earlier run");
            }
        }
    }

    /// Takes the events that are waiting.
    pub fn on_events(&mut self, loaded: &mut Loaded) -> Result<Outcome, DeviceError> {
        let began = Instant::now();
        let happened = self.watch.drain()?;
        if happened.lost {
            tracing::info!("device events were lost: reading all devices again");
            return self.repair(loaded);
        }
        // An ifindex may be reused at once by another device: what was attached to the old one is gone.
        for change in &happened.changes {
            if let Change::LinkGone(ifindex) = change {
                self.forget(loaded, *ifindex)?;
            }
        }
        if happened.sources {
            self.sources.changed();
        }
        let mut outcome = Outcome::default();
        if self.watch.refresh(&happened)? {
            self.since.get_or_insert(began);
            outcome = self.reconcile(loaded)?;
        }
        Ok(self.follow_sources(loaded, outcome)?)
    }

    /// Reads all devices again and compares what is attached with what should be.
    pub fn repair(&mut self, loaded: &mut Loaded) -> Result<Outcome, DeviceError> {
        self.watch.dump()?;
        let links = &self.watch.devices.links;
        let gone: Vec<_> = self.hooked.keys().copied().filter(|index| !links.contains_key(index)).collect();
        for ifindex in gone {
            self.forget(loaded, ifindex)?;
        }
        let hooked: Vec<_> = self.hooked.iter().map(|(ifindex, hooked)| (*ifindex, *hooked)).collect();
        self.xdp.repair(loaded);
        for (ifindex, Hooked { hook, with_xdp, .. }) in hooked {
            if !matches!(self.attacher.is_hooked(loaded, ifindex, hook, with_xdp), Ok(true)) {
                tracing::warn!(
                    ifindex,
                    device = self.watch.name(ifindex),
                    "its programs were gone: hooking it again"
                );
                self.hooked.remove(&ifindex);
            }
        }
        let devices = self.hooked.iter().map(|(ifindex, hooked)| (*ifindex, hooked.device));
        device_entries::repair(loaded, devices)?;
        self.sources.distrust();
        let outcome = self.reconcile(loaded)?;
        let outcome = self.follow_sources(loaded, outcome)?;
        Ok(Outcome { addresses: true, ..outcome })
    }

    /// Reads the kernel's choice of source addresses again, if that is due. New devices are hooked first.
    fn follow_sources(&mut self, loaded: &mut Loaded, mut outcome: Outcome) -> Result<Outcome, MapError> {
        let Some(due) = self.sources.due().filter(|_| self.is_attaching) else { return Ok(outcome) };
        if outcome.retry_in == Some(Duration::ZERO) {
            return Ok(outcome);
        }
        if due.is_zero() && self.refresh_sources(loaded)? {
            let hooked = self.reconcile(loaded)?;
            outcome.retry_in = outcome.retry_in.into_iter().chain(hooked.retry_in).min();
        }
        outcome.retry_in = outcome.retry_in.into_iter().chain(self.sources.due()).min();
        Ok(outcome)
    }

    /// Returns whether the source of a device changed.
    fn refresh_sources(&mut self, loaded: &mut Loaded) -> Result<bool, MapError> {
        let egress = self.watch.egress();
        let (netlink, devices) = self.watch.netlink();
        self.sources.refresh(netlink, devices, &egress, &mut loaded.store)
    }

    /// A device was removed: removes its pins and its entry.
    fn forget(&mut self, loaded: &mut Loaded, ifindex: u32) -> Result<(), MapError> {
        self.reported.remove(&ifindex);
        self.xdp.forget(ifindex);
        if self.hooked.remove(&ifindex).is_none() {
            return Ok(());
        }
        if let Err(error) = self.attacher.unpin(ifindex) {
            tracing::warn!(ifindex, %error, "cannot remove the pins of a removed device");
        }
        device_entries::delete(loaded, ifindex)
    }

    /// Hooks what should be and is not, unhooks what should not be, updates DEVICES.
    fn reconcile(&mut self, loaded: &mut Loaded) -> Result<Outcome, MapError> {
        let mut outcome = Outcome { addresses: true, retry_in: None };
        if !self.is_attaching {
            return Ok(outcome);
        }
        let began = Instant::now();
        for (ifindex, wanted) in self.wanted() {
            let now = self.hooked.get(&ifindex).copied();
            let has_xdp = self.xdp.has(ifindex) == wanted.with_xdp;
            match wanted.hook {
                Hook::L2 | Hook::L3 if now == Some(wanted) && has_xdp => {}
                Hook::L2 | Hook::L3 if began.elapsed() > SLICE => {
                    outcome.retry_in = Some(Duration::ZERO);
                    return Ok(outcome);
                }
                Hook::L2 | Hook::L3 => {
                    if !self.hook(loaded, ifindex, wanted)? {
                        outcome.retry_in = Some(RETRY);
                    }
                }
                Hook::Not | Hook::Excluded | Hook::Unknown(_) => {
                    self.unhook(loaded, ifindex, wanted.hook)?;
                }
            }
        }
        self.since = None;
        Ok(outcome)
    }

    /// What every device should have attached.
    fn wanted(&mut self) -> Vec<(u32, Hooked)> {
        let (watch, sources, xdp) = (&self.watch, &self.sources, &mut self.xdp);
        let each = watch.select().map(|(link, hook, mut device)| {
            sources.describe(link.index, &mut device);
            let with_xdp = xdp.wants(link, watch.devices.xdp_eligibility(link, hook, &device));
            if with_xdp {
                device.flags |= xdp.flags(link.index);
            }
            (link.index, Hooked { hook, device, with_xdp })
        });
        each.collect()
    }

    /// Returns false if it must be tried again.
    fn hook(&mut self, loaded: &mut Loaded, ifindex: u32, wanted: Hooked) -> Result<bool, MapError> {
        device_entries::put(loaded, ifindex, &wanted.device)?;
        if !wanted.with_xdp {
            self.xdp.detach(ifindex);
        }
        let now = self.hooked.get(&ifindex);
        if now.is_some_and(|now| (now.hook, now.with_xdp) == (wanted.hook, wanted.with_xdp)) {
            self.hooked.insert(ifindex, wanted);
            return self.attach_xdp(loaded, ifindex, wanted);
        }
        match self.attacher.hook(loaded, ifindex, wanted.hook, wanted.with_xdp) {
            Ok(()) => {
                self.hooked.insert(ifindex, wanted);
                self.reported.remove(&ifindex);
                let device = self.watch.name(ifindex).to_owned();
                if let Some(since) = self.since {
                    let took = since.elapsed();
                    METRICS.own.hooked(took);
                    self.latency = Latency { last: took, max: self.latency.max.max(took) };
                    let max = self.latency.max;
                    tracing::debug!(ifindex, device, ?took, ?max, "hooked");
                } else {
                    tracing::debug!(ifindex, device, "hooked");
                }
                self.attach_xdp(loaded, ifindex, wanted)
            }
            // Removed in the meantime: its event follows.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                device_entries::delete(loaded, ifindex)?;
                Ok(true)
            }
            Err(error) => {
                if self.reported.insert(ifindex) {
                    tracing::warn!(ifindex, device = self.watch.name(ifindex), %error, "cannot hook the device");
                }
                Ok(false)
            }
        }
    }

    /// Attaches XDP to a hooked device, if it should have it and does not.
    fn attach_xdp(
        &mut self,
        loaded: &mut Loaded,
        ifindex: u32,
        mut wanted: Hooked,
    ) -> Result<bool, MapError> {
        let Some(link) =
            self.watch.devices.links.get(&ifindex).filter(|_| wanted.with_xdp && !self.xdp.has(ifindex))
        else {
            return Ok(true);
        };
        if let Err(error) = self.xdp.attach(loaded, link) {
            tracing::warn!(ifindex, device = link.name, %error, "cannot attach the XDP program");
        }
        wanted.device.flags |= self.xdp.flags(ifindex);
        device_entries::put(loaded, ifindex, &wanted.device)?;
        self.hooked.insert(ifindex, wanted);
        Ok(true)
    }

    fn unhook(&mut self, loaded: &mut Loaded, ifindex: u32, hook: Hook) -> Result<(), MapError> {
        self.xdp.detach(ifindex);
        if self.hooked.remove(&ifindex).is_some() {
            if let Err(error) = self.attacher.unhook(ifindex) {
                tracing::warn!(ifindex, device = self.watch.name(ifindex), %error, "cannot unhook the device");
            }
            device_entries::delete(loaded, ifindex)?;
            tracing::debug!(ifindex, device = self.watch.name(ifindex), "unhooked");
        }
        if let Hook::Unknown(link_type) = hook
            && self.reported.insert(ifindex)
        {
            tracing::warn!(
                ifindex,
                device = self.watch.name(ifindex),
                link_type,
                "unknown link type: not hooked, Services cannot be reached through this device"
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

/// Why devices cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("reading devices by rtnetlink failed: {0}")]
    Netlink(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] MapError),
}
