//! loadBalancerSourceRanges: which clients may use the load balancer addresses of a Service (SERVICE-SEMANTICS 2.3 and
//! 2.9).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Family, Node, Service};

/// The ranges of one family, in order; `None` allows all clients. Each family is evaluated by its own entries: a list
/// of IPv6 ranges restricts nothing in IPv4, and 0.0.0.0/0 opens IPv4 alone.
///
/// kube-proxy ignores an invalid entry, and with it the restriction if there is no other entry. Here such an entry
/// still restricts the family it looks like: a typo must not open a Service to all clients.
pub fn of(service: &Service, family: Family, node: &Node) -> Option<Vec<IpNet>> {
    let of_family = |ip: &IpAddr| Family::from(*ip) == family;
    let vips: Vec<IpAddr> = service.load_balancer_ips.iter().copied().filter(of_family).collect();
    let ranges = service.source_ranges.iter().filter(|range| of_family(&range.addr()));
    let mut ranges: Vec<IpNet> = ranges.copied().collect();
    let is_restricted =
        !ranges.is_empty() || service.unreadable_ranges.iter().any(|text| looks_like(text, family));
    if vips.is_empty() || !is_restricted || ranges.iter().any(|range| range.prefix_len() == 0) {
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

fn looks_like(text: &str, family: Family) -> bool {
    text.contains(':') == (family == Family::V6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Object, decode};

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

    #[test]
    fn without_an_address_of_the_load_balancer_there_is_nothing_to_restrict() {
        let service = Service { load_balancer_ips: Vec::new(), ..service("10.0.0.0/8") };
        assert_eq!(of(&service, Family::V4, &Node::default()), None);
    }
}
