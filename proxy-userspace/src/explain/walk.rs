//! The way of one packet, from stage to stage: who it comes from, what each hook makes of it, where it goes on.

use std::{io, net::IpAddr};

use proxy_common::{Addr, Device, Port, node::role};

use super::{
    ExplainError, copies,
    question::{Question, Tuple},
    route::{Route, Routes},
    tables,
    twin::Twin,
    view::{Ends, Explanation, Outcome},
};
use crate::inspect::{jiffies::Jiffies, pins::Pins, proto_name};

pub(super) type Result<T> = std::result::Result<T, ExplainError>;

/// A packet on its way.
pub(super) struct Walk {
    pub twin: Twin,
    pub routes: Routes,
    pub clock: Jiffies,
    pub pins: Pins,
    pub tuple: Tuple,
    pub view: Explanation,
    /// By which device it comes in; `None`: the node itself sends it.
    pub came_in: Option<u32>,
    /// It was changed on its way.
    pub changed: bool,
}

/// Whether there is more to come.
pub(super) enum Next {
    GoesOn,
    Ends,
}

impl Walk {
    /// Opens the maps and finds out where the packet comes from.
    pub fn new(pins: &Pins, question: &Question) -> Result<Self> {
        let twin = Twin::new(pins)?;
        copies::whole(&twin)?;
        let asked = |source| ExplainError::Netlink { what: "devices", source };
        let mut routes = Routes::open().map_err(asked)?;
        let clock = Jiffies::read().map_err(ExplainError::Clock)?;
        let came_in = origin(&twin, &mut routes, question)?;
        let tuple =
            if question.any_port { copies::free_port(&twin, question.tuple)? } else { question.tuple };
        let mut view = Explanation {
            packet: Ends {
                protocol: proto_name(tuple.proto),
                source: tuple.end(tuple.src),
                destination: tuple.end(tuple.dst),
            },
            verdict: "untouched",
            lane: "none",
            ..Explanation::default()
        };
        if question.any_port {
            view.note(format!("source port {} is made up", tuple.src.port()));
        }
        Ok(Self { twin, routes, clock, pins: pins.clone(), tuple, view, came_in, changed: false })
    }

    /// The whole way.
    pub fn finish(mut self) -> Result<Explanation> {
        let next = match self.came_in {
            None => self.leave_node()?,
            Some(device) => self.enter_device(device)?,
        };
        if matches!(next, Next::GoesOn) {
            self.leave()?;
        }
        if self.view.stages.iter().all(|stage| stage.stage != "verdict") {
            let text = if self.changed {
                self.view.verdict = "translated";
                "translated"
            } else {
                "passes untouched"
            };
            self.view.stage("verdict", text);
        }
        Ok(self.view)
    }

    pub(super) fn enter_device(&mut self, ifindex: u32) -> Result<Next> {
        let device = tables::device(&self.twin, ifindex)?;
        let name = self.routes.name(ifindex);
        let kind = match device.map_or(0, |device| device.flags) {
            flags if flags & Device::POD != 0 => "pod",
            flags if flags & Device::TUNNEL != 0 => "tunnel",
            flags if flags & Device::UPLINK != 0 => "uplink",
            _ => "device",
        };
        (self.view.from.kind, self.view.from.ifindex) = (kind, Some(ifindex));
        self.view.from.device = Some(name.clone());
        self.view.stage(
            "from",
            match kind {
                "pod" => format!("a pod of this node, by {name}"),
                "uplink" => format!("outside, by {name}"),
                _ => format!("by {name}"),
            },
        );
        self.mention_sockets(kind)?;
        let Some(device) = device else {
            self.view.stage("lane", format!("none: shunt's programs are not on {name}"));
            self.describe(role::NODEPORT)?;
            return Ok(Next::GoesOn);
        };
        self.ingress(ifindex, &device)
    }

    /// From the node's stack on: the route, and the egress hook of the device it leads to.
    pub(super) fn leave(&mut self) -> Result<()> {
        let (src, dst) = (self.tuple.src.ip(), self.tuple.dst.ip());
        let from = self.came_in.map(|device| (src, self.routes.stack_device(device)));
        let route = match self.routes.to(dst, from) {
            Ok(route) => route,
            Err(error) => {
                let plain = self.routes.to(dst, None);
                if error.raw_os_error() == Some(libc::EXDEV) && plain.is_ok() {
                    self.view.note(
                        "the node's stack may drop it: by its routes the source is behind another device (rp_filter)",
                    );
                }
                match plain {
                    Ok(route) => route,
                    Err(_) => {
                        self.view
                            .stage("route", format!("none: the node's stack cannot send to {dst}: {error}"));
                        return Ok(());
                    }
                }
            }
        };
        if route.is_own {
            self.view.stage("route", "to the node itself");
            return self.outcome(None);
        }
        let port = self.leaves_by(&route, dst)?;
        let name = self.routes.name(port);
        self.view.stage("route", format!("out by {name}"));
        let Some(device) = tables::device(&self.twin, port)? else {
            self.view.note(format!("shunt's programs are not on {name}"));
            return self.outcome(Some(name));
        };
        if self.view.lane == "none" {
            self.view.lane = "tc";
        }
        self.egress(port, &device)
    }

    /// The device whose hook the packet meets: a bridge's port, where the route leads to a bridge.
    pub(super) fn leaves_by(&mut self, route: &Route, dst: IpAddr) -> Result<u32> {
        port(&self.twin, &mut self.routes, route.device, dst)
    }

    /// The packet at its end.
    pub(super) fn outcome(&mut self, device: Option<String>) -> Result<()> {
        let tuple = self.tuple;
        let asked = self.view.packet.source.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let other = asked.is_some_and(|port: u16| port != tuple.src.port());
        if other && self.changed {
            self.view.note(format!(
                "source port {} is one of many: the client's own is taken, or outside 1024-29999 and 61000-65535",
                tuple.src.port()
            ));
        }
        self.view.outcome = Some(Outcome {
            source: tuple.end(tuple.src),
            destination: tuple.end(tuple.dst),
            any_source_port: other && self.changed,
            device,
        });
        Ok(())
    }

    pub(super) fn route(&mut self, to: IpAddr) -> io::Result<Route> {
        self.routes.to(to, None)
    }

    /// What a socket hook wrote.
    pub(super) fn connected(&mut self, addr: Addr, port: Port) {
        self.tuple = self.tuple.to(addr, port);
        self.changed = true;
    }
}

/// Where the packet comes from: a device, or the node itself.
fn origin(twin: &Twin, routes: &mut Routes, question: &Question) -> Result<Option<u32>> {
    if let Some(name) = &question.device {
        let link = routes.by_name(name).ok_or_else(|| ExplainError::NoDevice(name.clone()))?;
        return Ok(Some(link.index));
    }
    let addr = question.tuple.src.ip();
    let route = routes.to(addr, None).map_err(|source| ExplainError::NoRoute { addr, source })?;
    if route.is_own {
        return Ok(None);
    }
    port(twin, routes, route.device, addr).map(Some)
}

/// The device whose hooks are met on the way through `device`: of a bridge, the port towards `addr`; where nobody has
/// asked for that address yet, any hooked one, for they are all alike.
fn port(twin: &Twin, routes: &mut Routes, device: u32, addr: IpAddr) -> Result<u32> {
    if tables::device(twin, device)?.is_some() {
        return Ok(device);
    }
    let found = routes
        .port_of(device, addr)
        .map_err(|source| ExplainError::Netlink { what: "neighbours", source })?;
    if let Some(port) = found {
        return Ok(port);
    }
    for port in routes.ports(device) {
        if tables::device(twin, port)?.is_some() {
            return Ok(port);
        }
    }
    Ok(device)
}
