//! Prints Services in the style of `ipvsadm -ln`, or one Service with all details.

use std::io::{self, Write};

use super::{ServiceBackend, ServiceView, Traffic};
use crate::inspect::table::print_table_into;

impl ServiceView {
    fn endpoint(&self) -> String {
        joined(&self.address, self.port)
    }

    /// `NAMESPACE/NAME`, followed by the name of the port if it has one.
    fn title(&self) -> String {
        match self.port_name.as_str() {
            "" => format!("{}/{}", self.namespace, self.name),
            port => format!("{}/{}:{port}", self.namespace, self.name),
        }
    }

    /// Accepted client ranges.
    fn sources(&self) -> String {
        match self.source_ranges.as_deref() {
            None => "all".to_owned(),
            Some([]) => "none".to_owned(),
            Some(ranges) => ranges.join(","),
        }
    }

    /// What happens to new flows if there is no backend.
    pub(super) fn no_backend_text(&self) -> &'static str {
        if self.has_endpoints { "no local endpoint: dropped" } else { "no endpoint: refused" }
    }
}

impl ServiceBackend {
    fn state(&self) -> &'static str {
        match (self.terminating, self.ready) {
            (true, _) => "terminating",
            (false, true) => "ready",
            (false, false) => "not ready",
        }
    }
}

fn joined(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Like `ipvsadm -ln`: one line per frontend, followed by one line per backend.
pub fn print_services_into(
    out: &mut impl Write,
    views: &[ServiceView],
    headers: bool,
    wide: bool,
) -> io::Result<()> {
    let mut rows = Vec::new();
    let row = |cells: [&str; 7], extra: [String; 3]| {
        let mut cells: Vec<String> = cells.into_iter().map(str::to_owned).collect();
        if wide {
            cells.extend(extra);
        }
        cells
    };
    if headers {
        rows.push(row(
            ["PROT", "ADDRESS:PORT", "SERVICE", "SCHEDULER", "KIND", "POLICY", ""],
            ["AFFINITY".to_owned(), "ID".to_owned(), "SOURCES".to_owned()],
        ));
        rows.push(row(
            ["  ->", "BACKEND", "NODE", "WHERE", "STATE", "ACTIVE", "INACTIVE"],
            ["SET".to_owned(), "ID".to_owned(), String::new()],
        ));
    }
    for view in views {
        let affinity = match view.affinity_seconds {
            0 => "none".to_owned(),
            seconds => format!("{seconds}s"),
        };
        rows.push(row(
            [&view.protocol, &view.endpoint(), &view.title(), view.scheduler, view.kind, view.policy, ""],
            [affinity, view.id.to_string(), view.sources()],
        ));
        for backend in &view.backends {
            rows.push(row(
                [
                    "  ->",
                    &joined(&backend.address, backend.port),
                    if backend.node.is_empty() { "-" } else { &backend.node },
                    if backend.local { "local" } else { "remote" },
                    backend.state(),
                    &backend.active.to_string(),
                    &backend.inactive.to_string(),
                ],
                [backend.set.to_owned(), backend.id.to_string(), String::new()],
            ));
        }
        if view.backends.is_empty() {
            rows.push(row(
                ["  ->", view.no_backend_text(), "", "", "", "", ""],
                [const { String::new() }; 3],
            ));
        }
    }
    print_table_into(out, false, &[], rows)
}

/// Traffic of all frontends of the service port.
fn traffic(traffic: &Traffic) -> String {
    let Traffic { flows, packets_in, bytes_in, packets_out, bytes_out } = *traffic;
    let shown = || {
        let incoming = format!("{} packets ({} bytes) in", packets_in?, bytes_in?);
        Some(format!("{} flows, {incoming}, {} packets ({} bytes) out", flows?, packets_out?, bytes_out?))
    };
    shown().unwrap_or_else(|| "not counted (--service-stats-max)".to_owned())
}

/// All details of one Service, one paragraph per frontend.
pub fn print_service_into(out: &mut impl Write, views: &[ServiceView]) -> io::Result<()> {
    for (i, view) in views.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        let counts = &view.statistics;
        let affinity = match view.affinity_seconds {
            0 => "none".to_owned(),
            seconds => format!("by client address, {seconds} s"),
        };
        for (name, value) in [
            ("Service", view.title()),
            ("Frontend", format!("{} {} ({})", view.endpoint(), view.protocol, view.kind)),
            ("Policy", view.policy.to_owned()),
            ("Scheduler", view.scheduler.to_owned()),
            ("Affinity", affinity),
            ("Sources", view.sources()),
            ("Traffic", traffic(&counts.traffic)),
            ("New flows", format!("{} cluster-wide, {} local", counts.cluster_flows, counts.local_flows)),
            ("Refused", format!("{} (no endpoint)", counts.refused)),
            ("Dropped", format!("{} (no local endpoint)", counts.dropped)),
            ("Service id", view.id.to_string()),
        ] {
            writeln!(out, "{:<12}{value}", format!("{name}:"))?;
        }
        if view.backends.is_empty() {
            writeln!(out, "{:<12}{}", "Backends:", view.no_backend_text())?;
            continue;
        }
        writeln!(out, "Backends:")?;
        let rows = view.backends.iter().map(|backend| {
            vec![
                format!("  {}", joined(&backend.address, backend.port)),
                backend.node.clone(),
                if backend.local { "local" } else { "remote" }.to_owned(),
                backend.state().to_owned(),
                backend.active.to_string(),
                backend.inactive.to_string(),
                backend.set.to_owned(),
                backend.id.to_string(),
            ]
        });
        let header = ["  ADDRESS:PORT", "NODE", "WHERE", "STATE", "ACTIVE", "INACTIVE", "SET", "ID"];
        print_table_into(out, true, &header, rows)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::tests::maps, *};

    #[test]
    fn a_table_as_ipvsadm_shows_it() {
        let mut out = Vec::new();
        print_services_into(&mut out, &maps().views(), true, false).unwrap();
        let want = "\
PROT   ADDRESS:PORT    SERVICE            SCHEDULER   KIND          POLICY
  ->   BACKEND         NODE               WHERE       STATE         ACTIVE    INACTIVE
TCP    10.0.0.100:80   default/web:http   rr          ClusterIP     Cluster
  ->   10.0.0.1:8080   node-1             local       ready         1         1
  ->   10.0.0.2:8080   node-2             remote      terminating   1         0
TCP    0.0.0.0:30080   default/web:http   rr          NodePort      Local
  ->   10.0.0.1:8080   node-1             local       ready         0         1
  ->   10.0.0.2:8080   node-2             remote      terminating   0         0
";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn one_services_details() {
        let mut out = Vec::new();
        print_service_into(&mut out, &maps().views()[..1]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("Refused:    2 (no endpoint)"), "{text}");
        let want = "Traffic:    6 flows, 60 packets (6000 bytes) in, 50 packets (90000 bytes) out\n";
        assert!(text.contains(want), "{text}");
        assert!(text.contains("New flows:  5 cluster-wide, 1 local"), "{text}");
    }
}
