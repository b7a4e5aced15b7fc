//! What each hook makes of the packet: run, and its verdict put into words.

use proxy_common::{Counter, CtEntry, Device, Frontend, Half, Service, map, node::role};

use super::{
    copies,
    frame::{self, Answer},
    tables,
    twin::{Passed, Twin},
    view::Rewrite,
    walk::{Next, Result, Walk},
};
use crate::datapath::xdp::Mode;

/// TC_ACT_SHOT, TC_ACT_REDIRECT.
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;
/// XDP_PASS.
const XDP_PASS: u32 = 2;

/// Counters that say why a packet was refused or dropped.
const REASONS: [Counter; 14] = [
    Counter::NoBackend,
    Counter::NoLocalEndpoints,
    Counter::NoFlow,
    Counter::ConntrackFull,
    Counter::NoFreePort,
    Counter::NoFreeSource,
    Counter::BadSlot,
    Counter::RewriteFailed,
    Counter::SrcRange,
    Counter::NoServicePort,
    Counter::Unallocated,
    Counter::RedirectDropped,
    Counter::SctpPort,
    Counter::FragmentTiny,
];

impl Walk {
    /// The ingress hooks of a device: XDP where it is in the lane, then tc.
    pub(super) fn ingress(&mut self, ifindex: u32, device: &Device) -> Result<Next> {
        let found = self.describe(role::NODEPORT)?;
        let before = self.tuple;
        let known = copies::flow(&self.twin, before.key(Half::Ingress))?;
        let client = before.src.ip().into();
        let taken =
            |twin: &Twin, frontend: &Frontend| twin.own::<_, Service>(map::SERVICES, &frontend.service);
        let mut turns = None;
        if let Some(frontend) = &found {
            copies::service(&self.twin, frontend, client, &before)?;
            if frontend.has(Frontend::SOURCE_RANGES) {
                tables::let_in(&self.twin, frontend.service, before.src.ip())?;
            }
            turns = taken(&self.twin, frontend)?;
        } else {
            let sources = copies::sources(&self.twin, before.is_v4())?;
            let to = before.destination();
            copies::middle(&self.twin, &before, to.addr, to.port, &sources)?;
        }
        let lane = self.lane_program(ifindex)?;
        let mut passed = None;
        if let Some(program) = lane {
            let mut macs = self.macs(device);
            macs[0] = bytemuck::cast(device.mac);
            let run = self.twin.xdp(program, &frame::build(&before, macs), ifindex)?;
            self.check(program)?;
            let is_lanes =
                [Counter::XdpLocal, Counter::XdpForwarded].iter().any(|c| run.counters.contains(c));
            if is_lanes {
                self.view.lane = "xdp";
                self.view.stage("lane", format!("xdp: {program} serves it, past netfilter"));
                passed = Some(run);
            } else if run.counters.contains(&Counter::XdpLeft) {
                self.count(&run.counters);
                self.view.note("the XDP lane leaves this packet to tc");
            }
        }
        let in_lane = passed.is_some();
        let passed = match passed {
            Some(passed) => passed,
            None => {
                self.view.lane = "tc";
                self.view.stage("lane", format!("tc: ingress hook of {}", self.routes.name(ifindex)));
                // What tells the variants apart is the length of the header in front; a test run needs 14 bytes of it.
                let passed = self.twin.classify(
                    "ingress_l2",
                    &frame::build(&before, self.macs(device)),
                    ifindex,
                    ifindex,
                )?;
                self.check("ingress_l2")?;
                passed
            }
        };
        self.count(&passed.counters);
        let after = self.twin.own::<_, CtEntry>(map::CONNTRACK, &before.key(Half::Ingress))?;
        let goes_on = self.flow_stage(known, after)?;
        if let Some(frontend) = found.filter(|_| !goes_on && !before.is_ping()) {
            let local_client = tables::is_local_client(&self.twin, before.src.ip(), ifindex)?;
            self.policy(&frontend, local_client, before.src.ip())?;
            let now = taken(&self.twin, &frontend)?;
            let chosen = after.filter(|entry| entry.has(CtEntry::REQUEST));
            let took_turn = turns.zip(now).is_none_or(|(before, now)| {
                (before.cluster_next, before.local_next) != (now.cluster_next, now.local_next)
            });
            if let Some(entry) = chosen {
                self.backend(&frontend, entry.backend, took_turn, &before.src.ip().to_string())?;
            }
        } else if let Some(entry) = after.filter(|entry| goes_on && entry.has(CtEntry::SERVICE)) {
            self.view.backend = tables::backend_view(&self.twin, entry.backend, "flow")?;
            self.backend_stage();
        }
        if in_lane && passed.ran.action != XDP_PASS {
            return self.forwarded(&passed);
        }
        if in_lane {
            return Ok(self.rewritten("xdp", ifindex, &passed));
        }
        self.after_tc("ingress", ifindex, &passed)
    }

    pub(super) fn egress(&mut self, ifindex: u32, device: &Device) -> Result<()> {
        let before = self.tuple;
        let key = before.key(Half::Egress);
        copies::flow(&self.twin, key)?;
        let sources = copies::sources(&self.twin, before.is_v4())?;
        let to = before.destination();
        copies::middle(&self.twin, &before, to.addr, to.port, &sources)?;
        let came_in = self.came_in.unwrap_or(0);
        let frame = frame::build(&before, self.macs(device));
        let passed = self.twin.classify("egress_l2", &frame, ifindex, came_in)?;
        self.check("egress_l2")?;
        self.count(&passed.counters);
        if matches!(self.after_tc("egress", ifindex, &passed)?, Next::GoesOn) {
            let name = self.routes.name(ifindex);
            self.outcome(Some(name))?;
        }
        Ok(())
    }

    /// What a classifier's verdict means.
    pub(super) fn after_tc(&mut self, hook: &'static str, ifindex: u32, passed: &Passed) -> Result<Next> {
        let reason = REASONS.into_iter().find(|reason| passed.counters.contains(reason));
        match passed.ran.action {
            SHOT => {
                self.view.verdict = "dropped";
                self.view.reason = reason.map(Counter::name);
                let why = reason.map_or("no counter says why", Counter::name);
                self.view.stage("verdict", format!("dropped silently: {why}{}", explained(reason)));
                Ok(Next::Ends)
            }
            REDIRECT => {
                let answer = frame::answer(&passed.ran.frame);
                let (name, text) = match answer {
                    Some(Answer::Reset) => ("tcp_reset", "a TCP reset"),
                    Some(Answer::Unreachable) => ("icmp_port_unreachable", "ICMP port unreachable"),
                    Some(Answer::Echo) => ("echo_reply", "an echo reply"),
                    None => ("unknown", "something else"),
                };
                self.view.answer = Some(name);
                if answer == Some(Answer::Echo) {
                    self.view.verdict = "answered";
                    self.view.stage("verdict", "answered by shunt itself: an echo reply");
                } else {
                    self.view.verdict = "refused";
                    self.view.reason = reason.map(Counter::name);
                    let why = reason.map_or("no counter says why", Counter::name);
                    self.view.stage("verdict", format!("refused with {text}: {why}{}", explained(reason)));
                }
                Ok(Next::Ends)
            }
            _ => Ok(self.rewritten(hook, ifindex, passed)),
        }
    }

    /// Takes what a hook wrote.
    pub(super) fn rewritten(&mut self, hook: &'static str, ifindex: u32, passed: &Passed) -> Next {
        if let Some(tuple) = frame::read(&passed.ran.frame).filter(|tuple| *tuple != self.tuple) {
            self.changed = true;
            self.tuple = tuple;
            let device = self.routes.name(ifindex);
            let (source, destination) = (tuple.end(tuple.src), tuple.end(tuple.dst));
            self.view.stage("rewrite", format!("{hook} of {device}: {source} -> {destination}"));
            self.view.rewrites.push(Rewrite { hook, device: Some(device), source, destination });
        }
        Next::GoesOn
    }

    /// The XDP lane has sent it out by itself.
    pub(super) fn forwarded(&mut self, passed: &Passed) -> Result<Next> {
        let came_in = self.came_in.unwrap_or(0);
        self.rewritten("xdp", came_in, passed);
        let to = self.routes.to(self.tuple.dst.ip(), None);
        let device = to.ok().map(|route| self.routes.name(route.device));
        self.view
            .stage("route", format!("out by {}, past the host's stack", device.as_deref().unwrap_or("?")));
        self.outcome(device)?;
        Ok(Next::Ends)
    }

    /// Tells when other programs run than those that were asked.
    pub(super) fn check(&mut self, name: &'static str) -> Result<()> {
        if !self.twin.is_what_runs(name)? {
            self.view.note(format!(
                "the {name} that runs is another build's than this shunt's: what it does may differ; ask the shunt that runs"
            ));
        }
        Ok(())
    }

    /// The XDP program on a device, if shunt's is there.
    pub(super) fn lane_program(&self, ifindex: u32) -> Result<Option<&'static str>> {
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

/// What a reason means, for those that say little.
fn explained(reason: Option<Counter>) -> &'static str {
    match reason {
        Some(Counter::NoBackend) => " (the Service has no endpoint)",
        Some(Counter::NoLocalEndpoints) => " (policy Local, and no endpoint on this node)",
        Some(Counter::NoServicePort) => " (no service port of this ClusterIP)",
        Some(Counter::Unallocated) => " (an address of a ServiceCIDR that no Service has)",
        Some(Counter::SrcRange) => " (the client is in none of the load balancer's source ranges)",
        Some(Counter::SctpPort) => " (SCTP would need another port)",
        Some(Counter::NoFlow) => " (in mid-stream, and of no recorded flow)",
        _ => "",
    }
}
