//! Label and field selectors, to the extent that a Service proxy uses them: `!key`, `key`, `a.b=value`, `a.b!=value`.

use serde_json::Value;

/// A request's selectors.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    pub labels: String,
    pub fields: String,
}

impl Selector {
    pub fn matches(&self, object: &Value) -> bool {
        let terms = |text: &'_ str| {
            text.split(',').filter(|term| !term.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let labels = &object["metadata"]["labels"];
        terms(&self.labels).iter().all(|term| match term.strip_prefix('!') {
            Some(key) => labels.get(key).is_none(),
            None => labels.get(term).is_some(),
        }) && terms(&self.fields).iter().all(|term| match (term.split_once("!="), term.split_once('=')) {
            (Some((path, value)), _) => field(object, path) != value,
            (None, Some((path, value))) => field(object, path) == value,
            (None, None) => false,
        })
    }
}

fn field<'a>(object: &'a Value, path: &str) -> &'a str {
    path.split('.').fold(object, |value, name| &value[name]).as_str().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_fields_select() {
        let selector = |labels: &str, fields: &str| Selector { labels: labels.into(), fields: fields.into() };
        let object = json!({"metadata": {"name": "a", "labels": {"x": ""}}, "spec": {"clusterIP": "None"}});
        assert!(selector("", "metadata.name=a").matches(&object));
        assert!(!selector("", "metadata.name=b").matches(&object));
        assert!(!selector("", "spec.clusterIP!=None").matches(&object));
        assert!(selector("x", "").matches(&object) && !selector("!x", "").matches(&object));
        assert!(selector("!y", "").matches(&object));
    }
}
