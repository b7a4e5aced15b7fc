//! The path of one packet, from stage to stage: ingress device or socket, hooks, route, egress device.

use std::{io, net::IpAddr};

use proxy_common::{Addr, Device, Port, node::role};

use super::{
    error::ExplainError,
    request::{Request, Tuple},
    route::{Route, Routes},
    sandbox::{Sandbox, copy},
    tables,
    view::{Ends, Explanation, Outcome},
};
use crate::inspect::{jiffies::Jiffies, pins::Pins, text::proto_name};

pub(super) type Result<T> = std::result::Result<T, ExplainError>;

/// A packet, and the trace so far.
pub(super) struct Walk {
    pub sandbox: Sandbox,
    pub routes: Routes,
    pub clock: Jiffies,
    pub pins: Pins,
    pub tuple: Tuple,
    pub view: Explanation,
    /// `None` if the node itself sends the packet.
    pub ingress_device: Option<u32>,
    /// A hook has rewritten it.
    pub changed: bool,
}

/// Whether the packet continues.
pub(super) enum Next {
    Continue,
    Done,
}

impl Walk {
    /// Sets up the sandbox and determines the ingress device.
    pub fn new(pins: &Pins, request: &Request) -> Result<Self> {
        let sandbox = Sandbox::new(pins)?;
        copy::whole_maps(&sandbox)?;
        let failed = |source| ExplainError::Netlink { what: "devices", source };
        let mut routes = Routes::open().map_err(failed)?;
        let clock = Jiffies::read().map_err(ExplainError::Clock)?;
        let ingress_device = origin(&sandbox, &mut routes, request)?;
        let tuple = if request.any_port { copy::free_port(&sandbox, request.tuple)? } else { request.tuple };
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
        if request.any_port {
            view.note(format!("source port {} is chosen by explain", tuple.src.port()));
        }
        Ok(Self { sandbox, routes, clock, pins: pins.clone(), tuple, view, ingress_device, changed: false })
    }

    /// Runs all stages.
    pub fn finish(mut self) -> Result<Explanation> {
        let next = match self.ingress_device {
            None => self.leave_node()?,
            Some(device) => self.enter_device(device)?,
        };
        if matches!(next, Next::Continue) {
            self.leave()?;
        }
        if self.view.stages.iter().all(|stage| stage.stage != "verdict") {
            let text = if self.changed {
                self.view.verdict = "translated";
                "translated"
            } else {
                "passes unchanged"
            };
            self.view.stage("verdict", text);
        }
        Ok(self.view)
    }

    pub(super) fn enter_device(&mut self, ifindex: u32) -> Result<Next> {
        let device = tables::device(&self.sandbox, ifindex)?;
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
                "pod" => format!("a pod of this node, on {name}"),
                "uplink" => format!("outside the node, on {name}"),
                _ => format!("on {name}"),
            },
        );
        self.note_socket_lb(kind)?;
        let Some(device) = device else {
            self.view.stage("lane", format!("none: shunt is not attached to {name}"));
            self.describe(role::NODEPORT)?;
            return Ok(Next::Continue);
        };
        self.ingress(ifindex, &device)
    }

    /// The route of the host's stack, and the egress hook of its device.
    pub(super) fn leave(&mut self) -> Result<()> {
        let (src, dst) = (self.tuple.src.ip(), self.tuple.dst.ip());
        let from = self.ingress_device.map(|device| (src, self.routes.stack_device(device)));
        let route = match self.routes.to(dst, from) {
            Ok(route) => route,
            Err(error) => {
                let plain = self.routes.to(dst, None);
                if error.raw_os_error() == Some(libc::EXDEV) && plain.is_ok() {
                    self.view.note(
                        "the host's stack may drop the packet (rp_filter): the route to its source uses another device",
                    );
                }
                match plain {
                    Ok(route) => route,
                    Err(_) => {
                        self.view
                            .stage("route", format!("none: the host's stack has no route to {dst}: {error}"));
                        return Ok(());
                    }
                }
            }
        };
        if route.is_own {
            self.view.stage("route", "local delivery to the node");
            return self.outcome(None);
        }
        let port = self.leaves_by(&route, dst)?;
        let name = self.routes.name(port);
        self.view.stage("route", format!("out on {name}"));
        let Some(device) = tables::device(&self.sandbox, port)? else {
            self.view.note(format!("shunt is not attached to {name}"));
            return self.outcome(Some(name));
        };
        if self.view.lane == "none" {
            self.view.lane = "tc";
        }
        self.egress(port, &device)
    }

    /// The device whose hook the packet passes: the port, if the route leads to a bridge.
    pub(super) fn leaves_by(&mut self, route: &Route, dst: IpAddr) -> Result<u32> {
        port(&self.sandbox, &mut self.routes, route.device, dst)
    }

    /// Records the final packet.
    pub(super) fn outcome(&mut self, device: Option<String>) -> Result<()> {
        let tuple = self.tuple;
        let requested = self.view.packet.source.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let other = requested.is_some_and(|port: u16| port != tuple.src.port());
        if other && self.changed {
            self.view.note(format!(
                "source port {} is an example: the client's own port is in use, or outside 1024-29999 and 61000-65535",
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

    /// Applies the destination of a socket hook.
    pub(super) fn connected(&mut self, addr: Addr, port: Port) {
        self.tuple = self.tuple.to(addr, port);
        self.changed = true;
    }
}

/// The ingress device; `None` if the node itself sends the packet.
fn origin(sandbox: &Sandbox, routes: &mut Routes, request: &Request) -> Result<Option<u32>> {
    if let Some(name) = &request.device {
        let link = routes.by_name(name).ok_or_else(|| ExplainError::NoDevice(name.clone()))?;
        return Ok(Some(link.index));
    }
    let addr = request.tuple.src.ip();
    let route = routes.to(addr, None).map_err(|source| ExplainError::NoRoute { addr, source })?;
    if route.is_own {
        return Ok(None);
    }
    port(sandbox, routes, route.device, addr).map(Some)
}

/// The device whose hooks a packet of `addr` passes on `device`: of a bridge, the port to `addr`. If the bridge does not know
/// the address, any port with hooks, because they are equal.
fn port(sandbox: &Sandbox, routes: &mut Routes, device: u32, addr: IpAddr) -> Result<u32> {
    if tables::device(sandbox, device)?.is_some() {
        return Ok(device);
    }
    let found = routes
        .port_of(device, addr)
        .map_err(|source| ExplainError::Netlink { what: "neighbours", source })?;
    if let Some(port) = found {
        return Ok(port);
    }
    for port in routes.ports(device) {
        if tables::device(sandbox, port)?.is_some() {
            return Ok(port);
        }
    }
    Ok(device)
}
