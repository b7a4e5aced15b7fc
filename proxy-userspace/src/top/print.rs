//! `shunt top --once` as a table, easy to parse: plain numbers, one line per service port.

use std::io::{self, Write};

use super::{rates::Overview, sort::SortKey};
use crate::inspect::{statistics::Count, table::print_table_into};

/// Totals in the wide table.
const TOTALS: [(&str, Count); 5] = [
    ("NEW", Count::Flows),
    ("BYTES IN", Count::BytesIn),
    ("BYTES OUT", Count::BytesOut),
    ("REFUSED", Count::Refused),
    ("DROPPED", Count::Dropped),
];

/// The service ports, in the order of `overview`.
pub fn print_top_into(
    out: &mut impl Write,
    overview: &Overview,
    headers: bool,
    wide: bool,
) -> io::Result<()> {
    let mut header = vec![SortKey::Service.title(), "PROT", "FAMILY"];
    header.extend(SortKey::ALL[1..].iter().map(|key| key.title()));
    if wide {
        header.extend(TOTALS.map(|(title, _)| title));
    }
    let rows = overview.services.iter().map(|row| {
        let mut cells = vec![row.title.clone(), row.protocol.clone(), row.family.to_owned()];
        cells.extend(Count::ALL.map(|count| known(row.rates.get(count).map(|rate| format!("{rate:.1}")))));
        if wide {
            cells
                .extend(TOTALS.map(|(_, count)| known(row.totals.get(count).map(|total| total.to_string()))));
        }
        cells
    });
    print_table_into(out, headers, &header, rows)
}

/// A figure, or a dash if it is not counted.
fn known(figure: Option<String>) -> String {
    figure.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{super::rates::tests::overview, *};

    #[test]
    fn one_line_per_service_port() {
        let mut out = Vec::new();
        print_top_into(&mut out, &overview(), true, false).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|it| !it.is_empty()).collect())
            .collect();
        assert_eq!(words[0][..5], ["SERVICE", "PROT", "FAMILY", "NEW/s", "PKTS IN/s"]);
        let web =
            ["default/web:http", "TCP", "IPv4", "10.0", "100.0", "100.0", "1499500.0", "0.0", "2.0", "3.0"];
        assert_eq!(words[1], web);
        assert_eq!((words.len(), words[0].len()), (4, web.len()));
    }

    #[test]
    fn wide_adds_totals_and_uncounted_figures_are_dashes() {
        let mut overview = overview();
        for row in &mut overview.services {
            row.rates = row.rates.without_traffic();
            row.totals = row.totals.without_traffic();
        }
        let mut out = Vec::new();
        print_top_into(&mut out, &overview, false, true).unwrap();
        let text = String::from_utf8(out).unwrap();
        let first: Vec<_> = text.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(first[3..], ["-", "-", "-", "-", "-", "2.0", "3.0", "-", "-", "-", "4", "6"]);
    }
}
