//! A key or a value as named fields, printed as JSON or as `name=value` text.

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Value, json};

/// Named values, in the order of the struct.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields(pub Vec<(&'static str, Value)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl std::fmt::Display for Fields {
    /// `name=value name=value`; lists with commas, empty texts as `-`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Value| match value {
            Value::String(text) if text.is_empty() => "-".to_owned(),
            Value::String(text) => text.clone(),
            Value::Array(list) if list.is_empty() => "-".to_owned(),
            Value::Array(list) => list
                .iter()
                .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join(","),
            other => other.to_string(),
        };
        for (i, (name, value)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{name}={}", text(value))?;
        }
        Ok(())
    }
}

/// `fields! {"name": value, ...}`
macro_rules! fields {
    ($($name:literal: $value:expr),* $(,)?) => {
        $crate::inspect::map_format::fields::Fields(vec![$(($name, serde_json::json!($value))),*])
    };
}

/// The names of the set bits; the rest is shown as a number.
pub(super) fn bits<T: Into<u64> + Copy>(
    value: T,
    names: impl IntoIterator<Item = (T, &'static str)>,
) -> Value {
    let mut left = value.into();
    let mut set: Vec<String> = Vec::new();
    for (bit, name) in names {
        if left & bit.into() != 0 {
            set.push(name.to_owned());
        }
        left &= !bit.into();
    }
    if left != 0 {
        set.push(format!("{left:#x}"));
    }
    json!(set)
}

pub(super) use fields;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_without_a_name_are_shown_as_a_number() {
        assert_eq!(bits(5u32, [(1, "a"), (2, "b")]), json!(["a", "0x4"]));
        let fields = fields! {"list": bits(0u32, [(1, "a")]), "text": ""};
        assert_eq!(fields.to_string(), "list=- text=-");
        assert_eq!(serde_json::to_string(&fields).unwrap(), r#"{"list":[],"text":""}"#);
    }
}
