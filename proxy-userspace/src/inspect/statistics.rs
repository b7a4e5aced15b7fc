//! Statistics per service port: names from SERVICE_META joined with the counts of SERVICES and SERVICE_STATS by service id.
//! Used by `shunt top`, `shunt service` and the metrics.
//!
//! Service ids are allocated lowest first, so the arrays are read only up to the highest id in use.

use proxy_common::{Service, ServiceMeta, ServiceStats, map};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{InspectError, pins::Pins, text::proto_name};

/// The counts of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Flows,
    PacketsIn,
    PacketsOut,
    BytesIn,
    BytesOut,
    Refused,
    Dropped,
}

impl Count {
    pub const ALL: [Self; 7] = [
        Self::Flows,
        Self::PacketsIn,
        Self::PacketsOut,
        Self::BytesIn,
        Self::BytesOut,
        Self::Refused,
        Self::Dropped,
    ];

    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::PacketsIn => "packets_in",
            Self::PacketsOut => "packets_out",
            Self::BytesIn => "bytes_in",
            Self::BytesOut => "bytes_out",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

/// A figure for each [`Count`]; `None` if SERVICE_STATS is disabled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures<T>([Option<T>; Count::ALL.len()]);

impl<T: Copy> Figures<T> {
    pub fn get(&self, count: Count) -> Option<T> {
        self.0[count as usize]
    }
}

impl Figures<u64> {
    pub fn new(service: Service, traffic: Option<ServiceStats>) -> Self {
        let figure = |count| match count {
            Count::Flows => traffic.map(|it| it.flows),
            Count::PacketsIn => traffic.map(|it| it.packets_in),
            Count::PacketsOut => traffic.map(|it| it.packets_out),
            Count::BytesIn => traffic.map(|it| it.bytes_in),
            Count::BytesOut => traffic.map(|it| it.bytes_out),
            Count::Refused => Some(service.refused),
            Count::Dropped => Some(service.dropped),
        };
        Self(Count::ALL.map(figure))
    }

    /// All zero; traffic counts are `None` unless `has_traffic`.
    pub fn zero(has_traffic: bool) -> Self {
        Self::new(bytemuck::Zeroable::zeroed(), has_traffic.then(bytemuck::Zeroable::zeroed))
    }

    /// The increase since `before`. A count that decreased, or that did not exist before, was reset to 0 in between.
    pub fn since(&self, before: &Self) -> Self {
        let grown = |now: u64, before| now.checked_sub(before).unwrap_or(now);
        Self(std::array::from_fn(|i| self.0[i].map(|now| grown(now, before.0[i].unwrap_or(0)))))
    }

    /// The rates; `None` if no time has passed.
    pub fn per_second(&self, seconds: f64) -> Figures<f64> {
        Figures(self.0.map(|figure| figure.filter(|_| seconds > 0.0).map(|figure| figure as f64 / seconds)))
    }

    /// Whether flows, packets and bytes are counted.
    pub fn knows_traffic(&self) -> bool {
        self.get(Count::Flows).is_some()
    }

    /// The sum; a missing figure counts as 0.
    pub fn plus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| match (self.0[i], other.0[i]) {
            (Some(a), Some(b)) => Some(a.wrapping_add(b)),
            (a, b) => a.or(b),
        }))
    }
}

impl<T: Copy + Serialize> Serialize for Figures<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(Some(Count::ALL.len()))?;
        for count in Count::ALL {
            fields.serialize_entry(count.name(), &self.get(count))?;
        }
        fields.end()
    }
}

/// One service port of one family.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    pub id: u32,
    pub meta: ServiceMeta,
    pub totals: Figures<u64>,
}

/// All service ports, sorted by id.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Flows, packets and bytes are counted.
    pub has_traffic: bool,
    pub ports: Vec<ServicePort>,
}

impl Statistics {
    /// Reads the existing service ports. Removed ones that still have flows are skipped.
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        let mut names: Vec<(u32, ServiceMeta)> = pins.read(map::SERVICE_META)?;
        names.retain(|(_, meta)| meta.flags & ServiceMeta::GONE == 0);
        names.sort_unstable_by_key(|(id, _)| *id);
        let len = names.last().map_or(0, |(id, _)| id + 1);
        let services = services(pins, len)?;
        let traffic = traffic(pins, len)?;
        let ports = names.into_iter().map(|(id, meta)| {
            let at = id as usize;
            let service = services.get(at).copied().unwrap_or_else(bytemuck::Zeroable::zeroed);
            let traffic = traffic.as_ref().and_then(|traffic| traffic.get(at)).copied();
            ServicePort { id, meta, totals: Figures::new(service, traffic) }
        });
        Ok(Self { has_traffic: traffic.is_some(), ports: ports.collect() })
    }
}

fn services(pins: &Pins, len: u32) -> Result<Vec<Service>, InspectError> {
    let mut found = Vec::new();
    pins.read_first(map::SERVICES, len, |value| found.push(bytemuck::pod_read_unaligned(value)))?;
    Ok(found)
}

/// The elements of SERVICE_STATS below `len`, summed over all CPUs; `None` if the map is disabled.
pub fn traffic(pins: &Pins, len: u32) -> Result<Option<Vec<ServiceStats>>, InspectError> {
    let mut found = Vec::new();
    match pins.map(map::SERVICE_STATS) {
        Ok(map) if map.info().max_entries > 1 => {}
        // Disabled, or pinned by a version without statistics.
        Ok(_) | Err(InspectError::NoSuchPin(_)) => return Ok(None),
        Err(error) => return Err(error),
    }
    pins.read_first(map::SERVICE_STATS, len, |value| found.push(sum_of_cpus(value)))?;
    Ok(Some(found))
}

/// The sum of the per-CPU values.
fn sum_of_cpus(value: &[u8]) -> ServiceStats {
    let cpus =
        value.chunks_exact(size_of::<ServiceStats>()).map(bytemuck::pod_read_unaligned::<ServiceStats>);
    cpus.fold(bytemuck::Zeroable::zeroed(), |sum: ServiceStats, cpu| ServiceStats {
        flows: sum.flows.wrapping_add(cpu.flows),
        packets_in: sum.packets_in.wrapping_add(cpu.packets_in),
        bytes_in: sum.bytes_in.wrapping_add(cpu.bytes_in),
        packets_out: sum.packets_out.wrapping_add(cpu.packets_out),
        bytes_out: sum.bytes_out.wrapping_add(cpu.bytes_out),
    })
}

/// The name of the port, or its number.
pub fn port_text(meta: &ServiceMeta) -> String {
    match meta.port_name.as_str() {
        "" => meta.port.host().to_string(),
        name => name.to_owned(),
    }
}

/// `TCP`.
pub fn protocol_text(meta: &ServiceMeta) -> String {
    proto_name(meta.proto)
}

/// `IPv4` or `IPv6`, as Kubernetes names families.
pub fn family_text(meta: &ServiceMeta) -> &'static str {
    if meta.family == 6 { "IPv6" } else { "IPv4" }
}

#[cfg(test)]
pub(crate) mod tests {
    use proxy_common::{Name, Port, Proto};

    use super::*;

    /// A TCP port of `default/NAME`.
    pub fn meta(name: &str, port_name: &str, family: u8) -> ServiceMeta {
        let text = |text| Name::new(text).unwrap();
        ServiceMeta {
            namespace: text("default"),
            name: text(name),
            port_name: text(port_name),
            port: Port::new(80),
            proto: Proto::TCP,
            family,
            flags: 0,
        }
    }

    /// `[flows, packets in, out, bytes in, out, refused, dropped]`.
    pub fn figures(
        [flows, packets_in, packets_out, bytes_in, bytes_out, refused, dropped]: [u64; 7],
    ) -> Figures<u64> {
        let service = Service { cluster_next: 0, local_next: 0, refused, dropped };
        Figures::new(service, Some(ServiceStats { flows, packets_in, bytes_in, packets_out, bytes_out }))
    }

    impl<T: Copy> Figures<T> {
        /// The figures while SERVICE_STATS is disabled.
        pub fn without_traffic(self) -> Self {
            let [.., refused, dropped] = self.0;
            Self([None, None, None, None, None, refused, dropped])
        }
    }

    #[test]
    fn cpus_are_summed() {
        let cpu = |n| ServiceStats {
            flows: n,
            packets_in: 2 * n,
            bytes_in: 3 * n,
            packets_out: 4 * n,
            bytes_out: 5 * n,
        };
        let bytes: Vec<u8> = [cpu(1), cpu(10)].iter().flat_map(bytemuck::bytes_of).copied().collect();
        assert_eq!(sum_of_cpus(&bytes), cpu(11));
    }

    #[test]
    fn a_decreased_count_was_reset() {
        let before = figures([100, 100, 100, 100, 100, 100, 100]);
        let now = figures([101, 3, 100, 0, 200, 100, 99]);
        assert_eq!(now.since(&before), figures([1, 3, 0, 0, 100, 0, 99]));
    }

    #[test]
    fn disabled_counts_are_null() {
        let service = Service { cluster_next: 9, local_next: 9, refused: 2, dropped: 3 };
        let json = serde_json::to_value(Figures::new(service, None)).unwrap();
        assert_eq!(
            (&json["flows"], &json["bytes_out"]),
            (&serde_json::Value::Null, &serde_json::Value::Null)
        );
        assert_eq!((&json["refused"], &json["dropped"]), (&2.into(), &3.into()));
        assert_eq!(Figures::new(service, None).plus(&Figures::zero(false)).get(Count::Flows), None);
        assert_eq!(Figures::new(service, None).plus(&figures([1; 7])).get(Count::Flows), Some(1));
    }

    #[test]
    fn ports_without_a_name_show_their_number() {
        assert_eq!(port_text(&meta("web", "http", 4)), "http");
        assert_eq!(port_text(&meta("web", "", 6)), "80");
        assert_eq!(family_text(&meta("web", "", 6)), "IPv6");
    }
}
