//! Prints the tables as text: one section per map, names next to numbers, in a stable order.

use std::io::{self, Write};

use super::view::{NodeConfigView, RangeView, TablesView};
use crate::inspect::table::print_table_into;

/// Writes every table.
pub fn print_tables_into(out: &mut impl Write, view: &TablesView, headers: bool) -> io::Result<()> {
    print_config_into(out, view.node_config.as_ref())?;
    let addrs = view.node_addrs.iter().map(|row| vec![row.address.clone(), list(&row.roles)]);
    section(out, "NODE_ADDRS", headers, &["ADDRESS", "ROLES"], addrs)?;
    let services = view.services.iter().map(|row| {
        let service = format!("{}/{}", row.namespace, row.name);
        vec![
            row.id.to_string(),
            service,
            or_dash(&row.port_name),
            format!("{}/{}", row.port, row.protocol),
            format!("IPv{}", row.family),
        ]
    });
    section(out, "SERVICES", headers, &["ID", "SERVICE", "PORT-NAME", "PORT", "FAMILY"], services)?;
    print_frontends_into(out, view, headers)?;
    let slots =
        view.slots.iter().map(|row| vec![row.slot.to_string(), row.backend.to_string(), row.address.clone()]);
    section(out, "SLOTS", headers, &["SLOT", "BACKEND", "ADDRESS"], slots)?;
    let backends = view.backends.iter().map(|row| {
        vec![
            row.id.to_string(),
            row.address.clone(),
            format!("{}/{}", row.port, row.protocol),
            or_dash(&row.node),
            list(&row.flags),
        ]
    });
    section(out, "BACKENDS", headers, &["ID", "ADDRESS", "PORT", "NODE", "FLAGS"], backends)?;
    print_clients_into(out, view, headers)?;
    let ports = view.ports.iter().map(|row| vec![row.port.to_string(), row.bits.join(",")]);
    section(out, "PORTS", headers, &["PORT", "BITS"], ports)?;
    if view.health_checks.is_empty() {
        return Ok(());
    }
    let checks = view.health_checks.iter().map(|row| {
        vec![row.address.clone(), row.port.to_string(), row.service.clone(), row.local_endpoints.to_string()]
    });
    let header = ["ADDRESS", "PORT", "SERVICE", "LOCAL-ENDPOINTS"];
    section(out, "HEALTH CHECKS", headers, &header, checks)
}

fn print_config_into(out: &mut impl Write, view: Option<&NodeConfigView>) -> io::Result<()> {
    writeln!(out, "NODE_CONFIG")?;
    if let Some(view) = view {
        let or_dash = |words: &[String]| or_dash(&words.join(","));
        writeln!(out, "primary: {}", or_dash(&view.primary))?;
        writeln!(out, "pod prefixes: {}", or_dash(&view.pod_prefixes))?;
        writeln!(out, "service prefixes: {}", or_dash(&view.service_prefixes))?;
        writeln!(out, "flags: {}", list(&view.flags))?;
    }
    Ok(())
}

/// Only printed if a Service has session affinity or source ranges.
fn print_clients_into(out: &mut impl Write, view: &TablesView, headers: bool) -> io::Result<()> {
    if !view.set_members.is_empty() {
        let members = view.set_members.iter().map(|row| {
            let (id, backend) = (row.service_id.to_string(), row.backend.to_string());
            vec![id, row.service.clone(), backend, row.address.clone(), list(&row.sets)]
        });
        section(out, "SET_MEMBERS", headers, &["ID", "SERVICE", "BACKEND", "ADDRESS", "SETS"], members)?;
    }
    if !view.source_ranges.is_empty() {
        let ranges = view.source_ranges.iter();
        let ranges = ranges.map(|row| {
            vec![row.service_id.to_string(), row.service.clone(), row.kind.to_owned(), row.range.clone()]
        });
        section(out, "SOURCE_RANGES", headers, &["ID", "SERVICE", "KIND", "RANGE"], ranges)?;
    }
    Ok(())
}

fn print_frontends_into(out: &mut impl Write, view: &TablesView, headers: bool) -> io::Result<()> {
    let header = ["ADDRESS", "PORT", "KIND", "ID", "SERVICE", "FLAGS", "CLUSTER", "LOCAL", "AFFINITY"];
    let rows = view.frontends.iter().map(|row| {
        let address = match (row.address.as_str(), row.family) {
            ("*", family) => format!("* (IPv{family})"),
            (address, _) => address.into(),
        };
        let port = match row.port {
            0 => row.protocol.to_owned(),
            port => format!("{port}/{}", row.protocol),
        };
        let affinity = match row.affinity_seconds {
            0 => "-".into(),
            seconds => format!("{seconds}s"),
        };
        vec![
            address,
            port,
            row.kind.into(),
            if row.service_id == 0 { "-".into() } else { row.service_id.to_string() },
            or_dash(&row.service),
            list(&row.flags),
            range(&row.cluster),
            range(&row.local),
            affinity,
        ]
    });
    section(out, "FRONTENDS", headers, &header, rows)
}

fn section(
    out: &mut impl Write,
    name: &str,
    headers: bool,
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> io::Result<()> {
    writeln!(out, "\n{name}")?;
    print_table_into(out, headers, header, rows)
}

/// `4+3=1,2,5`: three slots from index 4 on, with the backends 1, 2 and 5.
fn range(view: &RangeView) -> String {
    if view.count == 0 {
        return "-".into();
    }
    let ids: Vec<String> = view.backends.iter().map(u32::to_string).collect();
    format!("{}+{}={}", view.base, view.count, ids.join(","))
}

fn list(words: &[&str]) -> String {
    or_dash(&words.join(","))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}
