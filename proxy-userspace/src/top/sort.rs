//! The order of service ports.

use std::cmp::Ordering;

use super::rates::Row;
use crate::inspect::statistics::Count;

/// The sort column: rates in descending, names in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortKey {
    Service,
    Rate(Count),
}

impl SortKey {
    /// In the order of the columns.
    pub const ALL: [Self; 8] = [
        Self::Service,
        Self::Rate(Count::Flows),
        Self::Rate(Count::PacketsIn),
        Self::Rate(Count::PacketsOut),
        Self::Rate(Count::BytesIn),
        Self::Rate(Count::BytesOut),
        Self::Rate(Count::Refused),
        Self::Rate(Count::Dropped),
    ];

    /// The value of `--sort`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Rate(Count::Flows) => "new",
            Self::Rate(Count::PacketsIn) => "packets-in",
            Self::Rate(Count::PacketsOut) => "packets-out",
            Self::Rate(Count::BytesIn) => "bytes-in",
            Self::Rate(Count::BytesOut) => "bytes-out",
            Self::Rate(Count::Refused) => "refused",
            Self::Rate(Count::Dropped) => "dropped",
        }
    }

    /// The title of the column.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::Rate(Count::Flows) => "NEW/s",
            Self::Rate(Count::PacketsIn) => "PKTS IN/s",
            Self::Rate(Count::PacketsOut) => "PKTS OUT/s",
            Self::Rate(Count::BytesIn) => "BYTES IN/s",
            Self::Rate(Count::BytesOut) => "BYTES OUT/s",
            Self::Rate(Count::Refused) => "REFUSED/s",
            Self::Rate(Count::Dropped) => "DROPPED/s",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    /// The column `by` positions to the right, wrapping around.
    pub fn shifted(self, by: isize) -> Self {
        let at = Self::ALL.iter().position(|key| *key == self).unwrap_or(0);
        Self::ALL[(at as isize + by).rem_euclid(Self::ALL.len() as isize) as usize]
    }
}

/// Rows with equal keys are sorted by name, so that their order is stable between samples.
pub fn sort(rows: &mut [Row], key: SortKey, reversed: bool) {
    let by_name =
        |a: &Row, b: &Row| (&a.title, &a.protocol, a.family).cmp(&(&b.title, &b.protocol, b.family));
    let by_rate = |count, a: &Row, b: &Row| {
        // An unknown rate sorts below 0.
        let of = |row: &Row| row.rates.get(count).unwrap_or(-1.0);
        of(b).partial_cmp(&of(a)).unwrap_or(Ordering::Equal)
    };
    rows.sort_by(|a, b| match (key, reversed) {
        (SortKey::Service, false) => by_name(a, b),
        (SortKey::Service, true) => by_name(b, a),
        (SortKey::Rate(count), false) => by_rate(count, a, b).then_with(|| by_name(a, b)),
        (SortKey::Rate(count), true) => by_rate(count, b, a).then_with(|| by_name(a, b)),
    });
}

#[cfg(test)]
mod tests {
    use super::{super::rates::tests::overview, *};

    fn sorted(key: SortKey, reversed: bool) -> Vec<String> {
        let mut rows = overview().services;
        sort(&mut rows, key, reversed);
        rows.into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn rates_descend_and_names_ascend() {
        assert_eq!(sorted(SortKey::Rate(Count::Flows), false), ["api", "web", "idle"]);
        assert_eq!(sorted(SortKey::Rate(Count::BytesIn), false), ["web", "api", "idle"]);
        assert_eq!(sorted(SortKey::Service, false), ["api", "idle", "web"]);
    }

    #[test]
    fn reversing_keeps_equal_rows_by_name() {
        assert_eq!(sorted(SortKey::Rate(Count::Dropped), true), ["api", "idle", "web"]);
        assert_eq!(sorted(SortKey::Service, true), ["web", "idle", "api"]);
    }

    #[test]
    fn columns_wrap_around() {
        assert_eq!(SortKey::Service.shifted(-1), SortKey::Rate(Count::Dropped));
        assert_eq!(SortKey::Rate(Count::Dropped).shifted(1), SortKey::Service);
        for key in SortKey::ALL {
            assert_eq!(SortKey::from_name(key.name()), Some(key));
        }
        assert_eq!(SortKey::from_name("size"), None);
    }
}
