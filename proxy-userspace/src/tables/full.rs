//! The one reason why a Service cannot be entered.

/// A Service does not fit: this map is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("map {map} has no room ({max} entries)")]
pub struct Full {
    pub map: &'static str,
    pub max: u32,
}
