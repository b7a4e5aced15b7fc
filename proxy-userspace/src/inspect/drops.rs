//! What each device's hooks refused and dropped, and why: DROPS, summed over the CPUs. Read by `shunt counter list`,
//! `shunt top` and the metrics; the totals are COUNTERS', which also have what no device's hook stands for.

use proxy_common::{Counter, DropKey, counter::Kind, map};

use super::{InspectError, counters::sum_of_cpus, pins::Pins};

/// One entry of DROPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceDrops {
    /// 0: the socket hooks; [`DropKey::GONE`]: devices that are gone.
    pub ifindex: u32,
    /// A [`Counter`] by number.
    pub reason: u32,
    pub packets: u64,
}

impl DeviceDrops {
    /// Why, unless another version of shunt counted here.
    pub fn reason(&self) -> Option<Counter> {
        Counter::from_number(self.reason).filter(|reason| reason.kind() != Kind::Event)
    }
}

/// All of them, by reason and device.
pub fn read(pins: &Pins) -> Result<Vec<DeviceDrops>, InspectError> {
    let map = match pins.map(map::DROPS) {
        // Pinned by a shunt that did not tell devices apart.
        Err(InspectError::NoSuchPin(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    map.for_each(|key, value| {
        let DropKey { ifindex, reason } = bytemuck::pod_read_unaligned(key);
        found.push(DeviceDrops { ifindex, reason, packets: sum_of_cpus(value) });
    })
    .map_err(|error| InspectError::io("reading the map", pins.maps().join(map::DROPS), error))?;
    found.sort_unstable_by_key(|drops| (drops.reason, drops.ifindex));
    Ok(found)
}

/// A device's name; none when it is gone, or in another network namespace.
pub fn device_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()?;
    // nix 0.31 takes if_indextoname's null, its error, for success.
    (!name.is_empty()).then_some(name)
}

/// A device for people: `(sockets)`, `(gone)`, its name, or `#7` where there is no device 7 here: it is gone, or of
/// another network namespace than this process.
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
    fn reasons_are_those_of_refusals_and_drops() {
        let of = |reason| DeviceDrops { ifindex: 1, reason, packets: 1 }.reason();
        assert_eq!(of(Counter::NoBackend as u32), Some(Counter::NoBackend));
        assert_eq!(of(Counter::ConntrackFull as u32), Some(Counter::ConntrackFull));
        assert_eq!(of(Counter::FlowNew as u32), None);
        assert_eq!(of(60), None);
    }
}
