//! Shapes of addresses and routes: a node's configuration, and the expected source of its translated flows.

use tests::net::plan::Family;

/// The address of the other machine to connect to, and so the route: see `source_address::wire`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Through the default route, or one of the shape's.
    Routed,
    /// On the link of `eth0`, in a subnet of its own.
    OnLink,
    /// Through the tunnel `vx0`.
    Tunnel,
    /// Through the wire between both machines.
    Wire,
}

/// The expected source.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// This address.
    Is(&'static str),
    /// The kernel's choice, but not this address.
    Not(&'static str),
    /// This address if the packet's own route can be queried; otherwise the kernel's choice for the device alone.
    OfRoute(&'static str),
}

pub struct Shape {
    pub name: &'static str,
    pub family: Family,
    /// Commands in iproute2's batch syntax (`-6` in front for rules), run on a node in its default configuration.
    pub lines: &'static [&'static str],
    pub to: To,
    pub source: Source,
}

impl Shape {
    /// Whether packets are marked by [`MARK`].
    pub fn is_marked(&self) -> bool {
        self.lines.iter().any(|line| line.contains("fwmark"))
    }
}

const fn v4(name: &'static str, to: To, source: Source, lines: &'static [&'static str]) -> Shape {
    Shape { name, family: Family::V4, lines, to, source }
}

const fn v6(name: &'static str, to: To, source: Source, lines: &'static [&'static str]) -> Shape {
    Shape { name, family: Family::V6, lines, to, source }
}

use Source::{Is, Not, OfRoute};
use To::{OnLink, Routed, Tunnel, Wire};

/// The node's own addresses, which every shape keeps.
const OWN: &str = "192.168.8.201";
const OWN6: &str = "fd00:8::201";

/// Marks what is for the routed destination, as a service mesh would.
pub const MARK: &str = "\
table inet marking {
    chain prerouting {
        type filter hook prerouting priority -150
        ip daddr 10.90.0.0/16 meta mark set 7
        ip6 daddr fd00:90::/32 meta mark set 7
    }
}
";

pub const SHAPES: [Shape; 53] = [
    v4("as every node is", Routed, Is(OWN), &[]),
    v4("a VIP of keepalived's, numerically smaller", Routed, Is(OWN), &["addr add 10.0.0.5/32 dev eth0"]),
    v4("such a VIP, numerically larger", Routed, Is(OWN), &["addr add 203.0.113.5/32 dev eth0"]),
    v4("such a VIP in the node's subnet", Routed, Is(OWN), &["addr add 192.168.8.5/32 dev eth0"]),
    v4("a VIP in the node's subnet with its length", Routed, Is(OWN), &["addr add 192.168.8.5/24 dev eth0"]),
    v4("a second subnet, to elsewhere", Routed, Is(OWN), &["addr add 10.91.0.1/24 dev eth0"]),
    v4("a second subnet, into it", OnLink, Is("10.91.0.1"), &["addr add 10.91.0.1/24 dev eth0"]),
    v4(
        "three subnets, into the second",
        OnLink,
        Is("10.91.0.1"),
        &["addr add 10.5.0.1/24 dev eth0", "addr add 10.91.0.1/24 dev eth0"],
    ),
    v4(
        "two addresses of a second subnet, the first is primary",
        OnLink,
        Is("10.91.0.7"),
        &["addr add 10.91.0.7/24 dev eth0", "addr add 10.91.0.2/24 dev eth0"],
    ),
    v4(
        "a gateway in the second subnet",
        Routed,
        Is("10.91.0.1"),
        &[
            "addr add 10.5.0.1/24 dev eth0",
            "addr add 10.91.0.1/24 dev eth0",
            "route add 10.90.0.0/16 via 10.91.0.10",
        ],
    ),
    v4(
        "the default gateway in the second subnet",
        Routed,
        Is("10.91.0.1"),
        &[
            "addr add 10.5.0.1/24 dev eth0",
            "addr add 10.91.0.1/24 dev eth0",
            "route replace default via 10.91.0.10",
        ],
    ),
    v4(
        "a gateway in the first subnet, a VIP beside",
        Routed,
        Is(OWN),
        &["addr add 10.0.0.5/32 dev eth0", "route add 10.90.0.0/16 via 192.168.8.202"],
    ),
    v4(
        "a gateway of no subnet",
        Routed,
        Is(OWN),
        &["addr add 10.0.0.5/32 dev eth0", "route add 10.90.0.0/16 via 10.91.0.10 dev eth0 onlink"],
    ),
    v4(
        "the route's preferred source",
        Routed,
        Is("10.91.0.1"),
        &[
            "addr add 10.5.0.1/24 dev eth0",
            "addr add 10.91.0.1/24 dev eth0",
            "route add 10.90.0.0/16 via 192.168.8.202 src 10.91.0.1",
        ],
    ),
    v4(
        "a preferred source on the loopback device",
        Routed,
        Is("10.99.0.1"),
        &["addr add 10.99.0.1/32 dev lo", "route add 10.90.0.0/16 via 192.168.8.202 src 10.99.0.1"],
    ),
    v4(
        "a preferred source of the default route",
        Routed,
        Is("10.99.0.1"),
        &["addr add 10.99.0.1/32 dev lo", "route replace default via 192.168.8.202 src 10.99.0.1"],
    ),
    v4(
        "a preferred source within another's range",
        Routed,
        Is("10.99.0.2"),
        &[
            "addr add 10.99.0.1/32 dev lo",
            "addr add 10.99.0.2/32 dev lo",
            "route add 10.0.0.0/8 via 192.168.8.202 src 10.99.0.1",
            "route add 10.90.0.0/24 via 192.168.8.202 src 10.99.0.2",
        ],
    ),
    v4(
        "a VIP as the preferred source",
        Routed,
        Is("10.0.0.5"),
        &[
            "addr add 10.0.0.4/32 dev eth0",
            "addr add 10.0.0.5/32 dev eth0",
            "route add 10.90.0.0/16 via 192.168.8.202 src 10.0.0.5",
        ],
    ),
    v4(
        "a better metric by the second subnet",
        Routed,
        Is("10.91.0.1"),
        &[
            "addr add 10.5.0.1/24 dev eth0",
            "addr add 10.91.0.1/24 dev eth0",
            "route add 10.90.0.0/16 via 192.168.8.202 metric 200",
            "route add 10.90.0.0/16 via 10.91.0.10 metric 50",
        ],
    ),
    v4(
        "a next hop that is an object of its own",
        Routed,
        Is("10.91.0.1"),
        &[
            "addr add 10.5.0.1/24 dev eth0",
            "addr add 10.91.0.1/24 dev eth0",
            "nexthop add id 7 via 10.91.0.10 dev eth0",
            "route add 10.90.0.0/16 nhid 7",
        ],
    ),
    v4(
        "two next hops in the second subnet",
        Routed,
        Is("10.91.0.1"),
        &[
            "addr add 10.5.0.1/24 dev eth0",
            "addr add 10.91.0.1/24 dev eth0",
            "route add 10.90.0.0/16 nexthop via 10.91.0.10 nexthop via 10.91.0.11",
        ],
    ),
    v4(
        "a rule by destination",
        Routed,
        Is("10.99.0.1"),
        &[
            "addr add 10.99.0.1/32 dev lo",
            "route add default via 192.168.8.202 src 10.99.0.1 table 90",
            "rule add to 10.90.0.0/16 lookup 90",
        ],
    ),
    // A forwarded packet is bound to no device: such a rule applies to sockets, and never if the route is known.
    v4(
        "a rule by the device of a socket",
        Routed,
        OfRoute(OWN),
        &[
            "addr add 10.99.0.1/32 dev lo",
            "route add default via 192.168.8.202 src 10.99.0.1 table 90",
            "rule add oif eth0 lookup 90",
        ],
    ),
    v4(
        "a rule by the device a packet came in by",
        Routed,
        OfRoute("10.91.0.1"),
        &[
            "addr add 10.91.0.1/24 dev eth0",
            "route add default via 10.91.0.10 table 90",
            "rule add iif eth0 to 10.90.0.0/16 lookup 90",
        ],
    ),
    v4(
        "a rule by the client",
        Routed,
        OfRoute("10.91.0.1"),
        &[
            "addr add 10.91.0.1/24 dev eth0",
            "route add default via 10.91.0.10 table 90",
            "rule add from 192.168.8.100 to 10.90.0.0/16 lookup 90",
        ],
    ),
    v4(
        "a rule by mark",
        Routed,
        OfRoute("10.91.0.1"),
        &[
            "addr add 10.91.0.1/24 dev eth0",
            "route add default via 10.91.0.10 table 90",
            "rule add fwmark 7 lookup 90",
        ],
    ),
    v4("an address for its link alone", Routed, Is(OWN), &["addr add 10.0.0.9/24 scope link dev eth0"]),
    v4("a device without an address", Wire, Is(OWN), &["route add 10.93.0.10 dev wire"]),
    v4(
        "such a device, a VIP on the other",
        Wire,
        Is(OWN),
        &["addr add 10.0.0.5/32 dev eth0", "route add 10.93.0.10 dev wire"],
    ),
    v4(
        "such a device, with a preferred source",
        Wire,
        Is("10.99.0.1"),
        &["addr add 10.99.0.1/32 dev lo", "route add 10.93.0.10 dev wire src 10.99.0.1"],
    ),
    v4("a device with a subnet", Wire, Is("10.93.0.1"), &["addr add 10.93.0.1/24 dev wire"]),
    v4("a device with a peer", Wire, Is("10.94.0.1"), &["addr add 10.94.0.1 peer 10.93.0.10/32 dev wire"]),
    v4(
        "a device with two peers",
        Wire,
        Is("10.94.0.9"),
        &["addr add 10.94.0.1 peer 10.93.0.11/32 dev wire", "addr add 10.94.0.9 peer 10.93.0.10/32 dev wire"],
    ),
    v4(
        "a tunnel with its own address",
        Tunnel,
        Is("10.95.0.1"),
        &["addr add 10.95.0.1/32 dev vx0", "route add 10.92.0.0/16 dev vx0"],
    ),
    v4(
        "such a tunnel, with a VIP",
        Tunnel,
        Is("10.95.0.1"),
        &["addr add 10.95.0.1/32 dev vx0", "addr add 10.0.0.6/32 dev vx0", "route add 10.92.0.0/16 dev vx0"],
    ),
    v4("a tunnel without an address", Tunnel, Is(OWN), &["route add 10.92.0.0/16 dev vx0"]),
    v6("as every node is", Routed, Is(OWN6), &[]),
    v6(
        "a VIP of keepalived's, numerically smaller",
        Routed,
        Is(OWN6),
        &["addr add fc00::5/128 dev eth0 nodad"],
    ),
    v6(
        "a deprecated address",
        Routed,
        Is(OWN6),
        &["addr add fd00:90:1::1/64 dev eth0 nodad preferred_lft 0"],
    ),
    v6(
        "a second subnet, into it",
        OnLink,
        Is("fd00:91::1"),
        &["addr add fd00:5::1/64 dev eth0 nodad", "addr add fd00:91::1/64 dev eth0 nodad"],
    ),
    v6(
        "a second subnet that is more alike",
        Routed,
        Is("fd00:90:1::1"),
        &["addr add fd00:5::1/64 dev eth0 nodad", "addr add fd00:90:1::1/64 dev eth0 nodad"],
    ),
    v6(
        "a temporary address",
        Routed,
        Not("fd00:90:1::1"),
        &["addr add fd00:90:1::1/64 dev eth0 nodad mngtmpaddr"],
    ),
    v6(
        "the route's preferred source",
        Routed,
        Is("fd00:99::1"),
        &["addr add fd00:99::1/128 dev lo nodad", "route add fd00:90::/32 via fd00:8::202 src fd00:99::1"],
    ),
    v6(
        "a preferred source of the default route",
        Routed,
        Is("fd00:99::1"),
        &["addr add fd00:99::1/128 dev lo nodad", "route replace default via fd00:8::202 src fd00:99::1"],
    ),
    v6(
        "a next hop that is an object of its own",
        Routed,
        Is("fd00:90:1::1"),
        &[
            "addr add fd00:5::1/64 dev eth0 nodad",
            "addr add fd00:90:1::1/64 dev eth0 nodad",
            "nexthop add id 8 via fd00:8::202 dev eth0",
            "route add fd00:90::/32 nhid 8",
        ],
    ),
    v6(
        "a rule by destination",
        Routed,
        Is("fd00:99::1"),
        &[
            "addr add fd00:99::1/128 dev lo nodad",
            "route add default via fd00:8::202 src fd00:99::1 table 90",
            "-6 rule add to fd00:90::/32 lookup 90",
        ],
    ),
    v6(
        "a rule by the client",
        Routed,
        OfRoute("fd00:99::1"),
        &[
            "addr add fd00:99::1/128 dev lo nodad",
            "route add default via fd00:8::202 src fd00:99::1 table 90",
            "-6 rule add from fd00:8::100 to fd00:90::/32 lookup 90",
        ],
    ),
    v6("a device without an address", Wire, Is(OWN6), &["route add fd00:93::10 via fe80::bb dev wire"]),
    v6(
        "such a device, with a preferred source",
        Wire,
        Is("fd00:99::1"),
        &[
            "addr add fd00:99::1/128 dev lo nodad",
            "route add fd00:93::10 via fe80::bb dev wire src fd00:99::1",
        ],
    ),
    v6("a device with a subnet", Wire, Is("fd00:93::1"), &["addr add fd00:93::1/64 dev wire nodad"]),
    v6(
        "a device whose only address is deprecated",
        Wire,
        Is(OWN6),
        &["addr add fd00:93::1/64 dev wire nodad preferred_lft 0"],
    ),
    v6(
        "a device with a peer",
        Wire,
        Is("fd00:94::1"),
        &["addr add fd00:94::1 peer fd00:93::10/128 dev wire nodad"],
    ),
    v6(
        "a tunnel with its own address",
        Tunnel,
        Is("fd00:95::1"),
        &["addr add fd00:95::1/128 dev vx0 nodad", "route add fd00:92::/32 via fe80::bb dev vx0"],
    ),
];
