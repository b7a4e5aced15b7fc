//! Runs the hooks of a device on the packet, and records their verdicts.

use proxy_common::{Counter, CtEntry, Device, Frontend, Half, Service, counter::Kind, map, node::role};

use super::{
    frame::{self, Answer},
    sandbox::{HookRun, copy},
    tables,
    view::Rewrite,
    walk::{Next, Result, Walk},
};
use crate::datapath::xdp::Mode;

/// TC_ACT_SHOT, TC_ACT_REDIRECT.
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;
/// XDP_PASS.
const XDP_PASS: u32 = 2;

impl Walk {
    /// The ingress hooks of a device: XDP if attached, then tc.
    pub(super) fn ingress(&mut self, ifindex: u32, device: &Device) -> Result<Next> {
        let frontend = self.describe(role::NODEPORT)?;
        let before = self.tuple;
        let known = copy::flow(&self.sandbox, before.key(Half::Ingress))?;
        self.copy_candidates(frontend.as_ref())?;
        let turns = self.turns(frontend.as_ref())?;
        let (hook, run) = self.run_ingress(ifindex, device)?;
        self.count(&run.counters);
        let after = self.sandbox.own::<_, CtEntry>(map::CONNTRACK, &before.key(Half::Ingress))?;
        let continues = self.flow_stage(known, after)?;
        if let Some(frontend) = frontend.filter(|_| !continues && !before.is_ping()) {
            let local_client = tables::is_local_client(&self.sandbox, before.src.ip(), ifindex)?;
            self.policy(&frontend, local_client, before.src.ip())?;
            let took_turn = turns.zip(self.turns(Some(&frontend))?).is_none_or(|(before, now)| before != now);
            if let Some(entry) = after.filter(|entry| entry.has(CtEntry::REQUEST)) {
                self.backend(&frontend, entry.backend, took_turn, &before.src.ip().to_string())?;
            }
        } else if let Some(entry) = after.filter(|entry| continues && entry.has(CtEntry::SERVICE)) {
            self.view.backend = tables::backend_view(&self.sandbox, entry.backend, "flow")?;
            self.backend_stage();
        }
        match hook {
            "xdp" if run.ran.action != XDP_PASS => self.forwarded(&run),
            "xdp" => Ok(self.rewritten(hook, ifindex, &run)),
            _ => self.after_tc(hook, ifindex, &run),
        }
    }

    /// Copies what the ingress programs may look up for a new flow.
    fn copy_candidates(&self, frontend: Option<&Frontend>) -> Result<()> {
        let tuple = &self.tuple;
        let Some(frontend) = frontend else {
            let sources = copy::source_addresses(&self.sandbox, tuple.is_v4())?;
            let to = tuple.destination();
            return Ok(copy::backend_tuples(&self.sandbox, tuple, to.addr, to.port, &sources)?);
        };
        copy::service(&self.sandbox, frontend, tuple.src.ip().into(), tuple)?;
        if frontend.has(Frontend::SOURCE_RANGES) {
            tables::accepting_range(&self.sandbox, frontend, tuple.src.ip())?;
        }
        Ok(())
    }

    /// The round-robin positions of a frontend's sets.
    fn turns(&self, frontend: Option<&Frontend>) -> Result<Option<(u64, u64)>> {
        let Some(frontend) = frontend else { return Ok(None) };
        let service: Option<Service> = self.sandbox.own(map::SERVICES, &frontend.service)?;
        Ok(service.map(|service| (service.cluster_next, service.local_next)))
    }

    /// Runs the XDP program if one is attached and serves the packet, else the tc program. Returns the hook and its result.
    fn run_ingress(&mut self, ifindex: u32, device: &Device) -> Result<(&'static str, HookRun)> {
        let frame = frame::build(&self.tuple, self.macs(device));
        if let Some(program) = self.xdp_program(ifindex)? {
            let run = self.sandbox.xdp(program, &frame, ifindex)?;
            self.check_version(program)?;
            if [Counter::XdpLocal, Counter::XdpForwarded].iter().any(|served| run.counters.contains(served)) {
                self.view.lane = "xdp";
                self.view.stage("lane", format!("xdp: {program} serves the packet and bypasses netfilter"));
                return Ok(("xdp", run));
            }
            if run.counters.contains(&Counter::XdpLeft) {
                self.count(&run.counters);
                self.view.note("XDP leaves this packet to tc");
            }
        }
        self.view.lane = "tc";
        self.view.stage("lane", format!("tc: ingress hook of {}", self.routes.name(ifindex)));
        // The variants differ only in the length of the link header. A test run always has one of 14 bytes.
        let run = self.sandbox.classify("ingress_l2", &frame, ifindex, ifindex)?;
        self.check_version("ingress_l2")?;
        Ok(("ingress", run))
    }

    /// The egress hook of a device.
    pub(super) fn egress(&mut self, ifindex: u32, device: &Device) -> Result<()> {
        let before = self.tuple;
        let key = before.key(Half::Egress);
        copy::flow(&self.sandbox, key)?;
        let sources = copy::source_addresses(&self.sandbox, before.is_v4())?;
        let to = before.destination();
        copy::backend_tuples(&self.sandbox, &before, to.addr, to.port, &sources)?;
        let ingress_device = self.ingress_device.unwrap_or(0);
        let frame = frame::build(&before, self.macs(device));
        let run = self.sandbox.classify("egress_l2", &frame, ifindex, ingress_device)?;
        self.check_version("egress_l2")?;
        self.count(&run.counters);
        if matches!(self.after_tc("egress", ifindex, &run)?, Next::Continue) {
            let name = self.routes.name(ifindex);
            self.outcome(Some(name))?;
        }
        Ok(())
    }

    /// Records the verdict of a classifier.
    pub(super) fn after_tc(&mut self, hook: &'static str, ifindex: u32, run: &HookRun) -> Result<Next> {
        let reason = run.counters.iter().copied().find(|counter| counter.kind() != Kind::Event);
        match run.ran.action {
            SHOT => {
                self.view.verdict = "dropped";
                self.view.reason = reason.map(Counter::name);
                let why = reason.map_or("no counter has the reason", Counter::name);
                self.view.stage("verdict", format!("dropped without a reply: {why}{}", explained(reason)));
                Ok(Next::Done)
            }
            REDIRECT => {
                let answer = frame::answer(&run.ran.frame);
                let (name, text) = match answer {
                    Some(Answer::Reset) => ("tcp_reset", "a TCP reset"),
                    Some(Answer::Unreachable) => ("icmp_port_unreachable", "ICMP port unreachable"),
                    Some(Answer::Echo) => ("echo_reply", "an echo reply"),
                    None => ("unknown", "something else"),
                };
                self.view.answer = Some(name);
                if answer == Some(Answer::Echo) {
                    self.view.verdict = "answered";
                    self.view.stage("verdict", "answered by shunt: an echo reply");
                } else {
                    self.view.verdict = "refused";
                    self.view.reason = reason.map(Counter::name);
                    let why = reason.map_or("no counter has the reason", Counter::name);
                    self.view.stage("verdict", format!("refused with {text}: {why}{}", explained(reason)));
                }
                Ok(Next::Done)
            }
            _ => Ok(self.rewritten(hook, ifindex, run)),
        }
    }

    /// Records the rewrite of a hook.
    pub(super) fn rewritten(&mut self, hook: &'static str, ifindex: u32, run: &HookRun) -> Next {
        if let Some(tuple) = frame::read(&run.ran.frame).filter(|tuple| *tuple != self.tuple) {
            self.changed = true;
            self.tuple = tuple;
            let device = self.routes.name(ifindex);
            let (source, destination) = (tuple.end(tuple.src), tuple.end(tuple.dst));
            self.view.stage("rewrite", format!("{hook} of {device}: {source} -> {destination}"));
            self.view.rewrites.push(Rewrite { hook, device: Some(device), source, destination });
        }
        Next::Continue
    }

    /// Records that XDP forwarded the packet by itself.
    pub(super) fn forwarded(&mut self, run: &HookRun) -> Result<Next> {
        let ingress_device = self.ingress_device.unwrap_or(0);
        self.rewritten("xdp", ingress_device, run);
        let to = self.routes.to(self.tuple.dst.ip(), None);
        let device = to.ok().map(|route| self.routes.name(route.device));
        self.view.stage(
            "route",
            format!("out on {}, bypassing the host's stack", device.as_deref().unwrap_or("?")),
        );
        self.outcome(device)?;
        Ok(Next::Done)
    }

    /// Adds a note if the running program differs from that of the sandbox.
    pub(super) fn check_version(&mut self, name: &'static str) -> Result<()> {
        if !self.sandbox.matches_live(name)? {
            self.view.note(format!(
                "the running {name} is of another build than this shunt and may behave differently; use the shunt binary that is running"
            ));
        }
        Ok(())
    }

    /// shunt's XDP program on a device, if attached.
    pub(super) fn xdp_program(&self, ifindex: u32) -> Result<Option<&'static str>> {
        for mode in Mode::BOTH {
            let path = self.pins.links().join(format!("xdp_{mode}_{ifindex}"));
            if path.exists() {
                let kind = self.routes.link(ifindex).map_or("", |link| &link.kind);
                return Ok(Some(mode.program(kind)));
            }
        }
        Ok(None)
    }

    pub(super) fn macs(&self, device: &Device) -> frame::Macs {
        [bytemuck::cast(device.mac), [2, 0, 0, 0, 0, 1]]
    }
}

/// An explanation of a reason whose name is not clear by itself.
fn explained(reason: Option<Counter>) -> &'static str {
    match reason {
        Some(Counter::NoBackend) => " (the Service has no endpoint)",
        Some(Counter::NoLocalEndpoints) => " (policy Local, and no endpoint on this node)",
        Some(Counter::NoServicePort) => " (the ClusterIP has no such service port)",
        Some(Counter::Unallocated) => " (the address is in a ServiceCIDR, but not allocated to a Service)",
        Some(Counter::SrcRange) => " (the client is in none of the address's source ranges)",
        Some(Counter::Martian) => " (an address of the node itself, or a loopback address, cannot arrive)",
        Some(Counter::SctpPort) => " (SCTP requires that service port and target port are equal)",
        Some(Counter::NoFlow) => " (mid-stream segment without a tracked flow)",
        _ => "",
    }
}
