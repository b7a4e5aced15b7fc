//! Renders the stages that the programs do not report: frontend, flow, policy, affinity, backend.

use std::net::IpAddr;

use proxy_common::{Counter, CtEntry, Frontend, FrontendKind, Proto, tcp};

use super::{
    tables::{self, Destination},
    view::{AffinityView, FlowView, PolicyView},
    walk::{Result, Walk},
};

impl Walk {
    /// Adds a note about `--socket-lb all`, which also translates the sockets of pods.
    pub(super) fn note_socket_lb(&mut self, kind: &str) -> Result<()> {
        let all = self.sandbox.global("SOCKET_NETNS")? == 0 && self.pins.links().join("connect4").exists();
        if all && kind == "pod" && matches!(self.tuple.proto, Proto::TCP | Proto::UDP) {
            self.view.note(
                "--socket-lb all: sockets of pods in the cgroup are already translated at connect(), to a backend chosen as shown \
                 here; their packets then go to that backend",
            );
        }
        Ok(())
    }

    /// Renders the frontend lookup; returns the frontend.
    pub(super) fn describe(&mut self, roles: u32) -> Result<Option<Frontend>> {
        match tables::destination(&self.sandbox, &self.tuple, roles)? {
            Destination::Service(key, frontend) => {
                let view = tables::frontend_view(&self.sandbox, &key, &frontend)?;
                let name = tables::name_of(&self.sandbox, &frontend)?;
                self.view.destination = "service";
                self.view.stage(
                    "frontend",
                    match (self.tuple.is_ping(), view.has_endpoints) {
                        (true, true) => {
                            format!("{} is the address of a Service and answers pings", view.address)
                        }
                        (true, false) => {
                            format!("{} is the address of a Service without an endpoint", view.address)
                        }
                        (false, true) => format!("{} of {name}", view.kind),
                        (false, false) => format!("{} of {name}, without an endpoint", view.kind),
                    },
                );
                self.view.frontend = Some(view);
                Ok(Some(frontend))
            }
            Destination::Other(kind, why) => {
                self.view.destination = kind;
                self.view.stage("frontend", format!("none: {why}"));
                Ok(None)
            }
        }
    }

    /// Renders the flow; returns whether the packet belongs to a tracked flow that continues.
    pub(super) fn flow_stage(&mut self, known: Option<CtEntry>, after: Option<CtEntry>) -> Result<bool> {
        let Some(entry) = known else {
            if !self.tuple.is_ping() && self.view.destination == "service" {
                self.view.stage("flow", "not tracked: the packet starts a new flow");
            }
            return Ok(false);
        };
        let continues = after.is_some_and(|after| after.created == entry.created);
        let half = match () {
            () if !entry.has(CtEntry::SERVICE) => "direct",
            () if entry.has(CtEntry::REQUEST) => "request",
            () if entry.has(CtEntry::REPLY) => "reply",
            () if entry.has(CtEntry::MASQUERADE) => "masquerade",
            () => "unmasquerade",
        };
        let age = self.clock.seconds_since(entry.created);
        let state = tcp::name(entry.state, self.tuple.proto);
        self.view.flow = Some(FlowView { half, state, age_seconds: age, goes_on: continues });
        self.view.stage(
            "flow",
            if continues {
                format!("{half} of a tracked flow ({state}, {age} s old): it keeps its translation")
            } else {
                format!("the tracked flow ({state}) is closed: the packet starts a new one")
            },
        );
        Ok(continues)
    }

    /// Renders the traffic policy, and the set that it selects.
    pub(super) fn policy(&mut self, frontend: &Frontend, local_client: bool, client: IpAddr) -> Result<()> {
        let external = frontend.has(Frontend::EXTERNAL);
        let (let_in, source_range) = if frontend.has(Frontend::SOURCE_RANGES) {
            let range = tables::accepting_range(&self.sandbox, frontend, client)?;
            (Some(range.is_some()), range)
        } else {
            (None, None)
        };
        let local = tables::uses_local(frontend, local_client);
        let (set, set_size) =
            if local { ("local", frontend.local_count) } else { ("cluster", frontend.cluster_count) };
        let policy = PolicyView {
            traffic: if external { "external" } else { "internal" },
            policy: if frontend.has(Frontend::LOCAL) { "Local" } else { "Cluster" },
            short_circuit: frontend.has(Frontend::LOCAL) && !local,
            local_client,
            set,
            set_size,
            cluster_size: frontend.cluster_count,
            local_size: frontend.local_count,
            scheduler: if frontend.has(Frontend::RANDOM) { "random" } else { "rr" },
            let_in,
            source_range,
        };
        let why = if policy.short_circuit { " (short circuit: the client is on this node)" } else { "" };
        let text = format!(
            "{}TrafficPolicy {}: the {set} set, {set_size} backend{}{why}",
            policy.traffic,
            policy.policy,
            if set_size == 1 { "" } else { "s" },
        );
        self.view.stage("policy", text);
        if let Some(let_in) = policy.let_in {
            let list = if frontend.kind == FrontendKind::NodePort as u32 {
                "the NodePort's source ranges"
            } else {
                "loadBalancerSourceRanges"
            };
            let text = match (&policy.source_range, let_in) {
                (Some(range), _) => format!("{list} accept {client}: {range}"),
                (None, _) => format!("{list} do not contain {client}"),
            };
            self.view.stage("ranges", text);
        }
        self.view.policy = Some(policy);
        Ok(())
    }

    /// Renders session affinity and the backend of a new flow.
    pub(super) fn backend(
        &mut self,
        frontend: &Frontend,
        id: u32,
        took_turn: bool,
        client: &str,
    ) -> Result<()> {
        let seconds = frontend.affinity_seconds;
        if seconds != 0 {
            let hit = !took_turn;
            self.view.affinity = Some(AffinityView { seconds, client: client.to_owned(), hit });
            let text = if hit {
                format!("{client} keeps its backend (ClientIP, {seconds} s)")
            } else {
                format!("{client} has no backend yet and will keep this one (ClientIP, {seconds} s)")
            };
            self.view.stage("affinity", text);
        }
        let by = match () {
            () if !took_turn => "affinity",
            () if frontend.has(Frontend::RANDOM) => "random",
            () => "turn",
        };
        self.view.backend = tables::backend_view(&self.sandbox, id, by)?;
        self.backend_stage();
        Ok(())
    }

    pub(super) fn backend_stage(&mut self) {
        let Some(backend) = &self.view.backend else { return };
        let at = std::net::SocketAddr::new(
            backend.address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0])),
            backend.port,
        );
        let node = match (&*backend.node, backend.local) {
            ("", true) => "this node".to_owned(),
            ("", false) => "an unknown node".to_owned(),
            (node, true) => format!("{node}, this node"),
            (node, false) => node.to_owned(),
        };
        let others = self.view.policy.as_ref().map_or(0, |policy| policy.set_size.saturating_sub(1));
        let how = match (backend.chosen_by, others) {
            ("turn", 0) | ("random", 0) => ", the only one".to_owned(),
            ("turn", n) => {
                if n == 1 {
                    ", the next in turn; 1 other follows".to_owned()
                } else {
                    format!(", the next in turn; {n} others follow")
                }
            }
            ("random", n) => format!(", at random; {n} other candidates"),
            _ => String::new(),
        };
        let text = format!("{at} on {node}{how}");
        self.view.stage("backend", text);
    }

    pub(super) fn count(&mut self, counters: &[Counter]) {
        for name in counters.iter().map(|counter| counter.name()) {
            if !self.view.counters.contains(&name) {
                self.view.counters.push(name);
            }
        }
    }
}
