//! loadBalancerSourceRanges: which clients may use the load balancer addresses of a Service (SERVICE-SEMANTICS 2.3 and
//! 2.9). The annotation `shunt.dev/nodeport-source-ranges` and `--nodeport-source-ranges`: which clients may use its
//! NodePorts.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::model::{Family, Node, Service, ServicePort};

/// The ranges of one family, in order; `None` allows all clients. Each family is evaluated by its own entries: a list
/// of IPv6 ranges restricts nothing in IPv4, and 0.0.0.0/0 opens IPv4 alone.
///
/// kube-proxy ignores an invalid entry, and with it the restriction if there is no other entry. Here such an entry
/// still restricts the family it looks like: a typo must not open a Service to all clients.
pub fn of(service: &Service, family: Family, node: &Node) -> Option<Vec<IpNet>> {
    let of_family = |ip: &IpAddr| Family::from(*ip) == family;
    let vips: Vec<IpAddr> = service.load_balancer_ips.iter().copied().filter(of_family).collect();
    let mut ranges = named(&service.source_ranges, &service.unreadable_ranges, family)?;
    if vips.is_empty() || is_everyone(&ranges) {
        return None;
    }
    // If a load balancer address is also the node's own, the node's processes connect from that address.
    if node.internal_ips.iter().any(|ip| ranges.iter().any(|range| range.contains(ip))) {
        ranges.extend(vips.into_iter().map(IpNet::from));
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges)
}

/// The same for the NodePort of `port`. The Service's annotation replaces `config`, the node's ranges, in each family that
/// it names.
pub fn of_node_port(
    service: &Service,
    port: &ServicePort,
    family: Family,
    config: &[IpNet],
) -> Option<Vec<IpNet>> {
    port.node_port?;
    let own = named(&service.node_port_ranges.readable, &service.node_port_ranges.unreadable, family);
    let mut ranges = own.or_else(|| named(config, &[], family)).filter(|ranges| !is_everyone(ranges))?;
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges)
}

/// The ranges of one family; `None` if no entry is of this family.
fn named(readable: &[IpNet], unreadable: &[Arc<str>], family: Family) -> Option<Vec<IpNet>> {
    let ranges = readable.iter().filter(|range| Family::from(range.addr()) == family);
    let ranges: Vec<IpNet> = ranges.copied().collect();
    let is_named = !ranges.is_empty() || unreadable.iter().any(|text| looks_like(text, family));
    is_named.then_some(ranges)
}

fn is_everyone(ranges: &[IpNet]) -> bool {
    ranges.iter().any(|range| range.prefix_len() == 0)
}

fn looks_like(text: &str, family: Family) -> bool {
    text.contains(':') == (family == Family::V6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Object, decode};
    use crate::model::SourceRanges;

    /// What the list `ranges` allows at 203.0.113.1 and 2001:db8::1, on a node with 192.168.8.201 and fd00:8::201.
    fn check(ranges: &str, v4: Option<&str>, v6: Option<&str>) {
        let node = Node {
            internal_ips: vec!["192.168.8.201".parse().unwrap(), "fd00:8::201".parse().unwrap()],
            ..Node::default()
        };
        let service = service(ranges);
        for (family, want) in [(Family::V4, v4), (Family::V6, v6)] {
            let got = of(&service, family, &node);
            let got = got.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            assert_eq!(got.as_deref(), want, "{ranges} in {family:?}");
        }
    }

    fn service(ranges: &str) -> Service {
        let document = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.68.0.1", "fd00:10:68::1"], "ports": [{"port": 80}],
                "loadBalancerSourceRanges": ranges.split(',').filter(|text| !text.is_empty()).collect::<Vec<_>>(),
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}]}},
        });
        match decode(document).remove(0).result {
            Ok(Object::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_list_everyone_comes_in() {
        check("", None, None);
    }

    #[test]
    fn each_family_has_its_own_entries() {
        check("198.51.100.0/24, 10.0.0.0/8 ", Some("10.0.0.0/8 198.51.100.0/24"), None);
        check("2001:db8:1::/48", None, Some("2001:db8:1::/48"));
        check("10.0.0.0/8,fd01::/16,10.0.0.0/8", Some("10.0.0.0/8"), Some("fd01::/16"));
    }

    #[test]
    fn a_range_of_everything_opens_its_family() {
        check("10.0.0.0/8,0.0.0.0/0,fd01::/16", None, Some("fd01::/16"));
        check("10.0.0.0/8,::/0", Some("10.0.0.0/8"), None);
    }

    #[test]
    fn a_node_that_is_let_in_may_call_from_the_load_balancers_address() {
        check(
            "192.168.0.0/16,fd00:8::/32",
            Some("192.168.0.0/16 203.0.113.1/32"),
            Some("2001:db8::1/128 fd00:8::/32"),
        );
    }

    #[test]
    fn what_nobody_can_read_lets_nobody_in() {
        check("10.0.0.1", Some(""), None);
        check("everyone", Some(""), None);
        check("fd01::/160", None, Some(""));
        // Next to valid entries it has no effect.
        check("10.0.0.0/8,10.0.0.1", Some("10.0.0.0/8"), None);
        check("0.0.0.0/0,10.0.0.1", None, None);
    }

    /// What a NodePort accepts in each family with this annotation and `--nodeport-source-ranges`.
    fn check_node_port(annotation: &str, config: &str, v4: Option<&str>, v6: Option<&str>) {
        let words = || annotation.split(',').filter(|text| !text.is_empty());
        let node_port_ranges = SourceRanges {
            readable: words().filter_map(|text| text.parse().ok()).collect(),
            unreadable: words().filter(|text| text.parse::<IpNet>().is_err()).map(Arc::from).collect(),
        };
        let config: Vec<IpNet> = config.split(',').filter_map(|text| text.parse().ok()).collect();
        let service = Service { node_port_ranges, ..service("10.99.0.0/16") };
        let port = ServicePort { node_port: Some(30080), ..service.ports[0].clone() };
        for (family, want) in [(Family::V4, v4), (Family::V6, v6)] {
            let got = of_node_port(&service, &port, family, &config);
            let got = got.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            assert_eq!(got.as_deref(), want, "{annotation} and {config:?} in {family:?}");
            assert_eq!(of_node_port(&service, &service.ports[0], family, &config), None, "no NodePort");
        }
    }

    #[test]
    fn node_ports_have_ranges_of_their_own() {
        check_node_port("", "", None, None);
        check_node_port("", "10.0.0.0/8,fd01::/16", Some("10.0.0.0/8"), Some("fd01::/16"));
        check_node_port("", "10.2.0.0/16,10.1.0.0/16,10.2.0.0/16", Some("10.1.0.0/16 10.2.0.0/16"), None);
        check_node_port("", "10.0.0.0/8,0.0.0.0/0", None, None);
        check_node_port("192.0.2.0/24", "", Some("192.0.2.0/24"), None);
    }

    #[test]
    fn the_annotation_replaces_the_flag_in_the_families_that_it_names() {
        let flag = "10.0.0.0/8,fd01::/16";
        check_node_port("192.0.2.0/24", flag, Some("192.0.2.0/24"), Some("fd01::/16"));
        check_node_port("fd02::/16", flag, Some("10.0.0.0/8"), Some("fd02::/16"));
        check_node_port("0.0.0.0/0", flag, None, Some("fd01::/16"));
        check_node_port("0.0.0.0/0,::/0", flag, None, None);
        // A typo closes, and does not fall back to the flag.
        check_node_port("192.0.2.1", flag, Some(""), Some("fd01::/16"));
        check_node_port("fd02::/160", flag, Some("10.0.0.0/8"), Some(""));
    }

    #[test]
    fn without_an_address_of_the_load_balancer_there_is_nothing_to_restrict() {
        let service = Service { load_balancer_ips: Vec::new(), ..service("10.0.0.0/8") };
        assert_eq!(of(&service, Family::V4, &Node::default()), None);
    }
}
