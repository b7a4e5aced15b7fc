//! The order of a service port's backends on one node. Round robin begins with the first, so the first must not be the
//! same on all nodes: else the pods of a DaemonSet, started at once, all connect to one backend.
//!
//! Each backend's place follows from a hash of the node, the service port and that backend alone (rendezvous hashing): a
//! backend that comes or goes does not change the order of the others. Nodes must give a port the same order after a
//! restart and after an upgrade, or every set would be written anew. So the hash is fixed here, not the standard library's.

use std::net::IpAddr;

use crate::model::{Family, ServiceKey};

/// The order of one service port's backends on one node.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Hashed already: node, Service, port name, family.
    prefix: Fnv,
}

impl Order {
    /// `port` is the name of the service port; only a Service's single port may have none.
    pub fn new(node: &str, service: &ServiceKey, port: &str, family: Family) -> Self {
        let family = match family {
            Family::V4 => b'4',
            Family::V6 => b'6',
        };
        let prefix =
            Fnv::EMPTY.text(node).text(&service.namespace).text(&service.name).text(port).bytes(&[family]);
        Self { prefix }
    }

    /// Where the backend stands: smaller values first. Backends with equal hashes are sorted by address and port.
    pub fn place(&self, address: IpAddr, port: u16) -> (u64, IpAddr, u16) {
        let hash = match address {
            IpAddr::V4(v4) => self.prefix.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.prefix.bytes(&v6.octets()),
        };
        (hash.bytes(&port.to_be_bytes()).finish(), address, port)
    }
}

/// FNV-1a with 64 bits, and the finalizer of MurmurHash3 behind it: FNV alone leaves the upper bits of short inputs
/// alike, and the order is decided by the upper bits.
#[derive(Clone, Copy, Debug)]
struct Fnv(u64);

impl Fnv {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn bytes(self, bytes: &[u8]) -> Self {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(bytes.iter().fold(self.0, step))
    }

    /// Text and a byte that is in no UTF-8: the texts "ab" and "c" are not "a" and "bc".
    fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes()).bytes(&[0xff])
    }

    fn finish(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const V4: Family = Family::V4;

    fn service() -> ServiceKey {
        ServiceKey::new("default", "web".to_owned())
    }

    fn backends(count: u8) -> Vec<(IpAddr, u16)> {
        (1..=count).map(|n| (IpAddr::from([172, 20, n, 2]), 8080)).collect()
    }

    fn sorted(order: Order, mut backends: Vec<(IpAddr, u16)>) -> Vec<(IpAddr, u16)> {
        backends.sort_by_key(|(address, port)| order.place(*address, *port));
        backends
    }

    fn on(node: &str) -> Order {
        Order::new(node, &service(), "http", V4)
    }

    /// The published test vectors of FNV-1a.
    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(Fnv::EMPTY.bytes(b"").0, 0xcbf2_9ce4_8422_2325);
        assert_eq!(Fnv::EMPTY.bytes(b"a").0, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(Fnv::EMPTY.bytes(b"foobar").0, 0x8594_4171_f739_67e8);
    }

    /// Another value here makes every node write all its sets at the upgrade.
    #[test]
    fn the_order_is_that_of_every_version() {
        let check = |node, want: [u8; 8]| {
            let want: Vec<_> = want.iter().map(|n| (IpAddr::from([172, 20, *n, 2]), 8080)).collect();
            assert_eq!(sorted(on(node), backends(8)), want, "{node}");
        };
        check("node-1", [8, 6, 5, 3, 7, 4, 1, 2]);
        check("node-2", [1, 8, 3, 7, 6, 5, 2, 4]);
        let v6 = Order::new("node-1", &service(), "", Family::V6);
        assert_eq!(v6.place("fd00:20:1::2".parse().unwrap(), 53).0, 0x5eef_9e3d_28a2_041c);
    }

    #[test]
    fn a_backend_that_goes_leaves_the_others_in_their_order() {
        let all = sorted(on("node-1"), backends(20));
        for gone in &all {
            let rest: Vec<_> = all.iter().copied().filter(|backend| backend != gone).collect();
            let mut given = rest.clone();
            given.sort();
            assert_eq!(sorted(on("node-1"), given), rest);
        }
    }

    #[test]
    fn each_part_of_the_key_counts() {
        let address = IpAddr::from([172, 20, 1, 2]);
        let other = ServiceKey::new("default", "we".to_owned());
        let orders = [
            on("node-1"),
            on("node-2"),
            Order::new("node-1", &other, "http", V4),
            Order::new("node-1", &other, "bhttp", V4),
            Order::new("node-1", &ServiceKey::new("kube-system", "web".to_owned()), "http", V4),
            Order::new("node-1", &service(), "", V4),
            Order::new("node-1", &service(), "http", Family::V6),
        ];
        let mut places: Vec<u64> = orders.iter().map(|order| order.place(address, 80).0).collect();
        places.push(on("node-1").place(address, 81).0);
        places.push(on("node-1").place(IpAddr::from([172, 20, 1, 3]), 80).0);
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), orders.len() + 2);
    }

    /// Ten backends, 100 nodes, 50 Services: every backend is about ten nodes' first, and about ten nodes' last. The
    /// limits are those of chance: 25 of 100 where 10 are expected happens once in 200,000 times.
    #[test]
    fn first_and_last_places_are_spread_evenly() {
        let mut totals: BTreeMap<(bool, IpAddr), u32> = BTreeMap::new();
        for n in 0..50 {
            let service = ServiceKey::new("default", format!("s{n}"));
            let mut firsts: BTreeMap<IpAddr, u32> = BTreeMap::new();
            for node in 0..100 {
                let order = Order::new(&format!("node-{node}"), &service, "", V4);
                let sorted = sorted(order, backends(10));
                *firsts.entry(sorted[0].0).or_default() += 1;
                *totals.entry((true, sorted[0].0)).or_default() += 1;
                *totals.entry((false, sorted[9].0)).or_default() += 1;
            }
            assert!(firsts.values().all(|count| *count <= 25), "s{n}: {firsts:?}");
            assert!(firsts.len() >= 9, "s{n}: {firsts:?}");
        }
        // 500 expected of 5000; the standard deviation is 21.
        assert!(totals.len() == 20 && totals.values().all(|count| (400..=600).contains(count)), "{totals:?}");
    }
}
