//! networking.k8s.io ServiceCIDR (KEP-1880; v1beta1 since 1.31, v1 since 1.33).
//!
//! One that is being deleted stays in effect until it is gone: its finalizer holds it while a Service has an address in
//! it.

use serde::Deserialize;

use super::{
    field_error::{FieldError, Reason},
    meta::ObjectMeta,
    validate::{field, range, subdomain},
};
use crate::model::{Family, ServiceCidr};

#[derive(Debug, Deserialize)]
pub struct ServiceCidrDoc {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<Spec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    cidrs: Option<Vec<String>>,
}

pub fn convert(doc: ServiceCidrDoc) -> Result<ServiceCidr, FieldError> {
    let name = doc.metadata.name()?;
    subdomain("metadata.name", name)?;
    let texts = doc.spec.unwrap_or_default().cidrs.unwrap_or_default();
    if texts.is_empty() {
        return Err(field("spec.cidrs", Reason::Required));
    }
    let mut cidrs = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let cidr = range(&format!("spec.cidrs[{i}]"), text)?;
        if cidrs.iter().any(|other: &ipnet::IpNet| Family::from(other.addr()) == Family::from(cidr.addr())) {
            return Err(field(format!("spec.cidrs[{i}]"), Reason::SameFamily));
        }
        cidrs.push(cidr);
    }
    Ok(ServiceCidr { name: name.into(), cidrs })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn converted(cidrs: &[&str]) -> Result<Vec<String>, String> {
        let doc = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
        let range = convert(serde_json::from_value(doc).unwrap()).map_err(|error| error.to_string())?;
        Ok(range.cidrs.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn one_range_a_family() {
        assert_eq!(converted(&["10.96.0.0/12", "fd00:10::/112"]).unwrap(), ["10.96.0.0/12", "fd00:10::/112"]);
        assert_eq!(converted(&[]).unwrap_err(), "spec.cidrs: required");
        let twice = converted(&["10.96.0.0/16", "10.97.0.0/16"]).unwrap_err();
        assert_eq!(twice, "spec.cidrs[1]: two addresses of one family");
        assert!(converted(&["10.96.0.0"]).unwrap_err().starts_with("spec.cidrs[0]: \"10.96.0.0\" is not"));
    }
}
