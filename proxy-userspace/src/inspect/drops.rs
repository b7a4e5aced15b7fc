//! Refused and dropped packets by device and reason: DROPS, summed over all CPUs. Used by `shunt counter list`, `shunt top`
//! and the metrics. COUNTERS has the totals, which include packets without a device.

use proxy_common::{Counter, DropKey, counter::Kind, map};

use super::{InspectError, per_cpu, pins::Pins};

/// One entry of DROPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceDrops {
    /// 0 for the socket hooks; [`DropKey::GONE`] for removed devices.
    pub ifindex: u32,
    /// The number of a [`Counter`].
    pub reason: u32,
    pub packets: u64,
}

impl DeviceDrops {
    /// The reason; `None` for a number that this version does not know as one.
    pub fn reason(&self) -> Option<Counter> {
        Counter::from_number(self.reason).filter(|reason| reason.kind() != Kind::Event)
    }
}

/// All entries, sorted by reason and device.
pub fn read(pins: &Pins) -> Result<Vec<DeviceDrops>, InspectError> {
    let map = match pins.map(map::DROPS) {
        // Pinned by a version without this map.
        Err(InspectError::NoSuchPin(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    map.for_each(|key, value| {
        let DropKey { ifindex, reason } = bytemuck::pod_read_unaligned(key);
        found.push(DeviceDrops { ifindex, reason, packets: per_cpu::sum(value) });
    })
    .map_err(|error| InspectError::io("reading the map", pins.maps().join(map::DROPS), error))?;
    found.sort_unstable_by_key(|drops| (drops.reason, drops.ifindex));
    Ok(found)
}

/// The name of a device; `None` if it does not exist in this network namespace.
pub fn device_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()?;
    // nix 0.31 returns an empty name where if_indextoname fails.
    (!name.is_empty()).then_some(name)
}

/// A device as text: `(sockets)`, `(gone)`, its name, or `#7` if device 7 does not exist in this network namespace.
pub fn device_text(ifindex: u32) -> String {
    match ifindex {
        0 => "(sockets)".to_owned(),
        DropKey::GONE => "(gone)".to_owned(),
        _ => device_name(ifindex).unwrap_or_else(|| format!("#{ifindex}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!(device_text(0), "(sockets)");
        assert_eq!(device_text(DropKey::GONE), "(gone)");
        assert_eq!(device_text(1), "lo");
        assert_eq!(device_text(i32::MAX as u32), format!("#{}", i32::MAX));
    }

    #[test]
    fn only_refusals_and_drops_have_a_reason() {
        let of = |reason| DeviceDrops { ifindex: 1, reason, packets: 1 }.reason();
        assert_eq!(of(Counter::NoBackend as u32), Some(Counter::NoBackend));
        assert_eq!(of(Counter::ConntrackFull as u32), Some(Counter::ConntrackFull));
        assert_eq!(of(Counter::FlowNew as u32), None);
        assert_eq!(of(60), None);
    }
}
