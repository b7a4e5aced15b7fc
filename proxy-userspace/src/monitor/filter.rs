//! Filters events. The programs filter by kind; everything else is filtered here: first by fields of the event, then by
//! names, which need map lookups. An event must match one value of each list; an empty list matches everything.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::{Addr, Counter, EventKind, FlowEvent, Hook, Proto, observe::kinds, socket::netns_of};

use crate::datapath::devices::select::glob_matches;

#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub kinds: Vec<EventKind>,
    /// `NAMESPACE/NAME`.
    pub service: Option<String>,
    /// Of the client, the VIP or the backend.
    pub addresses: Vec<IpNet>,
    /// Of the client, the VIP or the backend.
    pub ports: Vec<u16>,
    pub protocols: Vec<Protocol>,
    /// Globs.
    pub devices: Vec<String>,
    pub reasons: Vec<Counter>,
    pub hooks: Vec<Hook>,
}

/// `--protocol`: ICMP includes ICMPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl Protocol {
    pub const ALL: &[Self] = &[Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }

    fn is(self, number: u8) -> bool {
        match self {
            Self::Tcp => number == Proto::TCP,
            Self::Udp => number == Proto::UDP,
            Self::Sctp => number == Proto::SCTP,
            Self::Icmp => matches!(number, Proto::ICMP | Proto::ICMPV6),
        }
    }
}

/// Whether the list is empty or one value matches.
fn any<T>(list: &[T], is: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(is)
}

impl Filter {
    /// The kinds that the programs must report, as bits of [`kinds`]. Flow events have no reason, so a filter by reason
    /// excludes them.
    pub fn kinds(&self) -> u32 {
        EventKind::ALL
            .iter()
            .filter(|kind| any(&self.kinds, |selected| selected == *kind))
            .filter(|kind| self.reasons.is_empty() || **kind != EventKind::Flow)
            .fold(0, |bits, kind| bits | kinds::bit(*kind))
    }

    /// Whether the fields of the event match.
    pub fn matches(&self, event: &FlowEvent) -> bool {
        let kind = EventKind::from_number(event.kind);
        let addresses = [event.src, event.dst, event.to];
        let ports = [event.sport, event.dport, event.to_port, event.client_port].map(|port| port.host());
        kind.is_some_and(|kind| self.kinds() & kinds::bit(kind) != 0)
            && any(&self.hooks, |hook| *hook as u8 == event.hook)
            && any(&self.protocols, |protocol| protocol.is(event.proto))
            && any(&self.ports, |port| ports.contains(port))
            && any(&self.reasons, |reason| *reason as u32 == event.reason)
            && any(&self.addresses, |net| addresses.iter().any(|addr| contains(net, addr)))
    }

    /// Whether the device matches. Events of sockets have no device.
    pub fn matches_device(&self, name: Option<&str>) -> bool {
        any(&self.devices, |glob| name.is_some_and(|name| glob_matches(glob, name)))
    }

    /// Whether the Service matches.
    pub fn matches_service(&self, name: Option<&str>) -> bool {
        self.service.is_none() || self.service.as_deref() == name
    }
}

/// Whether the range contains the address. An unset address and a network namespace are in no range.
fn contains(net: &IpNet, addr: &Addr) -> bool {
    let ip: IpAddr = addr.to_ip();
    !ip.is_unspecified() && netns_of(addr).is_none() && net.contains(&ip)
}

#[cfg(test)]
mod tests {
    use proxy_common::socket::netns_addr;

    use super::*;
    use crate::monitor::test_events;

    fn passes(filter: &Filter) -> bool {
        filter.matches(&test_events::flow())
    }

    #[test]
    fn an_empty_filter_matches_everything() {
        let filter = Filter::default();
        assert_eq!(filter.kinds(), kinds::ALL);
        assert!(filter.matches(&test_events::flow()) && filter.matches(&test_events::refused()));
        assert!(
            filter.matches_device(None)
                && filter.matches_service(None)
                && filter.matches_service(Some("a/b"))
        );
    }

    #[test]
    fn kinds_are_passed_to_the_programs_and_reasons_exclude_flows() {
        let refused = Filter { kinds: vec![EventKind::Refused], ..Filter::default() };
        assert_eq!(refused.kinds(), kinds::bit(EventKind::Refused));
        assert!(!passes(&refused) && refused.matches(&test_events::refused()));
        let reason = |reason| Filter { reasons: vec![reason], ..Filter::default() };
        assert_eq!(reason(Counter::NoBackend).kinds(), kinds::ALL & !kinds::bit(EventKind::Flow));
        assert!(reason(Counter::NoBackend).matches(&test_events::refused()));
        assert!(!reason(Counter::SrcRange).matches(&test_events::refused()));
    }

    #[test]
    fn addresses_and_ports_of_client_vip_or_backend() {
        let address = |text: &str| Filter { addresses: vec![text.parse().unwrap()], ..Filter::default() };
        for text in ["10.0.0.1/32", "10.68.0.0/16", "172.20.1.2/32"] {
            assert!(passes(&address(text)), "{text}");
        }
        assert!(!passes(&address("10.0.0.2/32")));
        for port in [4000, 80, 8080, 5000] {
            assert!(passes(&Filter { ports: vec![1, port], ..Filter::default() }), "{port}");
        }
        assert!(!passes(&Filter { ports: vec![81], ..Filter::default() }));
        // A network namespace and a missing backend are not addresses.
        let nothing = FlowEvent { src: netns_addr(1), to: Addr::UNSPECIFIED_V6, ..test_events::flow() };
        assert!(!address("::/0").matches(&nothing));
    }

    #[test]
    fn protocols_hooks_devices_and_services() {
        let protocol = |protocol| Filter { protocols: vec![protocol], ..Filter::default() };
        assert!(passes(&protocol(Protocol::Tcp)) && !passes(&protocol(Protocol::Udp)));
        let ping = FlowEvent { proto: Proto::ICMPV6, ..test_events::flow() };
        assert!(protocol(Protocol::Icmp).matches(&ping) && !protocol(Protocol::Sctp).matches(&ping));
        let hook = |hook| Filter { hooks: vec![hook], ..Filter::default() };
        assert!(passes(&hook(Hook::Ingress)) && !passes(&hook(Hook::Xdp)));
        let device = Filter { devices: vec!["eth*".to_owned(), "lo".to_owned()], ..Filter::default() };
        assert!(device.matches_device(Some("eth7")) && !device.matches_device(Some("veth0")));
        assert!(!device.matches_device(None));
        let service = Filter { service: Some("default/web".to_owned()), ..Filter::default() };
        assert!(service.matches_service(Some("default/web")));
        assert!(!service.matches_service(Some("default/other")) && !service.matches_service(None));
    }
}
