//! The output: one object with stable field names, and the same as numbered lines.

use std::io::{self, Write};

use serde::Serialize;

/// The trace of one packet. What does not apply is `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Explanation {
    pub packet: Ends,
    pub from: From,
    /// `tc`, `xdp`, `socket`, or `none` if no program runs.
    pub lane: &'static str,
    /// Kind of the destination: `service`, `other_port_of_cluster_ip`, `vip_other_port`, `node_port_elsewhere`,
    /// `unallocated`, `backend`, `foreign`.
    pub destination: &'static str,
    pub frontend: Option<FrontendView>,
    /// The tracked flow of the packet.
    pub flow: Option<FlowView>,
    pub policy: Option<PolicyView>,
    pub affinity: Option<AffinityView>,
    pub backend: Option<BackendView>,
    pub rewrites: Vec<Rewrite>,
    /// The final packet, unless it is dropped or answered.
    pub outcome: Option<Outcome>,
    /// `untouched`, `translated`, `refused`, `dropped` or `answered`.
    pub verdict: &'static str,
    /// The counter of a refusal or a drop.
    pub reason: Option<&'static str>,
    /// The reply to the sender: `tcp_reset`, `icmp_port_unreachable`, `connection_refused`, `echo_reply`.
    pub answer: Option<&'static str>,
    /// Counters that the programs would increment.
    pub counters: Vec<&'static str>,
    pub notes: Vec<String>,
    pub stages: Vec<Stage>,
}

/// One stage as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stage {
    pub stage: &'static str,
    pub text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ends {
    pub protocol: String,
    pub source: String,
    pub destination: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct From {
    /// `node`, `pod`, `uplink`, `tunnel`, or `device` for any other device.
    pub kind: &'static str,
    pub device: Option<String>,
    pub ifindex: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FrontendView {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub port_name: String,
    /// `0.0.0.0` or `::` for a NodePort.
    pub address: String,
    pub port: u16,
    pub protocol: String,
    pub has_endpoints: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowView {
    /// `request`, `reply`, `masquerade`, `unmasquerade`, or `direct`.
    pub half: &'static str,
    pub state: &'static str,
    pub age_seconds: u64,
    /// The flow continues. If not, it is closed and the packet starts a new one.
    pub goes_on: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// `internal` or `external`.
    pub traffic: &'static str,
    /// `Cluster` or `Local`.
    pub policy: &'static str,
    /// Policy Local with the cluster set: applies to the node and its own pods.
    pub short_circuit: bool,
    /// Whether the client is on this node.
    pub local_client: bool,
    /// `cluster` or `local`.
    pub set: &'static str,
    pub set_size: u32,
    pub cluster_size: u32,
    pub local_size: u32,
    /// `rr` or `random`.
    pub scheduler: &'static str,
    /// Whether the source ranges of a load balancer address or a NodePort accept the client; `null` without source ranges.
    pub let_in: Option<bool>,
    /// The widest range that accepts the client.
    pub source_range: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AffinityView {
    pub seconds: u32,
    pub client: String,
    /// The client keeps an existing backend.
    pub hit: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackendView {
    pub id: u32,
    pub address: String,
    pub port: u16,
    pub node: String,
    pub local: bool,
    /// `turn`, `random`, `affinity` or `flow`.
    pub chosen_by: &'static str,
}

/// The rewrite of one hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// `ingress`, `egress`, `xdp` or `socket`.
    pub hook: &'static str,
    pub device: Option<String>,
    pub source: String,
    pub destination: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub source: String,
    pub destination: String,
    /// The source port is an example: another packet would get another one.
    pub any_source_port: bool,
    /// The egress device; `null` for local delivery.
    pub device: Option<String>,
}

impl Explanation {
    pub(super) fn stage(&mut self, stage: &'static str, text: impl Into<String>) {
        self.stages.push(Stage { stage, text: text.into() });
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

/// Numbered stages, then notes.
pub fn print_explanation_into(out: &mut impl Write, view: &Explanation) -> io::Result<()> {
    let Ends { protocol, source, destination } = &view.packet;
    writeln!(out, "{protocol} {source} -> {destination}")?;
    let width = view.stages.iter().map(|stage| stage.stage.len()).max().unwrap_or(0);
    for (number, Stage { stage, text }) in view.stages.iter().enumerate() {
        writeln!(out, "{:>3}. {stage:width$}  {text}", number + 1)?;
    }
    view.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_numbered() {
        let packet =
            Ends { protocol: "TCP".into(), source: "10.0.0.1:1".into(), destination: "10.0.0.2:2".into() };
        let mut view = Explanation { packet, ..Explanation::default() };
        view.stage("from", "pod");
        view.stage("verdict", "dropped");
        view.note("so it is");
        let mut out = Vec::new();
        print_explanation_into(&mut out, &view).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "TCP 10.0.0.1:1 -> 10.0.0.2:2\n  1. from     pod\n  2. verdict  dropped\nnote: so it is\n"
        );
    }

    #[test]
    fn all_field_names_are_always_present() {
        let value = serde_json::to_value(Explanation::default()).unwrap();
        for name in ["packet", "lane", "frontend", "policy", "backend", "verdict", "reason", "stages"] {
            assert!(value.get(name).is_some(), "{name}");
        }
    }
}
