//! Fields that the API server fills in: clusterIPs and node ports. A Service keeps the values it was given. Values
//! chosen by a user are accepted as they are, also outside the usual range.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::objects::default_namespace;
use crate::net::plan::vip;

/// ClusterIPs below this are left for manual choice (10.68.0.1 is `kubernetes`).
const FIRST_VIP: u8 = 10;
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Namespace and name.
pub type Key = (String, String);

/// Allocated clusterIPs and node ports, with their Services.
#[derive(Debug, Default)]
pub struct Allocator {
    vips: BTreeMap<Key, u8>,
    node_ports: BTreeMap<(Key, String, u64), u16>,
}

/// Namespace and name of a document.
pub fn key(document: &Value) -> Key {
    let metadata = &document["metadata"];
    let namespace = metadata["namespace"].as_str().map_or_else(default_namespace, str::to_owned);
    (namespace, metadata["name"].as_str().unwrap_or_default().to_owned())
}

impl Allocator {
    /// Fills in the missing fields of `service` and releases values that no Service of `all` uses any more.
    pub fn complete(&mut self, service: &mut Value, all: &[Value]) -> Result<()> {
        let alive: BTreeSet<Key> = all.iter().map(key).collect();
        self.vips.retain(|owner, _| alive.contains(owner));
        self.node_ports.retain(|(owner, _, _), _| alive.contains(owner));
        self.cluster_ips(service, all)?;
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
        if kind == "NodePort" || kind == "LoadBalancer" {
            self.ports(service, all)?;
        }
        Ok(())
    }

    fn cluster_ips(&mut self, service: &mut Value, all: &[Value]) -> Result<()> {
        let owner = key(service);
        let spec = service["spec"].as_object_mut().context("a Service without spec")?;
        let external_name = spec.get("type").is_some_and(|kind| kind == "ExternalName");
        if spec.get("clusterIP").is_some_and(|ip| ip != "") || external_name {
            return Ok(());
        }
        let last = match self.vips.get(&owner) {
            Some(last) => *last,
            None => {
                let chosen: Vec<_> =
                    all.iter().filter_map(|other| other["spec"]["clusterIP"].as_str()).collect();
                let free = (FIRST_VIP..=254).find(|last| {
                    !self.vips.values().any(|taken| taken == last)
                        && !chosen.contains(&vip(*last).v4.to_string().as_str())
                });
                let free = free.context("no clusterIP is free")?;
                self.vips.insert(owner, free);
                free
            }
        };
        let families: Vec<String> = match spec.get("ipFamilies").and_then(Value::as_array) {
            Some(list) => list.iter().filter_map(|family| family.as_str().map(str::to_owned)).collect(),
            None => match spec.get("ipFamilyPolicy").and_then(Value::as_str) {
                Some("PreferDualStack" | "RequireDualStack") => vec!["IPv4".to_owned(), "IPv6".to_owned()],
                _ => vec!["IPv4".to_owned()],
            },
        };
        let addr = vip(last);
        let ips: Vec<String> = families
            .iter()
            .map(|family| if family == "IPv6" { addr.v6.to_string() } else { addr.v4.to_string() })
            .collect();
        spec.insert("clusterIP".into(), json!(ips.first().context("ipFamilies is empty")?));
        spec.insert("clusterIPs".into(), json!(ips));
        spec.insert("ipFamilies".into(), json!(families));
        Ok(())
    }

    fn ports(&mut self, service: &mut Value, all: &[Value]) -> Result<()> {
        let owner = key(service);
        let mut taken: BTreeSet<u64> = all
            .iter()
            .flat_map(|other| other["spec"]["ports"].as_array().into_iter().flatten())
            .filter_map(|port| port["nodePort"].as_u64())
            .collect();
        taken.extend(self.node_ports.values().map(|port| u64::from(*port)));
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().is_some_and(|port| port != 0) {
                continue;
            }
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let slot = (owner.clone(), protocol, port["port"].as_u64().unwrap_or_default());
            let number = match self.node_ports.get(&slot) {
                Some(number) => *number,
                None => {
                    let free = NODE_PORTS.clone().find(|port| !taken.contains(&u64::from(*port)));
                    let free = free.context("no node port is free")?;
                    taken.insert(free.into());
                    self.node_ports.insert(slot, free);
                    free
                }
            };
            port["nodePort"] = json!(number);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, kind: &str, port: Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": name}, "spec": {"type": kind, "ports": [port]}})
    }

    #[test]
    fn what_was_given_is_kept_and_what_was_chosen_is_respected() {
        let mut allocator = Allocator::default();
        let mut all = vec![
            service("a", "ClusterIP", json!({"port": 80})),
            service("b", "NodePort", json!({"port": 80})),
        ];
        all[1]["spec"]["clusterIP"] = json!(vip(FIRST_VIP).v4.to_string());
        let mut first = all[0].clone();
        allocator.complete(&mut first, &all).unwrap();
        assert_eq!(first["spec"]["clusterIP"], vip(FIRST_VIP + 1).v4.to_string(), "b has chosen the first");
        let mut second = all[1].clone();
        allocator.complete(&mut second, &all).unwrap();
        assert_eq!(second["spec"]["ports"][0]["nodePort"], 30_000);
        // Changed to a NodePort with a user-chosen port outside the range.
        all[0] = service("a", "NodePort", json!({"port": 80, "nodePort": 20_651}));
        let mut again = all[0].clone();
        allocator.complete(&mut again, &all).unwrap();
        assert_eq!(again["spec"]["clusterIP"], first["spec"]["clusterIP"]);
        assert_eq!(again["spec"]["ports"][0]["nodePort"], 20_651);
    }

    #[test]
    fn dual_stack_gets_both_families() {
        let mut allocator = Allocator::default();
        let mut all = [service("a", "ClusterIP", json!({"port": 80}))];
        all[0]["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
        let mut done = all[0].clone();
        allocator.complete(&mut done, &all).unwrap();
        assert_eq!(
            done["spec"]["clusterIPs"],
            json!([vip(FIRST_VIP).v4.to_string(), vip(FIRST_VIP).v6.to_string()])
        );
    }
}
