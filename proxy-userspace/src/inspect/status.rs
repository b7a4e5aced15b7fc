//! `shunt status`: the last reported state of the agent, and the fill of the maps. Works while the agent is down.

use std::{
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use proxy_common::{Agent, Backend, Device, Frontend, FrontendKey, FrontendKind, map};
use serde::Serialize;

use super::{InspectError, pins::Pins, text::yes_no};

/// The agent writes a heartbeat every second. An older one means that it has exited or hangs.
const FRESH_SECONDS: u64 = 5;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// An agent is alive and has completed its first sync.
    pub ready: bool,
    /// An agent is alive.
    pub running: bool,
    /// Only while the agent runs.
    pub pid: Option<u32>,
    pub services: u32,
    pub frontends: usize,
    pub backends: usize,
    pub conntrack: ConntrackFill,
    pub devices: usize,
    /// Seconds since the last complete sync; `None` before the first one.
    pub last_sync_seconds: Option<u64>,
    pub version: &'static str,
    /// Version of the map contract.
    pub schema: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConntrackFill {
    /// Conntrack entries: at least two per flow.
    pub entries: usize,
    pub max: u32,
}

/// The map entries behind the view.
#[derive(Clone, Debug, Default)]
pub struct StatusMaps {
    pub agent: Option<Agent>,
    pub frontends: Vec<(FrontendKey, Frontend)>,
    pub backends: Vec<(u32, Backend)>,
    pub conntrack: ConntrackFill,
    pub devices: usize,
}

/// Whether an agent is running on these maps. An agent that exits normally clears its pid; one that is killed stops its
/// heartbeat.
pub fn is_alive(agent: &Agent, now: u64) -> bool {
    agent.pid != 0 && agent.heartbeat != 0 && now.saturating_sub(agent.heartbeat) <= FRESH_SECONDS
}

/// The last state that the agent wrote.
pub fn agent(pins: &Pins) -> Result<Option<Agent>, InspectError> {
    Ok(pins.read::<u32, Agent>(map::AGENT)?.first().map(|(_, agent)| *agent))
}

/// Unix time in seconds, the clock of AGENT.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl StatusMaps {
    pub fn read(pins: &Pins) -> Result<Self, InspectError> {
        let conntrack = pins.map(map::CONNTRACK)?;
        let mut fill = ConntrackFill { entries: 0, max: conntrack.info().max_entries };
        conntrack
            .for_each(|_, _| fill.entries += 1)
            .map_err(|error| InspectError::io("reading the map", pins.maps().join(map::CONNTRACK), error))?;
        Ok(Self {
            agent: agent(pins)?,
            frontends: pins.read(map::FRONTENDS)?,
            backends: pins.read(map::BACKENDS)?,
            conntrack: fill,
            devices: pins.read::<u32, Device>(map::DEVICES)?.len(),
        })
    }

    pub fn view(&self, now: u64) -> StatusView {
        let agent = self.agent.unwrap_or_else(bytemuck::Zeroable::zeroed);
        let running = is_alive(&agent, now);
        StatusView {
            ready: running && agent.ready != 0,
            running,
            pid: running.then_some(agent.pid),
            services: agent.services,
            frontends: self.frontends.iter().filter(|(_, it)| it.kind != FrontendKind::Ping as u32).count(),
            backends: self.backends.iter().filter(|(_, backend)| backend.has(Backend::ACTIVE)).count(),
            conntrack: self.conntrack,
            devices: self.devices,
            last_sync_seconds: (agent.last_sync != 0).then(|| now.saturating_sub(agent.last_sync)),
            version: env!("CARGO_PKG_VERSION"),
            schema: proxy_common::SCHEMA,
        }
    }
}

pub fn print_status_into(out: &mut impl Write, view: &StatusView) -> io::Result<()> {
    let agent = match view.pid {
        Some(pid) => format!("running (pid {pid})"),
        None => "not running; the datapath keeps working with the current maps".to_owned(),
    };
    let last_sync =
        view.last_sync_seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds} s ago"));
    let fill = view.conntrack;
    for (name, value) in [
        ("Agent", agent),
        ("Ready", yes_no(view.ready).to_owned()),
        ("Last sync", last_sync),
        ("Services", view.services.to_string()),
        ("Frontends", view.frontends.to_string()),
        ("Backends", view.backends.to_string()),
        ("Conntrack", format!("{} of {}", fill.entries, fill.max)),
        ("Devices", view.devices.to_string()),
        ("Version", format!("{} (map contract v{})", view.version, view.schema)),
    ] {
        writeln!(out, "{:<12}{value}", format!("{name}:"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(heartbeat: u64, ready: u32) -> StatusMaps {
        let agent = Agent { started: 1, last_sync: 90, heartbeat, pid: 7, ready, services: 3, reserved: 0 };
        StatusMaps {
            agent: Some(agent),
            conntrack: ConntrackFill { entries: 2, max: 1024 },
            ..StatusMaps::default()
        }
    }

    #[test]
    fn ready_needs_the_flag_and_a_fresh_heartbeat() {
        assert!(maps(100, 1).view(101).ready);
        assert!(!maps(100, 0).view(101).ready);
        assert!(!maps(100, 1).view(100 + FRESH_SECONDS + 1).ready);
        let mut ended = maps(100, 0);
        ended.agent.as_mut().unwrap().pid = 0;
        assert!(!ended.view(100).running);
        assert!(!StatusMaps::default().view(1).running);
        assert_eq!(StatusMaps::default().view(1).last_sync_seconds, None);
    }

    #[test]
    fn as_text_and_as_json() {
        let view = maps(100, 1).view(101);
        let mut out = Vec::new();
        print_status_into(&mut out, &view).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("running (pid 7)") && text.contains("11 s ago") && text.contains("2 of 1024"),
            "{text}"
        );
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["conntrack"]["max"], 1024);
        assert_eq!(json["last_sync_seconds"], 11);
    }
}
