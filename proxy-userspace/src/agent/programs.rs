//! The agent's share of the kernel: loaded programs, open maps and their pins, and what the programs are attached to.
//! Attached once the maps are complete; checked and repaired from then on.

use std::{io, os::fd::AsFd as _, path::PathBuf};

use proxy_common::map;

use super::device_hooks::{DeviceError, DeviceHooks, Outcome};
use crate::{
    bpf,
    config::{Config, SocketLb},
    datapath::{
        DatapathError, cgroup_attach,
        load::Loaded,
        pins::{PinLock, Pins},
    },
};

/// Exists once per agent; the lock keeps a second agent away from the pins.
pub(super) struct Programs {
    pins: Pins,
    _lock: PinLock,
    pub(super) loaded: Loaded,
    pub(super) devices: DeviceHooks,
    bpffs: PathBuf,
    socket_lb: SocketLb,
    cgroup: PathBuf,
}

impl Programs {
    pub(super) fn new(
        config: &Config,
        pins: Pins,
        lock: PinLock,
        loaded: Loaded,
        devices: DeviceHooks,
    ) -> Self {
        Self {
            pins,
            _lock: lock,
            loaded,
            devices,
            bpffs: config.bpffs.clone(),
            socket_lb: config.socket_lb,
            cgroup: config.cgroup.clone(),
        }
    }

    /// Takes the device events that are waiting.
    pub(super) fn on_device_events(&mut self) -> Result<Outcome, DeviceError> {
        self.devices.on_events(&mut self.loaded)
    }

    /// Tries devices again that could not be hooked.
    pub(super) fn retry_devices(&mut self) -> Result<Outcome, DeviceError> {
        self.devices.retry(&mut self.loaded).map_err(DeviceError::Map)
    }

    pub(super) fn repair_devices(&mut self) -> Result<Outcome, DeviceError> {
        self.devices.repair(&mut self.loaded)
    }

    /// The maps are complete: attaches the programs, in place of an earlier run's.
    pub(super) fn attach_devices(&mut self) -> Result<Outcome, DeviceError> {
        self.devices.attach_all(&mut self.loaded).map_err(DeviceError::Map)
    }

    /// Attaches the socket programs, or detaches them with `--socket-lb off`.
    pub(super) fn attach_sockets(&self) -> Result<(), DatapathError> {
        match self.socket_lb {
            SocketLb::Off => cgroup_attach::detach_sockets(&self.pins)
                .map_err(|source| DatapathError::Io { action: "detaching the socket programs", source }),
            SocketLb::Host | SocketLb::All => {
                cgroup_attach::attach_sockets(&self.pins, &self.loaded, &self.cgroup)
            }
        }
    }

    pub(super) fn pin_programs(&self) -> Result<(), DatapathError> {
        self.loaded.pin_programs(&self.pins)
    }

    /// Attaches the socket programs again where they are gone.
    pub(super) fn repair_sockets(&self) {
        let attached = self.socket_lb == SocketLb::Off
            || cgroup_attach::sockets_attached(&self.pins, &self.loaded).unwrap_or(false);
        if !attached {
            tracing::warn!("the socket programs were gone: attaching them again");
            if let Err(error) = self.attach_sockets() {
                tracing::error!(%error, "attaching the socket programs failed");
            }
        }
    }

    /// Restores pins that were removed.
    pub(super) fn repair_pins(&self) -> Result<(), DatapathError> {
        Pins::create(&self.bpffs)?;
        for name in map::ALL {
            if let Ok(open) = self.loaded.store.map(name) {
                self.repair_map_pin(name, open)?;
            }
        }
        self.repair_map_pin(map::INGRESS, self.loaded.ingress())?;
        self.repair_map_pin(map::EVENTS, self.loaded.monitor_events())?;
        let programs_gone = self.loaded.programs().any(|(name, _)| !self.pins.prog(name).exists());
        if programs_gone || !self.pins.map(map::GLOBALS).exists() {
            self.pin_programs()?;
        }
        Ok(())
    }

    fn repair_map_pin(&self, name: &str, open: &bpf::map::RawMap) -> Result<(), DatapathError> {
        let path = self.pins.map(name);
        if path.exists() {
            return Ok(());
        }
        tracing::warn!(map = name, "its pin was gone");
        bpf::obj_pin(open.as_fd(), &path).map_err(|source: io::Error| DatapathError::Pin { path, source })
    }
}
