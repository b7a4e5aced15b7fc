//! Which events are wanted. The programs know of kinds alone; everything else is looked at here, first what the event
//! itself says, then names, which cost a look into the maps. Of each list an event must meet one; an empty one lets
//! everything through.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::{Addr, Counter, EventKind, FlowEvent, Hook, Proto, observe::kinds, socket::netns_of};

use crate::datapath::devices::select::glob_matches;

/// What of the events is wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub kinds: Vec<EventKind>,
    /// `NAMESPACE/NAME`.
    pub service: Option<String>,
    /// Either end's, or the backend's.
    pub addresses: Vec<IpNet>,
    /// Either end's, or the backend's.
    pub ports: Vec<u16>,
    pub protocols: Vec<Protocol>,
    /// Globs.
    pub devices: Vec<String>,
    pub reasons: Vec<Counter>,
    pub hooks: Vec<Hook>,
}

/// `--protocol`: ICMP means that of either family.
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

/// An empty list, or one of it.
fn any<T>(list: &[T], is: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(is)
}

impl Filter {
    /// What the programs are asked for: bits of [`kinds`]. A flow has no reason, so none is asked for where one is
    /// wanted.
    pub fn kinds(&self) -> u32 {
        EventKind::ALL
            .iter()
            .filter(|kind| any(&self.kinds, |wanted| wanted == *kind))
            .filter(|kind| self.reasons.is_empty() || **kind != EventKind::Flow)
            .fold(0, |bits, kind| bits | kinds::bit(*kind))
    }

    /// Whether what the event itself says is wanted.
    pub fn wants(&self, event: &FlowEvent) -> bool {
        let kind = EventKind::from_number(event.kind);
        let addresses = [event.src, event.dst, event.to];
        let ports = [event.sport, event.dport, event.to_port, event.client_port].map(|port| port.host());
        kind.is_some_and(|kind| self.kinds() & kinds::bit(kind) != 0)
            && any(&self.hooks, |hook| *hook as u8 == event.hook)
            && any(&self.protocols, |protocol| protocol.is(event.proto))
            && any(&self.ports, |port| ports.contains(port))
            && any(&self.reasons, |reason| *reason as u32 == event.reason)
            && any(&self.addresses, |net| addresses.iter().any(|addr| holds(net, addr)))
    }

    /// Whether a device of this name is wanted; a socket's flow has none.
    pub fn wants_device(&self, name: Option<&str>) -> bool {
        any(&self.devices, |glob| name.is_some_and(|name| glob_matches(glob, name)))
    }

    /// Whether a Service of this name is wanted.
    pub fn wants_service(&self, name: Option<&str>) -> bool {
        self.service.is_none() || self.service.as_deref() == name
    }
}

/// What is no address (no backend, a network namespace) is in no range.
fn holds(net: &IpNet, addr: &Addr) -> bool {
    let ip: IpAddr = addr.to_ip();
    !ip.is_unspecified() && netns_of(addr).is_none() && net.contains(&ip)
}

#[cfg(test)]
mod tests {
    use proxy_common::socket::netns_addr;

    use super::*;
    use crate::monitor::sample;

    fn passes(filter: &Filter) -> bool {
        filter.wants(&sample::flow())
    }

    #[test]
    fn an_empty_filter_wants_everything() {
        let filter = Filter::default();
        assert_eq!(filter.kinds(), kinds::ALL);
        assert!(filter.wants(&sample::flow()) && filter.wants(&sample::refused()));
        assert!(filter.wants_device(None) && filter.wants_service(None) && filter.wants_service(Some("a/b")));
    }

    #[test]
    fn kinds_are_for_the_programs_too_and_reasons_leave_flows_out() {
        let refused = Filter { kinds: vec![EventKind::Refused], ..Filter::default() };
        assert_eq!(refused.kinds(), kinds::bit(EventKind::Refused));
        assert!(!passes(&refused) && refused.wants(&sample::refused()));
        let reason = |reason| Filter { reasons: vec![reason], ..Filter::default() };
        assert_eq!(reason(Counter::NoBackend).kinds(), kinds::ALL & !kinds::bit(EventKind::Flow));
        assert!(reason(Counter::NoBackend).wants(&sample::refused()));
        assert!(!reason(Counter::SrcRange).wants(&sample::refused()));
    }

    #[test]
    fn addresses_and_ports_of_either_end_or_the_backend() {
        let address = |text: &str| Filter { addresses: vec![text.parse().unwrap()], ..Filter::default() };
        for text in ["10.0.0.1/32", "10.68.0.0/16", "172.20.1.2/32"] {
            assert!(passes(&address(text)), "{text}");
        }
        assert!(!passes(&address("10.0.0.2/32")));
        for port in [4000, 80, 8080, 5000] {
            assert!(passes(&Filter { ports: vec![1, port], ..Filter::default() }), "{port}");
        }
        assert!(!passes(&Filter { ports: vec![81], ..Filter::default() }));
        // Neither a namespace nor a missing backend is an address.
        let nothing = FlowEvent { src: netns_addr(1), to: Addr::UNSPECIFIED_V6, ..sample::flow() };
        assert!(!address("::/0").wants(&nothing));
    }

    #[test]
    fn protocols_hooks_devices_and_services() {
        let protocol = |protocol| Filter { protocols: vec![protocol], ..Filter::default() };
        assert!(passes(&protocol(Protocol::Tcp)) && !passes(&protocol(Protocol::Udp)));
        let ping = FlowEvent { proto: Proto::ICMPV6, ..sample::flow() };
        assert!(protocol(Protocol::Icmp).wants(&ping) && !protocol(Protocol::Sctp).wants(&ping));
        let hook = |hook| Filter { hooks: vec![hook], ..Filter::default() };
        assert!(passes(&hook(Hook::Ingress)) && !passes(&hook(Hook::Xdp)));
        let device = Filter { devices: vec!["eth*".to_owned(), "lo".to_owned()], ..Filter::default() };
        assert!(device.wants_device(Some("eth7")) && !device.wants_device(Some("veth0")));
        assert!(!device.wants_device(None));
        let service = Filter { service: Some("default/web".to_owned()), ..Filter::default() };
        assert!(service.wants_service(Some("default/web")));
        assert!(!service.wants_service(Some("default/other")) && !service.wants_service(None));
    }
}
