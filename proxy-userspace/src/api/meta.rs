//! Metadata that every object has.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    field_error::{FieldError, Reason},
    validate::{field, label, subdomain},
};
use crate::model::ObjectKey;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectMeta {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub uid: Option<String>,
    /// Values are parsed only where they are used: an unquoted `1.0` or `y` elsewhere is harmless.
    pub labels: Option<BTreeMap<String, Value>>,
    pub annotations: Option<BTreeMap<String, Value>>,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
}

impl ObjectMeta {
    /// Namespace and name; names of Services are labels, those of other kinds may have dots.
    pub fn key(&self, name_is_label: bool) -> Result<ObjectKey, FieldError> {
        let namespace = self.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or("default");
        label("metadata.namespace", namespace)?;
        let name = self.name()?;
        if name_is_label {
            label("metadata.name", name)?;
        } else {
            subdomain("metadata.name", name)?;
        }
        Ok(ObjectKey::new(namespace, name))
    }

    pub fn name(&self) -> Result<&str, FieldError> {
        let name = self.name.as_deref().filter(|name| !name.is_empty());
        name.ok_or_else(|| field("metadata.name", Reason::Required))
    }

    /// Its deletion was requested; finalizers may still hold it.
    pub fn is_being_deleted(&self) -> bool {
        self.deletion_timestamp.as_deref().is_some_and(|time| !time.is_empty())
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        Some(self.labels.as_ref()?.get(key)?.as_str().unwrap_or(""))
    }

    /// Whether a label says `true`, quoted or not.
    pub fn is_true(&self, key: &str) -> bool {
        let value = self.labels.as_ref().and_then(|labels| labels.get(key));
        value.is_some_and(|value| value == "true" || value == &Value::Bool(true))
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_str().unwrap_or(""))
    }
}
